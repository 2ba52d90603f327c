//! Imports rows in one transaction, and exports them from one state of the table. An import or
//! export runs on the calling thread over its own connection, while other threads read and write.
//! This module does not depend on the file from which the rows come. The rules of an import are in
//! [`merge`].

use std::{
    collections::{BTreeSet, HashSet},
    path::Path,
    time::Duration,
};

use rusqlite::{Connection, OptionalExtension, Params, Statement, Transaction, TransactionBehavior, params};

use super::{
    Access, Sqlite, audit, backup, claims, connection, find, imports, look, read, secrets, store_error,
    writer::WriteError,
};
use crate::{
    device::{AskedId, DeviceId, Secret},
    seal::{self, Place},
    store::{
        Actor, Bulk, DeviceRow, Each, ImportError, ImportJob, ImportReport, ImportRow, Reject, Rows,
        SameSecret, StoreError, Totals,
        audit::{AuditEntry, AuditEvent},
        backup::Contents,
        filter::{Cursor, Filter, Found, Held, Listed, Tally},
        merge::{self, Change, Columns, Merged},
        undo::{ImportId, ImportRecord, KeyChange, Left, Undo, UndoError, Undone},
    },
};

/// Page cache of an import: 128 MiB (SQLite takes a negative number as KiB). Unordered rows change
/// pages throughout the table. A page that does not fit into the cache is written to the log more
/// than once.
const IMPORT_CACHE: i64 = -131_072;

impl Bulk for Sqlite {
    fn import(
        &self,
        job: ImportJob<'_>,
        rows: Rows<'_>,
        reject: Reject<'_>,
    ) -> Result<ImportReport, ImportError> {
        let failed = |error| store_error(&self.path, error);
        let connection = match self.access {
            Access::Full => connection::open_again(&self.path, self.bulk_wait)?,
            _ if !job.dry_run => {
                let reason = format!("{}: it was opened only to be read", self.path.display());
                return Err(StoreError::Failed(reason).into());
            }
            Access::Looks => connection::open_preview(&self.path, self.bulk_wait)?,
            Access::PreviewsNew => connection::open_empty().map_err(failed)?,
        };
        connection.pragma_update(None, "cache_size", IMPORT_CACHE).map_err(failed)?;
        // The write-ahead log is emptied once, after the import, and not during COMMIT.
        connection.pragma_update_and_check(None, "wal_autocheckpoint", 0, |_| Ok(())).map_err(failed)?;
        let outcome = import(&connection, self, job, rows, reject);
        if self.access == Access::Full && connection.total_changes() > 0 {
            connection::empty_log(&connection);
        }
        outcome
    }

    fn export(&self, each: Each<'_>) -> Result<(), StoreError> {
        self.query(|connection| read::export(connection, each))
    }

    fn imports(&self) -> Result<Vec<ImportRecord>, StoreError> {
        self.read_now(imports::all)
    }

    fn imports_of(&self, device: &DeviceId) -> Result<Vec<ImportRecord>, StoreError> {
        self.read_now(|connection| imports::of(connection, device))
    }

    fn left_of(&self, id: ImportId, limit: usize) -> Result<Left, StoreError> {
        self.read_now(|connection| imports::left_of(connection, id, limit))
    }

    fn undo_import(&self, how: Undo<'_>) -> Result<Undone, UndoError> {
        let connection = match self.access {
            Access::Looks if how.dry_run => connection::open_preview(&self.path, self.bulk_wait)?,
            _ => connection::open_again(&self.path, self.bulk_wait)?,
        };
        let outcome = imports::undo(&connection, how, self.clock.now());
        Ok(outcome.map_err(|error| error.into_store_error(&self.path))??)
    }

    fn spelled_macs(&self) -> Result<HashSet<DeviceId>, StoreError> {
        match self.access {
            Access::PreviewsNew => Ok(HashSet::new()),
            Access::Full | Access::Looks => self.query(read::spelled_macs),
        }
    }

