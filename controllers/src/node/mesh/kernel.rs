//! The table in the kernel: changes as messages of nftables, and the kernel's listing as a [`Table`].

use std::{collections::BTreeMap, net::IpAddr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::{
    ruleset::{Balancer, Chain, Hook, Ruleset, chain_line, fingerprint, set_line},
    sets::{Data, SETS, Set},
    state::{Backend, Family, Frontend, Kind, Protocol, PublishedPort},
    table::{Member, Op, Table},
};
use crate::node::{
    links::LinkName,
    sys::{
        netlink::{
            Attributes, Batch, NetlinkError, Socket, Writer, attributes, flag, octets, read_address, read_be16,
            read_be32, read_text, read_u32,
        },
        nft::{header, message, put_comment, put_expressions, read_comment},
    },
};

/// `NFPROTO_INET`.
const INET: u8 = 1;

fn inet() -> Writer {
    header(INET)
}

/// Counts the transactions in this network namespace, whoever makes them.
pub(super) fn generation(socket: &mut Socket) -> Result<u32, NetlinkError> {
    let read = |payload: &[u8]| body(payload).find(1).and_then(read_be32);
    Ok(socket.get(message::GET_GENERATION, &header(0), read)?.unwrap_or_default())
}

/// The attributes of an answer, behind its `nfgenmsg`.
fn body(payload: &[u8]) -> Attributes<'_> {
    attributes(payload.get(4..).unwrap_or_default())
}

/// Sends `ops` as one transaction. On a refusal also says which of them it was.
/// Refused as a whole when the ruleset is not of generation `at`.
pub(super) fn commit(
    socket: &mut Socket,
    table: &str,
    at: u32,
    ops: &[Op],
) -> Result<(), (NetlinkError, Option<usize>)> {
    let mut encoder = Encoder { table, batch: Batch::at(at), origin: Vec::new(), pending: None };
    for (index, op) in ops.iter().enumerate() {
        encoder.op(index, op);
    }
    encoder.flush();
    if encoder.batch.is_empty() {
        return Ok(());
    }
    let Encoder { batch, origin, .. } = encoder;
    socket.commit(batch).map_err(|error| {
        let op = match &error {
            NetlinkError::Refused { message, .. } => origin.get(*message).copied(),
            _ => None,
        };
        (error, op)
    })
}

/// Takes the table away, if it is there.
pub(super) fn delete_table(socket: &mut Socket, table: &str) -> Result<(), NetlinkError> {
    let mut batch = Batch::new();
    let mut body = inet();
    body.put_text(1, table);
    batch.push(message::DELETE_TABLE, 0, &body);
    match socket.commit(batch) {
        Err(error) if error.errno() == Some(rustix::io::Errno::NOENT) => Ok(()),
        other => other,
    }
}

struct Encoder<'a> {
    table: &'a str,
    batch: Batch,
    /// The op that each message came from; of a message with many elements the first.
    origin: Vec<usize>,
    pending: Option<Elements>,
}

/// Elements of one set that go out in one message.
struct Elements {
    set: &'static Set,
    delete: bool,
    origin: usize,
    list: Writer,
}

