//! Imports that can be undone: records the import from which a row comes, and the row's former
//! values. A row that has changed since its import has the import's number with a minus sign. The
//! rules are in [`undo`](crate::store::undo).

use rusqlite::{Connection, OptionalExtension, Row, Transaction, TransactionBehavior, params};

use super::{audit, claims, read, writer::WriteError};
use crate::{
    device::{DeviceId, Secret},
    store::{
        Actor, DeviceRow, UnixSeconds,
        audit::{AuditEntry, AuditEvent},
        undo::{
            ImportId, ImportRecord, KeyChange, Left, NotUndone, REMEMBERED, UNDOABLE, Undo, Undone, may_undo,
        },
    },
};

/// SQL condition for the rows of import ?1 that were neither changed nor claimed since the import.
macro_rules! untouched {
    () => {
        "importId = ?1 AND deviceId NOT IN (SELECT deviceId FROM registration_claim)"
    };
}

/// Condition for a row of `import_before` (`b`) whose device has not changed since the import ?1,
/// and is not being registered.
macro_rules! is_untouched {
    () => {
        "EXISTS (SELECT 1 FROM main.device_table d WHERE d.deviceId = b.deviceId AND d.importId = ?1) \
         AND NOT EXISTS (SELECT 1 FROM registration_claim c WHERE c.deviceId = b.deviceId)"
    };
}
pub(super) use is_untouched;

/// Query for the columns that [`import_record`] reads.
macro_rules! records {
    () => {
        "SELECT importId, at, who, file, added, changed, undone FROM import"
    };
}

/// Writes the record of an import. Deletes the records of imports that are too old to be undone; the
/// former values of their rows are removed later, in slices.
pub(super) fn record(
    connection: &Connection,
    record: &ImportRecord,
    now: UnixSeconds,
) -> rusqlite::Result<()> {
    let ImportRecord { id, at, who, file, added, changed, undone } = record;
    connection.execute(
        "INSERT INTO import (importId, at, who, file, added, changed, undone) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
        params![id.0, at, who, file, added.cast_signed(), changed.cast_signed(), undone],
    )?;
    const FORGOTTEN: &str =
        "DELETE FROM import WHERE at < ?1 OR number <= (SELECT max(number) FROM import) - ?2";
    connection.execute(FORGOTTEN, params![now.saturating_sub(UNDOABLE), REMEMBERED.cast_signed()])?;
    Ok(())
}

/// Notes a row's values before an import, and notes that the row now comes from this import. For an
/// import without a number, which cannot be undone, only notes that the row has changed. The former
/// key is kept only until the import has ended.
pub(super) fn note_before(
    connection: &Connection,
    id: Option<ImportId>,
    before: &DeviceRow,
    key_change: KeyChange,
    former_key: Option<&(String, Secret)>,
) -> rusqlite::Result<()> {
    const BEFORE: &str = "INSERT INTO import_before (importId, deviceId, former, enrollment, productKey, deviceName, \
                          IotId, refusal, hadSecret, keyChange, formerIdentity, formerPsk) \
                          SELECT ?1, deviceId, importId, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11 FROM device_table \
                          WHERE deviceId = ?2";
    const LABEL: &str = "UPDATE device_table SET importId = coalesce(?1, -abs(importId)) WHERE deviceId = ?2";
    let key_change = match key_change {
        KeyChange::None => None,
        KeyChange::Added => Some("added"),
        KeyChange::Lost => Some("lost"),
    };
    let label = |id: Option<u32>| connection.prepare_cached(LABEL)?.execute(params![id, before.id.as_str()]);
    let Some(ImportId(id)) = id else { return label(None).map(drop) };
    connection.prepare_cached(BEFORE)?.execute(params![
        id,
        before.id.as_str(),
        before.enrollment,
        before.product_key,
        before.device_name,
        before.iot_id,
        before.refusal,
        before.certificate.is_some(),
        key_change,
        former_key.map(|(identity, _)| identity),
        former_key.map(|(_, psk)| psk.expose())
    ])?;
    label(Some(id)).map(drop)
}

