//! Stores the device table in one SQLite file. Each thread reads over its own connection, so that
//! workers share no lock. One thread writes, and commits all waiting writes together. In WAL mode,
//! writes do not block reads, not even the writes of a `certdist import` that runs beside a server.

pub mod audit;
pub mod backup;
mod bulk;
mod claims;
mod connection;
pub mod copy;
mod counts;
mod files;
mod find;
mod import;
mod imports;
mod key_use;
pub mod lock;
mod look;
mod names;
mod orders;
mod page;
mod places;
mod read;
mod reversal;
mod roll;
mod secrets;
mod servers;
mod shelf;
mod sightings;
mod since_backup;
mod turns;
mod undo;
mod unfinished;
mod waiting;
mod wipe;
mod writer;

#[cfg(test)]
mod tests;

use std::{
    collections::HashMap,
    path::Path,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use arc_swap::ArcSwap;
use rusqlite::{Connection, ErrorCode, OptionalExtension, params};
use thread_local::ThreadLocal;

use self::{
    files::Files,
    lock::Lock,
    look::Place,
    read::Reader,
    unfinished::Recovery,
    writer::{WriteError, Writer},
};
use super::{
    Actor, Clock, Condition, DeviceRow, DeviceState, Issue, KeyLookup, Metrics, SharedName, Store,
    StoreError, StoreFuture, UnixSeconds,
    audit::{Asked, Asker, AuditEntry, AuditEvent, AuditLog, Chain, Counts, EachEntry, Filter, Keep, Link},
    order::PlainChange,
};
use crate::device::{Certificate, DeviceId};

/// Maximum time that a group of writes waits for another process's transaction. After this time,
/// the writes fail, and the devices that wait for them are asked to retry.
const WRITER_WAIT: Duration = Duration::from_secs(5);

/// Maximum time that an import waits for another process's transaction. It is long because an
/// operator has more patience than a device.
const BULK_WAIT: Duration = Duration::from_secs(60);

/// The device table in an SQLite file. Dropping the store waits until all queued writes are done.
pub struct Sqlite {
    path: Arc<Path>,
    bulk_wait: Duration,
    clock: Arc<Clock>,
    /// Maximum numbers of places for the claims of this handle.
    max_places: ArcSwap<HashMap<String, u64>>,
    /// `None` if this process only reads.
    outbox: Option<audit::Outbox>,
    access: Access,
    // The readers are dropped before the writer, because the writer's connection must close last.
    // Only a writing connection can move the write-ahead log into the database file and remove the
    // log.
    readers: ThreadLocal<Reader>,
    /// `None` if this process only reads.
    _recovery: Option<Recovery>,
    writer: Writer,
    /// The open files; `None` if this process only reads.
    files: Option<Files>,
    /// The lock, which is released last; `None` if this process only reads, or could not create the
    /// lock file.
    lock: Option<Lock>,
}

/// Kind of access to a database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Access {
    /// Reads and writes.
    Full,
    /// Only reads. Creates and changes no file.
    Looks,
    /// Previews imports into a database that does not exist yet.
    PreviewsNew,
}

