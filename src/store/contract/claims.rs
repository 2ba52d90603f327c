//! Contract of claims, batches, leases and turns, with several owners on two handles of a store.

use std::time::Duration;

use super::{
    NOW, by, certificate, contract, device, entry, events, id, import, now, owner, refuse, register,
    registration, row, with_certificate,
};
use crate::store::{
    AskedBy, Bulk, Claim, DeviceRow, DeviceState, ImportRow, JournalEntry, OpenBatch, RegisteredDevice,
    Store, StoreError,
    audit::AuditEvent,
    claim::{Beat, ClaimTime, Claimed, Settlement},
    turn::Turn,
};
use crate::target;

fn claim(store: &impl Store, by: i64, device: &str) -> Claimed {
    now(store.claim(&owner(by), &entry(device), NOW)).unwrap()
}

fn yours(claimed: Claimed) -> Claim {
    match claimed {
        Claimed::Yours(claim) => claim,
        other => panic!("{other:?}"),
    }
}

fn registered(name: &str, secret: &str) -> Settlement {
    Settlement::Registered(registration(name, secret))
}

fn settle(store: &impl Store, by: i64, device: &str, settlement: &Settlement) -> Result<(), StoreError> {
    now(store.settle(by, &entry(device), settlement))
}

fn open_entries(store: &impl Store) -> usize {
    now(store.open_entries()).unwrap().len()
}

/// `claim` gives a claim to only one of two owners. `release_claim` ends the claim, but keeps the
/// entry if the cloud may have been asked for the device.
fn a_claim_has_one_owner(store: &(impl Store + Bulk)) {
    import(store, [row("SN-1")]);
    let first = yours(claim(store, 1, "SN-1"));
    assert_eq!(first.asked_by, AskedBy::Nobody);
    assert_eq!(claim(store, 2, "SN-1"), Claimed::Held);
    assert_eq!(yours(claim(store, 1, "SN-1")), Claim { asked_by: AskedBy::Caller, ..first });

    now(store.release_claim(2, &id("SN-1"), false)).unwrap();
    assert_eq!(claim(store, 2, "SN-1"), Claimed::Held, "only its owner can release it");
    now(store.release_claim(1, &id("SN-1"), true)).unwrap();
    for _ in 0..2 {
        assert_eq!(yours(claim(store, 2, "SN-1")), Claim { asked_by: AskedBy::Other, ..first });
    }
    now(store.release_claim(2, &id("SN-1"), false)).unwrap();
    assert_eq!(open_entries(store), 0);
    assert_eq!(yours(claim(store, 1, "SN-1")).asked_by, AskedBy::Nobody);
    // The cloud may have been asked under a claim that was given up, so `claim` returns
    // `AskedBy::Other` even to the former owner.
    now(store.release_claim(1, &id("SN-1"), true)).unwrap();
    assert_eq!(yours(claim(store, 1, "SN-1")).asked_by, AskedBy::Other);
}

/// A repeated `claim` keeps the time and the cloud offset of the first `claim`.
fn a_claim_keeps_the_clocks_of_the_first(store: &(impl Store + Bulk)) {
    import(store, [row("SN-1")]);
    let first = yours(
        now(store.claim(&owner(1), &entry("SN-1"), ClaimTime { at: 5, cloud_offset: Some(-7) })).unwrap(),
    );
    assert_eq!((first.since, first.cloud_offset), (5, Some(-7)));
    let again = yours(now(store.claim(&owner(1), &entry("SN-1"), NOW)).unwrap());
    assert_eq!((again.since, again.cloud_offset), (5, Some(-7)));
}

/// `claim` claims a device only if its row asks for exactly this registration.
fn a_row_that_does_not_ask_is_not_claimed(store: &(impl Store + Bulk)) {
    import(store, ["SN-1", "SN-2", "SN-3", "SN-4"].map(row));
    import(store, [with_certificate("SN-5", "s3cret")]);
    refuse(store, "SN-1", "no");
    now(store.set_state(&id("SN-2"), DeviceState::Disabled, &by())).unwrap();
    for device in ["SN-1", "SN-2", "SN-5", "SN-9"] {
        assert_eq!(claim(store, 1, device), Claimed::NotWanted, "{device}");
    }
    let other_product = JournalEntry { product_key: "a1plug".into(), ..entry("SN-3") };
    let other_name = JournalEntry { device_name: "another".into(), ..entry("SN-3") };
    for entry in [other_product, other_name] {
        assert_eq!(now(store.claim(&owner(1), &entry, NOW)).unwrap(), Claimed::NotWanted);
    }
    // A claim on the former device name is removed if it is abandoned, and stays if an owner has
    // it.
    yours(claim(store, 1, "SN-3"));
    yours(claim(store, 1, "SN-4"));
    now(store.release_claim(1, &id("SN-4"), true)).unwrap();
    import(
        store,
        ["SN-3", "SN-4"]
            .map(|device| ImportRow { device_name: Some(format!("new-{device}")), ..row(device) }),
    );
    for device in ["SN-3", "SN-4"] {
        assert_eq!(claim(store, 2, device), Claimed::NotWanted);
    }
    assert_eq!(now(store.claim_of(&id("SN-4"))).unwrap(), None);
    assert!(now(store.claim_of(&id("SN-3"))).unwrap().is_some());
}

