//! Tests of reading the device that a request is about: every source, format and spelling,
//! contradictory requests, and unreadable requests. Reading needs no device table.

use proptest::prelude::*;

use super::*;

const MAC: &str = "001A2B3C4D5E";

/// Returns a client that has proven the key of `device` or, for `None`, a shared key.
fn client(device: Option<&str>) -> Principal {
    Principal {
        enrollment: Arc::new(shared("plug", Reissue::Always)),
        device: device.map(|device| AskedId::parse(device).unwrap()),
        own: None,
        key: WhichKey::Current,
    }
}

/// Returns the device that a request is about, or the code and title of its refusal.
fn device_of(client: &Principal, request: &Ask) -> Result<String, (Code, String)> {
    match read(&request.0, client) {
        Ok((asked, _)) => Ok(asked.first().to_string()),
        Err(refusal) => Err((refusal.code, title(&refusal))),
    }
}

fn cbor(bytes: &[u8]) -> Ask {
    get().body(format::CBOR, bytes)
}

fn json(text: &str) -> Ask {
    get().body(format::JSON, text.as_bytes())
}

fn text(text: &str) -> Ask {
    get().body(format::TEXT, text.as_bytes())
}

#[test]
fn every_source_names_the_device_in_every_format() {
    for (number, (request, device)) in [
        (get().cbor(&[("deviceId", "SN-2")]), "SN-2"),
        (get().cbor(&[("sn", "SN-2")]), "SN-2"),
        (get().cbor(&[("mac", "00:1a:2b:3c:4d:5e")]), MAC),
        (get().cbor(&[("sn", "SN-2"), ("firmware", "1.2")]), "SN-2"),
        (get().cbor(&[("sn", "SN-2"), ("deviceId", "SN-2")]), "SN-2"),
        // A payload with Content-Format 60, or without a Content-Format, is CBOR.
        (cbor(b"\xa1\x62sn\x64SN-2"), "SN-2"),
        (get().with(|request| request.payload = b"\xa1\x62sn\x64SN-2".to_vec()), "SN-2"),
        // Maps of indefinite length, and maps with integers, nesting and tags in other
        // entries.
        (cbor(b"\xbf\x62sn\x64SN-2\xff"), "SN-2"),
        (cbor(b"\xa2\x01\x02\x62sn\x64SN-2"), "SN-2"),
        (cbor(b"\xa2\x61x\x9f\xbf\x01\x80\xff\xff\x62sn\x64SN-2"), "SN-2"),
        (cbor(b"\xa2\x61x\xc2\x49\x01\0\0\0\0\0\0\0\0\x62sn\x64SN-2"), "SN-2"),
        (cbor(b"\xa2\x1b\xff\xff\xff\xff\xff\xff\xff\xff\xf6\x62sn\x64SN-2"), "SN-2"),
        // A length in more bytes than needed is still well-formed (RFC 8949 §3).
        (cbor(b"\xb8\x01\x78\x02sn\x79\0\x04SN-2"), "SN-2"),
        (json(r#"{"deviceId": "SN-2"}"#), "SN-2"),
        (json(r#"{"sn": "SN-2"}"#), "SN-2"),
        (json(r#" {"mac": "00-1A-2B-3C-4D-5E", "x": [1, {}, null]} "#), MAC),
        (json(r#"{"s\u006e": "\u0053N-2"}"#), "SN-2"),
        (text("SN-2"), "SN-2"),
        (text(" SN-2\r\n"), "SN-2"),
        (text("001a.2b3c.4d5e"), MAC),
        (get().query("deviceId=SN-2"), "SN-2"),
        (get().query("sn=SN-2"), "SN-2"),
        (get().query("mac=001a2b3c4d5e"), MAC),
        (get().query("verbose").query("x=1").query("sn=SN-2").query("SN=other"), "SN-2"),
    ]
    .into_iter()
    .enumerate()
    {
        assert_eq!(device_of(&client(None), &request).as_deref(), Ok(device), "request {number}");
        // The result does not depend on the client. Later code decides whether the client may have
        // this device's certificate.
        assert_eq!(device_of(&client(Some("SN-1")), &request).as_deref(), Ok(device), "request {number}");
    }
}

#[test]
fn the_payload_or_the_query_names_the_device_before_the_identity_does() {
    let itself = client(Some("SN-1"));
    let no_id = || get().cbor(&[("firmware", "1.2")]);
    for (request, device) in [
        (get(), "SN-1"),
        (no_id(), "SN-1"),
        (cbor(b"\xa0"), "SN-1"),
        (json("{}"), "SN-1"),
        (get().query("verbose"), "SN-1"),
        (get().query("sn=SN-2"), "SN-2"),
        (no_id().query("sn=SN-2"), "SN-2"),
        (json("{}").query("sn=SN-2"), "SN-2"),
        (get().cbor(&[("sn", "SN-2")]), "SN-2"),
        (get().cbor(&[("sn", "SN-2")]).query("deviceId=SN-2"), "SN-2"),
    ] {
        assert_eq!(device_of(&itself, &request).as_deref(), Ok(device));
    }
    let missing = (Code::BadRequest, "deviceId, sn or mac is missing".to_owned());
    for request in [get(), no_id(), cbor(b"\xa0"), json("{}"), get().query("verbose"), get().query("SN=SN-2")]
    {
        assert_eq!(device_of(&client(None), &request), Err(missing.clone()));
    }
}

#[test]
fn different_ids_contradict_each_other_in_every_source() {
    let differ = (Code::BadRequest, "two device IDs that differ".to_owned());
    for request in [
        get().cbor(&[("sn", "SN-1"), ("deviceId", "SN-2")]),
        get().cbor(&[("sn", "SN-1"), ("mac", MAC)]),
        get().cbor(&[("sn", "SN-1")]).query("sn=SN-2"),
        // Serial numbers are case-sensitive.
        get().cbor(&[("sn", "SN-1")]).query("sn=sn-1"),
        get().query("sn=SN-1").query("sn=SN-2"),
        get().query("sn=SN-1").query("sn=SN-2").query("sn=SN-1"),
        json(r#"{"sn": "SN-1", "mac": "001A2B3C4D5E"}"#),
        text("SN-1").query("deviceId=SN-2"),
    ] {
        for client in [client(None), client(Some("SN-1"))] {
            assert_eq!(device_of(&client, &request), Err(differ.clone()));
        }
    }
    // Different spellings of one MAC address name the same device.
    for request in [
        get().cbor(&[("mac", "00:1a:2b:3c:4d:5e")]).query("deviceId=001A.2B3C.4D5E"),
        json(r#"{"deviceId": "00-1a-2b-3c-4d-5e", "mac": "001A2B3C4D5E", "sn": "001A2B3C4D5E"}"#),
        get().cbor(&[("sn", "001a-2b3c-4d5e")]).query("mac=001A2B3C4D5E"),
    ] {
        assert_eq!(device_of(&client(None), &request).as_deref(), Ok(MAC));
    }
}

#[test]
fn every_spelling_of_a_mac_is_canonical_in_every_source() {
    for mac in ["00:1a:2b:3c:4d:5e", "00-1A-2b-3C-4d-5E", "001a.2B3c.4d5e", "001a2b3c4d5e", "001A2B3C4D5E"] {
        for request in [
            get().cbor(&[("mac", mac)]),
            get().cbor(&[("deviceId", mac)]),
            json(&format!(r#"{{"mac": "{mac}"}}"#)),
            json(&format!(r#"{{"deviceId": "{mac}"}}"#)),
            text(mac),
            get().query(&format!("mac={mac}")),
            get().query(&format!("deviceId={mac}")),
        ] {
            assert_eq!(device_of(&client(None), &request).as_deref(), Ok(MAC), "{mac}");
        }
        assert_eq!(device_of(&client(Some(mac)), &get()).as_deref(), Ok(MAC), "{mac} as identity");
        // As the value of `sn`, the text is read as a serial number first, although it looks like a
        // MAC address.
        assert_eq!(device_of(&client(None), &get().query(&format!("sn={mac}"))).as_deref(), Ok(mac));
    }
    for mac in ["001a-2b3c-4d5e", "00_1a_2b_3c_4d_5e", "0x001a2b3c4d5e", "00:1a-2b:3c:4d:5e"] {
        for request in [
            get().cbor(&[("mac", mac)]),
            json(&format!(r#"{{"deviceId": "{mac}"}}"#)),
            text(mac),
            get().query(&format!("sn={mac}")),
        ] {
            let (asked, _) = read(&request.0, &client(None)).unwrap_or_else(|_| panic!("{mac}"));
            let ids: Vec<&str> = asked.ids().map(DeviceId::as_str).collect();
            assert_eq!((ids, asked.canonical().as_str()), (vec![mac, MAC], MAC));
        }
    }
}

#[test]
fn a_serial_number_has_1_to_64_allowed_characters() {
    let all = "ABCXYZabcxyz0189._:@-";
    let longest = "x".repeat(64);
    for good in ["a", all, &longest, "a1b2c3d4e5f6", "-", "..", "@:@"] {
        for request in [
            get().cbor(&[("sn", good)]),
            json(&format!(r#"{{"sn": "{good}"}}"#)),
            get().query(&format!("sn={good}")),
        ] {
            assert_eq!(device_of(&client(None), &request).as_deref(), Ok(good));
        }
    }
    let too_long = "x".repeat(65);
    for bad in ["", " ", "SN 1", "SN/1", "SN+1", "SN,1", "SN\0", "Gerät", "ＳＮ", &too_long] {
        for key in ["sn", "deviceId", "mac"] {
            for request in [
                get().cbor(&[(key, bad)]),
                json(&serde_json::json!({ key: bad }).to_string()),
                get().query(&format!("{key}={bad}")),
            ] {
                let refusal = device_of(&client(Some("SN-1")), &request);
                assert!(refusal.is_err_and(|(code, _)| code == Code::BadRequest), "{key} {bad:?}");
            }
        }
    }
    for bad in ["SN-1", "00:1a:2b:3c:4d", "00:1a:2b:3c:4d:5e:6f", "0:1a:2b:3c:4d:5e", "0g1a2b3c4d5e"] {
        let refusal = device_of(&client(None), &get().query(&format!("mac={bad}")));
        assert!(
            refusal.is_err_and(|(code, title)| code == Code::BadRequest && title.contains("MAC")),
            "{bad}"
        );
    }
}

/// Returns payloads that are malformed in their format.
fn malformed() -> Vec<(u16, Vec<u8>)> {
    let mut corpus: Vec<(u16, Vec<u8>)> = Vec::new();
    let cbor: &[&[u8]] = &[
        // Not a map.
        b"\x64SN-1",
        b"\x82\x62sn\x64SN-1",
        b"\xf6",
        b"\x00",
        b"\xd9\xd9\xf7\xa1\x62sn\x64SN-1",
        b"SN-1",
        br#"{"sn": "SN-1"}"#,
        // Maps truncated in the head, the key or the value, and maps that announce more
        // entries than they have.
        b"\xb8",
        b"\xa1",
        b"\xa1\x62s",
        b"\xa1\x62sn",
        b"\xa1\x62sn\x64SN-",
        b"\xa2\x62sn\x64SN-1",
        b"\xbf\x62sn\x64SN-1",
        // Bytes after the map.
        b"\xa1\x62sn\x64SN-1\x00",
        b"\xa1\x62sn\x64SN-1\xa0",
        b"\xbf\x62sn\x64SN-1\xff\xff",
        b"\xa0\xff",
        // Values that are not text.
        b"\xa1\x62sn\x01",
        b"\xa1\x62sn\x1b\xff\xff\xff\xff\xff\xff\xff\xff",
        b"\xa1\x62sn\xc2\x49\x01\0\0\0\0\0\0\0\0",
        b"\xa1\x62sn\x44SN-1",
        b"\xa1\x62sn\xf6",
        b"\xa1\x62sn\xfb\x40\x09\x21\xfb\x54\x44\x2d\x18",
        b"\xa1\x62sn\x81\x64SN-1",
        b"\xa1\x62sn\xa0",
        b"\xa1\x62sn\xc0\x64SN-1",
        // Text in chunks, which devices have no reason to send.
        b"\xa1\x62sn\x7f\x62SN\x62-1\xff",
        b"\xa1\x7f\x61s\x61n\xff\x64SN-1",
        b"\xa2\x7f\x61s\x61n\xff\x64SN-2\x62sn\x64SN-1",
        // The same key twice (RFC 8949 §5.6), with equal or different values.
        b"\xa2\x62sn\x64SN-1\x62sn\x64SN-1",
        b"\xa2\x62sn\x64SN-1\x62sn\x64SN-2",
        // Text that is not UTF-8 in a key, a value, or a skipped value.
        b"\xa1\x62s\xff\x64SN-1",
        b"\xa1\x62sn\x64SN\xff\xfe",
        b"\xa2\x61x\x61\xff\x62sn\x64SN-1",
        // Impossible lengths.
        b"\xbb\xff\xff\xff\xff\xff\xff\xff\xff",
        b"\xbb\xff\xff\xff\xff\xff\xff\xff\xff\x62sn\x64SN-1",
        b"\xa1\x62sn\x7b\xff\xff\xff\xff\xff\xff\xff\xffSN-1",
        b"\xa1\x7b\xff\xff\xff\xff\xff\xff\xff\xff",
        b"\xa2\x61x\x9b\xff\xff\xff\xff\xff\xff\xff\xff\x62sn\x64SN-1",
        b"\xa2\x61x\x5b\xff\xff\xff\xff\xff\xff\xff\xff\x62sn\x64SN-1",
        // Reserved additional information (RFC 8949 §3), and misplaced breaks.
        b"\xa1\x62sn\x7c",
        b"\xbc",
        b"\xff",
        b"\xa1\xff\x64SN-1",
        b"\xbf\x62sn\xff",
        b"\xa2\x61x\x81\xff\x62sn\x64SN-1",
        b"\xa2\x61x\xbf\x01\xff\x62sn\x64SN-1",
        b"\xa2\x61x\xc1\xff\x62sn\x64SN-1",
        b"\xa2\x61x\x5f\x61x\xff\x62sn\x64SN-1",
        b"\xbf\x61x\xff\x62sn\x64SN-1\xff",
    ];
    corpus.extend(cbor.iter().map(|bytes| (format::CBOR, bytes.to_vec())));
    // Arrays, maps, tags and strings in chunks, nested up to the last byte.
    for head in [0x81, 0x9f, 0xa1, 0xbf, 0xc1, 0x7f, 0x5f] {
        corpus.push((format::CBOR, vec![head; MAX_PAYLOAD]));
        corpus.push((format::CBOR, [&b"\xa1\x61x"[..], &vec![head; MAX_PAYLOAD - 3]].concat()));
    }
    let json: &[&[u8]] = &[
        b"{",
        b"[]",
        br#"["SN-1"]"#,
        b"null",
        b"\"SN-1\"",
        b"SN-1",
        b"\xa1\x62sn\x64SN-1",
        br#"{"sn": "SN-1""#,
        br#"{"sn": "SN-1}"#,
        br#"{"sn"}"#,
        br#"{"sn": "SN-1",}"#,
        br#"{sn: "SN-1"}"#,
        br#"{"sn": "SN-1"} x"#,
        br#"{"sn": "SN-1"}{}"#,
        br#"{"sn": 1}"#,
        br#"{"sn": 1e999}"#,
        br#"{"sn": 123456789012345678901234567890}"#,
        br#"{"sn": null}"#,
        br#"{"sn": null, "deviceId": "SN-1"}"#,
        br#"{"sn": true}"#,
        br#"{"sn": ["SN-1"]}"#,
        br#"{"sn": {"sn": "SN-1"}}"#,
        br#"{"sn": "SN-1", "sn": "SN-1"}"#,
        br#"{"sn": "SN-1", "s\u006e": "SN-2"}"#,
        br#"{"sn": "\ud800"}"#,
        b"{\"sn\": \"SN-1\", \"x\": \"\xff\"}",
        b"{\"sn\": \"SN\xff\"}",
        b"\xef\xbb\xbf{\"sn\": \"SN-1\"}",
        b"{\"sn\": \"SN-1\n\"}",
        b"\0",
    ];
    corpus.extend(json.iter().map(|bytes| (format::JSON, bytes.to_vec())));
    for head in ["[", "{\"x\":", "{\"x\":["] {
        let mut deep = head.repeat(MAX_PAYLOAD / head.len());
        deep.truncate(MAX_PAYLOAD);
        corpus.push((format::JSON, deep.into_bytes()));
    }
    let text: &[&[u8]] =
        &[b" ", b"\xff\xfe", b"SN-1\0", b"SN-1 SN-2", b"\xa1\x62sn\x64SN-1", b"\xef\xbb\xbfSN-1"];
    corpus.extend(text.iter().map(|bytes| (format::TEXT, bytes.to_vec())));
    corpus.push((format::TEXT, vec![b'x'; MAX_PAYLOAD]));
    corpus
}

#[test]
fn an_unreadable_payload_is_a_bad_request_for_every_client() {
    for client in [client(None), client(Some("SN-1"))] {
        for (format, payload) in malformed() {
            let refusal = device_of(&client, &get().body(format, &payload));
            let what = format!("{format}: {}", payload.escape_ascii());
            assert!(
                refusal.is_err_and(|(code, title)| code == Code::BadRequest && !title.is_empty()),
                "{what}"
            );
            // A malformed payload is refused even if the query is valid.
            let refusal = device_of(&client, &get().body(format, &payload).query("sn=SN-1"));
            assert!(refusal.is_err(), "{what}");
        }
    }
}

#[tokio::test]
async fn an_unreadable_payload_is_answered_before_any_work_is_done() {
    let bench = Bench::new();
    let principal = bench.principal("SN-1").await;
    for (format, payload) in malformed() {
        let Answer::Now(answer) = bench.answer(&principal, &get().body(format, &payload)) else {
            panic!("there is work to do for {}", payload.escape_ascii())
        };
        assert_eq!(answer.code, Code::BadRequest);
    }
    assert_eq!(bench.cloud.registrations(), 0);
}

fn any_format() -> impl Strategy<Value = Option<u16>> {
    prop_oneof![
        Just(None),
        Just(Some(format::CBOR)),
        Just(Some(format::JSON)),
        Just(Some(format::TEXT)),
        any::<u16>().prop_map(Some)
    ]
}

proptest! {
    #[test]
    fn arbitrary_bytes_are_read_or_refused_and_nothing_else(
        format in any_format(),
        payload in proptest::collection::vec(any::<u8>(), 0..MAX_PAYLOAD + 8),
        query in proptest::collection::vec(".{0,80}", 0..3),
    ) {
        let request = get().with(|request| {
            request.content_format = format;
            request.payload = payload;
            request.query = query;
        });
        match read(&request.0, &client(Some("SN-1"))) {
            Ok((asked, _)) => {
                prop_assert!(asked.ids().all(|id| DeviceId::parse_sn(id.as_str()).is_ok()));
            }
            Err(refusal) => prop_assert!(matches!(
                refusal.code,
                Code::BadRequest | Code::RequestEntityTooLarge | Code::UnsupportedContentFormat
            )),
        }
    }

    #[test]
    fn a_payload_that_is_nearly_right_is_read_or_refused_and_nothing_else(
        json in any::<bool>(),
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        cut in any::<prop::sample::Index>(),
    ) {
        let (format, mut payload) = if json {
            (format::JSON, br#"{"deviceId": "00:1a:2b:3c:4d:5e", "x": [1, {"y": null}], "sn": "SN-1"}"#.to_vec())
        } else {
            (format::CBOR, b"\xbf\x68deviceId\x7100:1a:2b:3c:4d:5e\x61x\x82\x01\xa1\x61y\xf6\x62sn\x64SN-1\xff".to_vec())
        };
        for (at, byte) in changes {
            let at = at.index(payload.len());
            payload[at] = byte;
        }
        payload.truncate(cut.index(payload.len() + 1));
        match read(&get().body(format, &payload).0, &client(Some("SN-1"))) {
            Ok((asked, _)) => {
                prop_assert!(asked.ids().all(|id| DeviceId::parse_sn(id.as_str()).is_ok()));
            }
            Err(refusal) => prop_assert_eq!(refusal.code, Code::BadRequest),
        }
    }

    #[test]
    fn a_serial_number_is_the_same_device_in_every_format(sn in "[A-Za-z0-9._:@-]{1,64}") {
        for request in [
            get().cbor(&[("sn", &sn)]),
            json(&serde_json::json!({"sn": sn}).to_string()),
            get().query(&format!("sn={sn}")),
        ] {
            prop_assert_eq!(device_of(&client(None), &request), Ok(sn.clone()));
        }
    }
}
