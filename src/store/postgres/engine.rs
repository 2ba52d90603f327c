//! The thread on which all work in PostgreSQL runs, and the ways to hand it work: a transaction, which
//! is repeated if another one was in its way; a read; and a connection for a caller that blocks. Work
//! goes on even if no one waits for it any more. This module does not know what the work is.

use std::{
    cell::Cell,
    future::Future,
    pin::{Pin, pin},
    rc::Rc,
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll, Wake, Waker},
    thread::{self, JoinHandle, Thread},
    time::Duration,
};

use rand::RngExt;
use tokio::{
    runtime::Builder,
    sync::{Notify, mpsc, oneshot},
    task::{JoinSet, LocalSet},
    time::{Instant, sleep, timeout, timeout_at},
};

use super::{
    Access,
    address::Address,
    failure::Failure,
    pool::Pool,
    schema,
    session::{Note, Session},
};
use crate::store::{Metrics, StoreError, StoreFuture};

/// Maximum number of pieces of work that wait or run. Further ones fail, and their devices are asked
/// to retry.
const QUEUE: usize = 16_384;

/// Maximum number of connections for transactions and reads, and for callers that block, such as an
/// import.
const CONNECTIONS: usize = 8;
const BLOCKING_CONNECTIONS: usize = 8;

/// Maximum time of a piece of work, with all its attempts. After it, the devices that wait are asked
/// to retry.
const WAIT: Duration = Duration::from_secs(5);

/// Maximum time of the work of a caller that blocks, because an operator has more patience than a
/// device.
const BLOCKING_WAIT: Duration = Duration::from_secs(60);

/// Maximum number of attempts of a transaction, and the pause before the second one. Each further
/// pause is twice as long, and a random part of it is left out.
pub(super) const ATTEMPTS: u32 = 8;
const PAUSE: Duration = Duration::from_millis(5);

/// Maximum time for which an ending process waits for its last work.
const LAST_WAIT: Duration = Duration::from_secs(6);

/// Begins a transaction. The server's own limits end a transaction whose client is gone, or that waits
/// for another one for too long. They hold for this transaction alone, so that a pooler can give the
/// connection to another client afterwards.
pub(super) const BEGIN: &str = "BEGIN; SET LOCAL lock_timeout = '4s'; SET LOCAL statement_timeout = '5s'; \
                     SET LOCAL idle_in_transaction_session_timeout = '10s'";

/// Begins the transaction of a caller that blocks, such as an import.
pub(super) const BEGIN_BULK: &str = "BEGIN; SET LOCAL lock_timeout = '60s'; SET LOCAL statement_timeout = '600s'; \
                                     SET LOCAL idle_in_transaction_session_timeout = '600s'";

/// Begins the transaction of a caller that blocks and only reads: it sees one state of the database.
pub(super) const SNAPSHOT: &str =
    "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET LOCAL statement_timeout = '600s'";

/// A piece of work, which runs on the engine's thread.
type Work = Box<dyn FnOnce(Rc<Pools>) -> Pin<Box<dyn Future<Output = ()>>> + Send>;

/// The connections of the engine.
struct Pools {
    access: Access,
    work: Pool,
    blocking: Pool,
    /// Set when the engine is dropped, and then it only does what it has begun.
    is_ending: Cell<bool>,
    ends: Notify,
}

/// Runs transactions for a task in the background.
pub(super) struct Transactions(Rc<Pools>);

impl Transactions {
    /// Runs a transaction, and repeats it as long as another one is in its way.
    pub(super) async fn run<T>(
        &self,
        work: &impl AsyncFn(&Session) -> Result<T, Failure>,
    ) -> Result<T, StoreError> {
        transact(&self.0.work, work).await
    }

    /// Runs a read.
    pub(super) async fn read<T>(
        &self,
        work: &impl AsyncFn(&Session) -> Result<T, Failure>,
    ) -> Result<T, StoreError> {
        read(&self.0, work).await
    }

    /// Opens a connection for a transaction that lasts longer than the task's other ones.
    pub(super) async fn hold(&self) -> Result<Session, StoreError> {
        self.0.blocking.session(Instant::now() + WAIT).await
    }

