//! Circuit breakers. When the cloud has refused a call for a reason that only the operator can
//! remove, no further calls are made for the same product or of the same action. After a pause, one
//! registration is admitted as a probe. Others are refused until the probe has a result. This
//! module performs no I/O: the caller passes the current time.

use std::{collections::HashMap, time::Duration};

use tokio::time::Instant;

use crate::{device::DeviceId, iot_platform::Action};

/// Maximum number of devices in [`Breakers::suspects`] for each product.
const MAX_SUSPECTS: usize = 16;

/// Maximum pause, as a multiple of the first pause.
const LONGEST: u32 = 20;

/// Scope of a refusal.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Scope {
    /// Calls of this action, for all products of the account. A missing permission makes only
    /// some actions fail. Wrong credentials or an unpaid bill make every action fail.
    Action(Action),
    /// The product does not exist, or has reached its maximum number of devices.
    Product(String),
}

/// All breakers of an account.
#[derive(Debug)]
pub(super) struct Breakers {
    pause: Duration,
    open: HashMap<Scope, Open>,
    /// Time of the last accepted call for each product.
    worked: HashMap<String, Instant>,
    /// Devices of each product whose registration has ended with an unknown error since the
    /// product's last accepted call.
    suspects: HashMap<String, Vec<DeviceId>>,
}

#[derive(Debug)]
struct Open {
    until: Instant,
    pause: Duration,
    /// Set while a probe is in progress.
    trying: bool,
    reason: String,
}

impl Breakers {
    /// Creates the breakers of an account, all closed. `pause` is the length of the first pause.
    pub(super) fn new(pause: Duration) -> Self {
        Self { pause, open: HashMap::new(), worked: HashMap::new(), suspects: HashMap::new() }
    }

    /// Admits a registration unless a breaker is open. The first registration after a pause is
    /// the probe. Others are not admitted until the probe has a result, or until another pause is
    /// over.
    ///
    /// # Errors
    ///
    /// Returns the cloud's reason for the refusal that opened the breaker.
    pub(super) fn admit(&mut self, product_key: &str, device: &DeviceId, now: Instant) -> Result<(), String> {
        // A suspected device is not admitted as the probe: it would probably fail again, and so
        // keep the breaker open for the other devices.
        let is_suspect = self.suspects.get(product_key).is_some_and(|suspects| suspects.contains(device));
        if is_suspect && let Some(open) = self.open.get(&Scope::Product(product_key.to_owned())) {
            return Err(open.reason.clone());
        }
        self.admit_all(&scopes(product_key), now)
    }

    /// Notes a device whose registration has ended with an unknown error while no other device of
    /// its product was registered. Returns whether the product has several such devices.
    pub(super) fn suspect(&mut self, product_key: &str, device: &DeviceId) -> bool {
        let suspects = self.suspects.entry(product_key.to_owned()).or_default();
        if !suspects.contains(device) && suspects.len() < MAX_SUSPECTS {
            suspects.push(device.clone());
        }
        suspects.len() > 1
    }

    /// Admits a call of an action that is not `RegisterDevice`, by the rules of
    /// [`admit`](Self::admit).
    ///
    /// # Errors
    ///
    /// Returns the cloud's reason for the refusal that opened the breaker.
    pub(super) fn admit_action(&mut self, action: Action, now: Instant) -> Result<(), String> {
        self.admit_all(&[Scope::Action(action)], now)
    }

    fn admit_all(&mut self, scopes: &[Scope], now: Instant) -> Result<(), String> {
        // All breakers are checked before any of them admits a probe, because a registration that
        // one breaker refuses cannot be the probe of another.
        for scope in scopes {
            if let Some(open) = self.open.get(scope).filter(|open| now < open.until) {
                return Err(open.reason.clone());
            }
        }
        for scope in scopes {
            if let Some(open) = self.open.get_mut(scope) {
                open.until = now + open.pause;
                open.trying = true;
            }
        }
        Ok(())
    }

    /// Returns the cloud's reason if an open breaker forbids calls now. Returns `None` while a
    /// probe is in progress, so that the probe can retry. Unlike `admit`, starts no probe.
    pub(super) fn reason(&self, product_key: &str, now: Instant) -> Option<String> {
        let mut open = scopes(product_key).into_iter().filter_map(|scope| self.open.get(&scope));
        open.find(|open| now < open.until && !open.trying).map(|open| open.reason.clone())
    }

