//! Tests with the calls of `tests/data/tablestore/vectors.json`: the requests are those of the
//! official SDK for Python, and the SDK has accepted the answers. `go_bodies.json` has requests that
//! only the SDK for Go can make.

use std::sync::LazyLock;

use prost::Message;
use serde_json::Value as Json;

use super::{
    client::Credentials,
    condition::{Comparator::*, Condition, Filter, RowExpectation},
    exchange::{Answer, format_date, parse_date, request_headers},
    message,
    request::{Direction, Range, Read, Returns, Update, Write, key_buffer, read_row, read_rows},
    schema::{Capacity, KeyType, Options, Schema, Status, TableDescription},
    signature,
    value::{Bound, End, Key, Value},
    *,
};
use crate::device::Secret;

const TABLE: &str = "device_table";
/// Bodies that no function of certdist makes: it does not use local transactions, secondary indexes
/// or version 4 of the signature.
const MADE_BY_HAND: [&str; 4] =
    ["create_table_with_index", "start_local_transaction", "put_row_in_transaction", "commit_transaction"];

/// Returns the content of the file, which is parsed once.
pub fn file() -> &'static Json {
    static FILE: LazyLock<Json> = LazyLock::new(|| {
        serde_json::from_str(include_str!("../../tests/data/tablestore/vectors.json")).unwrap()
    });
    &FILE
}

fn bytes(text: &Json) -> Vec<u8> {
    hex::decode(text.as_str().unwrap()).unwrap()
}

fn pairs(headers: &Json) -> Vec<(String, &str)> {
    let headers = headers.as_object().unwrap().iter();
    headers.map(|(name, value)| (name.to_ascii_lowercase(), value.as_str().unwrap())).collect()
}

pub fn credentials(vector: &Json) -> Credentials {
    let file = file();
    let token = vector["request"]["headers"]["x-ots-ststoken"].as_str();
    Credentials {
        access_key_id: file["access_key_id"].as_str().unwrap().into(),
        access_key_secret: Secret::new(file["access_key_secret"].as_str().unwrap().into()),
        security_token: token.map(|token| Secret::new(token.into())),
    }
}

fn key(id: &str) -> Key {
    Key::of("deviceId", id)
}

fn imported() -> Vec<(&'static str, Value)> {
    vec![("productKey", "a1B2c3D4e5F".into()), ("enrollment", "factory".into()), ("state", "enabled".into())]
}

fn exists(filter: Filter) -> Condition {
    Condition { row: RowExpectation::Exists, columns: Some(filter) }
}

fn expect(row: RowExpectation) -> Condition {
    Condition::row(row)
}

fn range(start: End, end: End, limit: i32) -> Range {
    Range::new(TABLE, Direction::Forward, start, end).limit(limit)
}

fn put(name: &str, value: impl Into<Value>) -> Update {
    Update::Put(name.into(), value.into())
}

fn remove(name: &str) -> Update {
    Update::Remove(name.into())
}

