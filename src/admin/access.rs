//! Who may come in: users with a password, scripts with a token, and how often either
//! may be tried. Knows no HTTP.

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
    limits::{Buckets, Origin, Rate},
    operators::{Role, Token, User},
    password,
};

/// Passwords that are checked at once: each check takes 19 MiB and a core.
const CHECKS: usize = 2;

/// Makes a token, and its hash as `hash` of the configuration.
pub fn new_token() -> anyhow::Result<(Secret, String)> {
    let token = Secret::new(session::token()?);
    let hash = format!("sha256:{}", hex::encode(session::key_of(token.expose())));
    Ok((token, hash))
}

/// Somebody who is in.
#[derive(Debug, Clone)]
pub(super) struct Visitor {
    /// Name of a user or a token.
    pub(super) name: String,
    /// What they may do.
    pub(super) role: Role,
    /// Where they are, or the proxy that they come through.
    pub(super) address: IpAddr,
    /// With a cookie; scripts have none.
    pub(super) session: Option<(SessionKey, String)>,
}

/// Why somebody does not come in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Denied {
    /// Wrong name, password or token: which, they do not learn.
    Wrong,
    /// Tried too often; again after so many seconds.
    TooOften(u64),
}

/// A session that has just begun.
pub(super) struct Begun {
    /// The cookie's value.
    pub(super) id: String,
}

/// Who may come in, and who is in: a session's user is one of `users`.
struct House {
    users: Vec<User>,
    tokens: Vec<Token>,
    sessions: Sessions,
}

/// The door.
pub(super) struct Gate {
    house: Mutex<House>,
    attempts: Mutex<Buckets>,
    checks: Arc<Semaphore>,
    per_user: Option<Rate>,
    per_address: Option<Rate>,
}

impl Gate {
    pub(super) fn new(users: Vec<User>, tokens: Vec<Token>) -> Self {
        Self {
            house: Mutex::new(House { users, tokens, sessions: Sessions::default() }),
            attempts: Mutex::new(Buckets::new(Instant::now())),
            checks: Arc::new(Semaphore::new(CHECKS)),
            // Ten at once; then one a minute for a name, and one each ten seconds for
            // an address, behind which there may be an office.
            per_user: Rate::new(10, Duration::from_secs(60)),
            per_address: Rate::new(20, Duration::from_secs(10)),
        }
    }

    /// Whether anybody can come in at all.
    pub(super) fn has_anybody(&self) -> bool {
        let house = lock(&self.house);
        !house.users.is_empty() || !house.tokens.is_empty()
    }

    /// Takes other users and tokens from now on. Sessions of a user who is gone, or has
    /// another password or role, end.
    pub(super) fn reload(&self, users: Vec<User>, tokens: Vec<Token>) {
        let mut house = lock(&self.house);
        let unchanged: Vec<User> = users.iter().filter(|user| house.users.contains(user)).cloned().collect();
        let ended = house.sessions.keep(|name| unchanged.iter().any(|user| user.name == name));
        (house.users, house.tokens) = (users, tokens);
        if ended > 0 {
            tracing::info!(ended, "sessions of users who are gone or changed");
        }
    }

    /// Takes one try, of those that a name and an address have.
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

    /// Begins a session for whoever knows a user's password.
    pub(super) async fn sign_in(
        &self,
        address: IpAddr,
        name: &str,
        password: Secret,
    ) -> Result<Begun, Denied> {
        let user = lock(&self.house).users.iter().find(|user| user.name == name).cloned();
        // A name that nobody has is limited like any other, or it would show.
        self.try_once(Instant::now(), address, Some(name)).inspect_err(|_| {
            tracing::warn!(%address, name = ?name, "too many attempts to sign in to the console");
        })?;
        let hash = user.as_ref().map_or(password::NOBODY, |user| user.password_hash.as_str()).to_owned();
        let Ok(_permit) = self.checks.acquire().await else { return Err(Denied::Wrong) };
        let check = move || password::is_right(&password, &hash);
        let is_right = tokio::task::spawn_blocking(check).await.unwrap_or(false);
        match user.filter(|_| is_right) {
            Some(user) => {
                let fresh = || {
                    session::token().map_err(|error| {
                        tracing::error!(%error, "nobody can sign in");
                        Denied::Wrong
                    })
                };
                let (id, csrf) = (fresh()?, fresh()?);
                let mut house = lock(&self.house);
                // The configuration may have changed while the password was checked.
                if !house.users.contains(&user) {
                    return Err(Denied::Wrong);
                }
                house.sessions.begin(Instant::now(), &id, csrf, &user.name, user.role);
                tracing::info!(%address, user = user.name, role = %user.role, "signed in to the console");
                Ok(Begun { id })
            }
            None => {
                tracing::warn!(%address, name = ?name, "could not sign in to the console");
                Err(Denied::Wrong)
            }
        }
    }

    /// Who a cookie is.
    pub(super) fn by_cookie(&self, address: IpAddr, id: &str, touch: bool) -> Option<Visitor> {
        let (key, Session { user, role, csrf, .. }) =
            lock(&self.house).sessions.find(Instant::now(), id, touch)?;
        Some(Visitor { name: user, role, address, session: Some((key, csrf)) })
    }

    /// Who a token is. All are compared, each in constant time; a wrong one counts as
    /// a try.
    pub(super) fn by_token(&self, address: IpAddr, token: &str) -> Result<Visitor, Denied> {
        let hash = session::key_of(token);
        let (house, mut found) = (lock(&self.house), None);
        for known in &house.tokens {
            if bool::from(known.hash.ct_eq(&hash)) {
                found = Some(known);
            }
        }
        match found {
            Some(known) => Ok(Visitor { name: known.name.clone(), role: known.role, address, session: None }),
            None => {
                drop(house);
                self.try_once(Instant::now(), address, None)?;
                tracing::warn!(%address, "a wrong token for the console");
                Err(Denied::Wrong)
            }
        }
    }

    /// Ends a session.
    pub(super) fn sign_out(&self, visitor: &Visitor) {
        if let Some((key, _)) = &visitor.session {
            lock(&self.house).sessions.end(key);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing panics while one of these is held.
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
    fn a_name_is_tried_ten_times_from_whatever_addresses_and_then_waits() {
        let (gate, now) = (gate(), Instant::now());
        // A name that nobody has behaves alike.
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
    fn an_address_is_heard_twenty_times_whatever_names_it_tries() {
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
    fn only_the_right_password_opens_and_not_when_there_were_too_many_tries() {
        let gate = gate();
        assert_eq!(try_in(&gate, [10, 0, 0, 1], "lead", "wrong"), Some(Denied::Wrong));
        assert_eq!(try_in(&gate, [10, 0, 0, 1], "bob", PASSWORD), Some(Denied::Wrong));
        assert_eq!(try_in(&gate, [10, 0, 0, 1], "lead", PASSWORD), None);
        while gate.try_once(Instant::now(), [10, 0, 0, 2].into(), Some("lead")).is_ok() {}
        let denied = try_in(&gate, [10, 0, 0, 3], "lead", PASSWORD);
        assert!(matches!(denied, Some(Denied::TooOften(_))), "even the right one: {denied:?}");
    }

    #[test]
    fn whoever_changes_while_their_password_is_checked_does_not_come_in() {
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
                // The first is polled first, and waits for a check.
                tokio::join!(biased; entering, changing).0.is_ok()
            })
        };
        assert!(came_in(|_| ()));
        assert!(!came_in(|gate| gate.reload(Vec::new(), Vec::new())));
    }
}
