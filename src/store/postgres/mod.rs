//! Stores the device table in a PostgreSQL database, or in one that understands the same SQL. Any
//! number of servers use one database: all state that they share is in it. Each write is a
//! transaction that locks the rows on which it depends, so no order of writes is lost, and each may be
//! repeated. The rules are those of the other stores, in the modules above.

mod address;
mod audit;
mod bulk;
mod claims;
pub mod copy;
mod counts;
mod engine;
mod failure;
mod find;
mod gather;
mod import;
mod issue;
mod key_use;
mod leases;
mod orders;
mod pool;
mod read;
mod roll;
mod schema;
mod secrets;
mod servers;
mod session;
mod shelf;
mod sightings;
mod tls;
mod turns;
mod undo;
mod unfinished;
mod waiting;

#[cfg(all(test, feature = "simulation"))]
mod tests;

use std::{
    collections::HashMap,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use arc_swap::ArcSwap;

use self::{
    address::Address,
    audit::Chainer,
    engine::{Engine, Transactions},
    failure::Failure,
    gather::Gather,
    issue::Asking,
    session::{Session, column, values},
};
use super::{
    Actor, Clock, Condition, DeviceRow, DeviceState, Issue, KeyLookup, Metrics, Store, StoreError,
    StoreFuture, UnixSeconds,
    audit::{Asked, Asker, AuditEntry, AuditEvent, AuditLog, Chain, Counts, EachEntry, Filter, Keep, Link},
    order::PlainChange,
    unix_now,
    waiting::Note,
};
use crate::device::{Certificate, DeviceId};

/// Kind of access to a database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Access {
    /// Reads and writes.
    Full,
    /// Only reads.
    Looks,
    /// Previews imports into a database that has no tables yet.
    PreviewsNew,
}

fn condition(engine: &Engine) -> Result<Condition, StoreError> {
    let database = engine.database().to_owned();
    let is_current =
        engine.read_now(async move |session: &Session| schema::is_current(session, &database).await)?;
    Ok(if is_current { Condition::Current } else { Condition::Missing })
}

/// The device table in a PostgreSQL database. Dropping the store waits until all writes that have
/// begun are done.
pub struct Postgres {
    clock: Arc<Clock>,
    /// Maximum numbers of places for the claims of this handle.
    max_places: ArcSwap<HashMap<String, u64>>,
    devices: Gather<DeviceId, Option<DeviceRow>>,
    enrollments: Gather<DeviceId, Option<String>>,
    keys: Gather<String, KeyLookup>,
    issues: Gather<Asking, Result<Issue, StoreError>>,
    notes: Gather<Note, ()>,
    chainer: Chainer,
    engine: Engine,
}

impl Postgres {
    /// Opens the database at a URL. Creates the tables if the database has none. Refuses the tables of
    /// another program or of a newer version without changing them. Secrets are read and written as
    /// they are stored. Blocks.
    pub fn open(url: &str) -> Result<Self, StoreError> {
        Self::open_if(url, |_| Ok(()))
    }

    /// Opens a database like [`open`](Self::open), but only if `accepts` returns no error. `accepts`
    /// receives the IDs of the database keys under which the secrets are sealed.
    pub fn open_if(url: &str, accepts: impl Fn(&[String]) -> Result<(), String>) -> Result<Self, StoreError> {
        let engine = Engine::start(Address::parse(url)?, Access::Full)?;
        let database = engine.database().to_owned();
        let create = async move |session: &Session| schema::create_or_check(session, &database).await;
        engine.create_now(create)?;
        Self::accepted(engine, accepts)
    }

    /// Opens a database that has the tables of this version, to read it. Changes nothing. All writes
    /// fail, except the preview of an import. Fails if `accepts` returns an error.
    pub fn look(url: &str, accepts: impl Fn(&[String]) -> Result<(), String>) -> Result<Self, StoreError> {
        let engine = Engine::start(Address::parse(url)?, Access::Looks)?;
        match condition(&engine)? {
            Condition::Missing => Err(StoreError::Unusable(format!(
                "{}: it has no tables of certdist yet; `certdist serve` and `certdist import` create them",
                engine.database()
            ))),
            Condition::Current | Condition::Older(_) => Self::accepted(engine, accepts),
        }
    }