/// Makes the body of a vector's request with the functions that the client uses.
fn body(name: &str) -> Vec<u8> {
    let (sn1, sn2, sn3) = (key("SN00000001"), key("SN00000002"), key("0A1B2C3D4E5F"));
    let (first, last) = (End::minimum(&["deviceId"]), End::maximum(&["deviceId"]));
    let read = |id: &str| Read::new(TABLE, key(id));
    let write = |write: Write| write.to_message().encode_to_vec();
    let factory = |comparator| Filter::present_and("enrollment", comparator, "factory");
    match name {
        "create_table" | "create_table_exists" => {
            Schema::new(TABLE, &[("deviceId", KeyType::Text)]).to_message().encode_to_vec()
        }
        "create_table_with_index" => {
            let mut request = Schema::new("device_key", &[("pskIdentity", KeyType::Text)]).to_message();
            let column = message::DefinedColumnSchema { name: "deviceId".into(), kind: 4 };
            request.table_meta.defined_column.push(column);
            request.index_metas.push(message::IndexMeta {
                name: "device_key_by_device".into(),
                primary_key: vec!["deviceId".into()],
                ..message::IndexMeta::default()
            });
            request.encode_to_vec()
        }
        "list_table" => message::Nothing {}.encode_to_vec(),
        "describe_table" => message::TableRequest { table_name: TABLE.into() }.encode_to_vec(),
        "describe_table_absent" => {
            message::TableRequest { table_name: "device_tabel".into() }.encode_to_vec()
        }
        "get_row_columns" | "get_row_columns_bare" => {
            read("SN00000001").columns(&["productKey", "deviceName"]).to_message().encode_to_vec()
        }
        "get_row_absent" => read("SN00000002").to_message().encode_to_vec(),
        "get_row_types" => read("types").to_message().encode_to_vec(),
        "put_row_new" | "put_row_not_new" => {
            write(Write::put(TABLE, sn2, imported()).when(expect(RowExpectation::Absent)))
        }
        "put_row_types" => {
            let columns: [(&str, Value); 7] = [
                ("blob", vec![0, 0xff, 0x10].into()),
                ("double", (-2.5).into()),
                ("empty", "".into()),
                ("falsity", false.into()),
                ("least", i64::MIN.into()),
                ("text", "\u{8bbe}\u{5907} \u{2713}".into()),
                ("truth", true.into()),
            ];
            write(Write::put(TABLE, key("types"), columns).returning(Returns::Key))
        }
        "update_row_take_lease" | "update_row_lease_taken" => {
            let condition = Filter::All(vec![
                Filter::missing_or("deviceSecret", Equal, ""),
                Filter::missing_or("leaseUntil", Less, 1_795_681_815),
            ]);
            let changes = vec![put("leaseOwner", "server-a/7"), put("leaseUntil", 1_795_681_875)];
            write(Write::update(TABLE, sn2, changes).when(exists(condition)))
        }
        "update_row_store_certificate" => {
            let changes = vec![
                put("deviceName", "SN00000002"),
                put("deviceSecret", "00112233445566778899aabbccddeeff"),
                put("IotId", "Zq8FakeIotId000200"),
                put("registerTime", 1_795_681_816),
                remove("leaseOwner"),
                remove("leaseUntil"),
                remove("refusal"),
            ];
            let condition = Filter::present_and("leaseOwner", Equal, "server-a/7");
            write(Write::update(TABLE, sn2, changes).when(exists(condition)))
        }
        "update_row_first_issue" => {
            let condition = Filter::missing_or("firstIssued", Equal, -1);
            let changes = vec![put("firstIssued", 1_795_681_817)];
            write(Write::update(TABLE, sn2, changes).when(exists(condition)))
        }
        "update_row_not_or" => {
            let disabled = Filter::present_and("state", Equal, "disabled");
            let condition = Filter::Any(vec![disabled, Filter::Not(Box::new(factory(NotEqual)))]);
            write(Write::update(TABLE, sn2, vec![put("state", "enabled")]).when(exists(condition)))
        }
        "update_row_increment" => {
            let changes = vec![
                Update::Increment("registered".into(), 1),
                Update::RemoveVersion("old".into(), 1_795_681_815_000),
            ];
            write(Write::update("certdist_total", Key::of("shard", "factory#03"), changes))
        }
        "delete_row" => write(Write::delete(TABLE, sn3).when(expect(RowExpectation::Exists))),
        "batch_get_row" => message::BatchGetRowRequest {
            tables: vec![message::TableOfBatchGet {
                table_name: TABLE.into(),
                primary_key: [sn1, sn2, sn3].iter().map(key_buffer).collect(),
                max_versions: Some(1),
                ..message::TableOfBatchGet::default()
            }],
        }
        .encode_to_vec(),
        "batch_write_row" => {
            let changes = vec![put("enrollment", "factory"), remove("refusal")];
            let product = Filter::present_and("productKey", Equal, "a1B2c3D4e5F");
            let writes = [
                Write::put(TABLE, key("SN00000011"), imported()).when(expect(RowExpectation::Absent)),
                Write::update(TABLE, sn1, changes).when(exists(product)),
                Write::delete(TABLE, sn3),
            ];
            message::BatchWriteRowRequest {
                tables: vec![message::TableOfBatchWrite {
                    table_name: TABLE.into(),
                    rows: writes.iter().map(Write::to_batch_message).collect(),
                }],
                transaction_id: None,
                is_atomic: None,
            }
            .encode_to_vec()
        }
        "get_range_first_page" => range(first, last, 2).to_message().encode_to_vec(),
        "get_range_last_page" => range(key("SN00000001\0").into(), last, 1000).to_message().encode_to_vec(),
        "get_range_empty" => range(first, last, 1).to_message().encode_to_vec(),
        "get_range_filter" => Range {
            columns: vec!["deviceId".into(), "enrollment".into()],
            filter: Some(Filter::missing_or("deviceSecret", Equal, "")),
            ..range(first, last, 5000)
        }
        .to_message()
        .encode_to_vec(),
        "get_range_backward" => {
            let range = Range { direction: Direction::Backward, ..range(last, first, 1) };
            range.to_message().encode_to_vec()
        }
        "start_local_transaction" => {
            // The fields are those of a read without the number of versions.
            let request = message::GetRowRequest { max_versions: None, ..read("SN00000001").to_message() };
            request.encode_to_vec()
        }
        "put_row_in_transaction" => {
            let request = Write::put(TABLE, sn1, imported()).to_message();
            let transaction_id = Some("A7B8C9FAKE".into());
            message::WriteRowRequest { transaction_id, ..request }.encode_to_vec()
        }
        "commit_transaction" => message::TableRequest { table_name: "A7B8C9FAKE".into() }.encode_to_vec(),
        _ if name.starts_with("error_") || name.starts_with("get_row_") => {
            read("SN00000001").to_message().encode_to_vec()
        }
        _ => panic!("no request for {name}"),
    }
}

