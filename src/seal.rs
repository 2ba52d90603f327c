//! Seals single values of a database with XChaCha20-Poly1305. The database key is not kept in the
//! database, so the database file alone reveals no secret. This module performs no I/O except for
//! random nonces. It knows nothing about the tables or about the source of a database key.

use std::{fmt, sync::Arc};

use base64::{Engine, engine::general_purpose::STANDARD_NO_PAD as BASE64};
use chacha20poly1305::{AeadInOut, KeyInit, Tag, XChaCha20Poly1305, XNonce};
use sha2::{Digest, Sha256};
use zeroize::{Zeroize, Zeroizing};

use crate::device::Secret;

/// Size of a database key, in bytes.
pub const KEY_SIZE: usize = 32;

/// Beginning of a sealed value. It is followed by the ID of the database key, a space, and the
/// base64 of nonce, ciphertext and tag. No clear value contains a space.
const PREFIX: &str = "sealed 1 ";

/// Size of a nonce, in bytes. Random nonces of 192 bits do not repeat.
const NONCE: usize = 24;
/// Size of an authentication tag, in bytes.
const TAG: usize = 16;

/// Pre-shared key that belongs to no device. It has the usual length of a pre-shared key: 16 bytes,
/// as hex.
const DECOY: &str = "00000000000000000000000000000000";
/// Place for which the decoy is sealed, with a device ID and an identity of usual length. A real
/// device may have the same ID without harm, because the decoy is never written to a database.
const DECOY_PLACE: Place<'static> = Place::Psk { device: "0000000000", identity: "0000000000" };

/// Identifies a database key without revealing it: the first 4 bytes of a hash of the database key.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct KeyId([u8; 4]);

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyId({self})")
    }
}

/// A database key; never printed, and wiped when dropped.
pub struct DatabaseKey {
    id: KeyId,
    cipher: XChaCha20Poly1305,
}

impl DatabaseKey {
    /// Parses a database key of 32 bytes from 64 hex digits or from base64, with or without
    /// padding. The error says what is expected, without repeating any part of the text.
    pub fn parse(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let mut key = Zeroizing::new([0; KEY_SIZE]);
        let is_hex = text.len() == 2 * KEY_SIZE && hex::decode_to_slice(text, &mut *key).is_ok();
        // In base64 without padding, 32 bytes have 43 digits.
        let digits = text.trim_end_matches('=');
        let mut is_base64 = || {
            let decoded = BASE64.decode(digits).map(Zeroizing::new);
            decoded.ok().filter(|bytes| bytes.len() == KEY_SIZE).map(|bytes| key.copy_from_slice(&bytes))
        };
        if !is_hex && is_base64().is_none() {
            return Err(format!(
                "expected {KEY_SIZE} random bytes as {} hex digits or in base64 (`openssl rand -hex {KEY_SIZE}` \
                 makes them)",
                2 * KEY_SIZE
            ));
        }
        let hash =
            Sha256::new().chain_update(b"certdist database key").chain_update(key.as_slice()).finalize();
        let mut id = [0; 4];
        id.copy_from_slice(&hash[..4]);
        Ok(Self { id: KeyId(id), cipher: XChaCha20Poly1305::new((&*key).into()) })
    }

    /// Makes a random database key, as hex.
    pub fn generate() -> Result<Secret, SealError> {
        let mut key = Zeroizing::new([0; KEY_SIZE]);
        getrandom::fill(&mut *key).map_err(|_| SealError::NoRandomness)?;
        Ok(Secret::new(hex::encode(key.as_slice())))
    }

    /// Returns the ID of the database key. The ID may be shown.
    pub fn id(&self) -> KeyId {
        self.id
    }
}

impl fmt::Debug for DatabaseKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DatabaseKey({})", self.id)
    }
}

/// Place of a value in the database. The place is authenticated with the value, so that a value
/// that was moved to another row or column cannot be opened.
#[derive(Debug, Clone, Copy)]
pub enum Place<'a> {
    /// The device secret of this device.
    DeviceSecret(&'a str),
    /// The pre-shared key of this device, under this identity.
    Psk {
        /// Device ID.
        device: &'a str,
        /// PSK identity.
        identity: &'a str,
    },
}

