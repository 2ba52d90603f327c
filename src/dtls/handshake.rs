//! One handshake, from a ClientHello with a valid cookie to the client's Finished (RFC 6347 §4.2,
//! RFC 4279 §2). This module does not know about other handshakes, addresses or timers, which the
//! endpoint handles.
//!
//! Until the client's Finished is verified, anyone can send messages in the client's name.
//! Therefore no unauthenticated message ends a handshake or destroys state that the handshake
//! needs. The result of the hellos is kept until the handshake ends, and invalid messages are
//! silently dropped (RFC 6347 §4.1.2.7). A ClientKeyExchange is only a [`Claim`]: a later claim may
//! replace it until the client's Finished proves it.

use rand::{Rng, rngs::StdRng};
use sha2::{Digest, Sha256};

use super::{
    Failure, Psk,
    candidates::Candidates,
    connection::Connection,
    key_exchange::{EphemeralKey, Group, SharedSecret},
    message::{self, Alert, ClientHello, Fragment, MAX_CLIENT_KEY_EXCHANGE, MAX_IDENTITY, ServerHello},
    prf::{Binding, Sender},
    reassembly::Reassembly,
    record::{self, ConnectionId, ContentType, DTLS_1_2, Header, MAX_SEQUENCE},
    session::FinalFlight,
    suite::{KeyBlock, Suite},
    wire::Reader,
};

/// Maximum number of protected records kept until the key and ChangeCipherSpec arrive. Such records
/// hold the client's Finished, which may come in up to 12 fragments of one byte each.
pub(crate) const MAX_EARLY: usize = 12;
/// Maximum payload in bytes of a record that is kept until the key and ChangeCipherSpec arrive.
const MAX_EARLY_RECORD: usize = 128;
/// Maximum number of the client's suites that are kept for the log when none of them can
/// be chosen.
const MAX_SUITES_REPORTED: usize = 16;

/// Terms on which the server negotiates: its suites and extensions, and limits on the
/// cost.
pub(crate) struct Offer<'a> {
    /// Suites that the server accepts, most preferred first.
    pub(crate) suites: &'a [Suite],
    /// Refuses clients that do not offer the extended master secret.
    pub(crate) require_extended_master_secret: bool,
    /// First byte of the connection IDs that the server hands out; `None` to hand out
    /// none.
    pub(crate) connection_id_prefix: Option<u8>,
    /// Charges the client's network for an operation on an elliptic curve. Returns whether
    /// its budget allows the operation. Called before each operation.
    pub(crate) affords: &'a mut dyn FnMut(Group) -> bool,
    /// Returns whether one more claim may be processed now. The argument is true for an
    /// ephemeral suite. Called before each claim.
    pub(crate) may_claim: &'a mut dyn FnMut(bool) -> bool,
}

/// Result of processing a message or record.
pub(crate) enum Step {
    /// The endpoint has nothing to do.
    Continue,
    /// The message or record was dropped because it was invalid or exceeded a limit. The
    /// endpoint counts it.
    Dropped,
    /// The server's flight is ready to be sent.
    SendFlight,
    /// The client did not receive the server's flight, so the flight must be sent again.
    SendFlightAgain,
    /// The claim with this number needs the key of this identity.
    NeedPsk(u32, Box<[u8]>),
    /// The claim with this number has no key, because its identity is longer than the maximum.
    NoPsk(u32),
    /// The client's Finished was correct: the session can begin.
    Complete(Box<Completed>),
    /// The handshake has failed; the alert is for the client.
    Fail(Alert, Failure),
    /// The server cannot continue now. It sends no alert, and the client may start again.
    GiveUp(Failure),
    /// The record was not protected with the keys of the claim. An attacker may have sent it, so
    /// the handshake continues.
    BadRecord,
}

/// Initial state of a session.
pub(crate) struct Completed {
    pub(crate) suite: Suite,
    /// Index of the key that the client has proven, among those that were provided.
    pub(crate) key: usize,
    pub(crate) keys: KeyBlock,
    pub(crate) connection: Connection,
    /// Sequence number of the record that carried the client's Finished.
    pub(crate) finished: u64,
    pub(crate) final_flight: FinalFlight,
}

