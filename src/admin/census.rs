//! Reads the numbers of devices that the store keeps, for the overview, the enrollments and the
//! metrics. Simultaneous requests share one reading. A reading runs in the background, so that a
//! page appears even if the database does not answer.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::sync::watch;

use super::blocking;
use crate::{
    company::{self, Difference},
    store::{StoreError, Table, Totals, UnixSeconds, filter::Held, server::ServerView, unix_now},
};

/// Maximum age in seconds of a reading that is shown. A reading becomes older than this only if the
/// database does not answer.
const STALE: i64 = 60;
/// Maximum number of groups of refused devices, and of groups of devices whose registration has
/// begun.
const GROUPS: usize = 10_000;

/// Result of a reading.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Census {
    /// Time of the reading.
    pub(super) at: UnixSeconds,
    /// Numbers of devices of each enrollment, in order of the enrollments' names.
    pub(super) totals: Vec<Totals>,
    /// Numbers of devices of all enrollments together.
    pub(super) sum: Totals,
    /// Numbers of devices that IoT Platform refuses, and of devices whose registration has begun.
    pub(super) held: Vec<Held>,
    /// Numbers of devices that wait to be admitted, by enrollment.
    pub(super) waiting: HashMap<String, u64>,
    /// Differences between the servers of the table.
    pub(super) differences: Vec<Difference>,
    /// Number of secrets that are stored in clear text.
    pub(super) unsealed: u64,
    /// Products of the devices, in order.
    pub(super) products: Vec<String>,
    /// Targets that rows name, in order.
    pub(super) targets: Vec<String>,
    /// Time of the last import, or of the last undoing of one; 0 if none is known.
    pub(super) imported: UnixSeconds,
}

impl Census {
    fn take(
        store: &dyn Table,
        waiting: Vec<(String, u64)>,
        servers: &[ServerView],
    ) -> Result<Self, StoreError> {
        let totals = store.totals()?;
        let imports = store.imports()?;
        let changed = imports.iter().map(|import| import.undone.unwrap_or(import.at).max(import.at));
        Ok(Self {
            at: unix_now(),
            sum: Totals::sum(&totals),
            totals,
            held: store.held(GROUPS)?,
            waiting: waiting.into_iter().collect(),
            differences: company::differences(servers),
            unsealed: store.clear_count()?,
            products: store.products()?,
            targets: store.targets()?,
            imported: changed.max().unwrap_or(0),
        })
    }

    /// Returns the numbers of devices of an enrollment.
    pub(super) fn of(&self, enrollment: &str) -> Option<&Totals> {
        let at = self.totals.binary_search_by(|totals| totals.enrollment.as_str().cmp(enrollment));
        at.ok().and_then(|at| self.totals.get(at))
    }
}

#[derive(Default)]
struct Last {
    /// Result of the last reading, or the error with which it failed.
    result: Option<Result<Arc<Census>, StoreError>>,
    /// Present during a reading. The sender of this receiver is dropped when the reading ends.
    reading: Option<watch::Receiver<()>>,
}

/// Reads the numbers of devices on demand. At most one reading is in progress.
#[derive(Default)]
pub(super) struct Reader(Arc<Mutex<Last>>);

impl Reader {
    /// Begins a reading in the background unless one is in progress, and waits at most `patience`
    /// for its end. Returns the result of the last reading that has ended; `None` if no reading has
    /// ended yet, or if the last one is too old to be shown.
    pub(super) async fn last(
        &self,
        store: &Arc<dyn Table>,
        patience: Duration,
    ) -> Option<Result<Arc<Census>, StoreError>> {
        let mut reading = self.begin(store);
        // The wait is over in either case: the reading has ended and its sender was dropped, or it
        // takes longer than `patience`.
        let _ = tokio::time::timeout(patience, reading.changed()).await;
        let result = lock(&self.0).result.clone();
        result.filter(|result| result.as_ref().map_or(true, |census| unix_now() - census.at <= STALE))
    }

    /// Begins a reading unless one is in progress. Returns the receiver of the reading in progress.
    fn begin(&self, store: &Arc<dyn Table>) -> watch::Receiver<()> {
        let mut last = lock(&self.0);
        if let Some(reading) = &last.reading {
            return reading.clone();
        }
        let (sender, receiver) = watch::channel(());
        last.reading = Some(receiver.clone());
        let (store, shared) = (store.clone(), self.0.clone());
        tokio::spawn(async move {
            let read = async {
                let (waiting, servers) = (store.waiting_counts().await?, store.servers().await?);
                blocking(move || Census::take(&*store, waiting, &servers)).await
            };
            let result = read.await;
            let mut last = lock(&shared);
            last.reading = None;
            last.result = Some(result.map(Arc::new));
            drop(sender);
        });
        receiver
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

    const PATIENCE: Duration = Duration::from_secs(60);

    #[tokio::test(flavor = "multi_thread")]
    async fn each_reading_is_of_its_time_and_serves_all_who_ask_meanwhile() {
        let (memory, store) = with_devices(&["SN-1"]);
        let reader = Reader::default();
        let census = reader.last(&store, PATIENCE).await.expect("it waits").unwrap();
        assert_eq!((census.of("lamp").unwrap().devices, census.sum.devices), (1, 1));
        assert_eq!((census.of("lam"), &census.products[..]), (None, &["a1".to_owned()][..]));
        import(&memory, [ImportRow::new(DeviceId::parse("SN-2").unwrap(), "lamp", "a1")]);
        assert_eq!(reader.last(&store, PATIENCE).await.unwrap().unwrap().sum.devices, 2);

        // While a reading does not end, no other reading begins, and the last result is shown.
        let (sender, receiver) = watch::channel(());
        lock(&reader.0).reading = Some(receiver);
        import(&memory, [ImportRow::new(DeviceId::parse("SN-3").unwrap(), "lamp", "a1")]);
        assert_eq!(reader.last(&store, Duration::ZERO).await.unwrap().unwrap().sum.devices, 2);
        if let Some(Ok(census)) = &mut lock(&reader.0).result {
            Arc::make_mut(census).at -= STALE + 1;
        }
        assert_eq!(reader.last(&store, Duration::ZERO).await.map(|_| ()), None, "it is too old");
        drop(sender);
    }
}
