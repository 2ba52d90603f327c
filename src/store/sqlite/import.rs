//! Writes the rows of an import, after a check that does not lock the database. A small import is
//! one transaction. A large import is written in slices, and devices and other processes can write
//! between two slices. Until the last slice is written, the devices that the import adds are hidden
//! from every reader, and all its changes can be taken back ([`unfinished`]).

use std::{cell::Cell, time::Instant};

use rusqlite::{Connection, DropBehavior, OptionalExtension, Statement, params};

use super::{
    Access, Sqlite, audit, connection,
    counts::{self, Counted, Counts},
    imports::{self, ChangeOf, FormerKeys},
    lock::ImportLock,
    look, names, read, secrets, store_error,
    unfinished::{self, SLICE, Turns},
    writer::WriteError,
};
use crate::{
    device::{DeviceId, Secret},
    seal,
    store::{
        DeviceRow, ImportError, ImportJob, ImportReport, ImportRow, ImportStage, Reject, Rejection, Rows,
        SameSecret, StoreError, UnixSeconds,
        check::{self, Checked, Staged, Standing},
        merge::{self, Change, Columns, Merged},
        roll::DeviceKeys,
        undo::{ImportId, ImportRecord, KeyChange},
    },
};

/// Maximum number of changed rows of an import that is written in one transaction, not in slices.
const SMALL: u64 = 1000;

/// Number of rows that are checked in one read transaction. A longer transaction would keep the
/// write-ahead log from being moved into the database.
const CHECKED: u64 = 1000;

/// Runs an import or a dry run.
pub(super) fn run(
    store: &Sqlite,
    job: ImportJob<'_>,
    rows: Rows<'_>,
    reject: Reject<'_>,
) -> Result<ImportReport, ImportError> {
    let failed = |error| store_error(&store.path, error);
    if job.dry_run {
        let staged = Staged::read(rows, reject)?;
        let check = |connection: &Connection| check::check(&job, staged, &View::new(connection), reject);
        return match store.access {
            Access::Full => check(&connection::open_reader(&store.path)?),
            Access::Looks => look::check(&store.path, |connection| Ok(check(connection)))?,
            Access::PreviewsNew => check(&connection::open_empty().map_err(failed)?),
        }
        .map(|checked| checked.report);
    }
    if store.access != Access::Full {
        let reason = format!("{}: it was opened only to be read", store.path.display());
        return Err(StoreError::Failed(reason).into());
    }
    // The rows are read before the lock is taken, because another program may write them slowly.
    let staged = Staged::read(rows, reject)?;
    // Only one import runs at a time, so that the check of an import sees all rows of the import
    // before it.
    let _lock = ImportLock::wait(&store.path, store.bulk_wait)?;
    let writer = connection::open_again(&store.path, store.bulk_wait)?;
    writer.pragma_update_and_check(None, "wal_autocheckpoint", 0, |_| Ok(())).map_err(failed)?;
    unfinished::take_back(&writer, &|| false).map_err(failed)?;
    let checked = {
        let reader = connection::open_reader(&store.path)?;
        check::check(&job, staged, &View::new(&reader), reject)?
    };
    if checked.changes() == 0 {
        return Ok(checked.report);
    }
    counts::without_triggers(&writer).map_err(failed)?;
    let import = Import { store, job, writer: &writer };
    let outcome = match checked.changes() {
        ..=SMALL => import.at_once(&checked),
        _ => import.in_slices(&checked),
    };
    if outcome.is_ok()
        && let Err(error) = unfinished::take_back(&writer, &|| false)
    {
        tracing::debug!(%error, "former values of an import are removed later");
    }
    connection::empty_log(&writer);
    outcome.map_err(|failure| match failure {
        Failure::Rejected(at, conflict) => {
            reject(at, Rejection::Conflict(conflict));
            ImportError::Rejected(1)
        }
        Failure::Store(error) => error.into(),
    })
}

/// Reason why checked rows were not written.
enum Failure {
    /// The table has changed since the check, and now contradicts this row.
    Rejected(u64, crate::store::Conflict),
    /// The database failed.
    Store(StoreError),
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

/// The table, read for the check of an import.
struct View<'c> {
    connection: &'c Connection,
    reads: Cell<u64>,
}

impl<'c> View<'c> {
    fn new(connection: &'c Connection) -> Self {
        Self { connection, reads: Cell::new(0) }
    }

