//! What an endpoint remembers between messages (RFC 7252 §4): requests in work
//! and answers already given. Bodies that take several messages are `block`'s,
//! confirmable messages of our own `outstanding`'s.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap},
    hash::Hash,
    sync::Arc,
    time::{Duration, Instant},
};

use coap_lite::MessageType;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use zeroize::Zeroizing;

use super::{
    Code, Config, Outbox, Request, Response,
    block::{Assembled, Block, TransferKey, Transfers},
    message::{self, Blocks, Head, Incoming, Options},
    outstanding::Confirmables,
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

#[derive(Default)]
struct Working {
    token: Box<[u8]>,
    confirmable: bool,
    no_response: u8,
    /// The empty acknowledgement was sent: the answer will come separately.
    acknowledged: bool,
    /// The block of the request body that this request brought.
    block1: Option<Block>,
    /// The block of the response body that it asks for.
    block2: Option<Block>,
    wants_size2: bool,
    transfer: TransferKey,
    /// Of the request's whole payload.
    digest: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Timer<K> {
    Separate(ExchangeId<K>),
    Retransmit(K, u16),
}

/// What is to be answered with.
struct Body<'r> {
    response: &'r Response,
    /// The number of the transfer that it is kept under.
    kept: Option<u64>,
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
    transfers: Transfers<K>,
    confirmables: Confirmables<K>,
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
            made: now,
            peers: HashMap::new(),
            transfers: Transfers::new(config.max_transfers, config.exchange_lifetime),
            confirmables: Confirmables::new(config.max_retransmit),
            timers: BinaryHeap::new(),
            next_id: random.random(),
            next_serial: 0,
            random,
            config,
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
        let (packet, token) = match message::read(bytes) {
            Incoming::Request(packet, token) => (packet, token),
            Incoming::Acknowledgement(id) | Incoming::Reset(id) => {
                let timeout = self.first_timeout();
                let next = self.confirmables.settle(peer, id, timeout, out);
                self.wake_for(now, peer, next);
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
        let exchange = self.begin(now, peer, id, Working { token, confirmable, ..Working::default() })?;
        let options = match message::options(&packet) {
            Ok(options) => options,
            // RFC 7252 §5.4.1: refused with 4.02 when confirmable; a
            // non-confirmable one is rejected, which may be in silence.
            Err(refusal) => {
                if confirmable {
                    self.respond(now, exchange, &refusal, out);
                }
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
                return None;
            }
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
        self.answer(now, exchange, response, None, out);
    }

    /// Forgets a peer that is gone.
    pub fn forget(&mut self, peer: K) {
        self.peers.remove(&peer);
        self.transfers.forget(peer);
        self.confirmables.forget(peer);
    }

    /// Peers remembered.
    pub fn peers(&self) -> usize {
        self.peers.len()
    }

    /// Block-wise transfers remembered.
    pub fn transfers(&self) -> usize {
        self.transfers.len()
    }

    /// When [`handle_timeout`](Self::handle_timeout) wants to be called next.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let timer = self.timers.peek().map(|Reverse((at, _))| *at);
        [timer, self.transfers.poll_timeout()].into_iter().flatten().min()
    }

    /// Acknowledges requests that take long, sends unacknowledged messages again,
    /// and forgets transfers that were left.
    pub fn handle_timeout(&mut self, now: Instant, out: &mut impl Outbox<K>) {
        self.transfers.handle_timeout(now);
        while self.timers.peek().is_some_and(|Reverse((at, _))| *at <= now) {
            match self.timers.pop() {
                Some(Reverse((_, Timer::Separate(exchange)))) => self.acknowledge(exchange, out),
                Some(Reverse((_, Timer::Retransmit(peer, id)))) => {
                    let timeout = self.first_timeout();
                    let next = self.confirmables.retransmit(peer, id, timeout, out);
                    self.wake_for(now, peer, next);
                }
                None => return,
            }
        }
    }

    /// The payload of a request, when it is complete; otherwise what to answer.
    fn whole_payload(
        &mut self,
        now: Instant,
        exchange: ExchangeId<K>,
        transfer: TransferKey,
        options: &Options,
        payload: Vec<u8>,
    ) -> Result<Vec<u8>, Response> {
        let most = self.config.max_request_body;
        // RFC 7959 §2.9.3: the limit is told, so that the client can stop at once.
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

    /// Answers a request with a response, or with the block of it that was asked
    /// for. `kept` is the number of the transfer that the response is from.
    fn answer(
        &mut self,
        now: Instant,
        exchange: ExchangeId<K>,
        response: &Response,
        kept: Option<u64>,
        out: &mut impl Outbox<K>,
    ) {
        let Some(working) = self.working(exchange) else { return };
        let working = std::mem::take(working);
        let Working { confirmable, acknowledged, .. } = working;
        let body = Body { response, kept };
        let piggybacked = confirmable && !acknowledged;
        let unwanted = message::is_unwanted(working.no_response, response.code);
        let answer = if unwanted && confirmable {
            // RFC 7967 §2: a confirmable request is still acknowledged.
            Zeroizing::new(message::empty(MessageType::Acknowledgement, exchange.id).into())
        } else if unwanted {
            Zeroizing::default()
        } else if piggybacked {
            let head = Head { kind: MessageType::Acknowledgement, id: exchange.id, token: &working.token };
            self.message(now, exchange.peer, &working, &head, body, out)
        } else {
            let id = self.next_id;
            self.next_id = id.wrapping_add(1);
            let kind = if confirmable { MessageType::Confirmable } else { MessageType::NonConfirmable };
            let head = Head { kind, id, token: &working.token };
            let message = self.message(now, exchange.peer, &working, &head, body, out);
            if confirmable {
                let timeout = self.first_timeout();
                let wake = self.confirmables.send(exchange.peer, id, message, timeout, out);
                self.wake_for(now, exchange.peer, wake.map(|after| (id, after)));
                // A repeated request is acknowledged again; the response has
                // retransmissions of its own.
                Zeroizing::new(message::empty(MessageType::Acknowledgement, exchange.id).into())
            } else {
                out.push(exchange.peer, &message);
                Zeroizing::default()
            }
        };
        if piggybacked {
            out.push(exchange.peer, &answer);
        }
        if let Some(found) = self.exchange(exchange) {
            found.state = State::Answered(answer);
        }
    }

    /// The message of a response: whole when it fits and no block was asked for,
    /// otherwise one block of it (RFC 7959 §2.4).
    fn message(
        &mut self,
        now: Instant,
        peer: K,
        working: &Working,
        head: &Head<'_>,
        Body { response, kept }: Body<'_>,
        out: &impl Outbox<K>,
    ) -> Zeroizing<Box<[u8]>> {
        let max = out.max_message(peer);
        let body = response.payload.as_slice();
        let total = u32::try_from(body.len()).unwrap_or(u32::MAX);
        let mut blocks = Blocks {
            block1: working.block1,
            size2: working.wants_size2.then_some(total),
            ..Blocks::default()
        };
        if working.block2.is_none() || body.is_empty() {
            let whole = message::response(head, response, blocks, body);
            if whole.len() <= max || body.is_empty() {
                return whole;
            }
        }
        let asked = working.block2.unwrap_or(Block::first());
        // Options of a block take the most room in the first one.
        let room = Blocks { block2: Some(asked), size2: Some(total), etag: Some([0xff; 4]), ..blocks };
        let overhead = message::response(head, response, room, &[]).len() + 1;
        let block = asked.at_most(max.saturating_sub(overhead));
        let Some(rest) = body.get(block.offset()..).filter(|rest| !rest.is_empty()) else {
            let refusal = Response::problem(Code::BadRequest, "no such block");
            return message::response(head, &refusal, Blocks::default(), &refusal.payload);
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
        message::response(head, response, blocks, slice)
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

    /// RFC 7252 §4.2: between ACK_TIMEOUT and ACK_TIMEOUT * ACK_RANDOM_FACTOR.
    fn first_timeout(&mut self) -> Duration {
        self.config.ack_timeout.mul_f64(self.random.random_range(1.0..1.5))
    }

    fn wake_for(&mut self, now: Instant, peer: K, next: Option<(u16, Duration)>) {
        if let Some((id, after)) = next {
            self.timers.push(Reverse((now + after, Timer::Retransmit(peer, id))));
        }
    }
}

fn seconds_since(made: Instant, now: Instant) -> u32 {
    now.saturating_duration_since(made).as_secs().try_into().unwrap_or(u32::MAX)
}