    /// Opens a database like [`look`](Self::look) to preview an import. If the database has no tables,
    /// the preview uses empty ones.
    pub fn preview(url: &str, accepts: impl Fn(&[String]) -> Result<(), String>) -> Result<Self, StoreError> {
        match Self::examine(url)? {
            Condition::Missing => Ok(Self::new(Engine::start(Address::parse(url)?, Access::PreviewsNew)?)),
            Condition::Current | Condition::Older(_) => Self::look(url, accepts),
        }
    }

    /// Examines a database without changing it. Fails for the tables of another program or of another
    /// version.
    pub fn examine(url: &str) -> Result<Condition, StoreError> {
        condition(&Engine::start(Address::parse(url)?, Access::Looks)?)
    }

    /// Returns the URL as an operator sees it, without its password.
    pub fn shown(url: &str) -> Result<String, StoreError> {
        Ok(Address::parse(url)?.shown().to_owned())
    }

    fn accepted(
        engine: Engine,
        accepts: impl Fn(&[String]) -> Result<(), String>,
    ) -> Result<Self, StoreError> {
        let (in_use, database_now) = engine.read_now(async |session: &Session| {
            let row = session.one("SELECT extract(epoch FROM clock_timestamp())::int8", &[]).await?;
            Ok((secrets::keys_in_use(session).await?, column::<i64>(&row, 0)?))
        })?;
        accepts(&in_use).map_err(|error| StoreError::Failed(format!("{}: {error}", engine.database())))?;
        let store = Self::new(engine);
        // The servers of one database have one clock, unless the cloud's clock is known.
        store.clock.set_ahead(database_now - unix_now());
        if store.engine.access() == Access::Full {
            // Removes the notes of connections that have had no transaction for a day.
            const FORGET: &str = "DELETE FROM write_note WHERE at < $1";
            store.engine.transact_now(async move |session: &Session| {
                session.execute(FORGET, values![database_now - 86_400]).await.map(drop)
            })?;
            let clock = Arc::clone(&store.clock);
            // If the engine has too much work to start this task, another process does the work.
            store.engine.spawn(async move |transactions: Transactions| {
                unfinished::recover(transactions, clock).await
            });
        }
        Ok(store)
    }

    /// Returns the engine of a store that was opened only to be read.
    fn into_engine(self) -> Engine {
        self.engine
    }

    fn new(engine: Engine) -> Self {
        let clock = Arc::new(Clock::default());
        let chainer = Chainer::new(Arc::clone(&clock), engine.metrics());
        Self {
            clock,
            max_places: ArcSwap::default(),
            devices: Gather::default(),
            enrollments: Gather::default(),
            keys: Gather::default(),
            issues: Gather::default(),
            notes: Gather::default(),
            chainer,
            engine,
        }
    }

    /// Returns the clock of this handle.
    pub fn clock(&self) -> &Clock {
        &self.clock
    }

    /// Runs a transaction that may add entries to the audit log.
    fn write<T, W>(&self, work: W) -> StoreFuture<'static, T>
    where
        T: Send + 'static,
        W: AsyncFn(&Session) -> Result<T, Failure> + Send + 'static,
    {
        let written = self.engine.transact(work);
        self.chainer.wake(&self.engine);
        written
    }

    /// Makes an operator's change to a device. Also writes an audit entry if the device exists.
    fn operate<W>(
        &self,
        id: &DeviceId,
        event: AuditEvent,
        by: &Actor,
        change: W,
    ) -> StoreFuture<'static, bool>
    where
        W: AsyncFn(&Session, &DeviceRow) -> Result<bool, Failure> + Send + 'static,
    {
        let (id, by, clock) = (id.clone(), by.clone(), self.clock.clone());
        self.write(async move |session: &Session| {
            let Some(row) = read::locked(session, &id).await? else { return Ok(false) };
            counts::take(session, &[id.as_str()]).await?;
            if !change(session, &row).await? {
                // The row was not changed, so the device is counted again with the same values.
                counts::give(session, &[id.as_str()]).await?;
                return Ok(false);
            }
            counts::give(session, &[id.as_str()]).await?;
            audit::forget_refusals(session, &id).await?;
            let entry = AuditEntry { device: Some(id.clone()), ..by.entry(event, clock.now()) };
            audit::append(session, &entry).await?;
            Ok(true)
        })
    }
}

