//! Registers devices at IoT Platform. Each device is registered once, even if many requests ask for
//! it or the process crashes at any time. The registrar keeps one queue per product and makes single
//! calls at an even pace. If single calls would take too long, it makes batches. Failed calls are
//! retried with jitter. The device's journal entry is on disk before its first call, so that the
//! same call is made again after a crash or a lost answer. The module `iot_platform` makes the
//! calls; `provision` decides which devices may be registered.

mod batch;
mod breaker;
mod crowd;
mod lines;
mod orders;
mod ownership;
mod pace;
mod plan;
mod queue;
mod registration;
mod sweep;
mod targets;

/// Returns the error for a call that an open breaker prevents. `reason` is the reason why it is open.
fn is_stopped(reason: String) -> ApiError {
    ApiError { class: ErrorClass::Operator, code: STOPPED.into(), message: reason }
}

#[cfg(test)]
mod tests;

use std::{
    collections::{HashMap, HashSet},
    ops::Range,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use futures_util::future::join_all;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use tokio::{
    runtime::Handle,
    sync::{Semaphore, SemaphorePermit, watch},
    time::Instant,
};

use crate::{
    device::{Certificate, DeviceId},
    guards::Guards,
    histogram::{Distribution, Histogram},
    iot_platform::{Action, ApiError, ErrorClass, IotPlatform, QPS, SWEEP_PAUSE},
    log_limit::LogLimit,
    store::{
        JournalEntry, Store, StoreError,
        claim::{Owner, OwnerId},
    },
    target,
};
use breaker::{Breakers, Scope};
use crowd::BATCHES_AHEAD;
use lines::{Kind, Lines, limited};
use pace::Paces;
use plan::Experience;
use queue::Queue;
use registration::{Next, Registration};
pub use targets::{Rights, Target, Targets};

/// Pause after which a device retries when the registrar is shutting down.
const DRAIN_PAUSE: Duration = Duration::from_secs(10);
/// Error code of a call that was not made because its breaker is open.
const STOPPED: &str = "Stopped";
/// Maximum number of registrations that are taken from the queue although it is not yet their turn
/// to make a call.
const AHEAD: usize = 4;
/// Time after which a call gives up waiting for a store that takes no writes.
const TURN_DEADLINE: Duration = Duration::from_secs(90);

/// Maximum number of failed calls per second that are logged as warnings, with one line each.
const MAX_FAILURE_LINES: u32 = 1;

/// Limits of a [`Registrar`].
#[derive(Debug, Clone)]
pub struct Config {
    /// Maximum rate of `RegisterDevice` calls, in calls per second; the account's limit is 30. Each
    /// other action uses the same fraction of its own limit.
    pub qps: f64,
    /// Maximum rate of `RegisterDevice` calls by all processes of the account together, in calls
    /// per second; at least `qps`.
    pub shared_qps: f64,
    /// Maximum number of registrations that wait or are in progress; further devices are asked
    /// to retry later.
    pub max_registrations: usize,
    /// Maximum number of single calls in progress at once.
    pub max_calls: usize,
    /// Maximum number of calls for one registration.
    pub max_attempts: u32,
    /// Pause after the first failed call of a registration. The pause doubles with each further
    /// failure, and jitter shortens it.
    pub retry_pause: Duration,
    /// Upper limit of the pause between two calls of a registration.
    pub max_retry_pause: Duration,
    /// Time for which no calls are made after the cloud has refused a call for a reason that only
    /// the operator can remove. The time doubles with each further refusal.
    pub breaker_pause: Duration,
    /// Limit of the time that the single calls alone would take. Above this limit, batches are made
    /// as well.
    pub batch_after: Duration,
    /// Time for which a product gathers devices before a batch takes them.
    pub gather: Duration,
    /// Maximum number of batches of one product at once; 0 disables batches.
    pub max_batches: usize,
    /// Maximum time for one step of a batch. If a step takes longer, the devices are registered one
    /// by one.
    pub batch_deadline: Duration,
    /// Enrollments in which a device is refused if its name already exists at IoT Platform and
    /// the journal does not show that this server registered it.
    pub refuse_existing: HashSet<String>,
    /// Guards of the enrollments that give out first certificates only at certain times.
    pub guards: HashMap<String, Guards>,
    /// Name of the target whose cloud is called. Registrations and devices of other targets are left
    /// to other registrars.
    pub target: String,
    /// Set if log lines name the target, because there are several.
    pub names_target: bool,
    /// Pause between two passes over the new devices, which a sweep looks up at IoT Platform;
    /// `None` disables sweeps.
    pub sweep_pause: Option<Duration>,
    /// Set if the orders of operators are carried out: devices are disabled, enabled and deleted at
    /// IoT Platform. Moved devices are registered in any case.
    pub manages: bool,
    /// Seed of the jitter. `None` takes a seed from the operating system. Simulations set a seed,
    /// so that they can be repeated.
    pub seed: Option<u64>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            qps: QPS,
            shared_qps: QPS,
            max_registrations: 20_000,
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
            guards: HashMap::new(),
            target: target::DEFAULT.to_owned(),
            names_target: false,
            sweep_pause: Some(SWEEP_PAUSE),
            manages: false,
            seed: None,
        }
    }
}

