//! Endpoints: where the tasks of a service are reached. One object a service, of the same name.

use std::net::IpAddr;

use reconciler_api::Resource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::is_default;
use super::service::{EndpointMode, PublishedPort};

/// Where the tasks of a service are reached. Named as the service; written by the endpoints controller.
#[derive(Resource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[resource(
    group = "apply",
    version = "v1",
    kind = "Endpoints",
    plural = "endpoints",
    short("ep"),
    unmanaged,
    column("SERVICE", "/spec/service"),
    column("MODE", "/spec/mode")
)]
#[serde(rename_all = "camelCase", default)]
pub struct EndpointsSpec {
    pub service: String,
    #[serde(skip_serializing_if = "is_default")]
    pub mode: EndpointMode,
    /// The service in each of its networks.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["network"]))]
    pub networks: Vec<EndpointNetwork>,
    /// Ports open to the outside; `published` is always given here.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<PublishedPort>,
    /// Tasks that connections may go to, and those that are leaving.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["task"]))]
    pub backends: Vec<Backend>,
}

/// A service in one network.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct EndpointNetwork {
    /// Name of the Network object.
    pub network: String,
    /// The virtual address; absent in mode `dnsrr`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vip: Option<IpAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vip6: Option<IpAddr>,
    /// Every name under which the service is found here, its own first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub names: Vec<String>,
}

/// One task behind a service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Backend {
    pub task: String,
    pub node: String,
    /// Whether new connections go to it. False: known by name only, such as while it leaves.
    pub ready: bool,
    pub addresses: Vec<TaskAddress>,
}

/// An address of a task in one network.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TaskAddress {
    /// Name of the Network object.
    pub network: String,
    pub address: IpAddr,
}
