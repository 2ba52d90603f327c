//! The configuration: one TOML file, and environment variables that replace values of the file. All
//! errors are reported at once, each with its line, the configuration key and what is expected.
//! Pre-shared keys and credentials are usually in other files or in environment variables, and the
//! configuration only names these places.

mod admin;
mod bounds;
mod database_key;
mod document;
mod file;
mod guards;
mod iot_platform;
mod key_next;
mod restart;
mod target;

pub use admin::normal_host;
pub use bounds::QPS;
pub use target::{MqttSettings, Target};

use std::{
    collections::{HashMap, HashSet},
    env, fs,
    net::SocketAddr,
    ops::RangeInclusive,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, bail};

use self::document::{Document, Problems, Table};
use crate::{
    device::Secret,
    dtls,
    iot_platform::client::ClientConfig,
    operators::{Token, User},
    psk::{Enrollment, Key, Kind, Reissue},
    rate_limit::{self, Rate},
    resource::throttle::{EnrollmentLimits, RequestLimits},
    seal::Keyring,
    server::Limits,
};

/// Default path of the configuration.
pub const DEFAULT_PATH: &str = "certdist.toml";

/// Path of the configuration that a package installs.
pub const SYSTEM_PATH: &str = "/etc/certdist/certdist.toml";

/// Maximum number of addresses to listen on. Each worker has a socket for each address.
const MAX_LISTEN: usize = 16;

/// Maximum length of a server's name, in characters.
const MAX_SERVER_NAME: usize = 64;

/// Legal lengths of a PSK identity, in bytes.
const IDENTITY: RangeInclusive<usize> = 1..=128;

/// Default window of a shared enrollment: a day, in seconds.
const DEFAULT_WINDOW: u64 = 86_400;

/// Error of an enrollment whose devices cannot be told their host.
const NO_HOST: &str =
    "host = true: without [iot_platform], the host is not known; expected that section, or no such line";

/// A complete configuration, checked.
#[derive(Debug, Clone)]
pub struct Config {
    /// UDP addresses of the DTLS server. There is at least one, and all are different.
    pub listen: Vec<SocketAddr>,
    /// URL of the database: `sqlite:PATH` or `postgres://…`.
    pub database: DatabaseUrl,
    /// Database keys, which seal the database's secrets. Without a database key, the secrets are
    /// stored in clear text.
    pub database_keys: Keyring,
    /// Name of this server among those of the table, 1 to 64 characters; `None`: the name of the machine
    /// and the port.
    pub server_name: Option<String>,
    /// Limits of the audit log.
    pub audit: Audit,
    /// Clouds in which devices are registered, beginning with the cloud of `[iot_platform]`. If
    /// there are none, the server only hands out certificates that are already in the table.
    pub targets: Vec<Target>,
    /// Set if the configuration has a `[[target]]`, so that outputs name the targets.
    pub names_targets: bool,
    /// Name of the target of each enrollment.
    pub target_of: HashMap<String, String>,
    /// HTTP for health, metrics and the console.
    pub admin: Option<Admin>,
    /// Plain CoAP for tests; off in production.
    pub plain_coap: Option<PlainCoap>,
    /// Enrollments, at least one.
    pub enrollments: Vec<Enrollment>,
    /// Names of the enrollments that refuse a device if it already exists at IoT Platform and
    /// this server did not register it.
    pub refuse_existing: HashSet<String>,
    /// Names of the enrollments whose devices are told their MQTT host even if they do not ask.
    pub tell_host: HashSet<String>,
    /// Limits of the server.
    pub limits: Limits,
    /// Files from which the configuration takes keys and credentials.
    pub secret_files: Vec<PathBuf>,
    /// Set if the configuration file itself contains the key of an enrollment (`hex:`), or the password
    /// of the database.
    pub has_inline_secrets: bool,
}

