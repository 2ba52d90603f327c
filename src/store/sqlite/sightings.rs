//! Reads registered devices for a sweep, and stores what IoT Platform says about them.

use std::ops::Range;

use rusqlite::{Connection, Row, params};

use super::{Sqlite, read};
use crate::{
    device::DeviceId,
    store::{
        CloudState, StoreFuture, UnixSeconds,
        sighting::{Examined, IssuePlace, Sighting, Sightings, Watched},
    },
};

/// The columns of a [`Watched`], in the order in which [`watched`] reads them.
macro_rules! columns {
    () => {
        "deviceId, productKey, deviceName, firstIssued, registerTime, activateTime, cloudState, \
         coalesce(target, 'default')"
    };
}

/// Number of columns that [`watched`] reads.
const COLUMNS: usize = 8;

/// Query that also returns the rows without a certificate, so that `LIMIT` bounds the number of
/// rows that are read.
const EXAMINE: &str = concat!(
    "SELECT ",
    columns!(),
    ", deviceSecret IS NOT NULL FROM device_table WHERE deviceId > ?1 ORDER BY deviceId LIMIT ?2"
);

/// Query that repeats the conditions of the index `device_unactivated`, so that SQLite can use the
/// index.
const UNACTIVATED: &str = concat!(
    "SELECT ",
    columns!(),
    " FROM main.device_table INDEXED BY device_unactivated \
     WHERE firstIssued IS NOT NULL AND activateTime IS NULL AND cloudState IS NOT 'deleted' \
     AND firstIssued >= ?1 AND (firstIssued, deviceId) < (?2, ?3) AND deviceSecret IS NOT NULL \
     ORDER BY firstIssued DESC, deviceId DESC LIMIT ?4"
);

const STORE: &str = "UPDATE device_table SET activateTime = coalesce(activateTime, ?2), \
                     registerTime = coalesce(?4, registerTime), cloudState = ?3 \
                     WHERE deviceId = ?1 AND deviceSecret IS NOT NULL AND productKey = ?5 \
                     AND deviceName = ?6 AND registerTime IS ?7";

fn watched(row: &Row<'_>) -> rusqlite::Result<Watched> {
    Ok(Watched {
        id: read::id(row, 0)?,
        product_key: row.get(1)?,
        device_name: row.get(2)?,
        first_issued: row.get(3)?,
        registered: row.get(4)?,
        activated: row.get(5)?,
        cloud_state: read::cloud_state(row, 6)?,
        target: row.get(7)?,
    })
}

fn examine(connection: &Connection, after: &str, limit: usize) -> rusqlite::Result<Examined> {
    let mut statement = connection.prepare_cached(EXAMINE)?;
    let mut rows = statement.query(params![after, limit as i64])?;
    let (mut examined, mut count) = (Examined::default(), 0);
    while let Some(row) = rows.next()? {
        count += 1;
        if row.get(COLUMNS)? {
            examined.devices.push(watched(row)?);
        }
        if count == limit {
            examined.last = Some(read::id(row, 0)?);
        }
    }
    Ok(examined)
}

fn unactivated(
    connection: &Connection,
    from: UnixSeconds,
    before: (UnixSeconds, &str),
    limit: usize,
) -> rusqlite::Result<Vec<Watched>> {
    connection
        .prepare_cached(UNACTIVATED)?
        .query_map(params![from, before.0, before.1, limit as i64], watched)?
        .collect()
}

