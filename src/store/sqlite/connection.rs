//! Opens certdist's database file: creates a new file, refuses the file of another program without
//! changing it, migrates an older schema, and configures each kind of connection. This module sets
//! the pragmas, and does not depend on the rows.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::Path,
    thread,
    time::{Duration, Instant},
};

use rusqlite::{Connection, ErrorCode, OpenFlags, Params, Transaction, TransactionBehavior};
use rustix::fs::Access;

use super::{
    audit, lock,
    look::{self, Place},
    names, store_error, unfinished,
};
use crate::store::{Condition, SharedName, StoreError};

/// Application ID of a certdist database: "cert", as in `schema.sql`.
const APPLICATION_ID: i64 = 0x6365_7274;

/// SQL statements that create a database of the current version in an empty file.
pub(super) const SCHEMA: &str = include_str!("../../../schema.sql");

/// Migration steps. The step at `index` migrates a database from version `index + 1` to version
/// `index + 2`. Each change of `schema.sql` must add a step at the end.
const UPGRADES: &[Upgrade] = &[
    Upgrade { script: include_str!("upgrade_1_to_2.sql"), then: None },
    Upgrade { script: include_str!("upgrade_2_to_3.sql"), then: None },
    Upgrade { script: include_str!("upgrade_3_to_4.sql"), then: Some(audit::into_blocks) },
    Upgrade { script: include_str!("upgrade_4_to_5.sql"), then: None },
    Upgrade { script: include_str!("upgrade_5_to_6.sql"), then: None },
    Upgrade { script: include_str!("upgrade_6_to_7.sql"), then: None },
    Upgrade { script: include_str!("upgrade_7_to_8.sql"), then: None },
    Upgrade { script: include_str!("upgrade_8_to_9.sql"), then: None },
    Upgrade { script: include_str!("upgrade_9_to_10.sql"), then: None },
];

/// Migration from one version to the next.
struct Upgrade {
    script: &'static str,
    /// Further work after the script, for changes that SQL cannot express.
    then: Option<fn(&Connection) -> rusqlite::Result<()>>,
}

/// Maximum number of names that are reported as shared after a migration.
const MAX_SHARED: usize = 20;

/// The version of `schema.sql`.
pub(super) const VERSION: usize = UPGRADES.len() + 1;

/// The first version with the table `database_key`. Older databases have no sealed secrets.
const FIRST_WITH_KEYS: usize = 3;

/// Maximum time that a reader waits for a lock. In WAL mode, a reader waits only while another
/// process recovers or removes the log.
const READER_WAIT: Duration = Duration::from_millis(100);

/// Page cache of each reader, in KiB: enough for the upper levels of the tree of ten million
/// devices. The leaf page with the device comes from the system's page cache, which costs about a
/// microsecond. A mapped file would save this time, but every mapped page would count as memory of
/// this process, once for each reader.
const READER_CACHE: i64 = 128;

/// Page cache of the writer, in KiB: enough for the pages that a group of writes touches.
const WRITER_CACHE: i64 = 2048;

/// Page cache of the connection for the audit log, in KiB: enough for the pages of one append,
/// which are not needed again.
const BACKLOG_CACHE: i64 = 128;

/// Page cache of a connection for work on the whole table, in KiB: enough for the pages of all
/// indexes that a slice of an import touches.
const BULK_CACHE: i64 = 32_768;

/// Sets up a connection that only reads: it sees no devices of an unfinished import.
pub(super) fn hide_unfinished(connection: &Connection) -> rusqlite::Result<()> {
    connection.pragma_update(None, "query_only", false)?;
    connection.execute_batch(unfinished::HIDE)?;
    connection.pragma_update(None, "query_only", true)
}

