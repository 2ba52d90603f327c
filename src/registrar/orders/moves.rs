//! Registers the devices of moves at the new target. An order serves as the journal entry: the time
//! of the first call is in the store before the call. So a device that exists later under this name
//! is recognized as one that this server has registered. A process that was suspended may continue
//! while another process carries out its order. Therefore, the result of its own call counts only while
//! it has the lease on this work.

use tokio::time::Instant;

use super::{
    super::{Registrar, is_stopped, lines::limited, lock, registration::Registration},
    Hindrance, Progress,
};
use crate::{
    iot_platform::{Action, ApiError, CloudDevice, ErrorClass},
    store::{
        AskedBy, Claim, DeviceRow, DeviceState, JournalEntry, RegisteredDevice,
        claim::{ClaimTime, NAME_IS_TAKEN},
        order::{Completed, Moved, Moving, Order, OrderNote},
        unix_now,
    },
};

const REGISTER: Action = Action::RegisterDevice;
const LOOK_UP: Action = Action::QueryDeviceDetail;

impl Registrar {
    /// Finds the device that is disabled or deleted at the end of a move, while the row still has its
    /// certificate.
    pub(super) async fn confirm_former(&self, order: &Order, row: &DeviceRow) -> Result<Progress, Hindrance> {
        if self.identify(order, row).await?.is_none() {
            self.note(order, OrderNote::FormerIsGone).await?;
        }
        Ok(Progress::Step)
    }

    /// Registers a device at the new target, and stores its certificate.
    pub(super) async fn register_moved(
        &self,
        order: &Order,
        moving: &Moving,
        row: &DeviceRow,
    ) -> Result<Progress, Hindrance> {
        if row.first_issued.is_some() {
            self.gives_first_certificates(&row.enrollment)?;
        }
        let device = self.device_at_target(order, moving).await?;
        let is_same = row.certificate.as_ref() == Some(&device.certificate)
            || device.iot_id.is_some() && device.iot_id == row.iot_id;
        if is_same {
            return Err(Hindrance::Never(format!(
                "targets {} and {} have the same device, so they are one instance; nothing was changed",
                moving.from, moving.to.target
            )));
        }
        if device.disabled && row.state == DeviceState::Enabled {
            self.enable_former(order, moving, &device).await?;
        }
        let registered = RegisteredDevice {
            registered: device.created.unwrap_or_else(unix_now),
            iot_id: device.iot_id,
            certificate: device.certificate,
        };
        let moved =
            self.repeat(self.config.max_attempts, || self.store.store_move(order, &registered)).await?;
        let taken = |what: &str, holder| {
            Hindrance::Never(format!(
                "device {holder} has the same {what} in product {}; correct or delete one of them",
                moving.to.product_key
            ))
        };
        match moved {
            Moved::Yes if order.ends_when_stored() => Ok(Progress::Completed(Completed::Yes)),
            Moved::Yes => Ok(Progress::Step),
            Moved::Ended => Ok(Progress::Completed(Completed::Ended)),
            Moved::RowChanged | Moved::Orphaned => {
                let Order { device, device_name, .. } = order;
                let (at_target, product_key) = (&moving.to.target, &moving.to.product_key);
                limited!(self.may_log(), warn, %device, at_target, product_key, device_name, "the row of a device was changed, or its order has ended, while it was moved, so its new certificate is not stored; if no row has the device, delete it at the new target");
                let is_ended = moved == Moved::Orphaned;
                Ok(Progress::Completed(if is_ended { Completed::Ended } else { Completed::RowChanged }))
            }
            Moved::NameTaken(holder) => Err(taken("name", holder)),
            Moved::IotIdTaken(holder) => Err(taken("IotId", holder)),
        }
    }

