//! Tests the console in a real browser. The looks differ in scripts (enabled or not), width of the
//! screen, and colours. The console is used with the mouse, and with the keyboard alone.

use std::path::PathBuf;

use crate::{
    alone,
    support::{
        MASTER, Process, Site, coapsload,
        console::{PASSWORD, admin, free_address},
        webdriver::{Browser, ENTER, TAB, axe, keep_for_documents, pictures},
    },
};
use serde_json::json;

/// Size, colours and script setting with which the pages are viewed.
struct Look {
    name: &'static str,
    width: u32,
    is_dark: bool,
    has_scripts: bool,
}

const LOOKS: [Look; 4] = [
    Look { name: "wide-light", width: 1100, is_dark: false, has_scripts: true },
    Look { name: "narrow-dark", width: 375, is_dark: true, has_scripts: true },
    Look { name: "wide-dark", width: 1100, is_dark: true, has_scripts: false },
    Look { name: "narrow-light", width: 375, is_dark: false, has_scripts: false },
];

/// Screenshots that the documentation shows.
const SHOWN: [&str; 6] = [
    "overview-wide-light",
    "overview-narrow-dark",
    "device-wide-light",
    "device-narrow-dark",
    "import-wide-light",
    "batches-wide-light",
];

struct Journey<'b> {
    browser: &'b Browser,
    site: &'b Site,
    url: String,
    look: &'b Look,
    axe: String,
    pictures: PathBuf,
}

impl Journey<'_> {
    /// Checks that the page is accessible and fits its screen, and takes a screenshot.
    fn examine(&self, page: &str) {
        // axe is itself a script, so scripts are enabled after the page was rendered.
        self.browser.allow_scripts(true);
        let found = self.browser.violations(&self.axe);
        self.browser.allow_scripts(self.look.has_scripts);
        assert!(found.is_empty(), "{page}, {}: {found:#?}", self.look.name);
        let script = "return document.documentElement.scrollWidth - document.documentElement.clientWidth";
        assert_eq!(
            self.browser.run(script, &json!([])),
            0,
            "{page}, {}: wider than its screen",
            self.look.name
        );
        let name = format!("{page}-{}", self.look.name);
        let path = self.pictures.join(format!("{name}.png"));
        self.browser.picture(&path);
        if SHOWN.contains(&name.as_str()) {
            keep_for_documents(&path);
        }
    }

    fn take(&self) {
        let (browser, look) = (self.browser, self.look);
        browser.show(look.width, 800, look.is_dark, look.has_scripts);
        browser.open(&self.url);
        browser.find("#password");
        self.examine("sign-in");
        // The click puts the focus into the field for the name.
        browser.find("#name").click();
        browser.write("lead");
        browser.press(&[TAB]);
        browser.write(PASSWORD);
        browser.press(&[ENTER]);
        browser.wait_for("Devices that were not served");
        self.examine("overview");

        browser.tab_to("Devices");
        browser.press(&[ENTER]);
        browser.find("#q").write("SN0000");
        browser.press(&[ENTER]);
        browser.wait_for("SN00000003");
        self.examine("devices");
        browser.tab_to("SN00000003");
        browser.press(&[ENTER]);
        browser.wait_for("In the table");
        self.examine("device");
        browser.tab_to("Disable");
        browser.press(&[ENTER]);
        browser.wait_for("It is disabled.");
        self.examine("disabled");
        browser.open(&format!("{}device/confirm?id=SN00000003&action=delete", self.url));
        browser.wait_for("4.04");
        self.examine("confirm");
        browser.open(&format!("{}device/order?id=SN00000003&action=rotate", self.url));
        browser.wait_for("registered anew");
        self.examine("order-confirm");
        browser.open(&format!("{}orders", self.url));
        browser.wait_for("Orders for IoT Platform");
        self.examine("orders");
        browser.open(&format!("{}devices/bulk?action=delete", self.url));
        browser.wait_for("I want to delete");
        self.examine("bulk-preview");
        browser.open(&format!("{}jobs", self.url));
        browser.wait_for("The jobs since the server started");
        self.examine("jobs");
        self.act_on_a_list();
        for page in ["failures", "handshakes"] {
            browser.open(&format!("{}{page}", self.url));
            browser.find(".ranges");
            self.examine(page);
        }
        browser.open(&format!("{}devices?state=refused&q=none", self.url));
        browser.wait_for("Nothing found");
        self.examine("none");
        browser.open(&format!("{}device?id=SN00000003", self.url));
        browser.wait_for("In the table");
        browser.find("form[action='/device/enable'] button").click();
        browser.wait_for("It is enabled.");

        self.import();
        browser.tab_to("Enrollments");
        browser.press(&[ENTER]);
        browser.wait_for("lamp");
        self.examine("batches");
        browser.open(&format!("{}device?id=NOBODY", self.url));
        browser.wait_for("No such device");
        self.examine("absent");
        browser.tab_to("Sign out");
        browser.press(&[ENTER]);
        browser.find("#password");
    }

    /// Pastes a list, and resets its devices as a job.
    fn act_on_a_list(&self) {
        let browser = self.browser;
        browser.open(&format!("{}devices", self.url));
        browser.find("#paste summary").click();
        browser.find("#list").write("sn00000001\nSN00000002\nNOBODY");
        browser.find("#paste button").click();
        browser.wait_for("1 line names no device");
        self.examine("list");
        browser.find("#bulk ~ form button").click();
        browser.wait_for("Is this what you want?");
        self.examine("list-preview");
        browser.find("#confirm ~ form button").click();
        // Without scripts, the page stays as it was when the job began.
        browser.wait_for("Each change is in the audit log");
        self.examine("job");
    }

    fn import(&self) {
        let (browser, name) = (self.browser, self.look.name);
        self.site.write("bad.csv", "deviceId,enrollment\nSN00000101,lamp\nSN 102,lamp\nSN00000103,lampe\n");
        self.site.write("good.csv", &format!("deviceId,enrollment\nNEW-{name}-1,lamp\nNEW-{name}-2,lamp\n"));
        let send = |file: &str| {
            browser.find("nav a[href='/import']").click();
            browser.find("#file").write(self.site.path(file).to_str().expect("UTF-8"));
            browser.find("form.stack button").click();
        };
        send("bad.csv");
        browser.wait_for("Nothing was imported");
        browser.wait_for("2 bad lines");
        self.examine("import");
        send("good.csv");
        browser.wait_for("2 devices would be added");
        self.examine("preview");
        browser.tab_to("Import it");
        browser.press(&[ENTER]);
        browser.wait_for("2 devices added");
        self.examine("imported");
    }
}

