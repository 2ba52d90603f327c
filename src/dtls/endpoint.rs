//! The endpoint: what the application sees, limits and timers. Datagrams are read
//! here; handshakes are begun, gone on with and ended in `handshakes`, sessions in
//! `sessions`. What is inside a handshake is `handshake`'s, inside a session
//! `session`'s.

mod handshakes;
mod sessions;

use std::{
    collections::{HashMap, VecDeque},
    hash::RandomState,
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
    cookie::CookieJar,
    holders::Holders,
    origins::Origins,
    record::{self, ConnectionId, ContentType, Records},
    session::Session,
    table::{Handle, Table},
};

/// Names a handshake in progress, and which of the client's claims is looked into.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct HandshakeId {
    handle: Handle,
    claim: u32,
}

/// Names an established session; never reused by the same endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionId(Handle);

/// Holder of a key, as far as the number of its sessions is concerned. The number names
/// it among all: a hash under a random key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holder {
    /// One device, wherever it is.
    Device(u64),
    /// Many devices with one key: they count by the address and port of each.
    Shared(u64),
}

/// Times that a flight is sent again by its timer. With a first time-out of 1 s, the
/// last one is 16 s after the one before; after that, the client's own timer asks for it.
const MAX_RETRANSMISSIONS: usize = 5;

/// A datagram as it was received, and how far [`Endpoint::receive`] has read it.
pub struct Datagram<'d> {
    path: Path,
    records: Records<'d>,
    spent: Spent,
}

/// Answers that a datagram has had: each kind once, however much is packed into it.
#[derive(Default)]
struct Spent {
    /// The beginning of a ClientHello was looked at.
    hello: bool,
    /// A ClientKeyExchange was looked into.
    claim: bool,
    /// A flight was sent again.
    flight: bool,
    /// Its IP and UDP headers were counted.
    headers: bool,
}

impl<'d> Datagram<'d> {
    /// The bytes are decrypted in place.
    pub fn new(path: impl Into<Path>, bytes: &'d mut [u8]) -> Self {
        Self { path: path.into(), records: Records::new(bytes), spent: Spent::default() }
    }
}

/// Data that a client sent inside its session.
#[derive(Debug)]
pub struct ApplicationData<'d> {
    /// From which session.
    pub session: SessionId,
    /// One record's payload, not empty.
    pub data: &'d mut [u8],
}

/// Result of [`Endpoint::send`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Delivery {
    /// The data is on its way.
    Sent,
    /// The client has moved, was not yet shown to receive where it is now, and has not
    /// sent enough from there (RFC 9146 §6): nothing was sent. Once
    /// [`Endpoint::validate`] was called the data may be sent.
    Unvalidated,
    /// The session is gone, or the data longer than it may be.
    Lost,
}

/// Events so far, for metrics.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// HelloVerifyRequests sent.
    pub hello_verify_requests: u64,
    /// Handshakes begun with a good cookie.
    pub handshakes_started: u64,
    /// Handshakes that became sessions.
    pub handshakes_completed: u64,
    /// Of them, those with each suite, in the order of [`super::Suite::ALL`].
    pub completed_by_suite: [u64; super::Suite::ALL.len()],
    /// Handshakes that came to nothing.
    pub handshakes_failed: u64,
    /// Handshakes begun by a hello that came again after its session.
    pub late_hellos: u64,
    /// Drops in silence, in the order of [`Dropped::ALL`].
    pub dropped: [u64; Dropped::ALL.len()],
    /// Flights sent again.
    pub retransmissions: u64,
    /// Protected records that no key opened, and replays.
    pub bad_records: u64,
    /// Sessions that went on from another address.
    pub moved: u64,
    /// Sessions ended because whoever holds their key has too many, or because the table
    /// was full.
    pub evicted: u64,
}

/// Reasons for which something is dropped without a word to the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dropped {
    /// A hello with a good cookie: too many handshakes of its network came to nothing.
    OverBudget,
    /// A handshake message that was not valid, or one too many.
    Message,
    /// A repetition of a flight that was asked for too soon after the last.
    Flight,
    /// A record for an address where the client was not yet shown to receive.
    Unvalidated,
}

