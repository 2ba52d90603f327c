//! Whole tables in and out: an import in one transaction, an export from one
//! state. Both run on the calling thread over a connection of their own, beside
//! whatever else reads and writes. Knows what may be merged into a row and what
//! contradicts it, and nothing of the file that the rows come from.

use std::{collections::BTreeSet, sync::Arc};

use rusqlite::{Connection, OptionalExtension, Params, Statement, Transaction, TransactionBehavior, params};
use zeroize::Zeroizing;

use super::{Sqlite, audit, connection, keys, read, store_error};
use crate::{
    device::{DeviceId, Secret},
    seal::{Keyring, Place},
    store::{
        Actor, Bulk, Conflict, DeviceRow, ImportError, ImportReport, ImportRow, Rejection, StoreError,
        Totals,
        audit::{AuditEntry, AuditEvent},
    },
};

/// KiB of page cache for an import: rows in no order touch pages all over the
/// table, and what does not fit is written to the log more than once.
const IMPORT_CACHE: i64 = -131_072;

impl Bulk for Sqlite {
    fn import<E>(
        &self,
        by: &Actor,
        file: &str,
        rows: impl Iterator<Item = Result<ImportRow, E>>,
        dry_run: bool,
        mut reject: impl FnMut(u64, Rejection<E>),
    ) -> Result<ImportReport, ImportError> {
        let failed = |error| store_error(&self.path, error);
        let connection = connection::open_again(&self.path, self.bulk_wait)?;
        connection.pragma_update(None, "cache_size", IMPORT_CACHE).map_err(failed)?;
        // The log is emptied once, at the end, and not in the midst of COMMIT.
        connection.pragma_update_and_check(None, "wal_autocheckpoint", 0, |_| Ok(())).map_err(failed)?;
        let outcome = import(&connection, self, (by, file), rows, dry_run, &mut reject);
        if connection.total_changes() > 0 {
            connection::empty_log(&connection);
        }
        outcome
    }

    fn export<E: From<StoreError>>(
        &self,
        each: impl FnMut(DeviceRow, Option<(String, Secret)>) -> Result<(), E>,
    ) -> Result<(), E> {
        let connection = connection::open_reader(&self.path)?;
        read::export(&connection, &self.keys.load(), each).map_err(|error| store_error(&self.path, error))?
    }

    fn count(&self) -> Result<u64, StoreError> {
        self.count_rows("SELECT count(*) FROM device_table", ())
    }

    fn totals(&self) -> Result<Vec<Totals>, StoreError> {
        const SQL: &str = "SELECT enrollment, count(*), count(deviceSecret), count(firstIssued), \
                           count(activateTime), count(refusal), sum(state = 'disabled') \
                           FROM device_table GROUP BY enrollment ORDER BY enrollment";
        let connection = connection::open_reader(&self.path)?;
        let failed = |error| store_error(&self.path, error);
        let mut statement = connection.prepare(SQL).map_err(failed)?;
        let rows = statement.query_map((), |row| {
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
        });
        rows.and_then(Iterator::collect).map_err(failed)
    }

    fn count_unregistered(&self, enrollment: Option<&str>) -> Result<u64, StoreError> {
        const SQL: &str = "SELECT count(*) FROM device_table WHERE deviceSecret IS NULL AND refusal IS NULL \
                           AND state = 'enabled' AND (?1 IS NULL OR enrollment = ?1)";
        self.count_rows(SQL, [enrollment])
    }
}

impl Sqlite {
    fn count_rows(&self, sql: &str, parameters: impl Params) -> Result<u64, StoreError> {
        connection::open_reader(&self.path)?
            .query_row(sql, parameters, |row| row.get::<_, i64>(0))
            .map(i64::unsigned_abs)
            .map_err(|error| store_error(&self.path, error))
    }
}

