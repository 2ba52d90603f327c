//! A cloud that is slow and fails in every way it can, by the dice.

use std::{collections::HashMap, sync::Mutex, time::Duration};

use rand::{RngExt, SeedableRng, rngs::StdRng};
use tokio::time::Instant;

use crate::{
    device::{Certificate, Secret},
    iot_platform::{
        ApiError, ApiFuture, ApplyId, BatchPage, BatchProgress, CloudDevice, ErrorClass, IotPlatform,
        PAGE_SIZE,
        answer::classify,
        batches::{Batches, Names, Refused},
    },
};

/// How long each step of a batch takes.
const BATCH_DELAY: Duration = Duration::from_secs(2);

pub(super) struct Cloud {
    random: Mutex<StdRng>,
    devices: Mutex<Devices>,
    batches: Mutex<Batches>,
    started: Instant,
}

struct Devices {
    /// Secrets by name.
    secrets: HashMap<String, String>,
    random: StdRng,
}

impl Names for Devices {
    fn is_taken(&self, _: &str, device_name: &str) -> bool {
        self.secrets.contains_key(device_name)
    }

    fn create(&mut self, product_key: &str, device_name: &str, _: i64) -> bool {
        let free = !self.is_taken(product_key, device_name);
        if free {
            let secret = format!("secret-{}", self.random.random::<u64>());
            self.secrets.insert(device_name.into(), secret);
        }
        free
    }
}

/// How a call ends.
enum Fate {
    Fails(ErrorClass),
    /// It is carried out, and the answer lost.
    IsLost,
    Succeeds,
}

impl Cloud {
    pub(super) fn new(seed: u64) -> Self {
        let devices = Devices { secrets: HashMap::new(), random: StdRng::seed_from_u64(!seed) };
        Self {
            random: Mutex::new(StdRng::seed_from_u64(seed)),
            devices: Mutex::new(devices),
            batches: Mutex::default(),
            started: Instant::now(),
        }
    }

    pub(super) fn secret(&self, device_name: &str) -> Option<String> {
        self.devices.lock().unwrap().secrets.get(device_name).cloned()
    }

    pub(super) fn devices(&self) -> usize {
        self.devices.lock().unwrap().secrets.len()
    }

    fn roll(&self) -> (Fate, Duration) {
        let mut random = self.random.lock().unwrap();
        let fate = match random.random_range(0..100) {
            0..10 => Fate::Fails(ErrorClass::TryAgain),
            10..15 => Fate::Fails(ErrorClass::TimedOut),
            15..25 => Fate::IsLost,
            25 => Fate::Fails(ErrorClass::Throttled),
            _ => Fate::Succeeds,
        };
        // Most calls take a moment, some seconds.
        let most = if random.random_bool(0.2) { 6000 } else { 200 };
        (fate, Duration::from_millis(random.random_range(20..most)))
    }

    /// A call that takes its time and may fail before or after it is carried out.
    async fn call<T>(&self, action: impl FnOnce() -> Result<T, ApiError>) -> Result<T, ApiError> {
        let (fate, time) = self.roll();
        tokio::time::sleep(time).await;
        self.batches.lock().unwrap().advance(&mut *self.devices.lock().unwrap(), self.now_ms());
        match fate {
            Fate::Fails(class) => Err(error(class)),
            Fate::IsLost => action().and(Err(error(ErrorClass::TimedOut))),
            Fate::Succeeds => action(),
        }
    }

    fn now_ms(&self) -> i64 {
        self.started.elapsed().as_millis() as i64
    }

    /// Does something with the batches as they are now.
    fn with_batches<T>(
        &self,
        action: impl FnOnce(&mut Batches, i64) -> Result<T, Refused>,
    ) -> Result<T, ApiError> {
        action(&mut self.batches.lock().unwrap(), self.now_ms()).map_err(|code| ApiError {
            class: classify(200, Some(code)),
            code: code.into(),
            message: "as the cloud would".into(),
        })
    }

    fn find(&self, product_key: &str, device_name: &str) -> Option<CloudDevice> {
        self.secret(device_name).map(|secret| device(product_key, device_name, &secret))
    }
}

fn error(class: ErrorClass) -> ApiError {
    ApiError { class, code: format!("{class:?}"), message: "by the dice".into() }
}

fn device(product_key: &str, device_name: &str, secret: &str) -> CloudDevice {
    CloudDevice {
        certificate: Certificate {
            product_key: product_key.into(),
            device_name: device_name.into(),
            device_secret: Secret::new(secret.into()),
        },
        iot_id: None,
        created: None,
        activated: None,
        disabled: false,
    }
}

impl IotPlatform for Cloud {
    fn register_device<'a>(
        &'a self,
        product_key: &'a str,
        device_name: &'a str,
    ) -> ApiFuture<'a, CloudDevice> {
        Box::pin(self.call(move || {
            let created = self.devices.lock().unwrap().create(product_key, device_name, 0);
            let device = self.find(product_key, device_name).filter(|_| created);
            device.ok_or_else(|| error(ErrorClass::Exists))
        }))
    }

    fn query_device_detail<'a>(
        &'a self,
        product_key: &'a str,
        device_name: &'a str,
    ) -> ApiFuture<'a, CloudDevice> {
        Box::pin(
            self.call(move || self.find(product_key, device_name).ok_or_else(|| error(ErrorClass::NotFound))),
        )
    }

    fn batch_check_device_names<'a>(
        &'a self,
        product_key: &'a str,
        device_names: &'a [String],
    ) -> ApiFuture<'a, ApplyId> {
        Box::pin(self.call(move || {
            self.with_batches(|batches, now_ms| {
                Ok(batches.check(product_key, device_names.to_vec(), now_ms, BATCH_DELAY))
            })
        }))
    }

    fn query_batch_register_device_status<'a>(
        &'a self,
        product_key: &'a str,
        apply_id: ApplyId,
    ) -> ApiFuture<'a, BatchProgress> {
        Box::pin(self.call(move || self.with_batches(|batches, _| batches.progress(product_key, apply_id))))
    }

    fn batch_register_device_with_apply_id<'a>(
        &'a self,
        product_key: &'a str,
        apply_id: ApplyId,
    ) -> ApiFuture<'a, ApplyId> {
        Box::pin(self.call(move || {
            self.with_batches(|batches, now_ms| {
                batches.register(product_key, apply_id, now_ms, BATCH_DELAY).map(|()| apply_id)
            })
        }))
    }

    fn query_page_by_apply_id<'a>(
        &'a self,
        product_key: &'a str,
        apply_id: ApplyId,
        page: u32,
    ) -> ApiFuture<'a, BatchPage> {
        Box::pin(self.call(move || {
            let names = self.with_batches(|batches, _| Ok(batches.created(apply_id)?.1.to_vec()))?;
            let of_page = names.chunks(PAGE_SIZE).nth((page as usize).saturating_sub(1)).unwrap_or_default();
            Ok(BatchPage {
                devices: of_page.iter().filter_map(|name| self.find(product_key, name)).collect(),
                pages: names.len().div_ceil(PAGE_SIZE) as u32,
            })
        }))
    }

    fn batch_query_device_detail<'a>(
        &'a self,
        product_key: &'a str,
        device_names: &'a [String],
    ) -> ApiFuture<'a, Vec<CloudDevice>> {
        Box::pin(
            self.call(move || {
                Ok(device_names.iter().filter_map(|name| self.find(product_key, name)).collect())
            }),
        )
    }
}