/// CoAP without DTLS. Any client that reaches the address is treated as a device of the enrollment.
#[derive(Debug, Clone)]
pub struct PlainCoap {
    /// UDP address.
    pub listen: SocketAddr,
    /// Enrollment to which all clients belong.
    pub enrollment: Enrollment,
}

/// Settings of the calls to IoT Platform.
#[derive(Debug, Clone)]
pub struct IotPlatformSettings {
    /// Endpoint, credentials, and further settings of the client.
    pub client: ClientConfig,
    /// `RegisterDevice` calls per second.
    pub qps: f64,
    /// Set if devices are registered in batches when many are waiting.
    pub batches: bool,
    /// Pause between two passes that query the activation and state of new devices; `None`
    /// turns sweeps off.
    pub sweep: Option<Duration>,
    /// Set if operators may disable, enable, delete and rotate devices at IoT Platform.
    pub manages: bool,
}

/// Retention of the audit log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Audit {
    /// Number of days after which entries are removed; `None`: never.
    pub keep_days: Option<u32>,
    /// Number of entries above which the oldest entries are removed; 0: no limit. `None`: the
    /// number follows the number of devices.
    pub max_rows: Option<u64>,
    /// Like [`max_rows`](Self::max_rows), for records of repeats.
    pub max_repeats: Option<u64>,
}

impl Default for Audit {
    fn default() -> Self {
        Self { keep_days: Some(365), max_rows: None, max_repeats: None }
    }
}

/// The operator's port, and its users and tokens.
#[derive(Debug, Clone)]
pub struct Admin {
    /// TCP address to listen on.
    pub listen: SocketAddr,
    /// Hosts that requests may name, in addition to the machine's own names and addresses. Each
    /// host has the form that [`normal_host`] returns.
    pub hosts: Vec<String>,
    /// TLS configuration for HTTPS; `None` for HTTP.
    pub tls: Option<Arc<rustls::ServerConfig>>,
    /// Users who sign in with a password.
    pub users: Vec<User>,
    /// Tokens of scripts.
    pub tokens: Vec<Token>,
    /// Set if requests need a token for metrics, and for the reasons in health checks, even if they
    /// come from this machine.
    pub require_token: bool,
}

/// Treatment of enrollment keys, credentials and TLS keys that cannot be read. For example, an
/// environment variable may be missing, or a file may belong to another user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Secrets {
    /// A missing secret is an error, because the server and `register` need it.
    Required,
    /// A missing secret is left out or replaced. This is for commands that neither serve devices
    /// nor call IoT Platform.
    IfThere,
}

impl Config {
    /// Reads and checks a configuration file, the environment variables that replace its values,
    /// and the keys and credentials that the file names. Relative paths in the file start from the
    /// file's folder.
    pub fn read(path: &Path) -> Result<Self> {
        Self::read_with(path, Secrets::Required)
    }

    /// Reads a configuration like [`read`](Self::read), for a command that neither serves devices
    /// nor calls IoT Platform. Keys of enrollments, credentials and TLS keys may be missing, but
    /// database keys may not.
    pub fn read_offline(path: &Path) -> Result<Self> {
        Self::read_with(path, Secrets::IfThere)
    }

    fn read_with(path: &Path, secrets: Secrets) -> Result<Self> {
        let text = fs::read_to_string(path).with_context(|| {
            format!(
                "{}: could not read the configuration (`certdist serve --help` shows one to begin with)",
                path.display()
            )
        })?;
        let folder = path.parent().unwrap_or(Path::new(""));
        let variables: Vec<(String, String)> = env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .collect();
        Self::parse_with(&text, folder, &variables, secrets)
            .map_err(|problems| anyhow::anyhow!("{}: not a valid configuration: {problems}", path.display()))
    }

    /// Checks a configuration. Relative paths in the configuration start from `folder`.
    pub fn parse(text: &str, folder: &Path) -> Result<Self> {
        Ok(Self::parse_with(text, folder, &[], Secrets::Required)?)
    }

