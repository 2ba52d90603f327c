//! Tests of undos that take an import back in short transactions: no one waits for them, changes
//! that are made meanwhile stay, and an undo that was cut off is completed.

use std::{cell::Cell, sync::atomic::AtomicBool, time::Instant};

use super::{
    super::{reversal::BLOCKED, unfinished::CHANGED},
    *,
};
use crate::store::{
    filter::{Cursor, Filter},
    undo::{ImportId, NotUndone, Undo, UndoError, Undone},
};

const ID: ImportId = ImportId(7);
const SOON: Duration = Duration::from_secs(9);
const LONG: Duration = Duration::from_secs(60);

fn anna() -> Actor {
    Actor { name: "user anna".into(), address: Some("192.0.2.7".into()) }
}

/// Opens a store that waits long for its locks, because its own recovery may hold them for a moment.
fn open(directory: &TempDir) -> Sqlite {
    Sqlite::open_waiting(&directory.path().join("certdist.db"), |_| Ok(()), LONG, LONG).unwrap()
}

fn named(device: &str, name: &str) -> ImportRow {
    ImportRow { device_name: Some(name.into()), ..row(device) }
}

fn with_iot_id(device: &str, iot_id: &str) -> ImportRow {
    ImportRow { iot_id: Some(iot_id.into()), ..row(device) }
}

fn import_as(store: &Sqlite, id: ImportId, rows: impl IntoIterator<Item = ImportRow>) -> ImportReport {
    let by = Actor::system_user();
    let job = ImportJob { id: Some(id), ..ImportJob::new(&by, "file.csv") };
    store.import(job, &mut rows.into_iter().map(Ok), &mut |at, why| panic!("{at}: {why:?}")).unwrap()
}

fn undo(store: &Sqlite, rest: bool) -> Result<Undone, UndoError> {
    store.undo_import(Undo { id: ID, by: &anna(), dry_run: false, rest })
}

fn ids(store: &Sqlite) -> Vec<String> {
    at_once(store.rows_after(None, 9999)).unwrap().iter().map(|row| row.id.to_string()).collect()
}

fn entry(device: &str) -> JournalEntry {
    JournalEntry {
        device: id(device),
        product_key: "a1lamp".into(),
        device_name: device.into(),
        target: "default".into(),
    }
}

fn claim(store: &Sqlite, device: &str) -> crate::store::claim::Claimed {
    let owner = Owner { id: 1, name: "test".into() };
    wait(store.claim(&owner, &entry(device), ClaimTime { at: 1000, cloud_offset: None })).unwrap()
}

/// Marks the import as being undone, and returns the lock of imports. Nothing is taken back yet.
fn begin(store: &Sqlite) -> (lock::ImportLock, Connection) {
    let lock = lock::ImportLock::attempt(store.path()).unwrap().unwrap();
    let writer = connection::open_again(store.path(), LONG).unwrap();
    let by = anna();
    let how = Undo { id: ID, by: &by, dry_run: false, rest: true };
    undo::begin(&writer, 5000, how).unwrap().unwrap();
    (lock, writer)
}

fn undone_entries(store: &Sqlite) -> Vec<AuditEntry> {
    let mut entries = Vec::new();
    let filter = crate::store::audit::Filter::default();
    store
        .export_audit(&filter, &mut |entry, _| {
            entries.push(entry);
            std::ops::ControlFlow::Continue(())
        })
        .unwrap();
    entries.retain(|entry| entry.event == AuditEvent::Undone);
    entries
}

#[test]
fn no_transaction_of_an_undo_changes_more_than_some_rows() {
    const ROWS: usize = 3000;
    let directory = tempfile::tempdir().unwrap();
    let store = open(&directory);
    let changed = |name: &'static str| {
        (0..ROWS).map(move |number| named(&format!("A-{number:05}"), &format!("{name}-{number}")))
    };
    import(&store, changed("former"));
    let before = at_once(store.rows_after(None, ROWS + 1)).unwrap();
    let added = (0..ROWS).map(|number| with_key(&format!("B-{number:05}"), &format!("id-{number}"), "00ff"));
    import_as(&store, ID, changed("name").chain(added));
    CHANGED.set((0, 0));
    let undone = undo(&store, false).unwrap();
    let all = ROWS as u64;
    assert_eq!(undone, Undone { removed: all, certificates: 0, restored: all, left: 0 });
    // Besides the row itself, each row changes its key, its former values and its counts.
    let most = CHANGED.get().1;
    assert!((1..=5000).contains(&most), "{most}");
    assert_eq!(at_once(store.rows_after(None, ROWS + 1)).unwrap(), before);
    assert_eq!(store.check_counts().unwrap().different, 0);
}

