//! Programs for `fuzz/programs`, made by libFuzzer: it keeps what reaches code that no
//! other has, and changes that further. `scripts/fuzz` builds and runs it.
//!
//! `src/dtls` and `src/coap` name nothing of the crate above them, so they are compiled
//! here as they are: this crate builds in seconds, and the other one needs no libFuzzer.

#![no_main]
// What only the server uses.
#![allow(dead_code, unused_imports)]

#[path = "../../src/coap/mod.rs"]
mod coap;
#[path = "../../src/dtls/mod.rs"]
mod dtls;
#[path = "../programs/mod.rs"]
mod programs;

libfuzzer_sys::fuzz_target!(|program: &[u8]| {
    programs::run(program);
});
