//! Tests of the service with a real database and a cloud in memory. The tests bring about every
//! documented answer by its real cause. They also cover the decisions of `provision`, and check
//! which client may have which certificate.

mod guards;
mod host;
mod reading;
mod spelling;

use std::{sync::Arc, time::Duration};

use futures_util::FutureExt;
use minicbor::Encoder;
use tempfile::TempDir;
use tokio::runtime::Handle;

use super::*;
use crate::{
    coap::{self, Endpoint},
    device::Secret,
    iot_platform::ErrorClass,
    psk::{Enrollment, Enrollments, Key, Kind, Reissue, WhichKey},
    rate_limit::Rate,
    registrar::{self, Registrar, Targets},
    resource::throttle::EnrollmentLimits,
    store::{Actor, DeviceState, ImportRow, Store, sqlite::Sqlite},
    testing::{
        cloud::{Cloud, Scripted},
        store::import,
    },
};

/// Maximum time that a request waits for its registration. This is longer than a commit takes on a
/// busy disk.
const PATIENCE: Duration = Duration::from_secs(3);
const MASTER: &str = "000102030405060708090a0b0c0d0e0f";

fn home() -> Source {
    Source::of(([192, 0, 2, 1], 1000).into())
}

struct Bench {
    service: Arc<Service>,
    store: Arc<Sqlite>,
    registrar: Arc<Registrar>,
    cloud: Arc<Cloud>,
    enrollments: Enrollments,
    folder: TempDir,
}

fn enrollment(name: &str, kind: Kind, reissue: Reissue) -> Enrollment {
    Enrollment {
        name: name.into(),
        product_key: format!("a1{name}"),
        kind,
        reissue,
        next: None,
        guards: Default::default(),
    }
}

fn shared(name: &str, reissue: Reissue) -> Enrollment {
    let kind = Kind::Shared { identity: format!("{name}-identity"), key: Key::from_hex(MASTER).unwrap() };
    enrollment(name, kind, reissue)
}

fn row(device: &str, enrollment: &str) -> ImportRow {
    let individual = enrollment == "own";
    ImportRow {
        individual,
        key: individual.then(|| (format!("{device}-identity"), Secret::new(MASTER.into()))),
        ..ImportRow::new(DeviceId::parse(device).unwrap(), enrollment, &format!("a1{enrollment}"))
    }
}

impl Bench {
    fn new() -> Self {
        let folder = TempDir::new().unwrap();
        let store = Arc::new(Sqlite::open(&folder.path().join("certdist.db")).unwrap());
        let rows = [
            row("SN-1", "lamp"),
            row("SN-2", "lamp"),
            row("00:1a:2b:3c:4d:5e", "lamp"),
            row("PLUG-1", "plug"),
            row("PLUG-2", "plug"),
            row("ONCE-1", "once"),
            row("OWN-1", "own"),
            ImportRow {
                device_name: Some("known".into()),
                device_secret: Some(Secret::new("imported".into())),
                ..row("SN-KNOWN", "lamp")
            },
        ];
        import(&*store, rows);
        let enrollments = Enrollments::new([
            enrollment("lamp", Kind::Derived(Key::from_hex(MASTER).unwrap()), Reissue::Always),
            shared("plug", Reissue::Window(Duration::from_secs(60))),
            shared("once", Reissue::Once),
            enrollment("own", Kind::Individual, Reissue::Always),
        ]);
        Self::on(folder, store, Arc::default(), enrollments)
    }

    fn on(folder: TempDir, store: Arc<Sqlite>, cloud: Arc<Cloud>, enrollments: Enrollments) -> Self {
        let config = registrar::Config {
            qps: 1000.0,
            retry_pause: Duration::from_millis(1),
            max_attempts: 3,
            ..Default::default()
        };
        let registrar = Registrar::new(
            config,
            crate::store::claim::Owner::new("test").unwrap(),
            store.clone(),
            cloud.clone(),
            Handle::current(),
        );
        let provisioner = Provisioner::new(store.clone(), Targets::only(registrar.clone()), PATIENCE);
        let service = Service::new(Instant::now(), provisioner, RequestLimits::default());
        Self { service: Arc::new(service), store, registrar, cloud, enrollments, folder }
    }

