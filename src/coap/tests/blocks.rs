//! Tests of block-wise transfers (RFC 7959) in both directions.

use coap_lite::{CoapOption, MessageClass, MessageType, Packet};

use super::*;

/// A client, and a server that answers every request with `body`.
struct Transfer {
    server: Server,
    id: u16,
    body: Vec<u8>,
    /// Number of requests that reached the server's application.
    asked: usize,
    max_message: usize,
}

/// An outbox that limits messages to the given length in bytes.
struct Narrow(Sent, usize);

impl Outbox<u8> for Narrow {
    fn push(&mut self, peer: u8, message: &[u8]) -> bool {
        Outbox::push(&mut self.0, peer, message)
    }

    fn max_message(&self, _: u8) -> usize {
        self.1
    }
}

/// NUM, M and SZX of a Block option.
type Triple = (u32, bool, u8);

fn value((number, more, size_exponent): Triple) -> Vec<u8> {
    (number << 4 | u32::from(more) << 3 | u32::from(size_exponent)).to_be_bytes()[1..].to_vec()
}

fn triple(packet: &Packet, option: CoapOption) -> Option<Triple> {
    let bits = number(packet, option)?;
    Some((bits >> 4, bits & 8 != 0, (bits & 7) as u8))
}

fn number(packet: &Packet, option: CoapOption) -> Option<u32> {
    let value = packet.get_option(option)?.front()?;
    Some(value.iter().fold(0, |number, &byte| number << 8 | u32::from(byte)))
}

impl Transfer {
    fn new(length: usize) -> Self {
        let body = (0..length).map(|index| index as u8).collect();
        Self { server: Server::new(), id: 0, body, asked: 0, max_message: 1152 }
    }

    fn request(&mut self, method: Method, path: &str) -> Packet {
        self.id += 1;
        let mut packet = Packet::new();
        packet.header.message_id = self.id;
        packet.header.set_type(MessageType::Confirmable);
        packet.header.code = MessageClass::from(method as u8 + 1);
        packet.set_token(self.id.to_be_bytes().to_vec());
        packet.add_option(CoapOption::UriPath, path.into());
        packet
    }

    /// Sends a request. Returns the response, and the payload that reached the server's
    /// application, if any.
    fn send(&mut self, packet: &Packet) -> (Packet, Option<Vec<u8>>) {
        let bytes = packet.to_bytes_unlimited().unwrap();
        let mut out = Narrow(Sent::new(), self.max_message);
        let request = self.server.endpoint.receive(self.server.now, PEER, &bytes, &mut out);
        if let Some(request) = &request {
            self.asked += 1;
            let response = Response::content(content_format::TEXT, self.body.clone()).with_max_age(0);
            self.server.endpoint.respond(self.server.now, request.exchange, &response, &mut out);
        }
        assert_eq!(out.0.len(), 1);
        assert!(out.0[0].1.len() <= self.max_message);
        (Packet::from_bytes(&out.0[0].1).unwrap(), request.map(|request| request.payload))
    }

    fn get(&mut self, path: &str, block2: Option<Triple>) -> Packet {
        let mut request = self.request(Method::Get, path);
        if let Some(block) = block2 {
            request.add_option(CoapOption::Block2, value(block));
        }
        self.send(&request).0
    }

    fn put(&mut self, path: &str, block1: Triple, payload: &[u8]) -> (u8, Option<Vec<u8>>) {
        let mut request = self.request(Method::Post, path);
        request.add_option(CoapOption::Block1, value(block1));
        request.payload = payload.to_vec();
        let (response, body) = self.send(&request);
        (response.header.code.into(), body)
    }
}

const CONTENT: u8 = 0x45;
const CONTINUE: u8 = 0x5f;
const BAD_REQUEST: u8 = 0x80;
const INCOMPLETE: u8 = 0x88;
const TOO_LARGE: u8 = 0x8d;
const INTERNAL_ERROR: u8 = 0xa0;

fn code(packet: &Packet) -> u8 {
    packet.header.code.into()
}

