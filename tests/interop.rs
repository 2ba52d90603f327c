//! The interoperability matrix: every foreign stack, times its suites, times what
//! else it has, each cell a real handshake and a certificate from `/cert`; each
//! once more through a network that loses, repeats and reorders, and those with a
//! connection ID through one that changes their address. The table is
//! `docs/interop.md`; the run fails when that is not what it found.

mod support;

use std::{
    collections::BTreeMap,
    net::{SocketAddr, UdpSocket},
    process::Command,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    thread,
    time::{Duration, Instant},
};

use certdist::simulated_device::{Answer, SimulatedDevice};
use support::{
    Process, SHARED_IDENTITY, SHARED_KEY, Site, coapsload,
    network::{ForgetfulNetwork, bad_network},
    stdout,
};

const INTRODUCTION: &str = "\
| stack | suite | with | direct | bad network | new address |
|---|---|---|---|---|---|
";
const SECRET: &str = "secret-of-plug-1";
/// Cells tried at a time; they mostly wait.
const AT_ONCE: usize = 12;
/// How long a device goes on, in seconds.
const PATIENCE: &str = "300";

/// One row of the table.
struct Cell {
    stack: &'static str,
    suite: &'static str,
    more: &'static str,
    /// Whether the certificate was there.
    fetch: fn(SocketAddr, &'static str, &'static str) -> bool,
}

fn cells() -> Vec<Cell> {
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
    add("webrtc-dtls 0.12", webrtc, &["PSK-AES128-CCM8"], &[""]);
    add("dimpl 0.9", dimpl, &["PSK-AES128-CCM8"], &[""]);
    cells
}

fn openssl(server: SocketAddr, suite: &str, more: &str) -> bool {
    let (host, port) = (server.ip().to_string(), server.port().to_string());
    let key = hex::encode(SHARED_KEY);
    let mut arguments = vec!["-h", &host, "-p", &port, "-n", "1", "-c", "1", "-t", PATIENCE, "-S", suite];
    arguments.extend(["-g", SHARED_IDENTITY, "-k", &key, "-I", "PLUG-%ld"]);
    match more {
        "no EMS" => arguments.push("-E"),
        "max_fragment_length 512" => arguments.push("-M"),
        _ => {}
    }
    stdout(&coapsload(&arguments)).contains("ok 1 (2.xx 1 ")
}

fn libcoap(server: SocketAddr, _: &str, _: &str) -> bool {
    let output = Command::new("coap-client-gnutls")
        .args(["-B", PATIENCE, "-u", SHARED_IDENTITY, "-k", SHARED_KEY, "-A", "50"])
        .arg(format!("coaps://{server}/cert?sn=PLUG-1"))
        .output()
        .expect("installed by `make clients`");
    stdout(&output).contains(SECRET)
}

/// Runs one of `examples/`, which all take the same arguments.
fn example(command: &[&str], server: SocketAddr, suite: &str, more: &str) -> bool {
    let options = more
        .replace("no EMS", "noems")
        .replace("max_fragment_length 512", "mfl512")
        .replace("record_size_limit 512", "rsl512")
        .replace("P-256", "p256")
        .replace("X25519", "x25519")
        .replace("connection ID + own of 4 bytes", "cid4")
        .replace("connection ID", "cid0");
    let output = Command::new("timeout")
        .arg(PATIENCE)
        .args(command)
        .args([&server.ip().to_string(), &server.port().to_string(), SHARED_IDENTITY])
        .args([&hex::encode(SHARED_KEY), "PLUG-1", suite, &options])
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/build"))
        .output()
        .expect("built by `make clients`");
    stdout(&output).contains(SECRET)
}

fn gnutls(server: SocketAddr, suite: &str, more: &str) -> bool {
    example(&["./gnutls_client"], server, suite, more)
}

fn mbedtls(server: SocketAddr, suite: &str, more: &str) -> bool {
    example(&["./mbedtls_client"], server, suite, more)
}

fn mbedtls3(server: SocketAddr, suite: &str, more: &str) -> bool {
    example(&["./mbedtls3_client"], server, suite, more)
}

fn wolfssl(server: SocketAddr, suite: &str, more: &str) -> bool {
    example(&["./wolfssl_client"], server, suite, more)
}

fn wolfssl5(server: SocketAddr, suite: &str, more: &str) -> bool {
    example(&["./wolfssl5_client"], server, suite, more)
}

fn bouncy_castle(server: SocketAddr, suite: &str, more: &str) -> bool {
    let jars = ".:/usr/share/java/bctls.jar:/usr/share/java/bcprov.jar:/usr/share/java/bcutil.jar";
    example(&["java", "-XX:TieredStopAtLevel=1", "-cp", jars, "BouncyCastleClient"], server, suite, more)
}

fn tinydtls(server: SocketAddr, suite: &str, more: &str) -> bool {
    example(&["./tinydtls_client"], server, suite, more)
}

