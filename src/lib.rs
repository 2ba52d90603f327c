//! certdist gives each device of Alibaba Cloud IoT Platform its certificate at
//! first power-on: PSK-DTLS, CoAP `/cert`, an embedded table, and
//! `RegisterDevice` for whoever has none yet.
//!
//! One line downward, and a room knows only what is below it: `cli → server →
//! dtls, coap → cert → provision → psk → registrar → iot_platform, store →
//! device`.

#![forbid(unsafe_code)]

pub mod admin;
pub mod app;
pub mod cert;
pub mod cli;
pub mod coap;
pub mod config;
pub mod device;
pub mod dtls;
pub mod figures;
pub mod iot_platform;
pub mod limits;
pub mod notify;
pub mod password;
pub mod provision;
pub mod psk;
pub mod random;
pub mod registrar;
pub mod seal;
pub mod server;
#[cfg(feature = "simulation")]
pub mod simulated_device;
pub mod store;
pub mod table_file;
