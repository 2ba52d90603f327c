//! Layout of the pages of an SQLite file. Finds the bytes of a page that SQLite does not use, which
//! may contain former values. The functions here set these bytes to zero in memory, and leave every
//! other byte as it is. They perform no I/O, and accept any bytes. The layout is described at
//! <https://www.sqlite.org/fileformat2.html>.

use std::ops::Range;

/// Length of the file header at the beginning of the first page.
const FILE_HEADER: usize = 100;

/// Minimum number of bytes of a page that SQLite uses.
const MIN_USABLE: usize = 480;

/// Length of the head of a free block: the position of the next free block, and the length of this
/// one.
const FREE_BLOCK_HEAD: usize = 4;

/// Minimum size of a cell.
const MIN_CELL: usize = 4;

/// Maximum length of the payload of a cell (2 GiB less 1 byte).
const MAX_PAYLOAD: u64 = 0x7fff_ffff;

/// Position in the file at which SQLite sets its locks. The page that contains this position is
/// never used.
const LOCK_BYTE: u64 = 0x4000_0000;

/// Facts about a file from its first page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Layout {
    pub page_size: usize,
    /// Number of bytes of each page that SQLite uses. Extensions of SQLite may use the rest of the
    /// page.
    pub usable: usize,
    /// First page of the list of free pages; 0 if there is none.
    pub first_trunk: u32,
    /// Number of free pages.
    pub free_pages: u32,
    /// Set if some pages have pointers to other pages (`auto_vacuum`).
    pub has_pointer_map: bool,
}

impl Layout {
    /// Reads the first page of a file. Returns `None` if it is damaged.
    pub(super) fn of(first: &[u8]) -> Option<Self> {
        let page_size = match word(first, 16)? {
            1 => 65_536,
            size => size,
        };
        let usable = page_size.checked_sub(usize::from(*first.get(20)?))?;
        let is_sound = page_size == first.len() && page_size.is_power_of_two() && usable >= MIN_USABLE;
        is_sound.then_some(Self {
            page_size,
            usable,
            first_trunk: long(first, 32)?,
            free_pages: long(first, 36)?,
            has_pointer_map: long(first, 52)? != 0,
        })
    }

    /// Number of the page that is never used.
    pub(super) fn lock_page(&self) -> u64 {
        LOCK_BYTE / self.page_size as u64 + 1
    }

    /// Number of bytes of a value that one overflow page can hold.
    fn overflow_room(&self) -> u64 {
        self.usable as u64 - 4
    }
}

/// Chain of overflow pages, which hold the rest of a long value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Chain {
    pub first: u32,
    /// Number of pages.
    pub pages: u64,
    /// Number of bytes of the value in the last page.
    pub last: usize,
}

/// Returns whether a page that is not free is a page of a b-tree. An overflow page begins with the
/// highest byte of a page number. In a file of fewer than [`MAX_PAGES`] pages, this byte never
/// looks like the type of a b-tree page.
pub(super) fn is_tree(page: &[u8], number: u32) -> bool {
    page.get(header_of(number)).is_some_and(|kind| Kind::of(*kind).is_some())
}

/// Number of pages from which on the highest byte of a page number can look like the type of a
/// b-tree page.
pub(super) const MAX_PAGES: u32 = 2 << 24;

/// Type of a b-tree page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    InnerIndex,
    InnerTable,
    LeafIndex,
    LeafTable,
}

impl Kind {
    fn of(byte: u8) -> Option<Self> {
        match byte {
            2 => Some(Self::InnerIndex),
            5 => Some(Self::InnerTable),
            10 => Some(Self::LeafIndex),
            13 => Some(Self::LeafTable),
            _ => None,
        }
    }

    fn is_leaf(self) -> bool {
        matches!(self, Self::LeafIndex | Self::LeafTable)
    }
}

/// Returns the position of the header in a b-tree page.
fn header_of(number: u32) -> usize {
    if number == 1 { FILE_HEADER } else { 0 }
}

/// Sets the unused bytes of a b-tree page to zero: the gap between the pointers and the cells, the
/// free blocks and the fragments. Adds the overflow chains of the page's cells to `chains`. Returns
/// whether a byte has changed. Returns `None` and changes nothing if the page is damaged according
/// to the rules of `PRAGMA integrity_check`.
pub(super) fn wipe_tree(
    page: &mut [u8],
    number: u32,
    layout: &Layout,
    chains: &mut Vec<Chain>,
) -> Option<bool> {
    let mask = used(page, number, layout, chains)?;
    let mut removed = 0;
    for (byte, kept) in page.iter_mut().zip(mask) {
        removed |= *byte & !kept;
        *byte &= kept;
    }
    Some(removed != 0)
}

