//! `certdist database`: seals the secrets of the database, shows which database keys seal them, and
//! checks the stored numbers of devices.

use serde_json::json;

use super::{
    CommandResult, ConfigArgs, Failure, look_at_store, open_existing, print,
    progress::{Progress, Stages},
};
use crate::store::{Actor, CountCheck, Miscount, seal_step::SealStep};

/// Seals the database's secrets, shows which database keys seal them, and checks the kept counts
#[derive(clap::Args)]
#[command(after_help = "\
Example: give a database its first key, or replace its key, while the server runs
  openssl rand -hex 32 > database.key && chmod 600 database.key
  (in certdist.toml: database_key = \"file:database.key\", and the former key, if any,
  in database_key_previous = [\"file:former.key\"])
  systemctl reload certdist        # SIGHUP: the server must know the key first
  certdist database seal
  certdist database status         # then remove database_key_previous
Are the counts that `stats` and the console show those of the table?
  certdist database check")]
pub struct Args {
    #[command(subcommand)]
    action: Action,
    #[command(flatten)]
    config: ConfigArgs,
}

#[derive(clap::Subcommand)]
enum Action {
    /// Seals every secret under database_key: those in clear text and those under a former database
    /// key. Then removes the traces of the former values from the file. Works in short steps beside a
    /// server, and holds up no device; can be interrupted and repeated
    Seal,
    /// Compares the kept counts of devices with the table, which it reads as a whole; exit code 1 if
    /// they differ. Runs beside a server, and holds up no one
    Check,
    /// Corrects the kept counts of devices, and shows what was wrong. Runs beside a server
    Recount,
    /// Counts the secrets sealed under each database key
    Status {
        /// Print a JSON object
        #[arg(long)]
        json: bool,
    },
}

pub(super) fn run(args: &Args) -> CommandResult {
    let config = args.config.read_offline()?;
    if matches!(args.action, Action::Seal) && config.database_keys.first().is_none() {
        return Err(Failure::Usage(anyhow::anyhow!(
            "there is no key to seal with; expected database_key = \"file:PATH\", \"env:NAME\" or \
             \"credential:NAME\" in {}",
            args.config.path().display()
        )));
    }
    let store = match args.action {
        Action::Seal | Action::Recount => open_existing(&config)?,
        Action::Check | Action::Status { .. } => look_at_store(&config)?,
    };
    match args.action {
        Action::Seal => {
            let mut stages = Stages::default();
            let report = store.seal_all(&Actor::system_user(), &mut |step| match step {
                SealStep::Sealing(done, total) => {
                    stages.set("{bar:40} {percent}% {pos}/{len} secrets {eta} left", done, total);
                }
                SealStep::Wiping(done, total) => {
                    stages.set("{bar:40} {percent}% traces removed {eta} left", done, total);
                }
                SealStep::Checking(done, total) => {
                    stages.set("{bar:40} {percent}% searched for traces {eta} left", done, total);
                }
            });
            drop(stages);
            let report = report?;
            print(|out| writeln!(out, "{} secrets sealed; all are under key {}", report.sealed, report.key))?;
        }
        Action::Check => {
            let check = Progress::during("reading the table", || store.check_counts())?;
            if check.different > 0 || !check.triggers.is_empty() {
                return Err(Failure::Failed(anyhow::anyhow!(
                    "the kept counts differ from the table, so `stats`, the console and the metrics show wrong \
                     numbers; the table itself is not affected; `certdist database recount` corrects \
                     them\n{}",
                    differences(&check).trim_end()
                )));
            }
            print(|out| writeln!(out, "{} devices; all kept counts are those of the table", check.devices))?;
        }
        Action::Recount => {
            let check = Progress::during("reading the table", || store.recount())?;
            print(|out| {
                let CountCheck { devices, different, .. } = check;
                write!(out, "{devices} devices; {different} counts corrected\n{}", differences(&check))
            })?;
        }
        Action::Status { json } => {
            let counts = Progress::during("reading the table", || store.key_counts())?;
            if json {
                let counts: Vec<_> = counts
                    .iter()
                    .map(|sealed| json!({"key": sealed.key, "deviceSecrets": sealed.device_secrets, "psks": sealed.psks}))
                    .collect();
                let key = config.database_keys.first().map(|key| key.to_string());
                print(|out| writeln!(out, "{}", json!({"databaseKey": key, "values": counts})))?;
                return Ok(());
            }
            let key = config.database_keys.first().map_or("none is configured".into(), |key| key.to_string());
            print(|out| writeln!(out, "database_key: {key}"))?;
            for sealed in counts {
                let under = sealed.key.map_or("clear".into(), |key| format!("key {key}"));
                print(|out| {
                    writeln!(out, "{under}: {} device secrets, {} psks", sealed.device_secrets, sealed.psks)
                })?;
            }
        }
    }
    Ok(())
}

/// Describes differences, one per line.
fn differences(check: &CountCheck) -> String {
    let triggers = check.triggers.iter().map(|name| format!("trigger {name} is missing or was changed"));
    let counts = check.first.iter().map(|Miscount { table, enrollment, second, column, kept, counted }| {
        let (enrollment, second) = (enrollment.escape_debug(), second.escape_debug());
        format!("{table}: {column} of \"{enrollment}\", \"{second}\": {kept} kept, {counted} in the table")
    });
    let more = check.different - check.first.len() as u64;
    let more = (more > 0).then(|| format!("and {more} more"));
    triggers.chain(counts).chain(more).map(|line| format!("  {line}\n")).collect()
}
