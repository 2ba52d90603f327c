//! Uses of pre-shared keys.

use super::{
    Postgres,
    failure::Failure,
    session::{Session, column, number, values},
};
use crate::store::{
    StoreFuture, UnixSeconds,
    key_use::{KeyUse, KeyUses, NewUse, NewUses, PskId},
};

async fn note(session: &Session, uses: &NewUses, now: UnixSeconds) -> Result<(), Failure> {
    const FORGET: &str = "DELETE FROM key_use WHERE enrollment = $1 AND keyId <> ALL ($2)";
    // A time in the future comes from a wrong clock, and gives way to any other time.
    const NOTE: &str = "INSERT INTO key_use AS k (enrollment, keyId, since, handshakes, lastUsed) \
                        VALUES ($1, $2, $3, $4, $5) ON CONFLICT (enrollment, keyId) DO UPDATE SET \
                        handshakes = k.handshakes + excluded.handshakes, \
                        lastUsed = CASE WHEN excluded.lastUsed IS NULL THEN k.lastUsed \
                        WHEN k.lastUsed > $3 THEN excluded.lastUsed \
                        ELSE greatest(k.lastUsed, excluded.lastUsed) END";
    let NewUses { enrollment, keys } = uses;
    let mut sorted: Vec<&NewUse> = keys.iter().collect();
    sorted.sort_by(|one, other| one.key.cmp(&other.key));
    let ids: Vec<&str> = sorted.iter().map(|new| new.key.as_str()).collect();
    session.execute(FORGET, values![enrollment, ids]).await?;
    for NewUse { key, handshakes, last } in sorted {
        let handshakes = handshakes.cast_signed();
        session.execute(NOTE, values![enrollment, key.as_str(), now, handshakes, *last]).await?;
    }
    Ok(())
}

impl KeyUses for Postgres {
    fn note_key_uses(&self, mut uses: Vec<NewUses>) -> StoreFuture<'_, ()> {
        let clock = self.clock.clone();
        uses.sort_by(|one, other| one.enrollment.cmp(&other.enrollment));
        self.engine.transact(async move |session: &Session| {
            for uses in &uses {
                note(session, uses, clock.now()).await?;
            }
            Ok(())
        })
    }

    fn key_uses<'a>(&'a self, enrollment: &'a str) -> StoreFuture<'a, Vec<KeyUse>> {
        const SQL: &str =
            "SELECT keyId, since, handshakes, lastUsed FROM key_use WHERE enrollment = $1 ORDER BY keyId";
        let enrollment = enrollment.to_owned();
        self.engine.read(async move |session: &Session| {
            let rows = session.rows(SQL, values![enrollment]).await?;
            let used = |row| {
                let (since, handshakes, last) = (column(row, 1)?, number(row, 2)?, column(row, 3)?);
                Ok(KeyUse { key: PskId::new(column(row, 0)?), since, handshakes, last })
            };
            rows.iter().map(used).collect()
        })
    }
}