impl Place<'_> {
    fn associated_data(self) -> Vec<u8> {
        // A device ID has no zero byte, and the identity comes last. So different places always
        // have different bytes.
        let (column, device, identity) = match self {
            Self::DeviceSecret(device) => ("deviceSecret", device, ""),
            Self::Psk { device, identity } => ("psk", device, identity),
        };
        [PREFIX, column, "\0", device, "\0", identity].concat().into_bytes()
    }
}

impl fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::DeviceSecret(device) => write!(f, "device {device}, column deviceSecret"),
            Self::Psk { device, .. } => write!(f, "device {device}, column psk"),
        }
    }
}

/// Error of sealing or opening a value. Contains the row, and never the value.
#[derive(Debug, Clone, thiserror::Error)]
pub enum SealError {
    /// The value is not the value that was sealed at this place.
    #[error(
        "{0}: the value was changed, or moved there from another row or column; restore a backup, or delete the \
         device and import its line again"
    )]
    Broken(String),
    /// The database key that sealed the value is not configured.
    #[error(
        "{place}: the value is sealed under key {key}, which is not configured; add that key to \
         database_key_previous"
    )]
    NoKey {
        /// Row and column.
        place: String,
        /// ID of the database key, as stated in the value.
        key: String,
    },
    /// The system gives no random numbers.
    #[error("the system gives no random numbers")]
    NoRandomness,
}

/// The database keys. The first database key seals new values, and each database key opens the
/// values that it has sealed. If there is no database key, new values are not sealed.
#[derive(Debug, Clone)]
pub struct Keyring {
    keys: Arc<[DatabaseKey]>,
    /// Stored form of [`DECOY`], sealed under the first database key, or not sealed if there is
    /// none.
    decoy: Arc<str>,
}

impl Default for Keyring {
    fn default() -> Self {
        Self::new([])
    }
}

impl Keyring {
    /// Creates a keyring from database keys in order. Of two equal database keys, the first one is
    /// used.
    pub fn new(keys: impl IntoIterator<Item = DatabaseKey>) -> Self {
        let mut ring = Self { keys: keys.into_iter().collect(), decoy: DECOY.into() };
        // Sealing fails only for values of many gigabytes.
        if let Ok(sealed) = ring.seal(DECOY_PLACE, DECOY) {
            ring.decoy = sealed.expose().into();
        }
        ring
    }

    /// Returns the ID of the database key that seals new values.
    pub fn first(&self) -> Option<KeyId> {
        self.keys.first().map(DatabaseKey::id)
    }

    /// Returns the IDs of the database keys, in order.
    pub fn ids(&self) -> impl Iterator<Item = KeyId> {
        self.keys.iter().map(DatabaseKey::id)
    }

    /// Opens the stored pre-shared key of an identity in place if it is sealed. Otherwise opens the
    /// decoy. With a database key, exactly one sealed value is opened for any identity, so that all
    /// identities take the same time.
    pub fn open_one(&self, place: Place<'_>, stored: &mut Secret) -> Result<(), SealError> {
        if stored.expose().starts_with(PREFIX) {
            self.open_in_place(place, stored)
        } else {
            self.open_decoy()
        }
    }

    /// Opens the decoy, a pre-shared key that belongs to no device. Called when an unknown identity
    /// is looked up.
    pub fn open_decoy(&self) -> Result<(), SealError> {
        self.open(DECOY_PLACE, &self.decoy).map(drop)
    }

    /// Seals a value. Returns the value unchanged if there is no database key.
    pub fn seal(&self, place: Place<'_>, clear: &str) -> Result<Secret, SealError> {
        let Some(key) = self.keys.first() else { return Ok(Secret::new(clear.to_owned())) };
        let mut bytes = Zeroizing::new(vec![0; NONCE + clear.len() + TAG]);
        let (nonce, rest) = bytes.split_at_mut(NONCE);
        let (text, tag) = rest.split_at_mut(clear.len());
        // The nonce comes from the thread's own generator, which the system has seeded. One
        // system call per value would take most of the time of an import.
        nonce.copy_from_slice(&rand::random::<[u8; NONCE]>());
        text.copy_from_slice(clear.as_bytes());
        let nonce = XNonce::try_from(&*nonce).map_err(|_| broken(place))?;
        let made = key
            .cipher
            .encrypt_inout_detached(&nonce, &place.associated_data(), text.into())
            .map_err(|_| broken(place))?;
        tag.copy_from_slice(&made);
        Ok(Secret::new(format!("{PREFIX}{} {}", key.id, BASE64.encode(&*bytes))))
    }

