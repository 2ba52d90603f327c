//! Tests of an operator's work and of failures: commands, signals, a cloud that fails, a database
//! that cannot be used, garbage from the network.

use std::{
    io::{Read, Write},
    net::{TcpListener, UdpSocket},
    process::Stdio,
    thread,
    time::{Duration, Instant},
};

use crate::support::{self, MASTER, SHARED_IDENTITY, SHARED_KEY, Site, coapsload, http_get, stderr, stdout};
use certdist::simulated_device::{Answer, SimulatedDevice};

fn csv(devices: u32) -> String {
    let mut csv = String::from("deviceId,enrollment\n");
    for number in 1..=devices {
        csv.push_str(&format!("SN{number:08},lamp\n"));
    }
    csv
}

fn stats(simulator: &support::Process) -> serde_json::Value {
    serde_json::from_str(&http_get(simulator.address, "/stats")).expect("JSON")
}

/// Makes each device ask once. All devices must be served.
fn load(server: &support::Process, devices: u32, more: &[&str]) {
    let (port, count) = (server.address.port().to_string(), devices.to_string());
    let mut arguments = vec!["-p", &port, "-n", &count, "-c", "64", "-K", MASTER];
    arguments.extend(more);
    let output = coapsload(&arguments);
    let expected = format!("ok {devices} (2.xx {devices} ");
    assert!(stdout(&output).contains(&expected), "{}{}", stdout(&output), stderr(&output));
}

#[test]
fn two_thousand_devices_are_registered_once_each_and_survive_a_restart() {
    let cloud = Site::new();
    let simulator = cloud.simulator(&["--latency", "5ms"]);
    let site = Site::with_cloud(&format!("http://{}", simulator.address));
    site.import(&csv(2000));
    let server = site.serve();
    load(&server, 2000, &[]);
    let after = stats(&simulator);
    assert_eq!(after["calls"]["RegisterDevice"], 2000);
    assert_eq!(after["devices"], 2000);
    assert_eq!(server.stop(), Some(0));

    // The certificates are on the disk, so no device is registered again.
    let server = site.serve();
    load(&server, 2000, &[]);
    assert_eq!(stats(&simulator), after);
    server.kill();
    let server = site.serve();
    load(&server, 100, &[]);
    assert_eq!(stats(&simulator), after);
}

#[test]
fn a_failing_cloud_costs_time_and_no_device() {
    let cloud = Site::new();
    let simulator = cloud.simulator(&["--fail-rate", "0.2"]);
    let site = Site::with_cloud(&format!("http://{}", simulator.address));
    site.import(&csv(200));
    let server = site.serve();
    // The devices that are asked to retry later ask again in the next round, until all are served.
    let port = server.address.port().to_string();
    for round in 0.. {
        let output = coapsload(&["-p", &port, "-n", "200", "-c", "64", "-K", MASTER]);
        if stdout(&output).contains("ok 200 (2.xx 200 ") {
            break;
        }
        assert!(round < 10, "{}", stdout(&output));
    }
    assert_eq!(stats(&simulator)["devices"], 200);
}

#[test]
fn import_export_and_show_work_beside_a_running_server() {
    let site = Site::new();
    let server = site.serve();
    site.import("deviceId,enrollment,deviceName,deviceSecret\n00:1a:2b:3c:4d:5e,lamp,lamp-1,a0000000000000000000000000secret\n");
    let shown = site.run(&["device", "show", "00-1A-2B-3C-4D-5E"]);
    assert!(
        stdout(&shown).contains("001A2B3C4D5E") && stdout(&shown).contains("lamp-1"),
        "{}",
        stdout(&shown)
    );
    assert!(!stdout(&shown).contains("a0000000000000000000000000secret"));
    let json: serde_json::Value =
        serde_json::from_str(&stdout(&site.run(&["device", "show", "--json", "001A2B3C4D5E"])))
            .expect("JSON");
    assert_eq!(json["hasCertificate"], true);

    let exported = stdout(&site.run(&["export"]));
    assert!(
        exported.contains("001A2B3C4D5E,lamp,a1lamp,lamp-1,a0000000000000000000000000secret"),
        "{exported}"
    );
    site.write("export.csv", &exported);
    let again = site.run(&["import", "export.csv"]);
    assert_eq!(stdout(&again), "export.csv: 0 devices added, 0 changed, 1 unchanged\n");

    let elsewhere = site.path("certdist.toml");
    let arguments = ["device", "show", "001A2B3C4D5E", "--config", elsewhere.to_str().expect("UTF-8")];
    assert!(site.run(&arguments).status.success());

    let missing = site.run(&["device", "show", "SN-NOBODY"]);
    assert_eq!(missing.status.code(), Some(1));
    assert!(stderr(&missing).contains("SN-NOBODY is not in the table"));
    assert_eq!(server.stop(), Some(0));
}

