//! Contract of the console's items.

use std::{thread, time::Duration};

use super::*;
use crate::store::shelf::{Item, ItemKey, ItemKind, MAX_VALUE, Shelf, ShelfLimits};

const MANY: ShelfLimits = ShelfLimits { most: 100, kept: Some(Duration::from_secs(86_400)) };

fn put(store: &impl Shelf, kind: ItemKind, key: u8, value: &str, limits: ShelfLimits) -> String {
    let there = now(store.shelve(kind, [key; 32], value.into(), limits)).unwrap();
    // Later items have later times.
    thread::sleep(Duration::from_millis(3));
    String::from_utf8(there).unwrap()
}

fn get(store: &impl Shelf, kind: ItemKind, key: u8) -> Option<String> {
    let text = |item: Item| String::from_utf8(item.value).unwrap();
    now(store.shelved(kind, [key; 32])).unwrap().map(text)
}

/// `shelve` adds an item once, and `take_item` gives it to one caller.
fn an_item_is_added_once_and_taken_once(store: &(impl Store + Bulk)) {
    for kind in ItemKind::ALL {
        assert_eq!(get(store, kind, 1), None);
        assert_eq!(put(store, kind, 1, kind.name(), MANY), kind.name());
        assert_eq!(put(store, kind, 1, "other", MANY), kind.name(), "the first one stays");
    }
    for kind in ItemKind::ALL {
        assert_eq!(get(store, kind, 1).as_deref(), Some(kind.name()), "each kind has its own");
        let taken = now(store.take_item(kind, [1; 32])).unwrap().unwrap();
        assert_eq!(taken.value, kind.name().as_bytes());
        assert!(taken.age < Duration::from_secs(3600) && taken.idle <= taken.age, "{taken:?}");
        assert_eq!(now(store.take_item(kind, [1; 32])).unwrap(), None);
        assert_eq!(get(store, kind, 1), None);
    }
    let large = now(store.shelve(ItemKind::Upload, [1; 32], vec![0; MAX_VALUE + 1], MANY));
    assert!(matches!(large, Err(StoreError::Failed(_))), "{large:?}");
    now(store.shelve(ItemKind::UploadPart, [1; 32], vec![0xff; MAX_VALUE], MANY)).unwrap();
    let part = now(store.shelved(ItemKind::UploadPart, [1; 32])).unwrap().unwrap();
    assert_eq!(part.value, vec![0xff; MAX_VALUE]);
}

/// `shelve` removes the items of its kind that were unused longest, and those whose time is over.
fn the_items_of_a_kind_are_bounded_in_number_and_time(store: &(impl Store + Bulk)) {
    let two = ShelfLimits { most: 2, ..MANY };
    put(store, ItemKind::Preview, 1, "", MANY);
    (1..=2).for_each(|key| drop(put(store, ItemKind::Session, key, "", two)));
    now(store.touch_item(ItemKind::Session, [1; 32])).unwrap();
    thread::sleep(Duration::from_millis(3));
    put(store, ItemKind::Session, 3, "", two);
    let there = |key| get(store, ItemKind::Session, key).is_some();
    assert_eq!([1, 2, 3].map(there), [true, false, true], "the second was unused longest");
    let none = ShelfLimits { most: 9, kept: Some(Duration::ZERO) };
    put(store, ItemKind::Session, 4, "", none);
    assert_eq!([1, 3, 4].map(there), [false, false, true]);
    assert!(get(store, ItemKind::Preview, 1).is_some(), "another kind has limits of its own");
    let forever = ShelfLimits { most: 1, kept: None };
    put(store, ItemKind::FormKey, 1, "key", forever);
    assert_eq!(put(store, ItemKind::FormKey, 1, "other", forever), "key");
}

/// `touch_item` changes the time of the last use, and not that of the beginning.
fn an_item_that_is_used_is_as_old_as_before(store: &(impl Store + Bulk)) {
    put(store, ItemKind::Session, 1, "", MANY);
    let key: ItemKey = [1; 32];
    thread::sleep(Duration::from_millis(50));
    let before = now(store.shelved(ItemKind::Session, key)).unwrap().unwrap();
    assert!(before.idle >= Duration::from_millis(50) && before.idle == before.age, "{before:?}");
    now(store.touch_item(ItemKind::Session, key)).unwrap();
    let after = now(store.shelved(ItemKind::Session, key)).unwrap().unwrap();
    assert!(after.age >= before.age && after.age - after.idle >= Duration::from_millis(50), "{after:?}");
    now(store.touch_item(ItemKind::Session, [2; 32])).unwrap();
    assert_eq!(get(store, ItemKind::Session, 2), None);
}

/// `replace_item` replaces only the value that the caller has seen.
fn a_value_is_replaced_by_one_caller(store: &(impl Store + Bulk)) {
    put(store, ItemKind::Preview, 1, "new", MANY);
    let replace = |known: &str, value: &str| {
        now(store.replace_item(ItemKind::Preview, [1; 32], known.into(), value.into())).unwrap()
    };
    assert!(replace("new", "job 1"));
    assert!(!replace("new", "job 2"));
    assert_eq!(get(store, ItemKind::Preview, 1).as_deref(), Some("job 1"));
    assert!(!now(store.replace_item(ItemKind::Preview, [2; 32], Vec::new(), Vec::new())).unwrap());
}

contract! {
    an_item_is_added_once_and_taken_once
    the_items_of_a_kind_are_bounded_in_number_and_time
    an_item_that_is_used_is_as_old_as_before
    a_value_is_replaced_by_one_caller
}
