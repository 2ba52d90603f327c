//! The audit log in the database: entries are appended by the writer, whatever
//! process it belongs to, each in one transaction with the head of the chain. Knows
//! the tables of the log, and nothing of who writes what into it.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    time::Duration,
};

use rusqlite::{Connection, OptionalExtension, Row, Transaction, TransactionBehavior, params};

use super::{store_error, writer::Backlog};
use crate::{
    device::DeviceId,
    store::{
        StoreError, UnixSeconds,
        audit::{Asked, AuditEntry, AuditEvent, Keep, Link},
        unix_now,
    },
};

/// Entries that may wait: what 10,000 answers a second make in six seconds, longer
/// than an import keeps its lock. Some 20 MB when it is full.
const QUEUE: usize = 65_536;

/// Entries of one transaction: some 10 ms, for which a first issue may wait.
const GROUP: usize = 1024;

/// Entries that are put into the index of devices at once, in their order: as many as
/// a page of the index has a share of, and as few as can be searched without it.
const INDEXED_AT_ONCE: u64 = 50_000;

/// Entries that are removed in one transaction.
const PRUNED_AT_ONCE: u64 = 10_000;

/// An entry's columns, in the order of [`entry`].
macro_rules! columns {
    () => {
        "seq, at, event, deviceId, enrollment, who, address, detail"
    };
}

/// The end of the queue that entries are put into.
pub(super) struct Queue {
    entries: SyncSender<Box<Asked>>,
    dropped: Arc<AtomicU64>,
}

/// The other end: what is to be written.
pub(super) struct Waiting {
    entries: Receiver<Box<Asked>>,
    dropped: Arc<AtomicU64>,
    group: Vec<AuditEntry>,
    /// How long other transactions wait for their lock.
    wait: Duration,
}

pub(super) fn queue(wait: Duration) -> (Queue, Waiting) {
    let (sender, entries) = sync_channel(QUEUE);
    let dropped = Arc::new(AtomicU64::new(0));
    let waiting = Waiting { entries, dropped: dropped.clone(), group: Vec::new(), wait };
    (Queue { entries: sender, dropped }, waiting)
}

