//! A store in memory, for tests that run in virtual time. Data outlives the simulated process that
//! wrote it. The store passes the contract tests in `store/contract.rs`.

mod bulk;
mod claims;
mod key_use;
mod orders;
mod roll;
mod servers;
mod shelf;
mod sightings;
mod waiting;

use std::{
    cmp::Reverse,
    collections::{BTreeMap, HashMap, HashSet},
    future::{pending, ready},
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use arc_swap::ArcSwap;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use tokio::{sync::Notify, time::Instant};

use crate::{
    device::{Certificate, DeviceId, Secret},
    seal,
    store::{
        Actor, Bulk, Clock, CloudState, DeviceRow, DeviceState, ImportJob, ImportReport, ImportRow,
        IndividualKey, Issue, JournalEntry, KeyLookup, RegisteredDevice, Store, StoreError, StoreFuture,
        UnixSeconds,
        audit::{
            Asked, Asker, AuditEntry, AuditEvent, AuditLog, Chain, Counts, EachEntry, Filter, Keep, Link,
            link, merged, reason,
        },
        claim::{ClaimTime, Owner, Settlement, new_id},
        key_use::KeyUse,
        order::{Order, OrderNumber, PlainChange},
        seal_step::SealStep,
        sealed::{SecretColumn, StoredSecret, StoredSecrets, UnderKey},
        server::{ServerId, ServerView},
        shelf::{ItemKey, ItemKind},
        undo::{ImportId, ImportRecord},
        unix_now,
    },
};

#[derive(Clone, Default)]
struct Tables {
    devices: BTreeMap<DeviceId, DeviceRow>,
    /// Device and keys of each PSK identity.
    keys: HashMap<String, (DeviceId, roll::Keys)>,
    journal: claims::Journal,
    /// Orders for IoT Platform, and the number of orders placed so far.
    orders: BTreeMap<OrderNumber, Order>,
    ordered: OrderNumber,
    waiting: waiting::List,
    /// Rotated devices that keep their places, with their enrollments.
    kept: HashMap<DeviceId, String>,
    /// Time of each pace's next turn, in microseconds since 1970.
    paces: HashMap<String, i64>,
    /// For each device, the number of the request that was the first to get the device's
    /// certificate.
    issues: HashMap<DeviceId, i64>,
    /// Uses of pre-shared keys, by enrollment.
    key_uses: BTreeMap<String, Vec<KeyUse>>,
    servers: BTreeMap<ServerId, ServerView>,
    shelf: BTreeMap<(ItemKind, ItemKey), shelf::Kept>,
    /// Number of steps that have stored sightings.
    sighting_steps: usize,
    audit: Vec<AuditEntry>,
    /// Records of repeats, oldest first.
    repeats: Vec<AuditEntry>,
    /// Refusals in `audit`: device, reason, and number.
    refused: HashMap<(DeviceId, String), u64>,
    /// Imports, oldest first, each with the former values of the rows that it changed.
    imports: Vec<(ImportRecord, bulk::Before)>,
    /// Numbers of all imports.
    numbers: HashSet<ImportId>,
    /// The import that each row comes from. Has no entry for a device that has since been
    /// registered, issued, disabled, enabled or deleted.
    labels: HashMap<DeviceId, bulk::Label>,
    /// Number of pruned entries, and hash of the last pruned entry. Each entry is a block of its
    /// own.
    pruned: (u64, Link),
}

impl Tables {
    /// Returns the number of each entry of the audit log, the entry, and its hash.
    fn chain(&self) -> impl Iterator<Item = (u64, &AuditEntry, Link)> {
        let (pruned, mut hash) = self.pruned;
        (pruned + 1..).zip(&self.audit).map(move |(seq, entry)| {
            hash = link(&hash, seq, &entry.line());
            (seq, entry, hash)
        })
    }

    /// Returns the number of expired entries.
    fn expired(&self, keep: Keep, now: UnixSeconds) -> usize {
        let surplus = |rows: u64| (self.audit.len() as u64 + 1).saturating_sub(rows);
        let surplus = keep.rows.filter(|rows| self.audit.len() as u64 > *rows).map_or(0, surplus);
        let oldest = keep.days.map_or(i64::MIN, |days| now - i64::from(days) * 86_400);
        let old = self.audit.iter().take_while(|entry| entry.at < oldest).count();
        old.max(usize::try_from(surplus).unwrap_or(usize::MAX))
    }

    /// Returns the number of expired records of repeats.
    fn expired_repeats(&self, keep: Keep, now: UnixSeconds) -> usize {
        let surplus = keep.repeats.map_or(0, |most| (self.repeats.len() as u64).saturating_sub(most));
        let oldest = keep.days.map_or(i64::MIN, |days| now - i64::from(days) * 86_400);
        let old = self.repeats.iter().take_while(|record| record.at < oldest).count();
        old.max(usize::try_from(surplus).unwrap_or(usize::MAX))
    }

    /// Adds an audit entry about a request. A reissue, or a refusal for the same reason as before, goes
    /// to the repeats; any other entry goes to the hash chain.
    fn note_request(&mut self, entry: AuditEntry) {
        let is_repeat = match (entry.event, &entry.device) {
            (AuditEvent::Reissued, _) => true,
            (AuditEvent::Refused, Some(device)) => {
                let reason = reason(entry.detail.as_deref().unwrap_or_default()).to_owned();
                let seq = self.pruned.0 + self.audit.len() as u64 + 1;
                let known = self.refused.get(&(device.clone(), reason.clone()));
                let is_known = known.is_some_and(|seq| *seq > self.pruned.0);
                let is_repeat = is_known || !self.devices.contains_key(device);
                if !is_repeat {
                    self.refused.insert((device.clone(), reason), seq);
                }
                is_repeat
            }
            _ => false,
        };
        if is_repeat { entry.gather(&mut self.repeats) } else { self.audit.push(entry) }
    }

    fn row(&mut self, id: &DeviceId) -> Result<&mut DeviceRow, StoreError> {
        let absent = || StoreError::Failed(format!("device {id} is not in the table"));
        self.devices.get_mut(id).ok_or_else(absent)
    }

    /// Returns whether any device has a second key.
    fn are_rolling(&self) -> bool {
        self.keys.values().any(|(_, keys)| keys.next.is_some())
    }

    /// Removes a device with all that belongs to it.
    fn forget(&mut self, id: &DeviceId) {
        self.devices.remove(id);
        self.journal.forget(id);
        self.kept.remove(id);
        self.orders.retain(|_, order| order.device != *id);
        self.issues.remove(id);
        self.labels.remove(id);
        self.keys.retain(|_, (owner, _)| owner != id);
    }

    /// Changes a device on behalf of an operator, and writes an audit entry. Returns whether the
    /// device exists.
    fn operate(
        &mut self,
        id: &DeviceId,
        event: AuditEvent,
        by: &Actor,
        now: UnixSeconds,
        change: impl FnOnce(&mut DeviceRow),
    ) -> bool {
        let found = self.devices.get_mut(id).map(change).is_some();
        if found {
            self.refused.retain(|(device, _), _| device != id);
            self.audit.push(AuditEntry { device: Some(id.clone()), ..by.entry(event, now) });
        }
        found
    }
}

/// Counts down the steps after which a simulated process dies. Each operation of the store and each
/// call to the cloud has one step before it and one step after it.
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

    /// Returns whether the process has died.
    pub(crate) fn is_burnt(&self) -> bool {
        self.left.load(Ordering::Relaxed) == 0
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
    clock: Arc<Clock>,
    /// Maximum numbers of places for the claims of this handle.
    max_places: Arc<ArcSwap<HashMap<String, u64>>>,
    /// Instant and system time at which the tables were made. From then on, time is virtual.
    epoch: (Instant, UnixSeconds),
    /// Number of answers in a thousand that are lost, and the random generator that chooses them.
    lossy: Option<Arc<Mutex<(StdRng, u32)>>>,
    /// Set while every operation fails because the tables are busy.
    busy: Arc<AtomicBool>,
}

impl Default for Memory {
    fn default() -> Self {
        Self {
            tables: Arc::default(),
            fuse: Arc::new(Fuse::new(usize::MAX)),
            clock: Arc::default(),
            max_places: Arc::default(),
            epoch: (Instant::now(), unix_now()),
            lossy: None,
            busy: Arc::default(),
        }
    }
}

impl Memory {
    pub(crate) fn insert(&self, row: DeviceRow) {
        self.tables().devices.insert(row.id.clone(), row);
    }

    pub(crate) fn row(&self, id: &DeviceId) -> Option<DeviceRow> {
        self.tables().devices.get(id).cloned()
    }

    /// Returns the number of steps that have stored sightings.
    pub(crate) fn sighting_steps(&self) -> usize {
        self.tables().sighting_steps
    }

    /// Loses `of_a_thousand` of a thousand answers from now on. The operations are still carried
    /// out.
    pub(crate) fn lose_answers(&mut self, seed: u64, of_a_thousand: u32) {
        self.lossy = Some(Arc::new(Mutex::new((StdRng::seed_from_u64(seed), of_a_thousand))));
    }

    /// Makes all operations of all processes fail, or lets them succeed again.
    pub(crate) fn set_busy(&self, busy: bool) {
        self.busy.store(busy, Ordering::Relaxed);
    }

    fn is_lost(&self) -> bool {
        let Some(lossy) = &self.lossy else { return false };
        let (random, of_a_thousand) = &mut *lossy.lock().unwrap();
        random.random_range(0..1000) < *of_a_thousand
    }

    /// Returns the clock of this handle.
    pub(crate) fn clock(&self) -> &Clock {
        &self.clock
    }

    /// Returns access to the same tables for another process, which dies when `fuse` has no steps
    /// left.
    pub(crate) fn in_process(&self, fuse: Arc<Fuse>) -> Self {
        Self {
            tables: self.tables.clone(),
            fuse,
            clock: Arc::default(),
            max_places: Arc::default(),
            epoch: self.epoch,
            lossy: None,
            busy: self.busy.clone(),
        }
    }

    /// Kills the process that uses this store. The calls of that process have no further effect and
    /// never return. After that, this value serves the next process, which finds the same tables.
    pub(crate) fn kill(&mut self) {
        self.fuse.left.store(0, Ordering::Relaxed);
        self.fuse = Arc::new(Fuse::new(usize::MAX));
    }

    /// Returns the time by this handle's clock.
    fn now(&self) -> UnixSeconds {
        let (start, unix) = self.epoch;
        unix + start.elapsed().as_secs() as i64 + self.clock.ahead()
    }

    fn tables(&self) -> MutexGuard<'_, Tables> {
        self.tables.lock().unwrap()
    }

    fn answer<'a, T: Send + 'a>(
        &self,
        work: impl FnOnce(&mut Tables, UnixSeconds) -> Result<T, StoreError>,
    ) -> StoreFuture<'a, T> {
        if !self.fuse.goes_on() {
            return Box::pin(pending());
        }
        if self.busy.load(Ordering::Relaxed) {
            return Box::pin(ready(Err(StoreError::Busy("the disk is full".into()))));
        }
        let mut answer = work(&mut self.tables(), self.now());
        if answer.is_ok() && self.is_lost() {
            answer = Err(StoreError::Unknown("the answer is lost".into()));
        }
        if self.fuse.goes_on() { Box::pin(ready(answer)) } else { Box::pin(pending()) }
    }
}

