//! Contract of the uses of pre-shared keys.

use super::*;
use crate::store::key_use::{KeyUse, KeyUses, NewUse, NewUses, PskId};

fn used(key: &str, handshakes: u64, last: Option<UnixSeconds>) -> NewUse {
    NewUse { key: PskId::new(key.into()), handshakes, last }
}

fn note(store: &impl KeyUses, enrollment: &str, keys: [NewUse; 2]) {
    now(store.note_key_uses(vec![NewUses { enrollment: enrollment.into(), keys }])).unwrap();
}

/// Returns the IDs of an enrollment's keys, with the handshakes and the last use of each.
fn known(store: &impl KeyUses, enrollment: &str) -> Vec<(String, u64, Option<UnixSeconds>)> {
    let uses = now(store.key_uses(enrollment)).unwrap();
    let of = |used: KeyUse| (used.key.as_str().to_owned(), used.handshakes, used.last);
    uses.into_iter().map(of).collect()
}

/// `note_key_uses` adds up the handshakes that several processes report, and keeps the later of two
/// times.
fn uses_of_all_processes_add_up(store: &(impl Store + Bulk)) {
    assert_eq!(known(store, "lamp"), []);
    let before = Store::now(store) - AHEAD;
    note(store, "lamp", [used("b", 0, None), used("a", 2, Some(100))]);
    assert_eq!(known(store, "lamp"), [("a".into(), 2, Some(100)), ("b".into(), 0, None)]);
    let since = |store| now(KeyUses::key_uses(store, "lamp")).unwrap()[0].since;
    let begun = since(store);
    assert!(begun >= before);
    note(store, "lamp", [used("a", 3, Some(90)), used("b", 1, Some(70))]);
    note(store, "lamp", [used("a", 0, None), used("b", 4, Some(80))]);
    assert_eq!(known(store, "lamp"), [("a".into(), 5, Some(100)), ("b".into(), 5, Some(80))]);
    assert_eq!(since(store), begun);
    assert_eq!(known(store, "plug"), []);
    now(store.note_key_uses(Vec::new())).unwrap();
}

/// For each enrollment, a store keeps the uses of two keys: those that were reported last.
fn a_key_that_is_replaced_is_forgotten(store: &(impl Store + Bulk)) {
    note(store, "plug", [used("a", 9, Some(9)), used("z", 9, Some(9))]);
    note(store, "lamp", [used("a", 1, Some(10)), used("b", 2, Some(20))]);
    note(store, "lamp", [used("b", 1, Some(30)), used("c", 0, None)]);
    assert_eq!(known(store, "lamp"), [("b".into(), 3, Some(30)), ("c".into(), 0, None)]);
    note(store, "lamp", [used("c", 0, None), used("a", 0, None)]);
    assert_eq!(known(store, "lamp"), [("a".into(), 0, None), ("c".into(), 0, None)], "counted from zero");
    assert_eq!(known(store, "plug").len(), 2, "another enrollment may have a key with the same ID");
}

/// A last use in the future comes from a wrong clock, so the next use replaces it. If it stayed,
/// the key would count as used until that time.
fn a_last_use_in_the_future_is_corrected(store: &(impl Store + Bulk)) {
    let future = Store::now(store) + 10 * AHEAD;
    note(store, "lamp", [used("a", 1, Some(future)), used("b", 1, Some(5))]);
    note(store, "lamp", [used("a", 0, None), used("b", 0, None)]);
    assert_eq!(known(store, "lamp")[0].2, Some(future), "nothing better is known");
    note(store, "lamp", [used("a", 1, Some(6)), used("b", 1, Some(4))]);
    assert_eq!(known(store, "lamp"), [("a".into(), 2, Some(6)), ("b".into(), 2, Some(5))]);
}

contract! {
    uses_of_all_processes_add_up
    a_key_that_is_replaced_is_forgotten
    a_last_use_in_the_future_is_corrected
}
