//! Who waits for a call, product by product: each product has its turn, so that a
//! storm of one does not hold up another. Pure; what a flight is and when it may be
//! called for is `registrar`'s.

use std::collections::{HashMap, VecDeque};

use super::flight::Flight;

#[derive(Default)]
pub(super) struct Queue {
    lines: HashMap<String, Line>,
    /// Products whose line is not empty, the next one first.
    turns: VecDeque<String>,
    waiting: usize,
    /// Who takes flights out, one after the other.
    pullers: usize,
}

/// The line of one product.
#[derive(Default)]
struct Line {
    flights: VecDeque<Flight>,
    /// Batches that gather or are in the air.
    batches: usize,
    /// Whether one of them gathers.
    gathering: bool,
}

impl Queue {
    /// Flights of all products.
    pub(super) fn len(&self) -> usize {
        self.waiting
    }

    /// Flights of one product.
    pub(super) fn backlog(&self, product_key: &str) -> usize {
        self.lines.get(product_key).map_or(0, |line| line.flights.len())
    }

    /// Products that take turns.
    pub(super) fn products(&self) -> usize {
        self.turns.len()
    }

    /// Puts a flight at the end of its product's line. Answers with whether another
    /// puller is to be started, of at most `max_pullers`.
    pub(super) fn push(&mut self, flight: Flight, max_pullers: usize) -> bool {
        let product_key = flight.entry.product_key.clone();
        let line = self.lines.entry(product_key.clone()).or_default();
        if line.flights.is_empty() {
            self.turns.push_back(product_key);
        }
        line.flights.push_back(flight);
        self.waiting += 1;
        let more = self.pullers < max_pullers;
        self.pullers += usize::from(more);
        more
    }

    /// The next flight, of the product whose turn it is. A puller that gets none is
    /// no longer counted, and must end.
    pub(super) fn pull(&mut self) -> Option<Flight> {
        let Some(product_key) = self.turns.pop_front() else {
            self.pullers = self.pullers.saturating_sub(1);
            return None;
        };
        let line = self.lines.entry(product_key.clone()).or_default();
        let flight = line.flights.pop_front();
        self.waiting = self.waiting.saturating_sub(usize::from(flight.is_some()));
        match line.flights.is_empty() {
            true => self.tidy(&product_key),
            false => self.turns.push_back(product_key),
        }
        flight
    }

    /// Whether a batch of this product is to gather now: the line is longer than
    /// `singly`, none gathers, and fewer than `max_batches` are in the air.
    pub(super) fn begin_batch(&mut self, product_key: &str, singly: usize, max_batches: usize) -> bool {
        let Some(line) = self.lines.get_mut(product_key) else { return false };
        let begin = line.flights.len() > singly && !line.gathering && line.batches < max_batches;
        if begin {
            line.gathering = true;
            line.batches += 1;
        }
        begin
    }

    /// Takes the flights of a batch that has gathered: at most `most`, and not the
    /// first `singly`, whose turn comes before the batch would be done.
    pub(super) fn take_batch(&mut self, product_key: &str, singly: usize, most: usize) -> Vec<Flight> {
        let Some(line) = self.lines.get_mut(product_key) else { return Vec::new() };
        line.gathering = false;
        let from = singly.min(line.flights.len());
        let mut taken: Vec<_> = line.flights.split_off(from).into();
        line.flights.extend(taken.split_off(most.min(taken.len())));
        self.waiting = self.waiting.saturating_sub(taken.len());
        if line.flights.is_empty() {
            self.turns.retain(|turn| turn != product_key);
        }
        taken
    }

    /// A batch is over.
    pub(super) fn end_batch(&mut self, product_key: &str) {
        if let Some(line) = self.lines.get_mut(product_key) {
            line.batches = line.batches.saturating_sub(1);
        }
        self.tidy(product_key);
    }

    /// Batches of all products.
    pub(super) fn batches(&self) -> usize {
        self.lines.values().map(|line| line.batches).sum()
    }

    /// Takes out everybody who waits, of one product or of all.
    pub(super) fn clear(&mut self, product_key: Option<&str>) -> Vec<Flight> {
        let products: Vec<String> =
            self.turns.iter().filter(|turn| product_key.is_none_or(|only| only == *turn)).cloned().collect();
        let mut cleared = Vec::new();
        for product_key in products {
            if let Some(line) = self.lines.get_mut(&product_key) {
                cleared.extend(line.flights.drain(..));
            }
            self.turns.retain(|turn| *turn != product_key);
            self.tidy(&product_key);
        }
        self.waiting = self.waiting.saturating_sub(cleared.len());
        cleared
    }

    /// Forgets a line in which nobody is.
    fn tidy(&mut self, product_key: &str) {
        if self.lines.get(product_key).is_some_and(|line| line.flights.is_empty() && line.batches == 0) {
            self.lines.remove(product_key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{device::DeviceId, store::JournalEntry};

    fn flight(product_key: &str, number: usize) -> Flight {
        let name = format!("SN{number:02}");
        let device = DeviceId::parse(&name).unwrap();
        Flight::new(JournalEntry { device, product_key: product_key.into(), device_name: name }, false)
    }

    fn queue(flights: &[(&str, usize)]) -> Queue {
        let mut queue = Queue::default();
        for (product_key, number) in flights {
            queue.push(flight(product_key, *number), 1);
        }
        queue
    }

    fn names(flights: impl IntoIterator<Item = Flight>) -> Vec<String> {
        flights.into_iter().map(|flight| flight.entry.device_name).collect()
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
        assert!(queue.push(flight("a1", 1), 2));
        assert!(queue.push(flight("a1", 2), 2));
        assert!(!queue.push(flight("a1", 3), 2));
        assert_eq!(std::iter::from_fn(|| queue.pull()).count(), 3);
        // One of the two has ended.
        assert!(queue.push(flight("a1", 4), 2));
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
