//! The protocol stack of a worker, without I/O: DTLS, CoAP and the service. Its input is datagrams
//! and the time. Its output is datagrams, and futures that could not finish at once. The worker runs
//! these futures, and their results are input again.

mod own_key;

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
    Services,
    failed_handshakes::FailedHandshakes,
    in_progress::{InProgress, MAX_TASKS},
    validation::{Sealing, Validation},
};
use crate::{
    coap::{self, Code, Delivery, ExchangeId, Request, Response},
    device::DeviceId,
    dtls::{self, Datagram, Event, Failure, HandshakeId, Holder, Psk, SessionId},
    histogram::{ByByte, Histogram},
    log_limit::LogLimit,
    psk::{Enrollments, Key, Kind, Lookup, Principal, Reissue, WhichKey},
    rate_limit::{Origin, Source},
    resource::{self, Answer},
    store::StoreError,
    unix_time::unix_now,
};

/// Maximum number of requests in progress in one session. A device needs only one.
const MAX_OF_SESSION: u32 = 4;
/// Number of sessions checked per round after a reload.
const SESSIONS_A_ROUND: usize = 512;
/// Time after which a device should retry, in seconds, if too many requests are in progress.
const TASKS_PAUSE: u32 = 10;
/// Maximum number of failed handshakes that are logged per second, with one line each.
const MAX_FAILURE_LINES: u32 = 20;
/// Maximum number of requests that are logged per second, with one line each.
const MAX_REQUEST_LINES: u32 = 50;

/// Destination of a stack's datagrams and work.
pub trait Io: dtls::Outbox {
    /// Takes over work. The result of the work must be passed to [`Stack::done`].
    fn spawn(&mut self, work: impl Future<Output = Done> + Send + 'static);

    /// Returns the current time. (The `now` arguments of other methods are the time at which the
    /// round started.)
    fn clock(&self) -> Instant {
        Instant::now()
    }
}

/// Result of work that took more than one step.
pub struct Done(WorkResult);

enum WorkResult {
    /// Result of a lookup: the handshake, the generation of the enrollments in which the key was
    /// looked up, and the keys.
    Key(HandshakeId, u32, Lookup),
    Response(Asked, Source, Response),
    /// The key could not be looked up.
    NoKey(HandshakeId),
    /// Result of checking whether the individual key of a session is still in the table.
    OwnKey(SessionId, bool),
}

/// A request that waits for its answer.
struct Asked {
    exchange: ExchangeId<SessionId>,
    at: Instant,
    /// Log line of the request, if the request is logged.
    line: Option<Box<RequestLine>>,
}

/// A request that waits until its processing can begin.
pub(super) struct Held {
    asked: Asked,
    from: SocketAddr,
    request: Request<SessionId>,
}

/// Metrics of a worker. Other threads may read them at any time.
#[derive(Debug, Default)]
pub struct Metrics {
    /// HelloVerifyRequests sent.
    pub hello_verify_requests: AtomicU64,
    /// Handshakes that became sessions.
    pub handshakes_completed: AtomicU64,
    /// Handshakes that failed.
    pub handshakes_failed: AtomicU64,
    /// Protected records that failed to authenticate or were replayed.
    pub bad_records: AtomicU64,
    /// Silent drops by reason, in the order of [`dtls::Dropped::ALL`].
    pub dtls_dropped: [AtomicU64; dtls::Dropped::ALL.len()],
    /// Sessions ended because their holder had too many sessions, or because the table was full.
    pub sessions_evicted: AtomicU64,
    /// Times that a session's client moved to another address.
    pub sessions_moved: AtomicU64,
    /// Late copies of hellos that already led to a session.
    pub late_hellos: AtomicU64,
    /// Requests refused because their session or network had too many requests in progress. The
    /// device is asked to retry later.
    pub too_many_in_progress: AtomicU64,
    /// Answers that had to wait because the device's address was not validated yet.
    pub answers_kept: AtomicU64,
    /// Waiting answers that were sent after the address had been validated.
    pub answers_resumed: AtomicU64,
    /// Requests dropped or refused because their session had too many requests that were in
    /// progress or recently answered.
    pub requests_dropped: AtomicU64,
    /// Separate answers that were never acknowledged.
    pub answers_given_up: AtomicU64,
    /// Block-wise transfers dropped to make room for others.
    pub transfers_evicted: AtomicU64,
    /// DTLS flights resent.
    pub retransmissions: AtomicU64,
    /// Current number of sessions.
    pub sessions: AtomicU64,
    /// Current number of handshakes in progress.
    pub handshakes: AtomicU64,
    /// Completed handshakes by cipher suite, in the order of [`dtls::Suite::ALL`].
    pub completed_by_suite: [AtomicU64; dtls::Suite::ALL.len()],
    /// Failed handshakes by reason, in the order of [`Failure::ALL`].
    pub failed_by_reason: [AtomicU64; Failure::ALL.len()],
    /// Recent failed handshakes, by identity and reason.
    pub failed: FailedHandshakes,
    /// Requests answered, by the byte that encodes the response code.
    pub responses: ByByte,
    /// Time from a request's arrival to its answer's departure.
    pub request_latency: Histogram,
    /// Current number of requests and key lookups in progress.
    pub in_progress: AtomicU64,
    /// Rounds that the worker has run.
    pub rounds: AtomicU64,
    /// Outgoing datagrams that the system did not accept.
    pub datagrams_dropped: AtomicU64,
    /// Datagrams for a session of another worker, dropped because that worker's queue was
    /// full.
    pub forwarded_dropped: AtomicU64,
}

/// Client at the other end of a session.
pub struct Client {
    principal: Principal,
    /// Generation of the enrollments in which the client's key was last found valid.
    generation: u32,
    /// Time at which its individual key was last found in the table.
    checked: Instant,
    /// Number of the client's requests in progress.
    in_progress: u32,
    /// Address at which the client proved its key, after it had returned a cookie there. Limits
    /// count by this address even after the session has moved (RFC 9146 §6). Otherwise a client
    /// could pretend to be at another client's address and use up the tokens of that address.
    source: Cell<Option<Source>>,
}

impl Client {
    /// Returns whether the client's key is still valid in these enrollments. After a reload, no
    /// individual key counts as valid.
    fn is_good(&mut self, enrollments: &Enrollments, generation: u32) -> bool {
        if self.generation == generation {
            return true;
        }
        let Some(now) = enrollments.named(&self.principal.enrollment.name) else { return false };
        let Some(key) = now.key_of(&self.principal.enrollment, self.principal.key) else { return false };
        self.principal.enrollment = now.clone();
        self.principal.key = key;
        self.generation = generation;
        true
    }

