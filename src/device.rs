//! The types that every other module uses: a device's ID, its name at IoT Platform and its
//! certificate. This module performs no I/O, and knows nothing about the wire formats or the store.

use std::fmt;

use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

/// Longest device ID, in bytes.
pub const MAX_DEVICE_ID: usize = 64;
/// Longest device name that IoT Platform accepts, in bytes.
pub const MAX_DEVICE_NAME: usize = 32;

/// Device ID, which identifies a row of the device table. The ID is either a serial number or a MAC
/// address. A serial number is case-sensitive and has 1–64 characters of `[A-Za-z0-9._:@-]`. A MAC
/// address is written as 12 upper-case hex digits.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DeviceId(Box<str>);

/// Reason why a text is not a device ID. The error does not contain the text, which may be long or
/// not printable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DeviceIdError {
    /// The text is empty.
    #[error("a device ID is empty")]
    Empty,
    /// The text has more than 64 bytes.
    #[error("a device ID has more than {MAX_DEVICE_ID} characters")]
    TooLong,
    /// The text has a character other than `[A-Za-z0-9._:@-]`.
    #[error("a device ID has a character other than A-Z a-z 0-9 . _ : @ -")]
    Character,
    /// The text should be a MAC address, but is not.
    #[error("a MAC address is 12 hex digits, with or without separators: 001A2B3C4D5E, 00:1A:2B:3C:4D:5E")]
    Mac,
}

impl DeviceId {
    /// Parses an ID of either kind. A text that looks like a MAC address is parsed as a MAC
    /// address.
    pub fn parse(text: &str) -> Result<Self, DeviceIdError> {
        match canonical_mac(text) {
            Some(mac) => Ok(Self(mac.into())),
            None => Self::parse_sn(text),
        }
    }

    /// Parses a serial number. The text is not changed, even if it consists of 12 hex digits in
    /// lower case.
    pub fn parse_sn(text: &str) -> Result<Self, DeviceIdError> {
        if text.is_empty() {
            return Err(DeviceIdError::Empty);
        }
        if text.len() > MAX_DEVICE_ID {
            return Err(DeviceIdError::TooLong);
        }
        if !text.bytes().all(is_id_character) {
            return Err(DeviceIdError::Character);
        }
        Ok(Self(text.into()))
    }

    /// Parses a MAC address in any spelling: 12 hex digits, with or without `0x` before them and
    /// `:`, `-`, `.`, `_` or spaces between them.
    pub fn parse_mac(text: &str) -> Result<Self, DeviceIdError> {
        canonical_mac(text).map(|mac| Self(mac.into())).ok_or(DeviceIdError::Mac)
    }

    /// Returns the ID as it is stored and compared.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the name under which this device is registered at IoT Platform. The name depends
    /// only on the ID, so that a registration that is repeated after a crash requests the same
    /// device.
    ///
    /// An ID of 4–32 characters is its own name. Any other ID is mapped to `@` and the first 31
    /// characters of the lower-case base32 of its SHA-256. An ID that looks like a mapped name (32
    /// characters that begin with `@`) is mapped, too. The mapped name contains 155 bits of the
    /// hash, so that two IDs never collide in practice.
    pub fn device_name(&self) -> String {
        let id = self.as_str();
        let looks_mapped = id.len() == MAX_DEVICE_NAME && id.starts_with('@');
        if (4..=MAX_DEVICE_NAME).contains(&id.len()) && !looks_mapped {
            return id.to_owned();
        }
        let digest = Sha256::digest(id.as_bytes());
        let mut name = String::with_capacity(MAX_DEVICE_NAME);
        name.push('@');
        name.extend(base32_lower(&digest).take(MAX_DEVICE_NAME - 1));
        name
    }
}

impl fmt::Display for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DeviceId({})", self.0)
    }
}

/// Returns whether IoT Platform accepts the text as a device name: 4–32 characters of
/// `[A-Za-z0-9_.:@-]`.
pub fn is_device_name(text: &str) -> bool {
    (4..=MAX_DEVICE_NAME).contains(&text.len()) && text.bytes().all(is_id_character)
}

