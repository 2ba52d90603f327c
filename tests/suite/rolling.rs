//! Tests of the replacement of individual devices' keys: an import gives each device a second key, the
//! devices begin to use it, and a command removes the former keys.

use std::time::{Duration, Instant};

use rusqlite::Connection;

use crate::support::{
    Process, Site,
    console::{Visitor, admin, free_address},
    http_get, stderr, stdout, wait_for,
};

const OLD: &str = "00112233445566778899aabbccddeeff";
const NEW: &str = "a0112233445566778899aabbccddeeff";
const OTHER: &str = "b0112233445566778899aabbccddeeff";

fn own(sections: &str) -> Site {
    Site::configured(&format!(
        "listen = \"127.0.0.1:0\"\ndatabase = \"sqlite:certdist.db\"\n{sections}\n\
         [[enrollment]]\nname = \"own\"\nproduct_key = \"a1own\"\nkind = \"individual\"\n"
    ))
}

const HEAD: &str = "deviceId,deviceName,deviceSecret,pskIdentity,psk,pskNext\n";

/// Returns a line of a device that has its certificate.
fn line(number: usize, psk: &str, next: &str) -> String {
    format!("SN-{number},name-{number},secret0000000000000000000{number:07},id-{number},{psk},{next}\n")
}

fn is_served(site: &Site, server: &Process, number: usize, key: &str) -> bool {
    let (address, identity) = (server.address.to_string(), format!("id-{number}"));
    let device =
        ["device-sim", "--server", &address, "--identity", &identity, "--psk", key, "--patience", "3"];
    site.run(&device).status.success()
}

