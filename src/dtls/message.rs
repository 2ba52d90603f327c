//! Handshake messages (RFC 6347 §4.2, RFC 5246 §7.4): parses the client's messages with bounds
//! checks, and writes the server's messages. The module `handshake` decides when each message is
//! expected.

use super::{
    cookie::COOKIE,
    key_exchange::{EphemeralKey, Group},
    record::{ConnectionId, DTLS_1_0, DTLS_1_2, MAX_PLAINTEXT},
    suite::Suite,
    wire::{Malformed, Reader, put_u24, put_vector16},
};

/// Length of a handshake message's header in bytes.
pub(crate) const HEADER: usize = 12;

pub(crate) const CLIENT_HELLO: u8 = 1;
pub(crate) const SERVER_HELLO: u8 = 2;
pub(crate) const HELLO_VERIFY_REQUEST: u8 = 3;
pub(crate) const SERVER_KEY_EXCHANGE: u8 = 12;
pub(crate) const SERVER_HELLO_DONE: u8 = 14;
pub(crate) const CLIENT_KEY_EXCHANGE: u8 = 16;
pub(crate) const FINISHED: u8 = 20;

/// Signalling suite with the meaning of an empty renegotiation_info (RFC 5746 §3.3).
const EMPTY_RENEGOTIATION_INFO_SCSV: u16 = 0x00ff;
/// Type of the extension max_fragment_length (RFC 6066 §4).
const MAX_FRAGMENT_LENGTH: u16 = 0x0001;
/// Types of the extensions for groups and point formats (RFC 8422 §5.1).
const SUPPORTED_GROUPS: u16 = 0x000a;
const EC_POINT_FORMATS: u16 = 0x000b;
/// Type of the extension record_size_limit (RFC 8449 §4).
const RECORD_SIZE_LIMIT: u16 = 0x001c;
/// Type of the extension connection_id (RFC 9146 §3).
const CONNECTION_ID: u16 = 0x0036;
/// Type of the extension extended_master_secret (RFC 7627 §5.1).
const EXTENDED_MASTER_SECRET: u16 = 0x0017;
/// Type of the extension renegotiation_info (RFC 5746 §3.2).
const RENEGOTIATION_INFO: u16 = 0xff01;

/// Value of record_size_limit that the server announces to a client that sends this
/// extension, in bytes (RFC 8449). A record of this size fits into a datagram at the
/// minimum MTU of IPv6.
const OWN_RECORD_SIZE_LIMIT: u16 = 1200;
/// Smallest record_size_limit that a client may send, in bytes (RFC 8449 §4).
const MIN_RECORD_SIZE_LIMIT: u16 = 64;

/// Longest identity accepted, in bytes. RFC 4279 §5.3 requires support for up to 128
/// bytes.
pub(crate) const MAX_IDENTITY: usize = 128;
/// Longest ClientKeyExchange accepted, in bytes. A valid one is much shorter: an identity
/// of up to 128 bytes and, in an ephemeral suite, a point of up to 65 bytes. The limit is
/// higher so that the log can report the length of an identity that is too long.
pub(crate) const MAX_CLIENT_KEY_EXCHANGE: usize = 512;
/// Maximum number of extensions in a ClientHello. Known stacks send fewer than 32.
const MAX_EXTENSIONS: usize = 64;

/// Alert descriptions that the server sends (RFC 5246 §7.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Alert {
    CloseNotify = 0,
    HandshakeFailure = 40,
    IllegalParameter = 47,
    DecodeError = 50,
    DecryptError = 51,
    ProtocolVersion = 70,
    NoRenegotiation = 100,
}

impl Alert {
    /// Returns the two bytes of the alert: its level and its description.
    pub(crate) fn to_wire(self) -> [u8; 2] {
        let level = match self {
            Self::CloseNotify | Self::NoRenegotiation => 1,
            _ => 2,
        };
        [level, self as u8]
    }
}

/// Returns the name of an alert description that a device may send (RFC 5246 §7.2, RFC
/// 4279 §2), for the log.
pub fn alert_name(description: u8) -> &'static str {
    match description {
        0 => "close_notify",
        10 => "unexpected_message",
        20 => "bad_record_mac",
        22 => "record_overflow",
        40 => "handshake_failure",
        47 => "illegal_parameter",
        50 => "decode_error",
        51 => "decrypt_error",
        70 => "protocol_version",
        71 => "insufficient_security",
        80 => "internal_error",
        90 => "user_canceled",
        100 => "no_renegotiation",
        109 => "missing_extension",
        110 => "unsupported_extension",
        115 => "unknown_psk_identity",
        _ => "another alert",
    }
}

