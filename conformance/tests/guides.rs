//! What the guides say of apply's own API, on a server with apply's kinds in this process.

#[path = "../../reconciler/examples/quiet.rs"]
#[allow(dead_code, reason = "its `main` is the example's")]
mod quiet;

use std::sync::Arc;
use std::time::Duration;

use conformance::parts::process::{clear, fresh_folder};
use controllers::kinds::kinds;
use reconciler::Resource;
use reconciler::objects::{Client, StoreObjects, Writer};
use reconciler::seams::Seams;
use reconciler::server::{Server, UnixSocket};
use reconciler::store::Memory;
use schemas::kinds::service::Service;

#[tokio::test]
async fn a_controller_of_a_few_lines_acts_on_services_and_leaves_what_it_does_not_know() {
    let folder = fresh_folder(&format!("guides-{}", std::process::id())).unwrap();
    let path = folder.join("apply.sock");
    let objects = StoreObjects::open(Arc::new(Memory::new()), "/apply", kinds(), Seams::real()).await.unwrap();
    let objects = Arc::new(objects);
    let server = Server::new(objects.clone(), kinds(), Seams::real());
    let socket = UnixSocket::bind(&path).await.unwrap();
    let ann = Client::new(objects, Writer::new("user:ann", "tests"));
    let service = |name: &str| {
        let mut service = Service::new(name, Default::default());
        service.metadata.namespace = "default".into();
        service.spec.template.container.image = "example/web:1".into();
        service.spec.replicas = Some(3);
        service
    };
    let mut still = service("still");
    still.metadata.labels.insert("quiet".into(), "yes".into());
    let work = async {
        let (made, loud) = (ann.create(&still).await.unwrap(), ann.create(&service("loud")).await.unwrap());
        let quieted = async {
            loop {
                let now: Service = ann.get(&made.object_ref()).await.unwrap();
                if now.spec.replicas == Some(0) {
                    return now;
                }
                Seams::real().sleep(Duration::from_millis(5)).await;
            }
        };
        let now = tokio::time::timeout(Duration::from_secs(30), quieted).await.expect("it becomes quiet");
        assert_eq!(now.spec.template, made.spec.template, "what the example knows nothing of stays");
        let loud: Service = ann.get(&loud.object_ref()).await.unwrap();
        assert_eq!(loud.spec.replicas, Some(3));
    };
    tokio::select! {
        () = work => {}
        () = server.serve(socket) => panic!("the server ended"),
        () = quiet::run(&path) => panic!("the controller ended"),
    }
    clear(&folder).unwrap();
}
