//! Tests of the CoAP exchange of each device that this repository ships: the programs of `examples/`,
//! the simulated device and the firmware kit. A test server sends misleading messages, which an
//! attacker without the key could not send, repeats its messages, and delays its answer. It checks each
//! message of the device against RFC 7252.

use std::{
    collections::BTreeMap,
    net::{SocketAddr, UdpSocket},
    thread,
    time::{Duration, Instant},
};

use certdist::dtls::{Config, Datagram, Endpoint, Event, Psk, SessionId};

use super::interop::{Ask, Cell, cells};
use crate::support::{SHARED_IDENTITY, SHARED_KEY};

/// Programs that are not from this repository, or that serve only for tests.
const FOREIGN: [&str; 3] = ["OpenSSL 3.0", "GnuTLS 3.7 (libcoap)", "dimpl 0.9"];
/// Maximum wait for the next action of a device.
const PATIENCE: Duration = Duration::from_secs(200);
/// Minimum time until a request is repeated (RFC 7252 §4.8), minus a tolerance for delays in the test.
const ACK_TIMEOUT: Duration = Duration::from_millis(1500);
/// Silence after the acknowledgement. A device that ignores the acknowledgement would repeat its
/// request within this time, because the second time-out is 6 s at most.
const SILENCE: Duration = Duration::from_secs(7);
/// Longer than a device keeps its session open after a separate answer.
const MAX_AGE: Duration = Duration::from_secs(5);

const CON: u8 = 0;
const NON: u8 = 1;
const ACK: u8 = 2;
const RST: u8 = 3;
const CONTENT: u8 = 0x45;
const UNAVAILABLE: u8 = 0xa3;
const PROOF: &str = "the-right-secret";
/// Payload of messages that only look like answers: a certificate with another secret.
const FOREIGN_CERTIFICATE: &[u8] = b"\xff\xa3jproductKeyaPjdeviceNameaNldeviceSecretpthe-wrong-secret";

/// A message.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Message {
    kind: u8,
    code: u8,
    id: u16,
    token: Vec<u8>,
    /// Options and payload.
    rest: Vec<u8>,
}

impl Message {
    fn new(kind: u8, code: u8, id: u16, token: &[u8], rest: &[u8]) -> Self {
        Self { kind, code, id, token: token.into(), rest: rest.into() }
    }

    fn empty(kind: u8, id: u16) -> Self {
        Self::new(kind, 0, id, &[], &[])
    }

    fn read(bytes: &[u8]) -> Self {
        let &[first, code, high, low, ref rest @ ..] = bytes else { panic!("a short message: {bytes:?}") };
        assert_eq!(first >> 6, 1, "the version of {bytes:?}");
        let (token, rest) = rest.split_at(usize::from(first & 15));
        Self::new(first >> 4 & 3, code, u16::from_be_bytes([high, low]), token, rest)
    }

    fn bytes(&self) -> Vec<u8> {
        let head = [0x40 | self.kind << 4 | self.token.len() as u8, self.code];
        [&head[..], &self.id.to_be_bytes(), &self.token, &self.rest].concat()
    }

    fn is_request(&self) -> bool {
        self.kind == CON && matches!(self.code, 1 | 2 | 5)
    }
}

/// A server with one device, which follows a script.
struct Server {
    socket: UdpSocket,
    dtls: Endpoint<()>,
    device: Option<(SessionId, SocketAddr)>,
    out: Vec<(SocketAddr, Vec<u8>)>,
    /// The next message ID.
    id: u16,
}

impl Server {
    fn new() -> (Self, SocketAddr) {
        let socket = UdpSocket::bind("127.0.0.1:0").expect("a socket");
        let address = socket.local_addr().expect("an address");
        let dtls = Endpoint::new(Config::default(), Instant::now(), &[7; 32], [9; 32]);
        (Self { socket, dtls, device: None, out: Vec::new(), id: 100 }, address)
    }