/// Result of a registration for a waiting request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The device is registered and its certificate stored.
    Registered(Certificate),
    /// The registration of this device is refused; the reason is in its row.
    Refused(String),
    /// Another device in the table has the same name, as the message explains. Only the operator
    /// can change that.
    SharedName(String),
    /// The row has changed. It now asks for a different registration, or for none.
    Changed,
    /// Other devices have taken all places of the device's enrollment.
    NoPlace,
    /// IoT Platform refuses all devices of the product, or all calls, until the operator acts.
    Operator(String),
    /// The device has an unfinished registration at this other target. Only that registration can
    /// continue, and [`Targets`] continues it if the target is configured.
    Elsewhere(String),
    /// The device's target is not configured, as the message explains. The device is registered
    /// nowhere until the operator acts.
    NoTarget(String),
    /// The device is asked to retry after this time. Its registration may continue in the
    /// meantime.
    Later(Duration),
    /// The cloud did not answer in time; the registration continues.
    TimedOut,
}

/// Counters for metrics and tests.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Devices registered.
    pub registered: u64,
    /// Devices that already existed and whose certificate was recovered by a query.
    pub recovered: u64,
    /// Failed calls that were retried.
    pub retries: u64,
    /// Registrations that ended without a certificate because of a refusal, repeated failures or
    /// a store error.
    pub failed: u64,
    /// Batches started.
    pub batches: u64,
    /// Calls that the cloud throttled.
    pub throttled: u64,
}

/// Receives the outcome of a registration. Each waiting request has a receiver of this type.
type Waiter = watch::Receiver<Option<Outcome>>;

/// The part of a registration in progress that waiting requests use.
struct Announced {
    outcome: watch::Sender<Option<Outcome>>,
    since: Instant,
    /// Set once the cloud has been called for this device.
    called: bool,
}

/// Registers devices at IoT Platform.
pub struct Registrar {
    config: Config,
    owner: Owner,
    store: Arc<dyn Store>,
    cloud: Arc<dyn IotPlatform>,
    runtime: Handle,
    paces: Paces,
    /// Limits the registrations that are taken from the queue although it is not yet their turn to
    /// make a call. They are taken early, so that their claims are already written when their turn
    /// comes.
    ahead: Semaphore,
    /// Limits the batches that are made although it is not yet their turn to make a call.
    batches_ahead: Arc<Semaphore>,
    /// A function that needs both this lock and the lock of `queue` takes this lock first.
    registrations: Mutex<HashMap<DeviceId, Announced>>,
    queue: Mutex<Queue>,
    breakers: Mutex<Breakers>,
    /// A function that needs both this lock and the lock of `queue` takes this lock first.
    experience: Mutex<Experience>,
    refuse_existing: ArcSwap<HashSet<String>>,
    guards: ArcSwap<HashMap<String, Guards>>,
    counters: Mutex<Counters>,
    failure_lines: Mutex<LogLimit>,
    lines: Mutex<Lines>,
    random: Mutex<StdRng>,
    draining: AtomicBool,
    /// Set while the store may list this process as an owner.
    beats: AtomicBool,
    /// Number of leases that this process has. While it has a lease, the process stays an owner.
    leases: AtomicUsize,
    /// Set once the offset of the cloud's clock is stored in the claims that were made before the
    /// offset was known.
    has_noted_offset: AtomicBool,
    /// Set if this process resumes the registrations that other processes have left.
    recovers: AtomicBool,
    attempts: Mutex<orders::Attempts>,
    /// Set while a task of this process carries out orders.
    carries_out: watch::Sender<bool>,
    latency: Histogram,
    /// Clouds whose clock is preferred to that of this registrar's cloud.
    preferred_clocks: OnceLock<Vec<Arc<dyn IotPlatform>>>,
}

