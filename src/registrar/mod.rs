//! Registers devices at IoT Platform: each of them once, however often it is
//! asked for and whatever dies in between. A queue by product; single calls at an even
//! pace; batches when more wait than those serve soon; retries with jitter; a journal
//! entry on the disk before the call, so that a crash or a lost answer leads to the
//! same call again. How calls are answered is `iot_platform`'s; who may ask is
//! `provision`'s.

mod batch;
mod breaker;
mod flight;
mod pace;
mod queue;
mod sweep;
#[cfg(test)]
mod tests;

use std::{
    collections::{HashMap, HashSet},
    ops::Range,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use rand::{RngExt, SeedableRng, rngs::StdRng};
use tokio::{runtime::Handle, sync::watch, time::Instant};

use crate::{
    device::{Certificate, DeviceId},
    figures::{Distribution, Histogram},
    iot_platform::{Action, ApiError, IotPlatform, MAX_BATCH, QPS, SWEEP_PAUSE},
    store::{BatchId, JournalEntry, Store, StoreError},
};
use breaker::Breakers;
use flight::{Flight, Next};
use pace::Paces;
use queue::Queue;

/// How long a device is sent away by a registrar that ends.
const DRAIN_PAUSE: Duration = Duration::from_secs(10);
/// A batch of fewer is not worth its calls.
const MIN_BATCH: usize = 10;

/// Limits of a [`Registrar`].
#[derive(Debug, Clone)]
pub struct Config {
    /// `RegisterDevice` calls a second; the account's limit is 30. Of the other
    /// actions' limits the same part is used.
    pub qps: f64,
    /// Most registrations waiting or in progress; beyond, devices are told to
    /// come back.
    pub max_flights: usize,
    /// Most single calls in progress at once.
    pub max_calls: usize,
    /// Most calls for one device in one flight.
    pub max_attempts: u32,
    /// Pause after the first failed call; doubled each time, with jitter.
    pub retry_pause: Duration,
    /// Longest such pause.
    pub max_retry_pause: Duration,
    /// How long no call is made after the cloud has refused in a way that only the
    /// operator can mend; doubled while it goes on refusing.
    pub breaker_pause: Duration,
    /// Batches are made when single calls would take longer than this.
    pub batch_after: Duration,
    /// How long a batch gathers before it begins.
    pub gather: Duration,
    /// Most batches of one product at once; 0 makes none.
    pub max_batches: usize,
    /// How long a step of a batch may take; beyond, its devices are registered singly.
    pub batch_deadline: Duration,
    /// Enrollments in which a name that exists at IoT Platform and that the journal
    /// does not claim is left alone, and the device refused.
    pub refuse_existing: HashSet<String>,
    /// Pause between two looks at all devices' activation and state; `None` looks
    /// never.
    pub sweep_pause: Option<Duration>,
    /// Where jitter comes from; the system's randomness when `None`. Given in
    /// simulations, which are to be repeatable.
    pub seed: Option<u64>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            qps: QPS,
            max_flights: 20_000,
            max_calls: 32,
            max_attempts: 8,
            retry_pause: Duration::from_millis(500),
            max_retry_pause: Duration::from_secs(30),
            breaker_pause: Duration::from_secs(30),
            batch_after: Duration::from_secs(2),
            gather: Duration::from_secs(1),
            max_batches: 10,
            batch_deadline: Duration::from_secs(600),
            refuse_existing: HashSet::new(),
            sweep_pause: Some(SWEEP_PAUSE),
            seed: None,
        }
    }
}

/// What became of a registration, as far as the one who waits is concerned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The device is registered and its certificate stored.
    Registered(Certificate),
    /// IoT Platform refuses this very device; the reason is in its row.
    Refused(String),
    /// IoT Platform refuses all of them until the operator has acted.
    Operator(String),
    /// It goes on; come back after so long.
    Later(Duration),
    /// The cloud did not answer in time; it goes on.
    TimedOut,
}

/// What happened so far, for metrics and tests.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Devices registered.
    pub registered: u64,
    /// Devices whose certificate was recovered by `QueryDeviceDetail`.
    pub recovered: u64,
    /// Calls that failed and were made again.
    pub retries: u64,
    /// Flights that ended without a certificate.
    pub failed: u64,
    /// Batches begun.
    pub batches: u64,
    /// Times that the cloud said it was called too often.
    pub throttled: u64,
}

