//! Reads rows of the device table and of the registration journal.

use std::collections::HashMap;

use tokio_postgres::{Row, types::FromSql};

use super::{
    failure::Failure,
    session::{Session, column, values},
};
use crate::{
    device::{AskedId, Certificate, DeviceId, Secret},
    store::{
        CloudState, DeviceRow, DeviceState, IndividualKey, JournalEntry, KeyLookup, OpenBatch,
        filter::Listed, roll::DeviceKeys,
    },
};

/// The columns that [`device_row`] reads, of the device table `d`.
macro_rules! device_columns {
    () => {
        "d.deviceId, d.enrollment, d.productKey, d.deviceName, d.deviceSecret, d.IotId, d.state, d.firstIssued, \
         d.registerTime, d.activateTime, d.refusal, d.cloudState, d.target"
    };
}
pub(super) use device_columns;

/// Number of columns that [`device_row`] reads.
pub(super) const DEVICE_COLUMNS: usize = 13;

/// Placeholder for a key that does not exist. It has the length of a usual key.
const NO_KEY: &str = "00000000000000000000000000000000";

fn text<'r, T: FromSql<'r>>(row: &'r Row, index: usize) -> Result<T, Failure> {
    column(row, index)
}

/// Parses a stored ID.
pub(super) fn id(row: &Row, index: usize) -> Result<DeviceId, Failure> {
    DeviceId::parse_sn(text(row, index)?).map_err(Failure::unexpected)
}

/// Reads a secret as it is stored.
pub(super) fn secret(row: &Row, index: usize) -> Result<Secret, Failure> {
    Ok(Secret::new(column(row, index)?))
}

/// Reads a secret as it is stored; `None` for NULL.
pub(super) fn some_secret(row: &Row, index: usize) -> Result<Option<Secret>, Failure> {
    Ok(column::<Option<String>>(row, index)?.map(Secret::new))
}

/// Reads the keys of a device from five columns of a row, the first of which is `first`.
pub(super) fn keys(row: &Row, first: usize) -> Result<DeviceKeys, Failure> {
    Ok(DeviceKeys {
        identity: column(row, first)?,
        psk: secret(row, first + 1)?,
        next: some_secret(row, first + 2)?,
        used: [column(row, first + 3)?, column(row, first + 4)?],
    })
}

fn state(row: &Row, index: usize) -> Result<DeviceState, Failure> {
    match text::<&str>(row, index)? {
        "enabled" => Ok(DeviceState::Enabled),
        "disabled" => Ok(DeviceState::Disabled),
        _ => Err(Failure::unexpected("a state is neither enabled nor disabled")),
    }
}

/// Reads the state of a device at IoT Platform.
pub(super) fn cloud_state(row: &Row, index: usize) -> Result<Option<CloudState>, Failure> {
    match text::<Option<&str>>(row, index)? {
        None => Ok(None),
        Some("disabled") => Ok(Some(CloudState::Disabled)),
        Some("deleted") => Ok(Some(CloudState::Deleted)),
        Some(_) => Err(Failure::unexpected("a cloudState is neither disabled nor deleted")),
    }
}

/// Reads a row with [`device_columns`].
pub(super) fn device_row(row: &Row) -> Result<DeviceRow, Failure> {
    let product_key: String = column(row, 2)?;
    let device_name: Option<String> = column(row, 3)?;
    let device_secret = some_secret(row, 4)?;
    // The schema allows no secret without a name.
    let certificate = device_secret.zip(device_name.as_ref()).map(|(secret, name)| Certificate {
        product_key: product_key.clone(),
        device_name: name.clone(),
        device_secret: secret,
    });
    Ok(DeviceRow {
        id: id(row, 0)?,
        enrollment: column(row, 1)?,
        product_key,
        device_name,
        certificate,
        iot_id: column(row, 5)?,
        state: state(row, 6)?,
        first_issued: column(row, 7)?,
        registered: column(row, 8)?,
        activated: column(row, 9)?,
        refusal: column(row, 10)?,
        cloud_state: cloud_state(row, 11)?,
        target: column(row, 12)?,
    })
}

/// Reads the row of a device.
pub(super) async fn device(session: &Session, id: &DeviceId) -> Result<Option<DeviceRow>, Failure> {
    const SQL: &str = concat!("SELECT ", device_columns!(), " FROM device_shown d WHERE d.deviceId = $1");
    session.row(SQL, values![id.as_str()]).await?.as_ref().map(device_row).transpose()
}

