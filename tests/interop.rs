//! The interoperability matrix: every foreign stack, times its suites, times what
//! else it has, each cell a real handshake and a certificate from `/cert`; and
//! each once more through a network that loses, repeats and reorders. The table
//! is `docs/interop.md`; the run fails when that is not what it found.

mod support;

use std::{
    net::{SocketAddr, UdpSocket},
    process::Command,
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use certdist::simulated_device::{Answer, SimulatedDevice};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use support::{SHARED_IDENTITY, SHARED_KEY, Site, coapsload, stdout};

const SECRET: &str = "secret-of-plug-1";
/// How often a device is powered on behind the bad network before the cell counts
/// as failed. At once, on the plain one.
const TRIES: u32 = 3;

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
    add("OpenSSL 3.0", openssl, &psk, &["", "no EMS"]);
    add("GnuTLS 3.7 (libcoap)", gnutls, &["as it offers"], &[""]);
    let psk = ["TLS-PSK-WITH-AES-128-CCM-8", "TLS-PSK-WITH-AES-128-CCM", "TLS-PSK-WITH-AES-128-GCM-SHA256"];
    add("mbedTLS 2.28", mbedtls, &psk, &["", "no EMS", "max_fragment_length 512"]);
    let ecdhe = ["ECDHE-PSK-AES128-GCM-SHA256"];
    add("wolfSSL 5.5", wolfssl, &ecdhe, &["", "P-256", "max_fragment_length 512"]);
    add("webrtc-dtls 0.12", webrtc, &["PSK-AES128-CCM8"], &[""]);
    add("dimpl 0.9", dimpl, &["PSK-AES128-CCM8"], &[""]);
    cells
}

fn openssl(server: SocketAddr, suite: &str, more: &str) -> bool {
    let (host, port) = (server.ip().to_string(), server.port().to_string());
    let key = hex::encode(SHARED_KEY);
    let mut arguments = vec!["-h", &host, "-p", &port, "-n", "1", "-c", "1", "-t", "60", "-S", suite];
    arguments.extend(["-g", SHARED_IDENTITY, "-k", &key, "-I", "PLUG-%ld"]);
    if more == "no EMS" {
        arguments.push("-E");
    }
    stdout(&coapsload(&arguments)).contains("ok 1 (2.xx 1 ")
}

fn gnutls(server: SocketAddr, _: &str, _: &str) -> bool {
    let output = Command::new("coap-client-gnutls")
        .args(["-B", "60", "-u", SHARED_IDENTITY, "-k", SHARED_KEY, "-A", "50"])
        .arg(format!("coaps://{server}/cert?sn=PLUG-1"))
        .output()
        .expect("installed by `make clients`");
    stdout(&output).contains(SECRET)
}

fn built(client: &str, server: SocketAddr, suite: &str, options: &str) -> bool {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("build").join(client);
    let output = Command::new("timeout")
        .arg("90")
        .arg(path)
        .args([&server.ip().to_string(), &server.port().to_string(), SHARED_IDENTITY])
        .args([&hex::encode(SHARED_KEY), "PLUG-1", suite, options])
        .output()
        .expect("built by `make clients`");
    stdout(&output).contains(SECRET)
}

fn mbedtls(server: SocketAddr, suite: &str, more: &str) -> bool {
    let options = match more {
        "no EMS" => "noems",
        "max_fragment_length 512" => "mfl512",
        _ => "",
    };
    built("mbedtls_client", server, suite, options)
}

fn wolfssl(server: SocketAddr, suite: &str, more: &str) -> bool {
    let options = match more {
        "P-256" => "p256",
        "max_fragment_length 512" => "mfl512",
        _ => "",
    };
    built("wolfssl_client", server, suite, options)
}

