//! Claims on registrations in SQLite. Each method is one transaction of the writer, or a part of
//! one, so that no other process sees a half-finished change.

use std::task::{Context, Poll, Waker};

use rusqlite::{Connection, OptionalExtension, Row, params};

use super::{
    Sqlite, audit,
    names::{holder_of_iot_id, holder_of_name},
    places::{self, Room},
    read, secrets, unfinished,
    writer::{WriteError, Writer},
};
use crate::{
    device::DeviceId,
    store::{
        AskedBy, BatchId, Claim, DeviceRow, DeviceState, JournalEntry, OpenBatch, OpenEntry,
        RegisteredDevice, StoreError, StoreFuture, UnixSeconds,
        audit::{AuditEntry, AuditEvent},
        claim::{
            Beat, ClaimTime, ClaimView, Claimed, Claims, IOT_ID_IS_TAKEN, Owner, OwnerId, Settlement,
            TakenBatch, difference,
        },
        lease::Leases,
    },
    target,
};

/// SQL condition for claims and batches that no living owner has.
macro_rules! abandoned {
    () => {
        "(owner IS NULL OR owner NOT IN (SELECT ownerId FROM registration_owner))"
    };
}

/// Value of `registration_claim.asked` if certainly no owner has called IoT Platform for the
/// device.
const NOT_ASKED: i64 = 0;
/// Value of `registration_claim.asked` if the claim's owner may have called IoT Platform for the
/// device.
const ASKED: i64 = 1;
/// Value of `registration_claim.asked` if an earlier owner of the claim may have called IoT
/// Platform for the device.
const ASKED_BEFORE: i64 = 2;
/// Value of `registration_claim.asked` if the claim's owner or an earlier owner may have called IoT
/// Platform for the device, but only in the claim's batch.
const ASKED_IN_BATCH: i64 = 3;

/// Records a beat of an owner, so that its claims are not abandoned. If another process has removed
/// the owner's row, the count of beats begins again at a random number. If the count began at a
/// fixed number, it could reach the number that another process saw last, and that process would
/// take the owner for dead.
fn note_owner(connection: &Connection, owner: &Owner, now: UnixSeconds) -> rusqlite::Result<()> {
    const SQL: &str = "INSERT INTO registration_owner (ownerId, name, beats, lastBeat) \
                       VALUES (?1, ?2, abs(random() % 1000000000000), ?3) \
                       ON CONFLICT (ownerId) DO UPDATE SET beats = beats + 1, lastBeat = excluded.lastBeat";
    connection.prepare_cached(SQL)?.execute(params![owner.id, owner.name, now]).map(drop)
}

/// State of a row and its claim before a new claim. The default is the state of a device that is
/// not in the table.
#[derive(Default)]
struct Before {
    /// Set if the row needs this registration and is enabled.
    wanted: bool,
    /// Set if the row would need this registration if it were not disabled. In that case, an
    /// existing claim stays, because IoT Platform may have been called for the device.
    disabled: bool,
    /// Owner that may have called IoT Platform for an existing entry with the same name, and the
    /// entry's time and cloud offset.
    asked: Option<(AskedBy, UnixSeconds, Option<i64>)>,
    /// Existing entry with another name or target, if that name may exist at IoT Platform.
    other_name: Option<JournalEntry>,
    /// Target of an existing entry with the same name, if IoT Platform may have been called there
    /// and the row names no target.
    elsewhere: Option<String>,
    /// Set if another living owner has the claim, or the device has an order.
    held: bool,
    /// Set if the device has a place in its enrollment. An import may have moved the device to another
    /// enrollment since it took its place.
    has_place: bool,
    enrollment: String,
    /// Batch of another owner to which an existing entry belongs.
    other_batch: Option<BatchId>,
}

