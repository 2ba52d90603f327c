//! A store in memory, for tests that run in virtual time. Data is durable as soon as it is
//! written, and outlives the simulated process that wrote it. The store keeps the contract that
//! `store/contract.rs` checks.

use std::{
    collections::{BTreeMap, HashMap},
    convert::identity,
    future::{pending, ready},
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicUsize, Ordering},
    },
};

use tokio::sync::Notify;

use crate::{
    device::{Certificate, DeviceId, Secret},
    store::{
        Actor, BatchId, Bulk, Claim, CloudState, Conflict, DeviceRow, DeviceState, ImportError, ImportReport,
        ImportRow, IndividualKey, Issue, JournalEntry, OpenBatch, OpenEntry, RegisteredDevice, Rejection,
        Sighting, Store, StoreError, StoreFuture, Totals, UnixSeconds,
        audit::{Asked, Asker, AuditEntry, AuditEvent},
        merge::{self, Columns, Merged, Unmerged},
        unix_now,
    },
};

#[derive(Clone, Default)]
struct Tables {
    devices: BTreeMap<DeviceId, DeviceRow>,
    /// Owner and key of each PSK identity.
    keys: HashMap<String, (DeviceId, Secret)>,
    journal: HashMap<DeviceId, OpenEntry>,
    batches: BTreeMap<BatchId, OpenBatch>,
    /// Number of batches opened so far.
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

    fn row(&mut self, id: &DeviceId) -> Result<&mut DeviceRow, StoreError> {
        let absent = || StoreError::Failed(format!("device {id} is not in the table"));
        self.devices.get_mut(id).ok_or_else(absent)
    }

    /// Changes a device as an operator does, and writes an audit entry. Returns whether the
    /// device exists.
    fn operate(
        &mut self,
        id: &DeviceId,
        event: AuditEvent,
        by: &Actor,
        change: impl FnOnce(&mut DeviceRow),
    ) -> bool {
        let found = self.devices.get_mut(id).map(change).is_some();
        if found {
            self.audit.push(AuditEntry { device: Some(id.clone()), ..by.entry(event) });
        }
        found
    }

    fn merge(&mut self, row: &ImportRow) -> Result<Merged, Conflict> {
        let known = self.devices.get(&row.device).cloned();
        let mut drops_key = false;
        let after = match &known {
            None => Some(merge::new_device(row)),
            Some(known) => merge::known_device(known, row)?.map(|change| {
                drops_key = change.drops_key;
                change.columns
            }),
        };
        let device_changed = after.is_some();
        if let Some(Columns { enrollment, product_key, device_name, device_secret, iot_id }) = after {
            let blank = || DeviceRow::imported(row.device.clone(), enrollment, product_key);
            let before = known.clone().unwrap_or_else(blank);
            let certificate = device_secret.zip(device_name).map(|(secret, name)| Certificate {
                product_key: product_key.to_owned(),
                device_name: name.to_owned(),
                device_secret: secret.clone(),
            });
            let merged = DeviceRow {
                enrollment: enrollment.to_owned(),
                product_key: product_key.to_owned(),
                device_name: device_name.map(str::to_owned),
                certificate,
                iot_id: iot_id.map(str::to_owned),
                refusal: None,
                ..before
            };
            self.devices.insert(row.device.clone(), merged);
        }
        if drops_key {
            self.keys.retain(|_, (owner, _)| *owner != row.device);
        }
        let key_changed = self.merge_key(row)?;
        Ok(Merged::of(known.is_none(), device_changed, key_changed))
    }

    fn merge_key(&mut self, row: &ImportRow) -> Result<bool, Conflict> {
        let Some((identity, psk)) = &row.key else {
            let has_key = self.keys.values().any(|(owner, _)| *owner == row.device);
            return merge::without_key(row, has_key).map(|()| false);
        };
        if let Some((owner, _)) = self.keys.get(identity) {
            merge::identity_of(owner.as_str(), row)?;
        }
        let key = (row.device.clone(), psk.clone());
        if self.keys.get(identity) == Some(&key) {
            return Ok(false);
        }
        self.keys.retain(|_, (owner, _)| *owner != row.device);
        self.keys.insert(identity.clone(), key);
        Ok(true)
    }
}

/// Number of steps after which a simulated process dies. It may die before each step, and after
/// each step that has an effect.
pub(crate) struct Fuse {
    left: AtomicUsize,
    burnt: Notify,
}

impl Fuse {
    pub(crate) fn new(steps: usize) -> Self {
        Self { left: AtomicUsize::new(steps), burnt: Notify::new() }
    }

