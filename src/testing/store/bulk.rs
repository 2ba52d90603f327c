//! Imports, exports and counts of the store in memory.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    time::Duration,
};

use super::{Memory, Tables, roll::Keys};
use crate::{
    device::{AskedId, Certificate, DeviceId},
    store::{
        Bulk, CloudState, Conflict, DeviceRow, DeviceState, Each, ImportActivity, ImportError, ImportJob,
        ImportReport, ImportRow, Reject, Rows, SameSecret, StoreError, Totals, UnixSeconds,
        audit::{AuditEntry, AuditEvent},
        check::{self, Staged, Standing},
        filter::{Cursor, End, Filter, Found, Held, Listed, Tally},
        merge::{self, Columns, Merged, Unmerged},
        roll::DeviceKeys,
        undo::{
            ImportId, ImportRecord, KeyChange, Left, NotUndone, REMEMBERED, UNDOABLE, Undo, UndoError,
            Undone, may_undo,
        },
    },
};

/// Former rows of the devices that an import changed. Each has the import that the row came from,
/// and the change of the device's key.
pub(super) type Before = HashMap<DeviceId, (DeviceRow, Option<Label>, KeyChange)>;

/// Import from which a row comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Label {
    id: ImportId,
    /// Set if the row has changed since the import.
    is_touched: bool,
}

impl Tables {
    /// Notes that a device has changed since it was imported.
    pub(super) fn touch(&mut self, device: &DeviceId) {
        if let Some(label) = self.labels.get_mut(device) {
            label.is_touched = true;
        }
    }

    /// Checks that no other device has this name in this product, or this `IotId`.
    fn is_unique(
        &self,
        device: &DeviceId,
        product_key: &str,
        name: &str,
        iot_id: Option<&str>,
    ) -> Result<(), Conflict> {
        merge::unique_name(self.holder_of_name(device, product_key, name), name)?;
        merge::unique_iot_id(iot_id.and_then(|iot_id| self.holder_of_iot_id(device, iot_id)))
    }

    /// Returns the ID of a device that has this MAC address in an unusual spelling.
    pub(super) fn spelled(&self, mac: &DeviceId) -> Option<DeviceId> {
        let is_it = |id: &&DeviceId| *id != mac && DeviceId::parse_mac(id.as_str()).as_ref() == Ok(mac);
        self.devices.keys().find(is_it).cloned()
    }

    /// Merges a row, and notes the former row in `before`.
    fn merge(
        &mut self,
        row: &ImportRow,
        (id, now): (Option<ImportId>, UnixSeconds),
        same: SameSecret<'_>,
        before: &mut Before,
    ) -> Result<Merged, Unmerged<StoreError>> {
        let known = self.devices.get(&row.device).cloned();
        let mut drops_key = false;
        let after = match &known {
            None => Some(merge::new_device(row)),
            Some(known) => {
                let same_secret = merge::has_same_secret(known, row, same).map_err(Unmerged::Failed)?;
                merge::known_device(known, row, same_secret)?.map(|change| {
                    drops_key = change.drops_key;
                    change.columns
                })
            }
        };
        let device_changed = after.is_some();
        if let Some(Columns { enrollment, product_key, device_name, device_secret, iot_id, target }) = after {
            let blank = || DeviceRow::imported(row.device.clone(), enrollment, product_key);
            let before = known.clone().unwrap_or_else(blank);
            let certificate = device_secret.zip(device_name).map(|(secret, name)| Certificate {
                product_key: product_key.to_owned(),
                device_name: name.to_owned(),
                device_secret: secret.clone(),
            });
            let columns = Columns { enrollment, product_key, device_name, device_secret, iot_id, target };
            let name = merge::name_of(&row.device, &columns);
            self.is_unique(&row.device, product_key, &name, iot_id)?;
            let merged = DeviceRow {
                enrollment: enrollment.to_owned(),
                product_key: product_key.to_owned(),
                device_name: device_name.map(str::to_owned),
                certificate,
                iot_id: iot_id.map(str::to_owned),
                refusal: None,
                target: target.map(str::to_owned),
                ..before
            };
            self.devices.insert(row.device.clone(), merged);
        }
        let had_key = self.keys.values().any(|(owner, _)| *owner == row.device);
        if drops_key {
            self.keys.retain(|_, (owner, _)| *owner != row.device);
        }
        let key_change = self.merge_key(row, same, now)?.or_lost(had_key && drops_key);
        if device_changed || key_change != KeyChange::None {
            let former = self.labels.remove(&row.device);
            let label = id.map(|id| Label { id, is_touched: false });
            let label = label.or(former.map(|former| Label { is_touched: true, ..former }));
            self.labels.extend(label.map(|label| (row.device.clone(), label)));
            if let Some(known) = &known {
                before.insert(row.device.clone(), (known.clone(), former, key_change));
            }
        }
        Ok(match known {
            None => Merged::Added,
            Some(known) => Merged::of(known.enrollment != row.enrollment, device_changed, key_change),
        })
    }

