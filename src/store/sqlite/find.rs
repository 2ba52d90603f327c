//! Searches of the table for an operator. This module chooses the index and reads the columns. The
//! filter decides about each row, so that all stores give the same answer. A search stops when its
//! time is over.

use std::{
    borrow::Cow,
    time::{Duration, Instant},
};

use rusqlite::{CachedStatement, Connection, Row, types::ValueRef};

use super::{
    counts,
    read::{cloud_state, device_state, id},
    unfinished,
};
use crate::{
    device::DeviceId,
    store::filter::{
        Cursor, End, Filter, Found, Held, INDEXED_END, Listed, Seen, State, Tally, Text, bounds,
    },
    target,
};

/// Number of rows that a search examines between two readings of the clock. Because of this, every
/// search examines at least this many rows, if the table has them.
const ROWS: u64 = 128;

/// The columns that [`seen`] reads, in the order in which it reads them.
const COLUMNS: &str = "d.deviceId, d.enrollment, d.productKey, d.deviceName, d.deviceSecret IS NOT NULL, d.IotId, d.state, \
     d.firstIssued, d.activateTime, d.refusal, d.cloudState, d.registerTime, d.target";

/// Query plan that reads the rows that a filter may admit, in order of device ID. A plan that names
/// an index reads the table itself, `main.device_table`, and not the view of the same name.
struct Path<'f> {
    /// SQL text after `FROM`. ?1 and ?2 are the bounds of the IDs, and ?3 is the text.
    rows: &'static str,
    /// The value of ?3.
    text: Option<Cow<'f, str>>,
    /// Prefix of the IDs.
    prefix: &'f str,
}

/// Returns the plan that reads the fewest rows.
fn path<'f>(filter: &'f Filter) -> Path<'f> {
    let with = |rows, text: Cow<'f, str>| Path { rows, text: Some(text), prefix: "" };
    let without = |rows| Path { rows, text: None, prefix: "" };
    match (&filter.text, filter.state) {
        (Some(Text::IotId(text)), _) => with(
            "main.device_table d INDEXED BY device_iot_id WHERE d.IotId IS NOT NULL AND d.IotId = ?3",
            text.into(),
        ),
        // The index begins with the product, so the query searches it once for each product.
        (Some(Text::Name(text)), _) => with(
            "(WITH RECURSIVE product(key) AS (SELECT min(productKey) FROM device_table \
             UNION ALL SELECT (SELECT min(productKey) FROM device_table WHERE productKey > key) \
             FROM product WHERE key IS NOT NULL) \
             SELECT n.* FROM product CROSS JOIN main.device_table n INDEXED BY device_name \
             ON n.productKey = key AND coalesce(n.deviceName, n.deviceId) = ?3) d WHERE true",
            text.into(),
        ),
        (Some(Text::Ends(text)), _) if text.len() >= INDEXED_END && text.is_ascii() => {
            let end = text[text.len() - INDEXED_END..].to_ascii_uppercase();
            with(
                "main.device_table d INDEXED BY device_end WHERE upper(substr(d.deviceId, -4)) = ?3",
                end.into(),
            )
        }
        (Some(Text::Begins(text)), _) => Path { prefix: text, ..without("device_table d WHERE true") },
        (_, Some(State::Waiting)) => without(
            "registration_claim c CROSS JOIN device_table d ON d.deviceId = c.deviceId \
             WHERE d.deviceSecret IS NULL",
        ),
        _ if filter.refusal.is_some() || filter.state == Some(State::Refused) => {
            without("main.device_table d INDEXED BY device_refused WHERE d.refusal IS NOT NULL")
        }
        (_, Some(State::Disabled)) => {
            without("main.device_table d INDEXED BY device_disabled WHERE d.state = 'disabled'")
        }
        (_, Some(State::DisabledAtCloud | State::DeletedAtCloud)) => {
            without("main.device_table d INDEXED BY device_cloud_state WHERE d.cloudState IS NOT NULL")
        }
        // Most devices of the default target have no target in their rows, so the index lacks them.
        _ if filter.enrollment.is_none()
            && filter.target.as_deref().is_some_and(|target| target != target::DEFAULT) =>
        {
            with(
                "main.device_table d INDEXED BY device_target WHERE d.target IS NOT NULL AND d.target = ?3",
                filter.target.as_deref().unwrap_or_default().into(),
            )
        }
        _ => match &filter.enrollment {
            Some(name) => {
                with("main.device_table d INDEXED BY device_enrollment WHERE d.enrollment = ?3", name.into())
            }
            None => without("device_table d WHERE true"),
        },
    }
}

