//! A simulated cloud at which a device signs in.

use std::time::Duration;

use certdist::{
    device::Certificate,
    iot_platform::{
        IotPlatform,
        client::{Client, ClientConfig},
        sign_in::{Login, SignMethod},
        simulator::{Simulator, SimulatorConfig},
    },
};

/// The device's product.
pub const PRODUCT: &str = "a1BwAGVxyz1";
/// Maximum wait for an expected event.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Starts a simulated cloud with one device. Returns the cloud, a client, the device's certificate,
/// and the address at which the device signs in.
pub async fn cloud() -> (Simulator, Client, Certificate, String) {
    let mqtt = Some("127.0.0.1:0".parse().unwrap());
    let simulator = Simulator::start(SimulatorConfig { mqtt, ..SimulatorConfig::default() }).await.unwrap();
    let config = ClientConfig::new(simulator.endpoint(), "cn-shanghai", simulator.credentials());
    let client = Client::new(config).unwrap();
    let certificate = client.register_device(PRODUCT, "SN01").await.unwrap().certificate;
    let broker = simulator.mqtt_addr().unwrap().to_string();
    (simulator, client, certificate, broker)
}

/// Returns the credentials with which the device signs in at this moment.
pub fn login(certificate: &Certificate) -> Login {
    Login::new(certificate, SignMethod::HmacSha1, jiff::Timestamp::now().as_millisecond())
}

/// Waits until the simulator reports this status of the device.
pub async fn until_status(simulator: &Simulator, status: &str) {
    let reached = async {
        while simulator.status(PRODUCT, "SN01") != Some(status) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(PATIENCE, reached).await.unwrap();
}
