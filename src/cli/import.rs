//! `certdist import`: imports devices from a CSV file into the table, all or none.

use std::path::PathBuf;

use indicatif::{ProgressBar, ProgressStyle};

use super::{CommandResult, ConfigArgs, Failure, open_store, preview_store, print, remark};
use crate::{
    psk::Enrollment,
    store::Actor,
    table_file::{self, Enrollments, Import, Imported},
};

/// Imports devices from a CSV file into the table
#[derive(clap::Args)]
#[command(after_help = "\
Example
  printf 'deviceId\\nSN00000001\\n00:1A:2B:3C:4D:5E\\n' > devices.csv
  certdist import devices.csv --enrollment lamp-2026

Columns, in any order and in the usual spellings (SN, MAC, Device ID, 设备名称); only the
device ID is required, and the device name stands for it if it is missing:
  deviceId,enrollment,productKey,deviceName,deviceSecret,iotId,pskIdentity,psk
Reads UTF-8, UTF-16 and GB18030; commas, semicolons and tabs; JSON lines with the same
keys; and a bare list of device IDs. If any line is bad, nothing changes, and each bad
line is reported. Importing the same file again changes nothing. Works beside a running
server.")]
pub struct Args {
    /// CSV file, JSON lines, or a list of device IDs
    #[arg(value_name = "FILE.csv")]
    file: PathBuf,
    /// Enrollment of rows that name none
    #[arg(long, value_name = "NAME")]
    enrollment: Option<String>,
    /// Check everything, but change nothing
    #[arg(long)]
    dry_run: bool,
    /// Ignore columns that certdist does not know
    #[arg(long)]
    ignore_unknown: bool,
    #[command(flatten)]
    config: ConfigArgs,
}

pub(super) fn run(args: &Args) -> CommandResult {
    let config = args.config.read()?;
    let mut enrollments = Enrollments::new(config.enrollments.iter().map(Enrollment::outline));
    if let Some(name) = &args.enrollment {
        enrollments = enrollments.with_default(name).map_err(|error| Failure::Usage(error.into()))?;
    }
    let store = match args.dry_run {
        true => preview_store(&config)?,
        false => open_store(&config)?,
    };
    let bar = ProgressBar::no_length().with_style(
        ProgressStyle::with_template("{bar:40} {percent}% {binary_bytes}/{binary_total_bytes} {eta} left")
            .unwrap_or_else(|_| ProgressStyle::default_bar()),
    );
    let how = Import {
        enrollments: &enrollments,
        by: &Actor::system_user(),
        dry_run: args.dry_run,
        ignores_unknown: args.ignore_unknown,
    };
    let report = table_file::import_file(&*store, &args.file, how, |read, total| {
        bar.set_length(total);
        bar.set_position(read);
    });
    bar.finish_and_clear();
    let Imported { report, remarks } = report?;
    for sentence in remarks {
        remark(&format!("note: {sentence}\n"));
    }
    let done = if args.dry_run { "would be " } else { "" };
    print(|out| {
        writeln!(
            out,
            "{}: {} devices {done}added, {} {done}changed, {} unchanged",
            args.file.display(),
            report.added,
            report.changed,
            report.unchanged
        )
    })?;
    Ok(())
}
