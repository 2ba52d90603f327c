//! Carries out the orders of operators: changes to devices at IoT Platform. A lease ensures that
//! only one process at a time carries them out. Every step may be repeated: each call that changes a
//! device names it by its `IotId`, and the store ends an order only once. `store/order.rs` describes
//! the orders.

mod moves;

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use futures_util::{StreamExt, stream};
use tokio::{sync::watch, time::Instant};

use super::{Registrar, STOPPED, lines::limited, lock, registration::error_of_store};
use crate::{
    guards::Phase,
    iot_platform::{Action, ApiError, ApiFuture, ErrorClass, Thing},
    store::{
        Actor, DeviceRow, JournalEntry, StoreError,
        order::{Carrier, Completed, Former, Order, OrderKind, OrderNote, OrderNumber, Step},
    },
};

/// Lease of the process that carries out the orders of a target.
const LEASE: &str = "orders";

/// Error code of a call that was not made because this process stops.
const STOPPING: &str = "Stopping";

/// Number of orders read at a time.
const PAGE: usize = 500;

/// Number of orders that are carried out at the same time.
const AT_ONCE: usize = 16;

/// Number of failed attempts after which an order ends. With the longest pause between two
/// attempts, this takes some eight hours.
const MAX_ATTEMPTS: u32 = 1000;

/// Number of failures with an unknown code after which an order ends.
const MAX_UNKNOWN: u32 = 3;

/// Attempts to carry out the orders that have failed so far.
#[derive(Default)]
pub(super) struct Attempts {
    /// For each order: failed attempts, failures with an unknown code, and the time of the next
    /// attempt.
    failed: HashMap<OrderNumber, (u32, u32, Instant)>,
}

impl Attempts {
    fn is_due(&self, order: OrderNumber, now: Instant) -> bool {
        self.failed.get(&order).is_none_or(|(.., next)| *next <= now)
    }

    /// Makes an order wait until `next`, without counting a failure.
    fn wait(&mut self, order: OrderNumber, next: Instant) {
        self.failed.entry(order).or_insert((0, 0, next)).2 = next;
    }

    fn forget(&mut self, order: OrderNumber) {
        self.failed.remove(&order);
    }
}

/// When dropped, notes that no task carries out orders any more, even if the task was cancelled.
struct CarryingOut<'a>(&'a watch::Sender<bool>);

impl Drop for CarryingOut<'_> {
    fn drop(&mut self) {
        self.0.send_replace(false);
    }
}

/// Reason why an order was not carried out in this attempt.
enum Hindrance {
    /// A call of this action, or the store, has failed.
    Failed(Action, ApiError),
    /// The order must wait for the registrar. This does not count as an attempt.
    NotNow,
    /// The order must wait for the operator, for this reason. This does not count as an attempt.
    Waits(String),
    /// The order can never be carried out.
    Never(String),
}

/// Result of an attempt that was not hindered.
enum Progress {
    /// The order has ended.
    Completed(Completed),
    /// A step was made, and the next one follows, perhaps at another target.
    Step,
}

impl From<StoreError> for Hindrance {
    fn from(error: StoreError) -> Self {
        // An error of the store opens no breaker, so the action does not matter.
        Self::Failed(Action::QueryDeviceDetail, error_of_store(&error))
    }
}

/// Maximum number of registrations that may wait or be in progress when a device is deleted to be
/// registered again. With more of them, the device would be without a certificate for too long.
const MAX_WAITING: usize = 100;

/// Returns the calls of the step [`Step::Change`], in order. `former` is the treatment of the former
/// device of a move.
const fn calls(kind: OrderKind, former: Former) -> &'static [Action] {
    match (kind, former) {
        (OrderKind::Disable, _) | (OrderKind::Move, Former::Disable) => &[Action::DisableThing],
        (OrderKind::Enable, _) => &[Action::EnableThing],
        // IoT Platform disconnects a device that is disabled. A device that still connects after its
        // deletion would make IoT Platform throttle the account's other devices.
        (OrderKind::Delete, _) | (OrderKind::Move, Former::Delete) => {
            &[Action::DisableThing, Action::DeleteDevice]
        }
        (OrderKind::Rotate, _) => &[Action::DeleteDevice],
        (OrderKind::Move, Former::Keep) => &[],
    }
}

