//! Imports that can be undone: which import a row comes from, and what the row was before. The rules
//! are in [`undo`](crate::store::undo).

use rusqlite::{Connection, OptionalExtension, Row, Transaction, TransactionBehavior, params};

use super::{audit, claims, writer::WriteError};
use crate::{
    device::DeviceId,
    store::{
        Actor, DeviceRow, UnixSeconds,
        audit::{AuditEntry, AuditEvent},
        merge::{self, Columns},
        undo::{ImportId, ImportRecord, KeyChange, NotUndone, REMEMBERED, UNDOABLE, Undo, Undone, may_undo},
    },
};

/// Rows of an import that nothing has happened to since.
macro_rules! untouched {
    () => {
        "importId = ?1 AND deviceId NOT IN (SELECT deviceId FROM registration_claim)"
    };
}

/// Writes the record of an import. Removes what is too old to be undone.
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
    connection.execute(
        "DELETE FROM import_before WHERE importId IN (SELECT importId FROM import WHERE at < ?1)",
        [now.saturating_sub(UNDOABLE)],
    )?;
    connection.execute(
        "DELETE FROM import WHERE importId IN (SELECT importId FROM import ORDER BY at DESC LIMIT -1 OFFSET ?1)",
        [REMEMBERED.cast_signed()],
    )?;
    Ok(())
}

/// Notes what a row was before an import, and that the row now comes from this import. An import
/// without a number cannot be undone, so its rows need no note.
pub(super) fn note_before(
    connection: &Connection,
    id: Option<ImportId>,
    before: &DeviceRow,
    key_change: KeyChange,
) -> rusqlite::Result<()> {
    const BEFORE: &str = "INSERT INTO import_before (importId, deviceId, former, enrollment, productKey, deviceName, \
                          IotId, refusal, hadSecret, keyChange) \
                          SELECT ?1, deviceId, importId, ?3, ?4, ?5, ?6, ?7, ?8, ?9 FROM device_table \
                          WHERE deviceId = ?2";
    const LABEL: &str = "UPDATE device_table SET importId = ?1 WHERE deviceId = ?2";
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
        key_change
    ])?;
    label(Some(id)).map(drop)
}

