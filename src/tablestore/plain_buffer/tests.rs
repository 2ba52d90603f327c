use proptest::{collection::vec, option, prelude::*};

use super::*;
use crate::tablestore::tests::file;

fn cell(name: &str, value: impl Into<Value>) -> Cell {
    Cell::new(name, Variant::Value(value.into()))
}

fn encoded(cell: &Cell) -> (String, String) {
    let mut bytes = Vec::new();
    let checksum = encode_cell(cell, &mut bytes);
    (hex::encode(bytes), format!("{checksum:02x}"))
}

#[test]
fn the_checksum_is_that_of_the_sdks() {
    let codec = &file()["codec"];
    for (text, expected) in codec["crc8"].as_object().unwrap() {
        let mut checksum = Checksum::default();
        checksum.add(text.as_bytes());
        assert_eq!(format!("{:02x}", checksum.0), expected.as_str().unwrap(), "{text}");
    }
    assert_eq!(hex::encode(&CRC_TABLE[..16]), codec["crc8_table_first_16"].as_str().unwrap());
}

#[test]
fn each_cell_has_the_bytes_and_the_checksum_of_the_sdks() {
    const VERSION: i64 = 1_795_681_815_000;
    let codec = &file()["codec"];
    let bound = |variant| Cell::new("deviceId", variant);
    let removal = |name: &str, change, version| Cell {
        name: name.into(),
        variant: None,
        change: Some(change),
        version,
    };
    let cells = [
        ("string", cell("deviceId", "SN00000001")),
        ("integer", cell("registerTime", 1_795_681_600)),
        ("negative", cell("n", -1)),
        ("double", cell("d", 1.5)),
        ("true", cell("t", true)),
        ("false", cell("f", false)),
        ("binary", cell("b", vec![0, 1])),
        ("empty", cell("e", "")),
        ("utf8", cell("u", "\u{8bbe}")),
        ("inf_min", bound(Variant::Minimum)),
        ("inf_max", bound(Variant::Maximum)),
        ("timestamp", Cell { version: Some(VERSION), ..cell("registerTime", 1_795_681_600) }),
        ("delete_all", removal("refusal", Change::DeleteAll, None)),
        ("delete_one", removal("old", Change::DeleteVersion, Some(VERSION))),
        ("increment", Cell { change: Some(Change::Increment), ..cell("registered", 1) }),
    ];
    assert_eq!(codec["cells"].as_object().unwrap().len(), cells.len());
    for (name, cell) in cells {
        let expected = &codec["cells"][name];
        let field = |key: &str| expected[key].as_str().unwrap().to_owned();
        assert_eq!(encoded(&cell), (field("bytes"), field("crc")), "{name}");
    }
    for (name, variant) in
        [("text", Value::from("server-a/7")), ("integer", 1_795_681_815.into()), ("empty", "".into())]
    {
        let expected = codec["condition_values"][name].as_str().unwrap();
        assert_eq!(hex::encode(encode_variant(&Variant::Value(variant))), expected, "{name}");
    }
}

fn row() -> WireRow {
    WireRow {
        key: vec![cell("deviceId", "SN00000001")],
        columns: vec![cell("registerTime", 7), Cell { version: Some(9), ..cell("state", "enabled") }],
        deleted: false,
    }
}

#[test]
fn bytes_behind_the_first_row_are_ignored_in_requests_and_an_error_in_answers() {
    let mut bytes = encode(&[row()]);
    bytes.extend([0; 5]);
    assert_eq!(decode_first(&bytes), Ok(row()));
    assert_eq!(decode(&bytes), Err(Malformed::Tag));
}

#[test]
fn no_rows_are_no_bytes() {
    assert!(encode(&[]).is_empty());
    assert_eq!(decode(&[]), Ok(Vec::new()));
    assert_eq!(decode(&HEADER), Err(Malformed::Cut));
}

#[test]
fn every_prefix_of_a_row_is_an_error() {
    let bytes = encode(&[row()]);
    for length in 1..bytes.len() {
        assert!(decode(&bytes[..length]).is_err(), "{length}");
        assert!(decode_first(&bytes[..length]).is_err(), "{length}");
    }
}