    /// Replaces a stored value with the opened value.
    pub fn open_in_place(&self, place: Place<'_>, stored: &mut Secret) -> Result<(), SealError> {
        if stored.expose().starts_with(PREFIX) {
            *stored = self.open(place, stored.expose())?;
        }
        Ok(())
    }

    /// Opens a value that was sealed at this place. Returns a clear value unchanged, so that a
    /// database can be sealed while a server uses it.
    pub fn open(&self, place: Place<'_>, stored: &str) -> Result<Secret, SealError> {
        let Some(sealed) = stored.strip_prefix(PREFIX) else { return Ok(Secret::new(stored.to_owned())) };
        let (id, sealed) = sealed.split_once(' ').ok_or_else(|| broken(place))?;
        let mut named = [0; 4];
        hex::decode_to_slice(id, &mut named).map_err(|_| broken(place))?;
        let no_key = || SealError::NoKey { place: place.to_string(), key: id.to_owned() };
        let key = self.keys.iter().find(|key| key.id == KeyId(named)).ok_or_else(no_key)?;
        let mut bytes = Zeroizing::new(BASE64.decode(sealed).map_err(|_| broken(place))?);
        let length = bytes.len().checked_sub(NONCE + TAG).ok_or_else(|| broken(place))?;
        let (nonce, rest) = bytes.split_at_mut(NONCE);
        let (text, tag) = rest.split_at_mut(length);
        let nonce = XNonce::try_from(&*nonce).map_err(|_| broken(place))?;
        let tag = Tag::try_from(&*tag).map_err(|_| broken(place))?;
        key.cipher
            .decrypt_inout_detached(&nonce, &place.associated_data(), (&mut *text).into(), &tag)
            .map_err(|_| broken(place))?;
        #[cfg(test)]
        OPENED.set(OPENED.get() + 1);
        match String::from_utf8(text.to_vec()) {
            Ok(clear) => Ok(Secret::new(clear)),
            Err(error) => {
                error.into_bytes().zeroize();
                Err(broken(place))
            }
        }
    }
}

#[cfg(test)]
thread_local! {
    /// Number of sealed values that this thread has opened.
    pub(crate) static OPENED: std::cell::Cell<u64> = const { std::cell::Cell::new(0) };
}

/// Returns the ID of the database key under which a stored value is sealed; `None` for a value that
/// is not sealed.
pub fn key_of(stored: &str) -> Option<&str> {
    stored.strip_prefix(PREFIX)?.split_once(' ').map(|(key, _)| key)
}

/// Returns the beginning of all values that are sealed under the database key with this ID.
pub(super) fn beginning(key: &str) -> String {
    format!("{PREFIX}{key} ")
}

