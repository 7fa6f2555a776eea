//! The suite on `Embedded`, in files.

mod store_suite;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use proptest::prelude::*;
use reconciler::seams::Seams;
use reconciler::store::Embedded;
use reconciler::store::embedded::Options;
use store_suite::{Subject, model, store_suite};

/// A folder of the build's own, removed in the end.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("store-embedded-{}-{number}", std::process::id());
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn open(&self) -> Embedded {
        Embedded::open(self.0.join("store.redb"), &*Seams::real().random, &Options::default()).unwrap()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

async fn embedded() -> Subject {
    let folder = Folder::new();
    Subject { store: Arc::new(folder.open()), keep: Box::new(folder) }
}

store_suite!(embedded);

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn it_does_what_a_map_and_a_list_would_do(steps in model::story()) {
        let folder = Folder::new();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let reopen = async |store: Arc<dyn reconciler::store::Store>| {
            drop(store);
            Arc::new(folder.open()) as Arc<dyn reconciler::store::Store>
        };
        runtime.block_on(model::play(Arc::new(folder.open()), reopen, steps));
    }
}
