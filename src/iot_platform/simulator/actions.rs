//! The business level of the API: carries out an action after the gateway has admitted the call.
//! Each action has a line in [`carry_out`] and a function. The caller passes the current time.

mod batch;

use std::time::Duration;

use serde_json::{Value, json};

use super::{
    account::Account,
    devices::Device,
    request::{Parameters, Refusal},
};
use crate::{
    device::is_device_name,
    iot_platform::{Action, MAX_QUERY},
};

/// State and settings for an action.
pub(super) struct Context<'a> {
    pub account: &'a mut Account,
    /// Product keys of the account; if empty, every product key is accepted.
    pub products: &'a [String],
    /// Time that each step of a batch takes.
    pub batch_delay: Duration,
    /// Milliseconds since 1970.
    pub now_ms: i64,
}

/// Reason why an action fails.
pub(super) enum Failure {
    /// The gateway's own check of the parameters failed.
    Refused(Refusal),
    /// An answer with `Success: false`.
    Business { code: &'static str, message: &'static str },
}

/// `Code` if an instance would have too many devices, or if a list in a call is too long.
const TOO_MANY: &str = "iot.device.DeviceCountExceeded";
/// Message for an instance that has no room for more devices.
const FULL: &str = "The number of devices exceeds the limit of the instance.";

/// Content of an answer with `Success: true`, such as `{"Data": …}`.
type ActionResult = Result<Value, Failure>;

/// Carries out an action.
pub(super) fn carry_out(action: Action, parameters: &Parameters, context: &mut Context<'_>) -> ActionResult {
    match action {
        Action::RegisterDevice => register_device(parameters, context),
        Action::QueryDeviceDetail => query_device_detail(parameters, context),
        Action::BatchCheckDeviceNames => batch::check(parameters, context),
        Action::QueryBatchRegisterDeviceStatus => batch::status(parameters, context),
        Action::BatchRegisterDeviceWithApplyId => batch::register(parameters, context),
        Action::QueryPageByApplyId => batch::page(parameters, context),
        Action::BatchQueryDeviceDetail => batch_query_device_detail(parameters, context),
        Action::DisableThing => set_disabled(true, parameters, context),
        Action::EnableThing => set_disabled(false, parameters, context),
        Action::DeleteDevice => delete_device(parameters, context),
    }
}

fn register_device(parameters: &Parameters, context: &mut Context<'_>) -> ActionResult {
    let product_key = product(parameters, context)?;
    let generated;
    let device_name = match parameters.get("DeviceName") {
        Some(name) if is_device_name(name) => name,
        Some(_) => {
            return business("iot.device.InvalidFormattedDeviceName", "The device name format is incorrect.");
        }
        None => {
            generated = context.account.devices.free_name(product_key);
            &generated
        }
    };
    let nickname = parameters.get("Nickname").unwrap_or_default();
    let devices = &context.account.devices;
    if devices.get(product_key, device_name).is_none() && !devices.has_room_for(1) {
        return business(TOO_MANY, FULL);
    }
    match context.account.devices.create(product_key, device_name, nickname, context.now_ms) {
        Some(device) => Ok(json!({ "Data": {
            "IotId": device.iot_id,
            "ProductKey": device.product_key,
            "DeviceName": device.device_name,
            "DeviceSecret": device.device_secret,
            "Nickname": device.nickname,
        }})),
        None => business("iot.device.AlreadyExistedDeviceName", "The device name already exists."),
    }
}

fn query_device_detail(parameters: &Parameters, context: &mut Context<'_>) -> ActionResult {
    let device = device(parameters, context)?;
    Ok(json!({ "Data": detail(device, parameters) }))
}

fn batch_query_device_detail(parameters: &Parameters, context: &mut Context<'_>) -> ActionResult {
    let product_key = product(parameters, context)?;
    let names = names(parameters, MAX_QUERY)?;
    let devices = names.iter().filter_map(|name| context.account.devices.get(product_key, name));
    let details: Vec<_> = devices.map(|device| detail(device, parameters)).collect();
    Ok(json!({ "Data": { "Data": details } }))
}

fn set_disabled(disabled: bool, parameters: &Parameters, context: &mut Context<'_>) -> ActionResult {
    let Device { product_key, device_name, .. } = device(parameters, context)?.clone();
    context.account.devices.change(&product_key, &device_name, |device| match disabled {
        true => device.disable(),
        false => device.disabled = false,
    });
    Ok(json!({}))
}

fn delete_device(parameters: &Parameters, context: &mut Context<'_>) -> ActionResult {
    let Device { product_key, device_name, .. } = device(parameters, context)?.clone();
    context.account.devices.remove(&product_key, &device_name);
    Ok(json!({}))
}