    fn read<T>(&self, query: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Result<T, StoreError> {
        query(self.connection).map_err(|error| {
            let path = self.connection.path().unwrap_or_default();
            store_error(path.as_ref(), error)
        })
    }

    /// Begins a read transaction for every [`CHECKED`] rows.
    fn renew(&self) -> rusqlite::Result<()> {
        let reads = self.reads.get();
        self.reads.set(reads + 1);
        match reads {
            0 => self.connection.execute_batch("BEGIN"),
            _ if reads.is_multiple_of(CHECKED) => self.connection.execute_batch("COMMIT; BEGIN"),
            _ => Ok(()),
        }
    }
}

impl Standing for View<'_> {
    fn device(&self, id: &DeviceId) -> Result<Option<DeviceRow>, StoreError> {
        self.read(|connection| {
            self.renew()?;
            read::device(connection, id)
        })
    }

    fn keys(&self, id: &DeviceId) -> Result<Option<DeviceKeys>, StoreError> {
        self.read(|connection| {
            connection.prepare_cached(KEYS)?.query_row([id.as_str()], |row| read::keys(row, 0)).optional()
        })
    }

    fn owner(&self, identity: &str) -> Result<Option<(String, DeviceKeys)>, StoreError> {
        self.read(|connection| {
            let owner = |row: &rusqlite::Row<'_>| Ok((row.get(0)?, read::keys(row, 1)?));
            connection.prepare_cached(OWNER)?.query_row([identity], owner).optional()
        })
    }

    fn holder_of_name(
        &self,
        device: &DeviceId,
        product_key: &str,
        name: &str,
    ) -> Result<Option<DeviceId>, StoreError> {
        self.read(|connection| names::holder_of_name(connection, device, product_key, name))
    }

    fn holder_of_iot_id(&self, device: &DeviceId, iot_id: &str) -> Result<Option<DeviceId>, StoreError> {
        self.read(|connection| names::holder_of_iot_id(connection, device, iot_id))
    }
}

/// The keys of a device, and the time since which it has had the second one.
const KEYS: &str =
    "SELECT pskIdentity, psk, pskNext, pskUsed, pskNextUsed, nextSince FROM device_key WHERE deviceId = ?1";

/// The device of an identity, and its keys.
const OWNER: &str =
    "SELECT deviceId, pskIdentity, psk, pskNext, pskUsed, pskNextUsed FROM device_key WHERE pskIdentity = ?1";

/// Receives each row that changes the table with its index, and `None` for each other row.
type Each<'e> = &'e mut dyn FnMut(Option<(u64, ImportRow)>) -> Result<(), Failure>;

/// An import whose rows are checked.
struct Import<'a> {
    store: &'a Sqlite,
    job: ImportJob<'a>,
    writer: &'a Connection,
}

