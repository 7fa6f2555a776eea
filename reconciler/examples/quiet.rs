//! `quiet SOCKET`: in the cluster whose applyd listens at SOCKET, a service labelled `quiet: "yes"` has no tasks.

use std::path::Path;
use std::sync::Arc;

use reconciler::api::Resource;
use reconciler::controller::{Action, Controller, Ctx, Error, Manager, Reconciler};
use reconciler::{objects::Remote, seams::Seams};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// As much of apply's Service as is needed here. Only what differs is ever written, so the rest of it stays.
#[derive(Resource, Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[resource(group = "apply", version = "v1", kind = "Service", crate = reconciler::api)]
struct ServiceSpec {
    replicas: Option<u32>,
}

struct Quiet;

impl Reconciler for Quiet {
    type Object = Service;

    async fn reconcile(&self, service: Arc<Service>, cx: &Ctx) -> Result<Action, Error> {
        if service.metadata.labels.get("quiet").is_some_and(|quiet| quiet == "yes") {
            let mut still = (*service).clone();
            still.spec.replicas = Some(0);
            cx.client().update(&*service, &still).await?;
        }
        Ok(Action::Await)
    }
}

pub async fn run(socket: &Path) {
    let objects = Arc::new(Remote::unix(socket, Seams::real()));
    let manager = Manager::builder(objects, Seams::real()).controller(Controller::new("quiet", Quiet)).build();
    manager.run(std::future::pending()).await;
}

#[tokio::main]
pub async fn main() {
    let socket = std::env::args().nth(1).unwrap_or_else(|| "/run/apply/apply.sock".into());
    run(Path::new(&socket)).await;
}
