//! Many registrations of one product in a few calls: the names are checked, created
//! together, and fetched by pages. What a batch cannot do, for some of its devices or
//! for all, is done singly. It is in the journal before it creates anything, so that
//! after a crash it goes on where it was.

use std::{collections::HashMap, time::Duration};

use futures_util::{StreamExt, future::join_all, stream};
use tokio::time::Instant;

use super::{
    Outcome, Registrar,
    flight::{Flight, not_ours},
};
use crate::{
    iot_platform::{
        Action, ApiError, ApiFuture, ApplyId, BatchPage, BatchProgress, BatchStatus, CloudDevice, ErrorClass,
        MAX_QUERY,
    },
    store::{JournalEntry, OpenBatch},
};

/// Checks of one batch: each leaves out the names that did not pass the one before.
const MAX_CHECKS: u32 = 3;
/// Pauses between looks at a batch: the first, and the longest.
const FIRST_LOOK: Duration = Duration::from_millis(500);
const LONGEST_LOOK: Duration = Duration::from_secs(5);
/// Pages, or lists of names, that are asked for at once.
const AT_ONCE: usize = 8;

/// A batch in the air.
struct Batch {
    journal: OpenBatch,
    /// By device name.
    flights: HashMap<String, Flight>,
}

impl Batch {
    fn names(&self) -> Vec<String> {
        let mut names: Vec<_> = self.flights.keys().cloned().collect();
        // The same call for the same devices, whatever the map's order.
        names.sort_unstable();
        names
    }

    fn take(&mut self, names: &[String]) -> Vec<Flight> {
        names.iter().filter_map(|name| self.flights.remove(name)).collect()
    }
}

/// Why a batch did not come to its end; its devices are registered singly.
type Abandoned = ApiError;

fn abandoned(message: &str) -> Abandoned {
    ApiError { class: ErrorClass::TryAgain, code: "BatchFailed".into(), message: message.into() }
}

impl Registrar {
    /// Flies a batch to its end. Flights that it could not land are in the queue again.
    pub(super) async fn fly_batch(self: &std::sync::Arc<Self>, product_key: &str, flights: Vec<Flight>) {
        let Some(mut batch) = self.open_batch(product_key, flights).await else { return };
        tracing::info!(product_key, devices = batch.flights.len(), "registering a batch");
        let outcome = self.register_batch(&mut batch).await;
        self.end_batch(batch, outcome).await;
    }

    /// Goes on with a batch that a crash has left.
    pub(super) async fn resume_batch(self: &std::sync::Arc<Self>, journal: OpenBatch, flights: Vec<Flight>) {
        let Some(apply_id) = journal.apply_id.map(ApplyId) else { return };
        tracing::info!(product_key = journal.product_key, devices = flights.len(), "taking up a batch");
        let mut batch = Batch { journal, flights: HashMap::new() };
        for mut flight in flights {
            if let Some(outcome) = self.prepare(&mut flight).await {
                self.land(&flight.entry.device, outcome);
            } else if let Some(twin) = batch.flights.insert(flight.entry.device_name.clone(), flight) {
                self.enqueue(twin);
            }
        }
        let outcome = self.create_and_fetch(&mut batch, apply_id).await;
        self.end_batch(batch, outcome).await;
    }

    /// Writes the journal. Flights that need no registration are landed.
    async fn open_batch(
        self: &std::sync::Arc<Self>,
        product_key: &str,
        flights: Vec<Flight>,
    ) -> Option<Batch> {
        let mut wanted = HashMap::with_capacity(flights.len());
        for mut flight in flights {
            match self.prepare(&mut flight).await {
                Some(outcome) => self.land(&flight.entry.device, outcome),
                None => {
                    // Two devices to which the operator gave one name: the cloud decides.
                    if let Some(twin) = wanted.insert(flight.entry.device_name.clone(), flight) {
                        self.enqueue(twin);
                    }
                }
            }
        }
        let mut flights: Vec<Flight> = wanted.into_values().collect();
        flights.sort_unstable_by(|one, other| one.entry.device.cmp(&other.entry.device));
        let entries: Vec<JournalEntry> = flights.iter().map(|flight| flight.entry.clone()).collect();
        if entries.is_empty() {
            return None;
        }
        let (id, claims) = match self.store.open_batch(product_key, &entries).await {
            Ok(opened) => opened,
            Err(error) => {
                for flight in flights {
                    self.land(&flight.entry.device, self.store_failed(&flight.entry, &error));
                }
                return None;
            }
        };
        let journal = OpenBatch { id, product_key: product_key.to_owned(), apply_id: None };
        let mut batch = Batch { journal, flights: HashMap::new() };
        for (mut flight, claim) in flights.into_iter().zip(claims) {
            match claim {
                Some(claim) => {
                    self.claimed(&mut flight, claim);
                    batch.flights.insert(flight.entry.device_name.clone(), flight);
                }
                None => self.land(
                    &flight.entry.device,
                    Outcome::Refused("the device is no longer in the table".into()),
                ),
            }
        }
        Some(batch)
    }

