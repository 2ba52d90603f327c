//! Places of an enrollment: they are counted from the kept numbers of devices and from the journal.

use std::collections::{HashMap, hash_map::Entry};

use rusqlite::Connection;

use super::Sqlite;
use crate::store::{
    StoreFuture,
    place::{CountsPlaces, MaxPlaces, Places},
};

/// Counts the places that are taken. A device that is in the journal and has a certificate, for a
/// short time, counts twice.
fn places(connection: &Connection, enrollment: &str) -> rusqlite::Result<Places> {
    const SQL: &str = "SELECT (SELECT coalesce(sum(registered), 0) FROM device_count WHERE enrollment = ?1), \
                       (SELECT count(*) FROM registration_claim WHERE enrollment = ?1)";
    connection.prepare_cached(SQL)?.query_row([enrollment], |row| {
        let [registered, claimed]: [i64; 2] = [row.get(0)?, row.get(1)?];
        Ok(Places { registered: registered.unsigned_abs(), claimed: claimed.unsigned_abs() })
    })
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
            Entry::Vacant(unknown) => {
                let Places { registered, claimed } = places(connection, enrollment)?;
                unknown.insert(max.saturating_sub(registered).saturating_sub(claimed))
            }
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

    fn places<'a>(&'a self, enrollment: &'a str) -> StoreFuture<'a, Places> {
        self.read(|connection| places(connection, enrollment))
    }
}
