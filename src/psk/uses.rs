//! Counts the handshakes with each key of the enrollments that have two, so that an operator sees
//! when no device uses the former key any more. The workers count without a lock; from time to time,
//! [`UseCounters::note`] writes the counts to the store, where they add up over all processes. An
//! enrollment with one key is not counted.

use std::{
    collections::HashMap,
    iter,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering},
    },
    time::Duration,
};

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use super::{
    Enrollment, WhichKey,
    own_uses::{Counts, OwnUses},
};
use crate::store::{
    Store, StoreError, UnixSeconds,
    key_use::{KeyUse, KeyUses, NewUse, NewUses, PskId},
    unix_now,
};

/// Interval at which the counts are written to the store.
pub const NOTE_EVERY: Duration = Duration::from_secs(60);

/// Handshakes with one key since the start of the process.
#[derive(Debug)]
pub struct Counter {
    key: PskId,
    handshakes: AtomicU64,
    /// Time of the last one; [`NEVER`] if there was none.
    last: AtomicI64,
    /// Number of handshakes that the store has, or is about to get.
    noted: AtomicU64,
    /// Set once the store has this key.
    is_known: AtomicBool,
}

const NEVER: UnixSeconds = UnixSeconds::MIN;

impl Counter {
    fn new(key: PskId) -> Self {
        Self {
            key,
            handshakes: AtomicU64::new(0),
            last: AtomicI64::new(NEVER),
            noted: AtomicU64::new(0),
            is_known: AtomicBool::new(false),
        }
    }

    fn count(&self) {
        // The time is stored first, so that the count never comes without a time.
        self.last.store(unix_now(), Ordering::Relaxed);
        self.handshakes.fetch_add(1, Ordering::Release);
    }

    /// Returns the number of handshakes, and the time of the last handshake.
    pub fn read(&self) -> (u64, Option<UnixSeconds>) {
        let handshakes = self.handshakes.load(Ordering::Acquire);
        let last = self.last.load(Ordering::Relaxed);
        (handshakes, (last != NEVER).then_some(last))
    }

    /// Takes the handshakes that were not taken yet. `ahead` is the difference between the store's
    /// clock and the system's, in seconds. Of concurrent calls, only one gets each handshake.
    fn take(&self, ahead: i64) -> NewUse {
        let (handshakes, last) = self.read();
        let more = handshakes.saturating_sub(self.noted.fetch_max(handshakes, Ordering::Relaxed));
        let last = last.filter(|_| more > 0).map(|last| last.saturating_add(ahead));
        NewUse { key: self.key.clone(), handshakes: more, last }
    }
}

/// The counters of an enrollment's two keys, in the order of [`WhichKey::ALL`].
pub type Pair = [Arc<Counter>; 2];

/// The counters of all enrollments with two keys, by the name of the enrollment.
pub(super) type ByEnrollment = HashMap<String, Pair>;

/// The counters of a process. They outlive a reload of the configuration.
#[derive(Debug, Default)]
pub struct UseCounters {
    pairs: Mutex<ByEnrollment>,
    /// Uses of the keys of individual devices.
    pub(super) own: Arc<OwnUses>,
}

