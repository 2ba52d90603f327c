//! Manages the keys under which a database's values are sealed, and changes the keys while a server
//! is running. This module lists the columns that hold secrets. The module `seal` seals the values.

use std::{path::Path, time::Duration};

use rusqlite::{Connection, Transaction, TransactionBehavior, params};
use zeroize::Zeroizing;

use super::{Sqlite, audit, connection, store_error};
use crate::{
    device::Secret,
    seal::{self, KeyId, Keyring, Place, SealError},
    store::{
        Actor, StoreError,
        audit::{AuditEntry, AuditEvent},
        unix_now,
    },
};

/// Used in place of a key's ID for values that are not sealed.
pub(super) const CLEAR: &str = "clear";

/// Maximum number of values sealed in one transaction. A transaction holds the write lock for a
/// few milliseconds.
const BATCH: usize = 500;

/// Statements for one column of secrets. `read` selects the next rows after the primary key ?1
/// whose value does not begin with ?3, the prefix of values under the wanted key. `write`
/// replaces a value unless it has changed meanwhile. `count` counts the values by key.
struct Column {
    table: &'static str,
    read: &'static str,
    write: &'static str,
    count: &'static str,
    place: for<'a> fn(device: &'a str, primary: &'a str) -> Place<'a>,
}

const COLUMNS: [Column; 2] = [
    Column {
        table: "device_table",
        read: "SELECT deviceId, deviceId, deviceSecret FROM device_table WHERE deviceId > ?1 \
               AND deviceSecret IS NOT NULL AND substr(deviceSecret, 1, length(?3)) <> ?3 \
               ORDER BY deviceId LIMIT ?2",
        write: "UPDATE device_table SET deviceSecret = ?3 WHERE deviceId = ?1 AND deviceSecret = ?2",
        count: "SELECT CASE WHEN deviceSecret GLOB 'sealed *' THEN substr(deviceSecret, 10, 8) ELSE 'clear' END, \
                count(*) FROM device_table WHERE deviceSecret IS NOT NULL GROUP BY 1",
        place: |device, _| Place::DeviceSecret(device),
    },
    Column {
        table: "device_key",
        read: "SELECT pskIdentity, deviceId, psk FROM device_key WHERE pskIdentity > ?1 \
               AND substr(psk, 1, length(?3)) <> ?3 ORDER BY pskIdentity LIMIT ?2",
        write: "UPDATE device_key SET psk = ?3 WHERE pskIdentity = ?1 AND psk = ?2",
        count: "SELECT CASE WHEN psk GLOB 'sealed *' THEN substr(psk, 10, 8) ELSE 'clear' END, \
                count(*) FROM device_key GROUP BY 1",
        place: |device, identity| Place::Psk { device, identity },
    },
];

/// Number of values sealed under one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sealed {
    /// The key's ID; `None` for values that are not sealed.
    pub key: Option<String>,
    /// Device secrets.
    pub device_secrets: u64,
    /// Keys of individual devices.
    pub psks: u64,
}

/// Result of sealing all values under one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SealReport {
    /// The key under which all values are sealed now.
    pub key: KeyId,
    /// Number of values that were not sealed under it before.
    pub sealed: u64,
}

/// Records in the open transaction that values are written under the first of these keys.
pub(super) fn note(connection: &Connection, keys: &Keyring) -> rusqlite::Result<()> {
    let key = keys.first().map_or_else(|| CLEAR.to_owned(), |key| key.to_string());
    connection
        .prepare_cached("INSERT INTO database_key VALUES (?1, ?2) ON CONFLICT DO NOTHING")?
        .execute(params![key, unix_now()])
        .map(drop)
}

/// Checks that these keys open every secret in the database.
pub(super) fn check(connection: &Connection, path: &Path, keys: &Keyring) -> Result<(), StoreError> {
    let failed = |error| store_error(path, error);
    let mut statement = connection.prepare("SELECT keyId FROM database_key").map_err(failed)?;
    let needed = statement.query_map((), |row| row.get::<_, String>(0)).map_err(failed)?;
    let configured: Vec<String> = keys.ids().map(|key| key.to_string()).collect();
    for key in needed {
        let key = key.map_err(failed)?;
        if key == CLEAR || configured.contains(&key) {
            continue;
        }
        let path = path.display();
        return Err(StoreError::Failed(match &configured[..] {
            [] => format!(
                "{path}: its secrets are sealed under key {key}, and none is configured; expected \
                 database_key = \"file:PATH\", \"env:NAME\" or \"credential:NAME\" with that key"
            ),
            configured => format!(
                "{path}: it has secrets that are sealed under key {key}, and the keys configured are {}; \
                 add that key to database_key_previous, or give it as database_key if another was put there \
                 by mistake",
                configured.join(", ")
            ),
        }));
    }
    Ok(())
}

/// Seals a value for use as a parameter of a statement.
pub(super) fn sealed(keys: &Keyring, place: Place<'_>, clear: &str) -> rusqlite::Result<Zeroizing<String>> {
    keys.seal(place, clear).map_err(|error| rusqlite::Error::ToSqlConversionFailure(Box::new(error)))
}

/// Opens a sealed value.
pub(super) fn opened(keys: &Keyring, place: Place<'_>, stored: &str) -> rusqlite::Result<Secret> {
    keys.open(place, stored).map_err(|error| rusqlite::Error::ToSqlConversionFailure(Box::new(error)))
}

/// Returns the reason why a value could not be sealed or opened, if the error is about that.
pub(super) fn seal_error(error: &rusqlite::Error) -> Option<&SealError> {
    match error {
        rusqlite::Error::ToSqlConversionFailure(error)
        | rusqlite::Error::FromSqlConversionFailure(_, _, error) => error.downcast_ref(),
        _ => None,
    }
}

