//! Tests of a database that is opened for reading only. Its files must not change. Its newest state
//! must be read, even if other processes have left files behind.

use std::{collections::BTreeMap, fs, os::unix::fs::MetadataExt, path::PathBuf};

use super::*;

/// Returns the names of all files in a folder, with their inode, time of the last write, and
/// content.
fn files(folder: &Path) -> BTreeMap<PathBuf, (u64, i64, Vec<u8>)> {
    let files = fs::read_dir(folder).unwrap().map(|file| file.unwrap().path());
    files
        .map(|path| {
            let found = fs::metadata(&path).unwrap();
            let content = fs::read(&path).unwrap();
            (path, (found.ino(), found.mtime_nsec(), content))
        })
        .collect()
}

/// Reads with all queries, and returns the state of device SN-1. Checks that no file has changed.
fn look(folder: &Path) -> DeviceState {
    let path = folder.join("certdist.db");
    let before = files(folder);
    let store = Sqlite::look(&path, |_| Ok(())).unwrap();
    let state = at_once(store.device(&id("SN-1"))).unwrap().unwrap().state;
    assert_eq!(at_once(store.rows_after(None, 9)).unwrap().len(), 2);
    assert!(at_once(store.claim_of(&id("SN-1"))).unwrap().is_none());
    assert_eq!(at_once(store.history(&id("SN-1"), 9)).unwrap().len(), 1);
    assert_eq!(store.count().unwrap(), 2);
    assert_eq!(store.totals().unwrap()[0].devices, 2);
    assert_eq!(store.verify_audit(&mut |_, _| ()).unwrap().fault, None);
    let mut rows = 0;
    store
        .export(&mut |_, _| {
            rows += 1;
            std::ops::ControlFlow::Continue(())
        })
        .unwrap();
    assert_eq!(rows, 2);
    let elsewhere = tempfile::tempdir().unwrap();
    assert_eq!(store.back_up(&elsewhere.path().join("copy.db"), &mut |_, _| ()).unwrap().devices, 2);
    assert_eq!(Sqlite::examine(&path).unwrap(), Condition::Current);
    assert!(sentence(wait(store.reset(&id("SN-1"), &Actor::system_user()))).contains("only to be read"));
    drop(store);
    let mut after = files(folder);
    // SQLite may rewrite the index of the log, which contains no data.
    let index = folder.join("certdist.db-shm");
    if let (Some(before), Some(after)) = (before.get(&index), after.get_mut(&index)) {
        *after = before.clone();
    }
    assert!(before == after, "{:?}", after.keys());
    state
}

fn filled(directory: &TempDir) -> Sqlite {
    let store = open(directory);
    import(&store, [row("SN-1"), row("SN-2")]);
    wait(store.set_state(&id("SN-1"), DeviceState::Disabled, &Actor::system_user())).unwrap();
    store
}

#[test]
fn whoever_looks_sees_the_newest_state_and_leaves_every_file_as_it_is() {
    let directory = tempfile::tempdir().unwrap();
    let store = filled(&directory);
    assert_eq!(look(directory.path()), DeviceState::Disabled, "beside a server");
    // The first set of files is what a killed process leaves. The second set is a copy without the
    // index of the log.
    for files in [&["", "-wal", "-shm"][..], &["", "-wal"]] {
        let copy = tempfile::tempdir().unwrap();
        for ending in files {
            let name = format!("certdist.db{ending}");
            fs::copy(directory.path().join(&name), copy.path().join(&name)).unwrap();
        }
        assert_eq!(look(copy.path()), DeviceState::Disabled, "{files:?}");
    }
    drop(store);
    assert_eq!(files(directory.path()).len(), 1);
    assert_eq!(look(directory.path()), DeviceState::Disabled, "after the server has ended");
}

#[test]
fn what_another_process_changes_meanwhile_is_not_shown_by_halves() {
    let directory = tempfile::tempdir().unwrap();
    drop(filled(&directory));
    let path = directory.path().join("certdist.db");
    let looks = Sqlite::look(&path, |_| Ok(())).unwrap();
    let outcome = looks.export(&mut |_, _| {
        drop(open(&directory));
        let other = Connection::open(&path).unwrap();
        other.execute_batch("UPDATE device_table SET state = 'enabled'; PRAGMA wal_checkpoint").unwrap();
        std::ops::ControlFlow::Continue(())
    });
    assert!(
        matches!(&outcome, Err(StoreError::Busy(reason)) if reason.contains("run this again")),
        "{outcome:?}"
    );
    // Once a server has opened the database, the log exists, and SQLite's locks protect the reads.
    let server = open(&directory);
    wait(server.set_state(&id("SN-2"), DeviceState::Disabled, &Actor::system_user())).unwrap();
    assert_eq!(at_once(looks.device(&id("SN-2"))).unwrap().unwrap().state, DeviceState::Disabled);
}

