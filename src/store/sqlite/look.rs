//! Opens a database for reading only. Creates no file, and changes none except the log's shared
//! memory (`-shm`), which SQLite may rewrite. A database can therefore also be read on a read-only
//! file system, or in another user's folder. This module chooses the kind of connection, and does
//! not depend on the queries.

use std::{
    fs::{self, Metadata},
    io,
    os::unix::{ffi::OsStrExt, fs::MetadataExt},
    path::{Path, PathBuf},
    thread,
    time::{Duration, SystemTime},
};

use percent_encoding::{NON_ALPHANUMERIC, percent_encode};
use rusqlite::{Connection, OpenFlags, config::DbConfig};
use rustix::fs::Access;

use super::{
    connection::{self, Found},
    lock, store_error,
};
use crate::store::StoreError;

/// Maximum wait for another process that opens, recovers or closes the database.
const WAIT: Duration = Duration::from_secs(5);

/// Period in which two changes of a file may get the same time stamp from the file system.
const TICK: Duration = Duration::from_millis(50);

/// Kind of object at the path of a database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// A file with content.
    File,
    /// An empty file, such as a crash may leave.
    Empty,
    /// Nothing, in a folder that exists.
    Nothing,
}

/// Examines a path. Fails if there is no database at the path and none can be created there.
pub(super) fn place(path: &Path) -> Result<Place, StoreError> {
    let failed = |what: String| Err(unusable(path, &what));
    match fs::metadata(path) {
        Ok(found) if found.is_dir() => failed("this is a directory, not a database".into()),
        Ok(found) if !found.is_file() => failed("this is not a regular file".into()),
        Ok(found) if found.len() == 0 => Ok(Place::Empty),
        Ok(_) => Ok(Place::File),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            if let Ok(target) = fs::read_link(path) {
                let target = target.display();
                return failed(format!(
                    "this link leads to {target}, which does not exist; correct the link, or mount the disk that it \
                     leads to"
                ));
            }
            let folder = connection::folder(path);
            if fs::metadata(folder).is_ok_and(|folder| folder.is_dir()) {
                return Ok(Place::Nothing);
            }
            failed(format!(
                "there is no folder {}; create it, or correct `database` in the configuration",
                folder.display()
            ))
        }
        Err(error) => failed(format!("{error}; run this as its owner or as root")),
    }
}

/// Returns an error about a file, with its absolute path.
pub(super) fn unusable(path: &Path, what: &str) -> StoreError {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    StoreError::Unusable(format!("{}: {what}", path.display()))
}

/// Fails if the path has neither a database nor another file with content.
pub(super) fn is_there(path: &Path) -> Result<(), StoreError> {
    let what = match place(path)? {
        Place::File => return Ok(()),
        Place::Empty => "the file is empty",
        Place::Nothing => "there is no database",
    };
    lock::was_not_lost(path)?;
    let create = "`certdist import` or `certdist serve` creates it";
    let reason = format!("{what}; {create}; if yours is elsewhere, correct `database` in the configuration");
    Err(unusable(path, &reason))
}

/// State of a database's files that decides how to read the database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// The log and its shared memory exist. This process reads like any other process that uses the
    /// database.
    Shared,
    /// No process has the database open, and its log is missing or empty.
    Still,
    /// No process has the database open, but its log has content. The files are a copy, or a killed
    /// process has left them.
    WithLog,
}

/// State of the files of a database that no other process has open. If the state changes during a
/// query, another process has opened the database.
#[derive(PartialEq, Eq)]
struct State {
    database: Stamp,
    log: Option<Stamp>,
    has_shared_memory: bool,
}

#[derive(PartialEq, Eq)]
struct Stamp {
    file: (u64, u64),
    length: u64,
    // The time of the last metadata change is not compared. When root opens the database, SQLite
    // sets the log's owner, which changes this time even if the owner stays the same.
    modified: (i64, i64),
}

impl Stamp {
    fn of(file: &Metadata) -> Self {
        Self {
            file: (file.dev(), file.ino()),
            length: file.len(),
            modified: (file.mtime(), file.mtime_nsec()),
        }
    }
}

/// Returns the path of a file that SQLite keeps beside a database.
pub(super) fn beside(database: &Path, ending: &str) -> PathBuf {
    let mut path = database.as_os_str().to_owned();
    path.push(ending);
    path.into()
}

