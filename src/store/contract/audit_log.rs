//! Contract of the audit log: a test for each statement in the documentation of `AuditLog`.

use std::{ops::ControlFlow, time::Duration};

use super::*;
use crate::store::{
    audit::{AuditEntry, AuditLog, Chain, Counts, Filter, Keep, Link, Repeats},
    retention::Retention,
};

const DAY: UnixSeconds = 86_400;

fn keep(rows: u64) -> Keep {
    Keep { rows: Some(rows), ..Keep::default() }
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

/// An entry about an operator's change has the time of the store's clock.
fn an_operators_entry_has_the_time_of_the_store(store: &(impl Store + Bulk + AuditLog)) {
    store.set_clock_ahead(DAY);
    let before = unix_now();
    import(store, [row("SN-1")]);
    let newest = now(store.newest_entry()).unwrap().unwrap();
    assert!((before + DAY..=before + DAY + 60).contains(&newest), "{newest}");
}

/// `prune` removes the oldest entries and adds an entry about the pruning. `has_expired` returns
/// whether `prune` would remove any entry. After pruning, the chain still verifies.
fn expired_entries_are_removed_and_the_chain_holds(store: &(impl Store + Bulk + AuditLog)) {
    changes(store, 8);
    for kept in [Keep::default(), Keep { days: Some(1), ..Keep::default() }, keep(8)] {
        assert!(!now(store.has_expired(kept)).unwrap(), "{kept:?}");
        assert_eq!(now(store.prune(kept)).unwrap(), Counts::default());
    }
    assert_eq!(verified(store).entries, 8);
    assert!(now(store.has_expired(keep(5))).unwrap());
    assert_eq!(verified(store).entries, 8, "that was only a question");
    assert_eq!(now(store.prune(keep(5))).unwrap(), Counts { changes: 4, repeats: 0 });
    assert!(!now(store.has_expired(keep(5))).unwrap(), "the entry about it counts as well");
    let chain = verified(store);
    assert_eq!((chain.entries, chain.pruned, chain.last), (5, 4, 9));
    assert_eq!(exported(store, &Filter::default()).last(), Some(&(9, AuditEvent::Pruned)));
    changes(store, 2);
    assert_eq!(verified(store).last, 10);
}

/// A [`Retention`] removes all expired entries. If the clock is probably wrong, it applies only the
/// size limit.
fn a_clock_that_is_far_ahead_removes_nothing_for_its_age(store: &(impl Store + Bulk + AuditLog)) {
    changes(store, 3);
    let month = Keep { days: Some(30), ..Keep::default() };
    let mut retention = Retention::default();
    let applied = |retention: &mut Retention, keep, is_confirmed| {
        now(Box::pin(retention.apply(store, keep, is_confirmed))).unwrap().changes
    };
    assert!(!now(Box::pin(retention.is_due(store, month, false))).unwrap());
    store.set_clock_ahead(400 * DAY);
    assert!(!now(Box::pin(retention.is_due(store, month, false))).unwrap());
    assert_eq!(applied(&mut retention, month, false), 0);
    // The size limit does not depend on the clock.
    assert_eq!(applied(&mut retention, keep(2), false), 2);
    // The cloud's clock confirms that a year has passed.
    assert!(now(Box::pin(retention.is_due(store, month, true))).unwrap());
    assert!(applied(&mut retention, month, true) > 0);
    verified(store);
}

/// Adds an entry about a request of a device. Waits until the log has `changes` entries in the
/// chain and its records of repeats count `repeats` requests.
fn ask(
    store: &(impl Store + Bulk + AuditLog),
    event: AuditEvent,
    device: &str,
    (at, address): (UnixSeconds, &str),
    (changes, repeats): (usize, u64),
) {
    let detail = format_args!("the device is disabled");
    store.audit(Asked::new(event, at, &id(device), ("lamps", device, address), detail)).unwrap();
    let deadline = std::time::Instant::now() + Duration::from_secs(10);
    loop {
        let all = entries(store);
        let records = all.iter().filter_map(|entry| entry.repeats.as_ref());
        let has = (all.iter().filter(|entry| entry.seq > 0).count(), records.map(|one| one.count).sum());
        if has == (changes, repeats) {
            return;
        }
        assert!(std::time::Instant::now() < deadline, "{has:?} instead of {changes}, {repeats}");
        std::thread::yield_now();
    }
}

/// Returns the number of entries in the chain and the number of records of repeats.
fn size(store: &(impl Store + Bulk + AuditLog)) -> Counts {
    let (chain, records): (Vec<_>, Vec<_>) = entries(store).into_iter().partition(|entry| entry.seq > 0);
    Counts { changes: chain.len() as u64, repeats: records.len() as u64 }
}

fn entries(store: &(impl Store + Bulk + AuditLog)) -> Vec<AuditEntry> {
    let mut all = Vec::new();
    let each = &mut |entry: AuditEntry, _: Link| {
        all.push(entry);
        ControlFlow::Continue(())
    };
    store.export_audit(&Filter::default(), each).unwrap();
    all
}

/// A device that fetches its certificate again adds no entry to the chain. Its requests of one day
/// are one record in the history, with their number, and the first and the last time and address.
fn repeated_fetches_are_counted_by_device_and_day(store: &(impl Store + Bulk + AuditLog)) {
    import(store, [row("SN-1"), row("SN-2")]);
    let day = 20_000 * DAY;
    ask(store, AuditEvent::Reissued, "SN-1", (day, "192.0.2.1"), (1, 1));
    ask(store, AuditEvent::Reissued, "SN-1", (day + 9, "192.0.2.2"), (1, 2));
    ask(store, AuditEvent::Reissued, "SN-2", (day + 9, "192.0.2.3"), (1, 3));
    ask(store, AuditEvent::Reissued, "SN-1", (day + 17, "192.0.2.4"), (1, 4));
    ask(store, AuditEvent::Reissued, "SN-1", (day + DAY, "192.0.2.5"), (1, 5));
    let history = now(store.history(&id("SN-1"), 100)).unwrap();
    let record = |at, address: &str, count, first, first_address: &str| AuditEntry {
        device: Some(id("SN-1")),
        enrollment: Some("lamps".into()),
        who: Some("SN-1".into()),
        address: Some(address.into()),
        detail: Some("the device is disabled".into()),
        repeats: Some(Repeats { count, first, first_address: Some(first_address.into()) }),
        ..AuditEntry::new(AuditEvent::Reissued, at)
    };
    let expected = [
        record(day + DAY, "192.0.2.5", 1, day + DAY, "192.0.2.5"),
        record(day + 17, "192.0.2.4", 3, day, "192.0.2.1"),
    ];
    assert_eq!(history, expected);
    assert_eq!(now(store.history(&id("SN-1"), 1)).unwrap(), expected[..1]);
    assert_eq!(verified(store).entries, 1, "the import");
    assert_eq!(now(store.newest_entry()).unwrap(), entries(store).last().map(|entry| entry.at));
}

/// The first refusal of a device for a reason is a change. Further ones are repeats, until an
/// operator changes the device. A device that is not in the table has only repeats.
fn the_first_refusal_is_kept_like_a_change(store: &(impl Store + Bulk + AuditLog)) {
    import(store, [row("SN-1"), row("SN-2")]);
    let refuse = |device, at, expected| ask(store, AuditEvent::Refused, device, (at, "192.0.2.1"), expected);
    refuse("SN-1", 100, (2, 0));
    refuse("SN-1", 101, (2, 1));
    refuse("SN-1", 3 * DAY, (2, 2));
    refuse("SN-2", 102, (3, 2));
    refuse("SN-3", 103, (3, 3));
    now(store.set_state(&id("SN-1"), DeviceState::Enabled, &by())).unwrap();
    refuse("SN-1", 104, (5, 3));
    refuse("SN-1", 105, (5, 4));
    refuse("SN-2", 106, (5, 5));
    // Once the entry is pruned, the next refusal is the first again.
    now(store.prune(keep(1))).unwrap();
    refuse("SN-2", 107, (2, 5));
    verified(store);
}

/// Repeats have a separate limit, so that no number of repeats displaces an entry of a change. The
/// age limit applies to both.
fn a_crowd_of_repeats_displaces_no_change(store: &(impl Store + Bulk + AuditLog)) {
    changes(store, 3);
    for number in 0..8 {
        ask(store, AuditEvent::Reissued, &format!("SN-{number}"), (unix_now(), "192.0.2.1"), (3, number + 1));
    }
    assert_eq!(size(store), Counts { changes: 3, repeats: 8 });
    let few = Keep { rows: Some(3), repeats: Some(5), ..Keep::default() };
    assert!(now(store.has_expired(few)).unwrap());
    let pruned = now(store.prune(few)).unwrap();
    assert_eq!(pruned.changes, 0);
    assert!((3..=4).contains(&pruned.repeats), "{pruned:?}");
    assert!(!now(store.has_expired(few)).unwrap());
    let kept = [AuditEvent::Imported, AuditEvent::Disabled, AuditEvent::Disabled];
    let is_change = |entry: &&(u64, AuditEvent)| entry.0 > 0;
    let all = exported(store, &Filter::default());
    assert_eq!(all.iter().filter(is_change).map(|entry| entry.1).collect::<Vec<_>>(), kept);
    assert!(now(store.history(&id("SN-0"), 9)).unwrap().is_empty(), "the oldest record went first");
    assert_eq!(now(store.history(&id("SN-7"), 9)).unwrap().len(), 1);
    store.set_clock_ahead(40 * DAY);
    let mut retention = Retention::default();
    let month = Keep { days: Some(30), ..Keep::default() };
    let removed = now(Box::pin(retention.apply(store, month, true))).unwrap();
    assert_eq!((removed.changes, removed.repeats), (3, 8 - pruned.repeats));
    assert_eq!(size(store).repeats, 0);
    verified(store);
    // After pruning, a new request makes a new record.
    ask(store, AuditEvent::Reissued, "SN-1", (unix_now(), "192.0.2.1"), (1, 1));
    assert_eq!(now(store.history(&id("SN-1"), 9)).unwrap().len(), 1);
}

/// A review passes on both the first refusal, which is a change, and the repeated refusals.
fn a_review_has_repeated_refusals(store: &(impl Store + Bulk + AuditLog)) {
    import(store, [row("SN-1")]);
    let (today, yesterday) = (30_000 * DAY, 29_999 * DAY);
    let refuse = |at, expected| ask(store, AuditEvent::Refused, "SN-1", (at, "192.0.2.1"), expected);
    refuse(yesterday + 5, (2, 0));
    refuse(yesterday + 7, (2, 1));
    refuse(today, (2, 2));
    refuse(today + 9, (2, 3));
    ask(store, AuditEvent::Reissued, "SN-1", (today + 10, "192.0.2.1"), (2, 4));
    let review = |kinds: &[AuditEvent], since| {
        let mut found: Vec<AuditEntry> = Vec::new();
        let each = &mut |entry: AuditEntry, _: Link| {
            // Each handle of the store writes its own record, so like records are added up.
            match found.last_mut().filter(|last| last.seq == 0 && entry.seq == 0 && last.is_like(&entry)) {
                Some(last) => last.add(entry),
                None => found.push(entry),
            }
            ControlFlow::Continue(())
        };
        assert!(store.review_audit(kinds, since, Duration::from_secs(9), each).unwrap());
        found.iter().map(|entry| (entry.at, entry.as_repeats().count)).collect::<Vec<_>>()
    };
    let all = [(today + 9, 2), (yesterday + 7, 1), (yesterday + 5, 1)];
    assert_eq!(review(&[AuditEvent::Refused], 0), all);
    let newest = review(&[AuditEvent::Refused], today + 3);
    assert_eq!(newest.iter().map(|(at, _)| *at).collect::<Vec<_>>(), [today + 9]);
}

contract! {
    repeated_fetches_are_counted_by_device_and_day
    the_first_refusal_is_kept_like_a_change
    a_crowd_of_repeats_displaces_no_change
    a_review_has_repeated_refusals
    an_export_of_the_log_gives_what_the_filter_selects
    the_log_is_reviewed_from_its_end
    the_newest_entry_is_known_by_its_time
    an_operators_entry_has_the_time_of_the_store
    expired_entries_are_removed_and_the_chain_holds
    a_clock_that_is_far_ahead_removes_nothing_for_its_age
}
