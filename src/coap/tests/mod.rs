//! Tests of the endpoint as a black box, in virtual time.

use std::time::{Duration, Instant};

mod blocks;
mod memory;
mod separate;

use super::{Code, Config, Delivery, Endpoint, Method, Outbox, Request, Response, content_format};

type Sent = Vec<(u8, Vec<u8>)>;

const PEER: u8 = 1;

struct Server {
    endpoint: Endpoint<u8>,
    now: Instant,
}

impl Server {
    fn new() -> Self {
        let now = Instant::now();
        Self { endpoint: Endpoint::new(Config::default(), now, [3; 32]), now }
    }

    fn receive(&mut self, bytes: &[u8]) -> (Option<Request<u8>>, Sent) {
        let mut out = Sent::new();
        let request = self.endpoint.receive(self.now, PEER, bytes, &mut out);
        (request, out)
    }

    fn respond(&mut self, request: &Request<u8>) -> Sent {
        let mut out = Sent::new();
        let response = Response::content(content_format::CBOR, b"answer".to_vec());
        self.endpoint.respond(self.now, request.exchange, &response, &mut out);
        out
    }

    fn advance(&mut self, by: Duration) -> Sent {
        self.now += by;
        let mut out = Sent::new();
        self.endpoint.handle_timeout(self.now, &mut out);
        out
    }
}

/// Returns a GET of `/cert` with token `T`.
fn get(kind: u8, id: u8) -> Vec<u8> {
    let mut bytes = vec![0x41 | kind << 4, 1, 0, id, b'T', 0xb4];
    bytes.extend(b"cert");
    bytes
}

const CON: u8 = 0;
const NON: u8 = 1;

/// Returns type, code, message ID and token of a message.
fn head(message: &[u8]) -> (u8, u8, u16, &[u8]) {
    let tkl = usize::from(message[0] & 15);
    (message[0] >> 4 & 3, message[1], u16::from_be_bytes([message[2], message[3]]), &message[4..4 + tkl])
}

#[test]
fn a_request_is_answered_on_its_acknowledgement() {
    let mut server = Server::new();
    let (request, sent) = server.receive(&get(CON, 9));
    assert!(sent.is_empty());
    let request = request.unwrap();
    assert_eq!(request.method, Method::Get);
    assert_eq!(request.path, ["cert"]);
    let answer = server.respond(&request);
    assert_eq!(head(&answer[0].1), (2, 0x45, 9, &b"T"[..]));
    assert!(answer[0].1.ends_with(b"\xffanswer"));
    assert_eq!(server.endpoint.poll_timeout(), None);
}

#[test]
fn a_repeated_request_gets_the_same_answer_without_new_work() {
    let mut server = Server::new();
    let request = server.receive(&get(CON, 9)).0.unwrap();
    assert!(server.receive(&get(CON, 9)).0.is_none(), "still being worked on");
    let answer = server.respond(&request);
    for _ in 0..3 {
        let (again, sent) = server.receive(&get(CON, 9));
        assert!(again.is_none());
        assert_eq!(sent, answer);
    }
    assert!(server.respond(&request).is_empty(), "one answer only");
    assert!(server.receive(&get(CON, 10)).0.is_some());
}

#[test]
fn a_message_id_is_new_again_after_its_lifetime() {
    let mut server = Server::new();
    let request = server.receive(&get(CON, 9)).0.unwrap();
    server.respond(&request);
    server.advance(Duration::from_secs(247));
    assert!(server.receive(&get(CON, 9)).0.is_none());
    server.advance(Duration::from_secs(1));
    assert!(server.receive(&get(CON, 9)).0.is_some());
}

#[test]
fn slow_work_is_acknowledged_and_answered_separately_until_the_client_confirms() {
    let mut server = Server::new();
    let request = server.receive(&get(CON, 9)).0.unwrap();
    server.endpoint.defer(server.now, request.exchange);
    assert!(server.advance(Duration::from_millis(999)).is_empty());
    let acknowledgement = server.advance(Duration::from_millis(1));
    assert_eq!(acknowledgement, [(PEER, vec![0x60, 0, 0, 9])]);
    assert_eq!(server.receive(&get(CON, 9)).1, acknowledgement, "the repeated request as well");
    let separate = server.respond(&request);
    let (kind, code, id, token) = head(&separate[0].1);
    assert_eq!((kind, code, token), (CON, 0x45, &b"T"[..]));
    // The same message is sent again with growing pauses, at most four times.
    let mut times = Vec::new();
    let sent_at = server.now;
    while let Some(at) = server.endpoint.poll_timeout() {
        let again = server.advance(at - server.now);
        if !again.is_empty() {
            assert_eq!(again, separate);
            times.push(server.now - sent_at);
        }
    }
    assert_eq!(times.len(), 4);
    assert!((2.0..3.0).contains(&times[0].as_secs_f64()));
    assert!(times[1] >= times[0] * 3 - Duration::from_millis(1));
    let _ = id;
}

