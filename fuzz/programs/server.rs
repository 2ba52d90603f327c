//! The server of a program: the DTLS and CoAP endpoints, connected as in a worker of the
//! server, with an application that does what the program says. The ledger checks
//! everything that the server sends.

use std::{
    collections::{HashMap, VecDeque},
    time::{Duration, Instant},
};

use super::{device::Device, ledger::Ledger};
use crate::{
    coap,
    dtls::{
        self, Datagram, Delivery, Dropped, Event, HandshakeId, Holder, Path, Psk, SessionId,
        testing::KnownSecrets,
    },
};

/// Number of identities that have a key. The key of the last one is shared, and the key of
/// the one before it has no holder.
pub const IDENTITIES: usize = 4;
const MAX_HANDSHAKES: usize = 6;
const MAX_SESSIONS: usize = 5;
const SESSIONS_PER_HOLDER: usize = 2;
const MAX_TRANSFERS: usize = 4;
/// Maximum number of requested keys, and of requests in progress, that are kept for a
/// program to choose from.
const MAX_KEPT: usize = 32;
/// Maximum number of events after one call, and of timers until none is left. A run that
/// exceeds it is taken to be endless.
const MANY: usize = 10_000;
/// Time after which a ping to validate an address is sent again.
const ASK_AGAIN: Duration = Duration::from_secs(2);

pub fn identity_of(number: usize) -> String {
    format!("lamp-{number}")
}

pub fn key_of(number: usize) -> Psk {
    Psk::new(vec![number as u8 + 1; 16]).expect("16 bytes")
}

/// Time at which the application provides keys.
#[derive(Clone, Copy)]
pub enum Keys {
    AtOnce,
    Later,
    Refused,
    Postponed,
}

impl Keys {
    pub const ALL: [Self; 4] = [Self::AtOnce, Self::Later, Self::Refused, Self::Postponed];
}

/// Time at which the application answers requests.
#[derive(Clone, Copy)]
pub enum Work {
    AtOnce,
    Later,
    Never,
}

impl Work {
    pub const ALL: [Self; 3] = [Self::AtOnce, Self::Later, Self::Never];
}

/// Data that has reached the application.
pub struct Received {
    pub session: SessionId,
    /// Number of the identity to which the session belongs.
    pub identity: usize,
    pub data: Vec<u8>,
}

/// Counts of what programs have reached. A rule about something that never happens would
/// prove nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Reached {
    /// Sessions that were established.
    pub sessions: u64,
    /// Sessions among them with an ephemeral suite.
    pub ephemeral: u64,
    /// Handshakes that completed because their key was provided after the claim's
    /// datagram.
    pub late_keys: u64,
    /// Records that were delivered to the application.
    pub delivered: u64,
    /// CoAP requests among these records.
    pub requests: u64,
    /// Number of times that a client moved. `validated` counts the paths that were
    /// validated.
    pub moved: u64,
    pub validated: u64,
    /// Protected records that were dropped.
    pub bad_records: u64,
    /// Sessions that were evicted.
    pub evicted: u64,
    /// Handshakes that failed.
    pub failed: u64,
    /// Hellos dropped because their network had exceeded its budget for unfinished
    /// handshakes.
    pub over_budget: u64,
    /// Datagrams held back from addresses that were not validated.
    pub held_back: u64,
    /// Largest number of CoAP transfers at the same time.
    pub transfers: u64,
}

impl Reached {
    /// Returns all counts with their names.
    pub fn figures(&self) -> [(&'static str, u64); 13] {
        [
            ("sessions", self.sessions),
            ("ephemeral sessions", self.ephemeral),
            ("late keys", self.late_keys),
            ("records delivered", self.delivered),
            ("requests", self.requests),
            ("moves", self.moved),
            ("validated moves", self.validated),
            ("bad records", self.bad_records),
            ("evicted sessions", self.evicted),
            ("failed handshakes", self.failed),
            ("hellos over budget", self.over_budget),
            ("datagrams held back", self.held_back),
            ("transfers at once", self.transfers),
        ]
    }
}

#[derive(Default)]
struct Outgoing(Vec<(Path, Vec<u8>)>);

impl dtls::Outbox for Outgoing {
    fn push(&mut self, path: Path, datagram: &[u8]) {
        self.0.push((path, datagram.to_vec()));
    }
}

pub struct Server {
    dtls: dtls::Endpoint<usize>,
    coap: coap::Endpoint<SessionId>,
    pub now: Instant,
    pub keys: Keys,
    pub work: Work,
    /// Length of an answer's payload, in bytes.
    pub answer_length: usize,
    outgoing: Outgoing,
    sent: Vec<(Path, Vec<u8>)>,
    ledger: Ledger,
    sessions: HashMap<SessionId, Option<Holder>>,
    claims: VecDeque<(HandshakeId, Box<[u8]>)>,
    in_progress: VecDeque<coap::ExchangeId<SessionId>>,
    withheld: Vec<SessionId>,
    asked: HashMap<SessionId, (Path, Instant)>,
    reached: Reached,
    _secrets: KnownSecrets,
}

struct Sealing<'s> {
    dtls: &'s mut dtls::Endpoint<usize>,
    out: &'s mut Outgoing,
    withheld: &'s mut Vec<SessionId>,
    to_validated: bool,
}

