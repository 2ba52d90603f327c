//! Records of a session, and the ways in which a session ends.

use std::collections::HashSet;

use super::*;
use crate::dtls::record;

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
    assert!(server.endpoint.holds_no_state());
    assert!(!echoes(&mut server, &mut client, peer(), b"gone"));
}

#[test]
fn a_fatal_alert_ends_the_session_without_an_answer() {
    let (mut server, mut client) = established();
    let alert = client.seal(ContentType::Alert, &[2, 80]);
    assert_eq!(server.receive(peer(), &alert), []);
    assert_eq!(server.closed(), [Closed::ByAlert(80)]);
}

/// RFC 5246 §7.2.2: a refused renegotiation is answered with the warning no_renegotiation.
#[test]
fn renegotiation_is_refused_and_the_session_goes_on() {
    let (mut server, mut client) = established();
    let hello = client.seal(ContentType::Handshake, &[1, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0]);
    let answer = server.receive(peer(), &hello).remove(0).1;
    client.receive(server.now, &answer);
    assert_eq!(client.alert, Some((1, 100)));
    assert!(echoes(&mut server, &mut client, peer(), b"still here"));
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

/// A session that is too old ends even if it is in use, because its key may have been revoked in
/// the meantime.
#[test]
fn a_session_that_is_too_old_ends_with_its_next_record() {
    let session_max_age = Duration::from_secs(400);
    let mut server = Server::new(Config { session_max_age, ..Config::default() });
    server.now += Duration::from_secs(50);
    let mut client = connect(&mut server, profile(), peer(), 1);
    for wait in [200, 199] {
        server.advance(Duration::from_secs(wait));
        assert!(echoes(&mut server, &mut client, peer(), b"in time"));
    }
    server.advance(Duration::from_secs(1));
    assert!(!echoes(&mut server, &mut client, peer(), b"too late"));
    assert_eq!((server.closed(), client.alert), (vec![Closed::Aged], Some((1, 0))));
    assert_eq!(server.data.len(), 2, "it was not delivered");
}

#[test]
fn two_finished_in_one_datagram_get_one_flight() {
    let (mut server, mut client) = established();
    let finished = client.seal(ContentType::Handshake, &[20; 24]);
    let twice = [finished, client.seal(ContentType::Handshake, &[20; 24])].concat();
    assert_eq!(server.receive(peer(), &twice).len(), 1);
    let counters = server.endpoint.counters();
    assert_eq!((counters.retransmissions, counters.dropped(Dropped::Flight)), (1, 1));
    server.receive(peer(), &client.seal(ContentType::Handshake, &[20; 24]));
    assert_eq!(server.endpoint.counters().retransmissions, 2);
}

/// Only the keys show whether a record belongs to the session or to the new handshake. A
/// record of the handshake does not count as a bad record of the session.
#[test]
fn a_finished_of_a_new_handshake_is_not_a_bad_record_of_the_session() {
    let (mut server, _) = established();
    assert!(connect(&mut server, profile(), peer(), 2).is_established());
    let counters = server.endpoint.counters();
    assert_eq!((counters.bad_records, counters.handshakes_completed), (0, 2));
    assert_eq!(counters.completed_by_suite.iter().sum::<u64>(), 2);
}

#[test]
fn an_evicted_session_is_counted() {
    let mut server = Server::new(Config { max_sessions: 1, ..Config::default() });
    for port in 1..=3 {
        assert!(connect(&mut server, profile(), SocketAddr::new(peer().ip(), port), 1).is_established());
    }
    assert_eq!((server.endpoint.counters().evicted, server.endpoint.sessions()), (2, 1));
}

/// RFC 6347 §4.1: no sequence number is used twice, so no nonce is used twice.
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
    assert!(server.endpoint.holds_no_state());
    assert!(connect(&mut server, profile(), peer(), 5).is_established());
}

/// Maximum length of data that fits into one datagram at the default path MTU, in bytes. Of 1,280
/// bytes, the IPv6 and UDP headers take 48, and protection takes 38.
const ONE_DATAGRAM: usize = 1280 - 48 - 38;

/// The limits are max_fragment_length (RFC 6066 §4) and record_size_limit (RFC 8449).
#[test]
fn limits_on_the_record_size_are_answered_and_respected() {
    for (extension, answer, limit) in [
        (vec![0, 1, 0, 1, 1], Some((1, vec![1])), 512),
        (vec![0, 1, 0, 1, 4], Some((1, vec![4])), ONE_DATAGRAM),
        (vec![0, 28, 0, 2, 0, 64], Some((28, 1200u16.to_be_bytes().to_vec())), 64),
        // If the hello has both extensions, record_size_limit applies, whatever their order.
        (vec![0, 1, 0, 1, 1, 0, 28, 0, 2, 0, 100], Some((28, 1200u16.to_be_bytes().to_vec())), 100),
        (vec![0, 28, 0, 2, 0, 100, 0, 1, 0, 1, 1], Some((28, 1200u16.to_be_bytes().to_vec())), 100),
        (vec![], None, ONE_DATAGRAM),
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
        assert_eq!(server.endpoint.send(session, &vec![0; limit + 1], &mut Outgoing::new()), Delivery::Lost);
        assert_eq!(server.endpoint.send(session, &vec![0; limit], &mut Outgoing::new()), Delivery::Sent);
        assert!(echoes(&mut server, &mut client, peer(), b"small"));
    }
}

