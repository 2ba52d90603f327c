//! The bodies of `/cert`: device IDs in CBOR, JSON, text or a query, and the
//! certificate in CBOR or JSON (shared contract: a map with `deviceId`, `sn` or
//! `mac`; a map with `productKey`, `deviceName`, `deviceSecret`).

use minicbor::{Decoder, Encoder, data::Type, decode};
use serde::Deserialize;
use zeroize::Zeroize;

use super::bad_request;
use crate::{
    coap::Response,
    device::{Certificate, DeviceId, DeviceIdError},
};

/// Reads one device ID under its key; `None` for a key that names none.
fn device_id(key: &str, value: &str) -> Option<Result<DeviceId, DeviceIdError>> {
    match key {
        "deviceId" => Some(DeviceId::parse(value)),
        "sn" => Some(DeviceId::parse_sn(value)),
        "mac" => Some(DeviceId::parse_mac(value)),
        _ => None,
    }
}

fn unreadable(error: DeviceIdError) -> Response {
    bad_request(&error.to_string())
}

/// Device IDs of a CBOR map. Other keys are passed over, whatever they hold.
pub(super) fn cbor(payload: &[u8]) -> Result<Vec<DeviceId>, Response> {
    let not_a_map = || bad_request("the payload is not a CBOR map");
    let mut decoder = Decoder::new(payload);
    let ids = cbor_ids(&mut decoder).map_err(|_| not_a_map())?;
    if decoder.position() != payload.len() {
        return Err(not_a_map());
    }
    ids.into_iter().collect::<Result<_, _>>().map_err(unreadable)
}

fn cbor_ids(decoder: &mut Decoder<'_>) -> Result<Vec<Result<DeviceId, DeviceIdError>>, decode::Error> {
    let mut ids = Vec::new();
    let mut left = decoder.map()?;
    loop {
        match &mut left {
            Some(0) => return Ok(ids),
            Some(count) => *count -= 1,
            None if decoder.datatype()? == Type::Break => {
                decoder.skip()?;
                return Ok(ids);
            }
            None => {}
        }
        if decoder.datatype()? != Type::String {
            decoder.skip()?;
            decoder.skip()?;
            continue;
        }
        match decoder.str()? {
            key @ ("deviceId" | "sn" | "mac") => ids.extend(device_id(key, decoder.str()?)),
            _ => decoder.skip()?,
        }
    }
}

/// A JSON object with the same keys. A key given twice is an error.
#[derive(Deserialize)]
struct JsonIds {
    #[serde(rename = "deviceId")]
    device_id: Option<String>,
    sn: Option<String>,
    mac: Option<String>,
}

/// Device IDs of a JSON object.
pub(super) fn json(payload: &[u8]) -> Result<Vec<DeviceId>, Response> {
    let not_an_object = |_| bad_request("the payload is not a JSON object with text values");
    let ids: JsonIds = serde_json::from_slice(payload).map_err(not_an_object)?;
    [("deviceId", ids.device_id), ("sn", ids.sn), ("mac", ids.mac)]
        .into_iter()
        .filter_map(|(key, value)| device_id(key, &value?))
        .collect::<Result<_, _>>()
        .map_err(unreadable)
}

/// The device ID that is the whole text, but for white space around it.
pub(super) fn text(payload: &[u8]) -> Result<Vec<DeviceId>, Response> {
    let text = std::str::from_utf8(payload).map_err(|_| bad_request("the payload is not UTF-8"))?;
    Ok(vec![DeviceId::parse(text.trim()).map_err(unreadable)?])
}

/// Device IDs of Uri-Query options; other queries are passed over.
pub(super) fn query(options: &[String]) -> Result<Vec<DeviceId>, Response> {
    options
        .iter()
        .filter_map(|option| option.split_once('='))
        .filter_map(|(key, value)| device_id(key, value))
        .collect::<Result<_, _>>()
        .map_err(unreadable)
}

const PRODUCT_KEY: &str = "productKey";
const DEVICE_NAME: &str = "deviceName";
const DEVICE_SECRET: &str = "deviceSecret";

/// A map of three texts.
pub(super) fn certificate_cbor(certificate: &Certificate) -> Vec<u8> {
    let secret = certificate.device_secret.expose();
    // Made large enough at once, so that no copy of the secret is left behind.
    let length = 64 + certificate.product_key.len() + certificate.device_name.len() + secret.len();
    let mut encoder = Encoder::new(Vec::with_capacity(length));
    // Writing to a vector cannot fail.
    let _ = encoder.map(3);
    for (key, value) in [
        (PRODUCT_KEY, certificate.product_key.as_str()),
        (DEVICE_NAME, certificate.device_name.as_str()),
        (DEVICE_SECRET, secret),
    ] {
        let _ = encoder.str(key).and_then(|encoder| encoder.str(value));
    }
    encoder.into_writer()
}

/// An object of three strings.
pub(super) fn certificate_json(certificate: &Certificate) -> Vec<u8> {
    let mut value = serde_json::json!({
        PRODUCT_KEY: certificate.product_key,
        DEVICE_NAME: certificate.device_name,
        DEVICE_SECRET: certificate.device_secret.expose(),
    });
    let mut bytes = Vec::with_capacity(512);
    // Writing strings to a vector cannot fail.
    let _ = serde_json::to_writer(&mut bytes, &value);
    if let Some(serde_json::Value::String(secret)) = value.get_mut(DEVICE_SECRET) {
        secret.zeroize();
    }
    bytes
}
