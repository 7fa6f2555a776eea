//! The store in etcd, on real ones: the suite of every store on 3.4 and 3.5, and what happens when etcd is killed, frozen,
//! compacted, or changes its leader.

#[path = "../../../reconciler/tests/store_suite/mod.rs"]
mod store_suite;

mod faults;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use conformance::parts::etcd::{Etcd, Version};
use reconciler::seams::Seams;
use reconciler::store::{Key, etcd};
use store_suite::Subject;

/// An etcd for one test, and a store in it.
async fn started(version: Version, members: usize) -> (Etcd, Arc<etcd::Etcd>) {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let name = format!("{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    let server = tokio::task::spawn_blocking(move || Etcd::start(&name, version, members)).await.unwrap().unwrap();
    let store = connect(&server).await;
    (server, store)
}

async fn connect(server: &Etcd) -> Arc<etcd::Etcd> {
    let config = etcd::Config::new(server.endpoints(), Key::new("/suite/"));
    Arc::new(etcd::Etcd::connect(&config, &Seams::real()).await.unwrap())
}

mod of_3_4 {
    use super::*;

    async fn subject() -> Subject {
        let (server, store) = started(Version::V3_4, 1).await;
        Subject { store, keep: Box::new(server) }
    }

    crate::store_suite::store_suite!(subject);
}

mod of_3_5 {
    use super::*;

    async fn subject() -> Subject {
        let (server, store) = started(Version::V3_5, 1).await;
        Subject { store, keep: Box::new(server) }
    }

    crate::store_suite::store_suite!(subject);
}
