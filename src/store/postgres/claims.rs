//! Claims on registrations, and leases. Each write locks the device's row first, and the owner's row
//! last, to prevent deadlocks between them.

use std::collections::HashMap;

use super::{
    Postgres, audit, counts,
    failure::Failure,
    read::{self, holder_of_iot_id, holder_of_name},
    secrets,
    session::{Session, column, values},
    waiting::{Room, end_kept_place},
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
    },
    target,
};

/// SQL condition for claims and batches that no living owner has.
macro_rules! abandoned {
    ($owner:literal) => {
        concat!(
            "(",
            $owner,
            " IS NULL OR NOT EXISTS (SELECT 1 FROM registration_owner o WHERE o.ownerId = ",
            $owner,
            "))"
        )
    };
}
pub(super) use abandoned;

/// Values of `registration_claim.asked`, which schema.sql explains.
const NOT_ASKED: i64 = 0;
const ASKED: i64 = 1;
const ASKED_BEFORE: i64 = 2;
const ASKED_IN_BATCH: i64 = 3;

/// Records a beat of an owner, so that its claims are not abandoned. If another process has removed
/// the owner's row, the count of beats begins again at a random number. If the count began at a fixed
/// number, it could reach the number that another process saw last, and that process would take the
/// owner for dead.
pub(super) async fn note_owner(session: &Session, owner: &Owner, now: UnixSeconds) -> Result<(), Failure> {
    const SQL: &str = "INSERT INTO registration_owner AS o (ownerId, name, beats, lastBeat) \
                       VALUES ($1, $2, floor(random() * 1000000000000)::int8, $3) \
                       ON CONFLICT (ownerId) DO UPDATE SET beats = o.beats + 1, lastBeat = excluded.lastBeat";
    session.execute(SQL, values![owner.id, owner.name, now]).await.map(drop)
}

/// The journal entry of a device before a new claim.
struct Known {
    entry: JournalEntry,
    since: UnixSeconds,
    cloud_offset: Option<i64>,
    owner: Option<OwnerId>,
    asked: i64,
    enrollment: String,
    batch: Option<BatchId>,
}

/// The journal as a new claim finds it.
struct Before {
    known: Option<Known>,
    /// Set if a living owner has the known entry.
    is_living: bool,
    /// Set if the device has an order.
    is_ordered: bool,
    /// Enrollment in which the device keeps a place, because it was rotated.
    kept_place: Option<String>,
}

impl Before {
    async fn read(session: &Session, device: &DeviceId) -> Result<Self, Failure> {
        const SQL: &str = "SELECT c.deviceId, c.productKey, c.deviceName, c.target, c.openedAt, c.cloudOffset, \
                           c.owner, c.asked, c.enrollment, o.ownerId IS NOT NULL, \
                           EXISTS (SELECT 1 FROM cloud_order r WHERE r.deviceId = asked.deviceId), \
                           (SELECT k.enrollment FROM kept_place k WHERE k.deviceId = asked.deviceId), c.batchId \
                           FROM (VALUES ($1)) AS asked (deviceId) \
                           LEFT JOIN registration_claim c ON c.deviceId = asked.deviceId \
                           LEFT JOIN registration_owner o ON o.ownerId = c.owner";
        let row = session.one(SQL, values![device.as_str()]).await?;
        let known = match column::<Option<&str>>(&row, 0)? {
            None => None,
            Some(_) => Some(Known {
                entry: read::journal_entry(&row)?,
                since: column(&row, 4)?,
                cloud_offset: column(&row, 5)?,
                owner: column(&row, 6)?,
                asked: column(&row, 7)?,
                enrollment: column(&row, 8)?,
                batch: column(&row, 12)?,
            }),
        };
        Ok(Self {
            known,
            is_living: column(&row, 9)?,
            is_ordered: column(&row, 10)?,
            kept_place: column(&row, 11)?,
        })
    }

    /// Returns whether the device has a place in an enrollment. An import may have moved it to another
    /// one since it took its place.
    fn has_place_in(&self, enrollment: &str) -> bool {
        let claimed = self.known.as_ref().map(|known| &known.enrollment);
        claimed.into_iter().chain(&self.kept_place).any(|taken| taken == enrollment)
    }

