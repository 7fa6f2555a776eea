//! Rules as the kernel runs them: a list of small instructions over sixteen 4-byte registers.
//!
//! Numbers are those of linux/netfilter/nf_tables.h. A rule here is its finished bytes and a comment; the comment says
//! why the rule is there (`nft list` shows it) and carries a digest of the bytes, by which a later start sees whether
//! the kernel still has the same rule, as the kernel's own listing of a rule is not byte for byte what it was given.

use sha2::{Digest, Sha256};

use crate::node::sys::netlink::Writer;

/// A rule, ready to be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// Why, and the digest.
    pub comment: String,
    /// The list of expressions.
    pub expressions: Vec<u8>,
}

/// One of the registers, by its place: `Register(0)` to `Register(15)`. Long values fill the following ones too.
#[derive(Debug, Clone, Copy)]
pub struct Register(pub u32);

impl Register {
    fn number(self) -> u32 {
        /// `NFT_REG32_00`.
        const FIRST: u32 = 8;
        FIRST + self.0
    }
}

#[derive(Debug, Clone, Copy)]
pub enum Meta {
    Mark = 3,
    InputName = 6,
    OutputName = 7,
    NetworkProtocol = 15,
    TransportProtocol = 16,
}

#[derive(Debug, Clone, Copy)]
pub enum Header {
    Link = 0,
    Network = 1,
    Transport = 2,
}

#[derive(Debug, Clone, Copy)]
pub enum Compare {
    Equal = 0,
    NotEqual = 1,
}

#[derive(Debug, Clone, Copy)]
pub enum Conntrack {
    State = 0,
    Direction = 1,
    Status = 2,
    Mark = 3,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Member {
    Of,
    NotOf,
}

#[derive(Debug, Clone, Copy)]
pub enum AddressOf {
    Source = 1,
    Destination = 2,
}

#[derive(Debug, Clone, Copy)]
pub enum Number {
    InTurn = 0,
    Random = 1,
}

#[derive(Debug, Clone, Copy)]
pub enum Nat {
    Source = 0,
    Destination = 1,
}

#[derive(Debug, Clone, Copy)]
pub enum Reject {
    TcpReset,
    PortUnreachable,
    AdminProhibited,
}

#[derive(Debug, Clone, Copy)]
pub enum Verdict<'a> {
    Accept,
    Drop,
    /// Back to the chain that jumped here.
    Return,
    Jump(&'a str),
}

/// `NFPROTO_IPV4` and `NFPROTO_IPV6`.
pub const IPV4: u8 = 2;
pub const IPV6: u8 = 10;

/// A rule under construction. Each step is one instruction; the first that does not match ends the rule.
#[derive(Debug, Default)]
pub struct Program {
    list: Writer,
}

impl Program {
    pub fn new() -> Program {
        Program::default()
    }

    pub fn rule(self, why: &str) -> Rule {
        let expressions = self.list.bytes().to_vec();
        let digest = Sha256::digest(&expressions);
        let comment = format!("{why} [{:02x}{:02x}{:02x}{:02x}]", digest[0], digest[1], digest[2], digest[3]);
        Rule { comment, expressions }
    }

    pub fn meta(self, key: Meta, to: Register) -> Program {
        self.add("meta", |data| {
            data.put_be32(1, to.number());
            data.put_be32(2, key as u32);
        })
    }

    pub fn payload(self, header: Header, offset: u32, length: u32, to: Register) -> Program {
        self.add("payload", |data| {
            data.put_be32(1, to.number());
            data.put_be32(2, header as u32);
            data.put_be32(3, offset);
            data.put_be32(4, length);
        })
    }

    /// With a value that is shorter than what was loaded, compares the beginning only.
    pub fn compare(self, from: Register, how: Compare, value: &[u8]) -> Program {
        self.add("cmp", |data| {
            data.put_be32(1, from.number());
            data.put_be32(2, how as u32);
            data.nest(3, |constant| constant.put(1, value));
        })
    }

    /// `register = (register & keep) ^ flip`.
    pub fn bits(self, register: Register, keep: &[u8], flip: &[u8]) -> Program {
        let length = u32::try_from(keep.len()).expect("at most an address");
        self.add("bitwise", |data| {
            data.put_be32(1, register.number());
            data.put_be32(2, register.number());
            data.put_be32(3, length);
            data.nest(4, |constant| constant.put(1, keep));
            data.nest(5, |constant| constant.put(1, flip));
        })
    }

    pub fn member(self, set: &str, key: Register, how: Member) -> Program {
        self.add("lookup", |data| {
            data.put_text(1, set);
            data.put_be32(2, key.number());
            if how == Member::NotOf {
                data.put_be32(5, 1);
            }
        })
    }

    /// Loads what the map has for the key; no entry, no match.
    pub fn map(self, map: &str, key: Register, to: Register) -> Program {
        self.add("lookup", |data| {
            data.put_text(1, map);
            data.put_be32(2, key.number());
            data.put_be32(3, to.number());
        })
    }

