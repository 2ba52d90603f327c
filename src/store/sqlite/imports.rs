//! Imports that can be undone: records the import from which a row comes, and the row's former
//! values. A row that has changed since its import has the import's number with a minus sign. The
//! rules are in [`undo`](crate::store::undo).

use rusqlite::{Connection, OptionalExtension, Row, params};

use super::{names, read, writer::WriteError};
use crate::{
    device::{DeviceId, Secret},
    store::{
        DeviceRow, ImportActivity, StoreError, UnixSeconds,
        roll::DeviceKeys,
        undo::{ImportId, ImportRecord, KeyChange, Left, REMEMBERED, UNDOABLE},
    },
};

/// Condition for a row of `import_before` (`b`, which may be NULL): the key that its device has used
/// last is the second key from the import. The rule is
/// [`Roll::uses_next`](crate::store::roll::Roll::uses_next).
macro_rules! uses_next {
    () => {
        "(coalesce(b.addedNext, 0) AND EXISTS (SELECT 1 FROM device_key k WHERE k.deviceId = b.deviceId \
         AND k.pskNextUsed IS NOT NULL AND (k.pskUsed IS NULL OR k.pskNextUsed > k.pskUsed)))"
    };
}
pub(super) use uses_next;

/// Condition for a row of `import_before` (`b`) whose device has not changed since the import ?1,
/// does not need a second key from it, and is not being registered.
macro_rules! is_untouched {
    () => {
        concat!(
            "EXISTS (SELECT 1 FROM main.device_table d WHERE d.deviceId = b.deviceId AND d.importId = ?1) \
             AND NOT EXISTS (SELECT 1 FROM registration_claim c WHERE c.deviceId = b.deviceId) AND NOT ",
            $crate::store::sqlite::imports::uses_next!()
        )
    };
}
pub(super) use is_untouched;

/// Query for the columns that [`import_record`] reads.
macro_rules! records {
    () => {
        "SELECT importId, at, who, file, added, changed, undone FROM import"
    };
}

/// Maximum number of attempts to find an unused number. The first attempt almost always finds one.
const ATTEMPTS: usize = 16;

/// Returns a random number that no import has had.
pub(super) fn unused(connection: &Connection) -> Result<ImportId, WriteError> {
    first_unused(connection, ImportId::random)
}

fn first_unused(
    connection: &Connection,
    mut random: impl FnMut() -> Result<ImportId, StoreError>,
) -> Result<ImportId, WriteError> {
    let mut is_used = connection.prepare("SELECT 1 FROM import_number WHERE importId = ?1")?;
    for _ in 0..ATTEMPTS {
        let id = random()?;
        if !is_used.exists([id.0])? {
            return Ok(id);
        }
    }
    let reason = "no unused number was found for an import; try again";
    Err(StoreError::Failed(reason.into()).into())
}

/// Notes the number of an import. Returns false if another import has had this number.
pub(super) fn note_number(connection: &Connection, id: ImportId) -> rusqlite::Result<bool> {
    const SQL: &str = "INSERT INTO import_number VALUES (?1) ON CONFLICT DO NOTHING";
    Ok(connection.execute(SQL, [id.0])? > 0)
}

/// Returns whether an import or an undo is unfinished, and the number of imports and of undos so
/// far.
pub(super) fn activity(connection: &Connection) -> rusqlite::Result<ImportActivity> {
    const SQL: &str = "SELECT EXISTS (SELECT 1 FROM import_unfinished), coalesce(max(number), 0), count(undone) FROM import";
    connection.query_row(SQL, (), |row| {
        let number = |column| row.get::<_, i64>(column).map(i64::cast_unsigned);
        Ok(ImportActivity { is_unfinished: row.get(0)?, imports: number(1)?, undone: number(2)? })
    })
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

/// Keys that a device had before an import.
pub(super) struct FormerKeys {
    pub(super) keys: DeviceKeys,
    /// Time since which the device had the second key.
    pub(super) since: Option<UnixSeconds>,
}

/// Changes of an import to a row, apart from its values.
pub(super) struct ChangeOf<'k> {
    /// Effect on the device's key.
    pub(super) key: KeyChange,
    /// Former keys, which are kept only until the import has ended.
    pub(super) former_keys: Option<&'k FormerKeys>,
    /// Position among the rows that were changed out of order of their device IDs; `None` for a row
    /// that was changed in order.
    pub(super) late: Option<i64>,
}

