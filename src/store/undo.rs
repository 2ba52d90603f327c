//! Numbers of imports, and rules for undoing an import. The rules are the same for every store.
//! This module performs no I/O.

use std::{fmt, str::FromStr};

use super::{Actor, StoreError, UnixSeconds, claim::new_id};
use crate::device::DeviceId;

/// Minimum time for which a store remembers an import, in seconds: 30 days. The first import after
/// this time removes the old import's record, together with the former values of its rows.
pub const UNDOABLE: UnixSeconds = 30 * 86_400;

/// Maximum number of imports that a store remembers.
pub const REMEMBERED: usize = 1000;

/// Number of an import, shown as 8 hex digits. The number is random, so that two processes do not
/// choose the same number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ImportId(pub u32);

impl ImportId {
    /// Returns a random number for a new import.
    pub fn random() -> Result<Self, StoreError> {
        // Takes the low 32 bits of 63 random bits. A store may give the number a minus sign, so it
        // is not 0.
        new_id().map(|id| Self((id as u32).max(1)))
    }
}

impl fmt::Display for ImportId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}", self.0)
    }
}

impl FromStr for ImportId {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let is_hex = text.len() == 8 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        let id = is_hex.then(|| u32::from_str_radix(text, 16).ok()).flatten();
        id.map(Self).ok_or_else(|| "expected 8 hex digits, as `certdist import list` shows them".to_owned())
    }
}

/// Effect of an import on the key of a device that was in the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyChange {
    /// The device keeps its key, or has no key.
    None,
    /// The device had no key before.
    Added,
    /// The device has a second key that it did not have before.
    NextAdded,
    /// The former key is no longer there.
    Lost,
}

impl KeyChange {
    /// Returns the change of a device that has also lost its former key, if `lost`, with its former
    /// enrollment.
    pub(crate) fn or_lost(self, lost: bool) -> Self {
        if lost && self == Self::None { Self::Lost } else { self }
    }
}

/// An import that added or changed devices.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImportRecord {
    /// Number of the import.
    pub id: ImportId,
    /// Time of the import.
    pub at: UnixSeconds,
    /// Operator who imported.
    pub who: String,
    /// Name of the file.
    pub file: String,
    /// Devices that the import added.
    pub added: u64,
    /// Devices that the import changed.
    pub changed: u64,
    /// Time at which the import was undone.
    pub undone: Option<UnixSeconds>,
}

/// Request to undo an import.
#[derive(Debug, Clone, Copy)]
pub struct Undo<'a> {
    /// Number of the import.
    pub id: ImportId,
    /// Operator who undoes the import, for the audit log.
    pub by: &'a Actor,
    /// Set to report what would change, without changing it.
    pub dry_run: bool,
    /// Set to leave devices that have changed since the import, or that need a second key from it, as
    /// they are. If not set, such a device makes the undo fail.
    pub rest: bool,
}

/// Result of undoing an import: the numbers of its devices that were removed, restored and left.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Undone {
    /// Devices that the import had added, and that were removed.
    pub removed: u64,
    /// Removed devices whose certificate came with the import and was removed with the device.
    pub certificates: u64,
    /// Devices that the import had changed, and that have their former values again.
    pub restored: u64,
    /// Devices that stay as they are, or are no longer in the table.
    pub left: u64,
}

impl Undone {
    /// Returns the detail of the audit entry about the undo of import `id`, whose file this was.
    pub(super) fn detail(&self, id: ImportId, file: &str) -> String {
        let Self { removed, restored, left, .. } = self;
        format!("import {id} of {file}: {removed} devices removed, {restored} restored, {left} left")
    }
}

/// Devices of an import that have changed since the import, that have used the second key from it last,
/// or that are being registered. An undo leaves them as they are.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Left {
    /// Number of these devices that are in the table.
    pub devices: u64,
    /// The first of these devices, in order of device ID.
    pub first: Vec<DeviceId>,
}

