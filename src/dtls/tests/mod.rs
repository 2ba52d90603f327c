//! Tests of the endpoint as a black box, in memory and in virtual time. Whole handshakes run over
//! networks that lose, repeat, reorder and fragment messages, with clients that reboot, lie or go
//! silent.

mod adversary;
mod connection_id;
mod handshake;
mod known_answers;
mod properties;
mod records;
mod state_machine;
mod strangers;
mod two_keys;

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use rand::{Rng, RngExt, SeedableRng, rngs::StdRng};

use super::{
    Closed, Config, Datagram, Delivery, Dropped, Endpoint, Event, Failure, HandshakeId, MIN_PATH_MTU, Psk,
    SessionId, Suite,
    record::ContentType,
    testing::{Client, Profile},
};

type Outgoing = Vec<(SocketAddr, Vec<u8>)>;

fn psk() -> Psk {
    Psk::new(vec![0x42; 16]).unwrap()
}

fn peer() -> SocketAddr {
    "192.0.2.7:40000".parse().unwrap()
}

fn elsewhere() -> SocketAddr {
    "198.51.100.3:1234".parse().unwrap()
}

fn profile() -> Profile {
    Profile::new("lamp-1", psk())
}

/// A server that knows one or two keys for each identity, and whose application echoes all data.
struct Server {
    endpoint: Endpoint<String>,
    now: Instant,
    events: Vec<Event>,
    /// Holds keys back until [`provide`](Self::provide) is called, instead of providing
    /// them immediately.
    hold_keys: bool,
    /// Second key. If set, the server tries two keys for each identity. Identities that begin with
    /// `lamp-one` have only the first key.
    second: Option<Psk>,
    waiting: Vec<(HandshakeId, Box<[u8]>)>,
    data: Vec<(SessionId, Vec<u8>)>,
}

impl Server {
    fn new(config: Config) -> Self {
        let now = Instant::now();
        Self {
            endpoint: Endpoint::new(config, now, &[1; 32], [2; 32]),
            now,
            events: Vec::new(),
            hold_keys: false,
            second: None,
            waiting: Vec::new(),
            data: Vec::new(),
        }
    }

    fn receive(&mut self, from: SocketAddr, bytes: &[u8]) -> Outgoing {
        let mut out = Outgoing::new();
        let mut bytes = bytes.to_vec();
        let mut datagram = Datagram::new(from, &mut bytes);
        while let Some(received) = self.endpoint.receive(self.now, &mut datagram, &mut out) {
            let data = received.data.to_vec();
            self.endpoint.send(received.session, &data, &mut out);
            self.data.push((received.session, data));
        }
        self.drain(&mut out);
        out
    }

    fn drain(&mut self, out: &mut Outgoing) {
        while let Some(event) = self.endpoint.poll_event() {
            if let Event::PskNeeded { handshake, identity } = &event {
                self.waiting.push((*handshake, identity.clone()));
            }
            self.events.push(event);
            if !self.hold_keys {
                self.provide(out);
            }
        }
    }

    fn provide(&mut self, out: &mut Outgoing) {
        for (handshake, identity) in std::mem::take(&mut self.waiting) {
            let key = identity
                .starts_with(b"lamp")
                .then(|| (psk(), String::from_utf8_lossy(&identity).into_owned()));
            let Some(second) = &self.second else {
                self.endpoint.provide_psk(self.now, handshake, key, out);
                continue;
            };
            let has_two = !identity.starts_with(b"lamp-one");
            let named = key.as_ref().filter(|_| has_two);
            let second = named.map(|(_, name)| (second.clone(), format!("{name}, second key")));
            self.endpoint.provide_psks(self.now, handshake, [key, second], out);
        }
        while let Some(event) = self.endpoint.poll_event() {
            self.events.push(event);
        }
    }

    fn advance(&mut self, by: Duration) -> Outgoing {
        self.now += by;
        let mut out = Outgoing::new();
        self.endpoint.handle_timeout(self.now, &mut out);
        self.drain(&mut out);
        out
    }

    fn session(&self) -> SessionId {
        self.events
            .iter()
            .rev()
            .find_map(|event| match event {
                Event::Established { session, .. } => Some(*session),
                _ => None,
            })
            .expect("a session")
    }

    fn failures(&self) -> Vec<Failure> {
        self.events
            .iter()
            .filter_map(|event| match event {
                Event::HandshakeFailed { reason, .. } => Some(*reason),
                _ => None,
            })
            .collect()
    }

    fn closed(&self) -> Vec<Closed> {
        self.events
            .iter()
            .filter_map(|event| match event {
                Event::Closed { reason, .. } => Some(*reason),
                _ => None,
            })
            .collect()
    }
}

/// Passes all datagrams between server and client without loss until both are silent.
fn converse(server: &mut Server, client: &mut Client, from: SocketAddr, mut to_server: Vec<Vec<u8>>) {
    for round in 0.. {
        if to_server.is_empty() {
            break;
        }
        assert!(round < 32, "they never fall silent");
        let mut next = Vec::new();
        for datagram in to_server {
            for (to, answer) in server.receive(from, &datagram) {
                // The answer may be for another client, for example an alert because that
                // client was evicted.
                if to == from {
                    next.extend(client.receive(server.now, &answer));
                }
            }
        }
        to_server = next;
    }
}

fn connect(server: &mut Server, profile: Profile, from: SocketAddr, random: u8) -> Client {
    let mut client = Client::new(profile, [random; 32]);
    let first = client.start(server.now);
    converse(server, &mut client, from, first);
    client
}

fn established() -> (Server, Client) {
    let mut server = Server::new(Config::default());
    let client = connect(&mut server, profile(), peer(), 1);
    assert!(client.is_established());
    (server, client)
}

/// Lets `wait` pass, and returns the last alert that the client has received by then.
fn alert_after(server: &mut Server, client: &mut Client, wait: Duration) -> Option<(u8, u8)> {
    for (_, datagram) in server.advance(wait) {
        client.receive(server.now, &datagram);
    }
    client.alert
}

fn echoes(server: &mut Server, client: &mut Client, from: SocketAddr, text: &[u8]) -> bool {
    client.received.clear();
    let datagram = client.send(text);
    converse(server, client, from, vec![datagram]);
    client.received == [text]
}
