//! Rolls of individual keys in the store in memory.

use std::time::Duration;

use super::{Memory, Tables};
use crate::{
    device::{DeviceId, Secret},
    store::{
        Actor, StoreFuture, UnixSeconds,
        roll::{DeviceKeys, Ended, Ending, OwnUse, Roll, RollCount, Rolls},
    },
};

/// Keys of a device, without their identity.
#[derive(Debug, Clone)]
pub(super) struct Keys {
    pub(super) psk: Secret,
    /// Second key, and its roll.
    pub(super) next: Option<(Secret, Roll)>,
}

impl Keys {
    pub(super) fn new(psk: &Secret, next: Option<&Secret>, since: UnixSeconds) -> Self {
        let roll = Roll { since, used: [None; 2] };
        Self { psk: psk.clone(), next: next.map(|next| (next.clone(), roll)) }
    }

    pub(super) fn of(&self, identity: &str) -> DeviceKeys {
        let next = self.next.as_ref().map(|(next, _)| next.clone());
        let used = self.next.as_ref().map(|(_, roll)| roll.used).unwrap_or_default();
        DeviceKeys { identity: identity.to_owned(), psk: self.psk.clone(), next, used }
    }
}

impl Tables {
    /// Returns the identity of a device, and its keys.
    pub(super) fn keys_of(&self, device: &DeviceId) -> Option<DeviceKeys> {
        let (identity, (_, keys)) = self.keys.iter().find(|(_, (owner, _))| owner == device)?;
        Some(keys.of(identity))
    }

    pub(super) fn roll_of(&self, device: &DeviceId) -> Option<Roll> {
        let (_, keys) = self.keys.values().find(|(owner, _)| owner == device)?;
        keys.next.as_ref().map(|(_, roll)| *roll)
    }

    /// Returns the devices of an enrollment that have a second key.
    fn rolling(&self, enrollment: &str) -> impl Iterator<Item = (&DeviceId, Roll)> {
        let of_enrollment = self.devices.values().filter(move |row| row.enrollment == enrollment);
        of_enrollment.filter_map(|row| Some((&row.id, self.roll_of(&row.id)?)))
    }

    fn end_roll(&mut self, device: &DeviceId, ending: Ending, by: &Actor, now: UnixSeconds) -> Ended {
        let keys = self.keys.values_mut().find(|(owner, _)| owner == device);
        let Some((_, keys)) = keys else { return Ended::NoRoll };
        match keys.next.take() {
            None => return Ended::NoRoll,
            Some((next, roll)) if !ending.is_due(roll) => {
                keys.next = Some((next, roll));
                return Ended::NotDue;
            }
            Some((next, _)) if ending.takes_next() => keys.psk = next,
            Some(_) => {}
        }
        self.touch(device);
        self.audit.push(ending.entry(device, by, now));
        Ended::Ended
    }
}

impl Rolls for Memory {
    fn note_own_uses(&self, uses: Vec<OwnUse>) -> StoreFuture<'_, ()> {
        self.answer(|tables, now| {
            for OwnUse { identity, since, used } in uses {
                let keys = tables.keys.get_mut(&identity);
                let roll = keys.and_then(|(_, keys)| keys.next.as_mut()).map(|(_, roll)| roll);
                let Some(roll) = roll.filter(|roll| Some(roll.since) == since) else { continue };
                for (stored, new) in roll.used.iter_mut().zip(used) {
                    let new = new.filter(|new| *new >= roll.since || roll.since > now);
                    *stored = stored.filter(|stored| *stored <= now).max(new);
                }
            }
            Ok(())
        })
    }

    fn roll_of<'a>(&'a self, device: &'a DeviceId) -> StoreFuture<'a, Option<Roll>> {
        self.answer(|tables, _| Ok(tables.roll_of(device)))
    }

    fn rolling<'a>(
        &'a self,
        enrollment: &'a str,
        after: Option<&'a DeviceId>,
        limit: usize,
    ) -> StoreFuture<'a, Vec<DeviceId>> {
        self.answer(|tables, _| {
            let rolling = tables.rolling(enrollment).map(|(device, _)| device);
            Ok(rolling
                .filter(|device| after.is_none_or(|after| *device > after))
                .take(limit)
                .cloned()
                .collect())
        })
    }

    fn count_rolling<'a>(&'a self, enrollment: &'a str, _time: Duration) -> StoreFuture<'a, RollCount> {
        self.answer(|tables, _| {
            let mut count = RollCount { is_complete: true, ..RollCount::default() };
            tables.rolling(enrollment).for_each(|(_, roll)| count.add(roll));
            Ok(count)
        })
    }

    fn end_roll<'a>(&'a self, device: &'a DeviceId, ending: Ending, by: &'a Actor) -> StoreFuture<'a, Ended> {
        self.answer(|tables, now| Ok(tables.end_roll(device, ending, by, now)))
    }
}
