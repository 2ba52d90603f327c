//! Tests with strangers at the admin port. Strangers occupy its connections with slow requests,
//! while health checks, pages and uploads must be answered. Strangers also try passwords, which
//! must not lock out other users.

use std::{
    io::{Read, Write},
    net::{IpAddr, SocketAddr, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use certdist::device::Secret;

use crate::{
    console::reload,
    support::{
        Process, Site,
        console::{PASSWORD, TOKEN, Visitor, admin, free_address, password_hash, sign_in_from},
        http::{self, MULTIPART},
        stderr,
    },
};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Returns the ways to occupy a connection: a description, and the text that the client sends
/// before it falls silent.
fn ways() -> [(&'static str, String); 6] {
    let body = |path: &str| {
        format!(
            "POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/x-www-form-urlencoded\r\n\
             Content-Length: 9000\r\n\r\nname=lead&password="
        )
    };
    let page = "GET /console.css HTTP/1.1\r\nHost: localhost\r\n\r\n";
    [
        ("silence", String::new()),
        ("a header without an end", "GET /healthz HTTP/1.1\r\nHost: localhost\r\nX-Slow: ".to_owned()),
        ("a form without an end", body("/sign-in")),
        ("a file without an end", body("/import")),
        ("a body for health", body("/healthz").replace("POST", "GET")),
        ("answers that no one reads", page.repeat(60)),
    ]
}

/// The admin port of a server.
#[derive(Clone, Copy)]
struct Port {
    address: SocketAddr,
}

fn serve() -> (Port, Site, Process) {
    // Each test opens a few thousand connections.
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("a limit");
    setrlimit(Resource::RLIMIT_NOFILE, soft.max(4096.min(hard)), hard).expect("a higher limit");
    let address = free_address();
    let site = Site::with(&admin(address, ""));
    let server = site.serve();
    (Port { address }, site, server)
}

impl Port {
    fn get(&self, from: IpAddr, path: &str) -> http::Answer {
        http::exchange(http::connect_from(from, self.address), "GET", path, &[], b"")
    }

    fn metric(&self, from: IpAddr, name: &str) -> u64 {
        let metrics = self.get(from, "/metrics").body;
        let value = metrics.lines().find_map(|line| line.strip_prefix(&format!("{name} ")));
        value.and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("no {name} in {metrics}"))
    }

    /// Opens a connection, sends `sent`, and returns the open connection.
    fn hold(&self, from: IpAddr, sent: &str) -> TcpStream {
        let mut stream = http::connect_from(from, self.address);
        // Because of the small buffer, the server cannot send the whole of a long answer.
        let _ = socket2::SockRef::from(&stream).set_recv_buffer_size(4096);
        // The write may fail, because the server has ended the connection or no longer reads.
        stream.set_write_timeout(Some(Duration::from_millis(1))).expect("a time-out");
        let _ = stream.write_all(sent.as_bytes());
        stream
    }
}

const PROBER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(127, 0, 0, 1));
const OPERATOR: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(127, 0, 0, 2));

fn stranger(number: usize) -> IpAddr {
    IpAddr::from([127, 9, (number / 250) as u8, 1 + (number % 250) as u8])
}

#[test]
fn health_pages_and_uploads_are_answered_while_strangers_hold_every_place() {
    let (port, _site, _server) = serve();
    let lead = Visitor::new(port.address, "lead");
    for (way, sent) in ways() {
        for (count, addresses) in [(140, 1), (1000, 1), (1000, 1000)] {
            let case = format!("{way}, {count} from {addresses} addresses");
            let held: Vec<_> =
                (0..count).map(|number| port.hold(stranger(number % addresses), &sent)).collect();
            // Probes come from an address of their own, and from a stranger's address, as they
            // would behind a NAT.
            for from in [PROBER, stranger(0)] {
                for (path, expected) in [("/healthz", "ok\n"), ("/readyz", "ready\n")] {
                    let answer = port.get(from, path);
                    assert_eq!((answer.status, answer.body.as_str()), (200, expected), "{case}");
                }
            }
            let places = port.metric(PROBER, "certdist_admin_connections");
            assert!(places <= 128, "{case}: {places}");
            assert_eq!(lead.get("/devices").status, 200, "{case}");
            let preview = lead.upload("good.csv", b"deviceId\nSN00000010\n", "lamp");
            assert!(preview.body.contains("1 device would be added"), "{case}: {}", preview.body);
            drop(held);
        }
    }
    let displaced = "certdist_admin_connections_dropped_total{reason=\"displaced\"}";
    assert!(port.metric(PROBER, displaced) > 1000);
}

/// Guard that ends the strangers' threads when dropped, even if the test fails.
#[derive(Default)]
struct Over(Arc<AtomicBool>);