    /// Checks a configuration, with environment variables that may replace its values.
    fn parse_with(
        text: &str,
        folder: &Path,
        variables: &[(String, String)],
        secrets: Secrets,
    ) -> Result<Self, Problems> {
        let mut problems = Problems::default();
        let mut document = Document::parse(text, variables, &file::sections(), &mut problems)?;
        let all = &mut problems;
        let mut root = document.root::<file::Root>(all);
        let cloud = document.section::<file::IotPlatformSection>(all);
        let named = document.repeated::<file::Target>(all);
        let targets = target::Targets::read(cloud, named, (folder, secrets), all);
        let admin = document.section::<file::Admin>(all);
        let audit = document.section::<file::Audit>(all);
        let plain_coap = document.section::<file::PlainCoap>(all);
        let tables = document.repeated::<file::Enrollment>(all);
        let mut limits = match document.section::<file::Limits>(all) {
            Some(section) => read_limits(section, all),
            None => Limits::default(),
        };

        if tables.is_empty() {
            all.of_file("no [[enrollment]]; expected at least one, because a device needs one to sign in");
        }
        let (mut names, mut identities) = (HashSet::new(), HashSet::new());
        let mut sources: Vec<String> = Vec::new();
        let (mut enrollments, mut refuse_existing) = (Vec::new(), HashSet::new());
        let mut tell_host = HashSet::new();
        let mut takes_unlisted = None;
        let mut target_of = HashMap::new();
        for mut table in tables {
            let name = table.values.name.clone();
            if !names.insert(name.clone()) {
                table.wrong(all, &["name"], "is there twice; expected a different name for each");
            }
            sources.extend(table.values.key.iter().chain(&table.values.key_next).cloned());
            let requests = read_enrollment_limits(&mut table, all);
            // If the key is shared, all devices of the enrollment know it. So a device that already
            // exists at IoT Platform under the requested name may be a different device.
            let usual = match table.values.kind {
                file::Kind::Shared => file::Existing::Refuse,
                file::Kind::Individual | file::Kind::Derived => file::Existing::Adopt,
            };
            if table.values.existing.unwrap_or(usual) == file::Existing::Refuse {
                refuse_existing.insert(name.clone());
            }
            if table.values.host {
                if targets.all.is_empty() {
                    table.wrong(all, &["host"], NO_HOST);
                }
                tell_host.insert(name.clone());
            }
            target_of.insert(name.clone(), targets.of(&mut table, all));
            let enrollment = read_enrollment(&mut table, (folder, secrets), &mut identities, all);
            guards::check_unlisted(&mut table, &mut takes_unlisted, all);
            limits.requests.enrollments.insert(name, requests);
            enrollments.extend(enrollment);
        }
        let listen = read_listen(&root.values.listen);
        let listen = root.checked(all, &["listen"], listen);
        let database = absolute_database(&root.values.database, folder);
        let database = root.checked(all, &["database"], database);
        let file::Root { database_key, database_key_previous, .. } = &root.values;
        let database_keys = database_key::read(database_key.as_deref(), database_key_previous, folder);
        let keys = database_key.iter().chain(database_key_previous).chain(&sources);
        let mut secret_files: Vec<PathBuf> = keys.filter_map(|source| file_of(source, folder)).collect();
        secret_files.extend(targets.secret_files.iter().cloned());
        if let Some(section) = &admin {
            secret_files.extend(section.values.tls_key.as_ref().map(|path| folder.join(path)));
        }
        let is_from_variable =
            variables.iter().any(|(name, value)| name == "CERTDIST_DATABASE" && !value.is_empty());
        let has_inline_secrets = sources.iter().any(|source| source.starts_with("hex:"))
            || (!is_from_variable && has_password(&root.values.database));
        let database_keys = root.checked(all, &["database_key", "database_key_previous"], database_keys);
        let server_name = root.values.server_name.as_deref().map(read_server_name).transpose();
        let server_name = root.checked(all, &["server_name"], server_name);
        let plain_coap = plain_coap.map(|section| read_plain_coap(section, &names, &enrollments, all));
        let admin = admin.map(|section| admin::read(section, (folder, secrets), all));
        problems.check()?;

        // There are no problems, so a value is missing only if the configuration does not set it.
        Ok(Self {
            listen: listen.unwrap_or_default(),
            database: DatabaseUrl::new(database.unwrap_or_default()),
            database_keys: database_keys.unwrap_or_default(),
            server_name: server_name.flatten(),
            audit: audit.map_or_else(Audit::default, |section| read_audit(&section.values)),
            targets: targets.all,
            names_targets: targets.are_named,
            target_of,
            admin: admin.flatten(),
            plain_coap: plain_coap.flatten(),
            enrollments,
            refuse_existing,
            tell_host,
            limits,
            secret_files,
            has_inline_secrets,
        })
    }

