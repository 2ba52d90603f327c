//! Rate limit for log lines. Pure, except that it logs the number of suppressed lines.

use std::time::{Duration, Instant};

/// Limits the log lines of one kind, so that a crowd of devices, an outage or an attacker
/// cannot fill the disk.
#[derive(Debug)]
pub struct LogLimit {
    most: u32,
    kind: &'static str,
    second: Option<Instant>,
    written: u32,
    suppressed: u64,
}

impl LogLimit {
    /// Allows at most `most` lines a second; `kind` names them in the plural.
    pub fn new(most: u32, kind: &'static str) -> Self {
        Self { most, kind, second: None, written: 0, suppressed: 0 }
    }

    /// Returns whether one more line may be written; if not, counts it as suppressed. The first
    /// line that is written in a later second also logs the number of suppressed lines.
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
