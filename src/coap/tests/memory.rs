//! Tests of the size and the lifetime of the state that an endpoint keeps for a peer's requests.

use coap_lite::{CoapOption, Packet};

use super::{super::exchanges, *};

/// A transport that accepts messages only while `takes` is set.
struct Held {
    sent: Sent,
    takes: bool,
}

impl Held {
    fn new(takes: bool) -> Self {
        Self { sent: Sent::new(), takes }
    }
}

impl Outbox<u8> for Held {
    fn push(&mut self, peer: u8, message: &[u8]) -> bool {
        if self.takes {
            self.sent.push((peer, message.to_vec()));
        }
        self.takes
    }
}

fn get_id(kind: u8, id: u16) -> Vec<u8> {
    let mut message = get(kind, 0);
    message[2..4].copy_from_slice(&id.to_be_bytes());
    message
}

/// Returns an answer that is as long as one with a certificate.
fn certificate() -> Response {
    Response::content(content_format::CBOR, vec![7; 110])
}

impl Server {
    /// Receives a request and answers it. Returns what was sent.
    fn serve(&mut self, kind: u8, id: u16) -> Sent {
        let (request, mut out) = self.receive(&get_id(kind, id));
        if let Some(request) = request {
            self.endpoint.respond(self.now, request.exchange, &certificate(), &mut out);
        }
        out
    }
}

#[test]
fn a_late_repetition_is_not_worked_on_even_after_many_other_requests() {
    for step in [1, 7] {
        let mut server = Server::new();
        let newest = (0..40).map(|count| server.serve(CON, 65530_u16.wrapping_add(count * step))).last();
        for count in 0..39 {
            let (again, sent) = server.receive(&get_id(CON, 65530_u16.wrapping_add(count * step)));
            assert!(again.is_none(), "{count} of {step}");
            // The client gets the answer or, if the answer is no longer kept, a reset, so
            // that the client does not wait.
            assert_eq!(sent.len(), 1);
            assert!(matches!(head(&sent[0].1), (2, 0x45, ..) | (3, 0, ..)));
        }
        let last = 65530_u16.wrapping_add(39 * step);
        assert_eq!(server.serve(CON, last), newest.unwrap(), "the newest is repeated");
        assert!(server.receive(&get_id(CON, last.wrapping_add(1))).0.is_some());
        server.advance(Duration::from_secs(247 + 64));
        assert!(server.receive(&get_id(CON, 65530)).0.is_some(), "new again");
    }
}

#[test]
fn the_message_id_of_a_non_confirmable_request_is_remembered() {
    let mut server = Server::new();
    for id in 0..40 {
        assert_eq!(server.serve(NON, id).len(), 1);
    }
    for id in 0..40 {
        assert!(server.serve(NON, id).is_empty(), "{id}");
    }
}

