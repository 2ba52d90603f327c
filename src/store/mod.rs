//! The device table and what stands beside it: keys of individual devices, the
//! registration journal, the first issue of each certificate. This is the trait
//! that the rooms above speak to; a store is one file or folder here and one
//! line in [`open`]. A store knows nothing of policies: it keeps what it is told.

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
use self::{
    audit::{Asked, Asker, AuditEntry},
    merge::Merged,
};
use crate::{
    device::{Certificate, DeviceId, Secret},
    figures::Histogram,
    seal::Keyring,
};

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
    /// What has become of it at IoT Platform, as last seen there.
    pub cloud_state: Option<CloudState>,
}

impl DeviceRow {
    /// The device's name at IoT Platform: the one it was given, or what follows from its ID.
    pub fn name(&self) -> String {
        self.device_name.clone().unwrap_or_else(|| self.id.device_name())
    }
}

#[cfg(test)]
impl DeviceRow {
    /// A device as it is after an import that tells nothing but its ID.
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
}

/// What somebody has done at IoT Platform to a device that has a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CloudState {
    /// It is disabled, and cannot sign in.
    Disabled,
    /// It is deleted: its certificate is good for nothing.
    Deleted,
}

/// What a look at IoT Platform has shown of a device.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Sighting {
    /// When it was registered, by the cloud's clock.
    pub registered: Option<UnixSeconds>,
    /// When it first signed in there.
    pub activated: Option<UnixSeconds>,
    /// What is wrong with it there.
    pub state: Option<CloudState>,
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

/// An answer to [`Store::record_issue`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Issue {
    /// When the certificate was first handed out.
    pub first: UnixSeconds,
    /// Whether this call is the one that recorded it: of two at once, one is.
    pub is_first: bool,
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

/// What the journal said of a device when its entry was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Claim {
    /// Since when this server has meant to have that name.
    pub since: UnixSeconds,
    /// Whether it was asked for before, so that it may have been made then.
    pub earlier: bool,
}

/// Names a batch of the journal.
pub type BatchId = i64;

/// A batch that is in the journal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenBatch {
    /// Which.
    pub id: BatchId,
    /// The product of all its devices.
    pub product_key: String,
    /// What the cloud calls it, once its devices may have been asked for.
    pub apply_id: Option<u64>,
}

/// A journal entry that no answer has closed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenEntry {
    /// What was asked for, or was about to be.
    pub entry: JournalEntry,
    /// Since when.
    pub since: UnixSeconds,
    /// Of which batch it is a part.
    pub batch: Option<BatchId>,
}

/// A device as IoT Platform registered it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegisteredDevice {
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
    /// The enrollment's product, for a device that has none yet.
    pub enrollment_product: String,
    /// Whether it is an individual enrollment: then the device must have a key
    /// when the import is done, from this row or from before.
    pub individual: bool,
    /// The row's own product, in place of the enrollment's.
    pub product_key: Option<String>,
    /// Device name; on its own: the name to register under.
    pub device_name: Option<String>,
    /// With it, the certificate is complete; never without a device name.
    pub device_secret: Option<Secret>,
    /// The cloud's own identifier.
    pub iot_id: Option<String>,
    /// PSK identity (1–128 bytes) and key (hex) of an individual device.
    pub key: Option<(String, Secret)>,
}

impl ImportRow {
    /// A device of which only its enrollment is known, not an individual one.
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

/// What an import changed, or in a dry run would change.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ImportReport {
    /// Rows that were not there before.
    pub added: u64,
    /// Rows that were there and now have what the file says.
    pub changed: u64,
    /// Rows that were there already, alike.
    pub unchanged: u64,
}

impl ImportReport {
    /// Counts one more row.
    pub(crate) fn count(&mut self, merged: Merged) {
        match merged {
            Merged::Added => self.added += 1,
            Merged::Changed => self.changed += 1,
            Merged::Unchanged => self.unchanged += 1,
        }
    }
}

/// How many devices of an enrollment are how far.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Totals {
    /// Name of the enrollment.
    pub enrollment: String,
    /// Rows of the table.
    pub devices: u64,
    /// Of them, with a certificate.
    pub registered: u64,
    /// Whose certificate was handed out.
    pub issued: u64,
    /// That have signed in at IoT Platform, as far as is known.
    pub activated: u64,
    /// That IoT Platform refused.
    pub refused: u64,
    /// To which the operator said no.
    pub disabled: u64,
}

/// A row that contradicts the table, for instance another certificate for a
/// device that has one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conflict {
    /// Which column of the import.
    pub column: &'static str,
    /// What it contradicts; never the value of a secret.
    pub reason: String,
}

/// Why one row cannot be imported.
#[derive(Debug)]
pub enum Rejection<E> {
    /// It could not be read: the iterator's own error.
    Unreadable(E),
    /// It contradicts the table.
    Conflict(Conflict),
}

