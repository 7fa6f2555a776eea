//! Scenes of deploying, changing by hand, and deploying again.

use std::sync::Arc;

use reconciler::api::OwnerReference;
use reconciler::{Resource, Timestamp, Uid};
use schemas::kinds::bundle::{Bundle, BundleSpec, ServiceFragment};
use schemas::kinds::network::Network;
use schemas::kinds::service::{NetworkAttachment, Service, ServiceSpec, ServiceStatus};

use super::plan::{Change, LAST_APPLIED, Seen, plan};

const NOW: Timestamp = Timestamp::from_seconds(1_000);

fn spec(image: &str) -> ServiceSpec {
    let mut spec = ServiceSpec::default();
    spec.template.container.image = image.into();
    spec.template.networks = vec![NetworkAttachment { name: "back_tier".into(), aliases: vec![] }];
    spec
}

fn bundle(services: &[(&str, ServiceSpec)]) -> Arc<Bundle> {
    let services = services.iter().map(|(name, spec)| ((*name).to_owned(), ServiceFragment::from(spec))).collect();
    let mut bundle = Bundle::new("shop", BundleSpec { services, ..BundleSpec::default() });
    bundle.metadata.uid = Uid::new("u-shop");
    Arc::new(bundle)
}

fn owner() -> Vec<OwnerReference> {
    vec![OwnerReference { kind: "Bundle".into(), name: "shop".into(), uid: Uid::new("u-shop"), ..Default::default() }]
}

/// Carries a plan out, with every service up at once.
fn settle(seen: &mut Seen) -> Vec<String> {
    let mut told = Vec::new();
    for change in plan(seen, NOW).changes {
        match change {
            Change::CreateNetwork { name, spec } => {
                told.push(format!("network {name}"));
                let mut network = Network::new(name, spec);
                network.metadata.owner_references = owner();
                seen.networks.push(Arc::new(network));
            }
            Change::CreateService { name, spec, applied } => {
                told.push(format!("service {name}"));
                let mut service = Service::new(name, spec);
                service.metadata.owner_references = owner();
                put(seen, service, applied);
            }
            Change::UpdateService { live, spec, applied } => {
                told.push(format!("update {}", live.metadata.name));
                let mut service = (*live).clone();
                service.spec = spec;
                put(seen, service, applied);
            }
            Change::RemoveService { live } => {
                told.push(format!("remove {}", live.metadata.name));
                seen.services.retain(|other| other.metadata.name != live.metadata.name);
            }
            Change::RemoveNetwork { live } => {
                told.push(format!("remove network {}", live.metadata.name));
                seen.networks.retain(|other| other.metadata.name != live.metadata.name);
            }
        }
    }
    told
}

fn put(seen: &mut Seen, mut service: Service, applied: String) {
    service.metadata.annotations.insert(LAST_APPLIED.into(), applied);
    let mut status = ServiceStatus { desired: 1, running: 1, updated: 1, ..ServiceStatus::default() };
    status.conditions.set("Ready", true, "AllRunning", "", 0, NOW);
    service.status = Some(status);
    seen.services.retain(|other| other.metadata.name != service.metadata.name);
    seen.services.push(Arc::new(service));
}

fn deployed(services: &[(&str, ServiceSpec)]) -> Seen {
    let mut seen = Seen { bundle: bundle(services), services: vec![], networks: vec![] };
    settle(&mut seen);
    assert_eq!(settle(&mut seen), Vec::<String>::new(), "the same file twice changes nothing");
    seen
}

#[test]
fn an_application_becomes_networks_and_services_with_the_names_that_people_expect() {
    let mut seen = Seen { bundle: bundle(&[("Web_1", spec("a:1"))]), services: vec![], networks: vec![] };
    assert_eq!(settle(&mut seen), ["network shop-back-tier", "service shop-web-1"]);
    let attachment = &seen.services[0].spec.template.networks[0];
    assert_eq!(
        (attachment.name.as_str(), &attachment.aliases[..]),
        ("shop-back-tier", &["Web_1".to_owned(), "shop_Web_1".to_owned()][..])
    );
}

#[test]
fn what_was_set_by_hand_survives_a_deploy_that_says_nothing_of_it() {
    let mut seen = deployed(&[("web", spec("a:1"))]);
    let mut scaled = (*seen.services[0]).clone();
    scaled.spec.replicas = Some(6);
    seen.services = vec![Arc::new(scaled)];
    assert_eq!(settle(&mut seen), Vec::<String>::new());
    seen.bundle = bundle(&[("web", spec("a:2"))]);
    let overrides = plan(&seen, NOW).status.overrides;
    assert_eq!(overrides.iter().map(|over| over.path.as_str()).collect::<Vec<_>>(), ["spec.replicas"]);
    assert_eq!(settle(&mut seen), ["update shop-web"]);
    assert_eq!(
        (seen.services[0].spec.replicas, seen.services[0].spec.template.container.image.as_str()),
        (Some(6), "a:2")
    );
}

#[test]
fn what_left_the_file_goes_once_the_rest_is_up() {
    let mut seen = deployed(&[("web", spec("a:1")), ("old", spec("b:1"))]);
    seen.bundle = bundle(&[("web", spec("a:2"))]);
    assert_eq!(settle(&mut seen), ["update shop-web"], "first the new");
    assert_eq!(settle(&mut seen), ["remove shop-old"]);
}

#[test]
fn what_belongs_to_somebody_else_is_named_and_left_alone() {
    let mut seen = Seen { bundle: bundle(&[("web", spec("a:1"))]), services: vec![], networks: vec![] };
    let foreign = Service::new("shop-web", spec("theirs"));
    seen.services.push(Arc::new(foreign));
    let plan = plan(&seen, NOW);
    assert!(!plan.changes.iter().any(|change| !matches!(change, Change::CreateNetwork { .. })));
    let ready = plan.status.conditions.get("Ready").unwrap();
    assert!(ready.message.contains("service shop-web exists already"), "{}", ready.message);
}
