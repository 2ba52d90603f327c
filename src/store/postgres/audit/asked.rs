//! Audit entries about requests of devices, which wait in memory until a moment later one transaction
//! writes many of them: repeats into their records, all others into the chain. The same transaction
//! moves pending entries into the chain.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use super::{Line, LockedChain, repeats};
use crate::store::{
    Clock, Metrics, StoreError,
    audit::{Asked, AuditEntry, AuditEvent, reason},
    postgres::{
        counts,
        engine::{Engine, Transactions},
        failure::Failure,
        session::{Session, number, values},
    },
};

/// Maximum number of entries that wait in memory, about 4 MB.
const MOST: usize = 16_384;

/// Maximum number of entries that one transaction writes.
const AT_ONCE: usize = 512;

/// Time for which entries are gathered, and the pause after a failure.
const GATHER: Duration = Duration::from_millis(100);
const PAUSE: Duration = Duration::from_secs(1);

/// Writes the audit entries of requests, and moves pending entries into the chain.
#[derive(Clone)]
pub(in crate::store::postgres) struct Chainer(Arc<Shared>);

struct Shared {
    clock: Arc<Clock>,
    metrics: Arc<Metrics>,
    waiting: Mutex<Waiting>,
    /// Set while a task writes, or is about to.
    is_running: AtomicBool,
    /// Set if there may be something to write that the task has not seen.
    is_woken: AtomicBool,
}

#[derive(Default)]
struct Waiting {
    lines: VecDeque<String>,
    /// Number of repeats that were dropped since the last entry about that.
    dropped: u64,
}

impl Chainer {
    pub(in crate::store::postgres) fn new(clock: Arc<Clock>, metrics: Arc<Metrics>) -> Self {
        let (is_running, is_woken) = (AtomicBool::new(false), AtomicBool::new(false));
        Self(Arc::new(Shared { clock, metrics, waiting: Mutex::default(), is_running, is_woken }))
    }

    /// Adds an entry to those that wait. If there are too many, drops a reissue, and fails for any
    /// other entry.
    pub(in crate::store::postgres) fn push(&self, engine: &Engine, asked: Asked) -> Result<(), StoreError> {
        engine.may_write()?;
        {
            let mut waiting = self.waiting();
            if waiting.lines.len() >= MOST {
                if asked.event() == AuditEvent::Reissued {
                    waiting.dropped += 1;
                    self.0.metrics.repeats_dropped.fetch_add(1, Ordering::Relaxed);
                    return Ok(());
                }
                let database = engine.database();
                return Err(StoreError::Busy(format!(
                    "{database}: {MOST} audit entries are waiting already"
                )));
            }
            waiting.lines.push_back(asked.into_line());
        }
        self.wake(engine);
        Ok(())
    }

    /// Makes a task write soon, unless there is one. Called after each write that has added a pending
    /// entry.
    pub(in crate::store::postgres) fn wake(&self, engine: &Engine) {
        if engine.may_write().is_err() {
            return;
        }
        self.0.is_woken.store(true, Ordering::Release);
        if self.0.is_running.swap(true, Ordering::AcqRel) {
            return;
        }
        let chainer = self.clone();
        if !engine.spawn(async move |transactions| chainer.run(&transactions).await) {
            self.0.is_running.store(false, Ordering::Release);
        }
    }

