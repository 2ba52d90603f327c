//! Handshakes of an endpoint: runs the cookie exchange before each handshake, charges the handshake
//! to the budget of the client's network, sends and resends flights, and ends handshakes.

use std::{
    hash::BuildHasher,
    time::{Duration, Instant},
};

use super::{Dropped, Endpoint, HandshakeId, Holder, MAX_RETRANSMISSIONS, Spent, flight_timeout};
use crate::dtls::{
    Event, Failure, Hints, Outbox, Path,
    candidates::MAX_KEYS,
    handshake::{Handshake, Offer, Step},
    key_exchange::Group,
    message::{self, Alert, Fragment, HelloPrefix},
    record::{self, ContentType, DTLS_1_0, Header},
    table::{Handle, Table},
    wire::Reader,
};

/// CPU time charged for a handshake, including the lookup of a key.
const COST: Duration = Duration::from_micros(20);

/// Returns the additional CPU time charged for an ephemeral suite: for generating an ephemeral key
/// and for computing the shared secret.
fn cost_of(group: Group) -> Duration {
    match group {
        Group::X25519 => Duration::from_micros(60),
        Group::Secp256r1 => Duration::from_micros(220),
    }
}

/// Maximum number of claims per handshake that are processed in one [`CLAIM_PERIOD`].
/// Anyone can make a claim in the client's name, and each claim costs the lookup of a key.
const MAX_CLAIMS: u8 = 16;
/// Maximum number of claims per handshake in one [`CLAIM_PERIOD`] with an ephemeral suite. This
/// maximum is lower because each claim also costs a curve operation.
const MAX_EPHEMERAL_CLAIMS: u8 = 4;
/// Period in which claims are counted. The period is shorter than any client's timeout. So when a
/// client resends its flight, a new period has begun and the client's claim is processed.
const CLAIM_PERIOD: Duration = Duration::from_millis(500);
/// Time from the first record that fails to authenticate until the handshake ends because of a
/// wrong key, as a multiple of the initial retransmission timeout. The time is long enough for RFC
/// 7925 devices, which repeat their flight after 9 s. A second bad record may end the handshake
/// earlier.
const SUSPICION: u32 = 12;

/// A handshake and the endpoint's state about it.
pub(super) struct Progress<P> {
    pub(super) handshake: Handshake,
    /// Principals of the keys that the handshake continues with. `None` until a key is provided,
    /// and for a random key.
    pub(super) principals: [Option<P>; MAX_KEYS],
    pub(super) holder: Option<Holder>,
    /// CPU time charged to the client's network, refunded when the handshake becomes a
    /// session.
    charged: Duration,
    /// Time at which the flight was last sent, and number of times that the timer has resent the
    /// flight.
    sent: Option<(Instant, usize)>,
    /// Set if the hello that started the handshake is most likely a late copy, because the same
    /// hello has already led to a session. The hello is answered, but the timer does not resend the
    /// flight. The handshake counts as failed only if the key is wrong.
    is_late: bool,
    /// Description code of the last fatal alert sent in the client's name, by the client
    /// or anyone else.
    alert: Option<u8>,
    /// Start of the current [`CLAIM_PERIOD`], and the number of claims processed in it.
    claims: (Instant, u8),
    /// Time at which a record first failed to authenticate under the handshake's keys.
    bad_record: Option<Instant>,
}

impl<P> Progress<P> {
    /// Drops a claim whose key cannot be looked up now. The claim does not count against
    /// the limit, because it was not checked.
    pub(super) fn postpone(&mut self, claim: u32) {
        if self.handshake.awaits_psk(claim) {
            self.claims.1 = self.claims.1.saturating_sub(1);
        }
        self.handshake.postpone(claim);
    }
}

/// Hashes of hellos whose handshakes recently became sessions. A newer hash may overwrite
/// an older one in the same slot.
#[derive(Default)]
pub(super) struct Completions(Vec<u64>);

impl Completions {
    const PLACES: usize = 8192;

    fn note(&mut self, hash: u64) {
        if self.0.is_empty() {
            self.0.resize(Self::PLACES, 0);
        }
        self.0[hash as usize % Self::PLACES] = hash;
    }

    fn has(&self, hash: u64) -> bool {
        self.0.get(hash as usize % Self::PLACES) == Some(&hash)
    }
}

