//! Stores the paces of the calls in SQLite. All processes take turns from them.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rusqlite::{OptionalExtension, params};

use super::Sqlite;
use crate::store::{
    StoreFuture,
    turn::{Turn, Turns},
};

impl Turns for Sqlite {
    fn take_turn<'a>(&'a self, pace: &'a str, turn: Turn) -> StoreFuture<'a, Option<Duration>> {
        const NEXT: &str = "SELECT nextMicros FROM call_pace WHERE pace = ?1";
        const SET: &str = "INSERT INTO call_pace (pace, nextMicros) VALUES (?1, ?2) \
                           ON CONFLICT (pace) DO UPDATE SET nextMicros = excluded.nextMicros";
        let pace = pace.to_owned();
        self.writer.submit(move |connection| {
            let next = connection.prepare_cached(NEXT)?.query_row([&pace], |row| row.get(0)).optional()?;
            // The clock is read only now, because the write may have waited for other transactions.
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_micros();
            match turn.take(next, i64::try_from(now).unwrap_or(i64::MAX)) {
                Ok(next) => {
                    connection.prepare_cached(SET)?.execute(params![pace, next])?;
                    Ok(None)
                }
                Err(wait) => Ok(Some(wait)),
            }
        })
    }
}
