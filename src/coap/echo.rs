//! The Echo option (RFC 9175) for plain CoAP: whoever asks from an address must
//! first show that it receives there, so that nobody can have answers sent to
//! others. DTLS has its cookie for that; this is for transports without one.

use std::time::{Duration, Instant};

use coap_lite::{CoapOption, MessageType};
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use zeroize::Zeroizing;

use super::{
    Code, Response,
    message::{self, Blocks, ECHO, Head, Incoming},
};

/// A value is good for as long as this, and up to as long again.
const PERIOD: Duration = Duration::from_secs(60);
/// Length of a value, in bytes (RFC 9175 §2.2.1: 1 to 40).
const LENGTH: usize = 8;

/// What to do with a message of a peer that has not shown that it is there.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It has shown it now.
    Verified,
    /// To be answered with this message and forgotten: 4.01 with a fresh value,
    /// shorter than three times the question (RFC 9175 §2.6).
    Challenge(Vec<u8>),
    /// No request: nothing that an endpoint answers at length.
    Pass,
}

/// Makes and checks values. Remembers nothing of any peer.
pub struct Echo {
    secret: Zeroizing<[u8; 32]>,
    made: Instant,
}

impl Echo {
    /// `secret` is random.
    pub fn new(now: Instant, secret: [u8; 32]) -> Self {
        Self { secret: Zeroizing::new(secret), made: now }
    }

    /// Looks at a message that came from `address`, in whatever form the
    /// transport writes one.
    pub fn verify(&self, now: Instant, address: &[u8], message: &[u8]) -> Verdict {
        let Incoming::Request(packet, token) = message::read(message) else { return Verdict::Pass };
        let period = now.saturating_duration_since(self.made).as_secs() / PERIOD.as_secs();
        let values = packet.get_option(CoapOption::Unknown(ECHO));
        let shown = values.and_then(|values| values.front());
        let is_fresh = |shown: &Vec<u8>| {
            let good = |period| self.mac(period, address).verify_truncated_left(shown).is_ok();
            shown.len() == LENGTH && (good(period) || period.checked_sub(1).is_some_and(good))
        };
        if shown.is_some_and(is_fresh) {
            return Verdict::Verified;
        }
        let value = &self.mac(period, address).finalize().into_bytes()[..LENGTH];
        let kind = match packet.header.get_type() {
            MessageType::Confirmable => MessageType::Acknowledgement,
            _ => MessageType::NonConfirmable,
        };
        let head = Head { kind, id: packet.header.message_id, token: &token };
        let response = Response::empty(Code::Unauthorized).with_option(ECHO, value);
        Verdict::Challenge(message::response(&head, &response, Blocks::default(), &[]).to_vec())
    }

    fn mac(&self, period: u64, address: &[u8]) -> Hmac<Sha256> {
        let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(&*self.secret) else {
            unreachable!("HMAC takes any key")
        };
        mac.update(&period.to_be_bytes());
        mac.update(address);
        mac
    }
}

#[cfg(test)]
mod tests {
    use coap_lite::{MessageClass, Packet};

    use super::*;

    const REQUEST: &[u8] = b"\x41\x01\x12\x34T\xb4cert";

    /// A request with the first bytes of the value of a challenge; a client repeats
    /// all of them.
    fn answered(request: &[u8], challenge: &[u8], length: usize) -> Vec<u8> {
        let mut packet = Packet::from_bytes(request).unwrap();
        let challenge = Packet::from_bytes(challenge).unwrap();
        assert_eq!(challenge.header.code, MessageClass::Response(Code::Unauthorized));
        let mut value = challenge.get_option(CoapOption::Unknown(ECHO)).unwrap().front().unwrap().clone();
        value.truncate(length);
        packet.add_option(CoapOption::Unknown(ECHO), value);
        packet.to_bytes().unwrap()
    }

    fn challenge(verdict: Verdict) -> Vec<u8> {
        match verdict {
            Verdict::Challenge(message) => message,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_request_with_the_value_of_the_challenge_is_verified_for_a_while() {
        let now = Instant::now();
        let echo = Echo::new(now, [7; 32]);
        let challenge = challenge(echo.verify(now, b"here", REQUEST));
        assert_eq!(challenge[..5], *b"\x61\x81\x12\x34T");
        assert!(challenge.len() <= 3 * REQUEST.len());
        let again = answered(REQUEST, &challenge, LENGTH);
        for (after, good) in [(0, true), (60, true), (119, true), (120, false)] {
            let verdict = echo.verify(now + Duration::from_secs(after), b"here", &again);
            assert_eq!(verdict == Verdict::Verified, good, "after {after} s");
        }
    }

    #[test]
    fn a_value_of_another_address_or_server_or_length_is_challenged() {
        let now = Instant::now();
        let echo = Echo::new(now, [7; 32]);
        let first = challenge(echo.verify(now, b"here", REQUEST));
        let again = answered(REQUEST, &first, LENGTH);
        challenge(echo.verify(now, b"there", &again));
        challenge(Echo::new(now, [8; 32]).verify(now, b"here", &again));
        challenge(echo.verify(now, b"here", &answered(REQUEST, &first, LENGTH - 1)));
    }

    #[test]
    fn what_is_no_request_passes() {
        let now = Instant::now();
        let echo = Echo::new(now, [7; 32]);
        for message in [&[0x40, 0, 0, 1][..], &[0x60, 0, 0, 1], &[0x70, 0, 0, 1], b"", b"garbage"] {
            assert_eq!(echo.verify(now, b"here", message), Verdict::Pass);
        }
    }
}
