//! The interoperability matrix: every foreign stack with each of its suites and options. Each cell
//! is a real handshake and a certificate from `/cert`. A cell is tried on several networks, and
//! with a slow cloud. The run fails if its results differ from the table in `docs/interop.md`.

use std::{
    collections::BTreeSet,
    net::{SocketAddr, UdpSocket},
    process::Command,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    thread,
    time::{Duration, Instant},
};

use crate::support::{
    MASTER, Process, SHARED_IDENTITY, SHARED_KEY, Site, coapsload, http_get,
    network::{ForgetfulNetwork, Outage, RebindingNetwork, Tap, bad_network},
    stdout,
};
use certdist::simulated_device::{Answer, SimulatedDevice};
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

const INTRODUCTION: &str = "\
| stack | suite | with | direct | bad network | bad cookie once | new address | RFC 7925 timers | slow cloud |
|---|---|---|---|---|---|---|---|---|
";
const SECRET: &str = "secretofplug10000000000000000000";
/// A device with a derived key. The device secret in its certificate is the same as that of PLUG-1.
const LAMP: &str = "LAMP-1";
/// Number of concurrent tries.
const AT_ONCE: usize = 12;
/// Number of concurrent tries in columns in which devices mostly wait.
const WAITING_AT_ONCE: usize = 64;
/// Maximum time that a device keeps trying.
const PATIENCE: Duration = Duration::from_secs(300);
/// Maximum time that a device keeps trying in columns in which an answer comes immediately or
/// never.
const SHORT_PATIENCE: Duration = Duration::from_secs(60);
/// First retransmission time-out of RFC 7925 §11.
const RFC7925_TIMER: Duration = Duration::from_secs(9);
/// Length of an outage. A device with the timers of RFC 7925 loses three flights in it: the flights
/// sent after 0, 9 and 27 s.
const OUTAGE: Duration = Duration::from_secs(30);
/// Time that the cloud takes for an answer.
const LATENCY: Duration = Duration::from_secs(3);
/// Stacks whose first time-out is fixed, in the stack itself or in the program that uses it here.
const FIXED_TIMERS: [&str; 11] = [
    "firmware kit on tinydtls 0.8.6",
    "firmware kit on mbedTLS 2.28",
    "firmware kit on mbedTLS 3.6",
    "GnuTLS 3.7",
    "GnuTLS 3.7 (libcoap)",
    "Bouncy Castle 1.72",
    "tinydtls 0.8.6",
    "Erlang/OTP 25",
    "node-dtls-client 1.1",
    "webrtc-dtls 0.12",
    // The time-out of dimpl can be set, but with another time-out, dimpl does not succeed in every
    // run.
    "dimpl 0.9",
];

/// Stacks that never repeat a flight. On a bad network, a device with such a stack starts new
/// handshakes until one loses no datagram.
const NEVER_REPEATS: [&str; 1] = ["node-dtls-client 1.1"];

/// One row of the table in `docs/interop.md`.
pub(super) struct Cell {
    pub(super) stack: &'static str,
    pub(super) suite: &'static str,
    pub(super) more: &'static str,
    /// Fetches a certificate. Returns whether this succeeded.
    pub(super) fetch: fn(&Ask) -> bool,
}

/// Parameters of a device.
pub(super) struct Ask {
    pub(super) server: SocketAddr,
    pub(super) identity: &'static str,
    pub(super) key: Vec<u8>,
    pub(super) suite: &'static str,
    pub(super) more: &'static str,
    pub(super) rfc7925_timers: bool,
    pub(super) patience: Duration,
    /// Serial number for the query. If it is empty, the request is a `GET /cert` without a query.
    pub(super) sn: String,
    /// Text that the certificate must contain.
    pub(super) proof: String,
}

impl Ask {
    fn is_met_by(&self, answer: &str) -> bool {
        answer.contains("deviceSecret") && answer.contains(&self.proof)
    }
}

/// Columns of the table.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Column {
    Direct,
    BadNetwork,
    BadCookieOnce,
    NewAddress,
    Rfc7925Timers,
    SlowCloud,
}

use Column::{BadCookieOnce, BadNetwork, Direct, NewAddress, Rfc7925Timers, SlowCloud};

