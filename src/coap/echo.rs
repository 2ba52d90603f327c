//! The Echo option (RFC 9175) for plain CoAP. A client must first show that it receives messages at
//! its address, so that an attacker cannot direct answers at a victim. A DTLS client shows this by
//! returning a cookie, so only plain CoAP needs this option.

use std::time::{Duration, Instant};

use coap_lite::{CoapOption, MessageType};
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use zeroize::Zeroizing;

use super::{
    Code, Response,
    message::{self, Blocks, ECHO, Head, Incoming},
};

/// Length of a period. An Echo value is accepted in the period in which it was made and in
/// the next.
const PERIOD: Duration = Duration::from_secs(60);
/// Full length of a value, in bytes. RFC 9175 §2.2.1 allows 1 to 40 bytes.
const LENGTH: usize = 8;
/// Length of the shortest value, in bytes. A challenge with such a value is no longer than
/// the shortest request for `/cert`.
const MIN_LENGTH: usize = 3;
/// Maximum number of wrong values in a period. Once this number is reached, values shorter than
/// [`LENGTH`] are refused until the period ends. Two values are valid at a time, so this many
/// guesses at a value of [`MIN_LENGTH`] succeed with a probability of 1 in 30,000.
const MAX_WRONG: u32 = 256;
/// Bytes that the option takes in addition to its value.
const OVERHEAD: usize = 2;

/// Decision about a message from a peer that has not yet shown that it receives messages at
/// its address.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The peer has now shown that it receives messages at its address.
    Verified,
    /// The caller must answer with this message and keep no state. The message is a 4.01 with a
    /// fresh value. The value is shortened, or left out, so that the answer is no longer than the
    /// request. RFC 9175 §2.6 would allow three times the length of the request.
    Challenge(Vec<u8>),
    /// The message is not a request. The caller may process it, because the answer, if any,
    /// is short.
    Pass,
}

/// Makes and checks Echo values without keeping state for each peer.
pub struct Echo {
    secret: Zeroizing<[u8; 32]>,
    made: Instant,
    /// The current period, and the number of wrong values received in it.
    wrong: (u64, u32),
}

impl Echo {
    /// Creates the checker. `secret` must be random.
    pub fn new(now: Instant, secret: [u8; 32]) -> Self {
        Self { secret: Zeroizing::new(secret), made: now, wrong: (0, 0) }
    }

