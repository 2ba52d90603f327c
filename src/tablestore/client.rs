//! The client of Tablestore's API. It signs calls, verifies answers, and limits the time and memory
//! of each call. It repeats a call that was certainly not carried out, and a read in any case, until
//! the deadline of the call. A write that may have been carried out fails with
//! [`Class::Unknown`], and the caller reads the row to find out.

mod operations;

use std::{
    fmt,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
    time::Duration,
};

use prost::Message;
use reqwest::{
    Url,
    header::{HeaderMap, HeaderName, HeaderValue},
};
use tokio::time::{Instant, timeout};
use zeroize::Zeroizing;

use super::{
    Capacity, Class, Error, NO_ANSWER, NOT_SENT, Operation,
    exchange::{self, Answer, MAX_REQUEST},
    failure::{self, MAX_ATTEMPTS},
    message,
};
use crate::iot_platform::{
    ApiError, ErrorClass, answer::sanitized, client::endpoint_url, credentials::Holder, http,
    http::ClientError,
};
pub use crate::iot_platform::{
    credentials::{Credentials, Source},
    http::Timeouts,
};

/// Change of the clock offset above which a warning is logged, in milliseconds.
const CLOCK_TOLERANCE: u64 = 2_000;
/// Beginning of the service's message if `x-ots-date` is too far from its clock.
const WRONG_CLOCK: &str = "Mismatch between system time";

/// Settings of a [`Client`].
#[derive(Debug, Clone)]
pub struct ClientConfig {
    /// `https://INSTANCE.REGION.ots.aliyuncs.com`, or any other URL without a query.
    pub endpoint: String,
    /// Name of the instance.
    pub instance: String,
    /// Credentials of the calls, or their source.
    pub credentials: Source,
    /// Time limits of a call, which include its repetitions.
    pub timeouts: Timeouts,
    /// PEM file with root certificates that are trusted in addition to the system's.
    pub ca_file: Option<PathBuf>,
}

impl ClientConfig {
    /// Makes a configuration with default time-outs.
    pub fn new(
        endpoint: impl Into<String>,
        instance: impl Into<String>,
        credentials: impl Into<Source>,
    ) -> Self {
        Self {
            endpoint: endpoint.into(),
            instance: instance.into(),
            credentials: credentials.into(),
            timeouts: Timeouts::default(),
            ca_file: None,
        }
    }
}

/// Error in the settings of a client.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The endpoint is not a URL that can be called.
    #[error(
        "Tablestore endpoint {endpoint:?} {what}; it should look like \
         https://INSTANCE.cn-shanghai.ots.aliyuncs.com"
    )]
    Endpoint {
        /// The configured endpoint, without any password.
        endpoint: String,
        /// Reason.
        what: String,
    },
    /// The name of the instance is not legal.
    #[error(
        "{0:?} is not the name of a Tablestore instance; it should be 3 to 16 letters, digits and hyphens"
    )]
    Instance(String),
    /// No access key is configured.
    #[error(
        "no access key for Tablestore: set ALIBABA_CLOUD_ACCESS_KEY_ID and ALIBABA_CLOUD_ACCESS_KEY_SECRET"
    )]
    AccessKey,
    /// Another setting is wrong, or TLS could not be set up.
    #[error(transparent)]
    Http(ClientError),
}

impl From<ClientError> for ConfigError {
    fn from(error: ClientError) -> Self {
        match error {
            ClientError::Endpoint { endpoint, what } => Self::Endpoint { endpoint, what },
            ClientError::AccessKey => Self::AccessKey,
            other => Self::Http(other),
        }
    }
}

/// A client of one instance. All tasks of the process share the client and its connections.
pub struct Client {
    http: reqwest::Client,
    endpoint: Url,
    instance: String,
    credentials: Holder,
    timeouts: Timeouts,
    /// Milliseconds to add to this machine's clock to get the service's time.
    clock_offset: AtomicI64,
    read_units: AtomicU64,
    write_units: AtomicU64,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("endpoint", &self.endpoint.as_str())
            .field("instance", &self.instance)
            .finish_non_exhaustive()
    }
}

/// A failed attempt, with the information that decides about another attempt.
struct Failed {
    error: Error,
    /// Credentials of the attempt, if it was sent.
    used: Option<Arc<Credentials>>,
    /// The service's clock, in milliseconds since 1970.
    date: Option<i64>,
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        Self { error, used: None, date: None }
    }
}

/// Reasons for which a call was already signed again.
#[derive(Default)]
struct SignedAgain {
    clock: bool,
    credentials: bool,
}

