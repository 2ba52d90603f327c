//! Authenticates users by password and scripts by token. Limits the rate of attempts per address,
//! per address and name, per name from all addresses, and per browser in which the user has signed
//! in before. Does not depend on HTTP.

use std::{
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use subtle::ConstantTimeEq;
use tokio::sync::Semaphore;

use super::{
    browsers::{self, Browser},
    session::{self, SessionKey},
    sessions::{SharedSessions, Signed},
};
use crate::{
    device::Secret,
    operators::{Role, Token, User},
    password,
    rate_limit::{Buckets, Network, Origin, Rate, Source},
    store::{Table, unix_now},
};

/// Maximum number of concurrent password checks for strangers. Each check takes 19 MiB and a core.
const CHECKS: usize = 2;
/// Number of further concurrent password checks that strangers cannot take. These checks are
/// reserved for known browsers and for programs on this machine.
const RESERVED_CHECKS: usize = 1;
/// Maximum number of password checks of strangers that run or wait. The reserved checks have an
/// equal but separate maximum.
const MOST_WAITING: usize = 32;

/// Creates a token. Returns the token, and its hash in the form of the configuration key `hash`.
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
    /// Session key and CSRF token of the session; `None` for scripts, which have no cookie.
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
    /// Value of the cookie by which the server recognizes the browser from now on.
    pub(super) browser: String,
}