impl Queue {
    /// Wakes nobody: the writer looks by itself, several times a second.
    pub(super) fn push(&self, asked: Asked) {
        if self.entries.try_send(Box::new(asked)).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Backlog for Waiting {
    fn write_some(&mut self, connection: &Connection, path: &Path) -> Result<bool, StoreError> {
        let room = GROUP.saturating_sub(self.group.len());
        self.group.extend(self.entries.try_iter().take(room).map(|asked| AuditEntry::from(*asked)));
        let dropped = self.dropped.swap(0, Ordering::Relaxed);
        if dropped > 0 {
            tracing::warn!(dropped, "the audit log has gaps: too many entries were waiting");
            let mut entry = AuditEntry::new(AuditEvent::Dropped, unix_now());
            entry.detail = Some(format!("{dropped} entries"));
            self.group.push(entry);
        }
        if self.group.is_empty() {
            return Ok(false);
        }
        // Whoever waits for an answer is not to wait for this as well: when another
        // process is writing, the entries wait on.
        let _ = connection.busy_timeout(Duration::ZERO);
        let written = append_all(connection, &self.group);
        let more = self.group.len() >= GROUP;
        if written.is_ok() {
            self.group.clear();
        }
        let indexed = written.and_then(|()| index(connection, INDEXED_AT_ONCE));
        let _ = connection.busy_timeout(self.wait);
        indexed.map_err(|error| store_error(path, error))?;
        Ok(more)
    }
}

fn append_all(connection: &Connection, entries: &[AuditEntry]) -> rusqlite::Result<()> {
    let transaction = Transaction::new_unchecked(connection, TransactionBehavior::Immediate)?;
    let mut head = head(&transaction)?;
    for entry in entries {
        head = put(&transaction, entry, head)?;
    }
    set_head(&transaction, head)?;
    transaction.commit()
}

/// Appends an entry in the transaction that is open.
pub(super) fn append(connection: &Connection, entry: &AuditEntry) -> rusqlite::Result<()> {
    let head = put(connection, entry, head(connection)?)?;
    set_head(connection, head)
}

/// The last entry's number and hash.
type Head = (u64, Link);

fn head(connection: &Connection) -> rusqlite::Result<Head> {
    connection
        .prepare_cached("SELECT headSeq, headHash FROM audit_chain")?
        .query_row((), |row| Ok((row.get::<_, i64>(0)?.cast_unsigned(), row.get(1)?)))
}

fn set_head(connection: &Connection, (seq, hash): Head) -> rusqlite::Result<()> {
    connection
        .prepare_cached("UPDATE audit_chain SET headSeq = ?1, headHash = ?2")?
        .execute(params![seq.cast_signed(), hash])
        .map(drop)
}

fn put(connection: &Connection, entry: &AuditEntry, (seq, previous): Head) -> rusqlite::Result<Head> {
    const SQL: &str =
        concat!("INSERT INTO audit_log (", columns!(), ", hash) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)");
    let seq = seq + 1;
    let hash = entry.link_as(seq, &previous);
    connection.prepare_cached(SQL)?.execute(params![
        seq.cast_signed(),
        entry.at,
        entry.event.name(),
        entry.device.as_ref().map(DeviceId::as_str),
        entry.enrollment,
        entry.who,
        entry.address,
        entry.detail,
        hash
    ])?;
    Ok((seq, hash))
}

fn entry(row: &Row<'_>) -> rusqlite::Result<AuditEntry> {
    let unexpected = |column, error: &str| {
        rusqlite::Error::FromSqlConversionFailure(column, rusqlite::types::Type::Text, error.into())
    };
    let event = AuditEvent::named(row.get_ref(2)?.as_str()?);
    let device: Option<String> = row.get(3)?;
    let device = device.map(|id| DeviceId::parse_sn(&id)).transpose();
    Ok(AuditEntry {
        seq: row.get::<_, i64>(0)?.cast_unsigned(),
        at: row.get(1)?,
        event: event.ok_or_else(|| unexpected(2, "no event has that name"))?,
        device: device.map_err(|error| unexpected(3, &error.to_string()))?,
        enrollment: row.get(4)?,
        who: row.get(5)?,
        address: row.get(6)?,
        detail: row.get(7)?,
    })
}

/// The entries about a device, newest first.
pub(super) fn history(
    connection: &Connection,
    id: &DeviceId,
    limit: usize,
) -> rusqlite::Result<Vec<AuditEntry>> {
    const SQL: &str =
        concat!("SELECT ", columns!(), " FROM audit_log WHERE deviceId = ?1 ORDER BY seq DESC LIMIT ?2");
    connection.prepare_cached(SQL)?.query_map(params![id.as_str(), limit as i64], entry)?.collect()
}

/// Brings the index of devices up to date, when so many entries are not in it.
pub(super) fn index(connection: &Connection, at_once: u64) -> rusqlite::Result<()> {
    const BEHIND: &str = "SELECT indexedSeq, headSeq FROM audit_chain";
    const INDEX: &str = "INSERT INTO audit_device SELECT deviceId, seq FROM audit_log \
                         WHERE seq > ?1 AND seq <= ?2 AND deviceId IS NOT NULL ORDER BY deviceId, seq \
                         ON CONFLICT DO NOTHING";
    let behind = |connection: &Connection| {
        let mut statement = connection.prepare_cached(BEHIND)?;
        statement.query_row((), |row| Ok([row.get::<_, i64>(0)?, row.get(1)?].map(i64::cast_unsigned)))
    };
    let [indexed, head] = behind(connection)?;
    if head.saturating_sub(indexed) < at_once {
        return Ok(());
    }
    let transaction = Transaction::new_unchecked(connection, TransactionBehavior::Immediate)?;
    // Another process may have been faster.
    let [indexed, head] = behind(&transaction)?.map(u64::cast_signed);
    transaction.execute(INDEX, [indexed, head])?;
    transaction.execute("UPDATE audit_chain SET indexedSeq = ?1", [head])?;
    transaction.commit()
}

/// Which entries are meant.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Those about this device.
    pub device: Option<DeviceId>,
    /// Those from then on.
    pub since: Option<UnixSeconds>,
    /// Those before then.
    pub until: Option<UnixSeconds>,
}

/// Calls `each` with the entries in their order, and their hashes.
pub(super) fn export<E>(
    connection: &Connection,
    filter: &Filter,
    mut each: impl FnMut(AuditEntry, Link) -> Result<(), E>,
) -> rusqlite::Result<Result<(), E>> {
    const SQL: &str = concat!(
        "SELECT ",
        columns!(),
        ", hash FROM audit_log WHERE (?1 IS NULL OR deviceId = ?1) AND at >= ?2 AND at < ?3 ORDER BY seq"
    );
    let device = filter.device.as_ref().map(DeviceId::as_str);
    let (since, until) = (filter.since.unwrap_or(i64::MIN), filter.until.unwrap_or(i64::MAX));
    let mut statement = connection.prepare(SQL)?;
    let mut rows = statement.query(params![device, since, until])?;
    while let Some(row) = rows.next()? {
        if let Err(error) = each(entry(row)?, row.get(8)?) {
            return Ok(Err(error));
        }
    }
    Ok(Ok(()))
}

/// What a look at the whole log has shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    /// Entries that are there.
    pub entries: u64,
    /// The last one that was pruned; 0: none was.
    pub pruned: u64,
    /// The last entry; 0: there is none.
    pub last: u64,
    /// The hash of the last entry.
    pub hash: Link,
    /// The first thing that is wrong, as a sentence.
    pub fault: Option<String>,
}