impl Encoder<'_> {
    fn op(&mut self, index: usize, op: &Op) {
        match op {
            Op::Rebuild(ruleset) => self.rebuild(index, ruleset),
            Op::WriteChain(chain) | Op::WriteBalancer(_, chain) => {
                self.new_chain(index, chain);
                self.rules(index, chain, Existing::Replace);
            }
            Op::DeleteBalancer(balancer) => {
                // A chain with rules is deleted with them.
                let mut body = inet();
                body.put_text(1, self.table);
                body.put_text(3, &balancer.name());
                self.push(index, message::DELETE_CHAIN, 0, &body);
            }
            Op::PutSlot { frontend, slot, backend, replaces } => {
                let set = Set::slots(frontend.kind());
                let key = slot_key(*frontend, *slot);
                if replaces.is_some() {
                    self.element(index, set, Deed::Delete, &key, |_| {});
                }
                let value = backend_value(frontend.kind(), *backend);
                self.element(index, set, Deed::Add, &key, |data| data.put(1, &value));
            }
            Op::DeleteSlot { frontend, slot } => {
                let key = slot_key(*frontend, *slot);
                self.element(index, Set::slots(frontend.kind()), Deed::Delete, &key, |_| {});
            }
            Op::PutRoute { frontend, to, replaces } => {
                let set = Set::routes(frontend.kind());
                let key = frontend_key(*frontend);
                if replaces.is_some() {
                    self.element(index, set, Deed::Delete, &key, |_| {});
                }
                self.element(index, set, Deed::Add, &key, |data| {
                    data.nest(2, |verdict| {
                        verdict.put_be32(1, GOTO.cast_unsigned());
                        verdict.put_text(2, &to.name());
                    });
                });
            }
            Op::DeleteRoute { frontend } => {
                self.element(index, Set::routes(frontend.kind()), Deed::Delete, &frontend_key(*frontend), |_| {});
            }
            Op::Add(member) => self.member(index, member, Deed::Add),
            Op::Remove(member) => self.member(index, member, Deed::Delete),
        }
    }

    fn rebuild(&mut self, index: usize, ruleset: &Ruleset) {
        let mut table = inet();
        table.put_text(1, self.table);
        // Made first so that the deletion always finds one.
        self.push(index, message::NEW_TABLE, flag::CREATE, &table);
        self.push(index, message::DELETE_TABLE, 0, &table);
        self.push(index, message::NEW_TABLE, flag::CREATE, &table);
        for (number, set) in (1..).zip(&SETS) {
            self.push(index, message::NEW_SET, flag::CREATE, &new_set(self.table, set, number));
        }
        // All chains before any rule: rules jump.
        for chain in ruleset.chains.values() {
            self.new_chain(index, chain);
        }
        for chain in ruleset.chains.values() {
            self.rules(index, chain, Existing::None);
        }
    }

    fn new_chain(&mut self, index: usize, chain: &Chain) {
        let mut body = inet();
        body.put_text(1, self.table);
        body.put_text(3, &chain.name);
        if let Some(hook) = chain.hook {
            body.nest(4, |point| {
                point.put_be32(1, hook.number);
                point.put_be32(2, hook.priority.cast_unsigned());
            });
            body.put_be32(5, ACCEPT);
            body.put_text(7, hook.kind);
        }
        self.push(index, message::NEW_CHAIN, flag::CREATE, &body);
    }

    fn rules(&mut self, index: usize, chain: &Chain, existing: Existing) {
        let of_chain = || {
            let mut body = inet();
            body.put_text(1, self.table);
            body.put_text(2, &chain.name);
            body
        };
        let (delete, mut new) = (of_chain(), Vec::new());
        for rule in chain.rules.iter() {
            let mut body = of_chain();
            put_expressions(&mut body, rule);
            put_comment(&mut body, rule);
            new.push(body);
        }
        if existing == Existing::Replace {
            self.push(index, message::DELETE_RULE, 0, &delete);
        }
        for body in new {
            self.push(index, message::NEW_RULE, flag::CREATE | flag::APPEND, &body);
        }
    }

    fn member(&mut self, index: usize, member: &Member, deed: Deed) {
        let (set, key) = member_key(member);
        self.element(index, set, deed, &key, |data| {
            if let Member::Reach(_, _, address) = member {
                data.put(1, &octets(*address));
            }
        });
    }

    fn element(&mut self, index: usize, set: &'static Set, deed: Deed, key: &Key, data: impl FnOnce(&mut Writer)) {
        /// A list of elements is one attribute: 64 KiB at most, and an element is far below 200 bytes.
        const LIST_BYTES: usize = 48 << 10;
        let delete = deed == Deed::Delete;
        let fits = |it: &Elements| it.set == set && it.delete == delete && it.list.bytes().len() < LIST_BYTES;
        if !self.pending.as_ref().is_some_and(fits) {
            self.flush();
        }
        let pending =
            self.pending.get_or_insert_with(|| Elements { set, delete, origin: index, list: Writer::default() });
        pending.list.nest(1, |element| {
            element.nest(1, |value| value.put(1, &key.from));
            if !delete && set.data != Data::None {
                element.nest(2, data);
            }
            if let Some(to) = &key.to {
                element.nest(10, |value| value.put(1, to));
            }
        });
    }

    fn flush(&mut self) {
        let Some(Elements { set, delete, origin, list }) = self.pending.take() else { return };
        let mut body = inet();
        body.put_text(1, self.table);
        body.put_text(2, set.name);
        body.put(3 | 1 << 15, list.bytes());
        let (kind, flags) = if delete {
            (message::DELETE_ELEMENTS, 0)
        } else {
            // Exclusive: an element that is there already means that the table is not what it was taken for.
            (message::NEW_ELEMENTS, flag::CREATE | flag::EXCLUSIVE)
        };
        self.batch.push(kind, flags, &body);
        self.origin.push(origin);
    }

    fn push(&mut self, index: usize, kind: u16, flags: u16, body: &Writer) {
        self.flush();
        self.batch.push(kind, flags, body);
        self.origin.push(index);
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Deed {
    Add,
    Delete,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Existing {
    None,
    Replace,
}

/// Verdicts.
const ACCEPT: u32 = 1;
const GOTO: i32 = -4;

fn new_set(table: &str, set: &Set, number: u32) -> Writer {
    let mut body = inet();
    body.put_text(1, table);
    body.put_text(2, set.name);
    body.put_be32(3, set.flags());
    body.put_be32(4, Set::printed(set.key));
    body.put_be32(5, set.key_bytes());
    match set.data {
        Data::None => {}
        Data::Verdict => body.put_be32(6, super::ruleset::VERDICT_DATA),
        Data::Value(fields) => {
            body.put_be32(6, Set::printed(fields));
            body.put_be32(7, set.data_bytes());
        }
    }
    body.put_be32(10, number);
    if set.ranges {
        body.nest(9, |description| {
            description.nest(2, |fields| {
                for (_, length) in set.key {
                    fields.nest(1, |field| field.put_be32(1, *length));
                }
            });
        });
    }
    body
}

/// The key of an element; of a range its first and last.
struct Key {
    from: Vec<u8>,
    to: Option<Vec<u8>>,
}

fn point(fields: &[&[u8]]) -> Key {
    let mut from = Vec::new();
    for field in fields {
        from.extend_from_slice(field);
        from.resize(from.len().next_multiple_of(4), 0);
    }
    Key { from, to: None }
}

fn frontend_key(frontend: Frontend) -> Key {
    match frontend {
        Frontend::Vip(address) => point(&[&octets(address)]),
        Frontend::Port(_, PublishedPort { protocol, port }) => point(&[&[protocol.number()], &port.to_be_bytes()]),
    }
}

fn slot_key(frontend: Frontend, slot: u32) -> Key {
    let mut key = frontend_key(frontend);
    key.from.extend_from_slice(&slot.to_ne_bytes());
    key
}

fn backend_value(kind: Kind, backend: Backend) -> Vec<u8> {
    let address = octets(backend.address);
    if kind.is_port() { point(&[&address, &backend.port.to_be_bytes()]).from } else { address }
}

fn member_key(member: &Member) -> (&'static Set, Key) {
    let family = member.family();
    match member {
        Member::Owner(link, address) => (Set::owner(family), point(&[&link_bytes(link), &octets(*address)])),
        Member::Reach(link, subnet, _) => {
            let link = link_bytes(link);
            let key = |end: IpAddr| point(&[&link, &octets(end)]).from;
            (Set::reach(family), Key { from: key(subnet.network()), to: Some(key(subnet.broadcast())) })
        }
        Member::Node(address) => (Set::nodes(family), point(&[&octets(*address)])),
        Member::Same(from, to) => (Set::same(family), ranges(*from, *to)),
        Member::Closed(from, to) => (Set::closed(family), ranges(*from, *to)),
    }
}

fn link_bytes(link: &LinkName) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..link.as_str().len()].copy_from_slice(link.as_str().as_bytes());
    bytes
}

