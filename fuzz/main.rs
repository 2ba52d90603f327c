//! Feeds the DTLS endpoint and the CoAP endpoint, as black boxes, with mutated
//! messages of real conversations, from one seed: no input may panic, and nothing
//! may grow. Stable Rust, no instrumentation.
//!
//! ```text
//! cargo run --release --features testing --example fuzz -- 10000000 [SEED]
//! ```

use std::{
    env,
    net::SocketAddr,
    time::{Duration, Instant},
};

use certdist::{
    coap,
    dtls::{
        Config, Datagram, Endpoint, Event, Psk,
        testing::{Client, Profile},
    },
};
use rand::{Rng, RngExt, SeedableRng, rngs::StdRng};

type Sent = Vec<(SocketAddr, Vec<u8>)>;

const MAX_HANDSHAKES: usize = 64;
const MAX_SESSIONS: usize = 64;

struct Dtls {
    endpoint: Endpoint<()>,
    now: Instant,
}

impl Dtls {
    fn new() -> Self {
        let config =
            Config { max_handshakes: MAX_HANDSHAKES, max_sessions: MAX_SESSIONS, ..Config::default() };
        let now = Instant::now();
        Self { endpoint: Endpoint::new(config, now, &[1; 32], [2; 32]), now }
    }

    fn receive(&mut self, from: SocketAddr, mut bytes: Vec<u8>) -> Sent {
        let mut out = Sent::new();
        let mut datagram = Datagram::new(from, &mut bytes);
        while self.endpoint.receive(self.now, &mut datagram, &mut out).is_some() {}
        while let Some(event) = self.endpoint.poll_event() {
            if let Event::PskNeeded { handshake, .. } = event {
                let key = Psk::new(vec![7; 16]).map(|psk| (psk, ()));
                self.endpoint.provide_psk(self.now, handshake, key, &mut out);
            }
        }
        out
    }
}

/// The address of number `n` of a few.
fn peer(number: u32) -> SocketAddr {
    SocketAddr::from(([192, 0, 2, (number % 50) as u8], 40_000))
}

/// A whole conversation of a device: its datagrams are the seeds of the inputs.
fn conversation(dtls: &mut Dtls, random: &mut StdRng, corpus: &mut Vec<Vec<u8>>) {
    let psk = Psk::new(vec![7; 16]).expect("16 bytes");
    let ephemeral = random.random_bool(0.1);
    let profile = Profile {
        suites: vec![if ephemeral { 0xd003 } else { 0xc0a8 }, 0x00ff],
        groups: if ephemeral { vec![29] } else { Vec::new() },
        connection_id: random.random_bool(0.3).then(Vec::new),
        fragment: if random.random_bool(0.3) { 70 } else { usize::MAX },
        coalesce: random.random_bool(0.5),
        ..Profile::new("lamp", psk)
    };
    let mut client = Client::new(profile, random.random());
    let from = peer(random.random());
    let mut to_server = client.start(dtls.now);
    while !to_server.is_empty() {
        let mut next = Vec::new();
        for datagram in to_server {
            for (to, answer) in dtls.receive(from, datagram.clone()) {
                if to == from {
                    next.extend(client.receive(dtls.now, &answer));
                }
            }
            corpus.push(datagram);
        }
        to_server = next;
    }
    corpus.push(client.send(b"data"));
    corpus.push(client.close());
}

fn mutate(random: &mut StdRng, input: &mut Vec<u8>, other: &[u8]) {
    for _ in 0..random.random_range(1..4) {
        let length = input.len();
        let at = random.random_range(0..=length);
        match random.random_range(0..7) {
            0 => input.truncate(at),
            1 => random.fill_bytes(&mut input[at..]),
            2 if at < length => input[at] ^= 1 << random.random_range(0..8),
            3 if at < length => input[at] = [0, 1, 0x7f, 0x80, 0xff][random.random_range(0..5)],
            4 => drop(input.splice(at..at, other.iter().copied().take(64))),
            5 => input.extend_from_slice(other),
            6 => drop(input.drain(at..random.random_range(at..=length))),
            _ => {}
        }
        input.truncate(4096);
    }
}

fn main() {
    let mut arguments = env::args().skip(1).map(|argument| argument.parse().expect("a number"));
    let inputs: u64 = arguments.next().unwrap_or(1_000_000);
    let seed: u64 = arguments.next().unwrap_or(1);
    let mut random = StdRng::seed_from_u64(seed);
    let (mut dtls, start) = (Dtls::new(), Instant::now());
    let mut coap = coap::Endpoint::new(coap::Config::default(), start, [3; 32]);
    let requests: [&[u8]; 5] = [
        b"\x44\x01\x12\x34abcd\xb4cert\x11\x3c\xff\xa1\x62sn\x6aSN00000001",
        b"\x40\x01\x00\x01\xb4cert\x4dSN-123=12345678901",
        b"\x52\x02\x00\x02xy\xbb.well-known\x04core\x61\x32",
        b"\x40\x00\x00\x03",
        b"\x60\x00\x00\x04",
    ];
    let mut corpus = Vec::new();
    for number in 0..inputs {
        if number % 1000 == 0 {
            corpus.clear();
            for _ in 0..5 {
                conversation(&mut dtls, &mut random, &mut corpus);
            }
            dtls.now += Duration::from_millis(200);
            dtls.endpoint.handle_timeout(dtls.now, &mut Sent::new());
            assert!(dtls.endpoint.handshakes() <= MAX_HANDSHAKES && dtls.endpoint.sessions() <= MAX_SESSIONS);
        }
        if random.random_bool(0.7) {
            let mut input = corpus[random.random_range(0..corpus.len())].clone();
            let other = corpus[random.random_range(0..corpus.len())].clone();
            mutate(&mut random, &mut input, &other);
            let asked = input.len();
            let stranger = SocketAddr::from(([198, 51, 100, 1], random.random()));
            let from = if random.random_bool(0.5) { stranger } else { peer(random.random()) };
            let sent: usize = dtls.receive(from, input).iter().map(|(_, datagram)| datagram.len()).sum();
            assert!(from != stranger || sent <= asked, "more was sent to a stranger than it had sent");
        } else {
            let mut input = requests[random.random_range(0..requests.len())].to_vec();
            let other = requests[random.random_range(0..requests.len())];
            mutate(&mut random, &mut input, other);
            let mut out: Vec<(u8, Vec<u8>)> = Vec::new();
            let peer: u8 = random.random_range(0..20);
            if let Some(request) = coap.receive(dtls.now, peer, &input, &mut out) {
                let response = coap::Response::problem(coap::Code::NotFound, "no");
                coap.respond(dtls.now, request.exchange, &response, &mut out);
            }
            assert!(coap.peers() <= 20);
        }
    }
    let took = start.elapsed();
    println!("{inputs} inputs from seed {seed} in {took:.1?}: no panic, no growth");
}