impl Sqlite {
    /// Opens a database. Creates it (mode 0600) if the file does not exist or is empty, and
    /// migrates an older version. Refuses a file of another program or of a newer version without
    /// changing the file. Secrets are read and written as they are stored.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        Self::open_if(path, |_| Ok(()))
    }

    /// Opens a database like [`open`](Self::open), but only if `accepts` returns no error.
    /// `accepts` receives the IDs of the database keys under which the secrets are sealed. If
    /// `accepts` returns an error, an older version is not migrated.
    pub fn open_if(
        path: &Path,
        accepts: impl Fn(&[String]) -> Result<(), String>,
    ) -> Result<Self, StoreError> {
        Self::open_waiting(path, accepts, WRITER_WAIT, BULK_WAIT)
    }

    fn open_waiting(
        path: &Path,
        accepts: impl Fn(&[String]) -> Result<(), String>,
        writer_wait: Duration,
        bulk_wait: Duration,
    ) -> Result<Self, StoreError> {
        let path = absolute(path)?;
        let check_keys = |connection: &Connection| {
            let in_use = secrets::keys_in_use(connection).map_err(|error| store_error(&path, error))?;
            accepts(&in_use).map_err(|error| StoreError::Failed(format!("{}: {error}", path.display())))
        };
        look::place(&path)?;
        let lock = Lock::share(&path)?;
        let connection = connection::open(&path, writer_wait, check_keys)?;
        let files = Some(Files::of(&path).map_err(|error| {
            StoreError::Failed(format!("{}: {error}; it, or its log, was removed meanwhile", path.display()))
        })?);
        // Without the lock, a restore can recognize this process only by SQLite's own locks.
        let lock = lock
            .inspect(Lock::note_database)
            .inspect_err(|error| {
                tracing::warn!(path = %lock::path_of(&path).display(), %error, "could not lock the lock file of the database; do not restore it while this process runs");
            })
            .ok();
        // All processes must look for outbox files beside the same file, even if they open the
        // database through different links.
        let real = path.canonicalize().map_or_else(|_| Arc::clone(&path), Arc::from);
        let metrics = Arc::<Metrics>::default();
        let (outbox, mut mover) = audit::outbox(real, Arc::clone(&metrics))?;
        mover.move_left();
        let writer = Writer::start(connection, Arc::clone(&path), writer_wait, mover, metrics)?;
        let (clock, outbox, readers) = (Arc::default(), Some(outbox), ThreadLocal::new());
        let _recovery = Some(Recovery::start(Arc::clone(&path), bulk_wait)?);
        let access = Access::Full;
        let max_places = ArcSwap::default();
        Ok(Self {
            path,
            bulk_wait,
            clock,
            max_places,
            outbox,
            access,
            readers,
            _recovery,
            writer,
            files,
            lock,
        })
    }

    /// Opens a database of the current version for reading only. Fails if `accepts` returns an
    /// error, like [`open_if`](Self::open_if). Creates and changes no file. All writes fail, except
    /// the preview of an import.
    pub fn look(path: &Path, accepts: impl Fn(&[String]) -> Result<(), String>) -> Result<Self, StoreError> {
        let path = absolute(path)?;
        let in_use = look::at(&path, secrets::keys_in_use)?;
        accepts(&in_use).map_err(|error| StoreError::Failed(format!("{}: {error}", path.display())))?;
        Ok(Self::reading(path, Access::Looks))
    }

    /// Opens a database like [`look`](Self::look) to preview an import. If the database does not
    /// exist but can be created, the preview uses an empty database.
    pub fn preview(
        path: &Path,
        accepts: impl Fn(&[String]) -> Result<(), String>,
    ) -> Result<Self, StoreError> {
        match look::place(path)? {
            Place::File => Self::look(path, accepts),
            Place::Empty | Place::Nothing => {
                lock::was_not_lost(path)?;
                Ok(Self::reading(absolute(path)?, Access::PreviewsNew))
            }
        }
    }

    fn reading(path: Arc<Path>, access: Access) -> Self {
        let writer = Writer::none(Arc::clone(&path));
        let (clock, readers) = (Arc::default(), ThreadLocal::new());
        let (outbox, _recovery, files, lock) = (None, None, None, None);
        let max_places = ArcSwap::default();
        Self {
            path,
            bulk_wait: BULK_WAIT,
            clock,
            max_places,
            outbox,
            access,
            readers,
            _recovery,
            writer,
            files,
            lock,
        }
    }

    /// Fails with a message for the operator if the path has neither a database nor another file
    /// with content.
    pub fn is_there(path: &Path) -> Result<(), StoreError> {
        look::is_there(path)
    }

    /// Removes a database in which nothing was written after its creation. Fails if another process
    /// has the database open. Returns whether the database was removed. The calling process must
    /// have no connection to the database.
    pub fn remove_unused(path: &Path) -> Result<bool, StoreError> {
        const IS_UNUSED: &str = "SELECT (SELECT headSeq FROM audit_chain) = 0 \
                                 AND NOT EXISTS (SELECT 1 FROM audit_repeat) \
                                 AND NOT EXISTS (SELECT 1 FROM device_table) AND NOT EXISTS (SELECT 1 FROM audit_outbox)";
        let path = absolute(path)?;
        let lock = Lock::alone(&path)?;
        let is_unused = look::at(&path, |connection| connection.query_row(IS_UNUSED, (), |row| row.get(0)))?;
        if is_unused {
            let failed =
                |error| StoreError::Failed(format!("{}: could not be removed: {error}", path.display()));
            lock.remove_database().map_err(failed)?;
        }
        Ok(is_unused)
    }

    /// Examines a file without creating or changing it. Fails for a file of another program,
    /// for a newer version, and for a file that this process cannot write.
    pub fn examine(path: &Path) -> Result<Condition, StoreError> {
        connection::condition(path)
    }

    /// Returns the clock of this handle.
    pub fn clock(&self) -> &Clock {
        &self.clock
    }

    /// Returns up to `limit` names that several devices of one product share, from a file of the
    /// current version. Changes nothing, and reads the whole table.
    pub fn shared_names(path: &Path, limit: usize) -> Result<Vec<SharedName>, StoreError> {
        look::at(path, |connection| names::shared_names(connection, limit))
    }

    /// Returns the IDs of the database keys under which secrets in a file of the current version
    /// are sealed. Changes nothing.
    pub fn keys_in_use_of(path: &Path) -> Result<Vec<String>, StoreError> {
        look::at(path, secrets::keys_in_use)
    }

    /// Counts the unsealed secrets in a file of the current version. Changes nothing. The number may
    /// be too small if there are more than a hundred thousand pre-shared keys.
    pub fn clear_secrets(path: &Path) -> Result<u64, StoreError> {
        look::at(path, secrets::count_clear)
    }

    /// Returns the number of devices of each enrollment in a file of the current version. Changes
    /// nothing.
    pub fn devices_by_enrollment(path: &Path) -> Result<Vec<(String, u64)>, StoreError> {
        let totals = look::at(path, counts::totals)?;
        Ok(totals.into_iter().map(|totals| (totals.enrollment, totals.devices)).collect())
    }

    /// Returns the names of the targets that rows of a file of the current version have. Changes
    /// nothing.
    pub fn targets_of(path: &Path) -> Result<Vec<String>, StoreError> {
        look::at(path, find::targets)
    }

    /// Returns whether one of the first or the last devices of a file of the current version is
    /// registered and has no target in its row. Changes nothing.
    pub fn has_devices_without_target(path: &Path) -> Result<bool, StoreError> {
        look::at(path, find::has_devices_without_target)
    }

    /// Returns the file's absolute path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn reader(&self) -> Result<&Reader, StoreError> {
        self.readers.get_or_try(|| Ok(Reader::new(connection::open_reader(&self.path)?)))
    }

    /// Runs a query over a separate connection.
    fn query<T>(&self, query: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Result<T, StoreError> {
        match self.access {
            Access::Full => {
                let connection = connection::open_reader(&self.path)?;
                query(&connection).map_err(|error| store_error(&self.path, error))
            }
            Access::Looks | Access::PreviewsNew => look::at(&self.path, query),
        }
    }

    /// Runs a query on this thread's connection, and returns a future that is ready.
    fn read<T: Send + 'static>(
        &self,
        query: impl FnOnce(&Connection) -> rusqlite::Result<T>,
    ) -> StoreFuture<'static, T> {
        #[cfg(test)]
        READS.set(READS.get() + 1);
        Box::pin(std::future::ready(self.read_now(query)))
    }

    fn read_now<T>(&self, query: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Result<T, StoreError> {
        match self.access {
            Access::Full => {
                let reader = self.reader()?;
                query(reader.connection()).map_err(|error| store_error(&self.path, error))
            }
            Access::Looks | Access::PreviewsNew => self.query(query),
        }
    }

    /// Makes an operator's change to a device. Also writes an audit entry if the device exists.
    fn operate(
        &self,
        id: &DeviceId,
        event: AuditEvent,
        by: &Actor,
        change: impl FnOnce(&Connection, &DeviceId) -> Result<bool, WriteError> + Send + 'static,
    ) -> StoreFuture<'static, bool> {
        let (id, by, clock) = (id.clone(), by.clone(), self.clock.clone());
        self.writer.submit(move |connection| {
            let now = clock.now();
            if unfinished::is_hidden(connection, &id)? {
                return Ok(false);
            }
            let found = change(connection, &id)?;
            if found {
                audit::forget_refusals(connection, &id)?;
                audit::append(connection, &AuditEntry { device: Some(id), ..by.entry(event, now) })?;
            }
            Ok(found)
        })
    }
}

