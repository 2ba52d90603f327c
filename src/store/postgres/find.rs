//! Searches and counts for an operator. The database narrows the rows by the columns that it has an
//! index for; the filter decides about each row, so that all stores give the same answer. A search
//! stops when its time is over.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use super::{
    Postgres, counts,
    failure::Failure,
    read::{self, listed_columns},
    session::{Session, Value, column, number, value, values},
};
use crate::{
    device::DeviceId,
    store::{
        StoreError,
        filter::{Cursor, End, Filter, Found, Held, INDEXED_END, Listed, State, Tally, Text, bounds},
    },
    target,
};

/// Number of devices at each end of the table in which a device without a target is searched.
const LOOKED_AT: i64 = 10_000;

/// Number of rows that a search examines between two readings of the clock.
const ROWS: i64 = 256;

/// SQL conditions that a filter implies, and the texts in them.
#[derive(Default)]
struct Conditions {
    sql: String,
    texts: Vec<String>,
    /// Number of values of the statement before the texts.
    before: usize,
}

impl Conditions {
    fn of(filter: &Filter, before: usize) -> Self {
        let mut all = Self { before, ..Self::default() };
        let own = |text: &Option<String>| text.clone();
        all.add(" AND d.enrollment = ?", own(&filter.enrollment));
        all.add(" AND d.productKey = ?", own(&filter.product_key));
        all.add(" AND d.refusal IS NOT NULL AND d.refusal = ?", own(&filter.refusal));
        // Devices of the default target need no name of it.
        let target = own(&filter.target).filter(|target| *target != target::DEFAULT);
        all.add(" AND d.target IS NOT NULL AND d.target = ?", target);
        match &filter.text {
            Some(Text::IotId(text)) => {
                all.add(" AND d.IotId IS NOT NULL AND d.IotId = ?", Some(text.clone()));
            }
            Some(Text::Name(text)) => all.add(" AND (d.name = ? OR d.deviceId = ?)", Some(text.clone())),
            Some(Text::Ends(text)) if text.len() >= INDEXED_END && text.is_ascii() => {
                let end = text[text.len() - INDEXED_END..].to_ascii_uppercase();
                all.add(" AND upper(right(d.deviceId, 4)) = ?", Some(end));
            }
            Some(Text::Ends(_) | Text::Begins(_)) | None => {}
        }
        all.sql.push_str(match filter.is_registered {
            Some(true) => " AND d.deviceSecret IS NOT NULL",
            Some(false) => " AND d.deviceSecret IS NULL",
            None => "",
        });
        // These numbers are no text of the operator.
        if let Some(from) = filter.issued_from {
            all.sql.push_str(&format!(" AND d.firstIssued >= {from}"));
        }
        if let Some(before) = filter.issued_before {
            all.sql.push_str(&format!(" AND d.firstIssued < {before}"));
        }
        all.sql.push_str(filter.state.map_or("", of_state));
        all
    }

    fn add(&mut self, sql: &str, text: Option<String>) {
        let Some(text) = text else { return };
        self.texts.push(text);
        self.sql.push_str(&sql.replace('?', &format!("${}", self.before + self.texts.len())));
    }

    fn values(&self) -> impl Iterator<Item = Value<'_>> {
        self.texts.iter().map(value)
    }
}

/// Returns the condition for a state.
fn of_state(state: State) -> &'static str {
    match state {
        State::Imported => {
            " AND d.deviceSecret IS NULL AND d.refusal IS NULL \
             AND NOT EXISTS (SELECT 1 FROM registration_claim c WHERE c.deviceId = d.deviceId)"
        }
        State::Waiting => {
            " AND d.deviceSecret IS NULL \
             AND EXISTS (SELECT 1 FROM registration_claim c WHERE c.deviceId = d.deviceId)"
        }
        State::Registered => " AND d.deviceSecret IS NOT NULL",
        State::Unissued => " AND d.deviceSecret IS NOT NULL AND d.firstIssued IS NULL",
        State::Issued => " AND d.firstIssued IS NOT NULL",
        State::Activated => " AND d.activateTime IS NOT NULL",
        State::Refused => " AND d.refusal IS NOT NULL",
        State::Disabled => " AND d.state = 'disabled'",
        State::DisabledAtCloud => " AND d.cloudState IS NOT NULL AND d.cloudState = 'disabled'",
        State::DeletedAtCloud => " AND d.cloudState IS NOT NULL AND d.cloudState = 'deleted'",
    }
}

/// Returns a page of the rows that a filter may admit, with IDs from `first` to before `end`.
async fn page(
    session: &Session,
    filter: &Filter,
    (first, end): (&str, &str),
    is_backward: bool,
) -> Result<Vec<Listed>, Failure> {
    let conditions = Conditions::of(filter, 3);
    let order = if is_backward { "DESC" } else { "ASC" };
    let sql = format!(
        "SELECT {} FROM device_shown d WHERE d.deviceId >= $1 AND d.deviceId < $2{} ORDER BY d.deviceId {order} \
         LIMIT $3",
        listed_columns!(),
        conditions.sql
    );
    let mut values = values![first, end, ROWS].to_vec();
    values.extend(conditions.values());
    session.rows(&sql, &values).await?.iter().map(read::listed).collect()
}

