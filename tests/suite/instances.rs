//! Tests of a simulated account with several instances: each has its own devices, room, end, and
//! address for sign-ins, and a call is about the one that it names.
#![cfg(feature = "simulation")]

use std::time::{Duration, Instant};

use certdist::{
    device::Certificate,
    iot_platform::{
        ApiError, ErrorClass, IotPlatform,
        client::{Client, ClientConfig, SignatureVersion},
        sign_in::{Login, SignMethod},
        simulator::{InstanceConfig, Limits, Simulator, SimulatorConfig},
    },
    simulated_device::sign_in,
};
use futures_util::future::join_all;
use rumqttc::{AsyncClient, Event, MqttOptions, Packet};

use crate::support::{SHARED_IDENTITY, SHARED_KEY, Site, http_get, sign_in::PATIENCE, stderr, stdout};

fn instance(id: &str) -> InstanceConfig {
    let mqtt = Some("127.0.0.1:0".parse().unwrap());
    InstanceConfig { id: id.into(), mqtt, ..InstanceConfig::default() }
}

async fn simulator(instances: Vec<InstanceConfig>) -> Simulator {
    Simulator::start(SimulatorConfig { instances, ..SimulatorConfig::default() }).await.unwrap()
}

fn client_in(simulator: &Simulator, region: &str, instance_id: &str, signature: SignatureVersion) -> Client {
    let config = ClientConfig {
        instance_id: instance_id.into(),
        signature,
        ..ClientConfig::new(simulator.endpoint(), region, simulator.credentials())
    };
    Client::new(config).unwrap()
}

fn client(simulator: &Simulator, instance_id: &str) -> Client {
    client_in(simulator, "cn-shanghai", instance_id, SignatureVersion::V1)
}

async fn registered(client: &Client, name: &str) -> Certificate {
    client.register_device("a1", name).await.unwrap().certificate
}

fn code<T>(outcome: Result<T, ApiError>) -> (ErrorClass, String) {
    outcome.map(drop).map_err(|error| (error.class, error.code)).unwrap_err()
}

fn broker(simulator: &Simulator, instance_id: &str) -> String {
    simulator.instance(instance_id).unwrap().mqtt_addr().unwrap().to_string()
}

#[tokio::test]
async fn each_instance_has_its_own_devices_and_refuses_those_of_the_other() {
    let simulator = simulator(vec![instance("iot-a"), instance("iot-b")]).await;
    let (a, b) = (client(&simulator, "iot-a"), client(&simulator, "iot-b"));
    let (of_a, of_b) = (registered(&a, "SN01").await, registered(&b, "SN01").await);
    assert_ne!(of_a.device_secret, of_b.device_secret, "the same name, but another device");
    registered(&b, "SN02").await;
    let not_there = (ErrorClass::NotFound, "iot.device.NotExistedDevice".to_owned());
    assert_eq!(code(a.query_device_detail("a1", "SN02").await), not_there);
    assert_eq!(simulator.stats().instances, [("iot-a".to_owned(), 1), ("iot-b".to_owned(), 2)].into());
    assert_eq!(simulator.stats().devices, 3);

    sign_in(&of_a, &broker(&simulator, "iot-a"), PATIENCE).await.unwrap();
    sign_in(&of_b, &broker(&simulator, "iot-b"), PATIENCE).await.unwrap();
    // The certificate of the other instance's device of the same name has a wrong signature, and a
    // name of the other instance does not exist.
    let error = sign_in(&of_a, &broker(&simulator, "iot-b"), PATIENCE).await.unwrap_err().to_string();
    assert!(error.contains("return code 4"), "{error}");
    let only_in_b = simulator.instance("iot-b").unwrap().device("a1", "SN02").unwrap();
    let error = sign_in(&only_in_b, &broker(&simulator, "iot-a"), PATIENCE).await.unwrap_err().to_string();
    assert!(error.contains("return code 5"), "{error}");
    assert_eq!(simulator.instance("iot-b").unwrap().status("a1", "SN02"), Some("UNACTIVE"));
}