impl Store for Memory {
    fn device<'a>(&'a self, id: &'a DeviceId) -> StoreFuture<'a, Option<DeviceRow>> {
        self.answer(|tables, _| Ok(tables.devices.get(id).cloned()))
    }

    fn spelled<'a>(&'a self, mac: &'a DeviceId) -> StoreFuture<'a, Option<DeviceId>> {
        self.answer(|tables, _| Ok(tables.spelled(mac)))
    }

    fn enrollment_of<'a>(&'a self, id: &'a DeviceId) -> StoreFuture<'a, Option<String>> {
        self.answer(|tables, _| Ok(tables.devices.get(id).map(|row| row.enrollment.clone())))
    }

    fn individual_key<'a>(&'a self, identity: &'a str) -> StoreFuture<'a, KeyLookup> {
        self.answer(|tables, _| {
            let are_rolling = tables.are_rolling();
            let Some((device, keys)) = tables.keys.get(identity).cloned() else {
                return Ok(KeyLookup { found: None, are_rolling });
            };
            let enrollment = tables.row(&device)?.enrollment.clone();
            let (next, roll) = keys.next.unzip();
            let next_since = roll.map(|roll| roll.since);
            let found = Some(IndividualKey { device, enrollment, psk: keys.psk, next, next_since });
            Ok(KeyLookup { found, are_rolling })
        })
    }

