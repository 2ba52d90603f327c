//! Keeps uploaded files in memory between the preview and the import, and the bad lines of files
//! that were refused. Only the uploader can get a file or its bad lines. Their number, their sizes
//! and the time for which they are kept are limited.

use std::{
    collections::VecDeque,
    fmt,
    path::Path,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::sync::{Semaphore, SemaphorePermit};
use zeroize::Zeroizing;

use crate::{
    admin::session::{self, SessionKey},
    table_file::LineError,
};

/// Maximum number of files that are kept. A new file replaces the oldest.
const MOST: usize = 4;
/// Maximum number of files that are received or imported at once. Each of them is in memory.
const MOST_AT_ONCE: usize = 4;
/// Time for which a file is kept.
const KEPT: Duration = Duration::from_secs(600);
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

struct Kept<T> {
    token: String,
    owner: SessionKey,
    at: Instant,
    value: T,
}

/// Values that belong to one session each, and are found by a random token.
struct Shelf<T>(Mutex<VecDeque<Kept<T>>>);

impl<T> Default for Shelf<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T> Shelf<T> {
    fn fresh(&self, now: Instant) -> MutexGuard<'_, VecDeque<Kept<T>>> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|kept| now < kept.at + KEPT);
        all
    }

    fn keep(&self, now: Instant, token: String, owner: SessionKey, value: T) {
        let mut all = self.fresh(now);
        if all.len() == MOST {
            all.pop_front();
        }
        all.push_back(Kept { token, owner, at: now, value });
    }

    fn take(&self, now: Instant, token: &str, owner: &SessionKey) -> Option<T> {
        let mut all = self.fresh(now);
        let is_wanted = |kept: &Kept<T>| kept.owner == *owner && session::same(&kept.token, token);
        let index = all.iter().position(is_wanted)?;
        all.remove(index).map(|kept| kept.value)
    }

    fn with<R>(
        &self,
        now: Instant,
        token: &str,
        owner: &SessionKey,
        read: impl FnOnce(&T) -> R,
    ) -> Option<R> {
        let all = self.fresh(now);
        let kept = all.iter().find(|kept| kept.owner == *owner && session::same(&kept.token, token))?;
        Some(read(&kept.value))
    }
}

/// Files that wait for confirmation, bad lines that can be downloaded, and permits for files that
/// are being received.
pub(super) struct Uploads {
    previewed: Shelf<Upload>,
    /// The lists of bad lines, as CSV.
    errors: Shelf<String>,
    receiving: Semaphore,
}

impl Default for Uploads {
    fn default() -> Self {
        Self {
            previewed: Shelf::default(),
            errors: Shelf::default(),
            receiving: Semaphore::new(MOST_AT_ONCE),
        }
    }
}

impl Uploads {
    /// Returns a permit to receive a file, if one is free.
    pub(super) fn place(&self) -> Option<SemaphorePermit<'_>> {
        self.receiving.try_acquire().ok()
    }

    /// Keeps a file until it is confirmed.
    pub(super) fn keep(&self, token: String, owner: SessionKey, file: Upload) {
        self.previewed.keep(Instant::now(), token, owner, file);
    }

    /// Returns a file that its uploader has confirmed, and removes it, so that it can be confirmed
    /// only once.
    pub(super) fn take(&self, token: &str, owner: &SessionKey) -> Option<Upload> {
        self.previewed.take(Instant::now(), token, owner)
    }

    /// Keeps the bad lines of a file.
    pub(super) fn keep_errors(&self, token: String, owner: SessionKey, errors: ErrorList) {
        self.errors.keep(Instant::now(), token, owner, errors.into_csv());
    }

    /// Returns the bad lines of a file as CSV to its uploader.
    pub(super) fn errors(&self, token: &str, owner: &SessionKey) -> Option<String> {
        self.errors.with(Instant::now(), token, owner, String::clone)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWNER: SessionKey = [1; 32];

    #[test]
    fn only_the_uploader_gets_a_file_and_only_once_and_in_time() {
        let (shelf, now) = (Shelf::default(), Instant::now());
        shelf.keep(now, "one".into(), OWNER, 1);
        assert_eq!(shelf.take(now, "one", &[2; 32]), None);
        assert_eq!(shelf.take(now, "two", &OWNER), None);
        assert_eq!(shelf.take(now, "one", &OWNER), Some(1));
        assert_eq!(shelf.take(now, "one", &OWNER), None);
        shelf.keep(now, "two".into(), OWNER, 2);
        assert_eq!(shelf.take(now + KEPT, "two", &OWNER), None);
    }

    #[test]
    fn a_new_file_replaces_the_oldest() {
        let (shelf, now) = (Shelf::default(), Instant::now());
        (0..=MOST).for_each(|number| shelf.keep(now, number.to_string(), OWNER, number));
        assert_eq!(shelf.take(now, "0", &OWNER), None);
        assert_eq!(shelf.with(now, "1", &OWNER, |number| *number), Some(1));
    }

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
