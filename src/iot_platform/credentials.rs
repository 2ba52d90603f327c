//! Credentials of the calls. Their source is fixed credentials, a credentials file, or the RAM role
//! of an ECS instance. This module caches the credentials, and reads them again before they expire
//! or when the file has changed. It knows nothing about signatures or actions.

mod file;
mod role;
#[cfg(test)]
mod tests;

use std::{
    fmt,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use sha2::{Digest, Sha256};
use tokio::time::{Instant, timeout_at};

use self::{
    file::{Profile, Stamp},
    role::Metadata,
};
use super::{ApiError, ErrorClass, answer, http::ClientError};
use crate::device::Secret;

pub use self::role::{DEFAULT_METADATA_ENDPOINT, Role};
pub(crate) use self::{
    file::{usual_path, usual_profile},
    role::{is_role, metadata_url},
};

/// Number of seconds before the expiry of credentials at which they are read again. The SDKs use
/// the same number, which is also the clock difference that the gateway tolerates.
pub const READ_AHEAD: i64 = 15 * 60;

/// Code of an [`ApiError`] if there are no credentials for a call.
const NO_CREDENTIALS: &str = "Credentials";
/// Maximum time for reading credentials if no valid credentials are cached.
const READ_TIMEOUT: Duration = Duration::from_secs(5);
/// Maximum time for reading credentials while the cached credentials are still valid. The call that
/// reads them waits no longer than this.
const EARLY_READ_TIMEOUT: Duration = Duration::from_secs(2);
/// Pause after a failed read, in seconds. It doubles with each further failure, up to
/// [`MAX_PAUSE`].
const FIRST_PAUSE: i64 = 1;
/// Maximum pause after a failed read, in seconds. Also the pause after a successful read of
/// credentials that expire soon.
const MAX_PAUSE: i64 = 60;

/// Access key of an account or a RAM user, or temporary access key of a role.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// `AccessKeyId`.
    pub access_key_id: String,
    /// Secret with which requests are signed.
    pub access_key_secret: Secret,
    /// `SecurityToken` of a temporary access key.
    pub security_token: Option<Secret>,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The ID is not printed either: in a leaked log, it would show an attacker which account to
        // attack.
        f.write_str("Credentials(…)")
    }
}

/// Source of credentials.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// Fixed credentials that are never read again.
    Given(Credentials),
    /// A profile of a credentials file, in the format of Alibaba Cloud's SDKs.
    File(CredentialsFile),
    /// The RAM role of the ECS instance that certdist runs on.
    Role(Role),
}

impl From<Credentials> for Source {
    fn from(credentials: Credentials) -> Self {
        Self::Given(credentials)
    }
}

/// A profile of a credentials file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CredentialsFile {
    /// Path of the INI file.
    pub path: PathBuf,
    /// Section of the file.
    pub profile: String,
    /// Access to the metadata service, if the profile names a RAM role.
    pub role: Role,
}

impl Source {
    /// Returns a name of the account. Processes and targets with the same access key get the same
    /// name, no matter where the access key is stored, and share the account's limits under this
    /// name. The name is a hash that reveals nothing about the credentials.
    pub(super) fn account(&self) -> String {
        let (kind, name) = match self {
            Self::Given(credentials) => ("key", credentials.access_key_id.clone()),
            Self::File(file) => match file::read(&file.path, &file.profile) {
                Ok(file::Profile::Key(credentials)) => ("key", credentials.access_key_id),
                _ => ("file", format!("{}\0{}", file.path.display(), file.profile)),
            },
            Self::Role(role) => ("role", format!("{role:?}")),
        };
        let digest = Sha256::digest(format!("certdist account\0{kind}\0{name}"));
        hex::encode(&digest[..8])
    }

    /// Checks everything that needs no network call, so that an operator's mistake is found before
    /// the first device asks for a certificate.
    ///
    /// # Errors
    ///
    /// Returns a sentence for the operator that says what is expected.
    pub fn check(&self) -> Result<(), String> {
        match self {
            Self::Given(credentials) => match is_complete(credentials) {
                true => Ok(()),
                false => Err(ClientError::AccessKey.to_string()),
            },
            Self::File(file) => file::read(&file.path, &file.profile).map(drop),
            Self::Role(_) => Ok(()),
        }
    }
}

fn is_complete(credentials: &Credentials) -> bool {
    !credentials.access_key_id.is_empty() && !credentials.access_key_secret.expose().is_empty()
}

