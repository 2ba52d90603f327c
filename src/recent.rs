//! A bounded record of recent events. Each event has a map key, such as a device and a reason.
//! Events with the same map key are counted together. When the record is full, the older half is
//! forgotten.

use std::hash::{Hash, RandomState};

use hashbrown::{Equivalent, HashMap};

use crate::unix_time::UnixSeconds;

/// Events with the same map key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Counted<V> {
    /// Time of the first remembered event.
    pub first: UnixSeconds,
    /// Time of the last event.
    pub last: UnixSeconds,
    /// Number of events.
    pub count: u64,
    /// Properties of the last event.
    pub value: V,
}

/// The recent events.
#[derive(Debug)]
pub struct Recent<K, V> {
    most: usize,
    events: HashMap<K, Counted<V>, RandomState>,
    forgotten: u64,
}

impl<K: Eq + Hash, V> Recent<K, V> {
    /// Creates an empty record for at most `most` different map keys.
    pub fn new(most: usize) -> Self {
        Self { most, events: HashMap::default(), forgotten: 0 }
    }

    /// Notes an event. Calls `update` if the record has an event with this map key, and `create`
    /// otherwise.
    pub fn note<Q: Hash + Equivalent<K>>(
        &mut self,
        now: UnixSeconds,
        key: &Q,
        create: impl FnOnce() -> (K, V),
        update: impl FnOnce(&mut V),
    ) {
        self.note_many((now, now, 1), key, create, update);
    }

    /// Notes several events with the same map key. The first argument contains the time of the
    /// first event, the time of the last event, and the number of events.
    pub fn note_many<Q: Hash + Equivalent<K>>(
        &mut self,
        (first, last, count): (UnixSeconds, UnixSeconds, u64),
        key: &Q,
        create: impl FnOnce() -> (K, V),
        update: impl FnOnce(&mut V),
    ) {
        if let Some(known) = self.events.get_mut(key) {
            // The times may be earlier than the known ones: the clock may have been set back, or
            // another thread may have used the record before.
            (known.first, known.last) = (known.first.min(first), known.last.max(last));
            known.count += count;
            return update(&mut known.value);
        }
        if self.events.len() >= self.most {
            self.make_room();
        }
        let (key, value) = create();
        self.events.insert(key, Counted { first, last, count, value });
    }

    /// Returns the events with this map key.
    pub fn get<Q: Hash + Equivalent<K>>(&self, key: &Q) -> Option<&Counted<V>> {
        self.events.get(key)
    }

    /// Returns all events that occurred at `from` or later.
    pub fn since(&self, from: UnixSeconds) -> impl Iterator<Item = (&K, &Counted<V>)> {
        self.events.iter().filter(move |(_, event)| event.last >= from)
    }

    /// Returns whether any events were forgotten.
    pub fn has_forgotten(&self) -> bool {
        self.forgotten > 0
    }

    /// Forgets the older half of the events.
    fn make_room(&mut self) {
        let mut times: Vec<UnixSeconds> = self.events.values().map(|event| event.last).collect();
        let half = times.len() / 2;
        if times.is_empty() {
            return;
        }
        let (_, median, _) = times.select_nth_unstable(half);
        let (median, mut surplus) = (*median, half.max(1));
        let before = self.events.len();
        // Many events may have the same time as the median. Only as many of them are forgotten as
        // are needed to forget half of all events.
        self.events.retain(|_, event| {
            let goes = event.last <= median && surplus > 0;
            surplus -= usize::from(goes);
            !goes
        });
        self.forgotten += (before - self.events.len()) as u64;
    }
}

/// Adds the events with this map key from one record to `all`, which contains the events from other
/// records.
pub fn add_up<K: Eq + Hash, V: Clone>(
    all: &mut HashMap<K, Counted<V>, RandomState>,
    key: K,
    counted: &Counted<V>,
) {
    all.entry(key).and_modify(|known| known.add(counted)).or_insert_with(|| counted.clone());
}

impl<V: Clone> Counted<V> {
    /// Adds the events with the same map key from another record.
    fn add(&mut self, other: &Self) {
        let (first, count) = (self.first.min(other.first), self.count + other.count);
        if other.last > self.last {
            *self = other.clone();
        }
        (self.first, self.count) = (first, count);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note(recent: &mut Recent<u32, &'static str>, now: UnixSeconds, key: u32, value: &'static str) {
        recent.note(now, &key, || (key, value), |known| *known = value);
    }

    #[test]
    fn events_with_the_same_key_are_counted_together() {
        let mut recent = Recent::new(10);
        note(&mut recent, 100, 1, "a");
        note(&mut recent, 160, 1, "b");
        note(&mut recent, 130, 1, "c");
        assert_eq!(recent.get(&1), Some(&Counted { first: 100, last: 160, count: 3, value: "c" }));
        assert_eq!((recent.since(160).count(), recent.since(161).count()), (1, 0));
    }

    #[test]
    fn the_record_is_bounded_and_the_latest_events_stay() {
        let mut recent = Recent::new(100);
        for key in 0..1000 {
            note(&mut recent, i64::from(key) / 7, key, "");
            assert!(recent.events.len() <= 100);
        }
        assert!(recent.has_forgotten() && recent.events.len() >= 50);
        assert!(recent.get(&999).is_some() && recent.get(&0).is_none());
    }

    #[test]
    fn all_events_of_one_second_leave_room_too() {
        for most in [1, 2, 10] {
            let mut recent = Recent::new(most);
            (0..=most as u32).for_each(|key| note(&mut recent, 5, key, ""));
            assert!(recent.get(&(most as u32)).is_some() && recent.events.len() <= most, "{most}");
        }
    }
}
