//! The cipher suites and how they protect records: AES-128 in CCM or GCM mode, an AEAD
//! with an explicit nonce (RFC 6655 §3, RFC 5487 §2). The primitives come from
//! RustCrypto; this module only supplies their inputs as DTLS defines them.

use std::ops::Range;

use aes::Aes128Enc;
use aes_gcm::{
    AesGcm,
    aead::{AeadInOut, Nonce, Tag},
};
use ccm::{
    Ccm,
    aead::{
        KeyInit,
        consts::{U8, U12, U16},
    },
};
use zeroize::Zeroizing;

use super::{
    clean_stack::on_clean_stack,
    record::{self, ContentType, Header, MAX_CONNECTION_ID},
};

// CCM and GCM use only the encryption direction of AES, even to open a record, so these
// types build no key schedule for decryption.
pub(super) type Ccm8 = Ccm<Aes128Enc, U8, U12>;
pub(super) type Ccm16 = Ccm<Aes128Enc, U16, U12>;
pub(super) type Gcm = AesGcm<Aes128Enc, U12>;

/// A cipher suite that the server supports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Suite {
    /// `TLS_ECDHE_PSK_WITH_AES_128_CCM_8_SHA256` (0xD003, RFC 8442).
    EcdhePskAes128Ccm8,
    /// `TLS_ECDHE_PSK_WITH_AES_128_GCM_SHA256` (0xD001, RFC 8442).
    EcdhePskAes128Gcm,
    /// `TLS_PSK_WITH_AES_128_CCM_8` (0xC0A8, RFC 6655): mandatory for CoAP devices (RFC
    /// 7252 §9.1.3.1).
    PskAes128Ccm8,
    /// `TLS_PSK_WITH_AES_128_CCM` (0xC0A4, RFC 6655).
    PskAes128Ccm,
    /// `TLS_PSK_WITH_AES_128_GCM_SHA256` (0x00A8, RFC 5487).
    PskAes128Gcm,
}

impl Suite {
    /// All suites, most preferred first.
    pub const ALL: [Self; 5] = [
        Self::EcdhePskAes128Ccm8,
        Self::EcdhePskAes128Gcm,
        Self::PskAes128Ccm8,
        Self::PskAes128Ccm,
        Self::PskAes128Gcm,
    ];

    /// Returns the suite's number in the IANA registry.
    pub const fn code(self) -> u16 {
        match self {
            Self::EcdhePskAes128Ccm8 => 0xd003,
            Self::EcdhePskAes128Gcm => 0xd001,
            Self::PskAes128Ccm8 => 0xc0a8,
            Self::PskAes128Ccm => 0xc0a4,
            Self::PskAes128Gcm => 0x00a8,
        }
    }

    /// Returns the suite's name in the IANA registry.
    pub const fn name(self) -> &'static str {
        match self {
            Self::EcdhePskAes128Ccm8 => "TLS_ECDHE_PSK_WITH_AES_128_CCM_8_SHA256",
            Self::EcdhePskAes128Gcm => "TLS_ECDHE_PSK_WITH_AES_128_GCM_SHA256",
            Self::PskAes128Ccm8 => "TLS_PSK_WITH_AES_128_CCM_8",
            Self::PskAes128Ccm => "TLS_PSK_WITH_AES_128_CCM",
            Self::PskAes128Gcm => "TLS_PSK_WITH_AES_128_GCM_SHA256",
        }
    }

    /// Returns whether both sides contribute an ephemeral key (RFC 5489). With such a
    /// suite, a PSK that leaks later does not decrypt recorded sessions.
    pub const fn is_ephemeral(self) -> bool {
        matches!(self, Self::EcdhePskAes128Ccm8 | Self::EcdhePskAes128Gcm)
    }

    const fn tag_length(self) -> usize {
        match self {
            Self::EcdhePskAes128Ccm8 | Self::PskAes128Ccm8 => 8,
            Self::EcdhePskAes128Gcm | Self::PskAes128Ccm | Self::PskAes128Gcm => 16,
        }
    }

    /// Returns the number of bytes that protection adds to a record's payload.
    pub const fn expansion(self) -> usize {
        EXPLICIT_NONCE + self.tag_length()
    }
}

const EXPLICIT_NONCE: usize = 8;

/// Length of the key block in bytes: two keys of 16 bytes and two salts of 4 bytes.
const KEY_BLOCK: usize = 40;

