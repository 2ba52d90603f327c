//! Looks up registered devices at IoT Platform, up to a hundred in a call. A sweep updates the
//! stored `activateTime` and `registerTime`, and notices devices that were disabled or deleted at
//! IoT Platform. `plan` decides which devices are due. The calls of a sweep take the turns that
//! registrations leave, and at least one turn a minute.

mod plan;
mod report;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::{Arc, Weak},
    time::Duration,
};

use tokio::time::Instant;

pub use self::report::Swept;
use self::{
    plan::{Part, Plan},
    report::News,
};
use super::{Registrar, TURN_DEADLINE, lock};
use crate::{
    iot_platform::{Action, ApiError, ApiFuture, CloudDevice, ErrorClass, MAX_QUERY},
    store::{
        CloudState, StoreError,
        sighting::{Sighting, Watched},
    },
};

/// Name of the lease that lets only one process at a time sweep the devices of the default target.
const LEASE: &str = "sweep";
/// Maximum number of rows that one read of the store returns.
const ROWS: usize = 500;
/// Maximum number of devices of one part that wait until a hundred devices of their product can be
/// looked up together.
const GATHERED: usize = 20_000;
/// One in this many turns of a sweep goes to the pass over all devices.
const TURNS_OF_ALL: u32 = 5;
/// Longest pause until a process that did not get the lease tries again.
const LOOK_EVERY: Duration = Duration::from_secs(60);
/// Time for which a call of a sweep waits for a turn that no registration wants. After this time,
/// the call takes any turn, so that an endless crowd of registrations does not stop the sweep.
const YIELDS_FOR: Duration = Duration::from_secs(60);

/// Devices that a pass has read but not looked up yet, by product.
#[derive(Default)]
struct Gathered {
    lists: BTreeMap<String, Vec<Watched>>,
    devices: usize,
}

impl Gathered {
    fn add(&mut self, devices: impl IntoIterator<Item = Watched>) {
        for device in devices {
            self.devices += 1;
            // Only the first device of a product needs a copy of the product key.
            match self.lists.get_mut(&device.product_key) {
                Some(list) => list.push(device),
                None => _ = self.lists.insert(device.product_key.clone(), vec![device]),
            }
        }
    }

    /// Takes up to [`MAX_QUERY`] devices of one product, the first that were added. Takes fewer
    /// than [`MAX_QUERY`] only if no more devices will be added (`is_last`), or if too many devices
    /// wait.
    fn take(&mut self, is_last: bool) -> Option<Vec<Watched>> {
        let is_full = |list: &Vec<Watched>| list.len() >= MAX_QUERY;
        let product_key = match self.lists.iter().find(|(_, list)| is_full(list)) {
            Some((product_key, _)) => Some(product_key.clone()),
            None if is_last || self.devices >= GATHERED => self
                .lists
                .iter()
                .max_by_key(|(_, list)| list.len())
                .map(|(product_key, _)| product_key.clone()),
            None => None,
        }?;
        let list = self.lists.get_mut(&product_key)?;
        let taken: Vec<Watched> = list.drain(..list.len().min(MAX_QUERY)).collect();
        if list.is_empty() {
            self.lists.remove(&product_key);
        }
        self.devices -= taken.len();
        Some(taken)
    }
}

/// State of the pass over one part. This state is only in memory, in contrast to the plan.
#[derive(Default)]
struct Pass {
    gathered: Gathered,
    /// Set when the pass has read its last device.
    has_read_all: bool,
    /// Products that IoT Platform refuses, so that no further call is made for them in this pass.
    refused: HashSet<String>,
    swept: Swept,
    /// Product and error of the first look-up that failed.
    failure: Option<(String, ApiError)>,
}

/// A sweep, as one process knows it. The plan is also in the store.
struct Sweep {
    plan: Plan,
    /// Cursor that this process stored last. If the store has a different cursor, another process
    /// has swept since then.
    written: String,
    /// One pass for each part.
    passes: [Pass; 3],
    news: News,
    /// Time of the next turn of the pass over all devices.
    turn_of_all: Instant,
}

impl Sweep {
    fn new() -> Self {
        Self {
            plan: Plan::default(),
            written: String::new(),
            passes: Default::default(),
            news: News::default(),
            turn_of_all: Instant::now(),
        }
    }

