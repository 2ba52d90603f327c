//! A DTLS 1.2 server endpoint for pre-shared keys that performs no I/O: the time and
//! received datagrams come in as arguments; datagrams and events go out. It serves many
//! constrained clients at once and keeps no state for a client that has not yet returned
//! a cookie.
//!
//! It implements what a server needs for PSK suites: RFC 6347 (DTLS 1.2) over RFC 5246,
//! RFC 4279 (PSK), RFC 5489 and RFC 8442 (ECDHE_PSK), RFC 5487 and RFC 6655 (GCM and CCM
//! suites), RFC 5746 (renegotiation_info), RFC 7627 (extended master secret), RFC 9146
//! (connection ID), RFC 6066 §4 and RFC 8449 (smaller records). It has no certificates,
//! no renegotiation, no resumption and no compression. The cryptographic primitives come
//! from RustCrypto and dalek.
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
//!         endpoint.provide_psk(now, handshake, Some((key, "the client's name")), &mut outgoing);
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

/// Configuration of an [`Endpoint`].
#[derive(Debug, Clone)]
pub struct Config {
    /// Suites in order of preference.
    pub suites: Vec<Suite>,
    /// Refuses clients that do not offer extended master secret (RFC 7627). Many deployed
    /// stacks do not, so by default it is used only when offered.
    pub require_extended_master_secret: bool,
    /// First byte of the connection IDs (RFC 9146) that this endpoint hands out, or
    /// `None` to hand out none. When several endpoints share a port, this byte says which
    /// of them a record is for ([`connection_id_prefix`]).
    pub connection_id_prefix: Option<u8>,
    /// Maximum number of sessions; at the limit, one of those idle longest is closed, of
    /// the network that has most.
    pub max_sessions: usize,
    /// Maximum number of handshakes in progress; at the limit the oldest is abandoned.
    pub max_handshakes: usize,
    /// Maximum number of handshakes in progress from one IPv4 address or IPv6 /64; at the
    /// limit the oldest of that address is abandoned. A whole factory may share one
    /// address, so this is large.
    pub max_handshakes_per_address: usize,
    /// CPU time that one network may use at once for handshakes that do not complete. A
    /// network is an IPv4 address or an IPv6 /64; an IPv6 /56 gets twice as much and a
    /// /48 four times as much. A handshake that becomes a session is free.
    pub unfinished_burst: Duration,
    /// CPU time that a network gets back each second after that.
    pub unfinished_per_second: Duration,
    /// Maximum number of sessions of one holder of a key ([`Holder`]); at the limit its
    /// oldest is closed.
    pub sessions_per_holder: usize,
    /// Time without progress after which a handshake is abandoned. With the timers of RFC
    /// 7925 §11, a device repeats a flight after 9, 18 and 36 s.
    pub handshake_timeout: Duration,
    /// Idle time after which a session is closed.
    pub session_idle: Duration,
    /// Age beyond which a session ends at its next record; its client then starts a new
    /// one.
    pub session_max_age: Duration,
    /// First retransmission timeout; doubled each time (RFC 6347 §4.2.4.1).
    pub retransmission_timeout: Duration,
    /// Period of the cookies: a cookie is accepted for one to two periods after it was
    /// made.
    pub cookie_period: Duration,
    /// Longest IP packet, in bytes, that reaches every client unfragmented (RFC 6347
    /// §4.1.1.1), at least [`MIN_PATH_MTU`]. Nothing longer is sent.
    pub path_mtu: usize,
}

/// Smallest path MTU: every IPv4 host accepts packets of this size (RFC 791). The longest
/// flight, with a connection ID of 255 bytes, takes half of it.
pub const MIN_PATH_MTU: usize = 576;
/// Size of the IPv6 and UDP headers, in bytes.
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
            // The minimum MTU of IPv6 (RFC 8200 §5), and so of most constrained links.
            path_mtu: 1280,
        }
    }
}

/// A pre-shared key of 1–64 bytes; never printed, wiped when dropped.
#[derive(Clone)]
pub struct Psk(Zeroizing<Vec<u8>>);

impl Psk {
    /// Longest key in bytes (RFC 4279 §5.4).
    pub const MAX: usize = 64;

    /// Returns `None` unless the key has 1–64 bytes.
    pub fn new(key: Vec<u8>) -> Option<Self> {
        let key = Zeroizing::new(key);
        (1..=Self::MAX).contains(&key.len()).then_some(Self(key))
    }

    /// Returns the bytes of the key.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Psk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Psk(…)")
    }
}

