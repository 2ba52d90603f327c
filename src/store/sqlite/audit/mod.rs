//! The audit log in the database, as blocks of entries. Any writing process may append a block, and
//! updates the head of the chain in the same transaction. This module depends on the tables of the
//! log, but not on the kinds of events.

mod index;
mod outbox;
mod repeats;
mod rows;

use std::{
    ops::ControlFlow,
    path::Path,
    time::{Duration, Instant},
};

use rusqlite::{Connection, Row, Transaction, TransactionBehavior, params, types::Type};

use self::{outbox::Waiting, repeats::Pages};
pub(super) use self::{
    outbox::{Outbox, outbox},
    repeats::forget_refusals,
    rows::into_blocks,
};
use super::store_error;
use crate::{
    device::DeviceId,
    store::{
        StoreError, UnixSeconds,
        audit::{AuditEntry, AuditEvent, Chain, Counts, EachEntry, Filter, Keep, Link, day, link, merged},
        chain::{StoredBlock, Verification, pruning},
    },
};

/// Maximum number of entries in a block, about 40 KB. With this many entries, a block's row adds
/// little to the cost of each entry, and searching the block is still fast.
const BLOCK: usize = 256;

/// Maximum number of entries removed in one transaction.
const PRUNED_AT_ONCE: u64 = 10_000;

/// Number of blocks that an export reads at a time, about 2.5 MB.
const EXPORTED_AT_ONCE: i64 = 64;

/// Separator between the entries of a block.
const BETWEEN: &str = ",\n";

/// Number of a block's last entry, and the block's hash.
type Head = (u64, Link);

/// Appends an entry in the transaction that is open.
pub(super) fn append(connection: &Connection, entry: &AuditEntry) -> rusqlite::Result<()> {
    put(connection, &[entry.line()])
}

/// Appends entries as one block, in the transaction that is open.
pub(super) fn put(connection: &Connection, lines: &[impl AsRef<str>]) -> rusqlite::Result<()> {
    const HEAD: &str = "SELECT headSeq, headHash FROM audit_chain";
    let (before, previous): Head = connection
        .prepare_cached(HEAD)?
        .query_row((), |row| Ok((row.get::<_, i64>(0)?.cast_unsigned(), row.get(1)?)))?;
    let entries = block_of(lines);
    let hash = link(&previous, before + 1, &entries);
    put_block(connection, before + 1, before + lines.len() as u64, &entries, &hash)
}

/// Returns the text of a block: a JSON array with one entry on each line.
fn block_of(lines: &[impl AsRef<str>]) -> String {
    let length: usize = lines.iter().map(|line| line.as_ref().len() + BETWEEN.len()).sum();
    let mut entries = String::with_capacity(length + 2);
    entries.push('[');
    for (index, line) in lines.iter().enumerate() {
        if index > 0 {
            entries.push_str(BETWEEN);
        }
        entries.push_str(line.as_ref());
    }
    entries.push(']');
    entries
}

fn put_block(
    connection: &Connection,
    first: u64,
    last: u64,
    entries: &str,
    hash: &Link,
) -> rusqlite::Result<()> {
    const PUT: &str = "INSERT INTO audit_block (lastSeq, firstSeq, entries, hash) VALUES (?1, ?2, ?3, ?4)";
    const SET_HEAD: &str = "UPDATE audit_chain SET headSeq = ?1, headHash = ?2";
    let (first, last) = (first.cast_signed(), last.cast_signed());
    connection.prepare_cached(PUT)?.execute(params![last, first, entries, hash])?;
    connection.prepare_cached(SET_HEAD)?.execute(params![last, hash])?;
    Ok(())
}

/// Selects the blocks whose last entry's number is from ?1 to ?2, oldest first.
const BLOCKS: &str = "SELECT firstSeq, lastSeq, hash, entries FROM audit_block \
                      WHERE lastSeq BETWEEN ?1 AND ?2 ORDER BY lastSeq";

