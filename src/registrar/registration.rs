//! One registration: its claim, its calls, the reaction to each class of failure, and its result
//! in the store.

use std::{sync::Arc, time::Duration};

use tokio::{sync::SemaphorePermit, time::Instant};

use super::{
    Outcome, Registrar, STOPPED,
    breaker::Scope,
    lines::{Kind, limited},
};
use crate::{
    device::DeviceId,
    iot_platform::{Action, ApiError, CloudDevice, ErrorClass},
    store::{
        AskedBy, Claim, DeviceRow, JournalEntry, RegisteredDevice, StoreError, StoreFuture, UnixSeconds,
        claim::{ClaimTime, Claimed, NAME_IS_TAKEN, Settlement},
        unix_now,
    },
};

/// Number of failures with an unknown code after which a registration ends.
const MAX_UNKNOWN: u32 = 3;

/// Tolerated difference, in seconds, when a device's creation time is compared with the time of the
/// first call that may have created it. Both are times of the cloud's clock. The creation time is
/// rounded down by less than a second, and the time of the call is at most a second too late,
/// because it is the difference of two whole seconds. So a device that certdist has created may
/// seem older than its call, but by less than two seconds. In whole seconds, this is at most one.
const CLOCK_TOLERANCE: UnixSeconds = 1;

/// Number of attempts to claim a device while the store is busy. The number is small: the cloud has
/// not been called yet, so nothing is lost if the device is asked to retry later.
pub(super) const CLAIM_ATTEMPTS: u32 = 3;

/// First and longest pause before a claim that another process holds is tried again.
const FIRST_HELD_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_HELD_PAUSE: Duration = Duration::from_secs(10);

/// Time of the first call without a definite answer, which may have created the device.
#[derive(Debug, Clone, Copy)]
enum Since {
    /// The time that is stored in the claim of an earlier registration.
    Claim(Claim),
    /// The time at which this process sent the call.
    Call(Instant),
}

/// A registration in progress.
#[derive(Debug)]
pub(super) struct Registration {
    /// The journal entry of the registration: device, product and name.
    pub(super) entry: JournalEntry,
    /// The claim, while this process has it.
    claim: Option<Claim>,
    /// Set if the registration was claimed in a batch but continues without it. The registration
    /// must then be claimed again before its call.
    has_left_batch: bool,
    /// First call that may have created the device; `None` if each call so far has definitely not
    /// created it.
    asked: Option<Since>,
    /// Set if the only call that may have created the device is the call that began the batch in
    /// progress, and the batch's result is not known yet.
    asked_in_batch: bool,
    /// Set if the name exists at IoT Platform, so that the device's certificate must be looked up.
    exists: bool,
    /// Number of calls so far, and the time at which the last call was sent.
    attempts: u32,
    left: Instant,
    /// Number of calls that failed with an unknown code, and the time of the first such call.
    unknown: Option<(u32, Instant)>,
    /// Number of attempts to claim the device that failed because another process had the claim.
    held: u32,
}

/// Result of a step.
pub(super) enum Next {
    /// The registration is over.
    Done(Outcome),
    /// The step is repeated after this pause.
    After(Duration),
    /// Another process has the claim; the step is repeated after this pause.
    Held(Duration),
}

impl Registration {
    /// Creates a registration without a claim.
    pub(super) fn new(entry: JournalEntry) -> Self {
        Self {
            entry,
            claim: None,
            has_left_batch: false,
            asked: None,
            asked_in_batch: false,
            exists: false,
            attempts: 0,
            left: Instant::now(),
            unknown: None,
            held: 0,
        }
    }

    /// Creates a registration that was taken over together with its batch and its claim. The cloud
    /// may already have created the device.
    pub(super) fn resumed(entry: JournalEntry, claim: Claim) -> Self {
        Self {
            claim: Some(claim),
            asked: Some(Since::Claim(claim)),
            asked_in_batch: claim.asked_by == AskedBy::Nobody,
            ..Self::new(entry)
        }
    }