/// Stage of the handshake. Each variant holds only the state that its stage needs.
enum Stage {
    /// The ClientHello is not complete yet.
    Hello,
    /// The server has sent its flight and expects ClientKeyExchange, ChangeCipherSpec and
    /// Finished.
    Exchange(Box<Exchange>),
    /// The handshake is over; later messages are ignored.
    Over,
}

/// Result of the two hellos, and the claim being checked.
struct Exchange {
    suite: Suite,
    server_random: [u8; 32],
    extended_master_secret: bool,
    connection: Connection,
    ephemeral: Option<EphemeralKey>,
    /// Hash of the messages up to and including ServerHelloDone.
    transcript: Sha256,
    claims: u32,
    claim: Option<Claim>,
}

/// A ClientKeyExchange, in which the client claims an identity.
struct Claim {
    number: u32,
    identity: Box<[u8]>,
    /// Hash of the messages up to and including the ClientKeyExchange.
    transcript: Sha256,
    /// Session hash (RFC 7627 §3).
    hash: [u8; 32],
    shared: Option<SharedSecret>,
    /// Secrets of the session; `None` until the pre-shared key is provided.
    candidates: Option<Candidates>,
}

/// One handshake in progress.
pub(crate) struct Handshake {
    pub(crate) client_random: [u8; 32],
    /// message_seq of the ClientHello with the valid cookie. ClientKeyExchange has the
    /// next number, and Finished the number after that.
    hello_sequence: u16,
    next_send: u16,
    /// Sequence number of our next record in epoch 0.
    next_record: u64,
    /// The server's flight, from ServerHello to ServerHelloDone, kept for resending.
    flight: Vec<u8>,
    reassembly: Reassembly,
    change_cipher_spec: bool,
    early: Vec<(Header, Vec<u8>)>,
    /// The first suites that the client offers, kept only if none can be chosen.
    suites: Box<[u16]>,
    /// Length in bytes of the last identity that was too long, if any.
    identity_length: Option<usize>,
    stage: Stage,
}

impl Handshake {
    /// Creates the state of a handshake from the first fragment of a ClientHello with a
    /// valid cookie. `hello_sequence` is the message_seq of the hello, and
    /// `record_sequence` is the sequence number of the record that carried the fragment.
    pub(crate) fn new(client_random: [u8; 32], hello_sequence: u16, record_sequence: u64) -> Self {
        Self {
            client_random,
            hello_sequence,
            // RFC 6347 §4.2.2: each earlier hello was answered with one
            // HelloVerifyRequest, so the server's next message has the same message_seq as
            // this hello.
            next_send: hello_sequence,
            // RFC 6347 §4.2.1: each HelloVerifyRequest had the record sequence number of the
            // ClientHello that it answered. The ServerHello also has the number of its ClientHello,
            // so that no number is used twice.
            next_record: record_sequence,
            flight: Vec::new(),
            reassembly: Reassembly::default(),
            change_cipher_spec: false,
            early: Vec::new(),
            suites: Box::default(),
            identity_length: None,
            stage: Stage::Hello,
        }
    }

    /// Returns whether a ClientHello with this random and message_seq started this
    /// handshake.
    pub(crate) fn began_with(&self, random: &[u8; 32], sequence: u16) -> bool {
        self.client_random == *random && self.hello_sequence == sequence
    }

    /// Returns whether the server has sent its flight and waits for the client's flight.
    /// In that case, the server's flight may have been lost.
    pub(crate) fn awaits_client(&self) -> bool {
        matches!(&self.stage, Stage::Exchange(exchange) if exchange.claim.is_none())
    }

    /// Returns the identity that the client claimed last, if any, cut to 128 bytes.
    pub(crate) fn identity(&self) -> Option<&[u8]> {
        match &self.stage {
            Stage::Exchange(exchange) => exchange.claim.as_ref().map(|claim| &*claim.identity),
            Stage::Hello | Stage::Over => None,
        }
    }

