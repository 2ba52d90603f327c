//! Jobs: one action on many devices, which an operator has confirmed. A job runs in the background
//! in small steps, so that it delays no device and survives a closed browser. An operator can stop
//! it. A job ends when the server stops. The audit log records the beginning and the end of the
//! job, and each change. This module does not depend on the console's pages.

mod previews;
pub(super) mod record;

#[cfg(all(test, feature = "simulation"))]
mod tests;

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::future::join_all;
use sha2::{Digest, Sha256};
use tokio::{
    sync::{Semaphore, watch},
    task::JoinSet,
    time::Instant,
};

pub(super) use self::previews::Seen;
use self::previews::Unshared;
use super::blocking;
use crate::{
    device::DeviceId,
    policy::{self, Verdict},
    psk::{EnrollmentOutline, Reissue, Terms},
    registrar::{Outcome, Targets},
    store::{
        Actor, CloudState, DeviceState, StoreError, Table, UnixSeconds,
        audit::Asked,
        filter::{Cursor, End, Filter, Listed},
        place::Places,
        unix_now,
    },
};

/// Maximum number of jobs that run at once. With two, a registration that takes an hour does not
/// delay a reset.
const MOST_RUNNING: usize = 2;
/// Maximum number of jobs that are remembered. The oldest job that has ended is forgotten first.
const REMEMBERED: usize = 20;
/// Number of devices in a step. The store commits their changes together.
const STEP: usize = 100;
/// Maximum time of one search for the devices of a step.
const SEARCH: Duration = Duration::from_millis(500);
/// Bounds of the pause between two steps. Within these bounds, the pause is as long as the step
/// before, so that the requests of devices get at least half of the store's time.
const MIN_PAUSE: Duration = Duration::from_millis(10);
const MAX_PAUSE: Duration = Duration::from_secs(1);
/// Maximum number of attempts to write the end of a job to the audit log.
const MOST_TRIES: u32 = 30;
/// Maximum wait for the running jobs when the server stops. The audit log then has no end of a job
/// that has not ended.
const END: Duration = Duration::from_secs(3);
/// Time for which a step is retried while the store is not available.
const PATIENCE: Duration = Duration::from_secs(60);
/// Pause before a step is retried.
const RETRY: Duration = Duration::from_millis(500);
/// Maximum number of registrations that one job has in progress. A device that has just powered on
/// waits behind them in the same queue, but only for a second or two.
const IN_PROGRESS: usize = 40;
/// Maximum wait for one registration.
const REGISTRATION: Duration = Duration::from_secs(600);
/// Maximum number of times that a registration is retried, and the longest pause before a retry.
const MAX_LATER: u32 = 10;
const MAX_LATER_PAUSE: Duration = Duration::from_secs(60);
/// Reason of a registration to which IoT Platform gave no answer.
pub(super) const NO_ANSWER: &str = "IoT Platform did not answer in time; a later request or job tries again";
/// Maximum number of different reasons for failures that a job keeps. Failures for further reasons
/// are only counted.
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
    /// The devices with these IDs.
    List(Arc<[DeviceId]>),
}

/// A confirmed job.
#[derive(Debug, Clone)]
pub(super) struct Order {
    pub(super) action: Action,
    pub(super) target: Target,
    /// Number of devices in the preview that the operator confirmed. The job takes at most this
    /// many.
    pub(super) expected: u64,
    pub(super) by: Actor,
}

/// Progress of a job.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Progress {
    /// Devices that were changed.
    pub(super) changed: u64,
    /// Devices that did not need the change.
    pub(super) unchanged: u64,
    /// Devices that are not in the table any more.
    pub(super) absent: u64,
    /// Devices whose change failed.
    pub(super) failed: u64,
    /// Devices that a job with the action `Register` leaves out, because they are disabled here.
    pub(super) disabled: u64,
    /// Devices that a job with the action `Register` leaves out, because IoT Platform has refused
    /// them.
    pub(super) refused: u64,
    /// Reasons for failures. Each reason has the number of devices and the first device.
    pub(super) reasons: BTreeMap<String, (u64, DeviceId)>,
    /// Time and way in which the job ended; `None` while it runs.
    pub(super) end: Option<(UnixSeconds, How)>,
}