/// Returns whether a device ID or a device name may contain the byte.
pub(crate) fn is_id_character(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b':' | b'@' | b'-')
}

/// Longest spelling of a MAC address, in bytes. A longer text is not examined.
const MAX_MAC: usize = MAX_DEVICE_ID;

/// Returns 12 upper-case hex digits if the text is a MAC address in any spelling.
fn canonical_mac(text: &str) -> Option<String> {
    if !(12..=MAX_MAC).contains(&text.len()) {
        return None;
    }
    let bare = |group| str::strip_prefix(group, "0x").or_else(|| group.strip_prefix("0X")).unwrap_or(group);
    let digits = || text.split([':', '-', '.', '_', ' ']).map(bare).flat_map(str::bytes);
    let is_mac = digits().all(|byte| byte.is_ascii_hexdigit()) && digits().count() == 12;
    is_mac.then(|| digits().map(|byte| char::from(byte.to_ascii_uppercase())).collect())
}

/// Returns whether a MAC address has the spelling of IEEE 802 or of network equipment. These
/// spellings are bare digits, pairs separated by `:` or `-`, and three groups of four separated by
/// `.`.
fn is_usual_mac(text: &str) -> bool {
    let (group, separators): (usize, &[u8]) = match text.len() {
        12 => (12, b""),
        17 => (2, b":-"),
        14 => (4, b"."),
        _ => return false,
    };
    let separator = text.as_bytes().get(group);
    text.bytes().enumerate().all(|(at, byte)| match at % (group + 1) == group {
        // All separators must be the same.
        true => separators.contains(&byte) && Some(&byte) == separator,
        false => byte.is_ascii_hexdigit(),
    })
}

/// Device ID in a request. A text with the digits of a MAC address may also be a serial number in
/// the table, so a requested ID can stand for two IDs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AskedId {
    id: DeviceId,
    /// The MAC address that the text may stand for, if this address differs from `id`.
    mac: Option<DeviceId>,
}

impl AskedId {
    /// Parses an ID of either kind. A MAC address in an unusual spelling is looked up as a serial
    /// number first, because earlier versions stored it as a serial number.
    pub fn parse(text: &str) -> Result<Self, DeviceIdError> {
        match DeviceId::parse(text)? {
            mac if canonical_mac(text).is_some() && !is_usual_mac(text) => Ok(Self::either(text, mac)),
            id => Ok(id.into()),
        }
    }

    /// Parses a serial number. If the serial number has the digits of a MAC address, the result
    /// also stands for that MAC address, which is looked up second.
    pub fn parse_sn(text: &str) -> Result<Self, DeviceIdError> {
        match DeviceId::parse_mac(text) {
            Ok(mac) => Ok(Self::either(text, mac)),
            Err(_) => DeviceId::parse_sn(text).map(Self::from),
        }
    }

    /// Parses a MAC address in any spelling.
    pub fn parse_mac(text: &str) -> Result<Self, DeviceIdError> {
        DeviceId::parse_mac(text)?;
        Self::parse(text)
    }

    /// Parses a text that an operator reads from a label. The text may be a serial number or a MAC
    /// address.
    pub fn parse_label(text: &str) -> Result<Self, DeviceIdError> {
        let text = text.trim();
        Self::parse_sn(text).or_else(|_| Self::parse(text))
    }

    /// Returns an ID that stands for the text as a serial number and for the MAC address, if these
    /// differ. A text with spaces cannot be a serial number, so it stands only for the MAC address.
    fn either(text: &str, mac: DeviceId) -> Self {
        match DeviceId::parse_sn(text) {
            Ok(id) if id != mac => Self { id, mac: Some(mac) },
            _ => mac.into(),
        }
    }

    /// Returns the one or two IDs to look up, in the order of the lookups.
    pub fn ids(&self) -> impl Iterator<Item = &DeviceId> {
        std::iter::once(&self.id).chain(&self.mac)
    }