/// Opens the file for writing, and creates or migrates it if necessary. A transaction waits at most
/// `wait` for another process's transaction. `check_keys` reads the table `database_key`. If
/// `check_keys` fails, this function fails too, and does not migrate an older database.
pub(super) fn open(
    path: &Path,
    wait: Duration,
    check_keys: impl Fn(&Connection) -> Result<(), StoreError>,
) -> Result<Connection, StoreError> {
    create_private(path)?;
    let connection = connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE, wait)?;
    match examine_at_once(&connection).map_err(|error| unreadable(path, error))? {
        Found::Version(VERSION) => {}
        Found::Version(_) => {
            overwrite_deleted(&connection).map_err(|error| store_error(path, error))?;
            migrate(&connection, path, &check_keys)?;
        }
        other => return Err(refusal(path, &other)),
    }
    // SQLite opens a write-protected file without an error, but then each write fails.
    if connection.is_readonly(rusqlite::MAIN_DB).map_err(|error| store_error(path, error))? {
        return Err(StoreError::Failed(format!("{}: the file is write-protected", path.display())));
    }
    // `check_keys` runs before the connection is set up, because the set-up may change the file.
    check_keys(&connection)?;
    patiently(wait, SET_UP_PAUSE, || set_up_writer(&connection)).map_err(|error| store_error(path, error))?;
    Ok(connection)
}

/// Opens a connection for low-priority writes, which fail immediately while another connection is
/// writing.
pub(super) fn open_backlog(path: &Path) -> Result<Connection, StoreError> {
    let connection = connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE, READER_WAIT)?;
    let set_up = || {
        set_up_writer(&connection)?;
        connection.pragma_update(None, "cache_size", -BACKLOG_CACHE)?;
        connection.busy_timeout(Duration::ZERO)
    };
    set_up().map_err(|error| store_error(path, error))?;
    Ok(connection)
}

/// Opens another writing connection, for work on the whole table, to a file that [`open`] has
/// opened before. Like the others, it does not map the file: each page that it has used would count
/// as memory of the process, which would then grow with the table.
pub(super) fn open_again(path: &Path, wait: Duration) -> Result<Connection, StoreError> {
    let connection = connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE, wait)?;
    let set_up = || {
        set_up_writer(&connection)?;
        connection.pragma_update(None, "mmap_size", 0)?;
        connection.pragma_update(None, "cache_size", -BULK_CACHE)
    };
    set_up().map_err(|error| store_error(path, error))?;
    Ok(connection)
}

/// Opens a read-only connection to a file that [`open`] has opened before.
pub(super) fn open_reader(path: &Path) -> Result<Connection, StoreError> {
    let connection = connect(path, OpenFlags::SQLITE_OPEN_READ_ONLY, READER_WAIT)?;
    let set_up = || {
        hide_unfinished(&connection)?;
        connection.pragma_update(None, "mmap_size", 0)?;
        connection.pragma_update(None, "cache_size", -READER_CACHE)
    };
    set_up().map_err(|error| store_error(path, error))?;
    Ok(connection)
}

/// Creates an empty database of the current version in memory.
pub(super) fn open_empty() -> rusqlite::Result<Connection> {
    let connection = Connection::open_in_memory()?;
    connection.execute_batch(SCHEMA)?;
    connection.pragma_update(None, "foreign_keys", true)?;
    Ok(connection)
}

/// Returns the folder of a file.
pub(super) fn folder(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Opens a file that receives a copy, and creates it if necessary. `cache` is in KiB.
pub(super) fn open_for_copy(path: &Path, cache: i64) -> Result<Connection, StoreError> {
    create_private(path)?;
    let connection = connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE, READER_WAIT)?;
    let set_up = || {
        set_up_writer(&connection)?;
        connection.pragma_update(None, "cache_size", -cache)
    };
    set_up().map_err(|error| store_error(path, error))?;
    Ok(connection)
}

/// Examines whether a server can open the file, or create it. Creates and changes nothing.
pub(super) fn condition(path: &Path) -> Result<Condition, StoreError> {
    let path = &*super::absolute(path)?;
    let failed = |what: String| StoreError::Failed(format!("{}: {what}", path.display()));
    // SQLite keeps its log beside the file, so the folder must be writable, too.
    rustix::fs::access(folder(path), Access::WRITE_OK | Access::EXEC_OK)
        .map_err(|error| failed(format!("the folder cannot be written ({})", io::Error::from(error))))?;
    if look::place(path)? == Place::Nothing {
        return lock::was_not_lost(path).map(|()| Condition::Missing);
    }
    rustix::fs::access(path, Access::READ_OK | Access::WRITE_OK)
        .map_err(|error| failed(format!("cannot be read and written ({})", io::Error::from(error))))?;
    if look::place(path)? == Place::Empty {
        return lock::was_not_lost(path).map(|()| Condition::Missing);
    }
    match look::found(path)? {
        Found::Version(VERSION) => Ok(Condition::Current),
        Found::Version(0) => Ok(Condition::Missing),
        Found::Version(older) => Ok(Condition::Older(older)),
        other => Err(refusal(path, &other)),
    }
}

