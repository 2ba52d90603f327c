//! Tests that the time of a handshake reveals nothing about its identity: whether it is known,
//! whether its device is disabled, what kind of enrollment it belongs to, and whether it has a second
//! key. These handshakes use a wrong key. Another test compares handshakes with either of two keys.

use rand::seq::SliceRandom;

use super::*;
use crate::{
    psk::{self, NextKey},
    seal::{self, DatabaseKey, Keyring},
    store::{
        DeviceState, Store,
        sealed::{Keys, Sealed},
        sqlite,
    },
};

/// Number of handshakes of each identity before the medians are first compared. The handshakes of
/// all identities are in random order.
const ROUNDS: usize = 500;
/// Maximum number of times that the number of handshakes is doubled before a difference counts as
/// real. With more handshakes, a difference caused by other load shrinks, but a real difference
/// stays.
const DOUBLINGS: u32 = 4;
/// Largest accepted difference between medians, as a fraction of the smallest median. Any of the
/// following faults causes a larger difference: a key is not derived, a table is not read, a value
/// is not decrypted, a MAC is not verified.
const TOLERANCE: f64 = 0.06;

/// Description of the identity whose key is longer than 30 bytes. Its premaster secret is longer
/// than one block of SHA-256, so its handshake takes measurably longer. The difference is printed
/// but may exceed the tolerance; `docs/security.md` has the measurement.
const LONG_KEY: &str = "individual, 64 bytes";

/// Identities of every kind. Each entry has a description, the identity and the identity's
/// enrollment. All identities have the same length.
const IDENTITIES: [(&str, &str, Option<&str>); 8] = [
    ("individual", "own-0250", Some("own")),
    (LONG_KEY, "own-0750", Some("own")),
    ("individual, disabled", "own-0500", Some("own")),
    ("shared", "plug-000", Some("plug")),
    ("derived, first", "one-0250", Some("one")),
    ("derived, second", "two-0250", Some("two")),
    ("derived, disabled", "two-0500", Some("two")),
    ("unknown", "own-9999", None),
];

/// Encryption of the secrets in a database.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Secrets {
    Clear,
    Sealed,
    /// A database key is configured, but no value is sealed yet.
    YetToSeal,
}

/// Creates a server's modules with these enrollments. An enrollment whose name is given with a `+`
/// at the end has a second key, and the `+` is removed. In `own+`, only some of the devices have
/// one. The table has devices of the enrollments `own`, `one` and `two`, even if these are not
/// configured.
fn site(
    folder: &tempfile::TempDir,
    runtime: &tokio::runtime::Runtime,
    enrollments: &[&str],
    secrets: Secrets,
) -> Services {
    let mut services = services(folder, runtime.handle(), RequestLimits::default());
    let ring = || Keyring::new([DatabaseKey::parse(&"5a".repeat(seal::KEY_SIZE)).unwrap()]);
    let written_with = if secrets == Secrets::Sealed { ring() } else { Keyring::default() };
    let path = folder.path().join(format!("{}-{secrets:?}.db", enrollments.concat()));
    let store = Arc::new(Sealed::new(Sqlite::open(&path).unwrap(), written_with));
    for enrollment in ["own", "one", "two"] {
        let row = |number: u32| {
            let id = format!("{enrollment}-{number:04}");
            let individual = enrollment == "own";
            let psk = KEY.repeat(if number == 750 { 4 } else { 1 });
            ImportRow {
                individual,
                device_name: Some(id.clone()),
                device_secret: Some(crate::device::Secret::new(KEY.into())),
                key: individual.then(|| (id.clone(), crate::device::Secret::new(psk))),
                next_key: (individual && enrollments.contains(&"own+") && has_next(number))
                    .then(|| crate::device::Secret::new(NEXT_KEY.into())),
                ..ImportRow::new(DeviceId::parse(&id).unwrap(), enrollment, "a1")
            }
        };
        import(&*store, (0..1000).map(row));
    }
    for disabled in ["own-0500", "two-0500"] {
        let id = DeviceId::parse(disabled).unwrap();
        runtime.block_on(store.set_state(&id, DeviceState::Disabled, &Actor::system_user())).unwrap();
    }
    if secrets == Secrets::YetToSeal {
        store.set_keys(ring()).unwrap();
    }
    let key = || Key::from_hex(KEY).unwrap();
    let next = || NextKey { key: Key::from_hex(NEXT_KEY).unwrap(), identity: None };
    services.enrollments = Arc::new(Enrollments::new(enrollments.iter().map(|name| Enrollment {
        name: plain(name).into(),
        product_key: "a1".into(),
        next: (name.ends_with('+') && plain(name) != "own").then(next),
        kind: match plain(name) {
            "own" => Kind::Individual,
            "plug" => Kind::Shared { identity: "plug-000".into(), key: key() },
            _ => Kind::Derived(key()),
        },
        reissue: Reissue::Always,
        guards: Default::default(),
    })));
    services.store = store;
    services
}

