//! One handshake, from a ClientHello whose cookie was good to the client's
//! Finished (RFC 6347 §4.2, RFC 4279 §2). Knows nothing of other handshakes, of
//! addresses and timers: those are the endpoint's.

use rand::{Rng, rngs::StdRng};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::{
    Failure, Psk,
    connection::Connection,
    key_exchange::{EphemeralKey, SharedSecret},
    message::{self, Alert, BadHello, ClientHello, Fragment, ServerHello},
    prf::{Binding, MasterSecret, Sender, VERIFY_DATA},
    reassembly::Reassembly,
    record::{self, ConnectionId, ContentType, DTLS_1_2, Header},
    session::{FinalFlight, Keys},
    suite::Suite,
    wire::{Malformed, Reader},
};

/// Protected records that may wait for the key or for ChangeCipherSpec: the
/// client's Finished, at worst in fragments of a byte each.
const MAX_EARLY: usize = 12;
/// Longest of them, in bytes.
const MAX_EARLY_RECORD: usize = 128;
/// Records that may fail under the handshake's keys. An attacker who guesses
/// keys needs a handshake for each few guesses.
const MAX_BAD_RECORDS: u8 = 3;

/// What the server is ready to agree on.
pub(crate) struct Offer<'a> {
    /// In order of preference.
    pub(crate) suites: &'a [Suite],
    /// Whether a client without extended master secret is refused.
    pub(crate) require_extended_master_secret: bool,
    /// First byte of connection IDs; `None` when none are handed out.
    pub(crate) connection_id_prefix: Option<u8>,
}

/// What came of a message or record.
pub(crate) enum Step {
    /// Nothing that concerns others.
    Continue,
    /// The flight is ready to be sent.
    SendFlight,
    /// The client did not get the flight: it is to be sent again.
    SendFlightAgain,
    /// The key of this identity is needed to go on.
    NeedPsk(Box<[u8]>),
    /// The client's Finished was right: here is the session.
    Complete(Box<Completed>),
    /// The handshake is over; the alert tells the client so.
    Fail(Alert, Failure),
    /// The record was not made with our keys. The alert is sent the first time
    /// only, and the handshake goes on: the record may be an intruder's.
    BadRecord(Option<Alert>),
}

/// What a session begins with.
pub(crate) struct Completed {
    pub(crate) keys: Keys,
    pub(crate) connection: Connection,
    /// Number of the record that carried the client's Finished.
    pub(crate) finished: u64,
    pub(crate) final_flight: FinalFlight,
}

/// How far the handshake is; each stage has just what it needs.
enum Stage {
    /// The ClientHello is not whole yet.
    Hello,
    /// The flight is sent; ClientKeyExchange is expected.
    KeyExchange(Agreed, Option<EphemeralKey>),
    /// The identity is known, its key is asked for.
    Psk(Agreed, Box<[u8]>, Option<SharedSecret>),
    /// Everything is there but ChangeCipherSpec and Finished.
    Finished(Box<[u8]>, MasterSecret, Keys, Connection),
    /// Over; what still arrives is ignored.
    Over,
}

/// What the two hellos settled.
struct Agreed {
    suite: Suite,
    client_random: [u8; 32],
    server_random: [u8; 32],
    extended_master_secret: bool,
    connection: Connection,
}

/// One handshake in progress.
pub(crate) struct Handshake {
    pub(crate) client_random: [u8; 32],
    /// message_seq of the ClientHello with the good cookie.
    hello_sequence: u16,
    /// message_seq of the next message expected from the client.
    next_receive: u16,
    next_send: u16,
    /// Sequence number of our next record in epoch 0.
    next_record: u64,
    transcript: Sha256,
    /// ServerHello and ServerHelloDone, kept to be sent again.
    flight: Vec<u8>,
    reassembly: Reassembly,
    change_cipher_spec: bool,
    early: Vec<(Header, Vec<u8>)>,
    bad_records: u8,
    stage: Stage,
}

impl Handshake {
    /// Begins with the first fragment of a ClientHello whose cookie was good;
    /// `record_sequence` is that of its record.
    pub(crate) fn new(client_random: [u8; 32], hello_sequence: u16, record_sequence: u64) -> Self {
        Self {
            client_random,
            hello_sequence,
            next_receive: hello_sequence,
            // RFC 6347 §4.2.2: after a HelloVerifyRequest, message_seq 0 of the
            // server is spent; it runs level with the client's.
            next_send: hello_sequence,
            // RFC 6347 §4.2.1: the first ServerHello takes the record sequence
            // number of the ClientHello, lest a number be used twice.
            next_record: record_sequence,
            transcript: Sha256::new(),
            flight: Vec::new(),
            reassembly: Reassembly::default(),
            change_cipher_spec: false,
            early: Vec::new(),
            bad_records: 0,
            stage: Stage::Hello,
        }
    }

