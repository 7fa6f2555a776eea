//! What the name server answers from: plain data, written by applyd, a part of the companion's table.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use schemars::JsonSchema;
use schemas::kinds::network::Cidr;
use serde::{Deserialize, Serialize};

/// Everything the name server knows. Keys that are names are in lower case, without a dot at the end.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Table {
    /// Addresses to answer at, each by UDP and TCP. They need not exist on the machine yet.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub listen: Vec<SocketAddr>,
    /// By source address, who may ask, and what is seen from there. Others are refused.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub clients: BTreeMap<IpAddr, Client>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub scopes: BTreeMap<String, Scope>,
    /// Subnets whose addresses have no names but those here: reverse look-ups in them never leave the machine.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub pools: Vec<Cidr>,
}

/// One who may ask.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Client {
    /// Keys of `scopes`; the first that has the name answers.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub scopes: Vec<String>,
    /// Asked for other names instead of the host's resolvers; empty: the host's.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub resolvers: Vec<IpAddr>,
}

/// The names that belong together, such as those of one network.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Scope {
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub names: BTreeMap<String, Answer>,
    /// Names of addresses.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub reverse: BTreeMap<IpAddr, String>,
}

/// The addresses of a name, of both families; none is an answer too.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Answer {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<IpAddr>,
    /// How long who asked may go on using it, in seconds.
    pub ttl_seconds: u32,
}
