//! Claims in the store in memory.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use super::{Memory, Tables};
use crate::{
    device::DeviceId,
    store::{
        AskedBy, BatchId, Claim, DeviceRow, DeviceState, JournalEntry, OpenBatch, OpenEntry, StoreError,
        StoreFuture, UnixSeconds,
        audit::{AuditEntry, AuditEvent},
        claim::{Beat, ClaimTime, ClaimView, Claimed, Claims, Owner, OwnerId, Settlement, TakenBatch},
        lease::Leases,
        order::{BegunClaim, Carrier, Order},
        turn::{Turn, Turns},
    },
    target,
};

#[derive(Clone)]
struct Held {
    /// Number of claims that were opened before this claim. The claims are ordered by this number
    /// and not by their times, which come from the system's clock and do not follow virtual time.
    number: u64,
    open: OpenEntry,
    cloud_offset: Option<i64>,
    owner: Option<OwnerId>,
    /// Owner that may have asked the cloud for the device.
    asked: By,
    /// Enrollment of the device at the time of the claim.
    enrollment: String,
}

/// Owner that may have asked the cloud for a device.
#[derive(Clone, Copy, PartialEq, Eq)]
enum By {
    Nobody,
    /// The claim's owner.
    Owner,
    /// An owner before the claim's owner.
    Earlier,
    /// The claim's owner or an earlier owner, but only in the claim's batch.
    Batch,
}

#[derive(Clone)]
struct Living {
    name: String,
    beats: i64,
    last_beat: UnixSeconds,
}

/// The tables of claims, batches, owners and leases.
#[derive(Clone, Default)]
pub(super) struct Journal {
    /// Number of claims opened so far.
    opened: u64,
    claims: HashMap<DeviceId, Held>,
    batches: BTreeMap<BatchId, (OpenBatch, Option<OwnerId>)>,
    owners: BTreeMap<OwnerId, Living>,
    signs_of_life: i64,
    /// Owner and cursor of each lease.
    leases: HashMap<String, (Option<OwnerId>, String)>,
}

impl Journal {
    /// Returns the leases that living owners have, each with its owner.
    pub(super) fn leases_held(&self) -> Vec<(String, OwnerId)> {
        let held =
            |(name, (owner, _)): (&String, &(Option<OwnerId>, String))| Some((name.clone(), (*owner)?));
        self.leases.iter().filter_map(held).filter(|(_, owner)| self.owners.contains_key(owner)).collect()
    }

    pub(super) fn is_claimed(&self, device: &DeviceId) -> bool {
        self.claims.contains_key(device)
    }

    /// Returns the claim on a device, as far as a move of the device needs it.
    pub(super) fn begun(&self, device: &DeviceId) -> Option<BegunClaim> {
        let held = self.claims.get(device)?;
        let JournalEntry { target, product_key, device_name, .. } = held.open.entry.clone();
        Some(BegunClaim {
            target,
            product_key,
            device_name,
            has_owner: !self.is_abandoned(held.owner),
            may_be_asked: held.asked != By::Nobody || held.open.batch.is_some(),
        })
    }

    /// Returns whether a carrier still has its lease. If so, no other process can have taken over its
    /// work.
    pub(super) fn has_lease(&self, carrier: &Carrier) -> bool {
        self.leases.get(&carrier.lease).is_some_and(|(owner, _)| *owner == Some(carrier.owner))
    }

    /// Returns the number of claims of an enrollment.
    pub(super) fn claims_of(&self, enrollment: &str) -> u64 {
        self.claims.values().filter(|held| held.enrollment == enrollment).count() as u64
    }

    /// Returns whether a claim on a device takes a place in an enrollment.
    pub(super) fn has_place(&self, device: &DeviceId, enrollment: &str) -> bool {
        self.claims.get(device).is_some_and(|held| held.enrollment == enrollment)
    }

    pub(super) fn forget(&mut self, device: &DeviceId) {
        self.claims.remove(device);
    }

