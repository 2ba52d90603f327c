//! Tests of places, and of devices that wait to be admitted.

use std::{ops::Range, sync::Arc};

use futures_util::future::try_join_all;

use super::*;
use crate::store::{
    claim::Claimed,
    order::{Completed, OrderKind, Placed},
    place::Places,
    waiting::{Admission, Admits, KEPT, MOST_OF_ADDRESS, MOST_OF_ENROLLMENT, NewDevice, Note},
};

fn claim(store: &impl Store, owner_id: claim::OwnerId, device: &str) -> Claimed {
    now(store.claim(&owner(owner_id), &entry(device), NOW)).unwrap()
}

fn taken(store: &impl Store, enrollment: &str) -> (u64, u64) {
    let Places { registered, claimed } = now(store.places(enrollment)).unwrap();
    (registered, claimed)
}

/// Returns whether device `SN-1` has a place in an enrollment.
fn has_place(store: &impl Store, enrollment: &str) -> bool {
    now(store.has_place(&id("SN-1"), enrollment)).unwrap()
}

fn limit(store: &impl Store, max: u64) {
    store.set_max_places(Arc::new([("lamps".to_owned(), max)].into()));
}

pub(super) fn a_claim_takes_a_place_and_finds_none_in_a_full_enrollment(store: &(impl Store + Bulk)) {
    import(store, ["SN-1", "SN-2", "SN-3"].map(row));
    import(store, [with_certificate("SN-4", "imported"), ImportRow::new(id("SN-5"), "plugs", "a1lamp")]);
    assert_eq!((taken(store, "lamps"), taken(store, "plugs")), ((1, 0), (0, 0)));
    limit(store, 2);
    assert!(matches!(claim(store, 1, "SN-1"), Claimed::Yours(_)));
    assert_eq!(taken(store, "lamps"), (1, 1));
    for owner in [1, 2] {
        assert_eq!(claim(store, owner, "SN-2"), Claimed::NoPlace);
    }
    assert_eq!(now(store.claim_of(&id("SN-2"))).unwrap(), None, "it is not in the journal");
    assert!(matches!(claim(store, 1, "SN-5"), Claimed::Yours(_)), "another enrollment has no limit");
    // A certificate keeps the place.
    now(store.settle(1, &entry("SN-1"), &Settlement::Registered(registration("SN-1", "s3cret")))).unwrap();
    assert_eq!((taken(store, "lamps"), claim(store, 2, "SN-2")), ((2, 0), Claimed::NoPlace));
    // A deleted device frees its place.
    now(store.delete(&id("SN-4"), &by())).unwrap();
    assert!(matches!(claim(store, 2, "SN-2"), Claimed::Yours(_)));
    assert_eq!(claim(store, 1, "SN-3"), Claimed::NoPlace);
    // A registration that is refused, or that ends before its call, also frees its place.
    now(store.settle(2, &entry("SN-2"), &Settlement::Refused("odd: no".into()))).unwrap();
    assert!(matches!(claim(store, 1, "SN-3"), Claimed::Yours(_)));
    now(store.release_claim(1, &id("SN-3"), false)).unwrap();
    assert_eq!(taken(store, "lamps"), (1, 0));
}

pub(super) fn a_device_in_the_journal_has_its_place(store: &(impl Store + Bulk)) {
    import(store, ["SN-1", "SN-2"].map(row));
    limit(store, 1);
    assert!(matches!(claim(store, 1, "SN-1"), Claimed::Yours(_)));
    // The process dies after it has asked, and the limit becomes smaller meanwhile.
    now(store.release_claim(1, &id("SN-1"), true)).unwrap();
    assert_eq!((taken(store, "lamps"), claim(store, 2, "SN-2")), ((0, 1), Claimed::NoPlace));
    limit(store, 0);
    assert!(matches!(claim(store, 2, "SN-1"), Claimed::Yours(_)));
    now(store.settle(2, &entry("SN-1"), &Settlement::Registered(registration("SN-1", "s3cret")))).unwrap();
    assert!(issue(store, "SN-1", 7).unwrap().is_first);
}

