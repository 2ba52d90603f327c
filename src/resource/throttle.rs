//! Rate limits for certificate requests, and reports about clients that exceed them. The
//! limits apply before the device table is read, so that a refusal reveals nothing about
//! the table. The token buckets are in `rate_limit`.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use crate::{
    device::DeviceId,
    log_limit::LogLimit,
    psk::Principal,
    rate_limit::{Buckets, Empty, Network, Origin, Rate, Source},
};

/// Factor by which a network's limit on refused lookups exceeds the limit of one address and port.
/// So a client that guesses exceeds the limit of its own port first, and its neighbours behind the
/// same NAT are still served.
const OF_NETWORK: u32 = 10;
/// Time for which a device is remembered at its address after it was served. During this time, the
/// device is not slowed down by another client behind the same NAT that guesses device IDs.
const SERVED: Duration = Duration::from_secs(86_400);
/// Maximum number of log lines per second about clients that begin to exceed a limit. Without a
/// maximum, an attacker with many addresses could flood the log.
const MAX_LINES: u32 = 20;

/// The configured rate limits. `None` means unlimited.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestLimits {
    /// Requests of an identity that belongs to one device.
    pub per_identity: Option<Rate>,
    /// Requests from an address, under any identity.
    pub per_address: Option<Rate>,
    /// Limits of each enrollment, by name. An enrollment without an entry has the default limits.
    pub enrollments: HashMap<String, EnrollmentLimits>,
}

impl Default for RequestLimits {
    /// Allows an identity of one device far more requests than any device makes. Does not limit
    /// addresses, because a whole factory may share one address.
    fn default() -> Self {
        Self {
            per_identity: Rate::new(200, Duration::from_secs(1)),
            per_address: None,
            enrollments: HashMap::new(),
        }
    }
}

/// The limits of one enrollment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EnrollmentLimits {
    /// Requests of all devices of the enrollment together.
    pub requests: Option<Rate>,
    /// Refusals (4.03 or 4.04) to one address and port under the shared identity. All ports of an
    /// address together may have ten times as many. Devices in the table are rarely refused, but a
    /// client that guesses device IDs is often refused.
    pub refused_lookups: Option<Rate>,
}

impl Default for EnrollmentLimits {
    fn default() -> Self {
        Self { requests: None, refused_lookups: Rate::new(100, Duration::from_secs(1)) }
    }
}

/// Identifies a bucket.
#[derive(Hash)]
enum Key<'k> {
    Identity(&'k str, &'k str),
    Address(Origin),
    Enrollment(&'k str),
    RefusedLookups(&'k str, Source),
    RefusedLookupsOfNetwork(&'k str, Network),
    Served(&'k str, Origin, &'k str),
}

/// The kinds of limits, in the order of [`Counters`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// [`RequestLimits::per_identity`].
    Identity,
    /// [`RequestLimits::per_address`].
    Address,
    /// [`EnrollmentLimits::requests`].
    Enrollment,
    /// [`EnrollmentLimits::refused_lookups`].
    RefusedLookups,
}

impl Limit {
    /// All limits.
    pub const ALL: [Self; 4] = [Self::Identity, Self::Address, Self::Enrollment, Self::RefusedLookups];

    /// Returns the limit's name in the log and in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Identity => "identity",
            Self::Address => "address",
            Self::Enrollment => "enrollment",
            Self::RefusedLookups => "refused_lookups",
        }
    }
}

/// Counters of exceeded limits and refused lookups.
#[derive(Debug, Default)]
pub struct Counters {
    throttled: [AtomicU64; 4],
    episodes: [AtomicU64; 4],
    refused_lookups: AtomicU64,
}

impl Counters {
    /// Returns the number of requests that exceeded the limit and were asked to retry
    /// later.
    pub fn throttled(&self, limit: Limit) -> u64 {
        self.throttled[limit as usize].load(Ordering::Relaxed)
    }

    /// Returns the number of episodes. An episode starts when a limit is exceeded, and
    /// ends when its bucket is full again.
    pub fn episodes(&self, limit: Limit) -> u64 {
        self.episodes[limit as usize].load(Ordering::Relaxed)
    }

    /// Returns the number of requests under a shared identity that were refused with 4.03
    /// or 4.04.
    pub fn refused_lookups(&self) -> u64 {
        self.refused_lookups.load(Ordering::Relaxed)
    }
}

/// State that survives a change of the configuration.
struct Kept {
    buckets: Buckets,
    /// Recently served devices of shared identities. They are not in `buckets`, because there they
    /// would displace the buckets of clients that are slowed down.
    served: Buckets,
    counters: Arc<Counters>,
    lines: Mutex<LogLimit>,
}

