//! Parameters of a session that the two hellos negotiate: connection IDs (RFC 9146) and a
//! limit on the record size (RFC 6066 §4, RFC 8449).

use rand::{Rng, rngs::StdRng};

use super::{
    Path,
    message::ClientHello,
    record::{ConnectionId, MAX_PLAINTEXT},
};

/// Number of bytes that may be sent to an address that is not validated, for each byte received
/// from it. With this limit, an attacker cannot use the server to amplify traffic to a victim. RFC
/// 9000 §8 sets the same limit for QUIC.
const AMPLIFICATION: usize = 3;

/// Longest client connection ID that is accepted, in bytes. With a longer ID, the server could not
/// send the message that validates a new address, because this message would be more than
/// [`AMPLIFICATION`] times as long as the shortest request. The server therefore gives no ID to a
/// client with a longer ID, and this client starts a new handshake when its address changes.
const MAX_CLIENT_ID: usize = 64;

/// The negotiated parameters of one session.
pub(crate) struct Connection {
    max_data: u16,
    /// Boxed because few clients use connection IDs. For all other clients, this field
    /// takes only 8 bytes.
    ids: Option<Box<Ids>>,
}

struct Ids {
    own: ConnectionId,
    client: Box<[u8]>,
    /// Path of the handshake, on which the client returned a cookie.
    home: Option<Path>,
    /// Path that was validated last: the client has shown that it receives datagrams there.
    validated: Option<Path>,
    /// Number of bytes that may still be sent on the client's current path. `None` (no
    /// limit) if that path is validated.
    credit: Option<usize>,
}

impl Connection {
    /// Negotiates the parameters for a client's hello. The server's connection ID begins
    /// with `prefix`. Without a prefix, no IDs are used.
    pub(crate) fn agree(hello: &ClientHello<'_>, prefix: Option<u8>, random: &mut StdRng) -> Self {
        let client_id = hello.connection_id.filter(|id| id.len() <= MAX_CLIENT_ID);
        let ids = client_id.zip(prefix).map(|(client, prefix)| {
            let mut own = [0; size_of::<ConnectionId>()];
            random.fill_bytes(&mut own);
            own[0] = prefix;
            Box::new(Ids { own, client: client.into(), home: None, validated: None, credit: None })
        });
        Self { max_data: hello.size_limit.map_or(MAX_PLAINTEXT as u16, |limit| limit.bytes()), ids }
    }

    /// Returns the maximum number of data bytes that a record to the client may hold.
    pub(crate) fn max_data(&self) -> usize {
        self.max_data.into()
    }

    /// Returns the connection ID that the client's records carry.
    pub(crate) fn own_id(&self) -> Option<ConnectionId> {
        self.ids.as_ref().map(|ids| ids.own)
    }

    /// Returns the connection ID that the client's records carry, as bytes; empty if there
    /// is none.
    pub(crate) fn own_id_bytes(&self) -> &[u8] {
        self.ids.as_ref().map_or(&[], |ids| &ids.own)
    }

    /// Returns the connection ID for records to the client; may be empty.
    pub(crate) fn client_id(&self) -> &[u8] {
        self.ids.as_ref().map_or(&[], |ids| &ids.client)
    }

    /// Records the path of the handshake as validated, because the client returned a cookie on it.
    pub(crate) fn begin_at(&mut self, path: Path) {
        if let Some(ids) = &mut self.ids {
            (ids.home, ids.validated) = (Some(path), Some(path));
        }
    }

    /// Notes an authenticated record that arrived on `path`. The record took `bytes` on the wire,
    /// including the IP and UDP headers. `moved` is true if this record moved the client to `path`.
    pub(crate) fn received(&mut self, path: Path, bytes: usize, moved: bool) {
        let Some(ids) = &mut self.ids else { return };
        let gained = bytes.saturating_mul(AMPLIFICATION);
        ids.credit = match ids.credit {
            _ if moved && (ids.validated == Some(path) || ids.home == Some(path)) => None,
            _ if moved => Some(gained),
            Some(credit) => Some(credit.saturating_add(gained)),
            None => None,
        };
    }

    /// Marks `path` as validated: the client has shown that it receives datagrams there. The
    /// client's current path is `current`.
    pub(crate) fn validate(&mut self, path: Path, current: Path) {
        let Some(ids) = &mut self.ids else { return };
        ids.validated = Some(path);
        if path == current {
            ids.credit = None;
        }
    }

    /// Returns the path that was validated last. Returns `None` for a client without a connection
    /// ID; such a client never leaves the path of its handshake.
    pub(crate) fn validated(&self) -> Option<Path> {
        self.ids.as_ref()?.validated
    }

    /// Returns whether the client's current path is validated.
    pub(crate) fn is_validated(&self) -> bool {
        self.ids.as_ref().is_none_or(|ids| ids.credit.is_none())
    }

    /// Spends `bytes`, which include the IP and UDP headers, from the credit for the
    /// client's current path. Returns whether the credit was enough. The credit limits the
    /// traffic that an attacker can direct at a victim by sending one of the client's records
    /// from the victim's address (RFC 9146 §6).
    pub(crate) fn may_send(&mut self, bytes: usize) -> bool {
        let Some(credit) = self.ids.as_mut().and_then(|ids| ids.credit.as_mut()) else { return true };
        match credit.checked_sub(bytes) {
            Some(left) => {
                *credit = left;
                true
            }
            None => false,
        }
    }
}
