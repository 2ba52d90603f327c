//! The endpoint as a black box in memory and virtual time: whole handshakes over
//! networks that lose, repeat, reorder and fragment, and clients that reboot,
//! lie or go silent.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use rand::{Rng, RngExt, SeedableRng, rngs::StdRng};

use super::{
    Closed, Config, Datagram, Endpoint, Event, Failure, HandshakeId, Psk, SessionId, Suite,
    record::ContentType,
    testing::{Client, Profile},
};

type Outgoing = Vec<(SocketAddr, Vec<u8>)>;

fn psk() -> Psk {
    Psk::new(vec![0x42; 16]).unwrap()
}

fn peer() -> SocketAddr {
    "192.0.2.7:40000".parse().unwrap()
}

fn profile() -> Profile {
    Profile::new("lamp-1", psk())
}

/// A server that knows one key, and an application that echoes.
struct Server {
    endpoint: Endpoint<String>,
    now: Instant,
    events: Vec<Event>,
    /// Keys are provided at once, unless this is set.
    hold_keys: bool,
    waiting: Vec<(HandshakeId, Box<[u8]>)>,
    data: Vec<(SessionId, Vec<u8>)>,
}

impl Server {
    fn new(config: Config) -> Self {
        let now = Instant::now();
        Self {
            endpoint: Endpoint::new(config, now, &[1; 32], [2; 32]),
            now,
            events: Vec::new(),
            hold_keys: false,
            waiting: Vec::new(),
            data: Vec::new(),
        }
    }

    fn receive(&mut self, from: SocketAddr, bytes: &[u8]) -> Outgoing {
        let mut out = Outgoing::new();
        let mut bytes = bytes.to_vec();
        let mut datagram = Datagram::new(from, &mut bytes);
        while let Some(received) = self.endpoint.receive(self.now, &mut datagram, &mut out) {
            let data = received.data.to_vec();
            self.endpoint.send(received.session, &data, &mut out);
            self.data.push((received.session, data));
        }
        self.drain(&mut out);
        out
    }

    fn drain(&mut self, out: &mut Outgoing) {
        while let Some(event) = self.endpoint.poll_event() {
            if let Event::PskNeeded { handshake, identity } = &event {
                self.waiting.push((*handshake, identity.clone()));
            }
            self.events.push(event);
            if !self.hold_keys {
                self.provide(out);
            }
        }
    }

    fn provide(&mut self, out: &mut Outgoing) {
        for (handshake, identity) in std::mem::take(&mut self.waiting) {
            let key = identity
                .starts_with(b"lamp")
                .then(|| (psk(), String::from_utf8_lossy(&identity).into_owned()));
            self.endpoint.provide_psk(self.now, handshake, key, out);
        }
        while let Some(event) = self.endpoint.poll_event() {
            self.events.push(event);
        }
    }

    fn advance(&mut self, by: Duration) -> Outgoing {
        self.now += by;
        let mut out = Outgoing::new();
        self.endpoint.handle_timeout(self.now, &mut out);
        self.drain(&mut out);
        out
    }

    fn session(&self) -> SessionId {
        self.events
            .iter()
            .rev()
            .find_map(|event| match event {
                Event::Established { session, .. } => Some(*session),
                _ => None,
            })
            .expect("a session")
    }

    fn failures(&self) -> Vec<Failure> {
        self.events
            .iter()
            .filter_map(|event| match event {
                Event::HandshakeFailed { reason, .. } => Some(*reason),
                _ => None,
            })
            .collect()
    }

    fn closed(&self) -> Vec<Closed> {
        self.events
            .iter()
            .filter_map(|event| match event {
                Event::Closed { reason, .. } => Some(*reason),
                _ => None,
            })
            .collect()
    }
}

/// Passes everything between the two without loss until both are silent.
fn converse(server: &mut Server, client: &mut Client, from: SocketAddr, mut to_server: Vec<Vec<u8>>) {
    while !to_server.is_empty() {
        let mut next = Vec::new();
        for datagram in to_server {
            for (to, answer) in server.receive(from, &datagram) {
                // Another client may be told that it was evicted.
                if to == from {
                    next.extend(client.receive(server.now, &answer));
                }
            }
        }
        to_server = next;
    }
}

fn connect(server: &mut Server, profile: Profile, from: SocketAddr, random: u8) -> Client {
    let mut client = Client::new(profile, [random; 32]);
    let first = client.start(server.now);
    converse(server, &mut client, from, first);
    client
}

fn established() -> (Server, Client) {
    let mut server = Server::new(Config::default());
    let client = connect(&mut server, profile(), peer(), 1);
    assert!(client.is_established());
    (server, client)
}

fn echoes(server: &mut Server, client: &mut Client, from: SocketAddr, text: &[u8]) -> bool {
    client.received.clear();
    let datagram = client.send(text);
    converse(server, client, from, vec![datagram]);
    client.received == [text]
}

