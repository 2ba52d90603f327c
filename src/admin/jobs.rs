//! Jobs: one action on many devices, which an operator has confirmed. A job runs in the background in
//! small steps, so that it delays no device and survives a closed browser. It can be stopped. It does
//! not survive the server; the audit log says which devices it had changed by then. This module does
//! not know pages.

#[cfg(all(test, feature = "simulation"))]
mod tests;

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::future::join_all;
use tokio::{
    sync::{Semaphore, watch},
    task::JoinSet,
    time::Instant,
};

use crate::{
    device::DeviceId,
    policy::{self, Verdict},
    psk::Reissue,
    registrar::{Outcome, Registrar},
    store::{
        Actor, CloudState, DeviceState, JournalEntry, StoreError, Table, UnixSeconds,
        filter::{Cursor, End, Filter, Listed},
        unix_now,
    },
};

/// Maximum number of jobs that run at once: a registration that takes an hour must not hold up a reset.
const MOST_RUNNING: usize = 2;
/// Maximum number of jobs that are remembered; the oldest that has ended is forgotten first.
const REMEMBERED: usize = 20;
/// Number of devices of a step. The store commits their changes together.
const STEP: usize = 100;
/// Maximum time of one search for the devices of a step.
const SEARCH: Duration = Duration::from_millis(500);
/// Bounds of the pause between two steps. Within them, it is as long as the step, so that devices have
/// half of the store's time at least.
const MIN_PAUSE: Duration = Duration::from_millis(10);
const MAX_PAUSE: Duration = Duration::from_secs(1);
/// Time for which a step is tried again while the store is not available.
const PATIENCE: Duration = Duration::from_secs(60);
/// Pause before a step is tried again.
const RETRY: Duration = Duration::from_millis(500);
/// Maximum number of registrations in progress. They share a queue with devices that have just powered
/// on, which wait behind them for a second or two.
const IN_PROGRESS: usize = 40;
/// Maximum wait for one registration.
const REGISTRATION: Duration = Duration::from_secs(600);
/// Maximum number of times that a registration is tried again, and the longest pause before.
const MAX_LATER: u32 = 10;
const MAX_LATER_PAUSE: Duration = Duration::from_secs(60);
/// Maximum number of different failures that are kept. Further ones are counted only.
const REASONS: usize = 20;

/// Action of a job on each of its devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    Disable,
    Enable,
    Reset,
    Register,
    Delete,
}

impl Action {
    pub(super) const ALL: [Self; 5] =
        [Self::Reset, Self::Register, Self::Disable, Self::Enable, Self::Delete];

    /// Returns the name of the action in forms.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Disable => "disable",
            Self::Enable => "enable",
            Self::Reset => "reset",
            Self::Register => "register",
            Self::Delete => "delete",
        }
    }

    /// Returns the action of this name.
    pub(super) fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|action| action.name() == name)
    }

    /// Returns whether the action changes this device.
    pub(super) fn changes(self, device: &Listed) -> bool {
        match self {
            Self::Disable => device.state == DeviceState::Enabled,
            Self::Enable => device.state == DeviceState::Disabled,
            Self::Reset => {
                device.first_issued.is_some()
                    || device.refusal.is_some()
                    || device.cloud_state == Some(CloudState::Deleted)
            }
            Self::Register => {
                !device.is_registered && device.refusal.is_none() && device.state == DeviceState::Enabled
            }
            Self::Delete => true,
        }
    }
}

/// Devices of a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Target {
    /// The devices that the filter admits while the job runs.
    Filter(Filter),
    /// These devices.
    List(Arc<[DeviceId]>),
}

/// A confirmed job.
#[derive(Debug, Clone)]
pub(super) struct Order {
    pub(super) action: Action,
    pub(super) target: Target,
    /// Number of devices that the operator has seen in the preview. The job takes no more of them.
    pub(super) expected: u64,
    pub(super) by: Actor,
}

/// How far a job has come.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Progress {
    /// Devices that were changed.
    pub(super) changed: u64,
    /// Devices that were as wanted already.
    pub(super) unchanged: u64,
    /// Devices that are not in the table any more.
    pub(super) absent: u64,
    /// Devices whose change failed.
    pub(super) failed: u64,
    /// Number of devices and the first device for each reason of a failure.
    pub(super) reasons: BTreeMap<String, (u64, DeviceId)>,
    /// Time at which the job has ended, and how.
    pub(super) end: Option<(UnixSeconds, How)>,
}

