//! Owner of this process's registrations: shows that the process lives while it registers, ends
//! other owners that have died, and resumes what they have left. Any number of processes do the
//! same on one table; see `store/claim.rs`.

use std::{
    collections::HashMap,
    sync::{Arc, Weak, atomic::Ordering},
    time::Duration,
};

use tokio::time::Instant;

use super::{Registrar, registration::Registration};
use crate::store::{
    StoreError,
    claim::{Beat, OwnerId},
};

/// Time between two beats.
const BEAT: Duration = Duration::from_secs(2);

/// Number of looks at an unchanged beat after which its owner counts as dead. Each look needs
/// the table's write lock, as a beat does, so that a locked table kills no one.
const UNCHANGED: u32 = 6;

/// Difference from the cloud's clock that is tolerated, in seconds.
const CLOCK_TOLERANCE: i64 = 60;

/// Longest time for which abandoned registrations are not looked for.
const RESUME_EVERY: Duration = Duration::from_secs(10);

/// Maximum number of abandoned registrations resumed at once. The rest waits for its devices'
/// next requests.
const RESUMED: usize = 20_000;

/// What a process has seen of the others.
#[derive(Default)]
pub(super) struct Watch {
    /// The last beat of each owner, and the number of looks without a new one.
    owners: HashMap<OwnerId, (i64, u32)>,
    /// An owner has ended, and what it has left is not resumed yet.
    must_resume: bool,
    /// Time of the last look for what others have left.
    resumed: Option<Instant>,
}

impl Watch {
    /// Notes the beats of all owners. Returns those that count as dead, and whether an owner has
    /// gone since the last look.
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

impl Registrar {
    /// Beats until the registrar is dropped or drained.
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

    /// Beats if there is something to own, and ends the owners that have died. A process that
    /// registers nothing writes nothing.
    async fn look(self: &Arc<Self>, watch: &mut Watch) -> Result<(), StoreError> {
        self.set_clock();
        let owns = self.registrations() > 0 || self.sweeps.load(Ordering::Relaxed);
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
        // A process may also have come and gone between two looks.
        let is_due = watch.resumed.is_none_or(|at| at.elapsed() >= RESUME_EVERY);
        if (watch.must_resume || is_due) && self.recovers.load(Ordering::Relaxed) {
            watch.resumed = Some(Instant::now());
            self.resume().await?;
            watch.must_resume = false;
        }
        Ok(())
    }

    /// Returns whether the store's clock is known to be right: the cloud has answered lately.
    pub fn knows_the_time(&self) -> bool {
        self.cloud.clock_offset().is_some()
    }

    /// Has the store use the cloud's clock if this machine's is wrong. Otherwise a wrong clock
    /// would open or close reissue windows, and date the audit log wrongly.
    fn set_clock(&self) {
        let Some(offset) = self.cloud.clock_offset() else { return };
        let ahead = if offset.abs() > CLOCK_TOLERANCE { offset } else { 0 };
        self.store.set_clock_ahead(ahead);
    }

    /// Stores the cloud's offset in claims that were made before it was known.
    async fn note_offset(&self) -> Result<(), StoreError> {
        if let Some(offset) = self.cloud.clock_offset()
            && !self.has_noted_offset.load(Ordering::Relaxed)
        {
            self.store.note_cloud_offset(self.owner.id, offset).await?;
            self.has_noted_offset.store(true, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Resumes the registrations that other processes have left, now and whenever one stops.
    pub async fn recover(self: &Arc<Self>) -> Result<(), StoreError> {
        self.recovers.store(true, Ordering::Relaxed);
        self.resume().await
    }

    async fn resume(self: &Arc<Self>) -> Result<(), StoreError> {
        let mut count = 0;
        for (batch, entries) in self.store.take_batches(&self.owner).await? {
            let mut registrations = Vec::with_capacity(entries.len());
            for (entry, claim) in entries {
                // A request for the device may be faster than this.
                if self.announce(&entry).is_some() {
                    registrations.push(Registration::resumed(entry, claim));
                }
            }
            count += registrations.len();
            let registrar = self.clone();
            self.runtime.spawn(async move { registrar.resume_batch(batch, registrations).await });
        }
        // As many as there is room for; the rest is resumed when these are over.
        let room = self.config.max_registrations.saturating_sub(self.registrations());
        let abandoned = self.store.abandoned(room.min(RESUMED)).await?;
        count += abandoned.len();
        for entry in abandoned {
            tracing::debug!(device = %entry.device, device_name = entry.device_name, "resuming a registration");
            // One that is not started now, as its product is refused, is tried again later.
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
