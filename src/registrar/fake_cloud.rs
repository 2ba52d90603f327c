//! A cloud in memory for the tests of the rooms above it: it answers as it is
//! told to, and remembers what it was asked.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Mutex, MutexGuard, OnceLock},
    time::Duration,
};

use tokio::time::Instant;

use crate::{
    device::{Certificate, Secret},
    iot_platform::{
        Action, ApiError, ApiFuture, ApplyId, BatchPage, BatchProgress, BatchStatus, CloudDevice, ErrorClass,
        IotPlatform, PAGE_SIZE,
        answer::classify,
        batches::{Batches, Names, Refused},
    },
};

/// How the next `RegisterDevice` goes.
#[derive(Debug, Clone)]
pub(crate) enum Scripted {
    /// It is refused, and nothing is created.
    Refuse(ErrorClass),
    /// The same with a code of the cloud's.
    RefuseWith(&'static str),
    /// The device is created, and the answer lost.
    CreateAndLose(ErrorClass),
    /// It takes so long.
    Slow(Duration),
}

#[derive(Default)]
pub(crate) struct FakeCloud {
    /// Calls in order, with their times.
    log: Mutex<Vec<(Action, Instant)>>,
    /// Actions that are refused whatever they ask for.
    refused: Mutex<HashMap<Action, &'static str>>,
    script: Mutex<VecDeque<Scripted>>,
    devices: Mutex<Devices>,
    calls: Mutex<Vec<String>>,
    batches: Mutex<Batches>,
    /// What was done to devices, by name.
    states: Mutex<HashMap<String, State>>,
    /// How long each step of a batch takes.
    batch_delay: Mutex<Duration>,
    started: OnceLock<Instant>,
}

/// What was done to a device.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct State {
    pub(crate) created: Option<i64>,
    pub(crate) activated: Option<i64>,
    pub(crate) disabled: bool,
    pub(crate) deleted: bool,
}

/// Devices by product and name, with the numbers that their secrets are made from.
type Devices = HashMap<(String, String), u32>;

impl Names for Devices {
    fn is_taken(&self, product_key: &str, device_name: &str) -> bool {
        self.contains_key(&(product_key.to_owned(), device_name.to_owned()))
    }

    fn create(&mut self, product_key: &str, device_name: &str, _: i64) -> bool {
        let number = self.len() as u32;
        let free = !self.is_taken(product_key, device_name);
        if free {
            self.insert((product_key.to_owned(), device_name.to_owned()), number);
        }
        free
    }
}

impl FakeCloud {
    pub(crate) fn script(&self, steps: impl IntoIterator<Item = Scripted>) {
        self.script.lock().unwrap().extend(steps);
    }

    /// How often `RegisterDevice` was called.
    pub(crate) fn registrations(&self) -> usize {
        self.calls.lock().unwrap().len()
    }

    /// How many devices there are.
    pub(crate) fn devices(&self) -> usize {
        self.devices_now().len()
    }

    /// How often an action was called.
    pub(crate) fn calls(&self, action: Action) -> usize {
        self.log.lock().unwrap().iter().filter(|(called, _)| *called == action).count()
    }

    /// The most calls of an action within any second.
    pub(crate) fn busiest_second(&self, action: Action) -> usize {
        let log = self.log.lock().unwrap();
        let times: Vec<_> = log.iter().filter(|(called, _)| *called == action).map(|(_, at)| *at).collect();
        let within = |from: &Instant| {
            times.iter().filter(|at| (*from..*from + Duration::from_secs(1)).contains(at)).count()
        };
        times.iter().map(within).max().unwrap_or(0)
    }

    /// Refuses every call of an action from now on.
    pub(crate) fn refuse(&self, action: Action, code: &'static str) {
        self.refused.lock().unwrap().insert(action, code);
    }

    /// Notes a call.
    fn called(&self, action: Action) -> Result<(), ApiError> {
        self.log.lock().unwrap().push((action, Instant::now()));
        self.refused.lock().unwrap().get(&action).map_or(Ok(()), |code| Err(refused(code)))
    }

    /// A device that somebody else makes.
    pub(crate) fn make(&self, product_key: &str, device_name: &str) {
        self.create(product_key, device_name).unwrap();
    }

    /// Somebody deletes a device: its name is free again.
    pub(crate) fn delete(&self, product_key: &str, device_name: &str) {
        let mut devices = self.devices_now();
        let deleted = devices.remove(&(product_key.to_owned(), device_name.to_owned()));
        // Numbers, and so secrets, are not used again.
        deleted.and_then(|number| devices.insert((String::new(), device_name.to_owned()), number));
    }

    /// A device signs in, is disabled or deleted.
    pub(crate) fn change(&self, device_name: &str, change: impl FnOnce(&mut State)) {
        change(self.states.lock().unwrap().entry(device_name.to_owned()).or_default());
    }

    /// How long each step of a batch takes from now on.
    pub(crate) fn set_batch_delay(&self, delay: Duration) {
        *self.batch_delay.lock().unwrap() = delay;
    }

    fn create(&self, product_key: &str, device_name: &str) -> Result<CloudDevice, ApiError> {
        let mut devices = self.devices_now();
        if !devices.create(product_key, device_name, 0) {
            return Err(error(ErrorClass::Exists));
        }
        self.find(&devices, product_key, device_name).ok_or_else(|| error(ErrorClass::NotFound))
    }

    fn now_ms(&self) -> i64 {
        self.started.get_or_init(Instant::now).elapsed().as_millis() as i64
    }