    /// Notes the claim that the store returned.
    pub(super) fn claimed(&mut self, claim: Claim) {
        let may_be_asked = match claim.asked_by {
            AskedBy::Nobody => false,
            // If this registration already had the claim, it knows its own calls. Otherwise, the
            // calls were made by an earlier registration that could not give up its claim.
            AskedBy::Caller => self.claim.is_none(),
            AskedBy::Other => true,
        };
        if may_be_asked {
            self.asked.get_or_insert(Since::Claim(claim));
        }
        self.claim = Some(claim);
        self.has_left_batch = false;
    }

    /// Notes that the registration continues outside its batch. If the batch's result is unknown,
    /// the batch may have created the device.
    pub(super) fn leave_batch(&mut self) {
        self.has_left_batch = true;
        self.asked_in_batch = false;
    }

    /// Returns whether this process has the claim.
    pub(super) fn has_claim(&self) -> bool {
        self.claim.is_some()
    }

    /// Notes a call that was sent at the time `left` and may have been carried out.
    pub(super) fn may_have_asked(&mut self, left: Instant) {
        self.asked.get_or_insert(Since::Call(left));
    }

    /// Notes that the batch of this registration was begun at the time `left`.
    pub(super) fn may_be_in_batch(&mut self, left: Instant) {
        if self.asked.is_none() {
            self.asked = Some(Since::Call(left));
            self.asked_in_batch = true;
        }
    }

    /// Notes that, according to its result, the batch has not created the device.
    pub(super) fn is_not_in_batch(&mut self) {
        if std::mem::take(&mut self.asked_in_batch) {
            self.asked = None;
        }
    }

    /// Returns whether certdist may have created an existing device. This is possible only if a
    /// call for the device may have been carried out, and if the device is not older than the first
    /// such call. An answer that a name exists shows that its call was not carried out.
    /// `cloud_now` is the current time of the cloud's clock, and `offset` is the difference between
    /// the cloud's clock and this machine's clock.
    pub(super) fn may_be_ours(
        &self,
        created: Option<UnixSeconds>,
        cloud_now: UnixSeconds,
        offset: i64,
    ) -> bool {
        let since = match self.asked {
            None => return false,
            Some(Since::Claim(claim)) => claim.since.saturating_add(claim.cloud_offset.unwrap_or(offset)),
            Some(Since::Call(left)) => cloud_now.saturating_sub(left.elapsed().as_secs().cast_signed()),
        };
        created.is_none_or(|created| created.saturating_add(CLOCK_TOLERANCE) >= since)
    }
}

impl Registrar {
    /// Makes the next step of a registration. When the registration is over, the caller must pass
    /// it to [`let_go`](Self::let_go), which gives up the claim if the registration still has one.
    ///
    /// The permit `ahead` is released when a `RegisterDevice` call is sent, or when the step ends.
    pub(super) async fn step(
        self: &Arc<Self>,
        registration: &mut Registration,
        ahead: SemaphorePermit<'_>,
    ) -> Next {
        if !registration.has_claim() || registration.has_left_batch {
            let (entry, now) = (registration.entry.clone(), self.claim_time());
            match self.repeat(CLAIM_ATTEMPTS, || self.store.claim(&self.owner, &entry, now)).await {
                Ok(claimed) => {
                    if let Some(next) = self.note_claim(registration, claimed).await {
                        return next;
                    }
                }
                Err(error) => {
                    self.undo_claim(&entry.device, &error).await;
                    if matches!(error, StoreError::Busy(_)) {
                        self.turn_away();
                    }
                    return Next::Done(self.store_failed(&entry, &error));
                }
            }
        }
        registration.attempts += 1;
        let next = match self.call(registration, ahead).await {
            Ok(device) => Next::Done(self.keep(registration, device).await),
            Err(error) => self.judge(registration, error).await,
        };
        match next {
            // The journal entry stays, so that the device's next request continues the
            // registration.
            Next::After(_) if registration.attempts >= self.config.max_attempts.max(1) => {
                self.count(|counters| counters.failed += 1);
                Next::Done(Outcome::Later(self.config.max_retry_pause))
            }
            next => next,
        }
    }

