//! A store in memory, for tests that run in virtual time: what it is told is
//! durable at once, and outlives whoever told it.

use std::{
    collections::{BTreeMap, HashMap},
    future::{pending, ready},
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicUsize, Ordering},
    },
};

use tokio::sync::Notify;

use super::{
    audit::{AuditEntry, AuditEvent},
    *,
};

#[derive(Default)]
struct Tables {
    devices: HashMap<DeviceId, DeviceRow>,
    journal: HashMap<DeviceId, OpenEntry>,
    batches: BTreeMap<BatchId, OpenBatch>,
    /// Batches that there were.
    batch_count: BatchId,
    audit: Vec<AuditEntry>,
    now: UnixSeconds,
}

impl Tables {
    fn open(&mut self, entry: &JournalEntry, batch: Option<BatchId>) -> Claim {
        let earlier = self.journal.get(&entry.device).filter(|known| known.entry == *entry);
        let (earlier, since) = (earlier.is_some(), earlier.map_or(self.now, |known| known.since));
        self.journal.insert(entry.device.clone(), OpenEntry { entry: entry.clone(), since, batch });
        Claim { since, earlier }
    }
}

/// How many steps a process has left to live: before each and after each that takes
/// effect, it may die.
pub(crate) struct Fuse {
    left: AtomicUsize,
    burnt: Notify,
}

impl Fuse {
    pub(crate) fn new(steps: usize) -> Self {
        Self { left: AtomicUsize::new(steps), burnt: Notify::new() }
    }

    /// Whether the process lives on.
    fn goes_on(&self) -> bool {
        let burn = |left: usize| match left {
            usize::MAX => Some(left),
            left => Some(left.saturating_sub(1)),
        };
        let before = self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, burn).unwrap_or(0);
        if before <= 1 {
            self.burnt.notify_one();
        }
        before > 1
    }

    /// Never returns to a process that has died.
    pub(crate) async fn step(&self) {
        if !self.goes_on() {
            pending::<()>().await;
        }
    }

    /// Returns when the process has died.
    pub(crate) async fn burnt(&self) {
        self.burnt.notified().await;
    }
}

/// One process's hold of the tables.
#[derive(Clone)]
pub(crate) struct Memory {
    tables: Arc<Mutex<Tables>>,
    fuse: Arc<Fuse>,
}

impl Default for Memory {
    fn default() -> Self {
        Self { tables: Arc::default(), fuse: Arc::new(Fuse::new(usize::MAX)) }
    }
}

impl Memory {
    pub(crate) fn insert(&self, row: DeviceRow) {
        self.tables().devices.insert(row.id.clone(), row);
    }

    pub(crate) fn row(&self, id: &DeviceId) -> Option<DeviceRow> {
        self.tables().devices.get(id).cloned()
    }

    /// When journal entries are opened from now on.
    pub(crate) fn set_journal_time(&self, now: UnixSeconds) {
        self.tables().now = now;
    }

    /// The same tables, held by a process that dies when its fuse has burnt.
    pub(crate) fn in_process(&self, fuse: Arc<Fuse>) -> Self {
        Self { tables: self.tables.clone(), fuse }
    }

    /// Ends the process that has it: nothing of it is carried out any more. The
    /// next process has the tables as they are.
    pub(crate) fn kill(&mut self) {
        self.fuse.left.store(0, Ordering::Relaxed);
        self.fuse = Arc::new(Fuse::new(usize::MAX));
    }

    fn tables(&self) -> MutexGuard<'_, Tables> {
        self.tables.lock().unwrap()
    }

    fn answer<'a, T: Send + 'a>(
        &self,
        work: impl FnOnce(&mut Tables) -> Result<T, StoreError>,
    ) -> StoreFuture<'a, T> {
        if !self.fuse.goes_on() {
            return Box::pin(pending());
        }
        let answer = work(&mut self.tables());
        if self.fuse.goes_on() { Box::pin(ready(answer)) } else { Box::pin(pending()) }
    }
}

fn absent() -> StoreError {
    StoreError::Failed("not in the table".into())
}

impl Store for Memory {
    fn device<'a>(&'a self, id: &'a DeviceId) -> StoreFuture<'a, Option<DeviceRow>> {
        self.answer(|tables| Ok(tables.devices.get(id).cloned()))
    }

    fn enrollment_of<'a>(&'a self, id: &'a DeviceId) -> StoreFuture<'a, Option<String>> {
        self.answer(|tables| Ok(tables.devices.get(id).map(|row| row.enrollment.clone())))
    }

    fn individual_key<'a>(&'a self, _: &'a str) -> StoreFuture<'a, Option<IndividualKey>> {
        self.answer(|_| Ok(None))
    }

    fn record_issue<'a>(&'a self, id: &'a DeviceId, at: UnixSeconds, asker: Asker) -> StoreFuture<'a, Issue> {
        self.answer(|tables| {
            let row = tables.devices.get_mut(id).ok_or_else(absent)?;
            let is_first = row.first_issued.is_none();
            let first = *row.first_issued.get_or_insert(at);
            if is_first {
                tables.audit.push(asker.entry(AuditEvent::Issued, at, id.clone(), String::new()));
            }
            Ok(Issue { first, is_first })
        })
    }

