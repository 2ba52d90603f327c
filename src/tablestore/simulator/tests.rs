//! Tests of the stand-in, through the client: conditions, versions, limits and pages, which only the
//! stand-in decides.

use super::*;
use crate::tablestore::{
    Class, Client, ClientConfig, Comparator, Condition, Direction, End, Filter, KeyType, KeyValue, Options,
    Range, Read, Returns, RowExpectation, Schema, Status, Update, Value, Write,
};

const TABLE: &str = "device_table";

fn client_of(simulator: &Simulator) -> Client {
    Client::new(ClientConfig::new(simulator.endpoint(), simulator.instance(), simulator.credentials()))
        .unwrap()
}

async fn start() -> (Simulator, Client) {
    let simulator = Simulator::start(SimulatorConfig::default()).await.unwrap();
    let client = client_of(&simulator);
    client.create_table(&Schema::new(TABLE, &[("deviceId", KeyType::Text)])).await.unwrap();
    (simulator, client)
}

fn key(id: &str) -> Key {
    Key::of("deviceId", id)
}

fn set(id: &str, name: &str, value: impl Into<Value>) -> Write {
    Write::update(TABLE, key(id), vec![Update::Put(name.into(), value.into())])
}

async fn class(client: &Client, write: Write) -> Option<Class> {
    client.write_row(&write).await.err().map(|error| error.class)
}

#[tokio::test]
async fn tables_are_created_listed_described_and_deleted() {
    let (_simulator, client) = start().await;
    let options = Options { max_versions: 3, time_to_live: 86_400, ..Options::default() };
    let audit = Schema {
        options,
        ..Schema::new("audit", &[("stream", KeyType::Text), ("seq", KeyType::Integer), ("x", KeyType::Blob)])
    };
    client.create_table(&audit).await.unwrap();
    assert_eq!(client.create_table(&audit).await.unwrap_err().class, Class::TableExists);
    assert_eq!(client.list_tables().await.unwrap(), ["audit", TABLE]);
    let described = client.describe_table("audit").await.unwrap();
    assert_eq!(described.status, Status::Active);
    assert_eq!(described.schema.key, audit.key);
    let expected = Options { allow_update: Some(true), ..options };
    assert_eq!(described.schema.options, expected);
    client.delete_table("audit").await.unwrap();
    for error in [client.delete_table("audit").await.err(), client.describe_table("audit").await.err()] {
        assert_eq!(error.unwrap().class, Class::NoTable);
    }
    for wrong in [
        Schema::new("1st", &[("id", KeyType::Text)]),
        Schema::new("", &[("id", KeyType::Text)]),
        Schema::new("none", &[]),
        Schema::new("twice", &[("id", KeyType::Text), ("id", KeyType::Text)]),
        Schema::new("many", &[("a", KeyType::Text); 5]),
        Schema { options: Options { max_versions: 0, ..options }, ..audit.clone() },
        Schema { options: Options { time_to_live: 10, ..options }, ..audit.clone() },
    ] {
        assert_eq!(client.create_table(&wrong).await.unwrap_err().class, Class::Invalid, "{wrong:?}");
    }
}

#[tokio::test]
async fn expectations_about_the_row_hold_for_every_write() {
    let (_simulator, client) = start().await;
    let columns = || [("a", Value::from(1))];
    let writes =
        |id: &str| [Write::put(TABLE, key(id), columns()), set(id, "a", 1), Write::delete(TABLE, key(id))];
    for (row, without, with) in [
        (RowExpectation::Ignore, None, None),
        (RowExpectation::Exists, Some(Class::Conflict), None),
        (RowExpectation::Absent, None, Some(Class::Conflict)),
    ] {
        for write in writes("SN1") {
            let write = write.when(Condition::row(row));
            client.write_row(&Write::delete(TABLE, key("SN1"))).await.unwrap();
            assert_eq!(class(&client, write.clone()).await, without, "{write:?} without a row");
            client.write_row(&Write::put(TABLE, key("SN1"), columns())).await.unwrap();
            assert_eq!(class(&client, write.clone()).await, with, "{write:?} with a row");
        }
    }
}

