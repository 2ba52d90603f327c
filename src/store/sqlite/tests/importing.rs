//! Tests of imports that write in slices: no one waits for them, their devices appear all at once,
//! and an import that was cut off is hidden and taken back.

use std::sync::atomic::AtomicBool;

use super::*;
use crate::store::{
    filter::{Cursor, Filter},
    undo::ImportId,
};

pub(super) const SOON: Duration = Duration::from_secs(9);

fn named(device: &str, name: &str) -> ImportRow {
    ImportRow { device_name: Some(name.into()), ..row(device) }
}

/// Leaves an import behind that has written all its rows and was cut off before its end.
pub(super) fn cut_off(store: &Sqlite, rows: impl IntoIterator<Item = ImportRow>) {
    let other = connection::open_again(store.path(), Duration::from_secs(9)).unwrap();
    unfinished::begin(&other, ImportId(7), 1000, "eve", "cut.csv").unwrap();
    counts::without_triggers(&other).unwrap();
    let by = Actor::system_user();
    let job = ImportJob::new(&by, "cut.csv");
    let mut table = import::Table::prepare(&other, Some(ImportId(7)), 1000, job.same_secret, true).unwrap();
    for row in rows {
        table.merge(&row).ok().unwrap();
    }
    table.changed.write(&other).unwrap();
}

#[test]
fn an_import_holds_nobody_up_and_its_devices_appear_at_once() {
    const ROWS: usize = 20_000;
    let directory = tempfile::tempdir().unwrap();
    // The store has the usual long waits.
    let store = Sqlite::open(&directory.path().join("certdist.db")).unwrap();
    import(&store, (0..2000).map(|number| with_certificate(&format!("SN-{number}"), "s3cret")));
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let importing = scope.spawn(|| {
            let report = import(&store, (0..ROWS).map(|number| row(&format!("new-{number:05}"))));
            is_over.store(true, Ordering::SeqCst);
            report
        });
        let mut issued = 0;
        while !is_over.load(Ordering::SeqCst) {
            // While the rows are read, checked and written, devices get their certificates.
            let device = id(&format!("SN-{}", issued % 2000));
            assert!(wait(issue(&store, &device)).is_ok());
            issued += 1;
            // If the first device is in the table, the last one and all others are, too.
            let is_there = at_once(store.device(&id("new-00000"))).unwrap().is_some();
            let last = at_once(store.device(&id("new-19999"))).unwrap();
            assert!(!is_there || last.is_some());
            if !is_there {
                let listed = store.find(&Filter::default(), &Cursor::After(id("SN-999")), 9, SOON).unwrap();
                let is_complete = at_once(store.device(&id("new-00000"))).unwrap().is_some();
                assert!(listed.devices.is_empty() || is_complete, "{listed:?}");
            }
        }
        assert_eq!(importing.join().unwrap().added, ROWS as u64);
        assert!(issued > 10, "{issued}");
    });
    assert_eq!(store.count().unwrap(), 2000 + ROWS as u64);
    assert_eq!(store.check_counts().unwrap().different, 0);
    assert!(!directory.path().join("certdist.db-import").exists());
}

#[test]
fn an_import_reports_how_far_it_has_checked_and_written() {
    const ROWS: u64 = 5000;
    let directory = tempfile::tempdir().unwrap();
    let store = open(&directory);
    let reports = std::cell::RefCell::new(Vec::new());
    let report = |stage, done, all| reports.borrow_mut().push((stage, done, all));
    let by = Actor::system_user();
    let job = ImportJob { progress: &report, ..ImportJob::new(&by, "file.csv") };
    let rows = &mut (0..ROWS).map(|number| Ok(row(&format!("SN-{number:05}"))));
    store.import(job, rows, &mut |at, why| panic!("{at}: {why:?}")).unwrap();
    let reports = reports.into_inner();
    assert!(
        reports.is_sorted_by_key(|(stage, done, _)| (*stage == ImportStage::Writing, *done)),
        "{reports:?}"
    );
    assert!(reports.iter().all(|(.., all)| *all == ROWS));
    for stage in [ImportStage::Checking, ImportStage::Writing] {
        assert!(reports.contains(&(stage, ROWS, ROWS)), "{reports:?}");
    }
}

