//! Tests of behaviour that only the SQLite store has: short waits, a writer over a prepared
//! connection, failing jobs. The tests of all stores are in `store/contract.rs`.

mod auditing;
mod importing;
mod looking;
mod restoring;
mod rolling;
mod sealing;
mod undoing;

use std::sync::atomic::{AtomicU64, Ordering};

use tempfile::TempDir;

use super::*;
use crate::{
    device::Secret,
    store::{
        Bulk, Conflict, ImportError, ImportJob, ImportReport, ImportRow, ImportStage, JournalEntry,
        RegisteredDevice, Rejection,
        audit::Asker,
        claim::{ClaimTime, Claims, Owner, Settlement},
        waiting::{Note, WaitingList},
    },
    testing::store::import,
};

const SHORT: Duration = Duration::from_millis(20);

fn open(directory: &TempDir) -> Sqlite {
    Sqlite::open_waiting(&directory.path().join("certdist.db"), |_| Ok(()), SHORT, SHORT).unwrap()
}

fn wait<T>(future: StoreFuture<'_, T>) -> Result<T, StoreError> {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
}

/// Returns the result of a future that must be ready at its first poll.
fn at_once<T>(mut future: StoreFuture<'_, T>) -> Result<T, StoreError> {
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    match future.as_mut().poll(&mut context) {
        std::task::Poll::Ready(result) => result,
        std::task::Poll::Pending => panic!("a read is ready at its first poll"),
    }
}

fn id(text: &str) -> DeviceId {
    DeviceId::parse(text).unwrap()
}

/// Issues the certificate of a device that [`with_certificate`] has imported.
fn issue<'a>(store: &'a Sqlite, device: &'a DeviceId) -> StoreFuture<'a, Issue> {
    let certificate = registration(device.as_str(), "s3cret").certificate;
    let asker = Asker { enrollment: "lamps".into(), ..Asker::default() };
    // The future borrows the certificate, so the certificate must not be dropped here.
    store.record_issue(device, Box::leak(Box::new(certificate)), 1, asker)
}

fn journal(store: &Sqlite) -> Vec<JournalEntry> {
    at_once(store.open_entries()).unwrap().into_iter().map(|open| open.entry).collect()
}

fn row(device: &str) -> ImportRow {
    ImportRow::new(id(device), "lamps", "a1lamp")
}

fn with_certificate(device: &str, secret: &str) -> ImportRow {
    ImportRow {
        device_name: Some(device.into()),
        device_secret: Some(Secret::new(secret.into())),
        ..row(device)
    }
}

fn with_key(device: &str, identity: &str, psk: &str) -> ImportRow {
    ImportRow { individual: true, key: Some((identity.into(), Secret::new(psk.into()))), ..row(device) }
}

fn registration(device: &str, secret: &str) -> RegisteredDevice {
    RegisteredDevice {
        certificate: Certificate {
            product_key: "a1lamp".into(),
            device_name: device.into(),
            device_secret: Secret::new(secret.into()),
        },
        iot_id: Some(format!("iot-{device}")),
        registered: 1000,
    }
}

/// Returns the conflicts of an import that must fail, each with the index of its row.
fn conflicts(store: &dyn Bulk, rows: impl IntoIterator<Item = ImportRow>) -> Vec<(u64, Conflict)> {
    let mut conflicts = Vec::new();
    let mut rows = rows.into_iter().map(Ok);
    let outcome = store.import(
        ImportJob::new(&Actor::system_user(), "batch.csv"),
        &mut rows,
        &mut |index, rejection| match rejection {
            Rejection::Conflict(conflict) => conflicts.push((index, conflict)),
            other => panic!("row {index}: {other:?}"),
        },
    );
    assert!(
        matches!(outcome, Err(ImportError::Rejected(count)) if count == conflicts.len() as u64),
        "{outcome:?}"
    );
    conflicts
}

fn sentence<T: std::fmt::Debug>(result: Result<T, StoreError>) -> String {
    result.unwrap_err().to_string()
}

