//! Counts the requests in progress of each network, so that one network cannot use a whole worker.
//! Performs no I/O, and knows nothing about requests and sessions.

use std::collections::HashMap;

use crate::rate_limit::{Network, Source};

/// Maximum number of requests in progress at one worker. At the maximum, devices are asked to retry
/// later.
pub const MAX_TASKS: u64 = 50_000;
/// Maximum number of requests in progress from one address (in IPv6, one /64). This is enough for a
/// factory of 10,000 devices behind the address, and is a quarter of a worker's maximum. An IPv6
/// network larger than a /64 may have a multiple of this number.
const MAX_OF_ADDRESS: u64 = 12_500;
/// Maximum number of requests in progress from a network of any size, so that even a client with a
/// whole /48 leaves half of a worker free.
const MAX_OF_NETWORK: u64 = MAX_TASKS / 2;

/// Number of requests in progress, by network.
#[derive(Debug, Default)]
pub struct InProgress(HashMap<Network, u64>);

impl InProgress {
    /// Returns whether any network of this source has reached its maximum.
    pub fn is_full(&self, source: Source) -> bool {
        source.networks().any(|(network, times)| {
            let most = (MAX_OF_ADDRESS * u64::from(times)).min(MAX_OF_NETWORK);
            self.0.get(&network).is_some_and(|&count| count >= most)
        })
    }

    /// Adds a request that begins.
    pub fn begin(&mut self, source: Source) {
        for (network, _) in source.networks() {
            *self.0.entry(network).or_default() += 1;
        }
    }

    /// Removes a request that has ended.
    pub fn end(&mut self, source: Source) {
        for (network, _) in source.networks() {
            if let Some(count) = self.0.get_mut(&network) {
                *count -= 1;
                if *count == 0 {
                    self.0.remove(&network);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(address: &str, port: u16) -> Source {
        Source::of((address.parse::<std::net::IpAddr>().unwrap(), port).into())
    }

    /// Begins up to 60,000 requests from the sources, and returns how many were allowed.
    fn fill(in_progress: &mut InProgress, source: impl Fn(u32) -> Source) -> u64 {
        let mut begun = 0;
        for source in (0..60_000).map(source) {
            if !in_progress.is_full(source) {
                in_progress.begin(source);
                begun += 1;
            }
        }
        begun
    }

    #[test]
    fn no_network_can_use_a_whole_worker() {
        let of_address = |number: u32| source("192.0.2.1", number as u16);
        let of_subscriber = |number: u32| source(&format!("2001:db8::{number:x}"), 1);
        let of_site = |number: u32| source(&format!("2001:db8:0:{:x}::1", number % 256), 1);
        let of_customer = |number: u32| source(&format!("2001:db8:0:{number:x}::1"), 1);
        assert_eq!(fill(&mut InProgress::default(), of_address), 12_500);
        assert_eq!(fill(&mut InProgress::default(), of_subscriber), 12_500);
        assert_eq!(fill(&mut InProgress::default(), of_site), 25_000);
        let mut in_progress = InProgress::default();
        assert_eq!(fill(&mut in_progress, of_customer), 25_000);
        assert!(
            !in_progress.is_full(source("2001:db8:1::1", 1)) && !in_progress.is_full(source("192.0.2.1", 1))
        );
    }

    #[test]
    fn a_request_that_ends_is_removed() {
        let mut in_progress = InProgress::default();
        let one = source("2001:db8::1", 1);
        fill(&mut in_progress, |_| one);
        assert!(in_progress.is_full(one));
        in_progress.end(one);
        assert!(!in_progress.is_full(one));
        (1..12_500).for_each(|_| in_progress.end(one));
        assert!(in_progress.0.is_empty());
    }
}
