//! A device with a connection ID on the move asks for a certificate that is longer than
//! what may be sent to an address where it was not yet shown to be (RFC 9146 §6).

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
    /// Where the device's next datagram comes from.
    port: u16,
    _keeps: (tempfile::TempDir, tokio::runtime::Runtime),
}

impl Scene {
    fn new(own_id: &[u8]) -> Self {
        let folder = tempfile::TempDir::new().unwrap();
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let rooms = rooms(&folder, runtime.handle(), RequestLimits::default());
        let certificate = crate::device::Certificate {
            product_key: "a1".into(),
            device_name: "SN-1".into(),
            device_secret: crate::device::Secret::new("s".repeat(300)),
        };
        let device = DeviceId::parse("SN-1").unwrap();
        let registration = crate::store::RegisteredDevice { certificate, iot_id: None, registered: 1 };
        runtime.block_on(rooms.store.store_registration(&device, &registration)).unwrap();
        runtime.block_on(rooms.store.record_issue(&device, 1, Default::default())).unwrap();
        let now = Instant::now();
        let dtls = dtls::Endpoint::new(dtls::Config::default(), now, &[1; 32], [2; 32]);
        let coap = coap::Endpoint::new(coap::Config::default(), now, [3; 32]);
        let psk = Psk::new(hex::decode(KEY).unwrap()).unwrap();
        let profile = Profile { connection_id: Some(own_id.to_vec()), ..Profile::new("plug", psk) };
        let mut scene = Self {
            stack: Stack::new(dtls, coap, rooms),
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

    /// Passes a datagram to the server; what it sends, and to which port.
    fn pass(&mut self, mut datagram: Vec<u8>) -> Vec<(u16, Vec<u8>)> {
        self.stack.receive(self.now, peer(self.port), &mut datagram, &mut self.out);
        self.out.0.drain(..).map(|(to, datagram)| (to.port(), datagram)).collect()
    }

    /// Sends a CoAP message from this port; the server's messages, and to which port.
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

    fn figures(&self) -> [u64; 3] {
        self.stack.publish(0);
        let figures = self.stack.figures();
        let answered: u64 = (0..=u8::MAX).map(|code| figures.responses.of(code)).sum();
        [
            answered,
            figures.answers_kept.load(Ordering::Relaxed),
            figures.answers_resumed.load(Ordering::Relaxed),
        ]
    }
}

fn reset(ping: &[u8]) -> Vec<u8> {
    assert_eq!((ping.len(), ping[0], ping[1]), (4, 0x40, 0), "a ping: {ping:?}");
    vec![0x70, 0, ping[2], ping[3]]
}

#[test]
fn an_answer_waits_until_the_device_was_shown_to_be_where_it_asks_from() {
    for kind in [0x40, 0x50] {
        for own_id in [&[][..], &[7; 8], &[7; 40]] {
            let mut scene = Scene::new(own_id);
            let mut ask = request(9, b"sn=SN-1");
            ask[0] = kind;
            let heard = scene.say(2000, &ask);
            assert_eq!(heard.len(), 1, "the question where it is, and no more");
            assert_eq!(scene.figures(), [0, 1, 0]);
            let heard = scene.say(2000, &reset(&heard[0].1));
            assert_eq!((heard.len(), heard[0].0, heard[0].1[1]), (1, 2000, 0x45));
            assert_eq!(scene.figures(), [0, 1, 1]);
            // From there on nothing is held back, and neither is it at home.
            for (id, port) in [(10, 2000), (11, 1000), (12, 1000)] {
                let heard = scene.say(port, &request(id, b"sn=SN-1"));
                assert_eq!((heard.len(), heard[0].0, heard[0].1[1]), (1, port, 0x45), "{id}");
            }
        }
    }
}

/// A NAT that gives each datagram another port.
#[test]
fn a_device_whose_every_datagram_comes_from_elsewhere_gets_its_answer() {
    let mut scene = Scene::new(&[]);
    let mut port = 2000;
    for id in 1..20 {
        port += 1;
        let heard = scene.say(port, &request(id, b"sn=SN-1"));
        let question = heard.last().expect("a question").clone();
        assert_eq!(question.0, port);
        port += 1;
        let heard = scene.say(port, &reset(&question.1));
        assert_eq!((heard.len(), heard[0].1[1]), (1, 0x45), "{id}");
        assert_eq!(heard[0].0, port - 1, "where it was shown to receive");
    }
}

/// The question or its answer was lost; the device repeats its request.
#[test]
fn a_repeated_request_has_the_device_asked_again() {
    let mut scene = Scene::new(&[]);
    let ask = request(9, b"sn=SN-1");
    assert_eq!(scene.say(2000, &ask).len(), 1);
    scene.now += Duration::from_secs(1);
    // Its bytes earn more: with them the whole answer may be sent.
    let mut heard = Vec::new();
    for _ in 0..3 {
        scene.now += Duration::from_secs(2);
        heard.extend(scene.say(2000, &ask));
    }
    let questions = heard.iter().filter(|(_, message)| message.len() == 4).count();
    assert!((1..=2).contains(&questions), "{questions}");
    assert!(heard.iter().any(|(_, message)| message[1] == 0x45));
}

/// Whoever moves its session to a victim's address cannot hear the question. Each guess at
/// its number takes another question.
#[test]
fn a_guess_at_the_number_of_the_question_shows_nothing() {
    let mut scene = Scene::new(&[]);
    let heard = scene.say(2000, &request(9, b"sn=SN-1"));
    let right = reset(&heard[0].1);
    let wrong = [right[0], 0, right[2], right[3] ^ 1];
    assert_eq!(scene.say(2000, &wrong), []);
    assert_eq!(scene.say(2000, &right), [], "too late");
    assert_eq!(scene.figures(), [0, 1, 0]);
}

#[test]
fn what_is_asked_of_a_device_is_forgotten_with_its_session() {
    let mut scene = Scene::new(&[]);
    scene.say(2000, &request(9, b"sn=SN-1"));
    let close = scene.client.close();
    scene.pass(close);
    assert_eq!((scene.stack.coap_peers(), scene.stack.questions()), (0, 0));
}

impl Scene {
    /// The same device of an enrollment whose certificates are issued once.
    fn issues_once(own_id: &[u8]) -> Self {
        let mut scene = Self::new(own_id);
        let kind = Kind::Shared { identity: "plug".into(), key: Key::from_hex(KEY).unwrap() };
        let once = Enrollment { name: "plug".into(), product_key: "a1".into(), kind, reissue: Reissue::Once };
        let rooms = Rooms { enrollments: Arc::new(Enrollments::new([once])), ..scene.stack.rooms.clone() };
        scene.stack.reload(rooms);
        scene
    }
}

/// What is issued once is not looked at before the answer may be sent: the device could
/// not get another one.
#[test]
fn a_certificate_that_is_issued_once_waits_for_the_device_and_not_the_answer() {
    for own_id in [&[][..], &[7; 8], &[7; 40]] {
        let mut scene = Scene::issues_once(own_id);
        let ask = request(9, b"sn=SN-1");
        let heard = scene.say(2000, &ask);
        assert_eq!(heard.len(), 1, "the question where it is");
        assert_eq!(scene.figures(), [0, 0, 0], "nothing was answered, and nothing kept");
        // The question was lost, and comes again with the request.
        scene.now += Duration::from_secs(3);
        let heard = scene.say(2000, &ask);
        let heard = scene.say(2000, &reset(&heard[0].1));
        // It had been issued before; that is told now.
        assert_eq!((heard.len(), heard[0].1[1]), (1, 0x83));
        assert_eq!(scene.figures()[0], 1);
        assert_eq!(scene.stack.questions(), 0);
    }
}

#[test]
fn of_a_device_that_has_moved_one_request_is_held() {
    let mut scene = Scene::issues_once(&[7; 8]);
    scene.say(2000, &request(9, b"sn=SN-1"));
    scene.say(2000, &request(10, b"sn=SN-1"));
    assert_eq!(scene.figures()[0], 1, "the first is told to come back");
    let close = scene.client.close();
    scene.pass(close);
    assert_eq!((scene.stack.coap_peers(), scene.stack.questions()), (0, 0));
}
