//! The endpoint: the interface for the application, the limits and the timers. This module reads
//! datagrams. The submodule `handshakes` manages the endpoint's handshakes, and the submodule
//! `sessions` manages its sessions. The logic of a single handshake is in `handshake`, and the
//! logic of a single session in `session`.

mod handshakes;
mod sessions;

use std::{
    collections::{HashMap, VecDeque},
    net::SocketAddr,
    time::{Duration, Instant},
};

use rand::{Rng, SeedableRng, rngs::StdRng};

use self::{
    handshakes::{Completions, Progress},
    sessions::Shares,
};
use super::{
    Closed, Config, Event, Failure, Outbox, Path, Psk,
    budget::Budget,
    candidates::MAX_KEYS,
    cookie::CookieJar,
    holders::Holders,
    keyed_hash::KeyedState,
    origins::Origins,
    record::{self, ConnectionId, ContentType, Records},
    session::Session,
    table::{Handle, Table},
};

/// Identifies a handshake in progress, and the claim of this handshake that waits for a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct HandshakeId {
    handle: Handle,
    claim: u32,
}

/// Identifies an established session; never reused by the same endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionId(Handle);

/// Holder of a key. The endpoint limits the number of sessions per holder. The number in each
/// variant identifies the device or the shared key. The application computes this number as a keyed
/// hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holder {
    /// One device, at any address.
    Device(u64),
    /// Many devices that share one key. Each address and port counts as a separate holder.
    Shared(u64),
}

/// Maximum number of times that the timer resends a flight. With an initial timeout of 1 s, there
/// are 16 s between the last two resends. After the last resend by the timer, the server resends
/// its flight only when the client repeats its own flight.
const MAX_RETRANSMISSIONS: usize = 5;

/// A received datagram, and the position up to which [`Endpoint::receive`] has read the datagram.
pub struct Datagram<'d> {
    path: Path,
    records: Records<'d>,
    spent: Spent,
}

/// Actions already taken for a datagram. Each action is taken at most once per datagram, no matter
/// how many messages the datagram holds.
#[derive(Default)]
struct Spent {
    /// The beginning of a ClientHello was read.
    hello: bool,
    /// A ClientKeyExchange was processed.
    claim: bool,
    /// A flight was resent.
    flight: bool,
    /// The IP and UDP headers were counted.
    headers: bool,
}

impl<'d> Datagram<'d> {
    /// Wraps the bytes of a datagram. [`Endpoint::receive`] decrypts the bytes in place.
    pub fn new(path: impl Into<Path>, bytes: &'d mut [u8]) -> Self {
        Self { path: path.into(), records: Records::new(bytes), spent: Spent::default() }
    }
}

/// Data that a client sent inside its session.
#[derive(Debug)]
pub struct ApplicationData<'d> {
    /// The session.
    pub session: SessionId,
    /// The payload of one record, not empty.
    pub data: &'d mut [u8],
}

/// Result of [`Endpoint::send`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Delivery {
    /// The data was sent.
    Sent,
    /// Nothing was sent: the client has moved to an address that is not validated, and the
    /// data exceeds what may be sent there (RFC 9146 §6). The data may be sent after a call
    /// to [`Endpoint::validate`].
    Unvalidated,
    /// Nothing was sent: the session has ended, or the data is longer than allowed.
    Lost,
}

/// Counts of events since the endpoint was created, for metrics.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// HelloVerifyRequests sent.
    pub hello_verify_requests: u64,
    /// Handshakes started with a valid cookie.
    pub handshakes_started: u64,
    /// Handshakes that became sessions.
    pub handshakes_completed: u64,
    /// Completed handshakes by suite, in the order of [`super::Suite::ALL`].
    pub completed_by_suite: [u64; super::Suite::ALL.len()],
    /// Handshakes that failed.
    pub handshakes_failed: u64,
    /// Handshakes started by a late copy of a hello that already led to a session.
    pub late_hellos: u64,
    /// Number of silent drops for each reason, in the order of [`Dropped::ALL`].
    pub dropped: [u64; Dropped::ALL.len()],
    /// Flights resent.
    pub retransmissions: u64,
    /// Protected records that failed to authenticate or were replayed.
    pub bad_records: u64,
    /// Number of times that a client moved to another address during its session.
    pub moved: u64,
    /// Sessions that were ended because their holder had too many sessions, or because the table
    /// was full.
    pub evicted: u64,
}