/// One fragment of a handshake message, as a record carries it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Fragment<'a> {
    pub(crate) kind: u8,
    /// Length of the whole message in bytes, without its header.
    pub(crate) length: usize,
    /// Number of the message (message_seq).
    pub(crate) sequence: u16,
    pub(crate) offset: usize,
    pub(crate) body: &'a [u8],
}

impl<'a> Fragment<'a> {
    pub(crate) fn read(reader: &mut Reader<'a>) -> Result<Self, Malformed> {
        let kind = reader.u8()?;
        let length = reader.u24()? as usize;
        let sequence = reader.u16()?;
        let offset = reader.u24()? as usize;
        let fragment_length = reader.u24()? as usize;
        let body = reader.take(fragment_length)?;
        if offset + fragment_length > length {
            return Err(Malformed);
        }
        Ok(Self { kind, length, sequence, offset, body })
    }

    pub(crate) fn is_whole(&self) -> bool {
        self.body.len() == self.length
    }
}

/// Appends the header of an unfragmented message. The transcript hashes this header for every
/// message, even if the message was fragmented (RFC 6347 §4.2.6).
pub(crate) fn put_header(out: &mut Vec<u8>, kind: u8, sequence: u16, length: usize) {
    out.push(kind);
    put_u24(out, length);
    out.extend_from_slice(&sequence.to_be_bytes());
    put_u24(out, 0);
    put_u24(out, length);
}

/// The beginning of a ClientHello, up to and including the cookie. The cookie exchange
/// reads only this part, so the server keeps no state even if the hello is fragmented.
pub(crate) struct HelloPrefix<'a> {
    pub(crate) version: u16,
    pub(crate) random: [u8; 32],
    pub(crate) cookie: &'a [u8],
}

impl<'a> HelloPrefix<'a> {
    pub(crate) fn read(reader: &mut Reader<'a>) -> Result<Self, Malformed> {
        let version = reader.u16()?;
        let random = reader.array()?;
        let session_id = reader.vector8()?;
        if session_id.len() > 32 {
            return Err(Malformed);
        }
        let cookie = reader.vector8()?;
        Ok(Self { version, random, cookie })
    }
}

/// The parts of a complete ClientHello that determine the server's answer.
pub(crate) struct ClientHello<'a> {
    pub(crate) version: u16,
    pub(crate) random: [u8; 32],
    /// Big-endian 16-bit codes.
    cipher_suites: &'a [u8],
    null_compression: bool,
    pub(crate) extended_master_secret: bool,
    pub(crate) secure_renegotiation: bool,
    /// Big-endian 16-bit codes. `None` if the client does not send the extension, like
    /// clients older than RFC 4492.
    groups: Option<&'a [u8]>,
    pub(crate) point_formats: bool,
    pub(crate) size_limit: Option<SizeLimit>,
    /// Connection ID for records from the server to the client; may be empty.
    pub(crate) connection_id: Option<&'a [u8]>,
}

/// Limit that the client sets on the plaintext of records from the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SizeLimit {
    /// max_fragment_length (RFC 6066 §4). Its codes 1–4 stand for 512–4,096 bytes.
    MaxFragmentLength(u8),
    /// record_size_limit (RFC 8449), in bytes.
    Record(u16),
}

impl SizeLimit {
    /// Returns the maximum number of plaintext bytes in a record to the client.
    pub(crate) fn bytes(self) -> u16 {
        match self {
            Self::MaxFragmentLength(code) => 256 << code,
            Self::Record(bytes) => bytes.min(MAX_PLAINTEXT as u16),
        }
    }
}

/// Reason why a ClientHello is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BadHello {
    Malformed,
    /// The hello is well-formed, but contains a value that its RFC forbids.
    IllegalParameter,
    /// The hello begins an initial handshake, but claims to be a renegotiation (RFC 5746
    /// §3.6).
    Renegotiation,
}

impl BadHello {
    /// Returns the alert to send to the client.
    pub(crate) fn alert(self) -> Alert {
        match self {
            Self::Malformed => Alert::DecodeError,
            Self::IllegalParameter => Alert::IllegalParameter,
            Self::Renegotiation => Alert::HandshakeFailure,
        }
    }
}

