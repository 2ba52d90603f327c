//! The endpoint: which record belongs to which handshake or session, the cookie
//! exchange before there is either, limits, timers, and what the application
//! sees. What is inside a handshake is `handshake`'s, inside a session `session`'s.

use std::{
    collections::{HashMap, VecDeque},
    net::SocketAddr,
    time::Instant,
};

use rand::{Rng, SeedableRng, rngs::StdRng};

use super::{
    Closed, Config, Event, Failure, Outbox, Path, Psk,
    cookie::CookieJar,
    handshake::{Completed, Handshake, Offer, Step},
    message::{self, Alert, Fragment, HelloPrefix},
    origins::Origins,
    record::{self, ConnectionId, ContentType, DTLS_1_0, Header, Record, Records},
    session::{Opened, Sealed, Session},
    table::{Handle, Table},
    wire::Reader,
};

/// Names a handshake in progress.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct HandshakeId(Handle);

/// Names an established session; never reused by the same endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionId(Handle);

/// Times that a flight is sent again. With a first time-out of 1 s, the last
/// one is 16 s after the one before, and a handshake is over after 30 s anyway.
const MAX_RETRANSMISSIONS: usize = 5;

/// A datagram as it was received, and how far [`Endpoint::receive`] has read it.
pub struct Datagram<'d> {
    path: Path,
    records: Records<'d>,
}

impl<'d> Datagram<'d> {
    /// The bytes are decrypted in place.
    pub fn new(path: impl Into<Path>, bytes: &'d mut [u8]) -> Self {
        Self { path: path.into(), records: Records::new(bytes) }
    }
}

/// What a client sent inside its session.
#[derive(Debug)]
pub struct ApplicationData<'d> {
    /// From which session.
    pub session: SessionId,
    /// One record's payload, not empty.
    pub data: &'d mut [u8],
}

/// What happened so far, for metrics.
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
    /// Flights sent again.
    pub retransmissions: u64,
    /// Protected records that no key opened, and replays.
    pub bad_records: u64,
    /// Sessions that went on from another address.
    pub moved: u64,
}

/// A handshake, and whose key it goes on with.
struct Progress<P> {
    handshake: Handshake,
    principal: Option<P>,
}

/// A DTLS server endpoint. `P` is what the application binds to a session when
/// it provides the key: who the client is.
pub struct Endpoint<P> {
    config: Config,
    cookies: CookieJar,
    random: StdRng,
    handshakes: Table<Progress<P>>,
    origins: Origins,
    /// While a client that lost its state makes a new handshake, its old session
    /// lives on (RFC 6347 §4.2.8): an address may be in both tables.
    sessions: Table<Session<P>>,
    by_connection_id: HashMap<ConnectionId, Handle>,
    /// Flights to send again: a queue for each time-out, so that each queue is
    /// in order of time by itself. Entries of handshakes that went on are stale.
    resend: [VecDeque<(Instant, Handle)>; MAX_RETRANSMISSIONS],
    events: VecDeque<Event>,
    counters: Counters,
    /// The datagram being built.
    buffer: Vec<u8>,
}