    /// Check, create, fetch.
    async fn register_batch(self: &std::sync::Arc<Self>, batch: &mut Batch) -> Result<(), Abandoned> {
        let Some(apply_id) = self.check(batch).await? else { return Ok(()) };
        // Before anything is created: after a crash, this is what is gone on with.
        self.note_apply_id(batch, apply_id).await?;
        self.create_and_fetch(batch, apply_id).await
    }

    async fn note_apply_id(&self, batch: &mut Batch, apply_id: ApplyId) -> Result<(), Abandoned> {
        batch.journal.apply_id = Some(apply_id.0);
        let noted = self.store.set_apply_id(&batch.journal, apply_id.0).await;
        noted.map_err(|error| abandoned(&format!("the journal failed: {error}")))
    }

    /// Has the names checked until all of a batch have passed; those that have not go
    /// their own way. `None` when no name is left.
    async fn check(self: &std::sync::Arc<Self>, batch: &mut Batch) -> Result<Option<ApplyId>, Abandoned> {
        for _ in 0..MAX_CHECKS {
            let product_key = batch.journal.product_key.clone();
            let names = batch.names();
            if names.is_empty() {
                return Ok(None);
            }
            let apply_id = self
                .persist(Action::BatchCheckDeviceNames, || {
                    self.cloud.batch_check_device_names(&product_key, &names)
                })
                .await?;
            let progress = self.until_done(&product_key, apply_id, BatchStatus::Check).await?;
            let invalid = batch.take(&progress.invalid);
            match progress.status {
                // The documentation says that all names must pass, so a batch of which
                // some did not is checked anew without them.
                BatchStatus::CheckSuccess if invalid.is_empty() => return Ok(Some(apply_id)),
                BatchStatus::CheckSuccess | BatchStatus::CheckFailed if !invalid.is_empty() => {
                    self.look_up(&product_key, invalid).await;
                }
                other => return Err(abandoned(&format!("the check ended with {}", other.name()))),
            }
        }
        Err(abandoned("the names did not pass the check"))
    }

    /// Goes on with a batch from wherever the cloud says that it is.
    async fn create_and_fetch(
        self: &std::sync::Arc<Self>,
        batch: &mut Batch,
        mut apply_id: ApplyId,
    ) -> Result<(), Abandoned> {
        let product_key = batch.journal.product_key.clone();
        // From here on, a device may have been created.
        batch.flights.values_mut().for_each(|flight| flight.asked = true);
        for attempt in 1..=self.config.max_attempts.max(1) {
            let mut progress = self.until_done(&product_key, apply_id, BatchStatus::Check).await?;
            if progress.status == BatchStatus::CheckSuccess {
                // Once: when its answer is lost, the status tells whether it has begun.
                self.paces.of(Action::BatchRegisterDeviceWithApplyId).wait().await;
                match self.cloud.batch_register_device_with_apply_id(&product_key, apply_id).await {
                    // The documentation has both: the same number, and another.
                    Ok(created) if created != apply_id => {
                        apply_id = created;
                        self.note_apply_id(batch, apply_id).await?;
                    }
                    Ok(_) => {}
                    Err(error) if error.class == ErrorClass::Operator => return Err(error),
                    Err(error) => {
                        if error.class == ErrorClass::Throttled {
                            self.throttled(Action::BatchRegisterDeviceWithApplyId, &error);
                        }
                        tracing::warn!(%apply_id, %error, "a batch may not have been begun");
                        tokio::time::sleep(self.pause(attempt)).await;
                    }
                }
                progress = self.until_done(&product_key, apply_id, BatchStatus::Create).await?;
            } else if progress.status == BatchStatus::Create {
                progress = self.until_done(&product_key, apply_id, BatchStatus::Create).await?;
            }
            match progress.status {
                BatchStatus::CreateSuccess | BatchStatus::CreateFailed => {
                    self.fetch(batch, apply_id).await?;
                    // Those that it did not create: somebody took their names meanwhile.
                    let names = batch.names();
                    let left = batch.take(&names);
                    self.look_up(&product_key, left).await;
                    return Ok(());
                }
                BatchStatus::CheckSuccess => {}
                other => return Err(abandoned(&format!("it ended with {}", other.name()))),
            }
        }
        Err(abandoned("its devices were not created"))
    }

    /// Waits until a step is over.
    async fn until_done(
        &self,
        product_key: &str,
        apply_id: ApplyId,
        step: BatchStatus,
    ) -> Result<BatchProgress, Abandoned> {
        let deadline = Instant::now() + self.config.batch_deadline;
        let mut look = FIRST_LOOK;
        loop {
            let progress = self
                .persist(Action::QueryBatchRegisterDeviceStatus, || {
                    self.cloud.query_batch_register_device_status(product_key, apply_id)
                })
                .await?;
            if progress.status != step {
                return Ok(progress);
            }
            if Instant::now() >= deadline {
                return Err(abandoned(&format!("it is still at {}", step.name())));
            }
            tokio::time::sleep(look).await;
            look = (look.mul_f64(1.3)).min(LONGEST_LOOK);
        }
    }

