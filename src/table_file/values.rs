//! Values of a table file. This module removes what spreadsheets and programs put around a value,
//! and checks the form of each value. It performs no I/O, and knows nothing about lines or the
//! header.

use std::borrow::Cow;

use crate::device::{AskedId, DeviceId, MAX_DEVICE_ID, MAX_DEVICE_NAME, Secret, is_id_character};

/// Number of hex digits of a key of 16 to 64 bytes.
const PSK_DIGITS: std::ops::RangeInclusive<usize> = 32..=128;

/// Maximum length of a PSK identity, in bytes (RFC 4279 §5.3).
const MAX_IDENTITY: usize = 128;

/// Length of a device secret of IoT Platform.
const SECRET: usize = 32;

/// Lengths of a product key. IoT Platform's product keys have 11 characters, but the product keys
/// of a simulator may have another length.
const PRODUCT_KEY: std::ops::RangeInclusive<usize> = 2..=24;

/// Lengths of an IotId. IoT Platform's IotIds have 26 characters or, with the index of the product,
/// up to 32.
const IOT_ID: std::ops::RangeInclusive<usize> = 16..=32;

/// Words that programs write for a value that is missing, in lower case.
const NO_VALUE: [&str; 21] = [
    "null",
    "(null)",
    "nil",
    "none",
    "nan",
    "n/a",
    "na",
    "undefined",
    "\\n",
    "-",
    "--",
    "#div/0!",
    "#num!",
    "#spill!",
    "#calc!",
    "#####",
    "#n/a",
    "#null!",
    "#ref!",
    "#value!",
    "#name?",
];

/// Returns whether a character is blank: white space of any kind, or a character without width.
pub(super) fn is_blank(character: char) -> bool {
    character.is_whitespace()
        || matches!(character, '\u{200B}'..='\u{200F}' | '\u{2060}' | '\u{FEFF}' | '\u{00AD}' | '\u{1A}')
}

/// Removes what surrounds a value: blanks, typographic quotes, and the marks with which Excel shows
/// that a value is text (`="001"`, `'001`).
pub(super) fn unwrapped(value: &str) -> &str {
    let mut value = value.trim_matches(is_blank);
    if let Some(text) = value.strip_prefix("=\"").and_then(|text| text.strip_suffix('"')) {
        value = text.trim_matches(is_blank);
    }
    for (open, close) in [('\u{201C}', '\u{201D}'), ('\u{2018}', '\u{2019}'), ('\'', '\'')] {
        if let Some(text) = value.strip_prefix(open) {
            value = text.strip_suffix(close).unwrap_or(text).trim_matches(is_blank);
        }
    }
    value
}

/// Replaces full-width characters with the corresponding ASCII characters.
pub(super) fn folded(value: &str) -> Cow<'_, str> {
    let is_wide = |character: char| matches!(character, '\u{FF01}'..='\u{FF5E}');
    if !value.contains(is_wide) {
        return Cow::Borrowed(value);
    }
    let narrow = |character: char| {
        // The full-width forms are in the order of ASCII, beginning with `!`.
        let narrow = u32::from(character).wrapping_sub(0xFF01).wrapping_add(0x21);
        if is_wide(character) { char::from_u32(narrow).unwrap_or(character) } else { character }
    };
    Cow::Owned(value.chars().map(narrow).collect())
}

/// Length of the longest value that a message contains. Secrets and keys are longer.
const SHOWN: usize = 24;

/// Returns a value in the form for a message. Replaces a long value, which may be a secret in the
/// wrong column, with its length.
pub(super) fn shown(value: &str) -> String {
    match value.chars().count() {
        count if count > SHOWN => format!("a value of {count} characters"),
        _ => format!("\"{}\"", visible(value)),
    }
}

/// Returns a device in the form for a message. Leaves out a long ID, which may be a secret in the
/// wrong column.
pub(super) fn device(id: &DeviceId) -> String {
    match id.as_str().len() {
        ..=SHOWN => format!("device {id}"),
        _ => "this device".to_owned(),
    }
}

