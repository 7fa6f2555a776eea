//! Whether a service is reached from a machine, hop by hop: each of its tasks, its virtual addresses, its published ports.
//!
//! | call | answer |
//! | --- | --- |
//! | `GET /apis/apply/v1/namespaces/NS/services/NAME/probe?node=NODE` | `{node, hops}`, as that machine sees it |

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use axum::extract::{Path, Query, Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use futures::future::join_all;
use reconciler::ObjectRef;
use schemas::kinds::endpoints::{Endpoints, EndpointsSpec};
use schemas::kinds::service::Protocol;
use serde::{Deserialize, Serialize};
use tokio::net::TcpStream;

use super::answer::Refusal;
use super::routes::Parts;

/// A connection within one site takes a few milliseconds.
const PATIENCE: Duration = Duration::from_secs(1);
/// Where nothing is said to listen: whoever answers that nothing does is reached.
const DISCARD: u16 = 9;
/// So many tasks are tried; a machine is not to be kept busy by a question.
pub const TASKS_MAX: usize = 100;

/// Where a service is asked about.
pub fn path(namespace: &str, service: &str, node: &str) -> String {
    format!("/apis/apply/v1/namespaces/{namespace}/services/{service}/probe?node={node}")
}

/// What one machine has found.
#[derive(Debug, Serialize, Deserialize)]
pub struct Probed {
    pub node: String,
    pub hops: Vec<Hop>,
}

/// One address that was tried.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Hop {
    pub what: What,
    pub target: SocketAddr,
    /// How long it took to connect.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub micros: Option<u64>,
    /// Why it is not reached; absent: it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

/// What is at an address.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum What {
    Task {
        task: String,
        node: String,
        /// Nothing is said to listen there: it is enough that somebody answers.
        anything: bool,
    },
    VirtualAddress {
        network: String,
    },
    PublishedPort,
}

#[derive(Deserialize)]
struct On {
    node: String,
}

pub fn routes(parts: Parts) -> Router {
    Router::new().route("/apis/apply/v1/namespaces/{namespace}/services/{name}/probe", get(probe)).with_state(parts)
}

async fn probe(
    State(parts): State<Parts>,
    Path((namespace, name)): Path<(String, String)>,
    Query(on): Query<On>,
    request: Request,
) -> Result<Response, Refusal> {
    if on.node != parts.node {
        let Some(others) = &parts.others else {
            return Err(Refusal(StatusCode::NOT_IMPLEMENTED, format!("this is {}: ask a manager", parts.node)));
        };
        return others.forward(&on.node, request, &parts.seams).await;
    }
    let endpoints = parts.client.get::<Endpoints>(&ObjectRef::new(namespace, name)).await?;
    let tried = join_all(targets(&endpoints.spec).into_iter().map(|(what, target)| connect(what, target, &parts)));
    Ok(Json(Probed { node: parts.node.clone(), hops: tried.await }).into_response())
}

/// What can be tried: TCP only, as nobody knows what would answer a datagram.
fn targets(spec: &EndpointsSpec) -> Vec<(What, SocketAddr)> {
    let ports = || spec.ports.iter().filter(|port| port.protocol == Protocol::Tcp);
    let inside: Vec<u16> = ports().map(|port| port.target).collect();
    let mut targets = Vec::new();
    for backend in spec.backends.iter().filter(|backend| backend.ready).take(TASKS_MAX) {
        let anything = inside.is_empty();
        let what = || What::Task { task: backend.task.clone(), node: backend.node.clone(), anything };
        for address in &backend.addresses {
            let at = if anything { &[DISCARD][..] } else { &inside };
            targets.extend(at.iter().map(|port| (what(), SocketAddr::new(address.address, *port))));
        }
    }
    for network in &spec.networks {
        let what = || What::VirtualAddress { network: network.network.clone() };
        let addresses = network.vip.into_iter().chain(network.vip6);
        targets.extend(
            addresses
                .flat_map(|at| inside.iter().map(move |port| (at, *port)))
                .map(|(at, port)| (what(), SocketAddr::new(at, port))),
        );
    }
    let published = ports().filter_map(|port| port.published);
    targets.extend(published.map(|port| (What::PublishedPort, SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port))));
    targets
}

async fn connect(what: What, target: SocketAddr, parts: &Parts) -> Hop {
    let begun = parts.seams.monotonic();
    let connected = tokio::select! {
        connected = TcpStream::connect(target) => connected.map(drop),
        () = parts.seams.sleep(PATIENCE) => Err(io::ErrorKind::TimedOut.into()),
    };
    let micros = u64::try_from(parts.seams.monotonic().since(begun).as_micros()).ok();
    let is_there = matches!(what, What::Task { anything: true, .. });
    match connected {
        Ok(()) => Hop { what, target, micros, why: None },
        Err(error) if is_there && error.kind() == io::ErrorKind::ConnectionRefused => {
            Hop { what, target, micros, why: None }
        }
        Err(error) => Hop { what, target, micros: None, why: Some(words(&error)) },
    }
}

fn words(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::TimedOut => format!("no answer within {} s", PATIENCE.as_secs()),
        io::ErrorKind::ConnectionRefused => "nothing listens there".to_owned(),
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use schemas::kinds::endpoints::{Backend, EndpointNetwork, TaskAddress};
    use schemas::kinds::service::PublishedPort;

    use super::*;

    #[test]
    fn each_task_that_serves_each_virtual_address_and_each_published_port_is_tried() {
        let backend = |task: &str, ready, last| Backend {
            task: task.into(),
            node: "n1".into(),
            ready,
            addresses: vec![TaskAddress { network: "net".into(), address: [10, 0, 0, last].into() }],
        };
        let mut spec = EndpointsSpec {
            service: "web".into(),
            networks: vec![EndpointNetwork {
                network: "net".into(),
                vip: Some([10, 1, 0, 1].into()),
                ..EndpointNetwork::default()
            }],
            ports: vec![PublishedPort { target: 80, published: Some(8080), ..PublishedPort::default() }],
            backends: vec![backend("web-1", true, 1), backend("web-2", false, 2)],
            ..EndpointsSpec::default()
        };
        let at = |spec: &EndpointsSpec| targets(spec).into_iter().map(|(_, at)| at.to_string()).collect::<Vec<_>>();
        assert_eq!(at(&spec), ["10.0.0.1:80", "10.1.0.1:80", "127.0.0.1:8080"]);
        spec.ports.clear();
        assert_eq!(at(&spec), ["10.0.0.1:9"], "it is enough that somebody answers");
    }
}
