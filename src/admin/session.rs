//! Console sessions in the memory of this server, and the limits of their number and lifetime. The
//! table has the sessions of all servers (`sessions.rs`); the sessions in memory are used while the
//! table does not answer. Stores only a hash of each session's cookie. This module performs no I/O,
//! takes the time as an argument, and does not depend on HTTP.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::{operators::User, random::random};

/// Time after a person's last request at which a session becomes idle. In an idle session, an open
/// page can still update itself; for anything else, the user must sign in again.
pub(super) const IDLE: Duration = Duration::from_secs(30 * 60);
/// Maximum lifetime of a session, even if it is in use.
pub(super) const LONGEST: Duration = Duration::from_secs(12 * 60 * 60);
/// Maximum number of sessions. At the maximum, a new session ends the session that has been idle
/// longest.
pub(super) const MOST: usize = 64;

/// Hash of a session's cookie. Identifies the session without revealing the cookie.
pub(super) type SessionKey = [u8; 32];

/// The session of a user who has signed in.
#[derive(Debug, Clone)]
pub(super) struct Session {
    /// The user's name in the configuration.
    pub(super) user: String,
    /// Mark of the user in the configuration at the beginning of the session.
    pub(super) mark: Mark,
    /// Set if the table has the session.
    pub(super) is_shared: bool,
    began: Instant,
    last: Instant,
}

/// Mark of a user in a session. If the user's password or role changes, so does the mark.
pub(super) type Mark = [u8; 32];

/// Returns the mark of a user in the session with this cookie. It reveals nothing without the cookie.
pub(super) fn mark(id: &str, user: &User) -> Mark {
    let role = user.role.to_string();
    derived(
        id,
        &[b"certdist session 1", role.as_bytes(), user.name.as_bytes(), user.password_hash.as_bytes()],
    )
}

/// Returns the CSRF token that each form of the session with this cookie must carry.
pub(super) fn csrf(id: &str) -> String {
    BASE64_URL_SAFE_NO_PAD.encode(derived(id, &[b"certdist csrf 1"]))
}

/// Derives 32 bytes from a cookie. They cannot be calculated without the cookie.
fn derived(id: &str, parts: &[&[u8]]) -> [u8; 32] {
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(id.as_bytes()) else {
        unreachable!("HMAC takes any key")
    };
    for part in parts {
        mac.update(&(part.len() as u64).to_be_bytes());
        mac.update(part);
    }
    mac.finalize().into_bytes().into()
}

impl Session {
    fn is_idle(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.last) >= IDLE
    }

    fn is_over(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.began) >= LONGEST
    }
}

/// Kind of a request within a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Request {
    /// A person's request, which keeps the session from becoming idle.
    Action,
    /// A request by which an open page updates itself. An idle session permits such a request, so
    /// that an overview on a wall display stays current.
    Renewal,
}

/// All sessions.
#[derive(Default)]
pub(super) struct Sessions(HashMap<SessionKey, Session>);

impl Sessions {
    /// Begins a session. `id` is a new random token, the value of the cookie.
    pub(super) fn begin(&mut self, now: Instant, id: &str, user: &str, mark: Mark, is_shared: bool) {
        self.0.retain(|_, session| !session.is_over(now));
        if self.0.len() >= MOST
            && !self.0.contains_key(&key_of(id))
            && let Some(idle) = self.0.iter().min_by_key(|(_, session)| session.last).map(|(key, _)| *key)
        {
            self.0.remove(&idle);
        }
        let session = Session { user: user.to_owned(), mark, is_shared, began: now, last: now };
        self.0.insert(key_of(id), session);
    }

    /// Notes a session that is in the table. `age` and `idle` are the times since it began and since
    /// its last use.
    pub(super) fn note(
        &mut self,
        now: Instant,
        id: &str,
        (user, mark): (&str, Mark),
        (age, idle): (Duration, Duration),
    ) {
        self.begin(now, id, user, mark, true);
        let before = |time| now.checked_sub(time).unwrap_or(now);
        if let Some(session) = self.0.get_mut(&key_of(id)) {
            (session.began, session.last) = (before(age), before(idle));
        }
    }

    /// Ends a session that the table no longer has. A session that was never in the table stays.
    pub(super) fn end_if_shared(&mut self, id: &str) {
        let key = key_of(id);
        if self.0.get(&key).is_some_and(|session| session.is_shared) {
            self.0.remove(&key);
        }
    }

    /// Finds the session of a cookie, if the session permits this kind of request.
    pub(super) fn find(&mut self, now: Instant, id: &str, request: Request) -> Option<(SessionKey, Session)> {
        let key = key_of(id);
        let session = self.0.get_mut(&key)?;
        if session.is_over(now) {
            self.0.remove(&key);
            return None;
        }
        if request == Request::Action {
            if session.is_idle(now) {
                return None;
            }
            session.last = now;
        }
        Some((key, session.clone()))
    }

