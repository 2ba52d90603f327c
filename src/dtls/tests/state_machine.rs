//! Messages that are missing, early, late, repeated or wrong for the state. State-machine
//! fuzzing found that other stacks mishandle some of these cases (Fiterau-Brostean et al.,
//! "Analysis of DTLS Implementations Using Protocol State Fuzzing", 2020). Other cases
//! come from RFC 6347, which expects networks to reorder datagrams.

use super::*;

/// Returns a client and its last flight, not yet sent: ClientKeyExchange,
/// ChangeCipherSpec and Finished, each in its own datagram.
fn before_the_last_flight(server: &mut Server) -> (Client, [Vec<u8>; 3]) {
    let mut client = Client::new(Profile { coalesce: false, ..profile() }, [1; 32]);
    let hello = client.start(server.now).concat();
    let request = server.receive(peer(), &hello).remove(0).1;
    let second = client.receive(server.now, &request).concat();
    let flight = server.receive(peer(), &second).remove(0).1;
    let last = client.receive(server.now, &flight);
    (client, last.try_into().expect("three datagrams"))
}

/// Returns a record of epoch 0.
fn plaintext(kind: u8, sequence: u8, payload: &[u8]) -> Vec<u8> {
    let header = [kind, 0xfe, 0xfd, 0, 0, 0, 0, 0, 0, 0, sequence, 0, payload.len() as u8];
    [&header, payload].concat()
}

fn finish(server: &mut Server, client: &mut Client, datagrams: &[&[u8]]) -> bool {
    let datagrams = datagrams.iter().map(|datagram| datagram.to_vec()).collect();
    converse(server, client, peer(), datagrams);
    server.endpoint.sessions() == 1
}

/// RFC 5246 §7.1, RFC 6347 §4.2.4: Finished is accepted only after ChangeCipherSpec, but the
/// network may deliver the two messages in the opposite order.
#[test]
fn finished_without_change_cipher_spec_makes_no_session() {
    let mut server = Server::new(Config::default());
    let (mut client, [exchange, change, finished]) = before_the_last_flight(&mut server);
    assert!(!finish(&mut server, &mut client, &[&exchange, &finished]));
    assert!(finish(&mut server, &mut client, &[&change]), "it was only late");
    assert!(client.is_established());
}

#[test]
fn finished_without_client_key_exchange_makes_no_session() {
    let mut server = Server::new(Config::default());
    let (mut client, [exchange, change, finished]) = before_the_last_flight(&mut server);
    assert!(!finish(&mut server, &mut client, &[&change, &finished]));
    assert!(server.waiting.is_empty(), "no key is asked for");
    assert!(finish(&mut server, &mut client, &[&exchange]), "it was only late");
}

#[test]
fn client_key_exchange_and_change_cipher_spec_alone_make_no_session() {
    let mut server = Server::new(Config::default());
    let (mut client, [exchange, change, _]) = before_the_last_flight(&mut server);
    assert!(!finish(&mut server, &mut client, &[&exchange, &change, &change]));
    assert!(!client.is_established());
}

#[test]
fn repeated_messages_of_the_last_flight_change_nothing() {
    let mut server = Server::new(Config::default());
    let (mut client, [exchange, change, finished]) = before_the_last_flight(&mut server);
    let again =
        [&exchange[..], &exchange, &change, &change, &exchange, &finished, &finished, &exchange, &change];
    assert!(finish(&mut server, &mut client, &again));
    assert!(echoes(&mut server, &mut client, peer(), b"here"));
    assert_eq!(server.endpoint.handshakes(), 0);
}

/// RFC 6347 §4.1: data under the new keys is accepted only after Finished was verified.
#[test]
fn data_before_finished_is_not_delivered() {
    let mut server = Server::new(Config::default());
    let (mut client, [exchange, change, finished]) = before_the_last_flight(&mut server);
    let data = client.seal(ContentType::ApplicationData, b"early");
    assert!(finish(&mut server, &mut client, &[&exchange, &change, &data, &finished]));
    assert!(server.data.is_empty());
    assert!(echoes(&mut server, &mut client, peer(), b"in time"));
}

#[test]
fn data_in_epoch_0_is_not_delivered_at_any_time() {
    let mut server = Server::new(Config::default());
    let data = plaintext(23, 9, b"\x40\x01\x00\x01");
    assert_eq!(server.receive(peer(), &data), []);
    let (mut client, [exchange, change, finished]) = before_the_last_flight(&mut server);
    assert!(finish(&mut server, &mut client, &[&data, &exchange, &data, &change, &data, &finished, &data]));
    assert!(server.data.is_empty());
}

