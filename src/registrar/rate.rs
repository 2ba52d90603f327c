//! How fast IoT Platform may be called: an even pace, slowed down when the cloud
//! says that it is too much, and quickened again as it no longer does.

use std::{sync::Mutex, time::Duration};

use tokio::time::Instant;

/// Slowest pace, in calls a second.
const MIN_RATE: f64 = 1.0;
/// Calls after which a pace that was lowered is raised by a tenth.
const CALLS_TO_RAISE: u32 = 20;

/// Hands out the times at which calls may be made.
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
    /// `rate` is the configured one, in calls a second.
    pub(super) fn new(rate: f64) -> Self {
        let rate = rate.max(MIN_RATE);
        Self(Mutex::new(State { full: rate, rate, next: None, good_calls: 0 }))
    }

    /// Waits until the caller may make its call; callers go in the order in
    /// which they came.
    pub(super) async fn wait(&self) {
        let at = {
            let mut state = self.lock();
            let at = state.next.map_or_else(Instant::now, |next| next.max(Instant::now()));
            state.next = Some(at + Duration::from_secs_f64(1.0 / state.rate));
            at
        };
        tokio::time::sleep_until(at).await;
    }

    /// How long `waiting` calls will take.
    pub(super) fn duration_of(&self, waiting: usize) -> Duration {
        Duration::from_secs_f64(waiting as f64 / self.lock().rate)
    }

    /// The cloud said that it is too much.
    pub(super) fn throttled(&self) {
        let mut state = self.lock();
        state.rate = (state.rate / 2.0).max(MIN_RATE);
        state.good_calls = 0;
    }

    /// The cloud took a call.
    pub(super) fn taken(&self) {
        let mut state = self.lock();
        state.good_calls += 1;
        if state.good_calls >= CALLS_TO_RAISE && state.rate < state.full {
            state.rate = (state.rate * 1.1).min(state.full);
            state.good_calls = 0;
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        // Nothing panics while it is held.
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