impl Registrar {
    /// Creates a registrar that spawns its tasks on `runtime`, and claims registrations as
    /// `owner`.
    pub fn new(
        config: Config,
        owner: Owner,
        store: Arc<dyn Store>,
        cloud: Arc<dyn IotPlatform>,
        runtime: Handle,
    ) -> Arc<Self> {
        let registrar = Arc::new(Self {
            paces: Paces::new(&cloud.account(), config.qps, config.shared_qps),
            ahead: Semaphore::new(AHEAD),
            batches_ahead: Arc::new(Semaphore::new(BATCHES_AHEAD)),
            owner,
            random: Mutex::new(config.seed.map_or_else(rand::make_rng, StdRng::seed_from_u64)),
            breakers: Mutex::new(Breakers::new(config.breaker_pause)),
            experience: Mutex::new(Experience::new(config.batch_after)),
            refuse_existing: ArcSwap::from_pointee(config.refuse_existing.clone()),
            guards: ArcSwap::from_pointee(config.guards.clone()),
            config,
            store,
            cloud,
            runtime,
            registrations: Mutex::default(),
            queue: Mutex::default(),
            counters: Mutex::default(),
            failure_lines: Mutex::new(LogLimit::new(MAX_FAILURE_LINES, "failed calls to IoT Platform")),
            lines: Mutex::default(),
            draining: AtomicBool::new(false),
            beats: AtomicBool::new(false),
            leases: AtomicUsize::new(0),
            has_noted_offset: AtomicBool::new(false),
            recovers: AtomicBool::new(false),
            attempts: Mutex::default(),
            carries_out: watch::Sender::new(false),
            latency: Histogram::default(),
            preferred_clocks: OnceLock::new(),
        });
        registrar.start_beating();
        registrar
    }

    /// Registers a device and waits for the outcome, but no longer than `patience`. Callers that
    /// ask for the same device share one registration.
    pub async fn register(self: &Arc<Self>, wanted: JournalEntry, patience: Duration) -> Outcome {
        let (device, product_key) = (wanted.device.clone(), wanted.product_key.clone());
        let mut waiter = match self.start(wanted) {
            Ok(waiter) => waiter,
            Err(outcome) => return outcome,
        };
        // If the device's turn would come after `patience`, the device is asked immediately to
        // retry later. A retry costs the device less than waiting for an answer.
        let turn = self.expected_turn(&product_key);
        let wait = if turn > patience { Duration::ZERO } else { patience };
        match tokio::time::timeout(wait, waiter.wait_for(Option::is_some)).await {
            Ok(Ok(outcome)) => outcome.clone().unwrap_or(Outcome::TimedOut),
            // The registration was dropped together with its runtime, so the server is shutting
            // down.
            Ok(Err(_)) => Outcome::Later(DRAIN_PAUSE),
            Err(_) if self.is_called(&device) && !wait.is_zero() => Outcome::TimedOut,
            Err(_) => Outcome::Later(self.spread(self.expected_turn(&product_key))),
        }
    }

    /// Returns the number of this process as the owner of its claims and leases.
    pub fn owner_id(&self) -> OwnerId {
        self.owner.id
    }

