//! Packets in, datagrams out, and the other way round. No sockets, no clock but that of [`Tunn`].

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use defguard_boringtun::noise::errors::WireGuardError;
use defguard_boringtun::noise::handshake::parse_handshake_anon;
use defguard_boringtun::noise::rate_limiter::RateLimiter;
use defguard_boringtun::noise::{Packet, Tunn, TunnResult};
use defguard_boringtun::x25519;

use super::{KEYS_MAX, Peer as Said, PrivateKey, PublicKey, Sessions, Table};

/// Where the engine's work goes.
pub(super) trait Out {
    /// To another machine.
    fn send(&mut self, to: SocketAddr, datagram: &[u8]);
    /// To this machine.
    fn deliver(&mut self, packet: &[u8]);
}

/// Between two ticks.
pub(super) const TICK: std::time::Duration = std::time::Duration::from_millis(250);
/// Ticks between the first tries to reach a peer. boringtun's own follow, each five seconds.
const TRIES: [u32; 6] = [1, 1, 2, 4, 8, 16];
/// Ticks without a word to a peer after which it is sent one: what lies between may forget who speaks with whom.
const KEEP_ALIVE: u32 = 100;
/// Packets that wait for a session, for each peer; the newest. And the ticks after which nobody waits for them any more.
const WAITING_MAX: usize = 256;
const WAITS: u32 = 20;
/// Handshakes a second, for each key of this machine, before whoever asks must show that it can be answered.
const HANDSHAKES: u64 = 100;
/// Of one datagram, and of one packet.
pub(super) const BYTES_MAX: usize = 65_536;
/// WireGuard's message that bears packets, and its "come again and show that you are there".
const DATA: u8 = 4;
const COOKIE: u8 = 3;

/// The state of all sessions.
pub(super) struct Engine {
    identities: Vec<Identity>,
    peers: BTreeMap<Ipv4Addr, Peer>,
    /// By the number that the other side calls a pair of keys by, which is ours.
    by_index: HashMap<u32, Ipv4Addr>,
    by_keys: HashMap<(PublicKey, PublicKey), Ipv4Addr>,
    next_index: u32,
    room: Box<[u8]>,
}

/// One of this machine's keys.
struct Identity {
    key: PrivateKey,
    public: PublicKey,
    secret: x25519::StaticSecret,
    limiter: Arc<RateLimiter>,
}

struct Peer {
    said: Said,
    /// Where it spoke from last, and before that, where it was said to be.
    endpoint: SocketAddr,
    /// The preferred one first.
    pairs: Vec<Pair>,
    waiting: VecDeque<Box<[u8]>>,
    /// Ticks since it was sent something.
    quiet: u32,
    /// Ticks for which there is no session.
    apart: u32,
}

/// One of our keys and one of theirs.
struct Pair {
    ours: PublicKey,
    theirs: PublicKey,
    index: u32,
    tunn: Tunn,
    tries: usize,
    /// Ticks.
    next_try: u32,
    /// The other side believes that what we hear is of before: it has another clock than it had. We greet it.
    behind: bool,
}

impl Pair {
    fn has_session(&self) -> bool {
        self.tunn.time_since_last_handshake().is_some()
    }

    fn greet(&mut self, again: bool, to: SocketAddr, room: &mut [u8], out: &mut impl Out) {
        if let TunnResult::WriteToNetwork(hello) = self.tunn.format_handshake_initiation(room, again) {
            out.send(to, hello);
        }
    }
}

impl Peer {
    /// By which it is spoken with.
    fn speaking(&mut self) -> Option<&mut Pair> {
        self.pairs.iter_mut().find(|pair| pair.has_session())
    }

    /// Where it is sent what there is to send. Where it was last heard may be nobody any more, and then the same on the other
    /// side, so that neither would ever find the other: what was told is tried in turn.
    fn to(&self) -> SocketAddr {
        if (self.apart / WAITS) % 2 == 1 { self.said.endpoint } else { self.endpoint }
    }

