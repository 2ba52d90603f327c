//! Uses of pre-shared keys in the store in memory.

use super::Memory;
use crate::store::{
    StoreFuture,
    key_use::{KeyUse, KeyUses, NewUse, NewUses},
};

impl KeyUses for Memory {
    fn note_key_uses(&self, uses: Vec<NewUses>) -> StoreFuture<'_, ()> {
        self.answer(|tables, now| {
            for NewUses { enrollment, keys } in uses {
                let known = tables.key_uses.entry(enrollment).or_default();
                known.retain(|known| keys.iter().any(|new| new.key == known.key));
                for NewUse { key, handshakes, last } in keys {
                    match known.iter_mut().find(|known| known.key == key) {
                        None => known.push(KeyUse { key, since: now, handshakes, last }),
                        Some(known) => {
                            known.handshakes += handshakes;
                            let stored = known.last.filter(|stored| *stored <= now || last.is_none());
                            known.last = stored.max(last);
                        }
                    }
                }
                known.sort_by(|one, other| one.key.cmp(&other.key));
            }
            Ok(())
        })
    }

    fn key_uses<'a>(&'a self, enrollment: &'a str) -> StoreFuture<'a, Vec<KeyUse>> {
        self.answer(|tables, _| Ok(tables.key_uses.get(enrollment).cloned().unwrap_or_default()))
    }
}
