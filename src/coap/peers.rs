//! The peers, found by name. A name is a value of the type `K`, which the transport chooses. The
//! peers are stored contiguously, without gaps. There is one peer for each session, so a hash map,
//! in which up to half of the slots are empty, would waste much memory.

use std::hash::{BuildHasher, Hash, RandomState};

use hashbrown::HashTable;

use super::exchanges::Peer;

/// Peers and their exchanges.
pub(super) struct Peers<K> {
    list: Vec<(K, Peer)>,
    /// Indices into `list`, by the hash of the name.
    places: HashTable<u32>,
    hasher: RandomState,
}

impl<K: Copy + Eq + Hash> Peers<K> {
    pub(super) fn new() -> Self {
        Self { list: Vec::new(), places: HashTable::new(), hasher: RandomState::new() }
    }

    pub(super) fn len(&self) -> usize {
        self.list.len()
    }

    #[cfg(any(test, feature = "testing"))]
    pub(super) fn is_empty(&self) -> bool {
        self.list.is_empty() && self.places.is_empty()
    }

    pub(super) fn get_mut(&mut self, name: K) -> Option<&mut Peer> {
        let place = *self.places.find(self.hasher.hash_one(name), named(&self.list, name))?;
        self.list.get_mut(place as usize).map(|(_, peer)| peer)
    }

    /// Returns the peer with this name. Adds the peer if it is new.
    pub(super) fn get_or_insert(&mut self, name: K) -> &mut Peer {
        let Self { list, places, hasher } = self;
        let found = places.find(hasher.hash_one(name), named(list, name)).copied();
        let place = found.unwrap_or_else(|| {
            // An index fits into 32 bits: there is one peer for each session, and sessions
            // are counted in 32 bits.
            let place = list.len() as u32;
            list.push((name, Peer::default()));
            let hash = |&place: &u32| list.get(place as usize).map_or(0, |(name, _)| hasher.hash_one(name));
            places.insert_unique(hasher.hash_one(name), place, hash);
            place
        });
        &mut list[place as usize].1
    }

    /// Removes a peer, and moves the last peer in the list into its slot.
    pub(super) fn remove(&mut self, name: K) {
        let Self { list, places, hasher } = self;
        let Ok(found) = places.find_entry(hasher.hash_one(name), named(list, name)) else { return };
        let (place, _) = found.remove();
        let last = list.len() as u32 - 1;
        if let Some(&(moved, _)) = list.last()
            && let Some(at) = places.find_mut(hasher.hash_one(moved), |&at| at == last)
        {
            *at = place;
        }
        list.swap_remove(place as usize);
    }
}

/// Returns a predicate that tells whether an index belongs to the peer with this name.
fn named<K: Eq>(list: &[(K, Peer)], name: K) -> impl Fn(&u32) -> bool {
    move |&place| list.get(place as usize).is_some_and(|(found, _)| *found == name)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Returns the next message ID of a peer. Tests use this ID to recognize the peer.
    fn mark(peer: &mut Peer) -> u16 {
        let mark = peer.own_id(|| 0);
        assert_eq!(peer.own_id(|| 0), mark + 1);
        mark
    }

    proptest! {
        #[test]
        fn each_name_keeps_its_peer_when_others_are_removed(steps in prop::collection::vec((any::<bool>(), 0..12u8), 0..200)) {
            let mut peers = Peers::new();
            let mut expected = std::collections::HashMap::new();
            for (comes, name) in steps {
                if comes {
                    prop_assert_eq!(mark(peers.get_or_insert(name)), *expected.get(&name).unwrap_or(&0));
                    *expected.entry(name).or_insert(0) += 2;
                } else {
                    peers.remove(name);
                    expected.remove(&name);
                }
                prop_assert_eq!(peers.len(), expected.len());
                for name in 0..12 {
                    let found = peers.get_mut(name).map(mark);
                    prop_assert_eq!(found, expected.get(&name).copied());
                    expected.entry(name).and_modify(|next| *next += 2);
                }
            }
        }
    }
}
