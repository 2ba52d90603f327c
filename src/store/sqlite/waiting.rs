//! Devices that wait to be admitted, and their admission.

use rusqlite::{Connection, params};

use super::{Sqlite, audit, names, read, unfinished, writer::WriteError};
use crate::{
    device::DeviceId,
    store::{
        StoreError, StoreFuture, UnixSeconds,
        waiting::{
            Admission, Admits, MOST, MOST_OF_ADDRESS, MOST_OF_ENROLLMENT, NewDevice, Note, Waiting,
            WaitingList,
        },
    },
};

/// Maximum number of devices that one write removes. The bound keeps the wait short for requests of
/// devices, which use the same writer.
const STEP: usize = 500;

/// Query for devices in order of their IDs. Returns all enrollments of each device, even if the
/// limit cuts the list off.
const LIST: &str = "SELECT deviceId, enrollment, first, last, count, address FROM device_waiting \
                    WHERE (?2 IS NULL OR enrollment = ?2) AND deviceId IN (\
                    SELECT DISTINCT deviceId FROM device_waiting w \
                    WHERE deviceId > ?1 AND (?2 IS NULL OR enrollment = ?2) \
                    AND NOT EXISTS (SELECT 1 FROM device_table d WHERE d.deviceId = w.deviceId) \
                    ORDER BY deviceId LIMIT ?3) ORDER BY deviceId, enrollment";

/// Returns the enrollment of a device that is in the table. A MAC address is found in any spelling.
fn enrollment_of(connection: &Connection, device: &DeviceId) -> rusqlite::Result<Option<String>> {
    let Some(known) = read::known_as(connection, &device.clone().into())? else { return Ok(None) };
    read::enrollment_of(connection, &known)
}

fn note(connection: &Connection, note: &Note, now: UnixSeconds) -> Result<(), WriteError> {
    const AGAIN: &str = "UPDATE device_waiting SET last = max(last, ?3), count = count + 1 \
                         WHERE deviceId = ?1 AND enrollment = ?2";
    const ADD: &str = "INSERT INTO device_waiting (deviceId, enrollment, first, last, count, address) \
                       VALUES (?1, ?2, ?3, ?3, 1, ?4)";
    let (device, enrollment) = (note.device.as_str(), &note.asker.enrollment);
    if connection.prepare_cached(AGAIN)?.execute(params![device, enrollment, now])? > 0
        || enrollment_of(connection, &note.device)?.is_some()
        || is_full(connection, note)?
    {
        return Ok(());
    }
    connection.prepare_cached(ADD)?.execute(params![device, enrollment, now, note.asker.address])?;
    Ok(())
}

/// Returns whether the list has no room for another device of the client.
fn is_full(connection: &Connection, note: &Note) -> rusqlite::Result<bool> {
    const TAKEN: &str = "SELECT coalesce(sum(devices), 0), \
                         coalesce(sum(iif(enrollment = ?1, devices, 0)), 0) FROM waiting_count";
    const OF_ADDRESS: &str = "SELECT count(*) FROM device_waiting WHERE enrollment = ?1 AND address = ?2";
    let number = |number: i64| number.unsigned_abs();
    let enrollment = &note.asker.enrollment;
    let (all, own) = connection
        .prepare_cached(TAKEN)?
        .query_row([enrollment], |row| Ok((number(row.get(0)?), number(row.get(1)?))))?;
    if all >= MOST || own >= MOST_OF_ENROLLMENT {
        return Ok(true);
    }
    if !note.is_shared {
        return Ok(false);
    }
    let of_address = connection
        .prepare_cached(OF_ADDRESS)?
        .query_row([enrollment, &note.asker.address], |row| Ok(number(row.get(0)?)))?;
    Ok(of_address >= MOST_OF_ADDRESS)
}