    /// Sets the first issue of a device to a time long ago.
    fn issued_long_ago(&self, device: &str) {
        let table = rusqlite::Connection::open(self.store.path()).unwrap();
        let sql = "UPDATE device_table SET firstIssued = 1000 WHERE deviceId = ?1";
        assert_eq!(table.execute(sql, [device]).unwrap(), 1);
    }

    async fn principal(&self, identity: &str) -> Principal {
        let found = self.enrollments.find(identity.as_bytes(), &*self.store).await.unwrap();
        found.keys.unwrap_or_else(|| panic!("{identity} is unknown")).0.1
    }

    fn answer(&self, principal: &Principal, request: &Ask) -> Answer {
        self.service.answer(Instant::now(), home(), principal, &request.0, true)
    }

    async fn ask(&self, identity: &str, request: Ask) -> Response {
        let principal = self.principal(identity).await;
        match self.answer(&principal, &request) {
            Answer::Now(response) => response,
            Answer::Later(work) => work.await,
        }
    }

    /// Asks for the certificate of a device of the derived enrollment, in the name of that device.
    async fn ask_itself(&self, device: &str) -> Response {
        self.ask(device, get()).await
    }
}

struct Ask(Request<u8>);

/// Returns a GET of `/cert`. An endpoint makes the request, because no other code can create an
/// `ExchangeId`.
fn get() -> Ask {
    let mut out: Vec<(u8, Vec<u8>)> = Vec::new();
    let mut endpoint = Endpoint::new(coap::Config::default(), std::time::Instant::now(), [0; 32]);
    let bytes = [0x40, 1, 0, 1, 0xb4, b'c', b'e', b'r', b't'];
    Ask(endpoint.receive(std::time::Instant::now(), 0, &bytes, &mut out).unwrap())
}

impl Ask {
    fn with(mut self, change: impl FnOnce(&mut Request<u8>)) -> Self {
        change(&mut self.0);
        self
    }

    fn cbor(self, pairs: &[(&str, &str)]) -> Self {
        let mut encoder = Encoder::new(Vec::new());
        encoder.map(pairs.len() as u64).unwrap();
        for (key, value) in pairs {
            encoder.str(key).unwrap().str(value).unwrap();
        }
        self.with(|request| request.payload = encoder.into_writer())
    }

    fn body(self, content_format: u16, payload: &[u8]) -> Self {
        self.with(|request| {
            request.content_format = Some(content_format);
            request.payload = payload.to_vec();
        })
    }

    fn query(self, option: &str) -> Self {
        self.with(|request| request.query.push(option.into()))
    }
}

fn title(response: &Response) -> String {
    assert_eq!(response.content_format, Some(format::PROBLEM), "{:?}", response.code);
    let mut decoder = minicbor::Decoder::new(&response.payload);
    assert_eq!((decoder.map().unwrap(), decoder.i8().unwrap()), (Some(1), -1));
    decoder.str().unwrap().to_owned()
}

/// Returns the texts of a certificate in CBOR, by key.
fn certificate(response: &Response) -> std::collections::BTreeMap<String, String> {
    assert_eq!(response.code, Code::Content, "{}", String::from_utf8_lossy(&response.payload));
    assert_eq!(response.max_age, Some(0));
    assert_eq!(response.content_format, Some(format::CBOR));
    let mut decoder = minicbor::Decoder::new(&response.payload);
    (0..decoder.map().unwrap().unwrap())
        .map(|_| (decoder.str().unwrap().to_owned(), decoder.str().unwrap().to_owned()))
        .collect()
}

fn name(response: &Response) -> String {
    certificate(response)["deviceName"].clone()
}

