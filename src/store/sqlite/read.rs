//! Queries of the table, and conversion of its rows into values. This module names the columns; the
//! caller chooses the connection.

use std::{cell::Cell, collections::HashSet};

use rusqlite::{
    Connection, OptionalExtension, Row, params,
    types::{Type, ValueRef},
};

use crate::{
    device::{AskedId, Certificate, DeviceId, Secret},
    store::{
        CloudState, DeviceRow, DeviceState, Each, IndividualKey, JournalEntry, KeyLookup, OpenBatch,
        OpenEntry, roll::DeviceKeys,
    },
};

/// The columns of a [`DeviceRow`] after its ID, in the order in which [`device_row`] reads them.
macro_rules! device_columns {
    () => {
        "enrollment, productKey, deviceName, deviceSecret, IotId, state, firstIssued, registerTime, \
         activateTime, refusal, cloudState, target"
    };
}

/// Number of columns that [`device_row`] reads.
const DEVICE_COLUMNS: usize = 12;

const DEVICE: &str = concat!("SELECT ", device_columns!(), " FROM device_table WHERE deviceId = ?1");

/// SQL condition that is true if any device has a second key. With the index, it takes one search.
macro_rules! are_rolling {
    () => {
        "EXISTS (SELECT 1 FROM device_key INDEXED BY key_next WHERE pskNext IS NOT NULL)"
    };
}

/// Uses subqueries instead of a join. SQLite (with STAT4) would plan a join again for each
/// identity, which costs five times as much as the search.
///
/// An unknown identity costs the same as a known one: three searches and one row. The row for an
/// unknown identity has ?2 as its key, and ?3 as its device and enrollment.
const INDIVIDUAL_KEY: &str = concat!(
    "SELECT deviceId, (SELECT enrollment FROM device_table WHERE deviceId = k.deviceId), psk, pskNext, 1, ",
    are_rolling!(),
    ", nextSince FROM device_key k WHERE pskIdentity = ?1 \
     UNION ALL SELECT ?3, coalesce((SELECT enrollment FROM device_table WHERE deviceId = ?1), ?3), ?2, NULL, 0, ",
    are_rolling!(),
    ", NULL LIMIT 1"
);

/// Selects only the enrollment, so that no secret is unsealed. Returns a row even for an unknown
/// device.
const ENROLLMENT: &str = "SELECT enrollment, 1 FROM device_table WHERE deviceId = ?1 \
     UNION ALL SELECT ?2, 0 LIMIT 1";

/// Placeholder for a device and an enrollment that do not exist.
const NO_DEVICE: &str = "0000000000";

/// Placeholder for a key that does not exist. It has the length of a usual key.
const NO_KEY: &str = "00000000000000000000000000000000";

const EXPORT: &str = concat!(
    "SELECT ",
    device_columns!(),
    ", d.deviceId, k.pskIdentity, k.psk, k.pskNext, k.pskUsed, k.pskNextUsed FROM device_table d LEFT JOIN device_key k \
     ON k.deviceId = d.deviceId ORDER BY d.deviceId"
);

const ROWS_AFTER: &str = concat!(
    "SELECT ",
    device_columns!(),
    ", deviceId FROM device_table WHERE deviceId > ?1 ORDER BY deviceId LIMIT ?2"
);

/// A thread's connection.
pub(super) struct Reader {
    connection: Connection,
    held: Cell<Held>,
}

/// State of the transaction that several reads share, because beginning and ending a transaction
/// takes half as long as reading a row.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Held {
    /// Each read has its own transaction.
    No,
    /// The next read begins the shared transaction.
    FromTheNext,
    /// The shared transaction has begun.
    Yes,
}

impl Reader {
    pub(super) fn new(connection: Connection) -> Self {
        Self { connection, held: Cell::new(Held::No) }
    }

    /// Returns the connection for a query. Begins the shared transaction if [`hold`](Self::hold)
    /// was called.
    pub(super) fn connection(&self) -> &Connection {
        if self.held.get() == Held::FromTheNext {
            // If `BEGIN` fails, each read has its own transaction again.
            self.held.set(if self.run("BEGIN") { Held::Yes } else { Held::No });
        }
        &self.connection
    }

    pub(super) fn hold(&self) {
        if self.held.get() == Held::No {
            self.held.set(Held::FromTheNext);
        }
    }

    pub(super) fn release(&self) {
        if self.held.replace(Held::No) == Held::Yes {
            self.run("COMMIT");
        }
    }

    fn run(&self, sql: &str) -> bool {
        self.connection.prepare_cached(sql).and_then(|mut statement| statement.execute(())).is_ok()
    }
}