/// Goes through the chain, from one state of the database. `hash_at` is asked of
/// each entry, for whoever has written one down.
pub(super) fn verify(connection: &Connection, hash_at: impl FnMut(u64, &Link)) -> rusqlite::Result<Chain> {
    let state = Transaction::new_unchecked(connection, TransactionBehavior::Deferred)?;
    verify_in(&state, hash_at)
}

/// The same in the transaction that is open, or where nobody writes.
pub(super) fn verify_in(
    connection: &Connection,
    mut hash_at: impl FnMut(u64, &Link),
) -> rusqlite::Result<Chain> {
    const CHAIN: &str = "SELECT anchorSeq, anchorHash, headSeq, headHash FROM audit_chain";
    let (pruned, anchor, last, hash) = connection.query_row(CHAIN, (), |row| {
        let [pruned, last] = [row.get::<_, i64>(0)?, row.get(2)?].map(i64::cast_unsigned);
        Ok((pruned, row.get::<_, Link>(1)?, last, row.get::<_, Link>(3)?))
    })?;
    let mut chain = Chain { entries: 0, pruned, last, hash, fault: None };
    let mut fault = |sentence: String| chain.fault = chain.fault.take().or(Some(sentence));
    let (mut seq, mut previous) = (pruned, anchor);
    let mut signed_off = pruned == 0;
    const ALL: &str = concat!("SELECT ", columns!(), ", hash FROM audit_log ORDER BY seq");
    let mut statement = connection.prepare(ALL)?;
    let mut rows = statement.query(())?;
    while let Some(row) = rows.next()? {
        let number = row.get::<_, i64>(0)?.cast_unsigned();
        if number != seq + 1 {
            fault(match number > seq + 2 {
                true => format!("entries {} to {} are missing", seq + 1, number - 1),
                false => format!("entry {} is missing", seq + 1),
            });
        }
        let stored: Link = row.get(8)?;
        match entry(row) {
            Ok(entry) if number == seq + 1 && entry.link(&previous) != stored => {
                fault(format!("entry {number} was changed"));
            }
            Ok(entry) => {
                signed_off |= entry.event == AuditEvent::Pruned
                    && entry.detail.is_some_and(|detail| detail.ends_with(&anchoring(pruned, &anchor)));
            }
            Err(_) => fault(format!("entry {number} was changed")),
        }
        hash_at(number, &stored);
        (seq, previous) = (number, stored);
        chain.entries += 1;
    }
    if seq < last {
        fault(format!("the last entries, {} to {last}, are missing", seq + 1));
    } else if seq > last || previous != hash {
        fault(format!("the chain ends with entry {last}, which is not the last one or was changed"));
    }
    if !signed_off {
        fault(format!("no entry says that entries up to {pruned} were pruned: the beginning was cut off"));
    }
    Ok(chain)
}

