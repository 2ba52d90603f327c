//! Contract of the rolls of individual keys.

use std::time::Duration;

use super::{imports::rejected, *};
use crate::store::{
    roll::{DeviceKeys, Ended, Ending, OwnUse, Roll, RollCount, Used},
    undo::{ImportId, Left, NotUndone, Undo, UndoError, Undone},
};

/// Returns the keys that open a handshake of this identity, and whether any device has two.
fn keys(store: &impl Store, identity: &str) -> (Vec<String>, bool) {
    let KeyLookup { found, are_rolling } = now(store.individual_key(identity)).unwrap();
    let keys = found.map(|found| [Some(found.psk), found.next]).into_iter().flatten().flatten();
    (keys.map(|key| key.expose().to_owned()).collect(), are_rolling)
}

fn roll_of(store: &impl Store, device: &str) -> Option<Roll> {
    now(store.roll_of(&id(device))).unwrap()
}

/// Returns the beginning of the roll, as a handshake that looks up the identity's keys gets it.
fn looked_up(store: &impl Store, identity: &str) -> Option<UnixSeconds> {
    now(store.individual_key(identity)).unwrap().found.and_then(|found| found.next_since)
}

/// Notes uses of keys, with the roll of a lookup that is made now.
fn note(store: &impl Store, identity: &str, used: Used) {
    note_since(store, identity, looked_up(store, identity), used);
}

fn note_since(store: &impl Store, identity: &str, since: Option<UnixSeconds>, used: Used) {
    now(store.note_own_uses(vec![OwnUse { identity: identity.into(), since, used }])).unwrap();
}

fn end(store: &impl Store, device: &str, ending: Ending) -> Ended {
    now(store.end_roll(&id(device), ending, &by())).unwrap()
}

fn import_as(store: &impl Bulk, number: u32, rows: impl IntoIterator<Item = ImportRow>) {
    let by = by();
    let job = ImportJob { id: Some(ImportId(number)), ..job(&by) };
    store.import(job, &mut rows.into_iter().map(Ok), &mut |_, rejection| panic!("{rejection:?}")).unwrap();
}

fn undo(store: &impl Bulk, number: u32) -> Result<Undone, NotUndone> {
    undo_with(store, Undo { id: ImportId(number), by: &by(), dry_run: false, rest: false })
}

fn undo_with(store: &impl Bulk, how: Undo<'_>) -> Result<Undone, NotUndone> {
    store.undo_import(how).map_err(|error| match error {
        UndoError::NotUndone(reason) => reason,
        UndoError::Store(error) => panic!("{error}"),
    })
}

/// `individual_key` returns both keys of a device, and whether any device has two.
fn an_import_gives_a_device_a_second_key(store: &(impl Store + Bulk)) {
    import(store, [with_key("SN-1", "id-1", "00ff"), with_key("SN-2", "id-2", "11ee")]);
    assert_eq!(keys(store, "id-1"), (vec!["00ff".into()], false));
    assert!(!store.are_rolling().unwrap() && roll_of(store, "SN-1").is_none());
    let rows = || {
        [with_keys("SN-1", "id-1", "00ff", "aa11"), with_keys("SN-3", "id-3", "33cc", "bb22"), row("SN-4")]
    };
    assert_eq!(import(store, rows()), ImportReport { added: 2, changed: 1, ..Default::default() });
    assert_eq!(keys(store, "id-1"), (vec!["00ff".into(), "aa11".into()], true));
    assert_eq!(keys(store, "id-3"), (vec!["33cc".into(), "bb22".into()], true));
    assert_eq!(keys(store, "id-2"), (vec!["11ee".into()], true));
    assert_eq!(keys(store, "id-9"), (vec![], true), "for an unknown identity, too");
    assert!(store.are_rolling().unwrap());
    let begun = roll_of(store, "SN-1").unwrap();
    assert!(begun.since >= Store::now(store) - 2 * AHEAD && begun.used == [None; 2]);
    // The same file once more, and a file from before the roll, change nothing.
    note(store, "id-1", [None, Some(begun.since + 9)]);
    let before = roll_of(store, "SN-1");
    assert_eq!(import(store, rows()).unchanged, 3);
    assert_eq!(import(store, [with_key("SN-1", "id-1", "00ff")]).unchanged, 1);
    assert_eq!(roll_of(store, "SN-1"), before);
    assert_eq!(keys(store, "id-1").0, ["00ff", "aa11"]);
    let mut exported = Vec::new();
    let each = &mut |_, keys: Option<DeviceKeys>| {
        exported.extend(keys.map(|keys| (keys.identity, keys.next.map(|next| next.expose().to_owned()))));
        ControlFlow::Continue(())
    };
    store.export(each).unwrap();
    let next = |next: &str| Some(next.to_owned());
    assert_eq!(
        exported,
        [("id-1".into(), next("aa11")), ("id-2".to_owned(), None), ("id-3".into(), next("bb22"))]
    );
}

