//! Outbox of the audit log, for entries that no caller waits for. A thread appends its entries to a
//! file before it sends the answers that the entries are about. No entry is therefore lost when the
//! process ends or is killed. The writer later moves the entries from the file into the log. If a
//! process leaves entries behind, the next process moves them.
//!
//! Each process has its own files, beside the database. It keeps them locked, so that other
//! processes can tell which files are left behind. The table `audit_outbox` has, for each file, the
//! number of bytes that have been moved into the log. This number changes in the same transaction
//! as the log, so each entry is moved exactly once.

mod files;
#[cfg(test)]
mod tests;

use std::{
    cell::RefCell,
    io,
    ops::ControlFlow,
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use arc_swap::ArcSwapOption;
use rusqlite::{Connection, OptionalExtension, Transaction, TransactionBehavior, params};
use thread_local::ThreadLocal;

use self::files::OutboxFile;
use super::{
    BLOCK, index, put,
    repeats::{self, Recent, Sorter},
};
use crate::store::{
    Metrics, StoreError,
    audit::{Asked, AuditEntry, AuditEvent, Class},
    sqlite::{connection, store_error, writer::Backlog},
    unix_now,
};

/// Maximum number of bytes that wait in a process's files when a repeat is added. Further repeats
/// are dropped. At 10,000 answers a second, the maximum is reached after ten seconds.
const MAX_WAITING: u64 = 16 << 20;

/// Maximum number of bytes that a thread keeps in memory while the disk is full. Further repeats
/// are dropped, and other entries fail.
const MAX_KEPT: usize = 1 << 20;

/// Bytes in addition to [`MAX_WAITING`] that may wait when a refusal is added. If there are more,
/// the refusal fails, and its device is asked to retry later.
const FOR_REFUSALS: u64 = 48 << 20;

/// Bytes in addition to [`MAX_WAITING`] and [`FOR_REFUSALS`] that may wait when an operator's entry
/// is added. The end of a job may use twice as many, so that a job that could begin can end.
const FOR_OPERATORS: u64 = 1 << 20;

/// Size from which a file is replaced with a new one.
const FULL: u64 = 1 << 20;

/// Maximum number of bytes moved in one transaction. The transaction takes a few milliseconds, for
/// which a first issue may have to wait.
const AT_ONCE: usize = 160 << 10;

/// Pause between two searches for files that other processes have left behind.
const SEARCH_EVERY: Duration = Duration::from_secs(10);

/// Maximum number of searches for files. A search is repeated if a file is removed during the
/// search.
const MAX_TRIES: usize = 16;

/// Maximum time that opening a database spends on moving entries that were left behind.
const LONGEST_START: Duration = Duration::from_secs(1);

/// State that the threads of a process and its writer share.
struct Shared {
    database: Arc<Path>,
    /// File to which entries are appended; `None` before the first entry.
    file: ArcSwapOption<OutboxFile>,
    /// Held while a thread creates a new file.
    making: Mutex<()>,
    /// Number of bytes that are appended but not moved yet.
    waiting: AtomicU64,
    /// Number of repeats that were dropped and that the log does not mention yet.
    dropped: AtomicU64,
    /// Number of other entries that were lost because the process ended while no file could be
    /// written.
    lost: AtomicU64,
    /// Set while entries cannot be appended.
    is_failing: AtomicBool,
    metrics: Arc<Metrics>,
}

/// Entries of one thread that are not in a file yet.
#[derive(Default)]
struct Kept {
    /// Set between `hold` and `release`.
    is_held: bool,
    lines: Vec<u8>,
}

/// Sending end of the outbox.
pub(in crate::store::sqlite) struct Outbox {
    shared: Arc<Shared>,
    kept: ThreadLocal<RefCell<Kept>>,
}

impl Outbox {
    /// Adds an entry. Between [`hold`](Self::hold) and [`release`](Self::release), the entry may
    /// stay in memory until this thread calls `release`. Otherwise, it is written to the file at
    /// once. If there is no room for it, a repeat is dropped and counted; any other entry fails, and
    /// the caller must not do what the entry says.
    pub(in crate::store::sqlite) fn push(&self, asked: Asked) -> Result<(), StoreError> {
        let mut kept = self.kept.get_or_default().borrow_mut();
        let (event, line) = (asked.event(), asked.into_line());
        let is_repeat = event == AuditEvent::Reissued;
        let reserve = match event {
            AuditEvent::Reissued => 0,
            AuditEvent::Refused => FOR_REFUSALS,
            AuditEvent::Ended => FOR_REFUSALS + 2 * FOR_OPERATORS,
            _ => FOR_REFUSALS + FOR_OPERATORS,
        };
        // While the file cannot be written, only repeats may wait in memory, because a killed
        // process loses the entries in its memory.
        let must_write = !kept.is_held || (!is_repeat && self.shared.is_failing.load(Ordering::Relaxed));
        if kept.lines.len() + line.len() >= MAX_KEPT {
            self.shared.append(&mut kept.lines);
        }
        let waiting = self.shared.waiting.load(Ordering::Relaxed) + (kept.lines.len() + line.len()) as u64;
        if waiting > MAX_WAITING + reserve || kept.lines.len() + line.len() >= MAX_KEPT {
            return if is_repeat { self.shared.drop_repeat() } else { Err(self.shared.no_room()) };
        }
        kept.lines.extend_from_slice(line.as_bytes());
        kept.lines.push(b'\n');
        if !must_write {
            return Ok(());
        }
        self.shared.append(&mut kept.lines);
        if is_repeat || kept.lines.is_empty() {
            return Ok(());
        }
        // The earlier lines were written, or may wait in memory. This line must not wait.
        let left = kept.lines.len().saturating_sub(line.len() + 1);
        kept.lines.truncate(left);
        Err(self.shared.no_room())
    }

    /// Keeps this thread's entries in memory until the thread calls [`release`](Self::release).
    pub(in crate::store::sqlite) fn hold(&self) {
        self.kept.get_or_default().borrow_mut().is_held = true;
    }

    /// Appends this thread's entries to the file.
    pub(in crate::store::sqlite) fn release(&self) {
        if let Some(kept) = self.kept.get() {
            let mut kept = kept.borrow_mut();
            kept.is_held = false;
            self.shared.append(&mut kept.lines);
        }
    }
}

impl Drop for Outbox {
    fn drop(&mut self) {
        let mut lost = [0; 2];
        for kept in &mut self.kept {
            let lines = &mut kept.get_mut().lines;
            self.shared.append(lines);
            lost = [0, 1].map(|class| lost[class] + entries(lines)[class]);
        }
        let [changes, repeats] = lost;
        if changes + repeats > 0 {
            tracing::error!(
                entries = changes + repeats,
                "the last entries of the audit log are lost: they cannot be written to a file"
            );
            self.shared.lost.fetch_add(changes, Ordering::Relaxed);
            self.shared.dropped.fetch_add(repeats, Ordering::Relaxed);
        }
    }
}

/// Counts the entries in lines: those that are no repeats, and the repeats. Each entry is a line that
/// is not empty.
fn entries(lines: &[u8]) -> [u64; 2] {
    let mut counts = [0; 2];
    for line in lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        let entry = serde_json::from_slice::<AuditEntry>(line);
        let is_repeat = entry.is_ok_and(|entry| entry.event == AuditEvent::Reissued);
        counts[usize::from(is_repeat)] += 1;
    }
    counts
}