impl Progress {
    /// Returns the number of devices that the job has finished with.
    pub(super) fn done(&self) -> u64 {
        self.changed + self.unchanged + self.absent + self.failed + self.disabled + self.refused
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
    /// The job has taken as many devices as the operator confirmed, but more devices match now.
    More,
    /// The operator of this name stopped the job.
    Stopped(String),
    /// The server shuts down.
    ShuttingDown,
    /// The store failed.
    Failed(String),
    /// The audit log has no end of the job: the job was interrupted, or runs in another process.
    Unrecorded,
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
    fn new(id: String, order: Order, began: UnixSeconds, progress: Progress) -> Self {
        Self { id, order, began, progress: Mutex::new(progress), stop: watch::Sender::new(None) }
    }

    pub(super) fn progress(&self) -> Progress {
        lock(&self.progress).clone()
    }

    /// Asks the job to stop. The job finishes a step of changes, but waits for no registration.
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

    /// Counts a device that needs no change, or that a job with the action `Register` leaves out.
    fn leave_out(&self, progress: &mut Progress, state: DeviceState, is_refused: bool) {
        match self.order.action {
            Action::Register if state == DeviceState::Disabled => progress.disabled += 1,
            Action::Register if is_refused => progress.refused += 1,
            _ => progress.unchanged += 1,
        }
    }

    fn note(&self, change: impl FnOnce(&mut Progress)) {
        change(&mut lock(&self.progress));
    }
}

/// All jobs of this server.
pub(super) struct Jobs {
    /// Random bytes from which the IDs of the jobs follow, so that they cannot be guessed.
    seed: [u8; 32],
    all: Mutex<All>,
}

#[derive(Default)]
struct All {
    /// Number of jobs that have begun since the start.
    last: u64,
    jobs: VecDeque<Arc<Job>>,
    unshared: Unshared,
}

/// Job to which a link leads.
pub(super) enum Known {
    /// A job that the server remembers.
    Job(Arc<Job>),
    /// A job that this server does not remember. The audit log may have it ([`record::find`]).
    Elsewhere,
    /// The text is not the ID of a job.
    Unknown,
}

/// Reason why a job does not begin.
#[derive(Debug, Clone)]
pub(super) enum NotBegun {
    /// [`MOST_RUNNING`] jobs are running.
    Busy,
    /// The preview was confirmed before. That confirmation began the job with this ID.
    Again(String),
    /// The server does not know the preview.
    NotPreviewed,
    /// The job with this ID has begun since the preview and is running. It may change the same
    /// devices.
    Meanwhile(String),
    /// The audit log cannot take the beginning of the job.
    Unrecorded(StoreError),
}

/// Returns the time at which a job began, which is part of the job's ID. Returns `None` if the text
/// is not the ID of a job.
fn began_of(id: &str) -> Option<UnixSeconds> {
    let (began, random) = id.split_once('-')?;
    let is_random = random.len() == 8 && random.bytes().all(|byte| byte.is_ascii_hexdigit());
    let is_time = !began.is_empty() && began.bytes().all(|byte| byte.is_ascii_digit());
    (is_random && is_time).then(|| began.parse().ok()).flatten()
}

impl Jobs {
    /// Creates the jobs of a server, which has none yet. `seed` consists of random bytes.
    pub(super) fn new(seed: [u8; 32]) -> Self {
        Self { seed, all: Mutex::default() }
    }

    /// Returns a number that distinguishes this server from others.
    fn number(&self) -> String {
        hex::encode(&Sha256::digest(self.seed)[..8])
    }