    /// Checks a message. `address` is the address of the peer that sent it, in any encoding.
    pub fn verify(&mut self, now: Instant, address: &[u8], bytes: &[u8]) -> Verdict {
        let Incoming::Request(packet, token) = message::read(bytes) else { return Verdict::Pass };
        let period = now.saturating_duration_since(self.made).as_secs() / PERIOD.as_secs();
        if self.wrong.0 != period {
            self.wrong = (period, 0);
        }
        let values = packet.get_option(CoapOption::Unknown(ECHO));
        if let Some(shown) = values.and_then(|values| values.front()) {
            let shortest = if self.wrong.1 < MAX_WRONG { MIN_LENGTH } else { LENGTH };
            let good = |period| self.mac(period, address).verify_truncated_left(shown).is_ok();
            if (shortest..=LENGTH).contains(&shown.len())
                && (good(period) || period.checked_sub(1).is_some_and(good))
            {
                return Verdict::Verified;
            }
            self.wrong.1 = self.wrong.1.saturating_add(1);
        }
        let kind = match packet.header.get_type() {
            MessageType::Confirmable => MessageType::Acknowledgement,
            _ => MessageType::NonConfirmable,
        };
        let head = Head { kind, id: packet.header.message_id, token: &token };
        let write = |response: Response| message::response(&head, &response, Blocks::default(), &[]).to_vec();
        let refusal = Response::empty(Code::Unauthorized);
        let bare = write(refusal.clone());
        let room = bytes.len().saturating_sub(bare.len() + OVERHEAD).min(LENGTH);
        if room < MIN_LENGTH {
            return Verdict::Challenge(bare);
        }
        let value = &self.mac(period, address).finalize().into_bytes()[..room];
        Verdict::Challenge(write(refusal.with_option(ECHO, value)))
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

    const REQUEST: &[u8] = b"\x41\x01\x12\x34T\xb4cert\x44sn=1";

    /// Returns the request with an Echo option that holds the first `length` bytes of a challenge's
    /// value. A real client returns the whole value.
    fn answered(request: &[u8], challenge: &[u8], length: usize) -> Vec<u8> {
        let mut packet = Packet::from_bytes(request).unwrap();
        let challenge = Packet::from_bytes(challenge).unwrap();
        assert_eq!(challenge.header.code, MessageClass::from(Code::Unauthorized.byte()));
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
    fn a_request_with_the_value_of_the_challenge_is_verified_for_two_periods() {
        let now = Instant::now();
        let mut echo = Echo::new(now, [7; 32]);
        let challenge = challenge(echo.verify(now, b"here", REQUEST));
        assert_eq!(challenge[..5], *b"\x61\x81\x12\x34T");
        let again = answered(REQUEST, &challenge, LENGTH);
        for (after, good) in [(0, true), (60, true), (119, true), (120, false)] {
            let verdict = echo.verify(now + Duration::from_secs(after), b"here", &again);
            assert_eq!(verdict == Verdict::Verified, good, "after {after} s");
        }
    }

    #[test]
    fn a_value_of_another_address_or_server_or_length_is_challenged() {
        let now = Instant::now();
        let mut echo = Echo::new(now, [7; 32]);
        let first = challenge(echo.verify(now, b"here", REQUEST));
        let again = answered(REQUEST, &first, LENGTH);
        challenge(echo.verify(now, b"there", &again));
        challenge(Echo::new(now, [8; 32]).verify(now, b"here", &again));
        challenge(echo.verify(now, b"here", &answered(REQUEST, &first, MIN_LENGTH - 1)));
    }

    #[test]
    fn a_challenge_is_no_longer_than_the_request() {
        let now = Instant::now();
        let mut echo = Echo::new(now, [7; 32]);
        for token in [0, 1, 8, 13, 64] {
            let head = if token < 13 { vec![0x40 | token, 1, 1, 2] } else { vec![0x4d, 1, 1, 2, token - 13] };
            let head = [&head[..], &vec![7; token.into()]].concat();
            for (options, value) in
                [("", 0), ("\u{11}a", 0), ("\u{33}cer", 0), ("\u{34}cert", 3), ("\u{34}cert\u{44}sn=1", 8)]
            {
                let mut request = [&head[..], options.as_bytes()].concat();
                if let Some(delta) = request.get_mut(head.len()) {
                    // An option delta of 11 makes the first option a Uri-Path.
                    *delta = 0xb0 | (*delta & 15);
                }
                let answer = challenge(echo.verify(now, b"here", &request));
                assert!(answer.len() <= request.len(), "{options} after a token of {token}");
                assert_eq!(answer.len(), head.len() + if value > 0 { OVERHEAD + value } else { 0 });
            }
        }
    }

    #[test]
    fn short_values_are_accepted_until_too_many_were_guessed() {
        let now = Instant::now();
        let mut echo = Echo::new(now, [7; 32]);
        let first = challenge(echo.verify(now, b"here", &REQUEST[..10]));
        let (short, long) = (answered(REQUEST, &first, 3), challenge(echo.verify(now, b"here", REQUEST)));
        let long = answered(REQUEST, &long, LENGTH);
        assert_eq!(echo.verify(now, b"here", &short), Verdict::Verified);
        for _ in 0..MAX_WRONG {
            challenge(echo.verify(now, b"there", &short));
        }
        challenge(echo.verify(now, b"here", &short));
        assert_eq!(echo.verify(now, b"here", &long), Verdict::Verified);
        assert_eq!(echo.verify(now + PERIOD, b"here", &short), Verdict::Verified, "the next period");
    }

    #[test]
    fn a_message_that_is_not_a_request_passes() {
        let now = Instant::now();
        let mut echo = Echo::new(now, [7; 32]);
        for message in [&[0x40, 0, 0, 1][..], &[0x60, 0, 0, 1], &[0x70, 0, 0, 1], b"", b"garbage"] {
            assert_eq!(echo.verify(now, b"here", message), Verdict::Pass);
        }
    }
}
