//! Counts the handshakes in progress per origin, so that a single origin cannot use up the
//! server's limit on handshakes. An origin is an IPv4 address or an IPv6 /64, because one
//! subscriber owns all addresses in a /64.

use std::{
    collections::{HashMap, VecDeque},
    net::{IpAddr, SocketAddr},
};

use super::table::Handle;

/// Number that identifies an origin: an IPv4 address, or the first 64 bits of an IPv6
/// address.
pub(crate) type Prefix = u64;

/// Handshakes in progress, by origin.
#[derive(Default)]
pub(crate) struct Origins(HashMap<Prefix, Origin>);

#[derive(Default)]
struct Origin {
    live: usize,
    /// Handshakes of this origin, the oldest first. Some of them may have ended.
    begun: VecDeque<Handle>,
}

impl Origins {
    /// Adds a new handshake. If its origin now has more than `limit` handshakes, returns
    /// the oldest of them, which the caller must end. `is_live` returns whether a
    /// handshake is still in progress.
    pub(crate) fn begin(
        &mut self,
        peer: SocketAddr,
        handle: Handle,
        limit: usize,
        is_live: impl Fn(Handle) -> bool,
    ) -> Option<Handle> {
        let origin = self.0.entry(prefix(peer)).or_default();
        origin.live += 1;
        origin.begun.push_back(handle);
        // Without this cleanup, the list of a busy origin would keep growing even though
        // its handshakes complete.
        while origin.begun.front().is_some_and(|&oldest| !is_live(oldest)) {
            origin.begun.pop_front();
        }
        if origin.begun.len() > 2 * limit {
            origin.begun.retain(|&handle| is_live(handle));
        }
        if origin.live > limit { origin.begun.front().copied() } else { None }
    }

    /// Removes a handshake that has ended from the count of its origin.
    pub(crate) fn end(&mut self, peer: SocketAddr) {
        let prefix = prefix(peer);
        if let Some(origin) = self.0.get_mut(&prefix) {
            origin.live = origin.live.saturating_sub(1);
            if origin.live == 0 {
                self.0.remove(&prefix);
            }
        }
    }

    #[cfg(any(test, feature = "testing"))]
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

pub(crate) fn prefix(peer: SocketAddr) -> Prefix {
    match peer.ip().to_canonical() {
        // The number of an IPv4 address is also the number of an IPv6 /64 that begins with 32 zero
        // bits. No such /64 is ever routed (RFC 6890).
        IpAddr::V4(ip) => u64::from(ip.to_bits()),
        IpAddr::V6(ip) => (ip.to_bits() >> 64) as u64,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::{super::table::Table, *};

    #[test]
    fn an_ipv6_subscriber_is_one_origin_and_ipv4_addresses_are_not() {
        let prefix = |text: &str| prefix(text.parse().unwrap());
        assert_eq!(prefix("[2001:db8:1:2::1]:1"), prefix("[2001:db8:1:2:ffff::9]:2"));
        assert_ne!(prefix("[2001:db8:1:2::1]:1"), prefix("[2001:db8:1:3::1]:1"));
        assert_ne!(prefix("192.0.2.1:1"), prefix("192.0.2.2:1"));
        assert_eq!(prefix("192.0.2.1:1"), prefix("[::ffff:192.0.2.1]:2"));
    }

    /// Handshakes that have ended do not accumulate in the list behind a handshake that stays open.
    #[test]
    fn the_list_of_an_address_is_at_most_twice_the_limit() {
        let peer: SocketAddr = "192.0.2.1:1".parse().unwrap();
        let mut table = Table::new(Instant::now());
        let mut origins = Origins::default();
        let mut longest = 0;
        for number in 0..100 {
            let handle = table.insert_unlisted(Instant::now(), peer.into(), ());
            assert_eq!(origins.begin(peer, handle, 4, |handle| table.get(handle).is_some()), None);
            longest = longest.max(origins.0[&prefix(peer)].begun.len());
            if number > 0 {
                table.remove(handle);
                origins.end(peer);
            }
        }
        assert_eq!(longest, 8);
    }
}
