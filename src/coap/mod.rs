//! A CoAP server endpoint (RFC 7252) without I/O: the time and messages come in
//! as arguments, messages and requests go out. The wire format is coap-lite's;
//! what is here is what an endpoint must remember: which message was answered
//! and how, what is still being worked on, what must be sent again.
//!
//! A peer is any key `K` that the transport knows it by: a DTLS session, or an
//! address.

mod block;
mod code;
pub mod echo;
mod endpoint;
mod exchanges;
pub mod link;
mod message;
mod outstanding;
mod peers;
pub mod problem;
#[cfg(test)]
mod tests;

use std::time::Duration;

pub use code::{Code, Method};
pub use endpoint::{Endpoint, ExchangeId};
use zeroize::Zeroizing;

/// Content-Formats that certdist speaks (IANA, CoAP Content-Formats).
pub mod content_format {
    /// `text/plain; charset=utf-8`.
    pub const TEXT: u16 = 0;
    /// `application/link-format`, RFC 6690.
    pub const LINK: u16 = 40;
    /// `application/json`.
    pub const JSON: u16 = 50;
    /// `application/cbor`, RFC 8949.
    pub const CBOR: u16 = 60;
    /// `application/concise-problem-details+cbor`, RFC 9290.
    pub const PROBLEM: u16 = 257;
}

/// Limits and times of an [`Endpoint`]; the defaults are RFC 7252 §4.8's.
#[derive(Debug, Clone)]
pub struct Config {
    /// A request that takes longer is acknowledged, and answered separately
    /// (RFC 7252 §5.2.2). Below the ACK_TIMEOUT of 2 s after which a client
    /// would ask again.
    pub separate_after: Duration,
    /// First time-out of our own confirmable messages: ACK_TIMEOUT, times up to
    /// ACK_RANDOM_FACTOR (1.5).
    pub ack_timeout: Duration,
    /// MAX_RETRANSMIT.
    pub max_retransmit: u32,
    /// How long a message ID is remembered: EXCHANGE_LIFETIME.
    pub exchange_lifetime: Duration,
    /// Most requests of one peer that are worked on, or whose answers are kept to be
    /// repeated; beyond, only the message ID of the oldest answered one is.
    pub max_exchanges: usize,
    /// Longest request body taken, in bytes, in one message or in blocks.
    pub max_request_body: usize,
    /// Most block-wise transfers remembered, each for `exchange_lifetime`; beyond,
    /// the oldest of the peer that has most is forgotten.
    pub max_transfers: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            separate_after: Duration::from_secs(1),
            ack_timeout: Duration::from_secs(2),
            max_retransmit: 4,
            exchange_lifetime: Duration::from_secs(247),
            max_exchanges: 16,
            max_request_body: 1024,
            max_transfers: 4096,
        }
    }
}

/// Where messages go. Called once a message, in order.
pub trait Outbox<K> {
    /// Takes a copy of `message`, to be sent to `peer`. Returns whether the transport
    /// sends it: not to a peer that is gone, or whose address is yet to be validated.
    fn push(&mut self, peer: K, message: &[u8]) -> bool;

    /// Longest message that `peer` can be sent, in bytes; what is longer goes in
    /// blocks. RFC 7252 §4.6: 1,152 when nothing is known.
    fn max_message(&self, _peer: K) -> usize {
        1152
    }
}

impl<K> Outbox<K> for Vec<(K, Vec<u8>)> {
    fn push(&mut self, peer: K, message: &[u8]) -> bool {
        Vec::push(self, (peer, message.to_vec()));
        true
    }
}

/// Result of answering a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Delivery {
    /// The transport has taken the answer.
    Sent,
    /// It has not, and the answer is kept: until those before it have had their turn,
    /// the request is repeated, or [`Endpoint::resume`] is called.
    Kept,
    /// It never will: the request is not known (any more), the client wants no answer
    /// (RFC 7967), or takes no message that is long enough.
    Dropped,
}

impl Delivery {
    fn taken(sent: bool) -> Self {
        if sent { Self::Sent } else { Self::Kept }
    }
}

/// What an endpoint has dropped since it was made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Requests of peers that had too many in work, or answered lately.
    pub requests_dropped: u64,
    /// Separate answers that were never acknowledged.
    pub answers_given_up: u64,
    /// Block-wise transfers that made room for others.
    pub transfers_evicted: u64,
}

/// A request that is new: not a repetition, well-formed, and without critical
/// options that the endpoint does not know.
#[derive(Debug)]
pub struct Request<K> {
    /// To be given back with the response.
    pub exchange: ExchangeId<K>,
    /// What to do.
    pub method: Method,
    /// Segments of the path.
    pub path: Vec<String>,
    /// Uri-Query options.
    pub query: Vec<String>,
    /// Content-Format of the payload.
    pub content_format: Option<u16>,
    /// The only Content-Format wanted in the answer.
    pub accept: Option<u16>,
    /// Representations that the client has (RFC 7252 §5.10.6.2).
    pub etags: Vec<Vec<u8>>,
    /// RFC 7252 §5.10.8.1; an empty one stands for any.
    pub if_match: Vec<Vec<u8>>,
    /// RFC 7252 §5.10.8.2.
    pub if_none_match: bool,
    /// May be empty. Of a block-wise transfer, the whole body.
    pub payload: Vec<u8>,
}

/// The answer to a request. Its payload may hold a secret: it is not printed,
/// and wiped when dropped.
#[derive(Clone)]
pub struct Response {
    /// Response code.
    pub code: Code,
    /// Content-Format of the payload.
    pub content_format: Option<u16>,
    /// In seconds; RFC 7252 §5.10.5, and §5.9.3.4 for when to come back.
    pub max_age: Option<u32>,
    /// Largest request payload taken (RFC 7252 §5.9.2.9), in bytes.
    pub size1: Option<u32>,
    /// Other options, by number: ETag, Location-Path, ...
    pub options: Vec<(u16, Vec<u8>)>,
    /// May be empty. What does not fit into a message goes in blocks (RFC 7959).
    pub payload: Zeroizing<Vec<u8>>,
}

impl Response {
    /// A response without a payload.
    pub fn empty(code: Code) -> Self {
        Self {
            code,
            content_format: None,
            max_age: None,
            size1: None,
            options: Vec::new(),
            payload: Zeroizing::default(),
        }
    }

    /// A response of the given format and payload.
    pub fn content(content_format: u16, payload: Vec<u8>) -> Self {
        let payload = Zeroizing::new(payload);
        Self { content_format: Some(content_format), payload, ..Self::empty(Code::Content) }
    }

    /// An error with concise problem details (RFC 9290).
    pub fn problem(code: Code, title: &str) -> Self {
        Self { code, ..Self::content(content_format::PROBLEM, problem::details(title)) }
    }

    /// A refusal of critical options (RFC 7252 §5.4.1), with their numbers (RFC 9290 §3.1).
    pub(crate) fn bad_option(title: &str, numbers: &[u16]) -> Self {
        let details = problem::unprocessed_options(title, numbers);
        Self { code: Code::BadOption, ..Self::content(content_format::PROBLEM, details) }
    }

    /// The same, to be asked again after so many seconds.
    pub fn with_max_age(self, seconds: u32) -> Self {
        Self { max_age: Some(seconds), ..self }
    }

    /// The same, with the largest request payload taken.
    pub fn with_size1(self, bytes: u32) -> Self {
        Self { size1: Some(bytes), ..self }
    }

    /// The same, with one more option.
    pub fn with_option(mut self, number: u16, value: impl Into<Vec<u8>>) -> Self {
        self.options.push((number, value.into()));
        self
    }
}
