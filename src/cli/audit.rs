//! `certdist audit`: shows and verifies the audit log, which records the certificate that each
//! device has received, and the time.

use std::ops::ControlFlow;

use anyhow::{anyhow, bail};
use serde_json::json;

use super::{CommandResult, ConfigArgs, device::in_table, look_at_store, print, print_whole};
use crate::{
    config::Config,
    device::DeviceId,
    store::{
        Table, UnixSeconds,
        audit::{AuditEntry, Filter, Link, Repeats},
    },
};

/// Shows and verifies the audit log
#[derive(clap::Args)]
#[command(after_help = "\
Example: what happened to a device in November, and is the log complete?
  certdist audit export --device SN00000001 --since 2026-11-01 --until 2026-12-01
  certdist audit verify

A record of repeated requests has their number in `count`; its `seq` and `hash` are null,
because the chain does not cover it.

The chain holds no secret: anyone who can write to the database can remove its last
entries and recompute the end. Keep the last line that `verify` prints in another place,
and pass it to the next `verify`:
  certdist audit verify --has 1001:90c5…")]
pub struct Args {
    #[command(subcommand)]
    action: Action,
    #[command(flatten)]
    config: ConfigArgs,
}

#[derive(clap::Subcommand)]
enum Action {
    /// Verifies the chain of hashes; reports changed or removed entries, with exit code 1
    Verify {
        /// Check that this entry, printed by an earlier `verify`, is still there
        #[arg(long, value_name = "SEQ:HASH", value_parser = known)]
        has: Option<(u64, Link)>,
    },
    /// Prints the entries and the records of repeated requests, one JSON object per line, oldest first
    Export {
        /// Only entries about this device: serial number or MAC address, in any spelling
        #[arg(long, value_name = "ID")]
        device: Option<String>,
        /// Only entries from this time on: 2026-11-25 or 2026-11-25T08:00:00Z
        #[arg(long, value_name = "TIME", value_parser = time)]
        since: Option<UnixSeconds>,
        /// Only entries before this time
        #[arg(long, value_name = "TIME", value_parser = time)]
        until: Option<UnixSeconds>,
    },
}

pub(super) fn run(args: &Args) -> CommandResult {
    let config = args.config.read_offline()?;
    match &args.action {
        Action::Verify { has } => verify(&config, *has),
        Action::Export { device, since, until } => {
            let store = look_at_store(&config)?;
            let device = device.as_deref().map(|id| in_table(&*store, id)).transpose()?;
            export(&*store, &Filter { device, since: *since, until: *until })
        }
    }
}

fn verify(config: &Config, has: Option<(u64, Link)>) -> CommandResult {
    let mut found = None;
    let chain = look_at_store(config)?.verify_audit(&mut |seq, hash| {
        if has.is_some_and(|(wanted, _)| wanted == seq) {
            found = Some(*hash);
        }
    })?;
    if let Some(fault) = chain.fault {
        return Err(anyhow!("the audit log is not complete: {fault}").into());
    }
    if let Some((seq, hash)) = has
        && seq > chain.pruned
        && found != Some(hash)
    {
        let what = if found.is_none() { "is missing" } else { "has another hash" };
        return Err(anyhow!("the audit log was replaced or cut: entry {seq} {what}").into());
    }
    print(|out| writeln!(out, "{} entries, complete; {} pruned before them", chain.entries, chain.pruned))?;
    print(|out| writeln!(out, "{}:{}", chain.last, hex::encode(chain.hash)))?;
    Ok(())
}

fn export(store: &dyn Table, filter: &Filter) -> CommandResult {
    Ok(print_whole(|out| {
        let mut written = Ok(());
        store.export_audit(filter, &mut |entry, hash| {
            written = writeln!(out, "{}", as_json(&entry, &hash));
            if written.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })?;
        Ok::<_, anyhow::Error>(written?)
    })?)
}

fn as_json(entry: &AuditEntry, hash: &Link) -> serde_json::Value {
    let mut object = json!({
        "seq": (entry.seq > 0).then_some(entry.seq),
        "at": time_text(entry.at),
        "event": entry.event.name(),
        "deviceId": entry.device.as_ref().map(DeviceId::as_str),
        "enrollment": entry.enrollment,
        "who": entry.who,
        "address": entry.address,
        "detail": entry.detail,
        "hash": (entry.seq > 0).then(|| hex::encode(hash)),
    });
    if let Some(Repeats { count, first, first_address }) = &entry.repeats {
        object["count"] = json!(count);
        object["first"] = json!(time_text(*first));
        object["firstAddress"] = json!(first_address);
    }
    object
}

fn time_text(at: UnixSeconds) -> String {
    jiff::Timestamp::from_second(at).map_or_else(|_| at.to_string(), |time| time.to_string())
}

fn known(text: &str) -> Result<(u64, Link), String> {
    let parsed = text.split_once(':').and_then(|(seq, hash)| {
        let mut link = Link::default();
        hex::decode_to_slice(hash, &mut link).ok()?;
        Some((seq.parse().ok()?, link))
    });
    parsed.ok_or_else(|| "expected a number, a colon and 64 hex digits".into())
}

fn time(text: &str) -> anyhow::Result<UnixSeconds> {
    let midnight = format!("{text}T00:00:00Z");
    let time = text.parse::<jiff::Timestamp>().or_else(|_| midnight.parse());
    match time {
        Ok(time) => Ok(time.as_second()),
        Err(_) => bail!("expected a day, 2026-11-25, or a time, 2026-11-25T08:00:00Z"),
    }
}