    fn known_as(&self, asked: &AskedId) -> Result<Option<DeviceId>, StoreError> {
        self.read_now(|connection| read::known_as(connection, asked))
    }

    fn count(&self) -> Result<u64, StoreError> {
        self.count_rows("SELECT count(*) FROM device_table", ())
    }

    fn totals(&self) -> Result<Vec<Totals>, StoreError> {
        const SQL: &str = "SELECT +enrollment, count(*), count(deviceSecret), count(firstIssued), \
                           count(activateTime), count(refusal), sum(state = 'disabled') \
                           FROM device_table GROUP BY +enrollment ORDER BY 1";
        let totals = |row: &rusqlite::Row<'_>| {
            let count = |column| row.get::<_, i64>(column).map(i64::unsigned_abs);
            Ok(Totals {
                enrollment: row.get(0)?,
                devices: count(1)?,
                registered: count(2)?,
                issued: count(3)?,
                activated: count(4)?,
                refused: count(5)?,
                disabled: count(6)?,
            })
        };
        self.query(|connection| connection.prepare(SQL)?.query_map((), totals)?.collect())
    }

    fn count_unregistered(&self, enrollment: Option<&str>) -> Result<u64, StoreError> {
        const SQL: &str = "SELECT count(*) FROM device_table WHERE deviceSecret IS NULL AND refusal IS NULL \
                           AND state = 'enabled' AND (?1 IS NULL OR enrollment = ?1)";
        self.count_rows(SQL, [enrollment])
    }

    fn find(
        &self,
        filter: &Filter,
        from: &Cursor,
        limit: usize,
        time: Duration,
    ) -> Result<Found, StoreError> {
        self.query(|connection| find::find(connection, filter, from, limit, time))
    }

    fn tally(&self, filter: &Filter, time: Duration) -> Result<Tally, StoreError> {
        self.query(|connection| find::tally(connection, filter, time))
    }

    fn held(&self, limit: usize) -> Result<Vec<Held>, StoreError> {
        self.query(|connection| find::held(connection, limit))
    }

    fn listed(&self, ids: &[DeviceId]) -> Result<Vec<Listed>, StoreError> {
        self.query(|connection| find::listed(connection, ids))
    }

    fn products(&self) -> Result<Vec<String>, StoreError> {
        self.query(find::products)
    }

    fn back_up(&self, to: &Path, progress: &mut dyn FnMut(u64, u64)) -> Result<Contents, StoreError> {
        match self.access {
            Access::Full => {
                let source = connection::open_reader(&self.path)?;
                backup::back_up(&source, &self.path, to, progress)
            }
            Access::Looks | Access::PreviewsNew => {
                look::check(&self.path, |source| backup::back_up(source, &self.path, to, progress))
            }
        }?
        .complete(to)
    }
}

impl Sqlite {
    fn count_rows(&self, sql: &str, parameters: impl Params) -> Result<u64, StoreError> {
        let count = |row: &rusqlite::Row<'_>| row.get::<_, i64>(0).map(i64::unsigned_abs);
        self.query(|connection| connection.query_row(sql, parameters, count))
    }
}

fn import(
    connection: &Connection,
    store: &Sqlite,
    ImportJob { by, file, id, dry_run, same_secret }: ImportJob<'_>,
    rows: Rows<'_>,
    reject: Reject<'_>,
) -> Result<ImportReport, ImportError> {
    let failed = |error| store_error(&store.path, error);
    // Every return before the commit rolls back.
    let transaction =
        Transaction::new_unchecked(connection, TransactionBehavior::Immediate).map_err(failed)?;
    let mut table = Table::prepare(&transaction, id, same_secret).map_err(failed)?;
    let mut enrollments = BTreeSet::new();
    let merge = |row: ImportRow| {
        let merged = table.merge(&row)?;
        if !enrollments.contains(&row.enrollment) {
            enrollments.insert(row.enrollment);
        }
        Ok(merged)
    };
    let failed_row = |error: WriteError| error.into_store_error(&store.path);
    let report = merge::all_rows(rows, merge, failed_row, reject)?;
    drop(table);
    if !dry_run {
        if report.added + report.changed > 0 {
            let entry = imported(by, file, report, enrollments);
            audit::append(&transaction, &entry).map_err(failed)?;
            if let Some(id) = id {
                let ImportReport { added, changed, .. } = report;
                let (at, who, file) = (store.clock.now(), by.name.clone(), file.to_owned());
                let record = ImportRecord { id, at, who, file, added, changed, undone: None };
                imports::record(&transaction, &record, at).map_err(failed)?;
            }
        }
        transaction.commit().map_err(failed)?;
    }
    Ok(report)
}

