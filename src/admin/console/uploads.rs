//! Keeps uploaded files between the preview and the import, and the bad lines of files that were
//! refused. They are in the table, so that any server of the table can answer the next request. Only
//! the uploader can get a file or its bad lines. Their number, their sizes and the time for which they
//! are kept are limited.

use std::{fmt, path::Path};

use serde::{Deserialize, Serialize};
use tokio::sync::{Semaphore, SemaphorePermit};
use zeroize::Zeroizing;

use crate::{
    admin::{files::Shelf, session::SessionKey},
    store::{StoreError, Table},
    table_file::LineError,
};

/// Maximum number of files that are received or imported at once. Each of them is in memory.
const MOST_AT_ONCE: usize = 4;
/// Maximum size of the list of a file's bad lines, in bytes.
const MAX_ERRORS: usize = 4 << 20;

/// An uploaded file. It may hold secrets.
pub(super) struct Upload {
    pub(super) name: String,
    pub(super) bytes: Zeroizing<Vec<u8>>,
    /// Enrollment of the rows that name no enrollment.
    pub(super) enrollment: String,
}

impl fmt::Debug for Upload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Upload").field("name", &self.name).finish_non_exhaustive()
    }
}

/// The bad lines of a file as CSV, up to a maximum size.
#[derive(Debug, Default)]
pub(super) struct ErrorList {
    csv: String,
    left_out: u64,
}

impl ErrorList {
    /// Adds a bad line.
    pub(super) fn add(&mut self, file: &Path, error: &LineError) {
        if self.csv.is_empty() {
            self.csv.push_str("file,line,column,reason\n");
        }
        if self.csv.len() >= MAX_ERRORS {
            self.left_out += 1;
            return;
        }
        let mut writer = csv::Writer::from_writer(Vec::new());
        // Writing to memory cannot fail.
        let _ = writer.write_record(error.record(file));
        let row = writer.into_inner().unwrap_or_default();
        self.csv.push_str(&String::from_utf8_lossy(&row));
    }

    /// Returns the list as the text of a CSV file.
    pub(super) fn into_csv(mut self) -> String {
        if self.left_out > 0 {
            self.csv.push_str(&format!(",,,{} more lines are left out here\n", self.left_out));
        }
        self.csv
    }
}

/// Permits for files that are being received. The files themselves are in the table.
pub(super) struct Uploads {
    receiving: Semaphore,
}

impl Default for Uploads {
    fn default() -> Self {
        Self { receiving: Semaphore::new(MOST_AT_ONCE) }
    }
}

/// Description of an upload. In the table, it is stored in front of the file's bytes.
#[derive(Serialize, Deserialize)]
struct Head {
    name: String,
    enrollment: String,
}

impl Uploads {
    /// Returns a permit to receive a file, if one is free.
    pub(super) fn place(&self) -> Option<SemaphorePermit<'_>> {
        self.receiving.try_acquire().ok()
    }
}

/// Keeps a file until it is confirmed.
pub(super) async fn keep(
    store: &dyn Table,
    token: &str,
    owner: &SessionKey,
    file: Upload,
) -> Result<(), StoreError> {
    let Upload { name, bytes, enrollment } = file;
    let head = serde_json::to_vec(&Head { name, enrollment });
    let mut text = Zeroizing::new(head.map_err(|error| StoreError::Failed(error.to_string()))?);
    text.reserve_exact(1 + bytes.len());
    text.push(b'\n');
    text.extend_from_slice(&bytes);
    Shelf::UPLOADS.keep(store, token, owner, &text).await
}

/// Returns a file that its uploader has confirmed, and removes it, so that it can be confirmed only
/// once.
pub(super) async fn take(
    store: &dyn Table,
    token: &str,
    owner: &SessionKey,
) -> Result<Option<Upload>, StoreError> {
    let Some(text) = Shelf::UPLOADS.take(store, token, owner).await? else { return Ok(None) };
    // JSON has no line break here.
    let Some(end) = text.iter().position(|byte| *byte == b'\n') else { return Ok(None) };
    let Ok(Head { name, enrollment }) = serde_json::from_slice(&text[..end]) else { return Ok(None) };
    Ok(Some(Upload { name, bytes: Zeroizing::new(text[end + 1..].to_vec()), enrollment }))
}

/// Keeps the bad lines of a file.
pub(super) async fn keep_errors(
    store: &dyn Table,
    token: &str,
    owner: &SessionKey,
    errors: ErrorList,
) -> Result<(), StoreError> {
    Shelf::BAD_LINES.keep(store, token, owner, errors.into_csv().as_bytes()).await
}

/// Returns the bad lines of a file as CSV to its uploader.
pub(super) async fn errors(
    store: &dyn Table,
    token: &str,
    owner: &SessionKey,
) -> Result<Option<String>, StoreError> {
    let list = Shelf::BAD_LINES.read(store, token, owner).await?;
    Ok(list.map(|list| String::from_utf8_lossy(&list).into_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_of_bad_lines_is_bounded_and_says_what_it_leaves_out() {
        let mut list = ErrorList::default();
        let error = LineError { line: 7, column: Some("deviceId"), reason: "\"a\", b\n".repeat(50) };
        for _ in 0..20_000 {
            list.add(Path::new("a,b.csv"), &error);
        }
        let csv = list.into_csv();
        assert!(csv.len() < MAX_ERRORS + 4096, "{}", csv.len());
        assert!(
            csv.starts_with("file,line,column,reason\n\"a,b.csv\",7,deviceId,\"\"\"a\"\", b"),
            "{}",
            &csv[..80]
        );
        assert!(csv.ends_with("more lines are left out here\n"));
        // The name of the file begins like a formula, but a spreadsheet reads it as text.
        let mut list = ErrorList::default();
        list.add(Path::new("=cmd|calc!A0.csv"), &error);
        assert!(list.into_csv().contains("\n'=cmd"));
    }
}
