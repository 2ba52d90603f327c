//! Orders to move a device, in SQLite: how one is placed, and how the certificate of the new target
//! replaces the former one.

use rusqlite::{Connection, OptionalExtension, Row, params};

use super::{audit, cancel, keep_from_undo, numbered, of, remove};
use crate::{
    device::DeviceId,
    store::{
        Actor, DeviceRow, RegisteredDevice, StoreError, UnixSeconds,
        audit::AuditEvent,
        claim::ClaimTime,
        order::{Begun, BegunClaim, Former, Move, Moved, Moving, Order, OrderKind, Placed, ROW_CHANGED},
        sqlite::{
            audit::forget_refusals,
            claims::end_claim,
            names::{holder_of_iot_id, holder_of_name},
            read, secrets, unfinished,
            writer::WriteError,
        },
    },
};

/// Reads the state of a move from the columns that begin with `fromTarget`, whose index is `first`.
pub(super) fn moving(row: &Row<'_>, first: usize) -> rusqlite::Result<Option<Moving>> {
    let Some(from) = row.get(first)? else { return Ok(None) };
    let former: String = row.get(first + 3)?;
    let unknown =
        || rusqlite::Error::InvalidColumnType(first + 3, "former".into(), rusqlite::types::Type::Text);
    let asked_at: Option<UnixSeconds> = row.get(first + 4)?;
    let cloud_offset = row.get(first + 5)?;
    Ok(Some(Moving {
        from,
        to: Move {
            target: row.get(first + 1)?,
            product_key: row.get(first + 2)?,
            former: Former::named(&former).ok_or_else(unknown)?,
        },
        asked: asked_at.map(|at| ClaimTime { at, cloud_offset }),
        is_stored: row.get(first + 6)?,
    }))
}

pub(super) fn place(
    connection: &Connection,
    device: &DeviceId,
    (to, begun): (&Move, Begun),
    by: &Actor,
    now: UnixSeconds,
) -> rusqlite::Result<Placed> {
    const PLACE: &str = "INSERT INTO cloud_order \
                         (deviceId, work, productKey, deviceName, IotId, orderedAt, who, address, target, \
                         fromTarget, toTarget, toProduct, former) \
                         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13)";
    if unfinished::is_hidden(connection, device)? {
        return Ok(Placed::NoDevice);
    }
    let Some(row) = read::device(connection, device)? else { return Ok(Placed::NoDevice) };
    if let Some(known) = of(connection, device)? {
        return Ok(to.beside(&known));
    }
    let Some(certificate) = &row.certificate else { return here(connection, &row, (to, begun), by, now) };
    let from = row.target().unwrap_or_default();
    if let Some(needless) = to.is_needless_for(&row) {
        return Ok(needless);
    }
    if let Some(holder) = holder_of_name(connection, device, &to.product_key, &certificate.device_name)? {
        return Ok(Placed::NameTaken(holder));
    }
    connection.prepare_cached(PLACE)?.execute(params![
        device.as_str(),
        OrderKind::Move.name(),
        certificate.product_key,
        certificate.device_name,
        row.iot_id,
        now,
        by.name,
        by.address,
        to.first_target(from),
        from,
        to.target,
        to.product_key,
        to.former.name()
    ])?;
    let number = connection.last_insert_rowid();
    keep_from_undo(connection, device)?;
    let work = numbered(connection, number)?.map(|order| order.work()).unwrap_or_default();
    audit(connection, (AuditEvent::Ordered, now), device, by, work)?;
    Ok(Placed::Yes(number))
}

/// Reads the claim on a device.
fn claim_on(connection: &Connection, device: &DeviceId) -> rusqlite::Result<Option<BegunClaim>> {
    const SQL: &str = "SELECT target, productKey, deviceName, \
                       owner IS NOT NULL AND owner IN (SELECT ownerId FROM registration_owner), \
                       asked <> 0 OR batchId IS NOT NULL \
                       FROM registration_claim WHERE deviceId = ?1";
    let claim = |row: &Row<'_>| {
        Ok(BegunClaim {
            target: row.get(0)?,
            product_key: row.get(1)?,
            device_name: row.get(2)?,
            has_owner: row.get(3)?,
            may_be_asked: row.get(4)?,
        })
    };
    connection.prepare_cached(SQL)?.query_row([device.as_str()], claim).optional()
}

