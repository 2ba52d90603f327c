//! The client of IoT Platform's API. It signs calls, and limits the time and memory of each call.
//! If the nonce, the clock or the token was wrong, it signs the call again and repeats it. The
//! registrar decides about all other repetitions, and about the rate of calls.

mod actions;

use std::{
    fmt,
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
    time::Duration,
};

use reqwest::{Url, header};
use tokio::time::{Instant, timeout};
use zeroize::Zeroizing;

use super::{
    Action, ApiError, ErrorClass, NONCE_USED,
    answer::{self, NOT_AN_ANSWER},
    credentials::Holder,
    http,
    request::Call,
};
pub use super::{
    credentials::{Credentials, Source},
    http::{ClientError, Timeouts},
    request::SignatureVersion,
};
use crate::device::Secret;

/// Maximum length of an answer, in bytes. The longest answer is the status of a batch of 10,000
/// names. In this answer, each name may occur twice and may have an explanation.
const MAX_ANSWER: usize = 4 * 1024 * 1024;
/// Change of the clock offset above which a warning is logged, in seconds. The `Date` header has a
/// resolution of only one second.
const CLOCK_TOLERANCE: u64 = 2;
/// Time for which the `Date` of an answer is used to estimate the cloud's time. It is longer than
/// the pause between two sweeps, because the calls of each sweep bring newer answers.
const SEEN_FOR: Duration = Duration::from_secs(15 * 60);

/// Settings of a [`Client`].
#[derive(Debug, Clone)]
pub struct ClientConfig {
    /// `https://iot.REGION.aliyuncs.com`, or any other URL without a query.
    pub endpoint: String,
    /// `RegionId`, such as `cn-shanghai`.
    pub region: String,
    /// `IotInstanceId`; empty for the public instance without an ID.
    pub instance_id: String,
    /// Credentials of the calls, or their source.
    pub credentials: Source,
    /// Version of the signature.
    pub signature: SignatureVersion,
    /// Time limits of a call.
    pub timeouts: Timeouts,
    /// PEM file with root certificates that are trusted in addition to the system's root
    /// certificates.
    pub ca_file: Option<PathBuf>,
    /// Seconds to add to this machine's clock to get the cloud's time. When a timestamp is refused,
    /// the client corrects this number according to the cloud's clock.
    pub clock_offset: i64,
}

impl ClientConfig {
    /// Returns the host of the endpoint, with its port unless that is the usual one.
    pub fn host(&self) -> String {
        let Ok(url) = Url::parse(&self.endpoint) else { return String::new() };
        let host = url.host_str().unwrap_or_default();
        url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
    }

    /// Makes a configuration with default timeouts, version 1 of the signature, no instance ID,
    /// and a clock offset of 0.
    pub fn new(
        endpoint: impl Into<String>,
        region: impl Into<String>,
        credentials: impl Into<Source>,
    ) -> Self {
        Self {
            endpoint: endpoint.into(),
            region: region.into(),
            instance_id: String::new(),
            credentials: credentials.into(),
            signature: SignatureVersion::default(),
            timeouts: Timeouts::default(),
            ca_file: None,
            clock_offset: 0,
        }
    }
}

/// A client of one endpoint. All tasks of the process share the client and its connections.
pub struct Client {
    http: reqwest::Client,
    endpoint: Url,
    region: String,
    instance_id: String,
    credentials: Holder,
    signature: SignatureVersion,
    timeouts: Timeouts,
    clock_offset: AtomicI64,
    /// The cloud's time in its last answer, and the instant at which that answer arrived.
    seen: Mutex<Option<(i64, Instant)>>,
    /// Name by which the processes that share the account's pace identify the account.
    account: String,
    nonces: Nonces,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("endpoint", &self.endpoint.as_str()).finish_non_exhaustive()
    }
}

impl Client {
    /// Checks the configuration, and sets up TLS. Makes no call.
    pub fn new(config: ClientConfig) -> Result<Self, ClientError> {
        let endpoint = endpoint_url(&config.endpoint)?;
        if config.region.is_empty() {
            return Err(ClientError::Region);
        }
        Ok(Self {
            http: http::http_client(&endpoint, &config.timeouts, config.ca_file.as_deref())?,
            endpoint,
            region: config.region,
            instance_id: config.instance_id,
            account: config.credentials.account(),
            credentials: Holder::new(config.credentials)?,
            signature: config.signature,
            timeouts: config.timeouts,
            clock_offset: AtomicI64::new(config.clock_offset),
            seen: Mutex::default(),
            nonces: Nonces::new()?,
        })
    }

    /// Reads the credentials, so that an error in the credentials is logged at startup, before the
    /// first call.
    pub async fn read_credentials(&self) {
        // The error is already in the log.
        let _ = self.credentials.current(self.cloud_now(), Instant::now() + self.timeouts.whole).await;
    }

