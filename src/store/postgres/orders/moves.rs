//! Orders to move a device: how one is placed, and how the certificate of the new target replaces the
//! former one.

use tokio_postgres::Row;

use super::{cancel, keep_from_undo, locked, log, of, remove};
use crate::{
    device::DeviceId,
    store::{
        Actor, DeviceRow, RegisteredDevice, StoreError, UnixSeconds,
        audit::AuditEvent,
        claim::ClaimTime,
        order::{Begun, BegunClaim, Former, Move, Moved, Moving, Order, OrderKind, Placed, ROW_CHANGED},
        postgres::{
            audit::forget_refusals,
            claims::end_claim,
            counts,
            failure::Failure,
            read::{self, holder_of_iot_id, holder_of_name},
            secrets,
            session::{Session, column, values},
        },
    },
};

/// Reads the state of a move from the columns that begin with `fromTarget`, the column `first`.
pub(super) fn moving(row: &Row, first: usize) -> Result<Option<Moving>, Failure> {
    let Some(from) = column(row, first)? else { return Ok(None) };
    let former = Former::named(column(row, first + 3)?);
    let asked_at: Option<UnixSeconds> = column(row, first + 4)?;
    let cloud_offset = column(row, first + 5)?;
    Ok(Some(Moving {
        from,
        to: Move {
            target: column(row, first + 1)?,
            product_key: column(row, first + 2)?,
            former: former.ok_or_else(|| Failure::unexpected("an order has an unknown value of former"))?,
        },
        asked: asked_at.map(|at| ClaimTime { at, cloud_offset }),
        is_stored: column(row, first + 6)?,
    }))
}

pub(super) async fn place(
    session: &Session,
    device: &DeviceId,
    (to, begun): (&Move, Begun),
    by: &Actor,
    now: UnixSeconds,
) -> Result<Placed, Failure> {
    const PLACE: &str = "INSERT INTO cloud_order \
                         (deviceId, work, productKey, deviceName, IotId, orderedAt, who, address, target, \
                         fromTarget, toTarget, toProduct, former) \
                         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)";
    let Some(row) = read::locked(session, device).await? else { return Ok(Placed::NoDevice) };
    if let Some(known) = of(session, device).await? {
        return Ok(to.beside(&known));
    }
    let Some(certificate) = &row.certificate else { return here(session, &row, (to, begun), by, now).await };
    let from = row.target().unwrap_or_default();
    if let Some(needless) = to.is_needless_for(&row) {
        return Ok(needless);
    }
    if let Some(holder) = holder_of_name(session, device, &to.product_key, &certificate.device_name).await? {
        return Ok(Placed::NameTaken(holder));
    }
    session
        .execute(
            PLACE,
            values![
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
            ],
        )
        .await?;
    let absent = || Failure::unexpected(format!("the order of device {device} cannot be read"));
    let placed: Order = of(session, device).await?.ok_or_else(absent)?;
    keep_from_undo(session, device).await?;
    log(session, (AuditEvent::Ordered, now), device, by, placed.work()).await?;
    Ok(Placed::Yes(placed.number))
}

/// Reads the claim on a device.
async fn claim_on(session: &Session, device: &DeviceId) -> Result<Option<BegunClaim>, Failure> {
    const SQL: &str = "SELECT c.target, c.productKey, c.deviceName, o.ownerId IS NOT NULL, \
                       c.asked <> 0 OR c.batchId IS NOT NULL \
                       FROM registration_claim c LEFT JOIN registration_owner o ON o.ownerId = c.owner \
                       WHERE c.deviceId = $1";
    let row = session.row(SQL, values![device.as_str()]).await?;
    let claim = |row: &Row| {
        Ok(BegunClaim {
            target: column(row, 0)?,
            product_key: column(row, 1)?,
            device_name: column(row, 2)?,
            has_owner: column(row, 3)?,
            may_be_asked: column(row, 4)?,
        })
    };
    row.as_ref().map(claim).transpose()
}

