//! Records of repeats, which are requests that change nothing, in the table `audit_repeat`. A row
//! stands for equal requests of one device on one day. A request increments the count of a recent
//! row, or appends a row. When very many devices ask, the process therefore changes only pages at
//! the end of the table, and not one page for each device. The index of the rows also grows only at
//! its end, and has the form of the index of the log.

use std::{
    collections::{HashMap, VecDeque},
    hash::{BuildHasher, RandomState},
};

use rusqlite::{Connection, OptionalExtension, Row, params};
use sha2::{Digest, Sha256};

use super::index;
use crate::{
    device::DeviceId,
    store::{
        UnixSeconds,
        audit::{AuditEntry, AuditEvent, Class, Keep, Repeats, day, reason},
    },
};

/// Maximum number of rows that this process remembers, so that it can add requests to them. A
/// device whose row is not remembered gets another row. All remembered rows take about 3 MB of
/// memory.
const RECENT: usize = 1 << 16;

/// Number of rows in a part of the index.
const PART: i64 = 1024;

/// Maximum number of rows that are removed in one transaction.
const PRUNED_AT_ONCE: i64 = 10_000;

/// Number of rows that an export or a review reads at a time.
const READ_AT_ONCE: usize = 1000;

const COLUMNS: &str =
    "number, event, deviceId, enrollment, who, detail, count, first, last, address, firstAddress";

/// Decides for each entry of the outbox, in an open transaction, whether it is a change or a
/// repeat.
pub(super) struct Sorter<'c> {
    connection: &'c Connection,
    /// Number of the last entry that was pruned.
    pruned: u64,
    /// Records of the repeats taken so far. Equal requests share a record.
    records: Vec<AuditEntry>,
    /// Positions in `records`, by the hash of the properties that the requests of a record share.
    places: HashMap<u64, usize>,
}

impl<'c> Sorter<'c> {
    /// Creates a sorter for a transaction.
    pub(super) fn new(connection: &'c Connection) -> rusqlite::Result<Self> {
        let pruned = super::pruned(connection)?;
        Ok(Self { connection, pruned, records: Vec::new(), places: HashMap::new() })
    }

    /// Adds the entry in `line` to the records if the entry is a repeat. Otherwise, the caller must
    /// write it to the log with the number `seq`. Returns the class of the entry.
    pub(super) fn take(&mut self, line: &str, seq: u64, hasher: &RandomState) -> rusqlite::Result<Class> {
        let Ok(entry) = serde_json::from_str::<AuditEntry>(line) else { return Ok(Class::Change) };
        let is_repeat = match entry.event {
            AuditEvent::Reissued => entry.device.is_some(),
            AuditEvent::Refused => !is_first(self.connection, &entry, seq, self.pruned)?,
            _ => false,
        };
        if !is_repeat {
            return Ok(Class::Change);
        }
        let key = key(hasher, &entry);
        match self.places.get(&key).and_then(|place| self.records.get_mut(*place)) {
            Some(record) if record.is_like(&entry) => record.add(entry),
            _ => {
                self.places.insert(key, self.records.len());
                self.records.push(AuditEntry { repeats: Some(entry.as_repeats()), ..entry });
            }
        }
        Ok(Class::Repeat)
    }

    /// Returns the records of the repeats taken so far.
    pub(super) fn records(self) -> Vec<AuditEntry> {
        self.records
    }
}

/// Returns the hash of the properties that all requests of one record share.
fn key(hasher: &RandomState, entry: &AuditEntry) -> u64 {
    let AuditEntry { at, event, device, enrollment, who, detail, .. } = entry;
    hasher.hash_one((event, day(*at), device.as_ref().map(DeviceId::as_str), enrollment, who, detail))
}