/// A row of an import ends a roll if it has the second key, and replaces the second key. But it removes
/// no key that the device has used last.
fn an_import_ends_a_roll_or_changes_its_second_key(store: &(impl Store + Bulk)) {
    import(store, [with_keys("SN-1", "id-1", "00ff", "aa11")]);
    let since = roll_of(store, "SN-1").unwrap().since;
    note(store, "id-1", [None, Some(since)]);
    assert_eq!(rejected(store, vec![with_keys("SN-1", "id-1", "00ff", "bb22")]), [(0, "pskNext")]);
    note(store, "id-1", [Some(since + 1), None]);
    assert_eq!(rejected(store, vec![with_key("SN-1", "id-1", "aa11")]), [(0, "psk")]);
    assert_eq!(keys(store, "id-1").0, ["00ff", "aa11"]);
    let report = import(store, [with_keys("SN-1", "id-1", "00ff", "bb22")]);
    assert_eq!(report, ImportReport { changed: 1, lost_keys: 1, ..Default::default() });
    assert_eq!(keys(store, "id-1").0, ["00ff", "bb22"]);
    assert_eq!(roll_of(store, "SN-1").unwrap().used, [None; 2], "another key was used");
    let report = import(store, [with_key("SN-1", "id-1", "bb22")]);
    assert_eq!(report, ImportReport { changed: 1, lost_keys: 1, ..Default::default() });
    assert_eq!(keys(store, "id-1"), (vec!["bb22".into()], false));
    assert_eq!(roll_of(store, "SN-1"), None);
}

/// A row that would remove one of two keys by mistake, or restore a former key, is a conflict.
fn a_row_that_contradicts_a_roll_is_a_conflict(store: &(impl Store + Bulk)) {
    import(store, [with_keys("SN-1", "id-1", "00ff", "aa11"), with_key("SN-2", "id-2", "11ee")]);
    for (row, column) in [
        (with_key("SN-1", "id-1", "bb22"), "psk"),
        (with_key("SN-1", "id-9", "00ff"), "psk"),
        (with_key("SN-1", "id-9", "aa11"), "psk"),
        (with_keys("SN-1", "id-1", "bb22", "aa11"), "psk"),
        (with_keys("SN-1", "id-9", "00ff", "aa11"), "psk"),
        (with_keys("SN-1", "id-1", "aa11", "00ff"), "pskNext"),
        (with_keys("SN-2", "id-2", "22dd", "bb22"), "psk"),
        (with_keys("SN-2", "id-1", "11ee", "bb22"), "pskIdentity"),
        // This is the file of the roll, after the second key has become the key.
        (with_keys("SN-2", "id-2", "00ee", "11ee"), "pskNext"),
    ] {
        assert_eq!(rejected(store, vec![row.clone()]), [(0, column)], "{row:?}");
    }
    assert_eq!(keys(store, "id-1").0, ["00ff", "aa11"]);
    assert_eq!(keys(store, "id-2").0, ["11ee"]);
    // Two rows of one device that differ only in the second key.
    let rows = vec![with_keys("SN-3", "id-3", "33cc", "aa11"), with_keys("SN-3", "id-3", "33cc", "bb22")];
    assert_eq!(rejected(store, rows), [(1, "deviceId")]);
}

/// A device that leaves an individual enrollment, or is deleted, leaves both keys.
fn both_keys_go_with_their_device(store: &(impl Store + Bulk)) {
    import(store, [with_keys("SN-1", "id-1", "00ff", "aa11"), with_keys("SN-2", "id-2", "11ee", "bb22")]);
    import(store, [ImportRow::new(id("SN-1"), "plugs", "a1plug")]);
    assert!(now(store.delete(&id("SN-2"), &by())).unwrap());
    assert_eq!((keys(store, "id-1"), keys(store, "id-2")), ((vec![], false), (vec![], false)));
    assert_eq!((roll_of(store, "SN-1"), roll_of(store, "SN-2")), (None, None));
}

