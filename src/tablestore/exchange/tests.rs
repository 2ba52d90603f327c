use super::*;
use crate::device::Secret;

const NOW: i64 = 1_795_681_815_000;

fn credentials() -> Credentials {
    Credentials {
        access_key_id: "testid".into(),
        access_key_secret: Secret::new("hush-secret".into()),
        security_token: Some(Secret::new("hush-token".into())),
    }
}

/// An answer with all headers and a right signature, which a test then changes.
struct Signed {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

fn signed(status: u16, body: &[u8]) -> Signed {
    let mut answer = Signed {
        status,
        headers: vec![
            ("x-ots-contentmd5".into(), signature::content_md5(body)),
            ("x-ots-contenttype".into(), "protocol buffer".into()),
            ("x-ots-date".into(), format_date(NOW)),
            ("x-ots-requestid".into(), "0005".into()),
        ],
        body: body.to_vec(),
    };
    answer.sign();
    answer
}

impl Signed {
    fn sign(&mut self) {
        let pairs = self.headers.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        let signature = signature::sign(&signature::answer_text("GetRow", pairs), "hush-secret");
        self.headers.push(("authorization".into(), format!("OTS testid:{signature}")));
    }

    fn set(&mut self, name: &str, value: &str) {
        self.remove(name);
        self.headers.push((name.into(), value.into()));
    }

    fn remove(&mut self, name: &str) {
        self.headers.retain(|(found, _)| found != name);
    }

    fn read_at(&self, now: i64) -> Result<message::Nothing, Error> {
        let headers = self.headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let answer = Answer { status: self.status, headers, body: &self.body };
        answer.read(Operation::GetRow, &credentials(), now)
    }

    fn read(&self) -> Result<message::Nothing, Error> {
        self.read_at(NOW)
    }
}

fn error(code: &str, text: &str) -> Vec<u8> {
    message::Error { code: code.into(), message: Some(text.into()) }.encode_to_vec()
}

#[test]
fn an_answer_needs_all_headers_and_a_right_signature() {
    assert!(signed(200, b"").read().is_ok());
    for (name, other) in [
        ("x-ots-contentmd5", "1B2M2Y8AsgTpgAmY7PhCfh=="),
        ("x-ots-contenttype", "text/html"),
        ("x-ots-date", "2026-11-26T08:30:16.000Z"),
        ("x-ots-date", "yesterday"),
        ("x-ots-requestid", "0006"),
        ("authorization", "OTS testid:AAAA"),
        ("authorization", "Basic dGVzdA=="),
    ] {
        let mut missing = signed(200, b"");
        missing.remove(name);
        let failed = missing.read().unwrap_err();
        assert_eq!((failed.code.as_str(), failed.class), (NOT_AN_ANSWER, Class::Unknown), "{name}");
        let mut changed = signed(200, b"");
        changed.set(name, other);
        assert_eq!(changed.read().unwrap_err().code, NOT_AN_ANSWER, "{name}");
    }
    let mut another_key = signed(200, b"");
    let authorization = another_key.headers.pop().unwrap().1.replace("testid", "another");
    another_key.headers.push(("authorization".into(), authorization));
    assert_eq!(another_key.read().unwrap_err().code, NOT_AN_ANSWER);
}

/// An old answer cannot be replayed after the time by which the clocks may differ.
#[test]
fn an_answer_is_refused_when_its_date_is_too_far_off() {
    let window = i64::try_from(CLOCK_WINDOW).unwrap() * 1000;
    for (now, is_ok) in
        [(NOW + window, true), (NOW - window, true), (NOW + window + 1, false), (NOW - window - 1, false)]
    {
        assert_eq!(signed(200, b"").read_at(now).is_ok(), is_ok, "{now}");
    }
}

#[test]
fn an_error_may_be_unsigned_and_what_it_has_must_be_right() {
    let body = error("OTSServerBusy", "Server is busy.");
    assert_eq!(signed(503, &body).read().unwrap_err().class, Class::Busy);
    let mut bare = signed(503, &body);
    bare.headers.clear();
    assert_eq!(bare.read().unwrap_err().class, Class::Busy);
    for name in ["x-ots-contentmd5", "authorization"] {
        let mut wrong = signed(503, &body);
        wrong.set(name, "OTS testid:AAAA");
        assert_eq!(wrong.read().unwrap_err().code, NOT_AN_ANSWER, "{name}");
    }
    // Such an answer cannot be signed, because the key is not known, and its date may be far off.
    let mut refused = signed(403, &error("OTSAuthFailed", "Mismatch between system time and x-ots-date."));
    refused.set("authorization", "OTS testid:AAAA");
    assert_eq!(refused.read_at(NOW + 86_400_000).unwrap_err().class, Class::Refused);
}

#[test]
fn an_answer_that_is_not_the_services_says_so() {
    for (status, body, code, class) in [
        (502, &b"<html>Bad Gateway</html>"[..], "Http502", Class::Unknown),
        (503, b"", "Http503", Class::Unknown),
        (407, b"proxy", "Http407", Class::Refused),
        (404, b"<html></html>", "Http404", Class::Invalid),
        (200, b"<html></html>", NOT_AN_ANSWER, Class::Unknown),
    ] {
        let answer = Answer { status, headers: vec![("content-type", "text/html")], body };
        let failed = answer.read::<message::Nothing>(Operation::PutRow, &credentials(), NOW).unwrap_err();
        assert_eq!((failed.code.as_str(), failed.class), (code, class), "{status}");
    }
    let headers = vec![("location", "https://elsewhere.ots.aliyuncs.com/")];
    let moved = Answer { status: 301, headers, body: b"" };
    let failed = moved.read::<message::Nothing>(Operation::PutRow, &credentials(), NOW).unwrap_err();
    assert!(failed.message.contains("refers to https://elsewhere"), "{failed}");
    assert_eq!(failed.class, Class::Refused);
}

#[test]
fn no_error_repeats_a_secret() {
    let body = error("OTSAuthFailed", "Signature mismatch for hush-secret and hush-token.\nLine 2");
    let failed = signed(403, &body).read().unwrap_err();
    assert!(!failed.to_string().contains("hush"), "{failed}");
    assert!(!failed.message.contains('\n'), "{failed}");
}

#[test]
fn a_date_may_have_any_number_of_fraction_digits() {
    for text in [
        "2026-11-26T08:30:15.000Z",
        "2026-11-26T08:30:15Z",
        "2026-11-26T08:30:15.1Z",
        // Format of the SDK for Go.
        "2026-11-26T08:30:15.11261Z",
    ] {
        assert_eq!(parse_date(text), Some(NOW), "{text}");
    }
    for text in [
        "",
        "Z",
        "2026-11-26T08:30:15",
        "2026-11-26T08:30Z",
        "2026-11-26T08:30:15x1Z",
        "2026-13-26T08:30:15Z",
        "2026-11-26T08:30:1é5Z",
    ] {
        assert_eq!(parse_date(text), None, "{text}");
    }
    assert_eq!(format_date(NOW), "2026-11-26T08:30:15.000Z");
    assert_eq!(format_date(i64::MAX), "1970-01-01T00:00:00.000Z");
}
