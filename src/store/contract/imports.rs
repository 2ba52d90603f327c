//! Contract of [`Bulk::undo_import`]: the state after an import is undone, and the reasons for
//! which an import cannot be undone.

use super::*;
use crate::store::undo::{ImportId, ImportRecord, Left, NotUndone, Undo, UndoError, Undone};

const ID: ImportId = ImportId(7);

fn import_as(store: &impl Bulk, id: u32, rows: impl IntoIterator<Item = ImportRow>) -> ImportReport {
    let by = by();
    let job = ImportJob { id: Some(ImportId(id)), ..job(&by) };
    let reject = &mut |index, rejection| panic!("{index}: {rejection:?}");
    store.import(job, &mut rows.into_iter().map(Ok), reject).unwrap()
}

fn undo(store: &impl Bulk, id: u32) -> Result<Undone, NotUndone> {
    undo_with(store, Undo { id: ImportId(id), by: &by(), dry_run: false, rest: false })
}

fn undo_with(store: &impl Bulk, how: Undo<'_>) -> Result<Undone, NotUndone> {
    store.undo_import(how).map_err(|error| match error {
        UndoError::NotUndone(reason) => reason,
        UndoError::Store(error) => panic!("{error}"),
    })
}

fn renamed(device: &str, name: &str) -> ImportRow {
    ImportRow { device_name: Some(name.into()), ..row(device) }
}

/// Undoing an import removes the devices that the import added, and restores the devices that it
/// changed.
fn an_import_that_is_undone_leaves_nothing(store: &(impl Store + Bulk)) {
    import(store, [row("SN-0"), row("SN-1"), with_key("SN-2", "id-2", "00ff"), row("SN-3")]);
    refuse(store, "SN-1", "name is taken");
    let before = now(store.rows_after(None, 9)).unwrap();
    let rows = || {
        [
            ImportRow { iot_id: Some("iot-0".into()), ..with_certificate("SN-0", "s3cret") },
            renamed("SN-1", "other"),
            ImportRow { iot_id: Some("iot-2".into()), ..with_key("SN-2", "id-2", "00ff") },
            ImportRow::new(id("SN-3"), "plugs", "a1plug"),
            row("SN-4"),
            with_certificate("SN-5", "s3cret"),
            with_key("SN-6", "id-6", "00ff"),
        ]
    };
    assert_eq!(
        import_as(store, 7, rows()),
        ImportReport { added: 3, changed: 4, moved: 1, ..Default::default() }
    );
    let after = now(store.rows_after(None, 9)).unwrap();
    let dry_run = Undo { id: ID, by: &by(), dry_run: true, rest: false };
    let undone = Undone { removed: 3, certificates: 1, restored: 4, left: 0 };
    assert_eq!(undo_with(store, dry_run), Ok(undone));
    assert_eq!(now(store.rows_after(None, 9)).unwrap(), after);

    assert_eq!(undo(store, 7), Ok(undone));
    assert_eq!(now(store.rows_after(None, 9)).unwrap(), before);
    assert!(now(store.individual_key("id-6")).unwrap().found.is_none());
    assert_eq!(now(store.individual_key("id-2")).unwrap().found.unwrap().psk.expose(), "00ff");
    assert_eq!(undo(store, 7), Err(NotUndone::Again(ID)));
    assert_eq!(undo(store, 8), Err(NotUndone::Unknown(ImportId(8))));
    // The same file can be imported again, under another number.
    import_as(store, 9, rows());
    assert_eq!(now(store.rows_after(None, 9)).unwrap(), after);
}

/// `imports` returns the imports that have a number and changed something, newest first.
fn imports_are_remembered_with_their_numbers(store: &(impl Store + Bulk)) {
    import_as(store, 1, [row("SN-1")]);
    import_as(store, 2, [row("SN-1")]);
    import(store, [row("SN-2")]);
    import_as(store, 3, [renamed("SN-1", "other"), row("SN-3")]);
    undo(store, 3).unwrap();
    let imports = store.imports().unwrap();
    let counts = |import: &ImportRecord| (import.id.0, import.added, import.changed, import.undone.is_some());
    assert_eq!(imports.iter().map(counts).collect::<Vec<_>>(), [(3, 1, 1, true), (1, 1, 0, false)]);
    assert!(imports.iter().all(|import| import.file == "file.csv" && import.who == by().name));
}