impl coap::Outbox<SessionId> for Sealing<'_> {
    fn push(&mut self, session: SessionId, message: &[u8]) -> bool {
        let delivery = if self.to_validated {
            self.dtls.send_validated(session, message, self.out)
        } else {
            self.dtls.send(session, message, self.out)
        };
        if delivery == Delivery::Unvalidated {
            self.withheld.push(session);
        }
        delivery == Delivery::Sent
    }

    fn max_message(&self, session: SessionId) -> usize {
        self.dtls.max_data(session).unwrap_or(0)
    }
}

/// Makes the outbox of the CoAP endpoint. This is a macro because a method would borrow
/// the whole server.
macro_rules! sealing {
    ($server:ident, $to_validated:expr) => {
        &mut Sealing {
            dtls: &mut $server.dtls,
            out: &mut $server.outgoing,
            withheld: &mut $server.withheld,
            to_validated: $to_validated,
        }
    };
}

impl Server {
    /// Creates a server. The lowest bits of `kind` choose its configuration.
    pub fn new(kind: u8, secrets: KnownSecrets) -> Self {
        let now = Instant::now();
        let config = dtls::Config {
            require_extended_master_secret: kind & 1 != 0,
            connection_id_prefix: (kind & 6 != 0).then_some(0),
            path_mtu: if kind & 8 != 0 { dtls::MIN_PATH_MTU } else { 1280 },
            max_handshakes: MAX_HANDSHAKES,
            max_handshakes_per_address: MAX_HANDSHAKES / 2,
            max_sessions: MAX_SESSIONS,
            sessions_per_holder: SESSIONS_PER_HOLDER,
            unfinished_burst: Duration::from_millis(1),
            session_max_age: Duration::from_secs(600),
            ..dtls::Config::default()
        };
        let dtls = dtls::Endpoint::new(config, now, &[1; 32], [2; 32]);
        let config = coap::Config {
            max_transfers: MAX_TRANSFERS,
            max_exchanges: 4,
            max_request_body: 512,
            ..coap::Config::default()
        };
        Self {
            dtls,
            coap: coap::Endpoint::new(config, now, [3; 32]),
            now,
            keys: Keys::AtOnce,
            work: Work::AtOnce,
            answer_length: 100,
            outgoing: Outgoing::default(),
            sent: Vec::new(),
            ledger: Ledger::default(),
            sessions: HashMap::new(),
            claims: VecDeque::new(),
            in_progress: VecDeque::new(),
            withheld: Vec::new(),
            asked: HashMap::new(),
            reached: Reached::default(),
            _secrets: secrets,
        }
    }

    /// Processes a datagram. Returns the data in it that has reached the application.
    pub fn receive(&mut self, path: Path, bytes: &[u8]) -> Vec<Received> {
        self.ledger.received(path, bytes);
        let had_session = self.has_session(path);
        let moved = self.dtls.counters().moved;
        let (mut copy, mut received) = (bytes.to_vec(), Vec::new());
        let mut datagram = Datagram::new(path, &mut copy);
        while let Some(data) = self.dtls.receive(self.now, &mut datagram, &mut self.outgoing) {
            let (session, data) = (data.session, data.data.to_vec());
            let identity = *self.dtls.principal(session).expect("a session that data comes from");
            self.reached.delivered += 1;
            self.message(session, &data);
            received.push(Received { session, identity, data });
        }
        self.events();
        let answers = std::mem::take(&mut self.outgoing.0);
        // A session that this datagram moved to `path` may have been closed by it as well.
        let has_moved = self.dtls.counters().moved > moved;
        let has_session = had_session || has_moved || self.has_session(path);
        self.ledger.answered(path, bytes, &answers, has_session);
        self.sent.extend(answers);
        received
    }

    fn has_session(&self, path: Path) -> bool {
        self.sessions.keys().any(|&session| self.dtls.path(session) == Some(path))
    }

