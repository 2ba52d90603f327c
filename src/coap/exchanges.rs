//! The requests of one peer (RFC 7252 §4.5): requests in progress, answers that may have to be
//! repeated, and message IDs of requests that must not be processed again. The memory is bounded:
//! an idle session costs little more than its newest answer.

use smallvec::SmallVec;
use zeroize::Zeroizing;

use super::block::{Block, TransferKey};

/// A message that may hold a secret.
pub(super) type Message = Zeroizing<Box<[u8]>>;

/// Maximum memory for the kept answers of a peer and their entries, in bytes. The newest answer is
/// always kept, because a client that sends one request at a time (NSTART 1) repeats only its
/// newest request.
const MAX_KEPT: usize = 512;
/// Maximum number of exchanges and ranges of message IDs of one peer. A peer at this maximum is
/// asked to retry later. A client whose message IDs count up adds only one range a minute. A client
/// with random IDs can still send a body of 512 bytes in blocks of 16 and fetch an answer.
const MAX_REMEMBERED: usize = 64;
/// Length of a span, in seconds. Message IDs expire in spans: all IDs whose lifetime ends in the
/// same span expire together.
const SPAN: u32 = 64;

/// A request with one message ID, in progress or answered.
struct Exchange {
    id: u16,
    /// Set if the transport did not accept the answer.
    unsent: bool,
    serial: u32,
    /// Time of the request, in seconds since the endpoint was created. This number takes 4 bytes
    /// for each device served, while an `Instant` would take 16.
    begun: u32,
    state: State,
}

enum State {
    /// The request is in progress. Its state is boxed to keep this type small. Most exchanges
    /// belong to devices that have been served, and contain only the answer.
    Working(Box<Working>),
    /// The answer, which is sent again when the request is repeated. Empty if only the
    /// acknowledgement is sent again, for example after a separate answer.
    Answered(Message),
}

#[derive(Default)]
pub(super) struct Working {
    pub(super) token: Box<[u8]>,
    pub(super) confirmable: bool,
    pub(super) no_response: u8,
    /// Set once the empty acknowledgement has been sent, so that the answer is sent separately.
    pub(super) acknowledged: bool,
    /// The block of the request body in this request.
    pub(super) block1: Option<Block>,
    /// The block of the response body that is requested.
    pub(super) block2: Option<Block>,
    pub(super) wants_size2: bool,
    pub(super) transfer: TransferKey,
    /// Digest of the request's whole payload.
    pub(super) digest: u64,
}

/// Message IDs, from `first` to `last`, of requests whose answers were dropped. The range
/// may wrap around.
struct Range {
    first: u16,
    last: u16,
    /// Number of the span at whose end these message IDs expire.
    span: u32,
}

impl Range {
    fn holds(&self, id: u16) -> bool {
        id.wrapping_sub(self.first) <= self.last.wrapping_sub(self.first)
    }

    fn is_over(&self, clock: Clock) -> bool {
        clock.seconds / SPAN > self.span
    }
}

/// State that most peers do not need.
#[derive(Default)]
struct Rest {
    answered: Vec<Range>,
    /// Message ID of the next message from this endpoint.
    next_id: Option<u16>,
}

/// The current time in seconds since the endpoint was created, and the lifetime of a
/// message ID in seconds.
#[derive(Clone, Copy)]
pub(super) struct Clock {
    pub(super) seconds: u32,
    pub(super) lifetime: u32,
}

/// State of a known message ID.
pub(super) enum Known<'p> {
    Working {
        acknowledged: bool,
    },
    /// The answer to send again, which is empty if only the acknowledgement is sent again, and a
    /// flag. The caller must set the flag if the transport does not accept the answer.
    Answered(&'p Message, &'p mut bool),
    /// The answer was dropped.
    Dropped,
}

/// Reason why a request is not accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Full {
    /// Too many requests of the peer are in progress.
    Working,
    /// Too many requests of the peer were answered recently.
    Answered,
}

