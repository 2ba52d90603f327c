//! Removes traces of former values from the file, in short transactions, while other processes read
//! and write. SQLite leaves traces in bytes that it does not use: in gaps between the cells of a
//! page if it has moved cells, and in free blocks and free pages if a process writes without
//! `secure_delete`. The pages are read and written through SQLite (`sqlite_dbpage`), so that the
//! log and the caches of all processes stay right. If single pages cannot be wiped, the whole file
//! is rewritten.

use std::{
    hash::{DefaultHasher, Hasher},
    path::Path,
    time::{Duration, Instant},
};

use rusqlite::{CachedStatement, Connection, ErrorCode, Transaction, TransactionBehavior, ffi};
use zeroize::Zeroizing;

use super::{
    connection,
    page::{self, Chain, Layout},
    store_error,
    unfinished::Turns,
};
use crate::store::{StoreError, seal_step::SealStep};

/// Maximum number of bytes that one transaction writes.
const WRITTEN: usize = 512 << 10;

/// Maximum time for which a transaction takes further pages.
const SLICE: Duration = Duration::from_millis(10);

/// Number of pages that one read transaction searches before the pages with traces are wiped.
const STRIDE: u32 = 65_536;

/// Maximum number of searches of the whole file after the first pass, which wipes the file in
/// strides.
const MAX_SEARCHES: u32 = 5;

/// Number of pages after which progress is reported.
const TOLD: u32 = 1024;

/// Amount of work that removing the traces took.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Wiped {
    /// Number of pages that were written.
    pub pages: u64,
    /// Maximum number of pages that one transaction wrote.
    pub largest: usize,
    /// Number of searches of the whole file after the first pass.
    pub searches: u32,
}

/// Removes all traces of former values from the file. Traces in the log stay until SQLite empties
/// the log. The values in use must be sealed already. Otherwise, SQLite could leave new traces
/// during the wipe.
pub(super) fn wipe(
    path: &Path,
    writer: &Connection,
    progress: &mut dyn FnMut(SealStep),
) -> Result<Wiped, StoreError> {
    let failed = |error| store_error(path, error);
    if let Some(reason) = obstacle(writer).map_err(failed)? {
        tracing::warn!(
            path = %path.display(),
            reason,
            "rewriting the whole database to remove traces of former values; registrations and first issues wait \
             meanwhile, and the disk needs as much additional space as the database has"
        );
        writer.execute_batch("VACUUM").map_err(failed)?;
        return Ok(Wiped::default());
    }
    let reader = connection::open_reader(path)?;
    let mut wipe = Wipe { reader: &reader, writer, wiped: Wiped::default() };
    wipe.run(progress).map_err(failed)?;
    Ok(wipe.wiped)
}

/// Returns the reason why single pages cannot be wiped; `None` if they can.
fn obstacle(connection: &Connection) -> rusqlite::Result<Option<&'static str>> {
    const HAS_TABLE: &str = "SELECT EXISTS (SELECT 1 FROM pragma_module_list WHERE name = 'sqlite_dbpage')";
    if !connection.query_row(HAS_TABLE, (), |row| row.get(0))? {
        return Ok(Some("SQLite was built without SQLITE_ENABLE_DBPAGE_VTAB"));
    }
    let snapshot = Transaction::new_unchecked(connection, TransactionBehavior::Deferred)?;
    let pages = Pages::of_any(&snapshot)?;
    Ok(pages.obstacle())
}

/// A page with unused bytes that are not zero.
struct Note {
    number: u32,
    /// Hash of the bytes that were read.
    hash: u64,
}

/// Pages with traces, from one read transaction.
struct Search {
    notes: Vec<Note>,
    tails: Tails,
    /// First page that was not searched, if the search has not reached the end.
    next: Option<u32>,
    /// Number of pages of the file.
    pages: u32,
}

struct Wipe<'a> {
    reader: &'a Connection,
    writer: &'a Connection,
    wiped: Wiped,
}