    /// Returns details of a failed handshake for the log. The first part is the first suites that
    /// the client offers; it is empty unless none of them can be chosen. The second part is the
    /// length of the client's identity, if the identity is longer than 128 bytes.
    pub(crate) fn hints(&self) -> (Box<[u16]>, Option<usize>) {
        (self.suites.clone(), self.identity_length)
    }

    /// Returns the connection ID in the client's records, if one was negotiated.
    pub(crate) fn connection_id(&self) -> Option<ConnectionId> {
        match &self.stage {
            Stage::Exchange(exchange) => exchange.connection.own_id(),
            Stage::Hello | Stage::Over => None,
        }
    }

    /// Processes a fragment of a handshake message of epoch 0.
    pub(crate) fn fragment(
        &mut self,
        fragment: &Fragment<'_>,
        offer: &mut Offer<'_>,
        random: &mut StdRng,
    ) -> Step {
        let is_hello = fragment.kind == message::CLIENT_HELLO && fragment.sequence == self.hello_sequence;
        let most = match &self.stage {
            Stage::Hello if is_hello => usize::MAX,
            // RFC 6347 §4.2.4: if the client repeats its flight, the server's flight was lost. A
            // device without entropy sends the same hello after a reboot, and gets the same answer.
            Stage::Exchange(_) if is_hello && fragment.offset == 0 => return Step::SendFlightAgain,
            Stage::Exchange(_)
                if fragment.kind == message::CLIENT_KEY_EXCHANGE
                    && fragment.sequence == self.hello_sequence.wrapping_add(1) =>
            {
                MAX_CLIENT_KEY_EXCHANGE
            }
            // A message that came too early is dropped, because the client will resend it.
            _ => return Step::Continue,
        };
        if fragment.length > most {
            return Step::Dropped;
        }
        if fragment.is_whole() {
            return self.message(fragment.body, offer, random);
        }
        let Some(body) = self.reassembly.add(fragment) else { return Step::Continue };
        let awaits_hello = matches!(self.stage, Stage::Hello);
        match self.message(&body, offer, random) {
            // Only the first fragment contains the cookie. Anyone may have sent the later
            // fragments, so the handshake drops them and waits for the client's own.
            Step::Fail(_, Failure::Malformed) if awaits_hello => {
                self.stage = Stage::Hello;
                Step::Dropped
            }
            step => step,
        }
    }

    fn message(&mut self, body: &[u8], offer: &mut Offer<'_>, random: &mut StdRng) -> Step {
        self.reassembly = Reassembly::default();
        match self.stage {
            Stage::Hello => self.client_hello(body, offer, random),
            Stage::Exchange(_) => self.client_key_exchange(body, offer),
            Stage::Over => Step::Continue,
        }
    }

    fn client_hello(&mut self, body: &[u8], offer: &mut Offer<'_>, random: &mut StdRng) -> Step {
        self.stage = Stage::Over;
        let hello = match ClientHello::read(body) {
            Ok(hello) => hello,
            Err(bad) => return Step::Fail(bad.alert(), Failure::Malformed),
        };
        // DTLS version numbers count downwards. A client that supports a later version
        // states 1.2 here, and the later version in an extension that we ignore.
        if hello.version >> 8 != 0xfe || hello.version > DTLS_1_2 {
            return Step::Fail(Alert::ProtocolVersion, Failure::Version);
        }
        // The cookie was checked against the random in the first fragment, so the whole hello must
        // have the same random.
        if hello.random != self.client_random {
            return Step::Fail(Alert::DecodeError, Failure::Malformed);
        }
        let Some((suite, group)) = hello.choose(offer.suites) else {
            self.suites = hello.suites().take(MAX_SUITES_REPORTED).collect();
            return Step::Fail(Alert::HandshakeFailure, Failure::NoCommonSuite);
        };
        if offer.require_extended_master_secret && !hello.extended_master_secret {
            return Step::Fail(Alert::HandshakeFailure, Failure::NoExtendedMasterSecret);
        }
        if group.is_some_and(|group| !(offer.affords)(group)) {
            return Step::GiveUp(Failure::OverBudget);
        }
        let Ok(ephemeral) = group.map(EphemeralKey::generate).transpose() else {
            return Step::GiveUp(Failure::NoRandomness);
        };
        let connection = Connection::agree(&hello, offer.connection_id_prefix, random);
        let mut transcript = Sha256::new();
        hash_message(&mut transcript, message::CLIENT_HELLO, self.hello_sequence, body);
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
        if let Some(key) = &ephemeral {
            self.next_send = self.next_send.wrapping_add(1);
            message::put_server_key_exchange(&mut self.flight, self.next_send, key);
        }
        self.next_send = self.next_send.wrapping_add(1);
        message::put_server_hello_done(&mut self.flight, self.next_send);
        self.next_send = self.next_send.wrapping_add(1);
        transcript.update(&self.flight);
        self.stage = Stage::Exchange(Box::new(Exchange {
            suite,
            server_random: answer.random,
            extended_master_secret: hello.extended_master_secret,
            connection,
            ephemeral,
            transcript,
            claims: 0,
            claim: None,
        }));
        Step::SendFlight
    }

