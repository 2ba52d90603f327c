//! File of audit entries that a process could not write before it ended, because another process
//! had locked the table. The file lies beside the database. The next process that opens the table
//! writes the file's entries to it and empties the file. A lock prevents two processes from using
//! the file at the same time.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use rustix::fs::{FlockOperation, OFlags, flock};

use crate::store::audit::AuditEntry;

/// Maximum number of bytes that are read from the file: enough for a full queue of entries.
const MAX_LENGTH: u64 = 64 << 20;

/// Returns the path of the file for a database.
pub(super) fn path_of(database: &Path) -> PathBuf {
    let mut path = database.as_os_str().to_owned();
    path.push("-audit");
    path.into()
}

/// Appends entries, durably.
pub(super) fn append(database: &Path, lines: &[String]) -> io::Result<()> {
    let mut file = open(&path_of(database), true)?;
    flock(&file, FlockOperation::LockExclusive)?;
    let mut text = String::new();
    for line in lines {
        text.push_str(line);
        text.push('\n');
    }
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

/// Entries that were kept, with the file locked until they are written.
pub(super) struct Kept {
    file: File,
    pub(super) lines: Vec<String>,
    /// Number of lines that are not entries, such as one that was cut off.
    pub(super) unreadable: usize,
}

/// Reads the entries that were kept; `None` if there are none, or if another process is writing
/// them.
pub(super) fn read(database: &Path) -> io::Result<Option<Kept>> {
    let path = path_of(database);
    if path.metadata().map_or(0, |metadata| metadata.len()) == 0 {
        return Ok(None);
    }
    let mut file = open(&path, false)?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => return Ok(None),
        Err(error) => return Err(error.into()),
    }
    let mut text = Vec::new();
    Read::by_ref(&mut file).take(MAX_LENGTH).read_to_end(&mut text)?;
    let (mut lines, mut unreadable) = (Vec::new(), 0);
    for line in text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        match std::str::from_utf8(line).ok().filter(|line| serde_json::from_str::<AuditEntry>(line).is_ok()) {
            Some(line) => lines.push(line.to_owned()),
            None => unreadable += 1,
        }
    }
    Ok(Some(Kept { file, lines, unreadable }))
}

impl Kept {
    /// Empties the file, once its entries are in the table.
    pub(super) fn written(self) -> io::Result<()> {
        self.file.set_len(0)?;
        self.file.sync_all()
    }
}

/// Opens the file, but not through a symbolic link, because another user could have put it there.
fn open(path: &Path, create: bool) -> io::Result<File> {
    let flags = OFlags::NOFOLLOW | OFlags::CLOEXEC;
    OpenOptions::new()
        .read(true)
        .append(true)
        .create(create)
        .mode(0o600)
        .custom_flags(flags.bits().cast_signed())
        .open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENTRY: &str = r#"{"at":5,"event":"refused"}"#;

    #[test]
    fn what_is_kept_is_read_once() {
        let folder = tempfile::tempdir().unwrap();
        let database = folder.path().join("certdist.db");
        assert!(read(&database).unwrap().is_none());
        append(&database, &[ENTRY.into()]).unwrap();
        append(&database, &[ENTRY.into(), "{\"cut".into()]).unwrap();
        let kept = read(&database).unwrap().unwrap();
        assert_eq!((kept.lines.len(), kept.unreadable), (2, 1));
        assert!(read(&database).unwrap().is_none(), "another process has it");
        kept.written().unwrap();
        assert!(read(&database).unwrap().is_none());
    }

    #[test]
    fn a_symbolic_link_is_not_followed() {
        let folder = tempfile::tempdir().unwrap();
        let (database, other) = (folder.path().join("certdist.db"), folder.path().join("other"));
        std::fs::write(&other, "precious").unwrap();
        std::os::unix::fs::symlink(&other, path_of(&database)).unwrap();
        assert!(append(&database, &[ENTRY.into()]).is_err());
        assert_eq!(std::fs::read_to_string(&other).unwrap(), "precious");
    }
}