impl Import<'_> {
    fn failed(&self, error: rusqlite::Error) -> StoreError {
        store_error(&self.store.path, error)
    }

    fn begin(&self) -> Result<(), StoreError> {
        let mut transaction = connection::begin(self.writer).map_err(|error| self.failed(error))?;
        // The transaction ends in `commit` or `roll_back`.
        transaction.set_drop_behavior(DropBehavior::Ignore);
        Ok(())
    }

    fn commit(&self) -> Result<(), StoreError> {
        self.writer.execute_batch("COMMIT").map_err(|error| self.failed(error))
    }

    fn roll_back(&self) {
        if !self.writer.is_autocommit() {
            // If the rollback fails, the transaction ends when its connection is closed.
            let _ = self.writer.execute_batch("ROLLBACK");
        }
    }

    /// Notes the number of this import. Fails if another import has taken it since it was chosen.
    fn note_number(&self, id: ImportId) -> Result<(), StoreError> {
        if imports::note_number(self.writer, id).map_err(|error| self.failed(error))? {
            return Ok(());
        }
        let path = self.store.path.display();
        let reason =
            format!("{path}: another import has the number {id}, so nothing was imported; try again");
        Err(StoreError::Conflict(reason))
    }

    /// Writes all rows in one transaction.
    fn at_once(&self, checked: &Checked) -> Result<ImportReport, Failure> {
        // All rows are read before the transaction begins, because the few rows that change the
        // table may be spread over a file of millions.
        let mut rows = Vec::new();
        checked.each_change(|row| {
            rows.extend(row);
            Ok::<_, Failure>(())
        })?;
        self.begin()?;
        let write = || {
            let all = |each: Each<'_>| rows.into_iter().try_for_each(|row| each(Some(row)));
            self.job.id.map_or(Ok(()), |id| self.note_number(id))?;
            let (report, added) = self.write(checked, all, self.job.id, false, |_, _| Ok(()))?;
            self.finish(checked, report, &added, self.job.id)
        };
        write().inspect_err(|_| self.roll_back())
    }

    /// Writes the rows in slices. After a failure, takes back the changes that are already written.
    fn in_slices(&self, checked: &Checked) -> Result<ImportReport, Failure> {
        let failed = |error| self.failed(error);
        let id = match self.job.id {
            Some(id) => id,
            None => imports::unused(self.writer).map_err(|error| error.into_store_error(&self.store.path))?,
        };
        let (at, by, file) = (self.store.clock.now(), self.job.by, self.job.file);
        let begin = || {
            self.begin()?;
            self.note_number(id)?;
            unfinished::begin(self.writer, id, at, &by.name, file).map_err(failed)?;
            self.commit()
        };
        begin().inspect_err(|_| self.roll_back())?;
        // A slice need not survive a power cut, because the unfinished import is taken back anyway.
        // The commit that ends the import is durable again, and makes all slices durable.
        self.writer.pragma_update(None, "synchronous", "normal").map_err(failed)?;
        let mut turns = Turns::new(self.writer, &|| false);
        let (mut begun, mut written) = (Instant::now(), 0);
        let next = |changed: &mut Counts, done| {
            if begun.elapsed() < SLICE && done - written < turns.rows() {
                return Ok(());
            }
            written = done;
            std::mem::take(changed).write(self.writer).map_err(failed)?;
            self.commit()?;
            turns.end();
            (self.job.progress)(ImportStage::Writing, done, checked.changes());
            self.begin()?;
            begun = Instant::now();
            Ok(())
        };
        let write = || {
            self.begin()?;
            let all = |each: Each<'_>| checked.each_change(each);
            let (report, added) = self.write(checked, all, Some(id), true, next)?;
            self.commit()?;
            (self.job.progress)(ImportStage::Writing, checked.changes(), checked.changes());
            self.writer.pragma_update(None, "synchronous", "full").map_err(failed)?;
            self.begin()?;
            unfinished::end(self.writer, id).map_err(failed)?;
            self.finish(checked, report, &added, self.job.id)
        };
        write().inspect_err(|_| {
            self.roll_back();
            if let Err(error) = unfinished::take_back(self.writer, &|| false) {
                let error = self.failed(error);
                tracing::warn!(%error, "an import has failed, and what it has written is not taken back yet; a server, or the next import, takes it back");
            }
        })
    }

    /// Merges all rows that change the table. After each row, calls `next` with the changes of the
    /// device counts that are not written yet, and the number of merged rows. Returns the report, and
    /// the counts of the added devices, which the caller must write.
    fn write(
        &self,
        checked: &Checked,
        all: impl FnOnce(Each<'_>) -> Result<(), Failure>,
        id: Option<ImportId>,
        keeps_keys: bool,
        mut next: impl FnMut(&mut Counts, u64) -> Result<(), StoreError>,
    ) -> Result<(ImportReport, Counts), Failure> {
        let failed = |error| self.failed(error);
        let same_secret = self.job.same_secret;
        let at = self.store.clock.now();
        let mut table = Table::prepare(self.writer, id, at, same_secret, keeps_keys).map_err(failed)?;
        let mut report = ImportReport { unchanged: checked.report.unchanged, ..ImportReport::default() };
        all(&mut |row| {
            if let Some((at, row)) = row {
                match table.merge(&row) {
                    Ok(merged) => report.count(merged),
                    Err(Unmerged::Conflict(conflict)) => return Err(Failure::Rejected(at, conflict)),
                    Err(Unmerged::Failed(error)) => {
                        return Err(error.into_store_error(&self.store.path).into());
                    }
                }
            }
            next(&mut table.changed, report.added + report.changed).map_err(Failure::Store)
        })?;
        table.changed.write(self.writer).map_err(failed)?;
        Ok((report, table.added))
    }

    /// Writes the counts of added devices, the record of the import and its audit entry, and
    /// commits.
    fn finish(
        &self,
        checked: &Checked,
        report: ImportReport,
        added: &Counts,
        id: Option<ImportId>,
    ) -> Result<ImportReport, Failure> {
        let failed = |error| self.failed(error);
        added.write(self.writer).map_err(failed)?;
        let ImportJob { by, file, .. } = self.job;
        if report.added + report.changed > 0 {
            let entry = checked.entry(&self.job, report, self.store.clock.now());
            audit::append(self.writer, &entry).map_err(failed)?;
            if let Some(id) = id {
                let ImportReport { added, changed, .. } = report;
                let (at, who, file) = (self.store.clock.now(), by.name.clone(), file.to_owned());
                let record = ImportRecord { id, at, who, file, added, changed, undone: None };
                imports::record(self.writer, &record, at).map_err(failed)?;
            }
        }
        self.commit()?;
        Ok(report)
    }
}