/// Returns the query for a plan and a direction.
fn query(path: &Path<'_>, is_backward: bool) -> String {
    // SQLite reads the rows in order without sorting them only if the order names the ID of the
    // table with which the plan begins.
    let id = if path.rows.starts_with("registration_claim") { "c.deviceId" } else { "d.deviceId" };
    let order = if is_backward { "DESC" } else { "ASC" };
    format!(
        "SELECT {COLUMNS} FROM {} AND {id} >= ?1 AND {id} < ?2 AND {} ORDER BY {id} {order}",
        path.rows,
        unfinished::SHOWN
    )
}

/// Reads the columns by which a filter decides.
fn seen<'r>(row: &'r Row<'_>) -> rusqlite::Result<Seen<'r>> {
    let text = |column| row.get_ref(column).and_then(|value| Ok(value.as_str()?));
    let optional = |column| row.get_ref(column).and_then(|value| Ok(value.as_str_or_null()?));
    let time = |column| {
        row.get_ref(column).and_then(|value| match value {
            ValueRef::Null => Ok(None),
            value => Ok(Some(value.as_i64()?)),
        })
    };
    Ok(Seen {
        id: text(0)?,
        enrollment: text(1)?,
        product_key: text(2)?,
        device_name: optional(3)?,
        is_registered: row.get(4)?,
        iot_id: optional(5)?,
        state: device_state(row, 6)?,
        first_issued: time(7)?,
        registered: time(11)?,
        activated: time(8)?,
        refusal: optional(9)?,
        cloud_state: cloud_state(row, 10)?,
        target: optional(12)?,
    })
}

/// Calls `each` with each device that the filter admits, until `each` returns false, the time is
/// over, or no device is left. If the time is over, returns the last device that was examined.
fn search(
    connection: &Connection,
    filter: &Filter,
    from: &Cursor,
    time: Duration,
    mut each: impl FnMut(&Row<'_>, &Seen<'_>) -> rusqlite::Result<bool>,
) -> rusqlite::Result<Option<DeviceId>> {
    let begun = Instant::now();
    let mut claims = claims(connection)?;
    let path = path(filter);
    let (first, end) = bounds(path.prefix, from);
    let is_backward = matches!(from, Cursor::Before(_));
    let mut statement = connection.prepare_cached(&query(&path, is_backward))?;
    let mut rows = match path.text.as_deref() {
        Some(text) => statement.query([&first, &end, text])?,
        None => statement.query([&first, &end])?,
    };
    let mut looked_at = 0;
    while let Some(row) = rows.next()? {
        let seen = seen(row)?;
        let mut failed = Ok(());
        let is_admitted = filter.admits(&seen, || {
            is_claimed(&mut claims, seen.id).unwrap_or_else(|error| {
                failed = Err(error);
                false
            })
        });
        failed?;
        if is_admitted && !each(row, &seen)? {
            return Ok(None);
        }
        looked_at += 1;
        if looked_at % ROWS == 0 && begun.elapsed() >= time {
            return id(row, 0).map(Some);
        }
    }
    Ok(None)
}

fn claims(connection: &Connection) -> rusqlite::Result<CachedStatement<'_>> {
    connection.prepare_cached("SELECT 1 FROM registration_claim WHERE deviceId = ?1")
}

fn is_claimed(claims: &mut CachedStatement<'_>, id: &str) -> rusqlite::Result<bool> {
    claims.exists([id])
}

/// Returns whether the plan for a filter reads only few rows, because few devices can have its text.
fn is_named(filter: &Filter) -> bool {
    match &filter.text {
        Some(Text::IotId(_) | Text::Name(_)) => true,
        Some(Text::Ends(text)) => text.len() >= INDEXED_END,
        Some(Text::Begins(_)) | None => false,
    }
}

