//! Orders: changes to devices at IoT Platform that an operator has asked for. The store keeps an
//! order from before the first call until its result is stored, so that any process can carry it out
//! after a crash. Calls that change a device name it by its `IotId`, which IoT Platform never gives
//! to another device. A call can therefore be repeated: it never changes a device that was
//! registered later under the same name.
//!
//! An order to move a device has several [steps](Step). Until the certificate of the new target is
//! stored, the row keeps the former certificate, and the device still gets that one.

use std::fmt;

use super::{
    Actor, DeviceRow, DeviceState, RegisteredDevice, StoreError, StoreFuture, UnixSeconds,
    audit::AuditEvent,
    claim::{ClaimTime, OwnerId},
};
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
    /// leaves an abandoned claim in the journal. The claim keeps the device's place in its
    /// enrollment, and lets any process register the device again, under the same name and with
    /// another secret.
    Rotate,
    /// Registers the device at another target, and then replaces its certificate in the table. At the
    /// end, the former device may be disabled or deleted.
    Move,
}

impl OrderKind {
    /// The kinds that [`Orders::place_order`] places.
    pub const PLAIN: [Self; 4] = [Self::Disable, Self::Enable, Self::Delete, Self::Rotate];

    /// Returns the name in the table, in the audit log and on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Disable => "disable",
            Self::Enable => "enable",
            Self::Delete => "delete",
            Self::Rotate => "rotate",
            Self::Move => "move",
        }
    }

    /// Returns whether an operator's plain change to the device's row is refused while the device has
    /// this order.
    const fn forbids(self, change: PlainChange) -> bool {
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
            Self::Move => AuditEvent::Moved,
        }
    }

    /// Finds the kind with this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::PLAIN.into_iter().chain([Self::Move]).find(|kind| kind.name() == name)
    }

    /// Returns whether the device no longer exists at IoT Platform once the order is carried out.
    pub const fn removes(self) -> bool {
        matches!(self, Self::Delete | Self::Rotate)
    }

    /// Returns the answer to an order of this kind for a device that has the order `known` already.
    pub(crate) fn beside(self, known: &Order) -> Placed {
        if known.kind == self { Placed::Yes(known.number) } else { Placed::Other(known.kind) }
    }

    /// Returns whether the device gets a new certificate when the order is carried out. The new
    /// certificate counts as a first one.
    pub const fn registers_anew(self) -> bool {
        match self {
            Self::Disable | Self::Enable | Self::Delete => false,
            Self::Rotate | Self::Move => true,
        }
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

/// Treatment of the device at the former target, once a move has stored the new certificate.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Former {
    /// The device stays as it is.
    #[default]
    Keep,
    /// The device is disabled.
    Disable,
    /// The device is disabled and deleted.
    Delete,
}

impl Former {
    /// Returns the name in the table and on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Keep => "keep",
            Self::Disable => "disable",
            Self::Delete => "delete",
        }
    }

    /// Finds the treatment with this name.
    pub fn named(name: &str) -> Option<Self> {
        [Self::Keep, Self::Disable, Self::Delete].into_iter().find(|former| former.name() == name)
    }
}

/// Destination of a move.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Move {
    /// Target at which the device is registered.
    pub target: String,
    /// Product in which the device is registered there.
    pub product_key: String,
    /// Treatment of the device at the former target.
    pub former: Former,
}

/// State of an order to move a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Moving {
    /// Target at which the device was registered when the order was placed.
    pub from: String,
    /// Destination.
    pub to: Move,
    /// Time of the first call that may have registered the device at the new target; `None` if no
    /// call can have done so.
    pub asked: Option<ClaimTime>,
    /// Set once the certificate of the new target is in the row.
    pub is_stored: bool,
}

