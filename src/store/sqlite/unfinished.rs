//! Imports that are written, or undone, in slices, and the recovery from those that were cut off.
//! While an import is unfinished, every reader sees the table without the devices that the import
//! has added ([`HIDE`]). If an import fails or its process is killed, its changes are taken back. If
//! an undo is cut off, it is completed. The process itself does this, or the next import, or another
//! process that keeps the database open. All work is done in short transactions.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{RecvTimeoutError, Sender, channel},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use rusqlite::{Connection, OptionalExtension, params};

use super::{audit, connection, lock::ImportLock, reversal, store_error, undo};
use crate::{
    device::DeviceId,
    store::{
        Actor, StoreError, UnixSeconds,
        audit::{AuditEntry, AuditEvent},
        undo::{ImportId, Undone},
        unix_now,
    },
};

/// SQL condition that is true for the rows `d` of the table that are not hidden by the unfinished
/// import, which `$of` may restrict to a kind. Hidden rows are those that this import has added. A
/// row that the import has only changed has an entry in `import_before`, and is not hidden. A device
/// that is being registered is not hidden either, because an undo leaves it as it is.
macro_rules! shown {
    ($of:literal) => {
        concat!(
            "CASE WHEN d.importId IS (SELECT coalesce(max(importId), 0) FROM main.import_unfinished",
            $of,
            ") THEN EXISTS (SELECT 1 FROM main.import_before b WHERE b.importId = d.importId \
             AND b.deviceId = d.deviceId) OR EXISTS (SELECT 1 FROM main.registration_claim r \
             WHERE r.deviceId = d.deviceId) ELSE 1 END"
        )
    };
}

/// Condition for the rows that are not hidden. It is for queries that name an index, because such a
/// query cannot use the view of [`HIDE`].
pub(super) const SHOWN: &str = shown!("");

/// Condition for the rows that `device_count` counts. The devices that an import has added are counted
/// when they appear. Those that an undo removes are hidden before, but counted until they are removed.
pub(super) const COUNTED: &str = shown!(" WHERE kind = 'import'");

/// Statement that hides the devices of an unfinished import from a connection that reads. The view
/// takes the place of the table, so that no query can forget the condition.
pub(super) const HIDE: &str =
    concat!("CREATE TEMP VIEW device_table AS SELECT * FROM main.device_table d WHERE ", shown!(""));

/// Maximum number of rows that one transaction changes.
pub(super) const ROWS: i64 = 500;

/// Time after which a slice ends and its commit begins.
pub(super) const SLICE: Duration = Duration::from_millis(20);

/// Pause between two transactions, in which a waiting process can begin to write. A waiting server
/// tries again every millisecond, so it does not miss the pause.
const PAUSE: Duration = Duration::from_millis(4);

/// Number of changes after which the write-ahead log is moved into the database. Otherwise, the log
/// would become as large as the import, or a server would move it while devices wait.
const LOGGED: u64 = 16_000;

/// Number of transactions after which the log is moved, even if they have made few changes.
const LOGGED_TURNS: u32 = 64;

/// Maximum number of rows that a transaction of an import changes while others write. A server's
/// next write is durable, so it waits until everything that the import wrote before is on the disk.
/// Each row can change a page in each index.
pub(super) const SHARED_ROWS: u64 = 100;

/// Time after a write of another connection during which more are expected.
const SHARED: Duration = Duration::from_millis(200);

/// Interval at which a process searches the database for an import that was cut off.
const EVERY: Duration = Duration::from_secs(2);

/// Work on an unfinished import.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// The import is being written, or was cut off.
    Import,
    /// The import is being undone, or its undo was cut off.
    Undo,
}

/// The unfinished import.
pub(super) struct Mark {
    pub(super) id: ImportId,
    pub(super) kind: Kind,
    /// Time and operator of the import, or of the undo.
    pub(super) at: UnixSeconds,
    pub(super) by: Actor,
    pub(super) file: String,
}

