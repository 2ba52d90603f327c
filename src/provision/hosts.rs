//! The MQTT host that a device gets with its certificate. The row of a device determines its cloud,
//! and so its host. This module does not know the clouds.

use crate::{device::Certificate, store::DeviceRow};

/// A certificate for a device, and the MQTT host at which the device signs in.
#[derive(Debug)]
pub struct HandedOut {
    /// The certificate.
    pub certificate: Certificate,
    /// MQTT host of the cloud in which the device is registered, with a port if the port is not the
    /// usual one. `None` if the host was not asked for, or is not known.
    pub host: Option<String>,
}

/// Finds the MQTT host of a device.
pub trait Hosts: Send + Sync {
    /// Returns the MQTT host of a device that has a certificate. `row` is the device's row, and
    /// `product_key` is the product of the certificate. Returns `None` if the device's cloud is not
    /// configured.
    fn host_of(&self, row: &DeviceRow, product_key: &str) -> Option<String>;
}