    /// Returns the error for a failure outside [`run`](Self::run).
    pub(super) fn failed(&self, failure: Failure) -> StoreError {
        failure.into_store_error(self.0.work.database())
    }

    /// Waits for this time, or until the engine ends.
    pub(super) async fn pause(&self, time: Duration) {
        if !self.is_ending() {
            // The result does not matter: either the time is over, or the engine ends.
            let _ = timeout(time, self.0.ends.notified()).await;
        }
    }

    /// Returns whether the engine ends. Then the task must end soon.
    pub(super) fn is_ending(&self) -> bool {
        self.0.is_ending.get()
    }
}

/// Handle of the thread. Dropping it waits until the work that was handed over is done.
pub(super) struct Engine {
    queue: Option<mpsc::Sender<Work>>,
    address: Arc<Address>,
    access: Access,
    metrics: Arc<Metrics>,
    thread: Option<JoinHandle<()>>,
}

impl Engine {
    /// Starts the thread. Opens no connection yet.
    pub(super) fn start(address: Address, access: Access) -> Result<Self, StoreError> {
        let (queue, work) = mpsc::channel(QUEUE);
        let address = Arc::new(address);
        let failed = |error| StoreError::Failed(format!("no thread for the database: {error}"));
        let runtime = Builder::new_current_thread().enable_all().build().map_err(failed)?;
        let thread = thread::Builder::new()
            .name("store-postgres".into())
            .spawn({
                let address = Arc::clone(&address);
                move || LocalSet::new().block_on(&runtime, run(work, address, access))
            })
            .map_err(failed)?;
        Ok(Self { queue: Some(queue), address, access, metrics: Arc::default(), thread: Some(thread) })
    }

    /// Returns the kind of access.
    pub(super) fn access(&self) -> Access {
        self.access
    }

    /// Returns the metrics of the transactions.
    pub(super) fn metrics(&self) -> Arc<Metrics> {
        Arc::clone(&self.metrics)
    }

    /// Returns the database, for messages.
    pub(super) fn database(&self) -> &str {
        self.address.shown()
    }

    /// Runs `work` as a transaction, which begins at once. `work` may run several times: what it
    /// computes must not depend on an earlier run.
    pub(super) fn transact<T, W>(&self, work: W) -> StoreFuture<'static, T>
    where
        T: Send + 'static,
        W: AsyncFn(&Session) -> Result<T, Failure> + Send + 'static,
    {
        if let Err(error) = self.may_write() {
            return Box::pin(std::future::ready(Err(error)));
        }
        let metrics = Arc::clone(&self.metrics);
        metrics.waiting.fetch_add(1, Ordering::Relaxed);
        self.hand_over(move |pools| async move {
            let begun = std::time::Instant::now();
            let outcome = transact(&pools.work, &work).await;
            metrics.commit_latency.observe(begun.elapsed());
            metrics.waiting.fetch_sub(1, Ordering::Relaxed);
            let counter = match &outcome {
                Ok(_) => &metrics.written,
                Err(StoreError::Conflict(_) | StoreError::Fenced) => &metrics.refused,
                Err(_) => &metrics.failed,
            };
            counter.fetch_add(1, Ordering::Relaxed);
            outcome
        })
    }

    /// Fails if the database was opened only to be read.
    pub(super) fn may_write(&self) -> Result<(), StoreError> {
        match self.access {
            Access::Full => Ok(()),
            Access::Looks | Access::PreviewsNew => {
                Err(StoreError::Failed(format!("{}: it was opened only to be read", self.database())))
            }
        }
    }

    /// Runs `work`, which only reads. Each of its statements sees the newest state. If the database has
    /// no tables and an import is previewed, it sees empty ones.
    pub(super) fn read<T, W>(&self, work: W) -> StoreFuture<'static, T>
    where
        T: Send + 'static,
        W: AsyncFn(&Session) -> Result<T, Failure> + Send + 'static,
    {
        self.hand_over(move |pools| async move { read(&pools, &work).await })
    }

