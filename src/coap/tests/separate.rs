//! Tests of separate answers while several are outstanding to one peer.

use super::*;

fn acknowledge(message: &[u8]) -> [u8; 4] {
    [0x60, 0, message[2], message[3]]
}

impl Server {
    /// Receives requests with these message IDs. The requests are acknowledged and remain in
    /// progress.
    fn slow<const N: usize>(&mut self, ids: [u8; N]) -> [Request<u8>; N] {
        let requests = ids.map(|id| self.receive(&get(CON, id)).0.unwrap());
        for request in &requests {
            self.endpoint.defer(self.now, request.exchange);
        }
        assert_eq!(self.advance(Duration::from_secs(1)).len(), N, "acknowledged at once");
        requests
    }

    /// Lets time pass until no timer is left. Returns all messages sent, each with the time that
    /// has passed since the call.
    fn rest(&mut self) -> Vec<(Duration, Vec<u8>)> {
        let (mut sent, began) = (Vec::new(), self.now);
        while let Some(at) = self.endpoint.poll_timeout() {
            let messages = self.advance(at.saturating_duration_since(self.now));
            sent.extend(messages.into_iter().map(|(_, message)| (self.now - began, message)));
        }
        sent
    }
}

#[test]
fn separate_answers_go_to_a_peer_one_at_a_time() {
    let mut server = Server::new();
    let requests = server.slow([1, 2, 3]);
    // RFC 7252 §4.7: NSTART is 1, so only the first answer is sent at once.
    let first = server.respond(&requests[0]);
    assert_eq!(first.len(), 1);
    assert!(server.respond(&requests[1]).is_empty());
    assert!(server.respond(&requests[2]).is_empty());
    let second = server.receive(&acknowledge(&first[0].1)).1;
    assert_eq!(second.len(), 1);
    assert!(
        server.receive(&acknowledge(&first[0].1)).1.is_empty(),
        "a repeated acknowledgement frees nothing"
    );
    let third = server.receive(&acknowledge(&second[0].1)).1;
    assert_eq!(third.len(), 1);
    assert!(server.receive(&acknowledge(&third[0].1)).1.is_empty());
    assert!(server.rest().is_empty());
}

#[test]
fn an_unacknowledged_answer_delays_the_next_by_one_timeout() {
    let mut server = Server::new();
    let requests = server.slow([1, 2, 3]);
    let first = server.respond(&requests[0]);
    server.respond(&requests[1]);
    server.respond(&requests[2]);
    let sent = server.rest();
    let mut ids: Vec<u16> = sent.iter().map(|(_, message)| head(message).2).collect();
    assert!(sent[0].0 <= Duration::from_secs(3) && sent[1].0 <= Duration::from_secs(6), "{sent:?}");
    assert_ne!(ids[0], ids[1]);
    assert!(!ids[..2].contains(&head(&first[0].1).2), "the next ones, before the first is repeated");
    // One message is sent per timeout, and each message is sent five times in total.
    let mut before = Duration::ZERO;
    for (at, _) in &sent {
        assert!(*at - before >= Duration::from_secs(2), "{sent:?}");
        before = *at;
    }
    ids.push(head(&first[0].1).2);
    ids.sort_unstable();
    assert_eq!(ids.chunk_by(|one, other| one == other).map(<[u16]>::len).collect::<Vec<_>>(), [5; 3]);
    assert_eq!(server.endpoint.counters().answers_given_up, 3);
}

#[test]
fn an_answer_does_not_wait_for_a_repeated_one_and_can_be_acknowledged() {
    let mut server = Server::new();
    let [one, two] = server.slow([1, 2]);
    let first = server.respond(&one);
    let at = server.endpoint.poll_timeout().unwrap();
    assert_eq!(server.advance(at - server.now), first, "repeated");
    server.advance(Duration::from_millis(100));
    let second = server.respond(&two);
    assert_eq!(second.len(), 1, "at once");
    // An acknowledgement of the second answer does not cause an earlier retransmission of the first
    // answer.
    assert!(server.receive(&acknowledge(&second[0].1)).1.is_empty());
    assert!(server.advance(Duration::from_millis(3800)).is_empty());
    assert_eq!(server.advance(Duration::from_millis(2200)), first);
    assert!(server.receive(&acknowledge(&first[0].1)).1.is_empty());
    assert!(server.rest().is_empty());
}