/// Bucket of a rate limit. Each attempt counts in one or more buckets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Bucket<'a> {
    /// Sign-ins from a network, under any name.
    Network(Network),
    /// Requests with a wrong access token, from a network.
    Tokens(Network),
    /// Sign-ins under a name from one origin.
    Pair(Origin, &'a str),
    /// Sign-ins under a name: one bucket for this machine, and one for all other machines.
    Name { is_local: bool, name: &'a str },
    /// Sign-ins under a name from one browser in which the user of this name has signed in before.
    Browser(Browser, &'a str),
}

/// Rates of the attempts.
struct Rates {
    address: Option<Rate>,
    pair: Option<Rate>,
    name: Option<Rate>,
}

/// Password checks of one group of clients.
struct Checks {
    running: Semaphore,
    waiting: Semaphore,
}

impl Checks {
    fn new(running: usize) -> Self {
        Self { running: Semaphore::new(running), waiting: Semaphore::new(MOST_WAITING) }
    }
}

/// The accounts of the configuration.
struct Accounts {
    users: Vec<User>,
    tokens: Vec<Token>,
}

/// Checks names, passwords, tokens and cookies.
pub(super) struct Gate {
    accounts: Mutex<Accounts>,
    sessions: SharedSessions,
    attempts: Mutex<Buckets>,
    rates: Rates,
    strangers: Checks,
    reserved: Checks,
}

impl Gate {
    pub(super) fn new(users: Vec<User>, tokens: Vec<Token>, store: Arc<dyn Table>) -> Self {
        Self {
            accounts: Mutex::new(Accounts { users, tokens }),
            sessions: SharedSessions::new(store),
            attempts: Mutex::new(Buckets::new(Instant::now())),
            rates: Rates {
                // An address may make 20 attempts at once, and then one every 10 s, because a whole
                // office may share the address.
                address: Rate::new(20, Duration::from_secs(10)),
                // From one address, or from one known browser, a name may be tried ten times at
                // once, and then once a minute.
                pair: Rate::new(10, Duration::from_secs(60)),
                // Many addresses together may try a name 100 times, and then 2,880 times a day.
                name: Rate::new(100, Duration::from_secs(30)),
            },
            strangers: Checks::new(CHECKS),
            reserved: Checks::new(RESERVED_CHECKS),
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
        let ended = self.sessions.keep(|name| unchanged.iter().any(|user| user.name == name));
        (accounts.users, accounts.tokens) = (users, tokens);
        if ended > 0 {
            tracing::info!(
                sessions = ended,
                "ended the console sessions of users who were removed or changed"
            );
        }
    }

    /// Counts an attempt in each bucket that has a rate. If one of these buckets is empty, counts
    /// nothing and fails.
    fn take(&self, now: Instant, buckets: &[(Option<Rate>, Bucket)]) -> Result<(), Denied> {
        let attempts = lock(&self.attempts);
        let limited = || buckets.iter().filter_map(|(rate, bucket)| Some(((*rate)?, bucket)));
        for (rate, bucket) in limited() {
            if let Err(empty) = attempts.check(now, rate, bucket) {
                return Err(Denied::TooOften(empty.wait.as_secs() + 1));
            }
        }
        limited().for_each(|(rate, bucket)| attempts.take(now, rate, bucket));
        Ok(())
    }

    /// Counts an attempt to sign in. An attempt from a known browser counts only in the browser's
    /// own bucket, so attempts from elsewhere cannot lock out the browser's user. Attempts from
    /// this machine count in a separate bucket of the name, so attempts from other machines cannot
    /// lock out users of this machine.
    fn try_name(
        &self,
        now: Instant,
        address: IpAddr,
        name: &str,
        browser: Option<Browser>,
    ) -> Result<(), Denied> {
        if let Some(browser) = browser {
            return self.take(now, &[(self.rates.pair, Bucket::Browser(browser, name))]);
        }
        let mut buckets = self.of_address(address, Bucket::Network);
        buckets.push((self.rates.pair, Bucket::Pair(Origin::of(address), name)));
        buckets.push((self.rates.name, Bucket::Name { is_local: is_local(address), name }));
        self.take(now, &buckets)
    }

    /// Counts a wrong token.
    fn try_token(&self, now: Instant, address: IpAddr) -> Result<(), Denied> {
        self.take(now, &self.of_address(address, Bucket::Tokens))
    }

    /// Returns the buckets of an address: one for IPv4, or one for each of the three networks that
    /// contain an IPv6 address.
    fn of_address(
        &self,
        address: IpAddr,
        bucket: fn(Network) -> Bucket<'static>,
    ) -> Vec<(Option<Rate>, Bucket<'static>)> {
        let networks = Source::of(SocketAddr::new(address, 0)).networks();
        networks
            .map(|(network, times)| (self.rates.address.map(|rate| rate.times(times)), bucket(network)))
            .collect()
    }

    /// Begins a session if the password is right. `known` is the cookie of a browser in which a
    /// user has signed in before.
    pub(super) async fn sign_in(
        &self,
        address: IpAddr,
        name: &str,
        password: Secret,
        known: Option<&str>,
    ) -> Result<NewSession, Denied> {
        let user = lock(&self.accounts).users.iter().find(|user| user.name == name).cloned();
        let known = known.zip(user.as_ref());
        let browser = known.and_then(|(cookie, user)| browsers::recognize(user, cookie, unix_now()));
        let checks = if browser.is_some() || is_local(address) { &self.reserved } else { &self.strangers };
        let turn = checks.waiting.try_acquire().map_err(|_| Denied::TooOften(1));
        // Attempts under unknown names have the same rate limit as attempts under known names.
        // Otherwise, a client could find out which names exist.
        let counted =
            turn.and_then(|turn| self.try_name(Instant::now(), address, name, browser).map(|()| turn));
        let _turn = counted.inspect_err(|_| {
            tracing::warn!(peer = %address, user = name, "could not sign in to the console: too many attempts");
        })?;
        let hash =
            user.as_ref().map_or(password::UNKNOWN_USER, |user| user.password_hash.as_str()).to_owned();
        let Ok(_permit) = checks.running.acquire().await else { return Err(Denied::Wrong) };
        let check = move || password::is_right(&password, &hash);
        let is_right = tokio::task::spawn_blocking(check).await.unwrap_or(false);
        let Some(user) = user.filter(|_| is_right) else {
            tracing::warn!(peer = %address, user = name, "could not sign in to the console: wrong name or password");
            return Err(Denied::Wrong);
        };
        let session = Self::begin(&user, browser).map_err(|error| {
            tracing::error!(%error, "could not sign in to the console: the system gives no random numbers");
            Denied::Wrong
        })?;
        // The configuration may have changed while the password was checked.
        if !lock(&self.accounts).users.contains(&user) {
            return Err(Denied::Wrong);
        }
        self.sessions.begin(&session.id, &user.name, session::mark(&session.id, &user)).await;
        tracing::info!(peer = %address, user = user.name, role = %user.role, "signed in to the console");
        Ok(session)
    }

    /// Makes the cookies of a new session.
    fn begin(user: &User, browser: Option<Browser>) -> anyhow::Result<NewSession> {
        let browser = browser.map_or_else(browsers::new_browser, Ok)?;
        let browser = browsers::cookie(user, browser, unix_now());
        Ok(NewSession { id: session::token()?, browser })
    }

    /// Returns the visitor to whom a session cookie belongs, if the session permits this kind of
    /// request.
    pub(super) async fn by_cookie(
        &self,
        address: IpAddr,
        id: &str,
        request: session::Request,
    ) -> Option<Visitor> {
        let Signed { key, user, mark } = self.sessions.find(id, request).await?;
        let known = lock(&self.accounts).users.iter().find(|known| known.name == user).cloned();
        // The session of a user who was removed, or whose password or role has changed, ends for all
        // servers, so that it stays ended when the user is added again.
        let Some(user) = known.filter(|user| bool::from(session::mark(id, user).ct_eq(&mark))) else {
            self.sessions.end(&key).await;
            return None;
        };
        let session = Some((key, session::csrf(id)));
        Some(Visitor { name: user.name.clone(), role: user.role, address, session })
    }

    /// Returns the visitor to whom a token belongs. Compares the token with all configured tokens,
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
                self.try_token(Instant::now(), address)?;
                tracing::warn!(peer = %address, "rejected a request to the console: wrong token");
                Err(Denied::Wrong)
            }
        }
    }

    /// Ends the visitor's session, if there is one.
    pub(super) async fn sign_out(&self, visitor: &Visitor) {
        if let Some((key, _)) = &visitor.session {
            self.sessions.end(key).await;
        }
    }
}