impl Before {
    fn read(connection: &Connection, owner: OwnerId, entry: &JournalEntry) -> rusqlite::Result<Self> {
        const SQL: &str = "SELECT d.productKey, d.deviceName, \
                           d.deviceSecret IS NULL AND d.refusal IS NULL, d.state = 'enabled', \
                           c.productKey, c.deviceName, c.openedAt, c.cloudOffset, \
                           (o.ownerId IS NOT NULL AND o.ownerId <> ?2) \
                           OR EXISTS (SELECT 1 FROM cloud_order r WHERE r.deviceId = d.deviceId), \
                           c.asked, c.owner IS ?2, d.target, c.target, d.enrollment, \
                           c.enrollment IS d.enrollment \
                           OR EXISTS (SELECT 1 FROM kept_place k \
                           WHERE k.deviceId = d.deviceId AND k.enrollment = d.enrollment), \
                           iif(c.owner IS ?2, NULL, c.batchId) \
                           FROM device_table d \
                           LEFT JOIN registration_claim c ON c.deviceId = d.deviceId \
                           LEFT JOIN registration_owner o ON o.ownerId = c.owner \
                           WHERE d.deviceId = ?1";
        let JournalEntry { device, product_key, device_name, target } = entry;
        let before = connection
            .prepare_cached(SQL)?
            .query_row(params![device.as_str(), owner], |row| {
                let name: Option<String> = row.get(1)?;
                let name = name.unwrap_or_else(|| device.device_name());
                let own_target = row.get_ref(11)?.as_str_or_null()?;
                let is_same_row = row.get_ref(0)?.as_str()? == product_key
                    && name == *device_name
                    && own_target.is_none_or(|own| own == target);
                let (asks, is_enabled): (bool, bool) = (is_same_row && row.get(2)?, row.get(3)?);
                let claimed = match row.get(4)? {
                    None => None,
                    Some(product_key) => Some(JournalEntry {
                        device: device.clone(),
                        product_key,
                        device_name: row.get(5)?,
                        target: row.get(12)?,
                    }),
                };
                let asked: Option<i64> = row.get(9)?;
                let is_same_name = claimed.as_ref() == Some(entry);
                let is_elsewhere = |claimed: &JournalEntry| {
                    let same = JournalEntry { target: target.clone(), ..claimed.clone() };
                    own_target.is_none() && same == *entry && asked != Some(NOT_ASKED)
                };
                let (elsewhere, other_name) = match claimed.filter(|_| !is_same_name) {
                    Some(claimed) if is_elsewhere(&claimed) => (Some(claimed.target), None),
                    other => (None, other),
                };
                Ok(Self {
                    wanted: asks && is_enabled,
                    disabled: asks && !is_enabled,
                    asked: match asked.filter(|_| is_same_name) {
                        None | Some(NOT_ASKED) => None,
                        Some(ASKED | ASKED_IN_BATCH) if row.get(10)? => {
                            Some((AskedBy::Caller, row.get(6)?, row.get(7)?))
                        }
                        Some(_) => Some((AskedBy::Other, row.get(6)?, row.get(7)?)),
                    },
                    other_name,
                    elsewhere,
                    held: row.get(8)?,
                    enrollment: row.get(13)?,
                    has_place: row.get(14)?,
                    other_batch: row.get(15)?,
                })
            })
            .optional()?;
        Ok(before.unwrap_or_default())
    }
}

