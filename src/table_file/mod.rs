//! The device table as a CSV file. Import checks the whole file and reports every bad line before
//! it changes anything; export writes what import reads. This module defines the columns and their
//! rules; the store decides which values in the table may be replaced.

mod encoding;
mod export;
mod header;
mod lines;
mod remarks;
mod rows;
mod values;

#[cfg(test)]
mod tests;

use std::{
    cell::Cell,
    fmt,
    fs::File,
    io,
    path::{Path, PathBuf},
};

pub use self::{
    export::{ExportError, Form, TABLESTORE_COLUMNS, export_as, export_file},
    rows::{ReadError, Rows, read},
};
use crate::{
    psk::EnrollmentOutline,
    store::{Actor, Bulk, ImportError, ImportJob, ImportReport, Rejection, StoreError, Unreadable},
};

/// Names of the columns, in the order of an export.
pub const COLUMNS: [&str; 8] =
    ["deviceId", "enrollment", "productKey", "deviceName", "deviceSecret", "iotId", "pskIdentity", "psk"];

/// Maximum number of bad lines that are listed; more would not help to understand the file.
const MAX_LISTED: usize = 1000;

/// Number of lines between two calls of an import's `progress`.
const PROGRESS_EVERY: u64 = 1000;

/// The enrollments of the configuration, and the default for rows that name none.
#[derive(Debug, Clone)]
pub struct Enrollments {
    known: Vec<EnrollmentOutline>,
    default: Option<usize>,
}

/// Error for a name that no enrollment has. The message lists the known enrollments.
#[derive(Debug, Clone, thiserror::Error)]
#[error("unknown enrollment \"{name}\"; {enrollments}")]
pub struct UnknownEnrollment {
    name: String,
    enrollments: Enrollments,
}

impl Enrollments {
    /// Creates the list of enrollments. A single enrollment is the default; with several, there
    /// is no default.
    pub fn new(known: impl IntoIterator<Item = EnrollmentOutline>) -> Self {
        let known: Vec<_> = known.into_iter().collect();
        let default = (known.len() == 1).then_some(0);
        Self { known, default }
    }

    /// Makes the enrollment of this name the default.
    pub fn with_default(mut self, name: &str) -> Result<Self, UnknownEnrollment> {
        match self.known.iter().position(|enrollment| enrollment.name == name) {
            Some(index) => self.default = Some(index),
            None => return Err(UnknownEnrollment { name: name.to_owned(), enrollments: self }),
        }
        Ok(self)
    }

    fn named(&self, name: &str) -> Option<&EnrollmentOutline> {
        self.known.iter().find(|enrollment| enrollment.name == name)
    }

    /// Returns a name that differs from this one only in the case of letters.
    fn similar(&self, name: &str) -> Option<&str> {
        let mut names = self.known.iter().map(|enrollment| enrollment.name.as_str());
        names.find(|known| known.eq_ignore_ascii_case(name))
    }

    /// Returns the enrollment whose devices share this PSK identity.
    fn sharing(&self, identity: &str) -> Option<&EnrollmentOutline> {
        self.known.iter().find(|enrollment| enrollment.shared_identity.as_deref() == Some(identity))
    }

    fn default(&self) -> Option<&EnrollmentOutline> {
        self.known.get(self.default?)
    }
}

impl fmt::Display for Enrollments {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.known.is_empty() {
            return f.write_str("no enrollment is configured");
        }
        f.write_str("configured: ")?;
        for (index, enrollment) in self.known.iter().enumerate() {
            let separator = if index == 0 { "" } else { ", " };
            write!(f, "{separator}\"{}\"", enrollment.name)?;
        }
        Ok(())
    }
}

/// An error in a line of the file. Never holds a key or a device secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LineError {
    /// Line number from 1, as in an editor.
    pub line: u64,
    /// One of [`COLUMNS`]; `None` if the whole line is wrong.
    pub column: Option<&'static str>,
    /// Error, and what is expected.
    pub reason: String,
}

impl fmt::Display for LineError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.column {
            Some(column) => write!(f, "line {}, column {column}: {}", self.line, self.reason),
            None => write!(f, "line {}: {}", self.line, self.reason),
        }
    }
}

/// Bad lines in the file's order: the first 1,000, and the number of further ones.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BadLines {
    /// The first bad lines.
    pub listed: Vec<LineError>,
    /// Number of further bad lines.
    pub more: u64,
}

impl BadLines {
    fn push(&mut self, error: LineError) {
        if self.listed.len() < MAX_LISTED {
            self.listed.push(error);
        } else {
            self.more += 1;
        }
    }
}

