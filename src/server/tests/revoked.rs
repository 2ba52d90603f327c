//! Tests that a revoked key no longer works: sessions that were started with this key end when the
//! configuration is reloaded.

use super::*;
use crate::{
    psk::{NextKey, uses::UseCounters},
    store::{
        Store,
        roll::{Ended, Ending, Rolls},
    },
};

fn enrollment(key: &str, identity: &str, product_key: &str, reissue: Reissue) -> Enrollment {
    let kind = Kind::Shared { identity: identity.into(), key: Key::from_hex(key).unwrap() };
    Enrollment {
        name: "plug".into(),
        product_key: product_key.into(),
        kind,
        reissue,
        next: None,
        guards: Default::default(),
    }
}

/// A stack, and devices that each have one session and have not sent a request yet.
struct Scene {
    stack: Stack,
    services: Services,
    clients: Vec<Client>,
    out: Collected,
    now: Instant,
    _keeps: (tempfile::TempDir, tokio::runtime::Runtime),
}

impl Scene {
    fn new(config: dtls::Config, devices: u16) -> Self {
        let folder = tempfile::TempDir::new().unwrap();
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let services = services(&folder, runtime.handle(), RequestLimits::default());
        let now = Instant::now();
        let dtls = dtls::Endpoint::new(config, now, &[1; 32], [2; 32]);
        let coap = coap::Endpoint::new(coap::Config::default(), now, [3; 32]);
        let stack = Stack::new(dtls, coap, services.clone());
        let out = Collected(Vec::new());
        let mut scene = Self { stack, services, clients: Vec::new(), out, now, _keeps: (folder, runtime) };
        for number in 0..devices {
            scene.connect(number, "plug", KEY);
            assert!(scene.clients[usize::from(number)].is_established());
        }
        scene
    }

    /// Runs the handshake of the next device, which has this number.
    fn connect(&mut self, number: u16, identity: &str, key: &str) {
        let psk = Psk::new(hex::decode(key).unwrap()).unwrap();
        self.clients.push(Client::new(Profile::new(identity, psk), [number as u8; 32]));
        let first = self.clients[usize::from(number)].start(self.now);
        self.pass(number, first);
    }

    fn pass(&mut self, number: u16, mut to_server: Vec<Vec<u8>>) {
        let peer = SocketAddr::from(([192, 0, 2, 1], 1000 + number));
        while let Some(mut datagram) = to_server.pop() {
            self.stack.receive(self.now, peer, &mut datagram, &mut self.out);
            for (_, answer) in self.out.0.drain(..) {
                to_server.extend(self.clients[usize::from(number)].receive(self.now, &answer));
            }
        }
    }

    /// Sends a request of this device. Returns the code of the answer, if there is one.
    fn ask(&mut self, number: u16, id: u8) -> Option<u8> {
        let client = &mut self.clients[usize::from(number)];
        client.received.clear();
        // The request is for a resource that does not exist, so the server looks nothing up.
        let datagram = client.send(&[0x40, 1, 0, id, 0xb1, b'x']);
        self.pass(number, vec![datagram]);
        self.clients[usize::from(number)].received.first().map(|answer| answer[1])
    }

    fn reload(&mut self, enrollments: impl IntoIterator<Item = Enrollment>) {
        self.services.enrollments = Arc::new(Enrollments::new(enrollments));
        self.stack.reload(self.services.clone());
    }

    fn sessions(&mut self) -> u64 {
        self.stack.publish(0);
        self.stack.metrics().sessions.load(Ordering::Relaxed)
    }
}

