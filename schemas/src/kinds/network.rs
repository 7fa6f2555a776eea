//! Network: tasks attached to it reach one another, and nobody else.

use std::collections::BTreeMap;
use std::net::IpAddr;

use reconciler_api::{Conditions, Resource};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::is_default;

/// A network: tasks attached to it reach one another across machines, and nobody else.
#[derive(Resource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[resource(
    group = "apply", version = "v1", kind = "Network", status = NetworkStatus, short("net"), validate = crate::validate::network,
    column("SUBNET", "/status/subnet"), column("INTERNAL", "/spec/internal"), wide_column("ID", "/status/id")
)]
#[serde(rename_all = "camelCase", default)]
pub struct NetworkSpec {
    /// Labels of the network, for selectors; tasks do not see them.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Its addresses, such as 10.7.0.0/16; absent: a part of the cluster's pool. Never changes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "atomic"))]
    pub subnets: Vec<Cidr>,
    /// Tasks of the network have no way out of it: neither to the world nor to other networks.
    #[serde(skip_serializing_if = "is_default")]
    pub internal: bool,
    /// Containers that are no tasks may be attached.
    #[serde(skip_serializing_if = "is_default")]
    pub attachable: bool,
    /// Tasks get addresses of IPv6 beside those of IPv4. Never changes.
    #[serde(skip_serializing_if = "is_default")]
    pub ipv6: bool,
    /// Largest packet in bytes, 1280 to 65535; absent: what the machines' links allow.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1280, max = 65535))]
    pub mtu: Option<u16>,
}

/// The network of a namespace that services are attached to which name none.
pub const DEFAULT_NETWORK: &str = "default";

/// What is observed of a network. Written by the network controller.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct NetworkStatus {
    /// The `metadata.generation` that this status speaks of.
    pub observed_generation: i64,
    /// Small number of the network, unique in the cluster, by which machines tell packets apart; absent until it is
    /// given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<u32>,
    /// What its tasks' addresses come from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subnet: Option<Cidr>,
    /// Its addresses of IPv6, beside `subnet`; absent where it has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subnet6: Option<Cidr>,
    /// The part that each node gives addresses from, given on first placement there.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["node"]))]
    pub blocks: Vec<NodeBlock>,
    /// `Ready`: it has addresses. `False` says what is missing.
    #[serde(skip_serializing_if = "Conditions::is_empty")]
    pub conditions: Conditions,
}

/// The part of a network's addresses that one node gives out by itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodeBlock {
    /// Name of the Node.
    pub node: String,
    /// The node gives tasks of the network addresses from here, all but its first and last one.
    pub block: Cidr,
    /// The same of IPv6; absent where the network has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub block6: Option<Cidr>,
}

/// A network address and the length of its prefix: `10.5.1.0/24`. Bits behind the prefix are zero.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cidr {
    address: IpAddr,
    prefix: u8,
}

/// Why a text is no [`Cidr`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CidrError {
    /// No `ADDRESS/PREFIX`, or a prefix longer than addresses of that family.
    #[error("{0:?} is not a subnet, such as 10.7.0.0/16")]
    Shape(String),
    /// An address inside a subnet, where the subnet itself was asked for.
    #[error("{given:?} has bits behind its prefix; the subnet is {subnet}")]
    HostBits {
        /// The text as it was given.
        given: String,
        /// The subnet that it lies in, which is probably meant.
        subnet: Cidr,
    },
}