fn ranges(from: IpNet, to: IpNet) -> Key {
    let first = point(&[&octets(from.network()), &octets(to.network())]);
    let last = point(&[&octets(from.broadcast()), &octets(to.broadcast())]);
    Key { from: first.from, to: Some(last.from) }
}

/// Lists the table. Whatever in it is not ours makes `foundation` odd, so that the plan makes the table anew.
pub(super) fn observe(socket: &mut Socket, table: &str) -> Result<Table, NetlinkError> {
    let mut body = inet();
    body.put_text(1, table);
    if socket.get(message::GET_TABLE, &body, |_| Some(()))?.is_none() {
        return Ok(Table::absent());
    }
    let mut reader = Reader { table: Table::absent(), lines: Vec::new() };
    let rules = rules(socket, table)?;
    for (name, hook) in chains(socket, table)? {
        reader.chain(&name, hook, rules.get(&name).map_or(&[][..], Vec::as_slice));
    }
    for name in sets(socket, table, &mut reader.lines)? {
        if let Some(set) = Set::named(&name) {
            elements(socket, table, set, |element| reader.element(set, element))?;
        }
    }
    reader.lines.sort();
    reader.table.foundation = reader.lines.join("\n");
    Ok(reader.table)
}

/// Comments of the rules of each chain, in order.
fn rules(socket: &mut Socket, table: &str) -> Result<BTreeMap<String, Vec<String>>, NetlinkError> {
    let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut query = inet();
    query.put_text(1, table);
    socket.dump(message::GET_RULE, &query, |_, payload| {
        if payload.first() == Some(&INET) && body(payload).find(1).map(read_text).as_deref() == Some(table) {
            let chain = body(payload).find(2).map(read_text).unwrap_or_default();
            let comment = body(payload).find(7).map(read_comment).unwrap_or_default();
            found.entry(chain).or_default().push(comment);
        }
    })?;
    Ok(found)
}