const COLUMNS: [Column; 6] = [Direct, BadNetwork, BadCookieOnce, NewAddress, Rfc7925Timers, SlowCloud];

impl Column {
    fn applies_to(self, cell: &Cell) -> bool {
        match self {
            BadNetwork => !NEVER_REPEATS.contains(&cell.stack),
            NewAddress => cell.more.contains("connection ID"),
            Rfc7925Timers => !FIXED_TIMERS.contains(&cell.stack),
            _ => true,
        }
    }

    fn mostly_waits(self) -> bool {
        matches!(self, BadNetwork | Rfc7925Timers | SlowCloud)
    }

    /// Returns whether a device under the conditions of this column gets its certificate.
    /// `number` is the index of the cell.
    fn passes(self, cell: &Cell, number: usize, [server, slow]: [SocketAddr; 2]) -> bool {
        let ask = |server| Ask {
            server,
            identity: SHARED_IDENTITY,
            key: SHARED_KEY.into(),
            suite: cell.suite,
            more: cell.more,
            rfc7925_timers: self == Rfc7925Timers,
            patience: if self == BadCookieOnce { SHORT_PATIENCE } else { PATIENCE },
            sn: "PLUG-1".to_owned(),
            proof: SECRET.to_owned(),
        };
        let fetch = |server| (cell.fetch)(&ask(server));
        match self {
            Direct => fetch(server),
            BadNetwork => fetch(bad_network(server, number as u64 * 2)),
            BadCookieOnce => {
                let network = RebindingNetwork::new(server);
                fetch(network.address) && network.rebound.load(SeqCst)
            }
            NewAddress => {
                // The device must be served from a new address without another handshake.
                let moves = |ask: &dyn Fn(SocketAddr) -> Ask| {
                    let network = ForgetfulNetwork::new(server);
                    (cell.fetch)(&ask(network.address))
                        && network.moved.load(SeqCst) > 0
                        && network.handshakes.load(SeqCst) == 0
                };
                // Before the new address is validated, the server may send three bytes for each
                // received byte (RFC 9146 §6). After the shortest request, this is not enough for
                // the answer, so the server must validate the address first.
                let bare = |server| Ask { identity: LAMP, key: lamp_key(), sn: String::new(), ..ask(server) };
                moves(&ask) && moves(&bare)
            }
            Rfc7925Timers => {
                let network = Outage::new(server, OUTAGE);
                let served = fetch(network.address);
                served && network.lost.load(SeqCst) >= 3 && network.hurried.load(SeqCst) == 0
            }
            SlowCloud => {
                let (sn, start) = (unregistered(number), Instant::now());
                let tap = Tap::new(slow);
                let ask = Ask { sn: sn.clone(), proof: sn, ..ask(tap.address) };
                (cell.fetch)(&ask) && start.elapsed() >= LATENCY && tap.was_patient()
            }
        }
    }
}

/// Returns the ID of a device that is not registered yet, one per cell. Its device name equals its
/// ID.
fn unregistered(number: usize) -> String {
    format!("SLOW-{number:03}")
}

/// Returns the first 16 bytes of HMAC-SHA256(master key, identity), as docs/device.md
/// specifies.
fn lamp_key() -> Vec<u8> {
    let master = hex::decode(MASTER).expect("hex digits");
    let mut mac = Hmac::<Sha256>::new_from_slice(&master).expect("HMAC takes any key");
    mac.update(LAMP.as_bytes());
    mac.finalize().into_bytes()[..16].to_vec()
}

