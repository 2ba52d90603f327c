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
fn an_id_that_leaves_no_room_for_a_question_is_not_agreed_on() {
    for (length, is_agreed) in [(64, true), (65, false), (255, false)] {
        let mut server = Server::new(Config::default());
        let profile = Profile { connection_id: Some(vec![7; length]), ..profile() };
        let client = connect(&mut server, profile, peer(), 1);
        assert!(client.is_established());
        assert_eq!(!client.server_connection_id().is_empty(), is_agreed, "{length} bytes");
    }
}

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

/// Bytes of datagrams on the wire to an address, with IPv4's and UDP's headers.
fn wire(sent: &Outgoing, to: SocketAddr) -> usize {
    sent.iter().filter(|(at, _)| *at == to).map(|(_, datagram)| datagram.len() + 28).sum()
}

#[test]
fn to_an_address_that_was_not_tried_no_more_than_three_times_its_bytes_are_sent() {
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
    // Bytes from where it was earn nothing where it is.
    let late = client.send(b"from elsewhere");
    let newest = client.send(b"from there");
    server.receive(elsewhere(), &newest);
    let before = server.endpoint.counters().dropped(Dropped::Unvalidated);
    server.receive(peer(), &late);
    assert!(server.endpoint.counters().dropped(Dropped::Unvalidated) >= before);
    // What comes from there earns more.
    assert!(echoes(&mut server, &mut client, elsewhere(), b"I am really here"));
}

/// RFC 9146 §6, condition 3: an address that was shown to be the client's is as good as
/// that of its handshake, to which it may return at any time.
#[test]
fn once_the_client_was_shown_to_receive_there_nothing_is_held_back() {
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
    // It has moved on by the time that it is shown where it was.
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
    assert_eq!(crate::dtls::connection_id_prefix(&client.send(b"x")), Some(7));
    assert_eq!(crate::dtls::connection_id_prefix(&[22, 0xfe, 0xfd, 0, 0]), None);
    assert_eq!(crate::dtls::connection_id_prefix(&[25]), None);
}

/// The address of the handshake, where the client returned a cookie, stays as good as shown.
#[test]
fn a_client_that_comes_back_to_where_its_handshake_was_has_nothing_to_show() {
    let (mut server, mut client) = with_connection_id(b"");
    assert!(echoes(&mut server, &mut client, elsewhere(), b"x"));
    assert!(echoes(&mut server, &mut client, peer(), b"x"));
    assert!(server.endpoint.is_validated(server.session()));
}

#[test]
fn a_client_that_stays_where_it_is_is_not_asked_to_show_that_it_does() {
    let (mut server, mut client) = with_connection_id(b"");
    assert!(echoes(&mut server, &mut client, peer(), b"x"));
    let session = server.session();
    assert!(server.endpoint.is_validated(session));
    assert_eq!(server.endpoint.send(session, &[7; 1000], &mut Outgoing::new()), Delivery::Sent);
}

#[test]
fn what_is_sent_to_where_a_client_was_shown_to_receive_is_no_longer_than_a_record_may_be() {
    let (mut server, _) = with_connection_id(b"");
    let session = server.session();
    let most = server.endpoint.max_data(session).unwrap();
    let mut send = |length| server.endpoint.send_validated(session, &vec![7; length], &mut Outgoing::new());
    assert_eq!(send(most), Delivery::Sent);
    assert_eq!(send(most + 1), Delivery::Lost);
}

/// Takes datagrams without an answer, then sends the longest answer that may be sent.
/// Its length with the headers of IPv4 and UDP, or IPv6.
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
fn the_headers_of_ip_and_udp_count_on_both_ways() {
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

/// Somebody may repeat what the client has sent, from where it no longer is.
#[test]
fn what_comes_from_where_the_client_is_not_earns_nothing_where_it_is() {
    let (mut server, mut client) = with_connection_id(b"");
    let (late, moved) = (client.send(&[7; 500]), client.send(b"x"));
    let most = 3 * (moved.len() + 28);
    assert_eq!(longest_answer(&mut server, vec![(elsewhere(), moved), (peer(), late)], 28), most);
}
