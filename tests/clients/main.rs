//! Tests that need what `make clients` installs: foreign devices, SDKs and tools. They run in
//! parallel.

mod durability;
mod foreign_clients;
mod health;
mod interop;
mod keeping;
mod libcoap;
mod mosquitto;
mod operator;
mod sdk;
#[path = "../support/mod.rs"]
mod support;
