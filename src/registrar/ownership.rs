//! This process as the owner of its registrations. While a process registers devices, it shows by
//! regular beats that it is alive. Each process also removes owners whose process has died, and
//! resumes their registrations. `store/claim.rs` describes the rules for all processes on one
//! table.

use std::{
    borrow::Cow,
    collections::HashMap,
    sync::{
        Arc, Weak,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;

use super::{Registrar, lock, registration::Registration};
use crate::{
    iot_platform::IotPlatform,
    store::{
        StoreError,
        claim::{Beat, OwnerId},
    },
    target,
};

/// Time between two beats, by which an owner shows that it is alive.
const BEAT: Duration = Duration::from_secs(2);

/// Number of consecutive looks without a new beat after which an owner counts as dead. Looks and
/// beats both need the table's write lock. So while the table is locked, no looks are made, and an
/// owner that cannot beat does not count as dead.
const UNCHANGED: u32 = 6;

/// Tolerated difference between this machine's clock and the cloud's clock, in seconds.
const CLOCK_TOLERANCE: i64 = 60;

/// Maximum time between two searches for abandoned registrations.
const RESUME_EVERY: Duration = Duration::from_secs(10);

/// Maximum number of abandoned registrations that one search resumes. Later searches resume the
/// rest.
const RESUMED: usize = 20_000;

/// Observations of the other owners by this process.
#[derive(Default)]
pub(super) struct Watch {
    /// For each other owner: the value of its beat counter at the last look, and the number of
    /// looks since the counter last changed.
    owners: HashMap<OwnerId, (i64, u32)>,
    /// Set if an owner was removed and its registrations have not been resumed yet.
    must_resume: bool,
    /// Time of the last search for abandoned registrations.
    resumed: Option<Instant>,
}

impl Watch {
    /// Notes the beats of all other owners. Returns the latest beat of each owner that counts as
    /// dead, and whether an owner has disappeared since the previous look.
    fn look(&mut self, beats: &[Beat], own: OwnerId) -> (Vec<Beat>, bool) {
        let before = std::mem::take(&mut self.owners);
        let mut dead = Vec::new();
        for beat in beats.iter().filter(|beat| beat.owner != own) {
            let unchanged = match before.get(&beat.owner) {
                Some((count, unchanged)) if *count == beat.count => unchanged + 1,
                _ => 0,
            };
            if unchanged >= UNCHANGED {
                dead.push(*beat);
            }
            self.owners.insert(beat.owner, (beat.count, unchanged));
        }
        (dead, before.keys().any(|owner| !self.owners.contains_key(owner)))
    }
}

/// Decrements the number of leases when dropped, even if the work under the lease is cancelled.
struct Ending<'a>(&'a AtomicUsize);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Registrar {
    /// Starts a task that beats, and watches the other owners, until the registrar is dropped or
    /// drained.
    pub(super) fn start_beating(self: &Arc<Self>) {
        let registrar: Weak<Self> = Arc::downgrade(self);
        self.runtime.spawn(async move {
            let mut watch = Watch::default();
            loop {
                let Some(registrar) = registrar.upgrade() else { return };
                if registrar.is_draining() {
                    return;
                }
                if let Err(error) = registrar.look(&mut watch).await {
                    tracing::debug!(%error, "could not look at the other processes of this database");
                }
                let pause = BEAT.mul_f64(registrar.jitter(0.9..1.1));
                drop(registrar);
                tokio::time::sleep(pause).await;
            }
        });
    }

    /// Beats if this process registers devices or has a lease. An idle process writes no beats.
    /// Removes the owners that have died, and resumes their registrations.
    async fn look(self: &Arc<Self>, watch: &mut Watch) -> Result<(), StoreError> {
        self.set_clock();
        self.write_counts();
        self.look_for_orders().await?;
        let owns = self.registrations() > 0 || self.leases.load(Ordering::Relaxed) > 0;
        if !owns && self.beats.swap(false, Ordering::Relaxed) {
            self.store.retire_if_idle(self.owner.id).await?;
        }
        if owns {
            self.note_offset().await?;
        }
        let beats = self.store.beats(owns.then_some(&self.owner)).await?;
        let (dead, has_gone) = watch.look(&beats, self.owner.id);
        watch.must_resume |= has_gone;
        for beat in dead {
            if self.store.fence(beat).await? {
                tracing::info!(
                    owner = beat.owner,
                    "a process has stopped without ending its registrations; they are resumed"
                );
                watch.must_resume = true;
            }
        }
        // A process that starts and ends between two checks is never seen, so the search is also
        // repeated regularly.
        let is_due = watch.resumed.is_none_or(|at| at.elapsed() >= RESUME_EVERY);
        if (watch.must_resume || is_due) && self.recovers.load(Ordering::Relaxed) {
            watch.resumed = Some(Instant::now());
            self.resume().await?;
            watch.must_resume = false;
        }
        Ok(())
    }

    /// Returns the name of the lease on work about this target's devices.
    pub(super) fn lease(&self, work: &'static str) -> Cow<'static, str> {
        match target::to_store(&self.config.target) {
            None => work.into(),
            Some(target) => format!("{work}/{target}").into(),
        }
    }

    /// Calls `work` under the lease `name`, which only one process has at a time. Passes the
    /// lease's cursor to `work`. Returns `None` if another process has the lease.
    pub async fn with_lease<T>(
        &self,
        name: &str,
        work: impl AsyncFnOnce(String) -> Result<T, StoreError>,
    ) -> Result<Option<T>, StoreError> {
        self.leases.fetch_add(1, Ordering::Relaxed);
        let _ending = Ending(&self.leases);
        self.beats.store(true, Ordering::Relaxed);
        let Some(cursor) = self.store.take_lease(&self.owner, name).await? else { return Ok(None) };
        let done = work(cursor).await;
        self.store.give_lease_up(self.owner.id, name).await?;
        done.map(Some)
    }

    /// Returns the seconds to add to this machine's clock to get the cloud's time, if the cloud has
    /// answered recently.
    pub fn clock_offset(&self) -> Option<i64> {
        self.cloud.clock_offset()
    }

    /// Makes the store use the cloud's clock if this machine's clock is wrong. Otherwise reissue
    /// windows would open or close at the wrong time, and entries of the audit log would have wrong
    /// dates.
    fn set_clock(&self) {
        let preferred = self.preferred_clocks.get().into_iter().flatten();
        if preferred.into_iter().any(|cloud| cloud.clock_offset().is_some()) {
            return;
        }
        let Some(offset) = self.cloud.clock_offset() else { return };
        let ahead = if offset.abs() > CLOCK_TOLERANCE { offset } else { 0 };
        self.store.set_clock_ahead(ahead);
    }

    /// Lets only these clouds set the store's clock while one of them has answered recently.
    /// Otherwise, two clouds whose clocks differ would set the store's clock in turn.
    pub(super) fn leave_clock_to(&self, clouds: Vec<Arc<dyn IotPlatform>>) {
        // The clouds are given only once, when the process starts.
        let _ = self.preferred_clocks.set(clouds);
    }

    /// Stores the offset of the cloud's clock in claims that were made before the offset was known.
    async fn note_offset(&self) -> Result<(), StoreError> {
        if let Some(offset) = self.cloud.clock_offset()
            && !self.has_noted_offset.load(Ordering::Relaxed)
        {
            self.store.note_cloud_offset(self.owner.id, offset).await?;
            self.has_noted_offset.store(true, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Resumes the registrations that other processes have left behind. Does so now and, from now
    /// on, whenever another process stops.
    pub async fn recover(self: &Arc<Self>) -> Result<(), StoreError> {
        self.recovers.store(true, Ordering::Relaxed);
        self.resume().await
    }

    async fn resume(self: &Arc<Self>) -> Result<(), StoreError> {
        let mut count = 0;
        for (batch, entries) in self.store.take_batches(&self.owner, &self.config.target).await? {
            if !lock(&self.queue).start_running(batch.id) {
                continue;
            }
            let mut registrations = Vec::with_capacity(entries.len());
            for (entry, claim) in entries {
                // If a request has already started a registration of this device, no second one is
                // started.
                if self.announce(&entry).is_some() {
                    registrations.push(Registration::resumed(entry, claim));
                }
            }
            count += registrations.len();
            let registrar = self.clone();
            self.runtime.spawn(async move { registrar.resume_batch(batch, registrations).await });
        }
        // This search resumes at most as many registrations as `max_registrations` permits. Later
        // searches resume the rest.
        let room = self.config.max_registrations.saturating_sub(self.registrations());
        let abandoned = self.store.abandoned(&self.config.target, room.min(RESUMED)).await?;
        count += abandoned.len();
        for entry in abandoned {
            tracing::debug!(device = %entry.device, device_name = entry.device_name, "resuming a registration");
            // If a registration cannot start now, for example because a breaker is open, a later
            // search tries again.
            drop(self.start(entry));
        }
        if count > 0 {
            tracing::info!(registrations = count, "resuming registrations that other processes have left");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_owner_is_dead_after_so_many_looks_without_a_beat() {
        let mut watch = Watch::default();
        let beat = Beat { owner: 1, count: 5 };
        for _ in 0..UNCHANGED {
            assert_eq!(watch.look(&[beat], 9), (vec![], false));
        }
        assert_eq!(watch.look(&[beat], 9), (vec![beat], false));
        let later = Beat { count: 6, ..beat };
        assert_eq!(watch.look(&[later], 9), (vec![], false), "it lives");
    }

    #[test]
    fn ones_own_beat_is_not_watched_and_a_gone_owner_is_noticed() {
        let mut watch = Watch::default();
        let [own, other] = [9, 1].map(|owner| Beat { owner, count: 0 });
        for _ in 0..=UNCHANGED + 1 {
            assert_eq!(watch.look(&[own], 9), (vec![], false));
        }
        assert_eq!(watch.look(&[own, other], 9), (vec![], false));
        assert_eq!(watch.look(&[own], 9), (vec![], true));
    }
}