fn metadata(path: &Path) -> io::Result<Option<Metadata>> {
    match fs::metadata(path) {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

impl State {
    fn of(database: &Path) -> io::Result<Self> {
        Ok(Self {
            database: Stamp::of(&fs::metadata(database)?),
            log: metadata(&beside(database, "-wal"))?.as_ref().map(Stamp::of),
            has_shared_memory: metadata(&beside(database, "-shm"))?.is_some(),
        })
    }

    /// Waits until the last write of the database is at least [`TICK`] ago, and returns the state
    /// of the files. The next write then changes the time stamp.
    fn at_rest(database: &Path) -> io::Result<Self> {
        let modified = fs::metadata(database)?.modified()?;
        let age = SystemTime::now().duration_since(modified).unwrap_or_default();
        if age < TICK {
            thread::sleep(TICK - age);
        }
        Self::of(database)
    }

    fn way(&self) -> Way {
        let logged = self.log.as_ref().map(|log| log.length);
        match logged {
            Some(_) if self.has_shared_memory => Way::Shared,
            Some(1..) => Way::WithLog,
            _ => Way::Still,
        }
    }
}

/// Returns whether the database has a rollback journal, which means that a change is in progress or
/// was interrupted.
pub(super) fn has_journal(path: &Path) -> bool {
    let Ok(file) = path.canonicalize() else { return false };
    metadata(&beside(&file, "-journal")).is_ok_and(|found| found.is_some_and(|journal| journal.len() > 0))
}

/// A database that is only read.
pub(super) struct Look {
    connection: Connection,
    file: PathBuf,
    /// State that must not change during a query; `None` if SQLite's locks protect the data.
    state: Option<State>,
}

impl Look {
    /// Opens a database for reading. Fails if the database does not exist.
    fn open(path: &Path) -> Result<Self, StoreError> {
        is_there(path)?;
        Self::open_file(path)
    }

    fn open_file(path: &Path) -> Result<Self, StoreError> {
        let failed = |error: io::Error| StoreError::Failed(format!("{}: {error}", path.display()));
        // If the path is a link, SQLite looks for the log beside the file to which the link leads.
        let file = path.canonicalize().map_err(failed)?;
        let state = State::at_rest(&file).map_err(failed)?;
        let way = state.way();
        if metadata(&beside(&file, "-journal")).map_err(failed)?.is_some_and(|journal| journal.len() > 0) {
            return Err(StoreError::Busy(format!(
                "{}: another process is creating or upgrading it, or was interrupted; try again, or run \
                 `certdist serve`, which completes an interrupted upgrade",
                path.display()
            )));
        }
        readable(&file, "")?;
        let connection = match way {
            Way::Shared => {
                readable(&file, "-wal")?;
                readable(&file, "-shm")?;
                open(&file, &[], None)
            }
            Way::Still => open(&file, &["immutable=1"], None),
            Way::WithLog => {
                readable(&file, "-wal")?;
                // With exclusive access and without locks, SQLite keeps the index of the log in
                // memory and creates no file.
                open(&file, &[], Some("unix-none")).and_then(|connection| {
                    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
                    connection.pragma_update_and_check(None, "locking_mode", "exclusive", |_| Ok(()))?;
                    Ok(connection)
                })
            }
        };
        let connection = connection.map_err(|error| store_error(path, error))?;
        Ok(Self { connection, file, state: (way != Way::Shared).then_some(state) })
    }

    /// Runs a query. Without SQLite's locks, another process can change the database during the
    /// query, so that the query reads parts of two states. This method detects a change and fails,
    /// and the caller can try again.
    fn run<T>(
        &self,
        path: &Path,
        query: impl FnOnce(&Connection) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let result = query(&self.connection);
        match &self.state {
            Some(state) if State::of(&self.file).ok().as_ref() != Some(state) => Err(StoreError::Busy(
                format!("{}: another process has opened it meanwhile; run this again", path.display()),
            )),
            _ => result,
        }
    }
}

fn open(file: &Path, parameters: &[&str], vfs: Option<&str>) -> rusqlite::Result<Connection> {
    let path = percent_encode(file.as_os_str().as_bytes(), NON_ALPHANUMERIC);
    let uri = format!("file:{path}?mode=ro&{}", parameters.join("&"));
    let flags =
        OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = match vfs {
        Some(vfs) => Connection::open_with_flags_and_vfs(uri, flags, vfs)?,
        None => Connection::open_with_flags(uri, flags)?,
    };
    connection.busy_timeout(WAIT)?;
    connection.pragma_update(None, "query_only", true)?;
    Ok(connection)
}

/// Fails if this process may not read the database or a file beside it.
fn readable(file: &Path, ending: &str) -> Result<(), StoreError> {
    let path = beside(file, ending);
    let Err(error) = rustix::fs::access(&path, Access::READ_OK) else { return Ok(()) };
    let what = if ending.is_empty() { "" } else { ", and without it the newest changes would be missing" };
    let error = io::Error::from(error);
    Err(unusable(&path, &format!("cannot be read ({error}){what}; run this as its owner or as root")))
}

/// Runs a query on a database of the current version.
pub(super) fn at<T>(
    path: &Path,
    query: impl FnOnce(&Connection) -> rusqlite::Result<T>,
) -> Result<T, StoreError> {
    check(path, |connection| query(connection).map_err(|error| store_error(path, error)))
}

/// Runs a query on a database of the current version. The query returns a [`StoreError`] itself.
pub(super) fn check<T>(
    path: &Path,
    query: impl FnOnce(&Connection) -> Result<T, StoreError>,
) -> Result<T, StoreError> {
    let look = Look::open(path)?;
    look.run(path, |connection| {
        connection::is_current(connection, path)?;
        connection::hide_unfinished(connection).map_err(|error| store_error(path, error))?;
        query(connection)
    })
}

/// Runs a query on a file of any version. The file need not be the configured database.
pub(super) fn at_any<T>(
    path: &Path,
    query: impl FnOnce(&Connection) -> Result<T, StoreError>,
) -> Result<T, StoreError> {
    Look::open_file(path)?.run(path, query)
}

/// Returns the kind of database in a file, which must exist ([`is_there`]).
pub(super) fn found(path: &Path) -> Result<Found, StoreError> {
    let look = Look::open(path)?;
    look.run(path, |connection| {
        connection::examine_at_once(connection).map_err(|error| connection::unreadable(path, error))
    })
}