/// Returns the result for a device that cannot be added, or `None` if the device can be added. If
/// the enrollment is full, the result is the same for all devices outside it, so that the result
/// reveals nothing about them.
fn obstacle(
    connection: &Connection,
    new: &NewDevice,
    max_rows: Option<u64>,
) -> rusqlite::Result<Option<Admission>> {
    const ROWS: &str = "SELECT coalesce(sum(devices), 0) FROM device_count WHERE enrollment = ?1";
    let NewDevice { device, enrollment, product_key } = new;
    let known_in = enrollment_of(connection, device)?;
    if known_in.as_ref() == Some(enrollment) {
        return Ok(Some(Admission::Known));
    }
    if let Some(max) = max_rows {
        let rows: i64 = connection.prepare_cached(ROWS)?.query_row([enrollment], |row| row.get(0))?;
        if rows.unsigned_abs() >= max {
            return Ok(Some(Admission::Full));
        }
    }
    if known_in.is_some() {
        return Ok(Some(Admission::Elsewhere));
    }
    let holder = names::holder_of_name(connection, device, product_key, &device.device_name())?;
    Ok(holder.map(Admission::NameTaken))
}

fn admit(
    connection: &Connection,
    new: &NewDevice,
    by: &Admits,
    now: UnixSeconds,
) -> Result<Admission, WriteError> {
    const ADD: &str = "INSERT INTO device_table (deviceId, productKey, enrollment) VALUES (?1, ?2, ?3)";
    let NewDevice { device, enrollment, product_key } = new;
    if is_hidden(connection, read::known_as(connection, &device.clone().into())?)? {
        return later(device, by);
    }
    if let Some(obstacle) = obstacle(connection, new, by.max_rows())? {
        if let Admission::NameTaken(holder) = &obstacle
            && unfinished::is_hidden(connection, holder)?
        {
            return later(device, by);
        }
        if matches!(obstacle, Admission::Known | Admission::Elsewhere) {
            forget(connection, device)?;
        }
        return Ok(obstacle);
    }
    connection.prepare_cached(ADD)?.execute([device.as_str(), product_key, enrollment])?;
    forget(connection, device)?;
    audit::forget_refusals(connection, device)?;
    audit::append(connection, &by.entry(new, now))?;
    Ok(Admission::Added)
}

/// Returns whether a device is in the table, but hidden by an unfinished import or undo.
fn is_hidden(connection: &Connection, known: Option<DeviceId>) -> rusqlite::Result<bool> {
    known.map_or(Ok(false), |known| unfinished::is_hidden(connection, &known))
}

/// Returns the result for a device that can be admitted only after an import or an undo has ended.
/// Only then is it known whether the device or its name is in the table.
fn later(device: &DeviceId, by: &Admits) -> Result<Admission, WriteError> {
    match by {
        Admits::Operator(_) => Ok(Admission::Later),
        Admits::Configuration { .. } => Err(StoreError::Busy(format!(
            "an unfinished import adds, or an undo removes, device {device} or another device that has its name; \
             it is admitted when that has ended"
        ))
        .into()),
    }
}

/// Removes a device from the list, in all enrollments.
fn forget(connection: &Connection, device: &DeviceId) -> rusqlite::Result<()> {
    const SQL: &str = "DELETE FROM device_waiting WHERE deviceId = ?1";
    connection.prepare_cached(SQL)?.execute([device.as_str()]).map(drop)
}