    /// Returns whether another living owner has the claim, or the device has an order.
    fn is_held_from(&self, owner: OwnerId) -> bool {
        let is_other = self.known.as_ref().is_some_and(|known| known.owner != Some(owner));
        (self.is_living && is_other) || self.is_ordered
    }
}

/// Claims the registration of a device. The caller records the owner's beat.
async fn claim(
    session: &Session,
    owner: &Owner,
    entry: &JournalEntry,
    batch: Option<BatchId>,
    now: ClaimTime,
    room: &mut Room,
) -> Result<Claimed, Failure> {
    const CLAIM: &str = "INSERT INTO registration_claim \
                         (deviceId, productKey, deviceName, openedAt, cloudOffset, batchId, owner, asked, \
                         enrollment, target) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) \
                         ON CONFLICT (deviceId) DO UPDATE SET productKey = excluded.productKey, \
                         deviceName = excluded.deviceName, openedAt = excluded.openedAt, \
                         cloudOffset = excluded.cloudOffset, batchId = excluded.batchId, \
                         owner = excluded.owner, asked = excluded.asked, \
                         enrollment = excluded.enrollment, target = excluded.target";
    let JournalEntry { device, product_key, device_name, target } = entry;
    let Some(row) = read::locked(session, device).await? else {
        // Only the end of the import decides whether the device stays in the table.
        let is_hidden = read::is_hidden(session, device).await?;
        return Ok(if is_hidden { Claimed::Held } else { Claimed::NotWanted });
    };
    let before = Before::read(session, device).await?;
    let is_held = before.is_held_from(owner.id);
    let asks = row.certificate.is_none()
        && row.refusal.is_none()
        && row.product_key == *product_key
        && row.name() == *device_name
        && row.target.as_ref().is_none_or(|own| own == target);
    if !asks {
        if !is_held {
            end_claim(session, device).await?;
        }
        return Ok(Claimed::NotWanted);
    }
    // The claim stays, because IoT Platform may have been called for the device.
    if row.state == DeviceState::Disabled {
        return Ok(Claimed::NotWanted);
    }
    if is_held {
        return Ok(Claimed::Held);
    }
    let same = before.known.as_ref().filter(|known| known.entry == *entry);
    let other = before.known.as_ref().filter(|known| known.entry != *entry);
    if let Some(other) = other
        && row.target.is_none()
        && other.asked != NOT_ASKED
        && *entry == (JournalEntry { target: target.clone(), ..other.entry.clone() })
    {
        return Ok(Claimed::Elsewhere(other.entry.target.clone()));
    }
    if let Some(holder) = holder_of_name(session, device, product_key, device_name).await? {
        // Only the end of the import decides whether the name is taken.
        let is_hidden = read::is_hidden(session, &holder).await?;
        return Ok(if is_hidden { Claimed::Held } else { Claimed::NameTaken(holder) });
    }
    if !before.has_place_in(&row.enrollment) && !room.take(session, &row.enrollment).await? {
        return Ok(Claimed::NoPlace);
    }
    if let Some(Known { entry: former, .. }) = other {
        let JournalEntry { product_key, device_name, target, .. } = former;
        tracing::warn!(%device, product_key, device_name, former_target = target, "a device was given another name or target while its registration was unfinished; if its former name exists there at IoT Platform, delete it there");
    }
    if let Some(Known { batch: Some(batch), .. }) =
        before.known.as_ref().filter(|known| known.owner != Some(owner.id))
    {
        end_unchecked(session, *batch).await?;
    }
    let asked = match same {
        None | Some(Known { asked: NOT_ASKED, .. }) => None,
        Some(same) if matches!(same.asked, ASKED | ASKED_IN_BATCH) && same.owner == Some(owner.id) => {
            Some((AskedBy::Caller, same.since, same.cloud_offset))
        }
        Some(same) => Some((AskedBy::Other, same.since, same.cloud_offset)),
    };
    let (asked_by, since, cloud_offset) = asked.unwrap_or((AskedBy::Nobody, now.at, now.cloud_offset));
    let asked = match (asked_by, batch) {
        // For the claims of a batch, this value is changed once the batch has an `ApplyId`.
        (AskedBy::Nobody, Some(_)) => NOT_ASKED,
        // For a claim outside a batch, the caller calls IoT Platform next.
        (AskedBy::Nobody, None) | (AskedBy::Caller, _) => ASKED,
        (AskedBy::Other, _) => ASKED_BEFORE,
    };
    let id = device.as_str();
    session
        .execute(
            CLAIM,
            values![
                id,
                product_key,
                device_name,
                since,
                cloud_offset,
                batch,
                owner.id,
                asked,
                row.enrollment,
                target
            ],
        )
        .await?;
    Ok(Claimed::Yours(Claim { since, cloud_offset, asked_by }))
}

