//! `certdist simulator`: serves IoT Platform's API on a port of this machine, for tests
//! and CI jobs without an account.

mod instance;
mod tablestore;

use std::{io, net::SocketAddr, path::PathBuf, time::Duration};

use anyhow::Context;
use clap::ValueEnum;
use tokio::signal::unix::{SignalKind, signal};

use super::{CommandResult, Failure, print, remark};
use crate::{
    device::Secret,
    iot_platform::simulator::{
        self, DEFAULT_ACCESS_KEY_ID, DEFAULT_ACCESS_KEY_SECRET, InstanceConfig, Simulator, SimulatorConfig,
        SimulatorError,
    },
};

/// Simulates IoT Platform's API: verifies signatures, needs no account.
#[derive(clap::Args)]
#[command(after_help = "\
Example: a slow cloud with the real account's limits, where one call in twenty fails
  certdist simulator --latency 50ms --limits real --fail-rate 0.05

GET /stats counts the calls. To use it with the server, set
  [iot_platform]
  endpoint = \"http://127.0.0.1:8086\"
and the same access key in ALIBABA_CLOUD_ACCESS_KEY_ID and _SECRET.

Two instances, one of them a public one with room for 500 devices. Each has devices and an
MQTT address of its own, which is printed at the start; the server needs
instance_id = \"iot-a\" and host = \"127.0.0.1:1883\"
  certdist simulator --instance id=iot-a,mqtt=127.0.0.1:1883 \\
    --instance id=iot-b,mqtt=127.0.0.1:1884,devices=500")]
pub struct Args {
    /// Address to listen on; port 0 takes a free one
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:8086")]
    listen: SocketAddr,

    /// Address where devices sign in with their certificates, over MQTT; off if absent
    #[arg(long, value_name = "ADDR:PORT")]
    mqtt: Option<SocketAddr>,

    /// Access key that is accepted
    #[arg(
        long,
        value_name = "ID",
        env = "ALIBABA_CLOUD_ACCESS_KEY_ID", requires = "access_key_secret",
        value_parser = clap::builder::NonEmptyStringValueParser::new()
    )]
    access_key_id: Option<String>,

    /// Secret of the access key; prefer the environment variable, because a command line is public
    #[arg(
        long,
        value_name = "SECRET",
        env = "ALIBABA_CLOUD_ACCESS_KEY_SECRET",
        hide_env_values = true,
        requires = "access_key_id",
        value_parser = secret
    )]
    access_key_secret: Option<Secret>,

    /// Delay of every answer, such as 50ms
    #[arg(long, value_name = "TIME", default_value = "0ms", value_parser = duration)]
    latency: Duration,

    /// Rate limits of the account
    #[arg(long, value_enum, default_value_t = Limits::None)]
    limits: Limits,

    /// Share of the calls that fail, 0 to 1; a call fails before or after it is carried out
    #[arg(long, value_name = "P", default_value = "0", value_parser = probability)]
    fail_rate: f64,

    /// Time that each step of a batch takes, such as 5s
    #[arg(long, value_name = "TIME", default_value = "0ms", value_parser = duration)]
    batch_delay: Duration,

    /// File that keeps devices and batches over a restart; in memory only if absent
    #[arg(long, value_name = "FILE")]
    state: Option<PathBuf>,

    /// Product key that the account has, repeatable; any product if absent
    #[arg(long = "product", value_name = "KEY")]
    products: Vec<String>,

    /// Instance of the account, repeatable: commas between any of id=ID (without it, the public
    /// instance that has none), region=REGION, mqtt=ADDR:PORT, product=KEY (repeatable),
    /// devices=N (the most that it holds) and expires=TIME (after the start). A call about
    /// another instance is refused. If absent, every call is about one instance
    #[arg(
        long = "instance",
        value_name = "KEY=VALUE,…",
        conflicts_with_all = ["mqtt", "products"],
        value_parser = instance::parse
    )]
    instances: Vec<InstanceConfig>,

    #[command(flatten)]
    tablestore: tablestore::Options,
}

#[derive(Clone, Copy, ValueEnum)]
enum Limits {
    /// Any number of calls
    None,
    /// The documented calls per second of each action
    Real,
}

/// Runs the simulator until SIGINT or SIGTERM.
///
/// # Errors
///
/// Fails with a sentence for the operator if the simulator cannot start, or cannot save its
/// state.
pub(super) async fn run(args: Args) -> CommandResult {
    // The handlers are installed before the address is announced, because a program that reads the
    // announcement may send a signal immediately.
    let mut interrupt = signal(SignalKind::interrupt()).context("could not install the handler of SIGINT")?;
    let mut terminate =
        signal(SignalKind::terminate()).context("could not install the handler of SIGTERM")?;

    let default_key = args.access_key_id.is_none();
    let tablestore = args.tablestore.config(&args);
    let simulator = Simulator::start(config(args)).await.map_err(explained)?;
    let tablestore = match tablestore {
        Some(config) => Some(tablestore::start(config).await?),
        None => None,
    };
    if default_key {
        remark(&format!(
            "no access key given: accepting ALIBABA_CLOUD_ACCESS_KEY_ID={DEFAULT_ACCESS_KEY_ID} \
             ALIBABA_CLOUD_ACCESS_KEY_SECRET={DEFAULT_ACCESS_KEY_SECRET}\n"
        ));
    }
    print(|out| writeln!(out, "listening on {}", simulator.endpoint()))?;
    for (label, address) in simulator.mqtt_addrs() {
        let label = label.map(|label| format!(" for instance {label}")).unwrap_or_default();
        print(|out| writeln!(out, "listening on mqtt://{address}{label}"))?;
    }
    if let Some(tablestore) = &tablestore {
        let instance = tablestore.instance();
        print(|out| {
            writeln!(out, "listening on {} for Tablestore, instance {instance}", tablestore.endpoint())
        })?;
    }
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    if let Some(tablestore) = tablestore {
        tablestore.shutdown().await.context("could not write the state file of the simulated Tablestore")?;
    }
    Ok(simulator.shutdown().await.context("could not write the simulator's state file")?)
}

