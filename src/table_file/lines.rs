//! Reads lines and fields of a CSV file (RFC 4180) that people edit. A field never spans lines. So
//! a stray quote breaks only its own line, and line numbers match those of an editor. This module
//! does not depend on the columns.

use std::{
    borrow::Cow,
    io::{self, BufRead, BufReader, Read},
};

use zeroize::Zeroizing;

/// Maximum length of a line including its end, in bytes: about fifty times the longest legal
/// line. Limits the memory for a file that is not a table at all.
const MAX_LINE: usize = 64 * 1024;

/// A line that is not blank.
pub(super) struct Line<'l> {
    /// Number in the file, from 1.
    pub(super) number: u64,
    /// The line without its end and without a byte order mark, or the reason why it is not
    /// text.
    pub(super) text: Result<&'l str, String>,
}

/// The lines of a file that are not blank.
pub(super) struct Lines<R> {
    reader: BufReader<R>,
    // May hold keys and secrets of the current line.
    buffer: Zeroizing<Vec<u8>>,
    number: u64,
    bytes: u64,
}

impl<R: Read> Lines<R> {
    pub(super) fn new(reader: R) -> Self {
        let buffer = Zeroizing::new(Vec::with_capacity(1024));
        Self { reader: BufReader::with_capacity(MAX_LINE, reader), buffer, number: 0, bytes: 0 }
    }

    /// Returns the number of bytes read so far.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Returns the next line that is not blank. Lines end with `\n` or `\r\n`.
    pub(super) fn next(&mut self) -> io::Result<Option<Line<'_>>> {
        loop {
            self.buffer.clear();
            let limit = MAX_LINE as u64;
            let length = self.reader.by_ref().take(limit).read_until(b'\n', &mut self.buffer)?;
            if length == 0 {
                return Ok(None);
            }
            self.number += 1;
            self.bytes += length as u64;
            if length == MAX_LINE && !self.buffer.ends_with(b"\n") {
                self.skip_line()?;
                let text = Err(format!("longer than {MAX_LINE} bytes"));
                return Ok(Some(Line { number: self.number, text }));
            }
            let start = if self.number == 1 && self.buffer.starts_with(b"\xEF\xBB\xBF") { 3 } else { 0 };
            let end = line_end(&self.buffer);
            if !self.buffer[start..end].iter().all(u8::is_ascii_whitespace) {
                let text = std::str::from_utf8(&self.buffer[start..end])
                    .map_err(|error| format!("not UTF-8 from byte {} on", error.valid_up_to() + 1));
                return Ok(Some(Line { number: self.number, text }));
            }
        }
    }

    /// Reads to the end of a line without keeping it.
    fn skip_line(&mut self) -> io::Result<()> {
        loop {
            let chunk = self.reader.fill_buf()?;
            let newline = chunk.iter().position(|&byte| byte == b'\n');
            let used = newline.map_or(chunk.len(), |at| at + 1);
            self.reader.consume(used);
            self.bytes += used as u64;
            if used == 0 || newline.is_some() {
                return Ok(());
            }
        }
    }
}

fn line_end(line: &[u8]) -> usize {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    line.strip_suffix(b"\r").unwrap_or(line).len()
}

/// Splits a line into its fields (RFC 4180 §2), which are separated by commas. A field that begins
/// with a quote ends with one, and quotes inside it are doubled.
pub(super) fn fields(line: &str) -> Result<Vec<Cow<'_, str>>, &'static str> {
    let mut fields = Vec::with_capacity(8);
    let mut rest = line;
    loop {
        let (field, after) = match rest.strip_prefix('"') {
            Some(quoted) => quoted_field(quoted)?,
            None => {
                let end = rest.find(',').unwrap_or(rest.len());
                if rest[..end].contains('"') {
                    return Err("a quote within a field that does not begin with one");
                }
                (Cow::Borrowed(&rest[..end]), &rest[end..])
            }
        };
        fields.push(field);
        match after.strip_prefix(',') {
            Some(next) => rest = next,
            None if after.is_empty() => return Ok(fields),
            None => return Err("text after a closing quote"),
        }
    }
}

/// Reads a quoted field; `text` begins after its opening quote. Returns the field, and the text
/// after its closing quote.
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
        let text = b"\xEF\xBB\xBFhead\r\n\r\n  \na\n\nb\r\nlast";
        let expected =
            [(1, "head"), (4, "a"), (6, "b"), (7, "last")].map(|(number, line)| (number, Ok(line.into())));
        assert_eq!(all(text), expected);
        assert_eq!(all(b""), []);
    }

    #[test]
    fn a_line_that_is_not_text_breaks_no_other_line() {
        let mut text = b"a\nb\xFFc\n".to_vec();
        text.extend([b'x'; 3 * MAX_LINE]);
        text.extend(b"\nd\n");
        let lines = all(&text);
        assert_eq!(lines[1], (2, Err("not UTF-8 from byte 2 on".into())));
        assert_eq!(lines[2], (3, Err("longer than 65536 bytes".into())));
        assert_eq!(lines[3], (4, Ok("d".into())));
    }

    #[test]
    fn fields_are_separated_by_commas_and_may_be_quoted() {
        assert_eq!(fields("a,,c").unwrap(), ["a", "", "c"]);
        assert_eq!(fields(",").unwrap(), ["", ""]);
        assert_eq!(fields("\"a,b\",\"say \"\"hi\"\"\",\"\"").unwrap(), ["a,b", "say \"hi\"", ""]);
        for bad in [r#""open"#, r#"a"b,c"#, r#""a"b,c"#, r#""a"""#] {
            assert!(fields(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn the_output_of_a_csv_writer_is_read_back(record in prop::collection::vec("[^\\r\\n]{0,12}", 1..6)) {
            let mut writer = csv::Writer::from_writer(Vec::new());
            writer.write_record(&record).unwrap();
            let bytes = writer.into_inner().unwrap();
            let line = std::str::from_utf8(&bytes).unwrap().trim_end_matches('\n');
            prop_assert_eq!(fields(line).unwrap(), record);
        }

        #[test]
        fn no_line_causes_a_panic(line in "[a\",]{0,20}") {
            let _ = fields(&line);
        }
    }
}
