//! Tests with libcoap's client: over UDP with the resources of the plugtests and with Echo, and
//! over DTLS for a certificate in blocks.

use std::process::Command;

use crate::support::{
    SHARED_IDENTITY, SHARED_KEY, Site,
    plugtest::{Plugtest, large},
    serve_plain_coap, stdout,
};

fn coap_client(arguments: &[&str]) -> String {
    let output = Command::new("coap-client-openssl").args(["-B", "10"]).args(arguments).output();
    stdout(&output.expect("installed by `make clients`"))
}

#[test]
fn it_fetches_and_sends_in_blocks_of_every_size() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("body");
    let mut body = large();
    body.rotate_left(77);
    std::fs::write(&file, &body).expect("written");
    for size in ["16", "64", "256", "1024"] {
        let server = Plugtest::start();
        let url = |path: &str| format!("coap://{}/{path}", server.address);
        assert_eq!(coap_client(&["-b", size, &url("large")]).trim_end().as_bytes(), large().trim_ascii_end());
        let file = file.to_str().expect("a name");
        coap_client(&["-m", "put", "-b", size, "-f", file, &url("large-update")]);
        let found = coap_client(&[&url("large-update")]);
        assert_eq!(found.trim_end().as_bytes(), body.trim_ascii_end(), "sent in blocks of {size}");
    }
}

#[test]
fn a_certificate_that_is_issued_once_comes_in_blocks_of_16_bytes() {
    let site = Site::new();
    let configuration = std::fs::read_to_string(site.path("certdist.toml")).expect("it is there");
    site.write("certdist.toml", &format!("{configuration}reissue = \"once\"\n"));
    site.import(
        "deviceId,enrollment,deviceName,deviceSecret\nPLUG-1,plug,plug-1,secretofplug10000000000000000000\n",
    );
    let server = site.serve();
    let url = format!("coaps://{}/cert?sn=PLUG-1", server.address);
    let ask = || coap_client(&["-u", SHARED_IDENTITY, "-k", SHARED_KEY, "-A", "50", "-b", "16", &url]);
    let answer: serde_json::Value = serde_json::from_str(&ask()).expect("JSON");
    assert_eq!(answer["deviceSecret"], "secretofplug10000000000000000000");
    assert!(!ask().contains("secretofplug10000000000000000000"), "once is once");
}

#[test]
fn libcoap_shows_it_by_itself() {
    let (_site, _server, address) = serve_plain_coap();
    let answer = coap_client(&["-A", "50", &format!("coap://{address}/cert?sn=PLUG-1")]);
    assert!(answer.contains("secretofplug10000000000000000000"), "{answer}");
}
