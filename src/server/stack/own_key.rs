//! Checks whether the individual key of a session is still in the table, because an import or a
//! command can remove it at any time. Other keys change only with a reload.

use std::{
    task::Poll,
    time::{Duration, Instant},
};

use super::{Done, Io, Services, Stack, WorkResult, first_step};
use crate::dtls::SessionId;

/// Time for which a key that was found in the table counts as valid. A device usually asks right
/// after its handshake, and then needs no further lookup.
const FRESH: Duration = Duration::from_secs(5);

impl Stack {
    /// Returns whether the session may go on: its key is valid in the present configuration, and its
    /// individual key, if it has one, is still in the table. Ends the session otherwise.
    pub(super) fn may_go_on(&mut self, now: Instant, session: SessionId, io: &mut impl Io) -> bool {
        self.is_good(session, io) && self.has_key(now, session, io)
    }

    /// Returns whether the client's key may still be used, if this is known without waiting. Ends
    /// the session if its individual key is gone.
    fn has_key(&mut self, now: Instant, session: SessionId, io: &mut impl Io) -> bool {
        let Some(client) = self.dtls.principal_mut(session) else { return false };
        if client.principal.own.is_none() || now < client.checked + FRESH {
            return true;
        }
        client.checked = now;
        let (principal, Services { enrollments, store, .. }) =
            (client.principal.clone(), self.services.clone());
        let mut check = Box::pin(async move {
            // If the store fails, the key counts as valid. The request then fails because of the
            // store.
            enrollments.still_has(&principal, &*store).await.unwrap_or(true)
        });
        match first_step(check.as_mut()) {
            Poll::Ready(true) => true,
            Poll::Ready(false) => {
                self.dtls.close(session, io);
                false
            }
            Poll::Pending => {
                self.spawn(async move { Done(WorkResult::OwnKey(session, check.await)) }, io);
                true
            }
        }
    }
}
