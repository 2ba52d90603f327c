//! Tests of several processes that use one table at the same time: servers, `register`, `import`
//! and `device`. At the end, each device has its own certificate and was registered once, and no
//! healthy device was refused.
#![cfg(feature = "simulation")]

use std::{
    process::{Child, Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use rusqlite::Connection;

use crate::support::{
    Process, SHARED_KEY, Site,
    console::{Visitor, admin, free_address},
    http, http_get, stderr, stdout,
};

const KEY: &str = "706c75672d62617463682d372d6b6579";

/// Creates a site with this many devices of a shared enrollment. The enrollment refuses names that
/// already exist at the cloud.
fn site(simulator: &Process, devices: u32) -> Site {
    let site = Site::configured(&format!(
        "listen = \"127.0.0.1:0\"\ndatabase = \"sqlite:certdist.db\"\n\
         [iot_platform]\nendpoint = \"http://{}\"\nregion = \"cn-shanghai\"\n\
         [[enrollment]]\nname = \"plug\"\nproduct_key = \"a1plug\"\nkind = \"shared\"\n\
         identity = \"plug\"\nkey = \"hex:{KEY}\"\n",
        simulator.address
    ));
    let rows = (1..=devices).map(|number| format!("PAR{number:05}\n"));
    site.import(&std::iter::once("deviceId\n".to_owned()).chain(rows).collect::<String>());
    site
}

fn spawn(command: &mut Command) -> Child {
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("certdist runs")
}

/// Waits for a run of `register`, which must not refuse a device. Returns the number of devices
/// that it registered.
fn registered(run: Child) -> u64 {
    let output: Output = run.wait_with_output().expect("it ended");
    let said = stdout(&output);
    assert!(output.status.success(), "{said}{}", stderr(&output));
    let (count, rest) = said.split_once(' ').expect("a count");
    assert_eq!(rest, "registered, 0 refused\n", "{}", stderr(&output));
    count.parse().expect("a number")
}

fn table(site: &Site) -> Connection {
    Connection::open_with_flags(site.path("certdist.db"), rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY)
        .expect("the table")
}

fn count(site: &Site, condition: &str) -> u32 {
    let sql = format!("SELECT count(*) FROM device_table WHERE {condition}");
    table(site).query_row(&sql, (), |row| row.get(0)).expect("a number")
}

/// Checks that each device has its own certificate, from a single registration.
fn all_is_well(site: &Site, simulator: &Process, devices: u32) {
    assert_eq!(count(site, "refusal IS NOT NULL"), 0);
    assert_eq!(count(site, "deviceSecret IS NOT NULL"), devices);
    let secrets: u32 = table(site)
        .query_row("SELECT count(DISTINCT deviceSecret) FROM device_table", (), |row| row.get(0))
        .expect("a number");
    assert_eq!(secrets, devices);
    let stats: serde_json::Value =
        serde_json::from_str(&http_get(simulator.address, "/stats")).expect("JSON");
    assert_eq!((&stats["devices"], &stats["throttled"]), (&devices.into(), &0.into()), "{stats}");
    let registered = site.run(&["audit", "export"]);
    let registered = stdout(&registered).lines().filter(|line| line.contains("\"registered\"")).count();
    assert_eq!(registered, devices as usize, "one entry for each registration");
    assert!(site.run(&["audit", "verify"]).status.success());
}

#[test]
fn two_runs_of_register_share_the_work_and_the_limit() {
    let cloud = Site::new();
    let simulator = cloud.simulator(&["--limits", "real", "--latency", "20ms", "--batch-delay", "1s"]);
    let site = site(&simulator, 600);
    let first = spawn(&mut site.certdist(&["register"]));
    let second = spawn(&mut site.certdist(&["register"]));
    // Each run waits for all devices, including devices that the other run registers.
    let [first, second] = [first, second].map(registered);
    assert!(first <= 600 && second <= 600 && first + second >= 600, "{first} and {second}");
    all_is_well(&site, &simulator, 600);
}

#[test]
fn a_server_that_starts_beside_register_refuses_no_device() {
    let cloud = Site::new();
    let simulator = cloud.simulator(&["--limits", "real", "--latency", "20ms", "--batch-delay", "2s"]);
    let site = site(&simulator, 600);
    let run = spawn(&mut site.certdist(&["register", "--qps", "5"]));
    let deadline = Instant::now() + Duration::from_secs(20);
    let claimed = || {
        let sql = "SELECT max(deviceId) FROM registration_claim";
        table(&site).query_row(sql, (), |row| row.get::<_, Option<String>>(0)).expect("a device")
    };
    // The last device is in a batch, which takes seconds.
    while claimed().as_deref() != Some("PAR00600") {
        assert!(Instant::now() < deadline, "it is not claimed");
        thread::sleep(Duration::from_millis(10));
    }
    let server = site.serve();
    let shown = stdout(&site.run(&["device", "show", "PAR00600"]));
    registered(run);
    assert!(shown.contains("by certdist register, process"), "{shown}");
    all_is_well(&site, &simulator, 600);
    assert_eq!(server.stop(), Some(0));
}

#[test]
fn a_server_goes_on_with_what_a_killed_run_has_left() {
    let cloud = Site::new();
    let simulator = cloud.simulator(&["--limits", "real", "--batch-delay", "1s"]);
    let site = site(&simulator, 300);
    let server = site.serve();
    let mut run = spawn(&mut site.certdist(&["register"]));
    let deadline = Instant::now() + Duration::from_secs(60);
    while count(&site, "deviceSecret IS NOT NULL") == 0 {
        assert!(Instant::now() < deadline, "nothing is registered");
        thread::sleep(Duration::from_millis(5));
    }
    run.kill().expect("killed");
    run.wait().expect("it ended");
    let open = || -> u32 {
        let sql =
            "SELECT (SELECT count(*) FROM registration_claim) + (SELECT count(*) FROM registration_batch)";
        table(&site).query_row(sql, (), |row| row.get(0)).expect("a number")
    };
    // No device asks for these registrations. The server resumes them because their owner has
    // ended.
    while open() > 0 {
        assert!(Instant::now() < deadline, "{} claims and batches are left", open());
        thread::sleep(Duration::from_millis(50));
    }
    registered(spawn(&mut site.certdist(&["register"])));
    all_is_well(&site, &simulator, 300);
    assert_eq!(server.stop(), Some(0));
}

#[test]
fn two_tables_never_share_a_certificate() {
    let cloud = Site::new();
    let simulator = cloud.simulator(&["--latency", "20ms", "--batch-delay", "1s"]);
    // The two sites use one account, and each has a table of its own with the same devices. The first
    // site has a server, too, for which some devices are enough.
    let sites = [(); 2].map(|()| site(&simulator, 200));
    let server = sites[0].serve();
    let runs = sites.each_ref().map(|site| spawn(&mut site.certdist(&["register"])));
    let address = server.address.to_string();
    for number in [1, 50, 100] {
        let device = format!("PAR{number:05}");
        let arguments = ["device-sim", "--server", &address, "--identity", "plug", "--sn", &device];
        let asked = sites[0].certdist(&arguments).env("CERTDIST_DEVICE_PSK", KEY).output().expect("it runs");
        assert!(asked.status.code().is_some(), "{}", stderr(&asked));
    }
    for run in runs {
        let output = run.wait_with_output().expect("it ended");
        assert!(stdout(&output).contains(" registered, "), "{}", stderr(&output));
    }
    let registered = "deviceSecret IS NOT NULL";
    let counts = sites.each_ref().map(|site| count(site, registered));
    assert_eq!(counts[0] + counts[1], 200, "{counts:?}");
    for site in &sites {
        let refused = count(site, "refusal LIKE 'NameIsTaken%'");
        assert_eq!(count(site, registered) + refused, 200);
    }
    let both = format!(
        "ATTACH '{}' AS other; ",
        sites[1].path("certdist.db").to_str().expect("a path without odd characters")
    );
    let table = table(&sites[0]);
    table.execute_batch(&both).expect("attached");
    let sql = "SELECT count(*) FROM device_table one JOIN other.device_table USING (deviceSecret)";
    assert_eq!(table.query_row(sql, (), |row| row.get::<_, u32>(0)).expect("a number"), 0);
    assert_eq!(server.stop(), Some(0));
}

#[test]
fn a_device_that_is_disabled_during_its_registration_gets_no_certificate() {
    let cloud = Site::new();
    let simulator = cloud.simulator(&["--latency", "2500ms"]);
    let site = site(&simulator, 1);
    let server = site.serve();
    let address = server.address.to_string();
    let mut device = site.certdist(&[
        "device-sim",
        "--server",
        &address,
        "--identity",
        "plug",
        "--sn",
        "PAR00001",
        "--patience",
        "20",
    ]);
    let device = spawn(device.env("CERTDIST_DEVICE_PSK", KEY));
    let deadline = Instant::now() + Duration::from_secs(20);
    let claims =
        || table(&site).query_row("SELECT count(*) FROM registration_claim", (), |row| row.get::<_, u32>(0));
    while claims().expect("a number") == 0 {
        assert!(Instant::now() < deadline, "nothing is claimed");
        thread::sleep(Duration::from_millis(10));
    }
    assert!(site.run(&["device", "disable", "PAR00001"]).status.success());
    let output = device.wait_with_output().expect("it ended");
    assert!(!output.status.success(), "{}", stdout(&output));
    // The device is registered, and its certificate is stored but not handed out.
    while count(&site, "deviceSecret IS NOT NULL") == 0 {
        assert!(Instant::now() < deadline, "not registered");
        thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(count(&site, "firstIssued IS NULL AND refusal IS NULL AND state = 'disabled'"), 1);
    assert_eq!(server.stop(), Some(0));
}

#[test]
fn one_wrong_product_holds_up_no_other_device() {
    let cloud = Site::new();
    let simulator = cloud.simulator(&["--product", "a1plug"]);
    let site = site(&simulator, 40);
    site.import("deviceId,productKey\nAAA00001,a1wrong\nPAR00020,\nZZZ00001,a1wrong\n");
    let done = site.run(&["register"]);
    assert_eq!(stdout(&done), "40 registered, 0 refused\n", "{}", stderr(&done));
    assert_eq!(done.status.code(), Some(1));
    assert!(stderr(&done).contains("product a1wrong: iot.prod.NotExistedProduct"), "{}", stderr(&done));
    assert_eq!(count(&site, "refusal IS NOT NULL"), 0);
}

#[test]
fn two_devices_of_one_name_are_refused_by_the_import() {
    let cloud = Site::new();
    let simulator = cloud.simulator(&[]);
    let site = site(&simulator, 1);
    site.write("twins.csv", "deviceId,deviceName\nTWIN0001,lamp\nTWIN0002,lamp\n");
    let done = site.run(&["import", "twins.csv"]);
    assert_eq!(done.status.code(), Some(1));
    let said = stderr(&done);
    assert!(said.contains("line 3") && said.contains("device TWIN0001 has the same name, lamp"), "{said}");
    assert_eq!(count(&site, "deviceId LIKE 'TWIN%'"), 0);
}

#[test]
fn devices_that_share_a_name_since_an_older_version_are_reported() {
    let cloud = Site::new();
    let simulator = cloud.simulator(&[]);
    let site = site(&simulator, 3);
    // The names are written without an import, because an import would refuse a name that several
    // devices share.
    let write = Connection::open(site.path("certdist.db")).expect("the table");
    let sql = "UPDATE device_table SET deviceName = 'lamp' WHERE deviceId <> 'PAR00003'";
    assert_eq!(write.execute(sql, ()).expect("written"), 2);
    drop(write);
    let done = site.run(&["register"]);
    assert_eq!((done.status.code(), stdout(&done)), (Some(1), "1 registered, 0 refused\n".into()));
    assert!(stderr(&done).contains("2 devices have the name of another one"), "{}", stderr(&done));
    assert_eq!(count(&site, "deviceSecret IS NOT NULL"), 1);
    assert_eq!(count(&site, "refusal IS NOT NULL"), 0);
    let checked = stdout(&site.run(&["check-config"]));
    assert!(
        checked.contains("2 devices, such as PAR00001, have the name lamp in product a1plug"),
        "{checked}"
    );
}

#[test]
fn refusals_of_one_cause_are_reset_together() {
    let cloud = Site::new();
    let simulator = cloud.simulator(&[]);
    let site = site(&simulator, 5);
    let write = Connection::open(site.path("certdist.db")).expect("the table");
    let refuse = "UPDATE device_table SET refusal = ?1 WHERE deviceId = ?2";
    for (reason, device) in [
        ("NoPermission: not authorized", "PAR00001"),
        ("NoPermission: not authorized", "PAR00002"),
        ("NameIsTaken: the name exists", "PAR00003"),
    ] {
        assert_eq!(write.execute(refuse, [reason, device]).expect("written"), 1);
    }
    drop(write);
    let reset = |arguments: &[&str]| {
        let done = site.run(&[&["device", "reset"], arguments].concat());
        (done.status.code(), stdout(&done))
    };
    assert_eq!(reset(&["--refused", "--reason", "NoPermission"]), (Some(0), "2 refusals cleared\n".into()));
    assert_eq!(count(&site, "refusal IS NOT NULL"), 1);
    assert_eq!(reset(&["--refused", "--enrollment", "nope"]).0, Some(2));
    assert_eq!(reset(&["--refused", "--enrollment", "plug"]), (Some(0), "1 refusal cleared\n".into()));
    assert_eq!(reset(&[]).0, Some(2), "an ID or --refused");
    assert_eq!(reset(&["PAR00001", "--refused"]).0, Some(2));
}

#[test]
fn a_refusal_that_stops_calls_is_named_where_an_operator_looks() {
    let cloud = Site::new();
    let simulator = cloud.simulator(&["--product", "a1another"]);
    let address = free_address();
    let site = Site::with(&format!(
        "[iot_platform]\nendpoint = \"http://{}\"\nregion = \"cn-shanghai\"\n{}",
        simulator.address,
        admin(address, "")
    ));
    site.import("deviceId,enrollment\nPLUG0001,plug\n");
    let server = site.serve();
    let mut device = site.certdist(&[
        "device-sim",
        "--server",
        &server.address.to_string(),
        "--identity",
        "plug-batch",
        "--sn",
        "PLUG0001",
        "--patience",
        "3",
    ]);
    let asked = device.env("CERTDIST_DEVICE_PSK", hex::encode(SHARED_KEY)).output().expect("it runs");
    let said = stderr(&asked);
    let (product, reason) = ("a1plug", "iot.prod.NotExistedProduct");
    let ready = http::send(address, "GET", "/readyz", &[], &[]);
    assert_eq!(ready.status, 200, "devices with a certificate are served: {said}");
    for body in [ready.body, Visitor::new(address, "lead").get("/").body] {
        assert!(body.contains(product) && body.contains(reason), "{said}{body}");
    }
    assert_eq!(server.stop(), Some(0));
}