pub(super) async fn end_claim(session: &Session, device: &DeviceId) -> Result<(), Failure> {
    const SQL: &str = "DELETE FROM registration_claim WHERE deviceId = $1";
    session.execute(SQL, values![device.as_str()]).await.map(drop)
}

/// Leaves a claim of an owner to any other one.
async fn abandon(session: &Session, device: &DeviceId, owner: OwnerId) -> Result<(), Failure> {
    const SQL: &str = "UPDATE registration_claim SET owner = NULL, batchId = NULL \
                       WHERE deviceId = $1 AND owner = $2";
    session.execute(SQL, values![device.as_str(), owner]).await.map(drop)
}

/// Ends a claim because of a conflict. The result is the error that [`Claims::settle`] returns.
async fn conflict(session: &Session, device: &DeviceId, reason: String) -> Result<Settled, Failure> {
    end_claim(session, device).await?;
    Ok(Err(StoreError::Conflict(reason)))
}

/// Result of a settlement. The transaction is committed even if the result is an error.
type Settled = Result<(), StoreError>;

async fn settle(
    session: &Session,
    owner: OwnerId,
    entry: &JournalEntry,
    settlement: &Settlement,
    now: UnixSeconds,
    room: &mut Room,
) -> Result<Settled, Failure> {
    let JournalEntry { device, product_key, device_name, target } = entry;
    let row = read::locked(session, device).await?;
    let before = Before::read(session, device).await?;
    let is_ours =
        before.known.as_ref().is_some_and(|known| known.entry == *entry && known.owner == Some(owner));
    if let (Some(stored), Settlement::Registered(registered)) =
        (row.as_ref().and_then(|row| row.certificate.as_ref()), settlement)
    {
        return match difference(stored, &registered.certificate) {
            None => {
                if is_ours {
                    end_claim(session, device).await?;
                }
                Ok(Ok(()))
            }
            Some(_) if !is_ours => Ok(Err(StoreError::Fenced)),
            Some(column) => {
                let reason = format!(
                    "device {device} already has another certificate (column {column}), which was kept"
                );
                conflict(session, device, reason).await
            }
        };
    }
    let Some(row) = row else {
        return Ok(Err(StoreError::Conflict(format!("device {device} was deleted meanwhile"))));
    };
    if !is_ours {
        return Ok(Err(StoreError::Fenced));
    }
    if row.product_key != *product_key || row.name() != *device_name {
        let reason = format!("device {device} was given another product or name meanwhile");
        return conflict(session, device, reason).await;
    }
    if row.target.as_ref().is_some_and(|own| own != target) {
        let reason = format!("device {device} was given another target meanwhile");
        return conflict(session, device, reason).await;
    }
    match settlement {
        Settlement::Registered(registered) => {
            if let Some(iot_id) = &registered.iot_id
                && let Some(holder) = holder_of_iot_id(session, device, iot_id).await?
            {
                // Only the end of the import decides whether the `IotId` is taken, so no refusal is
                // stored before.
                if read::is_hidden(session, &holder).await? {
                    return Ok(Err(StoreError::Busy(format!(
                        "device {holder}, which an unfinished import adds, has the IotId of device {device}; its \
                         registration is stored when that has ended"
                    ))));
                }
                let reason = format!(
                    "{IOT_ID_IS_TAKEN}: device {holder} has the IotId of this device; correct or delete one of them"
                );
                refuse(session, device, &reason).await?;
                return conflict(session, device, reason).await;
            }
            if !before.has_place_in(&row.enrollment) && !room.take(session, &row.enrollment).await? {
                // The device exists at IoT Platform, which the journal does not forget. Once a place is
                // free, its certificate is looked up.
                abandon(session, device, owner).await?;
                return Ok(Err(StoreError::Conflict(format!(
                    "device {device} was moved meanwhile to enrollment {}, which is full",
                    row.enrollment
                ))));
            }
            register(session, device, target, registered, now).await?;
            if before.kept_place.is_some() {
                end_kept_place(session, device).await?;
            }
        }
        Settlement::Refused(reason) => {
            let changed = match row {
                DeviceRow { certificate: Some(_), .. } => Some("has a certificate"),
                DeviceRow { state: DeviceState::Disabled, .. } => Some("was disabled"),
                _ => None,
            };
            if let Some(changed) = changed {
                return conflict(session, device, format!("device {device} {changed} meanwhile")).await;
            }
            refuse(session, device, reason).await?;
        }
    }
    end_claim(session, device).await?;
    Ok(Ok(()))
}

