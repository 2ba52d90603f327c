//! Tests that data survives a full disk and an orderly stop. `tests/suite/torn_log.rs`
//! tests power failures.

use std::{
    fs,
    io::Write,
    path::Path,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use crate::support::{MASTER, Process, Site, coapsload, http_get, stderr, stdout};

/// Returns the class of the response code that one device gets.
fn answer(server: &Process, device: u32) -> char {
    let (port, device) = (server.address.port().to_string(), device.to_string());
    let output = coapsload(&["-p", &port, "-n", "1", "-c", "1", "-F", &device, "-K", MASTER, "-t", "20"]);
    let said = stdout(&output);
    ['2', '4', '5']
        .into_iter()
        .find(|class| said.contains(&format!("{class}.xx 1")))
        .unwrap_or_else(|| panic!("{said}"))
}

#[test]
fn a_full_disk_is_said_turns_nobody_away_for_good_and_mends_itself() {
    let cloud = Site::new();
    let simulator = cloud.simulator(&[]);
    let site = Site::with_cloud(&format!("http://{}", simulator.address));
    let configuration = fs::read_to_string(site.path("certdist.toml")).expect("it is there");
    site.write("certdist.toml", &configuration.replace("sqlite:certdist.db", "sqlite:disk/certdist.db"));
    site.write("batch.csv", "deviceId,enrollment\nSN00000001,lamp\nSN00000002,lamp\n");
    fs::create_dir(site.path("disk")).expect("a folder");
    // The disk is mounted in a mount namespace of its own, so that nothing is left behind.
    let script =
        "mount -t tmpfs -o size=1m tmpfs disk && \"$0\" import batch.csv >&2 && exec \"$0\" serve 2>log";
    let mut command = site.certdist(&[]);
    let program = command.get_program().to_owned();
    let environment: Vec<_> =
        command.get_envs().map(|(name, value)| (name.to_owned(), value.map(ToOwned::to_owned))).collect();
    command = Command::new("unshare");
    command.args(["-rm", "sh", "-c", script]).arg(program).current_dir(site.path(""));
    for (name, value) in environment {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    let server = Process::start(&mut command);
    assert_eq!(answer(&server, 1), '2');

    // The path of the disk in the server's mount namespace.
    let disk = Path::new("/proc").join(server.id().to_string()).join("root");
    let ballast = disk.join(site.path("disk/ballast").strip_prefix("/").expect("absolute"));
    let mut file = fs::File::create(&ballast).expect("on its disk");
    while file.write_all(&[0; 4096]).is_ok() {}
    drop(file);
    assert_eq!(answer(&server, 1), '2', "who has had its certificate needs no disk");
    assert_eq!(answer(&server, 2), '5');
    let log = fs::read_to_string(site.path("log")).expect("the log");
    assert!(log.contains("disk is full"), "{log}");

    fs::remove_file(&ballast).expect("removed");
    assert_eq!(answer(&server, 2), '2', "without a restart");
    let stats: serde_json::Value =
        serde_json::from_str(&http_get(simulator.address, "/stats")).expect("JSON");
    assert_eq!(stats["devices"], 2, "one each");
    assert_eq!(server.stop(), Some(0));
}

#[test]
fn every_answer_is_in_the_audit_log_whenever_the_server_is_killed() {
    let cloud = Site::new();
    let simulator = cloud.simulator(&[]);
    let site = Site::with_cloud(&format!("http://{}", simulator.address));
    let rows: String = (1..=50).map(|number| format!("SN{number:08},lamp\n")).collect();
    site.import(&format!("deviceId,enrollment\n{rows}"));
    let load = |port: u16| {
        let port = port.to_string();
        let output = coapsload(&[
            "-p", &port, "-n", "300", "-c", "50", "-W", "50", "-K", MASTER, "-t", "1", "-T", "1",
        ]);
        let said = stdout(&output);
        let (_, answered) = said.split_once("(2.xx ").expect("a count");
        answered.split(' ').next().and_then(|count| count.parse::<u64>().ok()).expect("a number")
    };
    let (mut answered, mut killed) = (0, 0);
    for milliseconds in [10_000, 10, 20, 30, 50, 80] {
        let mut server = site.serve();
        let port = server.address.port();
        let devices = thread::spawn(move || load(port));
        let begun = Instant::now();
        while !devices.is_finished() && begun.elapsed() < Duration::from_millis(milliseconds) {
            thread::sleep(Duration::from_millis(1));
        }
        killed += u32::from(!devices.is_finished());
        assert!(server.is_running());
        server.kill();
        answered += devices.join().expect("it ran");
    }
    assert!(killed > 0, "the load was always faster");
    let log = stdout(&site.run(&["audit", "export"]));
    let answers = |line: &str| {
        let entry: serde_json::Value = serde_json::from_str(line).expect("JSON");
        match entry["event"].as_str() {
            Some("issued") => 1,
            // A record stands for several answers. An entry that is not moved yet has no count.
            Some("reissued") => entry["count"].as_u64().unwrap_or(1),
            _ => 0,
        }
    };
    let entries: u64 = log.lines().map(answers).sum();
    assert!(entries >= answered, "{entries} entries about {answered} answers");
    // The log may have more entries than there are answers, because devices repeat requests, and
    // because answers are lost when the server is killed.
    assert!(entries <= answered + 50 * 6, "{entries} entries about {answered} answers");
    assert!(stdout(&site.run(&["audit", "verify"])).contains("complete"));
}

#[test]
fn sigterm_answers_who_waits_and_loses_nothing() {
    let cloud = Site::new();
    let simulator = cloud.simulator(&["--latency", "4s"]);
    let site = Site::with_cloud(&format!("http://{}", simulator.address));
    let configuration = fs::read_to_string(site.path("certdist.toml")).expect("it is there");
    site.write("certdist.toml", &format!("{configuration}[limits]\ndrain = 1\n"));
    site.import("deviceId,enrollment\nSN00000001,lamp\nSN00000002,lamp\n");
    let server = site.serve();
    let address = server.address;
    let devices = thread::spawn(move || {
        let port = address.port().to_string();
        coapsload(&["-p", &port, "-n", "2", "-c", "2", "-K", MASTER, "-t", "20"])
    });
    // The cloud answers so late that both calls are still in progress when the server stops.
    let called = || http_get(simulator.address, "/stats").contains("\"RegisterDevice\":2");
    let deadline = Instant::now() + Duration::from_secs(10);
    while !called() {
        assert!(Instant::now() < deadline, "the cloud is not called");
        thread::sleep(Duration::from_millis(20));
    }
    let begun = Instant::now();
    assert_eq!(server.stop(), Some(0));
    assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
    let output = devices.join().expect("it ran");
    assert!(
        stdout(&output).contains("ok 2 (2.xx 0 4.xx 0 5.xx 2)"),
        "{}{}",
        stdout(&output),
        stderr(&output)
    );

    // The interrupted registrations are in the journal. After the next start, the server finishes
    // them without a request.
    let server = site.serve();
    let deadline = Instant::now() + Duration::from_secs(30);
    let has_certificate = |device: &str| {
        let shown = stdout(&site.run(&["device", "show", "--json", device]));
        shown.contains("\"hasCertificate\":true")
    };
    while !["SN00000001", "SN00000002"].into_iter().all(has_certificate) {
        assert!(Instant::now() < deadline, "the journal is not taken up");
        thread::sleep(Duration::from_millis(100));
    }
    assert!(http_get(simulator.address, "/stats").contains("\"devices\":2"));
    drop(server);
}
