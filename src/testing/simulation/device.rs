//! A simulated device that behaves like firmware: it connects, asks, waits, gives up, and
//! starts again until it has its certificate.

use std::time::{Duration, Instant};

use coap_lite::{CoapOption, MessageClass, MessageType, Packet, RequestType, ResponseType};
use rand::{RngExt, rngs::StdRng};

use crate::dtls::testing::{Client, Profile};

/// Maximum time for a handshake, and for an answer after the request was acknowledged.
const PATIENCE: Duration = Duration::from_secs(60);
/// Retransmission parameters (RFC 7252 §4.8).
const ACK_TIMEOUT: Duration = Duration::from_secs(2);
const MAX_RETRANSMIT: u32 = 4;

pub(super) struct Device {
    profile: Profile,
    /// The request's payload, in CBOR.
    body: Vec<u8>,
    random: StdRng,
    state: State,
    next_id: u16,
    /// Message IDs of the confirmable responses that the device has received.
    seen: Vec<u16>,
}

enum State {
    Asleep { until: Instant },
    Connecting { client: Client, until: Instant },
    Asking { client: Client, request: Vec<u8>, token: [u8; 4], tries: u32, next: Instant, acknowledged: bool },
    Done(Vec<u8>),
}

impl Device {
    pub(super) fn new(profile: Profile, body: Vec<u8>, starts: Instant, mut random: StdRng) -> Self {
        let next_id = random.random();
        Self { profile, body, random, state: State::Asleep { until: starts }, next_id, seen: Vec::new() }
    }

    /// Returns the payload of the answer, once it has arrived.
    pub(super) fn certificate(&self) -> Option<&[u8]> {
        match &self.state {
            State::Done(payload) => Some(payload),
            _ => None,
        }
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        match &self.state {
            State::Asleep { until } => Some(*until),
            State::Connecting { client, until } => {
                Some(client.poll_timeout().map_or(*until, |at| at.min(*until)))
            }
            State::Asking { next, .. } => Some(*next),
            State::Done(_) => None,
        }
    }

    pub(super) fn handle_timeout(&mut self, now: Instant) -> Vec<Vec<u8>> {
        match &mut self.state {
            State::Asleep { until } if *until <= now => {
                let mut client = Client::new(self.profile.clone(), self.random.random());
                let out = client.start(now);
                self.state = State::Connecting { client, until: now + PATIENCE };
                out
            }
            State::Connecting { until, .. } if *until <= now => self.sleep(now, 1),
            State::Connecting { client, .. } => client.handle_timeout(now),
            State::Asking { next, tries, acknowledged, .. }
                if *next <= now && (*acknowledged || *tries > MAX_RETRANSMIT) =>
            {
                self.sleep(now, 1)
            }
            State::Asking { client, request, next, tries, .. } if *next <= now => {
                *next = now + ACK_TIMEOUT * (1 << *tries);
                *tries += 1;
                vec![client.send(request)]
            }
            _ => Vec::new(),
        }
    }

    pub(super) fn receive(&mut self, now: Instant, datagram: &[u8]) -> Vec<Vec<u8>> {
        match &mut self.state {
            State::Asleep { .. } | State::Done(_) => Vec::new(),
            State::Connecting { client, .. } => {
                let mut out = client.receive(now, datagram);
                if client.is_established() {
                    out.extend(self.ask(now));
                }
                out
            }
            State::Asking { client, .. } => {
                let mut out = client.receive(now, datagram);
                for message in std::mem::take(&mut client.received) {
                    out.extend(self.message(now, &message));
                }
                out
            }
        }
    }

    /// Makes the device sleep for at least this many seconds before it starts again.
    fn sleep(&mut self, now: Instant, seconds: u32) -> Vec<Vec<u8>> {
        let pause = Duration::from_secs(seconds.into()).mul_f64(self.random.random_range(1.0..3.0));
        self.state = State::Asleep { until: now + pause };
        Vec::new()
    }

    fn ask(&mut self, now: Instant) -> Vec<Vec<u8>> {
        let State::Connecting { client, .. } =
            std::mem::replace(&mut self.state, State::Asleep { until: now })
        else {
            return Vec::new();
        };
        self.next_id = self.next_id.wrapping_add(1);
        let token: [u8; 4] = self.random.random();
        let mut packet = Packet::new();
        packet.header.set_type(MessageType::Confirmable);
        packet.header.message_id = self.next_id;
        packet.header.code = MessageClass::Request(RequestType::Get);
        packet.set_token(token.to_vec());
        packet.add_option(CoapOption::UriPath, b"cert".to_vec());
        packet.payload.clone_from(&self.body);
        let request = packet.to_bytes().unwrap();
        self.state = State::Asking { client, request, token, tries: 0, next: now, acknowledged: false };
        self.handle_timeout(now)
    }

    fn message(&mut self, now: Instant, message: &[u8]) -> Vec<Vec<u8>> {
        let Ok(packet) = Packet::from_bytes(message) else { return Vec::new() };
        let State::Asking { client, token, next, acknowledged, .. } = &mut self.state else {
            return Vec::new();
        };
        let [high, low] = packet.header.message_id.to_be_bytes();
        let mut out = Vec::new();
        if packet.header.get_type() == MessageType::Confirmable {
            out.push(client.send(&[0x60, 0, high, low]));
            if self.seen.contains(&packet.header.message_id) {
                return out;
            }
            self.seen.push(packet.header.message_id);
        }
        let MessageClass::Response(code) = packet.header.code else {
            if packet.header.get_type() == MessageType::Acknowledgement {
                *acknowledged = true;
                *next = now + PATIENCE;
            }
            return out;
        };
        if packet.get_token() != token {
            return out;
        }
        let max_age = packet.get_option(CoapOption::MaxAge).and_then(|values| values.front());
        let max_age =
            max_age.map_or(60, |value| value.iter().fold(0, |age, &byte| age << 8 | u32::from(byte)));
        out.push(client.close());
        match code {
            ResponseType::Content => self.state = State::Done(packet.payload),
            ResponseType::ServiceUnavailable => drop(self.sleep(now, max_age)),
            ResponseType::GatewayTimeout => drop(self.sleep(now, 5)),
            other => panic!("answered with {other:?}"),
        }
        out
    }
}
