//! Pace of the calls to IoT Platform: an even rate for each action. The rate is lowered when the
//! cloud throttles calls, and raised again when the cloud accepts calls. All processes of an
//! account share the turns, which are kept in the store (`store/turn.rs`).

use std::{collections::HashMap, sync::Mutex, time::Duration};

use tokio::{
    sync::{Mutex as AsyncMutex, MutexGuard as AsyncMutexGuard},
    time::Instant,
};

use crate::{iot_platform::Action, store::turn::Turn};

/// Slowest pace, in calls a second.
const MIN_RATE: f64 = 1.0;
/// Minimum time from a change of a rate until the rate is raised. A lowered rate is raised when the
/// cloud accepts a call.
const RAISE_EVERY: Duration = Duration::from_secs(1);
/// Amount by which a lowered rate is raised each time, as a fraction of the configured rate.
const RAISE: f64 = 0.1;
/// Highest rate at which a pace makes up for late turns, as a fraction of the documented limit. At
/// a higher rate, two calls that follow each other closely could exceed the limit.
const CREDIT_UP_TO: f64 = 0.9;
/// Time for which [`Pace::spare_turn`] leaves a due turn to registrations, as a fraction of the
/// time between two turns. With this reserve, spare turns make up at most 80 % of the rate.
const RESERVE: f64 = 0.25;

/// The paces of all actions. IoT Platform's limits apply to the account as a whole.
#[derive(Debug)]
pub(super) struct Paces(HashMap<Action, Pace>);

impl Paces {
    /// Creates the paces of an account. `registrations` is the rate of `RegisterDevice` for this
    /// process, and `shared` is the rate of `RegisterDevice` for all processes together, both in
    /// calls a second. Each other action gets the same fraction of its documented limit, but never
    /// more than the limit.
    pub(super) fn new(account: &str, registrations: f64, shared: f64) -> Self {
        let documented = |action: Action| f64::from(action.calls_per_second());
        let rate = |action: Action, registrations: f64| match action {
            Action::RegisterDevice => registrations,
            other => documented(other) * (registrations / documented(Action::RegisterDevice)).min(1.0),
        };
        let pace = |action: Action| {
            let name = format!("{account}/{}", action.name());
            let [own, shared] = [registrations, shared.max(registrations)].map(|each| rate(action, each));
            (action, Pace::new(name, own, shared, documented(action)))
        };
        Self(Action::ALL.into_iter().map(pace).collect())
    }

    pub(super) fn of(&self, action: Action) -> &Pace {
        &self.0[&action]
    }
}

/// Rate of the calls of one action, as this process knows it.
#[derive(Debug)]
pub(super) struct Pace {
    /// Name of the pace in the store.
    name: String,
    /// Turn to take from the pace that all processes share.
    turn: Turn,
    /// Rate of the shared pace, in calls a second.
    shared: f64,
    state: Mutex<State>,
    gate: AsyncMutex<()>,
}

#[derive(Debug)]
struct State {
    full: f64,
    rate: f64,
    /// Time of the last change of the rate.
    changed: Option<Instant>,
    /// Time of this process's next turn, while its rate is below the shared rate.
    next: Option<Instant>,
}

impl Pace {
    /// Creates a pace. `rate` is the rate of this process, `shared` is the rate of all processes
    /// together, and `limit` is the documented limit, all in calls a second.
    fn new(name: String, rate: f64, shared: f64, limit: f64) -> Self {
        let [rate, shared] = [rate, shared].map(|rate| rate.max(MIN_RATE));
        let interval = Duration::from_secs_f64(1.0 / shared);
        // Maximum number of calls within a second: evenly spaced calls, and one call that makes up for
        // a missed turn.
        let most = shared.ceil() + 1.0;
        let credit = match shared <= limit * CREDIT_UP_TO && most <= limit {
            true => interval,
            false => Duration::ZERO,
        };
        let state = Mutex::new(State { full: rate, rate, changed: None, next: None });
        Self {
            name,
            turn: Turn { interval, credit, reserve: Duration::ZERO },
            shared,
            state,
            gate: AsyncMutex::default(),
        }
    }