/// `claim` keeps the abandoned claim of a disabled device, because the cloud may have created the
/// device.
fn a_disabled_device_keeps_its_abandoned_claim(store: &(impl Store + Bulk)) {
    import(store, [row("SN-1")]);
    let first = yours(claim(store, 1, "SN-1"));
    now(store.release_claim(1, &id("SN-1"), true)).unwrap();
    now(store.set_state(&id("SN-1"), DeviceState::Disabled, &by())).unwrap();
    assert_eq!(claim(store, 2, "SN-1"), Claimed::NotWanted);
    now(store.set_state(&id("SN-1"), DeviceState::Enabled, &by())).unwrap();
    assert_eq!(yours(claim(store, 2, "SN-1")), Claim { asked_by: AskedBy::Other, ..first });
}

/// `settle` stores the certificate, ends the claim and writes an audit entry.
fn a_registration_is_stored_as_a_whole(store: &(impl Store + Bulk)) {
    import(store, [row("SN-1")]);
    register(store, "SN-1", "s3cret");
    let expected = DeviceRow {
        device_name: Some("SN-1".into()),
        certificate: Some(certificate("SN-1", "s3cret")),
        iot_id: Some("iot-SN-1".into()),
        registered: Some(1000),
        ..DeviceRow::imported(id("SN-1"), "lamps", "a1lamp")
    };
    assert_eq!(device(store, "SN-1"), Some(expected));
    assert_eq!(open_entries(store), 0);
    assert_eq!(events(store, "SN-1"), [(AuditEvent::Registered, None)]);
    let history = now(store.history(&id("SN-1"), 100)).unwrap();
    assert_eq!(history[0].detail.as_deref(), Some("a1lamp/SN-1"));
}

/// `settle` stores the cloud's `IotId`, even if an import has given the device another one. If the
/// cloud gives no `IotId`, the device keeps the imported one.
fn the_iot_id_of_the_cloud_replaces_an_imported_one(store: &(impl Store + Bulk)) {
    let with_iot_id = |device: &str| ImportRow { iot_id: Some(format!("imported-{device}")), ..row(device) };
    import(store, [with_iot_id("SN-1"), with_iot_id("SN-2")]);
    register(store, "SN-1", "s3cret");
    yours(claim(store, 1, "SN-2"));
    let without = RegisteredDevice { iot_id: None, ..registration("SN-2", "s3cret") };
    settle(store, 1, "SN-2", &Settlement::Registered(without)).unwrap();
    let iot_id = |name: &str| device(store, name).unwrap().iot_id;
    assert_eq!(iot_id("SN-1").as_deref(), Some("iot-SN-1"));
    assert_eq!(iot_id("SN-2").as_deref(), Some("imported-SN-2"));
}

/// `settle` can be repeated after a lost result: it succeeds and changes nothing.
fn a_settlement_can_be_repeated(store: &(impl Store + Bulk)) {
    import(store, [row("SN-1")]);
    register(store, "SN-1", "s3cret");
    let before = device(store, "SN-1");
    settle(store, 1, "SN-1", &registered("SN-1", "s3cret")).unwrap();
    assert_eq!(device(store, "SN-1"), before);
    assert_eq!(events(store, "SN-1").len(), 1, "registered once");
}

/// `settle` fails for everyone but the owner of the claim.
fn only_the_owner_settles(store: &(impl Store + Bulk)) {
    import(store, [row("SN-1"), row("SN-2")]);
    yours(claim(store, 1, "SN-1"));
    let before = device(store, "SN-1");
    for settlement in [registered("SN-1", "s3cret"), Settlement::Refused("no".into())] {
        for (by, device) in [(2, "SN-1"), (1, "SN-2")] {
            let answer = settle(store, by, device, &settlement);
            assert!(matches!(answer, Err(StoreError::Fenced)), "{by} {device}: {answer:?}");
        }
    }
    assert_eq!((device(store, "SN-1"), open_entries(store)), (before, 1));
}