/// Reason why a message or record was dropped without an alert to the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dropped {
    /// A hello with a valid cookie from a network that has exceeded its budget for
    /// unfinished handshakes.
    OverBudget,
    /// A message or record of a handshake that was invalid or exceeded a limit.
    Message,
    /// A client's request to resend a flight, too soon after the flight was last sent.
    Flight,
    /// A record for a client whose address is not validated, when no more bytes may be sent to that
    /// address.
    Unvalidated,
}

impl Dropped {
    /// All reasons, in the order in which they are declared.
    pub const ALL: [Self; 4] = [Self::OverBudget, Self::Message, Self::Flight, Self::Unvalidated];

    /// Returns the reason's name in metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::OverBudget => "over_budget",
            Self::Message => "message",
            Self::Flight => "flight",
            Self::Unvalidated => "unvalidated",
        }
    }
}

impl Counters {
    /// Returns the number of drops for this reason.
    pub fn dropped(&self, reason: Dropped) -> u64 {
        self.dropped[reason as usize]
    }

    fn drop(&mut self, reason: Dropped) {
        self.dropped[reason as usize] += 1;
    }
}

/// A DTLS server endpoint. `P` is the type of the principal: the value that stands for the client's
/// identity. When the application provides a key, it binds a principal to the session.
pub struct Endpoint<P> {
    config: Config,
    made: Instant,
    cookies: CookieJar,
    /// Generates public values, and the random keys used for unknown identities. Secrets
    /// come from the operating system, because the state of this generator could reveal
    /// them.
    random: StdRng,
    /// Hashes the holders of shared keys, and the hellos in [`Completions`].
    hasher: KeyedState,
    handshakes: Table<Progress<P>>,
    origins: Origins,
    budget: Budget,
    over_budget_reported: Option<Instant>,
    completions: Completions,
    /// Sessions. When a client that has lost its state starts a new handshake, its old session
    /// stays alive until the handshake completes (RFC 6347 §4.2.8). So a path may be both in this
    /// table and in `handshakes`.
    sessions: Table<Session<P>>,
    by_connection_id: HashMap<ConnectionId, Handle>,
    holders: Holders,
    shares: Shares,
    /// Handshakes whose flight will be resent, each with the time of the resend. There is one queue
    /// for each timeout, so that every queue is ordered by time without sorting. An entry is stale
    /// once its handshake no longer waits for the client.
    resend: [VecDeque<(Instant, Handle)>; MAX_RETRANSMISSIONS],
    /// Handshakes in which a record failed to authenticate, ordered by time. A handshake is
    /// abandoned at its time in this queue unless it has completed by then.
    suspects: VecDeque<(Instant, Handle)>,
    events: VecDeque<Event>,
    /// Index of the table slot at which [`close_where`](Self::close_where) continues.
    walk: u32,
    counters: Counters,
    /// The datagram being built.
    buffer: Vec<u8>,
}

impl<P> Endpoint<P> {
    /// Creates an endpoint. Both `cookie_secret` and `seed` are random. Endpoints that
    /// replace each other may share `cookie_secret`, but never `seed`.
    pub fn new(config: Config, now: Instant, cookie_secret: &[u8; 32], seed: [u8; 32]) -> Self {
        Self {
            made: now,
            cookies: CookieJar::new(cookie_secret, now, config.cookie_period),
            hasher: KeyedState::of_seed(&seed),
            random: StdRng::from_seed(seed),
            handshakes: Table::new(now),
            origins: Origins::default(),
            budget: Budget::new(now, config.unfinished_burst, config.unfinished_per_second),
            over_budget_reported: None,
            completions: Completions::default(),
            sessions: Table::new(now),
            by_connection_id: HashMap::new(),
            holders: Holders::default(),
            shares: Shares::default(),
            resend: Default::default(),
            suspects: VecDeque::new(),
            events: VecDeque::new(),
            walk: 0,
            counters: Counters::default(),
            buffer: Vec::with_capacity(2048),
            config,
        }
    }