#[test]
fn a_confirmed_separate_answer_is_not_sent_again() {
    for confirmation in [0x60, 0x70] {
        let mut server = Server::new();
        let request = server.receive(&get(CON, 9)).0.unwrap();
        server.endpoint.defer(server.now, request.exchange);
        server.advance(Duration::from_secs(1));
        let separate = server.respond(&request);
        let (_, _, id, _) = head(&separate[0].1);
        let [high, low] = id.to_be_bytes();
        server.receive(&[confirmation, 0, high, low]);
        assert!(server.advance(Duration::from_secs(100)).is_empty());
    }
}

#[test]
fn an_acknowledgement_or_a_reset_with_trailing_bytes_confirms_nothing() {
    // RFC 7252 §4.1: in an empty message, the token length is 0 and nothing follows the
    // message ID.
    for (first, more) in [(0x60, &[0xff, 1][..]), (0x61, &[0]), (0x61, &[]), (0x70, &[0]), (0x72, &[1, 2])] {
        let mut server = Server::new();
        let request = server.receive(&get(CON, 9)).0.unwrap();
        server.endpoint.defer(server.now, request.exchange);
        server.advance(Duration::from_secs(1));
        let separate = server.respond(&request);
        let [_, _, high, low, ..] = separate[0].1[..] else { panic!("{separate:?}") };
        assert!(server.receive(&[&[first, 0, high, low], more].concat()).1.is_empty());
        assert_eq!(server.advance(Duration::from_secs(3)), separate, "{first:x} {more:?}");
    }
}

#[test]
fn work_done_in_time_is_not_acknowledged_twice() {
    let mut server = Server::new();
    let request = server.receive(&get(CON, 9)).0.unwrap();
    server.endpoint.defer(server.now, request.exchange);
    server.now += Duration::from_millis(500);
    assert_eq!(server.respond(&request).len(), 1);
    assert!(server.advance(Duration::from_secs(10)).is_empty());
}

#[test]
fn a_non_confirmable_request_gets_one_non_confirmable_answer() {
    let mut server = Server::new();
    let request = server.receive(&get(NON, 9)).0.unwrap();
    let answer = server.respond(&request);
    let (kind, code, _, token) = head(&answer[0].1);
    assert_eq!((kind, code, token), (NON, 0x45, &b"T"[..]));
    let (again, sent) = server.receive(&get(NON, 9));
    assert!(again.is_none() && sent.is_empty());
    let request = server.receive(&get(NON, 10)).0.unwrap();
    server.endpoint.defer(server.now, request.exchange);
    assert!(server.advance(Duration::from_secs(9)).is_empty(), "nor acknowledged");
    let request = server.receive(&get(CON, 11)).0.unwrap();
    server.respond(&request);
    assert!(server.receive(&get(NON, 11)).1.is_empty(), "nor is it repeated");
}

/// A ping (RFC 7252 §4.3) checks that a peer receives messages at its new address, because
/// only a receiver at that address learns the message ID.
#[test]
fn only_a_reset_with_the_pings_id_answers_a_ping() {
    let mut server = Server::new();
    let ping = |server: &mut Server| {
        let mut out = Sent::new();
        assert!(server.endpoint.ping(PEER, &mut out));
        let (kind, code, id, token) = head(&out[0].1);
        assert_eq!((out.len(), kind, code, token.len()), (1, CON, 0, 0));
        id
    };
    let answer = |server: &mut Server, first: u8, id: u16| {
        let [high, low] = id.to_be_bytes();
        assert!(server.receive(&[first, 0, high, low]).1.is_empty());
        server.endpoint.take_pong()
    };
    let id = ping(&mut server);
    assert_eq!(ping(&mut server), id, "the same one again");
    assert_eq!(answer(&mut server, 0x60, id), None, "an acknowledgement");
    assert_eq!(answer(&mut server, 0x70, id), Some(PEER));
    assert_eq!(server.endpoint.take_pong(), None, "once");
    assert_eq!(answer(&mut server, 0x70, id), None, "a replay");
    // A wrong ID counts as a guess and ends the ping.
    let id = ping(&mut server);
    assert_eq!(answer(&mut server, 0x70, id.wrapping_add(1)), None);
    assert_eq!(answer(&mut server, 0x70, id), None);
    let id = ping(&mut server);
    server.endpoint.end_ping(PEER);
    assert_eq!(answer(&mut server, 0x70, id), None);
}