impl Progress {
    /// Returns the number of devices that the job has finished with.
    pub(super) fn done(&self) -> u64 {
        self.changed + self.unchanged + self.absent + self.failed
    }

    fn fail(&mut self, device: &DeviceId, reason: &str) {
        self.failed += 1;
        if let Some((devices, _)) = self.reasons.get_mut(reason) {
            *devices += 1;
        } else if self.reasons.len() < REASONS {
            self.reasons.insert(reason.to_owned(), (1, device.clone()));
        }
    }
}

/// Way in which a job has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum How {
    /// All devices are done.
    Complete,
    /// As many devices are done as the operator has confirmed, and there are more now.
    More,
    /// This operator has stopped it.
    Stopped(String),
    /// The server shuts down.
    ShuttingDown,
    /// The store failed.
    Failed(String),
}

/// A job that runs or has ended.
pub(super) struct Job {
    pub(super) id: String,
    pub(super) order: Order,
    pub(super) began: UnixSeconds,
    progress: Mutex<Progress>,
    /// Name of the operator who has stopped the job.
    stop: watch::Sender<Option<String>>,
}

impl Job {
    pub(super) fn progress(&self) -> Progress {
        lock(&self.progress).clone()
    }

    /// Stops the job after the step that runs.
    pub(super) fn stop(&self, by: &str) {
        self.stop.send_if_modified(|stopped| {
            let is_first = stopped.is_none();
            stopped.get_or_insert_with(|| by.to_owned());
            is_first
        });
    }

    fn is_running(&self) -> bool {
        lock(&self.progress).end.is_none()
    }

    fn note(&self, change: impl FnOnce(&mut Progress)) {
        change(&mut lock(&self.progress));
    }
}

/// All jobs of this server.
pub(super) struct Jobs {
    /// Start time of the server.
    started: UnixSeconds,
    all: Mutex<(u64, VecDeque<Arc<Job>>)>,
}

/// Job that a link leads to.
pub(super) enum Known {
    /// The server has it.
    Job(Arc<Job>),
    /// It was begun before the server started.
    BeforeStart,
    /// There was none, or it was forgotten.
    Unknown,
}

/// Reason why a job was not begun: as many jobs run as may run at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Busy;

impl Jobs {
    pub(super) fn new(started: UnixSeconds) -> Self {
        Self { started, all: Mutex::default() }
    }

    /// Begins a job in a task of the current runtime.
    pub(super) fn begin(
        &self,
        order: Order,
        store: Arc<dyn Table>,
        registrar: Arc<Registrar>,
    ) -> Result<Arc<Job>, Busy> {
        let mut all = lock(&self.all);
        let (last, jobs) = &mut *all;
        if jobs.iter().filter(|job| job.is_running()).count() >= MOST_RUNNING {
            return Err(Busy);
        }
        *last += 1;
        let job = Arc::new(Job {
            id: format!("{}-{last}", self.started),
            order,
            began: unix_now(),
            progress: Mutex::default(),
            stop: watch::Sender::new(None),
        });
        if jobs.len() == REMEMBERED
            && let Some(oldest) = jobs.iter().position(|job| !job.is_running())
        {
            jobs.remove(oldest);
        }
        jobs.push_back(job.clone());
        let worker = Worker { job: job.clone(), store, registrar };
        tokio::spawn(worker.run());
        Ok(job)
    }

    /// Returns the job with this ID.
    pub(super) fn find(&self, id: &str) -> Known {
        if let Some(job) = lock(&self.all).1.iter().find(|job| job.id == id) {
            return Known::Job(job.clone());
        }
        let started = id.split_once('-').and_then(|(started, _)| started.parse::<UnixSeconds>().ok());
        match started {
            Some(started) if started != self.started => Known::BeforeStart,
            _ => Known::Unknown,
        }
    }

    /// Returns the jobs, newest first.
    pub(super) fn all(&self) -> Vec<Arc<Job>> {
        lock(&self.all).1.iter().rev().cloned().collect()
    }
}

/// A device of a step; without its row if it is not in the table.
type Candidate = (DeviceId, Option<Listed>);

/// Place that a job has reached.
enum Place {
    Filter(Cursor),
    List(usize),
}

struct Worker {
    job: Arc<Job>,
    store: Arc<dyn Table>,
    registrar: Arc<Registrar>,
}