fn config(args: Args) -> SimulatorConfig {
    let default = SimulatorConfig::default();
    SimulatorConfig {
        listen: args.listen,
        mqtt: args.mqtt,
        access_key_id: args.access_key_id.unwrap_or(default.access_key_id),
        access_key_secret: args.access_key_secret.unwrap_or(default.access_key_secret),
        latency: args.latency,
        limits: match args.limits {
            Limits::None => simulator::Limits::None,
            Limits::Real => simulator::Limits::Real,
        },
        fail_rate: args.fail_rate,
        batch_delay: args.batch_delay,
        state: args.state,
        products: args.products,
        instances: args.instances,
        seed: None,
    }
}

fn explained(error: SimulatorError) -> Failure {
    match &error {
        SimulatorError::Instances(_) => Failure::Usage(error.into()),
        SimulatorError::Listen { address, source } if source.kind() == io::ErrorKind::AddrInUse => {
            let what = anyhow::anyhow!(
                "{address} is in use by another program; stop it, or choose another port with --listen, --mqtt \
                 or --instance (port 0 takes a free one)"
            );
            what.into()
        }
        _ => anyhow::Error::from(error).into(),
    }
}

fn secret(text: &str) -> Result<Secret, String> {
    match text.is_empty() {
        true => Err("the secret of an access key must not be empty".into()),
        false => Ok(Secret::new(text.to_owned())),
    }
}

/// Parses a time: `50ms`, `5s`, `1.5s`, `2m`.
fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is not a time; it should look like 50ms, 5s or 2m");
    let unit_at = text.find(|c: char| c.is_ascii_alphabetic()).ok_or_else(wrong)?;
    let (number, unit) = text.split_at(unit_at);
    let seconds_per_unit = match unit {
        "ms" => 0.001,
        "s" => 1.0,
        "m" => 60.0,
        _ => return Err(wrong()),
    };
    let is_number = number.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    let number: f64 = number.parse().ok().filter(|_| is_number).ok_or_else(wrong)?;
    Duration::try_from_secs_f64(number * seconds_per_unit).map_err(|_| wrong())
}

fn probability(text: &str) -> Result<f64, String> {
    let number: Option<f64> = text.parse().ok();
    number.filter(|number| (0.0..=1.0).contains(number)).ok_or_else(|| {
        format!("{text:?} is not a probability; it should be a number from 0 to 1, such as 0.05")
    })
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        args: Args,
    }

    #[test]
    fn a_time_is_a_number_and_a_unit() {
        for (text, milliseconds) in [("50ms", 50), ("5s", 5000), ("1.5s", 1500), ("2m", 120_000), ("0ms", 0)]
        {
            assert_eq!(duration(text), Ok(Duration::from_millis(milliseconds)), "{text}");
        }
        for text in
            ["", "5", "s", "-5s", "5 s", "5h", "5S", "1e9s", "infs", "1..5s", "99999999999999999999999s"]
        {
            let error = duration(text).unwrap_err();
            assert!(error.contains("should look like 50ms, 5s or 2m"), "{error}");
        }
    }

    #[test]
    fn a_fail_rate_is_a_probability() {
        assert_eq!((probability("0"), probability("0.05"), probability("1")), (Ok(0.0), Ok(0.05), Ok(1.0)));
        for text in ["", "1.1", "-0.1", "NaN", "5%"] {
            assert!(probability(text).is_err(), "{text}");
        }
    }

    #[test]
    fn every_option_arrives() {
        let line = "x --listen 127.0.0.1:0 --mqtt 127.0.0.1:1883 --access-key-id id --access-key-secret hush --latency 50ms --limits real \
                    --fail-rate 0.5 --batch-delay 5s --state state.json --product a1 --product a2";
        let args =
            Command::try_parse_from(line.split_whitespace()).unwrap_or_else(|error| panic!("{error}")).args;
        let config = config(args);
        assert_eq!(config.listen, "127.0.0.1:0".parse().unwrap());
        assert_eq!(config.mqtt, Some("127.0.0.1:1883".parse().unwrap()));
        assert_eq!((config.access_key_id.as_str(), config.access_key_secret.expose()), ("id", "hush"));
        assert_eq!((config.latency, config.batch_delay), (Duration::from_millis(50), Duration::from_secs(5)));
        assert_eq!((config.limits, config.fail_rate), (simulator::Limits::Real, 0.5));
        assert_eq!(config.state.as_deref(), Some("state.json".as_ref()));
        assert_eq!(config.products, ["a1", "a2"]);
    }

    #[tokio::test]
    async fn a_port_in_use_is_reported_with_what_to_do() {
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let listen = taken.local_addr().unwrap();
        let config = SimulatorConfig { listen, ..SimulatorConfig::default() };
        let Failure::Failed(error) = explained(Simulator::start(config).await.unwrap_err()) else {
            panic!("another error")
        };
        let message = error.to_string();
        assert!(message.contains(&listen.to_string()) && message.contains("--listen"), "{message}");
    }
}
