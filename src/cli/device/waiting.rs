//! `certdist device waiting`, `admit`, `dismiss`: the devices that are not in the table and wait
//! until an operator admits them.

use std::{collections::BTreeMap, path::PathBuf};

use anyhow::{Context, anyhow};
use serde_json::json;

use super::super::{CommandResult, Failure, aligned, print, remark};
use crate::{
    config::Config,
    device::DeviceId,
    device_view::time,
    store::{
        Actor, Table,
        waiting::{Admission, Admits, NewDevice, Waiting},
    },
    table_file::{self, Source},
};

/// Number of devices that are read at a time.
const READ: usize = 1000;

/// Number of devices that are admitted or dismissed in one step.
const AT_ONCE: usize = 500;

/// Default number of devices without `--json`.
const PAGE: usize = 100;

/// Maximum number of devices that a message names.
const NAMED: usize = 20;

/// Lists devices that are not in the table and wait to be admitted
#[derive(clap::Args)]
#[command(after_help = "\
Example: the devices that wait in an enrollment with unlisted = \"hold\"
  certdist device waiting --enrollment lamp-2026
All of them, for a script
  certdist device waiting --json | jq -r .deviceId

An enrollment lists up to 10,000 devices; at the limit, no further device is added. A
device that has not asked for 30 days is removed.")]
pub(super) struct List {
    /// Only this enrollment
    #[arg(long, value_name = "NAME")]
    enrollment: Option<String>,
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

/// Adds devices that wait to the table
#[derive(clap::Args)]
#[command(after_help = "\
Example
  certdist device admit SN00000001
  certdist device admit --file delivered.csv
  certdist device admit --all --enrollment lamp-2026

A device is added to the enrollment in which it waits, with the enrollment's product, and
gets its certificate with its next request. A device that is in the table is not changed.
Under a shared key, anyone who has the key can invent device IDs: compare them with a
list of your own before you admit them.")]
pub(super) struct Admit {
    #[command(flatten)]
    which: Which,
}

/// Removes devices from the list of those that wait; one that asks again waits again
#[derive(clap::Args)]
#[command(after_help = "\
Example: someone has invented device IDs
  certdist device dismiss --all --enrollment plug-batch-7 --address 192.0.2.7")]
pub(super) struct Dismiss {
    #[command(flatten)]
    which: Which,
}

/// The devices that a command is about.
#[derive(clap::Args)]
struct Which {
    /// Serial number or MAC address, in any spelling
    #[arg(required_unless_present_any = ["file", "all"], conflicts_with_all = ["file", "all"])]
    id: Option<String>,
    /// The devices of a file that wait, of which only the device IDs are read; - is standard input
    #[arg(long, value_name = "FILE.csv", conflicts_with = "all")]
    file: Option<PathBuf>,
    /// All devices that wait
    #[arg(long)]
    all: bool,
    /// Only devices that wait in this enrollment
    #[arg(long, value_name = "NAME")]
    enrollment: Option<String>,
    /// Only devices that asked from this address first
    #[arg(long, value_name = "ADDRESS")]
    address: Option<String>,
}

/// Devices that the operator has chosen, by their present state.
struct Chosen {
    /// Each device, and the enrollment in which it waits.
    waiting: Vec<(DeviceId, String)>,
    /// Number of devices that are already in the table.
    known: usize,
    /// Devices that neither wait nor are in the table.
    absent: Vec<DeviceId>,
    /// Devices that wait in several enrollments.
    ambiguous: Vec<DeviceId>,
}

impl Which {
    async fn read(&self, store: &dyn Table) -> Result<Chosen, Failure> {
        let mut list = self.list(store).await?;
        let mut chosen = Chosen { waiting: Vec::new(), known: 0, absent: Vec::new(), ambiguous: Vec::new() };
        if self.all {
            for (device, enrollments) in list {
                chosen.add(device, enrollments);
            }
            return Ok(chosen);
        }
        let asked = match (&self.file, &self.id) {
            (Some(path), _) => {
                let source = Source::open(path).with_context(|| path.display().to_string())?;
                let input = source.input().with_context(|| path.display().to_string())?;
                let (asked, remarks) = table_file::device_ids(input)?;
                remarks.iter().for_each(|sentence| remark(&format!("note: {sentence}\n")));
                asked
            }
            (None, id) => {
                let id = id.as_deref().unwrap_or_default();
                let id = table_file::device_id(id).with_context(|| format!("\"{}\"", id.escape_debug()));
                vec![id.map_err(Failure::Usage)?]
            }
        };
        for asked in &asked {
            let device = asked.canonical();
            match list.remove(device) {
                Some(enrollments) => chosen.add(device.clone(), enrollments),
                None if store.known_as(asked)?.is_some() => chosen.known += 1,
                None => chosen.absent.push(device.clone()),
            }
        }
        Ok(chosen)
    }