    fn record_issue<'a>(
        &'a self,
        id: &'a DeviceId,
        certificate: &'a Certificate,
        issue_id: i64,
        asker: Asker,
    ) -> StoreFuture<'a, Issue> {
        self.answer(|tables, now| {
            let may_have_it = |row: &&mut DeviceRow| {
                let Certificate { product_key, device_name, .. } = certificate;
                row.state == DeviceState::Enabled
                    && row.enrollment == asker.enrollment
                    && row.certificate.as_ref().is_some_and(|stored| {
                        stored.product_key == *product_key && stored.device_name == *device_name
                    })
            };
            let Some(row) = tables.devices.get_mut(id).filter(may_have_it) else {
                return Err(StoreError::Conflict(format!("device {id} was changed")));
            };
            if let Some(first) = row.first_issued {
                return Ok(Issue { first, is_first: tables.issues.get(id) == Some(&issue_id) });
            }
            row.first_issued = Some(now);
            tables.touch(id);
            tables.issues.insert(id.clone(), issue_id);
            let detail = format!("{}/{}", certificate.product_key, certificate.device_name);
            tables.audit.push(asker.entry(AuditEvent::Issued, now, id.clone(), detail));
            Ok(Issue { first: now, is_first: true })
        })
    }

    fn audit(&self, asked: Asked) -> Result<(), StoreError> {
        let entry = serde_json::from_str(&asked.into_line());
        self.tables().note_request(entry.map_err(|error| StoreError::Failed(error.to_string()))?);
        Ok(())
    }

    fn history<'a>(&'a self, id: &'a DeviceId, limit: usize) -> StoreFuture<'a, Vec<AuditEntry>> {
        self.answer(|tables, _| {
            let about = tables.audit.iter().enumerate().rev();
            let about = about.filter(|(_, entry)| entry.device.as_ref() == Some(id));
            let first = tables.pruned.0 + 1;
            let entries = about
                .map(|(index, entry)| AuditEntry { seq: first + index as u64, ..entry.clone() })
                .collect();
            let records = tables.repeats.iter().filter(|record| record.device.as_ref() == Some(id));
            let mut records: Vec<AuditEntry> = records.cloned().collect();
            records.sort_by_key(|record| Reverse(record.at));
            Ok(merged(entries, records, limit))
        })
    }

    fn rows_after<'a>(
        &'a self,
        after: Option<&'a DeviceId>,
        limit: usize,
    ) -> StoreFuture<'a, Vec<DeviceRow>> {
        self.answer(|tables, _| {
            let rows = tables.devices.values().filter(|row| after.is_none_or(|after| row.id > *after));
            Ok(rows.take(limit).cloned().collect())
        })
    }

    fn set_state<'a>(&'a self, id: &'a DeviceId, state: DeviceState, by: &'a Actor) -> StoreFuture<'a, bool> {
        let event = match state {
            DeviceState::Enabled => AuditEvent::Enabled,
            DeviceState::Disabled => AuditEvent::Disabled,
        };
        self.answer(|tables, now| {
            tables.permit(id, state.into(), by, now)?;
            tables.touch(id);
            Ok(tables.operate(id, event, by, now, |row| row.state = state))
        })
    }

    fn reset<'a>(&'a self, id: &'a DeviceId, by: &'a Actor) -> StoreFuture<'a, bool> {
        let reset = |row: &mut DeviceRow| {
            (row.first_issued, row.refusal) = (None, None);
            if row.cloud_state == Some(CloudState::Deleted) {
                (row.certificate, row.iot_id, row.cloud_state) = (None, None, None);
                (row.registered, row.activated) = (None, None);
            }
        };
        self.answer(|tables, now| {
            tables.issues.remove(id);
            Ok(tables.operate(id, AuditEvent::Reset, by, now, reset))
        })
    }

    fn clear_refusal<'a>(
        &'a self,
        id: &'a DeviceId,
        refusal: &'a str,
        by: &'a Actor,
    ) -> StoreFuture<'a, bool> {
        self.answer(|tables, now| {
            let is_it = |row: &DeviceRow| row.refusal.as_deref() == Some(refusal);
            let is_refused = tables.devices.get(id).is_some_and(is_it);
            Ok(is_refused && tables.operate(id, AuditEvent::Reset, by, now, |row| row.refusal = None))
        })
    }

    fn now(&self) -> UnixSeconds {
        Self::now(self)
    }

    fn set_clock_ahead(&self, seconds: i64) {
        self.clock.set_ahead(seconds);
    }

    fn delete<'a>(&'a self, id: &'a DeviceId, by: &'a Actor) -> StoreFuture<'a, bool> {
        self.answer(|tables, now| {
            tables.permit(id, PlainChange::Delete, by, now)?;
            let found = tables.operate(id, AuditEvent::Deleted, by, now, |_| ());
            tables.forget(id);
            Ok(found)
        })
    }
}