    /// Whether this ClientHello is the one that began this handshake.
    pub(crate) fn began_with(&self, random: &[u8; 32], sequence: u16) -> bool {
        self.client_random == *random && self.hello_sequence == sequence
    }

    /// Whether the server waits for the client, so that its flight may be lost.
    pub(crate) fn awaits_client(&self) -> bool {
        matches!(self.stage, Stage::KeyExchange(..))
    }

    /// The identity that the client claimed, once it has.
    pub(crate) fn identity(&self) -> Option<&[u8]> {
        match &self.stage {
            Stage::Psk(_, identity, _) | Stage::Finished(identity, ..) => Some(identity),
            _ => None,
        }
    }

    /// The connection ID that the client's records bear, if that was agreed.
    pub(crate) fn connection_id(&self) -> Option<ConnectionId> {
        match &self.stage {
            Stage::KeyExchange(agreed, _) | Stage::Psk(agreed, ..) => agreed.connection.own_id(),
            Stage::Finished(.., connection) => connection.own_id(),
            Stage::Hello | Stage::Over => None,
        }
    }

    /// Takes a fragment of a handshake message of epoch 0.
    pub(crate) fn fragment(
        &mut self,
        fragment: &Fragment<'_>,
        offer: &Offer<'_>,
        random: &mut StdRng,
    ) -> Step {
        if fragment.sequence != self.next_receive {
            // RFC 6347 §4.2.4: the client's flight again means that ours was
            // lost. What lies ahead will be sent again.
            let again = fragment.kind == message::CLIENT_HELLO
                && fragment.sequence == self.hello_sequence
                && fragment.offset == 0
                && matches!(self.stage, Stage::KeyExchange(..));
            return if again { Step::SendFlightAgain } else { Step::Continue };
        }
        let expected = match self.stage {
            Stage::Hello => message::CLIENT_HELLO,
            Stage::KeyExchange(..) => message::CLIENT_KEY_EXCHANGE,
            _ => return Step::Continue,
        };
        if fragment.kind != expected {
            return Step::Continue;
        }
        if fragment.is_whole() {
            self.message(fragment.body, offer, random)
        } else {
            match self.reassembly.add(fragment) {
                Some(body) => self.message(&body, offer, random),
                None => Step::Continue,
            }
        }
    }

    fn message(&mut self, body: &[u8], offer: &Offer<'_>, random: &mut StdRng) -> Step {
        match std::mem::replace(&mut self.stage, Stage::Over) {
            Stage::Hello => self.client_hello(body, offer, random),
            Stage::KeyExchange(agreed, ephemeral) => self.client_key_exchange(body, agreed, ephemeral),
            other => {
                self.stage = other;
                Step::Continue
            }
        }
    }

    fn client_hello(&mut self, body: &[u8], offer: &Offer<'_>, random: &mut StdRng) -> Step {
        let hello = match ClientHello::read(body) {
            Ok(hello) => hello,
            Err(BadHello::Malformed) => return Step::Fail(Alert::DecodeError, Failure::Malformed),
            Err(BadHello::IllegalParameter) => {
                return Step::Fail(Alert::IllegalParameter, Failure::Malformed);
            }
        };
        // DTLS versions count downwards; a client of a later version says 1.2
        // here and the later one in an extension that we do not know.
        if hello.version >> 8 != 0xfe || hello.version > DTLS_1_2 {
            return Step::Fail(Alert::ProtocolVersion, Failure::Version);
        }
        // The cookie was bound to the random of the hello's first fragment.
        if hello.random != self.client_random {
            return Step::Fail(Alert::DecodeError, Failure::Malformed);
        }
        let Some((suite, group)) = hello.choose(offer.suites) else {
            return Step::Fail(Alert::HandshakeFailure, Failure::NoCommonSuite);
        };
        if offer.require_extended_master_secret && !hello.extended_master_secret {
            return Step::Fail(Alert::HandshakeFailure, Failure::NoExtendedMasterSecret);
        }
        let connection = Connection::agree(&hello, offer.connection_id_prefix, random);
        self.hash_message(message::CLIENT_HELLO, body);
        let answer = ServerHello {
            random: random_bytes(random),
            suite,
            extended_master_secret: hello.extended_master_secret,
            secure_renegotiation: hello.secure_renegotiation,
            point_formats: hello.point_formats && group.is_some(),
            size_limit: hello.size_limit,
            connection_id: connection.own_id(),
        };
        self.flight.reserve_exact(96);
        answer.put(&mut self.flight, self.next_send);
        let ephemeral = group.map(|group| EphemeralKey::generate(group, random));
        if let Some(key) = &ephemeral {
            self.next_send = self.next_send.wrapping_add(1);
            message::put_server_key_exchange(&mut self.flight, self.next_send, key);
        }
        self.next_send = self.next_send.wrapping_add(1);
        message::put_server_hello_done(&mut self.flight, self.next_send);
        self.next_send = self.next_send.wrapping_add(1);
        self.transcript.update(&self.flight);
        let agreed = Agreed {
            suite,
            client_random: self.client_random,
            server_random: answer.random,
            extended_master_secret: hello.extended_master_secret,
            connection,
        };
        self.stage = Stage::KeyExchange(agreed, ephemeral);
        Step::SendFlight
    }

