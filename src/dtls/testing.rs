//! A DTLS client without I/O, for tests and benchmarks. It can behave like a normal device, or like
//! a broken or hostile one. This client and the server could share a mistake, which a test of the
//! two together cannot detect. Therefore other tests connect foreign stacks to the server.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use sha2::{Digest, Sha256};

use super::{
    Config, Endpoint, Psk, Suite,
    key_exchange::{self, EphemeralKey, Group, read_params},
    message::{self, Fragment},
    prf::{Binding, MasterSecret, Sender, VERIFY_DATA},
    reassembly::Reassembly,
    record::{self, DTLS_1_2, Header, Record, Records},
    suite::KeyBlock,
    wire::{Reader, put_vector8, put_vector16},
};

pub use super::record::ContentType;

/// Creates an endpoint whose output depends only on its input, because its seed and its cookie
/// secret are fixed. Until the returned [`KnownSecrets`] is dropped, the ephemeral secrets of this
/// thread are fixed, too. Used to record handshakes and to replay them.
pub fn predictable_endpoint<P>(now: Instant) -> (Endpoint<P>, KnownSecrets) {
    key_exchange::known::SECRET.set(Some([0x42; 32]));
    (Endpoint::new(Config::default(), now, &[1; 32], [2; 32]), KnownSecrets(()))
}

/// Guard: until this value is dropped, its thread makes ephemeral keys from a known secret.
pub struct KnownSecrets(());

impl Drop for KnownSecrets {
    fn drop(&mut self) {
        key_exchange::known::SECRET.set(None);
    }
}

/// Behaviour of a [`Client`].
#[derive(Clone)]
pub struct Profile {
    /// PSK identity.
    pub identity: Vec<u8>,
    /// Pre-shared key.
    pub psk: Psk,
    /// Codes of the suites offered.
    pub suites: Vec<u16>,
    /// Offers the extended master secret.
    pub extended_master_secret: bool,
    /// Codes of the groups offered. If empty, the client omits the extension.
    pub groups: Vec<u16>,
    /// Connection ID that the client asks for (RFC 9146); may be empty.
    pub connection_id: Option<Vec<u8>>,
    /// Further extensions of the ClientHello, as bytes.
    pub extensions: Vec<u8>,
    /// session_id of the ClientHello.
    pub session_id: Vec<u8>,
    /// Longest body of a handshake fragment, in bytes. Longer messages are split.
    pub fragment: usize,
    /// Sends the records of a flight in reverse order.
    pub reverse: bool,
    /// Puts all records of a flight into one datagram.
    pub coalesce: bool,
    /// Initial retransmission timeout.
    pub retransmission_timeout: Duration,
}

impl Profile {
    /// Creates the profile of an ordinary device.
    pub fn new(identity: &str, psk: Psk) -> Self {
        Self {
            identity: identity.into(),
            psk,
            suites: vec![Suite::PskAes128Ccm8.code(), 0x00ff],
            extended_master_secret: true,
            groups: Vec::new(),
            connection_id: None,
            extensions: Vec::new(),
            session_id: Vec::new(),
            fragment: usize::MAX,
            reverse: false,
            coalesce: true,
            retransmission_timeout: Duration::from_secs(1),
        }
    }
}

struct Keys {
    suite: Suite,
    block: KeyBlock,
    master: MasterSecret,
}

/// One message of a flight, kept for resending under new record numbers.
enum Part {
    Handshake { epoch: u16, kind: u8, sequence: u16, body: Vec<u8> },
    ChangeCipherSpec,
}

