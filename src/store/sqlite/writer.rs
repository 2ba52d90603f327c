//! Runs all write jobs on one thread, which commits all waiting jobs together, so that a hundred
//! devices share one disk sync. Each job has its own savepoint, so that a failed job does not
//! affect the others. This module does not depend on what the jobs write.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::Ordering,
        mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use rusqlite::Connection;
use tokio::sync::oneshot;

use super::{connection, store_error};
use crate::store::{Metrics, StoreError, StoreFuture};

/// Maximum number of waiting jobs. 10,000 devices that ask within one second cause fewer jobs. A
/// full queue takes about 5 MB. While the queue is full, a write fails, and its device is asked to
/// retry.
const QUEUE: usize = 16_384;

/// Maximum number of jobs in one commit. With this many jobs, the disk sync adds little to the cost
/// of each job.
const GROUP: usize = 512;

/// Time for which the writer collects jobs if the previous group had more than one. A sync costs
/// several times as much as a job. While many devices ask at once, a writer without this pause
/// would sync a fast disk once for every two jobs. A job that comes alone is committed immediately.
const GATHER: Duration = Duration::from_millis(1);

/// Maximum time that an ending process waits for another process's transaction, and the pause
/// between two attempts.
const LAST_WAIT: Duration = Duration::from_secs(3);
const LAST_PAUSE: Duration = Duration::from_millis(20);

/// Pause between two writes of the backlog.
const BACKLOG_EVERY: Duration = Duration::from_millis(250);

/// Queue of writes for which no caller waits. The writes run between the groups of jobs, in their
/// own transactions. They can therefore delay the result of a job, but cannot make the job fail.
pub(super) trait Backlog: Send + 'static {
    /// Writes a part of the backlog. Returns whether there is more. The next call retries a part
    /// that failed.
    fn write_some(&mut self) -> Result<bool, StoreError>;

    /// Ends the backlog, after its last part was written.
    fn end(&mut self);
}

/// Failure of a job, whose savepoint is rolled back.
pub(super) enum WriteError {
    /// Error from SQLite.
    Sqlite(rusqlite::Error),
    /// Error that is passed to the caller unchanged.
    Store(StoreError),
}

impl WriteError {
    pub(super) fn into_store_error(self, path: &Path) -> StoreError {
        match self {
            Self::Sqlite(error) => store_error(path, error),
            Self::Store(error) => error,
        }
    }
}

impl From<StoreError> for WriteError {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl From<rusqlite::Error> for WriteError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sqlite(error)
    }
}

/// Handle of the writing thread. Dropping it waits until all queued jobs are done.
pub(super) struct Writer {
    path: Arc<Path>,
    queue: Option<SyncSender<Box<dyn Job>>>,
    metrics: Arc<Metrics>,
    thread: Option<JoinHandle<()>>,
}

impl Writer {
    pub(super) fn start(
        connection: Connection,
        path: Arc<Path>,
        wait: Duration,
        mut backlog: impl Backlog,
        metrics: Arc<Metrics>,
    ) -> Result<Self, StoreError> {
        connection.busy_timeout(Duration::ZERO).map_err(|error| store_error(&path, error))?;
        let (queue, jobs) = sync_channel(QUEUE);
        let thread = thread::Builder::new()
            .name("store-writer".into())
            .spawn({
                let (path, metrics) = (Arc::clone(&path), Arc::clone(&metrics));
                move || write(&connection, &path, wait, &jobs, &metrics, &mut backlog)
            })
            .map_err(|error| StoreError::Failed(format!("{}: no writer: {error}", path.display())))?;
        Ok(Self { path, queue: Some(queue), metrics, thread: Some(thread) })
    }

    /// Creates a writer that refuses every job, for a process that only reads.
    pub(super) fn none(path: Arc<Path>) -> Self {
        Self { path, queue: None, metrics: Arc::default(), thread: None }
    }

    /// Returns the writer's metrics.
    pub(super) fn metrics(&self) -> Arc<Metrics> {
        Arc::clone(&self.metrics)
    }

    /// Queues `work` immediately. The future becomes ready when the work is committed, or when it
    /// is certain that it will not be committed.
    pub(super) fn submit<T, W>(&self, work: W) -> StoreFuture<'static, T>
    where
        T: Send + 'static,
        W: FnOnce(&Connection) -> Result<T, WriteError> + Send + 'static,
    {
        let (reply, answer) = oneshot::channel();
        let job = Box::new(Task { work: Some(work), outcome: None, reply });
        let path = self.path.display();
        self.metrics.waiting.fetch_add(1, Ordering::Relaxed);
        let queued = match &self.queue {
            Some(queue) => queue.try_send(job).map_err(|error| match error {
                TrySendError::Full(_) => {
                    StoreError::Busy(format!("{path}: {QUEUE} writes are waiting already"))
                }
                TrySendError::Disconnected(_) => writer_ended(&self.path),
            }),
            None => Err(StoreError::Failed(format!("{path}: it was opened only to be read"))),
        };
        if let Err(error) = queued {
            self.metrics.waiting.fetch_sub(1, Ordering::Relaxed);
            self.metrics.failed.fetch_add(1, Ordering::Relaxed);
            return Box::pin(std::future::ready(Err(error)));
        }
        let path = Arc::clone(&self.path);
        Box::pin(async move { answer.await.unwrap_or_else(|_| Err(writer_ended(&path))) })
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        // Dropping the sender closes the queue. The thread ends when it has run the queued jobs.
        self.queue = None;
        if let Some(thread) = self.thread.take() {
            // A thread that has panicked has already printed its message.
            let _ = thread.join();
        }
    }
}