#[tokio::test]
async fn a_call_that_names_no_instance_or_another_region_is_refused() {
    let shanghai = InstanceConfig { region: Some("cn-shanghai".into()), ..instance("iot-a") };
    let tokyo = InstanceConfig { region: Some("ap-northeast-1".into()), ..instance("") };
    let simulator = simulator(vec![shanghai, tokyo]).await;
    let not_found = (ErrorClass::Operator, "iot.system.InstanceNotFound".to_owned());
    for signature in [SignatureVersion::V1, SignatureVersion::V3] {
        for (region, instance_id, works) in [
            ("cn-shanghai", "iot-a", true),
            ("cn-shanghai", "", false),
            ("cn-shanghai", "iot-c", false),
            ("ap-northeast-1", "iot-a", false),
            ("ap-northeast-1", "", true),
        ] {
            let client = client_in(&simulator, region, instance_id, signature);
            let outcome = client.batch_check_device_names("a1", &["SN01".into()]).await;
            let expected = if works { Ok(()) } else { Err(not_found.clone()) };
            let outcome = outcome.map(drop).map_err(|error| (error.class, error.code));
            assert_eq!(outcome, expected, "{region} {instance_id:?}");
        }
    }
}

#[tokio::test]
async fn a_full_instance_takes_no_more_devices_until_one_is_deleted() {
    let full = InstanceConfig { max_devices: Some(2), products: vec!["a1".into()], ..instance("iot-a") };
    let simulator = simulator(vec![full, instance("iot-b")]).await;
    let client = client(&simulator, "iot-a");
    registered(&client, "SN01").await;
    registered(&client, "SN02").await;
    let exceeded = (ErrorClass::Operator, "iot.device.DeviceCountExceeded".to_owned());
    assert_eq!(code(client.register_device("a1", "SN03").await), exceeded);
    assert_eq!(code(client.batch_check_device_names("a1", &["SN03".into()]).await), exceeded);
    // The error says that the name exists, so that its certificate is looked up.
    let error = client.register_device("a1", "SN01").await.unwrap_err();
    assert_eq!(error.class, ErrorClass::Exists);
    assert_eq!(code(client.register_device("a2", "SN03").await).1, "iot.prod.NotExistedProduct");
    assert!(simulator.instance("iot-a").unwrap().delete("a1", "SN01"));
    registered(&client, "SN03").await;
}

#[tokio::test]
async fn an_instance_that_expires_ends_its_devices_connections_and_no_others() {
    let simulator = simulator(vec![instance("iot-a"), instance("iot-b")]).await;
    let (a, b) = (client(&simulator, "iot-a"), client(&simulator, "iot-b"));
    let (of_a, of_b) = (registered(&a, "SN01").await, registered(&b, "SN01").await);
    let login = Login::new(&of_a, SignMethod::HmacSha256, 1);
    let address = simulator.instance("iot-a").unwrap().mqtt_addr().unwrap();
    let mut options = MqttOptions::new(login.client_id, address.ip().to_string(), address.port());
    options.set_credentials(login.user_name, login.password.expose()).set_keep_alive(Duration::from_secs(60));
    let (_client, mut events) = AsyncClient::new(options, 1);
    while !matches!(events.poll().await.unwrap(), Event::Incoming(Packet::ConnAck(_))) {}

    simulator.instance("iot-a").unwrap().expire();
    let ended = async { while events.poll().await.is_ok() {} };
    tokio::time::timeout(PATIENCE, ended).await.expect("the connection ends");
    let not_found = (ErrorClass::Operator, "iot.system.InstanceNotFound".to_owned());
    assert_eq!(code(a.query_device_detail("a1", "SN01").await), not_found);
    assert!(sign_in(&of_a, &address.to_string(), PATIENCE).await.is_err());
    sign_in(&of_b, &broker(&simulator, "iot-b"), PATIENCE).await.unwrap();
    assert_eq!(simulator.stats().devices, 1);
}

#[tokio::test]
async fn an_instance_expires_by_itself_at_its_time() {
    let at_once = InstanceConfig { expires: Some(Duration::ZERO), ..instance("iot-a") };
    let soon = InstanceConfig { expires: Some(Duration::from_millis(200)), ..instance("iot-b") };
    let simulator = simulator(vec![at_once, soon]).await;
    let expected = "iot.system.InstanceNotFound";
    assert_eq!(code(client(&simulator, "iot-a").query_device_detail("a1", "SN01").await).1, expected);
    let b = client(&simulator, "iot-b");
    let gone = async { while code(b.query_device_detail("a1", "SN01").await).1 != expected {} };
    tokio::time::timeout(PATIENCE, gone).await.expect("it expires");
}