#[test]
fn a_peer_with_too_many_message_ids_is_asked_to_retry_later() {
    let mut server = Server::new();
    let (mut served, mut refused) = (0, 0);
    for count in 0..200 {
        let sent = server.serve(CON, count * 3);
        match head(&sent[0].1) {
            (2, 0x45, ..) => served += 1,
            (2, 0xa3, ..) => {
                let packet = Packet::from_bytes(&sent[0].1).unwrap();
                assert!(packet.get_option(CoapOption::MaxAge).is_some());
                refused += 1;
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(served >= 60 && refused > 0);
    assert_eq!(server.endpoint.counters().requests_dropped, refused);
    assert!(server.receive(&get_id(CON, 0)).0.is_none(), "none is forgotten instead");
    assert!(server.receive(&get_id(NON, 1000)).1.is_empty(), "silently");
    server.advance(Duration::from_secs(247 + 64));
    for count in 0..40 {
        assert_eq!(head(&server.serve(CON, 1001 + count * 3)[0].1).1, 0x45);
    }
}

#[test]
fn refused_non_confirmable_requests_take_no_place() {
    let mut server = Server::new();
    for id in 0..100 {
        assert!(server.receive(&[0x50, 1, 0, id, 0x91, 0]).0.is_none());
    }
    assert!(server.receive(&get(CON, 200)).0.is_some());
}

#[test]
fn the_memory_for_many_requests_of_a_peer_is_bounded() {
    // The entry of a peer holds one exchange and a pointer to the rest of its state.
    assert_eq!(size_of::<exchanges::Peer>(), 6 * size_of::<usize>());
    for (requests, step, most) in [(1, 1, 160), (16, 1, 700), (1000, 1, 900), (60, 7, 1300)] {
        let mut server = Server::new();
        // The request of another peer makes the shared tables grow before the measurement starts.
        server.endpoint.receive(server.now, 2, &get(CON, 1), &mut Sent::new());
        let memory = allocation_counter::measure(|| {
            for count in 0..requests {
                server.serve(CON, count * step);
            }
        });
        println!("{requests} requests: {} bytes", memory.bytes_current);
        assert!(memory.bytes_current <= most, "{requests} requests: {} bytes", memory.bytes_current);
    }
}

#[test]
fn an_answer_that_the_transport_does_not_accept_is_kept_and_reported() {
    for kind in [CON, NON] {
        let mut server = Server::new();
        let request = server.receive(&get(kind, 9)).0.unwrap();
        let mut out = Held::new(false);
        let respond = |server: &mut Server, out: &mut Held| {
            server.endpoint.respond(server.now, request.exchange, &certificate(), out)
        };
        assert_eq!(respond(&mut server, &mut out), Delivery::Kept);
        assert_eq!(respond(&mut server, &mut out), Delivery::Dropped, "one answer only");
        assert_eq!(server.endpoint.resume(PEER, &mut out), 0);
        // The repeated request gets the kept answer.
        out.takes = true;
        assert!(server.endpoint.receive(server.now, PEER, &get(kind, 9), &mut out).is_none());
        assert_eq!(out.sent.len(), 1);
        assert_eq!(out.sent[0].1[1], 0x45);
        assert_eq!(server.endpoint.resume(PEER, &mut out), 0, "it was sent");
    }
}

#[test]
fn a_kept_answer_is_sent_as_soon_as_the_transport_accepts_it() {
    let mut server = Server::new();
    let requests = [(CON, 1), (NON, 2), (CON, 3)].map(|(kind, id)| server.receive(&get(kind, id)).0.unwrap());
    server.endpoint.defer(server.now, requests[2].exchange);
    server.advance(Duration::from_secs(1));
    let mut out = Held::new(false);
    for request in &requests {
        let delivery = server.endpoint.respond(server.now, request.exchange, &certificate(), &mut out);
        assert_eq!(delivery, Delivery::Kept);
    }
    out.takes = true;
    assert_eq!(server.endpoint.resume(PEER, &mut out), 3);
    let mut kinds: Vec<u8> = out.sent.iter().map(|(_, message)| head(message).0).collect();
    kinds.sort_unstable();
    assert_eq!(kinds, [0, 1, 2]);
    assert_eq!(server.endpoint.resume(PEER, &mut out), 0);
}

#[test]
fn an_answer_that_is_sent_or_unwanted_is_reported_as_such() {
    let mut server = Server::new();
    let request = server.receive(&get(CON, 9)).0.unwrap();
    let mut out = Sent::new();
    let answer = certificate();
    assert_eq!(server.endpoint.respond(server.now, request.exchange, &answer, &mut out), Delivery::Sent);
    // The option No-Response has the value 2: the client wants no success responses.
    let request = server.receive(&[0x50, 1, 0, 10, 0xb1, b'x', 0xd1, 234, 2]).0.unwrap();
    assert_eq!(server.endpoint.respond(server.now, request.exchange, &answer, &mut out), Delivery::Dropped);
    let request = server.receive(&get(CON, 11)).0.unwrap();
    server.endpoint.forget(PEER);
    assert_eq!(server.endpoint.respond(server.now, request.exchange, &answer, &mut out), Delivery::Dropped);
}

#[test]
fn the_endpoints_message_ids_are_counted_per_peer() {
    let mut server = Server::new();
    let mut out = Sent::new();
    let mut ask = |server: &mut Server, peer: u8, id: u16| {
        let request = server.endpoint.receive(server.now, peer, &get_id(NON, id), &mut out).unwrap();
        server.endpoint.respond(server.now, request.exchange, &Response::empty(Code::Content), &mut out);
        head(&out.pop().unwrap().1).2
    };
    let first = ask(&mut server, 1, 0);
    // If all peers shared one counter, the message ID would return to `first` after these messages.
    for id in 0..0x1_0000_u32 - 1 {
        ask(&mut server, 2, id as u16);
    }
    assert_eq!(ask(&mut server, 1, 1), first.wrapping_add(1));
}

/// The message IDs of dropped answers are kept for their whole lifetime.
#[test]
fn message_ids_are_remembered_for_their_lifetime_whenever_they_come() {
    for start in [0, 1, 63, 64, 1000, 100_000] {
        let mut server = Server::new();
        server.advance(Duration::from_secs(start));
        (0..40).for_each(|id| drop(server.serve(NON, id)));
        server.advance(Duration::from_secs(247));
        assert!((0..40).all(|id| server.serve(NON, id).is_empty()), "started at {start} s");
        server.advance(Duration::from_secs(64));
        assert!((0..40).all(|id| server.serve(NON, id).len() == 1), "started at {start} s");
    }
}

#[test]
fn a_message_id_that_is_used_again_is_remembered_again() {
    let mut server = Server::new();
    let first = server.serve(CON, 9);
    server.advance(Duration::from_secs(248));
    assert_eq!(server.serve(CON, 9), first, "worked on");
    let (again, sent) = server.receive(&get(CON, 9));
    assert!(again.is_none() && sent == first, "repeated");
}