    fn note(&mut self, owner: &Owner, now: UnixSeconds) {
        self.signs_of_life += 1;
        let first = self.signs_of_life * 1_000_000;
        let new = || Living { name: owner.name.clone(), beats: first, last_beat: now };
        let living = self.owners.entry(owner.id).or_insert_with(new);
        living.beats += 1;
        living.last_beat = now;
    }

    fn is_abandoned(&self, owner: Option<OwnerId>) -> bool {
        owner.is_none_or(|owner| !self.owners.contains_key(&owner))
    }

    /// Ends a batch without an `ApplyId`. If the process of the batch is only suspended, it then begins
    /// nothing.
    fn end_unchecked(&mut self, batch: Option<BatchId>) {
        if let Some(id) = batch
            && self.batches.get(&id).is_some_and(|(batch, _)| batch.apply_id.is_none())
        {
            self.batches.remove(&id);
            let of_it = self.claims.values_mut().filter(|held| held.open.batch == Some(id));
            of_it.for_each(|held| held.open.batch = None);
        }
    }
}

impl Tables {
    /// Returns another device that has the same name in the same product, if any.
    pub(super) fn holder_of_name(
        &self,
        device: &DeviceId,
        product_key: &str,
        name: &str,
    ) -> Option<DeviceId> {
        let is_it =
            |row: &&DeviceRow| row.id != *device && row.product_key == product_key && row.name() == name;
        self.devices.values().find(is_it).map(|row| row.id.clone())
    }

    pub(super) fn holder_of_iot_id(&self, device: &DeviceId, iot_id: &str) -> Option<DeviceId> {
        let is_it = |row: &&DeviceRow| row.id != *device && row.iot_id.as_deref() == Some(iot_id);
        self.devices.values().find(is_it).map(|row| row.id.clone())
    }

    /// Adds an abandoned claim on a device that was rotated, so that any process may register it
    /// again.
    pub(super) fn claim_anew(&mut self, order: &Order, enrollment: String, now: ClaimTime) {
        let Order { device, product_key, device_name, target, .. } = order.clone();
        let entry = JournalEntry { device: device.clone(), product_key, device_name, target };
        let open = OpenEntry { entry, since: now.at, batch: None };
        let number = self.journal.opened;
        self.journal.opened += 1;
        let cloud_offset = now.cloud_offset;
        let held = Held { number, open, cloud_offset, owner: None, asked: By::Earlier, enrollment };
        self.journal.claims.entry(device).or_insert(held);
    }

