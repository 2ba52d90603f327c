//! Feeds the DTLS endpoint, with the CoAP endpoint behind it, as a black box. The inputs
//! are mutated datagrams of real conversations, mutated hellos with a valid cookie, and
//! mutated plaintexts under the right keys, all from one seed. No input may cause a panic
//! or let memory grow without bound, and a stranger is sent no more bytes than it has
//! sent. Runs on stable Rust, without instrumentation.
//!
//! ```text
//! cargo run --release --features testing --example fuzz -- 10000000 [SEED]
//! ```
//!
//! Every run begins with the messages in `fuzz/corpus`; `cargo test corpus` checks the
//! result of each.

use std::{
    env, fs,
    net::SocketAddr,
    path::Path,
    time::{Duration, Instant},
};

use certdist::{
    coap,
    dtls::{
        self, Datagram, Event, Psk, SessionId,
        testing::{Client, ContentType, Profile},
    },
};
use rand::{Rng, RngExt, SeedableRng, rngs::StdRng};

type Sent = Vec<(SocketAddr, Vec<u8>)>;

const MAX_HANDSHAKES: usize = 64;
const MAX_SESSIONS: usize = 64;
const MAX_TRANSFERS: usize = 64;
/// Number of inputs after which new devices replace the old ones.
const ROUND: u64 = 100;
/// Longest input, in bytes.
const MAX_INPUT: usize = 4096;

/// The DTLS and CoAP endpoints, connected as in a worker of the server.
struct Server {
    dtls: dtls::Endpoint<()>,
    coap: coap::Endpoint<SessionId>,
    now: Instant,
    /// Number of requests that reached the application.
    requests: u64,
}

struct Sealing<'s> {
    dtls: &'s mut dtls::Endpoint<()>,
    out: &'s mut Sent,
}

impl coap::Outbox<SessionId> for Sealing<'_> {
    fn push(&mut self, session: SessionId, message: &[u8]) -> bool {
        self.dtls.send(session, message, self.out) == dtls::Delivery::Sent
    }

    fn max_message(&self, session: SessionId) -> usize {
        self.dtls.max_data(session).unwrap_or(0)
    }
}

impl Server {
    fn new() -> Self {
        let now = Instant::now();
        let config = dtls::Config {
            max_handshakes: MAX_HANDSHAKES,
            max_sessions: MAX_SESSIONS,
            ..dtls::Config::default()
        };
        let dtls = dtls::Endpoint::new(config, now, &[1; 32], [2; 32]);
        let config = coap::Config { max_transfers: MAX_TRANSFERS, ..coap::Config::default() };
        let coap = coap::Endpoint::new(config, now, [3; 32]);
        Self { dtls, coap, now, requests: 0 }
    }

    fn receive(&mut self, from: SocketAddr, mut bytes: Vec<u8>) -> Sent {
        let mut out = Sent::new();
        let mut datagram = Datagram::new(from, &mut bytes);
        while let Some(received) = self.dtls.receive(self.now, &mut datagram, &mut out) {
            let mut sealing = Sealing { dtls: &mut self.dtls, out: &mut out };
            let request = self.coap.receive(self.now, received.session, received.data, &mut sealing);
            if let Some(request) = request {
                self.requests += 1;
                // The response is long enough to need blocks. Requests with three path
                // segments are deferred.
                let response = coap::Response::content(0, vec![0x55; request.payload.len() * 4 + 40]);
                if request.path.len() == 3 {
                    self.coap.defer(self.now, request.exchange);
                } else {
                    self.coap.respond(self.now, request.exchange, &response, &mut sealing);
                }
            }
        }
        self.events(&mut out);
        out
    }

    fn events(&mut self, out: &mut Sent) {
        while let Some(event) = self.dtls.poll_event() {
            match event {
                Event::PskNeeded { handshake, .. } => {
                    let key = Psk::new(vec![7; 16]).map(|psk| (psk, ()));
                    self.dtls.provide_psk(self.now, handshake, key, out);
                }
                Event::Closed { session, .. } => self.coap.forget(session),
                _ => {}
            }
        }
    }

    fn advance(&mut self, by: Duration) {
        self.now += by;
        let mut out = Sent::new();
        self.dtls.handle_timeout(self.now, &mut out);
        self.events(&mut out);
        let mut sealing = Sealing { dtls: &mut self.dtls, out: &mut out };
        self.coap.handle_timeout(self.now, &mut sealing);
    }