    /// Returns the number of sessions.
    pub fn sessions(&self) -> usize {
        self.sessions.len()
    }

    /// Returns the number of handshakes in progress.
    pub fn handshakes(&self) -> usize {
        self.handshakes.len()
    }

    /// Returns the counters.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Returns the principal that the application bound to a session.
    pub fn principal(&self, session: SessionId) -> Option<&P> {
        self.sessions.get(session.0).map(|session| &session.principal)
    }

    /// Returns the principal that the application bound to a session, for modification.
    pub fn principal_mut(&mut self, session: SessionId) -> Option<&mut P> {
        self.sessions.get_mut(session.0).map(|session| &mut session.principal)
    }

    /// Returns the address of a session's client.
    pub fn peer(&self, session: SessionId) -> Option<SocketAddr> {
        self.path(session).map(|path| path.peer)
    }

    /// Returns the current path of a session's client.
    pub fn path(&self, session: SessionId) -> Option<Path> {
        self.sessions.path(session.0)
    }

    /// Returns the maximum number of data bytes that one record to this client may hold. The
    /// maximum depends on the client's own limit (RFC 6066 §4, RFC 8449) and on the size of a
    /// datagram.
    pub fn max_data(&self, session: SessionId) -> Option<usize> {
        let connection = &self.sessions.get(session.0)?.connection;
        let overhead = record::MAX_OVERHEAD + connection.client_id().len();
        Some(connection.max_data().min(self.config.max_datagram() - overhead))
    }