fn claim(
    connection: &Connection,
    owner: &Owner,
    entry: &JournalEntry,
    batch: Option<BatchId>,
    now: ClaimTime,
    room: &mut Room,
) -> rusqlite::Result<Claimed> {
    const CLAIM: &str = "INSERT INTO registration_claim \
                         (deviceId, productKey, deviceName, openedAt, cloudOffset, batchId, owner, asked, \
                         enrollment, target) \
                         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10) \
                         ON CONFLICT (deviceId) DO UPDATE SET productKey = excluded.productKey, \
                         deviceName = excluded.deviceName, openedAt = excluded.openedAt, \
                         cloudOffset = excluded.cloudOffset, batchId = excluded.batchId, \
                         owner = excluded.owner, asked = excluded.asked, \
                         enrollment = excluded.enrollment, target = excluded.target";
    let JournalEntry { device, product_key, device_name, target } = entry;
    let before = Before::read(connection, owner.id, entry)?;
    // Only the end of the import or its undo decides whether the device stays in the table. A claim
    // now would make the device visible, and would keep it in the table.
    if unfinished::is_hidden(connection, device)? {
        return Ok(Claimed::Held);
    }
    if !before.wanted {
        if !before.held && !before.disabled {
            end_claim(connection, device)?;
        }
        return Ok(Claimed::NotWanted);
    }
    if before.held {
        return Ok(Claimed::Held);
    }
    if let Some(target) = before.elsewhere {
        return Ok(Claimed::Elsewhere(target));
    }
    if let Some(holder) = holder_of_name(connection, device, product_key, device_name)? {
        // Only the end of the import decides whether the name is taken.
        let is_hidden = unfinished::is_hidden(connection, &holder)?;
        return Ok(if is_hidden { Claimed::Held } else { Claimed::NameTaken(holder) });
    }
    if !before.has_place && !room.take(connection, &before.enrollment)? {
        return Ok(Claimed::NoPlace);
    }
    match &before.other_name {
        None => {}
        Some(former) if former.target == *target => {
            let JournalEntry { product_key, device_name, .. } = former;
            tracing::warn!(%device, product_key, device_name, "a device was renamed while its registration was unfinished; if its former name exists at IoT Platform, delete it there");
        }
        Some(JournalEntry { product_key, device_name, target, .. }) => {
            tracing::warn!(%device, product_key, device_name, former_target = target, "a device was given another target while its registration was unfinished; if its name exists at the former target, delete it there");
        }
    }
    if let Some(batch) = before.other_batch {
        end_unchecked(connection, batch)?;
    }
    let (asked_by, since, cloud_offset) = before.asked.unwrap_or((AskedBy::Nobody, now.at, now.cloud_offset));
    connection.prepare_cached(CLAIM)?.execute(params![
        device.as_str(),
        product_key,
        device_name,
        since,
        cloud_offset,
        batch,
        owner.id,
        match (asked_by, batch) {
            // For the claims of a batch, this value is changed once the batch has an `ApplyId`.
            (AskedBy::Nobody, Some(_)) => NOT_ASKED,
            // For a claim outside a batch, the caller calls IoT Platform next.
            (AskedBy::Nobody, None) | (AskedBy::Caller, _) => ASKED,
            (AskedBy::Other, _) => ASKED_BEFORE,
        },
        before.enrollment,
        target
    ])?;
    Ok(Claimed::Yours(Claim { since, cloud_offset, asked_by }))
}

/// Ends the batch of an owner that is gone, if it has no `ApplyId`. If its process was only suspended,
/// it then begins nothing for devices that others have claimed.
fn end_unchecked(connection: &Connection, batch: BatchId) -> rusqlite::Result<()> {
    const END: &str = "DELETE FROM registration_batch WHERE batchId = ?1 AND applyId IS NULL";
    const SINGLE: &str = "UPDATE registration_claim SET batchId = NULL WHERE batchId = ?1";
    if connection.prepare_cached(END)?.execute([batch])? > 0 {
        connection.prepare_cached(SINGLE)?.execute([batch])?;
    }
    Ok(())
}

pub(super) fn end_claim(connection: &Connection, device: &DeviceId) -> rusqlite::Result<()> {
    connection
        .prepare_cached("DELETE FROM registration_claim WHERE deviceId = ?1")?
        .execute([device.as_str()])
        .map(drop)
}

/// Abandons a claim of an owner, so that any owner can take it over.
fn abandon(connection: &Connection, device: &DeviceId, owner: OwnerId) -> rusqlite::Result<()> {
    const SQL: &str = "UPDATE registration_claim SET owner = NULL, batchId = NULL \
                       WHERE deviceId = ?1 AND owner = ?2";
    connection.prepare_cached(SQL)?.execute(params![device.as_str(), owner]).map(drop)
}

