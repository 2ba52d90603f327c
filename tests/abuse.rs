//! What strangers and holders of one device can do to the others. Loads stay on
//! loopback and end by themselves.

mod support;

use std::{
    net::{SocketAddr, UdpSocket},
    process::{Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use support::{MASTER, Process, Site, coapsload, stdout};

const DEVICES: u32 = 500;
/// Cookie-less hellos a second, and for how long.
const FLOOD: u32 = 20_000;
const SECONDS: u32 = 3;

fn server() -> (Site, Process) {
    let site = Site::new();
    let mut csv = String::from("deviceId,enrollment,deviceName,deviceSecret\n");
    for number in 1..=DEVICES {
        csv.push_str(&format!("SN{number:08},lamp,lamp-{number},secret-{number}\n"));
    }
    site.import(&csv);
    let server = site.serve();
    (site, server)
}

/// A well-formed ClientHello without a cookie, as a device sends it.
fn hello(number: u32) -> Vec<u8> {
    let mut body = vec![0xfe, 0xfd];
    body.extend([number.to_be_bytes(); 8].concat());
    body.extend([0, 0, 0, 4, 0xc0, 0xa8, 0x00, 0xff, 1, 0]);
    let length = body.len() as u8;
    let mut datagram = vec![22, 0xfe, 0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, length + 12];
    datagram.extend([1, 0, 0, length, 0, 0, 0, 0, 0, 0, 0, length]);
    datagram.extend(body);
    datagram
}

/// Resident memory of a process, in KiB.
fn memory(server: &Process) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.id())).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("its memory");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

/// The 99th percentile of the latency, in ms.
fn p99(output: &Output) -> f64 {
    let text = stdout(output);
    let figure = text.split("p99 ").nth(1).and_then(|rest| rest.split(' ').next());
    figure.and_then(|figure| figure.parse().ok()).unwrap_or_else(|| panic!("no latency in {text}"))
}

fn all_served(output: &Output, devices: u32) -> bool {
    stdout(output).contains(&format!("ok {devices} (2.xx {devices} "))
}

#[test]
fn a_flood_of_hellos_without_cookies_costs_no_honest_device_its_certificate() {
    let (_site, server) = server();
    let port = server.address.port().to_string();
    let count = DEVICES.to_string();
    let arguments = ["-p", &port, "-n", &count, "-c", "50", "-K", MASTER];
    assert!(all_served(&coapsload(&arguments), DEVICES));
    let before = memory(&server);

    let address = server.address;
    let flood = thread::spawn(move || {
        // From many addresses: 127.9.0.1 to 127.9.0.200.
        let sockets: Vec<_> = (1..=200)
            .map(|last| {
                let socket = UdpSocket::bind(SocketAddr::from(([127, 9, 0, last], 0))).expect("a socket");
                socket.set_nonblocking(true).expect("non-blocking");
                socket
            })
            .collect();
        let start = Instant::now();
        let mut sent = 0;
        for (number, socket) in (0..FLOOD * SECONDS).zip(sockets.iter().cycle()) {
            sent += u32::from(socket.send_to(&hello(number), address).is_ok());
            // Evenly, in steps of a hundred.
            let due = start + Duration::from_secs(1) * (number / 100) / (FLOOD / 100);
            if number % 100 == 0 {
                thread::sleep(due.saturating_duration_since(Instant::now()));
            }
        }
        sent
    });
    let load = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/build/coapsload"))
        .args(arguments)
        .stdout(Stdio::piped())
        .output()
        .expect("built by `make clients`");
    let sent = flood.join().expect("the flood ended");
    assert!(sent > FLOOD * SECONDS / 2, "only {sent} hellos were sent");
    assert!(all_served(&load, DEVICES), "{}", stdout(&load));
    assert!(p99(&load) <= 2000.0, "{}", stdout(&load));
    let grown = memory(&server).saturating_sub(before);
    assert!(grown <= 2048, "{grown} KiB more after the flood");
}

#[test]
fn handshakes_left_half_open_keep_no_honest_device_out() {
    let (site, server) = server();
    drop(server);
    let configuration = std::fs::read_to_string(site.path("certdist.toml")).expect("it is there");
    site.write(
        "certdist.toml",
        &format!("{configuration}[limits]\nmax_handshakes = 64\nmax_handshakes_per_address = 16\n"),
    );
    let server = site.serve();
    let port = server.address.port().to_string();
    let key = hex::encode([9; 16]);
    // Each with a wrong key: it ends at Finished, and its place stays taken until
    // its time is up or another needs it.
    let failing = coapsload(&["-p", &port, "-n", "300", "-c", "300", "-k", &key, "-t", "3", "-b", "60000"]);
    assert!(stdout(&failing).contains("ok 0 "), "{}", stdout(&failing));
    let count = DEVICES.to_string();
    let load = coapsload(&["-p", &port, "-n", &count, "-c", "8", "-K", MASTER, "-t", "20"]);
    assert!(all_served(&load, DEVICES), "{}", stdout(&load));
}
