//! Tests a server whose settings are all at the upper end of their documented ranges. The server
//! must start, must not overflow a clock, and must hand out certificates.

use std::collections::BTreeMap;

use crate::support::{SHARED_IDENTITY, SHARED_KEY, Site, stderr};

/// Returns the lines of each section that set its keys to their documented maxima.
fn maxima() -> BTreeMap<&'static str, String> {
    let documentation = include_str!("../../docs/operations.md");
    let mut sections = BTreeMap::<_, String>::new();
    for line in documentation.lines().filter(|line| line.starts_with("| `[")) {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let [_, section, range, keys, _] = cells[..] else { continue };
        let Some((_, most)) = range.split_once(" to ") else { continue };
        let section = section.trim_matches(|c| "`[]".contains(c));
        if section == "enrollment" || !range.starts_with(|c: char| c.is_ascii_digit()) {
            continue;
        }
        let most = most.split(' ').next().unwrap_or_default();
        for key in keys.split(", ").map(|key| key.trim_matches('`')) {
            sections.entry(section).or_default().push_str(&format!("{key} = {most}\n"));
        }
    }
    sections
}

#[test]
fn a_server_with_all_maxima_serves() {
    let cloud = Site::new();
    let simulator = cloud.simulator(&["--product", "a1plug"]);
    let endpoint = format!("http://{}", simulator.address);
    let maxima = maxima();
    assert_eq!(maxima.values().map(|keys| keys.lines().count()).sum::<usize>(), 20, "{maxima:?}");
    let (every, key) = ("{ burst = 1000000, every = 86400 }", hex::encode(SHARED_KEY));
    let site = Site::configured(&format!(
        "listen = \"127.0.0.1:0\"\ndatabase = \"sqlite:certdist.db\"\n\
         [audit]\n{}[iot_platform]\nendpoint = \"{endpoint}\"\nregion = \"cn-shanghai\"\n{}\
         [limits]\nrequests_per_identity = {every}\nrequests_per_address = {every}\n{}\
         [[enrollment]]\nname = \"plug\"\nproduct_key = \"a1plug\"\nkind = \"shared\"\n\
         identity = \"{SHARED_IDENTITY}\"\nkey = \"hex:{key}\"\nreissue = \"window:315360000\"\n\
         requests = {every}\nrefused_lookups = {every}\n",
        maxima["audit"], maxima["iot_platform"], maxima["limits"],
    ));
    let output = site.run(&["check-config"]);
    assert!(output.status.success(), "{}", stderr(&output));
    site.import("deviceId,enrollment,deviceName,deviceSecret\nPG00000001,plug,,\nPG00000002,plug,,\n");

    let server = site.serve();
    let address = server.address.to_string();
    for sn in ["PG00000001", "PG00000002"] {
        let device = ["device-sim", "--server", &address, "--identity", SHARED_IDENTITY, "--psk", &key];
        let output = site.run(&[&device[..], &["--sn", sn, "--patience", "20"]].concat());
        assert!(output.status.success(), "{}", stderr(&output));
    }
    assert_eq!(server.stop(), Some(0));
}