    /// Runs a task in the background, which runs transactions and ends soon after the engine. Returns
    /// false if there is too much work already.
    pub(super) fn spawn(&self, task: impl AsyncFnOnce(Transactions) + Send + 'static) -> bool {
        let work: Work = Box::new(move |pools| Box::pin(async move { task(Transactions(pools)).await }));
        self.queue.as_ref().is_some_and(|queue| queue.try_send(work).is_ok())
    }

    /// Runs a task that runs transactions, and blocks until it is done.
    pub(super) fn task_now<T: Send + 'static>(
        &self,
        task: impl AsyncFnOnce(Transactions) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        wait(self.hand_over(move |pools| async move { task(Transactions(pools)).await }))
    }

    /// Hands work to the thread. The future is ready when the work is done.
    fn hand_over<T, W, F>(&self, work: W) -> StoreFuture<'static, T>
    where
        T: Send + 'static,
        W: FnOnce(Rc<Pools>) -> F + Send + 'static,
        F: Future<Output = Result<T, StoreError>> + 'static,
    {
        let (reply, answer) = oneshot::channel();
        let work: Work = Box::new(move |pools| {
            let running = work(pools);
            // Sending fails if no one waits any more.
            Box::pin(async move { drop(reply.send(running.await)) })
        });
        let queued = match &self.queue {
            Some(queue) => queue.try_send(work),
            None => return Box::pin(std::future::ready(Err(self.ended()))),
        };
        let ended = self.ended();
        match queued {
            Ok(()) => Box::pin(async move { answer.await.unwrap_or(Err(ended)) }),
            Err(mpsc::error::TrySendError::Full(_)) => {
                let full = format!("{}: {QUEUE} requests are waiting already", self.database());
                Box::pin(std::future::ready(Err(StoreError::Busy(full))))
            }
            Err(mpsc::error::TrySendError::Closed(_)) => Box::pin(std::future::ready(Err(ended))),
        }
    }

    fn ended(&self) -> StoreError {
        StoreError::Failed(format!("{}: the thread of the database has ended", self.database()))
    }

    /// Runs a transaction, and blocks until it is done.
    pub(super) fn transact_now<T, W>(&self, work: W) -> Result<T, StoreError>
    where
        T: Send + 'static,
        W: AsyncFn(&Session) -> Result<T, Failure> + Send + 'static,
    {
        wait(self.transact(work))
    }

    /// Runs the transaction that creates the tables, and blocks until it is done. It may run several times.
    pub(super) fn create_now<T, W>(&self, work: W) -> Result<T, StoreError>
    where
        T: Send + 'static,
        W: AsyncFn(&Session) -> Result<T, Failure> + Send + 'static,
    {
        self.may_write()?;
        wait(self.hand_over(move |pools| async move {
            let (pool, deadline) = (&pools.work, Instant::now() + WAIT);
            let mut attempt = 1;
            loop {
                let failure = match attempt_plain(pool, &work).await {
                    Ok(value) => return Ok(value),
                    Err(failure) => failure,
                };
                if !failure.is_temporary() || attempt == ATTEMPTS || !pause(attempt, deadline).await {
                    return Err(failure.into_store_error(pool.database()));
                }
                attempt += 1;
            }
        }))
    }

    /// Runs a read, and blocks until it is done.
    pub(super) fn read_now<T, W>(&self, work: W) -> Result<T, StoreError>
    where
        T: Send + 'static,
        W: AsyncFn(&Session) -> Result<T, Failure> + Send + 'static,
    {
        wait(self.read(work))
    }

    /// Opens a connection of its own, on which the calling thread runs statements and blocks.
    pub(super) fn blocking(&self) -> Result<Blocking, StoreError> {
        let deadline = Instant::now() + BLOCKING_WAIT;
        let opened = self.hand_over(move |pools| async move { pools.blocking.session(deadline).await });
        let session = wait(opened)?;
        let database = self.database().to_owned();
        Ok(Blocking { session, database })
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        // Without a sender, the thread ends when its work is done.
        self.queue = None;
        if let Some(thread) = self.thread.take() {
            // If the thread has panicked, its message is already printed.
            let _ = thread.join();
        }
    }
}