    fn client_key_exchange(&mut self, body: &[u8], agreed: Agreed, ephemeral: Option<EphemeralKey>) -> Step {
        let Ok((identity, point)) = message::read_client_key_exchange(body, ephemeral.is_some()) else {
            return Step::Fail(Alert::DecodeError, Failure::Malformed);
        };
        let shared = match ephemeral.zip(point).map(|(key, point)| key.agree(point)).transpose() {
            Ok(shared) => shared,
            Err(Malformed) => return Step::Fail(Alert::IllegalParameter, Failure::Malformed),
        };
        self.hash_message(message::CLIENT_KEY_EXCHANGE, body);
        self.flight = Vec::new();
        self.stage = Stage::Psk(agreed, identity.into(), shared);
        Step::NeedPsk(identity.into())
    }

    /// Notes ChangeCipherSpec. It is not authenticated; it only must have been
    /// there before Finished is looked at (RFC 5246 §7.1).
    pub(crate) fn change_cipher_spec(&mut self) -> Step {
        if !matches!(self.stage, Stage::Psk(..) | Stage::Finished(..)) {
            // Reordered before ClientKeyExchange: remembered all the same.
            if matches!(self.stage, Stage::KeyExchange(..)) {
                self.change_cipher_spec = true;
            }
            return Step::Continue;
        }
        self.change_cipher_spec = true;
        self.replay_early()
    }

    /// Goes on with the key that was asked for.
    pub(crate) fn psk(&mut self, psk: &Psk) -> Step {
        let (agreed, identity, shared) = match std::mem::replace(&mut self.stage, Stage::Over) {
            Stage::Psk(agreed, identity, shared) => (agreed, identity, shared),
            other => {
                self.stage = other;
                return Step::Continue;
            }
        };
        let session_hash = self.transcript_hash();
        let binding = if agreed.extended_master_secret {
            Binding::Session(&session_hash)
        } else {
            Binding::Randoms(&agreed.client_random, &agreed.server_random)
        };
        let master = MasterSecret::from_psk(psk, shared.as_ref(), binding);
        let (read, write) = master.direction_keys(&agreed.client_random, &agreed.server_random);
        let keys = Keys { suite: agreed.suite, read, write };
        self.stage = Stage::Finished(identity, master, keys, agreed.connection);
        self.replay_early()
    }

    /// Takes a record of epoch 1. Before its time it is kept, within bounds.
    pub(crate) fn protected(&mut self, header: Header, payload: &mut [u8]) -> Step {
        match &self.stage {
            Stage::Finished(.., keys, connection) if self.change_cipher_spec => {
                match keys.read.open(keys.suite, header, connection.own_id_bytes(), payload) {
                    Ok((ContentType::Handshake, plaintext)) => {
                        self.finished(header, payload.get(plaintext).unwrap_or_default())
                    }
                    Ok(_) => Step::Continue,
                    Err(_) => {
                        self.bad_records += 1;
                        match self.bad_records {
                            // RFC 4279 §2: a wrong key and an unknown identity alike.
                            1 => Step::BadRecord(Some(Alert::DecryptError)),
                            2..MAX_BAD_RECORDS => Step::BadRecord(None),
                            _ => {
                                self.stage = Stage::Over;
                                Step::BadRecord(None)
                            }
                        }
                    }
                }
            }
            Stage::KeyExchange(..) | Stage::Psk(..) | Stage::Finished(..) => {
                if self.early.len() < MAX_EARLY && payload.len() <= MAX_EARLY_RECORD {
                    self.early.push((header, payload.to_vec()));
                }
                Step::Continue
            }
            Stage::Hello | Stage::Over => Step::Continue,
        }
    }

