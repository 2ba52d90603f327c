//! Reads the lines and fields of CSV files (RFC 4180), as people and programs write them. A field
//! never spans lines. So an unmatched quote makes only its own line invalid, and line numbers are
//! the same as in an editor. This module knows nothing about the columns.

use std::{
    borrow::Cow,
    io::{self, BufRead, BufReader, Read},
};

use encoding_rs::GB18030;
use zeroize::{Zeroize, Zeroizing};

use super::values::is_blank;

/// Maximum length of a line including its end, in bytes. It is about fifty times the longest legal
/// line, and limits the memory for a file that is not a table.
const MAX_LINE: usize = 64 * 1024;

/// A line that is not blank.
pub(super) struct Line<'l> {
    /// Number in the file, from 1.
    pub(super) number: u64,
    /// The line without its end and without a byte order mark, or the reason why the line is not
    /// text.
    pub(super) text: Result<&'l str, String>,
    /// Set if the line was decoded from GB18030. Another encoding may look the same.
    pub(super) is_guessed: bool,
}

/// The lines of a file that are not blank.
pub(super) struct Lines<R> {
    reader: BufReader<R>,
    // Both buffers may contain keys and secrets of the current line.
    buffer: Zeroizing<Vec<u8>>,
    decoded: Zeroizing<String>,
    number: u64,
    bytes: u64,
    /// Set if the line that was returned last is the last line of the file and has no line end.
    is_unended: bool,
    /// Set once a byte order mark or a character beyond ASCII shows that the file is UTF-8.
    is_utf8: bool,
}

/// End of a line.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    /// The line has its end.
    OfLine,
    /// The file ends, and the line has no line end.
    OfFile,
    /// The line is too long.
    TooLong,
}

impl<R: Read> Lines<R> {
    pub(super) fn new(reader: R) -> Self {
        let buffer = Zeroizing::new(Vec::with_capacity(1024));
        let reader = BufReader::with_capacity(MAX_LINE, reader);
        let decoded = Zeroizing::new(String::new());
        Self { reader, buffer, decoded, number: 0, bytes: 0, is_unended: false, is_utf8: false }
    }

    /// Returns whether the line that was returned last is the last line of the file and has no line
    /// end, as in a file that was cut off. A line that ends with ^Z is complete.
    pub(super) fn is_unended(&self) -> bool {
        self.is_unended
    }

    /// Returns the number of bytes read so far.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Returns the next line that is not blank. Lines end with `\n`, `\r\n` or `\r`.
    pub(super) fn next(&mut self) -> io::Result<Option<Line<'_>>> {
        loop {
            let Some(end) = self.read_line()? else { return Ok(None) };
            self.number += 1;
            let number = self.number;
            let is_unended = end == End::OfFile && self.buffer.last() != Some(&0x1A);
            if end == End::TooLong {
                self.is_unended = false;
                let text = Err(format!("longer than {MAX_LINE} bytes"));
                return Ok(Some(Line { number, text, is_guessed: false }));
            }
            let is_guessed = match std::str::from_utf8(&self.buffer) {
                Ok(text) => {
                    self.is_utf8 |= !text.is_ascii();
                    false
                }
                Err(_) => !self.is_utf8 && self.decode(),
            };
            if !self.text().is_ok_and(|text| text.trim_matches(is_blank).is_empty()) {
                self.is_unended = is_unended;
                return Ok(Some(Line { number, text: self.text(), is_guessed }));
            }
        }
    }

    fn text(&self) -> Result<&str, String> {
        match std::str::from_utf8(&self.buffer) {
            Ok(text) => Ok(text.strip_prefix('\u{FEFF}').unwrap_or(text)),
            Err(error) => Err(format!(
                "not UTF-8 from byte {} on; save the file as CSV UTF-8, or convert it: iconv -f WINDOWS-1252 -t UTF-8",
                error.valid_up_to() + 1
            )),
        }
    }

    /// Converts a line from GB18030 to UTF-8. If the line is not valid GB18030, leaves it unchanged
    /// and returns false.
    fn decode(&mut self) -> bool {
        let Some(text) = GB18030.decode_without_bom_handling_and_without_replacement(&self.buffer) else {
            return false;
        };
        self.decoded.zeroize();
        self.decoded.push_str(&text);
        if let Cow::Owned(mut text) = text {
            text.zeroize();
        }
        self.buffer.clear();
        self.buffer.extend_from_slice(self.decoded.as_bytes());
        true
    }

    /// Reads a line into the buffer, without its end. If the line is too long, the buffer gets only
    /// the beginning of the line. Returns `None` at the end of the file.
    fn read_line(&mut self) -> io::Result<Option<End>> {
        self.buffer.clear();
        let (mut is_too_long, mut is_empty) = (false, true);
        loop {
            let chunk = self.reader.fill_buf()?;
            if chunk.is_empty() {
                let end = if is_too_long { End::TooLong } else { End::OfFile };
                return Ok((!is_empty).then_some(end));
            }
            is_empty = false;
            let end = chunk.iter().position(|byte| matches!(byte, b'\n' | b'\r'));
            let part = end.unwrap_or(chunk.len());
            if self.buffer.len() + part > MAX_LINE {
                is_too_long = true;
            } else {
                self.buffer.extend_from_slice(&chunk[..part]);
            }
            let is_return = end.is_some_and(|end| chunk[end] == b'\r');
            let used = end.map_or(part, |end| end + 1);
            self.reader.consume(used);
            self.bytes += used as u64;
            if is_return && self.reader.fill_buf()?.first() == Some(&b'\n') {
                self.reader.consume(1);
                self.bytes += 1;
            }
            if end.is_some() {
                return Ok(Some(if is_too_long { End::TooLong } else { End::OfLine }));
            }
        }
    }
}

