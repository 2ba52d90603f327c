//! Tests of files from factories, spreadsheets and clouds. Each file is either imported with its
//! intended meaning, or refused with a message that says how to fix the file.

use std::{ops::ControlFlow, path::Path};

use certdist::{
    psk::{Enrollment, Key, Kind, Reissue},
    seal::Keyring,
    store::{self, Actor, Bulk},
    table_file::{Enrollments, Import, Imported, import_file},
};

/// Outcome of importing a file.
enum Expected {
    /// The file is imported. Contains the devices as `ID`, `ID/name` or, with a certificate,
    /// `ID/name!`, and the beginnings of the remarks.
    Taken(&'static [&'static str], &'static [&'static str]),
    /// The file is refused. Contains the beginnings of the lines of the error message, without the
    /// first line.
    Refused(&'static [&'static str]),
}
use Expected::{Refused, Taken};

const ONE: &[&str] = &["SN00000001"];
const NAMED: &[&str] = &["SN00000001/lamp-0001"];
const TWO: &[&str] = &["SN00000001", "SN00000002"];
const MAC: &[&str] = &["001A2B3C4D5E"];
const FORMAT_AS_TEXT: &str = "is a number as a spreadsheet writes it, and its digits may be lost; format the column as text, and enter the";

const FILES: &[(&str, Expected)] = &[
    // Encodings, line ends and separators.
    ("01-bom-crlf.csv", Taken(&["SN00000001/lamp-0001", "SN00000002"], &[])),
    ("02-bom-quoted-header.csv", Taken(NAMED, &[])),
    ("03-utf16le-bom.csv", Taken(NAMED, &[])),
    ("05-utf16be.csv", Taken(NAMED, &[])),
    ("06-semicolon.csv", Taken(NAMED, &[])),
    ("06b-semicolon-one-column-trailing.csv", Taken(ONE, &[])),
    ("07-tab.csv", Taken(NAMED, &[])),
    ("07b-sep-line.csv", Taken(NAMED, &[])),
    ("08-cr-only.csv", Taken(&["SN00000001/lamp-0001", "SN00000002/lamp-0002"], &[])),
    // Headers.
    ("09-header-case.csv", Taken(NAMED, &[])),
    ("09b-header-upper.csv", Taken(ONE, &[])),
    ("09c-header-lower.csv", Taken(ONE, &[])),
    ("10-header-sn.csv", Taken(ONE, &[])),
    ("10b-header-mac.csv", Taken(MAC, &[])),
    ("10c-header-device-id-space.csv", Taken(NAMED, &[])),
    ("10e-alibaba-export.csv", Taken(&["lamp-0001/lamp-0001!"], &[])),
    ("10g-no-header.csv", Taken(TWO, &["the file has no header"])),
    ("10h-no-header-mac.csv", Taken(&["001A2B3C4D5E", "001A2B3C4D5F"], &["the file has no header"])),
    ("10i-header-spaces.csv", Taken(NAMED, &[])),
    ("10j-header-trailing-comma.csv", Taken(NAMED, &[])),
    (
        "10k-unknown-extra-column.csv",
        Refused(&["line 1: unknown columns \"batch\", \"remark\"; the columns are deviceId, enrollment,"]),
    ),
    // Numbers that a spreadsheet has changed.
    (
        "11-scientific.csv",
        Refused(&[
            "line 2, column deviceId: \"1.23E+11\" is a number",
            "line 3, column deviceId: \"8.65432E+14\"",
        ]),
    ),
    ("11b-scientific-lower.csv", Refused(&["line 2, column deviceId: \"1.23e+11\" is a number"])),
    (
        "11c-mac-as-number-E.csv",
        Refused(&["line 2, column deviceId: \"2E+11\"", "line 3, column deviceId: \"1.20E+67\""]),
    ),
    ("11d-comma-decimal.csv", Refused(&["line 2, column deviceId: \"1,23E+11\" is a number"])),
    (
        "12-leading-zeros-dropped.csv",
        Taken(
            &["12345678901", "1a2b3c4d5e"],
            &["1 row (line 2): the device ID has 8 to 11 hex digits; if it is a MAC"],
        ),
    ),
    ("12c-apostrophe.csv", Taken(&["001234567890"], &[])),
    ("12d-excel-formula-text.csv", Taken(&["001234567890"], &[])),
    ("12e-excel-formula-text-bare.csv", Taken(&["001234567890"], &[])),
    (
        "12f-decimal-float.csv",
        Refused(&["line 2, column deviceId: \"123456789012.0\"", "line 3, column deviceId: \"123.00\""]),
    ),
    // Blanks, full-width characters, comments and empty rows.
    (
        "13-trailing-space.csv",
        Taken(&["SN00000001/lamp-0001", "SN00000002/lamp-0002", "SN00000003/lamp-0003"], &[]),
    ),
    ("13b-nbsp.csv", Taken(ONE, &[])),
    ("13d-trailing-tab.csv", Taken(ONE, &[])),
    ("13e-ideographic-space.csv", Taken(ONE, &[])),
    ("13f-bom-midfile-concat.csv", Taken(TWO, &["the header is repeated: 1 row (line 3) left out"])),
    ("14-fullwidth.csv", Taken(ONE, &[])),
    ("14b-fullwidth-comma.csv", Taken(NAMED, &[])),
    (
        "14d-gbk-value.csv",
        Refused(&["line 3, column deviceId: character 1 is \"灯\" (U+706F); expected only A-Z"]),
    ),
    ("15-blank-lines-commas.csv", Taken(NAMED, &[])),
    (
        "16-duplicates-identical.csv",
        Taken(NAMED, &["rows with a device and values that are already there: 1 row (line 3) left out"]),
    ),
    (
        "16b-mac-spellings-dup.csv",
        Taken(MAC, &["rows with a device and values that are already there: 2 rows (lines 3, 4) left out"]),
    ),
    (
        "16c-mac-other-spellings.csv",
        Taken(
            MAC,
            &[
                "rows with a device and values that are already there: 7 rows (lines 3, 4, 5, 6, 7, 8, 9) left out",
                "7 rows (lines 3, 4, 5, 6, 7, 8, 9): the device ID has 12 hex digits and is taken as a MAC",
            ],
        ),
    ),
    ("17-comment.csv", Taken(ONE, &[])),
    (
        "17b-comment-row.csv",
        Taken(&["SN00000002"], &["lines that begin with # are comments: 1 row (line 2) left out"]),
    ),
    // Quotes.
    ("18-quoting-stray.csv", Refused(&["line 2: a quote is not closed on the same line"])),
    ("18b-single-quotes.csv", Taken(NAMED, &[])),
    (
        "18d-multiline-field.csv",
        Refused(&["line 2: a quote is not closed on the same line", "line 3: a quote within a field"]),
    ),
    ("18e-smart-quotes.csv", Taken(NAMED, &[])),
    // Words for a missing value, and files of other programs.
    (
        "19-null-words.csv",
        Refused(&[
            "line 2, column deviceName: \"null\" stands for no value; leave the field empty",
            "line 3, column deviceName: \"\\N\" stands",
            "line 4, column deviceName: \"NULL\" stands",
            "line 5, column deviceName: \"-\" stands",
        ]),
    ),
    (
        "19b-tablestore-all-columns.csv",
        Taken(&["SN00000001/lamp-0001!"], &["ignored columns: registerTime, activateTime"]),
    ),
    ("19c-tablestore-json.csv", Taken(ONE, &[])),
    (
        "19d-tablestore-json-array.csv",
        Refused(&["line 1: this is a JSON array; write one object on each line: jq -c"]),
    ),
    ("20-empty.csv", Refused(&["line 1: the file is empty; expected the header deviceId,enrollment,"])),
    ("20b-header-only.csv", Taken(&[], &["the file has no rows"])),
    (
        "20c-xlsx.csv",
        Refused(&["line 1: this is an Excel workbook (.xlsx) or another zip archive; in Excel, choose"]),
    ),
    ("20e-nul.csv", Refused(&["line 2, column deviceId: character 7 is U+0000; expected only A-Z"])),
    ("20f-html.csv", Refused(&["line 1: this is an HTML or XML page, as some programs write it"])),
    // Values in a wrong form.
    ("21-too-long-id.csv", Refused(&["line 2, column deviceId: 70 characters; a device ID has at most 64"])),
    ("21b-short-name.csv", Refused(&["line 2, column deviceName: 2 characters, expected 4 to 32"])),
    (
        "21c-id-slash.csv",
        Refused(&[
            "line 2, column deviceId: character 3 is \"/\" (U+002F)",
            "line 3, column deviceId: character 3 is \"#\" (U+0023)",
            "line 4, column deviceId: character 3 is U+0020",
            "line 5, column deviceId: character 3 is \"(\" (U+0028)",
        ]),
    ),
    (
        "22b-psk-no-key-individual.csv",
        Refused(&[
            "line 2, column pskIdentity: a device of the individual enrollment \"own\" needs pskIdentity and psk",
        ]),
    ),
    (
        "22c-same-identity-case.csv",
        Refused(&["line 4, column pskIdentity: it begins or ends with a blank, U+0020"]),
    ),
    (
        "23-enrollment-case.csv",
        Refused(&[
            "line 2, column enrollment: unknown enrollment \"Lamp-2026\", did you mean \"lamp-2026\"?; configured:",
        ]),
    ),
    ("23b-no-enrollment.csv", Taken(ONE, &[])),
    ("23c-enrollment-typo.csv", Taken(ONE, &[])),
    ("23e-productKey-other.csv", Taken(TWO, &["1 row (line 3): the product is not the enrollment's"])),
    (
        "24-more-fields.csv",
        Refused(&["line 2: 3 fields, the header has 2", "line 3: 1 fields, the header has 2"]),
    ),
    (
        "30-same-devicename.csv",
        Refused(&[
            "line 3, column deviceName: device SN00000001 has the same name, lamp-0001, in this product",
            "line 5, column deviceName: device SN00000003 has the same name, SN00000003, in this product",
        ]),
    ),
    (
        "30b-same-devicename-shared.csv",
        Refused(&[
            "line 3, column deviceName: device PLUG0001 has the same name, plug-0001, in this product",
        ]),
    ),
    (
        "31-null-words.csv",
        Refused(&[
            "line 2, column deviceName: \"null\" stands for no value",
            "line 3, column deviceSecret: \"\\N\" stands",
            "line 4, column deviceSecret: \"NULL\" stands",
            "line 5, column deviceSecret: \"#N/A\" stands",
            "line 6, column deviceSecret: \"-\" stands",
            "line 7, column deviceSecret: \"1.23E+31\" is a number",
            "line 8, column deviceSecret: \"0\" stands",
            "line 9, column deviceSecret: \"None\" stands",
        ]),
    ),
    (
        "32-mac-spellings-and-hex-serials.csv",
        Taken(
            &["001A2B3C4D5E", "001A2B3C4D5F", "001A2B3C4D60", "A1B2C3D4E5F6"],
            &["3 rows (lines 2, 3, 4): the device ID has 12 hex digits and is taken as a MAC address"],
        ),
    ),
    (
        "33-psk-identity-spaces.csv",
        Refused(&[
            "line 2, column pskIdentity: it begins or ends with a blank, U+0020",
            "line 3, column pskIdentity: it begins or ends with a blank, U+00A0",
            "line 4, column pskIdentity: this is the shared identity of enrollment \"plug-batch-7\"",
            "line 5, column psk: every digit is the same",
            "line 6, column psk: every digit is the same",
        ]),
    ),
];

