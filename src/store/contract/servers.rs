//! Contract of the servers of a table.

use std::time::Duration;

use super::*;
use crate::store::server::{Facts, Load, Server, ServerView, Servers, WallClock, system_millis};

fn server(id: i64, name: &str) -> Server {
    Server {
        id,
        name: name.into(),
        command: "serve".into(),
        version: "1.2.3".into(),
        host: "machine".into(),
        process: 4711,
        listen: "192.0.2.1:5684,[2001:db8::1]:5684".into(),
        owners: vec![10 * id, 10 * id + 1],
        facts: Facts { enrollments: "e".into(), keys: "k".into(), database_key: Some("00112233".into()) },
        load: Load { requests_per_minute: 600, registrations: 7 },
    }
}

fn beat(store: &impl Servers, server: &Server) {
    now(store.beat_server(server, WallClock::read())).unwrap();
}

fn all(store: &impl Servers) -> Vec<ServerView> {
    now(store.servers()).unwrap()
}

fn names(store: &impl Servers) -> Vec<String> {
    all(store).into_iter().map(|view| view.server.name).collect()
}

/// `beat_server` keeps one row for each server, and `servers` returns all values of its last beat.
fn a_server_has_one_row_that_says_what_it_last_said(store: &(impl Store + Bulk)) {
    assert_eq!(all(store), []);
    let before = system_millis() / 1000 - 1;
    beat(store, &server(2, "west"));
    beat(store, &server(1, "east"));
    let first = all(store);
    assert_eq!(names(store), ["east", "west"]);
    let changed = Server {
        load: Load::default(),
        owners: vec![],
        facts: Facts { enrollments: "f".into(), keys: "l".into(), database_key: None },
        ..server(1, "east")
    };
    beat(store, &changed);
    let views = all(store);
    assert_eq!(views.iter().map(|view| &view.server).collect::<Vec<_>>(), [&changed, &server(2, "west")]);
    for (view, first) in views.iter().zip(&first) {
        assert_eq!(view.since, first.since);
        assert!(view.last_beat >= view.since && view.since >= before, "{view:?}");
        assert!(!view.is_gone() && view.schema > 0, "{view:?}");
        assert!(view.clock_ahead.abs() < 3_600_000, "{view:?}");
    }
    now(store.remove_server(1)).unwrap();
    now(store.remove_server(1)).unwrap();
    assert_eq!(names(store), ["west"]);
}

/// The difference of the clocks is that of the process's clock, and does not depend on the clock of the
/// store's handle.
fn a_clock_that_is_wrong_is_seen_beside_the_databases(store: &(impl Store + Bulk)) {
    for ahead in [3600, -3600] {
        let clock = WallClock::showing(system_millis() + 1000 * ahead);
        now(store.beat_server(&server(1, "east"), clock)).unwrap();
        let seen = all(store)[0].clock_ahead;
        assert!((seen - 1000 * ahead).abs() < 1_000_000, "{ahead}: {seen}");
    }
}

/// `servers` returns the leases of each server that is alive as an owner.
fn a_server_shows_the_leases_that_it_has(store: &(impl Store + Bulk)) {
    beat(store, &server(1, "east"));
    beat(store, &server(2, "west"));
    now(store.take_lease(&owner(11), "sweep")).unwrap().unwrap();
    now(store.take_lease(&owner(20), "prune")).unwrap().unwrap();
    now(store.take_lease(&owner(99), "other")).unwrap().unwrap();
    let leases = |name: &str| all(store).into_iter().find(|view| view.server.name == name).unwrap().leases;
    assert_eq!(leases("east"), ["sweep"]);
    assert_eq!(leases("west"), ["prune"]);
    now(store.give_lease_up(11, "sweep")).unwrap();
    assert_eq!(leases("east"), [""; 0]);
}

/// `remove_silent_servers` removes the servers that have not beaten for the given time, and those above
/// the maximum.
fn the_rows_of_servers_are_bounded_in_time_and_number(store: &(impl Store + Bulk)) {
    (1..=5).for_each(|id| beat(store, &server(id, &format!("server-{id}"))));
    let remove = |silent, most| now(store.remove_silent_servers(Duration::from_secs(silent), most)).unwrap();
    assert_eq!(remove(86_400, 5), 0);
    assert_eq!(remove(86_400, 3), 2);
    assert_eq!(names(store).len(), 3);
    assert_eq!(remove(0, 3), 3);
    assert_eq!(all(store), []);
}

contract! {
    a_server_has_one_row_that_says_what_it_last_said
    a_clock_that_is_wrong_is_seen_beside_the_databases
    a_server_shows_the_leases_that_it_has
    the_rows_of_servers_are_bounded_in_time_and_number
}