/// The client of one session.
pub struct Client {
    /// Behaviour of the client; may be changed between flights.
    pub profile: Profile,
    /// Application data that the client has received, in order.
    pub received: Vec<Vec<u8>>,
    /// Level and description of the last alert received.
    pub alert: Option<(u8, u8)>,
    /// Number of flights resent.
    pub retransmissions: u32,
    random: [u8; 32],
    server_random: [u8; 32],
    cookie: Vec<u8>,
    transcript: Sha256,
    next_send: u16,
    next_receive: u16,
    reassembly: Reassembly,
    next_record: [u64; 2],
    flight: Vec<Part>,
    resend_at: Option<Instant>,
    resend_after: Duration,
    agreed: Option<(Suite, bool)>,
    /// The server's extensions, by type.
    pub server_extensions: BTreeMap<u16, Vec<u8>>,
    server_point: Option<(Group, Vec<u8>)>,
    group: Option<Group>,
    /// Point to send in an ephemeral suite instead of a valid one.
    pub point: Option<Vec<u8>>,
    keys: Option<Keys>,
    established: bool,
}

impl Client {
    /// Creates a client that has sent nothing yet. `random` is the random of its
    /// ClientHello.
    pub fn new(profile: Profile, random: [u8; 32]) -> Self {
        Self {
            resend_after: profile.retransmission_timeout,
            profile,
            received: Vec::new(),
            alert: None,
            retransmissions: 0,
            random,
            server_random: [0; 32],
            cookie: Vec::new(),
            transcript: Sha256::new(),
            next_send: 0,
            next_receive: 0,
            reassembly: Reassembly::default(),
            next_record: [0; 2],
            flight: Vec::new(),
            resend_at: None,
            agreed: None,
            server_extensions: BTreeMap::new(),
            server_point: None,
            group: None,
            point: None,
            keys: None,
            established: false,
        }
    }

    /// Returns whether the client has received the server's Finished and found it correct.
    pub fn is_established(&self) -> bool {
        self.established
    }

    /// Returns the random of the ServerHello.
    pub fn server_random(&self) -> [u8; 32] {
        self.server_random
    }

    /// Returns the negotiated suite, and whether the extended master secret is in use.
    pub fn agreed(&self) -> Option<(Suite, bool)> {
        self.agreed
    }

    /// Returns the first flight: a ClientHello without a cookie.
    pub fn start(&mut self, now: Instant) -> Vec<Vec<u8>> {
        self.flight.clear();
        self.say(0, message::CLIENT_HELLO, self.client_hello());
        self.send_flight(now)
    }