impl Shared {
    /// Counts a dropped repeat, and succeeds.
    fn drop_repeat(&self) -> Result<(), StoreError> {
        self.dropped.fetch_add(1, Ordering::Relaxed);
        self.metrics.repeats_dropped.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Returns the error for an entry that has no room.
    fn no_room(&self) -> StoreError {
        StoreError::Busy(format!(
            "{}: the audit log cannot take an entry now: too many are waiting, or the disk is full; free some space on \
             it, or end the process that locks the database",
            self.database.display()
        ))
    }

    /// Appends lines to the file, and removes from `lines` those that were written. Lines that
    /// cannot be written now stay in `lines`.
    fn append(&self, lines: &mut Vec<u8>) {
        if lines.is_empty() {
            return;
        }
        let appended = self.file().and_then(|file| {
            while !lines.is_empty() {
                self.append_once(&file, lines)?;
            }
            Ok(())
        });
        match appended {
            Ok(()) => self.is_failing.store(false, Ordering::Relaxed),
            Err(error) if self.is_failing.swap(true, Ordering::Relaxed) => {
                tracing::debug!(%error, "entries of the audit log wait in memory");
            }
            Err(error) => {
                tracing::error!(%error, "entries of the audit log wait in memory: they cannot be written to a file");
            }
        }
    }

    /// Appends with one system call. If the call cuts a line off, the next call appends the whole
    /// line again. Each append begins with a line end. If an append of another thread was cut off,
    /// this line end also ends the cut line.
    fn append_once(&self, file: &OutboxFile, lines: &mut Vec<u8>) -> io::Result<()> {
        if lines.first() != Some(&b'\n') {
            lines.insert(0, b'\n');
        }
        // The bytes are counted before they are appended, because the writer may move the lines
        // before this thread continues.
        let length = lines.len() as u64;
        self.waiting.fetch_add(length, Ordering::Relaxed);
        let appended = file.append(lines);
        let written = *appended.as_ref().unwrap_or(&0);
        self.waiting.fetch_sub(length - written as u64, Ordering::Relaxed);
        let whole = lines[..written].iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        let is_cut = written < lines.len();
        lines.drain(..whole);
        if !is_cut {
            lines.clear();
        }
        appended.map(drop)
    }

    fn file(&self) -> io::Result<Arc<OutboxFile>> {
        if let Some(file) = self.file.load_full() {
            return Ok(file);
        }
        let _making = self.making.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = self.file.load_full() {
            return Ok(file);
        }
        let file = Arc::new(OutboxFile::create(&self.database)?);
        self.file.store(Some(file.clone()));
        Ok(file)
    }
}

/// A file, and the number of its bytes that have been moved into the log.
struct Source {
    file: Arc<OutboxFile>,
    moved: u64,
    /// Set if the file was left behind by a process that has ended.
    is_left: bool,
    /// Number of lines that are not entries.
    unreadable: u64,
    /// Set once an attempt to remove the file has failed and was logged.
    has_warned: bool,
}

impl Source {
    fn new(file: Arc<OutboxFile>, moved: u64, is_left: bool) -> Self {
        Self { file, moved, is_left, unreadable: 0, has_warned: false }
    }
}

/// Receiving end of the outbox, used by the writer.
pub(in crate::store::sqlite) struct Mover {
    connection: Connection,
    shared: Arc<Shared>,
    /// This process's own files, the current one last, and files that other processes left behind.
    sources: Vec<Source>,
    /// Rows of repeats to which requests can be added.
    recent: Recent,
    missing: Missing,
    search: Instant,
    /// Set while a file that was left behind cannot be opened.
    has_warned: bool,
    /// Set after a search for files, so that [`forget_removed`](Self::forget_removed) runs.
    must_forget: bool,
}

/// Entries that were dropped or lost, and that the log does not mention yet.
#[derive(Default)]
struct Missing {
    repeats: u64,
    /// Number of entries of other kinds, which a process could not write before it ended.
    others: u64,
    /// Number of lines that could not be read.
    unreadable: u64,
}

impl Missing {
    fn all(&self) -> u64 {
        self.repeats + self.others + self.unreadable
    }

