//! A DTLS 1.2 server endpoint for pre-shared keys. It performs no I/O: the caller passes in the
//! time and the received datagrams, and gets back events and the datagrams to send. It serves many
//! constrained clients at once and keeps no state for a client that has not yet returned a cookie.
//!
//! It implements what a server needs for PSK suites: RFC 6347 (DTLS 1.2) over RFC 5246,
//! RFC 4279 (PSK), RFC 5489 and RFC 8442 (ECDHE_PSK), RFC 5487 and RFC 6655 (GCM and CCM
//! suites), RFC 5746 (renegotiation_info), RFC 7627 (extended master secret), RFC 9146
//! (connection ID), RFC 6066 §4 and RFC 8449 (smaller records). It does not support
//! certificates, renegotiation, resumption or compression. The cryptographic primitives
//! come from RustCrypto and dalek.
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
mod candidates;
mod clean_stack;
mod connection;
mod cookie;
mod endpoint;
mod handshake;
mod holders;
mod key_exchange;
mod keyed_hash;
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
    /// Cipher suites that the server accepts, most preferred first.
    pub suites: Vec<Suite>,
    /// Refuses clients that do not offer the extended master secret (RFC 7627). Off by
    /// default, because many deployed stacks do not offer it.
    pub require_extended_master_secret: bool,
    /// First byte of the connection IDs (RFC 9146) that this endpoint hands out, or `None`
    /// to hand out none. When several endpoints share a port, this byte identifies the
    /// endpoint that a record is for ([`connection_id_prefix`]).
    pub connection_id_prefix: Option<u8>,
    /// Maximum number of sessions. At the limit, a new session evicts one of the sessions
    /// that have been idle longest, preferably one from the network with the most
    /// sessions.
    pub max_sessions: usize,
    /// Maximum number of handshakes in progress; at the limit the oldest is abandoned.
    pub max_handshakes: usize,
    /// Maximum number of handshakes in progress from one IPv4 address or IPv6 /64. At the
    /// limit, the oldest handshake from that address is abandoned. The default is large,
    /// because a whole factory may share one address.
    pub max_handshakes_per_address: usize,
    /// Maximum CPU time that one network may use in a burst for handshakes that do not complete. A
    /// network is an IPv4 address or an IPv6 /64. All networks of an IPv6 /56 together get twice as
    /// much, and all networks of a /48 four times as much. A handshake that becomes a session does
    /// not count.
    pub unfinished_burst: Duration,
    /// CPU time that each network regains per second, until its whole burst is available
    /// again.
    pub unfinished_per_second: Duration,
    /// Maximum number of sessions per holder of a key ([`Holder`]). At the limit, the
    /// holder's oldest session is closed.
    pub sessions_per_holder: usize,
    /// Time without progress after which a handshake is abandoned. The default allows for
    /// the timers of RFC 7925 §11, with which a device repeats a flight after 9, 18 and 36
    /// s.
    pub handshake_timeout: Duration,
    /// Idle time after which a session is closed.
    pub session_idle: Duration,
    /// Maximum age of a session. A session of this age ends when its next record arrives, and its
    /// client then starts a new session.
    pub session_max_age: Duration,
    /// Initial retransmission timeout. It doubles with each retransmission (RFC 6347
    /// §4.2.4.1).
    pub retransmission_timeout: Duration,
    /// Length of a cookie period. A cookie is valid in the period in which it was made and
    /// in the next one.
    pub cookie_period: Duration,
    /// Size in bytes of the largest IP packet that reaches every client unfragmented (RFC
    /// 6347 §4.1.1.1). The endpoint sends no larger packets. Values below [`MIN_PATH_MTU`]
    /// count as [`MIN_PATH_MTU`].
    pub path_mtu: usize,
}

/// Smallest path MTU in bytes. Every IPv4 host accepts packets of this size (RFC 791), and the
/// longest flight fits into half of such a packet.
pub const MIN_PATH_MTU: usize = 576;
/// Size of the IPv6 and UDP headers, in bytes.
const IP_AND_UDP: usize = 48;

