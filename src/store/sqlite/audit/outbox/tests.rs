//! Tests of the outbox: each entry reaches the log exactly once, no matter at which step its
//! process ends.

use std::{collections::BTreeSet, fs, ops::ControlFlow, path::PathBuf, thread};

use tempfile::TempDir;

use super::*;
use crate::{
    device::DeviceId,
    store::{
        Store,
        audit::{AuditLog, Filter},
        sqlite::Sqlite,
    },
};

fn asked(event: AuditEvent, at: i64) -> Asked {
    let device = DeviceId::parse("SN-1").unwrap();
    Asked::new(event, at, &device, ("lamps", "one", "192.0.2.1"), format_args!("disabled"))
}

/// Returns an entry of a change, which the tests recognize by its time.
fn entry(at: i64) -> Asked {
    asked(AuditEvent::Registered, at)
}

fn repeat(at: i64) -> Asked {
    asked(AuditEvent::Reissued, at)
}

struct Site {
    folder: TempDir,
}

impl Site {
    fn new() -> Self {
        let site = Self { folder: tempfile::tempdir().unwrap() };
        drop(site.open());
        site
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("certdist.db")
    }

    fn open(&self) -> Sqlite {
        Sqlite::open(&self.path()).unwrap()
    }

    fn outbox(&self) -> (Outbox, Mover) {
        outbox(self.path().into(), Arc::default()).unwrap()
    }

    /// Returns the lengths of all outbox files.
    fn files(&self) -> Vec<u64> {
        let files = fs::read_dir(self.folder.path()).unwrap().map(|entry| entry.unwrap());
        let files = files.filter(|file| file.file_name().to_string_lossy().contains("-audit-"));
        files.map(|file| file.metadata().unwrap().len()).collect()
    }

    /// Opens and closes the database, like the process that runs after this one. Checks that the
    /// outbox is empty, and returns the times of all entries.
    fn log(&self) -> Vec<i64> {
        drop(self.open());
        assert!(self.files().is_empty());
        let connection = Connection::open(self.path()).unwrap();
        let rows = |sql| connection.query_row(sql, (), |row| row.get::<_, i64>(0)).unwrap();
        assert_eq!(rows("SELECT count(*) FROM audit_outbox"), 0);
        let mut times = Vec::new();
        let store = self.open();
        let each = &mut |entry: AuditEntry, _| {
            times.push(entry.at);
            ControlFlow::Continue(())
        };
        store.export_audit(&Filter::default(), each).unwrap();
        assert_eq!(store.verify_audit(&mut |_, _| ()).unwrap().fault, None);
        times
    }
}

#[test]
fn entries_of_a_process_that_was_killed_are_moved_by_the_next() {
    let site = Site::new();
    let (outbox, mover) = site.outbox();
    (0..5).for_each(|at| outbox.push(entry(at)).unwrap());
    assert!(site.files()[0] > 0, "they are in the file at once");
    drop((outbox, mover));
    assert_eq!(site.log(), [0, 1, 2, 3, 4]);
}

#[test]
fn a_process_that_is_killed_between_two_steps_of_moving_moves_nothing_twice() {
    let number = 2 * AT_ONCE as i64 / 100;
    let expected: Vec<i64> = (0..number).collect();
    // In each run, the process ends after a different number of steps of the mover.
    for steps in 0..4 {
        let site = Site::new();
        let (outbox, mut mover) = site.outbox();
        (0..number).for_each(|at| outbox.push(entry(at)).unwrap());
        mover.find_sources().unwrap();
        for _ in 0..steps {
            mover.move_some(0).unwrap();
        }
        assert!(site.files()[0] > 0);
        drop((outbox, mover));
        assert_eq!(site.log(), expected, "{steps} steps");
    }
    // The process is killed after it has removed the file and before it deletes the file's row.
    let site = Site::new();
    let (outbox, mut mover) = site.outbox();
    (0..3).for_each(|at| outbox.push(entry(at)).unwrap());
    mover.find_sources().unwrap();
    mover.move_some(0).unwrap();
    mover.sources[0].file.remove().unwrap();
    drop((outbox, mover));
    let connection = Connection::open(site.path()).unwrap();
    let rows: i64 = connection.query_row("SELECT count(*) FROM audit_outbox", (), |row| row.get(0)).unwrap();
    assert_eq!(rows, 1);
    assert_eq!(site.log(), [0, 1, 2], "the row is forgotten");
}