    /// Returns the time at which [`handle_timeout`](Self::handle_timeout) must be called next, if
    /// any.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.resend_at
    }

    /// Returns the last flight again if it is time to resend it.
    pub fn handle_timeout(&mut self, now: Instant) -> Vec<Vec<u8>> {
        if self.resend_at.is_none_or(|at| at > now) {
            return Vec::new();
        }
        self.retransmissions += 1;
        self.resend_after *= 2;
        self.send_flight(now)
    }

    /// Returns the code of the group used for the ephemeral keys.
    pub fn group(&self) -> Option<u16> {
        self.group.map(|group| group as u16)
    }

    /// Returns the connection ID for records to the server; empty if none was negotiated.
    pub fn server_connection_id(&self) -> &[u8] {
        self.server_extensions.get(&54).and_then(|body| body.get(1..)).unwrap_or_default()
    }

    /// Returns the connection ID for records from the server; empty if none was
    /// negotiated.
    fn own_connection_id(&self) -> &[u8] {
        match &self.profile.connection_id {
            Some(id) if self.server_extensions.contains_key(&54) => id,
            _ => &[],
        }
    }

    /// Returns one record of application data.
    pub fn send(&mut self, data: &[u8]) -> Vec<u8> {
        self.seal(ContentType::ApplicationData, data)
    }

    /// Returns one protected record of any type.
    pub fn seal(&mut self, kind: ContentType, plaintext: &[u8]) -> Vec<u8> {
        let inner_type: &[u8] = if self.server_connection_id().is_empty() { &[] } else { &[kind as u8] };
        self.seal_parts(kind, [plaintext, inner_type])
    }

    /// Returns a protected record with `inner` as its whole plaintext. In a record with a
    /// connection ID, the plaintext consists of content, type and padding (RFC 9146 §4).
    pub fn seal_inner(&mut self, inner: &[u8]) -> Vec<u8> {
        self.seal_parts(ContentType::ApplicationData, [inner, &[]])
    }

    fn seal_parts(&mut self, kind: ContentType, parts: [&[u8]; 2]) -> Vec<u8> {
        let mut out = Vec::new();
        if let Some(keys) = &self.keys {
            let header = Header { kind, epoch: 1, sequence: self.next_record[1] };
            self.next_record[1] += 1;
            keys.block.client().seal_parts(keys.suite, header, self.server_connection_id(), parts, &mut out);
        }
        out
    }

    /// Sets the sequence number of the next protected record, so that a hostile client can
    /// use a number twice.
    pub fn set_next_record(&mut self, number: u64) {
        self.next_record[1] = number;
    }

    /// Decrypts the protected records in a datagram from the server. For each record that
    /// the client's keys open, returns the sequence number and the explicit nonce.
    pub fn opened(&self, datagram: &[u8]) -> Vec<(u64, [u8; 8])> {
        let mut bytes = datagram.to_vec();
        let id = self.own_connection_id();
        let mut records = Records::with_id_length(&mut bytes, id.len());
        let mut opened = Vec::new();
        while let (Some(keys), Some(Record { header, payload, .. })) = (&self.keys, records.next()) {
            let nonce = payload.first_chunk().copied();
            if header.epoch == 1
                && let Some(nonce) = nonce
                && keys.block.server().open(keys.suite, header, id, payload).is_ok()
            {
                opened.push((header.sequence, nonce));
            }
        }
        opened
    }

    /// Returns a protected close_notify.
    pub fn close(&mut self) -> Vec<u8> {
        self.seal(ContentType::Alert, &[1, 0])
    }

    /// Processes a datagram from the server. Returns the datagrams to send.
    pub fn receive(&mut self, now: Instant, datagram: &[u8]) -> Vec<Vec<u8>> {
        let mut bytes = datagram.to_vec();
        let mut records = Records::with_id_length(&mut bytes, self.own_connection_id().len());
        let mut out = Vec::new();
        while let Some(Record { header, payload, .. }) = records.next() {
            if header.epoch == 0 {
                out.extend(self.record(now, header, payload));
            } else if let Some(keys) = &self.keys
                && let Ok((kind, range)) =
                    keys.block.server().open(keys.suite, header, self.own_connection_id(), payload)
            {
                let plaintext = payload[range].to_vec();
                out.extend(self.record(now, Header { kind, ..header }, &plaintext));
            }
        }
        out
    }

    fn record(&mut self, now: Instant, header: Header, payload: &[u8]) -> Vec<Vec<u8>> {
        match header.kind {
            ContentType::ApplicationData if header.epoch == 1 => self.received.push(payload.to_vec()),
            ContentType::Alert => {
                if let &[level, description] = payload {
                    self.alert = Some((level, description));
                }
            }
            ContentType::Handshake => {
                let mut reader = Reader::new(payload);
                let mut out = Vec::new();
                while !reader.is_empty() {
                    let Ok(fragment) = Fragment::read(&mut reader) else { break };
                    if fragment.kind == message::HELLO_VERIFY_REQUEST {
                        out.extend(self.hello_verify_request(now, &fragment));
                    } else if fragment.sequence == self.next_receive
                        && let Some(body) = self.reassembly.add(&fragment)
                    {
                        out.extend(self.message(now, header.epoch, fragment.kind, &body));
                    }
                }
                return out;
            }
            _ => {}
        }
        Vec::new()
    }

    /// Processes a HelloVerifyRequest: sends the hello again with the new cookie, even if the
    /// server asks several times. Ignores a message whose message_seq is not the next number,
    /// because such a message is a repetition. Foreign stacks ignore it, too.
    fn hello_verify_request(&mut self, now: Instant, request: &Fragment<'_>) -> Vec<Vec<u8>> {
        if request.sequence != self.next_receive || self.agreed.is_some() || request.body.len() < 3 {
            return Vec::new();
        }
        self.cookie = request.body[3..].to_vec();
        self.next_receive += 1;
        // RFC 6347 §4.2.1: the transcript includes neither the first hello nor the
        // HelloVerifyRequest.
        self.transcript = Sha256::new();
        self.flight.clear();
        self.say(0, message::CLIENT_HELLO, self.client_hello());
        self.resend_after = self.profile.retransmission_timeout;
        self.send_flight(now)
    }

    fn message(&mut self, now: Instant, epoch: u16, kind: u8, body: &[u8]) -> Vec<Vec<u8>> {
        let sequence = self.next_receive;
        self.next_receive += 1;
        match (kind, epoch) {
            (message::SERVER_HELLO, 0) => {
                self.hash(kind, sequence, body);
                self.server_hello(body);
            }
            (message::SERVER_KEY_EXCHANGE, 0) => {
                self.hash(kind, sequence, body);
                let mut reader = Reader::new(body);
                let _hint = reader.vector16();
                self.server_point = read_params(&mut reader).ok();
            }
            (message::SERVER_HELLO_DONE, 0) => {
                self.hash(kind, sequence, body);
                return self.finish(now);
            }
            (message::FINISHED, 1) => {
                let Some(keys) = &self.keys else { return Vec::new() };
                let transcript: [u8; 32] = self.transcript.clone().finalize().into();
                if keys.master.verify_data(Sender::Server, &transcript)[..] == *body {
                    self.established = true;
                    self.resend_at = None;
                }
            }
            _ => {}
        }
        Vec::new()
    }

    fn server_hello(&mut self, body: &[u8]) {
        let mut reader = Reader::new(body);
        let _version = reader.u16();
        let Ok(random) = reader.array::<32>() else { return };
        let _session = reader.vector8();
        let code = reader.u16().unwrap_or_default();
        let _compression = reader.u8();
        if let Ok(extensions) = reader.vector16() {
            let mut extensions = Reader::new(extensions);
            while let Ok(kind) = extensions.u16() {
                let Ok(body) = extensions.vector16() else { break };
                self.server_extensions.insert(kind, body.to_vec());
            }
        }
        let extended = self.server_extensions.contains_key(&0x17);
        self.server_random = random;
        self.agreed =
            Suite::ALL.into_iter().find(|suite| suite.code() == code).map(|suite| (suite, extended));
    }

    /// Returns ClientKeyExchange, ChangeCipherSpec and Finished.
    fn finish(&mut self, now: Instant) -> Vec<Vec<u8>> {
        let Some((suite, extended)) = self.agreed else { return Vec::new() };
        self.flight.clear();
        let mut exchange = Vec::new();
        put_vector16(&mut exchange, |body| body.extend_from_slice(&self.profile.identity));
        let shared = self.server_point.take().and_then(|(group, point)| {
            // With this first byte, the secret is valid: it is not zero, and it is below the order
            // of the curve.
            let mut secret = self.random;
            secret[0] = 1;
            let key = EphemeralKey::known(group, secret);
            self.group = Some(group);
            put_vector8(&mut exchange, self.point.as_deref().unwrap_or(&key.public()));
            key.agree(&point).ok()
        });
        self.say(0, message::CLIENT_KEY_EXCHANGE, exchange);
        let session_hash: [u8; 32] = self.transcript.clone().finalize().into();
        let binding = if extended {
            Binding::Session(&session_hash)
        } else {
            Binding::Randoms(&self.random, &self.server_random)
        };
        let master = MasterSecret::from_psk(&self.profile.psk, shared.as_ref(), binding);
        let block = master.key_block(&self.random, &self.server_random);
        let verify_data: [u8; VERIFY_DATA] = master.verify_data(Sender::Client, &session_hash);
        self.keys = Some(Keys { suite, block, master });
        self.flight.push(Part::ChangeCipherSpec);
        self.say(1, message::FINISHED, verify_data.to_vec());
        self.resend_after = self.profile.retransmission_timeout;
        self.send_flight(now)
    }

    fn say(&mut self, epoch: u16, kind: u8, body: Vec<u8>) {
        let sequence = self.next_send;
        self.next_send += 1;
        self.hash(kind, sequence, &body);
        self.flight.push(Part::Handshake { epoch, kind, sequence, body });
    }

    fn hash(&mut self, kind: u8, sequence: u16, body: &[u8]) {
        let mut header = Vec::new();
        message::put_header(&mut header, kind, sequence, body.len());
        self.transcript.update(&header);
        self.transcript.update(body);
    }

    fn client_hello(&self) -> Vec<u8> {
        let mut body = DTLS_1_2.to_be_bytes().to_vec();
        body.extend(self.random);
        put_vector8(&mut body, &self.profile.session_id);
        put_vector8(&mut body, &self.cookie);
        put_vector16(&mut body, |suites| {
            for code in &self.profile.suites {
                suites.extend(code.to_be_bytes());
            }
        });
        body.extend([1, 0]);
        let mut extensions = self.profile.extensions.clone();
        let mut put = |kind: u16, body: &[u8]| {
            extensions.extend(kind.to_be_bytes());
            put_vector16(&mut extensions, |out| out.extend_from_slice(body));
        };
        if self.profile.extended_master_secret {
            put(0x17, &[]);
        }
        if !self.profile.groups.is_empty() {
            let codes: Vec<u8> = self.profile.groups.iter().flat_map(|code| code.to_be_bytes()).collect();
            put(10, &[&(codes.len() as u16).to_be_bytes()[..], &codes].concat());
            put(11, &[1, 0]);
        }
        if let Some(id) = &self.profile.connection_id {
            put(54, &[&[id.len() as u8][..], id].concat());
        }
        if !extensions.is_empty() {
            put_vector16(&mut body, |out| out.extend_from_slice(&extensions));
        }
        body
    }

    /// Returns the offset, in bytes, at which the cookie ends in a datagram that begins with
    /// the client's hello, or with a first fragment that contains the cookie.
    pub fn cookie_end(&self) -> usize {
        let version = size_of_val(&DTLS_1_2);
        let vectors = 1 + self.profile.session_id.len() + 1 + self.cookie.len();
        record::HEADER + message::HEADER + version + self.random.len() + vectors
    }

    fn send_flight(&mut self, now: Instant) -> Vec<Vec<u8>> {
        self.resend_at = Some(now + self.resend_after);
        let flight = std::mem::take(&mut self.flight);
        let mut records = Vec::new();
        for part in &flight {
            match part {
                Part::ChangeCipherSpec => records.push(self.plaintext(ContentType::ChangeCipherSpec, &[1])),
                Part::Handshake { epoch, kind, sequence, body } => {
                    for fragment in fragments(*kind, *sequence, body, self.profile.fragment) {
                        records.push(match epoch {
                            0 => self.plaintext(ContentType::Handshake, &fragment),
                            _ => self.seal(ContentType::Handshake, &fragment),
                        });
                    }
                }
            }
        }
        self.flight = flight;
        if self.profile.reverse {
            records.reverse();
        }
        if self.profile.coalesce { vec![records.concat()] } else { records }
    }

    fn plaintext(&mut self, kind: ContentType, payload: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        record::put_plaintext(&mut out, kind, self.next_record[0], DTLS_1_2, payload);
        self.next_record[0] += 1;
        out
    }
}

/// Splits a handshake message into fragments of at most `limit` bytes of body.
fn fragments(kind: u8, sequence: u16, body: &[u8], limit: usize) -> Vec<Vec<u8>> {
    let limit = limit.clamp(1, body.len().max(1));
    (0..body.len().max(1))
        .step_by(limit)
        .map(|offset| {
            let part = &body[offset..body.len().min(offset + limit)];
            let mut out = Vec::new();
            message::put_header(&mut out, kind, sequence, body.len());
            out[6..9].copy_from_slice(&(offset as u32).to_be_bytes()[1..]);
            out[9..12].copy_from_slice(&(part.len() as u32).to_be_bytes()[1..]);
            out.extend_from_slice(part);
            out
        })
        .collect()
}