    fn send(&mut self, packet: &[u8], room: &mut [u8], out: &mut impl Out) {
        let to = self.to();
        if let Some(pair) = self.speaking() {
            if let TunnResult::WriteToNetwork(datagram) = pair.tunn.encapsulate(packet, room) {
                out.send(to, datagram);
                self.quiet = 0;
            }
            return;
        }
        if !packet.is_empty() {
            if self.waiting.len() == WAITING_MAX {
                self.waiting.pop_front();
            }
            self.waiting.push_back(packet.into());
        }
        for pair in &mut self.pairs {
            pair.greet(false, to, room, out);
        }
    }

    fn send_waiting(&mut self, room: &mut [u8], out: &mut impl Out) {
        if self.waiting.is_empty() || self.speaking().is_none() {
            return;
        }
        for packet in std::mem::take(&mut self.waiting) {
            self.send(&packet, room, out);
        }
    }

    fn tick(&mut self, room: &mut [u8], out: &mut impl Out) {
        let spoken_with = self.speaking().is_some();
        self.apart = if spoken_with { 0 } else { self.apart + 1 };
        if self.apart % WAITS == WAITS - 1 {
            self.waiting.clear();
        }
        let to = self.to();
        for (place, pair) in self.pairs.iter_mut().enumerate() {
            if let TunnResult::WriteToNetwork(datagram) = pair.tunn.update_timers(room) {
                out.send(to, datagram);
            }
            if std::mem::take(&mut pair.behind) {
                pair.greet(true, to, room, out);
            }
            // An old pair need not come to life again beside one that lives.
            if pair.has_session() || (spoken_with && place > 0) {
                pair.tries = 0;
                pair.next_try = TRIES[0];
            } else if pair.tries < TRIES.len() {
                pair.next_try -= 1;
                if pair.next_try == 0 {
                    pair.tries += 1;
                    pair.next_try = TRIES.get(pair.tries).copied().unwrap_or(1);
                    pair.greet(true, to, room, out);
                }
            }
        }
        self.quiet += 1;
        if self.quiet >= KEEP_ALIVE {
            self.quiet = 0;
            self.send(&[], room, out);
        }
    }
}

impl Engine {
    /// `seed`: a random number, so that what comes for another process of before is not taken for ours.
    pub fn new(seed: u32) -> Self {
        Engine {
            identities: Vec::new(),
            peers: BTreeMap::new(),
            by_index: HashMap::new(),
            by_keys: HashMap::new(),
            next_index: seed,
            room: vec![0; BYTES_MAX + 64].into(),
        }
    }

    /// Goes on with what is as before.
    pub fn apply(&mut self, table: &Table, out: &mut impl Out) {
        let mut known = std::mem::take(&mut self.identities);
        for key in table.keys.iter().take(KEYS_MAX) {
            let place = known.iter().position(|identity| identity.key == *key);
            self.identities.push(place.map_or_else(|| Identity::of(key), |place| known.swap_remove(place)));
        }
        let mut before = std::mem::take(&mut self.peers);
        self.by_keys.clear();
        // A key stays with whom it is known to be: whoever says it as well comes too late.
        for said in &table.peers {
            let pairs = before.get(&said.address).map(|peer| peer.pairs.as_slice()).unwrap_or_default();
            let still = pairs.iter().filter(|pair| said.keys.contains(&pair.theirs));
            self.by_keys.extend(still.map(|pair| ((pair.ours, pair.theirs), said.address)));
        }
        for said in &table.peers {
            let peer = before.remove(&said.address);
            let peer = self.peer(said, peer, out);
            self.peers.insert(said.address, peer);
        }
        self.by_index.clear();
        for (address, peer) in &self.peers {
            self.by_index.extend(peer.pairs.iter().map(|pair| (pair.index, *address)));
        }
    }

