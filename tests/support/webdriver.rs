//! A Chromium browser that a test controls over WebDriver. The browser ends with the test.

use std::{
    fs,
    io::{BufRead, BufReader},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use base64::{Engine, prelude::BASE64_STANDARD};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::{console::PASSWORD, http};

/// Key under which WebDriver returns an element's ID.
const ELEMENT: &str = "element-6066-11e4-a52e-4f735466cecf";

/// Keys that produce no character.
pub const TAB: &str = "\u{e004}";
pub const ENTER: &str = "\u{e007}";

/// A browser with one window.
pub struct Browser {
    driver: Child,
    address: SocketAddr,
    session: String,
    _profile: TempDir,
}

/// Copies a screenshot to the documentation in a run of `make screenshots`. Other runs copy none,
/// because screenshots change with each run.
pub fn keep_for_documents(picture: &Path) {
    if std::env::var_os("CERTDIST_SCREENSHOTS").is_some() {
        let shown = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/screenshots");
        fs::copy(picture, shown.join(picture.file_name().expect("a name"))).expect("it can be written");
    }
}

/// Returns the script of axe-core, which [`Browser::violations`] runs.
pub fn axe() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("build/axe-core/node_modules/axe-core/axe.min.js");
    fs::read_to_string(&path)
        .unwrap_or_else(|error| panic!("{}: {error}: run `make clients`", path.display()))
}

/// Returns the folder for screenshots, which it creates.
pub fn pictures() -> PathBuf {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/screenshots");
    fs::create_dir_all(&folder).expect("a folder");
    folder
}

/// An element of the page.
pub struct Element<'b> {
    browser: &'b Browser,
    id: String,
}

impl Browser {
    /// Starts a browser.
    pub fn start() -> Self {
        let mut driver = Command::new("chromedriver")
            .arg("--port=0")
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("chromedriver, of Debian's package chromium-driver: run `make clients`");
        let mut lines =
            BufReader::new(driver.stdout.take().expect("its output")).lines().map_while(Result::ok);
        let port = lines.find_map(|line| {
            let port = line.split_once("started successfully on port ")?.1;
            port.trim_end_matches('.').parse::<u16>().ok()
        });
        // Reads the rest of the driver's output, so that the driver never blocks on a full
        // pipe.
        thread::spawn(move || lines.for_each(drop));
        let profile = TempDir::new().expect("a folder");
        let mut browser = Self {
            driver,
            address: SocketAddr::from(([127, 0, 0, 1], port.expect("a port"))),
            session: String::new(),
            _profile: profile,
        };
        let arguments = [
            "--headless=new",
            // As root, Chromium cannot start with its sandbox. It opens only pages of this test.
            "--no-sandbox",
            "--disable-dev-shm-usage",
            "--disable-gpu",
            "--hide-scrollbars",
            "--no-first-run",
            &format!("--user-data-dir={}", browser._profile.path().display()),
        ];
        let wanted = json!({ "capabilities": { "alwaysMatch": {
            "browserName": "chrome", "goog:chromeOptions": { "args": arguments } } } });
        let session = browser.call("POST", "/session", &wanted).expect("a browser");
        browser.session = session["sessionId"].as_str().expect("a session").to_owned();
        browser
    }

    fn call(&self, method: &str, path: &str, body: &Value) -> Result<Value, String> {
        let body = if method == "POST" { body.to_string() } else { String::new() };
        let headers = [("Content-Type", "application/json")];
        let answer = http::send(self.address, method, path, &headers, body.as_bytes());
        let mut json: Value = serde_json::from_str(&answer.body).expect("JSON");
        let value = json["value"].take();
        if answer.status == 200 { Ok(value) } else { Err(format!("{method} {path}: {value}")) }
    }

    fn command(&self, method: &str, path: &str, body: &Value) -> Result<Value, String> {
        self.call(method, &format!("/session/{}{path}", self.session), body)
    }

    /// Runs a command of Chromium's own protocol.
    fn devtools(&self, command: &str, parameters: &Value) -> Value {
        let body = json!({ "cmd": command, "params": parameters });
        self.command("POST", "/goog/cdp/execute", &body).expect("it obeys")
    }

