//! Tests with two simulated clouds, each of which is a target of one server.
#![cfg(feature = "simulation")]

use std::process::Output;

use crate::support::{
    Process, SHARED_KEY, Site,
    console::{Visitor, admin, free_address},
    http_get, stderr, stdout,
};

/// Two clouds with accounts of their own, and a server that registers devices in both.
struct Scene {
    site: Site,
    shanghai: Process,
    tokyo: Process,
    admin: std::net::SocketAddr,
    _clouds: Site,
}

const CREDENTIALS: &str =
    "[default]\ntype = access_key\naccess_key_id = tokyo-id\naccess_key_secret = tokyo-secret\n";

impl Scene {
    /// Creates the scene. The enrollment `plug` is at the target `default`, and `lamp` at `tokyo`.
    fn new() -> Self {
        let clouds = Site::new();
        let simulator = |name: &str| {
            let (id, secret) = (format!("{name}-id"), format!("{name}-secret"));
            clouds.simulator(&["--access-key-id", &id, "--access-key-secret", &secret])
        };
        let (shanghai, tokyo, admin) = (simulator("test"), simulator("tokyo"), free_address());
        let site = Site::configured("");
        site.write("tokyo.ini", CREDENTIALS);
        let scene = Self { site, shanghai, tokyo, admin, _clouds: clouds };
        scene.configure(&scene.tokyo_section(), "tokyo");
        scene
    }

    fn tokyo_section(&self) -> String {
        format!(
            "[[target]]\nname = \"tokyo\"\nendpoint = \"http://{}\"\nregion = \"ap-northeast-1\"\n\
             credentials = \"file:tokyo.ini\"\n",
            self.tokyo.address
        )
    }

    /// Writes the configuration, with this `[[target]]` and this target of the enrollment `lamp`.
    fn configure(&self, section: &str, of_lamp: &str) {
        let enrollment = |name: &str, target: &str| {
            format!(
                "[[enrollment]]\nname = \"{name}\"\nproduct_key = \"a1{name}\"\nkind = \"shared\"\n\
                 identity = \"{name}\"\nkey = \"hex:{}\"\ntarget = \"{target}\"\n",
                hex::encode(SHARED_KEY)
            )
        };
        self.site.write(
            "certdist.toml",
            &format!(
                "listen = \"127.0.0.1:0\"\ndatabase = \"sqlite:certdist.db\"\n{}\
                 [iot_platform]\nendpoint = \"http://{}\"\nregion = \"cn-shanghai\"\n{section}{}{}",
                admin(self.admin, ""),
                self.shanghai.address,
                enrollment("plug", "default"),
                enrollment("lamp", of_lamp),
            ),
        );
    }

    /// Asks for a certificate, as a device of an enrollment does.
    fn fetch(&self, server: &Process, identity: &str, device: &str) -> Output {
        self.fetch_within(server, identity, device, "60")
    }

    /// Asks for a certificate, with this patience in seconds.
    fn fetch_within(&self, server: &Process, identity: &str, device: &str, patience: &str) -> Output {
        let (server, psk) = (server.address.to_string(), hex::encode(SHARED_KEY));
        let arguments = ["--server", &server, "--identity", identity, "--psk", &psk, "--sn", device];
        self.site.run(&[&["device-sim", "--patience", patience], &arguments[..]].concat())
    }

    /// Returns the numbers of devices in Shanghai and in Tokyo.
    fn devices(&self) -> [u64; 2] {
        [&self.shanghai, &self.tokyo].map(|cloud| {
            let stats: serde_json::Value =
                serde_json::from_str(&http_get(cloud.address, "/stats")).expect("JSON");
            stats["devices"].as_u64().expect("a number")
        })
    }
}