pub(super) fn cells() -> Vec<Cell> {
    let mut cells = Vec::new();
    let mut add = |stack, fetch, suites: &[&'static str], variants: &[&'static str]| {
        for &suite in suites {
            for &more in variants {
                cells.push(Cell { stack, suite, more, fetch });
            }
        }
    };
    let psk = ["PSK-AES128-CCM8", "PSK-AES128-CCM", "PSK-AES128-GCM-SHA256"];
    add("OpenSSL 3.0", openssl, &psk, &["", "no EMS", "max_fragment_length 512"]);
    add("GnuTLS 3.7 (libcoap)", libcoap, &["as it offers"], &[""]);
    let psk = ["AES-128-CCM-8", "AES-128-CCM", "AES-128-GCM"];
    add("GnuTLS 3.7", gnutls, &psk, &["", "no EMS", "record_size_limit 512"]);
    let psk = ["TLS-PSK-WITH-AES-128-CCM-8", "TLS-PSK-WITH-AES-128-CCM", "TLS-PSK-WITH-AES-128-GCM-SHA256"];
    add("mbedTLS 2.28", mbedtls, &psk, &["", "no EMS", "max_fragment_length 512"]);
    let ids = ["connection ID", "connection ID + own of 4 bytes", "connection ID + max_fragment_length 512"];
    add("mbedTLS 3.6", mbedtls3, &psk, &["", "no EMS"]);
    add("mbedTLS 3.6", mbedtls3, &psk, &ids);
    let ecdhe = ["ECDHE-PSK-AES128-GCM-SHA256"];
    add("wolfSSL 5.5", wolfssl, &ecdhe, &["", "P-256", "max_fragment_length 512"]);
    let psk = ["PSK-AES128-CCM-8", "PSK-AES128-CCM", "PSK-AES128-GCM-SHA256", "ECDHE-PSK-AES128-GCM-SHA256"];
    add("wolfSSL 5.9", wolfssl5, &psk, &[""]);
    add("wolfSSL 5.9", wolfssl5, &psk, &ids);
    let ecdhe = ["TLS_ECDHE_PSK_WITH_AES_128_CCM_8_SHA256", "TLS_ECDHE_PSK_WITH_AES_128_GCM_SHA256"];
    let variants = ["X25519", "P-256", "X25519 + no EMS", "X25519 + max_fragment_length 512"];
    add("Bouncy Castle 1.72", bouncy_castle, &ecdhe, &variants);
    let psk = ["TLS_PSK_WITH_AES_128_CCM_8", "TLS_PSK_WITH_AES_128_CCM", "TLS_PSK_WITH_AES_128_GCM_SHA256"];
    add("Bouncy Castle 1.72", bouncy_castle, &psk, &["", "no EMS", "max_fragment_length 512"]);
    add("tinydtls 0.8.6", tinydtls, &["CCM_8", "CCM"], &[""]);
    let psk = ["TLS_PSK_WITH_AES_128_CCM_8", "TLS_PSK_WITH_AES_128_CCM", "TLS_PSK_WITH_AES_128_GCM_SHA256"];
    add("pion 2.2", pion, &psk, &["", "no EMS"]);
    let psk = ["PSK-AES128-CCM8", "PSK-AES128-CCM", "PSK-AES128-GCM-SHA256"];
    add("Erlang/OTP 25", erlang, &psk, &[""]);
    let ecdhe = ["ECDHE-PSK-AES128-CCM8", "ECDHE-PSK-AES128-GCM-SHA256"];
    add("Erlang/OTP 25", erlang, &ecdhe, &["X25519", "P-256"]);
    let psk = ["TLS-PSK-WITH-AES-128-CCM-8", "TLS-PSK-WITH-AES-128-CCM", "TLS-PSK-WITH-AES-128-GCM-SHA256"];
    add("python-mbedtls 2.10", python_mbedtls, &psk, &["", "max_fragment_length 512"]);
    let psk = ["TLS_PSK_WITH_AES_128_CCM_8", "TLS_PSK_WITH_AES_128_GCM_SHA256"];
    add("node-dtls-client 1.1", node, &psk, &[""]);
    add("webrtc-dtls 0.12", webrtc, &["PSK-AES128-CCM8"], &[""]);
    add("dimpl 0.9", dimpl, &["PSK-AES128-CCM8"], &[""]);
    add("firmware kit on tinydtls 0.8.6", kit_on_tinydtls, &["CCM_8"], &[""]);
    add("firmware kit on mbedTLS 2.28", kit_on_mbedtls, &["as it offers"], &[""]);
    add("firmware kit on mbedTLS 3.6", kit_on_mbedtls3, &["as it offers"], &["connection ID"]);
    cells
}

fn openssl(ask: &Ask) -> bool {
    let (host, port) = (ask.server.ip().to_string(), ask.server.port().to_string());
    let (key, patience) = (hex::encode(SHARED_KEY), ask.patience.as_secs().to_string());
    let mut arguments =
        vec!["-h", &host, "-p", &port, "-n", "1", "-c", "1", "-t", &patience, "-S", ask.suite];
    arguments.extend(["-g", SHARED_IDENTITY, "-k", &key, "-I", &ask.sn]);
    match ask.more {
        "no EMS" => arguments.push("-E"),
        "max_fragment_length 512" => arguments.push("-M"),
        _ => {}
    }
    if ask.rfc7925_timers {
        arguments.extend(["-T", "9"]);
    }
    stdout(&coapsload(&arguments)).contains("ok 1 (2.xx 1 ")
}

