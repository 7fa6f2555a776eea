//! The suite on `Memory`.

mod store_suite;

use std::sync::Arc;

use proptest::prelude::*;
use reconciler::store::Memory;
use store_suite::{Subject, model, store_suite};

async fn memory() -> Subject {
    Subject { store: Arc::new(Memory::new()), keep: Box::new(()) }
}

store_suite!(memory);

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn it_does_what_a_map_and_a_list_would_do(steps in model::story()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(model::play(Arc::new(Memory::new()), async |store| store, steps));
    }
}
