//! Orders for IoT Platform. Each write locks the device's row first, and then the order.

mod moves;

use std::future::ready;

use tokio_postgres::Row;

use super::{
    Postgres, audit, counts,
    failure::Failure,
    read,
    session::{Session, column, values},
    waiting,
};
use crate::{
    device::DeviceId,
    store::{
        Actor, DeviceRow, DeviceState, RegisteredDevice, StoreError, StoreFuture, UnixSeconds,
        audit::{AuditEntry, AuditEvent},
        claim::ClaimTime,
        order::{
            Begun, Carrier, Completed, DISABLED_SINCE, IN_TABLE, Move, Moved, NO_DESTINATION, Order,
            OrderKind, OrderNote, OrderNumber, Orders, Placed, PlainChange, ROW_CHANGED,
        },
    },
};

/// Deletes a device, whose row is locked.
async fn delete(session: &Session, device: &DeviceId) -> Result<(), Failure> {
    const SQL: &str = "DELETE FROM device_table WHERE deviceId = $1";
    counts::take(session, &[device.as_str()]).await?;
    session.execute(SQL, values![device.as_str()]).await.map(drop)
}

/// Query for the columns that [`order`] reads.
macro_rules! orders {
    () => {
        "SELECT number, deviceId, work, productKey, deviceName, IotId, orderedAt, who, address, failure, target, \
         isConfirmed, fromTarget, toTarget, toProduct, former, askedAt, cloudOffset, isStored \
         FROM cloud_order"
    };
}

fn order(row: &Row) -> Result<Order, Failure> {
    let kind = OrderKind::named(column(row, 2)?);
    Ok(Order {
        number: column(row, 0)?,
        device: read::id(row, 1)?,
        kind: kind.ok_or_else(|| Failure::unexpected("an order has an unknown kind of work"))?,
        product_key: column(row, 3)?,
        device_name: column(row, 4)?,
        iot_id: column(row, 5)?,
        at: column(row, 6)?,
        by: Actor { name: column(row, 7)?, address: column(row, 8)? },
        failure: column(row, 9)?,
        target: column(row, 10)?,
        is_confirmed: column(row, 11)?,
        moving: moves::moving(row, 12)?,
    })
}

async fn of(session: &Session, device: &DeviceId) -> Result<Option<Order>, Failure> {
    const SQL: &str = concat!(orders!(), " WHERE deviceId = $1");
    session.row(SQL, values![device.as_str()]).await?.as_ref().map(order).transpose()
}

/// Locks the device of an order, and then the order. Returns the order if it is still there.
async fn locked(session: &Session, number: OrderNumber) -> Result<Option<Order>, Failure> {
    const DEVICE: &str = "SELECT deviceId FROM cloud_order WHERE number = $1";
    const SQL: &str = concat!(orders!(), " WHERE number = $1 FOR UPDATE");
    let Some(device) = session.row(DEVICE, values![number]).await? else { return Ok(None) };
    read::locked(session, &read::id(&device, 0)?).await?;
    session.row(SQL, values![number]).await?.as_ref().map(order).transpose()
}

async fn remove(session: &Session, number: OrderNumber) -> Result<(), Failure> {
    session.execute("DELETE FROM cloud_order WHERE number = $1", values![number]).await.map(drop)
}

/// Ends an order without its change, and writes an audit entry with the reason.
async fn cancel(
    session: &Session,
    order: &Order,
    reason: &str,
    (by, now): (&Actor, UnixSeconds),
) -> Result<(), Failure> {
    remove(session, order.number).await?;
    log(session, (AuditEvent::Cancelled, now), &order.device, by, order.cancelled(reason)).await
}

/// Writes an audit entry about a device.
async fn log(
    session: &Session,
    (event, at): (AuditEvent, UnixSeconds),
    device: &DeviceId,
    by: &Actor,
    detail: String,
) -> Result<(), Failure> {
    let entry = AuditEntry { device: Some(device.clone()), detail: Some(detail), ..by.entry(event, at) };
    audit::append(session, &entry).await
}

/// Returns whether a carrier still has its lease. Locks the lease, so that no other process can take
/// over the work until the transaction ends.
async fn has_lease(session: &Session, carrier: &Carrier) -> Result<bool, Failure> {
    const SQL: &str = "SELECT 1 FROM lease WHERE name = $1 AND owner = $2 FOR SHARE";
    Ok(session.row(SQL, values![carrier.lease, carrier.owner]).await?.is_some())
}