    fn merge_key(
        &mut self,
        row: &ImportRow,
        same: SameSecret<'_>,
        now: UnixSeconds,
    ) -> Result<KeyChange, Unmerged<StoreError>> {
        if let Some((identity, _)) = &row.key
            && let Some((owner, _)) = self.keys.get(identity)
        {
            merge::identity_of(owner.as_str(), row)?;
        }
        let stored = self.keys_of(&row.device);
        let change = merge::key_change(stored.as_ref(), row, same).map_err(Unmerged::Failed)??;
        if let Some((identity, psk)) = row.key.as_ref().filter(|_| change != KeyChange::None) {
            self.keys.retain(|_, (owner, _)| *owner != row.device);
            let keys = Keys::new(psk, row.next_key.as_ref(), now);
            self.keys.insert(identity.clone(), (row.device.clone(), keys));
        }
        Ok(change)
    }

    /// Returns whether the key that a device has used last is the second key that an import has added.
    fn needs_next(&self, before: &Before, device: &DeviceId) -> bool {
        let is_added = matches!(before.get(device), Some((.., KeyChange::NextAdded)));
        is_added && self.roll_of(device).is_some_and(|roll| roll.uses_next())
    }

    fn undo(&mut self, how: Undo<'_>, now: UnixSeconds) -> Result<Undone, NotUndone> {
        let at = self.imports.iter().position(|(record, _)| record.id == how.id);
        let at = at.ok_or(NotUndone::Unknown(how.id))?;
        let (record, mut before) = self.imports[at].clone();
        let is_untouched = |(device, label): &(&DeviceId, &Label)| {
            label.id == how.id
                && !label.is_touched
                && !self.journal.is_claimed(device)
                && !self.needs_next(&before, device)
        };
        let untouched = self.labels.iter().filter(is_untouched);
        let untouched: Vec<DeviceId> = untouched.map(|(device, _)| device.clone()).collect();
        let is_lost = |device: &&DeviceId| matches!(before.get(*device), Some((.., KeyChange::Lost)));
        let lost = untouched.iter().filter(is_lost).count() as u64;
        let mut undone =
            Undone { left: may_undo(&record, how, untouched.len() as u64, lost)?, ..Undone::default() };
        for device in &untouched {
            self.labels.remove(device);
            let Some((row, former, key_change)) = before.remove(device) else {
                let removed = self.devices.remove(device);
                undone.certificates += u64::from(removed.is_some_and(|row| row.certificate.is_some()));
                self.keys.retain(|_, (owner, _)| owner != device);
                undone.removed += 1;
                continue;
            };
            match key_change {
                KeyChange::None => {}
                KeyChange::NextAdded => {
                    let own = self.keys.values_mut().filter(|(owner, _)| owner == device);
                    own.for_each(|(_, keys)| keys.next = None);
                }
                KeyChange::Added | KeyChange::Lost => self.keys.retain(|_, (owner, _)| owner != device),
            }
            self.labels.extend(former.map(|former| (device.clone(), former)));
            let now_there = self.devices.get(device).cloned().unwrap_or_else(|| row.clone());
            let DeviceRow {
                enrollment, product_key, device_name, iot_id, refusal, certificate, target, ..
            } = row;
            let certificate = certificate.and(now_there.certificate.clone());
            let changed = DeviceRow {
                enrollment,
                product_key,
                device_name,
                iot_id,
                refusal,
                certificate,
                target,
                ..now_there
            };
            self.devices.insert(device.clone(), changed);
            undone.restored += 1;
        }
        for device in &untouched {
            let Some(row) = self.devices.get(device) else { continue };
            self.is_unique(device, &row.product_key, &row.name(), row.iot_id.as_deref()).map_err(
                |conflict| NotUndone::Conflict { device: device.to_string(), reason: conflict.reason },
            )?;
        }
        self.imports[at].1 = before;
        self.imports[at].0.undone = Some(now);
        self.audit.push(AuditEntry {
            detail: Some(format!("{undone:?}")),
            ..how.by.entry(AuditEvent::Undone, now)
        });
        Ok(undone)
    }
}

