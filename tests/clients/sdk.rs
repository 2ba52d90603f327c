//! Tests of the simulated IoT Platform, and of the simulated Tablestore, with Alibaba Cloud's own SDKs.
//! The simulators must accept the signatures of the SDKs, and the parsers of the SDKs must accept
//! their answers. The errors of the simulators must be the same as the cloud's. `make clients` installs
//! the SDKs.
#![cfg(feature = "simulation")]

use std::path::Path;

use certdist::{
    iot_platform::simulator::{Action, InstanceConfig, Limits, Simulator, SimulatorConfig},
    tablestore::{Operation, simulator as tablestore},
};
use tokio::process::Command;

/// Python with the SDKs, installed by `scripts/build-foreign`.
const PYTHON: &str = "build/sdk/bin/python";
/// Modules of Node.js with the SDK of Tablestore, installed by `scripts/build-foreign`.
const NODE_MODULES: &str = "build/tablestore-node/node_modules";

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

/// Runs an SDK of Tablestore against its stand-in. `before` and `after` are the arguments around the
/// address and the instance.
async fn judge_tablestore(program: &str, before: &[&str], after: &[&str]) -> tablestore::Stats {
    let simulator = tablestore::Simulator::start(tablestore::SimulatorConfig::default()).await.unwrap();
    let credentials = simulator.credentials();
    let output = Command::new(program)
        .args(before)
        .args([&simulator.addr().to_string(), simulator.instance()])
        .args(after)
        .env("SDK_KEY_ID", &credentials.access_key_id)
        .env("SDK_KEY_SECRET", credentials.access_key_secret.expose())
        .envs(["NO_PROXY", "no_proxy"].map(|name| (name, "127.0.0.1")))
        .kill_on_drop(true)
        .output()
        .await
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {before:?} {after:?}: {said}");
    let stats = simulator.stats();
    let driven: Vec<_> = stats.calls.keys().copied().collect();
    let mut all = Operation::ALL.map(Operation::name);
    all.sort_unstable();
    assert_eq!(driven, all, "{program} {before:?} {after:?}");
    stats
}

#[tokio::test]
async fn the_sdk_for_python_drives_every_operation_of_tablestore_with_both_signatures() {
    assert!(Path::new(PYTHON).exists(), "{PYTHON} is missing; `make clients` installs the SDKs");
    for version in ["2", "4"] {
        let stats = judge_tablestore(PYTHON, &["tests/foreign/tablestore_sdk.py"], &[version]).await;
        // Refused: a wrong secret, an unknown key, another instance, and a token.
        assert_eq!(stats.refused["OTSAuthFailed"], 4, "{version}");
    }
}

#[tokio::test]
async fn the_sdk_for_node_drives_every_operation_of_tablestore() {
    assert!(Path::new(NODE_MODULES).exists(), "{NODE_MODULES} is missing; `make clients` installs the SDKs");
    let stats = judge_tablestore("node", &["tests/foreign/tablestore_sdk.js", NODE_MODULES], &[]).await;
    assert!(!stats.refused.contains_key("OTSAuthFailed"), "{stats:?}");
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