    /// Goes where the map says for the key.
    pub fn verdict_map(self, map: &str, key: Register) -> Program {
        /// `NFT_REG_VERDICT`.
        const VERDICT: u32 = 0;
        self.add("lookup", |data| {
            data.put_text(1, map);
            data.put_be32(2, key.number());
            data.put_be32(3, VERDICT);
        })
    }

    /// A number from 0 to `modulus` - 1; every rule counts for itself.
    pub fn number(self, how: Number, modulus: u32, to: Register) -> Program {
        self.add("numgen", |data| {
            data.put_be32(1, to.number());
            data.put_be32(2, modulus);
            data.put_be32(3, how as u32);
        })
    }

    pub fn conntrack(self, key: Conntrack, to: Register) -> Program {
        self.add("ct", |data| {
            data.put_be32(1, to.number());
            data.put_be32(2, key as u32);
        })
    }

    pub fn set_conntrack(self, key: Conntrack, from: Register) -> Program {
        self.add("ct", |data| {
            data.put_be32(2, key as u32);
            data.put_be32(4, from.number());
        })
    }

    /// Tracks the connection apart from those of other zones, but for its answers, which are found without one.
    pub fn set_original_zone(self, from: Register) -> Program {
        /// `NFT_CT_ZONE` and `IP_CT_DIR_ORIGINAL`.
        const ZONE: u32 = 17;
        const ORIGINAL: u8 = 0;
        self.add("ct", |data| {
            data.put_be32(2, ZONE);
            data.put_u8(3, ORIGINAL);
            data.put_be32(4, from.number());
        })
    }

    pub fn set_meta(self, key: Meta, from: Register) -> Program {
        self.add("meta", |data| {
            data.put_be32(2, key as u32);
            data.put_be32(3, from.number());
        })
    }

    /// Writes into the packet; checksums are the caller's to think of.
    pub fn write(self, header: Header, offset: u32, length: u32, from: Register) -> Program {
        self.add("payload", |data| {
            data.put_be32(2, header as u32);
            data.put_be32(3, offset);
            data.put_be32(4, length);
            data.put_be32(5, from.number());
        })
    }

    /// Turns two bytes of the network into a number of this machine, and the other way round.
    pub fn swap16(self, register: Register) -> Program {
        self.add("byteorder", |data| {
            data.put_be32(1, register.number());
            data.put_be32(2, register.number());
            // To and from are the same for two bytes.
            data.put_be32(3, 0);
            data.put_be32(4, 2);
            data.put_be32(5, 2);
        })
    }

    /// The packet is not tracked.
    pub fn untracked(self) -> Program {
        self.add("notrack", |_| {})
    }

    /// The kind of address that this is to the machine (`RTN_LOCAL` ...).
    pub fn address_type(self, of: AddressOf, to: Register) -> Program {
        /// `NFT_FIB_RESULT_ADDRTYPE`.
        const ADDRESS_TYPE: u32 = 3;
        self.add("fib", |data| {
            data.put_be32(1, to.number());
            data.put_be32(2, ADDRESS_TYPE);
            data.put_be32(3, of as u32);
        })
    }

    pub fn load(self, value: &[u8], to: Register) -> Program {
        self.add("immediate", |data| {
            data.put_be32(1, to.number());
            data.nest(2, |constant| constant.put(1, value));
        })
    }

    pub fn nat(self, how: Nat, protocol: u8, address: Register, port: Option<Register>) -> Program {
        self.add("nat", |data| {
            data.put_be32(1, how as u32);
            data.put_be32(2, u32::from(protocol));
            data.put_be32(3, address.number());
            if let Some(port) = port {
                data.put_be32(5, port.number());
            }
        })
    }

    /// Source port by chance: two tasks that leave by the same port at once would otherwise race for it, and the loser's
    /// first packet is dropped.
    pub fn masquerade(self) -> Program {
        /// `NF_NAT_RANGE_PROTO_RANDOM_FULLY`.
        const RANDOM: u32 = 1 << 4;
        self.add("masq", |data| data.put_be32(1, RANDOM))
    }

    pub fn reject(self, how: Reject) -> Program {
        let (kind, code) = match how {
            Reject::TcpReset => (1, 0),
            Reject::PortUnreachable => (2, 1),
            Reject::AdminProhibited => (2, 3),
        };
        self.add("reject", |data| {
            data.put_be32(1, kind);
            data.put_u8(2, code);
        })
    }

    pub fn verdict(self, verdict: Verdict<'_>) -> Program {
        self.add("immediate", |data| {
            data.put_be32(1, 0);
            data.nest(2, |constant| {
                constant.nest(2, |detail| match verdict {
                    Verdict::Drop => detail.put_be32(1, 0),
                    Verdict::Accept => detail.put_be32(1, 1),
                    Verdict::Return => detail.put_be32(1, (-5i32).cast_unsigned()),
                    Verdict::Jump(chain) => {
                        detail.put_be32(1, (-3i32).cast_unsigned());
                        detail.put_text(2, chain);
                    }
                });
            });
        })
    }

    fn add(mut self, name: &str, fill: impl FnOnce(&mut Writer)) -> Program {
        self.list.nest(1, |element| {
            element.put_text(1, name);
            element.nest(2, fill);
        });
        self
    }
}
