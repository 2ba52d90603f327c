//! One worker: a thread that takes datagrams from its socket through DTLS and
//! CoAP to the service, and the answers back. Work that is not done at its first
//! step goes on as a task of the runtime; its result arrives in the inbox.

use std::{
    future::Future,
    io,
    net::{SocketAddr, UdpSocket},
    os::fd::AsRawFd,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc::{Receiver, Sender, SyncSender, channel, sync_channel},
    },
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use mio::{Events, Interest, Token, unix::SourceFd};
use tokio::runtime::Handle;

use super::{
    Rooms,
    batch::{BATCH, Incoming, Outgoing},
};
use crate::{
    cert::Answer,
    coap::{self, Code, ExchangeId, Response},
    dtls::{self, Datagram, Event, Failure, HandshakeId, Psk, SessionId},
    psk::{Enrollments, Key, Principal},
};

const SOCKET: Token = Token(0);
const INBOX: Token = Token(1);

/// Most requests of one worker that are worked on at once; beyond, devices are
/// told to come back.
const MAX_TASKS: u64 = 50_000;
/// Datagrams that may wait for a worker after another has received them.
const MAX_FORWARDED: usize = 1024;
/// When a device should come back that met a worker with that many, in seconds.
const TASKS_PAUSE: u32 = 10;
/// Batches after which the timers get their turn, however much more has arrived.
const MAX_BATCHES: usize = 16;
/// Failed handshakes that are logged in a second, one line each.
const MAX_FAILURE_LINES: u32 = 20;

/// How long a worker that is under load lets datagrams gather. To wake up costs
/// several times what a datagram does: at 64 devices at once, waking up for each
/// two of them was half of the server's time. A device that comes alone is
/// answered at once.
const GATHER: Duration = Duration::from_micros(200);

/// What a look at the socket says about the time until the next one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Load {
    /// At most one datagram was there.
    Quiet,
    /// Several were there: more will follow soon.
    Busy,
    /// There may be more right now.
    Full,
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

/// What arrives in a worker's inbox.
pub(super) enum Done {
    /// From [`super::Server::reload`].
    Enrollments(Arc<Enrollments>),
    Key(HandshakeId, Option<(Key, Principal)>),
    Response(ExchangeId<SessionId>, Response),
    Nothing,
}

/// A datagram that another worker's socket received.
type Forwarded = (SocketAddr, Box<[u8]>);

/// How a worker is reached by tasks, by its neighbours and by the server. What is
/// put into it when the worker has ended is lost, as it should be.
#[derive(Clone)]
pub(super) struct Mailbox {
    inbox: Sender<Done>,
    datagrams: SyncSender<Forwarded>,
    waker: Arc<mio::Waker>,
}

impl Mailbox {
    pub(super) fn put(&self, done: Done) {
        let _ = self.inbox.send(done);
        self.wake();
    }

    /// Drops the datagram when many are waiting: a stranger can make any number.
    fn forward(&self, from: SocketAddr, datagram: &[u8]) {
        if self.datagrams.try_send((from, datagram.into())).is_ok() {
            self.wake();
        }
    }

    pub(super) fn wake(&self) {
        let _ = self.waker.wake();
    }
}

pub(super) struct Worker {
    number: usize,
    socket: UdpSocket,
    poll: mio::Poll,
    outgoing: Outgoing,
    dtls: dtls::Endpoint<Principal>,
    coap: coap::Endpoint<SessionId>,
    rooms: Rooms,
    runtime: Handle,
    inbox: Receiver<Done>,
    datagrams: Receiver<Forwarded>,
    mailbox: Mailbox,
    tasks: u64,
    stop: Arc<AtomicBool>,
    figures: Arc<Figures>,
    failure_lines: FailureLines,
}

impl Worker {
    pub(super) fn new(
        number: usize,
        socket: UdpSocket,
        dtls: dtls::Endpoint<Principal>,
        coap: coap::Endpoint<SessionId>,
        rooms: Rooms,
        runtime: Handle,
        stop: Arc<AtomicBool>,
    ) -> io::Result<Self> {
        let poll = mio::Poll::new()?;
        poll.registry().register(&mut SourceFd(&socket.as_raw_fd()), SOCKET, Interest::READABLE)?;
        let waker = Arc::new(mio::Waker::new(poll.registry(), INBOX)?);
        let outgoing = Outgoing::new(socket.try_clone()?);
        let (inbox_sender, inbox) = channel();
        let (datagrams_sender, datagrams) = sync_channel(MAX_FORWARDED);
        Ok(Self {
            number,
            socket,
            poll,
            outgoing,
            dtls,
            coap,
            rooms,
            runtime,
            inbox,
            datagrams,
            mailbox: Mailbox { inbox: inbox_sender, datagrams: datagrams_sender, waker },
            tasks: 0,
            stop,
            figures: Arc::default(),
            failure_lines: FailureLines::default(),
        })
    }

