//! Columns that hold secrets, in their stored form. This module knows the database key that each value
//! names, but not how secrets are sealed.

use super::{
    Postgres, audit, counts,
    failure::Failure,
    read,
    session::{Session, column, number, values},
};
use crate::{
    device::Secret,
    seal,
    store::{
        Actor, StoreError,
        audit::{AuditEntry, AuditEvent},
        seal_step::SealStep,
        sealed::{SecretColumn, StoredSecret, StoredSecrets, UnderKey},
        unix_now,
    },
};

/// Text that stands in place of a database key's ID for values that are not sealed.
const CLEAR: &str = "clear";

/// Statements for one column of secrets. `read` begins after the primary key $1, and selects the rows
/// whose value does not begin with $3, the prefix of values under the wanted database key. `lock` locks
/// rows in the order of their devices, to prevent deadlocks between writes. `write` replaces a value
/// unless it has changed since it was read. `count` counts the values by database key.
struct Statements {
    read: &'static str,
    lock: &'static str,
    write: &'static str,
    count: &'static str,
}

/// Locks keys in the order of their devices, as each write of several keys does.
const LOCK_KEYS: &str =
    "SELECT deviceId FROM device_key WHERE pskIdentity = ANY ($1) ORDER BY deviceId FOR UPDATE";

fn statements(column: SecretColumn) -> Statements {
    match column {
        SecretColumn::DeviceSecret => Statements {
            read: "SELECT deviceId, deviceId, deviceSecret FROM device_table WHERE deviceId > $1 \
                   AND deviceSecret IS NOT NULL AND left(deviceSecret, length($3)) <> $3 \
                   ORDER BY deviceId LIMIT $2",
            lock: "SELECT deviceId FROM device_table WHERE deviceId = ANY ($1) ORDER BY deviceId FOR UPDATE",
            write: "UPDATE device_table d SET deviceSecret = v.anew FROM unnest($1, $2, $3) AS v (id, stored, anew) \
                    WHERE d.deviceId = v.id AND d.deviceSecret = v.stored",
            count: "SELECT CASE WHEN deviceSecret LIKE 'sealed %' THEN substr(deviceSecret, 10, 8) ELSE 'clear' \
                    END, count(*) FROM device_table WHERE deviceSecret IS NOT NULL GROUP BY 1",
        },
        SecretColumn::Psk => Statements {
            read: "SELECT pskIdentity, deviceId, psk FROM device_key WHERE pskIdentity > $1 \
                   AND left(psk, length($3)) <> $3 ORDER BY pskIdentity LIMIT $2",
            lock: LOCK_KEYS,
            write: "UPDATE device_key k SET psk = v.anew FROM unnest($1, $2, $3) AS v (id, stored, anew) \
                    WHERE k.pskIdentity = v.id AND k.psk = v.stored",
            count: "SELECT CASE WHEN psk LIKE 'sealed %' THEN substr(psk, 10, 8) ELSE 'clear' END, \
                    count(*) FROM device_key GROUP BY 1",
        },
        SecretColumn::PskNext => Statements {
            read: "SELECT pskIdentity, deviceId, pskNext FROM device_key WHERE pskIdentity > $1 \
                   AND pskNext IS NOT NULL AND left(pskNext, length($3)) <> $3 ORDER BY pskIdentity LIMIT $2",
            lock: LOCK_KEYS,
            write: "UPDATE device_key k SET pskNext = v.anew FROM unnest($1, $2, $3) AS v (id, stored, anew) \
                    WHERE k.pskIdentity = v.id AND k.pskNext = v.stored",
            count: "SELECT CASE WHEN pskNext LIKE 'sealed %' THEN substr(pskNext, 10, 8) ELSE 'clear' END, \
                    count(*) FROM device_key WHERE pskNext IS NOT NULL GROUP BY 1",
        },
    }
}

/// Notes the database key under which a stored value is sealed, in the caller's transaction.
pub(super) async fn note(session: &Session, stored: &str) -> Result<(), Failure> {
    const KNOWN: &str = "SELECT 1 FROM database_key WHERE keyId = $1 FOR KEY SHARE";
    const NOTE: &str =
        "INSERT INTO database_key (keyId, firstUsed) VALUES ($1, $2) ON CONFLICT (keyId) DO NOTHING";
    let key = seal::key_of(stored).unwrap_or(CLEAR);
    // The lock keeps the note until the value is committed, and does not make other writers wait.
    if !session.exists(KNOWN, values![key]).await? {
        session.execute(NOTE, values![key, unix_now()]).await?;
    }
    Ok(())
}

/// Returns the IDs of the database keys under which values in the database are sealed.
pub(super) async fn keys_in_use(session: &Session) -> Result<Vec<String>, Failure> {
    const SQL: &str = "SELECT keyId FROM database_key WHERE keyId <> $1 ORDER BY keyId";
    session.rows(SQL, values![CLEAR]).await?.iter().map(|row| column(row, 0)).collect()
}

