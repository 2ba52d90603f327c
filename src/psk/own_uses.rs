//! Counts the handshakes of individual devices that have two keys, and remembers the last use of
//! each key until it is written to the store. Only a handshake of such a device takes the lock of
//! this module, which all workers share.

use std::{
    collections::{BTreeMap, HashMap, hash_map::Entry},
    mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::{OwnKey, Principal};
use crate::store::{
    Store, StoreError, UnixSeconds,
    roll::{OwnUse, Used},
    unix_now,
};

/// Maximum number of rolls whose uses wait to be written. Further ones are left out and counted, so
/// their devices seem not to have used a key until their next handshake.
const WAITING: usize = 100_000;

/// Maximum number of rolls whose uses are written in one step.
const STEP: usize = 500;

/// Handshakes with each of the two keys of all devices of an enrollment, in the order of
/// [`WhichKey::ALL`](super::WhichKey::ALL), each with the time of the last one.
pub type Counts = [(u64, Option<UnixSeconds>); 2];

/// The roll in which a client's key was looked up.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct RollOf {
    identity: Arc<str>,
    since: Option<UnixSeconds>,
}

#[derive(Debug, Default)]
struct Seen {
    /// Uses that are not written yet. The times come from the system's clock.
    waiting: HashMap<RollOf, Used>,
    left_out: u64,
    /// Handshakes since the start of the process, by enrollment.
    counts: BTreeMap<String, Counts>,
}

/// The uses that a process has seen.
#[derive(Debug, Default)]
pub(super) struct OwnUses(Mutex<Seen>);

impl OwnUses {
    /// Counts a handshake of a client that has this key, if its device has two.
    pub(super) fn count(&self, client: &Principal, own: &OwnKey) {
        if !own.is_rolling {
            return;
        }
        let now = unix_now();
        let mut seen = self.lock();
        let counts = seen.counts.entry(client.enrollment.name.clone()).or_default();
        let (handshakes, last) = &mut counts[client.key as usize];
        (*handshakes, *last) = (*handshakes + 1, Some(now));
        let mut used = [None; 2];
        used[client.key as usize] = Some(now);
        seen.add(RollOf { identity: own.identity.clone(), since: own.since }, used);
    }

    /// Returns the counts of each enrollment, in alphabetical order.
    pub(super) fn counts(&self) -> Vec<(String, Counts)> {
        self.lock().counts.iter().map(|(name, counts)| (name.clone(), *counts)).collect()
    }

