//! `certdist import`: imports devices from a CSV file into the table, all or none.

use std::path::PathBuf;

use indicatif::{ProgressBar, ProgressStyle};

use super::{CommandResult, ConfigArgs, Failure, open_store, print};
use crate::{
    psk::Enrollment,
    store::Actor,
    table_file::{self, Enrollments, Import},
};

/// Imports devices from a CSV file into the table
#[derive(clap::Args)]
#[command(after_help = "\
Example
  printf 'deviceId\\nSN00000001\\n00:1A:2B:3C:4D:5E\\n' > devices.csv
  certdist import devices.csv --enrollment lamp-2026

Columns, in any order; only deviceId is required:
  deviceId,enrollment,productKey,deviceName,deviceSecret,iotId,pskIdentity,psk
If any line is bad, nothing changes, and each bad line is reported. Importing the same
file again changes nothing. Works beside a running server.")]
pub struct Args {
    /// CSV file with a header line
    #[arg(value_name = "FILE.csv")]
    file: PathBuf,
    /// Enrollment of rows that name none
    #[arg(long, value_name = "NAME")]
    enrollment: Option<String>,
    /// Check everything, but change nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    config: ConfigArgs,
}

pub(super) fn run(args: &Args) -> CommandResult {
    let config = args.config.read()?;
    let mut enrollments = Enrollments::new(config.enrollments.iter().map(Enrollment::outline));
    if let Some(name) = &args.enrollment {
        enrollments = enrollments.with_default(name).map_err(|error| Failure::Usage(error.into()))?;
    }
    let store = open_store(&config)?;
    let bar = ProgressBar::no_length().with_style(
        ProgressStyle::with_template("{bar:40} {percent}% {binary_bytes}/{binary_total_bytes} {eta} left")
            .unwrap_or_else(|_| ProgressStyle::default_bar()),
    );
    let how = Import { enrollments: &enrollments, by: &Actor::system_user(), dry_run: args.dry_run };
    let report = table_file::import_file(&*store, &args.file, how, |read, total| {
        bar.set_length(total);
        bar.set_position(read);
    });
    bar.finish_and_clear();
    let report = report?;
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
