//! Tests that need the foreign devices, SDKs and tools that `make clients` installs. The tests run
//! in parallel.

mod boards;
mod cluster;
mod database_tls;
mod durability;
mod exchange;
mod firmware;
mod firmware_glue;
mod foreign_clients;
mod guards;
mod health;
mod interop;
mod keeping;
mod libcoap;
mod mosquitto;
mod operator;
mod postgres;
mod sdk;
#[path = "../support/mod.rs"]
mod support;
