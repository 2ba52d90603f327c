//! Tests of `certdist` over plain CoAP: first Echo (RFC 9175), and then the plugtests of `/test`,
//! applied to `/cert`.

use coap_lite::{CoapOption, MessageType, RequestType as Method, ResponseType as Code};

use super::client::{Client, is, number};
use crate::support::serve_plain_coap;

const ECHO: CoapOption = CoapOption::Unknown(252);

#[test]
fn an_address_must_show_that_it_is_there_and_is_sent_little_before() {
    let (_site, _server, address) = serve_plain_coap();
    let mut client = Client::of(address);
    let mut request = client.con(Method::Get, "cert");
    request.add_option(CoapOption::UriQuery, b"sn=PLUG-1".to_vec());
    let challenge = client.exchange(&request);
    is(&challenge, Code::Unauthorized);
    assert!(challenge.payload.is_empty());
    let asked = request.to_bytes().expect("a message").len();
    assert!(challenge.to_bytes().expect("a message").len() <= asked);
    let value = challenge.get_option(ECHO).expect("Echo").clone();
    // RFC 9175 §2.3: the client repeats the request in a new message with the Echo value.
    let mut again = client.con(Method::Get, "cert");
    again.add_option(CoapOption::UriQuery, b"sn=PLUG-1".to_vec());
    again.set_option(ECHO, value.clone());
    let response = client.exchange(&again);
    is(&response, Code::Content);
    assert!(response.payload.ends_with(b"secretofplug10000000000000000000"));
    // Later requests from this address need no Echo option.
    let request = client.con(Method::Get, ".well-known/core");
    is(&client.exchange(&request), Code::Content);
    // A client at another address cannot use this value, because the value belongs to the first
    // address.
    let mut other = Client::of(address);
    let mut stolen = other.con(Method::Get, "cert");
    stolen.set_option(ECHO, value);
    is(&other.exchange(&stolen), Code::Unauthorized);
    // A ping needs no Echo option.
    other.send_bytes(&[0x40, 0, 1, 2]);
    assert_eq!(other.receive_within(std::time::Duration::from_secs(5)), Some(vec![0x70, 0, 1, 2]));
}

#[test]
fn what_the_plugtests_ask_of_a_resource_holds_for_cert() {
    let (_site, _server, address) = serve_plain_coap();
    let mut client = Client::of(address);
    let request = client.con(Method::Get, "cert");
    let value = client.exchange(&request).get_option(ECHO).expect("Echo").clone();
    let ask = |client: &mut Client, kind, method, token: &[u8], accept: Option<u8>| {
        let mut request = client.request(kind, method, "cert");
        request.set_token(token.to_vec());
        request.set_option(ECHO, value.clone());
        request.add_option(CoapOption::UriQuery, b"sn=PLUG-1".to_vec());
        if let Some(format) = accept {
            request.add_option(CoapOption::Accept, vec![format]);
        }
        match kind {
            MessageType::Confirmable => client.exchange(&request),
            _ => client.exchange_non(&request),
        }
    };
    for kind in [MessageType::Confirmable, MessageType::NonConfirmable] {
        // TD_COAP_CORE_01 to 08.
        is(&ask(&mut client, kind, Method::Get, b"t", None), Code::Content);
        is(&ask(&mut client, kind, Method::Post, b"t", None), Code::Content);
        is(&ask(&mut client, kind, Method::Put, b"t", None), Code::MethodNotAllowed);
        is(&ask(&mut client, kind, Method::Delete, b"t", None), Code::MethodNotAllowed);
        // TD_COAP_CORE_10 and 12.
        for token in [&b""[..], b"1", b"12345678"] {
            is(&ask(&mut client, kind, Method::Get, token, None), Code::Content);
        }
        // TD_COAP_CORE_20.
        for (accept, format) in [(None, 60), (Some(60), 60), (Some(50), 50)] {
            let response = ask(&mut client, kind, Method::Get, b"t", accept);
            assert_eq!(number(&response, CoapOption::ContentFormat), Some(format));
        }
        is(&ask(&mut client, kind, Method::Get, b"t", Some(41)), Code::NotAcceptable);
    }
}
