//! Claims on registrations. Any number of processes share a table, so a process claims a device
//! before it asks IoT Platform to register the device. A result is stored only if the process still
//! has the claim.
//!
//! A claim lasts as long as its owner lives. Each owner *beats* regularly. If a process has seen no
//! new beat of an owner for long enough, the process *fences* the owner. The owner's claims are
//! then abandoned, and other processes may take them over. No clocks are compared, so the clocks of
//! the processes may differ.

use super::{
    BatchId, Claim, JournalEntry, OpenBatch, OpenEntry, RegisteredDevice, StoreError, StoreFuture,
    UnixSeconds,
};
use crate::{
    device::{Certificate, DeviceId},
    random::random,
};

/// Random number of an [`Owner`].
pub type OwnerId = i64;

/// A process that claims registrations.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    /// Random number, chosen at each start.
    pub id: OwnerId,
    /// Description for operators, such as `certdist serve, process 4711`.
    pub name: String,
}

impl Owner {
    /// Creates an owner for this process, which runs `command`.
    pub fn new(command: &str) -> Result<Self, StoreError> {
        let id = new_id()?;
        Ok(Self { id, name: format!("certdist {command}, process {}", std::process::id()) })
    }
}

/// Returns a random number for an owner or a batch. It has 63 bits, so it is practically unique.
pub fn new_id() -> Result<i64, StoreError> {
    let bytes = random().map_err(|error| StoreError::Failed(error.to_string()))?;
    let [a, b, c, d, e, f, g, h, ..] = bytes;
    // The number is positive, so that it is easy to read in the table.
    Ok(i64::from_be_bytes([a, b, c, d, e, f, g, h]) & i64::MAX)
}

/// Number of an owner's beats, as [`Claims::beats`] returns it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Beat {
    /// The owner.
    pub owner: OwnerId,
    /// Number of the owner's beats so far.
    pub count: i64,
}

/// Time of a claim, by the clock of the claiming process, and the difference between this clock and
/// IoT Platform's clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClaimTime {
    /// Time by the process's own clock.
    pub at: UnixSeconds,
    /// Seconds to add to `at` to get IoT Platform's time; `None` if this number is not known.
    pub cloud_offset: Option<i64>,
}

/// Answer to a claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Claimed {
    /// The caller has the claim until the caller settles or releases it, or is fenced.
    Yours(Claim),
    /// Another living owner has the claim. Or an unfinished import is adding, or an undo is
    /// removing, this device or another device with the same name. The caller tries again later.
    Held,
    /// The device does not need this registration: its row has a certificate or a refusal, is
    /// disabled, has another product, name or target, or does not exist. An abandoned claim on the device
    /// is removed. But if the row is merely disabled, the claim stays, because IoT Platform may
    /// have been called for the device.
    NotWanted,
    /// Another row has the same name in the same product.
    NameTaken(DeviceId),
    /// The device is not in the journal, and no place is free in its enrollment
    /// ([`set_max_places`](super::place::CountsPlaces::set_max_places)).
    NoPlace,
    /// The device has an unfinished registration at another target, which this variant names, and
    /// the cloud of that target may have created the device. The device's row names no target, so
    /// only that registration can continue.
    Elsewhere(String),
}

/// Code of certdist's own refusal of a device whose name exists at IoT Platform and was not
/// registered by this server.
pub const NAME_IS_TAKEN: &str = "NameIsTaken";
/// Code of certdist's own refusal of a device whose `IotId` is already in another row.
pub const IOT_ID_IS_TAKEN: &str = "IotIdIsTaken";

/// Result of a registration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Settlement {
    /// The device is registered.
    Registered(RegisteredDevice),
    /// The device is refused for this reason, `CODE: MESSAGE`. The code is one of IoT Platform's,
    /// or one of certdist's own.
    Refused(String),
}

/// A claim as operators see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClaimView {
    /// The requested registration.
    pub entry: JournalEntry,
    /// Time at which the device name was written to the journal, by the clock of the writing
    /// process.
    pub since: UnixSeconds,
    /// Description of the owner; `None` for an abandoned claim.
    pub owner: Option<String>,
    /// Time of the owner's last beat, by the owner's clock.
    pub last_beat: Option<UnixSeconds>,
    /// The batch to which the claim belongs, if any.
    pub batch: Option<BatchId>,
}

/// A batch that was taken over, with its claims.
pub type TakenBatch = (OpenBatch, Vec<(JournalEntry, Claim)>);

/// Returns the first column in which two certificates of a device differ, if any.
pub(super) fn difference(stored: &Certificate, other: &Certificate) -> Option<&'static str> {
    [
        ("productKey", stored.product_key == other.product_key),
        ("deviceName", stored.device_name == other.device_name),
        ("deviceSecret", stored.device_secret == other.device_secret),
    ]
    .into_iter()
    .find_map(|(column, same)| (!same).then_some(column))
}