#[tokio::test]
async fn the_instances_of_an_account_share_its_rate_limits() {
    let config = SimulatorConfig {
        instances: vec![instance("iot-a"), instance("iot-b")],
        limits: Limits::Real,
        ..SimulatorConfig::default()
    };
    let simulator = Simulator::start(config).await.unwrap();
    let (a, b) = (client(&simulator, "iot-a"), client(&simulator, "iot-b"));
    let list = async |client: &Client| client.batch_query_device_detail("a1", &["SN01".to_owned()]).await;
    let started = Instant::now();
    let answers = join_all((0..50).map(|number| list(if number % 2 == 0 { &a } else { &b }))).await;
    let passed = answers.iter().filter(|answer| answer.is_ok()).count();
    // Five lists are allowed at once, and five more each second. Two separate limits would allow
    // ten at once.
    let most = 5.0 + 5.0 * started.elapsed().as_secs_f64();
    assert!(passed >= 5 && passed as f64 <= most, "{passed}, {most}");
    let is_throttled = |error: &ApiError| error.class == ErrorClass::Throttled;
    assert!(answers.iter().all(|answer| answer.as_ref().map_or_else(is_throttled, |_| true)));
}

#[test]
fn a_fleet_in_two_instances_signs_in_where_each_device_belongs() {
    let cloud = Site::new();
    let simulator = cloud.simulator(&[
        "--instance",
        "id=iot-a,region=cn-shanghai,mqtt=127.0.0.1:0,product=a1plug",
        "--instance",
        "id=iot-b,region=eu-central-1,mqtt=127.0.0.1:0,product=a1other,devices=500",
    ]);
    let hosts = [simulator.next_address(), simulator.next_address()];
    let site = |region: &str, instance_id: &str, host: &str| {
        Site::with(&format!(
            "[iot_platform]\nendpoint = \"http://{}\"\nregion = \"{region}\"\ninstance_id = \"{instance_id}\"\n\
             host = \"{host}\"\n",
            simulator.address
        ))
    };
    let fetch = |site: &Site, product: &str| {
        let configuration = std::fs::read_to_string(site.path("certdist.toml")).unwrap();
        site.write("certdist.toml", &configuration.replace("a1plug", product));
        site.import("deviceId,enrollment\nSN000001,plug\n");
        let server = site.serve();
        let (address, psk) = (server.address.to_string(), hex::encode(SHARED_KEY));
        let arguments = ["device-sim", "--server", &address, "--identity", SHARED_IDENTITY, "--psk", &psk];
        site.run(&[&arguments[..], &["--sn", "SN000001", "--sign-in"]].concat())
    };
    for (region, id, host, product) in
        [("cn-shanghai", "iot-a", hosts[0], "a1plug"), ("eu-central-1", "iot-b", hosts[1], "a1other")]
    {
        let output = fetch(&site(region, id, &host.to_string()), product);
        assert!(output.status.success(), "{id}: {}", stderr(&output));
        assert!(stdout(&output).contains(&format!("\"signedIn\":\"mqtt://{host}\"")), "{}", stdout(&output));
    }
    // A host of the wrong instance refuses the device.
    let wrong = site("cn-shanghai", "iot-a", &hosts[1].to_string());
    wrong.write(
        "certdist.toml",
        &format!("{}existing = \"adopt\"\n", std::fs::read_to_string(wrong.path("certdist.toml")).unwrap()),
    );
    let output = fetch(&wrong, "a1plug");
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("IoT Platform refuses the certificate"), "{}", stderr(&output));
    let stats: serde_json::Value = serde_json::from_str(&http_get(simulator.address, "/stats")).unwrap();
    assert_eq!(stats["instances"], serde_json::json!({ "iot-a": 1, "iot-b": 1 }));
}

#[test]
fn instances_that_contradict_each_other_or_the_old_options_are_refused() {
    let site = Site::new();
    for (arguments, expected) in [
        (&["--instance", "id=iot-a", "--instance", "id=iot-a"][..], "two instances are the same (iot-a)"),
        (&["--instance", "id=iot-a", "--mqtt", "127.0.0.1:0"], "cannot be used with"),
        (&["--instance", "id=iot-a", "--product", "a1"], "cannot be used with"),
        (&["--instance", "iot-a"], "is not KEY=VALUE"),
    ] {
        let output = site.run(&[&["simulator", "--listen", "127.0.0.1:0"], arguments].concat());
        assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
        assert!(stderr(&output).contains(expected), "{}", stderr(&output));
    }
}