/// Reason why a read failed.
#[derive(Debug)]
enum Failure {
    /// Only the operator can fix the cause.
    Operator(String),
    /// A later read may succeed.
    Passing(String),
}

/// Result of a read.
struct Read {
    credentials: Credentials,
    /// Expiry in seconds since 1970; `None` if the credentials do not expire.
    expires: Option<i64>,
}

/// Cached credentials of a client, shared by all its calls.
pub(crate) struct Holder {
    source: Source,
    metadata: Metadata,
    state: Mutex<State>,
    /// Lock that the reading call holds, so that only one call reads the credentials at a time.
    reading: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct State {
    held: Option<Held>,
    failed: Option<Failed>,
}

struct Held {
    credentials: Arc<Credentials>,
    expires: Option<i64>,
    /// State of the file when the cached credentials were read.
    stamp: Option<Stamp>,
    /// Set if the cloud has refused the token as expired. Takes precedence over `expires`.
    refused: bool,
    /// Time before which credentials that expire soon are not read again, in seconds since 1970.
    again: i64,
}

/// The most recent failed read.
struct Failed {
    error: ApiError,
    /// State of the file when the read failed. If the file has changed since, it is read
    /// immediately.
    stamp: Option<Stamp>,
    pause: i64,
    /// Time of the next attempt, in seconds since 1970.
    again: i64,
}

/// State of the cached credentials. It decides how a call continues.
enum Standing {
    /// The cached credentials are valid, and the call uses them.
    Good(Arc<Credentials>),
    /// The cached credentials are valid, but new credentials must be read.
    Ageing(Arc<Credentials>),
    /// There are no valid credentials, so new credentials must be read.
    None,
    /// There are no valid credentials, and the pause after a failed read is not over, so the call
    /// fails.
    Failed(ApiError),
}

impl Holder {
    /// Makes a holder that has not read any credentials yet.
    ///
    /// # Errors
    ///
    /// Fails if [`Source::Given`] credentials are incomplete, or if the metadata service's address
    /// is not a URL.
    pub fn new(source: Source) -> Result<Self, ClientError> {
        let mut state = State::default();
        let metadata = match &source {
            Source::Given(credentials) if !is_complete(credentials) => return Err(ClientError::AccessKey),
            Source::Given(credentials) => {
                state.held = Some(Held {
                    credentials: Arc::new(credentials.clone()),
                    expires: None,
                    stamp: None,
                    refused: false,
                    again: 0,
                });
                Metadata::new(&Role::default())?
            }
            Source::File(file) => Metadata::new(&file.role)?,
            Source::Role(role) => Metadata::new(role)?,
        };
        Ok(Self { source, metadata, state: Mutex::new(state), reading: tokio::sync::Mutex::default() })
    }

    /// Returns credentials that are valid at `now`, in seconds since 1970 by the cloud's clock. If
    /// credentials must be read, one call reads them. Other calls wait for this read only if there
    /// are no valid credentials.
    ///
    /// # Errors
    ///
    /// Fails if there are no valid credentials. The error says where credentials were expected and
    /// in which form.
    pub async fn current(&self, now: i64, deadline: Instant) -> Result<Arc<Credentials>, ApiError> {
        let usable = match self.standing(now) {
            Standing::Good(credentials) => return Ok(credentials),
            Standing::Failed(error) => return Err(error),
            Standing::Ageing(credentials) => Some(credentials),
            Standing::None => None,
        };
        let _reading = match (&usable, self.reading.try_lock()) {
            (_, Ok(reading)) => reading,
            (Some(credentials), Err(_)) => return Ok(credentials.clone()),
            (None, Err(_)) => timeout_at(deadline, self.reading.lock()).await.map_err(|_| late())?,
        };
        // Another call may have read the credentials while this call waited for the lock.
        let early = match self.standing(now) {
            Standing::Good(credentials) => return Ok(credentials),
            Standing::Failed(error) => return Err(error),
            Standing::Ageing(_) => true,
            Standing::None => false,
        };
        let within = if early { EARLY_READ_TIMEOUT } else { READ_TIMEOUT };
        let stamp = self.stamp();
        let read = timeout_at(deadline.min(Instant::now() + within), self.read()).await;
        let read = read.unwrap_or_else(|_| Err(Failure::Passing(self.metadata.no_answer())));
        self.note(read, stamp, now)
    }