#[tokio::test]
async fn a_device_with_a_certificate_gets_it_without_a_call() {
    let bench = Bench::new();
    let answer = bench.ask_itself("SN-KNOWN").await;
    let expected = [("deviceName", "known"), ("deviceSecret", "imported"), ("productKey", "a1lamp")];
    assert!(certificate(&answer).iter().map(|(key, value)| (key.as_str(), value.as_str())).eq(expected));
    assert_eq!(bench.cloud.registrations(), 0);
}

#[tokio::test]
async fn a_device_without_a_certificate_is_registered_once_and_stored() {
    let bench = Bench::new();
    let first = bench.ask_itself("SN-1").await;
    let created = bench.cloud.secret("a1lamp", "SN-1").expect("a device of that name");
    assert_eq!(certificate(&first)["deviceSecret"], created);
    let again = bench.ask_itself("SN-1").await;
    assert_eq!(*again.payload, *first.payload);
    assert_eq!(bench.cloud.registrations(), 1);
}

#[tokio::test]
async fn a_device_that_is_not_in_the_table_is_invalid() {
    let bench = Bench::new();
    let answer = bench.ask_itself("SN-STRANGER").await;
    assert_eq!((answer.code, title(&answer).as_str()), (Code::NotFound, "device is invalid"));
    assert_eq!(bench.cloud.registrations(), 0);
}

#[tokio::test]
async fn a_restart_loses_nothing() {
    let bench = Bench::new();
    let before = bench.ask_itself("SN-1").await;
    let Bench { service, store, registrar, cloud, enrollments, folder } = bench;
    drop((service, registrar));
    let path = store.path().to_owned();
    // The registrar's tasks keep the store open until they end.
    while Arc::strong_count(&store) > 1 {
        tokio::task::yield_now().await;
    }
    drop(store);
    let bench = Bench::on(folder, Arc::new(Sqlite::open(&path).unwrap()), cloud, enrollments);
    let after = bench.ask_itself("SN-1").await;
    assert_eq!(*after.payload, *before.payload);
    assert_eq!(bench.cloud.registrations(), 1);
}

#[tokio::test]
async fn get_fetch_and_post_are_the_same_and_other_methods_are_not() {
    let bench = Bench::new();
    for method in [Method::Get, Method::Fetch, Method::Post] {
        let answer = bench.ask("SN-1", get().with(|request| request.method = method)).await;
        assert_eq!(name(&answer), "SN-1");
    }
    for method in [Method::Put, Method::Delete, Method::Unknown] {
        let answer = bench.ask("SN-1", get().with(|request| request.method = method)).await;
        assert_eq!(answer.code, Code::MethodNotAllowed);
    }
}

#[tokio::test]
async fn every_spelling_of_a_mac_is_the_same_device() {
    let bench = Bench::new();
    let first = bench.ask_itself("001A2B3C4D5E").await;
    for identity in ["001A2B3C4D5E", "00:1a:2b:3c:4d:5e", "00-1A-2B-3C-4D-5E", "001a.2b3c.4d5e"] {
        let requests =
            [get(), get().cbor(&[("mac", "00:1A:2b:3c:4d:5e")]), get().query("deviceId=001a2b3c4d5e")];
        for request in requests {
            assert_eq!(*bench.ask(identity, request).await.payload, *first.payload, "{identity}");
        }
    }
    assert_eq!(bench.cloud.registrations(), 1);
}

#[tokio::test]
async fn a_shared_identity_must_name_the_device() {
    let bench = Bench::new();
    let answer = bench.ask("plug-identity", get()).await;
    assert_eq!(answer.code, Code::BadRequest);
    assert_eq!(name(&bench.ask("plug-identity", get().query("sn=PLUG-1")).await), "PLUG-1");
}