/// `note_own_uses` keeps the later of two times, leaves out times before the roll, and removes one
/// that is in the future. A roll that begins in the future leaves no time out.
fn the_last_use_of_each_key_is_kept(store: &(impl Store + Bulk)) {
    store.set_clock_ahead(0);
    import(store, [with_keys("SN-1", "id-1", "00ff", "aa11"), with_key("SN-2", "id-2", "11ee")]);
    store.set_clock_ahead(AHEAD);
    let since = roll_of(store, "SN-1").unwrap().since;
    let used = || roll_of(store, "SN-1").unwrap().used;
    note(store, "id-1", [Some(since - 1), None]);
    assert_eq!(used(), [None; 2], "another key of the device");
    note(store, "id-1", [Some(since), Some(since - 1)]);
    note(store, "id-1", [None, Some(since + 2)]);
    note(store, "id-1", [Some(since + 1), Some(since + 1)]);
    assert_eq!(used(), [Some(since + 1), Some(since + 2)]);
    let future = since + 10 * AHEAD;
    note(store, "id-1", [Some(future), None]);
    assert_eq!(used(), [Some(future), Some(since + 2)]);
    note(store, "id-1", [Some(since + 3), None]);
    assert_eq!(used(), [Some(since + 3), Some(since + 2)]);
    note(store, "id-1", [None, Some(future)]);
    note(store, "id-1", [Some(since + 4), None]);
    assert_eq!(used(), [Some(since + 4), None], "the first key is in use");
    // A device that was given its second key by a process with a wrong clock.
    store.set_clock_ahead(100 * AHEAD);
    import(store, [with_keys("SN-3", "id-3", "33cc", "bb22")]);
    store.set_clock_ahead(AHEAD);
    note(store, "id-3", [None, Some(since)]);
    assert_eq!(roll_of(store, "SN-3").unwrap().used, [None, Some(since)]);
    note(store, "id-2", [Some(since), None]);
    note(store, "id-9", [Some(since), None]);
    assert_eq!(roll_of(store, "SN-2"), None);
}

/// `note_own_uses` leaves out the uses of keys that were looked up in an earlier roll.
fn a_use_counts_in_the_roll_of_its_key(store: &(impl Store + Bulk)) {
    store.set_clock_ahead(0);
    import(store, [with_keys("SN-1", "id-1", "00ff", "aa11")]);
    let former = looked_up(store, "id-1");
    assert_eq!(former, roll_of(store, "SN-1").map(|roll| roll.since));
    assert_eq!(end(store, "SN-1", Ending::Anyway), Ended::Ended);
    assert_eq!(looked_up(store, "id-1"), None);
    store.set_clock_ahead(AHEAD);
    import(store, [with_keys("SN-1", "id-1", "aa11", "bb22")]);
    let since = roll_of(store, "SN-1").unwrap().since;
    // The device has proven aa11, which was the second key when the keys were looked up.
    let late = |since| OwnUse { identity: "id-1".into(), since, used: [None, Some(Store::now(store))] };
    note_since(store, "id-1", former, late(former).used);
    assert_eq!(roll_of(store, "SN-1").unwrap().used, [None; 2]);
    // A server may report uses in both rolls at once.
    let current = OwnUse { used: [Some(since), None], ..late(Some(since)) };
    now(store.note_own_uses(vec![late(former), current])).unwrap();
    assert_eq!(roll_of(store, "SN-1").unwrap().used, [Some(since), None]);
}

