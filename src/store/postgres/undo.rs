//! Records of imports, and their undos. An undo is one transaction, of which others see nothing until
//! the commit. A row that has changed since its import has the import's number with a minus sign. The
//! rules are in [`undo`](crate::store::undo).

use tokio_postgres::Row;

use super::{
    Postgres, audit, counts,
    engine::{BEGIN_BULK, SNAPSHOT},
    failure::Failure,
    read,
    session::{Session, column, number, values},
    unfinished::Turn,
};
use crate::{
    device::DeviceId,
    store::{
        audit::{AuditEntry, AuditEvent},
        merge,
        undo::{ImportId, ImportRecord, Left, NotUndone, Undo, UndoError, Undone, may_undo},
    },
};

/// Condition for a row of the device table (`$row`): the key that its device has used last is the
/// second key from the import $1. The rule is [`Roll::uses_next`](crate::store::roll::Roll::uses_next).
macro_rules! uses_next {
    ($row:literal) => {
        concat!(
            "EXISTS (SELECT 1 FROM import_before a JOIN device_key k ON k.deviceId = a.deviceId \
             WHERE a.importId = $1 AND a.deviceId = ",
            $row,
            ".deviceId AND a.addedNext AND k.pskNextUsed IS NOT NULL \
             AND (k.pskUsed IS NULL OR k.pskNextUsed > k.pskUsed))"
        )
    };
}

/// Condition for a row of the device table (`$row`) that has not changed since the import $1, does not
/// need a second key from it, and is not being registered.
macro_rules! is_untouched {
    ($row:literal) => {
        concat!(
            "(",
            $row,
            ".importId = $1 AND NOT EXISTS (SELECT 1 FROM registration_claim c WHERE c.deviceId = ",
            $row,
            ".deviceId) AND NOT ",
            uses_next!($row),
            ")"
        )
    };
}

/// Query for the columns that [`record`] reads.
macro_rules! records {
    () => {
        "SELECT importId, at, who, file, added, changed, undone FROM import i"
    };
}

fn record(row: &Row) -> Result<ImportRecord, Failure> {
    let id = u32::try_from(column::<i64>(row, 0)?).map_err(Failure::unexpected)?;
    Ok(ImportRecord {
        id: ImportId(id),
        at: column(row, 1)?,
        who: column(row, 2)?,
        file: column(row, 3)?,
        added: number(row, 4)?,
        changed: number(row, 5)?,
        undone: column(row, 6)?,
    })
}

/// Returns the imports, newest first.
pub(super) async fn all(session: &Session) -> Result<Vec<ImportRecord>, Failure> {
    const SQL: &str = concat!(records!(), " ORDER BY number DESC");
    session.rows(SQL, &[]).await?.iter().map(record).collect()
}

/// Returns the recorded imports that added or changed a device, newest first.
pub(super) async fn of(session: &Session, device: &DeviceId) -> Result<Vec<ImportRecord>, Failure> {
    const SQL: &str = concat!(
        records!(),
        " WHERE importId = (SELECT abs(importId) FROM device_table WHERE deviceId = $1) OR importId IN \
         (SELECT b.importId FROM import_before b WHERE b.deviceId = $1) OR importId IN \
         (SELECT abs(b.former) FROM import_before b WHERE b.deviceId = $1) ORDER BY number DESC"
    );
    session.rows(SQL, values![device.as_str()]).await?.iter().map(record).collect()
}

/// Returns the devices of an import that have changed since the import, need a second key from it, or
/// are being registered. If the import was undone, returns all its devices that are still in the table.
pub(super) async fn left_of(session: &Session, id: ImportId, limit: usize) -> Result<Left, Failure> {
    const LEFT: &str = concat!(
        "SELECT deviceId FROM device_table d WHERE importId = -$1 OR (importId = $1 AND (deviceId IN \
         (SELECT deviceId FROM registration_claim) OR EXISTS (SELECT 1 FROM import \
         WHERE importId = $1 AND undone IS NOT NULL) OR ",
        uses_next!("d"),
        ")) UNION SELECT deviceId FROM import_before b WHERE (importId = $1 OR abs(former) = $1) \
         AND EXISTS (SELECT 1 FROM device_table d WHERE d.deviceId = b.deviceId \
         AND d.importId IS DISTINCT FROM $1)"
    );
    let (id, limit) = (i64::from(id.0), i64::try_from(limit).unwrap_or(i64::MAX));
    let count = session.one(&format!("SELECT count(*) FROM ({LEFT}) AS l"), values![id]).await?;
    let first = session.rows(&format!("{LEFT} ORDER BY deviceId LIMIT $2"), values![id, limit]).await?;
    let first = first.iter().map(|row| read::id(row, 0)).collect::<Result<_, _>>()?;
    Ok(Left { devices: number(&count, 0)?, first })
}

