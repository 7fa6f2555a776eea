//! Any bytes are a bundle that can be stored, or are refused with faults whose places are in the file.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let lines = bytes.iter().filter(|b| **b == b'\n').count() + 1;
    match schemas::dab::read("app", bytes) {
        Ok(bundle) => {
            // What is good here is good for the store.
            let object = serde_json::to_value(bundle.into_inner()).unwrap();
            let kind = schemas::kinds::find("bundle").unwrap();
            let faults: Vec<_> = (kind.check)(&object, None);
            assert!(faults.is_empty(), "{faults:?}");
        }
        Err(faults) => {
            assert!(!faults.is_empty() && faults.len() <= schemas::source::FAULTS_MAX + 1);
            assert!(faults.iter().all(|fault| (fault.at.line as usize) <= lines), "{faults:?}");
            // The last one may say that there are more.
            assert!(faults[..faults.len().min(schemas::source::FAULTS_MAX)].is_sorted());
        }
    }
});
