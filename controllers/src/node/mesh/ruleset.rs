//! The fixed part of the table: its chains and their rules, and the shape of a balancing chain.
//!
//! Services come and go as elements of the sets; the rules never mention one. What each rule is for stands in its
//! comment, which `nft list table inet apply` shows.
//!
//! The way of a packet to a published port: `raw_pre` drops what is forged; `nat_pre` (or `nat_out`, when it comes from
//! the machine itself) jumps to `lb`; there the port is looked up in `ports4`, which says `goto p4_3_17`: the chain of 3
//! slots with counter 17. That chain counts on, looks (port, count) up in the slot map `pub4` and translates.
//! When that task is on another machine, the packet goes there as it is, through the tunnel; `raw_pre` and `mark_pre` there
//! remember which machine it came from, and send the answer back (`links::tunnel` has the last step).
//! `filter_fwd` keeps networks apart; `nat_post` gives the packet a source address to which the answer comes back here,
//! only where it would otherwise not: the task sees its client.

use std::{
    collections::{BTreeMap, BTreeSet},
    hash::{DefaultHasher, Hash, Hasher},
    net::IpAddr,
    sync::Arc,
};

use ipnet::IpNet;

use super::{
    sets::{Data, SETS, Set},
    state::{Family, Kind, Machine, Way},
};
use crate::node::{
    links::{self, LinkName, TUNNEL_PORT},
    sys::{
        netlink::octets,
        nft::{
            AddressOf, Compare, Conntrack, Header, IPV4, IPV6, Member, Meta, Nat, Number, Program, Register, Reject,
            Rule, Verdict,
        },
    },
};

/// Bit of the connection mark: came by a published port, so the networks' borders do not apply.
pub const PUBLISHED: u32 = 0x10000;

/// A chain that spreads connections over `slots` tasks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Balancer {
    pub kind: Kind,
    pub slots: u32,
    pub turn: Turn,
}

/// Whose turn it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Turn {
    /// One after the other. A chain, and its counter, are one frontend's alone: shared, two services that are called
    /// alternately would each meet the same task every time.
    Counter(u32),
    /// By chance. Shared by all frontends of that shape that found no counter.
    Random,
}

/// So many frontends of one kind and number of tasks go in exact turn.
///
/// Whenever a frontend changes its chain, the kernel looks through all of them: with 10,000 chains that took 40 ms,
/// and loading them a minute and a half.
pub const COUNTERS_MAX: u32 = 32;

impl Balancer {
    pub fn name(self) -> String {
        let kind = match self.kind {
            Kind::Vip4 => "v4",
            Kind::Vip6 => "v6",
            Kind::Port4 => "p4",
            Kind::Port6 => "p6",
        };
        match self.turn {
            Turn::Counter(counter) => format!("{kind}_{}_{counter}", self.slots),
            Turn::Random => format!("{kind}_{}_random", self.slots),
        }
    }

    pub fn parse(name: &str) -> Option<Balancer> {
        let mut parts = name.split('_');
        let kind = match parts.next()? {
            "v4" => Kind::Vip4,
            "v6" => Kind::Vip6,
            "p4" => Kind::Port4,
            "p6" => Kind::Port6,
            _ => return None,
        };
        let slots = parts.next()?.parse().ok()?;
        let turn = match parts.next()? {
            "random" => Turn::Random,
            counter => Turn::Counter(counter.parse().ok()?),
        };
        let balancer = Balancer { kind, slots, turn };
        // Only what `name` would write: `p4_03_1` is somebody else's.
        (balancer.name() == name && balancer.slots > 0).then_some(balancer)
    }

    /// What its rules must look like; the same for all counters.
    pub fn rules(self) -> Vec<Rule> {
        let (kind, slots) = (self.kind, self.slots);
        let mut rules = Vec::new();
        if kind.is_port() {
            rules.push(
                Program::new()
                    .conntrack(Conntrack::Mark, R0)
                    .bits(R0, &(!PUBLISHED).to_ne_bytes(), &PUBLISHED.to_ne_bytes())
                    .set_conntrack(Conntrack::Mark, R0)
                    .rule("came by a published port"),
            );
        }
        rules.push(match self.turn {
            Turn::Counter(_) => translate(kind, slots, Number::InTurn).rule("in turn"),
            Turn::Random => translate(kind, slots, Number::Random).rule("by chance"),
        });
        // A packet that was sent here just before the last slot went finds nothing above and takes slot 0.
        rules.push(translate(kind, 1, Number::InTurn).rule("slot gone meanwhile"));
        rules
    }
}

