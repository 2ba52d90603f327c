//! IoT Platform's API, version 2018-01-20, as certdist uses it: a signed client, and a simulator
//! that verifies the client's signatures. This module makes calls, reads answers and classifies
//! errors. The registrar decides when to call, and what to do about a failure.

mod action;
pub(crate) mod answer;
#[cfg(any(test, feature = "simulation"))]
pub(crate) mod batches;
pub mod calls;
pub mod client;
pub mod credentials;
pub mod host;
pub(crate) mod http;
mod no_cloud;
mod request;
#[cfg(feature = "simulation")]
pub mod sign_in;
pub mod signature;
pub mod signature_v3;
#[cfg(feature = "simulation")]
pub mod simulator;

use std::{fmt, future::Future, pin::Pin, time::Duration};

pub use self::{action::Action, no_cloud::NoCloud};
use crate::device::Certificate;

/// Version of the API that the calls are written for.
pub const API_VERSION: &str = "2018-01-20";
/// Default rate of `RegisterDevice` calls per second. It leaves a part of the account's limit of 30
/// to other programs.
pub const QPS: f64 = 25.0;
/// Default pause between two passes of the sweep over new devices. Each pass queries the activation
/// and the state of these devices.
pub const SWEEP_PAUSE: Duration = Duration::from_secs(300);
/// Maximum number of names in a batch.
pub const MAX_BATCH: usize = 10_000;
/// Maximum number of devices on a page of a batch.
pub const PAGE_SIZE: usize = 50;
/// Maximum number of names in one call of `BatchQueryDeviceDetail`.
pub const MAX_QUERY: usize = 100;

/// Future of an action's answer.
pub type ApiFuture<'a, T> = Pin<Box<dyn Future<Output = Result<T, ApiError>> + Send + 'a>>;

/// A device as the cloud describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CloudDevice {
    /// Certificate that the device signs in with.
    pub certificate: Certificate,
    /// `IotId`.
    pub iot_id: Option<String>,
    /// `UtcCreate` in seconds since 1970, if the answer has this field.
    pub created: Option<i64>,
    /// `UtcActive` in seconds since 1970, once the device has signed in.
    pub activated: Option<i64>,
    /// Set if the device was disabled at the cloud, so that it cannot sign in.
    pub disabled: bool,
}

/// A device that a call changes at the cloud.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Thing<'a> {
    /// `ProductKey`.
    pub product_key: &'a str,
    /// `DeviceName`.
    pub device_name: &'a str,
    /// `IotId`, if it is known. With it, the call is about exactly this device. Without it, the
    /// call is about the device that has the name when the call arrives, even if that device was
    /// registered after an earlier copy of the call.
    pub iot_id: Option<&'a str>,
}

/// `ApplyId`, which identifies a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ApplyId(pub u64);

impl fmt::Display for ApplyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// `Status` of a batch, which has two steps. Each step runs, and then succeeds or fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BatchStatus {
    /// The names are being checked.
    Check,
    /// All names can be registered.
    CheckSuccess,
    /// At least one name cannot be registered, so no device will be created.
    CheckFailed,
    /// The devices are being created.
    Create,
    /// The devices are created.
    CreateSuccess,
    /// Some or all devices were not created. The cloud's documentation has both meanings.
    CreateFailed,
}

impl BatchStatus {
    /// All values.
    pub const ALL: [Self; 6] = [
        Self::Check,
        Self::CheckSuccess,
        Self::CheckFailed,
        Self::Create,
        Self::CreateSuccess,
        Self::CreateFailed,
    ];

    /// Returns the value of `Status`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Check => "CHECK",
            Self::CheckSuccess => "CHECK_SUCCESS",
            Self::CheckFailed => "CHECK_FAILED",
            Self::Create => "CREATE",
            Self::CreateSuccess => "CREATE_SUCCESS",
            Self::CreateFailed => "CREATE_FAILED",
        }
    }

    /// Finds the status with this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|status| status.name() == name)
    }
}