fn connect(path: &Path, access: OpenFlags, wait: Duration) -> Result<Connection, StoreError> {
    // Without SQLITE_OPEN_URI, a path that begins with `file:` is still a path. No mutex is needed,
    // because only one thread at a time uses a connection.
    let connection = Connection::open_with_flags(path, access | OpenFlags::SQLITE_OPEN_NO_MUTEX)
        .and_then(|connection| {
            connection.busy_timeout(wait)?;
            connection.set_prepared_statement_cache_capacity(32);
            Ok(connection)
        })
        .map_err(|error| store_error(path, error))?;
    Ok(connection)
}

/// Creates an empty file that only its owner may read. SQLite gives its log and shared memory the
/// same mode. An existing file is not even opened, because closing it would end the POSIX locks
/// that other connections of this process hold on it.
pub(super) fn create_private(path: &Path) -> Result<(), StoreError> {
    look::place(path)?;
    match OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
        Ok(file) => {
            give_to_folders_owner(&file, path);
            Ok(())
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(StoreError::Failed(format!("{}: cannot be created: {error}", path.display()))),
    }
}

/// Gives a new file to the owner of its folder, because an operator may import as root before the
/// server has ever run as another user. Does nothing unless this process runs as root.
pub(super) fn give_to_folders_owner(file: &File, path: &Path) {
    give_to_owner(file, folder(path));
}

/// Gives a new file to the owner of another file or folder, like [`give_to_folders_owner`].
pub(super) fn give_to_owner(file: &File, of: &Path) {
    if let (Ok(of), Ok(own)) = (fs::metadata(of), file.metadata())
        && of.uid() != own.uid()
    {
        let _ = std::os::unix::fs::fchown(file, Some(of.uid()), Some(of.gid()));
    }
}

/// Returns whether a file begins as the SQLite database of another program, even if the file is
/// damaged. No connection of this process may have the file open, because closing the file here
/// would end that connection's locks.
pub(super) fn is_marked_by_another(path: &Path) -> bool {
    // The header of a database has the ID of its program in bytes 68 to 71:
    // https://www.sqlite.org/fileformat.html#the_database_header
    let mut header = [0; 72];
    let read = File::open(path).and_then(|mut file| file.read_exact(&mut header));
    let marked = header[68..].try_into().map(u32::from_be_bytes).map(i64::from);
    read.is_ok()
        && header.starts_with(b"SQLite format 3\0")
        && !matches!(marked, Ok(0 | APPLICATION_ID) | Err(_))
}

/// Content of a file.
pub(super) enum Found {
    /// A database of certdist, or an empty one (version 0).
    Version(usize),
    /// A database of certdist, of a version that this program does not know.
    Newer(i64),
    /// A database of certdist with a part of a copy.
    PartOfCopy,
    /// A database of another program.
    Foreign,
}

fn examine(connection: &Connection) -> rusqlite::Result<Found> {
    let pragma = |name| connection.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
    let (application, version) = (pragma("application_id")?, pragma("user_version")?);
    let objects: i64 = connection.query_row("SELECT count(*) FROM sqlite_schema", (), |row| row.get(0))?;
    Ok(match (application, usize::try_from(version)) {
        (0, Ok(0)) if objects == 0 => Found::Version(0),
        (APPLICATION_ID, Ok(0)) => Found::PartOfCopy,
        (APPLICATION_ID, Ok(1..)) if version > VERSION as i64 => Found::Newer(version),
        (APPLICATION_ID, Ok(known @ 1..)) => Found::Version(known),
        _ => Found::Foreign,
    })
}

