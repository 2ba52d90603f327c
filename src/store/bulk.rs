//! Work on the whole table: imports, exports and counts.

use std::{collections::HashSet, ops::ControlFlow, path::Path, time::Duration};

use super::{
    Actor, DeviceRow, StoreError,
    backup::Contents,
    filter::{Cursor, Filter, Found, Held, Listed, Tally},
    merge::Merged,
    roll::DeviceKeys,
    undo::{ImportId, ImportRecord, Left, Undo, UndoError, Undone},
};
use crate::{
    device::{AskedId, DeviceId, Secret},
    seal::Place,
};

/// Operations on the whole table, for the command line and the console. They block, so an
/// asynchronous caller must run each of them on a separate thread.
pub trait Bulk: Send + Sync {
    /// Imports all rows, or none. An empty column of the file keeps the value in the table. A row
    /// that changes nothing is not written. A row that changes a device clears the device's refusal.
    /// If anything changes, an audit entry names the job's `file` and `by`. The rules are in
    /// [`merge`](super::merge).
    ///
    /// Does not hold up other writers: a long import writes in many short steps. The devices that it
    /// adds all become visible together, at the end. If the import fails or its process is killed,
    /// its changes are taken back.
    ///
    /// Reads all rows, even after a rejected one. Calls `reject` with the index (from 0) of each row
    /// that is not imported: for an unreadable row as soon as it is read, and for the other rejected
    /// rows after all rows were read, in the order of the file. If any row is rejected, nothing is
    /// imported. A dry run reports the same result as the import, but changes nothing and takes no
    /// lock.
    ///
    /// A row is a conflict if it would give two devices the same name in one product, or the same
    /// `IotId`.
    ///
    /// A device that has a certificate keeps its enrollment, product, name, secret and cloud
    /// identifier: a different value in the import is a conflict. A PSK identity that belongs
    /// to another device is also a conflict.
    ///
    /// If the device already has a key, a row with a second key must repeat the device's first key.
    /// For a device that has two keys, a row with one key means: the first key changes nothing; the
    /// second key ends the roll; any other key is a conflict. A row that would remove the key that
    /// the device has used last during its roll is a conflict, too.
    fn import(
        &self,
        job: ImportJob<'_>,
        rows: Rows<'_>,
        reject: Reject<'_>,
    ) -> Result<ImportReport, ImportError>;

    /// Returns a number for a new import: a random one that no import of this store has had.
    fn new_import(&self) -> Result<ImportId, StoreError>;

    /// Returns whether an import or an undo is unfinished, and how many imports and undos there have
    /// been. If the result differs before and after a caller reads the table, the caller may have
    /// seen a part of an import's changes.
    fn import_activity(&self) -> Result<ImportActivity, StoreError>;

    /// Returns the imports that had a number and changed something, newest first. Returns at most
    /// [`undo::REMEMBERED`](super::undo::REMEMBERED) imports.
    fn imports(&self) -> Result<Vec<ImportRecord>, StoreError>;

    /// Returns the remembered imports that added or changed a device, newest first.
    fn imports_of(&self, device: &DeviceId) -> Result<Vec<ImportRecord>, StoreError>;

    /// Returns the number of an import's devices that have changed since the import or are being
    /// registered, and the first `limit` of these devices. After the import was undone, counts all
    /// its devices that are still in the table. Reads the whole table.
    fn left_of(&self, id: ImportId, limit: usize) -> Result<Left, StoreError>;