#[cfg(test)]
thread_local! {
    /// Number of queries that this thread has run.
    pub(crate) static READS: std::cell::Cell<u64> = const { std::cell::Cell::new(0) };
}

/// Returns the absolute path, because connections are opened later, too, when the current directory
/// may have changed. In addition, SQLite would take the bare path `:memory:` as a database in
/// memory.
fn absolute(path: &Path) -> Result<Arc<Path>, StoreError> {
    match std::path::absolute(path) {
        Ok(path) => Ok(path.into()),
        Err(error) => Err(StoreError::Failed(format!("{}: {error}", path.display()))),
    }
}

/// Converts an error of SQLite. The new message names the file. It reveals no secrets, because
/// SQLite's own messages contain no values.
fn store_error(path: &Path, error: rusqlite::Error) -> StoreError {
    let path = path.display();
    match error.sqlite_error_code() {
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
            StoreError::Busy(format!("{path}: another process is writing ({error}); try again"))
        }
        Some(ErrorCode::DiskFull) => {
            StoreError::Busy(format!("{path}: the disk is full ({error}); free some space on it"))
        }
        Some(ErrorCode::ReadOnly) => StoreError::Failed(format!(
            "{path}: this user may not write it ({error}); run the command as the user of the server, for example with \
             sudo -u certdist"
        )),
        Some(ErrorCode::DatabaseCorrupt) => StoreError::Failed(format!(
            "{path}: the database is damaged ({error}); stop certdist, keep a copy of its files, and restore a backup \
             with `certdist restore --force`"
        )),
        Some(ErrorCode::SystemIoFailure) => StoreError::Failed(format!(
            "{path}: the disk could not be read or written ({error}); the kernel's log may have the reason"
        )),
        _ => StoreError::Failed(format!("{path}: {error}")),
    }
}

