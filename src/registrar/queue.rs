//! Queue of registrations that wait for a call. Products take turns, so that many devices of one
//! product do not delay the devices of another. This module performs no I/O, and knows nothing
//! about the calls or their pace.

use std::collections::{HashMap, HashSet, VecDeque};

use super::registration::Registration;
use crate::store::BatchId;

#[derive(Default)]
pub(super) struct Queue {
    lines: HashMap<String, Line>,
    /// Products with waiting registrations, in the order of their turns.
    turns: VecDeque<String>,
    waiting: usize,
    /// Number of tasks that take registrations out of the queue.
    pullers: usize,
    /// Batches that this process runs.
    running: HashSet<BatchId>,
}

/// The queue of one product.
#[derive(Default)]
struct Line {
    registrations: VecDeque<Registration>,
    /// Number of batches that are gathering registrations or are in progress.
    batches: usize,
    /// Set while a batch of this product is gathering registrations.
    gathering: bool,
}

impl Queue {
    /// Returns the number of waiting registrations of all products.
    pub(super) fn len(&self) -> usize {
        self.waiting
    }

    /// Returns the number of waiting registrations of one product.
    pub(super) fn backlog(&self, product_key: &str) -> usize {
        self.lines.get(product_key).map_or(0, |line| line.registrations.len())
    }

    /// Returns the number of products with waiting registrations.
    pub(super) fn products(&self) -> usize {
        self.turns.len()
    }

    /// Queues a registration behind the others of its product. Returns whether the caller must
    /// start another task that pulls registrations. There are never more than `max_pullers` such
    /// tasks.
    pub(super) fn push(&mut self, registration: Registration, max_pullers: usize) -> bool {
        let product_key = registration.entry.product_key.clone();
        let line = self.lines.entry(product_key.clone()).or_default();
        if line.registrations.is_empty() {
            self.turns.push_back(product_key);
        }
        line.registrations.push_back(registration);
        self.waiting += 1;
        let more = self.pullers < max_pullers;
        self.pullers += usize::from(more);
        more
    }

    /// Takes the next registration of the product whose turn it is. A task that gets `None` must
    /// end, because `pullers` no longer counts this task.
    pub(super) fn pull(&mut self) -> Option<Registration> {
        let Some(product_key) = self.turns.pop_front() else {
            self.pullers = self.pullers.saturating_sub(1);
            return None;
        };
        let line = self.lines.entry(product_key.clone()).or_default();
        let registration = line.registrations.pop_front();
        self.waiting = self.waiting.saturating_sub(usize::from(registration.is_some()));
        match line.registrations.is_empty() {
            true => self.tidy(&product_key),
            false => self.turns.push_back(product_key),
        }
        registration
    }

    /// Begins to gather a batch if more than `singly` registrations of this product wait. Does
    /// nothing if the product already has a gathering batch, or `max_batches` batches. Returns
    /// whether gathering has begun.
    pub(super) fn begin_batch(&mut self, product_key: &str, singly: usize, max_batches: usize) -> bool {
        let Some(line) = self.lines.get_mut(product_key) else { return false };
        let begin = line.registrations.len() > singly && !line.gathering && line.batches < max_batches;
        if begin {
            line.gathering = true;
            line.batches += 1;
        }
        begin
    }

    /// Ends the gathering of a batch and takes at most `most` registrations for it. The first
    /// `singly` registrations stay in the queue, because their turn comes before the batch would
    /// finish.
    pub(super) fn take_batch(&mut self, product_key: &str, singly: usize, most: usize) -> Vec<Registration> {
        let Some(line) = self.lines.get_mut(product_key) else { return Vec::new() };
        line.gathering = false;
        let from = singly.min(line.registrations.len());
        let mut taken: Vec<_> = line.registrations.split_off(from).into();
        line.registrations.extend(taken.split_off(most.min(taken.len())));
        self.waiting = self.waiting.saturating_sub(taken.len());
        if line.registrations.is_empty() {
            self.turns.retain(|turn| turn != product_key);
        }
        taken
    }

    /// Notes that a batch of this product has ended.
    pub(super) fn end_batch(&mut self, product_key: &str) {
        if let Some(line) = self.lines.get_mut(product_key) {
            line.batches = line.batches.saturating_sub(1);
        }
        self.tidy(product_key);
    }

    /// Returns the number of batches of all products.
    pub(super) fn batches(&self) -> usize {
        self.lines.values().map(|line| line.batches).sum()
    }

