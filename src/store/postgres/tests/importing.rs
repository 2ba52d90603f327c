//! Tests of imports that write in slices: no other writer waits for them, their devices appear all at
//! once, and an import that was cut off is taken back.

use std::{cell::Cell, panic::AssertUnwindSafe};

use super::*;
use crate::store::{
    DeviceState, filter,
    waiting::{Admission, Admits, NewDevice, WaitingList},
};

/// Number of new devices of each import, which is more than one transaction writes.
const NEW: u64 = 900;

fn new(number: u64) -> ImportRow {
    ImportRow::new(DeviceId::parse(&format!("new-{number:04}")).unwrap(), "lamps", "a1lamp")
}

fn named(number: u64, name: &str) -> ImportRow {
    ImportRow { device_name: Some(name.into()), ..ImportRow::new(id(number), "lamps", "a1lamp") }
}

fn with_key(number: u64, identity: &str, psk: &str) -> ImportRow {
    let key = Some((identity.to_owned(), Secret::new(psk.into())));
    ImportRow { individual: true, key, ..ImportRow::new(id(number), "lamps", "a1lamp") }
}

fn differences(store: &Postgres) -> u64 {
    store.check_counts().unwrap().different
}

/// Waits until a server has taken back the import that was cut off.
fn wait_for_the_end(store: &Postgres) {
    let deadline = Instant::now() + Duration::from_secs(300);
    while store.import_activity().unwrap().is_unfinished {
        assert!(Instant::now() < deadline, "no one takes the import back");
        thread::sleep(Duration::from_millis(50));
    }
}

/// Imports rows, and ends as a killed process does when all of them are written.
fn cut_off(store: &Postgres, rows: Vec<ImportRow>, before_the_end: &dyn Fn()) {
    let by = by();
    let all = rows.len() as u64;
    let progress = |stage, done, _| {
        if stage == ImportStage::Writing && done == all {
            before_the_end();
            // Drops the connections without ending the transactions.
            std::panic::resume_unwind(Box::new("killed"));
        }
    };
    let job = ImportJob { id: Some(ImportId(7)), progress: &progress, ..ImportJob::new(&by, "cut.csv") };
    let import = || store.import(job, &mut rows.into_iter().map(Ok), &mut |at, why| panic!("{at}: {why:?}"));
    let outcome = std::panic::catch_unwind(AssertUnwindSafe(import));
    assert_eq!(outcome.unwrap_err().downcast_ref::<&str>(), Some(&"killed"));
}

#[test]
#[ignore = "needs PostgreSQL"]
fn an_import_holds_nobody_up_and_its_devices_appear_at_once() {
    let url = postgres::empty();
    let stores = [(); 2].map(|()| Postgres::open(&url).unwrap());
    import(&stores[0], 0..20);
    let (by, states) = (by(), [DeviceState::Disabled, DeviceState::Enabled]);
    let slices = Cell::new(0_usize);
    let progress = |stage, _, _| {
        if stage != ImportStage::Writing {
            return;
        }
        slices.set(slices.get() + 1);
        // The devices whose rows the import has changed can be changed.
        for number in [0, 19] {
            assert!(wait(stores[1].set_state(&id(number), states[slices.get() % 2], &by)).unwrap());
        }
        let last = new(NEW - 1).device;
        assert!(wait(stores[1].device(&new(0).device)).unwrap().is_none());
        assert!(wait(stores[1].device(&last)).unwrap().is_none());
        assert_eq!(stores[1].count().unwrap(), 20);
        assert!(stores[1].import_activity().unwrap().is_unfinished);
    };
    let job = ImportJob { progress: &progress, ..ImportJob::new(&by, "file.csv") };
    let changed = (0..20).map(|number| named(number, &format!("name-{number}")));
    let rows = changed.chain((0..NEW).map(new));
    let report = stores[0].import(job, &mut rows.map(Ok), &mut |at, why| panic!("{at}: {why:?}")).unwrap();
    assert_eq!((report.added, report.changed), (NEW, 20));
    assert!(slices.get() > 1, "{}", slices.get());
    assert_eq!(stores[1].count().unwrap(), 20 + NEW);
    assert!(wait(stores[1].device(&new(0).device)).unwrap().is_some());
    assert_eq!(differences(&stores[1]), 0);
    assert!(!stores[1].import_activity().unwrap().is_unfinished);
}

