//! Reads the text by which an operator looks for devices: the text on a label, in any spelling, or
//! a list of such texts. This module guesses the meanings of the text, and the page asks the store
//! about each guess. Performs no I/O.

use crate::{device::AskedId, store::filter::Text, table_file};

/// Maximum number of lines of a list.
pub(super) const MAX_LINES: usize = 10_000;

/// Minimum length of a text that is searched for at the end of device IDs.
const MIN_END: usize = 2;

/// Number of digits of a MAC address.
const MAC: usize = 12;

/// Words that precede the ID on labels, in lower case.
const WORDS: [&str; 8] = ["sn", "s/n", "mac", "id", "device", "deviceid", "序列号", "设备"];

/// Devices that an operator looks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Wanted {
    /// The operator looks for no particular device.
    Any,
    /// One device, or several devices that the text may stand for.
    One(Label),
    /// The devices of a list, one for each line. Empty and repeated lines are left out.
    List(Vec<Label>),
    /// More lines than [`MAX_LINES`].
    TooMany,
}

/// The text of a label, and the device IDs that it may mean.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Label {
    /// The text, without blanks and quotes around it, and with full-width characters folded.
    pub(super) text: String,
    /// Device IDs for which the text may stand, the likeliest first.
    pub(super) ids: Vec<AskedId>,
}

impl Wanted {
    pub(super) fn parse(text: &str) -> Self {
        let mut labels = Vec::new();
        let mut known = std::collections::HashSet::new();
        // An ID has none of these characters, so they separate the lines of a list.
        for line in text.split(['\n', '\r', '\t', ',', ';', '，', '；', '、']) {
            let label = Label::parse(line);
            if label.text.is_empty() || !known.insert(label.text.clone()) {
                continue;
            }
            if labels.len() == MAX_LINES {
                return Self::TooMany;
            }
            labels.push(label);
        }
        match labels.len() {
            0 => Self::Any,
            1 => labels.pop().map_or(Self::Any, Self::One),
            _ => Self::List(labels),
        }
    }
}

impl Label {
    fn parse(line: &str) -> Self {
        let text = table_file::label(line);
        let spellings = spellings(&text);
        let ids = spellings.iter().filter_map(|text| AskedId::parse_label(text).ok()).collect();
        Self { text, ids }
    }

    /// Returns the meanings of the text other than a device ID: a device name or an `IotId`.
    pub(super) fn names(&self) -> Vec<Text> {
        let legal = |text: &String| text.bytes().all(|byte| byte.is_ascii_graphic());
        spellings(&self.text)
            .into_iter()
            .filter(legal)
            .flat_map(|text| [Text::Name(text.clone()), Text::IotId(text)])
            .collect()
    }

    /// Returns the parts of device IDs that the text may stand for, the likeliest first.
    pub(super) fn parts(&self) -> Vec<Text> {
        let spellings = spellings(&self.text);
        let mut macs: Vec<String> = spellings.iter().filter_map(|text| digits(text)).collect();
        macs.dedup();
        let of_mac = |text: &String| macs.contains(text);
        let mut parts: Vec<Text> = Vec::new();
        let all = || spellings.iter().chain(macs.iter().filter(|mac| !spellings.contains(mac)));
        parts.extend(all().cloned().map(Text::Begins));
        parts.extend(all().filter(|text| text.len() >= MIN_END).cloned().map(Text::Ends));
        // IDs in the table consist of visible ASCII characters, so a search for any other text
        // would find nothing.
        parts.retain(|part| match part {
            Text::Begins(text) | Text::Ends(text) => {
                of_mac(text) || text.bytes().all(|byte| byte.is_ascii_graphic())
            }
            Text::Name(_) | Text::IotId(_) => true,
        });
        parts
    }
}

/// Returns the spellings that the text may have in the table: the text as it is, without blanks,
/// and without the word before the ID.
fn spellings(text: &str) -> Vec<String> {
    let mut all = vec![text.to_owned()];
    let mut add = |text: String| {
        if !text.is_empty() && !all.contains(&text) {
            all.push(text);
        }
    };
    let joined = |text: &str| text.chars().filter(|character| !character.is_whitespace()).collect::<String>();
    add(joined(text));
    if let Some((word, rest)) = text.split_once([':', '=', '#'])
        && WORDS.contains(&word.trim().to_lowercase().as_str())
    {
        add(rest.trim().to_owned());
        add(joined(rest));
    }
    all
}