/// Reason why an import was not undone. The table is unchanged.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotUndone {
    /// The store never had a record of the import, or has already removed it.
    #[error("no import of the last 30 days has the number {0}; `certdist import list` shows them")]
    Unknown(ImportId),
    /// The import was already undone.
    #[error("import {0} was undone already")]
    Again(ImportId),
    /// Devices have changed since the import, or have used the second key from it last, and may not be
    /// able to make a handshake without it.
    #[error(
        "{count} of the {all} devices of import {id} were registered, issued, disabled, enabled, deleted, or changed by \
         another import since, are being registered, or have used their second key from it last; to undo the rest, \
         use --rest"
    )]
    Changed {
        /// Number of the import.
        id: ImportId,
        /// Number of these devices.
        count: u64,
        /// Number of all devices that the import added or changed.
        all: u64,
    },
    /// The import replaced or removed keys, which are not kept.
    #[error(
        "import {id} replaced or removed the keys of {count} devices, and former keys are not kept; import their \
         former file again instead"
    )]
    Keys {
        /// Number of the import.
        id: ImportId,
        /// Number of devices that lost their key.
        count: u64,
    },
    /// The former name or `IotId` of a device belongs to another device now.
    #[error("device {device} cannot be restored: {reason}; give one of them another name first")]
    Conflict {
        /// The device.
        device: String,
        /// Explanation for the operator.
        reason: String,
    },
}

/// Error of an attempt to undo an import.
#[derive(Debug, thiserror::Error)]
pub enum UndoError {
    /// The import cannot be undone.
    #[error(transparent)]
    NotUndone(#[from] NotUndone),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Checks whether an import may be undone. `untouched` is the number of its devices that have not
/// changed since the import and need no second key from it. `lost_keys` is the number of its devices
/// whose key the import replaced or removed. Returns the number of devices that the undo does not
/// change.
pub fn may_undo(
    record: &ImportRecord,
    how: Undo<'_>,
    untouched: u64,
    lost_keys: u64,
) -> Result<u64, NotUndone> {
    let id = record.id;
    if record.undone.is_some() {
        return Err(NotUndone::Again(id));
    }
    if lost_keys > 0 {
        return Err(NotUndone::Keys { id, count: lost_keys });
    }
    let all = record.added + record.changed;
    match all.saturating_sub(untouched) {
        0 => Ok(0),
        left if how.rest => Ok(left),
        count => Err(NotUndone::Changed { id, count, all }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_eight_hex_digits() {
        assert_eq!(ImportId(0x1f).to_string(), "0000001f");
        assert_eq!("0000001F".parse(), Ok(ImportId(0x1f)));
        for text in ["", "1f", "0000001g", "+000001f", "0000001f0"] {
            assert!(text.parse::<ImportId>().is_err(), "{text}");
        }
        assert_ne!(ImportId::random().unwrap(), ImportId::random().unwrap());
    }

    #[test]
    fn an_import_is_undone_only_whole_unless_the_rest_is_asked_for() {
        let by = Actor::system_user();
        let (id, file, who) = (ImportId(7), "a.csv".to_owned(), "root".to_owned());
        let record = ImportRecord { id, at: 1000, who, file, added: 5, changed: 2, undone: None };
        let how = Undo { id, by: &by, dry_run: false, rest: false };
        assert_eq!(may_undo(&record, how, 7, 0), Ok(0));
        assert_eq!(may_undo(&record, how, 4, 0), Err(NotUndone::Changed { id, count: 3, all: 7 }));
        assert_eq!(may_undo(&record, Undo { rest: true, ..how }, 4, 0), Ok(3));
        assert_eq!(may_undo(&record, how, 7, 1), Err(NotUndone::Keys { id, count: 1 }));
        let undone = ImportRecord { undone: Some(1001), ..record };
        assert_eq!(may_undo(&undone, how, 0, 0), Err(NotUndone::Again(id)));
    }
}