    /// Registers a device at the new target, or looks it up there if its name exists.
    async fn device_at_target(&self, order: &Order, moving: &Moving) -> Result<CloudDevice, Hindrance> {
        let product_key = &moving.to.product_key;
        // While registrations are stopped, this order takes no turn from others.
        let stopped = lock(&self.breakers).reason(product_key, Instant::now());
        if let Some(reason) = stopped {
            return Err(Hindrance::Failed(REGISTER, is_stopped(reason)));
        }
        let is_first = moving.asked.is_none();
        if is_first {
            self.note(order, OrderNote::Asked(self.claim_time(), self.carrier())).await?;
        }
        let (answer, may_be_done) = match self.may_call(order, product_key).await {
            Err(error) => (Err(error), false),
            Ok(()) => {
                let call = self.cloud.register_device(product_key, &order.device_name);
                let answer = self.paced(REGISTER, call).await;
                let may_be_done = answer.as_ref().err().is_none_or(ApiError::may_be_done);
                (answer, may_be_done)
            }
        };
        if is_first && !may_be_done {
            self.note(order, OrderNote::NotAsked(self.carrier())).await?;
        }
        let device = match answer {
            Ok(device) => {
                self.count(|counters| counters.registered += 1);
                device
            }
            Err(error) if error.class == ErrorClass::Exists => self.existing_device(order, moving).await?,
            Err(error) => return Err(Hindrance::Failed(REGISTER, error)),
        };
        self.worked(product_key, REGISTER);
        Ok(device)
    }

    /// Waits for the turn of a registration, and admits it unless a breaker is open.
    async fn may_call(&self, order: &Order, product_key: &str) -> Result<(), ApiError> {
        self.turn_of_order(REGISTER).await?;
        let admitted = lock(&self.breakers).admit(product_key, &order.device, Instant::now());
        admitted.map_err(is_stopped)
    }

    /// Looks up a device whose name exists at the new target, and adopts it by the same rules as any
    /// other registration.
    async fn existing_device(&self, order: &Order, moving: &Moving) -> Result<CloudDevice, Hindrance> {
        let (Order { device, device_name, .. }, product_key) = (order, &moving.to.product_key);
        let query = || self.cloud.query_device_detail(product_key, device_name);
        let found = self.once(LOOK_UP, query).await.map_err(|error| Hindrance::Failed(LOOK_UP, error))?;
        let entry = JournalEntry {
            device: device.clone(),
            product_key: product_key.clone(),
            device_name: device_name.clone(),
            target: moving.to.target.clone(),
        };
        let registration = match moving.asked {
            Some(ClaimTime { at, cloud_offset }) => {
                Registration::resumed(entry, Claim { since: at, cloud_offset, asked_by: AskedBy::Other })
            }
            None => Registration::new(entry),
        };
        self.adopt(&registration, found).await.map_err(|error| match error.code == NAME_IS_TAKEN {
            true => Hindrance::Never(format!(
                "{NAME_IS_TAKEN}: the name exists at target {} and was not registered by this move: delete the device \
                 there, or set existing = \"adopt\" for its enrollment, and move it again",
                moving.to.target
            )),
            false => Hindrance::Failed(LOOK_UP, error),
        })
    }

    /// Enables a device that exists at the new target and is disabled there, as after an earlier move
    /// with `--former disable`.
    async fn enable_former(
        &self,
        order: &Order,
        moving: &Moving,
        device: &CloudDevice,
    ) -> Result<(), Hindrance> {
        let target = &moving.to.target;
        let Some(iot_id) = device.iot_id.as_deref().filter(|_| self.config.manages) else {
            return Err(Hindrance::Never(format!(
                "the device exists at target {target} and is disabled there; enable it there, or set manage = true for \
                 the target, and move it again"
            )));
        };
        let there = Order { product_key: moving.to.product_key.clone(), ..order.clone() };
        let enabled = self.call_about(Action::EnableThing, &there, iot_id).await;
        enabled.map_err(|error| Hindrance::Failed(Action::EnableThing, error))
    }

    /// Stores new information about an order. Fails if the order has ended, or another process carries
    /// it out.
    async fn note(&self, order: &Order, note: OrderNote) -> Result<(), Hindrance> {
        let number = order.number;
        match self.repeat(self.config.max_attempts, || self.store.note_order(number, note.clone())).await? {
            true => Ok(()),
            false => Err(Hindrance::NotNow),
        }
    }
}
