//! Stores the console's items in memory.

use super::Memory;
use crate::store::{
    StoreFuture,
    server::system_millis,
    shelf::{Item, ItemKey, ItemKind, Shelf, ShelfLimits, between, too_large},
};

/// An item: its value, and the times at which it was added and last used, in milliseconds.
#[derive(Clone)]
pub(super) struct Kept {
    value: Vec<u8>,
    began: i64,
    used: i64,
}

impl Kept {
    fn item(&self) -> Item {
        let now = system_millis();
        Item { value: self.value.clone(), age: between(self.began, now), idle: between(self.used, now) }
    }
}

impl Shelf for Memory {
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
        self.answer(move |tables, _| {
            let now = system_millis();
            let is_over = |kept: &Kept| limits.kept.is_some_and(|time| between(kept.began, now) >= time);
            tables.shelf.retain(|(of, _), kept| *of != kind || !is_over(kept));
            let new = Kept { value, began: now, used: now };
            let value = tables.shelf.entry((kind, key)).or_insert(new).value.clone();
            let mut others: Vec<(i64, ItemKey)> = tables
                .shelf
                .iter()
                .filter(|((of, id), _)| *of == kind && *id != key)
                .map(|((_, id), kept)| (kept.used, *id))
                .collect();
            others.sort_by_key(|(used, id)| (std::cmp::Reverse(*used), *id));
            for (_, id) in others.into_iter().skip(limits.most.saturating_sub(1)) {
                tables.shelf.remove(&(kind, id));
            }
            Ok(value)
        })
    }

    fn shelved(&self, kind: ItemKind, key: ItemKey) -> StoreFuture<'_, Option<Item>> {
        self.answer(move |tables, _| Ok(tables.shelf.get(&(kind, key)).map(Kept::item)))
    }

    fn touch_item(&self, kind: ItemKind, key: ItemKey) -> StoreFuture<'_, ()> {
        self.answer(move |tables, _| {
            if let Some(kept) = tables.shelf.get_mut(&(kind, key)) {
                kept.used = system_millis();
            }
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
        self.answer(move |tables, _| match tables.shelf.get_mut(&(kind, key)) {
            Some(kept) if kept.value == known => {
                kept.value = value;
                Ok(true)
            }
            _ => Ok(false),
        })
    }

    fn take_item(&self, kind: ItemKind, key: ItemKey) -> StoreFuture<'_, Option<Item>> {
        self.answer(move |tables, _| Ok(tables.shelf.remove(&(kind, key)).map(|kept| kept.item())))
    }
}
