//! Plans how a crowd of devices is registered. Single calls and batches have separate rate limits,
//! so a crowd is registered soonest if both are used at the same time. Single calls are shared by
//! all products. The next batch is for the product that gains most by it. docs/cloud.md describes
//! the model. This module is pure: rates, counts and times are arguments.

use std::{collections::HashMap, time::Duration};

use tokio::time::Instant;

use crate::iot_platform::{Action, BatchStatus, PAGE_SIZE};

/// Minimum number of registrations in a batch. A batch takes at least five calls, but none of them
/// is `RegisterDevice`, so a batch saves time even for a few devices.
const MIN_BATCH: usize = 2;
/// Number of status queries that the plan assumes for each batch. A batch needs at least two, one
/// for each of its steps.
const LOOKS: f64 = 3.0;
/// Factor by which the expected duration of a step is reduced if the first status query finds that
/// the step is over. The step may have ended some time before that query.
const EARLIER: f64 = 0.9;
/// Maximum time from the beginning of a step to the first query of its status.
const LATEST_FIRST_LOOK: Duration = Duration::from_secs(30);

/// Rates of this process, in calls a second, by which the plan estimates times.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rates {
    /// Rate of `RegisterDevice`.
    single_calls: f64,
    /// Rate of batches of any size.
    batches: f64,
    /// Rate of `QueryPageByApplyId`.
    pages: f64,
}

impl Rates {
    /// Returns the rates of a plan, from the rate of each action.
    pub(super) fn new(rate: impl Fn(Action) -> f64) -> Self {
        let steps = rate(Action::BatchCheckDeviceNames).min(rate(Action::BatchRegisterDeviceWithApplyId));
        Self {
            single_calls: rate(Action::RegisterDevice),
            batches: steps.min(rate(Action::QueryBatchRegisterDeviceStatus) / LOOKS),
            pages: rate(Action::QueryPageByApplyId),
        }
    }

    /// Returns the minimum time that the rate limits allow for the registration of `waiting`
    /// devices of `products` products. The time that IoT Platform takes for a batch is not
    /// included. Assumes products of equal size.
    pub(super) fn time_of(self, waiting: usize, products: usize) -> Duration {
        let devices = waiting as f64;
        let each = devices / products.max(1) as f64;
        let pages = (each / PAGE_SIZE as f64).ceil().max(1.0);
        let batches = self.batches.min(self.pages / pages);
        Duration::from_secs_f64(devices / (self.single_calls + batches * each))
    }
}

/// Waiting registrations of one product.
#[derive(Debug, Clone, Copy)]
pub(super) struct Line {
    pub(super) waiting: usize,
    /// Number of the product's batches in progress.
    pub(super) batches: usize,
    /// Time since the first registration began to wait, or since the product's last batch took
    /// registrations.
    pub(super) age: Duration,
}

/// Values on which the decision about the next batch depends.
#[derive(Debug, Clone, Copy)]
pub(super) struct Plan {
    /// Rate of `RegisterDevice`, in calls a second.
    pub(super) single_calls: f64,
    /// Number of products with waiting registrations.
    pub(super) products: usize,
    /// Time for which the registrations of a product are gathered before they may form a batch.
    pub(super) gather: Duration,
    /// Maximum number of batches that one product may have in progress.
    pub(super) max_batches: usize,
}

impl Plan {
    /// Returns the number of registrations of each product that single calls can make in this
    /// time. The products share the calls equally.
    pub(super) fn singly(&self, time: Duration) -> usize {
        (time.as_secs_f64() * self.single_calls) as usize / self.products.max(1)
    }

    /// Returns the worth of a batch that begins now, for the product with the registrations `line`.
    /// The batch is expected to take the time `takes`. Returns `None` if no batch may begin yet, or
    /// if single calls leave too few devices for a batch in that time. The worth grows with the
    /// number of devices in the batch, because each batch costs one check, whatever its size. The
    /// worth also grows with the time that the product has waited, so that no product waits forever
    /// behind larger ones.
    pub(super) fn worth(&self, line: Line, takes: Duration) -> Option<f64> {
        let in_batch = line.waiting.saturating_sub(self.singly(takes));
        let is_due = line.age >= self.gather && line.batches < self.max_batches;
        (is_due && in_batch >= MIN_BATCH).then_some(in_batch as f64 * line.age.as_secs_f64())
    }
}

