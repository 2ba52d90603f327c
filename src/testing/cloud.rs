//! A cloud in memory: the account of the simulator, without the simulator's HTTP server. A test
//! scripts the results of calls, or lets a seed choose them at random. The cloud logs all calls.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Mutex, MutexGuard},
    time::Duration,
};

use rand::{RngExt, SeedableRng, rngs::StdRng};
use tokio::time::Instant;

use crate::{
    device::{Certificate, Secret},
    iot_platform::{
        Action, ApiError, ApiFuture, ApplyId, BatchPage, BatchProgress, CloudDevice, ErrorClass, IotPlatform,
        PAGE_SIZE, Thing,
        answer::classify,
        batches::Refused,
        simulator::{Account, Device},
    },
    store::unix_now,
};

/// Scripted result of a `RegisterDevice` call.
#[derive(Debug, Clone)]
pub(crate) enum Scripted {
    /// The call is refused, and no device is created.
    Refuse(ErrorClass),
    /// The call is refused with this `Code` of the cloud, and no device is created.
    RefuseWith(&'static str),
    /// The device is created, but the answer is lost.
    CreateAndLose(ErrorClass),
    /// The device is created, but the call is refused with this `Code`.
    CreateAndRefuseWith(&'static str),
    /// The call succeeds after this time.
    Slow(Duration),
}

/// Result of a call.
#[derive(Debug)]
enum Fate {
    Fails(ApiError),
    /// The call is carried out, but its answer is lost.
    IsLost(ApiError),
    Succeeds,
}

/// Source of the results of calls.
enum Fates {
    /// Results of the next `RegisterDevice` calls, in order. All other calls succeed immediately.
    Script(VecDeque<Scripted>),
    /// Random results of all calls.
    Dice(Box<StdRng>),
}

impl Fates {
    /// Returns the result of the next call and the time that it takes.
    fn next(&mut self, action: Action) -> (Fate, Duration) {
        match self {
            Self::Script(script) if action == Action::RegisterDevice => match script.pop_front() {
                Some(Scripted::Refuse(class)) => (Fate::Fails(error(class)), Duration::ZERO),
                Some(Scripted::RefuseWith(code)) => (Fate::Fails(refused(code)), Duration::ZERO),
                Some(Scripted::CreateAndLose(class)) => (Fate::IsLost(error(class)), Duration::ZERO),
                Some(Scripted::CreateAndRefuseWith(code)) => (Fate::IsLost(refused(code)), Duration::ZERO),
                Some(Scripted::Slow(time)) => (Fate::Succeeds, time),
                None => (Fate::Succeeds, Duration::ZERO),
            },
            Self::Script(_) => (Fate::Succeeds, Duration::ZERO),
            Self::Dice(random) => {
                let fate = match random.random_range(0..100) {
                    0..10 => Fate::Fails(error(ErrorClass::TryAgain)),
                    10..15 => Fate::Fails(error(ErrorClass::TimedOut)),
                    15..25 => Fate::IsLost(error(ErrorClass::TimedOut)),
                    25 => Fate::Fails(error(ErrorClass::Throttled)),
                    _ => Fate::Succeeds,
                };
                // Most calls take up to 0.2 s, some up to 6 s.
                let most = if random.random_bool(0.2) { 6000 } else { 200 };
                (fate, Duration::from_millis(random.random_range(20..most)))
            }
        }
    }
}

struct State {
    account: Account,
    fates: Fates,
    /// Actions whose calls are all refused, with the `Code` of the refusal.
    refused: HashMap<Action, &'static str>,
    /// Products for which lists of names are refused, with the `Code` of the refusal.
    refused_products: HashMap<String, &'static str>,
    /// Existing names that answers to lists of names leave out, each with the number of answers
    /// that will still leave the name out.
    hidden: HashMap<String, u32>,
    /// Times at which each name was in a list of names.
    listed: HashMap<String, Vec<Instant>>,
    /// All calls in order, with their times.
    log: Vec<(Action, Instant)>,
    /// Time that each step of a batch takes.
    batch_delay: Duration,
    /// Milliseconds since 1970 at `started`.
    epoch_ms: i64,
    started: Option<Instant>,
    /// Number of seconds by which the cloud's clock is ahead of this machine's clock.
    clock_ahead: i64,
    /// Set if no answer shows the cloud's time.
    hides_clock: bool,
    /// Name of the account. All clouds with this account name share its limits.
    account_name: String,
}

impl State {
    fn now_ms(&mut self) -> i64 {
        let started = *self.started.get_or_insert_with(Instant::now);
        self.epoch_ms + started.elapsed().as_millis() as i64
    }

    /// Completes the batch steps that are due by now, in virtual or real time. Returns the account.
    fn advance(&mut self) -> &mut Account {
        let now = self.now_ms();
        self.account.advance(now);
        &mut self.account
    }

    fn create(&mut self, product_key: &str, device_name: &str) -> Result<CloudDevice, ApiError> {
        let now = self.now_ms();
        let created = self.account.devices.create(product_key, device_name, "", now);
        // According to its API page, RegisterDevice returns no creation time.
        created
            .map(|device| CloudDevice { created: None, ..told(device) })
            .ok_or_else(|| error(ErrorClass::Exists))
    }

    /// Returns product and name of the device that a call changes.
    fn named(&self, thing: Thing<'_>) -> Result<(String, String), ApiError> {
        let devices = &self.account.devices;
        let device = match thing.iot_id {
            Some(iot_id) => devices.get_by_iot_id(iot_id),
            None => devices.get(thing.product_key, thing.device_name),
        };
        let named = device.map(|device| (device.product_key.clone(), device.device_name.clone()));
        named.ok_or_else(|| error(ErrorClass::NotFound))
    }

    fn find(&self, product_key: &str, device_name: &str) -> Option<CloudDevice> {
        self.account.devices.get(product_key, device_name).map(told)
    }
}

pub(crate) struct Cloud(Mutex<State>);

/// Returns the maximum number of these times within one second.
pub(crate) fn busiest_second(times: &[Instant]) -> usize {
    let within = |from: &Instant| {
        times.iter().filter(|at| (*from..*from + Duration::from_secs(1)).contains(at)).count()
    };
    times.iter().map(within).max().unwrap_or(0)
}

impl Default for Cloud {
    /// Makes a cloud whose calls all succeed immediately, until a test changes that.
    fn default() -> Self {
        Self::new(0, Fates::Script(VecDeque::new()))
    }
}

impl Cloud {
    fn new(seed: u64, fates: Fates) -> Self {
        Self(Mutex::new(State {
            account: Account::new(seed),
            fates,
            refused: HashMap::new(),
            refused_products: HashMap::new(),
            hidden: HashMap::new(),
            listed: HashMap::new(),
            log: Vec::new(),
            batch_delay: Duration::ZERO,
            epoch_ms: unix_now() * 1000,
            started: None,
            clock_ahead: 0,
            hides_clock: false,
            account_name: String::new(),
        }))
    }

    /// Makes a cloud with random delays and failures, from a seed.
    pub(crate) fn with_dice(seed: u64) -> Self {
        Self::new(seed, Fates::Dice(Box::new(StdRng::seed_from_u64(seed))))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    /// Appends results of the next `RegisterDevice` calls.
    pub(crate) fn script(&self, steps: impl IntoIterator<Item = Scripted>) {
        match &mut self.state().fates {
            Fates::Script(script) => script.extend(steps),
            Fates::Dice(_) => panic!("dice decide"),
        }
    }

    /// Sets the name of the account.
    pub(crate) fn set_account(&self, name: &str) {
        self.state().account_name = name.to_owned();
    }

    /// Refuses every call of an action from now on.
    pub(crate) fn refuse(&self, action: Action, code: &'static str) {
        self.state().refused.insert(action, code);
    }

    /// Accepts the calls of an action again.
    pub(crate) fn allow(&self, action: Action) {
        self.state().refused.remove(&action);
    }

    /// Refuses lists of names for a product from now on.
    pub(crate) fn refuse_product(&self, product_key: &str, code: &'static str) {
        self.state().refused_products.insert(product_key.to_owned(), code);
    }

    /// Leaves a device out of the next `answers` to lists of names.
    pub(crate) fn hide(&self, device_name: &str, answers: u32) {
        self.state().hidden.insert(device_name.to_owned(), answers);
    }

    /// Returns the number of lists since `start` that contained a name.
    pub(crate) fn listed(&self, device_name: &str, start: Instant) -> usize {
        let state = self.state();
        state.listed.get(device_name).map_or(0, |times| times.iter().filter(|at| **at >= start).count())
    }

    /// Sets how far the cloud's clock is ahead of this machine's clock, in seconds.
    pub(crate) fn set_clock_ahead(&self, seconds: i64) {
        self.state().clock_ahead = seconds;
    }

    /// Hides the cloud's time in all answers. Tests with a store in memory do so, because such a
    /// store already follows virtual time.
    pub(crate) fn hide_clock(&self) {
        self.state().hides_clock = true;
    }

    /// Sets the time that each step of a batch takes from now on.
    pub(crate) fn set_batch_delay(&self, delay: Duration) {
        self.state().batch_delay = delay;
    }

    /// Returns the number of devices.
    pub(crate) fn devices(&self) -> usize {
        self.state().advance().devices.len()
    }

    /// Returns the secret of a device.
    pub(crate) fn secret(&self, product_key: &str, device_name: &str) -> Option<String> {
        self.state()
            .advance()
            .devices
            .get(product_key, device_name)
            .map(|device| device.device_secret.clone())
    }

    /// Returns the number of calls of an action.
    pub(crate) fn calls(&self, action: Action) -> usize {
        self.state().log.iter().filter(|(called, _)| *called == action).count()
    }

    /// Returns the number of calls of `RegisterDevice`.
    pub(crate) fn registrations(&self) -> usize {
        self.calls(Action::RegisterDevice)
    }

    /// Returns the times of the calls of an action.
    pub(crate) fn times(&self, action: Action) -> Vec<Instant> {
        self.state().log.iter().filter(|(called, _)| *called == action).map(|(_, at)| *at).collect()
    }

    /// Returns the maximum number of calls of an action within one second.
    pub(crate) fn busiest_second(&self, action: Action) -> usize {
        busiest_second(&self.times(action))
    }

    /// Creates a device, as another user of the account.
    pub(crate) fn make(&self, product_key: &str, device_name: &str) {
        self.state().create(product_key, device_name).unwrap();
    }

    /// Deletes a device, as another user of the account. Its name becomes free.
    pub(crate) fn delete(&self, product_key: &str, device_name: &str) {
        self.state().advance().devices.remove(product_key, device_name).expect("there is such a device");
    }

    /// Changes a device at the cloud, as if the device signed in, or as if another user disabled
    /// it.
    pub(crate) fn change(&self, product_key: &str, device_name: &str, change: impl FnOnce(&mut Device)) {
        let mut state = self.state();
        state.advance().devices.change(product_key, device_name, change).expect("there is such a device");
    }

    /// Makes a call: waits for the time that the call takes, and then carries it out unless its
    /// result is a failure.
    async fn call<T>(
        &self,
        action: Action,
        work: impl FnOnce(&mut State) -> Result<T, ApiError>,
    ) -> Result<T, ApiError> {
        let (fate, time) = {
            let state = &mut *self.state();
            state.log.push((action, Instant::now()));
            if let Some(code) = state.refused.get(&action) {
                return Err(refused(code));
            }
            state.fates.next(action)
        };
        if !time.is_zero() {
            tokio::time::sleep(time).await;
        }
        let state = &mut *self.state();
        state.advance();
        match fate {
            Fate::Fails(error) => Err(error),
            Fate::IsLost(error) => work(state).and(Err(error)),
            Fate::Succeeds => work(state),
        }
    }
}

fn told(device: &Device) -> CloudDevice {
    CloudDevice {
        certificate: Certificate {
            product_key: device.product_key.clone(),
            device_name: device.device_name.clone(),
            device_secret: Secret::new(device.device_secret.clone()),
        },
        iot_id: Some(device.iot_id.clone()),
        created: Some(device.created / 1000),
        activated: device.activated.map(|at| at / 1000),
        disabled: device.disabled,
    }
}

fn refused(code: Refused) -> ApiError {
    ApiError { class: classify(200, Some(code)), code: code.into(), message: "as the cloud would".into() }
}

pub(crate) fn error(class: ErrorClass) -> ApiError {
    ApiError { class, code: format!("{class:?}"), message: "as the test wants it".into() }
}

impl IotPlatform for Cloud {
    fn account(&self) -> String {
        self.state().account_name.clone()
    }

    /// Returns the offset of the cloud's clock, which is virtual, like all time in a test.
    fn clock_offset(&self) -> Option<i64> {
        let mut state = self.state();
        let offset = state.now_ms() / 1000 - unix_now() + state.clock_ahead;
        (!state.hides_clock).then_some(offset)
    }

    fn register_device<'a>(
        &'a self,
        product_key: &'a str,
        device_name: &'a str,
    ) -> ApiFuture<'a, CloudDevice> {
        Box::pin(self.call(Action::RegisterDevice, |state| state.create(product_key, device_name)))
    }

    fn query_device_detail<'a>(
        &'a self,
        product_key: &'a str,
        device_name: &'a str,
    ) -> ApiFuture<'a, CloudDevice> {
        Box::pin(self.call(Action::QueryDeviceDetail, |state| {
            state.find(product_key, device_name).ok_or_else(|| error(ErrorClass::NotFound))
        }))
    }

    fn batch_check_device_names<'a>(
        &'a self,
        product_key: &'a str,
        device_names: &'a [String],
    ) -> ApiFuture<'a, ApplyId> {
        Box::pin(self.call(Action::BatchCheckDeviceNames, |state| {
            let (now, delay) = (state.now_ms(), state.batch_delay);
            Ok(state.account.batches.check(product_key, device_names.to_vec(), now, delay))
        }))
    }

    fn query_batch_register_device_status<'a>(
        &'a self,
        product_key: &'a str,
        apply_id: ApplyId,
    ) -> ApiFuture<'a, BatchProgress> {
        Box::pin(self.call(Action::QueryBatchRegisterDeviceStatus, move |state| {
            state.account.batches.progress(product_key, apply_id).map_err(refused)
        }))
    }

    fn batch_register_device_with_apply_id<'a>(
        &'a self,
        product_key: &'a str,
        apply_id: ApplyId,
    ) -> ApiFuture<'a, ApplyId> {
        Box::pin(self.call(Action::BatchRegisterDeviceWithApplyId, move |state| {
            let (now, delay) = (state.now_ms(), state.batch_delay);
            let begun = state.account.batches.register(product_key, apply_id, now, delay);
            begun.map(|()| apply_id).map_err(refused)
        }))
    }

    fn query_page_by_apply_id<'a>(
        &'a self,
        product_key: &'a str,
        apply_id: ApplyId,
        page: u32,
    ) -> ApiFuture<'a, BatchPage> {
        Box::pin(self.call(Action::QueryPageByApplyId, move |state| {
            let (_, names) = state.account.batches.created(apply_id).map_err(refused)?;
            let of_page = names.chunks(PAGE_SIZE).nth((page as usize).saturating_sub(1)).unwrap_or_default();
            Ok(BatchPage {
                devices: of_page.iter().filter_map(|name| state.find(product_key, name)).collect(),
                pages: names.len().div_ceil(PAGE_SIZE) as u32,
            })
        }))
    }

    fn batch_query_device_detail<'a>(
        &'a self,
        product_key: &'a str,
        device_names: &'a [String],
    ) -> ApiFuture<'a, Vec<CloudDevice>> {
        Box::pin(self.call(Action::BatchQueryDeviceDetail, move |state| {
            if let Some(code) = state.refused_products.get(product_key) {
                return Err(refused(code));
            }
            let mut found = Vec::new();
            for name in device_names {
                state.listed.entry(name.clone()).or_default().push(Instant::now());
                match state.hidden.get_mut(name) {
                    Some(left @ 1..) => *left -= 1,
                    _ => found.extend(state.find(product_key, name)),
                }
            }
            Ok(found)
        }))
    }

    fn disable_thing<'a>(&'a self, thing: Thing<'a>) -> ApiFuture<'a, ()> {
        Box::pin(self.call(Action::DisableThing, move |state| {
            let (product_key, name) = state.named(thing)?;
            state.account.devices.change(&product_key, &name, Device::disable);
            Ok(())
        }))
    }

    fn enable_thing<'a>(&'a self, thing: Thing<'a>) -> ApiFuture<'a, ()> {
        Box::pin(self.call(Action::EnableThing, move |state| {
            let (product_key, name) = state.named(thing)?;
            state.account.devices.change(&product_key, &name, |device| device.disabled = false);
            Ok(())
        }))
    }

    fn delete_device<'a>(&'a self, thing: Thing<'a>) -> ApiFuture<'a, ()> {
        Box::pin(self.call(Action::DeleteDevice, move |state| {
            // A device that does not exist counts as deleted.
            if let Ok((product_key, name)) = state.named(thing) {
                state.account.devices.remove(&product_key, &name);
            }
            Ok(())
        }))
    }
}

#[tokio::test(start_paused = true)]
async fn a_batch_takes_its_time_in_two_steps() {
    use crate::iot_platform::BatchStatus;

    let cloud = Cloud::default();
    cloud.set_batch_delay(Duration::from_secs(5));
    let names: Vec<_> = (0..PAGE_SIZE + 1).map(|number| format!("SN{number:04}")).collect();
    let id = cloud.batch_check_device_names("a1", &names).await.unwrap();
    let status = async || cloud.query_batch_register_device_status("a1", id).await.unwrap().status;
    assert_eq!(status().await, BatchStatus::Check);
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(status().await, BatchStatus::CheckSuccess);
    cloud.batch_register_device_with_apply_id("a1", id).await.unwrap();
    assert_eq!((status().await, cloud.devices()), (BatchStatus::Create, 0));
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!((cloud.devices(), status().await), (names.len(), BatchStatus::CreateSuccess));
    let page = cloud.query_page_by_apply_id("a1", id, 2).await.unwrap();
    assert_eq!(
        (page.pages, &page.devices[..]),
        (2, &[cloud.query_device_detail("a1", "SN0050").await.unwrap()][..])
    );
}