/// Splits a line into its fields (RFC 4180 §2). A field that begins with a quote also ends with a
/// quote, and quotes inside the field are doubled. Blanks around a quoted field are ignored.
/// Excel's `="001"` does not begin with a quote, so its quotes are part of the field.
pub(super) fn fields(line: &str, separator: char) -> Result<Vec<Cow<'_, str>>, &'static str> {
    let mut fields = Vec::with_capacity(8);
    let mut rest = line;
    loop {
        let is_space = |character: char| is_blank(character) && character != separator;
        let begun = rest.trim_start_matches(is_space);
        let (field, after) = if let Some(quoted) = begun.strip_prefix('"') {
            let (field, after) = quoted_field(quoted)?;
            (field, after.trim_start_matches(is_space))
        } else if let Some(formula) = begun.strip_prefix("=\"") {
            let (field, after) = quoted_field(formula)?;
            (field, after.trim_start_matches(is_space))
        } else {
            let end = rest.find(separator).unwrap_or(rest.len());
            if rest[..end].contains('"') {
                return Err("a quote within a field that does not begin with one");
            }
            (Cow::Borrowed(&rest[..end]), &rest[end..])
        };
        fields.push(field);
        match after.strip_prefix(separator) {
            Some(next) => rest = next,
            None if after.is_empty() => return Ok(fields),
            None => return Err("text after a closing quote"),
        }
    }
}

/// Reads a quoted field. `text` begins after the opening quote. Returns the field, and the text
/// after the closing quote.
fn quoted_field(text: &str) -> Result<(Cow<'_, str>, &str), &'static str> {
    const OPEN: &str = "a quote is not closed on the same line";
    let (first, mut after) = text.split_once('"').ok_or(OPEN)?;
    let mut field = Cow::Borrowed(first);
    while let Some(more) = after.strip_prefix('"') {
        let (part, rest) = more.split_once('"').ok_or(OPEN)?;
        let field = field.to_mut();
        field.push('"');
        field.push_str(part);
        after = rest;
    }
    Ok((field, after))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn all(bytes: &[u8]) -> Vec<(u64, Result<String, String>)> {
        let mut lines = Lines::new(bytes);
        let mut all = Vec::new();
        while let Some(line) = lines.next().unwrap() {
            all.push((line.number, line.text.map(str::to_owned)));
        }
        assert_eq!(lines.bytes(), bytes.len() as u64);
        all
    }

    #[test]
    fn lines_have_the_numbers_that_an_editor_shows() {
        let text = b"\xEF\xBB\xBFhead\r\n\r\n  \na \n\n# a comment\nb\r\n\x1A\nlast";
        let expected = [(1, "head"), (4, "a "), (6, "# a comment"), (7, "b"), (9, "last")]
            .map(|(number, line)| (number, Ok(line.into())));
        assert_eq!(all(text), expected);
        let returns = [(1, "a"), (3, "b")].map(|(number, line)| (number, Ok(line.into())));
        assert_eq!(all(b"a\r\rb\r"), returns);
        assert_eq!(all(b""), []);
    }

    #[test]
    fn a_line_that_is_not_text_breaks_no_other_line() {
        let mut text = b"a\nb\xFFc\n".to_vec();
        text.extend([b'x'; 3 * MAX_LINE]);
        text.extend(b"\nd\n");
        let lines = all(&text);
        assert_eq!(lines[1], (2, Err("not UTF-8 from byte 2 on; save the file as CSV UTF-8, or convert it: iconv -f WINDOWS-1252 -t UTF-8".into())));
        assert_eq!(lines[2], (3, Err("longer than 65536 bytes".into())));
        assert_eq!(lines[3], (4, Ok("d".into())));
    }

    #[test]
    fn fields_are_separated_by_commas_and_may_be_quoted() {
        assert_eq!(fields("a,,c", ',').unwrap(), ["a", "", "c"]);
        assert_eq!(fields(",", ',').unwrap(), ["", ""]);
        assert_eq!(fields("\"a,b\", \"say \"\"hi\"\"\" ,\"\"", ',').unwrap(), ["a,b", "say \"hi\"", ""]);
        assert_eq!(fields("=\"001\";2", ';').unwrap(), ["001", "2"]);
        assert_eq!(fields("a\t\tb", '\t').unwrap(), ["a", "", "b"]);
        for bad in [r#""open"#, r#"a"b,c"#, r#""a"b,c"#, r#""a"""#] {
            assert!(fields(bad, ',').is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn the_output_of_a_csv_writer_is_read_back(record in prop::collection::vec("[^\\r\\n]{0,12}", 1..6)) {
            let mut writer = csv::Writer::from_writer(Vec::new());
            writer.write_record(&record).unwrap();
            let bytes = writer.into_inner().unwrap();
            let line = std::str::from_utf8(&bytes).unwrap().trim_end_matches('\n');
            prop_assert_eq!(fields(line, ',').unwrap(), record);
        }

        #[test]
        fn no_line_causes_a_panic(line in "[a\",]{0,20}") {
            let _ = fields(&line, ',');
        }
    }
}
