//! Lock file of a database. All processes that may write to the database share the lock, even if
//! the database is damaged, moved or replaced while they run. A restore takes the lock exclusively.
//! The system releases a lock when its process ends, even if the process is killed. A lock file
//! with content shows that there was a database, so that no process creates an empty database in
//! its place. A process also locks one byte of the file. The position of the byte shows the
//! database key under which the process seals. So no process seals secrets under a database key
//! that a running server does not have. Other programs set only SQLite's own locks, which this
//! module reads without SQLite.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use nix::{
    fcntl::{FcntlArg, fcntl},
    libc,
};
use rustix::{
    fs::{FlockOperation, OFlags, flock},
    io::Errno,
    process::{Flock, FlockType, fcntl_getlk},
};

use super::{connection, look};
use crate::store::StoreError;

/// Byte ranges (start and length) of the locks that SQLite sets: in the database, from
/// `PENDING_BYTE` on, and in the shared memory beside the database.
const DATABASE_LOCKS: (u64, u64) = (0x4000_0000, 512);
const SHARED_MEMORY_LOCKS: (u64, u64) = (120, 9);

/// Number of bytes of a lock file that stand for database keys. The first byte stands for no key,
/// and each other byte for one key ID. A process locks the byte of the database key under which it
/// seals, even if the byte lies after the end of the file.
const KEYS: u64 = 1 + (1 << 32);

/// Maximum number of attempts to open a lock file. An attempt fails if another process removes the
/// file.
const MAX_TRIES: usize = 16;

/// Pause between two attempts to take the lock of imports.
const LOCK_PAUSE: Duration = Duration::from_millis(50);

/// Content of a lock file once the database exists.
const MARK: &[u8] = b"certdist has the database beside this file open, or was killed\n";

/// A lock that is held until it is dropped.
#[derive(Debug)]
pub struct Lock {
    file: File,
    path: PathBuf,
    database: PathBuf,
}

/// Returns the path of the lock file. Resolves links to the database first, so that all paths to a
/// database lead to the same lock.
pub(super) fn path_of(database: &Path) -> PathBuf {
    path_with(database, "-lock")
}

fn path_with(database: &Path, ending: &str) -> PathBuf {
    let file = database.canonicalize();
    look::beside(file.as_deref().unwrap_or(database), ending)
}

/// Locks a lock file, and creates it if necessary. Returns `None` if another process holds a lock
/// that excludes the requested lock.
fn attempt(database: &Path, path: &Path, how: FlockOperation) -> io::Result<Option<File>> {
    for _ in 0..MAX_TRIES {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        options.custom_flags((OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK).bits().cast_signed());
        let file = options.open(path)?;
        if !file.metadata()?.is_file() {
            return Err(io::Error::other("this is not a regular file"));
        }
        match flock(&file, how) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => return Ok(None),
            Err(error) => return Err(error.into()),
        }
        // The last process that uses a lock file removes it, so this file may already be removed.
        if fs::metadata(path).is_ok_and(|found| is_same(&found, &file)) {
            let owner = if database.exists() { database } else { path };
            connection::give_to_owner(&file, owner);
            return Ok(Some(file));
        }
    }
    Err(io::Error::other("other processes remove the lock file again and again"))
}

/// Fails if there is no database at a path, but a lock file shows that there was one. After this
/// error, the caller must not create a database there.
pub(super) fn was_not_lost(database: &Path) -> Result<(), StoreError> {
    let path = path_of(database);
    let has_content = fs::symlink_metadata(&path).is_ok_and(|file| file.is_file() && file.len() > 0);
    if has_content && is_missing(database) { Err(lost(database, &path)) } else { Ok(()) }
}

fn is_missing(database: &Path) -> bool {
    fs::metadata(database).map_or(true, |database| database.len() == 0)
}

fn lost(database: &Path, lock: &Path) -> StoreError {
    let lock = lock.display();
    let reason = format!(
        "there is no database, but there was one when {lock} was made; restore a backup with `certdist restore`, or \
         remove that file to begin with an empty database"
    );
    look::unusable(database, &reason)
}