    /// Continues at the cursor from the store. If another process has stored this cursor, drops the
    /// devices that this process has gathered.
    fn resume(&mut self, cursor: String) {
        if cursor != self.written {
            self.plan = Plan::from_cursor(&cursor);
            self.passes = Default::default();
            self.written = cursor;
        }
    }

    fn pass(&mut self, part: Part) -> &mut Pass {
        &mut self.passes[part as usize]
    }
}

/// Result of one step.
enum Step {
    /// The step has looked up devices.
    LookedUp,
    /// The step has read devices of the table. The value is true if a hundred devices of one
    /// product can now be looked up together.
    Read(bool),
    /// The pass is over.
    Ended(Swept),
    /// IoT Platform cannot be asked now. Contains the error unless it was reported before.
    Halted(Option<ApiError>),
}

/// Reason why devices were not looked up.
enum Fault {
    /// No device can be looked up now. Contains the error unless it was reported before.
    All(Option<ApiError>),
    /// These devices cannot be looked up.
    These(ApiError),
    Store(StoreError),
}

impl From<StoreError> for Fault {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl Registrar {
    /// Starts a task that first waits for a pause, and then looks up devices whenever they are due.
    /// The task ends when the registrar is dropped.
    pub fn start_sweeps(self: &Arc<Self>) {
        let Some(pause) = self.config.sweep_pause else { return };
        let registrar: Weak<Self> = Arc::downgrade(self);
        self.runtime.spawn(async move {
            let mut sweep = Sweep::new();
            let mut wait = pause;
            loop {
                tokio::time::sleep(wait).await;
                let Some(registrar) = registrar.upgrade() else { return };
                wait = registrar.sweep_due(&mut sweep, pause).await;
            }
        });
    }

    /// Looks up the devices that are due, unless another process is sweeping. Returns the time
    /// after which this function should be called again.
    async fn sweep_due(&self, sweep: &mut Sweep, pause: Duration) -> Duration {
        let look = async |cursor: String| {
            sweep.resume(cursor);
            self.look_up_due(sweep, pause).await
        };
        match self.with_lease(&self.lease(LEASE), look).await {
            Ok(Some(wait)) => wait,
            Ok(None) => {
                tracing::debug!("another process looks up the devices at IoT Platform");
                pause.min(LOOK_EVERY)
            }
            Err(error) => {
                tracing::warn!(at_target = self.shown_target(), %error, "could not look up the devices at IoT Platform");
                pause
            }
        }
    }

    /// Looks up devices until none is due, until IoT Platform cannot be asked, or until this
    /// process stops. Returns the time until devices are due again.
    async fn look_up_due(&self, sweep: &mut Sweep, pause: Duration) -> Result<Duration, StoreError> {
        while !self.is_draining() {
            let now = self.store.now();
            let Some(part) = sweep.plan.due(now, pause, Instant::now() >= sweep.turn_of_all) else {
                if sweep.plan.wait(Part::All, now, pause).is_zero() {
                    tokio::time::sleep_until(sweep.turn_of_all).await;
                    continue;
                }
                let wait = Part::ALL.map(|part| sweep.plan.wait(part, now, pause)).into_iter().min();
                // The store's clock and the timers differ, so a wait may end shortly before a
                // device is due. The minimum of one second prevents a series of short waits.
                return Ok(wait.unwrap_or(pause).max(Duration::from_secs(1)));
            };
            let step = self.sweep_step(sweep, part).await?;
            if part == Part::All && !matches!(step, Step::Read(true)) {
                let turn = self.paces.of(Action::BatchQueryDeviceDetail).spare_turn();
                sweep.turn_of_all = Instant::now() + (turn.interval + turn.reserve) * TURNS_OF_ALL;
            }
            match step {
                Step::LookedUp | Step::Read(_) => {}
                Step::Ended(swept) => {
                    let Swept { devices, changed, failed } = swept;
                    tracing::debug!(
                        part = part.name(),
                        devices,
                        changed,
                        failed,
                        "looked up devices at IoT Platform"
                    );
                }
                // A breaker is open. After its pause, IoT Platform can be asked again.
                Step::Halted(None) => return Ok(self.config.breaker_pause),
                Step::Halted(Some(error)) => {
                    let wait = pause.max(self.config.breaker_pause);
                    tracing::warn!(
                        at_target = self.shown_target(), %error, again_in_seconds = wait.as_secs(),
                        "could not look up the devices at IoT Platform; trying again"
                    );
                    return Ok(wait);
                }
            }
            // Without this yield, a pass over many rows without certificates would occupy the
            // thread.
            tokio::task::yield_now().await;
        }
        Ok(pause)
    }