    /// Counts a step. Returns whether the process is still alive.
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

    /// Counts a step. Does not return if the process has died.
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

/// Access of one simulated process to the tables.
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

    /// Sets the time that new journal entries get from now on.
    pub(crate) fn set_journal_time(&self, now: UnixSeconds) {
        self.tables().now = now;
    }

    /// Returns access to the same tables for a process that dies when its fuse has burnt.
    pub(crate) fn in_process(&self, fuse: Arc<Fuse>) -> Self {
        Self { tables: self.tables.clone(), fuse }
    }

    /// Kills the process that uses this store: its later calls have no effect and never return.
    /// From then on, this value belongs to the next process, which finds the tables as they are.
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

impl Store for Memory {
    fn device<'a>(&'a self, id: &'a DeviceId) -> StoreFuture<'a, Option<DeviceRow>> {
        self.answer(|tables| Ok(tables.devices.get(id).cloned()))
    }

    fn enrollment_of<'a>(&'a self, id: &'a DeviceId) -> StoreFuture<'a, Option<String>> {
        self.answer(|tables| Ok(tables.devices.get(id).map(|row| row.enrollment.clone())))
    }

    fn individual_key<'a>(&'a self, identity: &'a str) -> StoreFuture<'a, Option<IndividualKey>> {
        self.answer(|tables| {
            let Some((device, psk)) = tables.keys.get(identity).cloned() else { return Ok(None) };
            let enrollment = tables.row(&device)?.enrollment.clone();
            Ok(Some(IndividualKey { device, enrollment, psk }))
        })
    }

    fn record_issue<'a>(&'a self, id: &'a DeviceId, at: UnixSeconds, asker: Asker) -> StoreFuture<'a, Issue> {
        self.answer(|tables| {
            let row = tables.row(id)?;
            let is_first = row.first_issued.is_none();
            let first = *row.first_issued.get_or_insert(at);
            let certificate = format!("{}/{}", row.product_key, row.device_name.clone().unwrap_or_default());
            if is_first {
                tables.audit.push(asker.entry(AuditEvent::Issued, at, id.clone(), certificate));
            }
            Ok(Issue { first, is_first })
        })
    }

    fn audit(&self, asked: Asked) {
        self.tables().audit.extend(serde_json::from_str::<AuditEntry>(&asked.into_line()));
    }

    fn history<'a>(&'a self, id: &'a DeviceId, limit: usize) -> StoreFuture<'a, Vec<AuditEntry>> {
        self.answer(|tables| {
            let about = tables.audit.iter().enumerate().rev();
            let about = about.filter(|(_, entry)| entry.device.as_ref() == Some(id)).take(limit);
            Ok(about.map(|(index, entry)| AuditEntry { seq: index as u64 + 1, ..entry.clone() }).collect())
        })
    }

