//! Tests of devices in the console: lists and searches, actions on one and on many devices, jobs,
//! and the enrollments.

use std::time::{Duration, Instant};

use crate::support::{
    Process, Site,
    console::{TOKEN, Visitor, admin, free_address},
    http::{self, FORM},
    stdout,
};

struct Console {
    site: Site,
    server: Process,
    lead: Visitor,
}

/// Starts a server with a console and the devices of this file.
fn console(csv: &str) -> Console {
    let address = free_address();
    let site = Site::with(&admin(address, ""));
    site.import(csv);
    let server = site.serve();
    Console { site, server, lead: Visitor::new(address, "lead") }
}

/// Returns a file with `count` devices of the enrollment `lamp`, and one of `plug`.
fn many(count: u32) -> String {
    let mut csv = String::from(
        "deviceId,enrollment,deviceName,iotId\n00:1a:2b:3c:4d:5e,plug,kitchen,1a2b3c4d5e6f7g8h\n",
    );
    (0..count).for_each(|number| csv.push_str(&format!("LAMP-{number:04},lamp,,\n")));
    csv
}

impl Console {
    fn execute(&self, sql: &str) {
        let table = rusqlite::Connection::open(self.site.path("certdist.db")).expect("the database");
        table.busy_timeout(Duration::from_secs(10)).expect("set");
        table.execute(sql, ()).expect("executed");
    }

    fn count(&self, condition: &str) -> i64 {
        let table = rusqlite::Connection::open(self.site.path("certdist.db")).expect("the database");
        let sql = format!("SELECT count(*) FROM device_table WHERE {condition}");
        table.query_row(&sql, (), |row| row.get(0)).expect("a count")
    }

    /// Ends the server, starts another one, and signs in there.
    fn restarted(self, end: impl FnOnce(Process)) -> Self {
        let Self { site, server, lead } = self;
        end(server);
        let server = site.serve();
        Self { site, server, lead: Visitor::new(lead.address, "lead") }
    }

    /// Returns the token of a new preview.
    fn preview(&self) -> String {
        self.lead.get("/devices/bulk?action=disable").field("preview")
    }

    /// Confirms an action after its preview.
    fn confirm(&self, path: &str, fields: &[(&str, &str)]) -> http::Answer {
        let preview = self.preview();
        let all: Vec<_> = fields.iter().copied().chain([("preview", preview.as_str())]).collect();
        self.lead.post(path, &all)
    }

    /// Follows the redirect of a confirmed action to its job, and returns the job's page once the
    /// job has ended.
    fn job(&self, answer: &http::Answer) -> String {
        assert_eq!(answer.status, 303, "{}", answer.body);
        let path = answer.header("location").to_owned();
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let page = self.lead.get(&path).body;
            if !page.contains("id=\"live\"") {
                return page;
            }
            assert!(Instant::now() < deadline, "{page}");
        }
    }
}

fn devices(page: &str) -> usize {
    page.matches("<th scope=\"row\">").count()
}

#[test]
fn a_device_is_found_by_whatever_is_on_its_label() {
    let console = console(&many(3));
    for typed in [
        "001A2B3C4D5E",
        "00%3A1a%3A2b%3A3c%3A4d%3A5e",
        "+001a.2b3c.4d5e+",
        "00+1A+2B+3C+4D+5E",
        "%EF%BC%90%EF%BC%90%EF%BC%91%EF%BC%A12B3C4D5E",
        "MAC%3A+001a2b3c4d5e",
        "kitchen",
        "1a2b3c4d5e6f7g8h",
    ] {
        let answer = console.lead.get(&format!("/devices?q={typed}"));
        assert_eq!((answer.status, answer.header("location")), (303, "/device?id=001A2B3C4D5E"), "{typed}");
    }
    assert_eq!(console.lead.get("/devices?q=lamp-0002").header("location"), "/device?id=LAMP%2D0002");
    for (typed, found) in [("4d5e", 1), ("4D%3A5E", 1), ("0001", 1), ("LAMP", 3), ("nothing", 0)] {
        let page = console.lead.get(&format!("/devices?q={typed}")).body;
        assert_eq!(devices(&page), found, "{typed}");
    }
    let list = console.lead.get("/devices?q=LAMP-0000%0A00-1a-2b-3c-4d-5e%0ALOST-1%0Akitchen").body;
    assert_eq!(devices(&list), 2, "a list");
    assert!(list.contains("<bdi class=\"id\">LOST-1</bdi>"), "{list}");
}