impl Registrar {
    /// Starts a task that carries out the orders in the store, unless this process has such a task
    /// already, or there are no orders that it may carry out.
    pub async fn look_for_orders(self: &Arc<Self>) -> Result<(), StoreError> {
        if *self.carries_out.borrow() || self.is_draining() {
            return Ok(());
        }
        let first = self.store.orders_after(Some(&self.config.target), 0, PAGE).await?;
        let now = Instant::now();
        let is_due = |order: &Order| self.is_due(order, now);
        if first.len() < PAGE && !first.iter().any(is_due) {
            return Ok(());
        }
        if self.carries_out.send_if_modified(|carries_out| !std::mem::replace(carries_out, true)) {
            let registrar = self.clone();
            self.runtime.spawn(async move {
                let _carrying_out = CarryingOut(&registrar.carries_out);
                if let Err(error) = registrar.carry_out_orders().await {
                    tracing::debug!(%error, "could not carry out the orders for IoT Platform now; trying again");
                }
            });
        }
        Ok(())
    }

    /// Waits until no task of this process carries out orders.
    pub(super) async fn orders_rest(&self) {
        // The sender is not dropped while this registrar waits.
        let _ = self.carries_out.subscribe().wait_for(|carries_out| !carries_out).await;
    }

    /// Returns this process as the carrier of its target's orders.
    fn carrier(&self) -> Carrier {
        Carrier { owner: self.owner.id, lease: self.lease(LEASE).into_owned() }
    }

    /// Returns whether an attempt to carry out an order is due, and this process may make its next
    /// step. Registering a device needs no permission of the configuration (`manages`).
    fn is_due(&self, order: &Order, now: Instant) -> bool {
        let may = self.config.manages || order.step() == Step::Register;
        may && lock(&self.attempts).is_due(order.number, now)
    }

    /// Carries out the orders whose next attempt is due, the oldest first. Does nothing if another
    /// process carries out orders.
    async fn carry_out_orders(self: &Arc<Self>) -> Result<(), StoreError> {
        let work = async |_| {
            let (mut after, mut there) = (0, HashSet::new());
            loop {
                let page = self.store.orders_after(Some(&self.config.target), after, PAGE).await?;
                let Some(last) = page.last() else { break };
                after = last.number;
                there.extend(page.iter().map(|order| order.number));
                let now = Instant::now();
                let due = page.into_iter().filter(|order| self.is_due(order, now));
                stream::iter(due).for_each_concurrent(AT_ONCE, |order| self.attempt(order)).await;
                if self.is_draining() {
                    return Ok(());
                }
            }
            lock(&self.attempts).failed.retain(|order, _| there.contains(order));
            Ok(())
        };
        self.with_lease(&self.lease(LEASE), work).await.map(drop)
    }

    async fn attempt(self: &Arc<Self>, order: Order) {
        if self.is_draining() {
            return;
        }
        match self.carry_out(&order).await {
            Ok(progress) => {
                lock(&self.attempts).forget(order.number);
                if let Progress::Completed(Completed::Yes) = progress {
                    let Order { device, kind, .. } = &order;
                    tracing::info!(%device, work = %kind, "carried out an order at IoT Platform");
                    if *kind == OrderKind::Rotate {
                        self.register_anew(&order);
                    }
                }
            }
            Err(Hindrance::Never(reason)) => self.end(&order, &reason).await,
            Err(Hindrance::NotNow) => {}
            Err(Hindrance::Failed(_, error)) if error.code == STOPPING => {}
            Err(Hindrance::Waits(reason)) => {
                lock(&self.attempts).wait(order.number, Instant::now() + self.config.max_retry_pause);
                self.note_failure(&order, reason).await;
            }
            Err(Hindrance::Failed(action, error)) => self.postpone(&order, action, error).await,
        }
    }

    /// Makes the next step of an order, and stores the result.
    async fn carry_out(&self, order: &Order) -> Result<Progress, Hindrance> {
        let Some(row) = self.store.device(&order.device).await? else {
            return Ok(Progress::Completed(Completed::Ended));
        };
        match (order.step(), &order.moving) {
            (Step::Confirm, _) if order.fits(&row) => self.confirm_former(order, &row).await,
            (Step::Register, Some(moving)) if order.fits(&row) => {
                self.register_moved(order, moving, &row).await
            }
            (Step::Change, _) => self.change(order, &row).await,
            _ => self.complete(order).await,
        }
    }