/// Experience with the batches of an account.
#[derive(Debug)]
pub(super) struct Experience {
    /// Moving average of the time from a batch's first call to its end, for products without
    /// experience of their own.
    takes: Duration,
    /// Time before which no batch of any product is made. Set when the cloud refuses the batches of
    /// every product.
    not_before: Option<Instant>,
    products: HashMap<String, OfProduct>,
    check: Step,
    create: Step,
}

/// Experience with one of the two steps of a batch.
#[derive(Debug, Clone, Copy, Default)]
struct Step {
    /// Time after which the step is probably over.
    expected: Duration,
    /// Time at which `expected` was last reduced, so that later batches look earlier.
    tried: Option<Instant>,
}

/// Experience with the batches of one product.
#[derive(Debug, Clone, Copy)]
struct OfProduct {
    takes: Duration,
    /// Time before which no batch of this product is made. Set after a batch has failed.
    not_before: Option<Instant>,
}

impl Experience {
    /// Creates the experience of an account without batches. `takes` is the time that its first
    /// batch is expected to take.
    pub(super) fn new(takes: Duration) -> Self {
        let [check, create] = [Step::default(); 2];
        Self { takes, not_before: None, products: HashMap::new(), check, create }
    }

    /// Returns the time that a batch of this product is expected to take, or `None` if no batch of
    /// this product may be made now.
    pub(super) fn takes(&self, product_key: &str, now: Instant) -> Option<Duration> {
        let own = self.products.get(product_key);
        let is_stopped = |not_before: Option<Instant>| not_before.is_some_and(|at| now < at);
        if is_stopped(self.not_before) || own.is_some_and(|own| is_stopped(own.not_before)) {
            return None;
        }
        Some(own.map_or(self.takes, |own| own.takes))
    }

    /// Notes the time that a batch has taken.
    pub(super) fn learn(&mut self, product_key: &str, took: Duration) {
        let own = self.own(product_key);
        own.takes = (own.takes + took) / 2;
        // If batches of the product are stopped, this batch has failed. Its duration says nothing
        // about other products.
        if own.not_before.is_none() {
            self.takes = (self.takes * 3 + took) / 4;
        }
    }

    /// Notes that a batch of a product has succeeded, so that the product's batches are no longer
    /// stopped.
    pub(super) fn succeeded(&mut self, product_key: &str) {
        self.own(product_key).not_before = None;
    }

    /// Notes that no batch of this product may be made before `at`, or no batch of any product if
    /// `of_all` is set.
    pub(super) fn stop(&mut self, product_key: &str, of_all: bool, at: Instant) {
        self.own(product_key).not_before = Some(at);
        if of_all {
            self.not_before = Some(at);
        }
    }

    fn own(&mut self, product_key: &str) -> &mut OfProduct {
        let unknown = OfProduct { takes: self.takes, not_before: None };
        self.products.entry(product_key.to_owned()).or_insert(unknown)
    }

    /// Returns the time after which a step of a batch is probably over.
    pub(super) fn first_look(&self, step: BatchStatus) -> Duration {
        if step == BatchStatus::Check { self.check.expected } else { self.create.expected }
    }