impl Standing for Tables {
    fn device(&self, id: &DeviceId) -> Result<Option<DeviceRow>, StoreError> {
        Ok(self.devices.get(id).cloned())
    }

    fn keys(&self, id: &DeviceId) -> Result<Option<DeviceKeys>, StoreError> {
        Ok(self.keys_of(id))
    }

    fn owner(&self, identity: &str) -> Result<Option<(String, DeviceKeys)>, StoreError> {
        Ok(self.keys.get(identity).map(|(owner, keys)| (owner.to_string(), keys.of(identity))))
    }

    fn holder_of_name(
        &self,
        device: &DeviceId,
        product_key: &str,
        name: &str,
    ) -> Result<Option<DeviceId>, StoreError> {
        Ok(Tables::holder_of_name(self, device, product_key, name))
    }

    fn holder_of_iot_id(&self, device: &DeviceId, iot_id: &str) -> Result<Option<DeviceId>, StoreError> {
        Ok(Tables::holder_of_iot_id(self, device, iot_id))
    }
}

/// Returns whether a device may be registered but has no certificate yet.
fn is_unregistered(row: &DeviceRow) -> bool {
    row.certificate.is_none() && row.refusal.is_none() && row.state == DeviceState::Enabled
}

impl Bulk for Memory {
    fn import(
        &self,
        job: ImportJob<'_>,
        rows: Rows<'_>,
        reject: Reject<'_>,
    ) -> Result<ImportReport, ImportError> {
        let mut tables = self.tables().clone();
        let mut before = Before::new();
        let now = Memory::now(self);
        let staged = Staged::read(rows, reject)?;
        let checked = check::check(&job, staged, &tables.clone(), reject)?;
        let mut report = ImportReport { unchanged: checked.report.unchanged, ..ImportReport::default() };
        checked.each_change(|row| {
            let Some((at, row)) = row else { return Ok(()) };
            match tables.merge(&row, (job.id, now), job.same_secret, &mut before) {
                Ok(merged) => report.count(merged),
                Err(Unmerged::Failed(error)) => return Err(error),
                Err(Unmerged::Conflict(conflict)) => panic!("row {at} passed the check: {conflict:?}"),
            }
            Ok(())
        })?;
        if !job.dry_run {
            if report.added + report.changed > 0 {
                let detail = Some(format!("{}: {report:?}", job.file));
                tables.audit.push(AuditEntry { detail, ..job.by.entry(AuditEvent::Imported, now) });
                if let Some(id) = job.id {
                    if !tables.numbers.insert(id) {
                        return Err(
                            StoreError::Conflict(format!("another import has the number {id}")).into()
                        );
                    }
                    let ImportReport { added, changed, .. } = report;
                    let (at, who, file) = (self.clock.now(), job.by.name.clone(), job.file.to_owned());
                    let record = ImportRecord { id, at, who, file, added, changed, undone: None };
                    tables.imports.push((record, before));
                    let beyond = tables.imports.len().saturating_sub(REMEMBERED);
                    tables.imports.drain(..beyond);
                    tables.imports.retain(|(record, _)| record.at >= at - UNDOABLE);
                }
            }
            *self.tables() = tables;
        }
        Ok(report)
    }

