//! The gateway in front of every action. It checks common parameters, access key, time stamp,
//! signature and nonce, in that order, and refuses a call with the real gateway's codes. It accepts
//! both versions of the signature: the older official SDKs send version 1, and the newer SDKs send
//! version 3. The caller passes the current time.

use std::collections::{HashSet, VecDeque};

use axum::http::Method;
use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::{
    Action,
    request::{HttpRequest, Parameters, Refusal},
};
use crate::{
    device::Secret,
    iot_platform::{
        API_VERSION,
        signature::{self, canonical_string, string_to_sign},
    },
};

/// Maximum difference between a time stamp and the clock, in seconds, in either direction.
const WINDOW: i64 = 15 * 60;
/// Maximum number of remembered nonces. At the maximum, a new nonce replaces the oldest.
const MAX_NONCES: usize = 200_000;
/// Maximum length of a nonce, in bytes.
const MAX_NONCE: usize = 128;
/// Name of version 3 in the header `Authorization`.
const ACS3: &str = "ACS3-HMAC-SHA256";

/// The gateway of one account with one access key.
pub(super) struct Gateway {
    access_key_id: String,
    access_key_secret: Secret,
    nonces: Nonces,
}

/// Parameters that a call has in both versions of the signature.
struct Common<'a> {
    action: &'a str,
    version: &'a str,
    access_key_id: &'a str,
    timestamp: &'a str,
    nonce: &'a str,
}

impl Gateway {
    pub fn new(access_key_id: String, access_key_secret: Secret) -> Self {
        Self { access_key_id, access_key_secret, nonces: Nonces::default() }
    }

    /// Checks a call, and returns the action that it asks for.
    ///
    /// `now` is in seconds since 1970.
    pub fn admit(
        &mut self,
        request: &HttpRequest,
        parameters: &Parameters,
        now: i64,
    ) -> Result<Action, Refusal> {
        if request.method != Method::GET && request.method != Method::POST {
            return Err(Refusal::new(405, "UnsupportedHTTPMethod", "This http method is not supported."));
        }
        if parameters.get("Format").is_some_and(|format| !format.eq_ignore_ascii_case("JSON")) {
            return Err(Refusal::new(400, "InvalidParameter.Format", "The simulator answers in JSON only."));
        }
        let authorization = request.header("authorization").filter(|value| value.starts_with(ACS3));
        let action = match authorization {
            Some(authorization) => {
                let common = common_of_headers(request, authorization)?;
                let action = self.check_common(&common, now)?;
                self.check_version_3(request, authorization)?;
                self.use_nonce(common.nonce, now)?;
                action
            }
            None => {
                let common = common_of_parameters(parameters)?;
                let action = self.check_common(&common, now)?;
                self.check_version_1(request, parameters)?;
                self.use_nonce(common.nonce, now)?;
                action
            }
        };
        Ok(action)
    }

    fn check_common(&self, common: &Common<'_>, now: i64) -> Result<Action, Refusal> {
        let Some(action) = Action::named(common.action) else {
            let message = "Specified api is not found, please check your url and method.";
            return Err(Refusal::new(404, "InvalidAction.NotFound", message));
        };
        if common.version != API_VERSION {
            return Err(Refusal::new(400, "InvalidVersion", "Specified parameter Version is not valid."));
        }
        if common.access_key_id != self.access_key_id {
            let message = "Specified access key is not found.";
            return Err(Refusal::new(404, "InvalidAccessKeyId.NotFound", message));
        }
        let Some(timestamp) = read_timestamp(common.timestamp) else {
            let message = "Specified time stamp or date value is not well formatted.";
            return Err(Refusal::new(400, "InvalidTimeStamp.Format", message));
        };
        if (timestamp - now).abs() > WINDOW {
            let message = "Specified time stamp or date value is expired.";
            return Err(Refusal::new(400, "InvalidTimeStamp.Expired", message));
        }
        Ok(action)
    }