impl Dropped {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::OverBudget, Self::Message, Self::Flight, Self::Unvalidated];

    /// Its name in metrics.
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
    /// Drops for this reason.
    pub fn dropped(&self, reason: Dropped) -> u64 {
        self.dropped[reason as usize]
    }

    fn drop(&mut self, reason: Dropped) {
        self.dropped[reason as usize] += 1;
    }
}

/// A DTLS server endpoint. `P` is what the application binds to a session when
/// it provides the key: who the client is.
pub struct Endpoint<P> {
    config: Config,
    made: Instant,
    cookies: CookieJar,
    /// For what everybody may see, and for keys that nobody has. Secrets come from the
    /// system: the state of a generator would lead back to them.
    random: StdRng,
    /// Under which holders and completions are known by their hashes.
    hasher: RandomState,
    handshakes: Table<Progress<P>>,
    origins: Origins,
    budget: Budget,
    told_over_budget: Option<Instant>,
    completions: Completions,
    /// While a client that lost its state makes a new handshake, its old session
    /// lives on (RFC 6347 §4.2.8): a path may be in both tables.
    sessions: Table<Session<P>>,
    by_connection_id: HashMap<ConnectionId, Handle>,
    holders: Holders,
    shares: Shares,
    /// Flights to send again: a queue for each time-out, so that each queue is
    /// in order of time by itself. Entries of handshakes that went on are stale.
    resend: [VecDeque<(Instant, Handle)>; MAX_RETRANSMISSIONS],
    /// Handshakes to be given up because a record failed under their keys, and no other
    /// has succeeded by then; in order of time.
    suspects: VecDeque<(Instant, Handle)>,
    events: VecDeque<Event>,
    /// Place of the session that [`close_where`](Self::close_where) looks at next.
    walk: u32,
    /// A session has ended since the stack was last wiped.
    has_closed: bool,
    counters: Counters,
    /// The datagram being built.
    buffer: Vec<u8>,
}

impl<P> Endpoint<P> {
    /// `cookie_secret` may be shared by endpoints that stand in for each other;
    /// `seed` must not be. Both are random.
    pub fn new(config: Config, now: Instant, cookie_secret: &[u8; 32], seed: [u8; 32]) -> Self {
        Self {
            made: now,
            cookies: CookieJar::new(cookie_secret, now, config.cookie_period),
            random: StdRng::from_seed(seed),
            hasher: RandomState::new(),
            handshakes: Table::new(now),
            origins: Origins::default(),
            budget: Budget::new(now, config.unfinished_burst, config.unfinished_per_second),
            told_over_budget: None,
            completions: Completions::default(),
            sessions: Table::new(now),
            by_connection_id: HashMap::new(),
            holders: Holders::default(),
            shares: Shares::default(),
            resend: Default::default(),
            suspects: VecDeque::new(),
            events: VecDeque::new(),
            walk: 0,
            has_closed: false,
            counters: Counters::default(),
            buffer: Vec::with_capacity(2048),
            config,
        }
    }

    /// Sessions held.
    pub fn sessions(&self) -> usize {
        self.sessions.len()
    }

    /// Handshakes in progress.
    pub fn handshakes(&self) -> usize {
        self.handshakes.len()
    }

    /// Events so far.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// The principal that the application bound to a session.
    pub fn principal(&self, session: SessionId) -> Option<&P> {
        self.sessions.get(session.0).map(|session| &session.principal)
    }

    /// The same, to be changed.
    pub fn principal_mut(&mut self, session: SessionId) -> Option<&mut P> {
        self.sessions.get_mut(session.0).map(|session| &mut session.principal)
    }

    /// The address of a session's client.
    pub fn peer(&self, session: SessionId) -> Option<SocketAddr> {
        self.path(session).map(|path| path.peer)
    }

    /// The path on which a session's client was last heard.
    pub fn path(&self, session: SessionId) -> Option<Path> {
        self.sessions.path(session.0)
    }