#[test]
fn conditions_narrow_the_list_and_pages_lead_both_ways() {
    let console = console(&many(120));
    console.execute("UPDATE device_table SET refusal = 'no <b>quota</b>' WHERE deviceId < 'LAMP-0060' AND deviceId > 'LAMP'");
    console.execute("UPDATE device_table SET state = 'disabled' WHERE deviceId = 'LAMP-0100'");
    let first = console.lead.get("/devices?state=refused&enrollment=lamp").body;
    assert!(devices(&first) == 50 && first.contains("60 devices"), "{first}");
    assert!(first.contains("rel=\"next\"") && !first.contains("rel=\"prev\""));
    let second = console.lead.get("/devices?enrollment=lamp&state=refused&after=LAMP%2D0049").body;
    assert_eq!(devices(&second), 10);
    assert!(!second.contains("rel=\"next\"") && second.contains("before=LAMP%2D0050"), "{second}");
    let back = console.lead.get("/devices?enrollment=lamp&state=refused&before=LAMP%2D0050").body;
    assert_eq!(devices(&back), 50);
    assert!(back.contains(">LAMP-0000<") && !back.contains("rel=\"prev\""));
    assert!(!first.contains("<b>quota"), "a refusal is text");
    assert_eq!(devices(&console.lead.get("/devices?state=disabled").body), 1);
    assert_eq!(devices(&console.lead.get("/devices?enrollment=plug").body), 1);
    assert_eq!(
        devices(&console.lead.get("/devices?refusal=no%20%3Cb%3Equota%3C%2Fb%3E&state=refused").body),
        50
    );
    for wrong in ["state=refuse", "from=yesterday", "by=ends"] {
        let answer = console.lead.get(&format!("/devices?{wrong}"));
        assert_eq!((answer.status, devices(&answer.body)), (400, 0), "{wrong}");
        assert_eq!(console.lead.get(&format!("/devices/bulk?action=delete&{wrong}")).status, 400, "{wrong}");
        let fields = [("action", "disable"), ("expected", "121"), wrong.split_once('=').expect("a field")];
        assert_eq!(console.lead.post("/devices/bulk", &fields).status, 400, "{wrong}");
    }
    assert_eq!(console.count("state = 'disabled'"), 1);
}

#[test]
fn an_action_on_many_devices_is_previewed_confirmed_and_carried_out_as_a_job() {
    let console = console(&many(300));
    console.execute("UPDATE device_table SET refusal = 'odd' WHERE enrollment = 'lamp'");
    let preview = console.lead.get("/devices/bulk?action=reset&state=refused&enrollment=lamp").body;
    assert!(preview.contains("Reset: 300 devices") && devices(&preview) == 10, "{preview}");
    assert_eq!(console.count("refusal IS NULL"), 1, "nothing is changed yet");
    let fields = [("action", "reset"), ("state", "refused"), ("enrollment", "lamp"), ("expected", "300")];
    let page = console.job(&console.confirm("/devices/bulk", &fields));
    assert!(page.contains("300 of 300") && page.contains("class=\"message good\""), "{page}");
    assert_eq!(console.count("refusal IS NULL"), 301);
    let history = console.lead.get("/device?id=LAMP-0007").body;
    assert!(history.contains("<b>reset</b> · by <bdi>console:lead</bdi>"), "{history}");

    // A deletion needs `sure`, and deletes no more devices than were confirmed.
    let fields = [("action", "delete"), ("enrollment", "lamp"), ("expected", "2")];
    assert_eq!(console.lead.post("/devices/bulk", &fields).status, 400);
    assert_eq!(console.count("true"), 301);
    let sure: Vec<_> = fields.into_iter().chain([("sure", "yes")]).collect();
    let page = console.job(&console.confirm("/devices/bulk", &sure));
    assert!(page.contains("there are more now"), "{page}");
    assert_eq!(console.count("true"), 299);

    let list = "LAMP-0290\nLAMP-0291\nLOST-9";
    let shown = console.lead.post("/devices/list", &[("list", list)]).body;
    assert!(devices(&shown) == 2 && shown.contains("1 line names no device"), "{shown}");
    let preview = console.lead.post("/devices/list", &[("list", list), ("action", "disable")]).body;
    assert!(preview.contains("Disable: 2 devices"), "{preview}");
    assert_eq!(console.count("state = 'disabled'"), 0);
    let fields = [("list", "LAMP-0290,LAMP-0291"), ("action", "disable"), ("expected", "2")];
    console.job(&console.confirm("/devices/list", &fields));
    assert_eq!(console.count("state = 'disabled'"), 2);
    let long: String = (0..100_000).map(|number| format!("LOST-{number}\n")).collect();
    let refused = console.lead.post("/devices/list", &[("list", &long)]);
    assert!(refused.status == 413 && refused.body.contains("10,000 lines"), "{}", refused.body);
    assert_eq!(console.lead.get("/jobs").body.matches("<th scope=\"row\">").count(), 3);
}