/// Returns a filter that admits the same devices and whose plan may read fewer rows, according to
/// the kept numbers of devices. Returns `None` if the filter admits no device.
fn narrowed<'f>(connection: &Connection, filter: &'f Filter) -> rusqlite::Result<Option<Cow<'f, Filter>>> {
    if is_named(filter) || *filter == (Filter { text: filter.text.clone(), ..Filter::default() }) {
        return Ok(Some(Cow::Borrowed(filter)));
    }
    if counts::at_most(connection, filter)? == 0 || counts::number(connection, filter)? == Some(0) {
        return Ok(None);
    }
    // The plans for these filters read few rows, or only the IDs with a certain beginning.
    let has_own = matches!(filter.text, Some(Text::Begins(_)))
        || filter.refusal.is_some()
        || filter.target.is_some()
        || filter.enrollment.is_some();
    let is_rare = matches!(
        filter.state,
        Some(
            State::Waiting
                | State::Refused
                | State::Disabled
                | State::DisabledAtCloud
                | State::DeletedAtCloud
        )
    );
    if has_own || is_rare {
        return Ok(Some(Cow::Borrowed(filter)));
    }
    Ok(Some(match counts::only_enrollment(connection, filter)? {
        Some(only) => Cow::Owned(Filter { enrollment: Some(only), ..filter.clone() }),
        None => Cow::Borrowed(filter),
    }))
}

/// Implements [`Bulk::find`](crate::store::Bulk::find).
pub(super) fn find(
    connection: &Connection,
    filter: &Filter,
    from: &Cursor,
    limit: usize,
    time: Duration,
) -> rusqlite::Result<Found> {
    let Some(filter) = narrowed(connection, filter)? else {
        return Ok(Found { devices: Vec::new(), end: End::Complete });
    };
    let (mut devices, mut is_more) = (Vec::new(), false);
    let mut claimed = claims(connection)?;
    let stopped = search(connection, &filter, from, time, |row, seen| {
        is_more = devices.len() == limit;
        if !is_more {
            devices.push(Listed::new(id(row, 0)?, seen, is_claimed(&mut claimed, seen.id)?));
        }
        Ok(!is_more)
    })?;
    if matches!(from, Cursor::Before(_)) {
        devices.reverse();
    }
    let end = match stopped {
        Some(last) => End::TimeUp(last),
        None if is_more => End::More,
        None => End::Complete,
    };
    Ok(Found { devices, end })
}

/// Implements [`Bulk::tally`](crate::store::Bulk::tally).
pub(super) fn tally(connection: &Connection, filter: &Filter, time: Duration) -> rusqlite::Result<Tally> {
    if let Some(devices) = counts::number(connection, filter)? {
        return Ok(Tally { devices, is_complete: true });
    }
    let Some(filter) = narrowed(connection, filter)? else {
        return Ok(Tally { devices: 0, is_complete: true });
    };
    let mut devices = 0;
    let mut count = |filter: &Filter, is_counted: fn(&Seen<'_>) -> bool| {
        devices = 0;
        search(connection, filter, &Cursor::First, time, |_, seen| {
            devices += u64::from(is_counted(seen));
            Ok(true)
        })
        .map(|stopped| (devices, stopped.is_none()))
    };
    let plain = Filter { enrollment: None, product_key: None, ..filter.clone().into_owned() };
    if plain == (Filter { state: Some(State::Imported), ..Filter::default() }) {
        // The kept numbers do not distinguish devices whose registration has begun from the others.
        let waiting = Filter { state: Some(State::Waiting), ..filter.clone().into_owned() };
        if let (waiting, true) = count(&waiting, |seen| seen.refusal.is_none())? {
            let devices = counts::at_most(connection, &filter)?.saturating_sub(waiting);
            return Ok(Tally { devices, is_complete: true });
        }
    }
    let (devices, is_complete) = count(&filter, |_| true)?;
    Ok(Tally { devices, is_complete })
}

