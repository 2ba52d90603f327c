//! Storage of the device table and related data: the keys of individual devices, the registration
//! journal, and the first issue of each certificate. Other modules use the trait [`Store`]. Each
//! store is one file or folder of this module, and one line in [`open`]. Stores know nothing about
//! policies.

/// Defines methods that call the same methods of another store.
macro_rules! pass_on {
    ($this:ident to $store:expr; $(fn $name:ident($($argument:ident: $type:ty),*) -> $answer:ty;)*) => {
        $(fn $name<'a>(&'a $this, $($argument: $type),*) -> StoreFuture<'a, $answer> {
            $store.$name($($argument),*)
        })*
    };
}

/// Defines methods like [`pass_on`], for methods that return their result at once.
macro_rules! pass_results_on {
    ($this:ident to $store:expr; $(fn $name:ident($($argument:ident: $type:ty),*) -> $answer:ty;)*) => {
        $(fn $name(&$this, $($argument: $type),*) -> Result<$answer, StoreError> {
            $store.$name($($argument),*)
        })*
    };
}

mod actor;
pub mod audit;
pub mod backup;
mod bulk;
mod chain;
pub(crate) mod check;
pub mod claim;
#[cfg(all(test, feature = "simulation"))]
mod contract;
pub mod copy;
pub mod filter;
pub mod key_use;
pub mod lease;
pub mod merge;
mod opening;
pub mod order;
pub mod place;
pub mod postgres;
pub mod retention;
pub mod roll;
pub mod seal_step;
pub mod sealed;
pub mod server;
pub mod shelf;
pub mod sighting;
pub mod sqlite;
mod staging;
pub mod turn;
pub mod undo;
pub mod waiting;

use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
};

pub use self::{
    actor::Actor,
    bulk::{
        Bulk, Conflict, CountCheck, Each, ImportActivity, ImportError, ImportJob, ImportReport, ImportRow,
        ImportStage, Miscount, Reject, Rejection, Rows, SameSecret, Totals, Unreadable,
    },
    opening::{
        Condition, Copying, check_keys, clear_secrets, copy_between, devices_by_enrollment, examine, file_of,
        has_devices_without_target, is_there, look, open, preview, remove_unused, shared_names, shown,
        targets,
    },
    sighting::Sighting,
};
use self::{
    audit::{Asked, Asker, AuditEntry, AuditLog},
    claim::Claims,
    key_use::KeyUses,
    lease::Leases,
    order::Orders,
    place::CountsPlaces,
    roll::Rolls,
    sealed::Keys,
    server::Servers,
    shelf::Shelf,
    sighting::Sightings,
    turn::Turns,
    waiting::WaitingList,
};
pub use crate::unix_time::{UnixSeconds, unix_now};
use crate::{
    device::{Certificate, DeviceId, Secret},
    histogram::Histogram,
    target,
};

/// Answer of a store. If the answer is available at once, the future is ready at its first
/// poll, so that a hot path needs no task.
pub type StoreFuture<'a, T> = Pin<Box<dyn Future<Output = Result<T, StoreError>> + Send + 'a>>;

/// Failure of a store's operation. The operation has changed nothing unless the variant says
/// otherwise.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// A temporary failure, after which the same call may succeed. For example, another process has
    /// locked the database, or the disk is full.
    #[error("the database is not available now: {0}")]
    Busy(String),
    /// The row does not meet a condition of the operation, or no longer meets it. Contains the
    /// reason.
    #[error("{0}")]
    Conflict(String),
    /// The answer was lost, so the operation may have been done. The caller can repeat the
    /// operation without harm.
    #[error("the database may or may not have done it: {0}")]
    Unknown(String),
    /// The caller no longer has the claim, batch or lease, which another process may have taken
    /// over.
    #[error("another process has taken this registration over")]
    Fenced,
    /// The database does not exist, or the operator must change it before it can be used. Contains
    /// a sentence that names the file.
    #[error("{0}")]
    Unusable(String),
    /// Any other failure, for example because the file is read-only, damaged or not a database.
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
    /// Product in which the device is registered, or will be registered.
    pub product_key: String,
    /// Device name, if the operator or a registration has set it; otherwise
    /// [`DeviceId::device_name`] applies.
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
    /// Reason why the registration of this device is refused. The operator must fix the cause and then
    /// reset the device.
    pub refusal: Option<String>,
    /// Abnormal state at IoT Platform, as of the last query; `None` if no abnormal state is known.
    pub cloud_state: Option<CloudState>,
    /// Target that the operator or a registration has set; see [`DeviceRow::target`].
    pub target: Option<String>,
}

