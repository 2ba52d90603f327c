//! Backups of a store that is a single file, and their restoration.

use super::audit::Chain;
pub use super::sqlite::{
    backup::{Restorable, can_be_at, examine},
    lock::Lock,
};

/// Content of a store or of its backup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contents {
    /// Devices in the table.
    pub devices: u64,
    /// Keys of individual devices.
    pub psks: u64,
    /// IDs of the keys under which the store's secrets are sealed.
    pub keys: Vec<String>,
    /// Result of verifying the store's audit log.
    pub audit: Chain,
}

/// What a restore would undo, as far as the audit log of the database says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Undone {
    /// Number of audit entries since the backup that the database still has.
    pub entries: u64,
    /// Number of audit entries since the backup that were pruned.
    pub pruned: u64,
    /// Set if the audit log of the database does not continue that of the backup. Then nothing is
    /// listed.
    pub is_other: bool,
    /// Devices that are disabled and would become enabled.
    pub disabled: Sample,
    /// Devices that are enabled and would become disabled.
    pub enabled: Sample,
    /// Devices that were deleted and would come back.
    pub deleted: Sample,
    /// First issues of certificates.
    pub issued: Sample,
    /// Registrations at IoT Platform.
    pub registered: Sample,
    /// Imports, as in the audit log.
    pub imported: Sample,
}

/// The first of several things, and their number.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sample {
    /// Number of all.
    pub count: u64,
    /// The first [`SHOWN`](Self::SHOWN).
    pub first: Vec<String>,
}

impl Sample {
    /// Maximum number of things that are named.
    pub const SHOWN: usize = 20;
}
