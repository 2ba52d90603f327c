//! Properties of the wire formats that hold for any input. They cover the record layer,
//! handshake messages and their fragments, and the extensions of a hello.

use std::collections::HashSet;

use proptest::prelude::*;

use crate::dtls::{
    Psk,
    candidates::Candidates,
    message::{self, ClientHello, Fragment, SizeLimit},
    prf::{Binding, MasterSecret},
    reassembly::Reassembly,
    record::{ContentType, Header, Record, Records, ReplayWindow},
    suite::{KeyBlock, Suite},
    wire::{Reader, put_vector8, put_vector16},
};

fn any_suite() -> impl Strategy<Value = Suite> {
    prop::sample::select(Suite::ALL.to_vec())
}

fn any_bytes(length: std::ops::Range<usize>) -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(any::<u8>(), length)
}

fn key() -> KeyBlock {
    KeyBlock::derive(|block| block.fill(7))
}

/// Reads one record and opens it, as the receiver that chose `connection_id`.
fn open(suite: Suite, mut datagram: Vec<u8>, connection_id: &[u8]) -> Option<(ContentType, Vec<u8>)> {
    let mut records = Records::with_id_length(&mut datagram, connection_id.len());
    let Record { header, payload, .. } = records.next()?;
    let (kind, range) = key().client().open(suite, header, connection_id, payload).ok()?;
    Some((kind, payload[range].to_vec()))
}

/// Returns a ClientHello with these extensions, each given as type and body.
fn hello(session_id: &[u8], suites: &[u16], extensions: &[(u16, Vec<u8>)]) -> Vec<u8> {
    let mut body = vec![0xfe, 0xfd];
    body.extend([5; 32]);
    put_vector8(&mut body, session_id);
    put_vector8(&mut body, &[]);
    put_vector16(&mut body, |body| body.extend(suites.iter().flat_map(|suite| suite.to_be_bytes())));
    put_vector8(&mut body, &[0]);
    put_vector16(&mut body, |body| {
        for (kind, content) in extensions {
            body.extend(kind.to_be_bytes());
            put_vector16(body, |body| body.extend(content));
        }
    });
    body
}

