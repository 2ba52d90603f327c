//! Tests of the MQTT host in `[iot_platform]` and in `[[enrollment]]`.

use super::*;

/// Returns the minimal configuration with these lines in its enrollment and in `[iot_platform]`.
fn with_cloud(enrollment: &str, cloud: &str) -> String {
    format!(
        "{MINIMAL}{enrollment}\n[iot_platform]\nendpoint = \"http://127.0.0.1:1\"\nregion = \"r\"\n\
         credentials = \"ecs-role\"\n{cloud}\n"
    )
}

fn host_of(text: &str) -> Option<String> {
    parse(text).unwrap().targets.remove(0).mqtt.host.map(|host| host.to_string())
}

#[test]
fn the_clouds_own_host_is_used_unless_another_one_is_configured() {
    assert_eq!(host_of(&with_cloud("", "")), None);
    assert_eq!(host_of(&with_cloud("", "host = \"\"")), None);
    assert_eq!(host_of(&with_cloud("", "host = \"127.0.0.1:1884\"")).as_deref(), Some("127.0.0.1:1884"));
    for wrong in ["mqtt://host", "host:0", "host:99999", "ho st", "-"] {
        let error = error(&with_cloud("", &format!("host = \"{wrong}\"")));
        assert!(
            error.contains("[iot_platform] host: expected a host name, and a port if"),
            "{wrong}: {error}"
        );
    }
    let variable = [("CERTDIST_IOT_PLATFORM__HOST", "mqtt.example.com")];
    let config = with_variables(&with_cloud("", "host = \"other.example.com\""), &variable).unwrap();
    assert_eq!(config.targets[0].mqtt.host.as_ref().unwrap().to_string(), "mqtt.example.com");
}

#[test]
fn an_enrollment_tells_the_host_only_if_it_is_set_and_the_host_is_known() {
    let tells = |text: &str| parse(text).map(|config| config.tell_host.contains("lamp"));
    assert!(!tells(MINIMAL).unwrap() && !tells(&with_cloud("", "")).unwrap());
    assert!(!tells(&format!("{MINIMAL}host = false")).unwrap());
    assert!(tells(&with_cloud("host = true", "")).unwrap());
    let without_cloud = error(&format!("{MINIMAL}host = true"));
    let expected =
        "line 9: [[enrollment]] \"lamp\" host = true: without [iot_platform], the host is not known";
    assert!(without_cloud.contains(expected), "{without_cloud}");
    let wrong = error(&with_cloud("host = \"mqtt.example.com\"", ""));
    assert!(wrong.contains("\"lamp\" host: ") && wrong.contains("expected true or false"), "{wrong}");
}

#[test]
fn a_server_applies_a_changed_enrollment_but_no_changed_host_of_the_cloud() {
    let before = parse(&with_cloud("", "")).unwrap();
    assert_eq!(before.needs_restart(&parse(&with_cloud("host = true", "")).unwrap()), [] as [&str; 0]);
    let changed = parse(&with_cloud("", "host = \"127.0.0.1\"")).unwrap();
    assert_eq!(before.needs_restart(&changed), ["[iot_platform] host"]);
    // Plain CoAP keeps the service that was made when the server started.
    let plain = "[plain_coap]\nlisten = \"127.0.0.1:5683\"\nenrollment = \"lamp\"";
    let before = parse(&with_cloud("", plain)).unwrap();
    let changed = parse(&with_cloud("host = true", plain)).unwrap();
    assert_eq!(before.needs_restart(&changed), ["[plain_coap] enrollment"]);
}