    /// Reads the devices that wait, with their enrollments. The list is bounded.
    async fn list(&self, store: &dyn Table) -> Result<BTreeMap<DeviceId, Vec<String>>, Failure> {
        let (mut list, mut after) = (BTreeMap::<_, Vec<String>>::new(), None);
        loop {
            let page = store.waiting(self.enrollment.as_deref(), after.as_ref(), READ).await?;
            let Some(last) = page.last() else { return Ok(list) };
            after = Some(last.device.clone());
            let is_wanted =
                |one: &Waiting| self.address.as_ref().is_none_or(|address| *address == one.address);
            for one in page.into_iter().filter(is_wanted) {
                list.entry(one.device).or_default().push(one.enrollment);
            }
        }
    }
}

impl Chosen {
    fn add(&mut self, device: DeviceId, mut enrollments: Vec<String>) {
        match (enrollments.pop(), enrollments.is_empty()) {
            (Some(only), true) => self.waiting.push((device, only)),
            _ => self.ambiguous.push(device),
        }
    }

    /// Fails if a device was left out of the command.
    fn check(&self) -> CommandResult {
        let mut left_out = Vec::new();
        if !self.absent.is_empty() {
            left_out.push(format!(
                "{} neither wait nor are in the table; add them with `certdist import`",
                named(&self.absent)
            ));
        }
        if !self.ambiguous.is_empty() {
            left_out.push(format!(
                "{} wait in several enrollments; choose one with --enrollment",
                named(&self.ambiguous)
            ));
        }
        if left_out.is_empty() { Ok(()) } else { Err(anyhow!("left out: {}", left_out.join("; ")).into()) }
    }
}

/// Returns the number of devices, with the names of the first ones.
fn named(devices: &[DeviceId]) -> String {
    let names: Vec<&str> = devices.iter().take(NAMED).map(DeviceId::as_str).collect();
    let more = if devices.len() > NAMED { ", …" } else { "" };
    format!("{} ({}{more})", counted(devices.len()), names.join(", "))
}

fn counted(count: usize) -> String {
    format!("{count} {}", if count == 1 { "device" } else { "devices" })
}

/// Runs `certdist device waiting`.
pub(super) async fn list(args: &List, config: &Config, store: &dyn Table) -> CommandResult {
    let after = args.after.as_deref().map(super::list::after).transpose()?;
    let default = if args.json { usize::MAX } else { PAGE };
    let limit = args.limit.map_or(default, |limit| usize::try_from(limit).unwrap_or(usize::MAX));
    let (mut from, mut devices, mut left) = (after, Vec::new(), limit);
    while left > 0 {
        let page = store.waiting(args.enrollment.as_deref(), from.as_ref(), READ.min(left)).await?;
        let Some(last) = page.last() else { break };
        from = Some(last.device.clone());
        let mut ids: Vec<&DeviceId> = page.iter().map(|one| &one.device).collect();
        ids.dedup();
        left -= ids.len();
        match args.json {
            true => print(|out| page.iter().try_for_each(|one| writeln!(out, "{}", as_json(one))))?,
            false => devices.extend(page),
        }
    }
    if !args.json {
        print(|out| write!(out, "{}", as_table(&devices)))?;
    }
    if let (0, Some(last)) = (left, &from)
        && !store.waiting(args.enrollment.as_deref(), Some(last), 1).await?.is_empty()
    {
        remark(&format!("there are more; continue with --after {last}\n"));
    }
    if let Some(name) = &args.enrollment
        && config.enrollments.iter().all(|enrollment| enrollment.name != *name)
    {
        tracing::warn!(enrollment = name, "the configuration has no [[enrollment]] of this name");
    }
    Ok(())
}

fn as_json(one: &Waiting) -> serde_json::Value {
    json!({
        "deviceId": one.device.as_str(),
        "enrollment": one.enrollment,
        "firstRequest": time(Some(one.first)),
        "lastRequest": time(Some(one.last)),
        "requests": one.count,
        "address": one.address,
    })
}

fn as_table(devices: &[Waiting]) -> String {
    let or_dash = |value: Option<String>| value.unwrap_or_else(|| "-".into());
    let head = ["DEVICE", "ENROLLMENT", "FIRST REQUEST", "LAST REQUEST", "REQUESTS", "ADDRESS"];
    let mut lines = vec![head.map(String::from)];
    lines.extend(devices.iter().map(|one| {
        [
            one.device.to_string(),
            one.enrollment.clone(),
            or_dash(time(Some(one.first))),
            or_dash(time(Some(one.last))),
            one.count.to_string(),
            one.address.clone(),
        ]
    }));
    aligned(&lines)
}

/// Runs `certdist device admit`.
pub(super) async fn admit(args: &Admit, config: &Config, store: &dyn Table, by: &Actor) -> CommandResult {
    let chosen = args.which.read(store).await?;
    let mut new = Vec::with_capacity(chosen.waiting.len());
    for (device, enrollment) in &chosen.waiting {
        let own = config.enrollments.iter().find(|own| own.name == *enrollment).ok_or_else(|| {
            anyhow!("{device} waits in enrollment {enrollment}, which is not configured; nothing was changed")
        })?;
        let (device, enrollment) = (device.clone(), enrollment.clone());
        new.push(NewDevice { device, enrollment, product_key: own.product_key.clone() });
    }
    let (mut added, mut known, mut failed) = (0, chosen.known, Vec::new());
    for some in new.chunks(AT_ONCE) {
        let done = store.admit(some.to_vec(), Admits::Operator(by.clone())).await;
        let done = done.with_context(|| format!("{} admitted before", counted(added)))?;
        for (NewDevice { device, product_key, .. }, result) in some.iter().zip(done) {
            match result {
                Admission::Added => added += 1,
                Admission::Known | Admission::Elsewhere => known += 1,
                Admission::NameTaken(holder) => failed.push(format!(
                    "{device}: device {holder} has the same name in product {product_key}; import {device} with \
                     another deviceName"
                )),
                Admission::Later => failed.push(format!(
                    "{device}: an unfinished import adds, or an undo removes, it or another device that has its \
                     name; run this again when that has ended"
                )),
                Admission::Full => failed.push(format!("{device}: its enrollment is full")),
            }
        }
    }
    print(|out| {
        write!(out, "{} admitted", counted(added))?;
        if known > 0 {
            write!(out, ", {known} in the table already")?;
        }
        writeln!(out)
    })?;
    if !failed.is_empty() {
        let more = failed.len().saturating_sub(NAMED);
        failed.truncate(NAMED);
        if more > 0 {
            failed.push(format!("and {more} more"));
        }
        return Err(anyhow!("not admitted:\n  {}", failed.join("\n  ")).into());
    }
    chosen.check()
}

/// Runs `certdist device dismiss`.
pub(super) async fn dismiss(args: &Dismiss, store: &dyn Table) -> CommandResult {
    let chosen = args.which.read(store).await?;
    let mut by_enrollment = BTreeMap::<&str, Vec<DeviceId>>::new();
    for (device, enrollment) in &chosen.waiting {
        by_enrollment.entry(enrollment).or_default().push(device.clone());
    }
    let mut dismissed = 0;
    for (enrollment, devices) in by_enrollment {
        for some in devices.chunks(AT_ONCE) {
            dismissed += store.dismiss(enrollment, some).await?;
        }
    }
    let dismissed = usize::try_from(dismissed).unwrap_or(usize::MAX);
    print(|out| writeln!(out, "{} dismissed", counted(dismissed)))?;
    chosen.check()
}