/// `settle` never stores a refusal for a device that has a certificate, and never replaces a
/// certificate.
fn a_certificate_is_never_replaced_nor_refused(store: &(impl Store + Bulk)) {
    import(store, [row("SN-1")]);
    yours(claim(store, 1, "SN-1"));
    // An operator imports a certificate before the registration is settled.
    import(store, [with_certificate("SN-1", "imported")]);
    let before = device(store, "SN-1");
    for settlement in [registered("SN-1", "s3cret"), Settlement::Refused("no".into())] {
        let answer = settle(store, 1, "SN-1", &settlement);
        assert!(matches!(answer, Err(StoreError::Conflict(_) | StoreError::Fenced)), "{answer:?}");
        assert_eq!(device(store, "SN-1"), before);
    }
    assert_eq!(open_entries(store), 0);
}

/// `settle` does not store a result that no longer applies because the row has changed since the
/// claim.
fn a_row_that_was_changed_takes_no_result(store: &(impl Store + Bulk)) {
    import(store, ["SN-1", "SN-2", "SN-3", "SN-4", "SN-5"].map(row));
    for device in ["SN-1", "SN-2", "SN-3", "SN-4", "SN-5"] {
        yours(claim(store, 1, device));
    }
    import(store, [with_certificate("SN-5", "s3cret")]);
    let met = settle(store, 1, "SN-5", &Settlement::Refused("no".into())).unwrap_err();
    assert!(matches!(&met, StoreError::Conflict(reason) if reason.contains("certificate")), "{met:?}");
    assert_eq!(device(store, "SN-5").unwrap().refusal, None);
    import(store, [ImportRow { device_name: Some("renamed".into()), ..row("SN-1") }]);
    now(store.set_state(&id("SN-2"), DeviceState::Disabled, &by())).unwrap();
    now(store.set_state(&id("SN-3"), DeviceState::Disabled, &by())).unwrap();
    let before = device(store, "SN-1");
    let is_conflict = |answer: Result<(), StoreError>| {
        assert!(matches!(answer, Err(StoreError::Conflict(_))), "{answer:?}");
    };
    is_conflict(settle(store, 1, "SN-1", &registered("SN-1", "s3cret")));
    assert_eq!(device(store, "SN-1"), before);
    is_conflict(settle(store, 1, "SN-2", &Settlement::Refused("no".into())));
    assert_eq!(device(store, "SN-2").unwrap().refusal, None);
    // The cloud has created this device, so its certificate is stored although the device is
    // disabled.
    settle(store, 1, "SN-3", &registered("SN-3", "s3cret")).unwrap();
    assert!(device(store, "SN-3").unwrap().certificate.is_some());
    // This registration has the IotId of another device.
    let twin = Settlement::Registered(crate::store::RegisteredDevice {
        iot_id: Some("iot-SN-3".into()),
        ..registration("SN-4", "0ther")
    });
    is_conflict(settle(store, 1, "SN-4", &twin));
    let refused = device(store, "SN-4").unwrap();
    assert_eq!(refused.certificate, None);
    assert!(refused.refusal.unwrap().starts_with("IotIdIsTaken: "));
    assert_eq!(open_entries(store), 0);
}

/// `settle` stores a refusal in the row and ends the claim.
fn a_refusal_is_marked(store: &(impl Store + Bulk)) {
    import(store, [row("SN-1")]);
    refuse(store, "SN-1", "name is taken");
    assert_eq!(device(store, "SN-1").unwrap().refusal.as_deref(), Some("name is taken"));
    assert_eq!(open_entries(store), 0);
}

