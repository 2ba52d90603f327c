//! Lists what a restore would undo: what the audit log of the database says has happened since the
//! backup. Reads the database and the backup, and changes neither.

use std::{collections::HashSet, path::Path};

use rusqlite::{Connection, OptionalExtension, Transaction, TransactionBehavior};

use super::{audit, store_error};
use crate::{
    device::DeviceId,
    store::{
        StoreError,
        audit::{AuditEntry, AuditEvent, Chain, Link},
        backup::{Sample, Undone},
    },
};

/// Lists what has happened since the backup. `now` is a connection to the database at `path`, and
/// `chain` the backup's audit log.
pub(super) fn list(
    now: &Connection,
    path: &Path,
    backup: &Connection,
    chain: &Chain,
) -> Result<Undone, StoreError> {
    let failed = |error| store_error(path, error);
    let state = Transaction::new_unchecked(now, TransactionBehavior::Deferred).map_err(failed)?;
    compare(&state, backup, chain).map_err(failed)
}

fn compare(now: &Connection, backup: &Connection, chain: &Chain) -> rusqlite::Result<Undone> {
    let mut undone = Undone::default();
    if !audit::continues(now, chain.last, &chain.hash)? {
        undone.is_other = true;
        return Ok(undone);
    }
    let pruned = audit::pruned(now)?;
    undone.pruned = pruned.saturating_sub(chain.last);
    let mut seen = HashSet::new();
    let mut note = |entry: AuditEntry, _: Link| -> rusqlite::Result<()> {
        undone.entries += 1;
        let sample = match entry.event {
            AuditEvent::Issued => &mut undone.issued,
            AuditEvent::Registered => &mut undone.registered,
            AuditEvent::Imported | AuditEvent::Undone => &mut undone.imported,
            AuditEvent::Disabled | AuditEvent::Enabled | AuditEvent::Deleted => {
                // A device may have changed more than once; only its last state counts.
                let Some(id) = &entry.device else { return Ok(()) };
                let [now, before] = [state_of(now, id)?, state_of(backup, id)?];
                let sample = match (before.as_deref(), now.as_deref()) {
                    (Some("enabled"), Some("disabled")) => &mut undone.disabled,
                    (Some("disabled"), Some("enabled")) => &mut undone.enabled,
                    (Some(_), None) => &mut undone.deleted,
                    _ => return Ok(()),
                };
                if !seen.insert(id.clone()) {
                    return Ok(());
                }
                sample
            }
            _ => return Ok(()),
        };
        sample.add(|| match entry {
            AuditEntry { device: Some(device), .. } => device.to_string(),
            AuditEntry { detail, .. } => detail.unwrap_or_default(),
        });
        Ok(())
    };
    audit::entries_after(now, chain.last, &mut note)?;
    Ok(undone)
}

fn state_of(connection: &Connection, id: &DeviceId) -> rusqlite::Result<Option<String>> {
    connection
        .prepare_cached("SELECT state FROM device_table WHERE deviceId = ?1")?
        .query_row([id.as_str()], |row| row.get(0))
        .optional()
}

impl Sample {
    fn add(&mut self, text: impl FnOnce() -> String) {
        self.count += 1;
        if self.first.len() < Self::SHOWN {
            self.first.push(text());
        }
    }
}
