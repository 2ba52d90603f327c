//! The audit log: what is in it, in which step, and what `verify` finds.

use super::*;
use crate::store::audit::AuditEvent::*;

fn asker() -> Asker {
    Asker { enrollment: "lamps".into(), identity: "one".into(), address: "192.0.2.1".into() }
}

fn refused(device: &str, at: UnixSeconds) -> Asked {
    Asked::new(Refused, at, &id(device), ("lamps", "one", "192.0.2.1"), &["the device is disabled"])
}

fn events(store: &Sqlite, device: &str) -> Vec<AuditEvent> {
    at_once(store.history(&id(device), 100)).unwrap().into_iter().map(|entry| entry.event).collect()
}

fn verified(store: &Sqlite) -> audit::Chain {
    store.verify_audit(|_, _| ()).unwrap()
}

/// Writes `count` refusals of SN-1, of this time, to the end.
fn write(directory: &TempDir, count: usize, at: UnixSeconds) {
    let store = open(directory);
    for _ in 0..count {
        store.audit(refused("SN-1", at));
    }
}

#[test]
fn a_devices_history_says_who_did_what_and_from_where() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(&directory);
    import(&store, [row("SN-1"), with_certificate("SN-2", "s3cret")]);
    wait(store.store_registration(&id("SN-1"), &registration("s3cret"))).unwrap();
    wait(store.record_issue(&id("SN-1"), 5, asker())).unwrap();
    wait(store.record_issue(&id("SN-1"), 6, asker())).unwrap();
    wait(store.set_state(&id("SN-1"), DeviceState::Disabled)).unwrap();
    wait(store.set_state(&id("SN-1"), DeviceState::Enabled)).unwrap();
    wait(store.reset(&id("SN-1"))).unwrap();
    wait(store.delete(&id("SN-1"))).unwrap();
    wait(store.delete(&id("SN-1"))).unwrap();
    assert_eq!(events(&store, "SN-1"), [Deleted, Reset, Enabled, Disabled, Issued, Registered]);
    assert_eq!(events(&store, "SN-2"), []);
    let history = at_once(store.history(&id("SN-1"), 5)).unwrap();
    assert_eq!(history.len(), 5, "as many as were asked for");
    let issued = history.last().unwrap();
    let expected = AuditEntry { seq: 3, ..asker().entry(Issued, 5, id("SN-1"), "a1lamp/name-1".into()) };
    assert_eq!(*issued, expected);
    assert!(history[0].who.as_ref().is_some_and(|who| who.contains("uid")), "{history:?}");
    let mut all = Vec::new();
    let listed = store.export_audit(&Default::default(), |entry, _| {
        all.push(entry);
        Ok::<_, StoreError>(())
    });
    listed.unwrap();
    assert_eq!((all[0].event, all[0].detail.as_deref()), (Imported, Some("2 devices added, 0 changed")));
    assert!(!format!("{all:?}").contains("s3cret"));
    let chain = verified(&store);
    assert_eq!((chain.entries, chain.last, chain.fault), (7, 7, None));
}

#[test]
fn a_history_is_the_same_before_and_after_entries_are_indexed_and_pruned() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(&directory);
    for at in 0..300 {
        store.audit(refused(&format!("SN-{}", at % 3), at));
    }
    drop(store);
    let store = open(&directory);
    let history = |limit| at_once(store.history(&id("SN-1"), limit)).unwrap();
    let before = history(1000);
    assert_eq!(before.len(), 100);
    let other = Connection::open(store.path()).unwrap();
    audit::index(&other, 301).unwrap();
    let indexed = || other.query_row("SELECT count(*) FROM audit_device", (), |row| row.get::<_, i64>(0));
    assert_eq!(indexed().unwrap(), 0, "too few to be worth it");
    audit::index(&other, 300).unwrap();
    assert_eq!(indexed().unwrap(), 300);
    assert_eq!(history(1000), before);
    assert_eq!(history(7), before[..7]);
    assert_eq!(wait(store.prune_audit(Keep { days: None, rows: Some(30) })).unwrap(), 270);
    assert_eq!((history(1000), indexed().unwrap()), (before[..10].to_vec(), 30));
}

#[test]
fn an_issue_that_is_not_committed_has_no_entry() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(&directory);
    assert!(wait(store.record_issue(&id("SN-NOBODY"), 5, asker())).is_err());
    assert_eq!(verified(&store).entries, 0);
}

