//! Tests of a device with a connection ID that has moved (RFC 9146 §6). An answer with a
//! certificate is longer than the data that may be sent to an address that is not validated.

use super::*;

fn peer(port: u16) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, 1], port))
}

/// A worker's stack, and a device in a session with a connection ID.
struct Scene {
    stack: Stack,
    client: Client,
    out: Collected,
    now: Instant,
    /// Port from which the device sends its next datagram.
    port: u16,
    _keeps: (tempfile::TempDir, tokio::runtime::Runtime),
}

impl Scene {
    fn new(own_id: &[u8]) -> Self {
        let folder = tempfile::TempDir::new().unwrap();
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let services = services(&folder, runtime.handle(), RequestLimits::default());
        let certificate = crate::device::Certificate {
            product_key: "a1".into(),
            device_name: "SN-1".into(),
            device_secret: crate::device::Secret::new("s".repeat(300)),
        };
        let device = DeviceId::parse("SN-1").unwrap();
        let registration = crate::store::RegisteredDevice { certificate, iot_id: None, registered: 1 };
        runtime.block_on(crate::testing::store::register(&*services.store, &device, registration)).unwrap();
        runtime.block_on(crate::testing::store::issue(&*services.store, &device)).unwrap();
        let now = Instant::now();
        let dtls = dtls::Endpoint::new(dtls::Config::default(), now, &[1; 32], [2; 32]);
        let coap = coap::Endpoint::new(coap::Config::default(), now, [3; 32]);
        let psk = Psk::new(hex::decode(KEY).unwrap()).unwrap();
        let profile = Profile { connection_id: Some(own_id.to_vec()), ..Profile::new("plug", psk) };
        let mut scene = Self {
            stack: Stack::new(dtls, coap, services),
            client: Client::new(profile, [4; 32]),
            out: Collected(Vec::new()),
            now,
            port: 1000,
            _keeps: (folder, runtime),
        };
        let mut to_server = scene.client.start(now);
        while let Some(datagram) = to_server.pop() {
            for (_, answer) in scene.pass(datagram) {
                to_server.extend(scene.client.receive(now, &answer));
            }
        }
        assert!(scene.client.is_established());
        scene
    }

    /// Passes a datagram to the server. Returns the datagrams that the server sends, each
    /// with its destination port.
    fn pass(&mut self, mut datagram: Vec<u8>) -> Vec<(u16, Vec<u8>)> {
        self.stack.receive(self.now, peer(self.port), &mut datagram, &mut self.out);
        self.out.0.drain(..).map(|(to, datagram)| (to.port(), datagram)).collect()
    }

    /// Sends a CoAP message from this port. Returns the messages that the server sends,
    /// each with its destination port.
    fn say(&mut self, port: u16, message: &[u8]) -> Vec<(u16, Vec<u8>)> {
        self.port = port;
        let datagram = self.client.send(message);
        let mut heard = Vec::new();
        for (to, datagram) in self.pass(datagram) {
            self.client.receive(self.now, &datagram);
            heard.extend(self.client.received.drain(..).map(|message| (to, message)));
        }
        heard
    }

    fn metrics(&self) -> [u64; 3] {
        self.stack.publish(0);
        let metrics = self.stack.metrics();
        let answered: u64 = (0..=u8::MAX).map(|code| metrics.responses.of(code)).sum();
        [
            answered,
            metrics.answers_kept.load(Ordering::Relaxed),
            metrics.answers_resumed.load(Ordering::Relaxed),
        ]
    }
}

fn reset(ping: &[u8]) -> Vec<u8> {
    assert_eq!((ping.len(), ping[0], ping[1]), (4, 0x40, 0), "a ping: {ping:?}");
    vec![0x70, 0, ping[2], ping[3]]
}

#[test]
fn an_answer_waits_until_the_devices_address_is_validated() {
    for kind in [0x40, 0x50] {
        for own_id in [&[][..], &[7; 8], &[7; 40]] {
            let mut scene = Scene::new(own_id);
            let mut ask = request(9, b"sn=SN-1");
            ask[0] = kind;
            let heard = scene.say(2000, &ask);
            assert_eq!(heard.len(), 1, "a ping and no more");
            assert_eq!(scene.metrics(), [0, 1, 0]);
            let heard = scene.say(2000, &reset(&heard[0].1));
            assert_eq!((heard.len(), heard[0].0, heard[0].1[1]), (1, 2000, 0x45));
            assert_eq!(scene.metrics(), [0, 1, 1]);
            // After the validation, no answer is held back at the new address or at the first one.
            for (id, port) in [(10, 2000), (11, 1000), (12, 1000)] {
                let heard = scene.say(port, &request(id, b"sn=SN-1"));
                assert_eq!((heard.len(), heard[0].0, heard[0].1[1]), (1, port, 0x45), "{id}");
            }
        }
    }
}

