//! Files that commands write. Such a file is private, never has its final name before it is
//! complete, and is never written through another user's link. A file is written under a random
//! name in the folder of its final name, and renamed when it is complete. If the command fails or
//! is interrupted by a signal, the incomplete file is removed. This module does not know what the
//! files contain.

use std::{
    ffi::OsString,
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::{Mutex, Once, PoisonError},
    thread,
};

use rustix::fs::{CWD, FlockOperation, OFlags, RenameFlags, flock, renameat_with};
use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGTERM},
    iterator::Signals,
    low_level::emulate_default_handler,
};

use crate::random::random;

/// Ending of the names of incomplete files, after a random number.
const ENDING: &str = ".part";
/// Number of hex digits of the random number.
const DIGITS: usize = 16;

/// Incomplete files of this process. They are removed when a signal ends the process.
static INCOMPLETE: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

/// A new file (mode 0600), which is removed when dropped unless it was completed.
pub struct NewFile {
    path: PathBuf,
    to: PathBuf,
    file: File,
    /// Set if the file replaces another file that has the final name.
    replaces: bool,
    /// Files that a library makes beside the incomplete file.
    companions: Vec<PathBuf>,
}

impl NewFile {
    /// Begins a file that will be called `to`. Fails with [`io::ErrorKind::AlreadyExists`] if a
    /// file with this name exists. Removes incomplete files of the same name that killed commands
    /// have left behind.
    pub fn create(to: &Path) -> io::Result<Self> {
        // A link with the name `to` counts as an existing file, even if it leads to a file that
        // does not exist.
        match to.symlink_metadata() {
            Ok(_) => {
                let reason = "it exists already; choose another name, or remove it";
                Err(io::Error::new(io::ErrorKind::AlreadyExists, reason))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Self::begin(to, false),
            Err(error) => Err(error),
        }
    }

    /// Begins a file that will be called `to`, and will replace an existing file with this name.
    pub fn replacing(to: &Path) -> io::Result<Self> {
        Self::begin(to, true)
    }

    fn begin(to: &Path, replaces: bool) -> io::Result<Self> {
        let name = to.file_name().ok_or(io::ErrorKind::InvalidInput)?;
        remove_signalled();
        remove_left_behind(to);
        let number = random().map_err(io::Error::other)?;
        let mut part = name.to_owned();
        part.push(format!(".{}{ENDING}", hex::encode(&number[..DIGITS / 2])));
        let path = folder(to).join(part);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .custom_flags((OFlags::NOFOLLOW | OFlags::CLOEXEC).bits().cast_signed())
            .open(&path)?;
        // The lock tells other commands that this command is still running, so that they do not
        // remove its file.
        flock(&file, FlockOperation::NonBlockingLockExclusive)?;
        incomplete().push(path.clone());
        Ok(Self { path, to: to.to_owned(), file, replaces, companions: Vec::new() })
    }

    /// Also removes files that a library makes beside the incomplete file. The name of such a file
    /// is the name of the incomplete file with one of these endings.
    pub fn with_companions(mut self, endings: &[&str]) -> Self {
        for ending in endings {
            let mut path = self.path.clone().into_os_string();
            path.push(ending);
            self.companions.push(path.into());
        }
        incomplete().extend(self.companions.iter().cloned());
        self
    }

    /// Returns the incomplete file.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Returns the path of the incomplete file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Gives the file its final name, durably.
    pub fn complete(self) -> io::Result<()> {
        self.file.sync_all()?;
        if self.replaces {
            fs::rename(&self.path, &self.to)?;
        } else {
            rename_to_new(&self.path, &self.to)?;
        }
        File::open(folder(&self.to))?.sync_all()
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        // This removes only the name of the incomplete file, if that name still exists. A completed
        // file keeps its final name.
        for path in self.companions.iter().chain([&self.path]) {
            let _ = fs::remove_file(path);
        }
        incomplete().retain(|path| *path != self.path && !self.companions.contains(path));
    }
}

fn incomplete() -> std::sync::MutexGuard<'static, Vec<PathBuf>> {
    INCOMPLETE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn folder(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Renames a file. Fails if the new name is taken.
fn rename_to_new(from: &Path, to: &Path) -> io::Result<()> {
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        // A file system without this kind of rename has hard links, and making a hard link also
        // fails if the name is taken.
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) => fs::hard_link(from, to),
        renamed => Ok(renamed?),
    }
}

