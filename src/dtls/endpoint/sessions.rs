//! Sessions of an endpoint: finds the session of a record, follows clients to new
//! addresses, evicts sessions when there are too many, and ends sessions.

use std::{collections::HashMap, hash::BuildHasher, net::SocketAddr, time::Instant};

use super::{ApplicationData, Delivery, Dropped, Endpoint, Holder, SessionId, Spent, ip_and_udp};
use crate::dtls::{
    Closed, Event, Outbox, Path,
    handshake::Completed,
    holders::Link,
    message::Alert,
    origins::prefix,
    record::{self, ContentType, Record},
    session::{Opened, Sealed, Session},
    table::Handle,
};

/// Number of sessions from which an eviction chooses: the sessions that have been idle longest.
const CANDIDATES: usize = 64;

/// Number of sessions of each network (an IPv4 address or an IPv6 /64).
#[derive(Default)]
pub(super) struct Shares(HashMap<u64, u32>);

impl Shares {
    fn add(&mut self, peer: SocketAddr) {
        *self.0.entry(prefix(peer)).or_default() += 1;
    }

    fn remove(&mut self, peer: SocketAddr) {
        let prefix = prefix(peer);
        if let Some(count) = self.0.get_mut(&prefix) {
            *count -= 1;
            if *count == 0 {
                self.0.remove(&prefix);
            }
        }
    }

    fn of(&self, peer: SocketAddr) -> u32 {
        self.0.get(&prefix(peer)).copied().unwrap_or(0)
    }

    #[cfg(any(test, feature = "testing"))]
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl<P> Endpoint<P> {
    /// Reads a record of epoch 1. When a path has both a session and a handshake, only decryption
    /// shows whether the record belongs to the session or to the handshake.
    pub(super) fn protected<'d>(
        &mut self,
        now: Instant,
        path: Path,
        record: Record<'d>,
        spent: &mut Spent,
        out: &mut impl Outbox,
    ) -> Option<ApplicationData<'d>> {
        let Record { header, connection_id, payload } = record;
        let session = match connection_id {
            Some(id) => self.by_connection_id.get(&id).copied(),
            None => self.sessions.of(path),
        };
        // RFC 9146 §3: once an ID is negotiated, a record without it is discarded.
        let handshake = self.handshakes.of(path).filter(|&handle| {
            self.handshakes
                .get(handle)
                .is_some_and(|progress| progress.handshake.connection_id() == connection_id)
        });
        if let Some(handle) = session {
            // Decryption in place destroys a record that fails to authenticate under the session's
            // keys, so the handshake gets a copy of the record.
            let untouched = handshake.map(|_| payload.to_vec());
            let session = self.sessions.get_mut(handle)?;
            let is_newest = session.is_newest(header.sequence);
            match session.open(header, payload) {
                Ok(opened) => {
                    let id = connection_id.map_or(0, |id| id.len());
                    let mut bytes = record::HEADER + id + payload.len();
                    if !std::mem::replace(&mut spent.headers, true) {
                        bytes += ip_and_udp(path);
                    }
                    self.follow(handle, path, bytes, is_newest);
                    if self.has_aged(now, handle) {
                        self.end_session(handle, Closed::Aged, true, out);
                        return None;
                    }
                    return self.opened(now, handle, opened, payload, spent, out);
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
        self.take_step(now, handle, step, spent, out);
        None
    }

    fn seconds(&self, now: Instant) -> u32 {
        now.saturating_duration_since(self.made).as_secs().try_into().unwrap_or(u32::MAX)
    }

    fn has_aged(&self, now: Instant, handle: Handle) -> bool {
        let begun = self.sessions.get(handle).map_or(0, |session| session.begun);
        u64::from(self.seconds(now).saturating_sub(begun)) >= self.config.session_max_age.as_secs()
    }

    /// Moves a client with a connection ID to the path of its newest record (RFC 9146 §6). An older
    /// record does not move the client: the record may have been delayed, or an attacker may have
    /// captured the record and sent it from another address.
    fn follow(&mut self, handle: Handle, path: Path, bytes: usize, is_newest: bool) {
        let Some(before) = self.sessions.path(handle) else { return };
        let Some(session) = self.sessions.get_mut(handle) else { return };
        let moved = is_newest && before != path && session.connection.own_id().is_some();
        // Bytes that arrive on another path earn no credit for the client's current path.
        if moved || before == path {
            session.connection.received(path, bytes, moved);
        }
        if moved {
            self.counters.moved += 1;
            self.sessions.move_unlisted(handle, path);
            self.shares.remove(before.peer);
            self.shares.add(path.peer);
        }
    }

    fn opened<'d>(
        &mut self,
        now: Instant,
        handle: Handle,
        opened: Opened,
        payload: &'d mut [u8],
        spent: &mut Spent,
        out: &mut impl Outbox,
    ) -> Option<ApplicationData<'d>> {
        self.sessions.touch(now, handle);
        let session = SessionId(handle);
        match opened {
            Opened::Data(range) => {
                return payload.get_mut(range).map(|data| ApplicationData { session, data });
            }
            // RFC 5246 §7.2.1: close_notify is answered with close_notify.
            Opened::Alert(_, 0) => self.end_session(handle, Closed::ByPeer, true, out),
            Opened::Alert(2, description) => {
                self.end_session(handle, Closed::ByAlert(description), false, out)
            }
            Opened::FinishedAgain if std::mem::replace(&mut spent.flight, true) => {
                self.counters.drop(Dropped::Flight);
            }
            Opened::FinishedAgain => {
                self.counters.retransmissions += 1;
                self.send_final_flight(handle, out);
            }
            // RFC 5746 §4.4, RFC 5246 §7.2.2: a renegotiation is refused with a warning.
            Opened::Renegotiation => {
                self.send_record(handle, ContentType::Alert, &Alert::NoRenegotiation.to_wire(), out);
            }
            Opened::Alert(..) | Opened::Nothing => {}
        }
        None
    }