#[test]
#[ignore = "needs PostgreSQL"]
fn an_import_that_was_killed_is_hidden_and_taken_back_by_any_server() {
    let url = postgres::empty();
    let stores = [(); 2].map(|()| Postgres::open(&url).unwrap());
    let first = [
        with_key(1, "id-1", "00ff"),
        with_key(2, "id-2", "11ee"),
        named(3, "name-3"),
        named(4, "name-4"),
        named(5, "name-5"),
        with_key(6, "id-6", "22dd"),
    ];
    import_rows(&stores[0], first.into_iter());
    let before = wait(stores[1].rows_after(None, 9)).unwrap();
    // Each former name and identity belongs to another device afterwards, or to a new one.
    let moved = ImportRow::new(id(6), "plugs", "a1plug");
    let taken = ImportRow { device_name: Some("name-4".into()), ..new(0) };
    let keyed =
        ImportRow { individual: true, key: Some(("id-2".into(), Secret::new("44bb".into()))), ..new(1) };
    let mut rows = vec![
        with_key(1, "id-9", "33cc"),
        with_key(2, "id-1", "55aa"),
        named(3, "name-9"),
        named(4, "name-3"),
        named(5, "name-8"),
        moved,
        taken,
        keyed,
    ];
    rows.extend((2..NEW).map(new));
    let by = by();
    let changed = Cell::new(false);
    cut_off(&stores[0], rows, &|| {
        let other = &stores[1];
        assert_eq!(wait(other.rows_after(None, 9)).unwrap().len(), 6);
        assert_eq!((other.count().unwrap(), differences(other)), (6, 0));
        let all = filter::Filter::default();
        let found = other.find(&all, &filter::Cursor::First, 99, Duration::from_secs(60)).unwrap();
        assert_eq!(found.devices.len(), 6);
        // The key of a hidden device is not known, and an operator's change does not reach the device.
        assert!(wait(other.individual_key("id-2")).unwrap().found.is_none());
        assert!(!wait(other.delete(&new(5).device, &by)).unwrap());
        let hidden = JournalEntry { device: new(5).device, device_name: "new-0005".into(), ..entry(5) };
        assert_eq!(wait(other.claim(&owner(1), &hidden, NOW)).unwrap(), Claimed::Held);
        let device =
            NewDevice { device: new(5).device, enrollment: "lamps".into(), product_key: "a1lamp".into() };
        let admitted = wait(other.admit(vec![device], Admits::Operator(by.clone()))).unwrap();
        assert_eq!(admitted, [Admission::Later]);
        // A device that has changed since stays as it is.
        assert!(wait(other.set_state(&id(5), DeviceState::Disabled, &by)).unwrap());
        changed.set(true);
    });
    assert!(changed.get());
    wait_for_the_end(&stores[1]);
    let after = wait(stores[1].rows_after(None, 9)).unwrap();
    assert_eq!(after[..4], before[..4]);
    assert_eq!((after[4].state, after[4].name().as_str()), (DeviceState::Disabled, "name-8"));
    assert_eq!(after[5], before[5]);
    assert_eq!((stores[1].count().unwrap(), differences(&stores[1])), (6, 0));
    for (identity, psk) in
        [("id-1", Some("00ff")), ("id-2", Some("11ee")), ("id-6", Some("22dd")), ("id-9", None)]
    {
        let found = wait(stores[1].individual_key(identity)).unwrap().found;
        assert_eq!(found.as_ref().map(|key| key.psk.expose()), psk, "{identity}");
    }
    assert!(stores[1].imports().unwrap().is_empty());
    // The number is free again, and nothing of the import is left.
    let job = ImportJob { id: Some(ImportId(7)), ..ImportJob::new(&by, "file.csv") };
    let report = stores[0].import(job, &mut (0..NEW).map(new).map(Ok), &mut |_, _| ()).unwrap();
    assert_eq!(report.added, NEW);
    let undone =
        stores[1].undo_import(Undo { id: ImportId(7), by: &by, dry_run: false, rest: false }).unwrap();
    assert_eq!((undone.removed, undone.left), (NEW, 0));
    assert_eq!(differences(&stores[1]), 0);
}

#[test]
#[ignore = "needs PostgreSQL"]
fn the_next_import_takes_back_one_that_was_killed() {
    let url = postgres::empty();
    let store = Postgres::open(&url).unwrap();
    import(&store, 0..3);
    let rows = (0..NEW).map(new).chain([named(1, "other")]).collect();
    cut_off(&store, rows, &|| ());
    import(&store, 3..5);
    assert_eq!(store.count().unwrap(), 5);
    assert_eq!(wait(store.device(&id(1))).unwrap().unwrap().device_name, None);
    assert_eq!(differences(&store), 0);
}

#[test]
#[ignore = "needs PostgreSQL"]
fn wrong_counts_are_found_and_corrected_beside_writers() {
    let url = postgres::empty();
    let store = Postgres::open(&url).unwrap();
    import(&store, 0..9);
    postgres::run(
        &url,
        "INSERT INTO count_change (enrollment, productKey, refusal, devices, registered, unissued, issued, activated, \
         disabled, unregistered, cloudDisabled, cloudDeleted, clear) \
         VALUES ('lamps', 'a1lamp', '', 2, 1, 0, 0, 0, 0, 0, 0, 0, 0)",
    );
    let check = store.check_counts().unwrap();
    assert_eq!((check.devices, check.different), (9, 2), "{check:?}");
    import(&store, 9..12);
    let corrected = store.recount().unwrap();
    assert_eq!((corrected.devices, corrected.different), (12, 2), "{corrected:?}");
    assert_eq!((store.count().unwrap(), differences(&store)), (12, 0));
    assert_eq!(store.recount().unwrap().different, 0);
}