    /// Checks a signature of `SignatureVersion=1.0`, which covers all parameters.
    fn check_version_1(&self, request: &HttpRequest, parameters: &Parameters) -> Result<(), Refusal> {
        if parameters.required("SignatureMethod")? != "HMAC-SHA1" {
            let message = "Specified parameter SignatureMethod is not valid.";
            return Err(Refusal::new(400, "InvalidParameter.SignatureMethod", message));
        }
        if parameters.required("SignatureVersion")? != "1.0" {
            let message = "Specified parameter SignatureVersion is not valid.";
            return Err(Refusal::new(400, "InvalidParameter.SignatureVersion", message));
        }
        let given = parameters.required(signature::SIGNATURE)?;
        let expected = string_to_sign(request.method.as_str(), parameters.iter());
        match signature::verify(&expected, self.access_key_secret.expose(), given) {
            true => Ok(()),
            false => Err(mismatch(&expected)),
        }
    }

    /// Checks a signature of `ACS3-HMAC-SHA256`, which covers the method, the query, the headers
    /// that it lists, and the body's hash.
    fn check_version_3(&self, request: &HttpRequest, authorization: &str) -> Result<(), Refusal> {
        let names = authorization_field(authorization, "SignedHeaders")?;
        // These headers must be signed, because they could otherwise be changed in transit.
        let must = [
            "host",
            "x-acs-action",
            "x-acs-content-sha256",
            "x-acs-date",
            "x-acs-signature-nonce",
            "x-acs-version",
        ];
        if let Some(name) = must.iter().find(|name| !names.split(';').any(|signed| signed == **name)) {
            return Err(incomplete(name));
        }
        let hash = hex::encode(Sha256::digest(&request.body));
        if request.header("x-acs-content-sha256") != Some(&hash) {
            return Err(mismatch(&hash));
        }
        let mut query = Parameters::default();
        query.read_form(request.query.as_bytes())?;
        let mut headers = String::new();
        for name in names.split(';') {
            let value = request.header(name).ok_or_else(|| incomplete(name))?;
            headers.push_str(&format!("{name}:{}\n", value.trim()));
        }
        let canonical =
            format!("{}\n/\n{}\n{headers}\n{names}\n{hash}", request.method, canonical_string(query.iter()));
        let expected = format!("{ACS3}\n{}", hex::encode(Sha256::digest(canonical.as_bytes())));

        let secret = self.access_key_secret.expose().as_bytes();
        let mut mac = Hmac::<Sha256>::new_from_slice(secret).expect("HMAC takes a key of any length");
        mac.update(expected.as_bytes());
        let right = hex::encode(mac.finalize().into_bytes());
        let given = authorization_field(authorization, "Signature")?;
        match bool::from(right.as_bytes().ct_eq(given.as_bytes())) {
            true => Ok(()),
            false => Err(mismatch(&expected)),
        }
    }

    /// Marks a nonce as used. Called after the signature was checked, so that only the owner of the
    /// access key can use up a nonce.
    fn use_nonce(&mut self, nonce: &str, now: i64) -> Result<(), Refusal> {
        if nonce.len() > MAX_NONCE {
            let message = "Specified parameter SignatureNonce is not valid.";
            return Err(Refusal::new(400, "InvalidParameter.SignatureNonce", message));
        }
        match self.nonces.insert(nonce, now) {
            true => Ok(()),
            false => {
                let message = "Specified signature nonce was used already.";
                Err(Refusal::new(400, "SignatureNonceUsed", message))
            }
        }
    }
}

fn common_of_parameters(parameters: &Parameters) -> Result<Common<'_>, Refusal> {
    Ok(Common {
        action: parameters.required("Action")?,
        version: parameters.required("Version")?,
        access_key_id: parameters.required("AccessKeyId")?,
        timestamp: parameters.required("Timestamp")?,
        nonce: parameters.required("SignatureNonce")?,
    })
}

