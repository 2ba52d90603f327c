//! Steps of one registration: opens the journal entry, makes the calls, reacts to each class of
//! failure, and stores the result.

use std::time::Duration;

use super::{Outcome, Registrar, breaker::Scope};
use crate::{
    device::Certificate,
    iot_platform::{Action, ApiError, CloudDevice, ErrorClass},
    store::{Claim, DeviceRow, JournalEntry, RegisteredDevice, StoreError, UnixSeconds, unix_now},
};

/// Number of failures with an unknown code after which the device is refused.
const MAX_UNKNOWN: u32 = 3;

/// Tolerated difference between the cloud's clock and this host's, in seconds. It applies when
/// the creation time of a device is compared with the time of its journal entry.
const CLOCK_TOLERANCE: UnixSeconds = 3600;

/// A registration in progress.
#[derive(Debug)]
pub(super) struct Registration {
    /// Its journal entry: the device, product and name.
    pub(super) entry: JournalEntry,
    /// Claim that the journal returned when the entry was opened; `None` before that.
    pub(super) claim: Option<Claim>,
    /// Set if an earlier call may have created the device.
    pub(super) asked: bool,
    /// Set if the name exists at IoT Platform, so that its certificate must be looked up.
    exists: bool,
    /// Set if the enrollment refuses existing names that this server did not register.
    refuses_existing: bool,
    /// Number of attempts so far.
    attempts: u32,
    /// Number of attempts that failed with an unknown code.
    unknown: u32,
}

/// Result of a step.
pub(super) enum Next {
    /// The registration is over.
    Done(Outcome),
    /// The step is repeated after a pause.
    Again,
}

impl Registration {
    /// Creates a registration. `asked` is set if the journal already had an entry for the device.
    pub(super) fn new(entry: JournalEntry, asked: bool) -> Self {
        Self { entry, claim: None, asked, exists: false, refuses_existing: false, attempts: 0, unknown: 0 }
    }

    /// Returns whether an earlier call of this server may have created the existing device. The
    /// name is a fixed function of the device ID. If the name was requested before, the device is
    /// ours, unless it is older than the journal entry.
    pub(super) fn may_be_ours(&self, created: Option<UnixSeconds>) -> bool {
        let since = self.claim.map_or(0, |claim| claim.since);
        self.asked && created.is_none_or(|created| created.saturating_add(CLOCK_TOLERANCE) >= since)
    }
}

impl Registrar {
    /// Makes the next step of a registration.
    pub(super) async fn step(&self, registration: &mut Registration) -> Next {
        if registration.claim.is_none() {
            if let Some(outcome) = self.prepare(registration).await {
                return Next::Done(outcome);
            }
            match self.store.open_journal(&registration.entry).await {
                Ok(claim) => self.claimed(registration, claim),
                Err(error) => return Next::Done(self.store_failed(&registration.entry, &error)),
            }
        }
        registration.attempts += 1;
        let next = match self.call(registration).await {
            Ok(device) => Next::Done(self.keep(&registration.entry, device).await),
            Err(error) => self.judge(registration, error).await,
        };
        match next {
            // The journal entry stays open, so that the next request or the next start of the
            // server continues the registration.
            Next::Again if registration.attempts >= self.config.max_attempts.max(1) => {
                self.count(|counters| counters.failed += 1);
                Next::Done(Outcome::Later(self.config.max_retry_pause))
            }
            next => next,
        }
    }

    /// Reads the device's row. Returns an outcome if there is nothing to register.
    pub(super) async fn prepare(&self, registration: &mut Registration) -> Option<Outcome> {
        let entry = &registration.entry;
        match self.store.device(&entry.device).await {
            // Another registration has finished since the caller looked, or an operator
            // has imported the certificate.
            Ok(Some(DeviceRow { certificate: Some(certificate), iot_id, registered, .. })) => {
                Some(self.close(entry, certificate, iot_id, registered).await)
            }
            Ok(Some(row)) => {
                registration.refuses_existing = self.refuses_existing(&row.enrollment);
                None
            }
            Ok(None) => Some(Outcome::Refused("the device is no longer in the table".into())),
            Err(error) => Some(self.store_failed(entry, &error)),
        }
    }

    /// Stores the claim that the journal returned in the registration.
    pub(super) fn claimed(&self, registration: &mut Registration, claim: Claim) {
        registration.asked |= claim.earlier;
        registration.claim = Some(claim);
    }

    /// Ends a registration whose device already has a certificate, and closes its journal entry.
    async fn close(
        &self,
        entry: &JournalEntry,
        certificate: Certificate,
        iot_id: Option<String>,
        registered: Option<UnixSeconds>,
    ) -> Outcome {
        let registered = registered.unwrap_or_else(unix_now);
        let registration = RegisteredDevice { certificate, iot_id, registered };
        if let Err(error) = self.store.store_registration(&entry.device, &registration).await {
            return self.store_failed(entry, &error);
        }
        Outcome::Registered(registration.certificate)
    }

