//! certdist gives each device of Alibaba Cloud IoT Platform its certificate at
//! first power-on: PSK-DTLS, CoAP `/cert`, an embedded table, and
//! `RegisterDevice` for whoever has none yet.
//!
//! One line downward, and a room knows only what is below it: `cli → server →
//! dtls, coap → cert → provision → psk → registrar → iot_platform, store →
//! device`.

#![forbid(unsafe_code)]

pub mod coap;
pub mod device;
pub mod dtls;