/// Ends a claim because of a conflict. The result is the error that [`Claims::settle`] returns.
fn conflict(connection: &Connection, device: &DeviceId, reason: String) -> rusqlite::Result<Settled> {
    end_claim(connection, device)?;
    Ok(Err(StoreError::Conflict(reason)))
}

/// Result of a settlement. The transaction is committed even if the result is an error.
type Settled = Result<(), StoreError>;

fn settle(
    connection: &Connection,
    owner: OwnerId,
    entry: &JournalEntry,
    settlement: &Settlement,
    now: UnixSeconds,
    room: &mut Room,
) -> Result<Settled, WriteError> {
    const OWNER: &str = "SELECT owner FROM registration_claim \
                         WHERE deviceId = ?1 AND productKey = ?2 AND deviceName = ?3 AND target = ?4";
    let JournalEntry { device, product_key, device_name, target } = entry;
    let claimed_by: Option<Option<OwnerId>> = connection
        .prepare_cached(OWNER)?
        .query_row([device.as_str(), product_key, device_name, target], |row| row.get(0))
        .optional()?;
    let is_ours = claimed_by == Some(Some(owner));
    let row = read::device(connection, device)?;
    if let (Some(stored), Settlement::Registered(registered)) =
        (row.as_ref().and_then(|row| row.certificate.as_ref()), settlement)
    {
        return Ok(match difference(stored, &registered.certificate) {
            None => {
                if is_ours {
                    end_claim(connection, device)?;
                }
                Ok(())
            }
            Some(_) if !is_ours => Err(StoreError::Fenced),
            Some(column) => conflict(
                connection,
                device,
                format!("device {device} already has another certificate (column {column}), which was kept"),
            )?,
        });
    }
    let Some(row) = row else {
        return Ok(Err(StoreError::Conflict(format!("device {device} was deleted meanwhile"))));
    };
    if !is_ours {
        return Ok(Err(StoreError::Fenced));
    }
    if row.product_key != *product_key || row.name() != *device_name {
        let reason = format!("device {device} was given another product or name meanwhile");
        return Ok(conflict(connection, device, reason)?);
    }
    if row.target.as_ref().is_some_and(|own| own != target) {
        let reason = format!("device {device} was given another target meanwhile");
        return Ok(conflict(connection, device, reason)?);
    }
    match settlement {
        Settlement::Registered(registered) => {
            if let Some(iot_id) = &registered.iot_id
                && let Some(holder) = holder_of_iot_id(connection, device, iot_id)?
            {
                // Only the end of the import decides whether the `IotId` is taken, so no refusal is
                // stored before.
                if unfinished::is_hidden(connection, &holder)? {
                    return Ok(Err(StoreError::Busy(format!(
                        "device {holder}, which an unfinished import adds or an undo removes, has the IotId of device \
                         {device}; its registration is stored when that has ended"
                    ))));
                }
                let reason = format!(
                    "{IOT_ID_IS_TAKEN}: device {holder} has the IotId of this device; correct or delete one of them"
                );
                refuse(connection, device, &reason)?;
                return Ok(conflict(connection, device, reason)?);
            }
            if !places::has_place(connection, device, &row.enrollment)?
                && !room.take(connection, &row.enrollment)?
            {
                // The device exists at IoT Platform, so its claim stays in the journal. Once a place
                // is free, the certificate is looked up.
                abandon(connection, device, owner)?;
                return Ok(Err(StoreError::Conflict(format!(
                    "device {device} was moved meanwhile to enrollment {}, which is full",
                    row.enrollment
                ))));
            }
            register(connection, device, target, registered, now)?;
        }
        Settlement::Refused(reason) => {
            let changed = match row {
                DeviceRow { certificate: Some(_), .. } => Some("has a certificate"),
                DeviceRow { state: DeviceState::Disabled, .. } => Some("was disabled"),
                _ => None,
            };
            if let Some(changed) = changed {
                return Ok(conflict(connection, device, format!("device {device} {changed} meanwhile"))?);
            }
            refuse(connection, device, reason)?;
        }
    }
    end_claim(connection, device)?;
    Ok(Ok(()))
}

