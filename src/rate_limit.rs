//! Rate limits: token buckets in bounded memory. Performs no I/O; the caller passes the current
//! time. Knows nothing about requests or clients.

use std::{
    fmt,
    hash::{BuildHasher, Hash, RandomState},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    num::NonZeroU64,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// Maximum capacity of a bucket, in tokens.
pub const MAX_BURST: u32 = 1_000_000;
/// Shortest time that may be configured for a bucket to regain one token.
pub const MIN_EVERY: Duration = Duration::from_micros(10);
/// Longest time that may be configured for a bucket to regain one token.
pub const MAX_EVERY: Duration = Duration::from_secs(86_400);

/// Rate of a token bucket. A full bucket permits `burst` requests at the same time. An empty bucket
/// permits one request in each period of `every`, because it regains one token per period.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    burst: u32,
    every: Duration,
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{{ burst = {}, every = {} }}", self.burst, self.every.as_secs_f64())
    }
}

impl Rate {
    /// Returns the rate of a bucket of `burst` tokens (1 to [`MAX_BURST`]) that regains
    /// one token in each period of `every` ([`MIN_EVERY`] to [`MAX_EVERY`]). Returns
    /// `None` for other values.
    pub fn new(burst: u32, every: Duration) -> Option<Self> {
        let valid = (1..=MAX_BURST).contains(&burst) && (MIN_EVERY..=MAX_EVERY).contains(&every);
        valid.then_some(Self { burst, every })
    }

    /// Returns a rate that is `times` times as high.
    pub fn times(self, times: u32) -> Self {
        Self {
            burst: self.burst.saturating_mul(times).min(MAX_BURST),
            every: (self.every / times.max(1)).max(MIN_EVERY),
        }
    }

    /// Returns the time in which a bucket regains one token, in microseconds.
    fn every(self) -> u64 {
        self.every.as_micros() as u64
    }

    /// Returns the time in which an empty bucket becomes full, in microseconds. The result is at
    /// most 86,400,000,000,000,000.
    fn all(self) -> u64 {
        self.every() * u64::from(self.burst)
    }
}

/// Smallest network to which a rate limit applies: an IPv4 address, or the first 64 bits of an IPv6
/// address. A subscriber owns all addresses with the same 64 bits. An IPv4-mapped IPv6 address (RFC
/// 4291 §2.5.5.2) counts as IPv4.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Origin(NonZeroU64);

/// Upper 32 bits of the origin of an IPv4 address. In IPv6, these bits belong to a
/// multicast network (RFC 4291 §2.7), from which nothing is sent.
const IPV4: u64 = 0xffff_ffff << 32;

impl Origin {
    /// Returns the origin of an address.
    pub fn of(address: IpAddr) -> Self {
        let bits = match address.to_canonical() {
            IpAddr::V4(address) => IPV4 | u64::from(address.to_bits()),
            IpAddr::V6(address) => (address.to_bits() >> 64) as u64,
        };
        // ::/64, the network of the loopback address, has no bit set, and so would be 0. It is
        // stored as the number of the next network, which is reserved.
        Self(NonZeroU64::new(bits).unwrap_or(NonZeroU64::MIN))
    }
}

/// Address and port of a client, for rate limits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Source {
    /// Network of the address.
    pub origin: Origin,
    port: u16,
}

/// Network under which sources are counted: the bits of its prefix, and the number of bits by which
/// the prefix is shorter than 64.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Network(u64, u32);

/// Networks that an IPv6 address is counted under (RFC 6177): a subscriber's /64, a site's /56, and
/// the /48 of a provider's customer. Each entry is the number of bits by which the network's prefix
/// is shorter than 64, and the factor by which its rate exceeds the rate of a /64.
const IPV6_NETWORKS: [(u32, u32); 3] = [(0, 1), (8, 2), (16, 4)];

impl Source {
    /// Returns the source for this address and port.
    pub fn of(address: SocketAddr) -> Self {
        Self { origin: Origin::of(address.ip()), port: address.port() }
    }

