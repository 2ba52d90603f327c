//! Errors in the lines of a table file, grouped by kind. If a million lines have the same error, a
//! message lists only a few of them. This module performs no I/O.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use super::{export, values};

/// Maximum number of bad lines of one kind that are listed.
const LISTED: u64 = 20;

/// Maximum number of kinds. Lines of further kinds are counted as lines of the last kind.
const KINDS: usize = 50;

/// An error in a line of the file. Never contains a key or a device secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LineError {
    /// Line number from 1, as in an editor.
    pub line: u64,
    /// Column that has the error; `None` if the whole line is wrong.
    pub column: Option<&'static str>,
    /// Sentence that says what is wrong and what is expected.
    pub reason: String,
}

impl LineError {
    /// Returns the error as a record of a CSV file: file, line, column and reason. If a spreadsheet
    /// would run the name of the file as a formula, as with `=cmd.csv`, the name gets a mark in
    /// front.
    pub fn record(&self, file: &Path) -> [String; 4] {
        let name = export::for_spreadsheet(&file.to_string_lossy()).into_owned();
        [name, self.line.to_string(), self.column.unwrap_or_default().to_owned(), self.reason.clone()]
    }
}

impl fmt::Display for LineError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.column {
            Some(column) => write!(f, "line {}, column {column}: {}", self.line, self.reason),
            None => write!(f, "line {}: {}", self.line, self.reason),
        }
    }
}

/// Bad lines with an error in the same column and, apart from values, with the same sentence.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Kind {
    column: Option<&'static str>,
    sentence: String,
    /// The first line of this kind.
    first: u64,
    count: u64,
}

/// Bad lines of a file: the first 20 of each kind, in the file's order, and the number of further
/// lines of each kind.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BadLines {
    /// The first bad lines of each kind.
    pub listed: Vec<LineError>,
    kinds: Vec<Kind>,
}

impl BadLines {
    /// Adds a bad line. Lines are added in the file's order.
    pub(super) fn push(&mut self, error: LineError) {
        let sentence = without_values(&error.reason);
        let is_like = |kind: &Kind| kind.column == error.column && kind.sentence == sentence;
        let kind = match self.kinds.iter().position(is_like) {
            Some(at) => at,
            None if self.kinds.len() < KINDS => {
                self.kinds.push(Kind { column: error.column, sentence, first: error.line, count: 0 });
                self.kinds.len() - 1
            }
            None => KINDS - 1,
        };
        let kind = &mut self.kinds[kind];
        kind.count += 1;
        if kind.count <= LISTED {
            self.listed.push(error);
        }
    }

    /// Returns the number of all bad lines.
    pub fn count(&self) -> u64 {
        self.kinds.iter().map(|kind| kind.count).sum()
    }

    /// Returns a text such as `2 bad lines`.
    pub fn heading(&self) -> String {
        match self.count() {
            1 => "1 bad line".to_owned(),
            count => format!("{count} bad lines"),
        }
    }

    /// Returns, for each kind that has unlisted lines, the number of unlisted lines and the first
    /// line of the kind.
    pub fn more(&self) -> impl Iterator<Item = (u64, u64)> {
        self.kinds.iter().filter(|kind| kind.count > LISTED).map(|kind| (kind.count - LISTED, kind.first))
    }
}

/// A file with bad lines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadFile {
    /// Path of the file, or name of the stream.
    pub path: PathBuf,
    /// The bad lines of this file.
    pub lines: BadLines,
}

/// Lists the bad lines of files.
pub(super) fn listed(files: &[BadFile]) -> String {
    let text = |BadFile { path, lines }: &BadFile| {
        let name = values::visible(&path.to_string_lossy());
        format!("{name}: {}, nothing was changed\n{lines}", lines.heading())
    };
    files.iter().map(text).collect::<Vec<_>>().join("\n")
}

impl fmt::Display for BadLines {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, error) in self.listed.iter().enumerate() {
            let separator = if index == 0 { "" } else { "\n" };
            write!(f, "{separator}{error}")?;
        }
        for (more, first) in self.more() {
            let lines = if more == 1 { "line" } else { "lines" };
            write!(f, "\nand {more} more {lines} like line {first}")?;
        }
        Ok(())
    }
}

/// Returns a sentence without its values, so that the sentences of one kind are equal. Removes
/// quoted text, and all words with characters other than lower-case letters.
fn without_values(sentence: &str) -> String {
    let mut kept = String::with_capacity(sentence.len());
    let unquoted = sentence.split('"').step_by(2);
    let words = unquoted.flat_map(str::split_whitespace).map(|word| word.trim_matches([',', ';', ':', '.']));
    for word in words.filter(|word| word.bytes().all(|byte| byte.is_ascii_lowercase())) {
        kept.push_str(word);
        kept.push(' ');
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(line: u64, reason: &str) -> LineError {
        LineError { line, column: Some("deviceId"), reason: reason.to_owned() }
    }

    #[test]
    fn lines_of_one_kind_are_listed_up_to_twenty_times() {
        let mut lines = BadLines::default();
        for line in 1..=1000 {
            lines.push(error(
                2 * line,
                &format!("device SN-{line} is already in line {line}, with other values"),
            ));
            lines.push(error(2 * line + 1, "a device ID is empty"));
        }
        lines.push(LineError { line: 5000, column: None, reason: "a device ID is empty".into() });
        assert_eq!((lines.listed.len(), lines.count()), (41, 2001));
        assert!(lines.listed.is_sorted_by_key(|error| error.line));
        assert_eq!(lines.more().collect::<Vec<_>>(), [(980, 2), (980, 3)]);
        let text = lines.to_string();
        assert!(text.starts_with("line 2, column deviceId: device SN-1 is"), "{text}");
        assert!(text.ends_with("\nand 980 more lines like line 2\nand 980 more lines like line 3"), "{text}");
    }

    #[test]
    fn kinds_are_bounded() {
        let mut lines = BadLines::default();
        for (line, letters) in (0..200).zip('a'..) {
            let word: String = letters.to_string().bytes().map(|byte| char::from(b'a' + byte % 26)).collect();
            lines.push(error(line, &format!("reason {word} {}", "x".repeat(line as usize + 1))));
        }
        assert_eq!((lines.kinds.len(), lines.count()), (KINDS, 200));
        assert!(lines.listed.len() <= KINDS * LISTED as usize);
    }

    #[test]
    fn values_do_not_make_another_kind() {
        for (one, other) in [
            ("\"1.23E+11\" is a number", "\"8E+14\" is a number"),
            ("character 3 is \"/\" (U+002F); expected only", "character 9 is U+0000; expected only"),
            ("device SN-1 is already in line 2", "device 001A2B3C4D5E is already in line 77"),
            ("31 characters; expected 32 of A-Z", "a value of 3 characters; expected 32 of A-Z"),
        ] {
            let same = without_values(one) == without_values(other);
            assert!(same || one.starts_with("31"), "{one}: {other}");
        }
        assert_ne!(without_values("a device ID is empty"), without_values("stands for no value"));
    }
}
