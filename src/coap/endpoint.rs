//! What an endpoint remembers between messages (RFC 7252 §4): answers already
//! given, requests in work, and confirmable messages of our own that nobody has
//! acknowledged yet.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap, HashMap},
    hash::Hash,
    time::{Duration, Instant},
};

use coap_lite::MessageType;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use zeroize::Zeroizing;

use super::{
    Config, Outbox, Request, Response,
    message::{self, Incoming},
};

/// Names a request in work: its peer and message ID.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ExchangeId<K> {
    /// Who asked.
    pub peer: K,
    id: u16,
    /// Tells exchanges apart that had the same message ID one after another.
    serial: u32,
}

/// A request of one message ID, in work or answered.
struct Exchange {
    id: u16,
    serial: u32,
    /// Seconds since the endpoint was made: 4 bytes instead of 16, of each device
    /// that was served.
    begun: u32,
    state: State,
}

enum State {
    /// Being worked on. Boxed, because a device that was served holds only the answer.
    Working(Box<Working>),
    /// Sent again when the request is repeated. Empty for a request that is not
    /// answered again.
    Answered(Zeroizing<Box<[u8]>>),
}

struct Working {
    token: Vec<u8>,
    confirmable: bool,
    no_response: u8,
    /// The empty acknowledgement was sent: the answer will come separately.
    acknowledged: bool,
}

/// A confirmable message of ours (RFC 7252 §4.2).
struct Unacknowledged {
    message: Zeroizing<Box<[u8]>>,
    timeout: Duration,
    retransmissions: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Timer<K> {
    Separate(ExchangeId<K>),
    Retransmit(K, u16),
}

/// What is remembered of one peer.
#[derive(Default)]
struct Peer {
    /// Oldest first; few.
    exchanges: Vec<Exchange>,
}

/// A CoAP server endpoint for many peers.
pub struct Endpoint<K> {
    config: Config,
    made: Instant,
    peers: HashMap<K, Peer>,
    /// In order, so that those of one peer are found together.
    unacknowledged: BTreeMap<(K, u16), Unacknowledged>,
    timers: BinaryHeap<Reverse<(Instant, Timer<K>)>>,
    next_id: u16,
    next_serial: u32,
    random: StdRng,
}

impl<K: Copy + Eq + Hash + Ord> Endpoint<K> {
    /// `seed` is random: message IDs and the spread of retransmissions come from it.
    pub fn new(config: Config, now: Instant, seed: [u8; 32]) -> Self {
        let mut random = StdRng::from_seed(seed);
        Self {
            config,
            made: now,
            peers: HashMap::new(),
            unacknowledged: BTreeMap::new(),
            timers: BinaryHeap::new(),
            next_id: random.random(),
            next_serial: 0,
            random,
        }
    }

    /// Takes a message. Answers with the request when there is one to work on;
    /// everything else is dealt with here.
    pub fn receive(
        &mut self,
        now: Instant,
        peer: K,
        bytes: &[u8],
        out: &mut impl Outbox<K>,
    ) -> Option<Request<K>> {
        let packet = match message::read(bytes) {
            Incoming::Request(packet) => packet,
            Incoming::Acknowledgement(id) | Incoming::Reset(id) => {
                self.unacknowledged.remove(&(peer, id));
                return None;
            }
            Incoming::Rejected(id) => {
                out.push(peer, &message::empty(MessageType::Reset, id));
                return None;
            }
            Incoming::Ignored => return None,
        };
        let id = packet.header.message_id;
        let confirmable = packet.header.get_type() == MessageType::Confirmable;
        if self.repeat(now, peer, id, confirmable, out) {
            return None;
        }
        let working =
            Working { token: packet.get_token().to_vec(), confirmable, no_response: 0, acknowledged: false };
        let exchange = self.begin(now, peer, id, working)?;
        match message::options(&packet) {
            Ok(options) => {
                if let Some(working) = self.working(exchange) {
                    working.no_response = options.no_response;
                }
                Some(Request {
                    exchange,
                    method: message::method(&packet),
                    path: options.path,
                    query: options.query,
                    content_format: options.content_format,
                    accept: options.accept,
                    payload: packet.payload,
                })
            }
            // RFC 7252 §5.4.1: refused with 4.02 when confirmable; a
            // non-confirmable one is rejected, which may be in silence.
            Err(refusal) => {
                if confirmable {
                    self.respond(now, exchange, &refusal, out);
                }
                None
            }
        }
    }

