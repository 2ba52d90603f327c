//! Identities with two keys. Only Finished shows which key a client has, so the server tries both
//! keys. Neither the server's answers nor its work may reveal which key a client has, or how many
//! keys an identity has.

use super::*;
use crate::dtls::{prf, suite};

fn second() -> Psk {
    Psk::new(vec![0x77; 32]).unwrap()
}

fn wrong() -> Psk {
    Psk::new(vec![1; 16]).unwrap()
}

/// Creates a server that tries two keys for every identity. The identities that begin with `lamp`
/// have both, except for those that begin with `lamp-one`.
fn server() -> Server {
    Server { second: Some(second()), ..Server::new(Config::default()) }
}

fn with(identity: &str, psk: Psk) -> Profile {
    Profile { identity: identity.into(), psk, ..profile() }
}

fn principal(server: &Server) -> Option<&str> {
    server.endpoint.principal(server.session()).map(String::as_str)
}

#[test]
fn every_suite_makes_a_session_with_either_key() {
    for suite in Suite::ALL {
        for extended_master_secret in [false, true] {
            for (psk, expected) in [(psk(), "lamp-1"), (second(), "lamp-1, second key")] {
                for connection_id in [None, Some(vec![7])] {
                    let groups = vec![29, 23];
                    let profile = Profile {
                        suites: vec![suite.code()],
                        extended_master_secret,
                        groups,
                        connection_id,
                        ..with("lamp-1", psk.clone())
                    };
                    let mut server = server();
                    let mut client = connect(&mut server, profile, peer(), 1);
                    assert!(client.is_established(), "{suite:?}, {expected}");
                    assert_eq!(client.agreed(), Some((suite, extended_master_secret)));
                    assert_eq!(principal(&server), Some(expected));
                    assert!(echoes(&mut server, &mut client, peer(), b"ping"));
                }
            }
        }
    }
}

#[test]
fn a_finished_in_fragments_of_any_order_fits_either_key() {
    for psk in [psk(), second()] {
        for fragment in [1, 7] {
            for (reverse, coalesce) in [(false, false), (true, false), (true, true)] {
                let mut server = server();
                let mut client = Client::new(with("lamp-1", psk.clone()), [1; 32]);
                let hello = client.start(server.now).concat();
                let request = server.receive(peer(), &hello).remove(0).1;
                let hello = client.receive(server.now, &request).concat();
                client.profile = Profile { fragment, reverse, coalesce, ..client.profile.clone() };
                for (_, flight) in server.receive(peer(), &hello) {
                    let last = client.receive(server.now, &flight);
                    converse(&mut server, &mut client, peer(), last);
                }
                assert!(client.is_established(), "fragment {fragment} reverse {reverse} coalesce {coalesce}");
            }
        }
    }
}

#[test]
fn the_second_key_opens_a_session_over_a_bad_network() {
    for seed in 0..100 {
        let fragment = if seed % 2 == 0 { 70 } else { usize::MAX };
        let profile = Profile { fragment, coalesce: seed % 3 == 0, ..with("lamp-1", second()) };
        let took = handshake::over_bad_network(seed, 0.3, 0.2, profile, Some(second()));
        assert!(took.is_some(), "seed {seed}: not established within 300 s");
    }
}

/// Runs a handshake up to the client's last flight. Returns the client, and the flight in one
/// datagram.
fn before_the_last_flight(server: &mut Server, profile: Profile) -> (Client, Vec<u8>) {
    let mut client = Client::new(profile, [1; 32]);
    let hello = client.start(server.now).concat();
    let request = server.receive(peer(), &hello).remove(0).1;
    let hello = client.receive(server.now, &request).concat();
    let flight = server.receive(peer(), &hello).remove(0).1;
    let last = client.receive(server.now, &flight).concat();
    (client, last)
}

/// Sends the client's last flight. Returns the number of runs of the PRF and the number of
/// decrypted records that this flight causes, the server's answers until the end, and whether there
/// is a session.
fn last_flight(mut server: Server, profile: Profile) -> ([u64; 2], Vec<Vec<u8>>, bool) {
    let (mut client, last) = before_the_last_flight(&mut server, profile);
    let work = || [prf::RUNS.get(), suite::DECRYPTED.get()];
    let before = work();
    let mut answers = server.receive(peer(), &last);
    let after = work();
    for (_, answer) in &answers {
        client.receive(server.now, answer);
    }
    if !client.is_established() {
        assert_eq!(server.advance(Duration::from_millis(11_999)), []);
        answers.extend(server.advance(Duration::from_millis(1)));
        assert_eq!(server.failures(), [Failure::WrongKey]);
        assert!(server.endpoint.holds_no_state());
    }
    let answers = answers.into_iter().map(|(_, answer)| answer).collect();
    ([after[0] - before[0], after[1] - before[1]], answers, client.is_established())
}

