//! Files of the outbox: their names, their locks, and the form of their lines. A file belongs to
//! the process that has locked it. The system releases the lock when the process ends, even if the
//! process is killed.

use std::{
    ffi::{OsStr, OsString},
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use rustix::fs::{FlockOperation, OFlags, flock};
use serde::de::IgnoredAny;

use crate::store::{audit::AuditEntry, claim::new_id, sqlite::connection};

/// Maximum number of files that one search returns. The next search returns the rest.
const MAX_FOUND: usize = 64;

/// Maximum number of files that one export reads without moving their entries.
const MAX_READ: usize = 1024;

/// Maximum number of names that are tried for a new file. An attempt fails only if another process
/// finds the new file before this process has locked it.
const MAX_NAMES: usize = 16;

/// Lines read from a file.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Chunk {
    /// The entries, without the line ends.
    pub(super) lines: Vec<String>,
    /// Number of bytes that were read, including those of unreadable lines.
    pub(super) length: u64,
    /// Number of lines that are not entries, such as one that was cut off.
    pub(super) unreadable: u64,
    /// Set if the file may have further lines.
    pub(super) has_more: bool,
}

/// A file of this process, or one that another process has left behind. The file is locked until
/// this value is dropped, unless [`readable`] has opened it.
pub(super) struct OutboxFile {
    file: File,
    path: PathBuf,
    name: String,
}

/// Number of hex digits at the end of a file's name.
const DIGITS: usize = 16;

/// Returns the prefix of the names of all outbox files of a database.
fn prefix(database: &Path) -> OsString {
    let mut prefix = database.file_name().unwrap_or_default().to_owned();
    prefix.push("-audit-");
    prefix
}

/// Returns whether a name has exactly the form of the names that [`OutboxFile::create`] makes. An
/// operator's own files may have similar names.
fn is_name(prefix: &OsStr, name: &OsStr) -> bool {
    let digits = name.as_encoded_bytes().strip_prefix(prefix.as_encoded_bytes());
    let is_digit = |byte: &u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    digits.is_some_and(|digits| digits.len() == DIGITS && digits.iter().all(is_digit))
}

fn folder(database: &Path) -> &Path {
    database.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Returns options that open a file, but do not follow a symbolic link, because another user could
/// have put the link there.
fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).append(true).mode(0o600);
    options.custom_flags((OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK).bits().cast_signed());
    options
}

