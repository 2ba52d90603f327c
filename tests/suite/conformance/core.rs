//! TD_COAP_CORE: RFC 7252.

use coap_lite::{CoapOption, MessageType, RequestType as Method, ResponseType as Code};

use super::client::{Client, is, number, texts};
use crate::support::plugtest::Plugtest;

/// Time within which no message may arrive.
const SILENCE: std::time::Duration = std::time::Duration::from_millis(300);

fn start() -> (Plugtest, Client) {
    let server = Plugtest::start();
    let client = Client::of(server.address);
    (server, client)
}

/// GET, confirmable
#[test]
fn td_coap_core_01() {
    let (_server, mut client) = start();
    let request = client.con(Method::Get, "test");
    let response = client.exchange(&request);
    is(&response, Code::Content);
    assert_eq!(number(&response, CoapOption::ContentFormat), Some(0));
    assert!(!response.payload.is_empty());
}

/// DELETE, confirmable
#[test]
fn td_coap_core_02() {
    let (_server, mut client) = start();
    let request = client.con(Method::Delete, "test");
    is(&client.exchange(&request), Code::Deleted);
}

/// PUT, confirmable
#[test]
fn td_coap_core_03() {
    let (_server, mut client) = start();
    let mut request = client.con(Method::Put, "test");
    request.payload = b"new".to_vec();
    is(&client.exchange(&request), Code::Changed);
}

/// POST, confirmable
#[test]
fn td_coap_core_04() {
    let (_server, mut client) = start();
    let mut request = client.con(Method::Post, "test");
    request.payload = b"new".to_vec();
    is(&client.exchange(&request), Code::Created);
}

/// GET, non-confirmable
#[test]
fn td_coap_core_05() {
    let (_server, mut client) = start();
    let request = client.request(MessageType::NonConfirmable, Method::Get, "test");
    let response = client.exchange_non(&request);
    is(&response, Code::Content);
    assert_eq!(number(&response, CoapOption::ContentFormat), Some(0));
}

/// DELETE, non-confirmable
#[test]
fn td_coap_core_06() {
    let (_server, mut client) = start();
    let request = client.request(MessageType::NonConfirmable, Method::Delete, "test");
    is(&client.exchange_non(&request), Code::Deleted);
}

/// PUT, non-confirmable
#[test]
fn td_coap_core_07() {
    let (_server, mut client) = start();
    let mut request = client.request(MessageType::NonConfirmable, Method::Put, "test");
    request.payload = b"new".to_vec();
    is(&client.exchange_non(&request), Code::Changed);
}

/// POST, non-confirmable
#[test]
fn td_coap_core_08() {
    let (_server, mut client) = start();
    let mut request = client.request(MessageType::NonConfirmable, Method::Post, "test");
    request.payload = b"new".to_vec();
    is(&client.exchange_non(&request), Code::Created);
}

/// Sends a request for `/separate` and receives the empty acknowledgement.
fn ask_separate(client: &mut Client, token: &[u8]) {
    let mut request = client.con(Method::Get, "separate");
    request.set_token(token.to_vec());
    client.send(&request);
    let acknowledgement =
        client.receive_within(std::time::Duration::from_secs(5)).expect("an acknowledgement");
    let [high, low] = request.header.message_id.to_be_bytes();
    assert_eq!(acknowledgement, [0x60, 0, high, low]);
}

/// GET with a separate response, confirmable
#[test]
fn td_coap_core_09() {
    let (_server, mut client) = start();
    ask_separate(&mut client, b"tk");
    let response = client.receive();
    is(&response, Code::Content);
    assert_eq!(response.get_token(), b"tk");
    assert_eq!(number(&response, CoapOption::ContentFormat), Some(0));
    assert!(!response.payload.is_empty());
    client.acknowledge(&response);
}

/// A token of 1 to 8 bytes
#[test]
fn td_coap_core_10() {
    let (_server, mut client) = start();
    for length in 1..=8 {
        let mut request = client.con(Method::Get, "test");
        request.set_token(vec![length; length.into()]);
        is(&client.exchange(&request), Code::Content);
    }
}

/// A token with a separate response
#[test]
fn td_coap_core_11() {
    let (_server, mut client) = start();
    ask_separate(&mut client, &[1, 2, 3, 4, 5, 6, 7, 8]);
    let response = client.receive();
    is(&response, Code::Content);
    assert_eq!(response.get_token(), [1, 2, 3, 4, 5, 6, 7, 8]);
    client.acknowledge(&response);
}

/// An empty token
#[test]
fn td_coap_core_12() {
    let (_server, mut client) = start();
    let mut request = client.con(Method::Get, "test");
    request.set_token(Vec::new());
    is(&client.exchange(&request), Code::Content);
}

/// Several Uri-Path options
#[test]
fn td_coap_core_13() {
    let (_server, mut client) = start();
    let request = client.con(Method::Get, "seg1/seg2/seg3");
    is(&client.exchange(&request), Code::Content);
}

/// Several Uri-Query options
#[test]
fn td_coap_core_14() {
    let (_server, mut client) = start();
    let mut request = client.con(Method::Get, "query");
    for query in ["first=1", "second=2", "third=3"] {
        request.add_option(CoapOption::UriQuery, query.into());
    }
    let response = client.exchange(&request);
    is(&response, Code::Content);
    assert_eq!(response.payload, b"first=1&second=2&third=3");
}