/// Second key of an enrollment, as long as the first.
const NEXT_KEY: &str = "ff0102030405060708090a0b0c0d0e0f";

/// Returns whether a device of the enrollment `own+` has a second key. The devices of [`IDENTITIES`]
/// have one, except the disabled one.
fn has_next(number: u32) -> bool {
    number % 4 == 2
}

/// Returns the name of an enrollment without the mark of a second key.
fn plain(name: &str) -> &str {
    name.trim_end_matches('+')
}

/// Returns the numbers of store queries, keys derived and sealed values opened so far.
fn work_done() -> [u64; 3] {
    [sqlite::READS.get(), psk::DERIVED.get(), seal::OPENED.get()]
}

#[test]
fn the_same_is_read_derived_and_opened_for_every_identity() {
    let folder = tempfile::TempDir::new().unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let all = ["own", "plug", "one", "two"];
    let sites: [(&[&str], [u64; 2]); 12] = [
        (&["own"], [1, 0]),
        (&["plug"], [0, 0]),
        (&["one"], [0, 1]),
        (&["one", "two"], [1, 1]),
        (&["own", "plug"], [1, 0]),
        (&all, [2, 1]),
        // If one enrollment has a second key, the work for this key is done for every identity.
        (&["plug+"], [0, 0]),
        (&["one+"], [0, 2]),
        (&["one", "two+"], [1, 2]),
        (&["own", "plug+", "one+", "two"], [2, 2]),
        (&["own+"], [1, 0]),
        (&["own+", "plug", "one+", "two"], [2, 2]),
    ];
    for secrets in [Secrets::Clear, Secrets::Sealed, Secrets::YetToSeal] {
        for (enrollments, [reads, derived]) in sites {
            let services = site(&folder, &runtime, enrollments, secrets);
            let keys = [("own", 1), ("own+", 2)].into_iter().find(|(name, _)| enrollments.contains(name));
            let opened = keys.filter(|_| secrets != Secrets::Clear).map_or(0, |(_, keys)| keys);
            for (what, identity, enrollment) in IDENTITIES {
                let before = work_done();
                let finds = services.enrollments.find(identity.as_bytes(), services.store.as_ref());
                let found = runtime.block_on(finds).unwrap().keys;
                let after = work_done();
                let work = [0, 1, 2].map(|of| after[of] - before[of]);
                assert_eq!(work, [reads, derived, opened], "{what}, {enrollments:?}, {secrets:?}");
                // An identity without a configured enrollment is treated as a device of the first
                // derived enrollment.
                let has = |name: &str| enrollments.iter().any(|known| plain(known) == name);
                let own = enrollment.filter(|name| has(name));
                let expected = own.or(has("one").then_some("one"));
                let name = found.as_ref().map(|((_, principal), _)| principal.enrollment.name.as_str());
                assert_eq!(name, expected, "{what}, {enrollments:?}, {secrets:?}");
                let has_two = expected.is_some_and(|name| enrollments.contains(&&*format!("{name}+")))
                    && (expected, identity) != (Some("own"), "own-0500");
                let second = found.and_then(|(_, second)| second);
                assert_eq!(second.is_some(), has_two, "{what}, {enrollments:?}, {secrets:?}");
            }
        }
    }
}

/// Runs a handshake. Returns the server's answer, and the time that the server takes to process the
/// client's last flight and to give up the handshake if the key is wrong.
fn last_flight(stack: &mut Stack, identity: &str, key: Psk, number: u16) -> (Duration, Vec<u8>) {
    let now = Instant::now();
    let [high, low] = number.to_be_bytes();
    let peer = SocketAddr::from(([10, 1, high, low], 5684));
    let mut client = Client::new(Profile::new(identity, key), [low; 32]);
    let mut out = Collected(Vec::with_capacity(4));
    let mut datagram = client.start(now).concat();
    for _ in 0..2 {
        stack.receive(now, peer, &mut datagram, &mut out);
        datagram = client.receive(now, &out.0.remove(0).1).concat();
    }
    let begun = Instant::now();
    stack.receive(now, peer, &mut datagram, &mut out);
    stack.handle_timeout(now + Duration::from_secs(12), &mut out);
    let took = begun.elapsed();
    out.0.retain(|(to, _)| *to == peer);
    assert_eq!(out.0.len(), 1);
    (took, out.0.remove(0).1)
}

fn wrong() -> Psk {
    Psk::new(vec![7; 16]).unwrap()
}

/// Returns the identity and key of the handshake with this number.
type ClientOf<'c> = dyn Fn(u16) -> (String, Psk) + 'c;