fn webrtc(server: SocketAddr, _: &str, _: &str) -> bool {
    let device = SimulatedDevice {
        server,
        identity: SHARED_IDENTITY.into(),
        psk: SHARED_KEY.into(),
        sn: Some("PLUG-1".into()),
        patience: Duration::from_secs(300),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    matches!(runtime.block_on(device.fetch()), Ok(Answer::Certificate(found)) if found.device_secret.expose() == SECRET)
}

struct Psk;

impl dimpl::PskResolver for Psk {
    fn resolve(&self, _: &[u8]) -> Option<Vec<u8>> {
        Some(SHARED_KEY.into())
    }
}

fn dimpl(server: SocketAddr, _: &str, _: &str) -> bool {
    let config = dimpl::Config::builder().with_psk_client(SHARED_IDENTITY.into(), Arc::new(Psk)).build();
    let mut dtls = dimpl::Dtls::new_12_psk(Arc::new(config.expect("a configuration")), Instant::now());
    dtls.set_active(true);
    let socket = UdpSocket::bind("127.0.0.1:0").expect("a socket");
    socket.connect(server).expect("connected");
    socket.set_read_timeout(Some(Duration::from_millis(50))).expect("a time-out");
    let request = [&[0x40, 1, 0x12, 0x34, 0xb4][..], b"cert", &[0x49], b"sn=PLUG-1"].concat();
    let (mut buffer, mut asked_at) = ([0; 4096], None::<Instant>);
    let (start, mut connected) = (Instant::now(), false);
    while start.elapsed() < Duration::from_secs(300) {
        if dtls.handle_timeout(Instant::now()).is_err() {
            return false;
        }
        loop {
            match dtls.poll_output(&mut buffer) {
                dimpl::Output::Packet(packet) => drop(socket.send(packet)),
                dimpl::Output::Connected => connected = true,
                dimpl::Output::ApplicationData(data)
                    if data.windows(SECRET.len()).any(|part| part == SECRET.as_bytes()) =>
                {
                    return true;
                }
                dimpl::Output::Timeout(_) => break,
                _ => {}
            }
        }
        if connected && asked_at.is_none_or(|at| at.elapsed() > Duration::from_secs(2)) {
            asked_at = Some(Instant::now());
            if dtls.send_application_data(&request).is_err() {
                return false;
            }
            continue;
        }
        let mut datagram = [0; 2048];
        if let Ok(length) = socket.recv(&mut datagram) {
            // What is not valid is to be dropped.
            let _ = dtls.handle_packet(&datagram[..length]);
        }
    }
    false
}

/// What one cell found.
struct Found {
    direct: bool,
    bad_network: bool,
    /// Behind a network that changes its address, if it has a connection ID.
    moved: Option<bool>,
}

fn try_cell(cell: &Cell, number: u64, server: SocketAddr) -> Found {
    let fetch = |address| (cell.fetch)(address, cell.suite, cell.more);
    Found {
        direct: fetch(server),
        bad_network: fetch(bad_network(server, number * 2)),
        moved: cell.more.contains("connection ID").then(|| {
            let network = ForgetfulNetwork::new(server);
            // Served from a new address, and without another handshake.
            fetch(network.address) && network.moved.load(SeqCst) > 0 && network.handshakes.load(SeqCst) == 0
        }),
    }
}

fn site() -> (Site, Process) {
    let site = Site::new();
    site.import(&format!("deviceId,enrollment,deviceName,deviceSecret\nPLUG-1,plug,plug-1,{SECRET}\n"));
    let server = site.serve();
    (site, server)
}

#[test]
fn every_stack_gets_its_certificate_on_a_good_and_on_a_bad_network() {
    let (_site, server) = site();
    let cells = cells();
    let (next, found) = (AtomicUsize::new(0), Mutex::new(BTreeMap::new()));
    thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, SeqCst);
                    let Some(cell) = cells.get(number) else { return };
                    let result = try_cell(cell, number as u64, server.address);
                    found.lock().expect("not poisoned").insert(number, result);
                }
            });
        }
    });
    let mut table = String::from(INTRODUCTION);
    let word = |served| if served { "yes" } else { "NO" };
    let found = found.into_inner().expect("not poisoned");
    for (Cell { stack, suite, more, .. }, Found { direct, bad_network, moved }) in
        cells.iter().zip(found.values())
    {
        let (direct, bad_network, moved) = (word(*direct), word(*bad_network), moved.map_or("", word));
        table.push_str(&format!("| {stack} | {suite} | {more} | {direct} | {bad_network} | {moved} |\n"));
    }
    let found = concat!(env!("CARGO_MANIFEST_DIR"), "/build/interop.md");
    std::fs::write(found, &table).expect("it can be written");
    let documented = include_str!("../docs/interop.md");
    assert!(documented.contains(&table), "docs/interop.md is not what the run found; see {found}\n{table}");
}

/// The other side of the cells with connection IDs: the network that changes
/// addresses does cut off who has none.
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