    /// Undoes an import: removes the devices that the import added, with their keys, and restores the
    /// former values of the devices that it changed. Writes an audit entry. Unless [`Undo::rest`] is
    /// set, fails if one of these devices is being registered or if, since the import, it was
    /// registered, issued, disabled, enabled, deleted or changed by another import. The rules are in
    /// [`undo`](super::undo).
    ///
    /// Does not hold up other writers. All checks come first, and change nothing. Then the devices
    /// to remove disappear at once, and the changed devices get their former values back in many
    /// short steps. A device that changes meanwhile, or is being registered, is left as it is, and
    /// counted as left. If the process is killed, another process completes the undo. A dry run
    /// takes no lock.
    fn undo_import(&self, how: Undo<'_>) -> Result<Undone, UndoError>;

    /// Calls `each` with every row until `each` returns `Break`. The rows are in order of device
    /// ID, and all come from one state of the table.
    fn export(&self, each: Each<'_>) -> Result<(), StoreError>;

    /// Returns each MAC address that the table has only in an unusual spelling, as
    /// [`Store::spelled`](super::Store::spelled) describes. Most tables have none.
    fn spelled_macs(&self) -> Result<HashSet<DeviceId>, StoreError>;

    /// Returns the ID under which the table has a device: the first ID of `asked` that is in the
    /// table or, if none is, the unusual spelling that [`Store::spelled`](super::Store::spelled)
    /// finds for the MAC address.
    fn known_as(&self, asked: &AskedId) -> Result<Option<DeviceId>, StoreError>;

    /// Returns the number of rows. Like the following methods that count, it reads numbers that the
    /// store keeps, and not the rows.
    fn count(&self) -> Result<u64, StoreError>;

    /// Returns the numbers of devices of each enrollment by state, in order of the enrollments'
    /// names.
    fn totals(&self) -> Result<Vec<Totals>, StoreError>;

    /// Returns the number of devices that may be registered but are not registered yet, in one
    /// enrollment, or in all enrollments for `None`.
    fn count_unregistered(&self, enrollment: Option<&str>) -> Result<u64, StoreError>;

    /// Counts the rows of one state of the table, and compares the numbers that the store keeps with
    /// them. Reads the whole table, and holds up no writer. The default implementation is for a
    /// store that keeps no numbers.
    fn check_counts(&self) -> Result<CountCheck, StoreError> {
        Ok(CountCheck { devices: self.count()?, ..CountCheck::default() })
    }

    /// Corrects the numbers that the store keeps, and returns the differences that it has found.
    /// Other processes can write meanwhile. Fails with [`StoreError::Conflict`] if another process
    /// has corrected them meanwhile.
    fn recount(&self) -> Result<CountCheck, StoreError> {
        self.check_counts()
    }

    /// Returns up to `limit` devices that the filter admits, beginning at `from`. The search also
    /// ends once `time` is over, but each call examines a few devices first. A caller that
    /// continues the search therefore always reaches the end of the table.
    fn find(&self, filter: &Filter, from: &Cursor, limit: usize, time: Duration)
    -> Result<Found, StoreError>;

    /// Counts the devices that the filter admits. Takes about `time` at most. If the filter has only
    /// an enrollment, a product and a state, or a reason of a refusal, the store usually keeps the
    /// number and need not search.
    fn tally(&self, filter: &Filter, time: Duration) -> Result<Tally, StoreError>;

    /// Counts the devices whose registration has begun, by enrollment, and those that IoT Platform
    /// refuses, by enrollment and reason. Returns up to `limit` groups of each kind, the largest
    /// first.
    fn held(&self, limit: usize) -> Result<Vec<Held>, StoreError>;

    /// Returns the names of the targets that rows have, in alphabetical order. The work does not
    /// grow with the number of devices.
    fn targets(&self) -> Result<Vec<String>, StoreError>;

    /// Returns the devices of `ids` that are in the table, in the order of `ids`. Opens no secret.
    fn listed(&self, ids: &[DeviceId]) -> Result<Vec<Listed>, StoreError>;

    /// Returns whether any device has a second key. The work does not grow with the number of
    /// devices.
    fn are_rolling(&self) -> Result<bool, StoreError>;

    /// Returns the products of the devices in the table, in order.
    fn products(&self) -> Result<Vec<String>, StoreError>;

    /// Writes one state of the store to a new file (mode 0600), verifies the file, and then gives
    /// the file its final name. `progress` receives the size of the part that is written and the
    /// total size, both in the same unit. The default implementation fails. It is for a store that
    /// is not a file.
    fn back_up(&self, _to: &Path, _progress: &mut dyn FnMut(u64, u64)) -> Result<Contents, StoreError> {
        let reason =
            "a database of this kind has no backup in a file; use its own tools, or `certdist export`";
        Err(StoreError::Failed(reason.into()))
    }
}

/// One row of an import. The values are already validated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImportRow {
    /// Primary key.
    pub device: DeviceId,
    /// Name of the device's enrollment.
    pub enrollment: String,
    /// The enrollment's product. If the row itself gives no product, this product applies to a new
    /// device, and to a device that moves to this enrollment.
    pub enrollment_product: String,
    /// Set if the enrollment is individual. The device must then have a key, in this row or already
    /// in the table.
    pub individual: bool,
    /// Product that the row itself gives. It takes precedence over the enrollment's product.
    pub product_key: Option<String>,
    /// Device name. If the device has no certificate, it will be registered under this name.
    pub device_name: Option<String>,
    /// Device secret, which completes the certificate. A row with a secret also has a device
    /// name.
    pub device_secret: Option<Secret>,
    /// The cloud's own identifier.
    pub iot_id: Option<String>,
    /// PSK identity (1–128 bytes) and key (hex) of a device of an individual enrollment.
    pub key: Option<(String, Secret)>,
    /// Second key (hex), which the device may have as well. A row with a second key also has `key`.
    pub next_key: Option<Secret>,
    /// Target that the row itself gives. It takes precedence over the enrollment's target.
    pub target: Option<String>,
    /// Target of the enrollment, in the form in which the table stores it
    /// ([`target::to_store`](crate::target::to_store)). It applies if this row adds a certificate and
    /// names no target itself.
    pub enrollment_target: Option<String>,
}

impl ImportRow {
    /// Creates a row without optional values, for an enrollment that is not individual.
    pub fn new(device: DeviceId, enrollment: &str, enrollment_product: &str) -> Self {
        Self {
            device,
            enrollment: enrollment.to_owned(),
            enrollment_product: enrollment_product.to_owned(),
            individual: false,
            product_key: None,
            device_name: None,
            device_secret: None,
            iot_id: None,
            key: None,
            next_key: None,
            target: None,
            enrollment_target: None,
        }
    }
}

/// Compares the secret that is stored at a [`Place`] with another secret.
pub type SameSecret<'a> = &'a dyn Fn(Place<'_>, &Secret, &Secret) -> Result<bool, StoreError>;

/// An import without its rows.
#[derive(Clone, Copy)]
pub struct ImportJob<'a> {
    /// Operator who imports, for the audit log.
    pub by: &'a Actor,
    /// Name of the imported file, for the audit log.
    pub file: &'a str,
    /// Number by which the import can be undone later; `None` for an import that cannot be undone.
    pub id: Option<ImportId>,
    /// Set to report what would change, without changing it.
    pub dry_run: bool,
    /// Comparison of an imported secret with the stored secret.
    pub same_secret: SameSecret<'a>,
    /// Receives the number of rows that are checked or written, and the number of all rows, now and
    /// then.
    pub progress: &'a dyn Fn(ImportStage, u64, u64),
}

impl ImportReport {
    /// Counts the effect of one row.
    pub fn count(&mut self, merged: Merged) {
        match merged {
            Merged::Added => self.added += 1,
            Merged::Changed { moves, loses_key } => {
                self.changed += 1;
                self.moved += u64::from(moves);
                self.lost_keys += u64::from(loses_key);
            }
            Merged::Unchanged => self.unchanged += 1,
        }
    }
}

impl<'a> ImportJob<'a> {
    /// Creates a job that compares secrets by their text.
    pub fn new(by: &'a Actor, file: &'a str) -> Self {
        Self {
            by,
            file,
            id: None,
            dry_run: false,
            same_secret: &|_, stored, other| Ok(stored == other),
            progress: &|_, _, _| (),
        }
    }
}

/// Rows of an import in the order of the file. The iterator may block.
pub type Rows<'a> = &'a mut dyn Iterator<Item = Result<ImportRow, Unreadable>>;

/// Receives each rejected row of an import, with the row's index (from 0).
pub type Reject<'a> = &'a mut dyn FnMut(u64, Rejection);

/// Receives each row of an export with its individual keys, if any. Returns whether the export
/// continues.
pub type Each<'a> = &'a mut dyn FnMut(DeviceRow, Option<DeviceKeys>) -> ControlFlow<()>;

/// Result of an import, or of a dry run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ImportReport {
    /// Rows that were added.
    pub added: u64,
    /// Rows that were changed.
    pub changed: u64,
    /// Rows that already matched the table.
    pub unchanged: u64,
    /// Changed rows whose device was in another enrollment.
    pub moved: u64,
    /// Changed rows whose device has lost its former key, so that the import cannot be undone.
    pub lost_keys: u64,
}

