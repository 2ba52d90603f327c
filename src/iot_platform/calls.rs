//! Records the results of the calls to IoT Platform, so that an operator can see which calls fail,
//! since when and why.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
};

use super::{
    Action, ApiError, ApiFuture, ApplyId, BatchPage, BatchProgress, CloudDevice, ErrorClass, IotPlatform,
    Thing,
};
use crate::unix_time::{UnixSeconds, unix_now};

/// Maximum number of pairs of an action and a product whose failed calls are recorded.
const MOST: usize = 256;

/// Failed calls of one action for one product. The trouble ends as soon as a call shows that the
/// cause of the trouble is gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trouble {
    /// Name of the target whose cloud is called, if several are configured.
    pub target: Option<String>,
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

/// Calls that have the cause of a failure in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Extent {
    /// All calls. The cause is the network, IoT Platform itself, the account, or its access key.
    All,
    /// The calls of one action, for all products.
    Action,
    /// All calls for one product.
    Product,
    /// The calls of one action for one product.
    Both,
}

impl Extent {
    fn of(error: &ApiError) -> Self {
        let code = error.code.as_str();
        match error.class {
            // The quota concerns only the calls that create devices.
            ErrorClass::Operator if code == "iot.device.DeviceCountExceeded" => Self::Both,
            ErrorClass::Operator if error.is_about_product() => Self::Product,
            ErrorClass::Operator => match code {
                "Certificate"
                | "Credentials"
                | "SignatureDoesNotMatch"
                | "iot.common.InvalidTenant"
                | "iot.system.UidNotFound"
                | "iot.system.InstanceNotFound"
                | "iot.Sre.IotInstanceNotFound" => Self::All,
                _ if code.ends_with("BillIsOverDue") => Self::All,
                _ if code.starts_with("InvalidAccessKeyId") => Self::All,
                _ if code.starts_with("InvalidSecurityToken") => Self::All,
                // The access key may lack the permission for this action only.
                _ => Self::Action,
            },
            ErrorClass::TryAgain if error.is_unreachable() => Self::All,
            ErrorClass::SignAgain => Self::All,
            ErrorClass::TryAgain | ErrorClass::Throttled | ErrorClass::TimedOut => Self::Action,
            ErrorClass::Unknown | ErrorClass::Exists | ErrorClass::NotFound | ErrorClass::Device => {
                Self::Both
            }
        }
    }
}

impl Trouble {
    /// Returns whether a successful call of `action` for `product_key` shows that the cause is
    /// gone.
    fn ends_with(&self, action: Action, product_key: &str) -> bool {
        let (same_action, same_product) = (self.action == action, self.product_key == product_key);
        (same_action && same_product)
            || match Extent::of(&self.error) {
                Extent::All => true,
                Extent::Action => same_action,
                Extent::Product => same_product,
                Extent::Both => false,
            }
    }
}

/// Counts of the calls of an action that have ended since the start, by result.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Ended {
    /// Calls that IoT Platform has carried out, or has answered with an error about the device
    /// itself.
    pub worked: u64,
    /// Calls that failed, except those that timed out.
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
    /// Start time of each call that has not ended, by its number.
    open: Mutex<HashMap<u64, UnixSeconds>>,
    /// Number of the last call.
    last_call: AtomicU64,
}

/// A call that has not ended. Dropping it ends the call.
struct Open<'c> {
    calls: &'c Calls,
    number: u64,
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        lock(&self.calls.open).remove(&self.number);
    }
}