/// A transport that accepts nothing.
struct Closed;

impl Outbox<u8> for Closed {
    fn push(&mut self, _: u8, _: &[u8]) -> bool {
        false
    }
}

#[test]
fn a_ping_that_is_not_sent_is_reported() {
    assert!(!Server::new().endpoint.ping(PEER, &mut Closed));
}

#[test]
fn the_options_of_a_request_are_passed_on() {
    // The options are If-Match, ETag twice, If-None-Match, Content-Format, Uri-Query twice, and
    // Accept.
    let options = b"\x11\x01\x31\x07\x02\x08\x09\x10\x71\x3c\x33a=1\x03b=2\x22\x01\x01";
    let request = Server::new().receive(&[&[0x40, 1, 0, 9][..], options].concat()).0.unwrap();
    assert_eq!(request.query, ["a=1", "b=2"]);
    assert_eq!((request.content_format, request.accept), (Some(60), Some(257)));
    assert_eq!(request.etags, [&[7][..], &[8, 9]]);
    assert_eq!((request.if_match, request.if_none_match), (vec![vec![1]], true));
}

#[test]
fn a_ping_and_messages_that_no_server_can_process_are_reset() {
    let mut server = Server::new();
    let reset = vec![(PEER, vec![0x70, 0, 0, 9])];
    let messages: [(&str, &[u8]); 9] = [
        ("ping", &[0x40, 0, 0, 9]),
        ("empty with a payload", &[0x40, 0, 0, 9, 0xff, 1]),
        ("empty with an option", &[0x40, 0, 0, 9, 0xb1, b'c']),
        ("empty with a token", &[0x41, 0, 0, 9, 1]),
        ("an unexpected response", &[0x40, 0x45, 0, 9]),
        ("reserved class", &[0x40, 0x21, 0, 9]),
        ("reserved token length", &[0x4f, 1, 0, 9]),
        ("truncated option", &[0x40, 1, 0, 9, 0xb4, b'c']),
        ("marker without payload", &[0x40, 1, 0, 9, 0xb1, b'c', 0xff]),
    ];
    for (what, message) in messages {
        let (request, sent) = server.receive(message);
        assert!(request.is_none(), "{what}");
        assert_eq!(sent, reset, "{what}");
        let mut unconfirmable = message.to_vec();
        unconfirmable[0] |= 0x10;
        let (request, sent) = server.receive(&unconfirmable);
        assert!(request.is_none() && sent.is_empty(), "{what}, non-confirmable");
    }
}

#[test]
fn other_versions_fragments_and_acknowledged_requests_are_ignored() {
    let mut server = Server::new();
    for message in [
        &[][..],
        &[0x40],
        &[0x40, 1, 0],
        &[0x00, 1, 0, 9],
        &[0x80, 1, 0, 9],
        &[0x60, 1, 0, 9],
        &[0x70, 1, 0, 9],
        &[0x60, 0, 0, 9, 0],
        &[0x61, 0, 0, 9, 1],
        &[0x70, 0, 0, 9, 0xff, 1],
    ] {
        let (request, sent) = server.receive(message);
        assert!(request.is_none() && sent.is_empty(), "{message:?}");
    }
    assert_eq!(server.endpoint.peers(), 0);
}

#[test]
fn an_option_value_that_ends_in_ff_is_not_a_marker() {
    let mut server = Server::new();
    let request = server.receive(&[0x40, 1, 0, 9, 0x61, 0xff]).0;
    assert!(request.is_some(), "Observe is elective");
}

