//! `certdist backup` and `certdist restore`: copy the whole database to and from one file.

use std::path::{Path, PathBuf};

use anyhow::anyhow;

use super::{CommandResult, ConfigArgs, ask, look_at_store, print, progress::Progress};
use crate::store::{
    self, Actor, Condition, StoreError,
    backup::{self, Contents, Restorable},
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
registered or imported since the backup is lost. --force is needed to replace a database
that is newer than the backup, in use, or damaged; a server that has it open then
continues with the restored data.")]
pub struct RestoreArgs {
    /// File that `certdist backup` wrote
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Replace a database that is newer, in use or damaged
    #[arg(long)]
    force: bool,
    /// Do not ask for confirmation
    #[arg(long)]
    yes: bool,
    #[command(flatten)]
    config: ConfigArgs,
}

pub(super) fn back_up(args: &BackupArgs) -> CommandResult {
    let config = args.config.read()?;
    let store = look_at_store(&config)?;
    let contents = Progress::showing(PROGRESS, |mut progress| store.back_up(&args.file, &mut progress))?;
    print(|out| writeln!(out, "{}: {}", args.file.display(), as_text(&contents)))?;
    match contents.audit.fault {
        Some(fault) => Err(anyhow!("the copy is written, but its audit log is not complete: {fault}").into()),
        None => Ok(()),
    }
}

pub(super) fn restore(args: &RestoreArgs) -> CommandResult {
    let config = args.config.read()?;
    let path = store::file_of(&config.database)?;
    let backup = Progress::showing(PROGRESS, |progress| Restorable::examine(&args.file, path, progress))?;
    if let Some(fault) = &backup.contents.audit.fault {
        tracing::warn!(error = %fault, "the backup's audit log is not complete");
    }
    sealed::check(&config.database_keys, &backup.contents.keys)
        .map_err(|error| anyhow!("{}: {error}", args.file.display()))?;
    let upgraded = backup.older.map(|version| format!("; upgraded from version {version}"));
    let upgraded = upgraded.unwrap_or_default();
    print(|out| writeln!(out, "{}: {}{upgraded}", args.file.display(), as_text(&backup.contents)))?;
    let mut damaged = false;
    if path.exists() {
        let found = backup::examine(path);
        let is_older = matches!(store::examine(&config.database), Ok(Condition::Older(_)));
        damaged = found.is_err() && !is_older;
        let reasons = against(path, &backup.contents, &found, damaged)?;
        match &found {
            Ok(contents) => print(|out| writeln!(out, "{}: {}", path.display(), as_text(contents)))?,
            Err(error) => print(|out| writeln!(out, "{error}"))?,
        }
        if !reasons.is_empty() && !args.force {
            let reasons = reasons.join(", and ");
            return Err(anyhow!("{}: {reasons}; use --force to replace it anyway", path.display()).into());
        }
        ask::sure(args.yes, &format!("Replace the database {}?", path.display()))?;
    }
    let by = Actor::system_user();
    Progress::showing(PROGRESS, |progress| backup.restore(path, damaged, &by, progress))?;
    print(|out| writeln!(out, "{}: restored", path.display()))?;
    Ok(())
}

/// Returns the reasons against replacing the database at `path`.
fn against(
    path: &Path,
    backup: &Contents,
    found: &Result<Contents, StoreError>,
    damaged: bool,
) -> Result<Vec<String>, StoreError> {
    if damaged {
        return Ok(vec!["it is damaged, or not a database of this version".into()]);
    }
    let mut reasons = Vec::new();
    if backup::is_in_use(path)? {
        reasons.push("it is in use (stop the server first)".to_owned());
    }
    match found {
        Ok(contents) if contents.audit.last > backup.audit.last => {
            let newer = contents.audit.last - backup.audit.last;
            reasons.push(format!("its audit log is {newer} entries newer than the backup"));
        }
        Ok(_) => {}
        Err(_) => reasons.push("it is of an older version, and may be newer than the backup".to_owned()),
    }
    Ok(reasons)
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
