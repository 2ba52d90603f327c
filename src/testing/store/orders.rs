//! Orders for IoT Platform in the store in memory.

use super::{Memory, Tables};
use crate::{
    device::DeviceId,
    store::{
        Actor, CloudState, DeviceState, StoreError, StoreFuture, UnixSeconds,
        audit::{AuditEntry, AuditEvent},
        claim::ClaimTime,
        order::{
            Completed, DISABLED_SINCE, IN_TABLE, Order, OrderKind, OrderNote, OrderNumber, Orders, Placed,
            PlainChange, ROW_CHANGED,
        },
    },
};

impl Tables {
    pub(super) fn is_ordered(&self, device: &DeviceId) -> bool {
        self.orders.values().any(|order| order.device == *device)
    }

    fn note(
        &mut self,
        (event, at): (AuditEvent, UnixSeconds),
        device: &DeviceId,
        by: &Actor,
        detail: String,
    ) {
        let entry = AuditEntry { at, device: Some(device.clone()), detail: Some(detail), ..by.entry(event) };
        self.audit.push(entry);
    }

    /// Sets the state of a device, with an audit entry if the state changes.
    fn change_state(&mut self, device: &DeviceId, state: DeviceState, by: &Actor, now: UnixSeconds) {
        let Some(row) = self.devices.get_mut(device).filter(|row| row.state != state) else { return };
        row.state = state;
        self.touch(device);
        self.refused.retain(|(refused, _), _| refused != device);
        let event = match state {
            DeviceState::Enabled => AuditEvent::Enabled,
            DeviceState::Disabled => AuditEvent::Disabled,
        };
        self.note((event, now), device, by, IN_TABLE.into());
    }

    /// Makes a change in the table alone, because the device has no certificate.
    fn here(&mut self, device: &DeviceId, kind: OrderKind, by: &Actor, now: UnixSeconds) -> Placed {
        if self.journal.is_claimed(device) {
            return Placed::Registering;
        }
        match kind {
            OrderKind::Rotate => return Placed::NoCertificate,
            OrderKind::Disable => self.change_state(device, DeviceState::Disabled, by, now),
            OrderKind::Enable => self.change_state(device, DeviceState::Enabled, by, now),
            OrderKind::Delete => {
                self.forget(device);
                self.note((AuditEvent::Deleted, now), device, by, IN_TABLE.into());
            }
        }
        Placed::Here
    }

    /// Checks that no order of a device contradicts an operator's plain change.
    pub(super) fn permit(
        &mut self,
        device: &DeviceId,
        change: PlainChange,
        by: &Actor,
        now: UnixSeconds,
    ) -> Result<(), StoreError> {
        let Some(order) = self.orders.values().find(|order| order.device == *device).cloned() else {
            return Ok(());
        };
        if order.kind.forbids(change) {
            return Err(StoreError::Conflict(order.conflict()));
        }
        if (change, order.kind) == (PlainChange::Disable, OrderKind::Enable) {
            self.orders.remove(&order.number);
            let reason = order.cancelled(DISABLED_SINCE);
            self.note((AuditEvent::Cancelled, now), device, by, reason);
        }
        Ok(())
    }

    fn place(&mut self, device: &DeviceId, kind: OrderKind, by: &Actor, now: UnixSeconds) -> Placed {
        let Some(row) = self.devices.get(device) else { return Placed::NoDevice };
        let Some(certificate) = row.certificate.clone() else { return self.here(device, kind, by, now) };
        if let Some(known) = self.orders.values().find(|order| order.device == *device) {
            return if known.kind == kind { Placed::Yes(known.number) } else { Placed::Other(known.kind) };
        }
        self.ordered += 1;
        let order = Order {
            number: self.ordered,
            device: device.clone(),
            kind,
            product_key: certificate.product_key,
            device_name: certificate.device_name,
            target: row.target().unwrap_or_default().to_owned(),
            iot_id: row.iot_id.clone(),
            is_confirmed: false,
            at: now,
            by: by.clone(),
            failure: None,
        };
        self.orders.insert(order.number, order);
        self.touch(device);
        self.note((AuditEvent::Ordered, now), device, by, kind.name().into());
        if kind.disables_at_once() {
            self.change_state(device, DeviceState::Disabled, by, now);
        }
        Placed::Yes(self.ordered)
    }

