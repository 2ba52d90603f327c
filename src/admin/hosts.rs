//! Decides which hosts a request may name. The owner of a foreign site can point its name at the
//! address of this server (DNS rebinding). Scripts of that site could then read this server's
//! answers. Their requests name the foreign site as their host, and are therefore refused. Performs
//! no I/O.

use std::net::IpAddr;

use axum::http::{HeaderMap, Uri, Version, header};

use crate::config::normal_host;

/// Names and addresses under which the server is reached, in the form of [`normal_host`].
pub(super) struct Hosts {
    names: Vec<String>,
}

/// Result of the check of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Named {
    /// The request names this server.
    Known,
    /// The request names another host. Contains the name of that host.
    Unknown(String),
    /// The request's host is malformed, or missing although HTTP requires it.
    Invalid,
}

impl Hosts {
    /// Collects the names under which the server is reached: the address that the port listens on,
    /// the machine's name, and the configured names.
    pub(super) fn new(listen: IpAddr, machine: &str, configured: &[String]) -> Self {
        let short = machine.split('.').next().unwrap_or_default();
        let own = [listen.to_canonical().to_string(), machine.to_owned(), short.to_owned()];
        let own = own.iter().filter_map(|name| normal_host(name));
        Self { names: own.chain(configured.iter().cloned()).collect() }
    }

    /// Checks the host that a request names. `local` is the address at which the request's
    /// connection arrived.
    pub(super) fn check(&self, version: Version, uri: &Uri, headers: &HeaderMap, local: IpAddr) -> Named {
        let mut hosts = headers.get_all(header::HOST).iter();
        let first = match (hosts.next(), hosts.next()) {
            (Some(host), None) => host.to_str().ok(),
            // RFC 9112 §3.2: HTTP/1.1 requires exactly one Host header, HTTP/1.0 does not. Browsers
            // always send one, so a request without it is not from a page, and is permitted.
            (None, _) if version < Version::HTTP_11 => Some("localhost"),
            _ => None,
        };
        // A request to a proxy has the host in its target as well (RFC 9112 §3.2.2).
        let target = uri.authority().map(|authority| authority.as_str());
        for host in [first].into_iter().chain(target.map(Some)) {
            let Some(name) = host.and_then(without_port).and_then(normal_host) else {
                return Named::Invalid;
            };
            if !self.knows(&name, local) {
                return Named::Unknown(name);
            }
        }
        Named::Known
    }

    fn knows(&self, name: &str, local: IpAddr) -> bool {
        let is_local = match name.parse::<IpAddr>() {
            Ok(address) => address.is_loopback() || address == local.to_canonical(),
            // RFC 6761 §6.3: these names always mean the loopback address.
            Err(_) => name == "localhost" || name.ends_with(".localhost"),
        };
        is_local || self.names.iter().any(|known| known == name)
    }
}

/// Removes the port. The port is not checked, because a tunnel or a container may change it.
fn without_port(host: &str) -> Option<&str> {
    let (name, port) = match host.strip_prefix('[') {
        Some(rest) => rest.split_once(']')?,
        None => host.split_at(host.find(':').unwrap_or(host.len())),
    };
    let is_port = port.is_empty() || port.strip_prefix(':')?.bytes().all(|byte| byte.is_ascii_digit());
    is_port.then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(hosts: &Hosts, lines: &[&str]) -> Named {
        let lines = lines.iter().map(|line| (header::HOST, line.parse().unwrap()));
        hosts.check(Version::HTTP_11, &Uri::from_static("/"), &lines.collect(), "10.1.2.3".parse().unwrap())
    }

    fn hosts() -> Hosts {
        Hosts::new("0.0.0.0".parse().unwrap(), "Gate-7.example", &["console.example.com".to_owned()])
    }

    #[test]
    fn a_request_names_this_server_by_an_address_or_a_name_of_its_own() {
        for host in [
            "localhost",
            "LOCALHOST.:9684",
            "certdist.localhost",
            "127.0.0.1:9684",
            "127.9.9.9",
            "[::1]:9684",
            "10.1.2.3:9684",
            "[::ffff:10.1.2.3]",
            "0.0.0.0:9684",
            "gate-7",
            "gate-7.example:80",
            "Console.Example.com",
            "console.example.com.",
        ] {
            assert_eq!(check(&hosts(), &[host]), Named::Known, "{host}");
        }
    }

    #[test]
    fn another_host_is_named_and_none_is_invalid() {
        for host in [
            "evil.example",
            "10.1.2.4",
            "[2001:db8::1]",
            "localhost.evil.example",
            "notlocalhost",
            "gate-7.evil.example",
            "127.0.0.1.evil.example",
            "x.console.example.com",
        ] {
            let expected = host.trim_matches(['[', ']']).to_owned();
            assert_eq!(check(&hosts(), &[host]), Named::Unknown(expected), "{host}");
        }
        for lines in [
            &[][..],
            &[""],
            &["localhost", "localhost"],
            &["localhost:x"],
            &["user@localhost"],
            &["[::1"],
            &["a b"],
            &["evil.example\u{e9}"],
        ] {
            assert_eq!(check(&hosts(), lines), Named::Invalid, "{lines:?}");
        }
    }

    #[test]
    fn a_target_with_a_host_is_checked_and_an_old_request_may_have_no_host() {
        let local = "10.1.2.3".parse().unwrap();
        let named = |version, target: &'static str, host: Option<&str>| {
            let headers = host.map(|host| (header::HOST, host.parse().unwrap())).into_iter().collect();
            hosts().check(version, &Uri::from_static(target), &headers, local)
        };
        let evil = Named::Unknown("evil.example".into());
        assert_eq!(named(Version::HTTP_11, "http://evil.example/", Some("localhost")), evil);
        assert_eq!(named(Version::HTTP_11, "http://localhost:9684/", Some("localhost")), Named::Known);
        assert_eq!(named(Version::HTTP_10, "/", None), Named::Known);
        assert_eq!(named(Version::HTTP_10, "/", Some("evil.example")), evil);
        assert_eq!(named(Version::HTTP_11, "/", None), Named::Invalid);
    }
}