/// Keys of both directions, in the order of RFC 5246 §6.3. They are boxed, so a table that moves
/// its entries moves only a pointer. Otherwise, each move would leave behind a copy of the keys
/// that is never wiped.
pub(crate) struct KeyBlock(Box<Zeroizing<[u8; KEY_BLOCK]>>);

impl KeyBlock {
    /// Creates a key block and lets `derive` fill it.
    pub(crate) fn derive(derive: impl FnOnce(&mut [u8])) -> Self {
        let mut block = Box::new(Zeroizing::new([0; KEY_BLOCK]));
        derive(&mut block[..]);
        Self(block)
    }

    /// Returns the key that the client writes with.
    pub(crate) fn client(&self) -> DirectionKey<'_> {
        DirectionKey { key: self.part(0), salt: self.part(32) }
    }

    /// Returns the key that the server writes with.
    pub(crate) fn server(&self) -> DirectionKey<'_> {
        DirectionKey { key: self.part(16), salt: self.part(36) }
    }

    fn part<const N: usize>(&self, at: usize) -> &[u8; N] {
        let Some(part) = self.0.get(at..).and_then(|rest| rest.first_chunk()) else {
            unreachable!("every part is inside the block")
        };
        part
    }
}

/// The key of one direction, and the implicit part of its nonce. The AES key schedule is
/// not stored but computed again for each record. Computing it takes 0.1 µs; storing it
/// would take 176 bytes in each of 100,000 sessions.
#[derive(Clone, Copy)]
pub(crate) struct DirectionKey<'k> {
    key: &'k [u8; 16],
    salt: &'k [u8; 4],
}

/// Error: a record failed authentication.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BadRecord;

