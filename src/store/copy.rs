//! Copies the whole content of one store into another one, of the same kind or of a different one, and
//! verifies the copy. A store reads and writes each part of its content as records of portable values,
//! so a new kind of store only has to implement [`Source`] and [`Target`]. This module knows the parts,
//! their order and the sealing of secrets, but no SQL.
//!
//! An interrupted copy can be continued. The target stores the ID of the copy, which identifies the
//! state of the source. Each part is written in its order, so the number of records in the target shows
//! where to continue.

mod parts;

#[cfg(all(test, feature = "simulation"))]
mod tests;

use sha2::{Digest, Sha256};

pub use self::parts::{Column, Kind, Part};
use super::{
    Actor, StoreError,
    audit::{AuditEntry, AuditEvent, Chain, Link},
    unix_now,
};
use crate::{
    device::Secret,
    random,
    seal::{self, Keyring, Place},
};

/// Number of records in one transaction. The copy keeps no more records in memory at a time.
pub const BATCH: usize = 5000;

/// Value of a column. A text may be a secret, so values have no `Debug`.
#[derive(Clone, PartialEq, Eq)]
pub enum Value {
    /// No value.
    None,
    /// A number, or 0 and 1 for false and true.
    Number(i64),
    /// A text.
    Text(Secret),
}

impl Value {
    /// Creates a text.
    pub fn text(text: impl Into<String>) -> Self {
        Self::Text(Secret::new(text.into()))
    }

    /// Returns the text; `None` for any other value.
    pub fn as_text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text.expose()),
            Self::None | Self::Number(_) => None,
        }
    }

    /// Returns the number; `None` for any other value.
    pub fn as_number(&self) -> Option<i64> {
        match self {
            Self::Number(number) => Some(*number),
            Self::None | Self::Text(_) => None,
        }
    }
}

/// Values of the columns of a part, in the order of [`Part::columns`].
pub type Record = Vec<Value>;

/// Receives records one by one. An error ends the reading.
pub type EachRecord<'e> = &'e mut dyn FnMut(Record) -> Result<(), StoreError>;

/// State of a source before it is copied. Two states that differ in anything that an operator or a
/// device has changed are not equal, because each change adds an entry to the audit log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contents {
    /// Number and hash of the last audit entry that was pruned; 0 if none was.
    pub anchor: (u64, Link),
    /// Number of the last audit entry.
    pub last: u64,
    /// Number of records of each part, in the order of [`Part::ALL`].
    pub records: Vec<u64>,
}

impl Contents {
    /// Returns the ID of a copy of this state: 32 hex digits.
    pub fn copy_id(&self) -> String {
        let (pruned, hash) = self.anchor;
        let mut id = Sha256::new().chain_update(b"certdist copy");
        id.update(pruned.to_be_bytes());
        id.update(hash);
        id.update(self.last.to_be_bytes());
        for records in &self.records {
            id.update(records.to_be_bytes());
        }
        hex::encode(&id.finalize()[..16])
    }

    fn total(&self) -> u64 {
        self.records.iter().sum()
    }
}

/// Store whose records can be read. All methods block.
pub trait Readable {
    /// Calls `each` with the records of a part, in the order of the part, except the first `skip`
    /// records. Secrets are not opened. Needs a bounded amount of memory.
    fn read(&self, part: Part, skip: u64, each: EachRecord<'_>) -> Result<(), StoreError>;

    /// Verifies the chain of the audit log.
    fn verify_audit(&self) -> Result<Chain, StoreError>;
}

/// Store that is copied. It must not change meanwhile.
pub trait Source: Readable {
    /// Returns the state when the source was opened, which is the one that [`Readable::read`] reads.
    fn contents(&self) -> Result<Contents, StoreError>;

    /// Returns the present state, which differs from the read state if the store was changed meanwhile.
    fn newest(&self) -> Result<Contents, StoreError>;