    /// Most bytes of data that one record to this client may hold: what the client
    /// takes (RFC 6066 §4, RFC 8449), and what one datagram does.
    pub fn max_data(&self, session: SessionId) -> Option<usize> {
        let connection = &self.sessions.get(session.0)?.connection;
        let overhead = record::MAX_OVERHEAD + connection.client_id().len();
        Some(connection.max_data().min(self.config.max_datagram() - overhead))
    }

    /// The next event. To be called until `None` after each other call.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// Wipes the stack below the caller, if a session has ended since the last time. To be
    /// called by what may end one, as its own frame is left out.
    #[inline(always)]
    fn wipe_after_close(&mut self) {
        if std::mem::take(&mut self.has_closed) {
            wipe_stack();
        }
    }

    /// Reads on in a datagram: answers with the next data of a session, and with
    /// `None` when the datagram is used up. Nothing in a datagram is an error:
    /// what is not valid is dropped (RFC 6347 §4.1.2.7).
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
                // There is no second epoch without renegotiation.
                _ => {}
            }
        }
        self.wipe_after_close();
        None
    }

    /// Says who holds the key of a handshake, before it is provided, so that the
    /// sessions of one holder are few ([`Config::sessions_per_holder`]).
    pub fn bind_holder(&mut self, handshake: HandshakeId, holder: Holder) {
        if let Some(progress) = self.handshakes.get_mut(handshake.handle) {
            progress.holder = Some(holder);
        }
    }

    /// Goes on with the handshake: with the key of its identity and who that is,
    /// or with `None` when there is no such identity. Then the handshake goes on
    /// with a key that nobody knows, so that the client cannot tell the two
    /// apart (RFC 4279 §2).
    pub fn provide_psk(
        &mut self,
        now: Instant,
        handshake: HandshakeId,
        key: Option<(Psk, P)>,
        out: &mut impl Outbox,
    ) {
        let (psk, principal) = match key {
            Some((psk, principal)) => (psk, Some(principal)),
            None => {
                let mut unguessable = vec![0; 16];
                self.random.fill_bytes(&mut unguessable);
                let Some(psk) = Psk::new(unguessable) else { return };
                (psk, None)
            }
        };
        let HandshakeId { handle, claim } = handshake;
        let Some(progress) = self.handshakes.get_mut(handle) else { return };
        if !progress.handshake.awaits_psk(claim) {
            return;
        }
        progress.principal = principal;
        let step = progress.handshake.psk(claim, &psk);
        self.take_step(now, handle, step, &mut Spent::default(), out);
    }

    /// Says that the key could not be looked up now: when the client repeats its
    /// flight, it is asked for again.
    pub fn postpone_psk(&mut self, handshake: HandshakeId) {
        if let Some(progress) = self.handshakes.get_mut(handshake.handle) {
            progress.postpone(handshake.claim);
        }
    }

    /// Sends data in a session, as one record of at most [`max_data`](Self::max_data).
    pub fn send(&mut self, session: SessionId, data: &[u8], out: &mut impl Outbox) -> Delivery {
        if self.max_data(session).is_none_or(|most| data.len() > most) {
            return Delivery::Lost;
        }
        self.send_record(session.0, ContentType::ApplicationData, data, out)
    }

    /// Sends data as [`send`](Self::send) does, to where the client was last shown to
    /// receive: for a client that has moved on while that was being shown.
    pub fn send_validated(&mut self, session: SessionId, data: &[u8], out: &mut impl Outbox) -> Delivery {
        if self.max_data(session).is_none_or(|most| data.len() > most) {
            return Delivery::Lost;
        }
        self.send_record_validated(session.0, data, out)
    }

    /// Notes that a session's client was shown to receive on this path, for example by
    /// an answer to a message whose number nobody else could know (RFC 9146 §6).
    pub fn validate(&mut self, session: SessionId, path: Path) {
        let Some(current) = self.sessions.path(session.0) else { return };
        if let Some(session) = self.sessions.get_mut(session.0) {
            session.connection.validate(path, current);
        }
    }

    /// Returns whether a session's client was shown to receive where it is now.
    pub fn is_validated(&self, session: SessionId) -> bool {
        self.sessions.get(session.0).is_some_and(|session| session.connection.is_validated())
    }

    /// Says whether a request of the session is being worked on: then it is the last to
    /// make room for others.
    pub fn set_busy(&mut self, session: SessionId, is_busy: bool) {
        if let Some(session) = self.sessions.get_mut(session.0) {
            session.is_busy = is_busy;
        }
    }

    /// Says close_notify and forgets the session.
    pub fn close(&mut self, session: SessionId, out: &mut impl Outbox) {
        self.end_session(session.0, Closed::ByUs, true, out);
        self.wipe_after_close();
    }

    /// Says close_notify to as many sessions as `most` and forgets them, those idle
    /// longest first. Returns how many are left. For a server that ends (RFC 5246
    /// §7.2.1): its clients begin again at once instead of waiting for an answer.
    pub fn close_oldest(&mut self, most: usize, out: &mut impl Outbox) -> usize {
        for _ in 0..most {
            let Some((_, oldest)) = self.sessions.oldest() else { break };
            self.end_session(oldest, Closed::ByUs, true, out);
        }
        self.wipe_after_close();
        self.sessions.len()
    }

    /// Goes on with a walk over all sessions, by `most` of them, and ends those of which
    /// `is_over` says so. Returns whether some are left to be looked at in this walk.
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
        self.wipe_after_close();
        let is_done = end >= self.sessions.places();
        self.walk = if is_done { 0 } else { end as u32 };
        !is_done
    }

    /// Begins the walk of [`close_where`](Self::close_where) again.
    pub fn restart_walk(&mut self) {
        self.walk = 0;
    }

    /// When [`handle_timeout`](Self::handle_timeout) wants to be called next.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let queues = self.resend.iter().chain([&self.suspects]);
        let queued = queues.filter_map(|queue| queue.front().map(|&(at, _)| at));
        let handshake = self.handshakes.oldest().map(|(touched, _)| touched + self.config.handshake_timeout);
        let session = self.sessions.oldest().map(|(touched, _)| touched + self.config.session_idle);
        queued.chain(handshake).chain(session).min()
    }

    /// Sends flights again, gives up handshakes and closes sessions whose time
    /// has come.
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
        self.wipe_after_close();
    }

    /// Returns whether nothing is kept of any client.
    #[cfg(any(test, feature = "testing"))]
    pub fn remembers_nobody(&self) -> bool {
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

/// Depth of the stack that the ciphers need at most, in bytes: without optimization,
/// frames are several times as large.
const CIPHER_STACK: usize = if cfg!(debug_assertions) { 64 << 10 } else { 12 << 10 };

/// Overwrites the part of the stack where the ciphers have worked: they leave copies of
/// keys in frames that are gone, and the last session's would stay there until the next
/// one's.
#[inline(never)]
fn wipe_stack() {
    // Written as a whole: a volatile write for each byte took 10 us a device.
    std::hint::black_box(&mut [0u8; CIPHER_STACK]);
}

/// Bytes of IP's and UDP's headers on a path.
fn ip_and_udp(path: Path) -> usize {
    match path.peer.ip().to_canonical() {
        std::net::IpAddr::V4(_) => 28,
        std::net::IpAddr::V6(_) => 48,
    }
}

/// Time-out of a flight that was sent again so often (RFC 6347 §4.2.4.1).
fn flight_timeout(config: &Config, round: usize) -> Duration {
    config.retransmission_timeout * (1 << round.min(MAX_RETRANSMISSIONS))
}

/// The first byte of the connection ID of a datagram's first record, if it bears
/// one: which of several endpoints on one port it is for.
pub fn connection_id_prefix(datagram: &[u8]) -> Option<u8> {
    if datagram.first() == Some(&(ContentType::Tls12Cid as u8)) { datagram.get(11).copied() } else { None }
}
