//! Tests of the console over HTTP: sign-in, roles, secrets that no page may show, and headers that
//! restrict browsers.

use std::{
    net::SocketAddr,
    process::Stdio,
    time::{Duration, Instant},
};

use crate::support::{
    MASTER, Process, SHARED_KEY, Site,
    console::{PASSWORD, TOKEN, VIEWER_TOKEN, Visitor, admin, free_address, password_hash, sign_in},
    http::{self, FORM, MULTIPART},
    stderr, stdout,
};
use certdist::device::Secret;

const SECRET: &str = "thedevicesecret00000000000000000";
const PSK: &str = "00112233445566778899aabbccddeeff";
const PAGES: [&str; 8] = [
    "/",
    "/live",
    "/devices",
    "/devices?q=SN",
    "/device?id=SN00000001",
    "/device?id=SN-NOBODY",
    "/enrollments",
    "/import",
];

pub(crate) struct Console {
    pub(crate) site: Site,
    pub(crate) server: Process,
    pub(crate) address: SocketAddr,
}

/// Starts a server with three devices and a console.
pub(crate) fn console() -> Console {
    let address = free_address();
    let site = Site::with(&format!(
        "{}[[enrollment]]\nname = \"own\"\nproduct_key = \"a1own\"\nkind = \"individual\"\n",
        admin(address, "")
    ));
    site.import(&format!(
        "deviceId,enrollment,deviceName,deviceSecret,pskIdentity,psk\nSN00000001,lamp,lamp-1,{SECRET},,\n\
         SN00000002,plug,,,,\n00:1a:2b:3c:4d:5e,own,,,identity-3,{PSK}\n"
    ));
    let server = site.serve();
    Console { site, server, address }
}

/// Changes the configuration, reloads the server, and waits until `is_read` returns true.
pub(crate) fn reload(site: &Site, server: &Process, from: &str, to: &str, is_read: impl Fn() -> bool) {
    let configuration = std::fs::read_to_string(site.path("certdist.toml")).expect("it is there");
    assert!(configuration.contains(from), "{configuration}");
    site.write("certdist.toml", &configuration.replacen(from, to, 1));
    server.signal("HUP");
    let deadline = Instant::now() + Duration::from_secs(10);
    while !is_read() {
        assert!(Instant::now() < deadline, "{to} is not taken over");
    }
}

impl Console {
    pub(crate) fn state(&self, id: &str) -> String {
        let shown = stdout(&self.site.run(&["device", "show", "--json", id]));
        let json: serde_json::Value = serde_json::from_str(&shown).unwrap_or_default();
        json["state"].as_str().unwrap_or("absent").to_owned()
    }

    fn bearer(&self, token: &str, method: &str, path: &str, fields: &[(&str, &str)]) -> http::Answer {
        let bearer = format!("Bearer {token}");
        let headers = [("Authorization", bearer.as_str()), ("Accept", "application/json"), FORM];
        http::send(self.address, method, path, &headers, &http::form(fields))
    }
}

#[test]
fn whoever_is_not_signed_in_sees_no_page_and_changes_nothing() {
    let console = console();
    for path in PAGES {
        let answer = http::send(console.address, "GET", path, &[], b"");
        let location = answer.header("location").to_owned();
        assert!(answer.status == 303 && location.starts_with("/sign-in"), "{path}: {location}");
        let forged = http::send(console.address, "GET", path, &[("Cookie", "certdist=AAAA")], b"");
        assert_eq!(forged.status, 303, "{path}");
    }
    for path in ["/device/disable", "/device/enable", "/device/reset", "/import/confirm", "/sign-out"] {
        let body = http::form(&[("id", "SN00000001"), ("csrf", "")]);
        let answer = http::send(console.address, "POST", path, &[FORM], &body);
        assert_eq!(answer.status, 401, "{path}");
    }
    let file = http::multipart(&[("csrf", ""), ("enrollment", "lamp")], ("x.csv", b"deviceId\nSN9\n"));
    assert_eq!(http::send(console.address, "POST", "/import", &[MULTIPART], &file).status, 401);
    assert_eq!(console.state("SN00000001"), "enabled");
    assert_eq!(console.state("SN9"), "absent");
}