    /// Returns the next message, or `None` if none arrives in this time.
    fn receive(&mut self, patience: Duration) -> Option<Message> {
        let deadline = Instant::now() + patience;
        loop {
            self.dtls.handle_timeout(Instant::now(), &mut self.out);
            self.flush();
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            self.socket.set_read_timeout(Some(left.min(Duration::from_millis(100)))).expect("set");
            let mut buffer = [0; 2048];
            let Ok((length, from)) = self.socket.recv_from(&mut buffer) else { continue };
            let mut datagram = Datagram::new(from, &mut buffer[..length]);
            let mut found = None;
            while let Some(received) = self.dtls.receive(Instant::now(), &mut datagram, &mut self.out) {
                assert!(found.is_none(), "a datagram with two messages");
                self.device = Some((received.session, from));
                found = Some(Message::read(received.data));
            }
            self.take_events();
            self.flush();
            if found.is_some() {
                return found;
            }
        }
    }

    fn take_events(&mut self) {
        while let Some(event) = self.dtls.poll_event() {
            match event {
                Event::PskNeeded { handshake, identity } => {
                    assert_eq!(&identity[..], SHARED_IDENTITY.as_bytes());
                    let key = Psk::new(SHARED_KEY.into()).expect("a key");
                    self.dtls.provide_psk(Instant::now(), handshake, Some((key, ())), &mut self.out);
                }
                Event::Established { session, peer } => self.device = Some((session, peer)),
                _ => {}
            }
        }
    }

    fn flush(&mut self) {
        for (to, datagram) in self.out.drain(..) {
            let _ = self.socket.send_to(&datagram, to);
        }
    }

    fn send(&mut self, message: &Message) {
        let (session, _) = self.device.expect("a session");
        self.dtls.send(session, &message.bytes(), &mut self.out);
        self.flush();
    }

    /// Sends a confirmable message with the next ID, and asserts the device's reply. A copy of a
    /// request may come before.
    fn send_and_expect(&mut self, reply: u8, code: u8, token: &[u8], rest: &[u8], of: Option<&Message>) {
        self.id += 1;
        let sent = Message::new(CON, code, self.id, token, rest);
        self.send(&sent);
        self.expect_reply(reply, of);
    }

    fn expect_reply(&mut self, reply: u8, of: Option<&Message>) {
        let got = loop {
            let got = self.receive(PATIENCE).expect("a reply");
            if Some(&got) != of {
                break got;
            }
        };
        assert_eq!(got, Message::empty(reply, self.id), "the reply to message {}", self.id);
    }

    fn expect_request(&mut self) -> Message {
        let got = self.receive(PATIENCE).expect("a request");
        assert!(got.is_request() && !got.token.is_empty(), "{got:?}");
        got
    }

