//! The configuration: one TOML file, read with an error that names the file, the
//! key and what would be right. Keys and credentials are not in it but where it
//! says they are.

mod database_key;
mod file;
mod iot_platform;

use std::{
    collections::HashSet,
    env, fs,
    net::SocketAddr,
    ops::RangeInclusive,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};

use crate::{
    cert::throttle::{EnrollmentLimits, RequestLimits},
    dtls,
    iot_platform::client::ClientConfig,
    limits::{self, Rate},
    psk::{Enrollment, Key, Kind, Reissue},
    registrar,
    store::{audit::Keep, seal::Keyring},
};

/// Where the configuration is when nobody says otherwise.
pub const DEFAULT_PATH: &str = "certdist.toml";

/// Path MTUs taken: up to an Ethernet's jumbo frames.
const PATH_MTU: RangeInclusive<usize> = dtls::MIN_PATH_MTU..=9000;

/// Window of a shared enrollment that does not say otherwise: a day, in seconds.
const DEFAULT_WINDOW: u64 = 86_400;

/// A whole configuration, checked.
#[derive(Debug, Clone)]
pub struct Config {
    /// UDP address of the DTLS server.
    pub listen: SocketAddr,
    /// `sqlite:PATH`.
    pub database: String,
    /// Under which its secrets are sealed; none: they are kept clear.
    pub database_keys: Keyring,
    /// How much of the audit log is kept.
    pub audit: Keep,
    /// Where devices are registered; `None` when only certificates that are in
    /// the table already are handed out.
    pub iot_platform: Option<IotPlatform>,
    /// HTTP address for health and metrics.
    pub admin: Option<SocketAddr>,
    /// Plain CoAP for a bench; off in production.
    pub plain_coap: Option<PlainCoap>,
    /// At least one.
    pub enrollments: Vec<Enrollment>,
    /// Limits of the server.
    pub limits: Limits,
}

/// CoAP without DTLS: whoever reaches the address has what the enrollment's devices
/// have.
#[derive(Debug, Clone)]
pub struct PlainCoap {
    /// UDP address.
    pub listen: SocketAddr,
    /// What everybody is taken for.
    pub enrollment: Enrollment,
}

/// How IoT Platform is reached.
#[derive(Debug, Clone)]
pub struct IotPlatform {
    /// Endpoint, credentials, and how they are used.
    pub client: ClientConfig,
    /// Limits of the registrar.
    pub registrar: registrar::Config,
}

/// Limits of the server.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Threads that serve devices; one a core.
    pub workers: usize,
    /// Limits of all workers' DTLS endpoints together.
    pub dtls: dtls::Config,
    /// How often may be asked.
    pub requests: RequestLimits,
    /// How long a request waits for its registration.
    pub patience: Duration,
    /// How long a server that was told to stop waits for registrations.
    pub drain: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            workers: std::thread::available_parallelism().map_or(1, Into::into),
            dtls: dtls::Config::default(),
            requests: RequestLimits::default(),
            patience: Duration::from_secs(20),
            drain: Duration::from_secs(10),
        }
    }
}

impl Config {
    /// Reads and checks a configuration file, and the keys and credentials that
    /// it refers to. Relative paths in it are relative to its folder.
    pub fn read(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).with_context(|| {
            format!(
                "{}: cannot be read (see `certdist serve --help` for a configuration to begin with)",
                path.display()
            )
        })?;
        let folder = path.parent().unwrap_or(Path::new(""));
        Self::parse(&text, folder).with_context(|| format!("{}: not a valid configuration", path.display()))
    }

    /// Checks a configuration; `folder` is what its relative paths start from.
    pub fn parse(text: &str, folder: &Path) -> Result<Self> {
        let file: file::File = toml::from_str(text).map_err(|error| anyhow::anyhow!("{error}"))?;
        let mut limits = read_limits(file.limits)?;
        let mut enrollments = Vec::new();
        for enrollment in file.enrollment {
            let name = enrollment.name.clone();
            let of = || format!("[[enrollment]] \"{name}\"");
            let requests = read_enrollment_limits(&enrollment).with_context(of)?;
            limits.requests.enrollments.insert(name.clone(), requests);
            enrollments.push(read_enrollment(enrollment, folder).with_context(of)?);
        }
        check_unique(&enrollments)?;
        Ok(Self {
            listen: file.listen,
            database: absolute_database(&file.database, folder)?,
            database_keys: database_key::read(
                file.database_key.as_deref(),
                &file.database_key_previous,
                folder,
            )?,
            audit: read_keep(&file.audit),
            iot_platform: file.iot_platform.map(|section| iot_platform::read(section, folder)).transpose()?,
            admin: file.admin.map(|admin| admin.listen),
            plain_coap: file.plain_coap.map(|section| read_plain_coap(section, &enrollments)).transpose()?,
            enrollments,
            limits,
        })
    }
}