async fn refuse(session: &Session, device: &DeviceId, reason: &str) -> Result<(), Failure> {
    const SQL: &str = "UPDATE device_table SET refusal = $2 WHERE deviceId = $1";
    counts::changing(session, device, async {
        session.execute(SQL, values![device.as_str(), reason]).await.map(drop)
    })
    .await
}

/// Writes the certificate of a device that has none, and an audit entry about the registration.
async fn register(
    session: &Session,
    device: &DeviceId,
    target: &str,
    registered: &RegisteredDevice,
    now: UnixSeconds,
) -> Result<(), Failure> {
    const SQL: &str = "UPDATE device_table SET productKey = $2, deviceName = $3, name = $3, deviceSecret = $4, \
                       IotId = coalesce($5, IotId), registerTime = coalesce(registerTime, $6), refusal = NULL, \
                       importId = -abs(importId), target = coalesce(target, $7) WHERE deviceId = $1";
    let RegisteredDevice { certificate, iot_id, registered } = registered;
    secrets::note(session, certificate.device_secret.expose()).await?;
    counts::take(session, &[device.as_str()]).await?;
    session
        .execute(
            SQL,
            values![
                device.as_str(),
                certificate.product_key,
                certificate.device_name,
                certificate.device_secret.expose(),
                iot_id,
                *registered,
                target::to_store(target)
            ],
        )
        .await?;
    counts::give(session, &[device.as_str()]).await?;
    let detail = Some(format!("{}/{}", certificate.product_key, certificate.device_name));
    let entry = AuditEntry::new(AuditEvent::Registered, now);
    audit::append(session, &AuditEntry { device: Some(device.clone()), detail, ..entry }).await
}

/// Locks the claims in batches in the order of their devices, as each write of several claims does.
async fn lock_claims_in(session: &Session, batches: &[i64]) -> Result<(), Failure> {
    const SQL: &str =
        "SELECT deviceId FROM registration_claim WHERE batchId = ANY ($1) ORDER BY deviceId FOR UPDATE";
    if batches.is_empty() {
        return Ok(());
    }
    session.rows(SQL, values![batches.to_vec()]).await.map(drop)
}

/// Ends the batch of an owner that is gone, if it has no `ApplyId`. If its process was only suspended,
/// it then begins nothing for devices that others have claimed.
async fn end_unchecked(session: &Session, batch: BatchId) -> Result<(), Failure> {
    const END: &str = "DELETE FROM registration_batch WHERE batchId = $1 AND applyId IS NULL";
    const SINGLE: &str = "UPDATE registration_claim SET batchId = NULL WHERE batchId = $1";
    if session.execute(END, values![batch]).await? > 0 {
        lock_claims_in(session, &[batch]).await?;
        session.execute(SINGLE, values![batch]).await?;
    }
    Ok(())
}