    /// Returns the networks that the source is counted under, each with the factor by which the
    /// network's rate exceeds the rate of a single origin.
    pub fn networks(self) -> impl Iterator<Item = (Network, u32)> + Clone {
        let bits = self.origin.0.get();
        let levels = if bits & IPV4 == IPV4 { &IPV6_NETWORKS[..1] } else { &IPV6_NETWORKS };
        levels.iter().map(move |&(beyond, times)| (Network(bits >> beyond, beyond), times))
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bits = self.0.get();
        if bits & IPV4 == IPV4 {
            return Ipv4Addr::from_bits(bits as u32).fmt(f);
        }
        let bits = if bits == 1 { 0 } else { bits };
        write!(f, "{}/64", Ipv6Addr::from_bits(u128::from(bits) << 64))
    }
}

impl fmt::Debug for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Error: the bucket has no token for a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Empty {
    /// Time until the bucket has a token.
    pub wait: Duration,
    /// Set if this is the first request to find the bucket empty since the bucket was last full.
    pub is_first: bool,
}

/// Number of shards, each with its own lock.
const SHARDS: usize = 64;
/// Number of sets in a shard. The hash of a bucket's key selects one set.
const SETS: usize = 128;
/// Number of buckets in a set. A new bucket can replace only a bucket in its own set.
const WAYS: usize = 8;

/// The buckets of all keys with recent requests. The key of a bucket is the value by which requests
/// are counted, such as a network. There are 65,536 buckets of 16 bytes each, 1 MiB in total.
///
/// A bucket is stored as the time at which it will be full, so a full bucket need not be stored at
/// all. If the set of a new key has no free or full bucket, the bucket of the new key replaces the
/// bucket that would be full first. The key of the replaced bucket gains its missing tokens, and no
/// other key loses any. Keys are hashed under a random secret, so no one can choose whose bucket to
/// replace.
pub struct Buckets {
    made: Instant,
    hasher: RandomState,
    shards: Box<[Shard]>,
}

/// Each shard has its own cache lines, because locks on the same cache line would slow each other
/// down.
#[repr(align(128))]
struct Shard(Mutex<Sets>);

type Sets = Box<[[Bucket; WAYS]]>;

#[derive(Clone, Copy)]
struct Bucket {
    key: u64,
    /// Time at which the bucket is full, in microseconds since the table was created, shifted left
    /// by one. The lowest bit is set when a request finds the bucket empty, and cleared when the
    /// bucket is full again.
    full_at: u64,
}

impl Bucket {
    /// A free bucket. Its bytes are not all zero, so the system allocates the memory of the whole
    /// table at the start. Otherwise the process would grow as the table fills, which would look
    /// like a leak.
    const FREE: Self = Self { key: u64::MAX, full_at: 0 };

    fn full_at(self) -> u64 {
        self.full_at >> 1
    }
}

impl Buckets {
    /// Creates a table in which every bucket is full.
    pub fn new(now: Instant) -> Self {
        let shard = || Shard(Mutex::new(vec![[Bucket::FREE; WAYS]; SETS].into_boxed_slice()));
        Self {
            made: now,
            hasher: RandomState::new(),
            shards: std::iter::repeat_with(shard).take(SHARDS).collect(),
        }
    }

    /// Checks that the bucket of a key has a token, without taking the token. `rate` may differ
    /// from the rate in earlier calls.
    pub fn check(&self, now: Instant, rate: Rate, key: &impl Hash) -> Result<(), Empty> {
        let now = self.micros(now);
        self.with(key, |hash, set| {
            let Some(bucket) = set.iter_mut().find(|bucket| bucket.key == hash) else { return Ok(()) };
            let missing = bucket.full_at().saturating_sub(now).min(rate.all());
            let wait = missing.saturating_sub(rate.all() - rate.every());
            if wait == 0 {
                return Ok(());
            }
            let is_first = bucket.full_at & 1 == 0;
            // The stored time is capped by this rate, because the reported wait is calculated from
            // the capped time.
            bucket.full_at = (now + missing) << 1 | 1;
            Err(Empty { wait: Duration::from_micros(wait), is_first })
        })
    }

