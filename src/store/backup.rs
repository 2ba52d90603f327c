//! Backups of a store that is a single file, and their restoration.

use super::audit::Chain;
pub use super::sqlite::backup::{Restorable, examine, is_in_use};

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