    fn message(&mut self, session: SessionId, data: &[u8]) {
        let Some(request) = self.coap.receive(self.now, session, data, sealing!(self, false)) else {
            if let Some(session) = self.coap.take_pong()
                && let Some((path, _)) = self.asked.remove(&session)
            {
                self.dtls.validate(session, path);
                self.ledger.validated(path);
                self.reached.validated += 1;
                self.coap.resume(session, sealing!(self, true));
            }
            return self.validate();
        };
        self.reached.requests += 1;
        let is_slow = request.path.first().is_some_and(|segment| segment == "slow");
        match self.work {
            Work::AtOnce if !is_slow => self.respond(request.exchange, self.answer_length),
            Work::AtOnce | Work::Later => {
                self.coap.defer(self.now, request.exchange);
                self.dtls.set_busy(session, true);
                if self.in_progress.len() == MAX_KEPT {
                    self.in_progress.pop_front();
                }
                self.in_progress.push_back(request.exchange);
            }
            Work::Never => {}
        }
    }

    fn respond(&mut self, exchange: coap::ExchangeId<SessionId>, length: usize) {
        let response = match length {
            0 => coap::Response::empty(coap::Code::Changed),
            8 => coap::Response::problem(coap::Code::NotFound, "unknown").with_max_age(60),
            _ => coap::Response::content(0, vec![0x55; length]).with_option(4, *b"tag"),
        };
        self.coap.respond(self.now, exchange, &response, sealing!(self, false));
        self.validate();
    }

    /// Pings the devices for which messages were withheld, to validate their addresses.
    fn validate(&mut self) {
        while let Some(session) = self.withheld.pop() {
            let Some(path) = self.dtls.path(session) else { continue };
            if let Some(&(asked, at)) = self.asked.get(&session) {
                if asked == path && self.now < at + ASK_AGAIN {
                    continue;
                }
                if asked != path {
                    self.coap.end_ping(session);
                }
            }
            if self.coap.ping(session, sealing!(self, false)) {
                self.asked.insert(session, (path, self.now));
            }
            // If the ping was withheld too, it is sent again when the next message is
            // withheld.
            self.withheld.retain(|&other| other != session);
        }
    }

    fn events(&mut self) {
        for _ in 0..MANY {
            let Some(event) = self.dtls.poll_event() else { return };
            match event {
                Event::PskNeeded { handshake, identity } => {
                    if self.claims.len() == MAX_KEPT {
                        self.claims.pop_front();
                    }
                    self.claims.push_back((handshake, identity.clone()));
                    match self.keys {
                        Keys::AtOnce => self.provide(handshake, &identity, true),
                        Keys::Refused => self.provide(handshake, &identity, false),
                        Keys::Postponed => self.dtls.postpone_psk(handshake),
                        Keys::Later => {}
                    }
                }
                Event::Established { session, peer } => {
                    let identity = *self.dtls.principal(session).expect("a session that was established");
                    assert_eq!(self.dtls.peer(session), Some(peer));
                    let before = self.sessions.insert(session, holder_of(identity));
                    assert!(before.is_none(), "a session was established twice");
                }
                Event::Closed { session, .. } => {
                    assert!(self.sessions.remove(&session).is_some(), "a session was closed twice");
                    assert!(self.dtls.principal(session).is_none());
                    self.coap.forget(session);
                    self.asked.remove(&session);
                }
                Event::OverBudget { .. } | Event::HandshakeFailed { .. } => {}
            }
        }
        panic!("events without end");
    }

    fn provide(&mut self, handshake: HandshakeId, identity: &[u8], is_known: bool) {
        let number = (0..IDENTITIES).find(|&number| identity_of(number).as_bytes() == identity);
        let number = number.filter(|_| is_known);
        if let Some(holder) = number.and_then(holder_of) {
            self.dtls.bind_holder(handshake, holder);
        }
        let key = number.map(|number| (key_of(number), number));
        self.dtls.provide_psk(self.now, handshake, key, &mut self.outgoing);
    }

    /// Answers one of the kept claims, with its key or without a key.
    pub fn answer_claim(&mut self, claim: usize, is_known: bool) {
        let Some(at) = claim.checked_rem(self.claims.len()) else { return };
        let (handshake, identity) = self.claims[at].clone();
        let before = self.dtls.counters().handshakes_completed;
        self.provide(handshake, &identity, is_known);
        self.reached.late_keys += self.dtls.counters().handshakes_completed - before;
        self.settle();
    }

    /// Answers one of the kept requests.
    pub fn finish(&mut self, request: usize, length: usize) {
        let Some(at) = request.checked_rem(self.in_progress.len()) else { return };
        let Some(exchange) = self.in_progress.remove(at) else { return };
        let is_busy = self.in_progress.iter().any(|other| other.peer == exchange.peer);
        self.dtls.set_busy(exchange.peer, is_busy);
        self.respond(exchange, length);
        self.settle();
    }

    fn session(&self, number: usize) -> Option<SessionId> {
        let mut sessions: Vec<_> = self.sessions.keys().copied().collect();
        sessions.sort();
        number.checked_rem(sessions.len()).map(|at| sessions[at])
    }

    /// Sends data that is not a CoAP message.
    pub fn send(&mut self, session: usize, data: &[u8]) {
        if let Some(session) = self.session(session) {
            self.dtls.send(session, data, &mut self.outgoing);
            self.settle();
        }
    }

