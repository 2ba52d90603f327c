//! Address validation for devices with a connection ID that have moved (RFC 9146 §6). Only a few
//! bytes are sent to a new address until the device has shown that it receives datagrams there. The
//! device shows this by answering a CoAP ping inside its session. Until then, longer answers to its
//! requests wait in the CoAP endpoint.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use super::stack::{Client, Held};
use crate::{
    coap,
    dtls::{self, Delivery, Path, SessionId},
};

/// Time after which another ping is sent to a device, if a message to the device or a request from
/// it still waits.
const ASK_AGAIN: Duration = Duration::from_secs(2);

/// Pings to devices that have moved, and requests that wait for the answers to these
/// pings.
#[derive(Default)]
pub(super) struct Validation {
    /// Sessions to send a ping in, because a message to the device was withheld or a request from
    /// the device is held.
    withheld: Vec<SessionId>,
    /// Path and time of the last ping in each session.
    asked: HashMap<SessionId, (Path, Instant)>,
    /// Requests that wait until their device has answered a ping.
    held: HashMap<SessionId, Held>,
}

impl Validation {
    /// Returns the next session to send a ping to. The caller then calls
    /// [`done`](Self::done) to remove the session from the list.
    pub(super) fn next_to_ask(&mut self, now: Instant, dtls: &dtls::Endpoint<Client>) -> Option<SessionId> {
        while let Some(&session) = self.withheld.last() {
            let was_asked = self
                .asked
                .get(&session)
                .is_some_and(|&(path, at)| dtls.path(session) == Some(path) && now < at + ASK_AGAIN);
            if !was_asked && dtls.path(session).is_some() {
                return Some(session);
            }
            self.withheld.pop();
        }
        None
    }

    /// Holds a request until its device has answered a ping, and schedules the ping. Returns the
    /// session's previously held request, if any, which the new request replaces.
    pub(super) fn hold(&mut self, session: SessionId, request: Held) -> Option<Held> {
        self.withheld.push(session);
        self.held.insert(session, request)
    }

    /// Schedules another ping if a request of the device is held.
    pub(super) fn remind(&mut self, session: SessionId) {
        if self.held.contains_key(&session) {
            self.withheld.push(session);
        }
    }

    /// Removes and returns the held request.
    pub(super) fn released(&mut self, session: SessionId) -> Option<Held> {
        self.held.remove(&session)
    }

    /// Returns whether the device has moved to another path since its last ping was sent.
    pub(super) fn has_moved(&self, session: SessionId, dtls: &dtls::Endpoint<Client>) -> bool {
        self.asked.get(&session).is_some_and(|&(path, _)| dtls.path(session) != Some(path))
    }

    /// Records that a ping was sent to the device's current address.
    pub(super) fn asked(&mut self, now: Instant, session: SessionId, dtls: &dtls::Endpoint<Client>) {
        if let Some(path) = dtls.path(session) {
            self.asked.insert(session, (path, now));
        }
    }

    /// Removes from the list the session that [`next_to_ask`](Self::next_to_ask) returned last,
    /// even if its ping could not be sent. The next message in the session causes another attempt.
    pub(super) fn done(&mut self) {
        let asked = self.withheld.pop();
        self.withheld.retain(|&other| Some(other) != asked);
    }

    /// Forgets the session's ping, and returns its path. By answering the ping, the device has
    /// shown that it receives datagrams on this path.
    pub(super) fn answered(&mut self, session: SessionId) -> Option<Path> {
        self.asked.remove(&session).map(|(path, _)| path)
    }

    #[cfg(test)]
    pub(super) fn open(&self) -> usize {
        self.asked.len() + self.withheld.len() + self.held.len()
    }

    pub(super) fn forget(&mut self, session: SessionId) {
        self.asked.remove(&session);
        self.held.remove(&session);
    }
}

/// Outbox of the CoAP endpoint. Sends each message in its DTLS session.
pub(super) struct Sealing<'s, O> {
    dtls: &'s mut dtls::Endpoint<Client>,
    out: &'s mut O,
    validation: &'s mut Validation,
    to_validated: bool,
}

impl<'s, O: dtls::Outbox> Sealing<'s, O> {
    pub(super) fn new(
        dtls: &'s mut dtls::Endpoint<Client>,
        out: &'s mut O,
        validation: &'s mut Validation,
    ) -> Self {
        Self { dtls, out, validation, to_validated: false }
    }

    /// Creates an outbox that sends to the device's most recently validated address, even if the
    /// device has moved again since.
    pub(super) fn to_validated(
        dtls: &'s mut dtls::Endpoint<Client>,
        out: &'s mut O,
        validation: &'s mut Validation,
    ) -> Self {
        Self { to_validated: true, ..Self::new(dtls, out, validation) }
    }
}

impl<O: dtls::Outbox> coap::Outbox<SessionId> for Sealing<'_, O> {
    fn push(&mut self, session: SessionId, message: &[u8]) -> bool {
        let delivery = if self.to_validated {
            self.dtls.send_validated(session, message, self.out)
        } else {
            self.dtls.send(session, message, self.out)
        };
        if delivery == Delivery::Unvalidated {
            self.validation.withheld.push(session);
        }
        // A closed session accepts no message. Its exchanges were forgotten when it was closed.
        delivery == Delivery::Sent
    }

    fn max_message(&self, session: SessionId) -> usize {
        self.dtls.max_data(session).unwrap_or(0)
    }
}