/// Finds the device of a call by `IotId` or, without this parameter, by product and name.
fn device<'a>(parameters: &Parameters, context: &'a Context<'_>) -> Result<&'a Device, Failure> {
    let device = match parameters.get("IotId") {
        Some(iot_id) => context.account.devices.get_by_iot_id(iot_id),
        None => {
            let product_key = product(parameters, context)?;
            let device_name = required(parameters, "DeviceName")?;
            context.account.devices.get(product_key, device_name)
        }
    };
    device.ok_or(Failure::Business {
        code: "iot.device.NotExistedDevice",
        message: "The device does not exist.",
    })
}

/// Reads 1 to `most` names from the numbered parameters `DeviceName.1`, `DeviceName.2`, etc.
fn names(parameters: &Parameters, most: usize) -> Result<Vec<String>, Failure> {
    let names: Vec<_> = parameters.numbered("DeviceName.", "").map(str::to_owned).collect();
    match names.len() {
        0 => Err(Failure::Business {
            code: "iot.device.NoneDeviceNameElement",
            message: "The device name list cannot be empty.",
        }),
        count if count > most => {
            Err(Failure::Business { code: TOO_MANY, message: "The number of devices exceeds the limit." })
        }
        _ => Ok(names),
    }
}

fn detail(device: &Device, parameters: &Parameters) -> Value {
    json!({
        "IotId": device.iot_id,
        "ProductKey": device.product_key,
        "ProductName": device.product_key,
        "DeviceName": device.device_name,
        "DeviceSecret": device.device_secret,
        "Nickname": device.nickname,
        "FirmwareVersion": "",
        "IpAddress": "",
        "NodeType": 0,
        "Owner": true,
        "Region": parameters.get("RegionId").unwrap_or("cn-shanghai"),
        "Status": device.status(),
        "GmtCreate": gmt(Some(device.created)),
        "UtcCreate": utc(Some(device.created)),
        "GmtActive": gmt(device.activated),
        "UtcActive": utc(device.activated),
        "GmtOnline": gmt(device.signed_in),
        "UtcOnline": utc(device.signed_in),
    })
}

/// Returns the requested product, if the account has it.
fn product<'a>(parameters: &'a Parameters, context: &Context<'_>) -> Result<&'a str, Failure> {
    let product_key = required(parameters, "ProductKey")?;
    if context.products.is_empty() || context.products.iter().any(|product| product == product_key) {
        return Ok(product_key);
    }
    Err(Failure::Business { code: "iot.prod.NotExistedProduct", message: "The product does not exist." })
}

fn required<'a>(parameters: &'a Parameters, name: &'static str) -> Result<&'a str, Failure> {
    parameters.required(name).map_err(Failure::Refused)
}

fn business(code: &'static str, message: &'static str) -> ActionResult {
    Err(Failure::Business { code, message })
}

/// Formats a time as `2019-02-28T08:21:03.000Z`. Returns an empty text for an event that has not
/// happened.
fn utc(ms: Option<i64>) -> String {
    let instant = ms.and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
    instant.map(|instant| format!("{instant:.3}")).unwrap_or_default()
}