/// Returns the first 8 bytes of the SHA-256 of a text. A client can choose the device ID that it
/// sends, so it must be infeasible to find an ID that has the same hash as the ID of another
/// device.
fn short_hash(text: &str) -> i64 {
    let hash: [u8; 32] = Sha256::digest(text).into();
    hash.first_chunk().map_or(0, |first| i64::from_be_bytes(*first))
}

/// Returns whether a refusal belongs in the log. It does if its device is in the device table and
/// the log has no refusal of the device for this reason; `seq` is then noted as the entry of the
/// refusal. A refusal without a device always belongs in the log.
fn is_first(connection: &Connection, entry: &AuditEntry, seq: u64, pruned: u64) -> rusqlite::Result<bool> {
    const KNOWN: &str = "SELECT seq FROM audit_refused WHERE device = ?1 AND reason = ?2";
    const IS_IN_TABLE: &str = "SELECT 1 FROM device_table WHERE deviceId = ?1";
    const NOTE: &str = "INSERT OR REPLACE INTO audit_refused (device, reason, seq) VALUES (?1, ?2, ?3)";
    let Some(device) = entry.device.as_ref().map(DeviceId::as_str) else { return Ok(true) };
    let key = [short_hash(device), short_hash(reason(entry.detail.as_deref().unwrap_or_default()))];
    let known: Option<i64> = connection.prepare_cached(KNOWN)?.query_row(key, |row| row.get(0)).optional()?;
    if known.is_some_and(|seq| seq.cast_unsigned() > pruned) {
        return Ok(false);
    }
    // A client that has a shared key can invent any number of device IDs. The refusals of such IDs
    // must not displace changes in the log.
    if !connection.prepare_cached(IS_IN_TABLE)?.exists([device])? {
        return Ok(false);
    }
    connection.prepare_cached(NOTE)?.execute(params![key[0], key[1], seq.cast_signed()])?;
    Ok(true)
}

/// Forgets the refusals of a device that an operator has changed, so that the next refusal of the
/// device goes into the log again.
pub(in crate::store::sqlite) fn forget_refusals(
    connection: &Connection,
    id: &DeviceId,
) -> rusqlite::Result<()> {
    const SQL: &str = "DELETE FROM audit_refused WHERE device = ?1";
    connection.prepare_cached(SQL)?.execute([short_hash(id.as_str())]).map(drop)
}

/// Rows to which this process has recently added requests. At [`RECENT`] rows, the older half is
/// forgotten.
#[derive(Default)]
pub(super) struct Recent {
    hasher: RandomState,
    newer: HashMap<u64, i64>,
    older: HashMap<u64, i64>,
}

impl Recent {
    /// Returns the hasher that computes the keys of the rows.
    pub(super) fn hasher(&self) -> &RandomState {
        &self.hasher
    }

    /// Adds records to the table `audit_repeat`, in the open transaction. If the transaction fails,
    /// the caller must call [`forget`](Self::forget).
    pub(super) fn put(&mut self, connection: &Connection, records: &[AuditEntry]) -> rusqlite::Result<()> {
        const COUNT_UP: &str = "UPDATE audit_repeat SET count = count + ?2, \
             firstAddress = CASE WHEN firstAddress IS NULL AND address IS NOT ?4 THEN address ELSE firstAddress END, \
             address = ?4, first = min(first, ?8), last = max(last, ?3) \
             WHERE number = ?1 AND deviceId = ?5 AND event = ?6 AND last >= ?7";
        const ADD: &str = "INSERT INTO audit_repeat (event, deviceId, enrollment, who, detail, count, first, last, \
             address, firstAddress) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)";
        let mut count_up = connection.prepare_cached(COUNT_UP)?;
        let mut add = connection.prepare_cached(ADD)?;
        for record in records {
            let AuditEntry { at, event, device, enrollment, who, address, detail, .. } = record;
            let (Some(device), Some(repeats)) = (device, &record.repeats) else { continue };
            let Repeats { count, first, first_address } = repeats;
            let (device, count) = (device.as_str(), count.cast_signed());
            let key = key(&self.hasher, record);
            if let Some(number) = self.row_of(key) {
                let begin = day(*at) * 86_400;
                let known = params![number, count, at, address, device, event.name(), begin, first];
                if count_up.execute(known)? == 1 {
                    continue;
                }
            }
            let first_address = first_address.as_ref().filter(|first| Some(*first) != address.as_ref());
            add.execute(params![
                event.name(),
                device,
                enrollment,
                who,
                detail,
                count,
                first,
                at,
                address,
                first_address
            ])?;
            self.note(key, connection.last_insert_rowid());
        }
        Ok(())
    }