    /// Returns the number of entries of each kind, as the detail of an audit entry.
    fn detail(&self) -> String {
        let kinds = [
            (self.repeats, "repeated requests"),
            (self.others, "other entries"),
            (self.unreadable, "unreadable lines"),
        ];
        let kinds = kinds.iter().filter(|(number, _)| *number > 0);
        kinds.map(|(number, kind)| format!("{number} {kind}")).collect::<Vec<_>>().join(", ")
    }
}

/// Creates both ends of the outbox of a database.
pub(in crate::store::sqlite) fn outbox(
    database: Arc<Path>,
    metrics: Arc<Metrics>,
) -> Result<(Outbox, Mover), StoreError> {
    let connection = connection::open_backlog(&database)?;
    let shared = Arc::new(Shared {
        database,
        file: ArcSwapOption::empty(),
        making: Mutex::new(()),
        waiting: AtomicU64::new(0),
        dropped: AtomicU64::new(0),
        lost: AtomicU64::new(0),
        is_failing: AtomicBool::new(false),
        metrics,
    });
    let mover = Mover {
        connection,
        shared: shared.clone(),
        sources: Vec::new(),
        recent: Recent::default(),
        missing: Missing::default(),
        search: Instant::now(),
        has_warned: false,
        must_forget: false,
    };
    Ok((Outbox { shared, kept: ThreadLocal::new() }, mover))
}

impl Backlog for Mover {
    fn write_some(&mut self) -> Result<bool, StoreError> {
        let database = self.shared.database.clone();
        self.find_sources().map_err(|error| {
            StoreError::Failed(format!("{}: the outbox of the audit log: {error}", database.display()))
        })?;
        self.missing.repeats += self.shared.dropped.swap(0, Ordering::Relaxed);
        self.missing.others += self.shared.lost.swap(0, Ordering::Relaxed);
        let mut has_more = false;
        for number in 0..self.sources.len() {
            has_more |= self.move_some(number).map_err(|error| store_error(&database, error))?;
        }
        let rest = self
            .move_dropped()
            .and_then(|()| self.remove_sources())
            .and_then(|()| self.forget_removed())
            .and_then(|()| self.add_part());
        Ok(rest.map_err(|error| store_error(&database, error))? || has_more)
    }

