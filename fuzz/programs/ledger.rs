//! Bookkeeping of what the server sends: how much of it to whom, and under which record
//! numbers.

use std::{
    collections::{HashMap, HashSet},
    net::SocketAddr,
};

use super::device::Device;
use crate::dtls::Path;

/// Bytes that may be sent to an address that was not validated, for each byte that came
/// from it.
const AMPLIFICATION: usize = 3;
/// Bytes of a HelloVerifyRequest before its cookie: the headers of record and message,
/// the version and the length.
const BEFORE_COOKIE: usize = 13 + 12 + 2 + 1;

const CLIENT_HELLO_VERIFIED: u8 = 3;
const SERVER_HELLO: u8 = 2;

pub fn contains(bytes: &[u8], part: &[u8]) -> bool {
    !part.is_empty() && bytes.windows(part.len()).any(|window| window == part)
}

/// Bytes of a datagram with the headers of IP and UDP.
fn on_wire(path: Path, datagram: &[u8]) -> usize {
    datagram.len() + if path.peer.is_ipv4() { 28 } else { 48 }
}

#[derive(Default)]
struct Traffic {
    received: usize,
    sent: usize,
    /// Somebody there has returned a cookie, or was validated.
    is_shown: bool,
}

#[derive(Default)]
pub struct Ledger {
    paths: HashMap<Path, Traffic>,
    cookies: HashSet<(SocketAddr, Vec<u8>)>,
    /// Record numbers and explicit nonces under the keys of each device.
    numbers: HashSet<(usize, u64)>,
    nonces: HashSet<(usize, [u8; 8])>,
    /// The handshake on each path, by the server's random, and the numbers of its records.
    handshakes: HashMap<Path, [u8; 32]>,
    plaintext: HashSet<(Path, [u8; 32], u64)>,
}

impl Ledger {
    /// Notes a datagram before the server has it.
    pub fn received(&mut self, path: Path, datagram: &[u8]) {
        let has_cookie =
            |(peer, cookie): &(SocketAddr, Vec<u8>)| *peer == path.peer && contains(datagram, cookie);
        let is_shown = self.cookies.iter().any(has_cookie);
        let traffic = self.paths.entry(path).or_default();
        traffic.received += on_wire(path, datagram);
        traffic.is_shown |= is_shown;
    }

    /// Notes that somebody was shown to receive there.
    pub fn validated(&mut self, path: Path) {
        self.paths.entry(path).or_default().is_shown = true;
    }

    /// Judges the answers to a datagram from `path`, where `has_session` says whether a
    /// session is.
    pub fn answered(&mut self, path: Path, datagram: &[u8], answers: &[(Path, Vec<u8>)], has_session: bool) {
        if self.paths.get(&path).is_some_and(|traffic| !traffic.is_shown) && !has_session {
            let answers: Vec<_> = answers.iter().filter(|(to, _)| *to == path).collect();
            assert!(answers.len() <= 1, "{} answers to a datagram of a stranger", answers.len());
            for (_, answer) in answers {
                assert!(
                    on_wire(path, answer) <= on_wire(path, datagram),
                    "an answer of {} bytes to {} of a stranger",
                    answer.len(),
                    datagram.len()
                );
            }
        }
        self.sent(answers);
    }

    /// Judges what is sent by itself.
    pub fn sent(&mut self, datagrams: &[(Path, Vec<u8>)]) {
        for (path, datagram) in datagrams {
            let traffic = self.paths.entry(*path).or_default();
            if !traffic.is_shown {
                traffic.sent += on_wire(*path, datagram);
                assert!(
                    traffic.sent <= AMPLIFICATION * traffic.received,
                    "{} bytes were sent to an address that was not validated, for {}",
                    traffic.sent,
                    traffic.received
                );
            }
        }
    }

    /// Judges the record numbers of a datagram of the server: a number that came before
    /// under the same keys is a nonce that came before.
    pub fn records(&mut self, path: Path, datagram: &[u8], devices: &[Device]) {
        for (device, of) in devices.iter().enumerate() {
            for (number, nonce) in of.client.opened(datagram) {
                assert!(self.numbers.insert((device, number)), "record {number} was sent twice");
                assert!(self.nonces.insert((device, nonce)), "a nonce was used twice");
            }
        }
        let mut rest = datagram;
        while let Some((record, further)) = split_record(rest) {
            rest = further;
            self.plaintext(path, record);
        }
    }

    fn plaintext(&mut self, path: Path, record: &[u8]) {
        // Of handshake records in epoch 0.
        let (&[22, _, _, 0, 0, a, b, c, d, e, f, ..], Some(message)) = (record, record.get(13..)) else {
            return;
        };
        let number = u64::from_be_bytes([0, 0, a, b, c, d, e, f]);
        match message.first() {
            // It has the number of the hello, whatever that is.
            Some(&CLIENT_HELLO_VERIFIED) => {
                if let Some(cookie) = record.get(BEFORE_COOKIE..) {
                    self.cookies.insert((path.peer, cookie.to_vec()));
                }
                return;
            }
            Some(&SERVER_HELLO) => {
                if let Some(random) = message.get(14..).and_then(|rest| rest.first_chunk()) {
                    self.handshakes.insert(path, *random);
                }
            }
            _ => {}
        }
        if let Some(random) = self.handshakes.get(&path) {
            assert!(
                self.plaintext.insert((path, *random, number)),
                "record {number} of epoch 0 was sent twice in a handshake"
            );
        }
    }
}

/// The first record without a connection ID, and what follows it.
fn split_record(datagram: &[u8]) -> Option<(&[u8], &[u8])> {
    let &[_, _, _, _, _, _, _, _, _, _, _, high, low, ..] = datagram else { return None };
    datagram.split_at_checked(13 + usize::from(u16::from_be_bytes([high, low])))
}