    fn export(&self, each: Each<'_>) -> Result<(), StoreError> {
        let tables = self.tables().clone();
        // `try_for_each` stops early if `each` returns a break.
        let _ = tables.devices.values().cloned().try_for_each(|row| {
            let keys = tables.keys_of(&row.id);
            each(row, keys)
        });
        Ok(())
    }

    fn new_import(&self) -> Result<ImportId, StoreError> {
        loop {
            let id = ImportId::random()?;
            if !self.tables().numbers.contains(&id) {
                return Ok(id);
            }
        }
    }

    fn import_activity(&self) -> Result<ImportActivity, StoreError> {
        let tables = self.tables();
        let undone = tables.imports.iter().filter(|(record, _)| record.undone.is_some()).count() as u64;
        let imports = tables.numbers.len() as u64;
        Ok(ImportActivity { is_unfinished: false, imports, undone })
    }

    fn targets(&self) -> Result<Vec<String>, StoreError> {
        let mut targets: Vec<String> =
            self.tables().devices.values().filter_map(|row| row.target.clone()).collect();
        targets.sort_unstable();
        targets.dedup();
        Ok(targets)
    }

    fn imports(&self) -> Result<Vec<ImportRecord>, StoreError> {
        let tables = self.tables();
        Ok(tables.imports.iter().rev().map(|(record, _)| record.clone()).collect())
    }

    fn imports_of(&self, device: &DeviceId) -> Result<Vec<ImportRecord>, StoreError> {
        let tables = self.tables();
        let has_changed = |(record, before): &&(ImportRecord, Before)| {
            let is_of = |label: &Label| label.id == record.id;
            let former = tables.imports.iter().filter_map(|(_, before)| before.get(device)?.1);
            before.contains_key(device)
                || tables.labels.get(device).is_some_and(is_of)
                || former.into_iter().any(|label| is_of(&label))
        };
        Ok(tables.imports.iter().rev().filter(has_changed).map(|(record, _)| record.clone()).collect())
    }

    fn left_of(&self, id: ImportId, limit: usize) -> Result<Left, StoreError> {
        let tables = self.tables();
        let is_undone = tables.imports.iter().any(|(record, _)| record.id == id && record.undone.is_some());
        let is_left = |device: &&DeviceId| match tables.labels.get(*device) {
            Some(label) if label.id == id => {
                let of_import = tables.imports.iter().find(|(record, _)| record.id == id);
                is_undone
                    || label.is_touched
                    || tables.journal.is_claimed(device)
                    || of_import.is_some_and(|(_, before)| tables.needs_next(before, device))
            }
            _ => tables.imports.iter().any(|(record, before)| {
                let former = before.get(*device).map(|(_, former, _)| *former);
                former.is_some_and(|former| record.id == id || former.is_some_and(|label| label.id == id))
            }),
        };
        let left: Vec<&DeviceId> = tables.devices.keys().filter(is_left).collect();
        Ok(Left { devices: left.len() as u64, first: left.into_iter().take(limit).cloned().collect() })
    }

    fn undo_import(&self, how: Undo<'_>) -> Result<Undone, UndoError> {
        let mut tables = self.tables().clone();
        let undone = tables.undo(how, self.clock.now())?;
        if !how.dry_run {
            *self.tables() = tables;
        }
        Ok(undone)
    }

    fn spelled_macs(&self) -> Result<HashSet<DeviceId>, StoreError> {
        let tables = self.tables();
        let mac = |id: &DeviceId| DeviceId::parse_mac(id.as_str()).ok().filter(|mac| mac != id);
        Ok(tables.devices.keys().filter_map(mac).collect())
    }

