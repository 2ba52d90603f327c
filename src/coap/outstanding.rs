//! Confirmable messages of our own: sent again until they are acknowledged
//! (RFC 7252 §4.2), one at a time to each peer (NSTART, §4.7).

use std::{
    collections::{HashMap, VecDeque},
    hash::Hash,
    time::Duration,
};

use zeroize::Zeroizing;

use super::Outbox;

/// A message that may hold a secret.
pub(super) type Message = Zeroizing<Box<[u8]>>;

/// Most messages that wait for a peer's acknowledgement of the one before; beyond,
/// the oldest is given up.
const MAX_WAITING: usize = 16;

/// What is outstanding to one peer.
struct Outstanding {
    id: u16,
    message: Message,
    timeout: Duration,
    retransmissions: u32,
    /// Further ones, oldest first.
    waiting: VecDeque<(u16, Message)>,
}

/// What is outstanding to all peers.
pub(super) struct Confirmables<K> {
    outstanding: HashMap<K, Outstanding>,
    max_retransmit: u32,
}

impl<K: Copy + Eq + Hash> Confirmables<K> {
    pub(super) fn new(max_retransmit: u32) -> Self {
        Self { outstanding: HashMap::new(), max_retransmit }
    }

    /// Sends the message now, or when those before it are done. `timeout` is the
    /// first time-out. Answers with when to call [`retransmit`](Self::retransmit),
    /// if it was sent.
    pub(super) fn send(
        &mut self,
        peer: K,
        id: u16,
        message: Message,
        timeout: Duration,
        out: &mut impl Outbox<K>,
    ) -> Option<Duration> {
        if let Some(outstanding) = self.outstanding.get_mut(&peer) {
            if outstanding.waiting.len() == MAX_WAITING {
                outstanding.waiting.pop_front();
            }
            outstanding.waiting.push_back((id, message));
            return None;
        }
        out.push(peer, &message);
        let waiting = VecDeque::new();
        self.outstanding.insert(peer, Outstanding { id, message, timeout, retransmissions: 0, waiting });
        Some(timeout)
    }

    /// An acknowledgement or a reset has come. The next message, when one was
    /// waiting for this: sent as in [`send`](Self::send).
    pub(super) fn settle(
        &mut self,
        peer: K,
        id: u16,
        timeout: Duration,
        out: &mut impl Outbox<K>,
    ) -> Option<(u16, Duration)> {
        if self.outstanding.get(&peer)?.id != id {
            return None;
        }
        self.next(peer, timeout, out)
    }

    /// Sends a message again, unless it is settled. With the message and the time
    /// after which to call this again: for the same, or for the next one when this
    /// one is given up.
    pub(super) fn retransmit(
        &mut self,
        peer: K,
        id: u16,
        timeout: Duration,
        out: &mut impl Outbox<K>,
    ) -> Option<(u16, Duration)> {
        let outstanding = self.outstanding.get_mut(&peer).filter(|outstanding| outstanding.id == id)?;
        if outstanding.retransmissions == self.max_retransmit {
            return self.next(peer, timeout, out);
        }
        outstanding.retransmissions += 1;
        outstanding.timeout *= 2;
        out.push(peer, &outstanding.message);
        Some((id, outstanding.timeout))
    }

    pub(super) fn forget(&mut self, peer: K) {
        self.outstanding.remove(&peer);
    }

    fn next(&mut self, peer: K, timeout: Duration, out: &mut impl Outbox<K>) -> Option<(u16, Duration)> {
        let mut waiting = self.outstanding.remove(&peer)?.waiting;
        let (id, message) = waiting.pop_front()?;
        out.push(peer, &message);
        self.outstanding.insert(peer, Outstanding { id, message, timeout, retransmissions: 0, waiting });
        Some((id, timeout))
    }
}
