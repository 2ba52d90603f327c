//! The endpoint, which processes messages (RFC 7252 §4). The module `exchanges` keeps the requests
//! of a peer, `block` keeps bodies that take several messages, and `outstanding` keeps the
//! confirmable messages of this endpoint.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap},
    hash::Hash,
    sync::Arc,
    time::{Duration, Instant},
};

use coap_lite::MessageType;
use rand::{RngExt, SeedableRng, rngs::StdRng};

use super::{
    Code, Config, Counters, Delivery, Outbox, Request, Response,
    block::{Assembled, Block, TransferKey, Transfers},
    exchanges::{Clock, Full, Kept, Known, Message, Peer, Working},
    message::{self, Blocks, Head, Incoming, Options},
    outstanding::{Confirmables, Wake},
    peers::Peers,
};

/// Time after which a peer with too many recent requests may retry, in seconds.
const PAUSE: u32 = 60;

/// Identifies a request in progress by its peer and message ID.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ExchangeId<K> {
    /// The client.
    pub peer: K,
    id: u16,
    /// Distinguishes exchanges that used the same message ID one after another.
    serial: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Timer<K> {
    Separate(ExchangeId<K>),
    Retransmit(K, u16),
}

/// A response that is sent whole or in blocks.
struct Body<'r> {
    response: &'r Response,
    /// Number of the transfer that holds the response, if it is already kept.
    kept: Option<u64>,
}

/// A CoAP server endpoint for many peers.
pub struct Endpoint<K> {
    config: Config,
    made: Instant,
    peers: Peers<K>,
    transfers: Transfers<K>,
    confirmables: Confirmables<K>,
    timers: BinaryHeap<Reverse<(Instant, Timer<K>)>>,
    next_serial: u32,
    counters: Counters,
    random: StdRng,
    /// Message IDs of unanswered pings.
    pings: HashMap<K, u16>,
    /// The peer whose last message answered a ping.
    pong: Option<K>,
}

impl<K: Copy + Eq + Hash + Ord> Endpoint<K> {
    /// Creates an endpoint. `seed` must be random, because message IDs and the jitter of
    /// retransmissions come from it.
    pub fn new(config: Config, now: Instant, seed: [u8; 32]) -> Self {
        let random = StdRng::from_seed(seed);
        Self {
            made: now,
            peers: Peers::new(),
            transfers: Transfers::new(config.max_transfers, config.exchange_lifetime),
            confirmables: Confirmables::new(config.max_retransmit),
            timers: BinaryHeap::new(),
            next_serial: 0,
            counters: Counters::default(),
            random,
            pings: HashMap::new(),
            pong: None,
            config,
        }
    }