/// A flight's result, for all who wait for it.
type Landing = watch::Receiver<Option<Outcome>>;

/// A flight in the air, as those see it who wait.
struct Announced {
    landing: watch::Sender<Option<Outcome>>,
    since: Instant,
    /// Whether the cloud has been called for this very device.
    called: bool,
}

/// Failures that were told, or not.
#[derive(Debug, Default)]
struct Complaints {
    at: Option<Instant>,
    untold: u64,
}

/// What batches have taught about a product.
#[derive(Debug, Clone, Copy)]
struct Experience {
    /// From the beginning to the last certificate, on average.
    takes: Duration,
    /// None is made before: the last one failed.
    not_before: Option<Instant>,
}

/// Registers devices at IoT Platform.
pub struct Registrar {
    config: Config,
    store: Arc<dyn Store>,
    cloud: Arc<dyn IotPlatform>,
    runtime: Handle,
    paces: Paces,
    /// Locked before `queue` where both are.
    flights: Mutex<HashMap<DeviceId, Announced>>,
    queue: Mutex<Queue>,
    breakers: Mutex<Breakers>,
    experience: Mutex<HashMap<String, Experience>>,
    refuse_existing: Mutex<HashSet<String>>,
    counters: Mutex<Counters>,
    complaints: Mutex<Complaints>,
    random: Mutex<StdRng>,
    draining: AtomicBool,
    latency: Histogram,
}

impl Registrar {
    /// A registrar whose flights are tasks of `runtime`.
    pub fn new(
        config: Config,
        store: Arc<dyn Store>,
        cloud: Arc<dyn IotPlatform>,
        runtime: Handle,
    ) -> Arc<Self> {
        Arc::new(Self {
            paces: Paces::new(config.qps),
            random: Mutex::new(config.seed.map_or_else(rand::make_rng, StdRng::seed_from_u64)),
            breakers: Mutex::new(Breakers::new(config.breaker_pause)),
            refuse_existing: Mutex::new(config.refuse_existing.clone()),
            config,
            store,
            cloud,
            runtime,
            flights: Mutex::default(),
            queue: Mutex::default(),
            experience: Mutex::default(),
            counters: Mutex::default(),
            complaints: Mutex::default(),
            draining: AtomicBool::new(false),
            latency: Histogram::default(),
        })
    }

    /// Has a device registered and waits for it, at most for `patience`. A device
    /// that is being registered already is not registered twice: the caller joins.
    pub async fn register(self: &Arc<Self>, wanted: JournalEntry, patience: Duration) -> Outcome {
        let (device, product_key) = (wanted.device.clone(), wanted.product_key.clone());
        let mut landing = match self.take_off(wanted, false) {
            Ok(landing) => landing,
            Err(outcome) => return outcome,
        };
        // When the crowd is too large for its turn to come in time, a device is
        // not kept waiting: its radio costs it more than asking again.
        let turn = self.expected_turn(&product_key);
        let wait = if turn > patience { Duration::ZERO } else { patience };
        match tokio::time::timeout(wait, landing.wait_for(Option::is_some)).await {
            Ok(Ok(outcome)) => outcome.clone().unwrap_or(Outcome::TimedOut),
            // The flight was dropped with its runtime: the server is going down.
            Ok(Err(_)) => Outcome::Later(DRAIN_PAUSE),
            Err(_) if self.is_called(&device) && !wait.is_zero() => Outcome::TimedOut,
            Err(_) => Outcome::Later(self.spread(self.expected_turn(&product_key))),
        }
    }