impl From<Malformed> for BadHello {
    fn from(Malformed: Malformed) -> Self {
        Self::Malformed
    }
}

impl<'a> ClientHello<'a> {
    pub(crate) fn read(body: &'a [u8]) -> Result<Self, BadHello> {
        let mut reader = Reader::new(body);
        let HelloPrefix { version, random, .. } = HelloPrefix::read(&mut reader)?;
        let cipher_suites = reader.vector16()?;
        if cipher_suites.is_empty() || cipher_suites.len() % 2 != 0 {
            return Err(BadHello::Malformed);
        }
        let compression = reader.vector8()?;
        let mut hello = Self {
            version,
            random,
            cipher_suites,
            null_compression: compression.contains(&0),
            extended_master_secret: false,
            secure_renegotiation: offers(cipher_suites, EMPTY_RENEGOTIATION_INFO_SCSV),
            groups: None,
            point_formats: false,
            size_limit: None,
            connection_id: None,
        };
        // RFC 5246 §7.4.1.2: the whole list of extensions may be missing.
        if !reader.is_empty() {
            hello.read_extensions(Reader::new(reader.vector16()?))?;
            reader.end()?;
        }
        Ok(hello)
    }

    /// Reads the extensions. Ignores unknown extensions (RFC 5246 §7.4.1.4).
    fn read_extensions(&mut self, mut extensions: Reader<'a>) -> Result<(), BadHello> {
        let (mut seen, mut count) = ([0; MAX_EXTENSIONS], 0);
        while !extensions.is_empty() {
            let kind = extensions.u16()?;
            let body = extensions.vector16()?;
            // RFC 5246 §7.4.1.4: each type of extension may appear at most once.
            let (earlier, rest) = seen.split_at_mut(count);
            if earlier.contains(&kind) {
                return Err(BadHello::IllegalParameter);
            }
            *rest.first_mut().ok_or(Malformed)? = kind;
            count += 1;
            match kind {
                EXTENDED_MASTER_SECRET if body.is_empty() => self.extended_master_secret = true,
                EXTENDED_MASTER_SECRET => return Err(BadHello::Malformed),
                // RFC 5746 §3.6: in an initial handshake, the field renegotiated_connection
                // is empty.
                RENEGOTIATION_INFO if whole(body, Reader::vector8)?.is_empty() => {
                    self.secure_renegotiation = true;
                }
                RENEGOTIATION_INFO => return Err(BadHello::Renegotiation),
                // RFC 8422 §5.1.1: the body is a list of one or more 16-bit codes.
                SUPPORTED_GROUPS => match whole(body, Reader::vector16)? {
                    groups if groups.is_empty() || groups.len() % 2 != 0 => return Err(BadHello::Malformed),
                    groups => self.groups = Some(groups),
                },
                // RFC 8422 §5.1.2: every list of formats must contain the uncompressed
                // one.
                EC_POINT_FORMATS if whole(body, Reader::vector8)?.contains(&0) => self.point_formats = true,
                EC_POINT_FORMATS => return Err(BadHello::IllegalParameter),
                MAX_FRAGMENT_LENGTH => match *body {
                    // RFC 8449 §5: if both extensions are present, record_size_limit
                    // applies.
                    [1..=4] if matches!(self.size_limit, Some(SizeLimit::Record(_))) => {}
                    [code @ 1..=4] => self.size_limit = Some(SizeLimit::MaxFragmentLength(code)),
                    _ => return Err(BadHello::IllegalParameter),
                },
                RECORD_SIZE_LIMIT => match *body {
                    [high, low] if u16::from_be_bytes([high, low]) >= MIN_RECORD_SIZE_LIMIT => {
                        self.size_limit = Some(SizeLimit::Record(u16::from_be_bytes([high, low])));
                    }
                    _ => return Err(BadHello::IllegalParameter),
                },
                CONNECTION_ID => self.connection_id = Some(whole(body, Reader::vector8)?),
                _ => {}
            }
        }
        Ok(())
    }

    /// Returns the codes of the suites that the client offers.
    pub(crate) fn suites(&self) -> impl Iterator<Item = u16> {
        self.cipher_suites.chunks_exact(2).filter_map(|code| Some(u16::from_be_bytes(code.try_into().ok()?)))
    }

