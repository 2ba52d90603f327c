//! Backs up a database while other processes use it, and restores a database from a backup.
//! SQLite's backup API copies one consistent state. Every backup is verified before it is used.
//! This module handles files and their modes, but never asks the operator.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use rusqlite::{
    Connection, ErrorCode, Transaction, TransactionBehavior,
    backup::{Backup, StepResult},
};

use super::{
    Actor, audit,
    connection::{self, Found},
    files::identity,
    lock::Lock,
    look::{self, Place},
    orders, secrets, since_backup, store_error,
};
use crate::{
    new_file::NewFile,
    store::{
        StoreError,
        audit::{AuditEntry, AuditEvent},
        backup::{Contents, SinceBackup, Target},
        unix_now,
    },
};

/// Number of pages that are copied between two calls of `progress`.
const PAGES: i32 = 2048;

/// Maximum time for which a restore waits for the writers of a database in use.
const WAIT: Duration = Duration::from_secs(30);

/// Advice to the operator if a copy cannot be written.
const FREE_SPACE: &str = "free some space on its disk, or write to another one";

/// A verified copy of a database, in a file that does not have its final name yet.
pub(super) struct Copy {
    part: NewFile,
    contents: Contents,
}

impl Copy {
    /// Gives the file its final name, and returns the content of the database in it.
    pub(super) fn complete(self, to: &Path) -> Result<Contents, StoreError> {
        self.part.complete().map_err(|error| unwritten(to, &error))?;
        Ok(self.contents)
    }
}

/// Copies one state of the database `from` into a new file (mode 0600) beside `to`. `source` is a
/// connection to `from`. `progress` receives the number of copied pages and the total.
pub(super) fn back_up(
    source: &Connection,
    from: &Path,
    to: &Path,
    progress: impl FnMut(u64, u64),
) -> Result<Copy, StoreError> {
    let part = begin(to, NewFile::create)?;
    let failed = |error| store_error(from, error);
    // One transaction covers the counting and the copying, so the copy must have the same counts as
    // the source.
    let state = Transaction::new_unchecked(source, TransactionBehavior::Deferred).map_err(failed)?;
    let before = contents(&state).map_err(failed)?;
    {
        let not_written = |error| unwritten_copy(to, error);
        let mut copy = Connection::open(part.path()).map_err(not_written)?;
        copy_pages(source, &mut copy, progress).map_err(|error| match is_of_writing(&error) {
            true => not_written(error),
            false => failed(error),
        })?;
        as_one_file(&copy).map_err(not_written)?;
    }
    // Verifying the copy may take long. During this time, an open transaction would keep the
    // write-ahead log from being emptied.
    drop(state);
    let contents = examine(part.path())?;
    if contents != before {
        return Err(StoreError::Failed(format!(
            "{}: the copy is not what was copied",
            part.path().display()
        )));
    }
    Ok(Copy { part, contents })
}

/// Verifies that a database is undamaged, belongs to certdist and has the current version. No
/// process may write to the database during the verification. Returns the database's content.
fn examine(path: &Path) -> Result<Contents, StoreError> {
    look::at_any(path, |connection| match connection::older(connection, path)? {
        None => look_through(connection, path),
        Some(version) => Err(older(path, version)),
    })
}

fn older(path: &Path, version: usize) -> StoreError {
    StoreError::Failed(format!(
        "{}: the database has schema version {version}; a certdist that opens it brings it up to date",
        path.display()
    ))
}

/// Examines what a restore would replace, without creating or changing anything. Fails for a
/// database of another program, and for a file that this process cannot read.
pub fn target(path: &Path) -> Result<Target, StoreError> {
    if look::place(path)? != Place::File {
        return Ok(Target::Nothing);
    }
    let foreign = "this is the database of another program, which is never replaced, not even with --force; correct \
                   `database` in the configuration, or move the file away";
    if connection::is_marked_by_another(path) {
        return Err(look::unusable(path, foreign));
    }
    let examined = look::at_any(path, |connection| {
        if matches!(connection::examine_at_once(connection), Ok(Found::Foreign)) {
            return Err(look::unusable(path, foreign));
        }
        match connection::older(connection, path)? {
            None => Ok(Target::Current(look_through(connection, path)?)),
            Some(version) => Ok(Target::Older(older(path, version))),
        }
    });
    match examined {
        Err(error @ StoreError::Failed(_)) => Ok(Target::Damaged(error)),
        // The journal belongs to an interrupted change. The database cannot be read before the
        // change is completed, and this function must not complete it, so the database counts as
        // damaged.
        Err(error @ StoreError::Busy(_)) if look::has_journal(path) => Ok(Target::Damaged(error)),
        examined => examined,
    }
}

fn look_through(connection: &Connection, path: &Path) -> Result<Contents, StoreError> {
    is_undamaged(connection, path)?;
    contents(connection).map_err(|error| store_error(path, error))
}