    fn new(principal: Principal, generation: u32, checked: Instant) -> Self {
        Self { principal, generation, checked, in_progress: 0, source: Cell::new(None) }
    }

    /// Returns the source by which limits count. The source is derived from the `address` of the
    /// first call.
    fn source(&self, address: SocketAddr) -> Source {
        let source = self.source.get().unwrap_or_else(|| Source::of(address));
        self.source.set(Some(source));
        source
    }
}

/// DTLS, CoAP and the requests in progress of one worker.
pub struct Stack {
    dtls: dtls::Endpoint<Client>,
    coap: coap::Endpoint<SessionId>,
    pub(super) services: Services,
    tasks: u64,
    metrics: Arc<Metrics>,
    failure_lines: LogLimit,
    request_lines: LogLimit,
    hasher: RandomState,
    validation: Validation,
    /// Numbers of requests in progress, by network.
    in_progress: InProgress,
    /// Number of times that the enrollments were reloaded.
    generation: u32,
    /// Set while some sessions that began under earlier enrollments have not been checked yet.
    revoking: bool,
}

impl Stack {
    /// Creates a stack from two endpoints that have not been used yet.
    pub fn new(dtls: dtls::Endpoint<Client>, coap: coap::Endpoint<SessionId>, services: Services) -> Self {
        let failure_lines = LogLimit::new(MAX_FAILURE_LINES, "failed handshakes");
        let request_lines = LogLimit::new(MAX_REQUEST_LINES, "requests");
        let services = services.unshared();
        let hasher = RandomState::new();
        Self {
            dtls,
            coap,
            services,
            tasks: 0,
            metrics: Arc::default(),
            failure_lines,
            request_lines,
            hasher,
            validation: Validation::default(),
            in_progress: InProgress::default(),
            generation: 0,
            revoking: false,
        }
    }

    /// Returns the metrics of the worker.
    pub fn metrics(&self) -> Arc<Metrics> {
        self.metrics.clone()
    }

