//! Tests of imports in the console: the preview, bad lines, and undoing an import.

use crate::{
    console::console,
    support::{
        console::Visitor,
        http::{self, FORM},
    },
};

#[test]
fn a_file_is_looked_through_before_it_changes_anything_and_imported_once() {
    let console = console();
    let (lead, other) = (Visitor::new(console.address, "lead"), Visitor::new(console.address, "lead"));
    let bad = lead.upload("bad.csv", b"deviceId,deviceName\nSN00000010,\nSN 11,\nSN00000010,other\n", "lamp");
    assert_eq!(bad.status, 422);
    for text in ["Nothing was imported", "2 bad lines", "deviceId", ">3<", ">4<"] {
        assert!(bad.body.contains(text), "{text}: {}", bad.body);
    }
    // The details of a bad line are in English, and the page says so to a screen reader.
    assert!(bad.body.contains("<b>The device ID</b>: <bdi lang=\"en\">"), "{}", bad.body);
    let unknown = lead.upload("x.csv", b"deviceId\nSN9\n", "nowhere");
    assert!(
        unknown.status == 422 && unknown.body.contains("no enrollment <bdi>nowhere</bdi>"),
        "{}",
        unknown.body
    );

    let good = lead.upload("good.csv", b"deviceId\nSN00000010\nSN00000011\n", "lamp");
    assert_eq!(good.status, 200);
    assert!(good.body.contains("2 devices would be added"), "{}", good.body);
    assert_eq!(console.state("SN00000010"), "absent");
    let upload = good.field("upload");
    assert_eq!(other.post("/import/confirm", &[("upload", &upload)]).status, 422, "another's file");
    let imported = lead.post("/import/confirm", &[("upload", &upload)]);
    assert_eq!(imported.status, 303);
    // A reload shows the same page again, and imports nothing.
    for _ in 0..2 {
        let page = lead.get(imported.header("location"));
        assert!(page.status == 200 && page.body.contains("2 devices added"), "{}", page.body);
    }
    assert_eq!(console.state("SN00000011"), "enabled");
    assert_eq!(lead.post("/import/confirm", &[("upload", &upload)]).status, 422, "a second time");
}

#[test]
fn a_preview_says_where_the_rows_go_and_an_error_keeps_what_was_chosen() {
    let console = console();
    let (lead, other) = (Visitor::new(console.address, "lead"), Visitor::new(console.address, "lead"));
    let good = lead.upload("good.csv", b"mac\n00:1a:2b:3c:4d:01\n00-1A-2B-3C-4D-02\n", "plug").body;
    for part in
        ["2 rows for enrollment <bdi>plug</bdi>, product <bdi>a1plug</bdi>", "001A2B3C4D01", "001A2B3C4D02"]
    {
        assert!(good.contains(part), "{part}: {good}");
    }
    assert!(good.contains("<option value=\"plug\" selected>"), "{good}");

    let mut csv = String::from("deviceId\n");
    (0..40).for_each(|number| csv.push_str(&format!("bad id {number}\n")));
    let bad = lead.upload("<b>bad.csv", csv.as_bytes(), "plug").body;
    assert!(bad.contains("<option value=\"plug\" selected>") && !bad.contains("<b>bad"), "{bad}");
    assert!(bad.contains("40 bad lines") && bad.contains("And 20 more like line 2."), "{bad}");
    let form = bad.find("type=\"file\"").expect("the form");
    assert!(form < bad.find("id=\"bad\"").expect("the lines"), "the form stands before the bad lines");
    let link =
        bad.split_once("/import/errors.csv?list=").expect("a link").1.split_once('"').expect("its end").0;
    let path = format!("/import/errors.csv?list={link}").replace("%5F", "_").replace("%2D", "-");
    let all = lead.get(&path).body;
    assert_eq!(all.lines().count(), 41, "{all}");
    assert!(all.contains("bad id 39"), "the value is shown: {all}");
    assert_eq!(other.get(&path).status, 422, "of another session");
}

#[test]
fn imports_are_listed_and_undone_in_the_console() {
    let console = console();
    let lead = Visitor::new(console.address, "lead");
    let guest = Visitor::new(console.address, "guest");
    let good = lead.upload("wrong.csv", b"deviceId\nSN00000010\nSN00000011\n", "lamp");
    let imported = lead.post("/import/confirm", &[("upload", &good.field("upload"))]);
    let id = imported.header("location").split_once("done=").expect("a number").1[..8].to_owned();
    let list = lead.get("/import").body;
    assert!(list.contains("wrong.csv") && list.contains("console:lead") && list.contains(&id), "{list}");
    let ask = format!("/import/undo?id={id}");
    assert_eq!(guest.get(&ask).status, 403);
    assert_eq!(guest.post("/import/undo", &[("id", &id)]).status, 403);
    let preview = lead.get(&ask).body;
    assert!(preview.contains("2 devices that it added would be removed"), "{preview}");
    assert_eq!(console.state("SN00000010"), "enabled");
    // One of the devices changes after the import, so an undo leaves it as it is.
    lead.change("disable", "SN00000011");
    let refused = lead.post("/import/undo", &[("id", &id)]);
    assert!(refused.status == 409 && refused.body.contains("disabled"), "{}", refused.body);
    let preview = lead.get(&ask).body;
    assert!(preview.contains("1 device stays as it is") && preview.contains("Undo the rest"), "{preview}");
    let named = "<a class=\"id\" href=\"/device?id=SN00000011\">SN00000011</a>";
    assert!(preview.contains("Of 2 devices, 1 has changed since") && preview.contains(named), "{preview}");
    assert!(!preview.contains("--rest") && !refused.body.contains("--rest"), "{preview}");
    assert!(refused.body.contains(named) && refused.body.contains(&ask), "{}", refused.body);
    let undone = lead.post("/import/undo", &[("id", &id), ("sure", "rest")]);
    assert_eq!(undone.status, 303);
    let page = lead.get(undone.header("location")).body;
    assert!(page.contains("The import was undone") && page.contains("undone at"), "{page}");
    assert!(page.contains("1 device of the import is still in the table") && page.contains(named), "{page}");
    let history = lead.get("/device?id=SN00000011").body;
    assert!(history.contains("<b>imported</b>: <bdi>wrong.csv</bdi>"), "it was changed since: {history}");
    assert_eq!(
        (console.state("SN00000010"), console.state("SN00000011")),
        ("absent".into(), "disabled".into())
    );
    for (language, said) in
        [("en", "undone already"), ("zh-CN", "已经撤销过"), ("ja", "すでに取り消されています")]
    {
        let cookie = format!("{}; certdist-language={language}", lead.cookie);
        let headers = [("Cookie", cookie.as_str()), FORM];
        let fields = [("csrf", lead.csrf.as_str()), ("id", &id)];
        let again = http::send(console.address, "POST", "/import/undo", &headers, &http::form(&fields));
        assert!(again.status == 409 && again.body.contains(said), "{language}: {}", again.body);
    }
    for unknown in ["00000000", "x", "<script>"] {
        assert_eq!(lead.post("/import/undo", &[("id", unknown)]).status, 404);
    }
}

#[test]
fn a_file_that_is_too_large_is_refused() {
    let console = console();
    let lead = Visitor::new(console.address, "lead");
    let answer = lead.upload("large.csv", &vec![b'x'; 17 << 20], "lamp");
    assert_eq!(answer.status, 413);
    assert!(answer.body.contains("certdist import"), "what to do instead: {}", answer.body);
}