    /// Says that the answer will take a while: after [`Config::separate_after`]
    /// the request is acknowledged, so that the client does not repeat it.
    pub fn defer(&mut self, now: Instant, exchange: ExchangeId<K>) {
        self.timers.push(Reverse((now + self.config.separate_after, Timer::Separate(exchange))));
    }

    /// Answers a request: piggybacked on its acknowledgement, or separately when
    /// that was sent already (RFC 7252 §5.2).
    pub fn respond(
        &mut self,
        now: Instant,
        exchange: ExchangeId<K>,
        response: &Response,
        out: &mut impl Outbox<K>,
    ) {
        let Some(working) = self.working(exchange) else { return };
        let token = std::mem::take(&mut working.token);
        let &mut Working { confirmable, no_response, acknowledged, .. } = working;
        let unwanted = message::is_unwanted(no_response, response.code);
        let answer = if unwanted && confirmable {
            // RFC 7967 §2: a confirmable request is still acknowledged.
            Zeroizing::new(message::empty(MessageType::Acknowledgement, exchange.id).into())
        } else if unwanted {
            Zeroizing::default()
        } else if confirmable && !acknowledged {
            message::response(MessageType::Acknowledgement, exchange.id, &token, response)
        } else {
            let id = self.next_id;
            self.next_id = id.wrapping_add(1);
            let kind = if confirmable { MessageType::Confirmable } else { MessageType::NonConfirmable };
            let message = message::response(kind, id, &token, response);
            out.push(exchange.peer, &message);
            if confirmable {
                self.await_acknowledgement(now, exchange.peer, id, message);
                // A repeated request is acknowledged again; the response has
                // retransmissions of its own.
                Zeroizing::new(message::empty(MessageType::Acknowledgement, exchange.id).into())
            } else {
                Zeroizing::default()
            }
        };
        if confirmable && !acknowledged {
            out.push(exchange.peer, &answer);
        }
        if let Some(found) = self.exchange(exchange) {
            found.state = State::Answered(answer);
        }
    }

    /// Forgets a peer that is gone.
    pub fn forget(&mut self, peer: K) {
        self.peers.remove(&peer);
        while let Some((&key, _)) = self.unacknowledged.range((peer, 0)..=(peer, u16::MAX)).next() {
            self.unacknowledged.remove(&key);
        }
    }

    /// Peers remembered.
    pub fn peers(&self) -> usize {
        self.peers.len()
    }

    /// When [`handle_timeout`](Self::handle_timeout) wants to be called next.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.timers.peek().map(|Reverse((at, _))| *at)
    }

    /// Acknowledges requests that take long, and sends unacknowledged messages again.
    pub fn handle_timeout(&mut self, now: Instant, out: &mut impl Outbox<K>) {
        while self.poll_timeout().is_some_and(|at| at <= now) {
            match self.timers.pop() {
                Some(Reverse((_, Timer::Separate(exchange)))) => self.acknowledge(exchange, out),
                Some(Reverse((_, Timer::Retransmit(peer, id)))) => self.retransmit(now, peer, id, out),
                None => return,
            }
        }
    }

    /// RFC 7252 §4.5: a repeated request is not worked on again. Whether it was one.
    fn repeat(
        &mut self,
        now: Instant,
        peer: K,
        id: u16,
        confirmable: bool,
        out: &mut impl Outbox<K>,
    ) -> bool {
        let Some(found) =
            self.peers.get(&peer).and_then(|peer| peer.exchanges.iter().find(|found| found.id == id))
        else {
            return false;
        };
        match &found.state {
            State::Working(working) if working.acknowledged => {
                out.push(peer, &message::empty(MessageType::Acknowledgement, id));
            }
            State::Working(_) => {}
            State::Answered(_) if self.has_expired(now, found) => return false,
            State::Answered(answer) if confirmable && !answer.is_empty() => out.push(peer, answer),
            State::Answered(_) => {}
        }
        true
    }