/// Locks a file. Returns false if another process has locked or removed the file.
fn locked(file: &File) -> io::Result<bool> {
    match flock(file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file.metadata()?.nlink() > 0),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Opens and returns the files that processes have left behind. Also returns the first error for a
/// file that cannot be opened.
pub(super) fn left_behind(database: &Path) -> io::Result<(Vec<OutboxFile>, Option<io::Error>)> {
    let (prefix, mut found, mut failed) = (prefix(database), Vec::new(), None);
    for entry in fs::read_dir(folder(database))? {
        let entry = entry?;
        let name = entry.file_name();
        if !is_name(&prefix, &name) || !entry.file_type()?.is_file() {
            continue;
        }
        if found.len() == MAX_FOUND {
            break;
        }
        match options().open(entry.path()).and_then(|file| Ok((locked(&file)?, file))) {
            Ok((true, file)) => {
                found.push(OutboxFile { file, path: entry.path(), name: name.to_string_lossy().into_owned() })
            }
            Ok((false, _)) => {}
            // Another process has moved the entries and removed the file.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => failed = failed.or(Some(error)),
        }
    }
    Ok((found, failed))
}

/// Returns the files that processes have left behind, opened for reading only and not locked. If a
/// file cannot be read, the error names its path.
pub(super) fn readable(database: &Path) -> io::Result<Vec<OutboxFile>> {
    let (prefix, mut found) = (prefix(database), Vec::new());
    for entry in fs::read_dir(folder(database))? {
        let entry = entry?;
        let (name, path) = (entry.file_name(), entry.path());
        if !is_name(&prefix, &name) || !entry.file_type()?.is_file() {
            continue;
        }
        if found.len() == MAX_READ {
            break;
        }
        let mut options = OpenOptions::new();
        let flags = OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        match options.read(true).custom_flags(flags.bits().cast_signed()).open(&path) {
            Ok(file) => {
                // A file that cannot be locked belongs to a living process, which soon moves the
                // entries into the log itself.
                if flock(&file, FlockOperation::NonBlockingLockShared).is_ok() {
                    flock(&file, FlockOperation::Unlock)?;
                    found.push(OutboxFile { file, path, name: name.to_string_lossy().into_owned() });
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(io::Error::new(error.kind(), format!("{}: {error}", path.display()))),
        }
    }
    Ok(found)
}

/// Returns whether a file exists. Returns true if the system cannot tell.
pub(super) fn exists(database: &Path, name: &str) -> bool {
    folder(database).join(name).try_exists().unwrap_or(true)
}

impl OutboxFile {
    /// Creates a file (mode 0600) for this process.
    pub(super) fn create(database: &Path) -> io::Result<Self> {
        for _ in 0..MAX_NAMES {
            let mut name = prefix(database);
            name.push(format!("{:0DIGITS$x}", new_id().map_err(io::Error::other)?));
            let path = folder(database).join(&name);
            let file = options().create_new(true).open(&path)?;
            connection::give_to_folders_owner(&file, &path);
            if locked(&file)? {
                let name = name.to_string_lossy().into_owned();
                return Ok(Self { file, path, name });
            }
        }
        Err(io::Error::other("another process takes each new file of the outbox"))
    }

    /// Returns the name by which the table `audit_outbox` knows the file.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Returns whether the file was removed. A file is removed only after all its entries have been
    /// moved.
    pub(super) fn is_removed(&self) -> io::Result<bool> {
        Ok(self.file.metadata()?.nlink() == 0)
    }

    /// Returns the file's length in bytes.
    pub(super) fn length(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    /// Appends lines, or only the first bytes of them. Returns the number of bytes appended.
    pub(super) fn append(&self, lines: &[u8]) -> io::Result<usize> {
        loop {
            match (&self.file).write(lines) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                written => return written,
            }
        }
    }

    /// Reads whole lines from a position, up to about `max` bytes. If the file was left behind
    /// (`is_left`), bytes after the last line end count as an unreadable line. Otherwise, these
    /// bytes are not read yet, because a thread may still complete the line.
    pub(super) fn read(&self, from: u64, max: usize, is_left: bool) -> io::Result<Chunk> {
        let mut bytes = vec![0; max];
        let mut filled = 0;
        while filled < max {
            match self.file.read_at(&mut bytes[filled..], from + filled as u64) {
                Ok(0) => break,
                Ok(read) => filled += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        let bytes = &bytes[..filled];
        let whole = match bytes.iter().rposition(|byte| *byte == b'\n') {
            Some(end) => end + 1,
            None if filled == max => filled,
            None => 0,
        };
        let whole = if is_left && filled < max { filled } else { whole };
        let mut chunk = Chunk { length: whole as u64, has_more: filled == max, ..Chunk::default() };
        // A line may be cut off. In a file of this process, complete JSON counts as an entry,
        // because this process writes only entries. In a file that was left behind, the line must
        // have all parts of an entry.
        let is_whole = |line: &str| match is_left {
            true => serde_json::from_str::<AuditEntry>(line).is_ok(),
            false => serde_json::from_str::<IgnoredAny>(line).is_ok(),
        };
        let is_entry = |line: &&str| line.starts_with('{') && is_whole(line);
        for line in bytes[..whole].split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            match std::str::from_utf8(line).ok().filter(is_entry) {
                Some(line) => chunk.lines.push(line.to_owned()),
                None => chunk.unreadable += 1,
            }
        }
        Ok(chunk)
    }

    /// Removes the file.
    pub(super) fn remove(&self) -> io::Result<()> {
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENTRY: &str = r#"{"at":5,"event":"refused"}"#;

    fn database() -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let database = folder.path().join("certdist.db");
        (folder, database)
    }

    fn lines(number: usize) -> Vec<u8> {
        format!("{ENTRY}\n").repeat(number).into_bytes()
    }

    #[test]
    fn a_file_is_left_behind_once_its_process_has_ended() {
        let (_folder, database) = database();
        let file = OutboxFile::create(&database).unwrap();
        file.append(&lines(2)).unwrap();
        assert!(left_behind(&database).unwrap().0.is_empty(), "its process is alive");
        let name = file.name().to_owned();
        drop(file);
        let (found, failed) = left_behind(&database).unwrap();
        assert!(failed.is_none());
        assert_eq!(found.iter().map(OutboxFile::name).collect::<Vec<_>>(), [&name]);
        assert!(left_behind(&database).unwrap().0.is_empty(), "another process has it");
        found[0].remove().unwrap();
        assert!(!locked(&found[0].file).unwrap(), "a file that was removed is of no use");
        drop(found);
        assert!(left_behind(&database).unwrap().0.is_empty());
    }

    #[test]
    fn whole_lines_are_read_and_the_rest_waits() {
        let (_folder, database) = database();
        let file = OutboxFile::create(&database).unwrap();
        let length = lines(1).len() as u64;
        assert_eq!(file.read(0, 1000, false).unwrap(), Chunk::default());
        file.append(&lines(3)).unwrap();
        file.append(&lines(1)[..7]).unwrap();
        let chunk = file.read(0, 1000, false).unwrap();
        assert_eq!((chunk.lines.len(), chunk.length, chunk.has_more), (3, 3 * length, false));
        let part = file.read(length, 2 * length as usize - 1, false).unwrap();
        assert_eq!((part.lines.len(), part.length, part.has_more), (1, length, true));
        file.append(&lines(1)[7..]).unwrap();
        assert_eq!(file.read(3 * length, 1000, false).unwrap().lines, [ENTRY]);
    }

    #[test]
    fn what_a_power_failure_leaves_is_counted_and_passed_over() {
        let (_folder, database) = database();
        let file = OutboxFile::create(&database).unwrap();
        let bytes = [
            &lines(1)[..],
            b"[5,\"refused\"]\n",
            &[0; 40],
            b"\n",
            &lines(1),
            b"\xff\n{\"at\":5}\n",
            &lines(1)[..9],
        ]
        .concat();
        file.append(&bytes).unwrap();
        drop(file);
        let left = left_behind(&database).unwrap().0.pop().unwrap();
        let chunk = left.read(0, 1000, true).unwrap();
        assert_eq!((chunk.lines.len(), chunk.unreadable, chunk.length), (2, 5, bytes.len() as u64));
        // A line that is longer than a chunk does not stop the reader.
        let long = left.read(1, 10, true).unwrap();
        assert_eq!((long.length, long.unreadable, long.has_more), (10, 1, true));
    }

    #[test]
    fn an_operators_files_with_similar_names_are_left_alone() {
        let (folder, database) = database();
        for name in [
            "-audit",
            "-audit-test.db",
            "-audit-2026-11.txt",
            "-audited",
            "-audit-0123456789ABCDEF",
            "-audit-0123456789abcdef0",
        ] {
            fs::write(folder.path().join(format!("certdist.db{name}")), "precious").unwrap();
        }
        assert!(left_behind(&database).unwrap().0.is_empty());
    }

    #[test]
    fn a_symbolic_link_is_neither_followed_nor_removed() {
        let (folder, database) = database();
        let other = folder.path().join("other");
        fs::write(&other, "precious").unwrap();
        std::os::unix::fs::symlink(&other, folder.path().join("certdist.db-audit-0000000000000001")).unwrap();
        fs::create_dir(folder.path().join("certdist.db-audit-0000000000000002")).unwrap();
        assert!(left_behind(&database).unwrap().0.is_empty());
        assert_eq!(fs::read_to_string(&other).unwrap(), "precious");
    }
}
