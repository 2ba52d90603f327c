//! Registers many devices of one product in a few calls: IoT Platform checks the names, creates the
//! devices together, and returns them in pages. Devices that a batch cannot register are registered
//! one by one. The batch is written to the journal before it creates any device, so that it can
//! continue after a crash.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use futures_util::{StreamExt, future::join_all, stream};
use tokio::{sync::OwnedSemaphorePermit, time::Instant};

use super::{
    Registrar,
    lines::{Kind, limited},
    registration::{CLAIM_ATTEMPTS, Next, Registration},
};
use crate::{
    iot_platform::{
        Action, ApiError, ApiFuture, ApplyId, BatchPage, BatchProgress, BatchStatus, CloudDevice, ErrorClass,
        MAX_QUERY,
    },
    store::{JournalEntry, OpenBatch, StoreError, claim::new_id},
};

/// Maximum number of times that the names of one batch are checked. Each repetition omits the
/// names that failed the previous check.
const MAX_CHECKS: u32 = 3;
/// Pause between the first two status queries of a batch. Later pauses grow up to `LONGEST_LOOK`.
const FIRST_LOOK: Duration = Duration::from_millis(500);
const LONGEST_LOOK: Duration = Duration::from_secs(5);
/// Maximum number of concurrent queries for pages or for lists of names.
const AT_ONCE: usize = 8;

/// A batch in progress.
struct Batch {
    journal: OpenBatch,
    /// Registrations by device name.
    registrations: HashMap<String, Registration>,
}

impl Batch {
    fn names(&self) -> Vec<String> {
        let mut names: Vec<_> = self.registrations.keys().cloned().collect();
        // The map has no fixed order, but a retry must make the same call, with the names in the
        // same order.
        names.sort_unstable();
        names
    }

    fn take(&mut self, names: &[String]) -> Vec<Registration> {
        names.iter().filter_map(|name| self.registrations.remove(name)).collect()
    }

    /// Notes that the cloud may have begun to create the devices, by a call that was sent at the
    /// time `left`.
    fn may_be_begun(&mut self, left: Instant) {
        self.registrations.values_mut().for_each(|registration| registration.may_be_in_batch(left));
    }

    /// Notes the devices that the batch has not created, according to its result. If the result
    /// does not mention a device, the batch may have created it.
    fn were_not_created(&mut self, result: &BatchProgress) {
        let valid: HashSet<&String> = result.valid.iter().collect();
        let invalid: HashSet<&String> = result.invalid.iter().collect();
        for (name, registration) in &mut self.registrations {
            if invalid.contains(name) || (!valid.is_empty() && !valid.contains(name)) {
                registration.is_not_in_batch();
            }
        }
    }
}

/// Reason why a batch was abandoned. Its remaining devices are registered one by one.
type Abandoned = ApiError;

fn abandoned(message: &str) -> Abandoned {
    ApiError { class: ErrorClass::TryAgain, code: "BatchFailed".into(), message: message.into() }
}

impl Registrar {
    /// Runs a batch to its end. Registrations that the batch could not finish are queued again.
    /// Returns whether the batch has called IoT Platform.
    /// The permit `ahead` is released when the first call is sent, or when the batch ends.
    pub(super) async fn run_batch(
        self: &Arc<Self>,
        product_key: &str,
        registrations: Vec<Registration>,
        ahead: OwnedSemaphorePermit,
    ) -> bool {
        let Some(mut batch) = self.open_batch(product_key, registrations).await else { return false };
        limited!(
            self.admit_line(Kind::Batch),
            info,
            product_key,
            devices = batch.registrations.len(),
            "registering a batch"
        );
        let outcome = self.register_batch(&mut batch, ahead).await;
        self.end_batch(batch, outcome).await;
        true
    }

