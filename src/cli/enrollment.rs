//! `certdist enrollment`: shows the enrollments of the configuration, with the number of their
//! devices in the table. Shows no key.

mod keys;

use std::{collections::BTreeMap, time::Duration};

use anyhow::anyhow;
use serde_json::json;

use super::{CommandResult, ConfigArgs, Failure, aligned, look_at_store, print, remark};
use crate::{
    config::Config,
    device_view::time,
    guards::{Guards, Phase, Unlisted},
    psk::{
        Enrollment, Kind, Reissue,
        uses::{Reported, reported},
    },
    rate_limit::Rate,
    store::{
        Table, Totals, UnixSeconds,
        place::{self, Places},
        roll::RollCount,
        unix_now,
    },
};

/// Default number of enrollments without `--json`.
const PAGE: usize = 100;

/// Maximum time for counting the devices that have two keys.
const COUNT: Duration = Duration::from_secs(5);

/// Maximum number of names in a message.
const NAMES: usize = 10;

/// Lists the enrollments, or shows one, with the number of devices
#[derive(clap::Args)]
#[command(after_help = "\
Example
  certdist enrollment list
  certdist enrollment list lamp --after lamp-2026-07
  certdist enrollment show lamp-2026 --json")]
pub(super) struct Args {
    #[command(subcommand)]
    action: Action,
    #[command(flatten)]
    config: ConfigArgs,
}

#[derive(clap::Subcommand)]
enum Action {
    /// Lists the enrollments of the configuration and of the table
    List {
        /// Only enrollments whose name contains this text, in any case
        text: Option<String>,
        /// Maximum number of enrollments; 100 without --json, all with it
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
        limit: Option<u64>,
        /// Start after this enrollment
        #[arg(long, value_name = "NAME")]
        after: Option<String>,
        /// Print one JSON object per line
        #[arg(long)]
        json: bool,
    },
    /// Shows the settings of an enrollment, and the progress of its devices
    Show {
        /// Name of the enrollment
        name: String,
        /// Print a JSON object
        #[arg(long)]
        json: bool,
    },
}