    /// Returns the maximum number of devices of each enrollment that has one.
    pub fn max_places(&self) -> Arc<HashMap<String, u64>> {
        let max = |own: &Enrollment| Some((own.name.clone(), own.guards.max_devices?));
        Arc::new(self.enrollments.iter().filter_map(max).collect())
    }

    /// Returns the guards of each enrollment that gives out first certificates only at certain times.
    pub fn timed_guards(&self) -> HashMap<String, crate::guards::Guards> {
        let timed = self.enrollments.iter().filter(|own| own.guards.are_timed());
        timed.map(|own| (own.name.clone(), own.guards)).collect()
    }

    /// Returns the names of all configuration keys, by section. The first entry has an empty
    /// section name and lists the configuration keys that precede all sections. The sections
    /// `target` and `enrollment` may occur more than once.
    pub fn keys() -> Vec<(&'static str, &'static [&'static str])> {
        file::sections().to_vec()
    }
}

/// Returns the path of the file from which an enrollment key or a database key is read. Returns
/// `None` if the key is not in a file.
fn file_of(source: &str, folder: &Path) -> Option<PathBuf> {
    source.strip_prefix("file:").map(|path| folder.join(path))
}

fn read_listen(file::Listen(addresses): &file::Listen) -> Result<Vec<SocketAddr>> {
    if !(1..=MAX_LISTEN).contains(&addresses.len()) {
        bail!("listen has {} addresses, expected 1 to {MAX_LISTEN}", addresses.len());
    }
    let mut seen = HashSet::new();
    // Port 0 may be repeated, because the system chooses a different port each time.
    if let Some(twice) = addresses.iter().find(|address| address.port() != 0 && !seen.insert(**address)) {
        bail!("listen: {twice} is there twice; expected different addresses");
    }
    Ok(addresses.clone())
}

/// Checks the name of a server.
fn read_server_name(name: &str) -> Result<String> {
    let is_legal = (1..=MAX_SERVER_NAME).contains(&name.chars().count())
        && name.trim() == name
        && !name.chars().any(char::is_control);
    if !is_legal {
        bail!(
            "server_name: expected 1 to {MAX_SERVER_NAME} characters on one line, without spaces at its ends"
        );
    }
    Ok(name.to_owned())
}

/// Reads the limits of the audit log; 0 days mean no limit.
fn read_audit(section: &file::Audit) -> Audit {
    let defaults = Audit::default();
    Audit {
        keep_days: section.keep_days.or(defaults.keep_days).filter(|days| *days > 0),
        max_rows: section.max_rows.or(defaults.max_rows),
        max_repeats: section.max_repeats.or(defaults.max_repeats),
    }
}

fn read_plain_coap(
    mut section: Table<file::PlainCoap>,
    names: &HashSet<String>,
    enrollments: &[Enrollment],
    problems: &mut Problems,
) -> Option<PlainCoap> {
    let file::PlainCoap { listen, enrollment: ref name, exposed } = section.values;
    let name = name.clone();
    if !exposed && !listen.ip().is_loopback() {
        section.wrong(
            problems,
            &["listen", "exposed"],
            format!(
                "listen = \"{listen}\": anyone who reaches it gets certificates; expected a loopback address, \
                 or exposed = true on an isolated test network"
            ),
        );
    }
    if !names.contains(&name) {
        let what = format!("enrollment = \"{name}\": no [[enrollment]] has that name");
        section.wrong(problems, &["enrollment"], what);
    }
    let enrollment = enrollments.iter().find(|enrollment| enrollment.name == name).cloned()?;
    Some(PlainCoap { listen, enrollment })
}

/// URL of the database. It may contain a password, so it is not printed.
#[derive(Clone, PartialEq, Eq)]
pub struct DatabaseUrl(Secret);

impl DatabaseUrl {
    fn new(url: String) -> Self {
        Self(Secret::new(url))
    }
}

impl std::ops::Deref for DatabaseUrl {
    type Target = str;

