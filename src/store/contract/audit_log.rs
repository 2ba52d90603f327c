//! Contract of the audit log: a test for each statement in the documentation of `AuditLog`.

use std::{ops::ControlFlow, time::Duration};

use super::*;
use crate::store::{
    audit::{AuditLog, Chain, Filter, Keep, Link},
    retention::Retention,
};

const DAY: UnixSeconds = 86_400;

fn keep(rows: u64) -> Keep {
    Keep { days: None, rows: Some(rows) }
}

/// Imports device SN-1 and changes it repeatedly, so that the log has `number` entries.
fn changes(store: &(impl Store + Bulk + AuditLog), number: usize) {
    import(store, [row("SN-1")]);
    for _ in 1..number {
        assert!(now(store.set_state(&id("SN-1"), DeviceState::Disabled, &by())).unwrap());
    }
}

fn exported(store: &(impl Store + Bulk + AuditLog), filter: &Filter) -> Vec<(u64, AuditEvent)> {
    let mut entries = Vec::new();
    let each = &mut |entry: audit::AuditEntry, _: Link| {
        entries.push((entry.seq, entry.event));
        ControlFlow::Continue(())
    };
    store.export_audit(filter, each).unwrap();
    entries
}

fn verified(store: &(impl Store + Bulk + AuditLog)) -> Chain {
    let mut last = (0, Link::default());
    let chain = store.verify_audit(&mut |seq, hash| last = (seq, *hash)).unwrap();
    assert_eq!(chain.fault, None);
    assert_eq!((chain.last, chain.hash), last, "the last hash was told");
    chain
}

/// `export_audit` passes on the entries that the filter selects, oldest first, until `each` returns
/// `Break`.
fn an_export_of_the_log_gives_what_the_filter_selects(store: &(impl Store + Bulk + AuditLog)) {
    changes(store, 3);
    let all = [(1, AuditEvent::Imported), (2, AuditEvent::Disabled), (3, AuditEvent::Disabled)];
    assert_eq!(exported(store, &Filter::default()), all);
    let of_device = Filter { device: Some(id("SN-1")), ..Filter::default() };
    assert_eq!(exported(store, &of_device), all[1..]);
    let later = Filter { since: Some(unix_now() + DAY), ..Filter::default() };
    assert_eq!(exported(store, &later), []);
    let earlier = Filter { until: Some(unix_now() - DAY), ..Filter::default() };
    assert_eq!(exported(store, &earlier), []);
    let mut calls = 0;
    let each = &mut |_, _| {
        calls += 1;
        ControlFlow::Break(())
    };
    store.export_audit(&Filter::default(), each).unwrap();
    assert_eq!(calls, 1);
}

/// `review_audit` passes on the entries of some kinds, newest first, until `each` returns `Break` or
/// the entries are older.
fn the_log_is_reviewed_from_its_end(store: &(impl Store + Bulk + AuditLog)) {
    changes(store, 4);
    import(store, [row("SN-2")]);
    let review = |kinds: &[AuditEvent], since, most| {
        let mut found = Vec::new();
        let is_whole = store.review_audit(kinds, since, Duration::from_secs(9), &mut |entry, _| {
            found.push(entry.seq);
            if found.len() == most { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        assert!(is_whole.unwrap());
        found
    };
    assert_eq!(review(&[AuditEvent::Disabled], 0, 9), [4, 3, 2]);
    assert_eq!(review(&[AuditEvent::Disabled], 0, 2), [4, 3]);
    assert_eq!(review(&[AuditEvent::Disabled, AuditEvent::Imported], 0, 9), [5, 4, 3, 2, 1]);
    assert!(review(&[AuditEvent::Disabled], unix_now() + DAY, 9).is_empty());
    assert!(review(&[AuditEvent::Ended], 0, 9).is_empty());
}

/// `newest_entry` returns the time of the last entry, or `None` for an empty log.
fn the_newest_entry_is_known_by_its_time(store: &(impl Store + Bulk + AuditLog)) {
    assert_eq!(now(store.newest_entry()).unwrap(), None);
    let before = unix_now();
    changes(store, 1);
    let newest = now(store.newest_entry()).unwrap().unwrap();
    assert!((before..=before + AHEAD + 60).contains(&newest), "{newest}");
}

/// `prune` removes the oldest entries and adds an entry about the pruning. `has_expired` returns
/// whether `prune` would remove any entry. After pruning, the chain still verifies.
fn expired_entries_are_removed_and_the_chain_holds(store: &(impl Store + Bulk + AuditLog)) {
    changes(store, 8);
    for kept in [Keep { days: None, rows: None }, Keep { days: Some(1), rows: None }, keep(8)] {
        assert!(!now(store.has_expired(kept)).unwrap(), "{kept:?}");
        assert_eq!(now(store.prune(kept)).unwrap(), 0);
    }
    assert_eq!(verified(store).entries, 8);
    assert!(now(store.has_expired(keep(5))).unwrap());
    assert_eq!(verified(store).entries, 8, "that was only a question");
    assert_eq!(now(store.prune(keep(5))).unwrap(), 4);
    assert!(!now(store.has_expired(keep(5))).unwrap(), "the entry about it counts as well");
    let chain = verified(store);
    assert_eq!((chain.entries, chain.pruned, chain.last), (5, 4, 9));
    assert_eq!(exported(store, &Filter::default()).last(), Some(&(9, AuditEvent::Pruned)));
    changes(store, 2);
    assert_eq!(verified(store).last, 10);
}

/// A [`Retention`] removes all expired entries. If the clock is probably wrong, a [`Retention`]
/// applies only the size limit.
fn a_clock_that_is_far_ahead_removes_nothing_for_its_age(store: &(impl Store + Bulk + AuditLog)) {
    changes(store, 3);
    let month = Keep { days: Some(30), rows: None };
    let mut retention = Retention::default();
    assert!(!now(Box::pin(retention.is_due(store, month, false))).unwrap());
    store.set_clock_ahead(400 * DAY);
    assert!(!now(Box::pin(retention.is_due(store, month, false))).unwrap());
    assert_eq!(now(Box::pin(retention.apply(store, month, false))).unwrap(), 0);
    // The size limit does not depend on the clock.
    assert_eq!(now(Box::pin(retention.apply(store, keep(2), false))).unwrap(), 2);
    // The cloud's clock confirms that a year has passed.
    assert!(now(Box::pin(retention.is_due(store, month, true))).unwrap());
    assert!(now(Box::pin(retention.apply(store, month, true))).unwrap() > 0);
    verified(store);
}

contract! {
    an_export_of_the_log_gives_what_the_filter_selects
    the_log_is_reviewed_from_its_end
    the_newest_entry_is_known_by_its_time
    expired_entries_are_removed_and_the_chain_holds
    a_clock_that_is_far_ahead_removes_nothing_for_its_age
}
