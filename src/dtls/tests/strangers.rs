//! Clients that have proven nothing: unknown addresses, and clients without a key.

use super::*;

#[test]
fn an_unknown_address_costs_no_state_and_gets_no_more_bytes_than_it_sent() {
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
    assert!(server.endpoint.holds_no_state());
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
    hello[18] = 3;
    assert_eq!(server.receive(peer(), &hello).remove(0).1[17..19], [0, 3], "the hello's own");
}

/// RFC 6347 §4.2.2: a client ignores an answer as a repetition unless the answer has the next
/// message_seq. In this test, a NAT changes the client's port after each hello, several times.
#[test]
fn a_client_whose_cookie_is_no_longer_valid_continues_with_a_new_one() {
    for times in 1..4 {
        let mut server = Server::new(Config::default());
        let mut client = Client::new(profile(), [9; 32]);
        let mut hello = client.start(server.now).concat();
        for port in 0..times {
            let from = SocketAddr::new(peer().ip(), 1000 + port);
            let request = server.receive(from, &hello).remove(0).1;
            hello = client.receive(server.now, &request).concat();
            assert!(!hello.is_empty(), "a hello with the new cookie");
        }
        converse(&mut server, &mut client, peer(), vec![hello]);
        assert!(client.is_established(), "after {times} changes");
        assert!(echoes(&mut server, &mut client, peer(), b"here"));
    }
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
        assert_eq!(server.advance(Duration::from_millis(11_999)), [], "the record may be an attacker's");
        // RFC 4279 §2: the alert is decrypt_error for an unknown identity and for a wrong key.
        let last = server.advance(Duration::from_millis(1));
        for (_, answer) in last {
            client.receive(server.now, &answer);
            answers.push(answer);
        }
        assert_eq!(client.alert, Some((2, 51)));
        assert_eq!(server.failures(), [Failure::WrongKey]);
        assert!(server.endpoint.holds_no_state());
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
    let mut answers = 0;
    for _ in 0..10 {
        let guess = client.seal(ContentType::Handshake, &[20; 24]);
        answers += server.receive(peer(), &guess).len();
    }
    assert_eq!(answers, 0);
    assert_eq!(server.endpoint.handshakes(), 1);
    assert_eq!(alert_after(&mut server, &mut client, Duration::from_secs(12)), Some((2, 51)));
    assert_eq!(server.failures(), [Failure::WrongKey]);
    let guess = client.seal(ContentType::Handshake, &[20; 24]);
    assert_eq!(server.receive(peer(), &guess), []);
    assert_eq!(server.endpoint.handshakes(), 0);
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
fn a_silent_handshake_times_out() {
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
    assert_eq!(flights, 5, "after 1, 3, 7, 15 and 31 s");
    assert_eq!(server.failures(), [Failure::TimedOut]);
    assert!(server.endpoint.holds_no_state());
}

#[test]
fn a_full_table_evicts_the_oldest() {
    let config = Config { max_sessions: 10, max_handshakes: 10, ..Config::default() };
    let mut server = Server::new(config);
    let from = |port| SocketAddr::new(peer().ip(), port);
    // Clients that own their address fill the table with half-open handshakes.
    for port in 1..=100 {
        let mut client = Client::new(profile(), [3; 32]);
        let hello = client.start(server.now).concat();
        let request = server.receive(from(port), &hello).remove(0).1;
        let second = client.receive(server.now, &request).concat();
        server.receive(from(port), &second);
    }
    assert_eq!(server.endpoint.handshakes(), 10);
    // Honest clients can still connect.
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
    // A slow device has a half-open handshake.
    let (flight, mut slow) = half_open(&mut server, elsewhere());
    // An attacker starts handshakes from every port of one address.
    for port in 1..=1000 {
        half_open(&mut server, SocketAddr::new(peer().ip(), port));
    }
    assert_eq!(server.endpoint.handshakes(), 11);
    assert_eq!(server.failures(), [Failure::Evicted; 990]);
    let last = slow.receive(server.now, &flight);
    converse(&mut server, &mut slow, elsewhere(), last);
    assert!(slow.is_established());
    server.advance(Duration::from_secs(121));
    server.advance(Duration::from_secs(300));
    assert!(server.endpoint.holds_no_state());
}

/// RFC 4279 §2: the key used for an unknown identity must be one that no client can guess.
/// Otherwise a completed handshake would reveal that the identity does not exist.
#[test]
fn no_guessable_key_opens_a_session_for_an_unknown_identity() {
    for key in [vec![0; 16], vec![0], vec![0; 32], psk().as_bytes().to_vec()] {
        let unknown = Profile { identity: b"sofa-1".to_vec(), psk: Psk::new(key).unwrap(), ..profile() };
        let mut server = Server::new(Config::default());
        let mut client = connect(&mut server, unknown, peer(), 1);
        assert!(!client.is_established());
        assert_eq!(alert_after(&mut server, &mut client, Duration::from_secs(12)), Some((2, 51)));
        assert_eq!(server.failures(), [Failure::WrongKey]);
    }
}

/// Handshakes with a bad record wait in a queue. Each handshake is queued once, however
/// many of its records are bad.
#[test]
fn only_the_first_bad_record_of_a_handshake_counts_as_bad_and_the_others_are_dropped() {
    let wrong_key = Profile { psk: Psk::new(vec![1; 16]).unwrap(), ..profile() };
    let mut server = Server::new(Config::default());
    let mut client = connect(&mut server, wrong_key, peer(), 1);
    for _ in 0..10 {
        let guess = client.seal(ContentType::Handshake, &[20; 24]);
        server.receive(peer(), &guess);
    }
    let counters = server.endpoint.counters();
    assert_eq!((counters.bad_records, counters.dropped(Dropped::Message)), (1, 10));
}

#[test]
fn a_wrong_key_is_distinguished_from_a_reboot_when_the_device_starts_again() {
    let wrong_key = Profile { psk: Psk::new(vec![1; 16]).unwrap(), ..profile() };
    let mut server = Server::new(Config::default());
    connect(&mut server, wrong_key.clone(), peer(), 1);
    connect(&mut server, wrong_key, peer(), 2);
    assert_eq!(server.failures(), [Failure::WrongKey]);
    let mut server = Server::new(Config::default());
    for random in 1..3 {
        let mut client = Client::new(profile(), [random; 32]);
        let first = client.start(server.now).concat();
        let request = server.receive(peer(), &first).remove(0).1;
        let second = client.receive(server.now, &request).concat();
        assert_eq!(server.receive(peer(), &second).len(), 1);
    }
    assert_eq!(server.failures(), [Failure::Replaced]);
}