    /// Whether a record failed under the keys: most likely the client has others.
    pub(crate) fn had_bad_record(&self) -> bool {
        self.bad_records > 0
    }

    /// Whether nothing can come of it any more.
    pub(crate) fn is_over(&self) -> bool {
        matches!(self.stage, Stage::Over)
    }

    fn replay_early(&mut self) -> Step {
        if !self.change_cipher_spec || !matches!(self.stage, Stage::Finished(..)) {
            return Step::Continue;
        }
        let mut step = Step::Continue;
        for (header, mut payload) in std::mem::take(&mut self.early) {
            match self.protected(header, &mut payload) {
                Step::Continue => {}
                Step::BadRecord(None) if matches!(step, Step::BadRecord(_)) => {}
                other => step = other,
            }
        }
        step
    }

    fn finished(&mut self, header: Header, plaintext: &[u8]) -> Step {
        let mut reader = Reader::new(plaintext);
        while !reader.is_empty() {
            let Ok(fragment) = Fragment::read(&mut reader) else {
                return Step::Fail(Alert::DecodeError, Failure::Malformed);
            };
            if fragment.kind != message::FINISHED || fragment.sequence != self.next_receive {
                continue;
            }
            let whole = if fragment.is_whole() {
                Some(fragment.body.to_vec())
            } else {
                self.reassembly.add(&fragment)
            };
            if let Some(body) = whole {
                return self.verify_finished(header, &body);
            }
        }
        Step::Continue
    }

    fn verify_finished(&mut self, header: Header, body: &[u8]) -> Step {
        let Stage::Finished(_, master, keys, connection) = std::mem::replace(&mut self.stage, Stage::Over)
        else {
            return Step::Continue;
        };
        let expected = master.verify_data(Sender::Client, &self.transcript_hash());
        // A client with our keys and another transcript: somebody rewrote the hellos.
        if body.len() != VERIFY_DATA || !bool::from(expected.ct_eq(body)) {
            return Step::Fail(Alert::DecryptError, Failure::WrongFinished);
        }
        self.hash_message(message::FINISHED, body);
        let verify_data = master.verify_data(Sender::Server, &self.transcript_hash());
        let final_flight =
            FinalFlight { verify_data, message_sequence: self.next_send, next_record: self.next_record };
        let completed = Completed { keys, connection, finished: header.sequence, final_flight };
        Step::Complete(Box::new(completed))
    }

    /// Appends the flight, each message in a record of its own: small stacks
    /// read no further than the first message of a record.
    pub(crate) fn put_flight(&mut self, out: &mut Vec<u8>) {
        let mut rest = Reader::new(&self.flight);
        while let Ok(fragment) = Fragment::read(&mut rest) {
            let kind = ContentType::Handshake;
            let header = Header { kind, epoch: 0, sequence: self.next_record };
            record::put_header(out, header, DTLS_1_2, &[], message::HEADER + fragment.body.len());
            message::put_header(out, fragment.kind, fragment.sequence, fragment.length);
            out.extend_from_slice(fragment.body);
            self.next_record += 1;
        }
    }

    /// Appends an alert of epoch 0.
    pub(crate) fn put_alert(&mut self, out: &mut Vec<u8>, alert: Alert) {
        record::put_plaintext(out, ContentType::Alert, self.next_record, DTLS_1_2, &alert.to_wire());
        self.next_record += 1;
    }

    /// RFC 6347 §4.2.6: messages are hashed as if they had come in one fragment.
    fn hash_message(&mut self, kind: u8, body: &[u8]) {
        let mut header = Vec::with_capacity(message::HEADER);
        message::put_header(&mut header, kind, self.next_receive, body.len());
        self.transcript.update(&header);
        self.transcript.update(body);
        self.next_receive = self.next_receive.wrapping_add(1);
        self.reassembly = Reassembly::default();
    }

    fn transcript_hash(&self) -> [u8; 32] {
        self.transcript.clone().finalize().into()
    }
}

fn random_bytes(random: &mut StdRng) -> [u8; 32] {
    let mut bytes = [0; 32];
    random.fill_bytes(&mut bytes);
    bytes
}
