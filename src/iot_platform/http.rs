//! HTTP as calls use it: TLS and its roots, proxies, time-outs, and what an
//! operator is told when a call gets no answer. Knows no action and no signature.

use std::{
    error::Error,
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use reqwest::{Certificate, Url};
use rustls::CertificateError;

use super::{ApiError, ErrorClass};

/// How long an unused connection is kept; gateways close theirs after 60 s, and
/// a call on a connection that is just being closed fails.
const IDLE_TIMEOUT: Duration = Duration::from_secs(45);

/// How long a call may take, stage by stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// For the name, TCP, a proxy and TLS, where a connection is made.
    pub connect: Duration,
    /// From there or from the beginning of the call to the answer's head; not
    /// less than `connect`.
    pub first_byte: Duration,
    /// For a whole call: credentials, repetitions and the answer's last byte.
    pub whole: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(5),
            first_byte: Duration::from_secs(8),
            whole: Duration::from_secs(10),
        }
    }
}

/// Why a client cannot be made from its configuration.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The endpoint is not a URL that can be called.
    #[error(
        "iot_platform endpoint {endpoint:?} {what}; it should look like https://iot.cn-shanghai.aliyuncs.com"
    )]
    Endpoint {
        /// The endpoint as configured, without a password that stood in it.
        endpoint: String,
        /// What is wrong with it.
        what: String,
    },
    /// The region is empty.
    #[error("iot_platform region is empty; it should be a region ID such as cn-shanghai")]
    Region,
    /// The metadata service's address is not one.
    #[error(
        "metadata_endpoint {0:?} is no http URL without a path; it should look like http://100.100.100.200"
    )]
    MetadataEndpoint(String),
    /// The file with roots of its own cannot be used.
    #[error("ca_file {} {what}; it should hold certificates in PEM (-----BEGIN CERTIFICATE-----)", path.display())]
    CaFile {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// There is no access key.
    #[error(
        "no access key for IoT Platform: set ALIBABA_CLOUD_ACCESS_KEY_ID and ALIBABA_CLOUD_ACCESS_KEY_SECRET"
    )]
    AccessKey,
    /// TLS or the system's randomness could not be set up; most often there are
    /// no root certificates.
    #[error("cannot set up calls to IoT Platform ({0}); is the package ca-certificates installed?")]
    Setup(String),
}

/// A client for an endpoint, with roots that are trusted besides the system's.
pub(super) fn http_client(
    endpoint: &Url,
    timeouts: &Timeouts,
    ca_file: Option<&Path>,
) -> Result<reqwest::Client, ClientError> {
    let mut builder = builder()
        .connect_timeout(timeouts.connect)
        .pool_idle_timeout(IDLE_TIMEOUT)
        // HTTP/1.1: a call that times out takes its connection with it. One
        // HTTP/2 connection that a NAT forgot would fail all calls after it.
        .http1_only();
    // Read even where it is not needed: a wrong one is found at once.
    let roots = ca_file.map(read_roots).transpose()?;
    if endpoint.scheme() == "http" {
        // Without TLS no roots are needed, and a machine may well have none. A
        // proxy that is itself spoken to by https needs them.
        builder = builder.tls_certs_only(roots.unwrap_or_default());
    } else if let Some(roots) = roots {
        builder = builder.tls_certs_merge(roots);
    }
    if is_loopback(endpoint) {
        // The simulator is not behind HTTP_PROXY.
        builder = builder.no_proxy();
    }
    builder.build().map_err(|error| ClientError::Setup(with_causes(&error)))
}

/// A client for what this machine's hypervisor answers: never through a proxy,
/// which would be given the token of whatever machine the proxy runs on.
pub(super) fn metadata_client(timeout: Duration) -> Result<reqwest::Client, ClientError> {
    let builder = builder().no_proxy().connect_timeout(timeout).timeout(timeout).tls_certs_only([]);
    builder.build().map_err(|error| ClientError::Setup(with_causes(&error)))
}

fn builder() -> reqwest::ClientBuilder {
    // reqwest takes the process's provider and panics without one. Whoever
    // installed another one first meant it.
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder()
        .user_agent(concat!("certdist/", env!("CARGO_PKG_VERSION")))
        // A signed call goes where it was addressed to, or nowhere.
        .redirect(reqwest::redirect::Policy::none())
}

/// The certificates of a PEM file.
pub(crate) fn read_roots(path: &Path) -> Result<Vec<Certificate>, ClientError> {
    let wrong = |what: String| ClientError::CaFile { path: path.to_owned(), what };
    let pem = fs::read(path).map_err(|error| wrong(format!("cannot be read ({error})")))?;
    let roots = Certificate::from_pem_bundle(&pem).map_err(|error| wrong(with_causes(&error)))?;
    match roots.is_empty() {
        true => Err(wrong("has no certificate".into())),
        false => Ok(roots),
    }
}