fn refuse(connection: &Connection, device: &DeviceId, reason: &str) -> rusqlite::Result<()> {
    connection
        .prepare_cached("UPDATE device_table SET refusal = ?2 WHERE deviceId = ?1")?
        .execute([device.as_str(), reason])
        .map(drop)
}

/// Writes the certificate of a device that has none, and an audit entry about the registration.
fn register(
    connection: &Connection,
    device: &DeviceId,
    target: &str,
    registered: &RegisteredDevice,
    now: UnixSeconds,
) -> Result<(), WriteError> {
    const SQL: &str = "UPDATE device_table SET productKey = ?2, deviceName = ?3, deviceSecret = ?4, \
                       IotId = coalesce(?5, IotId), registerTime = coalesce(registerTime, ?6), refusal = NULL, \
                       importId = -abs(importId), target = coalesce(target, ?7) WHERE deviceId = ?1";
    let RegisteredDevice { certificate, iot_id, registered } = registered;
    secrets::note(connection, certificate.device_secret.expose())?;
    connection.prepare_cached(SQL)?.execute(params![
        device.as_str(),
        certificate.product_key,
        certificate.device_name,
        certificate.device_secret.expose(),
        iot_id,
        registered,
        target::to_store(target)
    ])?;
    places::end_kept(connection, device)?;
    let detail = Some(format!("{}/{}", certificate.product_key, certificate.device_name));
    let entry = AuditEntry::new(AuditEvent::Registered, now);
    Ok(audit::append(connection, &AuditEntry { device: Some(device.clone()), detail, ..entry })?)
}

fn take_batches(
    connection: &Connection,
    owner: &Owner,
    target: &str,
    now: UnixSeconds,
) -> rusqlite::Result<Vec<TakenBatch>> {
    const REMOVE: &str =
        concat!("DELETE FROM registration_batch WHERE target = ?1 AND applyId IS NULL AND ", abandoned!());
    const SINGLE: &str = "UPDATE registration_claim SET batchId = NULL WHERE batchId IS NOT NULL \
                          AND batchId NOT IN (SELECT batchId FROM registration_batch)";
    const TAKE: &str = concat!(
        "UPDATE registration_batch SET owner = ?1 WHERE target = ?2 AND (owner = ?1 OR ",
        abandoned!(),
        ") RETURNING batchId, productKey, applyId, target"
    );
    const TAKE_CLAIMS: &str = concat!(
        "UPDATE registration_claim SET owner = ?1, \
         asked = iif(asked = ?3 AND owner IS NOT ?1, ?4, asked) WHERE batchId = ?2 AND (owner = ?1 OR ",
        abandoned!(),
        ") RETURNING deviceId, productKey, deviceName, target, openedAt, cloudOffset, asked"
    );
    if connection.prepare_cached(REMOVE)?.execute([target])? > 0 {
        connection.prepare_cached(SINGLE)?.execute(())?;
    }
    let batches: Vec<OpenBatch> = connection
        .prepare_cached(TAKE)?
        .query_map(params![owner.id, target], read::open_batch)?
        .collect::<rusqlite::Result<_>>()?;
    if !batches.is_empty() {
        note_owner(connection, owner, now)?;
    }
    let mut claims = connection.prepare_cached(TAKE_CLAIMS)?;
    batches
        .into_iter()
        .map(|batch| {
            let entries = claims.query_map([owner.id, batch.id, ASKED, ASKED_BEFORE], |row| {
                let asked_by = match row.get(6)? {
                    NOT_ASKED | ASKED_IN_BATCH => AskedBy::Nobody,
                    _ => AskedBy::Other,
                };
                let claim = Claim { since: row.get(4)?, cloud_offset: row.get(5)?, asked_by };
                Ok((read::journal_entry(row)?, claim))
            })?;
            Ok((batch, entries.collect::<rusqlite::Result<_>>()?))
        })
        .collect()
}

