//! Registers devices at IoT Platform: each of them once, however often it is
//! asked for and whatever dies in between. A bounded number of flights, one a
//! device; an even pace; retries with jitter; a journal entry on the disk before
//! the call, so that a crash or a lost answer leads to the same call again.
//! How single calls are answered is `iot_platform`'s; who may ask is `provision`'s.

#[cfg(test)]
pub(crate) mod fake_cloud;
mod flight;
mod rate;
#[cfg(test)]
mod tests;

use std::{
    collections::HashMap,
    ops::Range,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use rand::{RngExt, SeedableRng, rngs::StdRng};
use tokio::{
    runtime::Handle,
    sync::{Semaphore, watch},
    time::Instant,
};

use crate::{
    device::{Certificate, DeviceId},
    iot_platform::IotPlatform,
    store::{JournalEntry, Store, StoreError},
};
use rate::Pace;

/// Limits of a [`Registrar`].
#[derive(Debug, Clone)]
pub struct Config {
    /// `RegisterDevice` calls a second; the account's limit is 30.
    pub qps: f64,
    /// Most registrations waiting or in progress; beyond, devices are told to
    /// come back.
    pub max_flights: usize,
    /// Most calls in progress at once.
    pub max_calls: usize,
    /// Most calls for one device in one flight.
    pub max_attempts: u32,
    /// Pause after the first failed call; doubled each time, with jitter.
    pub retry_pause: Duration,
    /// Longest such pause.
    pub max_retry_pause: Duration,
    /// How long no call is made for a product after the cloud has refused in a
    /// way that only the operator can mend.
    pub breaker_pause: Duration,
    /// Where jitter comes from; the system's randomness when `None`. Given in
    /// simulations, which are to be repeatable.
    pub seed: Option<u64>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            qps: 25.0,
            max_flights: 20_000,
            max_calls: 32,
            max_attempts: 8,
            retry_pause: Duration::from_millis(500),
            max_retry_pause: Duration::from_secs(30),
            breaker_pause: Duration::from_secs(30),
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
}

/// A flight's result, for all who wait for it.
type Landing = watch::Receiver<Option<Outcome>>;

/// Registers devices at IoT Platform.
pub struct Registrar {
    config: Config,
    store: Arc<dyn Store>,
    cloud: Arc<dyn IotPlatform>,
    runtime: Handle,
    pace: Pace,
    calls: Semaphore,
    flights: Mutex<HashMap<DeviceId, Landing>>,
    /// Until when no call is made for a product, and why.
    breakers: Mutex<HashMap<String, (Instant, String)>>,
    counters: Mutex<Counters>,
    random: Mutex<StdRng>,
    draining: AtomicBool,
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
            pace: Pace::new(config.qps),
            calls: Semaphore::new(config.max_calls.max(1)),
            random: Mutex::new(config.seed.map_or_else(rand::make_rng, StdRng::seed_from_u64)),
            config,
            store,
            cloud,
            runtime,
            flights: Mutex::default(),
            breakers: Mutex::default(),
            counters: Mutex::default(),
            draining: AtomicBool::new(false),
        })
    }

    /// Has a device registered and waits for it, at most for `patience`. A device
    /// that is being registered already is not registered twice: the caller joins.
    pub async fn register(self: &Arc<Self>, wanted: JournalEntry, patience: Duration) -> Outcome {
        let mut landing = match self.take_off(wanted, false) {
            Ok(landing) => landing,
            Err(outcome) => return outcome,
        };
        // When the crowd is too large for its turn to come in time, a device is
        // not kept waiting: its radio costs it more than asking again.
        let turn = self.expected_turn();
        let wait = if turn > patience { Duration::ZERO } else { patience };
        match tokio::time::timeout(wait, landing.wait_for(Option::is_some)).await {
            Ok(Ok(outcome)) => outcome.clone().unwrap_or(Outcome::TimedOut),
            // The flight was dropped with its runtime: the server is going down.
            Ok(Err(_)) => Outcome::Later(Duration::from_secs(5)),
            Err(_) if wait.is_zero() => Outcome::Later(self.spread(turn)),
            Err(_) => Outcome::TimedOut,
        }
    }

    /// Takes up what a crash has left in the journal. Answers with how many.
    pub async fn recover(self: &Arc<Self>) -> Result<usize, StoreError> {
        let entries = self.store.open_journal_entries().await?;
        let count = entries.len();
        for entry in entries {
            tracing::info!(device = %entry.device, name = entry.device_name, "taking up a registration from the journal");
            // A full sky is no loss: the entry stays in the journal, and the
            // device's own request takes it up.
            let _ = self.take_off(entry, true);
        }
        Ok(count)
    }

    /// Takes no more flights on and waits for those in the air, at most until
    /// the deadline. What is left is in the journal.
    pub async fn drain(&self, deadline: Duration) -> usize {
        self.draining.store(true, Ordering::Relaxed);
        let landings: Vec<Landing> = lock(&self.flights).values().cloned().collect();
        let all = async {
            for mut landing in landings {
                let _ = landing.wait_for(Option::is_some).await;
            }
        };
        let _ = tokio::time::timeout(deadline, all).await;
        lock(&self.flights).len()
    }

    /// Registrations waiting or in progress.
    pub fn flights(&self) -> usize {
        lock(&self.flights).len()
    }

    /// What happened so far.
    pub fn counters(&self) -> Counters {
        *lock(&self.counters)
    }

    /// Starts a flight, or joins the one that is in the air.
    fn take_off(self: &Arc<Self>, wanted: JournalEntry, journalled: bool) -> Result<Landing, Outcome> {
        let mut flights = lock(&self.flights);
        if let Some(landing) = flights.get(&wanted.device) {
            return Ok(landing.clone());
        }
        if self.draining.load(Ordering::Relaxed) {
            return Err(Outcome::Later(Duration::from_secs(10)));
        }
        if let Some(reason) = self.broken(&wanted.product_key) {
            return Err(Outcome::Operator(reason));
        }
        if flights.len() >= self.config.max_flights {
            return Err(Outcome::Later(self.spread(self.pace.duration_of(flights.len()))));
        }
        let (announce, landing) = watch::channel(None);
        flights.insert(wanted.device.clone(), landing.clone());
        drop(flights);
        let registrar = self.clone();
        self.runtime.spawn(async move {
            let device = wanted.device.clone();
            let outcome = registrar.fly(wanted, journalled).await;
            lock(&registrar.flights).remove(&device);
            announce.send_replace(Some(outcome));
        });
        Ok(landing)
    }

    fn expected_turn(&self) -> Duration {
        self.pace.duration_of(self.flights())
    }

    fn broken(&self, product_key: &str) -> Option<String> {
        let breakers = lock(&self.breakers);
        breakers
            .get(product_key)
            .filter(|(until, _)| *until > Instant::now())
            .map(|(_, reason)| reason.clone())
    }

    /// Stops calling for a product; says so loudly, once a pause.
    fn break_circuit(&self, product_key: &str, reason: &str) {
        let until = Instant::now() + self.config.breaker_pause;
        let was_broken = self.broken(product_key).is_some();
        lock(&self.breakers).insert(product_key.to_owned(), (until, reason.to_owned()));
        if !was_broken {
            let pause = self.config.breaker_pause.as_secs();
            tracing::error!(
                product_key,
                reason,
                "IoT Platform refuses; no calls for this product for {pause} s: check credentials, permissions, quota and product"
            );
        }
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