pub(super) type Unmerged = merge::Unmerged<WriteError>;

impl<E: Into<WriteError>> From<E> for Unmerged {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

/// Prepared statements of an import. Most rows add a device, which takes a single statement. If the
/// device is already in the table, its stored row is read, and is written only if the imported row
/// changes it.
pub(super) struct Table<'c> {
    connection: &'c Connection,
    id: Option<ImportId>,
    /// Time of the import.
    at: UnixSeconds,
    same_secret: SameSecret<'c>,
    /// ID of the database key under which the last written secret is sealed; the table
    /// `database_key` contains this ID. `Some(None)`: the last secret is not sealed. `None`: no
    /// secret was written yet.
    noted: Option<Option<String>>,
    insert: Statement<'c>,
    update: Statement<'c>,
    insert_key: Statement<'c>,
    owner_of_key: Statement<'c>,
    update_key: Statement<'c>,
    delete_key: Statement<'c>,
    former_keys: Statement<'c>,
    /// Set if former keys are kept, so that the import can be taken back.
    keeps_keys: bool,
    /// The last changed device, and a counter of changed devices. The counter starts at the first
    /// device that does not come in order of device ID.
    last: Option<DeviceId>,
    late: i64,
    /// Counts of the devices that were added. They are written when the devices become visible.
    added: Counts,
    /// Changes of the counts by devices that were already in the table.
    pub(super) changed: Counts,
}

impl<'c> Table<'c> {
    pub(super) fn prepare(
        connection: &'c Connection,
        id: Option<ImportId>,
        at: UnixSeconds,
        same_secret: SameSecret<'c>,
        keeps_keys: bool,
    ) -> rusqlite::Result<Self> {
        Ok(Self {
            keeps_keys,
            last: None,
            late: 0,
            added: Counts::default(),
            changed: Counts::default(),
            connection,
            id,
            at,
            same_secret,
            noted: None,
            insert: connection.prepare(
                "INSERT INTO device_table (deviceId, enrollment, productKey, deviceName, deviceSecret, \
                 IotId, importId, target) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8) ON CONFLICT (deviceId) DO NOTHING",
            )?,
            update: connection.prepare(
                "UPDATE device_table SET enrollment = ?2, productKey = ?3, deviceName = ?4, \
                 deviceSecret = ?5, IotId = ?6, refusal = NULL, target = ?7 WHERE deviceId = ?1",
            )?,
            insert_key: connection.prepare(
                "INSERT INTO device_key (pskIdentity, deviceId, psk, pskNext, nextSince) VALUES (?1, ?2, ?3, ?4, ?5) \
                 ON CONFLICT DO NOTHING",
            )?,
            owner_of_key: connection.prepare(OWNER)?,
            update_key: connection.prepare(
                "UPDATE device_key SET pskIdentity = ?1, psk = ?3, pskNext = ?4, nextSince = ?5, pskUsed = NULL, \
                 pskNextUsed = NULL WHERE deviceId = ?2",
            )?,
            delete_key: connection.prepare("DELETE FROM device_key WHERE deviceId = ?1")?,
            former_keys: connection.prepare(KEYS)?,
        })
    }

    /// Notes the database key under which a written secret is sealed, unless the last secret had
    /// the same database key.
    fn note(&mut self, stored: &Secret) -> rusqlite::Result<()> {
        let key = seal::key_of(stored.expose());
        if self.noted.as_ref().is_none_or(|noted| noted.as_deref() != key) {
            secrets::note(self.connection, stored.expose())?;
            self.noted = Some(key.map(str::to_owned));
        }
        Ok(())
    }

    pub(super) fn merge(&mut self, row: &ImportRow) -> Result<Merged, Unmerged> {
        if self.insert(row)? {
            self.merge_key(row, true)?;
            return Ok(Merged::Added);
        }
        let absent = || StoreError::Failed(format!("device {} cannot be read", row.device));
        let stored = read::device(self.connection, &row.device)?.ok_or_else(absent)?;
        let former_keys = if self.keeps_keys { self.keys_of(&row.device)? } else { None };
        let (device_changed, lost_key) = self.update(&stored, row)?;
        let key_change = self.merge_key(row, false)?.or_lost(lost_key);
        if device_changed || key_change != KeyChange::None {
            let former_keys = former_keys.filter(|_| key_change == KeyChange::Lost);
            let late = self.late(&row.device);
            let change = ChangeOf { key: key_change, former_keys: former_keys.as_ref(), late };
            imports::note_before(self.connection, self.id, &stored, &change)?;
        }
        Ok(Merged::of(stored.enrollment != row.enrollment, device_changed, key_change))
    }

