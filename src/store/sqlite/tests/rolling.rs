//! Tests of second keys in the file: imports that were cut off, traces of former keys, and a restore.

use super::{
    backup::Restorable,
    importing::{SOON, cut_off},
    sealing::{bytes_of, contains},
    *,
};
use crate::store::{
    roll::{Ended, Ending, OwnUse, Roll, Rolls},
    undo::ImportId,
};

const OLD: &str = "00112233445566778899aabbccddeeff";
const NEW: &str = "a0112233445566778899aabbccddeeff";
const NEWER: &str = "b0112233445566778899aabbccddeeff";

fn with_keys(device: &str, identity: &str, psk: &str, next: &str) -> ImportRow {
    ImportRow { next_key: Some(Secret::new(next.into())), ..with_key(device, identity, psk) }
}

fn keys(store: &Sqlite, identity: &str) -> Vec<String> {
    let found = at_once(store.individual_key(identity)).unwrap().found;
    let keys = found.map(|found| [Some(found.psk), found.next]).into_iter().flatten().flatten();
    keys.map(|key| key.expose().to_owned()).collect()
}

fn roll_of(store: &Sqlite, device: &str) -> Option<Roll> {
    at_once(store.roll_of(&id(device))).unwrap()
}

fn end(store: &Sqlite, device: &str, ending: Ending) -> Ended {
    wait(store.end_roll(&id(device), ending, &Actor::system_user())).unwrap()
}

/// Adds devices with all keys that an import can change: the first key, the second key, or both.
fn fill(store: &Sqlite) -> [Option<Roll>; 3] {
    let rows = [
        with_keys("SN-1", "id-1", OLD, NEW),
        with_key("SN-2", "id-2", OLD),
        with_keys("SN-3", "id-3", OLD, NEW),
    ];
    import(store, rows);
    let since = roll_of(store, "SN-1").unwrap().since;
    // No import replaces a second key that its device has used last.
    for (identity, used) in
        [("id-1", [Some(since + 2), Some(since + 1)]), ("id-3", [Some(since + 1), Some(since + 2)])]
    {
        let uses = vec![OwnUse { identity: identity.into(), since: Some(since), used }];
        wait(store.note_own_uses(uses)).unwrap();
    }
    ["SN-1", "SN-2", "SN-3"].map(|device| roll_of(store, device))
}

fn changes() -> [ImportRow; 4] {
    [
        with_keys("SN-1", "id-1", OLD, NEWER),
        with_keys("SN-2", "id-2", OLD, NEWER),
        with_key("SN-3", "id-3", NEW),
        with_keys("SN-4", "id-4", OLD, NEWER),
    ]
}

fn are_as_before(store: &Sqlite, before: [Option<Roll>; 3]) {
    assert_eq!([keys(store, "id-1"), keys(store, "id-3")], [[OLD, NEW], [OLD, NEW]]);
    assert_eq!((keys(store, "id-2"), keys(store, "id-4")), (vec![OLD.to_owned()], vec![]));
    assert_eq!(["SN-1", "SN-2", "SN-3"].map(|device| roll_of(store, device)), before);
}

#[test]
fn second_keys_of_an_import_that_was_cut_off_are_taken_back_wherever_that_stops() {
    for stops_after in 0..12 {
        let directory = tempfile::tempdir().unwrap();
        let store = open(&directory);
        let before = fill(&store);
        let _lock = lock::ImportLock::attempt(store.path()).unwrap().unwrap();
        cut_off(&store, changes());
        assert_eq!(keys(&store, "id-1"), [OLD, NEWER], "a changed device has its new keys at once");
        assert!(keys(&store, "id-4").is_empty(), "a new one is hidden");
        assert_eq!(roll_of(&store, "SN-4"), None);
        assert_eq!(end(&store, "SN-4", Ending::Anyway), Ended::NoRoll);
        let listed = at_once(store.rolling("lamps", None, 9)).unwrap();
        assert_eq!(listed, [id("SN-1"), id("SN-2")], "SN-3 has one key, SN-4 is hidden");
        // The process that takes the changes back is killed after some of its transactions.
        let (writer, left) =
            (connection::open_again(store.path(), SOON).unwrap(), std::cell::Cell::new(stops_after));
        let is_killed = || left.replace(left.get() - 1) <= 0;
        unfinished::take_back(&writer, &is_killed).unwrap();
        drop(writer);
        unfinished::take_back(&connection::open_again(store.path(), SOON).unwrap(), &|| false).unwrap();
        are_as_before(&store, before);
        let other = Connection::open(store.path()).unwrap();
        let count = |sql: &str| other.query_row(sql, (), |row| row.get::<_, i64>(0)).unwrap();
        assert_eq!(count("SELECT count(*) FROM import_before"), 0);
        assert_eq!(count("SELECT count(*) FROM import_unfinished"), 0);
        assert_eq!(store.check_counts().unwrap().different, 0);
    }
}