/// Next step of an order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Asks the former target for the `IotId` of the device that is disabled or deleted at the end
    /// of a move. This step comes first, because the row has the certificate that proves the `IotId`
    /// only until the new certificate is stored.
    Confirm,
    /// Registers the device at the new target, and stores its certificate.
    Register,
    /// Disables, enables or deletes the device with the order's `IotId`. Any order other than a move
    /// has only this step.
    Change,
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
    /// Target at which the next call is made.
    pub target: String,
    /// `IotId` of the device; `None` until it is known. Until it is confirmed, it is the unverified
    /// value of the row.
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
    /// State of a move; `None` for any other kind.
    pub moving: Option<Moving>,
}

impl Order {
    /// Returns the next step.
    pub fn step(&self) -> Step {
        match &self.moving {
            Some(moving) if moving.is_stored => Step::Change,
            Some(moving) if moving.to.former != Former::Keep && !self.is_confirmed => Step::Confirm,
            Some(_) => Step::Register,
            None => Step::Change,
        }
    }

    /// Returns the product of the next call.
    pub fn next_product(&self) -> &str {
        match &self.moving {
            Some(moving) if self.step() == Step::Register => &moving.to.product_key,
            _ => &self.product_key,
        }
    }

    /// Returns whether the order is done if the device does not exist at IoT Platform.
    pub fn accepts_absence(&self) -> bool {
        self.kind.removes() || self.moving.is_some()
    }

    /// Returns the detail of the audit entry about this order, once it was carried out.
    pub(crate) fn carried_out(&self) -> String {
        let Self { product_key, device_name, .. } = self;
        match &self.moving {
            None => format!("at IoT Platform: {product_key}/{device_name}"),
            Some(moving) => {
                let done = if moving.to.former == Former::Delete { "deleted" } else { "disabled" };
                format!("the former device was {done} at {}: {product_key}/{device_name}", moving.from)
            }
        }
    }

    /// Returns the detail of the audit entry about this order when it ends without its change.
    /// `reason` says why it ends.
    pub(crate) fn cancelled(&self, reason: &str) -> String {
        let left = self.left_behind().map(|left| format!("; {left}")).unwrap_or_default();
        format!("{}: {reason}{left}", self.work())
    }

    /// Describes the device that this order may leave behind at IoT Platform without a row, if the
    /// order ends now: a move may have registered it at the new target. `None` if there is no such
    /// device.
    pub fn left_behind(&self) -> Option<String> {
        let moving = self.moving.as_ref().filter(|moving| moving.asked.is_some() && !moving.is_stored)?;
        let Move { target, product_key, .. } = &moving.to;
        Some(format!(
            "device {product_key}/{} may exist at {target}; if no row of the table has it, delete it there",
            self.device_name
        ))
    }

    /// Returns the detail of the audit entry about a device that this order has registered at the new
    /// target although the order had ended; `None` if the order is no move, or the row has the device.
    pub(crate) fn orphaned(&self, row: Option<&DeviceRow>, device_name: &str) -> Option<String> {
        let Move { target, product_key, .. } = &self.moving.as_ref()?.to;
        let has_it = row.is_some_and(|row| {
            row.target() == Some(target)
                && row.certificate.as_ref().is_some_and(|certificate| {
                    certificate.product_key == *product_key && certificate.device_name == device_name
                })
        });
        let left = || {
            format!(
                "device {product_key}/{device_name} is at {target}; if no row of the table has it, delete it there"
            )
        };
        (!has_it).then(|| format!("{}: the order had ended; {}", self.work(), left()))
    }

    /// Returns whether the former device of a move does not exist any more.
    pub(crate) fn former_is_gone(&self) -> bool {
        self.moving.is_some() && self.is_confirmed && self.iot_id.is_none()
    }

    /// Returns whether a move has ended once the certificate of the new target is stored, because
    /// nothing is left to do at the former target.
    pub(crate) fn ends_when_stored(&self) -> bool {
        self.former_is_gone() || self.moving.as_ref().is_some_and(|moving| moving.to.former == Former::Keep)
    }

    /// Describes the rest of the work for this order.
    pub fn work(&self) -> String {
        match &self.moving {
            None => self.kind.to_string(),
            Some(Moving { from, to, is_stored: true, .. }) => {
                format!("{} the former device at {from}, after a move", to.former.name())
            }
            Some(Moving { to, .. }) => format!("move to {}, product {}", to.target, to.product_key),
        }
    }

