//! `certdist device list`: lists the devices that match a filter. Neither shows nor
//! decrypts any secret.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use anyhow::anyhow;
use clap::ValueEnum;

use super::{CommandResult, Failure, aligned, print, progress::Progress, terms};
use crate::{
    cli::remark,
    config::Config,
    device::{AskedId, DeviceId},
    device_view::{as_json, state, time},
    store::{
        DeviceState, Table,
        filter::{self, Cursor, End, Filter, Found, Listed, Text},
        place::Places,
    },
};

/// Number of devices that are read at a time.
const ROWS: usize = 1000;

/// Default number of devices without `--json`.
const PAGE: usize = 100;

/// Maximum time for one step of a search.
const STEP: Duration = Duration::from_millis(200);

/// Maximum time of a search without `--json`.
const SEARCH: Duration = Duration::from_secs(1);

/// Lists devices, in order of their IDs
#[derive(clap::Args)]
#[command(after_help = "\
Example: devices of an enrollment that have no certificate yet, page by page
  certdist device list --enrollment plug-batch-7 --unregistered
  certdist device list --enrollment plug-batch-7 --unregistered --after PLUG0100
All whose registration was refused, for a script
  certdist device list --refused --json | jq -r .deviceId

In a table of millions of devices, a search for a few of them may take long. Without --json,
it ends after a second, and names the device to continue from.
Secrets are not shown; use `certdist export` for them.")]
pub(super) struct Args {
    /// Only this enrollment
    #[arg(long, value_name = "NAME")]
    enrollment: Option<String>,
    /// Only this product
    #[arg(long, value_name = "KEY")]
    product: Option<String>,
    /// Only devices that are registered at this target, or whose row names it
    #[arg(long, value_name = "NAME")]
    target: Option<String>,
    /// Only devices in this state
    #[arg(long, value_enum)]
    state: Option<State>,
    /// Only devices that have a certificate
    #[arg(long, conflicts_with = "unregistered")]
    registered: bool,
    /// Only devices that have no certificate yet
    #[arg(long)]
    unregistered: bool,
    /// Only devices that have a certificate that was never issued
    #[arg(long, conflicts_with = "unregistered")]
    unissued: bool,
    /// Only devices whose registration was refused
    #[arg(long)]
    refused: bool,
    /// Only devices whose ID begins with this text
    #[arg(long, value_name = "TEXT")]
    prefix: Option<String>,
    /// Only devices whose ID ends with this text, in any case
    #[arg(long, value_name = "TEXT", conflicts_with = "prefix")]
    suffix: Option<String>,
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

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum State {
    /// May have its certificate
    Enabled,
    /// Disabled by an operator
    Disabled,
}

impl Args {
    /// Returns the filter of the search. It has one state at most: the one that the fewest devices
    /// usually have. [`is_wanted`](Self::is_wanted) checks the others.
    fn filter(&self) -> Result<Filter, Failure> {
        let begins = self.prefix.as_deref().map(|text| part("--prefix", text).map(Text::Begins));
        let ends = self.suffix.as_deref().map(|text| part("--suffix", text).map(Text::Ends));
        let states = [
            (self.refused, filter::State::Refused),
            (self.state == Some(State::Disabled), filter::State::Disabled),
            (self.unissued, filter::State::Unissued),
        ];
        Ok(Filter {
            enrollment: self.enrollment.clone(),
            product_key: self.product.clone(),
            state: states.into_iter().find_map(|(is_set, state)| is_set.then_some(state)),
            is_registered: (self.registered || self.unregistered).then_some(self.registered),
            text: begins.or(ends).transpose()?,
            target: self.target.clone(),
            ..Filter::default()
        })
    }