    /// Returns the name of the store for messages, without a password.
    fn shown(&self) -> String;
}

/// Store that receives a copy. Until the copy is [complete](Self::complete), no other process can open
/// it.
pub trait Target: Readable {
    /// Begins the copy `id` of a source, or continues it. Fails without changing anything if the store
    /// has any content, or part of another copy. The audit log of the copy begins after `anchor`.
    fn begin(&self, id: &str, source: &str, anchor: (u64, Link)) -> Result<(), StoreError>;

    /// Returns the number of records of a part.
    fn count(&self, part: Part) -> Result<u64, StoreError>;

    /// Adds records to a part that already has the first `done` records, in one durable step. Also
    /// notes the database key of the secrets in the new records: either all of them are sealed under
    /// one key, or none is sealed. Links each audit entry to the entry before it.
    fn write(&self, part: Part, done: u64, records: &[Record]) -> Result<(), StoreError>;

    /// Ends the copy in one durable step: adds the audit entry, and lets other processes open the store.
    fn complete(&self, entry: &AuditEntry) -> Result<(), StoreError>;
}

/// Stage of a copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Records are written.
    Copying,
    /// Records of both stores are read and compared.
    Verifying,
}

/// Receives the stage of a copy, the number of records that are done in this stage, and the number of
/// all records.
pub type Progress<'p> = &'p mut dyn FnMut(Stage, u64, u64);

/// Result of a copy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// ID of the copy.
    pub id: String,
    /// Number of records of each part, in the order of [`Part::ALL`].
    pub records: Vec<(Part, u64)>,
    /// Number of records that an earlier, interrupted run had written.
    pub resumed_at: u64,
    /// Number and hash of the last audit entry in the chain of the source. Entries that were not in the
    /// chain yet are copied, too.
    pub source_head: (u64, Link),
}

/// Copies `source` into `target`, and verifies the copy. Values that are not sealed under the first of
/// these keys are opened and sealed under it. The keys must open all values of the source.
pub fn run(
    source: &dyn Source,
    target: &dyn Target,
    keys: &Keyring,
    by: &Actor,
    progress: Progress<'_>,
) -> Result<Report, StoreError> {
    let shown = source.shown();
    let chain = source.verify_audit()?;
    if let Some(fault) = &chain.fault {
        return Err(StoreError::Unusable(format!(
            "{shown}: its audit log is not complete, and a copy would hide that: {fault}; restore a backup whose log \
             is complete"
        )));
    }
    let contents = source.contents()?;
    let id = contents.copy_id();
    target.begin(&id, &shown, contents.anchor)?;
    let total = contents.total();
    let (mut done, mut resumed_at) = (0, 0);
    for part in Part::ALL {
        let written = target.count(part)?;
        done += written;
        resumed_at += written;
        progress(Stage::Copying, done, total);
        copy_part(source, target, keys, part, written, &mut |more| {
            done += more;
            progress(Stage::Copying, done, total);
        })?;
    }
    let mut compared = 0;
    let mut records = Vec::with_capacity(Part::ALL.len());
    // A hash of a short secret would allow an attacker to guess it. A random salt prevents this. The
    // salt need not be kept, because the hashes are compared only here.
    let salt = random::random().map_err(|error| StoreError::Failed(error.to_string()))?;
    for part in Part::ALL {
        let mut more = || {
            compared += 1;
            if compared % BATCH as u64 == 0 {
                progress(Stage::Verifying, compared, 2 * total);
            }
        };
        let of_source = fingerprint(source, keys, part, &salt, &mut more)?;
        let of_target = fingerprint(target, keys, part, &salt, &mut more)?;
        if of_source != of_target {
            return Err(StoreError::Failed(format!(
                "the copy is not what was copied: {} has {} records in {}, and the copy has {}, or their content \
                 differs; remove the copy and begin again",
                shown,
                of_source.0,
                part.name(),
                of_target.0
            )));
        }
        records.push((part, of_source.0));
    }
    if let Some(fault) = target.verify_audit()?.fault {
        return Err(StoreError::Failed(format!("the audit log of the copy is not complete: {fault}")));
    }
    if source.newest()? != contents {
        return Err(StoreError::Conflict(format!(
            "{shown}: it has changed while it was copied, so the copy is not complete; stop all servers that use it, \
             remove the copy, and begin again"
        )));
    }
    let detail = format!("from {shown}, up to {}, hash {}", chain.last, hex::encode(chain.hash));
    target.complete(&AuditEntry { detail: Some(detail), ..by.entry(AuditEvent::Copied, unix_now()) })?;
    Ok(Report { id, records, resumed_at, source_head: (chain.last, chain.hash) })
}

