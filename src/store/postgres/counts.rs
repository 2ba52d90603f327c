//! Numbers of devices by enrollment, product and refusal. Each write adds the changes that it makes to
//! `count_change`, in its own transaction; no write waits for another one because of them. A moment
//! later, a server adds them to the numbers in `device_count` ([`fold`]). A reader adds up both tables,
//! so the work of a count does not grow with the number of devices. This module also compares the
//! numbers with the rows, and corrects them while other processes write.

use std::collections::BTreeMap;

use tokio_postgres::Row;

use super::{
    Postgres,
    engine::SNAPSHOT,
    failure::Failure,
    session::{Session, column, values},
};
use crate::{
    device::DeviceId,
    store::{
        CountCheck, Miscount, StoreError, Totals,
        filter::{Filter, Held, State},
        merge::Columns,
    },
};

/// Maximum number of characters of a refusal by which devices are counted. A longer one would not fit
/// into the index.
pub(super) const REFUSAL: usize = 500;

/// Number of changes that one statement adds to the numbers.
const FOLDED: i64 = 1000;

/// Maximum number of differences that the result of a comparison lists.
const NAMED: usize = 20;

/// The counting columns, in the order of the tables.
const COLUMNS: [&str; 10] = [
    "devices",
    "registered",
    "unissued",
    "issued",
    "activated",
    "disabled",
    "unregistered",
    "cloudDisabled",
    "cloudDeleted",
    "clear",
];

/// [`COLUMNS`] as a list in SQL.
macro_rules! columns {
    () => {
        "devices, registered, unissued, issued, activated, disabled, unregistered, cloudDisabled, cloudDeleted, clear"
    };
}

/// Sums of [`COLUMNS`] as a list in SQL.
macro_rules! sums {
    () => {
        "sum(devices)::int8 AS devices, sum(registered)::int8 AS registered, sum(unissued)::int8 AS unissued, \
         sum(issued)::int8 AS issued, sum(activated)::int8 AS activated, sum(disabled)::int8 AS disabled, \
         sum(unregistered)::int8 AS unregistered, sum(cloudDisabled)::int8 AS cloudDisabled, \
         sum(cloudDeleted)::int8 AS cloudDeleted, sum(clear)::int8 AS clear"
    };
}

/// Query that counts the rows of a table that meet a condition, by group.
macro_rules! of_rows {
    ($table:literal, $condition:literal) => {
        concat!(
            "SELECT enrollment, productKey, coalesce(left(refusal, 500), '') AS refusal, count(*) AS devices, \
             count(deviceSecret) AS registered, \
             count(*) FILTER (WHERE deviceSecret IS NOT NULL AND firstIssued IS NULL) AS unissued, \
             count(firstIssued) AS issued, count(activateTime) AS activated, \
             count(*) FILTER (WHERE state = 'disabled') AS disabled, \
             count(*) FILTER (WHERE deviceSecret IS NULL AND refusal IS NULL AND state = 'enabled') AS unregistered, \
             count(*) FILTER (WHERE cloudState = 'disabled') AS cloudDisabled, \
             count(*) FILTER (WHERE cloudState = 'deleted') AS cloudDeleted, \
             count(*) FILTER (WHERE deviceSecret NOT LIKE 'sealed %') AS clear FROM ",
            $table,
            " d WHERE ",
            $condition,
            " GROUP BY 1, 2, 3"
        )
    };
}

/// The numbers with all their changes, as a table in SQL.
macro_rules! kept {
    () => {
        concat!(
            "(SELECT enrollment, productKey, refusal, ",
            columns!(),
            " FROM device_count UNION ALL SELECT enrollment, productKey, refusal, ",
            columns!(),
            " FROM count_change) AS kept"
        )
    };
}

/// The numbers with all their changes, as a table in SQL with the name `kept`.
pub(super) const KEPT: &str = kept!();

const PUT: &str =
    concat!("INSERT INTO count_change (enrollment, productKey, refusal, ", columns!(), ") SELECT ");