    /// Returns the ID that is looked up first.
    pub fn first(&self) -> &DeviceId {
        &self.id
    }

    /// Returns the MAC address with the digits of the text. Returns `None` if the text does not
    /// have the digits of a MAC address.
    pub fn mac(&self) -> Option<DeviceId> {
        self.mac.clone().or_else(|| DeviceId::parse_mac(self.id.as_str()).ok())
    }

    /// Returns the ID that is the same for all spellings of a MAC address.
    pub fn canonical(&self) -> &DeviceId {
        self.mac.as_ref().unwrap_or(&self.id)
    }
}

impl From<DeviceId> for AskedId {
    /// Creates a requested ID that stands for this ID only.
    fn from(id: DeviceId) -> Self {
        Self { id, mac: None }
    }
}

/// Encodes in base32 (RFC 4648 §6), in lower case and without padding.
fn base32_lower(bytes: &[u8]) -> impl Iterator<Item = char> + '_ {
    const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
    (0..bytes.len() * 8 / 5).map(move |digit| {
        let value = (0..5).fold(0usize, |value, bit| {
            let position = digit * 5 + bit;
            value << 1 | usize::from(bytes[position / 8] >> (7 - position % 8) & 1)
        });
        char::from(ALPHABET[value])
    })
}

/// Text that must not be printed: `Debug` hides it, and `Display` is not implemented. The text is
/// wiped when dropped.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// Takes ownership of the text; the caller must keep no copy.
    pub fn new(text: String) -> Self {
        Self(Zeroizing::new(text))
    }

    /// Returns the text, for sending or storing it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// The credentials with which a device signs in at IoT Platform.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certificate {
    /// `ProductKey`: the product that the device belongs to.
    pub product_key: String,
    /// `DeviceName`: 4–32 characters of `[A-Za-z0-9_.:@-]`, unique in its product.
    pub device_name: String,
    /// `DeviceSecret`: never printed.
    pub device_secret: Secret,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_spelling_of_a_mac_is_one_device() {
        let usual =
            ["00:1a:2B:3c:4d:5e", "00-1A-2B-3C-4D-5E", "001a.2b3c.4d5e", "001a2b3c4d5e", "001A2B3C4D5E"];
        let unusual = [
            "001a-2b3c-4d5e",
            "001a2b-3c4d5e",
            "001a:2b3c:4d5e",
            "00.1a.2b.3c.4d.5e",
            "00_1a_2b_3c_4d_5e",
            "00:1a-2b:3c:4d:5e",
            "00 1a 2b 3c 4d 5e",
            "0x001a2b3c4d5e",
            "0X001A2B3C4D5E",
            "0x00:0x1a:0x2b:0x3c:0x4d:0x5e",
        ];
        for spelling in usual.into_iter().chain(unusual) {
            assert_eq!(DeviceId::parse(spelling).unwrap().as_str(), "001A2B3C4D5E", "{spelling}");
            assert_eq!(DeviceId::parse_mac(spelling).unwrap().as_str(), "001A2B3C4D5E", "{spelling}");
            let asked = AskedId::parse(spelling).unwrap();
            assert_eq!(asked.canonical().as_str(), "001A2B3C4D5E", "{spelling}");
            // A serial number has no spaces, so a text with spaces can only be a MAC address.
            let is_one = usual.contains(&spelling) || spelling.contains(' ');
            assert_eq!(asked.first().as_str(), if is_one { "001A2B3C4D5E" } else { spelling });
            assert_eq!(asked.ids().count(), if is_one { 1 } else { 2 }, "{spelling}");
            assert_eq!(AskedId::parse_mac(spelling), Ok(asked));
        }
    }

    #[test]
    fn a_serial_number_with_the_digits_of_a_mac_is_asked_for_as_both() {
        let ids = |text: &str| -> Vec<String> {
            AskedId::parse_sn(text).unwrap().ids().map(DeviceId::to_string).collect()
        };
        assert_eq!(ids("001a2b3c4d5e"), ["001a2b3c4d5e", "001A2B3C4D5E"]);
        assert_eq!(ids("00:1a:2b:3c:4d:5e"), ["00:1a:2b:3c:4d:5e", "001A2B3C4D5E"]);
        assert_eq!(ids("001A2B3C4D5E"), ["001A2B3C4D5E"]);
        assert_eq!(ids("SN-1"), ["SN-1"]);
        assert_eq!(ids("00 1a 2b 3c 4d 5e"), ["001A2B3C4D5E"]);
        assert_eq!(AskedId::parse_sn("SN 1"), Err(DeviceIdError::Character));
        let label = AskedId::parse_label(" 00 1a 2b 3c 4d 5e ").unwrap();
        assert_eq!(label, DeviceId::parse("001A2B3C4D5E").unwrap().into());
        assert_eq!(AskedId::parse_label("001a2b3c4d5e"), AskedId::parse_sn("001a2b3c4d5e"));
    }

    #[test]
    fn a_text_that_only_resembles_a_mac_is_not_a_mac() {
        for text in [
            "00:1a:2b:3c:4d:5g",
            "001a2b3c4d5",
            "001a2b3c4d5e6",
            ":0:1a:2b:3c:4d:5",
            "0x1a2b3c4d5e",
            "x001a2b3c4d5e",
            "00001a2b3c4d5e6f",
        ] {
            assert_eq!(DeviceId::parse_mac(text), Err(DeviceIdError::Mac), "{text}");
            assert_eq!(AskedId::parse(text).unwrap().ids().count(), 1, "{text}");
        }
        assert_eq!(DeviceId::parse("00:1a:2b:3c:4d:5g").unwrap().as_str(), "00:1a:2b:3c:4d:5g");
    }

    #[test]
    fn a_serial_number_keeps_its_case_and_is_bounded() {
        assert_eq!(DeviceId::parse("Lamp-0001.a").unwrap().as_str(), "Lamp-0001.a");
        assert_eq!(DeviceId::parse_sn("a1b2c3d4e5f6").unwrap().as_str(), "a1b2c3d4e5f6");
        assert_eq!(DeviceId::parse(""), Err(DeviceIdError::Empty));
        assert_eq!(DeviceId::parse(&"x".repeat(64)).unwrap().as_str().len(), 64);
        assert_eq!(DeviceId::parse(&"x".repeat(65)), Err(DeviceIdError::TooLong));
        assert_eq!(DeviceId::parse("SN 1"), Err(DeviceIdError::Character));
        assert_eq!(DeviceId::parse("SN/1"), Err(DeviceIdError::Character));
        assert_eq!(DeviceId::parse("Gerät"), Err(DeviceIdError::Character));
    }

    #[test]
    fn a_device_name_is_legal_and_never_shared() {
        let name = |id: &str| DeviceId::parse_sn(id).unwrap().device_name();
        assert_eq!(name("SN01"), "SN01");
        assert_eq!(name(&"x".repeat(32)), "x".repeat(32));
        // "SN1" is too short for a name, so it is mapped, always to the same name.
        assert_eq!(name("SN1"), name("SN1"));
        for id in ["a", "ab", "abc", &"y".repeat(33), &"y".repeat(64)] {
            let mapped = name(id);
            assert_eq!(mapped.len(), 32);
            assert!(mapped.starts_with('@'));
            // If the ID of one device is the mapped name of another device, the two devices get
            // different names.
            assert_ne!(name(&mapped), mapped);
        }
        assert_ne!(name(&"y".repeat(33)), name(&"y".repeat(34)));
    }

    #[test]
    fn base32_is_rfc_4648() {
        assert_eq!(base32_lower(b"fooba").collect::<String>(), "mzxw6ytb");
    }

    #[test]
    fn a_secret_does_not_print() {
        let certificate = Certificate {
            product_key: "a1".into(),
            device_name: "SN01".into(),
            device_secret: Secret::new("hush-hush".into()),
        };
        assert!(!format!("{certificate:?}").contains("hush"));
    }
}
