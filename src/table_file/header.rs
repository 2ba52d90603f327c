//! Header of a table file: the separator, and the meaning of each column name in the spellings that
//! programs, spreadsheets and people use. This module performs no I/O.

use std::borrow::Cow;

use super::{
    COLUMNS,
    lines::fields,
    values::{self, folded, is_blank, shown, unwrapped, visible},
};
use crate::device::DeviceId;

/// Separators between fields, in order of preference. The last one is the full-width comma.
const SEPARATORS: [char; 5] = [',', ';', '\t', '|', '\u{FF0C}'];

/// Spellings of each of the [`COLUMNS`], in lower case and without spaces, `_`, `-` and `.`.
const SPELLINGS: [&[&str]; COLUMNS.len()] = [
    &[
        "deviceid",
        "sn",
        "serial",
        "serialnumber",
        "serialno",
        "mac",
        "macaddress",
        "macaddr",
        "设备id",
        "设备编号",
        "序列号",
        "设备序列号",
        "mac地址",
        "シリアル番号",
        "macアドレス",
    ],
    &["enrollment", "enrollmentname", "批次"],
    &["productkey", "产品key", "产品密钥"],
    &["devicename", "设备名称", "デバイス名"],
    &["devicesecret", "设备密钥"],
    &["iotid"],
    &["pskidentity", "identity"],
    &["psk", "pskkey", "presharedkey"],
    &["psknext", "nextpsk", "pskkeynext", "presharedkeynext", "nextpresharedkey", "keynext"],
    &["target", "cloud", "目标", "ターゲット"],
];

/// Columns of Tablestore's `device_table` that are not imported, because certdist reads the times
/// from IoT Platform.
const TIMES: [&str; 2] = ["registertime", "activatetime"];

/// Meaning of a column of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Meaning {
    /// Index in [`COLUMNS`].
    Column(usize),
    /// The values are ignored.
    Ignored,
    /// The column has no name, so its fields must be empty.
    Unnamed,
}

/// Header of a file.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) separator: char,
    pub(super) columns: Vec<Meaning>,
    /// Names of the columns that are ignored, as the file spells them.
    pub(super) ignored: Vec<String>,
}

impl Header {
    /// Returns whether the file has this column.
    pub(super) fn has(&self, column: usize) -> bool {
        self.columns.contains(&Meaning::Column(column))
    }
}

/// Returns the meaning of a column's name. Returns `None` for an unknown name.
pub(super) fn meaning(name: &str) -> Option<Meaning> {
    let name = folded(unwrapped(name));
    let mut plain = name.to_lowercase();
    plain.retain(|character| !is_blank(character) && !"_-.".contains(character));
    if plain.is_empty() {
        return Some(Meaning::Unnamed);
    }
    if TIMES.contains(&&*plain) {
        return Some(Meaning::Ignored);
    }
    SPELLINGS.iter().position(|spellings| spellings.contains(&&*plain)).map(Meaning::Column)
}

/// Returns the separator that a line such as `sep=;` names. Such a line is an instruction for
/// Excel.
pub(super) fn named_separator(line: &str) -> Option<char> {
    let line = line.trim_matches('"');
    let (name, rest) = line.split_at_checked(4)?;
    if !name.eq_ignore_ascii_case("sep=") {
        return None;
    }
    let mut characters = rest.chars();
    characters.next().filter(|_| characters.next().is_none())
}

/// Returns the separator that a header uses.
pub(super) fn separator(line: &str) -> char {
    let mut is_quoted = false;
    let mut counts = [0; SEPARATORS.len()];
    for character in line.chars() {
        is_quoted ^= character == '"';
        if !is_quoted && let Some(at) = SEPARATORS.iter().position(|separator| *separator == character) {
            counts[at] += 1;
        }
    }
    let most = counts.into_iter().max().unwrap_or_default();
    counts.iter().position(|count| *count == most).map_or(',', |at| SEPARATORS[at])
}

/// Returns whether the first line of a file is the first device of a list without a header. Such a
/// line is a single value. The value is a MAC address, or it contains a digit and is not a column's
/// name.
pub(super) fn is_bare_device(line: &str) -> bool {
    let value = folded(unwrapped(line.trim_end_matches([',', ';', '\t'])));
    let value = folded(unwrapped(value.trim_matches('"'))).into_owned();
    if DeviceId::parse_mac(&value).is_ok() && values::device_id(&value).is_ok() {
        return true;
    }
    // A numbered column name, such as `Column1` or `SN.1`, is not a device.
    let name: String = value.chars().filter(|character| !character.is_ascii_digit()).collect();
    let digits = value.chars().filter(char::is_ascii_digit).count();
    let is_known = meaning(&name).is_some_and(|meaning| meaning != Meaning::Unnamed)
        || ["column", "col", "field", "eui", "eui-"].contains(&&*name.to_lowercase());
    let is_numbered = digits <= 2 && is_known;
    meaning(&value).is_none()
        && !is_numbered
        && value.contains(|character: char| character.is_ascii_digit())
        && DeviceId::parse(&value).is_ok()
}

/// Returns whether a line is a header: each of its fields is the name of a column or empty.
pub(super) fn is_header(line: &str, separator: char) -> bool {
    let Ok(fields) = fields(line, separator) else { return false };
    let meanings: Vec<_> = fields.iter().map(|field| meaning(field)).collect();
    meanings.iter().all(Option::is_some)
        && meanings.iter().any(|meaning| matches!(meaning, Some(Meaning::Column(_))))
}

