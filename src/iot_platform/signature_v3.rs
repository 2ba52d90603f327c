//! Version 3 of Alibaba Cloud's request signature (`ACS3-HMAC-SHA256`), which the newer SDKs send.
//! The common parameters are headers. The signature covers method, path, query, headers and the
//! hash of the body. This module performs no I/O, and uses neither HTTP nor the clock.

use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};

use super::signature::canonical_string;

/// Name of the algorithm, in `Authorization` and in the string to sign.
pub const ALGORITHM: &str = "ACS3-HMAC-SHA256";

/// The signed parts of a request.
#[derive(Debug, Clone, Copy)]
pub struct Signable<'a> {
    /// HTTP method, in upper case.
    pub method: &'a str,
    /// Path of the endpoint; `/` if it has none.
    pub path: &'a str,
    /// Query parameters, neither encoded nor sorted.
    pub query: &'a [(&'a str, &'a str)],
    /// Headers to be signed, in any order. Each name is in lower case and occurs once.
    pub headers: &'a [(&'a str, &'a str)],
    /// SHA-256 of the body in lower-case hex, as in the header `x-acs-content-sha256`.
    pub content_sha256: &'a str,
}

/// Returns the SHA-256 of a body, in lower-case hex.
pub fn content_sha256(body: &[u8]) -> String {
    hex::encode(Sha256::digest(body))
}

impl Signable<'_> {
    /// Returns the text that is signed: the algorithm and the hash of the canonical request.
    pub fn string_to_sign(&self) -> String {
        let Self { method, path, query, content_sha256, .. } = self;
        let mut headers = String::new();
        for (name, value) in self.sorted_headers() {
            headers.push_str(&format!("{name}:{}\n", value.trim()));
        }
        let query = canonical_string(query.iter().copied());
        let names = self.signed_headers();
        let canonical = zeroize::Zeroizing::new(format!(
            "{method}\n{path}\n{query}\n{headers}\n{names}\n{content_sha256}"
        ));
        format!("{ALGORITHM}\n{}", hex::encode(Sha256::digest(canonical.as_bytes())))
    }

    /// Returns the value of `Authorization`.
    pub fn authorization(&self, access_key_id: &str, access_key_secret: &str) -> String {
        let signature = sign(&self.string_to_sign(), access_key_secret);
        let names = self.signed_headers();
        format!("{ALGORITHM} Credential={access_key_id},SignedHeaders={names},Signature={signature}")
    }

    fn signed_headers(&self) -> String {
        let names: Vec<_> = self.sorted_headers().into_iter().map(|(name, _)| name).collect();
        names.join(";")
    }

    fn sorted_headers(&self) -> Vec<(&str, &str)> {
        let mut headers = self.headers.to_vec();
        headers.sort_unstable();
        headers
    }
}

/// Returns the HMAC-SHA256 of a string to sign, in lower-case hex. The HMAC key is the secret of
/// the access key, without the `&` that version 1 appends.
pub fn sign(string_to_sign: &str, access_key_secret: &str) -> String {
    let key = access_key_secret.as_bytes();
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes a key of any length");
    mac.update(string_to_sign.as_bytes());
    hex::encode(mac.finalize().into_bytes())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde::Deserialize;

    use super::*;

    /// A test case that was computed with alibabacloud-openapi-util 0.2.4 from PyPI.
    /// alibabacloud-tea-openapi 0.4.6 gives the same result.
    #[derive(Deserialize)]
    struct Vector {
        method: String,
        access_key_id: String,
        access_key_secret: String,
        parameters: BTreeMap<String, String>,
        headers: BTreeMap<String, String>,
        body: String,
        string_to_sign: String,
        signature: String,
        authorization: String,
    }

    fn vectors() -> Vec<Vector> {
        let vectors: Vec<Vector> =
            serde_json::from_str(include_str!("../../tests/data/signing-vectors-v3.json")).unwrap();
        assert!(!vectors.is_empty());
        vectors
    }

    /// Returns the pairs in reverse order, so that the tests fail if the pairs are not sorted
    /// before signing.
    fn pairs(map: &BTreeMap<String, String>) -> Vec<(&str, &str)> {
        map.iter().rev().map(|(name, value)| (name.as_str(), value.as_str())).collect()
    }

    #[test]
    fn a_request_is_signed_as_the_official_sdk_signs_it() {
        for vector in vectors() {
            let (query, headers) = (pairs(&vector.parameters), pairs(&vector.headers));
            let hash = content_sha256(vector.body.as_bytes());
            assert_eq!(hash, vector.headers["x-acs-content-sha256"]);
            let signable = Signable {
                method: &vector.method,
                path: "/",
                query: &query,
                headers: &headers,
                content_sha256: &hash,
            };
            assert_eq!(signable.string_to_sign(), vector.string_to_sign);
            assert_eq!(sign(&vector.string_to_sign, &vector.access_key_secret), vector.signature);
            let authorization = signable.authorization(&vector.access_key_id, &vector.access_key_secret);
            assert_eq!(authorization, vector.authorization);
        }
    }

    #[test]
    fn a_security_token_is_signed_too() {
        let signed =
            vectors().into_iter().filter(|vector| vector.headers.contains_key("x-acs-security-token"));
        let signed: Vec<_> = signed.collect();
        assert!(!signed.is_empty());
        for vector in signed {
            assert!(vector.authorization.contains(";x-acs-security-token;"), "{}", vector.authorization);
        }
    }
}
