//! Who calls, and where that is read: given, in a credentials file, or from an ECS
//! instance's RAM role. Holds what was read, reads again before it expires or when
//! the file has changed, and knows neither signatures nor actions.

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

/// How long before they expire credentials are read again, in seconds: as long as
/// a clock may be off without the gateway minding, and as the SDKs do.
pub const READ_AHEAD: i64 = 15 * 60;

/// Code of an [`ApiError`] when there are no credentials to call with.
const NO_CREDENTIALS: &str = "Credentials";
/// Time for a reading without which nobody can call.
const READ_TIMEOUT: Duration = Duration::from_secs(5);
/// Time for a reading while the old ones are still good: one call waits for it.
const EARLY_READ_TIMEOUT: Duration = Duration::from_secs(2);
/// Seconds from a reading that failed to the next; doubled each time, up to
/// [`MAX_PAUSE`].
const FIRST_PAUSE: i64 = 1;
/// Longest pause between readings, in seconds, and the one after a reading that
/// brought what was there already.
const MAX_PAUSE: i64 = 60;

/// An account's or RAM user's access key, or a role's temporary one.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// `AccessKeyId`.
    pub access_key_id: String,
    /// What requests are signed with.
    pub access_key_secret: Secret,
    /// `SecurityToken` of a temporary access key.
    pub security_token: Option<Secret>,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Not even the ID: with it, a leaked log tells whom to attack.
        f.write_str("Credentials(…)")
    }
}

/// Where credentials come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// They are known, and stay as they are.
    Given(Credentials),
    /// A profile of a credentials file as Alibaba Cloud's SDKs read it.
    File(CredentialsFile),
    /// The RAM role of the ECS instance that this runs on.
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
    /// The INI file.
    pub path: PathBuf,
    /// Its section.
    pub profile: String,
    /// How the metadata service is reached, when the profile names a RAM role.
    pub role: Role,
}

impl Source {
    /// Reads what can be read without calling anybody: an operator's mistake is
    /// found before the first device comes.
    ///
    /// # Errors
    ///
    /// A sentence for the operator that says what would be right.
    pub fn check(&self) -> Result<(), String> {
        match self {
            Self::Given(credentials) => match is_whole(credentials) {
                true => Ok(()),
                false => Err(ClientError::AccessKey.to_string()),
            },
            Self::File(file) => file::read(&file.path, &file.profile).map(drop),
            Self::Role(_) => Ok(()),
        }
    }
}

fn is_whole(credentials: &Credentials) -> bool {
    !credentials.access_key_id.is_empty() && !credentials.access_key_secret.expose().is_empty()
}

/// Why a reading failed.
#[derive(Debug)]
enum Failure {
    /// Only the operator can mend it.
    Operator(String),
    /// It may work a moment later.
    Passing(String),
}

/// What a reading brings.
struct Read {
    credentials: Credentials,
    /// In seconds since 1970.
    expires: Option<i64>,
}

/// The credentials of a client, shared by all its calls.
pub(super) struct Holder {
    source: Source,
    metadata: Metadata,
    state: Mutex<State>,
    /// Held by the one call that reads.
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
    /// The file as it was when they were read.
    stamp: Option<Stamp>,
    /// The cloud has said that the token is over, whatever its date.
    refused: bool,
    /// Not to be read again before that second, while they are good.
    again: i64,
}

/// The reading that failed last.
struct Failed {
    error: ApiError,
    /// The file as it was then: another one is read at once.
    stamp: Option<Stamp>,
    pause: i64,
    /// In seconds since 1970.
    again: i64,
}

/// How things stand with what is held.
enum Standing {
    /// Use them.
    Good(Arc<Credentials>),
    /// Use them, and read again.
    Ageing(Arc<Credentials>),
    /// Read.
    None,
    /// Reading has just failed.
    Failed(ApiError),
}

impl Holder {
    /// Reads nothing yet.
    ///
    /// # Errors
    ///
    /// When credentials that are given are not whole, or the metadata service's
    /// address is no URL.
    pub fn new(source: Source) -> Result<Self, ClientError> {
        let mut state = State::default();
        let metadata = match &source {
            Source::Given(credentials) if !is_whole(credentials) => return Err(ClientError::AccessKey),
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

    /// Credentials that are good at `now`, in seconds since 1970 by the cloud's
    /// clock. One call reads when they must be read; the others wait only when
    /// there are none that are still good.
    ///
    /// # Errors
    ///
    /// When there are none, with what would be right.
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
        // While this one waited, another may have read.
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

    /// Says that the cloud takes these credentials' token for expired. Whether
    /// others can be read.
    pub fn refuse(&self, used: &Arc<Credentials>) -> bool {
        if matches!(self.source, Source::Given(_)) {
            return false;
        }
        let mut state = self.state();
        // Others have been read meanwhile when these are not the ones held.
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

    /// What tells that the file is another one; nothing without a file.
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

    /// Keeps what a reading brought, or that it failed.
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
                    tracing::info!("credentials for IoT Platform are read again");
                }
                let held = Held { credentials: credentials.clone(), expires, stamp, refused: false, again };
                state.held = Some(held);
                return Ok(credentials);
            }
            Ok(_) => Failure::Passing(
                "the metadata service gives credentials that have expired: is this machine's clock right?"
                    .into(),
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
        let still = if good.is_some() { "; the old ones are good for now" } else { "" };
        tracing::warn!(
            again_in_seconds = pause,
            "credentials for IoT Platform cannot be read: {}{still}",
            error.message
        );
        good.ok_or(error)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether a pause still lasts. A clock that was set back meanwhile does not
/// prolong it.
fn is_ahead(again: i64, now: i64) -> bool {
    (1..=MAX_PAUSE).contains(&(again - now))
}

fn late() -> ApiError {
    ApiError {
        class: ErrorClass::TryAgain,
        code: NO_CREDENTIALS.into(),
        message: "credentials were not read in time".into(),
    }
}
