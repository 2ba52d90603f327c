//! `certdist export`: writes the table as CSV, which `certdist import` reads.

use std::{
    io::{self, Write},
    os::fd::AsFd,
    path::{Path, PathBuf},
};

use anyhow::{Context, anyhow};
use rustix::fs::{FileType, fstat};

use super::{CommandResult, ConfigArgs, look_at_store, print_whole, progress::Progress, spool::Spool};
use crate::{
    new_file::NewFile,
    table_file::{self, ExportError, Form},
};

/// Writes the table as CSV, secrets included
#[derive(clap::Args)]
#[command(after_help = "\
Example
  certdist export --output backup.csv
  certdist import backup.csv --dry-run

The file holds every device secret and key, in clear text. Only its owner can read it.
An export to a pipe is first written to an unnamed, encrypted file in TMPDIR (/tmp).")]
pub struct Args {
    /// File to write, which must not exist yet; standard output if absent or -
    #[arg(long, value_name = "FILE.csv")]
    output: Option<PathBuf>,
    /// Write the columns of Tablestore's device_table, with times as seconds since 1970
    #[arg(long)]
    tablestore: bool,
    /// Put ' before cells that a spreadsheet would run as formulas, and quote all cells
    #[arg(long)]
    for_spreadsheet: bool,
    #[command(flatten)]
    config: ConfigArgs,
}

pub(super) fn run(args: &Args) -> CommandResult {
    let config = args.config.read_offline()?;
    let store = look_at_store(&config)?;
    let form = Form { tablestore: args.tablestore, for_spreadsheet: args.for_spreadsheet };
    let mut progress = Progress::new("{bytes} written");
    match args.output.as_deref().filter(|path| path.as_os_str() != "-") {
        Some(path) => {
            let new =
                NewFile::create(path).with_context(|| format!("could not create {}", path.display()))?;
            let mut writer = progress.counting(io::BufWriter::new(new.file()));
            match table_file::export_as(&*store, form, &mut writer) {
                Err(ExportError::Write(error)) => Err(unwritten(path, error)),
                written => Ok(written.map(drop)?),
            }?;
            writer.flush().map_err(|error| unwritten(path, error))?;
            drop(writer);
            new.complete().map_err(|error| unwritten(path, error))?;
        }
        None if is_regular(io::stdout()) => {
            print_whole(|out| match table_file::export_as(&*store, form, progress.counting(out)) {
                Err(ExportError::Write(error)) => Err(error.into()),
                written => Ok::<_, anyhow::Error>(written.map(drop)?),
            })?;
        }
        None => {
            // While an export reads the database, SQLite cannot empty the write-ahead log. The
            // export is therefore first written to a temporary file, so that a slow reader of the
            // output does not prolong the reading.
            let folder = std::env::temp_dir();
            let mut spool = Spool::create().with_context(|| {
                format!("could not create a file in {}; set TMPDIR, or use --output", folder.display())
            })?;
            let written = table_file::export_as(&*store, form, progress.counting(&mut spool));
            let spooled = match written {
                Err(ExportError::Write(error)) => Err(error),
                written => written.map(|_| spool.into_reader())?,
            };
            let mut spooled = spooled.map_err(|error| {
                let folder = folder.display();
                anyhow!("{folder}: {error}; set TMPDIR to a folder with room for the table")
            })?;
            drop(progress);
            print_whole(|out| io::copy(&mut spooled, out).map(drop))?;
        }
    }
    Ok(())
}

fn unwritten(path: &Path, error: io::Error) -> anyhow::Error {
    let next = match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
            "; free some space on its disk, or write to another one"
        }
        _ => "",
    };
    anyhow!("could not write {}: {error}{next}", path.display())
}

/// Returns whether a file is a regular file. A write to a regular file waits only for the disk, but
/// a write to a pipe waits for the reader.
fn is_regular(file: impl AsFd) -> bool {
    fstat(file).is_ok_and(|found| FileType::from_raw_mode(found.st_mode) == FileType::RegularFile)
}