#[test]
fn every_request_has_the_bytes_of_the_sdk() {
    let vectors = file()["vectors"].as_array().unwrap();
    assert_eq!(vectors.len(), 43);
    for vector in vectors {
        let name = vector["name"].as_str().unwrap();
        assert_eq!(hex::encode(body(name)), vector["request"]["body"].as_str().unwrap(), "{name}");
    }
    for name in MADE_BY_HAND {
        assert!(vectors.iter().any(|vector| vector["name"] == name), "{name}");
    }
}

#[test]
fn every_request_has_the_headers_and_the_signature_of_the_sdk() {
    let (file, mut version_4) = (file(), 0);
    for vector in file["vectors"].as_array().unwrap() {
        let (name, request) = (vector["name"].as_str().unwrap(), &vector["request"]);
        let path = request["path"].as_str().unwrap().trim_start_matches('/');
        let (headers, body) = (pairs(&request["headers"]), bytes(&request["body"]));
        let signed = || headers.iter().map(|(name, value)| (name.as_str(), *value));
        let credentials = credentials(vector);
        let (secret, signature) =
            (credentials.access_key_secret.expose(), request["signature"].as_str().unwrap());
        let text = signature::request_text(path, signed());
        if request["signature_header"] == signature::SIGNATURE_V4 {
            version_4 += 1;
            assert_eq!(format!("{text}ots"), request["string_to_sign"], "{name}");
            let key = signature::key_v4(secret, "20261126", file["v4_region"].as_str().unwrap());
            assert!(signature::verify_v4(path, signed(), &key, signature), "{name}");
            let other = signature::key_v4(secret, "20261127", file["v4_region"].as_str().unwrap());
            assert!(!signature::verify_v4(path, signed(), &other, signature), "{name}");
            continue;
        }
        assert_eq!(text, request["string_to_sign"], "{name}");
        assert_eq!(signature::sign(&text, secret), signature, "{name}");
        let Some(operation) = Operation::named(path) else { continue };
        let now = parse_date(file["date"].as_str().unwrap()).unwrap();
        let mut made = request_headers(operation, "certdist", &credentials, now, &body);
        let last = made.pop().unwrap();
        assert_eq!((last.0, last.1.as_str()), (signature::SIGNATURE, signature), "{name}");
        made.sort();
        let made: Vec<_> = made.iter().map(|(name, value)| ((*name).to_owned(), value.as_str())).collect();
        assert_eq!(made, headers, "{name}");
    }
    assert_eq!(version_4, 1);
    assert_eq!(format_date(parse_date(file["date"].as_str().unwrap()).unwrap()), file["date"]);
}