#[test]
fn every_suite_with_and_without_extended_master_secret_makes_a_session() {
    for suite in Suite::ALL {
        for extended_master_secret in [false, true] {
            let mut server = Server::new(Config::default());
            let groups = vec![29, 23];
            let profile = Profile { suites: vec![suite.code()], extended_master_secret, groups, ..profile() };
            let mut client = connect(&mut server, profile, peer(), 1);
            assert!(client.is_established());
            assert_eq!(client.agreed(), Some((suite, extended_master_secret)));
            assert_eq!(server.endpoint.principal(server.session()).map(String::as_str), Some("lamp-1"));
            assert!(echoes(&mut server, &mut client, peer(), b"ping"));
        }
    }
}

#[test]
fn the_servers_preference_decides_among_the_suites_offered() {
    let mut server = Server::new(Config::default());
    let offered = [0x1301, 0x00a8, 0xc0a4, 0xc0a8];
    let client = connect(&mut server, Profile { suites: offered.to_vec(), ..profile() }, peer(), 1);
    assert_eq!(client.agreed().map(|agreed| agreed.0), Some(Suite::PskAes128Ccm8));
}

#[test]
fn a_stranger_costs_nothing_and_gets_no_more_than_it_sent() {
    let mut server = Server::new(Config::default());
    for port in 1..1000 {
        let mut client = Client::new(profile(), [9; 32]);
        let hello = client.start(server.now).concat();
        let from = SocketAddr::new(peer().ip(), port);
        let answer = server.receive(from, &hello);
        assert_eq!(answer.len(), 1);
        assert!(answer[0].1.len() <= hello.len());
    }
    assert_eq!(server.endpoint.handshakes(), 0);
    assert!(server.endpoint.remembers_nobody());
    assert_eq!(server.endpoint.poll_timeout(), None);
}

/// RFC 6347 §4.2.1: the HelloVerifyRequest carries the record sequence number of
/// the ClientHello, and DTLS 1.0 as its version.
#[test]
fn a_hello_verify_request_needs_no_state_for_its_numbers() {
    let mut server = Server::new(Config::default());
    let mut hello = Client::new(profile(), [9; 32]).start(server.now).concat();
    hello[10] = 77;
    let answer = server.receive(peer(), &hello).remove(0).1;
    assert_eq!(answer[1..3], [0xfe, 0xff]);
    assert_eq!(answer[10], 77);
    assert_eq!(answer[13], 3);
    assert_eq!(answer[17..19], [0, 0], "message_seq");
}

#[test]
fn a_cookie_of_another_address_is_answered_with_a_new_one() {
    let mut server = Server::new(Config::default());
    let mut client = Client::new(profile(), [9; 32]);
    let hello = client.start(server.now).concat();
    let request = server.receive(peer(), &hello).remove(0).1;
    let second = client.receive(server.now, &request).concat();
    let elsewhere = "192.0.2.8:40000".parse().unwrap();
    let answer = server.receive(elsewhere, &second).remove(0).1;
    assert_eq!(answer[13], 3, "a HelloVerifyRequest again");
    assert_eq!(server.endpoint.handshakes(), 0);
}

#[test]
fn fragments_of_every_size_in_either_order_and_packing_are_put_together() {
    for fragment in [1, 2, 7, 16, 50, 100] {
        for (reverse, coalesce) in [(false, false), (false, true), (true, false), (true, true)] {
            // The cookie must be in the first fragment of a ClientHello that begins a handshake.
            let mut server = Server::new(Config::default());
            let mut client = Client::new(profile(), [1; 32]);
            let hello = client.start(server.now).concat();
            let request = server.receive(peer(), &hello).remove(0).1;
            let second = client.receive(server.now, &request).concat();
            client.profile = Profile { fragment, reverse, coalesce, ..profile() };
            for (_, flight) in server.receive(peer(), &second) {
                let last = client.receive(server.now, &flight);
                converse(&mut server, &mut client, peer(), last);
            }
            // With the order reversed, Finished and ChangeCipherSpec come first.
            assert!(client.is_established(), "fragment {fragment} reverse {reverse} coalesce {coalesce}");
        }
    }
}

#[test]
fn a_fragmented_client_hello_with_its_cookie_in_the_first_fragment_is_put_together() {
    let mut server = Server::new(Config::default());
    let profile =
        Profile { fragment: 60, coalesce: false, suites: (0..100).chain([0xc0a8]).collect(), ..profile() };
    let client = connect(&mut server, profile, peer(), 1);
    assert!(client.is_established());
}

