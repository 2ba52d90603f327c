//! Counts the whole table for the overview. Counting runs in the background, because it takes
//! seconds if the table has millions of rows. The overview shows the last counts with their time.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use crate::store::{
    StoreError, Table, Totals, UnixSeconds,
    filter::{Filter, Held, State},
    unix_now,
};

/// Minimum pause between two counts.
const PAUSE: Duration = Duration::from_secs(10);
/// Minimum pause between two counts, as a multiple of the time that the first of them took.
const TIMES: u32 = 30;
/// Maximum time for counting the devices in one of the rare states, which have an index.
const RARE: Duration = Duration::from_secs(1);
/// Maximum number of groups of refused devices.
const GROUPS: usize = 20;

/// Result of a count.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Census {
    /// Time of the count.
    pub(super) at: UnixSeconds,
    /// Devices of each enrollment.
    pub(super) totals: Vec<Totals>,
    /// Devices that IoT Platform refuses, and those whose registration has begun.
    pub(super) held: Vec<Held>,
    /// Devices that were deleted at IoT Platform.
    pub(super) deleted_at_cloud: u64,
    /// Devices that were disabled at IoT Platform.
    pub(super) disabled_at_cloud: u64,
    /// Secrets that are stored in clear text.
    pub(super) unsealed: u64,
}

impl Census {
    fn take(store: &dyn Table) -> Result<Self, StoreError> {
        let rare = |state| {
            let filter = Filter { state: Some(state), ..Filter::default() };
            store.tally(&filter, RARE).map(|tally| tally.devices)
        };
        let clear = store.key_counts()?.into_iter().filter(|count| count.key.is_none());
        Ok(Self {
            at: unix_now(),
            totals: store.totals()?,
            held: store.held(GROUPS)?,
            deleted_at_cloud: rare(State::DeletedAtCloud)?,
            disabled_at_cloud: rare(State::DisabledAtCloud)?,
            unsealed: clear.map(|count| count.device_secrets + count.psks).sum(),
        })
    }
}

#[derive(Default)]
struct Last {
    /// The last count, or the error with which it failed.
    result: Option<Result<Arc<Census>, StoreError>>,
    /// Time before which no other count begins.
    not_before: Option<Instant>,
    is_counting: bool,
}

/// Counts the table on demand, unless the last count is recent.
#[derive(Default)]
pub(super) struct Counter(Arc<Mutex<Last>>);

impl Counter {
    /// Returns the last count without waiting; `None` before the first count has ended. Begins
    /// another count in the background unless the last one is recent.
    pub(super) fn last(&self, store: &Arc<dyn Table>) -> Option<Result<Arc<Census>, StoreError>> {
        let mut last = lock(&self.0);
        if !last.is_counting && last.not_before.is_none_or(|time| Instant::now() >= time) {
            last.is_counting = true;
            let (store, shared) = (store.clone(), self.0.clone());
            tokio::task::spawn_blocking(move || {
                let begun = Instant::now();
                let result = Census::take(&*store).map(Arc::new);
                let mut last = lock(&shared);
                last.not_before = Some(Instant::now() + PAUSE.max(begun.elapsed() * TIMES));
                last.is_counting = false;
                last.result = Some(result);
            });
        }
        last.result.clone()
    }
}

fn lock(last: &Mutex<Last>) -> MutexGuard<'_, Last> {
    last.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        device::DeviceId,
        store::{ImportRow, sealed::Sealed},
        testing::store::{Memory, import},
    };

    #[tokio::test(flavor = "multi_thread")]
    async fn a_count_comes_from_the_background_and_is_used_for_a_while() {
        let memory = Memory::default();
        import(&memory, [ImportRow::new(DeviceId::parse("SN-1").unwrap(), "lamp", "a1")]);
        let store: Arc<dyn Table> = Arc::new(Sealed::new(memory.clone(), Default::default()));
        let counter = Counter::default();
        assert!(counter.last(&store).is_none(), "it does not wait");
        let census = loop {
            match counter.last(&store) {
                Some(census) => break census.unwrap(),
                None => tokio::task::yield_now().await,
            }
        };
        assert_eq!((census.totals.len(), census.totals[0].devices), (1, 1));
        import(&memory, [ImportRow::new(DeviceId::parse("SN-2").unwrap(), "lamp", "a1")]);
        assert_eq!(counter.last(&store).unwrap().unwrap(), census, "it was counted just now");
    }
}