/// Reads the row of a device.
pub(super) fn device(connection: &Connection, id: &DeviceId) -> rusqlite::Result<Option<DeviceRow>> {
    connection.prepare_cached(DEVICE)?.query_row([id.as_str()], |row| device_row(id.clone(), row)).optional()
}

/// Returns the first of the requested IDs that is in the table. If none is, returns the unusual
/// spelling under which the table has the requested MAC address, if any.
pub(super) fn known_as(connection: &Connection, asked: &AskedId) -> rusqlite::Result<Option<DeviceId>> {
    let mut statement = connection.prepare_cached("SELECT 1 FROM device_table WHERE deviceId = ?1")?;
    for id in asked.ids() {
        if statement.exists([id.as_str()])? {
            return Ok(Some(id.clone()));
        }
    }
    asked.mac().map_or(Ok(None), |mac| spelled(connection, &mac))
}

/// SQL expression for the digits of a device ID that is a MAC address. The index `device_spelled`
/// has the same expression.
macro_rules! digits {
    () => {
        "replace(replace(replace(replace(replace(replace(deviceId, ':', ''), '-', ''), '.', ''), '_', ''), '0x', ''), '0X', '')"
    };
}

/// Query for the MAC addresses in an unusual spelling. The conditions are those of the index, so
/// that SQLite can use the index.
macro_rules! all_spelled {
    () => {
        concat!(
            "SELECT deviceId FROM main.device_table INDEXED BY device_spelled \
             WHERE deviceId NOT GLOB '*[^0-9A-Fa-fxX:._-]*' AND length(",
            digits!(),
            ") = 12 AND deviceId NOT GLOB '[0-9A-F][0-9A-F][0-9A-F][0-9A-F][0-9A-F][0-9A-F][0-9A-F][0-9A-F][0-9A-F][0-9A-F][0-9A-F][0-9A-F]'"
        )
    };
}

/// Query for the MAC address ?1, if the table has it in an unusual spelling.
const SPELLED: &str = concat!(all_spelled!(), " AND upper(", digits!(), ") = ?1 LIMIT 1");

/// Returns the MAC addresses that are in the table in an unusual spelling.
pub(super) fn spelled_macs(connection: &Connection) -> rusqlite::Result<HashSet<DeviceId>> {
    let mut statement = connection.prepare(all_spelled!())?;
    let mut rows = statement.query(())?;
    let mut macs = HashSet::new();
    while let Some(row) = rows.next()? {
        macs.extend(DeviceId::parse_mac(row.get_ref(0)?.as_str()?));
    }
    Ok(macs)
}

/// Returns the ID under which the table has a MAC address in an unusual spelling.
pub(super) fn spelled(connection: &Connection, mac: &DeviceId) -> rusqlite::Result<Option<DeviceId>> {
    let found: Option<String> =
        connection.prepare_cached(SPELLED)?.query_row([mac.as_str()], |row| row.get(0)).optional()?;
    // The query finds only legal IDs. The index does not guarantee that an ID is a MAC address, so
    // the last line checks this.
    let id = found.and_then(|found| DeviceId::parse_sn(&found).ok());
    Ok(id.filter(|id| DeviceId::parse_mac(id.as_str()).as_ref() == Ok(mac)))
}

/// Reads the enrollment of a device. The query does the same work for an unknown device.
pub(super) fn enrollment_of(connection: &Connection, id: &DeviceId) -> rusqlite::Result<Option<String>> {
    connection.prepare_cached(ENROLLMENT)?.query_row([id.as_str(), NO_DEVICE], |row| {
        let enrollment = row.get(0)?;
        Ok(row.get::<_, bool>(1)?.then_some(enrollment))
    })
}

/// Returns whether any device has a second key.
pub(super) fn are_rolling(connection: &Connection) -> rusqlite::Result<bool> {
    connection.prepare_cached(concat!("SELECT ", are_rolling!()))?.query_row((), |row| row.get(0))
}

/// Reads the key of a PSK identity. The query does the same work for an unknown identity.
pub(super) fn individual_key(connection: &Connection, identity: &str) -> rusqlite::Result<KeyLookup> {
    connection.prepare_cached(INDIVIDUAL_KEY)?.query_row([identity, NO_KEY, NO_DEVICE], |row| {
        // The device of an unfinished import is hidden, and so has no enrollment here.
        let enrollment: Option<String> = row.get(1)?;
        let is_shown = enrollment.is_some();
        let enrollment = enrollment.unwrap_or_else(|| NO_DEVICE.to_owned());
        let found = IndividualKey {
            device: id(row, 0)?,
            enrollment,
            psk: secret(row, 2)?,
            next: some_secret(row, 3)?,
            next_since: row.get(6)?,
        };
        let found = (row.get(4)? && is_shown).then_some(found);
        Ok(KeyLookup { found, are_rolling: row.get(5)? })
    })
}

