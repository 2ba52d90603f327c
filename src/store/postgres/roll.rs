//! Stores the rolls of individual keys: the uses of both keys, and the end of a roll.

use std::time::{Duration, Instant};

use tokio_postgres::Row;

use super::{
    Postgres, audit,
    failure::Failure,
    orders::keep_from_undo,
    read,
    session::{Session, column, values},
};
use crate::{
    device::DeviceId,
    store::{
        Actor, StoreFuture, UnixSeconds,
        roll::{Ended, Ending, OwnUse, Roll, RollCount, Rolls},
    },
};

/// Number of devices that a count reads between two readings of the clock.
const COUNTED: i64 = 500;

/// Devices of the enrollment $1 after the ID $2 that have a second key, at most $3.
macro_rules! rolling {
    ($columns:literal) => {
        concat!(
            "SELECT ",
            $columns,
            " FROM device_key k JOIN device_shown d ON d.deviceId = k.deviceId \
             WHERE k.pskNext IS NOT NULL AND k.deviceId > $2 AND d.enrollment = $1 ORDER BY k.deviceId LIMIT $3"
        )
    };
}

async fn note(session: &Session, uses: &[OwnUse], now: UnixSeconds) -> Result<(), Failure> {
    // An import changes devices in the same order, which prevents deadlocks.
    const LOCK: &str = "SELECT pskIdentity FROM device_key WHERE pskIdentity = ANY ($1) AND pskNext IS NOT NULL \
                        ORDER BY deviceId FOR UPDATE";
    // A comparison with NULL is never true. If the roll seems to begin later than now ($4), the clock
    // of the import was wrong, and no time is left out because of it. A stored time that is later than
    // now is removed, so that it does not hide a use of the other key.
    const NOTE: &str = "UPDATE device_key k SET pskUsed = CASE \
                        WHEN u.first IS NULL OR (u.first < k.nextSince AND k.nextSince <= $4) \
                        THEN CASE WHEN k.pskUsed <= $4 THEN k.pskUsed END \
                        WHEN k.pskUsed <= $4 THEN greatest(k.pskUsed, u.first) ELSE u.first END, \
                        pskNextUsed = CASE \
                        WHEN u.second IS NULL OR (u.second < k.nextSince AND k.nextSince <= $4) \
                        THEN CASE WHEN k.pskNextUsed <= $4 THEN k.pskNextUsed END \
                        WHEN k.pskNextUsed <= $4 THEN greatest(k.pskNextUsed, u.second) ELSE u.second END \
                        FROM unnest($1, $2, $3, $5) AS u (identity, first, second, since) \
                        WHERE k.pskIdentity = u.identity AND k.pskNext IS NOT NULL \
                        AND k.nextSince IS NOT DISTINCT FROM u.since";
    let identities: Vec<&str> = uses.iter().map(|own| own.identity.as_str()).collect();
    if session.exists(LOCK, values![identities]).await? {
        let [first, second] = [0, 1].map(|key| uses.iter().map(|own| own.used[key]).collect::<Vec<_>>());
        let since: Vec<Option<UnixSeconds>> = uses.iter().map(|own| own.since).collect();
        session.execute(NOTE, values![identities, first, second, now, since]).await?;
    }
    Ok(())
}

fn roll(row: &Row) -> Result<Roll, Failure> {
    let since: Option<UnixSeconds> = column(row, 0)?;
    Ok(Roll { since: since.unwrap_or_default(), used: [column(row, 1)?, column(row, 2)?] })
}

async fn roll_of(session: &Session, device: &DeviceId) -> Result<Option<Roll>, Failure> {
    const SQL: &str = "SELECT nextSince, pskUsed, pskNextUsed FROM device_key \
                       WHERE deviceId = $1 AND pskNext IS NOT NULL";
    session.row(SQL, values![device.as_str()]).await?.as_ref().map(roll).transpose()
}

/// Counts until `deadline`, by the monotonic clock.
async fn count(session: &Session, enrollment: &str, deadline: Instant) -> Result<RollCount, Failure> {
    const SQL: &str = rolling!("k.nextSince, k.pskUsed, k.pskNextUsed, k.deviceId");
    let (mut count, mut after) = (RollCount::default(), String::new());
    loop {
        let rows = session.rows(SQL, values![enrollment, after, COUNTED]).await?;
        for row in &rows {
            count.add(roll(row)?);
        }
        match rows.last() {
            Some(last) if rows.len() as i64 == COUNTED => after = column(last, 3)?,
            _ => return Ok(RollCount { is_complete: true, ..count }),
        }
        if Instant::now() >= deadline {
            return Ok(count);
        }
    }
}

async fn end(
    session: &Session,
    device: &DeviceId,
    ending: Ending,
    by: &Actor,
    now: UnixSeconds,
) -> Result<Ended, Failure> {
    const END: &str = "UPDATE device_key SET psk = CASE WHEN $2 THEN pskNext ELSE psk END, pskNext = NULL, \
                       nextSince = NULL, pskUsed = NULL, pskNextUsed = NULL \
                       WHERE deviceId = $1 AND pskNext IS NOT NULL";
    // An import locks the device's row as well before it changes the keys.
    if read::locked(session, device).await?.is_none() {
        return Ok(Ended::NoRoll);
    }
    let Some(roll) = roll_of(session, device).await? else { return Ok(Ended::NoRoll) };
    if !ending.is_due(roll) {
        return Ok(Ended::NotDue);
    }
    session.execute(END, values![device.as_str(), ending.takes_next()]).await?;
    // An undo of the import that has brought the second key would take it away again.
    keep_from_undo(session, device).await?;
    audit::append(session, &ending.entry(device, by, now)).await?;
    Ok(Ended::Ended)
}

impl Rolls for Postgres {
    fn note_own_uses(&self, uses: Vec<OwnUse>) -> StoreFuture<'_, ()> {
        let now = self.clock.now();
        self.engine.transact(async move |session: &Session| note(session, &uses, now).await)
    }

    fn roll_of<'a>(&'a self, device: &'a DeviceId) -> StoreFuture<'a, Option<Roll>> {
        let device = device.clone();
        self.engine.read(async move |session: &Session| roll_of(session, &device).await)
    }

    fn rolling<'a>(
        &'a self,
        enrollment: &'a str,
        after: Option<&'a DeviceId>,
        limit: usize,
    ) -> StoreFuture<'a, Vec<DeviceId>> {
        const SQL: &str = rolling!("k.deviceId");
        let after = after.map_or("", DeviceId::as_str).to_owned();
        let (enrollment, limit) = (enrollment.to_owned(), i64::try_from(limit).unwrap_or(i64::MAX));
        self.engine.read(async move |session: &Session| {
            let rows = session.rows(SQL, values![enrollment, after, limit]).await?;
            rows.iter().map(|row| read::id(row, 0)).collect()
        })
    }

    fn count_rolling<'a>(&'a self, enrollment: &'a str, time: Duration) -> StoreFuture<'a, RollCount> {
        let (enrollment, deadline) = (enrollment.to_owned(), Instant::now() + time);
        self.engine.read(async move |session: &Session| count(session, &enrollment, deadline).await)
    }

    fn end_roll<'a>(&'a self, device: &'a DeviceId, ending: Ending, by: &'a Actor) -> StoreFuture<'a, Ended> {
        let (device, by, clock) = (device.clone(), by.clone(), self.clock.clone());
        self.write(async move |session: &Session| end(session, &device, ending, &by, clock.now()).await)
    }
}