    /// Looks up all registered devices now, unless another process is sweeping. If a pass over all
    /// devices is in progress, continues that pass.
    pub async fn sweep(&self) -> Result<Swept, StoreError> {
        let mut sweep = Sweep::new();
        let look = async |cursor: String| {
            sweep.resume(cursor);
            loop {
                match self.sweep_step(&mut sweep, Part::All).await? {
                    Step::LookedUp | Step::Read(_) => {}
                    Step::Ended(swept) => return Ok(swept),
                    Step::Halted(_) => {
                        let pass = sweep.pass(Part::All);
                        pass.swept.fail(pass.gathered.devices as u64);
                        return Ok(pass.swept);
                    }
                }
                tokio::task::yield_now().await;
            }
        };
        let swept = self.with_lease(&self.lease(LEASE), look).await?;
        if swept.is_none() {
            tracing::debug!("another process looks up the devices at IoT Platform");
        }
        Ok(swept.unwrap_or_default())
    }

    /// Does the next step of the pass over a part: looks up devices, reads devices of the table, or
    /// ends the pass. Begins a pass if none is in progress.
    async fn sweep_step(&self, sweep: &mut Sweep, part: Part) -> Result<Step, StoreError> {
        sweep.plan.begin(part, self.store.now());
        let has_read_all = sweep.pass(part).has_read_all;
        if let Some(list) = sweep.pass(part).gathered.take(has_read_all) {
            let (product_key, count) = (list[0].product_key.clone(), list.len() as u64);
            if sweep.pass(part).refused.contains(&product_key) {
                sweep.pass(part).swept.fail(count);
                return Ok(Step::LookedUp);
            }
            let looked = self.look_at(&list, sweep, part).await;
            let pass = sweep.pass(part);
            return match looked {
                Ok(()) => Ok(Step::LookedUp),
                Err(Fault::These(error)) => {
                    pass.swept.fail(count);
                    if error.is_about_product() {
                        pass.refused.insert(product_key.clone());
                    }
                    pass.failure.get_or_insert((product_key, error));
                    Ok(Step::LookedUp)
                }
                Err(Fault::All(error)) => {
                    pass.gathered.add(list);
                    Ok(Step::Halted(error))
                }
                Err(Fault::Store(error)) => {
                    pass.gathered.add(list);
                    Err(error)
                }
            };
        }
        if !has_read_all {
            self.read_on(sweep, part).await?;
            let pass = sweep.pass(part);
            if !pass.has_read_all || pass.gathered.devices > 0 {
                let is_full = pass.gathered.lists.values().any(|list| list.len() >= MAX_QUERY);
                self.note_plan(sweep).await?;
                return Ok(Step::Read(is_full));
            }
        }
        sweep.plan.end(part);
        let Pass { swept, failure, .. } = std::mem::take(sweep.pass(part));
        self.note_plan(sweep).await?;
        sweep.news.report();
        if let Some((product_key, error)) = failure {
            tracing::warn!(
                at_target = self.shown_target(), part = part.name(), devices = swept.failed, product_key, %error,
                "could not look up some devices at IoT Platform; the next pass tries again"
            );
        }
        Ok(Step::Ended(swept))
    }

    /// Reads the next devices of a part.
    async fn read_on(&self, sweep: &mut Sweep, part: Part) -> Result<(), StoreError> {
        let plan = &mut sweep.plan;
        let (devices, has_read_all) = if part == Part::All {
            let examined = self.store.registered_after(plan.device(part).as_ref(), ROWS).await?;
            if let Some(last) = &examined.last {
                plan.advance(part, last, None);
            }
            (examined.devices, examined.last.is_none())
        } else {
            let (issued, place) = (plan.issued(part, self.store.now()), plan.place(part));
            let devices = self.store.unactivated(issued, place.as_ref(), ROWS).await?;
            if let Some(last) = devices.last() {
                plan.advance(part, &last.id, last.first_issued);
            }
            let is_last = devices.len() < ROWS;
            (devices, is_last)
        };
        let pass = sweep.pass(part);
        pass.gathered.add(devices.into_iter().filter(|device| device.target == self.config.target));
        pass.has_read_all = has_read_all;
        Ok(())
    }