    /// Replaces the enrollments and limits from now on. A session ends if its enrollment was
    /// removed or now has another key. A session with an individual key also ends, because the
    /// table may have changed. All other sessions continue under the new policy.
    pub fn reload(&mut self, services: Services) {
        self.services = services.unshared();
        self.generation = self.generation.wrapping_add(1);
        self.revoking = true;
        self.dtls.restart_walk();
    }

    /// Checks some of the sessions that began under earlier enrollments.
    fn revoke(&mut self, io: &mut impl Io) {
        let (enrollments, generation) = (&self.services.enrollments, self.generation);
        let is_over = |client: &mut Client| !client.is_good(enrollments, generation);
        self.revoking = self.dtls.close_where(SESSIONS_A_ROUND, is_over, io);
    }

    /// Returns whether the session's key is still valid. Ends the session if the key is no longer
    /// valid.
    fn is_good(&mut self, session: SessionId, io: &mut impl Io) -> bool {
        let (enrollments, generation) = (&self.services.enrollments, self.generation);
        let is_good =
            self.dtls.principal_mut(session).is_some_and(|client| client.is_good(enrollments, generation));
        if !is_good {
            self.dtls.close(session, io);
        }
        is_good
    }

    /// Starts a group of datagrams. The store then needs to check for changes only once for the
    /// whole group.
    pub fn begin_group(&self) {
        self.services.store.hold();
    }

    /// Ends the group of datagrams.
    pub fn end_group(&self) {
        self.services.store.release();
    }

    /// Processes a datagram.
    pub fn receive(&mut self, now: Instant, path: impl Into<dtls::Path>, bytes: &mut [u8], io: &mut impl Io) {
        let path = path.into();
        let mut datagram = Datagram::new(path, bytes);
        while let Some(received) = self.dtls.receive(now, &mut datagram, io) {
            self.message(now, path.peer, received.session, received.data, io);
        }
        self.events(now, io);
    }

    /// Processes the result of work that was passed to [`Io::spawn`].
    pub fn done(&mut self, now: Instant, done: Done, io: &mut impl Io) {
        self.tasks -= 1;
        match done.0 {
            WorkResult::Key(handshake, generation, found) => {
                self.key_found(now, handshake, generation, found, io);
            }
            WorkResult::Response(asked, source, response) => {
                self.end_work(asked.exchange.peer, source);
                // The key may have been revoked while the request waited.
                if self.may_go_on(now, asked.exchange.peer, io) {
                    self.respond(now, &asked, &response, io);
                }
                self.events(now, io);
            }
            WorkResult::NoKey(handshake) => self.dtls.postpone_psk(handshake),
            WorkResult::OwnKey(_, true) => {}
            WorkResult::OwnKey(session, false) => {
                self.dtls.close(session, io);
                self.events(now, io);
            }
        }
    }

    /// Ends up to `most` sessions and notifies their devices. Returns the number of
    /// sessions left.
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

    /// Returns the time at which [`handle_timeout`](Self::handle_timeout) must be called next.
    pub fn poll_timeout(&self) -> Option<Instant> {
        // While sessions remain to be checked, the next call is due immediately.
        let revoking = self.revoking.then(Instant::now);
        [self.dtls.poll_timeout(), self.coap.poll_timeout(), revoking].into_iter().flatten().min()
    }

    /// Performs all tasks that are due: retransmissions, timeouts, pings, and checks of sessions
    /// after a reload.
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
        // The key is checked before CoAP gets the message, because CoAP may repeat a stored answer.
        if !self.may_go_on(now, session, io) {
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

    /// Holds a request until the device's address is validated. Called for certificates that are
    /// issued only once: if the answer could not be sent, the device would never get its
    /// certificate.
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
        let is_busy = client.in_progress >= MAX_OF_SESSION || self.in_progress.is_full(source);
        let may_wait = !is_busy && self.tasks < MAX_TASKS;
        match self.services.service.answer(now, source, &client.principal, &request, may_wait) {
            Answer::Now(response) => self.respond(now, &asked, &response, io),
            Answer::Later(mut work) => match first_step(work.as_mut()) {
                Poll::Ready(response) => self.respond(now, &asked, &response, io),
                Poll::Pending if is_busy => {
                    self.metrics.too_many_in_progress.fetch_add(1, Ordering::Relaxed);
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
                    self.spawn(async move { Done(WorkResult::Response(asked, source, work.await)) }, io);
                }
            },
        }
    }

    fn begin_work(&mut self, session: SessionId, source: Source) {
        self.in_progress.begin(source);
        if let Some(client) = self.dtls.principal_mut(session) {
            client.in_progress += 1;
        }
        // A busy session is evicted last, so that a device that waits for its certificate keeps its
        // session.
        self.dtls.set_busy(session, true);
    }

