//! TD_COAP_BLOCK: RFC 7959.

use coap_lite::{CoapOption, Packet, RequestType as Method, ResponseType as Code};

use super::client::{Client, block, is, set_block, texts};
use crate::support::plugtest::{Plugtest, large};

fn start() -> (Plugtest, Client) {
    let server = Plugtest::start();
    let client = Client::of(server.address);
    (server, client)
}

/// Fetches the blocks that follow `body` and returns the whole body. Checks that each block meets
/// the requirements of BLOCK_01, 02, 05 and 06.
fn fetch_rest(
    client: &mut Client,
    (method, path): (Method, &str),
    code: Code,
    mut body: Vec<u8>,
    size_exponent: u8,
) -> Vec<u8> {
    let size = 16 << size_exponent;
    assert_eq!(body.len() % size, 0);
    loop {
        let number = (body.len() / size) as u32;
        let mut request = client.con(method, path);
        set_block(&mut request, CoapOption::Block2, (number, false, size_exponent));
        let response = client.exchange(&request);
        is(&response, code);
        let (answered, more, exponent) = block(&response, CoapOption::Block2).expect("Block2");
        assert_eq!((answered, exponent), (number, size_exponent));
        body.extend(&response.payload);
        if !more {
            assert!(response.payload.len() <= size);
            return body;
        }
        assert_eq!(response.payload.len(), size);
    }
}

fn early_negotiation(size_exponent: u8) {
    let (_server, mut client) = start();
    let mut request = client.con(Method::Get, "large");
    set_block(&mut request, CoapOption::Block2, (0, false, size_exponent));
    let first = client.exchange(&request);
    is(&first, Code::Content);
    assert_eq!(block(&first, CoapOption::Block2), Some((0, true, size_exponent)));
    assert_eq!(first.payload.len(), 16 << size_exponent);
    let body = fetch_rest(&mut client, (Method::Get, "large"), Code::Content, first.payload, size_exponent);
    assert_eq!(body, large());
}

/// GET in blocks, early negotiation
#[test]
fn td_coap_block_01() {
    for size_exponent in 1..=6 {
        early_negotiation(size_exponent);
    }
}

/// GET in blocks, late negotiation
#[test]
fn td_coap_block_02() {
    for size_exponent in 0..=6 {
        let (_server, mut client) = start();
        let request = client.con(Method::Get, "large");
        let first = client.exchange(&request);
        is(&first, Code::Content);
        let (number, more, exponent) = block(&first, CoapOption::Block2).expect("Block2");
        assert_eq!((number, more), (0, true));
        assert_eq!(first.payload.len(), 16 << exponent);
        let size_exponent = size_exponent.min(exponent);
        let body =
            fetch_rest(&mut client, (Method::Get, "large"), Code::Content, first.payload, size_exponent);
        assert_eq!(body, large());
    }
}

/// Sends a body in blocks; returns the response to the last block.
fn upload(client: &mut Client, method: Method, path: &str, body: &[u8], size_exponent: u8) -> Packet {
    let mut blocks = (0..).zip(body.chunks(16 << size_exponent)).peekable();
    while let Some((number, payload)) = blocks.next() {
        let more = blocks.peek().is_some();
        let mut request = client.con(method, path);
        set_block(&mut request, CoapOption::Block1, (number, more, size_exponent));
        request.payload = payload.to_vec();
        let response = client.exchange(&request);
        assert_eq!(block(&response, CoapOption::Block1), Some((number, more, size_exponent)));
        if !more {
            return response;
        }
        is(&response, Code::Continue);
        assert!(response.payload.is_empty());
    }
    panic!("an empty body");
}

/// PUT in blocks
#[test]
fn td_coap_block_03() {
    let (_server, mut client) = start();
    let mut body = large();
    body.rotate_left(100);
    is(&upload(&mut client, Method::Put, "large-update", &body, 2), Code::Changed);
    let found = fetch_rest(&mut client, (Method::Get, "large-update"), Code::Content, Vec::new(), 6);
    assert_eq!(found, body);
}

/// POST in blocks, creating a resource
#[test]
fn td_coap_block_04() {
    let (_server, mut client) = start();
    let response = upload(&mut client, Method::Post, "large-create", &large(), 5);
    is(&response, Code::Created);
    let location = texts(&response, CoapOption::LocationPath);
    assert_eq!(location[0], "large-create");
    let path = location.join("/");
    assert_eq!(fetch_rest(&mut client, (Method::Get, &path), Code::Content, Vec::new(), 4), large());
}

/// POST in blocks, both ways
#[test]
fn td_coap_block_05() {
    let (_server, mut client) = start();
    let response = upload(&mut client, Method::Post, "large-post", &large(), 6);
    is(&response, Code::Changed);
    let (number, more, exponent) = block(&response, CoapOption::Block2).expect("Block2");
    assert_eq!((number, more), (0, true));
    // The requests for the remaining blocks have neither a Block1 option nor a payload.
    let post = (Method::Post, "large-post");
    let mut body = fetch_rest(&mut client, post, Code::Changed, response.payload, exponent.min(3));
    body.reverse();
    assert_eq!(body, large());
}

/// GET in blocks of 16 bytes, early negotiation
#[test]
fn td_coap_block_06() {
    early_negotiation(0);
}
