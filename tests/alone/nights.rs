//! Nights in which an operator is called by the factory. Each test brings about one fault with real
//! processes, and checks in a browser what the console says about its cause, its beginning, the
//! devices concerned and the remedy. Screenshots in three languages are in `target/screenshots`.

use std::{
    net::SocketAddr,
    process::{Child, Stdio},
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::{
    alone,
    support::{
        Process, SHARED_IDENTITY, SHARED_KEY, Site,
        console::{VIEWER_TOKEN, admin, free_address},
        http, stderr, stdout,
        webdriver::{Browser, axe, keep_for_documents, pictures},
    },
};

/// A site whose secrets are sealed, so that a healthy one has no concern, and its server.
struct Night {
    site: Site,
    console: SocketAddr,
    server: Option<Process>,
    devices: Vec<Child>,
}

impl Drop for Night {
    fn drop(&mut self) {
        for device in &mut self.devices {
            let _ = device.kill();
            let _ = device.wait();
        }
    }
}

impl Night {
    /// Starts a server with a cloud at this endpoint. The table has the devices `LAMP-1` to `LAMP-9` and
    /// `PLUG-1` to `PLUG-9`.
    fn begin(endpoint: SocketAddr) -> Self {
        let console = free_address();
        let site = Site::with(&format!(
            "database_key = \"file:database.key\"\n[limits]\npatience = 2\n{}[iot_platform]\n\
             endpoint = \"http://{endpoint}\"\nregion = \"cn-shanghai\"\nqps = 1000\n",
            admin(console, "")
        ));
        site.write("database.key", &"5a".repeat(32));
        let mut csv = String::from("deviceId,enrollment\n");
        (1..=9).for_each(|number| csv.push_str(&format!("LAMP-{number},lamp\nPLUG-{number},plug\n")));
        site.import(&csv);
        let server = Some(site.serve());
        Self { site, console, server, devices: Vec::new() }
    }

    /// Powers on a device that asks for the certificate of `sn` with the key of `identity`.
    fn power_on(&mut self, identity: &str, psk: &str, sn: &str) {
        let address = self.server.as_ref().expect("a server").address.to_string();
        let arguments =
            ["device-sim", "--server", &address, "--identity", identity, "--sn", sn, "--patience", "120"];
        let mut device = self.site.certdist(&arguments);
        device.env("CERTDIST_DEVICE_PSK", psk).stdout(Stdio::null()).stderr(Stdio::null());
        self.devices.push(device.spawn().expect("a device"));
    }

    fn power_on_lamp(&mut self, sn: &str) {
        let key = self.site.run(&["key", "new", "--derive", sn, "--enrollment", "lamp"]);
        assert!(key.status.success(), "{}", stderr(&key));
        self.power_on(sn, stdout(&key).trim(), sn);
    }

    fn power_on_plug(&mut self, sn: &str) {
        self.power_on(SHARED_IDENTITY, &hex::encode(SHARED_KEY), sn);
    }

    /// Returns the overview as a script gets it.
    fn overview(&self) -> Value {
        let bearer = format!("Bearer {VIEWER_TOKEN}");
        let headers = [("Authorization", bearer.as_str()), ("Accept", "application/json")];
        let answer = http::send(self.console, "GET", "/", &headers, b"");
        serde_json::from_str(&answer.body).unwrap_or_else(|error| panic!("{error}: {}", answer.body))
    }

    /// Waits until a condition of the overview holds.
    fn until(&self, what: &str, holds: impl Fn(&Value) -> bool) -> Value {
        let deadline = Instant::now() + Duration::from_secs(90);
        loop {
            let overview = self.overview();
            if holds(&overview) {
                return overview;
            }
            assert!(Instant::now() < deadline, "{what}: {overview:#}");
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Waits for a concern about at least this many devices.
    fn concern(&self, subject: &str, devices: u64) -> Value {
        let of = |overview: &Value| {
            let all = overview["concerns"].as_array().cloned().unwrap_or_default();
            all.into_iter().find(|concern| concern["subject"] == subject)
        };
        let is_there = |overview: &Value| {
            of(overview).is_some_and(|concern| devices == 0 || concern["devices"].as_u64() >= Some(devices))
        };
        let overview = self.until(subject, is_there);
        of(&overview).expect("it is there")
    }
}

fn subjects(overview: &Value) -> Vec<&str> {
    let all = overview["concerns"].as_array().into_iter().flatten();
    all.filter_map(|concern| concern["subject"].as_str()).collect()
}

struct Eyes {
    browser: Browser,
    axe: String,
}

impl Eyes {
    fn open() -> Self {
        Self { browser: Browser::start(), axe: axe() }
    }

    fn sign_in(&self, night: &Night, name: &str) {
        self.browser.show(1100, 800, false, true);
        self.browser.open(&format!("http://{}/", night.console));
        self.browser.sign_in(name);
        self.browser.find("#live");
    }

    /// Looks at a page in each language, and checks that axe finds nothing wrong. The English page
    /// must contain `words`, and the others must not be in English.
    fn look(&self, night: &Night, name: &str, path: &str, words: &[&str]) {
        let pictures = pictures();
        for language in ["ja", "zh-CN", "en"] {
            let back = path.replace('/', "%2F").replace('?', "%3F").replace('=', "%3D").replace('&', "%26");
            self.browser.open(&format!("http://{}/language?to={language}&back={back}", night.console));
            self.browser.find("main h1");
            let text = self.browser.text();
            for word in words {
                assert_eq!(text.contains(word), language == "en", "{name}, {language}: {word}:\n{text}");
            }
            let found = self.browser.violations(&self.axe);
            assert!(found.is_empty(), "{name}, {language}: {found:#?}");
            let picture = pictures.join(format!("night-{name}-{language}.png"));
            self.browser.picture(&picture);
            if name == "cloud-down" {
                keep_for_documents(&picture);
            }
        }
    }

    fn wait_for(&self, text: &str) {
        self.browser.wait_for(text);
    }
}

#[test]
fn the_cloud_is_down_and_comes_back() {
    let _alone = alone();
    let cloud = Site::new();
    let simulator = cloud.simulator(&[]);
    let endpoint = simulator.address;
    let mut night = Night::begin(endpoint);
    night.power_on_lamp("LAMP-1");
    night.until("served", |overview| overview["lastHour"]["served"] == 1);
    assert_eq!(subjects(&night.overview()), [""; 0]);
    // At first, IoT Platform accepts calls and does not answer them.
    simulator.signal("STOP");
    night.power_on_lamp("LAMP-5");
    let slow = night.concern("cloud-slow", 1);
    assert_eq!(slow["severity"], "warning", "{slow}");
    simulator.kill();
    for number in 2..=4 {
        night.power_on_lamp(&format!("LAMP-{number}"));
    }
    night.until("it is certain", |overview| {
        let all = overview["concerns"].as_array().into_iter().flatten();
        all.into_iter().any(|one| one["subject"] == "cloud-silent" && one["severity"] == "bad")
    });
    let concern = night.concern("cloud-silent", 4);
    assert!(concern["since"].is_string(), "{concern}");
    let eyes = Eyes::open();
    eyes.sign_in(&night, "guest");
    let words = [
        "IoT Platform cannot be reached",
        "since 20",
        "4 devices",
        "not the devices",
        "check its network, DNS, firewall and proxy",
        "those with a certificate are served",
    ];
    eyes.look(&night, "cloud-down", "/", &words);
    assert!(!eyes.browser.text().contains("All is well"));
    eyes.look(
        &night,
        "cloud-down-devices",
        "/failures?reason=waiting",
        &["No certificate from IoT Platform in time"],
    );

    // The cloud comes back, the registrations go on by themselves, and the devices ask again.
    let _simulator = Process::start(&mut cloud.certdist(&["simulator", "--listen", &endpoint.to_string()]));
    night.until("no call fails", |overview| !subjects(overview).contains(&"cloud-silent"));
    night.until("all are registered", |overview| overview["registrations"] == 0);
    for number in 2..=5 {
        night.power_on_lamp(&format!("LAMP-{number}"));
    }
    night.until("all are served", |overview| overview["lastHour"]["served"].as_u64() >= Some(5));
    // The devices that were put off have been served since, so that they are no concern any more.
    let overview = night.overview();
    assert!(overview["lastHour"]["later"].as_u64() > Some(0), "{overview:#}");
    for subject in ["queue", "not-back", "cloud-silent", "cloud-slow"] {
        assert!(!subjects(&overview).contains(&subject), "{overview:#}");
    }
}

#[test]
fn the_access_key_is_wrong() {
    let _alone = alone();
    let cloud = Site::new();
    let mut simulator = cloud.certdist(&["simulator", "--listen", "127.0.0.1:0"]);
    let simulator = Process::start(simulator.env("ALIBABA_CLOUD_ACCESS_KEY_SECRET", "another-secret"));
    let mut night = Night::begin(simulator.address);
    night.power_on_lamp("LAMP-1");
    night.power_on_plug("PLUG-1");
    let concern = night.concern("cloud-account", 2);
    assert_eq!(concern["code"], "SignatureDoesNotMatch");
    let eyes = Eyes::open();
    eyes.sign_in(&night, "guest");
    let words = [
        "IoT Platform refuses the access key of this server",
        "2 devices",
        "access key ID and access key secret do not match",
        "a changed file by itself",
    ];
    eyes.look(&night, "key-wrong", "/", &words);
    assert!(eyes.browser.text().contains("SignatureDoesNotMatch"));
    eyes.look(&night, "key-wrong-device", "/device?id=LAMP-1", &["In the table"]);
}

#[test]
fn a_product_is_missing() {
    let _alone = alone();
    let cloud = Site::new();
    let simulator = cloud.simulator(&["--product", "a1lamp"]);
    let mut night = Night::begin(simulator.address);
    night.power_on_lamp("LAMP-1");
    night.power_on_plug("PLUG-1");
    let concern = night.concern("cloud-product", 1);
    assert_eq!((&concern["names"], &concern["devices"]), (&json!(["a1plug"]), &json!(1)));
    night.until("the other product is served", |overview| overview["lastHour"]["served"] == 1);
    let eyes = Eyes::open();
    eyes.sign_in(&night, "guest");
    let words = ["IoT Platform refuses the product", "1 device", "product_key of the enrollment is wrong"];
    eyes.look(&night, "product-missing", "/", &words);
    assert!(eyes.browser.text().contains("a1plug"));
}

#[test]
fn devices_have_the_key_of_another_enrollment_and_strangers_knock() {
    let _alone = alone();
    let cloud = Site::new();
    let simulator = cloud.simulator(&[]);
    let mut night = Night::begin(simulator.address);
    night.power_on_plug("LAMP-1");
    night.power_on_plug("STRANGER-1");
    night.power_on_plug("STRANGER-2");
    night.power_on("LAMP-2", &hex::encode("a wrong key here"), "LAMP-2");
    let concern = night.concern("wrong-enrollment", 1);
    assert_eq!((&concern["severity"], &concern["pairs"]), (&json!("bad"), &json!([["lamp", "plug"]])));
    night.concern("unknown-devices", 2);
    night.concern("wrong-key", 0);
    let eyes = Eyes::open();
    eyes.sign_in(&night, "lead");
    let words = [
        "1 device has the key of another enrollment",
        "2 devices that are not in the table ask for a certificate",
        "1 connection failed: wrong key or unknown identity",
        "the table lists them under lamp, but they ask with the key of plug",
        "import the devices into the enrollment plug",
    ];
    eyes.look(&night, "strangers", "/", &words);
    eyes.look(&night, "strangers-list", "/failures?reason=unknown", &["Download the 2 IDs"]);
    eyes.look(&night, "strangers-device", "/device?id=STRANGER-1", &["Not in the table"]);
    eyes.look(&night, "wrong-enrollment-device", "/device?id=LAMP-1", &["another enrollment"]);
    let words = ["Handshakes that failed", "Wrong key or unknown identity", "1 client, 1 handshake"];
    eyes.look(&night, "strangers-handshakes", "/handshakes?result=wrong-key&range=hour", &words);
    assert!(eyes.browser.text().contains("LAMP-2"));
    eyes.look(
        &night,
        "wrong-key-device",
        "/device?id=LAMP-2",
        &["Its handshake failed", "give it the firmware or the key"],
    );
    // The file can be imported as it is.
    let bearer = format!("Bearer {VIEWER_TOKEN}");
    let file =
        http::send(night.console, "GET", "/failures.csv?reason=unknown", &[("Authorization", &bearer)], b"");
    night.site.import(&file.body);
    night.power_on_plug("STRANGER-1");
    night.power_on_plug("STRANGER-2");
    night.until("they are served", |overview| overview["lastHour"]["served"].as_u64() >= Some(2));
    assert!(!subjects(&night.overview()).contains(&"unknown-devices"), "{:#}", night.overview());
    // A restart hides no device that is still refused.
    night.server.take().expect("a server").kill();
    night.server = Some(night.site.serve());
    night.concern("wrong-enrollment", 1);
}

#[test]
fn the_server_was_restarted_and_the_session_is_over() {
    let _alone = alone();
    let cloud = Site::new();
    let simulator = cloud.simulator(&[]);
    let mut night = Night::begin(simulator.address);
    night.power_on_lamp("LAMP-1");
    night.until("served", |overview| overview["lastHour"]["served"] == 1);
    night.server.take().expect("a server").kill();
    night.server = Some(night.site.serve());
    let eyes = Eyes::open();
    eyes.sign_in(&night, "lead");
    assert_eq!(night.overview()["outlook"], "early");
    eyes.look(&night, "restart", "/", &["Too early to tell", "The server started at", "nothing is known"]);
    assert!(!eyes.browser.text().contains("All is well"));
    // The session ends in another tab.
    let sign_out = "const csrf = document.querySelector('[name=csrf]').value;
        return fetch('/sign-out', { method: 'POST', redirect: 'manual',
            body: new URLSearchParams({ csrf }) }).then(() => 'done');";
    eyes.browser.run(sign_out, &json!([]));
    eyes.browser.run("document.dispatchEvent(new Event('visibilitychange'))", &json!([]));
    eyes.wait_for("The session has ended. The numbers below are old.");
    eyes.browser.find("#live.old");
    eyes.browser.find("#stale a").click();
    eyes.browser.sign_in("lead");
    eyes.browser.find("#live:not(.old)");
    // A form that is sent afterwards changes nothing, and leads back.
    eyes.browser.open(&format!("http://{}/device?id=LAMP-1", night.console));
    eyes.browser.find("form[action='/device/disable'] button");
    eyes.browser.run(sign_out, &json!([]));
    eyes.browser.find("form[action='/device/disable'] button").click();
    eyes.wait_for("nothing was changed");
    eyes.browser.find("main a.button").click();
    eyes.browser.sign_in("lead");
    eyes.wait_for("LAMP-1");
    eyes.browser.find("form[action='/device/disable'] button");
    // The server goes away.
    eyes.browser.open(&format!("http://{}/", night.console));
    eyes.browser.find("#live");
    night.server.take().expect("a server").kill();
    eyes.browser.run("document.dispatchEvent(new Event('visibilitychange'))", &json!([]));
    eyes.wait_for("The server does not answer. The numbers below are old.");
    eyes.browser.find("#live.old");
}