    /// Makes the calls that change a device.
    async fn change(&self, order: &Order, row: &DeviceRow) -> Result<Progress, Hindrance> {
        // Until a moved device has fetched its new certificate, its former registration must keep
        // working. So the change waits while the enrollment gives out no first certificates.
        let is_unfetched = order.moving.is_some() && row.first_issued.is_none();
        if order.kind == OrderKind::Rotate || is_unfetched {
            self.gives_first_certificates(&row.enrollment)?;
        }
        if order.kind == OrderKind::Rotate && !self.may_register_anew(order) {
            return Err(Hindrance::NotNow);
        }
        let (iot_id, former) = match &order.moving {
            Some(moving) => (order.iot_id.clone(), moving.to.former),
            None if order.fits(row) => (self.identify(order, row).await?, Former::Keep),
            None => (None, Former::Keep),
        };
        if let Some(iot_id) = iot_id {
            for action in calls(order.kind, former) {
                match self.call_about(*action, order, &iot_id).await {
                    Ok(()) => {}
                    // A device that no longer exists need not be disabled or deleted.
                    Err(error) if error.class == ErrorClass::NotFound && order.accepts_absence() => {}
                    Err(error) if error.class == ErrorClass::NotFound => return Err(is_gone()),
                    Err(error) => return Err(Hindrance::Failed(*action, error)),
                }
            }
        }
        self.complete(order).await
    }

    /// Stores the result of an order, or ends it if its row has changed.
    async fn complete(&self, order: &Order) -> Result<Progress, Hindrance> {
        let now = self.claim_time();
        let completed =
            self.repeat(self.config.max_attempts, || self.store.complete_order(order, now)).await?;
        if completed == Completed::RowChanged {
            self.left_behind(order);
        }
        Ok(Progress::Completed(completed))
    }

    /// Logs the device that an ended order may have left behind at the new target of a move.
    fn left_behind(&self, order: &Order) {
        if let (Some(_), Some(moving)) = (order.left_behind(), &order.moving) {
            let Order { device, device_name, .. } = order;
            let (at_target, product_key) = (&moving.to.target, &moving.to.product_key);
            limited!(self.may_log(), warn, %device, at_target, product_key, device_name, "a move has ended, and a device that it may have registered at the new target has no row; if no row has it, delete it there");
        }
    }

    /// Returns whether a device that is deleted now would soon be registered again.
    fn may_register_anew(&self, order: &Order) -> bool {
        self.stopped(&order.product_key).is_none() && self.registrations() < MAX_WAITING
    }

    /// Fails while an enrollment gives out no first certificates. A device whose certificate is
    /// replaced would then not get the new one.
    fn gives_first_certificates(&self, enrollment: &str) -> Result<(), Hindrance> {
        let guards = self.guards.load().get(enrollment).copied().unwrap_or_default();
        match guards.phase(self.store.now()) {
            Phase::Open => Ok(()),
            Phase::NotOpen { .. } | Phase::Closed(_) => Err(Hindrance::Waits(format!(
                "enrollment {enrollment} gives out no first certificates now (opens, closes), so the device would \
                 get no new one"
            ))),
        }
    }

    /// Returns the `IotId` of an order's device. Until it is confirmed, looks the device up by its
    /// name, compares it with the row, and stores the `IotId` with the order, so that no call can
    /// change another device. Returns `None` if the device does not exist and the order
    /// [accepts](Order::accepts_absence) its absence.
    async fn identify(&self, order: &Order, row: &DeviceRow) -> Result<Option<String>, Hindrance> {
        const ACTION: Action = Action::QueryDeviceDetail;
        if order.is_confirmed {
            return Ok(order.iot_id.clone());
        }
        let query = || self.cloud.query_device_detail(&order.product_key, &order.device_name);
        let found = match self.once(ACTION, query).await {
            Ok(found) => found,
            Err(error) if error.class == ErrorClass::NotFound && order.accepts_absence() => return Ok(None),
            Err(error) if error.class == ErrorClass::NotFound => return Err(is_gone()),
            Err(error) => return Err(Hindrance::Failed(ACTION, error)),
        };
        if row.certificate.as_ref() != Some(&found.certificate) {
            return Err(Hindrance::Never(
                "the device of this name at IoT Platform has another secret than the device in the table, so it is \
                 not the same device; nothing was changed there"
                    .into(),
            ));
        }
        let Some(iot_id) = found.iot_id else {
            return Err(Hindrance::Never("IoT Platform's answer has no IotId of the device".into()));
        };
        if order.iot_id.as_ref().is_some_and(|known| *known != iot_id) {
            return Err(Hindrance::Never(format!(
                "the table has another IotId for the device than IoT Platform ({iot_id}); nothing was changed there"
            )));
        }
        let note = OrderNote::IotId(iot_id.clone());
        self.repeat(self.config.max_attempts, || self.store.note_order(order.number, note.clone())).await?;
        Ok(Some(iot_id))
    }

