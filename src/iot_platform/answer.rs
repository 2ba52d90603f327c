//! Reads answers of IoT Platform: a device, a batch, or an error and its class. This module trusts
//! neither the status nor the body. It performs no I/O, and knows nothing about the HTTP client.

mod batch;

use serde::{Deserialize, de::IgnoredAny};

pub use self::batch::{read_apply_id, read_devices, read_page, read_progress};

use super::{ApiError, CloudDevice, ErrorClass, NONCE_USED};
use crate::device::{Certificate, MAX_DEVICE_NAME, Secret};

/// Code for a response that is not a valid answer of the API, for example because it is HTML, is
/// truncated, or lacks a field.
pub const NOT_AN_ANSWER: &str = "NotAnAnswer";
/// Maximum length of the message of an [`ApiError`], in characters.
pub const MAX_MESSAGE: usize = 200;

/// Maximum length of a `Code`, in bytes; a longer text is not accepted as a code.
const MAX_CODE: usize = 100;
/// Maximum length of a device secret or `IotId`, in bytes; the cloud's secrets have 32 bytes.
const MAX_FIELD: usize = 128;

/// Fields of an answer that show its kind. An error of the business level has `Success` and
/// `ErrorMessage`; an error of the gateway has `Message`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Envelope {
    success: Option<bool>,
    code: Option<String>,
    error_message: Option<String>,
    message: Option<String>,
    /// Set if `Data` is present. Its content is parsed later, so that an answer with a wrong
    /// certificate gets its own error.
    data: Option<IgnoredAny>,
    /// Set in an answer that is one page of a list of devices. Such an answer has this field
    /// instead of `Data`.
    page_count: Option<IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DeviceEnvelope {
    data: DeviceData,
}

/// `Data` of `RegisterDevice` and `QueryDeviceDetail`, and each element of a list of
/// devices.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DeviceData {
    /// Absent in a page, because all devices of a page have the same product.
    product_key: Option<String>,
    device_name: String,
    // The type `Secret` wipes the text even if parsing fails at a later field.
    #[serde(deserialize_with = "secret")]
    device_secret: Secret,
    iot_id: Option<String>,
    status: Option<String>,
    utc_create: Option<String>,
    utc_active: Option<String>,
}

fn secret<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Secret, D::Error> {
    String::deserialize(deserializer).map(Secret::new)
}

/// Classifies a failed call by its HTTP status and its `Code`.
///
/// A known code determines the class. With an unknown code, the status determines the class. A
/// response without a code is not an answer of the API.
pub fn classify(status: u16, code: Option<&str>) -> ErrorClass {
    use ErrorClass::*;
    match (code, status) {
        (Some("iot.device.AlreadyExistedDeviceName"), _) => Exists,
        (Some("iot.device.NotExistedDevice" | "iot.device.DeviceApplyIsNotFound"), _) => NotFound,

        (Some(NONCE_USED | "InvalidTimeStamp.Expired"), _) => SignAgain,

        (Some(code), _) if is_or_begins(code, "Throttling") => Throttled,

        (Some("iot.system.SystemException"), _)
        | (Some("iot.device.CreateDeviceFailed"), _)
        | (Some("iot.device.CreateDeviceTaskIsRunning"), _)
        | (Some("ServiceUnavailable" | "InternalError"), _) => TryAgain,

        (Some("InvalidAccessKeyId.NotFound" | "InvalidAccessKeyId.Inactive"), _)
        | (Some("SignatureDoesNotMatch"), _)
        | (Some("Forbidden.RAM" | "iot.common.RamActionPermissionDeny"), _)
        | (Some("iot.common.AuthActionPermissionDeny"), _)
        | (Some("iot.common.InvalidTenant" | "iot.system.UidNotFound"), _)
        // The cloud's documentation has both spellings.
        | (Some("Iot.system.BillIsOverDue" | "iot.system.BillIsOverDue"), _)
        | (Some("iot.system.InstanceNotFound" | "iot.Sre.IotInstanceNotFound"), _)
        | (Some("iot.prod.NotExistedProduct" | "iot.device.DeviceCountExceeded"), _) => Operator,
        (Some(code), _) if is_or_begins(code, "InvalidSecurityToken") => Operator,

        (Some("iot.device.InvalidFormattedDeviceName"), _) => Device,

        // With these statuses, the gateway refuses the account or its permissions, whatever the
        // code is.
        (Some(_), 401 | 403) => Operator,
        (_, 429 | 500..=599) => TryAgain,
        (Some(_), _) => Unknown,
        (None, _) => TryAgain,
    }
}

