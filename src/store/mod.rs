//! The device table and what belongs to it: keys of individual devices, the registration
//! journal, the first issue of each certificate. The modules above use the trait [`Store`]; a
//! store is one file or folder here and one line in [`open`]. A store knows nothing of
//! policies.

mod actor;
pub mod audit;
#[cfg(all(test, feature = "simulation"))]
mod contract;
pub mod merge;
pub mod sqlite;

use std::{
    future::Future,
    pin::Pin,
    sync::{Arc, atomic::AtomicU64},
    time::{SystemTime, UNIX_EPOCH},
};

pub use self::actor::Actor;
use self::audit::{Asked, Asker, AuditEntry};
use crate::{
    device::{Certificate, DeviceId, Secret},
    histogram::Histogram,
    seal::Keyring,
};

/// Seconds since 1970-01-01T00:00:00Z.
pub type UnixSeconds = i64;

/// Answer of a store. A store that has it at hand returns a future that is ready at its first
/// poll, so that a hot path needs no task.
pub type StoreFuture<'a, T> = Pin<Box<dyn Future<Output = Result<T, StoreError>> + Send + 'a>>;

/// Failure of a store's operation, which has changed nothing.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// The database is locked by another process, or the disk is full: the same call may
    /// succeed later.
    #[error("the database is busy: {0}")]
    Busy(String),
    /// Any other failure: read-only, damaged, not a database.
    #[error("the database failed: {0}")]
    Failed(String),
}

/// One row of the device table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceRow {
    /// Primary key.
    pub id: DeviceId,
    /// Name of the enrollment that the row was imported into.
    pub enrollment: String,
    /// The product to register the device in, or in which it is registered.
    pub product_key: String,
    /// The device name that the operator has set; otherwise [`DeviceId::device_name`] applies.
    pub device_name: Option<String>,
    /// The certificate, once the device is registered.
    pub certificate: Option<Certificate>,
    /// `IotId`: the cloud's own identifier of the device.
    pub iot_id: Option<String>,
    /// State that the operator has set.
    pub state: DeviceState,
    /// Time at which the certificate was first issued.
    pub first_issued: Option<UnixSeconds>,
    /// Time of the registration at IoT Platform.
    pub registered: Option<UnixSeconds>,
    /// Time of the first sign-in at IoT Platform.
    pub activated: Option<UnixSeconds>,
    /// Reason for which IoT Platform refuses this device; the operator must remove it.
    pub refusal: Option<String>,
    /// State at IoT Platform, as last seen.
    pub cloud_state: Option<CloudState>,
}

impl DeviceRow {
    /// Returns the device's name at IoT Platform: its own, or the one that follows from its
    /// ID.
    pub fn name(&self) -> String {
        self.device_name.clone().unwrap_or_else(|| self.id.device_name())
    }
}

#[cfg(test)]
impl DeviceRow {
    /// Returns a device as an import of nothing but its ID adds it.
    pub(crate) fn imported(id: DeviceId, enrollment: &str, product_key: &str) -> Self {
        Self {
            id,
            enrollment: enrollment.to_owned(),
            product_key: product_key.to_owned(),
            device_name: None,
            certificate: None,
            iot_id: None,
            state: DeviceState::Enabled,
            first_issued: None,
            registered: None,
            activated: None,
            refusal: None,
            cloud_state: None,
        }
    }

    /// Adds a certificate in the row's own product.
    pub(crate) fn with_certificate(self, device_name: &str, device_secret: &str) -> Self {
        let certificate = Certificate {
            product_key: self.product_key.clone(),
            device_name: device_name.to_owned(),
            device_secret: Secret::new(device_secret.to_owned()),
        };
        Self { certificate: Some(certificate), ..self }
    }
}

/// State at IoT Platform of a registered device, if it is not as it was registered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CloudState {
    /// The device is disabled there and cannot sign in.
    Disabled,
    /// The device is deleted there: its certificate no longer works.
    Deleted,
}

/// Data of a device, as a query of IoT Platform returned it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sighting {
    /// Time of the registration, by the cloud's clock.
    pub registered: Option<UnixSeconds>,
    /// Time of the first sign-in there.
    pub activated: Option<UnixSeconds>,
    /// Disabled or deleted, or `None`.
    pub state: Option<CloudState>,
}

/// State of a device that the operator sets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceState {
    /// The device may have its certificate.
    Enabled,
    /// The device gets no certificate.
    Disabled,
}