    /// Returns whether an operator's plain change ends this order. Fails if the order forbids the
    /// change.
    pub(crate) fn yields_to(&self, change: PlainChange) -> Result<bool, StoreError> {
        let Self { device, kind, .. } = self;
        if kind.forbids(change) {
            return Err(StoreError::Conflict(format!(
                "device {device} has an order, to {kind} it at IoT Platform; `certdist device cancel {device}` ends it"
            )));
        }
        Ok((change, *kind) == (PlainChange::Disable, OrderKind::Enable))
    }

    /// Returns whether this is a move whose new certificate is stored. The row no longer describes the
    /// former device then.
    pub(crate) fn is_stored(&self) -> bool {
        self.moving.as_ref().is_some_and(|moving| moving.is_stored)
    }

    /// Returns whether a row still has the device that the order is about: its product, its name,
    /// its target, its certificate and, if both are known, its `IotId`.
    pub fn fits(&self, row: &DeviceRow) -> bool {
        let is_same = match (&row.iot_id, &self.iot_id) {
            (Some(stored), Some(ordered)) => stored == ordered,
            _ => true,
        };
        let target = self.moving.as_ref().map_or(&self.target, |moving| &moving.from);
        is_same
            && row.target() == Some(target)
            && row.certificate.as_ref().is_some_and(|certificate| {
                certificate.product_key == self.product_key && certificate.device_name == self.device_name
            })
    }
}

impl Moving {
    /// Returns the detail of the audit entry about a device that was moved.
    pub(crate) fn detail(&self, order: &Order) -> String {
        let Order { product_key, device_name, .. } = order;
        let Self { from, to, .. } = self;
        format!(
            "from {from} ({product_key}/{device_name}) to {} ({}/{device_name})",
            to.target, to.product_key
        )
    }
}

impl Move {
    /// Returns the answer to this move of a device that has the order `known` already.
    pub(crate) fn beside(&self, known: &Order) -> Placed {
        match &known.moving {
            Some(moving) if moving.to == *self => Placed::Yes(known.number),
            _ => Placed::Other(known.kind),
        }
    }

    /// Returns the answer to this move of a device that it would not move, because of the row's target
    /// or product; `None` for any other device.
    pub(crate) fn is_needless_for(&self, row: &DeviceRow) -> Option<Placed> {
        match &row.certificate {
            Some(_) if row.target().unwrap_or_default() == self.target => Some(Placed::There),
            Some(known) if known.product_key == self.product_key => Some(Placed::SameProduct),
            None if row.target.as_deref() == Some(&self.target) && row.product_key == self.product_key => {
                Some(Placed::There)
            }
            _ => None,
        }
    }

    /// Returns the target of the first call about a device that is registered at `from`.
    pub(crate) fn first_target<'a>(&'a self, from: &'a str) -> &'a str {
        if self.former == Former::Keep { &self.target } else { from }
    }

    /// Returns the detail of the audit entry about a device that was moved in the table alone.
    pub(crate) fn detail_in_table(&self, row: &DeviceRow) -> String {
        let from = row.target().map(|from| format!("from {from} ")).unwrap_or_default();
        format!("{IN_TABLE}: {from}to {} ({}/{})", self.target, self.product_key, row.name())
    }
}

/// Answer to [`Orders::place_order`] and [`Orders::place_move`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Placed {
    /// The order is in the store. If the device already had such an order (for a move: with the same
    /// destination), no order was added, and this is the number of that order.
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
    /// A registration of the device has begun at this target and may have been carried out there. No
    /// process continues it now.
    Begun(String),
    /// The device has an order of another kind, or a move to another destination.
    Other(OrderKind),
    /// The device is at the target of the move already.
    There,
    /// The device is in the product of the move already, and a product belongs to one target only.
    SameProduct,
    /// This other device has the same name in the product of the move.
    NameTaken(DeviceId),
}