/// Returns the digits of a MAC address, or of a part of one, in the spelling of the table.
fn digits(text: &str) -> Option<String> {
    let bare = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")).unwrap_or(text);
    let digits: String =
        bare.chars().filter(|character| !matches!(character, ':' | '-' | '.' | '_' | ' ')).collect();
    let is_mac = (1..=MAC).contains(&digits.len()) && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_mac.then(|| digits.to_ascii_uppercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(text: &str) -> Label {
        match Wanted::parse(text) {
            Wanted::One(label) => label,
            other => panic!("{text}: {other:?}"),
        }
    }

    #[test]
    fn a_mac_is_read_in_any_spelling() {
        for text in [
            "001A2B3C4D5E",
            "00:1a:2b:3c:4d:5e",
            "00-1A-2B-3C-4D-5E",
            "001a.2b3c.4d5e",
            "001a-2b3c-4d5e",
            "0x001a2b3c4d5e",
            " 00 1A 2B 3C 4D 5E \u{3000}",
            "００：１Ａ：２Ｂ：３Ｃ：４Ｄ：５Ｅ",
            "MAC: 00:1a:2b:3c:4d:5e",
            "mac=001a2b3c4d5e",
            "\u{FEFF}=\"001A2B3C4D5E\"",
        ] {
            let macs: Vec<String> =
                one(text).ids.iter().filter_map(|id| id.mac()).map(|mac| mac.to_string()).collect();
            assert!(macs.contains(&"001A2B3C4D5E".to_owned()), "{text}: {macs:?}");
        }
    }

    #[test]
    fn parts_of_an_id_are_guessed_from_the_beginning_then_from_the_end() {
        let begins = |text: &str| Text::Begins(text.into());
        let ends = |text: &str| Text::Ends(text.into());
        assert_eq!(one("SN00").parts(), [begins("SN00"), ends("SN00")]);
        let both = [begins("4d:5e"), begins("4D5E"), ends("4d:5e"), ends("4D5E")];
        assert_eq!(one("4d:5e").parts(), both);
        assert_eq!(one("00 1A").parts(), [begins("001A"), ends("001A")]);
        assert_eq!(one("S/N: 0042").parts().last(), Some(&ends("0042")));
        assert_eq!(one("7").parts(), [begins("7")], "too many IDs end so");
        assert_eq!(one("lämp").parts(), []);
        assert!(one("lamp-1").names().contains(&Text::Name("lamp-1".into())));
        assert!(one("SN: lamp-1").names().contains(&Text::IotId("lamp-1".into())));
    }

    #[test]
    fn several_lines_are_a_list_without_repetitions() {
        let Wanted::List(list) = Wanted::parse("SN-1\r\n\n  SN-2\t\nSN-1\n00:1a:2b:3c:4d:5e；SN-3") else {
            panic!("a list")
        };
        let texts: Vec<&str> = list.iter().map(|label| label.text.as_str()).collect();
        assert_eq!(texts, ["SN-1", "SN-2", "00:1a:2b:3c:4d:5e", "SN-3"]);
        assert_eq!(Wanted::parse(" \n\u{200B}\n"), Wanted::Any);
        assert_eq!(one("\nSN-1\n").text, "SN-1");
        let many: String = (0..=MAX_LINES).map(|number| format!("SN-{number}\n")).collect();
        assert_eq!(Wanted::parse(&many), Wanted::TooMany);
    }

    #[test]
    fn odd_texts_are_only_texts() {
        for text in
            ["<script>", "\u{202E}abc", "'; DROP TABLE device_table; --", &"x".repeat(10_000), "%00", "%"]
        {
            let Wanted::One(label) = Wanted::parse(text) else { continue };
            let _ = (label.parts(), label.names());
        }
    }
}
