//! Places of an enrollment, and devices that wait to be admitted. A write that depends on such a number
//! locks the enrollment's row in `enrollment_turn`, so that two servers do not take the last place both.

use std::collections::{BTreeMap, HashMap, hash_map::Entry};

use super::{
    Postgres, audit, counts,
    engine::Transactions,
    failure::Failure,
    read,
    session::{Session, column, number, values},
};
use crate::{
    device::DeviceId,
    store::{
        StoreError, StoreFuture, UnixSeconds,
        place::{CountsPlaces, MaxPlaces, Places},
        waiting::{
            Admission, Admits, MOST, MOST_OF_ADDRESS, MOST_OF_ENROLLMENT, NewDevice, Note, Waiting,
            WaitingList,
        },
    },
};

/// Maximum number of devices that one write removes, so that devices that ask do not wait for long.
const STEP: i64 = 500;

/// Maximum number of requests of waiting devices that one transaction notes. They lock the row of their
/// enrollment, so a crowd that noted each by itself would wait in a line.
const NOTED_TOGETHER: usize = 64;

/// Locks the row of an enrollment until the end of the transaction.
async fn lock(session: &Session, enrollment: &str) -> Result<(), Failure> {
    const SQL: &str = "INSERT INTO enrollment_turn AS t (enrollment) VALUES ($1) \
                       ON CONFLICT (enrollment) DO UPDATE SET waiting = t.waiting";
    session.execute(SQL, values![enrollment]).await.map(drop)
}

/// Counts the places that are taken, as SQLite does.
async fn places(session: &Session, enrollment: &str) -> Result<Places, Failure> {
    let sql = format!(
        "SELECT (SELECT greatest(coalesce(sum(registered), 0), 0)::int8 FROM {} \
         WHERE enrollment = $1), (SELECT count(*) FROM registration_claim WHERE enrollment = $1) \
         + (SELECT count(*) FROM kept_place k JOIN device_table d ON d.deviceId = k.deviceId \
         WHERE k.enrollment = $1 AND d.enrollment = $1 AND d.deviceSecret IS NULL \
         AND NOT EXISTS (SELECT 1 FROM registration_claim c \
         WHERE c.deviceId = k.deviceId AND c.enrollment = $1))",
        counts::KEPT
    );
    let row = session.one(&sql, values![enrollment]).await?;
    Ok(Places { registered: number(&row, 0)?, claimed: number(&row, 1)? })
}

/// Lets a device that was rotated keep its place in its enrollment. The caller has locked its row.
pub(super) async fn keep_place(
    session: &Session,
    device: &DeviceId,
    enrollment: &str,
) -> Result<(), Failure> {
    const SQL: &str = "INSERT INTO kept_place (deviceId, enrollment) VALUES ($1, $2) \
                       ON CONFLICT (deviceId) DO UPDATE SET enrollment = excluded.enrollment";
    session.execute(SQL, values![device.as_str(), enrollment]).await.map(drop)
}

/// Ends the kept place of a device whose certificate takes the place now.
pub(super) async fn end_kept_place(session: &Session, device: &DeviceId) -> Result<(), Failure> {
    session.execute("DELETE FROM kept_place WHERE deviceId = $1", values![device.as_str()]).await.map(drop)
}

/// The free places, for the claims of one transaction.
#[derive(Clone)]
pub(super) struct Room {
    max: MaxPlaces,
    /// Free places of each enrollment that has been asked for.
    free: HashMap<String, u64>,
}

impl Room {
    pub(super) fn new(max: MaxPlaces) -> Self {
        Self { max, free: HashMap::new() }
    }

    /// Takes a place. Returns false if none is free. The caller adds the claim to the journal in the
    /// same transaction.
    pub(super) async fn take(&mut self, session: &Session, enrollment: &str) -> Result<bool, Failure> {
        let Some(max) = self.max.get(enrollment) else { return Ok(true) };
        let free = match self.free.entry(enrollment.to_owned()) {
            Entry::Occupied(free) => free.into_mut(),
            Entry::Vacant(unknown) => {
                lock(session, enrollment).await?;
                unknown.insert(places(session, enrollment).await?.free(*max))
            }
        };
        let left = free.checked_sub(1);
        *free = left.unwrap_or_default();
        Ok(left.is_some())
    }
}

impl CountsPlaces for Postgres {
    fn set_max_places(&self, max: MaxPlaces) {
        self.max_places.store(max);
    }

