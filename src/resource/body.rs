//! Reads and writes the bodies of `/cert`. A request has device IDs in CBOR, JSON or a query, under
//! the keys `deviceId`, `sn` and `mac`, or one device ID as text. With the key `host`, a request
//! asks for the device's MQTT host. An answer has a certificate in CBOR or JSON, with the keys
//! `productKey`, `deviceName` and `deviceSecret`. If the answer includes the MQTT host, it has the
//! key `host`, too.

use std::fmt;

use minicbor::{Decoder, Encoder, data::Type, decode};
use serde::{
    Deserialize, Deserializer,
    de::{self, IgnoredAny, MapAccess, Visitor},
};
use zeroize::Zeroize;

use super::bad_request;
use crate::{
    coap::Response,
    device::{AskedId, DeviceIdError},
    provision::HandedOut,
};

/// An entry of a payload or a query that `/cert` knows.
#[derive(Debug)]
pub(super) enum Entry {
    /// `deviceId`, `sn` or `mac`, or a text payload.
    Id(AskedId),
    /// `host`: true if the client asks for the device's MQTT host.
    Host(bool),
}

/// Entries in the order of the payload or query. In place of an entry with an invalid value, there
/// is the response that refuses the value.
type Entries = Vec<Result<Entry, Response>>;

const HOST: &str = "host";

/// Returns whether `/cert` knows this key of a payload.
fn is_known(key: &str) -> bool {
    matches!(key, "deviceId" | "sn" | "mac" | HOST)
}

/// Reads the device ID under the key `deviceId`, `sn` or `mac`. Returns `None` for any other key.
fn device_id(key: &str, value: &str) -> Option<Result<Entry, Response>> {
    let id = match key {
        "deviceId" => AskedId::parse(value),
        "sn" => AskedId::parse_sn(value),
        "mac" => AskedId::parse_mac(value),
        _ => return None,
    };
    Some(id.map(Entry::Id).map_err(unreadable))
}

/// Reads the value of the key `host`; `None` stands for a value of another type.
fn host(value: Option<bool>) -> Result<Entry, Response> {
    value.map(Entry::Host).ok_or_else(|| bad_request("host is neither true nor false"))
}

fn unreadable(error: DeviceIdError) -> Response {
    bad_request(&error.to_string())
}

/// Reads the entries of a CBOR map. Skips entries with unknown keys.
pub(super) fn cbor(payload: &[u8]) -> Result<Vec<Entry>, Response> {
    let not_a_map = || bad_request("the payload is not a CBOR map");
    let mut decoder = Decoder::new(payload);
    let entries = cbor_entries(&mut decoder).map_err(|_| not_a_map())?;
    if decoder.position() != payload.len() {
        return Err(not_a_map());
    }
    entries.into_iter().collect()
}

fn cbor_entries(decoder: &mut Decoder<'_>) -> Result<Entries, decode::Error> {
    let (mut entries, mut seen) = (Vec::new(), Vec::new());
    let mut left = decoder.map()?;
    loop {
        match &mut left {
            Some(0) => return Ok(entries),
            Some(count) => *count -= 1,
            None if decoder.datatype()? == Type::Break => {
                decoder.skip()?;
                return Ok(entries);
            }
            None => {}
        }
        match decoder.datatype()? {
            Type::String => {}
            // A map key in chunks could be `sn` or another known map key, but would be skipped.
            // Therefore a map key in chunks is an error.
            Type::StringIndef => return Err(decode::Error::message("a key in chunks")),
            _ => {
                skip(decoder, 0)?;
                skip(decoder, 0)?;
                continue;
            }
        }
        match decoder.str()? {
            // RFC 8949 §5.6: a map with duplicate keys is invalid.
            key if seen.contains(&key) => return Err(decode::Error::message("a key twice")),
            HOST => {
                seen.push(HOST);
                let value = match decoder.datatype()? {
                    Type::Bool => Some(decoder.bool()?),
                    _ => {
                        skip(decoder, 0)?;
                        None
                    }
                };
                entries.push(host(value));
            }
            key if is_known(key) => {
                seen.push(key);
                entries.extend(device_id(key, decoder.str()?));
            }
            _ => skip(decoder, 0)?,
        }
    }
}

/// Maximum depth of nesting in a skipped data item.
const MAX_DEPTH: u32 = 16;

/// Skips a data item if it is well-formed. minicbor's own `skip` also accepts a break in
/// place of an item, which is not well-formed (RFC 8949 §3.2.1).
fn skip(decoder: &mut Decoder<'_>, depth: u32) -> Result<(), decode::Error> {
    if depth > MAX_DEPTH {
        return Err(decode::Error::message("nested too deep"));
    }
    let (items, length) = match decoder.datatype()? {
        Type::Array | Type::ArrayIndef => (1, decoder.array()?),
        Type::Map | Type::MapIndef => (2, decoder.map()?),
        Type::Tag => {
            decoder.tag()?;
            return skip(decoder, depth + 1);
        }
        Type::String | Type::StringIndef => return decoder.str_iter()?.try_for_each(|chunk| chunk.map(drop)),
        Type::Bytes | Type::BytesIndef => return decoder.bytes_iter()?.try_for_each(|chunk| chunk.map(drop)),
        Type::Break | Type::Unknown(_) => return Err(decode::Error::message("not a data item")),
        _ => return decoder.skip(),
    };
    // A length greater than the input is harmless: each item takes at least one byte, so reading
    // fails at the end of the input.
    let mut left = length;
    loop {
        match &mut left {
            Some(0) => return Ok(()),
            Some(count) => *count -= 1,
            None if decoder.datatype()? == Type::Break => return decoder.skip(),
            None => {}
        }
        for _ in 0..items {
            skip(decoder, depth + 1)?;
        }
    }
}

