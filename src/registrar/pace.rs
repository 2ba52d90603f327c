//! Pace of the calls to IoT Platform: an even rate for each action, lowered when the cloud
//! throttles and raised again when it no longer does.

use std::{collections::HashMap, sync::Mutex, time::Duration};

use tokio::time::Instant;

use crate::iot_platform::Action;

/// Slowest pace, in calls a second.
const MIN_RATE: f64 = 1.0;
/// Number of accepted calls after which a lowered pace is raised by a tenth.
const CALLS_TO_RAISE: u32 = 20;

/// The paces of all actions. IoT Platform's limits apply to the account as a whole.
#[derive(Debug)]
pub(super) struct Paces(HashMap<Action, Pace>);

impl Paces {
    /// Creates the paces. `registrations` is the rate of `RegisterDevice`, in calls a second.
    /// Each other action gets the same fraction of its documented limit, but never more than that
    /// limit.
    pub(super) fn new(registrations: f64) -> Self {
        let documented = |action: Action| f64::from(action.calls_per_second());
        let part = (registrations / documented(Action::RegisterDevice)).min(1.0);
        let rate = |action| match action {
            Action::RegisterDevice => registrations,
            other => documented(other) * part,
        };
        Self(Action::ALL.into_iter().map(|action| (action, Pace::new(rate(action)))).collect())
    }

    pub(super) fn of(&self, action: Action) -> &Pace {
        &self.0[&action]
    }
}

/// Schedules the calls of one action at an even rate.
#[derive(Debug)]
pub(super) struct Pace(Mutex<State>);

#[derive(Debug)]
struct State {
    full: f64,
    rate: f64,
    next: Option<Instant>,
    good_calls: u32,
}

impl Pace {
    /// Creates a pace with the configured rate, in calls a second.
    pub(super) fn new(rate: f64) -> Self {
        let rate = rate.max(MIN_RATE);
        Self(Mutex::new(State { full: rate, rate, next: None, good_calls: 0 }))
    }

    /// Waits until the caller may make its call. Callers take turns in the order of their
    /// arrival.
    pub(super) async fn wait(&self) {
        let at = {
            let mut state = self.lock();
            let at = state.next.map_or_else(Instant::now, |next| next.max(Instant::now()));
            state.next = Some(at + Duration::from_secs_f64(1.0 / state.rate));
            at
        };
        tokio::time::sleep_until(at).await;
    }

    /// Returns the time that `waiting` calls take.
    pub(super) fn duration_of(&self, waiting: usize) -> Duration {
        Duration::from_secs_f64(waiting as f64 / self.lock().rate)
    }

    /// Returns the number of calls that fit into this time.
    pub(super) fn calls_in(&self, time: Duration) -> usize {
        (time.as_secs_f64() * self.lock().rate) as usize
    }

    /// Notes that the cloud has throttled a call.
    pub(super) fn throttled(&self) {
        let mut state = self.lock();
        state.rate = (state.rate / 2.0).max(MIN_RATE);
        state.good_calls = 0;
    }

    /// Notes that the cloud has accepted a call.
    pub(super) fn taken(&self) {
        let mut state = self.lock();
        state.good_calls += 1;
        if state.good_calls >= CALLS_TO_RAISE && state.rate < state.full {
            state.rate = (state.rate * 1.1).min(state.full);
            state.good_calls = 0;
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        // No code panics while it holds this lock, so a poisoned lock cannot occur.
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn calls_keep_the_configured_pace() {
        let pace = Pace::new(25.0);
        let start = Instant::now();
        for _ in 0..51 {
            pace.wait().await;
        }
        assert_eq!(start.elapsed().as_millis() / 10, 200);
    }

    #[test]
    fn each_action_has_the_same_part_of_its_limit() {
        let paces = Paces::new(15.0);
        let in_a_minute = |action| paces.of(action).calls_in(Duration::from_secs(60));
        assert_eq!(in_a_minute(Action::RegisterDevice), 15 * 60);
        assert_eq!(in_a_minute(Action::QueryPageByApplyId), 25 * 60);
        assert_eq!(in_a_minute(Action::BatchQueryDeviceDetail), 150);
        // A raised limit of one action leaves the limits of the others unchanged.
        let paces = Paces::new(300.0);
        assert_eq!(paces.of(Action::RegisterDevice).calls_in(Duration::from_secs(1)), 300);
        assert_eq!(paces.of(Action::BatchQueryDeviceDetail).calls_in(Duration::from_secs(1)), 5);
    }

    #[tokio::test(start_paused = true)]
    async fn throttling_halves_the_pace_and_good_calls_raise_it_again() {
        let pace = Pace::new(20.0);
        pace.throttled();
        assert_eq!(pace.duration_of(10), Duration::from_secs(1));
        for _ in 0..10 {
            pace.throttled();
        }
        assert_eq!(pace.duration_of(10), Duration::from_secs(10));
        for _ in 0..CALLS_TO_RAISE * 40 {
            pace.taken();
        }
        assert_eq!(pace.duration_of(20), Duration::from_secs(1));
    }
}
