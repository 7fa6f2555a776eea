//! Any bytes are objects that survive being written and read again, or are refused with faults.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| match schemas::objects::read(bytes) {
    Ok(objects) => {
        assert!(!objects.is_empty());
        for object in objects {
            let Ok(text) = schemas::source::yaml::to_string(&object.object.value) else { continue };
            let again = schemas::objects::read(text.as_bytes()).unwrap_or_else(|faults| panic!("{faults:?}\n{text}"));
            assert_eq!(again[0].object.value, object.object.value, "{text}");
        }
    }
    Err(faults) => assert!(!faults.is_empty() && faults.len() <= schemas::source::FAULTS_MAX + 1),
});
