//! Contract of the methods of [`Bulk`] that search and count devices.

use std::time::Duration;

use super::*;
use crate::store::filter::{Cursor, End, Filter, Held, State, Tally, Text};

/// More time than a search of these tests takes.
const ENOUGH: Duration = Duration::from_secs(600);

fn search(store: &impl Bulk, filter: &Filter, from: &Cursor, limit: usize) -> (Vec<String>, End) {
    let found = store.find(filter, from, limit, ENOUGH).unwrap();
    (found.devices.into_iter().map(|listed| listed.id.to_string()).collect(), found.end)
}

/// Imports devices in order of their IDs, and brings them into different states.
fn of_all_states(store: &(impl Store + Bulk)) {
    import(
        store,
        [
            row("A-imported"),
            row("B-waiting"),
            row("C-registered"),
            ImportRow { iot_id: Some("iot-d".into()), ..with_certificate("D-issued", "s3cret") },
            with_certificate("E-activated", "s3cret"),
            row("F-refused"),
            row("G-refused"),
            row("H-disabled"),
            with_certificate("I-deleted", "s3cret"),
            ImportRow {
                device_name: Some("I-deleted".into()),
                ..ImportRow::new(id("J-plug"), "plugs", "a1plug")
            },
        ],
    );
    now(store.claim(&owner(1), &entry("B-waiting"), NOW)).unwrap();
    register(store, "C-registered", "s3cret");
    issue(store, "D-issued", 1).unwrap();
    issue(store, "E-activated", 2).unwrap();
    let sight = |name: &str, sighting| {
        now(store.store_sighting(&device(store, name).unwrap(), sighting)).unwrap();
    };
    sight("E-activated", Sighting { activated: Some(9), ..Sighting::default() });
    sight("I-deleted", Sighting { state: Some(CloudState::Deleted), ..Sighting::default() });
    refuse(store, "F-refused", "odd");
    refuse(store, "G-refused", "even");
    now(store.set_state(&id("H-disabled"), DeviceState::Disabled, &by())).unwrap();
}

/// `find` returns the devices that the filter admits, and `tally` counts them.
fn a_search_finds_the_devices_that_the_filter_admits(store: &(impl Store + Bulk)) {
    of_all_states(store);
    let issued = device(store, "D-issued").unwrap().first_issued.unwrap();
    let state = |state| Filter { state: Some(state), ..Filter::default() };
    let text = |text| Filter { text: Some(text), ..Filter::default() };
    let in_state: [(State, &str); State::ALL.len()] = [
        (State::Imported, "A H J"),
        (State::Waiting, "B"),
        (State::Registered, "C D E I"),
        (State::Unissued, "C I"),
        (State::Issued, "D E"),
        (State::Activated, "E"),
        (State::Refused, "F G"),
        (State::Disabled, "H"),
        (State::DisabledAtCloud, ""),
        (State::DeletedAtCloud, "I"),
    ];
    let mut cases: Vec<(Filter, &str)> =
        in_state.into_iter().map(|(wanted, ids)| (state(wanted), ids)).collect();
    let from = |issued_from| Filter { issued_from: Some(issued_from), ..Filter::default() };
    // This time is later than every issue, although one handle's clock is two hours (`AHEAD`) ahead
    // of the other's.
    let never = issued + 2 * AHEAD;
    cases.extend([
        (Filter::default(), "A B C D E F G H I J"),
        (Filter { enrollment: Some("plugs".into()), ..Filter::default() }, "J"),
        (Filter { enrollment: Some("lamps".into()), ..state(State::Refused) }, "F G"),
        (Filter { enrollment: Some("plugs".into()), ..state(State::Refused) }, ""),
        (Filter { product_key: Some("a1plug".into()), ..Filter::default() }, "J"),
        (Filter { refusal: Some("odd".into()), ..Filter::default() }, "F"),
        (from(0), "D E"),
        (from(never), ""),
        (Filter { issued_before: Some(never), ..Filter::default() }, "D E"),
        (text(Text::Begins("G-".into())), "G"),
        (text(Text::Begins("".into())), "A B C D E F G H I J"),
        (text(Text::Begins("g-".into())), ""),
        (text(Text::Ends("REFUSED".into())), "F G"),
        (text(Text::Ends("d".into())), "A C D E F G H I"),
        (text(Text::Ends("_fused".into())), ""),
        (Filter { state: Some(State::Issued), ..text(Text::Ends("ated".into())) }, "E"),
        (text(Text::Name("I-deleted".into())), "I J"),
        (text(Text::Name("F-refused".into())), "F"),
        (text(Text::Name("J-plug".into())), ""),
        (text(Text::IotId("iot-d".into())), "D"),
        (text(Text::IotId("iot".into())), ""),
    ]);
    for (filter, ids) in cases {
        let (found, end) = search(store, &filter, &Cursor::First, 99);
        let found: Vec<&str> = found.iter().filter_map(|id| id.split('-').next()).collect();
        assert_eq!((found.join(" ").as_str(), end), (ids, End::Complete), "{filter:?}");
        let tally = store.tally(&filter, ENOUGH).unwrap();
        assert_eq!(tally, Tally { devices: found.len() as u64, is_complete: true }, "{filter:?}");
    }
    let found = store.find(&state(State::Waiting), &Cursor::First, 9, ENOUGH).unwrap();
    let [waiting] = &found.devices[..] else { panic!("{found:?}") };
    assert!(waiting.is_claimed && !waiting.is_registered && waiting.enrollment == "lamps");
}