    /// Sets how pages are displayed, starting with the next page.
    pub fn show(&self, width: u32, height: u32, is_dark: bool, has_scripts: bool) {
        let size = json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600 });
        self.devtools("Emulation.setDeviceMetricsOverride", &size);
        let scheme = if is_dark { "dark" } else { "light" };
        let features = json!([{ "name": "prefers-color-scheme", "value": scheme }]);
        self.devtools("Emulation.setEmulatedMedia", &json!({ "features": features }));
        self.allow_scripts(has_scripts);
        self.devtools("Network.enable", &json!({}));
        self.devtools("Network.clearBrowserCookies", &json!({}));
    }

    /// Sets whether scripts on pages may run.
    pub fn allow_scripts(&self, allowed: bool) {
        self.devtools("Emulation.setScriptExecutionDisabled", &json!({ "value": !allowed }));
    }

    /// Opens a page.
    pub fn open(&self, url: &str) {
        self.command("POST", "/url", &json!({ "url": url })).expect("it opens");
    }

    /// Signs in on the current page, as this user of the console's tests.
    pub fn sign_in(&self, name: &str) {
        self.find("#name").write(name);
        self.find("#password").write(PASSWORD);
        self.press(&[ENTER]);
    }

    /// Finds an element by its selector. Waits for the element, because the page may still be
    /// loading.
    pub fn find(&self, selector: &str) -> Element<'_> {
        let body = json!({ "using": "css selector", "value": selector });
        let deadline = Instant::now() + Duration::from_secs(15);
        loop {
            match self.command("POST", "/element", &body) {
                Ok(found) => {
                    return Element { browser: self, id: found[ELEMENT].as_str().expect("an ID").to_owned() };
                }
                Err(error) => assert!(Instant::now() < deadline, "{selector}: {error}\n{}", self.text()),
            }
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits until the page contains a text.
    pub fn wait_for(&self, text: &str) {
        let deadline = Instant::now() + Duration::from_secs(15);
        while !self.text().contains(text) {
            assert!(Instant::now() < deadline, "the page does not say {text:?}:\n{}", self.text());
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Returns the visible text of the page.
    pub fn text(&self) -> String {
        let text = self.run("return document.body ? document.body.innerText : ''", &json!([]));
        text.as_str().unwrap_or_default().to_owned()
    }

    /// Runs a script, even if scripts on pages are disabled.
    pub fn run(&self, script: &str, arguments: &Value) -> Value {
        self.command("POST", "/execute/sync", &json!({ "script": script, "args": arguments }))
            .unwrap_or_default()
    }

    /// Presses keys one after another in the focused element.
    pub fn press(&self, keys: &[&str]) {
        let pressed = keys.iter().flat_map(|key| {
            [json!({ "type": "keyDown", "value": key }), json!({ "type": "keyUp", "value": key })]
        });
        let keyboard = json!({ "type": "key", "id": "keyboard", "actions": pressed.collect::<Vec<_>>() });
        self.command("POST", "/actions", &json!({ "actions": [keyboard] })).expect("pressed");
    }

    /// Types text into the focused element.
    pub fn write(&self, text: &str) {
        let keys: Vec<String> = text.chars().map(String::from).collect();
        self.press(&keys.iter().map(String::as_str).collect::<Vec<_>>());
    }

    /// Moves the focus to the link or button with this name, using only the Tab key.
    pub fn tab_to(&self, name: &str) {
        for _ in 0..60 {
            self.press(&[TAB]);
            let focused = self.run(
                "const e = document.activeElement; return (e.labels && e.labels[0] ? e.labels[0] : e).innerText",
                &json!([]),
            );
            if focused.as_str().is_some_and(|text| text.trim() == name) {
                let outline =
                    self.run("return getComputedStyle(document.activeElement).outlineStyle", &json!([]));
                assert_ne!(outline, "none", "whoever comes to {name} by keyboard sees where they are");
                return;
            }
        }
        panic!("{name} is not reached with the Tab key:\n{}", self.text());
    }

    /// Returns the violations that axe-core finds on the page.
    pub fn violations(&self, axe: &str) -> Vec<String> {
        self.command("POST", "/execute/sync", &json!({ "script": axe, "args": [] })).expect("axe is loaded");
        let script = "const done = arguments[0]; axe.run(document).then(found => done(found.violations.map(v => \
                      v.id + ': ' + v.help + ' ' + v.nodes.map(n => n.html + ' ' + n.failureSummary).join(' | '))), \
                      error => done(['axe: ' + error]));";
        let found = self
            .command("POST", "/execute/async", &json!({ "script": script, "args": [] }))
            .expect("axe runs");
        let found = found.as_array().expect("a list").iter();
        found.map(|violation| violation.as_str().unwrap_or_default().to_owned()).collect()
    }

    /// Saves a screenshot of the whole page.
    pub fn picture(&self, path: &Path) {
        let size = self.devtools("Page.getLayoutMetrics", &json!({}));
        let (width, height) = (&size["cssContentSize"]["width"], &size["cssContentSize"]["height"]);
        let clip = json!({ "x": 0, "y": 0, "width": width, "height": height, "scale": 1 });
        let wanted = json!({ "format": "png", "captureBeyondViewport": true, "clip": clip });
        let picture = self.devtools("Page.captureScreenshot", &wanted);
        let bytes = BASE64_STANDARD.decode(picture["data"].as_str().expect("data")).expect("base64");
        fs::write(path, bytes).expect("it can be written");
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // Ends Chromium. Without this command, Chromium would keep running when its driver ends.
        let _ = self.command("DELETE", "", &Value::Null);
        let _ = self.driver.kill();
        let _ = self.driver.wait();
    }
}

impl Element<'_> {
    fn command(&self, what: &str, body: &Value) {
        let path = format!("/element/{}/{what}", self.id);
        self.browser.command("POST", &path, body).expect("it obeys");
    }

    /// Clicks the element.
    pub fn click(&self) {
        self.command("click", &json!({}));
    }

    /// Types into the element. For a file field, `text` is the path of a file.
    pub fn write(&self, text: &str) {
        self.command("value", &json!({ "text": text }));
    }
}