/// Notes that an import begins. Its devices are hidden from now on.
pub(super) fn begin(
    connection: &Connection,
    id: ImportId,
    at: UnixSeconds,
    who: &str,
    file: &str,
) -> rusqlite::Result<()> {
    const SQL: &str = "INSERT INTO import_unfinished (importId, at, who, file) VALUES (?1, ?2, ?3, ?4)";
    connection.execute(SQL, params![id.0, at, who, file]).map(drop)
}

/// Notes that the undo of an import begins. The devices that the import has added are hidden from
/// now on.
pub(super) fn begin_undo(
    connection: &Connection,
    id: ImportId,
    at: UnixSeconds,
    by: &Actor,
    file: &str,
) -> rusqlite::Result<()> {
    const SQL: &str = "INSERT INTO import_unfinished (importId, at, who, address, file, kind) \
                       VALUES (?1, ?2, ?3, ?4, ?5, 'undo')";
    connection.execute(SQL, params![id.0, at, by.name, by.address, file]).map(drop)
}

/// Removes the mark of an import, in the open transaction. The added devices that were not removed
/// become visible with the commit.
pub(super) fn end(connection: &Connection, id: ImportId) -> rusqlite::Result<()> {
    connection.execute("DELETE FROM import_unfinished WHERE importId = ?1", [id.0]).map(drop)
}

/// Returns the unfinished import, if any.
pub(super) fn mark(connection: &Connection) -> rusqlite::Result<Option<Mark>> {
    const SQL: &str = "SELECT importId, kind, at, who, address, file FROM import_unfinished LIMIT 1";
    connection
        .query_row(SQL, (), |row| {
            let kind = if row.get_ref(1)?.as_str()? == "undo" { Kind::Undo } else { Kind::Import };
            let by = Actor { name: row.get(3)?, address: row.get(4)? };
            Ok(Mark { id: ImportId(row.get(0)?), kind, at: row.get(2)?, by, file: row.get(5)? })
        })
        .optional()
}

/// Takes back the changes of imports that were cut off, and completes undos. Then removes data that
/// is no longer needed: former keys, and the former values of rows whose import can no longer be
/// undone. The caller holds the lock of imports. Returns early, between two transactions, once
/// `is_stopped`; a later call continues. Returns the result of the last undo that was completed.
pub(super) fn take_back(
    connection: &Connection,
    is_stopped: &dyn Fn() -> bool,
) -> rusqlite::Result<Option<(ImportId, Undone)>> {
    let mut turns = Turns::new(connection, is_stopped);
    let mut undone = None;
    while let Some(mark) = mark(connection)? {
        // A slice need not survive a power cut, because the mark survives it. The last commit is
        // durable again, and makes all slices durable.
        connection.pragma_update(None, "synchronous", "normal")?;
        let is_complete = reversal::run(connection, &mark, &mut turns);
        connection.pragma_update(None, "synchronous", "full")?;
        if !is_complete? {
            return Ok(None);
        }
        match mark.kind {
            Kind::Import => note_taken_back(connection, &mark)?,
            Kind::Undo => undone = Some((mark.id, undo::complete(connection, &mark)?)),
        }
    }
    clean(connection, &mut turns)?;
    #[cfg(test)]
    turns.count_rows();
    Ok(undone)
}

/// Notes that all changes of an import that was cut off are taken back.
fn note_taken_back(connection: &Connection, mark: &Mark) -> rusqlite::Result<()> {
    const LEFT: &str = "SELECT taken FROM import_unfinished WHERE importId = ?1";
    let Mark { id, file, .. } = mark;
    let transaction = connection::begin(connection)?;
    let left: i64 = transaction.query_row(LEFT, [id.0], |row| row.get(0))?;
    end(&transaction, *id)?;
    let mut detail = format!("import {id} of {file} was cut off; its changes were taken back");
    if left > 0 {
        detail.push_str(&format!(
            ", except those of {left} devices whose former names now belong to other devices"
        ));
    }
    let by = Actor::system_user();
    audit::append(
        &transaction,
        &AuditEntry { detail: Some(detail), ..by.entry(AuditEvent::Undone, unix_now()) },
    )?;
    transaction.commit()?;
    tracing::warn!(import = %id, file, left, "an import was cut off; its changes were taken back");
    Ok(())
}