fn translate(kind: Kind, slots: u32, number: Number) -> Program {
    let program = frontend_key(Program::new(), kind);
    let set = Set::slots(kind);
    let slot = Register(Set::routes(kind).key_bytes() / 4);
    // Behind the key, so that a key of 20 bytes and a value of 20 bytes fit into the 64 of the registers.
    let found = Register(set.key_bytes() / 4);
    let port = match kind {
        Kind::Port4 => Some(Register(found.0 + 1)),
        Kind::Port6 => Some(Register(found.0 + 4)),
        Kind::Vip4 | Kind::Vip6 => None,
    };
    program.number(number, slots, slot).map(set.name, R0, found).nat(
        Nat::Destination,
        protocol(kind.family()),
        found,
        port,
    )
}

/// Loads the key by which a frontend is known, from register 0 on.
fn frontend_key(program: Program, kind: Kind) -> Program {
    match kind {
        Kind::Vip4 | Kind::Vip6 => address(program, kind.family(), AddressOf::Destination, R0),
        Kind::Port4 | Kind::Port6 => {
            only(program, kind.family()).meta(Meta::TransportProtocol, R0).payload(Header::Transport, 2, 2, R1)
        }
    }
}

/// The hook of a chain at which the kernel enters it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hook {
    /// `filter` or `nat`.
    pub kind: &'static str,
    pub number: u32,
    pub priority: i32,
}

/// A chain that is to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    pub name: String,
    pub hook: Option<Hook>,
    pub rules: Arc<[Rule]>,
}

impl Chain {
    pub fn balancer(balancer: Balancer, rules: Arc<[Rule]>) -> Chain {
        Chain { name: balancer.name(), hook: None, rules }
    }

    pub fn fingerprint(&self) -> u64 {
        fingerprint(self.rules.iter().map(|rule| rule.comment.as_str()))
    }
}

/// Tells lists of rules apart by their comments. Never leaves the process.
pub fn fingerprint<'a>(comments: impl Iterator<Item = &'a str>) -> u64 {
    let mut hasher = DefaultHasher::new();
    comments.for_each(|comment| comment.hash(&mut hasher));
    hasher.finish()
}

/// The fixed part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ruleset {
    /// By name.
    pub chains: BTreeMap<String, Arc<Chain>>,
}

impl Ruleset {
    pub fn new(machine: &Machine, overlay: &BTreeSet<IpNet>) -> Ruleset {
        let build = Build { machine, overlay };
        let chains = [
            ("raw_pre", Some(filter(PREROUTING, -300)), build.forged()),
            ("raw_out", Some(filter(OUTPUT, -300)), build.untracked()),
            ("mark_pre", Some(filter(PREROUTING, -150)), build.way_back()),
            ("nat_pre", Some(nat(PREROUTING, -100)), vec![balance()]),
            ("nat_out", Some(nat(OUTPUT, -100)), vec![balance()]),
            ("lb", None, frontends()),
            ("filter_fwd", Some(filter(FORWARD, 0)), build.borders()),
            ("filter_out", Some(filter(OUTPUT, 0)), build.nobody(untranslated)),
            ("nat_post", Some(nat(POSTROUTING, 100)), build.sources()),
        ];
        let named = chains.into_iter().map(|(name, hook, rules)| {
            (name.to_owned(), Arc::new(Chain { name: name.to_owned(), hook, rules: rules.into() }))
        });
        Ruleset { chains: named.collect() }
    }

    /// What cannot be changed without making the table anew, in words that are compared only.
    pub fn foundation(&self) -> String {
        let mut lines: Vec<String> = self.chains.values().map(|chain| chain_line(&chain.name, chain.hook)).collect();
        lines.extend(SETS.iter().map(|set| {
            let (kind, bytes) = match set.data {
                Data::None => (0, 0),
                Data::Verdict => (VERDICT_DATA, 0),
                Data::Value(fields) => (Set::printed(fields), set.data_bytes()),
            };
            set_line(set.name, set.flags(), [Set::printed(set.key), set.key_bytes()], [kind, bytes])
        }));
        lines.sort();
        lines.join("\n")
    }
}

