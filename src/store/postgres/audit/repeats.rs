//! Records of repeats, which are requests that change nothing. A row stands for the equal requests of
//! one device on one day, on whatever server they arrive.

use std::collections::VecDeque;

use sha2::{Digest, Sha256};
use tokio_postgres::Row;

use super::{AT_ONCE, PRUNED_AT_ONCE};
use crate::{
    device::DeviceId,
    store::{
        StoreError, UnixSeconds,
        audit::{AuditEntry, AuditEvent, Keep, Repeats, day},
        postgres::{
            engine::Engine,
            failure::Failure,
            session::{Session, column, number, values},
        },
    },
};

const COLUMNS: &str =
    "number, event, deviceId, enrollment, who, detail, count, first, last, address, firstAddress";

/// Returns the hash of the properties that the requests of one record share, apart from the device and
/// the day. Each text is preceded by its length, so that no two lists of texts have the same hash.
fn kind(record: &AuditEntry) -> Vec<u8> {
    let AuditEntry { event, enrollment, who, detail, .. } = record;
    kind_of(event.name(), [enrollment, who, detail].map(Option::as_deref))
}

/// Returns the hash of [`kind`], calculated from the name of the event and from `texts`: the
/// enrollment, `who` and the detail.
pub(in crate::store::postgres) fn kind_of(event: &str, texts: [Option<&str>; 3]) -> Vec<u8> {
    let mut hash = Sha256::new().chain_update(event);
    for text in texts {
        let length = text.map_or(u64::MAX, |text| text.len() as u64);
        hash.update(length.to_be_bytes());
        hash.update(text.unwrap_or_default());
    }
    hash.finalize().to_vec()
}

/// Adds records to the table, or counts their requests in the rows that are there.
pub(super) async fn put(session: &Session, records: &[AuditEntry]) -> Result<(), Failure> {
    const PUT: &str = "INSERT INTO audit_repeat AS r \
         (deviceId, day, kind, event, enrollment, who, detail, count, first, last, address, firstAddress) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12) \
         ON CONFLICT (deviceId, day, kind) DO UPDATE SET count = r.count + excluded.count, \
         firstAddress = CASE WHEN excluded.first < r.first THEN excluded.firstAddress ELSE r.firstAddress END, \
         first = least(r.first, excluded.first), \
         address = CASE WHEN excluded.last >= r.last THEN excluded.address ELSE r.address END, \
         last = greatest(r.last, excluded.last)";
    let mut sorted: Vec<&AuditEntry> = records.iter().collect();
    // Prevents deadlocks between servers that count the same requests.
    sorted.sort_by_key(|record| (record.device.clone(), day(record.at), kind(record)));
    for record in sorted {
        let Some(device) = &record.device else { continue };
        let Repeats { count, first, first_address } = record.as_repeats();
        let AuditEntry { at, event, enrollment, who, address, detail, .. } = record;
        session
            .execute(
                PUT,
                values![
                    device.as_str(),
                    day(*at),
                    kind(record),
                    event.name(),
                    enrollment,
                    who,
                    detail,
                    count.cast_signed(),
                    first,
                    *at,
                    address,
                    first_address
                ],
            )
            .await?;
    }
    Ok(())
}

/// Reads a row with [`COLUMNS`].
fn read(row: &Row) -> Result<(i64, AuditEntry), Failure> {
    let event = match column::<&str>(row, 1)? == AuditEvent::Refused.name() {
        true => AuditEvent::Refused,
        false => AuditEvent::Reissued,
    };
    let repeats = Repeats { count: number(row, 6)?, first: column(row, 7)?, first_address: column(row, 10)? };
    let record = AuditEntry {
        device: DeviceId::parse_sn(column(row, 2)?).ok(),
        enrollment: column(row, 3)?,
        who: column(row, 4)?,
        detail: column(row, 5)?,
        address: column(row, 9)?,
        repeats: Some(repeats),
        ..AuditEntry::new(event, column(row, 8)?)
    };
    Ok((column(row, 0)?, record))
}