/// Range of all entries.
const ALL: [i64; 2] = [0, i64::MAX];

/// A block, as [`BLOCKS`] selects it.
struct Block<'r> {
    first: u64,
    last: u64,
    hash: Link,
    entries: &'r str,
}

impl<'r> Block<'r> {
    fn read(row: &'r Row<'_>) -> rusqlite::Result<Self> {
        let [first, last] = [row.get::<_, i64>(0)?, row.get(1)?].map(i64::cast_unsigned);
        Ok(Self { first, last, hash: row.get(2)?, entries: row.get_ref(3)?.as_str()? })
    }

    /// Returns each entry's number and text.
    fn lines(&self) -> impl Iterator<Item = (u64, &'r str)> {
        let entries = self.entries.strip_prefix('[').and_then(|text| text.strip_suffix(']'));
        (self.first..).zip(entries.unwrap_or(self.entries).split(BETWEEN))
    }
}

/// Parses an entry.
fn parse((seq, line): (u64, &str)) -> rusqlite::Result<AuditEntry> {
    let unreadable =
        |error: serde_json::Error| rusqlite::Error::FromSqlConversionFailure(3, Type::Text, Box::new(error));
    Ok(AuditEntry { seq, ..serde_json::from_str(line).map_err(unreadable)? })
}

/// Returns the time of the newest entry or repeat.
pub(super) fn newest(connection: &Connection) -> rusqlite::Result<Option<UnixSeconds>> {
    Ok(newest_entry(connection)?.max(repeats::newest(connection)?))
}

fn newest_entry(connection: &Connection) -> rusqlite::Result<Option<UnixSeconds>> {
    const SQL: &str =
        "SELECT firstSeq, lastSeq, hash, entries FROM audit_block ORDER BY lastSeq DESC LIMIT 1";
    let mut statement = connection.prepare_cached(SQL)?;
    let mut rows = statement.query(())?;
    let Some(row) = rows.next()? else { return Ok(None) };
    Block::read(row)?.lines().last().map(parse).transpose().map(|entry| entry.map(|entry| entry.at))
}

/// Returns the entries and the records of repeats about a device, newest first.
pub(super) fn history(
    connection: &Connection,
    id: &DeviceId,
    limit: usize,
) -> rusqlite::Result<Vec<AuditEntry>> {
    let state = Transaction::new_unchecked(connection, TransactionBehavior::Deferred)?;
    Ok(merged(index::history(&state, id, limit)?, repeats::history(&state, id, limit)?, limit))
}

/// Returns the number of the last entry.
pub(super) fn head(connection: &Connection) -> rusqlite::Result<u64> {
    connection.query_row("SELECT headSeq FROM audit_chain", (), |row| row.get(0).map(i64::cast_unsigned))
}

/// Calls `each` with each matching entry and the hash of its block, and with each matching record of
/// repeats and zeros, oldest first, until `each` returns `Break`. No transaction is open while
/// `each` runs. Leaves out entries that are added after the export has begun.
pub(super) fn export(connection: &Connection, filter: &Filter, each: EachEntry<'_>) -> rusqlite::Result<()> {
    let end = head(connection)?;
    export_until(connection, end, filter, each).map(drop)
}

/// Exports like [`export`], and then exports the entries that are in outbox files of processes that
/// have ended. These entries have the number 0 and no hash.
pub(super) fn export_with_waiting(
    connection: &Connection,
    path: &Path,
    filter: &Filter,
    each: EachEntry<'_>,
) -> Result<(), StoreError> {
    let waiting = Waiting::find(connection, path)?;
    let exported = export_until(connection, waiting.end, filter, each);
    if exported.map_err(|error| store_error(path, error))?.is_break() {
        return Ok(());
    }
    let mut each = |entry: AuditEntry| match filter.admits(&entry) {
        true => each(entry, Link::default()),
        false => ControlFlow::Continue(()),
    };
    waiting.read(&mut each).map_err(|error| {
        StoreError::Failed(format!("{}: the outbox of the audit log: {error}", path.display()))
    })
}

