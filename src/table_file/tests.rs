//! Tests of the file's rules, without a store.

use std::path::Path;

use super::*;
use crate::{
    device::{DeviceId, Secret},
    psk::{Enrollment, Key, Kind, Reissue},
    store::{Actor, Bulk, ImportReport, ImportRow},
    testing::store::Memory,
};

const PSK: &str = "00112233445566778899AABBCCDDEEFF";
const SECRET: &str = "0123456789abcdef0123456789abcdef";
const IOT_ID: &str = "waFtX5kugLy1Nlkrut2h000001";

fn enrollment(name: &str, kind: Kind) -> EnrollmentOutline {
    let product_key = format!("a1{name}");
    Enrollment {
        name: name.into(),
        product_key,
        kind,
        reissue: Reissue::Always,
        next: None,
        guards: Default::default(),
    }
    .outline()
}

fn derived() -> Kind {
    Kind::Derived(Key::from_hex(PSK).unwrap())
}

fn lamps() -> Enrollments {
    Enrollments::new([enrollment("lamps", derived())])
}

fn plugs() -> Enrollments {
    Enrollments::new([enrollment("plugs", Kind::Individual)])
}

fn both() -> Enrollments {
    Enrollments::new([enrollment("lamps", derived()), enrollment("plugs", Kind::Individual)])
}

/// Returns the rows of a text, or the errors of its bad lines.
fn parse(text: &str, enrollments: &Enrollments) -> Vec<Result<ImportRow, String>> {
    let reported = |error| match error {
        ReadError::Line(error) => error.to_string(),
        ReadError::Io(error) => panic!("{error}"),
    };
    match read(text.as_bytes(), enrollments, false, false) {
        Ok(rows) => rows.map(|row| row.map_err(reported)).collect(),
        Err(error) => vec![Err(reported(error))],
    }
}

fn only(text: &str, enrollments: &Enrollments) -> ImportRow {
    let mut rows = parse(text, enrollments);
    assert_eq!(rows.len(), 1, "{rows:?}");
    rows.remove(0).unwrap()
}

/// Returns the error of the last line of a text.
fn fault(text: &str, enrollments: &Enrollments) -> String {
    parse(text, enrollments).pop().unwrap().unwrap_err()
}

#[test]
fn a_device_id_is_all_that_a_row_needs() {
    let row = only("deviceId\nSN-1\n", &lamps());
    assert_eq!((row.device.as_str(), row.enrollment.as_str()), ("SN-1", "lamps"));
    assert_eq!((row.enrollment_product.as_str(), row.individual), ("a1lamps", false));
    assert_eq!((row.product_key, row.device_name, row.device_secret), (None, None, None));
    assert_eq!((row.iot_id, row.key), (None, None));
}

#[test]
fn columns_may_be_in_any_order() {
    let text = format!(
        "psk,pskIdentity,iotId,deviceSecret,deviceName,productKey,enrollment,deviceId\n\
         {PSK},\"lamp, 1\",{IOT_ID},{SECRET},name-1,a1BwAGVxyz1,plugs,00:1a:2b:3c:4d:5e"
    );
    let row = only(&text, &both());
    assert_eq!((row.device.as_str(), row.enrollment.as_str()), ("001A2B3C4D5E", "plugs"));
    assert_eq!(row.product_key.as_deref(), Some("a1BwAGVxyz1"));
    assert_eq!(row.device_name.as_deref(), Some("name-1"));
    assert_eq!(row.device_secret, Some(Secret::new(SECRET.into())));
    assert_eq!(row.iot_id.as_deref(), Some(IOT_ID));
    assert_eq!(row.key, Some(("lamp, 1".into(), Secret::new(PSK.to_lowercase()))));
}