/// Records the first issue in the table and in the audit log. A repeated issue only reads the row.
fn first_issue(
    connection: &Connection,
    id: DeviceId,
    certificate: &Certificate,
    issue_id: i64,
    asker: Asker,
    now: UnixSeconds,
) -> Result<Issue, WriteError> {
    const SQL: &str = "SELECT firstIssued, issueId, \
                       state = 'enabled' AND enrollment = ?2 AND productKey = ?3 AND deviceName = ?4 \
                       AND deviceSecret IS NOT NULL \
                       FROM device_table WHERE deviceId = ?1";
    let Certificate { product_key, device_name, .. } = certificate;
    let row: Option<(Option<UnixSeconds>, Option<i64>, Option<bool>)> = connection
        .prepare_cached(SQL)?
        .query_row(params![id.as_str(), asker.enrollment, product_key, device_name], |row| {
            Ok((row.get(0)?, row.get(1)?, row.get(2)?))
        })
        .optional()?;
    let Some((first, known_issue, Some(true))) = row else {
        let reason = format!("device {id} was disabled, moved or reset meanwhile");
        return Err(StoreError::Conflict(reason).into());
    };
    if let Some(first) = first {
        return Ok(Issue { first, is_first: known_issue == Some(issue_id) });
    }
    connection
        .prepare_cached(
            "UPDATE device_table SET firstIssued = ?2, issueId = ?3, importId = -abs(importId) WHERE deviceId = ?1",
        )?
        .execute(params![id.as_str(), now, issue_id])?;
    let detail = format!("{product_key}/{device_name}");
    audit::append(connection, &asker.entry(AuditEvent::Issued, now, id, detail))?;
    Ok(Issue { first: now, is_first: true })
}

