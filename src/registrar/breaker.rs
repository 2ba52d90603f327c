//! When not to call at all: after the cloud has refused in a way that only the
//! operator can mend, for a product or for the whole account. When the pause is over
//! one registration is let through to see; the others wait for what comes of it.
//! Pure: the time is an argument.

use std::{collections::HashMap, time::Duration};

use tokio::time::Instant;

/// Pauses are doubled up to this many times their first length.
const LONGEST: u32 = 20;

/// What a refusal is about.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Scope {
    /// Credentials, permissions, a bill: every call would fail.
    Account,
    /// It does not exist, or has all the devices it may have.
    Product(String),
}

/// All breakers of an account.
#[derive(Debug)]
pub(super) struct Breakers {
    pause: Duration,
    open: HashMap<Scope, Open>,
}

#[derive(Debug)]
struct Open {
    until: Instant,
    pause: Duration,
    /// Somebody was let through, and has not said what came of it.
    trying: bool,
    reason: String,
}

impl Breakers {
    /// `pause` is the first one.
    pub(super) fn new(pause: Duration) -> Self {
        Self { pause, open: HashMap::new() }
    }

    /// Whether a registration may go on to the cloud. The first one after a pause is
    /// the one that tries; until it is known what came of it, or for another pause,
    /// the others may not.
    ///
    /// # Errors
    ///
    /// The cloud's reason.
    pub(super) fn admit(&mut self, product_key: &str, now: Instant) -> Result<(), String> {
        for scope in scopes(product_key) {
            if let Some(open) = self.open.get_mut(&scope) {
                if now < open.until {
                    return Err(open.reason.clone());
                }
                open.until = now + open.pause;
                open.trying = true;
            }
        }
        Ok(())
    }

    /// Why no call may be made now, without trying.
    pub(super) fn reason(&self, product_key: &str, now: Instant) -> Option<String> {
        let mut open = scopes(product_key).into_iter().filter_map(|scope| self.open.get(&scope));
        open.find(|open| now < open.until && !open.trying).map(|open| open.reason.clone())
    }

    /// The cloud refused. Answers with how long nothing is called, and whether that is
    /// news.
    pub(super) fn refused(&mut self, scope: Scope, reason: &str, now: Instant) -> (Duration, bool) {
        let longest = self.pause * LONGEST;
        match self.open.get_mut(&scope) {
            // Calls that were under way when the first one was refused say nothing new.
            Some(open) if now < open.until && !open.trying => (open.pause, false),
            Some(open) => {
                let pause = (open.pause * 2).min(longest);
                *open = Open { until: now + pause, pause, trying: false, reason: reason.to_owned() };
                (pause, true)
            }
            None => {
                let (pause, reason) = (self.pause, reason.to_owned());
                self.open.insert(scope, Open { until: now + pause, pause, trying: false, reason });
                (pause, true)
            }
        }
    }

    /// The cloud took a call for a product: nothing is in its way.
    pub(super) fn worked(&mut self, product_key: &str) {
        if !self.open.is_empty() {
            for scope in scopes(product_key) {
                self.open.remove(&scope);
            }
        }
    }

    /// How many are open.
    pub(super) fn count(&self) -> usize {
        self.open.len()
    }
}

fn scopes(product_key: &str) -> [Scope; 2] {
    [Scope::Account, Scope::Product(product_key.to_owned())]
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAUSE: Duration = Duration::from_secs(30);

    fn product(key: &str) -> Scope {
        Scope::Product(key.into())
    }

    #[test]
    fn a_product_that_is_refused_stops_itself_and_an_account_everybody() {
        let (mut breakers, now) = (Breakers::new(PAUSE), Instant::now());
        assert_eq!(breakers.refused(product("a1"), "no such product", now), (PAUSE, true));
        assert_eq!(breakers.admit("a1", now), Err("no such product".into()));
        assert_eq!(breakers.admit("a2", now), Ok(()));
        breakers.refused(Scope::Account, "unpaid", now);
        assert_eq!(breakers.admit("a2", now), Err("unpaid".into()));
    }

    #[test]
    fn after_the_pause_one_tries_and_the_others_wait() {
        let (mut breakers, start) = (Breakers::new(PAUSE), Instant::now());
        breakers.refused(product("a1"), "no", start);
        let later = start + PAUSE;
        assert_eq!(breakers.admit("a1", later), Ok(()));
        assert!(breakers.admit("a1", later).is_err());
        assert_eq!(breakers.reason("a1", later), None, "the one that tries goes on");
        // It never said what came of it.
        assert!(breakers.admit("a1", later + PAUSE - Duration::from_millis(1)).is_err());
        assert_eq!(breakers.admit("a1", later + PAUSE), Ok(()));
        breakers.worked("a1");
        assert_eq!((breakers.admit("a1", later), breakers.count()), (Ok(()), 0));
    }

    #[test]
    fn pauses_grow_while_it_is_refused_and_are_short_again_after_it_worked() {
        let (mut breakers, mut now) = (Breakers::new(PAUSE), Instant::now());
        let mut pauses = Vec::new();
        for _ in 0..8 {
            let (pause, news) = breakers.refused(Scope::Account, "no", now);
            assert!(news);
            assert_eq!(breakers.refused(Scope::Account, "no", now), (pause, false), "the same calls");
            pauses.push(pause.as_secs());
            now += pause;
            assert_eq!(breakers.admit("a1", now), Ok(()));
            now += Duration::from_millis(50);
        }
        assert_eq!(pauses, [30, 60, 120, 240, 480, 600, 600, 600]);
        breakers.worked("a1");
        assert_eq!(breakers.refused(Scope::Account, "no", now), (PAUSE, true));
    }
}