#[test]
fn a_second_key_needs_the_first_one_and_differs_from_it() {
    const NEXT: &str = "a0112233445566778899aabbccddeeff";
    let with = |name: &str, psk: &str, next: &str| {
        format!("deviceId,pskIdentity,psk,{name}\nSN-1,lamp 1,{psk},{next}\n")
    };
    for name in ["pskNext", "psk_next", "NEXT PSK", "keyNext", "key_next", "pre-shared-key-next"] {
        let row = only(&with(name, PSK, &NEXT.to_uppercase()), &plugs());
        assert_eq!(row.next_key, Some(Secret::new(NEXT.into())), "{name}");
    }
    assert_eq!(only(&with("pskNext", PSK, ""), &plugs()).next_key, None);
    for (text, expected) in [
        (with("pskNext", PSK, &PSK.to_lowercase()), "pskNext: the same key as psk"),
        (with("pskNext", PSK, "null"), "pskNext: character 1 is not a hex digit"),
        (with("pskNext", PSK, &NEXT[2..]), "pskNext: 30 hex digits"),
        (with("pskNext", "", NEXT), "psk: empty, but there is a pskIdentity"),
        (format!("deviceId,pskNext\nSN-1,{NEXT}\n"), "pskNext: a device gets a second key beside the one"),
    ] {
        let error = fault(&text, &plugs());
        assert!(error.starts_with(&format!("line 2, column {expected}")), "{error}");
        assert!(!error.contains(&NEXT[2..]), "{error}");
    }
    let error = fault(&with("pskNext", PSK, NEXT), &lamps());
    assert!(
        error.starts_with("line 2, column pskIdentity: enrollment \"lamps\" is not individual"),
        "{error}"
    );
}

#[test]
fn a_wrong_header_is_reported_with_what_is_expected() {
    let legal = COLUMNS.join(", ");
    let reported = |text| fault(text, &lamps());
    assert_eq!(
        reported("deviceId,colour\nSN-1,red\n"),
        format!(
            "line 1: unknown column \"colour\"; the columns are {legal}; remove it, or ignore it with --ignore-unknown"
        )
    );
    assert_eq!(
        reported("deviceId,psk,deviceId\n"),
        format!("line 1: the column deviceId is there twice; the columns are {legal}")
    );
    let missing = format!("line 3: the column deviceId is missing; the columns are {legal}");
    assert_eq!(reported("\n\nenrollment\nlamps\n"), missing);
    assert!(reported("").starts_with("line 1: the file is empty; expected the header deviceId,enrollment,"));
}

#[test]
fn a_byte_order_mark_carriage_returns_and_blank_lines_are_ignored() {
    let rows = parse("\u{FEFF}\"deviceId\",enrollment\r\n\r\nSN-1,lamps\r\n   \r\nSN-2,\r\n\r\n", &lamps());
    let ids: Vec<_> = rows.into_iter().map(|row| row.unwrap().device.to_string()).collect();
    assert_eq!(ids, ["SN-1", "SN-2"]);
}

#[test]
fn the_only_enrollment_is_the_default_and_among_several_there_is_none() {
    assert_eq!(only("deviceId,enrollment\nSN-1,\n", &lamps()).enrollment, "lamps");
    let among = "configured: \"lamps\", \"plugs\"";
    for text in ["deviceId\nSN-1\n", "deviceId,enrollment\nSN-1,\n"] {
        let expected = format!(
            "line 2, column enrollment: empty, and there is no default; add the column, or use --enrollment NAME; {among}"
        );
        assert_eq!(fault(text, &both()), expected);
    }
    assert_eq!(
        fault("deviceId,enrollment\nSN-1,lamp\n", &both()),
        format!("line 2, column enrollment: unknown enrollment \"lamp\"; {among}")
    );
    assert_eq!(only("deviceId\nSN-1\n", &both().with_default("plugs").unwrap()).enrollment, "plugs");
    assert_eq!(
        both().with_default("lamp").unwrap_err().to_string(),
        format!("unknown enrollment \"lamp\"; {among}")
    );
    assert!(fault("deviceId\nSN-1\n", &Enrollments::new([])).ends_with("no enrollment is configured"));
}

