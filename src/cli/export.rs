//! `certdist export`: writes the table as CSV, which `certdist import` reads.

use std::{
    io::{self, Write},
    path::PathBuf,
};

use anyhow::Context;

use super::{CommandResult, ConfigArgs, look_at_store, print, progress::Progress};
use crate::{new_file::NewFile, table_file};

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
    let store = look_at_store(&config)?;
    let mut progress = Progress::new("{bytes} written");
    match &args.output {
        Some(path) => {
            let new =
                NewFile::create(path).with_context(|| format!("could not create {}", path.display()))?;
            let mut writer = progress.counting(io::BufWriter::new(new.file()));
            table_file::export_file(&*store, &mut writer)?;
            writer.flush().with_context(|| format!("could not write {}", path.display()))?;
            drop(writer);
            new.complete().with_context(|| format!("could not write {}", path.display()))?;
        }
        None => {
            print(|out| table_file::export_file(&*store, progress.counting(out)).map(drop))?;
        }
    }
    Ok(())
}