/// The key of one device of an individual enrollment.
#[derive(Debug, Clone)]
pub struct IndividualKey {
    /// The only device for which this key may ask.
    pub device: DeviceId,
    /// Name of its enrollment.
    pub enrollment: String,
    /// Pre-shared key, 16–64 bytes, as hex.
    pub psk: Secret,
}

/// Answer of [`Store::record_issue`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Issue {
    /// Time at which the certificate was first issued.
    pub first: UnixSeconds,
    /// Set if this call has recorded it; of concurrent calls, one has.
    pub is_first: bool,
}

/// A registration that is about to be requested from IoT Platform.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JournalEntry {
    /// The device.
    pub device: DeviceId,
    /// The product.
    pub product_key: String,
    /// The device name.
    pub device_name: String,
}

/// Answer of the journal to an entry that is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Claim {
    /// Time since which the journal has an entry for this name.
    pub since: UnixSeconds,
    /// Set if the entry was there before, so that an earlier call may have created the device.
    pub earlier: bool,
}

/// Number of a batch in the journal.
pub type BatchId = i64;

/// A batch in the journal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenBatch {
    /// Its number.
    pub id: BatchId,
    /// The product of all its devices.
    pub product_key: String,
    /// The cloud's `ApplyId`, once its devices may have been created.
    pub apply_id: Option<u64>,
}

/// A journal entry that no answer has closed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenEntry {
    /// The requested registration.
    pub entry: JournalEntry,
    /// Time since which the name is in the journal.
    pub since: UnixSeconds,
    /// The batch to which it belongs.
    pub batch: Option<BatchId>,
}

/// A device as IoT Platform registered it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegisteredDevice {
    /// The certificate.
    pub certificate: Certificate,
    /// `IotId`, if the cloud has returned it.
    pub iot_id: Option<String>,
    /// Time of the registration.
    pub registered: UnixSeconds,
}

/// One device of an import, already checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImportRow {
    /// Primary key.
    pub device: DeviceId,
    /// Name of its enrollment.
    pub enrollment: String,
    /// The enrollment's product, for a device that has none yet.
    pub enrollment_product: String,
    /// Set for an individual enrollment: its device must have a key after the import, from
    /// this row or an earlier one.
    pub individual: bool,
    /// The row's own product, in place of the enrollment's.
    pub product_key: Option<String>,
    /// Device name; without a secret, the name under which to register.
    pub device_name: Option<String>,
    /// With it, the certificate is complete; never without a device name.
    pub device_secret: Option<Secret>,
    /// The cloud's own identifier.
    pub iot_id: Option<String>,
    /// PSK identity (1–128 bytes) and key (hex) of an individual device.
    pub key: Option<(String, Secret)>,
}

impl ImportRow {
    /// Creates a row with nothing but an enrollment that is not individual.
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
        }
    }
}

/// Result of an import, or of a dry run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ImportReport {
    /// Rows that were added.
    pub added: u64,
    /// Rows that were changed.
    pub changed: u64,
    /// Rows that already said the same.
    pub unchanged: u64,
}

/// Number of an enrollment's devices in each state.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Totals {
    /// Name of the enrollment.
    pub enrollment: String,
    /// Rows of the table.
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
}

/// A row that contradicts the table, for instance another certificate for a
/// device that has one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conflict {
    /// Column of the import.
    pub column: &'static str,
    /// Contradicted value; never that of a secret.
    pub reason: String,
}

/// Reason why a row is rejected.
#[derive(Debug)]
pub enum Rejection<E> {
    /// The row could not be read: the iterator's own error.
    Unreadable(E),
    /// The row contradicts the table.
    Conflict(Conflict),
}

/// Reason why an import changed nothing.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// This many rows were rejected; each was passed to `reject`.
    #[error("{0} rows were rejected, nothing was imported")]
    Rejected(u64),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Returns the seconds since 1970 by the system's clock; 0 for an earlier time.