    fn row_of(&mut self, key: u64) -> Option<i64> {
        if let Some(number) = self.newer.get(&key) {
            return Some(*number);
        }
        let number = self.older.remove(&key)?;
        self.note(key, number);
        Some(number)
    }

    fn note(&mut self, key: u64, number: i64) {
        if self.newer.len() >= RECENT / 2 {
            self.older = std::mem::take(&mut self.newer);
        }
        self.newer.insert(key, number);
    }

    /// Forgets all rows.
    pub(super) fn forget(&mut self) {
        self.newer.clear();
        self.older.clear();
    }
}

/// Reads a row with [`COLUMNS`].
fn read(row: &Row<'_>) -> rusqlite::Result<(i64, AuditEntry)> {
    let name = row.get_ref(1)?.as_str()?;
    let event = if name == AuditEvent::Refused.name() { AuditEvent::Refused } else { AuditEvent::Reissued };
    let device = DeviceId::parse_sn(row.get_ref(2)?.as_str()?).ok();
    let address: Option<String> = row.get(9)?;
    let first_address = row.get::<_, Option<String>>(10)?.or_else(|| address.clone());
    let repeats = Repeats { count: row.get::<_, i64>(6)?.unsigned_abs(), first: row.get(7)?, first_address };
    let record = AuditEntry {
        device,
        enrollment: row.get(3)?,
        who: row.get(4)?,
        detail: row.get(5)?,
        address,
        repeats: Some(repeats),
        ..AuditEntry::new(event, row.get(8)?)
    };
    Ok((row.get(0)?, record))
}

/// Returns the numbers of the first and the last row; `None` if there is none.
fn extent(connection: &Connection) -> rusqlite::Result<Option<[i64; 2]>> {
    const SQL: &str = "SELECT (SELECT min(number) FROM audit_repeat), (SELECT max(number) FROM audit_repeat)";
    let [first, last]: [Option<i64>; 2] =
        connection.prepare_cached(SQL)?.query_row((), |row| Ok([row.get(0)?, row.get(1)?]))?;
    Ok(first.zip(last).map(|(first, last)| [first, last]))
}

/// Returns the time of the last request in the newest row.
pub(super) fn newest(connection: &Connection) -> rusqlite::Result<Option<UnixSeconds>> {
    const SQL: &str = "SELECT last FROM audit_repeat ORDER BY number DESC LIMIT 1";
    connection.prepare_cached(SQL)?.query_row((), |row| row.get(0)).optional()
}

/// Direction in which rows are read.
#[derive(Clone, Copy)]
enum Direction {
    Up,
    Down,
}

/// Reads rows in order, a page at a time, so that no transaction stays open.
pub(super) struct Pages<'c> {
    connection: &'c Connection,
    direction: Direction,
    /// Number of the row at which the last page ended. The next page begins after it.
    beyond: i64,
    end: i64,
    page: VecDeque<(i64, AuditEntry)>,
}

impl<'c> Pages<'c> {
    /// Reads the rows that the table has now, oldest first.
    pub(super) fn oldest_first(connection: &'c Connection) -> rusqlite::Result<Self> {
        let end = extent(connection)?.map_or(0, |[_, last]| last);
        let page = VecDeque::new();
        Ok(Self { connection, direction: Direction::Up, beyond: i64::MIN, end, page })
    }