/// `fence` fences an owner only if the owner's beat has not changed since `beats` returned it.
fn an_owner_without_a_new_beat_can_be_fenced(store: &(impl Store + Bulk)) {
    import(store, [row("SN-1")]);
    yours(claim(store, 1, "SN-1"));
    let seen = |owner| now(store.beats(None)).unwrap().into_iter().find(|beat| beat.owner == owner);
    let first = seen(1).expect("a claim makes its owner known");
    now(store.beats(Some(&owner(1)))).unwrap();
    let second = seen(1).unwrap();
    assert_eq!(second, Beat { owner: 1, count: first.count + 1 });
    assert!(!now(store.fence(first)).unwrap());
    assert_eq!(claim(store, 2, "SN-1"), Claimed::Held);

    assert!(now(store.fence(second)).unwrap());
    assert!(!now(store.fence(second)).unwrap(), "once");
    assert_eq!(now(store.abandoned(target::DEFAULT, 9)).unwrap(), [entry("SN-1")]);
    assert_eq!(yours(claim(store, 2, "SN-1")).asked_by, AskedBy::Other);
    let answer = settle(store, 1, "SN-1", &registered("SN-1", "s3cret"));
    assert!(matches!(answer, Err(StoreError::Fenced)), "{answer:?}");
    settle(store, 2, "SN-1", &registered("SN-1", "s3cret")).unwrap();
}

/// A fenced owner whose process still lives can settle the claims that no other owner has taken
/// over.
fn a_fenced_owner_that_lives_goes_on_with_what_is_left(store: &(impl Store + Bulk)) {
    import(store, [row("SN-1")]);
    yours(claim(store, 1, "SN-1"));
    let beat = now(store.beats(None)).unwrap()[0];
    assert!(now(store.fence(beat)).unwrap());
    settle(store, 1, "SN-1", &registered("SN-1", "s3cret")).unwrap();
}

/// `abandoned` returns the claims of a retired owner, oldest first, up to a limit. It returns no
/// claim of a living owner.
fn an_owner_that_stops_leaves_its_claims_to_others(store: &(impl Store + Bulk)) {
    import(store, ["SN-1", "SN-2", "SN-3"].map(row));
    yours(claim(store, 1, "SN-1"));
    yours(claim(store, 2, "SN-3"));
    assert_eq!(now(store.abandoned(target::DEFAULT, 9)).unwrap(), []);
    now(store.retire(1)).unwrap();
    now(store.release_claim(2, &id("SN-3"), true)).unwrap();
    let abandoned = now(store.abandoned(target::DEFAULT, 9)).unwrap();
    assert_eq!(abandoned.len(), 2);
    assert_eq!(now(store.abandoned(target::DEFAULT, 1)).unwrap(), abandoned[..1]);
}

/// `retire_if_idle` does not retire an owner that has claims or a batch.
fn an_owner_with_claims_is_not_idle(store: &(impl Store + Bulk)) {
    import(store, [row("SN-1")]);
    let owners = || now(store.beats(None)).unwrap().len();
    now(store.claim_batch(&owner(1), &batch(77), &[], NOW)).unwrap();
    now(store.retire_if_idle(1)).unwrap();
    assert_eq!(owners(), 1);
    now(store.close_batch(1, 77)).unwrap();
    yours(claim(store, 1, "SN-1"));
    now(store.retire_if_idle(1)).unwrap();
    assert_eq!(owners(), 1);
    now(store.release_claim(1, &id("SN-1"), true)).unwrap();
    now(store.retire_if_idle(1)).unwrap();
    assert_eq!(owners(), 0);
}

/// `claim_of` returns the entry and the claim's owner.
fn a_claim_is_shown_with_its_owner(store: &(impl Store + Bulk)) {
    import(store, [row("SN-1")]);
    assert_eq!(now(store.claim_of(&id("SN-1"))).unwrap(), None);
    let first = yours(claim(store, 1, "SN-1"));
    let shown = now(store.claim_of(&id("SN-1"))).unwrap().unwrap();
    assert_eq!((shown.entry, shown.since, shown.batch), (entry("SN-1"), first.since, None));
    assert_eq!(shown.owner.as_deref(), Some("process 1"));
    assert!(shown.last_beat.is_some());
    now(store.retire(1)).unwrap();
    let shown = now(store.claim_of(&id("SN-1"))).unwrap().unwrap();
    assert_eq!((shown.owner, shown.last_beat), (None, None));
}

fn batch(id: i64) -> OpenBatch {
    OpenBatch { id, product_key: "a1lamp".into(), apply_id: None, target: target::DEFAULT.into() }
}

