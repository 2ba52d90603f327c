//! Orders for IoT Platform in the store in memory.

use super::{Memory, Tables};
use crate::{
    device::DeviceId,
    store::{
        Actor, CloudState, DeviceRow, DeviceState, RegisteredDevice, StoreError, StoreFuture, UnixSeconds,
        audit::{AuditEntry, AuditEvent},
        claim::ClaimTime,
        order::{
            Begun, Carrier, Completed, DISABLED_SINCE, IN_TABLE, Move, Moved, Moving, NO_DESTINATION, Order,
            OrderKind, OrderNote, OrderNumber, Orders, Placed, PlainChange, ROW_CHANGED,
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
        let entry = AuditEntry { device: Some(device.clone()), detail: Some(detail), ..by.entry(event, at) };
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
            OrderKind::Rotate | OrderKind::Move => return Placed::NoCertificate,
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
        if order.yields_to(change)? {
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
            return kind.beside(known);
        }
        let order = Order {
            number: self.ordered + 1,
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
            moving: None,
        };
        self.add(order);
        if kind.disables_at_once() {
            self.change_state(device, DeviceState::Disabled, by, now);
        }
        Placed::Yes(self.ordered)
    }

    /// Adds an order, whose number is the next one.
    fn add(&mut self, order: Order) {
        self.ordered = order.number;
        self.touch(&order.device);
        self.note((AuditEvent::Ordered, order.at), &order.device, &order.by, order.work());
        self.orders.insert(order.number, order);
    }

    fn place_move(
        &mut self,
        device: &DeviceId,
        (to, begun): (&Move, Begun),
        by: &Actor,
        now: UnixSeconds,
    ) -> Placed {
        let Some(row) = self.devices.get(device) else { return Placed::NoDevice };
        if let Some(known) = self.orders.values().find(|order| order.device == *device) {
            return to.beside(known);
        }
        let claim = self.journal.begun(device).filter(|_| row.certificate.is_none());
        if let Some(answer) = claim.as_ref().and_then(|claim| claim.answer(begun)) {
            return answer;
        }
        if let Some(needless) = to.is_needless_for(row) {
            return needless;
        }
        if let Some(holder) = self.holder_of_name(device, &to.product_key, &row.name()) {
            return Placed::NameTaken(holder);
        }
        let Some(certificate) = row.certificate.clone() else {
            let abandoned = claim.map(|claim| claim.detail()).unwrap_or_default();
            return self.move_here(row.clone(), (to, &abandoned), by, now);
        };
        let from = row.target().unwrap_or_default().to_owned();
        let order = Order {
            number: self.ordered + 1,
            device: device.clone(),
            kind: OrderKind::Move,
            product_key: certificate.product_key,
            device_name: certificate.device_name,
            target: to.first_target(&from).to_owned(),
            iot_id: row.iot_id.clone(),
            is_confirmed: false,
            at: now,
            by: by.clone(),
            failure: None,
            moving: Some(Moving { from, to: to.clone(), asked: None, is_stored: false }),
        };
        self.add(order);
        Placed::Yes(self.ordered)
    }

    /// Moves a device that has no certificate, in the table alone.
    fn move_here(
        &mut self,
        row: DeviceRow,
        (to, abandoned): (&Move, &str),
        by: &Actor,
        now: UnixSeconds,
    ) -> Placed {
        let (device, detail) = (row.id.clone(), to.detail_in_table(&row) + abandoned);
        self.journal.forget(&device);
        let moved = DeviceRow {
            target: Some(to.target.clone()),
            product_key: to.product_key.clone(),
            refusal: None,
            iot_id: None,
            ..row
        };
        self.devices.insert(device.clone(), moved);
        self.touch(&device);
        self.refused.retain(|(refused, _), _| *refused != device);
        self.note((AuditEvent::Moved, now), &device, by, detail);
        Placed::Here
    }

    fn store_move(&mut self, order: &Order, registered: &RegisteredDevice, now: UnixSeconds) -> Moved {
        let number = order.number;
        let Some(order) = self.orders.get(&number).cloned() else {
            let row = self.devices.get(&order.device);
            let Some(detail) = order.orphaned(row, &registered.certificate.device_name) else {
                return Moved::Ended;
            };
            self.note((AuditEvent::Cancelled, now), &order.device, &order.by, detail);
            return Moved::Orphaned;
        };
        let Some(moving) = &order.moving else { return Moved::Ended };
        if moving.is_stored {
            return Moved::Yes;
        }
        let device = &order.device;
        let Some(row) = self.devices.get(device).filter(|row| order.fits(row)).cloned() else {
            self.orders.remove(&number);
            let reason = order.cancelled(ROW_CHANGED);
            self.note((AuditEvent::Cancelled, now), device, &order.by, reason);
            return Moved::RowChanged;
        };
        let RegisteredDevice { certificate, iot_id, registered } = registered.clone();
        if let Some(holder) = self.holder_of_name(device, &certificate.product_key, &certificate.device_name)
        {
            return Moved::NameTaken(holder);
        }
        if let Some(holder) = iot_id.as_ref().and_then(|iot_id| self.holder_of_iot_id(device, iot_id)) {
            return Moved::IotIdTaken(holder);
        }
        let row = DeviceRow {
            product_key: certificate.product_key.clone(),
            device_name: Some(certificate.device_name.clone()),
            certificate: Some(certificate),
            iot_id,
            registered: Some(registered),
            activated: None,
            first_issued: None,
            cloud_state: None,
            refusal: None,
            target: Some(moving.to.target.clone()),
            ..row
        };
        self.devices.insert(device.clone(), row);
        self.issues.remove(device);
        self.touch(device);
        self.refused.retain(|(refused, _), _| refused != device);
        self.note((AuditEvent::Moved, now), device, &order.by, moving.detail(&order));
        match (order.ends_when_stored(), self.orders.get_mut(&number)) {
            (false, Some(order)) => {
                (order.target, order.failure) = (moving.from.clone(), None);
                order.moving = Some(Moving { is_stored: true, ..moving.clone() });
            }
            _ => drop(self.orders.remove(&number)),
        }
        Moved::Yes
    }

    fn complete(&mut self, number: OrderNumber, claim_time: ClaimTime, now: UnixSeconds) -> Completed {
        let Some(order) = self.orders.remove(&number) else { return Completed::Ended };
        let device = &order.device;
        if order.is_stored() {
            self.note((order.kind.event(), now), device, &order.by, order.carried_out());
            return Completed::Yes;
        }
        let Some(row) = self.devices.get_mut(device).filter(|row| order.fits(row)) else {
            let reason = order.cancelled(ROW_CHANGED);
            self.note((AuditEvent::Cancelled, now), device, &order.by, reason);
            return Completed::RowChanged;
        };
        if order.kind == OrderKind::Move {
            self.orders.insert(number, order);
            return Completed::Unfinished;
        }
        row.iot_id = row.iot_id.clone().or(order.iot_id.clone());
        match order.kind {
            OrderKind::Move => {}
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
                self.kept.insert(device.clone(), enrollment.clone());
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
        self.answer(|tables, now| match kind {
            OrderKind::Move => Err(StoreError::Failed(NO_DESTINATION.into())),
            kind => Ok(tables.place(device, kind, by, now)),
        })
    }

    fn place_move<'a>(
        &'a self,
        device: &'a DeviceId,
        to: &'a Move,
        begun: Begun,
        by: &'a Actor,
    ) -> StoreFuture<'a, Placed> {
        self.answer(|tables, now| Ok(tables.place_move(device, (to, begun), by, now)))
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
            if let OrderNote::Asked(_, by) | OrderNote::NotAsked(by) = &note
                && !tables.journal.has_lease(by)
            {
                return Ok(false);
            }
            let Some(order) = tables.orders.get_mut(&number) else { return Ok(false) };
            match note {
                OrderNote::IotId(iot_id) => {
                    (order.iot_id, order.failure, order.is_confirmed) = (Some(iot_id), None, true);
                    if let Some(moving) = order.moving.as_ref().filter(|moving| !moving.is_stored) {
                        order.target.clone_from(&moving.to.target);
                    }
                }
                OrderNote::Failure(failure) => order.failure = Some(failure),
                OrderNote::FormerIsGone => {
                    let Some(moving) = order.moving.as_ref().filter(|moving| !moving.is_stored) else {
                        return Ok(false);
                    };
                    if order.is_confirmed {
                        return Ok(false);
                    }
                    order.target.clone_from(&moving.to.target);
                    (order.iot_id, order.failure, order.is_confirmed) = (None, None, true);
                }
                OrderNote::Asked(at, _) => match &mut order.moving {
                    Some(moving) if moving.asked.is_none() => moving.asked = Some(at),
                    _ => return Ok(false),
                },
                OrderNote::NotAsked(_) => {
                    if let Some(moving) = &mut order.moving {
                        moving.asked = None;
                    }
                }
            }
            Ok(true)
        })
    }

    fn store_move<'a>(
        &'a self,
        order: &'a Order,
        registered: &'a RegisteredDevice,
    ) -> StoreFuture<'a, Moved> {
        self.answer(|tables, now| Ok(tables.store_move(order, registered, now)))
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

    fn give_order_up<'a>(
        &'a self,
        seen: &'a Order,
        carrier: &'a Carrier,
        reason: &'a str,
        by: &'a Actor,
    ) -> StoreFuture<'a, Option<Order>> {
        self.answer(|tables, now| {
            if !tables.journal.has_lease(carrier) {
                return Ok(None);
            }
            let known = tables.orders.get(&seen.number).filter(|order| order.step() == seen.step());
            let Some(order) = known.cloned() else { return Ok(None) };
            tables.orders.remove(&order.number);
            tables.note((AuditEvent::Cancelled, now), &order.device, by, order.cancelled(reason));
            Ok(Some(order))
        })
    }
}