    pub(super) fn establish(
        &mut self,
        now: Instant,
        handle: Handle,
        completed: Completed,
        out: &mut impl Outbox,
    ) {
        let Some((path, principal, holder)) = self.take_completed(handle, completed.key) else { return };
        // If there is no principal, the identity was unknown and the key was random.
        let Some(principal) = principal else { return };
        if let Some(old) = self.sessions.of(path) {
            // RFC 6347 §4.2.8: the old association is discarded only now. The client no longer has
            // the old keys, so no alert is sent.
            self.end_session(old, Closed::Replaced, false, out);
        }
        if self.sessions.len() >= self.config.max_sessions {
            self.make_room(out);
        }
        self.counters.handshakes_completed += 1;
        self.counters.completed_by_suite[completed.suite as usize] += 1;
        let connection_id = completed.connection.own_id();
        let link = match holder {
            None => Link::default(),
            Some(Holder::Device(number)) => Link::of(number),
            Some(Holder::Shared(number)) => Link::of(self.hasher.hash_one((number, path.peer))),
        };
        let mut session = Session::new(completed, link, self.seconds(now), principal);
        session.connection.begin_at(path);
        let handle = match connection_id {
            // A session with an ID is not listed by its path. Otherwise an attacker who spoofs
            // another client's address could displace that client's session.
            Some(id) => {
                let handle = self.sessions.insert_unlisted(now, path, session);
                self.by_connection_id.insert(id, handle);
                handle
            }
            None => self.sessions.insert(now, path, session),
        };
        self.shares.add(path.peer);
        if let Some(surplus) = self.holders.add(&mut self.sessions, handle, self.config.sessions_per_holder) {
            self.counters.evicted += 1;
            self.end_session(surplus, Closed::Evicted, true, out);
        }
        self.send_final_flight(handle, out);
        self.events.push_back(Event::Established { session: SessionId(handle), peer: path.peer });
    }