/// A lossy network, piggybacked responses
#[test]
fn td_coap_core_15() {
    let (_server, mut client) = start();
    let request = client.con(Method::Get, "test");
    // The first response counts as lost, so the request is sent again.
    let lost = client.exchange(&request);
    assert_eq!(client.exchange(&request), lost);
}

/// A lossy network, separate responses
#[test]
fn td_coap_core_16() {
    let (_server, mut client) = start();
    let request = client.con(Method::Get, "separate");
    client.send(&request);
    let first = client.receive();
    // The acknowledgement counts as lost, so the request is sent again.
    client.send(&request);
    assert_eq!(client.receive(), first);
    let response = client.receive();
    is(&response, Code::Content);
    // The response counts as lost, so the server sends it again until it is acknowledged.
    assert_eq!(client.receive(), response);
    client.acknowledge(&response);
    client.acknowledge(&response);
    assert_eq!(client.receive_within(SILENCE), None);
}

/// GET with a separate response, non-confirmable
#[test]
fn td_coap_core_17() {
    let (_server, mut client) = start();
    let request = client.request(MessageType::NonConfirmable, Method::Get, "separate");
    // The first message is the response: a non-confirmable request gets no acknowledgement.
    let response = client.exchange_non(&request);
    is(&response, Code::Content);
    assert_eq!(number(&response, CoapOption::ContentFormat), Some(0));
}

/// POST, answered with several Location-Path options
#[test]
fn td_coap_core_18() {
    let (_server, mut client) = start();
    let mut request = client.con(Method::Post, "test");
    request.payload = b"new".to_vec();
    let response = client.exchange(&request);
    is(&response, Code::Created);
    assert_eq!(texts(&response, CoapOption::LocationPath), ["location1", "location2", "location3"]);
}

/// POST, answered with several Location-Query options
#[test]
fn td_coap_core_19() {
    let (_server, mut client) = start();
    let request = client.con(Method::Post, "location-query");
    let response = client.exchange(&request);
    is(&response, Code::Created);
    assert_eq!(texts(&response, CoapOption::LocationQuery), ["first=1", "second=2"]);
}

/// Accept
#[test]
fn td_coap_core_20() {
    let (_server, mut client) = start();
    for (format, value, content) in [(0, Vec::new(), &b"text"[..]), (41, vec![41], b"<text/>")] {
        let mut request = client.con(Method::Get, "multi-format");
        request.add_option(CoapOption::Accept, value);
        let response = client.exchange(&request);
        is(&response, Code::Content);
        assert_eq!(number(&response, CoapOption::ContentFormat), Some(format));
        assert_eq!(response.payload, content);
    }
}

/// Returns the ETag and the content of `/validate`.
fn get_etag(client: &mut Client) -> (Vec<u8>, Vec<u8>) {
    let request = client.con(Method::Get, "validate");
    let response = client.exchange(&request);
    is(&response, Code::Content);
    let etag = response.get_option(CoapOption::ETag).and_then(|values| values.front()).expect("an ETag");
    (etag.clone(), response.payload)
}

fn put_validate(client: &mut Client, content: &[u8], if_match: Option<&[u8]>) -> Code {
    let mut request = client.con(Method::Put, "validate");
    request.payload = content.to_vec();
    if let Some(etag) = if_match {
        request.add_option(CoapOption::IfMatch, etag.to_vec());
    }
    match client.exchange(&request).header.code {
        coap_lite::MessageClass::Response(code) => code,
        other => panic!("{other:?}"),
    }
}

/// ETag
#[test]
fn td_coap_core_21() {
    let (_server, mut client) = start();
    let (first, content) = get_etag(&mut client);
    let mut request = client.con(Method::Get, "validate");
    request.add_option(CoapOption::ETag, first.clone());
    let response = client.exchange(&request);
    is(&response, Code::Valid);
    assert_eq!(response.get_option(CoapOption::ETag).and_then(|values| values.front()), Some(&first));
    assert!(response.payload.is_empty());
    put_validate(&mut client, b"second", None);
    let mut request = client.con(Method::Get, "validate");
    request.add_option(CoapOption::ETag, first.clone());
    let response = client.exchange(&request);
    is(&response, Code::Content);
    assert_ne!(response.get_option(CoapOption::ETag).and_then(|values| values.front()), Some(&first));
    assert_ne!(response.payload, content);
}

/// If-Match
#[test]
fn td_coap_core_22() {
    let (_server, mut client) = start();
    let (first, _) = get_etag(&mut client);
    assert_eq!(put_validate(&mut client, b"second", Some(&first)), Code::Changed);
    let (second, content) = get_etag(&mut client);
    assert_ne!(first, second);
    assert_eq!(content, b"second");
    assert_eq!(put_validate(&mut client, b"third", None), Code::Changed);
    assert_eq!(put_validate(&mut client, b"fourth", Some(&second)), Code::PreconditionFailed);
    assert_eq!(get_etag(&mut client).1, b"third");
}

/// If-None-Match
#[test]
fn td_coap_core_23() {
    let (_server, mut client) = start();
    for expected in [Code::Created, Code::PreconditionFailed] {
        let mut request = client.con(Method::Put, "create1");
        request.add_option(CoapOption::IfNoneMatch, Vec::new());
        request.payload = b"new".to_vec();
        is(&client.exchange(&request), expected);
    }
}

/// Ping
#[test]
fn td_coap_core_31() {
    let (_server, client) = start();
    client.send_bytes(&[0x40, 0, 0x12, 0x34]);
    let answer = client.receive_within(std::time::Duration::from_secs(5));
    assert_eq!(answer, Some(vec![0x70, 0, 0x12, 0x34]));
}