impl DeviceRow {
    /// Returns the device's name at IoT Platform: `device_name` if it is set, otherwise the
    /// name derived from the device ID.
    pub fn name(&self) -> String {
        self.device_name.clone().unwrap_or_else(|| self.id.device_name())
    }

    /// Returns the registration for which the row asks, at this target.
    pub fn wanted(&self, target: &str) -> JournalEntry {
        JournalEntry {
            device: self.id.clone(),
            product_key: self.product_key.clone(),
            device_name: self.name(),
            target: target.to_owned(),
        }
    }

    /// Returns the target at which the device is registered or will be registered; `None` if that
    /// is decided when it is registered.
    pub fn target(&self) -> Option<&str> {
        target::of(self.target.as_deref(), self.certificate.is_some())
    }
}

#[cfg(test)]
impl DeviceRow {
    /// Returns the row of a device that was imported without optional values.
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
            target: None,
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

/// Abnormal state of a registered device at IoT Platform.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CloudState {
    /// The device is disabled at IoT Platform and cannot sign in.
    Disabled,
    /// The device was deleted at IoT Platform, so its certificate no longer works.
    Deleted,
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
    /// The only device whose certificate may be requested with this key.
    pub device: DeviceId,
    /// Name of the device's enrollment.
    pub enrollment: String,
    /// Pre-shared key, 16–64 bytes, as hex.
    pub psk: Secret,
    /// Second key, which the device may have as well.
    pub next: Option<Secret>,
    /// Time at which the device was given its second key. It distinguishes this roll from a later one.
    pub next_since: Option<UnixSeconds>,
}

/// Answer of [`Store::individual_key`].
#[derive(Debug, Clone, Default)]
pub struct KeyLookup {
    /// The key; `None` if no device has the identity.
    pub found: Option<IndividualKey>,
    /// Set if any device of the table has a second key. Two keys must then be tried for every
    /// identity.
    pub are_rolling: bool,
}

/// Answer of [`Store::record_issue`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Issue {
    /// Time at which the certificate was first issued.
    pub first: UnixSeconds,
    /// Set if this call recorded the first issue. Of several concurrent calls, exactly one records
    /// it.
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
    /// Name of the target whose cloud is asked.
    pub target: String,
}

/// A claim, as its owner receives it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Claim {
    /// Time at which the device name was written to the journal, by the clock of the writing
    /// process.
    pub since: UnixSeconds,
    /// Seconds to add to `since` to get the cloud's time; `None` if the process did not know the
    /// cloud's time.
    pub cloud_offset: Option<i64>,
    /// Owner that may have asked the cloud for the device before this claim.
    pub asked_by: AskedBy,
}

/// Owner that may have asked the cloud to create a device before a claim. The call of such an owner
/// may have created the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AskedBy {
    /// No owner. If the claim was taken over together with a batch, the cloud may have been asked
    /// for the device, but only through the batch.
    Nobody,
    /// Only the caller, which had the claim before. The caller knows whether it has really asked the
    /// cloud; the store does not.
    Caller,
    /// An owner before the caller.
    Other,
}

/// Random number that identifies a batch in the journal.
pub type BatchId = i64;

/// A batch in the journal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenBatch {
    /// Number of the batch.
    pub id: BatchId,
    /// Product of all devices in the batch.
    pub product_key: String,
    /// The cloud's `ApplyId` for the batch; `None` if the cloud was not yet asked to create the
    /// devices.
    pub apply_id: Option<u64>,
    /// Name of the target whose cloud is asked.
    pub target: String,
}

/// A journal entry of a registration whose result is not stored yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenEntry {
    /// The requested registration.
    pub entry: JournalEntry,
    /// Time at which the entry for this name was first opened.
    pub since: UnixSeconds,
    /// Batch to which the entry belongs, if any.
    pub batch: Option<BatchId>,
}

/// Data of a device that IoT Platform has registered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegisteredDevice {
    /// The certificate.
    pub certificate: Certificate,
    /// `IotId`, if the cloud has returned it.
    pub iot_id: Option<String>,
    /// Time of the registration.
    pub registered: UnixSeconds,
}

