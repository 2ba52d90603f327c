//! Tests of the guards of an enrollment with real processes: devices that ask, an operator who
//! admits them, and two servers on one database.
#![cfg(feature = "simulation")]

use std::{net::SocketAddr, time::Duration};

use crate::support::{
    Process, SHARED_IDENTITY, SHARED_KEY, Site,
    console::{Visitor, admin, free_address},
    http_get, stderr, stdout,
};
use certdist::simulated_device::{Answer, SimulatedDevice};

/// Creates a site whose shared enrollment `plug` has these further lines in its configuration.
fn site(simulator: &Process, lines: &str) -> Site {
    let site = Site::with_cloud(&format!("http://{}", simulator.address));
    guard(&site, lines);
    site
}

/// Adds lines to the enrollment `plug`, which is the last one of the configuration.
fn guard(site: &Site, lines: &str) {
    let configuration = std::fs::read_to_string(site.path("certdist.toml")).expect("it is there");
    let at = configuration.rfind("name = \"plug\"").expect("the enrollment");
    let end = configuration[at..].find("# guards\n").map_or(configuration.len(), |found| at + found);
    site.write("certdist.toml", &format!("{}# guards\n{lines}\n", &configuration[..end]));
}

/// Returns `2.05`, or the code, the title and the time to wait of another answer.
fn ask(server: &Process, sn: &str) -> String {
    ask_at(server.address, sn)
}