    fn client_key_exchange(&mut self, body: &[u8], offer: &mut Offer<'_>) -> Step {
        let Stage::Exchange(exchange) = &mut self.stage else { return Step::Continue };
        let Ok((identity, point)) = message::read_client_key_exchange(body, exchange.ephemeral.is_some())
        else {
            return Step::Dropped;
        };
        let mut transcript = exchange.transcript.clone();
        let sequence = self.hello_sequence.wrapping_add(1);
        hash_message(&mut transcript, message::CLIENT_KEY_EXCHANGE, sequence, body);
        let hash = transcript.clone().finalize().into();
        if exchange.claim.as_ref().is_some_and(|claim| claim.hash == hash) {
            return Step::Continue;
        }
        if !(offer.may_claim)(exchange.ephemeral.is_some()) {
            return Step::Dropped;
        }
        let ephemeral = exchange.ephemeral.as_ref().zip(point);
        // The curve operation of the first claim was already charged when the hello
        // arrived.
        if let Some((key, _)) = ephemeral
            && exchange.claims > 0
            && !(offer.affords)(key.group())
        {
            return Step::Dropped;
        }
        exchange.claims = exchange.claims.wrapping_add(1);
        let Ok(shared) = ephemeral.map(|(key, point)| key.agree(point)).transpose() else {
            return Step::Dropped;
        };
        let (number, reported) = (exchange.claims, identity.get(..MAX_IDENTITY).unwrap_or(identity));
        exchange.claim =
            Some(Claim { number, identity: reported.into(), transcript, hash, shared, candidates: None });
        if identity.len() > MAX_IDENTITY {
            self.identity_length = Some(identity.len());
            return Step::NoPsk(number);
        }
        Step::NeedPsk(number, identity.into())
    }

    /// Processes ChangeCipherSpec. ChangeCipherSpec is not authenticated. Its only effect is that
    /// Finished may be read from now on (RFC 5246 §7.1).
    pub(crate) fn change_cipher_spec(&mut self) -> Step {
        // The network may deliver ChangeCipherSpec before ClientKeyExchange, so no claim is
        // required here.
        if matches!(self.stage, Stage::Exchange(_)) {
            self.change_cipher_spec = true;
        }
        self.replay_early()
    }

    /// Returns whether the claim with this number still waits for its key.
    pub(crate) fn awaits_psk(&self, number: u32) -> bool {
        matches!(&self.stage, Stage::Exchange(exchange)
            if exchange.claim.as_ref().is_some_and(|claim| claim.number == number && claim.candidates.is_none()))
    }

    /// Drops a claim whose key cannot be looked up now; the client will repeat it.
    pub(crate) fn postpone(&mut self, number: u32) {
        if self.awaits_psk(number)
            && let Stage::Exchange(exchange) = &mut self.stage
        {
            exchange.claim = None;
        }
    }