    fn complete(&mut self, number: OrderNumber, claim_time: ClaimTime, now: UnixSeconds) -> Completed {
        let Some(order) = self.orders.remove(&number) else { return Completed::Ended };
        let device = &order.device;
        let Some(row) = self.devices.get_mut(device).filter(|row| order.fits(row)) else {
            let reason = order.cancelled(ROW_CHANGED);
            self.note((AuditEvent::Cancelled, now), device, &order.by, reason);
            return Completed::RowChanged;
        };
        row.iot_id = row.iot_id.clone().or(order.iot_id.clone());
        match order.kind {
            OrderKind::Disable => {
                row.cloud_state = Some(CloudState::Disabled);
            }
            OrderKind::Enable => {
                row.cloud_state = None;
                self.change_state(device, DeviceState::Enabled, &order.by, now);
            }
            OrderKind::Delete => {
                self.forget(device);
            }
            OrderKind::Rotate => {
                (row.certificate, row.iot_id, row.cloud_state) = (None, None, None);
                (row.registered, row.activated, row.first_issued) = (None, None, None);
                let enrollment = row.enrollment.clone();
                self.issues.remove(device);
                self.touch(device);
                self.claim_anew(&order, enrollment, claim_time);
            }
        }
        self.refused.retain(|(refused, _), _| refused != device);
        self.note((order.kind.event(), now), device, &order.by, order.carried_out());
        Completed::Yes
    }
}

impl Orders for Memory {
    fn place_order<'a>(
        &'a self,
        device: &'a DeviceId,
        kind: OrderKind,
        by: &'a Actor,
    ) -> StoreFuture<'a, Placed> {
        self.answer(|tables, now| Ok(tables.place(device, kind, by, now)))
    }

    fn orders_after<'a>(
        &'a self,
        target: Option<&'a str>,
        after: OrderNumber,
        limit: usize,
    ) -> StoreFuture<'a, Vec<Order>> {
        self.answer(|tables, _| {
            let following = tables.orders.range(after.saturating_add(1)..).map(|(_, order)| order);
            let wanted = following.filter(|order| target.is_none_or(|target| order.target == target));
            Ok(wanted.take(limit).cloned().collect())
        })
    }

    fn order_of<'a>(&'a self, device: &'a DeviceId) -> StoreFuture<'a, Option<Order>> {
        self.answer(|tables, _| Ok(tables.orders.values().find(|order| order.device == *device).cloned()))
    }

    fn note_order(&self, number: OrderNumber, note: OrderNote) -> StoreFuture<'_, bool> {
        self.answer(|tables, _| {
            let Some(order) = tables.orders.get_mut(&number) else { return Ok(false) };
            match note {
                OrderNote::IotId(iot_id) => {
                    (order.iot_id, order.failure, order.is_confirmed) = (Some(iot_id), None, true);
                }
                OrderNote::Failure(failure) => order.failure = Some(failure),
            }
            Ok(true)
        })
    }

    fn complete_order<'a>(&'a self, order: &'a Order, now: ClaimTime) -> StoreFuture<'a, Completed> {
        self.answer(|tables, at| Ok(tables.complete(order.number, now, at)))
    }

    fn end_order<'a>(&'a self, number: OrderNumber, reason: &'a str, by: &'a Actor) -> StoreFuture<'a, bool> {
        self.answer(|tables, now| {
            let Some(order) = tables.orders.remove(&number) else { return Ok(false) };
            let detail = order.cancelled(reason);
            tables.note((AuditEvent::Cancelled, now), &order.device, by, detail);
            Ok(true)
        })
    }
}
