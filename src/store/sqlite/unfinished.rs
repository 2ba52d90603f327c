//! Imports that are written in slices, and the recovery from those that did not end. While an
//! import is unfinished, every reader sees the table without the devices that the import has added
//! ([`HIDE`]). If the import fails or its process is killed, its changes are taken back: by the
//! import itself, by the next import, or by another process that keeps the database open. All work
//! is done in short transactions.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{RecvTimeoutError, Sender, channel},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use rusqlite::{Connection, OptionalExtension, Transaction, TransactionBehavior, params};

use super::{audit, connection, counts, imports, lock::ImportLock, store_error};
use crate::{
    device::DeviceId,
    store::{
        Actor, StoreError, UnixSeconds,
        audit::{AuditEntry, AuditEvent},
        undo::ImportId,
    },
};

/// SQL condition that is true for the rows `d` of the table that are not hidden. Hidden rows are
/// those that the unfinished import has added. A row that the import has only changed has an entry
/// in `import_before`, and is not hidden.
macro_rules! shown {
    () => {
        "CASE WHEN d.importId IS (SELECT coalesce(max(importId), 0) FROM main.import_unfinished) THEN EXISTS \
         (SELECT 1 FROM main.import_before b WHERE b.importId = d.importId AND b.deviceId = d.deviceId) ELSE 1 END"
    };
}

/// Condition for the rows that are not hidden. It is for queries that name an index, because such a
/// query cannot use the view of [`HIDE`].
pub(super) const SHOWN: &str = shown!();

/// Statement that hides the devices of an unfinished import from a connection that reads. The view
/// takes the place of the table, so that no query can forget the condition.
pub(super) const HIDE: &str =
    concat!("CREATE TEMP VIEW device_table AS SELECT * FROM main.device_table d WHERE ", shown!());

/// Maximum number of rows that one transaction changes.
const ROWS: i64 = 500;

/// Maximum number of rows of the table that one step reads to find the devices of an import.
const SEARCHED: i64 = 10_000;

/// Pause between two transactions, in which a waiting process can begin to write. A server that
/// waits tries again every millisecond, and so finds the pause.
const PAUSE: Duration = Duration::from_millis(4);

/// Number of transactions after which the write-ahead log is moved into the database. Otherwise, the
/// log would become as large as the import, or a server would move it while devices wait.
const LOGGED: u32 = 8;

/// Interval at which a process searches the database for an import that was cut off.
const EVERY: Duration = Duration::from_secs(2);

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

/// Notes, in the open transaction, that an import has ended. Its devices appear with the commit.
pub(super) fn end(connection: &Connection, id: ImportId) -> rusqlite::Result<()> {
    connection.execute("DELETE FROM import_unfinished WHERE importId = ?1", [id.0]).map(drop)
}

/// Takes back the changes of imports that were cut off. Then removes data that is no longer needed:
/// former keys, and the former values of rows whose import can no longer be undone. The caller
/// holds the lock of imports. Returns early, between two transactions, once `is_stopped`; a later
/// call continues.
pub(super) fn take_back(connection: &Connection, is_stopped: &dyn Fn() -> bool) -> rusqlite::Result<()> {
    let mut turns = Turns::new(connection, is_stopped);
    while let Some((id, file)) = first(connection)? {
        // The added devices go first, because they may have the names and identities that the
        // changed devices had before. They are not counted yet, so their removal must not change
        // the counts.
        counts::without_triggers(connection)?;
        let mut after = String::new();
        while let Some(last) = remove(connection, id, &after)? {
            after = last;
            if turns.end() {
                return Ok(());
            }
        }
        counts::with_triggers(connection)?;
        // For the same reason, the new keys of all changed devices go before the first former key
        // comes back.
        let mut after = String::new();
        while let Some(last) = remove_keys(connection, id, &after)? {
            after = last;
            if turns.end() {
                return Ok(());
            }
        }
        // A device whose former name is still taken is tried again after the others.
        let mut restored = 1;
        while restored > 0 {
            (restored, after) = (0, String::new());
            while let Some((last, count)) = restore(connection, id, &after)? {
                restored += count;
                after = last;
                if turns.end() {
                    return Ok(());
                }
            }
        }
        let transaction = Transaction::new_unchecked(connection, TransactionBehavior::Immediate)?;
        let left = leave(&transaction, id)?;
        end(&transaction, id)?;
        let mut detail = format!("import {id} of {file} was cut off; its changes were taken back");
        if left > 0 {
            detail.push_str(&format!(
                ", except those of {left} devices whose former names now belong to other devices"
            ));
        }
        let by = Actor::system_user();
        audit::append(&transaction, &AuditEntry { detail: Some(detail), ..by.entry(AuditEvent::Undone) })?;
        transaction.commit()?;
        tracing::warn!(import = %id, file, left, "an import was cut off; its changes were taken back");
    }
    clean(connection, &mut turns)
}