/// Implements [`Bulk::held`](crate::store::Bulk::held).
pub(super) fn held(connection: &Connection, limit: usize) -> rusqlite::Result<Vec<Held>> {
    const WAITING: &str = "SELECT d.enrollment, count(*) FROM registration_claim c \
                           CROSS JOIN device_table d ON d.deviceId = c.deviceId \
                           WHERE d.deviceSecret IS NULL GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT ?1";
    let group = |row: &Row<'_>| {
        let devices = row.get::<_, i64>(1)?.unsigned_abs();
        Ok(Held { enrollment: row.get(0)?, refusal: None, devices })
    };
    let mut statement = connection.prepare(WAITING)?;
    let waiting = statement.query_map([i64::try_from(limit).unwrap_or(i64::MAX)], group)?;
    let mut all = waiting.collect::<rusqlite::Result<Vec<_>>>()?;
    all.extend(counts::refused(connection, limit)?);
    Ok(all)
}

/// Implements [`Bulk::listed`](crate::store::Bulk::listed).
pub(super) fn listed(connection: &Connection, ids: &[DeviceId]) -> rusqlite::Result<Vec<Listed>> {
    let mut claimed = claims(connection)?;
    let sql = format!("SELECT {COLUMNS} FROM device_table d WHERE d.deviceId = ?1");
    let mut statement = connection.prepare_cached(&sql)?;
    let mut devices = Vec::new();
    for wanted in ids {
        let mut rows = statement.query([wanted.as_str()])?;
        if let Some(row) = rows.next()? {
            let seen = seen(row)?;
            devices.push(Listed::new(id(row, 0)?, &seen, is_claimed(&mut claimed, seen.id)?));
        }
    }
    Ok(devices)
}

/// Implements [`Bulk::targets`](crate::store::Bulk::targets). Searches the index once for each
/// target. Devices of an unfinished import count, too.
pub(super) fn targets(connection: &Connection) -> rusqlite::Result<Vec<String>> {
    const SQL: &str = "WITH RECURSIVE own(target) AS (\
                       SELECT min(target) FROM main.device_table INDEXED BY device_target WHERE target IS NOT NULL \
                       UNION ALL SELECT (SELECT min(d.target) FROM main.device_table d INDEXED BY device_target \
                       WHERE d.target IS NOT NULL AND d.target > own.target) FROM own WHERE own.target IS NOT NULL) \
                       SELECT target FROM own WHERE target IS NOT NULL";
    connection.prepare_cached(SQL)?.query_map([], |row| row.get(0))?.collect()
}

/// Number of devices at each end of the table in which [`has_devices_without_target`] looks.
const LOOKED_AT: i64 = 10_000;

/// Returns whether one of the first or the last [`LOOKED_AT`] devices, in order of their IDs, has a
/// certificate and no target in its row. No index lists such rows, because at a server with one
/// target it would list every registered device.
pub(super) fn has_devices_without_target(connection: &Connection) -> rusqlite::Result<bool> {
    const SQL: &str = "SELECT EXISTS (SELECT 1 FROM (SELECT target, deviceSecret FROM main.device_table \
                       ORDER BY deviceId LIMIT ?1) WHERE target IS NULL AND deviceSecret IS NOT NULL) \
                       OR EXISTS (SELECT 1 FROM (SELECT target, deviceSecret FROM main.device_table \
                       ORDER BY deviceId DESC LIMIT ?1) WHERE target IS NULL AND deviceSecret IS NOT NULL)";
    connection.prepare_cached(SQL)?.query_row([LOOKED_AT], |row| row.get(0))
}