fn libcoap(ask: &Ask) -> bool {
    let output = Command::new("coap-client-gnutls")
        .args([
            "-B",
            &ask.patience.as_secs().to_string(),
            "-u",
            SHARED_IDENTITY,
            "-k",
            SHARED_KEY,
            "-A",
            "50",
        ])
        .arg(format!("coaps://{}/cert?sn={}", ask.server, ask.sn))
        .output()
        .expect("installed by `make clients`");
    ask.is_met_by(&stdout(&output))
}

/// Runs a program of `examples/`. All of these programs take the same arguments.
fn example(command: &[&str], ask: &Ask) -> bool {
    let options = ask
        .more
        .replace("no EMS", "noems")
        .replace("max_fragment_length 512", "mfl512")
        .replace("record_size_limit 512", "rsl512")
        .replace("P-256", "p256")
        .replace("X25519", "x25519")
        .replace("connection ID + own of 4 bytes", "cid4")
        .replace("connection ID", "cid0");
    let timers = if ask.rfc7925_timers { "rfc7925" } else { "" };
    let output = Command::new("timeout")
        .arg(ask.patience.as_secs().to_string())
        .args(command)
        .args([&ask.server.ip().to_string(), &ask.server.port().to_string(), ask.identity])
        .args([&hex::encode(&ask.key), &ask.sn, ask.suite, &(options + timers)])
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/build"))
        .env("NODE_PATH", concat!(env!("CARGO_MANIFEST_DIR"), "/build/node/node_modules"))
        .output()
        .expect("built by `make clients`");
    ask.is_met_by(&stdout(&output))
}

fn gnutls(ask: &Ask) -> bool {
    example(&["./gnutls_client"], ask)
}

fn mbedtls(ask: &Ask) -> bool {
    example(&["./mbedtls_client"], ask)
}

fn mbedtls3(ask: &Ask) -> bool {
    example(&["./mbedtls3_client"], ask)
}

fn wolfssl(ask: &Ask) -> bool {
    example(&["./wolfssl_client"], ask)
}

fn wolfssl5(ask: &Ask) -> bool {
    example(&["./wolfssl5_client"], ask)
}

fn bouncy_castle(ask: &Ask) -> bool {
    let jars = ".:/usr/share/java/bctls.jar:/usr/share/java/bcprov.jar:/usr/share/java/bcutil.jar";
    example(&["java", "-XX:TieredStopAtLevel=1", "-cp", jars, "BouncyCastleClient"], ask)
}

fn tinydtls(ask: &Ask) -> bool {
    example(&["./tinydtls_client"], ask)
}

fn pion(ask: &Ask) -> bool {
    example(&["./pion_client"], ask)
}

fn erlang(ask: &Ask) -> bool {
    example(&["escript", "../examples/erlang_client.escript"], ask)
}

fn python_mbedtls(ask: &Ask) -> bool {
    example(&["python-mbedtls/bin/python", "../examples/python_mbedtls_client.py"], ask)
}

fn node(ask: &Ask) -> bool {
    example(&["node", "../examples/node_dtls_client.js"], ask)
}

/// Runs the firmware kit's program, which stores the certificate in a file.
fn kit(stack: &str, ask: &Ask) -> bool {
    let site = Site::configured("");
    site.write("key", &hex::encode(&ask.key));
    let device_id = if ask.sn.is_empty() { "-" } else { &ask.sn };
    let output = Command::new(format!("{}/build/firmware/fetch-{stack}", env!("CARGO_MANIFEST_DIR")))
        .args([&ask.server.ip().to_string(), &ask.server.port().to_string(), ask.identity, "key", device_id])
        .args(["record", "kind=sn", "first_delay=1", "retry=1000"])
        .arg(format!("patience={}", ask.patience.as_millis()))
        .current_dir(site.path("."))
        .output()
        .expect("built by `make clients`");
    let record = std::fs::read(site.path("record")).unwrap_or_default();
    output.status.success() && String::from_utf8_lossy(&record).contains(&ask.proof)
}

