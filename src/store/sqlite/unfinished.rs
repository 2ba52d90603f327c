//! Imports that are written in slices, and the recovery from those that did not end. While an
//! import is unfinished, every reader sees the table without the devices that the import has added
//! ([`HIDE`]). If the import fails or its process is killed, its changes are taken back: by the
//! import itself, by the next import, or by another process that keeps the database open. All work
//! is done in short transactions.

use std::{
    path::Path,
    sync::{
        Arc,
        mpsc::{RecvTimeoutError, Sender, channel},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use rusqlite::{Connection, OptionalExtension, Transaction, TransactionBehavior, params};

use super::{audit, connection, counts, imports, lock::ImportLock, store_error};
use crate::store::{
    Actor, StoreError, UnixSeconds,
    audit::{AuditEntry, AuditEvent},
    undo::ImportId,
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

/// Pause between two transactions, in which a waiting process can begin to write.
const PAUSE: Duration = Duration::from_millis(4);

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
/// holds the lock of imports.
pub(super) fn take_back(connection: &Connection) -> rusqlite::Result<()> {
    while let Some((id, file)) = first(connection)? {
        counts::with_triggers(connection)?;
        while restore(connection, id)? > 0 {
            thread::sleep(PAUSE);
        }
        // The devices that the import has added are not counted yet, so their removal must not
        // change the counts.
        counts::without_triggers(connection)?;
        let mut after = String::new();
        while let Some(last) = remove(connection, id, &after)? {
            after = last;
            thread::sleep(PAUSE);
        }
        let transaction = Transaction::new_unchecked(connection, TransactionBehavior::Immediate)?;
        end(&transaction, id)?;
        let detail = format!("import {id} of {file} was cut off; its changes were taken back");
        let by = Actor::system_user();
        audit::append(&transaction, &AuditEntry { detail: Some(detail), ..by.entry(AuditEvent::Undone) })?;
        transaction.commit()?;
        tracing::warn!(import = %id, file, "an import was cut off; its changes were taken back");
    }
    clean(connection)
}

fn first(connection: &Connection) -> rusqlite::Result<Option<(ImportId, String)>> {
    const SQL: &str = "SELECT importId, file FROM import_unfinished LIMIT 1";
    connection.query_row(SQL, (), |row| Ok((ImportId(row.get(0)?), row.get(1)?))).optional()
}

/// Restores the former values and keys of up to [`ROWS`] rows that an import has changed, except of
/// rows that were changed again since then. Returns the number of rows processed.
fn restore(connection: &Connection, id: ImportId) -> rusqlite::Result<usize> {
    const BEFORE: &str = "SELECT deviceId, keyChange, formerIdentity, formerPsk, EXISTS (SELECT 1 FROM main.device_table d \
                          WHERE d.deviceId = b.deviceId AND d.importId = ?1) FROM import_before b \
                          WHERE importId = ?1 LIMIT ?2";
    let transaction = Transaction::new_unchecked(connection, TransactionBehavior::Immediate)?;
    let mut statement = transaction.prepare_cached(BEFORE)?;
    let rows = statement.query_map(params![id.0, ROWS], |row| {
        Ok((
            row.get::<_, String>(0)?,
            row.get::<_, Option<String>>(1)?,
            row.get::<_, Option<String>>(2)?,
            row.get::<_, Option<String>>(3)?.map(crate::device::Secret::new),
            row.get::<_, bool>(4)?,
        ))
    })?;
    let rows = rows.collect::<rusqlite::Result<Vec<_>>>()?;
    drop(statement);
    for (device, key_change, identity, psk, is_untouched) in &rows {
        if *is_untouched {
            imports::restore_row(&transaction, id, device)?;
            if key_change.is_some() {
                transaction
                    .prepare_cached("DELETE FROM device_key WHERE deviceId = ?1")?
                    .execute([device])?;
            }
            if let (Some(identity), Some(psk)) = (identity, psk) {
                const KEY: &str = "INSERT INTO device_key (pskIdentity, deviceId, psk) VALUES (?1, ?2, ?3) \
                                   ON CONFLICT DO NOTHING";
                transaction.prepare_cached(KEY)?.execute([identity.as_str(), device, psk.expose()])?;
            }
        }
        imports::forget_before(&transaction, id, device)?;
    }
    transaction.commit()?;
    Ok(rows.len())
}

/// Examines some of the rows after the device `after`, and removes the devices that an import has
/// added. Returns the last device that was examined, or `None` if no device comes after `after`.
fn remove(connection: &Connection, id: ImportId, after: &str) -> rusqlite::Result<Option<String>> {
    const SEARCH: &str = "SELECT deviceId, importId IS ?1 FROM main.device_table WHERE deviceId > ?2 \
                          ORDER BY deviceId LIMIT ?3";
    const REMOVE: &str = "DELETE FROM main.device_table WHERE deviceId = ?1 AND importId = ?2";
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
fn clean(connection: &Connection) -> rusqlite::Result<()> {
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
        thread::sleep(PAUSE);
    }
    let mut id = 0;
    while let Some(next) = connection.query_row(NEXT, [id], |row| row.get::<_, i64>(0)).optional()? {
        id = next;
        if connection.query_row(IS_KNOWN, [id], |row| row.get(0))? {
            continue;
        }
        while connection.execute(FORGET, [id, ROWS])? > 0 {
            thread::sleep(PAUSE);
        }
    }
    Ok(())
}

fn has_former_keys(connection: &Connection) -> rusqlite::Result<bool> {
    const SQL: &str = "SELECT EXISTS (SELECT 1 FROM import_before WHERE formerPsk IS NOT NULL)";
    connection.query_row(SQL, (), |row| row.get(0))
}

/// Thread that takes back imports that were cut off, for as long as a process has the database
/// open. Dropping this value ends the thread, and first waits for a recovery in progress.
pub(super) struct Recovery {
    end: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Recovery {
    pub(super) fn start(path: Arc<Path>, wait: Duration) -> Result<Self, StoreError> {
        let (end, ended) = channel();
        let failed =
            |error| StoreError::Failed(format!("{}: no recovery of imports: {error}", path.display()));
        let work = {
            let path = Arc::clone(&path);
            move || {
                while ended.recv_timeout(EVERY) == Err(RecvTimeoutError::Timeout) {
                    if let Err(error) = recover(&path, wait) {
                        tracing::debug!(%error, "could not look for an import that was cut off");
                    }
                }
            }
        };
        let thread = thread::Builder::new().name("store-recovery".into()).spawn(work).map_err(failed)?;
        Ok(Self { end: Some(end), thread: Some(thread) })
    }
}

impl Drop for Recovery {
    fn drop(&mut self) {
        self.end = None;
        if let Some(thread) = self.thread.take() {
            // If the thread has panicked, its message is already printed.
            let _ = thread.join();
        }
    }
}

/// Takes back imports that were cut off and removes former keys, unless an import is running.
fn recover(path: &Path, wait: Duration) -> Result<(), StoreError> {
    let failed = |error| store_error(path, error);
    let is_any = |connection: &Connection| Ok(first(connection)?.is_some() || has_former_keys(connection)?);
    if !is_any(&connection::open_reader(path)?).map_err(failed)? {
        return Ok(());
    }
    let Some(_lock) = ImportLock::attempt(path)? else { return Ok(()) };
    take_back(&connection::open_again(path, wait)?).map_err(failed)
}
