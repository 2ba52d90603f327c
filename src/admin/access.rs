//! Authenticates users by password and scripts by token, and limits the rate of attempts. Does
//! not depend on HTTP.

use std::{
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use subtle::ConstantTimeEq;
use tokio::sync::Semaphore;

use super::session::{self, Session, SessionKey, Sessions};
use crate::{
    device::Secret,
    operators::{Role, Token, User},
    password,
    rate_limit::{Buckets, Origin, Rate},
};

/// Maximum number of concurrent password checks, because each takes 19 MiB and a core.
const CHECKS: usize = 2;

/// Creates a token. Returns it together with its hash, in the form of `hash` in the
/// configuration.
pub fn new_token() -> anyhow::Result<(Secret, String)> {
    let token = Secret::new(session::token()?);
    let hash = format!("sha256:{}", hex::encode(session::key_of(token.expose())));
    Ok((token, hash))
}

/// An authenticated user or script.
#[derive(Debug, Clone)]
pub(super) struct Visitor {
    /// Name of a user or a token.
    pub(super) name: String,
    /// Role, which decides what is permitted.
    pub(super) role: Role,
    /// Address of the client, or of the proxy in front of it.
    pub(super) address: IpAddr,
    /// Key and CSRF token of the session; `None` for scripts, which have no cookie.
    pub(super) session: Option<(SessionKey, String)>,
}

/// Reason why authentication failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Denied {
    /// Wrong name, password or token; the answer does not say which.
    Wrong,
    /// Too many attempts; the next one is possible after this number of seconds.
    TooOften(u64),
}

/// A session that has just begun.
pub(super) struct NewSession {
    /// Value of the session's cookie.
    pub(super) id: String,
}

/// Accounts and their sessions; the user of each session is one of `users`.
struct Accounts {
    users: Vec<User>,
    tokens: Vec<Token>,
    sessions: Sessions,
}

/// Checks names, passwords, tokens and cookies.
pub(super) struct Gate {
    accounts: Mutex<Accounts>,
    attempts: Mutex<Buckets>,
    checks: Arc<Semaphore>,
    per_user: Option<Rate>,
    per_address: Option<Rate>,
}

impl Gate {
    pub(super) fn new(users: Vec<User>, tokens: Vec<Token>) -> Self {
        Self {
            accounts: Mutex::new(Accounts { users, tokens, sessions: Sessions::default() }),
            attempts: Mutex::new(Buckets::new(Instant::now())),
            checks: Arc::new(Semaphore::new(CHECKS)),
            // A name may be tried ten times at once, and then once a minute. An address may make
            // 20 attempts at once, and then one every 10 s, because a whole office may share it.
            per_user: Rate::new(10, Duration::from_secs(60)),
            per_address: Rate::new(20, Duration::from_secs(10)),
        }
    }

    /// Returns whether any user or token is configured.
    pub(super) fn has_accounts(&self) -> bool {
        let accounts = lock(&self.accounts);
        !accounts.users.is_empty() || !accounts.tokens.is_empty()
    }

    /// Replaces the users and tokens. Ends the sessions of users who were removed, or whose
    /// password or role has changed.
    pub(super) fn reload(&self, users: Vec<User>, tokens: Vec<Token>) {
        let mut accounts = lock(&self.accounts);
        let unchanged: Vec<User> =
            users.iter().filter(|user| accounts.users.contains(user)).cloned().collect();
        let ended = accounts.sessions.keep(|name| unchanged.iter().any(|user| user.name == name));
        (accounts.users, accounts.tokens) = (users, tokens);
        if ended > 0 {
            tracing::info!(
                sessions = ended,
                "ended the console sessions of users who were removed or changed"
            );
        }
    }

    /// Counts an attempt against the rate limits of the address and of the name.
    fn try_once(&self, now: Instant, address: IpAddr, name: Option<&str>) -> Result<(), Denied> {
        let attempts = lock(&self.attempts);
        let by_address = (self.per_address, (Origin::of(address), ""));
        let by_name = name.map(|name| (self.per_user, (Origin::of(IpAddr::from([0; 4])), name)));
        let buckets = [Some(by_address), by_name].into_iter().flatten();
        let buckets: Vec<_> = buckets.filter_map(|(rate, key)| Some((rate?, key))).collect();
        for (rate, key) in &buckets {
            if let Err(empty) = attempts.check(now, *rate, key) {
                return Err(Denied::TooOften(empty.wait.as_secs() + 1));
            }
        }
        for (rate, key) in &buckets {
            attempts.take(now, *rate, key);
        }
        Ok(())
    }

    /// Begins a session if the password is right.
    pub(super) async fn sign_in(
        &self,
        address: IpAddr,
        name: &str,
        password: Secret,
    ) -> Result<NewSession, Denied> {
        let user = lock(&self.accounts).users.iter().find(|user| user.name == name).cloned();
        // Unknown names have the same rate limit; otherwise the limit would reveal which names
        // exist.
        self.try_once(Instant::now(), address, Some(name)).inspect_err(|_| {
            tracing::warn!(peer = %address, user = name, "could not sign in to the console: too many attempts");
        })?;
        let hash =
            user.as_ref().map_or(password::UNKNOWN_USER, |user| user.password_hash.as_str()).to_owned();
        let Ok(_permit) = self.checks.acquire().await else { return Err(Denied::Wrong) };
        let check = move || password::is_right(&password, &hash);
        let is_right = tokio::task::spawn_blocking(check).await.unwrap_or(false);
        match user.filter(|_| is_right) {
            Some(user) => {
                let fresh = || {
                    session::token().map_err(|error| {
                        tracing::error!(%error, "could not sign in to the console: the system gives no random numbers");
                        Denied::Wrong
                    })
                };
                let (id, csrf) = (fresh()?, fresh()?);
                let mut accounts = lock(&self.accounts);
                // The configuration may have changed while the password was checked.
                if !accounts.users.contains(&user) {
                    return Err(Denied::Wrong);
                }
                accounts.sessions.begin(Instant::now(), &id, csrf, &user.name, user.role);
                tracing::info!(peer = %address, user = user.name, role = %user.role, "signed in to the console");
                Ok(NewSession { id })
            }
            None => {
                tracing::warn!(peer = %address, user = name, "could not sign in to the console: wrong name or password");
                Err(Denied::Wrong)
            }
        }
    }

