//! Attackers who own an address, know a client's address, or hold a key of their own, and network
//! faults that make an honest client look like an attacker.

use super::*;
use crate::dtls::{Holder, handshake::MAX_EARLY, message, record};

/// Returns a record of epoch 0 with these fragments.
fn record_of(sequence: u64, fragments: &[Vec<u8>]) -> Vec<u8> {
    let mut out = Vec::new();
    let payload = fragments.concat();
    record::put_plaintext(&mut out, ContentType::Handshake, sequence, record::DTLS_1_2, &payload);
    out
}

/// Returns the first fragment of a message of `length` bytes. The fragment contains
/// `body`.
fn fragment(kind: u8, sequence: u16, length: usize, body: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    message::put_header(&mut out, kind, sequence, length);
    out[9..12].copy_from_slice(&(body.len() as u32).to_be_bytes()[1..]);
    [out, body.to_vec()].concat()
}

/// Returns a client and its hello with a valid cookie. The hello has not been sent yet.
fn second_hello(server: &mut Server, profile: Profile, from: SocketAddr) -> (Client, Vec<u8>) {
    let mut client = Client::new(profile, [3; 32]);
    let hello = client.start(server.now).concat();
    let request = server.receive(from, &hello).remove(0).1;
    let second = client.receive(server.now, &request).concat();
    (client, second)
}

fn ephemeral(group: u16) -> Profile {
    Profile { suites: vec![0xd003], groups: vec![group], ..profile() }
}

#[test]
fn one_datagram_of_hellos_gets_one_answer() {
    let mut server = Server::new(Config::default());
    let hello = [&[0xfe, 0xfd][..], &[7; 32], &[0, 0]].concat();
    let fragments: Vec<_> = (0..40).map(|_| fragment(message::CLIENT_HELLO, 0, 100, &hello)).collect();
    assert_eq!(server.receive(peer(), &record_of(0, &fragments)).len(), 1);
    let records: Vec<_> = fragments
        .iter()
        .enumerate()
        .map(|(n, part)| record_of(n as u64, std::slice::from_ref(part)))
        .collect();
    assert_eq!(server.receive(peer(), &records.concat()).len(), 1);
}

#[test]
fn one_datagram_starts_one_handshake_however_many_hellos_it_holds() {
    let mut server = Server::new(Config::default());
    let (_, hello) = second_hello(&mut server, ephemeral(23), peer());
    let empty = record_of(9, &[fragment(message::CLIENT_KEY_EXCHANGE, 2, 0, &[])]);
    let datagram = [&hello[..], &empty].concat().repeat(20);
    assert_eq!(server.receive(peer(), &datagram).len(), 1);
    assert_eq!(server.endpoint.counters().handshakes_started, 1);
    assert_eq!(server.failures(), []);
}

#[test]
fn a_flight_is_resent_once_per_datagram_and_not_within_half_of_its_timeout() {
    let mut server = Server::new(Config::default());
    let (_, hello) = second_hello(&mut server, profile(), peer());
    assert_eq!(server.receive(peer(), &hello).len(), 1);
    let body = [&[0xfe, 0xfd][..], &[3; 32], &[0, 0]].concat();
    let again: Vec<_> = (0..40).map(|_| fragment(message::CLIENT_HELLO, 1, 100, &body)).collect();
    let again = record_of(5, &again);
    assert_eq!(server.receive(peer(), &again), [], "just sent");
    server.now += Duration::from_millis(499);
    assert_eq!(server.receive(peer(), &again), []);
    server.now += Duration::from_millis(1);
    assert_eq!(server.receive(peer(), &again).len(), 1);
    assert_eq!(server.receive(peer(), &again), []);
}

/// After a resend at the client's request, the timer does not resend the flight until at least half
/// of the timer's timeout has passed. The client's request does not reset the timer, which still
/// expires 1 s and 3 s after the flight was first sent. In RFC 6347 §4.2.4, the request does reset
/// the timer.
#[test]
fn the_timer_skips_a_flight_that_was_resent_within_half_of_its_timeout() {
    for (asked, copies) in [(500, [1, 1]), (501, [0, 1]), (999, [0, 1])] {
        let mut server = Server::new(Config::default());
        let (_, hello) = second_hello(&mut server, profile(), peer());
        assert_eq!(server.receive(peer(), &hello).len(), 1);
        server.now += Duration::from_millis(asked);
        assert_eq!(server.receive(peer(), &hello).len(), 1);
        assert_eq!(server.advance(Duration::from_millis(999 - asked)), [], "not due yet");
        assert_eq!(server.advance(Duration::from_millis(1)).len(), copies[0], "{asked}");
        assert_eq!(server.advance(Duration::from_millis(1999)), [], "{asked}");
        assert_eq!(server.advance(Duration::from_millis(1)).len(), copies[1], "{asked}");
    }
}