/// Runs one client against the server over a bad network until it is established
/// and has its echo, in virtual time.
fn over_bad_network(seed: u64, loss: f64, duplication: f64, profile: Profile) -> Option<Duration> {
    let mut random = StdRng::seed_from_u64(seed);
    let mut server = Server::new(Config { handshake_timeout: Duration::from_secs(300), ..Config::default() });
    let start = server.now;
    let mut client = Client::new(profile, [seed as u8; 32]);
    // (due, to the server, datagram); the order of arrival is the order of due.
    let mut network: Vec<(Instant, bool, Vec<u8>)> = Vec::new();
    let mut send = |network: &mut Vec<_>, now: Instant, to_server: bool, datagram: Vec<u8>| {
        let copies = if random.random_bool(duplication) { 2 } else { 1 };
        for _ in 0..copies {
            if !random.random_bool(loss) {
                let delay = Duration::from_millis(random.random_range(5..400));
                network.push((now + delay, to_server, datagram.clone()));
            }
        }
    };
    for datagram in client.start(server.now) {
        send(&mut network, server.now, true, datagram);
    }
    let mut asked_at: Option<Instant> = None;
    while server.now < start + Duration::from_secs(300) {
        let network_due = network.iter().map(|(due, ..)| *due).min();
        let again = asked_at.map(|at| at + Duration::from_secs(2));
        let due = [network_due, client.poll_timeout(), server.endpoint.poll_timeout(), again];
        let now = due.into_iter().flatten().min()?.max(server.now);
        let mut to_send = Vec::new();
        to_send.extend(server.advance(now - server.now).into_iter().map(|(_, datagram)| (false, datagram)));
        to_send.extend(client.handle_timeout(now).into_iter().map(|datagram| (true, datagram)));
        while let Some(at) = network.iter().position(|(due, ..)| *due <= now) {
            let (_, to_server, datagram) = network.remove(at);
            if to_server {
                to_send.extend(
                    server.receive(peer(), &datagram).into_iter().map(|(_, datagram)| (false, datagram)),
                );
            } else {
                to_send.extend(client.receive(now, &datagram).into_iter().map(|datagram| (true, datagram)));
            }
        }
        if client.is_established() && asked_at.is_none_or(|at| now >= at + Duration::from_secs(2)) {
            asked_at = Some(now);
            to_send.push((true, client.send(b"certificate, please")));
        }
        for (to_server, datagram) in to_send {
            send(&mut network, now, to_server, datagram);
        }
        if !client.received.is_empty() {
            assert_eq!(client.received[0], b"certificate, please");
            return Some(now - start);
        }
    }
    None
}

#[test]
fn handshakes_succeed_under_loss_duplication_reordering_and_fragmentation() {
    for seed in 0..300 {
        let profile = Profile {
            fragment: if seed % 2 == 0 { 70 } else { usize::MAX },
            coalesce: seed % 3 == 0,
            ..profile()
        };
        let took = over_bad_network(seed, 0.3, 0.2, profile);
        assert!(took.is_some(), "seed {seed}: not established within 300 s");
    }
}

#[test]
fn a_lost_flight_is_sent_again_after_one_second_then_two() {
    let mut server = Server::new(Config::default());
    let mut client = Client::new(profile(), [1; 32]);
    let hello = client.start(server.now).concat();
    let request = server.receive(peer(), &hello).remove(0).1;
    let second = client.receive(server.now, &request).concat();
    let flight = server.receive(peer(), &second);
    assert_eq!(flight.len(), 1);
    assert_eq!(server.endpoint.poll_timeout(), Some(server.now + Duration::from_secs(1)));
    assert_eq!(server.advance(Duration::from_millis(999)), []);
    let again = server.advance(Duration::from_millis(1));
    assert_eq!(again.len(), 1);
    assert_ne!(again[0].1, flight[0].1, "new record numbers");
    assert_eq!(server.advance(Duration::from_millis(1999)), []);
    assert_eq!(server.advance(Duration::from_millis(1)).len(), 1);
    // The retransmission is as good as the first.
    for (_, datagram) in again {
        let last = client.receive(server.now, &datagram);
        converse(&mut server, &mut client, peer(), last);
    }
    assert!(client.is_established());
    assert_eq!(server.advance(Duration::from_secs(4)), [], "an established session sends no flight");
}

#[test]
fn a_repeated_client_hello_gets_the_flight_again() {
    let mut server = Server::new(Config::default());
    let mut client = Client::new(profile(), [1; 32]);
    let hello = client.start(server.now).concat();
    let request = server.receive(peer(), &hello).remove(0).1;
    let second = client.receive(server.now, &request).concat();
    assert_eq!(server.receive(peer(), &second).len(), 1);
    assert_eq!(server.receive(peer(), &second).len(), 1);
    assert_eq!(server.endpoint.handshakes(), 1);
}

#[test]
fn a_lost_finished_is_sent_again() {
    let mut server = Server::new(Config::default());
    let mut client = Client::new(profile(), [1; 32]);
    let hello = client.start(server.now).concat();
    let request = server.receive(peer(), &hello).remove(0).1;
    let second = client.receive(server.now, &request).concat();
    let flight = server.receive(peer(), &second).remove(0).1;
    let last = client.receive(server.now, &flight).concat();
    let lost = server.receive(peer(), &last);
    assert_eq!(lost.len(), 1);
    assert!(!client.is_established());
    let later = server.now + Duration::from_secs(1);
    let again = client.handle_timeout(later);
    converse(&mut server, &mut client, peer(), again);
    assert!(client.is_established());
    assert!(echoes(&mut server, &mut client, peer(), b"hello"));
}