    /// Chooses the first of `suites` that the client offers. For an ephemeral suite, also
    /// chooses the group of its keys; the suite is skipped if there is no common group.
    /// Returns `None` if no suite is left or the client does not offer null compression.
    pub(crate) fn choose(&self, suites: &[Suite]) -> Option<(Suite, Option<Group>)> {
        if !self.null_compression {
            return None;
        }
        suites.iter().filter(|suite| offers(self.cipher_suites, suite.code())).find_map(|&suite| {
            if suite.is_ephemeral() {
                self.group().map(|group| (suite, Some(group)))
            } else {
                Some((suite, None))
            }
        })
    }

    fn group(&self) -> Option<Group> {
        match self.groups {
            // RFC 8422 §5.1.1: the client lists its groups in order of preference. The
            // order matters: wolfSSL 5.5 lists X25519 last and cannot use it with
            // ECDHE_PSK.
            Some(groups) => groups
                .chunks_exact(2)
                .find_map(|code| Group::ALL.into_iter().find(|&group| (group as u16).to_be_bytes() == code)),
            // RFC 8422 §4: without the extension, the server chooses the group. Every stack so old
            // that it omits the extension supports P-256.
            None => Some(Group::Secp256r1),
        }
    }
}

/// Returns whether a list of 16-bit codes contains `code`.
fn offers(codes: &[u8], code: u16) -> bool {
    codes.chunks_exact(2).any(|offered| offered == code.to_be_bytes())
}

/// Reads the body of an extension that consists of exactly one vector.
fn whole<'a>(
    body: &'a [u8],
    vector: impl FnOnce(&mut Reader<'a>) -> Result<&'a [u8], Malformed>,
) -> Result<&'a [u8], Malformed> {
    let mut reader = Reader::new(body);
    let content = vector(&mut reader)?;
    reader.end()?;
    Ok(content)
}

/// Reads a ClientKeyExchange. Returns the identity (RFC 4279 §2) and, for an ephemeral
/// suite, the client's point (RFC 5489 §2). The identity may be longer than
/// [`MAX_IDENTITY`].
pub(crate) fn read_client_key_exchange(
    body: &[u8],
    ephemeral: bool,
) -> Result<(&[u8], Option<&[u8]>), Malformed> {
    let mut reader = Reader::new(body);
    let identity = reader.vector16()?;
    let point = if ephemeral { Some(reader.vector8()?) } else { None };
    reader.end()?;
    Ok((identity, point))
}

/// Length of a HelloVerifyRequest in bytes, including its header.
pub(crate) const HELLO_VERIFY_REQUEST_LENGTH: usize = HEADER + 3 + COOKIE;

/// Appends a HelloVerifyRequest (RFC 6347 §4.2.1) with its header. `sequence` is the
/// message_seq of the hello that it answers.
pub(crate) fn put_hello_verify_request(out: &mut Vec<u8>, sequence: u16, cookie: &[u8; COOKIE]) {
    put_header(out, HELLO_VERIFY_REQUEST, sequence, 3 + COOKIE);
    // RFC 6347 §4.2.1: server_version should be DTLS 1.0, no matter which version is
    // negotiated later.
    out.extend_from_slice(&DTLS_1_0.to_be_bytes());
    out.push(COOKIE as u8);
    out.extend_from_slice(cookie);
}

/// The content of a ServerHello. A ServerHello answers only extensions that the client offered (RFC
/// 5246 §7.4.1.4).
pub(crate) struct ServerHello {
    pub(crate) random: [u8; 32],
    pub(crate) suite: Suite,
    pub(crate) extended_master_secret: bool,
    pub(crate) secure_renegotiation: bool,
    pub(crate) point_formats: bool,
    pub(crate) size_limit: Option<SizeLimit>,
    /// Connection ID for records from the client to the server.
    pub(crate) connection_id: Option<ConnectionId>,
}

impl ServerHello {
    /// Appends the message with its header.
    pub(crate) fn put(&self, out: &mut Vec<u8>, sequence: u16) {
        let start = out.len();
        put_header(out, SERVER_HELLO, sequence, 0);
        out.extend_from_slice(&DTLS_1_2.to_be_bytes());
        out.extend_from_slice(&self.random);
        out.push(0); // empty session ID: no session is resumed
        out.extend_from_slice(&self.suite.code().to_be_bytes());
        out.push(0); // null compression
        let extensions_at = out.len();
        put_vector16(out, |extensions| self.put_extensions(extensions));
        if out.len() == extensions_at + 2 {
            out.truncate(extensions_at);
        }
        set_length(out, start);
    }

