//! Mosquitto's client signs in at the simulated IoT Platform like a device.
#![cfg(feature = "simulation")]

use certdist::{
    device::Secret,
    iot_platform::sign_in::{Login, SignMethod},
};
use tokio::process::Command;

use crate::support::sign_in::{PRODUCT, cloud, login, until_status};

/// Runs `mosquitto_pub`, which `make clients` installs.
async fn mosquitto(broker: &str, login: &Login, qos: &str) -> std::process::Output {
    let (host, port) = broker.rsplit_once(':').unwrap();
    Command::new("mosquitto_pub")
        .args(["-h", host, "-p", port, "-i", &login.client_id, "-u", &login.user_name])
        .args(["-P", login.password.expose(), "-q", qos, "-t", "/a1BwAGVxyz1/SN01/user/update", "-m", "on"])
        .kill_on_drop(true)
        .output()
        .await
        .expect("mosquitto_pub is missing; `make clients` installs it")
}

#[tokio::test]
async fn mosquittos_client_signs_in_with_either_signature_and_speaks() {
    for method in [SignMethod::HmacSha1, SignMethod::HmacSha256] {
        for qos in ["0", "1", "2"] {
            let (simulator, _, certificate, broker) = cloud().await;
            let output = mosquitto(&broker, &Login::new(&certificate, method, 1), qos).await;
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            until_status(&simulator, "OFFLINE").await;
        }
    }
}

#[tokio::test]
async fn mosquittos_client_is_told_why_it_may_not() {
    let (simulator, _, certificate, broker) = cloud().await;
    let wrong = Login { password: Secret::new("0".repeat(40)), ..login(&certificate) };
    let output = mosquitto(&broker, &wrong, "1").await;
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("bad user name or password"), "{said}");
    simulator.disable(PRODUCT, "SN01");
    let output = mosquitto(&broker, &login(&certificate), "1").await;
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("not authorised"), "{said}");
}