/// Reads the row of a device, and locks it until the end of the transaction. Every write that depends
/// on a row locks it first, so that the second of two such writes sees the changes of the first. A
/// device that an unfinished import has added counts as absent.
pub(super) async fn locked(session: &Session, id: &DeviceId) -> Result<Option<DeviceRow>, Failure> {
    const SQL: &str = concat!(
        "SELECT ",
        device_columns!(),
        ", d.addedBy IS NOT NULL AND EXISTS (SELECT 1 FROM import_unfinished u WHERE u.importId = d.addedBy) \
         FROM device_table d WHERE d.deviceId = $1 FOR UPDATE"
    );
    let Some(row) = session.row(SQL, values![id.as_str()]).await? else { return Ok(None) };
    if column(&row, DEVICE_COLUMNS)? { Ok(None) } else { device_row(&row).map(Some) }
}

/// Returns whether a device is hidden because the import that adds it is unfinished.
pub(super) async fn is_hidden(session: &Session, id: &DeviceId) -> Result<bool, Failure> {
    const SQL: &str = "SELECT 1 FROM device_table d JOIN import_unfinished u ON u.importId = d.addedBy \
                       WHERE d.deviceId = $1";
    session.exists(SQL, values![id.as_str()]).await
}

/// Reads up to `limit` rows in order of device ID, beginning after `after`.
pub(super) async fn rows_after(
    session: &Session,
    after: &str,
    limit: i64,
) -> Result<Vec<DeviceRow>, Failure> {
    const SQL: &str = concat!(
        "SELECT ",
        device_columns!(),
        " FROM device_shown d WHERE d.deviceId > $1 ORDER BY d.deviceId LIMIT $2"
    );
    session.rows(SQL, values![after, limit]).await?.iter().map(device_row).collect()
}

/// Reads the rows of devices, in the order of `ids`.
pub(super) async fn devices(session: &Session, ids: &[DeviceId]) -> Result<Vec<Option<DeviceRow>>, Failure> {
    const SQL: &str =
        concat!("SELECT ", device_columns!(), " FROM device_shown d WHERE d.deviceId = ANY ($1)");
    let asked: Vec<&str> = ids.iter().map(DeviceId::as_str).collect();
    let rows = session.rows(SQL, values![asked]).await?;
    let rows = rows.iter().map(device_row).map(|row| row.map(|row| (row.id.clone(), row)));
    let found = rows.collect::<Result<HashMap<_, _>, Failure>>()?;
    Ok(ids.iter().map(|id| found.get(id).cloned()).collect())
}

/// Reads the enrollments of devices, in the order of `ids`. The statement does the same work for an
/// unknown device.
pub(super) async fn enrollments_of(
    session: &Session,
    ids: &[DeviceId],
) -> Result<Vec<Option<String>>, Failure> {
    const SQL: &str = "SELECT d.enrollment FROM unnest($1) WITH ORDINALITY AS asked (deviceId, number) \
                       LEFT JOIN device_shown d ON d.deviceId = asked.deviceId ORDER BY asked.number";
    let asked: Vec<&str> = ids.iter().map(DeviceId::as_str).collect();
    session.rows(SQL, values![asked]).await?.iter().map(|row| column(row, 0)).collect()
}

/// Reads the enrollment of a device.
pub(super) async fn enrollment_of(session: &Session, id: &DeviceId) -> Result<Option<String>, Failure> {
    Ok(enrollments_of(session, std::slice::from_ref(id)).await?.pop().flatten())
}

/// SQL condition for a table in which any device has a second key. The index makes this one search.
macro_rules! are_rolling {
    () => {
        "EXISTS (SELECT 1 FROM device_key WHERE pskNext IS NOT NULL)"
    };
}

/// Returns whether any device has a second key.
pub(super) async fn are_rolling(session: &Session) -> Result<bool, Failure> {
    column(&session.one(concat!("SELECT ", are_rolling!()), &[]).await?, 0)
}

/// Reads the keys of PSK identities, in their order. The statement does the same work for an unknown
/// identity: it searches the device table for the identity itself, and returns a key of the usual
/// length.
pub(super) async fn individual_keys(
    session: &Session,
    identities: &[String],
) -> Result<Vec<KeyLookup>, Failure> {
    const SQL: &str = concat!(
        "SELECT k.deviceId IS NOT NULL AND d.deviceId IS NOT NULL, coalesce(k.deviceId, '0'), \
         coalesce(d.enrollment, '0'), coalesce(k.psk, $2), k.pskNext, ",
        are_rolling!(),
        ", k.nextSince FROM unnest($1) WITH ORDINALITY AS asked (identity, number) \
         LEFT JOIN device_key k ON k.pskIdentity = asked.identity \
         LEFT JOIN device_shown d ON d.deviceId = coalesce(k.deviceId, asked.identity) \
         ORDER BY asked.number"
    );
    let asked: Vec<&str> = identities.iter().map(String::as_str).collect();
    let rows = session.rows(SQL, values![asked, NO_KEY]).await?;
    let key = |row| {
        let found = IndividualKey {
            device: id(row, 1)?,
            enrollment: column(row, 2)?,
            psk: secret(row, 3)?,
            next: some_secret(row, 4)?,
            next_since: column(row, 6)?,
        };
        Ok(KeyLookup { found: column::<bool>(row, 0)?.then_some(found), are_rolling: column(row, 5)? })
    };
    rows.iter().map(key).collect()
}

