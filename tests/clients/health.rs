//! Tests of metrics, health checks and the request log, on a healthy server and on a server with
//! problems.

use std::{
    fs::File,
    io::Write,
    net::SocketAddr,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use crate::support::{
    self, MASTER, Process, Site, coapsload,
    console::{TOKEN, admin, free_address},
    http::{self, Answer},
    stdout,
};

fn get(address: SocketAddr, path: &str) -> Answer {
    http::send(address, "GET", path, &[], b"")
}

fn load(server: &Process, devices: u32) -> String {
    let (port, count) = (server.address.port().to_string(), devices.to_string());
    stdout(&coapsload(&["-p", &port, "-n", &count, "-c", "16", "-K", MASTER]))
}

/// Starts a server that uses this cloud and has one device, which is not registered. Returns the
/// site, the server, and the address of the admin port.
fn unregistered_device(cloud: &Process) -> (Site, Process, SocketAddr) {
    let port = free_address();
    let sections = format!(
        "{}[iot_platform]\nendpoint = \"http://{}\"\nregion = \"cn-shanghai\"\n",
        admin(port, ""),
        cloud.address
    );
    let site = Site::with(&sections);
    site.import("deviceId,enrollment\nSN00000001,lamp\n");
    let server = site.serve();
    (site, server, port)
}

/// Waits until a page contains a text.
fn until(address: SocketAddr, path: &str, text: &str) -> Answer {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let answer = get(address, path);
        if answer.body.contains(text) {
            return answer;
        }
        assert!(Instant::now() < deadline, "{path} does not say {text}: {}", answer.body);
        thread::sleep(Duration::from_millis(50));
    }
}

/// Number of times that a device asks for its certificate.
const REPEATS: u64 = 30;

#[test]
fn metrics_are_as_prometheus_wants_them_and_count_what_was_done() {
    let port = free_address();
    let site = Site::with(&admin(port, ""));
    site.import("deviceId,enrollment,deviceName,deviceSecret\nSN00000001,lamp,lamp-1,a0000000000000000000000000secret\n");
    let server = site.serve();
    let written = |body: &str| -> [u64; 2] {
        ["certdist_store_writes_total{outcome=\"written\"} ", "certdist_store_commit_duration_seconds_count "]
            .map(|metric| {
                let value = body.lines().find_map(|line| line.strip_prefix(metric));
                value.and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("no {metric}in {body}"))
            })
    };
    let before = written(&get(port, "/metrics").body);
    for _ in 0..REPEATS {
        load(&server, 1);
    }
    load(&server, 2);
    let answer = get(port, "/metrics");
    // Only the first issue is written, and beats of the server.
    let more: Vec<u64> =
        written(&answer.body).into_iter().zip(before).map(|(after, before)| after - before).collect();
    assert!(more.iter().all(|more| (1..REPEATS).contains(more)), "{more:?}");
    assert_eq!(
        (answer.status, answer.header("content-type")),
        (200, "text/plain; version=0.0.4; charset=utf-8")
    );
    for line in [
        "certdist_responses_total{code=\"2.05\"} 31\n",
        "certdist_responses_total{code=\"4.04\"} 1\n",
        "certdist_responses_total{code=\"other\"} 0\n",
        "certdist_request_duration_seconds_count 32\n",
        "certdist_request_duration_seconds_bucket{le=\"+Inf\"} 32\n",
        "certdist_handshakes_total{outcome=\"completed\",suite=\"TLS_PSK_WITH_AES_128_CCM_8\"} 32\n",
        "certdist_handshake_failures_total{reason=\"wrong_key\"} 0\n",
        "certdist_registrations 0\n",
        "certdist_breakers_open 0\n",
    ] {
        assert!(answer.body.contains(line), "{line}{}", answer.body);
    }
    let mut promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool, of Debian's package prometheus: run `make clients`");
    promtool.stdin.take().expect("its input").write_all(answer.body.as_bytes()).expect("written");
    let output = promtool.wait_with_output().expect("its output");
    assert!(output.status.success() && output.stderr.is_empty(), "{}", support::stderr(&output));
}

#[test]
fn a_server_is_ready_unless_its_database_takes_no_write() {
    let port = free_address();
    let site = Site::with(&admin(port, ""));
    let _server = site.serve();
    let ready = get(port, "/readyz");
    assert_eq!((ready.status, ready.body.as_str()), (200, "ready\n"));

    let other = rusqlite::Connection::open(site.path("certdist.db")).expect("the database");
    other.execute_batch("BEGIN IMMEDIATE").expect("locked");
    let locked = until(port, "/readyz", "not ready");
    assert_eq!(locked.status, 503);
    assert!(locked.body.contains("database"), "what is missing: {}", locked.body);
    // The process itself is healthy: a restart would not help.
    assert_eq!(get(port, "/healthz").status, 200);
    other.execute_batch("ROLLBACK").expect("unlocked");
    let deadline = Instant::now() + Duration::from_secs(20);
    while get(port, "/readyz").status != 200 {
        assert!(Instant::now() < deadline, "it stays unready");
    }
}