    fn open_journal<'a>(&'a self, entry: &'a JournalEntry) -> StoreFuture<'a, Claim> {
        self.answer(|tables| {
            tables.row(&entry.device)?;
            Ok(tables.open(entry, None))
        })
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
            entries.sort_by(|one, other| {
                (one.since, &one.entry.device).cmp(&(other.since, &other.entry.device))
            });
            Ok(entries)
        })
    }

    fn store_registration<'a>(
        &'a self,
        id: &'a DeviceId,
        registration: &'a RegisteredDevice,
    ) -> StoreFuture<'a, ()> {
        self.answer(|tables| {
            let RegisteredDevice { certificate, iot_id, registered } = registration.clone();
            let row = tables.row(id)?;
            let is_new = row.certificate.is_none();
            if row.certificate.as_ref().is_some_and(|known| *known != certificate) {
                return Err(StoreError::Failed(format!("device {id} already has another certificate")));
            }
            row.iot_id = row.iot_id.take().or(iot_id);
            row.registered = row.registered.or(Some(registered));
            row.refusal = None;
            row.product_key.clone_from(&certificate.product_key);
            row.device_name = Some(certificate.device_name.clone());
            let detail = format!("{}/{}", certificate.product_key, certificate.device_name);
            row.certificate = Some(certificate);
            tables.journal.remove(id);
            if is_new {
                let entry = AuditEntry::new(AuditEvent::Registered, unix_now());
                tables.audit.push(AuditEntry { device: Some(id.clone()), detail: Some(detail), ..entry });
            }
            Ok(())
        })
    }

    fn store_refusal<'a>(&'a self, id: &'a DeviceId, reason: &'a str) -> StoreFuture<'a, ()> {
        self.answer(|tables| {
            tables.row(id)?.refusal = Some(reason.to_owned());
            tables.journal.remove(id);
            Ok(())
        })
    }

    fn store_sighting<'a>(&'a self, id: &'a DeviceId, sighting: Sighting) -> StoreFuture<'a, ()> {
        self.answer(|tables| {
            if let Some(row) = tables.devices.get_mut(id).filter(|row| row.certificate.is_some()) {
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
            let rows = tables.devices.values().filter(|row| after.is_none_or(|after| row.id > *after));
            Ok(rows.take(limit).cloned().collect())
        })
    }

    fn set_state<'a>(&'a self, id: &'a DeviceId, state: DeviceState, by: &'a Actor) -> StoreFuture<'a, bool> {
        let event = match state {
            DeviceState::Enabled => AuditEvent::Enabled,
            DeviceState::Disabled => AuditEvent::Disabled,
        };
        self.answer(|tables| Ok(tables.operate(id, event, by, |row| row.state = state)))
    }

    fn reset<'a>(&'a self, id: &'a DeviceId, by: &'a Actor) -> StoreFuture<'a, bool> {
        let reset = |row: &mut DeviceRow| {
            (row.first_issued, row.refusal) = (None, None);
            if row.cloud_state == Some(CloudState::Deleted) {
                (row.certificate, row.iot_id, row.cloud_state) = (None, None, None);
                (row.registered, row.activated) = (None, None);
            }
        };
        self.answer(|tables| Ok(tables.operate(id, AuditEvent::Reset, by, reset)))
    }

    fn delete<'a>(&'a self, id: &'a DeviceId, by: &'a Actor) -> StoreFuture<'a, bool> {
        self.answer(|tables| {
            let found = tables.operate(id, AuditEvent::Deleted, by, |_| ());
            tables.devices.remove(id);
            tables.journal.remove(id);
            tables.keys.retain(|_, (owner, _)| owner != id);
            Ok(found)
        })
    }
}

impl Bulk for Memory {
    fn import<E>(
        &self,
        by: &Actor,
        file: &str,
        rows: impl Iterator<Item = Result<ImportRow, E>>,
        dry_run: bool,
        reject: impl FnMut(u64, Rejection<E>),
    ) -> Result<ImportReport, ImportError> {
        let mut tables = self.tables().clone();
        let merge = |row: ImportRow| tables.merge(&row).map_err(Unmerged::Conflict);
        let report = merge::all_rows(rows, merge, identity, reject)?;
        if !dry_run {
            if report.added + report.changed > 0 {
                let detail = Some(format!("{file}: {report:?}"));
                tables.audit.push(AuditEntry { detail, ..by.entry(AuditEvent::Imported) });
            }
            *self.tables() = tables;
        }
        Ok(report)
    }

    fn export<E: From<StoreError>>(
        &self,
        mut each: impl FnMut(DeviceRow, Option<(String, Secret)>) -> Result<(), E>,
    ) -> Result<(), E> {
        let tables = self.tables().clone();
        tables.devices.into_values().try_for_each(|row| {
            let key = tables.keys.iter().find(|(_, (owner, _))| *owner == row.id);
            let key = key.map(|(identity, (_, psk))| (identity.clone(), psk.clone()));
            each(row, key)
        })
    }

    fn count(&self) -> Result<u64, StoreError> {
        Ok(self.tables().devices.len() as u64)
    }

    fn totals(&self) -> Result<Vec<Totals>, StoreError> {
        let mut totals: BTreeMap<String, Totals> = BTreeMap::new();
        for row in self.tables().devices.values() {
            let new = || Totals { enrollment: row.enrollment.clone(), ..Totals::default() };
            let of = totals.entry(row.enrollment.clone()).or_insert_with(new);
            of.devices += 1;
            of.registered += u64::from(row.certificate.is_some());
            of.issued += u64::from(row.first_issued.is_some());
            of.activated += u64::from(row.activated.is_some());
            of.refused += u64::from(row.refusal.is_some());
            of.disabled += u64::from(row.state == DeviceState::Disabled);
        }
        Ok(totals.into_values().collect())
    }

    fn count_unregistered(&self, enrollment: Option<&str>) -> Result<u64, StoreError> {
        let tables = self.tables();
        let unregistered = tables.devices.values().filter(|row| {
            row.certificate.is_none()
                && row.refusal.is_none()
                && row.state == DeviceState::Enabled
                && enrollment.is_none_or(|enrollment| row.enrollment == enrollment)
        });
        Ok(unregistered.count() as u64)
    }
}