    fn is_wanted(&self, device: &Listed) -> bool {
        let state = match self.state {
            None => true,
            Some(State::Enabled) => device.state == DeviceState::Enabled,
            Some(State::Disabled) => device.state == DeviceState::Disabled,
        };
        state && (!self.unissued || device.is_registered && device.first_issued.is_none())
    }
}

pub(super) async fn run(args: &Args, config: &Config, store: &dyn Table) -> CommandResult {
    if let Some(name) = &args.enrollment
        && config.enrollments.iter().all(|enrollment| enrollment.name != *name)
    {
        // This is only a warning, because the table may still contain devices of a former
        // enrollment.
        tracing::warn!(enrollment = name, "the configuration has no [[enrollment]] of this name");
    }
    if let Some(name) = &args.target
        && config.targets.iter().all(|target| target.name != *name)
    {
        // Devices may still belong to a former target.
        tracing::warn!(at_target = name, "the configuration has no [[target]] of this name");
    }
    let filter = args.filter()?;
    let after = args.after.as_deref().map(after).transpose()?;
    let default = if args.json { usize::MAX } else { PAGE };
    let limit = args.limit.map_or(default, |limit| usize::try_from(limit).unwrap_or(usize::MAX));

    // Only the JSON form says how the next request is answered.
    let taken = if args.json { taken(config, store).await? } else { HashMap::new() };
    let mut from = after.map_or(Cursor::First, Cursor::After);
    let mut progress = Progress::new("{pos} devices found");
    let (begun, mut listed, mut page) = (Instant::now(), 0, Vec::new());
    // Result of the loop: the last device that was examined, unless the search is complete, and
    // whether the filter admits another device.
    let stopped = loop {
        let rows = ROWS.min(limit - listed);
        let Found { devices, end } = store.find(&filter, &from, rows, STEP)?;
        let last = devices.last().map(|device| device.id.clone());
        page.extend(devices.into_iter().filter(|device| args.is_wanted(device)));
        let found = page.len();
        progress.add(found as u64);
        // JSON lines are printed immediately. A table is printed at the end, when the widths of its
        // columns are known.
        if args.json {
            let mut lines = Vec::with_capacity(found);
            for row in std::mem::take(&mut page) {
                let rules = (terms(config, &row), taken_by_others(&taken, store, &row).await?);
                lines.push(as_json(&row, rules, None, config.names_targets, store.now()));
            }
            print(|out| lines.iter().try_for_each(|line| writeln!(out, "{line}")))?;
            listed += found;
        } else {
            listed = found;
        }
        let (last, is_more) = match (end, last) {
            (End::TimeUp(last), _) => (last, false),
            (End::More, Some(last)) => (last, true),
            (End::Complete, _) | (End::More, None) => break None,
        };
        if listed == limit || !args.json && begun.elapsed() >= SEARCH {
            break Some((last, is_more));
        }
        from = Cursor::After(last);
    };
    drop(progress);
    if !args.json {
        let table = if config.names_targets { with_targets(&page) } else { as_table(&page) };
        print(|out| write!(out, "{table}"))?;
    }
    match stopped {
        Some((last, true)) if listed == limit => {
            remark(&format!("there are more; continue with --after {last}\n"));
        }
        Some((last, _)) => remark(&format!(
            "this is not all: the table was searched as far as {last}; continue with --after {last}\n"
        )),
        None => {}
    }
    Ok(())
}

/// Counts the places that are taken in each enrollment that has a maximum of devices.
async fn taken(config: &Config, store: &dyn Table) -> Result<HashMap<String, Places>, Failure> {
    let mut taken = HashMap::new();
    for name in config.max_places().keys() {
        taken.insert(name.clone(), store.places(name).await?);
    }
    Ok(taken)
}

/// Returns the places of a device's enrollment that other devices have taken, as
/// [`place::taken`](crate::store::place::taken) does, but counts the places of an enrollment only once.
async fn taken_by_others(
    taken: &HashMap<String, Places>,
    store: &dyn Table,
    row: &Listed,
) -> Result<Places, Failure> {
    let Some(taken) = taken.get(&row.enrollment) else { return Ok(Places::default()) };
    let has_place = !row.is_registered && store.has_place(&row.id, &row.enrollment).await?;
    Ok(if has_place { Places::default() } else { *taken })
}

/// Parses the ID after which a list continues.
pub(super) fn after(text: &str) -> Result<DeviceId, Failure> {
    AskedId::parse(text)
        .map(|asked| asked.first().clone())
        .map_err(|error| Failure::Usage(anyhow!("--after \"{}\": {error}", text.escape_debug())))
}

/// Checks the beginning or end of an ID. Fails if no ID can have it. Case matters in the beginning,
/// even for a MAC address, whose digits are in upper case in the table.
fn part(option: &str, text: &str) -> Result<String, Failure> {
    DeviceId::parse_sn(text)
        .map(|part| part.to_string())
        .map_err(|error| Failure::Usage(anyhow!("{option} \"{}\": {error}", text.escape_debug())))
}

const HEAD: [&str; 7] =
    ["DEVICE", "ENROLLMENT", "STATE", "CERTIFICATE", "FIRST ISSUED", "ACTIVATED", "REFUSED"];

fn cells(row: &Listed) -> [String; 7] {
    [
        row.id.to_string(),
        row.enrollment.clone(),
        state(row.state).into(),
        if row.is_registered { "yes".into() } else { "no".into() },
        time(row.first_issued).unwrap_or_else(|| "-".into()),
        time(row.activated).unwrap_or_else(|| "-".into()),
        row.refusal.clone().unwrap_or_else(|| "-".into()),
    ]
}

fn as_table(devices: &[Listed]) -> String {
    let mut lines = vec![HEAD.map(String::from)];
    lines.extend(devices.iter().map(cells));
    aligned(&lines)
}

/// Formats a table with a column of the targets.
fn with_targets(devices: &[Listed]) -> String {
    let line = |[device, enrollment, others @ ..]: [String; 7], target: String| {
        let [state, certificate, issued, activated, refused] = others;
        [device, enrollment, target, state, certificate, issued, activated, refused]
    };
    let mut lines = vec![line(HEAD.map(String::from), "TARGET".into())];
    let target = |row: &Listed| row.target.clone().unwrap_or_else(|| "-".into());
    lines.extend(devices.iter().map(|row| line(cells(row), target(row))));
    aligned(&lines)
}
