//! Orders for IoT Platform in SQLite. Each write is one transaction of the writer, or a part of one.

mod moves;

use std::future::ready;

use rusqlite::{Connection, OptionalExtension, Row, params};

use super::{Sqlite, audit, places, read, unfinished, writer::WriteError};
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
        unix_now,
    },
};

const DELETE: &str = "DELETE FROM device_table WHERE deviceId = ?1";

/// Query for the columns that [`order`] reads.
macro_rules! orders {
    () => {
        "SELECT number, deviceId, work, productKey, deviceName, IotId, orderedAt, who, address, failure, target, \
         isConfirmed, fromTarget, toTarget, toProduct, former, askedAt, cloudOffset, isStored \
         FROM cloud_order"
    };
}

fn order(row: &Row<'_>) -> rusqlite::Result<Order> {
    let kind: String = row.get(2)?;
    let unknown = || rusqlite::Error::InvalidColumnType(2, "work".into(), rusqlite::types::Type::Text);
    Ok(Order {
        number: row.get(0)?,
        device: read::id(row, 1)?,
        kind: OrderKind::named(&kind).ok_or_else(unknown)?,
        product_key: row.get(3)?,
        device_name: row.get(4)?,
        iot_id: row.get(5)?,
        at: row.get(6)?,
        by: Actor { name: row.get(7)?, address: row.get(8)? },
        failure: row.get(9)?,
        target: row.get(10)?,
        is_confirmed: row.get(11)?,
        moving: moves::moving(row, 12)?,
    })
}

fn of(connection: &Connection, device: &DeviceId) -> rusqlite::Result<Option<Order>> {
    const SQL: &str = concat!(orders!(), " WHERE deviceId = ?1");
    connection.prepare_cached(SQL)?.query_row([device.as_str()], order).optional()
}

fn numbered(connection: &Connection, number: OrderNumber) -> rusqlite::Result<Option<Order>> {
    const SQL: &str = concat!(orders!(), " WHERE number = ?1");
    connection.prepare_cached(SQL)?.query_row([number], order).optional()
}

fn remove(connection: &Connection, number: OrderNumber) -> rusqlite::Result<bool> {
    Ok(connection.prepare_cached("DELETE FROM cloud_order WHERE number = ?1")?.execute([number])? > 0)
}

pub(super) fn count(connection: &Connection) -> rusqlite::Result<u64> {
    let count = connection.query_row("SELECT count(*) FROM cloud_order", (), |row| row.get::<_, i64>(0))?;
    Ok(count.unsigned_abs())
}

/// Ends all orders, and writes an audit entry with this reason for each. The caller has begun a
/// transaction.
pub(super) fn end_all(connection: &Connection, reason: &str, by: &Actor) -> rusqlite::Result<()> {
    const FIRST: &str = concat!(orders!(), " ORDER BY number LIMIT 1");
    let first = || connection.prepare_cached(FIRST)?.query_row((), order).optional();
    while let Some(order) = first()? {
        cancel(connection, &order, reason, (by, unix_now()))?;
    }
    Ok(())
}

/// Ends an order without its change, and writes an audit entry with the reason.
fn cancel(
    connection: &Connection,
    order: &Order,
    reason: &str,
    (by, now): (&Actor, UnixSeconds),
) -> rusqlite::Result<()> {
    remove(connection, order.number)?;
    audit(connection, (AuditEvent::Cancelled, now), &order.device, by, order.cancelled(reason))
}

/// Writes an audit entry about a device.
fn audit(
    connection: &Connection,
    (event, at): (AuditEvent, UnixSeconds),
    device: &DeviceId,
    by: &Actor,
    detail: String,
) -> rusqlite::Result<()> {
    let entry = AuditEntry { device: Some(device.clone()), detail: Some(detail), ..by.entry(event, at) };
    audit::append(connection, &entry)
}

/// Returns whether a carrier still has its lease. If so, no other process can have taken over its work.
fn has_lease(connection: &Connection, carrier: &Carrier) -> rusqlite::Result<bool> {
    const SQL: &str = "SELECT EXISTS (SELECT 1 FROM lease WHERE name = ?1 AND owner = ?2)";
    connection.prepare_cached(SQL)?.query_row(params![carrier.lease, carrier.owner], |row| row.get(0))
}

