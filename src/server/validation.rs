//! Devices with a connection ID that have moved (RFC 9146 §6): more than a few bytes are
//! sent to a new address only when the device was shown to receive there. It is asked with
//! a CoAP ping inside its session; answers wait in the CoAP endpoint meanwhile.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use super::stack::{Client, Held};
use crate::{
    coap,
    dtls::{self, Delivery, Path, SessionId},
};

/// Time after which a device is asked again, if there is still something for it.
const ASK_AGAIN: Duration = Duration::from_secs(2);

/// Questions to devices where they are.
#[derive(Default)]
pub(super) struct Validation {
    /// Sessions with a message that was withheld, not yet asked.
    withheld: Vec<SessionId>,
    /// Where and when each was asked last.
    asked: HashMap<SessionId, (Path, Instant)>,
    /// Requests that wait for the answers.
    held: HashMap<SessionId, Held>,
}

impl Validation {
    /// The next session to be asked; [`done`](Self::done) takes it off the list.
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

    /// Keeps a request until its device has answered, and has it asked. Returns the one
    /// that was kept before.
    pub(super) fn hold(&mut self, session: SessionId, request: Held) -> Option<Held> {
        self.withheld.push(session);
        self.held.insert(session, request)
    }

    /// Has the device asked again, if a request of it is kept.
    pub(super) fn remind(&mut self, session: SessionId) {
        if self.held.contains_key(&session) {
            self.withheld.push(session);
        }
    }

    /// The request that was kept until now.
    pub(super) fn released(&mut self, session: SessionId) -> Option<Held> {
        self.held.remove(&session)
    }

    /// Returns whether the device was asked at another address than where it is now.
    pub(super) fn has_moved(&self, session: SessionId, dtls: &dtls::Endpoint<Client>) -> bool {
        self.asked.get(&session).is_some_and(|&(path, _)| dtls.path(session) != Some(path))
    }

    /// Notes that the device was asked where it is now.
    pub(super) fn asked(&mut self, now: Instant, session: SessionId, dtls: &dtls::Endpoint<Client>) {
        if let Some(path) = dtls.path(session) {
            self.asked.insert(session, (path, now));
        }
    }

    /// Takes the session off that was asked, and those whose question did not fit either:
    /// they are asked with their next message.
    pub(super) fn done(&mut self) {
        let asked = self.withheld.pop();
        self.withheld.retain(|&other| Some(other) != asked);
    }

    /// The path on which the device has just shown that it receives.
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

/// Destination of the CoAP endpoint's messages: their DTLS sessions.
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

    /// To where the device was last shown to receive, though it may have moved on since.
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
        // A session that is gone takes no message; its exchanges go with it.
        delivery == Delivery::Sent
    }

    fn max_message(&self, session: SessionId) -> usize {
        self.dtls.max_data(session).unwrap_or(0)
    }
}