fn view(row: &Row<'_>) -> rusqlite::Result<ClaimView> {
    Ok(ClaimView {
        entry: read::journal_entry(row)?,
        since: row.get(4)?,
        batch: row.get(5)?,
        owner: row.get(6)?,
        last_beat: row.get(7)?,
    })
}

/// Submits a write that is committed even if its result is an error.
fn settled(
    writer: &Writer,
    work: impl FnOnce(&Connection) -> Result<Settled, WriteError> + Send + 'static,
) -> StoreFuture<'static, ()> {
    let written = writer.submit(work);
    Box::pin(async { written.await? })
}

impl Sqlite {
    /// Returns whether a query finds a row. Usually the query finds none, and then the writer need
    /// not run. Returns true after an error, so that the writer runs and reports the error.
    fn has_any(&self, query: &'static str) -> bool {
        let mut found = self.read(|connection| connection.prepare_cached(query)?.exists(()));
        let found = found.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        !matches!(found, Poll::Ready(Ok(false)))
    }

    /// Submits a write of one statement, which may change no row.
    fn execute(
        &self,
        sql: &'static str,
        values: impl rusqlite::Params + Send + 'static,
    ) -> StoreFuture<'static, ()> {
        self.writer.submit(move |connection| {
            connection.prepare_cached(sql)?.execute(values)?;
            Ok(())
        })
    }
}

impl Claims for Sqlite {
    fn beats<'a>(&'a self, own: Option<&'a Owner>) -> StoreFuture<'a, Vec<Beat>> {
        const ALL: &str = "SELECT ownerId, beats FROM registration_owner";
        let (own, now) = (own.cloned(), self.clock.now());
        if own.is_none() && !self.has_any(ALL) {
            return Box::pin(std::future::ready(Ok(Vec::new())));
        }
        self.writer.submit(move |connection| {
            if let Some(own) = own {
                note_owner(connection, &own, now)?;
            }
            let mut all = connection.prepare_cached(ALL)?;
            let beats = all.query_map((), |row| Ok(Beat { owner: row.get(0)?, count: row.get(1)? }))?;
            Ok(beats.collect::<rusqlite::Result<_>>()?)
        })
    }

