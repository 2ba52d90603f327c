//! The firmware kit against the real server: its program for POSIX systems, on each DTLS stack. Each
//! device is run to the end, and what it prints and stores is compared. `make -C firmware test` runs
//! the kit's own tests, on a virtual clock.

use std::{
    fs,
    net::{SocketAddr, UdpSocket},
    os::unix::fs::PermissionsExt,
    process::{Command, Output},
    sync::atomic::Ordering::SeqCst,
    thread,
    time::{Duration, Instant},
};

use crate::support::{
    Process, SHARED_IDENTITY, SHARED_KEY, Site,
    network::{ForgetfulNetwork, bad_network, hostile_network},
    stderr, stdout,
};
use certdist::{device::Secret, iot_platform::sign_in::Claim};

const STACKS: [&str; 3] = ["tinydtls", "mbedtls2", "mbedtls3"];
const SECRET: &str = "secretofplug10000000000000000000";
/// Latency of a slow cloud. The server acknowledges a request after a second.
const LATENCY: Duration = Duration::from_secs(3);

/// A folder with a device's key, its record and its MQTT password.
struct Device {
    site: Site,
    stack: &'static str,
}

impl Device {
    fn new(stack: &'static str) -> Self {
        Self::with_key(stack, SHARED_KEY)
    }

    fn with_key(stack: &'static str, key: &str) -> Self {
        let site = Site::configured("");
        site.write("key", &hex::encode(key));
        Self { site, stack }
    }

    /// Runs the program. `settings` are `NAME=VALUE`.
    fn run(&self, server: SocketAddr, device_id: &str, settings: &[&str]) -> Output {
        Command::new("timeout")
            .arg("300")
            .arg(format!("{}/build/firmware/fetch-{}", env!("CARGO_MANIFEST_DIR"), self.stack))
            .args([
                &server.ip().to_string(),
                &server.port().to_string(),
                SHARED_IDENTITY,
                "key",
                device_id,
                "record",
            ])
            .args(["first_delay=1", "kind=sn", "password=password"])
            .args(settings)
            .current_dir(self.site.path("."))
            .output()
            .expect("built by `make clients`")
    }

    /// Asserts that the device has this name and secret in its record, and nowhere else.
    fn assert_has(&self, output: &Output, device_name: &str, secret: &str) {
        let text = stdout(output);
        assert!(output.status.success(), "{}: {text}{}", self.stack, stderr(output));
        assert!(text.contains(": done"), "{}: {text}", self.stack);
        assert!(text.contains(&format!("productKey a1plug\ndeviceName {device_name}\n")), "{text}");
        let record = fs::read(self.site.path("record")).expect("a record");
        assert!(contains(&record, device_name) && contains(&record, secret), "{}", self.stack);
        for file in ["record", "password"] {
            let mode = fs::metadata(self.site.path(file)).expect("a file").permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{file}");
        }
        assert!(!text.contains(secret) && !stderr(output).contains(secret), "{text}");
    }

    /// Asserts that the server would accept the sign-in.
    fn assert_signs_in(&self, output: &Output, securemode: &str, secret: &str) {
        let text = stdout(output);
        let line = |start: &str| {
            text.lines()
                .find_map(|line| line.strip_prefix(start))
                .unwrap_or_else(|| panic!("{start}: {text}"))
        };
        let client_id = line("client ID ");
        let expected = format!("|securemode={securemode},signmethod=hmacsha256|");
        assert!(client_id.ends_with(&expected), "{client_id}");
        let claim = Claim::read(client_id, line("user name ")).expect("a claim");
        let password = fs::read_to_string(self.site.path("password")).expect("a password");
        assert!(claim.is_signed_with(&Secret::new(secret.into()), &password), "{}", self.stack);
    }
}

fn contains(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|window| window == text.as_bytes())
}

fn registered_site() -> (Site, Process) {
    let site = Site::new();
    site.import(&format!("deviceId,enrollment,deviceName,deviceSecret\nPLUG-1,plug,plug-1,{SECRET}\n"));
    let server = site.serve();
    (site, server)
}