fn is_loopback(url: &Url) -> bool {
    url.host_str().is_some_and(|host| {
        let address = host.trim_start_matches('[').trim_end_matches(']').parse::<std::net::IpAddr>();
        host == "localhost" || address.is_ok_and(|address| address.is_loopback())
    })
}

/// A call without an answer. A time-out, other than of the connection itself, may
/// have carried the call out.
pub(super) fn unanswered(error: &reqwest::Error, endpoint: &Url, timeouts: &Timeouts) -> ApiError {
    let (class, code, message) = if let Some(what) = certificate_error(error) {
        let host = endpoint.host_str().unwrap_or_default();
        (ErrorClass::Operator, "Certificate", untrusted(host, what))
    } else if error.is_timeout() && error.is_connect() {
        let seconds = timeouts.connect.as_secs_f64();
        (ErrorClass::TryAgain, "Connection", format!("no connection within {seconds} s (connect_timeout)"))
    } else if error.is_timeout() {
        let seconds = timeouts.whole.as_secs_f64();
        (ErrorClass::TimedOut, "Timeout", format!("no whole answer within {seconds} s (timeout)"))
    } else {
        (ErrorClass::TryAgain, "Connection", with_causes(error))
    };
    ApiError { class, code: code.into(), message }
}

/// A call whose answer does not begin; it may have been carried out.
pub(super) fn no_first_byte(timeouts: &Timeouts) -> ApiError {
    ApiError {
        class: ErrorClass::TimedOut,
        code: "Timeout".into(),
        message: format!("no answer within {} s (first_byte_timeout)", timeouts.first_byte.as_secs_f64()),
    }
}

/// What an operator can do about a certificate that was refused.
fn untrusted(host: &str, error: &CertificateError) -> String {
    match error {
        // A bad signature: by another CA of the same name, such as one made anew.
        CertificateError::UnknownIssuer | CertificateError::BadSignature => format!(
            "the certificate shown for {host} is by nobody that this machine trusts: name the CA with \
             ca_file if it is your own or a proxy's, else mend ca-certificates"
        ),
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => format!(
            "the certificate shown for {host} has expired: renew it, or set this machine's clock (NTP) if it \
             is ahead"
        ),
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => format!(
            "the certificate shown for {host} is not valid yet: this machine's clock is probably behind, set \
             it (NTP)"
        ),
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => format!(
            "the certificate shown for {host} is for another name: correct endpoint, or what {host} resolves \
             to"
        ),
        other => format!("the certificate shown for {host} is refused: {other}"),
    }
}

/// What TLS has against the certificate, wherever it stands among the causes.
fn certificate_error<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a CertificateError> {
    causes(error).find_map(|cause| match cause.downcast_ref::<rustls::Error>() {
        Some(rustls::Error::InvalidCertificate(what)) => Some(what),
        _ => None,
    })
}

/// An error and what caused it, outermost first.
fn causes<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |&error| {
        // An I/O error stands for the one in it, and says only that one's cause.
        let inner = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        inner.map(|inner| inner as &(dyn Error + 'static)).or_else(|| error.source())
    })
}

/// An error and what caused it, on one line: reqwest's own says only which step
/// failed.
pub(super) fn with_causes(error: &(dyn Error + 'static)) -> String {
    let mut texts: Vec<_> = causes(error).map(ToString::to_string).collect();
    texts.dedup();
    texts.join(": ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_is_called_without_a_proxy() {
        for (url, loopback) in [
            ("http://127.0.0.1:8086", true),
            ("http://[::1]:8086", true),
            ("http://localhost:8086", true),
            ("https://iot.cn-shanghai.aliyuncs.com", false),
            ("http://10.0.0.1", false),
        ] {
            assert_eq!(is_loopback(&Url::parse(url).unwrap()), loopback, "{url}");
        }
    }

    #[test]
    fn each_certificate_that_is_refused_says_what_to_do_in_one_line_of_a_log() {
        let host = "iot.ap-northeast-1.aliyuncs.com";
        for (error, advice) in [
            (CertificateError::UnknownIssuer, "ca_file"),
            (CertificateError::BadSignature, "ca_file"),
            (CertificateError::Expired, "renew it"),
            (CertificateError::NotValidYet, "NTP"),
            (CertificateError::NotValidForName, "correct endpoint"),
            (CertificateError::Revoked, "is refused"),
        ] {
            let message = untrusted(host, &error);
            assert!(message.contains(advice) && message.contains(host), "{message}");
            assert!(message.chars().count() <= super::super::answer::MAX_MESSAGE, "{message}");
        }
    }

    #[test]
    fn a_file_without_roots_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ca.pem");
        let error = read_roots(&path).unwrap_err().to_string();
        assert!(error.contains("cannot be read") && error.contains("ca.pem"), "{error}");
        fs::write(&path, "not a certificate").unwrap();
        let error = read_roots(&path).unwrap_err().to_string();
        assert!(error.contains("has no certificate") && error.contains("BEGIN CERTIFICATE"), "{error}");
    }
}
