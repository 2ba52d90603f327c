//! Signatures of Tablestore. The client signs requests with version 2 (HMAC-SHA1), and verifies the
//! signatures of answers. The stand-in does the reverse. It also verifies version 4 (HMAC-SHA256 under
//! a key that changes every day), which newer SDKs use if they know the region. No I/O, no clock.

use base64::{Engine, engine::general_purpose::STANDARD};
use hmac::{Hmac, KeyInit, Mac};
use md5::{Digest, Md5};
use sha1::Sha1;
#[cfg(any(test, feature = "simulation"))]
use {sha2::Sha256, zeroize::Zeroizing};

/// Header with the signature of a request.
pub const SIGNATURE: &str = "x-ots-signature";
/// Header with the signature of a request, version 4.
#[cfg(any(test, feature = "simulation"))]
pub const SIGNATURE_V4: &str = "x-ots-signaturev4";
/// Beginning of the names of signed headers.
const SIGNED: &str = "x-ots-";

/// Returns the value of `x-ots-contentmd5` for a body.
pub fn content_md5(body: &[u8]) -> String {
    STANDARD.encode(Md5::digest(body))
}

/// Returns the headers that are signed: all whose names begin with `x-ots-`, except the signatures.
/// Each is a line `name:value`, with the name in lower case and the value trimmed. The lines are
/// sorted, and the last one has no line feed.
fn canonical<'a>(headers: impl IntoIterator<Item = (&'a str, &'a str)>) -> String {
    let headers = headers.into_iter().map(|(name, value)| (name.to_ascii_lowercase(), value.trim()));
    let is_signed = |name: &str| name.starts_with(SIGNED) && name != SIGNATURE && name != "x-ots-signaturev4";
    let mut headers: Vec<_> = headers.filter(|(name, _)| is_signed(name)).collect();
    headers.sort_unstable();
    let lines: Vec<_> = headers.iter().map(|(name, value)| format!("{name}:{value}")).collect();
    lines.join("\n")
}

/// Returns the text that is signed for a request, with version 2.
pub fn request_text<'a>(operation: &str, headers: impl IntoIterator<Item = (&'a str, &'a str)>) -> String {
    format!("/{operation}\nPOST\n\n{}\n", canonical(headers))
}

/// Returns the text that is signed for an answer.
pub fn answer_text<'a>(operation: &str, headers: impl IntoIterator<Item = (&'a str, &'a str)>) -> String {
    format!("{}\n/{operation}", canonical(headers))
}

/// Returns the signature of a text: Base64 of its HMAC-SHA1 under the secret of the access key.
pub fn sign(text: &str, secret: &str) -> String {
    let mut mac = Hmac::<Sha1>::new_from_slice(secret.as_bytes()).expect("HMAC takes a key of any length");
    mac.update(text.as_bytes());
    STANDARD.encode(mac.finalize().into_bytes())
}

/// Returns whether `signature` is the result of [`sign`]. Compares in constant time.
pub fn verify(text: &str, secret: &str, signature: &str) -> bool {
    is_same(&sign(text, secret), signature)
}

fn is_same(expected: &str, found: &str) -> bool {
    use subtle::ConstantTimeEq as _;
    expected.as_bytes().ct_eq(found.as_bytes()).into()
}

/// Returns the key of version 4 for a day (`YYYYMMDD`) and a region: a text in Base64, which is used
/// as it is.
#[cfg(any(test, feature = "simulation"))]
pub fn key_v4(secret: &str, day: &str, region: &str) -> Zeroizing<String> {
    let mut key = Zeroizing::new(format!("aliyun_v4{secret}").into_bytes());
    for part in [day, region, "ots", "aliyun_v4_request"] {
        key = Zeroizing::new(mac_sha256(&key, part.as_bytes()));
    }
    Zeroizing::new(STANDARD.encode(&*key))
}

/// Returns whether a signature of version 4 fits a request. `key` is that of [`key_v4`].
#[cfg(any(test, feature = "simulation"))]
pub fn verify_v4<'a>(
    operation: &str,
    headers: impl IntoIterator<Item = (&'a str, &'a str)>,
    key: &str,
    signature: &str,
) -> bool {
    let text = format!("{}ots", request_text(operation, headers));
    is_same(&STANDARD.encode(mac_sha256(key.as_bytes(), text.as_bytes())), signature)
}

#[cfg(any(test, feature = "simulation"))]
fn mac_sha256(key: &[u8], text: &[u8]) -> Vec<u8> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes a key of any length");
    mac.update(text);
    mac.finalize().into_bytes().to_vec()
}