/// Clock of one handle of a store: the system's clock plus a correction, which the registrar sets
/// according to the cloud's clock.
#[derive(Debug, Default)]
pub struct Clock(AtomicI64);

impl Clock {
    /// Returns the seconds since 1970.
    pub fn now(&self) -> UnixSeconds {
        unix_now().saturating_add(self.ahead())
    }

    /// Returns how far this clock is ahead of the system's clock, in seconds.
    pub fn ahead(&self) -> i64 {
        self.0.load(Ordering::Relaxed)
    }

    /// Sets how far this clock is ahead of the system's clock, in seconds.
    pub fn set_ahead(&self, seconds: i64) {
        self.0.store(seconds, Ordering::Relaxed);
    }
}

/// Metrics of a store, which any thread may read.
#[derive(Debug, Default)]
pub struct Metrics {
    /// Number of writes that currently wait for their commit.
    pub waiting: AtomicU64,
    /// Number of writes that were committed.
    pub written: AtomicU64,
    /// Number of writes that were not done because the row did not meet their conditions, for
    /// example because the device had been disabled in the meantime.
    pub refused: AtomicU64,
    /// Number of writes that failed because of the database: the write or its group could not be
    /// done, or the queue was full.
    pub failed: AtomicU64,
    /// Duration of each commit, which may contain many writes.
    pub commit_latency: Histogram,
    /// Number of database keys that seal secrets in the store and that this process lacks, as of the
    /// last check.
    pub keys_missing: AtomicU64,
    /// Number of repeats that were not written to the audit log because too many entries were
    /// waiting.
    pub repeats_dropped: AtomicU64,
    /// Number of lines that could not be read in the outboxes of processes that have ended.
    pub lines_unreadable: AtomicU64,
    /// Number of expired entries that were removed from the audit log.
    pub changes_removed: AtomicU64,
    /// Number of expired records of repeats that were removed from the audit log.
    pub repeats_removed: AtomicU64,
}