    fn fence(&self, seen: Beat) -> StoreFuture<'_, bool> {
        const SQL: &str = "DELETE FROM registration_owner WHERE ownerId = ?1 AND beats = ?2";
        self.writer.submit(move |connection| {
            Ok(connection.prepare_cached(SQL)?.execute([seen.owner, seen.count])? > 0)
        })
    }

    fn retire(&self, owner: OwnerId) -> StoreFuture<'_, ()> {
        const SQL: &str = "DELETE FROM registration_owner WHERE ownerId = ?1";
        self.execute(SQL, [owner])
    }

    fn retire_if_idle(&self, owner: OwnerId) -> StoreFuture<'_, ()> {
        const SQL: &str = "DELETE FROM registration_owner WHERE ownerId = ?1 \
                           AND NOT EXISTS (SELECT 1 FROM registration_claim WHERE owner = ?1) \
                           AND NOT EXISTS (SELECT 1 FROM registration_batch WHERE owner = ?1) \
                           AND NOT EXISTS (SELECT 1 FROM lease WHERE owner = ?1)";
        self.execute(SQL, [owner])
    }

    fn claim<'a>(
        &'a self,
        owner: &'a Owner,
        entry: &'a JournalEntry,
        now: ClaimTime,
    ) -> StoreFuture<'a, Claimed> {
        let (owner, entry) = (owner.clone(), entry.clone());
        let mut room = Room::new(self.max_places.load_full());
        self.writer.submit(move |connection| {
            note_owner(connection, &owner, now.at)?;
            Ok(claim(connection, &owner, &entry, None, now, &mut room)?)
        })
    }

    fn claim_batch<'a>(
        &'a self,
        owner: &'a Owner,
        batch: &'a OpenBatch,
        entries: &'a [JournalEntry],
        now: ClaimTime,
    ) -> StoreFuture<'a, Vec<Claimed>> {
        const BATCH: &str = "INSERT INTO registration_batch (batchId, productKey, applyId, openedAt, owner, target) \
                             VALUES (?1, ?2, ?3, ?4, ?5, ?6) ON CONFLICT (batchId) DO NOTHING";
        let (owner, batch, entries) = (owner.clone(), batch.clone(), entries.to_vec());
        let mut room = Room::new(self.max_places.load_full());
        self.writer.submit(move |connection| {
            note_owner(connection, &owner, now.at)?;
            let apply_id = batch.apply_id.map(u64::cast_signed);
            let row = params![batch.id, batch.product_key, apply_id, now.at, owner.id, batch.target];
            connection.prepare_cached(BATCH)?.execute(row)?;
            let claims =
                entries.iter().map(|entry| claim(connection, &owner, entry, Some(batch.id), now, &mut room));
            Ok(claims.collect::<rusqlite::Result<_>>()?)
        })
    }

    fn set_apply_id(&self, owner: OwnerId, batch: BatchId, apply_id: u64) -> StoreFuture<'_, ()> {
        const SQL: &str = "UPDATE registration_batch SET applyId = ?3 WHERE batchId = ?1 AND owner = ?2";
        const ASK: &str = "UPDATE registration_claim SET asked = ?3 \
                           WHERE batchId = ?1 AND owner = ?2 AND asked = ?4";
        settled(&self.writer, move |connection| {
            let row = params![batch, owner, apply_id.cast_signed()];
            let changed = connection.prepare_cached(SQL)?.execute(row)?;
            if changed == 0 {
                return Ok(Err(StoreError::Fenced));
            }
            connection.prepare_cached(ASK)?.execute([batch, owner, ASKED_IN_BATCH, NOT_ASKED])?;
            Ok(Ok(()))
        })
    }

    fn close_batch(&self, owner: OwnerId, batch: BatchId) -> StoreFuture<'_, ()> {
        const CLOSE: &str = "DELETE FROM registration_batch WHERE batchId = ?1 AND owner = ?2";
        const SINGLE: &str = "UPDATE registration_claim SET batchId = NULL WHERE batchId = ?1";
        self.writer.submit(move |connection| {
            if connection.prepare_cached(CLOSE)?.execute([batch, owner])? > 0 {
                connection.prepare_cached(SINGLE)?.execute([batch])?;
            }
            Ok(())
        })
    }

    fn settle<'a>(
        &'a self,
        owner: OwnerId,
        entry: &'a JournalEntry,
        settlement: &'a Settlement,
    ) -> StoreFuture<'a, ()> {
        let (entry, settlement) = (entry.clone(), settlement.clone());
        let clock = self.clock.clone();
        let mut room = Room::new(self.max_places.load_full());
        settled(&self.writer, move |connection| {
            settle(connection, owner, &entry, &settlement, clock.now(), &mut room)
        })
    }

    fn release_claim<'a>(&'a self, owner: OwnerId, device: &'a DeviceId, asked: bool) -> StoreFuture<'a, ()> {
        const REMOVE: &str = "DELETE FROM registration_claim WHERE deviceId = ?1 AND owner = ?2";
        let device = device.clone();
        self.writer.submit(move |connection| match asked {
            true => Ok(abandon(connection, &device, owner)?),
            false => {
                connection.prepare_cached(REMOVE)?.execute(params![device.as_str(), owner])?;
                Ok(())
            }
        })
    }

    fn take_batches<'a>(&'a self, owner: &'a Owner, target: &'a str) -> StoreFuture<'a, Vec<TakenBatch>> {
        if !self.has_any("SELECT 1 FROM registration_batch") {
            return Box::pin(std::future::ready(Ok(Vec::new())));
        }
        let (owner, target, now) = (owner.clone(), target.to_owned(), self.clock.now());
        self.writer.submit(move |connection| Ok(take_batches(connection, &owner, &target, now)?))
    }

    fn abandoned<'a>(&'a self, target: &'a str, limit: usize) -> StoreFuture<'a, Vec<JournalEntry>> {
        const SQL: &str = concat!(
            "SELECT c.deviceId, c.productKey, c.deviceName, c.target FROM registration_claim c \
             JOIN device_table d ON d.deviceId = c.deviceId \
             WHERE c.target = ?2 AND c.batchId IS NULL AND d.state = 'enabled' AND ",
            abandoned!(),
            " ORDER BY c.openedAt, c.deviceId LIMIT ?1"
        );
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        self.read(move |connection| {
            connection.prepare_cached(SQL)?.query_map(params![limit, target], read::journal_entry)?.collect()
        })
    }

    fn claim_of<'a>(&'a self, device: &'a DeviceId) -> StoreFuture<'a, Option<ClaimView>> {
        const SQL: &str = "SELECT c.deviceId, c.productKey, c.deviceName, c.target, c.openedAt, c.batchId, o.name, \
                           o.lastBeat FROM registration_claim c \
                           LEFT JOIN registration_owner o ON o.ownerId = c.owner WHERE c.deviceId = ?1";
        self.read(|connection| connection.prepare_cached(SQL)?.query_row([device.as_str()], view).optional())
    }

    fn note_cloud_offset(&self, owner: OwnerId, offset: i64) -> StoreFuture<'_, ()> {
        const SQL: &str = "UPDATE registration_claim SET cloudOffset = ?2 \
                           WHERE owner = ?1 AND cloudOffset IS NULL";
        self.execute(SQL, (owner, offset))
    }

    fn open_batches(&self) -> StoreFuture<'_, Vec<OpenBatch>> {
        self.read(read::open_batches)
    }

    fn open_entries(&self) -> StoreFuture<'_, Vec<OpenEntry>> {
        self.read(read::open_entries)
    }
}

