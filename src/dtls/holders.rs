//! Limits the sessions per holder of a key. A device needs one session, so only a few sessions may
//! be open with its key at a time. For a key that many devices share, each address and port counts
//! separately. The sessions of a holder form a linked list, newest first. This bookkeeping costs 15
//! bytes per session.

use hashbrown::HashTable;

use super::{
    session::Session,
    table::{Handle, Table},
};

/// Position of a session in its holder's list.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Link {
    /// Hash of the holder under a random key; 0 if the session has no holder.
    holder: u32,
    /// The next older session of the same holder.
    older: Option<Older>,
}

/// Index of a session's slot in the table, plus one.
type Older = std::num::NonZeroU32;

impl Link {
    /// Creates the link of a session of this holder. The session is not in the list yet.
    pub(crate) fn of(holder: u64) -> Self {
        Self { holder: (holder as u32).max(1), older: None }
    }
}

/// The sessions of each holder, as linked lists. The hash table contains the slot index of
/// the newest session in each list, and each [`Link`] leads to the next older one.
#[derive(Default)]
pub(crate) struct Holders(HashTable<u32>);

impl Holders {
    /// Adds a session to its holder's list. If the list is now longer than `limit`, returns the
    /// holder's oldest session, which the caller must end.
    pub(crate) fn add<P>(
        &mut self,
        sessions: &mut Table<Session<P>>,
        handle: Handle,
        limit: usize,
    ) -> Option<Handle> {
        let holder = holder_at(sessions, handle.index())?;
        let newest = self.0.find_mut(spread(holder), |&index| holder_at(sessions, index) == Some(holder));
        match newest {
            Some(newest) => {
                let older = std::mem::replace(newest, handle.index());
                sessions.get_mut(handle)?.link.older = Older::new(older + 1);
            }
            None => {
                let hash = |&index: &u32| holder_at(sessions, index).map_or(0, spread);
                self.0.insert_unique(spread(holder), handle.index(), hash);
            }
        }
        let (mut count, mut oldest) = (1, handle.index());
        while let Some(older) = older_of(sessions, oldest) {
            (count, oldest) = (count + 1, older);
        }
        if count > limit { sessions.handle_at(oldest) } else { None }
    }

    /// Removes a session from its holder's list. Must be called before the session is removed from
    /// the table.
    pub(crate) fn remove<P>(&mut self, sessions: &mut Table<Session<P>>, handle: Handle) {
        let Some(holder) = holder_at(sessions, handle.index()) else { return };
        let older = older_of(sessions, handle.index());
        let found = self.0.find_entry(spread(holder), |&index| holder_at(sessions, index) == Some(holder));
        let Ok(mut newest) = found else { return };
        let mut at = *newest.get();
        if at == handle.index() {
            match older {
                Some(older) => *newest.get_mut() = older,
                None => drop(newest.remove()),
            }
            return;
        }
        // The loop is bounded by the number of sessions that a holder may have.
        while let Some(next) = older_of(sessions, at) {
            if next == handle.index() {
                if let Some(session) = sessions.at_mut(at) {
                    session.link.older = older.and_then(|older| Older::new(older + 1));
                }
                return;
            }
            at = next;
        }
    }

    #[cfg(any(test, feature = "testing"))]
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

fn holder_at<P>(sessions: &Table<Session<P>>, index: u32) -> Option<u32> {
    sessions.at(index).map(|session| session.link.holder).filter(|&holder| holder != 0)
}

fn older_of<P>(sessions: &Table<Session<P>>, index: u32) -> Option<u32> {
    sessions.at(index)?.link.older.map(|older| older.get() - 1)
}

/// Spreads a 32-bit hash over 64 bits, because the hash table uses bits from both ends.
fn spread(holder: u32) -> u64 {
    u64::from(holder).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}