impl<P> Endpoint<P> {
    /// Reads a record of epoch 0.
    pub(super) fn plaintext(
        &mut self,
        now: Instant,
        path: Path,
        header: Header,
        payload: &[u8],
        spent: &mut Spent,
        out: &mut impl Outbox,
    ) {
        match header.kind {
            ContentType::Handshake => {
                let mut reader = Reader::new(payload);
                while !reader.is_empty() {
                    let Ok(fragment) = Fragment::read(&mut reader) else { return };
                    self.fragment(now, path, header, &fragment, spent, out);
                }
            }
            ContentType::ChangeCipherSpec if payload == [1] => {
                let Some(handle) = self.handshakes.of(path) else { return };
                let Some(progress) = self.handshakes.get_mut(handle) else { return };
                let step = progress.handshake.change_cipher_spec();
                self.take_step(now, handle, step, spent, out);
            }
            // Anyone can send a plaintext alert in the client's name, so the alert does not end the
            // handshake. The alert is only reported if the handshake fails for another reason.
            ContentType::Alert => {
                if let (&[2, description], Some(handle)) = (payload, self.handshakes.of(path))
                    && let Some(progress) = self.handshakes.get_mut(handle)
                {
                    progress.alert = Some(description);
                }
            }
            _ => {}
        }
    }

    fn fragment(
        &mut self,
        now: Instant,
        path: Path,
        header: Header,
        fragment: &Fragment<'_>,
        spent: &mut Spent,
        out: &mut impl Outbox,
    ) {
        let handle = if fragment.kind == message::CLIENT_HELLO && fragment.offset == 0 {
            // No honest client packs two ClientHellos into a datagram.
            if std::mem::replace(&mut spent.hello, true) {
                self.counters.drop(Dropped::Message);
                return;
            }
            self.hello(now, path, header, fragment, out)
        } else {
            self.handshakes.of(path)
        };
        let Some(handle) = handle else { return };
        let Some(progress) = self.handshakes.get_mut(handle) else { return };
        let Progress { handshake, charged, claims, .. } = progress;
        let mut offer = Offer {
            suites: &self.config.suites,
            require_extended_master_secret: self.config.require_extended_master_secret,
            connection_id_prefix: self.config.connection_id_prefix,
            affords: &mut |group| {
                let affords = self.budget.charge(now, path.peer, cost_of(group));
                if affords {
                    *charged += cost_of(group);
                }
                affords
            },
            may_claim: &mut |is_ephemeral| {
                if now >= claims.0 + CLAIM_PERIOD {
                    *claims = (now, 0);
                }
                let most = if is_ephemeral { MAX_EPHEMERAL_CLAIMS } else { MAX_CLAIMS };
                // No honest client packs two claims into a datagram.
                let may = claims.1 < most && !std::mem::replace(&mut spent.claim, true);
                claims.1 += u8::from(may);
                may
            },
        };
        let step = handshake.fragment(fragment, &mut offer, &mut self.random);
        self.take_step(now, handle, step, spent, out);
    }