impl Client {
    /// Checks the configuration, and sets up TLS. Makes no call.
    ///
    /// # Errors
    ///
    /// Fails with a sentence for the operator.
    pub fn new(config: ClientConfig) -> Result<Self, ConfigError> {
        let mut endpoint = endpoint_url(&config.endpoint)?;
        // Operations are appended to the path.
        if !endpoint.path().ends_with('/') {
            endpoint.set_path(&format!("{}/", endpoint.path()));
        }
        let is_legal = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
        if !(3..=16).contains(&config.instance.len()) || !config.instance.bytes().all(is_legal) {
            return Err(ConfigError::Instance(config.instance));
        }
        Ok(Self {
            http: http::http_client(&endpoint, &config.timeouts, config.ca_file.as_deref())?,
            endpoint,
            instance: config.instance,
            credentials: Holder::new(config.credentials)?,
            timeouts: config.timeouts,
            clock_offset: AtomicI64::new(0),
            read_units: AtomicU64::new(0),
            write_units: AtomicU64::new(0),
        })
    }

    /// Returns the sum of the capacity units that all answers so far have reported.
    pub fn consumed(&self) -> Capacity {
        let read = self.read_units.load(Ordering::Relaxed);
        Capacity { read, write: self.write_units.load(Ordering::Relaxed) }
    }

    fn count(&self, consumed: message::ConsumedCapacity) {
        let units = consumed.capacity_unit;
        self.read_units.fetch_add(super::schema::units(units.read), Ordering::Relaxed);
        self.write_units.fetch_add(super::schema::units(units.write), Ordering::Relaxed);
    }

    /// Returns the time of the service's clock in milliseconds since 1970, as estimated by the clock
    /// offset.
    fn now(&self) -> i64 {
        jiff::Timestamp::now().as_millisecond().saturating_add(self.clock_offset.load(Ordering::Relaxed))
    }

    /// Makes a call that one request describes, and repeats it as long as that is safe and useful.
    async fn call<A: Message + Default>(
        &self,
        operation: Operation,
        request: &impl Message,
    ) -> Result<A, Error> {
        let body = Zeroizing::new(request.encode_to_vec());
        let mut patience = Patience::new(&self.timeouts);
        loop {
            match self.signed(operation, &body, patience.deadline).await {
                Ok(answer) => return Ok(answer),
                Err(error) => patience.wait(error).await?,
            }
        }
    }

    /// Sends a request, and signs it again if the clock or the credentials were wrong.
    async fn signed<A: Message + Default>(
        &self,
        operation: Operation,
        body: &[u8],
        deadline: Instant,
    ) -> Result<A, Error> {
        if body.len() > MAX_REQUEST {
            let message = format!("the request is {} bytes long; {MAX_REQUEST} are allowed", body.len());
            return Err(refusal(operation, Class::Invalid, "Request", message));
        }
        let mut again = SignedAgain::default();
        loop {
            let failed = match self.attempt(operation, body, deadline).await {
                Ok(answer) => return Ok(answer),
                Err(failed) => failed,
            };
            if !self.may_sign_again(&failed, &mut again) {
                return Err(failed.error);
            }
        }
    }

    /// Returns whether to sign a refused request again: once because of the clock, and once because
    /// of temporary credentials that may have expired.
    fn may_sign_again(&self, failed: &Failed, again: &mut SignedAgain) -> bool {
        if failed.error.code != "OTSAuthFailed" {
            return false;
        }
        if failed.error.message.starts_with(WRONG_CLOCK) {
            let is_first = !std::mem::replace(&mut again.clock, true);
            return is_first && self.correct_clock(failed.date);
        }
        let used = failed.used.as_ref().filter(|used| used.security_token.is_some());
        let is_first = !std::mem::replace(&mut again.credentials, true);
        is_first && used.is_some_and(|used| self.credentials.refuse(used))
    }

    /// Sets the clock offset according to the service's clock. Returns whether the answer had it.
    fn correct_clock(&self, date: Option<i64>) -> bool {
        let Some(date) = date else {
            tracing::warn!(
                "Tablestore says that this machine's clock is wrong, but not by how much; set it (NTP)"
            );
            return false;
        };
        let offset = date.saturating_sub(jiff::Timestamp::now().as_millisecond());
        let before = self.clock_offset.swap(offset, Ordering::Relaxed);
        if offset.abs_diff(before) > CLOCK_TOLERANCE {
            tracing::warn!(
                offset_seconds = offset / 1000,
                "Tablestore's clock differs from this machine's; calls now use Tablestore's clock; set this \
                 machine's clock (NTP)"
            );
        }
        true
    }

