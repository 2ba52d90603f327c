//! Recognizes the kind of a file by its first bytes, and decodes UTF-16. Refuses files that are not
//! text, and says what to do with them. This module knows nothing about lines or columns.

use std::io::{self, Cursor, Read};

use encoding_rs::{Decoder, UTF_16BE, UTF_16LE};
use zeroize::Zeroizing;

/// Number of bytes at the beginning of a file by which the kind of file is recognized.
const HEAD: usize = 4096;

/// Number of bytes that are decoded at once.
const CHUNK: usize = 16 * 1024;

/// Message for a file that contains no text.
const NO_TEXT: &str = "this is no text file; expected a table as CSV, JSON lines or a list of device IDs";

/// First bytes of each kind of file that is not a table, with a sentence that advises the operator.
const REFUSED: [(&[u8], &str); 12] = [
    (
        b"PK\x03\x04",
        "this is an Excel workbook (.xlsx) or another zip archive; in Excel, choose File > Save As > CSV UTF-8, and import that file",
    ),
    (
        b"\xD0\xCF\x11\xE0",
        "this is an old Excel workbook (.xls); in Excel, choose File > Save As > CSV UTF-8, and import that file",
    ),
    (b"\x1F\x8B", "this file is compressed with gzip; unpack it first: gunzip FILE.gz"),
    (b"BZh", "this file is compressed with bzip2; unpack it first: bunzip2 FILE.bz2"),
    (b"\xFD7zXZ\0", "this file is compressed with xz; unpack it first: unxz FILE.xz"),
    (b"%PDF", "this is a PDF file; export the table as CSV from the program that made it"),
    (b"7z\xBC\xAF", NO_TEXT),
    (b"\x28\xB5\x2F\xFD", NO_TEXT),
    (b"\x89PNG", NO_TEXT),
    (b"SQLite format 3\0", NO_TEXT),
    (
        b"\xFF\xFE\0\0",
        "this file is in UTF-32; save it as CSV UTF-8, or convert it: iconv -f UTF-32 -t UTF-8",
    ),
    (
        b"\0\0\xFE\xFF",
        "this file is in UTF-32; save it as CSV UTF-8, or convert it: iconv -f UTF-32 -t UTF-8",
    ),
];

/// Content of a file. UTF-16 is decoded to UTF-8, and any other encoding is left unchanged.
pub(super) enum Text<R> {
    /// A file that is read unchanged.
    Plain(io::Chain<Cursor<Vec<u8>>, R>),
    /// A file in UTF-16.
    Utf16(Box<Utf16<io::Chain<Cursor<Vec<u8>>, R>>>),
}

/// Recognizes the kind of a file. The inner error names the kind, and advises the operator.
pub(super) fn recognized<R: Read>(mut reader: R) -> io::Result<Result<Text<R>, String>> {
    let mut head = Vec::with_capacity(HEAD);
    reader.by_ref().take(HEAD as u64).read_to_end(&mut head)?;
    if let Some((_, reason)) = REFUSED.iter().find(|(beginning, _)| head.starts_with(beginning)) {
        return Ok(Err((*reason).to_owned()));
    }
    let decoder = utf16(&head);
    let text = String::from_utf8_lossy(head.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(&head));
    let begins = |beginning: &str| {
        text.trim_start().get(..beginning.len()).is_some_and(|text| text.eq_ignore_ascii_case(beginning))
    };
    if decoder.is_none() && ["<html", "<!doctype", "<table", "<?xml"].into_iter().any(begins) {
        let reason = "this is an HTML or XML page, as some programs write it under a name such as .xls; open it in a \
                      spreadsheet, choose Save As > CSV UTF-8, and import that file";
        return Ok(Err(reason.to_owned()));
    }
    let whole = Cursor::new(head).chain(reader);
    Ok(Ok(match decoder {
        Some(decoder) => Text::Utf16(Box::new(Utf16::new(whole, decoder))),
        None => Text::Plain(whole),
    }))
}