/// Implements [`Bulk::products`](crate::store::Bulk::products).
pub(super) fn products(connection: &Connection) -> rusqlite::Result<Vec<String>> {
    const SQL: &str = "SELECT DISTINCT productKey FROM device_count WHERE devices > 0 ORDER BY productKey";
    connection.prepare_cached(SQL)?.query_map([], |row| row.get(0))?.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn database() -> Connection {
        let connection = Connection::open_in_memory().unwrap();
        connection.execute_batch(include_str!("../../../schema.sql")).unwrap();
        connection
    }

    fn insert(connection: &Connection, count: u32) {
        const SQL: &str = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?1) \
                           INSERT INTO device_table (deviceId, productKey, enrollment) \
                           SELECT printf('SN-%06d', i), 'a1', 'lamps' FROM n";
        connection.execute(SQL, [count]).unwrap();
    }

    fn filters() -> Vec<Filter> {
        let text = |text| Filter { text: Some(text), ..Filter::default() };
        let state = |state| Filter { state: Some(state), ..Filter::default() };
        let mut all = vec![
            Filter::default(),
            Filter { enrollment: Some("lamps".into()), ..Filter::default() },
            Filter { refusal: Some("odd".into()), ..Filter::default() },
            Filter { target: Some("tokyo".into()), ..Filter::default() },
            text(Text::Begins("SN-".into())),
            text(Text::Ends("0001".into())),
            text(Text::Ends("1".into())),
            text(Text::IotId("iot-1".into())),
            text(Text::Name("SN-000001".into())),
        ];
        all.extend(State::ALL.map(state));
        all
    }

    #[test]
    fn every_way_is_in_order_of_the_ids_without_sorting() {
        let connection = database();
        for filter in filters() {
            for is_backward in [false, true] {
                let path = path(&filter);
                let sql = format!("EXPLAIN QUERY PLAN {}", query(&path, is_backward));
                let mut statement = connection.prepare(&sql).unwrap();
                let count = statement.parameter_count();
                let plan: Vec<String> = statement
                    .query_map(rusqlite::params_from_iter(vec![""; count]), |row| row.get(3))
                    .unwrap()
                    .collect::<Result<_, _>>()
                    .unwrap();
                // A search by name sorts its rows, but there are few: a name occurs at most once in
                // each product.
                let sorts = plan.iter().any(|step| step.contains("TEMP B-TREE"));
                assert_eq!(sorts, matches!(filter.text, Some(Text::Name(_))), "{filter:?} {plan:?}");
                // The search begins at the first ID, and does not read the rows before it.
                let last = plan.iter().rfind(|step| !step.contains("TEMP")).unwrap();
                let begins = plan.iter().any(|step| step.contains("deviceId>? AND deviceId<?"));
                assert!(begins || sorts, "{filter:?} {plan:?}");
                assert!(last.starts_with("SEARCH"), "{filter:?} {plan:?}");
            }
        }
    }

    #[test]
    fn a_search_whose_time_is_over_says_how_far_it_came_and_goes_on_from_there() {
        let connection = database();
        insert(&connection, 1000);
        let wanted = Filter { text: Some(Text::Ends("5".into())), ..Filter::default() };
        for is_backward in [false, true] {
            let last = DeviceId::parse("SN-z").unwrap();
            let mut from = if is_backward { Cursor::Before(last) } else { Cursor::First };
            let (mut all, mut calls) = (Vec::new(), 0);
            loop {
                let found = find(&connection, &wanted, &from, 1000, Duration::ZERO).unwrap();
                all.extend(found.devices.into_iter().map(|listed| listed.id));
                calls += 1;
                from = match found.end {
                    End::TimeUp(id) if is_backward => Cursor::Before(id),
                    End::TimeUp(id) => Cursor::After(id),
                    End::Complete => break,
                    End::More => panic!("the limit is not reached"),
                };
            }
            all.sort();
            all.dedup();
            assert_eq!((all.len(), calls), (100, 1000 / ROWS as usize + 1));
        }
        let partly = tally(&connection, &wanted, Duration::ZERO).unwrap();
        assert!(!partly.is_complete && partly.devices < 100, "{partly:?}");
        let wholly = tally(&connection, &wanted, Duration::from_secs(600)).unwrap();
        assert_eq!(wholly, Tally { devices: 100, is_complete: true });
    }

    /// Returns the devices that a search with a time of zero finds, and whether it is complete.
    fn at_once(connection: &Connection, filter: &Filter) -> (Vec<String>, bool) {
        let found = find(connection, filter, &Cursor::First, 9, Duration::ZERO).unwrap();
        (found.devices.into_iter().map(|one| one.id.to_string()).collect(), found.end == End::Complete)
    }

    #[test]
    fn the_numbers_shorten_a_search() {
        let connection = database();
        insert(&connection, 1000);
        connection
            .execute_batch(
                "UPDATE device_table SET deviceName = deviceId, deviceSecret = 's', firstIssued = 5; \
                 INSERT INTO device_table (deviceId, productKey, enrollment) VALUES ('SN-2', 'a2', 'plugs')",
            )
            .unwrap();
        let state = |state| Filter { state: Some(state), ..Filter::default() };
        let lamps = |filter| Filter { enrollment: Some("lamps".into()), ..filter };
        let product = |key: &str| Filter { product_key: Some(key.into()), ..Filter::default() };
        for nothing in [
            state(State::Unissued),
            state(State::Activated),
            lamps(state(State::Imported)),
            lamps(product("a2")),
            product("a3"),
            Filter { refusal: Some("odd".into()), ..Filter::default() },
            Filter { issued_from: Some(1), ..product("a2") },
            Filter { is_registered: Some(false), ..lamps(Filter::default()) },
            Filter { text: Some(Text::Begins("SN".into())), ..state(State::Activated) },
        ] {
            assert_eq!(at_once(&connection, &nothing), (vec![], true), "{nothing:?}");
            let none = Tally { devices: 0, is_complete: true };
            assert_eq!(tally(&connection, &nothing, Duration::ZERO).unwrap(), none, "{nothing:?}");
        }
        // Only the last row matches.
        for last in [
            state(State::Imported),
            product("a2"),
            Filter { product_key: Some("a2".into()), ..state(State::Imported) },
        ] {
            assert_eq!(at_once(&connection, &last), (vec!["SN-2".to_owned()], true), "{last:?}");
        }
        // The whole table is not read by way of the index of its largest enrollment.
        assert_eq!(counts::only_enrollment(&connection, &state(State::Issued)).unwrap(), None);
    }

    #[test]
    fn a_number_is_known_without_a_search() {
        let connection = database();
        insert(&connection, 1000);
        connection
            .execute_batch(
                "UPDATE device_table SET refusal = 'odd' WHERE deviceId < 'SN-000400'; \
                 INSERT INTO registration_claim (deviceId, productKey, deviceName, openedAt) \
                 VALUES ('SN-000900', 'a1', 'SN-000900', 1), ('SN-000001', 'a1', 'SN-000001', 1)",
            )
            .unwrap();
        let refusal = |filter| Filter { refusal: Some("odd".into()), ..filter };
        let state = |state| Filter { state: Some(state), ..Filter::default() };
        for (filter, devices) in [
            (Filter::default(), 1000),
            (Filter { enrollment: Some("lamps".into()), ..Filter::default() }, 1000),
            (Filter { product_key: Some("a1".into()), ..Filter::default() }, 1000),
            (state(State::Refused), 399),
            (refusal(state(State::Refused)), 399),
            (refusal(Filter::default()), 399),
            (Filter { is_registered: Some(false), ..Filter::default() }, 1000),
            (Filter { is_registered: Some(true), ..Filter::default() }, 0),
            // One of the two devices whose registration has begun is refused.
            (state(State::Imported), 600),
        ] {
            let known = Tally { devices, is_complete: true };
            assert_eq!(tally(&connection, &filter, Duration::ZERO).unwrap(), known, "{filter:?}");
        }
        let product = Filter { product_key: Some("a1".into()), ..refusal(Filter::default()) };
        assert!(!tally(&connection, &product, Duration::ZERO).unwrap().is_complete);
    }

    #[test]
    fn an_upgraded_database_has_the_indexes_of_a_new_one() {
        let new = database();
        let upgraded = database();
        let names = |connection: &Connection| -> Vec<(String, String)> {
            let sql =
                "SELECT name, sql FROM sqlite_schema WHERE type = 'index' AND sql IS NOT NULL ORDER BY 1";
            let mut statement = connection.prepare(sql).unwrap();
            statement
                .query_map((), |row| Ok((row.get(0)?, row.get(1)?)))
                .unwrap()
                .map(Result::unwrap)
                .collect()
        };
        for name in
            ["device_enrollment", "device_end", "device_refused", "device_disabled", "device_cloud_state"]
        {
            upgraded.execute(&format!("DROP INDEX {name}"), ()).unwrap();
        }
        upgraded.execute_batch(include_str!("upgrade_6_to_7.sql")).unwrap();
        assert_eq!(names(&upgraded), names(&new));
    }
}