#[test]
fn a_viewer_begins_no_job() {
    let console = console(&many(3));
    let guest = Visitor::new(console.lead.address, "guest");
    let fields = [("action", "disable"), ("expected", "4")];
    assert_eq!(guest.post("/devices/bulk", &fields).status, 403);
    assert_eq!(guest.get("/devices/bulk?action=disable").status, 403);
    let list = [("list", "LAMP-0000"), ("action", "disable"), ("expected", "1")];
    assert_eq!(guest.post("/devices/list", &list).status, 403);
    assert_eq!(guest.post("/jobs/stop", &[("id", "1-1")]).status, 403);
    assert_eq!(guest.post("/device/delete", &[("id", "LAMP-0000")]).status, 403);
    assert_eq!(guest.get("/device/confirm?id=LAMP-0000&action=delete").status, 403);
    assert!(!guest.get("/devices").body.contains("/devices/bulk"));
    for path in ["/devices/bulk", "/devices/list", "/jobs/stop", "/device/delete"] {
        let forged = console.lead.post_as_is(path, &fields);
        assert_eq!(forged.status, 403, "{path}");
        let stranger = http::send(console.lead.address, "POST", path, &[FORM], &http::form(&fields));
        assert_eq!(stranger.status, 401, "{path}");
    }
    assert_eq!((console.count("state = 'disabled'"), console.count("true")), (0, 4));
}

#[test]
fn after_a_restart_a_job_is_known_from_the_audit_log_and_an_invented_one_is_not() {
    let console = console(&many(3));
    let fields = [("action", "reset"), ("expected", "4")];
    let begun = console.confirm("/devices/bulk", &fields);
    console.job(&begun);
    let path = begun.header("location").to_owned();
    let console = console.restarted(|server| assert_eq!(server.stop(), Some(0)));
    let lines = stdout(&console.site.run(&["audit", "export"]));
    let began = lines.lines().find(|line| line.contains("\"began\"")).expect("its beginning");
    assert!(began.contains("reset 4 devices, the whole table") && began.contains("console:lead"), "{began}");
    assert!(lines.contains("\"ended\"") && lines.contains("; complete"), "{lines}");
    let page = console.lead.get(&path);
    assert_eq!(page.status, 200, "{}", page.body);
    assert!(page.body.contains("4 of 4") && page.body.contains("class=\"message good\""), "{}", page.body);
    assert!(page.body.contains("console:lead") && page.body.contains("From the audit log"), "{}", page.body);
    let (began, _) = path.rsplit_once("%2D").expect("the number of the job");
    for invented in
        [format!("{began}%2D00000000"), "/jobs?id=1000000000-1".into(), "/jobs?id=%3Cscript%3E".into()]
    {
        let gone = console.lead.get(&invented);
        assert!(gone.status == 404 && gone.body.contains("No such job"), "{invented}: {}", gone.body);
        assert!(!gone.body.contains("again"), "{invented}: it advises to repeat nothing");
    }
    assert!(stdout(&console.site.run(&["audit", "verify"])).contains("entries"), "the chain holds");
}