impl Postgres {
    /// Implements [`Bulk::find`](crate::store::Bulk::find).
    pub(super) fn search(
        &self,
        filter: &Filter,
        from: &Cursor,
        limit: usize,
        time: Duration,
    ) -> Result<Found, StoreError> {
        let deadline = Instant::now() + time;
        let prefix = match &filter.text {
            Some(Text::Begins(prefix)) => prefix.as_str(),
            _ => "",
        };
        let is_backward = matches!(from, Cursor::Before(_));
        let (mut first, mut end) = bounds(prefix, from);
        let mut devices: Vec<Listed> = Vec::new();
        let why = loop {
            let bounds = (first.clone(), end.clone());
            let wanted = filter.clone();
            let rows = self.engine.read_now(async move |session: &Session| {
                page(session, &wanted, (&bounds.0, &bounds.1), is_backward).await
            })?;
            let is_last = rows.len() < usize::try_from(ROWS).unwrap_or(usize::MAX);
            let last = rows.last().map(|row| row.id.clone());
            devices.extend(rows.into_iter().filter(|row| filter.admits(&row.seen(), || row.is_claimed)));
            if devices.len() > limit {
                devices.truncate(limit);
                break End::More;
            }
            let Some(last) = last.filter(|_| !is_last) else { break End::Complete };
            // Each character of an ID is at least `!`.
            match is_backward {
                true => end = last.to_string(),
                false => first = format!("{last}!"),
            }
            if Instant::now() >= deadline {
                break End::TimeUp(last);
            }
        };
        if is_backward {
            devices.reverse();
        }
        Ok(Found { devices, end: why })
    }

    /// Implements [`Bulk::tally`](crate::store::Bulk::tally). If the kept numbers are not sufficient,
    /// the database counts the rows for up to half of `time`, unless the filter has a text.
    pub(super) fn count_admitted(&self, filter: &Filter, time: Duration) -> Result<Tally, StoreError> {
        let wanted = filter.clone();
        let kept =
            self.engine.read_now(async move |session: &Session| counts::number(session, &wanted).await)?;
        if let Some(devices) = kept {
            return Ok(Tally { devices, is_complete: true });
        }
        let is_exact = filter.text.is_none() && filter.target.as_deref() != Some(target::DEFAULT);
        if is_exact {
            let limit = (time / 2).as_millis().clamp(1, 600_000);
            let conditions = Conditions::of(filter, 0);
            let session = self.engine.blocking()?;
            let counted = session.run(async |session| {
                session.run(&format!("BEGIN READ ONLY; SET LOCAL statement_timeout = {limit}")).await?;
                let sql = format!("SELECT count(*) FROM device_shown d WHERE true{}", conditions.sql);
                let values: Vec<Value<'_>> = conditions.values().collect();
                number(&session.one(&sql, &values).await?, 0)
            });
            match counted {
                Ok(devices) => return Ok(Tally { devices, is_complete: true }),
                // The time was over.
                Err(StoreError::Busy(_)) => {}
                Err(error) => return Err(error),
            }
        }
        let found = self.search(filter, &Cursor::First, usize::MAX - 1, time / 2)?;
        Ok(Tally { devices: found.devices.len() as u64, is_complete: found.end == End::Complete })
    }

    /// Implements [`Bulk::listed`](crate::store::Bulk::listed).
    pub(super) fn list(&self, ids: &[DeviceId]) -> Result<Vec<Listed>, StoreError> {
        const SQL: &str =
            concat!("SELECT ", listed_columns!(), " FROM device_shown d WHERE d.deviceId = ANY ($1)");
        let asked: Vec<String> = ids.iter().map(|id| id.as_str().to_owned()).collect();
        let found = self.engine.read_now(async move |session: &Session| {
            session.rows(SQL, values![asked]).await?.iter().map(read::listed).collect::<Result<Vec<_>, _>>()
        })?;
        let found: HashMap<DeviceId, Listed> = found.into_iter().map(|one| (one.id.clone(), one)).collect();
        Ok(ids.iter().filter_map(|id| found.get(id).cloned()).collect())
    }

    /// Returns whether one of the first or the last devices, in order of their IDs, is registered and
    /// has no target in its row.
    pub fn has_devices_without_target(&self) -> Result<bool, StoreError> {
        const SQL: &str = "SELECT EXISTS (SELECT 1 FROM (SELECT target, deviceSecret FROM device_shown \
                           ORDER BY deviceId LIMIT $1) AS d WHERE target IS NULL AND deviceSecret IS NOT NULL) \
                           OR EXISTS (SELECT 1 FROM (SELECT target, deviceSecret FROM device_shown \
                           ORDER BY deviceId DESC LIMIT $1) AS d WHERE target IS NULL AND deviceSecret IS NOT NULL)";
        self.engine
            .read_now(async |session: &Session| column(&session.one(SQL, values![LOOKED_AT]).await?, 0))
    }

    /// Implements [`Bulk::held`](crate::store::Bulk::held).
    pub(super) fn count_held(&self, limit: usize) -> Result<Vec<Held>, StoreError> {
        const WAITING: &str = "SELECT d.enrollment, count(*) FROM registration_claim c \
                               JOIN device_table d ON d.deviceId = c.deviceId WHERE d.deviceSecret IS NULL \
                               GROUP BY d.enrollment ORDER BY 2 DESC, 1 LIMIT $1";
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        self.engine.read_now(async move |session: &Session| {
            let mut all = Vec::new();
            for row in session.rows(WAITING, values![limit]).await? {
                let (enrollment, devices) = (column(&row, 0)?, number(&row, 1)?);
                all.push(Held { enrollment, refusal: None, devices });
            }
            all.extend(counts::refused(session, limit).await?);
            Ok(all)
        })
    }
}