async fn run(mut queue: mpsc::Receiver<Work>, address: Arc<Address>, access: Access) {
    let pools = Rc::new(Pools {
        access,
        work: Pool::new(Arc::clone(&address), CONNECTIONS),
        blocking: Pool::new(address, BLOCKING_CONNECTIONS),
        is_ending: Cell::new(false),
        ends: Notify::new(),
    });
    let mut running = JoinSet::new();
    while let Some(work) = queue.recv().await {
        running.spawn_local(work(Rc::clone(&pools)));
        while running.try_join_next().is_some() {}
    }
    pools.is_ending.set(true);
    pools.ends.notify_waiters();
    let deadline = Instant::now() + LAST_WAIT;
    while let Ok(Some(_)) = timeout_at(deadline, running.join_next()).await {}
}

/// Runs a transaction, and repeats it as long as another one is in its way. If the answer to a commit
/// is lost, finds out whether the transaction was committed.
async fn transact<T>(
    pool: &Pool,
    work: &impl AsyncFn(&Session) -> Result<T, Failure>,
) -> Result<T, StoreError> {
    let deadline = Instant::now() + WAIT;
    let mut attempt = 1;
    loop {
        let committing = Cell::new(None);
        let failure = match timeout_at(deadline, attempt_once(pool, deadline, work, &committing)).await {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(failure)) => failure,
            Err(_) if committing.take().is_some() => return Err(unknown(pool)),
            Err(_) => return Err(no_answer(pool)),
        };
        let was_committing = committing.take().filter(|_| !failure.is_rolled_back());
        let is_temporary = match was_committing {
            None => failure.is_temporary(),
            Some((value, note)) => match timeout_at(deadline, was_committed(pool, deadline, note)).await {
                Ok(Some(true)) => return Ok(value),
                Ok(Some(false)) => true,
                Ok(None) | Err(_) => return Err(unknown(pool)),
            },
        };
        if !is_temporary || attempt == ATTEMPTS || !pause(attempt, deadline).await {
            return Err(failure.into_store_error(pool.database()));
        }
        attempt += 1;
    }
}

/// Returns whether a transaction was committed, or `None` if the database does not answer.
async fn was_committed(pool: &Pool, deadline: Instant, note: Note) -> Option<bool> {
    for attempt in 1..=ATTEMPTS {
        let asked = async { pool.session(deadline).await?.was_committed(note).await };
        match asked.await {
            Ok(was_committed) => return Some(was_committed),
            Err(_) if pause(attempt, deadline).await => {}
            Err(_) => return None,
        }
    }
    None
}

/// Runs a transaction once. Before it sends the commit, puts the result and the number of the
/// transaction into `committing`, because the outcome is unknown if the connection ends during the
/// commit.
async fn attempt_once<T>(
    pool: &Pool,
    deadline: Instant,
    work: &impl AsyncFn(&Session) -> Result<T, Failure>,
    committing: &Cell<Option<(T, Note)>>,
) -> Result<T, Failure> {
    let mut session = pool.session(deadline).await?;
    let done = async {
        let note = session.begin_noted(BEGIN).await?;
        let value = work(&session).await?;
        committing.set(Some((value, note)));
        session.run("COMMIT").await
    };
    let failure = match done.await {
        Ok(()) => {
            pool.put_back(session);
            let committed = committing.take().map(|(value, _)| value);
            return committed.ok_or_else(|| Failure::unexpected("a transaction has no result"));
        }
        Err(failure) => failure,
    };
    if !failure.leaves_connection() {
        pool.clear();
    } else if session.run("ROLLBACK").await.is_ok() {
        pool.put_back(session);
    }
    Err(failure)
}

/// Runs statements in a transaction of their own, once. If the answer is lost, the caller does not know
/// whether they were carried out. They must be harmless in both cases.
async fn attempt_plain<T>(
    pool: &Pool,
    work: &impl AsyncFn(&Session) -> Result<T, Failure>,
) -> Result<T, Failure> {
    let session = pool.session(Instant::now() + WAIT).await?;
    session.run(BEGIN).await?;
    let value = work(&session).await?;
    session.run("COMMIT").await?;
    pool.put_back(session);
    Ok(value)
}