fn common_of_headers<'a>(request: &'a HttpRequest, authorization: &'a str) -> Result<Common<'a>, Refusal> {
    let header = |name: &str| request.header(name).ok_or_else(|| incomplete(name));
    Ok(Common {
        action: header("x-acs-action")?,
        version: header("x-acs-version")?,
        access_key_id: authorization_field(authorization, "Credential")?,
        timestamp: header("x-acs-date")?,
        nonce: header("x-acs-signature-nonce")?,
    })
}

/// Returns a field of the header `ACS3-HMAC-SHA256 Credential=…,SignedHeaders=…,Signature=…`.
fn authorization_field<'a>(authorization: &'a str, name: &str) -> Result<&'a str, Refusal> {
    let fields = authorization.strip_prefix(ACS3).unwrap_or_default().split(',');
    fields
        .filter_map(|field| field.trim().split_once('='))
        .find_map(|(field, value)| (field == name).then_some(value))
        .ok_or_else(|| incomplete(name))
}

fn incomplete(name: &str) -> Refusal {
    let message = format!("The request signature does not conform to Aliyun standards: {name} is missing.");
    Refusal::new(400, "IncompleteSignature", message)
}

/// Makes the refusal of a wrong signature. The SDKs compare the text after the colon with the
/// text that they signed, to distinguish a wrong secret from a wrong request.
fn mismatch(expected: &str) -> Refusal {
    let message = format!(
        "Specified signature is not matched with our calculation. server string to sign is:{expected}"
    );
    Refusal::new(400, "SignatureDoesNotMatch", message)
}

/// Parses `YYYY-MM-DDThh:mm:ssZ`, and no other form, into seconds since 1970.
fn read_timestamp(text: &str) -> Option<i64> {
    let instant: jiff::Timestamp = text.parse().ok()?;
    (instant.to_string() == text).then(|| instant.as_second())
}

/// Nonces of earlier calls whose time stamps may still be valid.
#[derive(Default)]
struct Nonces {
    known: HashSet<[u8; 16]>,
    /// The nonces of `known` in order of arrival, each with the time of its arrival in seconds
    /// since 1970.
    order: VecDeque<(i64, [u8; 16])>,
}

impl Nonces {
    /// Adds a nonce. Returns whether the nonce is new.
    fn insert(&mut self, nonce: &str, now: i64) -> bool {
        // A nonce may arrive with a time stamp that is `WINDOW` in the future. This time stamp
        // stays valid for twice `WINDOW`.
        while self.order.front().is_some_and(|(arrived, _)| now - arrived > 2 * WINDOW)
            || self.order.len() >= MAX_NONCES
        {
            if let Some((_, oldest)) = self.order.pop_front() {
                self.known.remove(&oldest);
            }
        }
        let digest = Sha256::digest(nonce.as_bytes());
        let mut key = [0; 16];
        key.copy_from_slice(&digest[..16]);
        let new = self.known.insert(key);
        if new {
            self.order.push_back((now, key));
        }
        new
    }
}

#[cfg(test)]
mod tests {
    use axum::{body::Bytes, http::HeaderMap};

    use super::*;

    /// `2016-02-23T12:46:24Z`
    const NOW: i64 = 1_456_231_584;

    fn gateway() -> Gateway {
        Gateway::new("testid".into(), Secret::new("testsecret".into()))
    }

    fn common() -> Vec<(&'static str, &'static str)> {
        vec![
            ("Action", "RegisterDevice"),
            ("Version", "2018-01-20"),
            ("Format", "JSON"),
            ("AccessKeyId", "testid"),
            ("SignatureMethod", "HMAC-SHA1"),
            ("SignatureVersion", "1.0"),
            ("SignatureNonce", "1"),
            ("Timestamp", "2016-02-23T12:46:24Z"),
            ("RegionId", "cn-shanghai"),
            ("SignatureType", ""),
            ("ProductKey", "a1"),
            ("DeviceName", "SN 1/é*~"),
        ]
    }

    /// Signs a call with the test's secret. All parameters are in the query (GET) or the form
    /// (POST).
    fn call(gateway: &mut Gateway, method: Method, parameters: &[(&str, &str)]) -> Result<Action, Refusal> {
        let text = string_to_sign(method.as_str(), parameters.iter().copied());
        let signature = signature::sign(&text, "testsecret");
        send(gateway, method, parameters, &signature)
    }