/// Counts devices that were added, or that have their new values after a change.
pub(super) async fn give(session: &Session, devices: &[&str]) -> Result<(), Failure> {
    const SQL: &str = concat!(
        "INSERT INTO count_change (enrollment, productKey, refusal, ",
        columns!(),
        ") ",
        of_rows!("device_shown", "deviceId = ANY ($1)")
    );
    session.execute(SQL, values![devices.to_vec()]).await.map(drop)
}

/// Subtracts devices from the counts before they are removed or changed in the same transaction. The
/// caller has locked their rows.
pub(super) async fn take(session: &Session, devices: &[&str]) -> Result<(), Failure> {
    const SQL: &str = concat!(
        "INSERT INTO count_change (enrollment, productKey, refusal, ",
        columns!(),
        ") SELECT enrollment, productKey, refusal, -devices, -registered, -unissued, -issued, -activated, -disabled, \
         -unregistered, -cloudDisabled, -cloudDeleted, -clear FROM (",
        of_rows!("device_shown", "deviceId = ANY ($1)"),
        ") AS former"
    );
    session.execute(SQL, values![devices.to_vec()]).await.map(drop)
}

/// Changes a device, whose row the caller has locked, and counts it with its new values.
pub(super) async fn changing<T>(
    session: &Session,
    device: &DeviceId,
    change: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    let devices = [device.as_str()];
    take(session, &devices).await?;
    let changed = change.await?;
    give(session, &devices).await?;
    Ok(changed)
}

/// Devices that an import has added and that are hidden until it ends, by enrollment and product.
#[derive(Default)]
pub(super) struct Added(BTreeMap<(String, String), Of>);

#[derive(Default, Clone, Copy)]
struct Of {
    devices: i64,
    registered: i64,
    clear: i64,
}

impl Added {
    /// Counts a device with these columns.
    pub(super) fn add(&mut self, columns: &Columns<'_>) {
        let group = (columns.enrollment.to_owned(), columns.product_key.to_owned());
        let of = self.0.entry(group).or_default();
        of.devices += 1;
        if let Some(secret) = columns.device_secret {
            of.registered += 1;
            of.clear += i64::from(!secret.expose().starts_with("sealed "));
        }
    }

    /// Adds the devices of another `Added`.
    pub(super) fn append(&mut self, other: &Self) {
        for (group, more) in &other.0 {
            let of = self.0.entry(group.clone()).or_default();
            of.devices += more.devices;
            of.registered += more.registered;
            of.clear += more.clear;
        }
    }

    /// Counts the devices, in the transaction that makes them visible.
    pub(super) async fn give(&self, session: &Session) -> Result<(), Failure> {
        const SQL: &str = concat!(
            "INSERT INTO count_change (enrollment, productKey, refusal, ",
            columns!(),
            ") SELECT $1, $2, '', $3, $4, $4, 0, 0, 0, $3 - $4, 0, 0, $5"
        );
        for ((enrollment, product_key), Of { devices, registered, clear }) in &self.0 {
            session.execute(SQL, values![enrollment, product_key, *devices, *registered, *clear]).await?;
        }
        Ok(())
    }
}