pub fn unix_now() -> UnixSeconds {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

/// Metrics of a store, which any thread may read.
#[derive(Debug, Default)]
pub struct Metrics {
    /// Writes that wait for their commit now.
    pub waiting: AtomicU64,
    /// Writes committed.
    pub written: AtomicU64,
    /// Writes that failed, without refused ones.
    pub failed: AtomicU64,
    /// Duration of the commits; each may contain many writes.
    pub commit_latency: Histogram,
}

/// Storage of the device table. A write begins when its method is called, not at the first
/// poll, and continues when its future is dropped. `store/contract.rs` tests each sentence of
/// this trait.
pub trait Store: Send + Sync + 'static {
    /// Returns the row of a device.
    fn device<'a>(&'a self, id: &'a DeviceId) -> StoreFuture<'a, Option<DeviceRow>>;

    /// Returns the enrollment of a device. The time must not reveal whether there is such a
    /// device, nor what else is in its row: no secret is opened.
    fn enrollment_of<'a>(&'a self, id: &'a DeviceId) -> StoreFuture<'a, Option<String>>;

    /// Returns the individual key of a PSK identity. The time must not reveal whether there is
    /// one: an unknown identity costs the same work as a known one.
    fn individual_key<'a>(&'a self, identity: &'a str) -> StoreFuture<'a, Option<IndividualKey>>;

    /// Records durably that the certificate is issued to `asker` at `at`, unless it was issued
    /// before, and writes the audit entry in the same step. Fails with [`StoreError::Failed`]
    /// for a device that is not in the table.
    fn record_issue<'a>(&'a self, id: &'a DeviceId, at: UnixSeconds, asker: Asker) -> StoreFuture<'a, Issue>;

    /// Appends an entry to the audit log soon, without waiting. When the queue is full, the
    /// entry is dropped, and the log counts it.
    fn audit(&self, asked: Asked);

    /// Returns up to `limit` audit entries about a device, newest first. Entries of the last
    /// second may be missing.
    fn history<'a>(&'a self, id: &'a DeviceId, limit: usize) -> StoreFuture<'a, Vec<AuditEntry>>;

    /// Writes the journal entry durably, before IoT Platform is called. It replaces an entry
    /// of the same device, and keeps that entry's time if the name is the same. Fails with
    /// [`StoreError::Failed`] for a device that is not in the table.
    fn open_journal<'a>(&'a self, entry: &'a JournalEntry) -> StoreFuture<'a, Claim>;

    /// Writes the journal entries of a batch durably, in one step. Returns a claim for each
    /// entry, `None` for a device that is not in the table.
    fn open_batch<'a>(
        &'a self,
        product_key: &'a str,
        entries: &'a [JournalEntry],
    ) -> StoreFuture<'a, (BatchId, Vec<Option<Claim>>)>;

    /// Stores the cloud's `ApplyId` of a batch durably, before the cloud creates the devices.
    /// Adds the batch again if another process has closed it.
    fn set_apply_id<'a>(&'a self, batch: &'a OpenBatch, apply_id: u64) -> StoreFuture<'a, ()>;

    /// Removes a batch. Its open entries stay as single ones.
    fn close_batch(&self, batch: BatchId) -> StoreFuture<'_, ()>;

    /// Returns the open batches: left by a crash, or in progress.
    fn open_batches(&self) -> StoreFuture<'_, Vec<OpenBatch>>;

    /// Returns the open journal entries, oldest first: left by a crash, or in progress.
    fn open_journal_entries(&self) -> StoreFuture<'_, Vec<OpenEntry>>;

    /// Stores a certificate, clears a refusal and closes the journal entry, in one durable
    /// step. Never replaces another certificate: fails with [`StoreError::Failed`] instead,
    /// and the journal entry stays. Storing the same certificate again changes nothing else.
    fn store_registration<'a>(
        &'a self,
        id: &'a DeviceId,
        registration: &'a RegisteredDevice,
    ) -> StoreFuture<'a, ()>;

    /// Stores the cloud's refusal in the row and closes the journal entry.
    fn store_refusal<'a>(&'a self, id: &'a DeviceId, reason: &'a str) -> StoreFuture<'a, ()>;

    /// Stores the cloud's data of a device that has a certificate. A time that the cloud does
    /// not return stays as it is, and so does a known first sign-in.
    fn store_sighting<'a>(&'a self, id: &'a DeviceId, sighting: Sighting) -> StoreFuture<'a, ()>;

    /// Returns up to `limit` rows in order of device ID, beginning after `after`. Called with
    /// the last ID each time, it pages through the table.
    fn rows_after<'a>(&'a self, after: Option<&'a DeviceId>, limit: usize)
    -> StoreFuture<'a, Vec<DeviceRow>>;

    /// Enables or disables a device; returns whether there is such a device. Writes an audit
    /// entry with `by` in the same step, as do `reset` and `delete`.
    fn set_state<'a>(&'a self, id: &'a DeviceId, state: DeviceState, by: &'a Actor) -> StoreFuture<'a, bool>;

    /// Clears the first issue and a refusal, so that the device can fetch its certificate or
    /// be registered again, and the certificate itself if the cloud has deleted the device.
    /// Returns whether there is such a device.
    fn reset<'a>(&'a self, id: &'a DeviceId, by: &'a Actor) -> StoreFuture<'a, bool>;

    /// Deletes the row, the key and the journal entry of a device; returns whether there was
    /// one.
    fn delete<'a>(&'a self, id: &'a DeviceId, by: &'a Actor) -> StoreFuture<'a, bool>;

    /// Permits this thread's reads to see one state of the table, that of the first read,
    /// until [`release`](Self::release): a store need not check for a newer one each time. For
    /// a short time only.
    fn hold(&self) {}

    /// Ends [`hold`](Self::hold).
    fn release(&self) {}

    /// Checks that the store can be read and written durably; changes nothing. The default
    /// only reads.
    fn probe(&self) -> StoreFuture<'_, ()> {
        Box::pin(async { self.rows_after(None, 1).await.map(drop) })
    }

    /// Returns the store's metrics, if it has any.
    fn metrics(&self) -> Option<Arc<Metrics>> {
        None
    }
}