    /// Writes until there is nothing more to write.
    async fn run(&self, transactions: &Transactions) {
        loop {
            transactions.pause(GATHER).await;
            self.0.is_woken.store(false, Ordering::Release);
            while let Err(error) = self.write_all(transactions).await {
                if transactions.is_ending() {
                    tracing::warn!(%error, "the last audit entries about requests of devices are lost");
                    return;
                }
                tracing::debug!(%error, "the audit log is written later");
                transactions.pause(PAUSE).await;
            }
            self.0.is_running.store(false, Ordering::Release);
            let is_over = !self.0.is_woken.load(Ordering::Acquire);
            // Whoever has woken this task since may have started another one.
            if is_over || self.0.is_running.swap(true, Ordering::AcqRel) {
                return;
            }
        }
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes all entries that wait. If that fails, the unwritten ones wait further.
    async fn write_all(&self, transactions: &Transactions) -> Result<(), StoreError> {
        loop {
            let (lines, dropped): (Vec<String>, u64) = {
                let mut waiting = self.waiting();
                let count = waiting.lines.len().min(AT_ONCE);
                (waiting.lines.drain(..count).collect(), std::mem::take(&mut waiting.dropped))
            };
            let now = self.0.clock.now();
            let about = (dropped > 0).then(|| AuditEntry {
                detail: Some(format!("{dropped} repeats, because too many entries were waiting")),
                ..AuditEntry::new(AuditEvent::Dropped, now)
            });
            let work = async |session: &Session| write(session, &lines, about.as_ref()).await;
            match transactions.run(&work).await {
                Ok(false) if lines.len() < AT_ONCE => return Ok(()),
                Ok(_) => {}
                Err(error) => {
                    let mut waiting = self.waiting();
                    waiting.dropped += dropped;
                    lines.into_iter().rev().for_each(|line| waiting.lines.push_front(line));
                    return Err(error);
                }
            }
        }
    }
}

/// Writes entries about requests, each as a record of repeats or into the chain. Also moves pending
/// entries into the chain, and changes of the numbers of devices into the numbers. Returns whether
/// entries may still be pending.
async fn write(session: &Session, lines: &[String], about: Option<&AuditEntry>) -> Result<bool, Failure> {
    let mut chain = LockedChain::extend(session).await?;
    let mut records: Vec<AuditEntry> = Vec::new();
    for line in lines {
        let entry: AuditEntry = serde_json::from_str(line).map_err(Failure::unexpected)?;
        if is_repeat(session, &entry, &chain).await? {
            entry.gather(&mut records);
        } else {
            put(session, &mut chain, &entry).await?;
        }
    }
    if let Some(about) = about {
        put(session, &mut chain, about).await?;
    }
    repeats::put(session, &records).await?;
    // Further changes of the numbers are moved with the next entries.
    counts::fold(session).await?;
    Ok(chain.is_behind())
}

async fn put(session: &Session, chain: &mut LockedChain, entry: &AuditEntry) -> Result<(), Failure> {
    let (device, line) = (entry.device.as_ref().map(|device| device.as_str()), entry.line());
    chain.put(session, &[Line { device, at: entry.at, event: entry.event.name(), line: &line }]).await
}

/// Returns whether an entry is about a request that changes nothing. The first refusal of a device of
/// the table for a reason is none, and is noted as the next entry of the chain.
async fn is_repeat(session: &Session, entry: &AuditEntry, chain: &LockedChain) -> Result<bool, Failure> {
    const KNOWN: &str = "SELECT seq FROM audit_refused WHERE deviceId = $1 AND reason = $2";
    const IS_IN_TABLE: &str = "SELECT 1 FROM device_table WHERE deviceId = $1";
    const NOTE: &str = "INSERT INTO audit_refused (deviceId, reason, seq) VALUES ($1, $2, $3) \
                        ON CONFLICT (deviceId, reason) DO UPDATE SET seq = excluded.seq";
    let Some(device) = &entry.device else { return Ok(false) };
    match entry.event {
        AuditEvent::Reissued => return Ok(true),
        AuditEvent::Refused => {}
        _ => return Ok(false),
    }
    let (device, reason) = (device.as_str(), reason(entry.detail.as_deref().unwrap_or_default()));
    let known = session.row(KNOWN, values![device, reason]).await?;
    if let Some(known) = known
        && number(&known, 0)? > chain.anchor.0
    {
        return Ok(true);
    }
    // A client that has a shared key can invent any number of device IDs. The refusals of such IDs must
    // not displace changes in the log.
    if !session.exists(IS_IN_TABLE, values![device]).await? {
        return Ok(true);
    }
    let seq = (chain.head.0 + 1).cast_signed();
    session.execute(NOTE, values![device, reason, seq]).await?;
    Ok(false)
}
