//! Makes the call of each action: builds its parameters, and chooses the reader of its answer.

use super::{Answer, Client};
use crate::iot_platform::{
    Action, ApiError, ApiFuture, ApplyId, BatchPage, BatchProgress, CloudDevice, ErrorClass, IotPlatform,
    MAX_BATCH, MAX_QUERY, PAGE_SIZE, Thing, answer,
};

impl Client {
    /// Calls an action about one device.
    async fn call_about(
        &self,
        action: Action,
        product_key: &str,
        device_name: &str,
    ) -> Result<CloudDevice, ApiError> {
        let parameters = [("ProductKey", product_key), ("DeviceName", device_name)];
        let read =
            |answer: &Answer| answer::read_device(answer.status, &answer.body, product_key, device_name);
        self.call(action, &parameters, read).await
    }

    /// Calls an action that changes one device and only reports its success.
    async fn change(
        &self,
        action: Action,
        thing: Thing<'_>,
        read: impl Fn(u16, &[u8]) -> Result<(), ApiError>,
    ) -> Result<(), ApiError> {
        let Thing { product_key, device_name, iot_id } = thing;
        // IoT Platform ignores product and name if the call has an `IotId`.
        let parameters = match iot_id {
            Some(iot_id) => vec![("IotId", iot_id)],
            None => vec![("ProductKey", product_key), ("DeviceName", device_name)],
        };
        self.call(action, &parameters, |answer| read(answer.status, &answer.body)).await
    }

    /// Calls an action about a list of 1 to `most` names.
    async fn call_about_all<T>(
        &self,
        action: Action,
        product_key: &str,
        device_names: &[String],
        most: usize,
        read: impl Fn(&Answer) -> Result<T, ApiError>,
    ) -> Result<T, ApiError> {
        if !(1..=most).contains(&device_names.len()) {
            return Err(ApiError {
                class: ErrorClass::Unknown,
                code: "WrongCall".into(),
                message: format!("{} accepts 1 to {most} names, not {}", action.name(), device_names.len()),
            });
        }
        let numbered: Vec<_> =
            (1..=device_names.len()).map(|number| format!("DeviceName.{number}")).collect();
        let names = numbered.iter().zip(device_names).map(|(number, name)| (number.as_str(), name.as_str()));
        let parameters: Vec<_> = std::iter::once(("ProductKey", product_key)).chain(names).collect();
        self.call(action, &parameters, read).await
    }

    /// Calls an action about one batch.
    async fn call_about_batch<T>(
        &self,
        action: Action,
        product_key: &str,
        apply_id: ApplyId,
        read: impl Fn(&Answer) -> Result<T, ApiError>,
    ) -> Result<T, ApiError> {
        let apply_id = apply_id.to_string();
        self.call(action, &[("ProductKey", product_key), ("ApplyId", &apply_id)], read).await
    }
}

impl IotPlatform for Client {
    fn account(&self) -> String {
        self.account_name().to_owned()
    }

    fn clock_offset(&self) -> Option<i64> {
        self.seen_offset()
    }

    fn register_device<'a>(
        &'a self,
        product_key: &'a str,
        device_name: &'a str,
    ) -> ApiFuture<'a, CloudDevice> {
        Box::pin(self.call_about(Action::RegisterDevice, product_key, device_name))
    }

    fn query_device_detail<'a>(
        &'a self,
        product_key: &'a str,
        device_name: &'a str,
    ) -> ApiFuture<'a, CloudDevice> {
        Box::pin(self.call_about(Action::QueryDeviceDetail, product_key, device_name))
    }

    fn batch_check_device_names<'a>(
        &'a self,
        product_key: &'a str,
        device_names: &'a [String],
    ) -> ApiFuture<'a, ApplyId> {
        let read = |answer: &Answer| answer::read_apply_id(answer.status, &answer.body);
        Box::pin(self.call_about_all(
            Action::BatchCheckDeviceNames,
            product_key,
            device_names,
            MAX_BATCH,
            read,
        ))
    }

    fn query_batch_register_device_status<'a>(
        &'a self,
        product_key: &'a str,
        apply_id: ApplyId,
    ) -> ApiFuture<'a, BatchProgress> {
        let read = |answer: &Answer| answer::read_progress(answer.status, &answer.body);
        Box::pin(self.call_about_batch(Action::QueryBatchRegisterDeviceStatus, product_key, apply_id, read))
    }

    fn batch_register_device_with_apply_id<'a>(
        &'a self,
        product_key: &'a str,
        apply_id: ApplyId,
    ) -> ApiFuture<'a, ApplyId> {
        let read = |answer: &Answer| answer::read_apply_id(answer.status, &answer.body);
        Box::pin(self.call_about_batch(Action::BatchRegisterDeviceWithApplyId, product_key, apply_id, read))
    }

    fn query_page_by_apply_id<'a>(
        &'a self,
        product_key: &'a str,
        apply_id: ApplyId,
        page: u32,
    ) -> ApiFuture<'a, BatchPage> {
        Box::pin(async move {
            let (apply_id, size, page) = (apply_id.to_string(), PAGE_SIZE.to_string(), page.to_string());
            let parameters =
                [("ApplyId", apply_id.as_str()), ("PageSize", size.as_str()), ("CurrentPage", page.as_str())];
            let read = |answer: &Answer| answer::read_page(answer.status, &answer.body, product_key);
            self.call(Action::QueryPageByApplyId, &parameters, read).await
        })
    }

    fn batch_query_device_detail<'a>(
        &'a self,
        product_key: &'a str,
        device_names: &'a [String],
    ) -> ApiFuture<'a, Vec<CloudDevice>> {
        let read = move |answer: &Answer| {
            answer::read_devices(answer.status, &answer.body, product_key, device_names)
        };
        Box::pin(self.call_about_all(
            Action::BatchQueryDeviceDetail,
            product_key,
            device_names,
            MAX_QUERY,
            read,
        ))
    }

    fn disable_thing<'a>(&'a self, thing: Thing<'a>) -> ApiFuture<'a, ()> {
        Box::pin(self.change(Action::DisableThing, thing, answer::read_done))
    }

    fn enable_thing<'a>(&'a self, thing: Thing<'a>) -> ApiFuture<'a, ()> {
        Box::pin(self.change(Action::EnableThing, thing, answer::read_done))
    }

    fn delete_device<'a>(&'a self, thing: Thing<'a>) -> ApiFuture<'a, ()> {
        Box::pin(self.change(Action::DeleteDevice, thing, answer::read_deleted))
    }
}