/// An import is not undone if one of its devices has changed since the import. With `rest`, the
/// devices that have not changed are restored or removed.
fn what_has_happened_since_is_not_undone(store: &(impl Store + Bulk)) {
    let all = ["SN-1", "SN-2", "SN-3", "SN-4", "SN-5", "SN-6", "SN-7"];
    import_as(store, 7, all.map(row));
    import(store, [row("SN-0")]);
    let changed = |count| Err(NotUndone::Changed { id: ID, count, all: 7 });
    register(store, "SN-1", "s3cret");
    assert_eq!(undo(store, 7), changed(1));
    now(store.claim(&owner(1), &entry("SN-2"), NOW)).unwrap();
    assert_eq!(undo(store, 7), changed(2));
    assert!(now(store.delete(&id("SN-3"), &by())).unwrap());
    assert_eq!(undo(store, 7), changed(3));
    import_as(store, 8, [renamed("SN-4", "other")]);
    assert_eq!(undo(store, 7), changed(4));
    import(store, [renamed("SN-7", "others")]);
    assert_eq!(undo(store, 7), changed(5));
    // Disabling counts as a change: if the import were undone and repeated, the device would be
    // enabled.
    assert!(now(store.set_state(&id("SN-5"), DeviceState::Disabled, &by())).unwrap());
    assert_eq!(undo(store, 7), changed(6));
    // A refusal does not count as a change, because a refused device is not registered.
    refuse(store, "SN-6", "name is taken");
    assert_eq!(undo(store, 7), changed(6));

    let rest = Undo { id: ID, by: &by(), dry_run: false, rest: true };
    assert_eq!(undo_with(store, rest), Ok(Undone { removed: 1, left: 6, ..Undone::default() }));
    let left: Vec<_> = now(store.rows_after(None, 9)).unwrap().into_iter().map(|row| row.id).collect();
    assert_eq!(left, ["SN-0", "SN-1", "SN-2", "SN-4", "SN-5", "SN-7"].map(id));
}

/// An import is not undone if a certificate from this import has been issued.
fn an_issue_is_not_undone(store: &(impl Store + Bulk)) {
    import_as(store, 7, [with_certificate("SN-1", "s3cret"), row("SN-2")]);
    issue(store, "SN-1", 1).unwrap();
    assert_eq!(undo(store, 7), Err(NotUndone::Changed { id: ID, count: 1, all: 2 }));
    // Even if the device is reset, the import cannot be undone.
    assert!(now(store.reset(&id("SN-1"), &by())).unwrap());
    assert_eq!(undo(store, 7), Err(NotUndone::Changed { id: ID, count: 1, all: 2 }));
}

/// Imports are undone one after another, the newest first.
fn imports_are_undone_in_turn(store: &(impl Store + Bulk)) {
    import_as(store, 1, [row("SN-1"), row("SN-2")]);
    let first = now(store.rows_after(None, 9)).unwrap();
    import_as(store, 2, [renamed("SN-1", "second")]);
    import_as(store, 3, [renamed("SN-1", "third")]);
    assert!(matches!(undo(store, 1), Err(NotUndone::Changed { count: 1, .. })));
    assert!(matches!(undo(store, 2), Err(NotUndone::Changed { count: 1, .. })));
    undo(store, 3).unwrap();
    assert_eq!(device(store, "SN-1").unwrap().name(), "second");
    undo(store, 2).unwrap();
    assert_eq!(now(store.rows_after(None, 9)).unwrap(), first);
    assert_eq!(undo(store, 1), Ok(Undone { removed: 2, ..Undone::default() }));
    assert_eq!(store.count().unwrap(), 0);
}

