//! A DTLS 1.2 server endpoint for pre-shared keys, without I/O: the time and
//! datagrams come in as arguments, datagrams and events go out. It serves many
//! constrained clients at once and spends nothing on a stranger: until a client
//! has returned a cookie, nothing is kept for it.
//!
//! It does what a server of PSK suites must: RFC 6347 (DTLS 1.2) over RFC 5246,
//! RFC 4279 (PSK), RFC 5489 and RFC 8442 (ECDHE_PSK), RFC 5487 and RFC 6655 (GCM
//! and CCM suites), RFC 5746 (renegotiation_info), RFC 7627 (extended master
//! secret), RFC 9146 (connection ID), RFC 6066 §4 and RFC 8449 (smaller records).
//! It has no
//! certificates, no renegotiation, no resumption and no compression. The
//! cryptographic primitives are RustCrypto's.
//!
//! ```
//! # use std::{net::SocketAddr, time::Instant};
//! # use certdist::dtls::{Config, Datagram, Endpoint, Event, Psk};
//! # fn example(peer: SocketAddr, mut bytes: Vec<u8>) -> Option<()> {
//! let now = Instant::now();
//! let mut endpoint = Endpoint::new(Config::default(), now, &[1; 32], [2; 32]);
//! let mut outgoing: Vec<(SocketAddr, Vec<u8>)> = Vec::new();
//!
//! let mut datagram = Datagram::new(peer, &mut bytes);
//! while let Some(received) = endpoint.receive(now, &mut datagram, &mut outgoing) {
//!     let answer = received.data.to_vec();
//!     endpoint.send(received.session, &answer, &mut outgoing);
//! }
//! while let Some(event) = endpoint.poll_event() {
//!     if let Event::PskNeeded { handshake, .. } = event {
//!         let key = Psk::new(vec![7; 16])?;
//!         endpoint.provide_psk(now, handshake, Some((key, "who it is")), &mut outgoing);
//!     }
//! }
//! # Some(())
//! # }
//! ```

mod budget;
mod connection;
mod cookie;
mod endpoint;
mod handshake;
mod holders;
mod key_exchange;
mod message;
mod origins;
mod prf;
mod reassembly;
mod record;
mod session;
mod suite;
mod table;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
#[cfg(test)]
mod tests;
mod wire;

use std::{fmt, net::SocketAddr, time::Duration};

use zeroize::Zeroizing;

pub use endpoint::connection_id_prefix;
pub use endpoint::{
    ApplicationData, Counters, Datagram, Delivery, Dropped, Endpoint, HandshakeId, Holder, SessionId,
};
pub use message::alert_name;
pub use suite::Suite;

/// Limits and choices of an [`Endpoint`].
#[derive(Debug, Clone)]
pub struct Config {
    /// Suites in order of preference.
    pub suites: Vec<Suite>,
    /// Refuse a client that does not offer extended master secret (RFC 7627).
    /// Many stacks in the field do not, so it is only `offered` by default.
    pub require_extended_master_secret: bool,
    /// Whether connection IDs (RFC 9146) are handed out, and what they begin with:
    /// by that byte, an endpoint knows its own among those of its neighbours
    /// ([`connection_id_prefix`]).
    pub connection_id_prefix: Option<u8>,
    /// Most sessions held; at the limit the one idle longest is closed.
    pub max_sessions: usize,
    /// Most handshakes in progress; at the limit the oldest is given up.
    pub max_handshakes: usize,
    /// Most of them from one address (of IPv6, a /64); at the limit the oldest of
    /// that address is given up. A factory may be one address.
    pub max_handshakes_per_address: usize,
    /// Computing time for handshakes that came to nothing which one network may have
    /// at once: an IPv4 address, or of IPv6 a /64, with twice as much for a /56 and
    /// four times as much for a /48. A handshake that becomes a session is free.
    pub unfinished_burst: Duration,
    /// The same each second after that.
    pub unfinished_per_second: Duration,
    /// Most sessions of one holder of a key ([`Holder`]); its oldest makes room.
    pub sessions_per_holder: usize,
    /// A handshake without progress for longer is given up. With the timers of RFC 7925
    /// §11, a device repeats a flight after 9, 18 and 36 s.
    pub handshake_timeout: Duration,
    /// A session idle for longer is closed.
    pub session_idle: Duration,
    /// A session ends at its next record when it is older; its client begins a new one.
    pub session_max_age: Duration,
    /// First retransmission time-out; doubled each time (RFC 6347 §4.2.4.1).
    pub retransmission_timeout: Duration,
    /// A cookie is good for one to two of these periods.
    pub cookie_period: Duration,
    /// The longest IP packet that reaches every client unfragmented, in bytes,
    /// [`MIN_PATH_MTU`] or more (RFC 6347 §4.1.1.1). Nothing longer is sent.
    pub path_mtu: usize,
}

