//! `certdist import`: imports devices from table files. Either all devices are imported, or none.

mod undo;

use std::{
    io,
    path::{Path, PathBuf},
};

use anyhow::{Context, anyhow};

use super::{
    CommandResult, ConfigArgs, Failure, look_at_store, open_existing, open_store, preview_store, print,
    progress::Progress, remark,
};
use crate::{
    config::Config,
    new_file::NewFile,
    psk::Enrollment,
    store::{self, Actor, Condition, ImportReport, ImportStage, Table},
    table_file::{self, Enrollments, Feedback, Import, Imported, LineError, Source},
};

/// Imports devices from CSV files into the table
#[derive(clap::Args)]
#[command(after_help = "\
Example
  printf 'deviceId\\nSN00000001\\n00:1A:2B:3C:4D:5E\\n' > devices.csv
  certdist import devices.csv --enrollment lamp-2026

Columns, in any order and in the usual spellings (SN, MAC, Device ID, 设备名称); only the
device ID is required, and the device name stands for it if it is missing:
  deviceId,enrollment,productKey,deviceName,deviceSecret,iotId,pskIdentity,psk,pskNext,target
Reads UTF-8, UTF-16 and GB18030; commas, semicolons and tabs; JSON lines with the same
keys; and a bare list of device IDs. If any line of any file is bad, nothing changes, and
the bad lines are reported. Importing the same file again changes nothing. Works beside a
running server, and holds up no device; new devices appear all at once, at the end. A pipe
is read to its end first, and its last line must have a line end.

Each import has a number, by which it can be undone while none of its devices has got its
certificate; ./undo is a file of that name.")]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct Args {
    #[command(subcommand)]
    action: Option<undo::Action>,
    /// CSV files, JSON lines, or lists of device IDs; - is standard input
    #[arg(value_name = "FILE.csv", required = true)]
    files: Vec<PathBuf>,
    /// Enrollment of rows that name none
    #[arg(long, value_name = "NAME")]
    enrollment: Option<String>,
    /// Check everything, but change nothing
    #[arg(long)]
    dry_run: bool,
    /// Ignore columns that certdist does not know
    #[arg(long)]
    ignore_unknown: bool,
    /// Write all bad lines to a new file, as CSV
    #[arg(long, value_name = "FILE.csv")]
    errors: Option<PathBuf>,
    #[command(flatten)]
    config: ConfigArgs,
}

pub(super) fn run(args: &Args) -> CommandResult {
    let config = args.config.read_offline()?;
    if let Some(action) = &args.action {
        let store = if action.looks() { look_at_store(&config)? } else { open_existing(&config)? };
        return undo::run(action, &*store);
    }
    let targets = config.targets.iter().map(|target| target.name.clone());
    let mut enrollments = Enrollments::new(config.enrollments.iter().map(Enrollment::outline))
        .with_targets(targets, config.target_of.clone());
    if let Some(name) = &args.enrollment {
        enrollments = enrollments.with_default(name).map_err(|error| Failure::Usage(error.into()))?;
    }
    // Pipes are read completely before the database is opened, because a pipe may be slow.
    let sources = args.files.iter().map(|path| open(path)).collect::<Result<Vec<_>, _>>()?;
    let mut errors = args.errors.as_deref().map(Errors::create).transpose()?;
    let is_new = !args.dry_run && matches!(store::examine(&config.database), Ok(Condition::Missing));
    let store = if args.dry_run { preview_store(&config)? } else { open_store(&config)? };
    let by = Actor::system_user();
    let (dry_run, ignores_unknown) = (args.dry_run, args.ignore_unknown);
    let how = Import { enrollments: &enrollments, by: &by, dry_run, ignores_unknown };
    let outcome = run_all(&*store, &sources, how, errors.as_mut());
    drop(store);
    if is_new {
        keep_or_remove(&config, outcome.is_ok())?;
    }
    match (outcome, errors) {
        (Ok(imported), _) => Ok(say(&sources, &imported, dry_run)?),
        (Err(failure), Some(errors)) => Err(errors.complete(failure)),
        (Err(failure), None) => Err(failure),
    }
}

fn open(path: &Path) -> Result<Source, Failure> {
    Source::open(path).with_context(|| path.display().to_string()).map_err(Failure::Failed)
}

/// Prints a note if the import has created the database, because an import into a wrong path also
/// creates one. If the import was refused, removes the new database instead, unless another process
/// uses it.
fn keep_or_remove(config: &Config, is_imported: bool) -> anyhow::Result<()> {
    if is_imported || !store::remove_unused(&config.database).unwrap_or(false) {
        let created = match store::file_of(&config.database) {
            Ok(path) => format!("a new database, {}", std::path::absolute(path)?.display()),
            Err(_) => format!("the tables in {}", store::shown(&config.database)),
        };
        remark(&format!("note: created {created}\n"));
    }
    Ok(())
}