async fn take_batches(
    session: &Session,
    owner: &Owner,
    target: &str,
    now: UnixSeconds,
) -> Result<Vec<TakenBatch>, Failure> {
    const REMOVE: &str = concat!(
        "DELETE FROM registration_batch b WHERE target = $1 AND applyId IS NULL AND ",
        abandoned!("b.owner"),
        " RETURNING batchId"
    );
    const LOCK: &str = "SELECT batchId FROM registration_batch WHERE target = $1 ORDER BY batchId FOR UPDATE";
    const SINGLE: &str = "UPDATE registration_claim SET batchId = NULL WHERE batchId = ANY ($1)";
    const TAKE: &str = concat!(
        "UPDATE registration_batch b SET owner = $1 WHERE target = $2 AND (owner = $1 OR ",
        abandoned!("b.owner"),
        ") RETURNING batchId, productKey, applyId, target"
    );
    const TAKE_CLAIMS: &str = concat!(
        "UPDATE registration_claim c SET owner = $1, \
         asked = CASE WHEN asked = $3 AND owner IS DISTINCT FROM $1 THEN $4 ELSE asked END \
         WHERE batchId = $2 AND (owner = $1 OR ",
        abandoned!("c.owner"),
        ") RETURNING deviceId, productKey, deviceName, target, openedAt, cloudOffset, asked"
    );
    // Batches are locked in the order of their numbers, and claims in that of their devices.
    session.rows(LOCK, values![target]).await?;
    let removed = session.rows(REMOVE, values![target]).await?;
    let removed: Vec<i64> = removed.iter().map(|row| column(row, 0)).collect::<Result<_, _>>()?;
    if !removed.is_empty() {
        lock_claims_in(session, &removed).await?;
        session.execute(SINGLE, values![removed]).await?;
    }
    let batches = session.rows(TAKE, values![owner.id, target]).await?;
    let mut taken = Vec::with_capacity(batches.len());
    let numbers: Vec<i64> = batches.iter().map(|row| column(row, 0)).collect::<Result<_, _>>()?;
    lock_claims_in(session, &numbers).await?;
    for batch in &batches {
        let batch: OpenBatch = read::open_batch(batch)?;
        let rows = session.rows(TAKE_CLAIMS, values![owner.id, batch.id, ASKED, ASKED_BEFORE]).await?;
        let mut claims = Vec::with_capacity(rows.len());
        for row in &rows {
            let asked_by = match column(row, 6)? {
                NOT_ASKED | ASKED_IN_BATCH => AskedBy::Nobody,
                _ => AskedBy::Other,
            };
            let claim = Claim { since: column(row, 4)?, cloud_offset: column(row, 5)?, asked_by };
            claims.push((read::journal_entry(row)?, claim));
        }
        claims.sort_by(|(one, _), (other, _)| one.device.cmp(&other.device));
        taken.push((batch, claims));
    }
    if !taken.is_empty() {
        note_owner(session, owner, now).await?;
    }
    taken.sort_by_key(|(batch, _)| batch.id);
    Ok(taken)
}

impl Postgres {
    /// Runs a transaction that is committed even if its result is an error.
    pub(super) fn settled<W>(&self, work: W) -> StoreFuture<'static, ()>
    where
        W: AsyncFn(&Session) -> Result<Settled, Failure> + Send + 'static,
    {
        let written = self.write(work);
        Box::pin(async { written.await? })
    }

    fn room(&self) -> Room {
        Room::new(self.max_places.load_full())
    }
}

impl Claims for Postgres {
    fn beats<'a>(&'a self, own: Option<&'a Owner>) -> StoreFuture<'a, Vec<Beat>> {
        // The lock fails on a standby, and makes the commit wait as a beat does: an owner that cannot
        // beat then would seem dead.
        const ALL: &str = "SELECT ownerId, beats FROM registration_owner ORDER BY ownerId FOR SHARE";
        let (own, now) = (own.cloned(), self.clock.now());
        self.engine.transact(async move |session: &Session| {
            if let Some(own) = &own {
                note_owner(session, own, now).await?;
            }
            let rows = session.rows(ALL, &[]).await?;
            rows.iter().map(|row| Ok(Beat { owner: column(row, 0)?, count: column(row, 1)? })).collect()
        })
    }

