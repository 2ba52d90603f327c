//! Tests of `device move` with two simulated instances, which are two targets of one server.
#![cfg(feature = "simulation")]

use std::{
    net::SocketAddr,
    process::{Child, Command, Output, Stdio},
    time::Duration,
};

use certdist::{
    device::{Certificate, Secret},
    simulated_device::sign_in,
};

use crate::support::{Process, SHARED_KEY, Site, http_get, stderr, stdout, until};

const PATIENCE: Duration = Duration::from_secs(60);

/// Two instances of one account, and a site with a target for each. The enrollment `lamp` is at
/// `shanghai`, and `plug` at `frankfurt`.
struct Scene {
    site: Site,
    simulator: Process,
    /// Addresses at which the devices of the two instances sign in.
    hosts: [SocketAddr; 2],
    _cloud: Site,
}

impl Scene {
    /// Creates the scene, with room for this many devices in Frankfurt.
    fn new(room: u32) -> Self {
        let cloud = Site::new();
        let frankfurt =
            format!("id=iot-f,region=eu-central-1,mqtt=127.0.0.1:0,product=a1plug,devices={room}");
        let shanghai = "id=iot-s,region=cn-shanghai,mqtt=127.0.0.1:0,product=a1lamp";
        let simulator = cloud.simulator(&["--instance", shanghai, "--instance", &frankfurt]);
        let hosts = [simulator.next_address(), simulator.next_address()];
        let scene = Self { site: Site::configured(""), simulator, hosts, _cloud: cloud };
        scene.configure(true, "shanghai", "");
        scene
    }

    /// Writes the configuration. `of_lamp` is the target of the enrollment `lamp`, which has these
    /// further lines.
    fn configure(&self, manage: bool, of_lamp: &str, lines: &str) {
        let target = |name: &str, id: &str, region: &str, host: SocketAddr| {
            format!(
                "[[target]]\nname = \"{name}\"\nendpoint = \"http://{}\"\nregion = \"{region}\"\n\
                 instance_id = \"{id}\"\nhost = \"{host}\"\nmanage = {manage}\n",
                self.simulator.address
            )
        };
        let enrollment = |name: &str, target: &str, lines: &str| {
            format!(
                "[[enrollment]]\nname = \"{name}\"\nproduct_key = \"a1{name}\"\nkind = \"shared\"\n\
                 identity = \"{name}\"\nkey = \"hex:{}\"\nexisting = \"adopt\"\nreissue = \"once\"\n\
                 target = \"{target}\"\n{lines}",
                hex::encode(SHARED_KEY)
            )
        };
        self.site.write(
            "certdist.toml",
            &format!(
                "listen = \"127.0.0.1:0\"\ndatabase = \"sqlite:certdist.db\"\n{}{}{}{}",
                target("shanghai", "iot-s", "cn-shanghai", self.hosts[0]),
                target("frankfurt", "iot-f", "eu-central-1", self.hosts[1]),
                enrollment("lamp", of_lamp, lines),
                enrollment("plug", "frankfurt", ""),
            ),
        );
    }

    /// Imports devices into the enrollment `lamp`, and registers them.
    fn register(&self, names: &[&str]) {
        let rows: String = names.iter().map(|name| format!("{name},lamp\n")).collect();
        self.site.import(&format!("deviceId,enrollment\n{rows}"));
        let output = self.site.run(&["register"]);
        assert!(output.status.success(), "{}", stderr(&output));
    }

    fn device(&self, arguments: &[&str]) -> Output {
        self.site.run(&[&["device"], arguments].concat())
    }

    /// Fetches the certificate as a device does, signs in with it, and prints where.
    fn fetch(&self, server: &Process, device: &str) -> Output {
        let (address, psk) = (server.address.to_string(), hex::encode(SHARED_KEY));
        let arguments = ["device-sim", "--server", &address, "--identity", "lamp", "--psk", &psk];
        self.site.run(&[&arguments[..], &["--sn", device, "--sign-in"]].concat())
    }

    /// Returns the numbers of devices in Shanghai and in Frankfurt.
    fn devices(&self) -> [u64; 2] {
        let stats: serde_json::Value =
            serde_json::from_str(&http_get(self.simulator.address, "/stats")).expect("JSON");
        ["iot-s", "iot-f"].map(|id| stats["instances"][id].as_u64().expect("a number"))
    }

    /// Returns the certificate of a device in the table.
    fn certificate(&self, device: &str) -> Certificate {
        let table = stdout(&self.site.run(&["export"]));
        let line = table.lines().find(|line| line.starts_with(device)).expect("a row");
        let columns: Vec<&str> = line.split(',').collect();
        Certificate {
            product_key: columns[2].into(),
            device_name: columns[3].into(),
            device_secret: Secret::new(columns[4].into()),
        }
    }