/// Moves a device that has no certificate, in the table alone.
async fn here(
    session: &Session,
    row: &DeviceRow,
    (to, begun): (&Move, Begun),
    by: &Actor,
    now: UnixSeconds,
) -> Result<Placed, Failure> {
    const MOVE: &str = "UPDATE device_table SET target = $2, productKey = $3, refusal = NULL, IotId = NULL, \
                        importId = -abs(importId) WHERE deviceId = $1";
    let claim = claim_on(session, &row.id).await?;
    if let Some(answer) = claim.as_ref().and_then(|claim| claim.answer(begun)) {
        return Ok(answer);
    }
    if let Some(needless) = to.is_needless_for(row) {
        return Ok(needless);
    }
    if let Some(holder) = holder_of_name(session, &row.id, &to.product_key, &row.name()).await? {
        return Ok(Placed::NameTaken(holder));
    }
    counts::take(session, &[row.id.as_str()]).await?;
    session.execute(MOVE, values![row.id.as_str(), to.target, to.product_key]).await?;
    counts::give(session, &[row.id.as_str()]).await?;
    forget_refusals(session, &row.id).await?;
    let mut detail = to.detail_in_table(row);
    if let Some(claim) = &claim {
        end_claim(session, &row.id).await?;
        detail.push_str(&claim.detail());
    }
    log(session, (AuditEvent::Moved, now), &row.id, by, detail).await?;
    Ok(Placed::Here)
}

/// Replaces the certificate of a device by that of the new target. The target is written even if it
/// is the default one, because the enrollment may name another one.
pub(super) async fn store(
    session: &Session,
    order: &Order,
    registered: &RegisteredDevice,
    now: UnixSeconds,
) -> Result<Moved, Failure> {
    const STORE: &str = "UPDATE device_table SET productKey = $2, deviceName = $3, name = $3, deviceSecret = $4, \
                         IotId = $5, registerTime = $6, activateTime = NULL, firstIssued = NULL, issueId = NULL, \
                         cloudState = NULL, refusal = NULL, importId = -abs(importId), target = $7 \
                         WHERE deviceId = $1";
    const IS_STORED: &str = "UPDATE cloud_order SET isStored = true, target = fromTarget, failure = NULL \
                             WHERE number = $1";
    let number = order.number;
    let Some(order) = locked(session, number).await? else {
        let row = read::device(session, &order.device).await?;
        let Some(detail) = order.orphaned(row.as_ref(), &registered.certificate.device_name) else {
            return Ok(Moved::Ended);
        };
        log(session, (AuditEvent::Cancelled, now), &order.device, &order.by, detail).await?;
        return Ok(Moved::Orphaned);
    };
    let Some(moving) = &order.moving else { return Ok(Moved::Ended) };
    if moving.is_stored {
        return Ok(Moved::Yes);
    }
    let device = &order.device;
    if !read::device(session, device).await?.is_some_and(|row| order.fits(&row)) {
        cancel(session, &order, ROW_CHANGED, (&order.by, now)).await?;
        return Ok(Moved::RowChanged);
    }
    let RegisteredDevice { certificate, iot_id, registered } = registered;
    let named = holder_of_name(session, device, &certificate.product_key, &certificate.device_name).await?;
    let identified = match iot_id {
        Some(iot_id) => holder_of_iot_id(session, device, iot_id).await?,
        None => None,
    };
    for holder in named.iter().chain(&identified) {
        if read::is_hidden(session, holder).await? {
            return Err(StoreError::Busy(format!(
                "an unfinished import adds device {holder}, which has the name or the IotId of device {device}; the \
                 move goes on when that has ended"
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
    secrets::note(session, certificate.device_secret.expose()).await?;
    counts::take(session, &[device.as_str()]).await?;
    session
        .execute(
            STORE,
            values![
                device.as_str(),
                certificate.product_key,
                certificate.device_name,
                certificate.device_secret.expose(),
                iot_id,
                *registered,
                moving.to.target
            ],
        )
        .await?;
    counts::give(session, &[device.as_str()]).await?;
    forget_refusals(session, device).await?;
    log(session, (AuditEvent::Moved, now), device, &order.by, moving.detail(&order)).await?;
    match order.ends_when_stored() {
        true => remove(session, number).await?,
        false => drop(session.execute(IS_STORED, values![number]).await?),
    }
    Ok(Moved::Yes)
}
