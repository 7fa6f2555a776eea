//! Any overlay is laid over the bundle of the example, or refused by its name.
#![no_main]

use libfuzzer_sys::fuzz_target;
use schemas::deploy::{Deployment, Place, Text, read};

const BUNDLE: &[u8] = include_bytes!("../../../examples/voting-app/voting-app.dab");

fuzz_target!(|bytes: &[u8]| {
    let deployment = Deployment {
        name: "app",
        bundle: Text { name: "app.dab", bytes: BUNDLE },
        overlays: &[Text { name: "overlay.yaml", bytes }],
        ..Deployment::default()
    };
    if let Err(refusals) = read(&deployment) {
        assert!(!refusals.is_empty());
        for refusal in refusals {
            assert!(matches!(&refusal.place, Place::File { name, .. } if name == "overlay.yaml"), "{refusal}");
        }
    }
});
