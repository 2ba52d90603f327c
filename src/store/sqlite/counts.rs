//! Numbers of devices by enrollment and product, and numbers of refused devices by reason. Triggers
//! of the schema update the stored numbers at every change, so that the numbers are read in the
//! same time for any number of devices. An import updates the numbers itself, because a trigger
//! doubles the cost of an inserted row. This module also compares the numbers with the rows of the
//! device table, and corrects the numbers while other processes write.

use std::{collections::BTreeMap, hash::RandomState};

use rusqlite::{
    Connection, Row, ToSql, Transaction, TransactionBehavior, config::DbConfig, params, params_from_iter,
};

use super::{connection, read, unfinished};
use crate::store::{
    CloudState, CountCheck, DeviceRow, DeviceState, Miscount, Totals,
    filter::{Filter, Held, State},
    merge::Columns,
};

/// Maximum number of differences that the result of a comparison lists.
const NAMED: usize = 20;

/// Beginning of a sealed secret.
const SEALED: &str = "sealed ";

/// The counting columns of `device_count`, in the order of the table.
const COLUMNS: [&str; 11] = [
    "devices",
    "registered",
    "unissued",
    "issued",
    "activated",
    "refused",
    "disabled",
    "unregistered",
    "cloudDisabled",
    "cloudDeleted",
    "clear",
];

/// One number for each of [`COLUMNS`].
type Numbers = [i64; COLUMNS.len()];

/// Properties of a row that decide which numbers count the row.
#[derive(Clone, Copy)]
pub(super) struct Counted<'r> {
    enrollment: &'r str,
    product_key: &'r str,
    is_registered: bool,
    is_clear: bool,
    is_issued: bool,
    is_activated: bool,
    is_disabled: bool,
    refusal: Option<&'r str>,
    cloud_state: Option<CloudState>,
}

impl<'r> Counted<'r> {
    /// Returns the counted properties of a new row.
    pub(super) fn new(columns: &Columns<'r>) -> Self {
        let Columns { enrollment, product_key, device_secret, .. } = *columns;
        Self {
            enrollment,
            product_key,
            is_registered: device_secret.is_some(),
            is_clear: device_secret.is_some_and(|secret| !secret.expose().starts_with(SEALED)),
            is_issued: false,
            is_activated: false,
            is_disabled: false,
            refusal: None,
            cloud_state: None,
        }
    }

    /// Returns the counted properties of a stored row.
    pub(super) fn of(row: &'r DeviceRow) -> Self {
        let secret = row.certificate.as_ref().map(|certificate| certificate.device_secret.expose());
        Self {
            enrollment: &row.enrollment,
            product_key: &row.product_key,
            is_registered: secret.is_some(),
            is_clear: secret.is_some_and(|secret| !secret.starts_with(SEALED)),
            is_issued: row.first_issued.is_some(),
            is_activated: row.activated.is_some(),
            is_disabled: row.state == DeviceState::Disabled,
            refusal: row.refusal.as_deref(),
            cloud_state: row.cloud_state,
        }
    }

    /// Returns the counted properties of this row after an import has changed it. An import clears
    /// the refusal, and keeps the times and states.
    pub(super) fn merged(self, columns: &Columns<'r>) -> Self {
        let Self { is_issued, is_activated, is_disabled, cloud_state, .. } = self;
        Self { is_issued, is_activated, is_disabled, cloud_state, ..Self::new(columns) }
    }

    fn numbers(&self) -> Numbers {
        [
            true,
            self.is_registered,
            self.is_registered && !self.is_issued,
            self.is_issued,
            self.is_activated,
            self.refusal.is_some(),
            self.is_disabled,
            !self.is_registered && self.refusal.is_none() && !self.is_disabled,
            self.cloud_state == Some(CloudState::Disabled),
            self.cloud_state == Some(CloudState::Deleted),
            self.is_clear,
        ]
        .map(i64::from)
    }
}

/// Numbers for each pair of texts: an enrollment, and a product or a reason.
type Groups<N> = Map<Map<N>>;

type Map<V> = hashbrown::HashMap<String, V, RandomState>;

fn entry<'g, N>(groups: &'g mut Groups<N>, of: &str, second: &str, none: N) -> &'g mut N {
    // A known group is found without copying its texts.
    groups.entry_ref(of).or_default().entry_ref(second).or_insert(none)
}

/// Numbers of devices, or amounts to add to the stored numbers.
#[derive(Default)]
pub(super) struct Counts {
    devices: Groups<Numbers>,
    refusals: Groups<i64>,
}