impl<P> Endpoint<P> {
    /// `cookie_secret` may be shared by endpoints that stand in for each other;
    /// `seed` must not be. Both are random.
    pub fn new(config: Config, now: Instant, cookie_secret: &[u8; 32], seed: [u8; 32]) -> Self {
        Self {
            cookies: CookieJar::new(cookie_secret, now, config.cookie_period),
            config,
            random: StdRng::from_seed(seed),
            handshakes: Table::new(now),
            origins: Origins::default(),
            sessions: Table::new(now),
            by_connection_id: HashMap::new(),
            resend: Default::default(),
            events: VecDeque::new(),
            counters: Counters::default(),
            buffer: Vec::with_capacity(2048),
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

    /// What happened so far.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// What the application bound to a session.
    pub fn principal(&self, session: SessionId) -> Option<&P> {
        self.sessions.get(session.0).map(|session| &session.principal)
    }

    /// Where a session's client is.
    pub fn peer(&self, session: SessionId) -> Option<SocketAddr> {
        self.sessions.path(session.0).map(|path| path.peer)
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

    /// Reads on in a datagram: answers with the next data of a session, and with
    /// `None` when the datagram is used up. Nothing in a datagram is an error:
    /// what is not valid is dropped (RFC 6347 §4.1.2.7).
    pub fn receive<'d>(
        &mut self,
        now: Instant,
        datagram: &mut Datagram<'d>,
        out: &mut impl Outbox,
    ) -> Option<ApplicationData<'d>> {
        let path = datagram.path;
        while let Some(record) = datagram.records.next() {
            match record.header.epoch {
                0 => self.plaintext(now, path, record.header, record.payload, out),
                1 => {
                    if let Some(received) = self.protected(now, path, record, out) {
                        return Some(received);
                    }
                }
                // There is no second epoch without renegotiation.
                _ => {}
            }
        }
        None
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
        let Some(progress) = self.handshakes.get_mut(handshake.0) else { return };
        progress.principal = principal;
        let step = progress.handshake.psk(&psk);
        self.take_step(now, handshake.0, step, out);
    }

    /// Sends data in a session, as one record. `false` when the session is gone,
    /// or the data longer than [`max_data`](Self::max_data).
    pub fn send(&mut self, session: SessionId, data: &[u8], out: &mut impl Outbox) -> bool {
        if self.max_data(session).is_none_or(|most| data.len() > most) {
            return false;
        }
        self.send_record(session.0, ContentType::ApplicationData, data, out)
    }

    /// Says close_notify and forgets the session.
    pub fn close(&mut self, session: SessionId, out: &mut impl Outbox) {
        self.end_session(session.0, Closed::ByUs, true, out);
    }

    /// When [`handle_timeout`](Self::handle_timeout) wants to be called next.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let mut next: Option<Instant> = None;
        let mut consider = |at: Instant| next = Some(next.map_or(at, |next| next.min(at)));
        for queue in &self.resend {
            if let Some(&(at, _)) = queue.front() {
                consider(at);
            }
        }
        if let Some((started, _)) = self.handshakes.oldest() {
            consider(started + self.config.handshake_timeout);
        }
        if let Some((touched, _)) = self.sessions.oldest() {
            consider(touched + self.config.session_idle);
        }
        next
    }

