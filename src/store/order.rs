//! Orders: changes to devices at IoT Platform that an operator has asked for. The store keeps an
//! order from before the first call until its result is stored, so that any process can carry it
//! out after a crash. Each call of an order names the device by its `IotId`, which IoT Platform
//! never gives to another device. Therefore a call may be repeated: it cannot meet the device that
//! was registered anew under the same name.

use std::fmt;

use super::{Actor, DeviceRow, DeviceState, StoreFuture, UnixSeconds, audit::AuditEvent, claim::ClaimTime};
use crate::device::DeviceId;

/// Kind of an [`Order`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum OrderKind {
    /// Disables the device at IoT Platform. The table disables it at once.
    Disable,
    /// Enables the device at IoT Platform, and then in the table.
    Enable,
    /// Disables and deletes the device at IoT Platform, and then removes it from the table. The
    /// table disables it at once.
    Delete,
    /// Deletes the device at IoT Platform, and removes its certificate from the table. The store
    /// leaves an abandoned claim in the journal, so that any process registers the device anew, under
    /// the same name and with another secret, and so that it keeps its place in its enrollment.
    Rotate,
}

impl OrderKind {
    /// All kinds.
    pub const ALL: [Self; 4] = [Self::Disable, Self::Enable, Self::Delete, Self::Rotate];

    /// Returns the name in the table, in the audit log and on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Disable => "disable",
            Self::Enable => "enable",
            Self::Delete => "delete",
            Self::Rotate => "rotate",
        }
    }

    /// Returns whether an operator's plain change to the device's row is refused while the device has
    /// this order.
    pub const fn forbids(self, change: PlainChange) -> bool {
        match change {
            PlainChange::Delete => true,
            PlainChange::Enable => self.disables_at_once(),
            PlainChange::Disable => false,
        }
    }

    /// Returns the event of the audit entry about an order that was carried out.
    pub(crate) const fn event(self) -> AuditEvent {
        match self {
            Self::Disable => AuditEvent::Disabled,
            Self::Enable => AuditEvent::Enabled,
            Self::Delete => AuditEvent::Deleted,
            Self::Rotate => AuditEvent::Rotated,
        }
    }

    /// Finds the kind with this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// Returns whether the device no longer exists at IoT Platform once the order is carried out.
    pub const fn removes(self) -> bool {
        matches!(self, Self::Delete | Self::Rotate)
    }

    /// Returns whether the table disables the device as soon as the order is placed.
    pub const fn disables_at_once(self) -> bool {
        matches!(self, Self::Disable | Self::Delete)
    }
}

impl fmt::Display for OrderKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A change that an operator makes to a row, without an order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PlainChange {
    /// The device is enabled.
    Enable,
    /// The device is disabled.
    Disable,
    /// The device is deleted.
    Delete,
}

impl From<DeviceState> for PlainChange {
    fn from(state: DeviceState) -> Self {
        match state {
            DeviceState::Enabled => Self::Enable,
            DeviceState::Disabled => Self::Disable,
        }
    }
}

/// Number of an order. No other order of the store has, or ever had, the same number.
pub type OrderNumber = i64;

/// An order that is not carried out yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Order {
    /// Number of the order. An older order has a smaller number.
    pub number: OrderNumber,
    /// The device.
    pub device: DeviceId,
    /// Change that was asked for.
    pub kind: OrderKind,
    /// Product of the device when the order was placed.
    pub product_key: String,
    /// Name of the device when the order was placed.
    pub device_name: String,
    /// Target at which the device is registered.
    pub target: String,
    /// `IotId` of the device; `None` until it is known. Before it is confirmed, it is only what the
    /// row says.
    pub iot_id: Option<String>,
    /// Set once IoT Platform has confirmed that the `IotId` is that of the device with the row's
    /// certificate.
    pub is_confirmed: bool,
    /// Time at which the order was placed.
    pub at: UnixSeconds,
    /// Operator who placed the order.
    pub by: Actor,
    /// Reason why the order could not be carried out yet: the cloud's last refusal, or a failure.
    pub failure: Option<String>,
}

impl Order {
    /// Returns the detail of the audit entry about this order, once it was carried out.
    pub(crate) fn carried_out(&self) -> String {
        format!("at IoT Platform: {}/{}", self.product_key, self.device_name)
    }

    /// Returns the detail of the audit entry about this order if it ends for this reason, without its
    /// change.
    pub(crate) fn cancelled(&self, reason: &str) -> String {
        format!("{}: {reason}", self.kind)
    }

