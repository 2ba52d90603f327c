//! Address of the database, and the way certdist signs in: the URL in `database`. The password in it is
//! never shown.

use std::{
    str::FromStr,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use rand::RngExt;
use tokio::time::timeout;
use tokio_postgres::{
    Client, Config,
    config::{Host, LoadBalanceHosts, SslMode},
};

use super::{failure::Failure, tls::Tls};
use crate::store::StoreError;

/// Time without traffic after which the system asks whether the server is still there, and time
/// without an acknowledgement after which a connection counts as lost.
const KEEPALIVE: Duration = Duration::from_secs(15);
const UNACKNOWLEDGED: Duration = Duration::from_secs(10);

/// Minimum time that each of several hosts is given to accept a connection, even if an equal part of
/// the whole time is shorter.
const LEAST_SHARE: Duration = Duration::from_secs(1);

/// The address of a database.
pub(super) struct Address {
    /// One configuration for each host; at least one.
    hosts: Vec<Config>,
    /// Index of the host that accepted the last connection.
    last: AtomicUsize,
    shown: String,
    tls: Tls,
}

impl Address {
    /// Parses `postgres://USER:PASSWORD@HOST:PORT,…/DATABASE?sslmode=…`. The URL may have the
    /// parameters of libpq that are about hosts, time-outs, keep-alive and sign-in, and `sslrootcert`
    /// with the path of a PEM file.
    ///
    /// `sslmode` is `disable`, `prefer` (the default) or `verify-full`. `require` and `verify-ca`
    /// mean `verify-full`, because a certificate that is not checked protects from no one.
    pub(super) fn parse(url: &str) -> Result<Self, StoreError> {
        let failed = |reason: &str| {
            StoreError::Failed(format!("database: {reason}; expected postgres://USER:PASSWORD@HOST/DATABASE"))
        };
        let (base, query) = url.split_once('?').unwrap_or((url, ""));
        let (mut root, mut kept) = (None, Vec::new());
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            match pair.split_once('=') {
                Some(("sslrootcert", path)) => {
                    let path = percent_encoding::percent_decode_str(path).decode_utf8();
                    root = Some(path.map_err(|_| failed("sslrootcert is not UTF-8"))?.into_owned());
                }
                Some(("sslmode", "verify-full" | "verify-ca")) => kept.push("sslmode=require"),
                _ => kept.push(pair),
            }
        }
        let mut config = Config::from_str(&format!("{base}?{}", kept.join("&"))).map_err(|error| {
            // The causes of this error name a parameter, and never its value.
            let cause = std::error::Error::source(&error).map(|cause| format!(" ({cause})"));
            failed(&format!("the URL cannot be read{}", cause.unwrap_or_default()))
        })?;
        if config.get_hosts().is_empty() && config.get_hostaddrs().is_empty() {
            return Err(failed("no host is named"));
        }
        let (named, addresses) = (config.get_hosts().len(), config.get_hostaddrs().len());
        let count = named.max(addresses);
        if named != 0 && addresses != 0 && named != addresses
            || ![0, 1, count].contains(&config.get_ports().len())
        {
            return Err(failed("the numbers of hosts, addresses and ports differ"));
        }
        if config.get_application_name().is_none() {
            config.application_name("certdist");
        }
        config.keepalives_idle(KEEPALIVE).tcp_user_timeout(UNACKNOWLEDGED);
        let is_remote = config.get_hosts().iter().any(|host| matches!(host, Host::Tcp(_)))
            || !config.get_hostaddrs().is_empty();
        let tls = match config.get_ssl_mode() {
            SslMode::Disable => Tls::off(),
            _ if !is_remote => {
                config.ssl_mode(SslMode::Disable);
                Tls::off()
            }
            _ => Tls::new(root.as_deref().map(AsRef::as_ref))?,
        };
        let hosts = (0..count).map(|index| only(&config, index)).collect();
        Ok(Self { shown: shown(&config), hosts, last: AtomicUsize::new(0), tls })
    }

    /// Returns the database as `postgres://USER@HOST,…/DATABASE`, without the password.
    pub(super) fn shown(&self) -> &str {
        &self.shown
    }

    /// Opens a connection to the first host that accepts it, beginning with the one that accepted the
    /// last connection, or with a random one if the URL has `load_balance_hosts=random`. Each host has
    /// an equal share of `limit`, so that a host that accepts connections but does not answer, such as
    /// a former primary that hangs, leaves time for the others. A task in the runtime of the caller
    /// drives the connection.
    pub(super) async fn connect(&self, limit: Duration) -> Result<Client, Failure> {
        let count = self.hosts.len();
        let first = match self.hosts[0].get_load_balance_hosts() {
            LoadBalanceHosts::Random => rand::rng().random_range(0..count),
            _ => self.last.load(Ordering::Relaxed),
        };
        let share = (limit / u32::try_from(count).unwrap_or(u32::MAX)).max(LEAST_SHARE);
        let mut failed = None;
        for index in (0..count).map(|step| (first + step) % count) {
            match timeout(share, self.hosts[index].connect(self.tls.clone())).await {
                Ok(Ok((client, connection))) => {
                    self.last.store(index, Ordering::Relaxed);
                    tokio::spawn(async move {
                        // The user of the connection gets the error, too.
                        if let Err(error) = connection.await {
                            tracing::debug!(%error, "a connection to the database has ended");
                        }
                    });
                    return Ok(client);
                }
                Ok(Err(error)) => failed = Some(error.into()),
                Err(_) => {}
            }
        }
        Err(failed.unwrap_or_else(|| {
            StoreError::Busy(format!("{}: the server did not answer in time; try again", self.shown)).into()
        }))
    }
}

