//! Counts the whole table for the overview. Counting runs in the background, because it takes
//! seconds if the table has millions of rows. The overview shows the last result with its time.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::sync::watch;

use crate::store::{
    StoreError, Table, Totals, UnixSeconds,
    filter::{Filter, Held, State},
    unix_now,
};

/// Minimum pause between two counts.
const PAUSE: Duration = Duration::from_secs(10);
/// Minimum pause between two counts, as a multiple of the duration of the first count.
const TIMES: u32 = 30;
/// Maximum wait for a count in progress.
const PATIENCE: Duration = Duration::from_millis(50);
/// Age in seconds after which the result of a count is not shown. Such a result is old because no
/// one has opened the overview in the meantime, and the table may have changed since.
const STALE: i64 = 600;
/// Maximum time for counting the devices in one rare state. An index makes this count fast.
const RARE: Duration = Duration::from_secs(1);
/// Maximum number of groups of refused devices, and of groups of devices whose registration has
/// begun.
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
    /// Products of the devices, in order.
    pub(super) products: Vec<String>,
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
            products: store.products()?,
        })
    }
}

#[derive(Default)]
struct Last {
    /// Result of the last count, or the error with which the count failed.
    result: Option<Result<Arc<Census>, StoreError>>,
    /// Time before which no other count begins.
    not_before: Option<Instant>,
    /// Set while the table is being counted. Its sender is dropped when the count ends.
    counting: Option<watch::Receiver<()>>,
}

/// Counts the table on demand, unless the last count is recent.
#[derive(Default)]
pub(super) struct Counter(Arc<Mutex<Last>>);

impl Counter {
    /// Returns the last count; `None` if there is none yet, or if it is too old to be shown. Unless
    /// the last count is recent, begins another one in the background, and waits a moment for its
    /// end.
    pub(super) async fn last(&self, store: &Arc<dyn Table>) -> Option<Result<Arc<Census>, StoreError>> {
        if let Some(mut counting) = self.begin(store) {
            // The wait is over in either case: the count has ended and its sender was dropped, or
            // the count takes longer than `PATIENCE`.
            let _ = tokio::time::timeout(PATIENCE, counting.changed()).await;
        }
        let result = lock(&self.0).result.clone();
        result.filter(|result| result.as_ref().map_or(true, |census| unix_now() - census.at <= STALE))
    }

    /// Begins a count if one is due. Returns the receiver of the count in progress, if there is
    /// one.
    fn begin(&self, store: &Arc<dyn Table>) -> Option<watch::Receiver<()>> {
        let mut last = lock(&self.0);
        if last.counting.is_none() && last.not_before.is_none_or(|time| Instant::now() >= time) {
            let (sender, receiver) = watch::channel(());
            last.counting = Some(receiver);
            let (store, shared) = (store.clone(), self.0.clone());
            tokio::task::spawn_blocking(move || {
                let begun = Instant::now();
                let result = Census::take(&*store).map(Arc::new);
                let mut last = lock(&shared);
                last.not_before = Some(Instant::now() + PAUSE.max(begun.elapsed() * TIMES));
                last.counting = None;
                last.result = Some(result);
                drop(sender);
            });
        }
        last.counting.clone()
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

    fn with_devices(ids: &[&str]) -> (Memory, Arc<dyn Table>) {
        let memory = Memory::default();
        import(&memory, ids.iter().map(|id| ImportRow::new(DeviceId::parse(id).unwrap(), "lamp", "a1")));
        let store: Arc<dyn Table> = Arc::new(Sealed::new(memory.clone(), Default::default()));
        (memory, store)
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_count_is_used_for_a_while() {
        let (memory, store) = with_devices(&["SN-1"]);
        let counter = Counter::default();
        let census = counter.last(&store).await.expect("it waits a moment").unwrap();
        assert_eq!((census.totals.len(), census.totals[0].devices), (1, 1));
        assert_eq!(census.products, ["a1"]);
        import(&memory, [ImportRow::new(DeviceId::parse("SN-2").unwrap(), "lamp", "a1")]);
        assert_eq!(counter.last(&store).await.unwrap().unwrap(), census, "it was counted just now");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn an_old_count_is_renewed_before_it_is_shown() {
        let (memory, store) = with_devices(&["SN-1"]);
        let counter = Counter::default();
        counter.last(&store).await.unwrap().unwrap();
        import(&memory, [ImportRow::new(DeviceId::parse("SN-2").unwrap(), "lamp", "a1")]);
        lock(&counter.0).not_before = None;
        let census = counter.last(&store).await.unwrap().unwrap();
        assert_eq!(census.totals[0].devices, 2);
    }
}