impl DirectionKey<'_> {
    /// Appends a protected record, including its header, to `out`. `connection_id` is the
    /// ID that the receiver has chosen. If it is not empty, the record becomes a tls12_cid
    /// record (RFC 9146 §4).
    pub(crate) fn seal(
        &self,
        suite: Suite,
        header: Header,
        connection_id: &[u8],
        plaintext: &[u8],
        out: &mut Vec<u8>,
    ) {
        let inner_type: &[u8] = if connection_id.is_empty() { &[] } else { &[header.kind as u8] };
        self.seal_parts(suite, header, connection_id, [plaintext, inner_type], out);
    }

    /// Appends a protected record whose plaintext consists of `parts`: the content and, in
    /// a tls12_cid record, the content type and any padding.
    pub(crate) fn seal_parts(
        &self,
        suite: Suite,
        header: Header,
        connection_id: &[u8],
        parts: [&[u8]; 2],
        out: &mut Vec<u8>,
    ) {
        let explicit = header.epoch_and_sequence().to_be_bytes();
        let length = parts.iter().map(|part| part.len()).sum::<usize>();
        let kind = if connection_id.is_empty() { header.kind } else { ContentType::Tls12Cid };
        record::put_header(
            out,
            Header { kind, ..header },
            record::DTLS_1_2,
            connection_id,
            length + suite.expansion(),
        );
        out.extend_from_slice(&explicit);
        let at = out.len();
        parts.iter().for_each(|part| out.extend_from_slice(part));
        let body = &mut out[at..];
        let aad = AdditionalData::new(header, connection_id, length);
        let aad = aad.as_bytes();
        match suite {
            Suite::EcdhePskAes128Ccm8 | Suite::PskAes128Ccm8 => {
                self.encrypt::<Ccm8>(explicit, aad, body).map(|tag| out.extend(tag))
            }
            Suite::PskAes128Ccm => self.encrypt::<Ccm16>(explicit, aad, body).map(|tag| out.extend(tag)),
            Suite::EcdhePskAes128Gcm | Suite::PskAes128Gcm => {
                self.encrypt::<Gcm>(explicit, aad, body).map(|tag| out.extend(tag))
            }
        }
        // RFC 5116 §2.1: encryption fails only for messages longer than the suite's limit.
        // The lowest limit is 2^24 bytes, and a record's payload is far shorter.
        .unwrap_or_default()
    }

    /// Decrypts a record's payload in place. Returns the record's content type and the
    /// range of `payload` that holds the plaintext. `connection_id` is the ID that the
    /// record carries, or empty. With an ID, the content type is inside the encrypted
    /// payload (RFC 9146 §4).
    pub(crate) fn open(
        &self,
        suite: Suite,
        header: Header,
        connection_id: &[u8],
        payload: &mut [u8],
    ) -> Result<(ContentType, Range<usize>), BadRecord> {
        let (explicit, rest) = payload.split_first_chunk_mut::<EXPLICIT_NONCE>().ok_or(BadRecord)?;
        let length = rest.len().checked_sub(suite.tag_length()).ok_or(BadRecord)?;
        let (body, tag) = rest.split_at_mut_checked(length).ok_or(BadRecord)?;
        if body.len() > record::MAX_PLAINTEXT + 1 {
            return Err(BadRecord);
        }
        let aad = AdditionalData::new(header, connection_id, body.len());
        let aad = aad.as_bytes();
        match suite {
            Suite::EcdhePskAes128Ccm8 | Suite::PskAes128Ccm8 => {
                self.decrypt::<Ccm8>(*explicit, aad, body, tag)
            }
            Suite::PskAes128Ccm => self.decrypt::<Ccm16>(*explicit, aad, body, tag),
            Suite::EcdhePskAes128Gcm | Suite::PskAes128Gcm => self.decrypt::<Gcm>(*explicit, aad, body, tag),
        }?;
        if connection_id.is_empty() {
            return Ok((header.kind, EXPLICIT_NONCE..EXPLICIT_NONCE + length));
        }
        // RFC 9146 §4: the plaintext is the content, its type, and any number of zeros.
        let end = body.iter().rposition(|&byte| byte != 0).ok_or(BadRecord)?;
        let kind = body.get(end).and_then(|&byte| ContentType::from_wire(byte)).ok_or(BadRecord)?;
        Ok((kind, EXPLICIT_NONCE..EXPLICIT_NONCE + end))
    }

    #[cfg(test)]
    pub(super) fn as_bytes(&self) -> &[u8] {
        self.key
    }

    fn nonce(&self, explicit: [u8; EXPLICIT_NONCE]) -> [u8; 12] {
        let mut nonce = [0; 12];
        nonce[..4].copy_from_slice(self.salt);
        nonce[4..].copy_from_slice(&explicit);
        nonce
    }

    pub(super) fn encrypt<A: AeadInOut<NonceSize = U12> + KeyInit<KeySize = U16>>(
        &self,
        explicit: [u8; EXPLICIT_NONCE],
        aad: &[u8],
        body: &mut [u8],
    ) -> Option<Tag<A>> {
        let nonce = Nonce::<A>::from(self.nonce(explicit));
        on_clean_stack(|| A::new(self.key.into()).encrypt_inout_detached(&nonce, aad, body.into()).ok())
    }

    pub(super) fn decrypt<A: AeadInOut<NonceSize = U12> + KeyInit<KeySize = U16>>(
        &self,
        explicit: [u8; EXPLICIT_NONCE],
        aad: &[u8],
        body: &mut [u8],
        tag: &[u8],
    ) -> Result<(), BadRecord> {
        #[cfg(test)]
        DECRYPTED.set(DECRYPTED.get() + 1);
        let nonce = Nonce::<A>::from(self.nonce(explicit));
        let tag = Tag::<A>::try_from(tag).map_err(|_| BadRecord)?;
        on_clean_stack(|| A::new(self.key.into()).decrypt_inout_detached(&nonce, aad, body.into(), &tag))
            .map_err(|_| BadRecord)
    }
}

/// The additional data of a record: 13 bytes, or 23 bytes plus the connection ID if the
/// record has one.
struct AdditionalData {
    bytes: [u8; 23 + MAX_CONNECTION_ID],
    length: usize,
}

impl AdditionalData {
    fn new(header: Header, connection_id: &[u8], length: usize) -> Self {
        let mut data = Self { bytes: [0; 23 + MAX_CONNECTION_ID], length: 0 };
        let sequence = header.epoch_and_sequence().to_be_bytes();
        let version = record::DTLS_1_2.to_be_bytes();
        let length = (length as u16).to_be_bytes();
        if connection_id.is_empty() {
            // This is the additional data of RFC 5246 §6.2.3.3. In DTLS, the epoch and the record's
            // sequence number together replace the sequence number of TLS (RFC 6347 §4.1.2.1).
            for part in [&sequence[..], &[header.kind as u8], &version, &length] {
                data.push(part);
            }
        } else {
            // This is the additional data of RFC 9146 §5.3, for a record with a connection ID.
            let kind = ContentType::Tls12Cid as u8;
            for part in [
                &[0xff; 8][..],
                &[kind, connection_id.len() as u8, kind],
                &version,
                &sequence,
                connection_id,
                &length,
            ] {
                data.push(part);
            }
        }
        data
    }