/// Returns the decoder of a file in UTF-16, with or without a byte order mark.
fn utf16(head: &[u8]) -> Option<Decoder> {
    match head {
        [0xFF, 0xFE, ..] => return Some(UTF_16LE.new_decoder_with_bom_removal()),
        [0xFE, 0xFF, ..] => return Some(UTF_16BE.new_decoder_with_bom_removal()),
        _ => {}
    }
    // If text in UTF-16 is mostly ASCII, most pairs of bytes have a zero byte, always at the same
    // place in the pair.
    let (pairs, _) = head.as_chunks::<2>();
    let zeros = |at: usize| pairs.iter().filter(|pair| pair[at] == 0).count();
    let most = pairs.len().div_ceil(2).max(1);
    match (zeros(0), zeros(1)) {
        (first, last) if last >= most && 4 * first < last => {
            Some(UTF_16LE.new_decoder_without_bom_handling())
        }
        (first, last) if first >= most && 4 * last < first => {
            Some(UTF_16BE.new_decoder_without_bom_handling())
        }
        _ => None,
    }
}

impl<R: Read> Read for Text<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(reader) => reader.read(buffer),
            Self::Utf16(reader) => reader.read(buffer),
        }
    }
}

/// Decodes UTF-16. Invalid UTF-16 becomes U+FFFD, which no column accepts.
pub(super) struct Utf16<R> {
    reader: R,
    decoder: Decoder,
    // Both buffers may hold secrets.
    encoded: Zeroizing<Vec<u8>>,
    decoded: Zeroizing<Vec<u8>>,
    /// Beginning of the decoded bytes that were not read yet.
    start: usize,
    is_over: bool,
}

impl<R: Read> Utf16<R> {
    fn new(reader: R, decoder: Decoder) -> Self {
        let (encoded, decoded) = (Zeroizing::new(Vec::new()), Zeroizing::new(Vec::new()));
        Self { reader, decoder, encoded, decoded, start: 0, is_over: false }
    }

    fn decode_more(&mut self) -> io::Result<()> {
        self.encoded.clear();
        self.reader.by_ref().take(CHUNK as u64).read_to_end(&mut self.encoded)?;
        self.is_over = self.encoded.is_empty();
        let most = self.decoder.max_utf8_buffer_length(self.encoded.len()).unwrap_or(3 * CHUNK + 16);
        self.decoded.clear();
        self.decoded.resize(most, 0);
        let (_, _, written, _) = self.decoder.decode_to_utf8(&self.encoded, &mut self.decoded, self.is_over);
        self.decoded.truncate(written);
        self.start = 0;
        Ok(())
    }
}

impl<R: Read> Read for Utf16<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.start == self.decoded.len() && !self.is_over {
            self.decode_more()?;
        }
        let rest = &self.decoded[self.start..];
        let length = rest.len().min(buffer.len());
        buffer[..length].copy_from_slice(&rest[..length]);
        self.start += length;
        Ok(length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bytes: &[u8]) -> Result<String, String> {
        recognized(bytes).unwrap().map(|mut text| {
            let mut all = Vec::new();
            text.read_to_end(&mut all).unwrap();
            String::from_utf8(all).unwrap()
        })
    }

    #[test]
    fn utf_16_is_recognized_with_and_without_its_mark() {
        let text = "deviceId,设备\nSN-1,😀\n".repeat(4000);
        let encoded = |mark: &[u8], big: bool| {
            let units = text
                .encode_utf16()
                .flat_map(|unit| if big { unit.to_be_bytes() } else { unit.to_le_bytes() });
            [mark, &units.collect::<Vec<_>>()].concat()
        };
        for bytes in
            [encoded(b"\xFF\xFE", false), encoded(b"\xFE\xFF", true), encoded(b"", false), encoded(b"", true)]
        {
            assert_eq!(read(&bytes).as_deref(), Ok(&*text));
        }
        // The input ends with half a character.
        assert_eq!(read(b"\xFF\xFEa\0b").as_deref(), Ok("a\u{FFFD}"));
        assert_eq!(read(b"a").as_deref(), Ok("a"));
        assert_eq!(read(b"").as_deref(), Ok(""));
    }

    #[test]
    fn what_is_no_table_is_named_with_the_way_out() {
        for (bytes, expected) in [
            (&b"PK\x03\x04\x14"[..], "Save As > CSV UTF-8"),
            (b"\xD0\xCF\x11\xE0\xA1", "old Excel workbook"),
            (b"\x1F\x8B\x08", "gunzip"),
            (b"\xEF\xBB\xBF \n<!DOCTYPE html>", "HTML or XML page"),
            (b"<Table><tr>", "HTML or XML page"),
        ] {
            assert!(read(bytes).unwrap_err().contains(expected), "{expected}");
        }
    }
}
