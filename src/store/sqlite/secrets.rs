//! Columns that hold secrets, in their stored form. This module knows the database key that each
//! value names, but not how secrets are sealed.

use std::{
    thread,
    time::{Duration, Instant},
};

use rusqlite::{Connection, Transaction, TransactionBehavior, params};

use super::{
    Sqlite, audit, connection, counts,
    lock::ImportLock,
    look, store_error, unfinished,
    wipe::{self, Wiped},
};
use crate::{
    device::Secret,
    new_file, seal,
    store::{
        Actor, StoreError, Totals,
        audit::{AuditEntry, AuditEvent},
        seal_step::SealStep,
        sealed::{SecretColumn, StoredSecret, StoredSecrets, UnderKey},
        unix_now,
    },
};

/// Maximum number of pre-shared keys that are read to count the unsealed ones.
const MAX_READ: i64 = 100_000;

/// Text that stands in place of a database key's ID for values that are not sealed.
const CLEAR: &str = "clear";

/// Pause between two attempts to empty the write-ahead log.
const LOG_PAUSE: Duration = Duration::from_millis(100);

/// Statements for one column of secrets. `read` begins after the primary key ?1, and selects the
/// rows whose value does not begin with ?3, the prefix of values under the wanted database key.
/// `write` replaces a value unless it has changed since it was read. `count` counts the values by
/// database key.
struct Statements {
    read: &'static str,
    write: &'static str,
    count: &'static str,
}

fn statements(column: SecretColumn) -> Statements {
    match column {
        SecretColumn::DeviceSecret => Statements {
            read: "SELECT deviceId, deviceId, deviceSecret FROM device_table WHERE deviceId > ?1 \
                   AND deviceSecret IS NOT NULL AND substr(deviceSecret, 1, length(?3)) <> ?3 \
                   ORDER BY deviceId LIMIT ?2",
            write: "UPDATE device_table SET deviceSecret = ?3 WHERE deviceId = ?1 AND deviceSecret = ?2",
            count: "SELECT CASE WHEN deviceSecret GLOB 'sealed *' THEN substr(deviceSecret, 10, 8) ELSE 'clear' \
                    END, count(*) FROM device_table WHERE deviceSecret IS NOT NULL GROUP BY 1",
        },
        SecretColumn::Psk => Statements {
            read: "SELECT pskIdentity, deviceId, psk FROM device_key WHERE pskIdentity > ?1 \
                   AND substr(psk, 1, length(?3)) <> ?3 ORDER BY pskIdentity LIMIT ?2",
            write: "UPDATE device_key SET psk = ?3 WHERE pskIdentity = ?1 AND psk = ?2",
            count: "SELECT CASE WHEN psk GLOB 'sealed *' THEN substr(psk, 10, 8) ELSE 'clear' END, \
                    count(*) FROM device_key GROUP BY 1",
        },
        SecretColumn::PskNext => Statements {
            read: "SELECT pskIdentity, deviceId, pskNext FROM device_key WHERE pskIdentity > ?1 \
                   AND pskNext IS NOT NULL AND substr(pskNext, 1, length(?3)) <> ?3 ORDER BY pskIdentity LIMIT ?2",
            write: "UPDATE device_key SET pskNext = ?3 WHERE pskIdentity = ?1 AND pskNext = ?2",
            count: "SELECT CASE WHEN pskNext GLOB 'sealed *' THEN substr(pskNext, 10, 8) ELSE 'clear' END, \
                    count(*) FROM device_key WHERE pskNext IS NOT NULL GROUP BY 1",
        },
    }
}

/// Notes the database key under which a stored value is sealed, in the open transaction.
pub(super) fn note(connection: &Connection, stored: &str) -> rusqlite::Result<()> {
    connection
        .prepare_cached(
            "INSERT INTO database_key (keyId, firstUsed) VALUES (?1, ?2) ON CONFLICT (keyId) DO UPDATE SET writes = writes + 1",
        )?
        .execute(params![seal::key_of(stored).unwrap_or(CLEAR), unix_now()])
        .map(drop)
}

/// Returns the IDs of the database keys under which values in the database are sealed.
pub(super) fn keys_in_use(connection: &Connection) -> rusqlite::Result<Vec<String>> {
    connection
        .prepare("SELECT keyId FROM database_key WHERE keyId <> ?1")?
        .query_map([CLEAR], |row| row.get(0))?
        .collect()
}