#[tokio::test]
async fn conditions_about_columns_compare_values_of_one_type() {
    use Comparator::*;
    let (_simulator, client) = start().await;
    client.write_row(&set("SN1", "n", 5)).await.unwrap();
    client.write_row(&set("SN1", "t", "b")).await.unwrap();
    let is_met = async |filter: Filter| {
        let condition = Condition { row: RowExpectation::Exists, columns: Some(filter) };
        class(&client, set("SN1", "seen", true).when(condition)).await.is_none()
    };
    for (comparator, at_4, at_5, at_6) in [
        (Equal, false, true, false),
        (NotEqual, true, false, true),
        (Greater, true, false, false),
        (AtLeast, true, true, false),
        (Less, false, false, true),
        (AtMost, false, true, true),
    ] {
        for (number, text, expected) in [(4, "a", at_4), (5, "b", at_5), (6, "c", at_6)] {
            assert_eq!(is_met(Filter::present_and("n", comparator, number)).await, expected);
            assert_eq!(is_met(Filter::present_and("t", comparator, text)).await, expected);
        }
        assert!(is_met(Filter::missing_or("absent", comparator, 1)).await);
        assert!(!is_met(Filter::present_and("absent", comparator, 1)).await);
        assert_eq!(is_met(Filter::present_and("n", comparator, "5")).await, comparator == NotEqual);
    }
    let (yes, no) = (Filter::present_and("n", Equal, 5), Filter::present_and("n", Equal, 6));
    let not = |filter: &Filter| Filter::Not(Box::new(filter.clone()));
    let list = |parts: [&Filter; 2]| parts.map(Clone::clone).to_vec();
    for (filter, expected) in [
        (not(&yes), false),
        (not(&no), true),
        (Filter::All(list([&yes, &yes])), true),
        (Filter::All(list([&yes, &no])), false),
        (Filter::Any(list([&no, &yes])), true),
        (Filter::Any(list([&no, &no])), false),
    ] {
        assert_eq!(is_met(filter.clone()).await, expected, "{filter:?}");
    }
}

#[tokio::test]
async fn of_many_who_take_a_lease_one_has_it() {
    let (simulator, client) = start().await;
    client.write_row(&set("SN1", "state", "enabled")).await.unwrap();
    let free = Filter::missing_or("leaseUntil", Comparator::Less, 100);
    let condition = Condition { row: RowExpectation::Exists, columns: Some(free) };
    let take = |number: i64| {
        let changes = vec![
            Update::Put("leaseOwner".into(), number.into()),
            Update::Put("leaseUntil".into(), 160.into()),
        ];
        Write::update(TABLE, key("SN1"), changes).when(condition.clone())
    };
    let takes: Vec<_> = (0..50).map(take).collect();
    let taken = futures_util::future::join_all(takes.iter().map(|take| client.write_row(take))).await;
    let winners: Vec<_> = (0..50_i64).zip(taken).filter(|(_, result)| result.is_ok()).collect();
    assert_eq!(winners.len(), 1);
    let row = simulator.row(TABLE, &key("SN1")).unwrap();
    assert_eq!(row.get("leaseOwner").and_then(Value::as_integer), Some(winners[0].0));
}

#[tokio::test]
async fn put_replaces_and_update_changes_a_row() {
    let (simulator, client) = start().await;
    let names = |id: &str| {
        let row = simulator.row(TABLE, &key(id)).unwrap();
        row.columns.into_iter().map(|column| column.name).collect::<Vec<_>>()
    };
    client.write_row(&set("SN1", "b", 1)).await.unwrap();
    client.write_row(&set("SN1", "a", 1)).await.unwrap();
    assert_eq!(names("SN1"), ["a", "b"]);
    let put = Write::put(TABLE, key("SN1"), [("c", Value::from(1))]).returning(Returns::Key);
    let returned = client.write_row(&put).await.unwrap().unwrap();
    assert_eq!((returned.key, returned.columns.len()), (key("SN1"), 0));
    assert_eq!(names("SN1"), ["c"]);
    // A row whose columns are all removed still exists.
    client.write_row(&Write::update(TABLE, key("SN1"), vec![Update::Remove("c".into())])).await.unwrap();
    assert_eq!(names("SN1"), Vec::<String>::new());
    let read = Read::new(TABLE, key("SN1"));
    assert_eq!(client.get_row(&read).await.unwrap().unwrap().key, key("SN1"));
    // A read of a column finds no row, but a read of the key finds the row.
    assert_eq!(client.get_row(&read.clone().columns(&["c"])).await.unwrap(), None);
    assert!(client.get_row(&read.columns(&["c", "deviceId"])).await.unwrap().is_some());
}