#[test]
fn another_certificate_is_named_by_its_column_and_shown_to_no_one() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(&directory);
    let device = id("SN-1");
    import(&store, [row("SN-1")]);
    let entry = JournalEntry {
        device: device.clone(),
        product_key: "a1lamp".into(),
        device_name: "SN-1".into(),
        target: crate::target::DEFAULT.into(),
    };
    let owner = Owner { id: 1, name: "test".into() };
    wait(store.claim(&owner, &entry, ClaimTime { at: 1000, cloud_offset: None })).unwrap();
    import(&store, [with_certificate("SN-1", "s3cret")]);
    let other = Settlement::Registered(registration("SN-1", "0ther"));
    let error = sentence(wait(store.settle(1, &entry, &other)));
    assert!(error.contains("SN-1") && error.contains("deviceSecret"), "{error}");
    assert!(!error.contains("s3cret") && !error.contains("0ther"), "{error}");
    assert_eq!(journal(&store), []);
}

#[test]
fn a_lock_of_another_process_is_busy_and_loses_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(&directory);
    let device = id("SN-1");
    import(&store, [with_certificate("SN-1", "s3cret")]);
    let other = Connection::open(store.path()).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();

    let error = wait(issue(&store, &device)).unwrap_err();
    assert!(matches!(error, StoreError::Busy(_)));
    assert!(error.to_string().contains("certdist.db: another process is writing"), "{error}");
    let mut rows = [Ok(row("SN-2"))].into_iter();
    let error = store
        .import(ImportJob::new(&Actor::system_user(), "batch.csv"), &mut rows, &mut |_, _| ())
        .unwrap_err();
    assert!(matches!(error, ImportError::Store(StoreError::Busy(_))), "{error}");
    // While the lock is held, reads still work, and a command can open the database.
    assert_eq!(open(&directory).count().unwrap(), 1);
    assert_eq!(at_once(store.device(&device)).unwrap().unwrap().first_issued, None);

    other.execute_batch("COMMIT").unwrap();
    assert!(wait(issue(&store, &device)).unwrap().is_first);
}

