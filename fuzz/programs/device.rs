//! A device of a program, and the records that it has sealed.

use std::{collections::HashSet, time::Instant};

use super::{
    ledger::contains,
    reader::Reader,
    server::{IDENTITIES, identity_of, key_of},
};
use crate::dtls::{
    Path, SessionId, Suite,
    testing::{Client, ContentType, Profile},
};

/// A record of application data that a device has sealed.
pub struct Record {
    /// Sequence number in the header of the record.
    pub number: u64,
    bytes: Vec<u8>,
    data: Vec<u8>,
}

impl Record {
    /// Returns whether `datagram` contains this record and `data` is what was sealed in
    /// it.
    pub fn is_in(&self, datagram: &[u8], data: &[u8]) -> bool {
        self.data == data && contains(datagram, &self.bytes)
    }
}

pub struct Device {
    pub client: Client,
    pub at: Path,
    /// Number of the identity that the device claims. `has_key` is true if it has the key
    /// of this identity.
    identity: usize,
    has_key: bool,
    /// The device answers pings and acknowledges separate answers.
    pub is_obliging: bool,
    pub records: Vec<Record>,
    /// Sequence numbers of the records that have reached the application.
    pub delivered: HashSet<u64>,
    /// Session that has delivered these records.
    pub session: Option<SessionId>,
    next_message_id: u16,
    /// Number of messages from the server that were processed.
    seen: usize,
}

impl Device {
    /// Creates a device as a program describes it.
    pub fn read(reader: &mut Reader<'_>, number: usize, at: Path) -> Option<Self> {
        let (identity, kind, id, more) = (reader.byte()?, reader.byte()?, reader.byte()?, reader.byte()?);
        let has_key = identity & 0x80 == 0;
        let identity = usize::from(identity % 8);
        let key = if has_key { key_of(identity) } else { key_of(100) };
        let suite = Suite::ALL[usize::from(kind) % Suite::ALL.len()];
        let mut suites = vec![suite.code(), 0x00ff];
        if more & 1 != 0 {
            suites.extend(Suite::ALL.map(Suite::code));
        }
        let groups = match kind >> 6 {
            0 => vec![29],
            1 => vec![23],
            2 => vec![29, 23],
            _ => Vec::new(),
        };
        let profile = Profile {
            suites,
            groups,
            extended_master_secret: kind & 0x20 == 0,
            connection_id: (id & 1 != 0).then(|| vec![0xc0 | number as u8; usize::from(id >> 1 & 7) * 2]),
            // The extension max_fragment_length, record_size_limit, or none.
            extensions: match more >> 1 & 3 {
                0 => vec![0, 1, 0, 1, 1],
                1 => vec![0, 28, 0, 2, 0, 80],
                _ => Vec::new(),
            },
            session_id: if more & 8 != 0 { vec![9; 32] } else { Vec::new() },
            fragment: match more >> 4 & 3 {
                0 => 30,
                1 => 90,
                _ => usize::MAX,
            },
            reverse: more & 0x40 != 0,
            coalesce: more & 0x80 == 0,
            ..Profile::new(&identity_of(identity), key)
        };
        Some(Self::new(profile, number, at, identity, has_key))
    }

    /// Creates a device with a valid key and no special behaviour.
    pub fn ordinary(at: Path) -> Self {
        Self::new(Profile::new(&identity_of(0), key_of(0)), 200, at, 0, true)
    }

    fn new(profile: Profile, number: usize, at: Path, identity: usize, has_key: bool) -> Self {
        let mut random = [0x11; 32];
        random[0] = number as u8;
        Self {
            client: Client::new(profile, random),
            at,
            identity,
            has_key: has_key && identity < IDENTITIES,
            is_obliging: true,
            records: Vec::new(),
            delivered: HashSet::new(),
            session: None,
            next_message_id: 1,
            seen: 0,
        }
    }

    /// Returns whether a session of this identity may belong to this device.
    pub fn may_be(&self, identity: usize) -> bool {
        self.has_key && self.identity == identity
    }

    pub fn seal(&mut self, kind: ContentType, inside: &[u8]) -> Vec<u8> {
        let record = self.client.seal(kind, inside);
        if kind == ContentType::ApplicationData {
            self.note(&record, inside);
        }
        record
    }

    /// Seals a record with `inside` as its whole plaintext. With a connection ID, the
    /// content type is part of the plaintext and follows the content, before any zeros
    /// (RFC 9146 §4).
    pub fn seal_inner(&mut self, inside: &[u8]) -> Vec<u8> {
        let record = self.client.seal_inner(inside);
        if self.client.server_connection_id().is_empty() {
            self.note(&record, inside);
        } else if let Some(end) = inside.iter().rposition(|&byte| byte != 0)
            && inside[end] == ContentType::ApplicationData as u8
        {
            self.note(&record, &inside[..end]);
        }
        record
    }

    fn note(&mut self, record: &[u8], data: &[u8]) {
        let Some(number) = record.get(5..11) else { return };
        let number = number.iter().fold(0, |number, &byte| number << 8 | u64::from(byte));
        self.records.push(Record { number, bytes: record.to_vec(), data: data.to_vec() });
    }

    pub fn close(&mut self) -> Vec<u8> {
        self.client.close()
    }

    /// Seals a CoAP message under the next message ID, or under the last one again if
    /// `same`.
    pub fn ask(&mut self, mut message: Vec<u8>, same: bool) -> Vec<u8> {
        self.next_message_id += u16::from(!same);
        message[2..4].copy_from_slice(&self.next_message_id.to_be_bytes());
        self.seal(ContentType::ApplicationData, &message)
    }

    /// Processes a datagram. Returns the answers that a device sends.
    pub fn receive(&mut self, now: Instant, datagram: &[u8]) -> Vec<Vec<u8>> {
        let mut answers = self.client.receive(now, datagram);
        for at in std::mem::replace(&mut self.seen, self.client.received.len())..self.client.received.len() {
            // A confirmable message is a ping or a separate answer.
            if let &[first, code, high, low, ..] = &self.client.received[at][..]
                && first & 0x30 == 0
                && self.is_obliging
            {
                let kind = if code == 0 { 0x70 } else { 0x60 };
                answers.push(self.seal(ContentType::ApplicationData, &[kind, 0, high, low]));
            }
        }
        answers
    }
}