#[tokio::test]
async fn a_counter_begins_at_0_and_returns_its_value() {
    let (_simulator, client) = start().await;
    let add = |by| {
        Write::update(TABLE, key("SN1"), vec![Update::Increment("n".into(), by)])
            .returning(Returns::After(vec!["n".into()]))
    };
    for (by, expected) in [(5, 5), (-7, -2), (i64::MAX, i64::MAX - 2)] {
        let row = client.write_row(&add(by)).await.unwrap().unwrap();
        assert_eq!(row.get("n").and_then(Value::as_integer), Some(expected));
    }
    client.write_row(&set("SN1", "n", "text")).await.unwrap();
    assert_eq!(class(&client, add(1)).await, Some(Class::Invalid));
}

#[test]
fn old_versions_and_old_values_are_removed() {
    use super::table::{Kind, Returning, Selection, Table};
    let options = Options { max_versions: 2, time_to_live: 86_400, ..Options::default() };
    let mut table = Table::new(Schema { options, ..Schema::new("t", &[("id", KeyType::Integer)]) }, 0);
    let row = |now: i64| {
        let columns = vec![plain_buffer::Cell::new("a", plain_buffer::Variant::Value(now.into()))];
        let id = plain_buffer::Cell::new("id", plain_buffer::Variant::Value(1.into()));
        plain_buffer::WireRow { key: vec![id], columns, deleted: false }
    };
    let all = Selection { max_versions: 9, ..Selection::default() };
    let mut key = Vec::new();
    for now in [1000, 2000, 3000] {
        key = table.check(Kind::Update, &row(now), now).unwrap().0;
        table.write(Kind::Update, key.clone(), row(now).columns, &Returning::Nothing, now).unwrap();
    }
    let mut versions = |now: i64| {
        let row = table.read(&key, &all, now).0;
        row.map(|row| row.columns.iter().filter_map(|cell| cell.version).collect::<Vec<_>>())
    };
    assert_eq!(versions(3000), Some(vec![3000, 2000]));
    assert_eq!(versions(86_400_000 + 2000), Some(vec![3000]));
    assert_eq!(versions(86_400_000 + 3000), None);
}

#[tokio::test]
async fn ranges_are_in_the_order_of_bytes_and_come_in_pages() {
    let (_simulator, client) = start().await;
    for id in ["b", "a", "ab", "B", "é", "a\u{1}"] {
        client.write_row(&set(id, "n", 1)).await.unwrap();
    }
    let (first, last) = (End::minimum(&["deviceId"]), End::maximum(&["deviceId"]));
    let walk = async |mut range: Range| {
        let mut found = Vec::new();
        loop {
            let page = client.get_range(&range).await.unwrap();
            assert!(page.rows.len() <= 2);
            found.extend(page.rows.into_iter().map(|row| row.key.0[0].1.clone()));
            match page.next {
                Some(next) => range.start = next.into(),
                None => return found,
            }
        }
    };
    let texts = |ids: &[&str]| ids.iter().map(|&id| KeyValue::from(id)).collect::<Vec<_>>();
    let forward = |start: End, end: End| Range::new(TABLE, Direction::Forward, start, end).limit(2);
    let backward = Range::new(TABLE, Direction::Backward, last.clone(), first.clone()).limit(2);
    assert_eq!(
        walk(forward(first.clone(), last.clone())).await,
        texts(&["B", "a", "a\u{1}", "ab", "b", "é"])
    );
    assert_eq!(walk(backward).await, texts(&["é", "b", "ab", "a\u{1}", "a", "B"]));
    // The start is inclusive, the end exclusive.
    assert_eq!(walk(forward(key("a").into(), key("b").into())).await, texts(&["a", "a\u{1}", "ab"]));
    assert_eq!(walk(forward(key("a").into(), key("a").into())).await, texts(&[]));
    let down = Range::new(TABLE, Direction::Backward, key("b"), key("a")).limit(2);
    assert_eq!(walk(down).await, texts(&["b", "ab", "a\u{1}"]));
    let reversed = client.get_range(&forward(key("b").into(), key("a").into())).await.unwrap_err();
    assert_eq!(reversed.class, Class::Invalid);
    let none = client.get_range(&forward(first, last).limit(0)).await.unwrap_err();
    assert_eq!(none.class, Class::Invalid);
}

#[tokio::test]
async fn a_page_of_a_filter_may_be_empty_and_have_a_next_page() {
    let (_simulator, client) = start().await;
    for number in 0..4 {
        client.write_row(&set(&format!("SN{number}"), "n", number)).await.unwrap();
    }
    let range = Range {
        filter: Some(Filter::present_and("n", Comparator::AtLeast, 2)),
        ..Range::new(TABLE, Direction::Forward, End::minimum(&["deviceId"]), End::maximum(&["deviceId"]))
    };
    let page = client.get_range(&range.clone().limit(2)).await.unwrap();
    assert_eq!((page.rows.len(), page.next), (0, Some(key("SN2"))));
    let page = client.get_range(&range).await.unwrap();
    assert_eq!((page.rows.len(), page.next), (2, None));
}

