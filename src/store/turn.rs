//! Turns of a pace that several processes share. All processes together make calls of one kind at
//! an even rate, whatever the number of processes. The algorithm is GCRA, the generic cell rate
//! algorithm.

use std::time::Duration;

use super::StoreFuture;

/// Maximum time by which the next turn of a pace may be ahead of the clock. If a turn is further
/// ahead, the clock was set back after the turn was stored, so the stored turn is ignored.
pub const MAX_AHEAD: Duration = Duration::from_secs(10);

/// Rate of a pace. A process that takes a turn passes the rate to the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Turn {
    /// Time between two turns.
    pub interval: Duration,
    /// Time by which a turn may come early, to make up for a turn that was taken late.
    pub credit: Duration,
    /// Time for which a due turn is left to other callers. A caller with a reserve gets a turn only
    /// if no caller without a reserve wants it.
    pub reserve: Duration,
}

impl Turn {
    /// Takes a turn of a pace. `now` is the current time, and `next` is the time of the next turn,
    /// both in microseconds since 1970. Returns the time of the following turn. If the turn is not
    /// due yet, takes no turn and returns the time to wait as the error.
    pub fn take(self, next: Option<i64>, now: i64) -> Result<i64, Duration> {
        let micros = |duration: Duration| i64::try_from(duration.as_micros()).unwrap_or(i64::MAX);
        let next = next.filter(|next| next.saturating_sub(now) <= micros(MAX_AHEAD));
        let due = next.map_or(now, |next| next.saturating_add(micros(self.reserve)));
        let next = next.unwrap_or(now);
        match u64::try_from(due.saturating_sub(now)) {
            Ok(ahead @ 1..) => Err(Duration::from_micros(ahead)),
            _ => Ok(next.max(now.saturating_sub(micros(self.credit))).saturating_add(micros(self.interval))),
        }
    }
}

/// The part of a store that keeps the paces of the calls to IoT Platform.
pub trait Turns: Send + Sync + 'static {
    /// Takes the next turn of a pace, in one step. Returns `None` if the caller has the turn and
    /// must make its call now. Otherwise, returns the time to wait before asking again.
    fn take_turn<'a>(&'a self, pace: &'a str, turn: Turn) -> StoreFuture<'a, Option<Duration>>;
}

#[cfg(test)]
mod tests {
    use super::*;

    const TURN: Turn =
        Turn { interval: Duration::from_millis(40), credit: Duration::ZERO, reserve: Duration::ZERO };

    #[test]
    fn a_turn_comes_an_interval_after_the_one_before() {
        assert_eq!(TURN.take(None, 1_000_000), Ok(1_040_000));
        assert_eq!(TURN.take(Some(1_040_000), 1_030_000), Err(Duration::from_millis(10)));
        assert_eq!(TURN.take(Some(1_040_000), 1_040_000), Ok(1_080_000));
    }

    #[test]
    fn turns_that_no_one_took_are_lost_but_for_the_credit() {
        assert_eq!(TURN.take(Some(1_040_000), 9_000_000), Ok(9_040_000));
        let turn = Turn { credit: Duration::from_millis(40), ..TURN };
        assert_eq!(turn.take(Some(1_040_000), 1_041_000), Ok(1_080_000));
        assert_eq!(turn.take(Some(1_040_000), 9_000_000), Ok(9_000_000));
    }

    #[test]
    fn a_turn_with_a_reserve_is_left_to_others_for_that_time() {
        let spare = Turn { reserve: Duration::from_millis(10), ..TURN };
        assert_eq!(spare.take(None, 1_000_000), Ok(1_040_000));
        assert_eq!(spare.take(Some(1_040_000), 1_040_000), Err(Duration::from_millis(10)));
        assert_eq!(spare.take(Some(1_040_000), 1_050_000), Ok(1_090_000));
        // As long as others take each turn when it is due, a caller with a reserve gets none.
        let mut next = TURN.take(None, 1_000_000).unwrap();
        for _ in 0..100 {
            assert_eq!(spare.take(Some(next), next), Err(Duration::from_millis(10)));
            next = TURN.take(Some(next), next + 3000).unwrap();
        }
    }

    #[test]
    fn a_clock_that_was_set_back_stops_no_one() {
        let next = 1_000_000 + i64::try_from(MAX_AHEAD.as_micros()).unwrap();
        assert_eq!(TURN.take(Some(next), 1_000_000), Err(MAX_AHEAD));
        assert_eq!(TURN.take(Some(next + 1), 1_000_000), Ok(1_040_000));
    }
}