#[test]
fn the_keys_of_devices_are_rolled_without_losing_one() {
    let console = free_address();
    let site = own(&admin(console, ""));
    site.import(&format!("{HEAD}{}{}{}", line(1, OLD, ""), line(2, OLD, ""), line(3, OLD, "")));
    let server = site.serve();
    let device = |id: &str| site.succeeds(&["device", "show", id]);
    let show = || site.succeeds(&["enrollment", "show", "own"]);
    assert!(is_served(&site, &server, 1, OLD) && !is_served(&site, &server, 1, NEW));
    assert!(!device("SN-1").contains("pskNext") && !show().contains("psk"), "{}", show());
    assert!(!site.succeeds(&["export"]).contains("pskNext"));
    let none = site.run(&["device", "key", "SN-1", "--next-becomes-key"]);
    assert!(stderr(&none).contains("SN-1 has no second key"), "{}", stderr(&none));

    // Both keys of three devices, one of which moves over.
    let both = format!("{HEAD}{}{}{}", line(1, OLD, NEW), line(2, OLD, NEW), line(3, OLD, NEW));
    site.write("both.csv", &both);
    assert!(site.succeeds(&["import", "both.csv"]).contains("0 devices added, 3 changed, 0 unchanged"));
    assert!(site.succeeds(&["import", "both.csv"]).contains("0 changed, 3 unchanged"), "the file once more");
    assert!(device("SN-1").contains("pskNext       not used since 20"), "{}", device("SN-1"));
    assert!(show().contains("3 devices have used neither"), "{}", show());
    assert!(is_served(&site, &server, 1, NEW) && is_served(&site, &server, 2, OLD));
    assert!(is_served(&site, &server, 2, NEW) && is_served(&site, &server, 2, OLD));
    assert!(!is_served(&site, &server, 1, OTHER) && !is_served(&site, &server, 9, NEW));
    // What was seen is written at once after a reload, and otherwise once a minute.
    server.signal("HUP");
    wait_for(show, |shown| shown.contains("1 of 3 devices with two keys used this one last; last used 20"));
    assert!(show().contains("1 devices have used neither"), "{}", show());
    assert!(device("SN-1").contains("; the device uses this one"), "{}", device("SN-1"));
    let json: serde_json::Value =
        serde_json::from_str(&site.succeeds(&["device", "show", "SN-2", "--json"])).expect("JSON");
    let keys = &json["keys"];
    assert!(keys["current"]["lastUsed"].as_str() >= keys["next"]["lastUsed"].as_str(), "{keys}");
    let json: serde_json::Value =
        serde_json::from_str(&site.succeeds(&["enrollment", "show", "own", "--json"])).expect("JSON");
    assert_eq!(json["keys"]["devices"], 3, "{json}");
    let metrics = http_get(console, "/metrics");
    for (key, count) in [("current", 2), ("next", 2)] {
        let line = format!("\ncertdist_key_handshakes_total{{enrollment=\"own\",key=\"{key}\"}} {count}\n");
        assert!(metrics.contains(&line), "{metrics}");
    }
    let guest = Visitor::new(console, "guest");
    let page = guest.get("/enrollments").body;
    assert!(page.contains("used the second key (pskNext) last"), "{page}");
    let device_page = guest.get("/device?id=SN-1").body;
    assert!(device_page.contains("Second key (pskNext)"), "{device_page}");

    // The devices that have not moved over are left out.
    let end = ["device", "key", "--enrollment", "own", "--next-becomes-key"];
    let would = site.run(&[&end[..], &["--dry-run"]].concat());
    assert_eq!(stdout(&would), "SN-2\nSN-3\nown: the second key of 1 device would be the only key\n");
    assert!(stderr(&would).contains("2 devices would be left out (SN-2, SN-3)"), "{}", stderr(&would));
    let alone = site.run(&["device", "key", "SN-3", "--next-becomes-key"]);
    assert!(stderr(&alone).contains("has not used its second key last"), "{}", stderr(&alone));
    assert!(site.succeeds(&end).contains("own: the second key of 1 device is the only key now"));
    assert!(is_served(&site, &server, 1, NEW) && !is_served(&site, &server, 1, OLD));
    assert!(is_served(&site, &server, 2, OLD), "it was left out");
    assert!(site.succeeds(&["device", "key", "SN-3", "--drop-next"]).contains("was taken away"));
    assert!(is_served(&site, &server, 3, OLD) && !is_served(&site, &server, 3, NEW));
    site.write("rest.csv", "deviceId\nSN-2\nSN-1\n");
    let rest = site.run(&["device", "key", "--file", "rest.csv", "--next-becomes-key", "--anyway"]);
    assert!(
        rest.status.success() && stderr(&rest).contains("1 devices have no second key"),
        "{}",
        stderr(&rest)
    );
    assert!(is_served(&site, &server, 2, NEW) && !is_served(&site, &server, 2, OLD));
    assert!(!show().contains("psk"), "{}", show());
    // The file of the roll would bring a former key back.
    let late = site.run(&["import", "both.csv"]);
    assert!(
        stderr(&late).contains("column pskNext: this is the psk that the device has"),
        "{}",
        stderr(&late)
    );
    let log = site.succeeds(&["audit", "export"]);
    assert_eq!(log.matches("\"rekeyed\"").count(), 3, "{log}");
    for text in [&log, &page, &device_page, &metrics, &show()] {
        assert!(!text.contains(OLD) && !text.contains(NEW));
    }
    assert_eq!(server.stop(), Some(0));
}

