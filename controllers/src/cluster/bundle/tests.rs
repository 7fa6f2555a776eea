//! Scenes of deploying, changing by hand, and deploying again.

use std::sync::Arc;

use reconciler::api::OwnerReference;
use reconciler::{Resource, Timestamp, Uid};
use schemas::kinds::bundle::{Bundle, BundleSpec, ServiceFragment};
use schemas::kinds::labels::{BUNDLE, LAST_APPLIED};
use schemas::kinds::network::{Network, NetworkSpec};
use schemas::kinds::revision::{Revision, RevisionContent, RevisionSpec, RevisionStatus, RevisionUse};
use schemas::kinds::service::{EnvVar, NetworkAttachment, PublishedPort, Service, ServiceSpec, ServiceStatus};

use schemas::kinds::template::{Mount, MountType};

use super::plan::{Change, Seen, plan};

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

fn before_any(bundle: Arc<Bundle>) -> Seen {
    Seen { bundle, services: vec![], networks: vec![], revisions: vec![], history: Default::default() }
}

fn owner() -> Vec<OwnerReference> {
    vec![OwnerReference { kind: "Bundle".into(), name: "shop".into(), uid: Uid::new("u-shop"), ..Default::default() }]
}

/// Carries a plan out, with every service up at once.
fn settle(seen: &mut Seen) -> Vec<String> {
    plan(seen, NOW).changes.into_iter().map(|change| carry_out(seen, change)).collect()
}

fn carry_out(seen: &mut Seen, change: Change) -> String {
    match change {
        Change::CreateNetwork { name, spec, applied } => {
            let told = format!("network {name}");
            let mut network = Network::new(name, spec);
            network.metadata.owner_references = owner();
            network.metadata.annotations.insert(LAST_APPLIED.into(), applied);
            seen.networks.push(Arc::new(network));
            told
        }
        Change::UpdateNetwork { live, spec, applied } => {
            let mut network = (*live).clone();
            network.spec = spec;
            network.metadata.annotations.insert(LAST_APPLIED.into(), applied);
            seen.networks.retain(|other| other.metadata.name != live.metadata.name);
            seen.networks.push(Arc::new(network));
            format!("update network {}", live.metadata.name)
        }
        Change::CreateService { name, spec, applied } => {
            let told = format!("service {name}");
            let mut service = Service::new(name, spec);
            service.metadata.owner_references = owner();
            put(seen, service, applied);
            told
        }
        Change::UpdateService { live, spec, applied } => {
            let mut service = (*live).clone();
            service.spec = spec;
            put(seen, service, applied);
            format!("update {}", live.metadata.name)
        }
        Change::RemoveService { live } => {
            seen.services.retain(|other| other.metadata.name != live.metadata.name);
            format!("remove {}", live.metadata.name)
        }
        Change::RemoveNetwork { live } => {
            seen.networks.retain(|other| other.metadata.name != live.metadata.name);
            format!("remove network {}", live.metadata.name)
        }
    }
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
    let mut seen = before_any(bundle(services));
    settle(&mut seen);
    assert_eq!(settle(&mut seen), Vec::<String>::new(), "the same file twice changes nothing");
    seen
}