    pub(super) fn account_name(&self) -> &str {
        &self.account
    }

    /// Returns the seconds to add to this machine's clock to get the cloud's time, if the last
    /// answer is recent. The result is right even if this machine's clock was changed after that
    /// answer.
    pub(super) fn seen_offset(&self) -> Option<i64> {
        let (date, at) = (*self.seen())?;
        let age = at.elapsed();
        let cloud_now = date.saturating_add_unsigned(age.as_secs());
        (age <= SEEN_FOR).then(|| cloud_now.saturating_sub(unix_now()))
    }

    fn seen(&self) -> MutexGuard<'_, Option<(i64, Instant)>> {
        // No code panics while it holds the lock.
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the time of the cloud's clock, in seconds since 1970, as estimated by the clock
    /// offset.
    fn cloud_now(&self) -> i64 {
        unix_now().saturating_add(self.clock_offset.load(Ordering::Relaxed))
    }

    /// Calls an action, and reads its answer.
    async fn call<T>(
        &self,
        action: Action,
        parameters: &[(&str, &str)],
        read: impl Fn(&Answer) -> Result<T, ApiError>,
    ) -> Result<T, ApiError> {
        let deadline = Instant::now() + self.timeouts.whole;
        let mut repeated = Repeated::default();
        loop {
            let answer = self.post(action.name(), parameters, deadline).await?;
            let error = match read(&answer) {
                Ok(content) => return Ok(content),
                Err(error) => error,
            };
            tracing::debug!(
                action = action.name(),
                status = answer.status,
                error_code = error.code,
                "IoT Platform refused a call"
            );
            if self.may_repeat(&error, &answer, &mut repeated) {
                continue;
            }
            // If an intermediary sends a call twice, the second copy's nonce is refused, although
            // the first copy may have created the device. The repeated call then fails with
            // `Exists`, as if the device had existed before. So the caller gets the refusal of the
            // nonce.
            let error = match repeated.nonce_used.take() {
                Some(refused) if error.class == ErrorClass::Exists => refused,
                _ => error,
            };
            return Err(without_secrets(error, &answer.credentials));
        }
    }

    /// Returns whether to sign the call again and repeat it. A call is repeated at most once
    /// because of a refused nonce or timestamp, and at most once because of an expired token.
    fn may_repeat(&self, error: &ApiError, answer: &Answer, repeated: &mut Repeated) -> bool {
        if error.class == ErrorClass::SignAgain && !repeated.signed {
            repeated.signed = true;
            if error.code == NONCE_USED {
                repeated.nonce_used = Some(without_secrets(error.clone(), &answer.credentials));
            }
            if error.code == "InvalidTimeStamp.Expired" {
                self.correct_clock(answer.date);
            }
            return true;
        }
        if error.code == "InvalidSecurityToken.Expired" && !repeated.renewed {
            repeated.renewed = true;
            return self.credentials.refuse(&answer.credentials);
        }
        false
    }

    /// Sends a signed request and reads its answer, which may be an error.
    async fn post(
        &self,
        action: &str,
        parameters: &[(&str, &str)],
        deadline: Instant,
    ) -> Result<Answer, ApiError> {
        let now = self.cloud_now();
        let credentials = self.credentials.current(now, deadline).await?;
        let call = Call {
            endpoint: &self.endpoint,
            action,
            parameters,
            region: &self.region,
            instance_id: &self.instance_id,
            nonce: &self.nonces.next(),
            timestamp: &timestamp(now),
        };
        let signed = call.sign(self.signature, &credentials).map_err(|what| ApiError {
            class: ErrorClass::Operator,
            code: "Credentials".into(),
            message: what.into(),
        })?;
        let request = self
            .http
            .post(signed.url)
            .headers(signed.headers)
            .timeout(deadline.saturating_duration_since(Instant::now()))
            .body(signed.body);
        let unanswered = |error: reqwest::Error| {
            // The URL may contain parameters, so it is removed from the error. The caller knows
            // which call has failed.
            let error = http::unanswered(&error.without_url(), &self.endpoint, &self.timeouts);
            without_secrets(error, &credentials)
        };
        let response = timeout(self.timeouts.first_byte, request.send())
            .await
            .map_err(|_| http::no_first_byte(&self.timeouts))?
            .map_err(unanswered)?;
        let status = response.status().as_u16();
        let date = response.headers().get(header::DATE).and_then(|date| http_date(date.as_bytes()));
        if let Some(date) = date {
            *self.seen() = Some((date, Instant::now()));
        }
        let body = http::bounded_body(response, MAX_ANSWER, unanswered, too_long).await?;
        Ok(Answer { status, date, body, credentials })
    }

