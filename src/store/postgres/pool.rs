//! Connections to PostgreSQL: a limited number of them, opened when they are needed, and used again by
//! later work. Every wait has a limit. After a failure, the next attempts wait for a while, so that
//! many servers do not storm a database that has just come back.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use rand::RngExt;
use tokio::{
    sync::Semaphore,
    time::{Instant, timeout, timeout_at},
};
use tokio_postgres::Client;

use super::{
    address::Address,
    failure::{self, Failure},
    session::{Note, Session},
};
use crate::store::StoreError;

/// Maximum time to open a connection: name, TCP, TLS and sign-in, on all hosts together.
const CONNECT: Duration = Duration::from_secs(5);

/// Pause after the first failed attempt to connect, and the longest one. A random part of up to a half
/// is left out of each.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// The connections of one kind of work.
pub(super) struct Pool {
    address: Arc<Address>,
    permits: Arc<Semaphore>,
    idle: Mutex<Vec<(Client, Note)>>,
    failed: Mutex<Option<Failed>>,
}

/// The last failed attempt to connect. Until `until`, no other attempt is made.
#[derive(Clone)]
struct Failed {
    until: Instant,
    pause: Duration,
    error: StoreError,
}

impl Pool {
    /// Creates a pool of up to `connections`. Opens none yet.
    pub(super) fn new(address: Arc<Address>, connections: usize) -> Self {
        let permits = Arc::new(Semaphore::new(connections));
        Self { address, permits, idle: Mutex::default(), failed: Mutex::default() }
    }

    /// Returns the database, for messages.
    pub(super) fn database(&self) -> &str {
        self.address.shown()
    }

    /// Returns a connection, within the time until `deadline`. The caller must be a task of the
    /// engine's runtime, which drives new connections.
    pub(super) async fn session(&self, deadline: Instant) -> Result<Session, StoreError> {
        let busy = || StoreError::Busy(format!("{}: all connections are in use; try again", self.database()));
        let permit = timeout_at(deadline, Arc::clone(&self.permits).acquire_owned()).await;
        // The semaphore is never closed.
        let permit = permit.map_err(|_| busy())?.map_err(|_| busy())?;
        loop {
            let idle = lock(&self.idle).pop();
            match idle {
                Some((client, _)) if client.is_closed() => {}
                Some((client, note)) => return Ok(Session::new(client, note, permit)),
                None => {
                    return Ok(Session::new(self.connect(deadline).await?, Note::new_connection(), permit));
                }
            }
        }
    }

    /// Takes a connection back that has no open transaction.
    pub(super) fn put_back(&self, session: Session) {
        let (client, note) = session.into_client();
        if !client.is_closed() {
            lock(&self.idle).push((client, note));
        }
    }

    /// Closes all connections that are not in use. After a failover, they may lead to a former primary.
    pub(super) fn clear(&self) {
        lock(&self.idle).clear();
    }

    async fn connect(&self, deadline: Instant) -> Result<Client, StoreError> {
        let last = lock(&self.failed).clone();
        if let Some(failed) = last.as_ref().filter(|failed| failed.until > Instant::now()) {
            return Err(failed.error.clone());
        }
        let opened = timeout_at(deadline, timeout(CONNECT, self.address.connect(CONNECT))).await;
        let error = match opened {
            Ok(Ok(Ok(client))) => {
                *lock(&self.failed) = None;
                return Ok(client);
            }
            Ok(Ok(Err(Failure::Database(error)))) => match failure::store_error(&error, self.database()) {
                error @ (StoreError::Unusable(_) | StoreError::Busy(_)) => error,
                other => StoreError::Busy(other.to_string()),
            },
            Ok(Ok(Err(Failure::Store(error)))) => error,
            Ok(Err(_)) | Err(_) => {
                StoreError::Busy(format!("{}: the server did not answer in time; try again", self.database()))
            }
        };
        let pause = last.map_or(FIRST_PAUSE, |last| (last.pause * 2).min(LONGEST_PAUSE));
        let until = Instant::now() + pause.mul_f64(rand::rng().random_range(0.5..1.0));
        *lock(&self.failed) = Some(Failed { until, pause, error: error.clone() });
        Err(error)
    }
}

/// Locks a value. Another thread that has panicked cannot have left it half changed.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
