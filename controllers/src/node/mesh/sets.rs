//! The sets and maps of the table: what each is looked up by, and what it has for it.

use super::state::{Family, Kind};

/// A set or map of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Set {
    pub name: &'static str,
    /// Key fields: type number of nft (so that it can print them) and length in bytes. Each is padded to 4.
    pub key: &'static [(u32, u32)],
    pub data: Data,
    /// Keys are ranges in each field.
    pub ranges: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Data {
    None,
    /// Fields as those of the key.
    Value(&'static [(u32, u32)]),
    Verdict,
}

/// Type numbers of nft's own data types: how it prints a field.
mod printed {
    pub const IPV4: (u32, u32) = (7, 4);
    pub const IPV6: (u32, u32) = (8, 16);
    pub const PROTOCOL: (u32, u32) = (12, 1);
    pub const PORT: (u32, u32) = (13, 2);
    pub const MARK: (u32, u32) = (19, 4);
    pub const LINK: (u32, u32) = (41, 16);
}

use printed::{IPV4 as A4, IPV6 as A6, LINK, MARK as SLOT, PORT, PROTOCOL};

const fn set(name: &'static str, key: &'static [(u32, u32)], data: Data) -> Set {
    Set { name, key, data, ranges: false }
}

const fn pairs(name: &'static str, key: &'static [(u32, u32)]) -> Set {
    Set { name, key, data: Data::None, ranges: true }
}

/// All sets, in the order of their making.
pub const SETS: [Set; 18] = [
    // Slots: which task is number so and so of a frontend.
    set("vip4", &[A4, SLOT], Data::Value(&[A4])),
    set("vip6", &[A6, SLOT], Data::Value(&[A6])),
    set("pub4", &[PROTOCOL, PORT, SLOT], Data::Value(&[A4, PORT])),
    set("pub6", &[PROTOCOL, PORT, SLOT], Data::Value(&[A6, PORT])),
    // Routes: which chain a frontend's packets take.
    set("vips4", &[A4], Data::Verdict),
    set("vips6", &[A6], Data::Verdict),
    set("ports4", &[PROTOCOL, PORT], Data::Verdict),
    set("ports6", &[PROTOCOL, PORT], Data::Verdict),
    // Which task may speak from which address.
    set("owner4", &[LINK, A4], Data::None),
    set("owner6", &[LINK, A6], Data::None),
    // Who may speak to whom, and who not to the outside.
    pairs("same4", &[A4, A4]),
    pairs("same6", &[A6, A6]),
    pairs("closed4", &[A4, A4]),
    pairs("closed6", &[A6, A6]),
    // Addresses of the cluster's machines.
    set("nodes4", &[A4], Data::None),
    set("nodes6", &[A6], Data::None),
    // In which networks a task is, and under which address.
    Set { name: "reach4", key: &[LINK, A4], data: Data::Value(&[A4]), ranges: true },
    Set { name: "reach6", key: &[LINK, A6], data: Data::Value(&[A6]), ranges: true },
];

impl Set {
    pub fn named(name: &str) -> Option<&'static Set> {
        SETS.iter().find(|set| set.name == name)
    }

    pub fn slots(kind: Kind) -> &'static Set {
        &SETS[index(kind)]
    }

    pub fn routes(kind: Kind) -> &'static Set {
        &SETS[4 + index(kind)]
    }

    pub fn owner(family: Family) -> &'static Set {
        &SETS[8 + offset(family)]
    }

    pub fn same(family: Family) -> &'static Set {
        &SETS[10 + offset(family)]
    }

    pub fn closed(family: Family) -> &'static Set {
        &SETS[12 + offset(family)]
    }

    pub fn nodes(family: Family) -> &'static Set {
        &SETS[14 + offset(family)]
    }

    pub fn reach(family: Family) -> &'static Set {
        &SETS[16 + offset(family)]
    }

    pub fn key_bytes(&self) -> u32 {
        width(self.key)
    }

    pub fn data_bytes(&self) -> u32 {
        match self.data {
            Data::None | Data::Verdict => 0,
            Data::Value(fields) => width(fields),
        }
    }

    /// nft's number for a concatenation of types: 6 bits each.
    pub fn printed(fields: &[(u32, u32)]) -> u32 {
        fields.iter().fold(0, |number, (kind, _)| number << 6 | kind)
    }

    pub fn flags(&self) -> u32 {
        const INTERVAL: u32 = 0x4;
        const MAP: u32 = 0x8;
        const CONCATENATION: u32 = 0x80;
        let ranges = if self.ranges { INTERVAL | CONCATENATION } else { 0 };
        if self.data == Data::None { ranges } else { ranges | MAP }
    }
}

fn index(kind: Kind) -> usize {
    match kind {
        Kind::Vip4 => 0,
        Kind::Vip6 => 1,
        Kind::Port4 => 2,
        Kind::Port6 => 3,
    }
}

fn offset(family: Family) -> usize {
    usize::from(family == Family::V6)
}

fn width(fields: &[(u32, u32)]) -> u32 {
    fields.iter().map(|(_, length)| length.next_multiple_of(4)).sum()
}