/// Compares the times that handshakes take, and returns the answers. Each handshake has a description,
/// and an identity and key that may depend on its number. The handshakes are interleaved, so that
/// other load on the machine delays all of them equally.
fn compare(what: &str, services: Services, handshakes: &[(&str, &ClientOf<'_>)]) -> HashSet<Vec<u8>> {
    let now = Instant::now();
    // In this small table, new handshakes soon evict the failed handshakes.
    let config = dtls::Config { max_handshakes: 64, ..dtls::Config::default() };
    let dtls = dtls::Endpoint::new(config, now, &[1; 32], [2; 32]);
    let coap = coap::Endpoint::new(coap::Config::default(), now, [3; 32]);
    let mut stack = Stack::new(dtls, coap, services);
    let mut times = vec![Vec::new(); handshakes.len()];
    let mut answers = HashSet::new();
    let mut numbers = (0..=u16::MAX).cycle();
    for doubling in 0..=DOUBLINGS {
        let more = ROUNDS << doubling.saturating_sub(1);
        let mut order: Vec<usize> =
            (0..handshakes.len() * more).map(|index| index % handshakes.len()).collect();
        order.shuffle(&mut rand::rng());
        for (which, number) in order.into_iter().zip(&mut numbers) {
            let (identity, key) = handshakes[which].1(number);
            let (took, answer) = last_flight(&mut stack, &identity, key, number);
            times[which].push(took);
            answers.insert(answer);
        }
        let medians: Vec<f64> = times
            .iter_mut()
            .map(|times| {
                times.sort();
                times[times.len() / 2].as_secs_f64() * 1e6
            })
            .collect();
        let alike = || handshakes.iter().zip(&medians).filter(|((what, ..), _)| *what != LONG_KEY);
        let least = alike().map(|(_, &median)| median).fold(f64::MAX, f64::min);
        let difference = alike().map(|(_, &median)| median).fold(0.0, f64::max) / least - 1.0;
        let rounds = times[0].len();
        println!("{what}: {:.1} % after {rounds} handshakes of each", difference * 100.0);
        for ((handshake, _), median) in handshakes.iter().zip(&medians) {
            println!("  {handshake:22} {median:8.1} us");
        }
        if difference < TOLERANCE {
            return answers;
        }
    }
    panic!("{what}: the time reveals what an identity is");
}

#[test]
fn neither_the_bytes_nor_the_time_of_a_failure_reveal_what_an_identity_is() {
    let folder = tempfile::TempDir::new().unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let sites: [&[&str]; 5] =
        [&["own", "plug"], &["one", "two"], &["own", "plug+"], &["one", "two+"], &["own+", "plug"]];
    let mut answers = HashSet::new();
    for enrollments in sites {
        for secrets in [Secrets::Clear, Secrets::Sealed] {
            let services = site(&folder, &runtime, enrollments, secrets);
            let has = |name| enrollments.iter().any(|known| plain(known) == name);
            let known = IDENTITIES.iter().filter(|(.., own)| own.is_none_or(has));
            let known: Vec<_> = known
                .map(|(what, identity, _)| (*what, move |_| ((*identity).to_owned(), wrong())))
                .collect();
            let handshakes: Vec<(&str, &ClientOf<'_>)> =
                known.iter().map(|(what, client)| (*what, client as _)).collect();
            answers.extend(compare(&format!("{enrollments:?}, {secrets:?}"), services, &handshakes));
        }
    }
    assert_eq!(answers.len(), 1, "the same alert, byte for byte");
}

/// An observer must not see which devices still have the former key.
#[test]
fn the_time_of_a_success_does_not_reveal_which_key_a_device_has() {
    let folder = tempfile::TempDir::new().unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let key = |key: &Key| Psk::new(key.as_bytes().to_vec()).unwrap();
    let [current, next] = [KEY, NEXT_KEY].map(|digits| Key::from_hex(digits).unwrap());
    let derived = |master: &Key, number: u16| {
        // Each handshake has its own device, which then has one session.
        let identity = format!("one-{number:05}");
        let psk = key(&master.derive(identity.as_bytes()));
        (identity, psk)
    };
    let services = site(&folder, &runtime, &["one+"], Secrets::Clear);
    compare(
        "derived",
        services,
        &[("current", &|number| derived(&current, number)), ("next", &|number| derived(&next, number))],
    );
    let services = site(&folder, &runtime, &["plug+"], Secrets::Clear);
    let shared = |own: &Key| ("plug-000".to_owned(), key(own));
    compare("shared", services, &[("current", &|_| shared(&current)), ("next", &|_| shared(&next))]);
    for secrets in [Secrets::Clear, Secrets::Sealed] {
        let services = site(&folder, &runtime, &["own+"], secrets);
        // Device 750 has a long key.
        let own = |own: &Key, number: u16| (format!("own-{:04}", u32::from(number) % 187 * 4 + 2), key(own));
        compare(
            &format!("individual, {secrets:?}"),
            services,
            &[("current", &|number| own(&current, number)), ("next", &|number| own(&next, number))],
        );
    }
}
