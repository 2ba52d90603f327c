//! Carries out the plan for a crowd (`plan.rs`). While more devices wait than single calls can
//! serve soon, one task makes batches. It makes the next batch as soon as the check of a batch can
//! be called, for the product that gains most. This module also estimates when a device's turn
//! comes.

use std::{sync::Arc, time::Duration};

use tokio::{sync::OwnedSemaphorePermit, time::Instant};

use super::{
    Registrar, lock,
    plan::{Plan, Rates},
    registration::{self, Registration},
};
use crate::iot_platform::{Action, ApiError, ErrorClass, MAX_BATCH};

/// Maximum number of batches that have taken registrations but not called the check of their names
/// yet. They claim the registrations while they wait for their turn.
pub(super) const BATCHES_AHEAD: usize = 2;
/// Maximum number of batches in progress, of all products. More would only wait for their turns to
/// query their status.
const MAX_IN_PROGRESS: usize = 256;
/// Time until the queue is examined again if no batch can be made now.
const LOOK_AGAIN: Duration = Duration::from_millis(250);

impl Registrar {
    /// Starts the task that makes batches, if single calls for all waiting devices would take
    /// longer than `batch_after` and no such task is running.
    pub(super) fn consider_batches(self: &Arc<Self>) {
        if self.config.max_batches > 0 && lock(&self.queue).begin_batches(self.soon()) {
            self.runtime.spawn(self.clone().make_batches());
        }
    }

    /// Returns the number of devices that single calls can serve within `batch_after`.
    fn soon(&self) -> usize {
        self.paces.of(Action::RegisterDevice).calls_in(self.config.batch_after)
    }

    /// Makes batches until single calls can serve the remaining devices soon.
    async fn make_batches(self: Arc<Self>) {
        tokio::time::sleep(self.config.gather).await;
        loop {
            // The semaphore is never closed.
            let Ok(ahead) = self.batches_ahead.clone().acquire_owned().await else { return };
            if let Some((product_key, registrations)) = self.next_batch() {
                self.runtime.spawn(self.clone().make_batch(product_key, registrations, ahead));
                continue;
            }
            drop(ahead);
            if lock(&self.queue).end_batches(self.soon()) {
                return;
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// Takes the registrations of the next batch from the queue. Devices that would be registered
    /// by single calls before the batch ends stay in the queue.
    fn next_batch(&self) -> Option<(String, Vec<Registration>)> {
        let now = Instant::now();
        let experience = lock(&self.experience);
        let mut queue = lock(&self.queue);
        if queue.batches() >= MAX_IN_PROGRESS {
            return None;
        }
        let plan = Plan {
            single_calls: self.paces.of(Action::RegisterDevice).rate(),
            products: queue.products(),
            gather: self.config.gather,
            max_batches: self.config.max_batches,
        };
        let worth = |product_key: &str, line| plan.worth(line, experience.takes(product_key, now)?);
        let product_key = queue.most_worth(now, worth)?;
        let singly = plan.singly(experience.takes(&product_key, now)?);
        let registrations = queue.take_batch(&product_key, singly, MAX_BATCH, now);
        Some((product_key, registrations))
    }

    async fn make_batch(
        self: Arc<Self>,
        product_key: String,
        registrations: Vec<Registration>,
        ahead: OwnedSemaphorePermit,
    ) {
        let begun = Instant::now();
        self.count(|counters| counters.batches += 1);
        if self.run_batch(&product_key, registrations, ahead).await {
            lock(&self.experience).learn(&product_key, begun.elapsed());
        }
        lock(&self.queue).end_batch(&product_key);
        self.consider_batches();
    }

    /// Notes a failed batch. For [`Config::breaker_pause`](super::Config::breaker_pause), no batch
    /// of its product is made, or no batch at all if the cloud refuses the batches of every product.
    pub(super) fn batch_failed(&self, product_key: &str, error: &ApiError) {
        let at = Instant::now() + self.config.breaker_pause;
        let of_all = error.class == ErrorClass::Operator && !registration::is_about_product(error);
        lock(&self.experience).stop(product_key, of_all, at);
    }

    /// Returns the expected duration of a registration of this product that starts now. This is the
    /// duration by a single call or in a batch, whichever is shorter.
    pub(super) fn expected_turn(&self, product_key: &str) -> Duration {
        let (waiting, products, backlog) = {
            let queue = lock(&self.queue);
            (queue.len(), queue.products().max(1), queue.backlog(product_key))
        };
        let calls = waiting.min(backlog.saturating_mul(products));
        let singly = self.paces.of(Action::RegisterDevice).duration_of(calls);
        if self.config.max_batches == 0 || singly <= self.config.batch_after {
            return singly;
        }
        let Some(takes) = lock(&self.experience).takes(product_key, Instant::now()) else { return singly };
        let rates = Rates::new(|action| self.paces.of(action).rate());
        singly.min(self.config.gather + takes + rates.time_of(waiting, products))
    }
}