    /// Resumes a batch that was in progress when its process ended.
    pub(super) async fn resume_batch(self: &Arc<Self>, journal: OpenBatch, registrations: Vec<Registration>) {
        let Some(apply_id) = journal.apply_id.map(ApplyId) else { return };
        limited!(
            self.admit_line(Kind::Batch),
            info,
            product_key = journal.product_key,
            devices = registrations.len(),
            "resuming a batch"
        );
        let by_name = |registration: Registration| (registration.entry.device_name.clone(), registration);
        let mut batch = Batch { journal, registrations: registrations.into_iter().map(by_name).collect() };
        let outcome = self.create_and_fetch(&mut batch, apply_id, None).await;
        self.end_batch(batch, outcome).await;
    }

    /// Claims the registrations of a batch and writes the batch to the journal. Ends each
    /// registration that is no longer wanted according to the device's row. Returns `None` if no
    /// registration remains, or if the journal cannot be written.
    async fn open_batch(
        self: &Arc<Self>,
        product_key: &str,
        mut registrations: Vec<Registration>,
    ) -> Option<Batch> {
        registrations.sort_unstable_by(|one, other| one.entry.device.cmp(&other.entry.device));
        let entries: Vec<JournalEntry> =
            registrations.iter().map(|registration| registration.entry.clone()).collect();
        let opened = async {
            let (product_key, target) = (product_key.to_owned(), self.config.target.clone());
            let journal = OpenBatch { id: new_id()?, product_key, apply_id: None, target };
            let now = self.claim_time();
            let claim = || self.store.claim_batch(&self.owner, &journal, &entries, now);
            let claims = self.repeat(CLAIM_ATTEMPTS, claim).await;
            if matches!(claims, Err(StoreError::Unknown(_))) {
                self.close(&journal).await;
            }
            Ok((claims?, journal))
        };
        let (claims, journal) = match opened.await {
            Ok(opened) => opened,
            Err(error) => {
                join_all(registrations.into_iter().map(async |registration| {
                    self.undo_claim(&registration.entry.device, &error).await;
                    let outcome = self.store_failed(&registration.entry, &error);
                    self.let_go(registration, outcome).await;
                }))
                .await;
                return None;
            }
        };
        super::lock(&self.queue).start_running(journal.id);
        let mut batch = Batch { journal, registrations: HashMap::new() };
        for (mut registration, claimed) in registrations.into_iter().zip(claims) {
            match self.note_claim(&mut registration, claimed).await {
                None => _ = batch.registrations.insert(registration.entry.device_name.clone(), registration),
                Some(Next::Done(outcome)) => self.let_go(registration, outcome).await,
                Some(Next::After(pause) | Next::Held(pause)) => self.enqueue_after(registration, pause),
            }
        }
        if batch.registrations.is_empty() {
            self.close(&batch.journal).await;
            return None;
        }
        Some(batch)
    }

    async fn close(&self, batch: &OpenBatch) {
        super::lock(&self.queue).stop_running(batch.id);
        if let Err(error) =
            self.repeat(self.config.max_attempts, || self.store.close_batch(self.owner.id, batch.id)).await
        {
            // When this process has ended, another process resumes the batch and finds that the
            // cloud has completed it.
            limited!(self.may_log(), warn, %error, "could not close a batch in the journal");
        }
    }

    /// Checks, creates and fetches the devices of a batch.
    async fn register_batch(
        self: &Arc<Self>,
        batch: &mut Batch,
        ahead: OwnedSemaphorePermit,
    ) -> Result<(), Abandoned> {
        let Some((apply_id, checked)) = self.check(batch, ahead).await? else { return Ok(()) };
        // The apply ID is in the journal before any device is created, so that the batch can be
        // resumed after a crash.
        self.note_apply_id(batch, apply_id).await?;
        self.create_and_fetch(batch, apply_id, Some(checked)).await
    }

    async fn note_apply_id(&self, batch: &mut Batch, apply_id: ApplyId) -> Result<(), Abandoned> {
        batch.journal.apply_id = Some(apply_id.0);
        let id = batch.journal.id;
        let noted = self
            .repeat(self.config.max_attempts, || self.store.set_apply_id(self.owner.id, id, apply_id.0))
            .await;
        noted.map_err(|error| abandoned(&format!("the journal failed: {error}")))
    }