/// `NFT_DATA_VERDICT`.
pub const VERDICT_DATA: u32 = 0xffff_ff00;

pub fn chain_line(name: &str, hook: Option<Hook>) -> String {
    match hook {
        Some(Hook { kind, number, priority }) => format!("chain {name} {kind} {number} {priority} accept"),
        None => format!("chain {name}"),
    }
}

/// Key and data as `[type, bytes]`.
pub fn set_line(name: &str, flags: u32, key: [u32; 2], data: [u32; 2]) -> String {
    format!("set {name} {flags:x} {key:x?} {data:x?}")
}

const PREROUTING: u32 = 0;
const FORWARD: u32 = 2;
const OUTPUT: u32 = 3;
const POSTROUTING: u32 = 4;

fn filter(number: u32, priority: i32) -> Hook {
    Hook { kind: "filter", number, priority }
}

fn nat(number: u32, priority: i32) -> Hook {
    Hook { kind: "nat", number, priority }
}

const R0: Register = Register(0);
const R1: Register = Register(1);
/// Where a second address goes, behind one of 4 and of 16 bytes.
const R4: Register = Register(4);

/// What the rules are written for.
struct Build<'a> {
    machine: &'a Machine,
    overlay: &'a BTreeSet<IpNet>,
}

impl Build<'_> {
    fn ranges(&self, family: Family) -> impl Iterator<Item = IpNet> {
        self.overlay.iter().copied().filter(move |range| Family::of(range.addr()) == family)
    }

    /// `raw_out`: packets of the tunnel are not tracked; what is in them is.
    fn untracked(&self) -> Vec<Rule> {
        let ways = self.tunnels_own(Toward::Other);
        ways.into_iter().map(|own| own.untracked().rule("the tunnel's own")).collect()
    }

    /// Of `raw_pre`: VXLAN authenticates nobody, and one client's port may come by several machines to one task.
    fn through_tunnel(&self) -> Vec<Rule> {
        let machine = self.machine;
        let mut rules = vec![
            // Masqueraded, they would come from a machine's address.
            tunnel_port(from_task(Program::new(), machine))
                .verdict(Verdict::Drop)
                .rule("no task speaks through the tunnel"),
        ];
        for own in self.tunnels_own(Toward::This) {
            rules.push(own.untracked().verdict(Verdict::Accept).rule("the tunnel's own"));
        }
        if machine.tunnel == Some(Way::Encrypted) {
            let rest = by_link(Program::new(), Meta::InputName, &machine.links.wireguard());
            rules.push(rest.verdict(Verdict::Drop).rule("nothing but the tunnel comes by the encrypted link"));
        }
        rules.push(
            tunnel_port(Program::new())
                .address_type(AddressOf::Destination, R0)
                .compare(R0, Compare::Equal, &LOCAL.to_ne_bytes())
                .verdict(Verdict::Drop)
                .rule("only machines speak through the tunnel"),
        );
        for family in machine.families() {
            rules.push(
                self.client_of_another(Program::new(), family)
                    .payload(Header::Link, LAST_OF_SOURCE, 2, R0)
                    .swap16(R0)
                    .set_original_zone(R0)
                    .rule("one zone a machine: it may have the same client"),
            );
        }
        rules
    }

    /// The tunnel's own packets between machines, for each way that they may go.
    fn tunnels_own(&self, toward: Toward) -> Vec<Program> {
        let (link, other) = match toward {
            Toward::Other => (Meta::OutputName, AddressOf::Destination),
            Toward::This => (Meta::InputName, AddressOf::Source),
        };
        match self.machine.tunnel {
            Some(Way::Encrypted) => {
                vec![tunnel_port(by_link(Program::new(), link, &self.machine.links.wireguard()))]
            }
            // A port elsewhere that happens to have the number is not meant.
            Some(Way::Plain) => [Family::V4, Family::V6]
                .map(|family| {
                    let between = address(tunnel_port(Program::new()), family, other, R0);
                    between.member(Set::nodes(family).name, R0, Member::Of)
                })
                .into(),
            None => Vec::new(),
        }
    }

    /// `mark_pre`: an answer to a client that came in by another machine goes back there.
    fn way_back(&self) -> Vec<Rule> {
        let machine = self.machine;
        if machine.tunnel.is_none() {
            return Vec::new();
        }
        let mut rules = Vec::new();
        for family in machine.families() {
            rules.push(
                self.client_of_another(Program::new(), family)
                    .conntrack(Conntrack::State, R0)
                    .bits(R0, &NEW.to_ne_bytes(), &[0; 4])
                    .compare(R0, Compare::NotEqual, &[0; 4])
                    .payload(Header::Link, LAST_OF_SOURCE, 2, R0)
                    .swap16(R0)
                    .set_conntrack(Conntrack::Mark, R0)
                    .rule("remember the machine that it came in by"),
            );
        }
        rules.push(
            from_task(Program::new(), machine)
                .conntrack(Conntrack::Direction, R0)
                .compare(R0, Compare::Equal, &[REPLY])
                .conntrack(Conntrack::Mark, R0)
                .bits(R0, &MACHINE.to_ne_bytes(), &[0; 4])
                .compare(R0, Compare::NotEqual, &[0; 4])
                .bits(R0, &MACHINE.to_ne_bytes(), &links::GOES_BACK.to_ne_bytes())
                .set_meta(Meta::Mark, R0)
                .rule("the answer goes back to it"),
        );
        rules
    }

    /// From the tunnel, and of nobody in the overlay: the machine there has seen to it that the port is published.
    fn client_of_another(&self, program: Program, family: Family) -> Program {
        let link = padded(self.machine.links.overlay().as_str());
        let by_tunnel = program.meta(Meta::InputName, R0).compare(R0, Compare::Equal, &link);
        self.outside(by_tunnel, AddressOf::Source, family)
    }

    /// `raw_pre`: what is not what it says.
    fn forged(&self) -> Vec<Rule> {
        let machine = self.machine;
        let mut rules = if machine.tunnel.is_some() { self.through_tunnel() } else { Vec::new() };
        rules.push(
            // `route_localnet` on the tasks' links lets 127.0.0.0/8 in from there; nobody outside may use it.
            in_range(not_from_link(Program::new(), LOOPBACK_LINK), AddressOf::Destination, loopback())
                .verdict(Verdict::Drop)
                .rule("loopback addresses stay inside"),
        );
        // Tasks speak no other family either.
        for family in [Family::V4, Family::V6] {
            if family == Family::V6 {
                // Neighbour discovery; the kernel forwards nothing from these addresses.
                rules.push(
                    in_range(from_task(Program::new(), machine), AddressOf::Source, link_local())
                        .verdict(Verdict::Accept)
                        .rule("talk with the gateway"),
                );
            }
            rules.push(
                address(from_task(Program::new(), machine).meta(Meta::InputName, R0), family, AddressOf::Source, R4)
                    .member(Set::owner(family).name, R0, Member::NotOf)
                    .verdict(Verdict::Drop)
                    .rule("a task speaks from its own addresses"),
            );
        }
        for range in self.overlay {
            rules.push(
                in_range(not_from_us(Program::new(), machine), AddressOf::Source, *range)
                    .verdict(Verdict::Drop)
                    .rule("overlay addresses come from inside"),
            );
        }
        rules
    }

    /// `filter_fwd`.
    fn borders(&self) -> Vec<Rule> {
        let machine = self.machine;
        let mut rules = Vec::new();
        // The tunnel's own packets are not forwarded; these would be taken for this machine's, once masqueraded.
        rules.extend(self.tunnels_own(Toward::Other).into_iter().map(|to_tunnel| {
            to_tunnel.verdict(Verdict::Drop).rule("nobody behind this machine speaks through the tunnel")
        }));
        rules.extend(self.nobody(std::convert::identity));
        rules.push(
            Program::new()
                .conntrack(Conntrack::State, R0)
                .bits(R0, &(ESTABLISHED | RELATED).to_ne_bytes(), &[0; 4])
                .compare(R0, Compare::NotEqual, &[0; 4])
                .verdict(Verdict::Accept)
                .rule("begun already"),
        );
        rules.push(
            from_task(Program::new(), machine)
                .conntrack(Conntrack::State, R0)
                .bits(R0, &INVALID.to_ne_bytes(), &[0; 4])
                .compare(R0, Compare::NotEqual, &[0; 4])
                .verdict(Verdict::Drop)
                .rule("would leave untranslated"),
        );
        rules.push(published(Program::new()).verdict(Verdict::Accept).rule("published to everyone"));
        if machine.tunnel.is_some() {
            rules.extend(machine.families().map(|family| {
                let client = self.client_of_another(Program::new(), family);
                client.verdict(Verdict::Accept).rule("published on another machine")
            }));
        }
        for family in machine.families() {
            rules.push(
                reach_key(Program::new(), family)
                    .member(Set::reach(family).name, R0, Member::Of)
                    .verdict(Verdict::Accept)
                    .rule("a network of the task"),
            );
            for range in self.ranges(family) {
                rules.push(
                    not_same(in_range(Program::new(), AddressOf::Destination, range), family)
                        .reject(Reject::AdminProhibited)
                        .rule("networks are apart, and from the outside only published ports"),
                );
            }
            for range in self.ranges(family) {
                let leaves =
                    self.outside(in_range(Program::new(), AddressOf::Source, range), AddressOf::Destination, family);
                rules.push(
                    pair(leaves, family, Set::closed(family), Member::Of)
                        .reject(Reject::AdminProhibited)
                        .rule("internal networks have no outside"),
                );
            }
        }
        rules
    }

    /// Addresses of the overlay that no task has are routed to the machine's own link: refused at once there, instead
    /// of waiting for a neighbour that never answers. These are VIPs without a task, too.
    fn nobody(&self, only_if: fn(Program) -> Program) -> Vec<Rule> {
        let (link, _) = self.machine.links.machine();
        let mut rules = Vec::new();
        for range in self.overlay {
            let to_nobody = || {
                let link = padded(link.as_str());
                let to_link = Program::new().meta(Meta::OutputName, R0).compare(R0, Compare::Equal, &link);
                only_if(in_range(to_link, AddressOf::Destination, *range))
            };
            rules.push(
                to_nobody()
                    .meta(Meta::TransportProtocol, R0)
                    .compare(R0, Compare::Equal, &[TCP])
                    .reject(Reject::TcpReset)
                    .rule("no task there"),
            );
            rules.push(to_nobody().reject(Reject::PortUnreachable).rule("no task there"));
        }
        rules
    }

    /// `nat_post`: source addresses.
    fn sources(&self) -> Vec<Rule> {
        let machine = self.machine;
        let from_machine = |program: Program, address: IpAddr| {
            program.load(&octets(address), R0).nat(Nat::Source, protocol(Family::of(address)), R0, None)
        };
        let mut rules = vec![
            from_machine(
                in_range(not_to_link(Program::new(), LOOPBACK_LINK), AddressOf::Source, loopback()),
                machine.address4.into(),
            )
            .rule("from 127.0.0.1 to a task"),
        ];
        for family in machine.families() {
            let Some(own) = machine.address(family) else { continue };
            rules.push(
                from_machine(
                    address(Program::new().meta(Meta::OutputName, R0), family, AddressOf::Source, R4).member(
                        Set::owner(family).name,
                        R0,
                        Member::Of,
                    ),
                    own,
                )
                .rule("a task to itself"),
            );
            // A task picks one of its addresses to speak from; in each network it is known by the one there.
            let known_by = Register(8);
            rules.push(
                reach_key(not_same(from_task(Program::new(), machine), family), family)
                    .map(Set::reach(family).name, R0, known_by)
                    .nat(Nat::Source, protocol(family), known_by, None)
                    .rule("into another network of the task"),
            );
            for range in self.ranges(family) {
                rules.push(
                    from_machine(not_same(in_range(published(Program::new()), AddressOf::Source, range), family), own)
                        .rule("published port used from another network"),
                );
            }
            rules.push(
                from_machine(
                    address(published(Program::new()), family, AddressOf::Source, R0)
                        .member(Set::nodes(family).name, R0, Member::Of)
                        .address_type(AddressOf::Source, R0)
                        .compare(R0, Compare::NotEqual, &LOCAL.to_ne_bytes()),
                    own,
                )
                .rule("another machine's address, unknown in the overlay"),
            );
            for range in self.ranges(family) {
                rules.push(
                    self.outside(in_range(Program::new(), AddressOf::Source, range), AddressOf::Destination, family)
                        .address_type(AddressOf::Destination, R0)
                        .compare(R0, Compare::NotEqual, &LOCAL.to_ne_bytes())
                        .meta(Meta::OutputName, R0)
                        .compare(R0, Compare::NotEqual, &padded(machine.links.overlay().as_str()))
                        .masquerade()
                        .rule("to the outside"),
                );
            }
        }
        rules
    }

    /// To, or from, no address of the overlay.
    fn outside(&self, program: Program, of: AddressOf, family: Family) -> Program {
        self.ranges(family).fold(program, |program, range| not_in_range(program, of, range))
    }
}