#[test]
fn sessions_of_an_enrollment_that_is_gone_or_changed_end_with_the_reload() {
    let other = "1".repeat(32);
    for (changed, ends) in [
        (None, true),
        (Some(enrollment(&other, "plug", "a1", Reissue::Always)), true),
        (Some(enrollment(KEY, "socket", "a1", Reissue::Always)), true),
        (Some(enrollment(KEY, "plug", "a2", Reissue::Always)), true),
        (Some(Enrollment { kind: Kind::Individual, ..enrollment(KEY, "plug", "a1", Reissue::Always) }), true),
        (Some(enrollment(KEY, "plug", "a1", Reissue::Once)), false),
        (Some(enrollment(KEY, "plug", "a1", Reissue::Always)), false),
    ] {
        let mut scene = Scene::new(dtls::Config::default(), 3);
        assert_eq!(scene.ask(0, 1), Some(0x84));
        scene.reload(changed.clone());
        // A session with a revoked key ends at its next request, before any timer.
        assert_eq!(scene.ask(0, 2), (!ends).then_some(0x84), "{changed:?}");
        // The other sessions end without any message from their devices.
        while scene.stack.poll_timeout().is_some_and(|at| at <= Instant::now()) {
            scene.stack.handle_timeout(scene.now, &mut scene.out);
        }
        assert_eq!(scene.sessions(), if ends { 0 } else { 3 });
        let notified = scene.out.0.len();
        assert_eq!(notified, if ends { 2 } else { 0 }, "close_notify to each of the others");
        assert_eq!(scene.ask(1, 1), (!ends).then_some(0x84));
    }
}

#[test]
fn a_handshake_started_with_a_key_that_was_then_revoked_opens_no_session() {
    let mut scene = Scene::new(dtls::Config::default(), 0);
    let psk = Psk::new(hex::decode(KEY).unwrap()).unwrap();
    let profile = Profile { coalesce: false, ..Profile::new("plug", psk) };
    let mut client = Client::new(profile, [9; 32]);
    let peer = SocketAddr::from(([192, 0, 2, 1], 1000));
    let mut flight = client.start(scene.now);
    for _ in 0..2 {
        let mut answers = Vec::new();
        for mut datagram in flight.drain(..) {
            scene.stack.receive(scene.now, peer, &mut datagram, &mut scene.out);
            answers.extend(scene.out.0.drain(..).map(|(_, answer)| answer));
        }
        for answer in answers {
            flight.extend(client.receive(scene.now, &answer));
        }
    }
    assert!(flight.len() > 1, "the key exchange by itself");
    // The configuration is reloaded after the key was looked up. The check of all sessions ends
    // before the handshake completes, so it cannot see the new session.
    let rest = flight.split_off(1);
    scene.stack.receive(scene.now, peer, &mut flight[0], &mut scene.out);
    scene.reload(None);
    scene.stack.handle_timeout(scene.now, &mut scene.out);
    assert!(scene.stack.poll_timeout().is_none_or(|at| at > Instant::now()));
    for mut datagram in rest {
        scene.stack.receive(scene.now, peer, &mut datagram, &mut scene.out);
    }
    for (_, answer) in scene.out.0.drain(..) {
        client.receive(scene.now, &answer);
    }
    assert!(client.is_established());
    assert_eq!((client.alert, scene.sessions()), (Some((1, 0)), 0), "close_notify at once");
}

#[test]
fn a_kept_answer_is_not_repeated_after_the_reload() {
    let mut scene = Scene::new(dtls::Config::default(), 1);
    assert_eq!(scene.ask(0, 1), Some(0x84));
    // The request has the message ID of an earlier request, so CoAP repeats the earlier answer.
    assert_eq!(scene.ask(0, 1), Some(0x84));
    scene.reload(None);
    assert_eq!(scene.ask(0, 1), None);
}

/// Keys of the enrollment, the first of which may have its own identity.
fn keys(current: (&str, &str), next: Option<(&str, &str)>) -> Enrollment {
    let (identity, key) = current;
    let next = next.map(|(own, digits)| NextKey {
        key: Key::from_hex(digits).unwrap(),
        identity: (own != identity).then(|| own.into()),
    });
    Enrollment { next, ..enrollment(key, identity, "a1", Reissue::Always) }
}