    fn audit(&self, asked: Asked) {
        self.tables().audit.extend(serde_json::from_str::<AuditEntry>(&asked.into_line()));
    }

    fn history<'a>(&'a self, id: &'a DeviceId, limit: usize) -> StoreFuture<'a, Vec<AuditEntry>> {
        self.answer(|tables| {
            let newest = tables.audit.iter().rev();
            Ok(newest.filter(|entry| entry.device.as_ref() == Some(id)).take(limit).cloned().collect())
        })
    }

    fn open_journal<'a>(&'a self, entry: &'a JournalEntry) -> StoreFuture<'a, Claim> {
        self.answer(|tables| Ok(tables.open(entry, None)))
    }

    fn open_batch<'a>(
        &'a self,
        product_key: &'a str,
        entries: &'a [JournalEntry],
    ) -> StoreFuture<'a, (BatchId, Vec<Option<Claim>>)> {
        self.answer(|tables| {
            tables.batch_count += 1;
            let id = tables.batch_count;
            tables.batches.insert(id, OpenBatch { id, product_key: product_key.into(), apply_id: None });
            let claims = entries
                .iter()
                .map(|entry| tables.devices.contains_key(&entry.device).then(|| tables.open(entry, Some(id))))
                .collect();
            Ok((id, claims))
        })
    }

    fn set_apply_id<'a>(&'a self, batch: &'a OpenBatch, apply_id: u64) -> StoreFuture<'a, ()> {
        self.answer(|tables| {
            tables.batches.insert(batch.id, OpenBatch { apply_id: Some(apply_id), ..batch.clone() });
            Ok(())
        })
    }

    fn close_batch(&self, batch: BatchId) -> StoreFuture<'_, ()> {
        self.answer(|tables| {
            tables.batches.remove(&batch);
            tables.journal.values_mut().filter(|open| open.batch == Some(batch)).for_each(|open| {
                open.batch = None;
            });
            Ok(())
        })
    }

    fn open_batches(&self) -> StoreFuture<'_, Vec<OpenBatch>> {
        self.answer(|tables| Ok(tables.batches.values().cloned().collect()))
    }

    fn open_journal_entries(&self) -> StoreFuture<'_, Vec<OpenEntry>> {
        self.answer(|tables| {
            let mut entries: Vec<_> = tables.journal.values().cloned().collect();
            entries.sort_by(|one, other| one.entry.device.cmp(&other.entry.device));
            Ok(entries)
        })
    }

    fn store_registration<'a>(
        &'a self,
        id: &'a DeviceId,
        registration: &'a Registration,
    ) -> StoreFuture<'a, ()> {
        self.answer(|tables| {
            let row = tables.devices.get_mut(id).ok_or_else(absent)?;
            match &row.certificate {
                Some(known) if *known != registration.certificate => {
                    return Err(StoreError::Failed("another certificate is there".into()));
                }
                _ => row.certificate = Some(registration.certificate.clone()),
            }
            tables.journal.remove(id);
            Ok(())
        })
    }

    fn store_refusal<'a>(&'a self, id: &'a DeviceId, reason: &'a str) -> StoreFuture<'a, ()> {
        self.answer(|tables| {
            tables.devices.get_mut(id).ok_or_else(absent)?.refusal = Some(reason.to_owned());
            tables.journal.remove(id);
            Ok(())
        })
    }

    fn store_sighting<'a>(&'a self, id: &'a DeviceId, sighting: Sighting) -> StoreFuture<'a, ()> {
        self.answer(|tables| {
            if let Some(row) = tables.devices.get_mut(id) {
                row.activated = row.activated.or(sighting.activated);
                row.registered = sighting.registered.or(row.registered);
                row.cloud_state = sighting.state;
            }
            Ok(())
        })
    }

    fn rows_after<'a>(
        &'a self,
        after: Option<&'a DeviceId>,
        limit: usize,
    ) -> StoreFuture<'a, Vec<DeviceRow>> {
        self.answer(|tables| {
            let mut rows: Vec<_> = tables
                .devices
                .values()
                .filter(|row| after.is_none_or(|after| row.id > *after))
                .cloned()
                .collect();
            rows.sort_by(|one, other| one.id.cmp(&other.id));
            rows.truncate(limit);
            Ok(rows)
        })
    }

    fn set_state<'a>(&'a self, id: &'a DeviceId, state: DeviceState, _: &'a Actor) -> StoreFuture<'a, bool> {
        self.answer(|tables| Ok(tables.devices.get_mut(id).map(|row| row.state = state).is_some()))
    }

    fn reset<'a>(&'a self, id: &'a DeviceId, _: &'a Actor) -> StoreFuture<'a, bool> {
        self.answer(|tables| {
            let row = tables.devices.get_mut(id);
            Ok(row.map(|row| (row.first_issued, row.refusal) = (None, None)).is_some())
        })
    }

    fn delete<'a>(&'a self, id: &'a DeviceId, _: &'a Actor) -> StoreFuture<'a, bool> {
        self.answer(|tables| Ok(tables.devices.remove(id).is_some()))
    }
}