    fn deref(&self) -> &str {
        self.0.expose()
    }
}

impl std::fmt::Debug for DatabaseUrl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (kind, _) = self.split_once(':').unwrap_or_default();
        write!(f, "DatabaseUrl({kind}:…)")
    }
}

/// Returns whether the URL of a database contains a password.
fn has_password(database: &str) -> bool {
    let Some((_, rest)) = database.split_once("://") else { return false };
    let (server, parameters) = rest.split_once('?').unwrap_or((rest, ""));
    server.rsplit_once('@').is_some_and(|(user, _)| user.contains(':'))
        || parameters.split('&').any(|parameter| parameter.starts_with("password="))
}

/// Resolves the path in `sqlite:PATH` relative to the configuration's folder. Refuses forms that
/// other programs interpret in a different way.
fn absolute_database(url: &str, folder: &Path) -> Result<String> {
    let path = match url.split_once(':') {
        Some(("sqlite", path)) => path,
        Some(("postgres" | "postgresql", rest)) if rest.starts_with("//") => return Ok(url.to_owned()),
        // The value may contain a password.
        _ => bail!("database: expected \"sqlite:PATH\" or \"postgres://USER:PASSWORD@HOST/DATABASE\""),
    };
    if let Some(rest) = path.strip_prefix("//") {
        let meant = match rest.trim_start_matches('/') {
            name if name.len() < rest.len() => format!("/{name}"),
            name => name.to_owned(),
        };
        bail!(
            "database = \"{url}\": expected a path directly after the colon, such as \"sqlite:{meant}\"; a relative \
             path begins in the folder of this file"
        );
    }
    if path.is_empty() || path == ":memory:" || path.starts_with("file:") || path.contains('?') {
        bail!("database = \"{url}\": expected \"sqlite:PATH\", with the path of a file and no parameters");
    }
    Ok(format!("sqlite:{}", folder.join(path).display()))
}

