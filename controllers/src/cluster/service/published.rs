//! Whether clients reach what the service publishes: the condition `Published`. Pure.

use std::collections::BTreeSet;

use reconciler::Timestamp;
use schemas::kinds::node::ObstacleKind;
use schemas::kinds::service::reasons::{FIREWALL, OPEN, PORT_OF_ANOTHER_SERVICE, PORT_TAKEN};
use schemas::kinds::service::{PUBLISHED, ServiceStatus};

use super::observe::{Seen, numbers};

pub(super) fn condition(seen: &Seen, status: &mut ServiceStatus, now: Timestamp) {
    let asked = &seen.service.spec.endpoint.ports;
    if asked.is_empty() {
        status.conditions.remove(PUBLISHED);
        return;
    }
    let generation = seen.service.metadata.generation;
    let faults = faults(seen);
    if let Some((reason, _)) = faults.first() {
        let message = faults.iter().map(|(_, message)| message.as_str()).collect::<Vec<_>>().join("; ");
        status.conditions.set(PUBLISHED, false, *reason, message, generation, now);
    } else if seen.ports.len() >= asked.len() {
        status.conditions.set(PUBLISHED, true, OPEN, "", generation, now);
    }
    // Else its ports were not given out yet: what was said before stays.
}

fn faults(seen: &Seen) -> Vec<(&'static str, String)> {
    let mut faults = Vec::new();
    for ((protocol, number), service) in &seen.rivals {
        faults.push((PORT_OF_ANOTHER_SERVICE, format!("port {number}/{protocol} is published by service {service}")));
    }
    let given: BTreeSet<_> = numbers(&seen.ports).map(|(port, _)| port).collect();
    let mut told = BTreeSet::new();
    for (node, obstacle) in seen.obstacles.iter().filter(|(_, it)| it.kind == ObstacleKind::PortTaken) {
        let Some(number) = obstacle.port else { continue };
        let protocol = obstacle.protocol;
        // Of a program that listens at several addresses the first is enough.
        if given.contains(&(protocol, number)) && told.insert((node, protocol, number)) {
            let message = format!("port {number}/{protocol} is taken on {node}: {}", obstacle.message);
            faults.push((PORT_TAKEN, message));
        }
    }
    for (node, obstacle) in seen.obstacles.iter().filter(|(_, it)| it.kind == ObstacleKind::Firewall) {
        faults.push((FIREWALL, format!("a firewall is in the way on {node}: {}", obstacle.message)));
    }
    faults
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use reconciler::{Resource, Truth};
    use schemas::kinds::node::Obstacle;
    use schemas::kinds::service::{Protocol, PublishedPort, Service, ServiceSpec};

    use super::*;

    fn seen(asked: &[Option<u16>], given: &[u16]) -> Seen {
        let port = |published: Option<u16>| PublishedPort { target: 80, published, ..PublishedPort::default() };
        let mut spec = ServiceSpec::default();
        spec.endpoint.ports = asked.iter().copied().map(port).collect();
        Seen {
            service: Arc::new(Service::new("web", spec)),
            ports: given.iter().copied().map(Some).map(port).collect(),
            revisions: vec![],
            files: Some(vec![]),
            missing: vec![],
            tasks: vec![],
            nodes: vec![],
            lost: Default::default(),
            away: Default::default(),
            evening: None,
            drained: Default::default(),
            backends: Default::default(),
            lagging: vec![],
            waited: Default::default(),
            rivals: Default::default(),
            obstacles: vec![],
            history: Default::default(),
            wants_default_network: false,
        }
    }

    fn told(seen: &Seen, before: &ServiceStatus) -> (ServiceStatus, String) {
        let mut status = before.clone();
        condition(seen, &mut status, Timestamp::from_seconds(1));
        let words = match status.conditions.get(PUBLISHED) {
            None => "nothing".to_owned(),
            Some(it) if it.status == Truth::True => it.reason.clone(),
            Some(it) => format!("not {}: {}", it.reason, it.message),
        };
        (status, words)
    }

    #[test]
    fn what_is_in_the_way_is_named_and_forgotten_when_it_is_gone() {
        let nothing = ServiceStatus::default();
        assert_eq!(told(&seen(&[], &[]), &nothing).1, "nothing");
        assert_eq!(told(&seen(&[Some(8080)], &[]), &nothing).1, "nothing", "nobody has looked yet");
        let fine = seen(&[Some(8080), None], &[8080, 30000]);
        assert_eq!(told(&fine, &nothing).1, "Open");

        let taken = |number, address: &str| Obstacle {
            kind: ObstacleKind::PortTaken,
            port: Some(number),
            protocol: Protocol::Tcp,
            message: format!("nginx (pid 7) listens at {address}"),
        };
        let mut crowded = fine.clone();
        crowded.obstacles = [taken(8080, "0.0.0.0"), taken(8080, "::"), taken(9, "0.0.0.0")]
            .map(|obstacle| ("n1".to_owned(), obstacle))
            .into();
        let (status, words) = told(&crowded, &nothing);
        assert_eq!(words, "not PortTaken: port 8080/tcp is taken on n1: nginx (pid 7) listens at 0.0.0.0");
        assert_eq!(told(&fine, &status).1, "Open");
        assert_eq!(told(&seen(&[], &[]), &status).1, "nothing");

        let mut second = seen(&[Some(8080)], &[]);
        second.rivals = [((Protocol::Tcp, 8080), "api".to_owned())].into();
        assert_eq!(told(&second, &nothing).1, "not PortOfAnotherService: port 8080/tcp is published by service api");

        let mut walled = fine;
        let message = "chain FORWARD of ip filter drops what is forwarded".to_owned();
        walled.obstacles =
            vec![("n1".to_owned(), Obstacle { kind: ObstacleKind::Firewall, message, ..Obstacle::default() })];
        assert!(told(&walled, &nothing).1.starts_with("not FirewallInTheWay: a firewall is in the way on n1: chain"));
    }
}
