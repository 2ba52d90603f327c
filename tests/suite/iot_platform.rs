//! Tests of the signed client with the simulated IoT Platform, over HTTP: the results that a
//! registrar gets, and the requests that the simulator refuses.
#![cfg(feature = "simulation")]

use std::time::{Duration, Instant};

use certdist::{
    device::Secret,
    iot_platform::{
        ApiError, ErrorClass, IotPlatform,
        client::{Client, ClientConfig, Credentials, Timeouts},
        signature,
        simulator::{Action, Fault, Limits, Simulator, SimulatorConfig},
    },
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

const PRODUCT: &str = "a1BwAGVxyz1";

async fn simulator(config: SimulatorConfig) -> Simulator {
    Simulator::start(config).await.unwrap()
}

fn client_config(simulator: &Simulator) -> ClientConfig {
    ClientConfig::new(simulator.endpoint(), "cn-shanghai", simulator.credentials())
}

fn client(simulator: &Simulator) -> Client {
    Client::new(client_config(simulator)).unwrap()
}

/// Starts a simulator without faults. Returns the simulator and a client.
async fn cloud() -> (Simulator, Client) {
    let simulator = simulator(SimulatorConfig::default()).await;
    let client = client(&simulator);
    (simulator, client)
}

async fn register_error(client: &Client) -> ApiError {
    client.register_device(PRODUCT, "SN01").await.unwrap_err()
}

#[tokio::test]
async fn a_device_is_registered_once_and_recovered_by_a_query() {
    let (simulator, client) = cloud().await;
    let made = client.register_device(PRODUCT, "SN01").await.unwrap();
    assert_eq!(made.certificate.product_key, PRODUCT);
    assert_eq!(made.certificate.device_name, "SN01");
    assert_eq!(made.certificate.device_secret.expose().len(), 32);

    let error = register_error(&client).await;
    assert_eq!(error.class, ErrorClass::Exists);
    assert_eq!(error.code, "iot.device.AlreadyExistedDeviceName");

    let found = client.query_device_detail(PRODUCT, "SN01").await.unwrap();
    assert_eq!(found.certificate, made.certificate);
    assert_eq!(found.iot_id, made.iot_id);
    assert!(found.created.is_some() && found.activated.is_none());

    let error = client.query_device_detail(PRODUCT, "SN02").await.unwrap_err();
    assert_eq!(error.class, ErrorClass::NotFound);
    let stats = serde_json::to_value(simulator.stats()).unwrap();
    let calls = serde_json::json!({"RegisterDevice": 2, "QueryDeviceDetail": 2});
    assert_eq!(stats, serde_json::json!({"calls": calls, "devices": 1, "throttled": 0, "refused": 0}));
    assert_eq!(simulator.device(PRODUCT, "SN01"), Some(made.certificate));
}

#[tokio::test]
async fn names_with_reserved_characters_arrive_as_they_are() {
    let (_simulator, client) = cloud().await;
    let name = "AA:BB:CC@dd.ee-ff_1";
    assert_eq!(client.register_device(PRODUCT, name).await.unwrap().certificate.device_name, name);
}

#[tokio::test]
async fn a_name_or_product_that_the_cloud_does_not_have_is_told_apart() {
    let config = SimulatorConfig { products: vec![PRODUCT.into()], ..SimulatorConfig::default() };
    let simulator = simulator(config).await;
    let client = client(&simulator);
    let error = client.register_device(PRODUCT, "SN 1").await.unwrap_err();
    assert_eq!(error.class, ErrorClass::Device);
    let error = client.register_device("a1other", "SN01").await.unwrap_err();
    assert_eq!((error.class, error.code.as_str()), (ErrorClass::Operator, "iot.prod.NotExistedProduct"));
}

#[tokio::test]
async fn a_wrong_secret_is_refused_and_never_repeated_in_the_message() {
    let (simulator, _) = cloud().await;
    let mut credentials = simulator.credentials();
    credentials.access_key_secret = Secret::new("wrong-hush".into());
    credentials.security_token = Some(Secret::new("token-hush+/=".into()));
    let config = ClientConfig { credentials: credentials.into(), ..client_config(&simulator) };
    let error = register_error(&Client::new(config).unwrap()).await;
    assert_eq!((error.class, error.code.as_str()), (ErrorClass::Operator, "SignatureDoesNotMatch"));
    assert!(error.message.starts_with("Specified signature is not matched"), "{}", error.message);
    assert!(!error.message.contains("hush") && error.message.chars().count() <= 200);
    assert_eq!((simulator.stats().refused, simulator.stats().devices), (1, 0));
}

#[tokio::test]
async fn an_unknown_access_key_is_the_operators_to_mend() {
    let (simulator, _) = cloud().await;
    let credentials = Credentials { access_key_id: "nobody".into(), ..simulator.credentials() };
    let config = ClientConfig { credentials: credentials.into(), ..client_config(&simulator) };
    let error = register_error(&Client::new(config).unwrap()).await;
    assert_eq!((error.class, error.code.as_str()), (ErrorClass::Operator, "InvalidAccessKeyId.NotFound"));
}

#[tokio::test]
async fn a_temporary_access_key_sends_its_token_under_the_signature() {
    let (simulator, _) = cloud().await;
    let token = Some(Secret::new("CAIS+/=".into()));
    let credentials = Credentials { security_token: token, ..simulator.credentials() };
    let mut config = ClientConfig { credentials: credentials.into(), ..client_config(&simulator) };
    config.instance_id = "iot-060a02m5".into();
    assert!(Client::new(config).unwrap().register_device(PRODUCT, "SN01").await.is_ok());
}

/// Returns a signed request that is made without the client. `changed` replaces or adds parameters.
/// If `tamper` is set, the device name is changed after signing.
fn form(changed: &[(&str, &str)], tamper: bool) -> String {
    let timestamp = jiff::Timestamp::from_second(jiff::Timestamp::now().as_second()).unwrap().to_string();
    let mut parameters = vec![
        ("Action", "RegisterDevice"),
        ("Version", "2018-01-20"),
        ("Format", "JSON"),
        ("AccessKeyId", "simulator"),
        ("SignatureMethod", "HMAC-SHA1"),
        ("SignatureVersion", "1.0"),
        ("SignatureNonce", "a nonce"),
        ("Timestamp", timestamp.as_str()),
        ("ProductKey", PRODUCT),
        ("DeviceName", "SN01"),
    ];
    parameters.retain(|(name, _)| !changed.iter().any(|(other, _)| name == other));
    parameters.extend_from_slice(changed);
    let text = signature::string_to_sign("POST", parameters.iter().copied());
    let signature = signature::sign(&text, "simulator-secret");
    parameters.push(("Signature", &signature));
    if tamper {
        parameters.retain(|(name, _)| *name != "DeviceName");
        parameters.push(("DeviceName", "SN02"));
    }
    signature::form_encode(parameters)
}

/// Makes an HTTP exchange without the client. Returns the whole answer, with head and body.
async fn exchange(simulator: &Simulator, head: &str, body: &str) -> String {
    let mut stream = TcpStream::connect(simulator.addr()).await.unwrap();
    let request = format!(
        "{head} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

#[tokio::test]
async fn a_request_that_was_changed_on_the_way_is_refused() {
    let (simulator, _) = cloud().await;
    let answer = exchange(&simulator, "POST /", &form(&[], true)).await;
    assert!(
        answer.starts_with("HTTP/1.1 400 ") && answer.contains(r#""Code":"SignatureDoesNotMatch""#),
        "{answer}"
    );
    assert_eq!(simulator.stats().devices, 0);
}

#[tokio::test]
async fn a_request_that_is_sent_twice_is_refused_the_second_time() {
    let (simulator, _) = cloud().await;
    let form = form(&[], false);
    let answer = exchange(&simulator, "POST /", &form).await;
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains(r#""Success":true"#), "{answer}");
    assert!(answer.contains("\r\ndate: "), "{answer}");
    let answer = exchange(&simulator, "POST /", &form).await;
    assert!(
        answer.starts_with("HTTP/1.1 400 ") && answer.contains(r#""Code":"SignatureNonceUsed""#),
        "{answer}"
    );
    assert!(answer.contains(r#""HostId":"localhost""#) && answer.contains(r#""RequestId":""#), "{answer}");
    assert_eq!((simulator.stats().calls["RegisterDevice"], simulator.stats().refused), (1, 1));
}

#[tokio::test]
async fn parameters_in_a_query_are_signed_for_get() {
    let (simulator, _) = cloud().await;
    // The signature covers the method, so a signature for POST is refused for GET.
    let answer = exchange(&simulator, &format!("GET /?{}", form(&[], false)), "").await;
    assert!(answer.contains("SignatureDoesNotMatch"), "{answer}");
    // The official SDKs send all parameters of a POST in the query.
    let answer = exchange(&simulator, &format!("POST /?{}", form(&[], false)), "").await;
    assert!(answer.contains(r#""Success":true"#), "{answer}");
}

#[tokio::test]
async fn old_times_and_unknown_actions_are_refused_as_the_gateway_does() {
    let (simulator, _) = cloud().await;
    for (changed, status, code) in [
        (("Timestamp", "2016-02-23T12:46:24Z"), 400, "InvalidTimeStamp.Expired"),
        (("Timestamp", "yesterday"), 400, "InvalidTimeStamp.Format"),
        (("Action", "DropAll"), 404, "InvalidAction.NotFound"),
        (("SignatureNonce", ""), 400, "MissingSignatureNonce"),
    ] {
        let answer = exchange(&simulator, "POST /", &form(&[changed], false)).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
        assert!(answer.contains(&format!("\"Code\":\"{code}\"")), "{answer}");
    }
    assert!(exchange(&simulator, "GET /elsewhere", "").await.starts_with("HTTP/1.1 404 "));
}

#[tokio::test]
async fn the_statistics_are_a_page_of_their_own() {
    let (simulator, client) = cloud().await;
    client.register_device(PRODUCT, "SN01").await.unwrap();
    let answer = exchange(&simulator, "GET /stats", "").await;
    let (_, body) = answer.split_once("\r\n\r\n").unwrap();
    assert_eq!(body, r#"{"calls":{"RegisterDevice":1},"devices":1,"throttled":0,"refused":0}"#);
}

#[tokio::test]
async fn a_client_with_a_wrong_clock_takes_the_clouds() {
    let (simulator, _) = cloud().await;
    for wrong in [-86_400, 86_400 * 365] {
        let client = Client::new(ClientConfig { clock_offset: wrong, ..client_config(&simulator) }).unwrap();
        let refused = simulator.stats().refused;
        let name = format!("SN{wrong}");
        assert!(client.register_device(PRODUCT, &name).await.is_ok());
        assert!(client.query_device_detail(PRODUCT, &name).await.is_ok());
        assert_eq!(simulator.stats().refused, refused + 1, "corrected once, for good");
    }
}

#[tokio::test]
async fn a_used_nonce_is_replaced_once_by_the_client_itself() {
    for code in ["SignatureNonceUsed", "InvalidTimeStamp.Expired"] {
        let (simulator, client) = cloud().await;
        simulator.script(Action::RegisterDevice, Fault::gateway(400, code));
        assert!(client.register_device(PRODUCT, "SN01").await.is_ok(), "{code}");
        simulator.script(Action::RegisterDevice, Fault::gateway(400, code));
        simulator.script(Action::RegisterDevice, Fault::gateway(400, code));
        let error = register_error(&client).await;
        assert_eq!((error.class, error.code.as_str()), (ErrorClass::SignAgain, code));
        assert_eq!(simulator.stats().refused, 3, "{code}");
    }
}

#[tokio::test]
async fn a_call_that_arrived_twice_may_have_created_the_device() {
    let (simulator, client) = cloud().await;
    // An intermediary sends the call twice, and the client gets the refusal of the second copy.
    let fault = Fault::gateway(400, "SignatureNonceUsed").after_carrying_out();
    simulator.script(Action::RegisterDevice, fault);
    let error = register_error(&client).await;
    assert_eq!((error.class, error.code.as_str()), (ErrorClass::SignAgain, "SignatureNonceUsed"));
    assert!(error.may_be_done());
    // The answer to a call that arrived once says the truth.
    let error = register_error(&client).await;
    assert_eq!(error.class, ErrorClass::Exists);
    assert!(!error.may_be_done());
}

#[tokio::test]
async fn each_failure_has_its_class() {
    let (simulator, client) = cloud().await;
    for (fault, class, code) in [
        (Fault::html(200), ErrorClass::TryAgain, "NotAnAnswer"),
        (Fault::html(302), ErrorClass::TryAgain, "NotAnAnswer"),
        (Fault::html(502), ErrorClass::TryAgain, "NotAnAnswer"),
        (Fault::Drop, ErrorClass::TryAgain, "Connection"),
        (Fault::gateway(503, "ServiceUnavailable"), ErrorClass::TryAgain, "ServiceUnavailable"),
        (Fault::gateway(400, "Throttling.User"), ErrorClass::Throttled, "Throttling.User"),
        (
            Fault::gateway(403, "InvalidAccessKeyId.Inactive"),
            ErrorClass::Operator,
            "InvalidAccessKeyId.Inactive",
        ),
        (
            Fault::gateway(400, "InvalidSecurityToken.Expired"),
            ErrorClass::Operator,
            "InvalidSecurityToken.Expired",
        ),
        (Fault::business("iot.system.SystemException"), ErrorClass::TryAgain, "iot.system.SystemException"),
        (Fault::business("iot.device.Strange"), ErrorClass::Unknown, "iot.device.Strange"),
    ] {
        simulator.script(Action::RegisterDevice, fault.clone());
        let error = register_error(&client).await;
        assert_eq!((error.class, error.code.as_str()), (class, code), "{fault:?}");
    }
    let stats = simulator.stats();
    assert_eq!((stats.devices, stats.throttled, stats.refused, stats.calls["RegisterDevice"]), (0, 1, 2, 7));
    assert!(client.register_device(PRODUCT, "SN01").await.is_ok());
}

#[tokio::test]
async fn a_device_whose_answer_was_lost_is_found_again() {
    for fault in [Fault::Drop, Fault::html(502), Fault::gateway(503, "ServiceUnavailable")] {
        let (simulator, client) = cloud().await;
        simulator.script(Action::RegisterDevice, fault.after_carrying_out());
        assert_eq!(register_error(&client).await.class, ErrorClass::TryAgain);
        assert_eq!(register_error(&client).await.class, ErrorClass::Exists);
        let found = client.query_device_detail(PRODUCT, "SN01").await.unwrap();
        assert_eq!(Some(found.certificate), simulator.device(PRODUCT, "SN01"));
    }
}

#[tokio::test]
async fn a_slow_answer_ends_at_the_time_out_and_may_have_had_its_effect() {
    let (simulator, _) = cloud().await;
    let timeout = Duration::from_millis(200);
    let client = Client::new(ClientConfig {
        timeouts: Timeouts { whole: timeout, ..Timeouts::default() },
        ..client_config(&simulator)
    })
    .unwrap();
    simulator.script(Action::RegisterDevice, Fault::Delay(Duration::from_secs(60)));
    let started = Instant::now();
    let error = register_error(&client).await;
    assert_eq!((error.class, error.code.as_str()), (ErrorClass::TimedOut, "Timeout"));
    assert!((timeout..timeout * 10).contains(&started.elapsed()), "{:?}", started.elapsed());
    assert_eq!(simulator.stats().devices, 1);
    assert_eq!(register_error(&client).await.class, ErrorClass::Exists);
}

#[tokio::test]
async fn an_answer_without_bound_is_not_read_to_its_end() {
    let (simulator, client) = cloud().await;
    let body = format!("{{\"Success\":true,\"Data\":\"{}\"}}", "x".repeat(4 * 1024 * 1024));
    simulator
        .script(Action::RegisterDevice, Fault::Raw { status: 200, content_type: "application/json", body });
    let error = register_error(&client).await;
    assert_eq!((error.class, error.code.as_str()), (ErrorClass::TryAgain, "NotAnAnswer"));

    // The server's answer has no length and never ends.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let endless = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        // The server waits for the request, because a client does not accept an answer that arrives
        // before its request.
        stream.read_u8().await.unwrap();
        stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
        while stream.write_all(&[b'x'; 65_536]).await.is_ok() {}
    });
    let client = Client::new(ClientConfig { endpoint, ..client_config(&simulator) }).unwrap();
    let error = register_error(&client).await;
    assert_eq!((error.class, error.code.as_str()), (ErrorClass::TryAgain, "NotAnAnswer"));
    // The client closed the connection, so the server's loop ends.
    endless.await.unwrap();
}

#[tokio::test]
async fn a_redirection_is_no_answer_and_nothing_signed_goes_elsewhere() {
    let (simulator, _) = cloud().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let elsewhere = simulator.endpoint();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.read_u8().await.unwrap();
        let answer = format!("HTTP/1.1 307 Moved\r\nLocation: {elsewhere}/\r\nContent-Length: 0\r\n\r\n");
        stream.write_all(answer.as_bytes()).await.unwrap();
        // The loop ends when the client has read the answer and closes the connection.
        while stream.read_u8().await.is_ok() {}
    });
    let client = Client::new(ClientConfig { endpoint, ..client_config(&simulator) }).unwrap();
    let error = register_error(&client).await;
    assert_eq!((error.class, error.code.as_str()), (ErrorClass::TryAgain, "NotAnAnswer"));
    assert_eq!(simulator.stats().devices, 0);
}

#[tokio::test]
async fn https_is_never_answered_by_plain_http() {
    let (simulator, _) = cloud().await;
    let endpoint = format!("https://{}", simulator.addr());
    match Client::new(ClientConfig { endpoint, ..client_config(&simulator) }) {
        Ok(client) => {
            let error = register_error(&client).await;
            assert_eq!((error.class, error.code.as_str()), (ErrorClass::TryAgain, "NoConnection"));
        }
        // A machine without root certificates cannot use HTTPS, and the error message says why.
        Err(error) => assert!(error.to_string().contains("ca-certificates"), "{error}"),
    }
}

#[tokio::test]
async fn nobody_at_the_endpoint_is_tried_again() {
    let (simulator, client) = cloud().await;
    client.register_device(PRODUCT, "SN01").await.unwrap();
    simulator.shutdown().await.unwrap();
    let error = register_error(&client).await;
    assert_eq!((error.class, error.code.as_str()), (ErrorClass::TryAgain, "NoConnection"));
}

#[tokio::test]
async fn stopping_ends_calls_under_way_and_frees_the_port() {
    let (simulator, client) = cloud().await;
    let listen = simulator.addr();
    let delay = Duration::from_secs(3600);
    simulator.script(Action::RegisterDevice, Fault::Delay(delay));
    let call = tokio::spawn(async move { register_error(&client).await });
    while simulator.stats().calls.is_empty() {
        tokio::task::yield_now().await;
    }
    simulator.shutdown().await.unwrap();
    assert_eq!(call.await.unwrap().class, ErrorClass::TryAgain);
    let again = Simulator::start(SimulatorConfig { listen, ..SimulatorConfig::default() }).await;
    assert!(again.is_ok());
}

#[tokio::test]
async fn half_a_request_does_not_hold_a_shutdown_up() {
    let (simulator, _) = cloud().await;
    let mut stream = TcpStream::connect(simulator.addr()).await.unwrap();
    stream.write_all(b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\nA").await.unwrap();
    // The simulator accepts connections in order. When it answers on this connection, it has also
    // accepted the connection with the incomplete request.
    exchange(&simulator, "GET /stats", "").await;
    tokio::time::timeout(Duration::from_secs(20), simulator.shutdown()).await.unwrap().unwrap();
}

#[tokio::test]
async fn an_outage_lasts_until_it_is_taken_back() {
    let (simulator, client) = cloud().await;
    simulator.set_outage(Some(Fault::Drop));
    for _ in 0..3 {
        assert_eq!(register_error(&client).await.class, ErrorClass::TryAgain);
    }
    simulator.set_outage(None);
    assert!(client.register_device(PRODUCT, "SN01").await.is_ok());
}

#[tokio::test]
async fn real_limits_throttle_what_is_too_much_and_count_it() {
    let config = SimulatorConfig { limits: Limits::Real, ..SimulatorConfig::default() };
    let simulator = simulator(config).await;
    let client = std::sync::Arc::new(client(&simulator));
    let calls: Vec<_> = (0..200)
        .map(|count| {
            let client = client.clone();
            tokio::spawn(async move { client.register_device(PRODUCT, &format!("SN{count:04}")).await })
        })
        .collect();
    let mut throttled = 0;
    for call in calls {
        if let Err(error) = call.await.unwrap() {
            assert_eq!((error.class, error.code.as_str()), (ErrorClass::Throttled, "Throttling.User"));
            throttled += 1;
        }
    }
    let stats = simulator.stats();
    assert!(throttled > 0);
    assert_eq!((stats.throttled, stats.devices), (throttled, 200 - throttled));
    assert_eq!(stats.calls["RegisterDevice"], stats.devices);
}

#[tokio::test]
async fn failures_by_chance_leave_devices_behind_that_a_query_recovers() {
    let config = SimulatorConfig { fail_rate: 1.0, seed: Some(7), ..SimulatorConfig::default() };
    let simulator = simulator(config).await;
    let timeout = Duration::from_millis(500);
    let client = Client::new(ClientConfig {
        timeouts: Timeouts { whole: timeout, ..Timeouts::default() },
        ..client_config(&simulator)
    })
    .unwrap();
    for count in 0..30 {
        let error = client.register_device(PRODUCT, &format!("SN{count:04}")).await.unwrap_err();
        // If the simulator executes a call twice, the second execution finds the device of the
        // first.
        let expected = [ErrorClass::TryAgain, ErrorClass::TimedOut, ErrorClass::Exists];
        assert!(expected.contains(&error.class), "{error}");
    }
    let made = simulator.stats().devices;
    assert!((5..25).contains(&made), "{made}");
}

#[tokio::test]
async fn the_state_file_survives_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let config =
        SimulatorConfig { state: Some(folder.path().join("state.json")), ..SimulatorConfig::default() };

    let first = simulator(config.clone()).await;
    let made = client(&first).register_device(PRODUCT, "SN01").await.unwrap();
    first.shutdown().await.unwrap();

    let second = simulator(config.clone()).await;
    let client_of_second = client(&second);
    assert_eq!(register_error(&client_of_second).await.class, ErrorClass::Exists);
    let found = client_of_second.query_device_detail(PRODUCT, "SN01").await.unwrap();
    assert_eq!(found.certificate, made.certificate);
    client_of_second.register_device(PRODUCT, "SN02").await.unwrap();
    drop(second);

    assert_eq!(simulator(config).await.stats().devices, 2);
}

#[tokio::test]
async fn the_state_file_is_written_while_the_simulator_runs() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state.json");
    let config = SimulatorConfig { state: Some(path.clone()), ..SimulatorConfig::default() };
    let simulator = simulator(config).await;
    client(&simulator).register_device(PRODUCT, "SN01").await.unwrap();
    let deadline = Instant::now() + Duration::from_secs(10);
    while !std::fs::read_to_string(&path).is_ok_and(|text| text.contains("SN01")) {
        assert!(Instant::now() < deadline);
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn nothing_prints_a_secret() {
    let (simulator, client) = cloud().await;
    let device = client.register_device(PRODUCT, "SN01").await.unwrap();
    let error = register_error(&client).await;
    let config =
        SimulatorConfig { access_key_secret: Secret::new("hush".into()), ..SimulatorConfig::default() };
    let credentials: Credentials = simulator.credentials();
    let printed = format!(
        "{device:?} {error:?} {error} {config:?} {credentials:?} {simulator:?} {client:?} {:?} {:?}",
        client_config(&simulator),
        simulator.stats()
    );
    for secret in ["hush", "simulator-secret", device.certificate.device_secret.expose()] {
        assert!(!printed.contains(secret), "{printed}");
    }
}