#[tokio::test]
async fn a_page_has_4_mib_or_5000_rows() {
    let (_simulator, client) = start().await;
    let long = Value::from("x".repeat(1_500_000));
    for id in ["1", "2", "3", "4"] {
        client.write_row(&Write::put(TABLE, key(id), [("a", long.clone())])).await.unwrap();
    }
    let all = Range::new(TABLE, Direction::Forward, End::minimum(&["deviceId"]), End::maximum(&["deviceId"]));
    let before = client.consumed().read;
    let page = client.get_range(&all).await.unwrap();
    assert_eq!((page.rows.len(), page.next), (2, Some(key("3"))));
    assert_eq!(client.consumed().read - before, 2 * 1_500_000_u64.div_ceil(4096) - 1);
    for id in ["1", "2", "3", "4"] {
        client.write_row(&Write::delete(TABLE, key(id))).await.unwrap();
    }
    for group in 0..26 {
        let writes: Vec<_> = (0..200).map(|n| set(&format!("SN{:05}", group * 200 + n), "a", n)).collect();
        assert!(client.batch_write_rows(&writes).await.unwrap().iter().all(Result::is_ok));
    }
    let page = client.get_range(&all).await.unwrap();
    assert_eq!((page.rows.len(), page.next), (5000, Some(key("SN05000"))));
}

#[tokio::test]
async fn sizes_and_forms_beyond_the_limits_are_refused() {
    let (_simulator, client) = start().await;
    let text = |length| Value::from("x".repeat(length));
    let mib = 1024 * 1024;
    for (write, is_legal) in [
        (set(&"k".repeat(1024), "a", 1), true),
        (set(&"k".repeat(1025), "a", 1), false),
        (set("SN1", "a", text(2 * mib)), true),
        (set("SN1", "a", text(2 * mib + 1)), false),
        (Write::put(TABLE, key("SN1"), (0..1024).map(|n| (format!("c{n}"), Value::from(1)))), true),
        (Write::put(TABLE, key("SN1"), (0..1025).map(|n| (format!("c{n}"), Value::from(1)))), false),
        (Write::put(TABLE, key("SN1"), ["a", "b"].map(|name| (name, text(2 * mib)))), false),
        (Write::update(TABLE, key("SN1"), Vec::new()), false),
        (set("SN1", "deviceId", "SN1"), false),
        (set("SN1", "", 1), false),
        (Write::put(TABLE, Key::of("id", "SN1"), [("a", Value::from(1))]), false),
        (Write::put(TABLE, Key::of("deviceId", 1), [("a", Value::from(1))]), false),
        (Write::put(TABLE, key("SN1").and("more", 1), [("a", Value::from(1))]), false),
        (Write::put("absent", key("SN1"), [("a", Value::from(1))]), false),
    ] {
        let found = class(&client, write.clone()).await;
        let expected = if write.table == TABLE { Class::Invalid } else { Class::NoTable };
        assert_eq!(found, (!is_legal).then_some(expected), "{:?}", write.key);
    }
}

#[test]
fn a_batch_with_a_table_twice_a_row_twice_or_no_row_is_refused_as_a_whole() {
    let mut tables = Tables::default();
    let mut call = |operation, body: Vec<u8>| {
        let mut call = Call { now: 0, used: Capacity::default(), fail_row: false };
        tables.call(operation, &body, &mut call).err().map(|refusal| refusal.code)
    };
    let schema = Schema::new(TABLE, &[("deviceId", KeyType::Text)]);
    assert_eq!(call(Operation::CreateTable, schema.to_message().encode_to_vec()), None);
    let wrong = Some("OTSParameterInvalid");
    for (lists, expected) in [
        (vec![vec!["a", "b"]], None),
        (vec![vec!["a"], vec!["b"]], wrong),
        (vec![vec!["a", "a"]], wrong),
        (vec![Vec::new()], wrong),
        (Vec::new(), wrong),
    ] {
        let write = |id: &&str| set(id, "n", 1).to_batch_message();
        let writes = lists.iter().map(|ids| message::TableOfBatchWrite {
            table_name: TABLE.into(),
            rows: ids.iter().map(write).collect(),
        });
        let writes =
            message::BatchWriteRowRequest { tables: writes.collect(), transaction_id: None, is_atomic: None };
        assert_eq!(call(Operation::BatchWriteRow, writes.encode_to_vec()), expected, "{lists:?}");
        let reads = lists.iter().map(|ids| message::TableOfBatchGet {
            table_name: TABLE.into(),
            primary_key: ids.iter().map(|id| request::key_buffer(&key(id))).collect(),
            max_versions: Some(1),
            ..message::TableOfBatchGet::default()
        });
        let reads = message::BatchGetRowRequest { tables: reads.collect() };
        assert_eq!(call(Operation::BatchGetRow, reads.encode_to_vec()), expected, "{lists:?}");
    }
}

