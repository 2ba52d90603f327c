//! The MQTT host in the answers of a real server: a device that asks for it signs in there, and an
//! enrollment tells it to devices that do not ask.
#![cfg(feature = "simulation")]

use std::{
    process::Output,
    time::{Duration, Instant},
};

use crate::support::{Process, SHARED_IDENTITY, SHARED_KEY, Site, stderr, stdout};

/// Creates a site whose cloud is this simulator, with one device.
fn site(simulator: &Process, cloud: &str) -> Site {
    let site = Site::with(&format!(
        "[iot_platform]\nendpoint = \"http://{}\"\nregion = \"cn-shanghai\"\n{cloud}\n",
        simulator.address
    ));
    site.import("deviceId,enrollment\nSN000001,plug\n");
    site
}

/// Runs `device-sim` as the site's device.
fn device(site: &Site, server: &Process, options: &[&str]) -> Output {
    let (address, psk) = (server.address.to_string(), hex::encode(SHARED_KEY));
    let arguments = ["device-sim", "--server", &address, "--identity", SHARED_IDENTITY, "--psk", &psk];
    site.run(&[&arguments[..], &["--sn", "SN000001"], options].concat())
}

/// Returns the lines of a command that has succeeded.
fn lines(output: &Output) -> Vec<serde_json::Value> {
    assert!(output.status.success(), "{}", stderr(output));
    stdout(output).lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

#[test]
fn a_device_that_asks_for_its_host_signs_in_there() {
    let cloud = Site::new();
    let simulator = cloud.simulator(&["--mqtt", "127.0.0.1:0"]);
    let broker = simulator.next_address().to_string();
    let site = site(&simulator, &format!("host = \"{broker}\""));
    let server = site.serve();
    let asked = lines(&device(&site, &server, &["--sign-in"]));
    assert_eq!(asked[0]["host"], broker.as_str());
    assert_eq!(asked[1..], [serde_json::json!({ "signedIn": format!("mqtt://{broker}") })]);

    let not_asked = lines(&device(&site, &server, &[]));
    let mut without_host = asked[0].clone();
    without_host.as_object_mut().expect("an object").remove("host");
    assert_eq!(not_asked, [without_host]);

    let output = device(&site, &server, &["--sign-in", "--connect", "mqtt://127.0.0.1:1"]);
    assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
}

#[test]
fn the_host_follows_from_the_instance() {
    let cloud = Site::new();
    let simulator = cloud.simulator(&[]);
    for (settings, expected) in [
        ("", "a1plug.iot-as-mqtt.cn-shanghai.aliyuncs.com"),
        ("instance_id = \"iot-06z00abc\"", "iot-06z00abc.mqtt.iothub.aliyuncs.com"),
    ] {
        let site = site(&simulator, settings);
        let configuration = std::fs::read_to_string(site.path("certdist.toml")).expect("it is there");
        site.write("certdist.toml", &format!("{configuration}host = true\nexisting = \"adopt\"\n"));
        let server = site.serve();
        assert_eq!(lines(&device(&site, &server, &[]))[0]["host"], expected);
    }
}

#[test]
fn a_server_without_a_cloud_tells_no_host() {
    let site = Site::new();
    site.import("deviceId,enrollment,deviceName,deviceSecret\nSN000001,plug,plug-1,secretofplug10000000000000000000\n");
    let server = site.serve();
    let output = device(&site, &server, &["--sign-in"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stdout(&output).contains("secretofplug1"), "the certificate is there all the same");
    assert!(stderr(&output).contains("has no host") && stderr(&output).contains("--connect"));
}

#[test]
fn a_reload_begins_and_ends_the_telling_of_the_host() {
    let cloud = Site::new();
    let simulator = cloud.simulator(&[]);
    let site = site(&simulator, "host = \"mqtt.example.com:1884\"");
    let configuration = std::fs::read_to_string(site.path("certdist.toml")).expect("it is there");
    let server = site.serve();
    for (keys, expected) in
        [("", None), ("host = true\n", Some("mqtt.example.com:1884")), ("host = false\n", None)]
    {
        site.write("certdist.toml", &format!("{configuration}{keys}"));
        server.signal("HUP");
        let deadline = Instant::now() + Duration::from_secs(20);
        while lines(&device(&site, &server, &[]))[0].get("host").and_then(|host| host.as_str()) != expected {
            assert!(Instant::now() < deadline, "the reload has no effect: {keys}");
        }
    }
}