/// From one address, clients without a key can start only as many handshakes as the burst allows,
/// and after that only as many as the regained budget allows. Devices at other addresses and
/// devices with a key at the same address are not delayed.
#[test]
fn an_address_without_a_key_has_a_bounded_share_of_the_processor() {
    let unfinished_burst = Duration::from_millis(40);
    let mut server = Server::new(Config { unfinished_burst, ..Config::default() });
    for port in 1..=1000 {
        let from = SocketAddr::new(peer().ip(), port);
        let (_, hello) = second_hello(&mut server, ephemeral(29), from);
        server.receive(from, &hello);
    }
    // Each handshake costs 80 µs, so the burst of 40 ms covers 500.
    let counters = server.endpoint.counters();
    assert_eq!((counters.handshakes_started, counters.dropped(Dropped::OverBudget)), (500, 500));
    assert!(connect(&mut server, profile(), elsewhere(), 1).is_established());
    // After 0.1 s, part of the budget is available again.
    server.now += Duration::from_millis(100);
    for port in 2000..3000 {
        let from = SocketAddr::new(peer().ip(), port);
        assert!(connect(&mut server, profile(), from, 1).is_established());
    }
}

#[test]
fn a_network_over_its_budget_is_reported_once_a_second() {
    let (unfinished_burst, unfinished_per_second) = (Duration::from_micros(20), Duration::from_micros(1));
    let mut server = Server::new(Config { unfinished_burst, unfinished_per_second, ..Config::default() });
    let mut reports = |wait: u64| {
        server.now += Duration::from_millis(wait);
        for port in 1..4 {
            let from = SocketAddr::new(peer().ip(), port);
            let (_, hello) = second_hello(&mut server, profile(), from);
            server.receive(from, &hello);
        }
        server.events.drain(..).filter(|event| matches!(event, Event::OverBudget { .. })).count()
    };
    assert_eq!([0, 0, 999, 1, 999].map(&mut reports), [1, 0, 0, 1, 0]);
}

/// If the budget does not cover the curve operation, the server does not fall back to a suite
/// without a curve operation.
#[test]
fn a_client_that_offers_an_ephemeral_suite_is_never_downgraded() {
    let unfinished_burst = Duration::from_micros(100);
    let mut server = Server::new(Config { unfinished_burst, ..Config::default() });
    let both = Profile { suites: vec![0xd003, 0xc0a8], groups: vec![23], ..profile() };
    let client = connect(&mut server, both, peer(), 1);
    assert_eq!((client.agreed(), server.failures()), (None, vec![Failure::OverBudget]));
    assert_eq!(server.endpoint.counters().dropped(Dropped::OverBudget), 1);
}

#[test]
fn many_devices_with_keys_behind_one_address_are_not_held_up() {
    let unfinished_burst = Duration::from_millis(10);
    let mut server = Server::new(Config { unfinished_burst, ..Config::default() });
    // 5,000 handshakes of 20 µs cost ten times the burst, but completed handshakes are refunded.
    for port in 1..=5_000 {
        let device = connect(&mut server, profile(), SocketAddr::new(peer().ip(), port), 1);
        assert!(device.is_established(), "{port}");
    }
    assert_eq!(server.endpoint.counters().dropped(Dropped::OverBudget), 0);
}