    /// Returns the visitor to whom a session cookie belongs. `touch` says whether the request
    /// keeps the session from ending.
    pub(super) fn by_cookie(&self, address: IpAddr, id: &str, touch: bool) -> Option<Visitor> {
        let (key, Session { user, role, csrf, .. }) =
            lock(&self.accounts).sessions.find(Instant::now(), id, touch)?;
        Some(Visitor { name: user, role, address, session: Some((key, csrf)) })
    }

    /// Returns the visitor to whom a token belongs. Compares it with all configured tokens,
    /// each in constant time. A wrong token counts as an attempt.
    pub(super) fn by_token(&self, address: IpAddr, token: &str) -> Result<Visitor, Denied> {
        let hash = session::key_of(token);
        let (accounts, mut found) = (lock(&self.accounts), None);
        for known in &accounts.tokens {
            if bool::from(known.hash.ct_eq(&hash)) {
                found = Some(known);
            }
        }
        match found {
            Some(known) => Ok(Visitor { name: known.name.clone(), role: known.role, address, session: None }),
            None => {
                drop(accounts);
                self.try_once(Instant::now(), address, None)?;
                tracing::warn!(peer = %address, "rejected a request to the console: wrong token");
                Err(Denied::Wrong)
            }
        }
    }

    /// Ends the visitor's session, if there is one.
    pub(super) fn sign_out(&self, visitor: &Visitor) {
        if let Some((key, _)) = &visitor.session {
            lock(&self.accounts).sessions.end(key);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // No code panics while it holds one of these locks.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWORD: &str = "correct horse battery";

    fn gate() -> Gate {
        let password_hash = password::hash(&Secret::new(PASSWORD.into())).unwrap();
        let user = User { name: "lead".into(), password_hash, role: Role::Operator };
        Gate::new(vec![user], Vec::new())
    }

    fn try_in(gate: &Gate, address: [u8; 4], name: &str, password: &str) -> Option<Denied> {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(gate.sign_in(address.into(), name, Secret::new(password.into()))).err()
    }

    #[test]
    fn a_name_is_tried_ten_times_from_any_addresses_and_then_waits() {
        let (gate, now) = (gate(), Instant::now());
        // `bob` is no user, but has the same limit as the user `lead`.
        for name in ["lead", "bob"] {
            for attempt in 0..10 {
                assert_eq!(gate.try_once(now, [10, 0, 0, attempt].into(), Some(name)), Ok(()), "{attempt}");
            }
            let denied = gate.try_once(now, [10, 0, 0, 99].into(), Some(name));
            assert!(matches!(denied, Err(Denied::TooOften(50..=61))), "{denied:?}");
            let later = now + Duration::from_secs(61);
            assert_eq!(gate.try_once(later, [10, 0, 0, 99].into(), Some(name)), Ok(()));
        }
    }

    #[test]
    fn an_address_has_twenty_attempts_with_any_names() {
        let (gate, now) = (gate(), Instant::now());
        for attempt in 0..20 {
            let name = format!("user-{attempt}");
            assert_eq!(gate.try_once(now, [10, 0, 0, 1].into(), Some(&name)), Ok(()));
        }
        let denied = gate.try_once(now, [10, 0, 0, 1].into(), Some("lead"));
        assert!(matches!(denied, Err(Denied::TooOften(1..=11))), "{denied:?}");
        assert_eq!(gate.try_once(now, [10, 0, 0, 2].into(), Some("lead")), Ok(()));
    }

    #[test]
    fn only_the_right_password_signs_in_and_not_after_too_many_attempts() {
        let gate = gate();
        assert_eq!(try_in(&gate, [10, 0, 0, 1], "lead", "wrong"), Some(Denied::Wrong));
        assert_eq!(try_in(&gate, [10, 0, 0, 1], "bob", PASSWORD), Some(Denied::Wrong));
        assert_eq!(try_in(&gate, [10, 0, 0, 1], "lead", PASSWORD), None);
        while gate.try_once(Instant::now(), [10, 0, 0, 2].into(), Some("lead")).is_ok() {}
        let denied = try_in(&gate, [10, 0, 0, 3], "lead", PASSWORD);
        assert!(matches!(denied, Some(Denied::TooOften(_))), "even the right one: {denied:?}");
    }

    #[test]
    fn a_user_who_changes_during_the_password_check_is_not_signed_in() {
        let gate = gate();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let came_in = |meanwhile: fn(&Gate)| {
            runtime.block_on(async {
                let busy = gate.checks.acquire_many(CHECKS as u32).await.unwrap();
                let entering = gate.sign_in([10, 0, 0, 1].into(), "lead", Secret::new(PASSWORD.into()));
                let changing = async {
                    meanwhile(&gate);
                    drop(busy);
                };
                // `entering` is polled first, and waits until it may check the password.
                tokio::join!(biased; entering, changing).0.is_ok()
            })
        };
        assert!(came_in(|_| ()));
        assert!(!came_in(|gate| gate.reload(Vec::new(), Vec::new())));
    }
}