/// One client has the former key and another client has the new key, under the same identity or
/// under different ones.
#[test]
fn taking_a_key_away_ends_its_sessions_and_no_others() {
    let other = "1".repeat(32);
    for own in ["plug", "plug-next"] {
        let both = || keys(("plug", KEY), Some((own, &other)));
        let (old, new) = (("plug", KEY), (own, other.as_str()));
        for (changed, goes_on) in [
            (both(), [true, true]),
            // Swapped: nothing ends.
            (keys(new, Some(old)), [true, true]),
            (keys(new, None), [false, true]),
            (keys(old, None), [true, false]),
            (keys(new, Some((own, &"2".repeat(32)))), [false, true]),
            (keys((own, &"2".repeat(32)), None), [false, false]),
        ] {
            let mut scene = Scene::new(dtls::Config::default(), 0);
            scene.reload([both()]);
            for (number, (identity, key)) in (0..).zip([old, new]) {
                scene.connect(number, identity, key);
                assert_eq!(scene.ask(number, 1), Some(0x84), "{identity}");
            }
            scene.reload([changed.clone()]);
            for (number, goes_on) in (0..).zip(goes_on) {
                assert_eq!(scene.ask(number, 2), goes_on.then_some(0x84), "{number}, {changed:?}");
            }
            while scene.stack.poll_timeout().is_some_and(|at| at <= Instant::now()) {
                scene.stack.handle_timeout(scene.now, &mut scene.out);
            }
            assert_eq!(scene.sessions(), goes_on.iter().filter(|goes_on| **goes_on).count() as u64);
            // A session continues through any number of reloads that keep its key in either place.
            scene.reload([keys(new, Some(old))]);
            scene.reload([both()]);
            assert_eq!(scene.ask(1, 3), goes_on[1].then_some(0x84));
        }
    }
}

#[test]
fn a_handshake_counts_for_the_key_that_the_device_has() {
    let other = "1".repeat(32);
    let uses = UseCounters::default();
    let mut scene = Scene::new(dtls::Config::default(), 0);
    let reload = |scene: &mut Scene, enrollment: Enrollment| {
        scene.services.enrollments = Arc::new(Enrollments::counted([enrollment], &uses));
        scene.stack.reload(scene.services.clone());
        uses.all().first().map(|(_, pair)| pair.each_ref().map(|counter| counter.read().0))
    };
    let both = || keys(("plug", KEY), Some(("plug", &other)));
    assert_eq!(reload(&mut scene, both()), Some([0, 0]));
    for (number, key) in (0..).zip([KEY, &other, KEY, "99".repeat(16).as_str()]) {
        scene.connect(number, "plug", key);
    }
    assert_eq!(reload(&mut scene, both()), Some([2, 1]), "the wrong key counts for none");
    // The counts belong to the keys and not to their places.
    assert_eq!(reload(&mut scene, keys(("plug", &other), Some(("plug", KEY)))), Some([1, 2]));
    scene.connect(4, "plug", KEY);
    assert_eq!(reload(&mut scene, keys(("plug", &other), None)), None);
    scene.connect(5, "plug", &other);
    assert_eq!(reload(&mut scene, keys(("plug", &other), Some(("plug", KEY)))), Some([0, 0]));
}

/// Another process changes the table while sessions are open. The server is not reloaded.
#[test]
fn a_session_ends_when_its_own_key_is_taken_away() {
    let other = "1".repeat(32);
    let mut scene = Scene::new(dtls::Config::default(), 0);
    let table = Sqlite::open(&scene._keeps.0.path().join("certdist.db")).unwrap();
    let row = |number: u8, next: Option<&String>| {
        let secret = |digits: &str| crate::device::Secret::new(digits.to_owned());
        ImportRow {
            individual: true,
            key: Some((format!("id-{number}"), secret(KEY))),
            next_key: next.map(|next| secret(next)),
            ..ImportRow::new(DeviceId::parse(&format!("OWN-{number}")).unwrap(), "own", "a1")
        }
    };
    import(&table, [row(1, Some(&other)), row(2, None)]);
    let own = Enrollment {
        name: "own".into(),
        kind: Kind::Individual,
        ..enrollment(KEY, "plug", "a1", Reissue::Always)
    };
    scene.reload([own]);
    for (number, (identity, key)) in (0..).zip([("id-1", KEY), ("id-1", &other), ("id-2", KEY)]) {
        scene.connect(number, identity, key);
        assert_eq!(scene.ask(number, 1), Some(0x84), "{number}");
    }
    let (by, [first, second]) =
        (Actor::system_user(), ["OWN-1", "OWN-2"].map(|device| DeviceId::parse(device).unwrap()));
    let ended = scene._keeps.1.block_on(table.end_roll(&first, Ending::Anyway, &by));
    assert_eq!(ended.unwrap(), Ended::Ended);
    scene.now += Duration::from_secs(4);
    assert_eq!(scene.ask(0, 2), Some(0x84), "the key was found a moment ago");
    scene.now += Duration::from_secs(2);
    // This is the last message ID again: the stored answer is not repeated either.
    assert_eq!(scene.ask(0, 2), None);
    assert_eq!(scene.clients[0].alert, Some((1, 0)));
    assert_eq!((scene.ask(1, 2), scene.ask(2, 2), scene.sessions()), (Some(0x84), Some(0x84), 2));
    scene._keeps.1.block_on(table.delete(&second, &by)).unwrap();
    scene.now += Duration::from_secs(6);
    assert_eq!((scene.ask(1, 3), scene.ask(2, 3), scene.sessions()), (Some(0x84), None, 1));
    // The former key does not open another session either.
    scene.connect(3, "id-1", KEY);
    assert!(!scene.clients[3].is_established());
}

