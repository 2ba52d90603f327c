//! Queue of audit entries for which no caller waits. They are written in groups, over a
//! separate connection with a small cache, so that the ever-growing log does not displace the
//! writer's cached pages.

use std::{
    io,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, SyncSender, sync_channel},
    },
};

use rusqlite::{Connection, Transaction, TransactionBehavior};

use super::{BLOCK, index, kept, put};
use crate::store::{
    StoreError,
    audit::{Asked, AuditEntry, AuditEvent},
    sqlite::{connection, store_error, writer::Backlog},
    unix_now,
};

/// Maximum number of waiting entries. At 10,000 answers a second, the queue is full after six
/// seconds, which is longer than an import holds its lock. A full queue takes about 14 MB.
const QUEUE: usize = 65_536;

/// Maximum number of entries in one transaction. A transaction takes a few milliseconds, and a
/// first issue may have to wait for it.
const GROUP: usize = 4 * BLOCK;

/// Sending end of the queue.
pub(in crate::store::sqlite) struct Queue {
    entries: SyncSender<String>,
    dropped: Arc<AtomicU64>,
}

/// Receiving end of the queue, with what the writer needs to write its entries.
pub(in crate::store::sqlite) struct Waiting {
    connection: Connection,
    path: Arc<Path>,
    entries: Receiver<String>,
    dropped: Arc<AtomicU64>,
    group: Vec<String>,
    /// Set once this process has looked for the file of kept entries.
    has_looked: bool,
}

pub(in crate::store::sqlite) fn queue(path: Arc<Path>) -> Result<(Queue, Waiting), StoreError> {
    let (sender, entries) = sync_channel(QUEUE);
    let dropped = Arc::new(AtomicU64::new(0));
    let connection = connection::open_backlog(&path)?;
    let waiting =
        Waiting { connection, path, entries, dropped: dropped.clone(), group: Vec::new(), has_looked: false };
    Ok((Queue { entries: sender, dropped }, waiting))
}

impl Queue {
    /// Adds an entry, or counts it as dropped if the queue is full. Wakes no thread, because the
    /// writer checks the queue several times a second.
    pub(in crate::store::sqlite) fn push(&self, asked: Asked) {
        if self.entries.try_send(asked.into_line()).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Backlog for Waiting {
    fn keep(&mut self) {
        self.group.extend(self.entries.try_iter());
        let lines = std::mem::take(&mut self.group);
        if let Err(error) = kept::append(&self.path, &lines) {
            tracing::error!(entries = lines.len(), %error, "the last entries of the audit log are lost: they could not be kept in a file");
        }
    }

    fn write_some(&mut self) -> Result<bool, StoreError> {
        let room = GROUP.saturating_sub(self.group.len());
        self.group.extend(self.entries.try_iter().take(room));
        let dropped = self.dropped.swap(0, Ordering::Relaxed);
        if dropped > 0 {
            tracing::warn!(entries = dropped, "the audit log has gaps: too many entries were waiting");
            let detail = Some(format!("{dropped} entries"));
            let entry = AuditEntry { detail, ..AuditEntry::new(AuditEvent::Dropped, unix_now()) };
            self.group.push(entry.line());
        }
        self.write_kept()?;
        let is_full = self.group.len() >= GROUP;
        let is_behind = self.write().map_err(|error| store_error(&self.path, error))?;
        self.group.clear();
        Ok(is_full || is_behind)
    }
}

impl Waiting {
    /// Writes, once, the entries that an earlier process has kept in a file.
    fn write_kept(&mut self) -> Result<(), StoreError> {
        if self.has_looked {
            return Ok(());
        }
        let failed = |error: io::Error| {
            StoreError::Failed(format!("{}: {error}", kept::path_of(&self.path).display()))
        };
        if let Some(kept) = kept::read(&self.path).map_err(failed)? {
            self.put_all(&kept.lines).map_err(|error| store_error(&self.path, error))?;
            if kept.unreadable > 0 {
                tracing::warn!(
                    lines = kept.unreadable,
                    "lines in the file of kept audit entries are not readable"
                );
            }
            kept.written().map_err(failed)?;
        }
        self.has_looked = true;
        Ok(())
    }

    fn put_all(&self, lines: &[String]) -> rusqlite::Result<()> {
        let transaction = Transaction::new_unchecked(&self.connection, TransactionBehavior::Immediate)?;
        for block in lines.chunks(BLOCK) {
            put(&transaction, block)?;
        }
        transaction.commit()
    }

    /// Writes the whole group or nothing of it, and the next part of the index if it is due.
    /// Returns whether another part may be due.
    fn write(&self) -> rusqlite::Result<bool> {
        if self.group.is_empty() && !index::is_behind(&self.connection)? {
            return Ok(false);
        }
        let transaction = Transaction::new_unchecked(&self.connection, TransactionBehavior::Immediate)?;
        for block in self.group.chunks(BLOCK) {
            put(&transaction, block)?;
        }
        let is_behind = index::add_part(&transaction)?;
        transaction.commit()?;
        Ok(is_behind)
    }
}