impl Sightings for Sqlite {
    fn registered_after<'a>(
        &'a self,
        after: Option<&'a DeviceId>,
        limit: usize,
    ) -> StoreFuture<'a, Examined> {
        // No ID is empty, so all IDs come after the empty text.
        let after = after.map_or("", DeviceId::as_str);
        self.read(|connection| examine(connection, after, limit))
    }

    fn unactivated<'a>(
        &'a self,
        issued: Range<UnixSeconds>,
        after: Option<&'a IssuePlace>,
        limit: usize,
    ) -> StoreFuture<'a, Vec<Watched>> {
        // This is the end of the range as a place. All IDs come after the empty text, so a device
        // whose first issue is at the end of the range does not come before this place.
        let end = (issued.end, "");
        let after = after.map(|place| (place.issued, place.device.as_str()));
        let before = after.map_or(end, |place| place.min(end));
        self.read(|connection| unactivated(connection, issued.start, before, limit))
    }

    fn store_sightings(&self, sightings: Vec<(Watched, Sighting)>) -> StoreFuture<'_, ()> {
        self.writer.submit(move |connection| {
            let mut statement = connection.prepare_cached(STORE)?;
            for (seen, Sighting { registered, activated, state }) in sightings {
                let state = state.map(|state| match state {
                    CloudState::Disabled => "disabled",
                    CloudState::Deleted => "deleted",
                });
                statement.execute(params![
                    seen.id.as_str(),
                    activated,
                    state,
                    registered,
                    seen.product_key,
                    seen.device_name,
                    seen.registered
                ])?;
            }
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests {
    use rusqlite::StatementStatus;

    use super::*;

    /// Fills a table with devices whose certificates were issued one second apart. Every hundredth
    /// device has not signed in.
    fn table(devices: i64) -> Connection {
        let connection = Connection::open_in_memory().unwrap();
        connection.execute_batch(include_str!("../../../schema.sql")).unwrap();
        let fill = "WITH RECURSIVE n (i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i + 1 < ?1) \
                    INSERT INTO device_table (deviceId, productKey, enrollment, deviceName, deviceSecret, \
                    firstIssued, activateTime) SELECT printf('SN-%08d', i * 7919 % ?1), 'a1', 'lamps', i, 's', i, \
                    iif(i % 100 = 0, NULL, i) FROM n";
        connection.execute(fill, [devices]).unwrap();
        connection
    }

    #[test]
    fn the_devices_that_have_not_signed_in_are_read_without_the_others() {
        let steps = |devices: i64| {
            let connection = table(devices);
            let cost = |sql: &str| {
                let statement = connection.prepare_cached(sql).unwrap();
                assert_eq!(statement.get_status(StatementStatus::Sort), 0, "{sql}");
                assert_eq!(statement.get_status(StatementStatus::FullscanStep), 0, "{sql}");
                statement.reset_status(StatementStatus::VmStep)
            };
            // The two reads return the 10 newest devices that have not signed in, and then the next
            // 10.
            for before in [(devices, ""), (devices - 1000, "SN-9")] {
                assert_eq!(unactivated(&connection, 0, before, 10).unwrap().len(), 10);
            }
            let new = cost(UNACTIVATED);
            assert_eq!(examine(&connection, "SN-00000500", 10).unwrap().devices.len(), 10);
            (new, cost(EXAMINE))
        };
        assert_eq!(steps(2000), steps(20_000));
    }

    #[test]
    fn an_upgraded_database_has_the_index() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("certdist.db");
        let former = Connection::open(&path).unwrap();
        former.execute_batch(include_str!("tests/version_1.sql")).unwrap();
        let issued = "INSERT INTO device_table (deviceId, productKey, enrollment, deviceName, deviceSecret, firstIssued) \
                      VALUES ('SN-2', 'a1', 'lamp', 'SN-2', 's', 7)";
        former.execute(issued, ()).unwrap();
        drop(former);
        drop(Sqlite::open(&path).unwrap());
        let upgraded = Connection::open(&path).unwrap();
        assert_eq!(unactivated(&upgraded, 0, (8, ""), 9).unwrap().len(), 1);
        let index = |connection: &Connection| -> String {
            let sql = "SELECT sql FROM sqlite_schema WHERE name = 'device_unactivated'";
            connection.query_row(sql, (), |row| row.get(0)).unwrap()
        };
        assert_eq!(index(&upgraded), index(&table(1)), "upgrade_7_to_8.sql and schema.sql");
    }

    #[test]
    fn a_crowd_that_was_issued_within_one_second_is_read_page_by_page_without_reading_it_again() {
        let connection = table(2000);
        connection.execute("UPDATE device_table SET firstIssued = 7, activateTime = NULL", ()).unwrap();
        let mut steps = Vec::new();
        let mut place = (8, String::new());
        for _ in 0..20 {
            let page = unactivated(&connection, 0, (place.0, &place.1), 100).unwrap();
            assert_eq!(page.len(), 100);
            place = (7, page[99].id.to_string());
            let statement = connection.prepare_cached(UNACTIVATED).unwrap();
            steps.push(statement.reset_status(StatementStatus::VmStep));
        }
        assert!(unactivated(&connection, 0, (place.0, &place.1), 100).unwrap().is_empty());
        assert!(steps[19] <= steps[1] * 11 / 10, "{steps:?}");
    }
}