    /// Stops accepting registrations and carrying out orders, asks the devices in the queue to retry
    /// later, and waits up to `deadline` for the registrations and calls in progress. A registration
    /// that is still unfinished stays in the journal, and its device is asked to retry later. Returns
    /// the number of unfinished registrations.
    pub async fn drain(&self, deadline: Duration) -> usize {
        self.draining.store(true, Ordering::Relaxed);
        let waiting = lock(&self.queue).clear(None);
        let waiters: Vec<Waiter> =
            lock(&self.registrations).values().map(|registration| registration.outcome.subscribe()).collect();
        let all = async {
            join_all(
                waiting
                    .into_iter()
                    .map(|registration| self.let_go(registration, Outcome::Later(DRAIN_PAUSE))),
            )
            .await;
            for mut waiter in waiters {
                let _ = waiter.wait_for(Option::is_some).await;
            }
            self.orders_rest().await;
        };
        let _ = tokio::time::timeout(deadline, all).await;
        let left: Vec<DeviceId> = lock(&self.registrations).keys().cloned().collect();
        for device in &left {
            self.finish(device, Outcome::Later(DRAIN_PAUSE));
        }
        // Lets other processes take over the claims that this process still has.
        if let Err(error) = self.store.retire(self.owner.id).await {
            tracing::warn!(%error, "could not release the registrations in progress; others resume them in a while");
        }
        self.write_counts();
        left.len()
    }

    /// Returns the number of registrations that wait or are in progress.
    pub fn registrations(&self) -> usize {
        lock(&self.registrations).len()
    }

    /// Returns the number of registrations that wait for a call.
    pub fn waiting(&self) -> usize {
        lock(&self.queue).len()
    }

    /// Returns the number of batches in progress.
    pub fn batches(&self) -> usize {
        lock(&self.queue).batches()
    }

    /// Returns the number of open breakers. An open breaker stops the calls for one product, or of
    /// one action, until a pause is over.
    pub fn open_breakers(&self) -> usize {
        lock(&self.breakers).count()
    }

    /// Returns the distribution of the time from the request to the stored certificate.
    pub fn latency(&self) -> Distribution {
        self.latency.read()
    }

    /// Returns whether the registrar has stopped accepting registrations.
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// Returns the name of the target whose cloud is called.
    pub fn target(&self) -> &str {
        &self.config.target
    }

    /// Returns whether the orders of operators are carried out at the target.
    pub fn manages(&self) -> bool {
        self.config.manages
    }

    /// Returns the counters.
    pub fn counters(&self) -> Counters {
        *lock(&self.counters)
    }

    /// Replaces the set of enrollments that [`Config::refuse_existing`] describes.
    pub fn set_refuse_existing(&self, enrollments: HashSet<String>) {
        self.refuse_existing.store(Arc::new(enrollments));
    }

    /// Replaces the guards that [`Config::guards`] describes.
    pub fn set_guards(&self, guards: HashMap<String, Guards>) {
        self.guards.store(Arc::new(guards));
    }

    fn refuses_existing(&self, enrollment: &str) -> bool {
        self.refuse_existing.load().contains(enrollment)
    }

    /// Starts a registration of a device, or joins the registration in progress.
    fn start(self: &Arc<Self>, wanted: JournalEntry) -> Result<Waiter, Outcome> {
        if let Some(registration) = lock(&self.registrations).get(&wanted.device) {
            return Ok(registration.outcome.subscribe());
        }
        if self.draining.load(Ordering::Relaxed) {
            return Err(Outcome::Later(DRAIN_PAUSE));
        }
        if self.registrations() >= self.config.max_registrations {
            return Err(Outcome::Later(self.spread(self.expected_turn(&wanted.product_key))));
        }
        if let Err(reason) = lock(&self.breakers).admit(&wanted.product_key, &wanted.device, Instant::now()) {
            return Err(Outcome::Operator(reason));
        }
        let Some(waiter) = self.announce(&wanted) else {
            // Another thread has announced a registration of the same device in the meantime.
            return lock(&self.registrations)
                .get(&wanted.device)
                .map(|registration| registration.outcome.subscribe())
                .ok_or(Outcome::Later(self.config.retry_pause));
        };
        self.enqueue(Registration::new(wanted));
        Ok(waiter)
    }

    /// Adds a registration to `registrations`. Returns `None` if the device already has a
    /// registration in progress.
    fn announce(&self, wanted: &JournalEntry) -> Option<Waiter> {
        let mut registrations = lock(&self.registrations);
        if registrations.contains_key(&wanted.device) {
            return None;
        }
        self.beats.store(true, Ordering::Relaxed);
        let (announce, waiter) = watch::channel(None);
        registrations.insert(
            wanted.device.clone(),
            Announced { outcome: announce, since: Instant::now(), called: false },
        );
        Some(waiter)
    }

