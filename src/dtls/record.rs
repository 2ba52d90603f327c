//! The framing of the record layer (RFC 6347 §4.1): splits a datagram into records, writes
//! the headers of outgoing records and detects replays. Encryption is in `suite`.

use super::wire::{Malformed, Reader};

/// Length of a record header in bytes.
pub(crate) const HEADER: usize = 13;
/// Maximum number of bytes that a protected record has in addition to its data, not
/// counting a connection ID: the header, the explicit nonce, the longest tag, and the
/// inner type (RFC 9146 §4).
pub(crate) const MAX_OVERHEAD: usize = HEADER + 8 + 16 + 1;
/// Highest sequence number of a record: sequence numbers have 48 bits. An association ends
/// once it has used this number.
pub(crate) const MAX_SEQUENCE: u64 = (1 << 48) - 1;
/// Longest plaintext in bytes (RFC 5246 §6.2.1).
pub(crate) const MAX_PLAINTEXT: usize = 1 << 14;
/// Maximum number of bytes that protection may add to a plaintext (RFC 5246 §6.2.3).
const MAX_EXPANSION: usize = 2048;

/// Version number of DTLS 1.2.
pub(crate) const DTLS_1_2: u16 = 0xfefd;
/// Version number of DTLS 1.0, which a HelloVerifyRequest carries (RFC 6347 §4.2.1).
pub(crate) const DTLS_1_0: u16 = 0xfeff;

/// Content type of a record (RFC 5246 §6.2.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ContentType {
    /// ChangeCipherSpec: the records that follow use new keys.
    ChangeCipherSpec = 20,
    /// An alert: a level and a description.
    Alert = 21,
    /// Handshake messages, or fragments of them.
    Handshake = 22,
    /// Application data.
    ApplicationData = 23,
    /// A record with a connection ID. Its real type is encrypted (RFC 9146 §4).
    Tls12Cid = 25,
}

impl ContentType {
    pub(crate) fn from_wire(byte: u8) -> Option<Self> {
        Some(match byte {
            20 => Self::ChangeCipherSpec,
            21 => Self::Alert,
            22 => Self::Handshake,
            23 => Self::ApplicationData,
            25 => Self::Tls12Cid,
            _ => return None,
        })
    }
}

/// Longest connection ID in bytes (RFC 9146 §3).
pub(crate) const MAX_CONNECTION_ID: usize = 255;

/// A connection ID that the server hands out. Its first byte identifies the endpoint
/// ([`Config::connection_id_prefix`](super::Config)); the other bytes are random.
pub(crate) type ConnectionId = [u8; 8];

/// The header of one record; the payload follows it in the datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) kind: ContentType,
    pub(crate) epoch: u16,
    /// Sequence number of 48 bits.
    pub(crate) sequence: u64,
}

impl Header {
    /// Returns the epoch and the sequence number as one value of 64 bits, as the nonce and
    /// the additional data use it (RFC 6655 §3, RFC 5288 §3).
    pub(crate) fn epoch_and_sequence(&self) -> u64 {
        u64::from(self.epoch) << 48 | self.sequence
    }
}

/// Appends a record header with the given payload length. The connection ID is empty
/// except in a tls12_cid record.
pub(crate) fn put_header(
    out: &mut Vec<u8>,
    header: Header,
    version: u16,
    connection_id: &[u8],
    length: usize,
) {
    out.push(header.kind as u8);
    out.extend_from_slice(&version.to_be_bytes());
    out.extend_from_slice(&header.epoch_and_sequence().to_be_bytes());
    out.extend_from_slice(connection_id);
    out.extend_from_slice(&(length as u16).to_be_bytes());
}

/// Appends a whole record of epoch 0.
pub(crate) fn put_plaintext(
    out: &mut Vec<u8>,
    kind: ContentType,
    sequence: u64,
    version: u16,
    payload: &[u8],
) {
    put_header(out, Header { kind, epoch: 0, sequence }, version, &[], payload.len());
    out.extend_from_slice(payload);
}

