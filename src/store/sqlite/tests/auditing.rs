//! Tests of the audit log: its entries, the transactions that write them, and the faults that
//! `verify` finds.

use std::ops::ControlFlow;

use super::*;
use crate::store::{audit::AuditEvent::*, retention::Retention};
use crate::testing::store::register;

fn asker() -> Asker {
    Asker { enrollment: "lamps".into(), identity: "one".into(), address: "192.0.2.1".into() }
}

fn lead() -> Actor {
    Actor { name: "console:lead".into(), address: Some("192.0.2.9".into()) }
}

fn asked(event: AuditEvent, device: &str, at: UnixSeconds) -> Asked {
    let by = ("lamps", "one", "192.0.2.1");
    Asked::new(event, at, &id(device), by, format_args!("the device is disabled"))
}

/// Returns an entry of a change.
fn entry(device: &str, at: UnixSeconds) -> Asked {
    asked(Registered, device, at)
}

fn events(store: &Sqlite, device: &str) -> Vec<AuditEvent> {
    at_once(store.history(&id(device), 100)).unwrap().into_iter().map(|entry| entry.event).collect()
}

fn verified(store: &Sqlite) -> Chain {
    store.verify_audit(&mut |_, _| ()).unwrap()
}

/// Appends `count` entries about SN-1 with the time `at`, and closes the store.
fn write(directory: &TempDir, count: usize, at: UnixSeconds) {
    let store = open(directory);
    for _ in 0..count {
        store.audit(entry("SN-1", at)).unwrap();
    }
}

#[test]
fn a_devices_history_says_who_did_what_and_from_where() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(&directory);
    import(&store, [row("SN-1"), with_certificate("SN-2", "s3cret")]);
    wait(Box::pin(register(&store, &id("SN-1"), registration("SN-1", "s3cret")))).unwrap();
    let certificate = registration("SN-1", "s3cret").certificate;
    let by = || Asker { enrollment: "lamps".into(), ..asker() };
    let first = wait(store.record_issue(&id("SN-1"), &certificate, 5, by())).unwrap().first;
    wait(store.record_issue(&id("SN-1"), &certificate, 6, by())).unwrap();
    wait(store.set_state(&id("SN-1"), DeviceState::Disabled, &lead())).unwrap();
    wait(store.set_state(&id("SN-1"), DeviceState::Enabled, &lead())).unwrap();
    wait(store.reset(&id("SN-1"), &lead())).unwrap();
    wait(store.delete(&id("SN-1"), &lead())).unwrap();
    wait(store.delete(&id("SN-1"), &lead())).unwrap();
    assert_eq!(events(&store, "SN-1"), [Deleted, Reset, Enabled, Disabled, Issued, Registered]);
    assert_eq!(events(&store, "SN-2"), []);
    let history = at_once(store.history(&id("SN-1"), 5)).unwrap();
    assert_eq!(history.len(), 5, "as many as were asked for");
    let issued = history.last().unwrap();
    let expected = AuditEntry { seq: 3, ..by().entry(Issued, first, id("SN-1"), "a1lamp/SN-1".into()) };
    assert_eq!(*issued, expected);
    let deleted = AuditEntry { seq: 7, device: Some(id("SN-1")), ..lead().entry(Deleted, history[0].at) };
    assert_eq!(history[0], deleted);
    let mut all = Vec::new();
    let listed = store.export_audit(&Filter::default(), &mut |entry, _| {
        all.push(entry);
        ControlFlow::Continue(())
    });
    listed.unwrap();
    let detail = "batch.csv: 2 devices added, 0 changed, 0 unchanged";
    assert_eq!((all[0].event, all[0].detail.as_deref()), (Imported, Some(detail)));
    assert_eq!(all[0].enrollment.as_deref(), Some("lamps"));
    assert!(!format!("{all:?}").contains("s3cret"));
    let chain = verified(&store);
    assert_eq!((chain.entries, chain.last, chain.fault), (7, 7, None));
}

