//! Tests of the simulated IoT Platform with Alibaba Cloud's own SDKs. The simulator must accept the
//! signatures of the SDKs, and their parsers must accept its answers. Its errors must be the same
//! as the cloud's. `make clients` installs the SDKs.
#![cfg(feature = "simulation")]

use std::path::Path;

use certdist::iot_platform::simulator::{Action, InstanceConfig, Limits, Simulator, SimulatorConfig};
use tokio::process::Command;

/// Python with the SDKs, installed by `scripts/build-foreign`.
const PYTHON: &str = "build/sdk/bin/python";

async fn judge(sdk: &str, topic: &str, limits: Limits) -> Simulator {
    let products = vec!["a1BwAGVxyz1".into()];
    judge_with(sdk, topic, SimulatorConfig { limits, products, ..SimulatorConfig::default() }).await
}

async fn judge_with(sdk: &str, topic: &str, config: SimulatorConfig) -> Simulator {
    assert!(Path::new(PYTHON).exists(), "{PYTHON} is missing; `make clients` installs the SDKs");
    let simulator = Simulator::start(config).await.unwrap();
    let credentials = simulator.credentials();
    let output = Command::new(PYTHON)
        .args(["tests/foreign/sdk.py", sdk, topic, &simulator.addr().to_string()])
        .env("SDK_KEY_ID", &credentials.access_key_id)
        .env("SDK_KEY_SECRET", credentials.access_key_secret.expose())
        .env("SDK_ACTIONS", Action::ALL.map(Action::name).join(" "))
        // The SDKs read proxy settings from the environment, but the simulator is not behind a
        // proxy.
        .envs(["NO_PROXY", "no_proxy"].map(|name| (name, "127.0.0.1")))
        .kill_on_drop(true)
        .output()
        .await
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{sdk} {topic}: {said}");
    simulator
}

#[tokio::test]
async fn the_older_sdk_drives_every_action() {
    let simulator = judge("core", "actions", Limits::None).await;
    assert_eq!((simulator.stats().devices, simulator.stats().refused), (60, 0));
}

#[tokio::test]
async fn the_newer_sdk_drives_every_action() {
    let simulator = judge("tea", "actions", Limits::None).await;
    assert_eq!((simulator.stats().devices, simulator.stats().refused), (60, 0));
}

#[tokio::test]
async fn both_sdks_tell_the_instances_of_an_account_apart() {
    let instance = |id: &str, product: &str, max_devices| InstanceConfig {
        id: id.into(),
        products: vec![product.into()],
        max_devices,
        ..InstanceConfig::default()
    };
    for sdk in ["core", "tea"] {
        let instances = vec![instance("iot-a", "a1BwAGVxyz1", Some(1)), instance("iot-b", "a1other", None)];
        let config = SimulatorConfig { instances, ..SimulatorConfig::default() };
        let simulator = judge_with(sdk, "instances", config).await;
        assert_eq!((simulator.stats().devices, simulator.stats().refused), (1, 0), "{sdk}");
    }
}

#[tokio::test]
async fn both_sdks_take_a_batch_in_full_size() {
    for sdk in ["core", "tea"] {
        judge(sdk, "full_batch", Limits::None).await;
    }
}

#[tokio::test]
async fn the_older_sdk_raises_what_the_gateway_refuses() {
    // Five requests are refused: one with a wrong secret, one with an unknown key, one without a
    // product, and two that were changed in transit.
    let simulator = judge("core", "gateway", Limits::None).await;
    assert_eq!((simulator.stats().devices, simulator.stats().refused), (1, 5));
}

#[tokio::test]
async fn the_newer_sdk_raises_what_the_gateway_refuses() {
    let simulator = judge("tea", "gateway", Limits::None).await;
    assert_eq!((simulator.stats().devices, simulator.stats().refused), (1, 5));
}

#[tokio::test]
async fn both_sdks_raise_throttling() {
    for sdk in ["core", "tea"] {
        assert_eq!(judge(sdk, "throttling", Limits::Real).await.stats().throttled, 1, "{sdk}");
    }
}
