//! Seals the secrets of any store. A store keeps its secrets as texts that it does not interpret;
//! [`Sealed`] seals them on the way in and opens them on the way out. This module also changes the
//! database keys while other processes use the store. The module `seal` contains the cipher.

mod passed_on;

use std::{
    collections::HashSet,
    ops::ControlFlow,
    sync::atomic::Ordering,
    task::{Context, Poll, Waker},
    thread,
    time::Duration,
};

use arc_swap::ArcSwap;

use super::{
    Actor, BatchId, Bulk, CountCheck, DeviceRow, DeviceState, Each, ImportActivity, ImportError, ImportJob,
    ImportReport, ImportRow, IndividualKey, Issue, JournalEntry, KeyLookup, Metrics, OpenBatch, OpenEntry,
    RegisteredDevice, Reject, Rows, Store, StoreError, StoreFuture, Totals, UnixSeconds, Unreadable,
    audit::{Asked, Asker, AuditEntry},
    backup::Contents,
    claim::{Beat, ClaimTime, ClaimView, Claimed, Claims, Owner, OwnerId, Settlement, TakenBatch},
    filter::{self, Cursor, Found, Held, Listed, Tally},
    order::{
        Begun, Carrier, Completed, Move, Moved, Order, OrderKind, OrderNote, OrderNumber, Orders, Placed,
    },
    roll::DeviceKeys,
    seal_step::SealStep,
    undo::{ImportId, ImportRecord, Left, Undo, UndoError, Undone},
};
use crate::{
    device::{AskedId, Certificate, DeviceId, Secret},
    seal::{KeyId, Keyring, Place, SealError},
};

/// Maximum number of values that one step of [`Keys::seal_all`] seals.
const BATCH: usize = 500;

/// Pause between two steps of [`Keys::seal_all`], so that waiting writers get their turn.
const PAUSE: Duration = Duration::from_millis(1);

/// A column that holds secrets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SecretColumn {
    /// The device secrets. The primary key is the device ID.
    DeviceSecret,
    /// The pre-shared keys of individual devices. The primary key is the PSK identity.
    Psk,
    /// The second keys of these devices. A second key is sealed for the same `Place` as the first
    /// key, because it becomes the first key when the roll ends.
    PskNext,
}

impl SecretColumn {
    /// All columns, in the order in which they are sealed. Second keys come before first keys: if a
    /// roll ends meanwhile, its second key becomes the first key, and would be missed in the other
    /// order.
    pub const ALL: [Self; 3] = [Self::DeviceSecret, Self::PskNext, Self::Psk];

    fn place<'a>(self, stored: &'a StoredSecret) -> Place<'a> {
        match self {
            Self::DeviceSecret => Place::DeviceSecret(&stored.device),
            Self::Psk | Self::PskNext => Place::Psk { device: &stored.device, identity: &stored.primary },
        }
    }
}

/// A secret as it is stored, sealed or not.
#[derive(Debug, Clone)]
pub struct StoredSecret {
    /// Primary key of the row.
    pub primary: String,
    /// Device ID of the row.
    pub device: String,
    /// The stored text.
    pub value: Secret,
}

/// Number of values that are sealed under one database key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnderKey {
    /// ID of the database key; `None` for values that are not sealed.
    pub key: Option<String>,
    /// Number of device secrets.
    pub device_secrets: u64,
    /// Number of pre-shared keys of individual devices, first and second ones.
    pub psks: u64,
}

impl UnderKey {
    /// Adds a number of values of one column to the counts.
    pub fn add(counts: &mut Vec<Self>, key: Option<String>, column: SecretColumn, values: u64) {
        let at = counts.iter().position(|count| count.key == key).unwrap_or_else(|| {
            counts.push(Self { key, device_secrets: 0, psks: 0 });
            counts.len() - 1
        });
        match column {
            SecretColumn::DeviceSecret => counts[at].device_secrets += values,
            SecretColumn::Psk | SecretColumn::PskNext => counts[at].psks += values,
        }
    }

    /// Returns the number of values that are not sealed under this database key.
    pub fn others(counts: &[Self], key: &str) -> u64 {
        let others = counts.iter().filter(|count| count.key.as_deref() != Some(key));
        others.map(|count| count.device_secrets + count.psks).sum()
    }
}

