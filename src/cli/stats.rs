//! `certdist stats`: counts the devices of each enrollment and target by state, says what keeps devices
//! from their certificates, and shows the size of the database.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fs,
    path::Path,
};

use anyhow::Context;
use serde_json::{Map, Value, json};

use super::{
    CommandResult, ConfigArgs, aligned,
    enrollment::{counts, guards},
    look_at_store, print, remark,
};
use crate::{
    config::Config,
    obstacles::{self, Cloud, Obstacle, OfTarget},
    store::{
        self, StoreError, Table, Totals,
        place::{self, Places},
        unix_now,
    },
};

/// Maximum number of enrollments without `--json`.
const LINES: usize = 100;

/// Counts the devices of each enrollment and target by their progress
#[derive(clap::Args)]
#[command(after_help = "\
Example
  certdist stats
  certdist stats --json | jq .total.registered

Shows the first 100 enrollments, and the sum of all; --json shows all. With several
targets, a device counts at the target of its enrollment. The server's console and
metrics show what it does at the moment, and what IoT Platform refuses
(docs/operations.md).")]
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
    // A database that is not a file tells its size by its own tools.
    let size = store::file_of(&config.database).ok().map(size).transpose()?;
    let all = Totals::sum(&totals);
    let targets = match config.names_targets {
        true => by_target(&config, &store.targets()?, &totals, &waiting),
        false => Vec::new(),
    };
    let places = places(&config, &*store, &totals).await?;
    let obstacles = obstacles(&config, &totals, &places, &waiting);
    if args.json {
        let stats = as_json(&totals, &waiting, &targets, &obstacles, size);
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
    let database = match (store::file_of(&config.database), size) {
        (Ok(path), Some(size)) => {
            format!("{} ({})", std::path::absolute(path)?.display(), indicatif::BinaryBytes(size))
        }
        _ => store::shown(&config.database),
    };
    print(|out| write!(out, "{}\ndatabase {database}\n", aligned(&table)))?;
    let mut lines = guarded(&config, &places, &waiting);
    lines.truncate(LINES);
    let others = obstacles.iter().filter(|(_, obstacle)| !is_guard(obstacle)).take(LINES);
    lines.extend(others.map(|(name, obstacle)| format!("enrollment {name}: {obstacle}")));
    print(|out| {
        if !targets.is_empty() {
            writeln!(out, "\n{}", of_targets(&targets))?;
        }
        lines.iter().try_for_each(|line| writeln!(out, "{line}"))
    })?;
    if totals.len() > LINES {
        let more = totals.len() - LINES;
        remark(&format!("{more} more enrollments; `certdist enrollment list` shows them page by page\n"));
    }
    Ok(())
}

/// Counts the places of each configured enrollment. Asks the store once for each enrollment whose
/// maximum is not reached by certificates alone.
async fn places(
    config: &Config,
    store: &dyn Table,
    totals: &[Totals],
) -> Result<HashMap<String, Places>, StoreError> {
    let registered: HashMap<&str, u64> =
        totals.iter().map(|totals| (totals.enrollment.as_str(), totals.registered)).collect();
    let mut places = HashMap::new();
    for enrollment in &config.enrollments {
        let (name, max) = (&enrollment.name, enrollment.guards.max_devices);
        let registered = registered.get(name.as_str()).copied().unwrap_or(0);
        places.insert(name.clone(), place::reported(store, name, registered, max).await?);
    }
    Ok(places)
}

/// Formats the numbers as JSON.
fn as_json(
    totals: &[Totals],
    waiting: &HashMap<String, u64>,
    targets: &[OfTarget],
    obstacles: &[(String, Obstacle)],
    size: Option<u64>,
) -> Value {
    let object = |totals: &Totals| -> Map<String, Value> {
        counts(totals).iter().map(|(label, count)| ((*label).to_owned(), json!(count))).collect()
    };
    let mut enrollments: BTreeMap<&str, Map<String, Value>> =
        totals.iter().map(|totals| (totals.enrollment.as_str(), object(totals))).collect();
    for (name, obstacle) in obstacles {
        let own = enrollments.entry(name).or_insert_with(|| object(&Totals::default()));
        if let Value::Array(all) = own.entry("obstacles").or_insert_with(|| json!([])) {
            all.push(json!(obstacle.to_string()));
        }
    }
    let mut stats = json!({ "enrollments": enrollments, "total": object(&Totals::sum(totals)) });
    if let Some(size) = size {
        stats["databaseBytes"] = json!(size);
    }
    if !waiting.is_empty() {
        stats["waiting"] = json!(waiting);
    }
    if !targets.is_empty() {
        let target = |of: &OfTarget| {
            let mut own = object(&of.totals);
            own.insert("configured".into(), json!(of.is_configured));
            own.insert("enrollments".into(), json!(of.enrollments));
            own.insert("waiting".into(), json!(of.waiting));
            (of.name.clone(), Value::from(own))
        };
        stats["targets"] = targets.iter().map(target).collect::<Map<_, _>>().into();
    }
    stats
}

