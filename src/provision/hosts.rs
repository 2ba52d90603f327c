//! The MQTT host that a device is told with its certificate. Which cloud a device belongs to follows
//! from its row; this module does not know the clouds.

use crate::{device::Certificate, store::DeviceRow};

/// A certificate that a device may have, and where it signs in.
#[derive(Debug)]
pub struct HandedOut {
    /// The certificate.
    pub certificate: Certificate,
    /// MQTT host of the cloud that the device is registered in, with a port if it is not the usual
    /// one. `None` if it was not asked for, or is not known.
    pub host: Option<String>,
}

/// Finds the MQTT host of a device.
pub trait Hosts: Send + Sync {
    /// Returns the host of the device of `row`, which has its certificate; the certificate is of
    /// the product `product_key`. Returns `None` if its cloud is not configured.
    fn host_of(&self, row: &DeviceRow, product_key: &str) -> Option<String>;
}