fn balance() -> Rule {
    Program::new().verdict(Verdict::Jump("lb")).rule("virtual addresses and published ports")
}

/// `lb`.
fn frontends() -> Vec<Rule> {
    let mut rules = Vec::new();
    for kind in [Kind::Vip4, Kind::Vip6] {
        rules.push(frontend_key(Program::new(), kind).verdict_map(Set::routes(kind).name, R0).rule("virtual address"));
    }
    // ::1 cannot be translated: no answer would ever be seen. `applyd keep` listens there. Link-local addresses cannot
    // be forwarded from.
    for (except, why) in [
        (IpNet::V6("::1/128".parse().expect("a constant")), "::1 is not for us"),
        (link_local(), "link-local is not for us"),
    ] {
        rules.push(in_range(Program::new(), AddressOf::Destination, except).verdict(Verdict::Return).rule(why));
    }
    for kind in [Kind::Port4, Kind::Port6] {
        let here = only(Program::new(), kind.family()).address_type(AddressOf::Destination, R0).compare(
            R0,
            Compare::Equal,
            &LOCAL.to_ne_bytes(),
        );
        rules.push(frontend_key(here, kind).verdict_map(Set::routes(kind).name, R0).rule("published, to this machine"));
        // Balanced at the source: by the other machine it could come back with an address that is this machine's own.
        let there = address(Program::new(), kind.family(), AddressOf::Destination, R0).member(
            Set::nodes(kind.family()).name,
            R0,
            Member::Of,
        );
        rules.push(frontend_key(there, kind).verdict_map(Set::routes(kind).name, R0).rule("published, to a machine"));
    }
    rules
}

