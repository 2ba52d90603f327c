//! Lets libFuzzer make programs for `fuzz/programs`. It keeps each program that reaches
//! code that no other program has reached, and mutates it further. `scripts/fuzz` builds
//! and runs this crate.
//!
//! `src/dtls` and `src/coap` use nothing from the rest of their crate, so they are
//! compiled here from the same files. This crate builds in seconds, and the main crate
//! does not need libFuzzer.

#![no_main]
// Some of the code is used only by the server.
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