/// Returns the audit entry about an import. The entry names all enrollments of the imported rows,
/// because a configuration has only a few enrollments.
fn imported(by: &Actor, file: &str, report: ImportReport, enrollments: BTreeSet<String>) -> AuditEntry {
    let ImportReport { added, changed, unchanged, .. } = report;
    let mut detail = format!("{}{unchanged} unchanged", imports::counts(file, added, changed));
    let mut enrollments: Vec<_> = enrollments.into_iter().collect();
    if enrollments.len() > 1 {
        detail.push_str(", in ");
        detail.push_str(&enrollments.join(", "));
        enrollments.clear();
    }
    AuditEntry { enrollment: enrollments.pop(), detail: Some(detail), ..by.entry(AuditEvent::Imported) }
}

type Unmerged = merge::Unmerged<WriteError>;

impl<E: Into<WriteError>> From<E> for Unmerged {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

/// Prepared statements of an import. A new device, the usual case, takes a single statement. For a
/// device that is already in the table, the stored row is read, and written only if the imported
/// row changes it.
struct Table<'c> {
    connection: &'c Connection,
    id: Option<ImportId>,
    same_secret: SameSecret<'c>,
    /// ID of the database key of the last secret that was written, as noted in the table
    /// `database_key`; the inner `None` is for an unsealed secret, and the outer `None` applies
    /// before the first secret.
    noted: Option<Option<String>>,
    insert: Statement<'c>,
    update: Statement<'c>,
    insert_key: Statement<'c>,
    owner_of_key: Statement<'c>,
    update_key: Statement<'c>,
    has_key: Statement<'c>,
    delete_key: Statement<'c>,
}