    /// Ends the sessions of users for whom `may_stay` returns false; returns the number of
    /// sessions that ended.
    pub(super) fn keep(&mut self, may_stay: impl Fn(&str) -> bool) -> usize {
        let before = self.0.len();
        self.0.retain(|_, session| may_stay(&session.user));
        before - self.0.len()
    }

    /// Ends a session.
    pub(super) fn end(&mut self, key: &SessionKey) {
        self.0.remove(key);
    }
}

/// Hashes a secret that comes from outside. The time of a lookup by the hash reveals nothing about
/// the secret.
pub(super) fn key_of(secret: &str) -> SessionKey {
    Sha256::digest(secret.as_bytes()).into()
}

/// Compares two secrets in constant time.
pub(super) fn same(one: &str, other: &str) -> bool {
    key_of(one).ct_eq(&key_of(other)).into()
}

/// Makes a token of 256 random bits, as text.
pub(super) fn token() -> anyhow::Result<String> {
    Ok(BASE64_URL_SAFE_NO_PAD.encode(random()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn begin(sessions: &mut Sessions, now: Instant, id: &str) {
        sessions.begin(now, id, "lead", [7; 32], true);
    }

    #[test]
    fn a_session_ends_when_it_is_idle_and_always_after_its_maximum_lifetime() {
        let (mut sessions, now) = (Sessions::default(), Instant::now());
        begin(&mut sessions, now, "one");
        assert!(sessions.find(now + IDLE - Duration::from_secs(1), "one", Request::Action).is_some());
        assert!(
            sessions.find(now + IDLE + Duration::from_secs(1), "one", Request::Action).is_some(),
            "it was touched"
        );
        begin(&mut sessions, now, "two");
        assert!(sessions.find(now + IDLE, "two", Request::Action).is_none());
        begin(&mut sessions, now, "three");
        let mut at = now;
        while at < now + LONGEST {
            assert!(sessions.find(at, "three", Request::Action).is_some());
            at += Duration::from_secs(60);
        }
        assert!(sessions.find(now + LONGEST, "three", Request::Action).is_none());
    }

    #[test]
    fn an_open_page_updates_itself_in_an_idle_session_but_keeps_it_no_longer() {
        let (mut sessions, now) = (Sessions::default(), Instant::now());
        begin(&mut sessions, now, "one");
        let mut at = now;
        while at < now + LONGEST {
            assert!(sessions.find(at, "one", Request::Renewal).is_some());
            at += Duration::from_secs(60);
        }
        assert!(sessions.find(now + IDLE, "one", Request::Action).is_none());
        assert!(sessions.find(now + LONGEST, "one", Request::Renewal).is_none());
    }

    #[test]
    fn the_session_idle_longest_makes_room() {
        let (mut sessions, now) = (Sessions::default(), Instant::now());
        for number in 0..=MOST {
            begin(&mut sessions, now + Duration::from_secs(number as u64), &number.to_string());
        }
        let later = now + Duration::from_secs(100);
        assert!(sessions.find(later, "0", Request::Action).is_none());
        assert!(sessions.find(later, "1", Request::Action).is_some());
        assert_eq!(sessions.0.len(), MOST);
    }

    #[test]
    fn an_unknown_cookie_has_no_session() {
        let (mut sessions, now) = (Sessions::default(), Instant::now());
        begin(&mut sessions, now, "one");
        assert!(sessions.find(now, "", Request::Action).is_none());
        let (key, session) = sessions.find(now, "one", Request::Action).unwrap();
        assert_eq!((session.user.as_str(), session.mark), ("lead", [7; 32]));
        sessions.end(&key);
        assert!(sessions.find(now, "one", Request::Action).is_none());
        assert_ne!(token().unwrap(), token().unwrap());
    }
    #[test]
    fn a_mark_changes_with_the_user_and_reveals_no_csrf_token() {
        use crate::operators::Role;
        let user =
            |name: &str, hash: &str, role| User { name: name.into(), password_hash: hash.into(), role };
        let lead = user("lead", "$argon2id$1", Role::Operator);
        let own = mark("cookie", &lead);
        assert_eq!(mark("cookie", &lead.clone()), own);
        for other in [
            user("lead", "$argon2id$2", Role::Operator),
            user("lead", "$argon2id$1", Role::Viewer),
            user("lea", "d$argon2id$1", Role::Operator),
        ] {
            assert_ne!(mark("cookie", &other), own);
        }
        assert_ne!(mark("other", &lead), own);
        assert_eq!(csrf("cookie"), csrf("cookie"));
        assert_ne!(csrf("cookie"), csrf("other"));
        assert_ne!(csrf("cookie"), BASE64_URL_SAFE_NO_PAD.encode(own));
    }
}
