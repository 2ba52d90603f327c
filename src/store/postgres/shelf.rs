//! Stores the console's items, with times of the database's clock.

use tokio_postgres::Row;

use super::{
    Postgres,
    failure::Failure,
    session::{Session, column, values},
};
use crate::store::{
    StoreFuture,
    shelf::{Item, ItemKey, ItemKind, Shelf, ShelfLimits, between, too_large},
};

/// The present time of the database's clock, in milliseconds.
macro_rules! now {
    () => {
        "(extract(epoch FROM clock_timestamp()) * 1000)::int8"
    };
}

const EXPIRE: &str = concat!("DELETE FROM console_item WHERE kind = $1 AND beganAt <= ", now!(), " - $2");
const ADD: &str = concat!(
    "INSERT INTO console_item (kind, itemId, value, beganAt, usedAt) VALUES ($1, $2, $3, ",
    now!(),
    ", ",
    now!(),
    ") ON CONFLICT (kind, itemId) DO NOTHING"
);
const TRIM: &str = "DELETE FROM console_item WHERE kind = $1 AND itemId NOT IN (SELECT itemId FROM console_item \
                    WHERE kind = $1 ORDER BY CASE WHEN itemId = $2 THEN 0 ELSE 1 END, usedAt DESC, itemId LIMIT $3)";
const READ: &str =
    concat!("SELECT value, beganAt, usedAt, ", now!(), " FROM console_item WHERE kind = $1 AND itemId = $2");

fn item(row: &Row) -> Result<Item, Failure> {
    let now = column(row, 3)?;
    Ok(Item {
        value: column(row, 0)?,
        age: between(column(row, 1)?, now),
        idle: between(column(row, 2)?, now),
    })
}

impl Shelf for Postgres {
    fn shelve(
        &self,
        kind: ItemKind,
        key: ItemKey,
        value: Vec<u8>,
        limits: ShelfLimits,
    ) -> StoreFuture<'_, Vec<u8>> {
        if let Some(error) = too_large(&value) {
            return Box::pin(std::future::ready(Err(error)));
        }
        let key = key.to_vec();
        self.engine.transact(async move |session: &Session| {
            let name = kind.name();
            if let Some(kept) = limits.kept {
                let kept = i64::try_from(kept.as_millis()).unwrap_or(i64::MAX);
                session.execute(EXPIRE, values![name, kept]).await?;
            }
            session.execute(ADD, values![name, key, value]).await?;
            let most = i64::try_from(limits.most).unwrap_or(i64::MAX);
            session.execute(TRIM, values![name, key, most]).await?;
            column(&session.one(READ, values![name, key]).await?, 0)
        })
    }

    fn shelved(&self, kind: ItemKind, key: ItemKey) -> StoreFuture<'_, Option<Item>> {
        let key = key.to_vec();
        self.engine.read(async move |session: &Session| {
            let row = session.row(READ, values![kind.name(), key]).await?;
            row.as_ref().map(item).transpose()
        })
    }

    fn touch_item(&self, kind: ItemKind, key: ItemKey) -> StoreFuture<'_, ()> {
        const SQL: &str =
            concat!("UPDATE console_item SET usedAt = ", now!(), " WHERE kind = $1 AND itemId = $2");
        let key = key.to_vec();
        self.engine.transact(async move |session: &Session| {
            session.execute(SQL, values![kind.name(), key]).await.map(drop)
        })
    }

    fn replace_item(
        &self,
        kind: ItemKind,
        key: ItemKey,
        known: Vec<u8>,
        value: Vec<u8>,
    ) -> StoreFuture<'_, bool> {
        const SQL: &str = "UPDATE console_item SET value = $4 WHERE kind = $1 AND itemId = $2 AND value = $3";
        if let Some(error) = too_large(&value) {
            return Box::pin(std::future::ready(Err(error)));
        }
        let key = key.to_vec();
        self.engine.transact(async move |session: &Session| {
            Ok(session.execute(SQL, values![kind.name(), key, known, value]).await? > 0)
        })
    }

    fn take_item(&self, kind: ItemKind, key: ItemKey) -> StoreFuture<'_, Option<Item>> {
        const SQL: &str = concat!(
            "DELETE FROM console_item WHERE kind = $1 AND itemId = $2 RETURNING value, beganAt, usedAt, ",
            now!()
        );
        let key = key.to_vec();
        self.engine.transact(async move |session: &Session| {
            let row = session.row(SQL, values![kind.name(), key]).await?;
            row.as_ref().map(item).transpose()
        })
    }
}