    fn claim(
        &mut self,
        owner: &Owner,
        entry: &JournalEntry,
        batch: Option<BatchId>,
        now: ClaimTime,
        max: &HashMap<String, u64>,
    ) -> Claimed {
        self.journal.note(owner, now.at);
        let JournalEntry { device, product_key, device_name, target } = entry;
        let known = self.journal.claims.get(device).cloned();
        let is_held = known
            .as_ref()
            .is_some_and(|known| known.owner != Some(owner.id) && !self.journal.is_abandoned(known.owner));
        let is_held = is_held || self.is_ordered(device);
        let asks = self.devices.get(device).filter(|row| {
            row.certificate.is_none()
                && row.refusal.is_none()
                && row.product_key == *product_key
                && row.name() == *device_name
                && row.target.as_ref().is_none_or(|own| own == target)
        });
        let enrollment = asks.map(|row| row.enrollment.clone()).unwrap_or_default();
        let has_own_target = asks.is_some_and(|row| row.target.is_some());
        match asks.map(|row| row.state) {
            Some(DeviceState::Enabled) => {}
            // The claim stays, because the cloud may have been asked for the device.
            Some(DeviceState::Disabled) => return Claimed::NotWanted,
            None => {
                if !is_held {
                    self.journal.forget(device);
                }
                return Claimed::NotWanted;
            }
        }
        if is_held {
            return Claimed::Held;
        }
        if let Some(known) = known.as_ref().filter(|known| known.asked != By::Nobody && !has_own_target) {
            let at_its_target = JournalEntry { target: known.open.entry.target.clone(), ..entry.clone() };
            if known.open.entry == at_its_target && known.open.entry != *entry {
                return Claimed::Elsewhere(at_its_target.target);
            }
        }
        if let Some(holder) = self.holder_of_name(device, product_key, device_name) {
            return Claimed::NameTaken(holder);
        }
        if !self.has_room(device, &enrollment, max) {
            return Claimed::NoPlace;
        }
        if let Some(known) = known.as_ref().filter(|known| known.owner != Some(owner.id)) {
            self.journal.end_unchecked(known.open.batch);
        }
        let same = known.filter(|known| known.open.entry == *entry && known.asked != By::Nobody);
        let asked_by = match &same {
            None => AskedBy::Nobody,
            Some(same) if same.asked != By::Earlier && same.owner == Some(owner.id) => AskedBy::Caller,
            Some(_) => AskedBy::Other,
        };
        let number = same.as_ref().map_or(self.journal.opened, |same| same.number);
        self.journal.opened += 1;
        let (since, cloud_offset) =
            same.map_or((now.at, now.cloud_offset), |same| (same.open.since, same.cloud_offset));
        let open = OpenEntry { entry: entry.clone(), since, batch };
        let by = match asked_by {
            AskedBy::Nobody if batch.is_some() => By::Nobody,
            AskedBy::Nobody | AskedBy::Caller => By::Owner,
            AskedBy::Other => By::Earlier,
        };
        let held = Held { number, open, cloud_offset, owner: Some(owner.id), asked: by, enrollment };
        self.journal.claims.insert(device.clone(), held);
        Claimed::Yours(Claim { since, cloud_offset, asked_by })
    }

    /// Returns whether a device has a place in an enrollment, or one is free.
    fn has_room(&self, device: &DeviceId, enrollment: &str, max: &HashMap<String, u64>) -> bool {
        let Some(max) = max.get(enrollment) else { return true };
        self.has_place(device, enrollment) || self.places(enrollment).free(*max) > 0
    }

    fn settle(
        &mut self,
        owner: OwnerId,
        entry: &JournalEntry,
        settlement: &Settlement,
        now: UnixSeconds,
        max: &HashMap<String, u64>,
    ) -> Result<(), StoreError> {
        let device = &entry.device;
        let is_ours = self
            .journal
            .claims
            .get(device)
            .is_some_and(|known| known.owner == Some(owner) && known.open.entry == *entry);
        let row = self.devices.get(device).cloned();
        if let (Some(stored), Settlement::Registered(registered)) =
            (row.as_ref().and_then(|row| row.certificate.as_ref()), settlement)
        {
            let is_same = *stored == registered.certificate;
            if is_ours {
                self.journal.forget(device);
            }
            return match (is_same, is_ours) {
                (true, _) => Ok(()),
                (false, true) => Err(StoreError::Conflict("another certificate".into())),
                (false, false) => Err(StoreError::Fenced),
            };
        }
        let Some(row) = row else { return Err(StoreError::Conflict("deleted".into())) };
        if !is_ours {
            return Err(StoreError::Fenced);
        }
        let is_free = self.has_room(device, &row.enrollment, max);
        let claim = self.journal.claims.remove(device);
        if row.product_key != entry.product_key || row.name() != entry.device_name {
            return Err(StoreError::Conflict("another product or name".into()));
        }
        if row.target.as_ref().is_some_and(|own| *own != entry.target) {
            return Err(StoreError::Conflict("another target".into()));
        }
        match settlement {
            Settlement::Registered(registered) => {
                let iot_id = registered.iot_id.as_deref();
                if iot_id.is_some_and(|iot_id| self.holder_of_iot_id(device, iot_id).is_some()) {
                    let refusal = Some("IotIdIsTaken: by another device".into());
                    self.devices.insert(device.clone(), DeviceRow { refusal, ..row });
                    return Err(StoreError::Conflict("the IotId of another device".into()));
                }
                if !is_free {
                    let abandoned = claim.map(|held| {
                        let open = OpenEntry { batch: None, ..held.open };
                        Held { open, owner: None, ..held }
                    });
                    self.journal.claims.extend(abandoned.map(|held| (device.clone(), held)));
                    return Err(StoreError::Conflict("its enrollment is full".into()));
                }
                self.kept.remove(device);
                let certificate = registered.certificate.clone();
                let detail = Some(format!("{}/{}", certificate.product_key, certificate.device_name));
                let row = DeviceRow {
                    device_name: Some(certificate.device_name.clone()),
                    certificate: Some(certificate),
                    iot_id: registered.iot_id.clone().or(row.iot_id),
                    registered: row.registered.or(Some(registered.registered)),
                    refusal: None,
                    target: row.target.or_else(|| target::to_store(&entry.target).map(str::to_owned)),
                    ..row
                };
                self.devices.insert(device.clone(), row);
                self.touch(device);
                let entry = AuditEntry::new(AuditEvent::Registered, now);
                self.audit.push(AuditEntry { device: Some(device.clone()), detail, ..entry });
            }
            Settlement::Refused(_) if row.certificate.is_some() => {
                return Err(StoreError::Conflict("it has a certificate".into()));
            }
            Settlement::Refused(_) if row.state == DeviceState::Disabled => {
                return Err(StoreError::Conflict("disabled".into()));
            }
            Settlement::Refused(reason) => {
                self.devices.insert(device.clone(), DeviceRow { refusal: Some(reason.clone()), ..row });
            }
        }
        Ok(())
    }
}