/// `claim_batch` returns a result for each entry.
fn a_batch_claims_what_it_can(store: &(impl Store + Bulk)) {
    import(store, ["SN-1", "SN-2", "SN-3"].map(row));
    yours(claim(store, 2, "SN-2"));
    let entries = ["SN-1", "SN-2", "SN-9", "SN-3"].map(entry);
    let claimed = now(store.claim_batch(&owner(1), &batch(77), &entries, NOW)).unwrap();
    let [Claimed::Yours(first), Claimed::Held, Claimed::NotWanted, Claimed::Yours(second)] = &claimed[..]
    else {
        panic!("{claimed:?}")
    };
    assert_eq!([first.asked_by, second.asked_by], [AskedBy::Nobody; 2]);
    let open = now(store.open_entries()).unwrap();
    let in_batch = open.iter().filter(|open| open.batch == Some(77)).count();
    assert_eq!((open.len(), in_batch), (3, 2));
    assert_eq!(now(store.open_batches()).unwrap(), [batch(77)]);
    // The second call stands for a retry after the first result was lost.
    let again = now(store.claim_batch(&owner(1), &batch(77), &entries, NOW)).unwrap();
    assert!(matches!(&again[..], [Claimed::Yours(_), Claimed::Held, Claimed::NotWanted, Claimed::Yours(_)]));
    assert_eq!(now(store.open_batches()).unwrap(), [batch(77)]);
}

/// `set_apply_id` and `close_batch` change a batch only for its owner. The claims of a closed batch
/// stay.
fn a_batch_belongs_to_its_owner(store: &(impl Store + Bulk)) {
    import(store, [row("SN-1")]);
    now(store.claim_batch(&owner(1), &batch(77), &[entry("SN-1")], NOW)).unwrap();
    assert!(matches!(now(store.set_apply_id(2, 77, 5)), Err(StoreError::Fenced)));
    now(store.set_apply_id(1, 77, u64::MAX)).unwrap();
    now(store.close_batch(2, 77)).unwrap();
    let known = OpenBatch { apply_id: Some(u64::MAX), ..batch(77) };
    assert_eq!(now(store.open_batches()).unwrap(), [known]);
    now(store.close_batch(1, 77)).unwrap();
    assert_eq!(now(store.open_batches()).unwrap(), []);
    let open = now(store.open_entries()).unwrap();
    assert_eq!(open.iter().map(|open| open.batch).collect::<Vec<_>>(), [None]);
    assert!(matches!(now(store.set_apply_id(1, 77, 5)), Err(StoreError::Fenced)), "it is closed");
}

/// If an entry belongs to a batch without an `ApplyId`, a later `claim` or `claim_batch` assumes
/// that the batch has not asked the cloud for the device.
fn what_was_not_asked_for_is_no_earlier_claim(store: &(impl Store + Bulk)) {
    import(store, ["SN-1", "SN-2", "SN-3"].map(row));
    let later = ClaimTime { at: 2000, cloud_offset: Some(3) };
    let again = |device: &str| yours(now(store.claim(&owner(2), &entry(device), later)).unwrap());
    // For SN-3, the cloud may have been asked, because of an earlier claim outside a batch.
    yours(claim(store, 1, "SN-3"));
    now(store.release_claim(1, &id("SN-3"), true)).unwrap();
    let entries = ["SN-1", "SN-3"].map(entry);
    now(store.claim_batch(&owner(1), &batch(77), &entries, NOW)).unwrap();
    now(store.claim_batch(&owner(1), &batch(78), &[entry("SN-2")], NOW)).unwrap();
    now(store.set_apply_id(1, 78, 5)).unwrap();
    now(store.retire(1)).unwrap();
    let fresh = Claim { since: 2000, cloud_offset: Some(3), asked_by: AskedBy::Nobody };
    assert_eq!(again("SN-1"), fresh);
    assert_eq!(again("SN-2"), Claim { since: 1000, cloud_offset: None, asked_by: AskedBy::Other });
    assert_eq!(again("SN-3"), Claim { since: 1000, cloud_offset: None, asked_by: AskedBy::Other });
}

/// `claim` and `claim_batch` distinguish a batch that the caller began from a batch of another
/// owner.
fn a_caller_knows_its_own_batch(store: &(impl Store + Bulk)) {
    import(store, ["SN-1", "SN-2"].map(row));
    let entries = ["SN-1", "SN-2"].map(entry);
    now(store.claim_batch(&owner(1), &batch(77), &entries, NOW)).unwrap();
    now(store.set_apply_id(1, 77, 5)).unwrap();
    now(store.close_batch(1, 77)).unwrap();
    assert_eq!(yours(claim(store, 1, "SN-1")).asked_by, AskedBy::Caller);
    let again = now(store.claim_batch(&owner(1), &batch(78), &entries, NOW)).unwrap();
    assert!(again.into_iter().all(|claimed| yours(claimed).asked_by == AskedBy::Caller));
    now(store.retire(1)).unwrap();
    assert_eq!(yours(claim(store, 2, "SN-1")).asked_by, AskedBy::Other);
}