/// Implements [`Bulk::undo_import`](crate::store::Bulk::undo_import).
pub(super) fn run(store: &Postgres, how: Undo<'_>) -> Result<Undone, UndoError> {
    // A claim that begins afterwards waits for the end of the undo.
    const LOCK: &str = "SELECT deviceId FROM device_table WHERE importId = $1 ORDER BY deviceId FOR UPDATE";
    // A write that notes uses of keys also waits for the end of the undo, and locks keys in the same
    // order.
    const LOCK_KEYS: &str = "SELECT deviceId FROM device_key WHERE deviceId IN \
                             (SELECT deviceId FROM import_before WHERE importId = $1 AND addedNext) \
                             ORDER BY deviceId FOR UPDATE";
    if !how.dry_run {
        store.engine.may_write()?;
    }
    // Also takes back an import that was cut off, before the undo looks at the table.
    let _turn = if how.dry_run { None } else { Some(Turn::take(store)?) };
    let session = store.engine.blocking()?;
    let id = i64::from(how.id.0);
    session.run(async |session| {
        if how.dry_run {
            return session.run(SNAPSHOT).await;
        }
        session.run(BEGIN_BULK).await?;
        session.rows(LOCK, values![id]).await?;
        session.rows(LOCK_KEYS, values![id]).await.map(drop)
    })?;
    let (record, undone) = session.run(async |session| would(session, how).await)??;
    if how.dry_run {
        return Ok(undone);
    }
    let now = store.clock.now();
    let undone = session.run(async |session| {
        let (removed, certificates) = remove_added(session, id).await?;
        let restored = restore_changed(session, id).await?;
        let left = (record.added + record.changed).saturating_sub(removed + restored);
        let undone = Undone { removed, certificates, restored, left };
        session.execute("UPDATE import SET undone = $2 WHERE importId = $1", values![id, now]).await?;
        let detail = Some(undone.detail(how.id, &record.file));
        audit::append(session, &AuditEntry { detail, ..how.by.entry(AuditEvent::Undone, now) }).await?;
        Ok(undone)
    })?;
    session.commit()?;
    Ok(undone)
}

/// Returns the record of an import, and what an undo would do.
async fn would(
    session: &Session,
    how: Undo<'_>,
) -> Result<Result<(ImportRecord, Undone), NotUndone>, Failure> {
    const RECORD: &str = concat!(records!(), " WHERE importId = $1");
    const ADDED: &str = concat!(
        "SELECT count(*), count(deviceSecret) FROM device_table d WHERE ",
        is_untouched!("d"),
        " AND NOT EXISTS (SELECT 1 FROM import_before b WHERE b.importId = $1 AND b.deviceId = d.deviceId)"
    );
    const CHANGED: &str = concat!(
        "SELECT count(*), count(*) FILTER (WHERE b.keyChange = 'lost') FROM import_before b \
         JOIN device_table d ON d.deviceId = b.deviceId WHERE b.importId = $1 AND ",
        is_untouched!("d")
    );
    let id = i64::from(how.id.0);
    let Some(record) = session.row(RECORD, values![id]).await?.as_ref().map(self::record).transpose()? else {
        return Ok(Err(NotUndone::Unknown(how.id)));
    };
    let added = session.one(ADDED, values![id]).await?;
    let changed = session.one(CHANGED, values![id]).await?;
    let (removed, certificates) = (number(&added, 0)?, number(&added, 1)?);
    let (restored, lost_keys) = (number(&changed, 0)?, number(&changed, 1)?);
    let left = match may_undo(&record, how, removed + restored, lost_keys) {
        Ok(left) => left,
        Err(reason) => return Ok(Err(reason)),
    };
    Ok(match conflict(session, id).await? {
        None => Ok((record, Undone { removed, certificates, restored, left })),
        Some(conflict) => Err(conflict),
    })
}