/// Returns the recorded imports that added or changed a device, newest first.
pub(super) fn of(connection: &Connection, device: &DeviceId) -> rusqlite::Result<Vec<ImportRecord>> {
    const SQL: &str = concat!(
        records!(),
        " i WHERE importId = (SELECT abs(importId) FROM device_table WHERE deviceId = ?1) OR EXISTS \
         (SELECT 1 FROM import_before b WHERE b.importId = i.importId AND b.deviceId = ?1) OR importId IN \
         (SELECT abs(b.former) FROM import j CROSS JOIN import_before b ON b.importId = j.importId \
         AND b.deviceId = ?1) ORDER BY number DESC"
    );
    connection.prepare_cached(SQL)?.query_map([device.as_str()], import_record)?.collect()
}

/// Returns the devices of an import that have changed since the import or are being registered. If
/// the import was undone, returns all its devices that are still in the table.
pub(super) fn left_of(connection: &Connection, id: ImportId, limit: usize) -> rusqlite::Result<Left> {
    const LEFT: &str = "SELECT deviceId FROM device_table WHERE importId = -?1 OR (importId = ?1 AND (deviceId IN \
                        (SELECT deviceId FROM registration_claim) OR EXISTS (SELECT 1 FROM import \
                        WHERE importId = ?1 AND undone IS NOT NULL))) \
                        UNION SELECT deviceId FROM import_before b WHERE (importId = ?1 OR abs(former) = ?1) \
                        AND EXISTS (SELECT 1 FROM device_table d WHERE d.deviceId = b.deviceId \
                        AND d.importId IS NOT ?1)";
    let count = format!("SELECT count(*) FROM ({LEFT})");
    let devices = connection.query_row(&count, [id.0], |row| row.get::<_, i64>(0))?.cast_unsigned();
    let mut statement = connection.prepare(&format!("{LEFT} ORDER BY deviceId LIMIT ?2"))?;
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let first = statement.query_map(params![id.0, limit], |row| row.get::<_, String>(0))?;
    let first = first.filter_map(|id| id.map(|id| DeviceId::parse_sn(&id).ok()).transpose());
    Ok(Left { devices, first: first.collect::<rusqlite::Result<_>>()? })
}

/// Returns the imports, newest first.
pub(super) fn all(connection: &Connection) -> rusqlite::Result<Vec<ImportRecord>> {
    let mut statement = connection.prepare(concat!(records!(), " ORDER BY number DESC"))?;
    statement.query_map((), import_record)?.collect()
}

fn import_record(row: &Row<'_>) -> rusqlite::Result<ImportRecord> {
    Ok(ImportRecord {
        id: ImportId(row.get(0)?),
        at: row.get(1)?,
        who: row.get(2)?,
        file: row.get(3)?,
        added: row.get::<_, i64>(4)?.cast_unsigned(),
        changed: row.get::<_, i64>(5)?.cast_unsigned(),
        undone: row.get(6)?,
    })
}

/// Returns the beginning of an import's audit entry. By this text, the entry in the log is matched
/// to the [`record`] of the import.
pub(super) fn counts(file: &str, added: u64, changed: u64) -> String {
    format!("{file}: {added} devices added, {changed} changed, ")
}

/// Undoes an import in one transaction.
pub(super) fn undo(
    connection: &Connection,
    how: Undo<'_>,
    now: UnixSeconds,
) -> Result<Result<Undone, NotUndone>, WriteError> {
    const RECORD: &str = concat!(records!(), " WHERE importId = ?1");
    const UNTOUCHED: &str = concat!("SELECT count(*) FROM device_table WHERE ", untouched!());
    const LOST_KEYS: &str = concat!(
        "SELECT count(*) FROM import_before b WHERE importId = ?1 AND keyChange = 'lost' AND ",
        is_untouched!()
    );
    const ADDED: &str = concat!(
        untouched!(),
        " AND deviceId NOT IN (SELECT deviceId FROM import_before WHERE importId = ?1)"
    );
    let certificates = format!("SELECT count(deviceSecret) FROM device_table WHERE {ADDED}");
    let remove = format!("DELETE FROM device_table WHERE {ADDED}");
    // Every return before the commit rolls back.
    let transaction = Transaction::new_unchecked(connection, TransactionBehavior::Immediate)?;
    let id = how.id;
    let record = transaction.query_row(RECORD, [id.0], import_record).optional()?;
    let Some(record) = record else { return Ok(Err(NotUndone::Unknown(id))) };
    let count =
        |sql: &str| transaction.query_row(sql, [id.0], |row| row.get::<_, i64>(0)).map(i64::cast_unsigned);
    let left = match may_undo(&record, how, count(UNTOUCHED)?, count(LOST_KEYS)?) {
        Ok(left) => left,
        Err(reason) => return Ok(Err(reason)),
    };
    let certificates = count(&certificates)?;
    let removed = transaction.execute(&remove, [id.0])? as u64;
    let restored = match restore(&transaction, id)? {
        Ok(restored) => restored,
        Err(reason) => return Ok(Err(reason)),
    };
    let undone = Undone { removed, certificates, restored, left };
    if !how.dry_run {
        transaction.execute("UPDATE import SET undone = ?2 WHERE importId = ?1", params![id.0, now])?;
        audit::append(&transaction, &entry(how.by, &record, undone))?;
        transaction.commit()?;
    }
    Ok(Ok(undone))
}