fn run_all(
    store: &dyn Table,
    sources: &[Source],
    how: Import<'_>,
    mut errors: Option<&mut Errors>,
) -> Result<Imported, Failure> {
    let mut inputs = Vec::with_capacity(sources.len());
    for source in sources {
        inputs.push(source.input().with_context(|| source.name().display().to_string())?);
    }
    let mut broken = None;
    let mut bad_line = |name: &Path, error: &LineError| {
        if let Some(errors) = &mut errors
            && let Err(error) = errors.write(name, error)
        {
            broken = Some(error);
        }
    };
    let mut shown = (ImportStage::Reading, Progress::new(template(ImportStage::Reading)));
    let mut progress = |stage, done, all| {
        let (shown, bar) = &mut shown;
        if *shown != stage {
            *shown = stage;
            bar.next(template(stage));
        }
        bar.set(done, all);
    };
    let feedback = Feedback { progress: &mut progress, bad_line: &mut bad_line };
    let outcome = table_file::import(store, inputs, how, feedback);
    drop(shown);
    match (outcome, broken) {
        // The bad lines are still printed if they could not be written to the file.
        (Err(failure), Some(error)) => {
            Err(anyhow!("{failure}\ncould not write the bad lines: {error}").into())
        }
        (outcome, _) => Ok(outcome?),
    }
}

/// Returns the template of the progress bar for a stage of an import.
fn template(stage: ImportStage) -> &'static str {
    match stage {
        ImportStage::Reading => "reading {bar:40} {percent}% {binary_bytes}/{binary_total_bytes} {eta} left",
        ImportStage::Checking => "checking {bar:40} {percent}% {human_pos}/{human_len} rows {eta} left",
        ImportStage::Writing => "writing {bar:40} {percent}% {human_pos}/{human_len} rows {eta} left",
    }
}

/// Prints the result of an import, and the remarks about its files.
fn say(sources: &[Source], imported: &Imported, dry_run: bool) -> anyhow::Result<()> {
    let Imported { id, report: ImportReport { added, changed, unchanged, .. }, remarks, .. } = imported;
    for sentence in remarks {
        remark(&format!("note: {sentence}\n"));
    }
    if let Some(id) = id {
        remark(&format!("note: to undo this import: certdist import undo {id}\n"));
    }
    let done = if dry_run { "would be " } else { "" };
    let names: Vec<String> = sources.iter().map(|source| source.name().display().to_string()).collect();
    let names = names.join(", ");
    print(|out| {
        writeln!(out, "{names}: {added} devices {done}added, {changed} {done}changed, {unchanged} unchanged")
    })
}

/// File of all bad lines, each with its file, line, column and error.
struct Errors {
    count: u64,
    path: PathBuf,
    file: NewFile,
    writer: csv::Writer<io::BufWriter<std::fs::File>>,
}

impl Errors {
    fn create(path: &Path) -> Result<Self, Failure> {
        let create = || {
            let file = NewFile::create(path)?;
            let writer = csv::Writer::from_writer(io::BufWriter::new(file.file().try_clone()?));
            let mut errors = Self { count: 0, path: path.to_owned(), file, writer };
            errors.writer.write_record(["file", "line", "column", "error"])?;
            Ok::<_, io::Error>(errors)
        };
        if path.as_os_str() == "-" {
            let reason = "--errors -: expected a file; the first bad lines go to standard error anyway";
            return Err(Failure::Usage(anyhow!(reason)));
        }
        create().with_context(|| format!("--errors {}", path.display())).map_err(Failure::Usage)
    }

    fn write(&mut self, name: &Path, error: &LineError) -> io::Result<()> {
        self.count += 1;
        Ok(self.writer.write_record(error.record(name))?)
    }

    /// Gives the file its final name, and mentions the name in the failure that the bad lines
    /// caused. If there are no bad lines, leaves no file behind.
    fn complete(mut self, failure: Failure) -> Failure {
        if self.count == 0 {
            return failure;
        }
        let complete = || {
            self.writer.flush()?;
            drop(self.writer);
            self.file.complete()
        };
        match (complete(), failure) {
            (Ok(()), Failure::Failed(error)) => {
                Failure::Failed(anyhow!("{error:#}\nall bad lines are in {}", self.path.display()))
            }
            (Err(error), _) => {
                Failure::Failed(anyhow!(error).context(format!("could not write {}", self.path.display())))
            }
            (Ok(()), failure) => failure,
        }
    }
}
