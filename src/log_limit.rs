//! Rate limit for log lines. Reports suppressed lines to the log, and performs no other I/O.

use std::time::{Duration, Instant};

/// Limits the log lines of one kind, so that many devices, an outage or an attacker cannot fill the
/// disk with log lines.
#[derive(Debug)]
pub struct LogLimit {
    most: u32,
    kind: &'static str,
    second: Option<Instant>,
    written: u32,
    suppressed: u64,
}

impl LogLimit {
    /// Allows at most `most` lines a second. `kind` is the name of these lines, in the plural.
    pub fn new(most: u32, kind: &'static str) -> Self {
        Self { most, kind, second: None, written: 0, suppressed: 0 }
    }

    /// Returns whether one more line may be written. Otherwise counts the line as suppressed. The
    /// first line of a later second is preceded by a line with the number of suppressed lines.
    pub fn admit(&mut self, now: Instant) -> bool {
        if self.second.is_none_or(|second| now >= second + Duration::from_secs(1)) {
            if self.suppressed > 0 {
                tracing::warn!(
                    lines = self.suppressed,
                    kind = self.kind,
                    "log lines suppressed: too many of this kind in a second"
                );
            }
            (self.second, self.written, self.suppressed) = (Some(now), 0, 0);
        }
        let admitted = self.written < self.most;
        if admitted {
            self.written += 1;
        } else {
            self.suppressed += 1;
        }
        admitted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_beyond_the_limit_are_counted_and_the_next_second_has_its_own() {
        let mut lines = LogLimit::new(2, "requests");
        let now = Instant::now();
        assert_eq!([(); 4].map(|()| lines.admit(now)), [true, true, false, false]);
        assert_eq!(lines.suppressed, 2);
        assert!(!lines.admit(now + Duration::from_millis(999)));
        assert!(lines.admit(now + Duration::from_secs(1)));
        assert_eq!(lines.suppressed, 0);
    }
}
