//! `certdist key`: makes keys, and derives a device's from a master key, for a test.
//! No key is ever an argument: a command line is public.

use std::{
    fs::OpenOptions,
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::PathBuf,
};

use anyhow::{Context, anyhow};
use zeroize::Zeroizing;

use super::{ConfigArgs, Failure, Outcome, print};
use crate::{
    device::DeviceId,
    psk::{Kind, MAX_KEY, MIN_KEY},
};

/// Makes keys
#[derive(clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(clap::Subcommand)]
enum Action {
    New(NewArgs),
}

/// Makes a key, or derives a device's from its enrollment's master key
#[derive(clap::Args)]
#[command(after_help = "\
Example: a master key, in a file for its owner only, as `key = \"file:lamp.key\"` reads it
  certdist key new --output lamp.key
The key of one device of a derived enrollment, to test it with
  certdist key new --derive SN00000001 --enrollment lamp-2026

Keys come from the system's random numbers and are printed in hex. A master key of the
configuration is never printed.")]
struct NewArgs {
    /// Its length, 16 to 64 bytes
    #[arg(
        long, value_name = "N", default_value_t = 32,
        value_parser = clap::value_parser!(u64).range(MIN_KEY as u64..=MAX_KEY as u64)
    )]
    bytes: u64,
    /// Where to write it, for its owner only; standard output when absent
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// The device of this identity, instead of a new key
    #[arg(long, value_name = "IDENTITY", requires = "enrollment", conflicts_with = "bytes")]
    derive: Option<String>,
    /// Its derived enrollment
    #[arg(long, value_name = "NAME", requires = "derive")]
    enrollment: Option<String>,
    #[command(flatten)]
    config: ConfigArgs,
}

pub(super) fn run(args: &Args) -> Outcome {
    let Action::New(args) = &args.action;
    let key = match (&args.derive, &args.enrollment) {
        (Some(identity), Some(enrollment)) => derived(args, identity, enrollment)?,
        _ => new(args.bytes)?,
    };
    match &args.output {
        None => Ok(print(|out| writeln!(out, "{}", key.as_str()))?),
        Some(path) => {
            let write = || -> io::Result<()> {
                let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
                writeln!(file, "{}", key.as_str())?;
                file.sync_all()
            };
            Ok(write().with_context(|| format!("{} cannot be written", path.display()))?)
        }
    }
}

fn new(bytes: u64) -> Result<Zeroizing<String>, Failure> {
    let mut key = Zeroizing::new(vec![0; bytes as usize]);
    getrandom::fill(&mut key).map_err(|error| anyhow!("the system has no random numbers: {error}"))?;
    Ok(Zeroizing::new(hex::encode(&*key)))
}

fn derived(args: &NewArgs, identity: &str, enrollment: &str) -> Result<Zeroizing<String>, Failure> {
    let config = args.config.read()?;
    // As the server does it: the identity is the device ID as the device presents it.
    DeviceId::parse(identity)
        .with_context(|| format!("--derive \"{}\"", identity.escape_debug()))
        .map_err(Failure::Usage)?;
    let found = config.enrollments.iter().find(|known| known.name == enrollment);
    match found.map(|known| &known.kind) {
        Some(Kind::Derived(master)) => {
            Ok(Zeroizing::new(hex::encode(master.derive(identity.as_bytes()).as_bytes())))
        }
        Some(_) => Err(Failure::Usage(anyhow!(
            "--enrollment {enrollment}: its kind is not \"derived\", so no key follows from another"
        ))),
        None => Err(Failure::Usage(anyhow!("--enrollment {enrollment}: no [[enrollment]] has that name"))),
    }
}
