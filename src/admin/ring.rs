//! Keeps samples of the counters for the last hour, from which the console's chart is
//! drawn. Pure.

use std::{collections::VecDeque, time::Duration};

use super::{Sources, metrics};

/// Pause between two samples.
pub(super) const EVERY: Duration = Duration::from_secs(10);
/// Number of samples kept: the samples of an hour, and the sample before them.
const KEPT: usize = 361;

/// Values of the counters at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Sample {
    /// Number of answers with a 2.xx code.
    pub(super) served: u64,
    /// Number of answers with a 4.xx code.
    pub(super) refused: u64,
    /// Number of answers with a 5.xx code.
    pub(super) later: u64,
}

impl Sample {
    /// Reads the counters.
    pub(super) fn of(sources: &Sources) -> Self {
        let of = |class| metrics::responses_of(sources, class);
        Self { served: of(2), refused: of(4), later: of(5) }
    }

    /// Returns how much each counter has grown since an earlier sample.
    fn since(self, earlier: Self) -> Self {
        Self {
            served: self.served.saturating_sub(earlier.served),
            refused: self.refused.saturating_sub(earlier.refused),
            later: self.later.saturating_sub(earlier.later),
        }
    }

    /// Returns the sum of the three counters.
    pub(super) fn total(self) -> u64 {
        self.served + self.refused + self.later
    }
}

/// The samples of the last hour.
#[derive(Debug, Default)]
pub(super) struct Ring(VecDeque<Sample>);

impl Ring {
    /// Adds a sample, and removes the oldest if the ring is full.
    pub(super) fn push(&mut self, sample: Sample) {
        if self.0.len() == KEPT {
            self.0.pop_front();
        }
        self.0.push_back(sample);
    }

    /// Returns the counts of each minute of the last hour up to `now`, the current minute
    /// last. Returns fewer if the server has run for less than an hour.
    pub(super) fn minutes(&self, now: Sample) -> Vec<Sample> {
        let step = (60 / EVERY.as_secs()) as usize;
        let mut later = now;
        let mut minutes = Vec::with_capacity(60);
        // Goes backwards, so that the last minute is complete; the first one may be shorter.
        let ends = self.0.iter().rev().skip(step - 1).step_by(step);
        for &earlier in ends.chain(self.0.front()) {
            if minutes.len() == 60 {
                break;
            }
            minutes.push(later.since(earlier));
            later = earlier;
        }
        minutes.reverse();
        minutes
    }

    /// Returns the counts of the last hour, up to `now`.
    pub(super) fn hour(&self, now: Sample) -> Sample {
        now.since(self.0.front().copied().unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(served: u64) -> Sample {
        Sample { served, ..Sample::default() }
    }

    #[test]
    fn an_hour_is_kept_in_minutes_that_add_up() {
        let mut ring = Ring::default();
        assert_eq!(ring.minutes(at(5)), []);
        // One request a second for two hours.
        (0..720).for_each(|sample| ring.push(at(sample * 10)));
        let minutes = ring.minutes(at(7200));
        assert_eq!(minutes.len(), 60);
        assert!(minutes.iter().all(|minute| minute.served == 60), "{minutes:?}");
        assert_eq!(ring.hour(at(7200)).served, 3610);
    }

    #[test]
    fn a_young_server_has_few_minutes_and_loses_nothing() {
        let mut ring = Ring::default();
        ring.push(at(0));
        assert_eq!(ring.minutes(at(7)), [at(7)]);
        (1..10).for_each(|sample| ring.push(at(sample)));
        let minutes = ring.minutes(at(20));
        assert_eq!(minutes.iter().map(|minute| minute.served).sum::<u64>(), 20);
    }
}
