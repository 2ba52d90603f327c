//! Limits the CPU time that each network can make the server spend on handshakes that do not
//! complete. A handshake is charged when it starts and refunded when it becomes a session.
//! Therefore many honest devices behind one address are not delayed, but an attacker with an
//! address and no key gets only a bounded share of the processor.

use std::{
    hash::{BuildHasher, RandomState},
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

/// Number of buckets in each set of the hash table. The hash of a network selects one set, and the
/// network is kept in one of that set's buckets.
const WAYS: usize = 8;
/// Number of sets. All sets together have 16,384 buckets of 16 bytes each, or 256 KiB.
const SETS: usize = 2048;

/// Prefix lengths of the networks that are charged for a handshake from an IPv6 address, each with
/// the multiple of the budget that a network of this size gets. These prefixes are usual for a
/// subscriber, a site and a provider's customer (RFC 6177). An IPv4 address counts as one network
/// of its own.
const IPV6_LEVELS: [(u32, u32); 3] = [(64, 1), (56, 2), (48, 4)];

#[derive(Clone, Copy)]
struct Bucket {
    /// Hash of the prefix; 0 if the bucket is empty.
    key: u64,
    /// Time at which the network will owe nothing, in microseconds since the budget was
    /// created.
    clear_at: u64,
}

/// Budgets of all networks that owe CPU time.
pub(crate) struct Budget {
    made: Instant,
    hasher: RandomState,
    /// Maximum CPU time that a network may owe, in microseconds.
    burst: u64,
    /// Number of microseconds that pass until 1 µs of owed CPU time is forgiven.
    refill: u64,
    sets: Box<[[Bucket; WAYS]]>,
}

impl Budget {
    /// Creates a budget. Each network may owe up to `burst` of CPU time. In each second,
    /// `per_second` of a network's debt is forgiven.
    pub(crate) fn new(now: Instant, burst: Duration, per_second: Duration) -> Self {
        let per_second = (per_second.as_micros() as u64).clamp(1, 1_000_000);
        Self {
            made: now,
            hasher: RandomState::new(),
            burst: (burst.as_micros() as u64).min(1 << 40),
            refill: 1_000_000 / per_second,
            sets: vec![[Bucket { key: 0, clear_at: 0 }; WAYS]; SETS].into_boxed_slice(),
        }
    }

    /// Charges `cost` to each network that contains the address, and returns `true`. If one of
    /// these networks would then owe too much, charges nothing and returns `false`.
    pub(crate) fn charge(&mut self, now: Instant, peer: SocketAddr, cost: Duration) -> bool {
        let now = self.micros(now);
        let mut prefixes = prefixes(peer.ip());
        let affordable = prefixes.clone().all(|(prefix, times)| {
            let cost = self.waiting_time(cost, times);
            self.owed(now, prefix) + cost <= self.burst * self.refill
        });
        if affordable {
            prefixes.by_ref().for_each(|(prefix, times)| {
                let cost = self.waiting_time(cost, times);
                self.add(now, prefix, cost);
            });
        }
        affordable
    }

    /// Subtracts `cost` from the debt of each network that contains the address.
    pub(crate) fn refund(&mut self, peer: SocketAddr, cost: Duration) {
        for (prefix, times) in prefixes(peer.ip()) {
            let cost = self.waiting_time(cost, times);
            let (key, set) = self.set(prefix);
            if let Some(bucket) = self.sets[set].iter_mut().find(|bucket| bucket.key == key) {
                bucket.clear_at = bucket.clear_at.saturating_sub(cost);
            }
        }
    }

    /// Returns the time until a cost is forgiven, in microseconds. `times` is the network's
    /// multiple of the budget.
    fn waiting_time(&self, cost: Duration, times: u32) -> u64 {
        cost.as_micros() as u64 * self.refill / u64::from(times)
    }

    fn owed(&self, now: u64, prefix: u128) -> u64 {
        let (key, set) = self.set(prefix);
        let bucket = self.sets[set].iter().find(|bucket| bucket.key == key);
        bucket.map_or(0, |bucket| bucket.clear_at.saturating_sub(now))
    }

    fn add(&mut self, now: u64, prefix: u128, cost: u64) {
        let (key, set) = self.set(prefix);
        let set = &mut self.sets[set];
        let known = set.iter().position(|bucket| bucket.key == key);
        // When the set is full, the new network replaces the network with the smallest debt. The
        // debt of the replaced network is forgotten, so that no network is charged for the
        // handshakes of another.
        let place = known.or_else(|| (0..WAYS).min_by_key(|&way| set[way].clear_at)).unwrap_or(0);
        let before = known.map_or(now, |place| set[place].clear_at.max(now));
        set[place] = Bucket { key, clear_at: before + cost };
    }

    fn set(&self, prefix: u128) -> (u64, usize) {
        let hash = self.hasher.hash_one(prefix).max(1);
        (hash, hash as usize % SETS)
    }

    fn micros(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.made).as_micros() as u64
    }
}

