//! Stores the uses of pre-shared keys.

use rusqlite::{Connection, params};

use super::Sqlite;
use crate::store::{
    StoreFuture, UnixSeconds,
    key_use::{KeyUse, KeyUses, NewUses, PskId},
};

const FORGET: &str = "DELETE FROM key_use WHERE enrollment = ?1 AND keyId NOT IN (?2, ?3)";

/// A stored time is replaced if it is NULL or in the future: `lastUsed <= ?3` is then not true.
const NOTE: &str = "INSERT INTO key_use (enrollment, keyId, since, handshakes, lastUsed) \
                    VALUES (?1, ?2, ?3, ?4, ?5) ON CONFLICT DO UPDATE SET \
                    handshakes = handshakes + excluded.handshakes, \
                    lastUsed = CASE WHEN excluded.lastUsed IS NULL THEN lastUsed \
                    WHEN lastUsed <= ?3 THEN max(lastUsed, excluded.lastUsed) ELSE excluded.lastUsed END";

const READ: &str =
    "SELECT keyId, since, handshakes, lastUsed FROM key_use WHERE enrollment = ?1 ORDER BY keyId";

fn note(connection: &Connection, uses: &[NewUses], now: UnixSeconds) -> rusqlite::Result<()> {
    for NewUses { enrollment, keys } in uses {
        let [one, other] = keys;
        connection.prepare_cached(FORGET)?.execute([
            enrollment.as_str(),
            one.key.as_str(),
            other.key.as_str(),
        ])?;
        for new in keys {
            let handshakes = i64::try_from(new.handshakes).unwrap_or(i64::MAX);
            let values = params![enrollment, new.key.as_str(), now, handshakes, new.last];
            connection.prepare_cached(NOTE)?.execute(values)?;
        }
    }
    Ok(())
}

fn read(connection: &Connection, enrollment: &str) -> rusqlite::Result<Vec<KeyUse>> {
    let mut statement = connection.prepare_cached(READ)?;
    let uses = statement.query_map([enrollment], |row| {
        Ok(KeyUse {
            key: PskId::new(row.get(0)?),
            since: row.get(1)?,
            handshakes: row.get::<_, i64>(2)?.unsigned_abs(),
            last: row.get(3)?,
        })
    })?;
    uses.collect()
}

impl KeyUses for Sqlite {
    fn note_key_uses(&self, uses: Vec<NewUses>) -> StoreFuture<'_, ()> {
        let now = self.clock.now();
        self.writer.submit(move |connection| Ok(note(connection, &uses, now)?))
    }

    fn key_uses<'a>(&'a self, enrollment: &'a str) -> StoreFuture<'a, Vec<KeyUse>> {
        self.read(|connection| read(connection, enrollment))
    }
}