pub(super) fn a_device_that_was_moved_takes_a_place_of_its_new_enrollment(store: &(impl Store + Bulk)) {
    import(store, [ImportRow::new(id("SN-1"), "plugs", "a1lamp"), row("SN-2")]);
    limit(store, 1);
    assert!(matches!(claim(store, 1, "SN-1"), Claimed::Yours(_)));
    assert!(has_place(store, "plugs"));
    // The process dies after it has asked, and the device is moved.
    now(store.release_claim(1, &id("SN-1"), true)).unwrap();
    import(store, [row("SN-1")]);
    assert_eq!((taken(store, "plugs"), taken(store, "lamps")), ((0, 1), (0, 0)));
    assert!(!has_place(store, "lamps"));
    assert!(matches!(claim(store, 2, "SN-2"), Claimed::Yours(_)));
    assert_eq!(claim(store, 2, "SN-1"), Claimed::NoPlace);
    limit(store, 2);
    assert!(matches!(claim(store, 2, "SN-1"), Claimed::Yours(_)));
    assert_eq!((taken(store, "plugs"), taken(store, "lamps")), ((0, 0), (0, 2)));
}

/// `settle` takes a place in the enrollment that the device has by then.
pub(super) fn a_device_that_is_moved_while_it_is_registered_needs_a_place(store: &(impl Store + Bulk)) {
    import(store, [ImportRow::new(id("SN-1"), "plugs", "a1lamp"), row("SN-2")]);
    limit(store, 1);
    assert!(matches!(claim(store, 1, "SN-1"), Claimed::Yours(_)));
    assert!(matches!(claim(store, 2, "SN-2"), Claimed::Yours(_)));
    import(store, [row("SN-1")]);
    let registered = Settlement::Registered(registration("SN-1", "s3cret"));
    let settled = now(store.settle(1, &entry("SN-1"), &registered));
    assert!(matches!(settled, Err(StoreError::Conflict(_))), "{settled:?}");
    assert_eq!((taken(store, "lamps"), device(store, "SN-1").unwrap().certificate), ((0, 1), None));
    assert_eq!(claim(store, 1, "SN-1"), Claimed::NoPlace);
    // The journal remembers that the device may exist at IoT Platform.
    assert_eq!(now(store.abandoned("default", 9)).unwrap(), [entry("SN-1")]);
    limit(store, 2);
    let Claimed::Yours(again) = claim(store, 2, "SN-1") else { panic!("a place is free") };
    assert_eq!(again.asked_by, AskedBy::Other);
    now(store.settle(2, &entry("SN-1"), &registered)).unwrap();
    assert_eq!((taken(store, "lamps"), taken(store, "plugs")), ((1, 1), (0, 0)));
}

/// A rotated device keeps the place of its former certificate until it has a new one.
pub(super) fn a_rotated_device_keeps_its_place(store: &(impl Store + Bulk)) {
    import(store, [with_certificate("SN-1", "s3cret"), row("SN-2")]);
    limit(store, 1);
    let placed = now(store.place_order(&id("SN-1"), OrderKind::Rotate, &by())).unwrap();
    assert!(matches!(placed, Placed::Yes(_)), "{placed:?}");
    let order = now(store.order_of(&id("SN-1"))).unwrap().unwrap();
    assert_eq!(now(store.complete_order(&order, NOW)).unwrap(), Completed::Yes);
    let has_it = || {
        assert_eq!((taken(store, "lamps"), has_place(store, "lamps")), ((0, 1), true));
        assert_eq!(claim(store, 2, "SN-2"), Claimed::NoPlace);
    };
    has_it();
    assert!(matches!(claim(store, 1, "SN-1"), Claimed::Yours(_)));
    has_it();
    // The registration is refused, or ends before its call.
    now(store.settle(1, &entry("SN-1"), &Settlement::Refused("odd: no".into()))).unwrap();
    has_it();
    now(store.reset(&id("SN-1"), &by())).unwrap();
    assert!(matches!(claim(store, 1, "SN-1"), Claimed::Yours(_)));
    now(store.release_claim(1, &id("SN-1"), false)).unwrap();
    has_it();
    // A device that leaves its enrollment also leaves its place.
    import(store, [ImportRow::new(id("SN-1"), "plugs", "a1lamp")]);
    assert_eq!((taken(store, "lamps"), has_place(store, "plugs")), ((0, 0), false));
    import(store, [row("SN-1")]);
    has_it();
    assert!(matches!(claim(store, 1, "SN-1"), Claimed::Yours(_)));
    now(store.settle(1, &entry("SN-1"), &Settlement::Registered(registration("SN-1", "n3w")))).unwrap();
    assert_eq!((taken(store, "lamps"), has_place(store, "lamps")), ((1, 0), false));
}