/// Returns up to `limit` records about a device, newest first.
pub(super) async fn history(
    session: &Session,
    id: &DeviceId,
    limit: i64,
) -> Result<Vec<AuditEntry>, Failure> {
    let sql = format!("SELECT {COLUMNS} FROM audit_repeat WHERE deviceId = $1 ORDER BY last DESC LIMIT $2");
    let rows = session.rows(&sql, values![id.as_str(), limit]).await?;
    rows.iter().map(|row| Ok(read(row)?.1)).collect()
}

/// Returns the number of the last expired row, or `None` if no row is expired. Considers only a
/// limited number of the oldest rows.
pub(super) async fn expired(session: &Session, keep: Keep, now: UnixSeconds) -> Result<Option<i64>, Failure> {
    const OLDEST: &str = "SELECT number, last FROM audit_repeat ORDER BY number LIMIT $1";
    let mut surplus = 0;
    if let Some(most) = keep.repeats {
        let has = number(&session.one("SELECT count(*) FROM audit_repeat", &[]).await?, 0)?;
        // One percent more than necessary is removed, so that not every new row causes pruning.
        let most = most.max(1);
        if has > most {
            surplus = has - most + (most / 100).min(has - 1);
        }
    }
    if surplus == 0 && keep.days.is_none() {
        return Ok(None);
    }
    let oldest = keep.days.map(|days| now - i64::from(days) * 86_400);
    let rows = session.rows(OLDEST, values![PRUNED_AT_ONCE.cast_signed()]).await?;
    let mut last = None;
    for (row, index) in rows.iter().zip(0_u64..) {
        let at: UnixSeconds = column(row, 1)?;
        if index >= surplus && oldest.is_none_or(|oldest| at >= oldest) {
            break;
        }
        last = Some(column(row, 0)?);
    }
    Ok(last)
}

/// Removes expired rows, and returns their number.
pub(super) async fn prune(session: &Session, keep: Keep, now: UnixSeconds) -> Result<u64, Failure> {
    let Some(last) = expired(session, keep, now).await? else { return Ok(0) };
    session.execute("DELETE FROM audit_repeat WHERE number <= $1", values![last]).await
}

/// Reads rows in order, a page at a time.
pub(super) struct Pages<'e> {
    engine: &'e Engine,
    is_forward: bool,
    /// Number beyond which the next page begins.
    beyond: i64,
    end: i64,
    page: VecDeque<(i64, AuditEntry)>,
}

impl<'e> Pages<'e> {
    /// Reads the rows that the table has now, oldest first.
    pub(super) fn oldest_first(engine: &'e Engine) -> Result<Self, StoreError> {
        let end = engine.read_now(async |session: &Session| {
            let row = session.one("SELECT coalesce(max(number), 0) FROM audit_repeat", &[]).await?;
            column(&row, 0)
        })?;
        Ok(Self { engine, is_forward: true, beyond: i64::MIN, end, page: VecDeque::new() })
    }

    /// Reads the rows newest first.
    pub(super) fn newest_first(engine: &'e Engine) -> Self {
        Self { engine, is_forward: false, beyond: i64::MAX, end: i64::MIN, page: VecDeque::new() }
    }

    /// Returns the next record if `wanted` accepts it.
    pub(super) fn next_if(
        &mut self,
        wanted: impl FnOnce(&AuditEntry) -> bool,
    ) -> Result<Option<AuditEntry>, StoreError> {
        if self.page.is_empty() {
            self.fill()?;
        }
        match self.page.front() {
            Some((_, record)) if wanted(record) => Ok(self.page.pop_front().map(|(_, record)| record)),
            _ => Ok(None),
        }
    }

    fn fill(&mut self) -> Result<(), StoreError> {
        let (bounds, order) = match self.is_forward {
            true => ("number > $1 AND number <= $2", "ASC"),
            false => ("number < $1 AND number >= $2", "DESC"),
        };
        let sql = format!(
            "SELECT {COLUMNS} FROM audit_repeat WHERE {bounds} ORDER BY number {order} LIMIT {AT_ONCE}"
        );
        let (beyond, end) = (self.beyond, self.end);
        self.page = self.engine.read_now(async move |session: &Session| {
            session.rows(&sql, values![beyond, end]).await?.iter().map(read).collect()
        })?;
        if let Some((last, _)) = self.page.back() {
            self.beyond = *last;
        }
        Ok(())
    }
}