/// Returns whether a device is in the journal.
fn is_claimed(connection: &Connection, device: &DeviceId) -> rusqlite::Result<bool> {
    const SQL: &str = "SELECT EXISTS (SELECT 1 FROM registration_claim WHERE deviceId = ?1)";
    connection.prepare_cached(SQL)?.query_row([device.as_str()], |row| row.get(0))
}

/// Makes a change in the table alone, because the device has no certificate.
fn here(
    connection: &Connection,
    row: &DeviceRow,
    kind: OrderKind,
    by: &Actor,
    now: UnixSeconds,
) -> rusqlite::Result<Placed> {
    if is_claimed(connection, &row.id)? {
        return Ok(Placed::Registering);
    }
    match kind {
        OrderKind::Rotate | OrderKind::Move => return Ok(Placed::NoCertificate),
        OrderKind::Disable => set_state(connection, row, DeviceState::Disabled, now, (by, IN_TABLE))?,
        OrderKind::Enable => set_state(connection, row, DeviceState::Enabled, now, (by, IN_TABLE))?,
        OrderKind::Delete => {
            connection.prepare_cached(DELETE)?.execute([row.id.as_str()])?;
            audit::forget_refusals(connection, &row.id)?;
            audit(connection, (AuditEvent::Deleted, now), &row.id, by, IN_TABLE.into())?;
        }
    }
    Ok(Placed::Here)
}

/// Checks that no order of a device contradicts an operator's plain change. Disabling a device
/// cancels the order to enable it.
pub(super) fn permit(
    connection: &Connection,
    device: &DeviceId,
    change: PlainChange,
    (by, now): (&Actor, UnixSeconds),
) -> Result<(), WriteError> {
    let Some(order) = of(connection, device)? else { return Ok(()) };
    if order.yields_to(change)? {
        cancel(connection, &order, DISABLED_SINCE, (by, now))?;
    }
    Ok(())
}

/// Sets the state of a device, and writes an audit entry if the state changes.
fn set_state(
    connection: &Connection,
    row: &DeviceRow,
    state: DeviceState,
    now: UnixSeconds,
    (by, detail): (&Actor, &str),
) -> rusqlite::Result<()> {
    const SQL: &str = "UPDATE device_table SET state = ?2, importId = -abs(importId) WHERE deviceId = ?1";
    if row.state == state {
        return Ok(());
    }
    let (event, name) = match state {
        DeviceState::Enabled => (AuditEvent::Enabled, "enabled"),
        DeviceState::Disabled => (AuditEvent::Disabled, "disabled"),
    };
    connection.prepare_cached(SQL)?.execute([row.id.as_str(), name])?;
    audit::forget_refusals(connection, &row.id)?;
    audit(connection, (event, now), &row.id, by, detail.to_owned())
}

/// Marks a device as changed since its import, so that an undo of the import leaves it as it is.
pub(super) fn keep_from_undo(connection: &Connection, device: &DeviceId) -> rusqlite::Result<()> {
    const SQL: &str = "UPDATE device_table SET importId = -abs(importId) WHERE deviceId = ?1";
    connection.prepare_cached(SQL)?.execute([device.as_str()]).map(drop)
}

fn place(
    connection: &Connection,
    device: &DeviceId,
    kind: OrderKind,
    by: &Actor,
    now: UnixSeconds,
) -> rusqlite::Result<Placed> {
    const PLACE: &str = "INSERT INTO cloud_order \
                         (deviceId, work, productKey, deviceName, IotId, orderedAt, who, address, target) \
                         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)";
    if unfinished::is_hidden(connection, device)? {
        return Ok(Placed::NoDevice);
    }
    let Some(row) = read::device(connection, device)? else { return Ok(Placed::NoDevice) };
    let Some(certificate) = &row.certificate else { return here(connection, &row, kind, by, now) };
    if let Some(known) = of(connection, device)? {
        return Ok(kind.beside(&known));
    }
    connection.prepare_cached(PLACE)?.execute(params![
        device.as_str(),
        kind.name(),
        certificate.product_key,
        certificate.device_name,
        row.iot_id,
        now,
        by.name,
        by.address,
        row.target()
    ])?;
    let number = connection.last_insert_rowid();
    keep_from_undo(connection, device)?;
    audit(connection, (AuditEvent::Ordered, now), device, by, kind.name().into())?;
    if kind.disables_at_once() {
        set_state(connection, &row, DeviceState::Disabled, now, (by, IN_TABLE))?;
    }
    Ok(Placed::Yes(number))
}