fn is_local(address: IpAddr) -> bool {
    address.to_canonical().is_loopback()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // No code panics while it holds one of these locks, so a poisoned lock cannot occur.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{seal::Keyring, store::sealed::Sealed, testing::store::Memory};

    const PASSWORD: &str = "correct horse battery";

    fn gate() -> Gate {
        let password_hash = password::hash(&Secret::new(PASSWORD.into())).unwrap();
        let user = User { name: "lead".into(), password_hash, role: Role::Operator };
        let store = Sealed::new(Memory::default(), Keyring::default());
        Gate::new(vec![user], Vec::new(), Arc::new(store))
    }

    fn try_in(gate: &Gate, address: [u8; 4], name: &str, password: &str) -> Option<Denied> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(gate.sign_in(address.into(), name, Secret::new(password.into()), None)).err()
    }

    fn user(gate: &Gate) -> User {
        lock(&gate.accounts).users[0].clone()
    }

    #[test]
    fn a_name_is_tried_ten_times_from_an_address_and_another_address_does_not_wait() {
        let (gate, now) = (gate(), Instant::now());
        let stranger = [10, 0, 0, 1].into();
        // No user is named `bob`, but attempts under this name have the same limit as under `lead`.
        for name in ["lead", "bob"] {
            let later = if name == "bob" { now + Duration::from_secs(1000) } else { now };
            for attempt in 0..10 {
                assert_eq!(gate.try_name(later, stranger, name, None), Ok(()), "{attempt}");
            }
            let denied = gate.try_name(later, stranger, name, None);
            assert!(matches!(denied, Err(Denied::TooOften(50..=61))), "{denied:?}");
            assert_eq!(gate.try_name(later, [10, 0, 0, 2].into(), name, None), Ok(()));
            assert_eq!(gate.try_name(later + Duration::from_secs(61), stranger, name, None), Ok(()));
        }
    }

    #[test]
    fn an_address_has_twenty_attempts_with_any_names_and_an_ipv6_network_no_more_than_its_share() {
        let (gate, now) = (gate(), Instant::now());
        for attempt in 0..20 {
            let name = format!("user-{attempt}");
            assert_eq!(gate.try_name(now, [10, 0, 0, 1].into(), &name, None), Ok(()));
        }
        let denied = gate.try_name(now, [10, 0, 0, 1].into(), "lead", None);
        assert!(matches!(denied, Err(Denied::TooOften(1..=11))), "{denied:?}");
        assert_eq!(gate.try_name(now, [10, 0, 0, 2].into(), "lead", None), Ok(()));
        assert_eq!(gate.try_token(now, [10, 0, 0, 1].into()), Ok(()), "tokens are counted separately");

        // A /48 contains 65,536 networks of size /64. All of them together may make only four times
        // as many attempts as one /64.
        let tried = (0..1000u16).filter(|&network| {
            let address = IpAddr::from([0x2001, 0xdb8, 7, network, 0, 0, 0, 1]);
            gate.try_name(now, address, &format!("user-{network}"), None).is_ok()
        });
        assert_eq!(tried.count(), 80);
    }

    #[test]
    fn many_addresses_exhaust_a_name_but_lock_out_no_known_browser_and_not_this_machine() {
        let (gate, now) = (gate(), Instant::now());
        let tried = (0..100_000u32).filter(|&number| {
            let address = IpAddr::from((0x0a00_0000 + number).to_be_bytes());
            gate.try_name(now, address, "lead", None).is_ok()
        });
        assert_eq!(tried.count(), 100);
        assert!(gate.try_name(now, [192, 0, 2, 1].into(), "lead", None).is_err());
        assert_eq!(gate.try_name(now, [192, 0, 2, 1].into(), "guest", None), Ok(()));
        // Attempts from this machine have a limit, too, but do not lock out a known browser.
        let tried = (0..1000u16).filter(|&number| {
            let [high, low] = number.to_be_bytes();
            gate.try_name(now, [127, 0, high, low].into(), "lead", None).is_ok()
        });
        assert_eq!(tried.count(), 100);
        let known = |browser| gate.try_name(now, [192, 0, 2, 1].into(), "lead", Some([browser; 32]));
        assert_eq!((0..20).filter(|_| known(1).is_ok()).count(), 10, "a stolen cookie is no free pass");
        assert_eq!(known(2), Ok(()));
    }

    #[test]
    fn only_the_right_password_signs_in_and_not_after_too_many_attempts() {
        let gate = gate();
        assert_eq!(try_in(&gate, [10, 0, 0, 1], "lead", "wrong"), Some(Denied::Wrong));
        assert_eq!(try_in(&gate, [10, 0, 0, 1], "bob", PASSWORD), Some(Denied::Wrong));
        assert_eq!(try_in(&gate, [10, 0, 0, 1], "lead", PASSWORD), None);
        while gate.try_name(Instant::now(), [10, 0, 0, 2].into(), "lead", None).is_ok() {}
        let denied = try_in(&gate, [10, 0, 0, 2], "lead", PASSWORD);
        assert!(matches!(denied, Some(Denied::TooOften(_))), "even the right one: {denied:?}");
        assert_eq!(try_in(&gate, [10, 0, 0, 3], "lead", PASSWORD), None);
    }

    #[test]
    fn a_known_browser_signs_in_while_its_address_and_its_name_are_exhausted() {
        let gate = gate();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let sign_in = |known: Option<&str>| {
            let password = Secret::new(PASSWORD.into());
            runtime.block_on(gate.sign_in([10, 0, 0, 1].into(), "lead", password, known))
        };
        let first = sign_in(None).ok().unwrap();
        while gate.try_name(Instant::now(), [10, 0, 0, 1].into(), "lead", None).is_ok() {}
        assert!(matches!(sign_in(None), Err(Denied::TooOften(_))));
        assert!(matches!(sign_in(Some("made-up")), Err(Denied::TooOften(_))));
        let again = sign_in(Some(&first.browser)).ok().unwrap();
        let browser = |cookie: &str| browsers::recognize(&user(&gate), cookie, unix_now()).unwrap();
        assert_eq!(browser(&again.browser), browser(&first.browser), "its bucket stays the same");
        assert_ne!(again.id, first.id);
    }

    #[test]
    fn strangers_who_wait_for_a_check_are_few_and_hold_up_neither_this_machine_nor_known_browsers() {
        let gate = gate();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let _busy = gate.strangers.running.acquire_many(CHECKS as u32).await.unwrap();
            let _waiting = gate.strangers.waiting.acquire_many(MOST_WAITING as u32).await.unwrap();
            let sign_in = |address: [u8; 4], known: Option<String>| {
                let (gate, password) = (&gate, Secret::new(PASSWORD.into()));
                async move { gate.sign_in(address.into(), "lead", password, known.as_deref()).await.err() }
            };
            assert_eq!(sign_in([10, 0, 0, 1], None).await, Some(Denied::TooOften(1)));
            assert_eq!(sign_in([127, 0, 0, 1], None).await, None);
            let known = browsers::cookie(&user(&gate), [7; 32], unix_now());
            assert_eq!(sign_in([10, 0, 0, 1], Some(known)).await, None);
        });
    }

    #[test]
    fn a_user_who_changes_during_the_password_check_is_not_signed_in() {
        let gate = gate();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let came_in = |meanwhile: fn(&Gate)| {
            runtime.block_on(async {
                let busy = gate.strangers.running.acquire_many(CHECKS as u32).await.unwrap();
                let entering = gate.sign_in([10, 0, 0, 1].into(), "lead", Secret::new(PASSWORD.into()), None);
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
    #[test]
    fn a_user_who_has_changed_must_sign_in_again_at_each_server() {
        let gate = gate();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let address = [10, 0, 0, 1].into();
            let session =
                gate.sign_in(address, "lead", Secret::new(PASSWORD.into()), None).await.ok().unwrap();
            let is_in =
                async || gate.by_cookie(address, &session.id, session::Request::Action).await.is_some();
            assert!(is_in().await);
            let lead = user(&gate);
            // The user changes at this server alone. The table keeps the session, as if another server had
            // created it.
            lock(&gate.accounts).users = vec![User { role: Role::Viewer, ..lead.clone() }];
            assert!(!is_in().await);
            lock(&gate.accounts).users = vec![lead];
            assert!(!is_in().await, "it stays ended");
        });
    }
}
