//! The stateless cookie (RFC 6347 §4.2.1). By returning the cookie, a client proves that it
//! receives datagrams at the address from which it sends. The server keeps no state for a client
//! before this proof.

use std::{
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use subtle::ConstantTimeEq;

/// Length of a cookie in bytes. A datagram with a HelloVerifyRequest has 44 bytes, and one
/// with the shortest ClientHello has 67, so the answer is never larger than the request.
pub(crate) const COOKIE: usize = 16;

/// Makes and checks cookies. The first byte of a cookie identifies the period in which it
/// was made; cookies of the current and the previous period are accepted.
pub(crate) struct CookieJar {
    key: Hmac<Sha256>,
    started: Instant,
    period: Duration,
}

impl CookieJar {
    /// Creates a jar. `secret` is random. Endpoints with the same `secret`, `started` and
    /// `period` accept each other's cookies. A `period` below 1 s counts as 1 s.
    pub(crate) fn new(secret: &[u8; 32], started: Instant, period: Duration) -> Self {
        let Ok(key) = Hmac::new_from_slice(secret) else { unreachable!("HMAC takes any key") };
        Self { key, started, period: period.max(Duration::from_secs(1)) }
    }

    /// Makes a cookie that is bound to the client's address, port and random.
    pub(crate) fn make(&self, now: Instant, peer: SocketAddr, client_random: &[u8; 32]) -> [u8; COOKIE] {
        self.made_in(self.period_at(now), peer, client_random)
    }

    /// Returns whether `cookie` was made for this client in the current or the previous
    /// period.
    pub(crate) fn accepts(
        &self,
        now: Instant,
        peer: SocketAddr,
        client_random: &[u8; 32],
        cookie: &[u8],
    ) -> bool {
        let Ok(cookie) = <&[u8; COOKIE]>::try_from(cookie) else { return false };
        let current = self.period_at(now);
        let age = (current as u8).wrapping_sub(cookie[0]);
        let Some(period) = current.checked_sub(age.into()).filter(|_| age <= 1) else { return false };
        self.made_in(period, peer, client_random).ct_eq(cookie).into()
    }

    fn period_at(&self, now: Instant) -> u64 {
        (now.saturating_duration_since(self.started).as_nanos() / self.period.as_nanos()) as u64
    }

    fn made_in(&self, period: u64, peer: SocketAddr, client_random: &[u8; 32]) -> [u8; COOKIE] {
        let mut mac = self.key.clone();
        mac.update(&period.to_be_bytes());
        match peer.ip() {
            IpAddr::V4(ip) => mac.update(&ip.octets()),
            IpAddr::V6(ip) => mac.update(&ip.octets()),
        }
        mac.update(&peer.port().to_be_bytes());
        mac.update(client_random);
        let tag = mac.finalize().into_bytes();
        let mut cookie = [0; COOKIE];
        cookie[0] = period as u8;
        cookie[1..].copy_from_slice(&tag[..COOKIE - 1]);
        cookie
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_cookie_is_accepted_from_its_client_for_two_periods() {
        let start = Instant::now();
        let jar = CookieJar::new(&[1; 32], start, Duration::from_secs(60));
        let (peer, random) = (address("192.0.2.1:1000"), [5; 32]);
        let cookie = jar.make(start, peer, &random);
        let at = |seconds| start + Duration::from_secs(seconds);
        assert!(jar.accepts(at(0), peer, &random, &cookie));
        assert!(jar.accepts(at(119), peer, &random, &cookie));
        assert!(!jar.accepts(at(120), peer, &random, &cookie), "too old");
        assert!(!jar.accepts(at(256 * 60), peer, &random, &cookie), "the byte of the period has wrapped");
        assert!(!jar.accepts(at(0), address("192.0.2.1:1001"), &random, &cookie));
        assert!(!jar.accepts(at(0), address("192.0.2.2:1000"), &random, &cookie));
        assert!(!jar.accepts(at(0), peer, &[6; 32], &cookie));
        assert!(!jar.accepts(at(0), peer, &random, &cookie[..15]));
        assert!(!jar.accepts(at(0), peer, &random, &[]));
        for bit in 0..COOKIE * 8 {
            let mut touched = cookie;
            touched[bit / 8] ^= 1 << (bit % 8);
            assert!(!jar.accepts(at(0), peer, &random, &touched), "bit {bit}");
        }
    }

    #[test]
    fn endpoints_with_one_secret_accept_each_others_cookies() {
        let start = Instant::now();
        let jar = || CookieJar::new(&[1; 32], start, Duration::from_secs(60));
        let (peer, random) = (address("[2001:db8::1]:5684"), [5; 32]);
        assert!(jar().accepts(start, peer, &random, &jar().make(start, peer, &random)));
        let other = CookieJar::new(&[2; 32], start, Duration::from_secs(60));
        assert!(!other.accepts(start, peer, &random, &jar().make(start, peer, &random)));
    }
}