/// Data that becomes known while an order is carried out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OrderNote {
    /// `IotId` of the device, as IoT Platform has confirmed it.
    IotId(String),
    /// Reason why the order cannot be carried out now.
    Failure(String),
    /// The device at the former target of a move no longer exists, so nothing is left to do there.
    FormerIsGone,
    /// Time of the first call that may have registered the device at the new target of a move. If
    /// the order already has such a time, it keeps that one.
    Asked(ClaimTime, Carrier),
    /// No call can have registered the device at the new target of a move. Only the carrier whose
    /// [`Asked`](Self::Asked) was noted may note this.
    NotAsked(Carrier),
}

/// The process that carries out the orders of a target. While it has the lease on this work, no other
/// process makes a call for these orders. A process that was suspended may have lost the lease
/// without noticing it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Carrier {
    /// The process.
    pub owner: OwnerId,
    /// Name of the lease.
    pub lease: String,
}

/// Treatment of a registration that has begun at another target, when the device is moved before it
/// has a certificate.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Begun {
    /// The registration stays in the journal if it may have been carried out, and the device is not
    /// moved.
    #[default]
    Keep,
    /// The registration is removed from the journal, unless a process is carrying it out. The device
    /// may stay at the other target without a row.
    Abandon,
}

/// Claim on a device that has no certificate and is to be moved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BegunClaim {
    /// Target, product and name of the registration.
    pub(crate) target: String,
    pub(crate) product_key: String,
    pub(crate) device_name: String,
    /// Set if a living process has the claim.
    pub(crate) has_owner: bool,
    /// Set if IoT Platform may have been called for the device, or may be called for a batch that it
    /// is in.
    pub(crate) may_be_asked: bool,
}

impl BegunClaim {
    /// Returns the answer to a move of the device; `None` if the move ends the claim.
    pub(crate) fn answer(&self, begun: Begun) -> Option<Placed> {
        match begun {
            _ if self.has_owner => Some(Placed::Registering),
            Begun::Keep if self.may_be_asked => Some(Placed::Begun(self.target.clone())),
            Begun::Keep | Begun::Abandon => None,
        }
    }

    /// Returns the end of the audit entry about a move that ends this claim.
    pub(crate) fn detail(&self) -> String {
        let Self { target, product_key, device_name, .. } = self;
        match self.may_be_asked {
            true => format!(
                "; gave up the registration that had begun at {target}: device {product_key}/{device_name} may exist \
                 there; if no row of the table has it, delete it there"
            ),
            false => String::new(),
        }
    }
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
    /// The order is a move, and the certificate of the new target is not stored yet. The order stays.
    Unfinished,
}

/// Result of [`Orders::store_move`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Moved {
    /// The certificate is in the row. The order has ended, unless the former device still has to be
    /// disabled or deleted.
    Yes,
    /// The row no longer [fits](Order::fits) the order, so it was not changed. The order has ended.
    RowChanged,
    /// The order has ended before, and the row has the certificate of the new target.
    Ended,
    /// The order has ended before, and the row has another device or is gone. An audit entry names the
    /// device at the new target.
    Orphaned,
    /// This other device has the same name in the new product. Nothing was changed.
    NameTaken(DeviceId),
    /// This other device has the same `IotId`. Nothing was changed.
    IotIdTaken(DeviceId),
}