/// Moves some of the changes into the numbers. Several processes may do so at the same time. Returns
/// whether there may be more.
pub(super) async fn fold(session: &Session) -> Result<bool, Failure> {
    // The numbers are locked in one order, to prevent deadlocks between processes.
    const FOLD: &str = concat!(
        "WITH oldest AS (SELECT number FROM count_change ORDER BY number LIMIT $1 FOR UPDATE SKIP LOCKED), \
         gone AS (DELETE FROM count_change c USING oldest o WHERE c.number = o.number \
         RETURNING c.enrollment, c.productKey, c.refusal, c.devices, c.registered, c.unissued, c.issued, \
         c.activated, c.disabled, c.unregistered, c.cloudDisabled, c.cloudDeleted, c.clear), \
         added AS (INSERT INTO device_count AS k (enrollment, productKey, refusal, ",
        columns!(),
        ") SELECT enrollment, productKey, refusal, ",
        sums!(),
        " FROM gone GROUP BY enrollment, productKey, refusal ORDER BY enrollment, productKey, refusal \
         ON CONFLICT (enrollment, productKey, refusal) DO UPDATE SET devices = k.devices + excluded.devices, \
         registered = k.registered + excluded.registered, unissued = k.unissued + excluded.unissued, \
         issued = k.issued + excluded.issued, activated = k.activated + excluded.activated, \
         disabled = k.disabled + excluded.disabled, unregistered = k.unregistered + excluded.unregistered, \
         cloudDisabled = k.cloudDisabled + excluded.cloudDisabled, \
         cloudDeleted = k.cloudDeleted + excluded.cloudDeleted, clear = k.clear + excluded.clear) \
         SELECT count(*) FROM oldest"
    );
    const CLEAN: &str = "DELETE FROM device_count WHERE devices = 0 AND registered = 0 AND unissued = 0 AND issued = 0 \
                         AND activated = 0 AND disabled = 0 AND unregistered = 0 AND cloudDisabled = 0 \
                         AND cloudDeleted = 0 AND clear = 0";
    if !session.exists("SELECT 1 FROM count_change LIMIT 1", &[]).await? {
        return Ok(false);
    }
    let folded: i64 = column(&session.one(FOLD, values![FOLDED]).await?, 0)?;
    if folded > 0 {
        session.execute(CLEAN, &[]).await?;
    }
    Ok(folded == FOLDED)
}

/// Reads a number. A negative one, which only a change by hand can cause, is read as 0.
fn unsigned(row: &Row, index: usize) -> Result<u64, Failure> {
    Ok(u64::try_from(column::<i64>(row, index)?).unwrap_or_default())
}

/// Sums an expression over the numbers. `None` stands for all enrollments or all products.
async fn sum(
    session: &Session,
    expression: &str,
    enrollment: Option<&str>,
    product_key: Option<&str>,
) -> Result<u64, Failure> {
    let sql = format!(
        "SELECT coalesce(sum({expression}), 0)::int8 FROM {} WHERE ($1::text IS NULL OR enrollment = $1) \
         AND ($2::text IS NULL OR productKey = $2)",
        kept!()
    );
    unsigned(&session.one(&sql, values![enrollment, product_key]).await?, 0)
}

/// Returns the number of devices of an enrollment.
pub(super) async fn devices_of(session: &Session, enrollment: &str) -> Result<u64, Failure> {
    sum(session, "devices", Some(enrollment), None).await
}

/// Returns the number of devices that a filter admits, or `None` if the kept numbers are not sufficient
/// for this filter.
pub(super) async fn number(session: &Session, filter: &Filter) -> Result<Option<u64>, Failure> {
    const OF_REFUSAL: &str = concat!(
        "SELECT coalesce(sum(devices), 0)::int8 FROM ",
        kept!(),
        " WHERE refusal = $1 AND ($2::text IS NULL OR enrollment = $2) AND ($3::text IS NULL OR productKey = $3)"
    );
    let Filter {
        enrollment,
        product_key,
        state,
        is_registered,
        refusal,
        issued_from,
        issued_before,
        text,
        target,
    } = filter;
    if issued_from.is_some() || issued_before.is_some() || text.is_some() || target.is_some() {
        return Ok(None);
    }
    let (enrollment, product_key) = (enrollment.as_deref(), product_key.as_deref());
    if let Some(refusal) = refusal {
        let is_whole = refusal.chars().count() < REFUSAL && !refusal.is_empty();
        if !is_whole || is_registered.is_some() || !matches!(state, None | Some(State::Refused)) {
            return Ok(None);
        }
        let row = session.one(OF_REFUSAL, values![refusal, enrollment, product_key]).await?;
        return unsigned(&row, 0).map(Some);
    }
    let expression = match (state, is_registered) {
        (Some(State::Imported | State::Waiting), _) | (Some(_), Some(_)) => return Ok(None),
        (Some(State::Registered), None) | (None, Some(true)) => "registered",
        (Some(State::Unissued), None) => "unissued",
        (Some(State::Issued), None) => "issued",
        (Some(State::Activated), None) => "activated",
        (Some(State::Refused), None) => "CASE WHEN refusal <> '' THEN devices ELSE 0 END",
        (Some(State::Disabled), None) => "disabled",
        (Some(State::DisabledAtCloud), None) => "cloudDisabled",
        (Some(State::DeletedAtCloud), None) => "cloudDeleted",
        (None, Some(false)) => "devices - registered",
        (None, None) => "devices",
    };
    sum(session, expression, enrollment, product_key).await.map(Some)
}