fn export_until(
    connection: &Connection,
    end: u64,
    filter: &Filter,
    each: EachEntry<'_>,
) -> rusqlite::Result<ControlFlow<()>> {
    const SQL: &str = "SELECT firstSeq, lastSeq, hash, entries FROM audit_block \
                       WHERE lastSeq > ?1 AND lastSeq <= ?2 ORDER BY lastSeq LIMIT ?3";
    let mut after = 0;
    let mut records = Pages::oldest_first(connection)?;
    loop {
        let blocks: Vec<(u64, u64, Link, String)> = connection
            .prepare_cached(SQL)?
            .query_map(params![after, end.cast_signed(), EXPORTED_AT_ONCE], |row| {
                let [first, last] = [row.get::<_, i64>(0)?, row.get(1)?].map(i64::cast_unsigned);
                Ok((first, last, row.get(2)?, row.get(3)?))
            })?
            .collect::<rusqlite::Result<_>>()?;
        let Some((_, last, ..)) = blocks.last() else {
            return export_records(&mut records, UnixSeconds::MAX, filter, each);
        };
        after = last.cast_signed();
        for (first, last, hash, entries) in &blocks {
            for line in (Block { first: *first, last: *last, hash: *hash, entries }).lines() {
                let entry = parse(line)?;
                if export_records(&mut records, entry.at, filter, each)?.is_break() {
                    return Ok(ControlFlow::Break(()));
                }
                if filter.admits(&entry) && each(entry, *hash).is_break() {
                    return Ok(ControlFlow::Break(()));
                }
            }
        }
    }
}

/// Exports the matching records of repeats that begin before the time `until`.
fn export_records(
    records: &mut Pages<'_>,
    until: UnixSeconds,
    filter: &Filter,
    each: EachEntry<'_>,
) -> rusqlite::Result<ControlFlow<()>> {
    while let Some(record) = records.next_if(|record| record.begun() < until)? {
        if filter.admits(&record) && each(record, Link::default()).is_break() {
            return Ok(ControlFlow::Break(()));
        }
    }
    Ok(ControlFlow::Continue(()))
}

/// Calls `each` with the entries and the records of repeats of these kinds, newest first, until
/// `each` returns `Break`, a whole block is older than `since`, or `time` is over. Returns false if
/// the time was over.
pub(super) fn review(
    connection: &Connection,
    kinds: &[AuditEvent],
    (since, time): (UnixSeconds, Duration),
    each: EachEntry<'_>,
) -> rusqlite::Result<bool> {
    const SQL: &str = "SELECT firstSeq, lastSeq, hash, entries FROM audit_block \
                       WHERE lastSeq < ?1 ORDER BY lastSeq DESC LIMIT 1";
    let deadline = Instant::now() + time;
    // Most entries are of other kinds. To save time, entries whose text names none of `kinds` are
    // not parsed.
    let names: Vec<String> = kinds.iter().map(|kind| format!("\"event\":\"{}\"", kind.name())).collect();
    let mut statement = connection.prepare_cached(SQL)?;
    let mut before = i64::MAX;
    let is_repeated = |kind: &AuditEvent| matches!(kind, AuditEvent::Reissued | AuditEvent::Refused);
    let mut records = kinds.iter().any(is_repeated).then(|| Pages::newest_first(connection));
    // Calls `each` with the records that begin at this time or later. If that ends the review,
    // returns the result of the review.
    let mut review_records = |from: UnixSeconds, each: EachEntry<'_>| -> rusqlite::Result<Option<bool>> {
        let Some(records) = &mut records else { return Ok(None) };
        while let Some(record) = records.next_if(|record| record.begun() >= from)? {
            let is_wanted = kinds.contains(&record.event) && record.at >= since;
            if is_wanted && each(record, Link::default()).is_break() {
                return Ok(Some(true));
            }
            if Instant::now() >= deadline {
                return Ok(Some(false));
            }
        }
        Ok(None)
    };
    // A record is about a single day, so a record that begins before this day has no request after
    // `since`.
    let oldest = day(since).saturating_mul(86_400);
    loop {
        let mut rows = statement.query([before])?;
        let Some(row) = rows.next()? else {
            return Ok(review_records(oldest, each)?.unwrap_or(true));
        };
        let block = Block::read(row)?;
        before = block.last.cast_signed();
        let lines: Vec<(u64, &str)> = block.lines().collect();
        if lines.last().copied().map(parse).transpose()?.is_some_and(|newest| newest.at < since) {
            return Ok(review_records(oldest, each)?.unwrap_or(true));
        }
        let wanted = lines.into_iter().rev().filter(|(_, line)| names.iter().any(|name| line.contains(name)));
        for line in wanted {
            let entry = parse(line)?;
            // The text that was found may be in another field of the entry, so the parsed kind is
            // checked.
            if !kinds.contains(&entry.event) || entry.at < since {
                continue;
            }
            if let Some(is_whole) = review_records(entry.at, each)? {
                return Ok(is_whole);
            }
            if each(entry, block.hash).is_break() {
                return Ok(true);
            }
        }
        if Instant::now() >= deadline {
            return Ok(false);
        }
    }
}

