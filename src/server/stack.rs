//! What a worker does with what it receives, without I/O: DTLS, CoAP, the service,
//! and back. Datagrams, the time and results of work come in; datagrams go out,
//! and work that is not done at its first step.

use std::{
    cell::Cell,
    future::Future,
    hash::{BuildHasher, RandomState},
    iter,
    net::SocketAddr,
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use super::{
    Rooms,
    in_work::{InWork, MAX_TASKS},
    validation::{Sealing, Validation},
};
use crate::{
    cert::{self, Answer},
    coap::{self, Code, Delivery, ExchangeId, Request, Response},
    device::DeviceId,
    dtls::{self, Datagram, Event, Failure, HandshakeId, Holder, Psk, SessionId},
    figures::{ByByte, Histogram},
    limits::{Origin, Source},
    psk::{Enrollments, Key, Kind, Principal, Reissue},
    store::StoreError,
};

/// Requests of one session that may be in work at once: a device needs one.
const MAX_OF_SESSION: u32 = 4;
/// Sessions looked at in a round after a reload.
const SESSIONS_A_ROUND: usize = 512;
/// When a device should come back that met a worker with that many, in seconds.
const TASKS_PAUSE: u32 = 10;
/// Failed handshakes that are logged in a second, one line each.
const MAX_FAILURE_LINES: u32 = 20;
/// Requests that are logged in a second, one line each.
const MAX_REQUEST_LINES: u32 = 50;

/// Where a stack's datagrams and its work go.
pub trait Io: dtls::Outbox {
    /// Goes on with work; its result is to come back by [`Stack::done`].
    fn spawn(&mut self, work: impl Future<Output = Done> + Send + 'static);

    /// The time at this moment, where `now` is when the round began.
    fn clock(&self) -> Instant {
        Instant::now()
    }
}

/// A result of work that took more than one step.
pub struct Done(Outcome);

enum Outcome {
    /// Found among the enrollments of a generation.
    Key(HandshakeId, u32, Option<(Key, Principal)>),
    Response(Asked, Source, Response),
    /// It could not be looked up.
    NoKey(HandshakeId),
}

/// A request that waits for its answer.
struct Asked {
    exchange: ExchangeId<SessionId>,
    at: Instant,
    /// What is to be logged of it, if it is.
    line: Option<Box<RequestLine>>,
}

/// A request that is not worked on yet.
pub(super) struct Held {
    asked: Asked,
    from: SocketAddr,
    request: Request<SessionId>,
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
    /// Drops in silence, by [`dtls::Dropped::ALL`].
    pub dtls_dropped: [AtomicU64; dtls::Dropped::ALL.len()],
    /// Sessions that made room for others.
    pub sessions_evicted: AtomicU64,
    /// Sessions that went on from another address.
    pub sessions_moved: AtomicU64,
    /// Hellos that came again after their sessions.
    pub late_hellos: AtomicU64,
    /// Requests put off because their session or network has too many in work.
    pub too_many_in_work: AtomicU64,
    /// Answers for a device that was not yet shown to be where it says.
    pub answers_kept: AtomicU64,
    /// Of them, those sent once it was.
    pub answers_resumed: AtomicU64,
    /// Requests of sessions that have too many in work or answered lately, not taken.
    pub requests_dropped: AtomicU64,
    /// Separate answers that were never acknowledged.
    pub answers_given_up: AtomicU64,
    /// Block-wise transfers that made room for others.
    pub transfers_evicted: AtomicU64,
    /// DTLS flights sent again.
    pub retransmissions: AtomicU64,
    /// Sessions held now.
    pub sessions: AtomicU64,
    /// Handshakes in progress now.
    pub handshakes: AtomicU64,
    /// Completed handshakes, by [`dtls::Suite::ALL`].
    pub completed_by_suite: [AtomicU64; dtls::Suite::ALL.len()],
    /// Failed handshakes, by [`Failure::ALL`].
    pub failed_by_reason: [AtomicU64; Failure::ALL.len()],
    /// Requests answered, by response code as it is on the wire.
    pub responses: ByByte,
    /// From a request's arrival to its answer's departure.
    pub request_latency: Histogram,
    /// Requests whose answer is in work now.
    pub in_work: AtomicU64,
    /// Rounds that the worker has made.
    pub rounds: AtomicU64,
    /// Datagrams that the system did not take.
    pub datagrams_dropped: AtomicU64,
    /// Datagrams for another worker's session, dropped because too many waited for it.
    pub forwarded_dropped: AtomicU64,
}

/// Client at the other end of a session.
pub struct Client {
    principal: Principal,
    /// Generation of the enrollments among which its own was found.
    generation: u32,
    /// Requests of it in work.
    in_work: u32,
    /// Where it was when it proved its key, which is where it had returned a
    /// cookie. A session with a connection ID may move (RFC 9146 §6), and a client
    /// could claim to be at somebody else's address to use up the tokens there.
    source: Cell<Option<Source>>,
}

impl Client {
    /// Returns whether its key is good among these enrollments.
    fn is_good(&mut self, enrollments: &Enrollments, generation: u32) -> bool {
        if self.generation == generation {
            return true;
        }
        let Some(now) = enrollments.named(&self.principal.enrollment.name) else { return false };
        let is_good = now.kind != Kind::Individual && now.has_keys_of(&self.principal.enrollment);
        if is_good {
            self.principal.enrollment = now.clone();
            self.generation = generation;
        }
        is_good
    }

    fn new(principal: Principal, generation: u32) -> Self {
        Self { principal, generation, in_work: 0, source: Cell::new(None) }
    }

    /// The source, taken from the address of the session's beginning.
    fn source(&self, address: SocketAddr) -> Source {
        let source = self.source.get().unwrap_or_else(|| Source::of(address));
        self.source.set(Some(source));
        source
    }
}

/// DTLS, CoAP and what is in work, of one worker.
pub struct Stack {
    dtls: dtls::Endpoint<Client>,
    coap: coap::Endpoint<SessionId>,
    pub(super) rooms: Rooms,
    tasks: u64,
    figures: Arc<Figures>,
    failure_lines: Lines,
    request_lines: Lines,
    hasher: RandomState,
    validation: Validation,
    /// Requests in work by the network that they come from.
    in_work: InWork,
    /// Times that the enrollments were read.
    generation: u32,
    /// Sessions that were begun under the enrollments before are still to be looked at.
    revoking: bool,
}

impl Stack {
    /// A stack of two endpoints that have nothing to do yet.
    pub fn new(dtls: dtls::Endpoint<Client>, coap: coap::Endpoint<SessionId>, rooms: Rooms) -> Self {
        let failure_lines = Lines::new(MAX_FAILURE_LINES, "failed handshakes");
        let request_lines = Lines::new(MAX_REQUEST_LINES, "requests");
        let rooms = rooms.apart();
        let hasher = RandomState::new();
        Self {
            dtls,
            coap,
            rooms,
            tasks: 0,
            figures: Arc::default(),
            failure_lines,
            request_lines,
            hasher,
            validation: Validation::default(),
            in_work: InWork::default(),
            generation: 0,
            revoking: false,
        }
    }

    /// What it has done so far.
    pub fn figures(&self) -> Arc<Figures> {
        self.figures.clone()
    }

    /// Takes over other enrollments and limits, from now on. Sessions of an enrollment
    /// that is gone, or has another key, end: nothing is served in them any more. So do
    /// those of individual keys, which the table may have changed. The others go on, under
    /// the policy of now.
    pub fn reload(&mut self, rooms: Rooms) {
        self.rooms = rooms.apart();
        self.generation = self.generation.wrapping_add(1);
        self.revoking = true;
        self.dtls.restart_walk();
    }

    /// Looks at some of the sessions that were begun under other enrollments.
    fn revoke(&mut self, io: &mut impl Io) {
        let (enrollments, generation) = (&self.rooms.enrollments, self.generation);
        let is_over = |client: &mut Client| !client.is_good(enrollments, generation);
        self.revoking = self.dtls.close_where(SESSIONS_A_ROUND, is_over, io);
    }

    /// Returns whether the session's key is still good; ends it otherwise.
    fn is_good(&mut self, session: SessionId, io: &mut impl Io) -> bool {
        let (enrollments, generation) = (&self.rooms.enrollments, self.generation);
        let is_good =
            self.dtls.principal_mut(session).is_some_and(|client| client.is_good(enrollments, generation));
        if !is_good {
            self.dtls.close(session, io);
        }
        is_good
    }

    /// What follows, until [`end_batch`](Self::end_batch), has arrived together: the
    /// store need be looked at once.
    pub fn begin_batch(&self) {
        self.rooms.store.hold();
    }

    /// All that has arrived together is taken.
    pub fn end_batch(&self) {
        self.rooms.store.release();
    }

    /// Takes a datagram.
    pub fn receive(&mut self, now: Instant, path: impl Into<dtls::Path>, bytes: &mut [u8], io: &mut impl Io) {
        let path = path.into();
        let mut datagram = Datagram::new(path, bytes);
        while let Some(received) = self.dtls.receive(now, &mut datagram, io) {
            self.message(now, path.peer, received.session, received.data, io);
        }
        self.events(now, io);
    }

    /// Takes a result of work that it had left to [`Io::spawn`].
    pub fn done(&mut self, now: Instant, done: Done, io: &mut impl Io) {
        self.tasks -= 1;
        match done.0 {
            Outcome::Key(handshake, generation, found) => {
                self.key_found(now, handshake, generation, found, io);
            }
            Outcome::Response(asked, source, response) => {
                self.end_work(asked.exchange.peer, source);
                // Its key may have been taken away while it waited.
                if self.is_good(asked.exchange.peer, io) {
                    self.respond(now, &asked, &response, io);
                }
                self.events(now, io);
            }
            Outcome::NoKey(handshake) => self.dtls.postpone_psk(handshake),
        }
    }

    /// Ends as many sessions as `most` and says so to their devices; returns how many
    /// are left.
    pub fn close_oldest(&mut self, most: usize, io: &mut impl Io) -> usize {
        let left = self.dtls.close_oldest(most, io);
        while let Some(event) = self.dtls.poll_event() {
            if let Event::Closed { session, .. } = event {
                self.coap.forget(session);
                self.validation.forget(session);
            }
        }
        left
    }

    /// When [`handle_timeout`](Self::handle_timeout) wants to be called next.
    pub fn poll_timeout(&self) -> Option<Instant> {
        // At once, as long as there are sessions to be looked at.
        let revoking = self.revoking.then(Instant::now);
        [self.dtls.poll_timeout(), self.coap.poll_timeout(), revoking].into_iter().flatten().min()
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Instant, io: &mut impl Io) {
        if self.revoking {
            self.revoke(io);
        }
        self.dtls.handle_timeout(now, io);
        self.events(now, io);
        self.coap.handle_timeout(now, &mut Sealing::new(&mut self.dtls, io, &mut self.validation));
        self.validate(now, io);
    }

    fn message(
        &mut self,
        now: Instant,
        from: SocketAddr,
        session: SessionId,
        bytes: &[u8],
        io: &mut impl Io,
    ) {
        // Before CoAP: an answer that it keeps is not given again either.
        if !self.is_good(session, io) {
            return self.events(now, io);
        }
        let mut sealing = Sealing::new(&mut self.dtls, io, &mut self.validation);
        let Some(request) = self.coap.receive(now, session, bytes, &mut sealing) else {
            self.validated(now, io);
            self.validation.remind(session);
            return self.validate(now, io);
        };
        let Some(client) = self.dtls.principal(session) else { return };
        let is_logged = tracing::enabled!(tracing::Level::INFO) && self.request_lines.admit(now);
        let line = is_logged.then(|| Box::new(RequestLine::new(from, &client.principal, &request)));
        let asked = Asked { exchange: request.exchange, at: now, line };
        let held = Held { asked, from, request };
        if client.principal.enrollment.reissue == Reissue::Once && !self.dtls.is_validated(session) {
            return self.hold(now, session, held, io);
        }
        self.serve(now, session, held, io);
    }

    /// Keeps a request for a certificate that is issued once until the device was shown to
    /// be where it asks from: an answer that cannot be sent there would be the only one.
    fn hold(&mut self, now: Instant, session: SessionId, held: Held, io: &mut impl Io) {
        if let Some(earlier) = self.validation.hold(session, held) {
            let later = Response::empty(Code::ServiceUnavailable).with_max_age(TASKS_PAUSE);
            self.respond(now, &earlier.asked, &later, io);
        }
        self.validate(now, io);
    }

    fn serve(&mut self, now: Instant, session: SessionId, held: Held, io: &mut impl Io) {
        let Held { asked, from, request } = held;
        let Some(client) = self.dtls.principal(session) else { return };
        let source = client.source(from);
        let is_busy = client.in_work >= MAX_OF_SESSION || self.in_work.is_full(source);
        let may_wait = !is_busy && self.tasks < MAX_TASKS;
        match self.rooms.service.answer(now, source, &client.principal, &request, may_wait) {
            Answer::Now(response) => self.respond(now, &asked, &response, io),
            Answer::Later(mut work) => match first_step(work.as_mut()) {
                Poll::Ready(response) => self.respond(now, &asked, &response, io),
                Poll::Pending if is_busy => {
                    self.figures.too_many_in_work.fetch_add(1, Ordering::Relaxed);
                    let busy = Response::problem(Code::TooManyRequests, "too many requests at once");
                    self.respond(now, &asked, &busy.with_max_age(TASKS_PAUSE), io);
                }
                Poll::Pending if !may_wait => {
                    let busy = Response::problem(Code::ServiceUnavailable, "too many requests at once");
                    self.respond(now, &asked, &busy.with_max_age(TASKS_PAUSE), io);
                }
                Poll::Pending => {
                    self.coap.defer(now, asked.exchange);
                    self.begin_work(session, source);
                    self.spawn(async move { Done(Outcome::Response(asked, source, work.await)) }, io);
                }
            },
        }
    }

    fn begin_work(&mut self, session: SessionId, source: Source) {
        self.in_work.begin(source);
        if let Some(client) = self.dtls.principal_mut(session) {
            client.in_work += 1;
        }
        // What waits for its certificate makes room for others last.
        self.dtls.set_busy(session, true);
    }

    fn end_work(&mut self, session: SessionId, source: Source) {
        self.in_work.end(source);
        if let Some(client) = self.dtls.principal_mut(session) {
            client.in_work -= 1;
            let is_busy = client.in_work > 0;
            self.dtls.set_busy(session, is_busy);
        }
    }

    fn respond(&mut self, now: Instant, asked: &Asked, response: &Response, io: &mut impl Io) {
        let mut sealing = Sealing::new(&mut self.dtls, io, &mut self.validation);
        let delivery = self.coap.respond(now, asked.exchange, response, &mut sealing);
        self.validate(now, io);
        let took = io.clock().saturating_duration_since(asked.at);
        let code = response.code.byte();
        if delivery == Delivery::Kept {
            self.figures.answers_kept.fetch_add(1, Ordering::Relaxed);
        } else {
            self.figures.responses.count(code);
            self.figures.request_latency.observe(took);
        }
        if let Some(line) = &asked.line {
            line.log(code, took, delivery);
        }
    }

    /// Asks the devices with answers that were withheld to show where they are.
    fn validate(&mut self, now: Instant, io: &mut impl Io) {
        while let Some(session) = self.validation.next_to_ask(now, &self.dtls) {
            if self.validation.has_moved(session, &self.dtls) {
                self.coap.end_ping(session);
            }
            let mut sealing = Sealing::new(&mut self.dtls, io, &mut self.validation);
            if self.coap.ping(session, &mut sealing) {
                self.validation.asked(now, session, &self.dtls);
            }
            self.validation.done();
        }
    }

    /// Takes a device's answer to the question where it is, and sends what was withheld.
    fn validated(&mut self, now: Instant, io: &mut impl Io) {
        if let Some(session) = self.coap.take_pong()
            && let Some(path) = self.validation.answered(session)
        {
            self.dtls.validate(session, path);
            let mut sealing = Sealing::to_validated(&mut self.dtls, io, &mut self.validation);
            let sent = self.coap.resume(session, &mut sealing);
            self.figures.answers_resumed.fetch_add(sent as u64, Ordering::Relaxed);
            if let Some(held) = self.validation.released(session) {
                self.serve(now, session, held, io);
            }
        }
        self.validate(now, io);
    }

    fn events(&mut self, now: Instant, io: &mut impl Io) {
        while let Some(event) = self.dtls.poll_event() {
            match event {
                Event::PskNeeded { handshake, identity } => self.find_key(now, handshake, identity, io),
                Event::Established { session, peer } => {
                    if let Some(client) = self.dtls.principal(session) {
                        client.source(peer);
                    }
                    tracing::debug!(%peer, "session established");
                    // Its key may have been taken away during the handshake, and the walk
                    // over the sessions is then over.
                    self.is_good(session, io);
                }
                Event::Closed { session, reason } => {
                    tracing::debug!(?session, ?reason, "session closed");
                    self.coap.forget(session);
                    self.validation.forget(session);
                }
                Event::OverBudget { peer } => {
                    tracing::warn!(
                        network = %Origin::of(peer.ip()),
                        "too many handshakes of a network came to nothing: it begins none for now; \
                         see the incidents in docs/operations.md"
                    );
                }
                Event::HandshakeFailed { peer, identity, reason, hints } => {
                    self.figures.failed_by_reason[reason as usize].fetch_add(1, Ordering::Relaxed);
                    if self.failure_lines.admit(now) {
                        let identity = identity.map(|identity| identity.escape_ascii().to_string());
                        let suites = (!hints.suites.is_empty()).then(|| suites(&hints.suites));
                        let alert = hints.alert.map(dtls::alert_name);
                        let identity_length = hints.identity_length;
                        tracing::info!(
                            %peer, identity, %reason, suites, identity_length, alert, "handshake failed"
                        );
                    }
                }
            }
        }
    }

    fn find_key(&mut self, now: Instant, handshake: HandshakeId, identity: Box<[u8]>, io: &mut impl Io) {
        let found = first_step(pin!(self.rooms.enrollments.find(&identity, self.rooms.store.as_ref())));
        match found {
            Poll::Ready(Ok(found)) => self.key_found(now, handshake, self.generation, found, io),
            Poll::Ready(Err(error)) => {
                key_not_found(&error);
                self.dtls.postpone_psk(handshake);
            }
            Poll::Pending => {
                // Begun anew: what waits owns what it needs.
                let Rooms { enrollments, store, .. } = self.rooms.clone();
                let generation = self.generation;
                let work = async move {
                    match enrollments.find(&identity, store.as_ref()).await {
                        Ok(found) => Done(Outcome::Key(handshake, generation, found)),
                        Err(error) => {
                            key_not_found(&error);
                            Done(Outcome::NoKey(handshake))
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
        generation: u32,
        found: Option<(Key, Principal)>,
        io: &mut impl Io,
    ) {
        if let Some((_, principal)) = &found {
            self.dtls.bind_holder(handshake, self.holder_of(principal));
        }
        let key = found.and_then(|(key, principal)| {
            Some((Psk::new(key.as_bytes().to_vec())?, Client::new(principal, generation)))
        });
        self.dtls.provide_psk(now, handshake, key, io);
        self.events(now, io);
    }

    fn holder_of(&self, principal: &Principal) -> Holder {
        let number = self.hasher.hash_one((&principal.enrollment.name, principal.identity()));
        if principal.device.is_some() { Holder::Device(number) } else { Holder::Shared(number) }
    }

    /// Goes on with work that was not done at its first step.
    fn spawn(&mut self, work: impl Future<Output = Done> + Send + 'static, io: &mut impl Io) {
        self.tasks += 1;
        io.spawn(work);
    }

    /// Counts a datagram for another worker's session that it did not take.
    pub fn forwarded_dropped(&self) {
        self.figures.forwarded_dropped.fetch_add(1, Ordering::Relaxed);
    }

    /// Devices that are asked where they are.
    #[cfg(test)]
    pub fn questions(&self) -> usize {
        self.validation.open()
    }

    /// Sessions of which the CoAP endpoint remembers something.
    #[cfg(any(test, feature = "testing"))]
    pub fn coap_peers(&self) -> usize {
        self.coap.peers()
    }

    /// Writes down what others may read.
    pub fn publish(&self, datagrams_dropped: u64) {
        let (figures, counters, coap) = (&self.figures, self.dtls.counters(), self.coap.counters());
        for (figure, value) in [
            (&figures.hello_verify_requests, counters.hello_verify_requests),
            (&figures.handshakes_completed, counters.handshakes_completed),
            (&figures.handshakes_failed, counters.handshakes_failed),
            (&figures.bad_records, counters.bad_records),
            (&figures.retransmissions, counters.retransmissions),
            (&figures.sessions_evicted, counters.evicted),
            (&figures.sessions_moved, counters.moved),
            (&figures.late_hellos, counters.late_hellos),
            (&figures.requests_dropped, coap.requests_dropped),
            (&figures.answers_given_up, coap.answers_given_up),
            (&figures.transfers_evicted, coap.transfers_evicted),
            (&figures.sessions, self.dtls.sessions() as u64),
            (&figures.handshakes, self.dtls.handshakes() as u64),
            (&figures.datagrams_dropped, datagrams_dropped),
            (&figures.in_work, self.tasks),
        ] {
            figure.store(value, Ordering::Relaxed);
        }
        for (figure, value) in iter::zip(&figures.completed_by_suite, counters.completed_by_suite) {
            figure.store(value, Ordering::Relaxed);
        }
        for (figure, value) in iter::zip(&figures.dtls_dropped, counters.dropped) {
            figure.store(value, Ordering::Relaxed);
        }
        figures.rounds.fetch_add(1, Ordering::Relaxed);
    }
}

/// Without an answer of the store the key is asked for again when the device repeats its
/// flight: an alert would tell it that its key is wrong.
fn key_not_found(error: &StoreError) {
    tracing::error!(%error, "a key could not be looked up");
}

/// Cipher suites as a person looks them up: their codes in IANA's registry.
fn suites(codes: &[u16]) -> String {
    let codes: Vec<String> = codes.iter().map(|code| format!("0x{code:04X}")).collect();
    codes.join(" ")
}

/// Polls work once, on the worker itself: what a store has at hand is done then,
/// without a task.
fn first_step<T>(work: Pin<&mut (impl Future<Output = T> + ?Sized)>) -> Poll<T> {
    work.poll(&mut Context::from_waker(Waker::noop()))
}

/// Log lines of one kind, bounded: a crowd or an attacker can make more of them than
/// anybody can read.
struct Lines {
    most: u32,
    what: &'static str,
    second: Option<Instant>,
    written: u32,
    suppressed: u64,
}

impl Lines {
    /// At most so many in a second.
    fn new(most: u32, what: &'static str) -> Self {
        Self { most, what, second: None, written: 0, suppressed: 0 }
    }

    /// Whether one more may be written. Those that may not are counted, and told with
    /// the next that may.
    fn admit(&mut self, now: Instant) -> bool {
        if self.second.is_none_or(|second| now >= second + Duration::from_secs(1)) {
            if self.suppressed > 0 {
                tracing::warn!(lines = self.suppressed, "{} were not logged one by one", self.what);
            }
            (self.second, self.written, self.suppressed) = (Some(now), 0, 0);
        }
        let admitted = self.written < self.most;
        if admitted {
            self.written += 1;
        } else {
            self.suppressed += 1;
        }
        admitted
    }
}

/// What is logged of a request, besides its answer.
struct RequestLine {
    device: Option<DeviceId>,
    identity: String,
    address: SocketAddr,
}

impl RequestLine {
    fn new<K>(address: SocketAddr, principal: &Principal, request: &Request<K>) -> Self {
        let identity = match (&principal.enrollment.kind, &principal.device) {
            (Kind::Shared { identity, .. }, _) => identity.escape_debug().to_string(),
            // Its identity is its own, and not kept: the device that it proves says as much.
            (_, device) => device.as_ref().map(DeviceId::to_string).unwrap_or_default(),
        };
        Self { device: cert::device_of(request, principal), identity, address }
    }

    fn log(&self, code: u8, took: Duration, delivery: Delivery) {
        let device = self.device.as_ref().map(tracing::field::display);
        let code = format_args!("{}.{:02}", code >> 5, code & 0x1f);
        let milliseconds = took.as_micros() as f64 / 1000.0;
        // The answer waits until the device was shown to be where it asks from.
        let kept = (delivery == Delivery::Kept).then_some(true);
        tracing::info!(
            device, identity = self.identity, address = %self.address, %code, milliseconds, kept, "request"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_beyond_those_of_a_second_are_counted_and_the_next_second_has_its_own() {
        let mut lines = Lines::new(2, "requests");
        let now = Instant::now();
        assert_eq!([(); 4].map(|()| lines.admit(now)), [true, true, false, false]);
        assert_eq!(lines.suppressed, 2);
        assert!(!lines.admit(now + Duration::from_millis(999)));
        assert!(lines.admit(now + Duration::from_secs(1)));
        assert_eq!(lines.suppressed, 0);
    }
}