/// 0 is without a limit.
fn read_keep(section: &file::Audit) -> Keep {
    let defaults = Keep::default();
    Keep {
        days: section.keep_days.or(defaults.days).filter(|days| *days > 0),
        rows: section.max_rows.or(defaults.rows).filter(|rows| *rows > 0),
    }
}

fn read_plain_coap(section: file::PlainCoap, enrollments: &[Enrollment]) -> Result<PlainCoap> {
    let file::PlainCoap { listen, enrollment: name, exposed } = section;
    ensure!(
        exposed || listen.ip().is_loopback(),
        "[plain_coap] listen = \"{listen}\": anybody who reaches it gets certificates; \
         expected a loopback address, or exposed = true on a network that is a bench's own"
    );
    let enrollment = enrollments.iter().find(|enrollment| enrollment.name == name).cloned();
    let enrollment = enrollment
        .with_context(|| format!("[plain_coap] enrollment = \"{name}\": no [[enrollment]] has that name"))?;
    Ok(PlainCoap { listen, enrollment })
}

/// `sqlite:PATH` with the path taken from the configuration's folder.
fn absolute_database(url: &str, folder: &Path) -> Result<String> {
    match url.split_once(':') {
        Some(("sqlite", path)) if !path.is_empty() => Ok(format!("sqlite:{}", folder.join(path).display())),
        _ => bail!("database = \"{url}\": expected \"sqlite:PATH\""),
    }
}

fn read_enrollment(enrollment: file::Enrollment, folder: &Path) -> Result<Enrollment> {
    let file::Enrollment { name, product_key, kind, identity, key, reissue, .. } = enrollment;
    ensure!(!name.is_empty(), "name is empty");
    ensure!(!product_key.is_empty(), "product_key is empty");
    let key = key.map(|source| read_key(&source, folder)).transpose()?;
    let kind = match (kind, key, identity) {
        (file::Kind::Individual, None, None) => Kind::Individual,
        (file::Kind::Derived, Some(master), None) => Kind::Derived(master),
        (file::Kind::Shared, Some(key), Some(identity)) => {
            ensure!(
                (1..=128).contains(&identity.len()),
                "identity has {} bytes, expected 1 to 128",
                identity.len()
            );
            Kind::Shared { identity, key }
        }
        (file::Kind::Individual, ..) => {
            bail!("kind = \"individual\" takes no key and no identity: each device has its own in the table")
        }
        (file::Kind::Derived, ..) => bail!("kind = \"derived\" takes key (the master key) and no identity"),
        (file::Kind::Shared, ..) => bail!("kind = \"shared\" takes identity and key"),
    };
    let reissue = match (reissue.as_deref(), &kind) {
        (Some(text), _) => read_reissue(text)?,
        (None, Kind::Shared { .. }) => Reissue::Window(Duration::from_secs(DEFAULT_WINDOW)),
        (None, _) => Reissue::Always,
    };
    Ok(Enrollment { name, product_key, kind, reissue })
}

fn read_enrollment_limits(enrollment: &file::Enrollment) -> Result<EnrollmentLimits> {
    let defaults = EnrollmentLimits::default();
    ensure!(
        enrollment.refused_lookups.is_none() || matches!(enrollment.kind, file::Kind::Shared),
        "refused_lookups is for kind = \"shared\": another identity can ask for one device only"
    );
    Ok(EnrollmentLimits {
        requests: read_rate("requests", enrollment.requests, defaults.requests)?,
        refused_lookups: read_rate("refused_lookups", enrollment.refused_lookups, defaults.refused_lookups)?,
    })
}

fn read_rate(key: &str, value: Option<file::Rate>, default: Option<Rate>) -> Result<Option<Rate>> {
    let (burst, every) = match value {
        None => return Ok(default),
        Some(file::Rate::Off) => return Ok(None),
        Some(file::Rate::On { burst, every }) => (burst, every),
    };
    let rate = Duration::try_from_secs_f64(every).ok().and_then(|every| Rate::new(burst, every));
    let rate = rate.with_context(|| {
        format!(
            "{key} = {{ burst = {burst}, every = {every} }}: expected a burst of 1 to {} requests, and {} to {} \
             seconds for one more",
            limits::MAX_BURST,
            limits::MIN_EVERY.as_secs_f64(),
            limits::MAX_EVERY.as_secs()
        )
    })?;
    Ok(Some(rate))
}