/// Returns whether the code is `family`, or begins with `family.`.
fn is_or_begins(code: &str, family: &str) -> bool {
    code.strip_prefix(family).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

/// Reads the answer to a call about one device.
///
/// # Errors
///
/// Returns the cloud's error and its class. The message is unchanged, because only the caller knows
/// the secrets that [`sanitized`] must remove. The class of a response that is not an answer is
/// [`ErrorClass::TryAgain`]. The class of a certificate that cannot be the requested one is
/// [`ErrorClass::Unknown`]: another attempt may succeed, but the number of attempts must be
/// limited.
pub fn read_device(
    status: u16,
    body: &[u8],
    product_key: &str,
    device_name: &str,
) -> Result<CloudDevice, ApiError> {
    read(status, body, |envelope| envelope.data.is_some(), |body| device(body, product_key, device_name))
}

/// Reads the answer to a call that only reports its success.
///
/// # Errors
///
/// Returns the same errors as [`read_device`], except that there is no content that could be wrong.
pub fn read_done(status: u16, body: &[u8]) -> Result<(), ApiError> {
    read(status, body, |_| true, |_| Ok(()))
}

/// Reads the answer to a deletion. A device that does not exist counts as deleted.
///
/// # Errors
///
/// Returns the same errors as [`read_done`], except [`ErrorClass::NotFound`].
pub fn read_deleted(status: u16, body: &[u8]) -> Result<(), ApiError> {
    match read_done(status, body) {
        Err(error) if error.class == ErrorClass::NotFound => Ok(()),
        outcome => outcome,
    }
}

/// Reads an answer. The status must be 2xx, `Success` must be true, and `has_content` must accept
/// the fields.
fn read<T>(
    status: u16,
    body: &[u8],
    has_content: impl FnOnce(&Envelope) -> bool,
    content: impl FnOnce(&[u8]) -> Result<T, &'static str>,
) -> Result<T, ApiError> {
    let envelope: Envelope = serde_json::from_slice(body).map_err(|_| {
        // The body may contain part of a certificate, so the message shows only its size.
        not_an_answer(status, format!("HTTP {status} with {} bytes that are not a JSON answer", body.len()))
    })?;
    let has_content = has_content(&envelope);
    let code = envelope.code.filter(|code| is_code(code));
    match (envelope.success, code) {
        (Some(true), _) if has_content && (200..300).contains(&status) => {
            content(body).map_err(|what| ApiError {
                class: ErrorClass::Unknown,
                code: NOT_AN_ANSWER.into(),
                message: format!("the answer's {what}"),
            })
        }
        (Some(false) | None, Some(code)) => Err(ApiError {
            class: classify(status, Some(&code)),
            code,
            message: envelope.error_message.or(envelope.message).unwrap_or_default(),
        }),
        _ => Err(not_an_answer(status, format!("HTTP {status} with neither data nor an error code"))),
    }
}

fn not_an_answer(status: u16, message: String) -> ApiError {
    ApiError { class: classify(status, None), code: NOT_AN_ANSWER.into(), message }
}

/// Returns whether a text looks like a code. Other texts are not accepted, because codes go into
/// logs and metrics unchanged.
fn is_code(code: &str) -> bool {
    (1..=MAX_CODE).contains(&code.len())
        && code.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'))
}

/// Reads the device in `Data`. The error says what is wrong without repeating any content, because
/// part of the content is secret.
fn device(body: &[u8], product_key: &str, device_name: &str) -> Result<CloudDevice, &'static str> {
    let DeviceEnvelope { data } =
        serde_json::from_slice(body).map_err(|_| "Data lacks a field of a certificate")?;
    if data.product_key.as_deref() != Some(product_key) {
        return Err("ProductKey is not the one asked for");
    }
    if data.device_name != device_name || device_name.len() > MAX_DEVICE_NAME {
        return Err("DeviceName is not the one asked for");
    }
    data.certified(product_key)
}

impl DeviceData {
    /// Converts the data of a device whose name was already checked.
    fn certified(self, product_key: &str) -> Result<CloudDevice, &'static str> {
        if !is_field(self.device_secret.expose()) {
            return Err("DeviceSecret is empty, too long or not printable");
        }
        Ok(CloudDevice {
            certificate: Certificate {
                product_key: product_key.to_owned(),
                device_name: self.device_name,
                device_secret: self.device_secret,
            },
            iot_id: self.iot_id.filter(|id| is_field(id)),
            created: self.utc_create.as_deref().and_then(seconds),
            activated: self.utc_active.as_deref().and_then(seconds),
            disabled: self.status.as_deref() == Some("DISABLE"),
        })
    }
}