/// Result of sealing all values under one database key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SealReport {
    /// The database key under which all values are sealed now.
    pub key: KeyId,
    /// Number of values that this run sealed under `key`.
    pub sealed: u64,
}

/// The part of a store that [`Sealed`] needs to change the database keys. A sealed value names its
/// database key ([`key_of`](crate::seal::key_of)). A store notes that key in the same step in which
/// it writes the value. The methods block.
pub trait StoredSecrets: Send + Sync + 'static {
    /// Returns the IDs of all noted database keys.
    fn keys_in_use(&self) -> Result<Vec<String>, StoreError>;

    /// Counts the values under each database key. Reads the whole table.
    fn count_secrets(&self) -> Result<Vec<UnderKey>, StoreError>;

    /// Counts the values that are not sealed, without reading the whole table. The number may be too
    /// small if there are more than a hundred thousand pre-shared keys.
    fn count_clear(&self) -> Result<u64, StoreError>;

    /// Returns up to `limit` values that are not sealed under the database key `key`, in order of
    /// the primary key, beginning after the primary key `after`.
    fn secrets_not_under(
        &self,
        column: SecretColumn,
        key: &str,
        after: &str,
        limit: usize,
    ) -> Result<Vec<StoredSecret>, StoreError>;

    /// Replaces each value that has not changed since it was read, all in one step. All new values
    /// are sealed under the same database key.
    fn replace_secrets(
        &self,
        column: SecretColumn,
        values: &[(StoredSecret, Secret)],
    ) -> Result<(), StoreError>;

    /// Removes all traces of replaced values, and forgets all noted database keys except `key`.
    /// Fails if any value is not sealed under `key`. If anything changes, writes an audit entry
    /// with the number of values that were `sealed`.
    fn keep_only_key(
        &self,
        key: &str,
        sealed: u64,
        by: &Actor,
        progress: &mut dyn FnMut(SealStep),
    ) -> Result<(), StoreError>;

    /// Shows other processes the database key under which this process seals. The default
    /// implementation does nothing.
    fn show_key(&self, _key: Option<&str>) {}

    /// Fails if another process shows that it seals under another database key, or seals nothing.
    fn all_seal_under(&self, _key: &str) -> Result<(), StoreError> {
        Ok(())
    }
}

/// The database keys of a store's secrets. The methods block.
pub trait Keys {
    /// Replaces the database keys. The first one seals, and any of them opens. If the new keys do
    /// not open every secret in the store, fails and keeps the former keys.
    fn set_keys(&self, keys: Keyring) -> Result<(), StoreError>;

    /// Fails if this process's database keys do not open every secret in the store, because another
    /// process has sealed secrets under a key that this process does not have.
    fn check_keys(&self) -> Result<(), StoreError>;

    /// Counts the values under each database key. Reads the whole table.
    fn key_counts(&self) -> Result<Vec<UnderKey>, StoreError>;

    /// Counts the values that are not sealed, as [`StoredSecrets::count_clear`] does.
    fn clear_count(&self) -> Result<u64, StoreError>;

    /// Seals under the first database key all values that are unsealed or sealed under another key.
    /// Meanwhile, other processes can read and write. Fails before the first value if another
    /// process does not seal under the first key, because that process might not be able to read
    /// the values. An interrupted run keeps the work that it has done. After a complete run, the
    /// other keys are no longer needed, and the store has no trace of the former values.
    fn seal_all(&self, by: &Actor, progress: &mut dyn FnMut(SealStep)) -> Result<SealReport, StoreError>;
}

/// Iterates over the keys in use that are not among `keys`.
fn missing<'a>(keys: &Keyring, in_use: &'a [String]) -> impl Iterator<Item = &'a String> {
    let configured: Vec<String> = keys.ids().map(|key| key.to_string()).collect();
    in_use.iter().filter(move |key| !configured.contains(key))
}

