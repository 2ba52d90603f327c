//! TD_COAP_LINK: RFC 6690.

use coap_lite::{CoapOption, RequestType as Method, ResponseType as Code};

use super::client::{Client, is, number};
use crate::support::plugtest::{LINKS, Plugtest};

/// Returns the targets that a resource in link format lists for a query.
fn targets(path: &str, query: Option<&str>) -> Vec<String> {
    let server = Plugtest::start();
    let mut client = Client::of(server.address);
    let mut request = client.con(Method::Get, path);
    if let Some(query) = query {
        request.add_option(CoapOption::UriQuery, query.into());
    }
    let response = client.exchange(&request);
    is(&response, Code::Content);
    assert_eq!(number(&response, CoapOption::ContentFormat), Some(40));
    let text = String::from_utf8(response.payload).expect("text");
    let links = coap_lite::link_format::LinkFormatParser::new(&text);
    links.map(|link| link.expect("a link").0.to_owned()).collect()
}

fn core(query: &str) -> Vec<String> {
    targets(".well-known/core", Some(query))
}

/// `/.well-known/core`
#[test]
fn td_coap_link_01() {
    assert_eq!(targets(".well-known/core", None), LINKS.map(|link| link.target));
}

/// Filtered by a resource type
#[test]
fn td_coap_link_02() {
    assert_eq!(core("rt=Type1"), ["/test", "/query"]);
}

/// Filtered by an empty prefix
#[test]
fn td_coap_link_03() {
    assert_eq!(core("rt=*"), ["/test", "/validate", "/query", "/large"]);
}

/// Filtered by one of several resource types
#[test]
fn td_coap_link_04() {
    assert_eq!(core("rt=Type2"), ["/test", "/validate"]);
}

/// Filtered by a prefix of the interface
#[test]
fn td_coap_link_05() {
    assert_eq!(core("if=If*"), ["/test", "/validate"]);
}

/// Filtered by having a size
#[test]
fn td_coap_link_06() {
    assert_eq!(core("sz=*"), ["/large"]);
}

/// Filtered by a target
#[test]
fn td_coap_link_07() {
    assert_eq!(core("href=/link1"), ["/link1"]);
}

/// Filtered by a prefix of the target
#[test]
fn td_coap_link_08() {
    assert_eq!(core("href=/link*"), ["/link1", "/link2", "/link3"]);
}

/// Links that lead to further links
#[test]
fn td_coap_link_09() {
    assert_eq!(core("ct=40"), ["/path"]);
    assert_eq!(targets("path", None), ["/path/sub1", "/path/sub2"]);
    let server = Plugtest::start();
    let mut client = Client::of(server.address);
    let request = client.con(Method::Get, "path/sub1");
    let response = client.exchange(&request);
    is(&response, Code::Content);
    assert_eq!(response.payload, b"/path/sub1");
}