/// Short transactions of long work, with pauses in which other processes can write.
pub(super) struct Turns<'a> {
    connection: &'a Connection,
    is_stopped: &'a dyn Fn() -> bool,
    taken: u32,
}

impl<'a> Turns<'a> {
    /// Begins work over this connection. The work ends early once `is_stopped`.
    pub(super) fn new(connection: &'a Connection, is_stopped: &'a dyn Fn() -> bool) -> Self {
        Self { connection, is_stopped, taken: 0 }
    }

    /// Pauses after a transaction, and from time to time moves the log into the database. Returns
    /// whether the work must stop.
    pub(super) fn end(&mut self) -> bool {
        self.taken += 1;
        if self.taken.is_multiple_of(LOGGED) {
            connection::move_log(self.connection);
        }
        thread::sleep(PAUSE);
        (self.is_stopped)()
    }
}

fn first(connection: &Connection) -> rusqlite::Result<Option<(ImportId, String)>> {
    const SQL: &str = "SELECT importId, file FROM import_unfinished LIMIT 1";
    connection.query_row(SQL, (), |row| Ok((ImportId(row.get(0)?), row.get(1)?))).optional()
}

/// Removes the new keys of some devices after the device `after` that an import has changed. Returns
/// the last of these devices, or `None` if there are no more.
fn remove_keys(connection: &Connection, id: ImportId, after: &str) -> rusqlite::Result<Option<String>> {
    const CHANGED: &str = concat!(
        "SELECT deviceId FROM import_before b WHERE importId = ?1 AND deviceId > ?2 AND keyChange IS NOT NULL AND ",
        imports::is_untouched!(),
        " ORDER BY deviceId LIMIT ?3"
    );
    let transaction = Transaction::new_unchecked(connection, TransactionBehavior::Immediate)?;
    let devices: Vec<String> = transaction
        .prepare_cached(CHANGED)?
        .query_map(params![id.0, after, ROWS], |row| row.get(0))?
        .collect::<rusqlite::Result<_>>()?;
    for device in &devices {
        transaction.prepare_cached("DELETE FROM device_key WHERE deviceId = ?1")?.execute([device])?;
    }
    transaction.commit()?;
    Ok(devices.into_iter().next_back())
}

/// Restores the former values and keys of some devices after the device `after` that an import has
/// changed. Forgets the former values of devices that have changed again since then, or are being
/// registered. Skips a device if another device now has its former name or `IotId`. Returns the
/// last device and the number of devices that were not skipped, or `None` if there are no more.
fn restore(connection: &Connection, id: ImportId, after: &str) -> rusqlite::Result<Option<(String, u64)>> {
    const BEFORE: &str = concat!(
        "SELECT deviceId, ",
        imports::is_untouched!(),
        " FROM import_before b WHERE importId = ?1 AND deviceId > ?2 ORDER BY deviceId LIMIT ?3"
    );
    let transaction = Transaction::new_unchecked(connection, TransactionBehavior::Immediate)?;
    let devices: Vec<(String, bool)> = transaction
        .prepare_cached(BEFORE)?
        .query_map(params![id.0, after, ROWS], |row| Ok((row.get(0)?, row.get(1)?)))?
        .collect::<rusqlite::Result<_>>()?;
    let step = |sql| transaction.prepare_cached(sql)?.execute(());
    let mut restored = 0;
    for (device, is_untouched) in &devices {
        if *is_untouched {
            step("SAVEPOINT device")?;
            imports::restore_row(&transaction, id, device)?;
            let is_shared = imports::shared(&transaction, device)?.is_some();
            if is_shared {
                step("ROLLBACK TO device")?;
            }
            step("RELEASE device")?;
            if is_shared {
                continue;
            }
            restore_key(&transaction, id, device)?;
        }
        imports::forget_before(&transaction, id, device)?;
        restored += 1;
    }
    transaction.commit()?;
    Ok(devices.into_iter().next_back().map(|(last, _)| (last, restored)))
}