/// Runs `certdist device ACTION ID`.
fn change(site: &Site, action: &str, id: &str) -> std::process::Output {
    let mut arguments = vec!["device"];
    arguments.extend(action.split(' '));
    arguments.push(id);
    site.run(&arguments)
}

#[test]
fn a_device_is_disabled_enabled_reset_and_deleted() {
    let site = Site::new();
    site.import("deviceId,enrollment,deviceName,deviceSecret\nSN00000001,lamp,lamp-1,a0000000000000000000000000secret\n");
    let server = site.serve();
    let port = server.address.port().to_string();
    let classes = || stdout(&coapsload(&["-p", &port, "-n", "1", "-c", "1", "-K", MASTER]));
    assert!(classes().contains("(2.xx 1 4.xx 0"));
    for (action, expected) in [
        ("disable", "(2.xx 0 4.xx 1"),
        ("enable", "(2.xx 1 4.xx 0"),
        ("reset", "(2.xx 1 4.xx 0"),
        ("delete --yes", "(2.xx 0 4.xx 1"),
    ] {
        assert!(change(&site, action, "SN00000001").status.success(), "{action}");
        let classes = classes();
        assert!(classes.contains(expected), "{action}: {classes}");
    }
    assert_eq!(change(&site, "delete --yes", "SN00000001").status.code(), Some(1));
}

#[test]
fn what_was_answered_is_recorded_however_the_server_ends() {
    let site = Site::new();
    site.import("deviceId,enrollment,deviceName,deviceSecret\nSN00000001,lamp,lamp-1,a0000000000000000000000000secret\n");
    let shown = || -> serde_json::Value {
        let output = site.run(&["device", "show", "--json", "SN00000001"]);
        serde_json::from_str(&stdout(&output)).expect("JSON")
    };
    let server = site.serve();
    assert!(shown()["firstIssued"].is_null());
    load(&server, 1, &[]);
    server.kill();
    assert!(shown()["firstIssued"].is_string(), "{}", shown());
}

