//! Contract of the targets of devices: at which target a registration continues, which target a row
//! names, and which target an import or a search takes from a row.

use std::time::Duration;

use super::*;
use crate::store::{
    claim::Claimed,
    filter::{Cursor, Filter},
    undo::{ImportId, Undo},
};

fn at(target: &str, device: &str) -> JournalEntry {
    JournalEntry { target: target.into(), ..entry(device) }
}

fn of(target: &str, row: ImportRow) -> ImportRow {
    ImportRow { target: Some(target.into()), ..row }
}

fn claim(store: &impl Store, by: i64, entry: &JournalEntry) -> Claimed {
    now(store.claim(&owner(by), entry, NOW)).unwrap()
}

fn settle(store: &impl Store, by: i64, entry: &JournalEntry) -> Result<(), StoreError> {
    let registered = Settlement::Registered(registration(&entry.device_name, "s3cret"));
    now(store.settle(by, entry, &registered))
}

fn target(store: &impl Store, name: &str) -> Option<String> {
    device(store, name).unwrap().target
}

/// `settle` stores the target in the row, unless the target is the default one.
fn a_registered_device_keeps_its_target(store: &(impl Store + Bulk)) {
    import(store, [row("SN-1"), row("SN-2"), of("default", row("SN-3"))]);
    for entry in [at("tokyo", "SN-1"), at(target::DEFAULT, "SN-2"), at(target::DEFAULT, "SN-3")] {
        assert!(matches!(claim(store, 1, &entry), Claimed::Yours(_)));
        settle(store, 1, &entry).unwrap();
    }
    assert_eq!(target(store, "SN-1").as_deref(), Some("tokyo"));
    assert_eq!((target(store, "SN-2"), target(store, "SN-3").as_deref()), (None, Some("default")));
    assert_eq!(device(store, "SN-2").unwrap().target(), Some("default"));
    let watched = now(store.registered_after(None, 9)).unwrap().devices;
    assert_eq!(
        watched.iter().map(|device| &*device.target).collect::<Vec<_>>(),
        ["tokyo", "default", "default"]
    );
}

/// `claim` refers the caller to the target at which IoT Platform may have created the device.
fn an_unfinished_registration_goes_on_at_its_target(store: &(impl Store + Bulk)) {
    import(store, [row("SN-1")]);
    assert!(matches!(claim(store, 1, &at("tokyo", "SN-1")), Claimed::Yours(_)));
    assert_eq!(claim(store, 2, &at("osaka", "SN-1")), Claimed::Held);
    now(store.release_claim(1, &id("SN-1"), true)).unwrap();
    assert_eq!(claim(store, 2, &at("osaka", "SN-1")), Claimed::Elsewhere("tokyo".into()));
    assert_eq!(now(store.claim_of(&id("SN-1"))).unwrap().unwrap().entry, at("tokyo", "SN-1"));
    let Claimed::Yours(again) = claim(store, 2, &at("tokyo", "SN-1")) else { panic!("not claimed") };
    assert_eq!(again.asked_by, AskedBy::Other);
    // A claim that was given up before any call does not bind the next owner to its target.
    now(store.release_claim(2, &id("SN-1"), false)).unwrap();
    assert!(matches!(claim(store, 2, &at("osaka", "SN-1")), Claimed::Yours(_)));
}

/// If a row names a target, `claim` accepts only that target, even if a registration has begun at
/// another.
fn a_row_that_asks_for_a_target_is_registered_there(store: &(impl Store + Bulk)) {
    import(store, [row("SN-1")]);
    claim(store, 1, &at("tokyo", "SN-1"));
    import(store, [of("osaka", row("SN-1"))]);
    assert!(matches!(settle(store, 1, &at("tokyo", "SN-1")), Err(StoreError::Conflict(_))));
    assert_eq!(claim(store, 1, &at("tokyo", "SN-1")), Claimed::NotWanted);
    claim(store, 1, &at("osaka", "SN-1"));
    assert!(matches!(settle(store, 1, &at("tokyo", "SN-1")), Err(StoreError::Fenced)));
    now(store.release_claim(1, &id("SN-1"), true)).unwrap();
    // An entry is replaced if it is for a target that the row no longer names.
    import(store, [of("kobe", row("SN-1"))]);
    let Claimed::Yours(first) = claim(store, 2, &at("kobe", "SN-1")) else { panic!("not claimed") };
    assert_eq!(first.asked_by, AskedBy::Nobody);
    settle(store, 2, &at("kobe", "SN-1")).unwrap();
    assert_eq!(target(store, "SN-1").as_deref(), Some("kobe"));
}

/// `abandoned` and `take_batches` return the registrations that were begun at one target, and no
/// others.
fn what_is_left_behind_is_resumed_at_its_target(store: &(impl Store + Bulk)) {
    import(store, ["SN-1", "SN-2", "SN-3", "SN-4"].map(row));
    let batch = |id, target: &str| OpenBatch {
        id,
        product_key: "a1lamp".into(),
        apply_id: None,
        target: target.into(),
    };
    for (id, target, device) in [(5, "tokyo", "SN-1"), (6, "osaka", "SN-2"), (7, "osaka", "SN-3")] {
        now(store.claim_batch(&owner(1), &batch(id, target), &[at(target, device)], NOW)).unwrap();
    }
    now(store.set_apply_id(1, 5, 50)).unwrap();
    now(store.set_apply_id(1, 6, 60)).unwrap();
    claim(store, 1, &at("tokyo", "SN-4"));
    now(store.retire(1)).unwrap();

    assert_eq!(now(store.take_batches(&owner(2), "kobe")).unwrap(), []);
    assert_eq!(now(store.open_batches()).unwrap().len(), 3);
    assert_eq!(now(store.abandoned("tokyo", 9)).unwrap(), [at("tokyo", "SN-4")]);
    assert_eq!(now(store.abandoned("osaka", 9)).unwrap(), []);
    let taken = now(store.take_batches(&owner(2), "osaka")).unwrap();
    let [(taken, claims)] = &taken[..] else { panic!("{taken:?}") };
    assert_eq!((taken.apply_id, &*taken.target, claims.len()), (Some(60), "osaka", 1));
    assert_eq!(claims[0].0, at("osaka", "SN-2"));
    // The batch without an `ApplyId` was removed, so its device is registered by a single call.
    assert_eq!(now(store.abandoned("osaka", 9)).unwrap(), [at("osaka", "SN-3")]);
    assert_eq!(now(store.take_batches(&owner(3), "tokyo")).unwrap().len(), 1);
}