    /// Returns the time to store with a claim that is made now.
    pub(super) fn claim_time(&self) -> ClaimTime {
        ClaimTime { at: unix_now(), cloud_offset: self.cloud.clock_offset() }
    }

    /// Notes the answer to a claim. Returns the next step if this process did not get the claim.
    pub(super) async fn note_claim(&self, registration: &mut Registration, claimed: Claimed) -> Option<Next> {
        match claimed {
            Claimed::Yours(claim) => {
                registration.claimed(claim);
                None
            }
            Claimed::Held => {
                registration.claim = None;
                registration.held += 1;
                let doubled = FIRST_HELD_PAUSE.saturating_mul(1 << registration.held.min(16));
                Some(Next::Held(doubled.min(LONGEST_HELD_PAUSE).mul_f64(self.jitter(0.5..1.0))))
            }
            Claimed::NotWanted => {
                registration.claim = None;
                Some(Next::Done(self.row_says(&registration.entry).await))
            }
            Claimed::NoPlace => {
                registration.claim = None;
                Some(Next::Done(Outcome::NoPlace))
            }
            Claimed::Elsewhere(target) => {
                registration.claim = None;
                Some(Next::Done(Outcome::Elsewhere(target)))
            }
            Claimed::NameTaken(holder) => {
                let JournalEntry { device, product_key, device_name, .. } = &registration.entry;
                limited!(self.admit_line(Kind::Refused), error, %device, %holder, product_key, device_name, "two devices have one name; give one of them another deviceName, or delete it");
                self.count(|counters| counters.failed += 1);
                Some(Next::Done(Outcome::SharedName(format!(
                    "device {holder} has the same name, {device_name}, in product {product_key}: give one of \
                     them another deviceName, or delete it"
                ))))
            }
        }
    }

    /// Returns the outcome for a device whose row no longer asks for the registration, because
    /// another process has registered the device or an operator has changed the row.
    async fn row_says(&self, entry: &JournalEntry) -> Outcome {
        match self.store.device(&entry.device).await {
            Ok(Some(DeviceRow { certificate: Some(certificate), .. })) => Outcome::Registered(certificate),
            Ok(Some(DeviceRow { refusal: Some(reason), .. })) => Outcome::Refused(reason),
            // The device is disabled, has another product or name, or is not in the table.
            Ok(_) => Outcome::Changed,
            Err(error) => self.store_failed(entry, &error),
        }
    }

    /// Ends a registration: gives up its claim if it still has one, and then passes the outcome to
    /// all waiting requests. Between these two steps, no new registration of the device can begin
    /// in this process.
    pub(super) async fn let_go(&self, mut registration: Registration, outcome: Outcome) {
        let JournalEntry { device, .. } = &registration.entry;
        if registration.claim.take().is_some() {
            self.release(device, registration.asked.is_some()).await;
        }
        self.finish(device, outcome);
    }

    /// Gives up a claim. Waits for a busy store, because no other process can get the claim until
    /// the store has released it or this process has ended.
    pub(super) async fn release(&self, device: &DeviceId, asked: bool) {
        let released = self
            .repeat(self.config.max_attempts, || self.store.release_claim(self.owner.id, device, asked))
            .await;
        if let Err(error) = released
            && self.may_log()
        {
            tracing::warn!(%device, %error, "could not release a registration");
        }
    }

    /// Asks all devices in the queue to retry later, because the store accepts no claims.
    /// Otherwise, the attempts to claim would be repeated for each device in the queue.
    fn turn_away(self: &Arc<Self>) {
        let waiting = super::lock(&self.queue).clear(None);
        self.let_all_go(waiting, &Outcome::Later(self.config.max_retry_pause));
    }