    /// Takes up what a crash has left in the journal. Answers with how many devices.
    pub async fn recover(self: &Arc<Self>) -> Result<usize, StoreError> {
        let (batches, entries) = (self.store.open_batches().await?, self.store.open_journal_entries().await?);
        let count = entries.len();
        let mut parts: HashMap<BatchId, Vec<Flight>> = HashMap::new();
        for open in entries {
            let entry = open.entry;
            tracing::info!(device = %entry.device, name = entry.device_name, "taking up a registration from the journal");
            let apply_id =
                batches.iter().find(|batch| Some(batch.id) == open.batch).and_then(|batch| batch.apply_id);
            match open.batch.filter(|_| apply_id.is_some()) {
                Some(batch) if self.announce(&entry).is_some() => {
                    parts.entry(batch).or_default().push(Flight::new(entry, true));
                }
                Some(_) => {}
                // A full sky is no loss: the entry stays in the journal, and the
                // device's own request takes it up.
                None => drop(self.take_off(entry, true)),
            }
        }
        for batch in batches {
            let flights = parts.remove(&batch.id).unwrap_or_default();
            let registrar = self.clone();
            self.runtime.spawn(async move {
                if !flights.is_empty() {
                    registrar.resume_batch(batch, flights).await;
                } else if let Err(error) = registrar.store.close_batch(batch.id).await {
                    tracing::warn!(%error, "a batch could not be closed in the journal");
                }
            });
        }
        Ok(count)
    }

    /// Takes no more flights on, sends away who waits for a call, and waits for those
    /// in the air, at most until the deadline. What is left then is in the journal, and
    /// who waits for it is sent away as well. Answers with how many were left.
    pub async fn drain(&self, deadline: Duration) -> usize {
        self.draining.store(true, Ordering::Relaxed);
        let waiting = lock(&self.queue).clear(None);
        for flight in waiting {
            self.land(&flight.entry.device, Outcome::Later(DRAIN_PAUSE));
        }
        let landings: Vec<Landing> =
            lock(&self.flights).values().map(|flight| flight.landing.subscribe()).collect();
        let all = async {
            for mut landing in landings {
                let _ = landing.wait_for(Option::is_some).await;
            }
        };
        let _ = tokio::time::timeout(deadline, all).await;
        let left: Vec<DeviceId> = lock(&self.flights).keys().cloned().collect();
        for device in &left {
            self.land(device, Outcome::Later(DRAIN_PAUSE));
        }
        left.len()
    }

    /// Registrations waiting or in progress.
    pub fn flights(&self) -> usize {
        lock(&self.flights).len()
    }

    /// Of them, those that wait for a call.
    pub fn waiting(&self) -> usize {
        lock(&self.queue).len()
    }

    /// Batches that gather or are in the air.
    pub fn batches(&self) -> usize {
        lock(&self.queue).batches()
    }

    /// Products, and accounts, for which no call is made until a pause is over.
    pub fn open_breakers(&self) -> usize {
        lock(&self.breakers).count()
    }

    /// From the wish to have a device registered to its certificate on the disk.
    pub fn latency(&self) -> Distribution {
        self.latency.read()
    }

    /// Whether it takes no more flights on.
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// What happened so far.
    pub fn counters(&self) -> Counters {
        *lock(&self.counters)
    }

    /// From now on, names that exist and are not claimed are left alone in these
    /// enrollments, and in no others.
    pub fn set_refuse_existing(&self, enrollments: HashSet<String>) {
        *lock(&self.refuse_existing) = enrollments;
    }

    fn refuses_existing(&self, enrollment: &str) -> bool {
        lock(&self.refuse_existing).contains(enrollment)
    }

    /// Starts a flight, or joins the one that is in the air. `asked` when the journal
    /// has it from before.
    fn take_off(self: &Arc<Self>, wanted: JournalEntry, asked: bool) -> Result<Landing, Outcome> {
        if let Some(flight) = lock(&self.flights).get(&wanted.device) {
            return Ok(flight.landing.subscribe());
        }
        if self.draining.load(Ordering::Relaxed) {
            return Err(Outcome::Later(DRAIN_PAUSE));
        }
        if self.flights() >= self.config.max_flights {
            return Err(Outcome::Later(self.spread(self.expected_turn(&wanted.product_key))));
        }
        if let Err(reason) = lock(&self.breakers).admit(&wanted.product_key, Instant::now()) {
            return Err(Outcome::Operator(reason));
        }
        let Some(landing) = self.announce(&wanted) else {
            // Another thread was faster.
            return lock(&self.flights)
                .get(&wanted.device)
                .map(|flight| flight.landing.subscribe())
                .ok_or(Outcome::Later(self.config.retry_pause));
        };
        self.enqueue(Flight::new(wanted, asked));
        Ok(landing)
    }

