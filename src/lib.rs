//! certdist gives each device of Alibaba Cloud IoT Platform its certificate at first power-on. A
//! device connects with PSK-DTLS and requests the CoAP resource `/cert`. The certificates are in an
//! embedded table. A device that has no certificate yet is registered with `RegisterDevice`.
//!
//! Dependencies point downward only: `cli → app → admin → config → server → dtls, coap, resource
//! → provision → registrar → psk, store, iot_platform → device`. `docs/architecture.md` says
//! which module holds which rule.

#![forbid(unsafe_code)]

pub mod admin;
pub mod app;
pub mod cli;
pub mod coap;
pub mod company;
pub mod config;
pub mod device;
pub mod device_view;
pub mod dtls;
pub mod guards;
pub mod histogram;
pub mod iot_platform;
pub mod log_limit;
pub mod new_file;
pub mod notify;
pub mod obstacles;
pub mod operators;
pub mod ordering;
pub mod password;
pub mod policy;
pub mod presence;
pub mod provision;
pub mod psk;
pub mod random;
pub mod rate_limit;
pub mod recent;
pub mod registrar;
pub mod resource;
pub mod seal;
pub mod server;
#[cfg(feature = "simulation")]
pub mod simulated_device;
pub mod store;
pub mod table_file;
pub mod tablestore;
pub mod target;
#[cfg(all(test, feature = "simulation"))]
mod testing;
pub mod unix_time;