fn complete(
    connection: &Connection,
    number: OrderNumber,
    claim_time: ClaimTime,
    now: UnixSeconds,
) -> rusqlite::Result<Completed> {
    const CLOUD_STATE: &str = "UPDATE device_table SET cloudState = ?2, IotId = coalesce(IotId, ?3) \
                               WHERE deviceId = ?1";
    const ROTATE: &str = "UPDATE device_table SET deviceSecret = NULL, IotId = NULL, registerTime = NULL, \
                          activateTime = NULL, firstIssued = NULL, issueId = NULL, cloudState = NULL, \
                          importId = -abs(importId) WHERE deviceId = ?1";
    // Adds an abandoned claim, so that any process registers the device again. While the claim
    // exists, the device keeps its place in its enrollment, and its target.
    const CLAIM: &str = "INSERT INTO registration_claim (deviceId, productKey, deviceName, openedAt, cloudOffset, asked, enrollment, target) \
                         VALUES (?1, ?2, ?3, ?4, ?5, 2, ?6, ?7) ON CONFLICT DO NOTHING";
    // Reads the stored order, which may be newer than the caller's copy. The audit entry names its
    // operator.
    let Some(order) = numbered(connection, number)? else { return Ok(Completed::Ended) };
    let Order { device, by, .. } = &order;
    let row = read::device(connection, device)?.filter(|row| order.is_stored() || order.fits(row));
    let Some(row) = row else {
        cancel(connection, &order, ROW_CHANGED, (by, now))?;
        return Ok(Completed::RowChanged);
    };
    if order.kind == OrderKind::Move && !order.is_stored() {
        return Ok(Completed::Unfinished);
    }
    remove(connection, number)?;
    let id = device.as_str();
    match order.kind {
        OrderKind::Disable => {
            connection.prepare_cached(CLOUD_STATE)?.execute(params![id, "disabled", order.iot_id])?;
        }
        OrderKind::Enable => {
            connection.prepare_cached(CLOUD_STATE)?.execute(params![id, None::<&str>, order.iot_id])?;
            set_state(connection, &row, DeviceState::Enabled, now, (by, IN_TABLE))?;
        }
        OrderKind::Delete => {
            connection.prepare_cached(DELETE)?.execute([id])?;
            audit::forget_refusals(connection, device)?;
        }
        OrderKind::Rotate => {
            let Order { product_key, device_name, target, .. } = &order;
            connection.prepare_cached(ROTATE)?.execute([id])?;
            connection.prepare_cached(CLAIM)?.execute(params![
                id,
                product_key,
                device_name,
                claim_time.at,
                claim_time.cloud_offset,
                row.enrollment,
                target
            ])?;
            places::keep(connection, device, &row.enrollment)?;
            audit::forget_refusals(connection, device)?;
        }
        OrderKind::Move => {}
    }
    audit(connection, (order.kind.event(), now), device, by, order.carried_out())?;
    Ok(Completed::Yes)
}