impl Wipe<'_> {
    /// Removes all traces.
    ///
    /// All values are sealed, so that no new trace arises. But when another process inserts a row,
    /// SQLite can move a page's traces from a page that is not wiped yet to a page that is already
    /// wiped. The file is therefore searched again, in one read transaction. If every page that
    /// this search finds is unchanged when it is wiped, nothing has moved, and no trace is left.
    /// Unused bytes that arise later are copies of sealed values.
    ///
    /// If a page has changed, the file is searched again. While many processes write, every search
    /// may find such a page, so the searches end after [`MAX_SEARCHES`]. A trace would be left only
    /// if SQLite had moved it during each search. SQLite hardly ever moves a page's content except
    /// to insert rows, and these overwrite its traces.
    fn run(&mut self, progress: &mut dyn FnMut(SealStep)) -> rusqlite::Result<()> {
        let mut next = Some(1);
        while let Some(from) = next {
            let found = self.search(from, STRIDE, Tails::Left, &mut |_, _| ())?;
            self.write(&found)?;
            next = found.next;
            progress(SealStep::Wiping(next.unwrap_or(found.pages).into(), found.pages.into()));
        }
        let mut is_same = false;
        while !is_same && self.wiped.searches < MAX_SEARCHES {
            self.wiped.searches += 1;
            let told = &mut |done: u32, total: u32| progress(SealStep::Checking(done.into(), total.into()));
            let found = self.search(1, u32::MAX, Tails::Examined, told)?;
            is_same = self.write(&found)?;
        }
        Ok(())
    }

    /// Searches up to `stride` pages in one read transaction.
    fn search(
        &self,
        from: u32,
        stride: u32,
        tails: Tails,
        progress: &mut dyn FnMut(u32, u32),
    ) -> rusqlite::Result<Search> {
        let snapshot = Transaction::new_unchecked(self.reader, TransactionBehavior::Deferred)?;
        let mut pages = Pages::new(&snapshot)?;
        let (mut notes, mut next) = (Vec::new(), None);
        for number in from..=pages.count {
            if number - from >= stride {
                next = Some(number);
                break;
            }
            if let Some(Dirty { hash, .. }) = pages.examine(number, tails)? {
                notes.push(Note { number, hash });
            }
            if number % TOLD == 0 {
                progress(number, pages.count);
            }
        }
        progress(next.unwrap_or(pages.count), pages.count);
        Ok(Search { notes, tails, next, pages: pages.count })
    }

    /// Wipes pages in short transactions, with pauses. Returns whether all pages were still as the
    /// search had found them.
    fn write(&mut self, found: &Search) -> rusqlite::Result<bool> {
        let mut turns = Turns::new(self.writer, &|| false);
        let (mut left, mut is_same) = (&found.notes[..], true);
        while !left.is_empty() {
            let (done, is_slice_same) = self.write_slice(left, found.tails)?;
            is_same &= is_slice_same;
            left = &left[done..];
            turns.end();
        }
        Ok(is_same)
    }

    /// Wipes the first pages of `notes` in one transaction. Returns the number of these pages,
    /// which is not 0, and whether they were as noted.
    fn write_slice(&mut self, notes: &[Note], tails: Tails) -> rusqlite::Result<(usize, bool)> {
        const WRITE: &str = "UPDATE sqlite_dbpage SET data = ?2 WHERE pgno = ?1";
        let notes = self.read_before(notes)?;
        let transaction = connection::begin(self.writer)?;
        let begun = Instant::now();
        let mut pages = Pages::new(&transaction)?;
        let (mut done, mut written, mut is_same) = (0, 0, true);
        for note in notes {
            if done > 0 && begun.elapsed() >= SLICE {
                break;
            }
            done += 1;
            let dirty = match pages.examine(note.number, tails) {
                Ok(dirty) => dirty,
                // The page has changed. The next search determines whether the page is damaged.
                Err(error) if is_damage(&error) => None,
                Err(error) => return Err(error),
            };
            let is_as_noted = dirty.as_ref().is_some_and(|dirty| dirty.hash == note.hash);
            is_same &= is_as_noted;
            for (number, content) in dirty.into_iter().flat_map(|dirty| dirty.pages) {
                // The end of a chain is wiped only if the search has found that the chain is sound.
                if number == note.number || is_as_noted {
                    transaction.prepare_cached(WRITE)?.execute((number, &content[..]))?;
                    written += 1;
                }
            }
        }
        drop(pages);
        transaction.commit()?;
        self.wiped.pages += written as u64;
        self.wiped.largest = self.wiped.largest.max(written);
        Ok((done, is_same))
    }

    /// Reads the pages of the next transaction in advance, so that the transaction need not wait
    /// for the disk while it holds the lock. Returns the notes of these pages.
    fn read_before<'n>(&self, notes: &'n [Note]) -> rusqlite::Result<&'n [Note]> {
        let snapshot = Transaction::new_unchecked(self.writer, TransactionBehavior::Deferred)?;
        let mut pages = Pages::new(&snapshot)?;
        let notes = &notes[..notes.len().min((WRITTEN / pages.layout.page_size).max(1))];
        for note in notes {
            // Pages that no longer exist are skipped here; the transaction notices them.
            if note.number <= pages.count {
                pages.read(note.number)?;
            }
        }
        Ok(notes)
    }
}