    /// Makes one call: `RegisterDevice`, or `QueryDeviceDetail` for a name that exists.
    async fn call(&self, registration: &mut Registration) -> Result<CloudDevice, ApiError> {
        let JournalEntry { product_key, device_name, .. } = &registration.entry;
        if !registration.exists {
            // The task that took the registration from the queue has already waited for its turn.
            let registered = self.cloud.register_device(product_key, device_name).await;
            let asked = std::mem::replace(&mut registration.asked, true);
            match registered {
                Err(error) if error.class == ErrorClass::Exists => {
                    registration.exists = true;
                    registration.asked = asked;
                }
                Err(error) => return Err(error),
                Ok(device) => {
                    self.paces.of(Action::RegisterDevice).taken();
                    self.count(|counters| counters.registered += 1);
                    return Ok(device);
                }
            }
            if registration.refuses_existing && !registration.asked {
                return Err(not_ours());
            }
            tracing::warn!(device = %registration.entry.device, device_name, "the name exists at IoT Platform; looking up its certificate");
        }
        self.paces.of(Action::QueryDeviceDetail).wait().await;
        match self.cloud.query_device_detail(product_key, device_name).await {
            Ok(device) => {
                self.paces.of(Action::QueryDeviceDetail).taken();
                self.adopt(registration, device)
            }
            // Another user has deleted the device in the meantime, so the next attempt registers
            // it.
            Err(error) if error.class == ErrorClass::NotFound => {
                registration.exists = false;
                Err(error)
            }
            Err(error) => Err(error),
        }
    }

    /// Adopts an existing device if its enrollment allows that.
    pub(super) fn adopt(
        &self,
        registration: &Registration,
        device: CloudDevice,
    ) -> Result<CloudDevice, ApiError> {
        if registration.refuses_existing && !registration.may_be_ours(device.created) {
            return Err(not_ours());
        }
        self.count(|counters| counters.recovered += 1);
        Ok(device)
    }

    pub(super) async fn keep(&self, entry: &JournalEntry, device: CloudDevice) -> Outcome {
        self.worked(&entry.product_key);
        let registration = RegisteredDevice {
            registered: device.created.unwrap_or_else(unix_now),
            iot_id: device.iot_id,
            certificate: device.certificate,
        };
        // The device exists at the cloud. Its certificate could be queried again later, but
        // waiting for a busy store is cheaper.
        for attempt in 1..=self.config.max_attempts.max(1) {
            match self.store.store_registration(&entry.device, &registration).await {
                Ok(()) => {
                    tracing::info!(device = %entry.device, device_name = entry.device_name, "registered");
                    return Outcome::Registered(registration.certificate);
                }
                Err(StoreError::Busy(_)) => tokio::time::sleep(self.pause(attempt)).await,
                Err(error) => return self.store_failed(entry, &error),
            }
        }
        Outcome::Later(self.config.max_retry_pause)
    }

    /// Decides by the class of an error whether to refuse the device, stop calling, or retry.
    async fn judge(&self, registration: &mut Registration, error: ApiError) -> Next {
        registration.unknown += u32::from(error.class == ErrorClass::Unknown);
        let device = &registration.entry.device;
        match error.class {
            ErrorClass::Operator => {
                self.break_circuit(&registration.entry.product_key, &error);
                self.count(|counters| counters.failed += 1);
                Next::Done(Outcome::Operator(error.to_string()))
            }
            ErrorClass::Device => Next::Done(self.refuse(&registration.entry, &error).await),
            ErrorClass::Unknown if registration.unknown >= MAX_UNKNOWN => {
                Next::Done(self.refuse(&registration.entry, &error).await)
            }
            ErrorClass::Throttled => {
                let action =
                    if registration.exists { Action::QueryDeviceDetail } else { Action::RegisterDevice };
                self.throttled(action, &error);
                Next::Again
            }
            ErrorClass::TryAgain
            | ErrorClass::TimedOut
            | ErrorClass::SignAgain
            | ErrorClass::Unknown
            | ErrorClass::Exists
            | ErrorClass::NotFound => {
                self.failed_for_now(Some(device), None, &error);
                Next::Again
            }
        }
    }

    pub(super) async fn refuse(&self, entry: &JournalEntry, error: &ApiError) -> Outcome {
        tracing::error!(device = %entry.device, %error, "IoT Platform refuses this device; see `certdist device show`, and `device reset` once the cause is removed");
        self.count(|counters| counters.failed += 1);
        let reason = error.to_string();
        match self.store.store_refusal(&entry.device, &reason).await {
            Ok(()) => Outcome::Refused(reason),
            Err(error) => self.store_failed(entry, &error),
        }
    }

    pub(super) fn store_failed(&self, entry: &JournalEntry, error: &StoreError) -> Outcome {
        tracing::error!(device = %entry.device, %error, "could not store a registration; the device is asked to retry later");
        self.count(|counters| counters.failed += 1);
        Outcome::Later(self.config.max_retry_pause)
    }

    /// Returns the pause after this attempt. The pause doubles with each attempt up to a maximum,
    /// and is multiplied by a random factor between 0.1 and 1.
    pub(super) fn pause(&self, attempt: u32) -> Duration {
        let doubled = self.config.retry_pause.saturating_mul(1 << attempt.saturating_sub(1).min(16));
        doubled.min(self.config.max_retry_pause).mul_f64(self.jitter(0.1..1.0))
    }

    pub(super) fn pause_of(&self, registration: &Registration) -> Duration {
        self.pause(registration.attempts)
    }
}

/// Returns the scope of a refusal that only the operator can remove.
pub(super) fn scope(product_key: &str, error: &ApiError) -> Scope {
    match error.code.starts_with("iot.prod.") || error.code == "iot.device.DeviceCountExceeded" {
        true => Scope::Product(product_key.to_owned()),
        false => Scope::Account,
    }
}

/// Returns the error for a name that exists at IoT Platform and is not ours.
pub(super) fn not_ours() -> ApiError {
    ApiError {
        class: ErrorClass::Device,
        code: "NameIsTaken".into(),
        message: "the name exists at IoT Platform and was not registered by this server: delete the device \
                  there, or set existing = \"adopt\" for its enrollment, and reset it"
            .into(),
    }
}