    /// Returns the reason for which an operator's plain change is refused.
    pub fn conflict(&self) -> String {
        let Self { device, kind, .. } = self;
        format!(
            "device {device} has an order, to {kind} it at IoT Platform; `certdist device cancel {device}` ends it"
        )
    }

    /// Returns whether a row still has the device that the order is about: its product, its name,
    /// its target, its certificate and, if both are known, its `IotId`.
    pub fn fits(&self, row: &DeviceRow) -> bool {
        let is_same = match (&row.iot_id, &self.iot_id) {
            (Some(stored), Some(ordered)) => stored == ordered,
            _ => true,
        };
        is_same
            && row.target() == Some(&self.target)
            && row.certificate.as_ref().is_some_and(|certificate| {
                certificate.product_key == self.product_key && certificate.device_name == self.device_name
            })
    }
}

/// Answer to [`Orders::place_order`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Placed {
    /// The order is in the store. If the device already had an order of this kind, that order
    /// stands.
    Yes(OrderNumber),
    /// The device is not in the table.
    NoDevice,
    /// The device has no certificate, so it is not at IoT Platform. The change was made in the table
    /// alone.
    Here,
    /// The device has no certificate, so it has no secret to rotate.
    NoCertificate,
    /// The device is being registered, so it may be at IoT Platform already.
    Registering,
    /// The device has an order of another kind.
    Other(OrderKind),
}

/// Data that becomes known while an order is carried out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OrderNote {
    /// `IotId` of the device, as IoT Platform has confirmed it.
    IotId(String),
    /// Reason why the order cannot be carried out now.
    Failure(String),
}

/// Result of [`Orders::complete_order`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Completed {
    /// The result is in the table.
    Yes,
    /// The row no longer [fits](Order::fits) the order, so it was not changed. The order has ended.
    RowChanged,
    /// The order has ended before.
    Ended,
}

/// The part of a store that keeps the orders.
///
/// Each write is one step. A write that failed with
/// [`StoreError::Unknown`](super::StoreError::Unknown) can be repeated without harm.
pub trait Orders: Send + Sync + 'static {
    /// Places an order durably, before IoT Platform is called for it, and writes audit entries that
    /// name `by`. An order that [disables at once](OrderKind::disables_at_once) disables the device
    /// in the table, in the same step. If the device has no certificate, the change is made in the
    /// table alone, unless the device is being registered.
    ///
    /// While a device has an order, it is not registered. An operator's plain change that
    /// contradicts the order fails with [`StoreError::Conflict`](super::StoreError::Conflict):
    /// deleting the device, and enabling one that is to be disabled or deleted. Disabling a device
    /// cancels the order to enable it.
    fn place_order<'a>(
        &'a self,
        device: &'a DeviceId,
        kind: OrderKind,
        by: &'a Actor,
    ) -> StoreFuture<'a, Placed>;

    /// Returns up to `limit` orders with numbers above `after`, oldest first; those of one target, or
    /// all.
    fn orders_after<'a>(
        &'a self,
        target: Option<&'a str>,
        after: OrderNumber,
        limit: usize,
    ) -> StoreFuture<'a, Vec<Order>>;

    /// Returns the order of a device, if it has one.
    fn order_of<'a>(&'a self, device: &'a DeviceId) -> StoreFuture<'a, Option<Order>>;

    /// Notes what has become known about an order. Returns whether the order is still there.
    fn note_order(&self, number: OrderNumber, note: OrderNote) -> StoreFuture<'_, bool>;

    /// Stores the result of an order that was carried out, ends the order, and writes an audit entry
    /// that names the operator who placed it. `now` is the time of the claim that a rotation leaves.
    fn complete_order<'a>(&'a self, order: &'a Order, now: ClaimTime) -> StoreFuture<'a, Completed>;

    /// Ends an order that was not carried out, and writes an audit entry with the reason. Other
    /// than that, the device stays as it is. Returns whether the order was there.
    fn end_order<'a>(&'a self, number: OrderNumber, reason: &'a str, by: &'a Actor) -> StoreFuture<'a, bool>;
}

/// Detail of the audit entry about a change that was made in the table alone.
pub(crate) const IN_TABLE: &str = "in the table";
/// Reason of an order that ends because its row no longer [fits](Order::fits).
pub(crate) const ROW_CHANGED: &str = "the row was changed meanwhile";
/// Reason of an order to enable a device that an operator has disabled since.
pub(crate) const DISABLED_SINCE: &str = "the operator disabled the device";