#[tokio::test]
async fn the_answer_is_cbor_or_json_and_nothing_else() {
    let bench = Bench::new();
    let accept = |value| get().with(|request| request.accept = Some(value));
    assert_eq!(name(&bench.ask("SN-KNOWN", accept(format::CBOR)).await), "known");
    let json = bench.ask("SN-KNOWN", accept(format::JSON)).await;
    assert_eq!(json.content_format, Some(format::JSON));
    let expected =
        serde_json::json!({"productKey": "a1lamp", "deviceName": "known", "deviceSecret": "imported"});
    assert_eq!(serde_json::from_slice::<serde_json::Value>(&json.payload).unwrap(), expected);
    assert_eq!(bench.ask("SN-KNOWN", accept(format::TEXT)).await.code, Code::NotAcceptable);
}

#[tokio::test]
async fn a_payload_that_is_too_long_or_in_another_format_has_its_own_code() {
    let bench = Bench::new();
    let answer = bench.ask("SN-1", get().body(format::CBOR, &[0; MAX_PAYLOAD + 1])).await;
    assert_eq!((answer.code, answer.size1), (Code::RequestEntityTooLarge, Some(512)));
    let answer = bench.ask("SN-1", get().body(41, b"<sn>SN-1</sn>")).await;
    assert_eq!(answer.code, Code::UnsupportedContentFormat);
}

#[tokio::test]
async fn other_paths_are_not_found_and_the_links_are_listed() {
    let bench = Bench::new();
    let path = |segments: &[&str]| {
        let segments = segments.iter().map(|segment| (*segment).to_owned()).collect();
        get().with(|request| request.path = segments)
    };
    for segments in [&[][..], &["certs"], &["cert", "x"], &[""], &[".well-known"]] {
        assert_eq!(bench.ask("SN-1", path(segments)).await.code, Code::NotFound);
    }
    let links = bench.ask("SN-1", path(&[".well-known", "core"])).await;
    assert_eq!((links.code, links.content_format), (Code::Content, Some(40)));
    assert!(links.payload.starts_with(b"</cert>;"));
}

#[tokio::test]
async fn a_device_gets_only_its_own_certificate() {
    let bench = Bench::new();
    bench.ask_itself("SN-2").await;
    // The answer is the same for an existing device, a device of another enrollment, and a
    // device that does not exist.
    for other in ["SN-2", "PLUG-1", "SN-STRANGER"] {
        let answer = bench.ask("SN-1", get().query(&format!("deviceId={other}"))).await;
        assert_eq!((answer.code, title(&answer).as_str()), (Code::Forbidden, "not this identity's device"));
    }
    let answer = bench.ask("OWN-1-identity", get().query("sn=SN-1")).await;
    assert_eq!(answer.code, Code::Forbidden);
    assert_eq!(name(&bench.ask("OWN-1-identity", get()).await), "OWN-1");
}

#[tokio::test]
async fn a_device_of_another_enrollment_looks_like_one_that_does_not_exist() {
    let bench = Bench::new();
    let foreign = bench.ask("plug-identity", get().query("sn=SN-1")).await;
    let missing = bench.ask("plug-identity", get().query("sn=SN-STRANGER")).await;
    assert_eq!(foreign.code, Code::NotFound);
    assert_eq!((foreign.code, &foreign.payload), (missing.code, &missing.payload));
    // The master key of `lamp` also gives no access to devices of other enrollments.
    assert_eq!(bench.ask_itself("PLUG-1").await.code, Code::NotFound);
}

#[tokio::test]
async fn a_disabled_device_is_forbidden_until_it_is_enabled() {
    let bench = Bench::new();
    let id = DeviceId::parse("SN-KNOWN").unwrap();
    bench.store.set_state(&id, DeviceState::Disabled, &Actor::system_user()).await.unwrap();
    let answer = bench.ask_itself("SN-KNOWN").await;
    assert_eq!((answer.code, title(&answer).as_str()), (Code::Forbidden, "device is disabled"));
    bench.store.set_state(&id, DeviceState::Enabled, &Actor::system_user()).await.unwrap();
    assert_eq!(name(&bench.ask_itself("SN-KNOWN").await), "known");
}