/// Returns the ID under which the table has a MAC address in an unusual spelling.
pub(super) async fn spelled(session: &Session, mac: &DeviceId) -> Result<Option<DeviceId>, Failure> {
    const SQL: &str = "SELECT deviceId FROM device_shown WHERE spelledMac = $1 ORDER BY deviceId LIMIT 1";
    session.row(SQL, values![mac.as_str()]).await?.map(|row| id(&row, 0)).transpose()
}

/// Returns the first of the requested IDs that is in the table. If none is, returns the unusual
/// spelling under which the table has the requested MAC address, if any.
pub(super) async fn known_as(session: &Session, asked: &AskedId) -> Result<Option<DeviceId>, Failure> {
    for id in asked.ids() {
        if session.exists("SELECT 1 FROM device_shown WHERE deviceId = $1", values![id.as_str()]).await? {
            return Ok(Some(id.clone()));
        }
    }
    match asked.mac() {
        Some(mac) => spelled(session, &mac).await,
        None => Ok(None),
    }
}

/// Returns the value of the column `spelledMac` for a device ID.
pub(super) fn spelled_mac(id: &DeviceId) -> Option<String> {
    DeviceId::parse_mac(id.as_str()).ok().filter(|mac| mac != id).map(|mac| mac.as_str().to_owned())
}

/// Returns another device that has the same name in the same product, if any.
pub(super) async fn holder_of_name(
    session: &Session,
    device: &DeviceId,
    product_key: &str,
    name: &str,
) -> Result<Option<DeviceId>, Failure> {
    const SQL: &str =
        "SELECT deviceId FROM device_table WHERE productKey = $1 AND name = $2 AND deviceId <> $3";
    let holder = session.row(SQL, values![product_key, name, device.as_str()]).await?;
    holder.map(|row| id(&row, 0)).transpose()
}

/// Returns another device that has this `IotId`, if any.
pub(super) async fn holder_of_iot_id(
    session: &Session,
    device: &DeviceId,
    iot_id: &str,
) -> Result<Option<DeviceId>, Failure> {
    const SQL: &str = "SELECT deviceId FROM device_table WHERE IotId = $1 AND deviceId <> $2";
    session.row(SQL, values![iot_id, device.as_str()]).await?.map(|row| id(&row, 0)).transpose()
}

/// Reads a journal entry from the first four columns of a row.
pub(super) fn journal_entry(row: &Row) -> Result<JournalEntry, Failure> {
    Ok(JournalEntry {
        device: id(row, 0)?,
        product_key: column(row, 1)?,
        device_name: column(row, 2)?,
        target: column(row, 3)?,
    })
}

/// Reads a batch from the first four columns of a row.
pub(super) fn open_batch(row: &Row) -> Result<OpenBatch, Failure> {
    Ok(OpenBatch {
        id: column(row, 0)?,
        product_key: column(row, 1)?,
        apply_id: column::<Option<i64>>(row, 2)?.map(i64::cast_unsigned),
        target: column(row, 3)?,
    })
}

/// The columns that [`listed`] reads, of the device table `d`. No secret is among them.
macro_rules! listed_columns {
    () => {
        "d.deviceId, d.enrollment, d.productKey, d.deviceName, d.deviceSecret IS NOT NULL, d.IotId, d.state, \
         d.firstIssued, d.registerTime, d.activateTime, d.refusal, d.cloudState, d.target, \
         EXISTS (SELECT 1 FROM registration_claim c WHERE c.deviceId = d.deviceId)"
    };
}
pub(super) use listed_columns;

/// Reads a device as a list shows it.
pub(super) fn listed(row: &Row) -> Result<Listed, Failure> {
    let is_registered = column(row, 4)?;
    let target: Option<String> = column(row, 12)?;
    Ok(Listed {
        id: id(row, 0)?,
        enrollment: column(row, 1)?,
        product_key: column(row, 2)?,
        device_name: column(row, 3)?,
        is_registered,
        iot_id: column(row, 5)?,
        state: state(row, 6)?,
        first_issued: column(row, 7)?,
        registered: column(row, 8)?,
        activated: column(row, 9)?,
        refusal: column(row, 10)?,
        cloud_state: cloud_state(row, 11)?,
        target: crate::target::of(target.as_deref(), is_registered).map(str::to_owned),
        is_claimed: column(row, 13)?,
    })
}
