//! Histograms and counters that one thread writes and others may read at any time. They use
//! atomics, so that threads share no lock. This module knows neither what is measured nor how it is
//! shown.

use std::{
    iter,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

/// Upper bounds of a [`Histogram`]'s buckets, in microseconds. The range covers answers from the
/// table as well as slow registrations. Durations above the last bound have a bucket of their own.
const BOUNDS: [u64; 18] = [
    50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000,
    2_500_000, 5_000_000, 10_000_000, 30_000_000,
];

/// A histogram of durations, with fixed buckets.
#[derive(Debug, Default)]
pub struct Histogram {
    buckets: [AtomicU64; BOUNDS.len() + 1],
    micros: AtomicU64,
}

impl Histogram {
    /// Counts one duration.
    pub fn observe(&self, took: Duration) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let bucket = BOUNDS.partition_point(|&bound| bound < micros);
        self.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        self.micros.fetch_add(micros, Ordering::Relaxed);
    }

    /// Returns the durations counted so far.
    pub fn read(&self) -> Distribution {
        Distribution {
            buckets: self.buckets.each_ref().map(|bucket| bucket.load(Ordering::Relaxed)),
            micros: self.micros.load(Ordering::Relaxed),
        }
    }
}

/// Durations that one or several histograms have counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Distribution {
    buckets: [u64; BOUNDS.len() + 1],
    micros: u64,
}

impl Distribution {
    /// Adds another distribution.
    #[must_use]
    pub fn plus(mut self, other: Self) -> Self {
        for (one, other) in iter::zip(&mut self.buckets, other.buckets) {
            *one += other;
        }
        self.micros = self.micros.saturating_add(other.micros);
        self
    }

    /// Returns the number of durations.
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// Returns the sum of the durations, in seconds.
    pub fn seconds(&self) -> f64 {
        self.micros as f64 / 1e6
    }

    /// Returns each bound in seconds, with the number of durations that did not exceed the bound.
    /// Omits the last bucket, which has no bound.
    pub fn cumulated(&self) -> impl Iterator<Item = (f64, u64)> + '_ {
        let mut sum = 0;
        iter::zip(BOUNDS, self.buckets).map(move |(bound, count)| {
            sum += count;
            (bound as f64 / 1e6, sum)
        })
    }

    /// Returns the lowest bound, in seconds, that at least the fraction `part` (0 to 1) of the
    /// durations did not exceed. Returns `None` if there are no durations, or if no bound is high
    /// enough.
    pub fn quantile(&self, part: f64) -> Option<f64> {
        let wanted = (self.count() as f64 * part).ceil().max(1.0) as u64;
        self.cumulated().find(|&(_, sum)| sum >= wanted).map(|(bound, _)| bound)
    }
}

/// A counter for each value of a byte.
#[derive(Debug)]
pub struct ByByte([AtomicU64; 256]);

impl Default for ByByte {
    fn default() -> Self {
        Self([const { AtomicU64::new(0) }; 256])
    }
}

impl ByByte {
    /// Counts one occurrence of a value.
    pub fn count(&self, byte: u8) {
        self.0[usize::from(byte)].fetch_add(1, Ordering::Relaxed);
    }

    /// Returns the number of occurrences of a value.
    pub fn of(&self, byte: u8) -> u64 {
        self.0[usize::from(byte)].load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_duration_is_counted_in_the_first_bucket_that_holds_it() {
        let histogram = Histogram::default();
        for micros in [0, 50, 51, 1_000, 30_000_000, 30_000_001] {
            histogram.observe(Duration::from_micros(micros));
        }
        let read = histogram.read();
        let at = |bound: f64| read.cumulated().find(|&(known, _)| known == bound).map(|(_, sum)| sum);
        assert_eq!((at(0.000_05), at(0.000_1), at(0.001), at(30.0)), (Some(2), Some(3), Some(4), Some(5)));
        assert_eq!(read.count(), 6);
        assert!((read.seconds() - 60.001_102).abs() < 1e-9);
    }

    #[test]
    fn a_quantile_is_a_bound_that_so_many_kept() {
        let histogram = Histogram::default();
        assert_eq!(histogram.read().quantile(0.5), None);
        (0..99).for_each(|_| histogram.observe(Duration::from_micros(80)));
        histogram.observe(Duration::from_secs(2));
        assert_eq!(histogram.read().quantile(0.5), Some(0.000_1));
        assert_eq!(histogram.read().quantile(1.0), Some(2.5));
        let both = histogram.read().plus(histogram.read());
        assert_eq!((both.count(), both.seconds()), (200, 2.0 * histogram.read().seconds()));
    }
}