    fn shows(&self, device: &str, line: &str) -> bool {
        stdout(&self.device(&["show", device])).contains(line)
    }
}

/// Returns whether a device can sign in with this certificate.
fn signs_in(certificate: &Certificate, host: SocketAddr) -> bool {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(sign_in(certificate, &host.to_string(), PATIENCE)).is_ok()
}

#[test]
fn a_moved_device_signs_in_at_its_new_instance_and_no_longer_at_the_former_one() {
    let scene = Scene::new(500);
    scene.register(&["LAMP0001", "LAMP0002"]);
    let server = scene.site.serve();
    let at = |output: &Output, host: SocketAddr| {
        assert!(output.status.success(), "{}", stderr(output));
        let expected = format!("\"signedIn\":\"mqtt://{host}\"");
        assert!(stdout(output).contains(&expected), "{}", stdout(output));
    };
    at(&scene.fetch(&server, "LAMP0001"), scene.hosts[0]);
    let again = scene.fetch(&server, "LAMP0001");
    assert!(!again.status.success(), "the certificate is issued once");
    let former = scene.certificate("LAMP0001");
    assert!(signs_in(&former, scene.hosts[0]));

    let moved = scene.device(&["move", "LAMP0001", "--target", "frankfurt", "--former", "delete"]);
    assert_eq!(
        stdout(&moved),
        "LAMP0001: moved to frankfurt; the new certificate comes with the next request\n",
        "{}",
        stderr(&moved)
    );
    assert_eq!(scene.devices(), [1, 1]);
    assert!(scene.shows("LAMP0001", "target        frankfurt"));
    // The first fetch after the move is not refused, although the certificate is issued once.
    at(&scene.fetch(&server, "LAMP0001"), scene.hosts[1]);
    at(&scene.fetch(&server, "LAMP0002"), scene.hosts[0]);
    let new = scene.certificate("LAMP0001");
    assert!(signs_in(&new, scene.hosts[1]) && !signs_in(&new, scene.hosts[0]));
    assert!(!signs_in(&former, scene.hosts[0]) && !signs_in(&former, scene.hosts[1]));

    // Moved back, the device is registered again, because the former one was deleted.
    let back = scene.device(&["move", "LAMP0001", "--target", "shanghai", "--product", "a1lamp"]);
    assert!(back.status.success(), "{}", stderr(&back));
    at(&scene.fetch(&server, "LAMP0001"), scene.hosts[0]);
    assert_eq!(scene.devices(), [2, 1]);
    let log = stdout(&scene.site.run(&["audit", "export"]));
    let moved = "from shanghai (a1lamp/LAMP0001) to frankfurt (a1plug/LAMP0001)";
    for words in ["\"moved\"", moved, "the former device was deleted at shanghai: a1lamp/LAMP0001"] {
        assert!(log.contains(words), "{words}: {log}");
    }
    assert!(scene.site.run(&["audit", "verify"]).status.success());
    assert!(scene.site.run(&["database", "check"]).status.success());
    assert_eq!(stdout(&scene.device(&["orders"])), "");
}

#[test]
fn a_fleet_follows_its_enrollment_and_a_second_run_changes_nothing() {
    let scene = Scene::new(500);
    scene.register(&["LAMP0001", "LAMP0002", "LAMP0003"]);
    scene.site.import("deviceId,enrollment\nLAMP0004,lamp\n");
    // The enrollment belongs to Frankfurt from now on, in another product.
    scene.configure(true, "frankfurt", "");
    let path = scene.site.path("certdist.toml");
    let text = std::fs::read_to_string(&path).expect("the configuration");
    scene.site.write("certdist.toml", &text.replace("\"a1lamp\"", "\"a1plug\""));
    let moved =
        scene.device(&["move", "--enrollment", "lamp", "--target", "frankfurt", "--former", "disable"]);
    let said = stdout(&moved);
    assert!(moved.status.success(), "{}", stderr(&moved));
    assert!(said.contains("enrollment lamp: 3 devices: moved to frankfurt"), "{said}");
    assert!(said.contains("enrollment lamp: 1 device: changed in the table only"), "{said}");
    assert_eq!(scene.devices(), [3, 3]);
    let again = scene.device(&["move", "--enrollment", "lamp", "--target", "frankfurt"]);
    assert_eq!(stdout(&again), "enrollment lamp: 4 devices: at this target already\n", "{}", stderr(&again));
    assert_eq!(stdout(&scene.site.run(&["register"])), "1 registered, 0 refused\n");
    assert_eq!(scene.devices(), [3, 4]);
    let server = scene.site.serve();
    for device in ["LAMP0001", "LAMP0004"] {
        let output = scene.fetch(&server, device);
        assert!(stdout(&output).contains(&scene.hosts[1].to_string()), "{}", stderr(&output));
    }
}