impl Counts {
    /// Counts a row that was added.
    pub(super) fn add(&mut self, row: &Counted<'_>) {
        self.count(row, 1);
    }

    /// Counts a row that was removed, or the former values of a changed row.
    pub(super) fn remove(&mut self, row: &Counted<'_>) {
        self.count(row, -1);
    }

    fn count(&mut self, row: &Counted<'_>, sign: i64) {
        let numbers = entry(&mut self.devices, row.enrollment, row.product_key, [0; COLUMNS.len()]);
        for (number, own) in numbers.iter_mut().zip(row.numbers()) {
            *number += sign * own;
        }
        if let Some(refusal) = row.refusal {
            *entry(&mut self.refusals, row.enrollment, refusal, 0) += sign;
        }
    }

    /// Adds these numbers to the stored numbers, in the open transaction.
    pub(super) fn write(&self, connection: &Connection) -> rusqlite::Result<()> {
        for table in TABLES {
            let keys = table.keys.join(" = ? AND ");
            let marks = vec!["?"; 2 + table.columns.len()].join(", ");
            let sums: Vec<_> = table
                .columns
                .iter()
                .map(|column| format!("{column} = {column} + excluded.{column}"))
                .collect();
            let mut add = connection.prepare(&format!(
                "INSERT INTO {} VALUES ({marks}) ON CONFLICT DO UPDATE SET {}",
                table.name,
                sums.join(", ")
            ))?;
            let zero = table.columns.join(" = 0 AND ");
            let mut clean =
                connection.prepare(&format!("DELETE FROM {} WHERE {keys} = ? AND {zero} = 0", table.name))?;
            for ([first, second], numbers) in (table.groups)(self) {
                let texts = [&first as &dyn ToSql, &second];
                add.execute(params_from_iter(
                    texts.into_iter().chain(numbers.iter().map(|number| number as &dyn ToSql)),
                ))?;
                clean.execute([first, second])?;
            }
        }
        Ok(())
    }

    /// Counts the rows of the device table, except those that an unfinished import hides.
    fn of_rows(connection: &Connection) -> rusqlite::Result<Self> {
        const SQL: &str = "SELECT enrollment, productKey, deviceSecret IS NOT NULL, \
                           coalesce(deviceSecret NOT GLOB 'sealed *', 0), firstIssued IS NOT NULL, \
                           activateTime IS NOT NULL, state = 'disabled', refusal, cloudState \
                           FROM main.device_table d WHERE ";
        let mut counts = Self::default();
        let mut statement = connection.prepare(&format!("{SQL}{}", unfinished::COUNTED))?;
        let mut rows = statement.query(())?;
        while let Some(row) = rows.next()? {
            let text = |column| row.get_ref(column).and_then(|value| Ok(value.as_str()?));
            counts.add(&Counted {
                enrollment: text(0)?,
                product_key: text(1)?,
                is_registered: row.get(2)?,
                is_clear: row.get(3)?,
                is_issued: row.get(4)?,
                is_activated: row.get(5)?,
                is_disabled: row.get(6)?,
                refusal: row.get_ref(7)?.as_str_or_null()?,
                cloud_state: read::cloud_state(row, 8)?,
            });
        }
        Ok(counts)
    }

    /// Reads the stored numbers.
    fn kept(connection: &Connection) -> rusqlite::Result<Self> {
        let mut counts = Self::default();
        let mut statement = connection.prepare("SELECT * FROM device_count")?;
        let mut rows = statement.query(())?;
        while let Some(row) = rows.next()? {
            let [of, product]: [String; 2] = [row.get(0)?, row.get(1)?];
            let numbers = entry(&mut counts.devices, &of, &product, [0; COLUMNS.len()]);
            for (column, number) in (2..).zip(numbers) {
                *number = row.get(column)?;
            }
        }
        let mut statement = connection.prepare("SELECT * FROM refusal_count")?;
        let mut rows = statement.query(())?;
        while let Some(row) = rows.next()? {
            let [of, refusal]: [String; 2] = [row.get(0)?, row.get(1)?];
            *entry(&mut counts.refusals, &of, &refusal, 0) = row.get(2)?;
        }
        Ok(counts)
    }

