//! Places, and devices that wait to be admitted, in the store in memory.

use std::collections::BTreeMap;

use super::{Memory, Tables};
use crate::{
    device::DeviceId,
    store::{
        DeviceRow, StoreFuture, UnixSeconds,
        place::{CountsPlaces, MaxPlaces, Places},
        waiting::{
            Admission, Admits, MOST, MOST_OF_ADDRESS, MOST_OF_ENROLLMENT, NewDevice, Note, Waiting,
            WaitingList,
        },
    },
};

/// The devices that wait, by device and enrollment.
pub(super) type List = BTreeMap<(DeviceId, String), Waiting>;

impl Tables {
    pub(super) fn places(&self, enrollment: &str) -> Places {
        let own = self.devices.values().filter(|row| row.enrollment == enrollment);
        Places {
            registered: own.filter(|row| row.certificate.is_some()).count() as u64,
            claimed: self.journal.claims_of(enrollment) + self.kept_of(enrollment),
        }
    }

    /// Returns the number of rotated devices that keep their places in an enrollment and are not in the
    /// journal.
    fn kept_of(&self, enrollment: &str) -> u64 {
        let is_one = |(device, of): &(&DeviceId, &String)| {
            let row = self.devices.get(*device);
            *of == enrollment
                && row.is_some_and(|row| row.enrollment == enrollment && row.certificate.is_none())
                && !self.journal.has_place(device, enrollment)
        };
        self.kept.iter().filter(is_one).count() as u64
    }

    /// Returns whether a device without a certificate has a place in an enrollment.
    pub(super) fn has_place(&self, device: &DeviceId, enrollment: &str) -> bool {
        self.journal.has_place(device, enrollment) || self.kept.get(device).is_some_and(|of| of == enrollment)
    }

    /// Returns the enrollment of a device that is in the table, in any spelling.
    fn enrollment_of(&self, device: &DeviceId) -> Option<&str> {
        let spelled = || {
            let mac = DeviceId::parse_mac(device.as_str()).ok()?;
            self.devices.get(&self.spelled(&mac)?)
        };
        let row = self.devices.get(device).or_else(spelled)?;
        Some(&row.enrollment)
    }

    fn note_waiting(&mut self, note: Note, now: UnixSeconds) {
        let enrollment = note.asker.enrollment;
        let key = (note.device.clone(), enrollment.clone());
        if let Some(known) = self.waiting.get_mut(&key) {
            known.last = known.last.max(now);
            known.count += 1;
            return;
        }
        let of_enrollment = || self.waiting.values().filter(|one| one.enrollment == enrollment);
        let of_address = || of_enrollment().filter(|one| one.address == note.asker.address).count() as u64;
        let all = self.waiting.len() as u64;
        let is_full = all >= MOST
            || (all >= MOST_OF_ENROLLMENT && of_enrollment().count() as u64 >= MOST_OF_ENROLLMENT)
            || (note.is_shared && of_address() >= MOST_OF_ADDRESS);
        if is_full || self.enrollment_of(&note.device).is_some() {
            return;
        }
        let (first, last, count, address) = (now, now, 1, note.asker.address);
        self.waiting.insert(key, Waiting { device: note.device, enrollment, first, last, count, address });
    }

    /// Returns the result for a device that is not added.
    fn obstacle(&self, new: &NewDevice, max_rows: Option<u64>) -> Option<Admission> {
        let NewDevice { device, enrollment, product_key } = new;
        let known_in = self.enrollment_of(device);
        if known_in == Some(enrollment) {
            return Some(Admission::Known);
        }
        let rows = self.devices.values().filter(|row| row.enrollment == *enrollment).count();
        if max_rows.is_some_and(|max| rows as u64 >= max) {
            return Some(Admission::Full);
        }
        if known_in.is_some() {
            return Some(Admission::Elsewhere);
        }
        self.holder_of_name(device, product_key, &device.device_name()).map(Admission::NameTaken)
    }

