//! From a question to its answer: bytes in, bytes out, nothing waits.

use std::net::IpAddr;

use hickory_proto::op::{Edns, Header, Message, MessageType, Metadata, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, PTR};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use hickory_proto::serialize::binary::{BinDecodable, BinDecoder};

use super::table::{Answer, Client, Table};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Transport {
    Udp,
    Tcp,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict<'t> {
    Reply(Vec<u8>),
    /// Ask outside, these resolvers if there are any.
    Forward(&'t [IpAddr]),
    /// Not a question; an answer to it could be answered in turn, for ever.
    Ignore,
}

/// What fits one packet on any path (DNS flag day 2020), and so on our links, whose packets hold 1,450 bytes.
const UDP_BYTES_MAX: u16 = 1232;
/// RFC 1035's, for who does not say that more is fine. musl's resolver has a buffer of this size.
const UDP_BYTES_PLAIN: u16 = 512;

/// `turn` is another number each time: lists begin at another address, so that who takes the first takes turns.
pub(super) fn answer<'t>(
    table: &'t Table,
    from: IpAddr,
    packet: &[u8],
    transport: Transport,
    turn: usize,
) -> Verdict<'t> {
    let question = match read(packet) {
        Ok(question) => question,
        Err(None) => return Verdict::Ignore,
        Err(Some(reply)) => return Verdict::Reply(reply),
    };
    let refuse = |code| Verdict::Reply(question.reply(transport, code, Vec::new()));
    let Some(client) = table.clients.get(&from.to_canonical()) else { return refuse(ResponseCode::Refused) };
    if question.edns.as_ref().is_some_and(|edns| edns.version() > 0) {
        return refuse(ResponseCode::BADVERS);
    }
    if !matches!(question.query.query_class(), DNSClass::IN | DNSClass::ANY) {
        return refuse(ResponseCode::Refused);
    }
    match look_up(table, client, question.query.name()) {
        Found::Name(answer) => {
            let records = question.records(answer, turn);
            Verdict::Reply(question.reply(transport, ResponseCode::NoError, records))
        }
        Found::Reverse(name) => {
            let records = question.pointer(name);
            Verdict::Reply(question.reply(transport, ResponseCode::NoError, records))
        }
        Found::Nobody => refuse(ResponseCode::NXDomain),
        Found::Outside => Verdict::Forward(&client.resolvers),
    }
}

/// The answer for when nobody outside gave one.
pub(super) fn failure(packet: &[u8], transport: Transport) -> Option<Vec<u8>> {
    let question = read(packet).ok()?;
    Some(question.reply(transport, ResponseCode::ServFail, Vec::new()))
}

/// Whether `reply` is an answer to `packet` and not something that a stranger guessed.
pub(super) fn answers(packet: &[u8], reply: &[u8]) -> bool {
    let (Ok(question), Ok((header, _))) = (read(packet), header(reply)) else { return false };
    let same = || match (packet.get(HEADER_BYTES..question.end), reply.get(HEADER_BYTES..question.end)) {
        (Some(asked), Some(repeated)) => asked.eq_ignore_ascii_case(repeated),
        _ => false,
    };
    // A server that could not read the question may leave it out.
    let unread = header.counts.queries == 0 && header.metadata.response_code != ResponseCode::NoError;
    header.metadata.id == question.metadata.id
        && header.metadata.message_type == MessageType::Response
        && (same() || unread)
}

/// The answer code of a reply, for who may ask somebody else.
pub(super) fn code(reply: &[u8]) -> Option<ResponseCode> {
    header(reply).ok().map(|(header, _)| header.metadata.response_code)
}

/// The largest reply that whoever asked can take by UDP.
pub(super) fn udp_bytes_max(packet: &[u8]) -> usize {
    let advertised = read(packet).ok().and_then(|question| question.edns).map(|edns| edns.max_payload());
    usize::from(advertised.unwrap_or(UDP_BYTES_PLAIN).max(UDP_BYTES_PLAIN))
}

