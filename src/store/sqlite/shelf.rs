//! Stores the console's items.

use rusqlite::{Connection, OptionalExtension, Row, params};

use super::Sqlite;
use crate::store::{
    StoreFuture,
    server::system_millis,
    shelf::{Item, ItemKey, ItemKind, Shelf, ShelfLimits, between, too_large},
};

const EXPIRE: &str = "DELETE FROM console_item WHERE kind = ?1 AND beganAt <= ?2";
const ADD: &str = "INSERT INTO console_item (kind, itemId, value, beganAt, usedAt) VALUES (?1, ?2, ?3, ?4, ?4) \
                   ON CONFLICT DO NOTHING";
const TRIM: &str = "DELETE FROM console_item WHERE kind = ?1 AND itemId NOT IN (SELECT itemId FROM console_item \
                    WHERE kind = ?1 ORDER BY itemId = ?2 DESC, usedAt DESC, itemId LIMIT ?3)";
const READ: &str = "SELECT value, beganAt, usedAt FROM console_item WHERE kind = ?1 AND itemId = ?2";

fn item(row: &Row<'_>, now: i64) -> rusqlite::Result<Item> {
    Ok(Item { value: row.get(0)?, age: between(row.get(1)?, now), idle: between(row.get(2)?, now) })
}

fn shelve(
    connection: &Connection,
    (kind, key): (ItemKind, &ItemKey),
    value: &[u8],
    limits: ShelfLimits,
) -> rusqlite::Result<Vec<u8>> {
    let now = system_millis();
    if let Some(kept) = limits.kept {
        let before = now.saturating_sub(i64::try_from(kept.as_millis()).unwrap_or(i64::MAX));
        connection.prepare_cached(EXPIRE)?.execute(params![kind.name(), before])?;
    }
    connection.prepare_cached(ADD)?.execute(params![kind.name(), key, value, now])?;
    let most = i64::try_from(limits.most).unwrap_or(i64::MAX);
    connection.prepare_cached(TRIM)?.execute(params![kind.name(), key, most])?;
    connection.prepare_cached(READ)?.query_row(params![kind.name(), key], |row| row.get(0))
}

impl Shelf for Sqlite {
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
        self.writer.submit(move |connection| Ok(shelve(connection, (kind, &key), &value, limits)?))
    }

    fn shelved(&self, kind: ItemKind, key: ItemKey) -> StoreFuture<'_, Option<Item>> {
        self.read(move |connection| {
            let now = system_millis();
            let mut statement = connection.prepare_cached(READ)?;
            statement.query_row(params![kind.name(), key], |row| item(row, now)).optional()
        })
    }

    fn touch_item(&self, kind: ItemKind, key: ItemKey) -> StoreFuture<'_, ()> {
        const SQL: &str = "UPDATE console_item SET usedAt = ?3 WHERE kind = ?1 AND itemId = ?2";
        self.writer.submit(move |connection| {
            connection.prepare_cached(SQL)?.execute(params![kind.name(), key, system_millis()])?;
            Ok(())
        })
    }

    fn replace_item(
        &self,
        kind: ItemKind,
        key: ItemKey,
        known: Vec<u8>,
        value: Vec<u8>,
    ) -> StoreFuture<'_, bool> {
        const SQL: &str = "UPDATE console_item SET value = ?4 WHERE kind = ?1 AND itemId = ?2 AND value = ?3";
        if let Some(error) = too_large(&value) {
            return Box::pin(std::future::ready(Err(error)));
        }
        self.writer.submit(move |connection| {
            let changed = connection.prepare_cached(SQL)?.execute(params![kind.name(), key, known, value])?;
            Ok(changed > 0)
        })
    }

    fn take_item(&self, kind: ItemKind, key: ItemKey) -> StoreFuture<'_, Option<Item>> {
        const SQL: &str =
            "DELETE FROM console_item WHERE kind = ?1 AND itemId = ?2 RETURNING value, beganAt, usedAt";
        self.writer.submit(move |connection| {
            let now = system_millis();
            let mut statement = connection.prepare_cached(SQL)?;
            Ok(statement.query_row(params![kind.name(), key], |row| item(row, now)).optional()?)
        })
    }
}