    fn send(
        gateway: &mut Gateway,
        method: Method,
        parameters: &[(&str, &str)],
        signature: &str,
    ) -> Result<Action, Refusal> {
        let form =
            signature::form_encode(parameters.iter().copied().chain([(signature::SIGNATURE, signature)]));
        let (query, body) =
            if method == Method::GET { (form, Bytes::new()) } else { (String::new(), form.into()) };
        let request = HttpRequest { method, query, headers: HeaderMap::new(), body };
        let parameters = request.parameters().unwrap();
        gateway.admit(&request, &parameters, NOW)
    }

    fn with(name: &'static str, value: &'static str) -> Vec<(&'static str, &'static str)> {
        let others = common().into_iter().filter(|(other, _)| *other != name);
        others.chain([(name, value)]).collect()
    }

    #[test]
    fn a_signed_call_is_admitted_in_query_and_form() {
        for method in [Method::GET, Method::POST] {
            assert_eq!(call(&mut gateway(), method, &common()).unwrap(), Action::RegisterDevice);
        }
    }

    #[test]
    fn each_common_parameter_is_required() {
        for name in [
            "Action",
            "Version",
            "AccessKeyId",
            "SignatureMethod",
            "SignatureVersion",
            "SignatureNonce",
            "Timestamp",
        ] {
            let error = call(&mut gateway(), Method::POST, &with(name, "")).unwrap_err();
            assert_eq!((error.status, error.code.as_ref()), (400, format!("Missing{name}").as_str()));
        }
        let error = send(&mut gateway(), Method::POST, &common(), "").unwrap_err();
        assert_eq!(error.code, "MissingSignature");
    }

    #[test]
    fn each_wrong_value_is_refused_with_the_gateways_code_and_status() {
        for (name, value, status, code) in [
            ("Action", "DropAll", 404, "InvalidAction.NotFound"),
            ("Version", "2017-04-20", 400, "InvalidVersion"),
            ("Format", "XML", 400, "InvalidParameter.Format"),
            ("AccessKeyId", "other", 404, "InvalidAccessKeyId.NotFound"),
            ("SignatureMethod", "HMAC-SHA256", 400, "InvalidParameter.SignatureMethod"),
            ("SignatureVersion", "2.0", 400, "InvalidParameter.SignatureVersion"),
            ("Timestamp", "2016-02-23 12:46:24", 400, "InvalidTimeStamp.Format"),
            ("Timestamp", "2016-02-23T13:46:24+01:00", 400, "InvalidTimeStamp.Format"),
            ("Timestamp", "2016-02-23T12:31:23Z", 400, "InvalidTimeStamp.Expired"),
            ("Timestamp", "2016-02-23T13:01:25Z", 400, "InvalidTimeStamp.Expired"),
        ] {
            let error = call(&mut gateway(), Method::POST, &with(name, value)).unwrap_err();
            assert_eq!((error.status, error.code.as_ref()), (status, code), "{name}={value}");
        }
        let error = call(&mut gateway(), Method::PUT, &common()).unwrap_err();
        assert_eq!((error.status, error.code.as_ref()), (405, "UnsupportedHTTPMethod"));
    }

    #[test]
    fn the_whole_window_is_admitted() {
        for timestamp in ["2016-02-23T12:31:24Z", "2016-02-23T13:01:24Z"] {
            assert!(call(&mut gateway(), Method::POST, &with("Timestamp", timestamp)).is_ok());
        }
    }

    #[test]
    fn a_changed_parameter_breaks_the_signature_and_does_not_use_up_the_nonce() {
        let mut gateway = gateway();
        let text = string_to_sign("POST", common());
        let signature = signature::sign(&text, "testsecret");
        let error = send(&mut gateway, Method::POST, &with("DeviceName", "other"), &signature).unwrap_err();
        assert_eq!((error.status, error.code.as_ref()), (400, "SignatureDoesNotMatch"));
        assert!(error.message.contains("server string to sign is:POST&%2F&AccessKeyId%3Dtestid"));
        assert!(send(&mut gateway, Method::POST, &common(), &signature).is_ok());
    }

