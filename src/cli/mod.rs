//! The command line: arguments, subcommands and their output. All other rules are in the modules
//! that the subcommands call.

// `println!` and `eprintln!` panic if the reader has closed the pipe. Subcommands use `print` and
// `remark` instead.
#![deny(clippy::print_stdout, clippy::print_stderr)]

mod admin;
mod ask;
mod audit;
mod backup;
mod check_config;
mod concerns;
mod copy;
mod core_dumps;
mod database;
#[cfg(feature = "simulation")]
pub mod demo;
mod device;
#[cfg(feature = "simulation")]
pub mod device_sim;
mod enrollment;
mod export;
mod import;
mod key;
mod man;
mod progress;
mod register;
pub mod serve;
mod servers;
#[cfg(feature = "simulation")]
pub mod simulator;
mod spool;
mod stats;

use std::{
    io::{self, IsTerminal, Write},
    path::PathBuf,
    process::ExitCode,
    sync::Arc,
};

use anyhow::Context;
use clap::{Parser, Subcommand, ValueEnum};

use self::progress::Stderr;
use crate::{
    config::{self, Config},
    psk::Enrollment,
    store::{self, Table},
};

/// Gives each device of Alibaba Cloud IoT Platform its certificate at first power-on.
#[derive(Parser)]
#[command(
    version,
    after_help = "\
Try it, without an account or a configuration
  certdist demo

Results go to standard output, logs to standard error (RUST_LOG=debug for more).
Exit code: 0 success, 1 failure, 2 wrong usage or configuration."
)]
struct Arguments {
    /// Format of the logs
    #[arg(long, global = true, value_enum, default_value_t = LogFormat::Text)]
    log_format: LogFormat,
    #[command(subcommand)]
    command: Command,
}

#[derive(Clone, Copy, ValueEnum)]
enum LogFormat {
    /// Human-readable lines
    Text,
    /// One JSON object per line
    Json,
}

#[derive(Subcommand)]
enum Command {
    #[cfg(feature = "simulation")]
    Demo(demo::Args),
    Serve(serve::Args),
    Import(import::Args),
    Export(export::Args),
    Register(register::Args),
    Device(device::Args),
    Enrollment(enrollment::Args),
    Stats(stats::Args),
    Servers(servers::Args),
    Key(key::Args),
    Admin(admin::Args),
    Database(database::Args),
    Audit(audit::Args),
    Backup(backup::BackupArgs),
    Restore(backup::RestoreArgs),
    Copy(copy::Args),
    CheckConfig(check_config::Args),
    Completion(man::CompletionArgs),
    #[command(hide = true)]
    Man(man::Args),
    #[cfg(feature = "simulation")]
    Simulator(simulator::Args),
    #[cfg(feature = "simulation")]
    DeviceSim(device_sim::Args),
}

/// Path of the configuration.
#[derive(clap::Args)]
struct ConfigArgs {
    /// Configuration file; if absent, certdist.toml, or else /etc/certdist/certdist.toml
    #[arg(long, global = true, value_name = "FILE", env = "CERTDIST_CONFIG")]
    config: Option<PathBuf>,
}

impl ConfigArgs {
    fn read(&self) -> Result<Config, Failure> {
        Config::read(&self.path()).map_err(Failure::Usage)
    }

    /// Reads the configuration for a command that neither serves devices nor calls IoT Platform.
    fn read_offline(&self) -> Result<Config, Failure> {
        Config::read_offline(&self.path()).map_err(Failure::Usage)
    }

    /// Returns the path of the configuration: the path given, or else the file in the current
    /// folder, or else the installed file.
    fn path(&self) -> PathBuf {
        let usual = [config::DEFAULT_PATH, config::SYSTEM_PATH].map(PathBuf::from);
        let [here, system] = usual;
        self.config.clone().unwrap_or(if here.exists() || !system.exists() { here } else { system })
    }
}

/// Reason why a subcommand failed.
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

/// Returns the enrollment that the option `--enrollment` names.
fn named<'c>(config: &'c Config, name: &str) -> anyhow::Result<&'c Enrollment> {
    let found = config.enrollments.iter().find(|enrollment| enrollment.name == name);
    found.with_context(|| format!("--enrollment {name}: no [[enrollment]] has that name"))
}

/// Result of a subcommand.
pub type CommandResult = Result<(), Failure>;

/// Parses the command line and runs the subcommand.
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    log(arguments.log_format);
    // Most commands have secrets in their memory, which a core dump would contain.
    if let Err(error) = core_dumps::forbid() {
        remark(&format!("error: could not turn off core dumps: {error}\n"));
        return ExitCode::from(1);
    }
    let outcome = match arguments.command {
        #[cfg(feature = "simulation")]
        Command::Demo(args) => runtime().and_then(|runtime| runtime.block_on(demo::run(args))),
        Command::Serve(args) => runtime().and_then(|runtime| runtime.block_on(serve::run(args))),
        Command::Import(args) => import::run(&args),
        Command::Export(args) => export::run(&args),
        Command::Register(args) => runtime().and_then(|runtime| runtime.block_on(register::run(args))),
        Command::Device(args) => runtime().and_then(|runtime| runtime.block_on(device::run(args))),
        Command::Enrollment(args) => runtime().and_then(|runtime| runtime.block_on(enrollment::run(args))),
        Command::Stats(args) => runtime().and_then(|runtime| runtime.block_on(stats::run(args))),
        Command::Servers(args) => runtime().and_then(|runtime| runtime.block_on(servers::run(args))),
        Command::Key(args) => key::run(&args),
        Command::Admin(args) => admin::run(&args),
        Command::Database(args) => database::run(&args),
        Command::Audit(args) => audit::run(&args),
        Command::Backup(args) => backup::back_up(&args),
        Command::Restore(args) => backup::restore(&args),
        Command::Copy(args) => copy::run(&args),
        Command::CheckConfig(args) => runtime().and_then(|runtime| runtime.block_on(check_config::run(args))),
        Command::Completion(args) => man::completion(&args),
        Command::Man(args) => man::run(&args),
        #[cfg(feature = "simulation")]
        Command::Simulator(args) => runtime().and_then(|runtime| runtime.block_on(simulator::run(args))),
        #[cfg(feature = "simulation")]
        Command::DeviceSim(args) => runtime().and_then(|runtime| runtime.block_on(device_sim::run(args))),
    };
    // `main` prints the error itself. If it returned a `Result` instead, Rust would add a backtrace
    // to the error whenever backtraces are enabled.
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Failed(error)) => {
            remark(&format!("error: {error:#}\n"));
            ExitCode::from(1)
        }
        Err(Failure::Usage(error)) => {
            remark(&format!("error: {error:#}\n"));
            ExitCode::from(2)
        }
    }
}