    /// Returns the position of a changed device, counted from the first device that is out of order;
    /// `None` for each device before that one.
    fn late(&mut self, device: &DeviceId) -> Option<i64> {
        let is_late = self.late > 0 || self.last.as_ref().is_some_and(|last| last > device);
        self.last = Some(device.clone());
        self.late += i64::from(is_late);
        is_late.then_some(self.late)
    }

    /// Returns the stored keys of a device.
    fn keys_of(&mut self, device: &DeviceId) -> rusqlite::Result<Option<FormerKeys>> {
        let keys = |row: &rusqlite::Row<'_>| Ok(FormerKeys { keys: read::keys(row, 0)?, since: row.get(5)? });
        self.former_keys.query_row([device.as_str()], keys).optional()
    }

    /// Adds a device; returns false if the device is already in the table.
    fn insert(&mut self, row: &ImportRow) -> Result<bool, Unmerged> {
        let columns = merge::new_device(row);
        let Columns { enrollment, product_key, device_name, device_secret, iot_id, target } = columns;
        let secret = device_secret.map(Secret::expose);
        let id = self.id.map(|id| id.0);
        let parameters =
            params![row.device.as_str(), enrollment, product_key, device_name, secret, iot_id, id, target];
        let added = self.insert.execute(parameters)? > 0;
        if added {
            self.added.add(&Counted::new(&columns));
            device_secret.map_or(Ok(()), |secret| self.note(secret))?;
            self.is_unique(row, &columns)?;
        }
        Ok(added)
    }

    /// Checks that no other device has the name or the `IotId` of the row's device.
    fn is_unique(&self, row: &ImportRow, columns: &Columns<'_>) -> Result<(), Unmerged> {
        let name = merge::name_of(&row.device, columns);
        let Columns { product_key, iot_id, .. } = *columns;
        Ok(names::is_unique(self.connection, &row.device, product_key, &name, iot_id)??)
    }

    /// Merges a row into a device that is in the table. Returns whether the device has changed, and
    /// whether it has lost its key.
    fn update(&mut self, stored: &DeviceRow, row: &ImportRow) -> Result<(bool, bool), Unmerged> {
        let same_secret = merge::has_same_secret(stored, row, self.same_secret)?;
        let Some(Change { columns, drops_key }) = merge::known_device(stored, row, same_secret)? else {
            return Ok((false, false));
        };
        self.is_unique(row, &columns)?;
        let Columns { enrollment, product_key, device_name, device_secret, iot_id, target } = columns;
        device_secret.map_or(Ok(()), |secret| self.note(secret))?;
        self.update.execute(params![
            row.device.as_str(),
            enrollment,
            product_key,
            device_name,
            device_secret.map(Secret::expose),
            iot_id,
            target
        ])?;
        let former = Counted::of(stored);
        self.changed.remove(&former);
        self.changed.add(&former.merged(&columns));
        let lost_key = drops_key && self.delete_key.execute([row.device.as_str()])? > 0;
        Ok((true, lost_key))
    }

    /// Sets the device's keys, and returns how they have changed.
    fn merge_key(&mut self, row: &ImportRow, added: bool) -> Result<KeyChange, Unmerged> {
        let device = row.device.as_str();
        let Some((identity, psk)) = &row.key else {
            let has_key = row.individual && !added && self.keys_of(&row.device)?.is_some();
            merge::without_key(row, has_key)?;
            return Ok(KeyChange::None);
        };
        let next = row.next_key.as_ref().map(Secret::expose);
        let since = next.map(|_| self.at);
        let keys = params![identity, device, psk.expose(), next, since];
        if self.insert_key.execute(keys)? > 0 {
            self.note(psk)?;
            return Ok(KeyChange::Added);
        }
        // No key was added: either the identity is already in the table, or the device already has
        // another identity.
        let owner = |row: &rusqlite::Row<'_>| Ok((row.get::<_, String>(0)?, read::keys(row, 1)?));
        let stored = match self.owner_of_key.query_row([identity], owner).optional()? {
            Some((owner, stored)) => {
                merge::identity_of(&owner, row)?;
                Some(stored)
            }
            None => self.keys_of(&row.device)?.map(|former| former.keys),
        };
        let change = merge::key_change(stored.as_ref(), row, self.same_secret)??;
        if change != KeyChange::None {
            self.note(psk)?;
            self.update_key.execute(keys)?;
        }
        Ok(change)
    }
}