    fn fence(&self, seen: Beat) -> StoreFuture<'_, bool> {
        const SQL: &str = "DELETE FROM registration_owner WHERE ownerId = $1 AND beats = $2";
        self.engine.transact(async move |session: &Session| {
            Ok(session.execute(SQL, values![seen.owner, seen.count]).await? > 0)
        })
    }

    fn retire(&self, owner: OwnerId) -> StoreFuture<'_, ()> {
        const SQL: &str = "DELETE FROM registration_owner WHERE ownerId = $1";
        self.engine
            .transact(async move |session: &Session| session.execute(SQL, values![owner]).await.map(drop))
    }

    fn retire_if_idle(&self, owner: OwnerId) -> StoreFuture<'_, ()> {
        // A claim that begins meanwhile records a beat, which waits for this transaction and creates
        // the row again.
        const LOCK: &str = "SELECT 1 FROM registration_owner WHERE ownerId = $1 FOR UPDATE";
        const SQL: &str = "DELETE FROM registration_owner WHERE ownerId = $1 \
                           AND NOT EXISTS (SELECT 1 FROM registration_claim WHERE owner = $1) \
                           AND NOT EXISTS (SELECT 1 FROM registration_batch WHERE owner = $1) \
                           AND NOT EXISTS (SELECT 1 FROM lease WHERE owner = $1)";
        self.engine.transact(async move |session: &Session| {
            session.rows(LOCK, values![owner]).await?;
            session.execute(SQL, values![owner]).await.map(drop)
        })
    }

    fn claim<'a>(
        &'a self,
        owner: &'a Owner,
        entry: &'a JournalEntry,
        now: ClaimTime,
    ) -> StoreFuture<'a, Claimed> {
        let (owner, entry, room) = (owner.clone(), entry.clone(), self.room());
        self.engine.transact(async move |session: &Session| {
            let claimed = claim(session, &owner, &entry, None, now, &mut room.clone()).await?;
            note_owner(session, &owner, now.at).await?;
            Ok(claimed)
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
                             VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (batchId) DO NOTHING";
        let (owner, batch, entries, room) = (owner.clone(), batch.clone(), entries.to_vec(), self.room());
        self.engine.transact(async move |session: &Session| {
            let apply_id = batch.apply_id.map(u64::cast_signed);
            session
                .execute(
                    BATCH,
                    values![batch.id, batch.product_key, apply_id, now.at, owner.id, batch.target],
                )
                .await?;
            // The rows are locked in the order of their IDs, as those of every other batch.
            let mut sorted: Vec<(usize, &JournalEntry)> = entries.iter().enumerate().collect();
            sorted.sort_by(|(_, one), (_, other)| one.device.cmp(&other.device));
            let (mut room, mut claimed) = (room.clone(), HashMap::new());
            for (at, entry) in sorted {
                let answer = claim(session, &owner, entry, Some(batch.id), now, &mut room).await?;
                claimed.insert(at, answer);
            }
            note_owner(session, &owner, now.at).await?;
            Ok((0..entries.len()).filter_map(|at| claimed.remove(&at)).collect())
        })
    }

    fn set_apply_id(&self, owner: OwnerId, batch: BatchId, apply_id: u64) -> StoreFuture<'_, ()> {
        const SQL: &str = "UPDATE registration_batch SET applyId = $3 WHERE batchId = $1 AND owner = $2";
        const ASK: &str = "UPDATE registration_claim SET asked = $3 \
                           WHERE batchId = $1 AND owner = $2 AND asked = $4";
        self.settled(async move |session: &Session| {
            if session.execute(SQL, values![batch, owner, apply_id.cast_signed()]).await? == 0 {
                return Ok(Err(StoreError::Fenced));
            }
            lock_claims_in(session, &[batch]).await?;
            session.execute(ASK, values![batch, owner, ASKED_IN_BATCH, NOT_ASKED]).await?;
            Ok(Ok(()))
        })
    }

    fn close_batch(&self, owner: OwnerId, batch: BatchId) -> StoreFuture<'_, ()> {
        const CLOSE: &str = "DELETE FROM registration_batch WHERE batchId = $1 AND owner = $2";
        const SINGLE: &str = "UPDATE registration_claim SET batchId = NULL WHERE batchId = $1";
        self.engine.transact(async move |session: &Session| {
            if session.execute(CLOSE, values![batch, owner]).await? > 0 {
                lock_claims_in(session, &[batch]).await?;
                session.execute(SINGLE, values![batch]).await?;
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
        let (entry, settlement, room) = (entry.clone(), settlement.clone(), self.room());
        let clock = self.clock.clone();
        self.settled(async move |session: &Session| {
            settle(session, owner, &entry, &settlement, clock.now(), &mut room.clone()).await
        })
    }

    fn release_claim<'a>(&'a self, owner: OwnerId, device: &'a DeviceId, asked: bool) -> StoreFuture<'a, ()> {
        const REMOVE: &str = "DELETE FROM registration_claim WHERE deviceId = $1 AND owner = $2";
        let device = device.clone();
        self.engine.transact(async move |session: &Session| match asked {
            true => abandon(session, &device, owner).await,
            false => session.execute(REMOVE, values![device.as_str(), owner]).await.map(drop),
        })
    }

    fn take_batches<'a>(&'a self, owner: &'a Owner, target: &'a str) -> StoreFuture<'a, Vec<TakenBatch>> {
        let (owner, target, now) = (owner.clone(), target.to_owned(), self.clock.now());
        self.engine.transact(async move |session: &Session| take_batches(session, &owner, &target, now).await)
    }

    fn abandoned<'a>(&'a self, target: &'a str, limit: usize) -> StoreFuture<'a, Vec<JournalEntry>> {
        const SQL: &str = concat!(
            "SELECT c.deviceId, c.productKey, c.deviceName, c.target FROM registration_claim c \
             JOIN device_table d ON d.deviceId = c.deviceId \
             WHERE c.target = $2 AND c.batchId IS NULL AND d.state = 'enabled' AND ",
            abandoned!("c.owner"),
            " ORDER BY c.openedAt, c.deviceId LIMIT $1"
        );
        let (target, limit) = (target.to_owned(), i64::try_from(limit).unwrap_or(i64::MAX));
        self.engine.read(async move |session: &Session| {
            session.rows(SQL, values![limit, target]).await?.iter().map(read::journal_entry).collect()
        })
    }

    fn claim_of<'a>(&'a self, device: &'a DeviceId) -> StoreFuture<'a, Option<ClaimView>> {
        const SQL: &str = "SELECT c.deviceId, c.productKey, c.deviceName, c.target, c.openedAt, c.batchId, o.name, \
                           o.lastBeat FROM registration_claim c \
                           LEFT JOIN registration_owner o ON o.ownerId = c.owner WHERE c.deviceId = $1";
        let device = device.clone();
        self.engine.read(async move |session: &Session| {
            let Some(row) = session.row(SQL, values![device.as_str()]).await? else { return Ok(None) };
            Ok(Some(ClaimView {
                entry: read::journal_entry(&row)?,
                since: column(&row, 4)?,
                batch: column(&row, 5)?,
                owner: column(&row, 6)?,
                last_beat: column(&row, 7)?,
            }))
        })
    }

    fn note_cloud_offset(&self, owner: OwnerId, offset: i64) -> StoreFuture<'_, ()> {
        const LOCK: &str = "SELECT deviceId FROM registration_claim WHERE owner = $1 AND cloudOffset IS NULL \
                            ORDER BY deviceId FOR UPDATE";
        const SQL: &str = "UPDATE registration_claim SET cloudOffset = $2 \
                           WHERE owner = $1 AND cloudOffset IS NULL";
        self.engine.transact(async move |session: &Session| {
            session.rows(LOCK, values![owner]).await?;
            session.execute(SQL, values![owner, offset]).await.map(drop)
        })
    }

    fn open_batches(&self) -> StoreFuture<'_, Vec<OpenBatch>> {
        const SQL: &str =
            "SELECT batchId, productKey, applyId, target FROM registration_batch ORDER BY batchId";
        self.engine.read(async |session: &Session| {
            session.rows(SQL, &[]).await?.iter().map(read::open_batch).collect()
        })
    }

    fn open_entries(&self) -> StoreFuture<'_, Vec<OpenEntry>> {
        const SQL: &str = "SELECT deviceId, productKey, deviceName, target, openedAt, batchId \
                           FROM registration_claim ORDER BY openedAt, deviceId";
        self.engine.read(async |session: &Session| {
            let rows = session.rows(SQL, &[]).await?;
            let open = |row| {
                let entry = read::journal_entry(row)?;
                Ok(OpenEntry { entry, since: column(row, 4)?, batch: column(row, 5)? })
            };
            rows.iter().map(open).collect()
        })
    }
}