/// Treatment of the ends of overflow chains.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tails {
    Left,
    /// The ends are wiped, too. All pages of the file are examined, so that a page that is in two
    /// chains is noticed.
    Examined,
}

/// Use of a page, according to the list of free pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Used,
    /// A free page that the list names as an entry.
    FreeLeaf,
    /// A free page that holds entries of the list.
    FreeTrunk,
}

/// The free pages, as a bit for each page of the file.
#[derive(Default)]
struct Free {
    leaves: Vec<u64>,
    trunks: Vec<u64>,
}

impl Free {
    fn role(&self, number: u32) -> Role {
        if has(&self.leaves, number) {
            Role::FreeLeaf
        } else if has(&self.trunks, number) {
            Role::FreeTrunk
        } else {
            Role::Used
        }
    }

    /// Adds a page. Returns false if the page cannot be free, or is already in the list. A page
    /// that is in the list twice could make the list endless.
    fn add(&mut self, number: u32, role: Role, count: u32) -> bool {
        let bits = if role == Role::FreeLeaf { &mut self.leaves } else { &mut self.trunks };
        (2..=count).contains(&number)
            && set(bits, number)
            && !(has(&self.leaves, number) && has(&self.trunks, number))
    }
}

/// Returns a bit for each page of a file, rounded up to whole words.
fn bits_of(pages: u32) -> Vec<u64> {
    vec![0; pages as usize / 64 + 1]
}

fn has(bits: &[u64], number: u32) -> bool {
    bits.get(number as usize / 64).is_some_and(|word| word >> (number % 64) & 1 == 1)
}

/// Sets the bit of a page. Returns whether the bit exists and was not set before.
fn set(bits: &mut [u64], number: u32) -> bool {
    let Some(word) = bits.get_mut(number as usize / 64) else { return false };
    let bit = 1 << (number % 64);
    let is_new = *word & bit == 0;
    *word |= bit;
    is_new
}

/// A page with unused bytes that are not zero.
struct Dirty {
    /// Hash of the bytes that were read.
    hash: u64,
    /// Pages to write, as their numbers and new contents.
    pages: Vec<(u32, Vec<u8>)>,
}

/// The pages of the file in an open transaction.
struct Pages<'c> {
    select: CachedStatement<'c>,
    layout: Layout,
    /// Number of pages.
    count: u32,
    free: Free,
    /// Overflow pages of the chains that were examined. They show whether two chains share a page:
    /// the chain of a removed row could lead to pages that now belong to other rows.
    chained: Vec<u64>,
    /// The page that was read last.
    page: Zeroizing<Vec<u8>>,
}

impl<'c> Pages<'c> {
    /// Reads the layout and the free pages of a file. Fails if the file has an
    /// [`obstacle`](Self::obstacle).
    fn new(connection: &'c Connection) -> rusqlite::Result<Self> {
        let mut pages = Self::of_any(connection)?;
        if let Some(reason) = pages.obstacle() {
            let reason = format!("{reason} now; run this again");
            return Err(rusqlite::Error::SqliteFailure(ffi::Error::new(ffi::SQLITE_ABORT), Some(reason)));
        }
        pages.free = pages.read_free()?;
        Ok(pages)
    }

    /// Reads the layout of any file.
    fn of_any(connection: &'c Connection) -> rusqlite::Result<Self> {
        let count = connection.query_row("PRAGMA page_count", (), |row| row.get(0))?;
        let select = connection.prepare_cached("SELECT data FROM sqlite_dbpage WHERE pgno = ?1")?;
        let layout =
            Layout { page_size: 0, usable: 0, first_trunk: 0, free_pages: 0, has_pointer_map: false };
        let (free, chained, page) = (Free::default(), bits_of(count), Zeroizing::default());
        let mut pages = Self { select, layout, count, free, chained, page };
        pages.read(1)?;
        pages.layout = Layout::of(&pages.page).ok_or_else(|| damaged(1))?;
        Ok(pages)
    }