#[test]
fn an_undo_holds_nobody_up_and_its_devices_disappear_at_once() {
    const ROWS: usize = 10_000;
    let directory = tempfile::tempdir().unwrap();
    let store = open(&directory);
    import(&store, (0..2000).map(|number| with_certificate(&format!("SN-{number}"), "s3cret")));
    import_as(&store, ID, (0..ROWS).map(|number| row(&format!("new-{number:05}"))));
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let undoing = scope.spawn(|| {
            let undone = undo(&store, false);
            is_over.store(true, Ordering::SeqCst);
            undone
        });
        let mut issued = 0;
        while !is_over.load(Ordering::SeqCst) {
            let device = id(&format!("SN-{}", issued % 2000));
            assert!(wait(issue(&store, &device)).is_ok());
            issued += 1;
            // If the last device is gone, then so are all others.
            if at_once(store.device(&id("new-09999"))).unwrap().is_none() {
                assert_eq!(at_once(store.device(&id("new-05000"))).unwrap(), None);
                let listed = store.find(&Filter::default(), &Cursor::After(id("SN-999")), 9, SOON).unwrap();
                assert!(listed.devices.is_empty(), "{listed:?}");
                assert_eq!(store.check_counts().unwrap().different, 0);
            }
        }
        assert_eq!(undoing.join().unwrap().unwrap().removed, ROWS as u64);
        assert!(issued > 5, "{issued}");
    });
    assert_eq!(store.count().unwrap(), 2000);
    assert_eq!(store.check_counts().unwrap().different, 0);
    assert!(!directory.path().join("certdist.db-import").exists());
}

#[test]
fn what_changes_between_the_check_and_the_end_stays() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(&directory);
    import(
        &store,
        [named("C-1", "name-1"), named("C-2", "name-2"), with_iot_id("C-3", "iot-XX-1"), row("XX-1")],
    );
    let added = ["SN-1", "SN-2", "SN-3", "SN-5", "SN-6"].map(row);
    let changed = [named("C-1", "other-1"), named("C-2", "other-2"), with_iot_id("C-3", "iot-other")];
    import_as(&store, ID, added.into_iter().chain([with_certificate("SN-4", "s3cret")]).chain(changed));
    assert!(matches!(claim(&store, "SN-2"), crate::store::claim::Claimed::Yours(_)));
    let (lock, _writer) = begin(&store);

    // The devices to remove are hidden, except the one that is being registered. They are counted.
    assert_eq!(ids(&store), ["C-1", "C-2", "C-3", "SN-2", "XX-1"]);
    assert_eq!((store.check_counts().unwrap().different, store.count().unwrap()), (0, 10));
    assert!(!wait(store.set_state(&id("SN-1"), DeviceState::Disabled, &anna())).unwrap());
    // Requests that were on their way: a claim, a registration, an issue, a change by an operator. A
    // device that is hidden already cannot be claimed.
    assert_eq!(claim(&store, "SN-3"), crate::store::claim::Claimed::Held);
    assert!(!ids(&store).contains(&"SN-3".to_owned()));
    let registered = Settlement::Registered(registration("SN-2", "s3cret"));
    wait(store.settle(1, &entry("SN-2"), &registered)).unwrap();
    wait(issue(&store, &id("SN-4"))).unwrap();
    assert!(wait(store.set_state(&id("C-2"), DeviceState::Disabled, &anna())).unwrap());
    // Another device gets the IotId that a device had before.
    claim(&store, "XX-1");
    wait(store.settle(1, &entry("XX-1"), &Settlement::Registered(registration("XX-1", "s3cret")))).unwrap();

    // The next import completes the undo, in the name of the operator who asked for it.
    drop(lock);
    import(&store, [row("SN-7")]);
    assert_eq!(ids(&store), ["C-1", "C-2", "C-3", "SN-2", "SN-4", "SN-7", "XX-1"]);
    let device = |device: &str| at_once(store.device(&id(device))).unwrap().unwrap();
    assert_eq!([device("C-1").name(), device("C-2").name()], ["name-1", "other-2"]);
    assert_eq!(device("C-3").iot_id.as_deref(), Some("iot-other"));
    assert!(device("SN-2").certificate.is_some() && device("SN-4").first_issued.is_some());
    assert_eq!((store.check_counts().unwrap().different, store.count().unwrap()), (0, 7));
    let [done] = &undone_entries(&store)[..] else { panic!("one entry") };
    let detail = "import 00000007 of file.csv: 4 devices removed, 1 restored, 4 left";
    assert_eq!(done.detail.as_deref(), Some(detail));
    assert_eq!((done.who.as_deref(), done.address.as_deref()), (Some("user anna"), Some("192.0.2.7")));
    let records = store.imports().unwrap();
    assert_eq!(records.iter().find(|record| record.id == ID).unwrap().undone, Some(5000));
    assert!(matches!(undo(&store, true), Err(UndoError::NotUndone(NotUndone::Again(ID)))));
    // The devices that were left are still known.
    let left = store.left_of(ID, 9).unwrap();
    assert_eq!(left.first, ["C-2", "C-3", "SN-2", "SN-4"].map(id));
}