#[test]
fn an_import_takes_short_turns_while_others_write() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(&directory);
    import(&store, [row("other")]);
    let turns = std::cell::RefCell::new(Vec::new());
    let report = |stage, done, _| {
        if stage == ImportStage::Writing {
            let mut turns = turns.borrow_mut();
            turns.push(done);
            let state = [DeviceState::Enabled, DeviceState::Disabled][turns.len() % 2];
            wait(store.set_state(&id("other"), state, &Actor::system_user())).unwrap();
        }
    };
    let by = Actor::system_user();
    let job = ImportJob { progress: &report, ..ImportJob::new(&by, "file.csv") };
    let mut rows = (0..12_000).map(|number| Ok(row(&format!("SN-{number}"))));
    store.import(job, &mut rows, &mut |at, why| panic!("{at}: {why:?}")).unwrap();
    let turns = turns.into_inner();
    // The first two turns begin before the import sees that another connection has written.
    let longest = turns[1..].windows(2).map(|turns| turns[1] - turns[0]).max();
    assert!(longest.is_some_and(|rows| rows <= unfinished::SHARED_ROWS), "{turns:?}");
}

#[test]
fn rows_that_come_slowly_hold_no_other_import_up() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(&directory);
    let mut count = 0;
    let slow = std::iter::from_fn(|| {
        count += 1;
        match count {
            1 => Some(row("SN-1")),
            // Another import begins and ends before the next row comes.
            2 => {
                assert_eq!(import(&store, [row("SN-3")]).added, 1);
                Some(row("SN-2"))
            }
            _ => None,
        }
    });
    assert_eq!(import(&store, slow).added, 2);
}

#[test]
fn a_device_that_changes_while_an_import_is_taken_back_has_a_key() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(&directory);
    import(&store, [with_key("SN-1", "id-1", "00ff")]);
    let _lock = lock::ImportLock::attempt(store.path()).unwrap().unwrap();
    cut_off(&store, [with_key("SN-1", "id-9", "11ee")]);
    let writer = connection::open_again(store.path(), SOON).unwrap();
    // One transaction removes the new key, and a later one restores the former key.
    let has_lost_key = || at_once(store.individual_key("id-9")).unwrap().found.is_none();
    unfinished::take_back(&writer, &has_lost_key).unwrap();
    assert!(has_lost_key() && at_once(store.individual_key("id-1")).unwrap().found.is_none());
    wait(store.set_state(&id("SN-1"), DeviceState::Disabled, &Actor::system_user())).unwrap();
    unfinished::take_back(&writer, &|| false).unwrap();
    assert_eq!(at_once(store.individual_key("id-1")).unwrap().found.unwrap().psk.expose(), "00ff");
}