    pub(super) fn mailbox(&self) -> Mailbox {
        self.mailbox.clone()
    }

    pub(super) fn figures(&self) -> Arc<Figures> {
        self.figures.clone()
    }

    pub(super) fn run(mut self, neighbours: &[Mailbox]) {
        // What is polled here may set timers of the runtime.
        let runtime = self.runtime.clone();
        let _entered = runtime.enter();
        let mut events = Events::with_capacity(8);
        let mut incoming = Incoming::new();
        let mut load = Load::Quiet;
        while !self.stop.load(Ordering::Relaxed) {
            match load {
                Load::Quiet => {
                    let pause = self.pause();
                    if let Err(error) = self.poll.poll(&mut events, pause)
                        && error.kind() != io::ErrorKind::Interrupted
                    {
                        tracing::error!(%error, "a worker cannot wait for datagrams");
                        return;
                    }
                }
                Load::Busy => std::thread::sleep(GATHER),
                Load::Full => {}
            }
            let now = Instant::now();
            while let Ok(done) = self.inbox.try_recv() {
                self.done(now, done);
            }
            while let Ok((from, mut bytes)) = self.datagrams.try_recv() {
                self.datagram(now, from, &mut bytes);
            }
            load = self.receive(now, &mut incoming, neighbours);
            self.handle_timeout(now);
            self.outgoing.flush();
            self.publish();
        }
    }

    /// How long there is nothing to do but wait for others.
    fn pause(&mut self) -> Option<Duration> {
        let next = [self.dtls.poll_timeout(), self.coap.poll_timeout()].into_iter().flatten().min();
        next.map(|at| at.saturating_duration_since(Instant::now()))
    }

    /// Takes what has arrived. A batch that is not full has emptied the socket:
    /// the poll wakes us for what comes after it.
    fn receive(&mut self, now: Instant, incoming: &mut Incoming, neighbours: &[Mailbox]) -> Load {
        for batch in 0..MAX_BATCHES {
            let count = match incoming.receive(&self.socket) {
                Ok(count) => count,
                Err(error) => {
                    // An error of the network, told by the socket once.
                    tracing::debug!(%error, "receiving");
                    continue;
                }
            };
            for index in 0..count {
                let Some((from, bytes)) = incoming.datagram(index) else { continue };
                match self.neighbour_of(bytes, neighbours) {
                    Some(neighbour) => neighbour.forward(from, bytes),
                    None => self.datagram(now, from, bytes),
                }
            }
            self.outgoing.flush();
            if count < BATCH {
                return if batch > 0 || count > 1 { Load::Busy } else { Load::Quiet };
            }
        }
        Load::Full
    }

