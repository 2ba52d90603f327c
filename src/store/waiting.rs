//! Devices that wait to be admitted. They have proven a key of an enrollment with `unlisted =
//! "hold"`, but are not in the table. The list is bounded. A client with a shared key can invent
//! device IDs, but can neither displace other devices nor fill the list from one address.

use super::{
    Actor, StoreFuture, UnixSeconds,
    audit::{Asker, AuditEntry, AuditEvent},
};
use crate::device::DeviceId;

/// Maximum number of devices that wait in one enrollment. At the limit, no further device is added.
pub const MOST_OF_ENROLLMENT: u64 = 10_000;

/// Maximum number of devices that wait in all enrollments together.
pub const MOST: u64 = 100_000;

/// Maximum number of devices that were added from one address under one shared key.
pub const MOST_OF_ADDRESS: u64 = 1000;

/// Time after which a device that has not asked again is removed from the list, in seconds.
pub const KEPT: UnixSeconds = 30 * 86_400;

/// A device that waits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiting {
    /// Device ID by which the device asks.
    pub device: DeviceId,
    /// Enrollment whose key the device has proven.
    pub enrollment: String,
    /// Time of the first request.
    pub first: UnixSeconds,
    /// Time of the last request.
    pub last: UnixSeconds,
    /// Number of requests.
    pub count: u64,
    /// Origin of the first request.
    pub address: String,
}

/// A request of a device that waits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    /// The device.
    pub device: DeviceId,
    /// The client. The device waits in the client's enrollment.
    pub asker: Asker,
    /// Set if the client has proven only a shared key. It may then have invented the device ID.
    pub is_shared: bool,
}

/// A device that is added to the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewDevice {
    /// The device.
    pub device: DeviceId,
    /// Its enrollment.
    pub enrollment: String,
    /// The product of its enrollment.
    pub product_key: String,
}

/// Authority that admits a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Admits {
    /// An operator.
    Operator(Actor),
    /// The configuration (`unlisted = "admit"`), at a request of this client. Afterwards, the
    /// enrollment may have at most `max_rows` devices in the table.
    Configuration {
        /// The client.
        asker: Asker,
        /// Maximum number of devices; `None`: no maximum.
        max_rows: Option<u64>,
    },
}

impl Admits {
    /// Returns the maximum number of devices that the enrollment may have in the table; `None` for
    /// an operator, who is not limited.
    pub(crate) fn max_rows(&self) -> Option<u64> {
        match self {
            Self::Operator(_) => None,
            Self::Configuration { max_rows, .. } => *max_rows,
        }
    }

    /// Returns the audit entry about a device that was added.
    pub(crate) fn entry(&self, new: &NewDevice, at: UnixSeconds) -> AuditEntry {
        let NewDevice { device, enrollment, .. } = new;
        match self {
            Self::Operator(by) => AuditEntry {
                device: Some(device.clone()),
                enrollment: Some(enrollment.clone()),
                ..by.entry(AuditEvent::Admitted, at)
            },
            Self::Configuration { asker, .. } => {
                let detail = "unlisted = \"admit\"".to_owned();
                asker.clone().entry(AuditEvent::Admitted, at, device.clone(), detail)
            }
        }
    }
}

/// Result of admitting a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Admission {
    /// The device was added.
    Added,
    /// The device is already in the table, in this enrollment. Nothing was changed.
    Known,
    /// The device is already in the table, in another enrollment. Nothing was changed.
    Elsewhere,
    /// This other device of the product already has the name that the device would get.
    NameTaken(DeviceId),
    /// The enrollment has as many devices as it may have. Every device outside the enrollment gets
    /// this result, even one that could not be added for another reason.
    Full,
    /// An unfinished import adds, or an undo removes, the device or another device that has its
    /// name. Nothing was changed. The caller must try again later.
    Later,
}

/// The part of a store that keeps the devices that wait.
pub trait WaitingList: Send + Sync + 'static {
    /// Notes a request. Does nothing if the device is in the table, in any enrollment, or if the
    /// list is full. A full list still notes further requests of the devices in it.
    fn note_waiting(&self, note: Note) -> StoreFuture<'_, ()>;

    /// Returns up to `limit` devices in order of their IDs, beginning after the device `after`, and
    /// all enrollments in which each of them waits. Leaves out devices that are in the table.
    fn waiting<'a>(
        &'a self,
        enrollment: Option<&'a str>,
        after: Option<&'a DeviceId>,
        limit: usize,
    ) -> StoreFuture<'a, Vec<Waiting>>;

    /// Returns the number of devices that wait in each enrollment. May count devices that have been
    /// imported meanwhile.
    fn waiting_counts(&self) -> StoreFuture<'_, Vec<(String, u64)>>;

    /// Adds devices to the table as an import adds them, and removes them from the list, in one
    /// step with their audit entries. Never changes a device that is already in the table. Returns
    /// a result for each device. If the configuration admits a device that must wait for the end of
    /// an import, fails with [`StoreError::Busy`](super::StoreError::Busy) instead of
    /// [`Admission::Later`].
    fn admit(&self, devices: Vec<NewDevice>, by: Admits) -> StoreFuture<'_, Vec<Admission>>;

    /// Returns the result that [`admit`](Self::admit) by the configuration would have for a device,
    /// or `None` if it would add the device. Writes nothing.
    fn not_admitted<'a>(
        &'a self,
        new: &'a NewDevice,
        max_rows: Option<u64>,
    ) -> StoreFuture<'a, Option<Admission>>;

    /// Removes devices from the list of an enrollment. Returns the number of removed devices.
    fn dismiss<'a>(&'a self, enrollment: &'a str, devices: &'a [DeviceId]) -> StoreFuture<'a, u64>;

    /// Removes the devices that have not asked since `before`, and the devices that are in the
    /// table. Returns the number of removed devices. Removes them in steps, the first of which
    /// begins at once.
    fn prune_waiting(&self, before: UnixSeconds) -> StoreFuture<'_, u64>;
}