/// The least path MTU: what every host takes (RFC 791). The longest flight, with a
/// connection ID of 255 bytes, has half of that.
pub const MIN_PATH_MTU: usize = 576;
/// What the IP header of version 6 and UDP's take of a packet, in bytes.
const IP_AND_UDP: usize = 48;

impl Config {
    /// Longest datagram sent, in bytes.
    fn max_datagram(&self) -> usize {
        self.path_mtu.max(MIN_PATH_MTU) - IP_AND_UDP
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            suites: Suite::ALL.to_vec(),
            require_extended_master_secret: false,
            connection_id_prefix: Some(0),
            max_sessions: 100_000,
            max_handshakes: 32_768,
            max_handshakes_per_address: 16_384,
            unfinished_burst: Duration::from_secs(1),
            unfinished_per_second: Duration::from_millis(50),
            sessions_per_holder: 4,
            handshake_timeout: Duration::from_secs(120),
            session_idle: Duration::from_secs(300),
            session_max_age: Duration::from_secs(86_400),
            retransmission_timeout: Duration::from_secs(1),
            cookie_period: Duration::from_secs(60),
            // IPv6's least MTU (RFC 8200 §5), and so that of most constrained links.
            path_mtu: 1280,
        }
    }
}

/// A pre-shared key of 1–64 bytes; not printed, wiped when dropped.
#[derive(Clone)]
pub struct Psk(Zeroizing<Vec<u8>>);

impl Psk {
    /// Longest key, RFC 4279 §5.4.
    pub const MAX: usize = 64;

    /// `None` unless the key has 1–64 bytes.
    pub fn new(key: Vec<u8>) -> Option<Self> {
        let key = Zeroizing::new(key);
        (1..=Self::MAX).contains(&key.len()).then_some(Self(key))
    }

    /// The key, for whoever computes with it.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Psk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Psk(…)")
    }
}

/// Number that the transport gives to one of the server's own addresses. The default
/// stands for a transport with only one, or for any.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LocalAddress(pub u16);

/// Both ends of the way that a datagram takes: an association is between two
/// addresses, so an answer leaves from the one that was asked (RFC 6347 §4.1.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Path {
    /// The client's address and port.
    pub peer: SocketAddr,
    /// The server's address that the client sends to.
    pub local: LocalAddress,
}

impl From<SocketAddr> for Path {
    fn from(peer: SocketAddr) -> Self {
        Self { peer, local: LocalAddress::default() }
    }
}

/// Destination of datagrams. Called once a datagram, in order.
pub trait Outbox {
    /// Takes a copy of `datagram`, to be sent on `path`.
    fn push(&mut self, path: Path, datagram: &[u8]);
}

impl Outbox for Vec<(SocketAddr, Vec<u8>)> {
    fn push(&mut self, path: Path, datagram: &[u8]) {
        Vec::push(self, (path.peer, datagram.to_vec()));
    }
}