/// RFC 6347 §4.1.2.7: an attacker sends junk in the client's name, before the client's own
/// messages and between them.
#[test]
fn forged_messages_and_records_do_not_end_an_honest_handshake() {
    let key_exchange = |identity: &[u8]| {
        let body = [&(identity.len() as u16).to_be_bytes()[..], identity].concat();
        record_of(30, &[fragment(message::CLIENT_KEY_EXCHANGE, 2, body.len(), &body)])
    };
    let change_cipher_spec = [20, 0xfe, 0xfd, 0, 0, 0, 0, 0, 0, 0, 31, 0, 1, 1].to_vec();
    let junk = |length: u8| {
        let header = [22, 0xfe, 0xfd, 0, 1, 0, 0, 0, 0, 0, length, 0, length];
        [&header[..], &vec![0x55; length.into()]].concat()
    };
    let malformed = record_of(9, &[fragment(message::CLIENT_KEY_EXCHANGE, 2, 0, &[])]);
    let beginning = record_of(9, &[fragment(message::CLIENT_KEY_EXCHANGE, 2, 300, &[1; 20])]);
    let forgeries: [Vec<Vec<u8>>; 7] = [
        vec![malformed.clone()],
        vec![beginning],
        vec![key_exchange(b"lamp-2")],
        vec![key_exchange(b"lamp-2"), change_cipher_spec.clone(), junk(40)],
        vec![key_exchange(b"sofa"), change_cipher_spec, junk(40), junk(41), junk(42), junk(43)],
        vec![junk(40), junk(41), junk(42), junk(43)],
        vec![[21, 0xfe, 0xfd, 0, 0, 0, 0, 0, 0, 0, 9, 0, 2, 2, 40].to_vec(), malformed],
    ];
    for suite in [profile(), ephemeral(29)] {
        for (number, forged) in forgeries.iter().enumerate() {
            for coalesce in [true, false] {
                for before in 0..3 {
                    let mut server = Server::new(Config::default());
                    let profile = Profile { coalesce, ..suite.clone() };
                    let (mut client, hello) = second_hello(&mut server, profile, peer());
                    let mut flight = server.receive(peer(), &hello);
                    let last = client.receive(server.now, &flight.remove(0).1);
                    for (at, datagram) in last.iter().enumerate() {
                        if at == before.min(last.len() - 1) {
                            for forged in forged {
                                assert_eq!(server.receive(peer(), forged), [], "no answer to {number}");
                            }
                        }
                        converse(&mut server, &mut client, peer(), vec![datagram.clone()]);
                    }
                    // If the forged claim came between the client's messages, the client must
                    // resend its flight.
                    if !client.is_established() {
                        server.now += Duration::from_secs(1);
                        let again = client.handle_timeout(server.now);
                        converse(&mut server, &mut client, peer(), again);
                    }
                    assert!(client.is_established(), "{number}, before message {before}");
                    assert!(echoes(&mut server, &mut client, peer(), b"here"));
                    assert_eq!(server.failures(), []);
                    server.advance(Duration::from_secs(3));
                    assert!(echoes(&mut server, &mut client, peer(), b"still here"));
                }
            }
        }
    }
}

#[test]
fn claims_and_early_records_of_a_handshake_are_bounded() {
    for (suite, most) in [(profile(), 16), (ephemeral(29), 4)] {
        let mut server = Server::new(Config::default());
        let (_, hello) = second_hello(&mut server, suite, peer());
        server.receive(peer(), &hello);
        server.hold_keys = true;
        for number in 0..100u8 {
            let mut body = vec![0, 1, number];
            if most == 4 {
                body.extend([[32].as_slice(), &[9; 32]].concat());
            }
            let claim = fragment(message::CLIENT_KEY_EXCHANGE, 2, body.len(), &body);
            server.receive(peer(), &record_of(u64::from(number) + 9, &[claim]));
        }
        let asked = server.events.iter().filter(|event| matches!(event, Event::PskNeeded { .. })).count();
        assert_eq!(asked, most);
        // When the client resends its flight, the server processes the client's own claim.
        server.now += Duration::from_secs(1);
        let mut body = b"\x00\x06lamp-1".to_vec();
        if most == 4 {
            body.extend([[32].as_slice(), &[9; 32]].concat());
        }
        let claim = fragment(message::CLIENT_KEY_EXCHANGE, 2, body.len(), &body);
        server.receive(peer(), &record_of(200, &[claim]));
        let asked = server.events.iter().filter(|event| matches!(event, Event::PskNeeded { .. })).count();
        assert_eq!(asked, most + 1);
        let before = server.endpoint.counters().dropped(Dropped::Message);
        for number in 0..100 {
            let header = [22, 0xfe, 0xfd, 0, 1, 0, 0, 0, 0, 0, number, 0, 40];
            server.receive(peer(), &[&header[..], &[0x55; 40]].concat());
        }
        let dropped = server.endpoint.counters().dropped(Dropped::Message) - before;
        assert_eq!(dropped as usize, 100 - MAX_EARLY, "early records are kept within bounds");
    }
}