pub(super) fn the_claims_of_a_batch_share_the_free_places(store: &(impl Store + Bulk)) {
    import(store, ["SN-1", "SN-2", "SN-3", "SN-4"].map(row));
    limit(store, 3);
    assert!(matches!(claim(store, 1, "SN-2"), Claimed::Yours(_)));
    let batch = OpenBatch { id: 7, product_key: "a1lamp".into(), apply_id: None, target: "default".into() };
    let entries = ["SN-1", "SN-2", "SN-3", "SN-4"].map(entry);
    let claimed = now(store.claim_batch(&owner(1), &batch, &entries, NOW)).unwrap();
    let [Claimed::Yours(_), Claimed::Yours(_), Claimed::Yours(_), Claimed::NoPlace] = &claimed[..] else {
        panic!("{claimed:?}")
    };
    assert_eq!(taken(store, "lamps"), (0, 3));
    // The same batch again has the same answer.
    assert_eq!(now(store.claim_batch(&owner(1), &batch, &entries, NOW)).unwrap().len(), 4);
    assert_eq!(taken(store, "lamps"), (0, 3));
}

fn note(device: &str, address: &str, is_shared: bool) -> Note {
    Note { device: id(device), asker: Asker { address: address.into(), ..asker() }, is_shared }
}

fn noted(store: &impl Store, device: &str) {
    now(store.note_waiting(note(device, "192.0.2.1", true))).unwrap();
}

/// Returns device, enrollment and number of requests of each device that waits.
fn waiting(store: &impl Store) -> Vec<(String, String, u64)> {
    let all = now(store.waiting(None, None, usize::MAX)).unwrap();
    all.into_iter().map(|one| (one.device.to_string(), one.enrollment, one.count)).collect()
}

fn new(device: &str, enrollment: &str) -> NewDevice {
    NewDevice { device: id(device), enrollment: enrollment.into(), product_key: "a1lamp".into() }
}

fn admit(store: &impl Store, device: &str) -> Admission {
    now(store.admit(vec![new(device, "lamps")], Admits::Operator(by()))).unwrap().remove(0)
}

pub(super) fn a_device_that_is_not_in_the_table_waits_and_its_requests_are_counted(
    store: &(impl Store + Bulk),
) {
    import(store, [row("SN-1"), ImportRow::new(id("SN-2"), "plugs", "a1lamp")]);
    for device in ["SN-1", "SN-2", "SN-4", "SN-3", "SN-4"] {
        noted(store, device);
    }
    let mut other = note("SN-3", "192.0.2.9", true);
    other.asker.enrollment = "plugs".into();
    now(store.note_waiting(other)).unwrap();
    let line = |device: &str, enrollment: &str, count| (device.to_owned(), enrollment.to_owned(), count);
    let all = [line("SN-3", "lamps", 1), line("SN-3", "plugs", 1), line("SN-4", "lamps", 2)];
    assert_eq!(waiting(store), all);
    assert_eq!(
        now(store.waiting_counts()).unwrap(),
        [("lamps".to_owned(), 2), ("plugs".to_owned(), 1)],
        "devices of the table do not wait"
    );
    let page = |enrollment, after: Option<&str>, limit| -> Vec<String> {
        let after = after.map(id);
        let page = now(store.waiting(enrollment, after.as_ref(), limit)).unwrap();
        page.into_iter().map(|one| format!("{} {}", one.device, one.enrollment)).collect()
    };
    assert_eq!(page(None, None, 1), ["SN-3 lamps", "SN-3 plugs"], "all enrollments of a device");
    assert_eq!(page(None, Some("SN-3"), 9), ["SN-4 lamps"]);
    assert_eq!(page(Some("plugs"), None, 9), ["SN-3 plugs"]);
    let shown = now(store.waiting(Some("lamps"), Some(&id("SN-3")), 9)).unwrap().remove(0);
    assert_eq!((shown.address.as_str(), shown.last - shown.first >= 0), ("192.0.2.1", true));
    // An import removes its devices from the list.
    import(store, [row("SN-4")]);
    assert_eq!(page(Some("lamps"), None, 9), ["SN-3 lamps"]);
}