/// Names and hooks; a hook that cannot be one of ours stands as a line of words.
fn chains(socket: &mut Socket, table: &str) -> Result<Vec<(String, Result<Option<Hook>, String>)>, NetlinkError> {
    let mut found = Vec::new();
    socket.dump(message::GET_CHAIN, &inet(), |_, payload| {
        if body(payload).find(1).map(read_text).as_deref() == Some(table) {
            let name = body(payload).find(3).map(read_text).unwrap_or_default();
            found.push((name, hook(payload)));
        }
    })?;
    Ok(found)
}

fn hook(payload: &[u8]) -> Result<Option<Hook>, String> {
    let Some(point) = body(payload).find(4) else { return Ok(None) };
    let number = attributes(point).find(1).and_then(read_be32).unwrap_or_default();
    let priority = attributes(point).find(2).and_then(read_be32).unwrap_or_default().cast_signed();
    let policy = body(payload).find(5).and_then(read_be32);
    let kind = body(payload).find(7).map(read_text).unwrap_or_default();
    match (["filter", "nat"].into_iter().find(|it| *it == kind), policy) {
        (Some(kind), Some(ACCEPT)) => Ok(Some(Hook { kind, number, priority })),
        _ => Err(format!("{kind} {number} {priority} {policy:?}")),
    }
}

/// Names of the sets; their shapes go to `lines`.
fn sets(socket: &mut Socket, table: &str, lines: &mut Vec<String>) -> Result<Vec<String>, NetlinkError> {
    let mut found = Vec::new();
    let mut query = inet();
    query.put_text(1, table);
    socket.dump(message::GET_SET, &query, |_, payload| {
        if body(payload).find(1).map(read_text).as_deref() == Some(table) {
            let number = |kind: u16| body(payload).find(kind).and_then(read_be32).unwrap_or_default();
            let name = body(payload).find(2).map(read_text).unwrap_or_default();
            let data = if number(6) == super::ruleset::VERDICT_DATA { [number(6), 0] } else { [number(6), number(7)] };
            lines.push(set_line(&name, number(3), [number(4), number(5)], data));
            found.push(name);
        }
    })?;
    Ok(found)
}

fn elements(socket: &mut Socket, table: &str, set: &Set, mut each: impl FnMut(&[u8])) -> Result<(), NetlinkError> {
    let mut query = inet();
    query.put_text(1, table);
    query.put_text(2, set.name);
    socket.dump(message::GET_ELEMENTS, &query, |_, payload| {
        let list = body(payload).find(3).unwrap_or_default();
        attributes(list).for_each(|(_, element)| each(element));
    })
}

struct Reader {
    table: Table,
    lines: Vec<String>,
}

impl Reader {
    fn chain(&mut self, name: &str, hook: Result<Option<Hook>, String>, rules: &[String]) {
        let rules = fingerprint(rules.iter().map(String::as_str));
        match (hook, Balancer::parse(name)) {
            (Ok(None), Some(balancer)) => self.table.insert_balancer(balancer, rules),
            (Ok(hook), _) => {
                self.lines.push(chain_line(name, hook));
                self.table.fixed.insert(name.to_owned(), rules);
            }
            (Err(words), _) => self.lines.push(format!("chain {name} {words}")),
        }
    }