#[test]
fn entries_wait_for_the_end_of_a_group() {
    let site = Site::new();
    let (outbox, mut mover) = site.outbox();
    outbox.hold();
    outbox.push(entry(1)).unwrap();
    outbox.push(entry(2)).unwrap();
    assert!(site.files().is_empty());
    outbox.release();
    assert!(site.files()[0] > 0);
    outbox.push(entry(3)).unwrap();
    mover.write_some().unwrap();
    mover.end();
    assert!(site.files().is_empty());
    // Entries that are held and never released are written when the outbox is dropped.
    outbox.hold();
    outbox.push(entry(4)).unwrap();
    drop((outbox, mover));
    assert_eq!(site.log(), [1, 2, 3, 4]);
}

#[test]
fn a_full_file_is_replaced_while_threads_append_and_no_entry_is_lost() {
    const THREADS: i64 = 4;
    const EACH: i64 = 10_000;
    let site = Site::new();
    let (outbox, mut mover) = site.outbox();
    let mut names = BTreeSet::new();
    thread::scope(|scope| {
        for thread in 0..THREADS {
            let outbox = &outbox;
            scope.spawn(move || {
                for number in 0..EACH {
                    // Half of the threads append their entries in groups of ten.
                    if thread % 2 == 0 && number % 10 == 0 {
                        outbox.hold();
                    }
                    outbox.push(entry(thread * EACH + number)).unwrap();
                    if number % 10 == 9 {
                        outbox.release();
                    }
                }
            });
        }
        let mut moved = 0;
        while moved < THREADS * EACH {
            mover.write_some().unwrap();
            names.extend(mover.sources.iter().map(|source| source.file.name().to_owned()));
            let connection = Connection::open(site.path()).unwrap();
            moved = connection.query_row("SELECT headSeq FROM audit_chain", (), |row| row.get(0)).unwrap();
        }
    });
    assert!(names.len() > 1, "the file was never replaced");
    drop((outbox, mover));
    let mut log = site.log();
    log.sort_unstable();
    assert_eq!(log, (0..THREADS * EACH).collect::<Vec<_>>());
}

#[test]
fn a_line_that_an_append_has_cut_off_spoils_no_other_and_is_appended_again() {
    let site = Site::new();
    let (outbox, mut mover) = site.outbox();
    outbox.push(entry(1)).unwrap();
    let line = format!("{}\n", entry(2).into_line()).into_bytes();
    // Only half of the line fits on the disk. Another thread then appends its entry.
    outbox.shared.file().unwrap().append(&line[..line.len() / 2]).unwrap();
    outbox.push(entry(3)).unwrap();
    let mut rest = line.clone();
    outbox.shared.append(&mut rest);
    assert!(rest.is_empty());
    mover.write_some().unwrap();
    drop((outbox, mover));
    assert_eq!(site.log(), [1, 3, 2]);
}

#[test]
fn the_database_is_the_same_behind_a_symbolic_link() {
    let site = Site::new();
    let other = tempfile::tempdir().unwrap();
    let link = other.path().join("link.db");
    std::os::unix::fs::symlink(site.path(), &link).unwrap();
    let store = Sqlite::open(&link).unwrap();
    store.audit(entry(1)).unwrap();
    assert_eq!(site.files().len(), 1, "beside the file itself");
    drop(store);
    assert_eq!(site.log(), [1]);
}

#[test]
fn a_full_file_stays_while_a_thread_may_still_append_to_it() {
    let site = Site::new();
    let (outbox, mut mover) = site.outbox();
    let number = FULL as i64 / 100;
    (0..number).for_each(|at| outbox.push(entry(at)).unwrap());
    let file = outbox.shared.file().unwrap();
    for _ in 0..3 {
        while mover.write_some().unwrap() {}
    }
    assert!(outbox.shared.file.load().is_none(), "it is full");
    let line = format!("{}\n", entry(number).into_line());
    file.append(line.as_bytes()).unwrap();
    drop(file);
    mover.write_some().unwrap();
    assert!(site.files().is_empty());
    drop((outbox, mover));
    assert_eq!(site.log(), (0..=number).collect::<Vec<_>>());
}

#[test]
fn the_entries_of_a_group_of_requests_are_appended_together() {
    let site = Site::new();
    let store = site.open();
    store.hold();
    store.audit(entry(1)).unwrap();
    assert!(site.files().is_empty());
    store.release();
    assert_eq!(site.files().len(), 1);
    drop(store);
    assert_eq!(site.log(), [1]);
}

/// Returns the number of repeats in the table.
fn repeats(site: &Site) -> i64 {
    let connection = Connection::open(site.path()).unwrap();
    connection.query_row("SELECT coalesce(sum(count), 0) FROM audit_repeat", (), |row| row.get(0)).unwrap()
}