    fn known_as(&self, asked: &AskedId) -> Result<Option<DeviceId>, StoreError> {
        let tables = self.tables();
        let known = asked.ids().find(|id| tables.devices.contains_key(id)).cloned();
        Ok(known.or_else(|| tables.spelled(&asked.mac()?)))
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
            of.unissued += u64::from(row.certificate.is_some() && row.first_issued.is_none());
            of.unregistered += u64::from(is_unregistered(row));
            of.disabled_at_cloud += u64::from(row.cloud_state == Some(CloudState::Disabled));
            of.deleted_at_cloud += u64::from(row.cloud_state == Some(CloudState::Deleted));
            let secret = row.certificate.as_ref().map(|certificate| &certificate.device_secret);
            of.clear += u64::from(secret.is_some_and(|secret| !secret.expose().starts_with("sealed ")));
        }
        Ok(totals.into_values().collect())
    }

    fn count_unregistered(&self, enrollment: Option<&str>) -> Result<u64, StoreError> {
        let tables = self.tables();
        let unregistered = tables.devices.values().filter(|row| {
            is_unregistered(row) && enrollment.is_none_or(|enrollment| row.enrollment == enrollment)
        });
        Ok(unregistered.count() as u64)
    }

    fn find(
        &self,
        filter: &Filter,
        from: &Cursor,
        limit: usize,
        _time: Duration,
    ) -> Result<Found, StoreError> {
        let tables = self.tables();
        let is_admitted =
            |row: &&DeviceRow| filter.admits(&row.seen(), || tables.journal.is_claimed(&row.id));
        let listed =
            |row: &DeviceRow| Listed::new(row.id.clone(), &row.seen(), tables.journal.is_claimed(&row.id));
        let admitted = tables.devices.values().filter(is_admitted);
        let mut devices: Vec<Listed> = match from {
            Cursor::First => admitted.take(limit + 1).map(listed).collect(),
            Cursor::After(id) => admitted.filter(|row| row.id > *id).take(limit + 1).map(listed).collect(),
            Cursor::Before(id) => {
                admitted.rev().filter(|row| row.id < *id).take(limit + 1).map(listed).collect()
            }
        };
        let end = if devices.len() > limit { End::More } else { End::Complete };
        devices.truncate(limit);
        if matches!(from, Cursor::Before(_)) {
            devices.reverse();
        }
        Ok(Found { devices, end })
    }

    fn tally(&self, filter: &Filter, time: Duration) -> Result<Tally, StoreError> {
        let found = self.find(filter, &Cursor::First, usize::MAX - 1, time)?;
        Ok(Tally { devices: found.devices.len() as u64, is_complete: true })
    }

    fn listed(&self, ids: &[DeviceId]) -> Result<Vec<Listed>, StoreError> {
        let tables = self.tables();
        let listed =
            |row: &DeviceRow| Listed::new(row.id.clone(), &row.seen(), tables.journal.is_claimed(&row.id));
        Ok(ids.iter().filter_map(|id| tables.devices.get(id)).map(listed).collect())
    }

    fn are_rolling(&self) -> Result<bool, StoreError> {
        Ok(self.tables().are_rolling())
    }

    fn products(&self) -> Result<Vec<String>, StoreError> {
        let tables = self.tables();
        let products: BTreeSet<&String> = tables.devices.values().map(|row| &row.product_key).collect();
        Ok(products.into_iter().cloned().collect())
    }

    fn held(&self, limit: usize) -> Result<Vec<Held>, StoreError> {
        let tables = self.tables();
        let mut groups: BTreeMap<(String, Option<String>), u64> = BTreeMap::new();
        for row in tables.devices.values() {
            let is_waiting = row.certificate.is_none() && tables.journal.is_claimed(&row.id);
            if row.refusal.is_some() {
                *groups.entry((row.enrollment.clone(), row.refusal.clone())).or_default() += 1;
            }
            if is_waiting {
                *groups.entry((row.enrollment.clone(), None)).or_default() += 1;
            }
        }
        let held = |((enrollment, refusal), devices)| Held { enrollment, refusal, devices };
        let (mut waiting, mut refused): (Vec<Held>, Vec<Held>) =
            groups.into_iter().map(held).partition(|held| held.refusal.is_none());
        for groups in [&mut waiting, &mut refused] {
            groups.sort_by_key(|held| std::cmp::Reverse(held.devices));
            groups.truncate(limit);
        }
        waiting.append(&mut refused);
        Ok(waiting)
    }
}