    /// Continues the claim with this number, using the keys that its client may have.
    pub(crate) fn psk(&mut self, number: u32, psks: (&Psk, Option<&Psk>)) -> Step {
        let Stage::Exchange(exchange) = &mut self.stage else { return Step::Continue };
        let Some(claim) = exchange.claim.as_mut().filter(|claim| claim.number == number) else {
            return Step::Continue;
        };
        let binding = if exchange.extended_master_secret {
            Binding::Session(&claim.hash)
        } else {
            Binding::Randoms(&self.client_random, &exchange.server_random)
        };
        let randoms = [&self.client_random, &exchange.server_random];
        claim.candidates = Some(Candidates::derive(psks, claim.shared.take().as_ref(), binding, randoms));
        self.replay_early()
    }

    /// Processes a record of epoch 1. A record that arrives before the keys or before
    /// ChangeCipherSpec is kept, within the limits of [`MAX_EARLY`] and
    /// `MAX_EARLY_RECORD`.
    pub(crate) fn protected(&mut self, header: Header, payload: &mut [u8]) -> Step {
        let Stage::Exchange(exchange) = &self.stage else { return Step::Continue };
        let candidates = exchange.claim.as_ref().and_then(|claim| claim.candidates.as_ref());
        let Some(candidates) = candidates.filter(|_| self.change_cipher_spec) else {
            if payload.len() > MAX_EARLY_RECORD {
                return Step::Dropped;
            }
            // When the list is full, the oldest record makes room, so that an attacker who sends
            // records first cannot crowd out the client's records.
            let is_full = self.early.len() >= MAX_EARLY;
            if is_full {
                self.early.remove(0);
            }
            self.early.push((header, payload.to_vec()));
            return if is_full { Step::Dropped } else { Step::Continue };
        };
        match candidates.open(exchange.suite, header, exchange.connection.own_id_bytes(), payload) {
            Some((key, ContentType::Handshake, plaintext)) => {
                self.finished(header, key, payload.get(plaintext).unwrap_or_default())
            }
            Some(_) => Step::Continue,
            None => Step::BadRecord,
        }
    }

    fn replay_early(&mut self) -> Step {
        let Stage::Exchange(exchange) = &self.stage else { return Step::Continue };
        let has_keys = exchange.claim.as_ref().is_some_and(|claim| claim.candidates.is_some());
        if !self.change_cipher_spec || !has_keys {
            return Step::Continue;
        }
        let mut step = Step::Continue;
        for (header, mut payload) in std::mem::take(&mut self.early) {
            match self.protected(header, &mut payload) {
                Step::Continue | Step::Dropped => {}
                // A bad record among the kept records does not replace the result of a good record.
                Step::BadRecord if !matches!(step, Step::Continue) => {}
                other => step = other,
            }
        }
        step
    }

    fn finished(&mut self, header: Header, key: usize, plaintext: &[u8]) -> Step {
        let sequence = self.hello_sequence.wrapping_add(2);
        let mut reader = Reader::new(plaintext);
        while !reader.is_empty() {
            let Ok(fragment) = Fragment::read(&mut reader) else {
                return self.refuse(Alert::DecodeError, Failure::Malformed);
            };
            if fragment.kind != message::FINISHED || fragment.sequence != sequence {
                continue;
            }
            if fragment.is_whole() {
                return self.verify_finished(header, key, fragment.body);
            }
            let Stage::Exchange(exchange) = &mut self.stage else { return Step::Continue };
            let candidates = exchange.claim.as_mut().and_then(|claim| claim.candidates.as_mut());
            if let Some(body) = candidates.and_then(|all| all.add_finished(key, &fragment)) {
                return self.verify_finished(header, key, &body);
            }
        }
        Step::Continue
    }

    /// Ends the handshake because of an invalid message that was protected with the client's only
    /// possible key. If the client may have either of two keys, the message may come from someone
    /// who has the other key, such as a thief of the key that is being replaced. In that case, the
    /// message counts as a bad record, and the handshake continues.
    fn refuse(&mut self, alert: Alert, failure: Failure) -> Step {
        if let Stage::Exchange(exchange) = &self.stage
            && let Some(Claim { candidates: Some(candidates), .. }) = &exchange.claim
            && candidates.are_two()
        {
            return Step::BadRecord;
        }
        self.stage = Stage::Over;
        Step::Fail(alert, failure)
    }