#[test]
fn a_job_that_was_killed_is_not_said_to_have_ended_and_its_reset_is_not_to_be_repeated() {
    let console = console(&many(3));
    console.execute("UPDATE device_table SET firstIssued = 1000");
    // While the table is locked, the job cannot end.
    let table = rusqlite::Connection::open(console.site.path("certdist.db")).expect("the database");
    table.execute_batch("BEGIN IMMEDIATE").expect("the lock");
    let begun = console.confirm("/devices/bulk", &[("action", "reset"), ("expected", "4")]);
    let path = begun.header("location").to_owned();
    let console = console.restarted(|server| {
        server.kill();
        table.execute_batch("ROLLBACK").expect("unlocked");
    });
    let page = console.lead.get(&path);
    assert_eq!(page.status, 200, "{}", page.body);
    assert!(page.body.contains("How far it came is not known"), "{}", page.body);
    assert!(page.body.contains("Do not simply repeat the reset"), "{}", page.body);
    assert!(!page.body.contains("Running") && !page.body.contains("0 of"), "{}", page.body);
    let list = console.lead.get("/jobs");
    assert!(list.body.contains(&path.replace('&', "&amp;")), "the list has it: {}", list.body);
}

#[test]
fn a_confirmation_that_is_sent_twice_begins_one_job() {
    let console = console(&many(3));
    let preview = console.preview();
    let fields = [("action", "disable"), ("expected", "4"), ("preview", preview.as_str())];
    let first = console.lead.post("/devices/bulk", &fields);
    console.job(&first);
    let second = console.lead.post("/devices/bulk", &fields);
    assert_eq!((second.status, second.header("location")), (303, first.header("location")));
    for token in ["", "0123456789abcdef"] {
        let fields = [("action", "enable"), ("expected", "4"), ("preview", token)];
        assert_eq!(console.lead.post("/devices/bulk", &fields).status, 400, "{token}");
    }
    assert_eq!((console.count("state = 'disabled'"), devices(&console.lead.get("/jobs").body)), (4, 1));
}

#[test]
fn the_preview_of_a_reset_says_how_many_certificates_it_removes() {
    let console = console(&many(4));
    console.execute(
        "UPDATE device_table SET deviceName = deviceId, deviceSecret = 'x', firstIssued = 5, cloudState = 'deleted' \
         WHERE deviceId IN ('LAMP-0000', 'LAMP-0001')",
    );
    console.execute("UPDATE device_table SET deviceName = deviceId, deviceSecret = 'x', firstIssued = 5 WHERE deviceId = 'LAMP-0002'");
    console.execute("UPDATE device_table SET refusal = 'odd' WHERE deviceId = 'LAMP-0003'");
    let list = ("list", "LAMP-0000\nLAMP-0001\nLAMP-0002\nLAMP-0003");
    let of_list = |action| console.lead.post("/devices/list", &[list, ("action", action)]).body;
    let of_filter =
        |action: &str| console.lead.get(&format!("/devices/bulk?enrollment=lamp&action={action}")).body;
    for page in [of_filter("reset"), of_list("reset")] {
        for said in [
            "The certificates of 2 devices are removed, because they were deleted at IoT Platform.",
            "The first issue of 3 devices is forgotten.",
            "The refusal of 1 device is forgotten.",
        ] {
            assert!(page.contains(said), "{said}: {page}");
        }
    }
    for page in [of_filter("delete"), of_list("delete")] {
        assert!(page.contains("The certificates of 3 devices here are removed."), "{page}");
    }
    assert!(!of_filter("disable").contains("id=\"removes\""));
}

#[test]
fn a_line_of_a_list_in_another_letter_case_is_taken_and_named() {
    let console = console(&many(2));
    let list = [("list", "lamp-0000\nLAMP-0001\n0001\nlost-1")];
    let page = console.lead.post("/devices/list", &list).body;
    assert!(devices(&page) == 2 && page.contains("2 lines name no device"), "{page}");
    assert!(page.contains("1 line is taken in another letter case"), "{page}");
    assert!(page.contains("<bdi class=\"id\">lamp-0000</bdi> → <a class=\"id\""), "{page}");
    let preview = console.lead.post("/devices/list", &[list[0], ("action", "disable")]).body;
    assert!(
        preview.contains("Disable: 2 devices") && preview.contains("in another letter case"),
        "{preview}"
    );
    // Two devices whose IDs differ in nothing else are not told apart, so neither is taken.
    console.site.import("deviceId,enrollment\nlamp-0000,lamp\n");
    let page = console.lead.post("/devices/list", &[("list", "Lamp-0000\nLAMP-0001")]).body;
    assert!(devices(&page) == 1 && page.contains("1 line names no device"), "{page}");
}