    /// Reads all rows, newest first.
    pub(super) fn newest_first(connection: &'c Connection) -> Self {
        let (beyond, end, page) = (i64::MAX, i64::MIN, VecDeque::new());
        Self { connection, direction: Direction::Down, beyond, end, page }
    }

    /// Returns the next record if `wanted` accepts it.
    pub(super) fn next_if(
        &mut self,
        wanted: impl FnOnce(&AuditEntry) -> bool,
    ) -> rusqlite::Result<Option<AuditEntry>> {
        if self.page.is_empty() {
            self.fill()?;
        }
        match self.page.front() {
            Some((_, record)) if wanted(record) => Ok(self.page.pop_front().map(|(_, record)| record)),
            _ => Ok(None),
        }
    }

    fn fill(&mut self) -> rusqlite::Result<()> {
        let sql = match self.direction {
            Direction::Up => {
                format!(
                    "SELECT {COLUMNS} FROM audit_repeat WHERE number > ?1 AND number <= ?2 ORDER BY number LIMIT ?3"
                )
            }
            Direction::Down => format!(
                "SELECT {COLUMNS} FROM audit_repeat WHERE number < ?1 AND number >= ?2 ORDER BY number DESC LIMIT ?3"
            ),
        };
        let mut statement = self.connection.prepare_cached(&sql)?;
        let limits = params![self.beyond, self.end, READ_AT_ONCE as i64];
        self.page = statement.query_map(limits, read)?.collect::<rusqlite::Result<_>>()?;
        if let Some((last, _)) = self.page.back() {
            self.beyond = *last;
        }
        Ok(())
    }
}

/// Returns the number of the last row that is in the index.
fn indexed(connection: &Connection) -> rusqlite::Result<i64> {
    const SQL: &str = "SELECT coalesce(max(lastNumber), 0) FROM audit_repeat_device";
    connection.prepare_cached(SQL)?.query_row((), |row| row.get(0))
}

/// Returns whether there are enough rows for another part of the index.
pub(super) fn is_behind(connection: &Connection) -> rusqlite::Result<bool> {
    let Some([first, last]) = extent(connection)? else { return Ok(false) };
    Ok(last - indexed(connection)?.max(first - 1) >= PART)
}

/// Adds the next part of the index in the open transaction, if there are enough rows for it.
/// Returns whether a part was added.
pub(super) fn add_part(connection: &Connection) -> rusqlite::Result<bool> {
    const DEVICES: &str = "SELECT deviceId FROM audit_repeat WHERE number BETWEEN ?1 AND ?2";
    const PUT: &str =
        "INSERT INTO audit_repeat_device (lastNumber, firstNumber, devices) VALUES (?1, ?2, ?3)";
    let Some([oldest, newest]) = extent(connection)? else { return Ok(false) };
    let first = indexed(connection)?.max(oldest - 1) + 1;
    let last = first + PART - 1;
    if newest < last {
        return Ok(false);
    }
    let mut statement = connection.prepare_cached(DEVICES)?;
    let devices = statement.query_map([first, last], |row| Ok(index::hash(row.get_ref(0)?.as_str()?)))?;
    let mut devices = devices.collect::<rusqlite::Result<Vec<_>>>()?;
    devices.sort_unstable();
    devices.dedup();
    connection.prepare_cached(PUT)?.execute(params![last, first, devices.as_flattened()])?;
    Ok(true)
}