    /// Returns the number of jobs that have begun since the start.
    fn begun(&self) -> u64 {
        lock(&self.all).last
    }

    /// Begins a job in a task of the current runtime. `seen` are the jobs that the confirmed preview
    /// showed; `None` for a script, to which no preview was shown.
    pub(super) fn begin(
        &self,
        order: Order,
        seen: Option<Seen>,
        store: Arc<dyn Table>,
        targets: Arc<Targets>,
        enrollments: Arc<Vec<EnrollmentOutline>>,
    ) -> Result<Arc<Job>, NotBegun> {
        let mut all = lock(&self.all);
        let All { last, jobs, .. } = &mut *all;
        let newer = match seen {
            Some(Seen::First(seen)) => usize::try_from(last.saturating_sub(seen)).unwrap_or(usize::MAX),
            Some(Seen::Before(shown)) => jobs.iter().rev().take_while(|job| job.began >= shown).count(),
            None => 0,
        };
        if let Some(job) = jobs.iter().rev().take(newer).find(|job| job.is_running()) {
            return Err(NotBegun::Meanwhile(job.id.clone()));
        }
        if jobs.iter().filter(|job| job.is_running()).count() >= MOST_RUNNING {
            return Err(NotBegun::Busy);
        }
        *last += 1;
        let began = unix_now();
        let random = Sha256::new().chain_update(self.seed).chain_update(last.to_be_bytes()).finalize();
        let id = format!("{began}-{}", hex::encode(&random[..4]));
        let job = Arc::new(Job::new(id, order, began, Progress::default()));
        // The entry is on the disk before the job changes anything.
        store.audit(Asked::of(&record::beginning(&job))).map_err(NotBegun::Unrecorded)?;
        if jobs.len() == REMEMBERED
            && let Some(oldest) = jobs.iter().position(|job| !job.is_running())
        {
            jobs.remove(oldest);
        }
        jobs.push_back(job.clone());
        let worker = Worker { job: job.clone(), store, targets, enrollments };
        tokio::spawn(worker.run());
        Ok(job)
    }

    /// Returns the job with this ID, if the server remembers it.
    pub(super) fn find(&self, id: &str) -> Known {
        if let Some(job) = lock(&self.all).jobs.iter().find(|job| job.id == id) {
            return Known::Job(job.clone());
        }
        if began_of(id).is_some() { Known::Elsewhere } else { Known::Unknown }
    }

    /// Waits for the end of the running jobs, for [`END`] at most. The registrar must be draining.
    pub(super) async fn end(&self) {
        let deadline = Instant::now() + END;
        while self.all().iter().any(|job| job.is_running()) && Instant::now() < deadline {
            tokio::time::sleep(MIN_PAUSE).await;
        }
    }

    /// Returns the jobs, newest first.
    pub(super) fn all(&self) -> Vec<Arc<Job>> {
        lock(&self.all).jobs.iter().rev().cloned().collect()
    }
}

/// A device of a step, and its row; `None` if the table does not have the device.
type Candidate = (DeviceId, Option<Listed>);

/// Position that a job has reached among its devices.
enum Place {
    Filter(Cursor),
    List(usize),
}

#[derive(Clone)]
struct Worker {
    job: Arc<Job>,
    store: Arc<dyn Table>,
    targets: Arc<Targets>,
    /// The enrollments of the configuration when the job began.
    enrollments: Arc<Vec<EnrollmentOutline>>,
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
        let now = unix_now();
        self.record_end(now, &how).await;
        self.job.note(|progress| progress.end = Some((now, how.clone())));
        let Progress { changed, unchanged, failed, .. } = self.job.progress();
        tracing::info!(job = self.job.id, changed, unchanged, failed, end = ?how, "a job has ended");
    }

