//! What an identity is must not show in how long its handshake takes: known with a
//! wrong key, unknown, of a disabled device, of each kind of enrollment.

use rand::seq::SliceRandom;

use super::*;
use crate::store::{DeviceState, Store};

/// Handshakes of each identity; their order is shuffled.
const ROUNDS: usize = 1500;
/// What the medians may differ by, as a part of the time. Within it, lie the noise of
/// a machine that has other work, and a row that is read or not: some percent. A key
/// that is not derived, a table that is not asked or a MAC that is not verified takes
/// more off.
const TOLERANCE: f64 = 0.06;

fn site(folder: &tempfile::TempDir, runtime: &tokio::runtime::Runtime) -> Rooms {
    let mut rooms = rooms(folder, runtime.handle(), RequestLimits::default());
    let store = Arc::new(Sqlite::open(&folder.path().join("certdist.db")).unwrap());
    let row = |number: u32| ImportRow {
        individual: true,
        key: Some((format!("own-{number:04}"), crate::device::Secret::new(KEY.into()))),
        ..ImportRow::new(DeviceId::parse(&format!("OWN-{number:04}")).unwrap(), "own", "a1")
    };
    import(&store, (0..1000).map(row));
    let disabled = DeviceId::parse("OWN-0500").unwrap();
    runtime.block_on(store.set_state(&disabled, DeviceState::Disabled, &Actor::system_user())).unwrap();
    let enrollment = |name: &str, kind| Enrollment {
        name: name.into(),
        product_key: "a1".into(),
        kind,
        reissue: Reissue::Always,
    };
    let key = Key::from_hex(KEY).unwrap();
    rooms.enrollments = Arc::new(Enrollments::new([
        enrollment("own", Kind::Individual),
        enrollment("plug", Kind::Shared { identity: "plug-0000".into(), key }),
    ]));
    rooms.store = store;
    rooms
}

/// The time that the server takes for a client's last flight, made with a wrong key,
/// and for its answer, two seconds later.
fn fail(stack: &mut Stack, identity: &str, number: u16) -> (Duration, Vec<u8>) {
    let now = Instant::now();
    let [high, low] = number.to_be_bytes();
    let peer = SocketAddr::from(([10, 1, high, low], 5684));
    let wrong = Psk::new(vec![7; 16]).unwrap();
    let mut client = Client::new(Profile::new(identity, wrong), [low; 32]);
    let mut out = Collected(Vec::with_capacity(4));
    let mut datagram = client.start(now).concat();
    for _ in 0..2 {
        stack.receive(now, peer, &mut datagram, &mut out);
        datagram = client.receive(now, &out.0.remove(0).1).concat();
    }
    let begun = Instant::now();
    stack.receive(now, peer, &mut datagram, &mut out);
    stack.handle_timeout(now + Duration::from_secs(2), &mut out);
    let took = begun.elapsed();
    assert_eq!(out.0.len(), 1);
    (took, out.0.remove(0).1)
}

#[test]
fn what_an_identity_is_shows_neither_in_the_bytes_nor_in_the_time_of_its_failure() {
    let folder = tempfile::TempDir::new().unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let rooms = site(&folder, &runtime);
    let now = Instant::now();
    // Handshakes that failed are soon given up for new ones.
    let config = dtls::Config { max_handshakes: 64, ..dtls::Config::default() };
    let dtls = dtls::Endpoint::new(config, now, &[1; 32], [2; 32]);
    let coap = coap::Endpoint::new(coap::Config::default(), now, [3; 32]);
    let mut stack = Stack::new(dtls, coap, rooms);
    let identities = [
        ("individual", "own-0250"),
        ("disabled", "own-0500"),
        ("shared", "plug-0000"),
        ("unknown", "own-9999"),
    ];
    let mut order: Vec<usize> =
        (0..identities.len() * ROUNDS).map(|index| index % identities.len()).collect();
    order.shuffle(&mut rand::rng());
    let mut times = identities.map(|_| Vec::with_capacity(ROUNDS));
    let mut answers = HashSet::new();
    for (number, which) in (0..).zip(order) {
        let (took, answer) = fail(&mut stack, identities[which].1, number);
        times[which].push(took);
        answers.insert(answer);
    }
    assert_eq!(answers.len(), 1, "the same alert, byte for byte");
    // What delays a round comes on top: the lower quartile is steadier than the median.
    let quartiles = times.map(|mut times| {
        times.sort();
        times[ROUNDS / 4].as_secs_f64() * 1e6
    });
    for ((what, _), quartile) in identities.iter().zip(quartiles) {
        println!("{what:10} {quartile:8.1} us");
    }
    let (least, most) =
        quartiles.iter().fold((f64::MAX, 0f64), |(least, most), &time| (least.min(time), most.max(time)));
    assert!(most / least < 1.0 + TOLERANCE, "{quartiles:?}");
}