#[test]
fn a_key_is_16_to_64_bytes_of_hex_and_belongs_to_an_individual_device() {
    let reported = |identity: &str, psk: &str| {
        fault(&format!("deviceId,pskIdentity,psk\nSN-1,{identity},{psk}\n"), &plugs())
    };
    let psk = "line 2, column psk: ";
    assert_eq!(reported("i", &PSK[1..]), format!("{psk}31 hex digits, expected 32 to 128"));
    assert_eq!(reported("i", &"a".repeat(130)), format!("{psk}130 hex digits, expected 32 to 128"));
    assert_eq!(reported("i", &"a".repeat(33)), format!("{psk}33 hex digits, expected an even number"));
    assert_eq!(reported("i", &PSK.replace('2', "x")), format!("{psk}character 5 is not a hex digit"));
    assert_eq!(reported("i", ""), format!("{psk}empty, but there is a pskIdentity"));
    let identity = "line 2, column pskIdentity: ";
    assert_eq!(reported("", PSK), format!("{identity}empty, but there is a psk"));
    for bad in ["i".repeat(129), "a\u{7}b".to_owned(), "a\u{85}b".to_owned()] {
        let expected = "expected 1 to 128 bytes of UTF-8 without control characters";
        assert_eq!(reported(&bad, PSK), format!("{identity}{expected}"));
    }
    for good in [PSK.to_owned(), "b1".repeat(64)] {
        let text = format!("deviceId,pskIdentity,psk\nSN-1,{},{good}\n", "ü".repeat(64));
        assert!(only(&text, &plugs()).key.is_some());
    }
    // A row without a key is accepted here, because the device may already have a key in the table.
    assert_eq!(only("deviceId\nSN-1\n", &plugs()).key, None);
    let text = format!("deviceId,pskIdentity,psk\nSN-1,i,{PSK}\n");
    assert_eq!(
        fault(&text, &lamps()),
        format!(
            "{identity}enrollment \"lamps\" is not individual, so its devices have no key of their own; expected an \
             empty pskIdentity and psk"
        )
    );
}

#[test]
fn a_certificate_is_complete_and_legal() {
    let reported = |name: &str, secret: &str| {
        fault(&format!("deviceId,deviceName,deviceSecret\nSN-1,{name},{secret}\n"), &lamps())
    };
    let name = "line 2, column deviceName: ";
    assert_eq!(reported("", SECRET), format!("{name}empty, but there is a deviceSecret"));
    for (bad, expected) in [
        ("abc", "3 characters, expected 4 to 32"),
        ("a name", "character 2 is U+0020; expected only A-Z a-z 0-9 _ . : @ - in a device name"),
        ("näme", "character 2 is \"ä\" (U+00E4); expected only A-Z a-z 0-9 _ . : @ - in a device name"),
        (&"x".repeat(33), "33 characters, expected 4 to 32"),
    ] {
        assert_eq!(reported(bad, SECRET), format!("{name}{expected}"));
    }
    let error = reported("name-1", "s3 cret");
    assert!(error.starts_with("line 2, column deviceSecret: ") && !error.contains("s3"), "{error}");
    let named = only("deviceId,deviceName\nSN-1,a.b_c:d@e-f\n", &lamps());
    assert_eq!((named.device_name.as_deref(), named.device_secret), (Some("a.b_c:d@e-f"), None));
}

