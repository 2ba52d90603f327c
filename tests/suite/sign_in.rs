//! Tests of the sign-in at the simulated IoT Platform with a certificate: by the simulated device,
//! and by clients that must be refused. `tests/clients/mosquitto.rs` has the tests with Mosquitto's
//! client.
#![cfg(feature = "simulation")]

use crate::support::{
    SHARED_IDENTITY, SHARED_KEY, Site,
    sign_in::{PATIENCE, PRODUCT, cloud, login, until_status},
    stderr, stdout,
};
use certdist::{
    device::{Certificate, Secret},
    iot_platform::{IotPlatform, sign_in::Login},
    simulated_device::sign_in,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

/// Opens a connection and sends a CONNECT without a library. Returns the connection and the answer.
async fn connect(broker: &str, login: &Login, keep_alive: u16) -> (TcpStream, Vec<u8>) {
    let mut body = b"\x00\x04MQTT\x04\xc2".to_vec();
    body.extend(keep_alive.to_be_bytes());
    for text in [login.client_id.as_str(), &login.user_name, login.password.expose()] {
        body.extend((text.len() as u16).to_be_bytes());
        body.extend(text.as_bytes());
    }
    // MQTT 3.1.1 §2.2.3: a length has seven bits per byte, with the lowest bits first.
    let mut packet = vec![0x10, body.len() as u8 | 0x80, (body.len() >> 7) as u8];
    packet.extend(body);
    let mut stream = TcpStream::connect(broker).await.unwrap();
    stream.write_all(&packet).await.unwrap();
    let mut answer = vec![0; 4];
    stream.read_exact(&mut answer).await.unwrap();
    (stream, answer)
}

/// A CONNACK with return code 0.
const ACCEPTED: [u8; 4] = [0x20, 2, 0, 0];

/// Returns whether the other side closes the connection without sending another byte.
async fn is_closed(stream: &mut TcpStream) -> bool {
    let read = tokio::time::timeout(PATIENCE, stream.read_u8()).await;
    matches!(read, Ok(Err(_)))
}

#[tokio::test]
async fn the_first_good_sign_in_activates_the_device_for_good() {
    let (simulator, client, certificate, broker) = cloud().await;
    assert_eq!(simulator.status(PRODUCT, "SN01"), Some("UNACTIVE"));
    sign_in(&certificate, &broker, PATIENCE).await.unwrap();
    let first = client.query_device_detail(PRODUCT, "SN01").await.unwrap().activated;
    assert!(first.is_some());
    until_status(&simulator, "OFFLINE").await;
    sign_in(&certificate, &broker, PATIENCE).await.unwrap();
    assert_eq!(client.query_device_detail(PRODUCT, "SN01").await.unwrap().activated, first);
}

#[tokio::test]
async fn a_device_is_online_as_long_as_it_is_connected() {
    let (simulator, _, certificate, broker) = cloud().await;
    let (mut stream, answer) = connect(&broker, &login(&certificate), 60).await;
    assert_eq!(answer, ACCEPTED);
    assert_eq!(simulator.status(PRODUCT, "SN01"), Some("ONLINE"));
    // A PINGREQ is answered with PINGRESP.
    stream.write_all(&[0xc0, 0]).await.unwrap();
    let mut pong = [0; 2];
    stream.read_exact(&mut pong).await.unwrap();
    assert_eq!(pong, [0xd0, 0]);
    drop(stream);
    until_status(&simulator, "OFFLINE").await;
}

#[tokio::test]
async fn a_device_that_signs_in_twice_replaces_itself() {
    let (simulator, _, certificate, broker) = cloud().await;
    let (mut first, _) = connect(&broker, &login(&certificate), 60).await;
    let (second, answer) = connect(&broker, &login(&certificate), 60).await;
    assert_eq!(answer, ACCEPTED);
    assert!(is_closed(&mut first).await);
    assert_eq!(simulator.status(PRODUCT, "SN01"), Some("ONLINE"));
    drop(second);
    until_status(&simulator, "OFFLINE").await;
}

#[tokio::test]
async fn who_has_no_right_is_refused_with_the_documented_code_and_activates_nothing() {
    let (simulator, _, certificate, broker) = cloud().await;
    let with = |change: fn(&mut Login)| {
        let mut login = login(&certificate);
        change(&mut login);
        login
    };
    let unknown = Certificate { device_name: "SN02".into(), ..certificate.clone() };
    for (login, keep_alive, code) in [
        (with(|login| login.password = Secret::new("0".repeat(40))), 60, 4),
        (with(|login| login.client_id.push('|')), 60, 4),
        (with(|login| login.client_id = "SN01|securemode=3,signmethod=hmacsha1,timestamp=1|".into()), 60, 4),
        (with(|login| login.user_name = "SN01".into()), 60, 4),
        (login(&unknown), 60, 5),
        (login(&certificate), 29, 5),
        (login(&certificate), 1201, 5),
    ] {
        let (mut stream, answer) = connect(&broker, &login, keep_alive).await;
        assert_eq!(answer, [0x20, 2, 0, code], "{}", login.client_id);
        assert!(is_closed(&mut stream).await);
    }
    let wrong = Certificate { device_secret: Secret::new("wrong".into()), ..certificate };
    let error = sign_in(&wrong, &broker, PATIENCE).await.unwrap_err().to_string();
    assert!(error.contains("return code 4"), "{error}");
    assert_eq!(simulator.status(PRODUCT, "SN01"), Some("UNACTIVE"));
}

#[tokio::test]
async fn a_disabled_device_is_sent_away_until_it_is_enabled_and_a_deleted_one_for_good() {
    let (simulator, _, certificate, broker) = cloud().await;
    let (mut stream, _) = connect(&broker, &login(&certificate), 60).await;
    assert!(simulator.disable(PRODUCT, "SN01"));
    assert!(is_closed(&mut stream).await);
    let (_, answer) = connect(&broker, &login(&certificate), 60).await;
    assert_eq!(answer, [0x20, 2, 0, 5]);
    assert_eq!(simulator.status(PRODUCT, "SN01"), Some("DISABLE"));
    assert!(simulator.enable(PRODUCT, "SN01"));
    let (mut stream, answer) = connect(&broker, &login(&certificate), 60).await;
    assert_eq!(answer, ACCEPTED);
    assert!(simulator.delete(PRODUCT, "SN01"));
    assert!(is_closed(&mut stream).await);
    let (_, answer) = connect(&broker, &login(&certificate), 60).await;
    assert_eq!(answer, [0x20, 2, 0, 5]);
}

#[tokio::test]
async fn bytes_that_are_no_mqtt_end_the_connection_and_nothing_else() {
    let (simulator, _, certificate, broker) = cloud().await;
    for bytes in [
        &b"GET / HTTP/1.1\r\nHost: a1BwAGVxyz1.iot-as-mqtt.cn-shanghai.aliyuncs.com\r\n\r\n"[..],
        &[0x10, 0xff, 0xff, 0xff, 0xff, 0x7f],
        &[0x10, 2, 0, 9],
        // A PINGREQ before CONNECT, and a CONNECT of MQTT 3.1.
        &[0xc0, 0],
        b"\x10\x0e\x00\x06MQIsdp\x03\x02\x00\x3c\x00\x00",
    ] {
        let mut stream = TcpStream::connect(&broker).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        assert!(is_closed(&mut stream).await, "{bytes:?}");
    }
    sign_in(&certificate, &broker, PATIENCE).await.unwrap();
    until_status(&simulator, "OFFLINE").await;
}

#[tokio::test]
async fn another_version_of_mqtt_is_told_so() {
    let (_simulator, _, _, broker) = cloud().await;
    // MQTT 5 with a valid and an invalid length of properties, and a protocol level that does
    // not exist.
    for rest in [
        &b"\x05\x02\x00\x3c\x00\x00\x04SN01"[..],
        b"\x05\x02\x00\x3c\x05\x11\x00\x00\x00\x00\x00\x04SN01",
        b"\x06\x02",
    ] {
        let packet = [&[0x10, 6 + rest.len() as u8], &b"\x00\x04MQTT"[..], rest].concat();
        let mut stream = TcpStream::connect(&broker).await.unwrap();
        stream.write_all(&packet).await.unwrap();
        let mut answer = [0; 4];
        stream.read_exact(&mut answer).await.unwrap();
        assert_eq!(answer, [0x20, 2, 0, 1]);
        assert!(is_closed(&mut stream).await);
    }
}

#[tokio::test]
async fn stopping_ends_the_devices_connections() {
    let (simulator, _, certificate, broker) = cloud().await;
    let (mut stream, _) = connect(&broker, &login(&certificate), 60).await;
    simulator.shutdown().await.unwrap();
    assert!(is_closed(&mut stream).await);
}

#[test]
fn the_commands_show_the_whole_life_of_a_device() {
    let cloud = Site::new();
    let simulator = cloud.simulator(&["--mqtt", "127.0.0.1:0"]);
    let broker = format!("mqtt://{}", simulator.next_address());
    let site = Site::with_cloud(&format!("http://{}", simulator.address));
    site.import("deviceId,enrollment\nSN000001,plug\n");
    let server = site.serve();
    let device = |connect: &[&str]| {
        let (server, psk) = (server.address.to_string(), hex::encode(SHARED_KEY));
        let arguments = [
            "device-sim",
            "--server",
            &server,
            "--identity",
            SHARED_IDENTITY,
            "--psk",
            &psk,
            "--sn",
            "SN000001",
        ];
        site.run(&[&arguments, connect].concat())
    };
    let output = device(&["--connect", &broker]);
    assert!(output.status.success(), "{}", stderr(&output));
    let text = stdout(&output);
    let lines: Vec<serde_json::Value> =
        text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!(lines[0]["deviceName"], "SN000001");
    assert_eq!(lines[1..], [serde_json::json!({ "signedIn": broker })]);

    assert_eq!(simulator.stop(), Some(0));
    let output = device(&["--connect", &broker]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("the MQTT connection failed"), "{}", stderr(&output));
    assert_eq!(device(&["--connect", "tcp://127.0.0.1:1"]).status.code(), Some(2));
}
