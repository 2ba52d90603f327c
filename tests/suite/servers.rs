//! Tests of `certdist servers`: servers of one table know of each other.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::{Site, stderr, stdout};

/// Longest wait for a server's row.
const WAIT: Duration = Duration::from_secs(120);

fn configuration(name: &str, product: &str) -> String {
    format!(
        "listen = \"127.0.0.1:0\"\ndatabase = \"sqlite:certdist.db\"\nserver_name = \"{name}\"\n\
         [[enrollment]]\nname = \"lamp\"\nproduct_key = \"{product}\"\nkind = \"derived\"\n\
         key = \"hex:000102030405060708090a0b0c0d0e0f\"\n"
    )
}

fn servers(site: &Site) -> Value {
    serde_json::from_str(&site.succeeds(&["servers", "--json"])).expect("JSON")
}

/// Waits until the table is as `is` expects.
fn wait(site: &Site, is: impl Fn(&Value) -> bool) -> Value {
    let deadline = Instant::now() + WAIT;
    loop {
        let seen = servers(site);
        if is(&seen) {
            return seen;
        }
        assert!(Instant::now() < deadline, "{seen}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn count(seen: &Value) -> usize {
    seen["servers"].as_array().expect("a list").len()
}

#[test]
fn servers_of_one_table_are_listed_until_they_stop_and_what_differs_is_said() {
    let site = Site::configured(&configuration("east", "a1"));
    site.import("deviceId\nSN-1\n");
    let listed = site.run(&["servers"]);
    assert!(listed.status.success() && stderr(&listed).contains("no server"), "{}", stderr(&listed));
    let east = site.serve();
    wait(&site, |seen| count(seen) == 1);
    site.write("certdist.toml", &configuration("west", "a2"));
    let west = site.serve();
    let seen = wait(&site, |seen| count(seen) == 2);
    let names: Vec<&str> =
        seen["servers"].as_array().unwrap().iter().map(|one| one["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["east", "west"]);
    for one in seen["servers"].as_array().unwrap() {
        assert_eq!((&one["command"], &one["gone"]), (&"serve".into(), &false.into()), "{one}");
        assert_eq!(one["version"], env!("CARGO_PKG_VERSION"));
        assert!(one["listen"][0].as_str().unwrap().starts_with("127.0.0.1:"), "{one}");
        assert!(one["clockAheadMilliseconds"].as_i64().unwrap().abs() < 60_000, "{one}");
    }
    let listed = site.run(&["servers"]);
    let (table, warnings) = (stdout(&listed), stderr(&listed));
    assert!(table.contains("east") && table.contains("west") && table.contains("0 registrations"), "{table}");
    assert!(warnings.contains("different enrollments (east / west)"), "{warnings}");
    let checked = site.run(&["check-config"]);
    assert!(
        stderr(&checked).contains("the server east of this table has other enrollments"),
        "{}",
        stderr(&checked)
    );
    // The key itself is nowhere in the table.
    assert!(!seen.to_string().contains("000102030405"));

    // A server that stops removes its row. The row of a server that is killed stays.
    assert_eq!(west.stop(), Some(0));
    assert_eq!(count(&servers(&site)), 1);
    east.kill();
    assert_eq!(count(&servers(&site)), 1);
}

#[test]
fn two_servers_with_one_name_are_said() {
    let site = Site::configured(&configuration("east", "a1"));
    site.import("deviceId\nSN-1\n");
    let (one, other) = (site.serve(), site.serve());
    // The second beats show that both are alive at the same time.
    let deadline = Instant::now() + WAIT;
    loop {
        one.signal("HUP");
        other.signal("HUP");
        let said = servers(&site)["differences"].to_string();
        if said.contains("2 servers have the name east, east") {
            break;
        }
        assert!(Instant::now() < deadline, "{said}");
        std::thread::sleep(Duration::from_millis(300));
    }
    assert_eq!(one.stop(), Some(0));
    assert_eq!(other.stop(), Some(0));
}