#[test]
fn the_key_may_come_later() {
    let mut server = Server::new(Config::default());
    server.hold_keys = true;
    let mut client = connect(&mut server, profile(), peer(), 1);
    assert!(!client.is_established());
    let mut out = Outgoing::new();
    server.provide(&mut out);
    for (_, datagram) in out {
        client.receive(server.now, &datagram);
    }
    assert!(client.is_established());
}

#[test]
fn an_unknown_identity_and_a_wrong_key_look_alike() {
    let transcript = |profile: Profile| {
        let mut server = Server::new(Config::default());
        let mut client = Client::new(profile, [1; 32]);
        let mut to_server = client.start(server.now);
        let mut answers = Vec::new();
        while !to_server.is_empty() {
            let mut next = Vec::new();
            for datagram in to_server {
                for (_, answer) in server.receive(peer(), &datagram) {
                    next.extend(client.receive(server.now, &answer));
                    answers.push(answer);
                }
            }
            to_server = next;
        }
        assert!(!client.is_established());
        // RFC 4279 §2: decrypt_error for both.
        assert_eq!(client.alert, Some((2, 51)));
        assert_eq!(server.advance(Duration::from_secs(30)), []);
        assert_eq!(server.failures(), [Failure::WrongKey]);
        answers
    };
    let wrong_key = Profile { psk: Psk::new(vec![1; 16]).unwrap(), ..profile() };
    let unknown = Profile { identity: b"sofa-1".to_vec(), ..profile() };
    assert_eq!(transcript(wrong_key), transcript(unknown));
}

#[test]
fn guesses_at_the_key_are_bounded_and_one_alert_is_sent() {
    let mut server = Server::new(Config::default());
    let mut client =
        connect(&mut server, Profile { psk: Psk::new(vec![1; 16]).unwrap(), ..profile() }, peer(), 1);
    let mut alerts = 0;
    for _ in 0..10 {
        let guess = client.seal(ContentType::Handshake, &[20; 24]);
        alerts += server.receive(peer(), &guess).len();
    }
    assert_eq!(alerts, 0, "the one alert was sent for the first Finished");
    assert_eq!(server.failures(), [Failure::WrongKey]);
    assert_eq!(server.endpoint.handshakes(), 0);
}

#[test]
fn no_suite_in_common_is_told() {
    let mut server = Server::new(Config::default());
    let client = connect(&mut server, Profile { suites: vec![0x1301, 0x00ae], ..profile() }, peer(), 1);
    assert_eq!(client.alert, Some((2, 40)));
    assert_eq!(server.failures(), [Failure::NoCommonSuite]);
    assert!(server.endpoint.remembers_nobody());
}

#[test]
fn extended_master_secret_can_be_required() {
    let mut server = Server::new(Config { require_extended_master_secret: true, ..Config::default() });
    let client = connect(&mut server, Profile { extended_master_secret: false, ..profile() }, peer(), 1);
    assert_eq!(client.alert, Some((2, 40)));
    assert!(connect(&mut server, profile(), peer(), 2).is_established());
}

#[test]
fn a_replayed_record_is_dropped() {
    let (mut server, mut client) = established();
    let datagram = client.send(b"once");
    assert_eq!(server.receive(peer(), &datagram).len(), 1);
    assert_eq!(server.receive(peer(), &datagram), []);
    assert_eq!(server.endpoint.counters().bad_records, 1);
    assert!(echoes(&mut server, &mut client, peer(), b"again"));
}

#[test]
fn a_record_with_a_bad_tag_does_not_close_the_session() {
    let (mut server, mut client) = established();
    for _ in 0..1000 {
        let mut datagram = client.send(b"data");
        *datagram.last_mut().unwrap() ^= 1;
        assert_eq!(server.receive(peer(), &datagram), []);
    }
    assert!(echoes(&mut server, &mut client, peer(), b"still here"));
}

#[test]
fn plaintext_data_and_alerts_do_not_touch_a_session() {
    let (mut server, mut client) = established();
    for (kind, payload) in [(23, &b"plain data"[..]), (21, &[2, 40]), (21, &[1, 0]), (20, &[1])] {
        let mut record = vec![kind, 0xfe, 0xfd, 0, 0, 0, 0, 0, 0, 0, 9, 0, payload.len() as u8];
        record.extend(payload);
        assert_eq!(server.receive(peer(), &record), []);
    }
    assert!(server.data.is_empty());
    assert!(echoes(&mut server, &mut client, peer(), b"still here"));
}

#[test]
fn close_notify_is_answered_and_ends_the_session() {
    let (mut server, mut client) = established();
    let bye = client.close();
    let answer = server.receive(peer(), &bye).remove(0).1;
    client.receive(server.now, &answer);
    assert_eq!(client.alert, Some((1, 0)));
    assert_eq!(server.closed(), [Closed::ByPeer]);
    assert!(server.endpoint.remembers_nobody());
    assert!(!echoes(&mut server, &mut client, peer(), b"gone"));
}

#[test]
fn a_fatal_alert_ends_the_session_without_an_answer() {
    let (mut server, mut client) = established();
    let alert = client.seal(ContentType::Alert, &[2, 80]);
    assert_eq!(server.receive(peer(), &alert), []);
    assert_eq!(server.closed(), [Closed::ByAlert(80)]);
}