fn count(connection: &Connection) -> rusqlite::Result<Vec<UnderKey>> {
    let mut counts: Vec<UnderKey> = Vec::new();
    for column in SecretColumn::ALL {
        let mut statement = connection.prepare(statements(column).count)?;
        let mut rows = statement.query(())?;
        while let Some(row) = rows.next()? {
            let (key, values) = (row.get::<_, String>(0)?, row.get::<_, i64>(1)?.unsigned_abs());
            UnderKey::add(&mut counts, (key != CLEAR).then_some(key), column, values);
        }
    }
    Ok(counts)
}

/// Counts the values that are not sealed. Of the pre-shared keys, it reads at most [`MAX_READ`].
pub(super) fn count_clear(connection: &Connection) -> rusqlite::Result<u64> {
    const PSKS: &str = "SELECT coalesce(sum((psk NOT GLOB 'sealed *') + coalesce(pskNext NOT GLOB 'sealed *', 0)), 0) \
                        FROM (SELECT psk, pskNext FROM device_key LIMIT ?1)";
    let has_clear = "SELECT 1 FROM database_key WHERE keyId = ?1";
    let psks = match connection.prepare_cached(has_clear)?.exists([CLEAR])? {
        true => connection.query_row(PSKS, [MAX_READ], |row| row.get::<_, i64>(0))?.unsigned_abs(),
        false => 0,
    };
    let totals = Totals::sum(&counts::totals(connection)?);
    Ok(totals.clear + psks)
}

impl StoredSecrets for Sqlite {
    fn keys_in_use(&self) -> Result<Vec<String>, StoreError> {
        self.query(keys_in_use)
    }

    fn count_secrets(&self) -> Result<Vec<UnderKey>, StoreError> {
        self.query(count)
    }

    fn count_clear(&self) -> Result<u64, StoreError> {
        self.query(count_clear)
    }

    fn secrets_not_under(
        &self,
        column: SecretColumn,
        key: &str,
        after: &str,
        limit: usize,
    ) -> Result<Vec<StoredSecret>, StoreError> {
        let connection = connection::open_reader(&self.path)?;
        let read = || {
            connection
                .prepare(statements(column).read)?
                .query_map(params![after, limit as i64, seal::beginning(key)], |row| {
                    let value = Secret::new(row.get(2)?);
                    Ok(StoredSecret { primary: row.get(0)?, device: row.get(1)?, value })
                })?
                .collect::<rusqlite::Result<_>>()
        };
        read().map_err(|error| store_error(&self.path, error))
    }

    fn replace_secrets(
        &self,
        column: SecretColumn,
        values: &[(StoredSecret, Secret)],
    ) -> Result<(), StoreError> {
        let connection = connection::open_again(&self.path, self.bulk_wait)?;
        let write = || {
            let transaction = connection::begin(&connection)?;
            if let Some((_, anew)) = values.first() {
                note(&transaction, anew.expose())?;
            }
            let mut replace = transaction.prepare(statements(column).write)?;
            for (stored, anew) in values {
                replace.execute([&*stored.primary, stored.value.expose(), anew.expose()])?;
            }
            drop(replace);
            transaction.commit()
        };
        write().map_err(|error| store_error(&self.path, error))
    }

    fn keep_only_key(
        &self,
        key: &str,
        sealed: u64,
        by: &Actor,
        progress: &mut dyn FnMut(SealStep),
    ) -> Result<(), StoreError> {
        let failed = |error| store_error(&self.path, error);
        // An import remembers which keys it has noted, and keeps former keys until it has ended.
        let _lock = ImportLock::wait(&self.path, self.bulk_wait)?;
        let connection = connection::open_again(&self.path, self.bulk_wait)?;
        unfinished::take_back(&connection, &|| false).map_err(failed)?;
        if self.is_only_key(&connection, key, sealed, by)? {
            let Wiped { pages, searches, .. } = wipe::wipe(&self.path, &connection, progress)?;
            tracing::debug!(pages, searches, "removed the traces of former values");
            // If a value was written in clear text meanwhile, its note stays.
            const DONE: &str = "DELETE FROM database_key WHERE keyId = ?1 AND writes = 0";
            connection::execute(&connection, DONE, [CLEAR]).map_err(failed)?;
        }
        // The write-ahead log has former values until it is emptied, even if an earlier run has
        // already removed their traces from the file. A long read by another process delays the
        // emptying.
        let deadline = Instant::now() + self.bulk_wait;
        while !connection::is_log_empty(&connection).map_err(failed)? {
            if Instant::now() >= deadline {
                return Err(StoreError::Busy(format!(
                    "{}: another process reads the database for long, so its log still has values that were \
                     replaced; when that process has ended, run this again",
                    self.path.display()
                )));
            }
            thread::sleep(LOG_PAUSE);
        }
        // A process that does not have the database key may have written values since. The table
        // `database_key` shows this even if the values have since been replaced.
        if notes_others(&connection, key).map_err(failed)? {
            return Err(self.written_meanwhile(0, key));
        }
        // A killed command may have left a copy of the database, with former values, beside the
        // database.
        let file = self.path.canonicalize().unwrap_or_else(|_| self.path.to_path_buf());
        new_file::remove_left_behind(&file);
        Ok(())
    }

