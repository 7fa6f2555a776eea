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
    column("VIP", "/spec/networks/0/vip"),
    wide_column("VIP6", "/spec/networks/0/vip6"),
    wide_column("MODE", "/spec/mode")
)]
#[serde(rename_all = "camelCase", default)]
pub struct EndpointsSpec {
    /// Name of the Service, which is also the name of this object.
    pub service: String,
    /// How the name resolves: one virtual address, or the addresses of all backends. As in the Service.
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
    /// The virtual address of IPv6, beside `vip`; absent where the network has none.
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
    /// Name of the Task; one backend a task.
    pub task: String,
    /// Name of the Node that the task runs on.
    pub node: String,
    /// Whether new connections go to it. False: known by name only, such as while it leaves.
    pub ready: bool,
    /// One address for each network that the task is attached to.
    pub addresses: Vec<TaskAddress>,
}

/// An address of a task in one network.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TaskAddress {
    /// Name of the Network object.
    pub network: String,
    /// Address of the task there, given by its node.
    pub address: IpAddr,
}
