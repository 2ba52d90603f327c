//! Tests of the MQTT host in an answer: who gets it, in which form, and that nothing changes for a
//! device that does not ask for it.

use std::collections::HashMap;

use super::*;
use crate::{
    provision::Hosts,
    registrar::Target,
    store::{DeviceRow, claim::Claims},
};

/// Makes a host from the device ID and the product of the device's certificate.
struct Named;

impl Hosts for Named {
    fn host_of(&self, row: &DeviceRow, product_key: &str) -> Option<String> {
        Some(format!("{}.{product_key}.example:1884", row.id))
    }
}

/// Returns a bench whose service knows hosts, and tells them to the devices of `enrollments`.
fn bench_with_hosts(enrollments: &[&str]) -> Bench {
    let bench = Bench::new();
    let provisioner = Provisioner::new(bench.store.clone(), Targets::only(bench.registrar.clone()), PATIENCE);
    let provisioner = provisioner.with_hosts(Arc::new(Named));
    let service = Service::new(Instant::now(), provisioner, RequestLimits::default());
    let names = enrollments.iter().map(|name| (*name).to_owned()).collect();
    Bench { service: Arc::new(service.telling_host(names)), ..bench }
}

/// Makes a host from the name of the device's target.
struct OfTarget(Arc<Targets>);

impl Hosts for OfTarget {
    fn host_of(&self, row: &DeviceRow, _: &str) -> Option<String> {
        Some(format!("{}.example", self.0.of(row)))
    }
}

/// Returns a bench with the targets `default` and `tokyo`, which share a cloud. The devices of
/// `lamp` are registered at `tokyo`.
fn bench_with_targets() -> (Bench, Arc<Targets>) {
    let bench = Bench::new();
    let config = registrar::Config { target: "tokyo".into(), names_target: true, ..Default::default() };
    let owner = crate::store::claim::Owner::new("test at tokyo").unwrap();
    let (store, cloud) = (bench.store.clone(), bench.cloud.clone());
    let tokyo = Registrar::new(config, owner, store.clone(), cloud, Handle::current());
    let target = |registrar| Target { registrar, calls: Arc::default(), host: None, missing: None };
    let all = vec![target(bench.registrar.clone()), target(tokyo)];
    let targets = Targets::new(all, at("tokyo"), true);
    let provisioner = Provisioner::new(store, targets.clone(), PATIENCE);
    let provisioner = provisioner.with_hosts(Arc::new(OfTarget(targets.clone())));
    let service = Arc::new(Service::new(Instant::now(), provisioner, RequestLimits::default()));
    (Bench { service, ..bench }, targets)
}

/// Returns the targets of enrollments: the one of `lamp` is `target`.
fn at(target: &str) -> HashMap<String, String> {
    [("lamp".to_owned(), target.to_owned())].into()
}

fn cbor(bytes: &[u8]) -> Ask {
    get().body(format::CBOR, bytes)
}

fn json(text: &str) -> Ask {
    get().body(format::JSON, text.as_bytes())
}

