//! Counts the places of an enrollment from the kept numbers of devices and from the journal.

use std::collections::{HashMap, hash_map::Entry};

use rusqlite::Connection;

use super::Sqlite;
use crate::{
    device::DeviceId,
    store::{
        StoreFuture,
        place::{CountsPlaces, MaxPlaces, Places},
    },
};

/// Counts the places that are taken. For a short time, a device can be in the journal and have a
/// certificate; it then counts twice. The kept place of a rotated device no longer counts once an
/// import has given the device a certificate or another enrollment.
fn places(connection: &Connection, enrollment: &str) -> rusqlite::Result<Places> {
    const SQL: &str = "SELECT (SELECT coalesce(sum(registered), 0) FROM device_count WHERE enrollment = ?1), \
                       (SELECT count(*) FROM registration_claim WHERE enrollment = ?1) \
                       + (SELECT count(*) FROM kept_place k JOIN device_table d ON d.deviceId = k.deviceId \
                       WHERE k.enrollment = ?1 AND d.enrollment = ?1 AND d.deviceSecret IS NULL \
                       AND NOT EXISTS (SELECT 1 FROM registration_claim c \
                       WHERE c.deviceId = k.deviceId AND c.enrollment = ?1))";
    connection.prepare_cached(SQL)?.query_row([enrollment], |row| {
        let [registered, claimed]: [i64; 2] = [row.get(0)?, row.get(1)?];
        Ok(Places { registered: registered.unsigned_abs(), claimed: claimed.unsigned_abs() })
    })
}

/// Lets a device that was rotated keep its place in its enrollment.
pub(super) fn keep(connection: &Connection, device: &DeviceId, enrollment: &str) -> rusqlite::Result<()> {
    const SQL: &str = "INSERT INTO kept_place (deviceId, enrollment) VALUES (?1, ?2) \
                       ON CONFLICT DO UPDATE SET enrollment = excluded.enrollment";
    connection.prepare_cached(SQL)?.execute([device.as_str(), enrollment]).map(drop)
}

/// Ends the kept place of a device whose certificate takes the place now.
pub(super) fn end_kept(connection: &Connection, device: &DeviceId) -> rusqlite::Result<()> {
    const SQL: &str = "DELETE FROM kept_place WHERE deviceId = ?1";
    connection.prepare_cached(SQL)?.execute([device.as_str()]).map(drop)
}

/// Returns whether a device without a certificate has a place in an enrollment.
pub(super) fn has_place(
    connection: &Connection,
    device: &DeviceId,
    enrollment: &str,
) -> rusqlite::Result<bool> {
    const SQL: &str = "SELECT EXISTS (SELECT 1 FROM registration_claim WHERE deviceId = ?1 AND enrollment = ?2) \
                       OR EXISTS (SELECT 1 FROM kept_place WHERE deviceId = ?1 AND enrollment = ?2)";
    connection.prepare_cached(SQL)?.query_row([device.as_str(), enrollment], |row| row.get(0))
}

/// The free places, for the claims of one transaction.
pub(super) struct Room {
    max: MaxPlaces,
    /// Free places of each enrollment that has been asked for.
    free: HashMap<String, u64>,
}

impl Room {
    pub(super) fn new(max: MaxPlaces) -> Self {
        Self { max, free: HashMap::new() }
    }

    /// Takes a place. Returns false if none is free. The caller adds the claim to the journal in the
    /// same transaction.
    pub(super) fn take(&mut self, connection: &Connection, enrollment: &str) -> rusqlite::Result<bool> {
        let Some(max) = self.max.get(enrollment) else { return Ok(true) };
        let free = match self.free.entry(enrollment.to_owned()) {
            Entry::Occupied(free) => free.into_mut(),
            Entry::Vacant(unknown) => unknown.insert(places(connection, enrollment)?.free(*max)),
        };
        match free.checked_sub(1) {
            Some(left) => {
                *free = left;
                Ok(true)
            }
            None => Ok(false),
        }
    }
}

impl CountsPlaces for Sqlite {
    fn set_max_places(&self, max: MaxPlaces) {
        self.max_places.store(max);
    }

    fn has_place<'a>(&'a self, device: &'a DeviceId, enrollment: &'a str) -> StoreFuture<'a, bool> {
        self.read(|connection| has_place(connection, device, enrollment))
    }

    fn places<'a>(&'a self, enrollment: &'a str) -> StoreFuture<'a, Places> {
        self.read(|connection| places(connection, enrollment))
    }
}