#[test]
fn entries_that_nobody_waits_for_are_written_soon_and_before_the_store_is_gone() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(&directory);
    store.audit(refused("SN-1", 5));
    let deadline = std::time::Instant::now() + Duration::from_secs(10);
    while events(&store, "SN-1").is_empty() {
        assert!(std::time::Instant::now() < deadline, "it is not written");
        std::thread::yield_now();
    }
    for _ in 0..3000 {
        store.audit(refused("SN-2", 6));
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
    store.audit(refused("SN-1", 5));
    // A write of the same thread has been tried, and so, before or after, the entry.
    assert!(wait(store.set_state(&id("SN-1"), DeviceState::Enabled)).is_err());
    other.execute_batch("ROLLBACK").unwrap();
    drop(store);
    assert_eq!(events(&open(&directory), "SN-1"), [Refused]);
}

#[test]
fn what_is_too_much_is_dropped_and_counted_in_the_chain() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(&directory);
    let sent = 100_000;
    let other = Connection::open(store.path()).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    for _ in 0..sent {
        store.audit(refused("SN-1", 5));
    }
    other.execute_batch("ROLLBACK").unwrap();
    drop(store);
    let store = open(&directory);
    let (mut written, mut dropped) = (0, 0);
    let counted = store.export_audit(&Default::default(), |entry, _| {
        match entry.event {
            Dropped => dropped += entry.detail.unwrap().split(' ').next().unwrap().parse::<u64>().unwrap(),
            _ => written += 1,
        }
        Ok::<_, StoreError>(())
    });
    counted.unwrap();
    assert!(dropped > 0 && written + dropped == sent, "{written} + {dropped}");
    assert_eq!(verified(&store).fault, None);
}

#[test]
fn whatever_is_cut_or_changed_is_found() {
    let directory = tempfile::tempdir().unwrap();
    write(&directory, 20, 5);
    let path = directory.path().join("certdist.db");
    let original = std::fs::read(&path).unwrap();
    for (sql, expected) in [
        ("UPDATE audit_log SET detail = 'nothing' WHERE seq = 7", "entry 7 was changed"),
        ("UPDATE audit_log SET at = 6 WHERE seq = 20", "entry 20 was changed"),
        ("UPDATE audit_log SET event = 'erased' WHERE seq = 3", "entry 3 was changed"),
        ("UPDATE audit_log SET hash = zeroblob(32) WHERE seq = 9", "entry 9 was changed"),
        ("DELETE FROM audit_log WHERE seq = 8", "entry 8 is missing"),
        ("DELETE FROM audit_log WHERE seq BETWEEN 8 AND 11", "entries 8 to 11 are missing"),
        ("DELETE FROM audit_log WHERE seq > 17", "the last entries, 18 to 20, are missing"),
        ("DELETE FROM audit_log WHERE seq < 3", "entries 1 to 2 are missing"),
        (
            "DELETE FROM audit_log WHERE seq < 3; UPDATE audit_chain SET anchorSeq = 2, \
             anchorHash = (SELECT hash FROM audit_log WHERE seq = 3)",
            "entry 3 was changed",
        ),
        (
            "UPDATE audit_chain SET anchorSeq = 2, anchorHash = (SELECT hash FROM audit_log WHERE seq = 2); \
             DELETE FROM audit_log WHERE seq < 3",
            "no entry says that entries up to 2 were pruned",
        ),
        (
            "INSERT INTO audit_log SELECT 21, at, event, deviceId, enrollment, who, address, detail, hash \
             FROM audit_log WHERE seq = 20",
            "entry 21 was changed",
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
fn pruning_by_age_and_by_size_leaves_a_chain_that_holds() {
    let directory = tempfile::tempdir().unwrap();
    write(&directory, 300, 5);
    write(&directory, 700, unix_now());
    let store = open(&directory);
    let all = Keep { days: None, rows: None };
    assert_eq!(wait(store.prune_audit(all)).unwrap(), 0);
    assert_eq!(wait(store.prune_audit(Keep { days: Some(30), ..all })).unwrap(), 300);
    let chain = verified(&store);
    assert_eq!((chain.entries, chain.pruned, chain.last, chain.fault), (701, 300, 1001, None));
    assert_eq!(wait(store.prune_audit(Keep { days: Some(30), ..all })).unwrap(), 0);
    assert_eq!(wait(store.prune_audit(Keep { rows: Some(200), ..all })).unwrap(), 503);
    let chain = verified(&store);
    assert_eq!((chain.entries, chain.fault), (199, None));
    drop(store);
    // And the log goes on from there.
    write(&directory, 5, unix_now());
    let store = open(&directory);
    assert_eq!(verified(&store).fault, None);
    let other = Connection::open(store.path()).unwrap();
    other.execute_batch("UPDATE audit_chain SET anchorSeq = anchorSeq + 1").unwrap();
    assert!(verified(&store).fault.is_some());
}
