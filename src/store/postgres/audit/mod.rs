//! The audit log in PostgreSQL. All servers share the chain of hashes, so a write does not wait for its
//! end: it adds its entry to `audit_pending` in the same transaction, and a moment later a server moves
//! the entries into the chain ([`Chainer`]). Whoever reads the log moves them first.

mod asked;
mod repeats;

use std::{
    ops::ControlFlow,
    time::{Duration, Instant},
};

use tokio_postgres::Row;

use self::repeats::Pages;
pub(super) use self::{asked::Chainer, repeats::kind_of};
use super::{
    Access,
    engine::{Engine, SNAPSHOT},
    failure::Failure,
    session::{Session, column, number, values},
};
use crate::{
    device::DeviceId,
    store::{
        StoreError, UnixSeconds,
        audit::{AuditEntry, AuditEvent, Chain, Counts, EachEntry, Filter, Keep, Link, day, link, merged},
        chain::{StoredBlock, Verification, pruning},
    },
};

/// Maximum number of entries that one statement moves into the chain, reads or removes.
const AT_ONCE: i64 = 1000;

/// Maximum number of entries that one call of [`prune`] removes.
const PRUNED_AT_ONCE: u64 = 10_000;

/// Number of an entry, and its hash.
type Head = (u64, Link);

/// Adds an entry to the log, in the caller's transaction.
pub(super) async fn append(session: &Session, entry: &AuditEntry) -> Result<(), Failure> {
    const SQL: &str = "INSERT INTO audit_pending (deviceId, at, event, line) VALUES ($1, $2, $3, $4)";
    let device = entry.device.as_ref().map(DeviceId::as_str);
    session.execute(SQL, values![device, entry.at, entry.event.name(), entry.line()]).await.map(drop)
}

/// Forgets the refusals of a device that an operator has changed, so that the log gets the next
/// refusal of the device again.
pub(super) async fn forget_refusals(session: &Session, id: &DeviceId) -> Result<(), Failure> {
    const SQL: &str = "DELETE FROM audit_refused WHERE deviceId = $1";
    session.execute(SQL, values![id.as_str()]).await.map(drop)
}

/// The chain, whose end this transaction has locked.
pub(super) struct LockedChain {
    anchor: Head,
    head: Head,
    /// Set if entries may still be pending.
    is_behind: bool,
}

pub(super) fn hash(row: &Row, index: usize) -> Result<Link, Failure> {
    let bytes: &[u8] = column(row, index)?;
    bytes.try_into().map_err(|_| Failure::unexpected("a hash of the audit log does not have 32 bytes"))
}

fn two_heads(row: &Row) -> Result<(Head, Head), Failure> {
    Ok(((number(row, 0)?, hash(row, 1)?), (number(row, 2)?, hash(row, 3)?)))
}

impl LockedChain {
    /// Locks the chain until the end of the transaction, and moves pending entries into it. A
    /// transaction moves a limited number of them, because its time is limited. A transaction that
    /// always ran out of time would begin again and again while more entries arrive.
    pub(super) async fn extend(session: &Session) -> Result<Self, Failure> {
        const LOCK: &str =
            "SELECT anchorSeq, anchorHash, headSeq, headHash FROM audit_chain WHERE id = 0 FOR UPDATE";
        const PENDING: &str =
            "SELECT number, deviceId, at, event, line FROM audit_pending ORDER BY number LIMIT $1";
        const MOVED: &str = "DELETE FROM audit_pending WHERE number = ANY ($1)";
        let (anchor, head) = two_heads(&session.one(LOCK, &[]).await?)?;
        let mut chain = Self { anchor, head, is_behind: false };
        let pending = session.rows(PENDING, values![AT_ONCE]).await?;
        let numbers: Vec<i64> = pending.iter().map(|row| column(row, 0)).collect::<Result<_, _>>()?;
        let mut entries = Vec::with_capacity(pending.len());
        for row in &pending {
            entries.push(Line {
                device: column(row, 1)?,
                at: column(row, 2)?,
                event: column(row, 3)?,
                line: column(row, 4)?,
            });
        }
        if !entries.is_empty() {
            chain.put(session, &entries).await?;
            session.execute(MOVED, values![&numbers]).await?;
        }
        chain.is_behind = i64::try_from(numbers.len()).is_ok_and(|moved| moved == AT_ONCE);
        Ok(chain)
    }

    /// Returns whether entries may still be pending. Another transaction moves them.
    pub(super) fn is_behind(&self) -> bool {
        self.is_behind
    }