/// Calls `each` with each entry after the number `seq`, oldest first.
pub(super) fn entries_after(
    connection: &Connection,
    seq: u64,
    each: &mut dyn FnMut(AuditEntry, Link) -> rusqlite::Result<()>,
) -> rusqlite::Result<()> {
    let mut statement = connection.prepare_cached(BLOCKS)?;
    let mut rows = statement.query([(seq + 1).cast_signed(), i64::MAX])?;
    while let Some(row) = rows.next()? {
        let block = Block::read(row)?;
        for line in block.lines().filter(|(number, _)| *number > seq) {
            each(parse(line)?, block.hash)?;
        }
    }
    Ok(())
}

/// Calls `each` with the number and the text of each entry, oldest first, without the first `skip` ones.
pub(super) fn read_lines(
    connection: &Connection,
    path: &Path,
    skip: u64,
    each: &mut dyn FnMut(u64, &str) -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    let failed = |error| store_error(path, error);
    let after = pruned(connection).map_err(failed)? + skip;
    let mut statement = connection.prepare_cached(BLOCKS).map_err(failed)?;
    let mut rows = statement.query([(after + 1).cast_signed(), i64::MAX]).map_err(failed)?;
    while let Some(row) = rows.next().map_err(failed)? {
        for (seq, line) in Block::read(row).map_err(failed)?.lines().filter(|(seq, _)| *seq > after) {
            each(seq, line)?;
        }
    }
    Ok(())
}

/// Returns whether a killed process has left entries that are not in the log.
pub(super) fn has_waiting(connection: &Connection, path: &Path) -> Result<bool, StoreError> {
    let mut has_any = false;
    let mut note = |_| {
        has_any = true;
        ControlFlow::Break(())
    };
    let read = Waiting::find(connection, path)?.read(&mut note);
    read.map_err(|error| {
        StoreError::Failed(format!("{}: the outbox of the audit log: {error}", path.display()))
    })?;
    Ok(has_any)
}

/// Adds all parts of the indexes for which there are enough entries.
pub(super) fn index_all(connection: &Connection) -> rusqlite::Result<()> {
    loop {
        let transaction = Transaction::new_unchecked(connection, TransactionBehavior::Immediate)?;
        let is_behind = index::add_part(&transaction)? | repeats::add_part(&transaction)?;
        transaction.commit()?;
        if !is_behind {
            return Ok(());
        }
    }
}