    /// Removes and returns all waiting registrations of one product, or of all products if
    /// `product_key` is `None`.
    pub(super) fn clear(&mut self, product_key: Option<&str>) -> Vec<Registration> {
        let products: Vec<String> =
            self.turns.iter().filter(|turn| product_key.is_none_or(|only| only == *turn)).cloned().collect();
        let mut cleared = Vec::new();
        for product_key in products {
            if let Some(line) = self.lines.get_mut(&product_key) {
                cleared.extend(line.registrations.drain(..));
            }
            self.turns.retain(|turn| *turn != product_key);
            self.tidy(&product_key);
        }
        self.waiting = self.waiting.saturating_sub(cleared.len());
        cleared
    }

    /// Notes that this process runs a batch. Returns false if it was already running the batch.
    pub(super) fn start_running(&mut self, batch: BatchId) -> bool {
        self.running.insert(batch)
    }

    /// Notes that this process no longer runs a batch.
    pub(super) fn stop_running(&mut self, batch: BatchId) {
        self.running.remove(&batch);
    }

    /// Removes the queue of a product when it is empty and has no batch.
    fn tidy(&mut self, product_key: &str) {
        if self.lines.get(product_key).is_some_and(|line| line.registrations.is_empty() && line.batches == 0)
        {
            self.lines.remove(product_key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{device::DeviceId, store::JournalEntry};

    fn registration(product_key: &str, number: usize) -> Registration {
        let name = format!("SN{number:02}");
        let device = DeviceId::parse(&name).unwrap();
        Registration::new(JournalEntry { device, product_key: product_key.into(), device_name: name })
    }

    fn queue(registrations: &[(&str, usize)]) -> Queue {
        let mut queue = Queue::default();
        for (product_key, number) in registrations {
            queue.push(registration(product_key, *number), 1);
        }
        queue
    }

    fn names(registrations: impl IntoIterator<Item = Registration>) -> Vec<String> {
        registrations.into_iter().map(|registration| registration.entry.device_name).collect()
    }

    #[test]
    fn products_take_turns_and_each_keeps_its_order() {
        let mut queue = queue(&[("a1", 1), ("a1", 2), ("a1", 3), ("a2", 4), ("a3", 5), ("a2", 6)]);
        assert_eq!((queue.len(), queue.products(), queue.backlog("a1")), (6, 3, 3));
        let order = names(std::iter::from_fn(|| queue.pull()));
        assert_eq!(order, ["SN01", "SN04", "SN05", "SN02", "SN06", "SN03"]);
        assert_eq!((queue.len(), queue.products()), (0, 0));
        assert!(queue.lines.is_empty());
    }

    #[test]
    fn there_are_as_many_pullers_as_may_be_and_none_without_work() {
        let mut queue = Queue::default();
        assert!(queue.push(registration("a1", 1), 2));
        assert!(queue.push(registration("a1", 2), 2));
        assert!(!queue.push(registration("a1", 3), 2));
        assert_eq!(std::iter::from_fn(|| queue.pull()).count(), 3);
        // The queue no longer counts the task whose pull returned `None`, so a new task must start.
        assert!(queue.push(registration("a1", 4), 2));
    }

    #[test]
    fn a_batch_takes_those_whose_turn_is_far() {
        let mut queue = queue(&[("a1", 1), ("a1", 2), ("a1", 3), ("a1", 4), ("a1", 5), ("a2", 6)]);
        assert!(!queue.begin_batch("a1", 5, 1));
        assert!(!queue.begin_batch("a3", 0, 1));
        assert!(queue.begin_batch("a1", 2, 1));
        assert!(!queue.begin_batch("a1", 2, 2), "one gathers already");
        assert_eq!(names(queue.take_batch("a1", 2, 2)), ["SN03", "SN04"]);
        assert_eq!((queue.len(), queue.backlog("a1"), queue.batches()), (4, 3, 1));
        assert!(!queue.begin_batch("a1", 2, 1), "one is in the air");
        assert!(queue.begin_batch("a1", 2, 2));
        assert_eq!(names(queue.take_batch("a1", 0, 10)), ["SN01", "SN02", "SN05"]);
        assert_eq!(names(queue.pull()), ["SN06"]);
        queue.end_batch("a1");
        queue.end_batch("a1");
        assert!(queue.lines.is_empty());
    }

    #[test]
    fn one_product_or_all_are_cleared() {
        let mut queue = queue(&[("a1", 1), ("a2", 2), ("a2", 3)]);
        assert_eq!(names(queue.clear(Some("a2"))), ["SN02", "SN03"]);
        assert_eq!(queue.len(), 1);
        assert_eq!(names(queue.clear(None)), ["SN01"]);
        assert!(queue.lines.is_empty() && queue.pull().is_none());
    }
}