#[test]
fn forbidden_limits_on_the_record_size_get_an_alert() {
    for extension in [vec![0, 1, 0, 1, 0], vec![0, 1, 0, 1, 5], vec![0, 1, 0, 0], vec![0, 28, 0, 2, 0, 63]] {
        let mut server = Server::new(Config::default());
        let client = connect(&mut server, Profile { extensions: extension, ..profile() }, peer(), 1);
        assert_eq!(client.alert, Some((2, 47)));
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

/// RFC 6347 §4.1.1.1: a datagram larger than the path MTU would be fragmented or lost.
#[test]
fn no_datagram_exceeds_the_path_mtu() {
    for path_mtu in [MIN_PATH_MTU, 700, 1280, 9000] {
        let most = path_mtu - 48;
        let config = Config { path_mtu, ..Config::default() };
        for id_length in [0, 8, 255] {
            let mut server = Server::new(config.clone());
            // This profile has everything that makes a flight longer.
            let profile = Profile {
                suites: vec![Suite::EcdhePskAes128Gcm.code(), 0x00ff],
                groups: vec![23],
                connection_id: Some(vec![7; id_length]),
                extensions: vec![0, 28, 0, 2, 0x40, 0],
                ..profile()
            };
            let mut client = Client::new(profile, [1; 32]);
            let mut to_server = client.start(server.now);
            while let Some(datagram) = to_server.pop() {
                for (_, answer) in server.receive(peer(), &datagram) {
                    assert!(answer.len() <= most, "{} bytes in a handshake", answer.len());
                    to_server.extend(client.receive(server.now, &answer));
                }
            }
            assert!(client.is_established());
            let session = server.session();
            let data = vec![1; server.endpoint.max_data(session).unwrap()];
            let mut out = Outgoing::new();
            assert_eq!(server.endpoint.send(session, &data, &mut out), Delivery::Sent);
            assert!(out[0].1.len() <= most);
            assert!(data.len() + 64 + id_length > most, "the whole datagram is used");
            client.receive(server.now, &out[0].1);
            assert_eq!(client.received.pop(), Some(data));
        }
    }
}

/// RFC 6655 §3, RFC 5288 §3: using a nonce twice under one key breaks the encryption of
/// both records.
#[test]
fn each_record_has_a_nonce_of_its_own() {
    for suite in Suite::ALL {
        let mut server = Server::new(Config::default());
        let client = connect(&mut server, Profile { suites: vec![suite.code()], ..profile() }, peer(), 1);
        assert!(client.is_established());
        let session = server.session();
        let mut explicit = HashSet::new();
        for _ in 0..100 {
            let mut out = Outgoing::new();
            assert_eq!(server.endpoint.send(session, b"data", &mut out), Delivery::Sent);
            assert!(explicit.insert(out[0].1[13..21].to_vec()), "{suite:?}");
        }
    }
}

/// RFC 6347 §4.1.2.6: only authenticated records move the window. Otherwise anyone who
/// knows a client's address could use up the numbers that the client needs next.
#[test]
fn a_forged_record_takes_no_number_from_the_client() {
    let (mut server, mut client) = established();
    let honest = client.send(b"honest");
    let mut forged = honest.clone();
    *forged.last_mut().unwrap() ^= 1;
    assert_eq!(server.receive(peer(), &forged), []);
    // If accepted, a number far ahead would put all honest numbers behind the window.
    forged[5..11].copy_from_slice(&[0, 0, 0, 1, 0, 0]);
    assert_eq!(server.receive(peer(), &forged), []);
    server.receive(peer(), &honest);
    assert_eq!(server.data.last().map(|(_, data)| &data[..]), Some(&b"honest"[..]));
}

/// RFC 5246 §7.2.1: each side sends close_notify before it closes a connection.
#[test]
fn closing_a_session_notifies_the_client_and_forgets_it() {
    let (mut server, mut client) = established();
    let session = server.session();
    let mut out = Outgoing::new();
    server.endpoint.close(session, &mut out);
    server.drain(&mut out);
    client.receive(server.now, &out[0].1);
    assert_eq!(client.alert, Some((1, 0)));
    assert_eq!(server.closed(), [Closed::ByUs]);
    assert!(server.endpoint.holds_no_state());
}

/// RFC 6347 §4.1: in epoch 0, too, no record number is used twice. The highest number may
/// be used.
#[test]
fn the_last_record_number_of_epoch_0_may_be_that_of_change_cipher_spec() {
    for (before_last, is_answered) in [(2, true), (1, false)] {
        let mut server = Server::new(Config::default());
        let mut client = Client::new(profile(), [1; 32]);
        let first = client.start(server.now).concat();
        let request = server.receive(peer(), &first).remove(0).1;
        let mut hello = client.receive(server.now, &request).concat();
        // ServerHello takes the record number of the hello. ServerHelloDone and ChangeCipherSpec
        // take the next two numbers.
        let number = record::MAX_SEQUENCE - before_last;
        hello[5..11].copy_from_slice(&number.to_be_bytes()[2..]);
        converse(&mut server, &mut client, peer(), vec![hello]);
        assert_eq!(client.is_established(), is_answered);
    }
}

/// RFC 6347 §4.2.4: each copy of a flight has new record numbers. This includes the record of
/// ChangeCipherSpec.
#[test]
fn a_resent_last_flight_has_new_record_numbers() {
    let mut server = Server::new(Config::default());
    let mut client = Client::new(profile(), [1; 32]);
    let first = client.start(server.now).concat();
    let request = server.receive(peer(), &first).remove(0).1;
    let second = client.receive(server.now, &request).concat();
    let flight = server.receive(peer(), &second).remove(0).1;
    let mut last = client.receive(server.now, &flight).concat();
    let mut numbers = HashSet::new();
    for _ in 0..4 {
        // All answers are lost.
        let answers = server.receive(peer(), &last);
        assert!(numbers.insert(answers[0].1[5..11].to_vec()), "of ChangeCipherSpec");
        server.now += Duration::from_secs(20);
        last = client.handle_timeout(server.now).concat();
    }
}
