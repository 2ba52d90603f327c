//! Tests of the client against the stand-in: which calls it repeats, and which false answers it
//! detects.

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};

use super::*;
use crate::{
    device::Secret,
    tablestore::{
        Condition, Key, KeyType, Read, RowExpectation, Schema, Update, Value, Write,
        simulator::{Fault, Simulator, SimulatorConfig},
    },
};

const TABLE: &str = "device_table";

fn client_of(simulator: &Simulator) -> Client {
    Client::new(ClientConfig::new(simulator.endpoint(), simulator.instance(), simulator.credentials()))
        .unwrap()
}

async fn with(config: SimulatorConfig) -> (Simulator, Client) {
    let simulator = Simulator::start(config).await.unwrap();
    let client = client_of(&simulator);
    client.create_table(&Schema::new(TABLE, &[("deviceId", KeyType::Text)])).await.unwrap();
    (simulator, client)
}

async fn start() -> (Simulator, Client) {
    with(SimulatorConfig::default()).await
}

fn key(id: &str) -> Key {
    Key::of("deviceId", id)
}

fn new(id: &str) -> Write {
    let columns = [("state", Value::from("enabled"))];
    Write::put(TABLE, key(id), columns).when(Condition::row(RowExpectation::Absent))
}

#[tokio::test]
async fn a_write_that_was_not_carried_out_is_repeated_and_done_once() {
    let (simulator, client) = start().await;
    for fault in [Fault::Busy, Fault::Throttled, Fault::Conflict, Fault::Unavailable] {
        simulator.script(Operation::PutRow, fault);
        client.write_row(&new(fault.name())).await.unwrap();
        assert_eq!(simulator.stats().faults[fault.name()], 1);
    }
    assert_eq!((simulator.stats().rows, simulator.stats().calls["PutRow"]), (4, 8));
}

#[tokio::test]
async fn a_write_that_may_have_been_carried_out_is_unknown_and_not_repeated() {
    let (simulator, client) = start().await;
    for (fault, is_done) in [
        (Fault::Timeout, false),
        (Fault::DoneTimeout, true),
        (Fault::Drop, false),
        (Fault::Lost, true),
        (Fault::WrongSignature, true),
    ] {
        let calls = simulator.stats().calls.get("PutRow").copied().unwrap_or_default();
        simulator.script(Operation::PutRow, fault);
        let error = client.write_row(&new(fault.name())).await.unwrap_err();
        assert_eq!(error.class, Class::Unknown, "{error}");
        assert_eq!(simulator.stats().calls["PutRow"], calls + 1, "{fault:?}");
        // The caller reads the row to find out whether the write was carried out.
        let found = client.get_row(&Read::new(TABLE, key(fault.name()))).await.unwrap();
        assert_eq!(found.is_some(), is_done, "{fault:?}");
    }
}

#[tokio::test]
async fn a_read_is_repeated_after_any_fault() {
    let (simulator, client) = start().await;
    client.write_row(&new("SN1")).await.unwrap();
    for fault in Fault::ALL {
        simulator.script(Operation::GetRow, fault);
        let row = client.get_row(&Read::new(TABLE, key("SN1"))).await.unwrap().unwrap();
        assert_eq!(row.get("state").and_then(Value::as_text), Some("enabled"), "{fault:?}");
    }
}

#[tokio::test]
async fn attempts_end_and_nothing_is_unknown_of_a_read() {
    let (simulator, client) = start().await;
    simulator.set_outage(Some(Fault::Timeout));
    let error = client.get_row(&Read::new(TABLE, key("SN1"))).await.unwrap_err();
    assert_eq!((error.class, error.code.as_str()), (Class::Busy, "OTSTimeout"));
    assert_eq!(simulator.stats().calls["GetRow"], u64::from(MAX_ATTEMPTS));
    simulator.set_outage(Some(Fault::Busy));
    let error = client.write_row(&new("SN1")).await.unwrap_err();
    assert_eq!(error.class, Class::Busy);
    assert_eq!(simulator.stats().calls["PutRow"], u64::from(MAX_ATTEMPTS));
}

#[tokio::test]
async fn a_condition_that_is_not_met_is_a_conflict_and_not_repeated() {
    let (simulator, client) = start().await;
    client.write_row(&new("SN1")).await.unwrap();
    let error = client.write_row(&new("SN1")).await.unwrap_err();
    assert_eq!(error.class, Class::Conflict, "{error}");
    assert!(error.request_id.is_some(), "{error}");
    assert_eq!(simulator.stats().calls["PutRow"], 2);
}

