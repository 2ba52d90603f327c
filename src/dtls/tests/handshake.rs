//! Handshakes of every kind of client, over networks that lose, repeat, reorder and
//! fragment messages.

use std::collections::HashSet;

use super::*;

#[test]
fn every_suite_makes_a_session_with_and_without_extended_master_secret() {
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
fn fragments_of_every_size_order_and_packing_are_reassembled() {
    for fragment in [1, 2, 7, 16, 50, 100] {
        for (reverse, coalesce) in [(false, false), (false, true), (true, false), (true, true)] {
            // The server requires the cookie in the first fragment of a ClientHello, so the hellos are
            // sent whole and only the last flight is fragmented.
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
            // In reverse order, Finished and ChangeCipherSpec arrive before ClientKeyExchange, and
            // the server must keep them.
            assert!(client.is_established(), "fragment {fragment} reverse {reverse} coalesce {coalesce}");
        }
    }
}

#[test]
fn a_client_hello_with_its_cookie_in_the_first_fragment_is_reassembled() {
    let mut server = Server::new(Config::default());
    let profile =
        Profile { fragment: 60, coalesce: false, suites: (0..100).chain([0xc0a8]).collect(), ..profile() };
    let client = connect(&mut server, profile, peer(), 1);
    assert!(client.is_established());
}

/// Runs one client against the server over a bad network, in virtual time, until it is established
/// and has received its echo. `second` is the second key of the client's identity, if the identity
/// has two keys. Returns the elapsed time, or `None` after 300 s.
pub(super) fn over_bad_network(
    seed: u64,
    loss: f64,
    duplication: f64,
    profile: Profile,
    second: Option<Psk>,
) -> Option<Duration> {
    let mut random = StdRng::seed_from_u64(seed);
    let config = Config { handshake_timeout: Duration::from_secs(300), ..Config::default() };
    let mut server = Server { second, ..Server::new(config) };
    let start = server.now;
    let mut client = Client::new(profile, [seed as u8; 32]);
    // Datagrams on the network. Each has its time of arrival, a flag that is true if the server is
    // the receiver, and its bytes.
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
        let took = over_bad_network(seed, 0.3, 0.2, profile, None);
        assert!(took.is_some(), "seed {seed}: not established within 300 s");
    }
}