#[test]
fn a_repeated_device_or_identity_is_reported_with_both_lines() {
    let text = "deviceId,deviceName\n00:1a:2b:3c:4d:5e,\nSN-1,\n\n001A-2B3C,\n001a.2b3c.4d5e,other\nSN-1,other\n\
                sn-1,\n";
    assert_eq!(
        faults_of(&[text], &lamps()),
        [
            "line 6, column deviceId: device 001A2B3C4D5E is already in line 2, with other values",
            "line 7, column deviceId: device SN-1 is already in line 3, with other values",
        ]
    );
    let store = Memory::default();
    let imported =
        attempt(&store, &["deviceId\n00:1a:2b:3c:4d:5e\nSN-1\n001A2B3C4D5E\n SN-1\n"], &lamps()).unwrap();
    assert_eq!((imported.report.added, store.count().unwrap()), (2, 2));
    let remark = "rows with a device and values that are already there: 2 rows (lines 4, 5) left out";
    assert!(imported.remarks.iter().any(|known| known == remark), "{:?}", imported.remarks);
    let text = format!("deviceId,pskIdentity,psk\nSN-1,i,{PSK}\nSN-2,I,{PSK}\nSN-3,i,{PSK}\n");
    let expected = "line 4, column pskIdentity: this identity is already in line 2";
    assert_eq!(faults_of(&[&text], &plugs()), [expected]);
    // In another file, the place has the file's name. Bad lines of all kinds are in the order of
    // the files.
    let files =
        ["deviceId,deviceName\nSN-1,\n\nSN-2,\n", "deviceId,deviceName\nSN-2,other\nSN 3,\nSN-1,other\n"];
    assert_eq!(
        faults_of(&files, &lamps()),
        [
            "line 2, column deviceId: device SN-2 is already in line 4 of 0.csv, with other values",
            "line 3, column deviceId: character 3 is U+0020; expected only A-Z a-z 0-9 . _ : @ - in a device ID; \
             found \"SN 3\"",
            "line 4, column deviceId: device SN-1 is already in line 2 of 0.csv, with other values",
        ]
    );
}

#[test]
fn every_bad_line_is_reported_and_the_good_ones_are_still_read() {
    let text = "deviceId,deviceName\nSN 1,\nSN-2,abc\nSN-3\n\"SN-4,\nSN-5,\nSN-6,,x\n,name-1\n";
    let rows = parse(text, &lamps());
    let faults: Vec<_> = rows.iter().filter_map(|row| row.as_ref().err()).collect();
    assert_eq!(
        faults,
        [
            "line 2, column deviceId: character 3 is U+0020; expected only A-Z a-z 0-9 . _ : @ - in a device ID; \
             found \"SN 1\"",
            "line 3, column deviceName: 3 characters, expected 4 to 32",
            "line 4: 1 fields, the header has 2",
            "line 5: a quote is not closed on the same line",
            "line 7: 3 fields, the header has 2",
            "line 8, column deviceId: a device ID is empty",
        ]
    );
    assert_eq!(rows.iter().flatten().count(), 1);
}

/// Returns the devices and names of a file or, if it has errors, the errors. Also returns the
/// remarks.
fn outcome(bytes: &[u8], ignores_unknown: bool) -> (Vec<String>, Vec<String>) {
    let enrollments = both().with_default("lamps").unwrap();
    let mut rows = match read(bytes, &enrollments, ignores_unknown, false) {
        Ok(rows) => rows,
        Err(ReadError::Line(error)) => return (vec![error.to_string()], Vec::new()),
        Err(ReadError::Io(error)) => panic!("{error}"),
    };
    let mut found = Vec::new();
    for row in rows.by_ref() {
        found.push(match row {
            Ok(row) => format!("{}/{}", row.device, row.device_name.unwrap_or_default()),
            Err(ReadError::Line(error)) => error.to_string(),
            Err(ReadError::Io(error)) => panic!("{error}"),
        });
    }
    (found, rows.remarks())
}