#[test]
fn each_device_is_registered_at_the_cloud_of_its_target() {
    let scene = Scene::new();
    let site = &scene.site;
    site.import("deviceId,enrollment,target\nPLUG0001,plug,\nLAMP0001,lamp,\nPLUG0002,plug,tokyo\n");
    let server = site.serve();
    for (identity, device) in [("plug", "PLUG0001"), ("lamp", "LAMP0001"), ("plug", "PLUG0002")] {
        let output = scene.fetch(&server, identity, device);
        assert!(output.status.success(), "{device}: {}", stderr(&output));
    }
    assert_eq!(scene.devices(), [1, 2]);

    let list = |arguments: &[&str]| stdout(&site.run(&[&["device", "list"], arguments].concat()));
    let of_tokyo = list(&["--target", "tokyo"]);
    assert!(of_tokyo.contains("LAMP0001") && of_tokyo.contains("PLUG0002"), "{of_tokyo}");
    assert!(of_tokyo.contains("TARGET") && !of_tokyo.contains("PLUG0001"), "{of_tokyo}");
    assert!(list(&["--target", "default", "--json"]).contains("\"target\":\"default\""));
    let shown = stdout(&site.run(&["device", "show", "PLUG0002"]));
    assert!(shown.contains("target        tokyo\n"), "{shown}");

    let metrics = http_get(scene.admin, "/metrics");
    for line in [
        "certdist_registrations_total{target=\"default\",outcome=\"registered\"} 1",
        "certdist_registrations_total{target=\"tokyo\",outcome=\"registered\"} 2",
        "certdist_cloud_calls_total{target=\"tokyo\",action=\"RegisterDevice\",outcome=\"worked\"} 2",
        "certdist_breakers_open{target=\"tokyo\"} 0",
        "certdist_registration_duration_seconds_count{target=\"tokyo\"} 2",
    ] {
        assert!(metrics.contains(line), "{line}: {metrics}");
    }
    let page = http_get(scene.admin, "/readyz");
    assert!(page.starts_with("ready"), "{page}");

    // A device counts at the target of its enrollment.
    let stats: serde_json::Value =
        serde_json::from_str(&stdout(&site.run(&["stats", "--json"]))).expect("JSON");
    for (target, registered) in [("default", 2), ("tokyo", 1)] {
        let own = &stats["targets"][target];
        assert_eq!((&own["registered"], &own["enrollments"]), (&registered.into(), &1.into()), "{stats}");
    }
    let said = stdout(&site.run(&["stats"]));
    assert!(said.contains("TARGET   ENROLLMENTS") && said.contains("tokyo"), "{said}");

    // An export has the targets, and an import of it changes nothing.
    let export = stdout(&site.run(&["export"]));
    assert!(export.starts_with(
        "deviceId,enrollment,productKey,deviceName,deviceSecret,iotId,pskIdentity,psk,target\n"
    ));
    assert!(export.lines().any(|line| line.starts_with("LAMP0001,") && line.ends_with(",tokyo")), "{export}");
    site.write("export.csv", &export);
    let again = stdout(&site.run(&["import", "export.csv", "--dry-run"]));
    assert!(again.contains("0 devices would be added, 0 would be changed, 3 unchanged"), "{again}");
}

#[test]
fn a_cloud_that_is_gone_holds_up_its_own_devices_alone() {
    let Scene { site, shanghai, tokyo, admin, _clouds } = Scene::new();
    site.import("deviceId,enrollment\nPLUG0001,plug\nLAMP0001,lamp\n");
    let address = tokyo.address;
    let refused = _clouds.simulator(&["--access-key-id", "other-id", "--access-key-secret", "other-secret"]);
    drop(tokyo);
    // Tokyo's endpoint is a cloud that does not know the access key.
    let text = std::fs::read_to_string(site.path("certdist.toml")).expect("the configuration");
    site.write("certdist.toml", &text.replace(&address.to_string(), &refused.address.to_string()));
    let scene = Scene { site, shanghai, tokyo: refused, admin, _clouds };
    let server = scene.site.serve();
    let output = scene.fetch(&server, "lamp", "LAMP0001");
    assert!(!output.status.success() && stderr(&output).contains("5.02"), "{}", stderr(&output));
    let output = scene.fetch(&server, "plug", "PLUG0001");
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(scene.devices(), [1, 0]);
    let ready = http_get(scene.admin, "/readyz");
    assert!(ready.starts_with("ready"), "{ready}");
    assert!(ready.contains("note: IoT Platform at target tokyo refuses calls: "), "{ready}");
    assert!(!ready.contains("target default"), "{ready}");

    // The console says what keeps the devices of Tokyo.
    let page = Visitor::new(scene.admin, "lead").get("/enrollments").body;
    assert!(page.contains("What keeps devices from being registered at <bdi>tokyo</bdi>"), "{page}");
    assert!(!page.contains("being registered at <bdi>default</bdi>"), "{page}");
    assert!(page.contains("IoT Platform refuses registrations: "), "{page}");

    let check = scene.site.run(&["check-config", "--online"]);
    assert_eq!(check.status.code(), Some(1));
    let (said, error) = (stdout(&check), stderr(&check));
    assert!(said.contains("target default: http://") && said.contains("the credentials are good"), "{said}");
    assert!(error.contains("target tokyo: ") && error.contains("it refuses the call"), "{error}");
}