/// Storage of the device table. A write begins when its method is called, and not at the first
/// poll. The write continues even if its future is dropped. `store/contract.rs` tests each
/// statement in the documentation of this trait.
pub trait Store:
    Claims + CountsPlaces + KeyUses + Leases + Orders + Rolls + Servers + Shelf + Turns + Sightings + WaitingList
{
    /// Returns the row of a device.
    fn device<'a>(&'a self, id: &'a DeviceId) -> StoreFuture<'a, Option<DeviceRow>>;

    /// Returns the ID of a device that is in the table under another spelling of this MAC address.
    /// Earlier versions stored an unusual spelling as a serial number.
    fn spelled<'a>(&'a self, mac: &'a DeviceId) -> StoreFuture<'a, Option<DeviceId>>;

    /// Returns the enrollment of a device. The duration must not reveal whether the device exists,
    /// or what else is in its row. Therefore this method opens no secret.
    fn enrollment_of<'a>(&'a self, id: &'a DeviceId) -> StoreFuture<'a, Option<String>>;

    /// Returns the individual key of a PSK identity. The duration must not reveal whether the
    /// identity exists, or how many keys its device has: each identity costs the same work.
    fn individual_key<'a>(&'a self, identity: &'a str) -> StoreFuture<'a, KeyLookup>;

    /// Records durably that `certificate` is issued to `asker` now, and writes the audit entry in the
    /// same step. If the certificate was issued before, records nothing and returns the earlier
    /// issue. `issue_id` is a random number that the caller chooses for each request: a call that is
    /// repeated with the same number gets the same answer.
    ///
    /// Fails with [`StoreError::Conflict`] unless the device is, at that moment, enabled, in the
    /// asker's enrollment, and has this certificate.
    fn record_issue<'a>(
        &'a self,
        id: &'a DeviceId,
        certificate: &'a Certificate,
        issue_id: i64,
        asker: Asker,
    ) -> StoreFuture<'a, Issue>;

    /// Adds an entry to the audit log soon, without waiting for the log. Once this method has
    /// returned, the entry is kept even if the process ends. An entry that is added between
    /// [`hold`](Self::hold) and [`release`](Self::release) is kept only once `release` has
    /// returned. An entry that changes nothing becomes part of a record of repeats. If too many
    /// entries are waiting, a reissue is dropped, and the log records the number of dropped ones;
    /// any other entry fails, and the caller must not do what the entry says.
    fn audit(&self, asked: Asked) -> Result<(), StoreError>;

    /// Returns up to `limit` audit entries and records of repeats about a device, newest first. The
    /// repeats of one day are in one record, unless the limit is reached. Entries of the last second
    /// may be missing.
    fn history<'a>(&'a self, id: &'a DeviceId, limit: usize) -> StoreFuture<'a, Vec<AuditEntry>>;

    /// Returns up to `limit` rows in order of device ID, beginning after the ID `after`. A caller
    /// reads the whole table by repeated calls, each with the last ID of the previous call.
    fn rows_after<'a>(&'a self, after: Option<&'a DeviceId>, limit: usize)
    -> StoreFuture<'a, Vec<DeviceRow>>;

    /// Enables or disables a device. Returns whether the device exists. In the same step, writes an
    /// audit entry that names `by`. The methods `reset` and `delete` also write such an entry.
    fn set_state<'a>(&'a self, id: &'a DeviceId, state: DeviceState, by: &'a Actor) -> StoreFuture<'a, bool>;

    /// Clears the first issue and any refusal, so that the device can fetch its certificate again
    /// or be registered again. Also clears the certificate if the cloud has deleted the device.
    /// Returns whether the device exists.
    fn reset<'a>(&'a self, id: &'a DeviceId, by: &'a Actor) -> StoreFuture<'a, bool>;

    /// Clears a device's refusal if it is still `refusal`. Returns whether the refusal was cleared.
    /// In the same step, writes an audit entry that names `by`.
    fn clear_refusal<'a>(
        &'a self,
        id: &'a DeviceId,
        refusal: &'a str,
        by: &'a Actor,
    ) -> StoreFuture<'a, bool>;

    /// Deletes the row, the key and the claim of a device. Returns whether the device existed.
    fn delete<'a>(&'a self, id: &'a DeviceId, by: &'a Actor) -> StoreFuture<'a, bool>;

    /// Makes all reads of this thread, until [`release`](Self::release), see the state that the
    /// table has at the first of these reads. The store can then omit the check for newer data at
    /// each read, and can write the thread's audit entries together. The caller must call `release`
    /// soon, and before it sends answers.
    fn hold(&self) {}

    /// Ends the effect of [`hold`](Self::hold).
    fn release(&self) {}

    /// Fails if a file that this handle has open was removed or replaced, so that other processes
    /// no longer find it under the store's name.
    fn is_in_place(&self) -> Result<(), StoreError> {
        Ok(())
    }

    /// Checks that the store can be read and written durably, without changing it. The default
    /// implementation only reads.
    fn probe(&self) -> StoreFuture<'_, ()> {
        Box::pin(async { self.rows_after(None, 1).await.map(drop) })
    }

    /// Returns the time by this handle's clock, in seconds since 1970.
    fn now(&self) -> UnixSeconds {
        unix_now()
    }

    /// Returns how far this handle's clock is ahead of the system's clock, in seconds.
    fn ahead(&self) -> i64 {
        let (before, now) = (unix_now(), self.now());
        // If a second has begun between the two readings, the next two belong to the same one.
        if unix_now() == before { now.saturating_sub(before) } else { self.now().saturating_sub(unix_now()) }
    }

    /// Sets how far this handle's clock is ahead of the system's clock, in seconds. The system's
    /// clock may be wrong, so the caller derives this correction from the cloud's clock. The
    /// default implementation does nothing.
    fn set_clock_ahead(&self, _seconds: i64) {}

    /// Returns the store's metrics, if it has any.
    fn metrics(&self) -> Option<Arc<Metrics>> {
        None
    }
}

/// A store with everything that a server, its console and the command line need.
pub trait Table: Store + Bulk + AuditLog + Keys {}

impl<S: Store + Bulk + AuditLog + Keys> Table for S {}

/// Devices of one product that have the same device name, and so would share one device at IoT
/// Platform. An older database may contain such devices, although certdist no longer adds them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SharedName {
    /// Product of these devices.
    pub product_key: String,
    /// Name of these devices.
    pub device_name: String,
    /// ID of the first of these devices.
    pub device: String,
    /// Number of these devices.
    pub devices: u64,
}