    fn peer(&mut self, said: &Said, before: Option<Peer>, out: &mut impl Out) -> Peer {
        let mut peer = before.unwrap_or_else(|| Peer {
            said: said.clone(),
            endpoint: said.endpoint,
            pairs: Vec::new(),
            waiting: VecDeque::new(),
            quiet: 0,
            apart: 0,
        });
        if peer.said.endpoint != said.endpoint {
            peer.endpoint = said.endpoint;
        }
        peer.said = said.clone();
        let mut known = std::mem::take(&mut peer.pairs);
        // Who prefers what must not differ between both ends for long: sessions go by the newest of both.
        for identity in 0..self.identities.len() {
            for theirs in said.keys.iter().take(KEYS_MAX) {
                let ours = self.identities[identity].public;
                // A key is one machine's; whoever says another's as well has not got it.
                if *self.by_keys.entry((ours, *theirs)).or_insert(said.address) != said.address {
                    continue;
                }
                let place = known.iter().position(|pair| (pair.ours, pair.theirs) == (ours, *theirs));
                let pair = match place {
                    Some(place) => known.swap_remove(place),
                    None => {
                        let mut pair = self.pair(identity, *theirs);
                        pair.greet(false, peer.endpoint, &mut self.room, out);
                        pair
                    }
                };
                peer.pairs.push(pair);
            }
        }
        peer
    }

    fn pair(&mut self, identity: usize, theirs: PublicKey) -> Pair {
        /// boringtun takes 24 bits of it.
        const INDEX: u32 = 0x00ff_ffff;
        loop {
            self.next_index = self.next_index.wrapping_add(1) & INDEX;
            if !self.by_index.contains_key(&self.next_index) {
                break;
            }
        }
        let (index, identity) = (self.next_index, &self.identities[identity]);
        let tunn = Tunn::new(identity.secret.clone(), theirs.point(), None, None, index, None);
        Pair { ours: identity.public, theirs, index, tunn, tries: 0, next_try: TRIES[0], behind: false }
    }

    /// A packet of this machine for another one.
    pub fn outgoing(&mut self, packet: &[u8], out: &mut impl Out) {
        let Some(std::net::IpAddr::V4(to)) = Tunn::dst_address(packet) else { return };
        if let Some(peer) = self.peers.get_mut(&to) {
            peer.send(packet, &mut self.room, out);
        }
    }

    /// What somebody sent. False: it is not for any session of ours.
    pub fn incoming(&mut self, datagram: &[u8], from: SocketAddr, out: &mut impl Out) -> bool {
        let index = match Tunn::parse_incoming_packet(datagram) {
            Ok(Packet::HandshakeInit(_)) => {
                self.greeted(datagram, from, out);
                return true;
            }
            Ok(Packet::HandshakeResponse(packet)) => packet.receiver_idx,
            Ok(Packet::PacketCookieReply(packet)) => packet.receiver_idx,
            Ok(Packet::PacketData(packet)) => packet.receiver_idx,
            Err(_) => return true,
        };
        let pair = index >> 8;
        let Some(address) = self.by_index.get(&pair) else { return false };
        self.take(*address, pair, datagram, from, out);
        true
    }

    /// Somebody wants a session; who it is, is only known by one of our keys.
    fn greeted(&mut self, datagram: &[u8], from: SocketAddr, out: &mut impl Out) {
        let mut cookie = [0; 64];
        for identity in &self.identities {
            match identity.limiter.verify_packet(Some(from.ip()), datagram, &mut cookie) {
                Ok(Packet::HandshakeInit(hello)) => {
                    let Ok(half) = parse_handshake_anon(&identity.secret, &identity.public.point(), &hello) else {
                        return;
                    };
                    let keys = (identity.public, PublicKey::of(half.peer_static_public));
                    let Some(address) = self.by_keys.get(&keys).copied() else { return };
                    let pairs = self.peers.get(&address).map(|peer| peer.pairs.as_slice()).unwrap_or_default();
                    if let Some(pair) = pairs.iter().find(|pair| (pair.ours, pair.theirs) == keys) {
                        let index = pair.index;
                        self.take(address, index, datagram, from, out);
                    }
                    return;
                }
                Err(TunnResult::WriteToNetwork(cookie)) => return out.send(from, cookie),
                // It is for another key.
                _ => {}
            }
        }
    }