#[test]
fn a_broken_line_of_an_import_is_named_and_nothing_is_changed() {
    let site = Site::new();
    let mut lines: Vec<String> = csv(100_000).lines().map(Into::into).collect();
    lines[70_000] = "SN 70000,lamp".into();
    site.write("batch.csv", &lines.join("\n"));
    let output = site.run(&["import", "batch.csv"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("line 70001, column deviceId"), "{}", stderr(&output));
    assert_eq!(site.run(&["device", "show", "SN00000001"]).status.code(), Some(1));
}

#[test]
fn a_wrong_configuration_is_named_with_exit_code_2() {
    let site = Site::with("[limit]\nworkers = 1\n");
    let output = site.run(&["serve"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(
        stderr(&output).contains("certdist.toml") && stderr(&output).contains("limit"),
        "{}",
        stderr(&output)
    );

    let site = Site::new();
    let output = site.run(&["serve", "--config", "elsewhere.toml"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("elsewhere.toml"), "{}", stderr(&output));

    let output = site.run(&["import"]);
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn a_port_in_use_is_said() {
    let taken = UdpSocket::bind("127.0.0.1:0").expect("a port");
    let site = Site::new();
    let configuration = std::fs::read_to_string(site.path("certdist.toml")).expect("it is there");
    let address = taken.local_addr().expect("an address").to_string();
    site.write("certdist.toml", &configuration.replace("127.0.0.1:0", &address));
    let output = site.run(&["serve"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains(&format!("cannot listen on {address}")), "{}", stderr(&output));

    // A port that another certdist uses is also taken.
    drop(taken);
    let _first = site.serve();
    assert_eq!(site.run(&["serve"]).status.code(), Some(1));
}

#[test]
fn a_database_that_is_none_is_refused_and_left_alone() {
    let site = Site::new();
    site.write("certdist.db", "this is somebody's letter, not a database\n");
    let output = site.run(&["serve"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("certdist.db"), "{}", stderr(&output));
    let kept = std::fs::read_to_string(site.path("certdist.db")).expect("it is there");
    assert!(kept.starts_with("this is somebody's letter"));
}

#[test]
fn a_locked_database_delays_and_loses_nothing() {
    let cloud = Site::new();
    let simulator = cloud.simulator(&[]);
    let site = Site::with_cloud(&format!("http://{}", simulator.address));
    site.import(&csv(10));
    let server = site.serve();
    let lock = rusqlite::Connection::open(site.path("certdist.db")).expect("it opens");
    lock.execute_batch("BEGIN IMMEDIATE").expect("the lock");
    // The journal cannot be written, so the cloud must not be called.
    let port = server.address.port().to_string();
    let refused = coapsload(&["-p", &port, "-n", "10", "-c", "10", "-K", MASTER, "-t", "40"]);
    assert!(stdout(&refused).contains("ok 10 (2.xx 0 4.xx 0 5.xx 10)"), "{}", stdout(&refused));
    assert_eq!(stats(&simulator)["devices"], 0);
    lock.execute_batch("ROLLBACK").expect("unlocked");
    load(&server, 10, &[]);
    assert_eq!(stats(&simulator)["devices"], 10);
}

#[test]
fn a_cloud_that_answers_html_is_survived() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            thread::spawn(move || {
                let _ = stream.read(&mut [0; 4096]);
                let page = "<html><body>502 Bad Gateway</body></html>";
                let _ = write!(
                    stream,
                    "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{page}",
                    page.len()
                );
            });
        }
    });
    let site = Site::with(&format!(
        "[iot_platform]\nendpoint = \"http://{address}\"\nregion = \"cn-shanghai\"\nqps = 1000\n[limits]\npatience = 2\n"
    ));
    site.import(&csv(5));
    let mut server = site.serve();
    let port = server.address.port().to_string();
    let output = coapsload(&["-p", &port, "-n", "5", "-c", "5", "-K", MASTER]);
    assert!(stdout(&output).contains("ok 5 (2.xx 0 4.xx 0 5.xx 5)"), "{}", stdout(&output));
    assert!(server.is_running());
}

#[test]
fn garbage_from_the_network_is_survived() {
    let site = Site::new();
    site.import("deviceId,enrollment,deviceName,deviceSecret\nSN00000001,lamp,lamp-1,a0000000000000000000000000secret\n");
    let mut server = site.serve();
    let socket = UdpSocket::bind("127.0.0.1:0").expect("a socket");
    socket.connect(server.address).expect("connected");
    let mut state = 1u64;
    for length in (0..4000).chain([9000, 65_000]) {
        let garbage: Vec<u8> = (0..length)
            .map(|_| {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                (state >> 56) as u8
            })
            .collect();
        let _ = socket.send(&garbage);
        // The same bytes follow the header of a handshake record with a wrong length.
        let mut record = vec![22, 0xfe, 0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff];
        record.extend(&garbage);
        let _ = socket.send(&record);
    }
    load(&server, 1, &[]);
    assert!(server.is_running());
}

#[test]
fn enrollments_are_read_anew_on_sighup_and_a_broken_configuration_is_not_taken() {
    let site = Site::new();
    site.import(
        "deviceId,enrollment,deviceName,deviceSecret\nPLUG-1,plug,plug-1,a0000000000000000000000000secret\n",
    );
    let server = site.serve();
    let port = server.address.port().to_string();
    let served = |key: &str| {
        let key = hex::encode(key);
        let output = coapsload(&[
            "-p",
            &port,
            "-n",
            "1",
            "-c",
            "1",
            "-g",
            "plug-batch",
            "-I",
            "PLUG-%ld",
            "-k",
            &key,
            "-t",
            "5",
        ]);
        stdout(&output).contains("ok 1 (2.xx 1 ")
    };
    assert!(served(SHARED_KEY));
    let configuration = std::fs::read_to_string(site.path("certdist.toml")).expect("it is there");
    site.write("certdist.toml", "listen = ");
    server.signal("HUP");
    assert!(served(SHARED_KEY));
    site.write(
        "certdist.toml",
        &configuration.replace(&hex::encode(SHARED_KEY), &hex::encode("another-key-here")),
    );
    server.signal("HUP");
    let deadline = Instant::now() + Duration::from_secs(10);
    while !served("another-key-here") {
        assert!(Instant::now() < deadline, "the new key is not taken");
    }
    assert!(!served(SHARED_KEY));
}

/// Returns the outcome for a device that asks once with this identity and key.
fn outcome(server: &support::Process, identity: &str, key: &str, device: &str) -> &'static str {
    let (port, key) = (server.address.port().to_string(), hex::encode(key));
    let arguments = ["-p", &port, "-n", "1", "-c", "1", "-g", identity, "-k", &key, "-I", device, "-t", "5"];
    let output = stdout(&coapsload(&arguments));
    ["2.xx 1", "4.xx 1", "5.xx 1", "handshake 1"]
        .into_iter()
        .find(|outcome| output.contains(outcome))
        .unwrap_or_else(|| panic!("{output}"))
}

const INDIVIDUAL: &str = "listen = \"127.0.0.1:0\"\ndatabase = \"sqlite:certdist.db\"\n\
                          [[enrollment]]\nname = \"own\"\nproduct_key = \"a1own\"\nkind = \"individual\"\n";

/// Returns a CSV table of the devices `SN-1`, `SN-2`, etc., with these identities and keys.
fn with_keys(keys: &[(&str, &str)]) -> String {
    let mut csv = String::from("deviceId,deviceName,deviceSecret,pskIdentity,psk\n");
    for (number, (identity, key)) in keys.iter().enumerate() {
        let number = number + 1;
        csv.push_str(&format!(
            "SN-{number},name-{number},secret{number:026},{identity},{}\n",
            hex::encode(key)
        ));
    }
    csv
}

#[test]
fn a_device_with_a_key_of_its_own_gets_its_own_certificate_and_obeys_the_operator() {
    let site = Site::configured(INDIVIDUAL);
    site.import(&with_keys(&[("one", "the-key-of-one-1"), ("two", "the-key-of-two-2")]));
    let server = site.serve();
    let one = |key: &str, device: &str| outcome(&server, "one", key, device);
    assert_eq!(one("the-key-of-one-1", "SN-1"), "2.xx 1");
    assert_eq!(outcome(&server, "two", "the-key-of-two-2", "SN-2"), "2.xx 1");
    assert_eq!(one("the-key-of-one-1", "SN-2"), "4.xx 1", "another's certificate");
    assert_eq!(one("the-key-of-two-2", "SN-1"), "handshake 1", "another's key");
    assert_eq!(outcome(&server, "three", "the-key-of-one-1", "SN-1"), "handshake 1", "nobody");

    for (action, expected) in
        [("disable", "4.xx 1"), ("enable", "2.xx 1"), ("reset", "2.xx 1"), ("delete --yes", "handshake 1")]
    {
        assert!(change(&site, action, "SN-1").status.success(), "{action}");
        assert_eq!(one("the-key-of-one-1", "SN-1"), expected, "{action}");
    }
    assert_eq!(outcome(&server, "two", "the-key-of-two-2", "SN-2"), "2.xx 1");
}

#[test]
fn a_key_that_is_imported_anew_is_the_one_for_the_next_handshake_without_a_restart() {
    let site = Site::configured(INDIVIDUAL);
    let first = with_keys(&[("one", "the-key-of-one-1"), ("two", "the-key-of-two-2")]);
    site.import(&first);
    let server = site.serve();
    assert_eq!(outcome(&server, "one", "the-key-of-one-1", "SN-1"), "2.xx 1");

    let import = |csv: &str| {
        site.write("keys.csv", csv);
        let output = site.run(&["import", "keys.csv"]);
        (output.status.code(), stdout(&output), stderr(&output))
    };
    let changed =
        |csv: &str| assert_eq!(import(csv).1, "keys.csv: 0 devices added, 1 changed, 1 unchanged\n");
    changed(&with_keys(&[("one", "a-new-key-of-one"), ("two", "the-key-of-two-2")]));
    assert_eq!(outcome(&server, "one", "the-key-of-one-1", "SN-1"), "handshake 1");
    assert_eq!(outcome(&server, "one", "a-new-key-of-one", "SN-1"), "2.xx 1");
    assert_eq!(outcome(&server, "two", "the-key-of-two-2", "SN-2"), "2.xx 1");

    changed(&with_keys(&[("uno", "a-new-key-of-one"), ("two", "the-key-of-two-2")]));
    assert_eq!(outcome(&server, "one", "a-new-key-of-one", "SN-1"), "handshake 1");
    assert_eq!(outcome(&server, "uno", "a-new-key-of-one", "SN-1"), "2.xx 1");

    // An identity belongs to one device. A file that assigns the identity to another device is
    // rejected as a whole.
    let (code, _, error) = import(&with_keys(&[("two", "the-key-of-two-2")]));
    assert_eq!(code, Some(1));
    assert!(error.contains("this identity belongs to device SN-2"), "{error}");
    assert!(!error.contains(&hex::encode("the-key-of-two-2")), "{error}");
    assert_eq!(outcome(&server, "uno", "a-new-key-of-one", "SN-1"), "2.xx 1");
}

/// Asks with the shared key for this number of devices, one after another. `id` is the pattern
/// of their IDs.
fn ask_as_plug(server: &support::Process, id: &str, devices: &str) -> String {
    let (port, key) = (server.address.port().to_string(), hex::encode(SHARED_KEY));
    stdout(&coapsload(&["-p", &port, "-n", devices, "-c", "1", "-g", SHARED_IDENTITY, "-I", id, "-k", &key]))
}

#[test]
fn whoever_tries_device_ids_with_a_shared_key_is_slowed_and_shows_up_once() {
    let port = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port");
    let site = Site::with(&format!("[admin]\nlisten = \"{port}\"\n"));
    let configuration = std::fs::read_to_string(site.path("certdist.toml")).expect("it is there");
    site.write("certdist.toml", &format!("{configuration}refused_lookups = {{ burst = 5, every = 3600 }}\n"));
    site.import(
        "deviceId,enrollment,deviceName,deviceSecret\nPLUG-1,plug,plug-1,s1000000000000000000000000000000\nRIGHT-1,plug,right-1,s3000000000000000000000000000000\n\
         SN00000001,lamp,lamp-1,s2000000000000000000000000000000\n",
    );
    let mut command = site.certdist(&["serve"]);
    let log = std::fs::File::create(site.path("log")).expect("a log");
    let server = support::Process::start(command.stderr(Stdio::from(log)));
    assert!(ask_as_plug(&server, "PLUG-%ld", "1").contains("(2.xx 1 "));
    // Each request comes from a different port. All ports of an address together may make ten times
    // as many guesses as one port.
    assert!(ask_as_plug(&server, "GUESS-%ld", "60").contains("(2.xx 0 4.xx 60 "));
    // After these guesses, even a correct guess is refused. A device that was served at this
    // address before is still served, and so are the devices of other enrollments.
    assert!(ask_as_plug(&server, "RIGHT-%ld", "1").contains("(2.xx 0 4.xx 1 "));
    assert!(ask_as_plug(&server, "PLUG-%ld", "1").contains("(2.xx 1 "));
    load(&server, 1, &[]);

    let metrics = http_get(port, "/metrics");
    for line in [
        "certdist_refused_lookups_total 50\n",
        "certdist_throttled_total{limit=\"refused_lookups\"} 11\n",
        "certdist_throttled_total{limit=\"identity\"} 0\n",
        "certdist_throttling_episodes_total{limit=\"refused_lookups\"} 1\n",
    ] {
        assert!(metrics.contains(line), "{line}{metrics}");
    }
    assert_eq!(server.stop(), Some(0));
    let log = std::fs::read_to_string(site.path("log")).expect("the log");
    let lines: Vec<&str> = log.lines().filter(|line| line.contains("too many")).collect();
    assert_eq!(lines.len(), 1, "{log}");
    assert!(lines[0].contains("network=127.") && lines[0].contains("enrollment=\"plug\""), "{}", lines[0]);
}

#[test]
fn ten_thousand_devices_behind_one_address_are_served_with_the_default_limits() {
    let site = Site::new();
    let mut csv = String::from("deviceId,enrollment,deviceName,deviceSecret\n");
    for number in 1..=10_000 {
        csv.push_str(&format!("PLUG-{number},plug,plug-{number},secret{number:026}\n"));
    }
    site.import(&csv);
    let server = site.serve();
    let (port, key) = (server.address.port().to_string(), hex::encode(SHARED_KEY));
    let output = coapsload(&[
        "-p",
        &port,
        "-n",
        "10000",
        "-c",
        "256",
        "-g",
        SHARED_IDENTITY,
        "-I",
        "PLUG-%ld",
        "-k",
        &key,
    ]);
    assert!(stdout(&output).contains("ok 10000 (2.xx 10000 "), "{}", stdout(&output));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_is_held_meets_the_new_limits_and_ends_with_its_key() {
    let site = Site::new();
    site.import(
        "deviceId,enrollment,deviceName,deviceSecret\nPLUG-1,plug,plug-1,a0000000000000000000000000secret\n",
    );
    let server = site.serve();
    let device = SimulatedDevice {
        server: server.address,
        identity: SHARED_IDENTITY.into(),
        psk: SHARED_KEY.into(),
        sn: Some("PLUG-1".into()),
        asks_host: false,
        patience: Duration::from_secs(20),
    };
    let held = device.connect().await.expect("a session");
    assert!(matches!(held.ask().await, Ok(Answer::Certificate { .. })));

    let configuration = std::fs::read_to_string(site.path("certdist.toml")).expect("it is there");
    let other_key = configuration.replace(&hex::encode(SHARED_KEY), &hex::encode("another-key-here"));
    let limits = "[limits]\nrequests_per_address = { burst = 2, every = 3600 }\n";
    site.write("certdist.toml", &format!("{configuration}{limits}"));
    server.signal("HUP");
    let deadline = Instant::now() + Duration::from_secs(10);
    let max_age = loop {
        match held.ask().await.expect("an answer") {
            Answer::Refused { code, max_age, .. } if code == "4.29" => break max_age,
            Answer::Certificate { .. } => assert!(Instant::now() < deadline, "the new limits are not taken"),
            other => panic!("{other:?}"),
        }
    };
    assert!(max_age.is_some_and(|seconds| (3590..=3600).contains(&seconds)), "{max_age:?}");

    site.write("certdist.toml", &configuration);
    server.signal("HUP");
    while !matches!(held.ask().await.expect("an answer"), Answer::Certificate { .. }) {
        assert!(Instant::now() < deadline + Duration::from_secs(10), "the limits are still there");
    }

    // After its key is removed, a session gets no more answers.
    site.write("certdist.toml", &other_key);
    server.signal("HUP");
    while held.ask().await.is_ok() {
        assert!(Instant::now() < deadline + Duration::from_secs(20), "the session goes on");
    }
    let fresh = SimulatedDevice { patience: Duration::from_secs(3), ..device };
    assert!(fresh.fetch().await.is_err(), "the old key is taken");
}

#[test]
fn health_and_metrics_are_told() {
    let port = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port");
    let site = Site::with(&format!("[admin]\nlisten = \"{port}\"\n"));
    site.import("deviceId,enrollment,deviceName,deviceSecret\nSN00000001,lamp,lamp-1,a0000000000000000000000000secret\n");
    let server = site.serve();
    load(&server, 1, &[]);
    assert_eq!(http_get(port, "/healthz"), "ok\n");
    let metrics = http_get(port, "/metrics");
    assert!(metrics.contains("certdist_responses_total{code=\"2.05\"} 1"), "{metrics}");
    let handshakes =
        "certdist_handshakes_total{outcome=\"completed\",suite=\"TLS_PSK_WITH_AES_128_CCM_8\"} 1";
    assert!(metrics.contains(handshakes), "{metrics}");
}

#[test]
fn no_secret_is_in_any_output() {
    let cloud = Site::new();
    let simulator = cloud.simulator(&["--access-key-id", "test-id", "--access-key-secret", "test-secret"]);
    let site = Site::with_cloud(&format!("http://{}", simulator.address));
    site.import("deviceId,enrollment,deviceName,deviceSecret\nSN00000001,lamp,lamp-1,thedevicesecret00000000000000000\nSN00000002,lamp,,\n");
    let mut command = site.certdist(&["serve"]);
    let log = std::fs::File::create(site.path("log")).expect("a log");
    let server = support::Process::start(command.env("RUST_LOG", "trace").stderr(Stdio::from(log)));
    load(&server, 2, &[]);
    let port = server.address.port().to_string();
    coapsload(&["-p", &port, "-n", "1", "-c", "1", "-k", "00112233445566778899aabbccddeeff", "-t", "3"]);
    assert_eq!(server.stop(), Some(0));
    let log = std::fs::read_to_string(site.path("log")).expect("the log");
    assert!(log.contains("SN00000001"), "at trace level the log speaks of devices");
    let registered = stdout(&site.run(&["export"]));
    let secret = registered
        .lines()
        .find(|line| line.starts_with("SN00000002"))
        .and_then(|line| line.split(',').nth(4));
    for secret in [
        "thedevicesecret00000000000000000",
        "test-secret",
        MASTER,
        &hex::encode(SHARED_KEY),
        secret.expect("registered"),
    ] {
        assert!(!log.contains(secret), "a secret is in the log");
    }
}
