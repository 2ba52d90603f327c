//! Files of an open database. Finds out whether another process that opens the same path would use
//! the files that this process has open. SQLite keeps the newest changes in the log beside the
//! database, so a removed log is as harmful as a replaced database. This module does not open the
//! files, because closing one would end SQLite's locks on it.

use std::{fs, io, os::unix::fs::MetadataExt, path::Path};

use super::look;
use crate::store::StoreError;

/// Device and inode of a file.
type Identity = (u64, u64);

/// Returns the device and the inode of a file.
pub(super) fn identity(path: &Path) -> io::Result<Identity> {
    fs::metadata(path).map(|file| (file.dev(), file.ino()))
}

/// Suffixes of the log and of its shared memory. SQLite does not replace either file while any
/// process has the database open for writing: it empties the log, but removes it only with the last
/// connection (`sqlite3WalClose`).
const LOG: [&str; 2] = ["-wal", "-shm"];

/// The files of a database that this process has open for writing.
#[derive(Debug, Clone, Copy)]
pub(super) struct Files {
    database: Identity,
    log: [Identity; 2],
}

impl Files {
    /// Identifies the files of a database to which this process has a writing connection.
    pub(super) fn of(path: &Path) -> io::Result<Self> {
        let database = identity(path)?;
        // If the path is a link, SQLite looks for the log beside the file to which the link leads.
        let real = path.canonicalize()?;
        let [log, shared_memory] = LOG.map(|ending| identity(&look::beside(&real, ending)));
        Ok(Self { database, log: [log?, shared_memory?] })
    }

    /// Fails with a message for the operator if the path no longer leads to the same files. A
    /// folder that was moved is accepted if a link at the old path leads to it.
    pub(super) fn are_at(self, path: &Path) -> Result<(), StoreError> {
        let database = match same(path, self.database) {
            Kept::Yes => None,
            Kept::Replaced => Some("was replaced with another file"),
            Kept::Removed => Some("was removed or moved"),
            Kept::Unknown => return Ok(()),
        };
        if let Some(what) = database {
            return Err(look::unusable(
                path,
                &format!(
                    "the database {what} while this process had it open; put the right file there, for example with \
                     `certdist restore`, and start certdist again"
                ),
            ));
        }
        let Ok(real) = path.canonicalize() else { return Ok(()) };
        for (ending, expected) in LOG.into_iter().zip(self.log) {
            let file = look::beside(&real, ending);
            let what = match same(&file, expected) {
                Kept::Yes | Kept::Unknown => continue,
                // The next process that opens the database creates a new log if the log was
                // removed. So a different log may also mean that the former log was removed.
                Kept::Replaced => "was removed or replaced",
                Kept::Removed => "was removed, or the database was moved without it,",
            };
            return Err(lost_log(path, &file, what));
        }
        Ok(())
    }
}

/// State of a file since it was opened.
enum Kept {
    Yes,
    Replaced,
    Removed,
    /// The system cannot tell whether the file is still the same.
    Unknown,
}

fn same(path: &Path, expected: Identity) -> Kept {
    match identity(path) {
        Ok(found) if found == expected => Kept::Yes,
        Ok(_) => Kept::Replaced,
        Err(error) if error.kind() == io::ErrorKind::NotFound => Kept::Removed,
        Err(error) => {
            tracing::debug!(path = %path.display(), %error, "could not look for a file of the database");
            Kept::Unknown
        }
    }
}

fn lost_log(path: &Path, file: &Path, what: &str) -> StoreError {
    // The shared memory contains no changes of the database. But if it is lost, processes no longer
    // see each other's locks.
    let loses = match file.as_os_str().as_encoded_bytes().ends_with(b"-shm") {
        true => "changes that other processes have made since may contradict its own",
        false => "the newest changes are in the former file, and are lost with it",
    };
    look::unusable(
        file,
        &format!(
            "this file {what} while this process had the database {} open, so {loses}; move the files back if they \
             still exist, start certdist again, and check the database with `certdist audit verify`; `certdist restore` brings \
             back a backup",
            path.display()
        ),
    )
}