/// Returns the refused devices by enrollment and reason, the largest groups first.
pub(super) async fn refused(session: &Session, limit: i64) -> Result<Vec<Held>, Failure> {
    const SQL: &str = concat!(
        "SELECT enrollment, refusal, sum(devices)::int8 FROM ",
        kept!(),
        " WHERE refusal <> '' GROUP BY enrollment, refusal HAVING sum(devices) > 0 ORDER BY 3 DESC, 1, 2 LIMIT $1"
    );
    let held =
        |row| Ok(Held { enrollment: column(row, 0)?, refusal: column(row, 1)?, devices: unsigned(row, 2)? });
    session.rows(SQL, values![limit]).await?.iter().map(held).collect()
}

async fn totals(session: &Session) -> Result<Vec<Totals>, Failure> {
    const SQL: &str = concat!(
        "SELECT enrollment, sum(devices)::int8, sum(registered)::int8, sum(issued)::int8, sum(activated)::int8, \
         coalesce(sum(devices) FILTER (WHERE refusal <> ''), 0)::int8, sum(disabled)::int8, sum(unissued)::int8, \
         sum(unregistered)::int8, sum(cloudDisabled)::int8, sum(cloudDeleted)::int8, sum(clear)::int8 FROM ",
        kept!(),
        " GROUP BY enrollment HAVING sum(devices) > 0 ORDER BY enrollment"
    );
    let totals = |row| {
        Ok(Totals {
            enrollment: column(row, 0)?,
            devices: unsigned(row, 1)?,
            registered: unsigned(row, 2)?,
            issued: unsigned(row, 3)?,
            activated: unsigned(row, 4)?,
            refused: unsigned(row, 5)?,
            disabled: unsigned(row, 6)?,
            unissued: unsigned(row, 7)?,
            unregistered: unsigned(row, 8)?,
            disabled_at_cloud: unsigned(row, 9)?,
            deleted_at_cloud: unsigned(row, 10)?,
            clear: unsigned(row, 11)?,
        })
    };
    session.rows(SQL, &[]).await?.iter().map(totals).collect()
}

async fn products(session: &Session) -> Result<Vec<String>, Failure> {
    const SQL: &str = concat!(
        "SELECT productKey FROM ",
        kept!(),
        " GROUP BY productKey HAVING sum(devices) > 0 ORDER BY productKey"
    );
    session.rows(SQL, &[]).await?.iter().map(|row| column(row, 0)).collect()
}

/// Group of devices: enrollment, product and refusal.
type Group = [String; 3];

/// Numbers of a group: the kept ones, and those of the rows.
#[derive(Default)]
struct Both {
    kept: [i64; COLUMNS.len()],
    counted: [i64; COLUMNS.len()],
}

/// Reads the numbers and the rows, in the caller's snapshot.
async fn both(session: &Session) -> Result<BTreeMap<Group, Both>, Failure> {
    const KEPT: &str = concat!(
        "SELECT enrollment, productKey, refusal, ",
        sums!(),
        " FROM ",
        kept!(),
        " GROUP BY enrollment, productKey, refusal"
    );
    const ROWS: &str = of_rows!("device_shown", "true");
    let mut groups: BTreeMap<Group, Both> = BTreeMap::new();
    for (sql, is_kept) in [(KEPT, true), (ROWS, false)] {
        for row in session.rows(sql, &[]).await? {
            let both = groups.entry([column(&row, 0)?, column(&row, 1)?, column(&row, 2)?]).or_default();
            let numbers = if is_kept { &mut both.kept } else { &mut both.counted };
            for (index, number) in (3..).zip(numbers) {
                *number = column(&row, index)?;
            }
        }
    }
    Ok(groups)
}