/// `note_cloud_offset` changes only those claims of the owner that have no cloud offset.
fn a_claim_learns_the_clouds_clock(store: &(impl Store + Bulk)) {
    import(store, ["SN-1", "SN-2", "SN-3"].map(row));
    yours(claim(store, 1, "SN-1"));
    yours(now(store.claim(&owner(1), &entry("SN-2"), ClaimTime { at: 5, cloud_offset: Some(9) })).unwrap());
    yours(claim(store, 2, "SN-3"));
    now(store.note_cloud_offset(1, -300)).unwrap();
    assert_eq!(yours(claim(store, 1, "SN-1")).cloud_offset, Some(-300));
    assert_eq!(yours(claim(store, 1, "SN-2")).cloud_offset, Some(9));
    assert_eq!(yours(claim(store, 2, "SN-3")).cloud_offset, None);
}

/// `beats` returns a new number of beats for an owner that was retired and claims again, so that
/// other processes do not take the owner for dead.
fn an_owner_that_comes_again_has_another_count(store: &(impl Store + Bulk)) {
    import(store, [row("SN-1")]);
    let count = || now(store.beats(None)).unwrap()[0].count;
    yours(claim(store, 1, "SN-1"));
    let first = count();
    yours(claim(store, 1, "SN-1"));
    assert_ne!(count(), first, "a claim is a sign of life");
    let last = count();
    now(store.release_claim(1, &id("SN-1"), true)).unwrap();
    now(store.retire_if_idle(1)).unwrap();
    yours(claim(store, 1, "SN-1"));
    assert!(![first, last].contains(&count()));
}

/// If nothing is abandoned, `take_batches` and `abandoned` do not make the caller an owner.
fn one_that_takes_nothing_owns_nothing(store: &(impl Store + Bulk)) {
    assert_eq!(now(store.take_batches(&owner(1), target::DEFAULT)).unwrap(), []);
    assert_eq!(now(store.abandoned(target::DEFAULT, 9)).unwrap(), []);
    assert_eq!(now(store.beats(None)).unwrap(), []);
}

/// `abandoned` does not return the entry of a disabled device.
fn what_a_disabled_device_has_begun_is_not_resumed(store: &(impl Store + Bulk)) {
    import(store, ["SN-1", "SN-2"].map(row));
    for device in ["SN-1", "SN-2"] {
        yours(claim(store, 1, device));
    }
    now(store.retire(1)).unwrap();
    now(store.set_state(&id("SN-1"), DeviceState::Disabled, &by())).unwrap();
    assert_eq!(now(store.abandoned(target::DEFAULT, 1)).unwrap(), [entry("SN-2")]);
}

/// `take_batches` takes the abandoned batches that have an `ApplyId`, with their claims.
fn an_abandoned_batch_is_taken_over(store: &(impl Store + Bulk)) {
    import(store, ["SN-1", "SN-2", "SN-3", "SN-4"].map(row));
    yours(claim(store, 1, "SN-2"));
    now(store.claim_batch(&owner(1), &batch(77), &["SN-1", "SN-2"].map(entry), NOW)).unwrap();
    now(store.claim_batch(&owner(1), &batch(78), &[entry("SN-3")], NOW)).unwrap();
    now(store.claim_batch(&owner(3), &batch(79), &[entry("SN-4")], NOW)).unwrap();
    now(store.set_apply_id(1, 77, 5)).unwrap();
    now(store.set_apply_id(3, 79, 6)).unwrap();
    assert_eq!(now(store.take_batches(&owner(2), target::DEFAULT)).unwrap(), []);
    now(store.retire(1)).unwrap();
    let taken = now(store.take_batches(&owner(2), target::DEFAULT)).unwrap();
    let [(taken, claims)] = &taken[..] else { panic!("{taken:?}") };
    assert_eq!(*taken, OpenBatch { apply_id: Some(5), ..batch(77) });
    let devices: Vec<_> = claims.iter().map(|(entry, _)| entry.device.as_str()).collect();
    assert_eq!(devices, ["SN-1", "SN-2"]);
    // SN-1 was asked for only in the batch. SN-2 also had an earlier claim.
    let asked =
        |claims: &[(JournalEntry, Claim)]| claims.iter().map(|(_, claim)| claim.asked_by).collect::<Vec<_>>();
    assert_eq!(asked(claims), [AskedBy::Nobody, AskedBy::Other]);
    let again = now(store.take_batches(&owner(2), target::DEFAULT)).unwrap();
    assert_eq!((again.len(), again[0].1.len()), (1, 2), "the answer may have been lost");
    assert_eq!(asked(&again[0].1), [AskedBy::Nobody, AskedBy::Other]);
    // The abandoned batch without an `ApplyId` was removed, so SN-3 can be registered by a single
    // call.
    assert_eq!(now(store.abandoned(target::DEFAULT, 9)).unwrap(), [entry("SN-3")]);
    assert_eq!(claim(store, 3, "SN-1"), Claimed::Held);
    settle(store, 2, "SN-1", &registered("SN-1", "s3cret")).unwrap();
    assert_eq!(now(store.take_batches(&owner(4), target::DEFAULT)).unwrap(), [], "its new owner lives");
}

