//! `network probe`: which machines reach a service, hop by hop, and which hop fails.

use std::collections::BTreeSet;

use bytes::Bytes;
use futures::future::join_all;
use hyper::Method;
use reconciler::Resource;
use reconciler::objects::Remote;
use schemas::kinds::endpoints::Endpoints;
use schemas::kinds::node::Node;
use serde_json::json;

use super::args::NetworkProbe;
use super::failure::{Exit, Failure};
use super::find;
use super::screen::Tone;
use super::session::Session;
use super::table::{Cell, Table};
use crate::daemon::probe::{Hop, Probed, What, path};

/// What was found from one machine, or why it was not asked.
type Found = (String, Result<Vec<Hop>, String>);

pub async fn run(session: &mut Session, probe: &NetworkProbe) -> Result<(), Failure> {
    let kind = find::kind("service")?;
    let service = find::object(session, &kind, &probe.service).await?.reference;
    let nodes = session.client.list::<Node>(None).await?;
    let (remote, found) = (session.remote()?, session.client.find::<Endpoints>(&service).await?);
    let asked = nodes.iter().map(|node| ask(&remote, &service.namespace, &service.name, node.name()));
    let found_by: Vec<Found> = join_all(asked).await;
    let serves = found.is_some_and(|endpoints| endpoints.spec.backends.iter().any(|backend| backend.ready));
    let verdict = verdict(&service.name, serves, &found_by);
    let value = json!({
        "service": service.name,
        "machines": found_by.iter().map(|(node, hops)| match hops {
            Ok(hops) => json!({"node": node, "hops": hops}),
            Err(why) => json!({"node": node, "why": why}),
        }).collect::<Vec<_>>(),
        "faults": verdict,
    });
    if !session.print_value(&value)? {
        let text = table(&found_by).print(session.screen.look());
        session.screen.data(&text)?;
    }
    match verdict.is_empty() {
        true => Ok(session.screen.say(&format!("{} is reached from every machine", service.name))?),
        false => Err(Failure::new(Exit::Failed, verdict.join("\n"))),
    }
}

async fn ask(remote: &Remote, namespace: &str, service: &str, node: &str) -> Found {
    let asked = async {
        let answer = remote.call(Method::GET, &path(namespace, service, node), Bytes::new()).await?.bytes().await?;
        let probed: Result<Probed, _> = serde_json::from_slice(&answer);
        Ok::<_, reconciler::objects::Error>(probed.map(|probed| probed.hops).map_err(|error| error.to_string()))
    };
    let found = match asked.await {
        Ok(found) => found,
        Err(error) => Err(Failure::beside_objects(error).message),
    };
    (node.to_owned(), found)
}

fn table(found: &[Found]) -> Table {
    let mut table = Table::new(["FROM", "TO", "ADDRESS", "ANSWERS"]);
    for (node, hops) in found {
        let hops = match hops {
            Ok(hops) => hops,
            Err(why) => {
                table.row(vec![node.clone().into(), "–".into(), "–".into(), Cell::toned(why.clone(), Tone::Bad)]);
                continue;
            }
        };
        for hop in hops {
            let answer = match (&hop.why, hop.micros) {
                (Some(why), _) => Cell::toned(why.clone(), Tone::Bad),
                (None, Some(micros)) => {
                    Cell::toned(format!("{}.{} ms", micros / 1000, micros % 1000 / 100), Tone::Good)
                }
                (None, None) => "yes".into(),
            };
            table.row(vec![node.clone().into(), named(&hop.what).into(), hop.target.to_string().into(), answer]);
        }
    }
    table
}

fn named(what: &What) -> String {
    match what {
        What::Task { task, node, .. } => format!("{task} on {node}"),
        What::VirtualAddress { network } => format!("virtual address in {network}"),
        What::PublishedPort => "published port".to_owned(),
    }
}