#[test]
fn of_two_operators_the_second_is_told_that_the_device_has_changed() {
    let console = console(&many(1));
    let page = console.lead.get("/device?id=LAMP-0000");
    let seen = page.field("seen");
    let id = ("id", "LAMP-0000");
    assert_eq!(console.lead.post("/device/disable", &[id, ("seen", &seen)]).status, 303);
    let second = console.lead.post("/device/disable", &[id, ("seen", &seen)]);
    assert_eq!(second.status, 409);
    assert!(second.body.contains("no longer as you have seen it") && second.body.contains("Disabled here"));
    let confirm = console.lead.get("/device/confirm?id=LAMP-0000&action=delete");
    console.lead.change("enable", "LAMP-0000");
    for fields in [&[id][..], &[id, ("seen", "")]] {
        let unseen = console.lead.post("/device/delete", fields);
        assert_eq!((unseen.status, console.count("true")), (409, 2), "no page was seen");
    }
    let late = console.lead.post("/device/delete", &[id, ("seen", &confirm.field("seen"))]);
    assert_eq!((late.status, console.count("true")), (409, 2));
    // A script sends no fingerprint, because it has seen no page. Its request succeeds.
    let bearer = format!("Bearer {TOKEN}");
    let headers = [("Authorization", bearer.as_str()), FORM];
    let answer = http::send(console.lead.address, "POST", "/device/reset", &headers, &http::form(&[id]));
    assert_eq!(answer.body, "LAMP-0000: reset\n");
}

#[test]
fn a_reset_and_a_deletion_say_what_they_remove_and_a_deleted_device_has_a_history() {
    let console = console(&many(1));
    console
        .execute("UPDATE device_table SET refusal = 'odd', firstIssued = 1000 WHERE deviceId = 'LAMP-0000'");
    let page = console.lead.get("/device/confirm?id=LAMP-0000&action=reset").body;
    assert!(page.contains("datetime=\"1970-01-01T00:16:40Z\"") && page.contains("<bdi>odd</bdi>"), "{page}");
    assert_eq!(console.count("refusal IS NULL"), 1, "it only asks");
    let seen = console.lead.get("/device/confirm?id=LAMP-0000&action=delete").field("seen");
    let answer = console.lead.post("/device/delete", &[("id", "LAMP-0000"), ("seen", &seen)]);
    let page = console.lead.get(answer.header("location"));
    assert_eq!(page.status, 404);
    assert!(page.body.contains("<b>deleted</b> · by <bdi>console:lead</bdi>"), "{}", page.body);
}

#[test]
fn hostile_texts_of_the_table_stay_texts_on_every_page() {
    let console = console(&many(1));
    let hostile = "\u{202E}<script>alert(1)</script>\"'\n</bdi><img src=x onerror=y>";
    let quoted = hostile.replace('\'', "''");
    let long = "x".repeat(64);
    console.execute(&format!(
        "INSERT INTO device_table (deviceId, productKey, enrollment, deviceName, IotId, refusal) \
         VALUES ('{long}', '{quoted}', '{quoted}', '{quoted}', '{quoted}', '{quoted}')"
    ));
    let encoded: String = hostile.bytes().map(|byte| format!("%{byte:02X}")).collect();
    for path in [
        "/devices".to_owned(),
        "/enrollments".to_owned(),
        "/enrollments/live".to_owned(),
        format!("/device?id={long}"),
        format!("/device/confirm?id={long}&action=reset"),
        format!("/devices?state=refused&refusal={encoded}"),
        format!("/devices?enrollment={encoded}&product={encoded}"),
        format!("/devices?q={encoded}"),
        format!("/devices?by=name&part={encoded}"),
        format!("/devices/bulk?action=reset&refusal={encoded}"),
        format!("/device?id={encoded}"),
        format!("/jobs?id={encoded}"),
    ] {
        let answer = console.lead.get(&path);
        assert!(matches!(answer.status, 200 | 404), "{path}: {}", answer.status);
        for markup in ["<script>alert", "<img src=x", "</bdi><img"] {
            assert!(!answer.body.contains(markup), "{path}: {}", answer.body);
        }
    }
    let listed = console.lead.get(&format!("/devices?enrollment={encoded}")).body;
    assert_eq!(devices(&listed), 1);
    let many_lines = format!("{hostile}\nLAMP-0000");
    let list = console.lead.post("/devices/list", &[("list", &many_lines)]).body;
    assert!(!list.contains("<script>alert"), "{list}");
}