/// Returns the number of the last entry that was pruned.
pub(super) fn pruned(connection: &Connection) -> rusqlite::Result<u64> {
    connection.query_row("SELECT anchorSeq FROM audit_chain", (), |row| row.get(0).map(i64::cast_unsigned))
}

/// Returns whether this log continues an earlier log, which ended with the entry `seq` and with a
/// block whose hash is `hash`. If that entry has been pruned from this log, the hashes cannot be
/// compared, and the answer is true.
pub(super) fn continues(connection: &Connection, seq: u64, hash: &Link) -> rusqlite::Result<bool> {
    const SQL: &str = "SELECT anchorSeq > ?1 OR (anchorSeq = ?1 AND anchorHash = ?2) OR \
                       EXISTS (SELECT 1 FROM audit_block WHERE lastSeq = ?1 AND hash = ?2) FROM audit_chain";
    connection.query_row(SQL, params![seq.cast_signed(), hash], |row| row.get(0))
}

/// Verifies the chain in one state of the database. `hash_at` receives the number of each
/// block's last entry and the block's hash, for comparison with a hash that an operator has
/// noted.
pub(super) fn verify(connection: &Connection, hash_at: impl FnMut(u64, &Link)) -> rusqlite::Result<Chain> {
    let state = Transaction::new_unchecked(connection, TransactionBehavior::Deferred)?;
    verify_in(&state, hash_at)
}

/// Verifies the chain over this connection. Unless the caller has a transaction open, no other
/// connection may write during the verification.
pub(super) fn verify_in(
    connection: &Connection,
    mut hash_at: impl FnMut(u64, &Link),
) -> rusqlite::Result<Chain> {
    const CHAIN: &str = "SELECT anchorSeq, anchorHash, headSeq, headHash FROM audit_chain";
    let (anchor, head): (Head, Head) = connection.query_row(CHAIN, (), |row| {
        let [pruned, last] = [row.get::<_, i64>(0)?, row.get(2)?].map(i64::cast_unsigned);
        Ok(((pruned, row.get(1)?), (last, row.get(3)?)))
    })?;
    let mut verification = Verification::new(anchor, head);
    let mut statement = connection.prepare_cached(BLOCKS)?;
    let mut rows = statement.query(ALL)?;
    while let Some(row) = rows.next()? {
        let block = Block::read(row)?;
        let Block { first, last, ref hash, entries } = block;
        let stored = StoredBlock { first, last, text: entries, hash };
        verification.block(stored, block.lines().map(|(_, line)| line));
        hash_at(last, hash);
    }
    Ok(verification.end())
}

/// Expired blocks at the beginning of the log.
struct Expired {
    /// Number of the last entry that was pruned before.
    anchor: u64,
    /// Number of the last entry in the last expired block, and the block's hash.
    last: Head,
}

/// Returns the expired blocks, up to a limited number of entries; `None` if no block has expired.
fn expired(connection: &Connection, keep: Keep, now: UnixSeconds) -> rusqlite::Result<Option<Expired>> {
    const CHAIN: &str = "SELECT anchorSeq, headSeq FROM audit_chain";
    let [anchor, head] = connection
        .query_row(CHAIN, (), |row| Ok([row.get::<_, i64>(0)?, row.get(1)?].map(i64::cast_unsigned)))?;
    // One percent more than necessary is removed, so that not every new entry causes pruning. At
    // least one entry more is removed, to make room for the entry about the pruning.
    let surplus = |rows: u64| head - rows + (rows / 100).max(1);
    let surplus = keep.rows.map(|rows| rows.max(1)).filter(|rows| head - anchor > *rows).map(surplus);
    let oldest = keep.days.map(|days| now - i64::from(days) * 86_400);
    if surplus.is_none() && oldest.is_none() {
        return Ok(None);
    }
    let mut expired: Option<Head> = None;
    let mut statement = connection.prepare_cached(BLOCKS)?;
    let oldest_blocks = [anchor + 1, (anchor + PRUNED_AT_ONCE).min(head)];
    let mut rows = statement.query(oldest_blocks.map(u64::cast_signed))?;
    while let Some(row) = rows.next()? {
        let block = Block::read(row)?;
        let is_surplus = surplus.is_some_and(|surplus| block.last <= surplus);
        let is_old = match oldest.filter(|_| !is_surplus) {
            Some(oldest) => block.lines().last().map(parse).transpose()?.is_some_and(|last| last.at < oldest),
            None => false,
        };
        // Pruning stops at a gap in the numbers, so that `verify` still finds the gap.
        let follows = block.first == expired.map_or(anchor, |(last, _)| last) + 1;
        if !follows || !(is_surplus || is_old) {
            break;
        }
        expired = Some((block.last, block.hash));
    }
    Ok(expired.map(|last| Expired { anchor, last }))
}

