//! `certdist export`: writes the table as CSV, which `certdist import` reads.

use std::{
    fs::OpenOptions,
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::PathBuf,
};

use anyhow::Context;

use super::{CommandResult, ConfigArgs, open_store, print, progress::Progress};
use crate::table_file;

/// Writes the table as CSV, secrets included
#[derive(clap::Args)]
#[command(after_help = "\
Example
  certdist export --output backup.csv
  certdist import backup.csv --dry-run

The file holds every device secret and key. Only its owner can read it.")]
pub struct Args {
    /// File to write, which must not exist yet; standard output if absent
    #[arg(long, value_name = "FILE.csv")]
    output: Option<PathBuf>,
    #[command(flatten)]
    config: ConfigArgs,
}

pub(super) fn run(args: &Args) -> CommandResult {
    let config = args.config.read()?;
    let store = open_store(&config)?;
    let mut progress = Progress::new("{bytes} written");
    match &args.output {
        Some(path) => {
            let mut options = OpenOptions::new();
            options.write(true).create_new(true).mode(0o600);
            let file = options.open(path).with_context(|| format!("could not create {}", path.display()))?;
            let mut writer = progress.counting(io::BufWriter::new(file));
            table_file::export_file(&*store, &mut writer)?;
            writer.flush().with_context(|| format!("could not write {}", path.display()))?;
        }
        None => {
            print(|out| table_file::export_file(&*store, progress.counting(out)).map(drop))?;
        }
    }
    Ok(())
}