#[test]
fn a_viewer_looks_and_an_operator_acts() {
    let console = console();
    let (lead, guest) = (Visitor::new(console.address, "lead"), Visitor::new(console.address, "guest"));
    for path in PAGES {
        let expected = if path.contains("NOBODY") { 404 } else { 200 };
        assert_eq!((lead.get(path).status, guest.get(path).status), (expected, expected), "{path}");
    }
    assert!(!guest.get("/device?id=SN00000001").body.contains("/device/disable"));
    let id = [("id", "SN00000001")];
    for path in ["/device/disable", "/device/enable", "/device/reset", "/import/confirm"] {
        assert_eq!(guest.post(path, &id).status, 403, "{path}");
    }
    assert_eq!(guest.upload("x.csv", b"deviceId\nSN9\n", "lamp").status, 403);
    assert_eq!(console.state("SN00000001"), "enabled");

    let answer = lead.change("disable", "SN00000001");
    assert_eq!(answer.status, 303);
    assert!(lead.get(answer.header("location")).body.contains("It is disabled."));
    assert_eq!(console.state("SN00000001"), "disabled");
    assert_eq!(lead.change("enable", "SN00000001").status, 303);
    assert_eq!(console.state("SN00000001"), "enabled");
    assert_eq!(lead.change("reset", "SN00000001").status, 303);
    assert_eq!(lead.post("/device/disable", &[("id", "SN-NOBODY")]).status, 404);
}

#[test]
fn a_form_of_another_site_changes_nothing() {
    let console = console();
    let (lead, other) = (Visitor::new(console.address, "lead"), Visitor::new(console.address, "lead"));
    for csrf in ["", "wrong", other.csrf.as_str()] {
        let fields = [("csrf", csrf), ("id", "SN00000001")];
        for path in ["/device/disable", "/device/reset", "/import/confirm", "/sign-out"] {
            assert_eq!(lead.post_as_is(path, &fields).status, 403, "{path} with {csrf:?}");
        }
        let file = http::multipart(&[("csrf", csrf)], ("x.csv", b"deviceId\nSN9\n"));
        let headers = [("Cookie", lead.cookie.as_str()), MULTIPART];
        assert_eq!(http::send(lead.address, "POST", "/import", &headers, &file).status, 403);
    }
    // The form has the file before the CSRF token, so the server must not read the file.
    let mut swapped = http::multipart(&[], ("x.csv", b"deviceId\nSN9\n"));
    swapped.truncate(swapped.len() - "--xxBOUNDARYxx--\r\n".len());
    swapped.extend(http::multipart(&[("csrf", &lead.csrf)], ("y.csv", b"deviceId\nSN9\n")));
    let headers = [("Cookie", lead.cookie.as_str()), MULTIPART];
    assert_eq!(http::send(lead.address, "POST", "/import", &headers, &swapped).status, 403);
    for path in ["/device/disable?id=SN00000001", "/sign-out"] {
        assert_eq!(lead.get(path).status, 405, "a link changes nothing");
    }
    assert_eq!(console.state("SN00000001"), "enabled");
    assert_eq!(lead.get("/").status, 200, "still signed in");
}

#[test]
fn browsers_are_told_to_be_strict_on_every_answer() {
    let console = console();
    let lead = Visitor::new(console.address, "lead");
    let more = ["/console.css", "/console.js", "/icon.svg", "/healthz", "/metrics", "/nowhere", "/sign-in"];
    for path in PAGES.iter().chain(&more) {
        let answer = lead.get(path);
        let policy = answer.header("content-security-policy");
        assert!(
            policy.starts_with("default-src 'none'") && policy.contains("frame-ancestors 'none'"),
            "{path}"
        );
        assert!(!policy.contains("unsafe"), "{policy}");
        for (name, value) in [
            ("x-content-type-options", "nosniff"),
            ("referrer-policy", "no-referrer"),
            ("cache-control", "no-store"),
            ("x-frame-options", "DENY"),
        ] {
            assert_eq!(answer.header(name), value, "{path}: {name}");
        }
        // The pages contain nothing that the content security policy would block.
        for inline in ["<style", " style=", "onclick=", "<script>"] {
            assert!(!answer.body.contains(inline), "{path}: {inline}");
        }
        for elsewhere in ["href=\"http", "src=\"http", "src=\"//"] {
            assert!(!answer.body.contains(elsewhere), "{path}: an asset from elsewhere");
        }
    }
}