/// Only one of many claims that are packed into one datagram is processed. The other claims do not
/// count towards the limit, so the client's own claim is still processed.
#[test]
fn one_datagram_makes_at_most_one_claim() {
    for suite in [profile(), ephemeral(29)] {
        let mut server = Server::new(Config::default());
        let (mut client, hello) = second_hello(&mut server, suite.clone(), peer());
        let flight = server.receive(peer(), &hello).remove(0).1;
        let last = client.receive(server.now, &flight);
        let claims = (0..30u8).map(|number| {
            let mut body = vec![0, 1, number];
            if suite.suites[0] == 0xd003 {
                body.extend([[32].as_slice(), &[9; 32]].concat());
            }
            record_of(u64::from(number) + 9, &[fragment(message::CLIENT_KEY_EXCHANGE, 2, body.len(), &body)])
        });
        server.receive(peer(), &claims.collect::<Vec<_>>().concat());
        let asked = server.events.iter().filter(|event| matches!(event, Event::PskNeeded { .. })).count();
        assert_eq!(asked, 1);
        converse(&mut server, &mut client, peer(), last);
        assert!(client.is_established());
    }
}

/// RFC 7925 §11: a device may take 9 s to resend its flight. In the meantime, attackers send
/// records before, after or instead of the device's own, and the handshake still completes.
#[test]
fn junk_does_not_shorten_the_time_a_slow_device_has() {
    let junk = |number: u8| {
        let header = [22, 0xfe, 0xfd, 0, 1, 0, 0, 0, 0, 0, number, 0, 40];
        [&header[..], &[0x55; 40]].concat()
    };
    for (before, after, is_lost) in
        [(12, 0, false), (40, 0, false), (0, 40, false), (12, 12, true), (1, 0, true)]
    {
        let mut server = Server::new(Config::default());
        let (mut client, hello) = second_hello(&mut server, profile(), peer());
        let flight = server.receive(peer(), &hello).remove(0).1;
        let last = client.receive(server.now, &flight).concat();
        let finished = last.len() - 53;
        (0..before).for_each(|number| drop(server.receive(peer(), &junk(number))));
        if is_lost {
            server.receive(peer(), &last[..finished]);
        } else {
            converse(&mut server, &mut client, peer(), vec![last.clone()]);
        }
        (0..after).for_each(|number| drop(server.receive(peer(), &junk(number))));
        assert_eq!(client.is_established(), !is_lost, "{before} before");
        assert_eq!(server.advance(Duration::from_secs(9)), [], "no alert");
        if is_lost {
            let again = client.handle_timeout(server.now);
            converse(&mut server, &mut client, peer(), again);
        }
        assert!(client.is_established(), "{before} before, {after} after");
        assert!(echoes(&mut server, &mut client, peer(), b"here"));
    }
}

/// Anyone may send the second fragment of a hello, so a forged second fragment must not end the
/// handshake.
#[test]
fn a_forged_fragment_of_a_hello_ends_no_handshake() {
    let mut server = Server::new(Config::default());
    let (mut client, hello) = second_hello(&mut server, profile(), peer());
    let (length, body) = (hello.len() - 25, &hello[25..]);
    let first = record_of(1, &[fragment(message::CLIENT_HELLO, 1, length, &body[..54])]);
    assert_eq!(server.receive(peer(), &first), []);
    let mut forged = record_of(2, &[fragment(message::CLIENT_HELLO, 1, length, &vec![0xff; length - 54])]);
    forged[13 + 6..13 + 9].copy_from_slice(&[0, 0, 54]);
    assert_eq!(server.receive(peer(), &forged), [], "no alert");
    assert_eq!(server.failures(), []);
    let flight = server.receive(peer(), &hello).remove(0).1;
    let last = client.receive(server.now, &flight);
    converse(&mut server, &mut client, peer(), last);
    assert!(client.is_established());
}

/// A device with a wrong key resends its flight. The second flight that fails is answered
/// with an alert.
#[test]
fn a_second_flight_under_a_wrong_key_is_answered_with_an_alert() {
    let mut server = Server::new(Config::default());
    let mut client =
        connect(&mut server, Profile { psk: Psk::new(vec![1; 16]).unwrap(), ..profile() }, peer(), 1);
    server.now += Duration::from_secs(1);
    let again = client.handle_timeout(server.now);
    converse(&mut server, &mut client, peer(), again);
    assert_eq!(client.alert, Some((2, 51)));
    assert_eq!(server.failures(), [Failure::WrongKey]);
    assert!(server.endpoint.holds_no_state());
}