/// In the output hook the link is the one of before the translation: a translated packet has long left for a task.
fn untranslated(program: Program) -> Program {
    program.conntrack(Conntrack::Status, R0).bits(R0, &TRANSLATED.to_ne_bytes(), &[0; 4]).compare(
        R0,
        Compare::Equal,
        &[0; 4],
    )
}

/// Which way a packet of the tunnel goes.
#[derive(Clone, Copy)]
enum Toward {
    Other,
    This,
}

fn by_link(program: Program, direction: Meta, link: &LinkName) -> Program {
    program.meta(direction, R0).compare(R0, Compare::Equal, &padded(link.as_str()))
}

fn tunnel_port(program: Program) -> Program {
    let udp = program.meta(Meta::TransportProtocol, R0).compare(R0, Compare::Equal, &[UDP]);
    udp.payload(Header::Transport, 2, 2, R0).compare(R0, Compare::Equal, &TUNNEL_PORT.to_be_bytes())
}

/// `RTN_LOCAL`.
const LOCAL: u32 = 2;
const TCP: u8 = 6;
const UDP: u8 = 17;
/// Where in an Ethernet header the last two bytes of the source are: the number of the machine.
const LAST_OF_SOURCE: u32 = 10;
/// Bits of the connection mark: the machine that the connection came in by, 0 for this one.
const MACHINE: u32 = 0xffff;
/// `IP_CT_DIR_REPLY`.
const REPLY: u8 = 1;
/// Bits of `ct state`.
const INVALID: u32 = 1;
const ESTABLISHED: u32 = 2;
const RELATED: u32 = 4;
const NEW: u32 = 8;
/// Bit of `ct status`: the destination was translated.
const TRANSLATED: u32 = 1 << 5;