/// RFC 5246 §7.2.2.
#[test]
fn renegotiation_is_refused_and_the_session_goes_on() {
    let (mut server, mut client) = established();
    let hello = client.seal(ContentType::Handshake, &[1, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0]);
    let answer = server.receive(peer(), &hello).remove(0).1;
    client.receive(server.now, &answer);
    assert_eq!(client.alert, Some((1, 100)));
    assert!(echoes(&mut server, &mut client, peer(), b"still here"));
}

/// RFC 6347 §4.2.8.
#[test]
fn a_device_that_reboots_starts_anew_from_the_same_port() {
    let (mut server, mut old) = established();
    let old_session = server.session();
    let mut new = Client::new(profile(), [2; 32]);
    let hello = new.start(server.now);
    // Until the new handshake is complete the old session lives.
    let request = server.receive(peer(), &hello.concat()).remove(0).1;
    assert!(echoes(&mut server, &mut old, peer(), b"before the cookie"));
    let second = new.receive(server.now, &request).concat();
    let flight = server.receive(peer(), &second).remove(0).1;
    assert!(echoes(&mut server, &mut old, peer(), b"before Finished"));
    let last = new.receive(server.now, &flight);
    converse(&mut server, &mut new, peer(), last);
    assert!(new.is_established());
    assert_eq!(server.closed(), [Closed::Replaced]);
    assert_eq!(server.endpoint.principal(old_session), None);
    assert!(echoes(&mut server, &mut new, peer(), b"anew"));
    assert!(!echoes(&mut server, &mut old, peer(), b"the old keys are gone"));
    assert_eq!(server.endpoint.sessions(), 1);
}

#[test]
fn a_spoofed_hello_and_a_handshake_with_a_wrong_key_do_not_tear_a_session_down() {
    let (mut server, mut client) = established();
    for random in 2..50 {
        let wrong = Profile { psk: Psk::new(vec![1; 16]).unwrap(), ..profile() };
        let intruder = connect(&mut server, wrong, peer(), random);
        assert!(!intruder.is_established());
    }
    assert!(echoes(&mut server, &mut client, peer(), b"still here"));
    server.advance(Duration::from_secs(31));
    assert_eq!(server.endpoint.handshakes(), 0);
    assert!(echoes(&mut server, &mut client, peer(), b"still here"));
}

#[test]
fn a_silent_handshake_is_given_up_in_time() {
    let mut server = Server::new(Config::default());
    let mut client = Client::new(profile(), [1; 32]);
    let hello = client.start(server.now).concat();
    let request = server.receive(peer(), &hello).remove(0).1;
    let second = client.receive(server.now, &request).concat();
    server.receive(peer(), &second);
    let mut flights = 0;
    while let Some(at) = server.endpoint.poll_timeout() {
        flights += server.advance(at - server.now).len();
    }
    assert_eq!(flights, 4, "after 1, 3, 7 and 15 s");
    assert_eq!(server.failures(), [Failure::TimedOut]);
    assert!(server.endpoint.remembers_nobody());
}

#[test]
fn an_idle_session_is_closed_and_a_used_one_is_not() {
    let mut server = Server::new(Config::default());
    let mut used = connect(&mut server, profile(), peer(), 1);
    let other = "192.0.2.9:1".parse().unwrap();
    connect(&mut server, profile(), other, 2);
    server.advance(Duration::from_secs(200));
    assert!(echoes(&mut server, &mut used, peer(), b"here"));
    let bye = server.advance(Duration::from_secs(100));
    assert_eq!(bye.iter().map(|(to, _)| *to).collect::<Vec<_>>(), [other]);
    assert_eq!(server.closed(), [Closed::Idle]);
    assert!(echoes(&mut server, &mut used, peer(), b"still here"));
}

#[test]
fn a_full_table_gives_up_the_oldest() {
    let config = Config { max_sessions: 10, max_handshakes: 10, ..Config::default() };
    let mut server = Server::new(config);
    let from = |port| SocketAddr::new(peer().ip(), port);
    // Half-open handshakes of clients that own their address ...
    for port in 1..=100 {
        let mut client = Client::new(profile(), [3; 32]);
        let hello = client.start(server.now).concat();
        let request = server.receive(from(port), &hello).remove(0).1;
        let second = client.receive(server.now, &request).concat();
        server.receive(from(port), &second);
    }
    assert_eq!(server.endpoint.handshakes(), 10);
    // ... do not keep an honest one out.
    for port in 101..=120 {
        assert!(connect(&mut server, profile(), from(port), 1).is_established());
    }
    assert_eq!(server.endpoint.sessions(), 10);
    assert_eq!(server.closed(), [Closed::Evicted; 10]);
}