fn load(server: &Process, devices: u32) {
    let (port, count) = (server.address.port().to_string(), devices.to_string());
    coapsload(&["-p", &port, "-n", &count, "-c", "32", "-K", MASTER]);
}

#[test]
fn an_operator_does_everything_in_a_browser_and_axe_finds_nothing_wrong() {
    let _alone = alone();
    let (axe, pictures) = (axe(), pictures());

    let cloud = Site::new();
    let simulator = cloud.simulator(&["--latency", "5ms"]);
    let address = free_address();
    let site = Site::with(&format!(
        "{}[iot_platform]\nendpoint = \"http://{}\"\nregion = \"cn-shanghai\"\nqps = 1000\nmanage = true\n",
        admin(address, ""),
        simulator.address
    ));
    let mut csv = String::from("deviceId,enrollment\n");
    (1..=600).for_each(|number| csv.push_str(&format!("SN{number:08},lamp\n")));
    (1..=250).for_each(|number| csv.push_str(&format!("PLUG-{number:04},plug\n")));
    site.import(&csv);
    let server = site.serve();
    // The first load is served completely. The second load also includes devices that are not in
    // the table.
    load(&server, 450);
    load(&server, 640);

    let browser = Browser::start();
    for look in &LOOKS {
        let url = format!("http://{address}/");
        let (axe, pictures) = (axe.clone(), pictures.clone());
        Journey { browser: &browser, site: &site, url, look, axe, pictures }.take();
    }

    // If scripts are enabled, the overview refreshes itself.
    browser.show(1100, 800, false, true);
    browser.open(&format!("http://{address}/"));
    browser.sign_in("guest");
    browser.find("#live");
    let served = || browser.run("return document.querySelector('.key.served b').innerText", &json!([]));
    let before = served();
    load(&server, 5);
    browser.run("document.dispatchEvent(new Event('visibilitychange'))", &json!([]));
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(15);
    while served() == before {
        assert!(std::time::Instant::now() < deadline, "the overview stays at {before}");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}