/// A message longer than any ClientKeyExchange is not reassembled.
#[test]
fn a_long_client_key_exchange_is_not_buffered() {
    let mut server = Server::new(Config::default());
    let (_, hello) = second_hello(&mut server, profile(), peer());
    server.receive(peer(), &hello);
    let begin = |length| record_of(9, &[fragment(message::CLIENT_KEY_EXCHANGE, 2, length, &[0; 20])]);
    server.receive(peer(), &begin(512));
    assert_eq!(server.endpoint.counters().dropped(Dropped::Message), 0);
    server.receive(peer(), &begin(513));
    assert_eq!(server.endpoint.counters().dropped(Dropped::Message), 1);
}

/// A device without entropy sends the same hello after each boot. The device in this test
/// reboots after its ClientKeyExchange.
#[test]
fn a_device_without_entropy_can_reboot_in_the_middle_of_a_handshake() {
    let mut server = Server::new(Config::default());
    let (mut client, hello) = second_hello(&mut server, Profile { coalesce: false, ..profile() }, peer());
    let flight = server.receive(peer(), &hello).remove(0).1;
    let last = client.receive(server.now, &flight);
    server.receive(peer(), &last[0]);
    server.now += Duration::from_secs(2);
    let mut again = Client::new(profile(), [3; 32]);
    let hello = again.start(server.now);
    converse(&mut server, &mut again, peer(), hello);
    assert!(again.is_established());
    assert!(echoes(&mut server, &mut again, peer(), b"here"));
    // The device reboots again, this time while it has a session.
    server.now += Duration::from_secs(2);
    let mut again = Client::new(profile(), [3; 32]);
    let hello = again.start(server.now);
    converse(&mut server, &mut again, peer(), hello);
    assert!(again.is_established());
    assert_eq!(server.failures(), []);
}

#[test]
fn a_late_copy_of_a_hello_leads_to_one_flight_and_no_failure() {
    for connection_id in [None, Some(vec![])] {
        let mut server = Server::new(Config::default());
        let profile = Profile { connection_id, ..profile() };
        let (mut client, hello) = second_hello(&mut server, profile, peer());
        converse(&mut server, &mut client, peer(), vec![hello.clone()]);
        assert!(client.is_established());
        let mut answers = server.receive(peer(), &hello).len();
        for _ in 0..200 {
            answers += server.advance(Duration::from_secs(1)).len();
        }
        assert_eq!((answers, server.failures()), (1, vec![]));
        assert!(echoes(&mut server, &mut client, peer(), b"here"));
        assert_eq!(server.endpoint.counters().late_hellos, 1);
    }
}

/// RFC 7925 §11: the client's timer starts at 9 s and doubles each time. Here the link is
/// slow, and the client has to repeat its hello and its last flight.
#[test]
fn a_handshake_lasts_as_long_as_a_slow_link_needs() {
    for round_trip in [0, 24] {
        let mut server = Server::new(Config::default());
        let wait = |server: &mut Server, seconds: u64| -> usize {
            (0..seconds).map(|_| server.advance(Duration::from_secs(1)).len()).sum()
        };
        let (mut client, hello) = second_hello(&mut server, profile(), peer());
        let mut flights = wait(&mut server, round_trip);
        let flight = server.receive(peer(), &hello).remove(0).1;
        flights += wait(&mut server, 9);
        flights += server.receive(peer(), &hello).len();
        flights += wait(&mut server, round_trip + 9 + 18 + 36);
        let last = client.receive(server.now, &flight);
        converse(&mut server, &mut client, peer(), last);
        assert!(client.is_established(), "{round_trip} s");
        assert!(flights <= 6, "{flights} repetitions");
    }
}

