//! Log lines about single devices and batches. At the level debug, a crowd of devices causes one
//! line for each device. At the default level, the first few lines of each kind in a minute are
//! written, and the other lines of the kind are counted in one line. This module knows nothing
//! about the causes of the lines.

use std::time::Duration;

use tokio::time::Instant;

/// Period in which at most [`MAX_LINES`] lines of one kind are written. The others are suppressed,
/// and one more line gives their number.
const PERIOD: Duration = Duration::from_secs(60);
/// Maximum number of lines of one kind in a period.
const MAX_LINES: u32 = 10;

/// Kind of lines that are limited together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A device is registered, or its existing name is looked up.
    Registered,
    /// A batch begins.
    Batch,
    /// A device is refused, or has the name of another device.
    Refused,
    /// The result of a registration is not stored.
    NotStored,
}

const KINDS: [Kind; 4] = [Kind::Registered, Kind::Batch, Kind::Refused, Kind::NotStored];

/// Limits of all kinds of lines.
#[derive(Debug, Default)]
pub(super) struct Lines([Limit; KINDS.len()]);

#[derive(Debug, Default)]
struct Limit {
    /// Beginning of the current period.
    since: Option<Instant>,
    written: u32,
    /// Number of lines that were suppressed since the last report of this number.
    others: u64,
}

impl Lines {
    /// Returns whether a line of this kind may be written. If not, counts the line.
    pub(super) fn admit(&mut self, kind: Kind, now: Instant) -> bool {
        let limit = &mut self.0[kind as usize];
        if limit.is_over(now) {
            (limit.since, limit.written) = (Some(now), 0);
        }
        let is_admitted = limit.written < MAX_LINES;
        limit.written += u32::from(is_admitted);
        limit.others += u64::from(!is_admitted);
        is_admitted
    }

    /// Reports the number of suppressed lines, in one line for each kind that has suppressed lines
    /// and whose period is over. If `is_idle` is set, no more lines are expected soon, so the end
    /// of the period is not awaited. Returns the numbers that were reported.
    pub(super) fn write_counts(&mut self, now: Instant, is_idle: bool) -> Vec<(Kind, u64)> {
        let mut written = Vec::new();
        for (kind, limit) in KINDS.into_iter().zip(&mut self.0) {
            if limit.others > 0 && (is_idle || limit.is_over(now)) {
                let count = std::mem::take(&mut limit.others);
                kind.write_count(count);
                written.push((kind, count));
            }
        }
        written
    }
}

impl Limit {
    fn is_over(&self, now: Instant) -> bool {
        self.since.is_none_or(|since| now.saturating_duration_since(since) >= PERIOD)
    }
}

impl Kind {
    fn write_count(self, count: u64) {
        match self {
            Self::Registered => tracing::info!(
                devices = count,
                "registered more devices; each has a line of its own at the level debug"
            ),
            Self::Batch => tracing::info!(
                batches = count,
                "began more batches; each has a line of its own at the level debug"
            ),
            Self::Refused => tracing::error!(
                devices = count,
                "the registrations of more devices are refused; see `certdist device list --refused` and \
                 `certdist check-config`"
            ),
            Self::NotStored => tracing::error!(
                devices = count,
                "the results of more registrations are not stored; each has a line of its own at the level debug"
            ),
        }
    }
}

/// Writes a line at the level `$level` if `$admitted` is true, and at the level debug otherwise.
macro_rules! limited {
    ($admitted:expr, $level:ident, $($line:tt)+) => {
        if $admitted { tracing::$level!($($line)+) } else { tracing::debug!($($line)+) }
    };
}
pub(super) use limited;

#[cfg(test)]
mod tests {
    use super::*;

    fn admitted(lines: &mut Lines, kind: Kind, count: usize, now: Instant) -> usize {
        (0..count).filter(|_| lines.admit(kind, now)).count()
    }

    #[test]
    fn a_crowd_has_few_lines_a_minute_and_one_that_counts_the_others() {
        let (mut lines, now) = (Lines::default(), Instant::now());
        let later = |seconds| now + Duration::from_secs(seconds);
        assert_eq!(admitted(&mut lines, Kind::Registered, 1000, now), 10);
        assert_eq!(admitted(&mut lines, Kind::Refused, 10, now), 10, "each kind has its own");
        assert_eq!(lines.write_counts(later(59), false), []);
        assert_eq!(lines.write_counts(later(60), false), [(Kind::Registered, 990)]);
        assert_eq!(lines.write_counts(later(120), false), []);
        assert_eq!(admitted(&mut lines, Kind::Registered, 1000, later(120)), 10);
    }

    #[test]
    fn the_end_of_a_crowd_is_counted_at_once() {
        let (mut lines, now) = (Lines::default(), Instant::now());
        assert_eq!(admitted(&mut lines, Kind::Batch, 12, now), 10);
        assert_eq!(lines.write_counts(now, true), [(Kind::Batch, 2)]);
        assert_eq!(admitted(&mut lines, Kind::Batch, 1, now), 0, "the minute is not over");
    }
}