impl Claims for Memory {
    fn beats<'a>(&'a self, own: Option<&'a Owner>) -> StoreFuture<'a, Vec<Beat>> {
        self.answer(|tables, now| {
            if let Some(own) = own {
                tables.journal.note(own, now);
            }
            let owners = tables.journal.owners.iter();
            Ok(owners.map(|(owner, living)| Beat { owner: *owner, count: living.beats }).collect())
        })
    }

    fn fence(&self, seen: Beat) -> StoreFuture<'_, bool> {
        self.answer(|tables, _| {
            let is_same = |living: &Living| living.beats == seen.count;
            let fences = tables.journal.owners.get(&seen.owner).is_some_and(is_same);
            if fences {
                tables.journal.owners.remove(&seen.owner);
            }
            Ok(fences)
        })
    }

    fn retire(&self, owner: OwnerId) -> StoreFuture<'_, ()> {
        self.answer(|tables, _| {
            tables.journal.owners.remove(&owner);
            Ok(())
        })
    }

    fn retire_if_idle(&self, owner: OwnerId) -> StoreFuture<'_, ()> {
        self.answer(|tables, _| {
            let journal = &mut tables.journal;
            let owns = journal.claims.values().any(|held| held.owner == Some(owner))
                || journal.batches.values().any(|(_, by)| *by == Some(owner))
                || journal.leases.values().any(|(by, _)| *by == Some(owner));
            if !owns {
                journal.owners.remove(&owner);
            }
            Ok(())
        })
    }

    fn claim<'a>(
        &'a self,
        owner: &'a Owner,
        entry: &'a JournalEntry,
        now: ClaimTime,
    ) -> StoreFuture<'a, Claimed> {
        let max = self.max_places();
        self.answer(|tables, _| Ok(tables.claim(owner, entry, None, now, &max)))
    }

    fn claim_batch<'a>(
        &'a self,
        owner: &'a Owner,
        batch: &'a OpenBatch,
        entries: &'a [JournalEntry],
        now: ClaimTime,
    ) -> StoreFuture<'a, Vec<Claimed>> {
        let max = self.max_places();
        self.answer(|tables, _| {
            tables.journal.note(owner, now.at);
            tables.journal.batches.entry(batch.id).or_insert_with(|| (batch.clone(), Some(owner.id)));
            let claim = |entry| tables.claim(owner, entry, Some(batch.id), now, &max);
            Ok(entries.iter().map(claim).collect())
        })
    }

    fn set_apply_id(&self, owner: OwnerId, batch: BatchId, apply_id: u64) -> StoreFuture<'_, ()> {
        self.answer(|tables, _| match tables.journal.batches.get_mut(&batch) {
            Some((known, by)) if *by == Some(owner) => {
                known.apply_id = Some(apply_id);
                let of_it = tables.journal.claims.values_mut().filter(|held| held.open.batch == Some(batch));
                of_it
                    .filter(|held| held.owner == Some(owner) && held.asked == By::Nobody)
                    .for_each(|held| held.asked = By::Batch);
                Ok(())
            }
            _ => Err(StoreError::Fenced),
        })
    }

    fn close_batch(&self, owner: OwnerId, batch: BatchId) -> StoreFuture<'_, ()> {
        self.answer(|tables, _| {
            if tables.journal.batches.get(&batch).is_some_and(|(_, by)| *by == Some(owner)) {
                tables.journal.batches.remove(&batch);
                let of_it = tables.journal.claims.values_mut().filter(|held| held.open.batch == Some(batch));
                of_it.for_each(|held| held.open.batch = None);
            }
            Ok(())
        })
    }

    fn settle<'a>(
        &'a self,
        owner: OwnerId,
        entry: &'a JournalEntry,
        settlement: &'a Settlement,
    ) -> StoreFuture<'a, ()> {
        let max = self.max_places();
        self.answer(|tables, now| tables.settle(owner, entry, settlement, now, &max))
    }

    fn release_claim<'a>(&'a self, owner: OwnerId, device: &'a DeviceId, asked: bool) -> StoreFuture<'a, ()> {
        self.answer(|tables, _| {
            let claims = &mut tables.journal.claims;
            if let Some(held) = claims.get_mut(device).filter(|held| held.owner == Some(owner)) {
                (held.owner, held.open.batch) = (None, None);
                if !asked {
                    claims.remove(device);
                }
            }
            Ok(())
        })
    }

    fn take_batches<'a>(&'a self, owner: &'a Owner, target: &'a str) -> StoreFuture<'a, Vec<TakenBatch>> {
        self.answer(|tables, now| {
            let journal = &mut tables.journal;
            let mut taken = Vec::new();
            // Batches are taken in the order in which the cloud made them. Their IDs are random, so
            // an order by ID would differ between two runs with the same seed.
            let mut batches: Vec<_> = journal.batches.clone().into_iter().collect();
            batches.sort_by_key(|(_, (batch, _))| batch.apply_id);
            for (id, (batch, by)) in batches {
                if batch.target != target || by != Some(owner.id) && !journal.is_abandoned(by) {
                    continue;
                }
                if by != Some(owner.id) && batch.apply_id.is_none() {
                    journal.end_unchecked(Some(id));
                    continue;
                }
                let living = journal.owners.clone();
                let of_it = journal.claims.values_mut().filter(|held| {
                    held.open.batch == Some(id)
                        && held.owner.is_none_or(|by| by == owner.id || !living.contains_key(&by))
                });
                let mut entries: Vec<_> = of_it
                    .map(|held| {
                        if held.asked == By::Owner && held.owner != Some(owner.id) {
                            held.asked = By::Earlier;
                        }
                        held.owner = Some(owner.id);
                        let Held { open: OpenEntry { entry, since, .. }, cloud_offset, .. } = held.clone();
                        let asked_by = match held.asked {
                            By::Nobody | By::Batch => AskedBy::Nobody,
                            By::Owner | By::Earlier => AskedBy::Other,
                        };
                        (entry, Claim { since, cloud_offset, asked_by })
                    })
                    .collect();
                entries.sort_by(|(one, _), (other, _)| one.device.cmp(&other.device));
                journal.note(owner, now);
                journal.batches.insert(id, (batch.clone(), Some(owner.id)));
                taken.push((batch, entries));
            }
            Ok(taken)
        })
    }

    fn abandoned<'a>(&'a self, target: &'a str, limit: usize) -> StoreFuture<'a, Vec<JournalEntry>> {
        self.answer(|tables, _| {
            let is_enabled = |device: &DeviceId| {
                tables.devices.get(device).is_some_and(|row| row.state == DeviceState::Enabled)
            };
            let is_one = |held: &&Held| {
                held.open.batch.is_none()
                    && held.open.entry.target == target
                    && tables.journal.is_abandoned(held.owner)
                    && is_enabled(&held.open.entry.device)
            };
            let mut held: Vec<_> = tables.journal.claims.values().filter(is_one).collect();
            held.sort_by_key(|held| held.number);
            Ok(held.into_iter().take(limit).map(|held| held.open.entry.clone()).collect())
        })
    }

    fn claim_of<'a>(&'a self, device: &'a DeviceId) -> StoreFuture<'a, Option<ClaimView>> {
        self.answer(|tables, _| {
            let Some(held) = tables.journal.claims.get(device) else { return Ok(None) };
            let living = held.owner.and_then(|owner| tables.journal.owners.get(&owner));
            Ok(Some(ClaimView {
                entry: held.open.entry.clone(),
                since: held.open.since,
                owner: living.map(|living| living.name.clone()),
                last_beat: living.map(|living| living.last_beat),
                batch: held.open.batch,
            }))
        })
    }

    fn note_cloud_offset(&self, owner: OwnerId, offset: i64) -> StoreFuture<'_, ()> {
        self.answer(|tables, _| {
            let of_it = tables.journal.claims.values_mut().filter(|held| held.owner == Some(owner));
            of_it.for_each(|held| _ = held.cloud_offset.get_or_insert(offset));
            Ok(())
        })
    }

    fn open_batches(&self) -> StoreFuture<'_, Vec<OpenBatch>> {
        self.answer(|tables, _| Ok(tables.journal.batches.values().map(|(batch, _)| batch.clone()).collect()))
    }

    fn open_entries(&self) -> StoreFuture<'_, Vec<OpenEntry>> {
        self.answer(|tables, _| {
            let mut held: Vec<_> = tables.journal.claims.values().collect();
            held.sort_by_key(|held| held.number);
            Ok(held.into_iter().map(|held| held.open.clone()).collect())
        })
    }
}

