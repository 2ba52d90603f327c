//! The form of the configuration file: its sections, their configuration keys, and the form of each
//! value. Ranges of numbers are in `bounds`. The parent module checks values that depend on each
//! other.

use std::{
    fmt,
    net::SocketAddr,
    path::PathBuf,
    time::{Duration, TryFromFloatSecsError},
};

use serde::{
    Deserialize, Deserializer,
    de::{self, MapAccess, Visitor, value::MapAccessDeserializer},
};

use super::{
    document::{self, Section},
    guards::{Time, Unlisted},
};
use crate::iot_platform::{
    client::ClientError,
    credentials::{is_role, metadata_url},
    host::{MqttHost, NotAHost},
};
use crate::operators::Role;

/// Returns every section and its configuration keys, in the order of the documentation. The first
/// entry has an empty section name and lists the configuration keys that precede all sections. The
/// sections `target` and `enrollment` may occur more than once.
pub(super) fn sections() -> [(&'static str, &'static [&'static str]); 8] {
    fn of<T: Section>() -> (&'static str, &'static [&'static str]) {
        (T::NAME, document::keys::<T>())
    }
    [
        of::<Root>(),
        of::<IotPlatformSection>(),
        of::<Target>(),
        of::<Admin>(),
        of::<Audit>(),
        of::<PlainCoap>(),
        of::<Enrollment>(),
        of::<Limits>(),
    ]
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Root {
    pub(super) listen: Listen,
    pub(super) database: String,
    pub(super) database_key: Option<String>,
    #[serde(default)]
    pub(super) database_key_previous: Vec<String>,
    pub(super) server_name: Option<String>,
}

impl Section for Root {
    const NAME: &'static str = "";
    const REQUIRED: &'static [(&'static str, &'static str)] =
        &[("listen", "0.0.0.0:5684"), ("database", "sqlite:certdist.db")];
}

/// Addresses to listen on: `"ADDRESS:PORT"`, or a list of them.
pub(super) struct Listen(pub(super) Vec<SocketAddr>);

impl<'de> Deserialize<'de> for Listen {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Addresses;

        impl<'de> Visitor<'de> for Addresses {
            type Value = Listen;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("\"ADDRESS:PORT\", or a list of them")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Listen, E> {
                text.parse().map(|address| Listen(vec![address])).map_err(E::custom)
            }

            fn visit_seq<A: de::SeqAccess<'de>>(self, mut list: A) -> Result<Listen, A::Error> {
                let mut addresses = Vec::new();
                while let Some(address) = list.next_element()? {
                    addresses.push(address);
                }
                Ok(Listen(addresses))
            }
        }

        deserializer.deserialize_any(Addresses)
    }
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Audit {
    pub(super) keep_days: Option<u32>,
    pub(super) max_rows: Option<u64>,
    pub(super) max_repeats: Option<u64>,
}

impl Section for Audit {
    const NAME: &'static str = "audit";
    const REQUIRED: &'static [(&'static str, &'static str)] = &[];
}

/// Defines the sections that describe a cloud: `[iot_platform]`, and `[[target]]`, which has the
/// same configuration keys and a name.
macro_rules! clouds {
    ($($(#[$attribute:meta])* $key:ident: $type:ty,)*) => {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        pub(super) struct IotPlatformSection {
            $($(#[$attribute])* pub(super) $key: $type,)*
        }

        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        pub(super) struct Target {
            pub(super) name: String,
            $($(#[$attribute])* pub(super) $key: $type,)*
        }

        impl From<Target> for IotPlatformSection {
            fn from(target: Target) -> Self {
                Self { $($key: target.$key,)* }
            }
        }
    };
}

clouds! {
    endpoint: String,
    region: String,
    #[serde(default)]
    instance_id: String,
    #[serde(default)]
    host: Host,
    qps: Option<f64>,
    #[serde(default)]
    credentials: Credentials,
    metadata_endpoint: Option<MetadataEndpoint>,
    #[serde(default)]
    metadata_token: Extended,
    #[serde(default)]
    signature: Signature,
    ca_file: Option<PathBuf>,
    connect_timeout: Option<Seconds>,
    first_byte_timeout: Option<Seconds>,
    timeout: Option<Seconds>,
    batches: Option<bool>,
    manage: Option<bool>,
    sweep: Option<Sweep>,
}

impl Section for Target {
    const NAME: &'static str = "target";
    const REQUIRED: &'static [(&'static str, &'static str)] = &[
        ("name", "shanghai"),
        ("endpoint", "https://iot.cn-shanghai.aliyuncs.com"),
        ("region", "cn-shanghai"),
    ];
}

/// MQTT host of the devices: `"HOST"` or `"HOST:PORT"`. An empty text stands for the default.
#[derive(Deserialize, Default, Clone)]
#[serde(try_from = "String")]
pub(super) struct Host(pub(super) Option<MqttHost>);

impl TryFrom<String> for Host {
    type Error = NotAHost;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        if text.is_empty() { Ok(Self(None)) } else { text.parse().map(|host| Self(Some(host))) }
    }
}

/// Pause between two sweeps: `300`, in seconds, or `"off"`.
#[derive(Deserialize, Clone, Copy)]
#[serde(untagged, expecting = "expected whole seconds, or \"off\"")]
pub(super) enum Sweep {
    Seconds(u64),
    Off(Off),
}

#[derive(Deserialize, Clone, Copy)]
#[serde(rename_all = "lowercase")]
pub(super) enum Off {
    Off,
}

impl Section for IotPlatformSection {
    const NAME: &'static str = "iot_platform";
    const REQUIRED: &'static [(&'static str, &'static str)] =
        &[("endpoint", "https://iot.cn-shanghai.aliyuncs.com"), ("region", "cn-shanghai")];
}

#[derive(Deserialize, Default, Clone, Copy)]
#[serde(rename_all = "lowercase")]
pub(super) enum Signature {
    #[default]
    V1,
    V3,
}

/// Source of the credentials: `"env"`, `"file"`, `"file:PATH"`, `"ecs-role"` or `"ecs-role:NAME"`.
#[derive(Deserialize, Default)]
#[serde(try_from = "String")]
pub(super) enum Credentials {
    #[default]
    Env,
    /// A credentials file; `None` stands for the path that Alibaba's SDKs use.
    File(Option<PathBuf>),
    /// A role of the ECS instance; `None` stands for the role that is attached to the instance.
    EcsRole(Option<String>),
}

impl TryFrom<String> for Credentials {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        match text.split_once(':').map_or((text.as_str(), None), |(kind, rest)| (kind, Some(rest))) {
            ("env", None) => Ok(Self::Env),
            ("file", None) => Ok(Self::File(None)),
            ("file", Some(path)) if !path.is_empty() => Ok(Self::File(Some(path.into()))),
            ("ecs-role", None) => Ok(Self::EcsRole(None)),
            ("ecs-role", Some(name)) if is_role(name) => Ok(Self::EcsRole(Some(name.into()))),
            // The text may be the credentials themselves, so the error does not repeat it.
            _ => Err("expected \"env\", \"file\", \"file:PATH\", \"ecs-role\" or \"ecs-role:NAME\""),
        }
    }
}

/// Endpoint of the metadata service: `http://HOST`.
#[derive(Deserialize, Clone)]
#[serde(try_from = "String")]
pub(super) struct MetadataEndpoint(pub(super) String);

impl TryFrom<String> for MetadataEndpoint {
    type Error = ClientError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        metadata_url(&text).map(|_| Self(text))
    }
}

/// A timeout in seconds, which may have a fraction.
#[derive(Deserialize, Clone, Copy)]
#[serde(try_from = "f64")]
pub(super) struct Seconds(pub(super) Duration);

impl TryFrom<f64> for Seconds {
    type Error = TryFromFloatSecsError;

    fn try_from(seconds: f64) -> Result<Self, Self::Error> {
        Duration::try_from_secs_f64(seconds).map(Self)
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PlainCoap {
    pub(super) listen: SocketAddr,
    pub(super) enrollment: String,
    #[serde(default)]
    pub(super) exposed: bool,
}

impl Section for PlainCoap {
    const NAME: &'static str = "plain_coap";
    const REQUIRED: &'static [(&'static str, &'static str)] =
        &[("listen", "127.0.0.1:5683"), ("enrollment", "plug-batch-7")];
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Admin {
    pub(super) listen: SocketAddr,
    #[serde(default)]
    pub(super) exposed: bool,
    #[serde(default)]
    pub(super) hosts: Vec<String>,
    pub(super) tls_certificate: Option<PathBuf>,
    pub(super) tls_key: Option<PathBuf>,
    #[serde(default)]
    pub(super) require_token: bool,
    #[serde(default)]
    pub(super) user: Vec<User>,
    #[serde(default)]
    pub(super) token: Vec<Token>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct User {
    pub(super) name: String,
    pub(super) password_hash: String,
    pub(super) role: Role,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Token {
    pub(super) name: String,
    pub(super) hash: String,
    pub(super) role: Role,
}

impl Section for Admin {
    const NAME: &'static str = "admin";
    const REQUIRED: &'static [(&'static str, &'static str)] = &[("listen", "127.0.0.1:9684")];
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Enrollment {
    pub(super) name: String,
    pub(super) product_key: String,
    pub(super) kind: Kind,
    pub(super) identity: Option<String>,
    pub(super) key: Option<String>,
    pub(super) identity_next: Option<String>,
    pub(super) key_next: Option<String>,
    pub(super) reissue: Option<String>,
    pub(super) target: Option<String>,
    pub(super) existing: Option<Existing>,
    #[serde(default)]
    pub(super) host: bool,
    pub(super) requests: Option<Rate>,
    pub(super) refused_lookups: Option<Rate>,
    pub(super) opens: Option<Time>,
    pub(super) closes: Option<Time>,
    pub(super) max_devices: Option<u64>,
    pub(super) unlisted: Option<Unlisted>,
}

impl Section for Enrollment {
    const NAME: &'static str = "enrollment";
    const REQUIRED: &'static [(&'static str, &'static str)] =
        &[("name", "lamp-2026"), ("product_key", "a1BwAGVxyz1"), ("kind", "derived")];
}

#[derive(Deserialize, Clone, Copy)]
#[serde(rename_all = "lowercase")]
pub(super) enum Kind {
    Individual,
    Derived,
    Shared,
}

/// Treatment of a device whose name already exists at IoT Platform.
#[derive(Deserialize, Clone, Copy, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub(super) enum Existing {
    Adopt,
    Refuse,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Limits {
    pub(super) workers: Option<usize>,
    pub(super) max_sessions: Option<usize>,
    pub(super) sessions_per_device: Option<usize>,
    pub(super) max_handshakes: Option<usize>,
    pub(super) max_handshakes_per_address: Option<usize>,
    pub(super) handshake_timeout: Option<u64>,
    pub(super) retransmission_timeout: Option<Seconds>,
    pub(super) session_idle: Option<u64>,
    pub(super) session_max_age: Option<u64>,
    pub(super) path_mtu: Option<usize>,
    pub(super) extended_master_secret: Extended,
    pub(super) requests_per_identity: Option<Rate>,
    pub(super) requests_per_address: Option<Rate>,
    pub(super) patience: Option<u64>,
    pub(super) drain: Option<u64>,
}

impl Section for Limits {
    const NAME: &'static str = "limits";
    const REQUIRED: &'static [(&'static str, &'static str)] = &[];
}

#[derive(Deserialize, Default, Clone, Copy, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub(super) enum Extended {
    #[default]
    Offered,
    Required,
}

/// Rate limit: `{ burst = 10, every = 2.5 }`, or `"off"`.
#[derive(Clone, Copy)]
pub(super) enum Rate {
    Off,
    On {
        burst: i64,
        /// Seconds after which one more request is allowed.
        every: f64,
    },
}

// This implementation is not derived, because the error of a derived untagged enum would say only
// that neither form fits.
impl<'de> Deserialize<'de> for Rate {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct On {
            burst: i64,
            every: f64,
        }

        struct Form;

        impl<'de> Visitor<'de> for Form {
            type Value = Rate;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("{ burst = REQUESTS, every = SECONDS } or \"off\"")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Rate, E> {
                if text == "off" {
                    Ok(Rate::Off)
                } else {
                    Err(E::invalid_value(de::Unexpected::Str(text), &self))
                }
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Rate, A::Error> {
                let On { burst, every } = On::deserialize(MapAccessDeserializer::new(map))?;
                Ok(Rate::On { burst, every })
            }
        }

        deserializer.deserialize_any(Form)
    }
}
