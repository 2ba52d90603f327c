//! Which limits a request for a certificate is held against, and what is told of
//! those who exceed them. Decided before the table is read, so that a refusal
//! tells nothing about it. How a limit works is `limits`'.

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
    limits::{Buckets, Empty, Network, Origin, Rate, Source},
    psk::Principal,
};

/// Refused lookups of a network, in those of one address and port: a guesser is held back
/// first where it asks from, and its neighbours behind the same NAT go on.
const OF_NETWORK: u32 = 10;
/// How long a device that was served is known where it was, from the last time on: a
/// guesser behind the same NAT holds it back no more.
const SERVED: Duration = Duration::from_secs(86_400);
/// Episodes that are logged in a second, one line each: whoever has many
/// addresses can begin many.
const MAX_LINES: u32 = 20;

/// How often may be asked, as configured. `None` is without a limit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestLimits {
    /// Requests of an identity that belongs to one device.
    pub per_identity: Option<Rate>,
    /// Requests from an address, of whatever identity.
    pub per_address: Option<Rate>,
    /// By the enrollment's name; one that is not there has the defaults.
    pub enrollments: HashMap<String, EnrollmentLimits>,
}

impl Default for RequestLimits {
    /// An identity of one device may ask far more often than any device does. An
    /// address has no limit: behind one there may be a factory.
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
    /// Requests of all its devices together.
    pub requests: Option<Rate>,
    /// Refusals (4.03, 4.04) of one address and port under the shared identity, and ten
    /// times as many of one address. Devices that are in the table are not refused;
    /// whoever tries IDs is.
    pub refused_lookups: Option<Rate>,
}

impl Default for EnrollmentLimits {
    fn default() -> Self {
        Self { requests: None, refused_lookups: Rate::new(100, Duration::from_secs(1)) }
    }
}

/// Names a bucket.
#[derive(Hash)]
enum Key<'k> {
    Identity(&'k str, &'k str),
    Address(Origin),
    Enrollment(&'k str),
    RefusedLookups(&'k str, Source),
    RefusedLookupsOfNetwork(&'k str, Network),
    Served(&'k str, Origin, &'k str),
}

/// The limits that there are, in the order of [`Counters`].
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
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Identity, Self::Address, Self::Enrollment, Self::RefusedLookups];

    /// As it is called in the log and in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Identity => "identity",
            Self::Address => "address",
            Self::Enrollment => "enrollment",
            Self::RefusedLookups => "refused_lookups",
        }
    }
}

/// What happened so far.
#[derive(Debug, Default)]
pub struct Counters {
    throttled: [AtomicU64; 4],
    episodes: [AtomicU64; 4],
    refused_lookups: AtomicU64,
}

impl Counters {
    /// Requests that were told to come back.
    pub fn throttled(&self, limit: Limit) -> u64 {
        self.throttled[limit as usize].load(Ordering::Relaxed)
    }

    /// Times that somebody exceeded a limit, until they had kept quiet for long enough.
    pub fn episodes(&self, limit: Limit) -> u64 {
        self.episodes[limit as usize].load(Ordering::Relaxed)
    }

    /// Requests under a shared identity that were refused with 4.03 or 4.04.
    pub fn refused_lookups(&self) -> u64 {
        self.refused_lookups.load(Ordering::Relaxed)
    }
}

/// What stays when the configuration changes.
struct Kept {
    buckets: Buckets,
    /// Devices of shared identities that were served lately. Apart from the buckets, in
    /// which they would take the places of those who are held back.
    served: Buckets,
    counters: Arc<Counters>,
    /// The second in which lines were last written, and how many.
    lines: Mutex<(Option<Instant>, u32)>,
}

