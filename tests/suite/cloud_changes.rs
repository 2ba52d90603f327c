//! Tests of the calls that change a device at the simulated IoT Platform, over HTTP: a disabled device
//! cannot sign in until it is enabled, and a deleted one never again.
#![cfg(feature = "simulation")]

use std::time::Duration;

use certdist::{
    iot_platform::{
        ApiError, CloudDevice, ErrorClass, IotPlatform, Thing,
        client::{Client, ClientConfig, SignatureVersion, Timeouts},
        simulator::{Action, Fault, Simulator},
    },
    simulated_device::sign_in,
};

use crate::support::sign_in::{PATIENCE, PRODUCT, cloud};

/// Returns the simulated cloud's only device, by its name and its `IotId`.
async fn device(client: &Client) -> CloudDevice {
    client.query_device_detail(PRODUCT, "SN01").await.unwrap()
}

fn named() -> Thing<'static> {
    Thing { product_key: PRODUCT, device_name: "SN01", iot_id: None }
}

fn this_very(device: &CloudDevice) -> Thing<'_> {
    Thing { iot_id: device.iot_id.as_deref(), ..named() }
}

fn class(outcome: Result<(), ApiError>) -> ErrorClass {
    outcome.unwrap_err().class
}

fn client(simulator: &Simulator, signature: SignatureVersion) -> Client {
    let config = ClientConfig::new(simulator.endpoint(), "cn-shanghai", simulator.credentials());
    Client::new(ClientConfig { signature, ..config }).unwrap()
}

#[tokio::test]
async fn a_disabled_device_cannot_sign_in_until_it_is_enabled() {
    let (simulator, _, certificate, broker) = cloud().await;
    for signature in [SignatureVersion::V1, SignatureVersion::V3] {
        let client = client(&simulator, signature);
        let found = device(&client).await;
        for thing in [named(), this_very(&found)] {
            // A repeated call changes nothing.
            for _ in 0..2 {
                client.disable_thing(thing).await.unwrap();
                assert!(device(&client).await.disabled);
            }
            let error = sign_in(&certificate, &broker, PATIENCE).await.unwrap_err().to_string();
            assert!(error.contains("return code 5"), "{error}");
            for _ in 0..2 {
                client.enable_thing(thing).await.unwrap();
                assert!(!device(&client).await.disabled);
            }
            sign_in(&certificate, &broker, PATIENCE).await.unwrap();
        }
    }
    let unknown = Thing { device_name: "SN02", ..named() };
    let client = client(&simulator, SignatureVersion::V1);
    assert_eq!(class(client.disable_thing(unknown).await), ErrorClass::NotFound);
    assert_eq!(class(client.enable_thing(unknown).await), ErrorClass::NotFound);
}

#[tokio::test]
async fn a_deleted_device_is_gone_and_its_name_gets_another_secret() {
    let (simulator, client, certificate, broker) = cloud().await;
    let before = device(&client).await;
    client.delete_device(this_very(&before)).await.unwrap();
    assert_eq!(simulator.stats().devices, 0);
    let error = sign_in(&certificate, &broker, PATIENCE).await.unwrap_err().to_string();
    assert!(error.contains("return code 5"), "{error}");
    assert_eq!(class(client.disable_thing(this_very(&before)).await), ErrorClass::NotFound);

    let after = client.register_device(PRODUCT, "SN01").await.unwrap();
    assert_ne!(after.certificate.device_secret, certificate.device_secret);
    assert_ne!(after.iot_id, before.iot_id);
    let error = sign_in(&certificate, &broker, PATIENCE).await.unwrap_err().to_string();
    assert!(error.contains("return code 4"), "{error}");
    sign_in(&after.certificate, &broker, PATIENCE).await.unwrap();

    // A late repetition of the deletion does not touch the new device of the same name.
    client.delete_device(this_very(&before)).await.unwrap();
    sign_in(&after.certificate, &broker, PATIENCE).await.unwrap();
    // By name, it deletes whatever device has the name.
    client.delete_device(named()).await.unwrap();
    assert_eq!(simulator.stats().devices, 0);
    assert_eq!(simulator.stats().refused, 0);
}

#[tokio::test]
async fn a_deletion_without_an_answer_can_be_repeated() {
    let (simulator, _, _, _) = cloud().await;
    let config = ClientConfig::new(simulator.endpoint(), "cn-shanghai", simulator.credentials());
    let wait = Duration::from_millis(300);
    let timeouts = Timeouts { first_byte: wait, whole: wait, ..Timeouts::default() };
    let impatient = Client::new(ClientConfig { timeouts, ..config }).unwrap();
    simulator.script(Action::DeleteDevice, Fault::Delay(Duration::from_secs(60)));
    let error = impatient.delete_device(named()).await.unwrap_err();
    assert_eq!((error.class, error.may_be_done()), (ErrorClass::TimedOut, true));
    assert_eq!(simulator.stats().devices, 0);
    client(&simulator, SignatureVersion::V1).delete_device(named()).await.unwrap();
}

#[tokio::test]
async fn a_refusal_has_the_class_that_decides_what_to_do() {
    let (simulator, client, _, _) = cloud().await;
    for (code, expected) in [
        ("iot.common.RamActionPermissionDeny", ErrorClass::Operator),
        ("iot.system.InstanceNotFound", ErrorClass::Operator),
        ("iot.system.SystemException", ErrorClass::TryAgain),
        ("Throttling.User", ErrorClass::Throttled),
        ("iot.device.Strange", ErrorClass::Unknown),
    ] {
        for action in [Action::DisableThing, Action::EnableThing, Action::DeleteDevice] {
            simulator.script(action, Fault::business(code));
        }
        assert_eq!(class(client.disable_thing(named()).await), expected, "{code}");
        assert_eq!(class(client.enable_thing(named()).await), expected, "{code}");
        assert_eq!(class(client.delete_device(named()).await), expected, "{code}");
    }
    assert_eq!(simulator.stats().devices, 1, "nothing was carried out");
}