#[test]
fn too_many_repeats_are_dropped_and_counted_and_no_change_is() {
    let site = Site::new();
    let (outbox, mut mover) = site.outbox();
    let sent = MAX_WAITING as i64 / 100;
    (0..sent).for_each(|at| outbox.push(repeat(at)).unwrap());
    assert!(site.files()[0] <= MAX_WAITING);
    let dropped = outbox.shared.dropped.load(Ordering::Relaxed);
    assert!(dropped > 0);
    assert_eq!(outbox.shared.metrics.repeats_dropped.load(Ordering::Relaxed), dropped);
    // For changes, there is still room.
    (0..5).for_each(|at| outbox.push(entry(at)).unwrap());
    assert_eq!(outbox.shared.dropped.load(Ordering::Relaxed), dropped);
    // Once the entries are moved, there is room for new ones.
    while mover.write_some().unwrap() {}
    outbox.push(repeat(sent)).unwrap();
    while mover.write_some().unwrap() {}
    assert_eq!(outbox.shared.dropped.load(Ordering::Relaxed), 0);
    drop((outbox, mover));
    // One entry records how many repeats were dropped.
    let log = site.log();
    assert_eq!(log.iter().filter(|at| **at < 5).count(), 5);
    assert_eq!(repeats(&site), sent - dropped as i64 + 1);
    let connection = Connection::open(site.path()).unwrap();
    let sql = "SELECT detail FROM audit_log WHERE event = 'dropped'";
    let detail: String = connection.query_row(sql, (), |row| row.get(0)).unwrap();
    assert_eq!(detail, format!("{dropped} repeated requests"));
}

#[test]
fn a_change_without_room_fails_and_a_job_that_has_begun_can_end() {
    let site = Site::new();
    let (outbox, mut mover) = site.outbox();
    let waiting = |bytes| outbox.shared.waiting.store(bytes, Ordering::Relaxed);
    let has_room = |event| outbox.push(asked(event, 1)).is_ok();
    waiting(MAX_WAITING + FOR_REFUSALS - 1000);
    assert!(has_room(AuditEvent::Refused) && has_room(AuditEvent::Began));
    waiting(MAX_WAITING + FOR_REFUSALS);
    assert!(!has_room(AuditEvent::Refused) && has_room(AuditEvent::Began));
    waiting(MAX_WAITING + FOR_REFUSALS + FOR_OPERATORS);
    assert!(!has_room(AuditEvent::Began) && has_room(AuditEvent::Ended));
    assert_eq!(outbox.shared.dropped.load(Ordering::Relaxed), 0);
    waiting(0);
    mover.find_sources().unwrap();
    outbox.shared.waiting.store(site.files()[0], Ordering::Relaxed);
    while mover.write_some().unwrap() {}
    drop((outbox, mover));
    // The refusal counts as a repeat, because its device is not in the table.
    assert_eq!((site.log().len(), repeats(&site)), (4, 1));
}

#[test]
fn repeats_wait_in_memory_while_no_file_can_be_written_and_changes_fail() {
    let site = Site::new();
    let (outbox, mover) = site.outbox();
    let away = site.folder.path().with_extension("away");
    fs::rename(site.folder.path(), &away).unwrap();
    outbox.push(repeat(0)).unwrap();
    assert!(outbox.push(entry(10)).is_err());
    // Once the process knows that no file can be written, a change fails even within a group of
    // requests.
    outbox.hold();
    outbox.push(repeat(1)).unwrap();
    assert!(outbox.push(entry(11)).is_err());
    outbox.release();
    outbox.push(repeat(2)).unwrap();
    fs::rename(&away, site.folder.path()).unwrap();
    assert!(site.files().is_empty());
    outbox.push(entry(12)).unwrap();
    drop((outbox, mover));
    assert_eq!(site.log(), [2, 12]);
    assert_eq!(repeats(&site), 3);
}

#[test]
fn repeats_are_counted_once_at_whichever_step_their_process_ends() {
    let number = 2 * AT_ONCE as i64 / 100;
    for steps in 0..4 {
        let site = Site::new();
        let (outbox, mut mover) = site.outbox();
        (0..number).for_each(|at| outbox.push(if at % 3 == 0 { entry(at) } else { repeat(at) }).unwrap());
        mover.find_sources().unwrap();
        for _ in 0..steps {
            mover.move_some(0).unwrap();
        }
        // A transaction that fails moves nothing.
        let other = Connection::open(site.path()).unwrap();
        other.execute_batch("BEGIN IMMEDIATE").unwrap();
        assert!(steps == 3 || mover.move_some(0).is_err());
        other.execute_batch("ROLLBACK").unwrap();
        drop((outbox, mover, other));
        let changes: Vec<i64> = (0..number).step_by(3).collect();
        let log = site.log();
        let log: Vec<i64> = log.into_iter().filter(|at| at % 3 == 0).collect();
        assert_eq!(log, changes, "{steps} steps");
        assert_eq!(repeats(&site), number - changes.len() as i64, "{steps} steps");
    }
}