    /// Signs and sends a request once, and reads its answer.
    async fn attempt<A: Message + Default>(
        &self,
        operation: Operation,
        body: &[u8],
        deadline: Instant,
    ) -> Result<A, Failed> {
        let now = self.now();
        let of_account = |error: ApiError| {
            let class = if error.class == ErrorClass::Operator { Class::Refused } else { Class::Busy };
            refusal(operation, class, &error.code, error.message)
        };
        let credentials = self.credentials.current(now / 1000, deadline).await.map_err(of_account)?;
        let request = self
            .http
            .post(self.url(operation))
            .headers(self.headers(operation, &credentials, now, body)?)
            .timeout(deadline.saturating_duration_since(Instant::now()))
            .body(body.to_vec());
        let unanswered = |error: reqwest::Error| {
            let error = http::unanswered(&error.without_url(), &self.endpoint, &self.timeouts);
            let (class, code) = match (error.class, error.code.as_str()) {
                (ErrorClass::Operator, code) => (Class::Refused, code.to_owned()),
                (_, crate::iot_platform::NOT_SENT) => (Class::Busy, NOT_SENT.to_owned()),
                _ => (Class::Unknown, NO_ANSWER.to_owned()),
            };
            refusal(operation, class, &code, sanitized(&error.message, &[]))
        };
        let response = timeout(self.timeouts.first_byte, request.send())
            .await
            .map_err(|_| http::no_first_byte(&self.timeouts))
            .map_err(|error| refusal(operation, Class::Unknown, NO_ANSWER, error.message))?
            .map_err(unanswered)?;
        let status = response.status().as_u16();
        let headers = response.headers().clone();
        let limit = exchange::max_answer(operation);
        let too_long = || unreadable(operation, format!("the answer is longer than {limit} bytes"));
        let body = http::bounded_body(response, limit, unanswered, too_long).await?;
        let headers = headers.iter().filter_map(|(name, value)| Some((name.as_str(), value.to_str().ok()?)));
        let answer = Answer { status, headers: headers.collect(), body: &body };
        let read = answer.read(operation, &credentials, self.now());
        read.map_err(|error| Failed { error, date: answer.date(), used: Some(credentials) })
    }

    fn url(&self, operation: Operation) -> Url {
        let mut url = self.endpoint.clone();
        url.set_path(&format!("{}{operation}", self.endpoint.path()));
        url
    }

    fn headers(
        &self,
        operation: Operation,
        credentials: &Credentials,
        now: i64,
        body: &[u8],
    ) -> Result<HeaderMap, Error> {
        let headers = exchange::request_headers(operation, &self.instance, credentials, now, body);
        let header = |(name, value): (&'static str, String)| {
            let value = Zeroizing::new(value);
            let mut value = HeaderValue::from_str(&value).map_err(|_| {
                let message = "the access key or its security token has characters that no header may have";
                refusal(operation, Class::Refused, "Credentials", message.into())
            })?;
            value.set_sensitive(true);
            Ok((HeaderName::from_static(name), value))
        };
        headers.into_iter().map(header).collect()
    }
}

fn refusal(operation: Operation, class: Class, code: &str, message: String) -> Error {
    Error { class, operation, code: code.into(), message, request_id: None }
}

/// Makes the error for an unreadable answer. The service would give the same answer again. A write may
/// have been carried out.
fn unreadable(operation: Operation, message: String) -> Error {
    let class = if operation.is_read() { Class::Invalid } else { Class::Unknown };
    refusal(operation, class, super::NOT_AN_ANSWER, message)
}

/// Remaining attempts and time of a call.
struct Patience {
    deadline: Instant,
    attempts: u32,
}

impl Patience {
    fn new(timeouts: &Timeouts) -> Self {
        Self { deadline: Instant::now() + timeouts.whole, attempts: 0 }
    }

    /// Waits until the call that failed may be repeated.
    ///
    /// # Errors
    ///
    /// Returns the error if the call may not be repeated, or if no attempt or time is left.
    async fn wait(&mut self, error: Error) -> Result<(), Error> {
        match self.next_pause(&error) {
            Some(pause) => {
                tracing::debug!(%error, attempt = self.attempts, "repeating a call of Tablestore");
                tokio::time::sleep(pause).await;
                Ok(())
            }
            None => Err(error.settled()),
        }
    }

    /// Counts an attempt that failed. Returns the pause before the next, if there is one.
    fn next_pause(&mut self, error: &Error) -> Option<Duration> {
        self.attempts += 1;
        let pause = failure::pause(self.attempts);
        let has_left = self.attempts < MAX_ATTEMPTS && Instant::now() + pause < self.deadline;
        (has_left && error.may_repeat()).then_some(pause)
    }
}

#[cfg(all(test, feature = "simulation"))]
mod tests;
