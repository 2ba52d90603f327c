//! `certdist backup` and `certdist restore`: the whole database in one file.

use std::path::{Path, PathBuf};

use anyhow::anyhow;

use super::{ConfigArgs, Outcome, ask, open_store, print, progress::Progress};
use crate::store::{
    Actor, Condition, StoreError,
    sqlite::{
        Sqlite,
        backup::{self, Contents, Restorable},
    },
};

const PROGRESS: &str = "{bar:40} {percent}% {pos}/{len} pages {eta} left";

/// Copies the database into a file, beside a running server
#[derive(clap::Args)]
#[command(after_help = "\
Example
  certdist backup certdist-2026-11-25.db

The copy is one state of the database, is looked through before it has its name, and
is readable for its owner only. Secrets in it are sealed as they are in the database:
without the database key it is of no use, so keep that elsewhere.")]
pub struct BackupArgs {
    /// Where to write it; must not be there yet
    #[arg(value_name = "FILE")]
    file: PathBuf,
    #[command(flatten)]
    config: ConfigArgs,
}

/// Puts a backup into the database's place
#[derive(clap::Args)]
#[command(after_help = "\
Example
  systemctl stop certdist
  certdist restore certdist-2026-11-25.db

A backup of an older version is brought up to date on the way, in a copy. What was
issued, registered and imported since the backup is lost. A database that is newer than
the backup, is in use, or is damaged, is replaced with --force only; a server that has it
open then goes on with what was restored.")]
pub struct RestoreArgs {
    /// What `certdist backup` wrote
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Replace a database that is newer, in use or damaged
    #[arg(long)]
    force: bool,
    /// Do not ask
    #[arg(long)]
    yes: bool,
    #[command(flatten)]
    config: ConfigArgs,
}

pub(super) fn back_up(args: &BackupArgs) -> Outcome {
    let config = args.config.read()?;
    let store = open_store(&config)?;
    let contents = Progress::showing(PROGRESS, |told| store.backup(&args.file, told))?;
    print(|out| writeln!(out, "{}: {}", args.file.display(), as_text(&contents)))?;
    match contents.audit.fault {
        Some(fault) => Err(anyhow!("the audit log was not whole when it was copied: {fault}").into()),
        None => Ok(()),
    }
}

pub(super) fn restore(args: &RestoreArgs) -> Outcome {
    let config = args.config.read()?;
    let Some(path) = config.database.strip_prefix("sqlite:").map(Path::new) else {
        return Err(anyhow!("database = \"{}\": expected sqlite:PATH", config.database).into());
    };
    let backup = Progress::showing(PROGRESS, |told| Restorable::examine(&args.file, path, told))?;
    if let Some(fault) = &backup.contents.audit.fault {
        tracing::warn!("the backup's audit log is not whole: {fault}");
    }
    backup.check_keys(&config.database_keys)?;
    let upgraded = backup.older.map(|version| format!("; of version {version}, and brought up to date"));
    let upgraded = upgraded.unwrap_or_default();
    print(|out| writeln!(out, "{}: {}{upgraded}", args.file.display(), as_text(&backup.contents)))?;
    let mut damaged = false;
    if path.exists() {
        let found = backup::examine(path);
        let is_older = matches!(Sqlite::examine(path), Ok(Condition::Older(_)));
        damaged = found.is_err() && !is_older;
        let reasons = against(path, &backup.contents, &found, damaged)?;
        match &found {
            Ok(contents) => print(|out| writeln!(out, "{}: {}", path.display(), as_text(contents)))?,
            Err(error) => print(|out| writeln!(out, "{error}"))?,
        }
        if !reasons.is_empty() && !args.force {
            let reasons = reasons.join(", and ");
            return Err(anyhow!("{}: {reasons}; --force replaces it all the same", path.display()).into());
        }
        ask::sure(args.yes, &format!("Replace all that is in {}?", path.display()))?;
    }
    let by = Actor::system_user();
    Progress::showing(PROGRESS, |told| backup.restore(path, damaged, &by, told))?;
    print(|out| writeln!(out, "{}: restored", path.display()))?;
    Ok(())
}

/// What speaks against replacing a database.
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
            reasons.push(format!("it is newer than the backup, by {newer} entries of its audit log"));
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