#[test]
fn a_server_that_ends_says_so_while_it_drains() {
    let cloud = Site::new();
    let simulator = cloud.simulator(&["--latency", "3s"]);
    let (_site, server, port) = unregistered_device(&simulator);
    thread::scope(|scope| {
        let devices = server.address.port().to_string();
        scope.spawn(move || coapsload(&["-p", &devices, "-n", "1", "-c", "1", "-t", "5", "-K", MASTER]));
        until(port, "/metrics", "certdist_registrations 1\n");
        server.signal("TERM");
        let draining = until(port, "/readyz", "draining");
        assert_eq!(draining.status, 503);
    });
    assert_eq!(server.stop(), Some(0));
}

#[test]
fn a_cloud_that_refuses_makes_a_server_not_unready_but_is_told() {
    let cloud = Site::new();
    let simulator = cloud.simulator(&["--product", "a1other"]);
    let (_site, server, port) = unregistered_device(&simulator);
    load(&server, 1);
    let ready = until(port, "/readyz", "IoT Platform refuses");
    assert_eq!(ready.status, 200);
    assert!(ready.body.starts_with("ready\n"), "{}", ready.body);
    assert!(get(port, "/metrics").body.contains("certdist_breakers_open 1\n"));
}

#[test]
fn metrics_and_the_reasons_for_health_take_a_token_where_the_operator_wants_one() {
    let port = free_address();
    let site = Site::with(&admin(port, "require_token = true\n"));
    let _server = site.serve();
    let bearer = |token: &str| format!("Bearer {token}");
    let with =
        |path: &str, token: &str| http::send(port, "GET", path, &[("Authorization", &bearer(token))], b"");
    let refused = get(port, "/metrics");
    assert_eq!((refused.status, refused.header("www-authenticate")), (401, "Bearer"));
    assert_eq!((with("/metrics", TOKEN).status, with("/metrics", "wrong").status), (200, 401));

    let other = rusqlite::Connection::open(site.path("certdist.db")).expect("the database");
    other.execute_batch("BEGIN IMMEDIATE").expect("locked");
    until(port, "/readyz", "not ready");
    let reasons = with("/readyz", TOKEN);
    assert!(reasons.status == 503 && reasons.body.contains("database"), "{}", reasons.body);
    for stranger in [get(port, "/readyz"), with("/readyz", "wrong")] {
        assert_eq!(stranger.status, 503);
        assert!(stranger.body.starts_with("not ready\n"), "{}", stranger.body);
        assert!(!stranger.body.contains("database"), "a stranger learns it: {}", stranger.body);
    }
    for stranger in [get(port, "/healthz"), with("/healthz", "wrong")] {
        assert_eq!((stranger.status, stranger.body.as_str()), (200, "ok\n"));
    }

    // Of its twenty attempts, this address has already used three.
    let mut tries = (0..40).map(|_| with("/metrics", "x").status);
    assert!(tries.any(|status| status == 429), "a token can be tried without end");
}

#[test]
fn each_request_is_a_line_until_there_are_too_many_and_then_they_are_counted() {
    let site = Site::new();
    site.import("deviceId,enrollment,deviceName,deviceSecret\nSN00000001,lamp,lamp-1,a0000000000000000000000000secret\n");
    let mut command = site.certdist(&["serve", "--log-format", "json"]);
    let log = File::create(site.path("log")).expect("a log");
    let server = Process::start(command.stderr(Stdio::from(log)));
    load(&server, 2000);
    // The first line of a later second gives the number of suppressed lines.
    let lines = || -> Vec<serde_json::Value> {
        let log = std::fs::read_to_string(site.path("log")).expect("the log");
        log.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    };
    let deadline = Instant::now() + Duration::from_secs(20);
    let counted = loop {
        load(&server, 20);
        let lines = lines();
        let told = lines.iter().find(|line| {
            let fields = &line["fields"];
            fields["message"] == "log lines suppressed: too many of this kind in a second"
                && fields["kind"] == "requests"
        });
        if let Some(told) = told {
            break told["fields"]["lines"].as_u64().expect("a number");
        }
        assert!(Instant::now() < deadline, "what was left out is not told");
    };
    assert!(counted > 0);
    let lines = lines();
    let requests: Vec<_> = lines.iter().filter(|line| line["fields"]["message"] == "request").collect();
    assert!(requests.len() < 1500, "{} lines of some 2,000 requests", requests.len());
    let served =
        requests.iter().find(|line| line["fields"]["code"] == "2.05").expect("the one that is known");
    let fields = &served["fields"];
    assert_eq!((&fields["device"], &fields["identity"]), (&"SN00000001".into(), &"SN00000001".into()));
    assert!(fields["peer"].as_str().is_some_and(|peer| peer.starts_with("127.0.0.")), "{fields}");
    assert!(fields["milliseconds"].as_f64().is_some_and(|took| took > 0.0 && took < 20_000.0), "{fields}");
    assert!(requests.iter().any(|line| line["fields"]["code"] == "4.04"));
}