    /// Processes a message. Returns a request that the application must answer. Handles all other
    /// messages itself.
    pub fn receive(
        &mut self,
        now: Instant,
        peer: K,
        bytes: &[u8],
        out: &mut impl Outbox<K>,
    ) -> Option<Request<K>> {
        let (packet, token) = match message::read(bytes) {
            Incoming::Request(packet, token) => (packet, token),
            // A reset with the ping's ID answers the ping. A reset with an unknown ID, which
            // belongs neither to the ping nor to an outstanding answer, is a guess at the ping's
            // ID. `remove` ends the ping in both cases.
            Incoming::Reset(id)
                if !self.confirmables.is_outstanding(peer, id) && self.pings.remove(&peer) == Some(id) =>
            {
                self.pong = Some(peer);
                return None;
            }
            Incoming::Acknowledgement(id) | Incoming::Reset(id) => {
                let next = self.confirmables.settle(now, peer, id, out);
                self.wake_for(peer, next);
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
        let working = Working { token, confirmable, ..Working::default() };
        let exchange = self.begin(now, peer, id, working, out)?;
        let options = match message::options(&packet) {
            Ok(options) => options,
            Err(refusal) if confirmable || refusal.code != Code::BadOption => {
                self.respond(now, exchange, &refusal, out);
                return None;
            }
            // RFC 7252 §5.4.1: a non-confirmable request with an unknown critical option is
            // rejected. The rejection may be silent.
            Err(_) => {
                self.end(now, exchange, Kept::Nothing);
                return None;
            }
        };
        let (method, transfer) = (message::method(&packet), message::transfer_key(&packet));
        if let Some(working) = self.working(exchange) {
            working.no_response = options.no_response;
            working.block1 = options.block1;
            working.block2 = options.block2;
            working.wants_size2 = options.wants_size2;
            working.transfer = transfer;
        }
        let payload = match self.whole_payload(now, exchange, transfer, &options, packet.payload) {
            Ok(payload) => payload,
            Err(response) => {
                self.respond(now, exchange, &response, out);
                return None;
            }
        };
        let digest = message::digest(&payload);
        if options.block2.is_some_and(|block| !block.is_first()) {
            let repeated = (!payload.is_empty()).then_some(digest);
            if let Some((number, response)) = self.transfers.kept(now, peer, transfer, repeated) {
                self.answer(now, exchange, &response, Some(number), out);
            } else {
                // RFC 7959 §2.9.2: the body has been discarded. If the application processed the
                // request again, it could return a different body, or issue a certificate twice.
                let refusal =
                    Response::problem(Code::RequestEntityIncomplete, "no longer kept: begin with block 0");
                self.respond(now, exchange, &refusal, out);
            }
            return None;
        }
        if let Some(working) = self.working(exchange) {
            working.digest = digest;
        }
        Some(Request {
            exchange,
            method,
            path: options.path,
            query: options.query,
            content_format: options.content_format,
            accept: options.accept,
            etags: options.etags,
            if_match: options.if_match,
            if_none_match: options.if_none_match,
            payload,
        })
    }

    /// Announces that the answer to a request will come later. The endpoint acknowledges the
    /// request after [`Config::separate_after`], so that the client does not repeat the request.
    pub fn defer(&mut self, now: Instant, exchange: ExchangeId<K>) {
        self.timers.push(Reverse((now + self.config.separate_after, Timer::Separate(exchange))));
    }

    /// Answers a request. The answer is piggybacked on the acknowledgement, or sent
    /// separately if the request was already acknowledged (RFC 7252 §5.2).
    pub fn respond(
        &mut self,
        now: Instant,
        exchange: ExchangeId<K>,
        response: &Response,
        out: &mut impl Outbox<K>,
    ) -> Delivery {
        self.answer(now, exchange, response, None, out)
    }

    /// Sends the answers that the transport did not accept before. Must be called as soon as
    /// the transport accepts messages for the peer again. Returns the number of answers that the
    /// transport accepts now.
    pub fn resume(&mut self, peer: K, out: &mut impl Outbox<K>) -> usize {
        let mut sent = usize::from(self.confirmables.resume(peer, out));
        for (answer, unsent) in self.peers.get_mut(peer).into_iter().flat_map(Peer::unsent) {
            *unsent = !out.push(peer, answer);
            sent += usize::from(!*unsent);
        }
        sent
    }

    /// Returns the counters.
    pub fn counters(&self) -> Counters {
        Counters {
            answers_given_up: self.confirmables.given_up(),
            transfers_evicted: self.transfers.evicted(),
            ..self.counters
        }
    }

    /// Sends a ping, an empty confirmable message (RFC 7252 §4.3), to check that a peer
    /// receives messages at its current address. The peer's reset must contain the message ID
    /// of the ping, which no one else knows. While a ping is unanswered, another call sends
    /// the same message again, unless [`end_ping`](Self::end_ping) was called. Returns whether
    /// the transport accepted the message.
    pub fn ping(&mut self, peer: K, out: &mut impl Outbox<K>) -> bool {
        let random = &mut self.random;
        let id = *self.pings.entry(peer).or_insert_with(|| random.random());
        out.push(peer, &message::empty(MessageType::Confirmable, id))
    }

    /// Stops waiting for the answer to a ping.
    pub fn end_ping(&mut self, peer: K) {
        self.pings.remove(&peer);
    }

    /// Returns the peer whose last message answered a ping. Reports each answer only once.
    pub fn take_pong(&mut self) -> Option<K> {
        self.pong.take()
    }

    /// Forgets a peer.
    pub fn forget(&mut self, peer: K) {
        self.pings.remove(&peer);
        self.peers.remove(peer);
        self.transfers.forget(peer);
        self.confirmables.forget(peer);
    }

    /// Returns the number of peers known.
    pub fn peers(&self) -> usize {
        self.peers.len()
    }

    /// Returns the number of block-wise transfers.
    pub fn transfers(&self) -> usize {
        self.transfers.len()
    }

    /// Returns whether no state of any peer is held, apart from timers that have not
    /// fired yet.
    #[cfg(any(test, feature = "testing"))]
    pub fn holds_no_state(&self) -> bool {
        self.peers.is_empty()
            && self.transfers.len() == 0
            && self.confirmables.is_empty()
            && self.pings.is_empty()
            && self.pong.is_none()
    }

    /// Returns the time at which [`handle_timeout`](Self::handle_timeout) must be called next.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let timer = self.timers.peek().map(|Reverse((at, _))| *at);
        [timer, self.transfers.poll_timeout()].into_iter().flatten().min()
    }

    /// Acknowledges slow requests, resends unacknowledged messages, and drops expired
    /// transfers.
    pub fn handle_timeout(&mut self, now: Instant, out: &mut impl Outbox<K>) {
        self.transfers.handle_timeout(now);
        while self.timers.peek().is_some_and(|Reverse((at, _))| *at <= now) {
            match self.timers.pop() {
                Some(Reverse((_, Timer::Separate(exchange)))) => self.acknowledge(exchange, out),
                Some(Reverse((_, Timer::Retransmit(peer, id)))) => {
                    let next = self.confirmables.retransmit(now, peer, id, out);
                    self.wake_for(peer, next);
                }
                None => return,
            }
        }
    }

    /// Returns the payload of a request if it is complete, or else the response to send.
    fn whole_payload(
        &mut self,
        now: Instant,
        exchange: ExchangeId<K>,
        transfer: TransferKey,
        options: &Options,
        payload: Vec<u8>,
    ) -> Result<Vec<u8>, Response> {
        let most = self.config.max_request_body;
        // RFC 7959 §2.9.3: the refusal states the limit, so that the client can stop
        // immediately.
        let too_large = || {
            let refusal = Response::problem(Code::RequestEntityTooLarge, "the payload is too long");
            Err(refusal.with_size1(most.try_into().unwrap_or(u32::MAX)))
        };
        if payload.len() > most || options.size1.is_some_and(|size| size as usize > most) {
            return too_large();
        }
        let Some(block) = options.block1 else { return Ok(payload) };
        match self.transfers.assemble(now, exchange.peer, transfer, block, &payload, most) {
            Assembled::Complete(body) => Ok(body),
            Assembled::Continue => Err(Response::empty(Code::Continue)),
            Assembled::Incomplete => {
                Err(Response::problem(Code::RequestEntityIncomplete, "a block before this one is missing"))
            }
            Assembled::TooLarge => too_large(),
            Assembled::BadSize => {
                Err(Response::problem(Code::BadRequest, "the payload is not as long as its block"))
            }
        }
    }

    /// Answers a request with a response, or with the requested block of the response.
    /// `kept` is the number of the transfer that already holds the response, if any.
    fn answer(
        &mut self,
        now: Instant,
        exchange: ExchangeId<K>,
        response: &Response,
        kept: Option<u64>,
        out: &mut impl Outbox<K>,
    ) -> Delivery {
        let Some(working) = self.working(exchange) else { return Delivery::Dropped };
        let working = std::mem::take(working);
        let ExchangeId { peer, .. } = exchange;
        let piggybacked = working.confirmable && !working.acknowledged;
        if message::is_unwanted(working.no_response, response.code) {
            // RFC 7967 §2: a confirmable request is acknowledged even if its client wants no
            // response.
            if piggybacked {
                out.push(peer, &message::empty(MessageType::Acknowledgement, exchange.id));
            }
            let kept = if working.confirmable { Kept::Acknowledgement } else { Kept::Nothing };
            self.end(now, exchange, kept);
            return Delivery::Dropped;
        }
        let (kind, id) = match (piggybacked, working.confirmable) {
            (true, _) => (MessageType::Acknowledgement, exchange.id),
            (false, true) => (MessageType::Confirmable, self.own_id(peer)),
            (false, false) => (MessageType::NonConfirmable, self.own_id(peer)),
        };
        let head = Head { kind, id, token: &working.token };
        let (kept, delivery) = match self.message(now, peer, &working, &head, Body { response, kept }, out) {
            None if piggybacked => {
                // With this token, even an error is too long for one message, so a reset is sent.
                let reset = Message::new(message::empty(MessageType::Reset, id).into());
                out.push(peer, &reset);
                (Kept::Answer(reset, true), Delivery::Dropped)
            }
            None => (Kept::Nothing, Delivery::Dropped),
            Some(message) if kind == MessageType::Confirmable => {
                let timeout = self.first_timeout();
                let (wake, sent) = self.confirmables.send(now, peer, (id, message), timeout, out);
                self.wake_for(peer, wake);
                // If the request is repeated, only the acknowledgement is sent again, because the
                // response has its own retransmissions.
                (Kept::Acknowledgement, Delivery::taken(sent))
            }
            Some(message) => {
                let sent = out.push(peer, &message);
                let is_done = sent && !piggybacked;
                (if is_done { Kept::Nothing } else { Kept::Answer(message, sent) }, Delivery::taken(sent))
            }
        };
        self.end(now, exchange, kept);
        delivery
    }

    /// Builds the message of a response. The message holds the whole response if it fits and no
    /// block was requested, otherwise one block of it (RFC 7959 §2.4). A request for a block past
    /// the end is answered with 4.00. If not even the smallest block fits, the answer is 5.00.
    /// Returns `None` if even an error is too long.
    fn message(
        &mut self,
        now: Instant,
        peer: K,
        working: &Working,
        head: &Head<'_>,
        Body { response, kept }: Body<'_>,
        out: &impl Outbox<K>,
    ) -> Option<Message> {
        let max = out.max_message(peer);
        let fits = |message: &Message| message.len() <= max;
        let body = response.payload.as_slice();
        let total = u32::try_from(body.len()).unwrap_or(u32::MAX);
        let mut blocks = Blocks {
            block1: working.block1,
            size2: working.wants_size2.then_some(total),
            ..Blocks::default()
        };
        // Only a kept response can be sent from a later block. Any other response, such as an
        // error, is sent from its start.
        let asked = working.block2.filter(|block| block.is_first() || kept.is_some());
        if asked.is_none() || body.is_empty() {
            let whole = message::response(head, response, blocks, body);
            if fits(&whole) {
                return Some(whole);
            }
        }
        let asked = asked.unwrap_or(Block::first());
        // The first block has the most options, so space is reserved for its options.
        let room = Blocks { block2: Some(asked), size2: Some(total), etag: Some([0xff; 4]), ..blocks };
        let overhead = message::response(head, response, room, &[]).len() + 1;
        let room = max.saturating_sub(overhead);
        let block = asked.at_most(room);
        if block.size() > room || body.is_empty() {
            let refusal = Response::problem(Code::InternalServerError, "the answer does not fit");
            let messages = [&refusal, &Response::empty(Code::InternalServerError)]
                .map(|refusal| message::response(head, refusal, Blocks::default(), &refusal.payload));
            return messages.into_iter().find(fits);
        }
        let Some(rest) = body.get(block.offset()..).filter(|rest| !rest.is_empty()) else {
            let refusal = Response::problem(Code::BadRequest, "no such block");
            return Some(message::response(head, &refusal, Blocks::default(), &refusal.payload)).filter(fits);
        };
        let slice = &rest[..rest.len().min(block.size())];
        let more = slice.len() < rest.len();
        blocks.block2 = Some(block.with_more(more));
        if more || !block.is_first() {
            let number = kept.unwrap_or_else(|| {
                let response = Arc::new(response.clone());
                self.transfers.keep(now, peer, working.transfer, working.digest, response)
            });
            blocks.etag = Some((number as u32).to_be_bytes());
            if block.is_first() {
                blocks.size2 = Some(total);
            }
        }
        Some(message::response(head, response, blocks, slice))
    }

    /// Returns whether a request repeats an earlier one. Handles a repeated request, because the
    /// application must not process it again (RFC 7252 §4.5).
    fn repeat(
        &mut self,
        now: Instant,
        peer: K,
        id: u16,
        confirmable: bool,
        out: &mut impl Outbox<K>,
    ) -> bool {
        let clock = self.clock(now);
        let Some(known) = self.peers.get_mut(peer).and_then(|peer| peer.known(clock, id)) else {
            return false;
        };
        match known {
            Known::Working { acknowledged: true } => {
                out.push(peer, &message::empty(MessageType::Acknowledgement, id));
            }
            Known::Answered(answer, _) if confirmable && answer.is_empty() => {
                out.push(peer, &message::empty(MessageType::Acknowledgement, id));
            }
            Known::Answered(answer, unsent) if confirmable || *unsent => *unsent = !out.push(peer, answer),
            // The answer is no longer kept. The reset (RFC 7252 §4.2) tells the client not to wait
            // for the answer.
            Known::Dropped if confirmable => {
                out.push(peer, &message::empty(MessageType::Reset, id));
            }
            Known::Working { .. } | Known::Answered(..) | Known::Dropped => {}
        }
        true
    }

    /// Adds a new request. Returns `None` when the peer has too many requests. If too many of them
    /// are in progress, the new request is dropped, and the client will repeat it. If too many of
    /// them were answered recently, the client is asked to retry later.
    fn begin(
        &mut self,
        now: Instant,
        peer: K,
        id: u16,
        working: Working,
        out: &mut impl Outbox<K>,
    ) -> Option<ExchangeId<K>> {
        let (clock, most) = (self.clock(now), self.config.max_exchanges);
        let known = self.peers.get_or_insert(peer);
        if let Err(full) = known.make_room(clock, most) {
            self.counters.requests_dropped += 1;
            if full == Full::Answered && working.confirmable {
                let head = Head { kind: MessageType::Acknowledgement, id, token: &working.token };
                let refusal = Response::empty(Code::ServiceUnavailable).with_max_age(PAUSE);
                out.push(peer, &message::response(&head, &refusal, Blocks::default(), &[]));
            }
            return None;
        }
        self.next_serial = self.next_serial.wrapping_add(1);
        let serial = self.next_serial;
        known.begin(clock, id, serial, working);
        Some(ExchangeId { peer, id, serial })
    }

    fn end(&mut self, now: Instant, exchange: ExchangeId<K>, kept: Kept) {
        let clock = self.clock(now);
        if let Some(peer) = self.peers.get_mut(exchange.peer) {
            peer.end(clock, exchange.serial, kept);
        }
    }

    fn working(&mut self, exchange: ExchangeId<K>) -> Option<&mut Working> {
        self.peers.get_mut(exchange.peer)?.working(exchange.serial)
    }

    fn own_id(&mut self, peer: K) -> u16 {
        let random = &mut self.random;
        self.peers.get_or_insert(peer).own_id(|| random.random())
    }

    fn clock(&self, now: Instant) -> Clock {
        let seconds = now.saturating_duration_since(self.made).as_secs();
        Clock { seconds: to_u32(seconds), lifetime: to_u32(self.config.exchange_lifetime.as_secs()) }
    }

    fn acknowledge(&mut self, exchange: ExchangeId<K>, out: &mut impl Outbox<K>) {
        let Some(working) = self.working(exchange) else { return };
        if working.confirmable && !working.acknowledged {
            working.acknowledged = true;
            out.push(exchange.peer, &message::empty(MessageType::Acknowledgement, exchange.id));
        }
    }

    /// Returns a random first timeout between ACK_TIMEOUT and ACK_TIMEOUT *
    /// ACK_RANDOM_FACTOR (RFC 7252 §4.2).
    fn first_timeout(&mut self) -> Duration {
        self.config.ack_timeout.mul_f64(self.random.random_range(1.0..1.5))
    }

    fn wake_for(&mut self, peer: K, next: Option<Wake>) {
        if let Some((id, at)) = next {
            self.timers.push(Reverse((at, Timer::Retransmit(peer, id))));
        }
    }
}

fn to_u32(seconds: u64) -> u32 {
    seconds.try_into().unwrap_or(u32::MAX)
}