/// Returns the records about a device, the newest first. Rows about equal requests become one
/// record. Reads at most `limit` rows of the device, so a part of the oldest record may be missing.
pub(super) fn history(
    connection: &Connection,
    id: &DeviceId,
    limit: usize,
) -> rusqlite::Result<Vec<AuditEntry>> {
    const PARTS: &str =
        "SELECT firstNumber, lastNumber, devices FROM audit_repeat_device ORDER BY lastNumber DESC";
    let mut records = Vec::new();
    let mut left = limit;
    let wanted = index::hash(id.as_str());
    add_rows(connection, id, [indexed(connection)? + 1, i64::MAX], &mut left, &mut records)?;
    let mut statement = connection.prepare_cached(PARTS)?;
    let mut parts = statement.query(())?;
    while left > 0
        && let Some(part) = parts.next()?
    {
        let (devices, _) = part.get_ref(2)?.as_blob()?.as_chunks();
        if devices.binary_search(&wanted).is_ok() {
            add_rows(connection, id, [part.get(0)?, part.get(1)?], &mut left, &mut records)?;
        }
    }
    records.sort_by_key(|record| std::cmp::Reverse(record.at));
    Ok(records)
}

/// Adds to `records` the rows about a device whose numbers are in `range`, but at most `left` rows.
fn add_rows(
    connection: &Connection,
    id: &DeviceId,
    range: [i64; 2],
    left: &mut usize,
    records: &mut Vec<AuditEntry>,
) -> rusqlite::Result<()> {
    let sql = format!(
        "SELECT {COLUMNS} FROM audit_repeat WHERE number BETWEEN ?1 AND ?2 AND deviceId = ?3 \
         ORDER BY number DESC LIMIT ?4"
    );
    let most = i64::try_from(*left).unwrap_or(i64::MAX);
    let mut statement = connection.prepare_cached(&sql)?;
    for row in statement.query_map(params![range[0], range[1], id.as_str(), most], read)? {
        row?.1.gather(records);
        *left = left.saturating_sub(1);
    }
    Ok(())
}

/// Returns the numbers of the first and the last expired row, or `None` if no row is expired.
/// Considers only the [`PRUNED_AT_ONCE`] oldest rows.
fn expired(connection: &Connection, keep: Keep, now: UnixSeconds) -> rusqlite::Result<Option<[i64; 2]>> {
    const OLDEST: &str = "SELECT number, last FROM audit_repeat ORDER BY number LIMIT ?1";
    let Some([first, last]) = extent(connection)? else { return Ok(None) };
    // If there are too many rows, one percent of the limit is removed in addition to the surplus.
    // Otherwise, every new row would cause pruning.
    let surplus = |most: u64| {
        let most = i64::try_from(most.max(1)).unwrap_or(i64::MAX);
        let has = last + 1 - first;
        (has > most).then(|| first - 1 + has - most + (most / 100).min(has - 1))
    };
    let surplus = keep.repeats.and_then(surplus).map(|last| last.min(first - 1 + PRUNED_AT_ONCE));
    let mut end = surplus.unwrap_or(first - 1);
    if let Some(days) = keep.days {
        let oldest = now - i64::from(days) * 86_400;
        let mut statement = connection.prepare_cached(OLDEST)?;
        let mut rows = statement.query([PRUNED_AT_ONCE])?;
        while let Some(row) = rows.next()?
            && row.get::<_, UnixSeconds>(1)? < oldest
        {
            end = end.max(row.get(0)?);
        }
    }
    Ok((end >= first).then_some([first, end]))
}

/// Returns whether there are expired rows.
pub(super) fn has_expired(connection: &Connection, keep: Keep, now: UnixSeconds) -> rusqlite::Result<bool> {
    Ok(expired(connection, keep, now)?.is_some())
}

/// Removes expired rows, oldest first, up to a limited number; returns the number of removed rows.
pub(super) fn prune(connection: &Connection, keep: Keep, now: UnixSeconds) -> rusqlite::Result<u64> {
    let Some([first, end]) = expired(connection, keep, now)? else { return Ok(0) };
    connection.execute("DELETE FROM audit_repeat_device WHERE lastNumber <= ?1", [end])?;
    connection.execute("DELETE FROM audit_repeat WHERE number <= ?1", [end])?;
    Ok((end + 1 - first).unsigned_abs())
}