/// Gives the changed rows of an import their former values. Returns the number of restored rows.
fn restore(connection: &Connection, id: ImportId) -> Result<Result<u64, NotUndone>, WriteError> {
    const BEFORE: &str = concat!(
        "SELECT deviceId, keyChange IS NOT NULL FROM import_before b WHERE importId = ?1 AND ",
        is_untouched!()
    );
    let (mut restored, mut read) = (Vec::new(), connection.prepare(BEFORE)?);
    let mut rows = read.query([id.0])?;
    while let Some(row) = rows.next()? {
        let device: String = row.get(0)?;
        restore_row(connection, id, &device)?;
        if row.get(1)? {
            connection.prepare_cached("DELETE FROM device_key WHERE deviceId = ?1")?.execute([&device])?;
        }
        restored.push(device);
    }
    // Former values are deleted only for restored devices. The import's other devices keep their
    // former values, so that the import of these devices remains known.
    for device in &restored {
        forget_before(connection, id, device)?;
    }
    // Names are checked only after all rows are restored, because two devices may have exchanged
    // their names.
    for device in &restored {
        if let Some(reason) = shared(connection, device)? {
            return Ok(Err(NotUndone::Conflict { device: device.clone(), reason }));
        }
    }
    Ok(Ok(restored.len() as u64))
}

/// Gives a row the values that it had before an import, except for its key.
pub(super) fn restore_row(connection: &Connection, id: ImportId, device: &str) -> rusqlite::Result<()> {
    const RESTORE: &str = "UPDATE device_table SET importId = b.former, enrollment = b.enrollment, productKey = b.productKey, \
                           deviceName = b.deviceName, IotId = b.IotId, refusal = b.refusal, \
                           deviceSecret = iif(b.hadSecret, device_table.deviceSecret, NULL) \
                           FROM import_before b WHERE b.importId = ?1 AND b.deviceId = ?2 \
                           AND device_table.deviceId = ?2";
    connection.prepare_cached(RESTORE)?.execute(params![id.0, device]).map(drop)
}

/// Deletes the values that a row had before an import.
pub(super) fn forget_before(connection: &Connection, id: ImportId, device: &str) -> rusqlite::Result<()> {
    const FORGET: &str = "DELETE FROM import_before WHERE importId = ?1 AND deviceId = ?2";
    connection.prepare_cached(FORGET)?.execute(params![id.0, device]).map(drop)
}

/// Returns the reason why a device cannot keep its name or `IotId`, if another device has the same
/// name or `IotId`.
pub(super) fn shared(connection: &Connection, device: &str) -> rusqlite::Result<Option<String>> {
    let Ok(device) = DeviceId::parse_sn(device) else { return Ok(None) };
    let Some(row) = read::device(connection, &device)? else { return Ok(None) };
    let (name, iot_id) = (row.name(), row.iot_id.as_deref());
    let unique = claims::is_unique(connection, &device, &row.product_key, &name, iot_id)?;
    Ok(unique.err().map(|conflict| conflict.reason))
}

fn entry(by: &Actor, record: &ImportRecord, undone: Undone) -> AuditEntry {
    let Undone { removed, restored, left, .. } = undone;
    let (id, file) = (record.id, &record.file);
    let detail =
        format!("import {id} of {file}: {removed} devices removed, {restored} restored, {left} left");
    AuditEntry { detail: Some(detail), ..by.entry(AuditEvent::Undone) }
}