    fn verify_finished(&mut self, header: Header, key: usize, body: &[u8]) -> Step {
        let Stage::Exchange(exchange) = &self.stage else { return Step::Continue };
        let Some(Claim { hash, candidates: Some(candidates), .. }) = &exchange.claim else {
            return Step::Continue;
        };
        // If verify_data is wrong, the client has the same keys but a different transcript,
        // because an attacker has changed the hellos in transit.
        if !candidates.verifies(key, hash, body) {
            return self.refuse(Alert::DecryptError, Failure::WrongFinished);
        }
        let Stage::Exchange(exchange) = std::mem::replace(&mut self.stage, Stage::Over) else {
            return Step::Continue;
        };
        let Exchange { suite, connection, claim, .. } = *exchange;
        let Some(Claim { mut transcript, candidates: Some(candidates), .. }) = claim else {
            return Step::Continue;
        };
        let Some((master, keys)) = candidates.into_proven(key) else { return Step::Continue };
        hash_message(&mut transcript, message::FINISHED, self.hello_sequence.wrapping_add(2), body);
        let verify_data = master.verify_data(Sender::Server, &transcript.finalize().into());
        let final_flight =
            FinalFlight { verify_data, message_sequence: self.next_send, next_record: self.next_record };
        let finished = header.sequence;
        Step::Complete(Box::new(Completed { suite, key, keys, connection, finished, final_flight }))
    }

    /// Appends the server's flight. Each message gets a record of its own, because some
    /// small stacks read only the first message of a record.
    pub(crate) fn put_flight(&mut self, out: &mut Vec<u8>) {
        let flight = std::mem::take(&mut self.flight);
        let mut rest = Reader::new(&flight);
        let mut records = 0;
        while Fragment::read(&mut rest).is_ok() {
            records += 1;
        }
        // RFC 6347 §4.1: sequence numbers do not wrap. After the flight, ChangeCipherSpec needs one
        // more number. If the hello's record number is so high that too few numbers are left, no
        // part of the flight is sent.
        if self.next_record + records > MAX_SEQUENCE {
            self.flight = flight;
            return;
        }
        let mut rest = Reader::new(&flight);
        while let Ok(fragment) = Fragment::read(&mut rest) {
            let Some(sequence) = self.take_record_number() else { break };
            let header = Header { kind: ContentType::Handshake, epoch: 0, sequence };
            record::put_header(out, header, DTLS_1_2, &[], message::HEADER + fragment.body.len());
            message::put_header(out, fragment.kind, fragment.sequence, fragment.length);
            out.extend_from_slice(fragment.body);
        }
        self.flight = flight;
    }

    /// Appends an alert of epoch 0.
    pub(crate) fn put_alert(&mut self, out: &mut Vec<u8>, alert: Alert) {
        let Some(sequence) = self.take_record_number() else { return };
        record::put_plaintext(out, ContentType::Alert, sequence, DTLS_1_2, &alert.to_wire());
    }

    /// Returns the next record sequence number, or `None` when the numbers are used up.
    /// They do not wrap (RFC 6347 §4.1).
    fn take_record_number(&mut self) -> Option<u64> {
        let number = self.next_record;
        self.next_record += 1;
        (number <= MAX_SEQUENCE).then_some(number)
    }
}

/// Adds a message to the transcript hash as if it had come in one fragment (RFC 6347
/// §4.2.6).
fn hash_message(transcript: &mut Sha256, kind: u8, sequence: u16, body: &[u8]) {
    let mut header = Vec::with_capacity(message::HEADER);
    message::put_header(&mut header, kind, sequence, body.len());
    transcript.update(&header);
    transcript.update(body);
}

fn random_bytes(random: &mut StdRng) -> [u8; 32] {
    let mut bytes = [0; 32];
    random.fill_bytes(&mut bytes);
    bytes
}