#[test]
fn a_page_of_another_site_reads_nothing_under_its_own_name() {
    let console = console();
    let Console { site, server, address } = &console;
    let lead = Visitor::new(*address, "lead");
    let as_host = |host: &str, path: &str| {
        http::send(*address, "GET", path, &[("Cookie", &lead.cookie), ("Host", host)], b"")
    };
    for path in PAGES.iter().chain(&["/metrics", "/sign-in", "/console.js", "/nowhere"]) {
        let answer = as_host("rebound.example", path);
        assert_eq!(answer.status, 421, "{path}");
        assert!(answer.body.contains("hosts = [\"rebound.example\"]"), "what to do: {}", answer.body);
        assert_eq!(answer.header("x-content-type-options"), "nosniff");
    }
    assert_eq!(as_host("<script>", "/").status, 400);
    // Load balancers may check the health under any host name.
    let other = rusqlite::Connection::open(site.path("certdist.db")).expect("the database");
    for host in ["rebound.example", "<script>"] {
        assert_eq!((as_host(host, "/healthz").status, as_host(host, "/readyz").status), (200, 200), "{host}");
    }
    other.execute_batch("BEGIN IMMEDIATE").expect("locked");
    let deadline = Instant::now() + Duration::from_secs(20);
    while as_host("localhost", "/readyz").status == 200 {
        assert!(Instant::now() < deadline, "it stays ready");
    }
    let told = as_host("rebound.example", "/readyz");
    assert!(told.status == 503 && !told.body.contains("database"), "{}", told.body);
    other.execute_batch("ROLLBACK").expect("unlocked");

    let known = ["localhost:1", "127.0.0.1", "[::1]:9684", &address.to_string()].map(str::to_owned);
    let machine = std::fs::read_to_string("/proc/sys/kernel/hostname").expect("the machine's name");
    for host in known.iter().map(String::as_str).chain([machine.trim()]) {
        assert_eq!(as_host(host, "/").status, 200, "{host}");
    }
    let hosts = "[admin]\nhosts = [\"rebound.example\"]\n";
    reload(site, server, "[admin]\n", hosts, || as_host("rebound.example", "/").status == 200);
    assert_eq!(as_host("other.example", "/").status, 421);
}

#[test]
fn no_secret_is_on_any_page() {
    let console = console();
    let lead = Visitor::new(console.address, "lead");
    let csv = format!(
        "deviceId,enrollment,deviceName,deviceSecret\nSN00000001,lamp,lamp-1,{SECRET}\nSN7,lamp,lamp-7,7{}\n",
        &SECRET[1..]
    );
    let mut pages: Vec<String> = PAGES.iter().map(|path| lead.get(path).body).collect();
    pages.push(lead.get("/device?id=001A2B3C4D5E").body);
    pages.push(lead.upload("x.csv", csv.as_bytes(), "").body);
    pages.push(lead.upload("x.csv", csv.replace("SN7", "SN 7").as_bytes(), "").body);
    pages.push(lead.upload("x.csv", csv.replace(SECRET, &SECRET.replace('0', "1")).as_bytes(), "").body);
    pages.push(console.bearer(TOKEN, "GET", "/device?id=SN00000001", &[]).body);
    pages.push(lead.get("/metrics").body);
    assert!(pages.iter().any(|page| page.contains("SN00000001")));
    for page in pages {
        for secret in
            [SECRET, PSK, MASTER, SHARED_KEY, &hex::encode(SHARED_KEY), PASSWORD, password_hash(), TOKEN]
        {
            assert!(!page.contains(secret), "a secret is in {page}");
        }
    }
}