impl UseCounters {
    /// Returns the counters for a configuration that replaces the former one. A key that both
    /// configurations have keeps its counts, even if the first and the second key are swapped.
    pub(super) fn count<'e>(&self, enrollments: impl Iterator<Item = &'e Enrollment>) -> ByEnrollment {
        let mut counters = self.lock();
        let now = enrollments.filter_map(|enrollment| {
            let ids = enrollment.key_ids()?;
            let former = counters.get(&enrollment.name);
            let counter = |id: PskId| {
                let known = former.and_then(|former| former.iter().find(|known| known.key == id));
                known.cloned().unwrap_or_else(|| Arc::new(Counter::new(id)))
            };
            Some((enrollment.name.clone(), ids.map(counter)))
        });
        let now: ByEnrollment = now.collect();
        counters.clone_from(&now);
        now
    }

    /// Returns the enrollments with two keys in alphabetical order, with the counters of each.
    pub fn all(&self) -> Vec<(String, Pair)> {
        let mut all: Vec<_> = self.lock().iter().map(|(name, pair)| (name.clone(), pair.clone())).collect();
        all.sort_by(|(one, _), (other, _)| one.cmp(other));
        all
    }

    /// Returns the enrollments whose individual devices have completed handshakes while they had two
    /// keys, in alphabetical order. Leaves out an enrollment that [`all`](Self::all) returns now,
    /// because its kind has changed.
    pub fn own_counts(&self) -> Vec<(String, Counts)> {
        let pairs = self.lock();
        self.own.counts().into_iter().filter(|(name, _)| !pairs.contains_key(name)).collect()
    }

    /// Writes the uses since the last call to the store. Does nothing if there were none. If the
    /// store's answer is lost, the next call counts the same handshakes again.
    pub async fn note(&self, store: &dyn Store) -> Result<(), StoreError> {
        self.own.note(store).await?;
        self.note_pairs(store).await
    }

    async fn note_pairs(&self, store: &dyn Store) -> Result<(), StoreError> {
        let all = self.all();
        let ahead = store.ahead();
        let (mut uses, mut noted) = (Vec::new(), Vec::new());
        for (enrollment, pair) in &all {
            let keys = pair.each_ref().map(|counter| counter.take(ahead));
            let is_known = pair.iter().all(|counter| counter.is_known.load(Ordering::Relaxed));
            if !is_known || keys.iter().any(|new| new.handshakes > 0) {
                noted.extend(iter::zip(pair, keys.each_ref().map(|new| new.handshakes)));
                uses.push(NewUses { enrollment: enrollment.clone(), keys });
            }
        }
        if uses.is_empty() {
            return Ok(());
        }
        let stored = store.note_key_uses(uses).await;
        for (counter, handshakes) in noted {
            match stored {
                Ok(()) => counter.is_known.store(true, Ordering::Relaxed),
                Err(_) => drop(counter.noted.fetch_sub(handshakes, Ordering::Relaxed)),
            }
        }
        stored
    }

    fn lock(&self) -> MutexGuard<'_, ByEnrollment> {
        self.pairs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Enrollment {
    /// Returns the IDs of the enrollment's two keys, in the order of [`WhichKey::ALL`]; `None` if it
    /// has no second key. A key cannot be calculated from its ID, unless it can be guessed.
    pub fn key_ids(&self) -> Option<[PskId; 2]> {
        let [current, next] =
            WhichKey::ALL.map(|which| self.key(which).map(|key| self.key_id(key.as_bytes())));
        Some([current?, next?])
    }

    /// Returns the IDs of all keys of the enrollment.
    pub fn ids_of_keys(&self) -> Vec<PskId> {
        WhichKey::ALL.iter().filter_map(|which| Some(self.key_id(self.key(*which)?.as_bytes()))).collect()
    }

    fn key_id(&self, key: &[u8]) -> PskId {
        PskId::new(hex::encode(self.digest(key)))
    }

    /// Returns a digest by which a key of this enrollment is recognized.
    pub(super) fn digest(&self, key: &[u8]) -> [u8; 8] {
        // The key is the message here and not the HMAC's key. Otherwise the ID could be the beginning
        // of a derived key.
        let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(b"certdist: ID of a pre-shared key") else {
            unreachable!("HMAC takes any key")
        };
        mac.update(&(self.name.len() as u64).to_be_bytes());
        mac.update(self.name.as_bytes());
        mac.update(key);
        let mut digest = [0; 8];
        digest.copy_from_slice(&mac.finalize().into_bytes()[..8]);
        digest
    }
}

/// The two keys of an enrollment in the order of [`WhichKey::ALL`], each with its use; `None` if no
/// process has reported about the key.
pub type Reported = Vec<(WhichKey, Option<KeyUse>)>;

/// Returns the uses that all processes have reported of the keys with these IDs. An enrollment with
/// only one key has no IDs, so nothing is returned for it.
pub async fn reported(
    store: &(impl KeyUses + ?Sized),
    enrollment: &str,
    ids: Option<&[PskId; 2]>,
) -> Result<Reported, StoreError> {
    let Some(ids) = ids else { return Ok(Reported::new()) };
    let known = store.key_uses(enrollment).await?;
    let of = |(which, id): (WhichKey, &PskId)| (which, known.iter().find(|known| known.key == *id).cloned());
    Ok(WhichKey::ALL.into_iter().zip(ids).map(of).collect())
}