/// The part of an answered request that is kept.
pub(super) enum Kept {
    /// No message: the request's message ID is remembered, so that a repetition is recognized.
    Nothing,
    /// The empty acknowledgement.
    Acknowledgement,
    /// The answer, and whether the transport accepted it.
    Answer(Message, bool),
}

/// The exchanges of one peer. This type is as small as possible, because there is one for
/// each session.
#[derive(Default)]
pub(super) struct Peer {
    /// Exchanges, oldest first. Most peers have a single one, which is stored inline.
    exchanges: SmallVec<[Exchange; 1]>,
    rest: Option<Box<Rest>>,
}

impl Peer {
    pub(super) fn known(&mut self, clock: Clock, id: u16) -> Option<Known<'_>> {
        let Self { exchanges, rest } = self;
        if let Some(found) = exchanges.iter_mut().find(|found| found.id == id) {
            let is_over = found.is_over(clock);
            return match &found.state {
                State::Working(working) => Some(Known::Working { acknowledged: working.acknowledged }),
                State::Answered(_) if is_over => None,
                State::Answered(answer) => Some(Known::Answered(answer, &mut found.unsent)),
            };
        }
        let mut answered = rest.iter().flat_map(|rest| &rest.answered);
        answered.any(|range| range.holds(id) && !range.is_over(clock)).then_some(Known::Dropped)
    }

    /// Makes room for one more request. Keeps each earlier request until its lifetime ends, because
    /// a repetition of a forgotten request would be processed again.
    pub(super) fn make_room(&mut self, clock: Clock, most: usize) -> Result<(), Full> {
        self.exchanges.retain(|old| !old.is_over(clock));
        self.exchanges.shrink_to_fit();
        if let Some(rest) = &mut self.rest {
            rest.answered.retain(|range| !range.is_over(clock));
        }
        if self.exchanges.len() >= most {
            let oldest = self.exchanges.iter().position(Exchange::is_answered).ok_or(Full::Working)?;
            self.drop_answer(clock, oldest);
        }
        let ranges = self.rest.as_ref().map_or(0, |rest| rest.answered.len());
        if self.exchanges.len() + ranges >= MAX_REMEMBERED {
            return Err(Full::Answered);
        }
        Ok(())
    }

    /// Adds a new request.
    pub(super) fn begin(&mut self, clock: Clock, id: u16, serial: u32, working: Working) {
        let state = State::Working(Box::new(working));
        self.exchanges.reserve_exact(1);
        self.exchanges.push(Exchange { id, unsent: false, serial, begun: clock.seconds, state });
    }

    pub(super) fn working(&mut self, serial: u32) -> Option<&mut Working> {
        let found = self.exchanges.iter_mut().find(|found| found.serial == serial)?;
        match &mut found.state {
            State::Working(working) => Some(working),
            State::Answered(_) => None,
        }
    }

    /// Ends the work on a request. Of the exchange, `kept` says whether the answer, the acknowledgement or
    /// nothing is kept.
    pub(super) fn end(&mut self, clock: Clock, serial: u32, kept: Kept) {
        let Some(index) = self.exchanges.iter().position(|found| found.serial == serial) else { return };
        let exchange = &mut self.exchanges[index];
        match kept {
            Kept::Nothing => return self.drop_answer(clock, index),
            Kept::Acknowledgement => exchange.state = State::Answered(Message::default()),
            Kept::Answer(answer, sent) => {
                exchange.state = State::Answered(answer);
                exchange.unsent = !sent;
            }
        }
        while self.exchanges.iter().map(Exchange::cost).sum::<usize>() > MAX_KEPT {
            let older = |old: &Exchange| old.is_answered() && old.serial != serial;
            let Some(oldest) = self.exchanges.iter().position(older) else { return };
            self.drop_answer(clock, oldest);
        }
    }

    /// Returns the answers that the transport did not accept, each with its flag `unsent`.
    pub(super) fn unsent(&mut self) -> impl Iterator<Item = (&Message, &mut bool)> {
        self.exchanges.iter_mut().filter(|exchange| exchange.unsent).filter_map(|exchange| {
            match &exchange.state {
                State::Answered(answer) => Some((answer, &mut exchange.unsent)),
                State::Working(_) => None,
            }
        })
    }

    /// Returns a message ID for a message from this endpoint. The ID is not used again for this
    /// peer within EXCHANGE_LIFETIME (RFC 7252 §4.4): each message with such an ID answers a
    /// request of the peer, and the peer can send at most 2^16 requests in this time, one for each
    /// of its own message IDs.
    pub(super) fn own_id(&mut self, first: impl FnOnce() -> u16) -> u16 {
        let next = &mut self.rest.get_or_insert_default().next_id;
        let id = next.unwrap_or_else(first);
        *next = Some(id.wrapping_add(1));
        id
    }

    /// Drops an answer but keeps its message ID.
    fn drop_answer(&mut self, clock: Clock, index: usize) {
        let Exchange { id, begun, .. } = self.exchanges.remove(index);
        self.exchanges.shrink_to_fit();
        let span = begun.saturating_add(clock.lifetime) / SPAN;
        let answered = &mut self.rest.get_or_insert_default().answered;
        for range in answered.iter_mut().filter(|range| range.span == span) {
            if id == range.last.wrapping_add(1) {
                range.last = id;
                return;
            }
            if id.wrapping_add(1) == range.first {
                range.first = id;
                return;
            }
        }
        answered.push(Range { first: id, last: id, span });
    }
}