impl Worker {
    async fn run(self) {
        let Order { action, expected, by, .. } = &self.job.order;
        tracing::info!(
            job = self.job.id,
            action = action.name(),
            devices = expected,
            user = by.name,
            "a job begins"
        );
        let how = match action {
            Action::Register => self.register_all().await,
            _ => self.change_all().await,
        };
        let how = how.unwrap_or_else(|error| How::Failed(error.to_string()));
        self.job.note(|progress| progress.end = Some((unix_now(), how.clone())));
        let Progress { changed, unchanged, failed, .. } = self.job.progress();
        tracing::info!(job = self.job.id, changed, unchanged, failed, end = ?how, "a job has ended");
    }

    /// Returns the reason why the job must not go on, if there is one.
    fn obstacle(&self) -> Option<How> {
        let stopped = self.job.stop.borrow().clone().map(How::Stopped);
        stopped.or_else(|| self.registrar.is_draining().then_some(How::ShuttingDown))
    }

    fn first(&self) -> Place {
        match &self.job.order.target {
            Target::Filter(_) => Place::Filter(Cursor::First),
            Target::List(_) => Place::List(0),
        }
    }

    /// Returns the devices of the next step, none at the end, and moves the place behind them.
    async fn next(&self, place: &mut Place) -> Result<Vec<Candidate>, StoreError> {
        match (&self.job.order.target, place) {
            (Target::List(ids), Place::List(at)) => {
                let mut step = Vec::new();
                for id in ids.iter().skip(*at).take(STEP) {
                    let row = self.store.device(id).await?;
                    step.push((id.clone(), row.map(|row| Listed::new(row.id.clone(), &row.seen(), false))));
                }
                *at += step.len();
                Ok(step)
            }
            (Target::Filter(filter), Place::Filter(cursor)) => loop {
                let (store, filter, from) = (self.store.clone(), filter.clone(), cursor.clone());
                let found =
                    tokio::task::spawn_blocking(move || store.find(&filter, &from, STEP, SEARCH)).await;
                let found = found.map_err(|error| StoreError::Failed(error.to_string()))??;
                let last = found.devices.last().map(|device| device.id.clone());
                let is_over = found.end == End::Complete;
                if let End::TimeUp(last) = found.end {
                    *cursor = Cursor::After(last);
                } else if let Some(last) = last {
                    *cursor = Cursor::After(last);
                }
                if !found.devices.is_empty() || is_over {
                    let with_row = |device: Listed| (device.id.clone(), Some(device));
                    return Ok(found.devices.into_iter().map(with_row).collect());
                }
            },
            // `first` makes the place that fits the target.
            _ => Ok(Vec::new()),
        }
    }

