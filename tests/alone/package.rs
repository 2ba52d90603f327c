//! Checks everything that is delivered: the package, manual pages, the systemd unit, the container
//! image, the Kubernetes manifests, alerts and dashboards. If the program that reads such a file
//! runs here, this program checks the file.
#![cfg(feature = "simulation")]

use std::{
    collections::BTreeSet,
    fs,
    net::{SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Command, Output},
    time::{Duration, Instant},
};

use crate::{
    addresses, alone,
    support::{CERTDIST, Site, http, http_get, stderr, stdout},
};
use certdist::{config::Config, server::Limits};
use yaml_rust2::{Yaml, YamlLoader};

fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

fn read(name: &str) -> String {
    fs::read_to_string(file(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn run(command: &mut Command) -> Output {
    command.output().unwrap_or_else(|error| panic!("{command:?}: {error}; run `make clients`"))
}

#[test]
fn the_package_is_installed_serves_is_upgraded_under_traffic_and_goes() {
    let _alone = alone();
    let output = run(Command::new(file("tests/package.sh")).arg(CERTDIST));
    assert!(output.status.success(), "{}\n{}", stdout(&output), stderr(&output));
    assert!(stdout(&output).ends_with("== all is well\n"), "{}", stdout(&output));
}

#[test]
fn completions_and_manual_pages_are_made() {
    let _alone = alone();
    let site = Site::new();
    for shell in ["bash", "zsh", "fish"] {
        assert!(stdout(&site.run(&["completion", shell])).contains("check-config"), "{shell}");
    }
    assert!(site.run(&["man", "pages"]).status.success());
    for page in ["certdist.1", "certdist-import.1", "certdist-device-list.1", "certdist.toml.5"] {
        let path = site.path("pages").join(page);
        let output = Command::new("man").arg("--warnings").arg("-l").arg(&path).output().expect("man");
        assert!(output.status.success() && stderr(&output).is_empty(), "{page}: {}", stderr(&output));
        assert!(stdout(&output).lines().count() > 20, "{page}");
    }
}

#[test]
fn the_unit_exposes_little() {
    let _alone = alone();
    // The threshold is in tenths, so 20 stands for an exposure of 2.0. systemd-analyze also reports
    // settings in the unit that it does not know.
    let mut analyze = Command::new("systemd-analyze");
    let output = run(analyze
        .args(["security", "--offline=true", "--threshold=20"])
        .arg(file("packaging/certdist.service")));
    assert!(output.status.success(), "{}{}", stdout(&output), stderr(&output));
    assert_eq!(stderr(&output), "", "what it does not know");
    let drain: u64 = 10;
    let unit = read("packaging/certdist.service");
    // The unit fits both stores: it waits for the network, never stops trying to start, and needs no
    // other service.
    let has = |line: &str| unit.lines().any(|known| known == line);
    assert!(
        has("After=network-online.target") && has("Restart=on-failure") && has("StartLimitIntervalSec=0")
    );
    assert!(!unit.contains("postgresql") && !unit.lines().any(|line| line.starts_with("Requires=")));
    let stop = unit.lines().find_map(|line| line.strip_prefix("TimeoutStopSec=")?.parse().ok());
    assert!(stop > Some(drain) && read("certdist.example.toml").contains(&format!("#drain = {drain}\n")));

    // The limits of the unit must fit the table in docs/operations.md.
    let bytes = |key: &str| -> u64 {
        let value = unit.lines().find_map(|line| line.strip_prefix(key)).expect(key);
        let (number, unit) = value.split_at(value.len() - 1);
        let shift = match unit {
            "M" => 20,
            "G" => 30,
            _ => panic!("{key}{value}"),
        };
        number.parse::<u64>().expect(key) << shift
    };
    let limits = Limits::default().dtls;
    let takes = (200 << 20) + 512 * limits.max_sessions as u64 + 4096 * limits.max_handshakes as u64;
    assert!(takes < bytes("MemoryHigh=") && bytes("MemoryHigh=") < bytes("MemoryMax="), "{takes}");
    assert!(unit.contains("\nTasksMax="));
    // An upgrade of a large database takes long, and must not be killed.
    assert!(unit.contains("\nTimeoutStartSec=infinity\n"));
}

#[test]
fn alerts_fire_on_what_they_are_for_and_a_healthy_server_fires_none() {
    let _alone = alone();
    for (action, rules) in [("check", "certdist.rules.yml"), ("test", "certdist.rules.test.yml")] {
        let mut promtool = Command::new("promtool");
        let promtool = promtool.current_dir(file("packaging/prometheus")).args([action, "rules", rules]);
        let output = run(promtool);
        assert!(output.status.success(), "{}{}", stdout(&output), stderr(&output));
    }
    let alerts = read("packaging/prometheus/certdist.rules.yml");
    let documentation = read("docs/operations.md");
    let anchors: BTreeSet<String> = documentation.lines().filter_map(anchor).collect();
    for line in alerts.lines() {
        if let Some(runbook) = line.trim().strip_prefix("runbook: docs/operations.md#") {
            assert!(anchors.contains(runbook), "docs/operations.md has no #{runbook}");
        }
    }
}

/// Returns the anchor of a heading.
fn anchor(line: &str) -> Option<String> {
    let title = line.strip_prefix('#')?.trim_start_matches('#').trim().to_lowercase();
    let kept = title.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-'));
    Some(kept.map(|c| if c == ' ' { '-' } else { c }).collect())
}

/// Returns all words of a text that begin with `certdist_`.
fn metrics(text: &str) -> BTreeSet<String> {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let words = text.split(|c| !word(c));
    words.filter(|word| word.starts_with("certdist_")).map(Into::into).collect()
}

#[test]
fn every_metric_of_alerts_and_dashboard_is_one_that_the_server_has() {
    let _alone = alone();
    let port = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port");
    let site = Site::with(&format!("[admin]\nlisten = \"{port}\"\n"));
    let _server = site.serve();
    let known = metrics(&http_get(port, "/metrics"));
    assert!(known.len() > 10, "{known:?}");
    for name in ["packaging/prometheus/certdist.rules.yml", "packaging/grafana/certdist.json"] {
        let used = metrics(&read(name));
        assert!(used.len() > 5 && used.is_subset(&known), "{name}: {:?}", used.difference(&known));
    }
    // Every metric that counts losses must be on the dashboard.
    let drawn = metrics(&read("packaging/grafana/certdist.json"));
    for name in &known {
        let is_loss =
            ["_dropped_", "_evicted_", "_given_up_", "_put_off_"].iter().any(|what| name.contains(what));
        assert!(!is_loss || drawn.contains(name), "{name} is not on the dashboard");
    }
    let dashboard: serde_json::Value =
        serde_json::from_str(&read("packaging/grafana/certdist.json")).expect("JSON");
    for panel in dashboard["panels"].as_array().expect("panels") {
        assert!(panel["targets"].as_array().is_some_and(|targets| !targets.is_empty()), "{panel}");
    }
}

/// Not every machine can build images, so this test checks what can be checked without a build.
#[test]
fn the_image_has_what_it_copies_and_runs_as_nobody() {
    let _alone = alone();
    let text = read("packaging/Dockerfile").replace("\\\n", " ");
    let lines: Vec<(&str, &str)> = text
        .lines()
        .filter(|line| !line.starts_with('#') && !line.is_empty())
        .map(|line| line.split_once(' ').expect("an instruction and its words"))
        .collect();
    for (instruction, words) in &lines {
        assert!(
            [
                "FROM",
                "RUN",
                "WORKDIR",
                "COPY",
                "ENV",
                "USER",
                "EXPOSE",
                "VOLUME",
                "STOPSIGNAL",
                "ENTRYPOINT",
                "CMD"
            ]
            .contains(instruction),
            "{instruction}"
        );
        if *instruction == "COPY" && !words.contains("--from") {
            let words: Vec<&str> = words.split_whitespace().collect();
            for source in &words[..words.len() - 1] {
                assert!(file(source).exists(), "{source} is not there to copy");
            }
        }
    }
    let last =
        |wanted: &str| lines.iter().rev().find(|(instruction, _)| *instruction == wanted).map(|line| line.1);
    assert_eq!(last("USER"), Some("65532:65532"));
    let words: Vec<String> = ["ENTRYPOINT", "CMD"]
        .iter()
        .flat_map(|part| serde_json::from_str::<Vec<String>>(last(part).expect("it is there")).expect("JSON"))
        .collect();
    assert_eq!(words[..2], ["/usr/bin/certdist", "serve"]);
    // Files outside `src/` that the build reads must be copied, too.
    for needed in ["schema.sql", "certdist.example.toml"] {
        assert!(text.contains(needed), "{needed}");
    }
    let toolchain = read("Cargo.toml");
    let version = toolchain.lines().find_map(|line| line.strip_prefix("rust-version = ")).expect("a version");
    assert!(text.contains(&format!("FROM rust:{}-", version.trim_matches('"'))), "{version}");
}

fn named<'y>(documents: &'y [Yaml], kind: &str) -> &'y Yaml {
    documents.iter().find(|document| document["kind"].as_str() == Some(kind)).expect(kind)
}

/// Checks that the manifests of a file refer to each other, and returns them with their configuration.
fn checked_manifests(file: &str, kind: &str, mounted: &[&str]) -> (Vec<Yaml>, Config) {
    let documents = YamlLoader::load_from_str(&read(file)).expect("YAML");
    for document in &documents {
        assert!(document["apiVersion"].as_str().is_some() && document["metadata"]["name"].as_str().is_some());
    }
    let pod = &named(&documents, "Deployment")["spec"]["template"]["spec"];
    let container = &pod["containers"][0];

    // certdist must accept the configuration, with the keys at their mount points.
    let data = if kind == "Secret" { "stringData" } else { "data" };
    let configuration = named(&documents, kind)[data]["certdist.toml"].as_str().expect("a text");
    let mounts: Vec<&str> = container["volumeMounts"]
        .as_vec()
        .expect("mounts")
        .iter()
        .filter_map(|mount| mount["mountPath"].as_str())
        .collect();
    assert_eq!(mounts, mounted);
    assert!(configuration.contains("file:/etc/certdist-keys/lamp-2026.key"));
    let folder = tempfile::tempdir().expect("a folder");
    for key in ["lamp-2026.key", "database.key"] {
        fs::write(folder.path().join(key), "00".repeat(32)).expect("a key");
    }
    let local = configuration
        .replace("credentials = ", "#credentials = ")
        .replace("file:/etc/certdist-keys/", "file:")
        .replace("region = ", "credentials = \"ecs-role\"\nregion = ");
    let config = Config::parse(&local, folder.path()).unwrap_or_else(|error| panic!("{error:#}"));

    // Ports, probes and the service must refer to the same ports.
    let ports = container["ports"].as_vec().expect("ports");
    let port = |name: &str| ports.iter().find(|port| port["name"].as_str() == Some(name)).expect("a port");
    assert_eq!(port("coaps")["containerPort"].as_i64(), Some(config.listen[0].port().into()));
    assert_eq!(port("coaps")["protocol"].as_str(), Some("UDP"));
    for probe in ["startupProbe", "livenessProbe", "readinessProbe"] {
        let get = &container[probe]["httpGet"];
        assert_eq!(get["port"].as_str(), Some("admin"), "{probe}");
        assert!(matches!(get["path"].as_str(), Some("/healthz" | "/readyz")), "{probe}");
    }
    assert!(
        configuration.contains(&format!(":{}\"", port("admin")["containerPort"].as_i64().expect("a port")))
    );
    let grace = pod["terminationGracePeriodSeconds"].as_i64().expect("a time");
    assert!(grace > config.limits.drain.as_secs() as i64, "the pod is killed while it drains");
    let service = &named(&documents, "Service")["spec"];
    assert_eq!(service["ports"][0]["targetPort"].as_str(), Some("coaps"));
    assert_eq!(service["ports"][0]["protocol"].as_str(), Some("UDP"));
    let labels = &named(&documents, "Deployment")["spec"]["template"]["metadata"]["labels"];
    assert_eq!(service["selector"], *labels);

    assert_eq!(pod["securityContext"]["runAsNonRoot"].as_bool(), Some(true));
    assert_eq!(container["securityContext"]["readOnlyRootFilesystem"].as_bool(), Some(true));
    (documents, config)
}

#[test]
fn the_clusters_manifests_hold_together() {
    let _alone = alone();
    // The root file system is read-only, so temporary files need their own volume.
    let mounts = ["/etc/certdist", "/etc/certdist-keys", "/var/lib/certdist", "/tmp"];
    let (_, config) = checked_manifests("packaging/kubernetes/certdist.yaml", "ConfigMap", &mounts);
    assert_eq!(&*config.database, "sqlite:/var/lib/certdist/certdist.db");
}

#[test]
fn the_manifests_of_three_servers_hold_together() {
    let _alone = alone();
    let mounts = ["/etc/certdist", "/etc/certdist-keys", "/tmp"];
    let (documents, config) =
        checked_manifests("packaging/kubernetes/certdist-postgres.yaml", "Secret", &mounts);
    assert!(config.database.starts_with("postgres://certdist:PASSWORD@"));
    for parameter in
        ["target_session_attrs=read-write", "sslmode=verify-full", "sslrootcert=/etc/certdist-keys/"]
    {
        assert!(config.database.contains(parameter), "{parameter}");
    }
    let deployment = &named(&documents, "Deployment")["spec"];
    let replicas = deployment["replicas"].as_i64().expect("a number");
    let budget = &named(&documents, "PodDisruptionBudget")["spec"];
    assert!(budget["minAvailable"].as_i64().expect("a number") < replicas, "a node could never be drained");
    let labels = &deployment["template"]["metadata"]["labels"];
    assert_eq!(budget["selector"]["matchLabels"], *labels);
    assert_eq!(deployment["selector"]["matchLabels"], *labels);
    // No secret is in a variable or an argument; each comes from a Secret of the cluster.
    let pod = &deployment["template"]["spec"];
    let container = &pod["containers"][0];
    assert!(container["env"].is_badvalue() && container["envFrom"].is_badvalue());
    for volume in pod["volumes"].as_vec().expect("volumes") {
        assert!(volume["secret"].is_hash() || volume["emptyDir"].is_hash(), "{volume:?}");
    }
    // A DTLS session belongs to one server, so the datagrams of a device must always go to that server.
    let service = &named(&documents, "Service")["spec"];
    assert_eq!(service["sessionAffinity"].as_str(), Some("ClientIP"));
    let affinity = service["sessionAffinityConfig"]["clientIP"]["timeoutSeconds"].as_i64();
    assert!(affinity > Some(config.limits.dtls.session_idle.as_secs() as i64));
    assert_eq!(service["externalTrafficPolicy"].as_str(), Some("Local"));
}

/// Sends the manifest's probes like a kubelet: from another address, to the pod's address, without
/// a token.
#[test]
fn the_clusters_probes_are_answered_and_learn_no_more_than_they_need() {
    let _alone = alone();
    let documents = YamlLoader::load_from_str(&read("packaging/kubernetes/certdist.yaml")).expect("YAML");
    let container = &named(&documents, "Deployment")["spec"]["template"]["spec"]["containers"][0];
    let path = |probe: &str| container[probe]["httpGet"]["path"].as_str().expect("a path").to_owned();
    let probes = ["startupProbe", "livenessProbe", "readinessProbe"].map(path);
    let configuration = named(&documents, "ConfigMap")["data"]["certdist.toml"].as_str().expect("a text");
    let configuration = configuration
        .replace("/etc/certdist-keys/", "")
        .replace("/var/lib/certdist/", "")
        .replace("[iot_platform]", "[limits]\nworkers = 2\n[iot_platform]");
    addresses::in_a_network(|| {
        let site = Site::configured(&configuration);
        site.write("lamp-2026.key", &"00".repeat(32));
        let _server = site.serve();
        let pod: SocketAddr = "192.0.2.1:9684".parse().expect("an address");
        let get = |path: &str| {
            let stream = TcpStream::connect(pod).expect("it listens");
            assert_eq!(stream.local_addr().expect("an address").ip().to_string(), "192.0.2.9");
            stream.set_read_timeout(Some(Duration::from_secs(60))).expect("a time-out");
            http::exchange(stream, "GET", path, &[("Host", "192.0.2.1:9684")], b"")
        };
        for (path, body) in std::iter::zip(&probes, ["ok\n", "ok\n", "ready\n"]) {
            let answer = get(path);
            assert_eq!((answer.status, answer.body.as_str()), (200, body), "{path}");
        }
        for (path, expected) in [("/metrics", 401), ("/devices", 404)] {
            assert_eq!(get(path).status, expected, "{path}");
        }
        let other = rusqlite::Connection::open(site.path("certdist.db")).expect("the database");
        other.execute_batch("BEGIN IMMEDIATE").expect("locked");
        let deadline = Instant::now() + Duration::from_secs(20);
        let unready = loop {
            let answer = get(&probes[2]);
            if answer.status == 503 {
                break answer;
            }
            assert!(Instant::now() < deadline, "it stays ready");
        };
        assert!(unready.body.starts_with("not ready\n"), "{}", unready.body);
        assert!(!unready.body.contains("database"), "a stranger learns it: {}", unready.body);
        assert_eq!(get(&probes[1]).status, 200, "a restart would not help");
    });
}