    /// Writes the end of the job to the audit log. If the log has no room, waits for a limited
    /// time.
    async fn record_end(&self, now: UnixSeconds, how: &How) {
        let mut tries = 0;
        while let Err(error) = self.store.audit(Asked::of(&record::end(&self.job, now, how))) {
            tries += 1;
            if tries == MOST_TRIES || self.targets.is_draining() {
                return tracing::error!(job = self.job.id, %error, "the end of a job is not in the audit log");
            }
            tokio::time::sleep(MAX_PAUSE).await;
        }
    }

    /// Returns the reason for which the job must end, if there is one.
    fn obstacle(&self) -> Option<How> {
        let stopped = self.job.stop.borrow().clone().map(How::Stopped);
        stopped.or_else(|| self.targets.is_draining().then_some(How::ShuttingDown))
    }

    fn first(&self) -> Place {
        match &self.job.order.target {
            Target::Filter(_) => Place::Filter(Cursor::First),
            Target::List(_) => Place::List(0),
        }
    }

    /// Returns the devices of the next step, and moves `place` behind them. Returns an empty list
    /// when the job has taken all devices.
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
                let found = blocking(move || store.find(&filter, &from, STEP, SEARCH)).await?;
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
            // This case cannot occur, because `first` returns a place of the target's kind.
            _ => Ok(Vec::new()),
        }
    }

    /// Returns the devices of the next step, like [`next`](Self::next). Retries for [`PATIENCE`]
    /// while the store is not available.
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

    /// Counts the devices that are absent or are left out, and returns the devices to change.
    fn sorted(&self, step: Vec<Candidate>) -> Vec<Listed> {
        let mut todo = Vec::with_capacity(step.len());
        self.job.note(|progress| {
            for (_, device) in step {
                match device {
                    None => progress.absent += 1,
                    Some(device) if self.job.order.action.changes(&device) => todo.push(device),
                    Some(device) => self.job.leave_out(progress, device.state, device.refusal.is_some()),
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

    /// Changes the devices of a step. Fails if the store is not available for [`PATIENCE`].
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
                // `acquire` fails only if the semaphore is closed, which never happens.
                let Ok(permit) = permit else { break 'steps How::ShuttingDown };
                let worker = self.clone();
                tasks.spawn(async move {
                    worker.register_unless_stopped(device.id).await;
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

    async fn register_unless_stopped(self, id: DeviceId) {
        let mut stop = self.job.stop.subscribe();
        tokio::select! {
            () = self.register(&id) => {}
            // The job no longer waits for a registration that has begun, but the registrar finishes
            // it.
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
            let known = self.enrollments.iter().find(|enrollment| enrollment.name == row.enrollment);
            let guards = known.map(|enrollment| enrollment.guards).unwrap_or_default();
            // The reissue policy does not matter to a device without a certificate.
            let terms = Terms { reissue: Reissue::Always, guards };
            let verdict = policy::verdict(&row, terms, Places::default(), self.store.now());
            if let Verdict::Refuse(reason) = verdict
                && let Some(says) = policy::guard(reason)
            {
                return fail(&says);
            }
            if verdict != Verdict::Register {
                return self.job.note(|progress| {
                    self.job.leave_out(progress, row.state, row.refusal.is_some());
                });
            }
            match self.targets.register(&row, REGISTRATION).await {
                Outcome::Registered(_) => return self.job.note(|progress| progress.changed += 1),
                Outcome::Refused(reason)
                | Outcome::SharedName(reason)
                | Outcome::Operator(reason)
                | Outcome::NoTarget(reason) => return fail(&reason),
                Outcome::NoPlace => return fail(policy::NO_PLACE),
                Outcome::Changed | Outcome::Elsewhere(_) => {}
                Outcome::Later(pause) if attempt < MAX_LATER && !self.targets.is_draining() => {
                    tokio::time::sleep(pause.min(MAX_LATER_PAUSE)).await;
                }
                Outcome::Later(_) | Outcome::TimedOut => break,
            }
        }
        fail(NO_ANSWER);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // No code panics while it holds one of these locks, so a poisoned lock cannot occur.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