#[tokio::test]
async fn a_refusal_that_cannot_be_recorded_is_not_given() {
    let bench = Bench::new();
    let id = DeviceId::parse("SN-KNOWN").unwrap();
    bench.store.set_state(&id, DeviceState::Disabled, &Actor::system_user()).await.unwrap();
    // No file can be created while the folder has another name. The table is open already.
    bench.principal("SN-KNOWN").await;
    let away = bench.folder.path().with_extension("away");
    std::fs::rename(bench.folder.path(), &away).unwrap();
    let answer = bench.ask_itself("SN-KNOWN").await;
    std::fs::rename(&away, bench.folder.path()).unwrap();
    assert_eq!((answer.code, answer.max_age), (Code::ServiceUnavailable, Some(30)));
    assert_eq!(bench.ask_itself("SN-KNOWN").await.code, Code::Forbidden);
}

#[tokio::test]
async fn a_certificate_issued_once_is_issued_again_only_after_a_reset() {
    let bench = Bench::new();
    let ask = || bench.ask("once-identity", get().query("sn=ONCE-1"));
    assert_eq!(name(&ask().await), "ONCE-1");
    let answer = ask().await;
    assert_eq!((answer.code, title(&answer).as_str()), (Code::Forbidden, "certificate was issued already"));
    bench.store.reset(&DeviceId::parse("ONCE-1").unwrap(), &Actor::system_user()).await.unwrap();
    assert_eq!(name(&ask().await), "ONCE-1");
    assert_eq!(bench.cloud.registrations(), 1, "the same certificate, not a new device");
}

#[tokio::test]
async fn only_one_of_many_concurrent_requests_gets_a_certificate_issued_once() {
    let bench = Bench::new();
    let mut tasks = Vec::new();
    for _ in 0..50 {
        let service = bench.service.clone();
        let principal = bench.principal("once-identity").await;
        tasks.push(tokio::spawn(async move {
            match service.answer(Instant::now(), home(), &principal, &get().query("sn=ONCE-1").0, true) {
                Answer::Now(response) => response,
                Answer::Later(work) => work.await,
            }
        }));
    }
    let mut served = 0;
    for task in tasks {
        served += usize::from(task.await.unwrap().code == Code::Content);
    }
    assert_eq!(served, 1);
}

#[tokio::test]
async fn a_certificate_is_issued_again_within_its_window_and_not_after_it() {
    let bench = Bench::new();
    let ask = || bench.ask("plug-identity", get().query("sn=PLUG-1"));
    assert_eq!(name(&ask().await), "PLUG-1");
    assert_eq!(name(&ask().await), "PLUG-1");
    let row = bench.store.device(&DeviceId::parse("PLUG-1").unwrap()).await.unwrap().unwrap();
    assert!(row.first_issued.is_some(), "on the disk before the answer left");
    // The first issue of PLUG-2 is moved to a time before the window.
    bench.issued_long_ago("PLUG-2");
    assert_eq!(bench.ask("plug-identity", get().query("sn=PLUG-2")).await.code, Code::Forbidden);
}

#[tokio::test]
async fn under_every_policy_the_first_issue_is_on_the_disk_before_the_answer() {
    let bench = Bench::new();
    // A second connection sees only what is committed.
    let disk = rusqlite::Connection::open(bench.store.path()).unwrap();
    let first_issued = |device: &str| -> Option<i64> {
        disk.query_row("SELECT firstIssued FROM device_table WHERE deviceId = ?1", [device], |row| row.get(0))
            .unwrap()
    };
    for (identity, device) in [
        ("SN-KNOWN", "SN-KNOWN"),
        ("SN-1", "SN-1"),
        ("OWN-1-identity", "OWN-1"),
        ("plug-identity", "PLUG-1"),
        ("once-identity", "ONCE-1"),
    ] {
        assert_eq!(first_issued(device), None, "{device}");
        let answer = bench.ask(identity, get().query(&format!("sn={device}"))).await;
        assert!(first_issued(device).is_some(), "{device}: {:?}", answer.code);
        assert_eq!(answer.code, Code::Content, "{device}");
    }
}