/// An import sets the target of a device without a certificate, and keeps the target of a device
/// with one. Undoing the import restores each former target.
fn an_import_sets_a_target_and_gives_it_back(store: &(impl Store + Bulk)) {
    let of_tokyo = |row| ImportRow { enrollment_target: Some("tokyo".into()), ..row };
    import(store, [row("SN-1"), of("kobe", row("SN-2")), of_tokyo(with_certificate("SN-3", "s3cret"))]);
    assert_eq!(target(store, "SN-3").as_deref(), Some("tokyo"));
    let by = by();
    let job = ImportJob { id: Some(ImportId(7)), ..job(&by) };
    let rows =
        [of("osaka", row("SN-1")), of("osaka", row("SN-2")), of_tokyo(row("SN-3")), of_tokyo(row("SN-4"))];
    let report = store
        .import(job, &mut rows.into_iter().map(Ok), &mut |_, rejection| panic!("{rejection:?}"))
        .unwrap();
    assert_eq!((report.added, report.changed, report.unchanged), (1, 2, 1));
    let all = || ["SN-1", "SN-2", "SN-3"].map(|device| target(store, device));
    let some = |target: &str| Some(target.to_owned());
    assert_eq!(all(), [some("osaka"), some("osaka"), some("tokyo")]);
    assert_eq!(target(store, "SN-4"), None);
    store.undo_import(Undo { id: ImportId(7), by: &by, dry_run: false, rest: false }).unwrap();
    assert_eq!(all(), [None, some("kobe"), some("tokyo")]);
}

/// A registered device is not moved by an import.
fn an_import_moves_no_registered_device(store: &(impl Store + Bulk)) {
    import(store, [with_certificate("SN-1", "s3cret"), row("SN-2")]);
    let mut rejected = Vec::new();
    let by = by();
    let rows = [of("tokyo", row("SN-1")), of("tokyo", row("SN-2"))];
    store
        .import(job(&by), &mut rows.into_iter().map(Ok), &mut |at, rejection| {
            rejected.push(format!("{at}: {rejection:?}"));
        })
        .unwrap_err();
    assert!(
        matches!(&rejected[..], [one] if one.starts_with("0: ") && one.contains("target")),
        "{rejected:?}"
    );
    assert_eq!(target(store, "SN-2"), None);
}

/// A device that was deleted at IoT Platform and is reset keeps the target that its row names.
fn a_reset_keeps_the_target(store: &(impl Store + Bulk)) {
    import(store, [with_certificate("SN-1", "s3cret"), of("tokyo", with_certificate("SN-2", "s3cret"))]);
    for name in ["SN-1", "SN-2"] {
        let deleted = Sighting { state: Some(CloudState::Deleted), ..Sighting::default() };
        now(store.store_sighting(&device(store, name).unwrap(), deleted)).unwrap();
        assert!(now(store.reset(&id(name), &by())).unwrap());
        assert!(device(store, name).unwrap().certificate.is_none());
    }
    assert_eq!((target(store, "SN-1"), target(store, "SN-2").as_deref()), (None, Some("tokyo")));
}

/// A search finds the devices whose rows say that they are, or will be, registered at a target.
/// `targets` returns the targets that rows name.
fn devices_are_found_by_their_target(store: &(impl Store + Bulk)) {
    let rows = [
        row("SN-1"),
        with_certificate("SN-2", "s3cret"),
        of("tokyo", row("SN-3")),
        of("tokyo", with_certificate("SN-4", "s3cret")),
        of("default", row("SN-5")),
    ];
    assert_eq!(store.targets().unwrap(), [""; 0]);
    import(store, rows);
    let found = |target: &str| {
        let filter = Filter { target: Some(target.into()), ..Filter::default() };
        let found = store.find(&filter, &Cursor::First, 9, Duration::from_secs(9)).unwrap();
        assert!(found.devices.iter().all(|device| device.target.as_deref() == Some(target)));
        assert_eq!(store.tally(&filter, Duration::from_secs(9)).unwrap().devices, found.devices.len() as u64);
        found.devices.into_iter().map(|device| device.id.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(found("default"), ["SN-2", "SN-5"]);
    assert_eq!(store.targets().unwrap(), ["default", "tokyo"]);
    assert_eq!(found("tokyo"), ["SN-3", "SN-4"]);
    assert_eq!(found("osaka"), [""; 0]);
}

contract! {
    a_registered_device_keeps_its_target
    an_unfinished_registration_goes_on_at_its_target
    a_row_that_asks_for_a_target_is_registered_there
    what_is_left_behind_is_resumed_at_its_target
    an_import_sets_a_target_and_gives_it_back
    an_import_moves_no_registered_device
    a_reset_keeps_the_target
    devices_are_found_by_their_target
}