    fn assert_bounded(&self) {
        assert!(self.dtls.handshakes() <= MAX_HANDSHAKES && self.dtls.sessions() <= MAX_SESSIONS);
        assert!(self.coap.peers() <= MAX_SESSIONS, "{} peers", self.coap.peers());
        assert!(self.coap.transfers() <= MAX_TRANSFERS);
    }
}

/// A device that is connected or has stopped in its handshake.
struct Device {
    client: Client,
    from: SocketAddr,
    /// The first datagram of the second hello. Its cookie is valid from this address.
    hello: Vec<u8>,
}

/// Datagrams, each with the address that it came from.
type Recorded = Vec<(SocketAddr, Vec<u8>)>;

impl Device {
    /// Connects a device, or stops before its last flight. Records every datagram that it
    /// sends.
    fn connect(server: &mut Server, random: &mut StdRng, recorded: &mut Recorded) -> Self {
        let psk = Psk::new(vec![7; 16]).expect("16 bytes");
        let ephemeral = random.random_bool(0.05);
        let profile = Profile {
            suites: vec![if ephemeral { 0xd003 } else { 0xc0a8 }, 0x00ff],
            groups: if ephemeral { vec![29] } else { Vec::new() },
            connection_id: random.random_bool(0.3).then(|| vec![9; random.random_range(0..9)]),
            extensions: if random.random_bool(0.3) { vec![0, 28, 0, 2, 0, 64] } else { Vec::new() },
            fragment: if random.random_bool(0.3) { 70 } else { usize::MAX },
            coalesce: random.random_bool(0.5),
            ..Profile::new("lamp", psk)
        };
        let stops = random.random_bool(0.3);
        let from = SocketAddr::from(([192, 0, 2, random.random()], random.random()));
        let mut client = Client::new(profile, random.random());
        let (mut to_server, mut hello, mut step) = (client.start(server.now), Vec::new(), 0);
        while !to_server.is_empty() {
            let mut next = Vec::new();
            for datagram in to_server {
                if step == 1 && hello.is_empty() {
                    hello.clone_from(&datagram);
                }
                recorded.push((from, datagram.clone()));
                // The last flight of a device that stops is recorded, but the server does
                // not receive it.
                if step == 2 && stops {
                    continue;
                }
                for (_, answer) in server.receive(from, datagram).iter().filter(|(to, _)| *to == from) {
                    next.extend(client.receive(server.now, answer));
                }
            }
            to_server = next;
            step += 1;
        }
        Self { client, from, hello }
    }
}

fn mutate(random: &mut StdRng, input: &mut Vec<u8>, other: &[u8]) {
    for _ in 0..random.random_range(1..4) {
        let length = input.len();
        let at = random.random_range(0..=length);
        match random.random_range(0..8) {
            0 => input.truncate(at),
            1 => random.fill_bytes(&mut input[at..]),
            2 if at < length => input[at] ^= 1 << random.random_range(0..8),
            3 if at < length => input[at] = [0, 1, 0x7f, 0x80, 0xff][random.random_range(0..5)],
            4 => drop(input.splice(at..at, other.iter().copied().take(64))),
            5 => input.extend_from_slice(other),
            6 => drop(input.drain(at..random.random_range(at..=length))),
            7 if at < length => input[at] = input[at].wrapping_add(random.random_range(0..3)).wrapping_sub(1),
            _ => {}
        }
        input.truncate(MAX_INPUT);
    }
}

/// Returns a mutated hello. Its cookie stays valid: only bytes after the cookie, and lengths,
/// change.
fn mutated_hello(random: &mut StdRng, device: &Device, other: &[u8]) -> Vec<u8> {
    let (kept, rest) = device.hello.split_at(device.client.cookie_end());
    let mut rest = rest.to_vec();
    mutate(random, &mut rest, other);
    let mut hello = [kept, &rest].concat();
    // The lengths of the record, the message and the fragment are made right most of the
    // time.
    if random.random_bool(0.9) {
        let body = (hello.len() - 25) as u32;
        hello[11..13].copy_from_slice(&((body + 12) as u16).to_be_bytes());
        hello[14..17].copy_from_slice(&body.to_be_bytes()[1..]);
        hello[22..25].copy_from_slice(&body.to_be_bytes()[1..]);
    }
    hello
}

