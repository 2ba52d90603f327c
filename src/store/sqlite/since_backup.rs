//! Lists the changes that a restore would undo. These are the changes since the backup, according
//! to the audit log of the database. Reads the database and the backup without changing them.

use std::{collections::HashSet, path::Path};

use rusqlite::{Connection, OptionalExtension, Transaction, TransactionBehavior};

use super::{audit, imports, store_error};
use crate::{
    device::DeviceId,
    store::{
        StoreError, UnixSeconds,
        audit::{AuditEntry, AuditEvent, Chain, Link},
        backup::{Sample, SinceBackup},
        check,
        undo::ImportId,
    },
};

/// Lists the changes since the backup. `now` is a connection to the database at `path`, and `chain`
/// describes the audit log of the backup.
pub(super) fn list(
    now: &Connection,
    path: &Path,
    backup: &Connection,
    chain: &Chain,
) -> Result<SinceBackup, StoreError> {
    let failed = |error| store_error(path, error);
    let state = Transaction::new_unchecked(now, TransactionBehavior::Deferred).map_err(failed)?;
    compare(&state, backup, chain).map_err(failed)
}

fn compare(now: &Connection, backup: &Connection, chain: &Chain) -> rusqlite::Result<SinceBackup> {
    let mut since = SinceBackup::default();
    if !audit::continues(now, chain.last, &chain.hash)? {
        since.is_other = true;
        return Ok(since);
    }
    let pruned = audit::pruned(now)?;
    since.pruned = pruned.saturating_sub(chain.last);
    let mut imports = undone_since(now, backup)?;
    let mut seen = Seen::default();
    let mut note = |entry: AuditEntry, _: Link| -> rusqlite::Result<()> {
        since.entries += 1;
        let sample = match (entry.event, &entry.device) {
            // An issue before a reset no longer counts. Only the issue in the device's present
            // state is listed.
            (AuditEvent::Issued, Some(id)) => {
                let [now, before] =
                    [state_of(now, id)?, state_of(backup, id)?].map(Option::unwrap_or_default);
                if now.issued != Some(entry.at) || before.issued.is_some() || !seen.first_at(entry.at, id) {
                    return Ok(());
                }
                &mut since.issued
            }
            (AuditEvent::Registered, _) => &mut since.registered,
            (AuditEvent::Imported, _) => {
                let detail = entry.detail.as_deref().unwrap_or_default();
                if let Some(at) = imports.iter().position(|counts| detail.starts_with(counts)) {
                    imports.swap_remove(at);
                    return Ok(());
                }
                &mut since.imported
            }
            (AuditEvent::Undone, _) => {
                if !is_import_of(backup, entry.detail.as_deref().unwrap_or_default())? {
                    return Ok(());
                }
                &mut since.returning
            }
            (AuditEvent::Reset, Some(id)) => {
                let [Some(now), Some(before)] = [state_of(now, id)?, state_of(backup, id)?] else {
                    return Ok(());
                };
                let had = before.issued.is_some() || before.refusal.is_some();
                let is_reset = before.issued != now.issued || before.refusal != now.refusal;
                if !had || !is_reset || !seen.reset.insert(id.clone()) {
                    return Ok(());
                }
                &mut since.reset
            }
            (AuditEvent::Rotated, Some(id)) => {
                let has_certificate = state_of(backup, id)?.is_some_and(|before| before.has_certificate);
                if !has_certificate || !seen.rotated.insert(id.clone()) {
                    return Ok(());
                }
                &mut since.rotated
            }
            (AuditEvent::Moved, Some(id)) => {
                let has_certificate = state_of(backup, id)?.is_some_and(|before| before.has_certificate);
                if !has_certificate || !seen.moved.insert(id.clone()) {
                    return Ok(());
                }
                &mut since.moved
            }
            (AuditEvent::Rekeyed, Some(id)) => {
                if state_of(backup, id)?.is_none() || !seen.rekeyed.insert(id.clone()) {
                    return Ok(());
                }
                &mut since.rekeyed
            }
            (AuditEvent::Disabled | AuditEvent::Enabled | AuditEvent::Deleted, Some(id)) => {
                // A device may have changed more than once; only its last state counts.
                let [now, before] = [state_of(now, id)?, state_of(backup, id)?];
                let enabled = |device: &Option<State>| device.as_ref().map(|device| device.enabled);
                let sample = match (enabled(&before), enabled(&now)) {
                    (Some(true), Some(false)) => &mut since.disabled,
                    (Some(false), Some(true)) => &mut since.enabled,
                    (Some(_), None) => &mut since.deleted,
                    _ => return Ok(()),
                };
                if !seen.changed.insert(id.clone()) {
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
    Ok(since)
}

/// Devices that have already been listed.
#[derive(Default)]
struct Seen {
    changed: HashSet<DeviceId>,
    reset: HashSet<DeviceId>,
    rotated: HashSet<DeviceId>,
    moved: HashSet<DeviceId>,
    rekeyed: HashSet<DeviceId>,
    /// Devices of which an issue at the time `second` was listed. An issue is listed only if the
    /// device's row has the same time, so it is enough to remember the devices of one second.
    issued: HashSet<DeviceId>,
    second: UnixSeconds,
}

impl Seen {
    /// Notes an issue of a device in this second. Returns whether the device had no such issue
    /// before.
    fn first_at(&mut self, at: UnixSeconds, id: &DeviceId) -> bool {
        if self.second != at {
            self.second = at;
            self.issued.clear();
        }
        self.issued.insert(id.clone())
    }
}

/// Part of a device's state that an operator, a registration or an issue can change.
#[derive(Default)]
struct State {
    enabled: bool,
    issued: Option<UnixSeconds>,
    refusal: Option<String>,
    has_certificate: bool,
}

fn state_of(connection: &Connection, id: &DeviceId) -> rusqlite::Result<Option<State>> {
    connection
        .prepare_cached(
            "SELECT state = 'enabled', firstIssued, refusal, deviceSecret IS NOT NULL FROM device_table \
             WHERE deviceId = ?1",
        )?
        .query_row([id.as_str()], |row| {
            Ok(State {
                enabled: row.get(0)?,
                issued: row.get(1)?,
                refusal: row.get(2)?,
                has_certificate: row.get(3)?,
            })
        })
        .optional()
}

/// Returns the beginnings of the audit entries of imports that were both made and undone after the
/// backup.
fn undone_since(now: &Connection, backup: &Connection) -> rusqlite::Result<Vec<String>> {
    let imports = imports::all(now)?.into_iter().filter(|import| import.undone.is_some());
    let mut counts = Vec::new();
    for import in imports {
        if !is_import(backup, import.id)? {
            counts.push(check::counts(&import.file, import.added, import.changed));
        }
    }
    Ok(counts)
}

/// Returns whether the backup has the import that was undone according to the `detail` of an audit
/// entry. Returns true if the `detail` names no import.
fn is_import_of(backup: &Connection, detail: &str) -> rusqlite::Result<bool> {
    let mut words = detail.split(' ').skip(1);
    let id = words.next().and_then(|id| id.parse::<ImportId>().ok());
    id.map_or(Ok(true), |id| is_import(backup, id))
}

fn is_import(connection: &Connection, id: ImportId) -> rusqlite::Result<bool> {
    let mut statement = connection.prepare_cached("SELECT 1 FROM import WHERE importId = ?1")?;
    statement.exists([id.0])
}

impl Sample {
    fn add(&mut self, text: impl FnOnce() -> String) {
        self.count += 1;
        if self.first.len() < Self::SHOWN {
            self.first.push(text());
        }
    }
}