    /// Takes a token from the bucket of a key. An empty bucket stays empty.
    pub fn take(&self, now: Instant, rate: Rate, key: &impl Hash) {
        let now = self.micros(now);
        self.with(key, |hash, set| {
            let known = set.iter().position(|bucket| bucket.key == hash);
            let (place, before) = match known {
                Some(place) if set[place].full_at() > now => (place, set[place]),
                // The bucket has become full again, so the key starts with all tokens.
                Some(place) => (place, Bucket { key: hash, full_at: 0 }),
                None => {
                    let fullest = (0..WAYS).min_by_key(|&place| set[place].full_at()).unwrap_or(0);
                    (fullest, Bucket { key: hash, full_at: 0 })
                }
            };
            let missing = before.full_at().saturating_sub(now) + rate.every();
            let full_at = now + missing.min(rate.all());
            set[place] = Bucket { key: hash, full_at: full_at << 1 | before.full_at & 1 };
        });
    }

    /// Returns whether the key has a bucket that is not full.
    pub fn has(&self, now: Instant, key: &impl Hash) -> bool {
        let now = self.micros(now);
        self.with(key, |hash, set| set.iter().any(|bucket| bucket.key == hash && bucket.full_at() > now))
    }

    /// Refills the bucket of a key, as if no token had been taken.
    pub fn fill(&self, key: &impl Hash) {
        self.with(key, |hash, set| {
            set.iter_mut().filter(|bucket| bucket.key == hash).for_each(|bucket| *bucket = Bucket::FREE)
        });
    }

    fn micros(&self, now: Instant) -> u64 {
        // The result is never 0, so the time 0 in a free bucket is always in the past.
        now.saturating_duration_since(self.made).as_micros() as u64 + 1
    }

