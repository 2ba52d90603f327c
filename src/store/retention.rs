//! Retention of the audit log: removes expired entries. If the clock is probably wrong, no entry is
//! removed because of its age.

use std::time::Instant;

use super::{
    StoreError, UnixSeconds,
    audit::{AuditLog, Keep},
};
use crate::store::Store;

/// Name of the lease that lets only one process at a time remove entries.
pub const LEASE: &str = "prune";

/// Maximum age of the newest entry, in seconds, with which this machine's clock still counts as
/// probably right.
const LONGEST_SILENCE: UnixSeconds = 14 * 86_400;

/// Removes expired entries. To judge the clock, remembers the time of the newest entry when the log
/// was first read.
#[derive(Default)]
pub struct Retention {
    /// Time of the newest entry when the log was first read, and the instant of that reading.
    first: Option<(UnixSeconds, Instant)>,
    has_warned: bool,
}

impl Retention {
    /// Returns the limits that apply now. The age limit applies only if the clock is confirmed or
    /// probably right. If it applied in all cases, a clock that is a year ahead would remove all
    /// entries.
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

    /// Removes all entries that may be removed now. Returns the number removed.
    pub async fn apply(
        &mut self,
        log: &(impl Store + AuditLog + ?Sized),
        keep: Keep,
        is_confirmed: bool,
    ) -> Result<u64, StoreError> {
        let keep = self.checked(log, keep, is_confirmed).await;
        let mut all = 0;
        // Each step removes a limited number of entries, so that other writers do not wait for
        // long.
        loop {
            match log.prune(keep).await? {
                0 => return Ok(all),
                some => all += some,
            }
        }
    }

    /// Returns whether the clock is probably right. The first call reads the time of the newest
    /// entry. The clock must not be much later than this time plus the time that has passed since
    /// the first call. Entries that are written after the first call do not count, because they may
    /// have been written with the same wrong clock.
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