fn enrollments() -> Enrollments {
    let key = || Key::from_hex("000102030405060708090a0b0c0d0e0f").expect("a key");
    let enrollment = |name: &str, kind| {
        let product_key = "a1BwAGVxyz1".into();
        Enrollment {
            name: name.into(),
            product_key,
            kind,
            reissue: Reissue::Always,
            next: None,
            guards: Default::default(),
        }
        .outline()
    };
    let shared = Kind::Shared { identity: "plug-batch-7".into(), key: key() };
    let all = [
        enrollment("lamp-2026", Kind::Derived(key())),
        enrollment("plug-batch-7", shared),
        enrollment("own", Kind::Individual),
    ];
    Enrollments::new(all).with_default("lamp-2026").expect("it is there")
}

fn devices(store: &dyn Bulk) -> Vec<String> {
    let mut devices = Vec::new();
    let each = &mut |row: store::DeviceRow, _| {
        let name = row.device_name.map(|name| format!("/{name}")).unwrap_or_default();
        let mark = if row.certificate.is_some() { "!" } else { "" };
        devices.push(format!("{}{name}{mark}", row.id));
        ControlFlow::Continue(())
    };
    store.export(each).expect("exported");
    devices
}

fn begin(found: &[String], expected: &[&str]) -> bool {
    found.len() == expected.len()
        && found.iter().zip(expected).all(|(found, expected)| found.starts_with(expected))
}

