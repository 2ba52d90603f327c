//! A cloud in memory for the tests of the rooms above it: it answers as it is
//! told to, and remembers what it was asked.

use std::{
    collections::{HashMap, VecDeque},
    sync::Mutex,
    time::Duration,
};

use crate::{
    device::{Certificate, Secret},
    iot_platform::{ApiError, ApiFuture, CloudDevice, ErrorClass, IotPlatform},
};

/// How the next `RegisterDevice` goes.
#[derive(Debug, Clone)]
pub(crate) enum Scripted {
    /// It is refused, and nothing is created.
    Refuse(ErrorClass),
    /// The device is created, and the answer lost.
    CreateAndLose(ErrorClass),
    /// It takes so long.
    Slow(Duration),
}

#[derive(Default)]
pub(crate) struct FakeCloud {
    script: Mutex<VecDeque<Scripted>>,
    devices: Mutex<HashMap<(String, String), u32>>,
    calls: Mutex<Vec<String>>,
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
        self.devices.lock().unwrap().len()
    }

    fn create(&self, product_key: &str, device_name: &str) -> Result<CloudDevice, ApiError> {
        let mut devices = self.devices.lock().unwrap();
        let key = (product_key.to_owned(), device_name.to_owned());
        if devices.contains_key(&key) {
            return Err(error(ErrorClass::Exists));
        }
        let number = devices.len() as u32;
        devices.insert(key, number);
        Ok(device(product_key, device_name, number))
    }
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
    }
}

impl IotPlatform for FakeCloud {
    fn register_device<'a>(
        &'a self,
        product_key: &'a str,
        device_name: &'a str,
    ) -> ApiFuture<'a, CloudDevice> {
        self.calls.lock().unwrap().push(device_name.to_owned());
        let step = self.script.lock().unwrap().pop_front();
        Box::pin(async move {
            match step {
                None => self.create(product_key, device_name),
                Some(Scripted::Refuse(class)) => Err(error(class)),
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
            let devices = self.devices.lock().unwrap();
            let number = devices.get(&(product_key.to_owned(), device_name.to_owned()));
            number
                .map(|&number| device(product_key, device_name, number))
                .ok_or_else(|| error(ErrorClass::NotFound))
        })
    }
}
