//! What the hellos agreed on for the records of a session: connection IDs (RFC
//! 9146) and how small the client wants its records (RFC 6066 §4, RFC 8449).

use rand::{Rng, rngs::StdRng};

use super::{
    Path,
    message::ClientHello,
    record::{ConnectionId, MAX_PLAINTEXT},
};

/// Bytes that may be sent to an address that was not tried, for each byte that
/// came from it: the bound that RFC 9000 §8 gives QUIC, for the same reason.
const AMPLIFICATION: usize = 3;

/// Longest connection ID of a client that is agreed on, in bytes. With a longer one the
/// shortest request would not give enough credit for the question whether the client is
/// where it is now; without one it begins anew where it moves.
const MAX_CLIENT_ID: usize = 64;

/// The agreement of one session.
pub(crate) struct Connection {
    max_data: u16,
    /// Few clients have it, so the others pay 8 bytes for it.
    ids: Option<Box<Ids>>,
}

struct Ids {
    own: ConnectionId,
    client: Box<[u8]>,
    /// Address of its handshake, where the client has returned a cookie.
    home: Option<Path>,
    /// Address at which the client was last shown to receive.
    validated: Option<Path>,
    /// Bytes that may still be sent to where the client is now; `None` while that is
    /// where it was shown to receive.
    credit: Option<usize>,
}

impl Connection {
    /// The server's side: our ID begins with `prefix`; without one none are used.
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

    /// Most bytes of data in a record to the client.
    pub(crate) fn max_data(&self) -> usize {
        self.max_data.into()
    }

    /// The ID that records to us bear.
    pub(crate) fn own_id(&self) -> Option<ConnectionId> {
        self.ids.as_ref().map(|ids| ids.own)
    }

    /// The same as bytes; empty when there is none.
    pub(crate) fn own_id_bytes(&self) -> &[u8] {
        self.ids.as_ref().map_or(&[], |ids| &ids.own)
    }

    /// The ID that records to the client bear; may be empty.
    pub(crate) fn client_id(&self) -> &[u8] {
        self.ids.as_ref().map_or(&[], |ids| &ids.client)
    }

    /// Notes the address of the handshake, where the client has returned a cookie.
    pub(crate) fn begin_at(&mut self, path: Path) {
        if let Some(ids) = &mut self.ids {
            (ids.home, ids.validated) = (Some(path), Some(path));
        }
    }

    /// Notes an authenticated record, of so many bytes with the headers below; `moved`
    /// when it brings the client to `path`.
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

    /// Notes that the client, now at `current`, was shown to receive at `path`.
    pub(crate) fn validate(&mut self, path: Path, current: Path) {
        let Some(ids) = &mut self.ids else { return };
        ids.validated = Some(path);
        if path == current {
            ids.credit = None;
        }
    }

    /// Address at which the client was last shown to receive; `None` for a client
    /// without a connection ID, which is always where its handshake was.
    pub(crate) fn validated(&self) -> Option<Path> {
        self.ids.as_ref()?.validated
    }

    /// Returns whether the client was shown to receive where it is now.
    pub(crate) fn is_validated(&self) -> bool {
        self.ids.as_ref().is_none_or(|ids| ids.credit.is_none())
    }

    /// Takes so many bytes, with the headers below, from what may be sent to where the
    /// client is now (RFC 9146 §6: somebody may have sent its record from a victim's
    /// address). `false` when they are too many.
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