impl Config {
    /// Returns the maximum size of a datagram that the endpoint sends, in bytes.
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
            // RFC 8200 §5: every IPv6 link, even in a constrained network, has at least this MTU.
            path_mtu: 1280,
        }
    }
}

/// A pre-shared key of 1–64 bytes. It is never printed, and it is wiped when dropped.
#[derive(Clone)]
pub struct Psk(Zeroizing<Vec<u8>>);

impl Psk {
    /// Longest key in bytes (RFC 4279 §5.4).
    pub const MAX: usize = 64;

    /// Creates a key. Returns `None` unless it has 1–64 bytes.
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

/// Number that the transport assigns to one of the server's own addresses. The default, 0,
/// is for a server that has only one address or does not tell its addresses apart.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LocalAddress(pub u16);

/// The addresses at both ends of a datagram's path. A DTLS association is between two
/// addresses, so an answer must leave from the address that the client sent to (RFC 6347
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

/// Destination of outgoing datagrams. [`push`](Self::push) is called once for each
/// datagram, in the order of sending.
pub trait Outbox {
    /// Copies `datagram`, and sends it on `path`.
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
    /// A client claims this identity. The application answers, immediately or later, with
    /// [`Endpoint::provide_psk`], [`Endpoint::provide_psks`] or [`Endpoint::postpone_psk`].
    PskNeeded {
        /// The handshake that waits for the key.
        handshake: HandshakeId,
        /// The identity as the client sent it: 0–128 bytes, not yet authenticated.
        identity: Box<[u8]>,
    },
    /// A client has proven that it has the key. From now on, the session may deliver data.
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
    /// another one for now ([`Config::unfinished_burst`]). Reported at most once a second
    /// for all networks together.
    OverBudget {
        /// Address of a client in this network.
        peer: SocketAddr,
    },
    /// A handshake failed after its client had returned a valid cookie.
    HandshakeFailed {
        /// The client's address.
        peer: SocketAddr,
        /// The identity that the client claimed, if the handshake got that far. The identity is not
        /// authenticated.
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
    /// Codes of the first cipher suites that the client offered, if the handshake failed
    /// with [`Failure::NoCommonSuite`]; otherwise empty.
    pub suites: Box<[u16]>,
    /// Length of the client's identity in bytes, if it is longer than 128 bytes.
    pub identity_length: Option<usize>,
    /// Description code of a fatal alert that came from the client's address. Someone else may
    /// have sent it, because the alert is not authenticated.
    pub alert: Option<u8>,
}

/// Reason why a session ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Closed {
    /// The client sent close_notify.
    ByPeer,
    /// The client sent a fatal alert with this description code.
    ByAlert(u8),
    /// The application called [`Endpoint::close`] or [`Endpoint::close_oldest`].
    ByUs,
    /// The session was idle for too long.
    Idle,
    /// The session was evicted because the session table was full or its holder had too
    /// many sessions.
    Evicted,
    /// The same client established a new session from the same address.
    Replaced,
    /// All sequence numbers of the session were used.
    Exhausted,
    /// The key that the session started with was revoked.
    Revoked,
    /// The session reached the maximum age.
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
    /// The client offered no suite that the server supports, or did not offer null
    /// compression.
    #[error("no common cipher suite")]
    NoCommonSuite,
    /// The configuration requires extended master secret and the client did not offer it.
    #[error("no extended master secret")]
    NoExtendedMasterSecret,
    /// The identity is unknown or the key is wrong. One reason stands for both cases, so that the
    /// client cannot learn whether the identity exists.
    #[error("unknown PSK identity or wrong key")]
    WrongKey,
    /// The keys were right but verify_data was wrong: someone altered the hellos in transit.
    #[error("Finished does not match the handshake")]
    WrongFinished,
    /// The client stopped answering.
    #[error("timed out")]
    TimedOut,
    /// There were too many handshakes at once, and this handshake was the oldest.
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