pub(super) async fn run(args: Args) -> CommandResult {
    let config = args.config.read_offline()?;
    let store = look_at_store(&config)?;
    let totals = store.totals()?;
    let mut totals: BTreeMap<String, Totals> =
        totals.into_iter().map(|totals| (totals.enrollment.clone(), totals)).collect();
    match &args.action {
        Action::List { text, limit, after, json } => {
            let mut lines = Vec::new();
            for enrollment in &config.enrollments {
                let totals = totals.remove(&enrollment.name).unwrap_or_default();
                lines.push((enrollment.name.clone(), Some(enrollment), totals));
            }
            // The remaining enrollments are only in the table, because a former configuration had
            // them.
            lines.extend(totals.into_iter().map(|(name, totals)| (name, None, totals)));
            if let Some(after) = after {
                let at = lines.iter().position(|(name, ..)| name == after).ok_or_else(|| {
                    Failure::Usage(anyhow!("--after: there is no enrollment \"{}\"", after.escape_debug()))
                })?;
                lines.drain(..=at);
            }
            if let Some(text) = text {
                let text = text.to_lowercase();
                lines.retain(|(name, ..)| name.to_lowercase().contains(&text));
            }
            let default = if *json { usize::MAX } else { PAGE };
            let limit = limit.map_or(default, |limit| usize::try_from(limit).unwrap_or(usize::MAX));
            let is_more = lines.len() > limit;
            lines.truncate(limit);
            match json {
                true => print(|out| {
                    let mut lines =
                        lines.iter().map(|(name, known, totals)| as_json(&config, name, *known, totals));
                    lines.try_for_each(|line| writeln!(out, "{line}"))
                })?,
                false => print(|out| {
                    let head = [
                        "ENROLLMENT",
                        "KIND",
                        "PRODUCT",
                        "DEVICES",
                        "REGISTERED",
                        "ISSUED",
                        "REFUSED",
                        "DISABLED",
                    ];
                    let mut table = vec![head.map(String::from)];
                    table.extend(lines.iter().map(|(name, known, totals)| {
                        let kind =
                            known.map_or("not configured", |enrollment| enrollment.kind.name().as_str());
                        let product = known.map_or("-", |enrollment| enrollment.product_key.as_str());
                        [
                            name.clone(),
                            kind.into(),
                            product.into(),
                            totals.devices.to_string(),
                            totals.registered.to_string(),
                            totals.issued.to_string(),
                            totals.refused.to_string(),
                            totals.disabled.to_string(),
                        ]
                    }));
                    write!(out, "{}", aligned(&table))
                })?,
            }
            if let (true, Some((last, ..))) = (is_more, lines.last()) {
                remark(&format!("there are more; continue with --after {last}\n"));
            }
        }
        Action::Show { name, json } => {
            let waiting = waiting(&*store, name).await?;
            let known = config.enrollments.iter().find(|enrollment| enrollment.name == *name);
            let totals = totals.remove(name);
            if known.is_none() && totals.is_none() {
                let mut names: Vec<&str> =
                    config.enrollments.iter().map(|known| known.name.as_str()).take(NAMES).collect();
                if config.enrollments.len() > NAMES {
                    names.push("…");
                }
                return Err(Failure::Failed(anyhow!(
                    "there is no enrollment \"{}\"; the configuration has {}",
                    name.escape_debug(),
                    names.join(", ")
                )));
            }
            let totals = totals.unwrap_or_default();
            let max = known.and_then(|enrollment| enrollment.guards.max_devices);
            let taken = place::reported(&*store, name, totals.registered, max).await?;
            let uses = match known {
                Some(enrollment) => {
                    reported(&*store, &enrollment.name, enrollment.key_ids().as_ref()).await?
                }
                None => Reported::new(),
            };
            let rolling = store.count_rolling(name, COUNT).await?;
            print(|out| match json {
                true => {
                    let mut object = as_json(&config, name, known, &totals);
                    if let Some(keys) = known.map(|enrollment| keys::as_json(enrollment, &uses))
                        && !keys.is_null()
                    {
                        object["keys"] = keys;
                    }
                    if rolling.devices > 0 {
                        object["keys"] = keys::devices_as_json(&rolling);
                    }
                    if waiting > 0 {
                        object["waiting"] = json!(waiting);
                    }
                    writeln!(out, "{object}")
                }
                false => {
                    write!(
                        out,
                        "{}",
                        as_text(&config, name, known, &totals, (&uses, &rolling, taken, waiting))
                    )
                }
            })?;
        }
    }
    Ok(())
}

/// Returns the target of an enrollment, if the configuration names targets.
fn target<'c>(config: &'c Config, enrollment: &str) -> Option<&'c str> {
    config.target_of.get(enrollment).filter(|_| config.names_targets).map(String::as_str)
}

fn reissue(policy: Reissue) -> String {
    match policy {
        Reissue::Always => "always".into(),
        Reissue::Once => "once".into(),
        Reissue::Window(window) => format!("window:{}", window.as_secs()),
    }
}

fn rate(rate: Option<Rate>) -> String {
    rate.map_or_else(|| "off".into(), |rate| rate.to_string())
}

fn as_text(
    config: &Config,
    name: &str,
    known: Option<&Enrollment>,
    totals: &Totals,
    (uses, rolling, taken, waiting): (&Reported, &RollCount, Places, u64),
) -> String {
    let mut lines = vec![["enrollment".to_owned(), name.to_owned()]];
    let mut line = |label: &str, value: String| lines.push([label.to_owned(), value]);
    match known {
        None => line("configured", "no: its devices get no certificate".into()),
        Some(enrollment) => {
            line("product key", enrollment.product_key.clone());
            if let Some(target) = target(config, name) {
                line("target", target.to_owned());
            }
            line("kind", enrollment.kind.name().as_str().into());
            if let Kind::Shared { identity, .. } = &enrollment.kind {
                line("identity", identity.clone());
            }
            line("reissue", reissue(enrollment.reissue));
            let limits = config.limits.requests.enrollments.get(name).copied().unwrap_or_default();
            line("requests", rate(limits.requests));
            if matches!(enrollment.kind, Kind::Shared { .. }) {
                line("refused lookups", rate(limits.refused_lookups));
            }
            for (label, value) in guards(&enrollment.guards, taken, waiting, unix_now()) {
                line(label, value);
            }
        }
    }
    lines.extend(known.map(|enrollment| keys::lines(enrollment, uses)).unwrap_or_default());
    lines.extend(keys::lines_of_devices(rolling));
    lines.extend(counts(totals).map(|(label, count)| [label.to_owned(), count.to_string()]));
    aligned(&lines)
}