#[test]
fn a_line_that_begins_with_a_hash_is_never_dropped_in_silence() {
    let (found, remarks) =
        outcome(b"deviceId,deviceName\n#N/A,lamp-1\n#REF!,lamp-2\nSN-4,lamp-4\n# a comment\n", false);
    assert!(found[0].starts_with("line 2, column deviceId: \"#N/A\" stands for no value"), "{found:?}");
    assert!(found[1].starts_with("line 3, column deviceId: \"#REF!\" stands for no value"), "{found:?}");
    assert_eq!(found[2..], ["SN-4/lamp-4"]);
    assert_eq!(remarks, ["lines that begin with # are comments: 1 row (line 5) left out"]);
    let (found, remarks) = outcome(b"#,deviceId\n#1,SN-1\n2,SN-2\n", true);
    assert_eq!(found, ["SN-1/", "SN-2/"]);
    assert_eq!(remarks, ["ignored columns: #"]);
    let (found, remarks) = outcome(b"SN00001\n#00002\n", false);
    assert_eq!(found, ["SN00001/"]);
    assert!(
        remarks[0].ends_with("the first being \"SN00001\"") && remarks[1].contains("line 2"),
        "{remarks:?}"
    );
}

#[test]
fn a_second_header_is_no_device() {
    for again in ["DeviceId,DeviceName", "\"deviceId\",\"deviceName\"", "deviceId, deviceName "] {
        let text = format!("deviceId,deviceName\nSN-1,lamp-1\n{again}\nSN-2,lamp-2\n");
        let (found, remarks) = outcome(text.as_bytes(), false);
        assert_eq!(found, ["SN-1/lamp-1", "SN-2/lamp-2"], "{again}");
        assert_eq!(remarks, ["the header is repeated: 1 row (line 3) left out"]);
    }
    let other = "line 3: another header; put these rows into a file of their own";
    for text in ["deviceId,deviceName\nSN-1,lamp-1\ndeviceName,deviceId\n", "SN-0001\nSN-0002\nMAC\n"] {
        assert_eq!(outcome(text.as_bytes(), false).0.last().map(String::as_str), Some(other));
    }
}

#[test]
fn a_line_that_may_hold_a_secret_is_not_repeated() {
    for text in [
        format!("SN00000001,lamp-0001,{SECRET}\n"),
        format!("deviceId,{SECRET}\nSN-1,x\n"),
        format!("deviceId,enrollment\nSN-1,{SECRET}\n"),
        format!("deviceId,deviceName,deviceSecret\nSN-1,lamp-1,{}.0\n", "12345678".repeat(4)),
        format!("deviceId,productKey\nSN-1,{SECRET}\n"),
        format!("deviceId,iotId\nSN-1,{SECRET}{SECRET}\n"),
        format!("{{\"deviceId\":\"SN-1\",\"{SECRET}\":\"x\"}}\n"),
    ] {
        let (found, _) = outcome(text.as_bytes(), false);
        assert!(found.len() == 1 && found[0].starts_with("line "), "{found:?}");
        assert!(!found[0].contains(SECRET) && !found[0].contains("12345678123"), "{found:?}");
    }
}

#[test]
fn a_guessed_encoding_decides_no_identity() {
    let text = format!("deviceId,enrollment,pskIdentity,psk\nSN-1,plugs,B\u{e4}r,{PSK}\n");
    // The text is in the encoding that Windows uses in Europe.
    let bytes: Vec<u8> = text.chars().map(|character| character as u8).collect();
    let (found, _) = outcome(&bytes, false);
    assert!(found[0].starts_with("line 2, column pskIdentity: the line is not UTF-8"), "{found:?}");
    // If an earlier line is in UTF-8, a line in another encoding is an error.
    let mixed =
        [text.as_bytes(), &bytes[bytes.iter().position(|byte| *byte == b'\n').unwrap() + 1..]].concat();
    let (found, _) = outcome(&mixed, false);
    assert!(found[1].starts_with("line 3: not UTF-8 from byte") && found[1].contains("iconv"), "{found:?}");
    // The name is in Chinese, in the encoding that Excel uses in China.
    let gbk = b"deviceId,\xb1\xb8\xd7\xa2\nSN-1,\xb5\xc6\n";
    let (found, remarks) = outcome(gbk, true);
    assert_eq!(found, ["SN-1/"]);
    assert!(
        remarks.iter().any(|remark| remark == "the file is not UTF-8: 1 row (line 2) read as GB18030"),
        "{remarks:?}"
    );
}