/// Holds requests against the limits.
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
            lines: Mutex::default(),
        };
        Self { limits, kept: Arc::new(kept) }
    }

    /// The same with other limits: nobody is forgiven what they have used up.
    pub(super) fn with(&self, limits: RequestLimits) -> Self {
        Self { limits, kept: self.kept.clone() }
    }

    pub(super) fn counters(&self) -> Arc<Counters> {
        self.kept.counters.clone()
    }

    /// Admits a request for a device, or answers with the seconds after which to come back.
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
            principal.device.as_ref().map(|device| Key::Identity(enrollment, device.as_str()));
        let requests = [
            (Limit::Identity, self.limits.per_identity, identity),
            (Limit::Address, self.limits.per_address, Some(Key::Address(origin))),
            (Limit::Enrollment, limits.requests, Some(Key::Enrollment(enrollment))),
        ];
        let requests =
            || requests.iter().filter_map(|(limit, rate, key)| Some((*limit, (*rate)?, key.as_ref()?)));

        // Looked at all together before any token is taken: a request that one
        // limit refuses costs nothing elsewhere.
        let mut wait = None;
        for (limit, rate, key) in requests() {
            if let Err(empty) = self.kept.buckets.check(now, rate, key) {
                self.tell(now, limit, empty, origin, principal);
                wait = wait.max(Some(empty.wait));
            }
        }
        if let Some(rate) = limits.refused_lookups.filter(|_| principal.device.is_none())
            && let Some(empty) = self.guessed_too_often(now, rate, enrollment, source, wanted)
        {
            self.tell(now, Limit::RefusedLookups, empty, origin, principal);
            wait = wait.max(Some(empty.wait));
        }
        match wait {
            // RFC 8516 §3: the client waits as long as Max-Age says; rounded up,
            // so that there is a token then.
            Some(wait) => Err(wait.as_millis().div_ceil(1000).clamp(1, u32::MAX.into()) as u32),
            None => {
                requests().for_each(|(_, rate, key)| self.kept.buckets.take(now, rate, key));
                Ok(())
            }
        }
    }

    /// The longest wait of those that refused lookups ask for, of this address and port and
    /// of the networks that it is in. One request counts once, however many are empty.
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
        // To ask again for what was given there is no guess: what others guess beside it
        // does not hold it back.
        let network = networks
            .reduce(longest)
            .filter(|_| !served.has(now, &Key::Served(enrollment, source.origin, wanted.as_str())));
        port.into_iter().chain(network).reduce(longest)
    }

    /// Remembers that a device of a shared identity was served where it is.
    pub(super) fn served(&self, now: Instant, source: Source, principal: &Principal, device: &DeviceId) {
        if let (None, Some(rate)) = (&principal.device, Rate::new(1, SERVED)) {
            let key = Key::Served(&principal.enrollment.name, source.origin, device.as_str());
            self.kept.served.take(now, rate, &key);
        }
    }

    /// Counts a request for a device that was refused with 4.03 or 4.04.
    pub(super) fn refused(&self, now: Instant, source: Source, principal: &Principal, wanted: &DeviceId) {
        if principal.device.is_some() {
            return;
        }
        // From now on a guess like any other: or it would be refused as often as asked.
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

    fn tell(&self, now: Instant, limit: Limit, empty: Empty, origin: Origin, principal: &Principal) {
        let Kept { counters, lines, .. } = &*self.kept;
        counters.throttled[limit as usize].fetch_add(1, Ordering::Relaxed);
        if !empty.is_first {
            return;
        }
        counters.episodes[limit as usize].fetch_add(1, Ordering::Relaxed);
        let mut lines = lines.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.0.is_none_or(|second| now >= second + Duration::from_secs(1)) {
            *lines = (Some(now), 0);
        }
        lines.1 += 1;
        if lines.1 > MAX_LINES {
            return;
        }
        let (enrollment, device) = (&principal.enrollment.name, principal.device.as_ref());
        let device = device.map(tracing::field::display);
        match limit {
            Limit::RefusedLookups => tracing::warn!(
                address = %origin, enrollment,
                "too many refused device IDs: somebody may be trying them; slowed down until it stops"
            ),
            _ => tracing::warn!(
                limit = limit.name(), address = %origin, enrollment, device,
                "too many requests; slowed down until it stops"
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
        psk::{Enrollment, Key as Psk, Kind, Reissue},
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
        };
        let device = device.map(|device| DeviceId::parse(device).unwrap());
        Principal { enrollment: Arc::new(enrollment), device, own_identity: None }
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
    fn each_limit_counts_what_it_says() {
        let (now, home, away) = (Instant::now(), origin("192.0.2.1"), origin("192.0.2.2"));
        let (one, other, shared) = (principal(Some("SN-1")), principal(Some("SN-2")), principal(None));

        let throttle = Throttle::new(now, limits(1, 0, 0));
        assert_eq!(throttle.admit(now, home, &one, &wanted()), Ok(()));
        assert_eq!(throttle.admit(now, away, &one, &wanted()), Err(10), "wherever it asks from");
        assert_eq!(throttle.admit(now, home, &other, &wanted()), Ok(()));
        assert_eq!(throttle.admit(now, home, &shared, &wanted()), Ok(()));
        assert_eq!(
            throttle.admit(now, home, &shared, &wanted()),
            Ok(()),
            "many devices are one shared identity"
        );

        let throttle = Throttle::new(now, limits(0, 1, 0));
        assert_eq!(throttle.admit(now, home, &one, &wanted()), Ok(()));
        assert_eq!(throttle.admit(now, home, &other, &wanted()), Err(10), "whoever asks");
        assert_eq!(throttle.admit(now, away, &one, &wanted()), Ok(()));

        let throttle = Throttle::new(now, limits(0, 0, 1));
        assert_eq!(throttle.admit(now, home, &one, &wanted()), Ok(()));
        assert_eq!(throttle.admit(now + 9 * SECOND, away, &other, &wanted()), Err(1), "all together");
        assert_eq!(throttle.admit(now + 10 * SECOND, away, &other, &wanted()), Ok(()));
    }

    #[test]
    fn a_request_that_one_limit_refuses_costs_nothing_elsewhere() {
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
    fn whoever_tries_device_ids_is_slowed_and_devices_elsewhere_are_not() {
        let (start, thief, factory) = (Instant::now(), origin("192.0.2.1"), origin("192.0.2.2"));
        let throttle = Throttle::new(start, RequestLimits::default());
        let shared = principal(None);
        let mut guesses = 0;
        // A thousand guesses a second, for a minute.
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

    /// Guesses from one port, and devices behind the same NAT.
    #[test]
    fn who_guesses_does_not_lock_out_its_neighbours() {
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

    /// A new port for each guess, and of IPv6 a new subscriber's network.
    #[test]
    fn guesses_of_a_network_are_bounded_from_however_many_ports_they_come() {
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

    /// A guesser with a port for each guess holds back strangers of its network, but none of
    /// the devices that have been there, and learns nothing by it.
    #[test]
    fn a_device_that_was_served_is_served_again_however_much_is_guessed_beside_it() {
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
        assert!(throttle.admit(now, away, &shared, &device(1000)).is_err(), "not there");
        // A refusal makes a guess of it.
        throttle.refused(now, home, &shared, &device(1000));
        assert!(throttle.admit(now, home, &shared, &device(1000)).is_err());
        let later = start + 86_401 * SECOND;
        flood(later, "192.0.2.1");
        assert!(throttle.admit(later, home, &shared, &device(1001)).is_err(), "a day later");
    }

    #[test]
    fn a_request_that_many_networks_hold_back_is_counted_once() {
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
    fn new_limits_hold_at_once_and_forgive_nothing() {
        let (now, home, device) = (Instant::now(), origin("192.0.2.1"), principal(Some("SN-1")));
        let throttle = Throttle::new(now, limits(1, 0, 0));
        assert_eq!(throttle.admit(now, home, &device, &wanted()), Ok(()));
        assert_eq!(throttle.with(limits(1, 0, 0)).admit(now, home, &device, &wanted()), Err(10));
        assert_eq!(throttle.with(limits(0, 0, 0)).admit(now, home, &device, &wanted()), Ok(()));
        assert_eq!(throttle.with(limits(2, 0, 0)).admit(now, home, &device, &wanted()), Ok(()));
    }
}
