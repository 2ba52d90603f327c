//! The file as it is written: its sections and keys, and nothing else.

use std::net::SocketAddr;

use serde::Deserialize;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct File {
    pub(super) listen: SocketAddr,
    pub(super) database: String,
    pub(super) iot_platform: Option<IotPlatform>,
    pub(super) admin: Option<Admin>,
    #[serde(default)]
    pub(super) enrollment: Vec<Enrollment>,
    #[serde(default)]
    pub(super) limits: Limits,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct IotPlatform {
    pub(super) endpoint: String,
    pub(super) region: String,
    #[serde(default)]
    pub(super) instance_id: String,
    #[serde(default = "default_qps")]
    pub(super) qps: f64,
}

fn default_qps() -> f64 {
    crate::registrar::Config::default().qps
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Admin {
    pub(super) listen: SocketAddr,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Enrollment {
    pub(super) name: String,
    pub(super) product_key: String,
    pub(super) kind: Kind,
    pub(super) identity: Option<String>,
    pub(super) key: Option<String>,
    pub(super) reissue: Option<String>,
}

#[derive(Deserialize, Clone, Copy)]
#[serde(rename_all = "lowercase")]
pub(super) enum Kind {
    Individual,
    Derived,
    Shared,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Limits {
    pub(super) workers: Option<usize>,
    pub(super) max_sessions: Option<usize>,
    pub(super) max_handshakes: Option<usize>,
    pub(super) max_handshakes_per_address: Option<usize>,
    pub(super) handshake_timeout: Option<u64>,
    pub(super) session_idle: Option<u64>,
    pub(super) extended_master_secret: Extended,
    pub(super) patience: Option<u64>,
    pub(super) drain: Option<u64>,
}

#[derive(Deserialize, Default, Clone, Copy, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub(super) enum Extended {
    #[default]
    Offered,
    Required,
}