fn lock<T>(value: &Mutex<T>) -> MutexGuard<'_, T> {
    value.lock().unwrap_or_else(PoisonError::into_inner)
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

    /// Returns the start time of the oldest call that has not ended.
    pub fn unanswered_since(&self) -> Option<UnixSeconds> {
        lock(&self.open).values().min().copied()
    }

    fn open(&self, now: UnixSeconds) -> Open<'_> {
        let number = self.last_call.fetch_add(1, Ordering::Relaxed);
        lock(&self.open).insert(number, now);
        Open { calls: self, number }
    }

    /// Returns the troubles that have not ended, in order of action and product.
    pub fn troubles(&self) -> Vec<Trouble> {
        let mut all: Vec<Trouble> = lock(&self.troubles).values().cloned().collect();
        all.sort_unstable_by(|a, b| (a.action, &a.product_key).cmp(&(b.action, &b.product_key)));
        all
    }

    /// Returns the time of the last call that worked; `None` if no call has worked since the start.
    pub fn last_worked(&self) -> Option<UnixSeconds> {
        Some(self.last_worked.load(Ordering::Relaxed)).filter(|at| *at != 0)
    }

    fn note<T>(&self, now: UnixSeconds, action: Action, product_key: &str, outcome: &Result<T, ApiError>) {
        let counters = &self.counters[action as usize];
        let error = match outcome {
            Err(error) if !is_about_the_device(error.class) => error,
            _ => {
                counters.worked.fetch_add(1, Ordering::Relaxed);
                self.last_worked.store(now, Ordering::Relaxed);
                lock(&self.troubles).retain(|_, trouble| !trouble.ends_with(action, product_key));
                return;
            }
        };
        let counter =
            if error.class == ErrorClass::TimedOut { &counters.timed_out } else { &counters.failed };
        counter.fetch_add(1, Ordering::Relaxed);
        let mut troubles = lock(&self.troubles);
        let extent = Extent::of(error);
        if error.class == ErrorClass::Operator && extent != Extent::All {
            // IoT Platform refuses an action or a product only after it has accepted the signature.
            // So a cause that made all calls fail is gone.
            troubles.retain(|_, trouble| Extent::of(&trouble.error) != Extent::All);
        }
        let key = (action, product_key.to_owned());
        let is_same = |known: &Trouble| {
            (known.error.class == ErrorClass::Operator) == (error.class == ErrorClass::Operator)
        };
        let is_full = troubles.len() >= MOST;
        match troubles.get_mut(&key) {
            Some(known) if is_same(known) => {
                known.last = now;
                known.calls += 1;
                known.error = error.clone();
            }
            None if is_full => {}
            _ => {
                let (product_key, error) = (product_key.to_owned(), error.clone());
                let trouble =
                    Trouble { target: None, action, product_key, since: now, last: now, calls: 1, error };
                troubles.insert(key, trouble);
            }
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
            let open = self.calls.open(unix_now());
            let outcome = call.await;
            drop(open);
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

    fn disable_thing<'a>(&'a self, thing: Thing<'a>) -> ApiFuture<'a, ()> {
        self.record(Action::DisableThing, thing.product_key, self.inner.disable_thing(thing))
    }

    fn enable_thing<'a>(&'a self, thing: Thing<'a>) -> ApiFuture<'a, ()> {
        self.record(Action::EnableThing, thing.product_key, self.inner.enable_thing(thing))
    }

    fn delete_device<'a>(&'a self, thing: Thing<'a>) -> ApiFuture<'a, ()> {
        self.record(Action::DeleteDevice, thing.product_key, self.inner.delete_device(thing))
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
        note(15, "a2", &failed(ErrorClass::Operator, "iot.prod.NotExistedProduct"));
        note(20, "a1", &failed(ErrorClass::TimedOut, "Timeout"));
        note(30, "a1", &failed(ErrorClass::TryAgain, "NoConnection"));
        let troubles = calls.troubles();
        let first = &troubles[0];
        assert_eq!((troubles.len(), first.since, first.last, first.calls), (2, 20, 30, 2));
        assert_eq!(first.error.code, "NoConnection");
        let ended = calls.ended(Action::RegisterDevice);
        assert_eq!(ended, Ended { worked: 1, failed: 2, timed_out: 1 });
        // The error `Exists` shows, like a success, that IoT Platform works.
        note(40, "a1", &failed(ErrorClass::Exists, "iot.device.AlreadyExistedDeviceName"));
        let left: Vec<_> = calls.troubles().into_iter().map(|trouble| trouble.product_key).collect();
        assert_eq!(left, ["a2"], "the other product is still in trouble");
    }

    #[test]
    fn a_call_that_works_ends_all_trouble_that_has_the_same_cause() {
        let register = Action::RegisterDevice;
        let query = Action::QueryDeviceDetail;
        for (class, code, ends) in [
            (ErrorClass::Operator, "SignatureDoesNotMatch", [true, true, true]),
            (ErrorClass::Operator, "InvalidAccessKeyId.NotFound", [true, true, true]),
            (ErrorClass::TryAgain, "NoConnection", [true, true, true]),
            (ErrorClass::Operator, "Forbidden.RAM", [true, false, false]),
            (ErrorClass::TimedOut, "Timeout", [true, false, false]),
            (ErrorClass::Operator, "iot.prod.NotExistedProduct", [false, true, false]),
            (ErrorClass::Operator, "iot.device.DeviceCountExceeded", [false, false, false]),
            (ErrorClass::Unknown, "Strange", [false, false, false]),
        ] {
            for ((action, product), ends) in
                [(register, "a2"), (query, "a1"), (query, "a2")].into_iter().zip(ends)
            {
                let calls = Calls::default();
                calls.note(10, register, "a1", &failed(class, code));
                calls.note(20, action, product, &Ok(()));
                assert_eq!(calls.troubles().is_empty(), ends, "{code}, {action:?}, {product}");
                calls.note(30, register, "a1", &Ok(()));
                assert_eq!(calls.troubles(), [], "{code}");
            }
        }
    }

    #[test]
    fn a_refused_product_shows_that_the_access_key_is_right() {
        let calls = Calls::default();
        calls.note(10, Action::RegisterDevice, "a1", &failed(ErrorClass::Operator, "SignatureDoesNotMatch"));
        calls.note(
            20,
            Action::RegisterDevice,
            "a2",
            &failed(ErrorClass::Operator, "iot.prod.NotExistedProduct"),
        );
        let left: Vec<_> = calls.troubles().into_iter().map(|trouble| trouble.product_key).collect();
        assert_eq!(left, ["a2"]);
        // If the same call fails for another cause, a new trouble begins.
        calls.note(30, Action::RegisterDevice, "a2", &failed(ErrorClass::TimedOut, "Timeout"));
        assert_eq!((calls.troubles()[0].since, calls.troubles()[0].calls), (30, 1));
    }

    #[test]
    fn the_oldest_call_without_an_answer_is_known() {
        let calls = Calls::default();
        assert_eq!(calls.unanswered_since(), None);
        let first = calls.open(10);
        let second = calls.open(20);
        assert_eq!(calls.unanswered_since(), Some(10));
        drop(first);
        assert_eq!(calls.unanswered_since(), Some(20));
        drop(second);
        assert_eq!(calls.unanswered_since(), None);
    }

    #[tokio::test]
    async fn a_change_of_a_device_is_recorded_with_its_action_and_product() {
        let calls = Arc::<Calls>::default();
        let cloud = Recorded::new(Arc::new(super::super::NoCloud::unconfigured()), calls.clone());
        let thing = Thing { product_key: "a1", device_name: "SN01", iot_id: Some("i") };
        let outcomes = [
            cloud.disable_thing(thing).await,
            cloud.enable_thing(thing).await,
            cloud.delete_device(thing).await,
        ];
        for (action, outcome) in
            [Action::DisableThing, Action::EnableThing, Action::DeleteDevice].into_iter().zip(outcomes)
        {
            assert_eq!(outcome.unwrap_err().code, "NoCloud");
            let trouble = calls.troubles().into_iter().find(|trouble| trouble.action == action).unwrap();
            assert_eq!((trouble.product_key.as_str(), calls.ended(action).failed), ("a1", 1));
        }
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