#[test]
fn many_sessions_are_checked_in_bounded_rounds() {
    let mut scene = Scene::new(dtls::Config::default(), 1200);
    scene.reload(None);
    let mut rounds = 0;
    while scene.sessions() > 0 {
        assert!(scene.stack.poll_timeout().is_some_and(|at| at <= Instant::now()));
        let before = scene.sessions();
        scene.stack.handle_timeout(scene.now, &mut scene.out);
        assert!(before - scene.sessions() <= 512);
        rounds += 1;
    }
    assert_eq!(rounds, 3);
    assert!(scene.stack.poll_timeout().is_none());
}

#[test]
fn a_session_of_the_maximum_age_ends_at_its_next_record() {
    let config = dtls::Config {
        session_max_age: Duration::from_secs(600),
        session_idle: Duration::from_secs(500),
        ..dtls::Config::default()
    };
    let mut scene = Scene::new(config, 1);
    scene.now += Duration::from_secs(400);
    assert_eq!(scene.ask(0, 1), Some(0x84));
    scene.now += Duration::from_secs(199);
    assert_eq!(scene.ask(0, 2), Some(0x84));
    scene.now += Duration::from_secs(2);
    assert_eq!(scene.ask(0, 3), None);
    assert_eq!(scene.clients[0].alert, Some((1, 0)));
    assert_eq!(scene.sessions(), 0);
}

/// Collects a stack's datagrams and work. The work never ends.
struct Waiting(Vec<std::pin::Pin<Box<dyn Future<Output = Done> + Send>>>, Collected);

impl dtls::Outbox for Waiting {
    fn push(&mut self, path: dtls::Path, datagram: &[u8]) {
        dtls::Outbox::push(&mut self.1, path, datagram);
    }
}

impl Io for Waiting {
    fn spawn(&mut self, work: impl Future<Output = Done> + Send + 'static) {
        self.0.push(Box::pin(work));
    }
}

#[test]
fn a_session_may_have_only_a_few_requests_in_progress() {
    let mut scene = Scene::new(dtls::Config::default(), 2);
    let _entered = scene._keeps.1.enter();
    let mut io = Waiting(Vec::new(), Collected(Vec::new()));
    let mut codes = Vec::new();
    for id in 1..=10 {
        // The device is not registered yet, so the request waits for the cloud.
        let mut datagram = scene.clients[0].send(&request(id, b"sn=SN-1"));
        scene.stack.receive(scene.now, SocketAddr::from(([192, 0, 2, 1], 1000)), &mut datagram, &mut io);
        for (_, answer) in io.1.0.drain(..) {
            scene.clients[0].receive(scene.now, &answer);
        }
        codes.extend(scene.clients[0].received.drain(..).map(|answer| answer[1]));
    }
    assert_eq!((io.0.len(), codes), (4, vec![0x9d; 6]), "4.29 beyond");
    let mut datagram = scene.clients[1].send(&request(1, b"sn=SN-1"));
    scene.stack.receive(scene.now, SocketAddr::from(([192, 0, 2, 1], 1001)), &mut datagram, &mut io);
    assert_eq!(io.0.len(), 5);
}