impl Drop for Over {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn an_upload_that_takes_its_time_is_not_ended_for_strangers_who_come_meanwhile() {
    let (port, site, _server) = serve();
    let is_over = Over::default();
    let rows: String = (0..3000).map(|number| format!("SN-{number:08}\n")).collect();
    let body = http::multipart(&[("enrollment", "lamp")], ("x.csv", format!("deviceId\n{rows}").as_bytes()));
    let mut upload = http::connect_from(OPERATOR, port.address);
    let head = format!(
        "POST /import HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\n\
         Expect: 100-continue\r\n{}: {}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
        MULTIPART.0,
        MULTIPART.1,
        body.len()
    );
    upload.write_all(head.as_bytes()).expect("sent");
    // `100 Continue` shows that the upload is authenticated.
    let mut go_on = [0; 25];
    upload.read_exact(&mut go_on).expect("an answer");
    assert_eq!(&go_on, b"HTTP/1.1 100 Continue\r\n\r\n");
    thread::scope(move |scope| {
        // Strangers connect without a pause, from the operator's own network and from other
        // networks.
        let strangers = scope.spawn({
            let is_over = is_over.0.clone();
            move || {
                let mut held = std::collections::VecDeque::new();
                let sent = &ways()[2].1;
                let mut opened = 0;
                while !is_over.load(Ordering::Relaxed) {
                    let from = if opened % 2 == 0 { OPERATOR } else { stranger(opened % 7) };
                    held.push_back(port.hold(from, sent));
                    opened += 1;
                    if held.len() > 500 {
                        held.pop_front();
                    }
                }
                opened
            }
        });
        let displaced = "certdist_admin_connections_dropped_total{reason=\"displaced\"}";
        // After each part of the upload, the test waits until strangers have taken all places
        // again.
        for part in body.chunks(body.len() / 4) {
            upload.write_all(part).expect("the connection is there");
            let before = port.metric(PROBER, displaced);
            let deadline = Instant::now() + Duration::from_secs(300);
            while port.metric(PROBER, displaced) < before + 128 {
                assert!(Instant::now() < deadline, "strangers come too slowly for this test");
            }
        }
        let mut answer = String::new();
        upload.read_to_string(&mut answer).expect("an answer");
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        assert!(answer.contains("3,000 devices added"), "{answer}");
        drop(is_over);
        assert!(strangers.join().expect("it ended") > 1000);
    });
    let listed = site.run(&["device", "list", "--json", "--limit", "1"]);
    assert!(listed.status.success());
}

#[test]
fn slow_handshakes_hold_up_no_other() {
    let certified = rcgen::generate_simple_self_signed(["localhost".into()]).expect("a certificate");
    let address = free_address();
    let site = Site::with(&admin(address, "tls_certificate = \"cert.pem\"\ntls_key = \"key.pem\"\n"));
    site.write("cert.pem", &certified.cert.pem());
    site.write("key.pem", &certified.key_pair.serialize_pem());
    let (port, _server) = (Port { address }, site.serve());
    let config = http::tls_client(&[&certified]);
    for addresses in [1, 300] {
        // Strangers send only the beginning of a handshake record.
        let held: Vec<_> = (0..300)
            .map(|number| port.hold(stranger(number % addresses), "\x16\x03\x01\x02\x00\x01"))
            .collect();
        let name = "localhost".try_into().expect("a name");
        let connection = rustls::ClientConnection::new(config.clone(), name).expect("a connection");
        let stream = rustls::StreamOwned::new(connection, http::connect_from(PROBER, address));
        assert_eq!(http::exchange(stream, "GET", "/healthz", &[], b"").body, "ok\n");
        drop(held);
    }
}

#[test]
fn wrong_passwords_from_elsewhere_lock_out_neither_an_address_nor_a_known_browser() {
    let (port, site, server) = serve();
    let address = port.address;
    let [office, stranger] = [2, 3].map(|last| IpAddr::from([127, 0, 0, last]));
    let attempt = |from, name: &str, password: &str, known: Option<&str>| {
        sign_in_from(from, address, name, password, known)
    };
    let first = attempt(office, "lead", PASSWORD, None);
    let known = first.cookie("certdist-browser").expect("a cookie for the next time");
    assert!(
        first.headers("set-cookie").all(|cookie| cookie.contains("HttpOnly; SameSite=Strict")),
        "no script and no other site has it"
    );
    let tried = (0..12).map(|_| attempt(stranger, "lead", "wrong", None).status).collect::<Vec<_>>();
    assert_eq!(tried, [[401; 10].as_slice(), &[429; 2]].concat());
    assert_eq!(attempt(office, "lead", PASSWORD, None).status, 303, "another address");

    // Other people in the operator's office use up the attempts of the office's address.
    while attempt(office, "lead", "wrong", None).status != 429 {}
    assert_eq!(attempt(office, "lead", PASSWORD, None).status, 429);
    assert_eq!(attempt(office, "lead", PASSWORD, Some(&known)).status, 303);
    // The cookie is valid only for its user, and does not replace the password.
    while attempt(office, "guest", "wrong", Some(&known)).status != 429 {}
    assert_eq!(attempt(office, "lead", "wrong", Some(&known)).status, 401);

    // The server recognizes the browser after a restart, but not after the password was changed.
    assert_eq!(server.stop(), Some(0));
    let server = site.serve();
    let attempt = |password: &str| sign_in_from(office, address, "lead", password, Some(&known)).status;
    while sign_in_from(office, address, "lead", "wrong", None).status != 429 {}
    assert_eq!(attempt(PASSWORD), 303);
    let hash = certdist::password::hash(&Secret::new("another long password".into())).expect("a hash");
    reload(&site, &server, password_hash(), &hash, || attempt("another long password") == 429);
}

#[test]
fn a_host_of_the_configuration_is_a_name_and_no_address_of_a_page() {
    for wrong in ["https://console.example.com", "console.example.com:443", "", "a b", "*.example.com"] {
        let site = Site::with(&admin(free_address(), &format!("hosts = [\"{wrong}\"]\n")));
        let refused = site.run(&["check-config"]);
        assert_eq!(refused.status.code(), Some(2), "{wrong}");
        assert!(stderr(&refused).contains("[admin] hosts"), "{}", stderr(&refused));
        assert!(stderr(&refused).contains("such as \"console.example.com\""), "{}", stderr(&refused));
    }
}