/// Copies the rest of a part. The target already has the first `written` records. After each step,
/// calls `more` with the number of records of the step.
fn copy_part(
    source: &dyn Source,
    target: &dyn Target,
    keys: &Keyring,
    part: Part,
    mut written: u64,
    more: &mut dyn FnMut(u64),
) -> Result<(), StoreError> {
    let skip = written;
    let mut batch: Vec<Record> = Vec::with_capacity(BATCH);
    let mut flush = |batch: &mut Vec<Record>| {
        if batch.is_empty() {
            return Ok(());
        }
        target.write(part, written, batch)?;
        written += batch.len() as u64;
        more(batch.len() as u64);
        batch.clear();
        Ok(())
    };
    source.read(part, skip, &mut |mut record| {
        reseal(keys, part, &mut record)?;
        batch.push(record);
        if batch.len() == BATCH { flush(&mut batch) } else { Ok(()) }
    })?;
    flush(&mut batch)
}

/// Returns the place of the secret in a column, if the column has secrets.
fn place(part: Part, column: usize, record: &[Value]) -> Option<Place<'_>> {
    if part.columns().get(column)?.kind != Kind::Secret {
        return None;
    }
    let text = |index: usize| record.get(index).and_then(Value::as_text).unwrap_or_default();
    match part {
        Part::Devices => Some(Place::DeviceSecret(text(0))),
        Part::Keys => Some(Place::Psk { identity: text(0), device: text(1) }),
        _ => None,
    }
}

/// Seals each secret of a record under the first key, unless it is sealed under that key already. Opens
/// every secret, so that a value that cannot be opened with any key is found before it is copied.
fn reseal(keys: &Keyring, part: Part, record: &mut Record) -> Result<(), StoreError> {
    let first = keys.first().map(|key| key.to_string());
    for column in 0..record.len() {
        let Some(place) = place(part, column, record) else { continue };
        let Some(stored) = record[column].as_text() else { continue };
        let failed = |error: seal::SealError| StoreError::Failed(error.to_string());
        let clear = keys.open(place, stored).map_err(failed)?;
        if seal::key_of(stored) != first.as_deref() {
            record[column] = Value::Text(keys.seal(place, clear.expose()).map_err(failed)?);
        }
    }
    Ok(())
}

/// Returns the number of records of a part, and a hash of them with their secrets opened.
fn fingerprint(
    store: &(impl Readable + ?Sized),
    keys: &Keyring,
    part: Part,
    salt: &[u8],
    more: &mut dyn FnMut(),
) -> Result<(u64, Link), StoreError> {
    let mut records = 0;
    let mut hash = Sha256::new().chain_update(salt);
    store.read(part, 0, &mut |record| {
        records += 1;
        more();
        for (column, value) in record.iter().enumerate() {
            match value {
                Value::None => hash.update([0]),
                Value::Number(number) => hash.update([&[1][..], &number.to_be_bytes()].concat()),
                Value::Text(text) => {
                    let opened = place(part, column, &record)
                        .map(|place| keys.open(place, text.expose()))
                        .transpose()
                        .map_err(|error| StoreError::Failed(error.to_string()))?;
                    let text = opened.as_ref().unwrap_or(text).expose();
                    hash.update([2]);
                    hash.update((text.len() as u64).to_be_bytes());
                    hash.update(text);
                }
            }
        }
        Ok(())
    })?;
    Ok((records, hash.finalize().into()))
}
