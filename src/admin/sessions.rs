//! The sessions of all servers of the table. A user who has signed in at one server is signed in at each.
//! The table has the hash of each session's cookie, and nothing from which the cookie could be
//! calculated. While the table does not answer, a server uses the sessions in its memory.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use super::session::{self, IDLE, LONGEST, MOST, Mark, Request, SessionKey, Sessions};
use crate::store::{
    StoreError, Table,
    shelf::{Item, ItemKind, ShelfLimits},
};

/// Maximum wait for the table.
const WAIT: Duration = Duration::from_secs(2);

/// Minimum time between two notes of a session's use in the table. As the table does not know the exact
/// time of the last use, a session may last longer by up to this time.
const TOUCH_EVERY: Duration = Duration::from_secs(60);

const LIMITS: ShelfLimits = ShelfLimits { most: MOST, kept: Some(LONGEST) };

/// A session that a request belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Signed {
    /// Hash of the cookie.
    pub(super) key: SessionKey,
    /// The user's name.
    pub(super) user: String,
    /// Mark of the user when the session began.
    pub(super) mark: Mark,
}

/// The sessions in the table, and those in the memory of this server.
pub(super) struct SharedSessions {
    store: Arc<dyn Table>,
    local: Mutex<Sessions>,
}

impl SharedSessions {
    pub(super) fn new(store: Arc<dyn Table>) -> Self {
        Self { store, local: Mutex::default() }
    }

    /// Begins a session. If the table does not take it, the session is known only to this server.
    pub(super) async fn begin(&self, id: &str, user: &str, mark: Mark) {
        let value = [&mark[..], user.as_bytes()].concat();
        let shelved = self.store.shelve(ItemKind::Session, session::key_of(id), value, LIMITS);
        let is_shared = match self.within(shelved).await {
            Ok(_) => true,
            Err(error) => {
                tracing::warn!(%error, "a console session could not be stored, so only this server knows it");
                false
            }
        };
        self.local().begin(Instant::now(), id, user, mark, is_shared);
    }

    /// Finds the session of a cookie, if the session permits this kind of request.
    pub(super) async fn find(&self, id: &str, request: Request) -> Option<Signed> {
        let key = session::key_of(id);
        let item = match self.within(self.store.shelved(ItemKind::Session, key)).await {
            Ok(Some(item)) => item,
            Ok(None) => {
                self.local().end_if_shared(id);
                return self.find_here(id, request);
            }
            Err(_) => return self.find_here(id, request),
        };
        let Item { value, age, idle } = item;
        let (mark, user) = value.split_first_chunk::<32>()?;
        let user = std::str::from_utf8(user).ok()?;
        if age >= LONGEST || (request == Request::Action && idle >= IDLE + TOUCH_EVERY) {
            return None;
        }
        let is_used = request == Request::Action && idle >= TOUCH_EVERY;
        if is_used && let Err(error) = self.within(self.store.touch_item(ItemKind::Session, key)).await {
            tracing::debug!(%error, "the use of a console session could not be noted");
        }
        let idle = if request == Request::Action { Duration::ZERO } else { idle };
        self.local().note(Instant::now(), id, (user, *mark), (age, idle));
        Some(Signed { key, user: user.to_owned(), mark: *mark })
    }

    /// Finds a session in the memory of this server.
    fn find_here(&self, id: &str, request: Request) -> Option<Signed> {
        let (key, session) = self.local().find(Instant::now(), id, request)?;
        Some(Signed { key, user: session.user, mark: session.mark })
    }

    /// Ends a session.
    pub(super) async fn end(&self, key: &SessionKey) {
        self.local().end(key);
        if let Err(error) = self.within(self.store.take_item(ItemKind::Session, *key)).await {
            tracing::warn!(%error, "a console session could not be removed from the table; it ends by itself");
        }
    }

    /// Ends the sessions in the memory of this server that belong to users for whom `may_stay` returns
    /// false. The mark of such a user has changed, so the session in the table has no effect. Returns
    /// their number.
    pub(super) fn keep(&self, may_stay: impl Fn(&str) -> bool) -> usize {
        self.local().keep(may_stay)
    }

    async fn within<T>(&self, answer: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
        let late = || Err(StoreError::Busy("it does not answer".into()));
        tokio::time::timeout(WAIT, answer).await.unwrap_or_else(|_| late())
    }

    fn local(&self) -> MutexGuard<'_, Sessions> {
        // No code panics while it holds the lock, so a poisoned lock cannot occur.
        self.local.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{seal::Keyring, store::sealed::Sealed, testing::store::Memory};

    fn server(memory: &Memory) -> SharedSessions {
        SharedSessions::new(Arc::new(Sealed::new(memory.clone(), Keyring::default())))
    }

    #[tokio::test]
    async fn a_session_is_known_to_each_server_until_one_ends_it() {
        let memory = Memory::default();
        let [one, other] = [server(&memory), server(&memory)];
        assert_eq!(one.find("cookie", Request::Action).await, None);
        one.begin("cookie", "lead", [7; 32]).await;
        let expected = Signed { key: session::key_of("cookie"), user: "lead".into(), mark: [7; 32] };
        for server in [&one, &other] {
            for request in [Request::Action, Request::Renewal] {
                assert_eq!(server.find("cookie", request).await.as_ref(), Some(&expected));
                assert_eq!(server.find("other", request).await, None);
            }
        }
        other.end(&expected.key).await;
        for server in [&one, &other] {
            assert_eq!(server.find("cookie", Request::Action).await, None);
        }
    }

    #[tokio::test]
    async fn while_the_table_does_not_answer_a_server_knows_its_own_sessions() {
        let memory = Memory::default();
        let one = server(&memory);
        one.begin("before", "lead", [7; 32]).await;
        memory.set_busy(true);
        one.begin("meanwhile", "guest", [8; 32]).await;
        for id in ["before", "meanwhile"] {
            assert!(one.find(id, Request::Action).await.is_some(), "{id}");
        }
        memory.set_busy(false);
        for id in ["before", "meanwhile"] {
            assert!(one.find(id, Request::Action).await.is_some(), "{id}");
        }
    }
}