impl WaitingList for Sqlite {
    fn note_waiting(&self, asked: Note) -> StoreFuture<'_, ()> {
        let clock = self.clock.clone();
        self.writer.submit(move |connection| note(connection, &asked, clock.now()))
    }

    fn waiting<'a>(
        &'a self,
        enrollment: Option<&'a str>,
        after: Option<&'a DeviceId>,
        limit: usize,
    ) -> StoreFuture<'a, Vec<Waiting>> {
        let after = after.map_or("", DeviceId::as_str);
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        self.read(|connection| {
            connection
                .prepare_cached(LIST)?
                .query_map(params![after, enrollment, limit], |row| {
                    Ok(Waiting {
                        device: read::id(row, 0)?,
                        enrollment: row.get(1)?,
                        first: row.get(2)?,
                        last: row.get(3)?,
                        count: row.get::<_, i64>(4)?.unsigned_abs(),
                        address: row.get(5)?,
                    })
                })?
                .collect()
        })
    }

    fn waiting_counts(&self) -> StoreFuture<'_, Vec<(String, u64)>> {
        const SQL: &str = "SELECT enrollment, devices FROM waiting_count ORDER BY enrollment";
        self.read(|connection| {
            let count = |row: &rusqlite::Row<'_>| Ok((row.get(0)?, row.get::<_, i64>(1)?.unsigned_abs()));
            connection.prepare_cached(SQL)?.query_map((), count)?.collect()
        })
    }

    fn admit(&self, devices: Vec<NewDevice>, by: Admits) -> StoreFuture<'_, Vec<Admission>> {
        let clock = self.clock.clone();
        self.writer.submit(move |connection| {
            let now = clock.now();
            devices.iter().map(|device| admit(connection, device, &by, now)).collect()
        })
    }

    fn not_admitted<'a>(
        &'a self,
        new: &'a NewDevice,
        max_rows: Option<u64>,
    ) -> StoreFuture<'a, Option<Admission>> {
        self.read(|connection| obstacle(connection, new, max_rows))
    }

    fn dismiss<'a>(&'a self, enrollment: &'a str, devices: &'a [DeviceId]) -> StoreFuture<'a, u64> {
        const SQL: &str = "DELETE FROM device_waiting WHERE deviceId = ?1 AND enrollment = ?2";
        let (enrollment, devices) = (enrollment.to_owned(), devices.to_vec());
        self.writer.submit(move |connection| {
            let mut removed = 0;
            for device in &devices {
                removed += connection.prepare_cached(SQL)?.execute([device.as_str(), &enrollment])?;
            }
            Ok(removed as u64)
        })
    }

    fn prune_waiting(&self, before: UnixSeconds) -> StoreFuture<'_, u64> {
        let step = self.prune_step(before);
        Box::pin(async move {
            let mut some = step.await?;
            let mut removed = some;
            while some == STEP as u64 {
                some = self.prune_step(before).await?;
                removed += some;
            }
            Ok(removed)
        })
    }
}

impl Sqlite {
    /// Removes up to [`STEP`] devices in one write. A reader searches for them first. So the writer
    /// need not search, and usually has nothing to do.
    fn prune_step(&self, before: UnixSeconds) -> StoreFuture<'static, u64> {
        const EXPIRED: &str = "SELECT deviceId, enrollment FROM device_waiting w WHERE last < ?1 \
                               OR EXISTS (SELECT 1 FROM device_table d WHERE d.deviceId = w.deviceId) LIMIT ?2";
        const REMOVE: &str = "DELETE FROM device_waiting WHERE deviceId = ?1 AND enrollment = ?2 \
                              AND (last < ?3 OR EXISTS (SELECT 1 FROM device_table d WHERE d.deviceId = ?1))";
        let expired = self.read_now(|connection| {
            connection
                .prepare_cached(EXPIRED)?
                .query_map(params![before, STEP as i64], |row| Ok((row.get(0)?, row.get(1)?)))?
                .collect::<rusqlite::Result<Vec<(String, String)>>>()
        });
        match expired {
            Ok(none) if none.is_empty() => Box::pin(std::future::ready(Ok(0))),
            Ok(expired) => self.writer.submit(move |connection| {
                let mut remove = connection.prepare_cached(REMOVE)?;
                let mut removed = 0;
                for (device, enrollment) in &expired {
                    removed += remove.execute(params![device, enrollment, before])?;
                }
                Ok(removed as u64)
            }),
            Err(error) => Box::pin(std::future::ready(Err(error))),
        }
    }
}