#[test]
fn both_keys_and_a_wrong_key_cost_the_same() {
    let mut alerts = std::collections::HashSet::new();
    for (identity, psk, opens) in [
        ("lamp-1", psk(), true),
        ("lamp-1", second(), true),
        ("lamp-one", psk(), true),
        ("lamp-1", wrong(), false),
        ("lamp-one", wrong(), false),
        ("lamp-one", second(), false),
        ("sofa-1", psk(), false),
        ("sofa-1", second(), false),
    ] {
        let (work, answers, opened) = last_flight(server(), with(identity, psk.clone()));
        assert_eq!(opened, opens, "{identity}");
        // The PRF computes a master secret and a key block for each key. If one key is right, the
        // PRF also computes the verify_data of both Finished messages.
        assert_eq!(work, [if opens { 6 } else { 4 }, 2], "{identity}");
        if !opens {
            alerts.insert(answers);
        }
    }
    assert_eq!(alerts.len(), 1, "the same alert, byte for byte");
    // A server that tries only one key for each identity does less work. A wrong key gets the same
    // answer as above.
    let (work, _, opened) = last_flight(Server::new(Config::default()), with("lamp-1", psk()));
    assert_eq!((work, opened), ([4, 1], true));
    let (work, answers, opened) = last_flight(Server::new(Config::default()), with("lamp-1", wrong()));
    assert_eq!((work, opened), ([2, 1], false));
    assert!(alerts.contains(&answers));
}

/// A thief of the first key observes the handshake of a client, and so knows the client's random.
/// With the random and the first key, the thief can protect records in the client's name.
#[test]
fn a_thief_of_one_key_ends_no_handshake_with_the_other() {
    for extended_master_secret in [false, true] {
        let mut server = server();
        let profile = |psk: Psk| Profile { extended_master_secret, coalesce: false, ..with("lamp-1", psk) };
        let mut client = Client::new(profile(second()), [1; 32]);
        let mut thief = Client::new(profile(psk()), [1; 32]);
        let mut to_server = client.start(server.now);
        thief.start(server.now);
        // The hellos are whole; Finished comes in two fragments.
        for fragment in [usize::MAX, 7] {
            for (_, answer) in server.receive(peer(), &to_server.concat()) {
                thief.receive(server.now, &answer);
                client.profile.fragment = fragment;
                to_server = client.receive(server.now, &answer);
            }
        }
        let [earlier @ .., beginning, end] = &to_server[..] else { panic!("many datagrams") };
        for datagram in earlier.iter().chain([beginning]) {
            server.receive(peer(), datagram);
        }
        let message = |offset: u8, body: &[u8]| {
            [&[20, 0, 0, 12, 0, 3, 0, 0, offset, 0, 0, body.len() as u8][..], body].concat()
        };
        // The thief sends a whole Finished that is wrong, a wrong Finished in two fragments, the
        // first fragment of another Finished, and a record that contains no message.
        for forged in
            [message(0, &[0; 12]), message(0, &[0; 6]), message(6, &[0; 6]), message(0, &[0; 6]), vec![20]]
        {
            let forged = thief.seal(ContentType::Handshake, &forged);
            assert_eq!(server.receive(peer(), &forged), []);
        }
        assert_eq!(server.failures(), []);
        converse(&mut server, &mut client, peer(), vec![end.clone()]);
        assert!(client.is_established());
        assert_eq!(principal(&server), Some("lamp-1, second key"));
    }
}

/// RFC 5246 §7.4.9. With two keys, a wrong Finished is a bad record, but never opens a session.
#[test]
fn finished_reveals_a_rewritten_hello_under_either_key() {
    for psk in [psk(), second()] {
        let mut server = server();
        let suites = vec![0xc0a4, 0xc0a8, 0x00ff];
        let profile = Profile { suites, extended_master_secret: false, ..with("lamp-1", psk) };
        let mut client = Client::new(profile, [1; 32]);
        let first = client.start(server.now).concat();
        let request = server.receive(peer(), &first).remove(0).1;
        let mut hello = client.receive(server.now, &request).concat();
        let at = hello.windows(2).position(|code| code == [0xc0, 0xa4]).unwrap();
        hello[at + 1] = 0xfe;
        converse(&mut server, &mut client, peer(), vec![hello]);
        assert!(!client.is_established());
        assert_eq!(alert_after(&mut server, &mut client, Duration::from_secs(12)), Some((2, 51)));
        assert_eq!(server.endpoint.sessions(), 0);
    }
}

/// Keys that are provided for a replaced claim are ignored.
#[test]
fn late_keys_of_another_claim_open_nothing() {
    let mut server = server();
    server.hold_keys = true;
    let (mut client, last) = before_the_last_flight(&mut server, with("lamp-1", second()));
    let forged = [&[16, 0, 0, 8, 0, 2, 0, 0, 0, 0, 0, 8, 0, 6][..], b"lamp-0"].concat();
    let header = [22, 0xfe, 0xfd, 0, 0, 0, 0, 0, 0, 0, 9, 0, forged.len() as u8];
    server.receive(peer(), &[&header[..], &forged].concat());
    server.receive(peer(), &last);
    server.waiting.reverse();
    let mut out = Outgoing::new();
    server.provide(&mut out);
    for (_, answer) in out {
        client.receive(server.now, &answer);
    }
    assert!(client.is_established());
    assert_eq!(principal(&server), Some("lamp-1, second key"));
}