fn ask_at(server: SocketAddr, sn: &str) -> String {
    let device = SimulatedDevice {
        server,
        identity: SHARED_IDENTITY.into(),
        psk: SHARED_KEY.into(),
        sn: Some(sn.into()),
        asks_host: false,
        patience: Duration::from_secs(30),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    match runtime.block_on(device.fetch()).expect("an answer") {
        Answer::Certificate { .. } => "2.05".into(),
        Answer::Refused { code, title, max_age } => {
            format!("{code} {title} {}", max_age.map_or(String::new(), |seconds| seconds.to_string()))
        }
    }
}

/// Waits until the table has noted that a device waits. The answer to the device is sent before.
fn until_noted(site: &Site, sn: &str) {
    while !stdout(&site.run(&["device", "waiting", "--json"])).contains(sn) {
        std::thread::yield_now();
    }
}

fn registered_there(simulator: &Process) -> u64 {
    let stats: serde_json::Value =
        serde_json::from_str(&http_get(simulator.address, "/stats")).expect("JSON");
    stats["devices"].as_u64().expect("a number")
}

#[test]
fn a_held_device_is_listed_admitted_and_served() {
    let cloud = Site::new();
    let simulator = cloud.simulator(&[]);
    let site = site(&simulator, "unlisted = \"hold\"");
    site.import("deviceId,enrollment\nLAMP-1,lamp\nPLUG-1,plug\n");
    let server = site.serve();
    assert_eq!(ask(&server, "PLUG-1"), "2.05");
    for sn in ["NEW-1", "NEW-2", "NEW-3", "NEW-1", "LAMP-1"] {
        assert_eq!(ask(&server, sn), "5.03 device is not admitted yet 300", "{sn}");
    }
    let list = stdout(&site.run(&["device", "waiting"]));
    let lines: Vec<Vec<&str>> = list.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(lines[1][..2], ["NEW-1", "plug"], "{list}");
    assert_eq!(lines[1][4..], ["2", "127.0.0.1"], "{list}");
    assert!(!list.contains("LAMP-1"), "a device of another enrollment does not wait: {list}");
    let page = site.run(&["device", "waiting", "--limit", "1"]);
    assert_eq!(stderr(&page), "there are more; continue with --after NEW-1\n");
    let json = stdout(&site.run(&["device", "waiting", "--json", "--after", "NEW-1", "--limit", "1"]));
    let json: serde_json::Value = serde_json::from_str(&json).expect("one line");
    assert_eq!((&json["deviceId"], &json["requests"]), (&"NEW-2".into(), &1.into()));
    let shown = stdout(&site.run(&["enrollment", "show", "plug"]));
    assert!(shown.contains("unlisted") && shown.contains("3 to be admitted"), "{shown}");

    let admitted = site.run(&["device", "admit", "NEW-1"]);
    assert_eq!(stdout(&admitted), "1 device admitted\n", "{}", stderr(&admitted));
    assert_eq!(
        stdout(&site.run(&["device", "admit", "NEW-1"])),
        "0 devices admitted, 1 in the table already\n"
    );
    assert_eq!(ask(&server, "NEW-1"), "2.05");
    let absent = site.run(&["device", "admit", "NOBODY"]);
    assert_eq!((absent.status.code(), stdout(&absent).as_str()), (Some(1), "0 devices admitted\n"));
    assert!(stderr(&absent).contains("1 device (NOBODY) neither wait"), "{}", stderr(&absent));
    assert_eq!(stdout(&site.run(&["device", "dismiss", "NEW-3"])), "1 device dismissed\n");
    site.write("some.csv", "deviceId\nNEW-2\n");
    assert_eq!(stdout(&site.run(&["device", "admit", "--file", "some.csv"])), "1 device admitted\n");
    assert_eq!(ask(&server, "NEW-3"), "5.03 device is not admitted yet 300");
    until_noted(&site, "NEW-3");
    let all = site.run(&["device", "admit", "--all", "--enrollment", "plug"]);
    assert_eq!(stdout(&all), "1 device admitted\n", "{}", stderr(&all));
    for sn in ["NEW-2", "NEW-3"] {
        assert_eq!(ask(&server, sn), "2.05");
    }
    assert_eq!(stdout(&site.run(&["device", "waiting", "--json"])), "");
    let log = stdout(&site.run(&["audit", "export"]));
    assert_eq!(log.matches("\"admitted\"").count(), 3, "{log}");
    assert_eq!(server.stop(), Some(0));
}

#[test]
fn without_guards_nothing_of_them_is_said() {
    let site = Site::new();
    site.import("deviceId,enrollment\nPLUG-1,plug\n");
    let server = site.serve();
    assert_eq!(ask(&server, "NEW-1"), "4.04 device is invalid ");
    for command in
        [&["enrollment", "show", "plug"][..], &["enrollment", "show", "plug", "--json"], &["stats"]]
    {
        let said = stdout(&site.run(command));
        for word in ["opens", "closes", "max", "unlisted", "waiting"] {
            assert!(!said.contains(word), "{command:?}: {said}");
        }
    }
    assert_eq!(stdout(&site.run(&["device", "waiting", "--json"])), "");
}

#[test]
fn an_admitted_device_takes_a_place_of_the_enrollment() {
    let cloud = Site::new();
    let simulator = cloud.simulator(&[]);
    let site = site(&simulator, "unlisted = \"admit\"\nmax_devices = 2");
    site.import("deviceId,enrollment\nLAMP-1,lamp\n");
    let server = site.serve();
    for sn in ["NEW-1", "NEW-2", "NEW-1"] {
        assert_eq!(ask(&server, sn), "2.05", "{sn}");
    }
    assert_eq!(ask(&server, "NEW-3"), "4.03 enrollment is full ");
    assert_eq!(ask(&server, "LAMP-1"), "4.03 enrollment is full ", "as an unknown device");
    assert_eq!(registered_there(&simulator), 2);
    let shown = stdout(&site.run(&["enrollment", "show", "plug"]));
    assert!(shown.contains("2, of which 2 have a certificate; full"), "{shown}");
    // The operator raises the limit.
    guard(&site, "unlisted = \"admit\"\nmax_devices = 3");
    let reloaded = site.run(&["check-config"]);
    assert!(reloaded.status.success(), "{}", stderr(&reloaded));
    assert_eq!(server.stop(), Some(0));
    let server = site.serve();
    assert_eq!(ask(&server, "NEW-3"), "2.05");
}

#[test]
fn two_servers_and_register_fill_an_enrollment_exactly() {
    let cloud = Site::new();
    let simulator = cloud.simulator(&["--latency", "5ms"]);
    let site = site(&simulator, "max_devices = 5");
    let rows: String = (1..=20).map(|number| format!("PLUG-{number:02},plug\n")).collect();
    site.import(&format!("deviceId,enrollment\n{rows}"));
    let servers = [site.serve(), site.serve()];
    std::thread::scope(|scope| {
        for number in 1..=20 {
            let server = servers[number % 2].address;
            scope.spawn(move || ask_at(server, &format!("PLUG-{number:02}")));
        }
        let run = scope.spawn(|| site.run(&["register"]));
        let run = run.join().expect("it ended");
        assert_eq!(run.status.code(), Some(1), "{}", stderr(&run));
        assert!(stderr(&run).contains("enrollment plug, "), "{}", stderr(&run));
    });
    assert_eq!(registered_there(&simulator), 5);
    let served = (1..=20).filter(|number| ask(&servers[0], &format!("PLUG-{number:02}")) == "2.05").count();
    assert_eq!((served, registered_there(&simulator)), (5, 5));
    let refused = stdout(&site.run(&["device", "list", "--unregistered", "--limit", "1", "--json"]));
    assert!(refused.contains("refused: 5 devices of its enrollment have a certificate"), "{refused}");
}

#[test]
fn places_of_devices_without_a_certificate_are_shown_where_they_fill_an_enrollment() {
    let site = Site::new();
    guard(&site, "max_devices = 2");
    site.import(
        "deviceId,enrollment,deviceName,deviceSecret\nPLUG-1,plug,PLUG-1,00000000000000000000000000000001\nPLUG-2,plug,,\nPLUG-3,plug,,\n",
    );
    let shown = || stdout(&site.run(&["enrollment", "show", "plug"]));
    let obstacles = || {
        let stats: serde_json::Value =
            serde_json::from_str(&stdout(&site.run(&["stats", "--json"]))).expect("JSON");
        stats["enrollments"]["plug"]["obstacles"].clone()
    };
    assert!(shown().contains("2, of which 1 have a certificate\n"), "{}", shown());
    assert!(obstacles().is_null());
    // PLUG-2 was rotated, and has no new certificate yet.
    let table = rusqlite::Connection::open(site.path("certdist.db")).expect("the database");
    table
        .execute("INSERT INTO kept_place (deviceId, enrollment) VALUES ('PLUG-2', 'plug')", ())
        .expect("added");
    let full = "2, of which 1 have a certificate and 1 are being registered or were rotated; full";
    assert!(shown().contains(full), "{}", shown());
    let stats = stdout(&site.run(&["stats"]));
    assert!(stats.contains(&format!("enrollment plug: max devices {full}")), "{stats}");
    let all = obstacles();
    assert!(all[0].as_str().is_some_and(|said| said.contains("permits no more than 2")), "{all}");
}

#[test]
fn a_list_and_a_device_agree_about_a_registration_that_has_a_place() {
    let site = Site::new();
    guard(&site, "max_devices = 1");
    site.import(
        "deviceId,enrollment,deviceName,deviceSecret\nPLUG-1,plug,PLUG-1,00000000000000000000000000000001\nPLUG-2,plug,,\nPLUG-3,plug,,\n",
    );
    let table = rusqlite::Connection::open(site.path("certdist.db")).expect("the database");
    let begin = |device: &str, enrollment: &str| {
        let sql = "INSERT INTO registration_claim (deviceId, productKey, deviceName, openedAt, asked, enrollment) \
                   VALUES (?1, 'a1plug', ?1, 1, 2, ?2)";
        table.execute(sql, [device, enrollment]).expect("added");
    };
    // The registration of PLUG-2 has begun in its enrollment, that of PLUG-3 in another one.
    begin("PLUG-2", "plug");
    begin("PLUG-3", "lamp");
    let next = |line: &str| {
        let json: serde_json::Value = serde_json::from_str(line).expect("JSON");
        json["nextRequest"].as_str().expect("a sentence").to_owned()
    };
    let list = stdout(&site.run(&["device", "list", "--unregistered", "--json"]));
    let listed: Vec<String> = list.lines().map(next).collect();
    let shown = ["PLUG-2", "PLUG-3"].map(|id| next(&stdout(&site.run(&["device", "show", id, "--json"]))));
    assert_eq!(listed, shown);
    assert!(
        listed[0].starts_with("is registered") && listed[1].starts_with("refused: 1 devices"),
        "{listed:?}"
    );
}

#[test]
fn register_leaves_a_closed_enrollment_alone_and_says_so() {
    let cloud = Site::new();
    let simulator = cloud.simulator(&[]);
    for (lines, says) in [
        ("closes = 2020-01-01T00:00:00Z", "its enrollment closed at 2020-01-01T00:00:00Z"),
        ("opens = 2099-01-01T00:00:00+08:00", "its enrollment opens at 2098-12-31T16:00:00Z"),
    ] {
        let site = site(&simulator, lines);
        site.import("deviceId,enrollment\nPLUG-1,plug\nPLUG-2,plug\n");
        let run = site.run(&["register"]);
        assert_eq!((run.status.code(), stdout(&run).as_str()), (Some(1), "0 registered, 0 refused\n"));
        assert!(stderr(&run).contains("enrollment plug, 2 devices: "), "{}", stderr(&run));
        assert!(stderr(&run).contains(says), "{}", stderr(&run));
        let shown = stdout(&site.run(&["device", "show", "PLUG-1"]));
        assert!(shown.contains(says), "{shown}");
        let checked = stderr(&site.run(&["check-config"]));
        assert!(checked.contains("warning: enrollment \"plug\" "), "{checked}");
        assert!(stdout(&site.run(&["stats"])).contains("enrollment plug: "), "{lines}");
    }
    assert_eq!(registered_there(&simulator), 0);
}

#[test]
fn an_operator_admits_a_device_in_the_console() {
    let listen = free_address();
    let site = Site::with(&admin(listen, ""));
    guard(&site, "unlisted = \"hold\"\nmax_devices = 10");
    let server = site.serve();
    for sn in ["NEW-1", "NEW-2"] {
        assert_eq!(ask(&server, sn), "5.03 device is not admitted yet 300");
        until_noted(&site, sn);
    }
    let (lead, guest) = (Visitor::new(listen, "lead"), Visitor::new(listen, "guest"));
    let page = guest.get("/waiting").body;
    assert!(page.contains("NEW-1") && !page.contains("/waiting/admit"), "a viewer only sees: {page}");
    let enrollments = lead.get("/enrollments").body;
    assert!(enrollments.contains("<a href=\"/waiting\">2</a> wait to be admitted"), "{enrollments}");
    let metrics = http_get(listen, "/metrics");
    assert!(metrics.contains("certdist_devices_to_admit{enrollment=\"plug\"} 2"), "{metrics}");
    assert!(!metrics.contains("certdist_devices_to_admit{enrollment=\"lamp\"}"), "{metrics}");
    let fields = |id| [("id", id), ("enrollment", "plug")];
    for action in ["/waiting/admit", "/waiting/dismiss"] {
        assert_eq!(guest.post(action, &fields("NEW-1")).status, 403, "{action}");
        assert_eq!(lead.post_as_is(action, &fields("NEW-1")).status, 403, "without the token: {action}");
    }
    assert_eq!(lead.post("/waiting/admit", &[("id", "NEW-1"), ("enrollment", "nowhere")]).status, 400);
    assert_eq!(lead.post("/waiting/admit", &fields("NEW-1")).header("location"), "/waiting?done=added");
    assert_eq!(lead.post("/waiting/admit", &fields("NEW-1")).header("location"), "/waiting?done=known");
    assert_eq!(lead.post("/waiting/dismiss", &fields("NEW-2")).header("location"), "/waiting?done=dismissed");
    let page = lead.get("/waiting?done=added").body;
    assert!(!page.contains("NEW-1") && !page.contains("NEW-2"), "{page}");
    let shown = stdout(&site.run(&["device", "show", "NEW-1"]));
    assert!(shown.contains("plug") && shown.contains("a1plug"), "{shown}");
    let log = stdout(&site.run(&["audit", "export", "--device", "NEW-1"]));
    assert!(log.contains("\"admitted\"") && log.contains("console:lead"), "{log}");
}