/// Returns whether there are expired blocks or records of repeats.
pub(super) fn has_expired(connection: &Connection, keep: Keep, now: UnixSeconds) -> rusqlite::Result<bool> {
    Ok(expired(connection, keep, now)?.is_some() || repeats::has_expired(connection, keep, now)?)
}

/// Removes expired blocks or, if there are none, expired records of repeats, oldest first and up to
/// a limited number. Returns the numbers of removed entries and records.
pub(super) fn prune(connection: &Connection, keep: Keep, now: UnixSeconds) -> rusqlite::Result<Counts> {
    let changes = prune_blocks(connection, keep, now)?;
    let repeats = if changes == 0 { repeats::prune(connection, keep, now)? } else { 0 };
    Ok(Counts { changes, repeats })
}

/// Removes expired blocks. The chain then begins after the removed blocks, and a new entry records
/// the pruning.
fn prune_blocks(connection: &Connection, keep: Keep, now: UnixSeconds) -> rusqlite::Result<u64> {
    let Some(Expired { anchor, last: (last, hash) }) = expired(connection, keep, now)? else {
        return Ok(0);
    };
    for sql in ["DELETE FROM audit_device WHERE lastSeq <= ?1", "DELETE FROM audit_block WHERE lastSeq <= ?1"]
    {
        connection.execute(sql, [last.cast_signed()])?;
    }
    connection.execute(
        "UPDATE audit_chain SET anchorSeq = ?1, anchorHash = ?2",
        params![last.cast_signed(), hash],
    )?;
    let detail = pruning(last - anchor, last, &hash);
    append(connection, &AuditEntry { detail: Some(detail), ..AuditEntry::new(AuditEvent::Pruned, now) })?;
    Ok(last - anchor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_review_ends_at_the_time_that_it_is_given() {
        let connection = Connection::open_in_memory().unwrap();
        connection.execute_batch(include_str!("../../../../schema.sql")).unwrap();
        let line = |event, at| AuditEntry::new(event, at).line();
        put(&connection, &[line(AuditEvent::Began, 5)]).unwrap();
        put(
            &connection,
            &[line(AuditEvent::Began, 10), line(AuditEvent::Issued, 15), line(AuditEvent::Began, 20)],
        )
        .unwrap();
        // The name of a kind in another field does not make an entry one of that kind.
        let odd =
            AuditEntry { who: Some("\"event\":\"began\"".into()), ..AuditEntry::new(AuditEvent::Reset, 25) };
        put(&connection, &[odd.line()]).unwrap();
        let review = |since, time| {
            let mut found = Vec::new();
            let is_whole = review(&connection, &[AuditEvent::Began], (since, time), &mut |entry, _| {
                found.push(entry.at);
                ControlFlow::Continue(())
            });
            (is_whole.unwrap(), found)
        };
        let minute = Duration::from_secs(60);
        assert_eq!(review(0, minute), (true, vec![20, 10, 5]));
        assert_eq!(review(11, minute), (true, vec![20]), "older entries of the same block are left out");
        assert_eq!(review(0, Duration::ZERO), (false, vec![]), "the time is over after one block");
    }
}
