//! A network gets its id, its subnet, and a block of addresses for every machine; a machine gets its address in the
//! overlay.
//!
//! **Owns** the status of Networks, and `status.overlayAddress` of Nodes.
//! **Relies on** nobody else handing out addresses of the cluster's task pool.
//! **Promises** no two subnets overlap, and none moves once it is handed out.
//! **Woken by** Networks, Nodes and the Cluster object (its pools). One key: every hand-out sees all before it.

mod plan;

use reconciler::ObjectRef;
use reconciler::controller::{Action, Controller, Ctx, Error, KeyReconciler, Singleton};
use reconciler::objects::Write;
use schemas::kinds::cluster::{CLUSTER_NAME, Cluster};
use schemas::kinds::network::Network;
use schemas::kinds::node::Node;

use plan::Seen;

const WRITES_PER_COMMIT: usize = 50;

pub struct Networks;

impl Networks {
    pub fn controller() -> Controller<Singleton> {
        Controller::singleton("network", Self).watches_all::<Network>().watches_all::<Node>().watches_all::<Cluster>()
    }
}

impl KeyReconciler for Networks {
    type Key = Singleton;

    async fn reconcile(&self, _: &Singleton, cx: &Ctx) -> Result<Action, Error> {
        let snapshot = cx.snapshot();
        let seen = Seen {
            networks: snapshot.all::<Network>().cloned().collect(),
            nodes: snapshot.all::<Node>().map(|node| (node.metadata.name.clone(), overlay_address(node))).collect(),
            pools: snapshot
                .get::<Cluster>(&ObjectRef::cluster(CLUSTER_NAME))
                .map(|cluster| cluster.spec.addresses.clone())
                .unwrap_or_default(),
        };
        let of_networks = plan::plan(&seen, cx.now()).into_iter().map(|(network, status)| {
            let mut desired = (*network).clone();
            desired.status = Some(status);
            Write::update_status(&*network, &desired)
        });
        let of_nodes = plan::addresses(&seen).into_iter().filter_map(|(node, address)| {
            let node = snapshot.get::<Node>(&ObjectRef::cluster(node))?;
            let mut desired = (**node).clone();
            desired.status.get_or_insert_default().overlay_address = Some(address);
            Some(Write::update_status(&**node, &desired))
        });
        let writes: Vec<Write> = of_nodes.chain(of_networks).collect();
        for batch in writes.chunks(WRITES_PER_COMMIT) {
            cx.client().commit(batch.to_vec()).await?;
        }
        Ok(Action::Await)
    }
}

fn overlay_address(node: &Node) -> Option<std::net::Ipv4Addr> {
    node.status.as_ref()?.overlay_address
}