fn read_enrollment(
    table: &mut Table<file::Enrollment>,
    (folder, secrets): (&Path, Secrets),
    identities: &mut HashSet<String>,
    problems: &mut Problems,
) -> Option<Enrollment> {
    let file::Enrollment { name, product_key, kind, identity, key: source, reissue, .. } = &table.values;
    let (name, product_key, kind) = (name.clone(), product_key.clone(), *kind);
    let (identity, reissue) = (identity.clone(), reissue.clone());
    let has_key = source.is_some();
    let key = source.as_ref().map(|source| read_key("key", source, folder, secrets));
    for (key, value) in [("name", &name), ("product_key", &product_key)] {
        if value.is_empty() {
            table.wrong(problems, &[key], format!("{key} is empty; expected a text"));
        }
    }
    let takes = match (kind, has_key, identity.is_some()) {
        (file::Kind::Individual, false, false)
        | (file::Kind::Derived, true, false)
        | (file::Kind::Shared, true, true) => None,
        (file::Kind::Individual, ..) => {
            Some("kind = \"individual\" takes no key and no identity: each device has its own in the table")
        }
        (file::Kind::Derived, ..) => Some("kind = \"derived\" takes key (the master key) and no identity"),
        (file::Kind::Shared, ..) => Some("kind = \"shared\" takes identity and key"),
    };
    if let Some(what) = takes {
        table.wrong(problems, &["kind", "identity", "key"], what);
    }
    if let Some(identity) = &identity {
        if !IDENTITY.contains(&identity.len()) {
            let what = format!("identity has {} bytes, expected 1 to 128", identity.len());
            table.wrong(problems, &["identity"], what);
        }
        if !identities.insert(identity.clone()) {
            table.wrong(
                problems,
                &["identity"],
                format!("two enrollments have identity = \"{identity}\"; expected different identities"),
            );
        }
    }
    let key = key.and_then(|key| table.checked(problems, &["key"], key));
    let next = key_next::read(table, key.as_ref(), (folder, secrets), identities, problems);
    let reissue = match (reissue.as_deref(), kind) {
        (Some(text), _) => table.checked(problems, &["reissue"], read_reissue(text))?,
        (None, file::Kind::Shared) => Reissue::Window(Duration::from_secs(DEFAULT_WINDOW)),
        (None, _) => Reissue::Always,
    };
    let guards = guards::read(table, problems);
    let kind = match (kind, key, identity) {
        (file::Kind::Individual, ..) => Kind::Individual,
        (file::Kind::Derived, Some(master), _) => Kind::Derived(master),
        (file::Kind::Shared, Some(key), Some(identity)) => Kind::Shared { identity, key },
        _ => return None,
    };
    Some(Enrollment { name, product_key, kind, reissue, next, guards })
}

fn read_enrollment_limits(table: &mut Table<file::Enrollment>, problems: &mut Problems) -> EnrollmentLimits {
    let defaults = EnrollmentLimits::default();
    let (requests, refused_lookups) = (table.values.requests, table.values.refused_lookups);
    if refused_lookups.is_some() && !matches!(table.values.kind, file::Kind::Shared) {
        table.wrong(
            problems,
            &["refused_lookups", "kind"],
            "refused_lookups is only for kind = \"shared\": any other identity can ask for one device only",
        );
    }
    let mut rate = |key, value, default| {
        table.checked(problems, &[key], read_rate(key, value, default)).unwrap_or(default)
    };
    EnrollmentLimits {
        requests: rate("requests", requests, defaults.requests),
        refused_lookups: rate("refused_lookups", refused_lookups, defaults.refused_lookups),
    }
}

fn read_rate(key: &str, value: Option<file::Rate>, default: Option<Rate>) -> Result<Option<Rate>> {
    let (burst, every) = match value {
        None => return Ok(default),
        Some(file::Rate::Off) => return Ok(None),
        Some(file::Rate::On { burst, every }) => (burst, every),
    };
    let duration = Duration::try_from_secs_f64(every).ok();
    let rate = u32::try_from(burst).ok().zip(duration).and_then(|(burst, every)| Rate::new(burst, every));
    let rate = rate.with_context(|| {
        format!(
            "{key} = {{ burst = {burst}, every = {every} }}: expected a burst of 1 to {} requests, and {} to {} \
             seconds for one more",
            rate_limit::MAX_BURST,
            rate_limit::MIN_EVERY.as_secs_f64(),
            rate_limit::MAX_EVERY.as_secs()
        )
    })?;
    Ok(Some(rate))
}

fn read_reissue(text: &str) -> Result<Reissue> {
    match (text, text.strip_prefix("window:").map(str::parse)) {
        ("always", _) => Ok(Reissue::Always),
        ("once", _) => Ok(Reissue::Once),
        (_, Some(Ok(seconds))) if bounds::WINDOW.contains(&seconds) => {
            Ok(Reissue::Window(Duration::from_secs(seconds)))
        }
        _ => bail!(
            "reissue = \"{text}\": expected \"always\", \"once\" or \"window:SECONDS\" with {} to {} seconds",
            bounds::WINDOW.start(),
            bounds::WINDOW.end()
        ),
    }
}