    fn admit(&mut self, new: NewDevice, by: &Admits, now: UnixSeconds) -> Admission {
        if let Some(obstacle) = self.obstacle(&new, by.max_rows()) {
            if matches!(obstacle, Admission::Known | Admission::Elsewhere) {
                self.waiting.retain(|(known, _), _| *known != new.device);
            }
            return obstacle;
        }
        let entry = by.entry(&new, now);
        let NewDevice { device, enrollment, product_key } = new;
        self.waiting.retain(|(known, _), _| *known != device);
        self.refused.retain(|(known, _), _| *known != device);
        self.audit.push(entry);
        let row = DeviceRow::imported(device.clone(), &enrollment, &product_key);
        self.devices.insert(device, row);
        Admission::Added
    }
}

impl CountsPlaces for Memory {
    fn set_max_places(&self, max: MaxPlaces) {
        self.max_places.store(max);
    }

    fn has_place<'a>(&'a self, device: &'a DeviceId, enrollment: &'a str) -> StoreFuture<'a, bool> {
        self.answer(|tables, _| Ok(tables.has_place(device, enrollment)))
    }

    fn places<'a>(&'a self, enrollment: &'a str) -> StoreFuture<'a, Places> {
        self.answer(|tables, _| Ok(tables.places(enrollment)))
    }
}

impl WaitingList for Memory {
    fn note_waiting(&self, note: Note) -> StoreFuture<'_, ()> {
        self.answer(|tables, now| {
            tables.note_waiting(note, now);
            Ok(())
        })
    }

    fn waiting<'a>(
        &'a self,
        enrollment: Option<&'a str>,
        after: Option<&'a DeviceId>,
        limit: usize,
    ) -> StoreFuture<'a, Vec<Waiting>> {
        self.answer(|tables, _| {
            let mut devices: Vec<&DeviceId> = Vec::new();
            let mut list = Vec::new();
            for ((device, of), waiting) in &tables.waiting {
                let is_wanted = after.is_none_or(|after| device > after)
                    && enrollment.is_none_or(|enrollment| of == enrollment)
                    && !tables.devices.contains_key(device);
                if !is_wanted {
                    continue;
                }
                if devices.last() != Some(&device) {
                    devices.push(device);
                }
                if devices.len() > limit {
                    break;
                }
                list.push(waiting.clone());
            }
            Ok(list)
        })
    }

    fn waiting_counts(&self) -> StoreFuture<'_, Vec<(String, u64)>> {
        self.answer(|tables, _| {
            let mut counts = BTreeMap::new();
            for (_, enrollment) in tables.waiting.keys() {
                *counts.entry(enrollment.clone()).or_insert(0) += 1;
            }
            Ok(counts.into_iter().collect())
        })
    }

    fn admit(&self, devices: Vec<NewDevice>, by: Admits) -> StoreFuture<'_, Vec<Admission>> {
        self.answer(|tables, now| Ok(devices.into_iter().map(|new| tables.admit(new, &by, now)).collect()))
    }

    fn not_admitted<'a>(
        &'a self,
        new: &'a NewDevice,
        max_rows: Option<u64>,
    ) -> StoreFuture<'a, Option<Admission>> {
        self.answer(|tables, _| Ok(tables.obstacle(new, max_rows)))
    }

    fn dismiss<'a>(&'a self, enrollment: &'a str, devices: &'a [DeviceId]) -> StoreFuture<'a, u64> {
        self.answer(|tables, _| {
            let remove = |device: &&DeviceId| {
                tables.waiting.remove(&((*device).clone(), enrollment.to_owned())).is_some()
            };
            Ok(devices.iter().filter(remove).count() as u64)
        })
    }

    fn prune_waiting(&self, before: UnixSeconds) -> StoreFuture<'_, u64> {
        self.answer(|tables, _| {
            let Tables { waiting, devices, .. } = tables;
            let all = waiting.len();
            waiting.retain(|(device, _), one| one.last >= before && !devices.contains_key(device));
            Ok((all - waiting.len()) as u64)
        })
    }
}

impl Memory {
    /// Returns the maximum numbers of places of this handle.
    pub(super) fn max_places(&self) -> MaxPlaces {
        self.max_places.load_full()
    }
}