/// Why an import changed nothing.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// So many rows were rejected; each was told as it was met.
    #[error("{0} rows were rejected, nothing was imported")]
    Rejected(u64),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Seconds since 1970, by the system's clock; 0 for a clock before that.
pub fn unix_now() -> UnixSeconds {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

/// What a store has done so far, and what waits in it: read by others at any time.
#[derive(Debug, Default)]
pub struct Figures {
    /// Writes that wait for their commit now.
    pub waiting: AtomicU64,
    /// Writes committed.
    pub written: AtomicU64,
    /// Writes of which nothing was done, refused ones apart.
    pub failed: AtomicU64,
    /// From a commit's beginning to its end; each may hold many writes.
    pub commit_latency: Histogram,
}

/// Where the device table is kept. A write begins when its method is called, not
/// at the first poll, and goes on when its future is dropped.
pub trait Store: Send + Sync + 'static {
    /// The row of a device.
    fn device<'a>(&'a self, id: &'a DeviceId) -> StoreFuture<'a, Option<DeviceRow>>;

    /// Name of the enrollment of a device. It must not show in the time whether there
    /// is such a device, nor what else is in its row: no secret is opened.
    fn enrollment_of<'a>(&'a self, id: &'a DeviceId) -> StoreFuture<'a, Option<String>>;

    /// The individual key of a PSK identity. It must not show in the time whether there
    /// is one: what a known identity costs is done for an unknown one, too.
    fn individual_key<'a>(&'a self, identity: &'a str) -> StoreFuture<'a, Option<IndividualKey>>;

    /// Records, durably, that the certificate is handed out at `at` to `asker`,
    /// unless it was handed out before. The audit log says so in the same step.
    /// [`StoreError::Failed`] for a device that is not in the table.
    fn record_issue<'a>(&'a self, id: &'a DeviceId, at: UnixSeconds, asker: Asker) -> StoreFuture<'a, Issue>;

    /// Puts an entry into the audit log, soon: nobody waits for it. When more are
    /// waiting than there is room for, it is dropped, and the log says how many were.
    fn audit(&self, asked: Asked);

    /// What the audit log says of a device: up to `limit` entries, newest first. What
    /// happened less than a second ago need not be there yet.
    fn history<'a>(&'a self, id: &'a DeviceId, limit: usize) -> StoreFuture<'a, Vec<AuditEntry>>;

    /// Writes the journal entry, durably, before IoT Platform is asked. An entry
    /// of the same device is replaced, and keeps its time if it asked for the same
    /// name. A device that is not in the table is [`StoreError::Failed`].
    fn open_journal<'a>(&'a self, entry: &'a JournalEntry) -> StoreFuture<'a, Claim>;

    /// Writes the journal entries of a batch, durably, and as one. Answers with a
    /// claim for each of them, `None` for a device that is not in the table.
    fn open_batch<'a>(
        &'a self,
        product_key: &'a str,
        entries: &'a [JournalEntry],
    ) -> StoreFuture<'a, (BatchId, Vec<Option<Claim>>)>;

    /// Notes, durably, what the cloud calls a batch, before it is asked to create
    /// the devices.
    fn set_apply_id<'a>(&'a self, batch: &'a OpenBatch, apply_id: u64) -> StoreFuture<'a, ()>;

    /// Forgets a batch. Entries of it that are open stay, on their own.
    fn close_batch(&self, batch: BatchId) -> StoreFuture<'_, ()>;

    /// Batches that were not closed: left by a crash, or in progress.
    fn open_batches(&self) -> StoreFuture<'_, Vec<OpenBatch>>;

    /// Journal entries that no answer has closed: left by a crash, or in progress.
    fn open_journal_entries(&self) -> StoreFuture<'_, Vec<OpenEntry>>;

    /// Stores a certificate, clears a refusal and closes the journal entry, in one
    /// durable step. Never replaces another certificate of the device: then
    /// [`StoreError::Failed`], and the journal entry stays. The same certificate
    /// again is fine.
    fn store_registration<'a>(
        &'a self,
        id: &'a DeviceId,
        registration: &'a RegisteredDevice,
    ) -> StoreFuture<'a, ()>;

    /// Marks the row with the cloud's refusal and closes the journal entry.
    fn store_refusal<'a>(&'a self, id: &'a DeviceId, reason: &'a str) -> StoreFuture<'a, ()>;

    /// Notes what the cloud shows of a device that has a certificate. What the cloud does
    /// not tell stays as it is, and so does a first sign-in that is known already.
    fn store_sighting<'a>(&'a self, id: &'a DeviceId, sighting: Sighting) -> StoreFuture<'a, ()>;

    /// Up to `limit` rows in order of device ID, from the first one after `after`:
    /// with the last one's ID each time, all of the table.
    fn rows_after<'a>(&'a self, after: Option<&'a DeviceId>, limit: usize)
    -> StoreFuture<'a, Vec<DeviceRow>>;

    /// Allows or forbids a device; whether there is such a device. The audit log says
    /// in the same step that it was changed, and `by` whom; so with the next two.
    fn set_state<'a>(&'a self, id: &'a DeviceId, state: DeviceState, by: &'a Actor) -> StoreFuture<'a, bool>;

    /// Forgets the first issue and a refusal, so that the certificate can be
    /// fetched or the registration tried again, and the certificate itself if the
    /// cloud has deleted the device; whether there is such a device.
    fn reset<'a>(&'a self, id: &'a DeviceId, by: &'a Actor) -> StoreFuture<'a, bool>;

    /// Deletes the row, the key and the journal entry of a device; whether there was one.
    fn delete<'a>(&'a self, id: &'a DeviceId, by: &'a Actor) -> StoreFuture<'a, bool>;

    /// Until [`release`](Self::release), what this thread reads may be one state of the
    /// table, the one that its first read meets: a store need not look each time whether
    /// there is a newer one. For a moment only.
    fn hold(&self) {}

    /// Ends what [`hold`](Self::hold) has begun.
    fn release(&self) {}

    /// Whether it can be read, and written durably; changes nothing. A store that does
    /// not say otherwise tries to read only.
    fn probe(&self) -> StoreFuture<'_, ()> {
        Box::pin(async { self.rows_after(None, 1).await.map(drop) })
    }

    /// What it has done so far, if it counts.
    fn figures(&self) -> Option<Arc<Figures>> {
        None
    }
}