#[test]
fn what_comes_from_outside_is_text_and_never_markup() {
    let console = console();
    let lead = Visitor::new(console.address, "lead");
    let script = "<script>alert(1)</script>";
    let pages = [
        lead.get("/devices?q=%3Cscript%3Ealert(1)%3C%2Fscript%3E").body,
        lead.get("/device?id=%3Cscript%3Ealert(1)%3C%2Fscript%3E").body,
        lead.upload(script, format!("deviceId\n{script}\n").as_bytes(), "lamp").body,
        lead.upload(script, b"deviceId\nSN9\n", script).body,
        sign_in(console.address, script, "wrong").body,
    ];
    for page in pages {
        assert!(!page.contains("<script>"), "{page}");
    }
}

#[test]
fn devices_are_found_by_their_id_and_its_beginning_page_by_page() {
    let console = console();
    let mut csv = String::from("deviceId,enrollment\n");
    (0..120).for_each(|number| csv.push_str(&format!("PAGED-{number:03},lamp\n")));
    console.site.import(&csv);
    let lead = Visitor::new(console.address, "lead");
    let found = |path: &str| lead.get(path).body.matches("class=\"id\"").count();
    assert_eq!(lead.get("/devices?q=PAGED-007").header("location"), "/device?id=PAGED%2D007");
    assert_eq!(found("/devices?q=PAGED-01"), 10);
    assert_eq!(found("/devices?q=paged"), 0);
    assert_eq!(found("/devices?q=00:1a"), 1, "a MAC address in any spelling");
    let first = lead.get("/devices?q=PAGED-").body;
    assert_eq!(first.matches("class=\"id\"").count(), 50);
    let next = first.split_once("/devices?q=PAGED%2D&amp;after=").expect("a next page").1;
    assert!(next.starts_with("PAGED%2D049\""), "{next}");
    assert_eq!(found("/devices?q=PAGED%2D&after=PAGED%2D049"), 50);
    let last = lead.get("/devices?q=PAGED%2D&after=PAGED%2D099").body;
    assert_eq!(last.matches("class=\"id\"").count(), 20);
    assert!(!last.contains("rel=\"next\""), "there is no more");
}

#[test]
fn a_serial_number_that_looks_like_a_mac_is_shown_and_changed() {
    let address = free_address();
    let site = Site::with(&admin(address, ""));
    let server = site.serve();
    // The row is inserted with SQL, because an import would write this ID in the form of a MAC
    // address.
    let table = rusqlite::Connection::open(site.path("certdist.db")).expect("the database");
    let insert =
        "INSERT INTO device_table (deviceId, productKey, enrollment) VALUES ('a1b2c3d4e5f6', 'a1', 'lamp')";
    table.execute(insert, ()).expect("inserted");
    let lead = Visitor::new(address, "lead");
    assert!(lead.get("/devices?q=a1b2").body.contains("id=a1b2c3d4e5f6"));
    assert_eq!(lead.get("/device?id=a1b2c3d4e5f6").status, 200);
    assert_eq!(lead.change("disable", "a1b2c3d4e5f6").status, 303);
    let query = "SELECT state FROM device_table WHERE deviceId = 'a1b2c3d4e5f6'";
    let state: String = table.query_row(query, (), |row| row.get(0)).expect("a row");
    assert_eq!(state, "disabled");
    assert_eq!(server.stop(), Some(0));
}

#[test]
fn an_enrollment_shows_how_far_its_devices_are() {
    let console = console();
    let lead = Visitor::new(console.address, "lead");
    let page = lead.get("/enrollments").body;
    for name in ["lamp", "plug", "own"] {
        assert!(page.contains(&format!("<h2><bdi>{name}</bdi></h2>")), "{page}");
    }
    assert!(page.contains("aria-label=\"lamp: Registered\" value=\"1\" max=\"1\""), "{page}");
    assert!(page.contains("aria-label=\"plug: Registered\" value=\"0\" max=\"1\""), "{page}");
}