#[test]
fn a_second_key_of_an_import_that_was_cut_off_is_left_to_a_device_that_uses_it() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(&directory);
    import(&store, [with_key("SN-1", "id-1", OLD), with_key("SN-2", "id-2", OLD)]);
    let _lock = lock::ImportLock::attempt(store.path()).unwrap().unwrap();
    cut_off(&store, [with_keys("SN-1", "id-1", OLD, NEW), with_keys("SN-2", "id-2", OLD, NEW)]);
    let since = roll_of(&store, "SN-1").unwrap().since;
    let used = [None, Some(since)];
    wait(store.note_own_uses(vec![OwnUse { identity: "id-1".into(), since: Some(since), used }])).unwrap();
    unfinished::take_back(&connection::open_again(store.path(), SOON).unwrap(), &|| false).unwrap();
    assert_eq!([keys(&store, "id-1"), keys(&store, "id-2")], [vec![OLD, NEW], vec![OLD]]);
    let other = Connection::open(store.path()).unwrap();
    let count = |sql: &str| other.query_row(sql, (), |row| row.get::<_, i64>(0)).unwrap();
    assert_eq!(count("SELECT count(*) FROM import_before"), 0);
    assert_eq!(count("SELECT count(*) FROM import_unfinished"), 0);
}

#[test]
fn an_import_of_many_rolls_leaves_no_former_key_in_the_file() {
    const ROWS: usize = 1500;
    let directory = tempfile::tempdir().unwrap();
    let store = open(&directory);
    let device = |number: usize| (format!("SN-{number:04}"), format!("id-{number:04}"));
    let rows = |psk: &'static str, next: &'static str| {
        (0..ROWS).map(move |number| with_keys(&device(number).0, &device(number).1, psk, next))
    };
    import(&store, rows(OLD, NEW));
    let by = Actor::system_user();
    // The rows of an import with a number keep their other former values.
    let job = ImportJob { id: Some(ImportId(7)), ..ImportJob::new(&by, "file.csv") };
    let changed = &mut rows(OLD, NEWER).map(Ok);
    let report = store.import(job, changed, &mut |at, why| panic!("{at}: {why:?}")).unwrap();
    assert_eq!(report.lost_keys, ROWS as u64);
    let other = Connection::open(store.path()).unwrap();
    let count = |sql: &str| other.query_row(sql, (), |row| row.get::<_, i64>(0)).unwrap();
    assert_eq!(
        count("SELECT count(*) FROM import_before WHERE formerPsk IS NOT NULL OR formerNext IS NOT NULL"),
        0
    );
    drop(other);
    let listed = at_once(store.rolling("lamps", None, 2 * ROWS)).unwrap();
    assert_eq!(listed.len(), ROWS);
    for device in &listed {
        assert_eq!(end(&store, device.as_str(), Ending::Anyway), Ended::Ended);
    }
    drop(store);
    let bytes = bytes_of(&directory);
    assert!(contains(&bytes, NEWER));
    assert!(!contains(&bytes, OLD) && !contains(&bytes, NEW));
}

#[test]
fn a_restore_that_would_bring_former_keys_back_says_so() {
    let directory = tempfile::tempdir().unwrap();
    let (path, copy) = (directory.path().join("certdist.db"), directory.path().join("copy.db"));
    let store = open(&directory);
    fill(&store);
    assert_eq!(store.back_up(&copy, &mut |_, _| ()).unwrap().psks, 5);
    import(&store, [with_keys("SN-9", "id-9", OLD, NEW)]);
    for device in ["SN-3", "SN-9"] {
        assert_eq!(end(&store, device, Ending::Anyway), Ended::Ended);
    }
    drop(store);
    let rekeyed = Restorable::examine(&copy, &path, |_, _| ()).unwrap().changes_since(&path).unwrap().rekeyed;
    assert_eq!((rekeyed.count, &rekeyed.first[..]), (1, &["SN-3".to_owned()][..]));
}

#[test]
fn what_a_roll_costs_does_not_grow_with_the_devices_that_have_one_key() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(&directory);
    import(&store, (0..3000).map(|number| with_key(&format!("SN-{number}"), &format!("id-{number}"), OLD)));
    let connection = Connection::open(store.path()).unwrap();
    for sql in [
        "SELECT EXISTS (SELECT 1 FROM device_key INDEXED BY key_next WHERE pskNext IS NOT NULL)",
        "SELECT deviceId FROM device_key k INDEXED BY key_next WHERE pskNext IS NOT NULL AND deviceId > '' \
         ORDER BY deviceId",
    ] {
        let mut statement = connection.prepare(sql).unwrap();
        drop(statement.query(()).unwrap().next());
        assert!(statement.get_status(rusqlite::StatementStatus::VmStep) < 50, "{sql}");
    }
}