/// What the command line does with a whole table. Blocking: a bulk operation
/// belongs on a thread of its own.
pub trait Bulk {
    /// Imports all rows in one transaction, or none. What the file leaves empty
    /// stays as it is in the table; a row that is there alike is not written. A
    /// row that changes a device clears its refusal. Unless nothing is changed, the
    /// audit log says in the same transaction what was, from which `file` and `by` whom.
    ///
    /// Rows are read to the end in any case: `reject` is called with each row
    /// that cannot be imported and its index from 0, before the next row is asked
    /// for, and then nothing is changed. `dry_run` does and reports all the same,
    /// and changes nothing.
    ///
    /// A device that has a certificate keeps its enrollment, product, name,
    /// secret and cloud identifier: another one is a conflict. So is a PSK
    /// identity that belongs to another device.
    fn import<E>(
        &self,
        by: &Actor,
        file: &str,
        rows: impl Iterator<Item = Result<ImportRow, E>>,
        dry_run: bool,
        reject: impl FnMut(u64, Rejection<E>),
    ) -> Result<ImportReport, ImportError>;

    /// Calls `each` with every row, in order of device ID, from one consistent
    /// state of the table, with the individual key (identity, psk hex) if any.
    fn export<E: From<StoreError>>(
        &self,
        each: impl FnMut(DeviceRow, Option<(String, Secret)>) -> Result<(), E>,
    ) -> Result<(), E>;

    /// How many rows there are. Reads the whole table: seconds for millions.
    fn count(&self) -> Result<u64, StoreError>;

    /// How many devices of each enrollment in the table are how far, in order of its
    /// name. Reads the whole table.
    fn totals(&self) -> Result<Vec<Totals>, StoreError>;

    /// How many of an enrollment's devices, or of all, may be registered and are not.
    /// Reads the whole table.
    fn count_unregistered(&self, enrollment: Option<&str>) -> Result<u64, StoreError>;
}

/// What is in the file of a store that nobody has opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Condition {
    /// It is not there; [`open`] makes it.
    Missing,
    /// It can be opened and is of the current version.
    Current,
    /// It is of this older version; [`open`] brings it up to date.
    Older(usize),
}

/// Looks at the store that a configuration's `database` names, and makes and changes
/// nothing.
pub fn examine(url: &str) -> Result<Condition, StoreError> {
    match url.split_once(':') {
        Some(("sqlite", path)) if !path.is_empty() => sqlite::Sqlite::examine(path.as_ref()),
        _ => Err(StoreError::Failed(format!("database = \"{url}\": expected sqlite:PATH"))),
    }
}

/// Opens the store that a configuration's `database` names, creating it when it
/// is not there, without a key for its secrets.
pub fn open(url: &str) -> Result<Arc<sqlite::Sqlite>, StoreError> {
    open_sealed(url, Keyring::default())
}

/// The same, with secrets that are sealed under `keys`.
pub fn open_sealed(url: &str, keys: Keyring) -> Result<Arc<sqlite::Sqlite>, StoreError> {
    match url.split_once(':') {
        Some(("sqlite", path)) if !path.is_empty() => {
            Ok(Arc::new(sqlite::Sqlite::open_sealed(path.as_ref(), keys)?))
        }
        _ => Err(StoreError::Failed(format!("database = \"{url}\": expected sqlite:PATH"))),
    }
}
