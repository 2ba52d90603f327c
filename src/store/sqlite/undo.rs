//! Undoes an import. A check reads one state of the table and locks nothing. Then the import is
//! marked as being undone, and its changes are taken back in short transactions
//! ([`reversal`](super::reversal)), while devices and other processes go on. A device that has
//! changed since the check stays as it is, and is reported as left. If a marked undo is cut off,
//! another process completes it ([`unfinished`]), in the name of the operator who asked for it.

use std::path::Path;

use rusqlite::{Connection, OptionalExtension, Transaction, TransactionBehavior, params};

use super::{
    Access, Sqlite, audit, connection, imports,
    lock::ImportLock,
    look, names, store_error,
    unfinished::{self, Mark},
};
use crate::{
    device::DeviceId,
    store::{
        StoreError, UnixSeconds,
        audit::{AuditEntry, AuditEvent},
        merge,
        undo::{ImportId, ImportRecord, NotUndone, Undo, UndoError, Undone, may_undo},
        unix_now,
    },
};

/// Implements [`Bulk::undo_import`](crate::store::Bulk::undo_import).
pub(super) fn run(store: &Sqlite, how: Undo<'_>) -> Result<Undone, UndoError> {
    let path = &*store.path;
    let failed = |error| store_error(path, error);
    if how.dry_run {
        return match store.access {
            Access::Full => check(&connection::open_reader(path)?, path, how),
            Access::Looks | Access::PreviewsNew => {
                look::check(path, |connection| Ok(check(connection, path, how)))?
            }
        };
    }
    if store.access != Access::Full {
        let reason = format!("{}: it was opened only to be read", path.display());
        return Err(StoreError::Failed(reason).into());
    }
    // The lock excludes imports, and other undos.
    let _lock = ImportLock::wait(path, store.bulk_wait)?;
    let writer = connection::open_again(path, store.bulk_wait)?;
    // If an earlier undo of this import was cut off, it is completed here.
    match unfinished::take_back(&writer, &|| false).map_err(failed)? {
        Some((id, undone)) if id == how.id => return Ok(undone),
        _ => {}
    }
    check(&connection::open_reader(path)?, path, how)?;
    begin(&writer, store.clock.now(), how).map_err(failed)??;
    let undone = unfinished::take_back(&writer, &|| false).map_err(failed).inspect_err(|error| {
        let import = how.id;
        tracing::warn!(%import, %error, "the undo of an import has begun but is not complete; a server, or the next import, completes it");
    })?;
    connection::empty_log(&writer);
    match undone {
        Some((id, undone)) if id == how.id => Ok(undone),
        _ => {
            let reason = format!("{}: import {} was not undone; try again", path.display(), how.id);
            Err(StoreError::Failed(reason).into())
        }
    }
}

/// Checks whether an import can be undone, and returns what an undo would do. Reads one state of the
/// table.
fn check(connection: &Connection, path: &Path, how: Undo<'_>) -> Result<Undone, UndoError> {
    let failed = |error| store_error(path, error);
    let state = Transaction::new_unchecked(connection, TransactionBehavior::Deferred).map_err(failed)?;
    let is_being_undone = unfinished::mark(&state).map_err(failed)?.is_some_and(|mark| mark.id == how.id);
    if is_being_undone {
        let reason =
            format!("{}: import {} is being undone; try again when that has ended", path.display(), how.id);
        return Err(StoreError::Busy(reason).into());
    }
    let would = would(&state, how).map_err(failed)??;
    Ok(would)
}

fn would(state: &Connection, how: Undo<'_>) -> rusqlite::Result<Result<Undone, NotUndone>> {
    const ADDED: &str = "SELECT count(*), count(deviceSecret) FROM main.device_table d WHERE importId = ?1 \
                         AND NOT EXISTS (SELECT 1 FROM import_before b WHERE b.importId = ?1 AND b.deviceId = d.deviceId) \
                         AND NOT EXISTS (SELECT 1 FROM registration_claim c WHERE c.deviceId = d.deviceId)";
    const CHANGED: &str = concat!(
        "SELECT count(*), count(*) FILTER (WHERE keyChange = 'lost') FROM import_before b WHERE importId = ?1 AND ",
        imports::is_untouched!()
    );
    let Some(record) = imports::one(state, how.id)? else { return Ok(Err(NotUndone::Unknown(how.id))) };
    let two = |sql| {
        state.query_row(sql, [how.id.0], |row| {
            Ok((row.get::<_, i64>(0)?.cast_unsigned(), row.get::<_, i64>(1)?.cast_unsigned()))
        })
    };
    let ((removed, certificates), (restored, lost_keys)) = (two(ADDED)?, two(CHANGED)?);
    let left = match may_undo(&record, how, removed + restored, lost_keys) {
        Ok(left) => left,
        Err(reason) => return Ok(Err(reason)),
    };
    Ok(match conflict(state, how.id)? {
        None => Ok(Undone { removed, certificates, restored, left }),
        Some(conflict) => Err(conflict),
    })
}

