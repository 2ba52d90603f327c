//! The cipher suites and what they do to a record: AES-128 in CCM or GCM as an
//! AEAD with an explicit nonce (RFC 6655 §3, RFC 5487 §2). The primitives are
//! RustCrypto's; here is only how DTLS feeds them.

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
use zeroize::{Zeroize, ZeroizeOnDrop};

use super::record::{self, Header};

// Only the encryption half of the AES key schedule is ever needed.
type Ccm8 = Ccm<Aes128Enc, U8, U12>;
type Ccm16 = Ccm<Aes128Enc, U16, U12>;
type Gcm = AesGcm<Aes128Enc, U12>;

/// A cipher suite that the server can speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Suite {
    /// `TLS_PSK_WITH_AES_128_CCM_8` (0xC0A8, RFC 6655): what RFC 7252 §9.1.3.1
    /// makes mandatory for CoAP devices.
    PskAes128Ccm8,
    /// `TLS_PSK_WITH_AES_128_CCM` (0xC0A4, RFC 6655).
    PskAes128Ccm,
    /// `TLS_PSK_WITH_AES_128_GCM_SHA256` (0x00A8, RFC 5487).
    PskAes128Gcm,
}

impl Suite {
    /// All of them, the preferred one first.
    pub const ALL: [Self; 3] = [Self::PskAes128Ccm8, Self::PskAes128Ccm, Self::PskAes128Gcm];

    /// The number in IANA's registry.
    pub const fn code(self) -> u16 {
        match self {
            Self::PskAes128Ccm8 => 0xc0a8,
            Self::PskAes128Ccm => 0xc0a4,
            Self::PskAes128Gcm => 0x00a8,
        }
    }

    /// The name in IANA's registry.
    pub const fn name(self) -> &'static str {
        match self {
            Self::PskAes128Ccm8 => "TLS_PSK_WITH_AES_128_CCM_8",
            Self::PskAes128Ccm => "TLS_PSK_WITH_AES_128_CCM",
            Self::PskAes128Gcm => "TLS_PSK_WITH_AES_128_GCM_SHA256",
        }
    }

    const fn tag_length(self) -> usize {
        match self {
            Self::PskAes128Ccm8 => 8,
            Self::PskAes128Ccm | Self::PskAes128Gcm => 16,
        }
    }

    /// How many bytes protection adds to a record's payload.
    pub const fn expansion(self) -> usize {
        EXPLICIT_NONCE + self.tag_length()
    }
}

const EXPLICIT_NONCE: usize = 8;

/// The key and the implicit part of the nonce of one direction. The AES key
/// schedule is made anew for each record: it costs a tenth of a microsecond and
/// would take 176 bytes of each of a hundred thousand sessions.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub(crate) struct DirectionKey {
    key: [u8; 16],
    salt: [u8; 4],
}

/// A record failed authentication.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BadRecord;

impl DirectionKey {
    pub(crate) fn new(key: [u8; 16], salt: [u8; 4]) -> Self {
        Self { key, salt }
    }

    /// Appends the whole protected record to `out`.
    pub(crate) fn seal(&self, suite: Suite, header: Header, plaintext: &[u8], out: &mut Vec<u8>) {
        let explicit = header.epoch_and_sequence().to_be_bytes();
        record::put_header(out, header, record::DTLS_1_2, plaintext.len() + suite.expansion());
        out.extend_from_slice(&explicit);
        let at = out.len();
        out.extend_from_slice(plaintext);
        let body = &mut out[at..];
        let aad = additional_data(header, plaintext.len());
        match suite {
            Suite::PskAes128Ccm8 => self.encrypt::<Ccm8>(explicit, &aad, body).map(|tag| out.extend(tag)),
            Suite::PskAes128Ccm => self.encrypt::<Ccm16>(explicit, &aad, body).map(|tag| out.extend(tag)),
            Suite::PskAes128Gcm => self.encrypt::<Gcm>(explicit, &aad, body).map(|tag| out.extend(tag)),
        }
        // RFC 5116 §2.1: encryption fails only for messages beyond the suite's
        // limit, and a record's payload is far below 2^24 bytes.
        .unwrap_or_default()
    }