/// Replaces invisible characters, and characters that change how a terminal shows other characters.
pub(super) fn visible(value: &str) -> String {
    let mut text = String::with_capacity(value.len());
    for character in value.chars() {
        match character {
            ' ' => text.push(' '),
            '\u{202A}'..='\u{202E}' | '\u{2066}'..='\u{2069}' => text.extend(character.escape_unicode()),
            _ if character.is_control() || is_blank(character) => text.extend(character.escape_unicode()),
            _ => text.push(character),
        }
    }
    text
}

/// Describes a character so that the operator can find it, even if it is invisible.
fn described(character: char) -> String {
    let code = u32::from(character);
    if is_blank(character) || visible(&character.to_string()).chars().count() > 1 {
        format!("U+{code:04X}")
    } else {
        format!("\"{character}\" (U+{code:04X})")
    }
}

/// Fails if the value has a character that is not legal. The error says where the first such
/// character is.
fn only(value: &str, is_legal: impl Fn(char) -> bool, legal: &str) -> Result<(), String> {
    match value.chars().enumerate().find(|(_, character)| !is_legal(*character)) {
        Some((at, character)) => {
            Err(format!("character {} is {}; expected only {legal}", at + 1, described(character)))
        }
        None => Ok(()),
    }
}

/// Fails if the value is a word that stands for a missing value.
fn is_a_value(value: &str) -> Result<(), String> {
    let lower = value.to_ascii_lowercase();
    if value.bytes().all(|byte| byte == b'0') || NO_VALUE.contains(&&*lower) {
        return Err(format!("{} stands for no value; leave the field empty", shown(value)));
    }
    Ok(())
}

/// Fails if the value is a number that a spreadsheet has rewritten, such as `1.23E+11` and `123.0`.
fn is_no_number(value: &str) -> Result<(), String> {
    let rounded = value.split_once(['e', 'E']).is_some_and(|(mantissa, exponent)| {
        let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        let signed = exponent.strip_prefix(['+', '-']);
        let is_mantissa = mantissa.split(['.', ',']).all(digits);
        is_mantissa
            && digits(signed.unwrap_or(exponent))
            && (signed.is_some() || mantissa.contains(['.', ',']))
    });
    let decimal = value.split_once(['.', ',']).is_some_and(|(whole, rest)| {
        !whole.is_empty()
            && !rest.is_empty()
            && whole.bytes().all(|byte| byte.is_ascii_digit())
            && rest.bytes().all(|byte| byte == b'0')
    });
    if rounded || decimal {
        return Err(format!(
            "{} is a number as a spreadsheet writes it, and its digits may be lost; format the column as \
             text, and enter the values again",
            shown(value)
        ));
    }
    Ok(())
}

/// Returns whether a device ID or a device name may contain the character.
fn is_legal(character: char) -> bool {
    u8::try_from(character).is_ok_and(is_id_character)
}

/// Parses a device ID. A MAC address in an unusual spelling may be in the table as a serial number.
pub(super) fn device_id(value: &str) -> Result<AskedId, String> {
    if value.is_empty() {
        return Err("a device ID is empty".into());
    }
    is_a_value(value)?;
    is_no_number(value)?;
    if let Ok(device) = AskedId::parse_mac(value) {
        return Ok(device);
    }
    let groups = || value.split([':', '-']);
    let is_group =
        |group: &str| matches!(group.len(), 1 | 2) && group.bytes().all(|byte| byte.is_ascii_hexdigit());
    if groups().count() == 6 && groups().all(is_group) {
        return Err(
            "a group of this MAC address has one digit, so a zero may be lost; write each as two digits, such as 0A"
                .into(),
        );
    }
    only(value, is_legal, "A-Z a-z 0-9 . _ : @ - in a device ID")?;
    AskedId::parse(value)
        .map_err(|_| format!("{} characters; a device ID has at most {MAX_DEVICE_ID}", value.len()))
}

/// Checks IoT Platform's rule for a DeviceName.
pub(super) fn device_name(value: &str) -> Result<String, String> {
    is_a_value(value)?;
    only(value, is_legal, "A-Z a-z 0-9 _ . : @ - in a device name")?;
    if !(4..=MAX_DEVICE_NAME).contains(&value.len()) {
        return Err(format!("{} characters, expected 4 to {MAX_DEVICE_NAME}", value.len()));
    }
    Ok(value.to_owned())
}