    /// Queues a registration. Also starts a task to run it, unless enough tasks are running
    /// already.
    fn enqueue(self: &Arc<Self>, registration: Registration) {
        let product_key = registration.entry.product_key.clone();
        if self.draining.load(Ordering::Relaxed) {
            return self.let_all_go(vec![registration], &Outcome::Later(DRAIN_PAUSE));
        }
        let reason = lock(&self.breakers).reason(&product_key, Instant::now());
        if let Some(reason) = reason {
            return self.let_all_go(vec![registration], &Outcome::Operator(reason));
        }
        if lock(&self.queue).push(registration, self.config.max_calls.max(1), Instant::now()) {
            self.runtime.spawn(self.clone().pull());
        }
        self.consider_batches();
    }

    /// Takes registrations from the queue and runs one step of each, until the queue is empty.
    async fn pull(self: Arc<Self>) {
        loop {
            // The semaphore is never closed.
            let Ok(ahead) = self.ahead.acquire().await else { return };
            let Some(registration) = lock(&self.queue).pull() else { return };
            self.run(registration, ahead).await;
        }
    }

    /// Waits for the next turn to call this action. All processes of the account share the turns.
    ///
    /// # Errors
    ///
    /// Returns an error of class [`ErrorClass::TryAgain`] if the store fails, or accepts no write
    /// within [`TURN_DEADLINE`].
    async fn turn(&self, action: Action) -> Result<(), ApiError> {
        let pace = self.paces.of(action);
        let _gate = pace.gate().await;
        tokio::time::sleep(pace.own_wait()).await;
        let deadline = Instant::now() + TURN_DEADLINE;
        loop {
            match self.store.take_turn(pace.name(), pace.turn()).await {
                Ok(None) => return Ok(()),
                Ok(Some(wait)) => tokio::time::sleep(wait).await,
                // An import may lock the table for a while, so the turn is requested again.
                Err(StoreError::Busy(_) | StoreError::Unknown(_)) if Instant::now() < deadline => {
                    tokio::time::sleep(self.pause(1)).await;
                }
                Err(error) => return Err(registration::error_of_store(&error)),
            }
        }
    }

    /// Admits a call of an action, unless its breaker is open.
    ///
    /// # Errors
    ///
    /// Returns the cloud's reason for the refusal that opened the breaker.
    fn admit(&self, action: Action) -> Result<(), ApiError> {
        let admitted = lock(&self.breakers).admit_action(action, Instant::now());
        admitted.map_err(is_stopped)
    }

    /// Runs one step of a registration. If the step must be repeated, another task waits for the
    /// pause and queues the registration again, so that other registrations are not delayed.
    async fn run(self: &Arc<Self>, mut registration: Registration, ahead: SemaphorePermit<'_>) {
        match self.step(&mut registration, ahead).await {
            Next::Done(outcome) => self.let_go(registration, outcome).await,
            Next::After(pause) => {
                self.count(|counters| counters.retries += 1);
                self.enqueue_after(registration, pause);
            }
            Next::Held(pause) => self.enqueue_after(registration, pause),
        }
    }

    /// Queues a registration after a pause.
    fn enqueue_after(self: &Arc<Self>, registration: Registration, pause: Duration) {
        let registrar = self.clone();
        self.runtime.spawn(async move {
            tokio::time::sleep(pause).await;
            registrar.enqueue(registration);
        });
    }

    /// Notes that the cloud is now being called for a device.
    fn note_called(&self, device: &DeviceId) {
        if let Some(announced) = lock(&self.registrations).get_mut(device) {
            announced.called = true;
        }
    }

    /// Ends a registration and gives its outcome to all waiting requests.
    fn finish(&self, device: &DeviceId, outcome: Outcome) {
        if let Some(registration) = lock(&self.registrations).remove(device) {
            if matches!(outcome, Outcome::Registered(_)) {
                self.latency.observe(registration.since.elapsed());
            }
            registration.outcome.send_replace(Some(outcome));
        }
    }

    fn is_called(&self, device: &DeviceId) -> bool {
        lock(&self.registrations).get(device).is_some_and(|registration| registration.called)
    }