/// `rolling` and `count_rolling` find the devices of one enrollment that have two keys.
fn the_devices_of_a_roll_are_listed_and_counted(store: &(impl Store + Bulk)) {
    let of = |enrollment: &str, number: usize| ImportRow {
        enrollment: enrollment.into(),
        ..with_keys(&format!("SN-{number}"), &format!("id-{number}"), "00ff", "aa11")
    };
    import(store, (1..=5).map(|number| of("own", number)));
    import(store, [of("other", 0), of("other", 6), with_key("SN-7", "id-7", "00ff"), row("SN-8")]);
    let page = |after: Option<&str>, limit| {
        let found = now(store.rolling("own", after.map(id).as_ref(), limit)).unwrap();
        found.into_iter().map(|device| device.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(page(None, 2), ["SN-1", "SN-2"]);
    assert_eq!(page(Some("SN-2"), 9), ["SN-3", "SN-4", "SN-5"]);
    let since = roll_of(store, "SN-5").unwrap().since;
    for (number, used) in [
        (1, [Some(since + 1), None]),
        (2, [Some(since + 1), Some(since + 3)]),
        (3, [Some(since + 2), Some(since + 2)]),
        (4, [None, Some(since + 1)]),
    ] {
        note(store, &format!("id-{number}"), used);
    }
    let count = now(store.count_rolling("own", Duration::from_secs(60))).unwrap();
    let expected =
        RollCount { devices: 5, by_key: [2, 2], used: [Some(since + 2), Some(since + 3)], is_complete: true };
    assert_eq!(count, expected);
    let none = now(store.count_rolling("lamps", Duration::ZERO)).unwrap();
    assert_eq!(none, RollCount { is_complete: true, ..RollCount::default() });
}

/// `end_roll` leaves one key, and writes an audit entry. A device that has not used its second key
/// last keeps both keys, unless the caller ends the roll regardless of uses.
fn a_roll_ends_with_the_key_that_the_device_uses(store: &(impl Store + Bulk)) {
    let numbers = 1..=4;
    import(
        store,
        numbers.map(|number| with_keys(&format!("SN-{number}"), &format!("id-{number}"), "00ff", "aa11")),
    );
    import(store, [row("SN-8")]);
    let since = roll_of(store, "SN-4").unwrap().since;
    assert_eq!(end(store, "SN-1", Ending::Used), Ended::NotDue);
    note(store, "id-1", [Some(since + 5), Some(since + 4)]);
    assert_eq!(end(store, "SN-1", Ending::Used), Ended::NotDue);
    assert!(events(store, "SN-1").is_empty() && keys(store, "id-1").0.len() == 2);
    note(store, "id-1", [None, Some(since + 6)]);
    assert_eq!(end(store, "SN-1", Ending::Used), Ended::Ended);
    assert_eq!(keys(store, "id-1").0, ["aa11"]);
    assert_eq!(end(store, "SN-2", Ending::Anyway), Ended::Ended);
    assert_eq!(keys(store, "id-2").0, ["aa11"]);
    assert_eq!(end(store, "SN-3", Ending::Dropped), Ended::Ended, "it has used neither");
    assert_eq!(keys(store, "id-3").0, ["00ff"]);
    for device in ["SN-1", "SN-2", "SN-3"] {
        assert_eq!(events(store, device), [(AuditEvent::Rekeyed, Some("user anna".to_owned()))]);
        assert_eq!(end(store, device, Ending::Anyway), Ended::NoRoll, "once");
        assert_eq!(roll_of(store, device), None);
    }
    assert_eq!(
        (end(store, "SN-8", Ending::Anyway), end(store, "SN-9", Ending::Dropped)),
        (Ended::NoRoll, Ended::NoRoll)
    );
    assert!(store.are_rolling().unwrap(), "SN-4");
    // A second roll begins without uses.
    import(store, [with_keys("SN-1", "id-1", "aa11", "bb22")]);
    assert_eq!(roll_of(store, "SN-1").unwrap().used, [None; 2]);
}

/// Undoing an import removes the second keys that the import has added.
fn a_second_key_is_undone_with_its_import(store: &(impl Store + Bulk)) {
    import(store, [with_key("SN-1", "id-1", "00ff"), with_key("SN-2", "id-2", "11ee"), row("SN-4")]);
    let of_own = |row: ImportRow| ImportRow { enrollment: "own".into(), ..row };
    let rows = || {
        [
            with_keys("SN-1", "id-1", "00ff", "aa11"),
            of_own(with_keys("SN-2", "id-2", "11ee", "bb22")),
            with_keys("SN-3", "id-3", "33cc", "cc33"),
            of_own(with_keys("SN-4", "id-4", "44bb", "dd44")),
        ]
    };
    import_as(store, 7, rows());
    note(store, "id-1", [Some(Store::now(store) + AHEAD); 2]);
    assert_eq!(undo(store, 7), Ok(Undone { removed: 1, restored: 3, ..Undone::default() }));
    assert_eq!(keys(store, "id-1"), (vec!["00ff".into()], false));
    assert_eq!(keys(store, "id-2").0, ["11ee"]);
    assert_eq!((keys(store, "id-3").0.len(), keys(store, "id-4").0.len()), (0, 0));
    import_as(store, 8, rows());
    assert_eq!(keys(store, "id-2").0, ["11ee", "bb22"]);
    // The second key has become the key, so the undo would remove the device's only key.
    assert_eq!(end(store, "SN-1", Ending::Anyway), Ended::Ended);
    assert_eq!(undo(store, 8), Err(NotUndone::Changed { id: ImportId(8), count: 1, all: 4 }));
    // A replaced second key is not kept, like any former key.
    import_as(store, 9, [of_own(with_keys("SN-2", "id-2", "11ee", "ee55"))]);
    assert_eq!(undo(store, 9), Err(NotUndone::Keys { id: ImportId(9), count: 1 }));
}

/// If a device has used its second key last, neither the end of the roll nor an undo removes this key,
/// unless the caller removes it regardless of uses.
fn a_second_key_that_is_used_stays(store: &(impl Store + Bulk)) {
    let rows = |next: &'static str| {
        (1..=3).map(move |number| {
            let (device, identity) = (format!("SN-{number}"), format!("id-{number}"));
            if next.is_empty() {
                with_key(&device, &identity, "00ff")
            } else {
                with_keys(&device, &identity, "00ff", next)
            }
        })
    };
    import(store, rows(""));
    import_as(store, 7, rows("aa11"));
    let since = roll_of(store, "SN-1").unwrap().since;
    note(store, "id-1", [Some(since + 1), Some(since + 2)]);
    note(store, "id-2", [Some(since + 2), Some(since + 1)]);
    assert_eq!(end(store, "SN-1", Ending::Dropped), Ended::NotDue);
    assert!(events(store, "SN-1").is_empty() && keys(store, "id-1").0.len() == 2);
    assert_eq!(undo(store, 7), Err(NotUndone::Changed { id: ImportId(7), count: 1, all: 3 }));
    let left = || store.left_of(ImportId(7), 9).unwrap();
    assert_eq!(left(), Left { devices: 1, first: vec![id("SN-1")] });
    let by = by();
    let rest = Undo { id: ImportId(7), by: &by, dry_run: true, rest: true };
    let undone = Undone { restored: 2, left: 1, ..Undone::default() };
    assert_eq!(undo_with(store, rest), Ok(undone));
    assert_eq!(undo_with(store, Undo { dry_run: false, ..rest }), Ok(undone));
    assert_eq!(keys(store, "id-1").0, ["00ff", "aa11"]);
    assert_eq!([keys(store, "id-2").0, keys(store, "id-3").0], [["00ff"]; 2]);
    assert_eq!(left().first, [id("SN-1")]);
    assert_eq!(end(store, "SN-1", Ending::DroppedAnyway), Ended::Ended);
    assert_eq!(keys(store, "id-1").0, ["00ff"]);
    let (event, who) = (AuditEvent::Rekeyed, Some("user anna".to_owned()));
    assert_eq!(events(store, "SN-1"), [(event, who)]);
}

/// A device that an undo leaves out, because it needs its second key, keeps its name as well.
fn a_device_that_keeps_its_second_key_keeps_its_name(store: &(impl Store + Bulk)) {
    let named = |row: ImportRow, name: &str| ImportRow { device_name: Some(name.into()), ..row };
    import(
        store,
        [
            named(with_key("SN-1", "id-1", "00ff"), "lamp-x"),
            named(with_key("SN-2", "id-2", "11ee"), "lamp-y"),
        ],
    );
    let rows = [
        named(with_key("SN-1", "id-1", "00ff"), "lamp-z"),
        named(with_keys("SN-2", "id-2", "11ee", "bb22"), "lamp-x"),
    ];
    import_as(store, 7, rows);
    let since = roll_of(store, "SN-2").unwrap().since;
    note(store, "id-2", [None, Some(since)]);
    let by = by();
    let rest = Undo { id: ImportId(7), by: &by, dry_run: false, rest: true };
    let refused = undo_with(store, rest);
    assert!(matches!(&refused, Err(NotUndone::Conflict { device, .. }) if device == "SN-1"), "{refused:?}");
    assert_eq!(keys(store, "id-2").0, ["11ee", "bb22"]);
}

contract! {
    an_import_gives_a_device_a_second_key
    an_import_ends_a_roll_or_changes_its_second_key
    a_row_that_contradicts_a_roll_is_a_conflict
    both_keys_go_with_their_device
    the_last_use_of_each_key_is_kept
    a_use_counts_in_the_roll_of_its_key
    the_devices_of_a_roll_are_listed_and_counted
    a_roll_ends_with_the_key_that_the_device_uses
    a_second_key_is_undone_with_its_import
    a_second_key_that_is_used_stays
    a_device_that_keeps_its_second_key_keeps_its_name
}
