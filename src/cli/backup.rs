//! `certdist backup` and `certdist restore`: copy the whole database to and from one file.

use std::path::PathBuf;

use anyhow::anyhow;

use super::{CommandResult, ConfigArgs, Failure, ask, look_at_store, print, progress::Progress};
use crate::store::{
    self, Actor,
    backup::{self, Contents, Lock, Restorable, Sample, SinceBackup, Target},
    sealed,
};

const PROGRESS: &str = "{bar:40} {percent}% {pos}/{len} pages {eta} left";

/// Copies the database into a file, beside a running server
#[derive(clap::Args)]
#[command(after_help = "\
Example
  certdist backup certdist-2026-11-25.db

The copy is a consistent snapshot. It is verified before it gets its final name, and only
its owner can read it. Its secrets are sealed as they are in the database: it is useless
without the database key, so keep that key in another place.")]
pub struct BackupArgs {
    /// File to write; must not exist yet
    #[arg(value_name = "FILE")]
    file: PathBuf,
    #[command(flatten)]
    config: ConfigArgs,
}

/// Replaces the database with a backup
#[derive(clap::Args)]
#[command(after_help = "\
Example
  systemctl stop certdist
  certdist restore certdist-2026-11-25.db

A backup of an older version is upgraded, in a copy. Everything that was issued,
registered or imported since the backup is lost: it is listed first, and --dry-run only
lists it. Orders in the backup end without being carried out. --force is needed to replace a database that is newer than the backup, or
damaged. A database in use is never replaced: stop all servers first.")]
pub struct RestoreArgs {
    /// File that `certdist backup` wrote
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Replace a database that is newer or damaged
    #[arg(long)]
    force: bool,
    /// Check the backup and list what would be undone, but change nothing
    #[arg(long)]
    dry_run: bool,
    /// Do not ask for confirmation
    #[arg(long)]
    yes: bool,
    #[command(flatten)]
    config: ConfigArgs,
}

pub(super) fn back_up(args: &BackupArgs) -> CommandResult {
    let config = args.config.read_offline()?;
    if args.file.as_os_str() == "-" {
        let reason =
            "a backup cannot be written to standard output: expected a file, or ./- for a file of that name";
        return Err(Failure::Usage(anyhow!(reason)));
    }
    let store = look_at_store(&config)?;
    let contents = Progress::showing(PROGRESS, |mut progress| store.back_up(&args.file, &mut progress))?;
    print(|out| writeln!(out, "{}: {}", args.file.display(), as_text(&contents)))?;
    match contents.audit.fault {
        Some(fault) => Err(anyhow!("the copy is written, but its audit log is not complete: {fault}").into()),
        None => Ok(()),
    }
}

pub(super) fn restore(args: &RestoreArgs) -> CommandResult {
    let config = args.config.read_offline()?;
    let path = &*std::path::absolute(store::file_of(&config.database)?)?;
    backup::can_be_at(path)?;
    // The lock is held until the database is replaced, so that no server can start before then.
    let lock = match args.dry_run {
        true => Lock::holder(path).map_or(Ok(None), |who| {
            let path = path.display();
            print(|out| writeln!(out, "{path}: in use by {who}; stop the server before you restore"))?;
            Ok::<_, Failure>(None)
        })?,
        false => Some(Lock::alone(path)?),
    };
    let backup = Progress::showing(PROGRESS, |progress| Restorable::examine(&args.file, path, progress))?;
    if let Some(fault) = &backup.contents.audit.fault {
        tracing::warn!(error = %fault, "the backup's audit log is not complete");
    }
    sealed::check(&config.database_keys, &backup.contents.keys)
        .map_err(|error| anyhow!("{}: {error}", args.file.display()))?;
    let upgraded = backup.older.map(|version| format!("; upgraded from version {version}"));
    let upgraded = upgraded.unwrap_or_default();
    print(|out| writeln!(out, "{}: {}{upgraded}", args.file.display(), as_text(&backup.contents)))?;
    let target = backup::target(path)?;
    let mut is_other = false;
    let mut is_sealed = config.database_keys.first().is_some();
    match &target {
        Target::Nothing => {}
        Target::Current(contents) => {
            print(|out| writeln!(out, "{}: {}", path.display(), as_text(contents)))?;
            is_sealed |= !contents.keys.is_empty();
            let since = backup.changes_since(path)?;
            // The first start of a server creates a database without devices. Replacing it loses
            // nothing.
            is_other = since.is_other && contents.devices > 0;
            print(|out| out.write_all(listed(&since).as_bytes()))?;
        }
        Target::Older(error) | Target::Damaged(error) => print(|out| writeln!(out, "{error}"))?,
    }
    match (against(&backup.contents, &target, is_other), args.dry_run) {
        (Some(reason), true) => print(|out| writeln!(out, "{}: {reason}: needs --force", path.display()))?,
        (Some(reason), false) if !args.force => {
            let path = path.display();
            return Err(anyhow!("{path}: {reason}; use --force to replace it anyway").into());
        }
        _ => {}
    }
    let clear = backup.contents.clear;
    if is_sealed && clear > 0 {
        let file = args.file.display();
        print(|out| {
            writeln!(
                out,
                "{file}: {clear} of its secrets are in clear text, and would be so in the database; run `certdist \
                 database seal` after the restore"
            )
        })?;
    }
    let orders = backup.contents.orders;
    if orders > 0 {
        let file = args.file.display();
        print(|out| {
            writeln!(
                out,
                "{file}: {orders} orders for IoT Platform would end without being carried out; the audit log names \
                 their devices as `cancelled`, so that you can give an order again"
            )
        })?;
    }
    let Some(lock) = lock else {
        return Ok(print(|out| writeln!(out, "{}: would be restored", path.display()))?);
    };
    if !matches!(target, Target::Nothing) {
        ask::sure(args.yes, &format!("Replace the database {}?", path.display()))?;
    }
    let (by, damaged) = (Actor::system_user(), matches!(target, Target::Nothing | Target::Damaged(_)));
    Progress::showing(PROGRESS, |progress| backup.restore(path, damaged, &lock, &by, progress))?;
    let ended = match orders {
        0 => String::new(),
        orders => format!("; {orders} orders for IoT Platform ended"),
    };
    print(|out| writeln!(out, "{}: restored{ended}", path.display()))?;
    Ok(())
}

