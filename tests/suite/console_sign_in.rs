//! Tests of signing in to the console and out of it: the wanted page, forms of a session that has
//! ended, the language of the pages, passwords and their limits.

use crate::{
    console::console,
    support::{
        console::{PASSWORD, Visitor, sign_in},
        http::{self, FORM},
    },
};

#[test]
fn after_signing_in_a_user_comes_to_the_wanted_page_and_never_to_another_server() {
    let console = console();
    let wanted = http::send(console.address, "GET", "/device?id=SN00000001", &[], b"");
    let form = http::send(console.address, "GET", wanted.header("location"), &[], b"");
    assert_eq!(form.field("back"), "/device?id=SN00000001");
    let cookie = format!("certdist-form={}", form.cookie("certdist-form").expect("a cookie"));
    for (back, expected) in [
        ("/device?id=SN00000001", "/device?id=SN00000001"),
        ("//evil.example/", "/"),
        ("https://evil.example", "/"),
    ] {
        let fields = [("csrf", form.field("csrf")), ("name", "lead".into()), ("password", PASSWORD.into())];
        let mut fields: Vec<_> =
            fields.iter().map(|(name, value): &(&str, String)| (*name, value.as_str())).collect();
        fields.push(("back", back));
        let headers = [("Cookie", cookie.as_str()), FORM];
        let answer = http::send(console.address, "POST", "/sign-in", &headers, &http::form(&fields));
        assert_eq!((answer.status, answer.header("location")), (303, expected), "{back}");
    }
    let wrong = sign_in(console.address, "lead", "wrong").body;
    let focused: Vec<&str> = wrong.split("<input").filter(|input| input.contains("autofocus")).collect();
    assert!(matches!(focused[..], [input] if input.contains("type=\"password\"")), "{focused:?}");
}

#[test]
fn a_form_that_comes_after_the_session_says_that_nothing_was_changed_and_leads_back() {
    let console = console();
    let lead = Visitor::new(console.address, "lead");
    let page = lead.get("/device?id=SN00000001");
    let back = page.field("back");
    assert_eq!(back, "/device?id=SN00000001");
    lead.post("/sign-out", &[]);
    let answer = lead.post("/device/disable", &[("id", "SN00000001"), ("back", &back)]);
    assert_eq!(answer.status, 401);
    assert!(answer.body.contains("nothing was changed"), "{}", answer.body);
    assert!(answer.body.contains("href=\"/sign-in?back=%2Fdevice%3Fid%3DSN00000001\""), "{}", answer.body);
    assert_eq!(console.state("SN00000001"), "enabled");
    let evil = lead.post("/device/disable", &[("id", "SN00000001"), ("back", "//evil.example")]);
    assert!(evil.body.contains("href=\"/sign-in\""), "{}", evil.body);
    let file = lead.upload("x.csv", b"deviceId\nSN9\n", "lamp");
    assert!(file.status == 401 && file.body.contains("nothing was changed"), "{}", file.body);
}

#[test]
fn whoever_signs_out_after_the_session_is_told_that_there_is_nothing_to_do() {
    let console = console();
    let lead = Visitor::new(console.address, "lead");
    assert_eq!(lead.post("/sign-out", &[]).status, 303);
    let again = lead.post("/sign-out", &[("back", "/devices")]);
    assert_eq!(again.status, 401, "{}", again.body);
    assert!(again.body.contains("Your session had ended before"), "{}", again.body);
    assert!(!again.body.contains("repeat the action"), "{}", again.body);
    // A script with a wrong token is refused as everywhere.
    let headers = [("Authorization", "Bearer wrong"), FORM];
    assert_eq!(http::send(console.address, "POST", "/sign-out", &headers, b"").status, 401);
}

#[test]
fn the_links_to_other_languages_lead_back_from_every_page() {
    let console = console();
    let (lead, guest) = (Visitor::new(console.address, "lead"), Visitor::new(console.address, "guest"));
    let language = |page: &str| {
        let link = page.split_once("to=ja&amp;back=").expect("a link").1;
        link.split_once('"').expect("its end").0.to_owned()
    };
    let back = ("back", "/device?id=SN00000001");
    let fields = [("id", "SN00000001"), back];
    let expected = "%2Fdevice%3Fid%3DSN00000001";
    let refused = guest.post("/device/disable", &fields);
    assert_eq!((refused.status, language(&refused.body).as_str()), (403, expected));
    let forged = lead.post_as_is("/device/disable", &fields);
    assert_eq!((forged.status, language(&forged.body).as_str()), (403, expected));
    lead.post("/sign-out", &[]);
    let late = lead.post("/device/disable", &fields);
    assert_eq!((late.status, language(&late.body).as_str()), (401, expected));
    let late = lead.post("/device/disable", &[("id", "SN00000001")]);
    assert_eq!((late.status, language(&late.body).as_str()), (401, "%2F"), "a form that names no page");
}