/// Runs a test on each stack at once.
fn on_each_stack(test: impl Fn(&'static str) + Sync) {
    thread::scope(|scope| {
        for stack in STACKS {
            let test = &test;
            scope.spawn(move || test(stack));
        }
    });
}

#[test]
fn the_kits_own_tests_pass() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/firmware");
    let output = Command::new("make").args(["-s", "-C", folder, "test"]).env_remove("MAKEFLAGS").output();
    let output = output.expect("make runs");
    assert!(output.status.success(), "{}{}", stdout(&output), stderr(&output));
}

/// The commands of docs/firmware.md, with the address of the test's server.
#[test]
fn the_commands_of_the_page_work() {
    let page = include_str!("../../docs/firmware.md");
    let commands = page.split("```sh\n").nth(1).and_then(|rest| rest.split("```").next()).expect("commands");
    let site = Site::configured(
        "listen = \"127.0.0.1:0\"\ndatabase = \"sqlite:certdist.db\"\n[[enrollment]]\nname = \"plug\"\n\
         product_key = \"a1plug\"\nkind = \"shared\"\nidentity = \"plug-batch-7\"\n\
         key = \"hex:706c75672d62617463682d372d6b6579\"\n",
    );
    site.import(&format!("deviceId,deviceName,deviceSecret\nPLUG0001,plug-1,{SECRET}\n"));
    let server = site.serve();
    let folder = Site::configured("");
    for name in ["firmware", "build"] {
        let target = format!("{}/{name}", env!("CARGO_MANIFEST_DIR"));
        std::os::unix::fs::symlink(target, folder.path(name)).expect("a link");
    }
    let address = format!("{} {}", server.address.ip(), server.address.port());
    let commands = commands.replace("192.0.2.1 5684", &address);
    assert!(commands.contains(&address), "{commands}");
    let mut shell = Command::new("sh");
    let output =
        shell.args(["-euc", &commands]).current_dir(folder.path(".")).env_remove("MAKEFLAGS").output();
    let output = output.expect("sh runs");
    assert!(output.status.success(), "{}{}", stdout(&output), stderr(&output));
    assert!(stdout(&output).contains("\ndeviceName plug-1\n"), "{}", stdout(&output));
    assert!(contains(&fs::read(folder.path("record")).expect("a record"), SECRET));
}

#[test]
fn a_registered_device_fetches_once_and_signs_in() {
    let (_site, server) = registered_site();
    on_each_stack(|stack| {
        let device = Device::new(stack);
        let output = device.run(server.address, "PLUG-1", &["where=cn-shanghai", "tls=1"]);
        device.assert_has(&output, "plug-1", SECRET);
        device.assert_signs_in(&output, "2", SECRET);
        // The second start sends nothing: port 9 has no server.
        let nowhere = SocketAddr::from(([127, 0, 0, 1], 9));
        let output = device.run(nowhere, "PLUG-1", &["where=cn-shanghai"]);
        device.assert_has(&output, "plug-1", SECRET);
        device.assert_signs_in(&output, "3", SECRET);
        assert!(stdout(&output).starts_with("0.000 s: done, attempt 0\n"), "{}", stdout(&output));
    });
}

#[test]
fn an_answer_comes_in_small_blocks() {
    let (_site, server) = registered_site();
    on_each_stack(|stack| {
        for block_size in ["block_size=16", "block_size=64", "block_size=1024"] {
            let device = Device::new(stack);
            let output = device.run(server.address, "PLUG-1", &["where=cn-shanghai", block_size]);
            device.assert_has(&output, "plug-1", SECRET);
        }
    });
}

#[test]
fn a_device_of_a_slow_cloud_listens_for_its_answer() {
    let cloud = Site::new();
    let simulator = cloud.simulator(&["--latency", &format!("{}s", LATENCY.as_secs())]);
    let site = Site::with_cloud(&format!("http://{}", simulator.address));
    let rows = STACKS.map(|stack| format!("SLOW-{stack},plug\n")).concat();
    site.import(&format!("deviceId,enrollment\n{rows}"));
    let server = site.serve();
    on_each_stack(|stack| {
        let (device, id, start) = (Device::new(stack), format!("SLOW-{stack}"), Instant::now());
        let output = device.run(server.address, &id, &[]);
        assert!(start.elapsed() >= LATENCY);
        let record = fs::read(device.site.path("record")).expect("a record");
        // A version, the product key, the device name and the secret, each with a NUL.
        let secret = record.split(|byte| *byte == 0).nth(2).expect("a secret");
        let secret = String::from_utf8(secret.to_vec()).expect("text");
        device.assert_has(&output, &id, &secret);
        device.assert_signs_in(&output, "3", &secret);
        let exported = stdout(&site.run(&["export"]));
        assert!(exported.contains(&secret), "{exported}");
        let text = stdout(&output);
        assert!(text.contains(": registering") && text.contains("attempt 1\n"), "{text}");
        assert!(text.contains("\nhost a1plug.iot-as-mqtt.cn-shanghai.aliyuncs.com\n"), "{text}");
    });
}