    /// Gives up a claim if an error leaves it unknown whether the claim was stored. Does nothing
    /// for any other error.
    pub(super) async fn undo_claim(&self, device: &DeviceId, error: &StoreError) {
        if matches!(error, StoreError::Unknown(_)) {
            self.release(device, false).await;
        }
    }

    /// Repeats an operation of the store, with pauses, while the store is busy or its answer is
    /// lost. Makes at most `max_attempts` attempts.
    pub(super) async fn repeat<'a, T>(
        &self,
        max_attempts: u32,
        mut operation: impl FnMut() -> StoreFuture<'a, T>,
    ) -> Result<T, StoreError> {
        let mut attempt = 0;
        loop {
            attempt += 1;
            match operation().await {
                Err(error @ (StoreError::Busy(_) | StoreError::Unknown(_))) if attempt < max_attempts => {
                    if self.may_log() {
                        tracing::warn!(%error, "a registration cannot be stored now; trying again");
                    }
                    tokio::time::sleep(self.pause(attempt)).await;
                }
                answer => return answer,
            }
        }
    }

    /// Ends registrations without waiting for the store: other tasks give up the claims.
    pub(super) fn let_all_go(self: &Arc<Self>, registrations: Vec<Registration>, outcome: &Outcome) {
        for registration in registrations {
            if registration.has_claim() {
                let (registrar, outcome) = (self.clone(), outcome.clone());
                self.runtime.spawn(async move { registrar.let_go(registration, outcome).await });
            } else {
                self.finish(&registration.entry.device, outcome.clone());
            }
        }
    }

    /// Makes one call: `RegisterDevice`, or `QueryDeviceDetail` for a name that exists.
    async fn call(
        &self,
        registration: &mut Registration,
        ahead: SemaphorePermit<'_>,
    ) -> Result<CloudDevice, ApiError> {
        if !registration.exists {
            self.turn(Action::RegisterDevice).await?;
            drop(ahead);
            let left = Instant::now();
            registration.left = left;
            self.note_called(&registration.entry.device);
            let JournalEntry { product_key, device_name, .. } = registration.entry.clone();
            match self.cloud.register_device(&product_key, &device_name).await {
                Err(error) => {
                    if error.may_be_done() {
                        registration.may_have_asked(left);
                    }
                    if error.class != ErrorClass::Exists {
                        return Err(error);
                    }
                    registration.exists = true;
                }
                Ok(device) => {
                    registration.may_have_asked(left);
                    self.paces.of(Action::RegisterDevice).taken();
                    self.count(|counters| counters.registered += 1);
                    return Ok(device);
                }
            }
            limited!(self.admit_line(Kind::Registered), info, device = %registration.entry.device, device_name, "the name exists at IoT Platform; looking up its device");
        }
        self.admit(Action::QueryDeviceDetail)?;
        self.turn(Action::QueryDeviceDetail).await?;
        registration.left = Instant::now();
        let JournalEntry { product_key, device_name, .. } = &registration.entry;
        match self.cloud.query_device_detail(product_key, device_name).await {
            Ok(device) => {
                self.paces.of(Action::QueryDeviceDetail).taken();
                self.worked(product_key, Action::QueryDeviceDetail);
                self.adopt(registration, device).await
            }
            // Another user has deleted the device in the meantime, so the registration is repeated.
            Err(error) if error.class == ErrorClass::NotFound => {
                registration.exists = false;
                Err(error)
            }
            Err(error) => Err(error),
        }
    }

    /// Adopts an existing device if certdist may have created it, or if its enrollment allows
    /// adoption.
    pub(super) async fn adopt(
        &self,
        registration: &Registration,
        device: CloudDevice,
    ) -> Result<CloudDevice, ApiError> {
        let offset = self.cloud.clock_offset().unwrap_or(0);
        if !registration.may_be_ours(device.created, unix_now().saturating_add(offset), offset) {
            let row = self.store.device(&registration.entry.device).await;
            let refuses = row.map(|row| row.is_none_or(|row| self.refuses_existing(&row.enrollment)));
            match refuses {
                Ok(false) => {}
                Ok(true) => return Err(not_ours()),
                Err(error) => return Err(error_of_store(&error)),
            }
        }
        self.count(|counters| counters.recovered += 1);
        Ok(device)
    }

    /// Stores the certificate, and ends the claim.
    pub(super) async fn keep(&self, registration: &mut Registration, device: CloudDevice) -> Outcome {
        let entry = registration.entry.clone();
        self.worked(&entry.product_key, Action::RegisterDevice);
        let certificate = device.certificate.clone();
        let settlement = Settlement::Registered(RegisteredDevice {
            registered: device.created.unwrap_or_else(unix_now),
            iot_id: device.iot_id,
            certificate: device.certificate,
        });
        match self.settle(registration, &settlement).await {
            Ok(()) => {
                limited!(self.admit_line(Kind::Registered), info, device = %entry.device, device_name = entry.device_name, "registered");
                Outcome::Registered(certificate)
            }
            Err(outcome) => outcome,
        }
    }

    /// Refuses a device permanently by storing the reason in its row. Ends the claim.
    pub(super) async fn refuse(&self, registration: &mut Registration, error: &ApiError) -> Outcome {
        let device = registration.entry.device.clone();
        self.count(|counters| counters.failed += 1);
        let reason = error.to_string();
        match self.settle(registration, &Settlement::Refused(reason.clone())).await {
            Ok(()) => {
                limited!(self.admit_line(Kind::Refused), error, %device, %error, "the registration of this device is refused; see `certdist device show`, and `device reset` once the cause is removed");
                Outcome::Refused(reason)
            }
            Err(outcome) => outcome,
        }
    }

    /// Stores the result of a registration. Waits for a busy store, because the cloud has already
    /// decided and the result must not be lost.
    async fn settle(&self, registration: &mut Registration, settlement: &Settlement) -> Result<(), Outcome> {
        let entry = registration.entry.clone();
        match self
            .repeat(self.config.max_attempts, || self.store.settle(self.owner.id, &entry, settlement))
            .await
        {
            Ok(()) => {
                registration.claim = None;
                return Ok(());
            }
            Err(error @ StoreError::Fenced) => {
                registration.claim = None;
                if self.may_log() {
                    tracing::warn!(device = %entry.device, %error, "the result of a registration is not stored");
                }
                return Err(self.row_says(&entry).await);
            }
            Err(error @ StoreError::Conflict(_)) => {
                registration.claim = None;
                let JournalEntry { device, product_key, device_name, .. } = &entry;
                match settlement {
                    Settlement::Registered(_) => {
                        limited!(self.admit_line(Kind::NotStored), error, %device, product_key, device_name, %error, "a certificate is not stored; if the name is not used any more, delete it at IoT Platform");
                    }
                    Settlement::Refused(reason) => {
                        limited!(self.admit_line(Kind::NotStored), warn, %device, reason, %error, "the refusal of a registration is not stored");
                    }
                }
                return Err(self.row_says(&entry).await);
            }
            Err(StoreError::Busy(_) | StoreError::Unknown(_)) => {}
            Err(error) => return Err(self.store_failed(&entry, &error)),
        }
        Err(Outcome::Later(self.config.max_retry_pause))
    }

    /// Decides by the class of an error whether to refuse the device, to stop calls, or to retry.
    async fn judge(self: &Arc<Self>, registration: &mut Registration, error: ApiError) -> Next {
        let action = if registration.exists { Action::QueryDeviceDetail } else { Action::RegisterDevice };
        match error.class {
            // This error does not come from the cloud: no call was made, because the breaker of
            // look-ups is open.
            ErrorClass::Operator if error.code == STOPPED => Next::Done(Outcome::Operator(error.message)),
            ErrorClass::Operator => Next::Done(self.stop_calls(registration, action, &error)),
            ErrorClass::Device => Next::Done(self.refuse(registration, &error).await),
            ErrorClass::Unknown => {
                let (count, first) =
                    registration.unknown.map_or((1, Instant::now()), |(count, first)| (count + 1, first));
                registration.unknown = Some((count, first));
                if count < MAX_UNKNOWN {
                    self.failed_for_now(Some(&registration.entry.device), None, &error);
                    return Next::After(self.pause(registration.attempts));
                }
                let JournalEntry { device, product_key, .. } = &registration.entry;
                // If other devices of the product are registered in the meantime, the cause is this
                // device. If several devices of the product fail, the cause is the product.
                // Otherwise the cause is still unknown.
                if self.has_worked_since(product_key, first) {
                    Next::Done(self.refuse(registration, &error).await)
                } else if self.suspect(product_key, device) {
                    Next::Done(self.stop_calls(registration, action, &error))
                } else {
                    limited!(self.may_log(), warn, %device, product_key, %error, "IoT Platform refuses a device for an unknown reason; trying again later");
                    self.count(|counters| counters.failed += 1);
                    Next::Done(Outcome::Later(self.config.max_retry_pause))
                }
            }
            ErrorClass::Throttled => {
                self.throttled(action, registration.left, &error);
                Next::After(self.pause(registration.attempts))
            }
            ErrorClass::TryAgain
            | ErrorClass::TimedOut
            | ErrorClass::SignAgain
            | ErrorClass::Exists
            | ErrorClass::NotFound => {
                self.failed_for_now(Some(&registration.entry.device), None, &error);
                Next::After(self.pause(registration.attempts))
            }
        }
    }

    /// Opens a breaker for an error that only the operator can fix.
    fn stop_calls(
        self: &Arc<Self>,
        registration: &Registration,
        action: Action,
        error: &ApiError,
    ) -> Outcome {
        self.break_circuit(&registration.entry.product_key, action, error);
        self.count(|counters| counters.failed += 1);
        Outcome::Operator(error.to_string())
    }

    pub(super) fn store_failed(&self, entry: &JournalEntry, error: &StoreError) -> Outcome {
        if self.may_log() {
            tracing::error!(device = %entry.device, %error, "could not store a registration; the device is asked to retry later");
        }
        self.count(|counters| counters.failed += 1);
        Outcome::Later(self.config.max_retry_pause)
    }

    /// Returns the pause after this attempt. The pause doubles with each attempt up to a maximum,
    /// and is multiplied by a random factor between 0.1 and 1.
    pub(super) fn pause(&self, attempt: u32) -> Duration {
        let doubled = self.config.retry_pause.saturating_mul(1 << attempt.saturating_sub(1).min(16));
        doubled.min(self.config.max_retry_pause).mul_f64(self.jitter(0.1..1.0))
    }
}

/// Returns the scope of a refusal that only the operator can remove.
pub(super) fn scope(product_key: &str, action: Action, error: &ApiError) -> Scope {
    if is_about_product(error) { Scope::Product(product_key.to_owned()) } else { Scope::Action(action) }
}

/// Returns whether a refusal concerns one product only. A refusal for an unknown reason does not
/// count as a refusal of the whole account.
pub(super) fn is_about_product(error: &ApiError) -> bool {
    error.is_about_product() || error.class == ErrorClass::Unknown
}

/// Converts an error of the store into an error after which a registration is tried again.
pub(super) fn error_of_store(error: &StoreError) -> ApiError {
    ApiError { class: ErrorClass::TryAgain, code: "Database".into(), message: error.to_string() }
}

/// Returns the error for a name that exists at IoT Platform and is not ours.
pub(super) fn not_ours() -> ApiError {
    ApiError {
        class: ErrorClass::Device,
        code: NAME_IS_TAKEN.into(),
        message: "the name exists at IoT Platform and was not registered by this server: delete the device \
                  there, or set existing = \"adopt\" for its enrollment, and reset it"
            .into(),
    }
}