/// Returns the reason why the database must not be replaced without `--force`; `None` if there is
/// none.
fn against(backup: &Contents, target: &Target, is_other: bool) -> Option<String> {
    match target {
        Target::Damaged(_) => Some("it is damaged, or not a database of this version".into()),
        Target::Current(contents) if contents.audit.last > backup.audit.last => {
            let newer = contents.audit.last - backup.audit.last;
            Some(format!("its audit log is {newer} entries newer than the backup"))
        }
        Target::Current(_) if is_other => {
            Some("it is another database than the one that was backed up".into())
        }
        Target::Nothing | Target::Current(_) => None,
        Target::Older(_) => Some("it is of an older version, and may be newer than the backup".into()),
    }
}

/// Returns a list of the changes that a restore would undo, with one kind of change on each line.
fn listed(since: &SinceBackup) -> String {
    if since.is_other {
        return "everything in it would be lost: its audit log does not continue that of the backup\n".into();
    }
    let mut lines = String::new();
    let mut line = |sample: &Sample, what: &str| {
        if sample.count > 0 {
            let first: Vec<_> = sample.first.iter().map(|text| text.escape_debug().to_string()).collect();
            let more = match sample.count - first.len() as u64 {
                0 => String::new(),
                more => format!(" and {more} more"),
            };
            lines.push_str(&format!("  {}: {what}: {}{more}\n", sample.count, first.join(", ")));
        }
    };
    line(&since.disabled, "disabled devices would become enabled");
    line(&since.enabled, "enabled devices would become disabled");
    line(&since.deleted, "deleted devices would come back");
    line(&since.reset, "reset devices would count as issued or refused again");
    line(&since.rotated, "rotated devices would have certificates that IoT Platform has deleted");
    line(
        &since.moved,
        "moved devices would be at their former targets, with the certificates that they had there",
    );
    line(&since.rekeyed, "devices that have one key now would have both again, the former one too");
    line(&since.issued, "first issues would be forgotten, and may happen once more");
    line(&since.registered, "registrations would be forgotten, but the devices exist at IoT Platform");
    line(&since.imported, "imports would be undone");
    line(&since.returning, "imports that were undone would take effect again");
    if since.pruned > 0 {
        let pruned = since.pruned;
        lines.push_str(&format!(
            "  {pruned} older entries since the backup were pruned and cannot be listed\n"
        ));
    }
    if lines.is_empty() {
        return lines;
    }
    format!("a restore would undo these changes since the backup:\n{lines}")
}

fn as_text(contents: &Contents) -> String {
    let keys = match &contents.keys[..] {
        [] => String::new(),
        keys => format!(", sealed under key {}", keys.join(", ")),
    };
    format!(
        "{} devices, {} psks, audit log up to entry {}{keys}",
        contents.devices, contents.psks, contents.audit.last
    )
}
