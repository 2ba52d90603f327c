//! Records the results of the calls to IoT Platform, so that an operator can see which of them
//! fail, since when and why.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
};

use super::{
    Action, ApiError, ApiFuture, ApplyId, BatchPage, BatchProgress, CloudDevice, ErrorClass, IotPlatform,
};
use crate::unix_time::{UnixSeconds, unix_now};

/// Maximum number of pairs of an action and a product whose failed calls are recorded.
const MOST: usize = 256;

/// Calls of one action for one product that have failed since the last such call that worked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trouble {
    /// The action.
    pub action: Action,
    /// The product.
    pub product_key: String,
    /// Time of the first failed call.
    pub since: UnixSeconds,
    /// Time of the last failed call.
    pub last: UnixSeconds,
    /// Number of failed calls.
    pub calls: u64,
    /// The last error.
    pub error: ApiError,
}

/// Numbers of an action's calls since the start, by result.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Ended {
    /// Calls that IoT Platform has carried out, or has answered with an error about the device
    /// itself.
    pub worked: u64,
    /// Calls that failed, without those that timed out.
    pub failed: u64,
    /// Calls that IoT Platform did not answer in time.
    pub timed_out: u64,
}

#[derive(Debug, Default)]
struct Counters {
    worked: AtomicU64,
    failed: AtomicU64,
    timed_out: AtomicU64,
}

/// Results of the calls.
#[derive(Debug, Default)]
pub struct Calls {
    counters: [Counters; Action::ALL.len()],
    /// Time of the last call that worked, or 0 if there was none.
    last_worked: AtomicI64,
    troubles: Mutex<HashMap<(Action, String), Trouble>>,
}

impl Calls {
    /// Returns the numbers of an action's calls, by result.
    pub fn ended(&self, action: Action) -> Ended {
        let counters = &self.counters[action as usize];
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Ended {
            worked: of(&counters.worked),
            failed: of(&counters.failed),
            timed_out: of(&counters.timed_out),
        }
    }

    /// Returns the actions and products whose last call failed, in order of action and product.
    pub fn troubles(&self) -> Vec<Trouble> {
        let mut all: Vec<Trouble> = self.lock().values().cloned().collect();
        all.sort_unstable_by(|a, b| (a.action, &a.product_key).cmp(&(b.action, &b.product_key)));
        all
    }

    /// Returns the time of the last call that worked; `None` if no call has worked since the start.
    pub fn last_worked(&self) -> Option<UnixSeconds> {
        Some(self.last_worked.load(Ordering::Relaxed)).filter(|at| *at != 0)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<(Action, String), Trouble>> {
        self.troubles.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note<T>(&self, now: UnixSeconds, action: Action, product_key: &str, outcome: &Result<T, ApiError>) {
        let counters = &self.counters[action as usize];
        let error = match outcome {
            Err(error) if !is_about_the_device(error.class) => error,
            _ => {
                counters.worked.fetch_add(1, Ordering::Relaxed);
                self.last_worked.store(now, Ordering::Relaxed);
                let mut troubles = self.lock();
                if !troubles.is_empty() {
                    troubles.remove(&(action, product_key.to_owned()));
                }
                return;
            }
        };
        let counter =
            if error.class == ErrorClass::TimedOut { &counters.timed_out } else { &counters.failed };
        counter.fetch_add(1, Ordering::Relaxed);
        let mut troubles = self.lock();
        let key = (action, product_key.to_owned());
        if let Some(known) = troubles.get_mut(&key) {
            known.last = now;
            known.calls += 1;
            known.error = error.clone();
        } else if troubles.len() < MOST {
            let (product_key, error) = (product_key.to_owned(), error.clone());
            troubles.insert(key, Trouble { action, product_key, since: now, last: now, calls: 1, error });
        }
    }
}

/// Returns whether an error concerns only one device. Such an error shows that IoT Platform works.
fn is_about_the_device(class: ErrorClass) -> bool {
    match class {
        ErrorClass::Exists | ErrorClass::NotFound | ErrorClass::Device => true,
        ErrorClass::TryAgain
        | ErrorClass::Throttled
        | ErrorClass::TimedOut
        | ErrorClass::SignAgain
        | ErrorClass::Operator
        | ErrorClass::Unknown => false,
    }
}

/// Forwards calls to IoT Platform, and records their results.
pub struct Recorded {
    inner: Arc<dyn IotPlatform>,
    calls: Arc<Calls>,
}

impl Recorded {
    /// Records the calls of `inner` in `calls`.
    pub fn new(inner: Arc<dyn IotPlatform>, calls: Arc<Calls>) -> Self {
        Self { inner, calls }
    }

    fn record<'a, T: Send + 'a>(
        &'a self,
        action: Action,
        product_key: &'a str,
        call: ApiFuture<'a, T>,
    ) -> ApiFuture<'a, T> {
        Box::pin(async move {
            let outcome = call.await;
            self.calls.note(unix_now(), action, product_key, &outcome);
            outcome
        })
    }
}

impl IotPlatform for Recorded {
    fn account(&self) -> String {
        self.inner.account()
    }