/// The entries of a JSON object with the same keys as the CBOR map.
struct JsonEntries(Entries);

// This implementation is not derived, because a derived one would also accept an array of the
// values.
impl<'de> Deserialize<'de> for JsonEntries {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object;

        impl<'de> Visitor<'de> for Object {
            type Value = JsonEntries;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<JsonEntries, A::Error> {
                let (mut entries, mut seen) = (Vec::new(), Vec::new());
                while let Some(key) = map.next_key::<String>()? {
                    if !is_known(&key) {
                        map.next_value::<IgnoredAny>()?;
                        continue;
                    }
                    // RFC 8259 §4: receivers treat duplicate names differently, so a duplicate name
                    // is an error.
                    if seen.contains(&key) {
                        return Err(de::Error::custom("a key twice"));
                    }
                    match key.as_str() {
                        HOST => entries.push(host(map.next_value::<serde_json::Value>()?.as_bool())),
                        _ => entries.extend(device_id(&key, &map.next_value::<String>()?)),
                    }
                    seen.push(key);
                }
                Ok(JsonEntries(entries))
            }
        }

        deserializer.deserialize_map(Object)
    }
}

/// Reads the entries of a JSON object. Skips entries with unknown keys.
pub(super) fn json(payload: &[u8]) -> Result<Vec<Entry>, Response> {
    let not_an_object = || bad_request("the payload is not a JSON object with text values");
    // The whole payload must be UTF-8, but serde_json does not check the strings that it skips.
    let payload = std::str::from_utf8(payload).map_err(|_| not_an_object())?;
    let JsonEntries(entries) = serde_json::from_str(payload).map_err(|_| not_an_object())?;
    entries.into_iter().collect()
}

/// Reads a text that consists of a device ID and optional surrounding white space.
pub(super) fn text(payload: &[u8]) -> Result<Vec<Entry>, Response> {
    let text = std::str::from_utf8(payload).map_err(|_| bad_request("the payload is not UTF-8"))?;
    Ok(vec![Entry::Id(AskedId::parse(text.trim()).map_err(unreadable)?)])
}

/// Reads the entries of Uri-Query options. Skips options with unknown keys.
pub(super) fn query(options: &[String]) -> Result<Vec<Entry>, Response> {
    let read = |option: &String| match option.split_once('=') {
        Some((HOST, "1" | "true")) => Some(host(Some(true))),
        Some((HOST, "0" | "false")) => Some(host(Some(false))),
        Some((HOST, _)) => Some(host(None)),
        Some((key, value)) => device_id(key, value),
        None => (option == HOST).then(|| host(None)),
    };
    options.iter().filter_map(read).collect()
}

const PRODUCT_KEY: &str = "productKey";
const DEVICE_NAME: &str = "deviceName";
const DEVICE_SECRET: &str = "deviceSecret";

/// Encodes a certificate as a CBOR map of three texts, and a fourth if there is a host.
pub(super) fn to_cbor(HandedOut { certificate, host }: &HandedOut) -> Vec<u8> {
    let secret = certificate.device_secret.expose();
    let host = host.as_deref();
    // The buffer is large enough from the start, so that no reallocation leaves a copy of the
    // secret behind.
    let texts = certificate.product_key.len() + certificate.device_name.len() + secret.len();
    let length = 64 + texts + host.map_or(0, |host| 16 + host.len());
    let mut encoder = Encoder::new(Vec::with_capacity(length));
    // Writing to a vector cannot fail.
    let _ = encoder.map(if host.is_some() { 4 } else { 3 });
    let texts = [
        (PRODUCT_KEY, certificate.product_key.as_str()),
        (DEVICE_NAME, certificate.device_name.as_str()),
        (DEVICE_SECRET, secret),
    ];
    for (key, value) in texts.into_iter().chain(host.map(|host| (HOST, host))) {
        let _ = encoder.str(key).and_then(|encoder| encoder.str(value));
    }
    encoder.into_writer()
}

/// Encodes a certificate as a JSON object of three strings, and a fourth if there is a host.
pub(super) fn to_json(HandedOut { certificate, host }: &HandedOut) -> Vec<u8> {
    let mut value = serde_json::json!({
        PRODUCT_KEY: certificate.product_key,
        DEVICE_NAME: certificate.device_name,
        DEVICE_SECRET: certificate.device_secret.expose(),
    });
    if let Some(host) = host {
        value[HOST] = host.as_str().into();
    }
    let mut bytes = Vec::with_capacity(512 + host.as_ref().map_or(0, String::len));
    // Writing strings to a vector cannot fail.
    let _ = serde_json::to_writer(&mut bytes, &value);
    if let Some(serde_json::Value::String(secret)) = value.get_mut(DEVICE_SECRET) {
        secret.zeroize();
    }
    bytes
}