fn broken(place: Place<'_>) -> SealError {
    SealError::Broken(place.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &str = "0123456789abcdef0123456789abcdef";
    const HERE: Place<'_> = Place::DeviceSecret("SN-1");

    fn key(byte: u8) -> DatabaseKey {
        DatabaseKey::parse(&hex::encode([byte; KEY_SIZE])).unwrap()
    }

    fn ring(bytes: &[u8]) -> Keyring {
        Keyring::new(bytes.iter().copied().map(key))
    }

    #[test]
    fn a_sealed_value_opens_and_looks_different_each_time() {
        let keys = ring(&[1]);
        let [one, other] = [(), ()].map(|()| keys.seal(HERE, SECRET).unwrap());
        assert_ne!(one, other, "a nonce of its own for each value");
        assert!(!one.expose().contains(SECRET) && one.expose().is_ascii());
        let key = keys.first().unwrap().to_string();
        assert!(one.expose().starts_with(&beginning(&key)));
        assert_eq!(key_of(one.expose()), Some(&*key));
        for sealed in [one, other] {
            assert_eq!(keys.open(HERE, sealed.expose()).unwrap().expose(), SECRET);
        }
        let empty = keys.seal(HERE, "").unwrap();
        assert_eq!(keys.open(HERE, empty.expose()).unwrap().expose(), "");
    }

    #[test]
    fn a_value_opens_only_at_its_own_place() {
        let keys = ring(&[1]);
        let secret = keys.seal(HERE, SECRET).unwrap();
        let place = Place::Psk { device: "SN-1", identity: "one" };
        let psk = keys.seal(place, SECRET).unwrap();
        for (elsewhere, sealed) in [
            (Place::DeviceSecret("SN-2"), &secret),
            (Place::Psk { device: "SN-1", identity: "" }, &secret),
            (HERE, &psk),
            (Place::Psk { device: "SN-1", identity: "two" }, &psk),
            (Place::Psk { device: "SN-2", identity: "one" }, &psk),
        ] {
            let error = keys.open(elsewhere, sealed.expose()).unwrap_err().to_string();
            assert!(error.starts_with(&elsewhere.to_string()), "{error}");
            assert!(error.contains("moved there") && !error.contains(SECRET), "{error}");
        }
    }

    #[test]
    fn a_value_with_a_changed_character_does_not_open() {
        let keys = ring(&[1]);
        let sealed = keys.seal(HERE, SECRET).unwrap();
        let sealed = sealed.expose();
        for at in PREFIX.len()..sealed.len() {
            let mut changed = sealed.as_bytes().to_vec();
            changed[at] = if changed[at] == b'0' { b'1' } else { b'0' };
            assert!(keys.open(HERE, std::str::from_utf8(&changed).unwrap()).is_err(), "{at}");
        }
        for cut in PREFIX.len()..sealed.len() {
            assert!(keys.open(HERE, &sealed[..cut]).is_err(), "{cut}");
        }
    }

    #[test]
    fn any_of_the_keys_opens_and_the_first_seals() {
        let (old, both) = (ring(&[1]), ring(&[2, 1]));
        let sealed = old.seal(HERE, SECRET).unwrap();
        assert_eq!(both.open(HERE, sealed.expose()).unwrap().expose(), SECRET);
        let resealed = both.seal(HERE, SECRET).unwrap();
        let error = old.open(HERE, resealed.expose()).unwrap_err().to_string();
        assert!(error.contains("database_key_previous"), "{error}");
        assert!(error.contains(&both.first().unwrap().to_string()), "{error}");
    }

    #[test]
    fn one_sealed_value_is_opened_for_a_known_identity_and_for_an_unknown_one() {
        let known = |keys: &Keyring, place, mut stored: Secret| {
            let before = OPENED.get();
            keys.open_one(place, &mut stored).unwrap();
            assert_eq!(stored.expose(), SECRET);
            OPENED.get() - before
        };
        let unknown = |keys: &Keyring| {
            let before = OPENED.get();
            keys.open_decoy().unwrap();
            OPENED.get() - before
        };
        let place = Place::Psk { device: "SN-1", identity: "one" };
        let (former, both) = (ring(&[1]), ring(&[2, 1]));
        for keys in [&former, &both] {
            // The value is sealed under the first database key, sealed under a former one, or not
            // sealed.
            for stored in
                [keys.seal(place, SECRET), former.seal(place, SECRET), ring(&[]).seal(place, SECRET)]
            {
                assert_eq!(known(keys, place, stored.unwrap()), 1);
            }
            assert_eq!(unknown(keys), 1);
        }
        let clear = Keyring::default();
        assert_eq!([known(&clear, place, Secret::new(SECRET.into())), unknown(&clear)], [0, 0]);
        assert_eq!(clear.decoy.len(), SECRET.len());
    }

    #[test]
    fn a_clear_value_is_read_with_a_key_and_kept_without_one() {
        assert_eq!(ring(&[1]).open(HERE, SECRET).unwrap().expose(), SECRET);
        let stored = Keyring::default().seal(HERE, SECRET).unwrap();
        assert_eq!((stored.expose(), key_of(stored.expose())), (SECRET, None));
    }

    #[test]
    fn a_key_is_read_in_hex_and_base64_and_an_error_does_not_repeat_it() {
        let hex = DatabaseKey::generate().unwrap();
        let bytes = hex::decode(hex.expose()).unwrap();
        let id = DatabaseKey::parse(hex.expose()).unwrap().id();
        let padded = base64::engine::general_purpose::STANDARD.encode(&bytes);
        for spelling in [format!("{}\n", hex.expose()), padded, BASE64.encode(&bytes)] {
            assert_eq!(DatabaseKey::parse(&spelling).unwrap().id(), id);
        }
        for wrong in ["", "00ff", &hex.expose()[1..], "not a key at all, by any means"] {
            let error = DatabaseKey::parse(wrong).unwrap_err();
            assert!(
                error.contains("64 hex digits") && (wrong.is_empty() || !error.contains(wrong)),
                "{error}"
            );
        }
        assert_eq!(format!("{:?}", key(1)), format!("DatabaseKey({})", key(1).id()));
    }
}