#[tokio::test]
async fn a_batch_repeats_only_the_rows_that_failed() {
    let (simulator, client) = start().await;
    client.write_row(&new("SN2")).await.unwrap();
    simulator.script(Operation::BatchWriteRow, Fault::Row);
    let results = client.batch_write_rows(&[new("SN1"), new("SN2"), new("SN3")]).await.unwrap();
    assert!(results[0].is_ok() && results[2].is_ok(), "{results:?}");
    assert_eq!(results[1].as_ref().unwrap_err().class, Class::Conflict);
    assert_eq!(simulator.stats().calls["BatchWriteRow"], 2);

    simulator.script(Operation::BatchGetRow, Fault::Row);
    let reads: Vec<_> = ["SN1", "SN4", "SN3"].map(|id| Read::new(TABLE, key(id))).into();
    let results = client.batch_get_rows(&reads).await.unwrap();
    let found: Vec<_> = results.into_iter().map(|result| result.unwrap().map(|row| row.key)).collect();
    assert_eq!(found, [Some(key("SN1")), None, Some(key("SN3"))]);
    assert_eq!(simulator.stats().calls["BatchGetRow"], 2);
}

#[tokio::test]
async fn rows_that_a_batch_has_written_stay_written_when_its_repetition_fails() {
    let (simulator, client) = start().await;
    simulator.script(Operation::BatchWriteRow, Fault::Row);
    simulator.script(Operation::BatchWriteRow, Fault::Lost);
    let results = client.batch_write_rows(&[new("SN1"), new("SN2")]).await.unwrap();
    assert_eq!(results[0].as_ref().unwrap_err().class, Class::Unknown);
    assert_eq!(results[1], Ok(None));
}

#[tokio::test]
async fn results_of_a_batch_over_several_tables_are_in_the_order_of_the_rows() {
    let (_simulator, client) = start().await;
    client.create_table(&Schema::new("other", &[("id", KeyType::Integer)])).await.unwrap();
    let other = |id: i64| Write::put("other", Key::of("id", id), [("n", Value::from(id))]);
    let writes = [new("SN1"), other(1), new("SN2"), other(2)];
    assert!(client.batch_write_rows(&writes).await.unwrap().iter().all(Result::is_ok));
    let of_other = |id: i64| Read::new("other", Key::of("id", id));
    let reads = [of_other(2), Read::new(TABLE, key("SN1")), of_other(3), of_other(1)];
    let results = client.batch_get_rows(&reads).await.unwrap();
    let keys: Vec<_> = results.into_iter().map(|result| result.unwrap().map(|row| row.key)).collect();
    assert_eq!(keys, [Some(Key::of("id", 2)), Some(key("SN1")), None, Some(Key::of("id", 1))]);
}

#[tokio::test]
async fn a_batch_that_the_service_would_refuse_is_not_sent() {
    let (simulator, client) = start().await;
    let twice = client.batch_write_rows(&[new("SN1"), new("SN1")]).await.unwrap_err();
    let many: Vec<_> = (0..201).map(|number| new(&format!("SN{number}"))).collect();
    let many = client.batch_write_rows(&many).await.unwrap_err();
    let long = Write::put(TABLE, key("SN1"), [("a", Value::from("x".repeat(MAX_REQUEST)))]);
    let long = client.write_row(&long).await.unwrap_err();
    for error in [twice, many, long] {
        assert_eq!((error.class, error.code.as_str()), (Class::Invalid, "Request"), "{error}");
    }
    assert!(client.batch_get_rows(&[]).await.unwrap().is_empty());
    assert_eq!(simulator.stats().calls.keys().copied().collect::<Vec<_>>(), ["CreateTable"]);
}

#[tokio::test]
async fn a_wrong_secret_is_refused_once() {
    let (simulator, _) = start().await;
    let wrong = Credentials { access_key_secret: Secret::new("hush".into()), ..simulator.credentials() };
    let client = Client::new(ClientConfig::new(simulator.endpoint(), simulator.instance(), wrong)).unwrap();
    let error = client.list_tables().await.unwrap_err();
    assert_eq!((error.class, error.code.as_str()), (Class::Refused, "OTSAuthFailed"));
    assert!(!format!("{error:?}").contains("hush"), "{error:?}");
    assert_eq!(simulator.stats().refused["OTSAuthFailed"], 1);
}