    /// Adds entries to the end of the chain.
    pub(super) async fn put(&mut self, session: &Session, entries: &[Line<'_>]) -> Result<(), Failure> {
        const PUT: &str = "INSERT INTO audit_entry (seq, deviceId, at, event, line, hash) \
                           SELECT * FROM unnest($1, $2, $3, $4, $5, $6)";
        const SET_HEAD: &str = "UPDATE audit_chain SET headSeq = $1, headHash = $2 WHERE id = 0";
        if entries.is_empty() {
            return Ok(());
        }
        let (mut seqs, mut hashes): (Vec<i64>, Vec<Vec<u8>>) = (Vec::new(), Vec::new());
        for entry in entries {
            let (last, previous) = self.head;
            self.head = (last + 1, link(&previous, last + 1, entry.line));
            seqs.push(self.head.0.cast_signed());
            hashes.push(self.head.1.to_vec());
        }
        let devices: Vec<Option<&str>> = entries.iter().map(|entry| entry.device).collect();
        let times: Vec<i64> = entries.iter().map(|entry| entry.at).collect();
        let events: Vec<&str> = entries.iter().map(|entry| entry.event).collect();
        let lines: Vec<&str> = entries.iter().map(|entry| entry.line).collect();
        session.execute(PUT, values![seqs, devices, times, events, lines, hashes]).await?;
        session.execute(SET_HEAD, values![self.head.0.cast_signed(), &self.head.1[..]]).await.map(drop)
    }
}

/// Adds entries as JSON to the end of the chain.
pub(super) async fn put_lines(session: &Session, lines: &[&str]) -> Result<(), Failure> {
    let parse = |line: &&str| serde_json::from_str::<AuditEntry>(line).map_err(Failure::unexpected);
    let entries = lines.iter().map(parse).collect::<Result<Vec<_>, _>>()?;
    let lines: Vec<Line<'_>> = entries
        .iter()
        .zip(lines)
        .map(|(entry, line)| Line {
            device: entry.device.as_ref().map(DeviceId::as_str),
            at: entry.at,
            event: entry.event.name(),
            line,
        })
        .collect();
    LockedChain::extend(session).await?.put(session, &lines).await
}

/// An entry as a row has it.
pub(super) struct Line<'l> {
    device: Option<&'l str>,
    at: UnixSeconds,
    event: &'l str,
    line: &'l str,
}

/// The columns that [`entry`] reads.
const COLUMNS: &str = "seq, line, hash";

fn entry(row: &Row) -> Result<(AuditEntry, Link), Failure> {
    let entry: AuditEntry = serde_json::from_str(column(row, 1)?).map_err(Failure::unexpected)?;
    Ok((AuditEntry { seq: number(row, 0)?, ..entry }, hash(row, 2)?))
}

/// Returns the time of the newest entry or repeat.
pub(super) async fn newest(session: &Session) -> Result<Option<UnixSeconds>, Failure> {
    const SQL: &str = "SELECT (SELECT max(at) FROM audit_pending), \
                       (SELECT at FROM audit_entry ORDER BY seq DESC LIMIT 1), \
                       (SELECT last FROM audit_repeat ORDER BY number DESC LIMIT 1)";
    let row = session.one(SQL, &[]).await?;
    let [pending, entry, repeat]: [Option<i64>; 3] = [column(&row, 0)?, column(&row, 1)?, column(&row, 2)?];
    Ok(pending.or(entry).max(repeat))
}

/// Moves all pending entries into the chain, unless the database was opened only to be read. Then the
/// newest entries may be missing.
fn catch_up(engine: &Engine) -> Result<(), StoreError> {
    if engine.access() != Access::Full {
        return Ok(());
    }
    while engine
        .transact_now(async |session: &Session| Ok(LockedChain::extend(session).await?.is_behind()))?
    {}
    Ok(())
}

/// Returns the entries and the records of repeats about a device, newest first. Pending entries are
/// left out.
pub(super) async fn history(
    session: &Session,
    id: &DeviceId,
    limit: usize,
) -> Result<Vec<AuditEntry>, Failure> {
    let sql = format!("SELECT {COLUMNS} FROM audit_entry WHERE deviceId = $1 ORDER BY seq DESC LIMIT $2");
    let most = i64::try_from(limit).unwrap_or(i64::MAX);
    let rows = session.rows(&sql, values![id.as_str(), most]).await?;
    let entries = rows.iter().map(|row| Ok(entry(row)?.0)).collect::<Result<_, Failure>>()?;
    Ok(merged(entries, repeats::history(session, id, most).await?, limit))
}