#[tokio::test]
async fn a_device_that_asks_for_its_host_in_any_form_gets_it() {
    let bench = bench_with_hosts(&[]);
    let text = |text: &str| get().body(format::TEXT, text.as_bytes());
    for (number, request) in [
        cbor(b"\xa1\x64host\xf5"),
        cbor(b"\xa2\x62sn\x68SN-KNOWN\x64host\xf5"),
        cbor(b"\xbf\x64host\xf5\x01\x02\x62sn\x68SN-KNOWN\xff"),
        json(r#"{"host": true}"#),
        json(r#"{"h\u006fst":true,"sn":"SN-KNOWN"}"#),
        get().query("host=1"),
        get().query("host=true"),
        get().query("sn=SN-KNOWN").query("host=1").query("host=true"),
        text("SN-KNOWN").query("host=1"),
        cbor(b"\xa1\x64host\xf5").query("host=1"),
    ]
    .into_iter()
    .enumerate()
    {
        let answer = certificate(&bench.ask("SN-KNOWN", request).await);
        assert_eq!(answer.len(), 4, "request {number}");
        assert_eq!(answer["host"], "SN-KNOWN.a1lamp.example:1884", "request {number}");
    }
}

#[tokio::test]
async fn without_the_question_the_answer_is_the_same_byte_for_byte() {
    let (bench, older) = (bench_with_hosts(&["plug"]), Bench::new());
    let json_form = || get().with(|request| request.accept = Some(format::JSON));
    for ask in [
        get,
        || cbor(b"\xa1\x64host\xf4"),
        || json(r#"{"host": false}"#),
        || get().query("host=0"),
        || get().query("host=false"),
        || get().query("hosts=1").query("Host=1"),
        json_form,
    ] {
        let (answer, expected) = (bench.ask("SN-KNOWN", ask()).await, older.ask("SN-KNOWN", get()).await);
        if answer.content_format == Some(format::CBOR) {
            assert_eq!(*answer.payload, *expected.payload);
        } else {
            let expected = older.ask("SN-KNOWN", json_form()).await;
            assert_eq!(*answer.payload, *expected.payload);
        }
    }
    let expected = b"\xa3\x6aproductKey\x66a1lamp\x6adeviceName\x65known\x6cdeviceSecret\x68imported";
    assert_eq!(*bench.ask_itself("SN-KNOWN").await.payload, expected[..]);
    // A server that does not know the host leaves it out.
    assert_eq!(*older.ask("SN-KNOWN", cbor(b"\xa1\x64host\xf5")).await.payload, expected[..]);
}

#[tokio::test]
async fn the_host_is_the_fourth_text_in_cbor_and_json() {
    let bench = bench_with_hosts(&[]);
    let answer = bench.ask("SN-KNOWN", get().query("host=1")).await;
    let before =
        b"\xa4\x6aproductKey\x66a1lamp\x6adeviceName\x65known\x6cdeviceSecret\x68imported\x64host\x78\x1c";
    assert_eq!(*answer.payload, [&before[..], b"SN-KNOWN.a1lamp.example:1884"].concat());
    let answer =
        bench.ask("SN-KNOWN", get().query("host=1").with(|ask| ask.accept = Some(format::JSON))).await;
    let expected = serde_json::json!({
        "productKey": "a1lamp", "deviceName": "known", "deviceSecret": "imported",
        "host": "SN-KNOWN.a1lamp.example:1884",
    });
    assert_eq!(serde_json::from_slice::<serde_json::Value>(&answer.payload).unwrap(), expected);
}

#[tokio::test]
async fn an_enrollment_can_tell_the_host_to_devices_that_do_not_ask() {
    let bench = bench_with_hosts(&["lamp"]);
    // The device is registered by this request.
    let answer = certificate(&bench.ask_itself("SN-1").await);
    assert_eq!(answer["host"], "SN-1.a1lamp.example:1884");
    let answer = certificate(&bench.ask("SN-1", get().query("host=0")).await);
    assert_eq!(answer["host"], "SN-1.a1lamp.example:1884");
    let answer = certificate(&bench.ask("plug-identity", get().query("sn=PLUG-1")).await);
    assert_eq!(answer.get("host"), None);
    // A reload replaces the enrollments, and keeps the service's source of hosts.
    let reloaded = bench.service.with_limits(RequestLimits::default()).telling_host(["plug".into()].into());
    let bench = Bench { service: Arc::new(reloaded), ..bench };
    assert_eq!(certificate(&bench.ask_itself("SN-1").await).get("host"), None);
    let answer = certificate(&bench.ask("plug-identity", get().query("sn=PLUG-1")).await);
    assert_eq!(answer["host"], "PLUG-1.a1plug.example:1884");
}

#[tokio::test]
async fn a_value_that_is_neither_true_nor_false_is_a_bad_request() {
    let bench = bench_with_hosts(&[]);
    for (number, request) in [
        cbor(b"\xa1\x64host\x01"),
        cbor(b"\xa1\x64host\x64true"),
        cbor(b"\xa1\x64host\xf6"),
        cbor(b"\xa1\x64host\xf7"),
        cbor(b"\xa1\x64host\xc1\xf5"),
        cbor(b"\xa1\x64host\x81\xf5"),
        cbor(b"\xa2\x62sn\x68SN-KNOWN\x64host\x44true"),
        json(r#"{"host": 1}"#),
        json(r#"{"host": "true"}"#),
        json(r#"{"host": null}"#),
        json(r#"{"host": [true]}"#),
        get().query("host"),
        get().query("host="),
        get().query("host=2"),
        get().query("host=TRUE"),
        get().query("host=1 "),
        get().query("host=1").query("host=yes"),
    ]
    .into_iter()
    .enumerate()
    {
        let answer = bench.ask("SN-KNOWN", request).await;
        let expected = (Code::BadRequest, "host is neither true nor false");
        assert_eq!((answer.code, title(&answer).as_str()), expected, "request {number}");
    }
    for request in [
        cbor(b"\xa1\x64host\xf5").query("host=0"),
        json(r#"{"host": false}"#).query("host=1"),
        get().query("host=1").query("host=0"),
    ] {
        let answer = bench.ask("SN-KNOWN", request).await;
        let expected = (Code::BadRequest, "two values of host that differ");
        assert_eq!((answer.code, title(&answer).as_str()), expected);
    }
    // The key `host` is read as strictly as the other keys.
    for request in [
        cbor(b"\xa2\x64host\xf5\x64host\xf5"),
        cbor(b"\xa1\x64host"),
        cbor(b"\xa1\x64host\xf5\x00"),
        cbor(b"\xa1\x64host\xf8\x15"),
        cbor(b"\xa1\x7f\x62ho\x62st\xff\xf5"),
        json(r#"{"host": true, "host": true}"#),
        json(r#"{"host": True}"#),
    ] {
        assert_eq!(bench.ask("SN-KNOWN", request).await.code, Code::BadRequest);
    }
}

#[tokio::test]
async fn only_a_device_that_gets_its_certificate_is_told_a_host() {
    let bench = bench_with_hosts(&["lamp"]);
    let stranger = bench.ask("SN-STRANGER", get().query("host=1")).await;
    assert_eq!((stranger.code, title(&stranger).as_str()), (Code::NotFound, "device is invalid"));
    let other = bench.ask("SN-1", get().query("sn=SN-2").query("host=1")).await;
    assert_eq!(other.code, Code::Forbidden);
    for answer in [stranger, other] {
        assert!(!answer.payload.windows(7).any(|part| part == b"example"));
    }
}

#[tokio::test]
async fn a_device_of_the_default_target_gets_that_host_whatever_its_enrollment_has_now() {
    let (bench, _) = bench_with_targets();
    // The first request records the issue, and the second one does not.
    for _ in 0..2 {
        let answer = certificate(&bench.ask("SN-KNOWN", get().query("host=1")).await);
        assert_eq!(answer["host"], "default.example");
    }
    let answer = certificate(&bench.ask("SN-1", get().query("host=1")).await);
    assert_eq!(answer["host"], "tokyo.example");
}

#[tokio::test]
async fn after_a_registration_that_goes_on_elsewhere_the_host_is_the_one_of_that_target() {
    for (begun, now) in [("tokyo", "default"), ("default", "tokyo")] {
        let (bench, targets) = bench_with_targets();
        targets.set_of_enrollments(at(begun));
        bench.cloud.script([Scripted::Slow(Duration::from_millis(300))]);
        let device = DeviceId::parse("SN-1").unwrap();
        let change = async {
            while bench.store.claim_of(&device).await.unwrap().is_none() {
                tokio::task::yield_now().await;
            }
            targets.set_of_enrollments(at(now));
            certificate(&bench.ask("SN-1", get().query("host=1")).await)
        };
        let first = bench.ask("SN-1", get().query("host=1"));
        let (first, second) = tokio::join!(first, change);
        for answer in [certificate(&first), second] {
            assert_eq!(answer["host"], format!("{begun}.example"));
        }
    }
}

/// An outbox of a device whose records have room for 64 bytes.
#[derive(Default)]
struct Narrow(Vec<Vec<u8>>);

impl coap::Outbox<u8> for Narrow {
    fn push(&mut self, _: u8, message: &[u8]) -> bool {
        self.0.push(message.to_vec());
        true
    }

    fn max_message(&self, _: u8) -> usize {
        64
    }
}

#[tokio::test]
async fn the_longest_answer_fits_one_datagram_and_goes_in_blocks_to_a_device_with_short_records() {
    use coap_lite::{CoapOption, MessageClass, MessageType, Packet, RequestType};

    let handed_out = HandedOut {
        certificate: crate::device::Certificate {
            product_key: "a".repeat(64),
            device_name: "b".repeat(32),
            device_secret: Secret::new("c".repeat(32)),
        },
        host: Some(format!("{}:65535", "d".repeat(253))),
    };
    let answers = [Encoding::Cbor, Encoding::Json].map(|encoding| content(encoding, &handed_out));
    for answer in answers {
        assert!(answer.payload.len() < 500, "{}", answer.payload.len());
        let now = Instant::now();
        let mut endpoint: Endpoint<u8> = Endpoint::new(coap::Config::default(), now, [0; 32]);
        let mut body = Vec::new();
        for number in 0_u16.. {
            let mut packet = Packet::new();
            packet.header.message_id = number;
            packet.header.set_type(MessageType::Confirmable);
            packet.header.code = MessageClass::Request(RequestType::Get);
            packet.add_option(CoapOption::UriPath, b"cert".to_vec());
            packet.add_option(CoapOption::UriQuery, b"host=1".to_vec());
            if number > 0 {
                // NUM, no more blocks, and a size of 32 bytes.
                packet.add_option(CoapOption::Block2, (number << 4 | 1).to_be_bytes().to_vec());
            }
            let mut out = Narrow::default();
            if let Some(request) = endpoint.receive(now, 0, &packet.to_bytes().unwrap(), &mut out) {
                assert_eq!(number, 0, "the certificate is asked for once");
                endpoint.respond(now, request.exchange, &answer, &mut out);
            }
            let block = Packet::from_bytes(&out.0[0]).unwrap();
            let option = block.get_first_option(CoapOption::Block2).expect("blocks");
            let has_more = option.last().is_some_and(|byte| byte & 8 != 0);
            body.extend(block.payload);
            if !has_more {
                break;
            }
        }
        assert_eq!(body, *answer.payload);
    }
}