/// Returns the networks that contain an address, each with its multiple of the budget. A network is
/// returned as one number, which combines the network's bits and its prefix length.
fn prefixes(address: IpAddr) -> impl Iterator<Item = (u128, u32)> + Clone {
    let (bits, levels) = match address.to_canonical() {
        // An IPv4 address becomes an IPv4-mapped IPv6 address (RFC 4291 §2.5.5.2), which
        // is in none of the counted IPv6 networks.
        IpAddr::V4(address) => (address.to_ipv6_mapped().to_bits(), &[(128, 1)][..]),
        IpAddr::V6(address) => (address.to_bits(), &IPV6_LEVELS[..]),
    };
    levels.iter().map(move |&(length, times)| {
        let kept = bits & u128::MAX << (128 - length);
        // The host bits are zero, so they can hold the prefix length, which distinguishes
        // the levels.
        (if length < 128 { kept | u128::from(length) } else { kept }, times)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MILLISECOND: Duration = Duration::from_millis(1);

    fn budget() -> (Budget, Instant) {
        let now = Instant::now();
        (Budget::new(now, Duration::from_millis(100), Duration::from_millis(50)), now)
    }

    fn affordable(budget: &mut Budget, now: Instant, peer: &str, cost: Duration) -> u32 {
        let peer = peer.parse().unwrap();
        let mut count = 0;
        while count < 100_000 && budget.charge(now, peer, cost) {
            count += 1;
        }
        count
    }

    #[test]
    fn a_network_gets_its_burst_and_then_its_share() {
        let (mut budget, now) = budget();
        assert_eq!(affordable(&mut budget, now, "192.0.2.1:1", MILLISECOND), 100);
        assert_eq!(affordable(&mut budget, now, "192.0.2.1:2", MILLISECOND), 0, "the port does not count");
        assert_eq!(
            affordable(&mut budget, now, "192.0.2.2:1", MILLISECOND),
            100,
            "another address has its own budget"
        );
        let later = now + Duration::from_secs(1);
        assert_eq!(affordable(&mut budget, later, "192.0.2.1:1", MILLISECOND), 50);
        let later = now + Duration::from_secs(100);
        assert_eq!(affordable(&mut budget, later, "192.0.2.1:1", MILLISECOND), 100);
    }

    #[test]
    fn a_refund_can_be_spent_again() {
        let (mut budget, now) = budget();
        let peer = "192.0.2.1:1".parse().unwrap();
        for _ in 0..10_000 {
            assert!(budget.charge(now, peer, MILLISECOND));
            budget.refund(peer, MILLISECOND);
        }
        assert_eq!(affordable(&mut budget, now, "192.0.2.1:1", MILLISECOND), 100);
    }

    #[test]
    fn an_ipv6_56_has_two_budgets_and_a_48_has_four() {
        let (mut budget, now) = budget();
        let mut total = 0;
        for subscriber in 0..1000 {
            let peer = format!("[2001:db8:1:{subscriber:x}::{subscriber:x}]:1");
            let got = affordable(&mut budget, now, &peer, MILLISECOND);
            assert!(got <= 100, "{got}");
            total += got;
        }
        assert_eq!(total, 400, "a /48 has four budgets");
        assert_eq!(affordable(&mut budget, now, "[2001:db8:2::1]:1", MILLISECOND), 100);
        let (mut budget, now) = self::budget();
        let of_56: u32 = (0..256)
            .map(|subscriber| {
                affordable(&mut budget, now, &format!("[2001:db8:1:{subscriber:x}::]:1"), MILLISECOND)
            })
            .sum();
        assert_eq!(of_56, 200, "a /56 has two");
    }

    #[test]
    fn many_networks_neither_grow_the_table_nor_pay_for_each_other() {
        let (mut budget, now) = budget();
        assert_eq!(affordable(&mut budget, now, "192.0.2.1:1", MILLISECOND), 100);
        for number in 0..200_000u32 {
            let [_, a, b, c] = number.to_be_bytes();
            assert!(budget.charge(now, SocketAddr::from(([10, a, b, c], 1)), MILLISECOND));
        }
        assert_eq!(
            affordable(&mut budget, now, "192.0.2.1:1", MILLISECOND),
            0,
            "the network that owes most is not replaced"
        );
    }

    #[test]
    fn each_address_of_ipv4_has_a_budget_of_its_own() {
        let (mut budget, now) = budget();
        for bit in 0..32 {
            let peer = SocketAddr::from((std::net::Ipv4Addr::from_bits(1 << bit), 1)).to_string();
            assert_eq!(affordable(&mut budget, now, &peer, MILLISECOND), 100, "{peer}");
        }
        assert_eq!(affordable(&mut budget, now, "0.0.0.0:1", MILLISECOND), 100);
    }
}
