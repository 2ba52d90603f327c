//! Confirmable messages that this endpoint sends. Each is resent until it is acknowledged
//! (RFC 7252 §4.2), and only one at a time is sent to each peer (§4.7).
//!
//! NSTART (§4.7) is a rule for clients, but a server should also limit the rate of its answers.
//! Until an answer is acknowledged, the next answer to the same peer waits. Without an
//! acknowledgement, the wait ends with the first timeout of the earlier answer, which is at most 3
//! s. After the wait, the next answer is sent, and retransmissions of unacknowledged answers
//! alternate with new answers. A peer that acknowledges nothing is thus sent at most one new answer
//! and one retransmission per timeout. A client that misses one answer still gets the next.

use std::{
    collections::{HashMap, VecDeque},
    hash::Hash,
    time::{Duration, Instant},
};

use super::{Outbox, exchanges::Message};

/// Maximum number of waiting messages to one peer. At the maximum, the endpoint gives up the oldest
/// waiting message that was already sent. If none of them was sent, it gives up the oldest waiting
/// message.
const MAX_WAITING: usize = 16;

/// Message ID with which the caller must call [`Confirmables::retransmit`], and the time of that
/// call.
pub(super) type Wake = (u16, Instant);

struct Confirmable {
    id: u16,
    message: Message,
    timeout: Duration,
    retransmissions: u32,
    /// Time of the next retransmission. `None` until the message is first sent.
    due: Option<Instant>,
    /// Set if the transport accepted the message when it was last sent.
    sent: bool,
    /// End of the message's first timeout. Other messages wait until then.
    holds_until: Instant,
}

impl Confirmable {
    fn transmit<K>(&mut self, now: Instant, peer: K, out: &mut impl Outbox<K>) {
        self.sent = out.push(peer, &self.message);
        if self.due.replace(now + self.timeout).is_none() {
            self.holds_until = now + self.timeout;
        }
    }
}

/// Messages to one peer.
struct Line {
    /// The current message, which has been sent but not acknowledged.
    first: Confirmable,
    /// The messages that come after the current one. They have not been sent yet, or wait for their
    /// retransmission.
    waiting: VecDeque<Confirmable>,
}

/// Messages to all peers.
pub(super) struct Confirmables<K> {
    lines: HashMap<K, Line>,
    max_retransmit: u32,
    given_up: u64,
}

impl<K: Copy + Eq + Hash> Confirmables<K> {
    pub(super) fn new(max_retransmit: u32) -> Self {
        Self { lines: HashMap::new(), max_retransmit, given_up: 0 }
    }

    /// Returns whether nothing is outstanding.
    #[cfg(any(test, feature = "testing"))]
    pub(super) fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    /// Sends the message now, or queues the message if it must wait for an earlier one. `timeout`
    /// is the first timeout of the message. Returns the message ID and time for
    /// [`retransmit`](Self::retransmit) if the message was sent now. Also returns whether the
    /// transport accepted the message.
    pub(super) fn send(
        &mut self,
        now: Instant,
        peer: K,
        (id, message): (u16, Message),
        timeout: Duration,
        out: &mut impl Outbox<K>,
    ) -> (Option<Wake>, bool) {
        let mut fresh = Confirmable {
            id,
            message,
            timeout,
            retransmissions: 0,
            due: None,
            sent: false,
            holds_until: now,
        };
        let Some(line) = self.lines.get_mut(&peer) else {
            fresh.transmit(now, peer, out);
            let (wake, sent) = ((id, now + timeout), fresh.sent);
            self.lines.insert(peer, Line { first: fresh, waiting: VecDeque::new() });
            return (Some(wake), sent);
        };
        if line.waiting.len() == MAX_WAITING {
            let oldest = line.waiting.iter().position(|other| other.due.is_some()).unwrap_or(0);
            line.waiting.remove(oldest);
            self.given_up += 1;
        }
        if now < line.first.holds_until {
            line.waiting.push_back(fresh);
            return (None, false);
        }
        fresh.transmit(now, peer, out);
        let sent = fresh.sent;
        let first = std::mem::replace(&mut line.first, fresh);
        line.waiting.push_back(first);
        (Some((id, now + timeout)), sent)
    }

    /// Returns whether a message with this ID has been sent to the peer but not
    /// acknowledged.
    pub(super) fn is_outstanding(&self, peer: K, id: u16) -> bool {
        let sent = |message: &Confirmable| message.id == id && message.due.is_some();
        self.lines.get(&peer).is_some_and(|line| sent(&line.first) || line.waiting.iter().any(sent))
    }

    /// Handles an acknowledgement or a reset of a message. Then sends the next waiting message if
    /// it is due. Returns the message ID and time for the next call of
    /// [`retransmit`](Self::retransmit).
    pub(super) fn settle(
        &mut self,
        now: Instant,
        peer: K,
        id: u16,
        out: &mut impl Outbox<K>,
    ) -> Option<Wake> {
        let line = self.lines.get_mut(&peer)?;
        if line.first.id != id {
            line.waiting.retain(|other| other.id != id || other.due.is_none());
            return None;
        }
        let waiting = std::mem::take(&mut line.waiting);
        self.next(now, peer, waiting, out)
    }

    /// Handles the retransmission time of a message. Sends a waiting message that was never sent
    /// or, if there is none, the message that is due first. Does nothing if the message with this
    /// ID is settled or not due. Returns the message ID and time for the next call.
    pub(super) fn retransmit(
        &mut self,
        now: Instant,
        peer: K,
        id: u16,
        out: &mut impl Outbox<K>,
    ) -> Option<Wake> {
        let is_due = |line: &Line| line.first.id == id && line.first.due.is_some_and(|due| due <= now);
        if !self.lines.get(&peer).is_some_and(is_due) {
            return None;
        }
        let Line { first, mut waiting } = self.lines.remove(&peer)?;
        waiting.push_back(first);
        self.next(now, peer, waiting, out)
    }

    /// Sends the current message again if the transport did not accept it before. Returns
    /// whether the transport accepts it now.
    pub(super) fn resume(&mut self, peer: K, out: &mut impl Outbox<K>) -> bool {
        let Some(line) = self.lines.get_mut(&peer).filter(|line| !line.first.sent) else { return false };
        line.first.sent = out.push(peer, &line.first.message);
        line.first.sent
    }

    pub(super) fn forget(&mut self, peer: K) {
        self.lines.remove(&peer);
    }

    /// Returns the number of messages given up without an acknowledgement. Messages to
    /// forgotten peers are not counted.
    pub(super) fn given_up(&self) -> u64 {
        self.given_up
    }

    /// Sends the first message that was never sent. If there is none, picks the message
    /// that is due first, and sends it if it is already due.
    fn next(
        &mut self,
        now: Instant,
        peer: K,
        mut waiting: VecDeque<Confirmable>,
        out: &mut impl Outbox<K>,
    ) -> Option<Wake> {
        loop {
            let turn = (0..waiting.len()).min_by_key(|&at| waiting[at].due);
            let Some(mut first) = turn.and_then(|at| waiting.remove(at)) else {
                self.lines.remove(&peer);
                return None;
            };
            match first.due {
                Some(due) if due > now => {}
                Some(_) if first.retransmissions == self.max_retransmit => {
                    self.given_up += 1;
                    continue;
                }
                Some(_) => {
                    first.retransmissions += 1;
                    first.timeout *= 2;
                    first.transmit(now, peer, out);
                }
                None => first.transmit(now, peer, out),
            }
            let wake = (first.id, first.due.unwrap_or(now));
            self.lines.insert(peer, Line { first, waiting });
            return Some(wake);
        }
    }
}