    /// Carries out an action that no client has caused.
    pub fn administrate(&mut self, what: usize, which: usize) {
        match (what, self.session(which >> 1)) {
            (0, Some(session)) => self.dtls.close(session, &mut self.outgoing),
            (1, _) => drop(self.dtls.close_oldest(which % 4, &mut self.outgoing)),
            (2, Some(session)) => self.dtls.set_busy(session, which & 1 != 0),
            (3, _) => {
                let is_over = |identity: &mut usize| *identity == which % IDENTITIES;
                self.dtls.close_where(which >> 2, is_over, &mut self.outgoing);
            }
            (4, Some(session)) => drop(self.dtls.send_validated(session, b"data", &mut self.outgoing)),
            _ => self.dtls.restart_walk(),
        }
        self.settle();
    }

    /// Processes the events and outgoing datagrams that did not arise in
    /// [`receive`](Self::receive).
    fn settle(&mut self) {
        self.events();
        let sent = std::mem::take(&mut self.outgoing.0);
        self.ledger.sent(&sent);
        self.sent.extend(sent);
    }

    pub fn advance(&mut self, by: Duration) {
        self.now += by;
        self.dtls.handle_timeout(self.now, &mut self.outgoing);
        self.events();
        self.coap.handle_timeout(self.now, sealing!(self, false));
        self.validate();
        self.settle();
        assert!(self.poll_timeout().is_none_or(|at| at > self.now), "a timer that is due stays so");
    }

    fn poll_timeout(&self) -> Option<Instant> {
        [self.dtls.poll_timeout(), self.coap.poll_timeout()].into_iter().flatten().min()
    }

    /// Lets time pass until no timer is left.
    pub fn idle_out(&mut self) {
        for _ in 0..MANY {
            let Some(at) = self.poll_timeout() else { return };
            self.advance(at.saturating_duration_since(self.now));
            self.sent.clear();
        }
        panic!("timers without end");
    }

    /// Returns the datagrams sent since the last call, and checks their record numbers.
    pub fn take_sent(&mut self, devices: &[Device]) -> Vec<(Path, Vec<u8>)> {
        let sent = std::mem::take(&mut self.sent);
        for (path, datagram) in &sent {
            self.ledger.records(*path, datagram, devices);
        }
        sent
    }

    /// Starts a new ledger, for new devices.
    pub fn forget_devices(&mut self) {
        self.ledger = Ledger::default();
    }

    /// Returns the counts so far.
    pub fn reached(&self) -> Reached {
        let counters = self.dtls.counters();
        let [ephemeral @ .., _, _, _] = counters.completed_by_suite;
        Reached {
            sessions: counters.handshakes_completed,
            ephemeral: ephemeral.iter().sum(),
            moved: counters.moved,
            bad_records: counters.bad_records,
            evicted: counters.evicted,
            failed: counters.handshakes_failed,
            over_budget: counters.dropped(Dropped::OverBudget),
            held_back: counters.dropped(Dropped::Unvalidated),
            ..self.reached
        }
    }

    pub fn assert_bounded(&mut self) {
        let (handshakes, sessions) = (self.dtls.handshakes(), self.dtls.sessions());
        assert!(handshakes <= MAX_HANDSHAKES, "{handshakes} handshakes");
        assert!(sessions <= MAX_SESSIONS, "{sessions} sessions");
        assert_eq!(sessions, self.sessions.len(), "sessions without events");
        if sessions == 0 {
            assert!(self.coap.holds_no_state(), "CoAP still holds state of a client that is gone");
            assert!(self.asked.is_empty(), "somebody who is gone is asked where he is");
        }
        let (peers, transfers) = (self.coap.peers(), self.coap.transfers());
        assert!(peers <= sessions, "CoAP remembers {peers} peers of {sessions} sessions");
        assert!(transfers <= MAX_TRANSFERS, "{transfers} transfers");
        self.reached.transfers = self.reached.transfers.max(transfers as u64);
        for number in 0..IDENTITIES - 2 {
            let holder = holder_of(number);
            let held = self.sessions.values().filter(|&&other| other == holder).count();
            assert!(held <= SESSIONS_PER_HOLDER, "{held} sessions of one holder");
        }
    }

    pub fn assert_no_state(&self) {
        assert!(self.dtls.holds_no_state(), "DTLS still holds state");
        assert!(self.coap.holds_no_state(), "CoAP still holds state");
        assert!(self.asked.is_empty() && self.withheld.is_empty(), "somebody is still asked where he is");
    }
}

fn holder_of(identity: usize) -> Option<Holder> {
    match identity {
        3 => Some(Holder::Shared(3)),
        2 => None,
        number => Some(Holder::Device(number as u64)),
    }
}