const LOOPBACK_LINK: &str = "lo";

fn loopback() -> IpNet {
    "127.0.0.0/8".parse().expect("a constant")
}

fn link_local() -> IpNet {
    "fe80::/10".parse().expect("a constant")
}

fn protocol(family: Family) -> u8 {
    match family {
        Family::V4 => IPV4,
        Family::V6 => IPV6,
    }
}

/// A link's name as the kernel compares it: 16 bytes.
fn padded(name: &str) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..name.len()].copy_from_slice(name.as_bytes());
    bytes
}

fn only(program: Program, family: Family) -> Program {
    program.meta(Meta::NetworkProtocol, R0).compare(R0, Compare::Equal, &[protocol(family)])
}

/// Loads an address of the packet; other families do not match. Uses register 15 on the way: `to` may be anything.
fn address(program: Program, family: Family, of: AddressOf, to: Register) -> Program {
    let (offset, length) = match (family, of) {
        (Family::V4, AddressOf::Source) => (12, 4),
        (Family::V4, AddressOf::Destination) => (16, 4),
        (Family::V6, AddressOf::Source) => (8, 16),
        (Family::V6, AddressOf::Destination) => (24, 16),
    };
    let spare = Register(15);
    program.meta(Meta::NetworkProtocol, spare).compare(spare, Compare::Equal, &[protocol(family)]).payload(
        Header::Network,
        offset,
        length,
        to,
    )
}