/// Status of a batch and of its names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BatchProgress {
    /// The current step or its result.
    pub status: BatchStatus,
    /// `ValidList`: at most [`MAX_BATCH`] names that were accepted or created. According to one
    /// part of the cloud's documentation, this list is empty if every name was accepted.
    pub valid: Vec<String>,
    /// `InvalidList`: at most [`MAX_BATCH`] names that were not accepted or created. Names that
    /// break the naming rules are left out.
    pub invalid: Vec<String>,
}

/// A page of the devices that a batch has created.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BatchPage {
    /// At most [`PAGE_SIZE`] devices. The order is the same in every call.
    pub devices: Vec<CloudDevice>,
    /// `PageCount`.
    pub pages: u32,
}

/// Class of a failed call. It decides how the registrar reacts (docs/cloud.md, "What the cloud
/// says, and what to do").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorClass {
    /// The device name is taken: look the device up with `QueryDeviceDetail`.
    Exists,
    /// There is no such device, or no such batch.
    NotFound,
    /// Temporary error: back off and try again.
    TryAgain,
    /// Rate limit exceeded: back off, and call less often.
    Throttled,
    /// No answer came in time; the call may have been carried out.
    TimedOut,
    /// The nonce was already used, or the clock is wrong: sign again.
    SignAgain,
    /// Only the operator can fix the cause: credentials, permissions, quota, product.
    Operator,
    /// The error concerns this device only.
    Device,
    /// An unknown code: try again a limited number of times. After that, refuse the device, or stop
    /// the calls for its product if several devices of the product fail.
    Unknown,
}

/// A call that failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{code}: {message}")]
pub struct ApiError {
    /// Class, which decides how the registrar reacts.
    pub class: ErrorClass,
    /// `Code` of the cloud, or one of certdist's own codes, such as `Timeout`, `NoConnection`,
    /// `Connection`, `Certificate`, `Credentials` or `NotAnAnswer`.
    pub code: String,
    /// The cloud's message: one line of at most 200 characters, without secrets.
    pub message: String,
}

impl ApiError {
    /// Returns whether the cause is the product and only the operator can remove it: the product
    /// does not exist, or takes no more devices.
    pub fn is_about_product(&self) -> bool {
        self.class == ErrorClass::Operator
            && (self.code.starts_with("iot.prod.") || self.code == "iot.device.DeviceCountExceeded")
    }

    /// Returns whether the call did not reach IoT Platform, or the answer was not from IoT
    /// Platform.
    pub fn is_unreachable(&self) -> bool {
        self.class == ErrorClass::TryAgain
            && matches!(self.code.as_str(), "NoConnection" | "Connection" | "NotAnAnswer")
    }

    /// Returns whether the call may have been carried out although it failed.
    pub fn may_be_done(&self) -> bool {
        match self.class {
            ErrorClass::TimedOut | ErrorClass::Unknown => true,
            ErrorClass::TryAgain => self.code != NOT_SENT,
            // No two calls of certdist have the same nonce, so another copy of this call has
            // arrived earlier.
            ErrorClass::SignAgain => self.code == NONCE_USED,
            ErrorClass::Exists
            | ErrorClass::NotFound
            | ErrorClass::Throttled
            | ErrorClass::Operator
            | ErrorClass::Device => false,
        }
    }
}

/// Code of an [`ApiError`] for a call that never left this machine.
pub const NOT_SENT: &str = "NoConnection";
/// Code of the cloud for a call whose nonce it has seen before.
pub const NONCE_USED: &str = "SignatureNonceUsed";