/// A received record.
pub(crate) struct Record<'d> {
    pub(crate) header: Header,
    /// Connection ID of a tls12_cid record; not authenticated.
    pub(crate) connection_id: Option<ConnectionId>,
    pub(crate) payload: &'d mut [u8],
}

/// The unread rest of a datagram. [`next`](Self::next) returns its records one after
/// another.
pub(crate) struct Records<'d> {
    rest: &'d mut [u8],
    /// Length of a connection ID in bytes. A record contains the ID but not its length,
    /// because the receiver chose the ID and knows how long it is (RFC 9146 §4).
    id_length: usize,
}

impl<'d> Records<'d> {
    pub(crate) fn new(datagram: &'d mut [u8]) -> Self {
        Self::with_id_length(datagram, size_of::<ConnectionId>())
    }

    /// Creates a reader for a receiver whose connection IDs differ in length from those of the
    /// server.
    pub(crate) fn with_id_length(datagram: &'d mut [u8], id_length: usize) -> Self {
        Self { rest: datagram, id_length }
    }

    /// Returns the next well-formed record. Records of an unknown type or version are
    /// skipped. A truncated record ends the datagram, because the start of the next record
    /// is then unknown. The rest is silently discarded (RFC 6347 §4.1.2.7).
    pub(crate) fn next(&mut self) -> Option<Record<'d>> {
        loop {
            let Ok(parsed) = parse(self.rest, self.id_length) else {
                self.rest = &mut [];
                return None;
            };
            let datagram = std::mem::take(&mut self.rest);
            let (record, rest) = datagram.split_at_mut_checked(parsed.start + parsed.length)?;
            self.rest = rest;
            if let Some(header) = parsed.header {
                let payload = record.get_mut(parsed.start..)?;
                return Some(Record { header, connection_id: parsed.connection_id, payload });
            }
        }
    }
}

struct Parsed {
    /// `None` if the type or version is unknown.
    header: Option<Header>,
    connection_id: Option<ConnectionId>,
    /// Offset of the payload.
    start: usize,
    /// Length of the payload, which may exceed the datagram.
    length: usize,
}

fn parse(bytes: &[u8], id_length: usize) -> Result<Parsed, Malformed> {
    let mut reader = Reader::new(bytes);
    let kind = ContentType::from_wire(reader.u8()?);
    let version = reader.u16()?;
    let epoch = reader.u16()?;
    let [a, b, c, d, e, f] = reader.array()?;
    let id = if kind == Some(ContentType::Tls12Cid) { reader.take(id_length)? } else { &[] };
    let length = usize::from(reader.u16()?);
    if length > MAX_PLAINTEXT + MAX_EXPANSION {
        return Err(Malformed);
    }
    let sequence = u64::from_be_bytes([0, 0, a, b, c, d, e, f]);
    // The minor version of a client's first records differs between stacks, so only the
    // major version is checked in epoch 0 (RFC 5246 appendix E.1). The version of a
    // protected record is authenticated (RFC 5246 §6.2.3.3) and must be the negotiated
    // one.
    let known = if epoch == 0 { version >> 8 == 0xfe } else { version == DTLS_1_2 };
    let header = kind.filter(|_| known).map(|kind| Header { kind, epoch, sequence });
    Ok(Parsed { header, connection_id: id.try_into().ok(), start: HEADER + id.len(), length })
}

/// The replay window (RFC 6347 §4.1.2.6), 64 records wide.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct ReplayWindow {
    /// Highest sequence number seen, plus one; 0 before the first record.
    next: u64,
    /// Bit n is set if record `next - 1 - n` was seen.
    seen: u64,
}

impl ReplayWindow {
    /// Returns whether a record with this number is new and within the window. Call this before
    /// decrypting the record.
    pub(crate) fn is_new(&self, sequence: u64) -> bool {
        match self.next.checked_sub(sequence + 1) {
            None => true,
            Some(age) => age < 64 && self.seen >> age & 1 == 0,
        }
    }