#[test]
fn a_body_is_fetched_in_blocks_of_the_requested_size_and_made_once() {
    let mut transfer = Transfer::new(100);
    let (mut body, mut etags) = (Vec::new(), Vec::new());
    for block in 0..4 {
        let response = transfer.get("big", Some((block, false, 1)));
        assert_eq!(triple(&response, CoapOption::Block2), Some((block, block < 3, 1)));
        // RFC 7959 §4: the first block carries the size of the whole body.
        assert_eq!(number(&response, CoapOption::Size2), (block == 0).then_some(100));
        assert_eq!(number(&response, CoapOption::MaxAge), Some(0));
        etags.push(number(&response, CoapOption::ETag).unwrap());
        body.extend(response.payload);
    }
    assert_eq!(body, transfer.body);
    assert_eq!(transfer.asked, 1);
    etags.dedup();
    assert_eq!(etags.len(), 1);
}

#[test]
fn blocks_can_be_fetched_in_any_order_and_in_changing_sizes() {
    let mut transfer = Transfer::new(100);
    transfer.get("big", Some((0, false, 2)));
    for (block, expected) in [((3, false, 1), 96..100), ((1, false, 1), 32..64), ((5, false, 0), 80..96)] {
        let response = transfer.get("big", Some(block));
        assert_eq!(response.payload, transfer.body[expected]);
    }
    assert_eq!(transfer.asked, 1);
    assert_eq!(code(&transfer.get("big", Some((4, false, 1)))), BAD_REQUEST, "past the end");
}

#[test]
fn a_body_that_fits_into_the_requested_block_is_one_block() {
    let mut transfer = Transfer::new(100);
    let response = transfer.get("big", Some((0, false, 3)));
    assert_eq!(triple(&response, CoapOption::Block2), Some((0, false, 3)));
    assert_eq!(response.payload, transfer.body);
    assert_eq!(transfer.server.endpoint.transfers(), 0);
    let response = transfer.get("big", None);
    assert_eq!(triple(&response, CoapOption::Block2), None);
}

#[test]
fn a_peer_that_accepts_only_short_messages_is_answered_in_blocks() {
    let mut transfer = Transfer::new(300);
    transfer.max_message = 64;
    let response = transfer.get("big", None);
    assert_eq!(triple(&response, CoapOption::Block2), Some((0, true, 1)));
    let mut body = response.payload;
    for number in 1.. {
        let response = transfer.get("big", Some((number, false, 1)));
        let (_, more, _) = triple(&response, CoapOption::Block2).unwrap();
        body.extend(response.payload);
        if !more {
            break;
        }
    }
    assert_eq!(body, transfer.body);
    // RFC 7959 §2.4: if the client requests a block that is too large for one message, the server
    // sends a smaller block from the same offset.
    let response = transfer.get("big", Some((1, false, 3)));
    assert_eq!(triple(&response, CoapOption::Block2), Some((4, true, 1)));
    assert_eq!(response.payload, transfer.body[128..160]);
    assert_eq!(transfer.asked, 1);
}

#[test]
fn blocks_are_as_large_as_the_peer_accepts() {
    let mut smallest = 0;
    for max in 24..=270 {
        let mut transfer = Transfer::new(300);
        transfer.max_message = max;
        // `get` calls `send`, which checks that no message is longer than `max`.
        let response = transfer.get("big", None);
        if code(&response) != CONTENT {
            smallest = max + 1;
            continue;
        }
        let (_, _, size_exponent) = triple(&response, CoapOption::Block2).unwrap();
        let (length, size) = (response.to_bytes().unwrap().len(), 16 << size_exponent);
        assert_eq!(response.payload.len(), size);
        assert!(length + size > max, "{max}: twice the size would fit");
    }
    // The message has 6 bytes of header and token, 13 bytes of options and marker, and a block of
    // 16 bytes.
    assert_eq!(smallest, 6 + 13 + 16);
}

#[test]
fn the_size_of_the_body_is_sent_to_a_client_that_requests_it() {
    let mut transfer = Transfer::new(100);
    let mut request = transfer.request(Method::Get, "big");
    request.add_option(CoapOption::Size2, Vec::new());
    let response = transfer.send(&request).0;
    assert_eq!((number(&response, CoapOption::Size2), response.payload.len()), (Some(100), 100));
    assert_eq!(number(&transfer.get("big", None), CoapOption::Size2), None);
}