    fn end_work(&mut self, session: SessionId, source: Source) {
        self.in_progress.end(source);
        if let Some(client) = self.dtls.principal_mut(session) {
            client.in_progress -= 1;
            let is_busy = client.in_progress > 0;
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
            self.metrics.answers_kept.fetch_add(1, Ordering::Relaxed);
        } else {
            self.metrics.responses.count(code);
            self.metrics.request_latency.observe(took);
        }
        if let Some(line) = &asked.line {
            line.log(code, took, delivery);
        }
    }

    /// Sends pings to the devices whose answers or requests wait for a validated address.
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

    /// Handles a device's answer to a ping. Sends the waiting answers, and serves a held request.
    fn validated(&mut self, now: Instant, io: &mut impl Io) {
        if let Some(session) = self.coap.take_pong()
            && let Some(path) = self.validation.answered(session)
        {
            self.dtls.validate(session, path);
            let mut sealing = Sealing::to_validated(&mut self.dtls, io, &mut self.validation);
            let sent = self.coap.resume(session, &mut sealing);
            self.metrics.answers_resumed.fetch_add(sent as u64, Ordering::Relaxed);
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
                    // The key may have been revoked during the handshake, after the check of all
                    // existing sessions.
                    if self.is_good(session, io)
                        && let Some(client) = self.dtls.principal(session)
                    {
                        self.services.enrollments.count_use(&client.principal);
                    }
                }
                Event::Closed { session, reason } => {
                    tracing::debug!(?session, ?reason, "session closed");
                    self.coap.forget(session);
                    self.validation.forget(session);
                }
                Event::OverBudget { peer } => {
                    tracing::warn!(
                        network = %Origin::of(peer.ip()),
                        "too many handshakes of a network failed: it cannot start another for now; \
                         see the incidents in docs/operations.md"
                    );
                }
                Event::HandshakeFailed { peer, identity, reason, hints } => {
                    self.metrics.failed_by_reason[reason as usize].fetch_add(1, Ordering::Relaxed);
                    let origin = Origin::of(peer.ip());
                    self.metrics.failed.note(unix_now(), identity.as_deref(), reason, origin);
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
        let found = first_step(pin!(self.services.enrollments.find(&identity, self.services.store.as_ref())));
        match found {
            Poll::Ready(Ok(found)) => self.key_found(now, handshake, self.generation, found, io),
            Poll::Ready(Err(error)) => {
                key_not_found(&error);
                self.dtls.postpone_psk(handshake);
            }
            Poll::Pending => {
                // The lookup is started again with copies, because work that waits must own its
                // data.
                let Services { enrollments, store, .. } = self.services.clone();
                let generation = self.generation;
                let work = async move {
                    match enrollments.find(&identity, store.as_ref()).await {
                        Ok(found) => Done(WorkResult::Key(handshake, generation, found)),
                        Err(error) => {
                            key_not_found(&error);
                            Done(WorkResult::NoKey(handshake))
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
        found: Lookup,
        io: &mut impl Io,
    ) {
        let Lookup { keys: found, tries_two } = found;
        // Both keys of an identity have the same holder.
        if let Some(((_, principal), _)) = &found {
            self.dtls.bind_holder(handshake, self.holder_of(principal));
        }
        let (first, second) = found.map_or((None, None), |(first, second)| (Some(first), second));
        let client = |(key, principal): (Key, Principal)| {
            Some((Psk::new(key.as_bytes().to_vec())?, Client::new(principal, generation, now)))
        };
        let keys = [first, second].map(|found| found.and_then(client));
        if tries_two {
            self.dtls.provide_psks(now, handshake, keys, io);
        } else {
            let [key, _] = keys;
            self.dtls.provide_psk(now, handshake, key, io);
        }
        self.events(now, io);
    }

    fn holder_of(&self, principal: &Principal) -> Holder {
        let number = self.hasher.hash_one((&principal.enrollment.name, principal.identity()));
        if principal.device.is_some() { Holder::Device(number) } else { Holder::Shared(number) }
    }

    /// Passes unfinished work to `io`, after its first step.
    fn spawn(&mut self, work: impl Future<Output = Done> + Send + 'static, io: &mut impl Io) {
        self.tasks += 1;
        io.spawn(work);
    }

    /// Counts a datagram that belonged to a session of another worker and was not accepted by that
    /// worker.
    pub fn forwarded_dropped(&self) {
        self.metrics.forwarded_dropped.fetch_add(1, Ordering::Relaxed);
    }

    /// Returns the number of unanswered pings and held requests.
    #[cfg(test)]
    pub fn questions(&self) -> usize {
        self.validation.open()
    }

    /// Returns the number of sessions for which the CoAP endpoint holds state.
    #[cfg(any(test, feature = "testing"))]
    pub fn coap_peers(&self) -> usize {
        self.coap.peers()
    }

    /// Updates the metrics.
    pub fn publish(&self, datagrams_dropped: u64) {
        let (metrics, counters, coap) = (&self.metrics, self.dtls.counters(), self.coap.counters());
        for (metric, value) in [
            (&metrics.hello_verify_requests, counters.hello_verify_requests),
            (&metrics.handshakes_completed, counters.handshakes_completed),
            (&metrics.handshakes_failed, counters.handshakes_failed),
            (&metrics.bad_records, counters.bad_records),
            (&metrics.retransmissions, counters.retransmissions),
            (&metrics.sessions_evicted, counters.evicted),
            (&metrics.sessions_moved, counters.moved),
            (&metrics.late_hellos, counters.late_hellos),
            (&metrics.requests_dropped, coap.requests_dropped),
            (&metrics.answers_given_up, coap.answers_given_up),
            (&metrics.transfers_evicted, coap.transfers_evicted),
            (&metrics.sessions, self.dtls.sessions() as u64),
            (&metrics.handshakes, self.dtls.handshakes() as u64),
            (&metrics.datagrams_dropped, datagrams_dropped),
            (&metrics.in_progress, self.tasks),
        ] {
            metric.store(value, Ordering::Relaxed);
        }
        for (metric, value) in iter::zip(&metrics.completed_by_suite, counters.completed_by_suite) {
            metric.store(value, Ordering::Relaxed);
        }
        for (metric, value) in iter::zip(&metrics.dtls_dropped, counters.dropped) {
            metric.store(value, Ordering::Relaxed);
        }
        metrics.rounds.fetch_add(1, Ordering::Relaxed);
    }
}

/// Logs a failed lookup of a key. No alert is sent, because an alert would tell the device that its
/// key is wrong. Without an alert, the device repeats its flight, and the key is looked up again.
fn key_not_found(error: &StoreError) {
    tracing::error!(%error, "a key could not be looked up; its device will repeat its handshake message");
}

/// Formats cipher suites for the log, as their codes in the IANA registry.
fn suites(codes: &[u16]) -> String {
    let codes: Vec<String> = codes.iter().map(|code| format!("0x{code:04X}")).collect();
    codes.join(" ")
}

/// Polls work once. If the store can finish the work immediately, no task is needed.
fn first_step<T>(work: Pin<&mut (impl Future<Output = T> + ?Sized)>) -> Poll<T> {
    work.poll(&mut Context::from_waker(Waker::noop()))
}

/// The part of a request's log line that does not depend on the answer.
struct RequestLine {
    device: Option<DeviceId>,
    identity: String,
    /// Key that the client has, if its enrollment or its device has two.
    key: Option<WhichKey>,
    address: SocketAddr,
}

impl RequestLine {
    fn new<K>(address: SocketAddr, principal: &Principal, request: &Request<K>) -> Self {
        let identity = match (&principal.enrollment.kind, &principal.device) {
            (Kind::Shared { .. }, _) => principal.identity().escape_debug().to_string(),
            // A device with its own key is logged by its device ID instead of its PSK
            // identity.
            (_, device) => device.as_ref().map(|own| own.first().to_string()).unwrap_or_default(),
        };
        Self {
            device: resource::device_of(request, principal),
            identity,
            key: principal.which_of_two(),
            address,
        }
    }

    fn log(&self, code: u8, took: Duration, delivery: Delivery) {
        let device = self.device.as_ref().map(tracing::field::display);
        let code = format_args!("{}.{:02}", code >> 5, code & 0x1f);
        let milliseconds = took.as_micros() as f64 / 1000.0;
        // Set if the answer waits until the device's address is validated.
        let kept = (delivery == Delivery::Kept).then_some(true);
        let key = self.key.map(WhichKey::as_str);
        tracing::info!(
            device, identity = self.identity, key, peer = %self.address, %code, milliseconds, kept, "request"
        );
    }
}