#[test]
fn an_undo_that_is_cut_off_after_any_transaction_is_completed() {
    let rows = |names: &'static str| {
        let named =
            (0..600).map(move |number| named(&format!("A-{number:04}"), &format!("{names}-{number}")));
        named.chain((0..600).map(|number| with_certificate(&format!("B-{number:04}"), "s3cret")))
    };
    let all = Undone { removed: 600, certificates: 600, restored: 600, left: 0 };
    // A slow machine has more transactions, so the steps become longer.
    for turns in std::iter::successors(Some(1_u32), |turns| Some(turns + 1 + turns / 4)).take(25) {
        let directory = tempfile::tempdir().unwrap();
        let store = open(&directory);
        import(&store, rows("former").take(600));
        let before = at_once(store.rows_after(None, 9999)).unwrap();
        import_as(&store, ID, rows("name"));
        let (lock, writer) = begin(&store);
        let left = Cell::<u32>::new(turns);
        let is_stopped = || {
            left.set(left.get().saturating_sub(1));
            left.get() == 0
        };
        let cut_off = unfinished::take_back(&writer, &is_stopped).unwrap();
        let is_complete = cut_off.is_some();
        drop((writer, lock));
        match cut_off {
            Some((id, undone)) => assert_eq!((id, undone), (ID, all), "{turns}"),
            // The same command again completes what it has begun, unless the recovery is faster.
            None => match undo(&store, false) {
                Ok(undone) => assert_eq!(undone, all, "{turns}"),
                Err(UndoError::NotUndone(NotUndone::Again(ID))) => {}
                Err(error) => panic!("{turns}: {error}"),
            },
        }
        assert_eq!(at_once(store.rows_after(None, 9999)).unwrap(), before, "{turns}");
        assert_eq!(store.check_counts().unwrap().different, 0, "{turns}");
        let [done] = &undone_entries(&store)[..] else { panic!("one entry") };
        let detail = done.detail.as_deref().unwrap();
        assert!(detail.ends_with("600 devices removed, 600 restored, 0 left"), "{turns}: {detail}");
        if is_complete {
            assert!(turns > 4, "it has more transactions: {turns}");
            return;
        }
    }
    panic!("it never ends");
}

#[test]
fn an_open_server_completes_an_undo() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(&directory);
    import_as(&store, ID, [row("SN-1")]);
    let (lock, writer) = begin(&store);
    drop((writer, lock));
    let deadline = Instant::now() + LONG;
    while store.import_activity().unwrap().is_unfinished {
        assert!(Instant::now() < deadline, "it is not completed");
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!((ids(&store).len(), undone_entries(&store).len()), (0, 1));
}

#[test]
fn of_two_undos_at_once_one_is_done() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(&directory);
    import_as(&store, ID, (0..3000).map(|number| row(&format!("SN-{number}"))));
    let outcomes = std::thread::scope(|scope| {
        let two = [scope.spawn(|| undo(&store, false)), scope.spawn(|| undo(&store, false))];
        two.map(|one| one.join().unwrap())
    });
    let is_done = |outcome: &&Result<Undone, UndoError>| matches!(outcome, Ok(Undone { removed: 3000, .. }));
    let is_again = |outcome: &&Result<Undone, UndoError>| {
        matches!(outcome, Err(UndoError::NotUndone(NotUndone::Again(ID))))
    };
    assert_eq!(outcomes.iter().filter(is_done).count(), 1, "{outcomes:?}");
    assert_eq!(outcomes.iter().filter(is_again).count(), 1, "{outcomes:?}");
    assert_eq!(undone_entries(&store).len(), 1);
}