    fn clock_offset(&self) -> Option<i64> {
        self.inner.clock_offset()
    }

    fn register_device<'a>(
        &'a self,
        product_key: &'a str,
        device_name: &'a str,
    ) -> ApiFuture<'a, CloudDevice> {
        let call = self.inner.register_device(product_key, device_name);
        self.record(Action::RegisterDevice, product_key, call)
    }

    fn query_device_detail<'a>(
        &'a self,
        product_key: &'a str,
        device_name: &'a str,
    ) -> ApiFuture<'a, CloudDevice> {
        let call = self.inner.query_device_detail(product_key, device_name);
        self.record(Action::QueryDeviceDetail, product_key, call)
    }

    fn batch_check_device_names<'a>(
        &'a self,
        product_key: &'a str,
        device_names: &'a [String],
    ) -> ApiFuture<'a, ApplyId> {
        let call = self.inner.batch_check_device_names(product_key, device_names);
        self.record(Action::BatchCheckDeviceNames, product_key, call)
    }

    fn query_batch_register_device_status<'a>(
        &'a self,
        product_key: &'a str,
        apply_id: ApplyId,
    ) -> ApiFuture<'a, BatchProgress> {
        let call = self.inner.query_batch_register_device_status(product_key, apply_id);
        self.record(Action::QueryBatchRegisterDeviceStatus, product_key, call)
    }

    fn batch_register_device_with_apply_id<'a>(
        &'a self,
        product_key: &'a str,
        apply_id: ApplyId,
    ) -> ApiFuture<'a, ApplyId> {
        let call = self.inner.batch_register_device_with_apply_id(product_key, apply_id);
        self.record(Action::BatchRegisterDeviceWithApplyId, product_key, call)
    }

    fn query_page_by_apply_id<'a>(
        &'a self,
        product_key: &'a str,
        apply_id: ApplyId,
        page: u32,
    ) -> ApiFuture<'a, BatchPage> {
        let call = self.inner.query_page_by_apply_id(product_key, apply_id, page);
        self.record(Action::QueryPageByApplyId, product_key, call)
    }

    fn batch_query_device_detail<'a>(
        &'a self,
        product_key: &'a str,
        device_names: &'a [String],
    ) -> ApiFuture<'a, Vec<CloudDevice>> {
        let call = self.inner.batch_query_device_detail(product_key, device_names);
        self.record(Action::BatchQueryDeviceDetail, product_key, call)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed(class: ErrorClass, code: &str) -> Result<(), ApiError> {
        Err(ApiError { class, code: code.into(), message: "m".into() })
    }

    #[test]
    fn trouble_lasts_from_the_first_failed_call_until_one_works() {
        let calls = Calls::default();
        let note = |now, product: &str, outcome: &Result<(), ApiError>| {
            calls.note(now, Action::RegisterDevice, product, outcome);
        };
        note(10, "a1", &Ok(()));
        assert_eq!((calls.troubles(), calls.last_worked()), (Vec::new(), Some(10)));
        note(20, "a1", &failed(ErrorClass::TimedOut, "Timeout"));
        note(30, "a1", &failed(ErrorClass::TryAgain, "NoConnection"));
        note(31, "a2", &failed(ErrorClass::Operator, "iot.prod.NotExistedProduct"));
        let troubles = calls.troubles();
        let first = &troubles[0];
        assert_eq!((troubles.len(), first.since, first.last, first.calls), (2, 20, 30, 2));
        assert_eq!(first.error.code, "NoConnection");
        let ended = calls.ended(Action::RegisterDevice);
        assert_eq!(ended, Ended { worked: 1, failed: 2, timed_out: 1 });
        // The error that a name exists already shows that IoT Platform works.
        note(40, "a1", &failed(ErrorClass::Exists, "iot.device.AlreadyExistedDeviceName"));
        let left: Vec<_> = calls.troubles().into_iter().map(|trouble| trouble.product_key).collect();
        assert_eq!(left, ["a2"], "the other product is still in trouble");
    }

    #[test]
    fn the_record_is_bounded() {
        let calls = Calls::default();
        for number in 0..2 * MOST {
            let product = format!("a{number}");
            calls.note(1, Action::RegisterDevice, &product, &failed(ErrorClass::Operator, "c"));
        }
        assert_eq!(calls.troubles().len(), MOST);
    }
}