    fn put_extensions(&self, out: &mut Vec<u8>) {
        let mut put = |kind: u16, body: &[u8]| {
            out.extend_from_slice(&kind.to_be_bytes());
            put_vector16(out, |out| out.extend_from_slice(body));
        };
        if self.secure_renegotiation {
            put(RENEGOTIATION_INFO, &[0]);
        }
        if self.extended_master_secret {
            put(EXTENDED_MASTER_SECRET, &[]);
        }
        if self.point_formats {
            put(EC_POINT_FORMATS, &[1, 0]); // uncompressed
        }
        match self.size_limit {
            Some(SizeLimit::MaxFragmentLength(code)) => put(MAX_FRAGMENT_LENGTH, &[code]),
            Some(SizeLimit::Record(_)) => put(RECORD_SIZE_LIMIT, &OWN_RECORD_SIZE_LIMIT.to_be_bytes()),
            None => {}
        }
        if let Some(id) = self.connection_id {
            let [a, b, c, d, e, f, g, h] = id;
            put(CONNECTION_ID, &[8, a, b, c, d, e, f, g, h]);
        }
    }
}

/// Appends the ServerKeyExchange of an ephemeral suite with its header (RFC 5489 §2): an
/// empty identity hint and the server's point.
pub(crate) fn put_server_key_exchange(out: &mut Vec<u8>, sequence: u16, key: &EphemeralKey) {
    let start = out.len();
    put_header(out, SERVER_KEY_EXCHANGE, sequence, 0);
    out.extend_from_slice(&[0, 0]);
    key.put_params(out);
    set_length(out, start);
}

/// Appends a ServerHelloDone with its header.
pub(crate) fn put_server_hello_done(out: &mut Vec<u8>, sequence: u16) {
    put_header(out, SERVER_HELLO_DONE, sequence, 0);
}