fn is_undamaged(connection: &Connection, path: &Path) -> Result<(), StoreError> {
    let found: String = connection
        .query_row("PRAGMA integrity_check(1)", (), |row| row.get(0))
        .map_err(|error| store_error(path, error))?;
    match found.as_str() {
        "ok" => Ok(()),
        _ => Err(StoreError::Failed(format!("{}: the database is damaged: {found}", path.display()))),
    }
}

/// Fails with a message for the operator if the path cannot be that of a database.
pub fn can_be_at(path: &Path) -> Result<(), StoreError> {
    look::place(path).map(drop)
}

/// A verified backup that can be restored.
pub struct Restorable {
    from: PathBuf,
    /// Content of the backup.
    pub contents: Contents,
    /// Version of the backup; `None` if this is the current version.
    pub older: Option<usize>,
    /// Migrated copy of the backup; `None` if the backup has the current version.
    upgraded: Option<NewFile>,
}

impl Restorable {
    /// Verifies a backup without changing it. A backup of an older version is copied to a file
    /// beside `to`, and the copy is migrated. `progress` receives the number of copied pages
    /// and the total.
    pub fn examine(from: &Path, to: &Path, progress: impl FnMut(u64, u64)) -> Result<Self, StoreError> {
        let expected = "expected a file that `certdist backup` wrote";
        match fs::metadata(from) {
            Ok(found) if found.is_file() => {}
            Ok(_) => return Err(look::unusable(from, &format!("this is not a file; {expected}"))),
            Err(error) => return Err(look::unusable(from, &format!("{error}; {expected}"))),
        }
        if identity(from).is_ok_and(|from| identity(to).is_ok_and(|to| from == to)) {
            return Err(look::unusable(from, &format!("this is the database itself; {expected}")));
        }
        look::at_any(from, |source| {
            let Some(version) = connection::older(source, from)? else {
                let contents = look_through(source, from)?;
                return Ok(Self { from: from.to_owned(), contents, older: None, upgraded: None });
            };
            is_undamaged(source, from)?;
            let part = begin(to, NewFile::replacing)?;
            let failed = |error| store_error(part.path(), error);
            let mut copy = Connection::open(part.path()).map_err(failed)?;
            copy_pages(source, &mut copy, progress).map_err(failed)?;
            as_one_file(&copy).map_err(failed)?;
            // No database keys are checked here, because the migration changes only the copy. The
            // caller checks the key IDs in `contents`.
            connection::migrate(&copy, part.path(), |_| Ok(()))?;
            let contents = look_through(&copy, from)?;
            Ok(Self { from: from.to_owned(), contents, older: Some(version), upgraded: Some(part) })
        })
    }

    /// Lists what a restore would undo in the database at `to`, which must be undamaged and of the
    /// current version.
    pub fn changes_since(&self, to: &Path) -> Result<SinceBackup, StoreError> {
        look::at_any(to, |now| self.read(|backup| since_backup::list(now, to, backup, &self.contents.audit)))
    }

    fn read<T>(&self, query: impl FnOnce(&Connection) -> Result<T, StoreError>) -> Result<T, StoreError> {
        look::at_any(self.upgraded.as_ref().map_or(&self.from, NewFile::path), query)
    }

    /// Copies the backup into the existing database in one transaction. If the database is
    /// `damaged` or missing, writes a new file in its place instead. Ends the orders of the backup.
    /// Writes audit entries with the name `by`. The caller must have the database's exclusive lock.
    pub fn restore(
        &self,
        to: &Path,
        damaged: bool,
        _lock: &Lock,
        by: &Actor,
        mut progress: impl FnMut(u64, u64),
    ) -> Result<(), StoreError> {
        // If the path is a link, the link stays, and the file to which it leads is replaced.
        let real = to.canonicalize();
        let to = real.as_deref().unwrap_or(to);
        if self.contents.orders == 0 {
            return self.read(|source| self.copy(source, to, damaged, by, progress));
        }
        let part = self.read(|source| without_orders(source, to, by, &mut progress))?;
        look::at_any(part.path(), |source| self.copy(source, to, damaged, by, progress))
    }

    fn copy(
        &self,
        source: &Connection,
        to: &Path,
        damaged: bool,
        by: &Actor,
        progress: impl FnMut(u64, u64),
    ) -> Result<(), StoreError> {
        if to.exists() && !damaged {
            let mut target = connection::open_again(to, WAIT)?;
            copy_pages(source, &mut target, progress).map_err(|error| store_error(to, error))?;
            self.note(&target, by).map_err(|error| store_error(to, error))?;
            connection::empty_log(&target);
            return Ok(());
        }
        let part = begin(to, NewFile::replacing)?;
        let failed = |error| store_error(part.path(), error);
        {
            let mut copy = Connection::open(part.path()).map_err(failed)?;
            copy_pages(source, &mut copy, progress).map_err(failed)?;
            self.note(&copy, by).map_err(failed)?;
            as_one_file(&copy).map_err(failed)?;
        }
        // The former file may have left a log or a journal. SQLite would apply these to the new
        // file.
        for ending in ["-wal", "-shm", "-journal"] {
            let _ = fs::remove_file(look::beside(to, ending));
        }
        part.complete().map_err(|error| unwritten(to, &error))
    }