enum Found<'t> {
    Name(&'t Answer),
    Reverse(&'t str),
    /// An address of ours that has no name.
    Nobody,
    Outside,
}

fn look_up<'t>(table: &'t Table, client: &'t Client, name: &Name) -> Found<'t> {
    let mut scopes = client.scopes.iter().filter_map(|id| table.scopes.get(id));
    if let Some(address) = reversed(name) {
        return match scopes.find_map(|scope| scope.reverse.get(&address)) {
            Some(name) => Found::Reverse(name),
            None if table.pools.iter().any(|pool| pool.contains(address)) => Found::Nobody,
            None => Found::Outside,
        };
    }
    let mut key = name.to_ascii();
    key.make_ascii_lowercase();
    match scopes.find_map(|scope| scope.names.get(key.trim_end_matches('.'))) {
        Some(answer) => Found::Name(answer),
        None => Found::Outside,
    }
}

/// The address that a name under `in-addr.arpa` or `ip6.arpa` stands for, if it is a whole one.
fn reversed(name: &Name) -> Option<IpAddr> {
    let net = name.parse_arpa_name().ok()?;
    (net.prefix_len() == net.max_prefix_len()).then(|| net.addr())
}

const HEADER_BYTES: usize = 12;

struct Question {
    metadata: Metadata,
    query: Query,
    /// Where in the packet the question ends.
    end: usize,
    edns: Option<Edns>,
}

fn header(packet: &[u8]) -> Result<(Header, BinDecoder<'_>), ()> {
    let mut decoder = BinDecoder::new(packet);
    let header = Header::read(&mut decoder).map_err(drop)?;
    Ok((header, decoder))
}

/// The error is what to say to it, if anything.
fn read(packet: &[u8]) -> Result<Question, Option<Vec<u8>>> {
    let (header, mut decoder) = header(packet).map_err(|()| None)?;
    let Header { metadata, counts, .. } = header;
    if metadata.message_type != MessageType::Query {
        return Err(None);
    }
    let complain = |code| Message::error_msg(metadata.id, metadata.op_code, code).to_vec().ok();
    if metadata.op_code != OpCode::Query {
        return Err(complain(ResponseCode::NotImp));
    }
    if counts.queries != 1 {
        return Err(complain(ResponseCode::FormErr));
    }
    let query = Query::read(&mut decoder).map_err(|_| complain(ResponseCode::FormErr))?;
    // What else there is matters only for its EDNS record; something odd in it is no reason not to answer.
    let edns = if counts.additionals > 0 { Message::from_vec(packet).ok().and_then(|whole| whole.edns) } else { None };
    Ok(Question { metadata, query, end: decoder.index(), edns })
}

impl Question {
    fn records(&self, answer: &Answer, turn: usize) -> Vec<Record> {
        let wanted = self.query.query_type();
        let v4 = matches!(wanted, RecordType::A | RecordType::ANY);
        let v6 = matches!(wanted, RecordType::AAAA | RecordType::ANY);
        let mut data: Vec<RData> = answer
            .addresses
            .iter()
            .filter_map(|address| match address {
                IpAddr::V4(address) if v4 => Some(RData::A(A(*address))),
                IpAddr::V6(address) if v6 => Some(RData::AAAA(AAAA(*address))),
                _ => None,
            })
            .collect();
        if !data.is_empty() {
            let first = turn % data.len();
            data.rotate_left(first);
        }
        let name = self.query.name();
        data.into_iter().map(|data| Record::from_rdata(name.clone(), answer.ttl_seconds, data)).collect()
    }

    fn pointer(&self, name: &str) -> Vec<Record> {
        if !matches!(self.query.query_type(), RecordType::PTR | RecordType::ANY) {
            return Vec::new();
        }
        // Label by label: names of services and tasks may have characters that a host name may not.
        let target = Name::from_labels(name.split('.').map(str::as_bytes));
        let record =
            |target| Record::from_rdata(self.query.name().clone(), REVERSE_TTL_SECONDS, RData::PTR(PTR(target)));
        target.ok().map(record).into_iter().collect()
    }

    fn reply(&self, transport: Transport, code: ResponseCode, records: Vec<Record>) -> Vec<u8> {
        let mut reply = Message::response(self.metadata.id, self.metadata.op_code);
        reply.metadata = Metadata::response_from_request(&self.metadata);
        reply.metadata.recursion_available = true;
        reply.metadata.authoritative = matches!(code, ResponseCode::NoError | ResponseCode::NXDomain);
        reply.metadata.response_code = code;
        reply.add_query(self.query.clone());
        if self.edns.is_some() {
            let mut edns = Edns::new();
            edns.set_max_payload(UDP_BYTES_MAX);
            reply.set_edns(edns);
        }
        reply.insert_answers(records);
        let limit = usize::from(match (transport, &self.edns) {
            (Transport::Tcp, _) => u16::MAX,
            (Transport::Udp, Some(edns)) => edns.max_payload().clamp(UDP_BYTES_PLAIN, UDP_BYTES_MAX),
            (Transport::Udp, None) => UDP_BYTES_PLAIN,
        });
        let encode = |reply: &Message| reply.to_vec().expect("a question of one packet and records made here");
        let mut bytes = encode(&reply);
        while bytes.len() > limit && !reply.answers.is_empty() {
            // As many as fit, for who cannot ask again by TCP.
            let excess = (bytes.len() - limit).div_ceil(RECORD_BYTES_MAX);
            reply.answers.truncate(reply.answers.len().saturating_sub(excess.max(1)));
            reply.metadata.truncation = true;
            bytes = encode(&reply);
        }
        bytes
    }
}

/// An AAAA record whose name is a pointer to the question. Only a step width.
const RECORD_BYTES_MAX: usize = 28;
const REVERSE_TTL_SECONDS: u32 = 5;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::names::Scope;

    fn table() -> Table {
        let answer = |addresses: &[&str]| Answer {
            addresses: addresses.iter().map(|a| a.parse().unwrap()).collect(),
            ttl_seconds: 5,
        };
        let mut scope = Scope::default();
        scope.names.insert("vote".into(), answer(&["10.96.0.5"]));
        scope.names.insert("app_vote".into(), answer(&["10.96.0.5"]));
        scope.names.insert("both".into(), answer(&["10.96.0.6", "fd00::6"]));
        scope.names.insert("none".into(), answer(&[]));
        let many: Vec<String> = (0..100).map(|i| format!("10.5.0.{i}")).collect();
        scope.names.insert("tasks.vote".into(), answer(&many.iter().map(String::as_str).collect::<Vec<_>>()));
        scope.reverse.insert("10.96.0.5".parse().unwrap(), "app_vote.1.x".into());
        scope.reverse.insert("fd00::6".parse().unwrap(), "both".into());
        let client = Client { scopes: vec!["gone".into(), "n".into()], resolvers: vec!["9.9.9.9".parse().unwrap()] };
        Table {
            clients: [(CLIENT.parse().unwrap(), client)].into(),
            scopes: [("n".into(), scope)].into(),
            pools: vec!["10.96.0.0/16".parse().unwrap()],
            listen: vec![],
        }
    }

    const CLIENT: &str = "10.5.0.1";

    fn packet(name: &str, kind: RecordType, payload: Option<u16>) -> Vec<u8> {
        let mut message = Message::new(7, MessageType::Query, OpCode::Query);
        message.metadata.recursion_desired = true;
        message.add_query(Query::query(Name::from_labels(name.split('.').map(str::as_bytes)).unwrap(), kind));
        if let Some(payload) = payload {
            let mut edns = Edns::new();
            edns.set_max_payload(payload);
            message.set_edns(edns);
        }
        message.to_vec().unwrap()
    }

    /// Code and answers, or what else happens.
    fn ask(packet: &[u8], transport: Transport, turn: usize) -> String {
        let table = table();
        match answer(&table, CLIENT.parse().unwrap(), packet, transport, turn) {
            Verdict::Ignore => "ignored".into(),
            Verdict::Forward(resolvers) => format!("forward to {resolvers:?}"),
            Verdict::Reply(reply) => {
                assert!(answers(packet, &reply) || code(&reply) != Some(ResponseCode::NoError));
                let message = Message::from_vec(&reply).unwrap();
                let mut words = vec![format!("{:?}", message.metadata.response_code)];
                words.extend(message.answers.iter().map(|record| format!("{} {}", record.name, record.data)));
                words.extend(message.metadata.truncation.then(|| "truncated".to_owned()));
                words.join("; ")
            }
        }
    }

    fn udp(name: &str, kind: RecordType) -> String {
        ask(&packet(name, kind, None), Transport::Udp, 0)
    }

    #[test]
    fn names_are_found_in_any_case_and_repeated_as_they_were_asked() {
        assert_eq!(udp("VoTe", RecordType::A), "NoError; VoTe. 10.96.0.5");
        assert_eq!(udp("app_vote", RecordType::A), "NoError; app_vote. 10.96.0.5");
        assert_eq!(udp("both", RecordType::AAAA), "NoError; both. fd00::6");
        assert_eq!(udp("both", RecordType::ANY), "NoError; both. 10.96.0.6; both. fd00::6");
    }

    #[test]
    fn a_name_that_exists_is_never_denied() {
        for kind in [RecordType::AAAA, RecordType::MX, RecordType::TXT, RecordType::SRV, RecordType::Unknown(65)] {
            assert_eq!(udp("vote", kind), "NoError", "{kind}");
        }
        assert_eq!(udp("none", RecordType::A), "NoError");
    }

    #[test]
    fn what_nobody_here_has_is_asked_outside() {
        for name in
            ["example.com", "votes", "vote.example", "tasks.none", "8.8.8.8.in-addr.arpa", "5.96.10.in-addr.arpa"]
        {
            assert_eq!(udp(name, RecordType::A), "forward to [9.9.9.9]", "{name}");
        }
    }

    #[test]
    fn addresses_have_names_and_those_of_ours_without_one_are_not_asked_outside() {
        assert_eq!(udp("5.0.96.10.in-addr.arpa", RecordType::PTR), "NoError; 5.0.96.10.in-addr.arpa. app_vote.1.x.");
        assert_eq!(udp("6.0.96.10.IN-ADDR.arpa", RecordType::PTR), "NXDomain");
        let v6 = "6.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.d.f.ip6.arpa";
        assert_eq!(udp(v6, RecordType::PTR), format!("NoError; {v6}. both."));
        assert_eq!(udp(v6, RecordType::A), "NoError");
    }

    #[test]
    fn strangers_are_refused() {
        let table = table();
        let Verdict::Reply(reply) =
            answer(&table, "10.5.0.2".parse().unwrap(), &packet("vote", RecordType::A, None), Transport::Udp, 0)
        else {
            panic!()
        };
        assert_eq!(code(&reply), Some(ResponseCode::Refused));
        let mapped = "::ffff:10.5.0.1".parse().unwrap();
        let reply = answer(&table, mapped, &packet("vote", RecordType::A, None), Transport::Udp, 0);
        assert!(matches!(reply, Verdict::Reply(reply) if code(&reply) == Some(ResponseCode::NoError)));
    }

    #[test]
    fn lists_take_turns_and_fit_what_the_asker_can_take() {
        let whole = ask(&packet("tasks.vote", RecordType::A, None), Transport::Tcp, 3);
        assert_eq!(whole.matches(';').count(), 100);
        assert!(whole.starts_with("NoError; tasks.vote. 10.5.0.3; tasks.vote. 10.5.0.4;"), "{whole}");
        for (payload, limit) in [(None, 512), (Some(100), 512), (Some(1000), 1000), (Some(4096), 1232)] {
            let Verdict::Reply(reply) = answer(
                &table(),
                CLIENT.parse().unwrap(),
                &packet("tasks.vote", RecordType::A, payload),
                Transport::Udp,
                0,
            ) else {
                panic!()
            };
            assert!(reply.len() <= limit && reply.len() > limit - 2 * RECORD_BYTES_MAX, "{} of {limit}", reply.len());
            let message = Message::from_vec(&reply).unwrap();
            assert!(message.metadata.truncation);
            assert_eq!(message.edns.is_some(), payload.is_some());
        }
    }

    #[test]
    fn what_is_no_question_is_not_answered_and_what_is_half_one_is_told_so() {
        let good = packet("vote", RecordType::A, None);
        let mut response = good.clone();
        response[2] |= 0x80;
        assert_eq!(ask(&response, Transport::Udp, 0), "ignored");
        assert_eq!(ask(&good[..11], Transport::Udp, 0), "ignored");
        assert_eq!(ask(&good[..15], Transport::Udp, 0), "FormErr");
        let mut two = good.clone();
        two[5] = 2;
        assert_eq!(ask(&two, Transport::Udp, 0), "FormErr");
        let mut update = good.clone();
        update[2] |= 5 << 3;
        assert_eq!(ask(&update, Transport::Udp, 0), "NotImp");
        let mut chaos = good;
        let class = chaos.len() - 1;
        chaos[class] = 3;
        assert_eq!(ask(&chaos, Transport::Udp, 0), "Refused");
    }

    proptest::proptest! {
        #[test]
        fn no_packet_is_too_strange(mut packet in proptest::collection::vec(proptest::num::u8::ANY, 0..80), plain: bool) {
            if plain && packet.len() > 12 {
                packet[2] &= 0x07;
                packet[4..6].copy_from_slice(&[0, 1]);
            }
            answer(&table(), CLIENT.parse().unwrap(), &packet, Transport::Udp, 0);
            failure(&packet, Transport::Tcp);
            answers(&packet, &packet);
        }
    }
}