/// Generates extensions that the server does not know. The type of an extension is random, or it is
/// a type that GREASE reserves.
fn unknown_extension() -> impl Strategy<Value = (u16, Vec<u8>)> {
    let known = [1, 10, 11, 23, 28, 54, 0xff01];
    let kind = prop_oneof![
        any::<u16>(),
        // RFC 8701 §2: the types that GREASE reserves.
        (0u16..16).prop_map(|number| number << 12 | 0x0a0a | number << 4),
    ];
    (kind.prop_filter("known", move |kind| !known.contains(kind)), any_bytes(0..40))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// A record is the plaintext sealed by an AEAD (RFC 6655 §3, RFC 5288 §3, RFC 9146 §4).
    #[test]
    fn a_sealed_record_opens_and_an_altered_one_does_not(
        suite in any_suite(),
        sequence in 0u64..1 << 48,
        connection_id in any_bytes(0..256),
        plaintext in any_bytes(0..300),
        flip in any::<prop::sample::Index>(),
        bit in 0..8,
    ) {
        let header = Header { kind: ContentType::ApplicationData, epoch: 1, sequence };
        let mut sealed = Vec::new();
        key().client().seal(suite, header, &connection_id, &plaintext, &mut sealed);
        let opened = open(suite, sealed.clone(), &connection_id);
        prop_assert_eq!(opened, Some((ContentType::ApplicationData, plaintext)));
        // The type and the version decide whether the record is read at all, and the ID decides
        // whose record it is. So the flipped bit is in none of these fields. All other bits are
        // authenticated.
        let id = 11..11 + connection_id.len();
        let at: Vec<usize> = (3..sealed.len()).filter(|at| !id.contains(at)).collect();
        sealed[*flip.get(&at)] ^= 1u8 << bit;
        prop_assert_eq!(open(suite, sealed, &connection_id), None);
    }

    /// RFC 9146 §4: a plaintext is content, type, and any number of zeros.
    #[test]
    fn padding_of_any_length_is_removed(
        suite in any_suite(),
        content in any_bytes(0..100),
        padding in 0usize..200,
    ) {
        let header = Header { kind: ContentType::ApplicationData, epoch: 1, sequence: 1 };
        let rest = [&[ContentType::Alert as u8][..], &vec![0; padding]].concat();
        let mut sealed = Vec::new();
        key().client().seal_parts(suite, header, b"id", [&content, &rest], &mut sealed);
        prop_assert_eq!(open(suite, sealed, b"id"), Some((ContentType::Alert, content)));
    }

    /// RFC 6347 §4.1.2.7: invalid records are discarded, no matter which length they announce.
    #[test]
    fn records_never_reach_past_their_datagram(datagram in any_bytes(0..600), id_length in 0usize..20) {
        let length = datagram.len();
        let mut datagram = datagram;
        let mut records = Records::with_id_length(&mut datagram, id_length);
        let mut sum = 0;
        while let Some(record) = records.next() {
            sum += 13 + record.payload.len();
        }
        prop_assert!(sum <= length);
    }

    /// Compares the window with a direct implementation of the rule in RFC 6347 §4.1.2.6.
    #[test]
    fn the_replay_window_takes_each_number_once(
        numbers in prop::collection::vec(prop_oneof![0u64..200, 0u64..1 << 48], 0..200),
    ) {
        let (mut window, mut seen, mut highest) = (ReplayWindow::default(), HashSet::new(), None);
        for number in numbers {
            let too_old = highest.is_some_and(|highest: u64| number + 64 <= highest);
            let new = !too_old && !seen.contains(&number);
            prop_assert_eq!(window.is_new(number), new, "{}", number);
            if new {
                window.note(number);
                prop_assert!(!window.is_new(number), "{} again", number);
                seen.insert(number);
                highest = highest.max(Some(number));
            }
        }
    }

    /// RFC 6347 §4.2.3: fragments may come in any order, overlap, and be repeated.
    #[test]
    fn fragments_that_cover_a_message_make_it(
        message in any_bytes(1..300),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..12),
        extra in prop::collection::vec((any::<prop::sample::Index>(), 0usize..50), 0..6),
        order in any::<u64>(),
    ) {
        let mut at: Vec<usize> = cuts.iter().map(|cut| cut.index(message.len())).collect();
        at.extend([0, message.len()]);
        at.sort_unstable();
        at.dedup();
        let mut pieces: Vec<_> = at.windows(2).map(|ends| (ends[0], ends[1])).collect();
        pieces.extend(extra.iter().map(|(start, length)| {
            let start = start.index(message.len());
            (start, (start + length).min(message.len()))
        }));
        pieces.sort_by_key(|(start, end)| (order ^ (*start as u64) << 7 ^ *end as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let mut reassembly = Reassembly::default();
        let whole = pieces.into_iter().find_map(|(start, end)| {
            let body = &message[start..end];
            reassembly.add(&Fragment { kind: 1, length: message.len(), sequence: 1, offset: start, body })
        });
        prop_assert_eq!(whole, Some(message));
    }

    #[test]
    fn a_fragment_is_read_within_its_message_or_not_at_all(bytes in any_bytes(0..80)) {
        if let Ok(fragment) = Fragment::read(&mut Reader::new(&bytes)) {
            prop_assert!(fragment.offset + fragment.body.len() <= fragment.length);
            prop_assert!(fragment.body.len() + message::HEADER <= bytes.len());
        }
    }

    /// RFC 5246 §7.4.1.4, RFC 8701: unknown extensions change nothing, wherever they are.
    #[test]
    fn unknown_parts_of_a_hello_change_nothing(
        session_id in any_bytes(0..33),
        unknown_suites in prop::collection::vec(0x1000u16..0x2000, 0..60),
        before in prop::collection::vec(unknown_extension(), 0..6),
        after in prop::collection::vec(unknown_extension(), 0..6),
        connection_id in any_bytes(0..30),
    ) {
        let mut id = Vec::new();
        put_vector8(&mut id, &connection_id);
        let known = vec![(23, vec![]), (54, id), (28, vec![1, 0]), (10, vec![0, 2, 0, 29])];
        let mut suites = unknown_suites;
        suites.push(0xd003);
        let extensions = [before, known, after].concat();
        let bytes = hello(&session_id, &suites, &extensions);
        let mut kinds: Vec<u16> = extensions.iter().map(|(kind, _)| *kind).collect();
        kinds.sort_unstable();
        kinds.dedup();
        prop_assume!(kinds.len() == extensions.len());
        let read = ClientHello::read(&bytes);
        prop_assert!(read.is_ok());
        let Ok(read) = read else { return Ok(()) };
        prop_assert!(read.extended_master_secret);
        prop_assert_eq!(read.connection_id, Some(&connection_id[..]));
        prop_assert_eq!(read.size_limit, Some(SizeLimit::Record(256)));
        let chosen = read.choose(&Suite::ALL);
        prop_assert_eq!(chosen.map(|(suite, _)| suite), Some(Suite::EcdhePskAes128Ccm8));
        // A hello that is cut short is invalid, unless it is cut right after the
        // compression methods.
        let extensions_at = 2 + 32 + 1 + session_id.len() + 1 + 2 + suites.len() * 2 + 2;
        for end in (0..bytes.len()).filter(|&end| end != extensions_at) {
            prop_assert!(ClientHello::read(&bytes[..end]).is_err(), "{} of {} bytes", end, bytes.len());
        }
    }

    #[test]
    fn a_hello_of_any_bytes_is_read_or_refused(bytes in any_bytes(0..200)) {
        let _ = ClientHello::read(&bytes).map(|hello| hello.choose(&Suite::ALL));
    }

    /// A record opens only with the key under which its client has sealed it, no matter whether
    /// this key is the first or the second of the candidates.
    #[test]
    fn a_record_opens_with_the_key_of_its_client_alone(
        keys in prop::collection::hash_set(any_bytes(1..65), 3),
        suite in any_suite(),
        has_two in any::<bool>(),
        connection_id in any_bytes(0..20),
        content in any_bytes(0..300),
        hash in any::<[u8; 32]>(),
        randoms in any::<[[u8; 32]; 2]>(),
    ) {
        let psks: Vec<Psk> = keys.into_iter().map(|key| Psk::new(key).unwrap()).collect();
        let randoms = randoms.each_ref();
        let second = has_two.then_some(&psks[1]);
        let candidates = Candidates::derive((&psks[0], second), None, Binding::Session(&hash), randoms);
        for (number, psk) in psks.iter().enumerate() {
            let master = MasterSecret::from_psk(psk, None, Binding::Session(&hash));
            let header = Header { kind: ContentType::Handshake, epoch: 1, sequence: 3 };
            let mut datagram = Vec::new();
            let block = master.key_block(randoms[0], randoms[1]);
            block.client().seal(suite, header, &connection_id, &content, &mut datagram);
            let mut records = Records::with_id_length(&mut datagram, connection_id.len());
            let Record { header, payload, .. } = records.next().unwrap();
            let opened = candidates.open(suite, header, &connection_id, payload);
            let opened = opened.map(|(index, kind, range)| (index, kind, payload[range].to_vec()));
            let fits = number == 0 || number == 1 && has_two;
            prop_assert_eq!(opened, fits.then(|| (number, ContentType::Handshake, content.clone())));
        }
    }

    /// The message has the form of RFC 4279 §2 and, with a point, of RFC 5489 §2.
    #[test]
    fn a_client_key_exchange_is_read_as_it_was_written(
        identity in any_bytes(0..140),
        point in any_bytes(0..80),
        more in any::<bool>(),
    ) {
        let mut body = Vec::new();
        put_vector16(&mut body, |body| body.extend(&identity));
        let plain = message::read_client_key_exchange(&body, false);
        prop_assert_eq!(plain, Ok((&identity[..], None)));
        put_vector8(&mut body, &point);
        if more {
            body.push(0);
        }
        match message::read_client_key_exchange(&body, true) {
            Ok(read) => {
                prop_assert!(!more);
                prop_assert_eq!(read, (&identity[..], Some(&point[..])));
            }
            Err(_) => prop_assert!(more),
        }
    }
}