#[test]
fn lines_with_a_second_key_that_cannot_be_right_are_refused_and_not_repeated() {
    let site = own("");
    site.import(&format!("{HEAD}{}", line(1, OLD, "")));
    for (text, expected) in [
        (
            format!("deviceId,pskNext\nSN-1,{NEW}\n"),
            "column pskNext: a device gets a second key beside the one",
        ),
        (format!("{HEAD}SN-1,,,,,{NEW}\n"), "column pskNext: a device gets a second key beside the one"),
        (format!("{HEAD}SN-1,,,id-1,,{NEW}\n"), "column psk: empty, but there is a pskIdentity"),
        (format!("{HEAD}{}", line(1, OLD, OLD)), "column pskNext: the same key as psk"),
        (format!("{HEAD}{}", line(1, OLD, &OLD.to_uppercase())), "column pskNext: the same key as psk"),
        (format!("{HEAD}{}", line(1, OLD, &NEW[2..])), "column pskNext: 30 hex digits, expected 32 to 128"),
        (format!("{HEAD}{}", line(1, OLD, "null")), "column pskNext: "),
        (format!("{HEAD}{}", line(1, OLD, "#N/A")), "column pskNext: "),
        (format!("{HEAD}{}", line(1, OLD, &"0".repeat(32))), "column pskNext: every digit is the same"),
        (format!("{HEAD}{}", line(1, OTHER, NEW)), "column psk: the device has another key"),
        (format!("{HEAD}{}", line(1, NEW, OLD)), "column pskNext: this is the psk that the device has"),
    ] {
        site.write("bad.csv", &text);
        let refused = site.run(&["import", "bad.csv"]);
        assert_eq!(refused.status.code(), Some(1));
        let said = stderr(&refused);
        assert!(said.contains(expected), "{said}\n{expected}");
        assert!(!said.contains(&OLD[2..]) && !said.contains(&NEW[2..]), "{said}");
    }
    // Nothing was changed. The column has the spellings of the column psk.
    for name in ["pskNext", "psk_next", "PSK NEXT", "key_next", "preSharedKeyNext", "next psk"] {
        let text = format!("deviceId,identity,preSharedKey,{name}\nSN-1,id-1,{OLD},{NEW}\n");
        site.write("good.csv", &text);
        assert!(site.succeeds(&["import", "good.csv", "--dry-run"]).contains("1 would be changed"), "{name}");
    }
}

#[test]
fn second_keys_go_with_an_export_an_undo_and_a_deletion() {
    let site = own("database_key = \"file:database.key\"");
    site.write("database.key", &"17".repeat(32));
    site.import(&format!("{HEAD}{}{}", line(1, OLD, ""), line(2, OLD, NEW)));
    let before = site.succeeds(&["export"]);
    site.write("both.csv", &format!("{HEAD}{}", line(1, OLD, NEW)));
    site.succeeds(&["import", "both.csv"]);
    let both = site.succeeds(&["export"]);
    assert!(both.starts_with(
        "deviceId,enrollment,productKey,deviceName,deviceSecret,iotId,pskIdentity,psk,pskNext\n"
    ));
    assert_eq!(both.matches(NEW).count(), 2, "{both}");
    // An export can be imported elsewhere, and gives the same table.
    let other = own("");
    other.import(&both);
    assert_eq!(other.succeeds(&["export"]), both);
    let status = site.succeeds(&["database", "status"]);
    assert!(status.contains("2 device secrets, 4 psks"), "{status}");
    let list = site.succeeds(&["import", "list"]);
    let number = list.lines().find(|line| line.contains("both.csv")).expect("it is listed");
    let number = number.split_whitespace().next().expect("its number").to_owned();
    site.succeeds(&["import", "undo", &number, "--yes"]);
    assert_eq!(site.succeeds(&["export"]), before);
    site.succeeds(&["device", "delete", "SN-2", "--yes"]);
    assert!(!site.succeeds(&["export"]).contains("pskNext"));
    let bytes = std::fs::read(site.path("certdist.db")).expect("the database");
    for key in [OLD, NEW] {
        assert!(!bytes.windows(key.len()).any(|window| window == key.as_bytes()));
    }
}