    /// Returns the name of the pace in the store.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Waits until no earlier task of this process waits for a turn. So only one task at a time
    /// asks the store, and tasks get their turns in the order of their arrival.
    pub(super) async fn gate(&self) -> AsyncMutexGuard<'_, ()> {
        self.gate.lock().await
    }

    /// Returns the turn to take from the shared pace. A process with a lower rate does not lower
    /// the shared pace. Instead, it also waits for [`own_wait`](Self::own_wait).
    pub(super) fn turn(&self) -> Turn {
        self.turn
    }

    /// Returns the turn to take for a call that is less urgent than registrations: it gets only the
    /// turns that no registration of any process takes.
    pub(super) fn spare_turn(&self) -> Turn {
        Turn { credit: Duration::ZERO, reserve: self.turn.interval.mul_f64(RESERVE), ..self.turn }
    }

    /// Takes a turn at this process's own rate, and returns the time until this turn.
    pub(super) fn own_wait(&self) -> Duration {
        let mut state = self.lock();
        if state.rate >= self.shared {
            return Duration::ZERO;
        }
        let now = Instant::now();
        let at = state.next.map_or(now, |next| next.max(now));
        state.next = Some(at + Duration::from_secs_f64(1.0 / state.rate));
        at - now
    }

    /// Returns this process's rate, in calls a second.
    pub(super) fn rate(&self) -> f64 {
        self.lock().rate
    }

    /// Returns the time that `waiting` calls take at this process's rate.
    pub(super) fn duration_of(&self, waiting: usize) -> Duration {
        Duration::from_secs_f64(waiting as f64 / self.lock().rate)
    }

    /// Returns the number of calls that fit into this time.
    pub(super) fn calls_in(&self, time: Duration) -> usize {
        (time.as_secs_f64() * self.lock().rate) as usize
    }

    /// Notes that the cloud has throttled a call that was sent at the time `left`. Ignores a call
    /// that was sent before the last change of the rate, because it says nothing about the new
    /// rate.
    pub(super) fn throttled(&self, left: Instant) {
        let mut state = self.lock();
        if state.changed.is_none_or(|changed| left >= changed) {
            state.rate = (state.rate / 2.0).max(MIN_RATE);
            state.changed = Some(Instant::now());
        }
    }

    /// Notes that the cloud has accepted a call.
    pub(super) fn taken(&self) {
        let mut state = self.lock();
        let is_due = state.changed.is_none_or(|changed| changed.elapsed() >= RAISE_EVERY);
        if state.rate < state.full && is_due {
            state.rate = (state.rate + state.full * RAISE).min(state.full);
            state.changed = Some(Instant::now());
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        // No code panics while it holds the lock.
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_action_has_the_same_part_of_its_limit() {
        let paces = Paces::new("me", 15.0, 15.0);
        let in_a_minute = |action| paces.of(action).calls_in(Duration::from_secs(60));
        assert_eq!(in_a_minute(Action::RegisterDevice), 15 * 60);
        assert_eq!(in_a_minute(Action::QueryPageByApplyId), 25 * 60);
        assert_eq!(in_a_minute(Action::BatchQueryDeviceDetail), 150);
        // A higher rate of one action leaves the rates of other actions unchanged.
        let paces = Paces::new("me", 300.0, 25.0);
        assert_eq!(paces.of(Action::RegisterDevice).calls_in(Duration::from_secs(1)), 300);
        assert_eq!(paces.of(Action::BatchQueryDeviceDetail).calls_in(Duration::from_secs(1)), 5);
        assert_eq!(paces.of(Action::RegisterDevice).name(), "me/RegisterDevice");
    }

    #[test]
    fn only_a_rate_below_the_limit_makes_up_for_late_turns() {
        let credit = |rate| Paces::new("me", rate, 25.0).of(Action::RegisterDevice).turn().credit;
        assert_eq!(credit(25.0), Duration::from_millis(40));
        assert_eq!(credit(30.0), Duration::ZERO);
    }

    #[test]
    fn a_crowd_after_a_pause_keeps_to_each_limit() {
        const SECOND: i64 = 1_000_000;
        let paces = Paces::new("me", 25.0, 25.0);
        for action in Action::ALL {
            let turn = paces.of(action).turn();
            let (mut next, mut now, mut calls) = (Some(SECOND), 100 * SECOND, Vec::new());
            while now < 103 * SECOND {
                match turn.take(next, now) {
                    Ok(following) => {
                        calls.push(now);
                        next = Some(following);
                    }
                    Err(wait) => now += i64::try_from(wait.as_micros()).unwrap(),
                }
            }
            let within = |from: &i64| calls.iter().filter(|at| (*from..from + SECOND).contains(at)).count();
            let most = calls.iter().map(within).max().unwrap();
            assert!(most <= action.calls_per_second() as usize, "{} {most} times", action.name());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn one_burst_of_throttled_calls_halves_the_pace_once() {
        let pace = Pace::new("me".into(), 20.0, 20.0, 30.0);
        let left = Instant::now();
        tokio::time::advance(Duration::from_millis(100)).await;
        for _ in 0..32 {
            pace.throttled(left);
        }
        assert_eq!(pace.duration_of(10), Duration::from_secs(1));
        pace.throttled(Instant::now());
        assert_eq!(pace.duration_of(5), Duration::from_secs(1));
    }

    #[tokio::test(start_paused = true)]
    async fn a_pace_that_was_lowered_to_the_least_is_whole_again_in_seconds() {
        let pace = Pace::new("me".into(), 20.0, 20.0, 30.0);
        for _ in 0..10 {
            pace.throttled(Instant::now());
        }
        assert_eq!(pace.duration_of(10), Duration::from_secs(10));
        for second in 1..=10 {
            assert!(pace.duration_of(20) > Duration::from_secs(1), "{second}");
            tokio::time::advance(Duration::from_secs(1)).await;
            pace.taken();
            pace.taken();
        }
        assert_eq!(pace.duration_of(20), Duration::from_secs(1));
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_process_waits_for_itself_and_leaves_the_shared_pace_as_it_is() {
        let pace = Pace::new("me".into(), 1.0, 20.0, 30.0);
        assert_eq!(pace.turn().interval, Duration::from_millis(50));
        assert_eq!(pace.own_wait(), Duration::ZERO);
        assert_eq!(pace.own_wait(), Duration::from_secs(1));
        assert_eq!(pace.own_wait(), Duration::from_secs(2));
        // A process that is throttled waits longer, like a process with a lower rate.
        let pace = Pace::new("me".into(), 20.0, 20.0, 30.0);
        assert_eq!([pace.own_wait(), pace.own_wait()], [Duration::ZERO; 2]);
        pace.throttled(Instant::now());
        assert_eq!([pace.own_wait(), pace.own_wait()], [Duration::ZERO, Duration::from_millis(100)]);
        assert_eq!(pace.turn().interval, Duration::from_millis(50));
    }
}
