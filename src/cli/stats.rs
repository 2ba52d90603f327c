//! `certdist stats`: counts the devices of each enrollment by state, and shows the size of the
//! database.

use std::{collections::HashMap, fs, path::Path};

use anyhow::Context;
use serde_json::json;

use super::{
    CommandResult, ConfigArgs, aligned,
    enrollment::{counts, guards},
    look_at_store, print, remark,
};
use crate::{
    config::Config,
    store::{self, Totals, unix_now},
};

/// Maximum number of enrollments without `--json`.
const LINES: usize = 100;

/// Counts the devices of each enrollment by their progress
#[derive(clap::Args)]
#[command(after_help = "\
Example
  certdist stats
  certdist stats --json | jq .total.registered

Shows the first 100 enrollments, and the sum of all; --json shows all. The server's
metrics show what it does at the moment (docs/operations.md).")]
pub(super) struct Args {
    /// Print a JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    config: ConfigArgs,
}

pub(super) async fn run(args: Args) -> CommandResult {
    let config = args.config.read_offline()?;
    let store = look_at_store(&config)?;
    let totals = store.totals()?;
    let waiting: HashMap<String, u64> = store.waiting_counts().await?.into_iter().collect();
    let path = std::path::absolute(store::file_of(&config.database)?)?;
    let size = size(&path)?;
    let all = Totals::sum(&totals);
    if args.json {
        let object = |totals: &Totals| -> serde_json::Map<String, serde_json::Value> {
            counts(totals).iter().map(|(label, count)| ((*label).to_owned(), json!(count))).collect()
        };
        let enrollments: serde_json::Map<String, serde_json::Value> =
            totals.iter().map(|totals| (totals.enrollment.clone(), object(totals).into())).collect();
        let mut stats = json!({ "enrollments": enrollments, "total": object(&all), "databaseBytes": size });
        if !waiting.is_empty() {
            stats["waiting"] = json!(waiting);
        }
        return Ok(print(|out| writeln!(out, "{stats}"))?);
    }
    let head = ["ENROLLMENT", "DEVICES", "REGISTERED", "ISSUED", "ACTIVATED", "REFUSED", "DISABLED"];
    let mut table = vec![head.map(String::from)];
    let line = |name: &str, totals: &Totals| {
        let [devices, registered, issued, activated, refused, disabled] =
            counts(totals).map(|(_, count)| count.to_string());
        [name.to_owned(), devices, registered, issued, activated, refused, disabled]
    };
    table.extend(totals.iter().take(LINES).map(|totals| line(&totals.enrollment, totals)));
    if totals.len() != 1 {
        table.push(line("all", &all));
    }
    let size = indicatif::BinaryBytes(size);
    print(|out| write!(out, "{}\ndatabase {} ({size})\n", aligned(&table), path.display()))?;
    let guarded = guarded(&config, &totals, &waiting);
    print(|out| guarded.iter().take(LINES).try_for_each(|line| writeln!(out, "{line}")))?;
    if totals.len() > LINES {
        let more = totals.len() - LINES;
        remark(&format!("{more} more enrollments; `certdist enrollment list` shows them page by page\n"));
    }
    Ok(())
}

/// Describes the guards of each enrollment that has some.
fn guarded(config: &Config, totals: &[Totals], waiting: &HashMap<String, u64>) -> Vec<String> {
    let registered: HashMap<&str, u64> =
        totals.iter().map(|totals| (totals.enrollment.as_str(), totals.registered)).collect();
    let (mut lines, now) = (Vec::new(), unix_now());
    for enrollment in &config.enrollments {
        let name = enrollment.name.as_str();
        let registered = registered.get(name).copied().unwrap_or(0);
        let waiting = waiting.get(name).copied().unwrap_or(0);
        let said = guards(&enrollment.guards, registered, waiting, now);
        lines.extend(said.into_iter().map(|(label, value)| format!("enrollment {name}: {label} {value}")));
    }
    lines
}

/// Returns the size of the database and its write-ahead log, in bytes.
fn size(path: &Path) -> anyhow::Result<u64> {
    let file = fs::metadata(path).with_context(|| format!("{}", path.display()))?.len();
    let mut log = path.as_os_str().to_owned();
    log.push("-wal");
    // While no process has the database open, it has no log.
    Ok(file + fs::metadata(log).map_or(0, |log| log.len()))
}
