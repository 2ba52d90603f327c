//! Tests of the changes to devices at IoT Platform that operators order: `--everywhere` and
//! `device rotate`.
#![cfg(feature = "simulation")]

use std::process::Stdio;

use crate::support::{Process, Site, http_get, stderr, stdout, until};

/// Returns a site whose configuration permits changes at the simulated cloud, with three registered
/// devices.
fn site(simulator: &Process, manage: bool) -> Site {
    let site = Site::with(&format!(
        "[iot_platform]\nendpoint = \"http://{}\"\nregion = \"cn-shanghai\"\nmanage = {manage}\n",
        simulator.address
    ));
    site.import("deviceId,enrollment\nSN1,lamp\nSN2,lamp\nSN3,lamp\n");
    assert_eq!(stdout(&site.run(&["register"])), "3 registered, 0 refused\n");
    site
}

fn calls(simulator: &Process, action: &str) -> u64 {
    let stats: serde_json::Value =
        serde_json::from_str(&http_get(simulator.address, "/stats")).expect("JSON");
    stats["calls"][action].as_u64().unwrap_or(0)
}

fn devices(simulator: &Process) -> u64 {
    let stats: serde_json::Value =
        serde_json::from_str(&http_get(simulator.address, "/stats")).expect("JSON");
    stats["devices"].as_u64().expect("a number")
}

/// Returns the line of a device in the export of the table.
fn exported(site: &Site, device: &str) -> String {
    let table = stdout(&site.run(&["export"]));
    table.lines().find(|line| line.starts_with(device)).unwrap_or_default().to_owned()
}

#[test]
fn each_order_is_carried_out_by_the_command_itself() {
    let cloud = Site::new();
    let simulator = cloud.simulator(&[]);
    let site = site(&simulator, true);

    let done = site.run(&["device", "disable", "SN1", "--everywhere"]);
    assert_eq!(stdout(&done), "SN1: disabled here and at IoT Platform\n", "{}", stderr(&done));
    let shown = stdout(&site.run(&["device", "show", "SN1"]));
    assert!(shown.contains("disabled there") && !shown.contains("\norder "), "{shown}");
    let done = site.run(&["device", "enable", "SN1", "--everywhere"]);
    assert_eq!(stdout(&done), "SN1: enabled here and at IoT Platform\n", "{}", stderr(&done));
    assert!(stdout(&site.run(&["device", "show", "SN1"])).contains("gets its certificate"));

    let before = exported(&site, "SN2");
    let done = site.run(&["device", "rotate", "SN2"]);
    assert_eq!(
        stdout(&done),
        "SN2: rotated; the new secret comes with the next request\n",
        "{}",
        stderr(&done)
    );
    let after = exported(&site, "SN2");
    assert_ne!(after, before);
    assert_eq!(before.split(',').count(), after.split(',').count());
    assert_eq!((devices(&simulator), calls(&simulator, "DeleteDevice")), (3, 1));

    let done = site.run(&["device", "delete", "SN3", "--everywhere", "--yes"]);
    assert_eq!(stdout(&done), "SN3: deleted here and at IoT Platform\n", "{}", stderr(&done));
    assert_eq!((exported(&site, "SN3"), devices(&simulator)), (String::new(), 2));

    let log = stdout(&site.run(&["audit", "export"]));
    for word in ["\"ordered\"", "\"rotated\"", "at IoT Platform: "] {
        assert!(log.contains(word), "{word}: {log}");
    }
    assert!(site.run(&["audit", "verify"]).status.success());
    assert!(site.run(&["database", "check"]).status.success());
    assert_eq!(stdout(&site.run(&["device", "orders"])), "");
}