/// The server sends no reset, because the reset would carry a message ID that the peer does
/// not know.
#[test]
fn an_answer_to_a_non_confirmable_request_that_does_not_fit_is_silently_dropped() {
    let mut server = Server::new();
    let mut out = Narrow(Sent::new(), 64);
    let bytes = [&[0x5d, 1, 0, 9, 51][..], &[7; 64], b"\xb3big"].concat();
    let request = server.endpoint.receive(server.now, PEER, &bytes, &mut out).unwrap();
    let response = Response::content(content_format::TEXT, vec![1; 100]);
    let delivery = server.endpoint.respond(server.now, request.exchange, &response, &mut out);
    assert_eq!((delivery, out.0), (Delivery::Dropped, Sent::new()));
}

#[test]
fn a_new_first_block_is_a_new_request() {
    let mut transfer = Transfer::new(100);
    let first = transfer.get("big", Some((0, false, 1)));
    transfer.body.reverse();
    let again = transfer.get("big", Some((0, false, 1)));
    assert_eq!(transfer.asked, 2);
    assert_ne!(number(&first, CoapOption::ETag), number(&again, CoapOption::ETag));
    let second = transfer.get("big", Some((1, false, 1)));
    assert_eq!(second.payload, transfer.body[32..64]);
    assert_eq!(number(&second, CoapOption::ETag), number(&again, CoapOption::ETag));
}

#[test]
fn a_block_that_is_no_longer_kept_is_not_made_again() {
    let mut transfer = Transfer::new(100);
    assert_eq!(code(&transfer.get("big", Some((1, false, 1)))), INCOMPLETE, "never started");
    transfer.get("big", Some((0, false, 1)));
    assert_eq!(transfer.asked, 1);
    transfer.server.advance(Duration::from_secs(247));
    assert_eq!(transfer.server.endpoint.transfers(), 0);
    let second = transfer.get("big", Some((1, false, 1)));
    assert_eq!((code(&second), triple(&second, CoapOption::Block2)), (INCOMPLETE, None));
    assert_eq!(transfer.asked, 1);
    assert_eq!(code(&transfer.get("big", Some((0, false, 1)))), CONTENT);
}

#[test]
fn an_answer_that_does_not_fit_is_an_internal_error_or_a_reset() {
    // The columns are the longest message that the peer accepts, the length of the request's token,
    // and the expected code (0 for a reset).
    for (max, token, expected) in
        [(64, 8, CONTENT), (64, 20, CONTENT), (64, 40, INTERNAL_ERROR), (64, 64, 0), (32, 8, INTERNAL_ERROR)]
    {
        let mut server = Server::new();
        let head = if token < 13 { vec![0x40 | token, 1, 0, 9] } else { vec![0x4d, 1, 0, 9, token - 13] };
        let bytes = [&head[..], &vec![7; token.into()], b"\xb3big"].concat();
        let mut out = Narrow(Sent::new(), max);
        let request = server.endpoint.receive(server.now, PEER, &bytes, &mut out).unwrap();
        let response = Response::content(content_format::TEXT, vec![1; 100]).with_max_age(0);
        let delivery = server.endpoint.respond(server.now, request.exchange, &response, &mut out);
        assert_eq!(out.0.len(), 1);
        let answer = &out.0[0].1;
        assert!(answer.len() <= max, "{answer:?}");
        assert_eq!(answer[1], expected, "{max} {token}");
        assert_eq!(answer[0] >> 4, if expected == 0 { 7 } else { 6 });
        assert_eq!(delivery == Delivery::Dropped, expected == 0);
        assert_eq!(server.endpoint.transfers(), usize::from(expected == CONTENT));
    }
}

#[test]
fn a_further_block_is_found_with_and_without_the_payload_of_the_request() {
    let mut transfer = Transfer::new(100);
    let ask = |transfer: &mut Transfer, block, payload: &[u8]| {
        let mut request = transfer.request(Method::Fetch, "big");
        request.add_option(CoapOption::Block2, value((block, false, 1)));
        request.payload = payload.to_vec();
        code(&transfer.send(&request).0)
    };
    assert_eq!(ask(&mut transfer, 0, b"one"), CONTENT);
    assert_eq!(ask(&mut transfer, 1, b"one"), CONTENT);
    assert_eq!(ask(&mut transfer, 2, b""), CONTENT);
    assert_eq!(ask(&mut transfer, 1, b"two"), INCOMPLETE, "another request");
    assert_eq!(transfer.asked, 1);
}