#[test]
fn a_script_does_with_its_token_what_its_role_allows() {
    let console = console();
    let id = [("id", "SN00000001")];
    let device = console.bearer(VIEWER_TOKEN, "GET", "/device?id=SN00000001", &[]);
    let json: serde_json::Value = serde_json::from_str(&device.body).expect("JSON");
    assert_eq!((&json["deviceId"], &json["hasCertificate"]), (&"SN00000001".into(), &true.into()));
    let overview = console.bearer(VIEWER_TOKEN, "GET", "/", &[]);
    assert!(overview.body.contains("\"breakersOpen\":0"), "{}", overview.body);
    assert_eq!(console.bearer(VIEWER_TOKEN, "POST", "/device/disable", &id).status, 403);
    assert_eq!(console.state("SN00000001"), "enabled");
    assert_eq!(console.bearer(TOKEN, "POST", "/device/disable", &id).body, "SN00000001: disable\n");
    assert_eq!(console.state("SN00000001"), "disabled");
    assert_eq!(console.bearer("wrong", "GET", "/", &[]).status, 401);

    let import = |fields: &[(&str, &str)], csv: &[u8]| {
        let bearer = format!("Bearer {TOKEN}");
        let body = http::multipart(fields, ("x.csv", csv));
        http::send(console.address, "POST", "/import", &[("Authorization", &bearer), MULTIPART], &body)
    };
    let dry = import(&[("enrollment", "lamp"), ("dry_run", "yes")], b"deviceId\nSN9\n");
    assert_eq!(dry.body, "1 devices would be added, 0 would be changed, 0 unchanged\n");
    assert_eq!(console.state("SN9"), "absent");
    let done = import(&[("enrollment", "lamp")], b"deviceId\nSN9\n").body;
    let undo = "1 devices added, 0 changed, 0 unchanged\nnote: to undo this import: certdist import undo ";
    assert!(done.starts_with(undo), "{done}");
    assert_eq!(console.state("SN9"), "enabled");
    let bad = import(&[("enrollment", "lamp")], b"deviceId\nSN 9\n");
    assert!(bad.status == 422 && bad.body.contains("line 2, column deviceId"), "{}", bad.body);
}

#[test]
fn beyond_this_machine_the_console_takes_tls_or_a_word() {
    let site = |keys: &str| Site::with(&admin("0.0.0.0:0".parse().expect("an address"), keys));
    let refused = site("").run(&["check-config"]);
    assert_eq!(refused.status.code(), Some(2));
    assert!(
        stderr(&refused)
            .contains("expected a loopback address, or tls_certificate and tls_key, or exposed = true")
    );
    assert!(site("exposed = true\n").run(&["check-config"]).status.success());
    let half = site("tls_certificate = \"a.pem\"\n").run(&["check-config"]);
    assert!(stderr(&half).contains("expected both tls_certificate and tls_key"));
    let missing = site("tls_certificate = \"a.pem\"\ntls_key = \"b.pem\"\n").run(&["check-config"]);
    assert!(
        stderr(&missing).contains("tls_certificate") && stderr(&missing).contains("a.pem"),
        "{}",
        stderr(&missing)
    );
}