    /// Notes the result of a look at the status of a step that began `since` ago. If the first look
    /// finds that the step is over, later batches look a bit earlier. Many batches may look at the
    /// same time, so the expected duration is reduced only once in the duration of a step.
    pub(super) fn looked(
        &mut self,
        step: BatchStatus,
        is_first: bool,
        since: Duration,
        is_over: bool,
        now: Instant,
    ) {
        let step = if step == BatchStatus::Check { &mut self.check } else { &mut self.create };
        let expected = match (is_over, is_first) {
            (true, true) => {
                let expected = step.expected.min(since);
                if step.tried.is_some_and(|at| now.saturating_duration_since(at) < expected) {
                    expected
                } else {
                    step.tried = Some(now);
                    expected.mul_f64(EARLIER)
                }
            }
            (true, false) => since,
            (false, _) => step.expected.max(since),
        };
        step.expected = expected.min(LATEST_FIRST_LOOK);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rates at which every action uses 25/30 of its limit.
    fn rates() -> Rates {
        Rates::new(|action| f64::from(action.calls_per_second()) * 25.0 / 30.0)
    }

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn plan(products: usize) -> Plan {
        Plan { single_calls: 25.0, products, gather: seconds(1), max_batches: 10 }
    }

    fn line(waiting: usize, age: u64) -> Line {
        Line { waiting, batches: 0, age: seconds(age) }
    }

    #[test]
    fn single_calls_and_batches_add_up() {
        let times = [(1, 10_000), (20, 500), (200, 50), (2000, 5), (10_000, 1)]
            .map(|(products, each)| rates().time_of(products * each, products).as_secs_f64());
        // One product: 10,000 devices / (25 single calls a second + 10,000 devices x 41.7 pages a
        // second / 200 pages a batch). Many products: the limit is 8.3 batches a second.
        let expected = [4.74, 4.74, 22.6, 150.0, 300.0];
        for (time, expected) in times.into_iter().zip(expected) {
            assert!((time / expected - 1.0).abs() < 0.01, "{times:?}");
        }
    }

    #[test]
    fn a_batch_leaves_those_whose_turn_comes_before_its_end() {
        assert_eq!(plan(1).singly(seconds(12)), 300);
        assert_eq!(plan(1).worth(line(1000, 1), seconds(12)), Some(700.0));
        assert_eq!(plan(1).worth(line(1000, 1), seconds(40)), None);
        // Four products share the single calls, so 12 devices of each are served within two
        // seconds.
        assert_eq!(plan(4).worth(line(12, 1), seconds(2)), None);
        assert_eq!(plan(2000).worth(line(5, 1), seconds(2)), Some(5.0));
        assert_eq!(plan(10_000).worth(line(1, 1), seconds(2)), None, "one device alone");
    }

    #[test]
    fn a_product_gathers_first_and_has_no_more_batches_than_it_may() {
        assert_eq!(plan(1).worth(line(1000, 0), seconds(2)), None);
        assert_eq!(plan(1).worth(Line { batches: 10, ..line(1000, 1) }, seconds(2)), None);
    }

    #[test]
    fn a_small_product_that_waits_comes_before_a_large_one_that_does_not() {
        let worth = |waiting, age| plan(10).worth(line(waiting, age), Duration::ZERO);
        assert!(worth(1000, 1) > worth(50, 1));
        assert!(worth(50, 21) > worth(1000, 1));
    }

    #[test]
    fn a_batch_that_fails_stops_its_product_and_a_refusal_of_all_stops_all() {
        let now = Instant::now();
        let mut experience = Experience::new(seconds(2));
        experience.stop("a1", false, now + seconds(30));
        experience.learn("a1", seconds(600));
        assert_eq!(experience.takes("a1", now), None);
        assert_eq!(experience.takes("a2", now), Some(seconds(2)));
        assert_eq!(experience.takes("a1", now + seconds(30)), Some(seconds(301)));
        experience.succeeded("a1");
        experience.learn("a1", seconds(6));
        assert_eq!(experience.takes("a2", now), Some(seconds(3)), "learned from another product");
        experience.stop("a1", true, now + seconds(30));
        assert_eq!(experience.takes("a2", now), None);
        assert!(experience.takes("a2", now + seconds(30)).is_some());
    }

    #[test]
    fn the_first_look_comes_when_the_step_is_probably_over() {
        let (mut experience, now) = (Experience::new(seconds(2)), Instant::now());
        let step = BatchStatus::Create;
        assert_eq!(experience.first_look(step), Duration::ZERO);
        experience.looked(step, true, seconds(1), false, now);
        experience.looked(step, false, seconds(4), false, now);
        experience.looked(step, false, seconds(6), true, now);
        assert_eq!(experience.first_look(step), seconds(6));
        // Of the batches that look at the same time, only one reduces the expected duration.
        for _ in 0..10 {
            experience.looked(step, true, seconds(6), true, now);
        }
        assert_eq!(experience.first_look(step), Duration::from_millis(5400));
        experience.looked(step, true, seconds(6), true, now + seconds(6));
        assert_eq!(experience.first_look(step), Duration::from_millis(4860));
        assert_eq!(experience.first_look(BatchStatus::Check), Duration::ZERO);
        experience.looked(step, true, seconds(3600), false, now);
        assert_eq!(experience.first_look(step), LATEST_FIRST_LOOK);
        experience.looked(step, true, Duration::ZERO, true, now);
        assert_eq!(experience.first_look(step), Duration::ZERO);
    }
}
