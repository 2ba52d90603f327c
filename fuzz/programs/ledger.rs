//! Records what the server sends and checks it: how many bytes go to each address, and
//! which record numbers and nonces are used.

use std::{
    collections::{HashMap, HashSet},
    net::SocketAddr,
};

use super::device::Device;
use crate::dtls::Path;

/// Number of bytes that may be sent to an address that is not validated, for each byte
/// received from it.
const AMPLIFICATION: usize = 3;
/// Length in bytes of the part of a HelloVerifyRequest record before its cookie: the
/// headers of record and message, the version, and the length of the cookie.
const BEFORE_COOKIE: usize = 13 + 12 + 2 + 1;

const CLIENT_HELLO_VERIFIED: u8 = 3;
const SERVER_HELLO: u8 = 2;

pub fn contains(bytes: &[u8], part: &[u8]) -> bool {
    !part.is_empty() && bytes.windows(part.len()).any(|window| window == part)
}

/// Returns the length of a datagram in bytes, including the headers of IP and UDP.
fn on_wire(path: Path, datagram: &[u8]) -> usize {
    datagram.len() + if path.peer.is_ipv4() { 28 } else { 48 }
}

#[derive(Default)]
struct Traffic {
    received: usize,
    sent: usize,
    /// Set once a client has returned a cookie from this path, or the path was validated.
    is_shown: bool,
}

#[derive(Default)]
pub struct Ledger {
    paths: HashMap<Path, Traffic>,
    cookies: HashSet<(SocketAddr, Vec<u8>)>,
    /// Record numbers used under the keys of each device; `nonces` has the explicit
    /// nonces.
    numbers: HashSet<(usize, u64)>,
    nonces: HashSet<(usize, [u8; 8])>,
    /// The current handshake on each path, identified by the server's random. `plaintext`
    /// has the record numbers used in epoch 0 of each handshake.
    handshakes: HashMap<Path, [u8; 32]>,
    plaintext: HashSet<(Path, [u8; 32], u64)>,
}

impl Ledger {
    /// Notes a datagram before the server receives it.
    pub fn received(&mut self, path: Path, datagram: &[u8]) {
        let has_cookie =
            |(peer, cookie): &(SocketAddr, Vec<u8>)| *peer == path.peer && contains(datagram, cookie);
        let is_shown = self.cookies.iter().any(has_cookie);
        let traffic = self.paths.entry(path).or_default();
        traffic.received += on_wire(path, datagram);
        traffic.is_shown |= is_shown;
    }

    /// Notes that a path was validated.
    pub fn validated(&mut self, path: Path) {
        self.paths.entry(path).or_default().is_shown = true;
    }

    /// Checks the answers to a datagram from `path`. A client that has not returned a
    /// cookie gets at most one answer, which is no longer than the datagram. `has_session`
    /// is true if a session uses the path; its client may get more.
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

    /// Checks that the datagrams stay within the limit for paths that are not validated.
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

    /// Checks the record numbers and nonces in a datagram from the server: none may be
    /// used twice under the same keys.
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
        // Only handshake records of epoch 0 are checked.
        let (&[22, _, _, 0, 0, a, b, c, d, e, f, ..], Some(message)) = (record, record.get(13..)) else {
            return;
        };
        let number = u64::from_be_bytes([0, 0, a, b, c, d, e, f]);
        match message.first() {
            // A HelloVerifyRequest copies the record number of the hello, so its number
            // may repeat.
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

/// Splits a datagram into its first record, which has no connection ID, and the rest.
fn split_record(datagram: &[u8]) -> Option<(&[u8], &[u8])> {
    let &[_, _, _, _, _, _, _, _, _, _, _, high, low, ..] = datagram else { return None };
    datagram.split_at_checked(13 + usize::from(u16::from_be_bytes([high, low])))
}