/// Short transactions of long work, with pauses in which other processes can write.
pub(super) struct Turns<'a> {
    connection: &'a Connection,
    is_stopped: &'a dyn Fn() -> bool,
    /// Number of transactions since the log was last moved, and total number of changes at that
    /// time.
    taken: u32,
    moved: u64,
    /// SQLite's number for the last commit of another connection, and the time until which more
    /// commits are expected.
    others: i64,
    shared_until: Option<Instant>,
}

impl<'a> Turns<'a> {
    /// Begins work over this connection. The work ends early once `is_stopped`.
    pub(super) fn new(connection: &'a Connection, is_stopped: &'a dyn Fn() -> bool) -> Self {
        #[cfg(test)]
        CHANGED.with(|changed| changed.set((connection.total_changes(), changed.get().1)));
        let (moved, others) = (connection.total_changes(), commits_of_others(connection));
        Self { connection, is_stopped, taken: 0, moved, others, shared_until: None }
    }

    /// Notes how many rows the last transaction has changed.
    #[cfg(test)]
    fn count_rows(&self) {
        let ((before, most), now) = (CHANGED.get(), self.connection.total_changes());
        CHANGED.set((now, most.max(now.saturating_sub(before))));
    }

    /// Pauses after a transaction, and from time to time moves the log into the database. Returns
    /// whether the work must stop.
    pub(super) fn end(&mut self) -> bool {
        #[cfg(test)]
        self.count_rows();
        self.taken += 1;
        let changes = self.connection.total_changes();
        if self.taken >= LOGGED_TURNS || changes - self.moved >= LOGGED {
            connection::move_log(self.connection);
            (self.taken, self.moved) = (0, changes);
        }
        thread::sleep(PAUSE);
        let (others, now) = (commits_of_others(self.connection), Instant::now());
        if others != self.others {
            self.shared_until = Some(now + SHARED);
        } else if self.shared_until.is_some_and(|until| until <= now) {
            self.shared_until = None;
        }
        self.others = others;
        self.is_stopped()
    }

    /// Returns how many rows the next transaction may change.
    pub(super) fn rows(&self) -> u64 {
        if self.shared_until.is_some() { SHARED_ROWS } else { u64::MAX }
    }

    /// Returns whether the work must stop.
    pub(super) fn is_stopped(&self) -> bool {
        (self.is_stopped)()
    }
}

/// Returns a number that changes when another connection commits, even a connection of this process.
fn commits_of_others(connection: &Connection) -> i64 {
    // If this fails, so does the next transaction.
    connection.query_row("PRAGMA data_version", (), |row| row.get(0)).unwrap_or_default()
}

#[cfg(test)]
thread_local! {
    /// Number of rows that a connection of this thread has changed until its last turn, and the most
    /// rows that were changed in one turn.
    pub(super) static CHANGED: std::cell::Cell<(u64, u64)> = const { std::cell::Cell::new((0, 0)) };
}

/// Removes all former keys, and the former values of rows whose import has no record any more.
fn clean(connection: &Connection, turns: &mut Turns<'_>) -> rusqlite::Result<()> {
    const WIPE: &str = "UPDATE import_before SET formerIdentity = NULL, formerPsk = NULL, formerNext = NULL \
                        WHERE (importId, deviceId) IN (SELECT importId, deviceId FROM import_before \
                        WHERE formerPsk IS NOT NULL LIMIT ?1)";
    const NEXT: &str = "SELECT importId FROM import_before WHERE importId > ?1 ORDER BY importId LIMIT 1";
    const IS_KNOWN: &str = "SELECT EXISTS (SELECT 1 FROM import WHERE importId = ?1) \
                            OR EXISTS (SELECT 1 FROM import_unfinished WHERE importId = ?1)";
    const FORGET: &str = "DELETE FROM import_before WHERE importId = ?1 AND deviceId IN \
                          (SELECT deviceId FROM import_before WHERE importId = ?1 LIMIT ?2)";
    while has_former_keys(connection)? {
        connection::execute(connection, WIPE, [ROWS])?;
        if turns.end() {
            return Ok(());
        }
    }
    let mut id = 0;
    while let Some(next) = connection.query_row(NEXT, [id], |row| row.get::<_, i64>(0)).optional()? {
        id = next;
        if connection.query_row(IS_KNOWN, [id], |row| row.get(0))? {
            continue;
        }
        while connection::execute(connection, FORGET, [id, ROWS])? > 0 {
            if turns.end() {
                return Ok(());
            }
        }
    }
    Ok(())
}