    fn has_place<'a>(&'a self, device: &'a DeviceId, enrollment: &'a str) -> StoreFuture<'a, bool> {
        const SQL: &str = "SELECT 1 FROM registration_claim WHERE deviceId = $1 AND enrollment = $2 \
                           UNION ALL SELECT 1 FROM kept_place WHERE deviceId = $1 AND enrollment = $2";
        let (device, enrollment) = (device.clone(), enrollment.to_owned());
        self.engine.read(async move |session: &Session| {
            session.exists(SQL, values![device.as_str(), enrollment]).await
        })
    }

    fn places<'a>(&'a self, enrollment: &'a str) -> StoreFuture<'a, Places> {
        let enrollment = enrollment.to_owned();
        self.engine.read(async move |session: &Session| places(session, &enrollment).await)
    }
}

/// Returns the enrollment of a device that is in the table, in any spelling of its MAC address.
async fn enrollment_of(session: &Session, device: &DeviceId) -> Result<Option<String>, Failure> {
    match read::known_as(session, &device.clone().into()).await? {
        Some(known) => read::enrollment_of(session, &known).await,
        None => Ok(None),
    }
}

/// Notes requests, of which those of one enrollment come together.
async fn note_all(session: &Session, notes: &[Note], now: UnixSeconds) -> Result<(), Failure> {
    for asked in notes {
        note(session, asked, now).await?;
    }
    Ok(())
}

async fn note(session: &Session, note: &Note, now: UnixSeconds) -> Result<(), Failure> {
    const AGAIN: &str = "UPDATE device_waiting SET last = greatest(last, $3), count = count + 1 \
                         WHERE deviceId = $1 AND enrollment = $2";
    const ADD: &str = "INSERT INTO device_waiting (deviceId, enrollment, first, last, count, address) \
                       VALUES ($1, $2, $3, $3, 1, $4)";
    const COUNT: &str = "UPDATE enrollment_turn SET waiting = waiting + 1 WHERE enrollment = $1";
    let (device, enrollment) = (note.device.as_str(), &note.asker.enrollment);
    if session.execute(AGAIN, values![device, enrollment, now]).await? > 0
        || enrollment_of(session, &note.device).await?.is_some()
    {
        return Ok(());
    }
    lock(session, enrollment).await?;
    if is_full(session, note).await? {
        return Ok(());
    }
    session.execute(ADD, values![device, enrollment, now, note.asker.address]).await?;
    session.execute(COUNT, values![enrollment]).await.map(drop)
}

/// Returns whether the list has no place for one more device of the client. The limit of all
/// enrollments together may be exceeded by the number of servers that add devices at the same moment.
async fn is_full(session: &Session, note: &Note) -> Result<bool, Failure> {
    const TAKEN: &str = "SELECT coalesce(sum(waiting), 0)::int8, \
                         coalesce(sum(waiting) FILTER (WHERE enrollment = $1), 0)::int8 FROM enrollment_turn";
    const OF_ADDRESS: &str = "SELECT count(*) FROM (SELECT 1 FROM device_waiting \
                              WHERE enrollment = $1 AND address = $2 LIMIT $3) AS few";
    let enrollment = &note.asker.enrollment;
    let row = session.one(TAKEN, values![enrollment]).await?;
    if number(&row, 0)? >= MOST || number(&row, 1)? >= MOST_OF_ENROLLMENT {
        return Ok(true);
    }
    if !note.is_shared {
        return Ok(false);
    }
    let most = MOST_OF_ADDRESS.cast_signed();
    let row = session.one(OF_ADDRESS, values![enrollment, note.asker.address, most]).await?;
    Ok(number(&row, 0)? >= MOST_OF_ADDRESS)
}

/// Returns the result for a device that is not added, or `None` if nothing prevents its addition. In
/// a full enrollment, all devices that are not in it have the same result, so that this result
/// reveals nothing about them.
async fn obstacle(
    session: &Session,
    new: &NewDevice,
    max_rows: Option<u64>,
) -> Result<Option<Admission>, Failure> {
    let NewDevice { device, enrollment, product_key } = new;
    let known_in = enrollment_of(session, device).await?;
    if known_in.as_ref() == Some(enrollment) {
        return Ok(Some(Admission::Known));
    }
    if let Some(max) = max_rows
        && counts::devices_of(session, enrollment).await? >= max
    {
        return Ok(Some(Admission::Full));
    }
    if known_in.is_some() {
        return Ok(Some(Admission::Elsewhere));
    }
    let holder = read::holder_of_name(session, device, product_key, &device.device_name()).await?;
    Ok(holder.map(Admission::NameTaken))
}