    fn take(&mut self, address: Ipv4Addr, index: u32, datagram: &[u8], from: SocketAddr, out: &mut impl Out) {
        let Some(peer) = self.peers.get_mut(&address) else { return };
        let Some(pair) = peer.pairs.iter_mut().find(|pair| pair.index == index) else { return };
        let is_theirs = match pair.tunn.decapsulate(Some(from.ip()), datagram, &mut self.room) {
            TunnResult::WriteToTunnelV4(packet, source) => {
                if source == address {
                    out.deliver(packet);
                }
                true
            }
            TunnResult::WriteToNetwork(answer) => {
                out.send(from, answer);
                // That answer goes to everybody who asks too often.
                answer.first() != Some(&COOKIE)
            }
            TunnResult::WriteToTunnelV6(..) => true,
            TunnResult::Done => datagram.first() == Some(&DATA),
            TunnResult::Err(WireGuardError::WrongTai64nTimestamp) => {
                pair.behind = true;
                false
            }
            TunnResult::Err(_) => false,
        };
        if is_theirs {
            peer.endpoint = from;
            peer.send_waiting(&mut self.room, out);
        }
    }

    /// To be called each [`TICK`].
    pub fn tick(&mut self, out: &mut impl Out) {
        for identity in &self.identities {
            identity.limiter.reset_count();
        }
        for peer in self.peers.values_mut() {
            peer.tick(&mut self.room, out);
        }
    }

    pub fn sessions(&mut self) -> Sessions {
        let (mut with, mut by) = (BTreeSet::new(), BTreeSet::new());
        for (address, peer) in &mut self.peers {
            if let Some(pair) = peer.speaking() {
                with.insert(*address);
                by.insert(pair.ours);
            }
        }
        Sessions { with, by }
    }

    /// Each of them is spoken with.
    pub fn is_whole(&mut self) -> bool {
        self.peers.values_mut().all(|peer| peer.speaking().is_some())
    }
}

impl Identity {
    fn of(key: &PrivateKey) -> Self {
        let (secret, public) = (key.secret(), key.public());
        let limiter = Arc::new(RateLimiter::new(&public.point(), HANDSHAKES));
        Identity { key: key.clone(), public, secret, limiter }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A machine, and what it has been given.
    struct Machine {
        engine: Engine,
        at: SocketAddr,
        delivered: Vec<Vec<u8>>,
    }

    /// What is on its way: from, to, bytes.
    type Wire = VecDeque<(SocketAddr, SocketAddr, Vec<u8>)>;

    struct Hand<'a> {
        at: SocketAddr,
        wire: &'a mut Wire,
        delivered: &'a mut Vec<Vec<u8>>,
    }

    impl Out for Hand<'_> {
        fn send(&mut self, to: SocketAddr, datagram: &[u8]) {
            self.wire.push_back((self.at, to, datagram.to_vec()));
        }