    /// Repeats the check, each time without the names that failed, until all names of the batch
    /// pass. Names that failed are looked up. Returns `None` when no name is left.
    async fn check(
        self: &Arc<Self>,
        batch: &mut Batch,
        ahead: OwnedSemaphorePermit,
    ) -> Result<Option<(ApplyId, BatchProgress)>, Abandoned> {
        let mut ahead = Some(ahead);
        for _ in 0..MAX_CHECKS {
            let product_key = batch.journal.product_key.clone();
            let names = batch.names();
            if names.is_empty() {
                return Ok(None);
            }
            let apply_id = self
                .persist(Action::BatchCheckDeviceNames, || {
                    drop(ahead.take());
                    self.cloud.batch_check_device_names(&product_key, &names)
                })
                .await?;
            let progress = self.until_done(&product_key, apply_id, BatchStatus::Check).await?;
            let invalid = batch.take(&progress.invalid);
            match progress.status {
                // All names must pass (API page of BatchRegisterDeviceWithApplyId), so after a
                // failure the next check omits the names that failed.
                BatchStatus::CheckSuccess if invalid.is_empty() => return Ok(Some((apply_id, progress))),
                BatchStatus::CheckSuccess | BatchStatus::CheckFailed if !invalid.is_empty() => {
                    self.look_up(&product_key, invalid).await;
                }
                other => return Err(abandoned(&format!("the check ended with {}", other.name()))),
            }
        }
        Err(abandoned("the names did not pass the check"))
    }

    /// Continues a batch from the step that the cloud reports: creates the devices unless they are
    /// created already, and then fetches them. `checked` is the result of the check, if the cloud
    /// has just reported it.
    async fn create_and_fetch(
        self: &Arc<Self>,
        batch: &mut Batch,
        mut apply_id: ApplyId,
        checked: Option<BatchProgress>,
    ) -> Result<(), Abandoned> {
        let product_key = batch.journal.product_key.clone();
        for attempt in 1..=self.config.max_attempts.max(1) {
            let mut progress = match &checked {
                Some(progress) if attempt == 1 => progress.clone(),
                _ => self.until_done(&product_key, apply_id, BatchStatus::Check).await?,
            };
            if progress.status == BatchStatus::CheckSuccess {
                // If the answer to the following call is lost, the call is not repeated. Instead,
                // the loop queries the status, which shows whether the creation has begun.
                self.turn(Action::BatchRegisterDeviceWithApplyId).await?;
                let left = Instant::now();
                let begun = self.cloud.batch_register_device_with_apply_id(&product_key, apply_id).await;
                if begun.as_ref().err().is_none_or(ApiError::may_be_done) {
                    batch.may_be_begun(left);
                }
                match begun {
                    // The cloud's documentation has examples that return the same apply ID, and
                    // examples that return a new one.
                    Ok(created) if created != apply_id => {
                        apply_id = created;
                        self.note_apply_id(batch, apply_id).await?;
                    }
                    Ok(_) => {}
                    Err(error) if error.class == ErrorClass::Operator => return Err(error),
                    Err(error) => {
                        if error.class == ErrorClass::Throttled {
                            self.throttled(Action::BatchRegisterDeviceWithApplyId, left, &error);
                        }
                        limited!(self.may_log(), warn, %apply_id, %error, "a batch may not have been begun");
                        tokio::time::sleep(self.pause(attempt)).await;
                    }
                }
                progress = self.until_done(&product_key, apply_id, BatchStatus::Create).await?;
            } else if progress.status == BatchStatus::Create {
                progress = self.until_done(&product_key, apply_id, BatchStatus::Create).await?;
            }
            match progress.status {
                BatchStatus::CreateSuccess | BatchStatus::CreateFailed => {
                    // If a name passed the check but was not created, another user of the cloud has
                    // taken it since the check.
                    batch.were_not_created(&progress);
                    self.fetch(batch, apply_id).await?;
                    let names = batch.names();
                    let left = batch.take(&names);
                    self.look_up(&product_key, left).await;
                    return Ok(());
                }
                BatchStatus::CheckSuccess => {}
                other => {
                    if other == BatchStatus::CheckFailed {
                        // The cloud creates no device of a batch whose check has failed.
                        batch.registrations.values_mut().for_each(Registration::is_not_in_batch);
                    }
                    return Err(abandoned(&format!("it ended with {}", other.name())));
                }
            }
        }
        Err(abandoned("its devices were not created"))
    }