    /// Makes a flight known, unless it is.
    fn announce(&self, wanted: &JournalEntry) -> Option<Landing> {
        let mut flights = lock(&self.flights);
        if flights.contains_key(&wanted.device) {
            return None;
        }
        let (announce, landing) = watch::channel(None);
        flights.insert(
            wanted.device.clone(),
            Announced { landing: announce, since: Instant::now(), called: false },
        );
        Some(landing)
    }

    /// Puts a flight into the queue, and sees to it that somebody takes it out.
    fn enqueue(self: &Arc<Self>, flight: Flight) {
        let product_key = flight.entry.product_key.clone();
        if self.draining.load(Ordering::Relaxed) {
            return self.land(&flight.entry.device, Outcome::Later(DRAIN_PAUSE));
        }
        if let Some(reason) = lock(&self.breakers).reason(&product_key, Instant::now()) {
            return self.land(&flight.entry.device, Outcome::Operator(reason));
        }
        if lock(&self.queue).push(flight, self.config.max_calls.max(1)) {
            self.runtime.spawn(self.clone().pull());
        }
        self.consider_batch(&product_key);
    }

    /// Takes flights out of the queue, one in each turn, and flies them.
    async fn pull(self: Arc<Self>) {
        loop {
            self.paces.of(Action::RegisterDevice).wait().await;
            let Some(flight) = lock(&self.queue).pull() else { return };
            self.fly(flight).await;
        }
    }

    /// One step of a flight. What is to be tried again comes back after a pause, which
    /// keeps nobody else waiting.
    async fn fly(self: &Arc<Self>, mut flight: Flight) {
        if let Some(announced) = lock(&self.flights).get_mut(&flight.entry.device) {
            announced.called = true;
        }
        match self.step(&mut flight).await {
            Next::Land(outcome) => self.land(&flight.entry.device, outcome),
            Next::Again => {
                self.count(|counters| counters.retries += 1);
                let (registrar, pause) = (self.clone(), self.pause_of(&flight));
                self.runtime.spawn(async move {
                    tokio::time::sleep(pause).await;
                    registrar.enqueue(flight);
                });
            }
        }
    }

    /// Ends a flight.
    fn land(&self, device: &DeviceId, outcome: Outcome) {
        if let Some(flight) = lock(&self.flights).remove(device) {
            if matches!(outcome, Outcome::Registered(_)) {
                self.latency.observe(flight.since.elapsed());
            }
            flight.landing.send_replace(Some(outcome));
        }
    }

    fn is_called(&self, device: &DeviceId) -> bool {
        lock(&self.flights).get(device).is_some_and(|flight| flight.called)
    }

    /// Has a batch gather, if the line of a product is so long that its end would wait
    /// for more than `batch_after`.
    fn consider_batch(self: &Arc<Self>, product_key: &str) {
        let Config { max_batches, batch_after, gather, .. } = self.config;
        if self.experience(product_key).not_before.is_some_and(|at| Instant::now() < at) {
            return;
        }
        let singly = self.singly(batch_after).max(MIN_BATCH);
        if !lock(&self.queue).begin_batch(product_key, singly, max_batches) {
            return;
        }
        let (registrar, product_key) = (self.clone(), product_key.to_owned());
        self.runtime.spawn(async move {
            tokio::time::sleep(gather).await;
            // Those whose own turn comes before the batch would be done keep it.
            let singly = registrar.singly(registrar.experience(&product_key).takes);
            let flights = lock(&registrar.queue).take_batch(&product_key, singly, MAX_BATCH);
            let begun = Instant::now();
            if !flights.is_empty() {
                registrar.count(|counters| counters.batches += 1);
                registrar.fly_batch(&product_key, flights).await;
                registrar.learn(&product_key, begun.elapsed());
            }
            lock(&registrar.queue).end_batch(&product_key);
            registrar.consider_batch(&product_key);
        });
    }

