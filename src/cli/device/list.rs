//! `certdist device list`: lists the rows that match a filter.

use anyhow::anyhow;
use clap::ValueEnum;

use super::{CommandResult, Failure, aligned, print, progress::Progress, reissue};
use crate::{
    cli::remark,
    config::Config,
    device::{AskedId, DeviceId},
    device_view::{as_json, state, time},
    store::{DeviceRow, DeviceState, Store},
};

/// Number of rows read at a time.
const ROWS: usize = 1000;

/// Default number of rows without `--json`.
const PAGE: usize = 100;

/// Lists devices, in order of their IDs
#[derive(clap::Args)]
#[command(after_help = "\
Example: devices of an enrollment that have no certificate yet, page by page
  certdist device list --enrollment plug-batch-7 --unregistered
  certdist device list --enrollment plug-batch-7 --unregistered --after PLUG0100
All whose registration was refused, for a script
  certdist device list --refused --json | jq -r .deviceId

Secrets are not shown; use `certdist export` for them.")]
pub(super) struct Args {
    /// Only this enrollment
    #[arg(long, value_name = "NAME")]
    enrollment: Option<String>,
    /// Only devices in this state
    #[arg(long, value_enum)]
    state: Option<State>,
    /// Only devices that have a certificate
    #[arg(long, conflicts_with = "unregistered")]
    registered: bool,
    /// Only devices that have no certificate yet
    #[arg(long)]
    unregistered: bool,
    /// Only devices whose registration was refused
    #[arg(long)]
    refused: bool,
    /// Only devices whose ID begins with this text
    #[arg(long, value_name = "TEXT")]
    prefix: Option<String>,
    /// Maximum number of devices; 100 without --json, all with it
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    limit: Option<u64>,
    /// Start after this device
    #[arg(long, value_name = "ID")]
    after: Option<String>,
    /// Print one JSON object per line
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum State {
    /// May have its certificate
    Enabled,
    /// Disabled by an operator
    Disabled,
}

impl Args {
    fn is_wanted(&self, row: &DeviceRow) -> bool {
        let state = match self.state {
            None => true,
            Some(State::Enabled) => row.state == DeviceState::Enabled,
            Some(State::Disabled) => row.state == DeviceState::Disabled,
        };
        state
            && self.enrollment.as_ref().is_none_or(|name| row.enrollment == *name)
            && (!self.registered || row.certificate.is_some())
            && (!self.unregistered || row.certificate.is_none())
            && (!self.refused || row.refusal.is_some())
    }
}

pub(super) async fn run(args: &Args, config: &Config, store: &dyn Store) -> CommandResult {
    if let Some(name) = &args.enrollment
        && config.enrollments.iter().all(|enrollment| enrollment.name != *name)
    {
        // This is only a warning, because the table may still contain devices of a former
        // enrollment.
        tracing::warn!(enrollment = name, "the configuration has no [[enrollment]] of this name");
    }
    let after = args.after.as_deref().map(after).transpose()?;
    let prefix = args.prefix.as_deref().map(prefix).transpose()?;
    let default = if args.json { usize::MAX } else { PAGE };
    let limit = args.limit.map_or(default, |limit| usize::try_from(limit).unwrap_or(usize::MAX));

    let mut rows = Rows { store, after, prefix, has_begun: false };
    let mut progress = Progress::new("{pos} rows read");
    let (mut listed, mut page, mut last) = (0, Vec::new(), None);
    'rows: loop {
        let read = rows.next().await?;
        if read.is_empty() {
            break;
        }
        progress.add(read.len() as u64);
        for row in read.into_iter().filter(|row| args.is_wanted(row)) {
            if listed == limit {
                last = page.last().map(|row: &DeviceRow| row.id.clone()).or(last);
                break 'rows;
            }
            listed += 1;
            last = None;
            page.push(row);
        }
        // JSON lines are printed immediately. A table is printed at the end, when the widths of its
        // columns are known.
        if args.json {
            last = page.last().map(|row| row.id.clone()).or(last);
            let done = std::mem::take(&mut page);
            print(|out| {
                done.iter().try_for_each(|row| writeln!(out, "{}", as_json(row, reissue(config, row), None)))
            })?;
        }
    }
    drop(progress);
    print(|out| match args.json {
        true => page.iter().try_for_each(|row| writeln!(out, "{}", as_json(row, reissue(config, row), None))),
        false => write!(out, "{}", as_table(&page)),
    })?;
    if listed == limit
        && let Some(last) = last
    {
        remark(&format!("there are more; continue with --after {last}\n"));
    }
    Ok(())
}

/// Reads the rows whose ID begins with the prefix, up to [`ROWS`] at a time.
struct Rows<'s> {
    store: &'s dyn Store,
    after: Option<DeviceId>,
    prefix: Option<DeviceId>,
    has_begun: bool,
}

impl Rows<'_> {
    async fn next(&mut self) -> Result<Vec<DeviceRow>, Failure> {
        let mut rows = Vec::new();
        if !self.has_begun {
            self.has_begun = true;
            if let Some(prefix) = &self.prefix
                && self.after.as_ref().is_none_or(|after| after < prefix)
            {
                // A device whose ID is the prefix itself comes first. `rows_after` returns only the
                // devices after it.
                rows.extend(self.store.device(prefix).await?);
                self.after = Some(prefix.clone());
            }
        }
        rows.extend(self.store.rows_after(self.after.as_ref(), ROWS).await?);
        if let Some(last) = rows.last() {
            self.after = Some(last.id.clone());
        }
        if let Some(prefix) = &self.prefix {
            rows.retain(|row| row.id.as_str().starts_with(prefix.as_str()));
        }
        Ok(rows)
    }
}

/// Parses the ID after which a list continues.
fn after(text: &str) -> Result<DeviceId, Failure> {
    AskedId::parse(text)
        .map(|asked| asked.first().clone())
        .map_err(|error| Failure::Usage(anyhow!("--after \"{}\": {error}", text.escape_debug())))
}

/// Parses the beginning of an ID. Fails if no ID can begin with this text. Case matters even for a
/// MAC address, whose digits are in upper case in the table.
fn prefix(text: &str) -> Result<DeviceId, Failure> {
    DeviceId::parse_sn(text)
        .map_err(|error| Failure::Usage(anyhow!("--prefix \"{}\": {error}", text.escape_debug())))
}

fn as_table(rows: &[DeviceRow]) -> String {
    let line = |row: &DeviceRow| {
        [
            row.id.to_string(),
            row.enrollment.clone(),
            state(row).into(),
            if row.certificate.is_some() { "yes".into() } else { "no".into() },
            time(row.first_issued).unwrap_or_else(|| "-".into()),
            time(row.activated).unwrap_or_else(|| "-".into()),
            row.refusal.clone().unwrap_or_else(|| "-".into()),
        ]
    };
    let head = ["DEVICE", "ENROLLMENT", "STATE", "CERTIFICATE", "FIRST ISSUED", "ACTIVATED", "REFUSED"];
    let mut lines = vec![head.map(String::from)];
    lines.extend(rows.iter().map(line));
    aligned(&lines)
}
