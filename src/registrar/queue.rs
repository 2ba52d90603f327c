//! Queue of registrations that wait for a call. Products take short turns, so that many devices of
//! one product do not delay the devices of another. A batch takes many registrations of one product
//! out of the queue. This module performs no I/O, and knows nothing about the calls or their pace.

use std::collections::{HashMap, HashSet, VecDeque};

use tokio::time::Instant;

use super::{plan, registration::Registration};
use crate::store::BatchId;

/// Maximum number of registrations of one product that are taken from the queue before the next
/// product is served. A product with no more waiting devices than this is finished at once. If a few
/// devices of each small product stayed in the queue instead, each product would still need a batch.
const TURN: usize = 10;

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
    /// Number of batches in progress, of all products.
    batches: usize,
    /// Set while a task makes batches.
    makes_batches: bool,
}

/// The queue of one product.
struct Line {
    registrations: VecDeque<Registration>,
    /// Number of registrations that the product's turn has taken so far.
    taken: usize,
    /// Number of batches in progress.
    batches: usize,
    /// Time at which the first registration began to wait, or at which the product's last batch
    /// took registrations.
    since: Instant,
}

impl Line {
    fn new(now: Instant) -> Self {
        Self { registrations: VecDeque::new(), taken: 0, batches: 0, since: now }
    }

    fn as_of(&self, now: Instant) -> plan::Line {
        let age = now.saturating_duration_since(self.since);
        plan::Line { waiting: self.registrations.len(), batches: self.batches, age }
    }
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
    pub(super) fn push(&mut self, registration: Registration, max_pullers: usize, now: Instant) -> bool {
        let product_key = &registration.entry.product_key;
        if !self.lines.contains_key(product_key) {
            self.lines.insert(product_key.clone(), Line::new(now));
        }
        let Some(line) = self.lines.get_mut(product_key) else { return false };
        if line.registrations.is_empty() {
            (line.since, line.taken) = (now, 0);
            self.turns.push_back(product_key.clone());
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
        while let Some(product_key) = self.turns.pop_front() {
            let Some(line) = self.lines.get_mut(&product_key) else { continue };
            let Some(registration) = line.registrations.pop_front() else { continue };
            self.waiting = self.waiting.saturating_sub(1);
            line.taken += 1;
            if line.registrations.is_empty() {
                self.tidy(&product_key);
            } else if line.taken < TURN {
                self.turns.push_front(product_key);
            } else {
                line.taken = 0;
                self.turns.push_back(product_key);
            }
            return Some(registration);
        }
        self.pullers = self.pullers.saturating_sub(1);
        None
    }

    /// Notes that a task makes batches. Returns false if a task already does so, or if at most
    /// `soon` registrations wait.
    pub(super) fn begin_batches(&mut self, soon: usize) -> bool {
        let begin = !self.makes_batches && self.waiting > soon;
        self.makes_batches |= begin;
        begin
    }

    /// If at most `soon` registrations wait, notes that no task makes batches any more, and returns
    /// true. Otherwise returns false. The next registration beyond `soon` begins a new task.
    pub(super) fn end_batches(&mut self, soon: usize) -> bool {
        self.makes_batches = self.waiting > soon;
        !self.makes_batches
    }

    /// Returns the product for which a batch is worth most. Of several products with the same
    /// worth, returns the product whose turn comes last, because single calls serve the other
    /// products earlier.
    pub(super) fn most_worth(
        &self,
        now: Instant,
        worth: impl Fn(&str, plan::Line) -> Option<f64>,
    ) -> Option<String> {
        let mut most: Option<(&String, f64)> = None;
        for product_key in self.turns.iter().rev() {
            if let Some(line) = self.lines.get(product_key)
                && let Some(worth) = worth(product_key, line.as_of(now))
                && most.is_none_or(|(_, most)| worth > most)
            {
                most = Some((product_key, worth));
            }
        }
        most.map(|(product_key, _)| product_key.clone())
    }

    /// Begins a batch: takes at most `most` registrations of a product for it. The first `singly`
    /// registrations stay in the queue, because their turn comes before the batch would finish.
    pub(super) fn take_batch(
        &mut self,
        product_key: &str,
        singly: usize,
        most: usize,
        now: Instant,
    ) -> Vec<Registration> {
        let Some(line) = self.lines.get_mut(product_key) else { return Vec::new() };
        let from = singly.min(line.registrations.len());
        let mut taken: Vec<_> = line.registrations.split_off(from).into();
        line.registrations.extend(taken.split_off(most.min(taken.len())));
        (line.since, line.batches) = (now, line.batches + 1);
        self.batches += 1;
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
            self.batches = self.batches.saturating_sub(1);
        }
        self.tidy(product_key);
    }

    /// Returns the number of batches in progress, of all products.
    pub(super) fn batches(&self) -> usize {
        self.batches
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
        Registration::new(JournalEntry {
            device,
            product_key: product_key.into(),
            device_name: name,
            target: crate::target::DEFAULT.into(),
        })
    }

