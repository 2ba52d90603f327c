//! The options `--tablestore…` of `certdist simulator`: they start a stand-in for Tablestore in
//! addition to the one for IoT Platform, with the same access key and latency.

use std::{io, net::SocketAddr, path::PathBuf, time::Duration};

use super::{Failure, duration, probability};
use crate::tablestore::simulator::{DEFAULT_INSTANCE, Fault, Simulator, SimulatorConfig, SimulatorError};

#[derive(clap::Args)]
pub(super) struct Options {
    /// Address where Tablestore is simulated too; off if absent
    #[arg(long, value_name = "ADDR:PORT")]
    tablestore: Option<SocketAddr>,

    /// Name of the simulated Tablestore's instance
    #[arg(long, value_name = "NAME", default_value = DEFAULT_INSTANCE, requires = "tablestore")]
    tablestore_instance: String,

    /// File that keeps the simulated Tablestore over a restart; in memory only if absent
    #[arg(long, value_name = "FILE", requires = "tablestore")]
    tablestore_state: Option<PathBuf>,

    /// Share of Tablestore's calls that have a fault, such as busy=0.05,lost=0.01: busy, throttled,
    /// conflict, unavailable, timeout and drop are not carried out; done-timeout, lost and
    /// wrong-signature are; row fails one row of a batch
    #[arg(
        long,
        value_name = "FAULT=P,…",
        requires = "tablestore",
        value_delimiter = ',',
        value_parser = fault
    )]
    tablestore_faults: Vec<(Fault, f64)>,

    /// Capacity units per second, beyond which Tablestore's calls are throttled
    #[arg(long, value_name = "N", requires = "tablestore")]
    tablestore_capacity: Option<u32>,

    /// Time for which a new table cannot be used, such as 5s
    #[arg(long, value_name = "TIME", default_value = "0ms", requires = "tablestore", value_parser = duration)]
    tablestore_not_ready: Duration,
}

impl Options {
    /// Returns the settings of the simulated Tablestore, if it is wanted. `all` has the options that it
    /// shares with the simulated IoT Platform.
    pub(super) fn config(&self, all: &super::Args) -> Option<SimulatorConfig> {
        let default = SimulatorConfig::default();
        Some(SimulatorConfig {
            listen: self.tablestore?,
            instance: self.tablestore_instance.clone(),
            access_key_id: all.access_key_id.clone().unwrap_or(default.access_key_id),
            access_key_secret: all.access_key_secret.clone().unwrap_or(default.access_key_secret),
            security_token: None,
            latency: all.latency,
            faults: self.tablestore_faults.clone(),
            capacity: self.tablestore_capacity,
            not_ready: self.tablestore_not_ready,
            state: self.tablestore_state.clone(),
            seed: None,
        })
    }
}

/// Starts the simulated Tablestore.
///
/// # Errors
///
/// Fails with a sentence for the operator.
pub(super) async fn start(config: SimulatorConfig) -> Result<Simulator, Failure> {
    Simulator::start(config).await.map_err(|error| match &error {
        SimulatorError::Faults => Failure::Usage(error.into()),
        SimulatorError::Listen { address, source } if source.kind() == io::ErrorKind::AddrInUse => {
            let what = anyhow::anyhow!(
                "{address} is in use by another program; stop it, or choose another port with --tablestore \
                 (port 0 takes a free one)"
            );
            what.into()
        }
        _ => anyhow::Error::from(error).into(),
    })
}

/// Parses `FAULT=P`.
fn fault(text: &str) -> Result<(Fault, f64), String> {
    let names = || Fault::ALL.map(Fault::name).join(", ");
    let (name, rate) = text
        .split_once('=')
        .ok_or_else(|| format!("{text:?} is not FAULT=P; it should look like busy=0.05"))?;
    let fault =
        Fault::named(name).ok_or_else(|| format!("{name} is unknown; expected one of {}", names()))?;
    Ok((fault, probability(rate)?))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        args: super::super::Args,
    }

    fn config(line: &str) -> Option<SimulatorConfig> {
        let line = format!("x --access-key-id id --access-key-secret hush {line}");
        let args =
            Command::try_parse_from(line.split_whitespace()).unwrap_or_else(|error| panic!("{error}")).args;
        args.tablestore.config(&args)
    }

    #[test]
    fn every_option_arrives_and_access_key_and_latency_are_shared() {
        let config = config(
            "--latency 50ms --tablestore 127.0.0.1:0 --tablestore-instance mine --tablestore-state t.json \
             --tablestore-faults busy=0.05,lost=0.01 --tablestore-capacity 100 --tablestore-not-ready 5s",
        )
        .unwrap();
        assert_eq!((config.listen, config.instance.as_str()), ("127.0.0.1:0".parse().unwrap(), "mine"));
        assert_eq!((config.access_key_id.as_str(), config.access_key_secret.expose()), ("id", "hush"));
        assert_eq!((config.latency, config.not_ready), (Duration::from_millis(50), Duration::from_secs(5)));
        assert_eq!(config.faults, [(Fault::Busy, 0.05), (Fault::Lost, 0.01)]);
        assert_eq!((config.capacity, config.state), (Some(100), Some("t.json".into())));
    }

    #[test]
    fn tablestore_is_simulated_only_if_it_is_asked_for() {
        assert!(config("").is_none());
        let line = "x --tablestore-capacity 5";
        assert!(Command::try_parse_from(line.split_whitespace()).is_err());
    }

    #[test]
    fn a_fault_that_cannot_be_read_is_refused_with_what_is_expected() {
        for (text, expected) in [
            ("busy", "it should look like busy=0.05"),
            ("bussy=0.1", "expected one of busy, throttled"),
            ("busy=2", "should be a number from 0 to 1"),
        ] {
            let error = fault(text).unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
