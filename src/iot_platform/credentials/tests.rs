//! Tests with changing files and a local metadata service. The time is an argument, so no test
//! waits for credentials to expire.

use std::{collections::VecDeque, fs, path::Path, time::Duration};

use axum::{
    Router,
    extract::{Request, State},
    http::{Method, StatusCode},
};
use tokio::{net::TcpListener, sync::Notify, task::JoinHandle};

use super::*;

/// `2026-01-01T00:00:00Z`
const NOW: i64 = 1_767_225_600;
const HOUR: i64 = 3600;

/// Behaviour of the test's metadata service.
#[derive(Default)]
struct Script {
    answers: Mutex<VecDeque<(u16, String)>>,
    /// Requests so far, as `METHOD PATH`, followed by `with token` if the request had one.
    asked: Mutex<Vec<String>>,
    /// Set if the service has hardened mode. `only_tokens` is set if it refuses requests without
    /// a token.
    tokens: bool,
    only_tokens: bool,
    /// If present, each answer waits for a notification.
    held_up: Option<Arc<Notify>>,
}

/// A metadata service on loopback, which ends with the test.
struct Stand {
    script: Arc<Script>,
    endpoint: String,
    server: JoinHandle<()>,
}

impl Drop for Stand {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Stand {
    async fn start(script: Script, answers: impl IntoIterator<Item = (u16, String)>) -> Self {
        let script = Arc::new(Script { answers: Mutex::new(answers.into_iter().collect()), ..script });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let router = Router::new().fallback(answer).with_state(script.clone());
        let server = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { script, endpoint, server }
    }

    fn role(&self, name: Option<&str>) -> Role {
        Role { name: name.map(Into::into), metadata_endpoint: self.endpoint.clone(), token_required: false }
    }

    fn holder(&self, name: Option<&str>) -> Holder {
        Holder::new(Source::Role(self.role(name))).unwrap()
    }

