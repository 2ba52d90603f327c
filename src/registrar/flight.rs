//! One registration: the journal, one call at a time, what is done about each class
//! of failure, and the store.

use std::time::Duration;

use super::{Outcome, Registrar, breaker::Scope};
use crate::{
    device::Certificate,
    iot_platform::{Action, ApiError, CloudDevice, ErrorClass},
    store::{Claim, DeviceRow, JournalEntry, Registration, StoreError, UnixSeconds, unix_now},
};

/// Calls after which a failure that is in no list is taken to be the device's.
const MAX_UNKNOWN: u32 = 3;

/// How far the cloud's clock and ours may be apart, in seconds, when a device's age is
/// held against the journal's.
const CLOCK_TOLERANCE: UnixSeconds = 3600;

/// What is known of a registration that is under way.
#[derive(Debug)]
pub(super) struct Flight {
    /// What is asked for.
    pub(super) entry: JournalEntry,
    /// What the journal said when the entry was opened; `None` before it is.
    pub(super) claim: Option<Claim>,
    /// Whether an earlier call may have created the device.
    pub(super) asked: bool,
    /// Whether the name exists: then it is looked up.
    exists: bool,
    /// Whether a name that exists and is not ours is left alone.
    refuses_existing: bool,
    /// Calls so far.
    attempts: u32,
    /// Of them, those that ended in a failure that is in no list.
    unknown: u32,
}

/// What comes after a step.
pub(super) enum Next {
    /// It is over.
    Land(Outcome),
    /// The same again, after a pause.
    Again,
}

impl Flight {
    /// `asked` when the journal has it from before.
    pub(super) fn new(entry: JournalEntry, asked: bool) -> Self {
        Self { entry, claim: None, asked, exists: false, refuses_existing: false, attempts: 0, unknown: 0 }
    }

    /// Whether a device that exists is what an earlier call of ours made. The name is a
    /// fixed function of the device ID, so one that we asked for before is ours, unless
    /// the cloud had it before the journal did.
    pub(super) fn may_be_ours(&self, created: Option<UnixSeconds>) -> bool {
        let since = self.claim.map_or(0, |claim| claim.since);
        self.asked && created.is_none_or(|created| created.saturating_add(CLOCK_TOLERANCE) >= since)
    }
}

impl Registrar {
    /// The next step of a flight.
    pub(super) async fn step(&self, flight: &mut Flight) -> Next {
        if flight.claim.is_none() {
            if let Some(outcome) = self.prepare(flight).await {
                return Next::Land(outcome);
            }
            match self.store.open_journal(&flight.entry).await {
                Ok(claim) => self.claimed(flight, claim),
                Err(error) => return Next::Land(self.store_failed(&flight.entry, &error)),
            }
        }
        flight.attempts += 1;
        let next = match self.call(flight).await {
            Ok(device) => Next::Land(self.keep(&flight.entry, device).await),
            Err(error) => self.judge(flight, error).await,
        };
        match next {
            // The journal entry stays: the next request, or the next start, goes on.
            Next::Again if flight.attempts >= self.config.max_attempts.max(1) => {
                self.count(|counters| counters.failed += 1);
                Next::Land(Outcome::Later(self.config.max_retry_pause))
            }
            next => next,
        }
    }

    /// Looks the row up; an outcome when there is nothing to ask for.
    pub(super) async fn prepare(&self, flight: &mut Flight) -> Option<Outcome> {
        let entry = &flight.entry;
        match self.store.device(&entry.device).await {
            // Another flight has landed since the caller looked, or an operator
            // has imported the certificate.
            Ok(Some(DeviceRow { certificate: Some(certificate), iot_id, registered, .. })) => {
                Some(self.close(entry, certificate, iot_id, registered).await)
            }
            Ok(Some(row)) => {
                flight.refuses_existing = self.refuses_existing(&row.enrollment);
                None
            }
            Ok(None) => Some(Outcome::Refused("the device is no longer in the table".into())),
            Err(error) => Some(self.store_failed(entry, &error)),
        }
    }

    /// The journal has taken the entry.
    pub(super) fn claimed(&self, flight: &mut Flight, claim: Claim) {
        flight.asked |= claim.earlier;
        flight.claim = Some(claim);
    }

    /// Ends a flight whose device has its certificate, and closes the journal.
    async fn close(
        &self,
        entry: &JournalEntry,
        certificate: Certificate,
        iot_id: Option<String>,
        registered: Option<UnixSeconds>,
    ) -> Outcome {
        let registered = registered.unwrap_or_else(unix_now);
        let registration = Registration { certificate, iot_id, registered };
        if let Err(error) = self.store.store_registration(&entry.device, &registration).await {
            return self.store_failed(entry, &error);
        }
        Outcome::Registered(registration.certificate)
    }