/// The part of a store that lets several processes register devices from one table.
///
/// Each write is one step. A write that failed with [`StoreError::Unknown`] can be repeated, and
/// then has the same result as a single write.
pub trait Claims: Send + Sync + 'static {
    /// Returns the last beats of all owners. If `own` is given, first records a beat of this owner.
    /// Fails if the table has owners but cannot be written now: no owner can beat while the table
    /// is locked, so living owners would seem dead.
    fn beats<'a>(&'a self, own: Option<&'a Owner>) -> StoreFuture<'a, Vec<Beat>>;

    /// Fences an owner that has not beaten since `seen`, so that its claims are abandoned. Returns
    /// whether the owner was fenced.
    fn fence(&self, seen: Beat) -> StoreFuture<'_, bool>;

    /// Retires an owner whose process stops, so that its claims are abandoned.
    fn retire(&self, owner: OwnerId) -> StoreFuture<'_, ()>;

    /// Retires an owner that has no claims, batches or leases, so that other processes need not
    /// watch it. Does nothing if the owner has any of these.
    fn retire_if_idle(&self, owner: OwnerId) -> StoreFuture<'_, ()>;

    /// Claims the registration of a device, durably, before IoT Platform is called for it. The
    /// answer says whether the caller has the claim and, if not, why.
    ///
    /// The new journal entry replaces an existing entry of the device. The new entry keeps the time
    /// of the existing entry if both have the same product, name and target and IoT Platform may have
    /// been called for the device. A claim outside a batch also notes that IoT Platform may have been
    /// called, because the caller calls it next. The next process that claims the device then knows
    /// that the device may exist at IoT Platform. The answer distinguishes earlier calls of the
    /// caller from calls of an earlier owner.
    ///
    /// If the existing entry belongs to another owner's batch that has no `ApplyId`, the batch ends. If
    /// the process of that owner was only suspended, it then begins nothing for the device.
    fn claim<'a>(
        &'a self,
        owner: &'a Owner,
        entry: &'a JournalEntry,
        now: ClaimTime,
    ) -> StoreFuture<'a, Claimed>;

    /// Claims the registrations of a batch durably, in one step. The caller has chosen the batch's
    /// random number. Returns an answer for each entry. The batch is in the journal from then on,
    /// even if it has no entries. Unlike `claim`, this method does not note that IoT Platform may
    /// have been called: `set_apply_id` notes that later, for all claims of the batch.
    fn claim_batch<'a>(
        &'a self,
        owner: &'a Owner,
        batch: &'a OpenBatch,
        entries: &'a [JournalEntry],
        now: ClaimTime,
    ) -> StoreFuture<'a, Vec<Claimed>>;

    /// Stores the `ApplyId` of a batch durably, before IoT Platform creates the batch's devices.
    /// Fails with [`StoreError::Fenced`] if the batch does not belong to `owner`.
    fn set_apply_id(&self, owner: OwnerId, batch: BatchId, apply_id: u64) -> StoreFuture<'_, ()>;

    /// Removes a batch of `owner`. The claims of the batch stay, as claims outside a batch. Does
    /// nothing if the batch belongs to another owner.
    fn close_batch(&self, owner: OwnerId, batch: BatchId) -> StoreFuture<'_, ()>;

    /// Stores the result of a claimed registration and ends the claim, in one durable step.
    /// Storing the same certificate again changes nothing. The cloud's `IotId` replaces one from an
    /// import, because only the cloud knows it for certain.
    ///
    /// # Errors
    ///
    /// [`StoreError::Fenced`] if the claim does not belong to `owner`; nothing is changed.
    /// [`StoreError::Conflict`] if the row was deleted, no longer needs this registration, or has
    /// another certificate, or if another row has the same `IotId`. On a conflict, the claim ends
    /// and the result is not stored. If the `IotId` is the cause, a refusal is stored instead.
    /// The error is also [`StoreError::Conflict`] if the device was moved to another enrollment that
    /// is full. In this case, the claim stays as an abandoned claim, because the device exists at
    /// IoT Platform.
    fn settle<'a>(
        &'a self,
        owner: OwnerId,
        entry: &'a JournalEntry,
        settlement: &'a Settlement,
    ) -> StoreFuture<'a, ()>;

    /// Ends a claim of `owner` without a result. If IoT Platform may have been called for the
    /// device (`asked`), the entry stays as an abandoned claim, so that a later call uses the same
    /// name. Does nothing if the claim belongs to another owner.
    fn release_claim<'a>(&'a self, owner: OwnerId, device: &'a DeviceId, asked: bool) -> StoreFuture<'a, ()>;

    /// Hands the abandoned batches of a target that have an `ApplyId` over to `owner`, together with
    /// their abandoned claims. The answer says for each claim whether IoT Platform may also have been
    /// called for the device outside the batch. Removes abandoned batches that have no `ApplyId`.
    /// The claims of a removed batch stay, as claims outside a batch.
    fn take_batches<'a>(&'a self, owner: &'a Owner, target: &'a str) -> StoreFuture<'a, Vec<TakenBatch>>;

    /// Returns up to `limit` abandoned entries of a target that are in no batch and whose devices
    /// are enabled, oldest first.
    fn abandoned<'a>(&'a self, target: &'a str, limit: usize) -> StoreFuture<'a, Vec<JournalEntry>>;

    /// Returns the claim on a device, if there is one.
    fn claim_of<'a>(&'a self, device: &'a DeviceId) -> StoreFuture<'a, Option<ClaimView>>;

    /// Stores the difference from IoT Platform's clock in those claims of the owner that have no
    /// difference yet. Called when the difference becomes known.
    fn note_cloud_offset(&self, owner: OwnerId, offset: i64) -> StoreFuture<'_, ()>;

    /// Returns all batches, in order of their numbers.
    fn open_batches(&self) -> StoreFuture<'_, Vec<OpenBatch>>;

    /// Returns all entries of the journal, oldest first.
    fn open_entries(&self) -> StoreFuture<'_, Vec<OpenEntry>>;
}