    /// The worker whose session a datagram is for, if that is another: a device
    /// whose address has changed comes in wherever the kernel sends that address.
    fn neighbour_of<'n>(&self, bytes: &[u8], neighbours: &'n [Mailbox]) -> Option<&'n Mailbox> {
        let number = usize::from(dtls::connection_id_prefix(bytes)?);
        if number == self.number { None } else { neighbours.get(number) }
    }

    fn datagram(&mut self, now: Instant, from: SocketAddr, bytes: &mut [u8]) {
        let mut datagram = Datagram::new(from, bytes);
        while let Some(received) = self.dtls.receive(now, &mut datagram, &mut self.outgoing) {
            self.message(now, received.session, received.data);
        }
        self.events(now);
    }

    fn message(&mut self, now: Instant, session: SessionId, bytes: &[u8]) {
        let mut sealing = Sealing { dtls: &mut self.dtls, outgoing: &mut self.outgoing };
        let Some(request) = self.coap.receive(now, session, bytes, &mut sealing) else { return };
        let Some(principal) = self.dtls.principal(session) else { return };
        let exchange = request.exchange;
        match self.rooms.service.answer(principal, &request) {
            Answer::Now(response) => self.respond(now, exchange, &response),
            Answer::Later(mut work) => match first_step(work.as_mut()) {
                Poll::Ready(response) => self.respond(now, exchange, &response),
                Poll::Pending if self.tasks >= MAX_TASKS => {
                    let busy = Response::problem(Code::ServiceUnavailable, "too many requests at once");
                    self.respond(now, exchange, &busy.with_max_age(TASKS_PAUSE));
                }
                Poll::Pending => {
                    self.coap.defer(now, exchange);
                    self.spawn(async move { Done::Response(exchange, work.await) });
                }
            },
        }
    }

    fn respond(&mut self, now: Instant, exchange: ExchangeId<SessionId>, response: &Response) {
        let class = u8::from(coap_lite::MessageClass::Response(response.code)) >> 5;
        let by_class = match class {
            2 => 0,
            4 => 1,
            _ => 2,
        };
        self.figures.responses[by_class].fetch_add(1, Ordering::Relaxed);
        let mut sealing = Sealing { dtls: &mut self.dtls, outgoing: &mut self.outgoing };
        self.coap.respond(now, exchange, response, &mut sealing);
    }

    fn events(&mut self, now: Instant) {
        while let Some(event) = self.dtls.poll_event() {
            match event {
                Event::PskNeeded { handshake, identity } => self.find_key(now, handshake, identity),
                Event::Established { peer, .. } => tracing::debug!(%peer, "session established"),
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

    fn find_key(&mut self, now: Instant, handshake: HandshakeId, identity: Box<[u8]>) {
        let Rooms { enrollments, store, .. } = self.rooms.clone();
        let mut work = Box::pin(async move { enrollments.find(&identity, store.as_ref()).await });
        match first_step(work.as_mut()) {
            Poll::Ready(Ok(found)) => self.key_found(now, handshake, found),
            // Without an answer of the store the handshake is left to its
            // time-out: an alert would tell the device that its key is wrong.
            Poll::Ready(Err(error)) => tracing::error!(%error, "a key could not be looked up"),
            Poll::Pending => self.spawn(async move {
                match work.await {
                    Ok(found) => Done::Key(handshake, found),
                    Err(error) => {
                        tracing::error!(%error, "a key could not be looked up");
                        Done::Nothing
                    }
                }
            }),
        }
    }

    fn key_found(&mut self, now: Instant, handshake: HandshakeId, found: Option<(Key, Principal)>) {
        let key = found.and_then(|(key, principal)| Some((Psk::new(key.as_bytes().to_vec())?, principal)));
        self.dtls.provide_psk(now, handshake, key, &mut self.outgoing);
        self.events(now);
    }

    /// Goes on with work that was not done at its first step.
    fn spawn(&mut self, work: impl Future<Output = Done> + Send + 'static) {
        self.tasks += 1;
        let mailbox = self.mailbox.clone();
        self.runtime.spawn(async move { mailbox.put(work.await) });
    }

    fn done(&mut self, now: Instant, done: Done) {
        if !matches!(done, Done::Enrollments(_)) {
            self.tasks -= 1;
        }
        match done {
            Done::Enrollments(enrollments) => self.rooms.enrollments = enrollments,
            Done::Key(handshake, found) => self.key_found(now, handshake, found),
            Done::Response(exchange, response) => self.respond(now, exchange, &response),
            Done::Nothing => {}
        }
    }

    fn handle_timeout(&mut self, now: Instant) {
        self.dtls.handle_timeout(now, &mut self.outgoing);
        self.events(now);
        let mut sealing = Sealing { dtls: &mut self.dtls, outgoing: &mut self.outgoing };
        self.coap.handle_timeout(now, &mut sealing);
    }

    fn publish(&self) {
        let (figures, counters) = (&self.figures, self.dtls.counters());
        for (figure, value) in [
            (&figures.hello_verify_requests, counters.hello_verify_requests),
            (&figures.handshakes_completed, counters.handshakes_completed),
            (&figures.handshakes_failed, counters.handshakes_failed),
            (&figures.bad_records, counters.bad_records),
            (&figures.retransmissions, counters.retransmissions),
            (&figures.sessions, self.dtls.sessions() as u64),
            (&figures.handshakes, self.dtls.handshakes() as u64),
            (&figures.datagrams_dropped, self.outgoing.dropped()),
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
struct Sealing<'w> {
    dtls: &'w mut dtls::Endpoint<Principal>,
    outgoing: &'w mut Outgoing,
}

impl coap::Outbox<SessionId> for Sealing<'_> {
    fn push(&mut self, session: SessionId, message: &[u8]) {
        // A session that is gone takes no message; its exchanges go with it.
        self.dtls.send(session, message, self.outgoing);
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