#[test]
fn unknown_critical_options_are_refused_and_elective_ones_ignored() {
    let mut server = Server::new();
    let with_option = |id: u8, header: &[u8]| [&[0x40, 1, 0, id], header].concat();
    let code = |sent: Sent| sent[0].1[1];
    // Option 9 (OSCORE) is critical and not supported.
    assert_eq!(code(server.receive(&with_option(1, &[0x91, 0])).1), 0x82);
    // Accept appears twice.
    assert_eq!(code(server.receive(&with_option(2, &[0xd1, 4, 60, 0x01, 50])).1), 0x82);
    // Accept has five bytes.
    assert_eq!(code(server.receive(&with_option(3, &[0xd5, 4, 0, 0, 0, 0, 60])).1), 0x82);
    // Uri-Path is not UTF-8.
    assert_eq!(code(server.receive(&with_option(4, &[0xb1, 0xff, 0x01, b'x'])).1), 0x82);
    // The request has the option Proxy-Scheme.
    assert_eq!(code(server.receive(&with_option(5, &[0xd1, 26, b'x'])).1), 0xa5);
    // The request has the option Proxy-Uri.
    assert_eq!(code(server.receive(&with_option(9, &[0xd1, 22, b'x'])).1), 0xa5);
    // Option 2050 is unknown but elective, and the server knows Uri-Host and Uri-Port.
    assert!(server.receive(&with_option(6, &[0xe1, 6, 245, 7])).0.is_some());
    assert!(server.receive(&with_option(7, &[0x31, b'h', 0x42, 0x16, 0x34])).0.is_some());
    // A repeated request gets the same refusal again, as it would get any other answer.
    assert_eq!(code(server.receive(&with_option(1, &[0x91, 0])).1), 0x82);
    // A non-confirmable request with an unknown critical option is refused silently.
    let (request, sent) = server.receive(&[0x50, 1, 0, 8, 0x91, 0]);
    assert!(request.is_none() && sent.is_empty());
    // If the value of a known option is refused, even a non-confirmable request gets an answer (RFC
    // 7252 §5.10.2 for Proxy-Uri, RFC 7959 §2.2 for the reserved block size).
    assert_eq!(code(server.receive(&[0x50, 1, 0, 40, 0xd1, 22, b'x']).1), 0xa5);
    assert_eq!(code(server.receive(&[0x50, 1, 0, 41, 0xd1, 10, 0x07]).1), 0x80);
}

#[test]
fn a_refusal_lists_the_options() {
    let refusal = |options: &[u8]| {
        let sent = Server::new().receive(&[&[0x40, 1, 0, 9], options].concat()).1;
        let payload = sent[0].1.iter().position(|&byte| byte == 0xff).unwrap() + 1;
        let mut decoder = minicbor::Decoder::new(&sent[0].1[payload..]);
        // RFC 9290 §3.1: the label -8 stands for unprocessed-coap-option.
        assert_eq!((decoder.map().unwrap(), decoder.i8().unwrap()), (Some(2), -1));
        let title = decoder.str().unwrap().to_owned();
        assert_eq!(decoder.i8().unwrap(), -8);
        let several = decoder.datatype().unwrap() == minicbor::data::Type::Array;
        let count = if several { decoder.array().unwrap().unwrap() } else { 1 };
        let numbers = (0..count).map(|_| decoder.u16().unwrap()).collect::<Vec<_>>();
        (title, numbers)
    };
    let unknown = "unknown critical option".to_owned();
    assert_eq!(refusal(&[0x91, 0]), (unknown.clone(), vec![9]));
    assert_eq!(refusal(&[0xe1, 0xfc, 0xdc, b'x']), (unknown.clone(), vec![65001]));
    assert_eq!(refusal(&[0x91, 0, 0xe1, 0xfc, 0xd3, b'x']), (unknown, vec![9, 65001]));
    // The request has twenty options with odd numbers from 1001. The refusal lists only the first
    // eight.
    let many = [&[0xe0, 0x02, 0xdc][..], &[0x20; 19]].concat();
    assert_eq!(refusal(&many).1, [1001, 1003, 1005, 1007, 1009, 1011, 1013, 1015]);
    // Uri-Path is not UTF-8.
    assert_eq!(refusal(&[0xb1, 0xff]).1, [11]);
    // Accept appears twice.
    assert_eq!(refusal(&[0xd1, 4, 60, 0x01, 50]).1, [17]);
}

#[test]
fn an_unwanted_response_is_only_acknowledged() {
    let mut server = Server::new();
    // The options are Uri-Path `x`, and No-Response with the value 2: the client wants no success
    // responses.
    let mut message = vec![0x40, 1, 0, 9, 0xb1, b'x', 0xd1, 234, 2];
    let request = server.receive(&message).0.unwrap();
    assert_eq!(server.respond(&request), [(PEER, vec![0x60, 0, 0, 9])]);
    assert_eq!(server.receive(&message).1, [(PEER, vec![0x60, 0, 0, 9])], "and once more");
    message[0] = 0x50;
    message[3] = 10;
    let request = server.receive(&message).0.unwrap();
    assert!(server.respond(&request).is_empty());
}

#[test]
fn the_state_of_a_peer_is_bounded_and_forgotten_with_it() {
    let mut server = Server::new();
    for id in 0..200 {
        let request = server.receive(&get(CON, id)).0.unwrap();
        server.respond(&request);
    }
    assert_eq!(server.endpoint.peers(), 1);
    assert!(server.receive(&get(CON, 199)).0.is_none(), "the youngest is remembered");
    assert!(server.receive(&get(CON, 1)).0.is_none(), "and the oldest");
    server.endpoint.forget(PEER);
    assert_eq!(server.endpoint.peers(), 0);
}

