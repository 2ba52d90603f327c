//! Retention of the audit log: removes expired entries. Keeps entries of any age if the clock is
//! probably wrong. By default, the maximum size follows the number of devices.

use std::time::Instant;

use super::{
    StoreError, UnixSeconds,
    audit::{AuditLog, Counts, Keep},
};
use crate::store::Store;

/// Name of the lease that lets only one process at a time remove entries.
pub const LEASE: &str = "prune";

/// Maximum age of the newest entry, in seconds, by this machine's clock. If the newest entry seems
/// older, the clock is probably wrong.
const LONGEST_SILENCE: UnixSeconds = 14 * 86_400;

/// Default maximum number of entries of changes: this number, or [`CHANGES_A_DEVICE`] for each
/// device, whichever is greater.
pub const MIN_CHANGES: u64 = 5_000_000;

/// Number of entries of changes for each device, in the default limit. The usual device has two:
/// its registration and its first issue. An operator's job on all devices adds one for each device.
pub const CHANGES_A_DEVICE: u64 = 10;

/// Default maximum number of records of repeats: this number, or [`REPEATS_A_DEVICE`] for each
/// device, whichever is greater.
pub const MIN_REPEATS: u64 = 1_000_000;

/// Number of records of repeats for each device, in the default limit: enough for two days on which
/// the whole fleet asks again.
pub const REPEATS_A_DEVICE: u64 = 2;

/// Maximum number of rows of one class of entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Size {
    /// A number that follows the number of devices.
    ByDevices,
    /// At most this many; 0: no limit.
    AtMost(u64),
}

impl Size {
    fn rows(self, least: u64, each: u64, devices: u64) -> Option<u64> {
        match self {
            Self::ByDevices => Some(least.max(each.saturating_mul(devices))),
            Self::AtMost(0) => None,
            Self::AtMost(rows) => Some(rows),
        }
    }
}

/// Limits of the audit log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Maximum age, in days; `None`: no limit.
    pub days: Option<u32>,
    /// Maximum number of entries of changes.
    pub changes: Size,
    /// Maximum number of records of repeats.
    pub repeats: Size,
}

impl Limits {
    /// Returns the limits for a table with this number of devices.
    pub fn with(self, devices: u64) -> Keep {
        Keep {
            days: self.days,
            rows: self.changes.rows(MIN_CHANGES, CHANGES_A_DEVICE, devices),
            repeats: self.repeats.rows(MIN_REPEATS, REPEATS_A_DEVICE, devices),
        }
    }
}

/// Removes expired entries. Remembers the time of the newest entry when the log was first read, to
/// judge the clock by it.
#[derive(Default)]
pub struct Retention {
    /// Time of the newest entry when the log was first read, and the instant of that reading.
    first: Option<(UnixSeconds, Instant)>,
    has_warned: bool,
}

impl Retention {
    /// Returns the limits that apply now. The age limit applies only if the clock is confirmed or
    /// probably right. Otherwise, a clock that is a year ahead would remove all entries.
    async fn checked(
        &mut self,
        log: &(impl Store + AuditLog + ?Sized),
        keep: Keep,
        is_confirmed: bool,
    ) -> Keep {
        if keep.days.is_none() || is_confirmed || self.has_likely_clock(log).await {
            return keep;
        }
        if !self.has_warned {
            self.has_warned = true;
            tracing::warn!(
                "this machine's clock is far ahead of the newest entry of the audit log, so nothing is removed for its age; set the clock (NTP)"
            );
        }
        Keep { days: None, ..keep }
    }

    /// Returns whether any entry may be removed now. `is_confirmed` is true if the clock is known
    /// to be right.
    pub async fn is_due(
        &mut self,
        log: &(impl Store + AuditLog + ?Sized),
        keep: Keep,
        is_confirmed: bool,
    ) -> Result<bool, StoreError> {
        let keep = self.checked(log, keep, is_confirmed).await;
        log.has_expired(keep).await
    }

    /// Removes all entries and records of repeats that may be removed now. Returns the numbers
    /// removed.
    pub async fn apply(
        &mut self,
        log: &(impl Store + AuditLog + ?Sized),
        keep: Keep,
        is_confirmed: bool,
    ) -> Result<Counts, StoreError> {
        let keep = self.checked(log, keep, is_confirmed).await;
        let mut all = Counts::default();
        // Each step removes a limited number of entries, so that other writers do not wait for
        // long.
        loop {
            let Counts { changes, repeats } = log.prune(keep).await?;
            if changes + repeats == 0 {
                return Ok(all);
            }
            (all.changes, all.repeats) = (all.changes + changes, all.repeats + repeats);
        }
    }

    /// Returns whether the clock is probably right. The first call reads the time of the newest
    /// entry. The clock is probably right if it is at most [`LONGEST_SILENCE`] later than this time
    /// plus the time since the first call. Entries that are written after the first call do not
    /// count, because they may have been written with the same wrong clock.
    async fn has_likely_clock(&mut self, log: &(impl Store + AuditLog + ?Sized)) -> bool {
        if self.first.is_none() {
            match log.newest_entry().await {
                Ok(Some(newest)) => self.first = Some((newest, Instant::now())),
                // An empty log has no entries that a wrong clock could remove.
                Ok(None) => return true,
                Err(_) => return false,
            }
        }
        self.first.is_some_and(|(newest, asked)| {
            let passed = asked.elapsed().as_secs().cast_signed();
            log.now() <= newest.saturating_add(passed).saturating_add(LONGEST_SILENCE)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_size_follows_the_table() {
        let limits = Limits { days: None, changes: Size::ByDevices, repeats: Size::ByDevices };
        let rows = |limits: Limits, devices| {
            let keep = limits.with(devices);
            (keep.rows, keep.repeats)
        };
        assert_eq!(rows(limits, 0), (Some(5_000_000), Some(1_000_000)));
        assert_eq!(rows(limits, 10_000_000), (Some(100_000_000), Some(20_000_000)));
        let set = Limits { changes: Size::AtMost(7), repeats: Size::AtMost(0), ..limits };
        assert_eq!(rows(set, 10_000_000), (Some(7), None));
    }
}