async fn admit(
    session: &Session,
    new: &NewDevice,
    by: &Admits,
    now: UnixSeconds,
) -> Result<Admission, Failure> {
    const ADD: &str = "INSERT INTO device_table (deviceId, productKey, enrollment, name, spelledMac) \
                       VALUES ($1, $2, $3, $4, $5)";
    let NewDevice { device, enrollment, product_key } = new;
    if by.max_rows().is_some() {
        lock(session, enrollment).await?;
    }
    if is_hidden(session, device).await? {
        return later(device, by);
    }
    if let Some(obstacle) = obstacle(session, new, by.max_rows()).await? {
        if let Admission::NameTaken(holder) = &obstacle
            && read::is_hidden(session, holder).await?
        {
            return later(device, by);
        }
        if matches!(obstacle, Admission::Known | Admission::Elsewhere) {
            forget(session, device).await?;
        }
        return Ok(obstacle);
    }
    let (id, name) = (device.as_str(), device.device_name());
    session.execute(ADD, values![id, product_key, enrollment, name, read::spelled_mac(device)]).await?;
    counts::give(session, &[id]).await?;
    forget(session, device).await?;
    audit::forget_refusals(session, device).await?;
    audit::append(session, &by.entry(new, now)).await?;
    Ok(Admission::Added)
}

/// Returns whether an unfinished import adds a device, in any spelling of its MAC address.
async fn is_hidden(session: &Session, device: &DeviceId) -> Result<bool, Failure> {
    const SPELLED: &str = "SELECT 1 FROM device_table d JOIN import_unfinished u ON u.importId = d.addedBy \
                           WHERE d.deviceId = $1 OR d.spelledMac = $1";
    if !session.exists("SELECT 1 FROM import_unfinished", &[]).await? {
        return Ok(false);
    }
    session.exists(SPELLED, values![device.as_str()]).await
}

/// Returns the result for a device that can be admitted only after an import has ended. Before that, it
/// is not known whether the device or its name stays in the table.
fn later(device: &DeviceId, by: &Admits) -> Result<Admission, Failure> {
    match by {
        Admits::Operator(_) => Ok(Admission::Later),
        Admits::Configuration { .. } => Err(StoreError::Busy(format!(
            "an unfinished import adds device {device} or another device that has its name; it is admitted when that \
             has ended"
        ))
        .into()),
    }
}

/// Removes rows of `device_waiting` by this SQL condition, and returns their number.
macro_rules! remove {
    ($condition:literal) => {
        concat!(
            "WITH gone AS (DELETE FROM device_waiting w WHERE ",
            $condition,
            " RETURNING enrollment), \
             counted AS (SELECT enrollment, count(*) AS devices FROM gone GROUP BY enrollment) \
             UPDATE enrollment_turn t SET waiting = t.waiting - counted.devices FROM counted \
             WHERE t.enrollment = counted.enrollment RETURNING counted.devices"
        )
    };
}

/// Removes a device from the list, in all enrollments.
async fn forget(session: &Session, device: &DeviceId) -> Result<(), Failure> {
    session.rows(remove!("deviceId = $1"), values![device.as_str()]).await.map(drop)
}

/// Returns the sum of the numbers in the rows of [`remove`].
fn removed(rows: &[tokio_postgres::Row]) -> Result<u64, Failure> {
    rows.iter().map(|row| number(row, 0)).sum()
}