/// An import that replaced or removed keys cannot be undone, because former keys are not kept. If
/// an import only added a key, undoing it removes the key.
fn keys_that_an_import_replaced_cannot_come_back(store: &(impl Store + Bulk)) {
    import(store, [with_key("SN-1", "id-1", "00ff"), with_key("SN-2", "id-2", "00ff"), row("SN-3")]);
    let rows = [with_key("SN-1", "id-1", "11ee"), ImportRow::new(id("SN-2"), "plugs", "a1plug")];
    assert_eq!(import_as(store, 7, rows).lost_keys, 2);
    assert_eq!(undo(store, 7), Err(NotUndone::Keys { id: ID, count: 2 }));
    assert_eq!(now(store.individual_key("id-1")).unwrap().found.unwrap().psk.expose(), "11ee");

    import_as(store, 8, [with_key("SN-3", "id-3", "00ff")]);
    assert_eq!(undo(store, 8), Ok(Undone { restored: 1, ..Undone::default() }));
    assert!(now(store.individual_key("id-3")).unwrap().found.is_none());
}

/// If an import exchanged the names of two devices, undoing the import exchanges them again.
fn exchanged_names_come_back(store: &(impl Store + Bulk)) {
    import(store, [renamed("SN-1", "aaaa"), renamed("SN-2", "bbbb")]);
    let before = now(store.rows_after(None, 9)).unwrap();
    import_as(store, 7, [renamed("SN-1", "cccc"), renamed("SN-2", "aaaa")]);
    assert_eq!(undo(store, 7), Ok(Undone { restored: 2, ..Undone::default() }));
    assert_eq!(now(store.rows_after(None, 9)).unwrap(), before);
}

/// An import is not undone if two devices would then have the same name.
fn a_former_name_that_is_taken_cannot_come_back(store: &(impl Store + Bulk)) {
    import(store, [renamed("SN-1", "name")]);
    import_as(store, 7, [renamed("SN-1", "other"), row("SN-2")]);
    import(store, [renamed("SN-3", "name")]);
    let before = now(store.rows_after(None, 9)).unwrap();
    let refused = undo(store, 7);
    assert!(matches!(&refused, Err(NotUndone::Conflict { device, .. }) if device == "SN-1"), "{refused:?}");
    assert_eq!(now(store.rows_after(None, 9)).unwrap(), before);
    assert_eq!(store.imports().unwrap()[0].undone, None);
}

/// `imports_of` returns all imports of one device, and of no other, newest first, whatever has
/// happened to the device since.
fn the_imports_of_a_device_are_known(store: &(impl Store + Bulk)) {
    import_as(store, 7, [row("SN-1"), row("SN-2")]);
    import_as(store, 8, [renamed("SN-1", "other"), row("SN-3")]);
    let of = |device: &str| -> Vec<u32> {
        store.imports_of(&id(device)).unwrap().into_iter().map(|record| record.id.0).collect()
    };
    assert_eq!((of("SN-1"), of("SN-2"), of("SN-3"), of("SN-4")), (vec![8, 7], vec![7], vec![8], vec![]));
    import_as(store, 9, [renamed("SN-1", "third")]);
    assert_eq!(of("SN-1"), [9, 8, 7]);
    assert!(now(store.set_state(&id("SN-1"), DeviceState::Disabled, &by())).unwrap());
    assert!(now(store.set_state(&id("SN-2"), DeviceState::Disabled, &by())).unwrap());
    import(store, [renamed("SN-3", "fourth")]);
    assert_eq!((of("SN-1"), of("SN-2"), of("SN-3")), (vec![9, 8, 7], vec![7], vec![8]));
}