    /// Queries the status of a batch until the status is no longer `step`. If many batches are in
    /// progress, the first query waits until the step is probably over, because all batches share
    /// the rate limit of these queries.
    async fn until_done(
        &self,
        product_key: &str,
        apply_id: ApplyId,
        step: BatchStatus,
    ) -> Result<BatchProgress, Abandoned> {
        let begun = Instant::now();
        let mut pause = FIRST_LOOK;
        let mut is_first = true;
        loop {
            // Time in which each batch in progress can query its status once.
            let round = self.paces.of(Action::QueryBatchRegisterDeviceStatus).duration_of(self.batches());
            if !is_first {
                tokio::time::sleep(pause.max(round)).await;
                pause = pause.mul_f64(1.3).min(LONGEST_LOOK);
            } else if round > FIRST_LOOK {
                let first = super::lock(&self.experience).first_look(step);
                tokio::time::sleep(first).await;
            }
            let progress = self
                .persist(Action::QueryBatchRegisterDeviceStatus, || {
                    self.cloud.query_batch_register_device_status(product_key, apply_id)
                })
                .await?;
            let is_over = progress.status != step;
            super::lock(&self.experience).looked(step, is_first, begun.elapsed(), is_over, Instant::now());
            if is_over {
                return Ok(progress);
            }
            if begun.elapsed() >= self.config.batch_deadline {
                return Err(abandoned(&format!("it is still at {}", step.name())));
            }
            is_first = false;
        }
    }

    /// Fetches all pages of a batch's result, and ends the registrations of the devices on them.
    async fn fetch(self: &Arc<Self>, batch: &mut Batch, apply_id: ApplyId) -> Result<(), Abandoned> {
        let product_key = batch.journal.product_key.clone();
        let page = |number| {
            let product_key = &product_key;
            self.persist(Action::QueryPageByApplyId, move || {
                self.cloud.query_page_by_apply_id(product_key, apply_id, number)
            })
        };
        let BatchPage { devices, pages } = page(1).await?;
        self.finish_devices(batch, devices).await;
        let mut rest = stream::iter(2..=pages).map(page).buffer_unordered(AT_ONCE);
        let mut failed = None;
        while let Some(next) = rest.next().await {
            match next {
                Ok(BatchPage { devices, .. }) => self.finish_devices(batch, devices).await,
                // The remaining pages are still fetched. Devices on a page that could not be
                // fetched are registered one by one.
                Err(error) => failed = Some(error),
            }
        }
        failed.map_or(Ok(()), Err)
    }

    /// Stores the certificates of the devices that belong to the batch, and ends their
    /// registrations.
    async fn finish_devices(&self, batch: &mut Batch, devices: Vec<CloudDevice>) {
        let finishes = devices.into_iter().filter_map(|device| {
            let mut registration = batch.registrations.remove(&device.certificate.device_name)?;
            Some(async move {
                self.count(|counters| counters.registered += 1);
                let outcome = self.keep(&mut registration, device).await;
                self.let_go(registration, outcome).await;
            })
        });
        join_all(finishes).await;
    }