    /// Stores the plan. Its passes are already beyond the devices that are gathered but not yet
    /// looked up. If this process ends now, the gathered devices are looked up only in the next
    /// pass.
    async fn note_plan(&self, sweep: &mut Sweep) -> Result<(), StoreError> {
        let cursor = sweep.plan.cursor();
        self.store.set_cursor(self.owner.id, &self.lease(LEASE), &cursor).await?;
        sweep.written = cursor;
        Ok(())
    }

    /// Looks up devices of one product, at least one and at most [`MAX_QUERY`], and stores the
    /// changes.
    async fn look_at(&self, list: &[Watched], sweep: &mut Sweep, part: Part) -> Result<(), Fault> {
        let Some(Watched { product_key, .. }) = list.first() else { return Ok(()) };
        let mut found = self.find_all(product_key, list.iter()).await?;
        let missing = |device: &&Watched| {
            !found.contains_key(&device.device_name) && device.cloud_state != Some(CloudState::Deleted)
        };
        let missing: Vec<&Watched> = list.iter().filter(missing).collect();
        // Names of missing devices that were perhaps not deleted. Their stored states stay as they
        // are.
        let unsure: HashSet<&str> = match self.find_missing(product_key, &missing, &mut found).await {
            Ok(()) => HashSet::new(),
            Err(Fault::These(error)) => {
                sweep.pass(part).failure.get_or_insert_with(|| (product_key.clone(), error));
                missing.iter().map(|device| device.device_name.as_str()).collect()
            }
            Err(other) => return Err(other),
        };
        let (mut changed, mut failed) = (Vec::new(), 0);
        for device in list {
            let sighting = match found.get(&device.device_name) {
                Some(device) => seen(device),
                None if unsure.contains(device.device_name.as_str()) => {
                    failed += 1;
                    continue;
                }
                None => Sighting { state: Some(CloudState::Deleted), ..Sighting::default() },
            };
            let activated = device.activated.or(sighting.activated);
            let registered = sighting.registered.or(device.registered);
            if (activated, registered, sighting.state)
                != (device.activated, device.registered, device.cloud_state)
            {
                changed.push((device.clone(), sighting));
            }
        }
        let count = changed.len() as u64;
        if count > 0 {
            self.store.store_sightings(changed.clone()).await?;
        }
        changed.iter().for_each(|(device, sighting)| sweep.news.note(device, sighting.state));
        let swept = &mut sweep.pass(part).swept;
        swept.devices += list.len() as u64;
        swept.changed += count;
        swept.failed += failed;
        Ok(())
    }

    /// Looks up devices of one product. Returns the devices that IoT Platform lists, by name.
    async fn find_all(
        &self,
        product_key: &str,
        devices: impl Iterator<Item = &Watched>,
    ) -> Result<HashMap<String, CloudDevice>, Fault> {
        let names: Vec<String> = devices.map(|device| device.device_name.clone()).collect();
        let found = self
            .ask(Action::BatchQueryDeviceDetail, || self.cloud.batch_query_device_detail(product_key, &names))
            .await?;
        Ok(found.into_iter().map(|device| (device.certificate.device_name.clone(), device)).collect())
    }

    /// Looks up again the devices that were missing in IoT Platform's answer to a list of names,
    /// and adds those that exist to `found`. A missing name is no proof that the device was
    /// deleted. Therefore the first missing device is looked up by itself, which gives a definite
    /// answer. If that device does not exist, the others are looked up together once more.
    ///
    /// Fails with [`Fault::These`] if it is not certain that the missing devices were deleted.
    async fn find_missing(
        &self,
        product_key: &str,
        missing: &[&Watched],
        found: &mut HashMap<String, CloudDevice>,
    ) -> Result<(), Fault> {
        let [first, others @ ..] = missing else { return Ok(()) };
        let name = &first.device_name;
        let one =
            self.ask(Action::QueryDeviceDetail, || self.cloud.query_device_detail(product_key, name)).await;
        match one {
            Err(Fault::These(error)) if error.class == ErrorClass::NotFound => {}
            // The first device exists, so the earlier answer was incomplete and says nothing about
            // the other names.
            Ok(device) if !others.is_empty() => {
                found.insert(name.clone(), device);
                return Err(Fault::These(ApiError {
                    class: ErrorClass::Unknown,
                    code: "IncompleteList".into(),
                    message: format!("BatchQueryDeviceDetail left out {name}, which exists"),
                }));
            }
            Ok(device) => _ = found.insert(name.clone(), device),
            Err(error) => return Err(error),
        }
        if !others.is_empty() {
            found.extend(self.find_all(product_key, others.iter().copied()).await?);
        }
        Ok(())
    }