impl Turns for Memory {
    fn take_turn<'a>(&'a self, pace: &'a str, turn: Turn) -> StoreFuture<'a, Option<Duration>> {
        let (start, unix) = self.epoch;
        let now = unix * 1_000_000 + start.elapsed().as_micros() as i64;
        self.answer(|tables, _| match turn.take(tables.paces.get(pace).copied(), now) {
            Ok(next) => {
                tables.paces.insert(pace.to_owned(), next);
                Ok(None)
            }
            Err(wait) => Ok(Some(wait)),
        })
    }
}

impl Leases for Memory {
    fn take_lease<'a>(&'a self, owner: &'a Owner, name: &'a str) -> StoreFuture<'a, Option<String>> {
        self.answer(|tables, now| {
            let journal = &mut tables.journal;
            journal.note(owner, now);
            let (by, cursor) = journal.leases.get(name).cloned().unwrap_or_default();
            if by != Some(owner.id) && !journal.is_abandoned(by) {
                return Ok(None);
            }
            journal.leases.insert(name.to_owned(), (Some(owner.id), cursor.clone()));
            Ok(Some(cursor))
        })
    }

    fn set_cursor<'a>(&'a self, owner: OwnerId, name: &'a str, cursor: &'a str) -> StoreFuture<'a, ()> {
        self.answer(|tables, _| match tables.journal.leases.get_mut(name) {
            Some((by, at)) if *by == Some(owner) => {
                cursor.clone_into(at);
                Ok(())
            }
            _ => Err(StoreError::Fenced),
        })
    }

    fn give_lease_up<'a>(&'a self, owner: OwnerId, name: &'a str) -> StoreFuture<'a, ()> {
        self.answer(|tables, _| {
            if let Some((by, _)) = tables.journal.leases.get_mut(name).filter(|(by, _)| *by == Some(owner)) {
                *by = None;
            }
            Ok(())
        })
    }
}
