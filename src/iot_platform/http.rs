//! HTTP for the calls: root certificates, proxies, timeouts, and explanations for the operator when
//! a call gets no answer. Knows nothing about actions or signatures.

use std::{
    error::Error,
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use reqwest::{Certificate, Response, Url};
use rustls::CertificateError;
use zeroize::Zeroizing;

use super::{ApiError, ErrorClass, NOT_SENT};

/// Time after which an idle connection is closed. Gateways close idle connections after 60 s, and a
/// call fails if the gateway closes its connection at the same moment.
const IDLE_TIMEOUT: Duration = Duration::from_secs(45);

/// Initial capacity for an answer of unknown length, in bytes.
const USUAL_ANSWER: usize = 4096;

/// Time limits of a call and its stages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// Time to resolve the name and to connect, including the handshakes with a proxy and TLS.
    pub connect: Duration,
    /// Time from the start of a request to the first byte of its answer. Includes the time to
    /// connect, so it is at least `connect`.
    pub first_byte: Duration,
    /// Time for a whole call, which includes reading the credentials, repetitions, and receiving
    /// the whole answer.
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

/// Error in the settings of a client.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The endpoint is not a URL that can be called.
    #[error(
        "iot_platform endpoint {endpoint:?} {what}; it should look like https://iot.cn-shanghai.aliyuncs.com"
    )]
    Endpoint {
        /// The configured endpoint, without any password.
        endpoint: String,
        /// Reason.
        what: String,
    },
    /// The region is empty.
    #[error("iot_platform region is empty; it should be a region ID such as cn-shanghai")]
    Region,
    /// The metadata service's address is wrong.
    #[error(
        "metadata_endpoint {0:?} is not an http URL without a path; it should look like http://100.100.100.200"
    )]
    MetadataEndpoint(String),
    /// The file with additional root certificates cannot be used.
    #[error("ca_file {} {what}; it should hold certificates in PEM (-----BEGIN CERTIFICATE-----)", path.display())]
    CaFile {
        /// Path of the file.
        path: PathBuf,
        /// Reason.
        what: String,
    },
    /// No access key is configured.
    #[error(
        "no access key for IoT Platform: set ALIBABA_CLOUD_ACCESS_KEY_ID and ALIBABA_CLOUD_ACCESS_KEY_SECRET"
    )]
    AccessKey,
    /// TLS or the system's random numbers could not be set up. The usual cause is that the system
    /// has no root certificates.
    #[error(
        "could not set up calls to IoT Platform ({0}); check that the package ca-certificates is installed"
    )]
    Setup(String),
}

/// Makes a client for an endpoint. It trusts the certificates of `ca_file` in addition to the
/// system's root certificates.
pub(crate) fn http_client(
    endpoint: &Url,
    timeouts: &Timeouts,
    ca_file: Option<&Path>,
) -> Result<reqwest::Client, ClientError> {
    let mut builder = builder()
        .connect_timeout(timeouts.connect)
        .pool_idle_timeout(IDLE_TIMEOUT)
        // With HTTP/1.1, a call that times out ends its connection. With HTTP/2, later calls would
        // share the connection, and all of them would fail if a NAT had dropped the connection.
        .http1_only();
    // The file is read even if it is not needed, so that a wrong file is noticed immediately.
    let roots = ca_file.map(read_roots).transpose()?;
    if endpoint.scheme() == "http" {
        // The endpoint does not use TLS, so the system's root certificates, which may be missing,
        // are not loaded. The certificates of `ca_file` may still be needed for a proxy with https.
        builder = builder.tls_certs_only(roots.unwrap_or_default());
    } else if let Some(roots) = roots {
        builder = builder.tls_certs_merge(roots);
    }
    if is_loopback(endpoint) {
        // An endpoint on this machine, such as the simulator, is never called through HTTP_PROXY.
        builder = builder.no_proxy();
    }
    builder.build().map_err(|error| ClientError::Setup(with_causes(&error)))
}

/// Makes a client for the metadata service. The client never uses a proxy: through a proxy, it
/// would get the access key of the proxy's machine.
pub(super) fn metadata_client(timeout: Duration) -> Result<reqwest::Client, ClientError> {
    let builder = builder().no_proxy().connect_timeout(timeout).timeout(timeout).tls_certs_only([]);
    builder.build().map_err(|error| ClientError::Setup(with_causes(&error)))
}