#[test]
fn an_import_that_was_cut_off_is_hidden_and_taken_back() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(&directory);
    import(
        &store,
        [with_key("SN-1", "id-1", "00ff"), row("SN-2"), row("SN-3"), with_key("SN-4", "id-4", "00ff")],
    );
    let before = at_once(store.rows_after(None, 9)).unwrap();
    // This is an import before its end. While it has its lock, no other process takes it back.
    let lock = lock::ImportLock::attempt(store.path()).unwrap().unwrap();
    let moved = ImportRow::new(id("SN-4"), "plugs", "a1plug");
    let rows = [
        with_key("SN-1", "id-9", "11ee"),
        named("SN-2", "other"),
        row("SN-5"),
        with_key("SN-6", "id-6", "22dd"),
        moved,
        named("SN-3", "third"),
    ];
    cut_off(&store, rows);
    let differences = |store: &Sqlite| store.check_counts().unwrap().different;
    assert_eq!(differences(&store), 0);
    // The devices that it adds are hidden from every reader. The devices that it changes are not.
    let ids = |store: &Sqlite| {
        let rows = at_once(store.rows_after(None, 9)).unwrap();
        rows.iter().map(|row| row.id.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(ids(&store), ["SN-1", "SN-2", "SN-3", "SN-4"]);
    assert_eq!(at_once(store.device(&id("SN-5"))).unwrap(), None);
    assert_eq!(at_once(store.device(&id("SN-2"))).unwrap().unwrap().device_name.as_deref(), Some("other"));
    let looking = Sqlite::look(store.path(), |_| Ok(())).unwrap();
    assert_eq!((looking.count().unwrap(), store.count().unwrap()), (4, 4));
    let found = store.find(&Filter::default(), &Cursor::First, 9, SOON).unwrap().devices.len();
    assert_eq!(found, 4);
    // SN-3 has changed since, so it stays as it is.
    wait(store.set_state(&id("SN-3"), DeviceState::Disabled, &Actor::system_user())).unwrap();
    drop(lock);
    import(&store, [row("SN-7")]);
    assert_eq!(ids(&store), ["SN-1", "SN-2", "SN-3", "SN-4", "SN-7"]);
    assert_eq!((differences(&store), store.count().unwrap()), (0, 5));
    let after = at_once(store.rows_after(None, 9)).unwrap();
    assert_eq!([&after[0], &after[1], &after[3]], [&before[0], &before[1], &before[3]]);
    assert_eq!((after[2].state, after[2].device_name.as_deref()), (DeviceState::Disabled, Some("third")));
    for (identity, psk) in [("id-1", Some("00ff")), ("id-4", Some("00ff")), ("id-6", None), ("id-9", None)] {
        let key = at_once(store.individual_key(identity)).unwrap().found;
        assert_eq!(key.as_ref().map(|key| key.psk.expose()), psk, "{identity}");
    }
    let other = Connection::open(store.path()).unwrap();
    let count = |sql: &str| other.query_row(sql, (), |row| row.get::<_, i64>(0)).unwrap();
    assert_eq!(count("SELECT count(*) FROM import_unfinished"), 0);
    assert_eq!(count("SELECT count(*) FROM import_before WHERE importId = 7"), 0);
}

#[test]
fn names_and_identities_that_an_import_has_passed_on_come_back() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(&directory);
    let first = [
        with_key("SN-1", "id-1", "00ff"),
        with_key("SN-2", "id-2", "11ee"),
        named("SN-3", "name-3"),
        named("SN-4", "name-4"),
    ];
    import(&store, first);
    let before = at_once(store.rows_after(None, 9)).unwrap();
    let lock = lock::ImportLock::attempt(store.path()).unwrap().unwrap();
    // Each former value now belongs to another device: to one that existed before the import, or to
    // a new one.
    let passed_on = [
        with_key("SN-1", "id-9", "22dd"),
        with_key("SN-2", "id-1", "33cc"),
        with_key("SN-8", "id-2", "44bb"),
        named("SN-3", "name-9"),
        named("SN-4", "name-3"),
        named("SN-5", "name-4"),
    ];
    cut_off(&store, passed_on);
    // The key of a hidden device is not known, and an operator's change does not reach the device.
    assert!(at_once(store.individual_key("id-2")).unwrap().found.is_none());
    let by = Actor::system_user();
    assert!(!wait(store.set_state(&id("SN-8"), DeviceState::Disabled, &by)).unwrap());
    assert!(!wait(store.delete(&id("SN-5"), &by)).unwrap());
    drop(lock);
    import(&store, [row("SN-7")]);
    wait(store.delete(&id("SN-7"), &by)).unwrap();
    assert_eq!(at_once(store.rows_after(None, 9)).unwrap(), before);
    for (identity, psk) in [("id-1", "00ff"), ("id-2", "11ee")] {
        assert_eq!(
            at_once(store.individual_key(identity)).unwrap().found.unwrap().psk.expose(),
            psk,
            "{identity}"
        );
    }
    assert_eq!(store.check_counts().unwrap().different, 0);
}