    fn with<T>(&self, key: &impl Hash, act: impl FnOnce(u64, &mut [Bucket; WAYS]) -> T) -> T {
        let hash = self.hasher.hash_one(key);
        let Shard(shard) = &self.shards[hash as usize % SHARDS];
        // No code panics while it holds a lock, so no lock is ever poisoned.
        let mut shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
        act(hash, &mut shard[(hash >> 32) as usize % SETS])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn rate(burst: u32, every: Duration) -> Rate {
        Rate::new(burst, every).unwrap()
    }

    /// Takes a token if there is one.
    fn ask(buckets: &Buckets, now: Instant, rate: Rate, key: &str) -> Result<(), Empty> {
        buckets.check(now, rate, &key)?;
        buckets.take(now, rate, &key);
        Ok(())
    }

    #[test]
    fn a_burst_is_served_and_then_one_request_per_token() {
        let (now, rate) = (Instant::now(), rate(3, 2 * SECOND));
        let buckets = Buckets::new(now);
        for _ in 0..3 {
            assert_eq!(ask(&buckets, now, rate, "a"), Ok(()));
        }
        assert_eq!(ask(&buckets, now, rate, "a"), Err(Empty { wait: 2 * SECOND, is_first: true }));
        assert_eq!(ask(&buckets, now + SECOND, rate, "a").unwrap_err().wait, SECOND);
        assert_eq!(ask(&buckets, now + 2 * SECOND, rate, "a"), Ok(()));
        assert_eq!(ask(&buckets, now + 2 * SECOND, rate, "a").unwrap_err().wait, 2 * SECOND);
        // After a long idle time, the bucket holds no more than the burst.
        let later = now + 1000 * SECOND;
        for _ in 0..3 {
            assert_eq!(ask(&buckets, later, rate, "a"), Ok(()));
        }
        assert!(ask(&buckets, later, rate, "a").is_err());
    }

    #[test]
    fn after_the_reported_wait_there_is_a_token() {
        let rate = rate(2, Duration::from_millis(700));
        let mut now = Instant::now();
        let buckets = Buckets::new(now);
        let mut served = 0;
        for _ in 0..100 {
            match ask(&buckets, now, rate, "a") {
                Ok(()) => served += 1,
                Err(empty) => {
                    now += empty.wait;
                    assert_eq!(ask(&buckets, now, rate, "a"), Ok(()));
                    served += 1;
                }
            }
        }
        assert_eq!(served, 100);
    }

    #[test]
    fn each_key_has_its_own_bucket() {
        let (now, rate) = (Instant::now(), rate(1, SECOND));
        let buckets = Buckets::new(now);
        for key in 0..1000 {
            assert_eq!(ask(&buckets, now, rate, &key.to_string()), Ok(()), "{key}");
        }
    }

    #[test]
    fn an_episode_begins_once_and_ends_when_the_bucket_is_full() {
        let (start, rate) = (Instant::now(), rate(2, SECOND));
        let buckets = Buckets::new(start);
        let mut begun = 0;
        // For a minute, the client asks four times a second.
        for quarter in 0..240 {
            let asked = ask(&buckets, start + quarter * SECOND / 4, rate, "a");
            begun += u32::from(asked.is_err_and(|empty| empty.is_first));
        }
        assert_eq!(begun, 1);
        let later = start + 63 * SECOND;
        let again: Vec<_> = (0..4).map(|_| ask(&buckets, later, rate, "a")).collect();
        assert!(again[2].is_err_and(|empty| empty.is_first) && again[3].is_err_and(|empty| !empty.is_first));
    }

    #[test]
    fn many_new_keys_neither_grow_the_table_nor_release_one_that_is_limited() {
        let (now, tight, loose) = (Instant::now(), rate(100, SECOND), rate(100, SECOND));
        let buckets = Buckets::new(now);
        while ask(&buckets, now, tight, "enumerator").is_ok() {}
        let mut refused = 0;
        for stranger in 0..500_000u32 {
            refused += u32::from(buckets.check(now, loose, &stranger).is_err());
            buckets.take(now, loose, &stranger);
        }
        assert_eq!(refused, 0, "the first request of a key is never refused");
        assert!(ask(&buckets, now, tight, "enumerator").is_err());
        let places: usize =
            buckets.shards.iter().map(|Shard(shard)| shard.lock().unwrap().len() * WAYS).sum();
        assert_eq!(places * size_of::<Bucket>(), 1 << 20);
    }

    #[test]
    fn a_new_rate_applies_at_once() {
        let now = Instant::now();
        let buckets = Buckets::new(now);
        let (slow, fast) = (rate(10, 100 * SECOND), rate(10, SECOND));
        while ask(&buckets, now, slow, "a").is_ok() {}
        assert_eq!(ask(&buckets, now, fast, "a").unwrap_err().wait, SECOND);
        assert_eq!(ask(&buckets, now + SECOND, fast, "a"), Ok(()));
    }

    #[test]
    fn a_rate_has_its_bounds() {
        assert!(Rate::new(0, SECOND).is_none() && Rate::new(MAX_BURST + 1, SECOND).is_none());
        assert!(Rate::new(1, Duration::ZERO).is_none() && Rate::new(1, MAX_EVERY + SECOND).is_none());
        let (now, largest) = (Instant::now(), rate(MAX_BURST, MAX_EVERY));
        let buckets = Buckets::new(now);
        buckets.take(now, largest, &"a");
        assert_eq!(buckets.check(now, largest, &"a"), Ok(()));
    }

    #[test]
    fn an_ipv6_subscriber_is_one_origin_and_ipv4_counts_by_address_mapped_or_not() {
        let origin = |text: &str| Origin::of(text.parse().unwrap());
        assert_eq!(origin("2001:db8:1:2::1"), origin("2001:db8:1:2:ffff::9"));
        assert_ne!(origin("2001:db8:1:2::1"), origin("2001:db8:1:3::1"));
        assert_ne!(origin("192.0.2.1"), origin("192.0.2.2"));
        assert_eq!(origin("192.0.2.1"), origin("::ffff:192.0.2.1"));
        assert_ne!(origin("::1"), origin("0.0.0.0"));
        let shown =
            ["192.0.2.1", "::ffff:192.0.2.1", "2001:db8:1:2::1", "::1"].map(|text| origin(text).to_string());
        assert_eq!(shown, ["192.0.2.1", "192.0.2.1", "2001:db8:1:2::/64", "::/64"]);
        assert_eq!(size_of::<Option<Origin>>(), 8);
    }
}