/// Reads the key that the configuration calls `name` from `env:NAME`, `file:PATH` or `hex:DIGITS`.
/// In each case, the key itself is in hex.
fn read_key(name: &str, source: &str, folder: &Path, secrets: Secrets) -> Result<Key> {
    let unknown = || Key::unknown().map_err(anyhow::Error::msg);
    let (digits, place) = match source.split_once(':') {
        Some(("hex", digits)) => (digits.to_owned(), format!("{name} = \"hex:…\"")),
        Some(("env", variable)) => {
            let digits = match env::var(variable) {
                Err(_) if secrets == Secrets::IfThere => return unknown(),
                digits => digits
                    .with_context(|| format!("{name} = \"{source}\": the environment has no {variable}"))?,
            };
            (digits, format!("{name} = \"{source}\""))
        }
        Some(("file", path)) => {
            let path: PathBuf = folder.join(path);
            let digits = match fs::read_to_string(&path) {
                Err(_) if secrets == Secrets::IfThere => return unknown(),
                digits => digits
                    .with_context(|| format!("{name} = \"{source}\": {} cannot be read", path.display()))?,
            };
            (digits, format!("{name} = \"{source}\""))
        }
        // The text may be the key itself, so the error does not repeat it.
        _ => bail!("{name}: expected \"env:NAME\", \"file:PATH\" or \"hex:DIGITS\""),
    };
    let digits = zeroize::Zeroizing::new(digits);
    Key::from_hex(digits.trim()).map_err(|reason| anyhow::anyhow!("{place}: {reason}"))
}

fn read_limits(mut table: Table<file::Limits>, problems: &mut Problems) -> Limits {
    let defaults = Limits::default();
    let seconds = |value: Option<u64>, default: Duration| value.map_or(default, Duration::from_secs);
    let (per_identity, per_address) = (table.values.requests_per_identity, table.values.requests_per_address);
    let mut rate = |key, value, default| {
        table.checked(problems, &[key], read_rate(key, value, default)).unwrap_or(default)
    };
    let per_identity = rate("requests_per_identity", per_identity, defaults.requests.per_identity);
    let per_address = rate("requests_per_address", per_address, defaults.requests.per_address);
    let section = &table.values;
    Limits {
        workers: section.workers.unwrap_or(defaults.workers),
        dtls: dtls::Config {
            max_sessions: section.max_sessions.unwrap_or(defaults.dtls.max_sessions),
            sessions_per_holder: section.sessions_per_device.unwrap_or(defaults.dtls.sessions_per_holder),
            max_handshakes: section.max_handshakes.unwrap_or(defaults.dtls.max_handshakes),
            max_handshakes_per_address: section
                .max_handshakes_per_address
                .unwrap_or(defaults.dtls.max_handshakes_per_address),
            handshake_timeout: seconds(section.handshake_timeout, defaults.dtls.handshake_timeout),
            retransmission_timeout: section
                .retransmission_timeout
                .map_or(defaults.dtls.retransmission_timeout, |file::Seconds(value)| value),
            session_idle: seconds(section.session_idle, defaults.dtls.session_idle),
            session_max_age: seconds(section.session_max_age, defaults.dtls.session_max_age),
            path_mtu: section.path_mtu.unwrap_or(defaults.dtls.path_mtu),
            require_extended_master_secret: section.extended_master_secret == file::Extended::Required,
            ..defaults.dtls
        },
        requests: RequestLimits { per_identity, per_address, ..defaults.requests },
        patience: seconds(section.patience, defaults.patience),
        drain: seconds(section.drain, defaults.drain),
    }
}

#[cfg(test)]
mod tests;
