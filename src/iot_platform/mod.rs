//! IoT Platform's API, version 2018-01-20, as certdist uses it: a signed client,
//! and a simulator that verifies what the client signs. Knows calls, answers and
//! their classes; when to call, and what to do about a failure, is the
//! registrar's.

mod action;
pub(crate) mod answer;
#[cfg(any(test, feature = "simulation"))]
pub(crate) mod batches;
pub mod client;
pub mod credentials;
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
/// Calls of `RegisterDevice` a second where nothing else is set: most of the account's
/// limit of 30, which other programs have a part in.
pub const QPS: f64 = 25.0;
/// Pause between two looks at all devices' activation and state where nothing else is set.
pub const SWEEP_PAUSE: Duration = Duration::from_secs(300);
/// Most names of one batch.
pub const MAX_BATCH: usize = 10_000;
/// Most devices of one page of a batch.
pub const PAGE_SIZE: usize = 50;
/// Most names of one `BatchQueryDeviceDetail`.
pub const MAX_QUERY: usize = 100;

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
    /// Whether somebody has disabled it at the cloud: it cannot sign in.
    pub disabled: bool,
}

/// `ApplyId`: what a batch is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ApplyId(pub u64);

impl fmt::Display for ApplyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// `Status` of a batch: each of its two steps goes on, and then ends well or
/// badly.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BatchStatus {
    /// Its names are being checked.
    Check,
    /// Every name may be registered.
    CheckSuccess,
    /// A name may not, and so none of them.
    CheckFailed,
    /// Its devices are being created.
    Create,
    /// They are created.
    CreateSuccess,
    /// None of them is, or some are not: the documentation says either.
    CreateFailed,
}

impl BatchStatus {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::Check,
        Self::CheckSuccess,
        Self::CheckFailed,
        Self::Create,
        Self::CreateSuccess,
        Self::CreateFailed,
    ];

    /// The value of `Status`.
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

    /// The status of that name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|status| status.name() == name)
    }
}

/// How far a batch is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BatchProgress {
    /// Which step, and how it ended.
    pub status: BatchStatus,
    /// `ValidList`: at most [`MAX_BATCH`] names that passed, or were created. May
    /// be empty although all did: the documentation says both.
    pub valid: Vec<String>,
    /// `InvalidList`: at most [`MAX_BATCH`] names that did not. Those that are no
    /// legal names are left out.
    pub invalid: Vec<String>,
}

/// A page of the devices that a batch has made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BatchPage {
    /// At most [`PAGE_SIZE`], in an order that stays.
    pub devices: Vec<CloudDevice>,
    /// `PageCount`.
    pub pages: u32,
}

/// What the registrar does about a failed call
/// (`iot-platform/README.md`, "Answers").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorClass {
    /// The device name is taken: recover through `QueryDeviceDetail`.
    Exists,
    /// There is no such device, or no such batch.
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

    /// `BatchCheckDeviceNames`: has 1 to [`MAX_BATCH`] names checked, as the first
    /// step of a batch.
    ///
    /// No answer does not say that there is no batch, but names that are only
    /// checked are not taken: the same call again makes another batch.
    fn batch_check_device_names<'a>(
        &'a self,
        product_key: &'a str,
        device_names: &'a [String],
    ) -> ApiFuture<'a, ApplyId>;

    /// `QueryBatchRegisterDeviceStatus`: how far either step of a batch is.
    fn query_batch_register_device_status<'a>(
        &'a self,
        product_key: &'a str,
        apply_id: ApplyId,
    ) -> ApiFuture<'a, BatchProgress>;

    /// `BatchRegisterDeviceWithApplyId`: has the devices of a batch created whose
    /// check has succeeded.
    ///
    /// No answer does not say that the step has not begun: the status tells.
    fn batch_register_device_with_apply_id<'a>(
        &'a self,
        product_key: &'a str,
        apply_id: ApplyId,
    ) -> ApiFuture<'a, ApplyId>;

    /// `QueryPageByApplyId`: the certificates that a batch has made, page by page
    /// from 1. The call has no product key and its answer names none: the key is
    /// for the certificates.
    fn query_page_by_apply_id<'a>(
        &'a self,
        product_key: &'a str,
        apply_id: ApplyId,
        page: u32,
    ) -> ApiFuture<'a, BatchPage>;

    /// `BatchQueryDeviceDetail`: what [`query_device_detail`](Self::query_device_detail)
    /// tells, for 1 to [`MAX_QUERY`] names at once. Names that do not exist are left
    /// out.
    fn batch_query_device_detail<'a>(
        &'a self,
        product_key: &'a str,
        device_names: &'a [String],
    ) -> ApiFuture<'a, Vec<CloudDevice>>;
}