/// Reads a header. If `ignores_unknown` is set, ignores unknown columns. Otherwise, one error names
/// all of them.
pub(super) fn read(line: &str, separator: char, ignores_unknown: bool) -> Result<Header, String> {
    let legal = || format!("the columns are {}", COLUMNS.join(", "));
    let mut header = Header { separator, columns: Vec::new(), ignored: Vec::new() };
    let (mut unknown, mut names) = (Vec::new(), Vec::new());
    for name in fields(line, separator)? {
        let name: Cow<'_, str> = Cow::Owned(unwrapped(&name).to_owned());
        let meaning = match meaning(&name) {
            Some(meaning) => meaning,
            None => {
                unknown.push(shown(&name));
                Meaning::Ignored
            }
        };
        if let Meaning::Column(column) = meaning
            && let Some(first) = header.columns.iter().position(|known| *known == meaning)
        {
            let first: &Cow<'_, str> = &names[first];
            let column = COLUMNS[column];
            return Err(if *first == name {
                format!("the column {name} is there twice; {}", legal())
            } else {
                format!(
                    "the columns {first} and {name} are both taken as {column}; remove or rename one of them"
                )
            });
        }
        if meaning == Meaning::Ignored {
            header.ignored.push(visible(&name));
        }
        header.columns.push(meaning);
        names.push(name);
    }
    if !header.columns.iter().any(|meaning| matches!(meaning, Meaning::Column(_))) {
        // The error does not repeat the line, which may be a row with a secret.
        return Err(format!("the line names no column; expected a header: {}", legal()));
    }
    if !unknown.is_empty() && !ignores_unknown {
        let columns = if unknown.len() == 1 { "unknown column" } else { "unknown columns" };
        let these = if unknown.len() == 1 { "it" } else { "them" };
        return Err(format!(
            "{columns} {}; {}; remove {these}, or ignore {these} with --ignore-unknown",
            unknown.join(", "),
            legal()
        ));
    }
    // A file that was downloaded from IoT Platform has device names, but no device IDs. A device
    // name is also a legal device ID, so such a file is accepted.
    if !header.has(0) && !header.has(3) {
        return Err(format!("the column {} is missing; {}", COLUMNS[0], legal()));
    }
    Ok(header)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn columns(line: &str) -> Vec<Meaning> {
        read(line, separator(line), false).unwrap().columns
    }

    #[test]
    fn columns_are_known_by_their_meaning() {
        for name in [
            "deviceId",
            "DeviceId",
            "DEVICEID",
            "device_id",
            "Device ID",
            "SN",
            "MAC",
            "serial-no",
            "设备ID",
            "ｄｅｖｉｃｅＩｄ",
        ] {
            assert_eq!(columns(name), [Meaning::Column(0)], "{name}");
        }
        assert_eq!(columns("sn;设备名称;"), [Meaning::Column(0), Meaning::Column(3), Meaning::Unnamed]);
        assert_eq!(columns("DeviceName,DeviceSecret,ProductKey"), [3, 4, 2].map(Meaning::Column));
        assert_eq!(columns("\"deviceId\"\t\"registerTime\""), [Meaning::Column(0), Meaning::Ignored]);
        assert_eq!(columns("deviceId，deviceName"), [0, 3].map(Meaning::Column));
    }

    #[test]
    fn the_separator_is_found_outside_quotes() {
        assert_eq!(separator("a;b;c,d"), ';');
        assert_eq!(separator("\"a,b,c\";d"), ';');
        assert_eq!(separator("deviceId"), ',');
        assert_eq!(named_separator("sep=;"), Some(';'));
        assert_eq!(named_separator("\"sep=,\""), Some(','));
        assert_eq!(named_separator("Sep=\t"), Some('\t'));
        assert_eq!(named_separator("sep="), None);
        assert_eq!(named_separator("deviceId"), None);
    }

    #[test]
    fn a_list_of_devices_needs_no_header() {
        assert!(
            [
                "00:1a:2b:3c:4d:5e",
                "SN00000001",
                "AABBCCDDEEFF",
                "\"SN00000001\"",
                "SN00000001;",
                "00 1a 2b 3c 4d 5e"
            ]
            .into_iter()
            .all(is_bare_device)
        );
        assert!(
            !["deviceId", "SN", "colour", "device 1", "a,b1", "Column1", "SN.1", "MAC1", "EUI48", "EUI-64"]
                .into_iter()
                .any(is_bare_device)
        );
    }

    #[test]
    fn unknown_columns_are_all_named_or_ignored_on_request() {
        let error = read("deviceId,batch,remark", ',', false).unwrap_err();
        assert!(
            error.starts_with("unknown columns \"batch\", \"remark\"; the columns are deviceId,"),
            "{error}"
        );
        assert!(error.ends_with("or ignore them with --ignore-unknown"), "{error}");
        let header = read("deviceId,batch,remark", ',', true).unwrap();
        assert_eq!(header.ignored, ["batch", "remark"]);
        let secret = "8d1f0cbf2f3a4e6d9b7c5a4e3d2c1b0a";
        for line in [format!("SN00000001,lamp-0001,{secret}"), format!("deviceId,{secret}")] {
            let error = read(&line, ',', false).unwrap_err();
            assert!(!error.contains(secret), "{error}");
        }
        let error = read("SN,MAC", ',', false).unwrap_err();
        assert!(error.starts_with("the columns SN and MAC are both taken as deviceId"), "{error}");
    }
}