#[test]
fn a_server_carries_out_the_move_of_a_command_that_was_killed() {
    let scene = Scene::new(500);
    scene.register(&["LAMP0001"]);
    let before = stdout(&scene.site.run(&["export"]));
    // The cloud does not answer, so the command is killed between its order and the answer.
    scene.simulator.signal("STOP");
    let arguments = ["device", "move", "LAMP0001", "--target", "frankfurt", "--former", "delete"];
    let mut command = scene.site.certdist(&arguments);
    let mut command = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("it starts");
    until("the order is placed", || stdout(&scene.device(&["orders"])).starts_with("LAMP0001"));
    command.kill().expect("it runs");
    command.wait().expect("it ends");
    assert!(scene.shows("LAMP0001", "\norder         move to frankfurt, product a1plug since "));
    assert_eq!(stdout(&scene.site.run(&["export"])), before, "nothing is lost");
    scene.simulator.signal("CONT");
    let server = scene.site.serve();
    until("the order is carried out", || stdout(&scene.device(&["orders"])).is_empty());
    assert!(scene.shows("LAMP0001", "target        frankfurt"));
    assert_eq!(scene.devices(), [0, 1]);
    assert_eq!(server.stop(), Some(0));
}

#[test]
fn a_full_instance_lets_the_rest_wait_with_the_reason() {
    let scene = Scene::new(1);
    scene.register(&["LAMP0001", "LAMP0002"]);
    scene.site.write("list.csv", "deviceId\nLAMP0001\nLAMP0002\n");
    let arguments = ["device", "move", "--file", "list.csv", "--target", "frankfurt"];
    let mut command = scene.site.certdist(&arguments);
    let mut command = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("it starts");
    until("one device has no room", || {
        let orders = stdout(&scene.device(&["orders"]));
        orders.lines().count() == 1 && orders.contains("not yet: iot.device.DeviceCountExceeded")
    });
    command.kill().expect("it runs");
    command.wait().expect("it ends");
    assert_eq!(scene.devices(), [2, 1]);
    // Each device has a certificate that works, wherever it is.
    let left = stdout(&scene.device(&["orders"]));
    let left = left.split_whitespace().next().expect("a device");
    let server = scene.site.serve();
    let output = scene.fetch(&server, left);
    assert!(stdout(&output).contains(&scene.hosts[0].to_string()), "{}", stderr(&output));
    assert_eq!(stdout(&scene.device(&["cancel", left])), format!("{left}: order cancelled\n"));
}

#[test]
fn a_target_without_credentials_lets_its_moves_wait_with_the_reason() {
    let scene = Scene::new(500);
    scene.register(&["LAMP0001"]);
    let path = scene.site.path("certdist.toml");
    let text = std::fs::read_to_string(&path).expect("the configuration");
    let region = "region = \"eu-central-1\"\n";
    let lost = text.replace(region, &format!("{region}credentials = \"file:lost.ini\"\n"));
    scene.site.write("certdist.toml", &lost);
    let mut command = scene.site.certdist(&["device", "move", "LAMP0001", "--target", "frankfurt"]);
    let mut command = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("it starts");
    until("the reason is noted", || stdout(&scene.device(&["orders"])).contains("not yet: Credentials"));
    command.kill().expect("it runs");
    let said = stderr(&command.wait_with_output().expect("it ends"));
    assert!(said.contains("note: target frankfurt cannot be called now"), "{said}");
    assert_eq!(scene.devices(), [1, 0]);
    // If the target is no longer in the configuration, the reason says so.
    scene.site.write("certdist.toml", &text.replace("\"frankfurt\"", "\"kobe\""));
    let lost = "not yet: target frankfurt is not in the configuration";
    assert!(stdout(&scene.device(&["orders"])).contains(lost));
    assert!(
        stdout(&scene.device(&["orders", "--json"])).contains("\"failure\":\"target frankfurt is not in")
    );
    assert!(scene.shows("LAMP0001", lost));
    // With the credentials, a server carries the order out.
    scene.site.write("certdist.toml", &text);
    let _server = scene.site.serve();
    until("the order is carried out", || stdout(&scene.device(&["orders"])).is_empty());
    assert_eq!(scene.devices(), [1, 1]);
}

