//! An established session: its keys, its replay window, and the server's last flight, which is kept
//! until the client is known to have received it. Devices keep their sessions open for minutes
//! after they have fetched their certificates, so there are many sessions and each must be small.

use std::ops::Range;

use super::{
    connection::Connection,
    handshake::Completed,
    holders::Link,
    message,
    prf::VERIFY_DATA,
    record::{self, ContentType, DTLS_1_2, Header, MAX_SEQUENCE, ReplayWindow},
    suite::{BadRecord, KeyBlock, Suite},
};

/// The parts of ChangeCipherSpec and Finished that are needed to send them again.
pub(crate) struct FinalFlight {
    pub(crate) verify_data: [u8; VERIFY_DATA],
    /// message_seq of our Finished.
    pub(crate) message_sequence: u16,
    /// Sequence number of our next record in epoch 0.
    pub(crate) next_record: u64,
}

/// The content of a protected record.
pub(crate) enum Opened {
    /// Data for the application: a range of the payload that is not empty.
    Data(Range<usize>),
    /// An alert: its level and its description.
    Alert(u8, u8),
    /// The client has repeated its Finished, because it did not receive the server's Finished.
    FinishedAgain,
    /// A ClientHello inside the session: a renegotiation, which is refused.
    Renegotiation,
    /// Content that needs no action.
    Nothing,
}

/// Result of an attempt to seal a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sealed {
    /// The buffer holds the record, ready to send.
    Sent,
    /// There was nothing to send.
    Nothing,
    /// The sequence numbers are used up: the session must end.
    Exhausted,
}

/// One established session; `P` is the value that the application bound to it.
pub(crate) struct Session<P> {
    keys: KeyBlock,
    suite: Suite,
    pub(crate) connection: Connection,
    window: ReplayWindow,
    /// Sequence number of our next record in epoch 1.
    next_write: u64,
    /// The server's last flight, kept until the client has shown that it has the server's
    /// Finished.
    final_flight: Option<Box<FinalFlight>>,
    /// Position in the list of its holder's sessions.
    pub(crate) link: Link,
    /// Start of the session, in seconds since the endpoint was created.
    pub(crate) begun: u32,
    /// Set while a request of this session is in progress. A session with this flag is evicted
    /// last.
    pub(crate) is_busy: bool,
    pub(crate) principal: P,
}

impl<P> Session<P> {
    pub(crate) fn new(completed: Completed, link: Link, begun: u32, principal: P) -> Self {
        let Completed { suite, key: _, keys, connection, finished, final_flight } = completed;
        let mut window = ReplayWindow::default();
        window.note(finished);
        Self {
            keys,
            suite,
            connection,
            window,
            next_write: 0,
            final_flight: Some(Box::new(final_flight)),
            link,
            begun,
            is_busy: false,
            principal,
        }
    }

    /// Authenticates and decrypts a record of epoch 1.
    pub(crate) fn open(&mut self, header: Header, payload: &mut [u8]) -> Result<Opened, BadRecord> {
        if !self.window.is_new(header.sequence) {
            return Err(BadRecord);
        }
        let own_id = self.connection.own_id_bytes();
        let (kind, range) = self.keys.client().open(self.suite, header, own_id, payload)?;
        self.window.note(header.sequence);
        let plaintext = payload.get(range.clone()).unwrap_or_default();
        Ok(match (kind, plaintext) {
            (ContentType::ApplicationData, [_, ..]) => {
                // A client sends data only after it has our Finished.
                self.final_flight = None;
                Opened::Data(range)
            }
            (ContentType::Alert, &[level, description]) => Opened::Alert(level, description),
            (ContentType::Handshake, [message::FINISHED, ..]) => Opened::FinishedAgain,
            (ContentType::Handshake, [message::CLIENT_HELLO, ..]) => Opened::Renegotiation,
            _ => Opened::Nothing,
        })
    }

    /// Returns whether this number is higher than the number of every record read so far.
    pub(crate) fn is_newest(&self, sequence: u64) -> bool {
        self.window.is_newest(sequence)
    }

    /// Appends a protected record, unless the sequence numbers are used up: a nonce must
    /// never be used twice (RFC 6347 §4.1).
    pub(crate) fn seal(&mut self, kind: ContentType, plaintext: &[u8], out: &mut Vec<u8>) -> Sealed {
        if self.next_write > MAX_SEQUENCE {
            return Sealed::Exhausted;
        }
        let header = Header { kind, epoch: 1, sequence: self.next_write };
        self.next_write += 1;
        self.keys.server().seal(self.suite, header, self.connection.client_id(), plaintext, out);
        Sealed::Sent
    }

    /// Appends ChangeCipherSpec and Finished if the client may still need them. The
    /// verify_data is the same each time, but the record numbers are new (RFC 6347
    /// §4.2.4).
    pub(crate) fn put_final_flight(&mut self, out: &mut Vec<u8>) -> Sealed {
        let Some(flight) = &mut self.final_flight else { return Sealed::Nothing };
        if flight.next_record > MAX_SEQUENCE {
            return Sealed::Exhausted;
        }
        record::put_plaintext(out, ContentType::ChangeCipherSpec, flight.next_record, DTLS_1_2, &[1]);
        flight.next_record += 1;
        let mut finished = Vec::with_capacity(message::HEADER + VERIFY_DATA);
        message::put_header(&mut finished, message::FINISHED, flight.message_sequence, VERIFY_DATA);
        finished.extend_from_slice(&flight.verify_data);
        self.seal(ContentType::Handshake, &finished, out)
    }

    #[cfg(test)]
    pub(crate) fn set_next_write(&mut self, sequence: u64) {
        self.next_write = sequence;
    }
}