#[tokio::test]
async fn a_device_that_asks_again_is_answered_at_once_without_a_write() {
    let bench = Bench::new();
    let first = bench.ask_itself("SN-KNOWN").await;
    // No other connection can write while this lock is held.
    let lock = rusqlite::Connection::open(bench.store.path()).unwrap();
    lock.execute_batch("BEGIN IMMEDIATE").unwrap();
    let principal = bench.principal("SN-KNOWN").await;
    let Answer::Later(mut work) = bench.answer(&principal, &get()) else { panic!("no work") };
    let step = work.as_mut().poll(&mut std::task::Context::from_waker(std::task::Waker::noop()));
    let std::task::Poll::Ready(again) = step else { panic!("not ready at its first poll") };
    assert_eq!(*again.payload, *first.payload);
}

#[tokio::test]
async fn a_certificate_whose_first_issue_cannot_be_recorded_is_not_issued() {
    let bench = Bench::new();
    let disk = rusqlite::Connection::open(bench.store.path()).unwrap();
    disk.execute_batch(
        "CREATE TRIGGER broken BEFORE UPDATE OF firstIssued ON device_table \
         BEGIN SELECT RAISE (ABORT, 'the disk failed'); END",
    )
    .unwrap();
    let answer = bench.ask_itself("SN-KNOWN").await;
    assert_eq!((answer.code, answer.max_age), (Code::ServiceUnavailable, Some(30)));
    disk.execute_batch("DROP TRIGGER broken").unwrap();
    assert_eq!(name(&bench.ask_itself("SN-KNOWN").await), "known");
}

#[tokio::test]
async fn an_error_that_the_operator_must_fix_is_a_bad_gateway() {
    let bench = Bench::new();
    bench.cloud.script([Scripted::Refuse(ErrorClass::Operator)]);
    assert_eq!(bench.ask_itself("SN-1").await.code, Code::BadGateway);
}

#[tokio::test]
async fn a_refused_device_is_a_bad_gateway_until_it_is_reset() {
    let bench = Bench::new();
    bench.cloud.script([Scripted::Refuse(ErrorClass::Device)]);
    for _ in 0..3 {
        assert_eq!(bench.ask_itself("SN-1").await.code, Code::BadGateway);
    }
    assert_eq!(bench.cloud.registrations(), 1);
    bench.store.reset(&DeviceId::parse("SN-1").unwrap(), &Actor::system_user()).await.unwrap();
    assert_eq!(name(&bench.ask_itself("SN-1").await), "SN-1");
}

#[tokio::test]
async fn a_cloud_that_keeps_failing_is_unavailable_with_a_time_to_retry() {
    let bench = Bench::new();
    bench.cloud.script(vec![Scripted::Refuse(ErrorClass::TryAgain); 3]);
    let answer = bench.ask_itself("SN-1").await;
    assert_eq!((answer.code, answer.max_age), (Code::ServiceUnavailable, Some(30)));
    assert_eq!(title(&answer), "registration is queued");
    assert_eq!(name(&bench.ask_itself("SN-1").await), "SN-1");
}

#[tokio::test]
async fn a_stopping_server_registers_no_device_and_still_serves_those_with_a_certificate() {
    let bench = Bench::new();
    assert_eq!(bench.registrar.drain(Duration::ZERO).await, 0);
    let answer = bench.ask_itself("SN-1").await;
    assert_eq!((answer.code, answer.max_age), (Code::ServiceUnavailable, Some(10)));
    assert_eq!(name(&bench.ask_itself("SN-KNOWN").await), "known");
    assert_eq!(bench.cloud.registrations(), 0);
}