/// Returns the number of devices that wait to be admitted to an enrollment.
async fn waiting(store: &dyn Table, name: &str) -> Result<u64, Failure> {
    let counts = store.waiting_counts().await?;
    Ok(counts.into_iter().find(|(enrollment, _)| enrollment == name).map_or(0, |(_, count)| count))
}

/// Describes the guards of an enrollment, each with its name. `taken` has the places that its devices
/// have, and `waiting` is the number of devices that wait to be admitted.
pub(super) fn guards(
    guards: &Guards,
    taken: Places,
    waiting: u64,
    now: UnixSeconds,
) -> Vec<(&'static str, String)> {
    let mut lines = Vec::new();
    let said = |at: UnixSeconds| time(Some(at)).unwrap_or_default();
    let phase = guards.phase(now);
    if let Some(opens) = guards.opens {
        let not_yet = if matches!(phase, Phase::NotOpen { .. }) { "; not open yet" } else { "" };
        lines.push(("opens", format!("{}{not_yet}", said(opens))));
    }
    if let Some(closes) = guards.closes {
        let closed = if matches!(phase, Phase::Closed(_)) { "; closed" } else { "" };
        lines.push(("closes", format!("{}{closed}", said(closes))));
    }
    if let Some(max) = guards.max_devices {
        let Places { registered, claimed } = taken;
        let others = match claimed {
            0 => String::new(),
            claimed => format!(" and {claimed} are being registered or were rotated"),
        };
        let full = if taken.free(max) == 0 { "; full" } else { "" };
        lines.push(("max devices", format!("{max}, of which {registered} have a certificate{others}{full}")));
    }
    if guards.unlisted != Unlisted::Refuse {
        lines.push(("unlisted", guards.unlisted.as_str().into()));
    }
    if waiting > 0 {
        let advice = "`certdist device waiting` lists them";
        lines.push(("waiting", format!("{waiting} to be admitted; {advice}")));
    }
    lines
}

/// Returns each count with its name, which is the same in all outputs.
pub(super) fn counts(totals: &Totals) -> [(&'static str, u64); 6] {
    [
        ("devices", totals.devices),
        ("registered", totals.registered),
        ("issued", totals.issued),
        ("activated", totals.activated),
        ("refused", totals.refused),
        ("disabled", totals.disabled),
    ]
}

fn as_json(config: &Config, name: &str, known: Option<&Enrollment>, totals: &Totals) -> serde_json::Value {
    let mut object = json!({ "enrollment": name, "configured": known.is_some() });
    if let Some(enrollment) = known {
        object["productKey"] = json!(enrollment.product_key);
        if let Some(target) = target(config, name) {
            object["target"] = json!(target);
        }
        object["kind"] = json!(enrollment.kind.name().as_str());
        object["reissue"] = json!(reissue(enrollment.reissue));
        object["refuseExisting"] = json!(config.refuse_existing.contains(name));
        if let Kind::Shared { identity, .. } = &enrollment.kind {
            object["identity"] = json!(identity);
        }
        let Guards { opens, closes, max_devices, unlisted } = enrollment.guards;
        for (key, at) in [("opens", opens), ("closes", closes)] {
            if at.is_some() {
                object[key] = json!(time(at));
            }
        }
        if let Some(max) = max_devices {
            object["maxDevices"] = json!(max);
        }
        if unlisted != Unlisted::Refuse {
            object["unlisted"] = json!(unlisted.as_str());
        }
    }
    for (label, count) in counts(totals) {
        object[label] = json!(count);
    }
    object
}