#[test]
fn a_history_is_the_same_from_the_index_and_without_it() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(&directory);
    for at in 0..5000 {
        store.audit(entry(&format!("SN-{}", at % 3), at)).unwrap();
    }
    // This entry has its own block, between the blocks of the other entries.
    wait(store.set_state(&id("SN-1"), DeviceState::Disabled, &lead())).unwrap();
    drop(store);
    write(&directory, 300, 5000);
    let store = open(&directory);
    let mut all = Vec::new();
    let filter = Filter { device: Some(id("SN-1")), ..Default::default() };
    let exported = store.export_audit(&filter, &mut |entry, _| {
        all.push(entry);
        ControlFlow::Continue(())
    });
    exported.unwrap();
    all.reverse();
    assert!(all.len() > 1900);
    let other = Connection::open(store.path()).unwrap();
    let count = |sql| other.query_row(sql, (), |row| row.get::<_, i64>(0)).unwrap();
    assert!(count("SELECT count(*) FROM audit_device") >= 3);
    assert!(count("SELECT max(lastSeq) FROM audit_device") < 5300, "the newest are in no part yet");
    let history = |limit| at_once(store.history(&id("SN-1"), limit)).unwrap();
    assert_eq!(history(10_000), all);
    assert_eq!(history(350), all[..350]);
    assert_eq!(history(7), all[..7]);
    assert_eq!(events(&store, "SN-NOBODY"), []);
    let pruned =
        wait(store.prune(Keep { days: None, rows: Some(2000), repeats: None })).unwrap().changes as usize;
    assert!((2700..=3300).contains(&pruned), "{pruned}");
    let left = all.iter().filter(|entry| entry.seq > pruned as u64).count();
    assert_eq!(history(10_000), all[..left]);
    // The view `audit_log`, for operators who use sqlite3, shows the same entries.
    let seen = count("SELECT count(*) FROM audit_log WHERE deviceId = 'SN-1' AND event = 'registered'");
    assert_eq!(seen as usize, left);
    assert_eq!(count("SELECT min(seq) FROM audit_log") as usize, pruned + 1);
}

#[test]
fn an_issue_that_is_not_committed_has_no_entry() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(&directory);
    assert!(wait(issue(&store, &id("SN-NOBODY"))).is_err());
    assert_eq!(verified(&store).entries, 0);
}

#[test]
fn entries_that_nobody_waits_for_are_written_soon_and_before_the_store_is_gone() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(&directory);
    store.audit(entry("SN-1", 5)).unwrap();
    let deadline = std::time::Instant::now() + Duration::from_secs(10);
    while events(&store, "SN-1").is_empty() {
        assert!(std::time::Instant::now() < deadline, "it is not written");
        std::thread::yield_now();
    }
    for _ in 0..3000 {
        store.audit(entry("SN-2", 6)).unwrap();
    }
    drop(store);
    let chain = verified(&open(&directory));
    assert_eq!((chain.entries, chain.fault), (3001, None));
}

#[test]
fn what_another_process_holds_up_is_written_later() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(&directory);
    let other = Connection::open(store.path()).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    store.audit(entry("SN-1", 5)).unwrap();
    // The lock makes this write fail. The entry that the same thread added before must not be lost.
    assert!(wait(store.set_state(&id("SN-1"), DeviceState::Enabled, &lead())).is_err());
    other.execute_batch("ROLLBACK").unwrap();
    drop(store);
    assert_eq!(events(&open(&directory), "SN-1"), [Registered]);
}

#[test]
fn what_is_too_much_is_dropped_and_counted_in_the_chain() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(&directory);
    let sent = 150_000;
    let other = Connection::open(store.path()).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    for _ in 0..sent {
        store.audit(asked(Reissued, "SN-1", 5)).unwrap();
    }
    other.execute_batch("ROLLBACK").unwrap();
    drop(store);
    // On a slow machine, entries still wait in a file after the end. A reader finds them there.
    let store = Sqlite::look(&directory.path().join("certdist.db"), |_| Ok(())).unwrap();
    let (mut written, mut dropped) = (0, 0);
    let counted = store.export_audit(&Filter::default(), &mut |entry, _| {
        match entry.event {
            Dropped => dropped += entry.detail.unwrap().split(' ').next().unwrap().parse::<u64>().unwrap(),
            _ => written += entry.as_repeats().count,
        }
        ControlFlow::Continue(())
    });
    counted.unwrap();
    assert!(dropped > 0 && written + dropped == sent, "{written} + {dropped}");
    assert_eq!(verified(&store).fault, None);
}

/// Writes twenty entries in five blocks, like five processes that run one after the other.
fn five_blocks(directory: &TempDir) {
    for _ in 0..5 {
        write(directory, 4, 5);
    }
}