    /// Returns whether an open breaker forbids calls of this action now, for all products. Unlike
    /// `admit_action`, starts no probe.
    pub(super) fn stops(&self, action: Action, now: Instant) -> bool {
        self.open.get(&Scope::Action(action)).is_some_and(|open| now < open.until)
    }

    /// Records a refusal. Returns the current pause, and whether this refusal has started the
    /// pause.
    pub(super) fn refused(&mut self, scope: Scope, reason: &str, now: Instant) -> (Duration, bool) {
        let longest = self.pause * LONGEST;
        match self.open.get_mut(&scope) {
            // The refusal of a call that was already in progress when the pause began does not
            // extend the pause.
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

    /// Closes the breakers of a product and of an action, after the cloud has accepted a call of
    /// this action for this product.
    pub(super) fn worked(&mut self, product_key: &str, action: Action, now: Instant) {
        if !self.open.is_empty() {
            self.open.remove(&Scope::Product(product_key.to_owned()));
            self.open.remove(&Scope::Action(action));
        }
        self.suspects.remove(product_key);
        match self.worked.get_mut(product_key) {
            Some(at) => *at = now,
            None => _ = self.worked.insert(product_key.to_owned(), now),
        }
    }

    /// Closes the breaker of an action. The caller does this when the cloud has refused a call
    /// because of its product, because such a refusal shows that the action itself works.
    pub(super) fn admits(&mut self, action: Action) {
        self.open.remove(&Scope::Action(action));
    }

    /// Returns whether the cloud has accepted a call for a product since this time.
    pub(super) fn has_worked_since(&self, product_key: &str, since: Instant) -> bool {
        self.worked.get(product_key).is_some_and(|at| *at >= since)
    }

    /// Returns the reason of each open breaker, and the product if the breaker concerns a single
    /// product.
    pub(super) fn reasons(&self) -> Vec<(Option<String>, String)> {
        let of = |(scope, open): (&Scope, &Open)| match scope {
            Scope::Action(_) => (None, open.reason.clone()),
            Scope::Product(product_key) => (Some(product_key.clone()), open.reason.clone()),
        };
        let mut reasons: Vec<_> = self.open.iter().map(of).collect();
        reasons.sort_unstable();
        reasons
    }

    /// Returns the cloud's reason if a breaker for registrations of this product is open. Unlike
    /// [`reason`](Self::reason), does so even after the breaker's pause, and while a probe is in
    /// progress.
    pub(super) fn stopped(&self, product_key: &str) -> Option<String> {
        scopes(product_key).iter().find_map(|scope| self.open.get(scope)).map(|open| open.reason.clone())
    }

    /// Returns the number of open breakers.
    pub(super) fn count(&self) -> usize {
        self.open.len()
    }
}

fn scopes(product_key: &str) -> [Scope; 2] {
    [Scope::Action(Action::RegisterDevice), Scope::Product(product_key.to_owned())]
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAUSE: Duration = Duration::from_secs(30);
    const ACCOUNT: Scope = Scope::Action(Action::RegisterDevice);

    fn device(id: &str) -> DeviceId {
        DeviceId::parse(id).unwrap()
    }

    fn product(key: &str) -> Scope {
        Scope::Product(key.into())
    }

    #[test]
    fn a_product_that_is_refused_stops_itself_and_an_account_everybody() {
        let (mut breakers, now) = (Breakers::new(PAUSE), Instant::now());
        assert_eq!(breakers.refused(product("a1"), "no such product", now), (PAUSE, true));
        assert_eq!(breakers.admit("a1", &device("SN-1"), now), Err("no such product".into()));
        assert_eq!(breakers.admit("a2", &device("SN-1"), now), Ok(()));
        breakers.refused(ACCOUNT, "unpaid", now);
        assert_eq!(breakers.admit("a2", &device("SN-1"), now), Err("unpaid".into()));
    }

    #[test]
    fn after_the_pause_one_tries_and_the_others_wait() {
        let (mut breakers, start) = (Breakers::new(PAUSE), Instant::now());
        breakers.refused(product("a1"), "no", start);
        let later = start + PAUSE;
        assert_eq!(breakers.admit("a1", &device("SN-1"), later), Ok(()));
        assert!(breakers.admit("a1", &device("SN-1"), later).is_err());
        assert_eq!(breakers.reason("a1", later), None, "the one that tries goes on");
        // The probe reports no result, so another pause must pass before the next probe.
        assert!(breakers.admit("a1", &device("SN-1"), later + PAUSE - Duration::from_millis(1)).is_err());
        assert_eq!(breakers.admit("a1", &device("SN-1"), later + PAUSE), Ok(()));
        breakers.worked("a1", Action::RegisterDevice, later);
        assert_eq!((breakers.admit("a1", &device("SN-1"), later), breakers.count()), (Ok(()), 0));
    }

    #[test]
    fn pauses_grow_while_it_is_refused_and_are_short_again_after_it_worked() {
        let (mut breakers, mut now) = (Breakers::new(PAUSE), Instant::now());
        let mut pauses = Vec::new();
        for _ in 0..8 {
            let (pause, news) = breakers.refused(ACCOUNT, "no", now);
            assert!(news);
            assert_eq!(breakers.refused(ACCOUNT, "no", now), (pause, false), "the same calls");
            pauses.push(pause.as_secs());
            now += pause;
            assert_eq!(breakers.admit("a1", &device("SN-1"), now), Ok(()));
            now += Duration::from_millis(50);
        }
        assert_eq!(pauses, [30, 60, 120, 240, 480, 600, 600, 600]);
        breakers.worked("a1", Action::RegisterDevice, now);
        assert_eq!(breakers.refused(ACCOUNT, "no", now), (PAUSE, true));
    }

    #[test]
    fn a_closed_product_takes_no_probe_from_the_others() {
        let (mut breakers, now) = (Breakers::new(PAUSE), Instant::now());
        breakers.refused(ACCOUNT, "no permission", now);
        breakers.refused(product("a1"), "no such product", now + PAUSE / 2);
        let later = now + PAUSE;
        assert_eq!(breakers.admit("a1", &device("SN-1"), later), Err("no such product".into()));
        assert_eq!(breakers.admit("a2", &device("SN-1"), later), Ok(()), "the probe is still to be had");
    }

    #[test]
    fn an_action_that_is_refused_stops_no_other() {
        let (mut breakers, now) = (Breakers::new(PAUSE), Instant::now());
        breakers.refused(Scope::Action(Action::QueryDeviceDetail), "no permission", now);
        assert_eq!(breakers.admit("a1", &device("SN-1"), now), Ok(()));
        assert!(breakers.admit_action(Action::QueryDeviceDetail, now).is_err());
        assert_eq!(breakers.admit_action(Action::QueryDeviceDetail, now + PAUSE), Ok(()));
        breakers.worked("a1", Action::QueryDeviceDetail, now);
        assert_eq!(breakers.count(), 0);
    }

    #[test]
    fn a_device_that_has_opened_a_breaker_is_not_its_probe() {
        let (mut breakers, now) = (Breakers::new(PAUSE), Instant::now());
        assert!(!breakers.suspect("a1", &device("BAD-1")), "one device alone");
        assert!(!breakers.suspect("a1", &device("BAD-1")));
        assert!(breakers.suspect("a1", &device("BAD-2")));
        breakers.refused(product("a1"), "odd", now);
        let later = now + PAUSE;
        assert_eq!(breakers.admit("a1", &device("BAD-1"), later), Err("odd".into()));
        assert_eq!(breakers.admit("a1", &device("GOOD"), later), Ok(()));
        breakers.worked("a1", Action::RegisterDevice, later);
        assert!(!breakers.suspect("a1", &device("BAD-1")), "they are forgotten");
    }

    #[test]
    fn only_a_breaker_of_its_product_or_of_all_registrations_stops_a_product() {
        let now = Instant::now();
        let mut breakers = Breakers::new(PAUSE);
        breakers.refused(Scope::Product("other".into()), "no such product", now);
        breakers.refused(Scope::Action(Action::QueryDeviceDetail), "no permission", now);
        assert_eq!(breakers.stopped("own"), None);
        assert_eq!(breakers.stopped("other").as_deref(), Some("no such product"));
        breakers.refused(ACCOUNT, "unpaid", now);
        assert_eq!(breakers.stopped("own").as_deref(), Some("unpaid"));
    }
}