impl WaitingList for Postgres {
    fn note_waiting(&self, asked: Note) -> StoreFuture<'_, ()> {
        if let Err(error) = self.engine.may_write() {
            return Box::pin(std::future::ready(Err(error)));
        }
        let clock = self.clock.clone();
        self.notes.ask(&self.engine, asked, async move |transactions: &Transactions, mut notes: Vec<Note>| {
            // Rows are locked in one order, to prevent deadlocks between servers.
            notes.sort_by(|one, other| {
                (&one.asker.enrollment, &one.device).cmp(&(&other.asker.enrollment, &other.device))
            });
            for some in notes.chunks(NOTED_TOGETHER) {
                let work = async |session: &Session| note_all(session, some, clock.now()).await;
                transactions.run(&work).await?;
            }
            Ok(vec![(); notes.len()])
        })
    }

    fn waiting<'a>(
        &'a self,
        enrollment: Option<&'a str>,
        after: Option<&'a DeviceId>,
        limit: usize,
    ) -> StoreFuture<'a, Vec<Waiting>> {
        // All enrollments of each device, also if the limit cuts the list.
        const LIST: &str = "SELECT deviceId, enrollment, first, last, count, address FROM device_waiting \
                            WHERE ($2::text IS NULL OR enrollment = $2) AND deviceId IN (\
                            SELECT DISTINCT deviceId FROM device_waiting w \
                            WHERE deviceId > $1 AND ($2::text IS NULL OR enrollment = $2) \
                            AND NOT EXISTS (SELECT 1 FROM device_shown d WHERE d.deviceId = w.deviceId) \
                            ORDER BY deviceId LIMIT $3) ORDER BY deviceId, enrollment";
        let after = after.map_or("", DeviceId::as_str).to_owned();
        let enrollment = enrollment.map(str::to_owned);
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        self.engine.read(async move |session: &Session| {
            let rows = session.rows(LIST, values![after, enrollment, limit]).await?;
            let waiting = |row| {
                Ok(Waiting {
                    device: read::id(row, 0)?,
                    enrollment: column(row, 1)?,
                    first: column(row, 2)?,
                    last: column(row, 3)?,
                    count: number(row, 4)?,
                    address: column(row, 5)?,
                })
            };
            rows.iter().map(waiting).collect()
        })
    }

    fn waiting_counts(&self) -> StoreFuture<'_, Vec<(String, u64)>> {
        const SQL: &str =
            "SELECT enrollment, waiting FROM enrollment_turn WHERE waiting > 0 ORDER BY enrollment";
        self.engine.read(async |session: &Session| {
            let rows = session.rows(SQL, &[]).await?;
            rows.iter().map(|row| Ok((column(row, 0)?, number(row, 1)?))).collect()
        })
    }

    fn admit(&self, devices: Vec<NewDevice>, by: Admits) -> StoreFuture<'_, Vec<Admission>> {
        let clock = self.clock.clone();
        self.write(async move |session: &Session| {
            // Rows are locked in one order, to prevent deadlocks between servers.
            let mut sorted: Vec<(usize, &NewDevice)> = devices.iter().enumerate().collect();
            sorted.sort_by(|(_, one), (_, other)| one.device.cmp(&other.device));
            let mut admissions = BTreeMap::new();
            for (at, device) in sorted {
                admissions.insert(at, admit(session, device, &by, clock.now()).await?);
            }
            Ok(admissions.into_values().collect())
        })
    }

    fn not_admitted<'a>(
        &'a self,
        new: &'a NewDevice,
        max_rows: Option<u64>,
    ) -> StoreFuture<'a, Option<Admission>> {
        let new = new.clone();
        self.engine.read(async move |session: &Session| obstacle(session, &new, max_rows).await)
    }

    fn dismiss<'a>(&'a self, enrollment: &'a str, devices: &'a [DeviceId]) -> StoreFuture<'a, u64> {
        const SQL: &str = remove!("enrollment = $1 AND deviceId = ANY ($2)");
        let devices: Vec<String> = devices.iter().map(|device| device.as_str().to_owned()).collect();
        let enrollment = enrollment.to_owned();
        self.engine.transact(async move |session: &Session| {
            removed(&session.rows(SQL, values![enrollment, devices]).await?)
        })
    }

    fn prune_waiting(&self, before: UnixSeconds) -> StoreFuture<'_, u64> {
        let step = self.prune_step(before);
        Box::pin(async move {
            let mut some = step.await?;
            let mut all = some;
            while some == STEP.cast_unsigned() {
                some = self.prune_step(before).await?;
                all += some;
            }
            Ok(all)
        })
    }
}

impl Postgres {
    /// Removes up to [`STEP`] devices in one write.
    fn prune_step(&self, before: UnixSeconds) -> StoreFuture<'static, u64> {
        const SQL: &str = remove!(
            "(deviceId, enrollment) IN (SELECT deviceId, enrollment FROM device_waiting e WHERE last < $1 \
             OR EXISTS (SELECT 1 FROM device_shown d WHERE d.deviceId = e.deviceId) LIMIT $2)"
        );
        self.engine.transact(async move |session: &Session| {
            removed(&session.rows(SQL, values![before, STEP]).await?)
        })
    }
}