fn import<E>(
    connection: &Connection,
    store: &Sqlite,
    (by, file): (&Actor, &str),
    rows: impl Iterator<Item = Result<ImportRow, E>>,
    dry_run: bool,
    reject: &mut impl FnMut(u64, Rejection<E>),
) -> Result<ImportReport, ImportError> {
    let failed = |error| store_error(&store.path, error);
    // Until it commits, every way out of here rolls back.
    let transaction =
        Transaction::new_unchecked(connection, TransactionBehavior::Immediate).map_err(failed)?;
    let mut table = Table::prepare(&transaction, store.keys.load_full()).map_err(failed)?;
    let (mut report, mut rejected) = (ImportReport::default(), 0);
    let mut enrollments = BTreeSet::new();
    for (index, row) in (0..).zip(rows) {
        // After a rejected row the rest is still merged, although in vain: so the
        // operator learns of all that is wrong with the file at once.
        let rejection = match row {
            Err(error) => Rejection::Unreadable(error),
            Ok(row) => match table.merge(&row) {
                Ok(merged) => {
                    match merged {
                        Merged::Added => report.added += 1,
                        Merged::Changed => report.changed += 1,
                        Merged::Unchanged => report.unchanged += 1,
                    }
                    if !enrollments.contains(&row.enrollment) {
                        enrollments.insert(row.enrollment);
                    }
                    continue;
                }
                Err(Unmerged::Conflict(conflict)) => Rejection::Conflict(conflict),
                Err(Unmerged::Sqlite(error)) => return Err(failed(error).into()),
            },
        };
        rejected += 1;
        reject(index, rejection);
    }
    drop(table);
    if rejected > 0 {
        return Err(ImportError::Rejected(rejected));
    }
    if !dry_run {
        if report.added + report.changed > 0 {
            let entry = imported(by, file, report, enrollments);
            audit::append(&transaction, &entry).map_err(failed)?;
        }
        transaction.commit().map_err(failed)?;
    }
    Ok(report)
}

/// The entry about an import. The enrollments are those of the configuration, so that
/// there are not many.
fn imported(by: &Actor, file: &str, report: ImportReport, enrollments: BTreeSet<String>) -> AuditEntry {
    let ImportReport { added, changed, unchanged } = report;
    let mut detail = format!("{file}: {added} devices added, {changed} changed, {unchanged} unchanged");
    let mut enrollments: Vec<_> = enrollments.into_iter().collect();
    if enrollments.len() > 1 {
        detail.push_str(", in ");
        detail.push_str(&enrollments.join(", "));
        enrollments.clear();
    }
    AuditEntry { enrollment: enrollments.pop(), detail: Some(detail), ..by.entry(AuditEvent::Imported) }
}

enum Merged {
    Added,
    Changed,
    Unchanged,
}

enum Unmerged {
    Conflict(Conflict),
    Sqlite(rusqlite::Error),
}

impl From<rusqlite::Error> for Unmerged {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sqlite(error)
    }
}

fn conflict(column: &'static str, reason: impl Into<String>) -> Unmerged {
    Unmerged::Conflict(Conflict { column, reason: reason.into() })
}

/// The statements of an import, prepared once. A row that is new, the usual one,
/// takes a single statement; one that is there is compared and, if it is alike,
/// not written.
struct Table<'c> {
    connection: &'c Connection,
    keys: Arc<Keyring>,
    /// Whether it is noted under which key secrets are written.
    noted: bool,
    insert: Statement<'c>,
    update: Statement<'c>,
    insert_key: Statement<'c>,
    owner_of_key: Statement<'c>,
    update_key: Statement<'c>,
    has_key: Statement<'c>,
    delete_key: Statement<'c>,
}

