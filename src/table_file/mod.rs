//! The device table as a CSV file. Import checks the whole file and reports every bad line before
//! it changes anything; export writes what import reads. This module defines the columns and their
//! rules; the store decides which values in the table may be replaced.

mod bad_lines;
mod encoding;
mod export;
mod header;
mod lines;
mod remarks;
mod rows;
mod source;
mod values;

#[cfg(test)]
mod tests;

use std::{
    cell::Cell,
    fmt, io,
    path::{Path, PathBuf},
};

pub use self::{
    bad_lines::{BadLines, LineError},
    export::{ExportError, Form, TABLESTORE_COLUMNS, export_as, export_file},
    rows::{ReadError, Rows, read},
    source::{Input, Source},
};
use crate::{
    device::{AskedId, DeviceIdError},
    psk::EnrollmentOutline,
    store::{
        Actor, Bulk, ImportError, ImportJob, ImportReport, Rejection, StoreError, Unreadable, undo::ImportId,
    },
};

/// Names of the columns, in the order of an export.
pub const COLUMNS: [&str; 8] =
    ["deviceId", "enrollment", "productKey", "deviceName", "deviceSecret", "iotId", "pskIdentity", "psk"];

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
    /// Lines are wrong, or contradict the table. The message has a sentence for each of the first lines.
    #[error("{path}: {}, nothing was changed\n{lines}", lines.heading(), path = path.display())]
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
    /// Number by which the import can be undone; `None` if it changed nothing, or replaced keys.
    pub id: Option<ImportId>,
    /// Number of rows by what they changed.
    pub report: ImportReport,
    /// Sentences that the operator should read: rows that were left out, and values that look as if
    /// they were changed by accident.
    pub remarks: Vec<String>,
}

/// Functions that an import calls while it runs.
pub struct Feedback<'a> {
    /// Receives the number of bytes read and the size of the file, regularly.
    pub progress: &'a mut dyn FnMut(u64, u64),
    /// Receives every bad line, including those that the error does not list.
    pub bad_line: &'a mut dyn FnMut(&LineError),
}

/// Imports a table file, completely or not at all, without feedback.
pub fn import_file(store: &dyn Bulk, path: &Path, how: Import<'_>) -> Result<Imported, ImportFileError> {
    let unread = |error| ImportFileError::Read { path: path.to_owned(), error };
    let source = Source::open(path).map_err(unread)?;
    let feedback = Feedback { progress: &mut |_, _| (), bad_line: &mut |_| () };
    import(store, source.input().map_err(unread)?, how, feedback)
}

