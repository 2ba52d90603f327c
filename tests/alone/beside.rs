//! Runs every operation of an operator beside a load of devices that get their certificates for the
//! first time. No device may be put off, and the server stays ready. How long the devices wait is
//! measured by `benches/beside`.

use std::process::Stdio;

use crate::{
    alone,
    support::{
        MASTER, Process, Site, coapsload,
        console::{admin, free_address},
        http_get, stdout,
    },
};

/// Devices for each load. Each device asks once.
const DEVICES: u32 = 300;

/// Loads of devices, each with devices of its own.
struct Loads {
    port: String,
    next: u32,
}

impl Loads {
    /// Serves the next devices, which all get their certificate for the first time.
    fn next(&mut self, beside: &str) {
        let (first, count) = (self.next.to_string(), DEVICES.to_string());
        self.next += DEVICES;
        let output = coapsload(&["-p", &self.port, "-n", &count, "-F", &first, "-c", "8", "-K", MASTER]);
        let text = stdout(&output);
        assert!(text.contains(&format!("ok {DEVICES} (2.xx {DEVICES} ")), "beside {beside}: {text}");
    }
}

/// Returns a table of devices with certificates.
fn certificates(numbers: std::ops::Range<u32>, prefix: &str) -> String {
    let row = |number| format!("{prefix}{number:08},lamp,{prefix}-{number},secret{number:026}\n");
    let rows: String = numbers.map(row).collect();
    format!("deviceId,enrollment,deviceName,deviceSecret\n{rows}")
}

#[test]
fn no_operation_puts_a_device_off() {
    let _alone = alone();
    let address = free_address();
    let site = Site::with(&admin(address, ""));
    site.import(&certificates(1..30_000, "SN"));
    site.write("new.csv", &certificates(1..30_000, "NEW"));
    let moved: String = (1..30_000).map(|number| format!("NEW{number:08},lamp,waFt{number:022}\n")).collect();
    site.write("changed.csv", &format!("deviceId,enrollment,iotId\n{moved}"));
    let server: Process = site.serve();
    let mut loads = Loads { port: server.address.port().to_string(), next: 1 };
    loads.next("nothing");
    let idle = http_get(address, "/readyz");
    let idle = idle.trim();
    let operations: &[&[&str]] = &[
        &["import", "new.csv", "--dry-run"],
        &["import", "new.csv"],
        &["import", "new.csv"],
        &["import", "changed.csv"],
        &["export", "--output", "table.csv"],
        &["backup", "copy.db"],
        &["stats"],
        &["enrollment", "list"],
        &["device", "list", "--json"],
        &["device", "disable", "--file", "new.csv"],
        &["audit", "verify"],
        &["audit", "export"],
        &["database", "status"],
        &["database", "check"],
        &["database", "recount"],
        &["check-config"],
    ];
    for arguments in operations {
        let name = arguments.join(" ");
        let mut command = site.certdist(arguments);
        let mut operation = command.stdout(Stdio::null()).spawn().expect("certdist runs");
        // At least one load runs beside each operation, and at most ten.
        for _ in 0..10 {
            loads.next(&name);
            let ready = http_get(address, "/readyz");
            assert_eq!(ready.trim(), idle, "beside {name}");
            if operation.try_wait().expect("its status").is_some() {
                break;
            }
        }
        let status = operation.wait().expect("it ended");
        assert!(status.success(), "{name}: {status}");
    }
    // A database key, a reload, and the sealing of all secrets, which is refused until the server
    // has the key.
    let configuration = std::fs::read_to_string(site.path("certdist.toml")).expect("read");
    site.write("database.key", &("4f".repeat(16) + &"1e".repeat(16)));
    site.write("certdist.toml", &format!("database_key = \"file:database.key\"\n{configuration}"));
    server.signal("HUP");
    loads.next("a reload");
    let mut is_sealed = false;
    for _ in 0..10 {
        let mut seal = site.certdist(&["database", "seal"]);
        let mut seal = seal.stdout(Stdio::null()).spawn().expect("certdist runs");
        loads.next("database seal");
        assert_eq!(http_get(address, "/readyz").trim(), idle, "beside database seal");
        is_sealed = seal.wait().expect("it ended").success();
        if is_sealed {
            break;
        }
    }
    assert!(is_sealed);
    let metrics = http_get(address, "/metrics");
    let dropped = metrics.lines().filter(|line| line.starts_with("certdist_audit_dropped_total"));
    assert!(dropped.into_iter().all(|line| line.ends_with(" 0")), "{metrics}");
}