impl<'c> Table<'c> {
    fn prepare(connection: &'c Connection, keys: Arc<Keyring>) -> rusqlite::Result<Self> {
        Ok(Self {
            connection,
            keys,
            noted: false,
            insert: connection.prepare(
                "INSERT INTO device_table (deviceId, enrollment, productKey, deviceName, deviceSecret, \
                 IotId) VALUES (?1, ?2, ?3, ?4, ?5, ?6) ON CONFLICT (deviceId) DO NOTHING",
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

    /// A secret as it is stored.
    fn seal(&mut self, place: Place<'_>, clear: &Secret) -> rusqlite::Result<Zeroizing<String>> {
        if !self.noted {
            keys::note(self.connection, &self.keys)?;
            self.noted = true;
        }
        keys::sealed(&self.keys, place, clear.expose())
    }

    fn merge(&mut self, row: &ImportRow) -> Result<Merged, Unmerged> {
        let place = Place::DeviceSecret(row.device.as_str());
        let device_secret = row.device_secret.as_ref().map(|clear| self.seal(place, clear)).transpose()?;
        let added = self.insert.execute(params![
            row.device.as_str(),
            row.enrollment,
            row.product_key.as_ref().unwrap_or(&row.enrollment_product),
            row.device_name,
            device_secret.as_deref(),
            row.iot_id
        ])? > 0;
        let changed = !added && self.merge_device(row)?;
        let key_changed = self.merge_key(row, added)?;
        Ok(match (added, changed || key_changed) {
            (true, _) => Merged::Added,
            (false, true) => Merged::Changed,
            (false, false) => Merged::Unchanged,
        })
    }

    /// Merges into a row that is there; whether that changed it.
    fn merge_device(&mut self, row: &ImportRow) -> Result<bool, Unmerged> {
        let Some(stored) = read::device(self.connection, &self.keys, &row.device)? else {
            return Ok(false);
        };
        let moves = stored.enrollment != row.enrollment;
        let product_key = match &row.product_key {
            Some(product_key) => product_key,
            // Not told: it stays, unless it came with the former enrollment.
            None if moves => &row.enrollment_product,
            None => &stored.product_key,
        };
        let device_name = row.device_name.as_ref().or(stored.device_name.as_ref());
        let stored_secret = stored.certificate.as_ref().map(|certificate| &certificate.device_secret);
        let device_secret = row.device_secret.as_ref().or(stored_secret);
        let iot_id = row.iot_id.as_ref().or(stored.iot_id.as_ref());

        let new_product = *product_key != stored.product_key;
        let new_name = device_name != stored.device_name.as_ref();
        let new_secret = device_secret != stored_secret;
        let new_iot_id = iot_id != stored.iot_id.as_ref();
        if stored.certificate.is_some() {
            const HAS_ONE: &str = "the device already has a certificate";
            if moves {
                let stored = &stored.enrollment;
                return Err(conflict("enrollment", format!("{HAS_ONE}, in enrollment \"{stored}\"")));
            }
            if new_product {
                let stored = &stored.product_key;
                return Err(conflict("productKey", format!("{HAS_ONE}, of product \"{stored}\"")));
            }
            if new_name {
                return Err(conflict("deviceName", format!("{HAS_ONE}, with another name")));
            }
            if new_secret {
                return Err(conflict("deviceSecret", format!("{HAS_ONE}, with another secret")));
            }
            if new_iot_id && stored.iot_id.is_some() {
                return Err(conflict("iotId", format!("{HAS_ONE}, with another iotId")));
            }
        }
        if !(moves || new_product || new_name || new_secret || new_iot_id) {
            return Ok(false);
        }
        let place = Place::DeviceSecret(row.device.as_str());
        let sealed = device_secret.map(|clear| self.seal(place, clear)).transpose()?;
        self.update.execute(params![
            row.device.as_str(),
            row.enrollment,
            product_key,
            device_name,
            sealed.as_deref(),
            iot_id
        ])?;
        if moves && !row.individual {
            // The key of an enrollment that it has left opens nothing any more.
            self.delete_key.execute([row.device.as_str()])?;
        }
        Ok(true)
    }

    fn is_sealed_of(&self, place: Place<'_>, stored: &str, clear: &Secret) -> rusqlite::Result<bool> {
        Ok(keys::opened(&self.keys, place, stored)? == *clear)
    }

    /// Sets the device's key; whether that changed anything.
    fn merge_key(&mut self, row: &ImportRow, added: bool) -> Result<bool, Unmerged> {
        let device = row.device.as_str();
        let Some((identity, psk)) = &row.key else {
            if row.individual && (added || !self.has_key.exists([device])?) {
                let reason = format!(
                    "a device of the individual enrollment \"{}\" needs pskIdentity and psk",
                    row.enrollment
                );
                return Err(conflict("pskIdentity", reason));
            }
            return Ok(false);
        };
        let sealed = self.seal(Place::Psk { device, identity }, psk)?;
        if self.insert_key.execute([identity, device, &*sealed])? > 0 {
            return Ok(true);
        }
        // Either the identity is taken, or the device has another one.
        let owner = self
            .owner_of_key
            .query_row([identity], |row| {
                Ok((row.get::<_, String>(0)?, Zeroizing::new(row.get::<_, String>(1)?)))
            })
            .optional()?;
        match owner {
            Some((owner, _)) if owner != device => Err(conflict("pskIdentity", taken(&owner))),
            Some((_, stored)) if self.is_sealed_of(Place::Psk { device, identity }, &stored, psk)? => {
                Ok(false)
            }
            _ => Ok(self.update_key.execute([identity, device, &*sealed])? > 0),
        }
    }
}

fn taken(owner: &str) -> String {
    match DeviceId::parse_sn(owner) {
        Ok(owner) => format!("this identity belongs to device {owner}"),
        Err(_) => "this identity belongs to another device".to_owned(),
    }
}