#[test]
fn each_number_of_the_enrollments_leads_to_its_devices() {
    let console = console(&many(10));
    console.execute(
        "UPDATE device_table SET refusal = 'odd' WHERE deviceId < 'LAMP-0004' AND deviceId > 'LAMP'",
    );
    console.execute("UPDATE device_table SET state = 'disabled' WHERE deviceId = 'LAMP-0009'");
    console.execute("INSERT INTO registration_claim (deviceId, productKey, deviceName, openedAt) VALUES ('LAMP-0008', 'a1', 'x', 1)");
    let page = console.lead.get("/enrollments").body;
    assert!(page.contains("data-path=\"/enrollments/live\""), "it renews itself");
    for (path, count) in [
        ("/devices?enrollment=lamp", 10),
        ("/devices?enrollment=lamp&state=refused", 4),
        ("/devices?enrollment=lamp&state=refused&refusal=odd", 4),
        ("/devices?enrollment=lamp&state=waiting", 1),
        ("/devices?enrollment=lamp&state=disabled", 1),
        ("/devices?enrollment=lamp&state=registered", 0),
    ] {
        let link = format!("<a href=\"{}\">{count}</a>", path.replace('&', "&amp;"));
        assert!(page.contains(&link), "{link} in {page}");
        assert_eq!(devices(&console.lead.get(path).body), count, "{path}");
    }
    assert!(stdout(&console.site.run(&["stats"])).contains("lamp"));
    assert_eq!(console.server.stop(), Some(0));
}

#[test]
fn many_enrollments_are_shown_in_pages_and_found_by_their_names() {
    let section = |number: u32| {
        format!(
            "[[enrollment]]\nname = \"lot-{number:03}\"\nproduct_key = \"a1lot\"\nkind = \"derived\"\n\
             key = \"hex:{number:064x}\"\n"
        )
    };
    let address = free_address();
    let sections: String = (0..210).map(section).collect();
    let site = Site::with(&format!("{}\n{sections}", admin(address, "")));
    site.import("deviceId,enrollment\nA-1,lot-007\nA-2,lot-207\n");
    let server = site.serve();
    let lead = Visitor::new(address, "lead");
    let names = |page: &str| page.matches("<h2><bdi>").count();
    let first = lead.get("/enrollments").body;
    assert_eq!(names(&first), 50);
    assert!(first.contains("role=\"search\"") && first.contains("page=1"), "{first}");
    assert_eq!(names(&lead.get("/enrollments?page=4").body), 12);
    let found = lead.get("/enrollments?q=LOT-2").body;
    assert_eq!(names(&found), 10);
    assert!(found.contains("data-path=\"/enrollments/live?q=LOT%2D2\""), "{found}");
    assert!(lead.get("/enrollments?q=%22%3E%3Cscript%3E").body.contains("&quot;&gt;&lt;script&gt;"));
    // The import's form suggests the names, instead of a list of all of them.
    let import = lead.get("/import").body;
    assert!(
        import.contains("<datalist id=\"enrollments\">") && !import.contains("<select id=\"enrollment\"")
    );
    let metrics = lead.get("/metrics").body;
    assert!(metrics.contains("\ncertdist_devices 2\n"), "{metrics}");
    assert!(metrics.contains("\ncertdist_devices_in_state{state=\"unregistered\"} 2\n"), "{metrics}");
    assert_eq!(server.stop(), Some(0));
}