/// The part of a store that keeps the orders.
///
/// Each write is one step. A write that failed with
/// [`StoreError::Unknown`] can be repeated without harm.
pub trait Orders: Send + Sync + 'static {
    /// Places an order durably, before IoT Platform is called for it, and writes audit entries that
    /// name `by`. An order that [disables at once](OrderKind::disables_at_once) disables the device
    /// in the table, in the same step. If the device has no certificate, the change is made in the
    /// table alone, unless the device is being registered.
    ///
    /// Fails for a move, which needs a destination.
    ///
    /// While a device has an order, it is not registered. An operator's plain change that
    /// contradicts the order fails with [`StoreError::Conflict`]:
    /// deleting the device, and enabling one that is to be disabled or deleted. Disabling a device
    /// cancels the order to enable it.
    fn place_order<'a>(
        &'a self,
        device: &'a DeviceId,
        kind: OrderKind,
        by: &'a Actor,
    ) -> StoreFuture<'a, Placed>;

    /// Places an order to move a device durably, and writes an audit entry that names `by`. The row
    /// stays as it is until [`store_move`](Self::store_move). If the device has no certificate, its
    /// row gets the target and the product of the move at once and loses its refusal, and no order is
    /// placed, unless the device is being registered. An abandoned claim on it ends if IoT Platform was
    /// certainly not called for the device; otherwise `begun` decides.
    fn place_move<'a>(
        &'a self,
        device: &'a DeviceId,
        to: &'a Move,
        begun: Begun,
        by: &'a Actor,
    ) -> StoreFuture<'a, Placed>;

    /// Returns up to `limit` orders with numbers above `after`, oldest first. With a `target`,
    /// returns only orders whose next call goes to that target.
    fn orders_after<'a>(
        &'a self,
        target: Option<&'a str>,
        after: OrderNumber,
        limit: usize,
    ) -> StoreFuture<'a, Vec<Order>>;

    /// Returns the order of a device, if it has one.
    fn order_of<'a>(&'a self, device: &'a DeviceId) -> StoreFuture<'a, Option<Order>>;

    /// Notes what has become known about an order. Returns whether it was noted: false if the order has
    /// ended, its state contradicts the note, or the carrier has lost its lease.
    fn note_order(&self, number: OrderNumber, note: OrderNote) -> StoreFuture<'_, bool>;

    /// Stores the certificate of the new target in the row of a device that is moved, together with
    /// the target and the product, and writes an audit entry that names the operator who placed the
    /// order. The certificate counts as never issued. Ends the order, unless the former device still
    /// has to be disabled or deleted: then the order's next call goes to the former target.
    ///
    /// # Errors
    ///
    /// [`StoreError::Busy`] if an unfinished import adds, or an undo removes,
    /// another device with the same name or `IotId`.
    fn store_move<'a>(&'a self, order: &'a Order, registered: &'a RegisteredDevice)
    -> StoreFuture<'a, Moved>;

    /// Stores the result of an order that was carried out, ends the order, and writes an audit entry
    /// that names the operator who placed it. `now` is the time of the claim that a rotation leaves.
    fn complete_order<'a>(&'a self, order: &'a Order, now: ClaimTime) -> StoreFuture<'a, Completed>;

    /// Ends an order that was not carried out, and writes an audit entry with the reason. The device
    /// itself stays as it is. Returns whether the order existed.
    fn end_order<'a>(&'a self, number: OrderNumber, reason: &'a str, by: &'a Actor) -> StoreFuture<'a, bool>;

    /// Ends an order that cannot be carried out, as [`end_order`](Self::end_order) does, and returns it
    /// as it was at its end. Does nothing and returns `None` if the carrier has lost its lease, if the
    /// order has ended, or if its next step differs from the next step of `seen`. In the last case,
    /// another process is carrying it out and may have newer information.
    fn give_order_up<'a>(
        &'a self,
        seen: &'a Order,
        carrier: &'a Carrier,
        reason: &'a str,
        by: &'a Actor,
    ) -> StoreFuture<'a, Option<Order>>;
}

/// Reason of an order that an operator has ended.
pub const BY_OPERATOR: &str = "cancelled by the operator";
/// Detail of the audit entry about a change that was made in the table alone.
pub(crate) const IN_TABLE: &str = "in the table";
/// Error of [`Orders::place_order`] for a move.
pub(crate) const NO_DESTINATION: &str = "an order to move a device needs a destination";
/// Reason of an order that ends because its row no longer [fits](Order::fits).
pub(crate) const ROW_CHANGED: &str = "the row was changed meanwhile";
/// Reason of an order to enable a device that an operator has disabled since.
pub(crate) const DISABLED_SINCE: &str = "the operator disabled the device";