#[test]
fn half_open_handshakes_of_one_address_do_not_take_the_places_of_others() {
    let config = Config { max_handshakes: 100, max_handshakes_per_address: 10, ..Config::default() };
    let mut server = Server::new(config);
    let half_open = |server: &mut Server, from: SocketAddr| {
        let mut client = Client::new(profile(), [3; 32]);
        let hello = client.start(server.now).concat();
        let request = server.receive(from, &hello).remove(0).1;
        let second = client.receive(server.now, &request).concat();
        (server.receive(from, &second).remove(0).1, client)
    };
    // A device that is slow ...
    let (flight, mut slow) = half_open(&mut server, elsewhere());
    // ... and an attacker that owns its address and every port of it.
    for port in 1..=1000 {
        half_open(&mut server, SocketAddr::new(peer().ip(), port));
    }
    assert_eq!(server.endpoint.handshakes(), 11);
    assert_eq!(server.failures(), [Failure::Evicted; 990]);
    let last = slow.receive(server.now, &flight);
    converse(&mut server, &mut slow, elsewhere(), last);
    assert!(slow.is_established());
    server.advance(Duration::from_secs(31));
    server.advance(Duration::from_secs(300));
    assert!(server.endpoint.remembers_nobody());
}

/// RFC 6347 §4.1: a sequence number is never used twice, lest a nonce be.
#[test]
fn a_session_ends_before_its_sequence_numbers_wrap() {
    let (mut server, mut client) = established();
    let session = server.session();
    server.endpoint.set_next_write(session, (1 << 48) - 1);
    assert!(echoes(&mut server, &mut client, peer(), b"the last one"));
    assert!(!echoes(&mut server, &mut client, peer(), b"one too many"));
    assert_eq!(server.closed(), [Closed::Exhausted]);
}

#[test]
fn garbage_truncation_and_bit_flips_neither_panic_nor_grow() {
    let mut random = StdRng::seed_from_u64(7);
    let mut server = Server::new(Config { max_handshakes: 8, ..Config::default() });
    let mut corpus: Vec<Vec<u8>> = Vec::new();
    let mut client = Client::new(profile(), [1; 32]);
    let mut to_server = client.start(server.now);
    while !to_server.is_empty() {
        let mut next = Vec::new();
        for datagram in to_server {
            for (_, answer) in server.receive(peer(), &datagram) {
                next.extend(client.receive(server.now, &answer));
            }
            corpus.push(datagram);
        }
        to_server = next;
    }
    corpus.push(client.send(b"data"));
    for round in 0..20_000u32 {
        let mut datagram = corpus[random.random_range(0..corpus.len())].clone();
        match random.random_range(0..4) {
            0 => datagram.truncate(random.random_range(0..=datagram.len())),
            1 => random.fill_bytes(&mut datagram),
            2 => {
                let at = random.random_range(0..datagram.len());
                datagram[at] ^= 1 << random.random_range(0..8);
            }
            _ => {
                let at = random.random_range(0..datagram.len());
                let end = random.random_range(at..datagram.len());
                random.fill_bytes(&mut datagram[at..end]);
            }
        }
        let from = SocketAddr::new(peer().ip(), 1 + (round % 50) as u16);
        server.receive(from, &datagram);
        server.events.clear();
        if round % 100 == 0 {
            server.advance(Duration::from_millis(100));
        }
    }
    assert!(server.endpoint.handshakes() <= 8);
    server.advance(Duration::from_secs(400));
    assert!(server.endpoint.remembers_nobody());
    assert!(connect(&mut server, profile(), peer(), 5).is_established());
}

/// RFC 5489, RFC 8442.
#[test]
fn ephemeral_suites_are_preferred_and_agree_in_the_clients_favourite_group() {
    for (groups, expected) in
        [(vec![29], 29), (vec![23], 23), (vec![23, 29], 23), (vec![29, 23], 29), (vec![0x5a5a, 23], 23)]
    {
        let mut server = Server::new(Config::default());
        let suites = vec![0xc0a8, 0xd001, 0xd003];
        let mut client = connect(&mut server, Profile { suites, groups, ..profile() }, peer(), 1);
        assert!(client.is_established());
        assert_eq!(client.agreed().map(|agreed| agreed.0), Some(Suite::EcdhePskAes128Ccm8));
        assert_eq!(client.group(), Some(expected));
        assert!(echoes(&mut server, &mut client, peer(), b"secret forever"));
    }
}

/// RFC 8422 §4: a hello of before the extension leaves the group to the server.
#[test]
fn an_ephemeral_suite_without_groups_uses_p256() {
    let mut server = Server::new(Config::default());
    let client = connect(&mut server, Profile { suites: vec![0xd001], ..profile() }, peer(), 1);
    assert!(client.is_established());
    assert_eq!(client.group(), Some(23));
}

#[test]
fn without_a_common_group_the_next_suite_is_taken() {
    let mut server = Server::new(Config::default());
    let suites = vec![0xd003, 0xc0a8];
    let client = connect(&mut server, Profile { suites, groups: vec![24, 30], ..profile() }, peer(), 1);
    assert!(client.is_established());
    assert_eq!(client.agreed().map(|agreed| agreed.0), Some(Suite::PskAes128Ccm8));
}