#[test]
fn every_file_of_a_factory_is_taken_for_what_it_means_or_refused_with_a_remedy() {
    let files = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/files");
    let folder = tempfile::tempdir().expect("a folder");
    let mut wrong = Vec::new();
    for (name, expected) in FILES {
        let url = format!("sqlite:{}", folder.path().join(format!("{name}.db")).display());
        let store = store::open(&url, Keyring::default()).expect("a database");
        let how = Import {
            enrollments: &enrollments(),
            by: &Actor::system_user(),
            dry_run: false,
            ignores_unknown: false,
        };
        let outcome = import_file(&*store, &files.join(name), how);
        let (devices, is_right) = (
            devices(&*store),
            match (&outcome, expected) {
                (Ok(Imported { remarks, .. }), Taken(devices, sentences)) => {
                    self::devices(&*store) == *devices && begin(remarks, sentences)
                }
                (Err(error), Refused(sentences)) => {
                    let text = error.to_string();
                    let lines: Vec<String> = text.lines().skip(1).map(str::to_owned).collect();
                    let numbers = text.lines().filter(|line| line.contains("is a number"));
                    begin(&lines, sentences) && numbers.into_iter().all(|line| line.contains(FORMAT_AS_TEXT))
                }
                _ => false,
            },
        );
        if !is_right || (outcome.is_err() && !devices.is_empty()) {
            wrong.push(format!("{name}: {devices:?} {outcome:?}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    let there = std::fs::read_dir(&files).expect("the files").count();
    assert_eq!(FILES.len(), there, "each file has its outcome here");
}