impl fmt::Display for BadLines {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, error) in self.listed.iter().enumerate() {
            let separator = if index == 0 { "" } else { "\n" };
            write!(f, "{separator}{error}")?;
        }
        match self.more {
            0 => Ok(()),
            more => write!(f, "\nand {more} more bad lines"),
        }
    }
}

/// Error of an import. The table is unchanged.
#[derive(Debug, thiserror::Error)]
pub enum ImportFileError {
    /// The file could not be opened or read.
    #[error("{path}: {error}", path = path.display())]
    Read {
        /// Path of the file.
        path: PathBuf,
        /// Error of the system.
        error: io::Error,
    },
    /// Lines are wrong, or contradict the table. The message has one sentence for each line.
    #[error("{path}: nothing was imported\n{lines}", path = path.display())]
    Lines {
        /// Path of the file.
        path: PathBuf,
        /// Error of the header, or of every bad line.
        lines: BadLines,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Settings of an import.
#[derive(Debug, Clone, Copy)]
pub struct Import<'a> {
    /// Enrollments to which the rows may belong.
    pub enrollments: &'a Enrollments,
    /// Operator who imports, for the audit log.
    pub by: &'a Actor,
    /// Set to report what would change, without changing it.
    pub dry_run: bool,
    /// Set to ignore columns that are not known.
    pub ignores_unknown: bool,
}

/// Result of an import, or of a dry run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Imported {
    /// Number of rows by what they changed.
    pub report: ImportReport,
    /// Sentences that the operator should read: rows that were left out, and values that look as if
    /// they were changed by accident.
    pub remarks: Vec<String>,
}

/// Imports a table file, completely or not at all. Calls `progress` regularly with the
/// number of bytes read and the file's size (0 for a pipe).
pub fn import_file(
    store: &dyn Bulk,
    path: &Path,
    how: Import<'_>,
    progress: impl FnMut(u64, u64),
) -> Result<Imported, ImportFileError> {
    let unread = |error| ImportFileError::Read { path: path.to_owned(), error };
    let file = File::open(path).map_err(unread)?;
    let total = file.metadata().map_err(unread)?.len();
    import(store, file, total, path, how, progress)
}

/// Imports from a reader of `total` bytes, like [`import_file`]. Errors show `path`; the audit log
/// shows only its file name.
pub fn import(
    store: &dyn Bulk,
    file: impl io::Read,
    total: u64,
    path: &Path,
    Import { enrollments, by, dry_run, ignores_unknown }: Import<'_>,
    mut progress: impl FnMut(u64, u64),
) -> Result<Imported, ImportFileError> {
    let unread = |error| ImportFileError::Read { path: path.to_owned(), error };
    let bad = |lines| ImportFileError::Lines { path: path.to_owned(), lines };
    let mut rows = read(file, enrollments, ignores_unknown).map_err(|error| match error {
        ReadError::Io(error) => unread(error),
        ReadError::Line(error) => bad(BadLines { listed: vec![error], more: 0 }),
    })?;

    // Number of the line read last, and its error if it could not be read. The store rejects a row
    // before it reads the next one, so a rejection is about this line.
    let (line, unreadable) = (Cell::new(0), Cell::new(None));
    let mut reported = 0;
    let mut items = std::iter::from_fn(|| {
        let row = rows.next();
        line.set(rows.line());
        if row.is_none() || rows.line() >= reported + PROGRESS_EVERY {
            reported = rows.line();
            progress(rows.bytes(), total);
        }
        Some(row?.map_err(|error| {
            unreadable.set(Some(error));
            Unreadable
        }))
    });
    let mut lines = BadLines::default();
    let mut broken = None;
    let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy();
    let job = ImportJob { dry_run, ..ImportJob::new(by, &name) };
    let outcome = store.import(job, &mut items, &mut |_, rejection| match rejection {
        Rejection::Unreadable => match unreadable.take() {
            Some(ReadError::Line(error)) => lines.push(error),
            Some(ReadError::Io(error)) => broken = Some(error),
            None => {}
        },
        Rejection::Conflict(conflict) => {
            lines.push(LineError {
                line: line.get(),
                column: Some(conflict.column),
                reason: conflict.reason,
            });
        }
    });
    match (outcome, broken) {
        (Ok(report), _) => Ok(Imported { report, remarks: rows.remarks() }),
        (Err(ImportError::Store(error)), _) => Err(error.into()),
        (Err(ImportError::Rejected(_)), Some(error)) => Err(unread(error)),
        (Err(ImportError::Rejected(_)), None) => Err(bad(lines)),
    }
}