    fn element(&mut self, set: &Set, element: &[u8]) {
        if self.read_element(set, element).is_none() {
            self.lines.push(format!("element of {} that is not ours", set.name));
        }
    }

    fn read_element(&mut self, set: &Set, element: &[u8]) -> Option<()> {
        let value = |kind: u16| attributes(attributes(element).find(kind)?).find(1);
        let key = value(1)?;
        if let Some(kind) = Kind::ALL.into_iter().find(|kind| set == Set::slots(*kind)) {
            let (frontend, slot) = key.split_at_checked(key.len().checked_sub(4)?)?;
            let slot = read_u32(slot)?;
            self.table.slots.insert((read_frontend(kind, frontend)?, slot), read_backend(kind, value(2)?)?);
        } else if let Some(kind) = Kind::ALL.into_iter().find(|kind| set == Set::routes(*kind)) {
            let verdict = attributes(attributes(element).find(2)?).find(2)?;
            let to = Balancer::parse(&attributes(verdict).find(2).map(read_text)?)?;
            let goes = attributes(verdict).find(1).and_then(read_be32)? == GOTO.cast_unsigned();
            (goes && to.kind == kind).then_some(())?;
            self.table.insert_route(read_frontend(kind, key)?, to);
        } else {
            self.table.members.insert(read_member(set, key, value(10), value(2))?);
        }
        Some(())
    }
}

fn read_frontend(kind: Kind, key: &[u8]) -> Option<Frontend> {
    if kind.is_port() {
        let protocol = Protocol::from_number(*key.first()?)?;
        let port = read_be16(key.get(4..)?)?;
        return Some(Frontend::Port(kind.family(), PublishedPort { protocol, port }));
    }
    Some(Frontend::Vip(read_address(key)?))
}

fn read_backend(kind: Kind, value: &[u8]) -> Option<Backend> {
    if !kind.is_port() {
        return Some(Backend { address: read_address(value)?, port: 0 });
    }
    let (address, port) = value.split_at_checked(value.len().checked_sub(4)?)?;
    Some(Backend { address: read_address(address)?, port: read_be16(port)? })
}

fn read_member(set: &Set, key: &[u8], last: Option<&[u8]>, data: Option<&[u8]>) -> Option<Member> {
    for family in [Family::V4, Family::V6] {
        if set == Set::nodes(family) {
            return Some(Member::Node(read_address(key)?));
        }
        if set == Set::owner(family) {
            let (link, address) = key.split_at_checked(16)?;
            return Some(Member::Owner(LinkName::seen(read_text(link)), read_address(address)?));
        }
        if set == Set::reach(family) {
            let ((link, first), (_, last)) = (key.split_at_checked(16)?, last?.split_at_checked(16)?);
            return Some(Member::Reach(LinkName::seen(read_text(link)), read_net(first, last)?, read_address(data?)?));
        }
        if set == Set::same(family) || set == Set::closed(family) {
            let middle = key.len() / 2;
            let net = |range: std::ops::Range<usize>| read_net(key.get(range.clone())?, last?.get(range)?);
            let (from, to) = (net(0..middle)?, net(middle..key.len())?);
            return Some(if set == Set::same(family) { Member::Same(from, to) } else { Member::Closed(from, to) });
        }
    }
    None
}

/// The subnet from its first and its last address.
fn read_net(first: &[u8], last: &[u8]) -> Option<IpNet> {
    match (read_address(first)?, read_address(last)?) {
        (IpAddr::V4(first), IpAddr::V4(last)) => {
            let length = (first.to_bits() ^ last.to_bits()).leading_zeros();
            let net = Ipv4Net::new(first, u8::try_from(length).ok()?).ok()?;
            (net.network() == first && net.broadcast() == last).then_some(net.into())
        }
        (IpAddr::V6(first), IpAddr::V6(last)) => {
            let length = (first.to_bits() ^ last.to_bits()).leading_zeros();
            let net = Ipv6Net::new(first, u8::try_from(length).ok()?).ok()?;
            (net.network() == first && net.broadcast() == last).then_some(net.into())
        }
        _ => None,
    }
}
