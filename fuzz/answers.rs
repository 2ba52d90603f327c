//! Feeds the client of Tablestore with mutated answers and requests of the official SDKs, without
//! the MD5 and the signature that would reject them, all from one seed. No input may cause a panic.
//! Runs on stable Rust, without instrumentation.
//!
//! ```text
//! cargo run --release --features testing --example fuzz_answers -- 1000000 [SEED]
//! ```

use std::{env, fs, path::Path, time::Instant};

use certdist::tablestore::testing::read_as_everything;
use rand::{Rng, RngExt, SeedableRng, rngs::StdRng};

/// Longest input, in bytes.
const MAX_INPUT: usize = 4096;

/// Returns the bodies and the rows in the test vectors.
fn seeds() -> Vec<Vec<u8>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/tablestore/vectors.json");
    let file: serde_json::Value =
        serde_json::from_slice(&fs::read(path).expect("the vectors")).expect("JSON");
    let mut seeds = Vec::new();
    let mut add = |text: &serde_json::Value| {
        seeds.push(hex::decode(text.as_str().expect("a text")).expect("hex digits"));
    };
    for vector in file["vectors"].as_array().expect("vectors") {
        add(&vector["request"]["body"]);
        add(&vector["response"]["body"]);
        vector["request"]["plainbuffer"].as_array().expect("rows").iter().for_each(&mut add);
    }
    seeds
}

fn mutate(random: &mut StdRng, input: &mut Vec<u8>, other: &[u8]) {
    for _ in 0..random.random_range(0..4) {
        let length = input.len();
        let at = random.random_range(0..=length);
        match random.random_range(0..6) {
            0 => input.truncate(at),
            1 if at < length => input[at] ^= 1 << random.random_range(0..8),
            2 if at < length => input[at] = [0, 1, 0x7f, 0x80, 0xff][random.random_range(0..5)],
            3 => drop(input.splice(at..at, other.iter().copied().take(64))),
            4 => drop(input.drain(at..random.random_range(at..=length))),
            _ => random.fill_bytes(&mut input[at..]),
        }
        input.truncate(MAX_INPUT);
    }
}

fn main() {
    let mut arguments = env::args().skip(1).map(|argument| argument.parse().expect("a number"));
    let inputs: u64 = arguments.next().unwrap_or(1_000_000);
    let seed: u64 = arguments.next().unwrap_or(1);
    let (seeds, mut random, start) = (seeds(), StdRng::seed_from_u64(seed), Instant::now());
    let mut read = 0;
    for _ in 0..inputs {
        let mut input = seeds[random.random_range(0..seeds.len())].clone();
        let other = &seeds[random.random_range(0..seeds.len())];
        mutate(&mut random, &mut input, other);
        read += read_as_everything(&input);
    }
    assert!(read > 0 || inputs < 100, "nothing was read");
    let took = start.elapsed();
    println!("{inputs} inputs from seed {seed} in {took:.1?}: no panic; {read} messages and rows were read");
}