    /// Returns the reason why the type of a page cannot be told from its first byte in this file;
    /// `None` if it can.
    fn obstacle(&self) -> Option<&'static str> {
        if self.layout.has_pointer_map {
            Some("the database has auto_vacuum")
        } else if self.count >= page::MAX_PAGES {
            Some("the database has more than 33 million pages")
        } else {
            None
        }
    }

    /// Reads a page.
    fn read(&mut self, number: u32) -> rusqlite::Result<()> {
        let mut rows = self.select.query([number])?;
        let row = rows.next()?.ok_or_else(|| damaged(number))?;
        self.page.clear();
        self.page.extend_from_slice(row.get_ref(0)?.as_blob()?);
        Ok(())
    }

    /// Reads the list of free pages.
    fn read_free(&mut self) -> rusqlite::Result<Free> {
        let mut free = Free { leaves: bits_of(self.count), trunks: bits_of(self.count) };
        let (mut trunk, mut found) = (self.layout.first_trunk, 0);
        while trunk != 0 {
            if !free.add(trunk, Role::FreeTrunk, self.count) {
                return Err(damaged(trunk));
            }
            found += 1;
            self.read(trunk)?;
            for leaf in page::leaves(&self.page, &self.layout).ok_or_else(|| damaged(trunk))? {
                if !free.add(leaf, Role::FreeLeaf, self.count) {
                    return Err(damaged(trunk));
                }
                found += 1;
            }
            trunk = page::next(&self.page).ok_or_else(|| damaged(trunk))?;
        }
        if found == self.layout.free_pages { Ok(free) } else { Err(damaged(1)) }
    }

    /// Returns the pages to write so that a page has no traces, or `None` if it has none.
    fn examine(&mut self, number: u32, tails: Tails) -> rusqlite::Result<Option<Dirty>> {
        if u64::from(number) == self.layout.lock_page() {
            return Ok(None);
        }
        self.read(number)?;
        let mut chains = Vec::new();
        let mut wiped = Zeroizing::new(self.page.to_vec());
        let is_dirty = match self.free.role(number) {
            Role::FreeLeaf => page::wipe_free(&mut wiped),
            Role::FreeTrunk => page::wipe_trunk(&mut wiped, &self.layout),
            Role::Used if page::is_tree(&wiped, number) => {
                page::wipe_tree(&mut wiped, number, &self.layout, &mut chains)
            }
            // An overflow page is examined together with the page at which its chain begins.
            Role::Used => Some(false),
        };
        let mut pages = Vec::new();
        if is_dirty.ok_or_else(|| damaged(number))? {
            pages.push((number, wiped.to_vec()));
        }
        if tails == Tails::Left {
            chains.clear();
        }
        if pages.is_empty() && chains.is_empty() {
            return Ok(None);
        }
        let mut hasher = DefaultHasher::new();
        hasher.write(&self.page);
        for chain in chains {
            pages.extend(self.examine_tail(&chain, &mut hasher)?);
        }
        Ok((!pages.is_empty()).then(|| Dirty { hash: hasher.finish(), pages }))
    }

    /// Returns the new content of the last page of an overflow chain, or `None` if the page has no
    /// traces.
    fn examine_tail(
        &mut self,
        chain: &Chain,
        hasher: &mut DefaultHasher,
    ) -> rusqlite::Result<Option<(u32, Vec<u8>)>> {
        let (mut number, mut next) = (0, chain.first);
        for _ in 0..chain.pages {
            number = next;
            if self.free.role(number) != Role::Used || !set(&mut self.chained, number) {
                return Err(damaged(number));
            }
            self.read(number)?;
            next = page::next(&self.page).ok_or_else(|| damaged(number))?;
        }
        if next != 0 {
            return Err(damaged(number));
        }
        let mut wiped = self.page.to_vec();
        if !page::wipe_tail(&mut wiped, &self.layout, chain).ok_or_else(|| damaged(number))? {
            return Ok(None);
        }
        hasher.write(&self.page);
        Ok(Some((number, wiped)))
    }
}

fn damaged(number: u32) -> rusqlite::Error {
    let reason = format!("page {number} is not as SQLite writes it, see `PRAGMA integrity_check`");
    rusqlite::Error::SqliteFailure(ffi::Error::new(ffi::SQLITE_CORRUPT), Some(reason))
}

fn is_damage(error: &rusqlite::Error) -> bool {
    error.sqlite_error_code() == Some(ErrorCode::DatabaseCorrupt)
}

#[cfg(test)]
mod tests;