#[test]
fn an_older_database_and_an_interrupted_change_are_named_and_left_as_they_are() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("certdist.db");
    Connection::open(&path).unwrap().execute_batch(include_str!("version_1.sql")).unwrap();
    let before = files(directory.path());
    let look = || sentence(Sqlite::look(&path, |_| Ok(())).map(drop));
    assert!(look().contains("has version 1") && look().contains("certdist serve"), "{}", look());
    assert_eq!(Sqlite::examine(&path).unwrap(), Condition::Older(1));
    assert!(sentence(Sqlite::preview(&path, |_| Ok(())).map(drop)).contains("has version 1"));
    assert!(files(directory.path()) == before);
    fs::write(directory.path().join("certdist.db-journal"), "begun").unwrap();
    assert!(look().contains("interrupted"), "{}", look());
}

#[test]
fn a_preview_changes_nothing_whether_there_is_a_database_or_not() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("certdist.db");
    let preview = |dry_run| {
        let store = Sqlite::preview(&path, |_| Ok(())).unwrap();
        let by = Actor::system_user();
        let job = ImportJob { dry_run, ..ImportJob::new(&by, "batch.csv") };
        store.import(job, &mut [row("SN-1"), row("SN-9")].into_iter().map(Ok), &mut |_, _| ())
    };
    assert_eq!(preview(true).unwrap(), ImportReport { added: 2, ..Default::default() });
    assert!(preview(false).is_err());
    assert!(files(directory.path()).is_empty());

    let store = filled(&directory);
    let copy = tempfile::tempdir().unwrap();
    for ending in ["", "-wal", "-shm"] {
        let name = format!("certdist.db{ending}");
        fs::copy(directory.path().join(&name), copy.path().join(&name)).unwrap();
    }
    for (folder, server) in [(copy.path(), None), (directory.path(), Some(store))] {
        let path = folder.join("certdist.db");
        let data = || ["", "-wal"].map(|ending| fs::read(look::beside(&path, ending)).unwrap_or_default());
        let before = data();
        let store = Sqlite::preview(&path, |_| Ok(())).unwrap();
        let by = Actor::system_user();
        let job = ImportJob { dry_run: true, ..ImportJob::new(&by, "batch.csv") };
        let mut rows = [row("SN-1"), row("SN-9")].into_iter().map(Ok);
        let report = store.import(job, &mut rows, &mut |_, _| ()).unwrap();
        assert_eq!(report, ImportReport { added: 1, unchanged: 1, ..Default::default() });
        drop(store);
        assert!(data() == before, "{}", if server.is_some() { "beside a server" } else { "without" });
    }
    assert_eq!(look(copy.path()), DeviceState::Disabled);
}

#[test]
fn audit_entries_of_a_killed_process_are_shown_once_and_stay_in_their_file() {
    let directory = tempfile::tempdir().unwrap();
    let store = filled(&directory);
    let path = directory.path().join("certdist.db");
    // Another process holds the write lock, so the entries stay in the outbox file.
    let other = Connection::open(&path).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    for device in ["SN-1", "SN-2"] {
        let refused = Asked::new(
            AuditEvent::Refused,
            5,
            &id(device),
            ("lamps", "one", "127.0.0.1"),
            format_args!("no"),
        );
        store.audit(refused).unwrap();
    }
    // The copy has the files that a killed process would leave.
    let copy = tempfile::tempdir().unwrap();
    for file in files(directory.path()).keys().filter(|path| !path.ends_with("certdist.db-lock")) {
        fs::copy(file, copy.path().join(file.file_name().unwrap())).unwrap();
    }
    let looks = Sqlite::look(&copy.path().join("certdist.db"), |_| Ok(())).unwrap();
    let entries = |filter: &Filter| {
        let mut entries = Vec::new();
        looks
            .export_audit(filter, &mut |entry, hash| {
                assert_eq!(entry.seq == 0, hash == Link::default());
                entries.push((entry.event, entry.seq));
                std::ops::ControlFlow::Continue(())
            })
            .unwrap();
        entries
    };
    let all = [AuditEvent::Imported, AuditEvent::Disabled, AuditEvent::Refused, AuditEvent::Refused];
    assert_eq!(entries(&Filter::default()), all.into_iter().zip([1, 2, 0, 0]).collect::<Vec<_>>());
    let filter = Filter { device: Some(id("SN-2")), ..Filter::default() };
    assert_eq!(entries(&filter), [(AuditEvent::Refused, 0)]);
    let outbox = || files(copy.path()).keys().filter(|path| is_outbox(path)).count();
    assert_eq!(outbox(), 1);
    // A process that opens the database moves the entries of the outbox into the log.
    drop(open(&copy));
    assert_eq!(outbox(), 0);
    assert_eq!(entries(&Filter::default()), all.into_iter().zip([1, 2, 3, 4]).collect::<Vec<_>>());
    // The entries in a living process's outbox are not exported until they have been moved to the
    // log.
    let looks = Sqlite::look(&path, |_| Ok(())).unwrap();
    let mut living = 0;
    looks
        .export_audit(&Filter::default(), &mut |_, _| {
            living += 1;
            std::ops::ControlFlow::Continue(())
        })
        .unwrap();
    assert_eq!(living, 2);
    other.execute_batch("COMMIT").unwrap();
}

fn is_outbox(path: &Path) -> bool {
    path.to_string_lossy().contains("-audit-")
}