    /// Sets the clock offset according to the cloud's clock. Logs one warning for each change, even
    /// if several calls in progress have used the old offset.
    fn correct_clock(&self, date: Option<i64>) {
        let Some(date) = date else {
            tracing::warn!(
                "IoT Platform says that this machine's clock is wrong, but not by how much; set it (NTP)"
            );
            return;
        };
        let offset = date - unix_now();
        let before = self.clock_offset.swap(offset, Ordering::Relaxed);
        if offset.abs_diff(before) > CLOCK_TOLERANCE {
            tracing::warn!(
                offset_seconds = offset,
                "IoT Platform's clock differs from this machine's; calls now use IoT Platform's clock; set this \
                 machine's clock (NTP)"
            );
        }
    }
}

fn too_long() -> ApiError {
    ApiError {
        class: ErrorClass::TryAgain,
        code: NOT_AN_ANSWER.into(),
        message: format!("the answer is longer than {MAX_ANSWER} bytes"),
    }
}

fn without_secrets(error: ApiError, credentials: &Credentials) -> ApiError {
    let token = credentials.security_token.as_ref().map_or("", Secret::expose);
    let secrets = [credentials.access_key_secret.expose(), token];
    ApiError { message: answer::sanitized(&error.message, &secrets), ..error }
}

/// Reasons for which a call was already signed again.
#[derive(Default)]
struct Repeated {
    /// Set after a refused nonce or timestamp.
    signed: bool,
    /// The error for the nonce that was refused.
    nonce_used: Option<ApiError>,
    /// Set after an expired token.
    renewed: bool,
}

/// A complete HTTP answer.
struct Answer {
    status: u16,
    /// `Date` in seconds since 1970.
    date: Option<i64>,
    /// May hold a device secret.
    body: Zeroizing<Vec<u8>>,
    /// Credentials with which the call was signed.
    credentials: Arc<Credentials>,
}

/// Makes values of `SignatureNonce` that are never used twice: a random prefix for the
/// process, and a counter.
struct Nonces {
    prefix: String,
    next: AtomicU64,
}

impl Nonces {
    fn new() -> Result<Self, ClientError> {
        let mut prefix = [0; 16];
        getrandom::fill(&mut prefix).map_err(|error| ClientError::Setup(error.to_string()))?;
        Ok(Self { prefix: hex::encode(prefix), next: AtomicU64::new(0) })
    }

    fn next(&self) -> String {
        format!("{}-{:x}", self.prefix, self.next.fetch_add(1, Ordering::Relaxed))
    }
}

/// Parses the endpoint, and checks that it is a URL for calls.
pub(crate) fn endpoint_url(text: &str) -> Result<Url, ClientError> {
    let wrong = |endpoint: &str, what: String| ClientError::Endpoint { endpoint: endpoint.into(), what };
    // A text with `@` may contain a password even if the text is not a URL, so it is not shown.
    let shown = if text.contains('@') { "…" } else { text };
    let url = Url::parse(text).map_err(|error| wrong(shown, format!("is not a URL ({error})")))?;
    let what = if !matches!(url.scheme(), "http" | "https") {
        "is neither http nor https"
    } else if !url.username().is_empty() || url.password().is_some() {
        "has a user name or password; configure credentials separately"
    } else if url.query().is_some() || url.fragment().is_some() {
        "has a query or a fragment"
    } else {
        return Ok(url);
    };
    Err(wrong(shown, what.into()))
}

fn unix_now() -> i64 {
    jiff::Timestamp::now().as_second()
}

/// Formats a time as `YYYY-MM-DDThh:mm:ssZ`.
fn timestamp(seconds: i64) -> String {
    // Only a broken clock gives a time that cannot be formatted. Such a time is replaced with
    // 1970-01-01. The gateway refuses that time, and the client then corrects the clock offset.
    jiff::Timestamp::from_second(seconds).unwrap_or(jiff::Timestamp::UNIX_EPOCH).to_string()
}