    /// Makes a call of a sweep. Repeats it while it fails for a temporary reason, at most
    /// [`max_attempts`](super::Config::max_attempts) times.
    async fn ask<'a, T>(
        &self,
        action: Action,
        mut call: impl FnMut() -> ApiFuture<'a, T>,
    ) -> Result<T, Fault> {
        for attempt in 1.. {
            if self.is_stopped(action) || self.is_draining() {
                return Err(Fault::All(None));
            }
            self.spare_turn(action).await?;
            let error = match self.paced(action, call()).await {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            match error.class {
                ErrorClass::Throttled
                | ErrorClass::TryAgain
                | ErrorClass::TimedOut
                | ErrorClass::SignAgain => {}
                ErrorClass::Operator if !error.is_about_product() => return Err(Fault::All(Some(error))),
                _ => return Err(Fault::These(error)),
            }
            if attempt >= self.config.max_attempts.max(1) {
                return Err(Fault::All(Some(error)));
            }
            tracing::debug!(action = action.name(), %error, "a call to IoT Platform failed; trying again");
            self.count(|counters| counters.retries += 1);
            tokio::time::sleep(self.pause(attempt)).await;
        }
        Err(Fault::All(None))
    }

    /// Returns whether a breaker stops the calls of this action, or all registrations.
    fn is_stopped(&self, action: Action) -> bool {
        let breakers = lock(&self.breakers);
        [action, Action::RegisterDevice].into_iter().any(|action| breakers.stops(action, Instant::now()))
    }

    /// Waits for a turn that no registration of any process wants. After [`YIELDS_FOR`], takes any
    /// turn.
    async fn spare_turn(&self, action: Action) -> Result<(), StoreError> {
        let pace = self.paces.of(action);
        tokio::time::sleep(pace.own_wait()).await;
        let begun = Instant::now();
        loop {
            let turn = if begun.elapsed() < YIELDS_FOR { pace.spare_turn() } else { pace.turn() };
            match self.store.take_turn(pace.name(), turn).await {
                Ok(None) => return Ok(()),
                Ok(Some(wait)) => tokio::time::sleep(wait).await,
                Err(StoreError::Busy(_) | StoreError::Unknown(_)) if begun.elapsed() < TURN_DEADLINE => {
                    tokio::time::sleep(self.pause(1)).await;
                }
                Err(error) => return Err(error),
            }
        }
    }
}

fn seen(device: &CloudDevice) -> Sighting {
    Sighting {
        registered: device.created,
        activated: device.activated,
        state: device.disabled.then_some(CloudState::Disabled),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{device::DeviceId, store::DeviceRow};

    fn devices(product_key: &str, count: usize) -> Vec<Watched> {
        let id = |number| DeviceId::parse(&format!("{product_key}-{number}")).unwrap();
        let device = |number| Watched::from(&DeviceRow::imported(id(number), "lamp", product_key));
        (0..count).map(device).collect()
    }

    #[test]
    fn devices_wait_for_a_hundred_of_their_product_in_bounded_memory() {
        let mut gathered = Gathered::default();
        gathered.add(devices("a1", 150));
        gathered.add(devices("a2", 60));
        let taken = |list: Option<Vec<Watched>>| list.map(|list| (list[0].id.to_string(), list.len()));
        assert_eq!(taken(gathered.take(false)), Some(("a1-0".into(), 100)));
        assert_eq!(taken(gathered.take(false)), None);
        assert_eq!(taken(gathered.take(true)), Some(("a2-0".into(), 60)));
        assert_eq!(taken(gathered.take(true)), Some(("a1-100".into(), 50)));
        assert_eq!((taken(gathered.take(true)), gathered.devices, gathered.lists.len()), (None, 0, 0));
        for product in 0..GATHERED / 10 {
            gathered.add(devices(&format!("p{product}"), 10));
        }
        assert_eq!(taken(gathered.take(false)).unwrap().1, 10, "too many wait");
        assert_eq!(taken(gathered.take(false)), None);
    }
}