    /// The devices, those included that batches have created meanwhile.
    fn devices_now(&self) -> MutexGuard<'_, Devices> {
        let mut devices = self.devices.lock().unwrap();
        self.batches.lock().unwrap().advance(&mut *devices, self.now_ms());
        devices
    }

    fn find(&self, devices: &Devices, product_key: &str, device_name: &str) -> Option<CloudDevice> {
        let number = *devices.get(&(product_key.to_owned(), device_name.to_owned()))?;
        let state = self.states.lock().unwrap().get(device_name).copied().unwrap_or_default();
        (!state.deleted).then(|| CloudDevice {
            created: state.created,
            activated: state.activated,
            disabled: state.disabled,
            ..device(product_key, device_name, number)
        })
    }

    /// Does something with the batches as they are now; the clock may be virtual.
    fn with_batches<T>(
        &self,
        action: impl FnOnce(&mut Batches, &Devices, i64, Duration) -> Result<T, Refused>,
    ) -> Result<T, ApiError> {
        let delay = *self.batch_delay.lock().unwrap();
        let devices = self.devices_now();
        action(&mut self.batches.lock().unwrap(), &devices, self.now_ms(), delay).map_err(refused)
    }
}

fn refused(code: &str) -> ApiError {
    ApiError { class: classify(200, Some(code)), code: code.into(), message: "as the cloud would".into() }
}

pub(crate) fn error(class: ErrorClass) -> ApiError {
    ApiError { class, code: format!("{class:?}"), message: "as the test wants it".into() }
}

fn device(product_key: &str, device_name: &str, number: u32) -> CloudDevice {
    CloudDevice {
        certificate: Certificate {
            product_key: product_key.into(),
            device_name: device_name.into(),
            device_secret: Secret::new(format!("secret-{number}")),
        },
        iot_id: Some(format!("iot-{number}")),
        created: None,
        activated: None,
        disabled: false,
    }
}

impl IotPlatform for FakeCloud {
    fn register_device<'a>(
        &'a self,
        product_key: &'a str,
        device_name: &'a str,
    ) -> ApiFuture<'a, CloudDevice> {
        let called = self.called(Action::RegisterDevice);
        self.calls.lock().unwrap().push(device_name.to_owned());
        let step = self.script.lock().unwrap().pop_front();
        Box::pin(async move {
            called?;
            match step {
                None => self.create(product_key, device_name),
                Some(Scripted::Refuse(class)) => Err(error(class)),
                Some(Scripted::RefuseWith(code)) => Err(refused(code)),
                Some(Scripted::CreateAndLose(class)) => {
                    self.create(product_key, device_name)?;
                    Err(error(class))
                }
                Some(Scripted::Slow(time)) => {
                    tokio::time::sleep(time).await;
                    self.create(product_key, device_name)
                }
            }
        })
    }

    fn query_device_detail<'a>(
        &'a self,
        product_key: &'a str,
        device_name: &'a str,
    ) -> ApiFuture<'a, CloudDevice> {
        Box::pin(async move {
            self.called(Action::QueryDeviceDetail)?;
            let devices = self.devices_now();
            self.find(&devices, product_key, device_name).ok_or_else(|| error(ErrorClass::NotFound))
        })
    }

    fn batch_check_device_names<'a>(
        &'a self,
        product_key: &'a str,
        device_names: &'a [String],
    ) -> ApiFuture<'a, ApplyId> {
        Box::pin(async move {
            self.called(Action::BatchCheckDeviceNames)?;
            self.with_batches(|batches, _, now_ms, delay| {
                Ok(batches.check(product_key, device_names.to_vec(), now_ms, delay))
            })
        })
    }

    fn query_batch_register_device_status<'a>(
        &'a self,
        product_key: &'a str,
        apply_id: ApplyId,
    ) -> ApiFuture<'a, BatchProgress> {
        Box::pin(async move {
            self.called(Action::QueryBatchRegisterDeviceStatus)?;
            self.with_batches(|batches, _, _, _| batches.progress(product_key, apply_id))
        })
    }

    fn batch_register_device_with_apply_id<'a>(
        &'a self,
        product_key: &'a str,
        apply_id: ApplyId,
    ) -> ApiFuture<'a, ApplyId> {
        Box::pin(async move {
            self.called(Action::BatchRegisterDeviceWithApplyId)?;
            self.with_batches(|batches, _, now_ms, delay| {
                batches.register(product_key, apply_id, now_ms, delay).map(|()| apply_id)
            })
        })
    }

    fn query_page_by_apply_id<'a>(
        &'a self,
        product_key: &'a str,
        apply_id: ApplyId,
        page: u32,
    ) -> ApiFuture<'a, BatchPage> {
        Box::pin(async move {
            self.called(Action::QueryPageByApplyId)?;
            self.with_batches(|batches, devices, _, _| {
                let (_, names) = batches.created(apply_id)?;
                let names =
                    names.chunks(PAGE_SIZE).nth((page as usize).saturating_sub(1)).unwrap_or_default();
                Ok(BatchPage {
                    devices: names.iter().filter_map(|name| self.find(devices, product_key, name)).collect(),
                    pages: batches.created(apply_id)?.1.len().div_ceil(PAGE_SIZE) as u32,
                })
            })
        })
    }

    fn batch_query_device_detail<'a>(
        &'a self,
        product_key: &'a str,
        device_names: &'a [String],
    ) -> ApiFuture<'a, Vec<CloudDevice>> {
        Box::pin(async move {
            self.called(Action::BatchQueryDeviceDetail)?;
            let devices = self.devices_now();
            Ok(device_names.iter().filter_map(|name| self.find(&devices, product_key, name)).collect())
        })
    }
}

#[tokio::test(start_paused = true)]
async fn a_batch_takes_its_time_in_two_steps() {
    let cloud = FakeCloud::default();
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
