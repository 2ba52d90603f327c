//! `certdist servers`: lists the servers that share the table, and the differences between them.

use serde_json::{Value, json};

use super::{CommandResult, ConfigArgs, aligned, look_at_store, print, remark};
use crate::{
    company::{self, Difference},
    device_view::time,
    store::server::ServerView,
};

/// Lists the servers that share the table
#[derive(clap::Args)]
#[command(after_help = "\
Example
  certdist servers
  certdist servers --json | jq -r '.servers[] | select(.gone | not).name'

A server beats in the table about every 10 s. It is shown as gone after 30 s without a
beat, until it is back under its name, or for a day. Ages and times are by the database's
clock. Warns of differences that servers of one table should not have: equal names, other
enrollments, keys or database keys, wrong clocks, and other versions.")]
pub(super) struct Args {
    /// Print a JSON object, with the rows of all processes
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    config: ConfigArgs,
}

pub(super) async fn run(args: Args) -> CommandResult {
    let config = args.config.read_offline()?;
    let servers = look_at_store(&config)?.servers().await?;
    let differences = company::differences(&servers);
    if args.json {
        let object = as_json(&servers, &differences);
        return Ok(print(|out| writeln!(out, "{object}"))?);
    }
    let shown = company::shown(&servers);
    if shown.is_empty() {
        remark("no server uses the table now\n");
        return Ok(());
    }
    let head = ["NAME", "COMMAND", "VERSION", "SINCE", "LAST BEAT", "PLACE", "LOAD", "SCHEMA", "LEASES"];
    let mut lines = vec![head.map(String::from)];
    lines.extend(shown.into_iter().map(line));
    print(|out| write!(out, "{}", aligned(&lines)))?;
    for difference in &differences {
        remark(&format!("warning: {difference}\n"));
    }
    Ok(())
}

/// Returns the cells of the line about a server.
fn line(view: &ServerView) -> [String; 9] {
    let ServerView { server, schema, since, silent_for, leases, .. } = view;
    let age =
        if view.is_gone() { format!("gone, {silent_for} s ago") } else { format!("{silent_for} s ago") };
    let place = match server.listen.as_str() {
        "" => format!("{}, process {}", server.host, server.process),
        listen => format!("{}, {listen}", server.host),
    };
    let load = format!(
        "{} requests/min, {} registrations",
        server.load.requests_per_minute, server.load.registrations
    );
    [
        server.name.escape_debug().to_string(),
        server.command.clone(),
        server.version.clone(),
        time(Some(*since)).unwrap_or_default(),
        age,
        place,
        load,
        schema.to_string(),
        if leases.is_empty() { "-".into() } else { leases.join(", ") },
    ]
}

/// Formats the servers as JSON.
fn as_json(servers: &[ServerView], differences: &[Difference]) -> Value {
    let one = |view: &ServerView| {
        let ServerView { server, schema, since, last_beat, silent_for, clock_ahead, leases } = view;
        json!({
            "name": server.name,
            "command": server.command,
            "version": server.version,
            "host": server.host,
            "process": server.process,
            "listen": server.listen.split(',').filter(|address| !address.is_empty()).collect::<Vec<_>>(),
            "since": time(Some(*since)),
            "lastBeat": time(Some(*last_beat)),
            "silentSeconds": silent_for,
            "gone": view.is_gone(),
            "clockAheadMilliseconds": clock_ahead,
            "requestsPerMinute": server.load.requests_per_minute,
            "registrations": server.load.registrations,
            "schema": schema,
            "leases": leases,
            "enrollments": server.facts.enrollments,
            "keys": server.facts.keys,
            "databaseKey": server.facts.database_key,
        })
    };
    let said = |difference: &Difference| difference.to_string();
    json!({
        "servers": servers.iter().map(one).collect::<Vec<_>>(),
        "differences": differences.iter().map(said).collect::<Vec<_>>(),
    })
}