#[test]
fn every_flipped_bit_of_a_row_is_an_error() {
    for row in [row(), WireRow { columns: Vec::new(), deleted: true, ..row() }] {
        let bytes = encode(&[row]);
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(decode(&flipped).is_err(), "{bit}");
        }
    }
}

#[test]
fn more_rows_or_cells_than_a_page_has_are_an_error() {
    let small = WireRow { key: vec![cell("", 1)], ..WireRow::default() };
    assert_eq!(decode(&encode(&vec![small.clone(); MAX_ROWS])).map(|rows| rows.len()), Ok(MAX_ROWS));
    assert_eq!(decode(&encode(&vec![small; MAX_ROWS + 1])), Err(Malformed::TooMany));
    let wide = |cells| WireRow { key: Vec::new(), columns: vec![cell("", true); cells], deleted: false };
    assert!(decode(&encode(&[wide(MAX_CELLS)])).is_ok());
    assert_eq!(decode(&encode(&[wide(MAX_CELLS + 1)])), Err(Malformed::TooMany));
    assert_eq!(decode(&encode(&[wide(MAX_CELLS), wide(1)])), Err(Malformed::TooMany));
}

#[test]
fn a_length_beyond_the_end_is_an_error_and_allocates_nothing() {
    let mut bytes = HEADER.to_vec();
    bytes.extend([TAG_KEY, TAG_CELL, TAG_NAME, 0xff, 0xff, 0xff, 0xff]);
    assert_eq!(decode(&bytes), Err(Malformed::Cut));
}

fn any_variant() -> impl Strategy<Value = Variant> {
    prop_oneof![
        any::<i64>().prop_map(|number| Variant::Value(number.into())),
        // NaN is not equal to itself.
        any::<f64>()
            .prop_filter("NaN", |number| !number.is_nan())
            .prop_map(|number| Variant::Value(number.into())),
        any::<bool>().prop_map(|truth| Variant::Value(truth.into())),
        any::<String>().prop_map(|text| Variant::Value(text.into())),
        vec(any::<u8>(), 0..40).prop_map(|bytes| Variant::Value(bytes.into())),
        Just(Variant::Minimum),
        Just(Variant::Maximum),
        Just(Variant::AutoIncrement),
    ]
}

fn any_cell() -> impl Strategy<Value = Cell> {
    let change = prop_oneof![Just(Change::DeleteAll), Just(Change::DeleteVersion), Just(Change::Increment)];
    let parts = (".{0,20}", option::of(any_variant()), option::of(change), option::of(any::<i64>()));
    parts.prop_map(|(name, variant, change, version)| Cell { name, variant, change, version })
}

fn any_row() -> impl Strategy<Value = WireRow> {
    let parts = (vec(any_cell(), 0..4), vec(any_cell(), 0..6), any::<bool>());
    parts.prop_map(|(key, columns, deleted)| WireRow { key, columns, deleted })
}

proptest! {
    #[test]
    fn rows_are_read_back_as_they_were_written(rows in vec(any_row(), 0..5)) {
        prop_assert_eq!(decode(&encode(&rows)), Ok(rows));
    }

    #[test]
    fn variants_are_read_back_as_they_were_written(variant in any_variant()) {
        prop_assert_eq!(decode_variant(&encode_variant(&variant)), Ok(variant));
    }

    #[test]
    fn bytes_that_are_read_are_written_in_the_same_way(
        rows in vec(any_row(), 1..3),
        changes in vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let mut bytes = encode(&rows);
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        // Each row has only one encoding, so accepted bytes are equal to the encoding of the rows.
        if let Ok(rows) = decode(&bytes) {
            prop_assert_eq!(encode(&rows), bytes);
        }
    }

    #[test]
    fn any_bytes_are_read_without_a_panic(bytes in vec(any::<u8>(), 0..200)) {
        let _ = decode(&bytes);
        let _ = decode(&[&HEADER[..], &[TAG_KEY, TAG_CELL, TAG_NAME], &bytes].concat());
        let _ = decode_first(&bytes);
        let _ = decode_variant(&bytes);
    }
}
