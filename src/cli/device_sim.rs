//! `certdist device-sim`: runs one simulated device, until it has its certificate or gives up.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context, anyhow};
use serde_json::json;

use super::{CommandResult, Failure, print};
use crate::{
    iot_platform::host::with_port,
    simulated_device::{Answer, SimulatedDevice, sign_in},
};

/// Simulates a device that powers on and asks for its certificate
#[derive(clap::Args)]
#[command(after_help = "\
Example: a device of a shared enrollment
  certdist device-sim --server 127.0.0.1:5684 --identity plug-batch-7 \\
    --psk 000102030405060708090a0b0c0d0e0f --sn SN00000001

Prints the certificate as JSON, and with --sign-in or --connect another line once it has signed in.
Like the firmware kit, it comes back after Max-Age or a growing delay if that is within its patience.
A refusal is an error with its code.")]
pub struct Args {
    /// Address of certdist
    #[arg(long, value_name = "ADDR:PORT")]
    server: SocketAddr,
    /// PSK identity
    #[arg(long, value_name = "ID")]
    identity: String,
    /// Pre-shared key in hex; prefer the environment variable, because a command line is public
    #[arg(long, value_name = "HEX", env = "CERTDIST_DEVICE_PSK", hide_env_values = true)]
    psk: String,
    /// Serial number to ask with; without it, the identity is the device ID
    #[arg(long, value_name = "SN")]
    sn: Option<String>,
    /// Ask for the MQTT host, and sign in there with the certificate, over TCP without TLS
    #[arg(long, conflicts_with = "connect")]
    sign_in: bool,
    /// MQTT broker to sign in to with the certificate, such as the simulator's --mqtt
    #[arg(long, value_name = "mqtt://HOST:PORT", value_parser = broker)]
    connect: Option<String>,
    /// Time after which to give up, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    patience: u64,
}

pub(super) async fn run(args: Args) -> CommandResult {
    let psk = hex::decode(&args.psk).context("--psk is not hex").map_err(Failure::Usage)?;
    let patience = Duration::from_secs(args.patience);
    let device = SimulatedDevice {
        server: args.server,
        identity: args.identity,
        psk,
        sn: args.sn,
        asks_host: args.sign_in,
        patience,
    };
    match device.provision().await? {
        Answer::Certificate { certificate, host } => {
            // The secret is shown on purpose: the user of a simulated device needs it.
            let mut shown = json!({
                "productKey": certificate.product_key,
                "deviceName": certificate.device_name,
                "deviceSecret": certificate.device_secret.expose(),
            });
            if let Some(host) = &host {
                shown["host"] = host.as_str().into();
            }
            print(|out| writeln!(out, "{shown}"))?;
            let broker = match host {
                _ if !args.sign_in => args.connect,
                Some(host) => Some(with_port(&host)),
                None => {
                    return Err(anyhow!(
                        "the answer has no host: certdist is older, or has no [iot_platform]; name the broker with \
                         --connect"
                    )
                    .into());
                }
            };
            if let Some(broker) = broker {
                sign_in(&certificate, &broker, patience).await?;
                print(|out| writeln!(out, "{}", json!({ "signedIn": format!("mqtt://{broker}") })))?;
            }
            Ok(())
        }
        Answer::Refused { code, title, max_age } => {
            let again = max_age.map(|seconds| format!("; retry in {seconds} s")).unwrap_or_default();
            Err(anyhow!("{code} {title}{again}").into())
        }
    }
}

/// Parses `mqtt://HOST:PORT` into `HOST:PORT`.
fn broker(text: &str) -> Result<String, String> {
    let broker = text.strip_prefix("mqtt://").unwrap_or_default().trim_end_matches('/');
    let port =
        broker.rsplit_once(':').filter(|(host, _)| !host.is_empty()).map(|(_, port)| port.parse::<u16>());
    match port {
        Some(Ok(_)) => Ok(broker.to_owned()),
        _ => Err(format!("{text:?} is not a broker; expected a URL such as mqtt://127.0.0.1:1883")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broker_is_a_url_with_host_and_port() {
        assert_eq!(broker("mqtt://127.0.0.1:1883/"), Ok("127.0.0.1:1883".into()));
        assert_eq!(broker("mqtt://[::1]:1883"), Ok("[::1]:1883".into()));
        for text in
            ["", "127.0.0.1:1883", "mqtts://127.0.0.1:8883", "mqtt://:1", "mqtt://host", "mqtt://host:x"]
        {
            assert!(broker(text).unwrap_err().contains("mqtt://127.0.0.1:1883"), "{text}");
        }
    }
}