/// RFC 6347 §4.1: the sequence number must not wrap into the epoch.
#[test]
fn a_hello_with_one_of_the_last_record_numbers_wraps_none() {
    for back in 0..8u64 {
        let mut server = Server::new(Config::default());
        let (mut client, mut hello) = second_hello(&mut server, profile(), peer());
        hello[5..11].copy_from_slice(&((1u64 << 48) - 1 - back).to_be_bytes()[2..]);
        let flight = server.receive(peer(), &hello);
        for (_, datagram) in flight {
            assert_eq!(datagram[3..5], [0, 0], "epoch 0");
            let last = client.receive(server.now, &datagram);
            for (_, datagram) in last.into_iter().flat_map(|last| server.receive(peer(), &last)) {
                assert!(datagram[3..5] == [0, 0] || datagram[3..5] == [0, 1], "{datagram:?}");
            }
        }
        server.advance(Duration::from_secs(60));
    }
}

/// RFC 5246 §6.2.3.3: the version of a protected record is authenticated.
#[test]
fn a_protected_record_of_another_version_is_dropped() {
    let (mut server, mut client) = established();
    for version in [[0xfe, 0xff], [0xfe, 0xfc], [0xfe, 0x00]] {
        let mut record = client.send(b"x");
        record[1..3].copy_from_slice(&version);
        assert_eq!(server.receive(peer(), &record), []);
    }
    assert!(echoes(&mut server, &mut client, peer(), b"here"));
}

#[test]
fn a_failed_handshake_reports_the_suites_identity_and_alert_of_its_client() {
    let mut server = Server::new(Config::default());
    let cbc = Profile { suites: vec![0xc037, 0x00ae], ..profile() };
    connect(&mut server, cbc, peer(), 1);
    let long = Profile { identity: vec![b'x'; 200], ..profile() };
    connect(&mut server, long, elsewhere(), 2);
    server.receive(elsewhere(), &[21, 0xfe, 0xfd, 0, 0, 0, 0, 0, 0, 0, 9, 0, 2, 2, 49]);
    server.advance(Duration::from_secs(12));
    let hints: Vec<_> = server
        .events
        .iter()
        .filter_map(|event| match event {
            Event::HandshakeFailed { reason, hints, identity, .. } => {
                Some((*reason, hints.clone(), identity.as_ref().map_or(0, |identity| identity.len())))
            }
            _ => None,
        })
        .collect();
    let (reason, offered, _) = &hints[0];
    assert_eq!((*reason, &*offered.suites), (Failure::NoCommonSuite, &[0xc037, 0x00ae][..]));
    let (reason, claimed, reported) = &hints[1];
    assert_eq!((*reason, claimed.identity_length, claimed.alert), (Failure::WrongKey, Some(200), Some(49)));
    assert_eq!(*reported, 128);
}

/// Connects a client whose session belongs to `holder`.
fn connect_as(server: &mut Server, holder: Holder, profile: Profile, from: SocketAddr, random: u8) {
    server.hold_keys = true;
    let mut client = Client::new(profile, [random; 32]);
    let mut to_server = client.start(server.now);
    while !to_server.is_empty() {
        let mut next = Vec::new();
        for datagram in to_server {
            let mut out = server.receive(from, &datagram);
            for (handshake, _) in &server.waiting {
                server.endpoint.bind_holder(*handshake, holder);
            }
            server.provide(&mut out);
            for (_, answer) in out.into_iter().filter(|(to, _)| *to == from) {
                next.extend(client.receive(server.now, &answer));
            }
        }
        to_server = next;
    }
    assert!(client.is_established());
}

#[test]
fn the_key_of_one_device_opens_a_few_sessions_and_evicts_no_other_device() {
    let with_id = Profile { connection_id: Some(vec![]), ..profile() };
    for (profile, holder) in
        [(profile(), Holder::Device(7)), (with_id.clone(), Holder::Device(7)), (with_id, Holder::Shared(7))]
    {
        let mut server = Server::new(Config { max_sessions: 20, ..Config::default() });
        for other in 0..10 {
            let from = SocketAddr::new(elsewhere().ip(), 2000 + other);
            connect_as(&mut server, Holder::Device(100 + u64::from(other)), self::profile(), from, 1);
        }
        for number in 0..200u8 {
            let port = if holder == Holder::Shared(7) { 1 } else { 1000 + u16::from(number) };
            connect_as(&mut server, holder, profile.clone(), SocketAddr::new(peer().ip(), port), number + 1);
            assert!(server.endpoint.sessions() <= 14, "{number}");
        }
        assert_eq!(server.endpoint.sessions(), 14);
        assert_eq!(server.closed(), vec![Closed::Evicted; 196]);
        while server.endpoint.close_oldest(3, &mut Outgoing::new()) > 0 {}
        server.advance(Duration::from_secs(200));
        assert!(server.endpoint.holds_no_state());
    }
}