    /// Opens the breaker of the product or of the action, and logs an error once for each pause.
    /// Ends the queued registrations that the breaker stops, with the cloud's reason.
    fn break_circuit(self: &Arc<Self>, product_key: &str, action: Action, error: &ApiError) {
        let (scope, reason) = (registration::scope(product_key, action, error), error.to_string());
        let is_product = scope == Scope::Product(product_key.to_owned());
        let (pause, news) = {
            let mut breakers = lock(&self.breakers);
            if is_product {
                // The refusal concerns only the product, which shows that the action itself works.
                breakers.admits(action);
            }
            breakers.refused(scope, &reason, Instant::now())
        };
        if !news {
            return;
        }
        let product_key = is_product.then_some(product_key);
        tracing::error!(
            at_target = self.shown_target(),
            product_key,
            action = action.name(),
            error = %reason,
            again_in_seconds = pause.as_secs(),
            "IoT Platform refuses; making no calls for now: check credentials, permissions, quota and product"
        );
        if is_product || action == Action::RegisterDevice {
            let waiting = lock(&self.queue).clear(product_key);
            self.let_all_go(waiting, &Outcome::Operator(reason));
        }
    }

    /// Notes that the cloud accepted a call for a product.
    fn worked(&self, product_key: &str, action: Action) {
        lock(&self.breakers).worked(product_key, action, Instant::now());
    }

    fn has_worked_since(&self, product_key: &str, since: Instant) -> bool {
        lock(&self.breakers).has_worked_since(product_key, since)
    }

    /// Returns the cloud's reason for each open breaker, and the product if the breaker concerns a
    /// single product.
    pub fn refusals(&self) -> Vec<(Option<String>, String)> {
        lock(&self.breakers).reasons()
    }

    /// Returns the cloud's reason why registrations of this product are stopped at present; `None`
    /// if they are not stopped.
    pub fn stopped(&self, product_key: &str) -> Option<String> {
        lock(&self.breakers).stopped(product_key)
    }

    /// Notes a device whose registration has ended with an unknown error while no other device of
    /// its product was registered. Returns whether the product has several such devices.
    fn suspect(&self, product_key: &str, device: &DeviceId) -> bool {
        lock(&self.breakers).suspect(product_key, device)
    }

    /// Returns the name of the target for a log line, if there are several targets.
    fn shown_target(&self) -> Option<&str> {
        self.config.names_target.then_some(&*self.config.target)
    }

    /// Returns whether the rate limit allows one more log line of a kind that thousands of devices
    /// could cause at the same time.
    fn may_log(&self) -> bool {
        lock(&self.failure_lines).admit(Instant::now().into_std())
    }

    /// Returns whether a line about a device or a batch may be written at its own level. Otherwise it
    /// is written at the level debug, and counted in a later line.
    fn admit_line(&self, kind: Kind) -> bool {
        lock(&self.lines).admit(kind, Instant::now())
    }

    /// Writes the lines that count the lines about single devices and batches, when they are due.
    fn write_counts(&self) {
        let is_idle = self.registrations() == 0;
        lock(&self.lines).write_counts(Instant::now(), is_idle);
    }

    /// Logs a failed call that will be retried. Warnings are rate-limited, because many calls fail
    /// for the same reason in an outage.
    fn failed_for_now(&self, device: Option<&DeviceId>, action: Option<Action>, error: &ApiError) {
        let (device, action) = (device.map(tracing::field::display), action.map(Action::name));
        limited!(self.may_log(), warn, at_target = self.shown_target(), device, action, %error, "a call to IoT Platform failed; trying again");
    }

    /// Notes that the cloud has throttled a call that was sent at the time `left`.
    fn throttled(&self, action: Action, left: Instant, error: &ApiError) {
        self.paces.of(action).throttled(left);
        self.count(|counters| counters.throttled += 1);
        limited!(self.may_log(), warn, at_target = self.shown_target(), action = action.name(), %error, "IoT Platform throttles; calling less often");
    }

    fn count(&self, change: impl FnOnce(&mut Counters)) {
        change(&mut lock(&self.counters));
    }

    /// Returns the pause before a device's retry: a random duration between 1 and 1.5 times `turn`,
    /// plus one second. The randomness prevents many devices from retrying at the same moment.
    fn spread(&self, turn: Duration) -> Duration {
        turn.mul_f64(self.jitter(1.0..1.5)) + Duration::from_secs(1)
    }

    fn jitter(&self, range: Range<f64>) -> f64 {
        lock(&self.random).random_range(range)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // No code panics while it holds one of these locks, so a poisoned lock cannot occur.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