    /// Returns the devices of the next step, like [`next`](Self::next). Tries again while the store is
    /// not available.
    async fn next_patiently(&self, place: &mut Place) -> Result<Vec<Candidate>, StoreError> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.next(place).await {
                Err(StoreError::Busy(_)) if Instant::now() < deadline && self.obstacle().is_none() => {
                    tokio::time::sleep(RETRY).await;
                }
                answer => return answer,
            }
        }
    }

    /// Returns how many more devices the job may take.
    fn left(&self, taken: u64) -> usize {
        usize::try_from(self.job.order.expected.saturating_sub(taken)).unwrap_or(usize::MAX)
    }

    /// Counts the devices that need no change, and returns the others.
    fn sorted(&self, step: Vec<Candidate>) -> Vec<Listed> {
        let mut todo = Vec::with_capacity(step.len());
        self.job.note(|progress| {
            for (_, device) in step {
                match device {
                    None => progress.absent += 1,
                    Some(device) if self.job.order.action.changes(&device) => todo.push(device),
                    Some(_) => progress.unchanged += 1,
                }
            }
        });
        todo
    }

    async fn change_all(&self) -> Result<How, StoreError> {
        let (mut place, mut taken) = (self.first(), 0);
        loop {
            if let Some(obstacle) = self.obstacle() {
                return Ok(obstacle);
            }
            let begun = Instant::now();
            let mut step = self.next_patiently(&mut place).await?;
            if step.is_empty() {
                return Ok(How::Complete);
            }
            let left = self.left(taken);
            let is_more = step.len() > left;
            step.truncate(left);
            taken += step.len() as u64;
            self.change(self.sorted(step)).await?;
            if is_more {
                return Ok(How::More);
            }
            tokio::time::sleep(begun.elapsed().clamp(MIN_PAUSE, MAX_PAUSE)).await;
        }
    }

    /// Changes the devices of a step. Fails if the store is not available for a while.
    async fn change(&self, mut todo: Vec<Listed>) -> Result<(), StoreError> {
        let deadline = Instant::now() + PATIENCE;
        let Order { action, by, .. } = &self.job.order;
        while !todo.is_empty() {
            let outcomes = join_all(todo.iter().map(|device| match action {
                Action::Disable => self.store.set_state(&device.id, DeviceState::Disabled, by),
                Action::Enable => self.store.set_state(&device.id, DeviceState::Enabled, by),
                Action::Delete => self.store.delete(&device.id, by),
                Action::Reset | Action::Register => self.store.reset(&device.id, by),
            }))
            .await;
            let (mut again, mut last) = (Vec::new(), None);
            self.job.note(|progress| {
                for (device, outcome) in todo.into_iter().zip(outcomes) {
                    match outcome {
                        Ok(true) => progress.changed += 1,
                        Ok(false) => progress.absent += 1,
                        Err(error @ (StoreError::Busy(_) | StoreError::Unknown(_))) => {
                            again.push(device);
                            last = Some(error);
                        }
                        Err(error) => progress.fail(&device.id, &error.to_string()),
                    }
                }
            });
            if let Some(error) = last {
                if Instant::now() >= deadline {
                    return Err(error);
                }
                tokio::time::sleep(RETRY).await;
            }
            todo = again;
        }
        Ok(())
    }

    async fn register_all(&self) -> Result<How, StoreError> {
        let (mut place, mut taken) = (self.first(), 0);
        let places = Arc::new(Semaphore::new(IN_PROGRESS));
        let mut tasks = JoinSet::new();
        let how = 'steps: loop {
            if let Some(obstacle) = self.obstacle() {
                break obstacle;
            }
            let mut step = self.next_patiently(&mut place).await?;
            if step.is_empty() {
                break How::Complete;
            }
            let left = self.left(taken);
            let is_more = step.len() > left;
            step.truncate(left);
            taken += step.len() as u64;
            for device in self.sorted(step) {
                let mut stop = self.job.stop.subscribe();
                let permit = tokio::select! {
                    permit = places.clone().acquire_owned() => permit,
                    _ = stop.wait_for(Option::is_some) => continue 'steps,
                };
                // The semaphore is never closed.
                let Ok(permit) = permit else { break 'steps How::ShuttingDown };
                let registration = Registration {
                    job: self.job.clone(),
                    store: self.store.clone(),
                    registrar: self.registrar.clone(),
                };
                tasks.spawn(async move {
                    registration.run(device.id).await;
                    drop(permit);
                });
                while tasks.try_join_next().is_some() {}
            }
            if is_more {
                break How::More;
            }
        };
        while tasks.join_next().await.is_some() {}
        Ok(self.obstacle().unwrap_or(how))
    }
}

/// Registration of one device of a job.
struct Registration {
    job: Arc<Job>,
    store: Arc<dyn Table>,
    registrar: Arc<Registrar>,
}

impl Registration {
    async fn run(self, id: DeviceId) {
        let mut stop = self.job.stop.subscribe();
        tokio::select! {
            () = self.register(&id) => {}
            // The registrar goes on with what it has begun.
            _ = stop.wait_for(Option::is_some) => {}
        }
    }

    async fn register(&self, id: &DeviceId) {
        let fail = |reason: &str| self.job.note(|progress| progress.fail(id, reason));
        for attempt in 0..=MAX_LATER {
            // The row may have changed since the search.
            let row = match self.store.device(id).await {
                Ok(Some(row)) => row,
                Ok(None) => return self.job.note(|progress| progress.absent += 1),
                Err(error) => return fail(&error.to_string()),
            };
            if policy::verdict(&row, Reissue::Always, unix_now()) != Verdict::Register {
                return self.job.note(|progress| progress.unchanged += 1);
            }
            let device_name = row.name();
            let wanted = JournalEntry { device: row.id, product_key: row.product_key, device_name };
            match self.registrar.register(wanted, REGISTRATION).await {
                Outcome::Registered(_) => return self.job.note(|progress| progress.changed += 1),
                Outcome::Refused(reason) | Outcome::SharedName(reason) | Outcome::Operator(reason) => {
                    return fail(&reason);
                }
                Outcome::Changed => {}
                Outcome::Later(pause) if attempt < MAX_LATER && !self.registrar.is_draining() => {
                    tokio::time::sleep(pause.min(MAX_LATER_PAUSE)).await;
                }
                Outcome::Later(_) | Outcome::TimedOut => break,
            }
        }
        fail("IoT Platform did not answer in time; a later request or job tries again");
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // No code panics while it holds one of these locks, so a poisoned lock cannot occur.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
