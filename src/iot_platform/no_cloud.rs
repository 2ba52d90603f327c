//! Replaces the client of IoT Platform if IoT Platform is not configured, or cannot be called.

use std::future;

use super::{
    ApiError, ApiFuture, ApplyId, BatchPage, BatchProgress, CloudDevice, ErrorClass, IotPlatform, Thing,
};

/// Refuses every call with an error that only the operator can fix.
pub struct NoCloud {
    code: &'static str,
    reason: String,
}

impl NoCloud {
    /// Creates the cloud of a configuration without `[iot_platform]`.
    pub fn unconfigured() -> Self {
        Self { code: "NoCloud", reason: "the configuration has no [iot_platform]".into() }
    }

    /// Creates a cloud whose credentials were missing when the process started.
    pub fn without_credentials(reason: &str) -> Self {
        Self { code: "Credentials", reason: format!("{reason}; then restart certdist") }
    }

    fn refuse<'a, T: Send + 'a>(&self) -> ApiFuture<'a, T> {
        Box::pin(future::ready(Err(ApiError {
            class: ErrorClass::Operator,
            code: self.code.into(),
            message: self.reason.clone(),
        })))
    }
}

impl IotPlatform for NoCloud {
    fn register_device<'a>(&'a self, _: &'a str, _: &'a str) -> ApiFuture<'a, CloudDevice> {
        self.refuse()
    }

    fn query_device_detail<'a>(&'a self, _: &'a str, _: &'a str) -> ApiFuture<'a, CloudDevice> {
        self.refuse()
    }

    fn batch_check_device_names<'a>(&'a self, _: &'a str, _: &'a [String]) -> ApiFuture<'a, ApplyId> {
        self.refuse()
    }

    fn query_batch_register_device_status<'a>(
        &'a self,
        _: &'a str,
        _: ApplyId,
    ) -> ApiFuture<'a, BatchProgress> {
        self.refuse()
    }

    fn batch_register_device_with_apply_id<'a>(&'a self, _: &'a str, _: ApplyId) -> ApiFuture<'a, ApplyId> {
        self.refuse()
    }

    fn query_page_by_apply_id<'a>(&'a self, _: &'a str, _: ApplyId, _: u32) -> ApiFuture<'a, BatchPage> {
        self.refuse()
    }

    fn batch_query_device_detail<'a>(
        &'a self,
        _: &'a str,
        _: &'a [String],
    ) -> ApiFuture<'a, Vec<CloudDevice>> {
        self.refuse()
    }

    fn disable_thing<'a>(&'a self, _: Thing<'a>) -> ApiFuture<'a, ()> {
        self.refuse()
    }

    fn enable_thing<'a>(&'a self, _: Thing<'a>) -> ApiFuture<'a, ()> {
        self.refuse()
    }

    fn delete_device<'a>(&'a self, _: Thing<'a>) -> ApiFuture<'a, ()> {
        self.refuse()
    }
}