/// Examines the file in one transaction. Otherwise, a database that another process is creating
/// could look like the database of another program.
pub(super) fn examine_at_once(connection: &Connection) -> rusqlite::Result<Found> {
    let transaction = Transaction::new_unchecked(connection, TransactionBehavior::Deferred)?;
    let found = examine(&transaction)?;
    transaction.commit()?;
    Ok(found)
}

/// Fails for a foreign or newer database; returns the version of an older one.
pub(super) fn older(connection: &Connection, path: &Path) -> Result<Option<usize>, StoreError> {
    match examine_at_once(connection).map_err(|error| unreadable(path, error))? {
        Found::Version(VERSION) => Ok(None),
        Found::Version(0) => {
            Err(StoreError::Failed(format!("{}: there is no database in it", path.display())))
        }
        Found::Version(older) => Ok(Some(older)),
        other => Err(refusal(path, &other)),
    }
}

/// Fails unless the database has the current version.
pub(super) fn is_current(connection: &Connection, path: &Path) -> Result<(), StoreError> {
    match older(connection, path)? {
        None => Ok(()),
        Some(version) => Err(StoreError::Unusable(format!(
            "{}: the database has version {version}, and this certdist needs version {VERSION}; `certdist serve` \
             and `certdist import` upgrade it, and nothing is changed before",
            path.display()
        ))),
    }
}

/// Migrates an empty or older database to the current version, unless `check_keys` fails on the
/// older database.
pub(super) fn migrate(
    connection: &Connection,
    path: &Path,
    check_keys: impl Fn(&Connection) -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    let failed = |error| store_error(path, error);
    let transaction =
        Transaction::new_unchecked(connection, TransactionBehavior::Immediate).map_err(failed)?;
    // The version is checked again under the lock, because another process may have migrated the
    // database in the meantime.
    let version = match examine(&transaction).map_err(failed)? {
        Found::Version(version) => version,
        other => return Err(refusal(path, &other)),
    };
    if version >= FIRST_WITH_KEYS {
        check_keys(&transaction)?;
    }
    match version.checked_sub(1) {
        None => transaction.execute_batch(SCHEMA).map_err(failed)?,
        Some(done) => {
            // Another process may have migrated the database meanwhile.
            if version < VERSION {
                tracing::info!(path = %path.display(), from = version, to = VERSION, "the database is brought up to date");
            }
            for Upgrade { script, then } in UPGRADES.iter().skip(done) {
                transaction.execute_batch(script).map_err(failed)?;
                then.map_or(Ok(()), |step| step(&transaction)).map_err(failed)?;
            }
            transaction.pragma_update(None, "user_version", VERSION as i64).map_err(failed)?;
            for shared in names::shared_names(&transaction, MAX_SHARED).map_err(failed)? {
                let SharedName { product_key, device_name, device, devices } = shared;
                tracing::warn!(
                    device,
                    devices,
                    product_key,
                    device_name,
                    "several devices have one name: those without a certificate are refused until each has a deviceName of its own"
                );
            }
        }
    }
    transaction.commit().map_err(failed)
}

/// Maximum time for which emptying the log waits for a reader.
const LOG_WAIT: Duration = Duration::from_millis(10);

/// Pause between two attempts to set up a connection.
const SET_UP_PAUSE: Duration = Duration::from_millis(5);

/// Repeats work for up to `wait` while the database is busy, with a pause before each repetition.
/// Switching to write-ahead logging needs exclusive access to the file. While another process
/// creates the file, SQLite refuses the switch immediately, even though the connection has a busy
/// timeout.
fn patiently<T>(
    wait: Duration,
    pause: Duration,
    mut work: impl FnMut() -> rusqlite::Result<T>,
) -> rusqlite::Result<T> {
    let deadline = Instant::now() + wait;
    loop {
        #[cfg(test)]
        ATTEMPTS.set(ATTEMPTS.get() + 1);
        match work() {
            Err(error)
                if error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy)
                    && Instant::now() < deadline =>
            {
                thread::sleep(pause);
            }
            done => return done,
        }
    }
}