/// Returns whether an obstacle is a guard of the enrollment, which [`guarded`] describes.
fn is_guard(obstacle: &Obstacle) -> bool {
    matches!(
        obstacle,
        Obstacle::NotOpen(_) | Obstacle::Closed(_) | Obstacle::Full(_) | Obstacle::Taken { .. }
    )
}

/// Counts the devices of each target that is configured, or that rows name.
fn by_target(
    config: &Config,
    in_rows: &[String],
    totals: &[Totals],
    waiting: &HashMap<String, u64>,
) -> Vec<OfTarget> {
    let configured = config.targets.iter().map(|target| target.name.as_str());
    obstacles::by_target(configured, in_rows, &config.target_of, totals, waiting)
}

/// Formats the numbers of devices of each target.
fn of_targets(targets: &[OfTarget]) -> String {
    let head =
        ["TARGET", "ENROLLMENTS", "DEVICES", "REGISTERED", "ISSUED", "ACTIVATED", "REFUSED", "TO ADMIT"];
    let mut table = vec![head.map(String::from)];
    table.extend(targets.iter().map(|of| {
        let name = if of.is_configured { of.name.clone() } else { format!("{} (not configured)", of.name) };
        let [devices, registered, issued, activated, refused, _] =
            counts(&of.totals).map(|(_, count)| count.to_string());
        let [enrollments, waiting] = [of.enrollments, of.waiting].map(|count| count.to_string());
        [name, enrollments, devices, registered, issued, activated, refused, waiting]
    }));
    aligned(&table)
}

/// Returns the obstacles of each enrollment that follow from the configuration and the table. Only a
/// server knows what IoT Platform refuses.
fn obstacles(
    config: &Config,
    totals: &[Totals],
    places: &HashMap<String, Places>,
    waiting: &HashMap<String, u64>,
) -> Vec<(String, Obstacle)> {
    let counted: HashMap<&str, &Totals> =
        totals.iter().map(|totals| (totals.enrollment.as_str(), totals)).collect();
    let (none, now) = (Totals::default(), unix_now());
    let missing: HashMap<&str, &str> = config
        .targets
        .iter()
        .filter(|_| config.names_targets)
        .filter_map(|target| Some((target.name.as_str(), target.settings.as_ref().err()?.as_str())))
        .collect();
    let cloud = |enrollment: &str| {
        let target = config.target_of.get(enrollment)?;
        let reason = missing.get(target.as_str())?;
        Some(Cloud::Missing(target.clone(), (*reason).to_owned()))
    };
    let mut all = Vec::new();
    let mut add = |name: &str, found: Vec<Obstacle>| {
        all.extend(found.into_iter().map(|obstacle| (name.to_owned(), obstacle)));
    };
    for enrollment in &config.enrollments {
        let (name, outline) = (enrollment.name.as_str(), enrollment.outline());
        let totals = counted.get(name).copied().unwrap_or(&none);
        let waiting = waiting.get(name).copied().unwrap_or(0);
        let cloud = cloud(name).unwrap_or(Cloud::Called);
        let taken = places.get(name).copied().unwrap_or_default();
        add(name, obstacles::of(Some(&outline), totals, taken, waiting, cloud, now));
    }
    let configured: HashSet<&str> = config.enrollments.iter().map(|own| own.name.as_str()).collect();
    for totals in totals.iter().filter(|totals| !configured.contains(totals.enrollment.as_str())) {
        add(&totals.enrollment, obstacles::of(None, totals, Places::default(), 0, Cloud::Called, now));
    }
    all
}

/// Describes the guards of each enrollment that has some.
fn guarded(config: &Config, places: &HashMap<String, Places>, waiting: &HashMap<String, u64>) -> Vec<String> {
    let (mut lines, now) = (Vec::new(), unix_now());
    for enrollment in &config.enrollments {
        let name = enrollment.name.as_str();
        let taken = places.get(name).copied().unwrap_or_default();
        let waiting = waiting.get(name).copied().unwrap_or(0);
        let said = guards(&enrollment.guards, taken, waiting, now);
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