/// State of a store's imports and undos. A caller that reads the table compares the states before
/// and after, to detect changes by an import in between.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ImportActivity {
    /// Set if an import, or an undo, is running or was cut off.
    pub is_unfinished: bool,
    /// Number of imports so far.
    pub imports: u64,
    /// Number of remembered imports that were undone.
    pub undone: u64,
}

/// Part of an import, for a progress bar.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImportStage {
    /// The files are read; progress is in bytes.
    Reading,
    /// The rows are checked against the table and one another; progress is in rows.
    Checking,
    /// The rows that change the table are written; progress is in rows.
    Writing,
}

/// Number of devices of one enrollment, in total and by state.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Totals {
    /// Name of the enrollment.
    pub enrollment: String,
    /// All devices of the enrollment.
    pub devices: u64,
    /// Devices with a certificate.
    pub registered: u64,
    /// Devices whose certificate was issued.
    pub issued: u64,
    /// Devices known to have signed in at IoT Platform.
    pub activated: u64,
    /// Devices that IoT Platform refuses.
    pub refused: u64,
    /// Devices that the operator has disabled.
    pub disabled: u64,
    /// Devices with a certificate that was never issued.
    pub unissued: u64,
    /// Devices that may be registered but have no certificate yet.
    pub unregistered: u64,
    /// Devices that are disabled at IoT Platform.
    pub disabled_at_cloud: u64,
    /// Devices that were deleted at IoT Platform.
    pub deleted_at_cloud: u64,
    /// Devices whose certificate is stored without a seal.
    pub clear: u64,
}

