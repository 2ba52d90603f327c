//! Backups of a store that is a single file, and their restoration.

pub use super::sqlite::{
    backup::{Restorable, can_be_at, target},
    lock::Lock,
};
use super::{StoreError, audit::Chain};

/// Content of a store or of its backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contents {
    /// Devices in the table.
    pub devices: u64,
    /// Keys of individual devices.
    pub psks: u64,
    /// IDs of the database keys under which the store's secrets are sealed.
    pub keys: Vec<String>,
    /// Secrets that are not sealed.
    pub clear: u64,
    /// Orders for IoT Platform that are not carried out yet.
    pub orders: u64,
    /// Result of verifying the store's audit log.
    pub audit: Chain,
}

/// Kind of file at the path of the database, before a restore replaces the file.
#[derive(Debug)]
pub enum Target {
    /// No file, or an empty one.
    Nothing,
    /// An undamaged database of the current version.
    Current(Contents),
    /// A database of an older version, with a sentence that describes it.
    Older(StoreError),
    /// A damaged database, a database of a newer version, or a file of another kind, with a
    /// sentence that describes it.
    Damaged(StoreError),
}

/// Changes since a backup, which a restore would undo, according to the database's audit log.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SinceBackup {
    /// Number of audit entries since the backup that are still in the database's log.
    pub entries: u64,
    /// Number of audit entries since the backup that were pruned.
    pub pruned: u64,
    /// Set if the database's audit log does not continue the audit log of the backup. In this case,
    /// the other fields are empty.
    pub is_other: bool,
    /// Devices that are disabled and would become enabled.
    pub disabled: Sample,
    /// Devices that are enabled and would become disabled.
    pub enabled: Sample,
    /// Devices that were deleted and would come back.
    pub deleted: Sample,
    /// Devices that were reset, and would count as issued or refused again.
    pub reset: Sample,
    /// Devices that were rotated, and would have their former certificates again, which IoT Platform
    /// no longer accepts.
    pub rotated: Sample,
    /// Devices that were moved to another target, and would have their former certificates again.
    pub moved: Sample,
    /// Devices whose roll of keys has ended, and that would have both keys again.
    pub rekeyed: Sample,
    /// First issues of certificates since the backup.
    pub issued: Sample,
    /// Registrations at IoT Platform since the backup.
    pub registered: Sample,
    /// Imports since the backup that are in effect, each as its audit entry describes it.
    pub imported: Sample,
    /// Imports that are in the backup, were undone after the backup, and would take effect again,
    /// each as its audit entry describes it.
    pub returning: Sample,
}

/// Length of a list, and its first items.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sample {
    /// Number of all items.
    pub count: u64,
    /// The first items, at most [`SHOWN`](Self::SHOWN).
    pub first: Vec<String>,
}

impl Sample {
    /// Maximum number of items in `first`.
    pub const SHOWN: usize = 20;
}