/// Returns whether a text is 1–128 printable ASCII characters without spaces.
fn is_field(text: &str) -> bool {
    (1..=MAX_FIELD).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic())
}

/// Parses an ISO 8601 time into seconds since 1970. Returns `None` for any other text. For example,
/// the text is empty for an event that has not happened.
fn seconds(text: &str) -> Option<i64> {
    text.parse::<jiff::Timestamp>().ok().map(jiff::Timestamp::as_second)
}

/// Shortens a message to one line for the log and the console: at most [`MAX_MESSAGE`] characters,
/// without control characters, without characters that change the direction of the text around
/// them, and without any of `secrets`.
///
/// In one error, the gateway repeats the string that it expected to be signed. This string contains
/// the security token in a form that is percent-encoded twice. A search for the token would not
/// find this form, so the whole string is removed.
pub fn sanitized(message: &str, secrets: &[&str]) -> String {
    let mut message = match message.find("string to sign") {
        Some(at) => format!("{}string to sign …", &message[..at]),
        None => message.to_owned(),
    };
    for secret in secrets.iter().filter(|secret| !secret.is_empty()) {
        message = message.replace(secret, "…");
        let once = super::signature::percent_encode(secret).to_string();
        message = message.replace(&super::signature::percent_encode(&once).to_string(), "…");
        message = message.replace(&once, "…");
    }
    let mut line = String::new();
    let is_left_out = |c: char| {
        let turns = matches!(c, '\u{200E}' | '\u{200F}' | '\u{202A}'..='\u{202E}' | '\u{2066}'..='\u{2069}');
        c.is_whitespace() || c.is_control() || turns
    };
    for word in message.split(is_left_out).filter(|word| !word.is_empty()) {
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
    }
    if line.chars().count() > MAX_MESSAGE {
        line = line.chars().take(MAX_MESSAGE - 1).chain(['…']).collect();
    }
    line
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const SECRET: &str = "0123456789abcdef0123456789abcdef";

    fn read(status: u16, body: serde_json::Value) -> Result<CloudDevice, ApiError> {
        super::read_device(status, body.to_string().as_bytes(), "a1BwAGVxyz1", "SN01")
    }

    fn data() -> serde_json::Value {
        json!({"IotId": "Q7uOhVRd", "ProductKey": "a1BwAGVxyz1", "DeviceName": "SN01", "DeviceSecret": SECRET})
    }

    #[test]
    fn what_the_gateway_does_not_authorize_is_the_operators_whatever_the_code() {
        for status in [401, 403] {
            for code in ["NoPermission", "Strange"] {
                assert_eq!(classify(status, Some(code)), ErrorClass::Operator, "{status} {code}");
            }
            // A known code determines the class, whatever the status is. A response without a code,
            // such as a proxy's page, is not an answer.
            assert_eq!(classify(status, Some("Throttling.User")), ErrorClass::Throttled);
            assert_eq!(classify(status, None), ErrorClass::TryAgain);
        }
    }

    #[test]
    fn a_change_is_done_only_if_the_answer_says_so() {
        let done = |status, body: serde_json::Value| super::read_done(status, body.to_string().as_bytes());
        assert_eq!(done(200, json!({"RequestId": "r", "Success": true})), Ok(()));
        for (status, body, class) in [
            (200, json!({"Success": false, "Code": "iot.device.NotExistedDevice"}), ErrorClass::NotFound),
            (200, json!({"Success": false}), ErrorClass::TryAgain),
            (200, json!({"RequestId": "r"}), ErrorClass::TryAgain),
            (500, json!({"Success": true}), ErrorClass::TryAgain),
            (403, json!({"Code": "NoPermission", "Message": "m"}), ErrorClass::Operator),
            (200, json!("Success"), ErrorClass::TryAgain),
        ] {
            assert_eq!(
                done(status, body.clone()).map_err(|error| error.class),
                Err(class),
                "{status} {body}"
            );
        }
    }

    #[test]
    fn a_device_that_does_not_exist_counts_as_deleted_and_nothing_else_does() {
        let deleted = |code: &str| {
            let body = json!({"Success": false, "Code": code, "ErrorMessage": "m"}).to_string();
            super::read_deleted(200, body.as_bytes()).map_err(|error| error.class)
        };
        assert_eq!(super::read_deleted(200, br#"{"Success": true}"#), Ok(()));
        assert_eq!(deleted("iot.device.NotExistedDevice"), Ok(()));
        for (code, class) in [
            ("iot.system.SystemException", ErrorClass::TryAgain),
            ("iot.prod.NotExistedProduct", ErrorClass::Operator),
            ("iot.system.InstanceNotFound", ErrorClass::Operator),
            ("iot.device.Strange", ErrorClass::Unknown),
        ] {
            assert_eq!(deleted(code), Err(class), "{code}");
        }
    }

    #[test]
    fn exists_is_recovered_through_a_query() {
        assert_eq!(classify(200, Some("iot.device.AlreadyExistedDeviceName")), ErrorClass::Exists);
    }

    #[test]
    fn a_device_or_batch_that_is_not_there_is_not_found() {
        for code in ["iot.device.NotExistedDevice", "iot.device.DeviceApplyIsNotFound"] {
            assert_eq!(classify(200, Some(code)), ErrorClass::NotFound, "{code}");
        }
    }

    #[test]
    fn temporary_errors_of_the_cloud_are_tried_again() {
        for code in [
            "iot.system.SystemException",
            "iot.device.CreateDeviceFailed",
            "iot.device.CreateDeviceTaskIsRunning",
            "ServiceUnavailable",
            "InternalError",
        ] {
            assert_eq!(classify(200, Some(code)), ErrorClass::TryAgain, "{code}");
        }
        for status in [429, 500, 502, 503, 504, 599] {
            assert_eq!(classify(status, None), ErrorClass::TryAgain, "{status}");
            assert_eq!(classify(status, Some("Strange")), ErrorClass::TryAgain, "{status}");
        }
        for status in [200, 302, 400, 404] {
            assert_eq!(classify(status, None), ErrorClass::TryAgain, "{status}");
        }
    }

    #[test]
    fn throttling_lowers_the_rate() {
        for code in ["Throttling", "Throttling.User", "Throttling.Api"] {
            for status in [200, 400, 429, 503] {
                assert_eq!(classify(status, Some(code)), ErrorClass::Throttled, "{status} {code}");
            }
        }
        assert_eq!(classify(400, Some("ThrottlingNot")), ErrorClass::Unknown);
    }

    #[test]
    fn a_used_nonce_or_an_old_timestamp_is_signed_again() {
        for code in ["SignatureNonceUsed", "InvalidTimeStamp.Expired"] {
            assert_eq!(classify(400, Some(code)), ErrorClass::SignAgain, "{code}");
        }
    }

    #[test]
    fn an_error_that_only_the_operator_can_fix_stops_the_calls() {
        for code in [
            "InvalidAccessKeyId.NotFound",
            "InvalidAccessKeyId.Inactive",
            "SignatureDoesNotMatch",
            "InvalidSecurityToken.Expired",
            "InvalidSecurityToken.Malformed",
            "Forbidden.RAM",
            "iot.common.RamActionPermissionDeny",
            "iot.common.InvalidTenant",
            "iot.common.AuthActionPermissionDeny",
            "iot.system.UidNotFound",
            "Iot.system.BillIsOverDue",
            "iot.system.BillIsOverDue",
            "iot.system.InstanceNotFound",
            "iot.Sre.IotInstanceNotFound",
            "iot.prod.NotExistedProduct",
            "iot.device.DeviceCountExceeded",
        ] {
            for status in [200, 400, 403, 404] {
                assert_eq!(classify(status, Some(code)), ErrorClass::Operator, "{status} {code}");
            }
        }
    }

    #[test]
    fn a_name_that_the_cloud_rejects_concerns_only_this_device() {
        assert_eq!(classify(200, Some("iot.device.InvalidFormattedDeviceName")), ErrorClass::Device);
    }

    #[test]
    fn a_code_that_is_not_in_the_list_is_unknown() {
        for code in ["iot.device.Strange", "InvalidTimeStamp.Format", "MissingProductKey"] {
            assert_eq!(classify(200, Some(code)), ErrorClass::Unknown, "{code}");
            assert_eq!(classify(400, Some(code)), ErrorClass::Unknown, "{code}");
        }
    }

    #[test]
    fn a_registration_gives_the_certificate() {
        let device = read(200, json!({"RequestId": "1", "Success": true, "Data": data()})).unwrap();
        assert_eq!(device.certificate.device_secret.expose(), SECRET);
        assert_eq!(device.iot_id.as_deref(), Some("Q7uOhVRd"));
        assert_eq!((device.created, device.activated), (None, None));
    }

    #[test]
    fn a_query_also_tells_when() {
        let mut data = data();
        data["UtcCreate"] = "2019-02-28T08:21:03.000Z".into();
        data["UtcActive"] = "".into();
        let device = read(200, json!({"Success": true, "Data": data})).unwrap();
        assert_eq!((device.created, device.activated), (Some(1_551_342_063), None));
    }

    #[test]
    fn a_device_is_disabled_when_its_status_says_so() {
        for (status, disabled) in
            [("DISABLE", true), ("UNACTIVE", false), ("ONLINE", false), ("OFFLINE", false), ("", false)]
        {
            let mut data = data();
            data["Status"] = status.into();
            let device = read(200, json!({"Success": true, "Data": data})).unwrap();
            assert_eq!(device.disabled, disabled, "{status}");
        }
    }

    #[test]
    fn both_levels_of_errors_are_read() {
        let business =
            json!({"Success": false, "Code": "iot.device.InvalidFormattedDeviceName", "ErrorMessage": "so"});
        let error = read(200, business).unwrap_err();
        assert_eq!((error.class, error.message.as_str()), (ErrorClass::Device, "so"));
        let gateway =
            json!({"RequestId": "1", "HostId": "h", "Code": "InvalidAccessKeyId.NotFound", "Message": "no"});
        let error = read(404, gateway).unwrap_err();
        assert_eq!((error.class, error.message.as_str()), (ErrorClass::Operator, "no"));
        assert_eq!(error.code, "InvalidAccessKeyId.NotFound");
    }

    #[test]
    fn a_response_that_is_not_an_answer_is_tried_again() {
        for body in [
            "",
            "<html>login</html>",
            "{\"Success\":true,\"Data\":{",
            "[]",
            "{}",
            "null",
            "{\"Success\":true}",
        ] {
            for status in [200, 404, 502] {
                let error = read_device(status, body.as_bytes(), "a1BwAGVxyz1", "SN01").unwrap_err();
                assert_eq!(
                    (error.class, error.code.as_str()),
                    (ErrorClass::TryAgain, NOT_AN_ANSWER),
                    "{status} {body}"
                );
            }
        }
        let error = read(400, json!({"Code": "two\nlines", "Message": ""})).unwrap_err();
        assert_eq!(error.code, NOT_AN_ANSWER);
        let error = read(500, json!({"Success": true, "Data": data()})).unwrap_err();
        assert_eq!((error.class, error.code.as_str()), (ErrorClass::TryAgain, NOT_AN_ANSWER));
    }

    #[test]
    fn a_certificate_of_another_device_or_without_a_secret_is_refused() {
        let long = "x".repeat(129);
        for (field, value) in [
            ("ProductKey", json!("a1BwAGVxyz2")),
            ("DeviceName", json!("SN02")),
            ("DeviceName", json!(null)),
            ("DeviceSecret", json!("")),
            ("DeviceSecret", json!("two\nlines")),
            ("DeviceSecret", json!("sp ace")),
            ("DeviceSecret", json!(long)),
            ("DeviceSecret", json!(17)),
        ] {
            let mut data = data();
            data[field] = value;
            let error = read(200, json!({"Success": true, "Data": data})).unwrap_err();
            assert_eq!((error.class, error.code.as_str()), (ErrorClass::Unknown, NOT_AN_ANSWER), "{field}");
            assert!(!error.message.contains(SECRET));
        }
    }

    #[test]
    fn a_message_is_one_bounded_line() {
        assert_eq!(sanitized(" two\r\n lines\tand\u{7}a bell ", &[]), "two lines and a bell");
        assert_eq!(sanitized("no \u{202E}such\u{2066}device", &[]), "no such device");
        let long = sanitized(&"é".repeat(1000), &[]);
        assert_eq!(long.chars().count(), MAX_MESSAGE);
        assert!(long.ends_with('…'));
    }

    #[test]
    fn a_message_never_repeats_a_secret_in_any_spelling() {
        let token = "CAIS+/=x";
        let message = format!("a {token} b CAIS%2B%2F%3Dx c CAIS%252B%252F%253Dx d hush");
        assert_eq!(sanitized(&message, &[token, "hush", ""]), "a … b … c … d …");
        let echoed = sanitized("not matched. server string to sign is:POST&%2F&AccessKeyId%3D1", &[]);
        assert_eq!(echoed, "not matched. server string to sign …");
    }
}