/// Reads up to `limit` rows in order of device ID, beginning after `after`.
pub(super) fn rows_after(
    connection: &Connection,
    after: Option<&DeviceId>,
    limit: usize,
) -> rusqlite::Result<Vec<DeviceRow>> {
    // No ID is empty, so all IDs come after the empty text.
    let after = after.map_or("", DeviceId::as_str);
    connection
        .prepare_cached(ROWS_AFTER)?
        .query_map(params![after, limit as i64], |row| device_row(id(row, DEVICE_COLUMNS)?, row))?
        .collect()
}

/// Reads a journal entry from the first four columns of a row.
pub(super) fn journal_entry(row: &Row<'_>) -> rusqlite::Result<JournalEntry> {
    let (product_key, device_name, target) = (row.get(1)?, row.get(2)?, row.get(3)?);
    Ok(JournalEntry { device: id(row, 0)?, product_key, device_name, target })
}

/// Reads a batch from the first four columns of a row.
pub(super) fn open_batch(row: &Row<'_>) -> rusqlite::Result<OpenBatch> {
    let apply_id: Option<i64> = row.get(2)?;
    let apply_id = apply_id.map(i64::cast_unsigned);
    Ok(OpenBatch { id: row.get(0)?, product_key: row.get(1)?, apply_id, target: row.get(3)? })
}

/// Reads the journal, oldest entry first.
pub(super) fn open_entries(connection: &Connection) -> rusqlite::Result<Vec<OpenEntry>> {
    const SQL: &str = "SELECT deviceId, productKey, deviceName, target, openedAt, batchId \
                       FROM registration_claim ORDER BY openedAt, deviceId";
    let open =
        |row: &Row<'_>| Ok(OpenEntry { entry: journal_entry(row)?, since: row.get(4)?, batch: row.get(5)? });
    connection.prepare_cached(SQL)?.query_map((), open)?.collect()
}

/// Reads the batches of the journal, in order of their numbers.
pub(super) fn open_batches(connection: &Connection) -> rusqlite::Result<Vec<OpenBatch>> {
    const SQL: &str = "SELECT batchId, productKey, applyId, target FROM registration_batch ORDER BY batchId";
    connection.prepare_cached(SQL)?.query_map((), open_batch)?.collect()
}

/// Reads every device and its key, in order of device ID, until `each` returns `Break`.
pub(super) fn export(connection: &Connection, each: Each<'_>) -> rusqlite::Result<()> {
    let mut statement = connection.prepare(EXPORT)?;
    let mut rows = statement.query(())?;
    while let Some(row) = rows.next()? {
        let device = device_row(id(row, DEVICE_COLUMNS)?, row)?;
        let key = match row.get_ref(DEVICE_COLUMNS + 1)? {
            ValueRef::Null => None,
            _ => Some(keys(row, DEVICE_COLUMNS + 1)?),
        };
        if each(device, key).is_break() {
            break;
        }
    }
    Ok(())
}

fn device_row(id: DeviceId, row: &Row<'_>) -> rusqlite::Result<DeviceRow> {
    let product_key: String = row.get(1)?;
    let device_name: Option<String> = row.get(2)?;
    let device_secret = some_secret(row, 3)?;
    // The schema allows no secret without a name.
    let certificate = device_secret.zip(device_name.as_ref()).map(|(secret, name)| Certificate {
        product_key: product_key.clone(),
        device_name: name.clone(),
        device_secret: secret,
    });
    Ok(DeviceRow {
        id,
        enrollment: row.get(0)?,
        product_key,
        device_name,
        certificate,
        iot_id: row.get(4)?,
        state: device_state(row, 5)?,
        first_issued: row.get(6)?,
        registered: row.get(7)?,
        activated: row.get(8)?,
        refusal: row.get(9)?,
        cloud_state: cloud_state(row, 10)?,
        target: row.get(11)?,
    })
}

/// Reads the state that the operator has set.
pub(super) fn device_state(row: &Row<'_>, column: usize) -> rusqlite::Result<DeviceState> {
    match row.get_ref(column)?.as_str()? {
        "enabled" => Ok(DeviceState::Enabled),
        "disabled" => Ok(DeviceState::Disabled),
        _ => Err(unexpected(column, "state is neither enabled nor disabled")),
    }
}

/// Decodes a column with the state of a device at IoT Platform. NULL means that the device was not
/// found to be disabled or deleted there.
pub(super) fn cloud_state(row: &Row<'_>, column: usize) -> rusqlite::Result<Option<CloudState>> {
    match row.get_ref(column)?.as_str_or_null()? {
        None => Ok(None),
        Some("disabled") => Ok(Some(CloudState::Disabled)),
        Some("deleted") => Ok(Some(CloudState::Deleted)),
        Some(_) => Err(unexpected(column, "cloudState is neither disabled nor deleted")),
    }
}

