//! A table whose entries are found by handle, by path and by age. Handles are never
//! reused. Finding the least recently used entry and marking an entry as used take
//! constant time.

use std::{
    fmt,
    hash::{BuildHasher, RandomState},
    time::{Duration, Instant},
};

use hashbrown::HashTable;

use super::Path;

/// Identifies an entry of a table. Once the entry is removed, the handle stays invalid, even when
/// another entry uses the slot.
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

impl Handle {
    /// Returns the slot of the entry.
    pub(crate) fn index(self) -> u32 {
        self.index
    }
}

/// Marks the end of a list.
const NONE: u32 = u32::MAX;

/// Unit of time in the table. Times are counted in ticks since the table was created, and
/// only the low 32 bits are stored: 4 bytes instead of 16 in each of 100,000 entries.
/// These bits wrap after 1,541 days, but no entry stays untouched for that long.
const TICK: Duration = Duration::from_millis(31);

struct Slot<T> {
    serial: u32,
    older: u32,
    younger: u32,
    /// Time of the last touch in ticks, rounded up.
    touched: u32,
    entry: Option<(Path, T)>,
}

/// Entries that are found by handle and by age. A listed entry is also found by its path, and each
/// path has at most one listed entry. The table holds at most `u32::MAX - 1` entries.
pub(crate) struct Table<T> {
    made: Instant,
    /// Latest time that was passed to any method, in ticks.
    latest: u64,
    slots: Vec<Slot<T>>,
    /// Indices of slots by the hash of their path. Only the slot stores the path itself.
    by_path: HashTable<u32>,
    hasher: RandomState,
    /// First empty slot. The other empty slots are chained to it through `younger`.
    free: u32,
    oldest: u32,
    youngest: u32,
    length: usize,
}

