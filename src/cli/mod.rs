//! The command line: arguments, subcommands and what they print. Rules are in the
//! rooms below.

mod audit;
mod backup;
mod core_dumps;
mod database;
#[cfg(feature = "simulation")]
pub mod demo;
mod device;
#[cfg(feature = "simulation")]
pub mod device_sim;
mod export;
mod import;
mod progress;
pub mod serve;
#[cfg(feature = "simulation")]
pub mod simulator;

use std::{
    io::{self, IsTerminal},
    path::PathBuf,
    process::ExitCode,
    sync::Arc,
};

use clap::{Parser, Subcommand, ValueEnum};

use crate::{
    config::{self, Config},
    store::{self, sqlite::Sqlite},
};

/// Gives each device of Alibaba Cloud IoT Platform its certificate at first power-on.
#[derive(Parser)]
#[command(
    version,
    after_help = "\
Try it, with no account and nothing to configure
  certdist demo

Results are on standard output, logs on standard error (RUST_LOG=debug for more).
Exit code: 0 done, 1 failed, 2 wrong usage or configuration."
)]
struct Arguments {
    /// How logs are written
    #[arg(long, global = true, value_enum, default_value_t = LogFormat::Text)]
    log_format: LogFormat,
    #[command(subcommand)]
    command: Command,
}

#[derive(Clone, Copy, ValueEnum)]
enum LogFormat {
    /// A line for people
    Text,
    /// A JSON object a line
    Json,
}

#[derive(Subcommand)]
enum Command {
    #[cfg(feature = "simulation")]
    Demo(demo::Args),
    Serve(serve::Args),
    Import(import::Args),
    Export(export::Args),
    Device(device::Args),
    Database(database::Args),
    Audit(audit::Args),
    Backup(backup::BackupArgs),
    Restore(backup::RestoreArgs),
    /// Checks the configuration, and the keys and credentials that it refers to
    CheckConfig(ConfigArgs),
    #[cfg(feature = "simulation")]
    Simulator(simulator::Args),
    #[cfg(feature = "simulation")]
    DeviceSim(device_sim::Args),
}

/// Where the configuration is.
#[derive(clap::Args)]
struct ConfigArgs {
    /// The configuration
    #[arg(long, global = true, value_name = "FILE", default_value = config::DEFAULT_PATH)]
    config: PathBuf,
}

impl ConfigArgs {
    fn read(&self) -> Result<Config, Failure> {
        Config::read(&self.config).map_err(Failure::Usage)
    }
}

/// Why a subcommand did not do what it was asked.
#[derive(Debug)]
pub enum Failure {
    /// Wrong usage or configuration: exit code 2.
    Usage(anyhow::Error),
    /// Everything else: exit code 1.
    Failed(anyhow::Error),
}

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

/// What a subcommand ends with.
pub type Outcome = Result<(), Failure>;

/// Runs what the command line says.
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    log(arguments.log_format);
    let outcome = match arguments.command {
        #[cfg(feature = "simulation")]
        Command::Demo(args) => runtime().and_then(|runtime| runtime.block_on(demo::run(args))),
        Command::Serve(args) => runtime().and_then(|runtime| runtime.block_on(serve::run(args))),
        Command::Import(args) => import::run(&args),
        Command::Export(args) => export::run(&args),
        Command::Device(args) => runtime().and_then(|runtime| runtime.block_on(device::run(args))),
        Command::Database(args) => database::run(&args),
        Command::Audit(args) => audit::run(&args),
        Command::Backup(args) => backup::back_up(&args),
        Command::Restore(args) => backup::restore(&args),
        Command::CheckConfig(args) => check_config(&args),
        #[cfg(feature = "simulation")]
        Command::Simulator(args) => {
            runtime().and_then(|runtime| runtime.block_on(simulator::run(args)).map_err(Failure::from))
        }
        #[cfg(feature = "simulation")]
        Command::DeviceSim(args) => runtime().and_then(|runtime| runtime.block_on(device_sim::run(args))),
    };
    // Not `main`'s own `Result`, which would print a backtrace where one is on.
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Failed(error)) => {
            eprintln!("error: {error:#}");
            ExitCode::from(1)
        }
        Err(Failure::Usage(error)) => {
            eprintln!("error: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn log(format: LogFormat) {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "info".into());
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
    match format {
        LogFormat::Text => builder.with_ansi(io::stderr().is_terminal()).with_target(false).init(),
        LogFormat::Json => builder.json().init(),
    }
}

fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    Ok(tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?)
}

fn open_store(config: &Config) -> Result<Arc<Sqlite>, Failure> {
    Ok(store::open_sealed(&config.database, config.database_keys.clone())?)
}

fn check_config(args: &ConfigArgs) -> Outcome {
    let config = args.read()?;
    println!("{}: {} enrollments, listen {}", args.config.display(), config.enrollments.len(), config.listen);
    Ok(())
}