/// Returns the differences between the numbers and the rows.
fn compared(groups: &BTreeMap<Group, Both>) -> CountCheck {
    let devices: i64 = groups.values().map(|both| both.counted[0]).sum();
    let mut check = CountCheck { devices: devices.cast_unsigned(), ..CountCheck::default() };
    for ([enrollment, product_key, refusal], Both { kept, counted }) in groups {
        for ((column, kept), counted) in COLUMNS.into_iter().zip(kept).zip(counted) {
            if kept == counted {
                continue;
            }
            check.different += 1;
            if check.first.len() < NAMED {
                let second = if refusal.is_empty() { product_key } else { refusal };
                let (enrollment, second) = (enrollment.clone(), second.clone());
                let (table, kept, counted) = ("device_count", *kept, *counted);
                check.first.push(Miscount { table, enrollment, second, column, kept, counted });
            }
        }
    }
    check
}

/// Adds the differences to the numbers, as one more change.
async fn correct(session: &Session, groups: &BTreeMap<Group, Both>) -> Result<(), Failure> {
    let sql = format!("{PUT}$1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13");
    for ([enrollment, product_key, refusal], Both { kept, counted }) in groups {
        if kept != counted {
            let missing: Vec<i64> = counted.iter().zip(kept).map(|(counted, kept)| counted - kept).collect();
            let mut all = values![enrollment, product_key, refusal].to_vec();
            all.extend(missing.iter().map(super::session::value));
            session.execute(&sql, &all).await?;
        }
    }
    Ok(())
}

/// Sets the numbers to those of the rows. No other process may use the tables yet.
pub(super) async fn count_anew(session: &Session) -> Result<(), Failure> {
    correct(session, &both(session).await?).await
}

impl Postgres {
    /// Implements [`Bulk::count`](crate::store::Bulk::count).
    pub(super) fn count_devices(&self) -> Result<u64, StoreError> {
        self.engine.read_now(async |session: &Session| sum(session, "devices", None, None).await)
    }

    /// Implements [`Bulk::count_unregistered`](crate::store::Bulk::count_unregistered).
    pub(super) fn unregistered(&self, enrollment: Option<&str>) -> Result<u64, StoreError> {
        let enrollment = enrollment.map(str::to_owned);
        self.engine.read_now(async move |session: &Session| {
            sum(session, "unregistered", enrollment.as_deref(), None).await
        })
    }

    /// Implements [`Bulk::totals`](crate::store::Bulk::totals).
    pub(super) fn count_all(&self) -> Result<Vec<Totals>, StoreError> {
        self.engine.read_now(totals)
    }

    /// Implements [`Bulk::products`](crate::store::Bulk::products).
    pub(super) fn counted_products(&self) -> Result<Vec<String>, StoreError> {
        self.engine.read_now(products)
    }

    /// Implements [`Bulk::check_counts`](crate::store::Bulk::check_counts).
    pub(super) fn compare_counts(&self) -> Result<CountCheck, StoreError> {
        self.engine.blocking()?.run(async |session| {
            session.run(SNAPSHOT).await?;
            Ok(compared(&both(session).await?))
        })
    }

    /// Implements [`Bulk::recount`](crate::store::Bulk::recount). The differences are found in one
    /// snapshot. Changes that other processes have made since then are separate records, and are kept.
    pub(super) fn correct_counts(&self) -> Result<CountCheck, StoreError> {
        const BEGIN: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ; SET LOCAL statement_timeout = '600s'; SET LOCAL lock_timeout = '60s'";
        // Fails if another process has corrected the numbers since the snapshot, or does so now.
        const ONCE: &str = "UPDATE count_correction SET times = times + 1 WHERE id = 0";
        self.engine.may_write()?;
        let work = self.engine.blocking()?;
        let corrected = work.run(async |session| {
            session.run(BEGIN).await?;
            let groups = both(session).await?;
            let check = compared(&groups);
            if check.different > 0 {
                session.execute(ONCE, &[]).await?;
                correct(session, &groups).await?;
            }
            Ok(check)
        });
        match corrected {
            Ok(check) => work.commit().map(|()| check),
            Err(StoreError::Busy(reason)) => Err(StoreError::Conflict(format!(
                "the counts were perhaps corrected by another process meanwhile ({reason}); check them again"
            ))),
            Err(error) => Err(error),
        }
    }
}