#[test]
fn a_wrong_key_fails_with_an_ephemeral_suite_as_well() {
    let mut server = Server::new(Config::default());
    let psk = Psk::new(vec![1; 16]).unwrap();
    let profile = Profile { suites: vec![0xd003], groups: vec![29], psk, ..profile() };
    let client = connect(&mut server, profile, peer(), 1);
    assert!(!client.is_established());
    assert_eq!(client.alert, Some((2, 51)));
}

/// RFC 7748 §6.1: an all-zero secret is refused, before any key is looked up.
#[test]
fn a_point_of_small_order_ends_the_handshake() {
    let mut server = Server::new(Config::default());
    let mut client = Client::new(Profile { suites: vec![0xd003], groups: vec![29], ..profile() }, [1; 32]);
    client.point = Some(vec![0; 32]);
    let first = client.start(server.now);
    converse(&mut server, &mut client, peer(), first);
    assert!(!client.is_established());
    assert_eq!(client.alert, Some((2, 47)));
    assert_eq!(server.failures(), [Failure::Malformed]);
}

fn elsewhere() -> SocketAddr {
    "198.51.100.3:1234".parse().unwrap()
}

fn with_connection_id(id: &[u8]) -> (Server, Client) {
    let mut server = Server::new(Config { connection_id_prefix: Some(7), ..Config::default() });
    let profile = Profile { connection_id: Some(id.to_vec()), ..profile() };
    let client = connect(&mut server, profile, peer(), 1);
    assert!(client.is_established());
    assert_eq!(client.server_connection_id().len(), 8);
    assert_eq!(client.server_connection_id()[0], 7);
    (server, client)
}

/// RFC 9146.
#[test]
fn a_device_with_a_connection_id_goes_on_from_another_address_without_a_handshake() {
    for id in [&[][..], b"d", &[9; 20]] {
        let (mut server, mut client) = with_connection_id(id);
        assert!(echoes(&mut server, &mut client, peer(), b"here"));
        assert!(echoes(&mut server, &mut client, elsewhere(), b"there"));
        assert_eq!(server.endpoint.peer(server.session()), Some(elsewhere()));
        assert!(echoes(&mut server, &mut client, peer(), b"and back"));
        assert_eq!(server.endpoint.counters().moved, 2);
        assert_eq!(server.endpoint.sessions(), 1);
    }
}

/// RFC 9146 §3: when IDs are not agreed on, records are as ever.
#[test]
fn a_server_that_hands_out_no_connection_ids_ignores_the_extension() {
    let mut server = Server::new(Config { connection_id_prefix: None, ..Config::default() });
    let profile = Profile { connection_id: Some(b"device".to_vec()), ..profile() };
    let mut client = connect(&mut server, profile, peer(), 1);
    assert!(client.is_established());
    assert!(client.server_connection_id().is_empty());
    assert!(echoes(&mut server, &mut client, peer(), b"here"));
    assert!(!echoes(&mut server, &mut client, elsewhere(), b"lost without an ID"));
}

/// RFC 9146 §6: only a newer authenticated record moves a client.
#[test]
fn an_old_or_forged_record_from_elsewhere_moves_nobody() {
    let (mut server, mut client) = with_connection_id(b"");
    let late = client.send(b"late");
    assert!(echoes(&mut server, &mut client, peer(), b"newer"));
    let answers = server.receive(elsewhere(), &late);
    assert!(answers.iter().all(|(to, _)| *to == peer()), "answered where the client is");
    assert_eq!(server.receive(elsewhere(), &late), [], "a replay");
    let mut forged = client.send(b"forged");
    *forged.last_mut().unwrap() ^= 1;
    assert_eq!(server.receive(elsewhere(), &forged), []);
    assert_eq!(server.endpoint.peer(server.session()), Some(peer()));
    assert_eq!(server.endpoint.counters().moved, 0);
}

#[test]
fn to_an_address_that_was_not_tried_no_more_than_three_times_its_bytes_are_sent() {
    let (mut server, mut client) = with_connection_id(b"");
    let moved = client.send(b"x");
    let mut sent: usize =
        server.receive(elsewhere(), &moved).iter().map(|(_, datagram)| datagram.len()).sum();
    let session = server.session();
    for _ in 0..100 {
        let mut out = Outgoing::new();
        server.endpoint.send(session, &[0; 60], &mut out);
        sent += out.iter().map(|(_, datagram)| datagram.len()).sum::<usize>();
    }
    assert!(sent <= 3 * moved.len(), "{sent} bytes for {}", moved.len());
    // What comes from there earns more.
    assert!(echoes(&mut server, &mut client, elsewhere(), b"I am really here"));
}

#[test]
fn a_device_with_an_id_cannot_push_another_device_out_of_its_address() {
    let (mut server, mut attacker) = with_connection_id(b"");
    let victim_address = elsewhere();
    let mut victim = connect(&mut server, profile(), victim_address, 2);
    assert!(echoes(&mut server, &mut victim, victim_address, b"mine"));
    let spoofed = attacker.send(b"from the victim's address");
    server.receive(victim_address, &spoofed);
    assert!(echoes(&mut server, &mut victim, victim_address, b"still mine"));
}

