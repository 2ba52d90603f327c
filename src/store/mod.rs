//! The device table and what stands beside it: keys of individual devices, the
//! registration journal, the first issue of each certificate. This is the trait
//! that the rooms above speak to; a store is one file or folder here and one
//! line in [`open`]. A store knows nothing of policies: it keeps what it is told.

pub mod sqlite;

use std::{future::Future, pin::Pin, sync::Arc};

use crate::device::{Certificate, DeviceId, Secret};

/// Seconds since 1970-01-01T00:00:00Z.
pub type UnixSeconds = i64;

/// What a store answers with. A store that has the answer at hand returns a
/// future that is ready at its first poll, so that a caller on a hot path pays
/// for no task.
pub type StoreFuture<'a, T> = Pin<Box<dyn Future<Output = Result<T, StoreError>> + Send + 'a>>;

/// Why the store did not do what it was asked. Nothing was changed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// Locked by another process, or the disk is full: the same call may
    /// succeed later.
    #[error("the database is busy: {0}")]
    Busy(String),
    /// Anything else: read-only, damaged, not a database.
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
    /// The device name asked for, when the operator set one; otherwise
    /// [`DeviceId::device_name`] applies.
    pub device_name: Option<String>,
    /// All three parts, or none.
    pub certificate: Option<Certificate>,
    /// `IotId`: the cloud's own identifier of the device.
    pub iot_id: Option<String>,
    /// Whether it may have its certificate.
    pub state: DeviceState,
    /// When the certificate was first handed out.
    pub first_issued: Option<UnixSeconds>,
    /// When it was registered at IoT Platform.
    pub registered: Option<UnixSeconds>,
    /// When it first signed in there.
    pub activated: Option<UnixSeconds>,
    /// Why IoT Platform refused this very device, for the operator to mend.
    pub refusal: Option<String>,
}

/// Whether a device may have its certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceState {
    /// It may.
    Enabled,
    /// The operator said no.
    Disabled,
}

/// The key of one device of an individual enrollment.
#[derive(Debug, Clone)]
pub struct IndividualKey {
    /// The only device that this key may ask for.
    pub device: DeviceId,
    /// Name of its enrollment.
    pub enrollment: String,
    /// Pre-shared key, 16–64 bytes, as hex.
    pub psk: Secret,
}

/// What is about to be asked of IoT Platform, written down before it is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JournalEntry {
    /// For which row.
    pub device: DeviceId,
    /// In which product.
    pub product_key: String,
    /// Under which name.
    pub device_name: String,
}

/// A device as IoT Platform registered it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registration {
    /// What the device signs in with.
    pub certificate: Certificate,
    /// `IotId`, when the cloud told it.
    pub iot_id: Option<String>,
    /// When.
    pub registered: UnixSeconds,
}

/// One device of an import, already checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImportRow {
    /// Primary key.
    pub device: DeviceId,
    /// Name of its enrollment.
    pub enrollment: String,
    /// The enrollment's product, or the row's own.
    pub product_key: String,
    /// Device name; on its own: the name to register under.
    pub device_name: Option<String>,
    /// With it, the certificate is complete.
    pub device_secret: Option<Secret>,
    /// The cloud's own identifier.
    pub iot_id: Option<String>,
    /// PSK identity (1–128 bytes) and key (hex) of an individual device.
    pub key: Option<(String, Secret)>,
}

/// What an import changed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ImportReport {
    /// Rows that were not there before.
    pub added: u64,
    /// Rows that were there and now have what the file says.
    pub changed: u64,
    /// Rows that were there already, alike.
    pub unchanged: u64,
}

/// Why an import changed nothing.
#[derive(Debug, thiserror::Error)]
pub enum ImportError<E> {
    /// A row could not be read; the iterator's own error.
    #[error("{0}")]
    Row(E),
    /// A row contradicts the table, for instance another certificate for a
    /// device that has one. The number is the row's index from 0.
    #[error("row {index}: {reason}")]
    Conflict {
        /// Index of the row among those imported, from 0.
        index: u64,
        /// Which column, and what it contradicts.
        reason: String,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Where the device table is kept.
pub trait Store: Send + Sync + 'static {
    /// The row of a device.
    fn device<'a>(&'a self, id: &'a DeviceId) -> StoreFuture<'a, Option<DeviceRow>>;

    /// The individual key of a PSK identity.
    fn individual_key<'a>(&'a self, identity: &'a str) -> StoreFuture<'a, Option<IndividualKey>>;

    /// Records, durably, that the certificate is handed out at `at`. Answers
    /// with the first time, which is `at` only for the first call.
    fn record_issue<'a>(&'a self, id: &'a DeviceId, at: UnixSeconds) -> StoreFuture<'a, UnixSeconds>;

    /// Writes the journal entry, durably, before IoT Platform is asked. An entry
    /// of the same device is replaced.
    fn open_journal<'a>(&'a self, entry: &'a JournalEntry) -> StoreFuture<'a, ()>;

    /// Journal entries that no answer has closed: left by a crash.
    fn open_journal_entries(&self) -> StoreFuture<'_, Vec<JournalEntry>>;

    /// Stores a certificate and closes the journal entry, in one durable step.
    /// Never replaces another certificate of the device: then [`StoreError::Failed`].
    fn store_registration<'a>(
        &'a self,
        id: &'a DeviceId,
        registration: &'a Registration,
    ) -> StoreFuture<'a, ()>;

    /// Marks the row with the cloud's refusal and closes the journal entry.
    fn store_refusal<'a>(&'a self, id: &'a DeviceId, reason: &'a str) -> StoreFuture<'a, ()>;

    /// Allows or forbids a device; whether there is such a device.
    fn set_state<'a>(&'a self, id: &'a DeviceId, state: DeviceState) -> StoreFuture<'a, bool>;

    /// Forgets the first issue and a refusal, so that the certificate can be
    /// fetched or the registration tried again; whether there is such a device.
    fn reset<'a>(&'a self, id: &'a DeviceId) -> StoreFuture<'a, bool>;

    /// Deletes the row and the key of a device; whether there was one.
    fn delete<'a>(&'a self, id: &'a DeviceId) -> StoreFuture<'a, bool>;
}

/// What the command line does with a whole table. Blocking: a bulk operation
/// belongs on a thread of its own.
pub trait Bulk {
    /// Imports all rows in one transaction, or none. What the file leaves empty
    /// stays as it is in the table.
    fn import<E>(
        &self,
        rows: impl Iterator<Item = Result<ImportRow, E>>,
    ) -> Result<ImportReport, ImportError<E>>;

    /// Calls `each` with every row, in order of device ID, from one consistent
    /// state of the table, with the individual key (identity, psk hex) if any.
    fn export<E: From<StoreError>>(
        &self,
        each: impl FnMut(DeviceRow, Option<(String, Secret)>) -> Result<(), E>,
    ) -> Result<(), E>;

    /// How many rows there are.
    fn count(&self) -> Result<u64, StoreError>;
}

/// Opens the store that a configuration's `database` names, creating it when it
/// is not there.
pub fn open(url: &str) -> Result<Arc<sqlite::Sqlite>, StoreError> {
    match url.split_once(':') {
        Some(("sqlite", path)) if !path.is_empty() => Ok(Arc::new(sqlite::Sqlite::open(path.as_ref())?)),
        _ => Err(StoreError::Failed(format!("database = \"{url}\": expected sqlite:PATH"))),
    }
}