fn is_same(found: &fs::Metadata, file: &File) -> bool {
    file.metadata().is_ok_and(|file| (file.dev(), file.ino()) == (found.dev(), found.ino()))
}

impl Lock {
    fn attempt(database: &Path, how: FlockOperation) -> io::Result<Option<Self>> {
        let path = path_of(database);
        let file = attempt(database, &path, how)?;
        Ok(file.map(|file| Self { file, path, database: database.to_owned() }))
    }

    /// Shares the lock with other processes that may write. Fails while a database is being
    /// restored. Returns the system's error if the lock file cannot be used.
    pub(super) fn share(database: &Path) -> Result<io::Result<Self>, StoreError> {
        match Self::attempt(database, FlockOperation::NonBlockingLockShared) {
            Ok(Some(lock)) if lock.has_lost_database() => Err(lost(database, &lock.path)),
            Ok(Some(lock)) => Ok(Ok(lock)),
            Ok(None) => Err(StoreError::Busy(format!(
                "{}: it is being restored or copied; try again later",
                database.display()
            ))),
            Err(error) => Ok(Err(error)),
        }
    }

    /// Marks the lock file, so that it shows that there is a database.
    pub(super) fn note_database(&self) {
        if self.file.metadata().is_ok_and(|file| file.len() == 0)
            && let Err(error) = (&self.file).write_all(MARK)
        {
            tracing::debug!(path = %self.path.display(), %error, "could not write the lock file");
        }
    }

    /// Locks the byte of the database key under which this process seals, so that other processes
    /// see which key it is. The system releases the byte when the process ends, or when the process
    /// closes another handle of the lock file.
    pub(super) fn show_key(&self, key: Option<&str>) -> io::Result<()> {
        let byte = byte_of(key);
        // The new byte is locked before the old byte is unlocked, so that this process always shows
        // a database key.
        self.lock_bytes(libc::F_RDLCK, byte, 1)?;
        self.lock_bytes(libc::F_UNLCK, 0, byte)?;
        self.lock_bytes(libc::F_UNLCK, byte + 1, KEYS - byte - 1)
    }

    fn lock_bytes(&self, how: libc::c_int, start: u64, length: u64) -> io::Result<()> {
        // The system would interpret a length of 0 as the rest of the file.
        if length == 0 {
            return Ok(());
        }
        let lock = libc::flock {
            l_type: how as libc::c_short,
            l_whence: libc::SEEK_SET as libc::c_short,
            l_start: start.cast_signed(),
            l_len: length.cast_signed(),
            l_pid: 0,
        };
        fcntl(&self.file, FcntlArg::F_SETLK(&lock))?;
        Ok(())
    }

    /// Returns the name of another process that shows a database key other than `key`, or no
    /// database key.
    pub(super) fn who_lacks(&self, key: &str) -> Option<String> {
        let byte = byte_of(Some(key));
        let others = [(0, byte), (byte + 1, KEYS - byte - 1)];
        others.into_iter().filter(|(_, length)| *length > 0).find_map(|range| locked_by(&self.file, range))
    }

    /// Returns whether there was a database that no longer exists.
    fn has_lost_database(&self) -> bool {
        self.file.metadata().is_ok_and(|file| file.len() > 0) && is_missing(&self.database)
    }

    /// Takes the lock exclusively. Fails if another process has the database open, even if the open
    /// file has been moved or replaced.
    pub fn alone(database: &Path) -> Result<Self, StoreError> {
        let advice =
            "stop the server first, for example with `systemctl stop certdist`; --force does not change this";
        Self::exclusive(database, advice)
    }