    /// Records that the cloud has refused the token of these credentials as expired. Returns
    /// whether other credentials can be read.
    pub fn refuse(&self, used: &Arc<Credentials>) -> bool {
        if matches!(self.source, Source::Given(_)) {
            return false;
        }
        let mut state = self.state();
        // If the refused credentials are no longer cached, newer credentials have already been
        // read.
        if let Some(held) = state.held.as_mut().filter(|held| Arc::ptr_eq(&held.credentials, used)) {
            held.refused = true;
            state.failed = None;
        }
        true
    }

    fn standing(&self, now: i64) -> Standing {
        let state = self.state();
        let good = state.held.as_ref().filter(|held| {
            let expired = held.expires.is_some_and(|expires| expires <= now);
            !held.refused && !expired
        });
        let pausing = state
            .failed
            .as_ref()
            .filter(|failed| is_ahead(failed.again, now) && failed.stamp == self.stamp());
        match (good, pausing) {
            (Some(held), Some(_)) => Standing::Good(held.credentials.clone()),
            (Some(held), None) if self.must_read(held, now) => Standing::Ageing(held.credentials.clone()),
            (Some(held), None) => Standing::Good(held.credentials.clone()),
            (None, Some(failed)) => Standing::Failed(failed.error.clone()),
            (None, None) => Standing::None,
        }
    }

    fn must_read(&self, held: &Held, now: i64) -> bool {
        let soon = held.expires.is_some_and(|expires| expires - now <= READ_AHEAD);
        (soon && !is_ahead(held.again, now)) || held.stamp != self.stamp()
    }

    /// Returns the state of the credentials file, so that changes of the file are noticed; `None`
    /// if the source is not a file.
    fn stamp(&self) -> Option<Stamp> {
        match &self.source {
            Source::File(file) => file::stamp(&file.path),
            _ => None,
        }
    }

    async fn read(&self) -> Result<Read, Failure> {
        match &self.source {
            Source::Given(credentials) => Ok(Read { credentials: credentials.clone(), expires: None }),
            Source::Role(role) => self.metadata.read(role.name.as_deref()).await,
            Source::File(file) => match file::read(&file.path, &file.profile).map_err(Failure::Operator)? {
                Profile::Key(credentials) => Ok(Read { credentials, expires: None }),
                Profile::Role(name) => self.metadata.read(name.as_deref()).await,
            },
        }
    }

    /// Stores the result or the failure of a read. Returns valid credentials, if there are any.
    fn note(
        &self,
        read: Result<Read, Failure>,
        stamp: Option<Stamp>,
        now: i64,
    ) -> Result<Arc<Credentials>, ApiError> {
        let mut state = self.state();
        let failure = match read {
            Ok(Read { credentials, expires }) if expires.is_none_or(|expires| expires > now) => {
                let credentials = Arc::new(credentials);
                let again = now + MAX_PAUSE;
                if state.failed.take().is_some() {
                    tracing::info!("credentials for Alibaba Cloud can be read again");
                }
                let held = Held { credentials: credentials.clone(), expires, stamp, refused: false, again };
                state.held = Some(held);
                return Ok(credentials);
            }
            Ok(_) => Failure::Passing(
                "the metadata service returned expired credentials; check this machine's clock (NTP)".into(),
            ),
            Err(failure) => failure,
        };
        let (class, message) = match failure {
            Failure::Operator(message) => (ErrorClass::Operator, message),
            Failure::Passing(message) => (ErrorClass::TryAgain, message),
        };
        let message = answer::sanitized(&message, &[]);
        let error = ApiError { class, code: NO_CREDENTIALS.into(), message };
        let pause = state.failed.as_ref().map_or(FIRST_PAUSE, |failed| (failed.pause * 2).min(MAX_PAUSE));
        let good = state
            .held
            .as_ref()
            .filter(|held| !held.refused && held.expires.is_none_or(|expires| expires > now));
        let good = good.map(|held| held.credentials.clone());
        state.failed = Some(Failed { error: error.clone(), stamp, pause, again: now + pause });
        drop(state);
        tracing::warn!(
            error = %error.message,
            again_in_seconds = pause,
            earlier_still_valid = good.is_some(),
            "could not read credentials for Alibaba Cloud; trying again"
        );
        good.ok_or(error)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns whether the pause until `again` is still running. A clock that is set back does not
/// prolong the pause.
fn is_ahead(again: i64, now: i64) -> bool {
    (1..=MAX_PAUSE).contains(&(again - now))
}

fn late() -> ApiError {
    ApiError {
        class: ErrorClass::TryAgain,
        code: NO_CREDENTIALS.into(),
        message: "the credentials were not read in time".into(),
    }
}
