//! Reads answers about a batch, or about many devices at once. Rejects a page that is too long, and
//! a list of devices in which a name was not requested or occurs twice.

use std::collections::HashSet;

use serde::Deserialize;

use super::{DeviceData, read};
use crate::{
    device::is_device_name,
    iot_platform::{
        ApiError, ApplyId, BatchPage, BatchProgress, BatchStatus, CloudDevice, MAX_BATCH, PAGE_SIZE,
    },
};

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Envelope<T> {
    data: T,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Applied {
    apply_id: Number,
}

/// A number that the cloud writes as a JSON number or as text.
#[derive(Deserialize)]
#[serde(untagged)]
enum Number {
    Number(u64),
    Text(String),
}

impl Number {
    fn value(self) -> Option<u64> {
        match self {
            Self::Number(number) => Some(number),
            Self::Text(text) => text.parse().ok(),
        }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Progress {
    status: String,
    valid_list: Option<NameList>,
    invalid_list: Option<NameList>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct NameList {
    name: Option<Vec<String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Page {
    apply_device_list: Option<DeviceInfos>,
    page_count: Number,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DeviceInfos {
    apply_device_info: Option<Vec<DeviceData>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Details {
    data: Option<DetailList>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DetailList {
    data: Option<Vec<DeviceData>>,
}

/// Reads the answer to either step of a batch.
///
/// # Errors
///
/// Fails in the same cases as [`read_device`](super::read_device).
pub fn read_apply_id(status: u16, body: &[u8]) -> Result<ApplyId, ApiError> {
    read(
        status,
        body,
        |envelope| envelope.data.is_some(),
        |body| {
            let answer: Envelope<Applied> = parsed(body, "Data has no ApplyId")?;
            answer.data.apply_id.value().map(ApplyId).ok_or("ApplyId is not a number")
        },
    )
}

/// Reads the status of a batch.
///
/// # Errors
///
/// Fails in the same cases as [`read_device`](super::read_device).
pub fn read_progress(status: u16, body: &[u8]) -> Result<BatchProgress, ApiError> {
    read(
        status,
        body,
        |envelope| envelope.data.is_some(),
        |body| {
            let answer: Envelope<Progress> = parsed(body, "Data is not a status of a batch")?;
            Ok(BatchProgress {
                status: BatchStatus::named(&answer.data.status).ok_or("Status is not a documented one")?,
                valid: names(answer.data.valid_list)?,
                invalid: names(answer.data.invalid_list)?,
            })
        },
    )
}

/// Reads a page of the devices that a batch of `product_key` has created.
///
/// # Errors
///
/// Fails in the same cases as [`read_device`](super::read_device).
pub fn read_page(status: u16, body: &[u8], product_key: &str) -> Result<BatchPage, ApiError> {
    read(
        status,
        body,
        |envelope| envelope.page_count.is_some(),
        |body| {
            let page: Page = parsed(body, "page lacks a field of a certificate")?;
            let pages = page.page_count.value().and_then(|count| u32::try_from(count).ok());
            let devices = page.apply_device_list.and_then(|list| list.apply_device_info).unwrap_or_default();
            if devices.len() > PAGE_SIZE {
                return Err("page has more devices than asked for");
            }
            let certified = |device: DeviceData| {
                if !is_device_name(&device.device_name) {
                    return Err("DeviceName is not a legal one");
                }
                of_product(device, product_key)
            };
            Ok(BatchPage {
                devices: devices.into_iter().map(certified).collect::<Result<_, _>>()?,
                pages: pages.ok_or("PageCount is not a number of pages")?,
            })
        },
    )
}

/// Reads the answer about a list of devices: the devices of `device_names` that exist in the
/// product `product_key`.
///
/// # Errors
///
/// Fails in the same cases as [`read_device`](super::read_device).
pub fn read_devices(
    status: u16,
    body: &[u8],
    product_key: &str,
    device_names: &[String],
) -> Result<Vec<CloudDevice>, ApiError> {
    // If none of the devices exists, the answer may have no content.
    read(
        status,
        body,
        |_| true,
        |body| {
            let details: Details = parsed(body, "Data lacks a field of a certificate")?;
            let devices = details.data.and_then(|list| list.data).unwrap_or_default();
            let mut asked: HashSet<&str> = device_names.iter().map(String::as_str).collect();
            let certified = |device: DeviceData| {
                // A found name is removed, so that it is not accepted twice.
                if !asked.remove(device.device_name.as_str()) || !is_device_name(&device.device_name) {
                    return Err("DeviceName is not one asked for");
                }
                if device.product_key.is_none() {
                    return Err("Data has no ProductKey");
                }
                of_product(device, product_key)
            };
            devices.into_iter().map(certified).collect()
        },
    )
}

fn parsed<'a, T: Deserialize<'a>>(body: &'a [u8], wrong: &'static str) -> Result<T, &'static str> {
    // The error of serde is dropped, because it may repeat part of a secret.
    serde_json::from_slice(body).map_err(|_| wrong)
}

/// Returns the legal names of a list. Other names are dropped, because certdist never requests
/// them.
fn names(list: Option<NameList>) -> Result<Vec<String>, &'static str> {
    let mut names = list.and_then(|list| list.name).unwrap_or_default();
    if names.len() > MAX_BATCH {
        return Err("list has more names than a batch");
    }
    names.retain(|name| is_device_name(name));
    Ok(names)
}

fn of_product(device: DeviceData, product_key: &str) -> Result<CloudDevice, &'static str> {
    match &device.product_key {
        Some(other) if other != product_key => Err("ProductKey is not the one asked for"),
        _ => device.certified(product_key),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;
    use crate::iot_platform::{ErrorClass, answer::NOT_AN_ANSWER};

    const SECRET: &str = "0123456789abcdef0123456789abcdef";

    fn body(mut content: Value) -> Vec<u8> {
        content["Success"] = true.into();
        content.to_string().into_bytes()
    }

    fn info(name: &str) -> Value {
        json!({"DeviceName": name, "DeviceSecret": SECRET, "IotId": "Q7uOhVRd"})
    }

    fn detail(name: &str) -> Value {
        let mut detail = info(name);
        detail["ProductKey"] = "a1".into();
        detail["UtcActive"] = "2019-02-28T08:21:03.000Z".into();
        detail
    }

    fn page(content: Value) -> Result<BatchPage, ApiError> {
        read_page(200, &body(content), "a1")
    }

    fn devices(content: Value) -> Result<Vec<CloudDevice>, ApiError> {
        read_devices(200, &body(content), "a1", &["SN01".into(), "SN02".into()])
    }

    fn progress(data: Value) -> Result<BatchProgress, ApiError> {
        read_progress(200, &body(json!({"Data": data})))
    }

    fn assert_no_answer<T: std::fmt::Debug>(result: Result<T, ApiError>, content: &Value) {
        let error = result.unwrap_err();
        assert_eq!((error.class, error.code.as_str()), (ErrorClass::Unknown, NOT_AN_ANSWER), "{content}");
        assert!(!error.message.contains(SECRET));
    }

    #[test]
    fn an_apply_id_is_a_number_or_the_text_of_one() {
        for id in [json!(1_295_006), json!("1295006")] {
            let body = body(json!({"Data": {"ApplyId": id}}));
            assert_eq!(read_apply_id(200, &body).unwrap(), ApplyId(1_295_006));
        }
        for data in [json!({}), json!({"ApplyId": -1}), json!({"ApplyId": "x"}), json!({"ApplyId": null})] {
            assert_no_answer(read_apply_id(200, &body(json!({"Data": data}))), &data);
        }
    }

    #[test]
    fn a_list_of_names_may_be_there_empty_null_or_absent() {
        for (data, valid) in [
            (json!({"ValidList": {"Name": ["SN01", "SN02"]}}), vec!["SN01", "SN02"]),
            (json!({"ValidList": {"Name": []}, "InvalidList": {"Name": []}}), vec![]),
            (json!({"ValidList": {"Name": null}, "InvalidList": {}}), vec![]),
            (json!({"ValidList": null, "InvalidList": null, "InvalidDetailList": {}}), vec![]),
            (json!({}), vec![]),
            (json!({"ValidList": {"Name": ["SN01", "no name"]}}), vec!["SN01"]),
        ] {
            let mut data = data;
            data["Status"] = "CHECK_SUCCESS".into();
            let progress = progress(data).unwrap();
            assert_eq!(
                (progress.status, progress.valid),
                (BatchStatus::CheckSuccess, valid.iter().map(|&name| name.to_owned()).collect())
            );
            assert!(progress.invalid.is_empty());
        }
    }

    #[test]
    fn every_documented_status_is_read_and_no_other() {
        for status in BatchStatus::ALL {
            assert_eq!(progress(json!({"Status": status.name()})).unwrap().status, status);
        }
        let many = vec!["SN01"; MAX_BATCH + 1];
        for data in [
            json!({"Status": "DONE"}),
            json!({}),
            json!({"Status": "CREATE_SUCCESS", "ValidList": {"Name": many}}),
            json!({"Status": "CREATE_SUCCESS", "ValidList": ["SN01"], "InvalidList": 3}),
        ] {
            assert_no_answer(progress(data.clone()), &data);
        }
    }

    #[test]
    fn a_page_has_certificates_of_the_batchs_product() {
        let page_of = |infos: Value| json!({"PageCount": 3, "ApplyDeviceList": {"ApplyDeviceInfo": infos}});
        let read = page(page_of(json!([info("SN01"), info("SN02")]))).unwrap();
        assert_eq!((read.devices.len(), read.pages), (2, 3));
        let certificate = &read.devices[1].certificate;
        assert_eq!((certificate.product_key.as_str(), certificate.device_name.as_str()), ("a1", "SN02"));
        assert_eq!(certificate.device_secret.expose(), SECRET);

        for empty in [json!({"PageCount": "0"}), json!({"PageCount": 0, "ApplyDeviceList": null})] {
            assert!(page(empty).unwrap().devices.is_empty());
        }
        let mut without_secret = info("SN01");
        without_secret["DeviceSecret"] = "".into();
        let mut of_another = info("SN01");
        of_another["ProductKey"] = "a2".into();
        for content in [
            page_of(json!([info("no name")])),
            page_of(json!([without_secret])),
            page_of(json!([of_another])),
            page_of(json!([{"DeviceName": "SN01"}])),
            page_of(json!(vec![info("SN01"); PAGE_SIZE + 1])),
            json!({"PageCount": -1}),
            json!({"PageCount": u64::MAX}),
        ] {
            assert_no_answer(page(content.clone()), &content);
        }
    }

    #[test]
    fn a_page_or_status_without_content_is_tried_again() {
        let errors = [
            page(json!({})).unwrap_err(),
            read_progress(200, &body(json!({"Data": null}))).unwrap_err(),
            read_apply_id(502, b"<html>").unwrap_err(),
            read_devices(200, b"{\"Success\":true,\"Data\":{", "a1", &[]).unwrap_err(),
        ];
        for error in errors {
            assert_eq!((error.class, error.code.as_str()), (ErrorClass::TryAgain, NOT_AN_ANSWER));
        }
    }

    #[test]
    fn of_many_devices_only_those_asked_for_are_accepted_and_only_once() {
        let found = devices(json!({"Data": {"Data": [detail("SN02")]}})).unwrap();
        assert_eq!((found.len(), found[0].certificate.device_name.as_str()), (1, "SN02"));
        assert_eq!(found[0].activated, Some(1_551_342_063));
        for none in [json!({}), json!({"Data": null}), json!({"Data": {}}), json!({"Data": {"Data": []}})] {
            assert_eq!(devices(none).unwrap(), []);
        }
        let mut of_another = detail("SN01");
        of_another["ProductKey"] = "a2".into();
        for list in [
            json!([detail("SN03")]),
            json!([detail("SN01"), detail("SN01")]),
            json!([of_another]),
            json!([info("SN01")]),
        ] {
            assert_no_answer(devices(json!({"Data": {"Data": list}})), &list);
        }
    }

    fn read_all(body: &[u8]) {
        let _ = read_apply_id(200, body);
        let _ = read_progress(200, body);
        let _ = read_page(200, body, "a1");
        let _ = read_devices(200, body, "a1", &["SN01".into()]);
    }

    proptest! {
        #[test]
        fn no_bytes_cause_a_panic(bytes: Vec<u8>) {
            read_all(&bytes);
        }

        #[test]
        fn a_good_answer_with_a_byte_changed_causes_no_panic(at: prop::sample::Index, byte: u8) {
            let answer = json!({
                "Data": {"ApplyId": 1, "Status": "CHECK", "ValidList": {"Name": ["SN01"]}, "Data": [detail("SN01")]},
                "PageCount": 1,
                "ApplyDeviceList": {"ApplyDeviceInfo": [info("SN01")]},
            });
            let mut bytes = body(answer);
            read_all(&bytes);
            let at = at.index(bytes.len());
            bytes[at] = byte;
            read_all(&bytes);
        }
    }
}