    /// Evicts a session to make room for a new one. Among the sessions that have been idle longest,
    /// chooses one from the network with the most sessions. Chooses a session with a request in
    /// progress only if all candidates have one.
    fn make_room(&mut self, out: &mut impl Outbox) {
        let greediness = |handle: &Handle| {
            let peer = self.sessions.path(*handle).map(|path| path.peer);
            let is_busy = self.sessions.get(*handle).is_some_and(|session| session.is_busy);
            (!is_busy, peer.map_or(0, |peer| self.shares.of(peer)))
        };
        // `max_by_key` returns the last of several maxima. To choose the oldest of them, the list
        // is reversed so that the oldest session comes last.
        let candidates: Vec<Handle> = self.sessions.by_age().take(CANDIDATES).collect();
        if let Some(handle) = candidates.into_iter().rev().max_by_key(greediness) {
            self.counters.evicted += 1;
            self.end_session(handle, Closed::Evicted, true, out);
        }
    }

    pub(super) fn end_session(
        &mut self,
        handle: Handle,
        reason: Closed,
        notify: bool,
        out: &mut impl Outbox,
    ) {
        if notify {
            let notify = Alert::CloseNotify.to_wire();
            self.send_from_session(handle, out, |session, buffer| {
                session.seal(ContentType::Alert, &notify, buffer)
            });
        }
        self.holders.remove(&mut self.sessions, handle);
        if let Some((path, session)) = self.sessions.remove(handle) {
            self.shares.remove(path.peer);
            if let Some(id) = session.connection.own_id() {
                self.by_connection_id.remove(&id);
            }
            self.events.push_back(Event::Closed { session: SessionId(handle), reason });
        }
    }

    fn send_final_flight(&mut self, handle: Handle, out: &mut impl Outbox) {
        self.send_from_session(handle, out, |session, buffer| session.put_final_flight(buffer));
    }

    pub(super) fn send_record(
        &mut self,
        handle: Handle,
        kind: ContentType,
        data: &[u8],
        out: &mut impl Outbox,
    ) -> Delivery {
        let sent = self.send_from_session(handle, out, |session, buffer| session.seal(kind, data, buffer));
        match sent {
            Some((Sealed::Sent, true)) => Delivery::Sent,
            Some((Sealed::Sent, false)) => Delivery::Unvalidated,
            Some((Sealed::Exhausted, _)) => {
                self.end_session(handle, Closed::Exhausted, false, out);
                Delivery::Lost
            }
            Some((Sealed::Nothing, _)) | None => Delivery::Lost,
        }
    }

    pub(super) fn send_record_validated(
        &mut self,
        handle: Handle,
        data: &[u8],
        out: &mut impl Outbox,
    ) -> Delivery {
        let validated = self.sessions.get(handle).and_then(|session| session.connection.validated());
        let Some(path) = validated else {
            return self.send_record(handle, ContentType::ApplicationData, data, out);
        };
        self.buffer.clear();
        let Some(session) = self.sessions.get_mut(handle) else { return Delivery::Lost };
        match session.seal(ContentType::ApplicationData, data, &mut self.buffer) {
            Sealed::Sent => {
                out.push(path, &self.buffer);
                Delivery::Sent
            }
            Sealed::Nothing => Delivery::Lost,
            Sealed::Exhausted => {
                self.end_session(handle, Closed::Exhausted, false, out);
                Delivery::Lost
            }
        }
    }

    /// Seals a record, and sends it if the client's current path is validated or has enough
    /// credit left. Returns the result of sealing and whether the record was sent. Returns
    /// `None` if the session no longer exists.
    fn send_from_session(
        &mut self,
        handle: Handle,
        out: &mut impl Outbox,
        put: impl FnOnce(&mut Session<P>, &mut Vec<u8>) -> Sealed,
    ) -> Option<(Sealed, bool)> {
        let path = self.sessions.path(handle)?;
        self.buffer.clear();
        let session = self.sessions.get_mut(handle)?;
        let sealed = put(session, &mut self.buffer);
        if sealed != Sealed::Sent {
            return Some((sealed, false));
        }
        let may_send = session.connection.may_send(self.buffer.len() + ip_and_udp(path));
        if may_send {
            out.push(path, &self.buffer);
        } else {
            self.counters.drop(Dropped::Unvalidated);
        }
        Some((sealed, may_send))
    }
}