#[test]
fn a_waiting_answer_can_be_acknowledged_late() {
    let mut server = Server::new();
    let [one, two] = server.slow([1, 2]);
    let first = server.respond(&one);
    server.respond(&two);
    let at = server.endpoint.poll_timeout().unwrap();
    let second = server.advance(at - server.now);
    assert_ne!(second, first);
    server.receive(&acknowledge(&first[0].1));
    server.receive(&acknowledge(&second[0].1));
    assert!(server.rest().is_empty());
}

#[test]
fn waiting_answers_are_bounded() {
    let mut server = Server::new();
    for id in 0..100 {
        let request = server.receive(&get(CON, id)).0.unwrap();
        server.endpoint.defer(server.now, request.exchange);
        server.advance(Duration::from_secs(1));
        server.respond(&request);
    }
    let mut answers = 0;
    while let Some(at) = server.endpoint.poll_timeout() {
        answers += server.advance(at.saturating_duration_since(server.now)).len();
    }
    // Each of the 17 kept answers is sent once and retransmitted four times.
    assert!(answers <= 17 * 5, "{answers}");
}

#[test]
fn an_answer_sent_after_another_timed_out_is_itself_repeated() {
    let mut server = Server::new();
    let [one, two] = server.slow([1, 2]);
    let first = server.respond(&one);
    let at = server.endpoint.poll_timeout().unwrap();
    server.advance(at - server.now);
    let second = server.respond(&two);
    assert_eq!(second.len(), 1, "at once when the timeout of the first is over");
    assert!(server.receive(&acknowledge(&first[0].1)).1.is_empty());
    let sent = server.rest();
    assert_eq!(sent.len(), 4);
    assert!(sent.iter().all(|(_, message)| *message == second[0].1));
}

#[test]
fn an_acknowledgement_of_another_message_settles_nothing() {
    let mut server = Server::new();
    let requests = server.slow([1, 2]);
    let first = server.respond(&requests[0]);
    let at = server.endpoint.poll_timeout().unwrap();
    server.advance(at - server.now);
    let second = server.respond(&requests[1]);
    let id = head(&second[0].1).2.wrapping_add(9).to_be_bytes();
    assert!(server.receive(&[0x60, 0, id[0], id[1]]).1.is_empty());
    let sent: Vec<_> = server.rest().into_iter().map(|(_, message)| message).collect();
    assert!(sent.contains(&first[0].1) && sent.contains(&second[0].1));
}

/// The device may have received the answer at its earlier address. So its reset does not show that
/// the device receives messages at its current address.
#[test]
fn a_reset_of_an_answer_does_not_answer_the_ping() {
    let mut server = Server::new();
    let [one, two] = server.slow([1, 2]);
    let answer = server.respond(&one);
    let at = server.endpoint.poll_timeout().unwrap();
    server.advance(at - server.now);
    let newer = server.respond(&two);
    let mut out = Sent::new();
    assert!(server.endpoint.ping(PEER, &mut out));
    let reset = |message: &[u8]| [0x70, 0, message[2], message[3]];
    for refused in [&answer[0].1, &newer[0].1] {
        server.receive(&reset(refused));
        assert_eq!(server.endpoint.take_pong(), None);
    }
    server.receive(&reset(&out[0].1));
    assert_eq!(server.endpoint.take_pong(), Some(PEER));
}

#[test]
fn answers_beyond_the_limit_or_for_a_forgotten_peer_are_not_sent() {
    let mut server = Server::new();
    let requests = server.slow([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16]);
    requests.iter().for_each(|request| drop(server.respond(request)));
    assert_eq!(server.endpoint.counters().answers_given_up, 0);
    let requests = server.slow([20, 21, 22]);
    requests.iter().for_each(|request| drop(server.respond(request)));
    assert_eq!(server.endpoint.counters().answers_given_up, 2, "beyond one sent and 16 that wait");
    server.endpoint.forget(PEER);
    assert!(server.rest().is_empty());
}