/// RFC 9146 §3: once IDs are agreed on, a record without one is discarded.
#[test]
fn a_record_without_the_id_that_was_agreed_on_is_dropped() {
    let (mut server, mut client) = with_connection_id(b"");
    client.server_extensions.remove(&54);
    assert!(!echoes(&mut server, &mut client, peer(), b"no ID"));
}

#[test]
fn an_idle_session_with_an_id_is_forgotten_altogether() {
    let (mut server, _client) = with_connection_id(b"");
    server.advance(Duration::from_secs(301));
    assert_eq!(server.closed(), [Closed::Idle]);
    assert!(server.endpoint.remembers_nobody());
}

#[test]
fn the_prefix_of_a_connection_id_is_found_without_keys() {
    let (_server, mut client) = with_connection_id(b"");
    assert_eq!(super::connection_id_prefix(&client.send(b"x")), Some(7));
    assert_eq!(super::connection_id_prefix(&[22, 0xfe, 0xfd, 0, 0]), None);
    assert_eq!(super::connection_id_prefix(&[25]), None);
}

/// RFC 6066 §4, RFC 8449.
#[test]
fn limits_of_the_record_size_are_answered_and_kept() {
    for (extension, answer, limit) in [
        (vec![0, 1, 0, 1, 1], Some((1, vec![1])), 512),
        (vec![0, 1, 0, 1, 4], Some((1, vec![4])), 4096),
        (vec![0, 28, 0, 2, 0, 64], Some((28, 1200u16.to_be_bytes().to_vec())), 64),
        // The newer one counts, whichever comes first.
        (vec![0, 1, 0, 1, 1, 0, 28, 0, 2, 0, 100], Some((28, 1200u16.to_be_bytes().to_vec())), 100),
        (vec![0, 28, 0, 2, 0, 100, 0, 1, 0, 1, 1], Some((28, 1200u16.to_be_bytes().to_vec())), 100),
        (vec![], None, 16_384),
    ] {
        let mut server = Server::new(Config::default());
        let mut client = connect(&mut server, Profile { extensions: extension, ..profile() }, peer(), 1);
        assert!(client.is_established());
        for kind in [1, 28] {
            let expected = answer.as_ref().filter(|(answered, _)| *answered == kind).map(|(_, body)| body);
            assert_eq!(client.server_extensions.get(&kind), expected);
        }
        let session = server.session();
        assert_eq!(server.endpoint.max_data(session), Some(limit));
        assert!(!server.endpoint.send(session, &vec![0; limit + 1], &mut Outgoing::new()));
        assert!(server.endpoint.send(session, &vec![0; limit], &mut Outgoing::new()));
        assert!(echoes(&mut server, &mut client, peer(), b"small"));
    }
}

#[test]
fn forbidden_limits_of_the_record_size_are_told() {
    for extension in [vec![0, 1, 0, 1, 0], vec![0, 1, 0, 1, 5], vec![0, 1, 0, 0], vec![0, 28, 0, 2, 0, 63]] {
        let mut server = Server::new(Config::default());
        let client = connect(&mut server, Profile { extensions: extension, ..profile() }, peer(), 1);
        assert_eq!(client.alert, Some((2, 47)));
    }
}

/// RFC 8701 (GREASE), RFC 6066 §3 (SNI), RFC 5077 (ticket), resumption attempts.
#[test]
fn whatever_a_hello_carries_besides_leads_to_a_full_handshake() {
    let grease = [0x5a, 0x5a, 0, 1, 0];
    let server_name = [&[0, 0, 0, 9, 0, 7, 0, 0, 4][..], b"lamp"].concat();
    let ticket = [&[0, 35, 0, 16][..], &[7; 16]].concat();
    let versions = [0, 43, 0, 5, 4, 0xfe, 0xfc, 0xfe, 0xfd];
    let extensions = [&grease[..], &server_name, &ticket, &versions].concat();
    let mut suites: Vec<u16> = (0x1301..0x1306).chain(0xc001..0xc0a8).collect();
    suites.extend([0x5a5a, 0xc0a8, 0x00ff, 0x5600]);
    for session_id in [vec![], vec![3; 32]] {
        let mut server = Server::new(Config::default());
        let profile =
            Profile { extensions: extensions.clone(), suites: suites.clone(), session_id, ..profile() };
        let mut client = connect(&mut server, profile, peer(), 1);
        assert!(client.is_established());
        assert_eq!(client.server_extensions.keys().copied().collect::<Vec<_>>(), [0x17, 0xff01]);
        assert!(echoes(&mut server, &mut client, peer(), b"here"));
    }
}

/// RFC 6347 §4.1: records of an epoch that does not exist are discarded.
#[test]
fn records_of_a_wrong_epoch_are_dropped() {
    let (mut server, mut client) = established();
    for epoch in [2, 3, 0xffff] {
        let mut datagram = client.send(b"data");
        datagram[3..5].copy_from_slice(&u16::to_be_bytes(epoch));
        assert_eq!(server.receive(peer(), &datagram), []);
    }
    assert!(echoes(&mut server, &mut client, peer(), b"still here"));
}