impl<T> Table<T> {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            made: now,
            latest: 0,
            slots: Vec::new(),
            by_path: HashTable::new(),
            hasher: RandomState::new(),
            free: NONE,
            oldest: NONE,
            youngest: NONE,
            length: 0,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.length
    }

    /// Adds an entry as the youngest and returns its handle. An entry already listed for
    /// the path is removed.
    pub(crate) fn insert(&mut self, now: Instant, path: Path, value: T) -> Handle {
        if let Some(old) = self.of(path) {
            self.remove(old);
        }
        let handle = self.insert_unlisted(now, path, value);
        let Self { slots, by_path, hasher, .. } = self;
        by_path.insert_unique(hasher.hash_one(path), handle.index, |&index| hash_of(hasher, slots, index));
        handle
    }

    /// Adds an unlisted entry, which is not found by its path.
    pub(crate) fn insert_unlisted(&mut self, now: Instant, path: Path, value: T) -> Handle {
        let touched = self.ticks(now);
        let index = self.free;
        let index = match self.slots.get_mut(index as usize) {
            Some(slot) => {
                self.free = slot.younger;
                slot.entry = Some((path, value));
                slot.touched = touched;
                index
            }
            None => {
                let entry = Some((path, value));
                self.slots.push(Slot { serial: 0, older: NONE, younger: NONE, touched, entry });
                (self.slots.len() - 1) as u32
            }
        };
        self.length += 1;
        self.link_youngest(index);
        Handle { index, serial: self.slots[index as usize].serial }
    }

    /// Changes the path of an unlisted entry.
    pub(crate) fn move_unlisted(&mut self, handle: Handle, path: Path) {
        if let Some(slot) = self.slots.get_mut(handle.index as usize)
            && slot.serial == handle.serial
            && let Some((place, _)) = &mut slot.entry
        {
            *place = path;
        }
    }

    /// Returns the entry listed for a path.
    pub(crate) fn of(&self, path: Path) -> Option<Handle> {
        let index = *self.by_path.find(self.hasher.hash_one(path), |&index| self.is_of(index, path))?;
        Some(Handle { index, serial: self.slots.get(index as usize)?.serial })
    }

    pub(crate) fn get(&self, handle: Handle) -> Option<&T> {
        self.entry(handle).map(|(_, value)| value)
    }

    pub(crate) fn path(&self, handle: Handle) -> Option<Path> {
        self.entry(handle).map(|&(path, _)| path)
    }

    pub(crate) fn get_mut(&mut self, handle: Handle) -> Option<&mut T> {
        let slot = self.slots.get_mut(handle.index as usize)?;
        if slot.serial == handle.serial { slot.entry.as_mut().map(|(_, value)| value) } else { None }
    }

    /// Makes an entry the youngest.
    pub(crate) fn touch(&mut self, now: Instant, handle: Handle) {
        let ticks = self.ticks(now);
        if self.entry(handle).is_some() {
            self.slots[handle.index as usize].touched = ticks;
            if self.youngest != handle.index {
                self.unlink(handle.index);
                self.link_youngest(handle.index);
            }
        }
    }

    pub(crate) fn remove(&mut self, handle: Handle) -> Option<(Path, T)> {
        let path = self.path(handle)?;
        let hash = self.hasher.hash_one(path);
        if let Ok(found) = self.by_path.find_entry(hash, |&index| index == handle.index) {
            found.remove();
        }
        self.unlink(handle.index);
        let slot = &mut self.slots[handle.index as usize];
        let entry = slot.entry.take();
        self.length -= 1;
        slot.serial = slot.serial.wrapping_add(1);
        slot.younger = self.free;
        self.free = handle.index;
        entry
    }

    /// Returns the least recently touched entry and the time it was touched, rounded up
    /// by at most a tick.
    pub(crate) fn oldest(&self) -> Option<(Instant, Handle)> {
        let slot = self.slots.get(self.oldest as usize)?;
        let age = (self.latest as u32).wrapping_sub(slot.touched);
        let touched = Duration::from_nanos((self.latest - u64::from(age)) * TICK.as_nanos() as u64);
        Some((self.made + touched, Handle { index: self.oldest, serial: slot.serial }))
    }

    /// Returns the entries in order of age, the oldest first.
    pub(crate) fn by_age(&self) -> impl Iterator<Item = Handle> {
        let mut next = self.oldest;
        std::iter::from_fn(move || {
            let slot = self.slots.get(next as usize)?;
            let index = std::mem::replace(&mut next, slot.younger);
            Some(Handle { index, serial: slot.serial })
        })
    }

    /// Returns the number of slots, used or free.
    pub(crate) fn places(&self) -> usize {
        self.slots.len()
    }

    /// Returns the entry in a slot, regardless of the slot's serial number.
    pub(crate) fn at(&self, index: u32) -> Option<&T> {
        self.slots.get(index as usize)?.entry.as_ref().map(|(_, value)| value)
    }

    pub(crate) fn at_mut(&mut self, index: u32) -> Option<&mut T> {
        self.slots.get_mut(index as usize)?.entry.as_mut().map(|(_, value)| value)
    }

    pub(crate) fn handle_at(&self, index: u32) -> Option<Handle> {
        let slot = self.slots.get(index as usize)?;
        slot.entry.as_ref().map(|_| Handle { index, serial: slot.serial })
    }

    fn entry(&self, handle: Handle) -> Option<&(Path, T)> {
        let slot = self.slots.get(handle.index as usize)?;
        if slot.serial == handle.serial { slot.entry.as_ref() } else { None }
    }

    fn is_of(&self, index: u32, path: Path) -> bool {
        let slot = self.slots.get(index as usize);
        slot.and_then(|slot| slot.entry.as_ref()).is_some_and(|&(found, _)| found == path)
    }

    fn ticks(&mut self, now: Instant) -> u32 {
        let ticks = now.saturating_duration_since(self.made).as_nanos().div_ceil(TICK.as_nanos());
        // The conversion to 64 bits loses nothing: even nanoseconds would fit for 580 years.
        self.latest = self.latest.max(ticks as u64);
        self.latest as u32
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

/// Returns the hash of a slot's path. `by_path` needs the hash when it grows. Every slot in
/// `by_path` has an entry, so the default of 0 is never used.
fn hash_of<T>(hasher: &RandomState, slots: &[Slot<T>], index: u32) -> u64 {
    let entry = slots.get(index as usize).and_then(|slot| slot.entry.as_ref());
    entry.map_or(0, |(path, _)| hasher.hash_one(path))
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;

    fn path(port: u16) -> Path {
        SocketAddr::from(([192, 0, 2, 1], port)).into()
    }

    fn drain(table: &mut Table<u32>) -> Vec<u32> {
        std::iter::from_fn(|| {
            let (_, handle) = table.oldest()?;
            table.remove(handle).map(|(_, value)| value)
        })
        .collect()
    }

    #[test]
    fn the_oldest_is_the_least_recently_touched() {
        let now = Instant::now();
        let mut table = Table::new(now);
        let handles: Vec<_> = (0..5).map(|n| table.insert(now, path(n as u16), n)).collect();
        table.touch(now, handles[0]);
        table.touch(now, handles[3]);
        table.touch(now, handles[3]);
        assert_eq!(table.remove(handles[2]), Some((path(2), 2)));
        assert_eq!((table.len(), table.places()), (4, 5));
        assert_eq!(drain(&mut table), [1, 4, 0, 3]);
        assert!(table.oldest().is_none());
    }

    #[test]
    fn a_handle_of_a_removed_entry_is_invalid() {
        let now = Instant::now();
        let mut table = Table::new(now);
        let first = table.insert(now, path(1), 1);
        assert_eq!(table.remove(first), Some((path(1), 1)));
        let second = table.insert(now, path(1), 2);
        assert_eq!(second.index, first.index, "the slot is used again");
        assert_eq!(table.get(first), None);
        assert_eq!(table.get_mut(first), None);
        assert_eq!(table.remove(first), None);
        table.touch(now, first);
        assert_eq!(table.get(second), Some(&2));
    }

    #[test]
    fn each_path_finds_its_own_entry_while_thousands_come_and_go() {
        let now = Instant::now();
        let mut table = Table::new(now);
        for round in 0..3 {
            for port in 0..5000 {
                table.insert(now, path(port), u32::from(port) + round);
            }
            assert_eq!(table.len(), 5000, "an entry of the same path is replaced");
            for port in (0..5000).step_by(3) {
                let handle = table.of(path(port)).unwrap();
                assert_eq!(table.remove(handle), Some((path(port), u32::from(port) + round)));
                assert_eq!(table.of(path(port)), None);
            }
            for port in (1..5000).step_by(3) {
                assert_eq!(
                    table.of(path(port)).and_then(|handle| table.get(handle).copied()),
                    Some(u32::from(port) + round)
                );
            }
        }
    }

    #[test]
    fn a_time_is_never_early_and_at_most_a_tick_late() {
        let made = Instant::now();
        let mut table = Table::new(made);
        for micros in [0, 1, 30_999, 31_000, 31_001, 86_400_000_000] {
            let at = made + Duration::from_micros(micros);
            let handle = table.insert(at, path(1), 0);
            let (touched, _) = table.oldest().unwrap();
            assert!(touched >= at && touched < at + TICK);
            table.remove(handle);
        }
    }

    #[test]
    fn times_are_right_after_they_wrap() {
        const DAY: Duration = Duration::from_secs(86_400);
        let made = Instant::now();
        let mut table = Table::new(made);
        for days in [1540, 1541, 1542, 4000] {
            let at = made + DAY * days;
            let old = table.insert(at, path(1), 0);
            let young = table.insert(at + DAY, path(2), 1);
            let (touched, oldest) = table.oldest().unwrap();
            assert!(oldest == old && touched >= at && touched < at + TICK, "day {days}");
            table.remove(old);
            assert_eq!(table.oldest().unwrap().1, young);
            table.remove(young);
        }
    }
}