    /// Subtracts the numbers of `other`. Keeps only the groups in which a difference is left.
    fn minus(mut self, other: &Self) -> Self {
        for (of, group) in &other.devices {
            for (product, theirs) in group {
                let own = entry(&mut self.devices, of, product, [0; COLUMNS.len()]);
                for (own, theirs) in own.iter_mut().zip(theirs) {
                    *own -= theirs;
                }
            }
        }
        for (of, group) in &other.refusals {
            for (refusal, theirs) in group {
                *entry(&mut self.refusals, of, refusal, 0) -= theirs;
            }
        }
        for group in self.devices.values_mut() {
            group.retain(|_, numbers| numbers.iter().any(|number| *number != 0));
        }
        for group in self.refusals.values_mut() {
            group.retain(|_, number| *number != 0);
        }
        self
    }
}

/// Key of a group (an enrollment, and a product or a reason) and the numbers of the group.
type Group<'g> = ([&'g str; 2], &'g [i64]);

/// A table of the database that stores numbers.
struct Table {
    name: &'static str,
    keys: [&'static str; 2],
    columns: &'static [&'static str],
    groups: fn(&Counts) -> Vec<Group<'_>>,
}

const TABLES: [Table; 2] = [
    Table {
        name: "device_count",
        keys: ["enrollment", "productKey"],
        columns: &COLUMNS,
        groups: |counts| flat(&counts.devices, |numbers| numbers),
    },
    Table {
        name: "refusal_count",
        keys: ["enrollment", "refusal"],
        columns: &["devices"],
        groups: |counts| flat(&counts.refusals, std::slice::from_ref),
    },
];

fn flat<N>(groups: &Groups<N>, numbers: fn(&N) -> &[i64]) -> Vec<Group<'_>> {
    let inner = |(of, group)| {
        let (of, group): (&String, &Map<N>) = (of, group);
        let of = of.as_str();
        group.iter().map(move |(second, own)| ([of, second.as_str()], numbers(own)))
    };
    groups.iter().flat_map(inner).collect()
}

/// Disables the triggers of a connection. The user of the connection must then count the changes
/// with [`Counts`]. The keys and claims of a deleted device are still deleted, because foreign keys
/// do that.
pub(super) fn without_triggers(connection: &Connection) -> rusqlite::Result<()> {
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_TRIGGER, false).map(drop)
}

/// Re-enables the triggers of a connection.
pub(super) fn with_triggers(connection: &Connection) -> rusqlite::Result<()> {
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_TRIGGER, true).map(drop)
}

/// Result of comparing the stored numbers with the rows of the device table in one snapshot.
struct Compared {
    check: CountCheck,
    /// Amounts that must be added to the stored numbers to correct them.
    difference: Counts,
    /// Number of corrections that were made before the comparison.
    corrections: i64,
}

fn compare(connection: &Connection) -> rusqlite::Result<Compared> {
    let snapshot = Transaction::new_unchecked(connection, TransactionBehavior::Deferred)?;
    let corrections = snapshot.query_row("SELECT times FROM count_correction", (), |row| row.get(0))?;
    let kept = Counts::kept(&snapshot)?;
    let triggers = damaged_triggers(&snapshot)?.into_keys().collect();
    let difference = Counts::of_rows(&snapshot)?.minus(&kept);
    let devices = format!("SELECT count(*) FROM main.device_table d WHERE {}", unfinished::COUNTED);
    let mut check = CountCheck {
        devices: snapshot.query_row(&devices, (), |row| unsigned(row, 0))?,
        triggers,
        ..CountCheck::default()
    };
    snapshot.commit()?;
    for table in TABLES {
        let own: BTreeMap<[&str; 2], &[i64]> = (table.groups)(&kept).into_iter().collect();
        let differences: BTreeMap<_, _> = (table.groups)(&difference).into_iter().collect();
        for (group, numbers) in differences {
            for (column, (name, missing)) in table.columns.iter().zip(numbers).enumerate() {
                if *missing == 0 {
                    continue;
                }
                check.different += 1;
                if check.first.len() < NAMED {
                    let kept = own.get(&group).map_or(0, |own| own[column]);
                    let [enrollment, second] = group.map(str::to_owned);
                    let counted = kept + missing;
                    let table = table.name;
                    check.first.push(Miscount { table, enrollment, second, column: name, kept, counted });
                }
            }
        }
    }
    Ok(Compared { check, difference, corrections })
}

/// Implements [`Bulk::check_counts`](crate::store::Bulk::check_counts).
pub(super) fn check(connection: &Connection) -> rusqlite::Result<CountCheck> {
    compare(connection).map(|compared| compared.check)
}