/// Checks a product key. The error says what is expected.
pub fn product_key(value: &str) -> Result<String, String> {
    is_a_value(value)?;
    only(value, |character| character.is_ascii_alphanumeric(), "A-Z a-z 0-9 in a product key")?;
    if !PRODUCT_KEY.contains(&value.len()) {
        let (least, most) = (PRODUCT_KEY.start(), PRODUCT_KEY.end());
        return Err(format!("{} characters; a product key has {least} to {most}", value.len()));
    }
    Ok(value.to_owned())
}

/// Checks a device secret. The message never contains the value, except for a word that stands for
/// a missing value.
pub(super) fn device_secret(value: &str) -> Result<Secret, String> {
    is_a_value(value)?;
    is_no_number(value)?;
    let legal = value.bytes().all(|byte| byte.is_ascii_alphanumeric());
    if !legal || value.len() != SECRET {
        let found = if legal { "" } else { ", some of them other than A-Z a-z 0-9" };
        let length = value.chars().count();
        return Err(format!("{length} characters{found}; expected {SECRET} of A-Z a-z 0-9"));
    }
    Ok(Secret::new(value.to_owned()))
}

/// Checks an IotId.
pub(super) fn iot_id(value: &str) -> Result<String, String> {
    is_a_value(value)?;
    is_no_number(value)?;
    only(value, |character| character.is_ascii_alphanumeric(), "A-Z a-z 0-9 in an iotId")?;
    if !IOT_ID.contains(&value.len()) {
        let (least, most) = (IOT_ID.start(), IOT_ID.end());
        return Err(format!("{} characters; an iotId has {least} to {most}", value.len()));
    }
    Ok(value.to_owned())
}

/// Checks a PSK identity. Removes nothing, because identities are compared byte for byte.
pub(super) fn psk_identity(value: &str) -> Result<String, String> {
    is_a_value(value)?;
    if value.trim_matches(is_blank) != value {
        let edges = [value.chars().next(), value.chars().next_back()];
        let blank = edges.into_iter().flatten().find(|character| is_blank(*character)).unwrap_or(' ');
        return Err(format!(
            "it begins or ends with a blank, {}; firmware with exactly this identity is unlikely, so remove the blank",
            described(blank)
        ));
    }
    if value.len() > MAX_IDENTITY || value.chars().any(char::is_control) {
        return Err(format!("expected 1 to {MAX_IDENTITY} bytes of UTF-8 without control characters"));
    }
    Ok(value.to_owned())
}