impl AuditLog for Memory {
    fn has_expired(&self, keep: Keep) -> StoreFuture<'_, bool> {
        self.answer(|tables, now| Ok(tables.expired(keep, now) + tables.expired_repeats(keep, now) > 0))
    }

    fn prune(&self, keep: Keep) -> StoreFuture<'_, Counts> {
        self.answer(|tables, now| {
            let repeats = tables.expired_repeats(keep, now);
            tables.repeats.drain(..repeats);
            let expired = tables.expired(keep, now);
            if let Some((last, _, hash)) = tables.chain().take(expired).last() {
                tables.pruned = (last, hash);
                tables.audit.drain(..expired);
                tables.audit.push(AuditEntry::new(AuditEvent::Pruned, now));
            }
            Ok(Counts { changes: expired as u64, repeats: repeats as u64 })
        })
    }

    fn newest_entry(&self) -> StoreFuture<'_, Option<UnixSeconds>> {
        self.answer(|tables, _| {
            let newest = tables.audit.last().map(|entry| entry.at);
            Ok(newest.max(tables.repeats.iter().map(|record| record.at).max()))
        })
    }

    fn export_audit(&self, filter: &Filter, each: EachEntry<'_>) -> Result<(), StoreError> {
        let tables = self.tables().clone();
        let chain = tables.chain().map(|(seq, entry, hash)| (AuditEntry { seq, ..entry.clone() }, hash));
        let mut all: Vec<(AuditEntry, Link)> = chain.collect();
        for record in &tables.repeats {
            let later = all.iter().position(|(entry, _)| entry.begun() > record.begun());
            all.insert(later.unwrap_or(all.len()), (record.clone(), Link::default()));
        }
        // `try_for_each` stops early if `each` returns a break.
        let mut selected = all.into_iter().filter(|(entry, _)| filter.admits(entry));
        let _ = selected.try_for_each(|(entry, hash)| each(entry, hash));
        Ok(())
    }

    fn verify_audit(&self, hash_at: &mut dyn FnMut(u64, &Link)) -> Result<Chain, StoreError> {
        let tables = self.tables();
        let (pruned, mut hash) = tables.pruned;
        let mut last = pruned;
        for (seq, _, next) in tables.chain() {
            hash_at(seq, &next);
            (last, hash) = (seq, next);
        }
        Ok(Chain { entries: last - pruned, pruned, last, hash, fault: None })
    }
}