impl Orders for Sqlite {
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
        self.writer.submit(move |connection| Ok(place(connection, &device, kind, &by, clock.now())?))
    }

    fn place_move<'a>(
        &'a self,
        device: &'a DeviceId,
        to: &'a Move,
        begun: Begun,
        by: &'a Actor,
    ) -> StoreFuture<'a, Placed> {
        let (device, to, by, clock) = (device.clone(), to.clone(), by.clone(), self.clock.clone());
        self.writer
            .submit(move |connection| Ok(moves::place(connection, &device, (&to, begun), &by, clock.now())?))
    }

    fn orders_after<'a>(
        &'a self,
        target: Option<&'a str>,
        after: OrderNumber,
        limit: usize,
    ) -> StoreFuture<'a, Vec<Order>> {
        const ALL: &str = concat!(orders!(), " WHERE number > ?1 ORDER BY number LIMIT ?2");
        const OF_TARGET: &str =
            concat!(orders!(), " WHERE number > ?1 AND target = ?3 ORDER BY number LIMIT ?2");
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        self.read(|connection| match target {
            None => connection.prepare_cached(ALL)?.query_map([after, limit], order)?.collect(),
            Some(target) => connection
                .prepare_cached(OF_TARGET)?
                .query_map(params![after, limit, target], order)?
                .collect(),
        })
    }

    fn order_of<'a>(&'a self, device: &'a DeviceId) -> StoreFuture<'a, Option<Order>> {
        self.read(|connection| of(connection, device))
    }

    fn note_order(&self, number: OrderNumber, note: OrderNote) -> StoreFuture<'_, bool> {
        // Once the former device of a move is confirmed, or known to be gone, the device is registered
        // at the new target.
        const IOT_ID: &str = "UPDATE cloud_order SET IotId = ?2, isConfirmed = 1, failure = NULL, \
                              target = iif(isStored, target, coalesce(toTarget, target)) WHERE number = ?1";
        const IS_GONE: &str = "UPDATE cloud_order SET IotId = NULL, isConfirmed = 1, failure = NULL, \
                               target = toTarget \
                               WHERE number = ?1 AND NOT isStored AND NOT isConfirmed AND toTarget IS NOT NULL";
        const FAILURE: &str = "UPDATE cloud_order SET failure = ?2 WHERE number = ?1";
        const ASKED: &str = "UPDATE cloud_order SET askedAt = ?2, cloudOffset = ?3 \
                             WHERE number = ?1 AND askedAt IS NULL";
        const NOT_ASKED: &str = "UPDATE cloud_order SET askedAt = NULL, cloudOffset = NULL WHERE number = ?1";
        self.writer.submit(move |connection| {
            let prepared = |sql| connection.prepare_cached(sql);
            let changed = match note {
                OrderNote::IotId(iot_id) => prepared(IOT_ID)?.execute(params![number, iot_id]),
                OrderNote::Failure(failure) => prepared(FAILURE)?.execute(params![number, failure]),
                OrderNote::FormerIsGone => prepared(IS_GONE)?.execute([number]),
                OrderNote::Asked(_, by) | OrderNote::NotAsked(by) if !has_lease(connection, &by)? => Ok(0),
                OrderNote::Asked(ClaimTime { at, cloud_offset }, _) => {
                    prepared(ASKED)?.execute(params![number, at, cloud_offset])
                }
                OrderNote::NotAsked(_) => prepared(NOT_ASKED)?.execute([number]),
            };
            Ok(changed? > 0)
        })
    }

    fn store_move<'a>(
        &'a self,
        order: &'a Order,
        registered: &'a RegisteredDevice,
    ) -> StoreFuture<'a, Moved> {
        let (order, registered, clock) = (order.clone(), registered.clone(), self.clock.clone());
        self.writer.submit(move |connection| moves::store(connection, &order, &registered, clock.now()))
    }

    fn complete_order<'a>(&'a self, order: &'a Order, now: ClaimTime) -> StoreFuture<'a, Completed> {
        let (number, clock) = (order.number, self.clock.clone());
        self.writer.submit(move |connection| Ok(complete(connection, number, now, clock.now())?))
    }

    fn end_order<'a>(&'a self, number: OrderNumber, reason: &'a str, by: &'a Actor) -> StoreFuture<'a, bool> {
        let (reason, by, clock) = (reason.to_owned(), by.clone(), self.clock.clone());
        self.writer.submit(move |connection| {
            let Some(order) = numbered(connection, number)? else { return Ok(false) };
            cancel(connection, &order, &reason, (&by, clock.now()))?;
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
        self.writer.submit(move |connection| {
            if !has_lease(connection, &carrier)? {
                return Ok(None);
            }
            let order = numbered(connection, number)?.filter(|order| order.step() == step);
            if let Some(order) = &order {
                cancel(connection, order, &reason, (&by, clock.now()))?;
            }
            Ok(order)
        })
    }
}
