//! Tests of the outbox: each entry reaches the log exactly once, at whichever step its process
//! ends.

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

/// Returns an entry that the tests recognize by its time.
fn entry(at: i64) -> Asked {
    let device = DeviceId::parse("SN-1").unwrap();
    Asked::new(AuditEvent::Refused, at, &device, ("lamps", "one", "192.0.2.1"), format_args!("disabled"))
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
        outbox(self.path().into()).unwrap()
    }

    /// Returns the lengths of all outbox files.
    fn files(&self) -> Vec<u64> {
        let files = fs::read_dir(self.folder.path()).unwrap().map(|entry| entry.unwrap());
        let files = files.filter(|file| file.file_name().to_string_lossy().contains("-audit-"));
        files.map(|file| file.metadata().unwrap().len()).collect()
    }

    /// Opens and closes the database, as the next process does. Checks that the outbox is empty,
    /// and returns the times of all entries.
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
    (0..5).for_each(|at| outbox.push(entry(at)));
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
        (0..number).for_each(|at| outbox.push(entry(at)));
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
    (0..3).for_each(|at| outbox.push(entry(at)));
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
    outbox.push(entry(1));
    outbox.push(entry(2));
    assert!(site.files().is_empty());
    outbox.release();
    assert!(site.files()[0] > 0);
    outbox.push(entry(3));
    mover.write_some().unwrap();
    mover.end();
    assert!(site.files().is_empty());
    // Entries that are held and never released are written when the outbox is dropped.
    outbox.hold();
    outbox.push(entry(4));
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
                    outbox.push(entry(thread * EACH + number));
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
    outbox.push(entry(1));
    let line = format!("{}\n", entry(2).into_line()).into_bytes();
    // Only half of the line fits on the disk. Another thread then appends its entry.
    outbox.shared.file().unwrap().append(&line[..line.len() / 2]).unwrap();
    outbox.push(entry(3));
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
    store.audit(entry(1));
    assert_eq!(site.files().len(), 1, "beside the file itself");
    drop(store);
    assert_eq!(site.log(), [1]);
}

#[test]
fn a_full_file_stays_while_a_thread_may_still_append_to_it() {
    let site = Site::new();
    let (outbox, mut mover) = site.outbox();
    let number = FULL as i64 / 100;
    (0..number).for_each(|at| outbox.push(entry(at)));
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
    store.audit(entry(1));
    assert!(site.files().is_empty());
    store.release();
    assert_eq!(site.files().len(), 1);
    drop(store);
    assert_eq!(site.log(), [1]);
}

#[test]
fn too_many_entries_are_dropped_and_counted() {
    let site = Site::new();
    let (outbox, mut mover) = site.outbox();
    let sent = MAX_WAITING as i64 / 100;
    (0..sent).for_each(|at| outbox.push(entry(at)));
    assert!(site.files()[0] <= MAX_WAITING);
    let dropped = outbox.shared.dropped.load(Ordering::Relaxed);
    assert!(dropped > 0);
    // Once the entries are moved, there is room for new ones.
    while mover.write_some().unwrap() {}
    outbox.push(entry(sent));
    while mover.write_some().unwrap() {}
    assert_eq!(outbox.shared.dropped.load(Ordering::Relaxed), 0);
    drop((outbox, mover));
    // One entry records how many entries were dropped.
    let log = site.log();
    assert_eq!(log.len() as i64, sent - dropped as i64 + 2);
    assert_eq!(log.last(), Some(&sent));
}

#[test]
fn entries_wait_in_memory_while_no_file_can_be_written() {
    let site = Site::new();
    let (outbox, mover) = site.outbox();
    let away = site.folder.path().with_extension("away");
    fs::rename(site.folder.path(), &away).unwrap();
    (0..3).for_each(|at| outbox.push(entry(at)));
    fs::rename(&away, site.folder.path()).unwrap();
    assert!(site.files().is_empty());
    outbox.push(entry(3));
    drop((outbox, mover));
    assert_eq!(site.log(), [0, 1, 2, 3]);
}
