//! Access to one instance of a running simulator, without calls of the API. It is for programs that
//! run the simulator, such as `certdist demo` and tests.

use std::net::SocketAddr;

use super::{
    Simulator,
    devices::{Device, Devices},
};
use crate::device::{Certificate, Secret};

/// One instance of a simulator.
#[derive(Clone, Copy)]
pub struct At<'a> {
    pub(super) simulator: &'a Simulator,
    /// Number of the instance, counted from 0 in the configured order.
    pub(super) number: usize,
}

impl At<'_> {
    /// Returns the address where devices of the instance sign in, if sign-in is enabled.
    pub fn mqtt_addr(&self) -> Option<SocketAddr> {
        self.simulator.mqtt_addresses.get(self.number).copied().flatten()
    }

    /// Returns the certificate of an existing device.
    pub fn device(&self, product_key: &str, device_name: &str) -> Option<Certificate> {
        self.with(|devices| {
            let device = devices.get(product_key, device_name)?;
            Some(Certificate {
                product_key: device.product_key.clone(),
                device_name: device.device_name.clone(),
                device_secret: Secret::new(device.device_secret.clone()),
            })
        })
    }

    /// Returns the `Status` of an existing device: `UNACTIVE`, `ONLINE`, `OFFLINE` or `DISABLE`.
    pub fn status(&self, product_key: &str, device_name: &str) -> Option<&'static str> {
        self.with(|devices| devices.get(product_key, device_name).map(Device::status))
    }

    /// Disables a device, like `DisableThing`, so that it cannot sign in. Returns whether the device
    /// exists.
    pub fn disable(&self, product_key: &str, device_name: &str) -> bool {
        self.change(|devices, _| devices.change(product_key, device_name, Device::disable))
    }

    /// Allows a disabled device to sign in again, like `EnableThing`. Returns whether the device
    /// exists.
    pub fn enable(&self, product_key: &str, device_name: &str) -> bool {
        self.change(|devices, _| devices.change(product_key, device_name, |device| device.disabled = false))
    }

    /// Adds a device with this certificate, unless the instance is full. If a device with this name
    /// exists, replaces only its secret.
    pub fn insert(&self, certificate: &Certificate) {
        self.change(|devices, now_ms| {
            let Certificate { product_key, device_name, device_secret } = certificate;
            devices.create(product_key, device_name, "", now_ms);
            let secret = device_secret.expose().to_owned();
            devices.change(product_key, device_name, |device| device.device_secret = secret)
        });
    }

    /// Deletes a device, like `DeleteDevice`. Returns whether the device existed.
    pub fn delete(&self, product_key: &str, device_name: &str) -> bool {
        self.change(|devices, _| devices.remove(product_key, device_name))
    }

    /// Marks a device as signed in, without a connection. Returns whether the device exists.
    pub fn activate(&self, product_key: &str, device_name: &str) -> bool {
        self.change(|devices, now_ms| {
            devices.change(product_key, device_name, |device| device.sign_in(now_ms))
        })
    }

    /// Deletes the instance with its devices, as if it had expired.
    pub fn expire(&self) {
        self.simulator.shared.expire(self.number);
    }

    fn with<T>(&self, read: impl FnOnce(&Devices) -> T) -> T {
        let mut world = self.simulator.shared.world();
        read(&world.account(self.number, jiff::Timestamp::now()).devices)
    }

    fn change<T>(&self, change: impl FnOnce(&mut Devices, i64) -> Option<T>) -> bool {
        let (shared, now) = (&self.simulator.shared, jiff::Timestamp::now());
        let changed = change(&mut shared.world().account(self.number, now).devices, now.as_millisecond());
        shared.changed.notify_one();
        changed.is_some()
    }
}