#[test]
fn a_body_is_reassembled_from_its_blocks() {
    let mut transfer = Transfer::new(3);
    assert_eq!(transfer.put("up", (0, true, 0), &[1; 16]), (CONTINUE, None));
    assert_eq!(transfer.put("up", (1, true, 0), &[2; 16]), (CONTINUE, None));
    // A repeated block is accepted, even in a message with another ID.
    assert_eq!(transfer.put("up", (1, true, 0), &[2; 16]), (CONTINUE, None));
    let body = [[1; 16].to_vec(), [2; 16].to_vec(), vec![3]].concat();
    assert_eq!(transfer.put("up", (2, false, 0), &[3]), (CONTENT, Some(body)));
    assert_eq!(transfer.server.endpoint.transfers(), 0);
    assert_eq!(transfer.put("up", (0, false, 0), b"short"), (CONTENT, Some(b"short".to_vec())));
}

#[test]
fn the_answer_to_a_block_names_it() {
    let mut transfer = Transfer::new(3);
    let mut request = transfer.request(Method::Post, "up");
    request.add_option(CoapOption::Block1, value((0, true, 2)));
    request.payload = vec![0; 64];
    let response = transfer.send(&request).0;
    assert_eq!(triple(&response, CoapOption::Block1), Some((0, true, 2)));
    let mut request = transfer.request(Method::Post, "up");
    request.add_option(CoapOption::Block1, value((1, false, 2)));
    request.payload = vec![0; 1];
    let response = transfer.send(&request).0;
    assert_eq!(triple(&response, CoapOption::Block1), Some((1, false, 2)));
}

#[test]
fn a_repeated_first_block_starts_the_body_again() {
    let mut transfer = Transfer::new(3);
    transfer.put("up", (0, true, 0), &[1; 16]);
    transfer.put("up", (1, true, 0), &[2; 16]);
    transfer.put("up", (0, true, 0), &[3; 16]);
    assert_eq!(transfer.put("up", (1, false, 0), &[4]).1, Some([[3; 16].to_vec(), vec![4]].concat()));
}

#[test]
fn a_block_that_comes_too_early_is_incomplete_and_harmless() {
    let mut transfer = Transfer::new(3);
    assert_eq!(transfer.put("up", (1, true, 0), &[2; 16]).0, INCOMPLETE);
    assert_eq!(transfer.server.endpoint.transfers(), 0, "nothing is kept for it");
    transfer.put("up", (0, true, 0), &[1; 16]);
    assert_eq!(transfer.put("up", (2, false, 0), &[3]).0, INCOMPLETE);
    assert_eq!(transfer.put("up", (1, true, 0), &[2; 16]).0, CONTINUE);
    assert_eq!(transfer.put("up", (1, true, 0), &[5; 16]).0, INCOMPLETE, "not what it was");
    assert_eq!(transfer.put("up", (2, false, 0), &[3]).0, CONTENT);
    transfer.put("up", (0, true, 0), &[1; 16]);
    transfer.server.advance(Duration::from_secs(247));
    assert_eq!(transfer.put("up", (1, false, 0), &[2]).0, INCOMPLETE, "expired");
}

#[test]
fn transfers_of_one_peer_to_different_resources_do_not_mix() {
    let mut transfer = Transfer::new(3);
    transfer.put("one", (0, true, 0), &[1; 16]);
    transfer.put("two", (0, true, 0), &[2; 16]);
    assert_eq!(transfer.put("one", (1, false, 0), &[9]).1, Some([[1; 16].to_vec(), vec![9]].concat()));
    assert_eq!(transfer.put("two", (1, false, 0), &[9]).1, Some([[2; 16].to_vec(), vec![9]].concat()));
}

#[test]
fn a_body_beyond_the_limit_is_refused_as_soon_as_possible() {
    let mut transfer = Transfer::new(3);
    let mut announced = transfer.request(Method::Post, "up");
    announced.add_option(CoapOption::Block1, value((0, true, 0)));
    announced.add_option(CoapOption::Size1, vec![0x04, 0x01]);
    announced.payload = vec![0; 16];
    let response = transfer.send(&announced).0;
    assert_eq!(code(&response), TOO_LARGE);
    assert_eq!(number(&response, CoapOption::Size1), Some(1024));
    let mut announced = transfer.request(Method::Post, "up");
    announced.add_option(CoapOption::Size1, vec![0x04, 0x00]);
    assert_eq!(code(&transfer.send(&announced).0), CONTENT, "as long as the limit");
    assert_eq!(transfer.put("up", (0, true, 6), &[0; 1024]).0, CONTINUE);
    assert_eq!(transfer.put("up", (1, false, 6), &[0; 1]).0, TOO_LARGE);
    assert_eq!(transfer.server.endpoint.transfers(), 0);
}