    fn show_key(&self, key: Option<&str>) {
        if let Some(lock) = &self.lock
            && let Err(error) = lock.show_key(key)
        {
            tracing::debug!(path = %self.path.display(), %error, "could not show the key in the lock file");
        }
    }

    fn all_seal_under(&self, key: &str) -> Result<(), StoreError> {
        let Some(who) = self.lock.as_ref().and_then(|lock| lock.who_lacks(key)) else { return Ok(()) };
        let reason = format!(
            "{who} has the database open and does not seal under key {key} yet, so it could not read what is sealed \
             now; if it is a server, reload it first (`systemctl reload certdist`, or SIGHUP), otherwise wait for its \
             end; then run this again"
        );
        Err(look::unusable(&self.path, &reason))
    }
}

impl Sqlite {
    /// Checks that all values are sealed under the database key `key`, and forgets the other
    /// database keys. Returns whether the file may have traces of former values. In that case,
    /// `database_key` lists clear text as in use until the traces are removed. Other processes may
    /// write meanwhile. Each write is counted in `database_key`, so a write under another key is
    /// noticed.
    pub(super) fn is_only_key(
        &self,
        connection: &Connection,
        key: &str,
        sealed: u64,
        by: &Actor,
    ) -> Result<bool, StoreError> {
        let failed = |error| store_error(&self.path, error);
        let reader = connection::open_reader(&self.path)?;
        let state = Transaction::new_unchecked(&reader, TransactionBehavior::Deferred).map_err(failed)?;
        let seen = writes_under_others(&state, key).map_err(failed)?;
        // A server that has not reloaded its configuration may still write under the former
        // database key.
        let left = UnderKey::others(&count(&state).map_err(failed)?, key);
        drop(state);
        if left > 0 {
            return Err(self.written_meanwhile(left, key));
        }
        let transaction = connection::begin(connection).map_err(failed)?;
        if writes_under_others(&transaction, key).map_err(failed)? != seen {
            return Err(self.written_meanwhile(0, key));
        }
        if sealed == 0 && !notes_others(&transaction, key).map_err(failed)? {
            return Ok(false);
        }
        let forget = || {
            transaction.execute("DELETE FROM database_key WHERE keyId <> ?1", [key])?;
            note(&transaction, CLEAR)?;
            let detail = Some(format!("{sealed} values under key {key}"));
            audit::append(
                &transaction,
                &AuditEntry { detail, ..by.entry(AuditEvent::Sealed, self.clock.now()) },
            )
        };
        forget().map_err(failed)?;
        transaction.commit().map_err(failed)?;
        Ok(true)
    }

    fn written_meanwhile(&self, left: u64, key: &str) -> StoreError {
        let what = match left {
            0 => "values were".to_owned(),
            left => format!("{left} values were"),
        };
        StoreError::Failed(format!(
            "{}: {what} written under another key meanwhile; send the servers on this database SIGHUP, so that \
             they take key {key}, and run this again",
            self.path.display()
        ))
    }
}

/// Returns whether the table `database_key` lists a database key other than `key`, or clear text.
fn notes_others(connection: &Connection, key: &str) -> rusqlite::Result<bool> {
    const SQL: &str = "SELECT EXISTS (SELECT 1 FROM database_key WHERE keyId <> ?1)";
    connection.query_row(SQL, [key], |row| row.get(0))
}

/// Returns the database keys other than `key`, and clear text, each with its number of writes.
fn writes_under_others(connection: &Connection, key: &str) -> rusqlite::Result<Vec<(String, i64)>> {
    const SQL: &str = "SELECT keyId, writes FROM database_key WHERE keyId <> ?1 ORDER BY keyId";
    connection.prepare(SQL)?.query_map([key], |row| Ok((row.get(0)?, row.get(1)?)))?.collect()
}