/// Calls `each` with each matching entry and its hash, and with each matching record of repeats and
/// zeros, oldest first, until `each` returns `Break`. Entries that are added after the export has begun
/// are left out.
pub(super) fn export(engine: &Engine, filter: &Filter, each: EachEntry<'_>) -> Result<(), StoreError> {
    const HEAD: &str = "SELECT headSeq FROM audit_chain";
    catch_up(engine)?;
    let end = engine.read_now(async |session: &Session| number(&session.one(HEAD, &[]).await?, 0))?;
    let mut records = Pages::oldest_first(engine)?;
    let mut after = 0_i64;
    loop {
        let sql = format!(
            "SELECT {COLUMNS} FROM audit_entry WHERE seq > $1 AND seq <= $2 ORDER BY seq LIMIT {AT_ONCE}"
        );
        let page: Vec<(AuditEntry, Link)> = engine.read_now(async move |session: &Session| {
            let rows = session.rows(&sql, values![after, end.cast_signed()]).await?;
            rows.iter().map(entry).collect()
        })?;
        let Some((last, _)) = page.last() else {
            return export_records(&mut records, UnixSeconds::MAX, filter, each).map(drop);
        };
        after = last.seq.cast_signed();
        for (entry, hash) in page {
            if export_records(&mut records, entry.at, filter, each)?.is_break()
                || (filter.admits(&entry) && each(entry, hash).is_break())
            {
                return Ok(());
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
) -> Result<ControlFlow<()>, StoreError> {
    while let Some(record) = records.next_if(|record| record.begun() < until)? {
        if filter.admits(&record) && each(record, Link::default()).is_break() {
            return Ok(ControlFlow::Break(()));
        }
    }
    Ok(ControlFlow::Continue(()))
}

/// Calls `each` with the entries and the records of repeats of these kinds, newest first, until `each`
/// returns `Break`, they are older than `since`, or `time` is over. Returns false if the time was over.
pub(super) fn review(
    engine: &Engine,
    kinds: &[AuditEvent],
    (since, time): (UnixSeconds, Duration),
    each: EachEntry<'_>,
) -> Result<bool, StoreError> {
    let deadline = Instant::now() + time;
    let names: Vec<&'static str> = kinds.iter().map(|kind| kind.name()).collect();
    let is_repeated = |kind: &AuditEvent| matches!(kind, AuditEvent::Reissued | AuditEvent::Refused);
    let mut records = kinds.iter().any(is_repeated).then(|| Pages::newest_first(engine));
    // Calls `each` with the records that begin at this time or later. If that ends the review, returns
    // the result of the review.
    let mut review_records = |from: UnixSeconds, each: EachEntry<'_>| -> Result<Option<bool>, StoreError> {
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
    // A record is about a single day, so an older one has no request since `since`.
    let oldest = day(since).saturating_mul(86_400);
    catch_up(engine)?;
    let mut before = i64::MAX;
    loop {
        // The condition on `at` is left out, so that the statement reads a bounded number of rows.
        let sql = format!(
            "SELECT {COLUMNS}, event = ANY ($2) FROM audit_entry WHERE seq < $1 ORDER BY seq DESC LIMIT {AT_ONCE}"
        );
        let names = names.clone();
        let page: Vec<(bool, (AuditEntry, Link))> = engine.read_now(async move |session: &Session| {
            let rows = session.rows(&sql, values![before, names]).await?;
            rows.iter().map(|row| Ok((column(row, 3)?, entry(row)?))).collect()
        })?;
        let Some((_, (last, _))) = page.last() else {
            return Ok(review_records(oldest, each)?.unwrap_or(true));
        };
        before = last.seq.cast_signed();
        let is_older = page.iter().all(|(_, (entry, _))| entry.at < since);
        for (_, (entry, hash)) in page.into_iter().filter(|(is_wanted, _)| *is_wanted) {
            if entry.at < since {
                continue;
            }
            if let Some(is_whole) = review_records(entry.at, each)? {
                return Ok(is_whole);
            }
            if each(entry, hash).is_break() {
                return Ok(true);
            }
        }
        if is_older {
            return Ok(review_records(oldest, each)?.unwrap_or(true));
        }
        if Instant::now() >= deadline {
            return Ok(false);
        }
    }
}

/// Verifies the chain in one state of the database.
pub(super) fn verify(engine: &Engine, hash_at: &mut dyn FnMut(u64, &Link)) -> Result<Chain, StoreError> {
    const CHAIN: &str = "SELECT anchorSeq, anchorHash, headSeq, headHash FROM audit_chain";
    catch_up(engine)?;
    let state = engine.blocking()?;
    let (anchor, head) = state.run(async |session| {
        session.run(SNAPSHOT).await?;
        two_heads(&session.one(CHAIN, &[]).await?)
    })?;
    let mut verification = Verification::new(anchor, head);
    let mut after = i64::MIN;
    loop {
        let sql =
            format!("SELECT seq, line, hash FROM audit_entry WHERE seq > $1 ORDER BY seq LIMIT {AT_ONCE}");
        let page = state.run(async |session| session.rows(&sql, values![after]).await)?;
        let Some(last) = page.last() else { break };
        let failed = |failure: Failure| failure.into_store_error(engine.database());
        after = column(last, 0).map_err(failed)?;
        for row in &page {
            let read = || Ok((number(row, 0)?, column::<&str>(row, 1)?, hash(row, 2)?));
            let (seq, line, hash) = read().map_err(failed)?;
            let block = StoredBlock { first: seq, last: seq, text: line, hash: &hash };
            verification.block(block, [line].into_iter());
            hash_at(seq, &hash);
        }
    }
    Ok(verification.end())
}

/// Returns the number of entries at the beginning of the log that have expired, pending ones included.
async fn expired(session: &Session, keep: Keep, now: UnixSeconds) -> Result<u64, Failure> {
    const COUNT: &str = "SELECT headSeq - anchorSeq + (SELECT count(*) FROM audit_pending) FROM audit_chain";
    const OLD: &str = "SELECT at FROM audit_entry ORDER BY seq LIMIT $1";
    let has = number(&session.one(COUNT, &[]).await?, 0)?;
    // One percent more than necessary is removed, so that not every new entry causes pruning. At least
    // one entry more is removed, to make room for the entry about the pruning.
    let surplus = |rows: u64| has - rows + (rows / 100).max(1);
    let surplus = keep.rows.map(|rows| rows.max(1)).filter(|rows| has > *rows).map_or(0, surplus);
    let mut old = 0;
    if let Some(days) = keep.days {
        let oldest = now - i64::from(days) * 86_400;
        let most = PRUNED_AT_ONCE.cast_signed();
        let times = session.rows(OLD, values![most]).await?;
        for time in &times {
            if column::<i64>(time, 0)? >= oldest {
                break;
            }
            old += 1;
        }
    }
    Ok(surplus.max(old).min(PRUNED_AT_ONCE))
}

/// Returns whether there are expired entries or records of repeats.
pub(super) async fn has_expired(session: &Session, keep: Keep, now: UnixSeconds) -> Result<bool, Failure> {
    Ok(expired(session, keep, now).await? > 0 || repeats::expired(session, keep, now).await?.is_some())
}

/// Removes expired entries or, if there are none, expired records of repeats, oldest first and up to a
/// limited number. The chain then begins after the removed entries, and a new entry records that.
pub(super) async fn prune(session: &Session, keep: Keep, now: UnixSeconds) -> Result<Counts, Failure> {
    // Pruning stops at a gap in the numbers, so that a verification still finds the gap.
    const LAST: &str = "SELECT seq, hash FROM audit_entry WHERE seq = $1 \
                        AND (SELECT count(*) FROM audit_entry WHERE seq <= $1) = $1 - $2";
    const REMOVE: &str = "DELETE FROM audit_entry WHERE seq <= $1";
    const SET_ANCHOR: &str = "UPDATE audit_chain SET anchorSeq = $1, anchorHash = $2 WHERE id = 0";
    let mut chain = LockedChain::extend(session).await?;
    let anchor = chain.anchor.0;
    let last = (anchor + expired(session, keep, now).await?).min(chain.head.0);
    let row = session.row(LAST, values![last.cast_signed(), anchor.cast_signed()]).await?;
    let Some(row) = row.filter(|_| last > anchor) else {
        let repeats = repeats::prune(session, keep, now).await?;
        return Ok(Counts { changes: 0, repeats });
    };
    let hash = hash(&row, 1)?;
    session.execute(REMOVE, values![last.cast_signed()]).await?;
    session.execute(SET_ANCHOR, values![last.cast_signed(), &hash[..]]).await?;
    let entry = AuditEntry {
        detail: Some(pruning(last - anchor, last, &hash)),
        ..AuditEntry::new(AuditEvent::Pruned, now)
    };
    let (event, line) = (entry.event.name(), entry.line());
    chain.put(session, &[Line { device: None, at: now, event, line: &line }]).await?;
    Ok(Counts { changes: last - anchor, repeats: 0 })
}
