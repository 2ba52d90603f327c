//! Places of an enrollment: its devices with a certificate, those whose registration has begun, and
//! those that were rotated and have no new certificate yet. A store counts them, and takes a place
//! in the same step as the claim that needs it. A maximum therefore holds even if several processes
//! register devices.

use std::{collections::HashMap, sync::Arc};

use super::{StoreError, StoreFuture};
use crate::device::DeviceId;

/// Number of places that are taken in an enrollment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Places {
    /// Devices with a certificate, whether they were registered or imported.
    pub registered: u64,
    /// Devices whose registration has begun, so that they are in the journal, and devices that were
    /// rotated and have no new certificate yet.
    pub claimed: u64,
}

impl Places {
    /// Returns the number of free places if there are `max` in all.
    pub(crate) fn free(self, max: u64) -> u64 {
        max.saturating_sub(self.registered).saturating_sub(self.claimed)
    }
}

/// Maximum number of places by enrollment. An enrollment without an entry has no maximum.
pub type MaxPlaces = Arc<HashMap<String, u64>>;

/// Counts the places of an enrollment that devices other than `device` have taken. If `device` has a
/// place itself, that place is not counted.
pub async fn taken(
    store: &(impl CountsPlaces + ?Sized),
    enrollment: &str,
    device: &DeviceId,
) -> Result<Places, StoreError> {
    match store.has_place(device, enrollment).await? {
        true => Ok(Places::default()),
        false => store.places(enrollment).await,
    }
}

/// Counts the places of an enrollment for a report, with the maximum `max`. `registered` is the number
/// of its certificates. Asks the store only if further places can make a difference.
pub async fn reported(
    store: &(impl CountsPlaces + ?Sized),
    enrollment: &str,
    registered: u64,
    max: Option<u64>,
) -> Result<Places, StoreError> {
    match max {
        Some(max) if registered < max => store.places(enrollment).await,
        _ => Ok(Places { registered, claimed: 0 }),
    }
}

/// The part of a store that counts places.
pub trait CountsPlaces: Send + Sync + 'static {
    /// Sets the maximum number of places for the claims of this handle. From then on, a claim that
    /// needs a place and finds none is answered with
    /// [`NoPlace`](super::claim::Claimed::NoPlace). A device that is in the journal has its place, and
    /// a device that was rotated keeps the one that its certificate had.
    fn set_max_places(&self, max: MaxPlaces);

    /// Returns whether a device without a certificate has a place in an enrollment. An import may
    /// have moved the device to another enrollment since the device took its place.
    fn has_place<'a>(&'a self, device: &'a DeviceId, enrollment: &'a str) -> StoreFuture<'a, bool>;

    /// Counts the places that are taken in an enrollment.
    fn places<'a>(&'a self, enrollment: &'a str) -> StoreFuture<'a, Places>;
}