/// Taking over a claim ends the claim's batch if the batch has no `ApplyId`: a process that was only
/// suspended must not begin it any more. A batch with an `ApplyId` may have begun already, so it stays.
fn a_claim_that_is_taken_over_ends_a_batch_without_apply_id(store: &(impl Store + Bulk)) {
    import(store, ["SN-1", "SN-2", "SN-3", "SN-4"].map(row));
    now(store.claim_batch(&owner(1), &batch(77), &["SN-1", "SN-2"].map(entry), NOW)).unwrap();
    now(store.claim_batch(&owner(1), &batch(78), &["SN-3", "SN-4"].map(entry), NOW)).unwrap();
    now(store.set_apply_id(1, 78, 5)).unwrap();
    now(store.retire(1)).unwrap();
    assert_eq!(yours(claim(store, 2, "SN-1")).asked_by, AskedBy::Nobody);
    assert_eq!(yours(claim(store, 2, "SN-3")).asked_by, AskedBy::Other);
    assert!(matches!(now(store.set_apply_id(1, 77, 6)), Err(StoreError::Fenced)));
    assert_eq!(now(store.open_batches()).unwrap(), [OpenBatch { apply_id: Some(5), ..batch(78) }]);
    let open = now(store.open_entries()).unwrap();
    let in_batch: Vec<_> = open.iter().filter(|open| open.batch.is_some()).collect();
    assert_eq!(in_batch.iter().map(|open| open.entry.device.as_str()).collect::<Vec<_>>(), ["SN-4"]);
    assert_eq!(now(store.abandoned(target::DEFAULT, 9)).unwrap(), [entry("SN-2")]);
}

/// A lease has one owner at a time, and the next owner gets the cursor of the lease.
fn a_lease_has_one_owner_and_a_cursor(store: &(impl Store + Bulk)) {
    let take = |by| now(store.take_lease(&owner(by), "sweep")).unwrap();
    let set = |by, cursor: &str| now(store.set_cursor(by, "sweep", cursor));
    assert!(matches!(set(1, "SN-1"), Err(StoreError::Fenced)), "no one has it");
    assert_eq!(take(1).as_deref(), Some(""));
    set(1, "SN-1").unwrap();
    assert_eq!(take(1).as_deref(), Some("SN-1"), "its owner has it");
    assert_eq!(take(2), None);
    assert!(matches!(set(2, "SN-2"), Err(StoreError::Fenced)));
    now(store.give_lease_up(2, "sweep")).unwrap();
    now(store.retire_if_idle(1)).unwrap();
    assert_eq!(take(2), None, "its owner has not given it up");
    now(store.give_lease_up(1, "sweep")).unwrap();
    assert_eq!(take(2).as_deref(), Some("SN-1"));
    // A retired owner no longer has the lease.
    now(store.retire(2)).unwrap();
    assert_eq!(take(3).as_deref(), Some("SN-1"));
    assert_eq!(now(store.take_lease(&owner(1), "another")).unwrap().as_deref(), Some(""));
}

/// `take_turn` grants one turn per interval to all processes together.
fn turns_are_shared(store: &(impl Store + Bulk)) {
    let interval = Duration::from_secs(5);
    let turn = Turn { interval, credit: Duration::ZERO, reserve: Duration::ZERO };
    let take = |pace: &str| now(store.take_turn(pace, turn)).unwrap();
    assert_eq!(take("me/RegisterDevice"), None);
    for _ in 0..4 {
        let wait = take("me/RegisterDevice").expect("not yet");
        assert!(wait <= interval && wait > interval / 2, "{wait:?}");
    }
    assert_eq!(take("me/QueryDeviceDetail"), None, "another pace");
    assert_eq!(take("you/RegisterDevice"), None, "another account");
}