/// An unprotected Finished proves nothing.
#[test]
fn finished_in_epoch_0_is_ignored() {
    let mut server = Server::new(Config::default());
    let (mut client, [exchange, change, finished]) = before_the_last_flight(&mut server);
    let bare = plaintext(22, 9, &[&[20, 0, 0, 12, 0, 3, 0, 0, 0, 0, 0, 12][..], &[0; 12]].concat());
    assert!(!finish(&mut server, &mut client, &[&exchange, &change, &bare]));
    assert!(finish(&mut server, &mut client, &[&finished]));
}

/// RFC 6347 §4.2.2: only a message with the next message_seq is accepted.
#[test]
fn messages_with_another_number_are_ignored() {
    let mut server = Server::new(Config::default());
    let (mut client, [exchange, change, finished]) = before_the_last_flight(&mut server);
    for number in [0, 1, 3, 200] {
        let mut other = exchange.clone();
        other[18] = number;
        server.receive(peer(), &other);
        assert_eq!(keys_asked_for(&server), 0);
    }
    assert!(finish(&mut server, &mut client, &[&exchange, &change, &finished]));
}

/// Certificate, CertificateVerify, HelloRequest and undefined types do not belong in a
/// PSK handshake.
#[test]
fn messages_that_do_not_belong_in_the_handshake_are_ignored() {
    let mut server = Server::new(Config::default());
    let (mut client, [exchange, change, finished]) = before_the_last_flight(&mut server);
    for kind in [0, 2, 3, 11, 13, 14, 15, 99] {
        let message = [kind, 0, 0, 1, 0, 2, 0, 0, 0, 0, 0, 1, 0];
        assert_eq!(server.receive(peer(), &plaintext(22, 9, &message)), []);
        // A message of this type is ignored even if its body is that of a ClientKeyExchange.
        let message = [kind, 0, 0, 3, 0, 2, 0, 0, 0, 0, 0, 3, 0, 1, 7];
        assert_eq!(server.receive(peer(), &plaintext(22, 9, &message)), []);
        assert_eq!((keys_asked_for(&server), server.endpoint.counters().dropped(Dropped::Message)), (0, 0));
    }
    assert!(finish(&mut server, &mut client, &[&exchange, &change, &finished]));
}

/// RFC 6347 §4.1.2.7: anyone can send a plaintext alert, so such an alert ends neither a
/// handshake nor a session.
#[test]
fn alerts_of_epoch_0_end_no_handshake() {
    let mut server = Server::new(Config::default());
    let (mut client, [exchange, change, finished]) = before_the_last_flight(&mut server);
    let fatal = plaintext(21, 9, &[2, 40]);
    let close = plaintext(21, 9, &[1, 0]);
    assert!(finish(&mut server, &mut client, &[&fatal, &exchange, &close, &change, &fatal, &finished]));
    assert!(client.is_established());
}

/// RFC 6347 §4.1.2.6: a record protected in one epoch is not accepted in another, and
/// plaintext is not accepted as a protected record.
#[test]
fn a_record_moved_to_another_epoch_is_dropped() {
    let (mut server, mut client) = established();
    let protected = client.send(b"data");
    let mut moved = protected.clone();
    moved[3..5].copy_from_slice(&[0, 0]);
    assert_eq!(server.receive(peer(), &moved), []);
    let mut bare = plaintext(23, 50, &[1; 40]);
    bare[3..5].copy_from_slice(&[0, 1]);
    assert_eq!(server.receive(peer(), &bare), []);
    assert!(server.data.is_empty());
    assert_eq!(server.receive(peer(), &protected).len(), 1);
}

/// RFC 6347 §4.2.4: flights of a handshake may arrive after it is over.
#[test]
fn late_flights_leave_the_session_alone() {
    let mut server = Server::new(Config::default());
    let mut client = Client::new(profile(), [1; 32]);
    let first = client.start(server.now).concat();
    let request = server.receive(peer(), &first).remove(0).1;
    let second = client.receive(server.now, &request).concat();
    let flight = server.receive(peer(), &second).remove(0).1;
    let last = client.receive(server.now, &flight).concat();
    converse(&mut server, &mut client, peer(), vec![last.clone()]);
    assert!(client.is_established());
    // The second hello has a valid cookie, so it may start a handshake that is never
    // continued. The client's last flight is answered with the server's last flight, or
    // not at all.
    for late in [&first, &second, &last, &first, &last] {
        server.receive(peer(), late);
        assert!(echoes(&mut server, &mut client, peer(), b"still here"));
    }
    server.advance(Duration::from_secs(31));
    assert_eq!((server.endpoint.sessions(), server.endpoint.handshakes()), (1, 0));
    assert!(echoes(&mut server, &mut client, peer(), b"still here"));
}