impl Cidr {
    /// The subnet of `prefix` bits that `address` lies in; absent when the family has fewer bits.
    pub fn new(address: IpAddr, prefix: u8) -> Option<Self> {
        let address = match address {
            IpAddr::V4(v4) if prefix <= 32 => {
                IpAddr::V4((u32::from(v4) & u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0)).into())
            }
            IpAddr::V6(v6) if prefix <= 128 => {
                IpAddr::V6((u128::from(v6) & u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0)).into())
            }
            _ => return None,
        };
        Some(Self { address, prefix })
    }

    /// The first address of the subnet: the bits of the prefix, and zeros.
    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// Bits of the prefix: 0 to 32, or to 128 for IPv6.
    pub fn prefix(&self) -> u8 {
        self.prefix
    }

    /// Whether an address lies in the subnet; never for one of the other family.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.address.is_ipv4() == address.is_ipv4() && Self::new(address, self.prefix) == Some(*self)
    }

    /// Whether any address lies in both.
    pub fn overlaps(&self, other: &Self) -> bool {
        if self.prefix <= other.prefix { self.contains(other.address) } else { other.contains(self.address) }
    }

    /// The `index`th subnet of `prefix` bits inside this one; absent when there are not so many.
    pub fn subnet(&self, prefix: u8, index: u128) -> Option<Self> {
        let wider = u32::from(prefix.checked_sub(self.prefix)?);
        if wider < 128 && index >= 1u128 << wider {
            return None;
        }
        match self.address {
            IpAddr::V4(v4) if prefix <= 32 => {
                let offset = u32::try_from(index).ok()?.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
                Self::new(IpAddr::V4((u32::from(v4) | offset).into()), prefix)
            }
            IpAddr::V6(v6) if prefix <= 128 => {
                let offset = index.checked_shl(128 - u32::from(prefix)).unwrap_or(0);
                Self::new(IpAddr::V6((u128::from(v6) | offset).into()), prefix)
            }
            _ => None,
        }
    }

    /// The `index`th address, the network's own being the 0th; absent when there are not so many.
    pub fn nth(&self, index: u128) -> Option<IpAddr> {
        let bits = if self.address.is_ipv4() { 32 } else { 128 };
        self.subnet(bits, index).map(|subnet| subnet.address)
    }
}

impl std::str::FromStr for Cidr {
    type Err = CidrError;

    fn from_str(text: &str) -> Result<Self, CidrError> {
        let shape = || CidrError::Shape(text.to_owned());
        let (address, prefix) = text.split_once('/').ok_or_else(shape)?;
        let address: IpAddr = address.parse().map_err(|_| shape())?;
        if prefix.is_empty() || !prefix.bytes().all(|b| b.is_ascii_digit()) {
            return Err(shape());
        }
        let prefix: u8 = prefix.parse().map_err(|_| shape())?;
        let cidr = Self::new(address, prefix).ok_or_else(shape)?;
        if cidr.address == address {
            Ok(cidr)
        } else {
            Err(CidrError::HostBits { given: text.to_owned(), subnet: cidr })
        }
    }
}

impl std::fmt::Display for Cidr {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

impl std::fmt::Debug for Cidr {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(self, f)
    }
}

impl Serialize for Cidr {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Cidr {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

impl JsonSchema for Cidr {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Cidr".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({"type": "string", "format": "cidr", "examples": ["10.7.0.0/16"]})
    }

    fn inline_schema() -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cidr(text: &str) -> Cidr {
        text.parse().unwrap()
    }

    #[test]
    fn subnets_are_read_and_written() {
        for text in ["10.7.0.0/16", "0.0.0.0/0", "10.1.2.3/32", "fd00:5::/64", "::/0"] {
            assert_eq!(cidr(text).to_string(), text);
        }
        for text in ["", "10.7.0.0", "10.7.0.0/33", "10.7.0/16", "x/8", "10.7.0.0/+8", "fd00::/129"] {
            assert!(text.parse::<Cidr>().is_err(), "{text}");
        }
        assert_eq!(
            "10.7.1.0/16".parse::<Cidr>().unwrap_err().to_string(),
            "\"10.7.1.0/16\" has bits behind its prefix; the subnet is 10.7.0.0/16"
        );
    }

    #[test]
    fn parts_lie_inside_and_apart() {
        let pool = cidr("10.5.0.0/16");
        assert_eq!(pool.subnet(24, 2), Some(cidr("10.5.2.0/24")));
        assert_eq!(pool.subnet(24, 256), None);
        assert_eq!(pool.subnet(8, 0), None);
        assert_eq!(cidr("10.5.1.0/24").nth(7), Some("10.5.1.7".parse().unwrap()));
        assert_eq!(cidr("10.5.1.0/24").nth(256), None);
        assert_eq!(cidr("fd00::/64").nth(1), Some("fd00::1".parse().unwrap()));
        assert_eq!(cidr("0.0.0.0/0").nth(5), Some("0.0.0.5".parse().unwrap()));
        assert!(pool.contains("10.5.9.9".parse().unwrap()) && !pool.contains("10.6.0.0".parse().unwrap()));
        assert!(pool.overlaps(&cidr("10.5.3.0/24")) && cidr("10.5.3.0/24").overlaps(&pool));
        assert!(!pool.overlaps(&cidr("10.6.0.0/24")) && !pool.overlaps(&cidr("::/0")));
    }
}
