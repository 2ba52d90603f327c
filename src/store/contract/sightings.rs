//! Contract of `Sightings`: reading devices for a sweep, and storing the sweep's results.

use super::*;
use crate::store::sighting::{IssuePlace, Watched};

fn watched(store: &impl Store, name: &str) -> Watched {
    Watched::from(&device(store, name).unwrap())
}

fn ids(devices: &[Watched]) -> Vec<&str> {
    devices.iter().map(|device| device.id.as_str()).collect()
}

/// `registered_after` examines rows with and without a certificate, and returns only the rows with
/// one.
fn registered_devices_are_read_in_pages_of_rows(store: &(impl Store + Bulk)) {
    import(
        store,
        [with_certificate("SN-1", "s3cret"), row("SN-2"), row("SN-3"), with_certificate("SN-4", "s")],
    );
    let page = |after: Option<&str>, limit| {
        let after = after.map(id);
        let examined = now(store.registered_after(after.as_ref(), limit)).unwrap();
        let ids: Vec<String> = ids(&examined.devices).into_iter().map(str::to_owned).collect();
        (ids, examined.last.map(|last| last.to_string()))
    };
    assert_eq!(page(None, 2), (vec!["SN-1".into()], Some("SN-2".into())));
    assert_eq!(page(Some("SN-1"), 2), (vec![], Some("SN-3".into())));
    assert_eq!(page(Some("SN-2"), 2), (vec!["SN-4".into()], Some("SN-4".into())));
    assert_eq!(page(Some("SN-3"), 2), (vec!["SN-4".into()], None));
    assert_eq!(page(Some("SN-4"), 2), (vec![], None));
    let all = now(store.registered_after(None, 9)).unwrap().devices;
    assert_eq!(all, [watched(store, "SN-1"), watched(store, "SN-4")]);
}

/// `unactivated` returns the devices that were issued within the range and have not signed in, the
/// latest issue first.
fn devices_that_have_not_signed_in_are_read_from_the_latest_issue(store: &(impl Store + Bulk)) {
    let names = ["SN-1", "SN-2", "SN-3", "SN-4", "SN-5", "SN-6"];
    import(store, names.map(|name| with_certificate(name, "s3cret")));
    // The two handles have different clocks, so their issues are two hours apart.
    let issued = ["SN-1", "SN-2", "SN-3", "SN-4", "SN-5"].map(|name| issue(store, name, 1).unwrap().first);
    let sight = |name, sighting| now(store.store_sightings(vec![(watched(store, name), sighting)])).unwrap();
    sight("SN-4", Sighting { state: Some(CloudState::Deleted), ..Sighting::default() });
    sight("SN-5", Sighting { activated: Some(5), ..Sighting::default() });
    sight("SN-2", Sighting { state: Some(CloudState::Disabled), ..Sighting::default() });
    let (first, last) = (issued.into_iter().min().unwrap(), issued.into_iter().max().unwrap());
    let read =
        |range, after: Option<&IssuePlace>, limit| now(store.unactivated(range, after, limit)).unwrap();

    let mut expected = ["SN-1", "SN-2", "SN-3"].map(|name| watched(store, name));
    expected.sort_by_key(|device| std::cmp::Reverse((device.first_issued, device.id.clone())));
    assert_eq!(read(first..last + 1, None, 9), expected);
    assert_eq!(read(first..last + 1, None, 1), expected[..1]);
    for (index, device) in expected.iter().enumerate() {
        let place = IssuePlace { issued: device.first_issued.unwrap(), device: device.id.clone() };
        assert_eq!(read(first..last + 1, Some(&place), 9), expected[index + 1..]);
    }
    // The end of the range is excluded, even if the place lies after the end.
    let within = |from: UnixSeconds, until: UnixSeconds| {
        let range = from..until;
        let of = expected.iter().filter(|device| range.contains(&device.first_issued.unwrap()));
        of.cloned().collect::<Vec<_>>()
    };
    let late = IssuePlace { issued: last + 9, device: id("SN-9") };
    for (from, until) in [(first, last), (first + 1, last + 1), (last, last), (last + 1, last + 9)] {
        assert_eq!(read(from..until, None, 9), within(from, until));
        assert_eq!(read(from..until, Some(&late), 9), within(from, until));
    }
    // After a reset and another issue, the device is returned again.
    now(store.reset(&id("SN-1"), &by())).unwrap();
    assert!(!ids(&read(0..last + 99, None, 9)).contains(&"SN-1"));
    let again = issue(store, "SN-1", 2).unwrap().first;
    assert!(ids(&read(again..again + 1, None, 9)).contains(&"SN-1"));
}

/// `store_sightings` treats each sighting like a sighting that is stored alone.
fn sightings_are_stored_together(store: &(impl Store + Bulk)) {
    import(store, ["SN-1", "SN-2", "SN-3"].map(|name| with_certificate(name, "s3cret")));
    let seen = |name| watched(store, name);
    let other = Watched { device_name: "former".into(), ..seen("SN-2") };
    let first = Sighting { registered: Some(3), activated: Some(5), state: None };
    let deleted = Sighting { state: Some(CloudState::Deleted), ..Sighting::default() };
    now(store.store_sightings(vec![(seen("SN-1"), first), (other, deleted), (seen("SN-3"), deleted)]))
        .unwrap();
    let row = |name: &str| device(store, name).unwrap();
    assert_eq!((row("SN-1").registered, row("SN-1").activated), (Some(3), Some(5)));
    assert_eq!(row("SN-2").cloud_state, None);
    assert_eq!(row("SN-3").cloud_state, Some(CloudState::Deleted));
    now(store.store_sightings(Vec::new())).unwrap();
}

contract! {
    registered_devices_are_read_in_pages_of_rows
    devices_that_have_not_signed_in_are_read_from_the_latest_issue
    sightings_are_stored_together
}