#[cfg(test)]
thread_local! {
    /// Number of attempts of this thread in [`patiently`].
    pub(super) static ATTEMPTS: std::cell::Cell<u64> = const { std::cell::Cell::new(0) };
}

/// Pause between two attempts to begin a transaction while another process is writing.
const TURN_PAUSE: Duration = Duration::from_millis(1);

/// Begins a transaction that writes. Waits for other writers, for at most the connection's busy
/// timeout, and tries again every [`TURN_PAUSE`]. Other processes write in short transactions with
/// short pauses. SQLite's own waiting would miss the pauses, because it tries less and less often.
pub(super) fn begin(connection: &Connection) -> rusqlite::Result<Transaction<'_>> {
    let wait: u64 = connection
        .pragma_query_value(None, "busy_timeout", |row| row.get::<_, i64>(0))
        .map(|wait| u64::try_from(wait).unwrap_or(0))?;
    let wait = Duration::from_millis(wait);
    connection.busy_timeout(Duration::ZERO)?;
    let begun = begin_within(connection, wait);
    connection.busy_timeout(wait)?;
    begun
}

/// Begins a transaction as [`begin`] does, on a connection without a busy timeout.
pub(super) fn begin_within(connection: &Connection, wait: Duration) -> rusqlite::Result<Transaction<'_>> {
    patiently(wait, TURN_PAUSE, || Transaction::new_unchecked(connection, TransactionBehavior::Immediate))
}

/// Executes a statement in a transaction of its own, for which it waits as [`begin`] does. Returns the
/// number of changed rows.
pub(super) fn execute(connection: &Connection, sql: &str, values: impl Params) -> rusqlite::Result<usize> {
    let transaction = begin(connection)?;
    let changed = transaction.execute(sql, values)?;
    transaction.commit()?;
    Ok(changed)
}

/// Lets SQLite overwrite deleted and replaced content. An unsealed secret therefore does not stay in
/// the file after it is sealed or its device is deleted.
fn overwrite_deleted(connection: &Connection) -> rusqlite::Result<()> {
    connection.pragma_update_and_check(None, "secure_delete", true, |_| Ok(()))
}

fn set_up_writer(connection: &Connection) -> rusqlite::Result<()> {
    let mode: String = connection.pragma_update_and_check(None, "journal_mode", "wal", |row| row.get(0))?;
    if mode != "wal" {
        // Without write-ahead logging, a writer would lock out all readers.
        let code = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_CANTOPEN);
        let reason = "write-ahead logging is not possible in this file system".to_owned();
        return Err(rusqlite::Error::SqliteFailure(code, Some(reason)));
    }
    // SQLite opens the log at the first read. Before that, this connection does not count as a user
    // of the log, so another connection that closes would remove the log.
    connection.query_row("SELECT count(*) FROM sqlite_schema", (), |_| Ok(()))?;
    // With this setting, a certificate or journal entry survives a power loss once its write is
    // confirmed.
    connection.pragma_update(None, "synchronous", "full")?;
    connection.pragma_update(None, "foreign_keys", true)?;
    overwrite_deleted(connection)?;
    connection.pragma_update(None, "cache_size", -WRITER_CACHE)?;
    // In bytes. The limit keeps the large log of an import from staying on the disk.
    connection.pragma_update_and_check(None, "journal_size_limit", 64 << 20, |_| Ok(()))
}

pub(super) fn unreadable(path: &Path, error: rusqlite::Error) -> StoreError {
    match error.sqlite_error_code() {
        Some(ErrorCode::NotADatabase) => StoreError::Failed(format!(
            "{}: this file is not an SQLite database; it was left as it is",
            path.display()
        )),
        _ => store_error(path, error),
    }
}

fn refusal(path: &Path, found: &Found) -> StoreError {
    let path = path.display();
    StoreError::Failed(match found {
        Found::Newer(version) => format!(
            "{path}: the database has schema version {version}, this certdist knows versions up to {}; \
             use a newer certdist",
            VERSION
        ),
        Found::PartOfCopy => format!(
            "{path}: a copy into it is not complete; run the same `certdist copy` again, or remove the file"
        ),
        Found::Foreign | Found::Version(_) => {
            format!("{path}: this is the database of another program; it was left as it is")
        }
    })
}