fn log(format: LogFormat) {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "info".into());
    // Internal errors of the logger would go to `eprintln!`, which panics if standard error
    // cannot be written.
    let builder =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(|| Stderr).log_internal_errors(false);
    match format {
        LogFormat::Text => builder.with_ansi(io::stderr().is_terminal()).with_target(false).init(),
        LogFormat::Json => builder.json().init(),
    }
}

fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    Ok(tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?)
}

/// Opens the database. Creates the database if it does not exist.
fn open_store(config: &Config) -> Result<Arc<dyn Table>, Failure> {
    Ok(store::open(&config.database, config.database_keys.clone())?)
}

/// Opens the database to change it. Fails if the database does not exist.
fn open_existing(config: &Config) -> Result<Arc<dyn Table>, Failure> {
    store::is_there(&config.database)?;
    open_store(config)
}

/// Opens the database only to read it. Fails if the database does not exist. Creates no file, and
/// changes no data.
fn look_at_store(config: &Config) -> Result<Arc<dyn Table>, Failure> {
    Ok(store::look(&config.database, config.database_keys.clone())?)
}

/// Opens the database only to preview an import. Creates no file, and changes no data.
fn preview_store(config: &Config) -> Result<Arc<dyn Table>, Failure> {
    Ok(store::preview(&config.database, config.database_keys.clone())?)
}

/// Writes results. A reader that closes the pipe early (`| head`) is not an error.
fn print<E: Into<anyhow::Error>>(write: impl FnOnce(&mut dyn Write) -> Result<(), E>) -> anyhow::Result<()> {
    let mut stdout = io::BufWriter::new(io::stdout().lock());
    let written = write(&mut stdout).map_err(Into::into).and_then(|()| Ok(stdout.flush()?));
    let kind = |error: &anyhow::Error| {
        error.chain().find_map(|cause| Some(cause.downcast_ref::<io::Error>()?.kind()))
    };
    match written {
        Err(error) if kind(&error) == Some(io::ErrorKind::BrokenPipe) => Ok(()),
        Err(error) if error.is::<io::Error>() => Err(error.context("could not write to standard output")),
        written => written,
    }
}

/// Writes results that are useful only if they are complete. Fails if the reader closes the pipe
/// early.
fn print_whole<E: Into<anyhow::Error>>(
    write: impl FnOnce(&mut dyn Write) -> Result<(), E>,
) -> anyhow::Result<()> {
    let mut is_whole = false;
    print(|out| {
        write(out).map_err(Into::into)?;
        out.flush()?;
        is_whole = true;
        Ok::<_, anyhow::Error>(())
    })?;
    anyhow::ensure!(is_whole, "standard output was closed early, so what was read of it is not complete");
    Ok(())
}

/// Writes a remark to standard error, so that it is separate from the results. Ignores errors.
fn remark(text: &str) {
    let _ = Stderr.write_all(text.as_bytes());
}

/// Aligns cells in columns. On a terminal, cuts lines to the width of the terminal.
fn aligned<const N: usize>(lines: &[[String; N]]) -> String {
    let width = io::stdout().is_terminal().then(|| rustix::termios::tcgetwinsize(io::stdout()).ok());
    // A terminal without a size reports 0.
    let width = width.flatten().map(|size| usize::from(size.ws_col)).filter(|width| *width > 0);
    aligned_within(lines, width.unwrap_or(usize::MAX))
}

fn aligned_within<const N: usize>(lines: &[[String; N]], most: usize) -> String {
    let mut widths = [0; N];
    for line in lines {
        for (width, cell) in widths.iter_mut().zip(line) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    for line in lines {
        let cells: Vec<String> =
            line.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        let line = cells.join("  ");
        let line = line.trim_end();
        match line.char_indices().nth(most) {
            // The last character shows that the line was cut.
            Some(_) => {
                text.extend(line.chars().take(most.saturating_sub(1)));
                text.push('…');
            }
            None => text.push_str(line),
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_fits_its_terminal() {
        let line = |cells: [&str; 3]| cells.map(String::from);
        let lines =
            [line(["DEVICE", "STATE", "REFUSED"]), line(["SN-1", "enabled", "NoPermission: not authorized"])];
        let whole = "DEVICE  STATE    REFUSED\nSN-1    enabled  NoPermission: not authorized\n";
        assert_eq!(aligned_within(&lines, usize::MAX), whole);
        assert_eq!(aligned_within(&lines, 45), whole);
        assert_eq!(
            aligned_within(&lines, 44),
            "DEVICE  STATE    REFUSED\nSN-1    enabled  NoPermission: not authoriz…\n"
        );
        assert_eq!(aligned_within(&lines, 1), "…\n…\n");
    }
}