/// How an entry about pruning ends, which the beginning of the chain must agree with.
fn anchoring(seq: u64, hash: &Link) -> String {
    format!("up to {seq}, hash {}", hex::encode(hash))
}

/// Removes entries that need not be kept, the oldest first, and not all at once; how
/// many. The chain then begins where they ended, and an entry says so.
pub(super) fn prune(connection: &Connection, keep: Keep, now: UnixSeconds) -> rusqlite::Result<u64> {
    const CHAIN: &str = "SELECT anchorSeq, headSeq FROM audit_chain";
    const OLD: &str = "SELECT seq, at FROM audit_log WHERE seq > ?1 AND seq <= ?2 ORDER BY seq";
    let [anchor, head] = connection
        .query_row(CHAIN, (), |row| Ok([row.get::<_, i64>(0)?, row.get(1)?].map(i64::cast_unsigned)))?;
    let furthest = (anchor + PRUNED_AT_ONCE).min(head);
    let mut last = anchor;
    if let Some(rows) = keep.rows.filter(|rows| head - anchor > *rows) {
        // A hundredth more than must be, so that not each entry costs another.
        last = (head - rows + rows / 100).min(furthest);
    }
    if let Some(days) = keep.days {
        let oldest = now - i64::from(days) * 86_400;
        let mut statement = connection.prepare_cached(OLD)?;
        let mut rows = statement.query([anchor, furthest].map(u64::cast_signed))?;
        while let Some(row) = rows.next()?
            && row.get::<_, UnixSeconds>(1)? < oldest
        {
            last = last.max(row.get::<_, i64>(0)?.cast_unsigned());
        }
    }
    if last == anchor {
        return Ok(0);
    }
    let hash: Option<Link> = connection
        .query_row("SELECT hash FROM audit_log WHERE seq = ?1", [last.cast_signed()], |row| row.get(0))
        .optional()?;
    // Cut off by somebody else: `verify` is to find it as it is.
    let Some(hash) = hash else { return Ok(0) };
    for sql in [
        "DELETE FROM audit_device WHERE (deviceId, seq) IN \
         (SELECT deviceId, seq FROM audit_log WHERE seq <= ?1)",
        "DELETE FROM audit_log WHERE seq <= ?1",
    ] {
        connection.execute(sql, [last.cast_signed()])?;
    }
    connection.execute(
        "UPDATE audit_chain SET anchorSeq = ?1, anchorHash = ?2",
        params![last.cast_signed(), hash],
    )?;
    let detail = format!("{} entries, {}", last - anchor, anchoring(last, &hash));
    append(connection, &AuditEntry { detail: Some(detail), ..AuditEntry::new(AuditEvent::Pruned, now) })?;
    Ok(last - anchor)
}

/// Who runs this process, for entries about what an operator did.
pub(super) fn os_user() -> String {
    let uid = nix::unistd::Uid::current();
    let name = nix::unistd::User::from_uid(uid).ok().flatten().map(|user| user.name);
    let name = name.unwrap_or_else(|| "?".into());
    // What sudo says is no proof; it is kept beside what is.
    match std::env::var("SUDO_USER") {
        Ok(behind) if !behind.is_empty() && behind.len() <= 64 => {
            format!("{name} (uid {uid}), by sudo from {}", behind.escape_debug())
        }
        _ => format!("{name} (uid {uid})"),
    }
}