/// The sessions of a holder form a linked list. When a session ends, it is removed from the list,
/// whether it is the first, the last or between two others.
#[test]
fn a_session_that_ends_leaves_the_others_of_its_holder_counted() {
    for ended in 1..=3 {
        let mut server = Server::new(Config { sessions_per_holder: 3, ..Config::default() });
        let begin = |server: &mut Server, port: u16| {
            let from = SocketAddr::new(peer().ip(), port);
            connect_as(server, Holder::Device(7), profile(), from, port as u8);
            server.session()
        };
        let sessions = [1, 2, 3].map(|port| begin(&mut server, port));
        server.endpoint.close(sessions[ended - 1], &mut Outgoing::new());
        begin(&mut server, 4);
        assert_eq!(server.endpoint.counters().evicted, 0, "three are left");
        begin(&mut server, 5);
        assert_eq!((server.endpoint.sessions(), server.endpoint.counters().evicted), (3, 1));
        let oldest = if ended == 1 { sessions[1] } else { sessions[0] };
        assert_eq!(server.endpoint.principal(oldest), None, "the oldest, when {ended} has ended");
    }
}

#[test]
fn devices_that_share_a_key_behind_one_address_have_a_session_each() {
    let mut server = Server::new(Config::default());
    for port in 1..=100 {
        connect_as(&mut server, Holder::Shared(7), profile(), SocketAddr::new(peer().ip(), port), 1);
    }
    assert_eq!(server.endpoint.sessions(), 100);
}

#[test]
fn at_the_limit_the_largest_network_is_evicted_first_and_busy_sessions_last() {
    let mut server = Server::new(Config { max_sessions: 20, ..Config::default() });
    let mut honest = Vec::new();
    for number in 0..10u8 {
        let from = SocketAddr::from(([192, 0, 2, number], 1));
        honest.push((from, connect(&mut server, profile(), from, 1)));
    }
    let from = |port| SocketAddr::new(elsewhere().ip(), port);
    for port in 1..=10 {
        connect(&mut server, profile(), from(port), 1);
    }
    let busy = server.session();
    server.endpoint.set_busy(busy, true);
    for port in 1001..=2000 {
        connect(&mut server, profile(), from(port), 1);
    }
    assert_eq!(server.endpoint.sessions(), 20);
    assert!(server.endpoint.principal(busy).is_some());
    for (from, client) in &mut honest {
        assert!(echoes(&mut server, client, *from, b"mine"));
    }
}

/// RFC 5246 §7.2.1: a server that shuts down notifies each client.
#[test]
fn a_server_that_shuts_down_sends_close_notify_a_few_sessions_at_a_time() {
    let mut server = Server::new(Config::default());
    let mut clients: Vec<_> = (1..=10)
        .map(|port| (port, connect(&mut server, profile(), SocketAddr::new(peer().ip(), port), 1)))
        .collect();
    let mut sent = Outgoing::new();
    assert_eq!(server.endpoint.close_oldest(4, &mut sent), 6);
    assert_eq!(sent.len(), 4);
    assert_eq!(server.endpoint.close_oldest(100, &mut sent), 0);
    for ((to, datagram), (port, client)) in sent.iter().zip(&mut clients) {
        assert_eq!(to.port(), *port);
        client.receive(server.now, datagram);
        assert_eq!(client.alert, Some((1, 0)));
    }
}

/// A key that could not be looked up is requested again when the client resends its
/// flight.
#[test]
fn a_key_that_cannot_be_looked_up_now_is_requested_again() {
    let mut server = Server::new(Config::default());
    let (mut client, hello) = second_hello(&mut server, profile(), peer());
    let flight = server.receive(peer(), &hello).remove(0).1;
    let last = client.receive(server.now, &flight);
    server.hold_keys = true;
    server.receive(peer(), &last.concat());
    let (handshake, _) = server.waiting.pop().unwrap();
    server.endpoint.postpone_psk(handshake);
    server.hold_keys = false;
    server.now += Duration::from_secs(1);
    let again = client.handle_timeout(server.now);
    converse(&mut server, &mut client, peer(), again);
    assert!(client.is_established());
}