fn has_former_keys(connection: &Connection) -> rusqlite::Result<bool> {
    const SQL: &str = "SELECT EXISTS (SELECT 1 FROM import_before WHERE formerPsk IS NOT NULL)";
    connection.query_row(SQL, (), |row| row.get(0))
}

/// Returns whether a device is hidden because the import that adds it is unfinished.
pub(super) fn is_hidden(connection: &Connection, device: &DeviceId) -> rusqlite::Result<bool> {
    const SQL: &str = concat!(
        "SELECT EXISTS (SELECT 1 FROM main.device_table d WHERE deviceId = ?1 AND NOT ",
        shown!(""),
        ")"
    );
    connection.prepare_cached(SQL)?.query_row([device.as_str()], |row| row.get(0))
}

/// Thread that takes back imports and completes undos that were cut off, for as long as a process has
/// the database open. Dropping this value ends the thread after its current transaction.
pub(super) struct Recovery {
    is_stopped: Arc<AtomicBool>,
    end: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Recovery {
    pub(super) fn start(path: Arc<Path>, wait: Duration) -> Result<Self, StoreError> {
        let (is_stopped, (end, ended)) = (Arc::new(AtomicBool::new(false)), channel());
        let failed =
            |error| StoreError::Failed(format!("{}: no recovery of imports: {error}", path.display()));
        let work = {
            let (path, is_stopped) = (Arc::clone(&path), Arc::clone(&is_stopped));
            move || {
                while ended.recv_timeout(EVERY) == Err(RecvTimeoutError::Timeout) {
                    if let Err(error) = recover(&path, wait, &is_stopped) {
                        tracing::debug!(%error, "could not look for an import that was cut off");
                    }
                }
            }
        };
        let thread = thread::Builder::new().name("store-recovery".into()).spawn(work).map_err(failed)?;
        Ok(Self { is_stopped, end: Some(end), thread: Some(thread) })
    }
}

impl Drop for Recovery {
    fn drop(&mut self) {
        self.is_stopped.store(true, Ordering::Relaxed);
        self.end = None;
        if let Some(thread) = self.thread.take() {
            // If the thread has panicked, its message is already printed.
            let _ = thread.join();
        }
    }
}

/// Does the work of [`Recovery`] at once, and waits for its end.
pub(super) fn recover_now(path: &Path, wait: Duration) -> Result<(), StoreError> {
    recover(path, wait, &AtomicBool::new(false))
}

/// Takes back imports and completes undos that were cut off, and removes former keys, unless an import
/// is running.
fn recover(path: &Path, wait: Duration, is_stopped: &AtomicBool) -> Result<(), StoreError> {
    let failed = |error| store_error(path, error);
    let is_any = |connection: &Connection| Ok(mark(connection)?.is_some() || has_former_keys(connection)?);
    if !is_any(&connection::open_reader(path)?).map_err(failed)? {
        return Ok(());
    }
    let Some(_lock) = ImportLock::attempt(path)? else { return Ok(()) };
    let is_stopped = || is_stopped.load(Ordering::Relaxed);
    let completed = take_back(&connection::open_again(path, wait)?, &is_stopped).map_err(failed)?;
    if let Some((id, Undone { removed, restored, left, .. })) = completed {
        tracing::warn!(import = %id, removed, restored, left, "the undo of an import was cut off; it was completed");
    }
    Ok(())
}