/// Implements [`Bulk::recount`](crate::store::Bulk::recount). Returns `None` if another
/// process has corrected the numbers meanwhile.
///
/// The stored numbers are compared with the rows in one snapshot, and the difference is added to
/// the stored numbers later. A write of another process in between does not change the difference,
/// because the triggers update the numbers together with the rows. Therefore the write lock is held
/// only for the repair of triggers and for the addition.
pub(super) fn recount(connection: &Connection) -> rusqlite::Result<Option<CountCheck>> {
    let transaction = Transaction::new_unchecked(connection, TransactionBehavior::Immediate)?;
    let damaged = damaged_triggers(&transaction)?;
    for (name, sql) in &damaged {
        transaction.execute_batch(&format!("DROP TRIGGER IF EXISTS {name}; {sql}"))?;
    }
    transaction.commit()?;
    let mut compared = compare(connection)?;
    compared.check.triggers = damaged.into_keys().collect();
    Ok(correct(connection, &compared)?.then_some(compared.check))
}

/// Adds the difference to the stored numbers. Returns false if another process has corrected the
/// numbers since the comparison.
fn correct(connection: &Connection, compared: &Compared) -> rusqlite::Result<bool> {
    let Compared { check, difference, corrections } = compared;
    if check.different == 0 {
        return Ok(true);
    }
    let transaction = Transaction::new_unchecked(connection, TransactionBehavior::Immediate)?;
    let sql = "UPDATE count_correction SET times = times + 1 WHERE times = ?1";
    if transaction.execute(sql, [corrections])? == 0 {
        return Ok(false);
    }
    difference.write(&transaction)?;
    transaction.commit()?;
    Ok(true)
}

/// Returns the triggers that are missing or changed, with the statements that create them.
fn damaged_triggers(connection: &Connection) -> rusqlite::Result<BTreeMap<String, String>> {
    let triggers = |connection: &Connection| {
        connection
            .prepare(
                "SELECT name, sql FROM sqlite_schema WHERE type = 'trigger' AND tbl_name = 'device_table'",
            )?
            .query_map((), |row| Ok((row.get(0)?, row.get(1)?)))?
            .collect::<rusqlite::Result<BTreeMap<String, String>>>()
    };
    let (mut wanted, own) = (triggers(&connection::open_empty()?)?, triggers(connection)?);
    wanted.retain(|name, sql| own.get(name) != Some(sql));
    Ok(wanted)
}

/// Reads a stored number. A negative number, which only a change by hand can cause, is read as 0.
fn unsigned(row: &Row<'_>, column: usize) -> rusqlite::Result<u64> {
    row.get::<_, i64>(column).map(|number| u64::try_from(number).unwrap_or(0))
}

/// Implements [`Bulk::totals`](crate::store::Bulk::totals).
pub(super) fn totals(connection: &Connection) -> rusqlite::Result<Vec<Totals>> {
    let sums = COLUMNS.map(|column| format!("sum({column})")).join(", ");
    let sql = format!(
        "SELECT enrollment, {sums} FROM device_count GROUP BY enrollment HAVING sum(devices) > 0 ORDER BY enrollment"
    );
    let totals = |row: &Row<'_>| {
        let count = |column| unsigned(row, column);
        Ok(Totals {
            enrollment: row.get(0)?,
            devices: count(1)?,
            registered: count(2)?,
            unissued: count(3)?,
            issued: count(4)?,
            activated: count(5)?,
            refused: count(6)?,
            disabled: count(7)?,
            unregistered: count(8)?,
            disabled_at_cloud: count(9)?,
            deleted_at_cloud: count(10)?,
            clear: count(11)?,
        })
    };
    connection.prepare(&sql)?.query_map((), totals)?.collect()
}

/// Sums a column of `device_count`. `None` stands for all enrollments or all products.
fn sum(
    connection: &Connection,
    column: &str,
    enrollment: Option<&str>,
    product_key: Option<&str>,
) -> rusqlite::Result<u64> {
    let sql = format!(
        "SELECT coalesce(sum({column}), 0) FROM device_count \
         WHERE (?1 IS NULL OR enrollment = ?1) AND (?2 IS NULL OR productKey = ?2)"
    );
    connection.prepare_cached(&sql)?.query_row([enrollment, product_key], |row| unsigned(row, 0))
}

/// Implements [`Bulk::count`](crate::store::Bulk::count).
pub(super) fn count(connection: &Connection) -> rusqlite::Result<u64> {
    sum(connection, "devices", None, None)
}