/// Applies the limits to requests.
#[derive(Clone)]
pub(super) struct Throttle {
    limits: RequestLimits,
    kept: Arc<Kept>,
}

impl Throttle {
    pub(super) fn new(now: Instant, limits: RequestLimits) -> Self {
        let kept = Kept {
            buckets: Buckets::new(now),
            served: Buckets::new(now),
            counters: Arc::default(),
            lines: Mutex::new(LogLimit::new(MAX_LINES, "exceeded request limits")),
        };
        Self { limits, kept: Arc::new(kept) }
    }

    /// Returns a copy with other limits. The copy shares the buckets, so tokens that were used stay
    /// used.
    pub(super) fn with(&self, limits: RequestLimits) -> Self {
        Self { limits, kept: self.kept.clone() }
    }

    pub(super) fn counters(&self) -> Arc<Counters> {
        self.kept.counters.clone()
    }

    /// Admits a request for a device, or returns the time after which to retry, in
    /// seconds.
    pub(super) fn admit(
        &self,
        now: Instant,
        source: Source,
        principal: &Principal,
        wanted: &DeviceId,
    ) -> Result<(), u32> {
        let origin = source.origin;
        let enrollment = principal.enrollment.name.as_str();
        let limits = self.enrollment(principal);
        let identity: Option<Key<'_>> =
            principal.device.as_ref().map(|own| Key::Identity(enrollment, own.canonical().as_str()));
        let requests = [
            (Limit::Identity, self.limits.per_identity, identity),
            (Limit::Address, self.limits.per_address, Some(Key::Address(origin))),
            (Limit::Enrollment, limits.requests, Some(Key::Enrollment(enrollment))),
        ];
        let requests =
            || requests.iter().filter_map(|(limit, rate, key)| Some((*limit, (*rate)?, key.as_ref()?)));

        // All limits are checked before any token is taken, so that a request refused by
        // one limit uses up no tokens of the others.
        let mut wait = None;
        for (limit, rate, key) in requests() {
            if let Err(empty) = self.kept.buckets.check(now, rate, key) {
                self.report(now, limit, empty, origin, principal);
                wait = wait.max(Some(empty.wait));
            }
        }
        if let Some(rate) = limits.refused_lookups.filter(|_| principal.device.is_none())
            && let Some(empty) = self.guessed_too_often(now, rate, enrollment, source, wanted)
        {
            self.report(now, Limit::RefusedLookups, empty, origin, principal);
            wait = wait.max(Some(empty.wait));
        }
        match wait {
            // RFC 8516 §3: the client waits for Max-Age. The time is rounded up, so that the bucket
            // has a token when the client retries.
            Some(wait) => Err(wait.as_millis().div_ceil(1000).clamp(1, u32::MAX.into()) as u32),
            None => {
                requests().for_each(|(_, rate, key)| self.kept.buckets.take(now, rate, key));
                Ok(())
            }
        }
    }

    /// Returns the longest wait required by the limits on refused lookups, for this address and port
    /// and for its networks. Combines the waits into one, so that the request is counted once, even
    /// if several buckets are empty.
    fn guessed_too_often(
        &self,
        now: Instant,
        rate: Rate,
        enrollment: &str,
        source: Source,
        wanted: &DeviceId,
    ) -> Option<Empty> {
        let Kept { buckets, served, .. } = &*self.kept;
        let port = buckets.check(now, rate, &Key::RefusedLookups(enrollment, source)).err();
        let networks = source.networks().filter_map(|(network, times)| {
            let key = Key::RefusedLookupsOfNetwork(enrollment, network);
            buckets.check(now, rate.times(times * OF_NETWORK), &key).err()
        });
        let longest = |one: Empty, other: Empty| Empty {
            wait: one.wait.max(other.wait),
            is_first: one.is_first || other.is_first,
        };
        // A request for a certificate that was already issued to this address is not a
        // guess, so the guesses of neighbours do not slow it down.
        let network = networks
            .reduce(longest)
            .filter(|_| !served.has(now, &Key::Served(enrollment, source.origin, wanted.as_str())));
        port.into_iter().chain(network).reduce(longest)
    }

    /// Records that a device of a shared identity was served at its address.
    pub(super) fn served(&self, now: Instant, source: Source, principal: &Principal, device: &DeviceId) {
        if let (None, Some(rate)) = (&principal.device, Rate::new(1, SERVED)) {
            let key = Key::Served(&principal.enrollment.name, source.origin, device.as_str());
            self.kept.served.take(now, rate, &key);
        }
    }