/// Operations of the command line on a whole table. They block, so that each belongs on a
/// thread of its own.
pub trait Bulk {
    /// Imports all rows in one transaction, or none. An empty column leaves the table as it
    /// is; an unchanged row is not written. A row that changes a device clears its refusal.
    /// Unless nothing changes, the same transaction writes an audit entry with `file` and
    /// `by`. The rules are in [`merge`].
    ///
    /// Rows are read to the end in any case. `reject` gets each row that cannot be imported,
    /// with its index from 0, before the next row is read; nothing is imported then. `dry_run`
    /// reports the same and changes nothing.
    ///
    /// A device that has a certificate keeps its enrollment, product, name, secret and cloud
    /// identifier: another value is a conflict. So is a PSK identity of another device.
    fn import<E>(
        &self,
        by: &Actor,
        file: &str,
        rows: impl Iterator<Item = Result<ImportRow, E>>,
        dry_run: bool,
        reject: impl FnMut(u64, Rejection<E>),
    ) -> Result<ImportReport, ImportError>;

    /// Calls `each` with every row in order of device ID, from one consistent state of the
    /// table, with its individual key (identity, PSK in hex) if any. An error of `each` ends
    /// the export.
    fn export<E: From<StoreError>>(
        &self,
        each: impl FnMut(DeviceRow, Option<(String, Secret)>) -> Result<(), E>,
    ) -> Result<(), E>;

    /// Counts the rows. Reads the whole table: seconds for millions.
    fn count(&self) -> Result<u64, StoreError>;

    /// Counts the devices of each enrollment in the table by state, in order of its name.
    /// Reads the whole table.
    fn totals(&self) -> Result<Vec<Totals>, StoreError>;

    /// Counts the devices, of an enrollment or of all, that may be registered and are not.
    /// Reads the whole table.
    fn count_unregistered(&self, enrollment: Option<&str>) -> Result<u64, StoreError>;
}

/// Condition of a store's file before it is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Condition {
    /// The file does not exist; [`open`] creates it.
    Missing,
    /// The file has the current version.
    Current,
    /// The file has this older version; [`open`] migrates it.
    Older(usize),
}

/// Examines the store that a configuration's `database` names; creates and changes nothing.
pub fn examine(url: &str) -> Result<Condition, StoreError> {
    match url.split_once(':') {
        Some(("sqlite", path)) if !path.is_empty() => sqlite::Sqlite::examine(path.as_ref()),
        _ => Err(StoreError::Failed(format!("database = \"{url}\": expected sqlite:PATH"))),
    }
}

/// Opens the store that a configuration's `database` names, without a key for its secrets.
/// Creates it if it does not exist.
pub fn open(url: &str) -> Result<Arc<sqlite::Sqlite>, StoreError> {
    open_sealed(url, Keyring::default())
}

/// Opens the store like [`open`], with secrets that are sealed under `keys`.
pub fn open_sealed(url: &str, keys: Keyring) -> Result<Arc<sqlite::Sqlite>, StoreError> {
    match url.split_once(':') {
        Some(("sqlite", path)) if !path.is_empty() => {
            Ok(Arc::new(sqlite::Sqlite::open_sealed(path.as_ref(), keys)?))
        }
        _ => Err(StoreError::Failed(format!("database = \"{url}\": expected sqlite:PATH"))),
    }
}