/// Moves a device that has no certificate, in the table alone.
fn here(
    connection: &Connection,
    row: &DeviceRow,
    (to, begun): (&Move, Begun),
    by: &Actor,
    now: UnixSeconds,
) -> rusqlite::Result<Placed> {
    const MOVE: &str = "UPDATE device_table SET target = ?2, productKey = ?3, refusal = NULL, IotId = NULL, \
                        importId = -abs(importId) WHERE deviceId = ?1";
    let claim = claim_on(connection, &row.id)?;
    if let Some(answer) = claim.as_ref().and_then(|claim| claim.answer(begun)) {
        return Ok(answer);
    }
    if let Some(needless) = to.is_needless_for(row) {
        return Ok(needless);
    }
    if let Some(holder) = holder_of_name(connection, &row.id, &to.product_key, &row.name())? {
        return Ok(Placed::NameTaken(holder));
    }
    connection.prepare_cached(MOVE)?.execute([row.id.as_str(), &to.target, &to.product_key])?;
    forget_refusals(connection, &row.id)?;
    let mut detail = to.detail_in_table(row);
    if let Some(claim) = &claim {
        end_claim(connection, &row.id)?;
        detail.push_str(&claim.detail());
    }
    audit(connection, (AuditEvent::Moved, now), &row.id, by, detail)?;
    Ok(Placed::Here)
}

/// Replaces the certificate of a device by that of the new target. The target is written even if it
/// is the default one, because the enrollment may name another one.
pub(super) fn store(
    connection: &Connection,
    order: &Order,
    registered: &RegisteredDevice,
    now: UnixSeconds,
) -> Result<Moved, WriteError> {
    const STORE: &str = "UPDATE device_table SET productKey = ?2, deviceName = ?3, deviceSecret = ?4, IotId = ?5, \
                         registerTime = ?6, activateTime = NULL, firstIssued = NULL, issueId = NULL, \
                         cloudState = NULL, refusal = NULL, importId = -abs(importId), target = ?7 \
                         WHERE deviceId = ?1";
    const IS_STORED: &str = "UPDATE cloud_order SET isStored = 1, target = fromTarget, failure = NULL \
                             WHERE number = ?1";
    let number = order.number;
    let Some(order) = numbered(connection, number)? else {
        let row = read::device(connection, &order.device)?;
        let Some(detail) = order.orphaned(row.as_ref(), &registered.certificate.device_name) else {
            return Ok(Moved::Ended);
        };
        audit(connection, (AuditEvent::Cancelled, now), &order.device, &order.by, detail)?;
        return Ok(Moved::Orphaned);
    };
    let Some(moving) = &order.moving else { return Ok(Moved::Ended) };
    if moving.is_stored {
        return Ok(Moved::Yes);
    }
    let device = &order.device;
    if !read::device(connection, device)?.is_some_and(|row| order.fits(&row)) {
        cancel(connection, &order, ROW_CHANGED, (&order.by, now))?;
        return Ok(Moved::RowChanged);
    }
    let RegisteredDevice { certificate, iot_id, registered } = registered;
    let named = holder_of_name(connection, device, &certificate.product_key, &certificate.device_name)?;
    let identified = match iot_id {
        Some(iot_id) => holder_of_iot_id(connection, device, iot_id)?,
        None => None,
    };
    for holder in named.iter().chain(&identified) {
        if unfinished::is_hidden(connection, holder)? {
            return Err(StoreError::Busy(format!(
                "an unfinished import adds, or an undo removes, device {holder}, which has the name or the IotId of \
                 device {device}; the move goes on when that has ended"
            ))
            .into());
        }
    }
    if let Some(holder) = named {
        return Ok(Moved::NameTaken(holder));
    }
    if let Some(holder) = identified {
        return Ok(Moved::IotIdTaken(holder));
    }
    secrets::note(connection, certificate.device_secret.expose())?;
    connection.prepare_cached(STORE)?.execute(params![
        device.as_str(),
        certificate.product_key,
        certificate.device_name,
        certificate.device_secret.expose(),
        iot_id,
        registered,
        moving.to.target
    ])?;
    forget_refusals(connection, device)?;
    audit(connection, (AuditEvent::Moved, now), device, &order.by, moving.detail(&order))?;
    match order.ends_when_stored() {
        true => drop(remove(connection, number)?),
        false => drop(connection.prepare_cached(IS_STORED)?.execute([number])?),
    }
    Ok(Moved::Yes)
}