fn read_reissue(text: &str) -> Result<Reissue> {
    match (text, text.strip_prefix("window:").map(str::parse)) {
        ("always", _) => Ok(Reissue::Always),
        ("once", _) => Ok(Reissue::Once),
        (_, Some(Ok(seconds))) => Ok(Reissue::Window(Duration::from_secs(seconds))),
        _ => bail!("reissue = \"{text}\": expected \"always\", \"once\" or \"window:SECONDS\""),
    }
}

/// A key from `env:NAME`, `file:PATH` or `hex:DIGITS`, in hex in each of them.
fn read_key(source: &str, folder: &Path) -> Result<Key> {
    let (digits, place) = match source.split_once(':') {
        Some(("hex", digits)) => (digits.to_owned(), "key = \"hex:…\"".to_owned()),
        Some(("env", name)) => {
            let digits = env::var(name)
                .with_context(|| format!("key = \"{source}\": the environment has no {name}"))?;
            (digits, format!("key = \"{source}\""))
        }
        Some(("file", path)) => {
            let path: PathBuf = folder.join(path);
            let digits = fs::read_to_string(&path)
                .with_context(|| format!("key = \"{source}\": {} cannot be read", path.display()))?;
            (digits, format!("key = \"{source}\""))
        }
        // What is there may be the key itself, so it is not repeated.
        _ => bail!("key: expected \"env:NAME\", \"file:PATH\" or \"hex:DIGITS\""),
    };
    let digits = zeroize::Zeroizing::new(digits);
    Key::from_hex(digits.trim()).map_err(|reason| anyhow::anyhow!("{place}: {reason}"))
}

fn check_unique(enrollments: &[Enrollment]) -> Result<()> {
    ensure!(
        !enrollments.is_empty(),
        "no [[enrollment]]: at least one is needed, or no device can prove who it is"
    );
    let mut names = HashSet::new();
    let mut identities = HashSet::new();
    for enrollment in enrollments {
        ensure!(names.insert(&enrollment.name), "[[enrollment]] \"{}\" is there twice", enrollment.name);
        if let Kind::Shared { identity, .. } = &enrollment.kind {
            ensure!(identities.insert(identity), "two enrollments have identity = \"{identity}\"");
        }
    }
    Ok(())
}

fn read_limits(section: file::Limits) -> Result<Limits> {
    let defaults = Limits::default();
    let seconds = |value: Option<u64>, default: Duration| value.map_or(default, Duration::from_secs);
    for (key, value) in [
        ("workers", section.workers.map(|value| value as u64)),
        ("max_sessions", section.max_sessions.map(|value| value as u64)),
        ("max_handshakes", section.max_handshakes.map(|value| value as u64)),
        ("max_handshakes_per_address", section.max_handshakes_per_address.map(|value| value as u64)),
        ("handshake_timeout", section.handshake_timeout),
        ("session_idle", section.session_idle),
        ("patience", section.patience),
    ] {
        ensure!(value != Some(0), "[limits] {key} = 0: expected 1 or more");
    }
    let path_mtu = section.path_mtu.unwrap_or(defaults.dtls.path_mtu);
    ensure!(
        PATH_MTU.contains(&path_mtu),
        "[limits] path_mtu = {path_mtu}: expected {} to {} bytes",
        PATH_MTU.start(),
        PATH_MTU.end()
    );
    Ok(Limits {
        workers: section.workers.unwrap_or(defaults.workers),
        dtls: dtls::Config {
            max_sessions: section.max_sessions.unwrap_or(defaults.dtls.max_sessions),
            max_handshakes: section.max_handshakes.unwrap_or(defaults.dtls.max_handshakes),
            max_handshakes_per_address: section
                .max_handshakes_per_address
                .unwrap_or(defaults.dtls.max_handshakes_per_address),
            handshake_timeout: seconds(section.handshake_timeout, defaults.dtls.handshake_timeout),
            session_idle: seconds(section.session_idle, defaults.dtls.session_idle),
            path_mtu,
            require_extended_master_secret: section.extended_master_secret == file::Extended::Required,
            ..defaults.dtls
        },
        requests: RequestLimits {
            per_identity: read_rate(
                "[limits] requests_per_identity",
                section.requests_per_identity,
                defaults.requests.per_identity,
            )?,
            per_address: read_rate(
                "[limits] requests_per_address",
                section.requests_per_address,
                defaults.requests.per_address,
            )?,
            ..defaults.requests
        },
        patience: seconds(section.patience, defaults.patience),
        drain: seconds(section.drain, defaults.drain),
    })
}

#[cfg(test)]
mod tests;