/// Moves as much of the log into the database as is possible without holding up readers and writers.
pub(super) fn move_log(connection: &Connection) {
    // A failure is harmless: the next call moves more of the log.
    let _ = connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", (), |_| Ok(()));
}

/// Moves the log into the database, and empties it if no other connection is reading or writing at
/// this moment. If one is, the next writer empties it.
pub(super) fn empty_log(connection: &Connection) {
    let _ = is_log_empty(connection);
}

/// Moves the write-ahead log into the database and empties it, and returns whether that succeeded.
/// It fails if a reader or a writer is active. Waits for them only for a moment, because other
/// writers would wait, too.
pub(super) fn is_log_empty(connection: &Connection) -> rusqlite::Result<bool> {
    connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", (), |_| Ok(()))?;
    connection.busy_timeout(LOG_WAIT)?;
    connection
        .query_row("PRAGMA wal_checkpoint(TRUNCATE)", (), |row| row.get(0))
        .map(|is_busy: bool| !is_busy)
}

/// Returns a database of an older version in memory, with the rows of `tests/version_1.sql`.
#[cfg(test)]
pub(super) fn of_version(version: usize) -> Connection {
    let connection = Connection::open_in_memory().unwrap();
    connection.execute_batch(include_str!("tests/version_1.sql")).unwrap();
    for Upgrade { script, then } in &UPGRADES[..version - 1] {
        connection.execute_batch(script).unwrap();
        then.map_or(Ok(()), |step| step(&connection)).unwrap();
    }
    connection
}

#[cfg(test)]
mod tests {
    use super::*;

    const VERSION_1: &str = include_str!("tests/version_1.sql");

    /// Returns the columns of all tables, each with its name, type, NOT NULL flag, default, and
    /// position in the primary key.
    fn columns(connection: &Connection) -> Vec<String> {
        let sql = "SELECT m.name || '.' || c.name || ' ' || c.type || ' ' || c.\"notnull\" || ' ' \
                   || coalesce(c.dflt_value, '-') || ' ' || c.pk \
                   FROM sqlite_schema m, pragma_table_info(m.name) c WHERE m.type = 'table' ORDER BY 1";
        let mut statement = connection.prepare(sql).unwrap();
        statement.query_map((), |row| row.get(0)).unwrap().collect::<Result<_, _>>().unwrap()
    }

    /// Returns all indexes, triggers and views, each with its statement without comments and layout.
    fn statements(connection: &Connection) -> Vec<String> {
        let sql = "SELECT name, tbl_name, coalesce(sql, '-') FROM sqlite_schema WHERE type <> 'table' ORDER BY name";
        let mut statement = connection.prepare(sql).unwrap();
        let rows = statement.query_map((), |row| {
            let sql: String = row.get(2)?;
            let code = sql.lines().map(|line| line.split("--").next().unwrap_or_default());
            let words: Vec<_> = code.flat_map(str::split_whitespace).collect();
            Ok(format!("{} of {}: {}", row.get::<_, String>(0)?, row.get::<_, String>(1)?, words.join(" ")))
        });
        rows.unwrap().collect::<Result<_, _>>().unwrap()
    }

    /// A database of version 4. A single process can leave some of its rows. The other rows can be
    /// left only by two processes that use the database at the same time.
    const VERSION_4: &str = include_str!("tests/version_4.sql");