impl Totals {
    /// Returns the sum over all enrollments.
    pub fn sum(all: &[Self]) -> Self {
        let sum = |count: fn(&Self) -> u64| all.iter().map(count).sum();
        Self {
            enrollment: String::new(),
            devices: sum(|one| one.devices),
            registered: sum(|one| one.registered),
            issued: sum(|one| one.issued),
            activated: sum(|one| one.activated),
            refused: sum(|one| one.refused),
            disabled: sum(|one| one.disabled),
            unissued: sum(|one| one.unissued),
            unregistered: sum(|one| one.unregistered),
            disabled_at_cloud: sum(|one| one.disabled_at_cloud),
            deleted_at_cloud: sum(|one| one.deleted_at_cloud),
            clear: sum(|one| one.clear),
        }
    }
}

/// Comparison of the numbers that a store keeps with its rows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CountCheck {
    /// Number of devices in the table.
    pub devices: u64,
    /// Number of kept numbers that differ from the rows.
    pub different: u64,
    /// The first of these differences.
    pub first: Vec<Miscount>,
    /// Names of the triggers that are missing or changed, so that changes are not counted.
    pub triggers: Vec<String>,
}

/// A kept number that differs from the rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Miscount {
    /// Table that has the number.
    pub table: &'static str,
    /// Name of the enrollment.
    pub enrollment: String,
    /// The product, or the reason of the refusal.
    pub second: String,
    /// Column of the number.
    pub column: &'static str,
    /// The kept number.
    pub kept: i64,
    /// Number of rows.
    pub counted: i64,
}

/// Contradiction between an imported row and the table, for instance a different certificate
/// for a device that already has one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conflict {
    /// Name of the imported column.
    pub column: &'static str,
    /// Explanation for the operator. Never contains a secret.
    pub reason: String,
}

impl Conflict {
    /// Returns the column of this name.
    pub(super) fn column_named(name: &str) -> &'static str {
        const COLUMNS: [&str; 9] = [
            "enrollment",
            "productKey",
            "deviceName",
            "deviceSecret",
            "iotId",
            "pskIdentity",
            "psk",
            "pskNext",
            "target",
        ];
        COLUMNS.into_iter().find(|column| *column == name).unwrap_or("deviceId")
    }
}

/// A row that the caller could not read. The caller keeps the reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unreadable;

/// Reason why a row is not imported.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rejection {
    /// The row could not be read.
    Unreadable,
    /// The row contradicts the table, or asks for the name or the `IotId` of another row.
    Conflict(Conflict),
    /// An earlier row, with this index, has the same device and other values.
    Differs {
        /// The device.
        device: DeviceId,
        /// Index of the earlier row.
        first: u64,
    },
    /// An earlier row, with this index, has the same PSK identity.
    SameIdentity {
        /// Index of the earlier row.
        first: u64,
    },
    /// An earlier row has the same device and the same values. The row is skipped, and the import
    /// does not fail because of it.
    Repeated {
        /// Name of the row's enrollment.
        enrollment: String,
        /// Product of the row.
        product_key: String,
    },
}

impl From<Unreadable> for Rejection {
    fn from(Unreadable: Unreadable) -> Self {
        Self::Unreadable
    }
}

/// Reason why an import changed nothing.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// Number of rejected rows, each of which was passed to `reject`.
    #[error("{0} rows were rejected, nothing was imported")]
    Rejected(u64),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}
