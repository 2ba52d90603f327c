//! One flight: the journal, the call, what is done about each class of failure,
//! and the store.

use std::time::Duration;

use super::{Outcome, Registrar};
use crate::{
    device::Certificate,
    iot_platform::{ApiError, CloudDevice, ErrorClass},
    store::{DeviceRow, JournalEntry, Registration, StoreError, UnixSeconds, unix_now},
};

/// Calls after which a failure that is in no list is taken to be the device's.
const MAX_UNKNOWN: u32 = 3;

/// What to do after a call.
enum Next {
    Land(Outcome),
    Again,
}

impl Registrar {
    /// Registers one device. `journalled` when its entry is on the disk already.
    pub(super) async fn fly(&self, wanted: JournalEntry, journalled: bool) -> Outcome {
        match self.store.device(&wanted.device).await {
            // Another flight has landed since the caller looked, or an operator
            // has imported the certificate.
            Ok(Some(DeviceRow { certificate: Some(certificate), iot_id, registered, .. })) => {
                return self.close(&wanted, certificate, iot_id, registered).await;
            }
            Ok(Some(_)) => {}
            Ok(None) => return Outcome::Refused("the device is no longer in the table".into()),
            Err(error) => return self.store_failed(&wanted, &error),
        }
        if !journalled && let Err(error) = self.store.open_journal(&wanted).await {
            return self.store_failed(&wanted, &error);
        }
        let (mut unknown, mut exists) = (0, false);
        for attempt in 1..=self.config.max_attempts.max(1) {
            let next = match self.call(&wanted, &mut exists).await {
                Ok(device) => Next::Land(self.keep(&wanted, device).await),
                Err(error) => {
                    unknown += u32::from(error.class == ErrorClass::Unknown);
                    self.judge(&wanted, error, unknown).await
                }
            };
            match next {
                Next::Land(outcome) => return outcome,
                Next::Again => {
                    self.count(|counters| counters.retries += 1);
                    tokio::time::sleep(self.pause(attempt)).await;
                }
            }
        }
        // The journal entry stays: the next request, or the next start, goes on.
        self.count(|counters| counters.failed += 1);
        Outcome::Later(self.config.max_retry_pause)
    }

    /// Ends a flight whose device has its certificate, and closes the journal.
    async fn close(
        &self,
        wanted: &JournalEntry,
        certificate: Certificate,
        iot_id: Option<String>,
        registered: Option<UnixSeconds>,
    ) -> Outcome {
        let registered = registered.unwrap_or_else(unix_now);
        let registration = Registration { certificate, iot_id, registered };
        if let Err(error) = self.store.store_registration(&wanted.device, &registration).await {
            return self.store_failed(wanted, &error);
        }
        Outcome::Registered(registration.certificate)
    }

    /// One call, in its turn. A name that exists is looked up, now and in later
    /// attempts: it is a fixed function of the device ID, so it is what an earlier
    /// call of ours made.
    async fn call(&self, wanted: &JournalEntry, exists: &mut bool) -> Result<CloudDevice, ApiError> {
        let JournalEntry { product_key, device_name, .. } = wanted;
        // The place first (it is never closed), then the pace: the other way
        // round, those who waited for a place would come all at once.
        let _place = self.calls.acquire().await;
        self.pace.wait().await;
        if !*exists {
            match self.cloud.register_device(product_key, device_name).await {
                Err(error) if error.class == ErrorClass::Exists => {
                    tracing::warn!(device = %wanted.device, device_name, "the name exists at IoT Platform; its certificate is looked up");
                    *exists = true;
                }
                Err(error) => return Err(error),
                Ok(device) => {
                    self.count(|counters| counters.registered += 1);
                    return Ok(device);
                }
            }
        }
        let found = self.cloud.query_device_detail(product_key, device_name).await;
        match &found {
            Ok(_) => self.count(|counters| counters.recovered += 1),
            // Somebody deleted it meanwhile: it is to be registered after all.
            Err(error) if error.class == ErrorClass::NotFound => *exists = false,
            Err(_) => {}
        }
        found
    }

    async fn keep(&self, wanted: &JournalEntry, device: CloudDevice) -> Outcome {
        self.pace.taken();
        let registration = Registration {
            registered: device.created.unwrap_or_else(unix_now),
            iot_id: device.iot_id,
            certificate: device.certificate,
        };
        // The cloud has the device; losing its certificate now would only cost
        // another query, but it need not come to that.
        for attempt in 1..=self.config.max_attempts.max(1) {
            match self.store.store_registration(&wanted.device, &registration).await {
                Ok(()) => {
                    tracing::info!(device = %wanted.device, name = wanted.device_name, "registered");
                    return Outcome::Registered(registration.certificate);
                }
                Err(StoreError::Busy(_)) => tokio::time::sleep(self.pause(attempt)).await,
                Err(error) => return self.store_failed(wanted, &error),
            }
        }
        Outcome::Later(self.config.max_retry_pause)
    }

    /// The table of `shared/iot-platform`: what each class of failure leads to.
    async fn judge(&self, wanted: &JournalEntry, error: ApiError, unknown: u32) -> Next {
        let device = &wanted.device;
        match error.class {
            ErrorClass::Operator => {
                self.break_circuit(&wanted.product_key, &error.to_string());
                self.count(|counters| counters.failed += 1);
                Next::Land(Outcome::Operator(error.to_string()))
            }
            ErrorClass::Device => Next::Land(self.refuse(wanted, &error).await),
            ErrorClass::Unknown if unknown >= MAX_UNKNOWN => Next::Land(self.refuse(wanted, &error).await),
            ErrorClass::Throttled => {
                self.pace.throttled();
                tracing::warn!(%device, %error, "IoT Platform throttles; calling less often");
                Next::Again
            }
            ErrorClass::TryAgain
            | ErrorClass::TimedOut
            | ErrorClass::SignAgain
            | ErrorClass::Unknown
            | ErrorClass::Exists
            | ErrorClass::NotFound => {
                tracing::warn!(%device, %error, "a call to IoT Platform failed; trying again");
                Next::Again
            }
        }
    }

    async fn refuse(&self, wanted: &JournalEntry, error: &ApiError) -> Outcome {
        tracing::error!(device = %wanted.device, %error, "IoT Platform refuses this device; see `certdist device show`, and `device reset` once mended");
        self.count(|counters| counters.failed += 1);
        let reason = error.to_string();
        match self.store.store_refusal(&wanted.device, &reason).await {
            Ok(()) => Outcome::Refused(reason),
            Err(error) => self.store_failed(wanted, &error),
        }
    }

    fn store_failed(&self, wanted: &JournalEntry, error: &StoreError) -> Outcome {
        tracing::error!(device = %wanted.device, %error, "a registration could not be stored; the device is told to come back");
        self.count(|counters| counters.failed += 1);
        Outcome::Later(self.config.max_retry_pause)
    }

    /// Full jitter over a doubling pause, at least a tenth of it.
    fn pause(&self, attempt: u32) -> Duration {
        let doubled = self.config.retry_pause.saturating_mul(1 << attempt.saturating_sub(1).min(16));
        doubled.min(self.config.max_retry_pause).mul_f64(self.jitter(0.1..1.0))
    }
}