/// Actions that the registrar calls. [`client::Client`] calls the real cloud.
pub trait IotPlatform: Send + Sync + 'static {
    /// Returns a name of the account whose limits the calls share. All processes that use the same
    /// credentials get the same name, which reveals nothing about the credentials.
    fn account(&self) -> String {
        String::new()
    }

    /// Returns the seconds to add to this machine's clock to get the cloud's time, according to the
    /// cloud's last answer. Returns `None` if no answer has arrived recently.
    fn clock_offset(&self) -> Option<i64> {
        None
    }

    /// `RegisterDevice`: creates the device and returns its certificate.
    ///
    /// After [`ErrorClass::TimedOut`] or [`ErrorClass::TryAgain`], the device may exist although
    /// no answer arrived. A repeated call then fails with [`ErrorClass::Exists`], and
    /// [`query_device_detail`](Self::query_device_detail) returns the certificate.
    fn register_device<'a>(
        &'a self,
        product_key: &'a str,
        device_name: &'a str,
    ) -> ApiFuture<'a, CloudDevice>;

    /// `QueryDeviceDetail` by product and name: returns the certificate of an existing device and
    /// the time of its first sign-in.
    fn query_device_detail<'a>(
        &'a self,
        product_key: &'a str,
        device_name: &'a str,
    ) -> ApiFuture<'a, CloudDevice>;

    /// `BatchCheckDeviceNames`: checks 1 to [`MAX_BATCH`] names, as the first step of a
    /// batch.
    ///
    /// If no answer arrives, the batch may exist. A repeated call then makes another batch. The
    /// superfluous batch is harmless, because checked names are not reserved.
    fn batch_check_device_names<'a>(
        &'a self,
        product_key: &'a str,
        device_names: &'a [String],
    ) -> ApiFuture<'a, ApplyId>;

    /// `QueryBatchRegisterDeviceStatus`: returns the status of either step of a batch.
    fn query_batch_register_device_status<'a>(
        &'a self,
        product_key: &'a str,
        apply_id: ApplyId,
    ) -> ApiFuture<'a, BatchProgress>;

    /// `BatchRegisterDeviceWithApplyId`: creates the devices of a batch whose check has
    /// succeeded.
    ///
    /// If no answer arrives, the step may have started. The status of the batch shows whether it
    /// has.
    fn batch_register_device_with_apply_id<'a>(
        &'a self,
        product_key: &'a str,
        apply_id: ApplyId,
    ) -> ApiFuture<'a, ApplyId>;

    /// `QueryPageByApplyId`: returns one page of the certificates that a batch has created. Pages
    /// are numbered from 1. The call and its answer have no product key, so the certificates get
    /// the product key `product_key`.
    fn query_page_by_apply_id<'a>(
        &'a self,
        product_key: &'a str,
        apply_id: ApplyId,
        page: u32,
    ) -> ApiFuture<'a, BatchPage>;

    /// `BatchQueryDeviceDetail`: returns the same as
    /// [`query_device_detail`](Self::query_device_detail) for 1 to [`MAX_QUERY`] names in one call.
    /// Omits names that do not exist.
    fn batch_query_device_detail<'a>(
        &'a self,
        product_key: &'a str,
        device_names: &'a [String],
    ) -> ApiFuture<'a, Vec<CloudDevice>>;

    /// `DisableThing`: ends the device's connection, and refuses its sign-ins until it is enabled.
    /// A repeated call changes nothing. Fails with [`ErrorClass::NotFound`] if there is no such
    /// device.
    fn disable_thing<'a>(&'a self, thing: Thing<'a>) -> ApiFuture<'a, ()>;

    /// `EnableThing`: allows a disabled device to sign in again. A repeated call changes nothing.
    /// Fails with [`ErrorClass::NotFound`] if there is no such device.
    fn enable_thing<'a>(&'a self, thing: Thing<'a>) -> ApiFuture<'a, ()>;

    /// `DeleteDevice`: deletes the device for good. Its certificate and its `IotId` become invalid,
    /// and its name is free again. Succeeds if there is no such device, so that a call without an
    /// answer can be repeated. If the name may have been registered again since, repeat the call
    /// only with [`Thing::iot_id`]. Without the ID, the call would delete the new device.
    fn delete_device<'a>(&'a self, thing: Thing<'a>) -> ApiFuture<'a, ()>;
}