/// In this test, the device is behind a NAT that gives each datagram another port.
#[test]
fn a_device_whose_address_changes_with_every_datagram_gets_its_answer() {
    let mut scene = Scene::new(&[]);
    let mut port = 2000;
    for id in 1..20 {
        port += 1;
        let heard = scene.say(port, &request(id, b"sn=SN-1"));
        let ping = heard.last().expect("a ping").clone();
        assert_eq!(ping.0, port);
        port += 1;
        let heard = scene.say(port, &reset(&ping.1));
        assert_eq!((heard.len(), heard[0].1[1]), (1, 0x45), "{id}");
        assert_eq!(heard[0].0, port - 1, "where it was shown to receive");
    }
}

/// In this test, the ping or its answer is lost, and the device repeats its request.
#[test]
fn a_repeated_request_causes_another_ping() {
    let mut scene = Scene::new(&[]);
    let ask = request(9, b"sn=SN-1");
    assert_eq!(scene.say(2000, &ask).len(), 1);
    scene.now += Duration::from_secs(1);
    // Each repeated request increases the number of bytes that may be sent, until the
    // whole answer may be sent.
    let mut heard = Vec::new();
    for _ in 0..3 {
        scene.now += Duration::from_secs(2);
        heard.extend(scene.say(2000, &ask));
    }
    let pings = heard.iter().filter(|(_, message)| message.len() == 4).count();
    assert!((1..=2).contains(&pings), "{pings}");
    assert!(heard.iter().any(|(_, message)| message[1] == 0x45));
}

/// An attacker who moves a session to a victim's address does not receive the ping that is sent
/// there, and can only guess the ping's message ID. Each guess needs a new ping.
#[test]
fn a_guess_at_the_message_id_of_the_ping_validates_nothing() {
    let mut scene = Scene::new(&[]);
    let heard = scene.say(2000, &request(9, b"sn=SN-1"));
    let right = reset(&heard[0].1);
    let wrong = [right[0], 0, right[2], right[3] ^ 1];
    assert_eq!(scene.say(2000, &wrong), []);
    assert_eq!(scene.say(2000, &right), [], "too late");
    assert_eq!(scene.metrics(), [0, 1, 0]);
}

#[test]
fn the_ping_to_a_device_is_forgotten_with_its_session() {
    let mut scene = Scene::new(&[]);
    scene.say(2000, &request(9, b"sn=SN-1"));
    let close = scene.client.close();
    scene.pass(close);
    assert_eq!((scene.stack.coap_peers(), scene.stack.questions()), (0, 0));
}

impl Scene {
    /// Creates a scene whose enrollment issues each certificate only once.
    fn issues_once(own_id: &[u8]) -> Self {
        let mut scene = Self::new(own_id);
        let kind = Kind::Shared { identity: "plug".into(), key: Key::from_hex(KEY).unwrap() };
        let once = Enrollment {
            name: "plug".into(),
            product_key: "a1".into(),
            kind,
            reissue: Reissue::Once,
            next: None,
            guards: Default::default(),
        };
        let services =
            Services { enrollments: Arc::new(Enrollments::new([once])), ..scene.stack.services.clone() };
        scene.stack.reload(services);
        scene
    }
}

/// A certificate that is issued only once is looked up only when the answer may be sent. If the
/// answer were withheld after the issue, the device could not get the certificate again.
#[test]
fn a_request_for_a_certificate_issued_once_waits_until_the_address_is_validated() {
    for own_id in [&[][..], &[7; 8], &[7; 40]] {
        let mut scene = Scene::issues_once(own_id);
        let ask = request(9, b"sn=SN-1");
        let heard = scene.say(2000, &ask);
        assert_eq!(heard.len(), 1, "a ping");
        assert_eq!(scene.metrics(), [0, 0, 0], "nothing was answered, and nothing kept");
        // The ping was lost. The repeated request causes another ping.
        scene.now += Duration::from_secs(3);
        let heard = scene.say(2000, &ask);
        let heard = scene.say(2000, &reset(&heard[0].1));
        // The certificate was already issued before the device moved, so the held request is
        // refused.
        assert_eq!((heard.len(), heard[0].1[1]), (1, 0x83));
        assert_eq!(scene.metrics()[0], 1);
        assert_eq!(scene.stack.questions(), 0);
    }
}

#[test]
fn one_request_of_a_device_that_has_moved_is_held() {
    let mut scene = Scene::issues_once(&[7; 8]);
    scene.say(2000, &request(9, b"sn=SN-1"));
    scene.say(2000, &request(10, b"sn=SN-1"));
    assert_eq!(scene.metrics()[0], 1, "the first is asked to retry later");
    let close = scene.client.close();
    scene.pass(close);
    assert_eq!((scene.stack.coap_peers(), scene.stack.questions()), (0, 0));
}