impl Sqlite {
    /// Replaces the keys. The first key seals, and any key opens. Fails if the keys do not open
    /// every secret in the database, and then keeps the former keys.
    pub fn set_keys(&self, keys: Keyring) -> Result<(), StoreError> {
        check(&connection::open_reader(&self.path)?, &self.path, &keys)?;
        self.keys.store(keys.into());
        Ok(())
    }

    /// Counts the values sealed under each key. Reads the whole table.
    pub fn seal_status(&self) -> Result<Vec<Sealed>, StoreError> {
        let connection = connection::open_reader(&self.path)?;
        count(&connection).map_err(|error| store_error(&self.path, error))
    }

    /// Seals all values under the first key: unsealed values, and those under another key. Other
    /// processes can read and write meanwhile. An interrupted run keeps the work that it has done.
    /// `progress` receives the number of sealed values and the total.
    ///
    /// Finally rewrites the file, so that it keeps no trace of the former values; writers wait
    /// meanwhile. After that, the other keys are no longer needed.
    pub fn seal(&self, by: &Actor, mut progress: impl FnMut(u64, u64)) -> Result<SealReport, StoreError> {
        let keys = self.keys.load_full();
        let key = keys.first().ok_or_else(|| {
            StoreError::Failed(
                "there is no key to seal under: expected database_key in the configuration".into(),
            )
        })?;
        let failed = |error| store_error(&self.path, error);
        let connection = connection::open_again(&self.path, self.bulk_wait)?;
        let under_key = key.to_string();
        let others = |counts: &[Sealed]| -> u64 {
            let others = counts.iter().filter(|sealed| sealed.key.as_ref() != Some(&under_key));
            others.map(|sealed| sealed.device_secrets + sealed.psks).sum()
        };
        let total = others(&self.seal_status()?);
        let mut done = 0;
        for column in &COLUMNS {
            reseal(&connection, column, &keys, &under_key, |more| {
                done += more;
                progress(done, total);
            })
            .map_err(failed)?;
        }
        let needed: i64 = connection
            .query_row("SELECT count(*) FROM database_key WHERE keyId <> ?1", [&under_key], |row| row.get(0))
            .map_err(failed)?;
        if done > 0 || needed > 0 {
            connection.execute_batch("VACUUM").map_err(failed)?;
        }
        // Checked under the lock: a server that has not reloaded its configuration still
        // writes under the former key.
        let transaction =
            Transaction::new_unchecked(&connection, TransactionBehavior::Immediate).map_err(failed)?;
        let left = others(&count(&transaction).map_err(failed)?);
        if left > 0 {
            return Err(StoreError::Failed(format!(
                "{}: {left} values were written under another key meanwhile; send the servers on this \
                 database SIGHUP, so that they take key {key}, and run this again",
                self.path.display()
            )));
        }
        let forgotten = transaction
            .execute("DELETE FROM database_key WHERE keyId <> ?1", [&under_key])
            .map_err(failed)?;
        if done > 0 || forgotten > 0 {
            let detail = Some(format!("{done} values under key {key}"));
            let entry = AuditEntry { detail, ..by.entry(AuditEvent::Sealed) };
            audit::append(&transaction, &entry).map_err(failed)?;
        }
        transaction.commit().map_err(failed)?;
        connection::empty_log(&connection);
        Ok(SealReport { key, sealed: done })
    }
}

fn count(connection: &Connection) -> rusqlite::Result<Vec<Sealed>> {
    let mut counts: Vec<Sealed> = Vec::new();
    for column in &COLUMNS {
        let mut statement = connection.prepare(column.count)?;
        let mut rows = statement.query(())?;
        while let Some(row) = rows.next()? {
            let (key, values) = (row.get::<_, String>(0)?, row.get::<_, i64>(1)?.unsigned_abs());
            let key = (key != CLEAR).then_some(key);
            let at = counts.iter().position(|sealed| sealed.key == key).unwrap_or_else(|| {
                counts.push(Sealed { key, device_secrets: 0, psks: 0 });
                counts.len() - 1
            });
            match column.table {
                "device_table" => counts[at].device_secrets = values,
                _ => counts[at].psks = values,
            }
        }
    }
    Ok(counts)
}

/// Seals one column under the first key. A value that another process changes between the read
/// and the write is skipped.
fn reseal(
    connection: &Connection,
    column: &Column,
    keys: &Keyring,
    under_key: &str,
    mut done: impl FnMut(u64),
) -> rusqlite::Result<()> {
    let beginning = seal::beginning(under_key);
    let mut after = String::new();
    loop {
        let values: Vec<(String, String, Zeroizing<String>)> = connection
            .prepare_cached(column.read)?
            .query_map(params![after, BATCH as i64, beginning], |row| {
                Ok((row.get(0)?, row.get(1)?, Zeroizing::new(row.get::<_, String>(2)?)))
            })?
            .collect::<rusqlite::Result<_>>()?;
        let Some((last, ..)) = values.last() else { return Ok(()) };
        after.clone_from(last);
        let mut anew = Vec::with_capacity(values.len());
        for (primary, device, stored) in &values {
            let place = (column.place)(device, primary);
            anew.push(sealed(keys, place, opened(keys, place, stored)?.expose())?);
        }
        let transaction = Transaction::new_unchecked(connection, TransactionBehavior::Immediate)?;
        note(&transaction, keys)?;
        for ((primary, _, stored), anew) in values.iter().zip(&anew) {
            transaction.prepare_cached(column.write)?.execute([primary, &**stored, &**anew])?;
        }
        transaction.commit()?;
        done(values.len() as u64);
        // Waiting writers poll for the lock, so give them time to get it.
        std::thread::sleep(Duration::from_millis(1));
    }
}