/// Checks that these database keys open all secrets. `in_use` has the IDs of the keys under which
/// the secrets are sealed.
pub fn check(keys: &Keyring, in_use: &[String]) -> Result<(), String> {
    let Some(missing) = missing(keys, in_use).next() else { return Ok(()) };
    let configured: Vec<String> = keys.ids().map(|key| key.to_string()).collect();
    Err(match &configured[..] {
        [] => format!(
            "its secrets are sealed under key {missing}, and none is configured; expected \
             database_key = \"file:PATH\", \"env:NAME\" or \"credential:NAME\" with that key"
        ),
        configured => format!(
            "it has secrets that are sealed under key {missing}, and the keys configured are {}; \
             add that key to database_key_previous, or give it as database_key if another was put there \
             by mistake",
            configured.join(", ")
        ),
    })
}

/// A store whose secrets are sealed. Without any database key, new secrets are stored unsealed.
pub struct Sealed<S> {
    inner: S,
    /// The current database keys, which are read without a lock.
    keys: ArcSwap<Keyring>,
}

impl<S> Sealed<S> {
    /// Wraps a store. The database keys must open all secrets of the store, which [`check`]
    /// verifies.
    pub fn new(inner: S, keys: Keyring) -> Self {
        Self { inner, keys: ArcSwap::from_pointee(keys) }
    }

    /// Returns the wrapped store.
    pub fn inner(&self) -> &S {
        &self.inner
    }

    /// Returns the wrapped store, and drops the database keys.
    pub fn into_inner(self) -> S {
        self.inner
    }

    /// Opens the secrets in an answer. If the answer is available at once, the result is available
    /// at once, too.
    fn opened<'a, T: Send + 'a, U>(
        &'a self,
        answer: StoreFuture<'a, T>,
        open: impl FnOnce(&Keyring, T) -> Result<U, SealError> + Send + 'a,
    ) -> StoreFuture<'a, U> {
        let keys = &self.keys;
        Box::pin(async move {
            let stored = answer.await?;
            open(&keys.load(), stored).map_err(failed)
        })
    }
}

fn failed(error: SealError) -> StoreError {
    StoreError::Failed(error.to_string())
}

fn open_row(keys: &Keyring, mut row: DeviceRow) -> Result<DeviceRow, SealError> {
    if let Some(certificate) = &mut row.certificate {
        keys.open_in_place(Place::DeviceSecret(row.id.as_str()), &mut certificate.device_secret)?;
    }
    Ok(row)
}

fn seal_registered(
    keys: &Keyring,
    device: &DeviceId,
    clear: RegisteredDevice,
) -> Result<RegisteredDevice, SealError> {
    let secret = keys.seal(Place::DeviceSecret(device.as_str()), clear.certificate.device_secret.expose())?;
    let certificate = Certificate { device_secret: secret, ..clear.certificate };
    Ok(RegisteredDevice { certificate, ..clear })
}

fn seal_row(keys: &Keyring, mut row: ImportRow) -> Result<ImportRow, SealError> {
    let device = row.device.as_str();
    if let Some(secret) = &mut row.device_secret {
        *secret = keys.seal(Place::DeviceSecret(device), secret.expose())?;
    }
    if let Some((identity, psk)) = &mut row.key {
        let place = Place::Psk { device, identity };
        *psk = keys.seal(place, psk.expose())?;
        if let Some(next) = &mut row.next_key {
            *next = keys.seal(place, next.expose())?;
        }
    }
    Ok(row)
}

impl<S: StoredSecrets> Sealed<S> {
    /// Shows other processes the database key under which this process seals.
    pub fn show_key(&self) {
        let key = self.keys.load().first().map(|key| key.to_string());
        self.inner.show_key(key.as_deref());
    }
}

/// Polls a future once, so that its write begins.
fn begun<'a, T: Send + 'a>(mut future: StoreFuture<'a, T>) -> StoreFuture<'a, T> {
    match future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(answer) => Box::pin(std::future::ready(answer)),
        Poll::Pending => future,
    }
}