async fn read<T>(
    pools: &Pools,
    work: &impl AsyncFn(&Session) -> Result<T, Failure>,
) -> Result<T, StoreError> {
    let (pool, deadline) = (&pools.work, Instant::now() + WAIT);
    let mut attempt = 1;
    loop {
        let once = async {
            let session = pool.session(deadline).await?;
            let outcome = match pools.access {
                Access::Full | Access::Looks => work(&session).await,
                Access::PreviewsNew => with_empty_tables(&session, work).await,
            };
            match &outcome {
                Err(failure) if !failure.leaves_connection() => pool.clear(),
                _ => pool.put_back(session),
            }
            outcome
        };
        let failure = match timeout_at(deadline, once).await {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(failure)) => failure,
            Err(_) => return Err(no_answer(pool)),
        };
        if !failure.is_temporary() || attempt == ATTEMPTS || !pause(attempt, deadline).await {
            return Err(failure.into_store_error(pool.database()));
        }
        attempt += 1;
    }
}

/// Runs a read in a database without tables. They are created in a transaction that is taken back.
async fn with_empty_tables<T>(
    session: &Session,
    work: &impl AsyncFn(&Session) -> Result<T, Failure>,
) -> Result<T, Failure> {
    session.run("BEGIN").await?;
    let outcome = match session.run(schema::CREATE).await {
        Ok(()) => work(session).await,
        Err(failure) => Err(failure),
    };
    session.run("ROLLBACK").await?;
    outcome
}

/// Waits before the next attempt. Returns false if the deadline comes first.
async fn pause(attempt: u32, deadline: Instant) -> bool {
    let pause = PAUSE * 2_u32.pow(attempt - 1);
    let until = Instant::now() + pause.mul_f64(rand::rng().random_range(0.5..1.0));
    if until >= deadline {
        return false;
    }
    sleep(until - Instant::now()).await;
    true
}

/// Returns the pause before the next attempt, for a caller that blocks.
pub(super) fn blocking_pause(attempt: u32) -> Duration {
    (PAUSE * 2_u32.pow(attempt - 1)).mul_f64(rand::rng().random_range(0.5..1.0))
}

fn no_answer(pool: &Pool) -> StoreError {
    StoreError::Busy(format!("{}: the database did not answer in time; try again", pool.database()))
}

fn unknown(pool: &Pool) -> StoreError {
    StoreError::Unknown(format!("{}: the connection ended during a commit", pool.database()))
}

/// A connection on which the calling thread blocks. It is closed when it is dropped, which ends its
/// transaction.
pub(super) struct Blocking {
    session: Session,
    database: String,
}

impl Blocking {
    /// Runs statements, and blocks until they are done.
    pub(super) fn run<'s, T, F>(&'s self, work: impl FnOnce(&'s Session) -> F) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, Failure>> + 's,
    {
        wait(work(&self.session)).map_err(|failure| failure.into_store_error(&self.database))
    }

    /// Returns the connection.
    pub(super) fn session(&self) -> &Session {
        &self.session
    }

    /// Commits. If the connection ends meanwhile, the outcome is not known.
    pub(super) fn commit(self) -> Result<(), StoreError> {
        match wait(self.session.run("COMMIT")) {
            Ok(()) => Ok(()),
            Err(failure) if failure.is_rolled_back() => Err(failure.into_store_error(&self.database)),
            Err(_) => {
                Err(StoreError::Unknown(format!("{}: the connection ended during a commit", self.database)))
            }
        }
    }
}

/// Wakes a thread that waits for a future.
struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Waits for a future that the engine's thread drives. May be called in any thread, even in one that
/// runs other futures.
pub(super) fn wait<F: Future>(future: F) -> F::Output {
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut context = Context::from_waker(&waker);
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut context) {
            Poll::Ready(output) => return output,
            Poll::Pending => thread::park(),
        }
    }
}