#[test]
fn a_device_that_is_being_registered_keeps_what_an_import_that_was_cut_off_gave_it() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(&directory);
    import(&store, [named("SN-1", "name-1"), named("SN-2", "name-2")]);
    let lock = lock::ImportLock::attempt(store.path()).unwrap().unwrap();
    cut_off(&store, [named("SN-1", "name-9"), named("SN-2", "name-1")]);
    let entry = JournalEntry {
        device: id("SN-2"),
        product_key: "a1lamp".into(),
        device_name: "name-1".into(),
        target: crate::target::DEFAULT.into(),
    };
    let owner = Owner { id: 1, name: "test".into() };
    wait(store.claim(&owner, &entry, ClaimTime { at: 1000, cloud_offset: None })).unwrap();
    drop(lock);
    import(&store, [row("SN-7")]);
    // SN-2 is registered under the name that it has been claimed with, so SN-1 cannot have this
    // name again.
    let names = at_once(store.rows_after(None, 2)).unwrap().into_iter().map(|row| row.name());
    assert_eq!(names.collect::<Vec<_>>(), ["name-9", "name-1"]);
    assert_eq!(store.check_counts().unwrap().different, 0);
}

/// A claim that ends between two runs leaves a device that has neither a claim nor former values.
#[test]
fn a_take_back_that_is_cut_off_after_any_transaction_deletes_no_device_that_was_there_before() {
    let entry = JournalEntry {
        device: id("SN-2"),
        product_key: "a1lamp".into(),
        device_name: "name-1".into(),
        target: crate::target::DEFAULT.into(),
    };
    let owner = Owner { id: 1, name: "test".into() };
    for turns in 1..100 {
        let directory = tempfile::tempdir().unwrap();
        let store = open(&directory);
        import(&store, [named("SN-1", "name-1"), named("SN-2", "name-2")]);
        let _lock = lock::ImportLock::attempt(store.path()).unwrap().unwrap();
        // SN-2 is being registered under the name that SN-1 had before the import, so taking the
        // import back leaves both unchanged.
        cut_off(&store, [named("SN-1", "name-9"), named("SN-2", "name-1"), row("SN-3")]);
        wait(store.claim(&owner, &entry, ClaimTime { at: 1000, cloud_offset: None })).unwrap();
        let writer = connection::open_again(store.path(), SOON).unwrap();
        let left = std::cell::Cell::new(turns);
        let is_stopped = || {
            left.set(left.get() - 1);
            left.get() == 0
        };
        unfinished::take_back(&writer, &is_stopped).unwrap();
        let is_complete = !store.import_activity().unwrap().is_unfinished;
        wait(store.release_claim(1, &id("SN-2"), false)).unwrap();
        unfinished::take_back(&writer, &|| false).unwrap();
        let rows = at_once(store.rows_after(None, 9)).unwrap();
        let ids: Vec<_> = rows.iter().map(|row| row.id.as_str()).collect();
        assert_eq!(ids, ["SN-1", "SN-2"], "{turns}");
        assert_eq!(store.check_counts().unwrap().different, 0, "{turns}");
        if is_complete {
            assert!(turns > 4, "it has more transactions: {turns}");
            return;
        }
    }
    panic!("it never ends");
}

/// A registration can wait in memory since before its device was deleted and imported again.
#[test]
fn a_device_that_an_unfinished_import_adds_cannot_be_claimed() {
    use crate::store::claim::Claimed;
    let directory = tempfile::tempdir().unwrap();
    let store = open(&directory);
    let lock = lock::ImportLock::attempt(store.path()).unwrap().unwrap();
    cut_off(&store, [row("SN-1")]);
    let entry = JournalEntry {
        device: id("SN-1"),
        product_key: "a1lamp".into(),
        device_name: "SN-1".into(),
        target: crate::target::DEFAULT.into(),
    };
    let owner = Owner { id: 1, name: "test".into() };
    let claim = || wait(store.claim(&owner, &entry, ClaimTime { at: 1000, cloud_offset: None })).unwrap();
    assert_eq!(claim(), Claimed::Held);
    assert_eq!((journal(&store), at_once(store.device(&id("SN-1"))).unwrap()), (vec![], None));
    drop(lock);
    import(&store, [row("SN-2")]);
    assert_eq!(claim(), Claimed::NotWanted);
    import(&store, [row("SN-1")]);
    assert!(matches!(claim(), Claimed::Yours(_)));
    assert_eq!(store.check_counts().unwrap().different, 0);
}