/// Which hop fails, a line each; none: all is well.
fn verdict(service: &str, serves: bool, found: &[Found]) -> Vec<String> {
    let mut faults = Vec::new();
    if !serves {
        faults.push(format!("no task of {service} serves: applyctl ps {service} says why"));
    }
    let silent: Vec<&str> = found.iter().filter(|(_, hops)| hops.is_err()).map(|(node, _)| node.as_str()).collect();
    if !silent.is_empty() {
        faults.push(format!("{} did not say what it reaches", silent.join(", ")));
    }
    let asked: Vec<(&str, &[Hop])> =
        found.iter().filter_map(|(node, hops)| Some((node.as_str(), hops.as_deref().ok()?))).collect();
    let tasks: BTreeSet<&What> = asked
        .iter()
        .flat_map(|(_, hops)| hops.iter().map(|hop| &hop.what))
        .filter(|what| matches!(what, What::Task { .. }))
        .collect();
    let fails = |hops: &[Hop], what: &What| hops.iter().any(|hop| hop.what == *what && hop.why.is_some());
    // A task that nobody reaches is at fault itself; one that some do not reach is behind a way that fails.
    let (mut own, mut ways): (BTreeSet<&What>, BTreeSet<(&str, &str)>) = (BTreeSet::new(), BTreeSet::new());
    for what in tasks {
        let without: Vec<&str> = asked.iter().filter(|(_, hops)| fails(hops, what)).map(|(node, _)| *node).collect();
        let What::Task { task, node, .. } = what else { continue };
        if !without.is_empty() && without.len() == asked.len() {
            own.insert(what);
            faults.push(format!("{task} on {node} is reached from nowhere: does it listen? applyctl logs {task}"));
        } else {
            ways.extend(without.into_iter().map(|from| (from, node.as_str())));
        }
    }
    faults.extend(ways.iter().map(|(from, to)| match from == to {
        true => format!("{from} does not reach its own task: what is in the way there? applyctl describe node {from}"),
        false => format!(
            "{from} does not reach tasks on {to}: the way between these two machines (UDP of applyd's port; applyctl describe node {to})"
        ),
    }));
    for (node, hops) in asked {
        let has_way = !ways.iter().any(|(from, _)| *from == node) && own.is_empty();
        for hop in hops.iter().filter(|hop| has_way && hop.why.is_some()) {
            faults.push(format!(
                "{node} reaches the tasks, and not by the {} ({}): its mesh is behind or something is in its way; applyctl describe node {node}",
                named(&hop.what),
                hop.target
            ));
        }
    }
    faults
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hop(what: What, why: Option<&str>) -> Hop {
        Hop { what, target: "10.0.0.1:80".parse().unwrap(), micros: None, why: why.map(str::to_owned) }
    }

    fn task(node: &str, why: Option<&str>) -> Hop {
        hop(What::Task { task: format!("web-{node}"), node: node.into(), anything: false }, why)
    }

    #[track_caller]
    fn check(found: &[(&str, Vec<Hop>)], expected: &[&str]) {
        let found: Vec<Found> = found.iter().map(|(node, hops)| ((*node).to_owned(), Ok(hops.clone()))).collect();
        let faults = verdict("web", true, &found);
        assert_eq!(faults.len(), expected.len(), "{faults:?}");
        for (fault, expected) in faults.iter().zip(expected) {
            assert!(fault.contains(expected), "{fault}");
        }
    }

    #[test]
    fn the_hop_that_fails_is_named_and_no_other() {
        let (silent, vip) = (Some("no answer"), What::VirtualAddress { network: "net".into() });
        check(&[("n1", vec![task("n1", None), hop(vip.clone(), None)])], &[]);
        let deaf = vec![task("n1", None), task("n2", Some("nothing listens there")), hop(vip.clone(), silent)];
        check(&[("n1", deaf.clone()), ("n2", deaf)], &["web-n2 on n2 is reached from nowhere"]);
        let cut = [
            ("n1", vec![task("n1", None), task("n2", silent), hop(vip.clone(), silent)]),
            ("n2", vec![task("n1", silent), task("n2", None)]),
        ];
        check(&cut, &["n1 does not reach tasks on n2", "n2 does not reach tasks on n1"]);
        let behind = [("n1", vec![task("n1", None), hop(vip, silent)]), ("n2", vec![task("n1", None)])];
        check(&behind, &["n1 reaches the tasks, and not by the virtual address in net"]);
        assert!(verdict("web", false, &[])[0].contains("applyctl ps web"));
        let lost: Found = ("n3".into(), Err("n3 does not answer".into()));
        assert_eq!(verdict("web", true, &[lost]), ["n3 did not say what it reaches"]);
    }
}