    /// Returns whether the number is higher than all numbers seen so far.
    pub(crate) fn is_newest(&self, sequence: u64) -> bool {
        sequence >= self.next
    }

    /// Marks a record as seen. Call this only after the record was authenticated.
    pub(crate) fn note(&mut self, sequence: u64) {
        match self.next.checked_sub(sequence + 1) {
            None => {
                let ahead = sequence + 1 - self.next;
                self.seen = self.seen.checked_shl(ahead as u32).filter(|_| ahead < 64).unwrap_or(0) | 1;
                self.next = sequence + 1;
            }
            Some(age) if age < 64 => self.seen |= 1 << age,
            Some(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(kind: u8, version: u16, sequence: u64, payload: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        put_plaintext(&mut out, ContentType::Handshake, sequence, version, payload);
        out[0] = kind;
        out
    }

    fn sequences(mut datagram: Vec<u8>) -> Vec<u64> {
        let mut records = Records::new(&mut datagram);
        std::iter::from_fn(|| records.next().map(|record| record.header.sequence)).collect()
    }

    #[test]
    fn several_records_of_a_datagram_are_read_in_order() {
        let datagram =
            [record(22, DTLS_1_2, 1, b"a"), record(22, DTLS_1_0, 2, b""), record(22, DTLS_1_2, 3, b"c")];
        assert_eq!(sequences(datagram.concat()), [1, 2, 3]);
    }

    #[test]
    fn an_unknown_type_or_version_is_skipped_and_the_rest_is_read() {
        let datagram =
            [record(99, DTLS_1_2, 1, b"a"), record(22, 0x0303, 2, b"b"), record(22, DTLS_1_2, 3, b"c")];
        assert_eq!(sequences(datagram.concat()), [3]);
    }

    #[test]
    fn a_truncated_record_ends_the_datagram() {
        let whole = [record(22, DTLS_1_2, 1, b"abc"), record(22, DTLS_1_2, 2, b"defg")].concat();
        let first = HEADER + 3;
        for length in 0..whole.len() {
            let expected: &[u64] = if length < first { &[] } else { &[1] };
            assert_eq!(sequences(whole[..length].to_vec()), expected, "{length} bytes");
        }
    }

    #[test]
    fn a_length_beyond_the_limit_ends_the_datagram() {
        let mut datagram = record(22, DTLS_1_2, 1, &[0; 4]);
        datagram[11..13].copy_from_slice(&u16::MAX.to_be_bytes());
        datagram.resize(70_000, 0);
        assert!(sequences(datagram).is_empty());
    }

    #[test]
    fn the_window_accepts_each_record_once_in_any_order_within_64() {
        let mut window = ReplayWindow::default();
        for sequence in [0, 2, 1, 63, 64, 5] {
            assert!(window.is_new(sequence), "{sequence}");
            window.note(sequence);
            assert!(!window.is_new(sequence), "{sequence}");
        }
        assert!(!window.is_new(0), "older than the window");
        window.note(1000);
        assert!(!window.is_new(64));
        assert!(!window.is_new(936));
        assert!(window.is_new(937));
        window.note(1064);
        assert!(!window.is_new(1000), "64 behind is out of the window");
        assert!(window.is_new(1001));
        window.note(MAX_SEQUENCE);
        assert!(!window.is_new(MAX_SEQUENCE));
    }

    /// RFC 5246 §6.2.3: a payload may have 2^14 bytes, plus 2,048 bytes that protection
    /// adds.
    #[test]
    fn the_longest_record_is_read_and_a_longer_one_is_not() {
        for (length, expected) in [(18_432, &[1, 2][..]), (18_433, &[])] {
            let datagram = [record(22, DTLS_1_2, 1, &vec![0; length]), record(22, DTLS_1_2, 2, b"b")];
            assert_eq!(sequences(datagram.concat()), expected);
        }
    }
}