/// `find` goes forward and backward, page by page, and says whether there are more devices.
fn a_search_goes_forward_and_backward_in_pages(store: &(impl Store + Bulk)) {
    of_all_states(store);
    let lamps = || Filter { enrollment: Some("lamps".into()), ..Filter::default() };
    let begins = || Filter { text: Some(Text::Begins("F".into())), ..Filter::default() };
    let after = |text: &str| Cursor::After(id(text));
    let before = |text: &str| Cursor::Before(id(text));
    for (filter, from, ids, end) in [
        (lamps(), Cursor::First, "A B", End::More),
        (lamps(), after("B-waiting"), "C D", End::More),
        (lamps(), after("G-refused"), "H I", End::Complete),
        (lamps(), after("I-deleted"), "", End::Complete),
        // The ID of a cursor need not be in the table.
        (lamps(), after("B-x"), "C D", End::More),
        (lamps(), before("E-activated"), "C D", End::More),
        (lamps(), before("C-registered"), "A B", End::Complete),
        (lamps(), before("A-imported"), "", End::Complete),
        (begins(), after("A-imported"), "F", End::Complete),
        (begins(), after("F-refused"), "", End::Complete),
        (begins(), before("J-plug"), "F", End::Complete),
        (Filter { state: Some(State::Waiting), ..Filter::default() }, after("B-waiting"), "", End::Complete),
        (
            Filter { state: Some(State::Refused), ..Filter::default() },
            before("G-refused"),
            "F",
            End::Complete,
        ),
    ] {
        let (found, ended) = search(store, &filter, &from, 2);
        let found: Vec<&str> = found.iter().filter_map(|id| id.split('-').next()).collect();
        assert_eq!((found.join(" ").as_str(), ended), (ids, end), "{filter:?} {from:?}");
    }
}

/// `held` counts the waiting devices of each enrollment and the refused devices of each enrollment
/// and reason, the largest groups first.
fn devices_that_wait_or_are_refused_are_counted_by_reason(store: &(impl Store + Bulk)) {
    of_all_states(store);
    import(store, [row("K-refused")]);
    refuse(store, "K-refused", "odd");
    let held = |refusal: Option<&str>, devices| Held {
        enrollment: "lamps".into(),
        refusal: refusal.map(str::to_owned),
        devices,
    };
    let all = [held(None, 1), held(Some("odd"), 2), held(Some("even"), 1)];
    assert_eq!(store.held(9).unwrap(), all);
    assert_eq!(store.held(1).unwrap(), all[..2]);
}

/// `listed` returns the devices of a list that are in the table, in the order of the list.
fn the_devices_of_a_list_are_returned_in_its_order(store: &(impl Store + Bulk)) {
    of_all_states(store);
    let asked = ["E-activated", "absent", "B-waiting", "F-refused"].map(id);
    let listed = store.listed(&asked).unwrap();
    let seen: Vec<_> = listed
        .iter()
        .map(|one| (one.id.as_str(), one.is_registered, one.is_claimed, one.refusal.as_deref()))
        .collect();
    assert_eq!(
        seen,
        [
            ("E-activated", true, false, None),
            ("B-waiting", false, true, None),
            ("F-refused", false, false, Some("odd"))
        ]
    );
    assert!(listed[0].first_issued.is_some());
    assert_eq!(store.listed(&[]).unwrap(), []);
}

/// `products` returns the product of each device once.
fn each_product_is_returned_once(store: &(impl Store + Bulk)) {
    assert_eq!(store.products().unwrap(), [""; 0]);
    of_all_states(store);
    assert_eq!(store.products().unwrap(), ["a1lamp", "a1plug"]);
    now(store.delete(&id("J-plug"), &by())).unwrap();
    assert_eq!(store.products().unwrap(), ["a1lamp"]);
}

contract! {
    the_devices_of_a_list_are_returned_in_its_order
    each_product_is_returned_once
    a_search_finds_the_devices_that_the_filter_admits
    a_search_goes_forward_and_backward_in_pages
    devices_that_wait_or_are_refused_are_counted_by_reason
}
