//! Turns of a pace, by the clock of the database, so that all servers take turns by one clock.

use std::time::Duration;

use super::{
    Postgres,
    session::{Session, column, values},
};
use crate::store::{
    StoreFuture,
    turn::{Turn, Turns},
};

impl Turns for Postgres {
    fn take_turn<'a>(&'a self, pace: &'a str, turn: Turn) -> StoreFuture<'a, Option<Duration>> {
        // Also locks the row, so that each turn is taken once.
        const LOCK: &str = "INSERT INTO call_pace AS p (pace) VALUES ($1) \
                            ON CONFLICT (pace) DO UPDATE SET nextMicros = p.nextMicros \
                            RETURNING nextMicros, (extract(epoch FROM clock_timestamp()) * 1000000)::int8";
        const SET: &str = "UPDATE call_pace SET nextMicros = $2 WHERE pace = $1";
        let pace = pace.to_owned();
        self.engine.transact(async move |session: &Session| {
            let row = session.one(LOCK, values![pace]).await?;
            match turn.take(column(&row, 0)?, column(&row, 1)?) {
                Ok(next) => {
                    session.execute(SET, values![pace, next]).await?;
                    Ok(None)
                }
                Err(wait) => Ok(Some(wait)),
            }
        })
    }
}