    /// Processes the beginning of a ClientHello. Returns the handshake that the hello belongs to:
    /// the current handshake if this hello started it, or a new handshake if the hello has a valid
    /// cookie. Otherwise returns `None`.
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
            self.verify_hello(now, path, header, fragment, &prefix.random, out);
            return None;
        }
        if !self.budget.charge(now, path.peer, COST) {
            self.over_budget(now, path);
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
        let is_late = self.completions.has(self.hello_hash(path, &prefix.random));
        self.counters.late_hellos += u64::from(is_late);
        let progress = Progress {
            handshake: Handshake::new(prefix.random, fragment.sequence, header.sequence),
            principals: [None, None],
            holder: None,
            charged: COST,
            sent: None,
            is_late,
            alert: None,
            claims: (now, 0),
            bad_record: None,
        };
        let handle = self.handshakes.insert(now, path, progress);
        let limit = self.config.max_handshakes_per_address;
        let handshakes = &self.handshakes;
        if let Some(oldest) =
            self.origins.begin(path.peer, handle, limit, |handle| handshakes.get(handle).is_some())
        {
            self.fail_handshake(oldest, Failure::Evicted);
        }
        Some(handle)
    }

    fn over_budget(&mut self, now: Instant, path: Path) {
        self.counters.drop(Dropped::OverBudget);
        if self.over_budget_reported.is_none_or(|reported| now >= reported + Duration::from_secs(1)) {
            self.over_budget_reported = Some(now);
            self.events.push_back(Event::OverBudget { peer: path.peer });
        }
    }

    /// Asks an unknown client to prove that it receives datagrams at its address (RFC 6347 §4.2.1),
    /// and keeps no state. The answer is never longer than the hello. The answer repeats the record
    /// and message numbers of the hello, so that the client accepts the answer as the next message
    /// even after several hellos (§4.2.2).
    fn verify_hello(
        &mut self,
        now: Instant,
        path: Path,
        header: Header,
        hello: &Fragment<'_>,
        random: &[u8; 32],
        out: &mut impl Outbox,
    ) {
        let cookie = self.cookies.make(now, path.peer, random);
        if message::HELLO_VERIFY_REQUEST_LENGTH > message::HEADER + hello.body.len() {
            return;
        }
        self.counters.hello_verify_requests += 1;
        self.buffer.clear();
        let header = Header { kind: ContentType::Handshake, epoch: 0, sequence: header.sequence };
        record::put_header(&mut self.buffer, header, DTLS_1_0, &[], message::HELLO_VERIFY_REQUEST_LENGTH);
        message::put_hello_verify_request(&mut self.buffer, hello.sequence, &cookie);
        out.push(path, &self.buffer);
    }

    pub(super) fn take_step(
        &mut self,
        now: Instant,
        handle: Handle,
        step: Step,
        spent: &mut Spent,
        out: &mut impl Outbox,
    ) {
        match step {
            Step::Continue => {}
            Step::Dropped => self.counters.drop(Dropped::Message),
            Step::SendFlight => {
                self.handshakes.touch(now, handle);
                self.send_flight(now, 0, handle, out);
                if self.handshakes.get(handle).is_some_and(|progress| !progress.is_late) {
                    self.schedule_resend(now, 0, handle);
                }
            }
            Step::SendFlightAgain => self.repeat_flight(now, handle, spent, out),
            Step::NeedPsk(claim, identity) => {
                self.handshakes.touch(now, handle);
                let handshake = HandshakeId { handle, claim };
                self.events.push_back(Event::PskNeeded { handshake, identity });
            }
            Step::NoPsk(claim) => self.provide_psk(now, HandshakeId { handle, claim }, None, out),
            Step::Complete(completed) => self.establish(now, handle, *completed, out),
            Step::Fail(alert, failure) => {
                self.send_alert(handle, alert, out);
                self.fail_handshake(handle, failure);
            }
            Step::GiveUp(failure) => {
                if let (Failure::OverBudget, Some(path)) = (failure, self.handshakes.path(handle)) {
                    self.over_budget(now, path);
                }
                self.fail_handshake(handle, failure);
            }
            Step::BadRecord => self.bad_record(now, handle, out),
        }
    }

    /// Handles a record that failed to authenticate under the handshake's keys. Either the client
    /// has a wrong key, or someone else sent the record. In case someone else sent it, the client
    /// gets time to resend its flight. If a second record fails at least one timeout after the
    /// first, the handshake ends with an alert.
    fn bad_record(&mut self, now: Instant, handle: Handle, out: &mut impl Outbox) {
        let timeout = self.config.retransmission_timeout;
        let Some(progress) = self.handshakes.get_mut(handle) else { return };
        match progress.bad_record {
            None => {
                progress.bad_record = Some(now);
                self.counters.bad_records += 1;
                self.suspects.push_back((now + SUSPICION * timeout, handle));
            }
            Some(first) if now >= first + timeout => self.wrong_key(handle, out),
            Some(_) => self.counters.drop(Dropped::Message),
        }
    }

    /// Ends a handshake because of a wrong key. A handshake with an unknown identity ends
    /// in the same way (RFC 4279 §2).
    fn wrong_key(&mut self, handle: Handle, out: &mut impl Outbox) {
        self.send_alert(handle, Alert::DecryptError, out);
        self.fail_handshake(handle, Failure::WrongKey);
    }

    /// Removes a completed handshake from the table. Returns the path, principal and holder for the
    /// new session, whose client has proven the key with this index.
    pub(super) fn take_completed(
        &mut self,
        handle: Handle,
        key: usize,
    ) -> Option<(Path, Option<P>, Option<Holder>)> {
        let (path, progress) = self.handshakes.remove(handle)?;
        self.origins.end(path.peer);
        self.budget.refund(path.peer, progress.charged);
        let hash = self.hello_hash(path, &progress.handshake.client_random);
        self.completions.note(hash);
        self.drop_stale();
        Some((path, progress.principals.into_iter().nth(key).flatten(), progress.holder))
    }

    fn hello_hash(&self, path: Path, random: &[u8; 32]) -> u64 {
        self.hasher.hash_one((path.peer, random)).max(1)
    }

    pub(super) fn fail_handshake(&mut self, handle: Handle, reason: Failure) {
        let Some((path, progress)) = self.handshakes.remove(handle) else { return };
        let Progress { handshake, is_late, alert, bad_record, .. } = progress;
        self.origins.end(path.peer);
        self.drop_stale();
        let reason = match reason {
            Failure::TimedOut | Failure::Replaced | Failure::Evicted if bad_record.is_some() => {
                Failure::WrongKey
            }
            other => other,
        };
        // If the hello was a late copy, the original hello has already led to a session, so the end
        // of this handshake is not a failure. A wrong key is a failure even then.
        if is_late && reason != Failure::WrongKey {
            return;
        }
        self.counters.handshakes_failed += 1;
        let identity = handshake.identity().map(Into::into);
        let (suites, identity_length) = handshake.hints();
        let hints = Hints { suites, identity_length, alert };
        self.events.push_back(Event::HandshakeFailed { peer: path.peer, identity, reason, hints });
    }

    /// Ends each handshake in which a record failed to authenticate, unless the handshake has
    /// completed within the time allowed after that record.
    pub(super) fn give_up_suspects(&mut self, now: Instant, out: &mut impl Outbox) {
        while let Some(&(at, handle)) = self.suspects.front() {
            if at > now {
                break;
            }
            self.suspects.pop_front();
            self.wrong_key(handle, out);
        }
    }

    pub(super) fn resend_flights(&mut self, now: Instant, out: &mut impl Outbox) {
        for round in 0..MAX_RETRANSMISSIONS {
            while let Some(&(at, handle)) = self.resend[round].front() {
                if at > now {
                    break;
                }
                self.resend[round].pop_front();
                if awaits_client(&self.handshakes, handle) {
                    // If the client's request has just caused a resend, the timer does not send the
                    // flight.
                    if self.may_repeat(now, handle) {
                        self.counters.retransmissions += 1;
                        self.send_flight(now, round + 1, handle, out);
                    }
                    self.schedule_resend(now, round + 1, handle);
                }
            }
        }
    }

    /// Resends the flight at the client's request. Does so at most once per datagram, and only if
    /// at least half of the timeout has passed since the flight was last sent.
    fn repeat_flight(&mut self, now: Instant, handle: Handle, spent: &mut Spent, out: &mut impl Outbox) {
        if spent.flight || !self.may_repeat(now, handle) {
            self.counters.drop(Dropped::Flight);
            return;
        }
        spent.flight = true;
        self.counters.retransmissions += 1;
        let round =
            self.handshakes.get(handle).and_then(|progress| progress.sent).map_or(0, |(_, round)| round);
        self.send_flight(now, round, handle, out);
    }

    fn may_repeat(&self, now: Instant, handle: Handle) -> bool {
        let sent = self.handshakes.get(handle).and_then(|progress| progress.sent);
        sent.is_none_or(|(at, round)| now >= at + flight_timeout(&self.config, round) / 2)
    }

    /// Removes the stale entries at the front of each queue, so that the queues stay short.
    fn drop_stale(&mut self) {
        let handshakes = &self.handshakes;
        for queue in &mut self.resend {
            while queue.front().is_some_and(|&(_, handle)| !awaits_client(handshakes, handle)) {
                queue.pop_front();
            }
        }
        while self.suspects.front().is_some_and(|&(_, handle)| handshakes.get(handle).is_none()) {
            self.suspects.pop_front();
        }
    }

    fn schedule_resend(&mut self, now: Instant, round: usize, handle: Handle) {
        let at = now + flight_timeout(&self.config, round);
        if let Some(queue) = self.resend.get_mut(round) {
            queue.push_back((at, handle));
        }
    }

    fn send_flight(&mut self, now: Instant, round: usize, handle: Handle, out: &mut impl Outbox) {
        if let Some(progress) = self.handshakes.get_mut(handle) {
            progress.sent = Some((now, round));
        }
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
            if !self.buffer.is_empty() {
                out.push(path, &self.buffer);
            }
        }
    }
}

/// Returns whether the server has sent its flight and waits for the client's flight. In
/// that case, the server's flight may have been lost.
fn awaits_client<P>(handshakes: &Table<Progress<P>>, handle: Handle) -> bool {
    handshakes.get(handle).is_some_and(|progress| progress.handshake.awaits_client())
}
