//! Rules for the retries of a device, the same as in the firmware kit (docs/firmware.md, "Delays"). It
//! knows neither the session nor the clock.

use std::time::Duration;

/// First delay after a temporary failure. It doubles with each further failure.
const RETRY: Duration = Duration::from_secs(30);
const LONGEST_RETRY: Duration = Duration::from_secs(3600);
/// Least delay after a handshake that ended with an alert.
const WRONG_KEY: Duration = Duration::from_secs(600);
/// First delay if the operator must act. It doubles after 4.03 and 4.04.
const OPERATOR: Duration = Duration::from_secs(3600);
const LONGEST_OPERATOR: Duration = Duration::from_secs(86_400);
/// RFC 7252 §5.10.5: the value of an absent Max-Age.
const DEFAULT_MAX_AGE: Duration = Duration::from_secs(60);
/// Longest delay that is taken from Max-Age.
const LONGEST_MAX_AGE: Duration = Duration::from_secs(7 * 86_400);

/// Reason why a device has no certificate yet.
#[derive(Debug, Clone, Copy)]
pub(super) enum Setback<'a> {
    /// No handshake, or no answer, within the time; or the session ended.
    Silence,
    /// The server ended the handshake with an alert.
    WrongKey,
    /// An answer with this code, such as `4.04`, and Max-Age in seconds.
    Answer(&'a str, Option<u32>),
}

/// Conduct after a setback.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Conduct {
    /// Asks again after the delay.
    ComeBack,
    /// Shows that the operator must act. A device in the field asks again after the delay.
    Stop,
    /// Shows that the firmware has a fault. A device in the field asks again after the delay.
    Fix,
}

/// Memory of earlier setbacks.
#[derive(Debug, Default)]
pub(super) struct Retry {
    failures: u32,
    refusals: u32,
}

impl Retry {
    /// Returns what to do after a setback, and the delay before jitter.
    pub(super) fn after(&mut self, setback: Setback<'_>) -> (Conduct, Duration) {
        let refusals = std::mem::take(&mut self.refusals);
        match setback {
            Setback::Silence => (Conduct::ComeBack, self.next()),
            Setback::WrongKey => (Conduct::ComeBack, self.next().max(WRONG_KEY)),
            // The server's Max-Age replaces the back-off. A Max-Age of 0 gives no time, so the back-off
            // applies.
            Setback::Answer("4.29" | "5.03", Some(0)) => (Conduct::ComeBack, self.next()),
            Setback::Answer("4.29" | "5.03", max_age) => {
                self.failures = 0;
                let delay = max_age.map_or(DEFAULT_MAX_AGE, |seconds| Duration::from_secs(seconds.into()));
                (Conduct::ComeBack, delay.min(LONGEST_MAX_AGE))
            }
            Setback::Answer("4.03" | "4.04", _) => {
                self.refusals = refusals.saturating_add(1);
                (Conduct::Stop, grown(OPERATOR, refusals, LONGEST_OPERATOR))
            }
            Setback::Answer("5.02", _) => (Conduct::ComeBack, OPERATOR),
            // 5.04: the server continues the registration.
            Setback::Answer("5.04", _) => {
                self.failures = self.failures.max(1);
                (Conduct::ComeBack, self.next())
            }
            Setback::Answer("4.08", _) => (Conduct::ComeBack, self.next()),
            Setback::Answer(code, _) if code.starts_with("4.") || code == "5.05" => {
                (Conduct::Fix, LONGEST_OPERATOR)
            }
            Setback::Answer(..) => (Conduct::ComeBack, self.next()),
        }
    }

    fn next(&mut self) -> Duration {
        let delay = grown(RETRY, self.failures, LONGEST_RETRY);
        self.failures = self.failures.saturating_add(1);
        delay
    }
}

/// Returns the delay `first`, doubled once for each of `times`, at most `longest`.
fn grown(first: Duration, times: u32, longest: Duration) -> Duration {
    1u32.checked_shl(times).map_or(longest, |factor| first.saturating_mul(factor).min(longest))
}