/// What the application learns from [`Endpoint::poll_event`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A client claims this identity: answer with [`Endpoint::provide_psk`], now
    /// or later.
    PskNeeded {
        /// Which handshake waits.
        handshake: HandshakeId,
        /// As the client sent it: 0–128 bytes, not yet authenticated.
        identity: Box<[u8]>,
    },
    /// A client has proven its key; its data may follow.
    Established {
        /// The new session.
        session: SessionId,
        /// Where the client is.
        peer: SocketAddr,
    },
    /// A session is over. Its handle leads nowhere from now on.
    Closed {
        /// Which.
        session: SessionId,
        /// Why.
        reason: Closed,
    },
    /// A network has begun more handshakes that came to nothing than it may, and begins
    /// none for now ([`Config::unfinished_burst`]). At most one such event a second.
    OverBudget {
        /// One of its clients.
        peer: SocketAddr,
    },
    /// A handshake of a client that owns its address came to nothing.
    HandshakeFailed {
        /// Where the client is.
        peer: SocketAddr,
        /// What it claimed to be, if it came that far; not authenticated.
        identity: Option<Box<[u8]>>,
        /// Why.
        reason: Failure,
        /// Further traces of the client, for a log.
        hints: Hints,
    },
}

/// Traces of a client whose handshake came to nothing. None of them is authenticated.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Hints {
    /// The first cipher suites that it offers, as codes, when none of them is ours.
    pub suites: Box<[u16]>,
    /// Length of its identity, when that is longer than 128 bytes.
    pub identity_length: Option<usize>,
    /// Description of a fatal alert that came in its name.
    pub alert: Option<u8>,
}

/// Why a session ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Closed {
    /// The client said close_notify.
    ByPeer,
    /// The client sent a fatal alert of this description.
    ByAlert(u8),
    /// The application called [`Endpoint::close`].
    ByUs,
    /// Idle for too long.
    Idle,
    /// The table was full, and this one was idle longest.
    Evicted,
    /// The same client established a new session from the same address.
    Replaced,
    /// All sequence numbers were used.
    Exhausted,
    /// The key that it was begun with has been taken away.
    Revoked,
    /// It has reached its greatest age.
    Aged,
}

/// Why a handshake came to nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Failure {
    /// A message does not have the form that its RFC gives it.
    #[error("malformed handshake message")]
    Malformed,
    /// The client speaks neither DTLS 1.2 nor a later version.
    #[error("protocol version older than DTLS 1.2")]
    Version,
    /// No suite in common, or no null compression.
    #[error("no common cipher suite")]
    NoCommonSuite,
    /// Required by configuration, not offered by the client.
    #[error("no extended master secret")]
    NoExtendedMasterSecret,
    /// Unknown identity or wrong key: which of them, the client must not learn.
    #[error("unknown PSK identity or wrong key")]
    WrongKey,
    /// Right keys, wrong verify_data: the hellos were altered on the way.
    #[error("Finished does not match the handshake")]
    WrongFinished,
    /// The client went silent.
    #[error("timed out")]
    TimedOut,
    /// The table was full, and this was the oldest.
    #[error("too many handshakes at once")]
    Evicted,
    /// The same client began anew from the same address.
    #[error("begun anew")]
    Replaced,
    /// Too many handshakes from the client's network came to nothing.
    #[error("too many unfinished handshakes from this network")]
    OverBudget,
    /// The system gave no random bytes for an ephemeral key.
    #[error("the system gave no random bytes")]
    NoRandomness,
}

impl Failure {
    /// All of them, in the order in which they are declared.
    pub const ALL: [Self; 11] = [
        Self::Malformed,
        Self::Version,
        Self::NoCommonSuite,
        Self::NoExtendedMasterSecret,
        Self::WrongKey,
        Self::WrongFinished,
        Self::TimedOut,
        Self::Evicted,
        Self::Replaced,
        Self::OverBudget,
        Self::NoRandomness,
    ];

    /// Its name in figures.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::Version => "version",
            Self::NoCommonSuite => "no_common_suite",
            Self::NoExtendedMasterSecret => "no_extended_master_secret",
            Self::WrongKey => "wrong_key",
            Self::WrongFinished => "wrong_finished",
            Self::TimedOut => "timed_out",
            Self::Evicted => "evicted",
            Self::Replaced => "replaced",
            Self::OverBudget => "over_budget",
            Self::NoRandomness => "no_randomness",
        }
    }
}