#[test]
fn every_one_of_many_writers_is_answered_and_what_was_answered_is_durable() {
    const THREADS: usize = 8;
    const EACH: usize = 250;
    let directory = tempfile::tempdir().unwrap();
    // The store has the usual long waits, because many threads of one process write.
    let store = Sqlite::open(&directory.path().join("certdist.db")).unwrap();
    let device = |thread: usize, number: usize| id(&format!("SN-{thread}-{number}"));
    import(
        &store,
        (0..THREADS * EACH).map(|n| with_certificate(device(n / EACH, n % EACH).as_str(), "s3cret")),
    );
    let answered = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (store, answered) = (&store, &answered);
            scope.spawn(move || {
                // Half of the threads wait for each answer; the others submit all requests at
                // once.
                let at_a_time = if thread % 2 == 0 { 1 } else { EACH };
                let devices: Vec<_> = (0..EACH).map(|number| device(thread, number)).collect();
                for devices in devices.chunks(at_a_time) {
                    let futures: Vec<_> = devices.iter().map(|device| issue(store, device)).collect();
                    for future in futures {
                        assert!(wait(future).unwrap().is_first);
                        answered.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    assert_eq!(answered.into_inner(), (THREADS * EACH) as u64);
    // A separate connection reads the state on the disk, independently of this store.
    let other = Connection::open(store.path()).unwrap();
    let issued: i64 = other
        .query_row("SELECT count(*) FROM device_table WHERE firstIssued IS NOT NULL", (), |row| row.get(0))
        .unwrap();
    assert_eq!(issued, (THREADS * EACH) as i64);
}

#[test]
fn what_is_queued_is_written_before_the_store_is_gone() {
    let directory = tempfile::tempdir().unwrap();
    // The store has the usual long waits.
    let store = Sqlite::open(&directory.path().join("certdist.db")).unwrap();
    import(&store, (0..2000).map(|number| with_certificate(&format!("SN-{number}"), "s3cret")));
    for number in 0..2000 {
        // The future is dropped immediately, so no caller waits for the answer.
        drop(issue(&store, &id(&format!("SN-{number}"))));
    }
    drop(store);
    let store = open(&directory);
    for number in 0..2000 {
        let row = at_once(store.device(&id(&format!("SN-{number}")))).unwrap().unwrap();
        assert!(row.first_issued.is_some());
    }
    drop(store);
    // The connection that closed last was able to remove the log.
    assert!(!directory.path().join("certdist.db-wal").exists());
}

#[test]
fn what_is_held_is_one_state_until_it_is_released_and_holds_nobody_up() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(&directory);
    import(&store, [row("SN-1")]);
    let state = || at_once(store.device(&id("SN-1"))).unwrap().unwrap().state;
    let disable = |state| wait(store.set_state(&id("SN-1"), state, &Actor::system_user())).unwrap();
    store.hold();
    // The shared transaction begins with the first read, which therefore sees this change.
    disable(DeviceState::Disabled);
    assert_eq!(state(), DeviceState::Disabled);
    disable(DeviceState::Enabled);
    assert_eq!(state(), DeviceState::Disabled, "a transaction for each read");
    let elsewhere = std::thread::scope(|scope| scope.spawn(state).join().unwrap());
    assert_eq!(elsewhere, DeviceState::Enabled);
    store.hold();
    assert_eq!(state(), DeviceState::Disabled, "the same one");
    store.release();
    assert_eq!(state(), DeviceState::Enabled);
    disable(DeviceState::Disabled);
    assert_eq!(state(), DeviceState::Disabled);
    store.release();
}

struct Nothing;

impl writer::Backlog for Nothing {
    fn write_some(&mut self) -> Result<bool, StoreError> {
        Ok(false)
    }

    fn end(&mut self) {}
}

/// Returns a writer on a database with only the table `t (value)`, and a reader of the same
/// file.
fn bare_writer(directory: &TempDir, pragmas: &str) -> (Writer, Connection) {
    let path = directory.path().join("bare.db");
    let connection = Connection::open(&path).unwrap();
    connection.execute_batch("PRAGMA journal_mode = wal; CREATE TABLE t (value)").unwrap();
    connection.execute_batch(pragmas).unwrap();
    let reader = Connection::open(&path).unwrap();
    (Writer::start(connection, path.into(), SHORT, Nothing, Arc::default()).unwrap(), reader)
}

fn put(value: Vec<u8>, fail: bool) -> impl FnOnce(&Connection) -> Result<(), WriteError> + Send {
    move |connection| {
        connection.prepare_cached("INSERT INTO t VALUES (?1)")?.execute([value])?;
        if fail { Err(StoreError::Failed("not this one".into()).into()) } else { Ok(()) }
    }
}

fn count(reader: &Connection) -> u64 {
    reader.query_row("SELECT count(*) FROM t", (), |row| row.get::<_, i64>(0)).unwrap().unsigned_abs()
}

/// Blocks the writer with one job while `queue` submits other jobs, so that these form one group.
fn as_one_group(writer: &Writer, queue: impl FnOnce()) {
    let (running, begun) = std::sync::mpsc::channel::<()>();
    let (release, held) = std::sync::mpsc::channel::<()>();
    let holding = writer.submit(move |_| {
        let _ = (running.send(()), held.recv());
        Ok(())
    });
    begun.recv().unwrap();
    queue();
    release.send(()).unwrap();
    wait(holding).unwrap();
}

/// Returns the numbers of writes that were committed, refused and failed.
fn outcomes(metrics: &Metrics) -> (u64, u64, u64) {
    let [written, refused, failed] =
        [&metrics.written, &metrics.refused, &metrics.failed].map(|count| count.load(Ordering::Relaxed));
    (written, refused, failed)
}

#[test]
fn a_write_that_the_row_forbids_counts_as_refused_and_not_as_written() {
    let directory = TempDir::new().unwrap();
    let store = open(&directory);
    import(&store, [with_certificate("SN-1", "s3cret")]);
    let metrics = store.metrics().unwrap();
    wait(issue(&store, &id("SN-1"))).unwrap();
    assert!(matches!(wait(issue(&store, &id("SN-2"))), Err(StoreError::Conflict(_))));
    assert_eq!(outcomes(&metrics), (1, 1, 0));
}

#[test]
fn a_job_that_fails_does_not_hurt_the_others_of_its_group() {
    let directory = tempfile::tempdir().unwrap();
    let (writer, reader) = bare_writer(&directory, "");
    let mut answers = Vec::new();
    as_one_group(&writer, || answers.extend((0..100).map(|n| writer.submit(put(vec![n], n % 10 == 3)))));
    for (number, answer) in answers.into_iter().enumerate() {
        match wait(answer) {
            Ok(()) => assert_ne!(number % 10, 3),
            Err(error) => {
                assert_eq!(number % 10, 3);
                assert!(error.to_string().ends_with("not this one"), "{error}");
            }
        }
    }
    assert_eq!(count(&reader), 90);
    // The 91st committed job is the one that blocked the writer.
    assert_eq!(outcomes(&writer.metrics()), (91, 0, 10));
}

#[test]
fn a_disk_that_is_full_is_busy_and_half_of_nothing_is_done() {
    let directory = tempfile::tempdir().unwrap();
    let (writer, reader) = bare_writer(&directory, "PRAGMA max_page_count = 12");
    let mut answers = Vec::new();
    as_one_group(&writer, || {
        answers.extend((0..4).map(|_| writer.submit(put(vec![0; 3 * 4096], false))));
    });
    let answers: Vec<_> = answers.into_iter().map(wait).collect();
    let stored = answers.iter().filter(|answer| answer.is_ok()).count();
    assert!(stored < 4, "the disk was to be full");
    assert!(
        answers
            .iter()
            .flat_map(|answer| answer.as_ref().err())
            .all(|error| { matches!(error, StoreError::Busy(_)) && error.to_string().contains("full") })
    );
    // Exactly the jobs that reported success are stored.
    assert_eq!(count(&reader), stored as u64);
    // The writer still commits a value that fits on the disk.
    wait(writer.submit(put(vec![1], false))).unwrap();
}

#[test]
fn a_database_that_cannot_be_written_fails_with_a_sentence() {
    let directory = tempfile::tempdir().unwrap();
    let (writer, reader) = bare_writer(&directory, "PRAGMA query_only = on");
    let error = wait(writer.submit(put(vec![1], false))).unwrap_err();
    assert!(matches!(error, StoreError::Failed(_)), "{error}");
    assert!(
        error
            .to_string()
            .contains("bare.db: this user may not write it (attempt to write a readonly database)"),
        "{error}"
    );
    assert_eq!(count(&reader), 0);
}

#[test]
fn a_full_queue_turns_the_next_write_away_at_once() {
    let directory = tempfile::tempdir().unwrap();
    let (writer, _) = bare_writer(&directory, "");
    let mut turned_away = None;
    let mut accepted = Vec::new();
    as_one_group(&writer, || {
        for _ in 0..20_000 {
            let mut future = writer.submit(put(vec![1], false));
            let mut context = std::task::Context::from_waker(std::task::Waker::noop());
            match future.as_mut().poll(&mut context) {
                std::task::Poll::Ready(answer) => turned_away = Some(answer),
                std::task::Poll::Pending => accepted.push(future),
            }
        }
    });
    assert!(matches!(turned_away, Some(Err(StoreError::Busy(_)))));
    assert_eq!(accepted.len(), 16_384);
    for future in accepted {
        wait(future).unwrap();
    }
}

#[test]
fn importing_the_same_again_writes_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(&directory);
    let rows = || [row("SN-1"), with_certificate("SN-2", "s3cret"), with_key("SN-3", "id-3", "00ff")];
    assert_eq!(import(&store, rows()), ImportReport { added: 3, ..Default::default() });
    let observer = Connection::open(store.path()).unwrap();
    let version = || observer.pragma_query_value(None, "data_version", |row| row.get::<_, i64>(0)).unwrap();
    let before = version();
    assert_eq!(import(&store, rows()), ImportReport { unchanged: 3, ..Default::default() });
    assert_eq!(version(), before);
}

#[test]
fn the_log_of_a_long_import_does_not_stay_on_the_disk() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(&directory);
    import(&store, (0..20_000).map(|number| row(&format!("SN-{number}"))));
    let log = std::fs::metadata(directory.path().join("certdist.db-wal")).unwrap();
    assert_eq!(log.len(), 0);
}

#[test]
fn two_that_open_a_new_file_at_once_both_get_it() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("certdist.db");
    std::thread::scope(|scope| {
        let opened: Vec<_> = (0..8).map(|_| scope.spawn(|| Sqlite::open(&path).map(drop))).collect();
        for opened in opened {
            opened.join().unwrap().unwrap();
        }
    });
}