/// RFC 5246 §7.2.1, RFC 6347 §4.2.8: a device whose close_notify is lost may connect again from the
/// same port, or may never connect again. In both cases, nothing is left of the old session.
#[test]
fn a_lost_close_notify_leaves_nothing_behind() {
    let (mut server, mut client) = established();
    drop(client.close());
    let mut again = connect(&mut server, profile(), peer(), 2);
    assert!(again.is_established());
    assert_eq!(server.closed(), [Closed::Replaced]);
    assert!(echoes(&mut server, &mut again, peer(), b"again"));
    drop(again.close());
    server.advance(Duration::from_secs(300));
    assert_eq!(server.closed(), [Closed::Replaced, Closed::Idle]);
    assert!(server.endpoint.holds_no_state());
}

/// The cookie is bound to the client's random. A hello with the cookie of another hello is
/// answered with a new HelloVerifyRequest.
#[test]
fn a_cookie_is_not_valid_for_another_hello() {
    let mut server = Server::new(Config::default());
    let mut client = Client::new(profile(), [1; 32]);
    let first = client.start(server.now).concat();
    let request = server.receive(peer(), &first).remove(0).1;
    let mut second = client.receive(server.now, &request).concat();
    // Byte 27 is in the random, which follows two headers and the version.
    second[27] ^= 1;
    let answer = server.receive(peer(), &second);
    assert_eq!(answer[0].1[13], 3, "HelloVerifyRequest");
    assert_eq!(server.endpoint.handshakes(), 0);
}

/// The fuzzer leaves a hello unchanged up to the offset that `cookie_end` returns, and mutates the
/// rest. If this offset were too small, the fuzzer would test only the answer to an invalid cookie;
/// if it were too large, the fuzzer would skip bytes.
#[test]
fn the_cookie_ends_in_the_hello_where_the_client_says() {
    for (session_id, fragment) in [(0, usize::MAX), (32, usize::MAX), (0, 70)] {
        for (before_the_end, refused) in [(1, true), (0, false)] {
            let mut server = Server::new(Config::default());
            let profile = Profile { session_id: vec![7; session_id], fragment, coalesce: false, ..profile() };
            let mut client = Client::new(profile, [1; 32]);
            let first = client.start(server.now).remove(0);
            let request = server.receive(peer(), &first).remove(0).1;
            let mut second = client.receive(server.now, &request).remove(0);
            second[client.cookie_end() - before_the_end] ^= 1;
            let answer = server.receive(peer(), &second);
            let is_refused = answer.first().is_some_and(|(_, answer)| answer[13] == 3);
            assert_eq!(is_refused, refused, "HelloVerifyRequest");
        }
    }
}

fn keys_asked_for(server: &Server) -> usize {
    server.events.iter().filter(|event| matches!(event, Event::PskNeeded { .. })).count()
}

/// Returns a client and the two fragments of its hello with a valid cookie.
fn fragmented_hello(server: &mut Server) -> (Client, Vec<u8>, Vec<u8>) {
    let mut client = Client::new(Profile { fragment: 60, coalesce: false, ..profile() }, [1; 32]);
    let first = client.start(server.now).concat();
    let mut request = server.receive(peer(), &first);
    let mut second = client.receive(server.now, &request.remove(0).1);
    assert_eq!(second.len(), 2);
    let rest = second.remove(1);
    (client, second.remove(0), rest)
}

#[test]
fn another_message_between_the_fragments_of_a_hello_does_not_end_the_handshake() {
    let mut server = Server::new(Config::default());
    let (mut client, first, rest) = fragmented_hello(&mut server);
    assert_eq!(server.receive(peer(), &first), []);
    for kind in [2, 16, 20] {
        for sequence in [1, 2] {
            let message = [kind, 0, 0, 3, 0, sequence, 0, 0, 0, 0, 0, 3, 0, 1, 7];
            assert_eq!(server.receive(peer(), &plaintext(22, 9, &message)), []);
        }
    }
    converse(&mut server, &mut client, peer(), vec![rest]);
    assert!(client.is_established());
}