/// `left_of` returns the devices that an undo leaves as they are, before and after the undo.
fn the_devices_that_an_undo_leaves_are_known(store: &(impl Store + Bulk)) {
    import(store, [row("SN-4"), row("SN-5")]);
    import_as(store, 7, [row("SN-1"), row("SN-2"), row("SN-3"), renamed("SN-4", "a"), renamed("SN-5", "b")]);
    let left = |limit| {
        let Left { devices, first } = store.left_of(ImportId(7), limit).unwrap();
        (devices, first.iter().map(ToString::to_string).collect::<Vec<_>>())
    };
    assert_eq!(left(9), (0, vec![]));
    for device in ["SN-2", "SN-5"] {
        assert!(now(store.set_state(&id(device), DeviceState::Disabled, &by())).unwrap());
    }
    import_as(store, 8, [renamed("SN-3", "c")]);
    let expected = ["SN-2", "SN-3", "SN-5"].map(str::to_owned);
    assert_eq!(left(9), (3, expected.to_vec()));
    assert_eq!(left(1), (3, expected[..1].to_vec()));
    let how = Undo { id: ImportId(7), by: &by(), dry_run: false, rest: true };
    let undone = store.undo_import(how).unwrap();
    assert_eq!((undone.removed, undone.restored, undone.left), (1, 1, 3));
    assert_eq!(left(9), (3, expected.to_vec()));
    // The import of a device that was left can still be undone.
    assert_eq!(undo(store, 8).map(|undone| undone.restored), Ok(1));
    assert_eq!(left(9), (3, expected.to_vec()));
    assert!(now(store.delete(&id("SN-2"), &by())).unwrap());
    assert_eq!(left(9), (2, expected[1..].to_vec()));
}

/// Returns the columns of the rows that an import rejects, each with the index of its row.
pub(super) fn rejected(store: &impl Bulk, rows: Vec<ImportRow>) -> Vec<(u64, &'static str)> {
    let mut columns = Vec::new();
    let outcome = store.import(job(&by()), &mut rows.into_iter().map(Ok), &mut |index, rejection| {
        columns.push((
            index,
            match rejection {
                Rejection::Conflict(conflict) => conflict.column,
                Rejection::Differs { .. } => "deviceId",
                Rejection::SameIdentity { .. } => "identity",
                other => panic!("{index}: {other:?}"),
            },
        ));
    });
    assert!(matches!(outcome, Err(ImportError::Rejected(_))), "{outcome:?}");
    columns
}

/// A row of an import may take the name, the `IotId` or the identity that an earlier row gives up,
/// in any order of the device IDs, but none that a later row gives up.
fn a_row_may_take_what_an_earlier_row_gives_up(store: &(impl Store + Bulk)) {
    let with_iot_id = |row, iot_id: &str| ImportRow { iot_id: Some(iot_id.into()), ..row };
    let first =
        [renamed("SN-2", "bbbb"), with_iot_id(row("SN-4"), "iot-4"), with_key("SN-6", "id-6", "00ff")];
    import(store, first);
    let given_up =
        [renamed("SN-2", "cccc"), with_iot_id(row("SN-4"), "iot-9"), with_key("SN-6", "id-9", "00ff")];
    let taken =
        [renamed("SN-1", "bbbb"), with_iot_id(row("SN-3"), "iot-4"), with_key("SN-5", "id-6", "11ee")];
    let before = now(store.rows_after(None, 9)).unwrap();
    let reversed = [taken.clone(), given_up.clone()].concat();
    assert_eq!(rejected(store, reversed), [(0, "deviceName"), (1, "iotId"), (2, "pskIdentity")]);
    assert_eq!(now(store.rows_after(None, 9)).unwrap(), before);

    let report = import(store, [given_up, taken].concat());
    assert_eq!((report.added, report.changed), (3, 3));
    assert_eq!(device(store, "SN-1").unwrap().name(), "bbbb");
    assert_eq!(device(store, "SN-3").unwrap().iot_id.as_deref(), Some("iot-4"));
    assert_eq!(now(store.individual_key("id-6")).unwrap().found.unwrap().device, id("SN-5"));
    // A device that moves to an enrollment without individual keys gives its identity up.
    let moved = ImportRow::new(id("SN-6"), "plugs", "a1plug");
    assert_eq!(import(store, [moved, with_key("SN-0", "id-9", "22dd")]).added, 1);
}

