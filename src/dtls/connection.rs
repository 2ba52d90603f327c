//! What the hellos agreed on for the records of a session: connection IDs (RFC
//! 9146) and how small the client wants its records (RFC 6066 §4, RFC 8449).

use rand::{Rng, rngs::StdRng};

use super::{
    message::ClientHello,
    record::{ConnectionId, MAX_PLAINTEXT},
};

/// Bytes that may be sent to an address that was not tried, for each byte that
/// came from it: the bound that RFC 9000 §8 gives QUIC, for the same reason.
const AMPLIFICATION: usize = 3;

/// The agreement of one session.
pub(crate) struct Connection {
    max_data: u16,
    /// Few clients have it, so the others pay 8 bytes for it.
    ids: Option<Box<Ids>>,
}

struct Ids {
    own: ConnectionId,
    client: Box<[u8]>,
    /// Bytes that may still be sent to where the client has moved; `None` while
    /// it is where its handshake was.
    credit: Option<usize>,
}

impl Connection {
    /// The server's side: our ID begins with `prefix`; without one none are used.
    pub(crate) fn agree(hello: &ClientHello<'_>, prefix: Option<u8>, random: &mut StdRng) -> Self {
        let ids = hello.connection_id.zip(prefix).map(|(client, prefix)| {
            let mut own = [0; size_of::<ConnectionId>()];
            random.fill_bytes(&mut own);
            own[0] = prefix;
            Box::new(Ids { own, client: client.into(), credit: None })
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

    /// Notes a record of so many bytes; `moved` when the client is at a new
    /// address with it.
    pub(crate) fn received(&mut self, bytes: usize, moved: bool) {
        let Some(ids) = &mut self.ids else { return };
        let gained = bytes.saturating_mul(AMPLIFICATION);
        ids.credit = match ids.credit {
            _ if moved => Some(gained),
            Some(credit) => Some(credit.saturating_add(gained)),
            None => None,
        };
    }

    /// Whether so many bytes may be sent to where the client is now (RFC 9146 §6:
    /// somebody may have sent its record from a victim's address).
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