#[test]
fn a_lost_flight_is_resent_after_one_second_then_two() {
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
    // The client accepts the resent flight like the first copy.
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
    server.now += Duration::from_millis(500);
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
fn a_client_without_a_common_suite_gets_an_alert() {
    let mut server = Server::new(Config::default());
    let client = connect(&mut server, Profile { suites: vec![0x1301, 0x00ae], ..profile() }, peer(), 1);
    assert_eq!(client.alert, Some((2, 40)));
    assert_eq!(server.failures(), [Failure::NoCommonSuite]);
    assert!(server.endpoint.holds_no_state());
}

#[test]
fn extended_master_secret_can_be_required() {
    let mut server = Server::new(Config { require_extended_master_secret: true, ..Config::default() });
    let client = connect(&mut server, Profile { extended_master_secret: false, ..profile() }, peer(), 1);
    assert_eq!(client.alert, Some((2, 40)));
    assert!(connect(&mut server, profile(), peer(), 2).is_established());
}

/// RFC 6347 §4.2.8: the old session ends only when the new handshake has completed.
#[test]
fn a_device_that_reboots_can_start_again_from_the_same_port() {
    let (mut server, mut old) = established();
    let old_session = server.session();
    let mut new = Client::new(profile(), [2; 32]);
    let hello = new.start(server.now);
    // Until the new handshake is complete, the old session stays alive.
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
    assert!(echoes(&mut server, &mut new, peer(), b"after the reboot"));
    assert!(!echoes(&mut server, &mut old, peer(), b"the old keys are gone"));
    assert_eq!(server.endpoint.sessions(), 1);
}

/// RFC 5489, RFC 8442: the first suites of the server's list have an ephemeral key exchange.
#[test]
fn ephemeral_suites_are_preferred_and_use_the_clients_preferred_group() {
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

/// RFC 8422 §4: without the extension for groups, the server chooses the group.
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
    let mut client = connect(&mut server, profile, peer(), 1);
    assert!(!client.is_established());
    assert_eq!(alert_after(&mut server, &mut client, Duration::from_secs(12)), Some((2, 51)));
}

/// RFC 7748 §6.1: a point that leads to an all-zero secret is refused before any key is
/// looked up. Anyone can send such a point in the client's name, so the message is silently
/// dropped.
#[test]
fn a_point_of_small_order_is_dropped() {
    let mut server = Server::new(Config::default());
    let mut client = Client::new(Profile { suites: vec![0xd003], groups: vec![29], ..profile() }, [1; 32]);
    client.point = Some(vec![0; 32]);
    let first = client.start(server.now);
    converse(&mut server, &mut client, peer(), first);
    assert!(!client.is_established());
    assert_eq!(client.alert, None);
    assert!(!server.events.iter().any(|event| matches!(event, Event::PskNeeded { .. })));
    assert_eq!(server.endpoint.counters().dropped(Dropped::Message), 1);
}

/// The hello has extensions of RFC 8701 (GREASE), RFC 6066 §3 (SNI) and RFC 5077 (ticket),
/// and tries to resume a session.
#[test]
fn a_hello_with_unsupported_extensions_leads_to_a_full_handshake() {
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

/// RFC 5246 §7.4.1.3: the server's random differs each time. Otherwise two handshakes of a device
/// without entropy would have the same keys, and each nonce would be used twice under one key.
#[test]
fn each_server_hello_has_a_random_of_its_own() {
    let mut server = Server::new(Config::default());
    let mut randoms = HashSet::new();
    for _ in 0..20 {
        let mut client = Client::new(profile(), [1; 32]);
        let first = client.start(server.now);
        converse(&mut server, &mut client, peer(), first);
        assert!(client.is_established());
        assert!(randoms.insert(client.server_random()));
    }
}

/// RFC 5246 §7.4.1.4: the server answers only extensions that were offered. RFC 8422 §5.2:
/// point formats matter only for suites that use points.
#[test]
fn point_formats_are_answered_to_a_client_that_offers_them_with_an_ephemeral_suite() {
    for (suite, groups, is_answered) in
        [(0xd001, vec![23], true), (0xd001, vec![], false), (0xc0a8, vec![23], false)]
    {
        let mut server = Server::new(Config::default());
        let client = connect(&mut server, Profile { suites: vec![suite], groups, ..profile() }, peer(), 1);
        assert!(client.is_established());
        assert_eq!(client.server_extensions.contains_key(&11), is_answered, "{suite:x}");
    }
}

/// RFC 4279 §5.3: a server must support identities of up to 128 bytes.
#[test]
fn an_identity_of_128_bytes_is_looked_up_and_a_longer_one_is_not() {
    for (length, is_asked) in [(128, true), (129, false)] {
        let mut server = Server::new(Config::default());
        let identity = [&b"lamp"[..], &vec![b'x'; length - 4]].concat();
        let client = connect(&mut server, Profile { identity, ..profile() }, peer(), 1);
        assert_eq!(client.is_established(), is_asked);
        assert_eq!(server.events.iter().any(|event| matches!(event, Event::PskNeeded { .. })), is_asked);
    }
}

/// RFC 5246 §7.4.9: Finished covers the hellos. Without the extended master secret, a
/// changed hello does not change the keys, so only verify_data reveals the change.
#[test]
fn finished_reveals_a_hello_that_was_rewritten_in_transit() {
    let mut server = Server::new(Config::default());
    let suites = vec![0xc0a4, 0xc0a8, 0x00ff];
    let mut client = Client::new(Profile { suites, extended_master_secret: false, ..profile() }, [1; 32]);
    let first = client.start(server.now).concat();
    let request = server.receive(peer(), &first).remove(0).1;
    let mut hello = client.receive(server.now, &request).concat();
    let at = hello.windows(2).position(|code| code == [0xc0, 0xa4]).unwrap();
    hello[at + 1] = 0xfe;
    converse(&mut server, &mut client, peer(), vec![hello]);
    assert_eq!(client.agreed().map(|agreed| agreed.0), Some(Suite::PskAes128Ccm8), "the weaker one");
    assert!(!client.is_established());
    assert_eq!(client.alert, Some((2, 51)));
    assert_eq!(server.failures(), [Failure::WrongFinished]);
}
