//! A cloud that is slow and fails in every way it can, by the dice.

use std::{collections::HashMap, sync::Mutex, time::Duration};

use rand::{RngExt, SeedableRng, rngs::StdRng};

use crate::{
    device::{Certificate, Secret},
    iot_platform::{ApiError, ApiFuture, CloudDevice, ErrorClass, IotPlatform},
};

pub(super) struct Cloud {
    random: Mutex<StdRng>,
    /// Secrets by name, and the calls that made them.
    devices: Mutex<HashMap<String, String>>,
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
        Self { random: Mutex::new(StdRng::seed_from_u64(seed)), devices: Mutex::default() }
    }

    pub(super) fn secret(&self, device_name: &str) -> Option<String> {
        self.devices.lock().unwrap().get(device_name).cloned()
    }

    pub(super) fn devices(&self) -> usize {
        self.devices.lock().unwrap().len()
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
    }
}

impl IotPlatform for Cloud {
    fn register_device<'a>(
        &'a self,
        product_key: &'a str,
        device_name: &'a str,
    ) -> ApiFuture<'a, CloudDevice> {
        Box::pin(async move {
            let (fate, time) = self.roll();
            tokio::time::sleep(time).await;
            if let Fate::Fails(class) = fate {
                return Err(error(class));
            }
            let secret = {
                let mut devices = self.devices.lock().unwrap();
                if devices.contains_key(device_name) {
                    return Err(error(ErrorClass::Exists));
                }
                let secret = format!("secret-{}", self.random.lock().unwrap().random::<u64>());
                devices.insert(device_name.into(), secret.clone());
                secret
            };
            match fate {
                Fate::IsLost => Err(error(ErrorClass::TimedOut)),
                _ => Ok(device(product_key, device_name, &secret)),
            }
        })
    }

    fn query_device_detail<'a>(
        &'a self,
        product_key: &'a str,
        device_name: &'a str,
    ) -> ApiFuture<'a, CloudDevice> {
        Box::pin(async move {
            let (fate, time) = self.roll();
            tokio::time::sleep(time).await;
            match fate {
                Fate::Fails(class) => Err(error(class)),
                Fate::IsLost => Err(error(ErrorClass::TimedOut)),
                Fate::Succeeds => match self.secret(device_name) {
                    Some(secret) => Ok(device(product_key, device_name, &secret)),
                    None => Err(error(ErrorClass::NotFound)),
                },
            }
        })
    }
}
