//! Registered devices in the store in memory, as a sweep reads them.

use std::ops::Range;

use super::Memory;
use crate::{
    device::DeviceId,
    store::{
        CloudState, DeviceRow, StoreFuture, UnixSeconds,
        sighting::{Examined, IssuePlace, Sighting, Sightings, Watched},
    },
};

impl Sightings for Memory {
    fn registered_after<'a>(
        &'a self,
        after: Option<&'a DeviceId>,
        limit: usize,
    ) -> StoreFuture<'a, Examined> {
        self.answer(|tables, _| {
            let following = tables.devices.values().filter(|row| after.is_none_or(|after| row.id > *after));
            let rows: Vec<&DeviceRow> = following.take(limit).collect();
            let last = rows.last().filter(|_| rows.len() == limit).map(|row| row.id.clone());
            let devices = rows.into_iter().filter(|row| row.certificate.is_some()).map(Watched::from);
            Ok(Examined { devices: devices.collect(), last })
        })
    }

    fn unactivated<'a>(
        &'a self,
        issued: Range<UnixSeconds>,
        after: Option<&'a IssuePlace>,
        limit: usize,
    ) -> StoreFuture<'a, Vec<Watched>> {
        self.answer(|tables, _| {
            let place = |row: &DeviceRow| (row.first_issued, row.id.clone());
            let is_one = |row: &&DeviceRow| {
                row.certificate.is_some()
                    && row.activated.is_none()
                    && row.cloud_state != Some(CloudState::Deleted)
                    && row.first_issued.is_some_and(|at| issued.contains(&at))
                    && after.is_none_or(|after| place(row) < (Some(after.issued), after.device.clone()))
            };
            let mut rows: Vec<&DeviceRow> = tables.devices.values().filter(is_one).collect();
            rows.sort_by_key(|row| std::cmp::Reverse(place(row)));
            Ok(rows.into_iter().take(limit).map(Watched::from).collect())
        })
    }

    fn store_sightings(&self, sightings: Vec<(Watched, Sighting)>) -> StoreFuture<'_, ()> {
        self.answer(|tables, _| {
            tables.sighting_steps += 1;
            for (seen, sighting) in sightings {
                let is_same = |row: &&mut DeviceRow| {
                    row.certificate.is_some()
                        && row.product_key == seen.product_key
                        && row.name() == seen.device_name
                        && row.registered == seen.registered
                };
                if let Some(row) = tables.devices.get_mut(&seen.id).filter(is_same) {
                    row.activated = row.activated.or(sighting.activated);
                    row.registered = sighting.registered.or(row.registered);
                    row.cloud_state = sighting.state;
                }
            }
            Ok(())
        })
    }
}