/// Adds jitter to a delay: half of it times `share`, a number from 0 to 1. So devices that failed
/// together do not retry together.
pub(super) fn jittered(delay: Duration, share: f64) -> Duration {
    delay + delay.mul_f64(share.clamp(0.0, 1.0) / 2.0)
}

#[cfg(test)]
mod tests {
    use super::{Conduct::*, *};

    const SECOND: Duration = Duration::from_secs(1);

    /// Checks the table of docs/device.md.
    #[test]
    fn each_code_has_its_conduct_and_delay() {
        for (code, max_age, conduct, seconds) in [
            ("4.00", None, Fix, 86_400),
            ("4.02", None, Fix, 86_400),
            ("4.03", None, Stop, 3600),
            ("4.04", None, Stop, 3600),
            ("4.05", None, Fix, 86_400),
            ("4.06", None, Fix, 86_400),
            ("4.08", None, ComeBack, 30),
            ("4.12", None, Fix, 86_400),
            ("4.13", None, Fix, 86_400),
            ("4.15", None, Fix, 86_400),
            ("4.29", Some(7), ComeBack, 7),
            ("4.29", None, ComeBack, 60),
            ("4.31", None, Fix, 86_400),
            ("5.00", None, ComeBack, 30),
            ("5.02", None, ComeBack, 3600),
            ("5.03", Some(7), ComeBack, 7),
            ("5.03", Some(0), ComeBack, 30),
            ("5.03", Some(u32::MAX), ComeBack, 604_800),
            ("5.04", None, ComeBack, 60),
            ("5.05", None, Fix, 86_400),
            ("5.31", None, ComeBack, 30),
            ("2.04", None, ComeBack, 30),
        ] {
            let found = Retry::default().after(Setback::Answer(code, max_age));
            assert_eq!(found, (conduct, seconds * SECOND), "{code} {max_age:?}");
        }
    }

    #[test]
    fn silence_is_answered_by_growing_delays_with_a_cap() {
        let mut retry = Retry::default();
        let delays: Vec<_> = (0..9).map(|_| retry.after(Setback::Silence).1.as_secs()).collect();
        assert_eq!(delays, [30, 60, 120, 240, 480, 960, 1920, 3600, 3600]);
        retry.failures = u32::MAX;
        assert_eq!(retry.after(Setback::Silence).1, LONGEST_RETRY);
    }

    #[test]
    fn max_age_wins_and_ends_the_growth() {
        let mut retry = Retry::default();
        for _ in 0..6 {
            retry.after(Setback::Silence);
        }
        assert_eq!(retry.after(Setback::Answer("5.03", Some(5))).1, 5 * SECOND);
        assert_eq!(retry.after(Setback::Silence).1, RETRY);
    }

    #[test]
    fn a_wrong_key_waits_ten_minutes_at_least() {
        let mut retry = Retry::default();
        let delays: Vec<_> = (0..7).map(|_| retry.after(Setback::WrongKey).1.as_secs()).collect();
        assert_eq!(delays, [600, 600, 600, 600, 600, 960, 1920]);
    }

    #[test]
    fn a_stopped_device_asks_less_and_less_often_until_another_answer() {
        let mut retry = Retry::default();
        let delays: Vec<_> =
            (0..6).map(|_| retry.after(Setback::Answer("4.04", None)).1.as_secs() / 3600).collect();
        assert_eq!(delays, [1, 2, 4, 8, 16, 24]);
        retry.after(Setback::Silence);
        assert_eq!(retry.after(Setback::Answer("4.03", None)).1, OPERATOR);
    }

    #[test]
    fn jitter_adds_up_to_half() {
        assert_eq!(jittered(10 * SECOND, 0.0), 10 * SECOND);
        assert_eq!(jittered(10 * SECOND, 1.0), 15 * SECOND);
        assert_eq!(jittered(10 * SECOND, 0.5), Duration::from_millis(12_500));
    }
}