/// Checks a key, and returns it as lower-case hex. Removes a `0x` and separators. The message never
/// contains the key.
pub(super) fn psk(value: &str) -> Result<Secret, String> {
    let value = value.strip_prefix("0x").or_else(|| value.strip_prefix("0X")).unwrap_or(value);
    let mut digits = zeroize::Zeroizing::new(String::with_capacity(value.len()));
    digits.extend(value.chars().filter(|character| !is_blank(*character) && !":-".contains(*character)));
    digits.make_ascii_lowercase();
    if let Some(at) = value.chars().position(|character| {
        !character.is_ascii_hexdigit() && !is_blank(character) && !":-".contains(character)
    }) {
        let others = value.bytes().filter(|byte| byte.is_ascii_alphanumeric() && !byte.is_ascii_hexdigit());
        let is_base64 = value.len() >= 22
            && others.count() >= 4
            && value.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+/=".contains(&byte));
        let hint =
            if is_base64 { "; the key may be base64, and must be hex: base64 -d | xxd -p" } else { "" };
        return Err(format!("character {} is not a hex digit{hint}", at + 1));
    }
    let (count, least, most) = (digits.len(), PSK_DIGITS.start(), PSK_DIGITS.end());
    if !PSK_DIGITS.contains(&count) {
        return Err(format!("{count} hex digits, expected {least} to {most}"));
    }
    if count % 2 == 1 {
        return Err(format!("{count} hex digits, expected an even number"));
    }
    if digits.bytes().all(|byte| digits.starts_with(char::from(byte))) {
        return Err("every digit is the same; expected a random key (`certdist key new`)".into());
    }
    Ok(Secret::new(digits.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_surrounds_a_value_is_removed() {
        for wrapped in [
            " SN-1 ",
            "SN-1\u{A0}",
            "\u{3000}SN-1\t",
            "\u{FEFF}SN-1",
            "SN-1\u{200B}",
            "'SN-1",
            "'SN-1'",
            "=\"SN-1\"",
            "\u{201C}SN-1\u{201D}",
            "SN-1\u{1A}",
        ] {
            assert_eq!(unwrapped(wrapped), "SN-1", "{wrapped:?}");
        }
        assert_eq!(folded("ＳＮ－００１"), "SN-001");
        assert!(matches!(folded("SN-1"), Cow::Borrowed(_)));
        assert_eq!(unwrapped("a b"), "a b", "only outside");
    }

    #[test]
    fn a_character_that_is_refused_is_shown_named_and_located() {
        assert_eq!(
            device_id("SN/1").unwrap_err(),
            "character 3 is \"/\" (U+002F); expected only A-Z a-z 0-9 . _ : @ - in a device ID"
        );
        assert!(device_id("SN\u{0}1").unwrap_err().starts_with("character 3 is U+0000;"));
        assert!(device_id("a\u{A0}b").unwrap_err().starts_with("character 2 is U+00A0;"));
        assert!(device_id("a\u{202E}b").unwrap_err().starts_with("character 2 is U+202E;"));
        assert!(device_id(&"x".repeat(65)).unwrap_err().starts_with("65 characters"));
    }

    #[test]
    fn what_a_spreadsheet_has_changed_is_no_device_id() {
        for number in
            ["1.23E+11", "1.23e+11", "2E+11", "1,23E+11", "8.65432E14", "123.0", "123456789012.00", "1E-5"]
        {
            assert!(device_id(number).unwrap_err().contains("format the column as text"), "{number}");
        }
        for serial in ["2E11", "1.23", "E5", "12E", "1.2.0", "SN-1.0", "123"] {
            assert!(device_id(serial).is_ok(), "{serial}");
        }
        assert!(device_id("0:1a:2b:3c:4d:5e").unwrap_err().contains("a zero may be lost"));
        for word in ["null", "NULL", "\\N", "#N/A", "nan", "-", "0", "000"] {
            assert!(device_id(word).unwrap_err().contains("stands for no value"), "{word}");
        }
    }

    #[test]
    fn values_of_iot_platform_have_its_form() {
        let secret = "0123456789abcdef0123456789abcdef";
        assert_eq!(device_secret(secret).unwrap().expose(), secret);
        for bad in [&secret[1..], "null", "1.23E+31", "0", "0123456789abcdef 123456789abcdef"] {
            let error = device_secret(bad).unwrap_err();
            assert!(bad.len() < 16 || !error.contains(bad), "{error}");
        }
        assert_eq!(product_key("a1BwAGVxyz1").unwrap(), "a1BwAGVxyz1");
        assert!(product_key("a").unwrap_err().contains("1 characters; a product key"));
        assert!(product_key("a1 BwAGVxyz").unwrap_err().starts_with("character 3 is U+0020"));
        assert_eq!(iot_id("waFtX5kugLy1Nlkrut2h000001").unwrap().len(), 26);
        assert!(iot_id("-").is_err() && iot_id("1.2E+20").is_err() && iot_id("x").is_err());
        assert!(device_name("null").is_err() && device_name("abc").is_err() && device_name("a b c").is_err());
    }

    #[test]
    fn a_key_is_hex_in_any_spelling_and_random() {
        let key = "00112233445566778899aabbccddeeff";
        for spelling in [
            "0x00112233445566778899AABBCCDDEEFF",
            "00:11:22:33:44:55:66:77:88:99:aa:bb:cc:dd:ee:ff",
            "00112233 44556677 8899aabb ccddeeff",
            "\u{FEFF}00112233445566778899aabbccddeeff",
        ] {
            assert_eq!(psk(spelling).unwrap().expose(), key, "{spelling}");
        }
        assert!(psk("ABEiM0RVZneImaq7zN3u/w==").unwrap_err().contains("base64"));
        assert!(psk(&"0".repeat(32)).unwrap_err().contains("every digit is the same"));
        for identity in ["OWN1 ", "\u{A0}OWN1", "OWN1\t", "-"] {
            assert!(psk_identity(identity).is_err(), "{identity:?}");
        }
        assert_eq!(psk_identity("lamp 1").unwrap(), "lamp 1");
    }
}