/// Rows of one import that ask for the same value are rejected, except the first one. A row that
/// repeats another one with the same values is skipped.
fn rows_that_ask_for_the_same_are_rejected_but_the_first(store: &(impl Store + Bulk)) {
    let with_iot_id = |device| ImportRow { iot_id: Some("iot-1".into()), ..row(device) };
    let rows = vec![
        renamed("SN-9", "aaaa"),
        with_iot_id("SN-8"),
        with_key("SN-7", "id-1", "00ff"),
        row("SN-6"),
        renamed("SN-5", "aaaa"),
        with_iot_id("SN-4"),
        with_key("SN-3", "id-1", "00ff"),
        renamed("SN-6", "other"),
        row("aaaa"),
    ];
    let expected = [(4, "deviceName"), (5, "iotId"), (6, "identity"), (7, "deviceId"), (8, "deviceName")];
    assert_eq!(rejected(store, rows.clone()), expected);
    assert_eq!(store.count().unwrap(), 0);
    let twice = [&rows[..4], &rows[..4]].concat();
    let mut repeated = Vec::new();
    let reject = &mut |index, rejection| match rejection {
        Rejection::Repeated { .. } => repeated.push(index),
        other => panic!("{index}: {other:?}"),
    };
    let report = store.import(job(&by()), &mut twice.into_iter().map(Ok), reject).unwrap();
    assert_eq!((report.added, repeated), (4, vec![4, 5, 6, 7]));
}

/// A number is given to one import only, even if that import was undone.
fn no_number_is_given_twice(store: &(impl Store + Bulk)) {
    import_as(store, 7, [row("SN-1")]);
    undo(store, 7).unwrap();
    let by = by();
    let again = ImportJob { id: Some(ID), ..job(&by) };
    let outcome = store.import(again, &mut [Ok(row("SN-2"))].into_iter(), &mut |_, _| panic!("it is good"));
    assert!(matches!(outcome, Err(ImportError::Store(StoreError::Conflict(_)))), "{outcome:?}");
    assert_eq!(store.count().unwrap(), 0);
    assert_ne!(store.new_import().unwrap(), ID);
}

/// `import_activity` changes with each import and each undo.
fn each_import_and_each_undo_is_seen(store: &(impl Store + Bulk)) {
    let mut seen = vec![store.import_activity().unwrap()];
    assert_eq!(seen[0], ImportActivity::default());
    import_as(store, 7, [row("SN-1")]);
    seen.push(store.import_activity().unwrap());
    undo(store, 7).unwrap();
    seen.push(store.import_activity().unwrap());
    assert!(seen.iter().all(|activity| !activity.is_unfinished), "{seen:?}");
    assert!(seen[0] != seen[1] && seen[1] != seen[2], "{seen:?}");
}

/// A chain of devices, each of which took the name of the one before it, is undone as a whole.
fn names_that_were_passed_along_come_back(store: &(impl Store + Bulk)) {
    let order = ["SN-3", "SN-1", "SN-4", "SN-2", "SN-5"];
    import(store, order.map(|device| renamed(device, &format!("of-{device}"))));
    let before = now(store.rows_after(None, 9)).unwrap();
    let names = ["new", "of-SN-3", "of-SN-1", "of-SN-4", "of-SN-2"];
    import_as(store, 7, std::iter::zip(order, names).map(|(device, name)| renamed(device, name)));
    assert_eq!(undo(store, 7), Ok(Undone { restored: 5, ..Undone::default() }));
    assert_eq!(now(store.rows_after(None, 9)).unwrap(), before);
}

contract! {
    no_number_is_given_twice
    each_import_and_each_undo_is_seen
    names_that_were_passed_along_come_back
    a_row_may_take_what_an_earlier_row_gives_up
    rows_that_ask_for_the_same_are_rejected_but_the_first
    the_imports_of_a_device_are_known
    the_devices_that_an_undo_leaves_are_known
    an_import_that_is_undone_leaves_nothing
    imports_are_remembered_with_their_numbers
    what_has_happened_since_is_not_undone
    an_issue_is_not_undone
    imports_are_undone_in_turn
    keys_that_an_import_replaced_cannot_come_back
    exchanged_names_come_back
    a_former_name_that_is_taken_cannot_come_back
}