/// Writes the length of the message that starts at `start` into its header.
fn set_length(out: &mut [u8], start: usize) {
    let length = ((out.len() - start - HEADER) as u32).to_be_bytes();
    out[start + 1..start + 4].copy_from_slice(&length[1..]);
    out[start + 9..start + 12].copy_from_slice(&length[1..]);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hello(extensions: &[u8]) -> Vec<u8> {
        let mut body = vec![0xfe, 0xfd];
        body.extend([7; 32]);
        body.extend([0, 0]); // session ID, cookie
        body.extend([0, 6, 0xc0, 0xa8, 0x13, 0x01, 0x00, 0xff]);
        body.extend([1, 0]);
        body.extend(extensions);
        body
    }

    #[test]
    fn a_hello_without_extensions_is_legal() {
        let body = hello(&[]);
        let hello = ClientHello::read(&body).unwrap();
        assert_eq!(hello.choose(&Suite::ALL), Some((Suite::PskAes128Ccm8, None)));
        assert!(hello.secure_renegotiation, "the signalling suite");
        assert!(!hello.extended_master_secret);
    }

    #[test]
    fn a_list_of_suites_that_is_empty_or_cut_short_is_refused() {
        let offering = |suites: &[u8]| {
            let mut body = vec![0xfe, 0xfd];
            body.extend([7; 32]);
            body.extend([0, 0, 0, suites.len() as u8]);
            body.extend(suites);
            body.extend([1, 0]);
            ClientHello::read(&body).err()
        };
        assert_eq!(offering(&[]), Some(BadHello::Malformed));
        assert_eq!(offering(&[0xc0, 0xa8, 0]), Some(BadHello::Malformed));
        assert_eq!(offering(&[0xc0, 0xa8]), None);
    }

    /// RFC 7627 §5.1: a body that is not empty makes the hello malformed.
    #[test]
    fn extended_master_secret_has_an_empty_body() {
        let body = hello(&[0, 5, 0, 0x17, 0, 1, 0]);
        assert_eq!(ClientHello::read(&body).err(), Some(BadHello::Malformed));
    }

    /// RFC 5246 §7.4.1.3: a ServerHello without extensions also omits the length of the
    /// list of extensions.
    #[test]
    fn a_server_hello_without_extensions_ends_with_the_compression() {
        let hello = ServerHello {
            random: [7; 32],
            suite: Suite::PskAes128Ccm8,
            extended_master_secret: false,
            secure_renegotiation: false,
            point_formats: false,
            size_limit: None,
            connection_id: None,
        };
        let mut out = Vec::new();
        hello.put(&mut out, 1);
        let body = [&[0xfe, 0xfd][..], &[7; 32], &[0, 0xc0, 0xa8, 0]].concat();
        assert_eq!(out[HEADER..], body);
        assert_eq!(out[..HEADER], [2, 0, 0, 38, 0, 1, 0, 0, 0, 0, 0, 38]);
    }

    #[test]
    fn unknown_extensions_are_ignored() {
        let body = hello(&[0, 13, 0x5a, 0x5a, 0, 1, 9, 0, 0x17, 0, 0, 0, 0, 0, 0]);
        assert!(ClientHello::read(&body).unwrap().extended_master_secret);
    }

    #[test]
    fn a_truncated_hello_is_malformed_at_every_length() {
        let body = hello(&[0, 4, 0, 0x17, 0, 0]);
        let without_extensions = body.len() - 6;
        for length in (0..body.len()).filter(|&length| length != without_extensions) {
            assert!(ClientHello::read(&body[..length]).is_err(), "{length}");
        }
        assert!(ClientHello::read(&body).is_ok());
        assert!(ClientHello::read(&[body, vec![0]].concat()).is_err(), "trailing byte");
    }

    #[test]
    fn renegotiation_info_that_is_not_empty_is_refused_as_rfc_5746_says() {
        let refusal = |extensions: &[u8]| ClientHello::read(&hello(extensions)).err();
        assert_eq!(refusal(&[0, 6, 0xff, 0x01, 0, 2, 1, 9]), Some(BadHello::Renegotiation));
        assert_eq!(refusal(&[0, 5, 0xff, 0x01, 0, 1, 9]), Some(BadHello::Malformed));
        assert_eq!(refusal(&[0, 5, 0xff, 0x01, 0, 1, 0]), None);
    }

    #[test]
    fn an_extension_that_comes_twice_is_refused_known_or_not() {
        let refusal = |extensions: &[u8]| ClientHello::read(&hello(extensions)).err();
        for code in [0x17, 0x5a] {
            let twice = [0, 12, 0, code, 0, 0, 0, 13, 0, 0, 0, code, 0, 0];
            assert_eq!(refusal(&twice), Some(BadHello::IllegalParameter), "{code}");
        }
        let many = |count: u8| {
            let list: Vec<u8> = (0..count).flat_map(|number| [0x40, number, 0, 0]).collect();
            [&(list.len() as u16).to_be_bytes()[..], &list].concat()
        };
        assert_eq!(refusal(&many(64)), None);
        assert_eq!(refusal(&many(65)), Some(BadHello::Malformed));
    }

    #[test]
    fn groups_and_point_formats_must_have_the_form_of_rfc_8422() {
        let refusal = |kind: u8, body: &[u8]| {
            let length = body.len() as u8;
            ClientHello::read(&hello(&[&[0, length + 4, 0, kind, 0, length], body].concat())).err()
        };
        assert_eq!(refusal(10, &[0, 2, 0, 29]), None);
        assert_eq!(refusal(10, &[0, 3, 0, 29, 0]), Some(BadHello::Malformed), "an odd length");
        assert_eq!(refusal(10, &[0, 0]), Some(BadHello::Malformed), "no group");
        assert_eq!(refusal(11, &[2, 1, 0]), None);
        assert_eq!(refusal(11, &[1, 1]), Some(BadHello::IllegalParameter), "no uncompressed");
        assert_eq!(refusal(11, &[3, 0]), Some(BadHello::Malformed));
    }

    #[test]
    fn a_fragment_reaching_past_its_message_is_malformed() {
        let bytes = [1, 0, 0, 5, 0, 0, 0, 0, 4, 0, 0, 2, 1, 2];
        assert!(Fragment::read(&mut Reader::new(&bytes)).is_err());
    }

    #[test]
    fn a_client_key_exchange_has_an_identity_and_for_an_ephemeral_suite_a_point() {
        let exchange = |length: usize| [&(length as u16).to_be_bytes()[..], &vec![b'x'; length]].concat();
        assert_eq!(read_client_key_exchange(&exchange(128), false).unwrap().0.len(), 128);
        assert!(read_client_key_exchange(&exchange(3)[..4], false).is_err());
        assert!(read_client_key_exchange(&exchange(3), true).is_err(), "the point is missing");
    }
}