#[test]
fn a_file_of_devices_is_changed_and_those_without_a_certificate_are_told() {
    let cloud = Site::new();
    let simulator = cloud.simulator(&[]);
    let site = site(&simulator, true);
    site.import("deviceId,enrollment\nSN4,lamp\n");
    site.write("list.csv", "deviceId\nSN1\nSN2\nSN4\n");
    let done = site.run(&["device", "rotate", "--file", "list.csv"]);
    assert_eq!(done.status.code(), Some(1));
    assert!(stdout(&done).contains("list.csv: 2 devices: rotated"), "{}", stdout(&done));
    assert!(stderr(&done).contains("SN4: has no certificate"), "{}", stderr(&done));
    let done = site.run(&["device", "disable", "--file", "list.csv", "--everywhere"]);
    assert_eq!(done.status.code(), Some(0), "{}", stderr(&done));
    assert!(
        stdout(&done).contains("list.csv: 2 devices: disabled here and at IoT Platform"),
        "{}",
        stdout(&done)
    );
    assert!(stdout(&site.run(&["device", "show", "SN4"])).contains("disabled"));
}

#[test]
fn a_server_carries_out_the_order_of_a_command_that_was_killed() {
    let cloud = Site::new();
    let simulator = cloud.simulator(&[]);
    let site = site(&simulator, true);
    let before = exported(&site, "SN1");
    // The cloud does not answer, so the command is killed between its order and the answer.
    simulator.signal("STOP");
    let mut command = site.certdist(&["device", "rotate", "SN1"]);
    let mut command = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("it starts");
    until("the order is placed", || stdout(&site.run(&["device", "orders"])).starts_with("SN1"));
    command.kill().expect("it runs");
    command.wait().expect("it ends");
    let shown = stdout(&site.run(&["device", "show", "SN1"]));
    assert!(shown.contains("\norder         rotate since "), "{shown}");
    assert_eq!(exported(&site, "SN1"), before, "nothing is lost");
    simulator.signal("CONT");
    let server = site.serve();
    until("the order is carried out", || stdout(&site.run(&["device", "orders"])).is_empty());
    until("the device is registered anew", || {
        let after = exported(&site, "SN1");
        after != before && stdout(&site.run(&["device", "show", "SN1"])).contains("certificate   yes")
    });
    assert_eq!(devices(&simulator), 3);
    assert_eq!(server.stop(), Some(0));
}

#[test]
fn a_cancelled_order_changes_nothing_at_the_cloud() {
    let cloud = Site::new();
    let simulator = cloud.simulator(&[]);
    let site = site(&simulator, true);
    let before = exported(&site, "SN1");
    // The cloud cannot be reached, so no call is made.
    let configuration = std::fs::read_to_string(site.path("certdist.toml")).expect("it is there");
    site.write("certdist.toml", &configuration.replace(&simulator.address.to_string(), "127.0.0.1:9"));
    let mut command = site.certdist(&["device", "rotate", "SN1"]);
    let mut command = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("it starts");
    until("the failure is noted", || {
        stdout(&site.run(&["device", "orders"])).contains("not yet: NoConnection")
    });
    command.kill().expect("it runs");
    command.wait().expect("it ends");
    let other = site.run(&["device", "delete", "SN1", "--everywhere", "--yes"]);
    assert_eq!(other.status.code(), Some(1));
    assert!(stderr(&other).contains("has another order, to rotate"), "{}", stderr(&other));
    assert_eq!(stdout(&site.run(&["device", "cancel", "SN1"])), "SN1: order cancelled\n");
    site.write("certdist.toml", &configuration);
    let again = site.run(&["device", "cancel", "SN1"]);
    assert!(stderr(&again).contains("SN1 has no order"), "{}", stderr(&again));
    assert_eq!(exported(&site, "SN1"), before);
    assert_eq!(devices(&simulator), 3);
}

#[test]
fn without_permission_nothing_is_ordered() {
    let cloud = Site::new();
    let simulator = cloud.simulator(&[]);
    let site = site(&simulator, false);
    for command in [&["device", "rotate", "SN1"][..], &["device", "disable", "SN1", "--everywhere"]] {
        let refused = site.run(command);
        assert_eq!(refused.status.code(), Some(2));
        assert!(stderr(&refused).contains("manage = true"), "{}", stderr(&refused));
    }
    assert_eq!(stdout(&site.run(&["device", "orders"])), "");
    assert!(stdout(&site.run(&["device", "show", "SN1"])).contains("state         enabled"));
}