    /// One call, in its turn.
    async fn call(&self, flight: &mut Flight) -> Result<CloudDevice, ApiError> {
        let JournalEntry { product_key, device_name, .. } = &flight.entry;
        if !flight.exists {
            // The pace was kept by whoever took the flight out of the queue.
            let registered = self.cloud.register_device(product_key, device_name).await;
            let asked = std::mem::replace(&mut flight.asked, true);
            match registered {
                Err(error) if error.class == ErrorClass::Exists => {
                    flight.exists = true;
                    flight.asked = asked;
                }
                Err(error) => return Err(error),
                Ok(device) => {
                    self.paces.of(Action::RegisterDevice).taken();
                    self.count(|counters| counters.registered += 1);
                    return Ok(device);
                }
            }
            if flight.refuses_existing && !flight.asked {
                return Err(not_ours());
            }
            tracing::warn!(device = %flight.entry.device, device_name, "the name exists at IoT Platform; its certificate is looked up");
        }
        self.paces.of(Action::QueryDeviceDetail).wait().await;
        match self.cloud.query_device_detail(product_key, device_name).await {
            Ok(device) => {
                self.paces.of(Action::QueryDeviceDetail).taken();
                self.adopt(flight, device)
            }
            // Somebody deleted it meanwhile: it is to be registered after all.
            Err(error) if error.class == ErrorClass::NotFound => {
                flight.exists = false;
                Err(error)
            }
            Err(error) => Err(error),
        }
    }

    /// Takes a device over that exists, if that may be.
    pub(super) fn adopt(&self, flight: &Flight, device: CloudDevice) -> Result<CloudDevice, ApiError> {
        if flight.refuses_existing && !flight.may_be_ours(device.created) {
            return Err(not_ours());
        }
        self.count(|counters| counters.recovered += 1);
        Ok(device)
    }

    pub(super) async fn keep(&self, entry: &JournalEntry, device: CloudDevice) -> Outcome {
        self.worked(&entry.product_key);
        let registration = Registration {
            registered: device.created.unwrap_or_else(unix_now),
            iot_id: device.iot_id,
            certificate: device.certificate,
        };
        // The cloud has the device; losing its certificate now would only cost
        // another query, but it need not come to that.
        for attempt in 1..=self.config.max_attempts.max(1) {
            match self.store.store_registration(&entry.device, &registration).await {
                Ok(()) => {
                    tracing::info!(device = %entry.device, name = entry.device_name, "registered");
                    return Outcome::Registered(registration.certificate);
                }
                Err(StoreError::Busy(_)) => tokio::time::sleep(self.pause(attempt)).await,
                Err(error) => return self.store_failed(entry, &error),
            }
        }
        Outcome::Later(self.config.max_retry_pause)
    }

    /// The table of the API's errors: what each class leads to.
    async fn judge(&self, flight: &mut Flight, error: ApiError) -> Next {
        flight.unknown += u32::from(error.class == ErrorClass::Unknown);
        let device = &flight.entry.device;
        match error.class {
            ErrorClass::Operator => {
                self.break_circuit(&flight.entry.product_key, &error);
                self.count(|counters| counters.failed += 1);
                Next::Land(Outcome::Operator(error.to_string()))
            }
            ErrorClass::Device => Next::Land(self.refuse(&flight.entry, &error).await),
            ErrorClass::Unknown if flight.unknown >= MAX_UNKNOWN => {
                Next::Land(self.refuse(&flight.entry, &error).await)
            }
            ErrorClass::Throttled => {
                let action = if flight.exists { Action::QueryDeviceDetail } else { Action::RegisterDevice };
                self.throttled(action, &error);
                Next::Again
            }
            ErrorClass::TryAgain
            | ErrorClass::TimedOut
            | ErrorClass::SignAgain
            | ErrorClass::Unknown
            | ErrorClass::Exists
            | ErrorClass::NotFound => {
                self.failed_for_now(device, &error);
                Next::Again
            }
        }
    }

    pub(super) async fn refuse(&self, entry: &JournalEntry, error: &ApiError) -> Outcome {
        tracing::error!(device = %entry.device, %error, "IoT Platform refuses this device; see `certdist device show`, and `device reset` once mended");
        self.count(|counters| counters.failed += 1);
        let reason = error.to_string();
        match self.store.store_refusal(&entry.device, &reason).await {
            Ok(()) => Outcome::Refused(reason),
            Err(error) => self.store_failed(entry, &error),
        }
    }

    pub(super) fn store_failed(&self, entry: &JournalEntry, error: &StoreError) -> Outcome {
        tracing::error!(device = %entry.device, %error, "a registration could not be stored; the device is told to come back");
        self.count(|counters| counters.failed += 1);
        Outcome::Later(self.config.max_retry_pause)
    }

    /// Full jitter over a doubling pause, at least a tenth of it.
    pub(super) fn pause(&self, attempt: u32) -> Duration {
        let doubled = self.config.retry_pause.saturating_mul(1 << attempt.saturating_sub(1).min(16));
        doubled.min(self.config.max_retry_pause).mul_f64(self.jitter(0.1..1.0))
    }

    pub(super) fn pause_of(&self, flight: &Flight) -> Duration {
        self.pause(flight.attempts)
    }
}

/// What a failure that only the operator can mend is about.
pub(super) fn scope(product_key: &str, error: &ApiError) -> Scope {
    match error.code.starts_with("iot.prod.") || error.code == "iot.device.DeviceCountExceeded" {
        true => Scope::Product(product_key.to_owned()),
        false => Scope::Account,
    }
}

/// A name that somebody else has made.
pub(super) fn not_ours() -> ApiError {
    ApiError {
        class: ErrorClass::Device,
        code: "NameIsTaken".into(),
        message: "the name exists at IoT Platform and was not registered by this server: delete the device \
                  there, or set existing = \"adopt\" for its enrollment, and reset it"
            .into(),
    }
}