#[test]
fn blocks_that_contradict_themselves_are_bad_requests() {
    let mut transfer = Transfer::new(3);
    assert_eq!(transfer.put("up", (0, true, 7), &[0; 16]).0, BAD_REQUEST, "reserved size");
    assert_eq!(transfer.put("up", (0, true, 0), &[0; 15]).0, BAD_REQUEST, "more follow a short one");
    assert_eq!(transfer.put("up", (0, false, 0), &[0; 17]).0, BAD_REQUEST, "longer than its size");
    assert_eq!(code(&transfer.get("big", Some((0, false, 7)))), BAD_REQUEST);
    assert_eq!(transfer.server.endpoint.transfers(), 0);
}

#[test]
fn transfers_are_bounded_per_peer_and_in_total() {
    let mut transfer = Transfer::new(100);
    for path in 0..100 {
        transfer.get(&path.to_string(), Some((0, false, 1)));
    }
    assert_eq!(transfer.server.endpoint.transfers(), 4);
    assert_eq!(transfer.server.endpoint.counters().transfers_evicted, 96);
    let config = Config { max_transfers: 10, ..Config::default() };
    let mut endpoint = Endpoint::new(config, transfer.server.now, [3; 32]);
    for peer in 0..100 {
        let mut request = transfer.request(Method::Post, "up");
        request.add_option(CoapOption::Block1, value((0, true, 0)));
        request.payload = vec![0; 16];
        endpoint.receive(transfer.server.now, peer, &request.to_bytes().unwrap(), &mut Sent::new());
    }
    assert_eq!(endpoint.transfers(), 10);
    (0..100).for_each(|peer| endpoint.forget(peer));
    assert_eq!(endpoint.transfers(), 0);
}

#[test]
fn a_peer_with_many_transfers_loses_its_own_and_not_those_of_others() {
    let mut transfer = Transfer::new(100);
    let config = Config { max_transfers: 10, ..Config::default() };
    let now = transfer.server.now;
    let mut endpoint = Endpoint::new(config, now, [3; 32]);
    let mut put = |peer: u8, path: &str, number: u32, more: bool| {
        let mut request = transfer.request(Method::Post, path);
        request.add_option(CoapOption::Block1, value((number, more, 0)));
        request.payload = vec![peer; 16];
        let mut out = Sent::new();
        let whole = endpoint.receive(now, peer, &request.to_bytes().unwrap(), &mut out);
        (whole.is_some(), endpoint.transfers(), endpoint.counters().transfers_evicted)
    };
    for peer in 0..8 {
        put(peer, "up", 0, true);
    }
    // Two greedy peers keep starting transfers, while the oldest transfers belong to other peers.
    for path in 0..50 {
        for peer in [8, 9] {
            assert!(put(peer, &path.to_string(), 0, true).1 <= 10);
        }
    }
    for peer in 0..8 {
        assert!(put(peer, "up", 1, false).0, "{peer}");
    }
    // Completed transfers no longer count, so the new transfer evicts none.
    assert_eq!(put(10, "up", 0, true).1, 3);
    assert_eq!(put(10, "up", 0, true).2, 98);
}

#[test]
fn a_slow_answer_is_fetched_in_blocks_as_well() {
    let mut transfer = Transfer::new(100);
    let mut request = transfer.request(Method::Get, "slow");
    request.add_option(CoapOption::Block2, value((0, false, 1)));
    let (request, _) = transfer.server.receive(&request.to_bytes().unwrap());
    let request = request.unwrap();
    transfer.server.endpoint.defer(transfer.server.now, request.exchange);
    transfer.server.advance(Duration::from_secs(1));
    let mut out = Sent::new();
    let response = Response::content(content_format::TEXT, transfer.body.clone());
    transfer.server.endpoint.respond(transfer.server.now, request.exchange, &response, &mut out);
    let first = Packet::from_bytes(&out[0].1).unwrap();
    assert_eq!(triple(&first, CoapOption::Block2), Some((0, true, 1)));
    let second = transfer.get("slow", Some((1, false, 1)));
    assert_eq!(second.payload, transfer.body[32..64]);
    assert_eq!(transfer.asked, 0);
}