/// Returns the configuration of one of the hosts.
fn only(config: &Config, index: usize) -> Config {
    let mut one = Config::new();
    match config.get_hosts().get(index) {
        Some(Host::Tcp(name)) => drop(one.host(name)),
        #[cfg(unix)]
        Some(Host::Unix(path)) => drop(one.host_path(path)),
        None => {}
    }
    if let Some(address) = config.get_hostaddrs().get(index) {
        one.hostaddr(*address);
    }
    if let Some(port) = config.get_ports().get(index).or_else(|| config.get_ports().first()) {
        one.port(*port);
    }
    if let Some(user) = config.get_user() {
        one.user(user);
    }
    if let Some(password) = config.get_password() {
        one.password(password);
    }
    if let Some(name) = config.get_dbname() {
        one.dbname(name);
    }
    if let Some(options) = config.get_options() {
        one.options(options);
    }
    if let Some(name) = config.get_application_name() {
        one.application_name(name);
    }
    if let Some(time) = config.get_connect_timeout() {
        one.connect_timeout(*time);
    }
    if let Some(time) = config.get_tcp_user_timeout() {
        one.tcp_user_timeout(*time);
    }
    if let Some(time) = config.get_keepalives_interval() {
        one.keepalives_interval(time);
    }
    if let Some(retries) = config.get_keepalives_retries() {
        one.keepalives_retries(retries);
    }
    one.ssl_mode(config.get_ssl_mode())
        .ssl_negotiation(config.get_ssl_negotiation())
        .keepalives(config.get_keepalives())
        .keepalives_idle(config.get_keepalives_idle())
        .target_session_attrs(config.get_target_session_attrs())
        .channel_binding(config.get_channel_binding())
        .load_balance_hosts(config.get_load_balance_hosts());
    one
}

fn shown(config: &Config) -> String {
    let ports = config.get_ports();
    let hosts: Vec<String> = config
        .get_hosts()
        .iter()
        .enumerate()
        .map(|(index, host)| match host {
            #[cfg(unix)]
            Host::Unix(path) => path.display().to_string(),
            Host::Tcp(name) => match ports.get(index).or_else(|| ports.first()) {
                Some(port) => format!("{name}:{port}"),
                None => name.clone(),
            },
        })
        .collect();
    let user = config.get_user().map(|user| format!("{user}@")).unwrap_or_default();
    let name = config.get_dbname().or(config.get_user()).unwrap_or_default();
    format!("postgres://{user}{}/{name}", hosts.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(url: &str) -> String {
        Address::parse(url).err().expect("the URL is refused").to_string()
    }

    #[test]
    fn a_password_is_never_shown() {
        for url in [
            "postgres://anna:s3cret@db1:5433,db2/certdist?target_session_attrs=read-write&sslmode=disable",
            "postgres://anna@db1:5433,db2:5433/certdist?password=s3cret&sslmode=disable",
        ] {
            let address = Address::parse(url).unwrap();
            assert!(address.shown().starts_with("postgres://anna@db1:5433,db2:"), "{}", address.shown());
            assert!(address.shown().ends_with("/certdist"), "{}", address.shown());
        }
        for url in [
            "postgres://anna:s3cret@db:port/certdist",
            "postgres://anna:s3cret@db/certdist?sslmode=s3cret",
            "postgres://anna:s3cret@/certdist",
            "postgres://anna:s3cret@db/certdist?connect_timeout=s3cret",
            "postgres://anna:s3cret%ff@db/certdist?s3cret=1",
        ] {
            let error = error(url);
            assert!(error.contains("postgres://USER"), "{error}");
            assert!(!error.replace("s3cret`", "").contains(":s3cret"), "{error}");
        }
    }

    #[test]
    fn a_database_on_a_socket_needs_no_tls() {
        let address = Address::parse("postgres://anna@%2Frun%2Fpostgresql/certdist?sslmode=disable").unwrap();
        assert_eq!(address.shown(), "postgres://anna@/run/postgresql/certdist");
    }

    #[test]
    fn each_host_has_the_whole_configuration() {
        let url = "postgres://anna:s3cret@db1:5433,db2/certdist?target_session_attrs=read-write&sslmode=disable\
                   &connect_timeout=3&tcp_user_timeout=7&keepalives=1&keepalives_idle=9&keepalives_interval=4\
                   &keepalives_retries=2&options=-c%20geqo%3Doff&application_name=x&channel_binding=disable\
                   &load_balance_hosts=random";
        let address = Address::parse(url).unwrap();
        let [first, second] = &address.hosts[..] else { panic!("two hosts") };
        let expected = |host: &str| {
            let mut config = Config::from_str(&url.replace("db1:5433,db2", host)).unwrap();
            config.keepalives_idle(KEEPALIVE).tcp_user_timeout(UNACKNOWLEDGED);
            config
        };
        assert_eq!(*first, expected("db1:5433"));
        assert_eq!(*second, expected("db2:5432"));
    }

    #[test]
    fn a_root_certificate_that_is_not_there_is_named() {
        let error = error("postgres://anna@db/certdist?sslmode=verify-full&sslrootcert=%2Fno%2Fsuch.pem");
        assert!(error.contains("/no/such.pem"), "{error}");
    }
}