/// Formats a time as `2019-02-28 16:21:03`, in China's time zone. Despite the name of the field,
/// the real cloud uses this time zone, too.
fn gmt(ms: Option<i64>) -> String {
    let instant = ms.and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
    let local = instant.map(|instant| jiff::tz::Offset::constant(8).to_datetime(instant));
    local.map(|local| local.strftime("%Y-%m-%d %H:%M:%S").to_string()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(
        action: Action,
        query: &str,
        account: &mut Account,
        products: &[String],
    ) -> Result<Value, String> {
        let mut parameters = Parameters::default();
        parameters.read_form(query.as_bytes()).unwrap_or_else(|_| panic!("{query}"));
        let mut context =
            Context { account, products, batch_delay: Duration::ZERO, now_ms: 1_551_342_063_000 };
        carry_out(action, &parameters, &mut context).map_err(|failure| match failure {
            Failure::Business { code, .. } => code.to_owned(),
            Failure::Refused(refusal) => refusal.code.into_owned(),
        })
    }

    #[test]
    fn a_registered_device_can_be_queried_by_name_and_by_id() {
        let mut account = Account::new(1);
        let made =
            call(Action::RegisterDevice, "ProductKey=a1&DeviceName=SN01&Nickname=lamp", &mut account, &[])
                .unwrap();
        let by_name =
            call(Action::QueryDeviceDetail, "ProductKey=a1&DeviceName=SN01", &mut account, &[]).unwrap();
        for field in ["IotId", "ProductKey", "DeviceName", "DeviceSecret", "Nickname"] {
            assert_eq!(made["Data"][field], by_name["Data"][field], "{field}");
        }
        assert_eq!(by_name["Data"]["UtcCreate"], "2019-02-28T08:21:03.000Z");
        assert_eq!(by_name["Data"]["GmtCreate"], "2019-02-28 16:21:03");
        assert_eq!(
            (&by_name["Data"]["UtcActive"], &by_name["Data"]["Status"]),
            (&"".into(), &"UNACTIVE".into())
        );
        let query = format!("IotId={}", made["Data"]["IotId"].as_str().unwrap());
        assert_eq!(call(Action::QueryDeviceDetail, &query, &mut account, &[]).unwrap(), by_name);
    }

    #[test]
    fn a_device_without_a_name_gets_one() {
        let mut account = Account::new(1);
        let made = call(Action::RegisterDevice, "ProductKey=a1", &mut account, &[]).unwrap();
        assert!(is_device_name(made["Data"]["DeviceName"].as_str().unwrap()));
        assert!(call(Action::RegisterDevice, "ProductKey=a1", &mut account, &[]).is_ok());
        assert_eq!(account.devices.len(), 2);
    }

    #[test]
    fn each_business_error_has_its_code() {
        let products = ["a1".to_owned()];
        let mut account = Account::new(1);
        call(Action::RegisterDevice, "ProductKey=a1&DeviceName=SN01", &mut account, &products).unwrap();
        for (action, query, code) in [
            (Action::RegisterDevice, "ProductKey=a1&DeviceName=SN01", "iot.device.AlreadyExistedDeviceName"),
            (Action::RegisterDevice, "ProductKey=a1&DeviceName=SN1", "iot.device.InvalidFormattedDeviceName"),
            (
                Action::RegisterDevice,
                "ProductKey=a1&DeviceName=SN%201",
                "iot.device.InvalidFormattedDeviceName",
            ),
            (Action::RegisterDevice, "ProductKey=a2&DeviceName=SN02", "iot.prod.NotExistedProduct"),
            (Action::RegisterDevice, "DeviceName=SN02", "MissingProductKey"),
            (Action::QueryDeviceDetail, "ProductKey=a1&DeviceName=SN02", "iot.device.NotExistedDevice"),
            (Action::QueryDeviceDetail, "IotId=x", "iot.device.NotExistedDevice"),
            (Action::QueryDeviceDetail, "ProductKey=a1", "MissingDeviceName"),
            (Action::QueryDeviceDetail, "ProductKey=a2&DeviceName=SN02", "iot.prod.NotExistedProduct"),
        ] {
            assert_eq!(call(action, query, &mut account, &products).unwrap_err(), code, "{query}");
        }
        assert_eq!(account.devices.len(), 1);
    }

    #[test]
    fn a_disabled_device_has_that_status_until_it_is_enabled_and_a_deleted_one_is_gone() {
        let mut account = Account::new(1);
        let device = "ProductKey=a1&DeviceName=SN01";
        let mut call = |action| call(action, device, &mut account, &[]);
        call(Action::RegisterDevice).unwrap();
        for (action, status) in [(Action::DisableThing, "DISABLE"), (Action::EnableThing, "UNACTIVE")] {
            call(action).unwrap();
            assert_eq!(call(Action::QueryDeviceDetail).unwrap()["Data"]["Status"], status);
        }
        call(Action::DeleteDevice).unwrap();
        for action in
            [Action::QueryDeviceDetail, Action::DisableThing, Action::EnableThing, Action::DeleteDevice]
        {
            assert_eq!(call(action).unwrap_err(), "iot.device.NotExistedDevice");
        }
    }

    #[test]
    fn of_many_devices_those_that_exist_are_returned() {
        let mut account = Account::new(1);
        for name in ["SN01", "SN03"] {
            account.devices.create("a1", name, "", 0);
        }
        let mut query =
            |query: &str| call(Action::BatchQueryDeviceDetail, query, &mut account, &["a1".into()]);
        let found = query("ProductKey=a1&DeviceName.1=SN03&DeviceName.2=SN02&DeviceName.3=SN01").unwrap();
        let names: Vec<_> =
            found["Data"]["Data"].as_array().unwrap().iter().map(|device| &device["DeviceName"]).collect();
        assert_eq!(names, ["SN03", "SN01"]);
        let many: String = (1..=101).map(|number| format!("&DeviceName.{number}=SN01")).collect();
        assert_eq!(query(&format!("ProductKey=a1{many}")).unwrap_err(), "iot.device.DeviceCountExceeded");
        assert_eq!(query("ProductKey=a1").unwrap_err(), "iot.device.NoneDeviceNameElement");
        assert_eq!(query("ProductKey=a2&DeviceName.1=SN01").unwrap_err(), "iot.prod.NotExistedProduct");
    }
}