    fn end(&mut self) {
        self.shared.file.store(None);
        if let Err(error) = self.remove_sources() {
            tracing::debug!(%error, "could not forget the moved files of the audit log");
        }
    }
}

impl Mover {
    /// Moves the entries that other processes have left behind, until all are moved, an error
    /// occurs, or [`LONGEST_START`] is over.
    pub(in crate::store::sqlite) fn move_left(&mut self) {
        let deadline = Instant::now() + LONGEST_START;
        while Instant::now() < deadline {
            match self.write_some() {
                Ok(true) => {}
                Ok(false) => return,
                // The writer retries later, and logs an error that persists.
                Err(error) => return tracing::debug!(%error, "the outbox of the audit log is moved later"),
            }
        }
    }

    /// Adds to `sources` this process's current file, and the files that other processes left
    /// behind.
    fn find_sources(&mut self) -> io::Result<()> {
        if let Some(file) = self.shared.file.load_full()
            && !self.sources.iter().any(|source| Arc::ptr_eq(&source.file, &file))
        {
            self.sources.push(Source::new(file, 0, false));
        }
        if Instant::now() < self.search {
            return Ok(());
        }
        self.search = Instant::now() + SEARCH_EVERY;
        let (left, failed) = files::left_behind(&self.shared.database)?;
        if let Some(error) = &failed
            && !self.has_warned
        {
            tracing::warn!(%error, "a file of audit entries that another process has left behind cannot be opened; give it to this user");
        }
        self.has_warned = failed.is_some();
        for file in left {
            // After an error, `file` is dropped and unlocked, and the next search finds it again.
            let Ok(moved) = moved(&self.connection, file.name()) else { continue };
            self.sources.push(Source::new(Arc::new(file), moved, true));
        }
        self.must_forget = true;
        Ok(())
    }

    /// Deletes the rows of files that no longer exist. Such a row remains if a process ends after
    /// it has removed a file and before it deletes the file's row.
    fn forget_removed(&mut self) -> rusqlite::Result<()> {
        if !std::mem::take(&mut self.must_forget) {
            return Ok(());
        }
        let mut names = self.connection.prepare_cached("SELECT name FROM audit_outbox")?;
        let names: Vec<String> = names.query_map((), |row| row.get(0))?.collect::<rusqlite::Result<_>>()?;
        let removed = |name: &&String| !files::exists(&self.shared.database, name);
        names.iter().filter(removed).try_for_each(|name| forget(&self.connection, name))
    }