#[test]
fn a_wrong_key_and_an_unknown_device_are_told_apart() {
    let (_site, server) = registered_site();
    on_each_stack(|stack| {
        let output =
            Device::with_key(stack, "another-key-....").run(server.address, "PLUG-1", &["patience=20000"]);
        let text = stdout(&output);
        assert!(text.contains(": waiting, wrong key, alert 51"), "{stack}: {text}");
        assert_eq!(output.status.code(), Some(1));
        let output = Device::new(stack).run(server.address, "PLUG-9", &["patience=5000"]);
        let text = stdout(&output);
        assert!(text.contains(": stopped, answer 4.04 \"device is invalid\""), "{stack}: {text}");
        assert_eq!(output.status.code(), Some(1));
    });
}

/// One of five datagrams is lost; others are doubled or late.
#[test]
fn a_bad_network_delays_the_certificate_only() {
    let (_site, server) = registered_site();
    on_each_stack(|stack| {
        for seed in 0..3 {
            let device = Device::new(stack);
            let network = bad_network(server.address, seed * 2);
            let output = device.run(network, "PLUG-1", &["where=cn-shanghai", "retry=1000"]);
            device.assert_has(&output, "plug-1", SECRET);
        }
    });
}

/// Forged alerts end handshakes, so a device may need several.
#[test]
fn an_attacker_on_the_network_delays_the_certificate_only() {
    let (_site, server) = registered_site();
    on_each_stack(|stack| {
        let device = Device::new(stack);
        let delays = ["retry=300", "longest_retry=500", "wrong_key=300", "handshake=6000", "block_size=64"];
        let settings = [&["where=cn-shanghai", "operator=300", "longest_operator=300"][..], &delays].concat();
        let output = device.run(hostile_network(server.address, 1), "PLUG-1", &settings);
        device.assert_has(&output, "plug-1", SECRET);
    });
}

#[test]
fn a_server_that_starts_later_is_found() {
    // The port is free now and stays free, because no other test uses this address.
    let free = UdpSocket::bind("127.3.5.11:0").expect("a socket").local_addr().expect("an address");
    let site = Site::new();
    site.import(&format!("deviceId,enrollment,deviceName,deviceSecret\nPLUG-1,plug,plug-1,{SECRET}\n"));
    let configuration = fs::read_to_string(site.path("certdist.toml")).expect("a configuration");
    site.write("certdist.toml", &configuration.replace("127.0.0.1:0", &free.to_string()));
    thread::scope(|scope| {
        let devices = STACKS.map(|stack| {
            scope.spawn(move || {
                let device = Device::new(stack);
                let settings = ["where=cn-shanghai", "retry=200", "longest_retry=400", "handshake=1500"];
                let output = device.run(free, "PLUG-1", &settings);
                device.assert_has(&output, "plug-1", SECRET);
                assert!(stdout(&output).contains(": waiting, silence"), "{}", stdout(&output));
            })
        });
        thread::sleep(Duration::from_secs(3));
        let _server = site.serve();
        for device in devices {
            device.join().expect("the device has its certificate");
        }
    });
}

/// mbedTLS 3 has connection IDs, so the session continues from each new address.
#[test]
fn a_session_with_a_connection_id_moves() {
    let (_site, server) = registered_site();
    let network = ForgetfulNetwork::new(server.address);
    let device = Device::new("mbedtls3");
    let output = device.run(network.address, "PLUG-1", &["where=cn-shanghai"]);
    device.assert_has(&output, "plug-1", SECRET);
    assert!(network.moved.load(SeqCst) > 0 && network.handshakes.load(SeqCst) == 0);
    assert!(stdout(&output).contains("attempt 1\n"), "{}", stdout(&output));
}