/// Returns a changed device that could not have its former name or `IotId` again, because a device
/// has it that the undo leaves as it is, or restores with the same value.
async fn conflict(session: &Session, id: i64) -> Result<Option<NotUndone>, Failure> {
    const NAME: &str = concat!(
        "SELECT b.deviceId, h.deviceId, b.name FROM import_before b JOIN device_table n ON n.deviceId = b.deviceId \
         JOIN device_table h ON h.name = b.name AND h.productKey = b.productKey AND h.deviceId <> b.deviceId \
         LEFT JOIN import_before k ON k.importId = $1 AND k.deviceId = h.deviceId \
         WHERE b.importId = $1 AND ",
        is_untouched!("n"),
        " AND (NOT coalesce(",
        is_untouched!("h"),
        ", false) OR (k.name = b.name AND k.productKey = b.productKey)) ORDER BY b.deviceId LIMIT 1"
    );
    const IOT_ID: &str = concat!(
        "SELECT b.deviceId, h.deviceId FROM import_before b JOIN device_table n ON n.deviceId = b.deviceId \
         JOIN device_table h ON h.IotId = b.IotId AND h.deviceId <> b.deviceId \
         LEFT JOIN import_before k ON k.importId = $1 AND k.deviceId = h.deviceId \
         WHERE b.importId = $1 AND ",
        is_untouched!("n"),
        " AND (NOT coalesce(",
        is_untouched!("h"),
        ", false) OR k.IotId = b.IotId) ORDER BY b.deviceId LIMIT 1"
    );
    let mut found = Ok(());
    let mut device = String::new();
    if let Some(row) = session.row(NAME, values![id]).await? {
        device = column(&row, 0)?;
        found = merge::unique_name(Some(read::id(&row, 1)?), column(&row, 2)?);
    } else if let Some(row) = session.row(IOT_ID, values![id]).await? {
        device = column(&row, 0)?;
        found = merge::unique_iot_id(Some(read::id(&row, 1)?));
    }
    Ok(found.err().map(|conflict| NotUndone::Conflict { device, reason: conflict.reason }))
}

/// Removes the devices that the import has added. Returns their number, and the number of those that
/// had a certificate. They go first, because they may have the names and identities that the changed
/// devices had before.
async fn remove_added(session: &Session, id: i64) -> Result<(u64, u64), Failure> {
    const SQL: &str = concat!(
        "SELECT deviceId, deviceSecret IS NOT NULL FROM device_table d WHERE ",
        is_untouched!("d"),
        " AND NOT EXISTS (SELECT 1 FROM import_before b WHERE b.importId = $1 AND b.deviceId = d.deviceId)"
    );
    const REMOVE: &str = "DELETE FROM device_table WHERE deviceId = ANY ($1)";
    let rows = session.rows(SQL, values![id]).await?;
    let devices: Vec<&str> = rows.iter().map(|row| column(row, 0)).collect::<Result<_, _>>()?;
    let mut certificates = 0;
    for row in &rows {
        certificates += u64::from(column::<bool>(row, 1)?);
    }
    counts::take(session, &devices).await?;
    Ok((session.execute(REMOVE, values![devices]).await?, certificates))
}

/// Gives the changed devices their former values, in the reverse of the order in which the import has
/// changed them, so that a name that one has given up for another is free again when its turn comes.
async fn restore_changed(session: &Session, id: i64) -> Result<u64, Failure> {
    const CHANGED: &str = concat!(
        "SELECT b.deviceId FROM import_before b JOIN device_table d ON d.deviceId = b.deviceId \
         WHERE b.importId = $1 AND ",
        is_untouched!("d"),
        " ORDER BY b.number DESC"
    );
    const DROP_KEYS: &str = "DELETE FROM device_key k USING import_before b WHERE b.importId = $1 \
                             AND b.deviceId = k.deviceId AND b.keyChange IS NOT NULL AND k.deviceId = ANY ($2)";
    const DROP_NEXT: &str = "UPDATE device_key k SET pskNext = NULL, nextSince = NULL, pskUsed = NULL, \
                             pskNextUsed = NULL FROM import_before b WHERE b.importId = $1 \
                             AND b.deviceId = k.deviceId AND b.addedNext AND k.deviceId = ANY ($2)";
    const RESTORE: &str = "UPDATE device_table d SET importId = b.former, enrollment = b.enrollment, \
                           productKey = b.productKey, deviceName = b.deviceName, IotId = b.IotId, \
                           refusal = b.refusal, target = b.target, name = b.name, \
                           deviceSecret = CASE WHEN b.hadSecret THEN d.deviceSecret END \
                           FROM import_before b WHERE b.importId = $1 AND b.deviceId = $2 AND d.deviceId = $2";
    const FORGET: &str = "DELETE FROM import_before WHERE importId = $1 AND deviceId = ANY ($2)";
    let changed = session.rows(CHANGED, values![id]).await?;
    let changed: Vec<String> = changed.iter().map(|row| column(row, 0)).collect::<Result<_, _>>()?;
    let devices: Vec<&str> = changed.iter().map(String::as_str).collect();
    counts::take(session, &devices).await?;
    session.execute(DROP_KEYS, values![id, changed]).await?;
    session.execute(DROP_NEXT, values![id, changed]).await?;
    for device in &changed {
        session.execute(RESTORE, values![id, device]).await?;
    }
    counts::give(session, &devices).await?;
    session.execute(FORGET, values![id, changed]).await
}