    /// Remembers a new request, in the place of an old one when the peer has
    /// many. `None` when all of them are still being worked on: the client will
    /// repeat this one.
    fn begin(&mut self, now: Instant, peer: K, id: u16, working: Working) -> Option<ExchangeId<K>> {
        let exchanges = &mut self.peers.entry(peer).or_default().exchanges;
        let seconds = seconds_since(self.made, now);
        let lifetime = self.config.exchange_lifetime.as_secs();
        exchanges.retain(|old| {
            let done = matches!(old.state, State::Answered(_));
            !done || (old.id != id && u64::from(seconds) <= u64::from(old.begun) + lifetime)
        });
        if exchanges.len() >= self.config.max_exchanges {
            let oldest = exchanges.iter().position(|old| matches!(old.state, State::Answered(_)))?;
            exchanges.remove(oldest);
        }
        self.next_serial = self.next_serial.wrapping_add(1);
        let serial = self.next_serial;
        exchanges.reserve_exact(1);
        exchanges.push(Exchange { id, serial, begun: seconds, state: State::Working(Box::new(working)) });
        Some(ExchangeId { peer, id, serial })
    }

    fn has_expired(&self, now: Instant, exchange: &Exchange) -> bool {
        let age = u64::from(seconds_since(self.made, now)).saturating_sub(exchange.begun.into());
        // Both times are rounded down: only beyond it is it certain.
        age > self.config.exchange_lifetime.as_secs()
    }

    fn exchange(&mut self, exchange: ExchangeId<K>) -> Option<&mut Exchange> {
        let peer = self.peers.get_mut(&exchange.peer)?;
        peer.exchanges.iter_mut().find(|found| found.serial == exchange.serial)
    }

    fn working(&mut self, exchange: ExchangeId<K>) -> Option<&mut Working> {
        match &mut self.exchange(exchange)?.state {
            State::Working(working) => Some(working),
            State::Answered(_) => None,
        }
    }

    fn acknowledge(&mut self, exchange: ExchangeId<K>, out: &mut impl Outbox<K>) {
        let Some(working) = self.working(exchange) else { return };
        if working.confirmable && !working.acknowledged {
            working.acknowledged = true;
            out.push(exchange.peer, &message::empty(MessageType::Acknowledgement, exchange.id));
        }
    }

    fn await_acknowledgement(&mut self, now: Instant, peer: K, id: u16, message: Zeroizing<Box<[u8]>>) {
        // RFC 7252 §4.2: between ACK_TIMEOUT and ACK_TIMEOUT * ACK_RANDOM_FACTOR.
        let timeout = self.config.ack_timeout.mul_f64(self.random.random_range(1.0..1.5));
        self.unacknowledged.insert((peer, id), Unacknowledged { message, timeout, retransmissions: 0 });
        self.timers.push(Reverse((now + timeout, Timer::Retransmit(peer, id))));
    }

    fn retransmit(&mut self, now: Instant, peer: K, id: u16, out: &mut impl Outbox<K>) {
        let Some(waiting) = self.unacknowledged.get_mut(&(peer, id)) else { return };
        if waiting.retransmissions == self.config.max_retransmit {
            self.unacknowledged.remove(&(peer, id));
            return;
        }
        waiting.retransmissions += 1;
        waiting.timeout *= 2;
        out.push(peer, &waiting.message);
        self.timers.push(Reverse((now + waiting.timeout, Timer::Retransmit(peer, id))));
    }
}

fn seconds_since(made: Instant, now: Instant) -> u32 {
    now.saturating_duration_since(made).as_secs().try_into().unwrap_or(u32::MAX)
}