    fn note(&self, connection: &Connection, by: &Actor) -> rusqlite::Result<()> {
        let transaction = Transaction::new_unchecked(connection, TransactionBehavior::Immediate)?;
        let version = self.older.map(|version| format!(", of version {version}")).unwrap_or_default();
        let detail = Some(format!("from {}{version}", self.from.display()));
        audit::append(&transaction, &AuditEntry { detail, ..by.entry(AuditEvent::Restored, unix_now()) })?;
        transaction.commit()
    }
}

/// Copies a backup to a file beside `to`, and ends the orders in the copy: they may have been
/// cancelled or carried out since the backup, but the next server to start would carry them out.
/// They end before the copy is in place, so that an interrupted restore revives none of them.
fn without_orders(
    source: &Connection,
    to: &Path,
    by: &Actor,
    progress: impl FnMut(u64, u64),
) -> Result<NewFile, StoreError> {
    let part = begin(to, NewFile::replacing)?;
    let failed = |error| store_error(part.path(), error);
    {
        let mut copy = Connection::open(part.path()).map_err(failed)?;
        copy_pages(source, &mut copy, progress).map_err(failed)?;
        as_one_file(&copy).map_err(failed)?;
        let transaction =
            Transaction::new_unchecked(&copy, TransactionBehavior::Immediate).map_err(failed)?;
        orders::end_all(&transaction, "restored from a backup", by).map_err(failed)?;
        transaction.commit().map_err(failed)?;
    }
    Ok(part)
}

fn begin(to: &Path, new: fn(&Path) -> io::Result<NewFile>) -> Result<NewFile, StoreError> {
    let new = new(to).map_err(|error| unwritten(to, &error))?;
    // An operator may run the restore as root, but the server must read the file as another user.
    connection::give_to_folders_owner(new.file(), new.path());
    Ok(new.with_companions(&["-journal", "-wal", "-shm"]))
}

fn unwritten(to: &Path, error: &io::Error) -> StoreError {
    let next = match error.kind() {
        io::ErrorKind::AlreadyExists => return taken(to),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => FREE_SPACE,
        _ => "correct the path, or run this as a user who may write there",
    };
    look::unusable(to, &format!("could not be written ({error}); {next}"))
}

fn taken(to: &Path) -> StoreError {
    look::unusable(to, "is there already and was left as it is; choose another name, or remove it")
}

/// Returns whether an error during copying concerns the file that is written, and not the source.
/// SQLite's error does not name the file, so the kind of the error decides.
fn is_of_writing(error: &rusqlite::Error) -> bool {
    // https://www.sqlite.org/rescode.html: the second byte of an I/O error names the operation that
    // failed. 1 and 2 are read operations, and 32 and 33 are checks of the data that was read.
    error.sqlite_error().is_some_and(|error| match error.code {
        ErrorCode::DiskFull | ErrorCode::CannotOpen | ErrorCode::ReadOnly => true,
        ErrorCode::SystemIoFailure => !matches!(error.extended_code >> 8, 1 | 2 | 32 | 33),
        _ => false,
    })
}

fn unwritten_copy(to: &Path, error: rusqlite::Error) -> StoreError {
    look::unusable(to, &format!("could not be written ({error}); {FREE_SPACE}"))
}

fn contents(connection: &Connection) -> rusqlite::Result<Contents> {
    let count = |sql| connection.query_row(sql, (), |row| row.get::<_, i64>(0)).map(i64::unsigned_abs);
    Ok(Contents {
        // The copy has the hidden devices of an unfinished import, too.
        devices: count("SELECT count(*) FROM main.device_table")?,
        psks: count("SELECT count(*) + count(pskNext) FROM device_key")?,
        keys: secrets::keys_in_use(connection)?,
        clear: secrets::count_clear(connection)?,
        orders: orders::count(connection)?,
        audit: audit::verify_in(connection, |_, _| ())?,
    })
}

fn copy_pages(
    source: &Connection,
    target: &mut Connection,
    mut progress: impl FnMut(u64, u64),
) -> rusqlite::Result<()> {
    target.busy_timeout(WAIT)?;
    let backup = Backup::new(source, target)?;
    loop {
        let step = backup.step(PAGES)?;
        let pages = backup.progress();
        let [total, left] = [pages.pagecount, pages.remaining].map(|pages| pages.unsigned_abs().into());
        progress(total - left, total);
        match step {
            StepResult::Done => return Ok(()),
            StepResult::More => {}
            _ => {
                let busy = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_BUSY);
                return Err(rusqlite::Error::SqliteFailure(busy, None));
            }
        }
    }
}

/// Turns off write-ahead logging, so that the backup is a single file.
fn as_one_file(connection: &Connection) -> rusqlite::Result<()> {
    connection.pragma_update_and_check(None, "journal_mode", "delete", |_| Ok(()))
}
