//! The time of the system's clock, in the form that the table, the audit log and the console use.

use std::time::{SystemTime, UNIX_EPOCH};

/// Seconds since 1970-01-01T00:00:00Z.
pub type UnixSeconds = i64;

/// Returns the system clock's time in seconds since 1970; 0 if the clock is set to an earlier
/// time.
pub fn unix_now() -> UnixSeconds {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}