impl Tables {
    /// Returns the secrets of one column, in order of their primary keys.
    fn secrets<'t>(&'t self, column: SecretColumn) -> BTreeMap<&'t str, (&'t DeviceId, &'t Secret)> {
        match column {
            SecretColumn::DeviceSecret => {
                let secret = |row: &'t DeviceRow| {
                    let certificate = row.certificate.as_ref()?;
                    Some((row.id.as_str(), (&row.id, &certificate.device_secret)))
                };
                self.devices.values().filter_map(secret).collect()
            }
            SecretColumn::Psk => {
                let keys = self.keys.iter();
                keys.map(|(identity, (device, keys))| (identity.as_str(), (device, &keys.psk))).collect()
            }
            SecretColumn::PskNext => {
                let next = |(identity, (device, keys)): (&'t String, &'t (DeviceId, roll::Keys))| {
                    let (next, _) = keys.next.as_ref()?;
                    Some((identity.as_str(), (device, next)))
                };
                self.keys.iter().filter_map(next).collect()
            }
        }
    }

    fn counts(&self) -> Vec<UnderKey> {
        let mut counts = Vec::new();
        for column in SecretColumn::ALL {
            for (_, secret) in self.secrets(column).into_values() {
                UnderKey::add(&mut counts, seal::key_of(secret.expose()).map(str::to_owned), column, 1);
            }
        }
        counts
    }
}

/// Keeps no list of the database keys in use, but reads the ID of the database key from each stored
/// secret.
impl StoredSecrets for Memory {
    fn keys_in_use(&self) -> Result<Vec<String>, StoreError> {
        Ok(self.tables().counts().into_iter().filter_map(|count| count.key).collect())
    }