#[test]
fn a_dry_run_says_that_the_import_is_being_undone() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(&directory);
    import_as(&store, ID, [row("SN-1")]);
    let (_lock, _writer) = begin(&store);
    let by = anna();
    let dry_run = Undo { id: ID, by: &by, dry_run: true, rest: false };
    let looking = Sqlite::look(store.path(), |_| Ok(())).unwrap();
    for store in [&store, &looking] {
        let error = store.undo_import(dry_run).unwrap_err().to_string();
        assert!(error.contains("import 00000007 is being undone; try again"), "{error}");
    }
}

/// In the file, each device takes the name of the device before it, and the IDs are in another order.
#[test]
fn a_long_chain_of_names_comes_back_in_one_pass() {
    const ROWS: usize = 900;
    let directory = tempfile::tempdir().unwrap();
    let store = open(&directory);
    let ids = |number: usize| format!("SN-{:04}", number * 389 % ROWS);
    import(&store, (0..ROWS).map(|number| named(&ids(number), &format!("name-{number}"))));
    let before = at_once(store.rows_after(None, ROWS)).unwrap();
    let new = |number: usize| match number {
        0 => "name-new".to_owned(),
        number => format!("name-{}", number - 1),
    };
    import_as(&store, ID, (0..ROWS).map(|number| named(&ids(number), &new(number))));
    let (_lock, writer) = begin(&store);
    BLOCKED.set(0);
    unfinished::take_back(&writer, &|| false).unwrap();
    assert_eq!(BLOCKED.get(), 0);
    assert_eq!(at_once(store.rows_after(None, ROWS)).unwrap(), before);
}

#[test]
fn a_device_that_lost_its_key_while_it_was_being_registered_keeps_the_new_one() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(&directory);
    import(&store, [with_key("SN-1", "id-1", "00ff"), row("SN-2")]);
    import_as(&store, ID, [with_key("SN-1", "id-9", "11ee"), row("SN-3")]);
    claim(&store, "SN-1");
    let (lock, writer) = begin(&store);
    wait(store.release_claim(1, &id("SN-1"), false)).unwrap();
    unfinished::take_back(&writer, &|| false).unwrap();
    drop(lock);
    assert!(at_once(store.individual_key("id-9")).unwrap().found.is_some());
    assert_eq!(ids(&store), ["SN-1", "SN-2"]);
}

/// While it is hidden, a device that an import adds or an undo removes may still have the name or
/// the `IotId` of another device. Only the end of the import or undo decides whether it keeps them,
/// so no refusal is stored.
#[test]
fn a_hidden_device_causes_no_refusal() {
    use crate::store::claim::Claimed;
    let directory = tempfile::tempdir().unwrap();
    let store = open(&directory);
    import(&store, [row("SN-1"), row("SN-2"), row("SN-3")]);
    import_as(&store, ID, [with_iot_id("SN-8", "iot-SN-1"), row("SN-9")]);
    let other = Connection::open(store.path()).unwrap();
    claim(&store, "SN-1");
    let (lock, _writer) = begin(&store);
    // Only a change by hand can take the name of a row, because an import compares names.
    other.execute("UPDATE device_table SET deviceName = 'SN-2' WHERE deviceId = 'SN-9'", ()).unwrap();
    assert_eq!(claim(&store, "SN-2"), Claimed::Held);
    let registered = Settlement::Registered(registration("SN-1", "s3cret"));
    let later = wait(store.settle(1, &entry("SN-1"), &registered)).unwrap_err();
    assert!(matches!(&later, StoreError::Busy(_)), "{later}");
    assert_eq!(at_once(store.device(&id("SN-1"))).unwrap().unwrap().refusal, None);
    drop(lock);
    import(&store, [row("SN-7")]);
    wait(store.settle(1, &entry("SN-1"), &registered)).unwrap();
    assert!(matches!(claim(&store, "SN-2"), Claimed::Yours(_)));
    // A device that is not hidden causes a refusal.
    import(&store, [with_iot_id("SN-8", "iot-SN-3")]);
    claim(&store, "SN-3");
    let registered = Settlement::Registered(registration("SN-3", "s3cret"));
    let refused = wait(store.settle(1, &entry("SN-3"), &registered)).unwrap_err();
    assert!(matches!(&refused, StoreError::Conflict(_)), "{refused}");
}