fn in_range(program: Program, of: AddressOf, range: IpNet) -> Program {
    compare_range(program, of, range, Compare::Equal)
}

fn not_in_range(program: Program, of: AddressOf, range: IpNet) -> Program {
    compare_range(program, of, range, Compare::NotEqual)
}

fn compare_range(program: Program, of: AddressOf, range: IpNet, how: Compare) -> Program {
    let mask = octets(range.netmask());
    let zero = vec![0; mask.len()];
    address(program, Family::of(range.addr()), of, R0).bits(R0, &mask, &zero).compare(R0, how, &octets(range.network()))
}

/// Source and destination against a set of pairs.
fn pair(program: Program, family: Family, set: &Set, how: Member) -> Program {
    let second = match family {
        Family::V4 => R1,
        Family::V6 => R4,
    };
    address(address(program, family, AddressOf::Source, R0), family, AddressOf::Destination, second)
        .member(set.name, R0, how)
}

/// The link that a packet came by, and where it goes: who in which network.
fn reach_key(program: Program, family: Family) -> Program {
    address(program.meta(Meta::InputName, R0), family, AddressOf::Destination, R4)
}

fn not_same(program: Program, family: Family) -> Program {
    pair(program, family, Set::same(family), Member::NotOf)
}

fn published(program: Program) -> Program {
    program.conntrack(Conntrack::Mark, R0).bits(R0, &PUBLISHED.to_ne_bytes(), &[0; 4]).compare(
        R0,
        Compare::NotEqual,
        &[0; 4],
    )
}

fn from_task(program: Program, machine: &Machine) -> Program {
    program.meta(Meta::InputName, R0).compare(R0, Compare::Equal, machine.links.tasks().as_bytes())
}

/// Neither from a task, nor from another machine, nor from this machine itself.
fn not_from_us(program: Program, machine: &Machine) -> Program {
    not_from_link(program, LOOPBACK_LINK).compare(R0, Compare::NotEqual, machine.links.tasks().as_bytes()).compare(
        R0,
        Compare::NotEqual,
        &padded(machine.links.overlay().as_str()),
    )
}

fn not_from_link(program: Program, link: &str) -> Program {
    program.meta(Meta::InputName, R0).compare(R0, Compare::NotEqual, &padded(link))
}

fn not_to_link(program: Program, link: &str) -> Program {
    program.meta(Meta::OutputName, R0).compare(R0, Compare::NotEqual, &padded(link))
}