/// RFC 6347 §4.2.4: only a repetition of the hello shows that the flight was lost.
#[test]
fn another_message_with_the_number_of_the_hello_resends_no_flight() {
    let mut server = Server::new(Config::default());
    before_the_last_flight(&mut server);
    server.now += Duration::from_secs(5);
    let message = [16, 0, 0, 3, 0, 1, 0, 0, 0, 0, 0, 3, 0, 1, 7];
    assert_eq!(server.receive(peer(), &plaintext(22, 9, &message)), []);
    assert_eq!(server.endpoint.counters().dropped(Dropped::Flight), 0);
}

/// RFC 6347 §4.2.1, RFC 5246 appendix E.1: a client that states an older version than DTLS
/// 1.2, or no version of DTLS, gets an alert. A client that states a later version is
/// served with 1.2.
#[test]
fn a_version_before_1_2_gets_an_alert_and_a_later_one_is_taken_for_1_2() {
    for (version, is_taken) in [(0xfeffu16, false), (0x0303, false), (0xfffd, false), (0xfefc, true)] {
        let mut server = Server::new(Config::default());
        let mut client = Client::new(profile(), [1; 32]);
        let first = client.start(server.now).concat();
        let request = server.receive(peer(), &first).remove(0).1;
        let mut hello = client.receive(server.now, &request).concat();
        hello[25..27].copy_from_slice(&version.to_be_bytes());
        for (_, answer) in server.receive(peer(), &hello) {
            client.receive(server.now, &answer);
        }
        assert_eq!(client.alert, (!is_taken).then_some((2, 70)), "{version:x}");
        assert_eq!(server.failures(), if is_taken { vec![] } else { vec![Failure::Version] });
    }
}

/// Of all protected messages in a handshake, only a Finished with the right message_seq is
/// accepted.
#[test]
fn other_messages_under_the_right_keys_are_not_taken_for_finished() {
    let mut server = Server::new(Config::default());
    let (mut client, [exchange, change, finished]) = before_the_last_flight(&mut server);
    server.receive(peer(), &exchange);
    server.receive(peer(), &change);
    for (kind, sequence) in [(16, 3), (20, 2), (20, 4), (1, 3)] {
        let message = [&[kind, 0, 0, 12, 0, sequence, 0, 0, 0, 0, 0, 12][..], &[0; 12]].concat();
        let other = client.seal(ContentType::Handshake, &message);
        assert_eq!(server.receive(peer(), &other), []);
    }
    assert!(finish(&mut server, &mut client, &[&finished]));
}

/// A key that arrives late belongs to the claim for which it was requested. Otherwise an
/// attacker who forges a claim could give another client's session an identity of the
/// attacker's choice.
#[test]
fn a_late_key_of_another_claim_does_not_set_the_identity() {
    let mut server = Server::new(Config::default());
    let (mut client, [exchange, change, finished]) = before_the_last_flight(&mut server);
    server.hold_keys = true;
    let forged = [&[16, 0, 0, 8, 0, 2, 0, 0, 0, 0, 0, 8, 0, 6][..], b"lamp-0"].concat();
    server.receive(peer(), &plaintext(22, 9, &forged));
    server.receive(peer(), &exchange);
    let waiting: Vec<_> = server.waiting.drain(..).collect();
    assert_eq!(waiting.len(), 2);
    for (handshake, identity) in waiting.into_iter().rev() {
        let name = String::from_utf8_lossy(&identity).into_owned();
        server.endpoint.provide_psk(server.now, handshake, Some((psk(), name)), &mut Outgoing::new());
    }
    assert!(finish(&mut server, &mut client, &[&change, &finished]));
    assert_eq!(server.endpoint.principal(server.session()).map(String::as_str), Some("lamp-1"));
}

#[test]
fn a_key_may_be_postponed_any_number_of_times() {
    let mut server = Server::new(Config::default());
    let (mut client, [exchange, change, finished]) = before_the_last_flight(&mut server);
    server.hold_keys = true;
    for _ in 0..40 {
        server.receive(peer(), &exchange);
        let (handshake, _) = server.waiting.pop().expect("asked for again");
        server.endpoint.postpone_psk(handshake);
    }
    server.hold_keys = false;
    assert!(finish(&mut server, &mut client, &[&exchange, &change, &finished]));
}

/// RFC 5246 §7.1: ChangeCipherSpec is one byte with value 1.
#[test]
fn a_malformed_change_cipher_spec_is_ignored() {
    let mut server = Server::new(Config::default());
    let (mut client, [exchange, change, finished]) = before_the_last_flight(&mut server);
    for other in [&[][..], &[0], &[2], &[1, 1]] {
        assert!(!finish(&mut server, &mut client, &[&exchange, &plaintext(20, 9, other), &finished]));
    }
    assert!(finish(&mut server, &mut client, &[&change]));
}