impl<'c> Table<'c> {
    fn prepare(
        connection: &'c Connection,
        id: Option<ImportId>,
        same_secret: SameSecret<'c>,
    ) -> rusqlite::Result<Self> {
        Ok(Self {
            connection,
            id,
            same_secret,
            noted: None,
            insert: connection.prepare(
                "INSERT INTO device_table (deviceId, enrollment, productKey, deviceName, deviceSecret, \
                 IotId, importId) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7) ON CONFLICT (deviceId) DO NOTHING",
            )?,
            update: connection.prepare(
                "UPDATE device_table SET enrollment = ?2, productKey = ?3, deviceName = ?4, \
                 deviceSecret = ?5, IotId = ?6, refusal = NULL WHERE deviceId = ?1",
            )?,
            insert_key: connection.prepare(
                "INSERT INTO device_key (pskIdentity, deviceId, psk) VALUES (?1, ?2, ?3) \
                 ON CONFLICT DO NOTHING",
            )?,
            owner_of_key: connection
                .prepare("SELECT deviceId, psk FROM device_key WHERE pskIdentity = ?1")?,
            update_key: connection
                .prepare("UPDATE device_key SET pskIdentity = ?1, psk = ?3 WHERE deviceId = ?2")?,
            has_key: connection.prepare("SELECT 1 FROM device_key WHERE deviceId = ?1")?,
            delete_key: connection.prepare("DELETE FROM device_key WHERE deviceId = ?1")?,
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

    fn merge(&mut self, row: &ImportRow) -> Result<Merged, Unmerged> {
        if self.insert(row)? {
            self.merge_key(row, true)?;
            return Ok(Merged::Added);
        }
        let absent = || StoreError::Failed(format!("device {} cannot be read", row.device));
        let stored = read::device(self.connection, &row.device)?.ok_or_else(absent)?;
        let (device_changed, lost_key) = self.update(&stored, row)?;
        let key_change = match self.merge_key(row, false)? {
            KeyChange::None if lost_key => KeyChange::Lost,
            change => change,
        };
        if device_changed || key_change != KeyChange::None {
            imports::note_before(self.connection, self.id, &stored, key_change)?;
        }
        Ok(Merged::of(stored.enrollment != row.enrollment, device_changed, key_change))
    }

    /// Adds a device; returns false if the device is already in the table.
    fn insert(&mut self, row: &ImportRow) -> Result<bool, Unmerged> {
        let columns = merge::new_device(row);
        let Columns { enrollment, product_key, device_name, device_secret, iot_id } = columns;
        let secret = device_secret.map(Secret::expose);
        let id = self.id.map(|id| id.0);
        let parameters =
            params![row.device.as_str(), enrollment, product_key, device_name, secret, iot_id, id];
        let added = self.insert.execute(parameters)? > 0;
        if added {
            device_secret.map_or(Ok(()), |secret| self.note(secret))?;
            self.is_unique(row, &columns)?;
        }
        Ok(added)
    }

    /// Checks that no other device has the name or the `IotId`.
    fn is_unique(&self, row: &ImportRow, columns: &Columns<'_>) -> Result<(), Unmerged> {
        let name = merge::name_of(&row.device, columns);
        let Columns { product_key, iot_id, .. } = *columns;
        Ok(claims::is_unique(self.connection, &row.device, product_key, &name, iot_id)??)
    }

    /// Merges a row into a device that is in the table. Returns whether the device has changed, and
    /// whether it has lost its key.
    fn update(&mut self, stored: &DeviceRow, row: &ImportRow) -> Result<(bool, bool), Unmerged> {
        let same_secret = merge::has_same_secret(stored, row, self.same_secret)?;
        let Some(Change { columns, drops_key }) = merge::known_device(stored, row, same_secret)? else {
            return Ok((false, false));
        };
        self.is_unique(row, &columns)?;
        let Columns { enrollment, product_key, device_name, device_secret, iot_id } = columns;
        device_secret.map_or(Ok(()), |secret| self.note(secret))?;
        self.update.execute(params![
            row.device.as_str(),
            enrollment,
            product_key,
            device_name,
            device_secret.map(Secret::expose),
            iot_id
        ])?;
        let lost_key = drops_key && self.delete_key.execute([row.device.as_str()])? > 0;
        Ok((true, lost_key))
    }

    /// Sets the device's key, and returns how the key has changed.
    fn merge_key(&mut self, row: &ImportRow, added: bool) -> Result<KeyChange, Unmerged> {
        let device = row.device.as_str();
        let Some((identity, psk)) = &row.key else {
            let has_key = row.individual && !added && self.has_key.exists([device])?;
            merge::without_key(row, has_key)?;
            return Ok(KeyChange::None);
        };
        if self.insert_key.execute([identity, device, psk.expose()])? > 0 {
            self.note(psk)?;
            return Ok(KeyChange::Added);
        }
        // No row was added. Either a row already has this identity, or the device already has
        // another identity.
        let owner = self
            .owner_of_key
            .query_row([identity], |row| Ok((row.get::<_, String>(0)?, Secret::new(row.get(1)?))))
            .optional()?;
        if let Some((owner, stored)) = owner {
            merge::identity_of(&owner, row)?;
            if (self.same_secret)(Place::Psk { device, identity }, &stored, psk)? {
                return Ok(KeyChange::None);
            }
        }
        self.note(psk)?;
        let changed = self.update_key.execute([identity, device, psk.expose()])?;
        Ok(if changed > 0 { KeyChange::Lost } else { KeyChange::None })
    }
}
