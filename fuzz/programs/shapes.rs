//! Builds CoAP messages as a program describes them. Most are well-formed, with any
//! options. A program sends other malformed messages as raw bytes.

use super::reader::Reader;

/// Option numbers: some that the endpoint knows, some that only other servers know, and
/// some that are unknown.
const OPTIONS: [u16; 24] =
    [1, 3, 4, 5, 6, 7, 8, 9, 11, 11, 12, 14, 15, 17, 23, 23, 27, 27, 28, 35, 60, 252, 258, 2049];
const CODES: [u8; 8] = [0x01, 0x02, 0x05, 0x03, 0x00, 0x45, 0x1f, 0xe1];
const SEGMENTS: [&[u8]; 4] = [b"cert", b"slow", b".well-known", b"\xff"];

/// Returns the confirmable request `GET /cert`.
pub fn plain() -> Vec<u8> {
    b"\x41\x01\0\0\x07\xb4cert".to_vec()
}

/// Reads a message from a program. Its message ID is to be filled in later.
pub fn message(reader: &mut Reader<'_>) -> Option<Vec<u8>> {
    let (form, code) = (reader.byte()?, CODES[reader.below(CODES.len())?]);
    let token = usize::from(form & 7);
    let kind = form >> 4 & 3;
    let mut message = vec![0x40 | kind << 4 | token as u8, code, 0, 0];
    message.extend(std::iter::repeat_n(form, token));
    let mut options = Vec::new();
    for _ in 0..reader.below(6)? {
        let option = OPTIONS[reader.below(OPTIONS.len())?];
        options.push((option, value(option, reader)?));
    }
    options.sort_by_key(|&(option, _)| option);
    let mut before = 0;
    for (option, value) in options {
        put(&mut message, option - before, &value);
        before = option;
    }
    let payload = usize::from(reader.byte()?);
    if payload > 0 {
        message.push(0xff);
        // Some payloads are twice as long, so that one can fill a block exactly.
        message.extend(std::iter::repeat_n(form, if payload % 8 == 0 { payload * 2 } else { payload }));
    }
    Some(message)
}

fn value(option: u16, reader: &mut Reader<'_>) -> Option<Vec<u8>> {
    let byte = reader.byte()?;
    Some(match option {
        11 if byte < 192 => SEGMENTS[usize::from(byte % 4)].to_vec(),
        // A block option of one byte: number, more flag and size. Longer values are read
        // as bytes.
        23 | 27 if byte != 0xff => vec![byte],
        5 | 6 | 7 | 12 | 14 | 17 | 28 | 60 | 258 if byte < 224 => vec![byte],
        _ => reader.bytes()?.to_vec(),
    })
}

fn put(message: &mut Vec<u8>, delta: u16, value: &[u8]) {
    let (high, delta) = nibble(delta);
    let (low, length) = nibble(value.len() as u16);
    message.push(high << 4 | low);
    message.extend(delta);
    message.extend(length);
    message.extend_from_slice(value);
}

/// Encodes the delta or length of an option (RFC 7252 §3.1). Returns its four bits and the
/// bytes of its extended form.
fn nibble(number: u16) -> (u8, Vec<u8>) {
    match number {
        0..13 => (number as u8, Vec::new()),
        13..269 => (13, vec![(number - 13) as u8]),
        _ => (14, (number - 269).to_be_bytes().to_vec()),
    }
}