/// The only early record that an honest client sends is a Finished, whole or in fragments.
#[test]
fn an_early_record_longer_than_any_finished_is_not_kept() {
    let mut server = Server::new(Config::default());
    let (_, hello) = second_hello(&mut server, profile(), peer());
    server.receive(peer(), &hello);
    let early = |length: u8| {
        let header = [22, 0xfe, 0xfd, 0, 1, 0, 0, 0, 0, 0, length, 0, length];
        [&header[..], &vec![0x55; length.into()]].concat()
    };
    server.receive(peer(), &early(128));
    assert_eq!(server.endpoint.counters().dropped(Dropped::Message), 0);
    server.receive(peer(), &early(129));
    assert_eq!(server.endpoint.counters().dropped(Dropped::Message), 1);
}

/// The counters of drops, retransmissions and refusals show an attack to the operator.
#[test]
fn drops_retransmissions_and_refusals_are_counted() {
    let unfinished_burst = Duration::from_micros(110);
    let mut server = Server::new(Config { unfinished_burst, ..Config::default() });
    let (_, hello) = second_hello(&mut server, ephemeral(29), peer());
    server.receive(peer(), &[&hello[..], &hello].concat());
    let counters = server.endpoint.counters();
    assert_eq!((counters.hello_verify_requests, counters.handshakes_started), (1, 1));
    assert_eq!(counters.dropped(Dropped::Message), 1, "the second hello of a datagram");
    server.receive(peer(), &hello);
    assert_eq!(server.endpoint.counters().dropped(Dropped::Flight), 1);
    server.now += Duration::from_millis(600);
    server.receive(peer(), &hello);
    server.advance(Duration::from_millis(400));
    server.advance(Duration::from_millis(600));
    assert_eq!(server.endpoint.counters().retransmissions, 1, "by the client's timer");
    server.advance(Duration::from_secs(5));
    assert_eq!(server.endpoint.counters().retransmissions, 2, "by ours");
    // The budget covers the whole handshake from port 7. Of the handshake from port 8, it covers
    // the hello but not the curve operation.
    let (_, hello) = second_hello(&mut server, ephemeral(29), SocketAddr::new(peer().ip(), 7));
    assert_eq!(server.receive(SocketAddr::new(peer().ip(), 7), &hello).len(), 1);
    let (_, hello) = second_hello(&mut server, ephemeral(29), SocketAddr::new(peer().ip(), 8));
    assert_eq!(server.receive(SocketAddr::new(peer().ip(), 8), &hello), []);
    let counters = server.endpoint.counters();
    assert_eq!((counters.dropped(Dropped::OverBudget), counters.handshakes_failed), (1, 1));
    assert_eq!(server.failures(), [Failure::OverBudget]);
}

/// A hello counts as late only if it is a copy of an earlier hello. For any other hello, the timer
/// resends the flight.
#[test]
fn another_hello_is_not_late_because_there_is_a_session() {
    let mut server = Server::new(Config::default());
    assert!(connect(&mut server, profile(), peer(), 1).is_established());
    for (from, random) in [(peer(), 2), (elsewhere(), 1)] {
        let mut client = Client::new(profile(), [random; 32]);
        let first = client.start(server.now).concat();
        let request = server.receive(from, &first).remove(0).1;
        let second = client.receive(server.now, &request).concat();
        assert_eq!(server.receive(from, &second).len(), 1);
        assert_eq!(server.advance(Duration::from_secs(1)).len(), 1, "sent again");
        server.advance(Duration::from_secs(300));
    }
    assert_eq!(server.endpoint.counters().late_hellos, 0);
    assert_eq!(server.failures(), [Failure::TimedOut; 2]);
}

/// The pause between two copies of a flight grows with the timeout (RFC 6347 §4.2.4.1). The pause
/// applies both to copies that the timer sends and to copies that the client requests.
#[test]
fn after_the_timer_resends_a_flight_the_next_resend_waits_half_of_the_doubled_timeout() {
    let mut server = Server::new(Config::default());
    let (_, hello) = second_hello(&mut server, profile(), peer());
    assert_eq!(server.receive(peer(), &hello).len(), 1);
    assert_eq!(server.advance(Duration::from_secs(1)).len(), 1);
    server.now += Duration::from_millis(999);
    assert_eq!(server.receive(peer(), &hello), []);
    server.now += Duration::from_millis(1);
    assert_eq!(server.receive(peer(), &hello).len(), 1);
}