/// Ends a command as Ctrl-C does.
fn interrupt(command: &mut Child) {
    let id = command.id().to_string();
    assert!(Command::new("kill").args(["-INT", &id]).status().expect("kill").success());
    command.wait().expect("it ends");
}

#[test]
fn a_registration_that_has_begun_at_a_target_that_is_gone_is_given_up_on_request() {
    let scene = Scene::new(500);
    scene.site.import("deviceId,enrollment\nPLUG0001,plug\n");
    // Frankfurt does not answer, so it is not known whether it has registered the device.
    scene.simulator.signal("STOP");
    let mut command = scene.site.certdist(&["register"]);
    let mut command = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("it starts");
    until("the registration has begun", || scene.shows("PLUG0001", "in progress since"));
    interrupt(&mut command);
    scene.simulator.signal("CONT");
    let path = scene.site.path("certdist.toml");
    let text = std::fs::read_to_string(&path).expect("the configuration");
    scene.site.write("certdist.toml", &text.replace("\"frankfurt\"", "\"kobe\""));
    let arguments = ["move", "PLUG0001", "--target", "shanghai", "--product", "a1lamp"];
    let refused = scene.device(&arguments);
    let said = stderr(&refused);
    assert_eq!(refused.status.code(), Some(1), "{said}");
    assert!(said.contains("has begun at target frankfurt") && said.contains("--abandon"), "{said}");
    let moved = scene.device(&[&arguments[..], &["--abandon"]].concat());
    assert!(moved.status.success(), "{}", stderr(&moved));
    assert_eq!(stdout(&scene.site.run(&["register"])), "1 registered, 0 refused\n");
    assert!(scene.shows("PLUG0001", "target        shanghai"));
    let log = stdout(&scene.site.run(&["audit", "export"]));
    let words =
        "gave up the registration that had begun at frankfurt: device a1plug/PLUG0001 may exist there";
    assert!(log.contains(words), "{log}");
}

#[test]
fn bad_moves_are_refused_with_what_is_missing() {
    let scene = Scene::new(500);
    scene.register(&["LAMP0001"]);
    let refused = |arguments: &[&str], code: i32, words: &[&str]| {
        let output = scene.device(&[&["move"], arguments].concat());
        let error = stderr(&output);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {error}");
        assert!(words.iter().all(|word| error.contains(word)), "{arguments:?}: {error}");
    };
    let configured = ["no such target", "configured: \"shanghai\", \"frankfurt\""];
    refused(&["LAMP0001", "--target", "kobe"], 2, &configured);
    refused(&["LAMP0001", "--target", "shanghai"], 1, &["LAMP0001: is at this target already"]);
    refused(&["LAMP0009", "--target", "frankfurt"], 1, &["LAMP0009 is not in the table"]);
    let same_product = ["LAMP0001", "--target", "frankfurt", "--product", "a1lamp"];
    refused(&same_product, 1, &["is in this product already", "--product"]);
    refused(&["LAMP0001", "--target", "frankfurt", "--product", "a 1"], 2, &["--product", "product key"]);
    refused(&["--enrollment", "lump", "--target", "frankfurt"], 2, &["no [[enrollment]] has that name"]);
    refused(&["--target", "frankfurt"], 2, &["Usage"]);
    // No enrollment has the target, so its product is not known.
    let path = scene.site.path("certdist.toml");
    let text = std::fs::read_to_string(&path).expect("the configuration");
    scene.site.write("certdist.toml", &text.replace("target = \"frankfurt\"", "target = \"shanghai\""));
    refused(&["LAMP0001", "--target", "frankfurt"], 1, &["have 0 products", "give it with --product"]);
    scene.site.write("certdist.toml", &text.replace("manage = true", "manage = false"));
    let former = ["LAMP0001", "--target", "frankfurt", "--former", "disable"];
    refused(&former, 2, &["manage = true"]);
    assert_eq!(stdout(&scene.device(&["orders"])), "");
    // To register a device, no further right is needed.
    let moved = scene.device(&["move", "LAMP0001", "--target", "frankfurt"]);
    assert!(moved.status.success(), "{}", stderr(&moved));
    assert_eq!(scene.devices(), [1, 1]);
    // An enrollment that is closed would not give the new certificate out.
    scene.configure(true, "shanghai", "");
    let server = scene.site.serve();
    assert!(scene.fetch(&server, "LAMP0001").status.success());
    scene.configure(true, "shanghai", "closes = 2026-01-02T00:00:00Z\n");
    let back = ["LAMP0001", "--target", "shanghai", "--product", "a1lamp"];
    refused(&back, 1, &["enrollment lamp gives out no first certificates now"]);
}