/// Returns whether a device is in the journal.
async fn is_claimed(session: &Session, device: &DeviceId) -> Result<bool, Failure> {
    const SQL: &str = "SELECT 1 FROM registration_claim WHERE deviceId = $1";
    session.exists(SQL, values![device.as_str()]).await
}

/// Lets an undo of the device's import leave the device as it is.
pub(super) async fn keep_from_undo(session: &Session, device: &DeviceId) -> Result<(), Failure> {
    const SQL: &str = "UPDATE device_table SET importId = -abs(importId) WHERE deviceId = $1";
    session.execute(SQL, values![device.as_str()]).await.map(drop)
}

/// Makes a change in the table alone, because the device has no certificate.
async fn here(
    session: &Session,
    row: &DeviceRow,
    kind: OrderKind,
    by: &Actor,
    now: UnixSeconds,
) -> Result<Placed, Failure> {
    if is_claimed(session, &row.id).await? {
        return Ok(Placed::Registering);
    }
    match kind {
        OrderKind::Rotate | OrderKind::Move => return Ok(Placed::NoCertificate),
        OrderKind::Disable => set_state(session, row, DeviceState::Disabled, now, by).await?,
        OrderKind::Enable => set_state(session, row, DeviceState::Enabled, now, by).await?,
        OrderKind::Delete => {
            delete(session, &row.id).await?;
            audit::forget_refusals(session, &row.id).await?;
            log(session, (AuditEvent::Deleted, now), &row.id, by, IN_TABLE.into()).await?;
        }
    }
    Ok(Placed::Here)
}

/// Checks that no order of a device contradicts an operator's plain change. Disabling a device
/// cancels the order to enable it. The caller has locked the device's row.
pub(super) async fn permit(
    session: &Session,
    device: &DeviceId,
    change: PlainChange,
    (by, now): (&Actor, UnixSeconds),
) -> Result<(), Failure> {
    let Some(order) = of(session, device).await? else { return Ok(()) };
    if order.yields_to(change)? {
        cancel(session, &order, DISABLED_SINCE, (by, now)).await?;
    }
    Ok(())
}

/// Sets the state of a device, and writes an audit entry if the state changes.
async fn set_state(
    session: &Session,
    row: &DeviceRow,
    state: DeviceState,
    now: UnixSeconds,
    by: &Actor,
) -> Result<(), Failure> {
    const SQL: &str = "UPDATE device_table SET state = $2, importId = -abs(importId) WHERE deviceId = $1";
    if row.state == state {
        return Ok(());
    }
    let (event, name) = match state {
        DeviceState::Enabled => (AuditEvent::Enabled, "enabled"),
        DeviceState::Disabled => (AuditEvent::Disabled, "disabled"),
    };
    counts::take(session, &[row.id.as_str()]).await?;
    session.execute(SQL, values![row.id.as_str(), name]).await?;
    counts::give(session, &[row.id.as_str()]).await?;
    audit::forget_refusals(session, &row.id).await?;
    log(session, (event, now), &row.id, by, IN_TABLE.into()).await
}

async fn place(
    session: &Session,
    device: &DeviceId,
    kind: OrderKind,
    by: &Actor,
    now: UnixSeconds,
) -> Result<Placed, Failure> {
    const PLACE: &str = "INSERT INTO cloud_order \
                         (deviceId, work, productKey, deviceName, IotId, orderedAt, who, address, target) \
                         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9) RETURNING number";
    let Some(row) = read::locked(session, device).await? else { return Ok(Placed::NoDevice) };
    let Some(certificate) = &row.certificate else { return here(session, &row, kind, by, now).await };
    if let Some(known) = of(session, device).await? {
        return Ok(kind.beside(&known));
    }
    let id = device.as_str();
    let number = column(
        &session
            .one(
                PLACE,
                values![
                    id,
                    kind.name(),
                    certificate.product_key,
                    certificate.device_name,
                    row.iot_id,
                    now,
                    by.name,
                    by.address,
                    row.target()
                ],
            )
            .await?,
        0,
    )?;
    keep_from_undo(session, device).await?;
    log(session, (AuditEvent::Ordered, now), device, by, kind.name().into()).await?;
    if kind.disables_at_once() {
        set_state(session, &row, DeviceState::Disabled, now, by).await?;
    }
    Ok(Placed::Yes(number))
}