/// Returns a mask of the usable bytes of a b-tree page: 255 for each byte that is used, and 0 for
/// the others.
fn used(page: &[u8], number: u32, layout: &Layout, chains: &mut Vec<Chain>) -> Option<Vec<u8>> {
    let header = header_of(number);
    let kind = Kind::of(*page.get(header)?)?;
    let cells = word(page, header + 3)?;
    let content = match word(page, header + 5)? {
        0 => 65_536,
        content => content,
    };
    let pointers = header + if kind.is_leaf() { 8 } else { 12 };
    let gap = pointers + 2 * cells;
    if page.len() != layout.page_size || gap > content || content > layout.usable {
        return None;
    }
    let mut mask = vec![0; layout.usable];
    mask.get_mut(..gap)?.fill(255);
    let mut unused = layout.usable - content;
    for cell in 0..cells {
        let start = word(page, pointers + 2 * cell)?;
        let size = cell_size(page, start, kind, layout, chains)?;
        let area = mask.get_mut(start..start + size)?;
        if start < content || area.contains(&255) {
            return None;
        }
        area.fill(255);
        unused = unused.checked_sub(size)?;
    }
    let (mut block, mut end) = (word(page, header + 1)?, content);
    while block != 0 {
        let size = word(page, block + 2)?;
        let area = mask.get_mut(block..block + size)?;
        // Two free blocks are at least four bytes apart. SQLite would have joined closer ones.
        let is_apart = block >= end && (end == content || block >= end + MIN_CELL);
        if !is_apart || size < FREE_BLOCK_HEAD || area.contains(&255) {
            return None;
        }
        area.get_mut(..FREE_BLOCK_HEAD)?.fill(255);
        unused = unused.checked_sub(size)?;
        (block, end) = (word(page, block)?, block + size);
    }
    // The remaining unused bytes are fragments, whose total is in the header.
    (unused == usize::from(*page.get(header + 7)?)).then_some(mask)
}

/// Returns the size of the cell at `start`.
fn cell_size(
    page: &[u8],
    start: usize,
    kind: Kind,
    layout: &Layout,
    chains: &mut Vec<Chain>,
) -> Option<usize> {
    let usable = layout.usable;
    let mut at = start + if kind.is_leaf() { 0 } else { 4 };
    let first = varint(page, &mut at)?;
    if kind == Kind::InnerTable {
        return Some(at - start);
    }
    let payload = Some(first).filter(|payload| *payload <= MAX_PAYLOAD)?;
    let min = (usable - 12) * 32 / 255 - 23;
    let max = if kind == Kind::LeafTable {
        varint(page, &mut at)?;
        usable - 35
    } else {
        (usable - 12) * 64 / 255 - 23
    };
    let head = at - start;
    if payload <= max as u64 {
        return Some((head + payload as usize).max(MIN_CELL));
    }
    let room = layout.overflow_room();
    let local = match min + ((payload - min as u64) % room) as usize {
        fits if fits <= max => fits,
        _ => min,
    };
    let left = payload - local as u64;
    let pages = left.div_ceil(room);
    let last = (left - (pages - 1) * room) as usize;
    chains.push(Chain { first: long(page, at + local)?, pages, last });
    Some(head + local + 4)
}

/// Returns the page that follows in a chain of overflow pages or in the list of free pages. Returns
/// 0 at the end of the chain or list.
pub(super) fn next(page: &[u8]) -> Option<u32> {
    long(page, 0)
}

/// Sets the unused bytes of the last page of an overflow chain to zero. Returns whether a byte has
/// changed.
pub(super) fn wipe_tail(page: &mut [u8], layout: &Layout, chain: &Chain) -> Option<bool> {
    wipe(page, 4 + chain.last..layout.usable)
}

/// Sets a free page to zero. The page must be a leaf of the list of free pages, which has no
/// entries itself. Returns whether a byte has changed.
pub(super) fn wipe_free(page: &mut [u8]) -> Option<bool> {
    let whole = 0..page.len();
    wipe(page, whole)
}

/// Sets the unused bytes of a trunk page of the list of free pages to zero. Returns whether a byte
/// has changed, or `None` if the page is damaged.
pub(super) fn wipe_trunk(page: &mut [u8], layout: &Layout) -> Option<bool> {
    let entries = leaves(page, layout)?.count();
    wipe(page, 8 + 4 * entries..layout.usable)
}

/// Returns the free pages that a trunk page of the list names, or `None` if the trunk page is
/// damaged.
pub(super) fn leaves<'p>(page: &'p [u8], layout: &Layout) -> Option<impl Iterator<Item = u32> + use<'p>> {
    let entries = usize::try_from(long(page, 4)?).ok()?;
    if entries > layout.usable / 4 - 2 {
        return None;
    }
    let entries = page.get(8..8 + 4 * entries)?;
    Some(entries.chunks_exact(4).filter_map(|entry| long(entry, 0)))
}

fn wipe(page: &mut [u8], range: Range<usize>) -> Option<bool> {
    let unused = page.get_mut(range)?;
    let is_dirty = unused.iter().any(|byte| *byte != 0);
    unused.fill(0);
    Some(is_dirty)
}

fn word(bytes: &[u8], at: usize) -> Option<usize> {
    let bytes = bytes.get(at..at + 2)?.try_into().ok()?;
    Some(u16::from_be_bytes(bytes).into())
}

fn long(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// Reads an integer of 1 to 9 bytes, and moves `at` behind it. Each of the first 8 bytes
/// contributes 7 bits, and the ninth contributes 8.
fn varint(bytes: &[u8], at: &mut usize) -> Option<u64> {
    let mut value = 0;
    for position in 0..9 {
        let byte = *bytes.get(*at)?;
        *at += 1;
        if position == 8 {
            return Some(value << 8 | u64::from(byte));
        }
        value = value << 7 | u64::from(byte & 0x7f);
        if byte < 0x80 {
            break;
        }
    }
    Some(value)
}

#[cfg(test)]
mod tests;