/// Gives a device the key that it had before an import, if the import has replaced or removed it.
fn restore_key(connection: &Connection, id: ImportId, device: &str) -> rusqlite::Result<()> {
    const KEY: &str = "INSERT INTO device_key (pskIdentity, deviceId, psk) \
                       SELECT formerIdentity, deviceId, formerPsk FROM import_before \
                       WHERE importId = ?1 AND deviceId = ?2 AND formerPsk IS NOT NULL ON CONFLICT DO NOTHING";
    connection.prepare_cached(KEY)?.execute(params![id.0, device]).map(drop)
}

/// Leaves the devices that could not be restored as they are, with their former keys. Returns their
/// number.
fn leave(connection: &Connection, id: ImportId) -> rusqlite::Result<u64> {
    const LEFT: &str = "SELECT deviceId FROM import_before WHERE importId = ?1";
    let devices: Vec<String> =
        connection.prepare(LEFT)?.query_map([id.0], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?;
    for device in &devices {
        restore_key(connection, id, device)?;
        imports::forget_before(connection, id, device)?;
    }
    Ok(devices.len() as u64)
}

/// Examines some of the rows after the device `after`, and removes the devices that an import has
/// added. Returns the last device that was examined, or `None` if no device comes after `after`.
fn remove(connection: &Connection, id: ImportId, after: &str) -> rusqlite::Result<Option<String>> {
    const SEARCH: &str = "SELECT deviceId, importId IS ?1 FROM main.device_table WHERE deviceId > ?2 \
                          ORDER BY deviceId LIMIT ?3";
    const REMOVE: &str = "DELETE FROM main.device_table WHERE deviceId = ?1 AND importId = ?2 \
                          AND deviceId NOT IN (SELECT deviceId FROM import_before WHERE importId = ?2) \
                          AND deviceId NOT IN (SELECT deviceId FROM registration_claim)";
    let (mut found, mut last) = (Vec::new(), None);
    {
        let mut statement = connection.prepare_cached(SEARCH)?;
        let mut rows = statement.query(params![id.0, after, SEARCHED])?;
        while let Some(row) = rows.next()? {
            let device: String = row.get(0)?;
            if row.get(1)? {
                found.push(device.clone());
            }
            last = Some(device);
            if found.len() as i64 >= ROWS {
                break;
            }
        }
    }
    if !found.is_empty() {
        let transaction = Transaction::new_unchecked(connection, TransactionBehavior::Immediate)?;
        for device in &found {
            transaction.prepare_cached(REMOVE)?.execute(params![device, id.0])?;
        }
        transaction.commit()?;
    }
    Ok(last)
}

/// Removes all former keys, and the former values of rows whose import has no record any more.
fn clean(connection: &Connection, turns: &mut Turns<'_>) -> rusqlite::Result<()> {
    const WIPE: &str = "UPDATE import_before SET formerIdentity = NULL, formerPsk = NULL \
                        WHERE (importId, deviceId) IN (SELECT importId, deviceId FROM import_before \
                        WHERE formerPsk IS NOT NULL LIMIT ?1)";
    const NEXT: &str = "SELECT importId FROM import_before WHERE importId > ?1 ORDER BY importId LIMIT 1";
    const IS_KNOWN: &str = "SELECT EXISTS (SELECT 1 FROM import WHERE importId = ?1) \
                            OR EXISTS (SELECT 1 FROM import_unfinished WHERE importId = ?1)";
    const FORGET: &str = "DELETE FROM import_before WHERE importId = ?1 AND deviceId IN \
                          (SELECT deviceId FROM import_before WHERE importId = ?1 LIMIT ?2)";
    while has_former_keys(connection)? {
        connection.execute(WIPE, [ROWS])?;
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
        while connection.execute(FORGET, [id, ROWS])? > 0 {
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
        shown!(),
        ")"
    );
    connection.prepare_cached(SQL)?.query_row([device.as_str()], |row| row.get(0))
}

/// Thread that takes back imports that were cut off, for as long as a process has the database
/// open. Dropping this value ends the thread after its current transaction.
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

/// Takes back imports that were cut off and removes former keys, unless an import is running.
fn recover(path: &Path, wait: Duration, is_stopped: &AtomicBool) -> Result<(), StoreError> {
    let failed = |error| store_error(path, error);
    let is_any = |connection: &Connection| Ok(first(connection)?.is_some() || has_former_keys(connection)?);
    if !is_any(&connection::open_reader(path)?).map_err(failed)? {
        return Ok(());
    }
    let Some(_lock) = ImportLock::attempt(path)? else { return Ok(()) };
    let is_stopped = || is_stopped.load(Ordering::Relaxed);
    take_back(&connection::open_again(path, wait)?, &is_stopped).map_err(failed)
}