    /// Plays the script until the device has its certificate.
    fn play(&mut self, stack: &str) {
        let request = self.expect_request();
        let asked = Instant::now();
        let (token, another) = (request.token.clone(), !request.id);
        // A message that is not the answer changes nothing: the device repeats its request.
        self.send(&Message::new(ACK, CONTENT, another, &token, FOREIGN_CERTIFICATE));
        self.send(&Message::empty(ACK, another));
        self.send(&Message::empty(RST, another));
        self.send(&Message::new(RST, CONTENT, request.id, &token, FOREIGN_CERTIFICATE));
        let foreign: Vec<u8> = token.iter().map(|byte| byte ^ 0x55).collect();
        self.send(&Message::new(NON, CONTENT, another, &foreign, FOREIGN_CERTIFICATE));
        // An option of 15 bytes that ends after one, a reserved length, and a marker without payload.
        for malformed in [&b"\x4d\x02\x00"[..], b"\x4f\x00", b"\x40\xff"] {
            self.send(&Message::new(NON, CONTENT, another, &token, malformed));
        }
        self.send_and_expect(RST, CONTENT, &foreign, FOREIGN_CERTIFICATE, Some(&request));
        // Option 9 is critical, and no device knows it. The kit counts such an answer as a bad one.
        if !stack.starts_with("firmware kit") {
            let rest = [b"\x91x", FOREIGN_CERTIFICATE].concat();
            self.send_and_expect(RST, CONTENT, &token, &rest, Some(&request));
        }
        assert_eq!(self.expect_request(), request, "the copy has the same message ID and token");
        assert!(asked.elapsed() >= ACK_TIMEOUT, "repeated after {:?}", asked.elapsed());

        // After the empty acknowledgement, a device only listens.
        self.send(&Message::empty(ACK, request.id));
        let since = Instant::now();
        while since.elapsed() < SILENCE {
            if let Some(got) = self.receive(SILENCE.saturating_sub(since.elapsed())) {
                panic!("after the acknowledgement: {got:?}");
            }
        }
        self.send_and_expect(RST, 0, &[], &[], None);

        // 5.03 with Max-Age (option 14). The same datagram then comes a second time.
        let max_age = [0xd1, 14 - 13, MAX_AGE.as_secs() as u8];
        let told = Instant::now();
        self.send_and_expect(ACK, UNAVAILABLE, &token, &max_age, None);
        self.repeat(UNAVAILABLE, &token, &max_age);
        let again = self.expect_request();
        assert!(told.elapsed() >= MAX_AGE, "back after {:?}", told.elapsed());
        assert!(again.id != request.id && again.token != token, "{again:?} is no new request");

        // The options before the payload contain 0xff: an ETag, and option 284 of 20 bytes.
        let options = [&b"\x42\xff\xff\x81\x3c\x21\x00\xed\x00\x01\x07"[..], &[0xff; 20]].concat();
        let certificate = b"\xff\xa3jproductKeyaPjdeviceNameaNldeviceSecretp";
        let rest = [&options[..], certificate, PROOF.as_bytes()].concat();
        self.send(&Message::empty(ACK, again.id));
        self.send_and_expect(ACK, CONTENT, &again.token, &rest, Some(&again));
        self.repeat(CONTENT, &again.token, &rest);
    }

    /// Repeats the newest answer, which the device must acknowledge once more.
    fn repeat(&mut self, code: u8, token: &[u8], rest: &[u8]) {
        self.send(&Message::new(CON, code, self.id, token, rest));
        self.expect_reply(ACK, None);
    }
}

#[test]
fn every_device_of_the_repository_keeps_to_its_half_of_the_exchange() {
    let mut of_stacks = BTreeMap::<&str, Cell>::new();
    for cell in cells() {
        if !FOREIGN.contains(&cell.stack) {
            of_stacks.entry(cell.stack).or_insert(cell);
        }
    }
    assert!(of_stacks.len() >= 13);
    let failed: Vec<_> = thread::scope(|scope| {
        let mut runs = Vec::new();
        for cell in of_stacks.values() {
            let thread = thread::Builder::new().name(cell.stack.into());
            runs.push((cell.stack, thread.spawn_scoped(scope, || run(cell)).expect("a thread")));
        }
        runs.into_iter()
            .filter_map(|(stack, run)| (!matches!(run.join(), Ok(true))).then_some(stack))
            .collect()
    });
    assert!(failed.is_empty(), "{failed:?}");
}

/// Runs a device against a server. Returns whether it got the right certificate.
fn run(cell: &Cell) -> bool {
    let (mut server, address) = Server::new();
    thread::scope(|scope| {
        let device = scope.spawn(|| {
            (cell.fetch)(&Ask {
                server: address,
                identity: SHARED_IDENTITY,
                key: SHARED_KEY.into(),
                suite: cell.suite,
                more: cell.more,
                rfc7925_timers: false,
                patience: PATIENCE,
                sn: "PLUG-1".into(),
                proof: PROOF.into(),
            })
        });
        server.play(cell.stack);
        // Until the device ends, the server answers close_notify and copies of a flight.
        while !device.is_finished() {
            server.receive(Duration::from_millis(200));
        }
        device.join().expect("no panic")
    })
}