fn writer_ended(path: &Path) -> StoreError {
    StoreError::Failed(format!("{}: the writer has ended", path.display()))
}

fn write(
    connection: &Connection,
    path: &Path,
    wait: Duration,
    jobs: &Receiver<Box<dyn Job>>,
    metrics: &Metrics,
    backlog: &mut impl Backlog,
) {
    let mut group = Vec::with_capacity(GROUP);
    let mut crowded = false;
    let mut due = Instant::now() + BACKLOG_EVERY;
    loop {
        match jobs.recv_timeout(due.saturating_duration_since(Instant::now())) {
            Ok(first) => {
                if crowded {
                    thread::sleep(GATHER);
                }
                group.push(first);
                group.extend(jobs.try_iter().take(GROUP - 1));
                crowded = group.len() > 1;
                let begun = Instant::now();
                let committed = commit(connection, path, wait, &mut group);
                metrics.commit_latency.observe(begun.elapsed());
                metrics.waiting.fetch_sub(group.len() as u64, Ordering::Relaxed);
                for job in group.drain(..) {
                    job.answer(&committed, metrics);
                }
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break,
        }
        if Instant::now() >= due {
            let more = write_backlog(backlog);
            due = Instant::now() + if more { Duration::ZERO } else { BACKLOG_EVERY };
        }
    }
    finish_backlog(backlog);
}

/// Writes a part of the backlog. Returns whether there is more.
fn write_backlog(backlog: &mut impl Backlog) -> bool {
    backlog.write_some().unwrap_or_else(|error| {
        // It is normal that another process holds the lock, so only other errors are logged.
        if matches!(error, StoreError::Failed(_)) {
            tracing::error!(%error, "the audit log is not written");
        }
        false
    })
}

/// Writes the rest of the backlog at the end of the process. If another process has a transaction
/// open, waits for it for a limited time.
fn finish_backlog(backlog: &mut impl Backlog) {
    let deadline = Instant::now() + LAST_WAIT;
    loop {
        match backlog.write_some() {
            Ok(true) if Instant::now() < deadline => {}
            Ok(_) => return backlog.end(),
            Err(StoreError::Busy(_)) if Instant::now() < deadline => thread::sleep(LAST_PAUSE),
            Err(error) => {
                tracing::warn!(%error, "the last entries of the audit log stay in a file; the next start writes them");
                return;
            }
        }
    }
}

/// Commits the jobs of the group that did not fail. Commits nothing if the transaction itself
/// fails.
fn commit(
    connection: &Connection,
    path: &Path,
    wait: Duration,
    group: &mut [Box<dyn Job>],
) -> Result<(), StoreError> {
    let failed = |error| store_error(path, error);
    let transaction = connection::begin_within(connection, wait).map_err(failed)?;
    let step = |sql| transaction.prepare_cached(sql)?.execute(());
    for job in group {
        step("SAVEPOINT job").map_err(failed)?;
        if let Err(error) = job.run(&transaction, path) {
            // A full disk or an I/O error may have rolled back the whole transaction. The remaining
            // jobs would then run outside a transaction.
            if transaction.is_autocommit() {
                return Err(error);
            }
            step("ROLLBACK TO job").map_err(failed)?;
        }
        step("RELEASE job").map_err(failed)?;
    }
    transaction.commit().map_err(failed)
}

/// A write job. Hides the type of the job's result.
trait Job: Send {
    /// Does the work. Returns an error if the caller must roll the work back.
    fn run(&mut self, connection: &Connection, path: &Path) -> Result<(), StoreError>;

    /// Counts the result, and sends it to the future if the future still exists.
    fn answer(self: Box<Self>, committed: &Result<(), StoreError>, metrics: &Metrics);
}

struct Task<W, T> {
    work: Option<W>,
    outcome: Option<Result<T, StoreError>>,
    reply: oneshot::Sender<Result<T, StoreError>>,
}

impl<W, T> Job for Task<W, T>
where
    W: FnOnce(&Connection) -> Result<T, WriteError> + Send,
    T: Send,
{
    fn run(&mut self, connection: &Connection, path: &Path) -> Result<(), StoreError> {
        let Some(work) = self.work.take() else { return Ok(()) };
        let outcome = work(connection).map_err(|error| error.into_store_error(path));
        let done = outcome.as_ref().map(|_| ()).map_err(StoreError::clone);
        self.outcome = Some(outcome);
        done
    }

    fn answer(self: Box<Self>, committed: &Result<(), StoreError>, metrics: &Metrics) {
        let answer = match (self.outcome, committed) {
            // The job's own error is more specific than the group's error.
            (Some(Err(error)), _) => Err(error),
            (_, Err(error)) => Err(error.clone()),
            (Some(Ok(value)), Ok(())) => Ok(value),
            (None, Ok(())) => Err(StoreError::Failed("a write was left out of its group".into())),
        };
        let outcome = match &answer {
            Ok(_) => &metrics.written,
            Err(StoreError::Conflict(_) | StoreError::Fenced) => &metrics.refused,
            Err(_) => &metrics.failed,
        };
        outcome.fetch_add(1, Ordering::Relaxed);
        // Sending fails if the future was dropped. The write is committed nevertheless.
        let _ = self.reply.send(answer);
    }
}