    /// Takes the lock like [`alone`](Self::alone). `advice` says what to do if another process has the
    /// database open.
    pub(super) fn exclusive(database: &Path, advice: &str) -> Result<Self, StoreError> {
        let in_use = |who: &str| look::unusable(database, &format!("it is in use by {who}; {advice}"));
        let failed =
            |error: io::Error| StoreError::Failed(format!("{}: {error}", path_of(database).display()));
        match Self::attempt(database, FlockOperation::NonBlockingLockExclusive).map_err(failed)? {
            Some(lock) => match Self::holder(database) {
                Some(who) => Err(in_use(&who)),
                None => Ok(lock),
            },
            None => Err(in_use(Self::holder(database).as_deref().unwrap_or("another process"))),
        }
    }

    /// Removes the database, which no process uses. Empties the lock file first, so that the
    /// removed database does not count as lost.
    pub(super) fn remove_database(self) -> io::Result<()> {
        self.file.set_len(0)?;
        fs::remove_file(&self.database)
    }

    /// Returns the name of another process that has set one of SQLite's locks on the files of a
    /// database. The calling process must have no connection to the database: this function closes
    /// the files, and closing a file would end the connection's locks.
    pub fn holder(database: &Path) -> Option<String> {
        let files = [("", DATABASE_LOCKS), ("-shm", SHARED_MEMORY_LOCKS)];
        let file = database.canonicalize().ok()?;
        files.into_iter().find_map(|(ending, (start, length))| {
            let file = File::open(look::beside(&file, ending)).ok()?;
            locked_by(&file, (start, length))
        })
    }
}

/// Returns the name of another process that has locked any byte in a range (start and length).
fn locked_by(file: &File, (start, length): (u64, u64)) -> Option<String> {
    let wanted = Flock { start, length, ..FlockType::WriteLock.into() };
    let found = fcntl_getlk(file, &wanted).ok()??;
    // The system gives no process ID for a process in another container.
    let process = found.pid.map(|pid| format!("process {}", pid.as_raw_nonzero()));
    Some(process.unwrap_or_else(|| "another process".into()))
}

/// Returns the position of the byte that stands for the ID of a database key, or for no key.
fn byte_of(key: Option<&str>) -> u64 {
    key.and_then(|key| u32::from_str_radix(key, 16).ok()).map_or(0, |id| 1 + u64::from(id))
}

/// Lock of imports, which only one import at a time has. The lock is a separate file beside the
/// database. If the process of an import is killed, the system releases the lock.
#[derive(Debug)]
pub(super) struct ImportLock {
    file: File,
    path: PathBuf,
}

impl ImportLock {
    /// Takes the lock, unless another import has it.
    pub(super) fn attempt(database: &Path) -> Result<Option<Self>, StoreError> {
        let path = path_with(database, "-import");
        let failed = |error: io::Error| {
            let path = path.display();
            StoreError::Failed(format!("{path}: this lock file of imports could not be used: {error}"))
        };
        let file = attempt(database, &path, FlockOperation::NonBlockingLockExclusive).map_err(failed)?;
        Ok(file.map(|file| Self { file, path }))
    }

    /// Waits for the lock, at most for `wait`.
    pub(super) fn wait(database: &Path, wait: Duration) -> Result<Self, StoreError> {
        let deadline = Instant::now() + wait;
        loop {
            match Self::attempt(database)? {
                Some(lock) => return Ok(lock),
                None if Instant::now() < deadline => thread::sleep(LOCK_PAUSE),
                None => {
                    let database = database.display();
                    let reason = format!(
                        "{database}: another import or undo, or `database seal`, is running; try again when it has ended"
                    );
                    return Err(StoreError::Busy(reason));
                }
            }
        }
    }
}

impl Drop for ImportLock {
    fn drop(&mut self) {
        // The file is removed while it is locked. A process that has just opened the file notices
        // the removal.
        if fs::metadata(&self.path).is_ok_and(|found| is_same(&found, &self.file)) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // The file is removed only if no other process shares the lock. A process that has just
        // opened the file notices the removal.
        if !self.has_lost_database()
            && flock(&self.file, FlockOperation::NonBlockingLockExclusive).is_ok()
            && fs::metadata(&self.path).is_ok_and(|found| is_same(&found, &self.file))
        {
            let _ = fs::remove_file(&self.path);
        }
    }
}