#[test]
fn a_part_of_a_page_leads_to_the_whole_page_after_signing_in() {
    let console = console();
    for (part, back) in [
        ("/live", "/sign-in"),
        ("/jobs/live?id=1-2", "/sign-in?back=%2Fjobs%3Fid%3D1%2D2"),
        ("/enrollments/live", "/sign-in?back=%2Fenrollments"),
    ] {
        let answer = http::send(console.address, "GET", part, &[], b"");
        assert_eq!((answer.status, answer.header("location")), (303, back), "{part}");
    }
}

#[test]
fn pages_speak_the_language_of_the_browser_or_the_one_that_was_chosen() {
    let console = console();
    let get = |path: &str, headers: &[(&str, &str)]| http::send(console.address, "GET", path, headers, b"");
    for (accepted, tag, words) in [
        ("de, en;q=0.5", "en", "Sign in"),
        ("zh-CN,zh;q=0.9", "zh-CN", "登录"),
        ("ja-JP", "ja", "サインイン"),
    ] {
        let page = get("/sign-in", &[("Accept-Language", accepted)]);
        assert!(page.body.contains(&format!("<html lang=\"{tag}\">")), "{}", page.body);
        assert!(page.body.contains(&format!("<h1>{words}</h1>")), "{}", page.body);
    }
    let chosen = get("/language?to=ja&back=%2Fsign-in", &[]);
    assert_eq!((chosen.status, chosen.header("location")), (303, "/sign-in"));
    let cookie = format!("certdist-language={}", chosen.cookie("certdist-language").expect("a cookie"));
    let page = get("/sign-in", &[("Accept-Language", "zh"), ("Cookie", &cookie)]);
    assert!(page.body.contains("<h1>サインイン</h1>"), "{}", page.body);
    let unknown = get("/language?to=xx&back=%2F%2Fevil.example", &[]);
    assert_eq!((unknown.header("location"), unknown.cookie("certdist-language")), ("/", None));
}

#[test]
fn a_password_opens_a_session_whose_cookie_no_script_and_no_other_site_has() {
    let console = console();
    let answer = sign_in(console.address, "lead", PASSWORD);
    let cookie = answer.header("set-cookie");
    for attribute in ["HttpOnly", "SameSite=Strict", "Path=/"] {
        assert!(cookie.contains(attribute), "{cookie}");
    }
    for (name, password) in [("lead", "wrong"), ("bob", PASSWORD), ("", ""), ("ADA", PASSWORD)] {
        let answer = sign_in(console.address, name, password);
        assert_eq!((answer.status, answer.cookie("certdist")), (401, None), "{name}");
        assert!(answer.body.contains("Name or password is wrong"), "which of them, nobody learns");
    }
    let visitor = Visitor::new(console.address, "lead");
    assert_eq!(visitor.get("/").status, 200);
    assert_eq!(visitor.post("/sign-out", &[]).status, 303);
    assert_eq!(visitor.get("/").status, 303, "the session has ended at the server");
}

#[test]
fn a_form_to_sign_in_is_of_this_server_and_this_browser() {
    let console = console();
    let form = http::send(console.address, "GET", "/sign-in", &[], b"");
    let fields = http::form(&[("csrf", &form.field("csrf")), ("name", "lead"), ("password", PASSWORD)]);
    for headers in [vec![FORM], vec![FORM, ("Cookie", "certdist-form=another")]] {
        let answer = http::send(console.address, "POST", "/sign-in", &headers, &fields);
        assert_eq!((answer.status, answer.cookie("certdist")), (403, None));
    }
}

#[test]
fn passwords_cannot_be_tried_without_end() {
    let console = console();
    let statuses: Vec<u16> = (0..11).map(|_| sign_in(console.address, "lead", "wrong").status).collect();
    assert_eq!(statuses[..10], [401; 10]);
    assert_eq!(statuses[10], 429);
    let answer = sign_in(console.address, "lead", PASSWORD);
    assert_eq!(answer.status, 429, "not even with the right one");
    assert!(answer.header("retry-after").parse::<u64>().is_ok_and(|seconds| (1..=61).contains(&seconds)));
    // Other users can sign in until the address has used up its own limit.
    assert_eq!(sign_in(console.address, "guest", PASSWORD).status, 303);
    let mut all = (0..20).map(|number| sign_in(console.address, &format!("user-{number}"), "wrong").status);
    assert!(all.any(|status| status == 429));
}