    /// Fetches all pages and lands whose certificate is on them.
    async fn fetch(
        self: &std::sync::Arc<Self>,
        batch: &mut Batch,
        apply_id: ApplyId,
    ) -> Result<(), Abandoned> {
        let product_key = batch.journal.product_key.clone();
        let page = |number| {
            let product_key = &product_key;
            self.persist(Action::QueryPageByApplyId, move || {
                self.cloud.query_page_by_apply_id(product_key, apply_id, number)
            })
        };
        let BatchPage { devices, pages } = page(1).await?;
        self.land_devices(batch, devices).await;
        let mut rest = stream::iter(2..=pages).map(page).buffer_unordered(AT_ONCE);
        let mut failed = None;
        while let Some(next) = rest.next().await {
            match next {
                Ok(BatchPage { devices, .. }) => self.land_devices(batch, devices).await,
                // The others may come all the same; who is missing is looked up.
                Err(error) => failed = Some(error),
            }
        }
        failed.map_or(Ok(()), Err)
    }

    /// Stores the certificates of devices that are in the batch, and lands them.
    async fn land_devices(&self, batch: &mut Batch, devices: Vec<CloudDevice>) {
        let landings = devices.into_iter().filter_map(|device| {
            let flight = batch.flights.remove(&device.certificate.device_name)?;
            Some(async move {
                self.count(|counters| counters.registered += 1);
                let outcome = self.keep(&flight.entry, device).await;
                self.land(&flight.entry.device, outcome);
            })
        });
        join_all(landings).await;
    }

    /// Recovers devices whose names exist, a hundred at a time. One that does not exist
    /// after all, or cannot be looked up now, goes back into the queue.
    async fn look_up(self: &std::sync::Arc<Self>, product_key: &str, flights: Vec<Flight>) {
        let mut lists: Vec<Vec<Flight>> = Vec::new();
        for flight in flights {
            match lists.last_mut() {
                Some(list) if list.len() < MAX_QUERY => list.push(flight),
                _ => lists.push(vec![flight]),
            }
        }
        stream::iter(lists)
            .for_each_concurrent(AT_ONCE, |list| async move {
                let names: Vec<String> = list.iter().map(|flight| flight.entry.device_name.clone()).collect();
                let found = self
                    .persist(Action::BatchQueryDeviceDetail, || {
                        self.cloud.batch_query_device_detail(product_key, &names)
                    })
                    .await
                    .unwrap_or_else(|error| {
                        tracing::warn!(product_key, %error, "devices could not be looked up; going one by one");
                        Vec::new()
                    });
                let mut found: HashMap<String, CloudDevice> = found
                    .into_iter()
                    .map(|device| (device.certificate.device_name.clone(), device))
                    .collect();
                join_all(list.into_iter().map(|flight| {
                    let device = found.remove(&flight.entry.device_name);
                    self.settle(flight, device)
                }))
                .await;
            })
            .await;
    }

    /// Lands a flight whose name was looked up, or has it go on singly.
    async fn settle(self: &std::sync::Arc<Self>, flight: Flight, device: Option<CloudDevice>) {
        let Some(device) = device else { return self.enqueue(flight) };
        let outcome = match self.adopt(&flight, device) {
            Ok(device) => self.keep(&flight.entry, device).await,
            Err(_) => self.refuse(&flight.entry, &not_ours()).await,
        };
        self.land(&flight.entry.device, outcome);
    }

    /// Closes the journal of a batch; whoever is left goes on singly.
    async fn end_batch(self: &std::sync::Arc<Self>, batch: Batch, outcome: Result<(), Abandoned>) {
        let Batch { journal, flights } = batch;
        if let Err(error) = outcome {
            let left = flights.len();
            tracing::warn!(
                product_key = journal.product_key, left, %error,
                "a batch did not come to its end; its devices are registered one by one"
            );
            self.batches_failed(&journal.product_key);
        }
        if let Err(error) = self.store.close_batch(journal.id).await {
            // It is taken up at the next start, and found to be done.
            tracing::warn!(%error, "a batch could not be closed in the journal");
        }
        let mut left: Vec<Flight> = flights.into_values().collect();
        left.sort_unstable_by(|one, other| one.entry.device.cmp(&other.entry.device));
        for flight in left {
            self.enqueue(flight);
        }
    }

    /// Calls until it works, as often as a flight would.
    pub(super) async fn persist<'a, T>(
        &self,
        action: Action,
        mut call: impl FnMut() -> ApiFuture<'a, T>,
    ) -> Result<T, ApiError> {
        let mut attempt = 0;
        loop {
            attempt += 1;
            self.paces.of(action).wait().await;
            let error = match call().await {
                Ok(answer) => {
                    self.paces.of(action).taken();
                    return Ok(answer);
                }
                Err(error) => error,
            };
            match error.class {
                ErrorClass::Throttled => self.throttled(action, &error),
                ErrorClass::TryAgain | ErrorClass::TimedOut | ErrorClass::SignAgain => {}
                _ => return Err(error),
            }
            if attempt >= self.config.max_attempts.max(1) {
                return Err(error);
            }
            self.failed_for_now(&action.name(), &error);
            self.count(|counters| counters.retries += 1);
            tokio::time::sleep(self.pause(attempt)).await;
        }
    }
}
