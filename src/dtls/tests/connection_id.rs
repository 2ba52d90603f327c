//! Connection IDs (RFC 9146).

use super::*;

fn with_connection_id(id: &[u8]) -> (Server, Client) {
    let mut server = Server::new(Config { connection_id_prefix: Some(7), ..Config::default() });
    let profile = Profile { connection_id: Some(id.to_vec()), ..profile() };
    let client = connect(&mut server, profile, peer(), 1);
    assert!(client.is_established());
    assert_eq!(client.server_connection_id().len(), 8);
    assert_eq!(client.server_connection_id()[0], 7);
    (server, client)
}

#[test]
fn a_device_with_a_connection_id_continues_from_another_address_without_a_handshake() {
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

/// RFC 9146 §3: without a negotiated ID, records have the usual form.
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

/// RFC 9146 §6: with an ID of more than 64 bytes, the message that validates a new address would
/// exceed three times the size of the shortest request.
#[test]
fn an_id_too_long_for_validating_a_new_address_is_not_negotiated() {
    for (length, is_agreed) in [(64, true), (65, false), (255, false)] {
        let mut server = Server::new(Config::default());
        let profile = Profile { connection_id: Some(vec![7; length]), ..profile() };
        let client = connect(&mut server, profile, peer(), 1);
        assert!(client.is_established());
        assert_eq!(!client.server_connection_id().is_empty(), is_agreed, "{length} bytes");
    }
}

#[test]
fn an_old_or_forged_record_from_elsewhere_moves_no_client() {
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

/// Returns the number of bytes sent to an address, including the IPv4 and UDP headers.
fn wire(sent: &Outgoing, to: SocketAddr) -> usize {
    sent.iter().filter(|(at, _)| *at == to).map(|(_, datagram)| datagram.len() + 28).sum()
}

#[test]
fn an_unvalidated_address_is_sent_at_most_three_times_the_bytes_received_from_it() {
    let (mut server, mut client) = with_connection_id(b"d");
    let moved = client.send(b"x");
    let mut sent = wire(&server.receive(elsewhere(), &moved), elsewhere());
    let session = server.session();
    let mut withheld = 0;
    for _ in 0..100 {
        let mut out = Outgoing::new();
        let delivery = server.endpoint.send(session, &[0; 10], &mut out);
        assert_eq!(delivery == Delivery::Sent, !out.is_empty());
        withheld += u64::from(delivery == Delivery::Unvalidated);
        sent += wire(&out, elsewhere());
    }
    let most = 3 * (moved.len() + 28);
    assert!(sent <= most && sent > most - 90, "{sent} bytes of {most}");
    assert_eq!(server.endpoint.counters().dropped(Dropped::Unvalidated), withheld);
    assert!(!server.endpoint.is_validated(session));
    // Bytes from the old address earn no credit for the new one.
    let late = client.send(b"from elsewhere");
    let newest = client.send(b"from there");
    server.receive(elsewhere(), &newest);
    let before = server.endpoint.counters().dropped(Dropped::Unvalidated);
    server.receive(peer(), &late);
    assert!(server.endpoint.counters().dropped(Dropped::Unvalidated) >= before);
    // Bytes from the new address earn credit.
    assert!(echoes(&mut server, &mut client, elsewhere(), b"I am really here"));
}

/// RFC 9146 §6, condition 3: the bytes sent to a validated address are not limited. The address of
/// the handshake is validated too, and the client may return to it at any time.
#[test]
fn nothing_is_held_back_from_a_validated_address() {
    let (mut server, mut client) = with_connection_id(b"");
    let session = server.session();
    let long = [7; 1000];
    assert_eq!(server.endpoint.send(session, &long, &mut Outgoing::new()), Delivery::Sent, "at home");
    assert!(echoes(&mut server, &mut client, elsewhere(), b"x"));
    assert_eq!(server.endpoint.send(session, &long, &mut Outgoing::new()), Delivery::Unvalidated);
    let there = server.endpoint.path(session).unwrap();
    server.endpoint.validate(session, there);
    let mut out = Outgoing::new();
    assert_eq!(server.endpoint.send(session, &long, &mut out), Delivery::Sent);
    assert_eq!(out[0].0, elsewhere());
    assert!(server.endpoint.is_validated(session));
    // The client moves on from the validated address.
    let third = SocketAddr::new(elsewhere().ip(), 77);
    assert!(echoes(&mut server, &mut client, third, b"x"));
    assert_eq!(server.endpoint.send(session, &long, &mut Outgoing::new()), Delivery::Unvalidated);
    let mut out = Outgoing::new();
    assert_eq!(server.endpoint.send_validated(session, &long, &mut out), Delivery::Sent);
    assert_eq!(out[0].0, elsewhere(), "where it was shown to receive");
    assert!(echoes(&mut server, &mut client, elsewhere(), b"x"));
    assert_eq!(server.endpoint.send(session, &long, &mut Outgoing::new()), Delivery::Sent, "and back");
}

#[test]
fn a_device_with_an_id_cannot_displace_another_device_at_its_address() {
    let (mut server, mut attacker) = with_connection_id(b"");
    let victim_address = elsewhere();
    let mut victim = connect(&mut server, profile(), victim_address, 2);
    assert!(echoes(&mut server, &mut victim, victim_address, b"mine"));
    let spoofed = attacker.send(b"from the victim's address");
    server.receive(victim_address, &spoofed);
    assert!(echoes(&mut server, &mut victim, victim_address, b"still mine"));
}

/// RFC 9146 §3: once an ID is negotiated, a record without it is discarded.
#[test]
fn a_record_without_the_negotiated_id_is_dropped() {
    let (mut server, mut client) = with_connection_id(b"");
    client.server_extensions.remove(&54);
    assert!(!echoes(&mut server, &mut client, peer(), b"no ID"));
}

#[test]
fn an_idle_session_with_an_id_is_forgotten_completely() {
    let (mut server, _client) = with_connection_id(b"");
    server.advance(Duration::from_secs(301));
    assert_eq!(server.closed(), [Closed::Idle]);
    assert!(server.endpoint.holds_no_state());
}

#[test]
fn the_prefix_of_a_connection_id_is_found_without_keys() {
    let (_server, mut client) = with_connection_id(b"");
    assert_eq!(crate::dtls::connection_id_prefix(&client.send(b"x")), Some(7));
    assert_eq!(crate::dtls::connection_id_prefix(&[22, 0xfe, 0xfd, 0, 0]), None);
    assert_eq!(crate::dtls::connection_id_prefix(&[25]), None);
}

/// The address of the handshake, at which the client returned a cookie, stays validated.
#[test]
fn a_client_that_returns_to_the_address_of_its_handshake_needs_no_validation() {
    let (mut server, mut client) = with_connection_id(b"");
    assert!(echoes(&mut server, &mut client, elsewhere(), b"x"));
    assert!(echoes(&mut server, &mut client, peer(), b"x"));
    assert!(server.endpoint.is_validated(server.session()));
}

#[test]
fn a_client_that_does_not_move_needs_no_validation() {
    let (mut server, mut client) = with_connection_id(b"");
    assert!(echoes(&mut server, &mut client, peer(), b"x"));
    let session = server.session();
    assert!(server.endpoint.is_validated(session));
    assert_eq!(server.endpoint.send(session, &[7; 1000], &mut Outgoing::new()), Delivery::Sent);
}

#[test]
fn data_to_a_validated_address_is_limited_to_one_record() {
    let (mut server, _) = with_connection_id(b"");
    let session = server.session();
    let most = server.endpoint.max_data(session).unwrap();
    let mut send = |length| server.endpoint.send_validated(session, &vec![7; length], &mut Outgoing::new());
    assert_eq!(send(most), Delivery::Sent);
    assert_eq!(send(most + 1), Delivery::Lost);
}

/// Lets the server receive datagrams without answering them, and then send the longest
/// answer allowed. Returns the length of this answer plus `headers`, the length of the IP
/// and UDP headers.
fn longest_answer(server: &mut Server, received: Vec<(SocketAddr, Vec<u8>)>, headers: usize) -> usize {
    let mut out = Outgoing::new();
    for (from, mut bytes) in received {
        let mut datagram = Datagram::new(from, &mut bytes);
        while server.endpoint.receive(server.now, &mut datagram, &mut out).is_some() {}
    }
    let session = server.session();
    let sent = (0..1000)
        .rev()
        .find(|&length| server.endpoint.send(session, &vec![7; length], &mut out) == Delivery::Sent);
    assert!(sent.is_some() && out.len() == 1);
    out[0].1.len() + headers
}

#[test]
fn the_headers_of_ip_and_udp_count_in_both_directions() {
    for (there, headers) in [(elsewhere(), 28), ("[2001:db8::7]:1234".parse().unwrap(), 48)] {
        let (mut server, mut client) = with_connection_id(b"");
        let moved = client.send(b"x");
        let most = 3 * (moved.len() + headers);
        assert_eq!(longest_answer(&mut server, vec![(there, moved)], headers), most);
    }
}

#[test]
fn the_headers_of_a_datagram_count_once_for_all_its_records() {
    let (mut server, mut client) = with_connection_id(b"");
    let moved = [client.send(b"x"), client.send(b"y")].concat();
    let most = 3 * (moved.len() + 28);
    assert_eq!(longest_answer(&mut server, vec![(elsewhere(), moved)], 28), most);
}

/// An attacker may hold back a record of the client and send it later from an address that
/// the client has left.
#[test]
fn bytes_from_another_address_earn_nothing_for_the_clients_own() {
    let (mut server, mut client) = with_connection_id(b"");
    let (late, moved) = (client.send(&[7; 500]), client.send(b"x"));
    let most = 3 * (moved.len() + 28);
    assert_eq!(longest_answer(&mut server, vec![(elsewhere(), moved), (peer(), late)], 28), most);
}