fn kit_on_tinydtls(ask: &Ask) -> bool {
    kit("tinydtls", ask)
}

fn kit_on_mbedtls(ask: &Ask) -> bool {
    kit("mbedtls2", ask)
}

fn kit_on_mbedtls3(ask: &Ask) -> bool {
    kit("mbedtls3", ask)
}

fn webrtc(ask: &Ask) -> bool {
    let device = SimulatedDevice {
        server: ask.server,
        identity: SHARED_IDENTITY.into(),
        psk: SHARED_KEY.into(),
        sn: Some(ask.sn.clone()),
        asks_host: false,
        patience: ask.patience,
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let Ok(Answer::Certificate { certificate: found, .. }) = runtime.block_on(device.provision()) else {
        return false;
    };
    found.device_secret.expose() == ask.proof || found.device_name == ask.proof
}

struct Psk;

impl dimpl::PskResolver for Psk {
    fn resolve(&self, _: &[u8]) -> Option<Vec<u8>> {
        Some(SHARED_KEY.into())
    }
}

fn dimpl(ask: &Ask) -> bool {
    let timer = if ask.rfc7925_timers { RFC7925_TIMER } else { Duration::from_secs(1) };
    let config = dimpl::Config::builder()
        .flight_start_rto(timer)
        .handshake_timeout(ask.patience)
        .with_psk_client(SHARED_IDENTITY.into(), Arc::new(Psk))
        .build();
    let mut dtls = dimpl::Dtls::new_12_psk(Arc::new(config.expect("a configuration")), Instant::now());
    dtls.set_active(true);
    let socket = UdpSocket::bind("127.0.0.1:0").expect("a socket");
    socket.connect(ask.server).expect("connected");
    socket.set_read_timeout(Some(Duration::from_millis(50))).expect("a time-out");
    // The request is a confirmable GET /cert?sn=… with the token 0xc3.
    let query = format!("sn={}", ask.sn);
    let head = [&[0x41, 1, 0x12, 0x34, 0xc3, 0xb4][..], b"cert", &[0x40 | query.len() as u8]].concat();
    let request = [&head[..], query.as_bytes()].concat();
    let mut buffer = [0; 4096];
    let (start, mut connected) = (Instant::now(), false);
    let (mut ask_at, mut wait, mut acknowledged) = (start, Duration::from_secs(2), false);
    while start.elapsed() < ask.patience {
        if dtls.handle_timeout(Instant::now()).is_err() {
            return false;
        }
        let mut message = None;
        loop {
            match dtls.poll_output(&mut buffer) {
                dimpl::Output::Packet(packet) => drop(socket.send(packet)),
                dimpl::Output::Connected => connected = true,
                dimpl::Output::ApplicationData(data) => message = Some(data.to_vec()),
                dimpl::Output::Timeout(_) => break,
                _ => {}
            }
        }
        match message.as_deref() {
            // RFC 7252 §5.2.2: after an empty acknowledgement, the response follows separately.
            Some([0x60, 0, ..]) => acknowledged = true,
            Some(&[head @ (0x41 | 0x51 | 0x61), _, high, low, 0xc3, ref rest @ ..]) => {
                // RFC 7252 §4.2: a confirmable response must be acknowledged.
                if head == 0x41 && dtls.send_application_data(&[0x60, 0, high, low]).is_ok() {
                    while let dimpl::Output::Packet(packet) = dtls.poll_output(&mut buffer) {
                        let _ = socket.send(packet);
                    }
                }
                return ask.is_met_by(&String::from_utf8_lossy(rest));
            }
            _ => {}
        }
        // RFC 7252 §4.2: the request is repeated until it is acknowledged.
        if connected && !acknowledged && ask_at <= Instant::now() {
            ask_at = Instant::now() + wait;
            wait *= 2;
            if dtls.send_application_data(&request).is_err() {
                return false;
            }
            continue;
        }
        let mut datagram = [0; 2048];
        if let Ok(length) = socket.recv(&mut datagram) {
            // Invalid datagrams are ignored.
            let _ = dtls.handle_packet(&datagram[..length]);
        }
    }
    false
}

/// Runs the tries of the matrix, `at_once` at a time. Returns the tries that failed.
fn run(
    tries: &[(usize, Column)],
    cells: &[Cell],
    servers: [SocketAddr; 2],
    at_once: usize,
) -> BTreeSet<(usize, Column)> {
    let (next, failed) = (AtomicUsize::new(0), Mutex::new(BTreeSet::new()));
    thread::scope(|scope| {
        for _ in 0..at_once {
            scope.spawn(|| {
                while let Some(&(number, column)) = tries.get(next.fetch_add(1, SeqCst)) {
                    if !column.passes(&cells[number], number, servers) {
                        failed.lock().expect("not poisoned").insert((number, column));
                    }
                }
            });
        }
    });
    failed.into_inner().expect("not poisoned")
}

#[test]
fn every_stack_gets_its_certificate_in_every_place() {
    let cells = cells();
    let (_site, server) = site();
    let cloud = Site::new();
    let simulator = cloud.simulator(&["--latency", &format!("{}s", LATENCY.as_secs())]);
    let slow_site = Site::with_cloud(&format!("http://{}", simulator.address));
    let rows = (0..cells.len()).map(|number| format!("{},plug\n", unregistered(number)));
    slow_site.import(&std::iter::once("deviceId,enrollment\n".to_owned()).chain(rows).collect::<String>());
    let slow_server = slow_site.serve();
    let servers = [server.address, slow_server.address];

    let tries = COLUMNS.iter().flat_map(|&column| (0..cells.len()).map(move |number| (number, column)));
    let tries = tries.filter(|&(number, column)| column.applies_to(&cells[number]));
    let (waiting, busy): (Vec<_>, Vec<_>) = tries.partition(|&(_, column)| column.mostly_waits());
    let failed = thread::scope(|scope| {
        let waiting = scope.spawn(|| run(&waiting, &cells, servers, WAITING_AT_ONCE));
        let busy = run(&busy, &cells, servers, AT_ONCE);
        let waiting = waiting.join().expect("no panic");
        busy.union(&waiting).copied().collect::<BTreeSet<_>>()
    });

    let stats: serde_json::Value =
        serde_json::from_str(&http_get(simulator.address, "/stats")).expect("JSON");
    let registered = stats["devices"].as_u64().expect("a number");
    let calls = stats["calls"]["RegisterDevice"].as_u64().unwrap_or_default();
    // Devices that ask together may be registered in a batch, with fewer calls.
    assert!(registered == cells.len() as u64 && calls <= registered, "{stats}");

    let mut table = String::from(INTRODUCTION);
    for (number, cell) in cells.iter().enumerate() {
        let words = COLUMNS.map(|column| match failed.contains(&(number, column)) {
            true => "NO",
            false if column.applies_to(cell) => "yes",
            false => "",
        });
        let Cell { stack, suite, more, .. } = cell;
        table.push_str(&format!("| {stack} | {suite} | {more} | {} |\n", words.join(" | ")));
    }
    let found = concat!(env!("CARGO_MANIFEST_DIR"), "/build/interop.md");
    std::fs::write(found, &table).expect("it can be written");
    let documented = include_str!("../../docs/interop.md");
    assert!(documented.contains(&table), "docs/interop.md is not what the run found; see {found}\n{table}");
}

fn site() -> (Site, Process) {
    let site = Site::new();
    site.import(&format!(
        "deviceId,enrollment,deviceName,deviceSecret\nPLUG-1,plug,plug-1,{SECRET}\n{LAMP},lamp,lamp-1,{SECRET}\n"
    ));
    let server = site.serve();
    (site, server)
}

/// The counterpart of the cells with connection IDs: without an ID, the session ends when the
/// device's address changes.
#[test]
fn without_a_connection_id_a_change_of_address_ends_the_session() {
    let (_site, server) = site();
    let network = ForgetfulNetwork::new(server.address);
    let port = network.address.port().to_string();
    let key = hex::encode(SHARED_KEY);
    let output =
        coapsload(&["-p", &port, "-n", "1", "-t", "6", "-g", SHARED_IDENTITY, "-k", &key, "-I", "PLUG-%ld"]);
    assert!(stdout(&output).contains("timeout 1 "), "{}", stdout(&output));
    assert!(network.moved.load(SeqCst) > 0);
}