impl Store for Postgres {
    fn device<'a>(&'a self, id: &'a DeviceId) -> StoreFuture<'a, Option<DeviceRow>> {
        self.devices.ask(&self.engine, id.clone(), async |transactions: &Transactions, ids: Vec<DeviceId>| {
            transactions.read(&async |session: &Session| read::devices(session, &ids).await).await
        })
    }

    fn spelled<'a>(&'a self, mac: &'a DeviceId) -> StoreFuture<'a, Option<DeviceId>> {
        let mac = mac.clone();
        self.engine.read(async move |session: &Session| read::spelled(session, &mac).await)
    }

    fn enrollment_of<'a>(&'a self, id: &'a DeviceId) -> StoreFuture<'a, Option<String>> {
        self.enrollments.ask(
            &self.engine,
            id.clone(),
            async |transactions: &Transactions, ids: Vec<DeviceId>| {
                transactions.read(&async |session: &Session| read::enrollments_of(session, &ids).await).await
            },
        )
    }

    fn individual_key<'a>(&'a self, identity: &'a str) -> StoreFuture<'a, KeyLookup> {
        self.keys.ask(
            &self.engine,
            identity.to_owned(),
            async |transactions: &Transactions, all: Vec<String>| {
                transactions.read(&async |session: &Session| read::individual_keys(session, &all).await).await
            },
        )
    }

    fn record_issue<'a>(
        &'a self,
        id: &'a DeviceId,
        certificate: &'a Certificate,
        issue_id: i64,
        asker: Asker,
    ) -> StoreFuture<'a, Issue> {
        if let Err(error) = self.engine.may_write() {
            return Box::pin(std::future::ready(Err(error)));
        }
        let asking = Asking { device: id.clone(), certificate: certificate.clone(), issue_id, asker };
        let (clock, metrics) = (self.clock.clone(), self.engine.metrics());
        let issued = self.issues.ask(
            &self.engine,
            asking,
            async move |transactions: &Transactions, all: Vec<Asking>| {
                issue::record(transactions, &metrics, &all, clock.now()).await
            },
        );
        self.chainer.wake(&self.engine);
        Box::pin(async { issued.await? })
    }

    /// Unlike a store in a file, keeps the entry only in memory until it is written, a tenth of a
    /// second later. The last entries of a process that is killed are lost.
    fn audit(&self, asked: Asked) -> Result<(), StoreError> {
        self.chainer.push(&self.engine, asked)
    }

    fn history<'a>(&'a self, id: &'a DeviceId, limit: usize) -> StoreFuture<'a, Vec<AuditEntry>> {
        let id = id.clone();
        if self.engine.access() != Access::Full {
            return self
                .engine
                .read(async move |session: &Session| audit::history(session, &id, limit).await);
        }
        self.engine.transact(async move |session: &Session| {
            // If very many entries are pending, the newest may still be missing.
            audit::LockedChain::extend(session).await?;
            audit::history(session, &id, limit).await
        })
    }

    fn rows_after<'a>(
        &'a self,
        after: Option<&'a DeviceId>,
        limit: usize,
    ) -> StoreFuture<'a, Vec<DeviceRow>> {
        // No ID is empty, so all IDs come after the empty text.
        let after = after.map_or("", DeviceId::as_str).to_owned();
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        self.engine.read(async move |session: &Session| read::rows_after(session, &after, limit).await)
    }

    fn set_state<'a>(&'a self, id: &'a DeviceId, state: DeviceState, by: &'a Actor) -> StoreFuture<'a, bool> {
        const SQL: &str = "UPDATE device_table SET state = $2, importId = -abs(importId) WHERE deviceId = $1";
        let (event, name) = match state {
            DeviceState::Enabled => (AuditEvent::Enabled, "enabled"),
            DeviceState::Disabled => (AuditEvent::Disabled, "disabled"),
        };
        let (actor, clock) = (by.clone(), self.clock.clone());
        self.operate(id, event, by, async move |session: &Session, row: &DeviceRow| {
            orders::permit(session, &row.id, PlainChange::from(state), (&actor, clock.now())).await?;
            Ok(session.execute(SQL, values![row.id.as_str(), name]).await? > 0)
        })
    }

    fn reset<'a>(&'a self, id: &'a DeviceId, by: &'a Actor) -> StoreFuture<'a, bool> {
        const RESET: &str = "UPDATE device_table SET firstIssued = NULL, issueId = NULL, refusal = NULL \
                             WHERE deviceId = $1";
        // A device that was deleted at IoT Platform loses its certificate, and is registered again
        // under the same name.
        const ANEW: &str = "UPDATE device_table SET deviceSecret = NULL, IotId = NULL, registerTime = NULL, \
                            activateTime = NULL, cloudState = NULL \
                            WHERE deviceId = $1 AND cloudState = 'deleted'";
        self.operate(id, AuditEvent::Reset, by, async |session: &Session, row: &DeviceRow| {
            session.execute(ANEW, values![row.id.as_str()]).await?;
            Ok(session.execute(RESET, values![row.id.as_str()]).await? > 0)
        })
    }

    fn clear_refusal<'a>(
        &'a self,
        id: &'a DeviceId,
        refusal: &'a str,
        by: &'a Actor,
    ) -> StoreFuture<'a, bool> {
        const SQL: &str = "UPDATE device_table SET refusal = NULL WHERE deviceId = $1 AND refusal = $2";
        let refusal = refusal.to_owned();
        self.operate(id, AuditEvent::Reset, by, async move |session: &Session, row: &DeviceRow| {
            Ok(session.execute(SQL, values![row.id.as_str(), refusal]).await? > 0)
        })
    }

    fn delete<'a>(&'a self, id: &'a DeviceId, by: &'a Actor) -> StoreFuture<'a, bool> {
        // ON DELETE CASCADE deletes the key, the claim and the order as well.
        const SQL: &str = "DELETE FROM device_table WHERE deviceId = $1";
        let (actor, clock) = (by.clone(), self.clock.clone());
        self.operate(id, AuditEvent::Deleted, by, async move |session: &Session, row: &DeviceRow| {
            orders::permit(session, &row.id, PlainChange::Delete, (&actor, clock.now())).await?;
            Ok(session.execute(SQL, values![row.id.as_str()]).await? > 0)
        })
    }

    fn probe(&self) -> StoreFuture<'_, ()> {
        // A write that changes nothing shows that the server is no standby, and that a commit ends.
        const SQL: &str = "UPDATE certdist_schema SET version = version";
        self.engine.transact(async |session: &Session| session.execute(SQL, &[]).await.map(drop))
    }

    fn now(&self) -> UnixSeconds {
        self.clock.now()
    }

    fn set_clock_ahead(&self, seconds: i64) {
        self.clock.set_ahead(seconds);
    }

    fn metrics(&self) -> Option<Arc<Metrics>> {
        Some(self.engine.metrics())
    }
}