#[test]
fn over_tls_cookies_are_for_tls_only_and_a_renewed_certificate_is_taken_over() {
    let certify = |_| rcgen::generate_simple_self_signed(["localhost".into()]).expect("a certificate");
    let [first, renewed] = [(); 2].map(certify);
    let address = free_address();
    let site = Site::with(&admin(address, "tls_certificate = \"cert.pem\"\ntls_key = \"key.pem\"\n"));
    let install = |certified: &rcgen::CertifiedKey| {
        site.write("cert.pem", &certified.cert.pem());
        site.write("key.pem", &certified.key_pair.serialize_pem());
    };
    install(&first);
    let server = site.serve();
    let config = http::tls_client(&[&first, &renewed]);
    let connect = || {
        let connection =
            rustls::ClientConnection::new(config.clone(), "localhost".try_into().expect("a name"));
        let stream = std::net::TcpStream::connect(address).expect("it listens");
        rustls::StreamOwned::new(connection.expect("a connection"), stream)
    };
    let send = |method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]| {
        http::exchange(connect(), method, path, headers, body)
    };
    assert_eq!(send("GET", "/healthz", &[], b"").body, "ok\n");
    let form = send("GET", "/sign-in", &[], b"");
    let cookie = format!("certdist-form={}", form.cookie("certdist-form").expect("a cookie"));
    let fields = http::form(&[("csrf", &form.field("csrf")), ("name", "lead"), ("password", PASSWORD)]);
    let answer = send("POST", "/sign-in", &[("Cookie", &cookie), FORM], &fields);
    assert!(answer.cookie("__Host-certdist").is_some() && answer.header("set-cookie").contains("; Secure"));

    let is_greeted_with = |certified: &rcgen::CertifiedKey| {
        let mut stream = connect();
        while stream.conn.is_handshaking() {
            stream.conn.complete_io(&mut stream.sock).expect("a handshake");
        }
        stream.conn.peer_certificates().expect("a certificate")[0] == *certified.cert.der()
    };
    assert!(is_greeted_with(&first));
    install(&renewed);
    reload(&site, &server, "", "", || is_greeted_with(&renewed));
}

#[test]
fn without_a_user_the_console_is_off_and_says_how_to_turn_it_on() {
    let address = free_address();
    let site = Site::with(&format!("[admin]\nlisten = \"{address}\"\n"));
    let _server = site.serve();
    let page = http::send(address, "GET", "/", &[], b"");
    assert!(page.body.contains("certdist admin hash-password"), "{}", page.body);
    assert_eq!(http::send(address, "GET", "/devices", &[], b"").status, 404);
}

#[test]
fn a_password_is_hashed_from_standard_input_and_a_token_is_made() {
    use std::io::Write;
    let site = Site::new();
    let hash = |password: &str| {
        let mut command = site.certdist(&["admin", "hash-password"]);
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("it runs");
        child.stdin.take().expect("its input").write_all(password.as_bytes()).expect("written");
        child.wait_with_output().expect("its output")
    };
    let output = hash(&format!("{PASSWORD}\n"));
    let (line, address) = (stdout(&output).trim().to_owned(), free_address());
    assert!(line.starts_with("$argon2id$"), "{line}");
    let short = hash("short\n");
    assert_eq!(short.status.code(), Some(2));
    assert!(stderr(&short).contains("at least 12 characters"));

    let made = stdout(&site.run(&["admin", "new-token"]));
    let (token, hash) = made.trim().split_once('\n').expect("two lines");
    let (token, hash) = (token.trim_start_matches("token "), hash.trim_start_matches("hash  "));
    let site = Site::with(&format!(
        "[admin]\nlisten = \"{address}\"\n[[admin.user]]\nname = \"eve\"\npassword_hash = \"{line}\"\nrole = \"viewer\"\n\
         [[admin.token]]\nname = \"t\"\nhash = \"{hash}\"\nrole = \"viewer\"\n"
    ));
    let _server = site.serve();
    assert_eq!(sign_in(address, "eve", PASSWORD).status, 303);
    let bearer = format!("Bearer {token}");
    assert_eq!(http::send(address, "GET", "/", &[("Authorization", &bearer)], b"").status, 200);
}