#[tokio::test]
async fn a_client_that_asks_too_often_is_asked_to_retry_later_and_the_table_is_not_read() {
    let mut bench = Bench::new();
    let limits =
        RequestLimits { per_identity: Rate::new(2, Duration::from_secs(60)), ..RequestLimits::default() };
    bench.service = Arc::new(bench.service.with_limits(limits));
    for _ in 0..2 {
        assert_eq!(name(&bench.ask_itself("SN-KNOWN").await), "known");
    }
    let principal = bench.principal("SN-KNOWN").await;
    let Answer::Now(answer) = bench.answer(&principal, &get()) else { panic!("there is work to do") };
    assert_eq!((answer.code, title(&answer).as_str()), (Code::TooManyRequests, "too many requests"));
    assert!((50..=60).contains(&answer.max_age.unwrap()), "{:?}", answer.max_age);
    // An unreadable request still gets 4.00, and another device has its own tokens.
    assert_eq!(bench.ask("SN-KNOWN", get().query("sn=")).await.code, Code::BadRequest);
    assert_eq!(name(&bench.ask_itself("SN-1").await), "SN-1");
}

#[tokio::test]
async fn every_kind_of_refusal_counts_as_a_guess_and_a_success_does_not() {
    let mut bench = Bench::new();
    let tries = EnrollmentLimits { requests: None, refused_lookups: Rate::new(3, Duration::from_secs(60)) };
    let limits = |name: &str| RequestLimits {
        enrollments: [(name.to_owned(), tries)].into(),
        ..RequestLimits::default()
    };
    bench.service = Arc::new(bench.service.with_limits(limits("plug")));
    bench.issued_long_ago("PLUG-2");
    let ask = |device: &str| bench.ask("plug-identity", get().query(&format!("sn={device}")));
    for _ in 0..10 {
        assert_eq!(name(&ask("PLUG-1").await), "PLUG-1");
    }
    assert_eq!(ask("STRANGER").await.code, Code::NotFound);
    assert_eq!(ask("PLUG-2").await.code, Code::Forbidden, "issued long ago");
    bench
        .store
        .set_state(&DeviceId::parse("PLUG-1").unwrap(), DeviceState::Disabled, &Actor::system_user())
        .await
        .unwrap();
    assert_eq!(ask("PLUG-1").await.code, Code::Forbidden, "disabled");
    // After the limit is reached, a right guess and a wrong guess get the same answer.
    bench
        .store
        .set_state(&DeviceId::parse("PLUG-1").unwrap(), DeviceState::Enabled, &Actor::system_user())
        .await
        .unwrap();
    for device in ["PLUG-1", "STRANGER"] {
        assert_eq!(ask(device).await.code, Code::TooManyRequests, "{device}");
    }
    assert_eq!(name(&bench.ask("once-identity", get().query("sn=ONCE-1")).await), "ONCE-1");
}

#[tokio::test]
async fn a_cloud_that_is_too_slow_is_a_gateway_timeout_and_the_certificate_is_there_next_time() {
    let bench = Bench::new();
    bench.cloud.script([Scripted::Slow(2 * PATIENCE)]);
    assert_eq!(bench.ask_itself("SN-1").await.code, Code::GatewayTimeout);
    // Another request waits for the same registration, or gets its result.
    let mut answer = bench.ask_itself("SN-1").await;
    while answer.code == Code::GatewayTimeout {
        answer = bench.ask_itself("SN-1").await;
    }
    assert_eq!(name(&answer), "SN-1");
    assert_eq!(bench.cloud.registrations(), 1);
}

#[tokio::test]
async fn a_condition_that_does_not_hold_is_never_ignored() {
    let bench = Bench::new();
    let path = |segments: &[&str]| segments.iter().map(|segment| (*segment).to_owned()).collect::<Vec<_>>();
    // RFC 7252 §5.10.8.1: an empty If-Match only requires that the resource exists.
    for (if_match, if_none_match, expected) in [
        (&[][..], false, Code::Content),
        (&[&b""[..]], false, Code::Content),
        (&[b"abcd"], false, Code::PreconditionFailed),
        (&[b"abcd", b""], false, Code::Content),
        (&[], true, Code::PreconditionFailed),
        (&[b""], true, Code::PreconditionFailed),
    ] {
        for resource in [path(&["cert"]), path(&[".well-known", "core"])] {
            let request = get().with(|request| {
                request.path = resource.clone();
                request.if_match = if_match.iter().map(|etag| etag.to_vec()).collect();
                request.if_none_match = if_none_match;
            });
            let response = bench.ask("SN-KNOWN", request).await;
            assert_eq!(response.code, expected, "{resource:?} {if_match:?} {if_none_match}");
        }
    }
    assert_eq!(bench.cloud.registrations(), 0);
}