/// Returns the imports, newest first.
pub(super) fn all(connection: &Connection) -> rusqlite::Result<Vec<ImportRecord>> {
    let sql = "SELECT importId, at, who, file, added, changed, undone FROM import ORDER BY at DESC, importId";
    let mut statement = connection.prepare(sql)?;
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

/// Undoes an import in one transaction.
pub(super) fn undo(
    connection: &Connection,
    how: Undo<'_>,
    now: UnixSeconds,
) -> Result<Result<Undone, NotUndone>, WriteError> {
    const RECORD: &str =
        "SELECT importId, at, who, file, added, changed, undone FROM import WHERE importId = ?1";
    const UNTOUCHED: &str = concat!("SELECT count(*) FROM device_table WHERE ", untouched!());
    const LOST_KEYS: &str = concat!(
        "SELECT count(*) FROM import_before WHERE importId = ?1 AND keyChange = 'lost' AND deviceId IN \
         (SELECT deviceId FROM device_table WHERE ",
        untouched!(),
        ")"
    );
    const REMOVE: &str = concat!(
        "DELETE FROM device_table WHERE ",
        untouched!(),
        " AND deviceId NOT IN (SELECT deviceId FROM import_before WHERE importId = ?1)"
    );
    // Every return before the commit rolls back.
    let transaction = Transaction::new_unchecked(connection, TransactionBehavior::Immediate)?;
    let id = how.id;
    let record = transaction.query_row(RECORD, [id.0], import_record).optional()?;
    let Some(record) = record else { return Ok(Err(NotUndone::Unknown(id))) };
    let count = |sql| transaction.query_row(sql, [id.0], |row| row.get::<_, i64>(0)).map(i64::cast_unsigned);
    let left = match may_undo(&record, how, count(UNTOUCHED)?, count(LOST_KEYS)?, now) {
        Ok(left) => left,
        Err(reason) => return Ok(Err(reason)),
    };
    let removed = transaction.execute(REMOVE, [id.0])? as u64;
    let restored = match restore(&transaction, id)? {
        Ok(restored) => restored,
        Err(reason) => return Ok(Err(reason)),
    };
    let undone = Undone { removed, restored, left };
    if !how.dry_run {
        transaction.execute("DELETE FROM import_before WHERE importId = ?1", [id.0])?;
        transaction.execute("UPDATE import SET undone = ?2 WHERE importId = ?1", params![id.0, now])?;
        audit::append(&transaction, &entry(how.by, &record, undone))?;
        transaction.commit()?;
    }
    Ok(Ok(undone))
}

/// Gives the changed rows of an import their former values. Returns their number.
fn restore(connection: &Connection, id: ImportId) -> Result<Result<u64, NotUndone>, WriteError> {
    const BEFORE: &str = concat!(
        "SELECT deviceId, former, enrollment, productKey, deviceName, IotId, refusal, hadSecret, keyChange \
         FROM import_before WHERE importId = ?1 AND deviceId IN (SELECT deviceId FROM device_table WHERE ",
        untouched!(),
        ")"
    );
    const RESTORE: &str = "UPDATE device_table SET importId = ?2, enrollment = ?3, productKey = ?4, deviceName = ?5, \
                           IotId = ?6, refusal = ?7, deviceSecret = iif(?8, deviceSecret, NULL) \
                           WHERE deviceId = ?1";
    let (mut restored, mut read) = (0, connection.prepare(BEFORE)?);
    let mut rows = read.query([id.0])?;
    while let Some(row) = rows.next()? {
        let text = |column| row.get::<_, Option<String>>(column);
        let (device, product_key): (String, String) = (row.get(0)?, row.get(3)?);
        let (name, iot_id) = (text(4)?, text(5)?);
        connection.prepare_cached(RESTORE)?.execute(params![
            device,
            row.get::<_, Option<u32>>(1)?,
            row.get::<_, String>(2)?,
            product_key,
            name,
            iot_id,
            text(6)?,
            row.get::<_, bool>(7)?,
        ])?;
        if text(8)?.is_some() {
            connection.prepare_cached("DELETE FROM device_key WHERE deviceId = ?1")?.execute([&device])?;
        }
        if let Some(reason) = shared(connection, &device, &product_key, name.as_deref(), iot_id.as_deref())? {
            return Ok(Err(NotUndone::Conflict { device, reason }));
        }
        restored += 1;
    }
    Ok(Ok(restored))
}

/// Returns why a device cannot have this name or `IotId`, if another device has it.
fn shared(
    connection: &Connection,
    device: &str,
    product_key: &str,
    device_name: Option<&str>,
    iot_id: Option<&str>,
) -> rusqlite::Result<Option<String>> {
    let Ok(device) = DeviceId::parse_sn(device) else { return Ok(None) };
    let columns = Columns { enrollment: "", product_key, device_name, device_secret: None, iot_id };
    let name = merge::name_of(&device, &columns);
    let named = claims::holder_of_name(connection, &device, product_key, &name)?;
    let identified = match iot_id {
        Some(iot_id) => claims::holder_of_iot_id(connection, &device, iot_id)?,
        None => None,
    };
    let unique = merge::unique_name(named, &name).and_then(|()| merge::unique_iot_id(identified));
    Ok(unique.err().map(|conflict| conflict.reason))
}

fn entry(by: &Actor, record: &ImportRecord, undone: Undone) -> AuditEntry {
    let Undone { removed, restored, left } = undone;
    let (id, file) = (record.id, &record.file);
    let detail =
        format!("import {id} of {file}: {removed} devices removed, {restored} restored, {left} left");
    AuditEntry { detail: Some(detail), ..by.entry(AuditEvent::Undone) }
}