impl Store for Sqlite {
    fn device<'a>(&'a self, id: &'a DeviceId) -> StoreFuture<'a, Option<DeviceRow>> {
        self.read(|connection| read::device(connection, id))
    }

    fn spelled<'a>(&'a self, mac: &'a DeviceId) -> StoreFuture<'a, Option<DeviceId>> {
        self.read(|connection| read::spelled(connection, mac))
    }

    fn enrollment_of<'a>(&'a self, id: &'a DeviceId) -> StoreFuture<'a, Option<String>> {
        self.read(|connection| read::enrollment_of(connection, id))
    }

    fn individual_key<'a>(&'a self, identity: &'a str) -> StoreFuture<'a, KeyLookup> {
        self.read(|connection| read::individual_key(connection, identity))
    }

    fn record_issue<'a>(
        &'a self,
        id: &'a DeviceId,
        certificate: &'a Certificate,
        issue_id: i64,
        asker: Asker,
    ) -> StoreFuture<'a, Issue> {
        let (id, certificate, clock) = (id.clone(), certificate.clone(), self.clock.clone());
        self.writer
            .submit(move |connection| first_issue(connection, id, &certificate, issue_id, asker, clock.now()))
    }

    fn audit(&self, asked: Asked) -> Result<(), StoreError> {
        match &self.outbox {
            Some(outbox) => outbox.push(asked),
            None => {
                Err(StoreError::Failed(format!("{}: it was opened only to be read", self.path.display())))
            }
        }
    }

    fn history<'a>(&'a self, id: &'a DeviceId, limit: usize) -> StoreFuture<'a, Vec<AuditEntry>> {
        self.read(|connection| audit::history(connection, id, limit))
    }

    fn rows_after<'a>(
        &'a self,
        after: Option<&'a DeviceId>,
        limit: usize,
    ) -> StoreFuture<'a, Vec<DeviceRow>> {
        self.read(|connection| read::rows_after(connection, after, limit))
    }

    fn set_state<'a>(&'a self, id: &'a DeviceId, state: DeviceState, by: &'a Actor) -> StoreFuture<'a, bool> {
        const SQL: &str = "UPDATE device_table SET state = ?2, importId = -abs(importId) WHERE deviceId = ?1";
        let change = PlainChange::from(state);
        let (event, state) = match state {
            DeviceState::Enabled => (AuditEvent::Enabled, "enabled"),
            DeviceState::Disabled => (AuditEvent::Disabled, "disabled"),
        };
        let (actor, clock) = (by.clone(), self.clock.clone());
        self.operate(id, event, by, move |connection, id| {
            orders::permit(connection, id, change, (&actor, clock.now()))?;
            Ok(connection.prepare_cached(SQL)?.execute([id.as_str(), state])? > 0)
        })
    }

    fn reset<'a>(&'a self, id: &'a DeviceId, by: &'a Actor) -> StoreFuture<'a, bool> {
        const RESET: &str = "UPDATE device_table SET firstIssued = NULL, issueId = NULL, refusal = NULL \
                             WHERE deviceId = ?1";
        // A device that was deleted at IoT Platform loses its certificate, and is registered again
        // under the same name.
        const ANEW: &str = "UPDATE device_table SET deviceSecret = NULL, IotId = NULL, registerTime = NULL, \
                            activateTime = NULL, cloudState = NULL \
                            WHERE deviceId = ?1 AND cloudState = 'deleted'";
        self.operate(id, AuditEvent::Reset, by, |connection, id| {
            connection.prepare_cached(ANEW)?.execute([id.as_str()])?;
            Ok(connection.prepare_cached(RESET)?.execute([id.as_str()])? > 0)
        })
    }

    fn clear_refusal<'a>(
        &'a self,
        id: &'a DeviceId,
        refusal: &'a str,
        by: &'a Actor,
    ) -> StoreFuture<'a, bool> {
        const SQL: &str = "UPDATE device_table SET refusal = NULL WHERE deviceId = ?1 AND refusal = ?2";
        let refusal = refusal.to_owned();
        self.operate(id, AuditEvent::Reset, by, move |connection, id| {
            Ok(connection.prepare_cached(SQL)?.execute([id.as_str(), &refusal])? > 0)
        })
    }

    fn delete<'a>(&'a self, id: &'a DeviceId, by: &'a Actor) -> StoreFuture<'a, bool> {
        // ON DELETE CASCADE deletes the key and the claim as well.
        const SQL: &str = "DELETE FROM device_table WHERE deviceId = ?1";
        let (actor, clock) = (by.clone(), self.clock.clone());
        self.operate(id, AuditEvent::Deleted, by, move |connection, id| {
            orders::permit(connection, id, PlainChange::Delete, (&actor, clock.now()))?;
            Ok(connection.prepare_cached(SQL)?.execute([id.as_str()])? > 0)
        })
    }

    fn hold(&self) {
        let Some(outbox) = &self.outbox else { return };
        outbox.hold();
        // If no connection can be opened, the next read reports the error.
        if let Ok(reader) = self.reader() {
            reader.hold();
        }
    }

    fn release(&self) {
        if let Some(outbox) = &self.outbox {
            outbox.release();
        }
        if let Some(reader) = self.readers.get() {
            reader.release();
        }
    }

    fn is_in_place(&self) -> Result<(), StoreError> {
        self.files.map_or(Ok(()), |files| files.are_at(&self.path))
    }

    fn probe(&self) -> StoreFuture<'_, ()> {
        let in_place = self.is_in_place();
        let read = self.rows_after(None, 1);
        Box::pin(async {
            in_place?;
            read.await?;
            let write = self.writer.submit(|connection| {
                // Setting the version makes SQLite write the file's header, even if the version
                // does not change.
                let version: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
                Ok(connection.pragma_update(None, "user_version", version)?)
            });
            write.await
        })
    }

    fn now(&self) -> UnixSeconds {
        self.clock.now()
    }

    fn set_clock_ahead(&self, seconds: i64) {
        self.clock.set_ahead(seconds);
    }

    fn metrics(&self) -> Option<Arc<Metrics>> {
        Some(self.writer.metrics())
    }
}

