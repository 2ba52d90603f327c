//! What a worker does with what it receives, without I/O: DTLS, CoAP, the service,
//! and back. Datagrams, the time and results of work come in; datagrams go out,
//! and work that is not done at its first step.

use std::{
    cell::Cell,
    future::Future,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use super::Rooms;
use crate::{
    cert::Answer,
    coap::{self, Code, ExchangeId, Response},
    dtls::{self, Datagram, Event, Failure, HandshakeId, Psk, SessionId},
    limits::Origin,
    psk::{Key, Principal},
};

/// Most requests of one worker that are worked on at once; beyond, devices are
/// told to come back.
const MAX_TASKS: u64 = 50_000;
/// When a device should come back that met a worker with that many, in seconds.
const TASKS_PAUSE: u32 = 10;
/// Failed handshakes that are logged in a second, one line each.
const MAX_FAILURE_LINES: u32 = 20;

/// Where a stack's datagrams and its work go.
pub trait Io: dtls::Outbox {
    /// Goes on with work; its result is to come back by [`Stack::done`].
    fn spawn(&mut self, work: impl Future<Output = Done> + Send + 'static);
}

/// A result of work that took more than one step.
pub struct Done(Outcome);

enum Outcome {
    Key(HandshakeId, Option<(Key, Principal)>),
    Response(ExchangeId<SessionId>, Response),
    Nothing,
}

/// What a worker has done so far: read by others at any time.
#[derive(Debug, Default)]
pub struct Figures {
    /// HelloVerifyRequests sent.
    pub hello_verify_requests: AtomicU64,
    /// Handshakes that became sessions.
    pub handshakes_completed: AtomicU64,
    /// Handshakes that came to nothing.
    pub handshakes_failed: AtomicU64,
    /// Protected records that no key opened, and replays.
    pub bad_records: AtomicU64,
    /// DTLS flights sent again.
    pub retransmissions: AtomicU64,
    /// Sessions held now.
    pub sessions: AtomicU64,
    /// Handshakes in progress now.
    pub handshakes: AtomicU64,
    /// Requests answered, by class of the response code: 2.xx, 4.xx, 5.xx.
    pub responses: [AtomicU64; 3],
    /// Datagrams that the system did not take.
    pub datagrams_dropped: AtomicU64,
}

/// Who is at the other end of a session.
pub struct Client {
    principal: Principal,
    /// Where it was when it proved its key, which is where it had returned a
    /// cookie. A session with a connection ID may move (RFC 9146 §6), and a client
    /// could claim to be at somebody else's address to use up the tokens there.
    origin: Cell<Option<Origin>>,
}

impl Client {
    fn new(principal: Principal) -> Self {
        Self { principal, origin: Cell::new(None) }
    }

    /// The origin, taken from the address of the session's beginning.
    fn origin(&self, address: SocketAddr) -> Origin {
        let origin = self.origin.get().unwrap_or_else(|| Origin::of(address.ip()));
        self.origin.set(Some(origin));
        origin
    }
}

/// DTLS, CoAP and what is in work, of one worker.
pub struct Stack {
    dtls: dtls::Endpoint<Client>,
    coap: coap::Endpoint<SessionId>,
    rooms: Rooms,
    tasks: u64,
    figures: Arc<Figures>,
    failure_lines: FailureLines,
}

impl Stack {
    /// A stack of two endpoints that have nothing to do yet.
    pub fn new(dtls: dtls::Endpoint<Client>, coap: coap::Endpoint<SessionId>, rooms: Rooms) -> Self {
        let (figures, failure_lines) = (Arc::default(), FailureLines::default());
        Self { dtls, coap, rooms, tasks: 0, figures, failure_lines }
    }

    /// What it has done so far.
    pub fn figures(&self) -> Arc<Figures> {
        self.figures.clone()
    }

    /// Takes over other enrollments for handshakes, and other limits for requests,
    /// from now on; sessions stay.
    pub fn reload(&mut self, rooms: Rooms) {
        self.rooms = rooms;
    }

    /// Takes a datagram.
    pub fn receive(&mut self, now: Instant, from: SocketAddr, bytes: &mut [u8], io: &mut impl Io) {
        let mut datagram = Datagram::new(from, bytes);
        while let Some(received) = self.dtls.receive(now, &mut datagram, io) {
            self.message(now, from, received.session, received.data, io);
        }
        self.events(now, io);
    }

    /// Takes a result of work that it had left to [`Io::spawn`].
    pub fn done(&mut self, now: Instant, done: Done, io: &mut impl Io) {
        self.tasks -= 1;
        match done.0 {
            Outcome::Key(handshake, found) => self.key_found(now, handshake, found, io),
            Outcome::Response(exchange, response) => self.respond(now, exchange, &response, io),
            Outcome::Nothing => {}
        }
    }

    /// When [`handle_timeout`](Self::handle_timeout) wants to be called next.
    pub fn poll_timeout(&self) -> Option<Instant> {
        [self.dtls.poll_timeout(), self.coap.poll_timeout()].into_iter().flatten().min()
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Instant, io: &mut impl Io) {
        self.dtls.handle_timeout(now, io);
        self.events(now, io);
        self.coap.handle_timeout(now, &mut Sealing { dtls: &mut self.dtls, out: io });
    }

    fn message(
        &mut self,
        now: Instant,
        from: SocketAddr,
        session: SessionId,
        bytes: &[u8],
        io: &mut impl Io,
    ) {
        let mut sealing = Sealing { dtls: &mut self.dtls, out: io };
        let Some(request) = self.coap.receive(now, session, bytes, &mut sealing) else { return };
        let Some(client) = self.dtls.principal(session) else { return };
        let exchange = request.exchange;
        match self.rooms.service.answer(now, client.origin(from), &client.principal, &request) {
            Answer::Now(response) => self.respond(now, exchange, &response, io),
            Answer::Later(mut work) => match first_step(work.as_mut()) {
                Poll::Ready(response) => self.respond(now, exchange, &response, io),
                Poll::Pending if self.tasks >= MAX_TASKS => {
                    let busy = Response::problem(Code::ServiceUnavailable, "too many requests at once");
                    self.respond(now, exchange, &busy.with_max_age(TASKS_PAUSE), io);
                }
                Poll::Pending => {
                    self.coap.defer(now, exchange);
                    self.spawn(async move { Done(Outcome::Response(exchange, work.await)) }, io);
                }
            },
        }
    }

    fn respond(
        &mut self,
        now: Instant,
        exchange: ExchangeId<SessionId>,
        response: &Response,
        io: &mut impl Io,
    ) {
        let class = u8::from(coap_lite::MessageClass::Response(response.code)) >> 5;
        let by_class = match class {
            2 => 0,
            4 => 1,
            _ => 2,
        };
        self.figures.responses[by_class].fetch_add(1, Ordering::Relaxed);
        let mut sealing = Sealing { dtls: &mut self.dtls, out: io };
        self.coap.respond(now, exchange, response, &mut sealing);
    }

    fn events(&mut self, now: Instant, io: &mut impl Io) {
        while let Some(event) = self.dtls.poll_event() {
            match event {
                Event::PskNeeded { handshake, identity } => self.find_key(now, handshake, identity, io),
                Event::Established { session, peer } => {
                    if let Some(client) = self.dtls.principal(session) {
                        client.origin(peer);
                    }
                    tracing::debug!(%peer, "session established");
                }
                Event::Closed { session, reason } => {
                    tracing::debug!(?session, ?reason, "session closed");
                    self.coap.forget(session);
                }
                Event::HandshakeFailed { peer, identity, reason } => {
                    self.failure_lines.log(now, peer, identity.as_deref(), reason);
                }
            }
        }
    }

    fn find_key(&mut self, now: Instant, handshake: HandshakeId, identity: Box<[u8]>, io: &mut impl Io) {
        let Rooms { enrollments, store, .. } = self.rooms.clone();
        let mut work = Box::pin(async move { enrollments.find(&identity, store.as_ref()).await });
        match first_step(work.as_mut()) {
            Poll::Ready(Ok(found)) => self.key_found(now, handshake, found, io),
            // Without an answer of the store the handshake is left to its
            // time-out: an alert would tell the device that its key is wrong.
            Poll::Ready(Err(error)) => tracing::error!(%error, "a key could not be looked up"),
            Poll::Pending => {
                let work = async move {
                    match work.await {
                        Ok(found) => Done(Outcome::Key(handshake, found)),
                        Err(error) => {
                            tracing::error!(%error, "a key could not be looked up");
                            Done(Outcome::Nothing)
                        }
                    }
                };
                self.spawn(work, io);
            }
        }
    }

    fn key_found(
        &mut self,
        now: Instant,
        handshake: HandshakeId,
        found: Option<(Key, Principal)>,
        io: &mut impl Io,
    ) {
        let key = found
            .and_then(|(key, principal)| Some((Psk::new(key.as_bytes().to_vec())?, Client::new(principal))));
        self.dtls.provide_psk(now, handshake, key, io);
        self.events(now, io);
    }

    /// Goes on with work that was not done at its first step.
    fn spawn(&mut self, work: impl Future<Output = Done> + Send + 'static, io: &mut impl Io) {
        self.tasks += 1;
        io.spawn(work);
    }

    /// Writes down what others may read.
    pub fn publish(&self, datagrams_dropped: u64) {
        let (figures, counters) = (&self.figures, self.dtls.counters());
        for (figure, value) in [
            (&figures.hello_verify_requests, counters.hello_verify_requests),
            (&figures.handshakes_completed, counters.handshakes_completed),
            (&figures.handshakes_failed, counters.handshakes_failed),
            (&figures.bad_records, counters.bad_records),
            (&figures.retransmissions, counters.retransmissions),
            (&figures.sessions, self.dtls.sessions() as u64),
            (&figures.handshakes, self.dtls.handshakes() as u64),
            (&figures.datagrams_dropped, datagrams_dropped),
        ] {
            figure.store(value, Ordering::Relaxed);
        }
    }
}

/// Polls work once, on the worker itself: what a store has at hand is done then,
/// without a task.
fn first_step<T>(work: Pin<&mut (impl Future<Output = T> + ?Sized)>) -> Poll<T> {
    work.poll(&mut Context::from_waker(Waker::noop()))
}

/// Where the CoAP endpoint's messages go: into their DTLS session.
struct Sealing<'s, O> {
    dtls: &'s mut dtls::Endpoint<Client>,
    out: &'s mut O,
}

impl<O: dtls::Outbox> coap::Outbox<SessionId> for Sealing<'_, O> {
    fn push(&mut self, session: SessionId, message: &[u8]) {
        // A session that is gone takes no message; its exchanges go with it.
        self.dtls.send(session, message, self.out);
    }

    fn max_message(&self, session: SessionId) -> usize {
        self.dtls.max_data(session).unwrap_or(0)
    }
}

/// Log lines of failed handshakes, bounded: an attacker can make more of them
/// than anybody can read.
#[derive(Default)]
struct FailureLines {
    second: Option<Instant>,
    written: u32,
    suppressed: u64,
}

impl FailureLines {
    fn log(&mut self, now: Instant, peer: SocketAddr, identity: Option<&[u8]>, reason: Failure) {
        if self.second.is_none_or(|second| now >= second + Duration::from_secs(1)) {
            if self.suppressed > 0 {
                tracing::warn!(lines = self.suppressed, "failed handshakes were not logged one by one");
            }
            *self = Self { second: Some(now), ..Self::default() };
        }
        if self.written == MAX_FAILURE_LINES {
            self.suppressed += 1;
            return;
        }
        self.written += 1;
        let identity = identity.map(|identity| identity.escape_ascii().to_string());
        tracing::info!(%peer, identity, %reason, "handshake failed");
    }
}
