//! The device table as a CSV file. An import checks the whole file and reports every bad line
//! before it changes anything. An export writes a file that an import can read. This module defines
//! the columns and their rules. The store decides which values in the table may be replaced.

mod bad_lines;
mod encoding;
mod export;
mod header;
mod import;
mod lines;
mod remarks;
mod rows;
mod source;
mod values;

#[cfg(test)]
mod tests;

use std::{collections::HashMap, fmt, io, path::PathBuf};

pub use self::{
    bad_lines::{BadFile, BadLines, LineError},
    export::{ExportError, Form, TABLESTORE_COLUMNS, export_as, export_file},
    import::{Feedback, Import, Imported, Pair, Summary, device_ids, import, import_file},
    rows::{ReadError, Rows, read},
    source::{Input, Source},
    values::product_key,
};
use crate::{
    device::{AskedId, DeviceIdError},
    psk::EnrollmentOutline,
    store::StoreError,
    target,
};

/// Names of the columns, in the order of an export. An export has `pskNext` only if a device has a
/// second key, and `target` only if a row of the table names a target.
pub const COLUMNS: [&str; 10] = [
    "deviceId",
    "enrollment",
    "productKey",
    "deviceName",
    "deviceSecret",
    "iotId",
    "pskIdentity",
    "psk",
    "pskNext",
    "target",
];

/// Maximum number of enrollments that a message names.
const NAMED: usize = 50;

/// The enrollments of the configuration, the default for rows that name none, and the targets.
#[derive(Debug, Clone)]
pub struct Enrollments {
    known: Vec<EnrollmentOutline>,
    default: Option<usize>,
    /// Names of the targets. The default target is always known: without a cloud, all certificates
    /// belong to it.
    targets: Vec<String>,
    /// Name of the target of each enrollment.
    target_of: HashMap<String, String>,
}

/// Error for a name that no enrollment has. The message lists the known enrollments.
#[derive(Debug, Clone, thiserror::Error)]
#[error("unknown enrollment \"{name}\"; {enrollments}")]
pub struct UnknownEnrollment {
    name: String,
    enrollments: Box<Enrollments>,
}

impl Enrollments {
    /// Creates the list of enrollments. If there is only one enrollment, it is the default. If
    /// there are several, there is no default.
    pub fn new(known: impl IntoIterator<Item = EnrollmentOutline>) -> Self {
        let known: Vec<_> = known.into_iter().collect();
        let default = (known.len() == 1).then_some(0);
        Self { known, default, targets: Vec::new(), target_of: HashMap::new() }
    }

    /// Adds the targets, and the target of each enrollment.
    pub fn with_targets(
        self,
        targets: impl IntoIterator<Item = String>,
        target_of: HashMap<String, String>,
    ) -> Self {
        Self { targets: targets.into_iter().collect(), target_of, ..self }
    }

    /// Returns the target of an enrollment, in the form in which the row of a registered device
    /// stores it.
    fn target_of(&self, enrollment: &str) -> Option<&str> {
        target::to_store(self.target_of.get(enrollment)?)
    }

    /// Checks the name of a target. The error names the known targets.
    fn check_target(&self, name: &str) -> Result<(), String> {
        if name == target::DEFAULT && self.targets.is_empty()
            || self.targets.iter().any(|known| known == name)
        {
            return Ok(());
        }
        let names: Vec<String> =
            self.targets.iter().take(NAMED).map(|known| format!("\"{known}\"")).collect();
        let known = match names.is_empty() {
            true => format!("no [[target]] is configured, so only \"{}\" is possible", target::DEFAULT),
            false => format!("configured: {}", names.join(", ")),
        };
        Err(format!(
            "unknown target {}; {known}; correct the line, or add the [[target]] to the configuration",
            values::shown(name)
        ))
    }

    /// Makes the enrollment of this name the default.
    pub fn with_default(mut self, name: &str) -> Result<Self, UnknownEnrollment> {
        match self.known.iter().position(|enrollment| enrollment.name == name) {
            Some(index) => self.default = Some(index),
            None => return Err(UnknownEnrollment { name: name.to_owned(), enrollments: Box::new(self) }),
        }
        Ok(self)
    }

    fn named(&self, name: &str) -> Option<&EnrollmentOutline> {
        self.known.iter().find(|enrollment| enrollment.name == name)
    }

    /// Returns the name of an enrollment that differs from `name` only in the case of letters.
    fn similar(&self, name: &str) -> Option<&str> {
        let mut names = self.known.iter().map(|enrollment| enrollment.name.as_str());
        names.find(|known| known.eq_ignore_ascii_case(name))
    }

    /// Returns the enrollment whose devices share this PSK identity.
    fn sharing(&self, identity: &str) -> Option<&EnrollmentOutline> {
        self.known
            .iter()
            .find(|enrollment| enrollment.shared_identities.iter().any(|shared| shared == identity))
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
        for (index, enrollment) in self.known.iter().take(NAMED).enumerate() {
            let separator = if index == 0 { "" } else { ", " };
            write!(f, "{separator}\"{}\"", enrollment.name)?;
        }
        match self.known.len().saturating_sub(NAMED) {
            0 => Ok(()),
            more => write!(f, " and {more} more"),
        }
    }
}

/// Error of an import. The table is unchanged.
#[derive(Debug, thiserror::Error)]
pub enum ImportFileError {
    /// The file could not be opened or read.
    #[error("{}: {error}", values::visible(&path.to_string_lossy()))]
    Read {
        /// Path of the file.
        path: PathBuf,
        /// Error of the system.
        error: io::Error,
    },
    /// Lines are wrong, or contradict the table. The message has a sentence for each of the first
    /// such lines.
    #[error("{}", bad_lines::listed(files))]
    Lines {
        /// Files with bad lines.
        files: Vec<BadFile>,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Returns the text of a label that an operator has copied. Removes blanks and quotes around the
/// text, and folds full-width characters.
pub fn label(text: &str) -> String {
    values::folded(values::unwrapped(text)).trim().to_owned()
}

/// Parses a device ID that an operator has copied from a label or a spreadsheet. Accepts any
/// spelling, and ignores blanks and quotes around the ID.
pub fn device_id(text: &str) -> Result<AskedId, DeviceIdError> {
    AskedId::parse_label(&label(text))
}