        fn deliver(&mut self, packet: &[u8]) {
            self.delivered.push(packet.to_vec());
        }
    }

    impl Machine {
        fn new(number: u8) -> Machine {
            let at = SocketAddr::from(([192, 0, 2, number], PORT));
            Machine { engine: Engine::new(u32::from(number) << 16), at, delivered: Vec::new() }
        }

        fn with<T>(&mut self, wire: &mut Wire, work: impl FnOnce(&mut Engine, &mut Hand<'_>) -> T) -> T {
            work(&mut self.engine, &mut Hand { at: self.at, wire, delivered: &mut self.delivered })
        }
    }

    const PORT: u16 = super::super::PORT;

    fn key(number: u8) -> PrivateKey {
        PrivateKey::new([number; 32])
    }

    fn inside(number: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 128, 0, number)
    }

    fn peer(number: u8, keys: &[u8]) -> Said {
        let endpoint = SocketAddr::from(([192, 0, 2, number], PORT));
        Said { address: inside(number), endpoint, keys: keys.iter().map(|it| key(*it).public()).collect() }
    }

    fn table(keys: &[u8], peers: Vec<Said>) -> Table {
        Table { device: "w0".into(), port: PORT, keys: keys.iter().map(|it| key(*it)).collect(), peers }
    }

    fn packet(from: u8, to: u8, payload: &[u8]) -> Vec<u8> {
        let mut packet = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0];
        packet.extend(inside(from).octets());
        packet.extend(inside(to).octets());
        packet.extend(payload);
        let length = u16::try_from(packet.len()).unwrap().to_be_bytes();
        packet[2..4].copy_from_slice(&length);
        packet
    }

    /// Carries all that is on the wire, and what comes of it, to whom it is for; what nobody is there for is lost.
    fn carry(machines: &mut [&mut Machine], wire: &mut Wire) -> Vec<Vec<u8>> {
        let mut seen = Vec::new();
        while let Some((from, to, bytes)) = wire.pop_front() {
            seen.push(bytes.clone());
            if let Some(machine) = machines.iter_mut().find(|machine| machine.at == to) {
                machine.with(wire, |engine, out| engine.incoming(&bytes, from, out));
            }
        }
        seen
    }

    fn two() -> (Machine, Machine, Wire) {
        let (mut one, mut other, mut wire) = (Machine::new(1), Machine::new(2), Wire::new());
        one.with(&mut wire, |engine, out| engine.apply(&table(&[11], vec![peer(2, &[22])]), out));
        other.with(&mut wire, |engine, out| engine.apply(&table(&[22], vec![peer(1, &[11])]), out));
        (one, other, wire)
    }

    fn send(from: &mut Machine, to: &mut Machine, wire: &mut Wire, packet: &[u8]) -> Vec<Vec<u8>> {
        from.with(wire, |engine, out| engine.outgoing(packet, out));
        carry(&mut [from, to], wire)
    }

    #[test]
    fn what_is_sent_arrives_and_nobody_between_can_read_it() {
        let (mut one, mut other, mut wire) = two();
        let said = b"the quick brown fox jumps over the lazy dog";
        // Before there is a session it waits for one.
        let (there, back) = (packet(1, 2, said), packet(2, 1, b"yes"));
        let mut seen = send(&mut one, &mut other, &mut wire, &there);
        assert_eq!(other.delivered, std::slice::from_ref(&there));
        seen.extend(send(&mut other, &mut one, &mut wire, &back));
        assert_eq!(one.delivered, [back]);
        assert!(seen.iter().all(|datagram| datagram.windows(8).all(|part| part != &said[..8])));
        assert_eq!(one.engine.sessions().with, BTreeSet::from([inside(2)]));
        assert_eq!(other.engine.sessions().by, BTreeSet::from([key(22).public()]));
        // Said again, it is not believed.
        let last = seen.last().unwrap().clone();
        let from = other.at;
        one.with(&mut wire, |engine, out| engine.incoming(&last, from, out));
        assert_eq!(one.delivered.len(), 1);
    }

    #[test]
    fn nobody_speaks_from_another_machines_address_or_without_a_key() {
        let (mut one, mut other, mut wire) = two();
        carry(&mut [&mut one, &mut other], &mut wire);
        send(&mut one, &mut other, &mut wire, &packet(3, 2, b"I am three"));
        assert!(other.delivered.is_empty());
        // A stranger that knows everybody's public keys.
        let mut stranger = Machine::new(9);
        stranger.with(&mut wire, |engine, out| engine.apply(&table(&[99], vec![peer(2, &[22])]), out));
        for _ in 0..100 {
            stranger.with(&mut wire, |engine, out| engine.tick(out));
            carry(&mut [&mut one, &mut other, &mut stranger], &mut wire);
        }
        send(&mut stranger, &mut other, &mut wire, &packet(1, 2, b"I am one"));
        assert!(other.delivered.is_empty() && stranger.engine.sessions().with.is_empty());
        for garbage in [&b""[..], b"\x04", &[4; 40], &[1; 148], &[2; 92], &[3; 64], &[0xff; 1500]] {
            other.with(&mut wire, |engine, out| engine.incoming(garbage, stranger.at, out));
        }
        assert_eq!(other.engine.peers[&inside(1)].endpoint, one.at, "it is sent to who is meant, not to who asks");
        send(&mut one, &mut other, &mut wire, &packet(1, 2, b"still here"));
        assert_eq!(other.delivered.len(), 1);
    }

    #[test]
    fn keys_change_one_after_the_other_and_no_packet_is_lost() {
        let (mut one, mut other, mut wire) = two();
        carry(&mut [&mut one, &mut other], &mut wire);
        let mut sent = 0;
        let mut both_ways = |one: &mut Machine, other: &mut Machine, wire: &mut Wire| {
            sent += 1;
            send(one, other, wire, &packet(1, 2, &[sent]));
            send(other, one, wire, &packet(2, 1, &[sent]));
            assert_eq!((one.delivered.len(), other.delivered.len()), (sent.into(), sent.into()));
        };
        both_ways(&mut one, &mut other, &mut wire);
        let steps: [(&[u8], &[u8]); 6] = [
            (&[12, 11], &[11]),
            (&[12, 11], &[12, 11]),
            (&[12], &[12, 11]),
            (&[12], &[12]),
            (&[13, 12], &[12]),
            (&[13, 12], &[13, 12]),
        ];
        for (has, known) in steps {
            one.with(&mut wire, |engine, out| engine.apply(&table(has, vec![peer(2, &[22])]), out));
            both_ways(&mut one, &mut other, &mut wire);
            other.with(&mut wire, |engine, out| engine.apply(&table(&[22], vec![peer(1, known)]), out));
            both_ways(&mut one, &mut other, &mut wire);
            for _ in 0..4 {
                one.with(&mut wire, |engine, out| engine.tick(out));
                other.with(&mut wire, |engine, out| engine.tick(out));
                carry(&mut [&mut one, &mut other], &mut wire);
            }
            both_ways(&mut one, &mut other, &mut wire);
        }
        assert_eq!(one.engine.sessions().by, BTreeSet::from([key(13).public()]), "the newest that both know");
    }

    #[test]
    fn who_begins_anew_is_heard_again_and_who_moves_is_found() {
        let (mut one, mut other, mut wire) = two();
        send(&mut one, &mut other, &mut wire, &packet(1, 2, b"a"));
        assert_eq!(other.delivered.len(), 1);
        // Another process, with the same key; nothing of the old one's sessions is known to it.
        let mut anew = Machine::new(2);
        anew.engine.next_index = 7 << 16;
        assert!(!anew.with(&mut wire, |engine, out| engine.incoming(
            &[4, 0, 0, 0, 1, 2, 3, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            one.at,
            out
        )));
        anew.with(&mut wire, |engine, out| engine.apply(&table(&[22], vec![peer(1, &[11])]), out));
        carry(&mut [&mut one, &mut anew], &mut wire);
        send(&mut one, &mut anew, &mut wire, &packet(1, 2, b"b"));
        assert_eq!(anew.delivered.len(), 1, "without a packet of its own, and at once");
        // It is somewhere else all of a sudden, as behind a router that has begun anew.
        anew.at = SocketAddr::from(([198, 51, 100, 7], 40_000));
        send(&mut anew, &mut one, &mut wire, &packet(2, 1, b"c"));
        send(&mut one, &mut anew, &mut wire, &packet(1, 2, b"d"));
        assert_eq!((one.delivered.len(), anew.delivered.len()), (1, 2));
        // Until it is said to be elsewhere.
        let mut moved = peer(2, &[22]);
        moved.endpoint.set_port(9);
        one.with(&mut wire, |engine, out| engine.apply(&table(&[11], vec![moved.clone()]), out));
        assert_eq!(one.engine.peers[&inside(2)].endpoint, moved.endpoint);
    }

    #[test]
    fn a_lost_greeting_is_said_again_and_what_waits_is_bounded() {
        let (mut one, mut other, mut wire) = two();
        wire.clear();
        for _ in 0..1000 {
            one.with(&mut wire, |engine, out| engine.outgoing(&packet(1, 2, b"x"), out));
        }
        assert!(wire.is_empty(), "one greeting is under way, that of the beginning");
        for _ in 0..2 {
            one.with(&mut wire, |engine, out| engine.tick(out));
        }
        carry(&mut [&mut one, &mut other], &mut wire);
        assert_eq!(other.delivered.len(), WAITING_MAX);
        // What waits for too long is not said to whoever may be there by then.
        let (mut one, mut other, mut wire) = two();
        wire.clear();
        one.with(&mut wire, |engine, out| engine.outgoing(&packet(1, 2, b"old"), out));
        for _ in 0..WAITS {
            one.with(&mut wire, |engine, out| engine.tick(out));
        }
        carry(&mut [&mut one, &mut other], &mut wire);
        send(&mut one, &mut other, &mut wire, &packet(1, 2, b"new"));
        assert_eq!(other.delivered, [packet(1, 2, b"new")]);
    }

    #[test]
    fn both_are_found_again_where_they_were_told_to_be() {
        let (mut one, mut other, mut wire) = two();
        carry(&mut [&mut one, &mut other], &mut wire);
        let told = (one.at, other.at);
        // Both were somewhere else for a while, and learned that of each other.
        (one.at, other.at) = ("198.51.100.1:1".parse().unwrap(), "198.51.100.2:2".parse().unwrap());
        for (from, to) in [(1, 2), (2, 1), (1, 2)] {
            let said = packet(from, to, b"x");
            match from {
                1 => one.with(&mut wire, |engine, out| engine.outgoing(&said, out)),
                _ => other.with(&mut wire, |engine, out| engine.outgoing(&said, out)),
            }
            let from_told = |at: SocketAddr| {
                if at == told.0 {
                    one.at
                } else if at == told.1 {
                    other.at
                } else {
                    at
                }
            };
            wire.iter_mut().for_each(|(_, to, _)| *to = from_told(*to));
            carry(&mut [&mut one, &mut other], &mut wire);
        }
        assert_eq!(one.engine.peers[&inside(2)].endpoint, other.at);
        // Back, and nobody knows the other's session any more.
        (one.at, other.at) = told;
        for (machine, has, to) in [(&mut one, 11, peer(2, &[22])), (&mut other, 22, peer(1, &[11]))] {
            let learned = machine.engine.peers[&to.address].endpoint;
            machine.with(&mut wire, |engine, out| engine.apply(&table(&[has], vec![]), out));
            machine.with(&mut wire, |engine, out| engine.apply(&table(&[has], vec![to.clone()]), out));
            machine.engine.peers.get_mut(&to.address).unwrap().endpoint = learned;
        }
        wire.clear();
        for _ in 0..4 * WAITS {
            one.with(&mut wire, |engine, out| engine.tick(out));
            carry(&mut [&mut one, &mut other], &mut wire);
        }
        assert_eq!(one.engine.sessions().with.len(), 1);
    }

    #[test]
    fn who_says_anothers_key_as_its_own_gets_none_of_its_packets() {
        let (mut one, mut other, mut wire) = two();
        let mut thief = Machine::new(3);
        let both = vec![peer(2, &[22]), peer(3, &[22, 33])];
        one.with(&mut wire, |engine, out| engine.apply(&table(&[11], both), out));
        thief.with(&mut wire, |engine, out| engine.apply(&table(&[33], vec![peer(1, &[11])]), out));
        carry(&mut [&mut one, &mut other, &mut thief], &mut wire);
        send(&mut one, &mut other, &mut wire, &packet(1, 2, b"for two"));
        assert_eq!((other.delivered.len(), thief.delivered.len()), (1, 0));
        assert_eq!(one.engine.peers[&inside(3)].pairs.len(), 1);
        // Nor does one that comes first in every list.
        let earlier = Said { address: inside(0), ..peer(3, &[22, 33]) };
        one.with(&mut wire, |engine, out| engine.apply(&table(&[11], vec![earlier, peer(2, &[22])]), out));
        carry(&mut [&mut one, &mut other, &mut thief], &mut wire);
        send(&mut one, &mut other, &mut wire, &packet(1, 2, b"for two"));
        assert_eq!((other.delivered.len(), one.engine.peers[&inside(0)].pairs.len()), (2, 1));
    }
}