impl AuditLog for Sqlite {
    fn has_expired(&self, keep: Keep) -> StoreFuture<'_, bool> {
        let now = self.clock.now();
        self.read(|connection| audit::has_expired(connection, keep, now))
    }

    fn prune(&self, keep: Keep) -> StoreFuture<'_, Counts> {
        let now = self.clock.now();
        let pruned = self.writer.submit(move |connection| Ok(audit::prune(connection, keep, now)?));
        let metrics = self.writer.metrics();
        Box::pin(async move {
            let pruned = pruned.await?;
            metrics.changes_removed.fetch_add(pruned.changes, Ordering::Relaxed);
            metrics.repeats_removed.fetch_add(pruned.repeats, Ordering::Relaxed);
            Ok(pruned)
        })
    }

    fn newest_entry(&self) -> StoreFuture<'_, Option<UnixSeconds>> {
        self.read(audit::newest)
    }

    fn export_audit(&self, filter: &Filter, each: EachEntry<'_>) -> Result<(), StoreError> {
        match self.access {
            Access::Full => self.query(|connection| audit::export(connection, filter, each)),
            // With read-only access, the entries of the outbox are exported, too, but cannot be
            // moved.
            Access::Looks | Access::PreviewsNew => look::check(&self.path, |connection| {
                audit::export_with_waiting(connection, &self.path, filter, each)
            }),
        }
    }

    fn review_audit(
        &self,
        kinds: &[AuditEvent],
        since: UnixSeconds,
        time: Duration,
        each: EachEntry<'_>,
    ) -> Result<bool, StoreError> {
        self.query(|connection| audit::review(connection, kinds, (since, time), each))
    }

    fn verify_audit(&self, hash_at: &mut dyn FnMut(u64, &Link)) -> Result<Chain, StoreError> {
        self.query(|connection| audit::verify(connection, hash_at))
    }
}
