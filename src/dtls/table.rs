//! A table of entries under handles that are never reused, in the order in
//! which they were last touched: the oldest is found, and any one is moved to
//! the young end, in constant time.

use std::{fmt, time::Instant};

/// Names an entry of a table. Once the entry is gone the handle leads nowhere,
/// even when its place is taken again.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Handle {
    index: u32,
    serial: u32,
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.index, self.serial)
    }
}

/// No entry: the end of a list.
const NONE: u32 = u32::MAX;

struct Slot<T> {
    serial: u32,
    older: u32,
    younger: u32,
    touched: Instant,
    value: Option<T>,
}

/// Entries by handle and by age. At most `u32::MAX - 1` of them.
pub(crate) struct Table<T> {
    slots: Vec<Slot<T>>,
    /// Empty slots, chained through `younger`.
    free: u32,
    oldest: u32,
    youngest: u32,
    length: usize,
}

impl<T> Table<T> {
    pub(crate) fn new() -> Self {
        Self { slots: Vec::new(), free: NONE, oldest: NONE, youngest: NONE, length: 0 }
    }

    pub(crate) fn len(&self) -> usize {
        self.length
    }

    /// Adds an entry as the youngest.
    pub(crate) fn insert(&mut self, now: Instant, value: T) -> Handle {
        let index = self.free;
        let index = match self.slots.get_mut(index as usize) {
            Some(slot) => {
                self.free = slot.younger;
                slot.value = Some(value);
                slot.touched = now;
                index
            }
            None => {
                let slot = Slot { serial: 0, older: NONE, younger: NONE, touched: now, value: Some(value) };
                self.slots.push(slot);
                (self.slots.len() - 1) as u32
            }
        };
        self.length += 1;
        self.link_youngest(index);
        Handle { index, serial: self.slots[index as usize].serial }
    }

    fn slot(&self, handle: Handle) -> Option<&Slot<T>> {
        self.slots
            .get(handle.index as usize)
            .filter(|slot| slot.serial == handle.serial && slot.value.is_some())
    }

    pub(crate) fn get(&self, handle: Handle) -> Option<&T> {
        self.slot(handle)?.value.as_ref()
    }

    pub(crate) fn get_mut(&mut self, handle: Handle) -> Option<&mut T> {
        let slot = self.slots.get_mut(handle.index as usize)?;
        if slot.serial == handle.serial { slot.value.as_mut() } else { None }
    }

    /// Makes an entry the youngest.
    pub(crate) fn touch(&mut self, now: Instant, handle: Handle) {
        if self.slot(handle).is_some() {
            self.slots[handle.index as usize].touched = now;
            if self.youngest != handle.index {
                self.unlink(handle.index);
                self.link_youngest(handle.index);
            }
        }
    }

    pub(crate) fn remove(&mut self, handle: Handle) -> Option<T> {
        self.slot(handle)?;
        self.unlink(handle.index);
        let slot = &mut self.slots[handle.index as usize];
        let value = slot.value.take();
        slot.serial = slot.serial.wrapping_add(1);
        slot.younger = self.free;
        self.free = handle.index;
        self.length -= 1;
        value
    }

    /// The entry that was touched longest ago, and when.
    pub(crate) fn oldest(&self) -> Option<(Instant, Handle)> {
        let slot = self.slots.get(self.oldest as usize)?;
        Some((slot.touched, Handle { index: self.oldest, serial: slot.serial }))
    }

    fn link_youngest(&mut self, index: u32) {
        let older = std::mem::replace(&mut self.youngest, index);
        let slot = &mut self.slots[index as usize];
        slot.older = older;
        slot.younger = NONE;
        match self.slots.get_mut(older as usize) {
            Some(older) => older.younger = index,
            None => self.oldest = index,
        }
    }

    fn unlink(&mut self, index: u32) {
        let Slot { older, younger, .. } = self.slots[index as usize];
        match self.slots.get_mut(older as usize) {
            Some(slot) => slot.younger = younger,
            None => self.oldest = younger,
        }
        match self.slots.get_mut(younger as usize) {
            Some(slot) => slot.older = older,
            None => self.youngest = older,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drain(table: &mut Table<u32>) -> Vec<u32> {
        std::iter::from_fn(|| {
            let (_, handle) = table.oldest()?;
            table.remove(handle)
        })
        .collect()
    }

    #[test]
    fn the_oldest_is_the_one_not_touched_longest() {
        let now = Instant::now();
        let mut table = Table::new();
        let handles: Vec<_> = (0..5).map(|n| table.insert(now, n)).collect();
        table.touch(now, handles[0]);
        table.touch(now, handles[3]);
        table.touch(now, handles[3]);
        assert_eq!(table.remove(handles[2]), Some(2));
        assert_eq!(table.len(), 4);
        assert_eq!(drain(&mut table), [1, 4, 0, 3]);
        assert!(table.oldest().is_none());
    }

    #[test]
    fn a_handle_of_a_removed_entry_leads_nowhere() {
        let now = Instant::now();
        let mut table = Table::new();
        let first = table.insert(now, 1);
        assert_eq!(table.remove(first), Some(1));
        let second = table.insert(now, 2);
        assert_eq!(second.index, first.index, "the place is taken again");
        assert_eq!(table.get(first), None);
        assert_eq!(table.get_mut(first), None);
        assert_eq!(table.remove(first), None);
        table.touch(now, first);
        assert_eq!(table.get(second), Some(&2));
    }
}