    /// Moves some entries of a file into the log. Returns whether the file has more.
    fn move_some(&mut self, number: usize) -> rusqlite::Result<bool> {
        let Some(source) = self.sources.get_mut(number) else { return Ok(false) };
        let Ok(chunk) = source.file.read(source.moved, AT_ONCE, source.is_left) else {
            // The file stays, and a later call reads it again.
            return Ok(false);
        };
        if chunk.length == 0 {
            return Ok(false);
        }
        let moved = source.moved + chunk.length;
        // If the transaction fails, `recent` may have rows that were not committed.
        move_lines(&self.connection, &chunk.lines, &mut self.recent, (source.file.name(), moved))
            .inspect_err(|_| self.recent.forget())?;
        source.moved = moved;
        if !source.is_left {
            self.shared.waiting.fetch_sub(chunk.length, Ordering::Relaxed);
        }
        source.unreadable += chunk.unreadable;
        Ok(chunk.has_more)
    }

    /// Adds a part to each index for which a part is due. Returns whether another part may be due.
    fn add_part(&self) -> rusqlite::Result<bool> {
        if !index::is_behind(&self.connection)? && !repeats::is_behind(&self.connection)? {
            return Ok(false);
        }
        let transaction = Transaction::new_unchecked(&self.connection, TransactionBehavior::Immediate)?;
        let is_behind = index::add_part(&transaction)? | repeats::add_part(&transaction)?;
        transaction.commit()?;
        Ok(is_behind)
    }

    /// Writes an entry with the number of entries that were dropped. Does nothing if none were
    /// dropped.
    fn move_dropped(&mut self) -> rusqlite::Result<()> {
        if self.missing.all() == 0 {
            return Ok(());
        }
        let detail = Some(self.missing.detail());
        let entry = AuditEntry { detail, ..AuditEntry::new(AuditEvent::Dropped, unix_now()) };
        let transaction = Transaction::new_unchecked(&self.connection, TransactionBehavior::Immediate)?;
        super::append(&transaction, &entry)?;
        transaction.commit()?;
        let Missing { repeats, others, unreadable } = std::mem::take(&mut self.missing);
        tracing::warn!(
            repeats,
            others,
            unreadable,
            "the audit log has gaps: too many entries were waiting, or a process could not write its last ones"
        );
        Ok(())
    }

    /// Removes files whose entries have all been moved. If the current file is full, the next entry
    /// goes to a new file.
    fn remove_sources(&mut self) -> rusqlite::Result<()> {
        let current = self.shared.file.load_full();
        let mut kept = Vec::new();
        for mut source in std::mem::take(&mut self.sources) {
            let is_current = current.as_ref().is_some_and(|file| Arc::ptr_eq(file, &source.file));
            let is_moved = || source.file.length().is_ok_and(|length| length <= source.moved);
            if is_current && source.file.length().is_ok_and(|length| length >= FULL) {
                // Threads that have loaded the file may still append to it.
                self.shared.file.store(None);
            }
            // No thread appends to a file if `source` has the only reference to it.
            if is_current || Arc::strong_count(&source.file) > 1 || !is_moved() {
                kept.push(source);
                continue;
            }
            // The file is removed before its row. If the row were deleted first and the process
            // crashed, the next process would move the file's entries again.
            if let Err(error) = source.file.remove() {
                if !source.has_warned {
                    tracing::warn!(%error, "could not remove a moved file of the audit log");
                }
                source.has_warned = true;
                kept.push(source);
                continue;
            }
            if source.unreadable > 0 && source.is_left {
                let lines = source.unreadable;
                tracing::warn!(
                    lines,
                    "lines in the outbox of the audit log are not readable, for example after a power failure"
                );
                self.missing.unreadable += lines;
                self.shared.metrics.lines_unreadable.fetch_add(lines, Ordering::Relaxed);
            }
            forget(&self.connection, source.file.name())?;
        }
        self.sources = kept;
        Ok(())
    }
}

/// Entries of processes that have ended, in files that have not been moved into the log yet.
pub(in crate::store::sqlite) struct Waiting {
    /// Each file, and the number of its bytes that have been moved into the log.
    files: Vec<(OutboxFile, u64)>,
    /// Number of the log's last entry when `files` were examined.
    pub(in crate::store::sqlite) end: u64,
}

impl Waiting {
    /// Finds the entries, without moving them. The database is opened only for reading.
    pub(in crate::store::sqlite) fn find(connection: &Connection, path: &Path) -> Result<Self, StoreError> {
        let failed = |error| store_error(path, error);
        let unread = |error: io::Error| {
            StoreError::Unusable(format!(
                "entries of the audit log wait in a file that cannot be read: {error}; run this as its owner or as root"
            ))
        };
        let database = path.canonicalize().map_err(unread)?;
        // The files are opened before the log is read. If the entries of a file are moved in
        // between, they are found in the log; otherwise, they are found in the file.
        for _ in 0..MAX_TRIES {
            let found = files::readable(&database).map_err(unread)?;
            let state =
                Transaction::new_unchecked(connection, TransactionBehavior::Deferred).map_err(failed)?;
            let end = super::head(&state).map_err(failed)?;
            let mut files = Vec::with_capacity(found.len());
            for file in found {
                let moved = moved(&state, file.name()).map_err(failed)?;
                files.push((file, moved));
            }
            drop(state);
            // If a file has been removed, its row may have been deleted before the row was read
            // here. The file's entries would then be exported twice, so the search is repeated.
            let is_removed = |(file, _): &(OutboxFile, u64)| file.is_removed().unwrap_or(true);
            if !files.iter().any(is_removed) {
                return Ok(Self { files, end });
            }
        }
        Err(StoreError::Busy(format!("{}: the audit log changes too fast; run this again", path.display())))
    }