#[test]
fn a_device_that_an_unfinished_import_adds_is_admitted_later_and_goes_on_waiting() {
    use crate::store::waiting::{Admission, Admits, NewDevice, Note, WaitingList};
    let directory = tempfile::tempdir().unwrap();
    let store = open(&directory);
    let asker = || Asker { enrollment: "lamps".into(), address: "192.0.2.1".into(), ..Asker::default() };
    for device in ["SN-1", "SN-2", "SN-3", "SN-4"] {
        wait(store.note_waiting(Note { device: id(device), asker: asker(), is_shared: false })).unwrap();
    }
    let new = |device: &str| NewDevice {
        device: id(device),
        enrollment: "lamps".into(),
        product_key: "a1lamp".into(),
    };
    let by_operator = |devices: &[&str]| {
        let devices = devices.iter().map(|device| new(device)).collect();
        wait(store.admit(devices, Admits::Operator(Actor::system_user()))).unwrap()
    };
    let waiting = || {
        let all = at_once(store.waiting(None, None, 9)).unwrap();
        all.into_iter().map(|one| one.device).collect::<Vec<_>>()
    };
    import(&store, [row("SN-4")]);
    let lock = lock::ImportLock::attempt(store.path()).unwrap().unwrap();
    // SN-1 is added in another enrollment, and the name of SN-2 goes to another device.
    cut_off(&store, [ImportRow::new(id("SN-1"), "plugs", "a1plug"), named("SN-9", "SN-2")]);
    assert_eq!(
        by_operator(&["SN-1", "SN-2", "SN-3"]),
        [Admission::Later, Admission::Later, Admission::Added]
    );
    for device in ["SN-1", "SN-2"] {
        let by = Admits::Configuration { asker: asker(), max_rows: None };
        let later = wait(store.admit(vec![new(device)], by)).unwrap_err();
        assert!(matches!(&later, StoreError::Busy(_)), "{later}");
    }
    assert_eq!(wait(store.prune_waiting(0)).unwrap(), 1, "SN-4, which is in the table for good");
    assert_eq!(waiting(), [id("SN-1"), id("SN-2")]);
    drop(lock);
    import(&store, [row("SN-7")]);
    assert_eq!(by_operator(&["SN-1", "SN-2"]), [Admission::Added, Admission::Added]);
    assert_eq!(waiting(), []);
}

#[test]
fn the_removal_of_former_values_looks_often_while_another_process_writes() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(&directory);
    let _lock = lock::ImportLock::attempt(store.path()).unwrap().unwrap();
    let other = Connection::open(store.path()).unwrap();
    let writer = connection::open_again(store.path(), Duration::from_millis(300)).unwrap();
    // Values with a former key, and values of an import that has no record.
    for psk in ["'00ff'", "NULL"] {
        let sql = format!(
            "INSERT OR REPLACE INTO import_before (importId, deviceId, enrollment, productKey, hadSecret, formerPsk) \
             VALUES (7, 'SN-1', 'lamps', 'a1lamp', 0, {psk}); BEGIN IMMEDIATE"
        );
        other.execute_batch(&sql).unwrap();
        connection::ATTEMPTS.set(0);
        let busy = unfinished::take_back(&writer, &|| false).unwrap_err();
        assert_eq!(busy.sqlite_error_code(), Some(rusqlite::ErrorCode::DatabaseBusy));
        // SQLite's own waiting would not count as an attempt.
        assert!(connection::ATTEMPTS.get() > 1, "{psk}");
        other.execute_batch("COMMIT").unwrap();
    }
    unfinished::take_back(&writer, &|| false).unwrap();
    let left = "SELECT count(*) FROM import_before";
    assert_eq!(other.query_row(left, (), |row| row.get::<_, i64>(0)).unwrap(), 0);
}

#[test]
fn a_backup_beside_an_unfinished_import_is_complete() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(&directory);
    import(&store, [row("SN-1")]);
    let lock = lock::ImportLock::attempt(store.path()).unwrap().unwrap();
    cut_off(&store, [row("SN-2"), row("SN-3")]);
    let copy = directory.path().join("copy.db");
    store.back_up(&copy, &mut |_, _| ()).unwrap();
    assert_eq!(Sqlite::look(&copy, |_| Ok(())).unwrap().count().unwrap(), 1);
    drop(lock);
}
