//! Device names and `IotId`s that are taken. Two rows with the same name in one product, or with
//! the same `IotId`, would share one device at IoT Platform.

use rusqlite::{Connection, OptionalExtension, params};

use crate::{
    device::DeviceId,
    store::{Conflict, SharedName, merge},
};

/// Returns another device that has the same name in the same product, if any.
pub(super) fn holder_of_name(
    connection: &Connection,
    device: &DeviceId,
    product_key: &str,
    device_name: &str,
) -> rusqlite::Result<Option<DeviceId>> {
    const SQL: &str = "SELECT deviceId, deviceName IS NOT NULL FROM device_table \
                       WHERE productKey = ?1 AND coalesce(deviceName, deviceId) = ?2 AND deviceId <> ?3";
    let mut statement = connection.prepare_cached(SQL)?;
    let mut rows = statement.query(params![product_key, device_name, device.as_str()])?;
    while let Some(row) = rows.next()? {
        let Ok(holder) = DeviceId::parse_sn(row.get_ref(0)?.as_str()?) else { continue };
        // For a row without a name, the query compares the device ID. The name that is derived from
        // the ID can differ from the ID, so this line compares the derived name.
        if row.get(1)? || holder.device_name() == device_name {
            return Ok(Some(holder));
        }
    }
    Ok(None)
}

/// Returns another device that has the same `IotId`, if any.
pub(super) fn holder_of_iot_id(
    connection: &Connection,
    device: &DeviceId,
    iot_id: &str,
) -> rusqlite::Result<Option<DeviceId>> {
    const SQL: &str = "SELECT deviceId FROM device_table WHERE IotId = ?1 AND deviceId <> ?2 LIMIT 1";
    let holder: Option<String> =
        connection.prepare_cached(SQL)?.query_row([iot_id, device.as_str()], |row| row.get(0)).optional()?;
    Ok(holder.and_then(|holder| DeviceId::parse_sn(&holder).ok()))
}

/// Checks that no other device has this name in this product, and that no other device has this
/// `IotId`.
pub(super) fn is_unique(
    connection: &Connection,
    device: &DeviceId,
    product_key: &str,
    device_name: &str,
    iot_id: Option<&str>,
) -> rusqlite::Result<Result<(), Conflict>> {
    let named = holder_of_name(connection, device, product_key, device_name)?;
    let identified = match iot_id {
        Some(iot_id) => holder_of_iot_id(connection, device, iot_id)?,
        None => None,
    };
    Ok(merge::unique_name(named, device_name).and_then(|()| merge::unique_iot_id(identified)))
}

/// Returns up to `limit` names that several devices of one product share. Each name comes with the
/// first device that has it and with the number of devices. Versions of the schema before 5 allowed
/// shared names. Reads the whole index.
pub(super) fn shared_names(connection: &Connection, limit: usize) -> rusqlite::Result<Vec<SharedName>> {
    const SQL: &str = "SELECT productKey, coalesce(deviceName, deviceId) AS name, min(deviceId), count(*) \
                       FROM main.device_table INDEXED BY device_name GROUP BY productKey, name \
                       HAVING count(*) > 1 LIMIT ?1";
    let mut statement = connection.prepare(SQL)?;
    let rows = statement.query_map([i64::try_from(limit).unwrap_or(i64::MAX)], |row| {
        Ok(SharedName {
            product_key: row.get(0)?,
            device_name: row.get(1)?,
            device: row.get(2)?,
            devices: row.get::<_, i64>(3)?.unsigned_abs(),
        })
    })?;
    rows.collect()
}