    fn count_secrets(&self) -> Result<Vec<UnderKey>, StoreError> {
        Ok(self.tables().counts())
    }

    fn count_clear(&self) -> Result<u64, StoreError> {
        let counts = self.tables().counts();
        let clear = counts.iter().filter(|count| count.key.is_none());
        Ok(clear.map(|count| count.device_secrets + count.psks).sum())
    }

    fn secrets_not_under(
        &self,
        column: SecretColumn,
        key: &str,
        after: &str,
        limit: usize,
    ) -> Result<Vec<StoredSecret>, StoreError> {
        let tables = self.tables();
        let others = tables
            .secrets(column)
            .into_iter()
            .filter(|(primary, (_, value))| *primary > after && seal::key_of(value.expose()) != Some(key));
        let stored = |(primary, (device, value)): (&str, (&DeviceId, &Secret))| StoredSecret {
            primary: primary.to_owned(),
            device: device.to_string(),
            value: value.clone(),
        };
        Ok(others.take(limit).map(stored).collect())
    }

    fn replace_secrets(
        &self,
        column: SecretColumn,
        values: &[(StoredSecret, Secret)],
    ) -> Result<(), StoreError> {
        let mut tables = self.tables();
        for (stored, anew) in values {
            let value = match column {
                SecretColumn::DeviceSecret => {
                    let row = tables.devices.values_mut().find(|row| row.id.as_str() == stored.device);
                    row.and_then(|row| row.certificate.as_mut())
                        .map(|certificate| &mut certificate.device_secret)
                }
                SecretColumn::Psk => tables.keys.get_mut(&stored.primary).map(|(_, keys)| &mut keys.psk),
                SecretColumn::PskNext => {
                    let keys = tables.keys.get_mut(&stored.primary);
                    keys.and_then(|(_, keys)| keys.next.as_mut()).map(|(next, _)| next)
                }
            };
            if let Some(value) = value.filter(|value| **value == stored.value) {
                *value = anew.clone();
            }
        }
        Ok(())
    }

    fn keep_only_key(
        &self,
        key: &str,
        sealed: u64,
        by: &Actor,
        _progress: &mut dyn FnMut(SealStep),
    ) -> Result<(), StoreError> {
        let mut tables = self.tables();
        let left = UnderKey::others(&tables.counts(), key);
        if left > 0 {
            return Err(StoreError::Failed(format!(
                "{left} values were written under another key meanwhile"
            )));
        }
        if sealed > 0 {
            let detail = Some(format!("{sealed} values under key {key}"));
            tables.audit.push(AuditEntry { detail, ..by.entry(AuditEvent::Sealed, self.clock.now()) });
        }
        Ok(())
    }
}

/// Imports rows, none of which may be rejected.
pub(crate) fn import(store: &dyn Bulk, rows: impl IntoIterator<Item = ImportRow>) -> ImportReport {
    let by = Actor::system_user();
    let job = ImportJob::new(&by, "batch.csv");
    let reject = &mut |index, rejection| panic!("row {index}: {rejection:?}");
    store.import(job, &mut rows.into_iter().map(Ok), reject).unwrap()
}

/// Registers a device with the same calls as the registrar. The row must ask for the name in the
/// certificate.
pub(crate) async fn register(
    store: &dyn Store,
    device: &DeviceId,
    registered: RegisteredDevice,
) -> Result<(), StoreError> {
    let owner = Owner { id: 1, name: "a test".into() };
    let entry = JournalEntry {
        device: device.clone(),
        product_key: registered.certificate.product_key.clone(),
        device_name: registered.certificate.device_name.clone(),
        target: crate::target::DEFAULT.to_owned(),
    };
    store.claim(&owner, &entry, ClaimTime { at: unix_now(), cloud_offset: None }).await?;
    store.settle(owner.id, &entry, &Settlement::Registered(registered)).await
}

/// Records the first issue of a device's certificate, as the service does for its first answer.
pub(crate) async fn issue(store: &dyn Store, device: &DeviceId) -> Result<Issue, StoreError> {
    let absent = || StoreError::Conflict(format!("device {device} has no certificate"));
    let row = store.device(device).await?.ok_or_else(absent)?;
    let certificate = row.certificate.ok_or_else(absent)?;
    let asker = Asker { enrollment: row.enrollment, ..Asker::default() };
    store.record_issue(device, &certificate, new_id()?, asker).await
}