    /// How many of one product's flights single calls serve in this time, while all
    /// products take turns.
    fn singly(&self, time: Duration) -> usize {
        self.paces.of(Action::RegisterDevice).calls_in(time) / lock(&self.queue).products().max(1)
    }

    fn experience(&self, product_key: &str) -> Experience {
        let unknown = Experience { takes: self.config.batch_after, not_before: None };
        lock(&self.experience).get(product_key).copied().unwrap_or(unknown)
    }

    fn learn(&self, product_key: &str, took: Duration) {
        let takes = (self.experience(product_key).takes + took) / 2;
        let mut known = lock(&self.experience);
        let entry = known.entry(product_key.to_owned()).or_insert(Experience { takes, not_before: None });
        entry.takes = takes;
    }

    /// Makes no batch of a product for a while.
    fn batches_failed(&self, product_key: &str) {
        let not_before = Some(Instant::now() + self.config.breaker_pause);
        let unknown = self.experience(product_key);
        lock(&self.experience).entry(product_key.to_owned()).or_insert(unknown).not_before = not_before;
    }

    /// When a flight of this product that takes off now will land: by a single call in
    /// its turn, or by a batch, whichever comes first.
    fn expected_turn(&self, product_key: &str) -> Duration {
        let (backlog, products, batches) = {
            let queue = lock(&self.queue);
            (queue.backlog(product_key), queue.products().max(1), queue.batches())
        };
        let singly = self.paces.of(Action::RegisterDevice).duration_of(backlog * products);
        let experience = self.experience(product_key);
        let may_gather = self.config.max_batches > 0
            && singly > self.config.batch_after
            && experience.not_before.is_none_or(|at| Instant::now() >= at);
        let in_a_batch = self.config.gather + experience.takes;
        if batches > 0 || may_gather { singly.min(in_a_batch) } else { singly }
    }

    /// Stops calling; says so loudly, once a pause. Who waits is told.
    fn break_circuit(&self, product_key: &str, error: &ApiError) {
        let (scope, reason) = (flight::scope(product_key, error), error.to_string());
        let account = scope == breaker::Scope::Account;
        let (pause, news) = lock(&self.breakers).refused(scope, &reason, Instant::now());
        if !news {
            return;
        }
        let (pause, product_key) = (pause.as_secs(), (!account).then_some(product_key));
        tracing::error!(
            product_key,
            reason,
            "IoT Platform refuses; no calls for {pause} s: check credentials, permissions, quota and product"
        );
        let waiting = lock(&self.queue).clear(product_key);
        for flight in waiting {
            self.land(&flight.entry.device, Outcome::Operator(reason.clone()));
        }
    }

    /// A call for a product was taken.
    fn worked(&self, product_key: &str) {
        lock(&self.breakers).worked(product_key);
    }

    /// A call failed that is made again. An outage fails many a second, which say the
    /// same: one a second is told, and how many were not.
    fn failed_for_now(&self, what: &dyn std::fmt::Display, error: &ApiError) {
        let mut complaints = lock(&self.complaints);
        if complaints.at.is_some_and(|at| at.elapsed() < Duration::from_secs(1)) {
            complaints.untold += 1;
            tracing::debug!(%what, %error, "a call to IoT Platform failed; trying again");
            return;
        }
        let untold = std::mem::take(&mut complaints.untold);
        complaints.at = Some(Instant::now());
        tracing::warn!(%what, %error, untold, "a call to IoT Platform failed; trying again");
    }

    /// The cloud says that an action is called too often.
    fn throttled(&self, action: Action, error: &ApiError) {
        self.paces.of(action).throttled();
        self.count(|counters| counters.throttled += 1);
        tracing::warn!(action = action.name(), %error, "IoT Platform throttles; calling less often");
    }

    fn count(&self, change: impl FnOnce(&mut Counters)) {
        change(&mut lock(&self.counters));
    }

    /// When to come back, spread over half as long again, so that a crowd does not
    /// return all at once.
    fn spread(&self, turn: Duration) -> Duration {
        turn.mul_f64(self.jitter(1.0..1.5)) + Duration::from_secs(1)
    }

    fn jitter(&self, range: Range<f64>) -> f64 {
        lock(&self.random).random_range(range)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing panics while one of these is held.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