/// Reads the answer of a vector as the client does.
fn read<M: Message + Default>(vector: &Json) -> Result<M, Error> {
    let (file, response) = (file(), &vector["response"]);
    let (body, headers) = (bytes(&response["body"]), pairs(&response["headers"]));
    let path = vector["request"]["path"].as_str().unwrap().trim_start_matches('/');
    let answer = Answer {
        status: u16::try_from(response["status"].as_u64().unwrap()).unwrap(),
        headers: headers.iter().map(|(name, value)| (name.as_str(), *value)).collect(),
        body: &body,
    };
    let now = parse_date(file["date"].as_str().unwrap()).unwrap();
    answer.read(Operation::named(path).unwrap(), &credentials(vector), now)
}

fn named(name: &str) -> Json {
    let vectors = file()["vectors"].as_array().unwrap();
    vectors.iter().find(|vector| vector["name"] == name).unwrap_or_else(|| panic!("{name}")).clone()
}

#[test]
fn every_error_has_the_code_and_the_message_that_the_sdk_reads() {
    let (file, mut seen) = (file(), 0);
    for vector in file["vectors"].as_array().unwrap() {
        let Some(expected) = vector["parsed"].get("error") else { continue };
        let error = read::<message::Nothing>(vector).unwrap_err();
        assert_eq!(error.code, expected["code"].as_str().unwrap());
        assert_eq!(error.message, expected["message"].as_str().unwrap());
        assert_eq!(error.request_id.as_deref(), expected["request_id"].as_str());
        seen += 1;
    }
    assert_eq!(seen, 14);
}

#[test]
fn rows_are_read_as_the_sdk_reads_them() {
    let answer: message::GetRowResponse = read(&named("get_row_found")).unwrap();
    assert_eq!(answer.consumed.capacity_unit, message::CapacityUnit { read: Some(1), write: Some(0) });
    let row = read_row(&answer.row).unwrap().unwrap();
    assert_eq!(row.key, key("SN00000001"));
    let names: Vec<_> = row.columns.iter().map(|column| column.name.as_str()).collect();
    let expected = ["IotId", "activateTime", "deviceName", "deviceSecret", "productKey", "registerTime"];
    assert_eq!(names, expected);
    assert_eq!(row.get("registerTime").and_then(Value::as_integer), Some(1_795_681_600));
    assert!(row.columns.iter().all(|column| column.version == 1_795_681_815_000));

    let bare: message::GetRowResponse = read(&named("get_row_columns_bare")).unwrap();
    let bare = read_row(&bare.row).unwrap().unwrap();
    assert_eq!((bare.key.0.len(), bare.columns.len()), (0, 2));

    let absent: message::GetRowResponse = read(&named("get_row_absent")).unwrap();
    assert_eq!(read_row(&absent.row), Ok(None));

    let types: message::GetRowResponse = read(&named("get_row_types")).unwrap();
    let types = read_row(&types.row).unwrap().unwrap();
    assert_eq!(types.get("blob"), Some(&vec![0, 0xff, 0x10].into()));
    assert_eq!(types.get("double"), Some(&(-2.5).into()));
    assert_eq!(types.get("falsity"), Some(&false.into()));
    assert_eq!(types.get("least"), Some(&i64::MIN.into()));
    assert_eq!(types.get("text").and_then(Value::as_text), Some("\u{8bbe}\u{5907} \u{2713}"));

    for (name, rows, has_next) in [
        ("get_range_first_page", 2, true),
        ("get_range_last_page", 1, false),
        ("get_range_empty", 0, false),
        ("get_range_filter", 0, true),
        ("get_range_backward", 1, true),
    ] {
        let page: message::GetRangeResponse = read(&named(name)).unwrap();
        assert_eq!(read_rows(&page.rows).unwrap().len(), rows, "{name}");
        assert_eq!(page.next_start_primary_key.is_some(), has_next, "{name}");
    }
}