    /// Decrypts a record's payload in place; the plaintext is then the part of
    /// it that the range tells.
    pub(crate) fn open(
        &self,
        suite: Suite,
        header: Header,
        payload: &mut [u8],
    ) -> Result<Range<usize>, BadRecord> {
        let (explicit, rest) = payload.split_first_chunk_mut::<EXPLICIT_NONCE>().ok_or(BadRecord)?;
        let length = rest.len().checked_sub(suite.tag_length()).ok_or(BadRecord)?;
        let (body, tag) = rest.split_at_mut_checked(length).ok_or(BadRecord)?;
        if body.len() > record::MAX_PLAINTEXT {
            return Err(BadRecord);
        }
        let aad = additional_data(header, body.len());
        match suite {
            Suite::PskAes128Ccm8 => self.decrypt::<Ccm8>(*explicit, &aad, body, tag),
            Suite::PskAes128Ccm => self.decrypt::<Ccm16>(*explicit, &aad, body, tag),
            Suite::PskAes128Gcm => self.decrypt::<Gcm>(*explicit, &aad, body, tag),
        }?;
        Ok(EXPLICIT_NONCE..EXPLICIT_NONCE + length)
    }

    fn nonce(&self, explicit: [u8; EXPLICIT_NONCE]) -> [u8; 12] {
        let mut nonce = [0; 12];
        nonce[..4].copy_from_slice(&self.salt);
        nonce[4..].copy_from_slice(&explicit);
        nonce
    }

    fn encrypt<A: AeadInOut<NonceSize = U12> + KeyInit<KeySize = U16>>(
        &self,
        explicit: [u8; EXPLICIT_NONCE],
        aad: &[u8],
        body: &mut [u8],
    ) -> Option<Tag<A>> {
        let nonce = Nonce::<A>::from(self.nonce(explicit));
        A::new(&self.key.into()).encrypt_inout_detached(&nonce, aad, body.into()).ok()
    }

    fn decrypt<A: AeadInOut<NonceSize = U12> + KeyInit<KeySize = U16>>(
        &self,
        explicit: [u8; EXPLICIT_NONCE],
        aad: &[u8],
        body: &mut [u8],
        tag: &[u8],
    ) -> Result<(), BadRecord> {
        let nonce = Nonce::<A>::from(self.nonce(explicit));
        let tag = Tag::<A>::try_from(tag).map_err(|_| BadRecord)?;
        A::new(&self.key.into()).decrypt_inout_detached(&nonce, aad, body.into(), &tag).map_err(|_| BadRecord)
    }
}

/// RFC 5246 §6.2.3.3, with epoch and sequence number as the sequence number
/// (RFC 6347 §4.1.2.1).
fn additional_data(header: Header, length: usize) -> [u8; 13] {
    let mut aad = [0; 13];
    aad[..8].copy_from_slice(&header.epoch_and_sequence().to_be_bytes());
    aad[8] = header.kind as u8;
    aad[9..11].copy_from_slice(&record::DTLS_1_2.to_be_bytes());
    aad[11..].copy_from_slice(&(length as u16).to_be_bytes());
    aad
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dtls::record::{ContentType, HEADER};

    fn key() -> DirectionKey {
        DirectionKey::new([7; 16], [1, 2, 3, 4])
    }

    const HEADER_1_5: Header = Header { kind: ContentType::ApplicationData, epoch: 1, sequence: 5 };

    #[test]
    fn each_suite_opens_what_it_sealed_and_nothing_that_was_touched() {
        for suite in Suite::ALL {
            let mut sealed = Vec::new();
            key().seal(suite, HEADER_1_5, b"hello device", &mut sealed);
            assert_eq!(sealed.len(), HEADER + 12 + suite.expansion());
            let mut payload = sealed[HEADER..].to_vec();
            let plaintext = key().open(suite, HEADER_1_5, &mut payload).unwrap();
            assert_eq!(&payload[plaintext], b"hello device");
            for at in HEADER..sealed.len() {
                let mut touched = sealed.clone();
                touched[at] ^= 1;
                assert_eq!(
                    key().open(suite, HEADER_1_5, &mut touched[HEADER..]),
                    Err(BadRecord),
                    "{suite:?} {at}"
                );
            }
            let later = Header { sequence: 6, ..HEADER_1_5 };
            assert_eq!(key().open(suite, later, &mut sealed.clone()[HEADER..]), Err(BadRecord));
            let alert = Header { kind: ContentType::Alert, ..HEADER_1_5 };
            assert_eq!(key().open(suite, alert, &mut sealed.clone()[HEADER..]), Err(BadRecord));
        }
    }

    #[test]
    fn a_payload_too_short_for_nonce_and_tag_is_a_bad_record() {
        for suite in Suite::ALL {
            for length in 0..suite.expansion() {
                assert_eq!(key().open(suite, HEADER_1_5, &mut vec![0; length]), Err(BadRecord));
            }
        }
    }
}