async fn complete(
    session: &Session,
    number: OrderNumber,
    claim_time: ClaimTime,
    now: UnixSeconds,
) -> Result<Completed, Failure> {
    const CLOUD_STATE: &str = "UPDATE device_table SET cloudState = $2, IotId = coalesce(IotId, $3) \
                               WHERE deviceId = $1";
    const ROTATE: &str = "UPDATE device_table SET deviceSecret = NULL, IotId = NULL, registerTime = NULL, \
                          activateTime = NULL, firstIssued = NULL, issueId = NULL, cloudState = NULL, \
                          importId = -abs(importId) WHERE deviceId = $1";
    // An abandoned claim of an earlier owner, so that any process registers the device anew. While the
    // claim is there, the device keeps its place in its enrollment, and its target.
    const CLAIM: &str = "INSERT INTO registration_claim (deviceId, productKey, deviceName, openedAt, cloudOffset, asked, enrollment, target) \
                         VALUES ($1, $2, $3, $4, $5, 2, $6, $7) ON CONFLICT (deviceId) DO NOTHING";
    let Some(order) = locked(session, number).await? else { return Ok(Completed::Ended) };
    let Order { device, by, .. } = &order;
    let row = read::device(session, device).await?.filter(|row| order.is_stored() || order.fits(row));
    let Some(row) = row else {
        cancel(session, &order, ROW_CHANGED, (by, now)).await?;
        return Ok(Completed::RowChanged);
    };
    if order.kind == OrderKind::Move && !order.is_stored() {
        return Ok(Completed::Unfinished);
    }
    remove(session, number).await?;
    let id = device.as_str();
    match order.kind {
        OrderKind::Disable => {
            counts::take(session, &[id]).await?;
            session.execute(CLOUD_STATE, values![id, Some("disabled"), order.iot_id]).await?;
            counts::give(session, &[id]).await?;
        }
        OrderKind::Enable => {
            counts::take(session, &[id]).await?;
            session.execute(CLOUD_STATE, values![id, None::<&str>, order.iot_id]).await?;
            counts::give(session, &[id]).await?;
            set_state(session, &row, DeviceState::Enabled, now, by).await?;
        }
        OrderKind::Delete => {
            delete(session, device).await?;
            audit::forget_refusals(session, device).await?;
        }
        OrderKind::Rotate => {
            let Order { product_key, device_name, target, .. } = &order;
            counts::take(session, &[id]).await?;
            session.execute(ROTATE, values![id]).await?;
            counts::give(session, &[id]).await?;
            let ClaimTime { at, cloud_offset } = claim_time;
            session
                .execute(
                    CLAIM,
                    values![id, product_key, device_name, at, cloud_offset, row.enrollment, target],
                )
                .await?;
            waiting::keep_place(session, device, &row.enrollment).await?;
            audit::forget_refusals(session, device).await?;
        }
        OrderKind::Move => {}
    }
    log(session, (order.kind.event(), now), device, by, order.carried_out()).await?;
    Ok(Completed::Yes)
}