#[test]
fn a_second_key_that_a_device_used_last_is_left_to_it() {
    let site = own("");
    site.import(&format!("{HEAD}{}{}{}", line(1, OLD, ""), line(2, OLD, ""), line(3, OLD, "")));
    site.write("both.csv", &format!("{HEAD}{}{}{}", line(1, OLD, NEW), line(2, OLD, NEW), line(3, OLD, NEW)));
    let said = stderr(&site.run(&["import", "both.csv"]));
    let (_, number) = said.split_once("certdist import undo ").expect("its number");
    let number = number.trim_end();
    let table = Connection::open(site.path("certdist.db")).expect("opened");
    table
        .execute("UPDATE device_key SET pskNextUsed = nextSince WHERE deviceId = 'SN-1'", ())
        .expect("a server notes a use");

    let refused = site.run(&["device", "key", "SN-1", "--drop-next"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(stderr(&refused).contains("SN-1 has used its second key last"), "{}", stderr(&refused));
    let would = site.run(&["device", "key", "--enrollment", "own", "--drop-next", "--dry-run"]);
    assert_eq!(stdout(&would), "SN-1\nown: the second key of 2 devices would be taken away\n");
    let expected = "1 devices would be left out (SN-1), because they have used their second key last";
    assert!(stderr(&would).contains(expected), "{}", stderr(&would));

    let named = "note: 1 devices stay as they are: SN-1\n";
    let refused = site.run(&["import", "undo", number, "--dry-run"]);
    assert_eq!(refused.status.code(), Some(1));
    let said = stderr(&refused);
    assert!(said.contains("1 of the 3 devices of import") && said.contains(named), "{said}");
    let would = site.run(&["import", "undo", number, "--rest", "--dry-run"]);
    let expected =
        format!("import {number}: 0 devices would be removed, 2 would be restored, 1 left as they are\n");
    assert_eq!((stdout(&would), stderr(&would)), (expected, named.to_owned()));
    site.succeeds(&["import", "undo", number, "--rest", "--yes"]);
    assert_eq!(site.succeeds(&["export"]).matches(NEW).count(), 1);
    let anyway = ["device", "key", "SN-1", "--drop-next", "--anyway"];
    assert!(site.succeeds(&anyway).contains("SN-1: the second key was taken away"));
    assert!(!site.succeeds(&["export"]).contains(NEW));
}

#[test]
fn an_import_of_second_keys_that_is_killed_changes_nothing() {
    const DEVICES: usize = 10_000;
    let site = own("");
    let file = |next: &str| {
        let mut text = "deviceId,pskIdentity,psk,pskNext\n".to_owned();
        (0..DEVICES).for_each(|number| text.push_str(&format!("SN-{number:06},id-{number},{OLD},{next}\n")));
        text
    };
    site.import(&file(""));
    let before = site.succeeds(&["export"]);
    site.write("both.csv", &file(NEW));
    let mut import = site.certdist(&["import", "both.csv"]).spawn().expect("it starts");
    let table = Connection::open(site.path("certdist.db")).expect("opened");
    let has_begun = || {
        let sql = "SELECT EXISTS (SELECT 1 FROM device_key WHERE pskNext IS NOT NULL)";
        table.query_row(sql, (), |row| row.get::<_, bool>(0)).unwrap_or(false)
    };
    let deadline = Instant::now() + Duration::from_secs(60);
    while !has_begun() {
        assert!(Instant::now() < deadline && import.try_wait().expect("its status").is_none());
        std::thread::sleep(Duration::from_millis(1));
    }
    import.kill().expect("it is ours");
    import.wait().expect("its status");
    let sql = "SELECT EXISTS (SELECT 1 FROM import_unfinished)";
    let was_cut_off: bool = table.query_row(sql, (), |row| row.get(0)).expect("read");
    // The next import takes back what was written. It changes nothing itself.
    site.write("none.csv", "deviceId\nSN-000000\n");
    site.succeeds(&["import", "none.csv"]);
    let after = site.succeeds(&["export"]);
    match was_cut_off {
        true => assert!(after == before),
        false => assert_eq!(after.matches(NEW).count(), DEVICES, "it had ended before it was killed"),
    }
    site.succeeds(&["import", "both.csv"]);
    assert_eq!(site.succeeds(&["export"]).matches(NEW).count(), DEVICES);
}
