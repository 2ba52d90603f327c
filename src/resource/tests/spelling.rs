//! Tests of MAC addresses in any spelling, including those that an earlier version stored as a
//! serial number.

use super::*;

/// Returns a row whose ID has exactly this spelling. Tables of an earlier version may contain such
/// rows.
fn literal(id: &str, enrollment: &str) -> ImportRow {
    ImportRow { device: DeviceId::parse_sn(id).unwrap(), ..row("SN", enrollment) }
}

#[tokio::test]
async fn a_mac_is_found_in_any_spelling_also_under_sn() {
    let bench = Bench::new();
    import(&*bench.store, [row("001A2B3C4D60", "plug")]);
    for spelling in ["00:1a:2b:3c:4d:60", "001a2b3c4d60", "001a-2b3c-4d60", "0x001A2B3C4D60"] {
        for key in ["deviceId", "sn", "mac"] {
            let answer = bench.ask("plug-identity", get().cbor(&[(key, spelling)])).await;
            assert_eq!(name(&answer), "001A2B3C4D60", "{key} {spelling}");
        }
    }
    // An identity of the derived enrollment is the device's ID, in any spelling.
    for identity in ["00:1a:2b:3c:4d:5e", "001a-2b3c-4d5e"] {
        assert_eq!(name(&bench.ask_itself(identity).await), "001A2B3C4D5E", "{identity}");
        assert_eq!(name(&bench.ask(identity, get().query("sn=001a2b3c4d5e")).await), "001A2B3C4D5E");
        assert_eq!(bench.ask(identity, get().query("mac=001A2B3C4D5F")).await.code, Code::Forbidden);
    }
    assert_eq!(bench.cloud.registrations(), 2);
}

#[tokio::test]
async fn a_row_with_the_very_text_that_is_asked_for_comes_before_that_of_the_mac() {
    let bench = Bench::new();
    let serial = "001a-2b3c-4d60";
    import(&*bench.store, [literal(serial, "plug"), literal("001a-2b3c-4d5e", "lamp")]);
    for key in ["deviceId", "sn", "mac"] {
        assert_eq!(name(&bench.ask("plug-identity", get().cbor(&[(key, serial)])).await), serial);
    }
    // A request with any other spelling gets the same row.
    for other in ["001A2B3C4D60", "00:1a:2b:3c:4d:60", "0x001a2b3c4d60"] {
        let answer = bench.ask("plug-identity", get().cbor(&[("deviceId", other)])).await;
        assert_eq!(name(&answer), serial, "{other}");
    }
    assert_eq!(bench.cloud.registrations(), 1);
    assert_eq!(name(&bench.ask_itself("001a-2b3c-4d5e").await), "001a-2b3c-4d5e");
    assert_eq!(name(&bench.ask_itself("00:1a:2b:3c:4d:5e").await), "001A2B3C4D5E");
    // A row of another enrollment with the exact spelling does not hide the row of the client's
    // enrollment.
    import(&*bench.store, [literal("001a2b3c4d61", "lamp"), row("001A2B3C4D61", "plug")]);
    let answer = bench.ask("plug-identity", get().query("sn=001a2b3c4d61")).await;
    assert_eq!(name(&answer), "001A2B3C4D61");
}

#[tokio::test]
async fn spellings_of_a_mac_share_a_rate_limit() {
    let bench = Bench::new();
    let limits = RequestLimits { per_identity: Rate::new(3, Duration::from_secs(60)), ..Default::default() };
    let service = Arc::new(bench.service.with_limits(limits));
    let ask = async |identity: &str| {
        let principal = bench.principal(identity).await;
        match service.answer(Instant::now(), home(), &principal, &get().0, true) {
            Answer::Now(response) => response.code,
            Answer::Later(work) => work.await.code,
        }
    };
    for identity in ["00:1a:2b:3c:4d:5e", "001a-2b3c-4d5e", "0x001A2B3C4D5E"] {
        assert_eq!(ask(identity).await, Code::Content, "{identity}");
    }
    assert_eq!(ask("00_1a_2b_3c_4d_5e").await, Code::TooManyRequests);
}
