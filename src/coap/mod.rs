//! A CoAP server endpoint (RFC 7252) that performs no I/O: the caller passes in the time and
//! received messages, and gets back messages to send and requests. coap-lite encodes and decodes
//! messages. This module keeps the state of the endpoint: how each message was answered, which
//! requests are in progress, and which messages must be sent again.
//!
//! The transport chooses the type `K`. A value of this type identifies a peer, for example by its
//! DTLS session or its address.

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

/// Content-Formats that certdist uses (IANA, CoAP Content-Formats).
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

/// Limits and times of an [`Endpoint`]. If a description begins with a name in capitals, such as
/// ACK_TIMEOUT, the default is the value that RFC 7252 §4.8 gives under this name.
#[derive(Debug, Clone)]
pub struct Config {
    /// Time from [`Endpoint::defer`] until an unanswered request is acknowledged, so that its
    /// answer is sent separately (RFC 7252 §5.2.2). Must be less than ACK_TIMEOUT (2 s), after
    /// which a client repeats the request.
    pub separate_after: Duration,
    /// ACK_TIMEOUT: first timeout of confirmable messages from this endpoint. For each message,
    /// this time is multiplied by a random factor between 1 and ACK_RANDOM_FACTOR (1.5).
    pub ack_timeout: Duration,
    /// MAX_RETRANSMIT: maximum number of retransmissions of a message.
    pub max_retransmit: u32,
    /// EXCHANGE_LIFETIME: time for which a message ID is remembered.
    pub exchange_lifetime: Duration,
    /// Maximum number of requests of one peer that are in progress or whose answers are
    /// kept for repetition. At the maximum, a new request makes the endpoint drop the
    /// oldest kept answer and remember only the message ID of its request.
    pub max_exchanges: usize,
    /// Longest request body accepted, in bytes. The limit applies to a body in one message and to a
    /// body in blocks.
    pub max_request_body: usize,
    /// Maximum number of block-wise transfers, each kept for `exchange_lifetime`. At the maximum, a
    /// new transfer makes the peer with the most transfers lose its oldest one.
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

/// Destination of outgoing messages. The endpoint calls `push` once for each message, in the order
/// of sending.
pub trait Outbox<K> {
    /// Copies `message` and sends it to `peer`. Returns `false` if the transport does not
    /// send it, because the peer has disconnected or its address is not validated yet.
    fn push(&mut self, peer: K, message: &[u8]) -> bool;

    /// Returns the length of the longest message that can be sent to `peer`, in bytes. A longer
    /// answer is sent in blocks. The default is the length that RFC 7252 §4.6 recommends when
    /// nothing is known about the peer.
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
    /// The transport accepted the answer.
    Sent,
    /// The transport did not accept the answer, or earlier answers must be sent first. The endpoint
    /// keeps the answer. It sends the answer after the earlier answers, when the request is
    /// repeated, or when [`Endpoint::resume`] is called.
    Kept,
    /// The answer will never be sent. The request is unknown or forgotten, or the client wants no
    /// answer (RFC 7967), or even an error is longer than the messages that the client accepts.
    Dropped,
}

impl Delivery {
    fn taken(sent: bool) -> Self {
        if sent { Self::Sent } else { Self::Kept }
    }
}

/// Numbers of requests, answers and transfers that an endpoint has dropped since it was created.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Requests dropped or refused because their peer had too many requests that were in progress
    /// or recently answered.
    pub requests_dropped: u64,
    /// Separate answers that were never acknowledged.
    pub answers_given_up: u64,
    /// Block-wise transfers dropped to make room for others.
    pub transfers_evicted: u64,
}

/// A new request. It is well-formed, it is not a repetition, and it has no unknown critical
/// options.
#[derive(Debug)]
pub struct Request<K> {
    /// Identifies the request. The application passes this ID to [`Endpoint::respond`] with the
    /// response.
    pub exchange: ExchangeId<K>,
    /// Method.
    pub method: Method,
    /// Segments of the path.
    pub path: Vec<String>,
    /// Uri-Query options.
    pub query: Vec<String>,
    /// Content-Format of the payload.
    pub content_format: Option<u16>,
    /// The only Content-Format that the client accepts in the answer.
    pub accept: Option<u16>,
    /// ETags of representations that the client already has (RFC 7252 §5.10.6.2).
    pub etags: Vec<Vec<u8>>,
    /// If-Match options (RFC 7252 §5.10.8.1); an empty one matches any representation.
    pub if_match: Vec<Vec<u8>>,
    /// Set if If-None-Match is present (RFC 7252 §5.10.8.2).
    pub if_none_match: bool,
    /// Payload, which may be empty. In a block-wise transfer, this is the whole body.
    pub payload: Vec<u8>,
}

/// Answer to a request. The payload may hold a secret, so it is never printed, and it is
/// wiped when dropped.
#[derive(Clone)]
pub struct Response {
    /// Response code.
    pub code: Code,
    /// Content-Format of the payload.
    pub content_format: Option<u16>,
    /// Max-Age in seconds (RFC 7252 §5.10.5); in an error, the time after which to retry
    /// (§5.9.3.4).
    pub max_age: Option<u32>,
    /// Largest request payload accepted, in bytes (RFC 7252 §5.9.2.9).
    pub size1: Option<u32>,
    /// Other options, by number, such as ETag and Location-Path.
    pub options: Vec<(u16, Vec<u8>)>,
    /// Payload, which may be empty. If it does not fit into one message, it is sent in
    /// blocks (RFC 7959).
    pub payload: Zeroizing<Vec<u8>>,
}

impl Response {
    /// Creates a response without a payload.
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

    /// Creates a response with the given format and payload.
    pub fn content(content_format: u16, payload: Vec<u8>) -> Self {
        let payload = Zeroizing::new(payload);
        Self { content_format: Some(content_format), payload, ..Self::empty(Code::Content) }
    }

    /// Creates an error with concise problem details (RFC 9290).
    pub fn problem(code: Code, title: &str) -> Self {
        Self { code, ..Self::content(content_format::PROBLEM, problem::details(title)) }
    }

    /// Creates a response that refuses critical options (RFC 7252 §5.4.1) and lists their
    /// numbers (RFC 9290 §3.1).
    pub(crate) fn bad_option(title: &str, numbers: &[u16]) -> Self {
        let details = problem::unprocessed_options(title, numbers);
        Self { code: Code::BadOption, ..Self::content(content_format::PROBLEM, details) }
    }

    /// Returns the response with Max-Age set.
    pub fn with_max_age(self, seconds: u32) -> Self {
        Self { max_age: Some(seconds), ..self }
    }

    /// Returns the response with Size1 set to the largest request payload accepted.
    pub fn with_size1(self, bytes: u32) -> Self {
        Self { size1: Some(bytes), ..self }
    }

    /// Returns the response with one more option.
    pub fn with_option(mut self, number: u16, value: impl Into<Vec<u8>>) -> Self {
        self.options.push((number, value.into()));
        self
    }
}
