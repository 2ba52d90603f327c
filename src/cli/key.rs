//! `certdist key`: makes keys, and derives a device's key from a master key, for tests. No key is
//! an argument, because other users can see a command line.

use std::{
    io::{self, Write},
    path::PathBuf,
};

use anyhow::{Context, anyhow};
use zeroize::Zeroizing;

use super::{CommandResult, ConfigArgs, Failure, named, print};
use crate::{
    device::DeviceId,
    new_file::NewFile,
    psk::{Kind, MAX_KEY, MIN_KEY, WhichKey},
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

/// Makes a key, or derives a device's key from its enrollment's master key
#[derive(clap::Args)]
#[command(after_help = "\
Example: a master key, in a file that only its owner can read, for `key = \"file:lamp.key\"`
  certdist key new --output lamp.key
The key of one device of a derived enrollment, for a test
  certdist key new --derive SN00000001 --enrollment lamp-2026

Keys come from the system's random number generator and are printed in hex. The master
key of an enrollment is never printed.")]
struct NewArgs {
    /// Length of the key, 16 to 64 bytes
    #[arg(
        long, value_name = "N", default_value_t = 32,
        value_parser = clap::value_parser!(u64).range(MIN_KEY as u64..=MAX_KEY as u64)
    )]
    bytes: u64,
    /// File to write, which only its owner can read; standard output if absent or -
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Derive the key of the device with this identity, instead of making a new key
    #[arg(long, value_name = "IDENTITY", requires = "enrollment", conflicts_with = "bytes")]
    derive: Option<String>,
    /// Derived enrollment of the device
    #[arg(long, value_name = "NAME", requires = "derive")]
    enrollment: Option<String>,
    /// Derive from the enrollment's second master key, `key_next`
    #[arg(long, requires = "derive")]
    next: bool,
    #[command(flatten)]
    config: ConfigArgs,
}

pub(super) fn run(args: &Args) -> CommandResult {
    let Action::New(args) = &args.action;
    let key = match (&args.derive, &args.enrollment) {
        (Some(identity), Some(enrollment)) => derived(args, identity, enrollment)?,
        _ => new(args.bytes)?,
    };
    match args.output.as_deref().filter(|path| path.as_os_str() != "-") {
        None => Ok(print(|out| writeln!(out, "{}", key.as_str()))?),
        Some(path) => {
            let write = || -> io::Result<()> {
                let new = NewFile::create(path)?;
                writeln!(new.file(), "{}", key.as_str())?;
                new.complete()
            };
            Ok(write().with_context(|| format!("could not write {}", path.display()))?)
        }
    }
}

fn new(bytes: u64) -> Result<Zeroizing<String>, Failure> {
    let mut key = Zeroizing::new(vec![0; bytes as usize]);
    getrandom::fill(&mut key).map_err(|error| anyhow!("the system gives no random numbers: {error}"))?;
    Ok(Zeroizing::new(hex::encode(&*key)))
}

fn derived(args: &NewArgs, identity: &str, enrollment: &str) -> Result<Zeroizing<String>, Failure> {
    let config = args.config.read()?;
    // The server derives the key from the identity exactly as the device spells it. The identity is
    // therefore checked here, but not normalized.
    DeviceId::parse(identity)
        .with_context(|| format!("--derive \"{}\"", identity.escape_debug()))
        .map_err(Failure::Usage)?;
    let known = named(&config, enrollment).map_err(Failure::Usage)?;
    let which = if args.next { WhichKey::Next } else { WhichKey::Current };
    match (&known.kind, known.key(which)) {
        (Kind::Derived(_), Some(master)) => {
            Ok(Zeroizing::new(hex::encode(master.derive(identity.as_bytes()).as_bytes())))
        }
        (Kind::Derived(_), None) => Err(Failure::Usage(anyhow!(
            "--next: the enrollment {enrollment} has no key_next; add it to the configuration"
        ))),
        _ => Err(Failure::Usage(anyhow!(
            "--enrollment {enrollment}: its kind is not \"derived\", so it has no master key"
        ))),
    }
}