/// If an issue were recorded and the answer dropped, a device whose certificate is issued only once
/// would never get it.
#[tokio::test]
async fn a_request_that_may_not_wait_starts_nothing_that_takes_time() {
    let bench = Bench::new();
    let known = DeviceId::parse("SN-KNOWN").unwrap();
    let poll = async |device: &str| {
        let principal = bench.principal(device).await;
        match bench.service.answer(Instant::now(), home(), &principal, &get().0, false) {
            Answer::Now(_) => panic!("it is a request for a certificate"),
            Answer::Later(work) => work.now_or_never(),
        }
    };
    assert!(poll("SN-1").await.is_none(), "it has to be registered");
    assert!(poll("SN-KNOWN").await.is_none(), "its first issue has to be recorded");
    // Writes are done in order, so this write ends after any write that these requests could have
    // started.
    bench.store.reset(&DeviceId::parse("SN-2").unwrap(), &Actor::system_user()).await.unwrap();
    assert_eq!(bench.cloud.registrations(), 0);
    assert_eq!(bench.store.device(&known).await.unwrap().unwrap().first_issued, None);
    assert_eq!(name(&bench.ask_itself("SN-KNOWN").await), "known");
    assert_eq!(poll("SN-KNOWN").await.map(|answer| name(&answer)).as_deref(), Some("known"));
}

/// A session belongs to the device that its handshake has proven, even if another device gets the
/// identity later.
#[tokio::test]
async fn a_session_gets_only_its_own_device_after_that_has_another_key_or_is_deleted() {
    let bench = Bench::new();
    let session = bench.principal("OWN-1-identity").await;
    let ask = async |request: Ask| match bench.answer(&session, &request) {
        Answer::Now(response) => response,
        Answer::Later(work) => work.await,
    };
    assert_eq!(name(&ask(get()).await), "OWN-1");
    // The device gets another identity and key, and a new device gets the old identity.
    let key = |identity: &str| Some((identity.to_owned(), Secret::new("1".repeat(32))));
    let rows = [
        ImportRow { key: key("another-identity"), ..row("OWN-1", "own") },
        ImportRow { key: key("OWN-1-identity"), ..row("OWN-2", "own") },
    ];
    import(&*bench.store, rows);
    assert_eq!(bench.principal("OWN-1-identity").await.device.unwrap().first().as_str(), "OWN-2");
    assert_eq!(name(&ask(get()).await), "OWN-1");
    assert_eq!(ask(get().query("sn=OWN-2")).await.code, Code::Forbidden);
    assert_eq!(ask(get().query("sn=PLUG-1")).await.code, Code::Forbidden);
    bench.store.delete(&DeviceId::parse("OWN-1").unwrap(), &Actor::system_user()).await.unwrap();
    assert_eq!(ask(get()).await.code, Code::NotFound);
}

#[tokio::test]
async fn a_device_that_is_changed_during_its_registration_is_answered_as_its_row_says_then() {
    for (change, code) in [("disable", Code::Forbidden), ("delete", Code::NotFound)] {
        let bench = Bench::new();
        bench.cloud.script([Scripted::Slow(Duration::from_millis(500))]);
        let device = DeviceId::parse("SN-1").unwrap();
        let asking = bench.ask_itself("SN-1");
        let changing = async {
            while bench.cloud.registrations() == 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            let by = Actor::system_user();
            let changed = match change {
                "disable" => bench.store.set_state(&device, DeviceState::Disabled, &by).await,
                _ => bench.store.delete(&device, &by).await,
            };
            assert!(changed.unwrap());
        };
        let (response, ()) = tokio::join!(asking, changing);
        assert_eq!(response.code, code, "{change}");
    }
}
