//! Tests of servers that share a PostgreSQL database, with the commands that an operator runs.
#![cfg(feature = "simulation")]

#[path = "../../src/testing/postgres.rs"]
mod server;

use crate::support::{Process, SHARED_IDENTITY, SHARED_KEY, Site, http_get, stderr, stdout};

/// Number of devices.
const DEVICES: usize = 24;

/// Creates a site whose table is in this database, and whose cloud is this one.
fn site(url: &str, cloud: &Process) -> Site {
    Site::configured(&format!(
        "listen = \"127.0.0.1:0\"\ndatabase = \"{url}\"\n\
         [iot_platform]\nendpoint = \"http://{}\"\nregion = \"cn-shanghai\"\nqps = 1000\n\
         [[enrollment]]\nname = \"plug\"\nproduct_key = \"a1plug\"\nkind = \"shared\"\n\
         identity = \"{SHARED_IDENTITY}\"\nkey = \"hex:{}\"\n",
        cloud.address,
        hex::encode(SHARED_KEY)
    ))
}

/// Returns what a command prints that must succeed.
fn run(site: &Site, arguments: &[&str]) -> String {
    let output = site.run(arguments);
    assert!(output.status.success(), "{arguments:?}: {}", stderr(&output));
    stdout(&output)
}

/// Fetches a device's certificate, and returns it.
fn fetch(site: &Site, server: &Process, sn: &str) -> String {
    let (address, psk) = (server.address.to_string(), hex::encode(SHARED_KEY));
    let device =
        ["device-sim", "--server", &address, "--identity", SHARED_IDENTITY, "--psk", &psk, "--sn", sn];
    run(site, &device)
}

#[test]
fn two_servers_serve_one_table_and_what_one_has_done_the_other_knows() {
    let cloud = Site::new();
    let simulator = cloud.simulator(&[]);
    let url = server::empty();
    // Two folders stand for two machines.
    let (one, other) = (site(&url, &simulator), site(&url, &simulator));
    assert!(run(&one, &["check-config"]).contains("does not exist yet"));
    let rows: String = (0..DEVICES).map(|number| format!("PLUG-{number:03}\n")).collect();
    one.write("import.csv", &format!("deviceId\n{rows}"));
    let dry_run = run(&one, &["import", "--dry-run", "import.csv"]);
    assert!(dry_run.contains("24"), "{dry_run}");
    run(&one, &["import", "import.csv"]);
    assert!(run(&other, &["check-config"]).contains(": good"));

    let servers = [one.serve(), other.serve()];
    for number in 0..DEVICES / 2 {
        let sn = format!("PLUG-{number:03}");
        // Both servers are asked, each of them first for every second device.
        let [first, second] = if number % 2 == 0 { [0, 1] } else { [1, 0] };
        assert_eq!(fetch(&one, &servers[first], &sn), fetch(&one, &servers[second], &sn), "{sn}");
    }
    // The command registers the rest beside the servers.
    assert_eq!(run(&other, &["register"]), "12 registered, 0 refused\n");
    let stats: serde_json::Value =
        serde_json::from_str(&http_get(simulator.address, "/stats")).expect("JSON");
    assert_eq!(stats["devices"], DEVICES, "each device is registered once");

    run(&one, &["device", "disable", "PLUG-001"]);
    assert!(run(&other, &["device", "show", "PLUG-001"]).contains("disabled"));
    let [killed, left] = servers;
    killed.kill();
    fetch(&other, &left, "PLUG-020");
    assert_eq!(left.stop(), Some(0));
    let table = run(&other, &["export"]);
    assert_eq!(table.lines().count(), 1 + DEVICES, "{table}");
    let verified = run(&one, &["audit", "verify"]);
    assert!(verified.contains("entries"), "{verified}");
    let counted: serde_json::Value = serde_json::from_str(&run(&one, &["stats", "--json"])).expect("JSON");
    assert_eq!(counted["total"]["registered"], DEVICES, "{counted}");
    assert_eq!(counted["total"]["issued"], DEVICES / 2 + 1, "{counted}");
}

#[test]
fn secrets_are_sealed_in_the_database() {
    let cloud = Site::new();
    let simulator = cloud.simulator(&[]);
    let url = server::empty();
    let site = site(&url, &simulator);
    site.import("deviceId,deviceName,deviceSecret\nPLUG-1,plug-1,secretofplug10000000000000000000\n");
    let configuration = std::fs::read_to_string(site.path("certdist.toml")).expect("it is there");
    site.write("database.key", &"ab".repeat(32));
    site.write("certdist.toml", &format!("database_key = \"file:database.key\"\n{configuration}"));
    run(&site, &["database", "seal"]);
    run(&site, &["database", "check"]);
    let server = site.serve();
    assert!(fetch(&site, &server, "PLUG-1").contains("plug-1"));
    // Without the key, the table is of no use.
    site.write("certdist.toml", &configuration);
    let refused = site.run(&["device", "show", "PLUG-1"]);
    assert!(stderr(&refused).contains("sealed under key"), "{}", stderr(&refused));
}

#[test]
fn a_password_is_in_no_message() {
    let cloud = Site::new();
    let site = site("postgres://anna:s3cret@127.0.0.1:1/certdist", &cloud.simulator(&[]));
    for arguments in
        [&["check-config"][..], &["serve"], &["device", "show", "PLUG-1"], &["backup", "copy.db"], &["stats"]]
    {
        let failed = site.run(arguments);
        let said = stdout(&failed) + &stderr(&failed);
        assert!(!failed.status.success() && said.contains("anna@127.0.0.1:1"), "{arguments:?}: {said}");
        assert!(!said.contains("s3cret"), "{arguments:?}: {said}");
    }
}