#[test]
fn whatever_is_cut_or_changed_is_found() {
    let directory = tempfile::tempdir().unwrap();
    five_blocks(&directory);
    let path = directory.path().join("certdist.db");
    let original = std::fs::read(&path).unwrap();
    for (sql, expected) in [
        (
            "UPDATE audit_block SET entries = replace(entries, 'disabled', 'all right') WHERE lastSeq = 8",
            "entries 5 to 8 are not what was written",
        ),
        (
            "UPDATE audit_block SET entries = '' WHERE lastSeq = 20",
            "entries 17 to 20 are not what was written",
        ),
        ("UPDATE audit_block SET hash = zeroblob(32) WHERE lastSeq = 8", "entries 5 to 8 are not what was"),
        ("DELETE FROM audit_block WHERE lastSeq = 8", "entries 5 to 8 are missing"),
        ("DELETE FROM audit_block WHERE lastSeq IN (8, 12)", "entries 5 to 12 are missing"),
        ("DELETE FROM audit_block WHERE lastSeq > 16", "the last entries, 17 to 20, are missing"),
        ("DELETE FROM audit_block WHERE lastSeq < 8", "entries 1 to 4 are missing"),
        // The block's numbers cover more or fewer entries than the block has.
        ("UPDATE audit_block SET lastSeq = 9 WHERE lastSeq = 8", "entries 5 to 9 are not what was written"),
        ("UPDATE audit_block SET firstSeq = 6 WHERE lastSeq = 8", "entry 5 is missing"),
        (
            "UPDATE audit_block SET lastSeq = 21 WHERE lastSeq = 20; UPDATE audit_chain SET headSeq = 21",
            "entries 17 to 21 are not what was written",
        ),
        (
            "UPDATE audit_chain SET anchorSeq = 4, \
             anchorHash = (SELECT hash FROM audit_block WHERE lastSeq = 8); \
             DELETE FROM audit_block WHERE lastSeq = 4",
            "entries 5 to 8 are not what was written",
        ),
        (
            "UPDATE audit_chain SET anchorSeq = 4, \
             anchorHash = (SELECT hash FROM audit_block WHERE lastSeq = 4); \
             DELETE FROM audit_block WHERE lastSeq = 4",
            "no entry says that entries up to 4 were pruned",
        ),
        (
            "INSERT INTO audit_block SELECT 24, 21, entries, hash FROM audit_block WHERE lastSeq = 20",
            "entries 21 to 24 are not what was written",
        ),
    ] {
        let other = Connection::open(&path).unwrap();
        other.execute_batch(sql).unwrap();
        drop(other);
        let fault = verified(&open(&directory)).fault.unwrap_or_default();
        assert!(fault.starts_with(expected), "{sql}: {fault}");
        std::fs::write(&path, &original).unwrap();
    }
    assert_eq!(verified(&open(&directory)).fault, None);
}

#[test]
fn what_was_cut_off_is_not_pruned_away() {
    let directory = tempfile::tempdir().unwrap();
    five_blocks(&directory);
    let store = open(&directory);
    let other = Connection::open(store.path()).unwrap();
    other.execute_batch("DELETE FROM audit_block WHERE lastSeq = 8").unwrap();
    let all_old = Keep { days: Some(1), rows: None, repeats: None };
    assert_eq!(wait(store.prune(all_old)).unwrap().changes, 4);
    assert_eq!(wait(store.prune(all_old)).unwrap().changes, 0);
    assert_eq!(verified(&store).fault.as_deref(), Some("entries 5 to 8 are missing"));
}

#[test]
fn pruning_by_age_and_by_size_leaves_a_chain_that_holds() {
    let directory = tempfile::tempdir().unwrap();
    write(&directory, 300, 5);
    write(&directory, 700, crate::store::unix_now());
    let store = open(&directory);
    let all = Keep { days: None, rows: None, repeats: None };
    assert_eq!(wait(store.prune(all)).unwrap().changes, 0);
    assert_eq!(wait(store.prune(Keep { days: Some(30), ..all })).unwrap().changes, 300);
    let chain = verified(&store);
    assert_eq!((chain.entries, chain.pruned, chain.last, chain.fault), (701, 300, 1001, None));
    assert_eq!(wait(store.prune(Keep { days: Some(30), ..all })).unwrap().changes, 0);
    // Only whole blocks are removed, so more than 200 entries may remain.
    let pruned = wait(store.prune(Keep { rows: Some(200), ..all })).unwrap().changes;
    let chain = verified(&store);
    assert_eq!((chain.entries, chain.pruned, chain.fault), (702 - pruned, 300 + pruned, None));
    assert!((200..=456).contains(&chain.entries), "{}", chain.entries);
    drop(store);
    // The pruned log accepts new entries.
    write(&directory, 5, crate::store::unix_now());
    let store = open(&directory);
    assert_eq!(verified(&store).fault, None);
    let other = Connection::open(store.path()).unwrap();
    other.execute_batch("UPDATE audit_chain SET anchorSeq = anchorSeq + 1").unwrap();
    assert!(verified(&store).fault.is_some());
}

/// A log in the form of version 3: three entries. An entry before them was pruned.
pub(super) const VERSION_3: &str = include_str!("version_3_audit.sql");