impl<S: Store + StoredSecrets> Store for Sealed<S> {
    pass_on! {
        self to self.inner;
        fn spelled(mac: &'a DeviceId) -> Option<DeviceId>;
        fn enrollment_of(id: &'a DeviceId) -> Option<String>;
        fn record_issue(id: &'a DeviceId, certificate: &'a Certificate, issue_id: i64, asker: Asker) -> Issue;
        fn history(id: &'a DeviceId, limit: usize) -> Vec<AuditEntry>;
        fn set_state(id: &'a DeviceId, state: DeviceState, by: &'a Actor) -> bool;
        fn reset(id: &'a DeviceId, by: &'a Actor) -> bool;
        fn clear_refusal(id: &'a DeviceId, refusal: &'a str, by: &'a Actor) -> bool;
        fn delete(id: &'a DeviceId, by: &'a Actor) -> bool;
    }

    fn probe(&self) -> StoreFuture<'_, ()> {
        let probed = self.inner.probe();
        Box::pin(async {
            probed.await?;
            self.check_keys()
        })
    }

    fn device<'a>(&'a self, id: &'a DeviceId) -> StoreFuture<'a, Option<DeviceRow>> {
        self.opened(self.inner.device(id), |keys, row| row.map(|row| open_row(keys, row)).transpose())
    }

    fn individual_key<'a>(&'a self, identity: &'a str) -> StoreFuture<'a, KeyLookup> {
        self.opened(self.inner.individual_key(identity), move |keys, mut lookup| {
            let Some(found) = &mut lookup.found else {
                keys.open_decoy()?;
                if lookup.are_rolling {
                    keys.open_decoy()?;
                }
                return Ok(lookup);
            };
            let IndividualKey { device, psk, next, .. } = found;
            let place = Place::Psk { device: device.as_str(), identity };
            keys.open_one(place, psk)?;
            match next {
                Some(next) => keys.open_one(place, next)?,
                None if lookup.are_rolling => keys.open_decoy()?,
                None => {}
            }
            Ok(lookup)
        })
    }

    fn audit(&self, asked: Asked) -> Result<(), StoreError> {
        self.inner.audit(asked)
    }

    fn rows_after<'a>(
        &'a self,
        after: Option<&'a DeviceId>,
        limit: usize,
    ) -> StoreFuture<'a, Vec<DeviceRow>> {
        Box::pin(async move {
            let (mut after, mut rows) = (after.cloned(), Vec::new());
            loop {
                let stored = self.inner.rows_after(after.as_ref(), limit - rows.len()).await?;
                let Some(last) = stored.last() else { return Ok(rows) };
                after = Some(last.id.clone());
                let (keys, expected) = (self.keys.load_full(), rows.len() + stored.len());
                for row in stored {
                    match open_row(&keys, row) {
                        Ok(row) => rows.push(row),
                        // A row with a damaged secret is left out, so that the other rows can be
                        // read.
                        Err(error @ SealError::Broken(_)) => tracing::error!(%error, "a row is left out"),
                        Err(error) => return Err(failed(error)),
                    }
                }
                // More rows are read to replace the rows that were left out, so that only the last
                // page is shorter than `limit`.
                if rows.len() == expected {
                    return Ok(rows);
                }
            }
        })
    }

    fn hold(&self) {
        self.inner.hold();
    }

    fn release(&self) {
        self.inner.release();
    }

    fn is_in_place(&self) -> Result<(), StoreError> {
        self.inner.is_in_place()
    }

    fn now(&self) -> UnixSeconds {
        self.inner.now()
    }

    fn set_clock_ahead(&self, seconds: i64) {
        self.inner.set_clock_ahead(seconds);
    }

    fn metrics(&self) -> Option<std::sync::Arc<Metrics>> {
        self.inner.metrics()
    }
}

impl<S: Store + StoredSecrets> Claims for Sealed<S> {
    pass_on! {
        self to self.inner;
        fn beats(own: Option<&'a Owner>) -> Vec<Beat>;
        fn fence(seen: Beat) -> bool;
        fn retire(owner: OwnerId) -> ();
        fn retire_if_idle(owner: OwnerId) -> ();
        fn claim(owner: &'a Owner, entry: &'a JournalEntry, now: ClaimTime) -> Claimed;
        fn claim_batch(
            owner: &'a Owner,
            batch: &'a OpenBatch,
            entries: &'a [JournalEntry],
            now: ClaimTime
        ) -> Vec<Claimed>;
        fn set_apply_id(owner: OwnerId, batch: BatchId, apply_id: u64) -> ();
        fn close_batch(owner: OwnerId, batch: BatchId) -> ();
        fn release_claim(owner: OwnerId, device: &'a DeviceId, asked: bool) -> ();
        fn take_batches(owner: &'a Owner, target: &'a str) -> Vec<TakenBatch>;
        fn abandoned(target: &'a str, limit: usize) -> Vec<JournalEntry>;
        fn claim_of(device: &'a DeviceId) -> Option<ClaimView>;
        fn note_cloud_offset(owner: OwnerId, offset: i64) -> ();
        fn open_batches() -> Vec<OpenBatch>;
        fn open_entries() -> Vec<OpenEntry>;
    }

    fn settle<'a>(
        &'a self,
        owner: OwnerId,
        entry: &'a JournalEntry,
        settlement: &'a Settlement,
    ) -> StoreFuture<'a, ()> {
        let Settlement::Registered(clear) = settlement else {
            return self.inner.settle(owner, entry, settlement);
        };
        begun(Box::pin(async move {
            let sealed = seal_registered(&self.keys.load(), &entry.device, clear.clone()).map_err(failed)?;
            let settled = self.inner.settle(owner, entry, &Settlement::Registered(sealed)).await;
            // Sealing the same secret twice gives different values. So the wrapped store cannot
            // recognize that the row already has this certificate.
            if matches!(settled, Err(StoreError::Fenced | StoreError::Conflict(_)))
                && let Some(row) = self.device(&entry.device).await?
                && row.certificate.as_ref() == Some(&clear.certificate)
            {
                return Ok(());
            }
            settled
        }))
    }
}

impl<S: Store + StoredSecrets> Orders for Sealed<S> {
    pass_on! {
        self to self.inner;
        fn place_order(device: &'a DeviceId, kind: OrderKind, by: &'a Actor) -> Placed;
        fn place_move(device: &'a DeviceId, to: &'a Move, begun: Begun, by: &'a Actor) -> Placed;
        fn orders_after(target: Option<&'a str>, after: OrderNumber, limit: usize) -> Vec<Order>;
        fn order_of(device: &'a DeviceId) -> Option<Order>;
        fn note_order(number: OrderNumber, note: OrderNote) -> bool;
        fn complete_order(order: &'a Order, now: ClaimTime) -> Completed;
        fn end_order(number: OrderNumber, reason: &'a str, by: &'a Actor) -> bool;
        fn give_order_up(seen: &'a Order, carrier: &'a Carrier, reason: &'a str, by: &'a Actor)
            -> Option<Order>;
    }

    fn store_move<'a>(
        &'a self,
        order: &'a Order,
        registered: &'a RegisteredDevice,
    ) -> StoreFuture<'a, Moved> {
        begun(Box::pin(async move {
            let sealed =
                seal_registered(&self.keys.load(), &order.device, registered.clone()).map_err(failed)?;
            self.inner.store_move(order, &sealed).await
        }))
    }
}

impl<S: Bulk> Bulk for Sealed<S> {
    fn import(
        &self,
        job: ImportJob<'_>,
        rows: Rows<'_>,
        reject: Reject<'_>,
    ) -> Result<ImportReport, ImportError> {
        let keys = self.keys.load_full();
        // The stored and the imported secret are both sealed here, but the caller compares opened
        // secrets.
        let same_secret = |place: Place<'_>, stored: &Secret, other: &Secret| {
            let open = |secret: &Secret| keys.open(place, secret.expose()).map_err(failed);
            (job.same_secret)(place, &open(stored)?, &open(other)?)
        };
        let mut broken = None;
        let mut sealed = rows.map(|row| {
            seal_row(&keys, row?).map_err(|error| {
                broken = Some(error);
                Unreadable
            })
        });
        let outcome = self.inner.import(ImportJob { same_secret: &same_secret, ..job }, &mut sealed, reject);
        drop(sealed);
        match broken {
            Some(error) => Err(failed(error).into()),
            None => outcome,
        }
    }

    pass_results_on! {
        self to self.inner;
        fn targets() -> Vec<String>;
        fn new_import() -> ImportId;
        fn import_activity() -> ImportActivity;
        fn imports() -> Vec<ImportRecord>;
        fn imports_of(device: &DeviceId) -> Vec<ImportRecord>;
        fn left_of(id: ImportId, limit: usize) -> Left;
        fn spelled_macs() -> HashSet<DeviceId>;
        fn known_as(asked: &AskedId) -> Option<DeviceId>;
        fn count() -> u64;
        fn totals() -> Vec<Totals>;
        fn count_unregistered(enrollment: Option<&str>) -> u64;
        fn check_counts() -> CountCheck;
        fn recount() -> CountCheck;
        fn find(filter: &filter::Filter, from: &Cursor, limit: usize, time: Duration) -> Found;
        fn tally(filter: &filter::Filter, time: Duration) -> Tally;
        fn held(limit: usize) -> Vec<Held>;
        fn listed(ids: &[DeviceId]) -> Vec<Listed>;
        fn are_rolling() -> bool;
        fn products() -> Vec<String>;
    }

    fn undo_import(&self, how: Undo<'_>) -> Result<Undone, UndoError> {
        self.inner.undo_import(how)
    }

    fn export(&self, each: Each<'_>) -> Result<(), StoreError> {
        let keys = self.keys.load_full();
        let open = |row: DeviceRow, own: Option<DeviceKeys>| {
            let row = open_row(&keys, row)?;
            let Some(mut own) = own else { return Ok((row, None)) };
            let place = Place::Psk { device: row.id.as_str(), identity: &own.identity };
            keys.open_in_place(place, &mut own.psk)?;
            if let Some(next) = &mut own.next {
                keys.open_in_place(place, next)?;
            }
            Ok((row, Some(own)))
        };
        let mut broken = None;
        self.inner.export(&mut |row, key| match open(row, key) {
            Ok((row, key)) => each(row, key),
            Err(error) => {
                broken = Some(failed(error));
                ControlFlow::Break(())
            }
        })?;
        broken.map_or(Ok(()), Err)
    }

    fn back_up(
        &self,
        to: &std::path::Path,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Contents, StoreError> {
        self.inner.back_up(to, progress)
    }
}

impl<S: Store + StoredSecrets> Keys for Sealed<S> {
    fn set_keys(&self, keys: Keyring) -> Result<(), StoreError> {
        check(&keys, &self.inner.keys_in_use()?).map_err(StoreError::Failed)?;
        self.keys.store(keys.into());
        self.show_key();
        Ok(())
    }

    fn check_keys(&self) -> Result<(), StoreError> {
        let (keys, in_use) = (self.keys.load(), self.inner.keys_in_use()?);
        if let Some(metrics) = self.inner.metrics() {
            metrics.keys_missing.store(missing(&keys, &in_use).count() as u64, Ordering::Relaxed);
        }
        check(&keys, &in_use).map_err(|reason| {
            StoreError::Unusable(format!(
                "the database was sealed under a key that this process does not have, so devices are not served: \
                 {reason}; then reload certdist with SIGHUP (`systemctl reload certdist`)"
            ))
        })
    }

    fn key_counts(&self) -> Result<Vec<UnderKey>, StoreError> {
        self.inner.count_secrets()
    }

    fn clear_count(&self) -> Result<u64, StoreError> {
        self.inner.count_clear()
    }

    fn seal_all(&self, by: &Actor, progress: &mut dyn FnMut(SealStep)) -> Result<SealReport, StoreError> {
        let keys = self.keys.load_full();
        let key = keys.first().ok_or_else(|| {
            StoreError::Failed(
                "there is no key to seal under: expected database_key in the configuration".into(),
            )
        })?;
        let under_key = key.to_string();
        self.inner.all_seal_under(&under_key)?;
        let total = UnderKey::others(&self.inner.count_secrets()?, &under_key);
        let mut done = 0;
        for column in SecretColumn::ALL {
            let mut after = String::new();
            loop {
                let stored = self.inner.secrets_not_under(column, &under_key, &after, BATCH)?;
                let Some(last) = stored.last() else { break };
                after.clone_from(&last.primary);
                let anew = stored.into_iter().map(|stored| {
                    let place = column.place(&stored);
                    let sealed = keys.seal(place, keys.open(place, stored.value.expose())?.expose())?;
                    Ok((stored, sealed))
                });
                let anew: Vec<_> = anew.collect::<Result<_, _>>().map_err(failed)?;
                self.inner.replace_secrets(column, &anew)?;
                done += anew.len() as u64;
                progress(SealStep::Sealing(done, total));
                thread::sleep(PAUSE);
            }
        }
        self.inner.keep_only_key(&under_key, done, by, progress)?;
        Ok(SealReport { key, sealed: done })
    }
}