/// Parses a stored ID. Unlike an ID in an import, a stored ID is already normalized.
pub(super) fn id(row: &Row<'_>, column: usize) -> rusqlite::Result<DeviceId> {
    DeviceId::parse_sn(row.get_ref(column)?.as_str()?).map_err(|error| unexpected(column, error))
}

/// Reads a secret as it is stored.
fn secret(row: &Row<'_>, column: usize) -> rusqlite::Result<Secret> {
    Ok(Secret::new(row.get_ref(column)?.as_str()?.to_owned()))
}

/// Reads a secret as it is stored; `None` for NULL.
fn some_secret(row: &Row<'_>, column: usize) -> rusqlite::Result<Option<Secret>> {
    match row.get_ref(column)? {
        ValueRef::Null => Ok(None),
        _ => secret(row, column).map(Some),
    }
}

/// Reads the keys of a device from five columns of a row, the first of which is `column`.
pub(super) fn keys(row: &Row<'_>, column: usize) -> rusqlite::Result<DeviceKeys> {
    Ok(DeviceKeys {
        identity: row.get(column)?,
        psk: secret(row, column + 1)?,
        next: some_secret(row, column + 2)?,
        used: [row.get(column + 3)?, row.get(column + 4)?],
    })
}

fn unexpected(column: usize, error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(column, Type::Text, error.into())
}

#[cfg(test)]
mod tests {
    use rusqlite::StatementStatus;

    use super::*;

    #[test]
    fn what_a_request_asks_is_planned_once() {
        let connection = Connection::open_in_memory().unwrap();
        connection.execute_batch(include_str!("../../../schema.sql")).unwrap();
        for text in ["a-1", "a-2", "a-3"] {
            device(&connection, &DeviceId::parse(text).unwrap()).unwrap();
            individual_key(&connection, text).unwrap();
            enrollment_of(&connection, &DeviceId::parse(text).unwrap()).unwrap();
        }
        for sql in [DEVICE, INDIVIDUAL_KEY, ENROLLMENT] {
            let statement = connection.prepare_cached(sql).unwrap();
            assert!(statement.get_status(StatementStatus::Run) >= 3, "{sql}");
            assert_eq!(statement.get_status(StatementStatus::RePrepare), 0, "{sql}");
        }
    }

    #[test]
    fn an_identity_that_is_not_there_costs_sqlite_what_one_that_is_does() {
        let connection = Connection::open_in_memory().unwrap();
        connection.execute_batch(include_str!("../../../schema.sql")).unwrap();
        connection
            .execute_batch(
                "INSERT INTO device_table (deviceId, productKey, enrollment) VALUES ('SN-1', 'a1', 'own'); \
                 INSERT INTO device_key (pskIdentity, deviceId, psk) VALUES ('one', 'SN-1', '000102030405060708090a0b0c0d0e0f')",
            )
            .unwrap();
        let steps = |sql: &str, work: &dyn Fn() -> bool| {
            connection.prepare_cached(sql).unwrap().reset_status(StatementStatus::VmStep);
            let found = work();
            (found, connection.prepare_cached(sql).unwrap().get_status(StatementStatus::VmStep))
        };
        let costs = [
            ["one", "two"].map(|identity| {
                steps(INDIVIDUAL_KEY, &|| individual_key(&connection, identity).unwrap().found.is_some())
            }),
            ["SN-1", "SN-2"].map(|device| {
                let device = DeviceId::parse(device).unwrap();
                steps(ENROLLMENT, &|| enrollment_of(&connection, &device).unwrap().is_some())
            }),
        ];
        for [(known, cost), (unknown, other)] in costs {
            assert!(known && !unknown && cost > 0);
            assert!(cost.abs_diff(other) <= 4, "{cost} and {other} instructions of SQLite");
        }
    }

    #[test]
    fn an_export_is_streamed_in_key_order_without_sorting() {
        let connection = Connection::open_in_memory().unwrap();
        connection.execute_batch(include_str!("../../../schema.sql")).unwrap();
        let mut statement = connection.prepare(&format!("EXPLAIN QUERY PLAN {EXPORT}")).unwrap();
        let plan: Vec<String> =
            statement.query_map((), |row| row.get(3)).unwrap().collect::<Result<_, _>>().unwrap();
        assert_eq!(plan.len(), 2, "{plan:?}");
        assert!(plan[0].starts_with("SCAN d"), "{plan:?}");
        assert!(plan[1].contains("SEARCH k USING"), "{plan:?}");
    }
}