#[test]
fn a_probe_writes_to_the_disk_changes_nothing_and_meets_a_lock() {
    let directory = TempDir::new().unwrap();
    let store = open(&directory);
    import(&store, [row("SN-1")]);
    let log = || std::fs::metadata(directory.path().join("certdist.db-wal")).unwrap().len();
    let (before, rows) = (log(), at_once(store.rows_after(None, 10)).unwrap());
    wait(store.probe()).unwrap();
    assert!(log() > before, "nothing was written");
    assert_eq!(at_once(store.rows_after(None, 10)).unwrap(), rows);

    let other = Connection::open(store.path()).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    assert!(matches!(wait(store.probe()), Err(StoreError::Busy(_))));
    let metrics = store.metrics().unwrap();
    assert_eq!((outcomes(&metrics), metrics.waiting.load(Ordering::Relaxed)), ((1, 0, 1), 0));
}

#[test]
fn a_probe_fails_once_the_file_was_replaced_or_removed() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(&directory);
    let (path, aside) = (directory.path().join("certdist.db"), directory.path().join("aside.db"));
    wait(store.probe()).unwrap();
    std::fs::rename(&path, &aside).unwrap();
    let probe = || sentence(wait(store.probe()));
    assert!(probe().contains("was removed or moved") && store.is_in_place().is_err());
    std::fs::copy(&aside, &path).unwrap();
    assert!(probe().contains("was replaced with another file") && probe().contains("certdist restore"));
    std::fs::rename(&aside, &path).unwrap();
    wait(store.probe()).unwrap();
    assert!(store.is_in_place().is_ok());
}