/// A write whose result was lost can be repeated through another handle. Two calls have the effect
/// of one.
fn a_write_whose_answer_was_lost_can_be_repeated(store: &(impl Store + Bulk)) {
    import(store, ["SN-1", "SN-2", "SN-3"].map(row));
    let claims = [(); 2].map(|()| yours(claim(store, 1, "SN-1")).since);
    assert_eq!(claims, [NOW.at; 2]);
    for _ in 0..2 {
        now(store.note_cloud_offset(1, 7)).unwrap();
    }
    let entries = [entry("SN-2"), entry("SN-3")];
    let batch = batch(5);
    for _ in 0..2 {
        let claimed = now(store.claim_batch(&owner(1), &batch, &entries, NOW)).unwrap();
        assert!(claimed.iter().all(|claimed| matches!(claimed, Claimed::Yours(_))), "{claimed:?}");
    }
    for _ in 0..2 {
        now(store.set_apply_id(1, 5, 9)).unwrap();
    }
    assert_eq!(now(store.open_batches()).unwrap(), [OpenBatch { apply_id: Some(9), ..batch }]);
    assert_eq!(open_entries(store), 3);
    let taken = [(); 2].map(|()| now(store.take_batches(&owner(1), target::DEFAULT)).unwrap());
    assert_eq!(taken[0], taken[1]);
    for _ in 0..2 {
        now(store.close_batch(1, 5)).unwrap();
    }
    assert_eq!((now(store.open_batches()).unwrap().len(), open_entries(store)), (0, 3));
    for _ in 0..2 {
        settle(store, 1, "SN-2", &registered("SN-2", "s3cret")).unwrap();
    }
    assert_eq!(events(store, "SN-2").len(), 1);
    // The first call ended the claim, so the second call fails. The row shows that the first call
    // has stored the refusal.
    settle(store, 1, "SN-3", &Settlement::Refused("no".into())).unwrap();
    assert!(matches!(settle(store, 1, "SN-3", &Settlement::Refused("no".into())), Err(StoreError::Fenced)));
    assert_eq!(device(store, "SN-3").unwrap().refusal.as_deref(), Some("no"));
    for _ in 0..2 {
        now(store.release_claim(1, &id("SN-1"), true)).unwrap();
    }
    assert_eq!(now(store.abandoned(target::DEFAULT, 9)).unwrap(), [entry("SN-1")]);
    let leases = [(); 2].map(|()| now(store.take_lease(&owner(1), "work")).unwrap());
    assert_eq!(leases, [Some(String::new()), Some(String::new())]);
    for _ in 0..2 {
        now(store.set_cursor(1, "work", "SN-2")).unwrap();
    }
    for _ in 0..2 {
        now(store.give_lease_up(1, "work")).unwrap();
    }
    assert_eq!(now(store.take_lease(&owner(2), "work")).unwrap().as_deref(), Some("SN-2"));
    for _ in 0..2 {
        now(store.give_lease_up(1, "work")).unwrap();
        now(store.retire(1)).unwrap();
    }
    assert_eq!(now(store.take_lease(&owner(3), "work")).unwrap(), None, "it is another's");
}

contract! {
    a_claim_has_one_owner
    a_write_whose_answer_was_lost_can_be_repeated
    a_claim_keeps_the_clocks_of_the_first
    a_row_that_does_not_ask_is_not_claimed
    a_disabled_device_keeps_its_abandoned_claim
    a_registration_is_stored_as_a_whole
    the_iot_id_of_the_cloud_replaces_an_imported_one
    a_settlement_can_be_repeated
    only_the_owner_settles
    a_certificate_is_never_replaced_nor_refused
    a_row_that_was_changed_takes_no_result
    a_refusal_is_marked
    an_owner_without_a_new_beat_can_be_fenced
    a_fenced_owner_that_lives_goes_on_with_what_is_left
    an_owner_that_stops_leaves_its_claims_to_others
    an_owner_with_claims_is_not_idle
    a_claim_is_shown_with_its_owner
    a_batch_claims_what_it_can
    a_batch_belongs_to_its_owner
    what_was_not_asked_for_is_no_earlier_claim
    a_caller_knows_its_own_batch
    a_claim_learns_the_clouds_clock
    an_owner_that_comes_again_has_another_count
    one_that_takes_nothing_owns_nothing
    what_a_disabled_device_has_begun_is_not_resumed
    an_abandoned_batch_is_taken_over
    a_claim_that_is_taken_over_ends_a_batch_without_apply_id
    a_lease_has_one_owner_and_a_cursor
    turns_are_shared
}