impl Leases for Sqlite {
    fn take_lease<'a>(&'a self, owner: &'a Owner, name: &'a str) -> StoreFuture<'a, Option<String>> {
        const SQL: &str = concat!(
            "INSERT INTO lease (name, owner, cursor) VALUES (?1, ?2, '') \
             ON CONFLICT (name) DO UPDATE SET owner = excluded.owner WHERE owner = excluded.owner OR ",
            abandoned!(),
            " RETURNING cursor"
        );
        let (owner, name, now) = (owner.clone(), name.to_owned(), self.clock.now());
        self.writer.submit(move |connection| {
            note_owner(connection, &owner, now)?;
            let mut statement = connection.prepare_cached(SQL)?;
            Ok(statement.query_row(params![name, owner.id], |row| row.get(0)).optional()?)
        })
    }

    fn set_cursor<'a>(&'a self, owner: OwnerId, name: &'a str, cursor: &'a str) -> StoreFuture<'a, ()> {
        const SQL: &str = "UPDATE lease SET cursor = ?3 WHERE name = ?1 AND owner = ?2";
        let (name, cursor) = (name.to_owned(), cursor.to_owned());
        settled(&self.writer, move |connection| {
            let changed = connection.prepare_cached(SQL)?.execute(params![name, owner, cursor])?;
            Ok(if changed > 0 { Ok(()) } else { Err(StoreError::Fenced) })
        })
    }

    fn give_lease_up<'a>(&'a self, owner: OwnerId, name: &'a str) -> StoreFuture<'a, ()> {
        const SQL: &str = "UPDATE lease SET owner = NULL WHERE name = ?1 AND owner = ?2";
        self.execute(SQL, (name.to_owned(), owner))
    }
}