async fn count(session: &Session) -> Result<Vec<UnderKey>, Failure> {
    let mut counts: Vec<UnderKey> = Vec::new();
    for secrets in SecretColumn::ALL {
        for row in session.rows(statements(secrets).count, &[]).await? {
            let key: String = column(&row, 0)?;
            UnderKey::add(&mut counts, (key != CLEAR).then_some(key), secrets, number(&row, 1)?);
        }
    }
    Ok(counts)
}

impl StoredSecrets for Postgres {
    fn keys_in_use(&self) -> Result<Vec<String>, StoreError> {
        self.engine.read_now(keys_in_use)
    }

    fn count_secrets(&self) -> Result<Vec<UnderKey>, StoreError> {
        self.engine.blocking()?.run(count)
    }

    fn count_clear(&self) -> Result<u64, StoreError> {
        const IS_NOTED: &str = "SELECT 1 FROM database_key WHERE keyId = $1";
        const CLEAR_ONES: &str = "SELECT (SELECT count(*) FROM device_table WHERE deviceSecret IS NOT NULL \
                                  AND deviceSecret NOT LIKE 'sealed %') + \
                                  (SELECT count(*) FROM device_key WHERE psk NOT LIKE 'sealed %') + \
                                  (SELECT count(*) FROM device_key WHERE pskNext IS NOT NULL \
                                  AND pskNext NOT LIKE 'sealed %')";
        self.engine.blocking()?.run(async |session| match session.exists(IS_NOTED, values![CLEAR]).await? {
            true => number(&session.one(CLEAR_ONES, &[]).await?, 0),
            false => Ok(0),
        })
    }

    fn secrets_not_under(
        &self,
        column: SecretColumn,
        key: &str,
        after: &str,
        limit: usize,
    ) -> Result<Vec<StoredSecret>, StoreError> {
        let (beginning, limit) = (seal::beginning(key), i64::try_from(limit).unwrap_or(i64::MAX));
        self.engine.blocking()?.run(async |session| {
            let rows = session.rows(statements(column).read, values![after, limit, beginning]).await?;
            let stored = |row| {
                let (primary, device) = (super::column(row, 0)?, super::column(row, 1)?);
                Ok(StoredSecret { primary, device, value: read::secret(row, 2)? })
            };
            rows.iter().map(stored).collect()
        })
    }

    fn replace_secrets(
        &self,
        column: SecretColumn,
        secrets: &[(StoredSecret, Secret)],
    ) -> Result<(), StoreError> {
        let Some((_, first)) = secrets.first().cloned() else { return Ok(()) };
        let secrets = secrets.to_vec();
        self.engine.transact_now(async move |session: &Session| {
            note(session, first.expose()).await?;
            let ids: Vec<&str> = secrets.iter().map(|(stored, _)| stored.primary.as_str()).collect();
            let stored: Vec<&str> = secrets.iter().map(|(stored, _)| stored.value.expose()).collect();
            let anew: Vec<&str> = secrets.iter().map(|(_, anew)| anew.expose()).collect();
            let Statements { lock, write, .. } = statements(column);
            session.rows(lock, values![ids]).await?;
            let is_counted = column == SecretColumn::DeviceSecret;
            if is_counted {
                counts::take(session, &ids).await?;
            }
            session.execute(write, values![ids, stored, anew]).await?;
            if is_counted {
                counts::give(session, &ids).await?;
            }
            Ok(())
        })
    }

    /// The server keeps former values in its files until `VACUUM` and the write-ahead log have replaced
    /// them, and in its backups for longer.
    fn keep_only_key(
        &self,
        key: &str,
        sealed: u64,
        by: &Actor,
        _progress: &mut dyn FnMut(SealStep),
    ) -> Result<(), StoreError> {
        // Writers that note a key wait, or have their values counted.
        const LOCK: &str = "SELECT keyId FROM database_key ORDER BY keyId FOR UPDATE";
        const FORGET: &str = "DELETE FROM database_key WHERE keyId <> $1";
        let database = self.engine.database().to_owned();
        let (key, by, clock) = (key.to_owned(), by.clone(), self.clock.clone());
        let kept = self.engine.transact_now(async move |session: &Session| {
            session.rows(LOCK, &[]).await?;
            // Former keys of the devices of an unfinished import may be sealed under another database
            // key, and are restored if the import is cut off.
            if session.exists("SELECT 1 FROM import_unfinished", &[]).await? {
                let reason = format!("{database}: an import is unfinished; run this again when it has ended");
                return Err(StoreError::Busy(reason).into());
            }
            let left = UnderKey::others(&count(session).await?, &key);
            if left > 0 {
                return Err(StoreError::Failed(format!(
                    "{database}: {left} values were written under another key meanwhile; send the servers on this \
                     database SIGHUP, so that they take key {key}, and run this again"
                ))
                .into());
            }
            let forgotten = session.execute(FORGET, values![key]).await?;
            if sealed > 0 || forgotten > 0 {
                let detail = Some(format!("{sealed} values under key {key}"));
                audit::append(session, &AuditEntry { detail, ..by.entry(AuditEvent::Sealed, clock.now()) }).await?;
            }
            Ok(())
        });
        self.chainer.wake(&self.engine);
        kept
    }
}
