//! `certdist copy`: copies the whole database into another one, of the same kind or of a different one.

use anyhow::anyhow;
use serde_json::{Map, json};

use super::{CommandResult, ConfigArgs, Failure, print, progress::Stages, remark};
use crate::{
    config::Config,
    store::{
        self, Actor, Copying,
        copy::{Part, Report, Stage},
    },
};

/// Copies the whole database into another one, for example from SQLite to PostgreSQL
#[derive(clap::Args)]
#[command(after_help = "\
Example: from one server's file to a database that several servers share, and back
  systemctl stop certdist
  certdist copy --from sqlite:certdist.db --to postgres://certdist@db.example.com/certdist
  certdist copy --from postgres://certdist@db.example.com/certdist --to sqlite:certdist.db

Stop all servers on the source first: it must not change meanwhile. The target must be
empty. The copy is compared with the source record by record, by a hash that covers the
secrets, before any server can use it. If the command is interrupted, run it again: it
continues where it was. Until then the target cannot be used, and the source is as it was.

Devices, keys, orders, the journal, imports, waiting devices, uses of keys and the audit
log are copied. Claims belong to no process in the copy, and the next server resumes them.
Leases, call rates and the sweep's position are not copied; the sweep begins again. The
entries of the audit log keep their numbers, but their hashes are new: note the line that
`certdist audit verify` prints on the copy.

If secrets are sealed, --config names the configuration with database_key. Secrets under
database_key_previous, and clear ones, are sealed under database_key in the copy.")]
pub struct Args {
    /// URL of the database to copy, as in the configuration, or env:NAME for a variable with it
    #[arg(long, value_name = "URL")]
    from: String,
    /// URL of the empty database that receives the copy, or env:NAME
    #[arg(long, value_name = "URL")]
    to: String,
    /// Ignore connections to the source that may be those of a server
    #[arg(long)]
    anyway: bool,
    /// Print a JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    config: ConfigArgs,
}

pub(super) fn run(args: &Args) -> CommandResult {
    let (from, to) = (url("--from", &args.from)?, url("--to", &args.to)?);
    let config = configuration(&args.config)?;
    let keys = config.as_ref().map(|config| &config.database_keys);
    let by = Actor::system_user();
    let mut stages = Stages::default();
    let how = Copying { from: &from, to: &to, keys, by: &by, anyway: args.anyway };
    let report = store::copy_between(&how, &mut |stage, done, total| match stage {
        Stage::Copying => {
            stages.set("copying {bar:40} {percent}% {human_pos}/{human_len} records {eta} left", done, total);
        }
        Stage::Verifying => {
            stages.set(
                "comparing {bar:40} {percent}% {human_pos}/{human_len} records {eta} left",
                done,
                total,
            );
        }
    });
    drop(stages);
    let report = report?;
    let (from, to) = (store::shown(&from), store::shown(&to));
    if report.resumed_at > 0 {
        remark(&format!("note: continued an earlier run after {} records\n", report.resumed_at));
    }
    if args.json {
        return Ok(print(|out| writeln!(out, "{}", as_json(&report, &from, &to)))?);
    }
    Ok(print(|out| writeln!(out, "{from} is copied to {to}: {}", as_text(&report)))?)
}

/// Returns the URL in an option, or in the environment variable that the option names. A password in an
/// option would be visible in the list of processes.
fn url(option: &str, given: &str) -> Result<String, Failure> {
    let Some(name) = given.strip_prefix("env:") else { return Ok(given.to_owned()) };
    std::env::var(name).map_err(|_| {
        Failure::Usage(anyhow!("{option} {given}: the environment has no {name}, or it is not UTF-8"))
    })
}

/// Reads the configuration, if one is named or in its usual place. Only its database keys are used.
fn configuration(config: &ConfigArgs) -> Result<Option<Config>, Failure> {
    if config.config.is_none() && !config.path().exists() {
        return Ok(None);
    }
    config.read_offline().map(Some)
}

fn as_text(report: &Report) -> String {
    let shown = [
        (Part::Devices, "devices"),
        (Part::Keys, "psks"),
        (Part::Orders, "orders"),
        (Part::Claims, "claims"),
        (Part::Entries, "audit entries"),
    ];
    let count =
        |part: Part| report.records.iter().find(|(found, _)| *found == part).map_or(0, |(_, count)| *count);
    let counts: Vec<String> = shown.iter().map(|(part, name)| format!("{} {name}", count(*part))).collect();
    let all: u64 = report.records.iter().map(|(_, count)| count).sum();
    format!("{}; all {all} records compared", counts.join(", "))
}

fn as_json(report: &Report, from: &str, to: &str) -> serde_json::Value {
    let records: Map<String, serde_json::Value> =
        report.records.iter().map(|(part, count)| (part.name().to_owned(), (*count).into())).collect();
    let (last, hash) = &report.source_head;
    json!({
        "id": report.id,
        "from": from,
        "to": to,
        "resumedAt": report.resumed_at,
        "records": records,
        "sourceHead": format!("{last}:{}", hex::encode(hash)),
    })
}