#[test]
fn requests_in_progress_are_bounded() {
    let mut server = Server::new();
    let taken = (0..100).filter(|&id| server.receive(&get(CON, id)).0.is_some()).count();
    assert_eq!(taken, Config::default().max_exchanges);
    assert_eq!(server.endpoint.counters().requests_dropped, 100 - taken as u64);
}

#[test]
fn tokens_of_up_to_64_bytes_are_returned_unchanged() {
    for length in [0, 1, 8, 9, 12, 13, 20, 64] {
        let mut server = Server::new();
        let token: Vec<u8> = (0..length).collect();
        // RFC 8974 §2.1: a length field of 0 to 12 is the token length itself. A field of 13 is
        // followed by one byte, the token length minus 13.
        let announced =
            if length < 13 { vec![0x40 | length, 1, 0, 9] } else { vec![0x4d, 1, 0, 9, length - 13] };
        let request =
            server.receive(&[announced.clone(), token.clone(), b"\xb1x".to_vec()].concat()).0.unwrap();
        assert_eq!(request.path, ["x"]);
        let answer = server.respond(&request).remove(0).1;
        let (head, rest) = answer.split_at(announced.len());
        assert_eq!((head[0] & 15, &head[4..]), (announced[0] & 15, &announced[4..]));
        assert!(rest.starts_with(&token));
        assert_eq!(rest[token.len()..], *b"\xc1\x3c\xffanswer");
    }
}

#[test]
fn requests_with_longer_or_truncated_tokens_or_a_reserved_length_are_reset() {
    for message in [
        &[&[0x4d, 1, 0, 9, 52][..], &[7; 65]].concat()[..],
        &[&[0x4e, 1, 0, 9, 0, 1][..], &[7; 270]].concat(),
        &[0x4d, 1, 0, 9],
        &[0x4d, 1, 0, 9, 0, 1, 2],
        &[0x4e, 1, 0, 9, 0],
        &[0x49, 1, 0, 9, 1, 2, 3, 4, 5, 6, 7, 8],
        &[&[0x4f, 1, 0, 9][..], &[7; 15]].concat(),
    ] {
        let (request, sent) = Server::new().receive(message);
        assert!(request.is_none());
        assert_eq!(sent, [(PEER, vec![0x70, 0, 0, 9])], "{message:02x?}");
    }
}

#[test]
fn options_of_a_wrong_length_are_treated_as_unknown_ones() {
    // RFC 7252 §5.4.3: the length of an option's value must be in the range of the option. The
    // columns are the option number, the length, and whether the option is refused.
    for (number, length, refused) in [
        (3, 0, true),    // Uri-Host
        (4, 9, false),   // ETag
        (5, 1, true),    // If-None-Match
        (7, 3, true),    // Uri-Port
        (12, 3, false),  // Content-Format
        (17, 3, true),   // Accept
        (23, 4, true),   // Block2
        (27, 4, true),   // Block1
        (60, 5, false),  // Size1
        (258, 2, false), // No-Response
    ] {
        let mut packet = coap_lite::Packet::new();
        packet.header.message_id = number;
        packet.header.code = coap_lite::MessageClass::from(1);
        packet.add_option(number.into(), vec![0; length]);
        let (request, sent) = Server::new().receive(&packet.to_bytes().unwrap());
        assert_eq!(request.is_none(), refused, "{number}");
        assert_eq!(sent.first().map(|(_, message)| message[1]), refused.then_some(0x82), "{number}");
    }
}

#[test]
fn an_answer_for_a_forgotten_peer_is_dropped() {
    let mut server = Server::new();
    let request = server.receive(&get(CON, 9)).0.unwrap();
    server.endpoint.forget(PEER);
    assert!(server.respond(&request).is_empty());
    // A later request with the same message ID does not get the old answer.
    let later = server.receive(&get(CON, 9)).0.unwrap();
    assert!(server.respond(&request).is_empty());
    assert_eq!(server.respond(&later).len(), 1);
}

#[test]
fn errors_carry_problem_details() {
    let mut server = Server::new();
    let request = server.receive(&get(CON, 9)).0.unwrap();
    let mut out = Sent::new();
    let response = Response::problem(Code::ServiceUnavailable, "later").with_max_age(30);
    server.endpoint.respond(server.now, request.exchange, &response, &mut out);
    // The answer ends with Content-Format 257, Max-Age 30, and the payload {-1: "later"}.
    assert!(out[0].1.ends_with(b"\xc2\x01\x01\x21\x1e\xff\xa1\x20\x65later"));
}
