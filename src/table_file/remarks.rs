//! Remarks for the operator about a file that could be read. They report repeated rows, ignored
//! columns, and device IDs that a spreadsheet seems to have changed. A remark never refuses a row.

use std::collections::BTreeMap;

use crate::device::AskedId;

/// Maximum number of lines that a remark lists.
const LISTED: usize = 20;

/// Lines that one remark is about: the numbers of the first lines, and the number of all lines.
#[derive(Debug, Default)]
pub(super) struct Noted {
    first: Vec<u64>,
    count: u64,
}

impl Noted {
    pub(super) fn note(&mut self, line: u64) {
        if self.first.len() < LISTED {
            self.first.push(line);
        }
        self.count += 1;
    }

    /// Returns a text such as `2 rows (lines 7, 9)`.
    fn rows(&self) -> String {
        let lines: Vec<String> = self.first.iter().map(u64::to_string).collect();
        let more = if self.count > self.first.len() as u64 { ", …" } else { "" };
        let (rows, line) = if self.count == 1 { ("row", "line") } else { ("rows", "lines") };
        format!("{} {rows} ({line} {}{more})", self.count, lines.join(", "))
    }
}

/// All observations about a file.
#[derive(Debug, Default)]
pub(super) struct Remarks {
    /// Rows that repeat an earlier row with the same values. The store reports them.
    pub(super) repeated: Noted,
    /// Lines that repeat the header.
    pub(super) headers: Noted,
    /// The device in the first line, if the file has no header.
    pub(super) first_device: Option<String>,
    /// Lines that were decoded from GB18030.
    pub(super) guessed: Noted,
    /// Lines after the header that begin with `#`.
    pub(super) comments: Noted,
    /// Rows with values only in columns that are ignored.
    pub(super) only_ignored: Noted,
    /// Columns that are ignored.
    pub(super) ignored: Vec<String>,
    /// Rows that name another product than their enrollment.
    pub(super) other_products: Noted,
    /// Set once a line with values was read.
    pub(super) has_rows: bool,
    /// Number of the current line.
    pub(super) line: u64,
    /// Number of device IDs of each length.
    lengths: BTreeMap<usize, u64>,
    /// Number of rows for each length of the value in the last column (`ends`), and the length of
    /// this value in the row that was read last (`last_end`).
    ends: BTreeMap<usize, u64>,
    last_end: usize,
    /// Device IDs of digits only, by their length.
    digits: BTreeMap<usize, Noted>,
    /// Device IDs of 8 to 11 hex digits, at least one of which is a letter. Each may be a MAC
    /// address that has lost its leading zeros.
    short_hex: Noted,
    /// MAC addresses in an unusual spelling, which may be serial numbers.
    odd_macs: Noted,
}

impl Remarks {
    /// Examines a device ID. `text` is the text in the file, and `asked` is the parsed ID.
    pub(super) fn look_at(&mut self, text: &str, asked: &AskedId) {
        let line = self.line;
        let length = text.len();
        *self.lengths.entry(length).or_default() += 1;
        if text.bytes().all(|byte| byte.is_ascii_digit()) {
            self.digits.entry(length).or_default().note(line);
        } else if (8..12).contains(&length) && text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            self.short_hex.note(line);
        }
        if asked.first() != asked.canonical() {
            self.odd_macs.note(line);
        }
    }

    /// Notes the length of a row's value in the last column. An empty value has length 0.
    pub(super) fn note_end(&mut self, length: usize) {
        *self.ends.entry(length).or_default() += 1;
        self.last_end = length;
    }

    /// Returns whether the last value of the last row is shorter than the last value of every other
    /// row. This requires several other rows whose last values all have the same length.
    pub(super) fn is_last_shorter(&self) -> bool {
        let ends: Vec<_> = self.ends.iter().map(|(length, count)| (*length, *count)).collect();
        matches!(ends[..], [(last, 1), (_, others)] if last == self.last_end && others > 1)
    }

    /// Returns a sentence for each remark.
    pub(super) fn sentences(&self) -> Vec<String> {
        let mut sentences = Vec::new();
        if self.guessed.count > 0 {
            sentences.push(format!("the file is not UTF-8: {} read as GB18030", self.guessed.rows()));
        }
        if let Some(first) = &self.first_device {
            sentences.push(format!(
                "the file has no header and was read as a list of device IDs, the first being {first}"
            ));
        }
        for (noted, what) in [
            (&self.comments, "lines that begin with # are comments"),
            (&self.only_ignored, "values only in columns that are ignored"),
        ] {
            if noted.count > 0 {
                sentences.push(format!("{what}: {} left out", noted.rows()));
            }
        }
        if !self.ignored.is_empty() {
            sentences.push(format!("ignored columns: {}", self.ignored.join(", ")));
        }
        if self.headers.count > 0 {
            sentences.push(format!("the header is repeated: {} left out", self.headers.rows()));
        }
        if self.repeated.count > 0 {
            sentences.push(format!(
                "rows with a device and values that are already there: {} left out",
                self.repeated.rows()
            ));
        }
        if !self.has_rows {
            sentences.push("the file has no rows".to_owned());
        }
        if self.other_products.count > 0 {
            sentences.push(format!("{}: the product is not the enrollment's", self.other_products.rows()));
        }
        let most = self.lengths.iter().max_by_key(|(_, count)| **count).map(|(length, _)| *length);
        for (length, noted) in &self.digits {
            if most.is_some_and(|most| *length < most) {
                sentences.push(format!(
                    "{}: the device ID has digits only and is shorter than most; a spreadsheet may have removed zeros \
                     at its beginning",
                    noted.rows()
                ));
            }
        }
        if self.short_hex.count > 0 {
            sentences.push(format!(
                "{}: the device ID has 8 to 11 hex digits; if it is a MAC address, zeros are missing at its beginning",
                self.short_hex.rows()
            ));
        }
        if self.odd_macs.count > 0 {
            sentences.push(format!(
                "{}: the device ID has 12 hex digits and is taken as a MAC address, whatever separates them",
                self.odd_macs.rows()
            ));
        }
        sentences
    }
}
