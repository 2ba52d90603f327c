//! Registered devices as a sweep compares them with IoT Platform. `Sightings` is the part of a
//! store that reads them and stores what IoT Platform says about them. No type here contains a
//! secret, so a sweep over a sealed table opens no secret.

use std::ops::Range;

use super::{CloudState, StoreFuture, UnixSeconds};
use crate::device::DeviceId;

/// Part of a registered device's row that a sweep compares with IoT Platform.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Watched {
    /// The device.
    pub id: DeviceId,
    /// Product in which the device is registered.
    pub product_key: String,
    /// Device name in its certificate.
    pub device_name: String,
    /// Time at which the certificate was first issued.
    pub first_issued: Option<UnixSeconds>,
    /// Time of the registration at IoT Platform.
    pub registered: Option<UnixSeconds>,
    /// Time of the first sign-in at IoT Platform.
    pub activated: Option<UnixSeconds>,
    /// Abnormal state at IoT Platform, as of the last query.
    pub cloud_state: Option<CloudState>,
    /// Target at which the device is registered.
    pub target: String,
}

#[cfg(test)]
impl From<&super::DeviceRow> for Watched {
    fn from(row: &super::DeviceRow) -> Self {
        Self {
            id: row.id.clone(),
            product_key: row.product_key.clone(),
            device_name: row.name(),
            first_issued: row.first_issued,
            registered: row.registered,
            activated: row.activated,
            cloud_state: row.cloud_state,
            target: row.target.clone().unwrap_or_else(|| crate::target::DEFAULT.to_owned()),
        }
    }
}

/// Data that a query of IoT Platform has returned about a device.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sighting {
    /// Time of the registration, by the cloud's clock.
    pub registered: Option<UnixSeconds>,
    /// Time of the first sign-in at IoT Platform.
    pub activated: Option<UnixSeconds>,
    /// Abnormal state; `None` if the device is neither disabled nor deleted.
    pub state: Option<CloudState>,
}

/// Registered devices among some consecutive rows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Examined {
    /// The registered devices, in order of device ID.
    pub devices: Vec<Watched>,
    /// ID of the last row that was examined, if further rows may follow.
    pub last: Option<DeviceId>,
}

/// A device's place in the order of the first issues.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IssuePlace {
    /// Time of the first issue.
    pub issued: UnixSeconds,
    /// The device.
    pub device: DeviceId,
}

/// The part of a store that compares registered devices with IoT Platform.
pub trait Sightings: Send + Sync + 'static {
    /// Examines up to `limit` rows in order of device ID, beginning after the ID `after`, and
    /// returns the devices among them that have a certificate. The work is bounded by `limit`, even
    /// if no device has a certificate.
    fn registered_after<'a>(&'a self, after: Option<&'a DeviceId>, limit: usize)
    -> StoreFuture<'a, Examined>;

    /// Returns up to `limit` devices whose certificate was first issued within `issued` and whose
    /// first sign-in is not known. Devices that were deleted at IoT Platform are left out. The
    /// device with the latest issue comes first, and devices with the same time are in descending
    /// order of their IDs. The result begins after the place `after`. The work is bounded by the
    /// number of these devices, not by the size of the table.
    fn unactivated<'a>(
        &'a self,
        issued: Range<UnixSeconds>,
        after: Option<&'a IssuePlace>,
        limit: usize,
    ) -> StoreFuture<'a, Vec<Watched>>;

    /// Stores the cloud's data about devices, in one step. Ignores a device that no longer has the
    /// certificate and the registration time that were seen. If the cloud omits a time, the stored
    /// time stays. A stored time of the first sign-in is never overwritten.
    fn store_sightings(&self, sightings: Vec<(Watched, Sighting)>) -> StoreFuture<'_, ()>;

    /// Stores the cloud's data about one device, like
    /// [`store_sightings`](Self::store_sightings).
    #[cfg(test)]
    fn store_sighting<'a>(&'a self, seen: &super::DeviceRow, sighting: Sighting) -> StoreFuture<'a, ()> {
        self.store_sightings(vec![(seen.into(), sighting)])
    }
}