#[test]
fn a_database_without_its_log_is_lost_and_one_whose_folder_was_moved_is_not() {
    let parent = tempfile::tempdir().unwrap();
    let at = |name: &str| parent.path().join(name);
    std::fs::create_dir(at("data")).unwrap();
    let path = at("data/certdist.db");
    let store = Sqlite::open(&path).unwrap();
    let lost = || sentence(store.is_in_place());
    for ending in ["-wal", "-shm"] {
        let log = look::beside(&path, ending);
        std::fs::rename(&log, at("aside")).unwrap();
        assert!(lost().contains(ending) && lost().contains("was removed, or"), "{}", lost());
        std::fs::write(&log, "").unwrap();
        assert!(lost().contains(ending) && lost().contains("was removed or replaced"), "{}", lost());
        std::fs::rename(at("aside"), &log).unwrap();
        store.is_in_place().unwrap();
    }
    // Another process would look for the log beside the file that the link leads to.
    std::fs::rename(&path, at("data/other.db")).unwrap();
    std::os::unix::fs::symlink("other.db", &path).unwrap();
    assert!(lost().contains("other.db-wal") && lost().contains("move the files back"), "{}", lost());
    std::fs::rename(at("data/other.db"), &path).unwrap();
    store.is_in_place().unwrap();
    std::fs::rename(at("data"), at("disk")).unwrap();
    assert!(lost().contains("was removed or moved"));
    std::os::unix::fs::symlink("disk", at("data")).unwrap();
    store.is_in_place().unwrap();
    import(&store, [row("SN-1")]);
    assert_eq!(Sqlite::open(&path).unwrap().count().unwrap(), 1);
    store.is_in_place().unwrap();
}