#[test]
fn json_lines_follow_the_rules_of_csv() {
    let said = |text: &str| outcome(text.as_bytes(), false).0.remove(0);
    assert_eq!(said("{\"deviceId\":\"SN-1\",\"deviceName\":\"lamp-1\"}\n"), "SN-1/lamp-1");
    assert_eq!(said("{\"DeviceName\":\"lamp-1\"}\n"), "lamp-1/lamp-1");
    assert!(said("{\"deviceId\":\"SN-1\",\"deviceId\":\"SN-2\"}\n").ends_with("the object has it twice"));
    assert!(said("{\"deviceId\":\"SN-1\",\"\":\"x\"}\n").ends_with("a value without a name"));
    assert!(said("{\"deviceId\":1}\n").ends_with("expected a JSON string, in quotes"));
    assert!(said("{\n\"deviceId\": \"SN-1\"\n}\n").contains("jq -c ."));
    let (found, remarks) = outcome(b"{\"deviceId\":\"SN-1\",\"devName\":\"x\"}\n", true);
    assert_eq!((found, remarks), (vec!["SN-1/".to_owned()], vec!["ignored columns: devName".to_owned()]));
}

#[test]
fn rows_without_values_of_their_own_are_named() {
    let (found, remarks) = outcome(b"Nr,deviceId\n1,SN-1\n2,\n", true);
    assert_eq!(found, ["SN-1/"]);
    assert_eq!(remarks[0], "values only in columns that are ignored: 1 row (line 3) left out");
}

#[test]
fn a_target_must_be_configured_and_that_of_the_enrollment_is_passed_on() {
    let target_of =
        [("lamps", "tokyo"), ("plugs", "default")].map(|(one, target)| (one.into(), target.into()));
    let targets = ["default", "tokyo"].map(str::to_owned);
    let both = both().with_targets(targets, target_of.into());
    let targets = |line: &str| {
        let row = only(&format!("deviceId,enrollment,target\n{line}\n"), &both);
        (row.target, row.enrollment_target)
    };
    let some = |target: &str| Some(target.to_owned());
    assert_eq!(targets("SN-1,lamps,"), (None, some("tokyo")));
    assert_eq!(targets("SN-1,lamps,default"), (some("default"), some("tokyo")));
    let row = only(
        "deviceId,enrollment,target,pskIdentity,psk\nSN-1,plugs,tokyo,one,000102030405060708090a0b0c0d0e0f\n",
        &both,
    );
    assert_eq!((row.target, row.enrollment_target), (some("tokyo"), None));
    let error = fault("deviceId,enrollment,target\nSN-1,lamps,osaka\n", &both);
    let expected = "line 2, column target: unknown target \"osaka\"; configured: \"default\", \"tokyo\"; correct the \
                    line, or add the [[target]] to the configuration";
    assert_eq!(error, expected);
    // Without a cloud, all certificates belong to the default target.
    assert_eq!(only("deviceId,target\nSN-1,default\n", &lamps()).target, some("default"));
    assert!(fault("deviceId,target\nSN-1,tokyo\n", &lamps()).contains("no [[target]] is configured"));
}

#[test]
fn what_the_configuration_accepts_can_be_imported() {
    let odd = Enrollment {
        name: " 'odd' ".into(),
        product_key: "sim_product-1".into(),
        kind: derived(),
        reissue: Reissue::Always,
        next: None,
        guards: Default::default(),
    };
    let enrollments = Enrollments::new([odd.outline()]);
    let row = only("deviceId,enrollment,productKey\nSN-1, 'odd' ,sim_product-1\n", &enrollments);
    assert_eq!((row.enrollment.as_str(), row.product_key.as_deref()), (" 'odd' ", Some("sim_product-1")));
}