/// Counts a handshake with this key of an enrollment.
pub(super) fn count(counters: &ByEnrollment, enrollment: &str, which: WhichKey) {
    if let Some([current, next]) = counters.get(enrollment) {
        match which {
            WhichKey::Current => current.count(),
            WhichKey::Next => next.count(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        psk::{Enrollments, Key, Kind, NextKey, Principal, Reissue},
        testing::store::Memory,
    };

    fn key(byte: u8) -> Key {
        Key::from_hex(&hex::encode([byte; 16])).unwrap()
    }

    fn enrollment(name: &str, own: u8, next: Option<u8>) -> Enrollment {
        Enrollment {
            name: name.into(),
            product_key: "a1".into(),
            kind: Kind::Derived(key(own)),
            reissue: Reissue::Always,
            next: next.map(|byte| NextKey { key: key(byte), identity: None }),
            guards: Default::default(),
        }
    }

    fn client(enrollment: Enrollment, key: WhichKey) -> Principal {
        Principal { enrollment: Arc::new(enrollment), device: None, own: None, key }
    }

    async fn known(store: &Memory, enrollment: &Enrollment) -> [Option<(u64, bool)>; 2] {
        let uses = reported(store, &enrollment.name, enrollment.key_ids().as_ref()).await.unwrap();
        let of = |(_, used): &(WhichKey, Option<KeyUse>)| {
            used.as_ref().map(|used| (used.handshakes, used.last.is_some()))
        };
        [of(&uses[0]), of(&uses[1])]
    }

    #[tokio::test]
    async fn the_store_has_each_handshake_once_however_often_it_is_written_to() {
        let (store, counters) = (Memory::default(), UseCounters::default());
        let both = enrollment("lamp", 1, Some(2));
        let index = Enrollments::counted([both.clone(), enrollment("plug", 3, None)], &counters);
        assert_eq!(known(&store, &both).await, [None, None]);
        counters.note(&store).await.unwrap();
        assert_eq!(known(&store, &both).await, [Some((0, false)); 2], "counted from now on");
        // Each worker has a copy of the index, and all copies count together.
        let copies = [index.unshared(), index.unshared()];
        for copy in &copies {
            copy.count_use(&client(both.clone(), WhichKey::Next));
            copy.count_use(&client(enrollment("plug", 3, None), WhichKey::Current));
        }
        for _ in 0..3 {
            counters.note(&store).await.unwrap();
        }
        assert_eq!(known(&store, &both).await, [Some((0, false)), Some((2, true))]);
        assert!(store.key_uses("plug").await.unwrap().is_empty());
        // After a reload with the keys swapped, the counts stay with their keys.
        let swapped = enrollment("lamp", 2, Some(1));
        let index = Enrollments::counted([swapped.clone()], &counters);
        index.count_use(&client(swapped.clone(), WhichKey::Next));
        counters.note(&store).await.unwrap();
        assert_eq!(known(&store, &swapped).await, [Some((2, true)), Some((1, true))]);
        // The enrollment has one key again.
        Enrollments::counted([enrollment("lamp", 2, None)], &counters);
        assert!(counters.all().is_empty());
    }

    #[tokio::test]
    async fn handshakes_that_could_not_be_written_are_written_later() {
        let (mut store, counters) = (Memory::default(), UseCounters::default());
        let both = enrollment("lamp", 1, Some(2));
        let index = Enrollments::counted([both.clone()], &counters);
        counters.note(&store).await.unwrap();
        index.count_use(&client(both.clone(), WhichKey::Current));
        store.set_busy(true);
        assert!(counters.note(&store).await.is_err());
        store.set_busy(false);
        counters.note(&store).await.unwrap();
        assert_eq!(known(&store, &both).await, [Some((1, true)), Some((0, false))]);
        // A write whose answer is lost was carried out, so the next call counts its handshake a
        // second time.
        index.count_use(&client(both.clone(), WhichKey::Next));
        store.lose_answers(1, 1000);
        assert!(counters.note(&store).await.is_err());
        store.lose_answers(1, 0);
        counters.note(&store).await.unwrap();
        assert_eq!(known(&store, &both).await, [Some((1, true)), Some((2, true))]);
    }

    #[test]
    fn an_id_is_that_of_one_key_of_one_enrollment_and_begins_no_derived_key() {
        let ids = |name: &str, own, next| enrollment(name, own, Some(next)).key_ids().unwrap();
        let [one, other] = ids("lamp", 1, 2);
        assert_eq!([&other, &one], ids("lamp", 2, 1).each_ref());
        assert_ne!(one, other);
        assert_ne!(one, ids("lamps", 1, 2)[0]);
        assert_eq!(one.as_str().len(), 16);
        let derived = key(1).derive(b"certdist: ID of a pre-shared key");
        assert!(!hex::encode(derived.as_bytes()).starts_with(one.as_str()));
        assert_eq!(enrollment("lamp", 1, None).key_ids(), None);
    }
}