/// Number that the transport assigns to one of the server's own addresses. The default
/// stands for the only address, or for any.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LocalAddress(pub u16);

/// The addresses at both ends of a datagram's path. An association is between two
/// addresses, so an answer leaves from the address that the client sent to (RFC 6347
/// §4.1.1).
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

/// Destination of outgoing datagrams. Called once for each datagram, in order.
pub trait Outbox {
    /// Copies `datagram`, to be sent on `path`.
    fn push(&mut self, path: Path, datagram: &[u8]);
}

impl Outbox for Vec<(SocketAddr, Vec<u8>)> {
    fn push(&mut self, path: Path, datagram: &[u8]) {
        Vec::push(self, (path.peer, datagram.to_vec()));
    }
}

/// An event returned by [`Endpoint::poll_event`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A client claims this identity: answer with [`Endpoint::provide_psk`], now or
    /// later.
    PskNeeded {
        /// The handshake that waits for the key.
        handshake: HandshakeId,
        /// The identity as the client sent it: 0–128 bytes, not yet authenticated.
        identity: Box<[u8]>,
    },
    /// A client has proven that it has the key; its data may follow.
    Established {
        /// The new session.
        session: SessionId,
        /// The client's address.
        peer: SocketAddr,
    },
    /// A session has ended. Its ID is no longer valid.
    Closed {
        /// The session.
        session: SessionId,
        /// The reason.
        reason: Closed,
    },
    /// A network has started too many handshakes that did not complete, and cannot start
    /// another for now ([`Config::unfinished_burst`]). Reported at most once a second.
    OverBudget {
        /// Address of one of its clients.
        peer: SocketAddr,
    },
    /// A handshake failed whose client had returned a valid cookie.
    HandshakeFailed {
        /// The client's address.
        peer: SocketAddr,
        /// The identity it claimed, if it got that far; not authenticated.
        identity: Option<Box<[u8]>>,
        /// The reason.
        reason: Failure,
        /// Further information about the client, for the log.
        hints: Hints,
    },
}

/// Information about a client whose handshake failed. None of it is authenticated.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Hints {
    /// Codes of the first cipher suites it offered, when the server supports none of
    /// them.
    pub suites: Box<[u16]>,
    /// Length of its identity in bytes, when longer than 128.
    pub identity_length: Option<usize>,
    /// Description of a fatal alert sent in its name.
    pub alert: Option<u8>,
}

/// Reason why a session ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Closed {
    /// The client sent close_notify.
    ByPeer,
    /// The client sent a fatal alert of this description.
    ByAlert(u8),
    /// The application called [`Endpoint::close`].
    ByUs,
    /// It was idle for too long.
    Idle,
    /// The session table was full or its holder had too many sessions, and this one was
    /// chosen to make room.
    Evicted,
    /// The same client established a new session from the same address.
    Replaced,
    /// All its sequence numbers were used.
    Exhausted,
    /// The key it started with was revoked.
    Revoked,
    /// It reached the maximum age.
    Aged,
}

/// Reason why a handshake failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Failure {
    /// A message did not have the form that its RFC requires.
    #[error("malformed handshake message")]
    Malformed,
    /// The client speaks neither DTLS 1.2 nor a later version.
    #[error("protocol version older than DTLS 1.2")]
    Version,
    /// No cipher suite in common, or null compression was not offered.
    #[error("no common cipher suite")]
    NoCommonSuite,
    /// The configuration requires extended master secret and the client did not offer it.
    #[error("no extended master secret")]
    NoExtendedMasterSecret,
    /// Unknown identity or wrong key; the client must not learn which.
    #[error("unknown PSK identity or wrong key")]
    WrongKey,
    /// The keys were right but verify_data was not: the hellos were altered in transit.
    #[error("Finished does not match the handshake")]
    WrongFinished,
    /// The client stopped answering.
    #[error("timed out")]
    TimedOut,
    /// There were too many handshakes, and this was the oldest.
    #[error("too many handshakes at once")]
    Evicted,
    /// The same client started another handshake from the same address.
    #[error("replaced by a new handshake")]
    Replaced,
    /// Too many handshakes from the client's network did not complete.
    #[error("too many unfinished handshakes from this network")]
    OverBudget,
    /// The operating system returned no random bytes for an ephemeral key.
    #[error("the operating system returned no random bytes")]
    NoRandomness,
}

impl Failure {
    /// All failures, in the order in which they are declared.
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

    /// Returns the failure's name in metrics.
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