    /// Sends flights again, gives up handshakes and closes sessions whose time
    /// has come.
    pub fn handle_timeout(&mut self, now: Instant, out: &mut impl Outbox) {
        for round in 0..MAX_RETRANSMISSIONS {
            while let Some(&(at, handle)) = self.resend[round].front() {
                if at > now {
                    break;
                }
                self.resend[round].pop_front();
                if awaits_client(&self.handshakes, handle) {
                    self.counters.retransmissions += 1;
                    self.send_flight(handle, out);
                    self.schedule_resend(now, round + 1, handle);
                }
            }
        }
        while let Some((started, handle)) = self.handshakes.oldest() {
            if started + self.config.handshake_timeout > now {
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

    fn plaintext(&mut self, now: Instant, path: Path, header: Header, payload: &[u8], out: &mut impl Outbox) {
        match header.kind {
            ContentType::Handshake => {
                let mut reader = Reader::new(payload);
                while !reader.is_empty() {
                    let Ok(fragment) = Fragment::read(&mut reader) else { return };
                    self.fragment(now, path, header, &fragment, out);
                }
            }
            ContentType::ChangeCipherSpec if payload == [1] => {
                let Some(handle) = self.handshakes.of(path) else { return };
                let Some(progress) = self.handshakes.get_mut(handle) else { return };
                let step = progress.handshake.change_cipher_spec();
                self.take_step(now, handle, step, out);
            }
            // Anybody can send a plaintext alert in the client's name. What a
            // real one tells, the time-out finds out as well.
            _ => {}
        }
    }

    fn fragment(
        &mut self,
        now: Instant,
        path: Path,
        header: Header,
        fragment: &Fragment<'_>,
        out: &mut impl Outbox,
    ) {
        let handle = if fragment.kind == message::CLIENT_HELLO && fragment.offset == 0 {
            self.hello(now, path, header, fragment, out)
        } else {
            self.handshakes.of(path)
        };
        let Some(handle) = handle else { return };
        let Some(progress) = self.handshakes.get_mut(handle) else { return };
        let offer = Offer {
            suites: &self.config.suites,
            require_extended_master_secret: self.config.require_extended_master_secret,
            connection_id_prefix: self.config.connection_id_prefix,
        };
        let step = progress.handshake.fragment(fragment, &offer, &mut self.random);
        self.take_step(now, handle, step, out);
    }

    /// The beginning of a ClientHello: of the handshake that it belongs to, of a
    /// new one when its cookie is good, and otherwise of nothing.
    fn hello(
        &mut self,
        now: Instant,
        path: Path,
        header: Header,
        fragment: &Fragment<'_>,
        out: &mut impl Outbox,
    ) -> Option<Handle> {
        let prefix = HelloPrefix::read(&mut Reader::new(fragment.body)).ok()?;
        let current = self.handshakes.of(path);
        if let Some(progress) = current.and_then(|handle| self.handshakes.get(handle))
            && progress.handshake.began_with(&prefix.random, fragment.sequence)
        {
            return current;
        }
        if !self.cookies.accepts(now, path.peer, &prefix.random, prefix.cookie) {
            self.verify_hello(now, path, header, fragment.body.len(), &prefix.random, out);
            return None;
        }
        if let Some(handle) = current {
            self.fail_handshake(handle, Failure::Replaced);
        }
        if self.handshakes.len() >= self.config.max_handshakes
            && let Some((_, oldest)) = self.handshakes.oldest()
        {
            self.fail_handshake(oldest, Failure::Evicted);
        }
        self.counters.handshakes_started += 1;
        let handshake = Handshake::new(prefix.random, fragment.sequence, header.sequence);
        let handle = self.handshakes.insert(now, path, Progress { handshake, principal: None });
        let limit = self.config.max_handshakes_per_address;
        let handshakes = &self.handshakes;
        if let Some(oldest) =
            self.origins.begin(path.peer, handle, limit, |handle| handshakes.get(handle).is_some())
        {
            self.fail_handshake(oldest, Failure::Evicted);
        }
        Some(handle)
    }

    /// RFC 6347 §4.2.1: asks a stranger to show that it receives at its address,
    /// and keeps nothing. The answer is never longer than the question.
    fn verify_hello(
        &mut self,
        now: Instant,
        path: Path,
        header: Header,
        hello_length: usize,
        random: &[u8; 32],
        out: &mut impl Outbox,
    ) {
        let cookie = self.cookies.make(now, path.peer, random);
        if message::HELLO_VERIFY_REQUEST_LENGTH > message::HEADER + hello_length {
            return;
        }
        self.counters.hello_verify_requests += 1;
        self.buffer.clear();
        // The server's record number is the client's, which needs no state.
        let header = Header { kind: ContentType::Handshake, epoch: 0, sequence: header.sequence };
        record::put_header(&mut self.buffer, header, DTLS_1_0, &[], message::HELLO_VERIFY_REQUEST_LENGTH);
        message::put_hello_verify_request(&mut self.buffer, &cookie);
        out.push(path, &self.buffer);
    }

    /// Reads a record of epoch 1. When an address has both a session and a
    /// handshake, only the keys tell which of them the record belongs to.
    fn protected<'d>(
        &mut self,
        now: Instant,
        path: Path,
        record: Record<'d>,
        out: &mut impl Outbox,
    ) -> Option<ApplicationData<'d>> {
        let Record { header, connection_id, payload } = record;
        let session = match connection_id {
            Some(id) => self.by_connection_id.get(&id).copied(),
            None => self.sessions.of(path),
        };
        // RFC 9146 §3: once IDs are agreed on, a record without is not taken.
        let handshake = self.handshakes.of(path).filter(|&handle| {
            self.handshakes
                .get(handle)
                .is_some_and(|progress| progress.handshake.connection_id() == connection_id)
        });
        if let Some(handle) = session {
            // A record that fails to decrypt is garbage afterwards.
            let untouched = handshake.map(|_| payload.to_vec());
            let session = self.sessions.get_mut(handle)?;
            let is_newest = session.is_newest(header.sequence);
            match session.open(header, payload) {
                Ok(opened) => {
                    self.follow(handle, path, payload.len(), is_newest);
                    return self.opened(now, handle, opened, payload, out);
                }
                Err(_) if handshake.is_none() => self.counters.bad_records += 1,
                Err(_) => {}
            }
            if let Some(untouched) = untouched {
                payload.copy_from_slice(&untouched);
            }
        }
        let handle = handshake?;
        let step = self.handshakes.get_mut(handle)?.handshake.protected(header, payload);
        self.take_step(now, handle, step, out);
        None
    }

    /// RFC 9146 §6: a client with a connection ID is where its newest record came
    /// from. An older one, late or caught and sent again by somebody, moves nobody.
    fn follow(&mut self, handle: Handle, path: Path, payload: usize, is_newest: bool) {
        let moved = is_newest && self.sessions.path(handle) != Some(path);
        let Some(session) = self.sessions.get_mut(handle) else { return };
        session.connection.received(record::HEADER + payload, moved);
        if moved && session.connection.own_id().is_some() {
            self.counters.moved += 1;
            self.sessions.move_unlisted(handle, path);
        }
    }

    fn opened<'d>(
        &mut self,
        now: Instant,
        handle: Handle,
        opened: Opened,
        payload: &'d mut [u8],
        out: &mut impl Outbox,
    ) -> Option<ApplicationData<'d>> {
        self.sessions.touch(now, handle);
        let session = SessionId(handle);
        match opened {
            Opened::Data(range) => {
                return payload.get_mut(range).map(|data| ApplicationData { session, data });
            }
            // RFC 5246 §7.2.1: close_notify is answered with our own.
            Opened::Alert(_, 0) => self.end_session(handle, Closed::ByPeer, true, out),
            Opened::Alert(2, description) => {
                self.end_session(handle, Closed::ByAlert(description), false, out)
            }
            Opened::FinishedAgain => {
                self.counters.retransmissions += 1;
                self.send_final_flight(handle, out);
            }
            // RFC 5746 §4.4 and RFC 5246 §7.2.2.
            Opened::Renegotiation => {
                self.send_record(handle, ContentType::Alert, &Alert::NoRenegotiation.to_wire(), out);
            }
            Opened::Alert(..) | Opened::Nothing => {}
        }
        None
    }

    fn take_step(&mut self, now: Instant, handle: Handle, step: Step, out: &mut impl Outbox) {
        match step {
            Step::Continue => {}
            Step::SendFlight => {
                self.send_flight(handle, out);
                self.schedule_resend(now, 0, handle);
            }
            Step::SendFlightAgain => {
                self.counters.retransmissions += 1;
                self.send_flight(handle, out);
            }
            Step::NeedPsk(identity) => {
                self.events.push_back(Event::PskNeeded { handshake: HandshakeId(handle), identity });
            }
            Step::Complete(completed) => self.establish(now, handle, *completed, out),
            Step::Fail(alert, failure) => {
                self.send_alert(handle, alert, out);
                self.fail_handshake(handle, failure);
            }
            Step::BadRecord(alert) => {
                self.counters.bad_records += 1;
                if let Some(alert) = alert {
                    self.send_alert(handle, alert, out);
                }
                if self.handshakes.get(handle).is_some_and(|progress| progress.handshake.is_over()) {
                    self.fail_handshake(handle, Failure::WrongKey);
                }
            }
        }
    }

    fn establish(&mut self, now: Instant, handle: Handle, completed: Completed, out: &mut impl Outbox) {
        let Some((path, Progress { principal, .. })) = self.handshakes.remove(handle) else { return };
        self.origins.end(path.peer);
        self.drop_stale_resends();
        let Completed { keys, connection, finished, final_flight } = completed;
        // Without a principal the key was one that nobody knows.
        let Some(principal) = principal else { return };
        if let Some(old) = self.sessions.of(path) {
            // RFC 6347 §4.2.8: only now is the old association given up. Its
            // keys are gone on the client's side, so no alert of it is due.
            self.end_session(old, Closed::Replaced, false, out);
        }
        if self.sessions.len() >= self.config.max_sessions
            && let Some((_, idle)) = self.sessions.oldest()
        {
            self.end_session(idle, Closed::Evicted, true, out);
        }
        self.counters.handshakes_completed += 1;
        self.counters.completed_by_suite[keys.suite as usize] += 1;
        let connection_id = connection.own_id();
        let session = Session::new(keys, connection, finished, final_flight, principal);
        let handle = match connection_id {
            // Found by its ID alone: what somebody sends from another client's
            // address must not push that client out of its place.
            Some(id) => {
                let handle = self.sessions.insert_unlisted(now, path, session);
                self.by_connection_id.insert(id, handle);
                handle
            }
            None => self.sessions.insert(now, path, session),
        };
        self.send_final_flight(handle, out);
        self.events.push_back(Event::Established { session: SessionId(handle), peer: path.peer });
    }

    fn fail_handshake(&mut self, handle: Handle, reason: Failure) {
        let Some((path, Progress { handshake, .. })) = self.handshakes.remove(handle) else { return };
        self.origins.end(path.peer);
        self.drop_stale_resends();
        self.counters.handshakes_failed += 1;
        let reason = match reason {
            Failure::TimedOut | Failure::Replaced | Failure::Evicted if handshake.had_bad_record() => {
                Failure::WrongKey
            }
            other => other,
        };
        let identity = handshake.identity().map(Into::into);
        self.events.push_back(Event::HandshakeFailed { peer: path.peer, identity, reason });
    }

    fn end_session(&mut self, handle: Handle, reason: Closed, notify: bool, out: &mut impl Outbox) {
        if notify {
            let notify = Alert::CloseNotify.to_wire();
            self.send_from_session(handle, out, |session, buffer| {
                session.seal(ContentType::Alert, &notify, buffer)
            });
        }
        if let Some((_, session)) = self.sessions.remove(handle) {
            if let Some(id) = session.connection.own_id() {
                self.by_connection_id.remove(&id);
            }
            self.events.push_back(Event::Closed { session: SessionId(handle), reason });
        }
    }

    /// Forgets what is at the front of the queues and no longer to be sent, so
    /// that they are no longer than the oldest silent handshake makes them.
    fn drop_stale_resends(&mut self) {
        for queue in &mut self.resend {
            while queue.front().is_some_and(|&(_, handle)| !awaits_client(&self.handshakes, handle)) {
                queue.pop_front();
            }
        }
    }

    fn schedule_resend(&mut self, now: Instant, round: usize, handle: Handle) {
        if let Some(queue) = self.resend.get_mut(round) {
            queue.push_back((now + self.config.retransmission_timeout * (1 << round), handle));
        }
    }

    fn send_flight(&mut self, handle: Handle, out: &mut impl Outbox) {
        self.send_from_handshake(handle, out, Handshake::put_flight);
    }

    fn send_alert(&mut self, handle: Handle, alert: Alert, out: &mut impl Outbox) {
        self.send_from_handshake(handle, out, |handshake, buffer| handshake.put_alert(buffer, alert));
    }

    fn send_from_handshake(
        &mut self,
        handle: Handle,
        out: &mut impl Outbox,
        put: impl FnOnce(&mut Handshake, &mut Vec<u8>),
    ) {
        let Some(path) = self.handshakes.path(handle) else { return };
        if let Some(progress) = self.handshakes.get_mut(handle) {
            self.buffer.clear();
            put(&mut progress.handshake, &mut self.buffer);
            out.push(path, &self.buffer);
        }
    }

    fn send_final_flight(&mut self, handle: Handle, out: &mut impl Outbox) {
        self.send_from_session(handle, out, |session, buffer| session.put_final_flight(buffer));
    }

    fn send_record(&mut self, handle: Handle, kind: ContentType, data: &[u8], out: &mut impl Outbox) -> bool {
        let sent = self.send_from_session(handle, out, |session, buffer| session.seal(kind, data, buffer));
        if sent == Some(Sealed::Exhausted) {
            self.end_session(handle, Closed::Exhausted, false, out);
        }
        sent == Some(Sealed::Sent)
    }

    /// `None` when the session is gone.
    fn send_from_session(
        &mut self,
        handle: Handle,
        out: &mut impl Outbox,
        put: impl FnOnce(&mut Session<P>, &mut Vec<u8>) -> Sealed,
    ) -> Option<Sealed> {
        let path = self.sessions.path(handle)?;
        self.buffer.clear();
        let sealed = put(self.sessions.get_mut(handle)?, &mut self.buffer);
        if sealed == Sealed::Sent && self.sessions.get_mut(handle)?.connection.may_send(self.buffer.len()) {
            out.push(path, &self.buffer);
        }
        Some(sealed)
    }

    #[cfg(test)]
    pub(super) fn remembers_nobody(&self) -> bool {
        self.handshakes.len() == 0
            && self.origins.is_empty()
            && self.sessions.len() == 0
            && self.resend.iter().all(VecDeque::is_empty)
    }

    #[cfg(test)]
    pub(super) fn set_next_write(&mut self, session: SessionId, sequence: u64) {
        if let Some(session) = self.sessions.get_mut(session.0) {
            session.set_next_write(sequence);
        }
    }
}

/// Whether a flight may have been lost on its way to the client.
fn awaits_client<P>(handshakes: &Table<Progress<P>>, handle: Handle) -> bool {
    handshakes.get(handle).is_some_and(|progress| progress.handshake.awaits_client())
}

/// The first byte of the connection ID of a datagram's first record, if it bears
/// one: which of several endpoints on one port it is for.
pub fn connection_id_prefix(datagram: &[u8]) -> Option<u8> {
    if datagram.first() == Some(&(ContentType::Tls12Cid as u8)) { datagram.get(11).copied() } else { None }
}