#[test]
fn the_server_starts_without_the_credentials_of_one_target() {
    let scene = Scene::new();
    let site = &scene.site;
    std::fs::remove_file(site.path("tokyo.ini")).expect("removed");
    site.import("deviceId,enrollment\nPLUG0001,plug\nLAMP0001,lamp\n");
    let check = site.run(&["check-config"]);
    assert_eq!(check.status.code(), Some(0));
    let warned = stderr(&check);
    assert!(
        warned.contains("no device is registered at target \"tokyo\"") && warned.contains("tokyo.ini"),
        "{warned}"
    );
    let server = site.serve();
    let output = scene.fetch(&server, "plug", "PLUG0001");
    assert!(output.status.success(), "{}", stderr(&output));
    let output = scene.fetch(&server, "lamp", "LAMP0001");
    assert!(!output.status.success() && stderr(&output).contains("5.02"), "{}", stderr(&output));
    assert_eq!(scene.devices(), [1, 0]);
    let page = Visitor::new(scene.admin, "guest").get("/enrollments").body;
    assert!(page.contains("Its target <bdi>tokyo</bdi> cannot be called: "), "{page}");
    let stats = stdout(&site.run(&["stats"]));
    assert!(stats.contains("enrollment lamp: its target tokyo cannot be called: "), "{stats}");
    assert!(!stats.contains("enrollment plug: "), "{stats}");
}

#[test]
fn a_target_that_is_not_configured_is_named_and_its_devices_wait() {
    let scene = Scene::new();
    let site = &scene.site;
    site.write("bad.csv", "deviceId,enrollment,target\nLAMP0001,lamp,tokyo\nLAMP0002,lamp,kobe\n");
    let output = site.run(&["import", "bad.csv"]);
    let error = stderr(&output);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        error.contains("line 3")
            && error.contains("unknown target \"kobe\"; configured: \"default\", \"tokyo\""),
        "{error}"
    );

    site.import("deviceId,enrollment,target\nLAMP0001,lamp,tokyo\nLAMP0002,lamp,tokyo\nLAMP0003,lamp,\n");
    let registered = site.run(&["register", "--enrollment", "lamp"]);
    assert_eq!(stdout(&registered), "3 registered, 0 refused\n", "{}", stderr(&registered));
    site.import("deviceId,enrollment,target\nLAMP0004,lamp,tokyo\nLAMP0005,lamp,\n");
    scene.configure("", "default");
    let warned = stderr(&site.run(&["check-config"]));
    assert!(warned.contains("targets that are not configured (\"tokyo\")"), "{warned}");
    let server = site.serve();
    // A device with a certificate gets it, and another one waits.
    assert!(scene.fetch(&server, "lamp", "LAMP0001").status.success());
    let output = scene.fetch_within(&server, "lamp", "LAMP0004", "3");
    assert!(!output.status.success() && stderr(&output).contains("5.03"), "{}", stderr(&output));
    // A device whose row names no target is registered where its enrollment is now.
    assert!(scene.fetch(&server, "lamp", "LAMP0005").status.success());
    assert_eq!(scene.devices(), [1, 3]);
    let run = site.run(&["register"]);
    assert_eq!(run.status.code(), Some(1));
    assert!(stderr(&run).contains("its target \"tokyo\" is not configured"), "{}", stderr(&run));
    // With the target, the device is registered there.
    drop(server);
    scene.configure(&scene.tokyo_section(), "default");
    let server = site.serve();
    assert!(scene.fetch(&server, "lamp", "LAMP0004").status.success());
    assert_eq!(scene.devices(), [1, 4]);
}