impl Exchange {
    fn is_answered(&self) -> bool {
        matches!(self.state, State::Answered(_))
    }

    fn is_over(&self, clock: Clock) -> bool {
        // Both times are rounded down to seconds, so the lifetime is certainly over only if their
        // difference exceeds the lifetime.
        self.is_answered() && clock.seconds.saturating_sub(self.begun) > clock.lifetime
    }

    /// Returns the memory of a kept answer and its entry, in bytes; 0 before there is an answer.
    fn cost(&self) -> usize {
        match &self.state {
            State::Answered(answer) => size_of::<Self>() + answer.len(),
            State::Working(_) => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLOCK: Clock = Clock { seconds: 0, lifetime: 247 };

    fn answer(peer: &mut Peer, id: u16, length: usize) {
        peer.begin(CLOCK, id, id.into(), Working::default());
        peer.end(CLOCK, id.into(), Kept::Answer(Message::new(vec![0; length].into()), true));
    }

    fn is_kept(peer: &mut Peer, id: u16) -> bool {
        matches!(peer.known(CLOCK, id), Some(Known::Answered(..)))
    }

    #[test]
    fn answers_are_kept_while_they_fit_and_the_newest_always() {
        let own = size_of::<Exchange>();
        for (more, good) in [(0, true), (1, false)] {
            let mut peer = Peer::default();
            answer(&mut peer, 1, 100);
            answer(&mut peer, 2, MAX_KEPT - 2 * own - 100 + more);
            assert_eq!((is_kept(&mut peer, 1), is_kept(&mut peer, 2)), (good, true));
        }
        let mut peer = Peer::default();
        answer(&mut peer, 1, 2 * MAX_KEPT);
        assert!(is_kept(&mut peer, 1));
    }

    #[test]
    fn a_request_in_progress_is_not_dropped_for_an_answer() {
        let mut peer = Peer::default();
        peer.begin(CLOCK, 1, 1, Working::default());
        answer(&mut peer, 2, MAX_KEPT);
        answer(&mut peer, 3, MAX_KEPT);
        assert!(peer.working(1).is_some());
        assert!(!is_kept(&mut peer, 2) && is_kept(&mut peer, 3));
    }
}