#[test]
fn what_somebody_has_changed_is_in_the_log_with_their_name() {
    let address = free_address();
    let site = Site::with(&admin(address, ""));
    site.import("deviceId,enrollment\nSN00000001,lamp\n");
    let log = std::fs::File::create(site.path("log")).expect("a log");
    let server = Process::start(site.certdist(&["serve"]).stderr(Stdio::from(log)));
    let lead = Visitor::new(address, "lead");
    lead.change("disable", "SN00000001");
    sign_in(address, "lead", "wrong-password-here");
    let begun = Instant::now();
    assert_eq!(server.stop(), Some(0));
    assert!(begun.elapsed() < Duration::from_secs(10), "an open port holds nobody up");
    let log = std::fs::read_to_string(site.path("log")).expect("the log");
    let changed = log.lines().find(|line| line.contains("changed in the console")).expect("a line");
    assert!(
        changed.contains("SN00000001") && changed.contains("user=\"lead\"") && changed.contains("disable"),
        "{changed}"
    );
    assert!(log.contains("could not sign in") && !log.contains("wrong-password-here"), "{log}");
}

#[test]
fn the_audit_log_names_whoever_has_changed_something_in_the_console() {
    let console = console();
    let lead = Visitor::new(console.address, "lead");
    let id = [("id", "SN00000001")];
    assert_eq!(lead.change("disable", "SN00000001").status, 303);
    assert_eq!(lead.change("reset", "SN00000001").status, 303);
    let good = lead.upload("batch-9.csv", b"deviceId\nSN00000001\nSN00000010\n", "lamp");
    assert_eq!(lead.post("/import/confirm", &[("upload", &good.field("upload"))]).status, 303);
    assert_eq!(console.bearer(TOKEN, "POST", "/device/enable", &id).status, 200);
    let body = http::multipart(&[], ("x.csv", b"deviceId,enrollment\nSN11,lamp\nSN12,plug\n"));
    let bearer = format!("Bearer {TOKEN}");
    let headers = [("Authorization", bearer.as_str()), MULTIPART];
    assert_eq!(http::send(console.address, "POST", "/import", &headers, &body).status, 200);
    assert!(console.site.run(&["device", "delete", "SN00000002", "--yes"]).status.success());

    let exported = stdout(&console.site.run(&["audit", "export"]));
    let told = exported.lines().skip(1).map(|line| {
        let entry: serde_json::Value = serde_json::from_str(line).expect("JSON");
        let text = |key: &str| entry[key].as_str().unwrap_or("-").to_owned();
        ["event", "who", "address", "enrollment", "detail"].map(text).join(" | ")
    });
    let told: Vec<String> = told.collect();
    let expected = [
        "disabled | console:lead | 127.0.0.1 | - | -",
        "reset | console:lead | 127.0.0.1 | - | -",
        "imported | console:lead | 127.0.0.1 | lamp | batch-9.csv: 1 devices added, 0 changed, 1 unchanged",
        "enabled | token:ci | 127.0.0.1 | - | -",
        "imported | token:ci | 127.0.0.1 | - | x.csv: 2 devices added, 0 changed, 0 unchanged, in lamp, plug",
    ];
    assert_eq!(told[..5], expected);
    // The audit entry of the change on the command line names the system user.
    assert!(told[5].starts_with("deleted | ") && told[5].contains("(uid "), "{}", told[5]);
    assert!(stdout(&console.site.run(&["audit", "verify"])).contains("complete"));
    let page = lead.get("/device?id=SN00000001").body;
    assert!(
        page.contains("<b>disabled</b> · by <bdi>console:lead</bdi> · from <bdi>127.0.0.1</bdi>"),
        "{page}"
    );
}

#[test]
fn enrollments_that_are_read_anew_are_in_the_console() {
    let address = free_address();
    let site = Site::with(&admin(address, ""));
    let server = site.serve();
    let lead = Visitor::new(address, "lead");
    assert!(!lead.get("/enrollments").body.contains("<h2><bdi>later</bdi></h2>"));
    let offered = || lead.get("/import").body.contains("value=\"later\"");
    let later = "[[enrollment]]\nname = \"later\"\nproduct_key = \"a1later\"\nkind = \"individual\"\n";
    reload(&site, &server, "[[enrollment]]", &format!("{later}[[enrollment]]"), offered);
    assert!(lead.get("/enrollments").body.contains("<h2><bdi>later</bdi></h2>"));
}

