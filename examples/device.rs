//! A minimal device: it powers on, fetches its certificate over PSK-DTLS and CoAP, and prints
//! its identity at IoT Platform and the MQTT host at which it would sign in. For one minute, it retries
//! as docs/device.md describes.
//!
//! ```text
//! cargo run --example device -- 127.0.0.1:5684 plug-batch-7 000102030405060708090a0b0c0d0e0f
//! SN00000001
//! ```

use std::{env, time::Duration};

use anyhow::{Context, Result, bail};
use certdist::simulated_device::{Answer, SimulatedDevice};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [server, identity, psk, rest @ ..] = &arguments[..] else {
        bail!("usage: device ADDR:PORT IDENTITY PSK-HEX [SN]");
    };
    let device = SimulatedDevice {
        server: server.parse().context("ADDR:PORT")?,
        identity: identity.clone(),
        psk: hex::decode(psk).context("PSK-HEX")?,
        sn: rest.first().cloned(),
        asks_host: true,
        patience: Duration::from_secs(60),
    };
    match device.provision().await? {
        Answer::Certificate { certificate, host } => {
            println!("I am {} of product {}", certificate.device_name, certificate.product_key);
            if let Some(host) = host {
                println!("I sign in at {host}");
            }
            Ok(())
        }
        Answer::Refused { code, title, .. } => bail!("{code} {title}"),
    }
}