    /// Returns the next event. After each call of another method, the application calls this method
    /// until it returns `None`.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// Continues reading a datagram. Returns the next application data, or `None` at the
    /// end of the datagram. Invalid content is not an error: it is dropped (RFC 6347
    /// §4.1.2.7).
    pub fn receive<'d>(
        &mut self,
        now: Instant,
        datagram: &mut Datagram<'d>,
        out: &mut impl Outbox,
    ) -> Option<ApplicationData<'d>> {
        let Datagram { path, records, spent } = datagram;
        while let Some(record) = records.next() {
            match record.header.epoch {
                0 => self.plaintext(now, *path, record.header, record.payload, spent, out),
                1 => {
                    if let Some(received) = self.protected(now, *path, record, spent, out) {
                        return Some(received);
                    }
                }
                // Epoch 2 could only come from a renegotiation, and renegotiations are refused.
                _ => {}
            }
        }
        None
    }

    /// Sets the holder of a handshake's key, so that the sessions of one holder can be limited
    /// ([`Config::sessions_per_holder`]). Call this before providing the key.
    pub fn bind_holder(&mut self, handshake: HandshakeId, holder: Holder) {
        if let Some(progress) = self.handshakes.get_mut(handshake.handle) {
            progress.holder = Some(holder);
        }
    }

    /// Continues a handshake with the key and principal of its identity, or with `None` when the
    /// identity is unknown. With `None`, the handshake continues with a random key, so that the
    /// client cannot tell an unknown identity from a wrong key (RFC 4279 §2).
    pub fn provide_psk(
        &mut self,
        now: Instant,
        handshake: HandshakeId,
        key: Option<(Psk, P)>,
        out: &mut impl Outbox,
    ) {
        let Some((psk, principal)) = self.or_random(key) else { return };
        self.continue_with(now, handshake, (&psk, None), [principal, None], out);
    }

    /// Continues a handshake like [`provide_psk`](Self::provide_psk), with two keys for one
    /// identity. The session gets the principal of the key that the client proves. A random key
    /// replaces a missing one, so an identity with one key, or with none, costs the same work as an
    /// identity with two.
    pub fn provide_psks(
        &mut self,
        now: Instant,
        handshake: HandshakeId,
        [first, second]: [Option<(Psk, P)>; MAX_KEYS],
        out: &mut impl Outbox,
    ) {
        let Some((first, one)) = self.or_random(first) else { return };
        let Some((second, other)) = self.or_random(second) else { return };
        self.continue_with(now, handshake, (&first, Some(&second)), [one, other], out);
    }

    /// Replaces a missing key with a random one, which has no principal.
    fn or_random(&mut self, key: Option<(Psk, P)>) -> Option<(Psk, Option<P>)> {
        match key {
            Some((psk, principal)) => Some((psk, Some(principal))),
            None => {
                let mut unguessable = vec![0; 16];
                self.random.fill_bytes(&mut unguessable);
                Some((Psk::new(unguessable)?, None))
            }
        }
    }

    fn continue_with(
        &mut self,
        now: Instant,
        handshake: HandshakeId,
        psks: (&Psk, Option<&Psk>),
        principals: [Option<P>; MAX_KEYS],
        out: &mut impl Outbox,
    ) {
        let HandshakeId { handle, claim } = handshake;
        let Some(progress) = self.handshakes.get_mut(handle) else { return };
        if !progress.handshake.awaits_psk(claim) {
            return;
        }
        progress.principals = principals;
        let step = progress.handshake.psk(claim, psks);
        self.take_step(now, handle, step, &mut Spent::default(), out);
    }

    /// Reports that the key cannot be looked up at the moment. When the client repeats its flight,
    /// the key is requested again.
    pub fn postpone_psk(&mut self, handshake: HandshakeId) {
        if let Some(progress) = self.handshakes.get_mut(handshake.handle) {
            progress.postpone(handshake.claim);
        }
    }

    /// Sends data in a session, as one record of at most [`max_data`](Self::max_data)
    /// bytes.
    pub fn send(&mut self, session: SessionId, data: &[u8], out: &mut impl Outbox) -> Delivery {
        if self.max_data(session).is_none_or(|most| data.len() > most) {
            return Delivery::Lost;
        }
        self.send_record(session.0, ContentType::ApplicationData, data, out)
    }

    /// Sends data like [`send`](Self::send), but to the client's most recently validated address.
    /// By the time that an address is validated, the client may have moved on to another.
    pub fn send_validated(&mut self, session: SessionId, data: &[u8], out: &mut impl Outbox) -> Delivery {
        if self.max_data(session).is_none_or(|most| data.len() > most) {
            return Delivery::Lost;
        }
        self.send_record_validated(session.0, data, out)
    }

    /// Marks a path of a session's client as validated. The application calls this when the client
    /// has shown that it receives datagrams on the path (RFC 9146 §6). For example, the client
    /// echoes a number that no one else could know.
    pub fn validate(&mut self, session: SessionId, path: Path) {
        let Some(current) = self.sessions.path(session.0) else { return };
        if let Some(session) = self.sessions.get_mut(session.0) {
            session.connection.validate(path, current);
        }
    }

    /// Returns whether the current address of a session's client is validated.
    pub fn is_validated(&self, session: SessionId) -> bool {
        self.sessions.get(session.0).is_some_and(|session| session.connection.is_validated())
    }

    /// Sets whether a request of the session is in progress. A session with a request in
    /// progress is evicted last.
    pub fn set_busy(&mut self, session: SessionId, is_busy: bool) {
        if let Some(session) = self.sessions.get_mut(session.0) {
            session.is_busy = is_busy;
        }
    }

    /// Sends close_notify and forgets the session.
    pub fn close(&mut self, session: SessionId, out: &mut impl Outbox) {
        self.end_session(session.0, Closed::ByUs, true, out);
    }

    /// Closes up to `most` sessions with a close_notify, beginning with those that have been idle
    /// longest. Returns the number of sessions left. A server calls this when it shuts down (RFC
    /// 5246 §7.2.1), so that its clients reconnect immediately and do not wait for answers.
    pub fn close_oldest(&mut self, most: usize, out: &mut impl Outbox) -> usize {
        for _ in 0..most {
            let Some((_, oldest)) = self.sessions.oldest() else { break };
            self.end_session(oldest, Closed::ByUs, true, out);
        }
        self.sessions.len()
    }

    /// Continues a walk over all sessions. Visits the next `most` slots of the session
    /// table and ends each session for which `is_over` returns true. Returns whether slots
    /// are left in this walk.
    pub fn close_where(
        &mut self,
        most: usize,
        mut is_over: impl FnMut(&mut P) -> bool,
        out: &mut impl Outbox,
    ) -> bool {
        let start = self.walk;
        let end = (start as usize + most).min(self.sessions.places());
        for index in start..end as u32 {
            if self.sessions.at_mut(index).is_some_and(|session| is_over(&mut session.principal))
                && let Some(handle) = self.sessions.handle_at(index)
            {
                self.end_session(handle, Closed::Revoked, true, out);
            }
        }
        let is_done = end >= self.sessions.places();
        self.walk = if is_done { 0 } else { end as u32 };
        !is_done
    }

    /// Restarts the walk of [`close_where`](Self::close_where).
    pub fn restart_walk(&mut self) {
        self.walk = 0;
    }

    /// Returns the time at which [`handle_timeout`](Self::handle_timeout) must be called next.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let queues = self.resend.iter().chain([&self.suspects]);
        let queued = queues.filter_map(|queue| queue.front().map(|&(at, _)| at));
        let handshake = self.handshakes.oldest().map(|(touched, _)| touched + self.config.handshake_timeout);
        let session = self.sessions.oldest().map(|(touched, _)| touched + self.config.session_idle);
        queued.chain(handshake).chain(session).min()
    }

    /// Resends flights, abandons handshakes and closes sessions whose time has come.
    pub fn handle_timeout(&mut self, now: Instant, out: &mut impl Outbox) {
        self.resend_flights(now, out);
        self.give_up_suspects(now, out);
        while let Some((touched, handle)) = self.handshakes.oldest() {
            if touched + self.config.handshake_timeout > now {
                break;
            }
            self.fail_handshake(handle, Failure::TimedOut);
        }
        while let Some((touched, handle)) = self.sessions.oldest() {
            if touched + self.config.session_idle > now {
                break;
            }
            self.end_session(handle, Closed::Idle, true, out);
        }
    }

    /// Returns whether the endpoint holds no handshake, session or timer of any client.
    #[cfg(any(test, feature = "testing"))]
    pub fn holds_no_state(&self) -> bool {
        self.handshakes.len() == 0
            && self.origins.is_empty()
            && self.sessions.len() == 0
            && self.by_connection_id.is_empty()
            && self.holders.is_empty()
            && self.shares.is_empty()
            && self.resend.iter().chain([&self.suspects]).all(VecDeque::is_empty)
    }

    #[cfg(test)]
    pub(super) fn set_next_write(&mut self, session: SessionId, sequence: u64) {
        if let Some(session) = self.sessions.get_mut(session.0) {
            session.set_next_write(sequence);
        }
    }
}

/// Returns the size of the IP and UDP headers on a path, in bytes.
fn ip_and_udp(path: Path) -> usize {
    match path.peer.ip().to_canonical() {
        std::net::IpAddr::V4(_) => 28,
        std::net::IpAddr::V6(_) => 48,
    }
}

/// Returns the timeout of a flight after `round` resends (RFC 6347 §4.2.4.1).
fn flight_timeout(config: &Config, round: usize) -> Duration {
    config.retransmission_timeout * (1 << round.min(MAX_RETRANSMISSIONS))
}

/// Returns the first byte of the connection ID in a datagram's first record, if that
/// record has one. When several endpoints share a port, this byte identifies the endpoint
/// that the datagram is for.
pub fn connection_id_prefix(datagram: &[u8]) -> Option<u8> {
    if datagram.first() == Some(&(ContentType::Tls12Cid as u8)) { datagram.get(11).copied() } else { None }
}
