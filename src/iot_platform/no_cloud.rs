//! Replaces the client of IoT Platform if IoT Platform is not configured.

use std::future;

use super::{
    ApiError, ApiFuture, ApplyId, BatchPage, BatchProgress, CloudDevice, ErrorClass, IotPlatform, Thing,
};

/// Refuses every call with an error that only the operator can fix.
pub struct NoCloud;

impl NoCloud {
    fn refuse<'a, T: Send + 'a>() -> ApiFuture<'a, T> {
        Box::pin(future::ready(Err(ApiError {
            class: ErrorClass::Operator,
            code: "NoCloud".into(),
            message: "the configuration has no [iot_platform]".into(),
        })))
    }
}

impl IotPlatform for NoCloud {
    fn register_device<'a>(&'a self, _: &'a str, _: &'a str) -> ApiFuture<'a, CloudDevice> {
        Self::refuse()
    }

    fn query_device_detail<'a>(&'a self, _: &'a str, _: &'a str) -> ApiFuture<'a, CloudDevice> {
        Self::refuse()
    }

    fn batch_check_device_names<'a>(&'a self, _: &'a str, _: &'a [String]) -> ApiFuture<'a, ApplyId> {
        Self::refuse()
    }

    fn query_batch_register_device_status<'a>(
        &'a self,
        _: &'a str,
        _: ApplyId,
    ) -> ApiFuture<'a, BatchProgress> {
        Self::refuse()
    }

    fn batch_register_device_with_apply_id<'a>(&'a self, _: &'a str, _: ApplyId) -> ApiFuture<'a, ApplyId> {
        Self::refuse()
    }

    fn query_page_by_apply_id<'a>(&'a self, _: &'a str, _: ApplyId, _: u32) -> ApiFuture<'a, BatchPage> {
        Self::refuse()
    }

    fn batch_query_device_detail<'a>(
        &'a self,
        _: &'a str,
        _: &'a [String],
    ) -> ApiFuture<'a, Vec<CloudDevice>> {
        Self::refuse()
    }

    fn disable_thing<'a>(&'a self, _: Thing<'a>) -> ApiFuture<'a, ()> {
        Self::refuse()
    }

    fn enable_thing<'a>(&'a self, _: Thing<'a>) -> ApiFuture<'a, ()> {
        Self::refuse()
    }

    fn delete_device<'a>(&'a self, _: Thing<'a>) -> ApiFuture<'a, ()> {
        Self::refuse()
    }
}