    /// Calls `each` with each entry, until `each` returns `Break`.
    pub(in crate::store::sqlite) fn read(
        self,
        each: &mut dyn FnMut(AuditEntry) -> ControlFlow<()>,
    ) -> io::Result<()> {
        for (file, mut from) in self.files {
            loop {
                let chunk = file.read(from, AT_ONCE, false)?;
                from += chunk.length;
                for line in &chunk.lines {
                    // A line that a crash cut off is not an entry.
                    let Ok(entry) = serde_json::from_str(line) else { continue };
                    if each(entry).is_break() {
                        return Ok(());
                    }
                }
                if !chunk.has_more || chunk.length == 0 {
                    break;
                }
            }
        }
        Ok(())
    }
}

/// Returns the number of bytes of a file that have been moved into the log.
fn moved(connection: &Connection, name: &str) -> rusqlite::Result<u64> {
    let moved: Option<i64> = connection
        .prepare_cached("SELECT moved FROM audit_outbox WHERE name = ?1")?
        .query_row([name], |row| row.get(0))
        .optional()?;
    Ok(moved.unwrap_or_default().unsigned_abs())
}

/// Moves lines into the log and into the table of repeats. Notes in the same transaction how much
/// of their file has been moved.
fn move_lines(
    connection: &Connection,
    lines: &[String],
    recent: &mut Recent,
    (name, moved): (&str, u64),
) -> rusqlite::Result<()> {
    let transaction = Transaction::new_unchecked(connection, TransactionBehavior::Immediate)?;
    let head = super::head(&transaction)?;
    let mut changes: Vec<&str> = Vec::new();
    let mut sorter = Sorter::new(&transaction)?;
    for line in lines {
        let seq = head + changes.len() as u64 + 1;
        if sorter.take(line, seq, recent.hasher())? == Class::Change {
            changes.push(line);
        }
    }
    let records = sorter.records();
    for block in changes.chunks(BLOCK) {
        put(&transaction, block)?;
    }
    recent.put(&transaction, &records)?;
    note_moved(&transaction, name, moved)?;
    transaction.commit()
}

fn note_moved(connection: &Connection, name: &str, moved: u64) -> rusqlite::Result<()> {
    const SQL: &str = "INSERT INTO audit_outbox (name, moved) VALUES (?1, ?2) \
                       ON CONFLICT (name) DO UPDATE SET moved = excluded.moved";
    connection.prepare_cached(SQL)?.execute(params![name, moved.cast_signed()]).map(drop)
}

fn forget(connection: &Connection, name: &str) -> rusqlite::Result<()> {
    connection.prepare_cached("DELETE FROM audit_outbox WHERE name = ?1")?.execute([name]).map(drop)
}