/// Notes requests of many devices from one address, with few syncs of the disk.
fn all_noted(store: &impl Store, numbers: Range<u64>, is_shared: bool) {
    for some in numbers.collect::<Vec<_>>().chunks(500) {
        let notes = some
            .iter()
            .map(|number| store.note_waiting(note(&format!("SN-{number:05}"), "192.0.2.1", is_shared)));
        now(Box::pin(try_join_all(notes))).unwrap();
    }
}

pub(super) fn a_full_list_takes_no_further_device(store: &impl Store) {
    all_noted(store, 0..MOST_OF_ADDRESS, true);
    noted(store, "SN-00000");
    noted(store, "SN-99999");
    let count = || now(store.waiting_counts()).unwrap()[0].1;
    assert_eq!(count(), MOST_OF_ADDRESS, "one address cannot fill the list under a shared key");
    assert_eq!(waiting(store)[0].2, 2, "a device of the list is still counted");
    now(store.note_waiting(note("SN-99998", "192.0.2.2", true))).unwrap();
    now(store.note_waiting(note("SN-99997", "192.0.2.1", false))).unwrap();
    assert_eq!(count(), MOST_OF_ADDRESS + 2, "another address, and an ID that was proven");
    all_noted(store, MOST_OF_ADDRESS + 2..MOST_OF_ENROLLMENT, false);
    now(store.note_waiting(note("SN-99996", "192.0.2.3", false))).unwrap();
    assert_eq!(count(), MOST_OF_ENROLLMENT);
}

pub(super) fn an_admitted_device_is_in_the_table_once(store: &(impl Store + Bulk)) {
    import(store, [ImportRow::new(id("SN-2"), "plugs", "a1lamp")]);
    noted(store, "SN-1");
    assert_eq!(admit(store, "SN-1"), Admission::Added);
    assert!(waiting(store).is_empty());
    let row = now(store.device(&id("SN-1"))).unwrap().unwrap();
    assert_eq!(row, DeviceRow::imported(id("SN-1"), "lamps", "a1lamp"));
    let history = now(store.history(&id("SN-1"), 9)).unwrap();
    assert_eq!((history.len(), history[0].event), (1, AuditEvent::Admitted));
    assert_eq!(
        (history[0].who.as_deref(), history[0].enrollment.as_deref()),
        (Some("user anna"), Some("lamps"))
    );
    // A device that was imported while it waited leaves the list, too.
    noted(store, "SN-3");
    import(store, [ImportRow::new(id("SN-3"), "lamps", "a1lamp")]);
    assert_eq!(admit(store, "SN-3"), Admission::Known);
    assert!(now(store.waiting_counts()).unwrap().is_empty());
    // Admitting a device again, or one of another enrollment, changes nothing.
    now(store.set_state(&id("SN-1"), DeviceState::Disabled, &by())).unwrap();
    assert_eq!((admit(store, "SN-1"), admit(store, "SN-2")), (Admission::Known, Admission::Elsewhere));
    let state = |device| now(store.device(&id(device))).unwrap().map(|row| (row.state, row.enrollment));
    assert_eq!(state("SN-1"), Some((DeviceState::Disabled, "lamps".into())));
    assert_eq!(state("SN-2"), Some((DeviceState::Enabled, "plugs".into())));
    assert!(now(store.history(&id("SN-2"), 9)).unwrap().is_empty());
}

pub(super) fn a_device_whose_name_is_taken_is_not_admitted(store: &(impl Store + Bulk)) {
    import(store, [ImportRow { device_name: Some("SN-9".into()), ..row("SN-1") }]);
    noted(store, "SN-9");
    assert_eq!(admit(store, "SN-9"), Admission::NameTaken(id("SN-1")));
    assert_eq!((waiting(store).len(), now(store.device(&id("SN-9"))).unwrap()), (1, None));
}

pub(super) fn a_mac_address_in_another_spelling_is_not_admitted(store: &(impl Store + Bulk)) {
    import(store, [ImportRow::new(DeviceId::parse_sn("001a-2b3c-4d5e").unwrap(), "plugs", "a1lamp")]);
    noted(store, "00:1A:2B:3C:4D:5E");
    assert!(waiting(store).is_empty());
    assert_eq!(admit(store, "00:1A:2B:3C:4D:5E"), Admission::Elsewhere);
}