    fn queue(registrations: &[(&str, usize)]) -> Queue {
        let mut queue = Queue::default();
        for (product_key, number) in registrations {
            queue.push(registration(product_key, *number), 1, Instant::now());
        }
        queue
    }

    fn names(registrations: impl IntoIterator<Item = Registration>) -> Vec<String> {
        registrations.into_iter().map(|registration| registration.entry.device_name).collect()
    }

    #[test]
    fn products_take_turns_and_each_keeps_its_order() {
        let a1 = (1..=TURN + 2).map(|number| ("a1", number));
        let mut queue = queue(&a1.chain([("a2", 21), ("a3", 31), ("a2", 22)]).collect::<Vec<_>>());
        assert_eq!((queue.len(), queue.products(), queue.backlog("a1")), (TURN + 5, 3, TURN + 2));
        let order = names(std::iter::from_fn(|| queue.pull()));
        let expected = (1..=TURN).chain([21, 22, 31, 11, 12]).map(|number| format!("SN{number:02}"));
        assert_eq!(order, expected.collect::<Vec<_>>());
        assert_eq!((queue.len(), queue.products()), (0, 0));
        assert!(queue.lines.is_empty());
    }

    #[test]
    fn a_turn_begins_anew_after_the_product_had_none_waiting() {
        let mut queue = queue(&[("a1", 1)]);
        for number in 2..=TURN {
            queue.pull();
            queue.push(registration("a1", number), 1, Instant::now());
        }
        queue.push(registration("a1", 11), 1, Instant::now());
        queue.push(registration("a2", 21), 1, Instant::now());
        assert_eq!(names(std::iter::from_fn(|| queue.pull())), ["SN10", "SN11", "SN21"]);
    }

    #[test]
    fn there_are_as_many_pullers_as_may_be_and_none_without_work() {
        let mut queue = Queue::default();
        assert!(queue.push(registration("a1", 1), 2, Instant::now()));
        assert!(queue.push(registration("a1", 2), 2, Instant::now()));
        assert!(!queue.push(registration("a1", 3), 2, Instant::now()));
        assert_eq!(std::iter::from_fn(|| queue.pull()).count(), 3);
        // The queue no longer counts the task whose pull returned `None`, so a new task must start.
        assert!(queue.push(registration("a1", 4), 2, Instant::now()));
    }

    #[test]
    fn a_batch_takes_those_whose_turn_is_far() {
        let now = Instant::now();
        let mut queue = queue(&[("a1", 1), ("a1", 2), ("a1", 3), ("a1", 4), ("a1", 5), ("a2", 6)]);
        assert_eq!(names(queue.take_batch("a1", 2, 2, now)), ["SN03", "SN04"]);
        assert_eq!((queue.len(), queue.backlog("a1"), queue.batches()), (4, 3, 1));
        assert_eq!(names(queue.take_batch("a1", 0, 10, now)), ["SN01", "SN02", "SN05"]);
        assert_eq!((queue.len(), queue.backlog("a1"), queue.batches()), (1, 0, 2));
        assert_eq!(names(queue.pull()), ["SN06"]);
        queue.end_batch("a1");
        queue.end_batch("a1");
        assert_eq!(queue.batches(), 0);
        assert!(queue.lines.is_empty());
    }

    #[test]
    fn a_batch_is_made_for_the_product_to_which_it_is_worth_most() {
        let queue = queue(&[("a1", 1), ("a2", 2), ("a2", 3), ("a3", 4), ("a3", 5)]);
        let now = Instant::now();
        let waiting = |_: &str, line: plan::Line| Some(line.waiting as f64);
        assert_eq!(queue.most_worth(now, waiting).as_deref(), Some("a3"), "its turn comes last");
        let but_one = |product_key: &str, line| waiting(product_key, line).filter(|_| product_key != "a3");
        assert_eq!(queue.most_worth(now, but_one).as_deref(), Some("a2"));
        assert_eq!(queue.most_worth(now, |_, _| None), None);
    }

    #[test]
    fn a_product_ages_from_its_first_registration_or_its_last_batch() {
        let start = Instant::now();
        let later = |seconds| start + std::time::Duration::from_secs(seconds);
        let mut queue = Queue::default();
        let age = |queue: &Queue, seconds| {
            let age = queue.lines["a1"].as_of(later(seconds)).age;
            age.as_secs()
        };
        queue.push(registration("a1", 1), 1, later(0));
        queue.push(registration("a1", 2), 1, later(3));
        assert_eq!(age(&queue, 5), 5);
        queue.take_batch("a1", 1, 10, later(7));
        assert_eq!(age(&queue, 9), 2);
        queue.pull();
        queue.push(registration("a1", 3), 1, later(20));
        assert_eq!(age(&queue, 21), 1);
    }

    #[test]
    fn one_task_makes_batches_while_many_wait() {
        let mut queue = queue(&[("a1", 1), ("a1", 2)]);
        assert!(!queue.begin_batches(2));
        assert!(queue.begin_batches(1));
        assert!(!queue.begin_batches(1), "one does so already");
        assert!(!queue.end_batches(1));
        queue.pull();
        assert!(queue.end_batches(1));
        assert!(queue.begin_batches(0));
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