fn webrtc(server: SocketAddr, _: &str, _: &str) -> bool {
    let device = SimulatedDevice {
        server,
        identity: SHARED_IDENTITY.into(),
        psk: SHARED_KEY.into(),
        sn: Some("PLUG-1".into()),
        patience: Duration::from_secs(60),
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
    while start.elapsed() < Duration::from_secs(60) {
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

/// A network between a device and the server: one datagram in five is lost, one
/// in ten comes twice, one in five comes after the next one.
fn bad_network(server: SocketAddr, seed: u64) -> SocketAddr {
    let front = UdpSocket::bind("127.0.0.1:0").expect("a socket");
    let address = front.local_addr().expect("an address");
    thread::spawn(move || {
        let back: Mutex<Vec<(SocketAddr, Arc<UdpSocket>)>> = Mutex::default();
        let mut line = Line::new(seed);
        let mut buffer = [0; 2048];
        front.set_read_timeout(Some(Duration::from_secs(120))).expect("a time-out");
        while let Ok((length, device)) = front.recv_from(&mut buffer) {
            let mut back = back.lock().expect("not poisoned");
            let known = back.iter().find(|(known, _)| *known == device).map(|(_, socket)| socket.clone());
            let socket = known.unwrap_or_else(|| {
                let socket = Arc::new(UdpSocket::bind("127.0.0.1:0").expect("a socket"));
                socket.connect(server).expect("connected");
                back.push((device, socket.clone()));
                let (front, socket) = (front.try_clone().expect("a clone"), socket.clone());
                thread::spawn(move || {
                    let mut line = Line::new(seed + 1);
                    let mut buffer = [0; 2048];
                    socket.set_read_timeout(Some(Duration::from_secs(120))).expect("a time-out");
                    while let Ok(length) = socket.recv(&mut buffer) {
                        line.pass(&buffer[..length], |datagram| drop(front.send_to(datagram, device)));
                    }
                });
                back.last().map(|(_, socket)| socket.clone()).expect("just added")
            });
            line.pass(&buffer[..length], |datagram| drop(socket.send(datagram)));
        }
    });
    address
}

/// One direction of it.
struct Line {
    random: StdRng,
    held: Option<Vec<u8>>,
}

impl Line {
    fn new(seed: u64) -> Self {
        Self { random: StdRng::seed_from_u64(seed), held: None }
    }

    fn pass(&mut self, datagram: &[u8], send: impl Fn(&[u8])) {
        if !self.random.random_bool(0.2) {
            if self.held.is_none() && self.random.random_bool(0.2) {
                self.held = Some(datagram.to_vec());
                return;
            }
            send(datagram);
            if self.random.random_bool(0.1) {
                send(datagram);
            }
        }
        if let Some(held) = self.held.take() {
            send(&held);
        }
    }
}

#[test]
fn every_stack_gets_its_certificate_on_a_good_and_on_a_bad_network() {
    let site = Site::new();
    site.import(&format!("deviceId,enrollment,deviceName,deviceSecret\nPLUG-1,plug,plug-1,{SECRET}\n"));
    let server = site.serve();
    let running: Vec<_> = (0..)
        .zip(cells())
        .map(|(number, cell)| {
            let server = server.address;
            thread::spawn(move || {
                let good = (cell.fetch)(server, cell.suite, cell.more);
                let bad = (0..TRIES).any(|again| {
                    let network = bad_network(server, number * 100 + u64::from(again) * 2);
                    (cell.fetch)(network, cell.suite, cell.more)
                });
                (cell, good, bad)
            })
        })
        .collect();
    let mut table = String::from(
        "# Which stacks connect\n\nMade by `tests/interop.rs`, in `make test`: each cell is a real handshake and a\n\
         certificate from `/cert`, directly, and through a network that loses one datagram\n\
         in five, repeats one in ten and swaps one in five.\n\n\
         | stack | suite | with | direct | bad network |\n|---|---|---|---|---|\n",
    );
    let word = |served| if served { "yes" } else { "NO" };
    for cell in running {
        let (Cell { stack, suite, more, .. }, good, bad) = cell.join().expect("it ran");
        table.push_str(&format!("| {stack} | {suite} | {more} | {} | {} |\n", word(good), word(bad)));
    }
    let found = concat!(env!("CARGO_MANIFEST_DIR"), "/build/interop.md");
    std::fs::write(found, &table).expect("it can be written");
    let documented = include_str!("../docs/interop.md");
    assert!(table == documented, "docs/interop.md is not what the run found; see {found}\n{table}");
}
