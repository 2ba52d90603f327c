//! The guards of an enrollment: the time in which its devices get their first certificates, the
//! number of its devices that get a place, and the treatment of a device that is not in the table.
//! This module performs no I/O; `policy` applies the guards to a device.

use crate::unix_time::UnixSeconds;

/// Longest time, in seconds, that a device is asked to wait for the opening of its enrollment. The
/// time is short, so that devices ask again early enough if the operator changes the opening to an
/// earlier time.
pub const LONGEST_WAIT: u32 = 3600;

/// Beginning of 2026, before which no server of this version runs. A clock that shows an earlier
/// time is wrong.
const EARLIEST: UnixSeconds = 1_767_225_600;

/// Time from now, in seconds, after which an opening or closing time is probably a mistake.
const FAR: UnixSeconds = 366 * 86_400;

/// The guards of an enrollment. By default, no guard is set.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Guards {
    /// Time from which the enrollment's devices get their first certificates. `None` if they always
    /// do.
    pub opens: Option<UnixSeconds>,
    /// Time from which the enrollment's devices no longer get their first certificates; later than
    /// `opens`. `None` if there is no such time.
    pub closes: Option<UnixSeconds>,
    /// Maximum number of the enrollment's devices that have a place. A device has a place if its
    /// certificate is in the table, or if its registration has begun.
    pub max_devices: Option<u64>,
    /// Treatment of a device that is not in the table.
    pub unlisted: Unlisted,
}

/// Treatment of a device that has proven a key of the enrollment but is not in the table.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Unlisted {
    /// The device is refused as invalid.
    #[default]
    Refuse,
    /// The device waits until an operator admits it.
    Hold,
    /// The device is added to the table at once.
    Admit,
}

impl Unlisted {
    /// Returns the name in the configuration.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Refuse => "refuse",
            Self::Hold => "hold",
            Self::Admit => "admit",
        }
    }
}

/// State of an enrollment at one time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// The enrollment opens at `opens`. A device should ask again after `wait` seconds.
    NotOpen {
        /// Time at which the enrollment opens.
        opens: UnixSeconds,
        /// Seconds until the enrollment opens, but at least 1 and at most [`LONGEST_WAIT`].
        wait: u32,
    },
    /// Devices get their first certificates.
    Open,
    /// The enrollment closed at this time.
    Closed(UnixSeconds),
}

impl Guards {
    /// Returns the state of the enrollment at the time `now`.
    pub fn phase(&self, now: UnixSeconds) -> Phase {
        match (self.opens, self.closes) {
            (Some(opens), _) if now < opens => {
                let wait = u32::try_from(opens.saturating_sub(now)).unwrap_or(u32::MAX);
                Phase::NotOpen { opens, wait: wait.clamp(1, LONGEST_WAIT) }
            }
            (_, Some(closes)) if now >= closes => Phase::Closed(closes),
            _ => Phase::Open,
        }
    }

    /// Returns whether the enrollment has an opening time or a closing time.
    pub fn are_timed(&self) -> bool {
        self.opens.is_some() || self.closes.is_some()
    }

    /// Returns whether the enrollment opens so much later than `now` that the time, or the clock,
    /// is probably wrong.
    pub fn opens_far_ahead(&self, now: UnixSeconds) -> bool {
        self.opens.is_some_and(|opens| opens.saturating_sub(now) > FAR)
    }
}

/// Returns whether a clock that says `now` is certainly wrong.
pub fn is_wrong_clock(now: UnixSeconds) -> bool {
    now < EARLIEST
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_enrollment_is_open_from_its_opening_until_its_closing() {
        let guards = Guards { opens: Some(100), closes: Some(200), ..Guards::default() };
        for (now, phase) in [
            (i64::MIN, Phase::NotOpen { opens: 100, wait: LONGEST_WAIT }),
            (40, Phase::NotOpen { opens: 100, wait: 60 }),
            (99, Phase::NotOpen { opens: 100, wait: 1 }),
            (100, Phase::Open),
            (199, Phase::Open),
            (200, Phase::Closed(200)),
            (i64::MAX, Phase::Closed(200)),
        ] {
            assert_eq!(guards.phase(now), phase, "{now}");
        }
        let [only_opens, only_closes] = [Guards { closes: None, ..guards }, Guards { opens: None, ..guards }];
        assert_eq!((only_opens.phase(i64::MAX), only_closes.phase(i64::MIN)), (Phase::Open, Phase::Open));
        assert_eq!(Guards::default().phase(0), Phase::Open);
    }

    #[test]
    fn an_opening_in_more_than_a_year_is_suspicious() {
        let guards = Guards { opens: Some(FAR + 10), ..Guards::default() };
        assert!(guards.opens_far_ahead(9) && !guards.opens_far_ahead(10));
        assert!(guards.opens_far_ahead(i64::MIN), "the clock may be anything");
        assert!(!Guards::default().opens_far_ahead(i64::MIN));
    }
}