    /// Writes the uses to the store. Uses that could not be written wait for the next call.
    pub(super) async fn note(&self, store: &dyn Store) -> Result<(), StoreError> {
        let (waiting, left_out) = {
            let mut seen = self.lock();
            (mem::take(&mut seen.waiting), mem::take(&mut seen.left_out))
        };
        if left_out > 0 {
            tracing::warn!(
                handshakes = left_out,
                "too many devices with two keys at once: the uses of some keys were not noted"
            );
        }
        let ahead = store.ahead();
        let mut waiting: Vec<(RollOf, Used)> = waiting.into_iter().collect();
        while !waiting.is_empty() {
            let step = waiting.split_off(waiting.len().saturating_sub(STEP));
            let at = |used: &Used| used.map(|at| at.map(|at| at.saturating_add(ahead)));
            let uses = step.iter().map(|(RollOf { identity, since }, used)| OwnUse {
                identity: identity.to_string(),
                since: *since,
                used: at(used),
            });
            if let Err(error) = store.note_own_uses(uses.collect()).await {
                let mut seen = self.lock();
                waiting.into_iter().chain(step).for_each(|(roll, used)| seen.add(roll, used));
                return Err(error);
            }
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Seen> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Seen {
    fn add(&mut self, roll: RollOf, used: Used) {
        let is_full = self.waiting.len() >= WAITING;
        match self.waiting.entry(roll) {
            Entry::Occupied(mut known) => {
                let known = known.get_mut();
                *known = [known[0].max(used[0]), known[1].max(used[1])];
            }
            Entry::Vacant(_) if is_full => self.left_out += 1,
            Entry::Vacant(new) => drop(new.insert(used)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        device::{DeviceId, Secret},
        psk::{Enrollment, Enrollments, Kind, Reissue, uses::UseCounters},
        store::{
            Actor, ImportRow,
            roll::{Ended, Ending, Roll, Rolls},
        },
        testing::store::{Memory, import},
    };

    fn device(number: usize) -> DeviceId {
        DeviceId::parse(&format!("SN-{number}")).unwrap()
    }

    /// Returns the row of a device with these two keys.
    fn row(number: usize, key: usize, next: usize) -> ImportRow {
        let secret = |byte: usize| Secret::new(format!("{byte:032x}"));
        ImportRow {
            individual: true,
            key: Some((format!("id-{number}"), secret(key))),
            next_key: Some(secret(next)),
            ..ImportRow::new(device(number), "own", "a1")
        }
    }

    /// Imports devices with two keys. Returns an index of their enrollment.
    fn rolling(store: &Memory, devices: usize, counters: &UseCounters) -> Enrollments {
        import(store, (0..devices).map(|number| row(number, 2 * number + 1, 2 * number + 2)));
        // The clocks of this store and of the system show different parts of a second, and a use before
        // the roll does not count.
        store.set_clock_ahead(2);
        let own = Enrollment {
            name: "own".into(),
            product_key: "a1".into(),
            kind: Kind::Individual,
            reissue: Reissue::Always,
            next: None,
            guards: Default::default(),
        };
        Enrollments::counted([own], counters)
    }

    async fn shake_hands(index: &Enrollments, store: &Memory, number: usize, with_next: bool) {
        let found = index.find(format!("id-{number}").as_bytes(), store).await.unwrap().keys;
        let ((_, current), second) = found.unwrap();
        index.count_use(if with_next { &second.as_ref().unwrap().1 } else { &current });
    }

    async fn used(store: &Memory, number: usize) -> [bool; 2] {
        let Roll { used, .. } = store.roll_of(&device(number)).await.unwrap().unwrap();
        used.map(|at| at.is_some())
    }

    #[tokio::test]
    async fn the_last_uses_of_each_device_reach_the_store() {
        let (store, counters) = (Memory::default(), UseCounters::default());
        let index = rolling(&store, 3, &counters);
        let copy = index.unshared();
        shake_hands(&index, &store, 0, false).await;
        shake_hands(&copy, &store, 1, true).await;
        shake_hands(&copy, &store, 1, true).await;
        assert_eq!(used(&store, 1).await, [false; 2], "written later");
        counters.note(&store).await.unwrap();
        assert_eq!(used(&store, 0).await, [true, false]);
        assert_eq!(used(&store, 1).await, [false, true]);
        assert_eq!(used(&store, 2).await, [false; 2]);
        let [(name, [(current, _), (next, last)])] = &counters.own_counts()[..] else {
            panic!("one enrollment")
        };
        assert_eq!((name.as_str(), *current, *next, last.is_some()), ("own", 1, 2, true));
    }

    #[tokio::test]
    async fn a_use_counts_only_in_the_roll_in_which_its_key_was_looked_up() {
        let (store, counters) = (Memory::default(), UseCounters::default());
        let index = rolling(&store, 1, &counters);
        let found = index.find(b"id-0", &store).await.unwrap().keys.unwrap();
        let (_, second) = found.1.unwrap();
        // During the handshake, the roll ends, and another one begins.
        let ended = store.end_roll(&device(0), Ending::Anyway, &Actor::system_user()).await.unwrap();
        assert_eq!(ended, Ended::Ended);
        store.set_clock_ahead(4);
        import(&store, [row(0, 2, 3)]);
        index.count_use(&second);
        counters.note(&store).await.unwrap();
        assert_eq!(used(&store, 0).await, [false; 2], "the key is the first one now");
        shake_hands(&index, &store, 0, true).await;
        counters.note(&store).await.unwrap();
        assert_eq!(used(&store, 0).await, [false, true]);
    }

    #[tokio::test]
    async fn uses_that_could_not_be_written_are_written_later() {
        let (store, counters) = (Memory::default(), UseCounters::default());
        let index = rolling(&store, STEP + 100, &counters);
        for number in 0..STEP + 100 {
            shake_hands(&index, &store, number, true).await;
        }
        store.set_busy(true);
        assert!(counters.note(&store).await.is_err());
        store.set_busy(false);
        shake_hands(&index, &store, 7, false).await;
        counters.note(&store).await.unwrap();
        for number in [0, 8, STEP + 99] {
            assert_eq!(used(&store, number).await, [false, true], "{number}");
        }
        assert_eq!(used(&store, 7).await, [true, true]);
    }

    #[test]
    fn the_uses_that_wait_are_bounded() {
        let roll = |number: usize| RollOf { identity: format!("id-{number}").into(), since: Some(1) };
        let mut seen = Seen::default();
        for number in 0..WAITING + 3 {
            seen.add(roll(number), [Some(1), None]);
        }
        seen.add(roll(0), [None, Some(2)]);
        assert_eq!((seen.waiting.len(), seen.left_out), (WAITING, 3));
        assert_eq!(seen.waiting[&roll(0)], [Some(1), Some(2)]);
    }
}