    /// Each mapped page would count as memory of the process.
    #[test]
    fn no_connection_maps_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("certdist.db");
        let first = open(&path, READER_WAIT, |_| Ok(())).unwrap();
        let [again, reader, backlog] =
            [open_again(&path, READER_WAIT), open_reader(&path), open_backlog(&path)].map(Result::unwrap);
        for connection in [first, again, reader, backlog] {
            let mapped = connection.pragma_query_value(None, "mmap_size", |row| row.get::<_, i64>(0));
            assert_eq!(mapped.unwrap(), 0);
        }
    }

    #[test]
    fn what_a_server_of_version_4_has_left_is_kept_and_abandoned() {
        let folder = tempfile::tempdir().unwrap();
        let (old, new) = (folder.path().join("old.db"), folder.path().join("new.db"));
        Connection::open(&old).unwrap().execute_batch(VERSION_4).unwrap();
        let [old, new] = [&old, &new].map(|path| open(path, READER_WAIT, |_| Ok(())).unwrap());
        assert_eq!(columns(&old), columns(&new));
        assert_eq!(statements(&old), statements(&new));
        let text = |sql: &str| old.query_row(sql, (), |row| row.get::<_, Option<String>>(0)).unwrap();
        // The device has a certificate, so the migration clears its refusal.
        assert_eq!(text("SELECT refusal FROM device_table WHERE deviceId = 'BOTH-1'"), None);
        assert_eq!(
            text("SELECT deviceSecret FROM device_table WHERE deviceId = 'BOTH-1'").unwrap(),
            "s3cret"
        );
        assert_eq!(text("SELECT refusal FROM device_table WHERE deviceId = 'REFUSED-1'").unwrap(), "odd");
        assert_eq!(
            text(
                "SELECT group_concat(deviceId || '/' || coalesce(batchId, '-') || '/' || openedAt, ' ') \
                  FROM (SELECT * FROM registration_claim WHERE owner IS NULL ORDER BY deviceId)"
            ),
            Some("OPEN-1/-/1000 OPEN-2/7/1001".into())
        );
        assert_eq!(text("SELECT batchId || '/' || applyId FROM registration_batch").unwrap(), "7/1295006");
        let refused = old.execute("UPDATE device_table SET refusal = 'x' WHERE deviceId = 'BOTH-1'", ());
        assert!(refused.unwrap_err().to_string().contains("CHECK"), "a certificate and a refusal");
        let shared = names::shared_names(&old, 9).unwrap();
        let [SharedName { device_name, devices: 2, device, .. }] = &shared[..] else { panic!("{shared:?}") };
        assert_eq!((device_name.as_str(), device.as_str()), ("twin", "TWIN-1"));
    }

    #[test]
    fn a_transaction_waits_by_trying_again_and_not_longer_than_the_busy_timeout() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("certdist.db");
        let [one, other] = [(); 2].map(|()| open(&path, READER_WAIT, |_| Ok(())).unwrap());
        let transaction = begin(&one).unwrap();
        ATTEMPTS.set(0);
        let busy = begin(&other).unwrap_err();
        assert_eq!(busy.sqlite_error_code(), Some(ErrorCode::DatabaseBusy));
        // With SQLite's own waiting, there would be only one attempt.
        assert!(ATTEMPTS.get() > 1);
        drop(transaction);
        begin(&other).unwrap().commit().unwrap();
        let wait: i64 = other.pragma_query_value(None, "busy_timeout", |row| row.get(0)).unwrap();
        assert_eq!(Duration::from_millis(wait.unsigned_abs()), READER_WAIT);
    }

    #[test]
    fn keys_of_version_9_stay_and_have_no_second_one() {
        let database = of_version(9);
        let rows = "INSERT INTO device_key VALUES ('id-1', 'SN-1', '00ff'); \
                    INSERT INTO import_before (importId, deviceId, enrollment, productKey, hadSecret, formerPsk) \
                    VALUES (7, 'SN-1', 'lamp', 'a1', 0, '11ee')";
        database.execute_batch(rows).unwrap();
        database.pragma_update(None, "user_version", 9).unwrap();
        migrate(&database, Path::new("memory"), |_| Ok(())).unwrap();
        let keys = "SELECT psk || '/' || (pskNext IS NULL) FROM device_key WHERE pskIdentity = 'id-1'";
        let former = "SELECT formerPsk || '/' || addedNext || '/' || (formerNext IS NULL) FROM import_before";
        let text = |sql: &str| database.query_row(sql, (), |row| row.get::<_, String>(0)).unwrap();
        assert_eq!((text(keys).as_str(), text(former).as_str()), ("00ff/1", "11ee/0/1"));
        let time = "UPDATE device_key SET pskUsed = 5";
        assert!(
            database.execute(time, ()).unwrap_err().to_string().contains("CHECK"),
            "without a second key"
        );
    }

    #[test]
    fn orders_of_version_9_stay_and_their_numbers_are_not_given_again() {
        const ORDER: &str = "INSERT INTO cloud_order (deviceId, work, productKey, deviceName, orderedAt, who, target) \
                             VALUES (?1, 'rotate', 'a1', 'n', 5, 'w', 'default')";
        let numbers = |kept: &[&str], ended: &[&str]| {
            let database = of_version(9);
            for device in ["SN-7", "SN-8"] {
                let row =
                    "INSERT INTO device_table (deviceId, productKey, enrollment) VALUES (?1, 'a1', 'x')";
                database.execute(row, [device]).unwrap();
            }
            for device in kept.iter().chain(ended) {
                database.execute(ORDER, [device]).unwrap();
            }
            for device in ended {
                database.execute("DELETE FROM cloud_order WHERE deviceId = ?1", [device]).unwrap();
            }
            database.pragma_update(None, "user_version", 9).unwrap();
            migrate(&database, Path::new("memory"), |_| Ok(())).unwrap();
            database.execute(ORDER, ["SN-8"]).unwrap();
            let sql = "SELECT group_concat(number || ' ' || deviceId || ' ' || work, ', ') FROM cloud_order";
            database.query_row(sql, (), |row| row.get::<_, String>(0)).unwrap()
        };
        assert_eq!(numbers(&["SN-7"], &["SN-8"]), "1 SN-7 rotate, 3 SN-8 rotate");
        assert_eq!(numbers(&[], &["SN-7", "SN-8"]), "3 SN-8 rotate");
        assert_eq!(numbers(&[], &[]), "1 SN-8 rotate");
    }

    #[test]
    fn the_numbers_of_imports_that_are_forgotten_stay_taken() {
        let database = of_version(8);
        let rows = "INSERT INTO device_table (deviceId, productKey, enrollment, importId) VALUES \
                    ('A', 'a1', 'x', 7), ('B', 'a1', 'x', -8), ('C', 'a1', 'x', 7), ('D', 'a1', 'x', NULL); \
                    INSERT INTO import (importId, at, who, file, added, changed) VALUES (9, 0, 'w', 'f', 1, 0); \
                    INSERT INTO import_unfinished (importId, at, who, file) VALUES (10, 0, 'w', 'f'); \
                    INSERT INTO import_before (importId, deviceId, former, enrollment, productKey, hadSecret) \
                    VALUES (11, 'D', -12, 'x', 'a1', 0)";
        database.execute_batch(rows).unwrap();
        database.pragma_update(None, "user_version", 8).unwrap();
        migrate(&database, Path::new("memory"), |_| Ok(())).unwrap();
        let numbers =
            "SELECT group_concat(importId, ' ') FROM (SELECT importId FROM import_number ORDER BY 1)";
        let numbers: String = database.query_row(numbers, (), |row| row.get(0)).unwrap();
        assert_eq!(numbers, "7 8 9 10 11 12");
    }

    #[test]
    fn a_database_of_version_1_becomes_what_a_new_one_is_and_keeps_its_rows() {
        let folder = tempfile::tempdir().unwrap();
        let (old, new) = (folder.path().join("old.db"), folder.path().join("new.db"));
        Connection::open(&old).unwrap().execute_batch(VERSION_1).unwrap();
        let [old, new] = [&old, &new].map(|path| open(path, READER_WAIT, |_| Ok(())).unwrap());
        assert_eq!(columns(&old), columns(&new));
        assert_eq!(statements(&old), statements(&new));
        let version: i64 = old.pragma_query_value(None, "user_version", |row| row.get(0)).unwrap();
        assert_eq!(version, VERSION as i64);
        let row = |sql| old.query_row(sql, (), |row| row.get::<_, String>(0)).unwrap();
        assert_eq!(row("SELECT enrollment FROM device_table WHERE deviceId = 'SN-1'"), "lamp");
        assert_eq!(row("SELECT deviceName FROM registration_claim WHERE owner IS NULL"), "SN-1");
    }
}