/// Implements [`Bulk::count_unregistered`](crate::store::Bulk::count_unregistered).
pub(super) fn count_unregistered(connection: &Connection, enrollment: Option<&str>) -> rusqlite::Result<u64> {
    sum(connection, "unregistered", enrollment, None)
}

/// Returns an SQL expression over the columns of `device_count`. The sum of the expression is the
/// number of devices that meet the filter's conditions on the state, the certificate, the refusal
/// and the time of the first issue, or an upper bound of that number.
fn columns(filter: &Filter) -> &'static str {
    let is_timed = filter.issued_from.is_some() || filter.issued_before.is_some();
    match filter.state {
        // This is an upper bound, because it includes the devices whose registration has begun.
        Some(State::Imported) => "devices - registered - refused",
        Some(State::Registered) => "registered",
        Some(State::Unissued) => "unissued",
        Some(State::Issued) => "issued",
        Some(State::Activated) => "activated",
        Some(State::Refused) => "refused",
        Some(State::Disabled) => "disabled",
        Some(State::DisabledAtCloud) => "cloudDisabled",
        Some(State::DeletedAtCloud) => "cloudDeleted",
        None | Some(State::Waiting) => match filter.is_registered {
            _ if filter.refusal.is_some() => "refused",
            _ if is_timed => "issued",
            Some(true) => "registered",
            Some(false) => "devices - registered",
            None => "devices",
        },
    }
}

/// Returns the number of devices that a filter admits, or `None` if the stored numbers do not
/// determine it.
pub(super) fn number(connection: &Connection, filter: &Filter) -> rusqlite::Result<Option<u64>> {
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
    let enrollment = enrollment.as_deref();
    if issued_from.is_some() || issued_before.is_some() || text.is_some() || target.is_some() {
        return Ok(None);
    }
    match (refusal, state, is_registered) {
        (Some(refusal), None | Some(State::Refused), None) if product_key.is_none() => {
            let sql = "SELECT coalesce(sum(devices), 0) FROM refusal_count \
                       WHERE refusal = ?1 AND (?2 IS NULL OR enrollment = ?2)";
            let parameters = params![refusal, enrollment];
            connection.prepare_cached(sql)?.query_row(parameters, |row| unsigned(row, 0)).map(Some)
        }
        (Some(_), ..) | (None, Some(State::Imported | State::Waiting), _) | (None, Some(_), Some(_)) => {
            Ok(None)
        }
        (None, Some(_), None) | (None, None, _) => at_most(connection, filter).map(Some),
    }
}

/// Returns an upper bound of the number of devices that a filter admits. The filter's other
/// conditions can only lower the number.
pub(super) fn at_most(connection: &Connection, filter: &Filter) -> rusqlite::Result<u64> {
    sum(connection, columns(filter), filter.enrollment.as_deref(), filter.product_key.as_deref())
}

/// Returns the enrollment of all devices that a filter can admit. Returns `None` if they can belong
/// to several enrollments, or if the enrollment has more than half of all devices.
pub(super) fn only_enrollment(connection: &Connection, filter: &Filter) -> rusqlite::Result<Option<String>> {
    let columns = columns(filter);
    let sql = format!(
        "SELECT enrollment, (SELECT sum(devices) FROM device_count WHERE enrollment = own.enrollment) * 2 \
         <= (SELECT sum(devices) FROM device_count) FROM device_count own \
         WHERE {columns} > 0 AND (?1 IS NULL OR productKey = ?1) GROUP BY enrollment LIMIT 2"
    );
    let mut statement = connection.prepare_cached(&sql)?;
    let mut rows = statement.query([filter.product_key.as_deref()])?;
    let Some(first) = rows.next()? else { return Ok(None) };
    let (only, is_small): (String, bool) = (first.get(0)?, first.get(1)?);
    Ok((rows.next()?.is_none() && is_small).then_some(only))
}

/// Implements the part of [`Bulk::held`](crate::store::Bulk::held) about refused devices.
pub(super) fn refused(connection: &Connection, limit: usize) -> rusqlite::Result<Vec<Held>> {
    const SQL: &str = "SELECT enrollment, refusal, devices FROM refusal_count WHERE devices > 0 \
                       ORDER BY devices DESC, enrollment, refusal LIMIT ?1";
    connection
        .prepare(SQL)?
        .query_map([i64::try_from(limit).unwrap_or(i64::MAX)], |row| {
            Ok(Held { enrollment: row.get(0)?, refusal: row.get(1)?, devices: unsigned(row, 2)? })
        })?
        .collect()
}

#[cfg(test)]
mod tests;
