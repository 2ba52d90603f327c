//! Runs the fuzzer's corpus as tests.
//!
//! Each file in `fuzz/corpus` whose name begins with `coap-` or `dtls-` has a single malformed or
//! unusual message, and the expected reaction. The endpoints react to such a message without
//! passing on a request. The fuzzer starts from the same files.
//!
//! The other files contain programs, one per line. The programs in `scenarios.hex` were written by
//! hand. libFuzzer kept each program in `programs.hex` because it reaches code that no other
//! program reaches (`scripts/fuzz`).

#[cfg(feature = "testing")]
#[path = "../fuzz/programs/mod.rs"]
mod programs;

use std::{fs, net::SocketAddr, path::Path, time::Instant};

use certdist::{
    coap,
    dtls::{self, Datagram},
};

/// Returns the name, expected outcome and bytes of every file whose name begins with `prefix`.
fn files(prefix: &str) -> Vec<(String, String, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).expect("the corpus") {
        let entry = entry.expect("an entry");
        let name = entry.file_name().to_string_lossy().into_owned();
        if !name.starts_with(prefix) {
            continue;
        }
        let text = fs::read_to_string(entry.path()).expect("text");
        let expected = text.lines().find_map(|line| line.strip_prefix("# expected: "));
        let expected = expected.unwrap_or_else(|| panic!("{name} does not say what is expected")).to_owned();
        let digits: String = text.lines().filter(|line| !line.starts_with('#')).collect();
        files.push((name, expected, hex::decode(digits).expect("hex digits")));
    }
    assert!(files.len() > 15, "only {} files", files.len());
    files
}

#[test]
fn every_coap_message_comes_to_what_its_file_says() {
    for (name, expected, message) in files("coap-") {
        let now = Instant::now();
        let mut endpoint = coap::Endpoint::new(coap::Config::default(), now, [3; 32]);
        let mut out: Vec<(u8, Vec<u8>)> = Vec::new();
        let request = endpoint.receive(now, 1, &message, &mut out);
        let found = match (request, out.first()) {
            (Some(_), None) => "request".to_owned(),
            (None, None) => "silence".to_owned(),
            (None, Some((_, answer))) if answer[..2] == [0x70, 0] => "reset".to_owned(),
            (None, Some((_, answer))) => format!("{}.{:02}", answer[1] >> 5, answer[1] & 31),
            (Some(_), Some(_)) => "request, and answered".to_owned(),
        };
        assert_eq!(found, expected, "{name}");
    }
}

#[test]
fn every_datagram_of_a_stranger_comes_to_what_its_file_says() {
    for (name, expected, mut bytes) in files("dtls-") {
        let now = Instant::now();
        let mut endpoint = dtls::Endpoint::<()>::new(dtls::Config::default(), now, &[1; 32], [2; 32]);
        let mut out: Vec<(SocketAddr, Vec<u8>)> = Vec::new();
        let asked = bytes.len();
        let mut datagram =
            Datagram::new("192.0.2.1:5684".parse::<SocketAddr>().expect("an address"), &mut bytes);
        assert!(endpoint.receive(now, &mut datagram, &mut out).is_none(), "{name}");
        let found = match &out[..] {
            [] => "silence",
            // RFC 6347 §4.2.1: a handshake record with message type 3.
            [(_, answer)] if answer[0] == 22 && answer[13] == 3 => "HelloVerifyRequest",
            _ => "something else",
        };
        assert_eq!(found, expected, "{name}");
        assert!(out.iter().all(|(_, answer)| answer.len() <= asked), "{name}");
        assert_eq!(endpoint.handshakes(), 0, "{name}");
    }
}

/// The counts are checked, because a program that does not reach the code of a rule cannot break
/// this rule.
#[test]
#[cfg(feature = "testing")]
fn programs_that_were_kept_break_no_rule_and_reach_what_the_rules_are_about() {
    let files = [include_str!("../fuzz/corpus/scenarios.hex"), include_str!("../fuzz/corpus/programs.hex")];
    let mut totals = programs::Reached::default().figures();
    for line in files.iter().flat_map(|file| file.lines()).filter(|line| !line.starts_with('#')) {
        println!("{line}");
        let reached = programs::run(&hex::decode(line).expect("hex digits")).figures();
        for (total, (_, figure)) in totals.iter_mut().zip(reached) {
            total.1 += figure;
        }
    }
    println!("{totals:?}");
    for (name, total) in totals {
        assert!(total > 1, "{total} {name}");
    }
}