#[tokio::test]
async fn temporary_credentials_are_sent_with_their_token() {
    let security_token = Some(Secret::new("token+/=".into()));
    let (simulator, client) = with(SimulatorConfig { security_token, ..SimulatorConfig::default() }).await;
    client.write_row(&new("SN1")).await.unwrap();
    assert!(simulator.stats().refused.is_empty());
}

#[tokio::test]
async fn a_wrong_clock_is_corrected_by_the_services_clock() {
    let (simulator, client) = start().await;
    client.clock_offset.store(-3_600_000, Ordering::Relaxed);
    client.write_row(&new("SN1")).await.unwrap();
    assert!(client.clock_offset.load(Ordering::Relaxed).abs() < 600_000);
    assert_eq!(simulator.stats().refused["OTSAuthFailed"], 1);
}

#[tokio::test]
async fn capacity_units_of_all_answers_are_counted() {
    let (simulator, client) = start().await;
    client.write_row(&new("SN1")).await.unwrap();
    client.get_row(&Read::new(TABLE, key("SN1"))).await.unwrap();
    client.batch_write_rows(&[new("SN2")]).await.unwrap();
    client.write_row(&Write::update(TABLE, key("SN1"), vec![Update::Remove("state".into())])).await.unwrap();
    assert_eq!(client.consumed(), Capacity { read: 3, write: 3 });
    let stats = simulator.stats();
    assert_eq!((stats.read_units, stats.write_units), (3, 3));
}

/// Serves one fixed answer to every connection.
async fn fixed(answer: Vec<u8>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let answer = answer.clone();
            tokio::spawn(async move {
                let mut buffer = [0; 4096];
                let _ = stream.read(&mut buffer).await;
                let _ = stream.write_all(&answer).await;
            });
        }
    });
    format!("http://{address}")
}

#[tokio::test]
async fn an_answer_that_is_too_long_is_not_read() {
    let head = |length: usize| format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n").into_bytes();
    let announced = fixed(head(1 << 40)).await;
    let mut endless = b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n".to_vec();
    endless.resize(endless.len() + 2 * 1024 * 1024, b'x');
    for endpoint in [announced, fixed(endless).await] {
        let credentials = Credentials {
            access_key_id: "id".into(),
            access_key_secret: Secret::new("secret".into()),
            security_token: None,
        };
        let client = Client::new(ClientConfig::new(endpoint, "certdist", credentials)).unwrap();
        let error = client.write_row(&new("SN1")).await.unwrap_err();
        assert_eq!((error.class, error.code.as_str()), (Class::Unknown, super::super::NOT_AN_ANSWER));
        assert!(error.message.contains("is longer than"), "{error}");
        // A repeated read would get the same answer.
        let error = client.list_tables().await.unwrap_err();
        assert_eq!(error.class, Class::Invalid, "{error}");
    }
}

#[tokio::test]
async fn a_service_that_cannot_be_reached_is_busy_and_nothing_was_sent() {
    let (simulator, client) = start().await;
    simulator.shutdown().await.unwrap();
    let error = client.write_row(&new("SN1")).await.unwrap_err();
    assert_eq!((error.class, error.code.as_str()), (Class::Busy, NOT_SENT), "{error}");
}

#[test]
fn settings_that_cannot_work_are_refused_in_plain_words() {
    let credentials = |secret: &str| Credentials {
        access_key_id: "id".into(),
        access_key_secret: Secret::new(secret.into()),
        security_token: None,
    };
    let refused = |endpoint: &str, instance: &str, secret: &str| {
        Client::new(ClientConfig::new(endpoint, instance, credentials(secret))).unwrap_err().to_string()
    };
    let error = refused("ftp://x", "certdist", "s");
    assert!(error.contains("neither http nor https") && error.contains("ots.aliyuncs.com"), "{error}");
    assert!(!refused("https://id:hush@x", "certdist", "s").contains("hush"));
    assert!(refused("http://127.0.0.1:1", "no spaces", "s").contains("is not the name"));
    assert!(refused("http://127.0.0.1:1", "certdist", "").contains("no access key for Tablestore"));
    let config = ClientConfig::new("http://127.0.0.1:1/gateway", "certdist", credentials("hush"));
    let client = Client::new(config.clone()).unwrap();
    assert_eq!(client.url(Operation::GetRow).as_str(), "http://127.0.0.1:1/gateway/GetRow");
    assert!(!format!("{config:?} {client:?}").contains("hush"));
}
