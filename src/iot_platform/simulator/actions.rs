//! What each action of the API does once the gateway has let it through: the
//! business level. An action is a line in [`carry_out`] and a function; the time
//! is an argument.

use serde_json::{Value, json};

use super::{
    devices::{Device, Devices},
    request::{Parameters, Refusal},
};
use crate::{device::is_device_name, iot_platform::Action};

/// What an action works on.
pub(super) struct Context<'a> {
    pub devices: &'a mut Devices,
    /// The product keys that the account has; empty when it has any.
    pub products: &'a [String],
    /// Milliseconds since 1970.
    pub now_ms: i64,
}

/// Why an action fails.
pub(super) enum Failure {
    /// The gateway's own check of parameters.
    Refused(Refusal),
    /// An answer with `Success: false`.
    Business { code: &'static str, message: &'static str },
}

/// The rest of an answer with `Success: true`, such as `{"Data": …}`.
type Outcome = Result<Value, Failure>;

/// Does what the action does.
pub(super) fn carry_out(action: Action, parameters: &Parameters, context: &mut Context<'_>) -> Outcome {
    match action {
        Action::RegisterDevice => register_device(parameters, context),
        Action::QueryDeviceDetail => query_device_detail(parameters, context),
        _ => Err(Failure::Refused(Refusal::new(404, "InvalidAction.NotFound", "Not simulated yet."))),
    }
}

fn register_device(parameters: &Parameters, context: &mut Context<'_>) -> Outcome {
    let product_key = product(parameters, context)?;
    let generated;
    let device_name = match parameters.get("DeviceName") {
        Some(name) if is_device_name(name) => name,
        Some(_) => {
            return business("iot.device.InvalidFormattedDeviceName", "The device name format is incorrect.");
        }
        None => {
            generated = context.devices.free_name(product_key);
            &generated
        }
    };
    let nickname = parameters.get("Nickname").unwrap_or_default();
    match context.devices.create(product_key, device_name, nickname, context.now_ms) {
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

fn query_device_detail(parameters: &Parameters, context: &mut Context<'_>) -> Outcome {
    let device = match parameters.get("IotId") {
        Some(iot_id) => context.devices.get_by_iot_id(iot_id),
        None => {
            let product_key = product(parameters, context)?;
            let device_name = required(parameters, "DeviceName")?;
            context.devices.get(product_key, device_name)
        }
    };
    match device {
        Some(device) => Ok(json!({ "Data": detail(device, parameters) })),
        None => business("iot.device.NotExistedDevice", "The device does not exist."),
    }
}

fn detail(device: &Device, parameters: &Parameters) -> Value {
    let status = if device.activated.is_some() { "OFFLINE" } else { "UNACTIVE" };
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
        "Status": status,
        "GmtCreate": gmt(Some(device.created)),
        "UtcCreate": utc(Some(device.created)),
        "GmtActive": gmt(device.activated),
        "UtcActive": utc(device.activated),
        "GmtOnline": gmt(device.activated),
        "UtcOnline": utc(device.activated),
    })
}

/// The product asked for, if the account has it.
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

fn business(code: &'static str, message: &'static str) -> Outcome {
    Err(Failure::Business { code, message })
}

/// `2019-02-28T08:21:03.000Z`, or nothing when it has not happened.
fn utc(ms: Option<i64>) -> String {
    let instant = ms.and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
    instant.map(|instant| format!("{instant:.3}")).unwrap_or_default()
}

/// `2019-02-28 16:21:03`: despite its name in China's time, as the cloud has it.
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
        devices: &mut Devices,
        products: &[String],
    ) -> Result<Value, String> {
        let mut parameters = Parameters::default();
        parameters.read_form(query.as_bytes()).unwrap_or_else(|_| panic!("{query}"));
        let mut context = Context { devices, products, now_ms: 1_551_342_063_000 };
        carry_out(action, &parameters, &mut context).map_err(|failure| match failure {
            Failure::Business { code, .. } => code.to_owned(),
            Failure::Refused(refusal) => refusal.code.into_owned(),
        })
    }

    #[test]
    fn a_registered_device_can_be_queried_by_name_and_by_id() {
        let mut devices = Devices::new(1);
        let made =
            call(Action::RegisterDevice, "ProductKey=a1&DeviceName=SN01&Nickname=lamp", &mut devices, &[])
                .unwrap();
        let by_name =
            call(Action::QueryDeviceDetail, "ProductKey=a1&DeviceName=SN01", &mut devices, &[]).unwrap();
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
        assert_eq!(call(Action::QueryDeviceDetail, &query, &mut devices, &[]).unwrap(), by_name);
    }

    #[test]
    fn a_device_without_a_name_gets_one() {
        let mut devices = Devices::new(1);
        let made = call(Action::RegisterDevice, "ProductKey=a1", &mut devices, &[]).unwrap();
        assert!(is_device_name(made["Data"]["DeviceName"].as_str().unwrap()));
        assert!(call(Action::RegisterDevice, "ProductKey=a1", &mut devices, &[]).is_ok());
        assert_eq!(devices.len(), 2);
    }

    #[test]
    fn each_business_error_has_its_code() {
        let products = ["a1".to_owned()];
        let mut devices = Devices::new(1);
        call(Action::RegisterDevice, "ProductKey=a1&DeviceName=SN01", &mut devices, &products).unwrap();
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
            assert_eq!(call(action, query, &mut devices, &products).unwrap_err(), code, "{query}");
        }
        assert_eq!(devices.len(), 1);
    }
}