/// Imports a table, completely or not at all. Errors show the input's name; the audit log shows only
/// its last part.
pub fn import(
    store: &dyn Bulk,
    Input { name: path, size, is_stream, reader }: Input<'_>,
    Import { enrollments, by, dry_run, ignores_unknown }: Import<'_>,
    Feedback { progress, bad_line }: Feedback<'_>,
) -> Result<Imported, ImportFileError> {
    let unread = |error| ImportFileError::Read { path: path.to_owned(), error };
    let bad = |lines| ImportFileError::Lines { path: path.to_owned(), lines };
    let mut rows = read(reader, enrollments, ignores_unknown, is_stream).map_err(|error| match error {
        ReadError::Io(error) => unread(error),
        ReadError::Line(error) => {
            bad_line(&error);
            bad(error.into())
        }
    })?;

    // Number of the line read last, and its error if it could not be read. The store rejects a row
    // before it reads the next one, so a rejection is about this line.
    let (line, unreadable) = (Cell::new(0), Cell::new(None));
    let (mut reported, mut failed) = (0, None);
    let mut items = std::iter::from_fn(|| {
        let row = rows.next();
        line.set(rows.line());
        if row.is_none() || rows.line() >= reported + PROGRESS_EVERY {
            reported = rows.line();
            progress(rows.bytes(), size);
        }
        let mut row = row?.map_err(|error| {
            unreadable.set(Some(error));
            Unreadable
        });
        // An earlier version may have stored a MAC address as a serial number, and it stays one.
        if let (Ok(row), Some(asked)) = (&mut row, rows.asked().filter(|asked| asked.mac().is_some())) {
            match store.known_as(asked) {
                Ok(Some(id)) => row.device = id,
                Ok(None) => {}
                Err(error) => {
                    failed = Some(error);
                    return Some(Err(Unreadable));
                }
            }
        }
        Some(row)
    });
    let mut lines = BadLines::default();
    let mut broken = None;
    let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy();
    let id = ImportId::random()?;
    let job = ImportJob { dry_run, id: Some(id), ..ImportJob::new(by, &name) };
    let outcome = store.import(job, &mut items, &mut |_, rejection| {
        let error = match rejection {
            Rejection::Unreadable => match unreadable.take() {
                Some(ReadError::Line(error)) => error,
                Some(ReadError::Io(error)) => return broken = Some(error),
                None => return,
            },
            Rejection::Conflict(conflict) => {
                let reason = conflict.reason;
                LineError { line: line.get(), column: Some(conflict.column), reason }
            }
        };
        bad_line(&error);
        lines.push(error);
    });
    if let Some(error) = failed {
        return Err(error.into());
    }
    match (outcome, broken) {
        (Ok(report), _) => {
            let mut remarks = rows.remarks();
            remarks.extend(moved(report.moved));
            remarks.extend(lost_keys(report.lost_keys));
            let can_be_undone = report.added + report.changed > 0 && report.lost_keys == 0;
            let id = Some(id).filter(|_| !dry_run && can_be_undone);
            Ok(Imported { id, report, remarks })
        }
        (Err(ImportError::Store(error)), _) => Err(error.into()),
        (Err(ImportError::Rejected(_)), Some(error)) => Err(unread(error)),
        (Err(ImportError::Rejected(_)), None) => Err(bad(lines)),
    }
}
/// Returns a sentence about devices that were in another enrollment.
fn moved(count: u64) -> Option<String> {
    match count {
        0 => None,
        1 => Some("1 device is in the table with another enrollment, and moves to the one of its row".into()),
        _ => Some(format!(
            "{count} devices are in the table with another enrollment, and move to the one of their row"
        )),
    }
}

/// Returns a sentence about devices that have lost their key.
fn lost_keys(count: u64) -> Option<String> {
    let devices = if count == 1 { "device gets" } else { "devices get" };
    (count > 0).then(|| {
        format!("{count} {devices} another key, or none; former keys are not kept, so this import cannot be undone")
    })
}

/// Parses a device ID as an operator copies it from a label or a spreadsheet: without what surrounds it,
/// and in any spelling.
pub fn device_id(text: &str) -> Result<AskedId, DeviceIdError> {
    AskedId::parse_label(&values::folded(values::unwrapped(text)))
}

/// Reads the device IDs of a table, in any form that an import reads. Other columns are ignored. All
/// lines must be right.
pub fn device_ids(
    Input { name: path, is_stream, reader, .. }: Input<'_>,
) -> Result<Vec<AskedId>, ImportFileError> {
    let enrollments = Enrollments::new([]);
    let (mut ids, mut lines) = (Vec::new(), BadLines::default());
    let failed = |error, lines: &mut BadLines| match error {
        ReadError::Io(error) => Err(ImportFileError::Read { path: path.to_owned(), error }),
        ReadError::Line(error) => {
            lines.push(error);
            Ok(())
        }
    };
    match read(reader, &enrollments, true, is_stream) {
        Ok(mut rows) => {
            while let Some(id) = rows.next_id() {
                match id {
                    Ok(id) => ids.push(id),
                    Err(error) => failed(error, &mut lines)?,
                }
            }
        }
        Err(error) => failed(error, &mut lines)?,
    }
    match lines.count() {
        0 => Ok(ids),
        _ => Err(ImportFileError::Lines { path: path.to_owned(), lines }),
    }
}