pub(super) fn the_configuration_admits_up_to_a_number_of_rows(store: &(impl Store + Bulk)) {
    import(store, [row("SN-1")]);
    let admit = |device, max_rows| {
        let by = Admits::Configuration { asker: asker(), max_rows };
        now(store.admit(vec![new(device, "lamps")], by)).unwrap().remove(0)
    };
    assert_eq!(admit("SN-2", Some(2)), Admission::Added);
    assert_eq!(admit("SN-3", Some(2)), Admission::Full);
    assert_eq!(admit("SN-2", Some(2)), Admission::Known);
    assert_eq!(admit("SN-3", None), Admission::Added);
    let entry = now(store.history(&id("SN-2"), 9)).unwrap().remove(0);
    assert_eq!((entry.who.as_deref(), entry.address.as_deref()), (Some("SN-1"), Some("192.0.2.1")));
    assert_eq!(entry.detail.as_deref(), Some("unlisted = \"admit\""));
}

pub(super) fn a_full_enrollment_says_the_same_of_each_device_that_is_not_in_it(store: &(impl Store + Bulk)) {
    let named = ImportRow { device_name: Some("SN-9".into()), ..row("SN-1") };
    import(store, [named, ImportRow::new(id("SN-2"), "plugs", "a1lamp")]);
    let admit = |device, max_rows| {
        let foreseen = now(store.not_admitted(&new(device, "lamps"), Some(max_rows))).unwrap();
        let by = Admits::Configuration { asker: asker(), max_rows: Some(max_rows) };
        let admission = now(store.admit(vec![new(device, "lamps")], by)).unwrap().remove(0);
        assert_eq!(foreseen.unwrap_or(Admission::Added), admission, "{device}");
        admission
    };
    for device in ["SN-2", "SN-9", "SN-8"] {
        assert_eq!(admit(device, 1), Admission::Full, "{device}");
    }
    assert_eq!(admit("SN-1", 1), Admission::Known);
    assert_eq!(admit("SN-2", 2), Admission::Elsewhere);
    assert_eq!(admit("SN-9", 2), Admission::NameTaken(id("SN-1")));
    assert_eq!(now(store.not_admitted(&new("SN-8", "lamps"), Some(2))).unwrap(), None);
    assert_eq!(now(store.device(&id("SN-8"))).unwrap(), None, "nothing is written");
    assert_eq!(admit("SN-8", 2), Admission::Added);
}

pub(super) fn a_dismissed_or_silent_device_leaves_the_list(store: &(impl Store + Bulk)) {
    for device in ["SN-1", "SN-2", "SN-3", "SN-4"] {
        noted(store, device);
    }
    assert_eq!(now(store.dismiss("plugs", &[id("SN-1")])).unwrap(), 0, "it waits in another enrollment");
    assert_eq!(now(store.dismiss("lamps", &[id("SN-1"), id("SN-1"), id("SN-9")])).unwrap(), 1);
    noted(store, "SN-1");
    assert_eq!(waiting(store).len(), 4, "it asks again");
    let today = store.now();
    assert_eq!(now(store.prune_waiting(today - KEPT)).unwrap(), 0);
    import(store, [row("SN-2")]);
    assert_eq!(now(store.prune_waiting(today - KEPT)).unwrap(), 1, "the imported device");
    assert_eq!(now(store.prune_waiting(today + KEPT)).unwrap(), 3);
    assert!(waiting(store).is_empty() && now(store.waiting_counts()).unwrap().is_empty());
}

contract! {
    a_claim_takes_a_place_and_finds_none_in_a_full_enrollment
    a_device_in_the_journal_has_its_place
    a_device_that_was_moved_takes_a_place_of_its_new_enrollment
    a_device_that_is_moved_while_it_is_registered_needs_a_place
    a_rotated_device_keeps_its_place
    the_claims_of_a_batch_share_the_free_places
    a_device_that_is_not_in_the_table_waits_and_its_requests_are_counted
    a_full_list_takes_no_further_device
    an_admitted_device_is_in_the_table_once
    a_device_whose_name_is_taken_is_not_admitted
    a_mac_address_in_another_spelling_is_not_admitted
    the_configuration_admits_up_to_a_number_of_rows
    a_full_enrollment_says_the_same_of_each_device_that_is_not_in_it
    a_dismissed_or_silent_device_leaves_the_list
}