#[test]
fn a_log_of_version_3_is_taken_over_with_what_is_wrong_with_it() {
    for (change, expected) in [
        ("", None),
        ("UPDATE audit_log SET who = 'two' WHERE seq = 3", Some("entries 2 to 4 are not what was written")),
        ("DELETE FROM audit_log WHERE seq = 3", Some("entry 3 is missing")),
        ("DELETE FROM audit_log WHERE seq = 2", Some("entry 2 is missing")),
        ("DELETE FROM audit_log WHERE seq = 4", Some("the last entries, 4 to 4, are missing")),
        ("UPDATE audit_chain SET headHash = zeroblob(32)", Some("the chain ends with entry 4")),
    ] {
        let directory = tempfile::tempdir().unwrap();
        let other = Connection::open(directory.path().join("certdist.db")).unwrap();
        other.execute_batch(VERSION_3).unwrap();
        other.execute_batch(change).unwrap();
        drop(other);
        let store = open(&directory);
        let chain = verified(&store);
        match expected {
            None => assert_eq!((chain.entries, chain.pruned, chain.last, chain.fault), (3, 1, 4, None)),
            Some(expected) => {
                assert!(
                    chain.fault.as_ref().is_some_and(|fault| fault.contains(expected)),
                    "{change}: {chain:?}"
                );
            }
        }
        if change.is_empty() {
            let other = Connection::open(store.path()).unwrap();
            let shown = other.query_row("SELECT sum(count) FROM audit_log", (), |row| row.get(0));
            assert_eq!(shown, Ok(3), "the view of the current version has all entries");
            assert_eq!(events(&store, "SN-1"), [Refused, Issued]);
            let expected = AuditEntry { seq: 2, ..asker().entry(Issued, 5, id("SN-1"), "a1/\"n\"".into()) };
            assert_eq!(at_once(store.history(&id("SN-1"), 9)).unwrap()[1], expected);
        }
        // The migrated log accepts new entries.
        wait(store.probe()).unwrap();
        store.audit(entry("SN-1", 7)).unwrap();
        drop(store);
        assert_eq!(verified(&open(&directory)).fault.is_none(), expected.is_none(), "{change}");
    }
}

fn kept(store: &Sqlite) -> usize {
    at_once(store.history(&id("SN-1"), 10_000)).unwrap().len()
}

#[test]
fn entries_of_a_process_that_ends_while_another_has_the_table_are_not_lost() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(&directory);
    import(&store, [row("SN-1")]);
    let other = Connection::open(store.path()).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    for _ in 0..1000 {
        store.audit(entry("SN-1", 5)).unwrap();
    }
    drop(store);
    other.execute_batch("COMMIT").unwrap();
    drop(other);
    // The next process writes the kept entries.
    let store = open(&directory);
    let deadline = std::time::Instant::now() + Duration::from_secs(10);
    while kept(&store) < 1000 {
        assert!(std::time::Instant::now() < deadline, "{} entries", kept(&store));
        std::thread::yield_now();
    }
    assert_eq!(verified(&store).fault, None);
    drop(store);
    let store = open(&directory);
    std::thread::sleep(Duration::from_millis(600));
    assert_eq!(kept(&store), 1000, "once");
}

#[test]
fn a_clock_that_is_a_year_ahead_removes_nothing_for_its_age() {
    const DAY: i64 = 86_400;
    let directory = tempfile::tempdir().unwrap();
    let today = crate::store::unix_now();
    write(&directory, 300, today - 40 * DAY);
    write(&directory, 300, today);
    let store = open(&directory);
    let keep = Keep { days: Some(30), rows: None, repeats: None };
    let mut retention = Retention::default();
    let prune = |confirmed, retention: &mut Retention| {
        wait(Box::pin(retention.apply(&store, keep, confirmed))).unwrap().changes
    };
    store.clock().set_ahead(400 * DAY);
    assert_eq!(prune(false, &mut retention), 0);
    // An entry with a wrong time does not make the wrong clock credible.
    wait(store.set_state(&id("SN-1"), DeviceState::Disabled, &lead())).unwrap();
    let connection = Connection::open(store.path()).unwrap();
    audit::append(&connection, &AuditEntry::new(Sealed, today + 400 * DAY)).unwrap();
    assert_eq!(prune(false, &mut retention), 0);
    // The clock is set back to the right time.
    store.clock().set_ahead(0);
    assert_eq!(prune(false, &mut retention), 300);
    // A year passes. The entries expire only once IoT Platform confirms the time.
    store.clock().set_ahead(400 * DAY);
    assert_eq!(prune(false, &mut retention), 0);
    assert_eq!(prune(true, &mut retention), 300);
    assert_eq!(verified(&store).fault, None);
}