    /// Makes one call about a device.
    async fn call_about(&self, action: Action, order: &Order, iot_id: &str) -> Result<(), ApiError> {
        let Order { product_key, device_name, .. } = order;
        let thing = Thing { product_key, device_name, iot_id: Some(iot_id) };
        let call = || match action {
            Action::DisableThing => self.cloud.disable_thing(thing),
            Action::EnableThing => self.cloud.enable_thing(thing),
            _ => self.cloud.delete_device(thing),
        };
        self.once(action, call).await
    }

    /// Makes one call of an action when its turn has come, unless the breaker of the action is open.
    async fn once<'a, T>(
        &self,
        action: Action,
        call: impl FnOnce() -> ApiFuture<'a, T>,
    ) -> Result<T, ApiError> {
        self.turn_of_order(action).await?;
        self.admit(action)?;
        let answer = self.paced(action, call()).await?;
        lock(&self.breakers).admits(action);
        Ok(answer)
    }

    /// Waits for the turn of an order's next call. No call begins once the registrar drains.
    async fn turn_of_order(&self, action: Action) -> Result<(), ApiError> {
        self.turn(action).await?;
        match self.is_draining() {
            false => Ok(()),
            true => Err(ApiError {
                class: ErrorClass::TryAgain,
                code: STOPPING.into(),
                message: "this process stops".into(),
            }),
        }
    }

    /// Registers a device whose former secret no longer works.
    fn register_anew(self: &Arc<Self>, order: &Order) {
        let Order { device, product_key, device_name, target, .. } = order.clone();
        // If the registration cannot start now, it is resumed like any abandoned one.
        drop(self.start(JournalEntry { device, product_key, device_name, target }));
    }

    /// Notes a failure, so that the order is tried again later, or ends the order after too many.
    async fn postpone(self: &Arc<Self>, order: &Order, action: Action, error: ApiError) {
        let (failed, unknown) = {
            let mut attempts = lock(&self.attempts);
            let (failed, unknown, next) =
                attempts.failed.entry(order.number).or_insert((0, 0, Instant::now()));
            *failed = failed.saturating_add(1);
            *unknown += u32::from(error.class == ErrorClass::Unknown);
            *next = Instant::now() + self.pause(*failed);
            (*failed, *unknown)
        };
        if error.code == STOPPED {
            return self.note_failure(order, error.message).await;
        }
        let is_final = error.class == ErrorClass::Device || unknown >= MAX_UNKNOWN || failed >= MAX_ATTEMPTS;
        if is_final {
            return self.end(order, &error.to_string()).await;
        }
        if error.class == ErrorClass::Operator {
            self.break_circuit(order.next_product(), action, &error);
        } else if error.class != ErrorClass::Throttled {
            self.failed_for_now(Some(&order.device), None, &error);
        }
        self.note_failure(order, error.to_string()).await;
    }

    /// Stores the reason why an order waits, for operators.
    async fn note_failure(&self, order: &Order, reason: String) {
        if order.failure.as_ref() != Some(&reason)
            && let Err(error) = self.store.note_order(order.number, OrderNote::Failure(reason)).await
        {
            tracing::debug!(device = %order.device, %error, "could not note the failure of an order");
        }
    }

    /// Ends an order that cannot be carried out, unless another process has continued it since.
    async fn end(&self, order: &Order, reason: &str) {
        let Order { device, kind, .. } = order;
        let (by, carrier) = (Actor { name: self.owner.name.clone(), address: None }, self.carrier());
        let give_up = || self.store.give_order_up(order, &carrier, reason, &by);
        match self.repeat(self.config.max_attempts, give_up).await {
            Ok(Some(ended)) => {
                limited!(self.may_log(), error, %device, work = %kind, reason, "could not carry out an order at IoT Platform; it has ended");
                self.left_behind(&ended);
            }
            Ok(None) => {
                tracing::debug!(%device, reason, "an order has ended, or another process carries it out")
            }
            Err(error) => tracing::debug!(%device, %error, "could not end an order; trying again"),
        }
    }
}

/// Returns the hindrance for a device that IoT Platform does not know.
fn is_gone() -> Hindrance {
    Hindrance::Never("the device does not exist at IoT Platform".into())
}