#[tokio::test]
async fn a_new_table_is_not_ready_at_once() {
    let hour = Duration::from_secs(3600);
    let config = SimulatorConfig { not_ready: hour, ..SimulatorConfig::default() };
    let simulator = Simulator::start(config).await.unwrap();
    let client = client_of(&simulator);
    client.create_table(&Schema::new(TABLE, &[("deviceId", KeyType::Text)])).await.unwrap();
    let error = client.write_row(&set("SN1", "a", 1)).await.unwrap_err();
    assert_eq!((error.class, error.code.as_str()), (Class::Busy, "OTSTableNotReady"));
    assert!(client.describe_table(TABLE).await.is_ok());
    simulator.shared.world().tables.by_name.get_mut(TABLE).unwrap().created -= 3_600_000;
    client.write_row(&set("SN1", "a", 1)).await.unwrap();
}

#[tokio::test]
async fn calls_are_throttled_when_the_capacity_is_used_up() {
    let config = SimulatorConfig { capacity: Some(1), ..SimulatorConfig::default() };
    let simulator = Simulator::start(config).await.unwrap();
    let client = client_of(&simulator);
    client.create_table(&Schema::new(TABLE, &[("deviceId", KeyType::Text)])).await.unwrap();
    let long = Write::put(TABLE, key("SN1"), [("a", Value::from("x".repeat(2_000_000)))]);
    client.write_row(&long).await.unwrap();
    // The write has used the capacity of several minutes.
    let error = client.get_row(&Read::new(TABLE, key("SN1"))).await.unwrap_err();
    assert_eq!((error.class, error.code.as_str()), (Class::Busy, "OTSNotEnoughCapacityUnit"));
}

#[tokio::test]
async fn tables_survive_a_restart_in_the_state_file() {
    let folder = tempfile::tempdir().unwrap();
    let state = Some(folder.path().join("tablestore.json"));
    let config = SimulatorConfig { state, ..SimulatorConfig::default() };
    let simulator = Simulator::start(config.clone()).await.unwrap();
    let client = client_of(&simulator);
    client.create_table(&Schema::new(TABLE, &[("deviceId", KeyType::Text)])).await.unwrap();
    let columns =
        [("a", Value::from(1)), ("b", "\u{8bbe}".into()), ("c", vec![0, 255].into()), ("d", 1.5.into())];
    client.write_row(&Write::put(TABLE, key("SN1"), columns)).await.unwrap();
    let before = simulator.row(TABLE, &key("SN1"));
    simulator.shutdown().await.unwrap();
    let again = Simulator::start(config.clone()).await.unwrap();
    assert!(before.is_some());
    assert_eq!(again.row(TABLE, &key("SN1")), before);
    drop(again);
    std::fs::write(config.state.as_ref().unwrap(), "{}").unwrap();
    assert!(matches!(Simulator::start(config).await, Err(SimulatorError::StateFile { .. })));
}

#[tokio::test]
async fn rates_that_are_no_probabilities_are_refused() {
    for faults in
        [vec![(Fault::Busy, 1.1)], vec![(Fault::Busy, 0.6), (Fault::Lost, 0.6)], vec![(Fault::Busy, -0.1)]]
    {
        let config = SimulatorConfig { faults, ..SimulatorConfig::default() };
        assert!(matches!(Simulator::start(config).await, Err(SimulatorError::Faults)));
    }
}

#[tokio::test]
async fn every_answer_is_signed_and_stats_are_json() {
    let (simulator, client) = start().await;
    client.list_tables().await.unwrap();
    let text = reqwest::get(format!("{}/stats", simulator.endpoint())).await.unwrap().text().await.unwrap();
    let stats: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(stats["calls"], serde_json::json!({"CreateTable": 1, "ListTable": 1}));
    assert_eq!((stats["tables"].as_u64(), stats["rows"].as_u64()), (Some(1), Some(0)));
}