    /// Counts a request under a shared identity that was refused with 4.03 or 4.04.
    pub(super) fn refused(&self, now: Instant, source: Source, principal: &Principal, wanted: &DeviceId) {
        if principal.device.is_some() {
            return;
        }
        // From now on, a request for this device counts as a guess. Otherwise the request
        // could be repeated without limit.
        let key = Key::Served(&principal.enrollment.name, source.origin, wanted.as_str());
        self.kept.served.fill(&key);
        self.kept.counters.refused_lookups.fetch_add(1, Ordering::Relaxed);
        if let Some(rate) = self.enrollment(principal).refused_lookups {
            let enrollment = principal.enrollment.name.as_str();
            self.kept.buckets.take(now, rate, &Key::RefusedLookups(enrollment, source));
            for (network, times) in source.networks() {
                let key = Key::RefusedLookupsOfNetwork(enrollment, network);
                self.kept.buckets.take(now, rate.times(times * OF_NETWORK), &key);
            }
        }
    }

    fn enrollment(&self, principal: &Principal) -> EnrollmentLimits {
        self.limits.enrollments.get(&principal.enrollment.name).copied().unwrap_or_default()
    }

    fn report(&self, now: Instant, limit: Limit, empty: Empty, origin: Origin, principal: &Principal) {
        let Kept { counters, lines, .. } = &*self.kept;
        counters.throttled[limit as usize].fetch_add(1, Ordering::Relaxed);
        if !empty.is_first {
            return;
        }
        counters.episodes[limit as usize].fetch_add(1, Ordering::Relaxed);
        if !lines.lock().unwrap_or_else(PoisonError::into_inner).admit(now) {
            return;
        }
        let (enrollment, device) = (&principal.enrollment.name, principal.device.as_ref());
        let device = device.map(|own| tracing::field::display(own.first()));
        match limit {
            Limit::RefusedLookups => tracing::warn!(
                network = %origin, enrollment,
                "too many refused device IDs: someone may be guessing them; slowed down until this stops"
            ),
            _ => tracing::warn!(
                limit = limit.name(), network = %origin, enrollment, device,
                "too many requests; slowed down until they stop"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;
    use crate::{
        device::DeviceId,
        psk::{Enrollment, Key as Psk, Kind, Reissue, WhichKey},
    };

    const SECOND: Duration = Duration::from_secs(1);

    fn wanted() -> DeviceId {
        DeviceId::parse("PLUG-1").unwrap()
    }

    fn origin(text: &str) -> Source {
        at(text, 1000)
    }

    fn at(text: &str, port: u16) -> Source {
        Source::of(SocketAddr::new(text.parse().unwrap(), port))
    }

    fn principal(device: Option<&str>) -> Principal {
        let psk = Psk::from_hex("000102030405060708090a0b0c0d0e0f").unwrap();
        let enrollment = Enrollment {
            name: "plug".into(),
            product_key: "a1plug".into(),
            kind: Kind::Shared { identity: "plug".into(), key: psk },
            reissue: Reissue::Always,
            next: None,
            guards: Default::default(),
        };
        let device = device.map(|device| DeviceId::parse(device).unwrap().into());
        Principal { enrollment: Arc::new(enrollment), device, own: None, key: WhichKey::Current }
    }

    fn limits(identity: u32, address: u32, enrollment: u32) -> RequestLimits {
        let rate = |burst| Rate::new(burst, 10 * SECOND);
        let plug = EnrollmentLimits { requests: rate(enrollment), refused_lookups: None };
        RequestLimits {
            per_identity: rate(identity),
            per_address: rate(address),
            enrollments: [("plug".to_owned(), plug)].into(),
        }
    }

    #[test]
    fn each_limit_counts_its_own_requests() {
        let (now, home, away) = (Instant::now(), origin("192.0.2.1"), origin("192.0.2.2"));
        let (one, other, shared) = (principal(Some("SN-1")), principal(Some("SN-2")), principal(None));

        let throttle = Throttle::new(now, limits(1, 0, 0));
        assert_eq!(throttle.admit(now, home, &one, &wanted()), Ok(()));
        assert_eq!(throttle.admit(now, away, &one, &wanted()), Err(10), "from any address");
        assert_eq!(throttle.admit(now, home, &other, &wanted()), Ok(()));
        assert_eq!(throttle.admit(now, home, &shared, &wanted()), Ok(()));
        assert_eq!(throttle.admit(now, home, &shared, &wanted()), Ok(()), "many devices share one identity");

        let throttle = Throttle::new(now, limits(0, 1, 0));
        assert_eq!(throttle.admit(now, home, &one, &wanted()), Ok(()));
        assert_eq!(throttle.admit(now, home, &other, &wanted()), Err(10), "any identity");
        assert_eq!(throttle.admit(now, away, &one, &wanted()), Ok(()));

        let throttle = Throttle::new(now, limits(0, 0, 1));
        assert_eq!(throttle.admit(now, home, &one, &wanted()), Ok(()));
        assert_eq!(throttle.admit(now + 9 * SECOND, away, &other, &wanted()), Err(1), "all together");
        assert_eq!(throttle.admit(now + 10 * SECOND, away, &other, &wanted()), Ok(()));
    }

    #[test]
    fn a_request_that_one_limit_refuses_uses_no_tokens_of_the_others() {
        let (now, home) = (Instant::now(), origin("192.0.2.1"));
        let throttle = Throttle::new(now, limits(1, 2, 2));
        let (greedy, patient) = (principal(Some("SN-1")), principal(Some("SN-2")));
        assert_eq!(throttle.admit(now, home, &greedy, &wanted()), Ok(()));
        for _ in 0..10 {
            assert_eq!(throttle.admit(now, home, &greedy, &wanted()), Err(10));
        }
        assert_eq!(throttle.admit(now, home, &patient, &wanted()), Ok(()));
        let counters = throttle.counters();
        assert_eq!((counters.throttled(Limit::Identity), counters.episodes(Limit::Identity)), (10, 1));
        assert_eq!(counters.throttled(Limit::Address), 0);
    }

    #[test]
    fn ten_thousand_devices_behind_one_address_are_all_admitted_by_the_defaults() {
        let (now, factory) = (Instant::now(), origin("192.0.2.1"));
        let throttle = Throttle::new(now, RequestLimits::default());
        let shared = principal(None);
        for number in 0..10_000 {
            assert_eq!(throttle.admit(now, factory, &shared, &wanted()), Ok(()));
            assert_eq!(
                throttle.admit(now, factory, &principal(Some(&format!("SN-{number}"))), &wanted()),
                Ok(())
            );
        }
    }

    #[test]
    fn a_client_that_tries_device_ids_is_slowed_down_and_devices_elsewhere_are_not() {
        let (start, thief, factory) = (Instant::now(), origin("192.0.2.1"), origin("192.0.2.2"));
        let throttle = Throttle::new(start, RequestLimits::default());
        let shared = principal(None);
        let mut guesses = 0;
        // For a minute, the client makes a thousand guesses a second.
        for tick in 0..60_000u32 {
            let now = start + tick * SECOND / 1000;
            if throttle.admit(now, thief, &shared, &wanted()).is_ok() {
                guesses += 1;
                throttle.refused(now, thief, &shared, &wanted());
            }
            assert_eq!(throttle.admit(now, factory, &shared, &wanted()), Ok(()));
        }
        assert_eq!(guesses, 100 + 59);
        let counters = throttle.counters();
        assert_eq!((counters.episodes(Limit::RefusedLookups), counters.refused_lookups()), (1, guesses));
        assert_eq!(counters.throttled(Limit::RefusedLookups), 60_000 - guesses);
    }

    /// A client guesses from one port, while devices behind the same NAT ask for their
    /// certificates.
    #[test]
    fn a_client_that_guesses_does_not_lock_out_its_neighbours() {
        let start = Instant::now();
        for address in ["192.0.2.1", "2001:db8::1"] {
            let throttle = Throttle::new(start, RequestLimits::default());
            let shared = principal(None);
            let thief = at(address, 1);
            let mut guesses = 0;
            for tick in 0..10_000u32 {
                let now = start + tick * SECOND / 1000;
                if throttle.admit(now, thief, &shared, &wanted()).is_ok() {
                    guesses += 1;
                    throttle.refused(now, thief, &shared, &wanted());
                }
                let neighbour = at(address, 2 + (tick % 1000) as u16);
                assert_eq!(throttle.admit(now, neighbour, &shared, &wanted()), Ok(()), "{tick}");
            }
            assert_eq!(guesses, 100 + 9);
        }
    }

    /// Each guess comes from a new port and, with IPv6, from a new subscriber's network.
    #[test]
    fn guesses_of_a_network_are_bounded_however_many_ports_it_uses() {
        let start = Instant::now();
        let guess = |address: &dyn Fn(u32) -> String| {
            let throttle = Throttle::new(start, RequestLimits::default());
            let shared = principal(None);
            let mut guesses = 0;
            for number in 0..60_000u32 {
                let now = start + number * SECOND / 1000;
                let thief = at(&address(number), number as u16);
                if throttle.admit(now, thief, &shared, &wanted()).is_ok() {
                    guesses += 1;
                    throttle.refused(now, thief, &shared, &wanted());
                }
            }
            guesses
        };
        let of_address = guess(&|_| "192.0.2.1".into());
        assert!((1000..=1000 + 10 * 60).contains(&of_address), "{of_address}");
        let of_site = guess(&|number| format!("2001:db8:0:{:x}::1", number % 256));
        assert!((2000..=2000 + 20 * 60).contains(&of_site), "a /56: {of_site}");
        let of_customer = guess(&|number| format!("2001:db8:0:{number:x}::1"));
        assert!((4000..=4000 + 40 * 60).contains(&of_customer), "a /48: {of_customer}");
    }

    /// A client that uses a new port for each guess slows down unknown devices in its network, but
    /// not the devices that were served there. From a port with many guesses, even a request for a
    /// served device is refused.
    #[test]
    fn a_served_device_is_served_again_however_much_its_neighbours_guess() {
        let start = Instant::now();
        let throttle = Throttle::new(start, RequestLimits::default());
        let (shared, home, away) = (principal(None), at("192.0.2.1", 1), at("192.0.2.2", 1));
        let device = |number: u32| DeviceId::parse(&format!("PLUG-{number}")).unwrap();
        for number in 1000..2000 {
            throttle.served(start, home, &shared, &device(number));
        }
        let flood = |now, network: &str| {
            for port in 0..5000 {
                let thief = at(network, port);
                if throttle.admit(now, thief, &shared, &wanted()).is_ok() {
                    throttle.refused(now, thief, &shared, &wanted());
                }
            }
        };
        let now = start + 3600 * SECOND;
        flood(now, "192.0.2.1");
        flood(now, "192.0.2.2");
        let thief = at("192.0.2.1", 9999);
        (0..100).for_each(|_| throttle.refused(now, thief, &shared, &wanted()));
        assert!(throttle.admit(now, thief, &shared, &device(1000)).is_err(), "from a port that guesses");
        for number in 1000..2000 {
            assert_eq!(throttle.admit(now, home, &shared, &device(number)), Ok(()));
        }
        assert!(throttle.admit(now, home, &shared, &device(1)).is_err(), "never served");
        assert!(throttle.admit(now, away, &shared, &device(1000)).is_err(), "served at another address");
        // After a refusal, another request for the device counts as a guess.
        throttle.refused(now, home, &shared, &device(1000));
        assert!(throttle.admit(now, home, &shared, &device(1000)).is_err());
        let later = start + 86_401 * SECOND;
        flood(later, "192.0.2.1");
        assert!(throttle.admit(later, home, &shared, &device(1001)).is_err(), "a day later");
    }

    #[test]
    fn a_request_refused_for_several_networks_is_counted_once() {
        let now = Instant::now();
        let plug = EnrollmentLimits { requests: None, refused_lookups: Rate::new(1, 3600 * SECOND) };
        let limits = RequestLimits { enrollments: [("plug".to_owned(), plug)].into(), ..Default::default() };
        let (throttle, shared) = (Throttle::new(now, limits), principal(None));
        for subscriber in 0..40 {
            let guess = at(&format!("2001:db8:0:{subscriber:x}::1"), 1);
            throttle.refused(now, guess, &shared, &wanted());
        }
        assert!(throttle.admit(now, at("2001:db8::1", 1), &shared, &wanted()).is_err());
        let counters = throttle.counters();
        assert_eq!(
            (counters.throttled(Limit::RefusedLookups), counters.episodes(Limit::RefusedLookups)),
            (1, 1)
        );
    }

    #[test]
    fn new_limits_apply_at_once_and_used_tokens_stay_used() {
        let (now, home, device) = (Instant::now(), origin("192.0.2.1"), principal(Some("SN-1")));
        let throttle = Throttle::new(now, limits(1, 0, 0));
        assert_eq!(throttle.admit(now, home, &device, &wanted()), Ok(()));
        assert_eq!(throttle.with(limits(1, 0, 0)).admit(now, home, &device, &wanted()), Err(10));
        assert_eq!(throttle.with(limits(0, 0, 0)).admit(now, home, &device, &wanted()), Ok(()));
        assert_eq!(throttle.with(limits(2, 0, 0)).admit(now, home, &device, &wanted()), Ok(()));
    }
}