/// Returns a changed device whose former name or `IotId` cannot be restored, because a device that
/// the undo does not change has it now.
fn conflict(state: &Connection, id: ImportId) -> rusqlite::Result<Option<NotUndone>> {
    const CHANGED: &str = concat!(
        "SELECT b.deviceId, b.productKey, b.deviceName, b.IotId FROM import_before b \
         JOIN main.device_table n ON n.deviceId = b.deviceId WHERE b.importId = ?1 \
         AND (b.productKey <> n.productKey OR b.deviceName IS NOT n.deviceName OR b.IotId IS NOT n.IotId) AND ",
        imports::is_untouched!(),
        " ORDER BY b.deviceId"
    );
    let mut statement = state.prepare(CHANGED)?;
    let mut rows = statement.query([id.0])?;
    while let Some(row) = rows.next()? {
        let Ok(device) = DeviceId::parse_sn(row.get_ref(0)?.as_str()?) else { continue };
        let former =
            Former { product_key: row.get(1)?, name: name(&device, row.get(2)?), iot_id: row.get(3)? };
        let Former { product_key, name, iot_id } = &former;
        let named = names::holder_of_name(state, &device, product_key, name)?;
        let keeps_name = |holder: &Former| holder.product_key == *product_key && holder.name == *name;
        let mut found = merge::unique_name(kept(state, id, named, keeps_name)?, name);
        if let (Ok(()), Some(iot_id)) = (&found, iot_id) {
            let holder = names::holder_of_iot_id(state, &device, iot_id)?;
            let keeps_iot_id = |holder: &Former| holder.iot_id.as_ref() == Some(iot_id);
            found = merge::unique_iot_id(kept(state, id, holder, keeps_iot_id)?);
        }
        if let Err(conflict) = found {
            return Ok(Some(NotUndone::Conflict { device: device.to_string(), reason: conflict.reason }));
        }
    }
    Ok(None)
}

/// Names and `IotId` that a device had before the import. No two devices may share any of them.
struct Former {
    product_key: String,
    name: String,
    iot_id: Option<String>,
}

fn name(device: &DeviceId, device_name: Option<String>) -> String {
    device_name.unwrap_or_else(|| device.device_name())
}

/// Returns the device `holder` if it still has the value in question after the undo: because the
/// undo leaves the device as it is, or because `keeps` accepts the former values that the undo
/// restores.
fn kept(
    state: &Connection,
    id: ImportId,
    holder: Option<DeviceId>,
    keeps: impl Fn(&Former) -> bool,
) -> rusqlite::Result<Option<DeviceId>> {
    const SQL: &str = concat!(
        "SELECT d.importId IS ?1 AND NOT EXISTS (SELECT 1 FROM registration_claim c WHERE c.deviceId = ?2) AND NOT ",
        imports::uses_next!(),
        ", b.productKey, b.deviceName, b.IotId FROM main.device_table d \
         LEFT JOIN import_before b ON b.importId = ?1 AND b.deviceId = ?2 WHERE d.deviceId = ?2"
    );
    let Some(holder) = holder else { return Ok(None) };
    let is_kept = state
        .prepare_cached(SQL)?
        .query_row(params![id.0, holder.as_str()], |row| {
            let (is_untouched, product_key): (bool, Option<String>) = (row.get(0)?, row.get(1)?);
            Ok(match product_key {
                _ if !is_untouched => true,
                // The undo removes the device.
                None => false,
                Some(product_key) => {
                    keeps(&Former { product_key, name: name(&holder, row.get(2)?), iot_id: row.get(3)? })
                }
            })
        })
        .optional()?;
    Ok(is_kept.unwrap_or(false).then_some(holder))
}

/// Marks an import as being undone.
pub(super) fn begin(
    writer: &Connection,
    at: UnixSeconds,
    how: Undo<'_>,
) -> rusqlite::Result<Result<(), NotUndone>> {
    let transaction = connection::begin(writer)?;
    let ImportRecord { file, undone, .. } = match imports::one(&transaction, how.id)? {
        Some(record) => record,
        None => return Ok(Err(NotUndone::Unknown(how.id))),
    };
    if undone.is_some() {
        return Ok(Err(NotUndone::Again(how.id)));
    }
    unfinished::begin_undo(&transaction, how.id, at, how.by, &file)?;
    transaction.commit().map(Ok)
}

/// Notes that all changes of an import are taken back: in its record, and in the audit log. Removes the
/// mark. Returns the result.
pub(super) fn complete(writer: &Connection, mark: &Mark) -> rusqlite::Result<Undone> {
    const NUMBERS: &str = "SELECT removed, certificates, restored FROM import_unfinished WHERE importId = ?1";
    const UNDONE: &str = "UPDATE import SET undone = ?2 WHERE importId = ?1";
    let Mark { id, at, by, file, .. } = mark;
    let transaction = connection::begin(writer)?;
    let mut undone = transaction.query_row(NUMBERS, [id.0], |row| {
        let number = |column| row.get::<_, i64>(column).map(i64::cast_unsigned);
        Ok(Undone { removed: number(0)?, certificates: number(1)?, restored: number(2)?, left: 0 })
    })?;
    let all = imports::one(&transaction, *id)?.map_or(0, |record| record.added + record.changed);
    undone.left = all.saturating_sub(undone.removed + undone.restored);
    transaction.execute(UNDONE, params![id.0, at])?;
    let detail = undone.detail(*id, file);
    audit::append(
        &transaction,
        &AuditEntry { detail: Some(detail), ..by.entry(AuditEvent::Undone, unix_now()) },
    )?;
    unfinished::end(&transaction, *id)?;
    transaction.commit()?;
    Ok(undone)
}
