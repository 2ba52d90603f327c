//! Stores the rolls of individual keys: the uses of both keys, and the end of a roll.

use std::time::{Duration, Instant};

use rusqlite::{Connection, OptionalExtension, Row, params};

use super::{Sqlite, audit, orders::keep_from_undo, read, unfinished};
use crate::{
    device::DeviceId,
    store::{
        Actor, StoreFuture, UnixSeconds,
        roll::{Ended, Ending, OwnUse, Roll, RollCount, Rolls},
    },
};

/// Number of devices after which a count looks at the clock.
const COUNTED: u64 = 500;

/// A comparison with NULL is never true. If the roll seems to begin later than now (?4), the clock of
/// the import was wrong, and no time is left out because of it. A stored time that is later than now is
/// removed, so that it does not hide a use of the other key.
const NOTE: &str = "UPDATE device_key SET \
                    pskUsed = CASE WHEN ?2 IS NULL OR (?2 < nextSince AND nextSince <= ?4) \
                    THEN iif(pskUsed > ?4, NULL, pskUsed) WHEN pskUsed <= ?4 THEN max(pskUsed, ?2) ELSE ?2 END, \
                    pskNextUsed = CASE WHEN ?3 IS NULL OR (?3 < nextSince AND nextSince <= ?4) \
                    THEN iif(pskNextUsed > ?4, NULL, pskNextUsed) WHEN pskNextUsed <= ?4 THEN max(pskNextUsed, ?3) ELSE ?3 END \
                    WHERE pskIdentity = ?1 AND pskNext IS NOT NULL AND nextSince IS ?5";

/// Devices of the enrollment ?1 after the ID ?2 that have a second key.
macro_rules! rolling {
    ($columns:literal) => {
        concat!(
            "SELECT ", $columns, " FROM device_key k INDEXED BY key_next WHERE pskNext IS NOT NULL AND deviceId > ?2 \
             AND ?1 = (SELECT enrollment FROM device_table d WHERE d.deviceId = k.deviceId) ORDER BY deviceId"
        )
    };
}

fn note(connection: &Connection, uses: &[OwnUse], now: UnixSeconds) -> rusqlite::Result<()> {
    let mut note = connection.prepare_cached(NOTE)?;
    for OwnUse { identity, since, used: [current, next] } in uses {
        note.execute(params![identity, current, next, now, since])?;
    }
    Ok(())
}

fn roll(row: &Row<'_>) -> rusqlite::Result<Roll> {
    let since: Option<UnixSeconds> = row.get(0)?;
    Ok(Roll { since: since.unwrap_or_default(), used: [row.get(1)?, row.get(2)?] })
}

fn roll_of(connection: &Connection, device: &DeviceId) -> rusqlite::Result<Option<Roll>> {
    const SQL: &str = "SELECT nextSince, pskUsed, pskNextUsed FROM device_key WHERE deviceId = ?1 \
                       AND pskNext IS NOT NULL AND deviceId IN (SELECT deviceId FROM device_table)";
    connection.prepare_cached(SQL)?.query_row([device.as_str()], roll).optional()
}

fn rolling(
    connection: &Connection,
    enrollment: &str,
    after: Option<&DeviceId>,
    limit: usize,
) -> rusqlite::Result<Vec<DeviceId>> {
    const SQL: &str = concat!(rolling!("deviceId"), " LIMIT ?3");
    let after = after.map_or("", DeviceId::as_str);
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let mut statement = connection.prepare_cached(SQL)?;
    statement.query_map(params![enrollment, after, limit], |row| read::id(row, 0))?.collect()
}

fn count(connection: &Connection, enrollment: &str, time: Duration) -> rusqlite::Result<RollCount> {
    const SQL: &str = rolling!("nextSince, pskUsed, pskNextUsed");
    let begun = Instant::now();
    let mut count = RollCount::default();
    let mut statement = connection.prepare_cached(SQL)?;
    let mut rows = statement.query([enrollment, ""])?;
    while let Some(row) = rows.next()? {
        count.add(roll(row)?);
        if count.devices.is_multiple_of(COUNTED) && begun.elapsed() >= time {
            return Ok(count);
        }
    }
    Ok(RollCount { is_complete: true, ..count })
}

fn end(
    connection: &Connection,
    device: DeviceId,
    ending: Ending,
    by: &Actor,
    now: UnixSeconds,
) -> rusqlite::Result<Ended> {
    const END: &str = "UPDATE device_key SET psk = iif(?2, pskNext, psk), pskNext = NULL, nextSince = NULL, pskUsed = NULL, \
                       pskNextUsed = NULL WHERE deviceId = ?1 AND pskNext IS NOT NULL";
    if unfinished::is_hidden(connection, &device)? {
        return Ok(Ended::NoRoll);
    }
    let Some(roll) = roll_of(connection, &device)? else { return Ok(Ended::NoRoll) };
    if !ending.is_due(roll) {
        return Ok(Ended::NotDue);
    }
    connection.prepare_cached(END)?.execute(params![device.as_str(), ending.takes_next()])?;
    // Otherwise, an undo of the import that added the second key would remove this key.
    keep_from_undo(connection, &device)?;
    audit::append(connection, &ending.entry(&device, by, now))?;
    Ok(Ended::Ended)
}

impl Rolls for Sqlite {
    fn note_own_uses(&self, uses: Vec<OwnUse>) -> StoreFuture<'_, ()> {
        let now = self.clock.now();
        self.writer.submit(move |connection| Ok(note(connection, &uses, now)?))
    }

    fn roll_of<'a>(&'a self, device: &'a DeviceId) -> StoreFuture<'a, Option<Roll>> {
        self.read(|connection| roll_of(connection, device))
    }

    fn rolling<'a>(
        &'a self,
        enrollment: &'a str,
        after: Option<&'a DeviceId>,
        limit: usize,
    ) -> StoreFuture<'a, Vec<DeviceId>> {
        self.read(|connection| rolling(connection, enrollment, after, limit))
    }

    fn count_rolling<'a>(&'a self, enrollment: &'a str, time: Duration) -> StoreFuture<'a, RollCount> {
        self.read(|connection| count(connection, enrollment, time))
    }

    fn end_roll<'a>(&'a self, device: &'a DeviceId, ending: Ending, by: &'a Actor) -> StoreFuture<'a, Ended> {
        let (device, by, clock) = (device.clone(), by.clone(), self.clock.clone());
        self.writer.submit(move |connection| Ok(end(connection, device, ending, &by, clock.now())?))
    }
}
