//! IoT Platform's API, version 2018-01-20, as certdist uses it: a signed client,
//! and a simulator that verifies what the client signs. Knows calls, answers and
//! their classes; when to call, and what to do about a failure, is the
//! registrar's.

mod answer;
pub mod client;
pub mod credentials;
pub(crate) mod http;
mod request;
pub mod signature;
pub mod signature_v3;
#[cfg(feature = "simulation")]
pub mod simulator;

use std::{future::Future, pin::Pin};

use crate::device::Certificate;

/// What an action answers with.
pub type ApiFuture<'a, T> = Pin<Box<dyn Future<Output = Result<T, ApiError>> + Send + 'a>>;

/// A device as the cloud tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CloudDevice {
    /// What the device signs in with.
    pub certificate: Certificate,
    /// `IotId`.
    pub iot_id: Option<String>,
    /// `UtcCreate` in seconds since 1970, when told.
    pub created: Option<i64>,
    /// `UtcActive` in seconds since 1970, once it has signed in.
    pub activated: Option<i64>,
}

/// What the registrar does about a failed call
/// (`iot-platform/README.md`, "Answers").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorClass {
    /// The device name is taken: recover through `QueryDeviceDetail`.
    Exists,
    /// `QueryDeviceDetail` knows no such device.
    NotFound,
    /// Back off and try again.
    TryAgain,
    /// Back off, and call less often.
    Throttled,
    /// The call may have been carried out: no answer came in time.
    TimedOut,
    /// Sign anew: the nonce was used, or the clock is off.
    SignAgain,
    /// Only the operator can mend it: credentials, permissions, quota, product.
    Operator,
    /// This device only.
    Device,
    /// A code that is not in the list: a bounded number of tries, then this
    /// device only.
    Unknown,
}

/// A call that failed.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{code}: {message}")]
pub struct ApiError {
    /// What to do about it.
    pub class: ErrorClass,
    /// `Code` as the cloud says it, or a name of ours for what never reached it
    /// (`Timeout`, `Connection`, `Certificate`, `Credentials`, `NotAnAnswer`).
    pub code: String,
    /// The cloud's sentence: one line of at most 200 characters, without secrets.
    pub message: String,
}

/// The actions that the registrar calls. [`client::Client`] is the real one.
pub trait IotPlatform: Send + Sync + 'static {
    /// `RegisterDevice`: creates the device and answers with its certificate.
    ///
    /// A failure does not say that there is no device: with
    /// [`ErrorClass::TimedOut`] or [`ErrorClass::TryAgain`] only the answer may
    /// be lost. The same call again then says [`ErrorClass::Exists`], and
    /// [`query_device_detail`](Self::query_device_detail) has the certificate.
    fn register_device<'a>(
        &'a self,
        product_key: &'a str,
        device_name: &'a str,
    ) -> ApiFuture<'a, CloudDevice>;

    /// `QueryDeviceDetail` by product and name: the certificate of a device that
    /// exists, and when it signed in first.
    fn query_device_detail<'a>(
        &'a self,
        product_key: &'a str,
        device_name: &'a str,
    ) -> ApiFuture<'a, CloudDevice>;
}