impl AuditLog for Postgres {
    fn has_expired(&self, keep: Keep) -> StoreFuture<'_, bool> {
        let now = self.clock.now();
        self.engine.read(async move |session: &Session| audit::has_expired(session, keep, now).await)
    }

    fn prune(&self, keep: Keep) -> StoreFuture<'_, Counts> {
        let now = self.clock.now();
        let pruned =
            self.engine.transact(async move |session: &Session| audit::prune(session, keep, now).await);
        let metrics = self.engine.metrics();
        Box::pin(async move {
            let pruned = pruned.await?;
            metrics.changes_removed.fetch_add(pruned.changes, Ordering::Relaxed);
            metrics.repeats_removed.fetch_add(pruned.repeats, Ordering::Relaxed);
            Ok(pruned)
        })
    }

    fn newest_entry(&self) -> StoreFuture<'_, Option<UnixSeconds>> {
        self.engine.read(audit::newest)
    }

    fn export_audit(&self, filter: &Filter, each: EachEntry<'_>) -> Result<(), StoreError> {
        audit::export(&self.engine, filter, each)
    }

    fn review_audit(
        &self,
        kinds: &[AuditEvent],
        since: UnixSeconds,
        time: Duration,
        each: EachEntry<'_>,
    ) -> Result<bool, StoreError> {
        audit::review(&self.engine, kinds, (since, time), each)
    }

    fn verify_audit(&self, hash_at: &mut dyn FnMut(u64, &Link)) -> Result<Chain, StoreError> {
        audit::verify(&self.engine, hash_at)
    }
}