#[test]
fn the_lock_is_shared_by_those_that_write_and_excludes_a_restore() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("certdist.db");
    let names = || {
        let names = std::fs::read_dir(directory.path()).unwrap().map(|file| file.unwrap().file_name());
        let mut names: Vec<_> = names.map(|name| name.into_string().unwrap()).collect();
        names.sort();
        names
    };
    let (one, two) = (open(&directory), open(&directory));
    assert!(sentence(Lock::alone(&path)).contains("in use"));
    drop(one);
    assert!(sentence(Lock::alone(&path)).contains("in use"));
    // The file that `two` has open was moved away, and another file has its name.
    std::fs::rename(&path, directory.path().join("moved.db")).unwrap();
    std::fs::write(&path, "damaged").unwrap();
    assert!(sentence(Lock::alone(&path)).contains("in use by another process"));
    drop(two);
    for name in names() {
        std::fs::remove_file(directory.path().join(name)).unwrap();
    }
    drop(open(&directory));
    assert_eq!(names(), ["certdist.db"], "the last one removes the lock file");
    // A killed process leaves its lock file behind.
    std::fs::write(directory.path().join("certdist.db-lock"), "").unwrap();
    let lock = Lock::alone(&path).unwrap();
    let error = Sqlite::open(&path).map(drop).unwrap_err();
    assert!(matches!(&error, StoreError::Busy(reason) if reason.contains("being restored")), "{error}");
    drop(lock);
    let store = open(&directory);
    // The database is removed while a server runs. Neither another process nor the next server
    // creates an empty database in its place.
    std::fs::remove_file(&path).unwrap();
    let refused = || {
        let error = sentence(Sqlite::open(&path).map(drop));
        assert!(error.contains("there was one") && error.contains("certdist restore"), "{error}");
        assert!(!path.exists());
    };
    refused();
    drop(store);
    refused();
    for ending in ["-wal", "-shm"] {
        let _ = std::fs::remove_file(look::beside(&path, ending));
    }
    assert_eq!(names(), ["certdist.db-lock"]);
    drop(Lock::alone(&path).unwrap());
    assert_eq!(names(), ["certdist.db-lock"], "a restore that fails changes nothing");
    std::fs::remove_file(directory.path().join("certdist.db-lock")).unwrap();
    drop(open(&directory));
    assert_eq!(names(), ["certdist.db"]);
}

/// If the clock runs ahead, the store forgets imports early. The store must forget each import
/// entirely, not only in part.
#[test]
fn an_import_is_forgotten_as_a_whole() {
    use crate::store::undo::{ImportId, NotUndone, UNDOABLE, Undo, UndoError};

    let folder = tempfile::tempdir().unwrap();
    let store = Sqlite::open(&folder.path().join("certdist.db")).unwrap();
    let by = Actor::system_user();
    let import = |id: u32, row: ImportRow| {
        let job = ImportJob { id: Some(ImportId(id)), ..ImportJob::new(&by, "a.csv") };
        store.import(job, &mut [Ok(row)].into_iter(), &mut |_, _| panic!("it is good")).unwrap()
    };
    let row = |device: &str, name: &str| ImportRow {
        device_name: Some(name.into()),
        ..ImportRow::new(DeviceId::parse(device).unwrap(), "lamp", "a1lamp")
    };
    import(1, row("SN-1", "name"));
    assert_eq!(import(2, row("SN-1", "other")).changed, 1);
    store.clock().set_ahead(UNDOABLE + 1);
    import(3, row("SN-2", "ahead"));
    store.clock().set_ahead(0);
    let undo = store.undo_import(Undo { id: ImportId(2), by: &by, dry_run: false, rest: true });
    assert!(matches!(undo, Err(UndoError::NotUndone(NotUndone::Unknown(ImportId(2))))), "{undo:?}");
    assert!(store.known_as(&DeviceId::parse("SN-1").unwrap().into()).unwrap().is_some());
    assert_eq!(store.imports().unwrap().len(), 1);
}

#[test]
fn devices_that_no_longer_wait_are_removed_in_small_writes() {
    let directory = TempDir::new().unwrap();
    let store = open(&directory);
    let notes = (0..1001).map(|number| {
        let device = id(&format!("SN-{number:04}"));
        let asker = Asker { enrollment: "lamps".into(), identity: "x".into(), address: "192.0.2.1".into() };
        store.note_waiting(Note { device, asker, is_shared: false })
    });
    wait(Box::pin(futures_util::future::try_join_all(notes))).unwrap();
    let metrics = store.metrics().unwrap();
    let written = || metrics.written.load(Ordering::Relaxed);
    let before = written();
    assert_eq!(wait(store.prune_waiting(store.now() + 1)).unwrap(), 1001);
    assert_eq!(written() - before, 3, "500 devices, 500 devices, and the last one");
    assert_eq!(wait(store.prune_waiting(store.now() + 1)).unwrap(), 0);
    assert_eq!(written() - before, 3);
}