fn builder() -> reqwest::ClientBuilder {
    // reqwest uses the process's crypto provider, and panics if none is installed. A provider that
    // is already installed is kept.
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder()
        .user_agent(concat!("certdist/", env!("CARGO_PKG_VERSION")))
        // A signed call must not be redirected.
        .redirect(reqwest::redirect::Policy::none())
}

/// Reads the certificates of a PEM file.
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

/// Converts the error of a call without an answer. After a timeout, the call may have been carried
/// out, unless no connection was established.
pub(crate) fn unanswered(error: &reqwest::Error, endpoint: &Url, timeouts: &Timeouts) -> ApiError {
    let (class, code, message) = if let Some(what) = certificate_error(error) {
        let host = endpoint.host_str().unwrap_or_default();
        (ErrorClass::Operator, "Certificate", untrusted(host, what))
    } else if error.is_timeout() && error.is_connect() {
        let seconds = timeouts.connect.as_secs_f64();
        (ErrorClass::TryAgain, NOT_SENT, format!("no connection within {seconds} s (connect_timeout)"))
    } else if error.is_timeout() {
        let seconds = timeouts.whole.as_secs_f64();
        (ErrorClass::TimedOut, "Timeout", format!("no complete answer within {seconds} s (timeout)"))
    } else if error.is_connect() {
        (ErrorClass::TryAgain, NOT_SENT, with_causes(error))
    } else {
        (ErrorClass::TryAgain, "Connection", with_causes(error))
    };
    ApiError { class, code: code.into(), message }
}

/// Reads the body of an answer, up to `limit` bytes. The body may contain a secret, so it is wiped
/// when it is dropped, and no copy of a part of it is left in freed memory.
pub(crate) async fn bounded_body<E>(
    mut response: Response,
    limit: usize,
    unanswered: impl Fn(reqwest::Error) -> E,
    too_long: impl Fn() -> E,
) -> Result<Zeroizing<Vec<u8>>, E> {
    if response.content_length().is_some_and(|length| length > limit as u64) {
        return Err(too_long());
    }
    let room = response.content_length().map_or(USUAL_ANSWER, |length| length as usize);
    let mut body = Zeroizing::new(Vec::with_capacity(room));
    while let Some(chunk) = response.chunk().await.map_err(&unanswered)? {
        let length = body.len() + chunk.len();
        if length > limit {
            return Err(too_long());
        }
        if length > body.capacity() {
            // If the vector reallocated by itself, it would leave a copy of a secret in freed
            // memory.
            let mut larger = Zeroizing::new(Vec::with_capacity(2 * length));
            larger.extend_from_slice(&body);
            body = larger;
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// Makes the error of a call whose answer did not begin in time. Such a call may have been carried
/// out.
pub(crate) fn no_first_byte(timeouts: &Timeouts) -> ApiError {
    ApiError {
        class: ErrorClass::TimedOut,
        code: "Timeout".into(),
        message: format!("no answer within {} s (first_byte_timeout)", timeouts.first_byte.as_secs_f64()),
    }
}

/// Returns a message that says what an operator can do about a refused certificate.
fn untrusted(host: &str, error: &CertificateError) -> String {
    match error {
        // The signature is bad if the certificate comes from another CA with the same name, for
        // example because the CA was set up again.
        CertificateError::UnknownIssuer | CertificateError::BadSignature => format!(
            "the certificate shown for {host} is from a CA that this machine does not trust: set ca_file if the \
             CA is your own or a proxy's, else repair the package ca-certificates"
        ),
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => format!(
            "the certificate shown for {host} has expired: renew it, or set this machine's clock (NTP) if it \
             is ahead"
        ),
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => format!(
            "the certificate shown for {host} is not valid yet: this machine's clock is probably behind; set \
             it (NTP)"
        ),
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => format!(
            "the certificate shown for {host} is for another name: correct endpoint, or the address that {host} \
             resolves to"
        ),
        other => format!("the certificate shown for {host} is refused: {other}"),
    }
}

/// Finds the certificate error of TLS among the causes of an error.
fn certificate_error<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a CertificateError> {
    causes(error).find_map(|cause| match cause.downcast_ref::<rustls::Error>() {
        Some(rustls::Error::InvalidCertificate(what)) => Some(what),
        _ => None,
    })
}

/// Iterates over an error and its causes, outermost first.
fn causes<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |&error| {
        // The `source` of an I/O error skips the error that the I/O error wraps, so the wrapped
        // error is taken first.
        let inner = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        inner.map(|inner| inner as &(dyn Error + 'static)).or_else(|| error.source())
    })
}

/// Formats an error and its causes on one line. The text of reqwest's own error only says which
/// step failed.
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