    fn push(&mut self, part: &[u8]) {
        if let Some(place) = self.bytes.get_mut(self.length..self.length + part.len()) {
            place.copy_from_slice(part);
            self.length += part.len();
        }
    }

    fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

#[cfg(test)]
thread_local! {
    /// Number of records that this thread has tried to decrypt.
    pub(super) static DECRYPTED: std::cell::Cell<u64> = const { std::cell::Cell::new(0) };
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dtls::record::{ContentType, HEADER};

    fn key() -> DirectionKey<'static> {
        DirectionKey { key: &[7; 16], salt: &[1, 2, 3, 4] }
    }

    const HEADER_1_5: Header = Header { kind: ContentType::ApplicationData, epoch: 1, sequence: 5 };

    #[test]
    fn each_suite_opens_what_it_sealed_and_nothing_that_was_altered() {
        for suite in Suite::ALL {
            for connection_id in [&[][..], b"12345678"] {
                let mut sealed = Vec::new();
                key().seal(suite, HEADER_1_5, connection_id, b"hello device", &mut sealed);
                let start = HEADER + connection_id.len();
                let open = |header, payload: &mut [u8]| key().open(suite, header, connection_id, payload);
                let mut payload = sealed[start..].to_vec();
                let (kind, plaintext) = open(HEADER_1_5, &mut payload).unwrap();
                assert_eq!((kind, &payload[plaintext]), (ContentType::ApplicationData, &b"hello device"[..]));
                for at in start..sealed.len() {
                    let mut touched = sealed.clone();
                    touched[at] ^= 1;
                    assert_eq!(open(HEADER_1_5, &mut touched[start..]), Err(BadRecord), "{suite:?} {at}");
                }
                let later = Header { sequence: 6, ..HEADER_1_5 };
                assert_eq!(open(later, &mut sealed.clone()[start..]), Err(BadRecord));
                let mut payload = sealed[start..].to_vec();
                assert_eq!(key().open(suite, HEADER_1_5, b"87654321", &mut payload), Err(BadRecord));
                if connection_id.is_empty() {
                    let alert = Header { kind: ContentType::Alert, ..HEADER_1_5 };
                    assert_eq!(open(alert, &mut sealed.clone()[start..]), Err(BadRecord));
                }
            }
        }
    }

    /// Seals a payload with a connection ID and a freely chosen inner plaintext.
    fn sealed_inner(inner: &[u8]) -> Vec<u8> {
        let explicit = HEADER_1_5.epoch_and_sequence().to_be_bytes();
        let mut body = inner.to_vec();
        let aad = AdditionalData::new(HEADER_1_5, b"12345678", body.len());
        let tag = key().encrypt::<Ccm8>(explicit, aad.as_bytes(), &mut body).unwrap();
        [&explicit[..], &body, &tag].concat()
    }

    #[test]
    fn padding_inside_a_record_with_a_connection_id_is_removed() {
        let mut payload = sealed_inner(b"data\x17\0\0\0");
        let (kind, range) = key().open(Suite::PskAes128Ccm8, HEADER_1_5, b"12345678", &mut payload).unwrap();
        assert_eq!((kind, &payload[range]), (ContentType::ApplicationData, &b"data"[..]));
        // A plaintext that consists only of padding has no content type.
        let mut payload = sealed_inner(&[0; 8]);
        assert_eq!(key().open(Suite::PskAes128Ccm8, HEADER_1_5, b"12345678", &mut payload), Err(BadRecord));
    }

    #[test]
    fn a_payload_too_short_for_nonce_and_tag_is_a_bad_record() {
        for suite in Suite::ALL {
            for length in 0..suite.expansion() {
                assert_eq!(key().open(suite, HEADER_1_5, &[], &mut vec![0; length]), Err(BadRecord));
            }
        }
    }

    /// RFC 5246 §6.2.1 allows 2^14 bytes, and RFC 9146 §4 adds one byte for the inner
    /// type.
    #[test]
    fn a_plaintext_longer_than_a_record_may_have_is_a_bad_record() {
        for suite in Suite::ALL {
            for (surplus, is_taken) in [(1, true), (2, false)] {
                let mut sealed = Vec::new();
                let plaintext = vec![7; record::MAX_PLAINTEXT + surplus];
                key().seal(suite, HEADER_1_5, &[], &plaintext, &mut sealed);
                assert_eq!(key().open(suite, HEADER_1_5, &[], &mut sealed[HEADER..]).is_ok(), is_taken);
            }
        }
    }
}