/// Starts a thread that removes incomplete files when a signal ends the process. Only the first
/// call starts it.
fn remove_signalled() {
    static STARTED: Once = Once::new();
    STARTED.call_once(|| {
        // If the signals cannot be caught, the files of an interrupted command stay until the next
        // command removes them.
        let Ok(mut signals) = Signals::new([SIGINT, SIGTERM, SIGHUP]) else { return };
        let wait = move || {
            for signal in signals.forever() {
                for path in incomplete().iter() {
                    let _ = fs::remove_file(path);
                }
                let _ = emulate_default_handler(signal);
            }
        };
        let _ = thread::Builder::new().name("signals".into()).spawn(wait);
    });
}

/// Removes incomplete files with the final name `to` if their commands have ended, together with
/// the files that SQLite makes beside them.
pub fn remove_left_behind(to: &Path) {
    let mut prefix = to.file_name().unwrap_or_default().to_owned();
    prefix.push(".");
    let is_incomplete = |name: &OsString| {
        let name = name.as_encoded_bytes();
        let digits = name.strip_prefix(prefix.as_encoded_bytes());
        let digits = digits.and_then(|rest| rest.strip_suffix(ENDING.as_bytes()));
        digits.is_some_and(|digits| digits.len() == DIGITS && digits.iter().all(u8::is_ascii_hexdigit))
    };
    let Ok(entries) = fs::read_dir(folder(to)) else { return };
    for entry in entries.flatten().filter(|entry| is_incomplete(&entry.file_name())) {
        let mut options = OpenOptions::new();
        options.read(true).custom_flags((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed());
        if let Ok(file) = options.open(entry.path())
            && flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok()
        {
            for ending in ["-journal", "-wal", "-shm"] {
                let mut companion = entry.path().into_os_string();
                companion.push(ending);
                let _ = fs::remove_file(companion);
            }
            let _ = fs::remove_file(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{io::Write, os::unix::fs::PermissionsExt};

    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn a_file_has_its_name_only_when_it_is_complete() {
        let folder = tempfile::tempdir().unwrap();
        let to = folder.path().join("export.csv");
        let new = NewFile::create(&to).unwrap();
        new.file().write_all(b"half").unwrap();
        assert!(!to.exists() && names(folder.path()).len() == 1);
        drop(new);
        assert!(names(folder.path()).is_empty());
        let new = NewFile::create(&to).unwrap();
        new.file().write_all(b"whole").unwrap();
        assert_eq!(new.file().metadata().unwrap().permissions().mode() & 0o777, 0o600);
        new.complete().unwrap();
        assert_eq!(names(folder.path()), ["export.csv"]);
        assert_eq!(fs::read_to_string(&to).unwrap(), "whole");
    }

    #[test]
    fn a_name_that_is_taken_is_left_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let to = folder.path().join("key");
        fs::write(&to, "precious").unwrap();
        assert_eq!(NewFile::create(&to).map(drop).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        // Another program takes the name while the file is being written.
        let late = folder.path().join("late");
        let new = NewFile::create(&late).unwrap();
        fs::write(&late, "precious").unwrap();
        assert_eq!(new.complete().unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        // This link leads to a file that does not exist.
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(folder.path().join("elsewhere"), &link).unwrap();
        assert_eq!(NewFile::create(&link).map(drop).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(names(folder.path()), ["key", "late", "link"]);
        for name in ["key", "late"] {
            assert_eq!(fs::read_to_string(folder.path().join(name)).unwrap(), "precious");
        }
        NewFile::replacing(&to).unwrap().complete().unwrap();
        assert_eq!(fs::read_to_string(&to).unwrap(), "");
    }

    #[test]
    fn what_killed_commands_have_left_behind_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let to = folder.path().join("backup.db");
        fs::write(folder.path().join("backup.db.0123456789abcdef.part"), "left").unwrap();
        fs::write(folder.path().join("backup.db.0123456789abcdef.part-wal"), "left").unwrap();
        fs::write(folder.path().join("backup.db.mine.part"), "precious").unwrap();
        let living = NewFile::create(&to).unwrap();
        let other = NewFile::create(&to).unwrap();
        assert_eq!(names(folder.path()).len(), 3, "the living one's stays");
        drop((living, other));
        assert_eq!(names(folder.path()), ["backup.db.mine.part"]);
    }
}