    fn asked(&self) -> Vec<String> {
        self.script.asked.lock().unwrap().clone()
    }
}

async fn answer(State(script): State<Arc<Script>>, request: Request) -> (StatusCode, String) {
    let token = request.headers().get("X-aliyun-ecs-metadata-token").is_some_and(|token| token == "a-token");
    let path = request.uri().path();
    let with = if token { " with token" } else { "" };
    script.asked.lock().unwrap().push(format!("{} {path}{with}", request.method()));
    if let Some(notify) = &script.held_up {
        notify.notified().await;
    }
    let (status, body) = match path {
        "/latest/api/token" if script.tokens && *request.method() == Method::PUT => (200, "a-token".into()),
        "/latest/api/token" => (404, String::new()),
        _ if script.only_tokens && !token => (403, String::new()),
        _ => script.answers.lock().unwrap().pop_front().unwrap_or((404, String::new())),
    };
    (StatusCode::from_u16(status).unwrap(), body)
}

fn key(id: &str, expires: i64) -> (u16, String) {
    let expiration = jiff::Timestamp::from_second(expires).unwrap();
    let body = serde_json::json!({
        "Code": "Success", "AccessKeyId": id, "AccessKeySecret": "hush", "SecurityToken": "CAIS-hush",
        "Expiration": expiration.to_string(), "LastUpdated": "2026-01-01T00:00:00Z"
    });
    (200, body.to_string())
}

async fn current(holder: &Holder, now: i64) -> Result<Arc<Credentials>, ApiError> {
    holder.current(now, Instant::now() + Duration::from_secs(10)).await
}

async fn id(holder: &Holder, now: i64) -> String {
    current(holder, now).await.unwrap().access_key_id.clone()
}

#[tokio::test]
async fn a_role_is_read_in_hardened_mode_and_by_its_attached_name() {
    let script = Script { tokens: true, only_tokens: true, ..Script::default() };
    let stand = Stand::start(script, [(200, "certdist\n".into()), key("STS.1", NOW + 6 * HOUR)]).await;
    let credentials = current(&stand.holder(None), NOW).await.unwrap();
    assert_eq!(credentials.access_key_id, "STS.1");
    assert_eq!(credentials.access_key_secret.expose(), "hush");
    assert_eq!(credentials.security_token.as_ref().unwrap().expose(), "CAIS-hush");
    let roles = "GET /latest/meta-data/ram/security-credentials/";
    assert_eq!(
        stand.asked(),
        [
            "PUT /latest/api/token".into(),
            format!("{roles} with token"),
            format!("{roles}certdist with token")
        ]
    );
}

#[tokio::test]
async fn an_instance_without_hardened_mode_is_read_without_a_token_unless_one_is_required() {
    let stand = Stand::start(Script::default(), [key("STS.1", NOW + 6 * HOUR)]).await;
    assert_eq!(id(&stand.holder(Some("certdist")), NOW).await, "STS.1");
    let required = Role { token_required: true, ..stand.role(Some("certdist")) };
    let asked = stand.asked().len();
    let error = current(&Holder::new(Source::Role(required)).unwrap(), NOW).await.unwrap_err();
    assert_eq!((error.class, error.code.as_str()), (ErrorClass::Operator, "Credentials"));
    assert!(error.message.contains("metadata_token = \"required\""), "{error}");
    assert_eq!(stand.asked()[asked..], ["PUT /latest/api/token"]);
}

#[tokio::test]
async fn a_token_is_read_again_shortly_before_it_expires() {
    let expires = NOW + 6 * HOUR;
    let answers = [key("STS.1", expires), key("STS.1", expires), key("STS.2", expires + 6 * HOUR)];
    let stand = Stand::start(Script::default(), answers).await;
    let holder = stand.holder(Some("certdist"));
    assert_eq!(id(&holder, NOW).await, "STS.1");
    assert_eq!(id(&holder, expires - READ_AHEAD - 1).await, "STS.1");
    assert_eq!(stand.asked().len(), 2, "a token and a key");
    // The service still returns the old access key, so the next calls do not ask the service again.
    let early = expires - READ_AHEAD;
    for _ in 0..3 {
        assert_eq!(id(&holder, early).await, "STS.1");
    }
    assert_eq!(stand.asked().len(), 4);
    assert_eq!(id(&holder, early + MAX_PAUSE).await, "STS.2");
    assert_eq!(stand.asked().len(), 6);
}

#[tokio::test]
async fn old_credentials_are_used_while_they_are_valid_and_no_longer() {
    let expires = NOW + HOUR;
    let stand = Stand::start(Script::default(), [key("STS.1", expires), (500, String::new())]).await;
    let holder = stand.holder(Some("certdist"));
    assert_eq!(id(&holder, NOW).await, "STS.1");
    assert_eq!(id(&holder, expires - 60).await, "STS.1", "the service fails");
    assert_eq!(id(&holder, expires - 1).await, "STS.1", "it knows no such role any more");
    let error = current(&holder, expires).await.unwrap_err();
    assert_eq!(error.class, ErrorClass::Operator);
    assert!(error.message.contains("does not return the RAM role certdist (HTTP 404)"), "{error}");
}

#[tokio::test]
async fn a_failed_read_is_repeated_less_and_less_often() {
    let stand = Stand::start(Script::default(), []).await;
    let holder = stand.holder(Some("certdist"));
    let mut readings = Vec::new();
    for second in 0..200 {
        let before = stand.asked().len();
        assert!(current(&holder, NOW + second).await.is_err());
        if stand.asked().len() > before {
            readings.push(second);
        }
    }
    assert_eq!(readings, [0, 1, 3, 7, 15, 31, 63, 123, 183]);
    // A clock that is set back does not prolong the pause.
    let before = stand.asked().len();
    assert!(current(&holder, NOW - 2 * HOUR).await.is_err());
    assert!(stand.asked().len() > before);
}

#[tokio::test]
async fn a_hundred_calls_at_once_read_once() {
    let held_up = Arc::new(Notify::new());
    let script = Script { held_up: Some(held_up.clone()), ..Script::default() };
    let stand = Stand::start(script, [key("STS.1", NOW + 6 * HOUR)]).await;
    let holder = Arc::new(stand.holder(Some("certdist")));
    let calls: Vec<_> = (0..100)
        .map(|_| {
            let holder = holder.clone();
            tokio::spawn(async move { id(&holder, NOW).await })
        })
        .collect();
    // The two requests are for the token and for the access key.
    held_up.notify_one();
    until(|| stand.asked().len() == 2).await;
    held_up.notify_one();
    for call in calls {
        assert_eq!(call.await.unwrap(), "STS.1");
    }
    assert_eq!(stand.asked().len(), 2);
}

#[tokio::test]
async fn only_the_call_that_reads_waits_while_the_old_ones_are_valid() {
    let held_up = Arc::new(Notify::new());
    let script = Script { held_up: Some(held_up.clone()), ..Script::default() };
    let expires = NOW + HOUR;
    let stand = Stand::start(script, [key("STS.1", expires), key("STS.2", expires + HOUR)]).await;
    let holder = Arc::new(stand.holder(Some("certdist")));
    let reader = |now| {
        let holder = holder.clone();
        tokio::spawn(async move { id(&holder, now).await })
    };
    let first = reader(NOW);
    held_up.notify_one();
    until(|| stand.asked().len() == 2).await;
    held_up.notify_one();
    assert_eq!(first.await.unwrap(), "STS.1");
    let second = reader(expires - 60);
    until(|| stand.asked().len() == 3).await;
    // The reading call has no answer yet, and this call gets the old credentials.
    assert_eq!(id(&holder, expires - 60).await, "STS.1");
    held_up.notify_one();
    until(|| stand.asked().len() == 4).await;
    held_up.notify_one();
    assert_eq!(second.await.unwrap(), "STS.2");
}

#[tokio::test]
async fn a_service_that_stalls_ends_with_the_calls_deadline() {
    let script = Script { held_up: Some(Arc::new(Notify::new())), ..Script::default() };
    let stand = Stand::start(script, []).await;
    let started = std::time::Instant::now();
    let deadline = Instant::now() + Duration::from_millis(100);
    let error = stand.holder(None).current(NOW, deadline).await.unwrap_err();
    assert_eq!(error.class, ErrorClass::TryAgain);
    assert!(error.message.contains("no answer from the metadata service http://127.0.0.1"), "{error}");
    assert!(error.message.contains("set credentials to \"env\""), "{error}");
    assert!(started.elapsed() < EARLY_READ_TIMEOUT, "{:?}", started.elapsed());
}

#[tokio::test]
async fn a_token_that_the_cloud_refuses_is_replaced_at_once_and_never_used_again() {
    let answers = [key("STS.1", NOW + HOUR), key("STS.2", NOW + HOUR)];
    let stand = Stand::start(Script::default(), answers).await;
    let holder = stand.holder(Some("certdist"));
    let first = current(&holder, NOW).await.unwrap();
    assert!(holder.refuse(&first));
    let second = current(&holder, NOW).await.unwrap();
    assert_eq!(second.access_key_id, "STS.2");
    // A call that used the first token reports late that the cloud has refused it.
    assert!(holder.refuse(&first));
    assert!(Arc::ptr_eq(&current(&holder, NOW).await.unwrap(), &second));
    // The service has no other credentials, and the refused credentials are not used.
    assert!(holder.refuse(&second));
    assert_eq!(current(&holder, NOW).await.unwrap_err().code, "Credentials");
}

#[tokio::test]
async fn an_answer_without_a_key_or_with_an_expired_one_is_not_accepted() {
    for (answer, class, what) in [
        ((200, "<html>".into()), ErrorClass::TryAgain, "has no access key"),
        ((200, r#"{"Code":"Failed"}"#.into()), ErrorClass::TryAgain, "has no access key"),
        (
            (200, r#"{"Code":"Success","AccessKeyId":"STS.1","AccessKeySecret":"hush"}"#.into()),
            ErrorClass::TryAgain,
            "has no access key",
        ),
        (key("STS.1", NOW), ErrorClass::TryAgain, "clock"),
        ((200, "x".repeat(20_000)), ErrorClass::TryAgain, "too long"),
        ((503, String::new()), ErrorClass::TryAgain, "HTTP 503"),
        ((404, String::new()), ErrorClass::Operator, "correct ecs-role:NAME"),
    ] {
        let stand = Stand::start(Script::default(), [answer]).await;
        let error = current(&stand.holder(Some("certdist")), NOW).await.unwrap_err();
        assert_eq!(error.class, class, "{error}");
        assert!(error.message.contains(what) && !error.message.contains("hush"), "{error}");
    }
    let stand = Stand::start(Script::default(), []).await;
    let error = current(&stand.holder(None), NOW).await.unwrap_err();
    assert!(error.message.contains("attach one to the instance"), "{error}");
}

fn file(path: &Path, role: Role) -> Holder {
    let file = CredentialsFile { path: path.to_owned(), profile: "default".into(), role };
    Holder::new(Source::File(file)).unwrap()
}

fn write(path: &Path, id: &str) {
    fs::write(path, format!("[default]\ntype=access_key\naccess_key_id={id}\naccess_key_secret=hush\n"))
        .unwrap();
}

#[tokio::test]
async fn a_file_is_read_again_when_it_has_changed_and_only_then() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("credentials");
    write(&path, "LTAI1");
    let holder = file(&path, Role::default());
    let first = current(&holder, NOW).await.unwrap();
    assert_eq!(first.access_key_id, "LTAI1");
    assert!(Arc::ptr_eq(&first, &current(&holder, NOW + 24 * HOUR).await.unwrap()));
    // A secret store replaces the file by renaming another file.
    let other = folder.path().join("other");
    write(&other, "LTAI2");
    fs::rename(&other, &path).unwrap();
    assert_eq!(id(&holder, NOW).await, "LTAI2");
    // The file is first wrong, and then missing. In both cases, the old access key is still used.
    fs::write(&path, "[other]\n").unwrap();
    assert_eq!(id(&holder, NOW).await, "LTAI2");
    fs::remove_file(&path).unwrap();
    assert_eq!(id(&holder, NOW).await, "LTAI2");
    // A file that is fixed during the pause is read immediately.
    write(&path, "LTAI3-longer");
    assert_eq!(id(&holder, NOW).await, "LTAI3-longer");
}

#[tokio::test]
async fn a_fixed_file_is_read_at_once_also_without_old_credentials() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("credentials");
    let holder = file(&path, Role::default());
    let error = current(&holder, NOW).await.unwrap_err();
    assert_eq!(error.class, ErrorClass::Operator);
    assert!(error.message.contains("credentials: cannot be read"), "{error}");
    write(&path, "LTAI1");
    assert_eq!(id(&holder, NOW).await, "LTAI1");
}

#[tokio::test]
async fn a_profile_may_name_a_role() {
    let stand = Stand::start(Script::default(), [key("STS.1", NOW + HOUR)]).await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("credentials");
    fs::write(&path, "[default]\ntype = ecs_ram_role\nrole_name = certdist\n").unwrap();
    assert_eq!(id(&file(&path, stand.role(None)), NOW).await, "STS.1");
    assert!(stand.asked()[1].ends_with("/certdist"));
}

#[tokio::test]
async fn given_credentials_stay_and_nothing_prints_a_secret() {
    let given = Credentials {
        access_key_id: "LTAI1".into(),
        access_key_secret: Secret::new("hush".into()),
        security_token: Some(Secret::new("CAIS-hush".into())),
    };
    let source = Source::from(given);
    assert!(!format!("{source:?}").contains("hush") && !format!("{source:?}").contains("LTAI1"));
    let holder = Holder::new(source).unwrap();
    let credentials = current(&holder, NOW).await.unwrap();
    assert!(!holder.refuse(&credentials), "there are no others");
    assert_eq!(id(&holder, NOW).await, "LTAI1");
}

/// Lets other tasks run until `done` returns true, for 10 seconds at most.
async fn until(done: impl Fn() -> bool) {
    let waiting = async {
        while !done() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), waiting).await.expect("in time");
}

#[test]
fn an_account_has_one_name_wherever_its_access_key_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let of_file = |name: &str, id: &str| {
        let path = folder.path().join(name);
        write(&path, id);
        Source::File(CredentialsFile { path, profile: "default".into(), role: Role::default() }).account()
    };
    let given = Source::Given(Credentials {
        access_key_id: "LTAI1".into(),
        access_key_secret: Secret::new("hush".into()),
        security_token: None,
    });
    assert_eq!(of_file("one", "LTAI1"), given.account());
    assert_eq!(of_file("other", "LTAI1"), given.account());
    assert_ne!(of_file("other", "LTAI2"), given.account());
    assert!(!given.account().contains("LTAI"));
}
