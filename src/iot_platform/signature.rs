//! Version 1 of Alibaba Cloud's request signature (`SignatureVersion=1.0`,
//! `SignatureMethod=HMAC-SHA1`), which the client makes and the simulator verifies. This module
//! performs no I/O, and uses neither HTTP nor the clock.

use base64::{Engine, engine::general_purpose::STANDARD};
use hmac::{Hmac, KeyInit, Mac};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, PercentEncode, utf8_percent_encode};
use sha1::Sha1;
use subtle::ConstantTimeEq;

/// All characters except the unreserved ones of RFC 3986 §2.3.
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// Name of the last parameter, which contains the signature of all other parameters.
pub const SIGNATURE: &str = "Signature";

/// Percent-encodes text for a query, a form, or a string to sign (RFC 3986 §2.1). A space becomes
/// `%20` and never `+`.
pub fn percent_encode(text: &str) -> PercentEncode<'_> {
    utf8_percent_encode(text, RESERVED)
}

/// Joins `name=value` pairs with `&` in the given order. Encodes names and values.
pub fn form_encode<'a>(parameters: impl IntoIterator<Item = (&'a str, &'a str)>) -> String {
    let mut text = String::new();
    for (name, value) in parameters {
        if !text.is_empty() {
            text.push('&');
        }
        text.extend(percent_encode(name));
        text.push('=');
        text.extend(percent_encode(value));
    }
    text
}

/// Returns the encoded parameters without `Signature`, sorted by name.
///
/// Parameters of the query and of the form are signed together in one list.
pub fn canonical_string<'a>(parameters: impl IntoIterator<Item = (&'a str, &'a str)>) -> String {
    let mut parameters: Vec<_> = parameters.into_iter().filter(|(name, _)| *name != SIGNATURE).collect();
    parameters.sort_unstable();
    form_encode(parameters)
}

/// Returns the text that is signed: `METHOD&%2F&…`, with the method in upper case.
pub fn string_to_sign<'a>(method: &str, parameters: impl IntoIterator<Item = (&'a str, &'a str)>) -> String {
    format!("{method}&%2F&{}", percent_encode(&canonical_string(parameters)))
}

/// Returns the value of `Signature`: Base64 of the HMAC-SHA1 of a string to sign.
pub fn sign(string_to_sign: &str, access_key_secret: &str) -> String {
    STANDARD.encode(mac(string_to_sign, access_key_secret).finalize().into_bytes())
}

/// Returns whether `signature` is the result of [`sign`]. Compares in constant time.
pub fn verify(string_to_sign: &str, access_key_secret: &str, signature: &str) -> bool {
    let expected = sign(string_to_sign, access_key_secret);
    expected.as_bytes().ct_eq(signature.as_bytes()).into()
}

fn mac(string_to_sign: &str, access_key_secret: &str) -> Hmac<Sha1> {
    // The HMAC key is the secret of the access key, followed by `&`. The scheme allows a token
    // secret after the `&`, but IoT Platform uses none.
    let key = zeroize::Zeroizing::new(format!("{access_key_secret}&"));
    let mut mac = Hmac::<Sha1>::new_from_slice(key.as_bytes()).expect("HMAC takes a key of any length");
    mac.update(string_to_sign.as_bytes());
    mac
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde::Deserialize;

    use super::*;

    /// A test case that was computed with the official Python SDK.
    #[derive(Deserialize)]
    struct Vector {
        method: String,
        access_key_secret: String,
        parameters: BTreeMap<String, String>,
        string_to_sign: String,
        signature: String,
    }

    fn vectors() -> Vec<Vector> {
        let vectors: Vec<Vector> =
            serde_json::from_str(include_str!("../../tests/data/signing-vectors.json")).unwrap();
        assert!(!vectors.is_empty());
        vectors
    }

    #[test]
    fn a_request_is_signed_as_the_official_sdk_signs_it() {
        for vector in vectors() {
            let parameters = vector.parameters.iter().map(|(name, value)| (name.as_str(), value.as_str()));
            let text = string_to_sign(&vector.method, parameters);
            assert_eq!(text, vector.string_to_sign);
            assert_eq!(sign(&text, &vector.access_key_secret), vector.signature);
            assert!(verify(&text, &vector.access_key_secret, &vector.signature));
        }
    }

    #[test]
    fn neither_the_order_of_parameters_nor_an_old_signature_changes_what_is_signed() {
        for vector in vectors() {
            let backwards =
                vector.parameters.iter().rev().map(|(name, value)| (name.as_str(), value.as_str()));
            let text = string_to_sign(&vector.method, backwards.chain([(SIGNATURE, "left over")]));
            assert_eq!(text, vector.string_to_sign);
        }
    }

    #[test]
    fn another_secret_text_or_signature_is_refused() {
        for vector in vectors() {
            assert!(!verify(&vector.string_to_sign, "other", &vector.signature));
            assert!(!verify(&vector.string_to_sign[1..], &vector.access_key_secret, &vector.signature));
            assert!(!verify(&vector.string_to_sign, &vector.access_key_secret, ""));
            let cut = &vector.signature[..vector.signature.len() - 1];
            assert!(!verify(&vector.string_to_sign, &vector.access_key_secret, cut));
        }
    }

    #[test]
    fn only_unreserved_characters_stay_as_they_are() {
        let unreserved = "AZaz09-_.~";
        assert_eq!(percent_encode(unreserved).to_string(), unreserved);
        assert_eq!(percent_encode(" *+/:@é").to_string(), "%20%2A%2B%2F%3A%40%C3%A9");
    }
}