/// Notes a row's values before an import, and notes that the row now comes from this import. For an
/// import without a number, which cannot be undone, only notes that the row has changed.
pub(super) fn note_before(
    connection: &Connection,
    id: Option<ImportId>,
    before: &DeviceRow,
    change: &ChangeOf<'_>,
) -> rusqlite::Result<()> {
    const BEFORE: &str = "INSERT INTO import_before (importId, deviceId, former, enrollment, productKey, deviceName, \
                          IotId, refusal, hadSecret, keyChange, formerIdentity, formerPsk, late, target, addedNext, \
                          formerNext, formerSince, formerUsed, formerNextUsed) \
                          SELECT ?1, deviceId, importId, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, \
                          ?16, ?17, ?18 FROM device_table WHERE deviceId = ?2";
    const LABEL: &str = "UPDATE device_table SET importId = coalesce(?1, -abs(importId)) WHERE deviceId = ?2";
    let key_change = match change.key {
        KeyChange::None | KeyChange::NextAdded => None,
        KeyChange::Added => Some("added"),
        KeyChange::Lost => Some("lost"),
    };
    let label = |id: Option<u32>| connection.prepare_cached(LABEL)?.execute(params![id, before.id.as_str()]);
    let Some(ImportId(id)) = id else { return label(None).map(drop) };
    let keys = change.former_keys.map(|former| &former.keys);
    let used = keys.map(|keys| keys.used).unwrap_or_default();
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
        keys.map(|keys| &keys.identity),
        keys.map(|keys| keys.psk.expose()),
        change.late,
        before.target,
        change.key == KeyChange::NextAdded,
        keys.and_then(|keys| keys.next.as_ref().map(Secret::expose)),
        change.former_keys.and_then(|former| former.since),
        used[0],
        used[1]
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

/// Returns the devices of an import that have changed since the import, need a second key from it, or
/// are being registered. If the import was undone, returns all its devices that are still in the table.
pub(super) fn left_of(connection: &Connection, id: ImportId, limit: usize) -> rusqlite::Result<Left> {
    const LEFT: &str = concat!(
        "SELECT deviceId FROM device_table WHERE importId = -?1 OR (importId = ?1 AND (deviceId IN \
         (SELECT deviceId FROM registration_claim) OR EXISTS (SELECT 1 FROM import \
         WHERE importId = ?1 AND undone IS NOT NULL))) \
         UNION SELECT deviceId FROM import_before b WHERE (importId = ?1 OR abs(former) = ?1) \
         AND EXISTS (SELECT 1 FROM device_table d WHERE d.deviceId = b.deviceId AND (d.importId IS NOT ?1 \
         OR (b.importId = ?1 AND ",
        uses_next!(),
        ")))"
    );
    let count = format!("SELECT count(*) FROM ({LEFT})");
    let devices = connection.query_row(&count, [id.0], |row| row.get::<_, i64>(0))?.cast_unsigned();
    let mut statement = connection.prepare(&format!("{LEFT} ORDER BY deviceId LIMIT ?2"))?;
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let first = statement.query_map(params![id.0, limit], |row| row.get::<_, String>(0))?;
    let first = first.filter_map(|id| id.map(|id| DeviceId::parse_sn(&id).ok()).transpose());
    Ok(Left { devices, first: first.collect::<rusqlite::Result<_>>()? })
}

/// Returns the record of an import.
pub(super) fn one(connection: &Connection, id: ImportId) -> rusqlite::Result<Option<ImportRecord>> {
    const SQL: &str = concat!(records!(), " WHERE importId = ?1");
    connection.query_row(SQL, [id.0], import_record).optional()
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

/// Gives a row the values that it had before an import, except for its key.
pub(super) fn restore_row(connection: &Connection, id: ImportId, device: &str) -> rusqlite::Result<()> {
    const RESTORE: &str = "UPDATE device_table SET importId = b.former, enrollment = b.enrollment, productKey = b.productKey, \
                           deviceName = b.deviceName, IotId = b.IotId, refusal = b.refusal, target = b.target, \
                           deviceSecret = iif(b.hadSecret, device_table.deviceSecret, NULL) \
                           FROM import_before b WHERE b.importId = ?1 AND b.deviceId = ?2 \
                           AND device_table.deviceId = ?2";
    connection.prepare_cached(RESTORE)?.execute(params![id.0, device]).map(drop)
}

/// Leaves a row as an import has changed it, although the import is taken back. The row then counts
/// as changed since the earlier import from which it came. With the number of the import that is
/// taken back, the row would look like one that this import has added, and another process that
/// continues the work would delete it.
pub(super) fn leave_row(connection: &Connection, id: ImportId, device: &str) -> rusqlite::Result<()> {
    const LEAVE: &str = "UPDATE main.device_table SET importId = (SELECT -abs(b.former) FROM import_before b \
                         WHERE b.importId = ?1 AND b.deviceId = ?2) WHERE deviceId = ?2 AND importId = ?1";
    connection.prepare_cached(LEAVE)?.execute(params![id.0, device])?;
    forget_before(connection, id, device)
}

/// Deletes the values that a row had before an import.
pub(super) fn forget_before(connection: &Connection, id: ImportId, device: &str) -> rusqlite::Result<()> {
    const FORGET: &str = "DELETE FROM import_before WHERE importId = ?1 AND deviceId = ?2";
    connection.prepare_cached(FORGET)?.execute(params![id.0, device]).map(drop)
}

/// Returns whether another device has the name or the `IotId` of a device.
pub(super) fn is_shared(connection: &Connection, device: &str) -> rusqlite::Result<bool> {
    let Ok(device) = DeviceId::parse_sn(device) else { return Ok(false) };
    let Some(row) = read::device(connection, &device)? else { return Ok(false) };
    let (name, iot_id) = (row.name(), row.iot_id.as_deref());
    Ok(names::is_unique(connection, &device, &row.product_key, &name, iot_id)?.is_err())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::sqlite::connection;

    #[test]
    fn a_number_that_an_import_has_had_is_not_chosen_again() {
        let database = connection::open_empty().unwrap();
        assert!(note_number(&database, ImportId(7)).unwrap());
        assert!(!note_number(&database, ImportId(7)).unwrap());
        let mut random = [7, 7, 9].into_iter().map(|id| Ok(ImportId(id)));
        assert_eq!(first_unused(&database, || random.next().unwrap()).ok(), Some(ImportId(9)));
        assert!(first_unused(&database, || Ok(ImportId(7))).is_err());
    }
}