#[test]
fn an_id_that_may_be_a_secret_is_not_repeated() {
    let text = format!("deviceId,deviceName\n{SECRET},lamp-1\n{SECRET},lamp-2\n");
    let expected = "line 3, column deviceId: this device is already in line 2, with other values";
    assert_eq!(faults_of(&[&text], &lamps()), [expected]);
}

/// Imports texts as the files 0.csv, 1.csv and so on.
fn attempt(store: &Memory, texts: &[&str], enrollments: &Enrollments) -> Result<Imported, ImportFileError> {
    let by = Actor::system_user();
    let how = Import { enrollments, by: &by, dry_run: false, ignores_unknown: false };
    let names: Vec<String> = (0..texts.len()).map(|number| format!("{number}.csv")).collect();
    let input = |(name, text): (&'static str, String)| Input {
        name: Path::new(name),
        size: 0,
        is_stream: false,
        reader: Box::new(std::io::Cursor::new(text)),
    };
    let names = names.into_iter().map(|name| &*name.leak());
    let texts = texts.iter().map(|text| (*text).to_owned());
    let inputs = std::iter::zip(names, texts).map(input).collect();
    import(store, inputs, how, Feedback { progress: &mut |_, _, _| (), bad_line: &mut |_, _| () })
}

/// Returns the bad lines of texts.
fn faults_of(texts: &[&str], enrollments: &Enrollments) -> Vec<String> {
    match attempt(&Memory::default(), texts, enrollments) {
        Err(ImportFileError::Lines { files }) => {
            files.iter().flat_map(|file| &file.lines.listed).map(ToString::to_string).collect()
        }
        other => panic!("{other:?}"),
    }
}

/// Imports a text that has no bad lines.
fn imported(store: &Memory, text: &str) -> ImportReport {
    attempt(store, &[text], &lamps()).unwrap().report
}

#[test]
fn a_mac_that_is_in_the_table_as_a_serial_number_stays_that_device() {
    let store = Memory::default();
    let spelled = DeviceId::parse_sn("001a-2b3c-4d5e").unwrap();
    crate::testing::store::import(&store, [ImportRow::new(spelled.clone(), "lamps", "a1lamps")]);
    assert_eq!(imported(&store, "deviceId\n001a-2b3c-4d5e\n").unchanged, 1);
    let report = imported(&store, "deviceId,deviceName\n001a-2b3c-4d5e,lamp-1\n");
    assert_eq!((report.changed, store.count().unwrap()), (1, 1));
    for other in ["00:1A:2B:3C:4D:5E", "001a2b3c4d5e", "0x001A2B3C4D5E", "00 1a 2b 3c 4d 5e"] {
        assert_eq!(imported(&store, &format!("deviceId\n{other}\n")).unchanged, 1, "{other}");
    }
    // In a table without this serial number, the line `001a-2b3c-4d5e` is imported as a MAC
    // address.
    let other = Memory::default();
    assert_eq!(imported(&other, "deviceId\n001a-2b3c-4d5e\n").added, 1);
    assert_eq!(
        other.row(&DeviceId::parse("001A2B3C4D5E").unwrap()).map(|row| row.id.to_string()).as_deref(),
        Some("001A2B3C4D5E")
    );
    assert_eq!(other.row(&spelled), None);
}

#[test]
fn a_bad_device_id_is_shown_unless_it_may_be_a_secret() {
    let secret = "s3cret/s3cret/s3cret/s3cret/s3cr";
    let csv = format!("deviceId\nSN\u{202e}/1\n{secret}\n");
    let lines: Vec<String> = parse(&csv, &lamps()).into_iter().filter_map(Result::err).collect();
    assert!(lines[0].contains("found \"SN\\u{202e}/1\""), "{lines:?}");
    assert!(lines[1].contains("is \"/\"") && !lines[1].contains("s3cret"), "{lines:?}");
}