#[test]
fn a_table_is_described_with_its_options() {
    let answer = read(&named("describe_table")).unwrap();
    let options = Options { allow_update: Some(true), ..Options::default() };
    let schema = Schema { options, ..Schema::new(TABLE, &[("deviceId", KeyType::Text)]) };
    let expected = TableDescription { schema, status: Status::Active, reserved: Capacity::default() };
    assert_eq!(TableDescription::from_message(answer), Some(expected));
}

/// Checks that any change to an answer by an intermediary is detected.
#[test]
fn no_prefix_and_no_flipped_bit_of_an_answer_is_taken_for_an_answer() {
    for name in ["get_row_found", "batch_write_row", "get_range_first_page", "describe_table"] {
        let vector = named(name);
        let body = bytes(&vector["response"]["body"]);
        let changed = |body: &[u8]| {
            let mut vector = vector.clone();
            vector["response"]["body"] = hex::encode(body).into();
            read::<message::Nothing>(&vector)
        };
        assert!(changed(&body).is_ok(), "{name}");
        for length in 0..body.len() {
            assert_eq!(changed(&body[..length]).unwrap_err().code, NOT_AN_ANSWER, "{name} {length}");
        }
        for bit in 0..body.len() * 8 {
            let mut flipped = body.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(changed(&flipped).unwrap_err().code, NOT_AN_ANSWER, "{name} {bit}");
        }
    }
}

/// Checks that a changed answer causes nothing worse than an error, even without the MD5 and the
/// signature, which the service might leave out one day.
#[test]
fn any_prefix_and_any_flipped_bit_of_a_body_can_be_read_without_a_panic() {
    for vector in file()["vectors"].as_array().unwrap() {
        for part in ["request", "response"] {
            let body = bytes(&vector[part]["body"]);
            for length in 0..body.len() {
                testing::read_as_everything(&body[..length]);
            }
            for bit in 0..body.len() * 8 {
                let mut flipped = body.clone();
                flipped[bit / 8] ^= 1 << (bit % 8);
                testing::read_as_everything(&flipped);
            }
        }
    }
}

#[test]
fn requests_that_only_the_sdk_for_go_makes_are_the_same() {
    let file: Json =
        serde_json::from_str(include_str!("../../tests/data/tablestore/go_bodies.json")).unwrap();
    let find = |name: &str| {
        let bodies = file["bodies"].as_array().unwrap();
        bytes(&bodies.iter().find(|body| body["name"] == name).unwrap()["body"])
    };
    let key = Key::of("shard", "factory#03");
    let count = Write::update("certdist_total", key, vec![Update::Increment("registered".into(), 1)])
        .returning(Returns::After(vec!["registered".into()]));
    assert_eq!(
        hex::encode(count.to_message().encode_to_vec()),
        hex::encode(find("update_row_increment_return"))
    );

    let backward = find("get_range_backward_two_key_columns");
    let stream =
        |bound| End(vec![("stream".into(), Bound::At("server-a".into())), ("lastSeq".into(), bound)]);
    let made =
        Range::new("certdist_audit", Direction::Backward, stream(Bound::Maximum), stream(Bound::Minimum));
    let made = message::GetRangeRequest {
        // The SDK for Go sends these default values, too.
        data_block_type_hint: Some(0),
        compress_type_hint: Some(0),
        ..made.limit(1).to_message()
    };
    assert_eq!(hex::encode(made.encode_to_vec()), hex::encode(backward));

    let atomic = message::BatchWriteRowRequest::decode(&*find("batch_write_row_atomic")).unwrap();
    assert_eq!((atomic.is_atomic, atomic.tables[0].rows.len()), (Some(true), 2));
    let create = find("create_table_two_key_columns_local_txn");
    let create = message::CreateTableRequest::decode(&*create).unwrap();
    assert_eq!((create.enable_local_txn, create.table_meta.primary_key.len()), (Some(true), 2));
}