    #[test]
    fn a_nonce_is_used_once() {
        let mut gateway = gateway();
        assert!(call(&mut gateway, Method::POST, &common()).is_ok());
        let error = call(&mut gateway, Method::POST, &common()).unwrap_err();
        assert_eq!((error.status, error.code.as_ref()), (400, "SignatureNonceUsed"));
        assert!(call(&mut gateway, Method::POST, &with("SignatureNonce", "2")).is_ok());
    }

    #[test]
    fn nonces_are_forgotten_when_they_can_no_longer_be_repeated_and_their_number_is_limited() {
        let mut nonces = Nonces::default();
        assert!(nonces.insert("a", NOW));
        assert!(!nonces.insert("a", NOW + 2 * WINDOW));
        assert!(nonces.insert("a", NOW + 2 * WINDOW + 1));
        assert_eq!(nonces.order.len(), 1);
        for count in 0..MAX_NONCES + 10 {
            nonces.insert(&count.to_string(), NOW + 2 * WINDOW + 1);
        }
        assert_eq!((nonces.order.len(), nonces.known.len()), (MAX_NONCES, MAX_NONCES));
    }

    /// Sends a call that the SDK `alibabacloud-iot20180120` signed with version 3 and the secret
    /// `testsecret`. If `changed` is not empty, `value` replaces the value of the header with this
    /// name.
    fn version_3(changed: &str, value: &str) -> Result<Action, Refusal> {
        let empty_hash = hex::encode(Sha256::digest(b""));
        let names = "host;x-acs-action;x-acs-content-sha256;x-acs-date;x-acs-signature-nonce;x-acs-version";
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("host", "127.0.0.1:8086"),
            ("x-acs-action", "RegisterDevice"),
            ("x-acs-content-sha256", empty_hash.as_str()),
            ("x-acs-date", "2016-02-23T12:46:24Z"),
            ("x-acs-signature-nonce", "1"),
            ("x-acs-version", "2018-01-20"),
        ] {
            headers.insert(name, value.parse().unwrap());
        }
        let authorization = format!(
            "{ACS3} Credential=testid,SignedHeaders={names},Signature=580e2af989480a0ad7e2d9041d1fb0f780d3ecf20b4b99b480ba32b6c8e85426"
        );
        headers.insert("authorization", authorization.parse().unwrap());
        if !changed.is_empty() {
            headers.insert(
                axum::http::HeaderName::from_bytes(changed.as_bytes()).unwrap(),
                value.parse().unwrap(),
            );
        }
        let query = "DeviceName=SN%2001%2F%C3%A9%2A~&ProductKey=a1".into();
        let request = HttpRequest { method: Method::POST, query, headers, body: Bytes::new() };
        let parameters = request.parameters().unwrap();
        gateway().admit(&request, &parameters, NOW)
    }

    #[test]
    fn version_3_of_the_newer_sdks_is_admitted_and_verified() {
        assert_eq!(version_3("", "").unwrap(), Action::RegisterDevice);
        for (header, value, code) in [
            ("host", "elsewhere", "SignatureDoesNotMatch"),
            ("x-acs-action", "QueryDeviceDetail", "SignatureDoesNotMatch"),
            ("x-acs-content-sha256", "00", "SignatureDoesNotMatch"),
            ("x-acs-date", "2016-02-23T12:31:23Z", "InvalidTimeStamp.Expired"),
            ("authorization", "ACS3-HMAC-SHA256 Credential=testid", "IncompleteSignature"),
            (
                "authorization",
                "ACS3-HMAC-SHA256 Credential=testid,SignedHeaders=host,Signature=0",
                "IncompleteSignature",
            ),
        ] {
            assert_eq!(version_3(header, value).unwrap_err().code, code, "{header}: {value}");
        }
    }
}