#[test]
fn an_application_becomes_networks_and_services_with_the_names_that_people_expect() {
    let mut seen = before_any(bundle(&[("Web_1", spec("a:1"))]));
    assert_eq!(settle(&mut seen), ["network shop-back-tier", "service shop-web-1"]);
    let attachment = &seen.services[0].spec.template.networks[0];
    assert_eq!(
        (attachment.name.as_str(), &attachment.aliases[..]),
        ("shop-back-tier", &["web_1".to_owned(), "web-1".to_owned(), "shop_web_1".to_owned()][..])
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
    assert_eq!(overrides(&seen), ["web replicas"]);
    assert_eq!(settle(&mut seen), ["update shop-web"]);
    assert_eq!(
        (seen.services[0].spec.replicas, seen.services[0].spec.template.container.image.as_str()),
        (Some(6), "a:2")
    );
}

fn overrides(seen: &Seen) -> Vec<String> {
    plan(seen, NOW).status.overrides.iter().map(|over| format!("{} {}", over.object, over.path)).collect()
}

fn variable(name: &str, value: &str) -> EnvVar {
    EnvVar { name: name.into(), value: Some(value.into()) }
}

fn by_hand(seen: &mut Seen, change: impl FnOnce(&mut ServiceSpec)) {
    let mut service = (*seen.services[0]).clone();
    change(&mut service.spec);
    seen.services[0] = Arc::new(service);
}

#[test]
fn variables_set_by_hand_stay_beside_those_that_the_file_changes() {
    let with = |value: &str| {
        let mut spec = spec("a:1");
        spec.template.container.env = vec![variable("MODE", value), variable("OLD", "1")];
        spec
    };
    let mut seen = deployed(&[("web", with("x"))]);
    by_hand(&mut seen, |spec| spec.template.container.env.push(variable("DEBUG", "1")));
    let mut file = with("y");
    file.template.container.env.pop();
    seen.bundle = bundle(&[("web", file)]);
    assert_eq!(overrides(&seen), ["web template.container.env[DEBUG]"]);
    assert_eq!(settle(&mut seen), ["update shop-web"]);
    assert_eq!(seen.services[0].spec.template.container.env, [variable("MODE", "y"), variable("DEBUG", "1")]);
    assert_eq!(settle(&mut seen), Vec::<String>::new());
}

#[test]
fn reset_gives_the_file_its_word_back_where_it_is_said() {
    let mut seen = deployed(&[("web", spec("a:1"))]);
    by_hand(&mut seen, |spec| {
        spec.replicas = Some(6);
        spec.template.container.user = Some("1000".into());
    });
    let mut reset = (*seen.bundle).clone();
    reset.spec.reset = vec!["web.replicas".into(), "webx".into()];
    seen.bundle = Arc::new(reset);
    assert_eq!(overrides(&seen), ["web template.container.user"]);
    assert_eq!(settle(&mut seen), ["update shop-web"]);
    assert_eq!(seen.services[0].spec.replicas, None);
}

#[test]
fn a_port_that_was_given_by_hand_goes_where_the_file_wants_it() {
    let port = |target: u16| PublishedPort { target, published: Some(8080), ..PublishedPort::default() };
    let mut seen = deployed(&[("web", spec("a:1"))]);
    by_hand(&mut seen, |spec| spec.endpoint.ports.push(port(81)));
    let mut file = spec("a:1");
    file.endpoint.ports.push(port(80));
    seen.bundle = bundle(&[("web", file)]);
    assert_eq!(settle(&mut seen), ["update shop-web"]);
    assert_eq!(seen.services[0].spec.endpoint.ports, [port(80)]);
}

#[test]
fn a_network_takes_what_may_change_and_says_what_may_not() {
    let mut seen = deployed(&[("web", spec("a:1"))]);
    let with = |network: NetworkSpec| {
        let mut bundle = (*bundle(&[("web", spec("a:1"))])).clone();
        bundle.spec.networks.insert("back-tier".into(), network);
        Arc::new(bundle)
    };
    seen.bundle = with(NetworkSpec { internal: true, ..NetworkSpec::default() });
    assert_eq!(settle(&mut seen), ["update network shop-back-tier"]);
    assert!(seen.networks[0].spec.internal);
    seen.bundle = with(NetworkSpec { ipv6: true, ..NetworkSpec::default() });
    assert_eq!(settle(&mut seen), Vec::<String>::new());
    let status = plan(&seen, NOW).status;
    assert_eq!(
        status.conditions.get("Ready").unwrap().message,
        "network shop-back-tier: spec.ipv6: never changes; make another network instead"
    );
}

#[test]
fn an_application_gets_none_of_the_data_of_another() {
    let with_data = || {
        let mut spec = spec("db:1");
        spec.template.container.mounts = vec![Mount {
            kind: MountType::Volume,
            source: Some("votes".into()),
            target: "/data".into(),
            ..Mount::default()
        }];
        spec
    };
    let mut others = Service::new("other-db", with_data());
    others.metadata.labels.insert(BUNDLE.into(), "other".into());
    let mut seen = before_any(bundle(&[("db", with_data()), ("web", spec("a:1"))]));
    seen.services.push(Arc::new(others));
    let planned = plan(&seen, NOW);
    let told =
        "services.db: volume votes is the data of bundle other (service other-db); name another one in its mounts";
    assert_eq!(planned.problems, [told]);
    assert_eq!(settle(&mut seen), ["network shop-back-tier", "service shop-web"]);
    // Nor does one that ran without it come to it.
    seen.bundle = bundle(&[("web", with_data())]);
    assert_eq!(settle(&mut seen), Vec::<String>::new());
    // It may have what nobody has, and what nobody's application has.
    seen.services.retain(|service| service.name() != "other-db");
    let mut by_hand = Service::new("by-hand", with_data());
    by_hand.metadata.namespace = String::new();
    seen.services.push(Arc::new(by_hand));
    assert_eq!(settle(&mut seen), ["update shop-web"]);
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
    let mut seen = before_any(bundle(&[("web", spec("a:1"))]));
    let foreign = Service::new("shop-web", spec("theirs"));
    seen.services.push(Arc::new(foreign));
    let plan = plan(&seen, NOW);
    assert!(!plan.changes.iter().any(|change| !matches!(change, Change::CreateNetwork { .. })));
    let ready = plan.status.conditions.get("Ready").unwrap();
    assert!(ready.message.contains("service shop-web exists already"), "{}", ready.message);
}

#[test]
fn what_it_is_now_has_a_number_and_keeps_it_while_nothing_changes() {
    let mut seen = deployed(&[("web", spec("a:1"))]);
    let first = plan(&seen, NOW);
    assert_eq!(told(&first.revisions), "create revision; use revision as 1");
    assert_eq!(first.status.number, 1);
    let name = first.status.revision.unwrap();
    let content = RevisionContent::Bundle(Box::new(seen.bundle.spec.clone()));
    let mut revision = Revision::new(name.clone(), RevisionSpec::new("shop", content));
    revision.status = Some(RevisionStatus { uses: vec![RevisionUse { number: 1, ..RevisionUse::default() }] });
    seen.revisions = vec![Arc::new(revision)];
    let same = plan(&seen, NOW);
    assert_eq!((told(&same.revisions).as_str(), same.status.number), ("", 1));
    seen.bundle = bundle(&[("web", spec("a:2"))]);
    let next = plan(&seen, NOW);
    assert_eq!(told(&next.revisions), "create revision; use revision as 2");
    assert_ne!(next.status.revision, Some(name));
}

fn told(changes: &[crate::cluster::revisions::Change]) -> String {
    changes.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

mod properties {
    use proptest::prelude::*;

    use super::*;

    fn word() -> impl Strategy<Value = String> {
        prop::sample::select(vec!["a", "b", "c"]).prop_map(str::to_owned)
    }

    fn any_spec() -> impl Strategy<Value = ServiceSpec> {
        let variables = prop::collection::btree_map(word(), word(), 0..3);
        let ports = prop::collection::btree_set((80..82u16, prop::option::of(8080..8082u16)), 0..2);
        let networks = prop::collection::btree_set(word(), 0..3);
        (word(), prop::option::of(1..3u32), variables, ports, networks).prop_map(
            |(image, replicas, variables, ports, networks)| {
                let mut spec = ServiceSpec { replicas, ..ServiceSpec::default() };
                spec.template.container.image = image;
                spec.template.container.env = variables.iter().map(|(name, value)| variable(name, value)).collect();
                spec.endpoint.ports = ports
                    .into_iter()
                    .map(|(target, published)| PublishedPort { target, published, ..PublishedPort::default() })
                    .collect();
                spec.template.networks =
                    networks.into_iter().map(|name| NetworkAttachment { name, aliases: vec![] }).collect();
                spec
            },
        )
    }

    fn any_file() -> impl Strategy<Value = Vec<(String, ServiceSpec)>> {
        prop::collection::btree_map(word(), any_spec(), 0..3).prop_map(|services| services.into_iter().collect())
    }

    fn bundle_of(file: &[(String, ServiceSpec)]) -> Arc<Bundle> {
        bundle(&file.iter().map(|(name, spec)| (name.as_str(), spec.clone())).collect::<Vec<_>>())
    }

    /// Rounds until nothing is left to do.
    fn rest(seen: &mut Seen) -> usize {
        (0..10).find(|_| settle(seen).is_empty()).expect("ten rounds are more than it takes")
    }

    /// What there is, whatever its order.
    fn world(seen: &Seen) -> (Vec<String>, Vec<String>) {
        let mut services: Vec<String> =
            seen.services.iter().map(|it| format!("{} {:?}", it.metadata.name, it.spec)).collect();
        let mut networks: Vec<String> =
            seen.networks.iter().map(|it| format!("{} {:?}", it.metadata.name, it.spec)).collect();
        services.sort();
        networks.sort();
        (services, networks)
    }

    /// A bundle that was deployed, whose services were then changed by hand, and that is about to get another file.
    fn any_world() -> impl Strategy<Value = Seen> {
        (any_file(), prop::collection::vec(prop::option::of(any_spec()), 3), any_file()).prop_map(
            |(before, hands, after)| {
                let mut seen = before_any(bundle_of(&before));
                rest(&mut seen);
                for (service, hand) in seen.services.iter_mut().zip(hands) {
                    if let Some(mut hand) = hand {
                        // Networks of a service are names of objects by now.
                        hand.template.networks.clone_from(&service.spec.template.networks);
                        let mut changed = (**service).clone();
                        changed.spec = hand;
                        *service = Arc::new(changed);
                    }
                }
                let mut foreign = Service::new("shop-c", ServiceSpec::default());
                foreign.metadata.uid = Uid::new("theirs");
                if !seen.services.iter().any(|service| service.metadata.name == "shop-c") {
                    seen.services.push(Arc::new(foreign));
                }
                seen.bundle = bundle_of(&after);
                seen
            },
        )
    }

    proptest! {
        #[test]
        fn it_comes_to_rest(mut seen in any_world()) {
            prop_assert!(rest(&mut seen) <= 3);
            prop_assert_eq!(plan(&seen, NOW).changes, vec![]);
        }

        #[test]
        fn every_prefix_is_a_safe_place_to_die(seen in any_world(), died_after in 0..8usize) {
            let (mut whole, mut broken) = (seen.clone(), seen);
            rest(&mut whole);
            for change in plan(&broken, NOW).changes.into_iter().take(died_after) {
                carry_out(&mut broken, change);
            }
            rest(&mut broken);
            prop_assert_eq!(world(&whole), world(&broken));
        }

        #[test]
        fn the_order_of_what_is_seen_does_not_matter(mut seen in any_world()) {
            let before = plan(&seen, NOW);
            seen.services.reverse();
            seen.networks.reverse();
            let mut after = plan(&seen, NOW);
            let by_text = |change: &Change| format!("{change:?}");
            let mut changes = before.changes;
            changes.sort_by_key(by_text);
            after.changes.sort_by_key(by_text);
            prop_assert_eq!(changes, after.changes);
            prop_assert_eq!(before.status, after.status);
        }

        #[test]
        fn what_belongs_to_others_is_never_touched(mut seen in any_world()) {
            let theirs = |seen: &Seen| {
                let others = |service: &&Arc<Service>| !service.metadata.is_owned_by(&Uid::new("u-shop"));
                seen.services.iter().filter(others).cloned().collect::<Vec<_>>()
            };
            let before = theirs(&seen);
            rest(&mut seen);
            prop_assert_eq!(before, theirs(&seen));
        }
    }
}