/// Returns a record under the device's keys. Its plaintext is mutated most of the time.
fn sealed(random: &mut StdRng, device: &mut Device, seeds: &[Vec<u8>]) -> Vec<u8> {
    let any = |random: &mut StdRng| seeds[random.random_range(0..seeds.len())].clone();
    let mut plaintext = any(random);
    let other = any(random);
    if random.random_bool(0.9) {
        mutate(random, &mut plaintext, &other);
    }
    // Most of the time, the message gets another CoAP message ID, so that it does not
    // count as a repetition.
    if let Some(id) = plaintext.get_mut(2..4).filter(|_| random.random_bool(0.9)) {
        random.fill_bytes(id);
    }
    match random.random_range(0..40) {
        0 => device.client.seal(ContentType::Handshake, &plaintext),
        1 => {
            let mut finished = vec![20, 0, 0, 12, 0, 3, 0, 0, 0, 0, 0, 12];
            finished.extend([0; 12]);
            mutate(random, &mut finished, &other);
            device.client.seal(ContentType::Handshake, &finished)
        }
        2 => device.client.seal(ContentType::Alert, &plaintext[..plaintext.len().min(3)]),
        3 => device.client.seal(ContentType::ChangeCipherSpec, &plaintext),
        4..8 => {
            plaintext.resize(plaintext.len() + random.random_range(0..20), 0);
            device.client.seal_inner(&plaintext)
        }
        _ => device.client.send(&plaintext),
    }
}

/// Returns the messages in `fuzz/corpus`: those of DTLS, and those of CoAP.
fn corpus() -> (Vec<Vec<u8>>, Vec<Vec<u8>>) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
    let (mut dtls, mut coap) = (Vec::new(), Vec::new());
    for entry in fs::read_dir(folder).expect("the corpus") {
        let path = entry.expect("an entry").path();
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        // The other files hold programs for `fuzz/programs`, which are not messages.
        if !["dtls-", "coap-"].iter().any(|prefix| name.starts_with(prefix)) {
            continue;
        }
        let text = fs::read_to_string(&path).expect("text");
        let digits: String = text.lines().filter(|line| !line.starts_with('#')).collect();
        let bytes = hex::decode(digits.replace(' ', "")).expect("hex digits");
        if name.starts_with("dtls") { dtls.push(bytes) } else { coap.push(bytes) }
    }
    (dtls, coap)
}

fn main() {
    let mut arguments = env::args().skip(1).map(|argument| argument.parse().expect("a number"));
    let inputs: u64 = arguments.next().unwrap_or(1_000_000);
    let seed: u64 = arguments.next().unwrap_or(1);
    let mut random = StdRng::seed_from_u64(seed);
    let (mut server, start) = (Server::new(), Instant::now());
    let (datagrams, messages) = corpus();
    let (mut recorded, mut devices) = (Recorded::new(), Vec::new());
    for number in 0..inputs {
        if number % ROUND == 0 {
            recorded = datagrams.iter().map(|datagram| (stranger(0), datagram.clone())).collect();
            devices = (0..6).map(|_| Device::connect(&mut server, &mut random, &mut recorded)).collect();
            server.advance(Duration::from_millis(random.random_range(1..2000)));
            server.assert_bounded();
        }
        let which = random.random_range(0..devices.len());
        let device: &mut Device = &mut devices[which];
        let other = recorded[random.random_range(0..recorded.len())].1.clone();
        let (from, input) = match random.random_range(0..10) {
            0..3 => {
                let (from, mut input) = recorded[random.random_range(0..recorded.len())].clone();
                mutate(&mut random, &mut input, &other);
                (if random.random_bool(0.5) { from } else { stranger(random.random()) }, input)
            }
            3..5 => (device.from, mutated_hello(&mut random, device, &other)),
            _ => (device.from, sealed(&mut random, device, &messages)),
        };
        let asked = input.len();
        let out = server.receive(from, input);
        let sent: usize = out.iter().filter(|(to, _)| *to == from).map(|(_, answer)| answer.len()).sum();
        assert!(!is_stranger(from) || sent <= asked, "more was sent to a stranger than it had sent");
        for (_, answer) in out.iter().filter(|(to, _)| *to == device.from) {
            device.client.receive(server.now, answer);
        }
    }
    server.assert_bounded();
    let (took, requests) = (start.elapsed(), server.requests);
    println!("{inputs} inputs from seed {seed} in {took:.1?}: no panic, no growth; {requests} were requests");
}

/// Returns an address that no device has.
fn stranger(port: u16) -> SocketAddr {
    SocketAddr::from(([198, 51, 100, 1], port))
}

fn is_stranger(address: SocketAddr) -> bool {
    address.ip() == stranger(0).ip()
}
