//! Tests of the guards of an enrollment with libcoap's client: the answers that firmware sees.

use std::process::Command;

use crate::support::{Process, SHARED_IDENTITY, SHARED_KEY, Site, stderr, stdout};

/// Returns what libcoap's client shows of the answer: the payload, or the code and the title.
fn ask(server: &Process, sn: &str) -> String {
    let url = format!("coaps://{}/cert?sn={sn}", server.address);
    let output = Command::new("coap-client-openssl")
        .args(["-B", "10", "-u", SHARED_IDENTITY, "-k", SHARED_KEY, "-A", "50", &url])
        .output()
        .expect("installed by `make clients`");
    stdout(&output) + &stderr(&output)
}

/// Starts a server with the devices LAMP-1 and PLUG-1, which have a certificate, and these further
/// lines of the enrollment `plug`.
fn serve(lines: &str) -> (Site, Process) {
    let site = Site::new();
    let configuration = std::fs::read_to_string(site.path("certdist.toml")).expect("it is there");
    site.write("certdist.toml", &format!("{configuration}{lines}\n"));
    site.import(
        "deviceId,enrollment,deviceName,deviceSecret\nLAMP-1,lamp,lamp-1,secretoflamp10000000000000000000\n\
         PLUG-1,plug,plug-1,secretofplug10000000000000000000\n",
    );
    let server = site.serve();
    (site, server)
}

#[test]
fn each_treatment_of_unlisted_devices_has_its_answer() {
    for (lines, unknown, foreign) in [
        ("unlisted = \"refuse\"", "4.04", "4.04"),
        ("unlisted = \"hold\"", "5.03", "5.03"),
        // Without a cloud, the device is added and cannot be registered.
        ("unlisted = \"admit\"\nmax_devices = 9", "5.02", "4.04"),
    ] {
        let (site, server) = serve(lines);
        assert!(ask(&server, "PLUG-1").contains("secretofplug1"), "{lines}");
        let (of_unknown, of_foreign) = (ask(&server, "NEW-1"), ask(&server, "LAMP-1"));
        assert!(of_unknown.contains(unknown), "{lines}: {of_unknown}");
        assert!(of_foreign.contains(foreign), "{lines}: {of_foreign}");
        if unknown == foreign {
            assert_eq!(of_unknown, of_foreign, "{lines}");
        }
        let waiting = stdout(&site.run(&["device", "waiting", "--json"]));
        assert_eq!(waiting.contains("NEW-1"), unknown == "5.03", "{waiting}");
        assert!(!waiting.contains("LAMP-1"), "{waiting}");
    }
}

#[test]
fn each_guard_of_first_certificates_has_its_answer() {
    for (lines, code, title) in [
        ("opens = 2099-01-01T00:00:00Z", "5.03", "enrollment is not open yet"),
        ("closes = 2020-01-01T00:00:00Z", "4.03", "enrollment is closed"),
    ] {
        let (_site, server) = serve(lines);
        let answer = ask(&server, "PLUG-1");
        assert!(answer.contains(code) && answer.contains(title), "{lines}: {answer}");
        assert!(!answer.contains("secretofplug1"), "{answer}");
    }
    let (site, server) = serve("max_devices = 1");
    site.import("deviceId,enrollment\nPLUG-2,plug\n");
    let answer = ask(&server, "PLUG-2");
    assert!(answer.contains("4.03") && answer.contains("enrollment is full"), "{answer}");
    assert!(ask(&server, "PLUG-1").contains("secretofplug1"));
}