#[test]
fn without_targets_nothing_names_them() {
    let cloud = Site::new();
    let simulator = cloud.simulator(&[]);
    let site = Site::with_cloud(&format!("http://{}", simulator.address));
    site.import("deviceId,enrollment\nSN000001,plug\n");
    assert!(site.run(&["register"]).status.success());
    let outputs = [
        stdout(&site.run(&["export"])),
        stdout(&site.run(&["device", "list"])),
        stdout(&site.run(&["device", "list", "--json"])),
        stdout(&site.run(&["device", "show", "SN000001"])),
        stdout(&site.run(&["device", "show", "SN000001", "--json"])),
        stdout(&site.run(&["check-config"])),
    ];
    for output in outputs {
        assert!(!output.is_empty() && !output.to_lowercase().contains("target"), "{output}");
    }
}

#[test]
fn registered_devices_without_a_target_are_named_if_none_is_the_default_one() {
    let cloud = Site::new();
    let simulator = cloud.simulator(&[]);
    let site = Site::with_cloud(&format!("http://{}", simulator.address));
    site.import("deviceId,enrollment\nSN000001,plug\n");
    let text = std::fs::read_to_string(site.path("certdist.toml")).expect("the configuration");
    let renamed = |name: &str| text.replace("[iot_platform]", &format!("[[target]]\nname = \"{name}\""));
    let warned = || stderr(&site.run(&["check-config"])).contains("they belong to the target \"default\"");
    site.write("certdist.toml", &renamed("shanghai"));
    assert!(!warned(), "no device is registered yet");
    site.write("certdist.toml", &text);
    assert!(site.run(&["register"]).status.success());
    assert!(!warned());
    site.write("certdist.toml", &renamed("shanghai"));
    assert!(warned());
    site.write("certdist.toml", &renamed("default"));
    assert!(!warned());
}

#[test]
fn the_console_shows_and_finds_targets_and_names_a_lost_one() {
    let address = free_address();
    let target = "[[target]]\nname = \"default\"\nendpoint = \"http://127.0.0.1:1\"\nregion = \"r\"\n\
                  [[target]]\nname = \"tokyo\"\nendpoint = \"http://127.0.0.1:1\"\nregion = \"r\"\n";
    let both = format!("{target}{}", admin(address, ""));
    let site = Site::with(&both);
    site.import("deviceId,enrollment,target\nPLUG0001,plug,\nPLUG0002,plug,tokyo\n");
    let server = site.serve();
    let lead = Visitor::new(address, "lead");
    let list = lead.get("/devices?target=tokyo").body;
    assert!(list.contains("PLUG0002") && !list.contains("PLUG0001"), "{list}");
    assert!(list.contains("data-label=\"Target\"") && list.contains("name=\"target\""), "{list}");
    assert!(lead.get("/device?id=PLUG0002").body.contains("<dt>Target</dt>"));
    assert!(lead.get("/enrollments").body.contains("at target"));
    drop(server);

    // The target is no longer configured.
    let text = std::fs::read_to_string(site.path("certdist.toml")).expect("the configuration");
    site.write("certdist.toml", &text.replace("name = \"tokyo\"", "name = \"osaka\""));
    let _server = site.serve();
    let lead = Visitor::new(address, "lead");
    let overview = lead.get("/").body;
    assert!(
        overview.contains("A target of devices is not configured") && overview.contains("tokyo"),
        "{overview}"
    );
    let device = lead.get("/device?id=PLUG0002").body;
    assert!(device.contains("Not registered: its target is not configured"), "{device}");
}
