//! Benchmark of the DTLS core in memory: the server's CPU time for one operation, without system
//! calls. `make bench` runs this benchmark. The client's time is not counted.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use certdist::dtls::{
    Config, Datagram, Endpoint, Event, Outbox, Path, Psk, Suite,
    testing::{Client, Profile},
};

type Sent = Vec<(SocketAddr, Vec<u8>)>;

struct Server {
    endpoint: Endpoint<()>,
    now: Instant,
    /// Total time spent in the endpoint.
    spent: Duration,
}

/// Counts the bytes sent and discards them.
struct Count(usize);

impl Outbox for Count {
    fn push(&mut self, _: Path, datagram: &[u8]) {
        self.0 += datagram.len();
    }
}

fn psk() -> Psk {
    Psk::new(vec![7; 16]).expect("16 bytes")
}

fn peer(number: u32) -> SocketAddr {
    let [_, a, b, c] = number.to_be_bytes();
    SocketAddr::from(([10, a, b, c], 40_000))
}

impl Server {
    fn new() -> Self {
        let now = Instant::now();
        let endpoint = Endpoint::new(Config::default(), now, &[1; 32], [2; 32]);
        Self { endpoint, now, spent: Duration::ZERO }
    }

    /// Processes a datagram in the steps of the server, and adds the time to `spent`.
    fn receive(&mut self, from: SocketAddr, bytes: &mut [u8], out: &mut impl Outbox) -> usize {
        let start = Instant::now();
        let mut datagram = Datagram::new(from, bytes);
        let mut received = 0;
        while self.endpoint.receive(self.now, &mut datagram, out).is_some() {
            received += 1;
        }
        while let Some(event) = self.endpoint.poll_event() {
            if let Event::PskNeeded { handshake, .. } = event {
                self.endpoint.provide_psk(self.now, handshake, Some((psk(), ())), out);
            }
        }
        self.spent += start.elapsed();
        received
    }

    fn handshake(&mut self, from: SocketAddr, profile: Profile, random: [u8; 32]) -> Client {
        let mut client = Client::new(profile, random);
        let mut to_server = client.start(self.now);
        while !to_server.is_empty() {
            let mut next = Vec::new();
            for mut datagram in to_server {
                let mut out = Sent::new();
                self.receive(from, &mut datagram, &mut out);
                for (_, answer) in out {
                    next.extend(client.receive(self.now, &answer));
                }
            }
            to_server = next;
        }
        assert!(client.is_established());
        client
    }
}

fn report(what: &str, bar: f64, spent: Duration, count: u32) {
    let micros = spent.as_secs_f64() * 1e6 / f64::from(count);
    println!("{what:58} {micros:8.2} µs   (bar {bar} µs)");
}

fn random(number: u32) -> [u8; 32] {
    let mut random = [0; 32];
    random[..4].copy_from_slice(&number.to_be_bytes());
    random
}

fn main() {
    const COUNT: u32 = 20_000;
    println!("{:58} {:>8}", "the server's share, in memory", "each");
    for (suite, groups, bar) in [
        (Suite::PskAes128Ccm8, vec![], 15.0),
        (Suite::PskAes128Gcm, vec![], 15.0),
        (Suite::EcdhePskAes128Ccm8, vec![29], f64::INFINITY),
        (Suite::EcdhePskAes128Ccm8, vec![23], f64::INFINITY),
    ] {
        let mut server = Server::new();
        let count = if suite.is_ephemeral() { COUNT / 20 } else { COUNT };
        let group = groups.first().map_or(String::new(), |code| format!(", group {code}"));
        for number in 0..count {
            let profile =
                Profile { suites: vec![suite.code()], groups: groups.clone(), ..Profile::new("lamp", psk()) };
            server.handshake(peer(number), profile, random(number));
        }
        report(&format!("handshake with cookie, {}{group}", suite.name()), bar, server.spent, count);
    }

    let mut server = Server::new();
    let mut client = server.handshake(peer(1), Profile::new("lamp", psk()), random(1));
    server.spent = Duration::ZERO;
    let mut records: Vec<_> = (0..COUNT).map(|_| client.send(&[0; 100])).collect();
    let received: usize =
        records.iter_mut().map(|record| server.receive(peer(1), record, &mut Count(0))).sum();
    assert_eq!(received, COUNT as usize);
    report("record of 100 bytes received", 1.0, server.spent, COUNT);

    server.spent = Duration::ZERO;
    let mut records: Vec<_> = (0..COUNT).map(|_| client.send(&[0; 100])).collect();
    for record in &mut records {
        if let Some(last) = record.last_mut() {
            *last ^= 1;
        }
    }
    let received: usize =
        records.iter_mut().map(|record| server.receive(peer(1), record, &mut Count(0))).sum();
    assert_eq!(received, 0);
    report("record with a bad tag on a known session", 2.0, server.spent, COUNT);

    let mut server = Server::new();
    let mut hellos: Vec<_> = (0..COUNT)
        .map(|number| Client::new(Profile::new("lamp", psk()), random(number)).start(server.now).concat())
        .collect();
    let mut sent = Count(0);
    let asked: usize = hellos.iter().map(Vec::len).sum();
    for (number, hello) in (0..).zip(&mut hellos) {
        server.receive(peer(number), hello, &mut sent);
    }
    assert_eq!(server.endpoint.handshakes(), 0);
    assert!(sent.0 <= asked);
    report("hello without a cookie", 3.0, server.spent, COUNT);
}