#[test]
fn a_user_who_is_gone_or_changed_is_out_as_soon_as_the_configuration_is_read() {
    let console = console();
    let Console { site, server, address } = &console;
    let (lead, guest) = (Visitor::new(*address, "lead"), Visitor::new(*address, "guest"));
    let upload = lead.upload("batch.csv", b"deviceId\nSN00000010\n", "lamp").field("upload");
    let id = [("id", "SN00000001")];

    reload(site, server, "name = \"lead\"", "name = \"chief\"", || lead.get("/").status == 303);
    assert_eq!(lead.post("/device/disable", &id).status, 401);
    assert_eq!(lead.post("/import/confirm", &[("upload", &upload)]).status, 401);
    assert_eq!(sign_in(*address, "lead", PASSWORD).status, 401);
    assert_eq!(
        (console.state("SN00000001"), console.state("SN00000010")),
        ("enabled".into(), "absent".into())
    );
    assert_eq!(guest.get("/").status, 200, "who has not changed stays");
    let chief = Visitor::new(*address, "chief");
    assert_eq!(chief.change("disable", "SN00000001").status, 303);

    // A session that has ended stays ended when its user is added again.
    reload(site, server, "name = \"chief\"", "name = \"lead\"", || chief.get("/").status == 303);
    assert_eq!((lead.get("/").status, guest.get("/").status), (303, 200));

    let (viewer, operator) = ("role = \"viewer\"", "role = \"operator\"");
    reload(site, server, viewer, operator, || guest.get("/").status == 303);
    let guest = Visitor::new(*address, "guest");
    assert_eq!(guest.change("enable", "SN00000001").status, 303);

    let (password, lead) = ("another long password", Visitor::new(*address, "lead"));
    let hash = certdist::password::hash(&Secret::new(password.into())).expect("a hash");
    reload(site, server, password_hash(), &hash, || lead.get("/").status == 303);
    assert_eq!(sign_in(*address, "lead", PASSWORD).status, 401);
    assert_eq!(sign_in(*address, "lead", password).status, 303);
}

#[test]
fn tokens_are_those_of_the_configuration_that_was_read_last() {
    let console = console();
    let Console { site, server, address } = &console;
    let looks = |token: &str| console.bearer(token, "GET", "/", &[]).status;
    let configuration = std::fs::read_to_string(site.path("certdist.toml")).expect("it is there");
    let token = configuration.split_once("[[admin.token]]").expect("a token").1;
    let ci = format!("[[admin.token]]{}", token.split_once("[[").expect("another").0);
    assert_eq!((looks(TOKEN), looks(VIEWER_TOKEN)), (200, 200));
    reload(site, server, &ci, "", || looks(TOKEN) == 401);
    assert_eq!(looks(VIEWER_TOKEN), 200);

    // Before this reload, requests for health and metrics from this machine need no token.
    let metrics = || http::send(*address, "GET", "/metrics", &[], b"").status;
    assert_eq!(metrics(), 200);
    reload(site, server, "[admin]\n", "[admin]\nrequire_token = true\n", || metrics() == 401);
    let bearer = format!("Bearer {VIEWER_TOKEN}");
    assert_eq!(http::send(*address, "GET", "/metrics", &[("Authorization", &bearer)], b"").status, 200);
}

#[test]
fn a_console_is_turned_on_and_off_by_its_users_while_the_server_runs() {
    let address = free_address();
    let (off, on) = (format!("[admin]\nlisten = \"{address}\"\n"), admin(address, ""));
    let site = Site::with(&off);
    let server = site.serve();
    let sign_in_page = || http::send(address, "GET", "/sign-in", &[], b"").status;
    assert_eq!(sign_in_page(), 404);
    reload(&site, &server, &off, &on, || sign_in_page() == 200);
    let lead = Visitor::new(address, "lead");
    // When the section is removed, the port stays open until a restart, but no user can sign in.
    reload(&site, &server, &on, "", || sign_in_page() == 404);
    assert_eq!(lead.get("/devices").status, 404);
    assert!(lead.get("/").body.contains("No user can sign in yet"));
}
