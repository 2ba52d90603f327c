//! Stores the device table in one SQLite file. Each thread reads over its own connection, so
//! that workers share no lock. One thread writes, and commits all waiting writes together. In
//! WAL mode, writes do not block reads, not even those of a `certdist import` beside a running
//! server.

pub mod audit;
pub mod backup;
mod bulk;
mod connection;
mod keys;
mod read;
mod writer;

#[cfg(test)]
mod tests;

use std::{path::Path, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use rusqlite::{Connection, ErrorCode, OptionalExtension, params};
use thread_local::ThreadLocal;
use tokio::sync::watch;

pub use self::keys::{SealReport, Sealed};
use self::{
    read::Reader,
    writer::{WriteError, Writer},
};
use super::{
    Actor, BatchId, Claim, CloudState, Condition, DeviceRow, DeviceState, IndividualKey, Issue, JournalEntry,
    Metrics, OpenBatch, OpenEntry, RegisteredDevice, Sighting, Store, StoreError, StoreFuture, UnixSeconds,
    audit::{Asked, Asker, AuditEntry, AuditEvent, Keep, Link},
    unix_now,
};
use crate::{
    device::{Certificate, DeviceId},
    seal::{Keyring, Place},
};

/// Maximum time that a group of writes waits for a transaction of another process. Then the
/// writes fail, and waiting devices are asked to retry.
const WRITER_WAIT: Duration = Duration::from_secs(5);

/// Maximum time that an import waits for a transaction of another process: an operator has more
/// patience than a device.
const BULK_WAIT: Duration = Duration::from_secs(60);

/// Pause between two searches for expired entries of the audit log.
const PRUNE_EVERY: Duration = Duration::from_secs(60);

/// The device table in an SQLite file. Dropping the store first completes all queued writes.
pub struct Sqlite {
    path: Arc<Path>,
    bulk_wait: Duration,
    /// Keys under which secrets are sealed. Read without a lock.
    keys: ArcSwap<Keyring>,
    entries: audit::Queue,
    // Dropped before the writer, as the writer's connection must close last: only a writing
    // connection can move the write-ahead log into the database file and remove the log.
    readers: ThreadLocal<Reader>,
    writer: Writer,
}

impl Sqlite {
    /// Opens a database. Creates it (mode 0600) if the file does not exist or is empty, and
    /// migrates an older version. Refuses a file of another program or of a newer version, and
    /// leaves it unchanged. Also refuses a database with sealed secrets.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        Self::open_sealed(path, Keyring::default())
    }

    /// Opens a database whose secrets are sealed, or will be sealed, under these keys. Fails if
    /// the keys do not open every secret in it.
    pub fn open_sealed(path: &Path, keys: Keyring) -> Result<Self, StoreError> {
        Self::open_waiting(path, keys, WRITER_WAIT, BULK_WAIT)
    }

    fn open_waiting(
        path: &Path,
        keys: Keyring,
        writer_wait: Duration,
        bulk_wait: Duration,
    ) -> Result<Self, StoreError> {
        // Absolute, as connections are also opened later, when the current directory may have
        // changed. Besides, SQLite would take the bare path `:memory:` for a database in
        // memory.
        let path: Arc<Path> = std::path::absolute(path)
            .map_err(|error| StoreError::Failed(format!("{}: {error}", path.display())))?
            .into();
        let connection = connection::open(&path, writer_wait)?;
        keys::check(&connection, &path, &keys)?;
        let (entries, waiting) = audit::queue(Arc::clone(&path))?;
        let writer = Writer::start(connection, Arc::clone(&path), waiting)?;
        Ok(Self {
            path,
            bulk_wait,
            keys: ArcSwap::from_pointee(keys),
            entries,
            readers: ThreadLocal::new(),
            writer,
        })
    }

    /// Examines a file without creating or changing it. Fails for a file of another program,
    /// for a newer version, and for a file that this process cannot write.
    pub fn examine(path: &Path) -> Result<Condition, StoreError> {
        connection::look(path)
    }

    /// Returns the file's absolute path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn reader(&self) -> Result<&Reader, StoreError> {
        self.readers.get_or_try(|| Ok(Reader::new(connection::open_reader(&self.path)?)))
    }

    /// Runs a query on this thread's connection, and returns a future that is ready.
    fn read<T: Send + 'static>(
        &self,
        query: impl FnOnce(&Connection, &Keyring) -> rusqlite::Result<T>,
    ) -> StoreFuture<'static, T> {
        #[cfg(test)]
        READS.set(READS.get() + 1);
        let result = self.reader().and_then(|reader| {
            let connection = reader.connection();
            query(connection, &self.keys.load()).map_err(|error| store_error(&self.path, error))
        });
        Box::pin(std::future::ready(result))
    }

    /// Removes a limited number of expired entries of the audit log; returns how many.
    pub fn prune_audit(&self, keep: Keep) -> StoreFuture<'_, u64> {
        self.writer.submit(move |connection| Ok(audit::prune(connection, keep, unix_now())?))
    }

    /// Prunes the audit log once a minute, and whenever the retention changes, until the
    /// sender of `keep` is dropped.
    pub async fn keep_pruned(&self, mut keep: watch::Receiver<Keep>) {
        loop {
            let kept = *keep.borrow_and_update();
            match self.prune_audit(kept).await {
                Ok(0) => {}
                // Each call removes a limited number of entries, so there may be more.
                Ok(pruned) => {
                    tracing::info!(entries = pruned, "removed expired entries of the audit log");
                    continue;
                }
                Err(error) => {
                    tracing::warn!(%error, "could not remove expired entries of the audit log; trying again")
                }
            }
            if let Ok(Err(_)) = tokio::time::timeout(PRUNE_EVERY, keep.changed()).await {
                return;
            }
        }
    }

    /// Calls `each` with each matching entry of the audit log and the hash of its block, oldest
    /// first.
    pub fn export_audit<E: From<StoreError>>(
        &self,
        filter: &audit::Filter,
        each: impl FnMut(AuditEntry, Link) -> Result<(), E>,
    ) -> Result<(), E> {
        let connection = connection::open_reader(&self.path)?;
        audit::export(&connection, filter, each).map_err(|error| store_error(&self.path, error))?
    }

    /// Verifies the chain of the audit log. `hash_at` receives the number of each block's last
    /// entry, and the block's hash.
    pub fn verify_audit(&self, hash_at: impl FnMut(u64, &Link)) -> Result<audit::Chain, StoreError> {
        let connection = connection::open_reader(&self.path)?;
        audit::verify(&connection, hash_at).map_err(|error| store_error(&self.path, error))
    }

    /// Makes an operator's change to a device. Also writes an audit entry if the device exists.
    fn operate(
        &self,
        id: &DeviceId,
        event: AuditEvent,
        by: &Actor,
        change: impl FnOnce(&Connection, &DeviceId) -> rusqlite::Result<bool> + Send + 'static,
    ) -> StoreFuture<'static, bool> {
        let (id, by) = (id.clone(), by.clone());
        self.writer.submit(move |connection| {
            let found = change(connection, &id)?;
            if found {
                audit::append(connection, &AuditEntry { device: Some(id), ..by.entry(event) })?;
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

/// Converts an error of SQLite. The message names the file. It reveals no secrets, as SQLite's
/// own messages contain no values.
fn store_error(path: &Path, error: rusqlite::Error) -> StoreError {
    let path = path.display();
    if let Some(error) = keys::seal_error(&error) {
        return StoreError::Failed(format!("{path}: {error}"));
    }
    match error.sqlite_error_code() {
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
            StoreError::Busy(format!("{path}: another process is writing ({error})"))
        }
        Some(ErrorCode::DiskFull) => StoreError::Busy(format!("{path}: {error}")),
        _ => StoreError::Failed(format!("{path}: {error}")),
    }
}

fn not_in_the_table(id: &DeviceId) -> WriteError {
    WriteError::Refused(format!("device {id} is not in the table"))
}

/// Returns the certificate of a device, if any; the device must be in the table.
fn stored_certificate(
    connection: &Connection,
    keys: &Keyring,
    id: &DeviceId,
) -> Result<Option<Certificate>, WriteError> {
    read::device(connection, keys, id)?.map(|row| row.certificate).ok_or_else(|| not_in_the_table(id))
}

/// Records the first issue in the table and in the audit log. If one is recorded already, only
/// reads.
fn first_issue(
    connection: &Connection,
    id: DeviceId,
    at: UnixSeconds,
    asker: Asker,
) -> Result<Issue, WriteError> {
    const SQL: &str = "SELECT firstIssued, productKey || '/' || coalesce(deviceName, '') \
                       FROM device_table WHERE deviceId = ?1";
    let row: Option<(Option<UnixSeconds>, String)> = connection
        .prepare_cached(SQL)?
        .query_row([id.as_str()], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    let (first, certificate) = row.ok_or_else(|| not_in_the_table(&id))?;
    if let Some(first) = first {
        return Ok(Issue { first, is_first: false });
    }
    connection
        .prepare_cached("UPDATE device_table SET firstIssued = ?2 WHERE deviceId = ?1")?
        .execute(params![id.as_str(), at])?;
    audit::append(connection, &asker.entry(AuditEvent::Issued, at, id, certificate))?;
    Ok(Issue { first: at, is_first: true })
}

/// Opens the journal entry of a device that is in the table.
fn open_entry(
    connection: &Connection,
    entry: &JournalEntry,
    batch: Option<BatchId>,
    now: UnixSeconds,
) -> rusqlite::Result<Claim> {
    const EARLIER: &str = "SELECT openedAt FROM registration_journal \
                           WHERE deviceId = ?1 AND productKey = ?2 AND deviceName = ?3";
    const OPEN: &str = "INSERT INTO registration_journal \
                        (deviceId, productKey, deviceName, openedAt, batchId) VALUES (?1, ?2, ?3, ?4, ?5) \
                        ON CONFLICT (deviceId) DO UPDATE SET productKey = excluded.productKey, \
                        deviceName = excluded.deviceName, openedAt = excluded.openedAt, \
                        batchId = excluded.batchId";
    let JournalEntry { device, product_key, device_name } = entry;
    let earlier: Option<UnixSeconds> = connection
        .prepare_cached(EARLIER)?
        .query_row([device.as_str(), product_key, device_name], |row| row.get(0))
        .optional()?;
    let since = earlier.unwrap_or(now);
    connection.prepare_cached(OPEN)?.execute(params![
        device.as_str(),
        product_key,
        device_name,
        since,
        batch
    ])?;
    Ok(Claim { since, earlier: earlier.is_some() })
}

fn close_journal(connection: &Connection, id: &DeviceId) -> rusqlite::Result<()> {
    connection
        .prepare_cached("DELETE FROM registration_journal WHERE deviceId = ?1")?
        .execute([id.as_str()])
        .map(drop)
}

/// Returns the column in which two certificates of a device differ.
fn difference(stored: &Certificate, other: &Certificate) -> Option<&'static str> {
    [
        ("productKey", stored.product_key == other.product_key),
        ("deviceName", stored.device_name == other.device_name),
        ("deviceSecret", stored.device_secret == other.device_secret),
    ]
    .into_iter()
    .find_map(|(column, same)| (!same).then_some(column))
}

impl Store for Sqlite {
    fn device<'a>(&'a self, id: &'a DeviceId) -> StoreFuture<'a, Option<DeviceRow>> {
        self.read(|connection, keys| read::device(connection, keys, id))
    }

    fn enrollment_of<'a>(&'a self, id: &'a DeviceId) -> StoreFuture<'a, Option<String>> {
        self.read(|connection, _| read::enrollment_of(connection, id))
    }

    fn individual_key<'a>(&'a self, identity: &'a str) -> StoreFuture<'a, Option<IndividualKey>> {
        self.read(|connection, keys| read::individual_key(connection, keys, identity))
    }

    fn record_issue<'a>(&'a self, id: &'a DeviceId, at: UnixSeconds, asker: Asker) -> StoreFuture<'a, Issue> {
        let id = id.clone();
        self.writer.submit(move |connection| first_issue(connection, id, at, asker))
    }

    fn audit(&self, asked: Asked) {
        self.entries.push(asked);
    }

    fn history<'a>(&'a self, id: &'a DeviceId, limit: usize) -> StoreFuture<'a, Vec<AuditEntry>> {
        self.read(|connection, _| audit::history(connection, id, limit))
    }

    fn open_journal<'a>(&'a self, entry: &'a JournalEntry) -> StoreFuture<'a, Claim> {
        let (entry, keys) = (entry.clone(), self.keys.load_full());
        self.writer.submit(move |connection| {
            stored_certificate(connection, &keys, &entry.device)?;
            Ok(open_entry(connection, &entry, None, unix_now())?)
        })
    }

    fn open_batch<'a>(
        &'a self,
        product_key: &'a str,
        entries: &'a [JournalEntry],
    ) -> StoreFuture<'a, (BatchId, Vec<Option<Claim>>)> {
        const BATCH: &str = "INSERT INTO registration_batch (productKey, openedAt) VALUES (?1, ?2)";
        const KNOWN: &str = "SELECT 1 FROM device_table WHERE deviceId = ?1";
        let (product_key, entries) = (product_key.to_owned(), entries.to_vec());
        self.writer.submit(move |connection| {
            let now = unix_now();
            connection.prepare_cached(BATCH)?.execute(params![product_key, now])?;
            let batch = connection.last_insert_rowid();
            let mut known = connection.prepare_cached(KNOWN)?;
            let claims = entries
                .iter()
                .map(|entry| match known.exists([entry.device.as_str()])? {
                    true => open_entry(connection, entry, Some(batch), now).map(Some),
                    false => Ok(None),
                })
                .collect::<rusqlite::Result<_>>()?;
            Ok((batch, claims))
        })
    }

    fn set_apply_id<'a>(&'a self, batch: &'a OpenBatch, apply_id: u64) -> StoreFuture<'a, ()> {
        // Another process may have closed the batch in the meantime, as if a crash had left it.
        // In that case the batch is added again.
        const SQL: &str = "INSERT INTO registration_batch (batchId, productKey, applyId, openedAt) \
                           VALUES (?1, ?2, ?3, ?4) \
                           ON CONFLICT (batchId) DO UPDATE SET applyId = excluded.applyId";
        let OpenBatch { id, product_key, .. } = batch.clone();
        self.writer.submit(move |connection| {
            let row = params![id, product_key, apply_id.cast_signed(), unix_now()];
            connection.prepare_cached(SQL)?.execute(row)?;
            Ok(())
        })
    }

    fn close_batch(&self, batch: BatchId) -> StoreFuture<'_, ()> {
        self.writer.submit(move |connection| {
            connection
                .prepare_cached("UPDATE registration_journal SET batchId = NULL WHERE batchId = ?1")?
                .execute([batch])?;
            connection
                .prepare_cached("DELETE FROM registration_batch WHERE batchId = ?1")?
                .execute([batch])?;
            Ok(())
        })
    }

    fn open_batches(&self) -> StoreFuture<'_, Vec<OpenBatch>> {
        self.read(|connection, _| read::batches(connection))
    }

    fn open_journal_entries(&self) -> StoreFuture<'_, Vec<OpenEntry>> {
        self.read(|connection, _| read::journal(connection))
    }

    fn store_registration<'a>(
        &'a self,
        id: &'a DeviceId,
        registration: &'a RegisteredDevice,
    ) -> StoreFuture<'a, ()> {
        // A known time or identifier is kept: the same registration may be stored twice.
        const SQL: &str = "UPDATE device_table SET productKey = ?2, deviceName = ?3, deviceSecret = ?4, \
                           IotId = coalesce(IotId, ?5), registerTime = coalesce(registerTime, ?6), \
                           refusal = NULL WHERE deviceId = ?1";
        let (id, registration, keys) = (id.clone(), registration.clone(), self.keys.load_full());
        self.writer.submit(move |connection| {
            let RegisteredDevice { certificate, iot_id, registered } = &registration;
            let Certificate { product_key, device_name, device_secret } = certificate;
            let stored = stored_certificate(connection, &keys, &id)?;
            let is_new = stored.is_none();
            if let Some(stored) = stored
                && let Some(column) = difference(&stored, certificate)
            {
                return Err(WriteError::Refused(format!(
                    "device {id} already has another certificate (column {column}), which was kept"
                )));
            }
            keys::note(connection, &keys)?;
            let sealed = keys.seal(Place::DeviceSecret(id.as_str()), device_secret.expose())?;
            connection.prepare_cached(SQL)?.execute(params![
                id.as_str(),
                product_key,
                device_name,
                *sealed,
                iot_id,
                registered
            ])?;
            close_journal(connection, &id)?;
            if is_new {
                let detail = Some(format!("{product_key}/{device_name}"));
                let entry = AuditEntry::new(AuditEvent::Registered, unix_now());
                audit::append(connection, &AuditEntry { device: Some(id), detail, ..entry })?;
            }
            Ok(())
        })
    }

    fn store_refusal<'a>(&'a self, id: &'a DeviceId, reason: &'a str) -> StoreFuture<'a, ()> {
        let (id, reason) = (id.clone(), reason.to_owned());
        self.writer.submit(move |connection| {
            let changed = connection
                .prepare_cached("UPDATE device_table SET refusal = ?2 WHERE deviceId = ?1")?
                .execute([id.as_str(), &reason])?;
            if changed == 0 {
                return Err(not_in_the_table(&id));
            }
            close_journal(connection, &id)?;
            Ok(())
        })
    }

    fn store_sighting<'a>(&'a self, id: &'a DeviceId, sighting: Sighting) -> StoreFuture<'a, ()> {
        const SQL: &str = "UPDATE device_table SET activateTime = coalesce(activateTime, ?2), \
                           registerTime = coalesce(?4, registerTime), cloudState = ?3 WHERE deviceId = ?1 AND deviceSecret IS NOT NULL";
        let id = id.clone();
        self.writer.submit(move |connection| {
            let state = sighting.state.map(|state| match state {
                CloudState::Disabled => "disabled",
                CloudState::Deleted => "deleted",
            });
            let Sighting { registered, activated, .. } = sighting;
            connection.prepare_cached(SQL)?.execute(params![id.as_str(), activated, state, registered])?;
            Ok(())
        })
    }

    fn rows_after<'a>(
        &'a self,
        after: Option<&'a DeviceId>,
        limit: usize,
    ) -> StoreFuture<'a, Vec<DeviceRow>> {
        self.read(|connection, keys| read::rows_after(connection, keys, after, limit))
    }

    fn set_state<'a>(&'a self, id: &'a DeviceId, state: DeviceState, by: &'a Actor) -> StoreFuture<'a, bool> {
        const SQL: &str = "UPDATE device_table SET state = ?2 WHERE deviceId = ?1";
        let (event, state) = match state {
            DeviceState::Enabled => (AuditEvent::Enabled, "enabled"),
            DeviceState::Disabled => (AuditEvent::Disabled, "disabled"),
        };
        self.operate(id, event, by, move |connection, id| {
            Ok(connection.prepare_cached(SQL)?.execute([id.as_str(), state])? > 0)
        })
    }

    fn reset<'a>(&'a self, id: &'a DeviceId, by: &'a Actor) -> StoreFuture<'a, bool> {
        const RESET: &str = "UPDATE device_table SET firstIssued = NULL, refusal = NULL WHERE deviceId = ?1";
        // A device that the cloud has deleted is registered again, under the same name.
        const ANEW: &str = "UPDATE device_table SET deviceSecret = NULL, IotId = NULL, registerTime = NULL, \
                            activateTime = NULL, cloudState = NULL \
                            WHERE deviceId = ?1 AND cloudState = 'deleted'";
        self.operate(id, AuditEvent::Reset, by, |connection, id| {
            connection.prepare_cached(ANEW)?.execute([id.as_str()])?;
            Ok(connection.prepare_cached(RESET)?.execute([id.as_str()])? > 0)
        })
    }

    fn delete<'a>(&'a self, id: &'a DeviceId, by: &'a Actor) -> StoreFuture<'a, bool> {
        // ON DELETE CASCADE also deletes the key and the journal entry.
        const SQL: &str = "DELETE FROM device_table WHERE deviceId = ?1";
        self.operate(id, AuditEvent::Deleted, by, |connection, id| {
            Ok(connection.prepare_cached(SQL)?.execute([id.as_str()])? > 0)
        })
    }

    fn hold(&self) {
        // If no connection can be opened, the next read reports the error.
        if let Ok(reader) = self.reader() {
            reader.hold();
        }
    }

    fn release(&self) {
        if let Some(reader) = self.readers.get() {
            reader.release();
        }
    }

    fn probe(&self) -> StoreFuture<'_, ()> {
        let read = self.rows_after(None, 1);
        Box::pin(async {
            read.await?;
            let write = self.writer.submit(|connection| {
                // SQLite writes the file's header even if the version does not change.
                let version: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
                Ok(connection.pragma_update(None, "user_version", version)?)
            });
            write.await
        })
    }

    fn metrics(&self) -> Option<Arc<Metrics>> {
        Some(self.writer.metrics())
    }
}