/// Parses an HTTP date (RFC 9110 §5.6.7) into seconds since 1970.
fn http_date(text: &[u8]) -> Option<i64> {
    let parser = jiff::fmt::rfc2822::DateTimeParser::new();
    parser.parse_timestamp(text).ok().map(jiff::Timestamp::as_second)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(endpoint: &str) -> ClientConfig {
        ClientConfig::new(endpoint, "cn-shanghai", credentials())
    }

    fn credentials() -> Credentials {
        Credentials {
            access_key_id: "testid".into(),
            access_key_secret: Secret::new("testsecret".into()),
            security_token: Some(Secret::new("token+/=".into())),
        }
    }

    #[test]
    fn an_endpoint_that_cannot_be_called_is_refused_in_plain_words() {
        for (endpoint, what) in [
            ("iot.cn-shanghai.aliyuncs.com", "is not a URL"),
            ("ftp://iot.cn-shanghai.aliyuncs.com", "neither http nor https"),
            ("https://", "is not a URL"),
            ("https://iot.cn-shanghai.aliyuncs.com/?Action=x", "has a query"),
            ("https://key:hush@iot.cn-shanghai.aliyuncs.com", "user name or password"),
        ] {
            let error = Client::new(config(endpoint)).unwrap_err().to_string();
            assert!(error.contains(what), "{error}");
            assert!(error.contains("should look like https://iot.cn-shanghai.aliyuncs.com"), "{error}");
            assert!(!error.contains("hush"), "{error}");
        }
    }

    #[test]
    fn a_client_needs_a_region_and_an_access_key() {
        let without_region = ClientConfig { region: String::new(), ..config("http://127.0.0.1:1") };
        assert!(matches!(Client::new(without_region), Err(ClientError::Region)));
        let without_secret = Credentials { access_key_secret: Secret::new(String::new()), ..credentials() };
        let without_key = ClientConfig::new("http://127.0.0.1:1", "cn-shanghai", without_secret);
        assert!(matches!(Client::new(without_key), Err(ClientError::AccessKey)));
    }

    #[test]
    fn neither_configuration_nor_client_prints_a_secret() {
        let config = config("http://127.0.0.1:1");
        let printed = format!("{config:?} {:?}", Client::new(config.clone()).unwrap());
        for secret in ["testid", "testsecret", "token"] {
            assert!(!printed.contains(secret), "{printed}");
        }
    }

    #[test]
    fn a_wrong_clock_is_corrected_with_one_warning() {
        let log = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
        let writer = log.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_writer(move || Lines(writer.clone()))
            .with_max_level(tracing::Level::WARN)
            .finish();
        let client = Client::new(config("http://127.0.0.1:1")).unwrap();
        tracing::subscriber::with_default(subscriber, || {
            // Each of the three corrections stands for a call that was signed with the old offset.
            for _ in 0..3 {
                client.correct_clock(Some(unix_now() + 3600));
            }
        });
        let offset = client.clock_offset.load(Ordering::Relaxed);
        assert!((3599..=3600).contains(&offset), "{offset}");
        let log = String::from_utf8(log.lock().unwrap().clone()).unwrap();
        assert_eq!(log.matches("WARN").count(), 1, "{log}");
    }

    #[cfg(feature = "simulation")]
    #[tokio::test]
    async fn a_clock_that_drifts_while_the_server_runs_is_followed_with_one_warning_each_time() {
        use crate::iot_platform::{
            IotPlatform as _,
            simulator::{Simulator, SimulatorConfig},
        };

        for signature in [SignatureVersion::V1, SignatureVersion::V3] {
            let log = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
            let writer = log.clone();
            let subscriber = tracing_subscriber::fmt()
                .with_writer(move || Lines(writer.clone()))
                .with_max_level(tracing::Level::WARN)
                .finish();
            let _logged = tracing::subscriber::set_default(subscriber);
            let warnings = || String::from_utf8_lossy(&log.lock().unwrap()).matches("WARN").count();

            let simulator = Simulator::start(SimulatorConfig::default()).await.unwrap();
            let config = ClientConfig::new(simulator.endpoint(), "cn-shanghai", simulator.credentials());
            let client = Client::new(ClientConfig { signature, ..config }).unwrap();
            let call = async |name: String| client.register_device("a1BwAGVxyz1", &name).await.map(drop);
            call("SN01".into()).await.unwrap();
            assert_eq!(warnings(), 0);
            // Changing the offset has the same effect as a clock that jumps two hours ahead, and
            // then back.
            for (drift, warned) in [(7200, 1), (-7200, 2)] {
                client.clock_offset.fetch_add(drift, Ordering::Relaxed);
                for number in 0..3 {
                    call(format!("SN{drift}-{number}")).await.unwrap();
                }
                assert_eq!(warnings(), warned, "{signature:?}");
            }
            // The gateway accepts a difference of ten minutes, so there is no warning.
            client.clock_offset.fetch_add(600, Ordering::Relaxed);
            call("SN02".into()).await.unwrap();
            assert_eq!((warnings(), simulator.stats().refused), (2, 2));
        }
    }

    struct Lines(std::sync::Arc<std::sync::Mutex<Vec<u8>>>);

    impl std::io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn no_two_calls_have_the_same_nonce() {
        let nonces = Nonces::new().unwrap();
        assert_ne!(nonces.next(), nonces.next());
        assert_ne!(nonces.prefix, Nonces::new().unwrap().prefix);
    }

    #[test]
    fn times_are_written_and_read_as_the_gateway_does() {
        assert_eq!(timestamp(1_456_231_584), "2016-02-23T12:46:24Z");
        assert_eq!(http_date(b"Tue, 23 Feb 2016 12:46:24 GMT"), Some(1_456_231_584));
        assert_eq!(http_date(b"yesterday"), None);
    }
}