impl Orders for Postgres {
    fn place_order<'a>(
        &'a self,
        device: &'a DeviceId,
        kind: OrderKind,
        by: &'a Actor,
    ) -> StoreFuture<'a, Placed> {
        if kind == OrderKind::Move {
            return Box::pin(ready(Err(StoreError::Failed(NO_DESTINATION.into()))));
        }
        let (device, by, clock) = (device.clone(), by.clone(), self.clock.clone());
        self.write(async move |session: &Session| place(session, &device, kind, &by, clock.now()).await)
    }

    fn place_move<'a>(
        &'a self,
        device: &'a DeviceId,
        to: &'a Move,
        begun: Begun,
        by: &'a Actor,
    ) -> StoreFuture<'a, Placed> {
        let (device, to, by, clock) = (device.clone(), to.clone(), by.clone(), self.clock.clone());
        self.write(async move |session: &Session| {
            moves::place(session, &device, (&to, begun), &by, clock.now()).await
        })
    }

    fn orders_after<'a>(
        &'a self,
        target: Option<&'a str>,
        after: OrderNumber,
        limit: usize,
    ) -> StoreFuture<'a, Vec<Order>> {
        const SQL: &str = concat!(
            orders!(),
            " WHERE number > $1 AND ($3::text IS NULL OR target = $3) ORDER BY number LIMIT $2"
        );
        let (target, limit) = (target.map(str::to_owned), i64::try_from(limit).unwrap_or(i64::MAX));
        self.engine.read(async move |session: &Session| {
            session.rows(SQL, values![after, limit, target]).await?.iter().map(order).collect()
        })
    }

    fn order_of<'a>(&'a self, device: &'a DeviceId) -> StoreFuture<'a, Option<Order>> {
        let device = device.clone();
        self.engine.read(async move |session: &Session| of(session, &device).await)
    }

    fn note_order(&self, number: OrderNumber, note: OrderNote) -> StoreFuture<'_, bool> {
        // Once the former device of a move is confirmed, or known to be gone, the device is registered
        // at the new target.
        const IOT_ID: &str = "UPDATE cloud_order SET IotId = $2, isConfirmed = true, failure = NULL, \
                              target = CASE WHEN isStored THEN target ELSE coalesce(toTarget, target) END \
                              WHERE number = $1";
        const IS_GONE: &str = "UPDATE cloud_order SET IotId = NULL, isConfirmed = true, failure = NULL, \
                               target = toTarget \
                               WHERE number = $1 AND NOT isStored AND NOT isConfirmed AND toTarget IS NOT NULL";
        const FAILURE: &str = "UPDATE cloud_order SET failure = $2 WHERE number = $1";
        const ASKED: &str = "UPDATE cloud_order SET askedAt = $2, cloudOffset = $3 \
                             WHERE number = $1 AND askedAt IS NULL";
        const NOT_ASKED: &str = "UPDATE cloud_order SET askedAt = NULL, cloudOffset = NULL WHERE number = $1";
        self.engine.transact(async move |session: &Session| {
            if let OrderNote::Asked(_, by) | OrderNote::NotAsked(by) = &note
                && !has_lease(session, by).await?
            {
                return Ok(false);
            }
            let changed = match &note {
                OrderNote::IotId(iot_id) => session.execute(IOT_ID, values![number, iot_id]).await?,
                OrderNote::Failure(failure) => session.execute(FAILURE, values![number, failure]).await?,
                OrderNote::FormerIsGone => session.execute(IS_GONE, values![number]).await?,
                OrderNote::Asked(ClaimTime { at, cloud_offset }, _) => {
                    session.execute(ASKED, values![number, at, cloud_offset]).await?
                }
                OrderNote::NotAsked(_) => session.execute(NOT_ASKED, values![number]).await?,
            };
            Ok(changed > 0)
        })
    }

    fn store_move<'a>(
        &'a self,
        order: &'a Order,
        registered: &'a RegisteredDevice,
    ) -> StoreFuture<'a, Moved> {
        let (order, registered, clock) = (order.clone(), registered.clone(), self.clock.clone());
        self.write(async move |session: &Session| {
            moves::store(session, &order, &registered, clock.now()).await
        })
    }

    fn complete_order<'a>(&'a self, order: &'a Order, now: ClaimTime) -> StoreFuture<'a, Completed> {
        // The stored order may know more than the caller's copy, and its operator is the one to name.
        let (number, clock) = (order.number, self.clock.clone());
        self.write(async move |session: &Session| complete(session, number, now, clock.now()).await)
    }

    fn end_order<'a>(&'a self, number: OrderNumber, reason: &'a str, by: &'a Actor) -> StoreFuture<'a, bool> {
        let (reason, by, clock) = (reason.to_owned(), by.clone(), self.clock.clone());
        self.write(async move |session: &Session| {
            let Some(order) = locked(session, number).await? else { return Ok(false) };
            cancel(session, &order, &reason, (&by, clock.now())).await?;
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
        let (number, step, carrier) = (seen.number, seen.step(), carrier.clone());
        let (reason, by, clock) = (reason.to_owned(), by.clone(), self.clock.clone());
        self.write(async move |session: &Session| {
            let order = locked(session, number).await?.filter(|order| order.step() == step);
            let Some(order) = order else { return Ok(None) };
            if !has_lease(session, &carrier).await? {
                return Ok(None);
            }
            cancel(session, &order, &reason, (&by, clock.now())).await?;
            Ok(Some(order))
        })
    }
}
