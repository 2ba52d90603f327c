//! The tests that need what `make clients` installs: devices, SDKs and tools of others.
//! They run beside each other.

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