    /// Looks up names that may already exist, up to [`MAX_QUERY`] per call, and recovers their
    /// certificates. A device that does not exist, or cannot be looked up now, is queued again.
    async fn look_up(self: &Arc<Self>, product_key: &str, registrations: Vec<Registration>) {
        let mut lists: Vec<Vec<Registration>> = Vec::new();
        for registration in registrations {
            match lists.last_mut() {
                Some(list) if list.len() < MAX_QUERY => list.push(registration),
                _ => lists.push(vec![registration]),
            }
        }
        stream::iter(lists)
            .for_each_concurrent(AT_ONCE, |list| async move {
                let names: Vec<String> = list.iter().map(|registration| registration.entry.device_name.clone()).collect();
                let found = self
                    .persist(Action::BatchQueryDeviceDetail, || {
                        self.cloud.batch_query_device_detail(product_key, &names)
                    })
                    .await
                    .unwrap_or_else(|error| {
                        limited!(self.may_log(), warn, product_key, %error, "could not look up devices; registering them one by one");
                        Vec::new()
                    });
                let mut found: HashMap<String, CloudDevice> = found
                    .into_iter()
                    .map(|device| (device.certificate.device_name.clone(), device))
                    .collect();
                join_all(list.into_iter().map(|registration| {
                    let device = found.remove(&registration.entry.device_name);
                    self.conclude(registration, device)
                }))
                .await;
            })
            .await;
    }

    /// Ends a registration whose name was looked up, or queues the registration for a single call.
    async fn conclude(self: &Arc<Self>, mut registration: Registration, device: Option<CloudDevice>) {
        registration.leave_batch();
        let Some(device) = device else { return self.enqueue(registration) };
        let outcome = match self.adopt(&registration, device).await {
            Ok(device) => self.keep(&mut registration, device).await,
            Err(error) if error.class == ErrorClass::Device => self.refuse(&mut registration, &error).await,
            // The registration continues with a single call, which looks the device up again.
            Err(_) => return self.enqueue(registration),
        };
        self.let_go(registration, outcome).await;
    }

    /// Closes the batch in the journal and queues the remaining devices for single calls.
    async fn end_batch(self: &Arc<Self>, batch: Batch, outcome: Result<(), Abandoned>) {
        let Batch { journal, registrations } = batch;
        match outcome {
            Ok(()) => super::lock(&self.experience).succeeded(&journal.product_key),
            Err(error) => {
                limited!(
                    self.may_log(), warn,
                    product_key = journal.product_key, devices = registrations.len(), %error,
                    "a batch did not come to its end; its devices are registered one by one"
                );
                self.batch_failed(&journal.product_key, &error);
            }
        }
        self.close(&journal).await;
        let mut left: Vec<Registration> = registrations.into_values().collect();
        left.sort_unstable_by(|one, other| one.entry.device.cmp(&other.entry.device));
        for mut registration in left {
            registration.leave_batch();
            self.enqueue(registration);
        }
    }

    /// Makes a call whose turn has come. Tells the pace of the action whether IoT Platform has
    /// accepted or throttled the call.
    pub(super) async fn paced<T>(&self, action: Action, call: ApiFuture<'_, T>) -> Result<T, ApiError> {
        let left = Instant::now();
        let answer = call.await;
        match &answer {
            Ok(_) => self.paces.of(action).taken(),
            Err(error) if error.class == ErrorClass::Throttled => self.throttled(action, left, error),
            Err(_) => {}
        }
        answer
    }

    /// Repeats a call until it succeeds or fails for a permanent reason. Makes at most
    /// [`max_attempts`](super::Config::max_attempts) attempts.
    pub(super) async fn persist<'a, T>(
        &self,
        action: Action,
        mut call: impl FnMut() -> ApiFuture<'a, T>,
    ) -> Result<T, ApiError> {
        let mut attempt = 0;
        loop {
            attempt += 1;
            self.turn(action).await?;
            let error = match self.paced(action, call()).await {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            match error.class {
                ErrorClass::Throttled
                | ErrorClass::TryAgain
                | ErrorClass::TimedOut
                | ErrorClass::SignAgain => {}
                _ => return Err(error),
            }
            if attempt >= self.config.max_attempts.max(1) {
                return Err(error);
            }
            self.failed_for_now(None, Some(action), &error);
            self.count(|counters| counters.retries += 1);
            tokio::time::sleep(self.pause(attempt)).await;
        }
    }
}
