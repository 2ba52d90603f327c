//! Builds the signed request of a call, in the signature version that the operator has chosen. This
//! module performs no I/O: nonce and time are arguments.

use reqwest::{
    Url,
    header::{self, HeaderMap, HeaderName, HeaderValue},
};

use super::{
    API_VERSION,
    credentials::Credentials,
    signature,
    signature_v3::{self, Signable},
};

/// Maximum length of an encoded query, in bytes. Gateways refuse long request lines.
const MAX_QUERY: usize = 2048;
/// `Content-Type` of a form.
const FORM: &str = "application/x-www-form-urlencoded";

/// Version of the signature of the calls.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum SignatureVersion {
    /// `SignatureVersion=1.0` with HMAC-SHA1. All parameters and the signature are in a form.
    #[default]
    V1,
    /// `ACS3-HMAC-SHA256`. The signature and the common parameters are in headers.
    V3,
}

/// An action with its parameters, and the time and destination of the call.
pub(super) struct Call<'a> {
    pub endpoint: &'a Url,
    pub action: &'a str,
    pub parameters: &'a [(&'a str, &'a str)],
    pub region: &'a str,
    /// Empty for the public instance without an ID.
    pub instance_id: &'a str,
    /// A value that no other call has used.
    pub nonce: &'a str,
    /// `YYYY-MM-DDThh:mm:ssZ`.
    pub timestamp: &'a str,
}

/// A signed POST request.
pub(super) struct Signed {
    pub url: Url,
    pub headers: HeaderMap,
    pub body: String,
}

impl Call<'_> {
    /// Signs the call with these credentials.
    ///
    /// # Errors
    ///
    /// Fails if version 3 is used and a credential has a control character or a non-ASCII
    /// character, which a header cannot contain.
    pub fn sign(&self, version: SignatureVersion, credentials: &Credentials) -> Result<Signed, &'static str> {
        match version {
            SignatureVersion::V1 => Ok(self.sign_v1(credentials)),
            SignatureVersion::V3 => self.sign_v3(credentials),
        }
    }

    fn sign_v1(&self, credentials: &Credentials) -> Signed {
        let mut all = vec![
            ("Action", self.action),
            ("Format", "JSON"),
            ("Version", API_VERSION),
            ("AccessKeyId", credentials.access_key_id.as_str()),
            ("SignatureMethod", "HMAC-SHA1"),
            ("SignatureVersion", "1.0"),
            // The official SDK also sends this parameter with an empty value.
            ("SignatureType", ""),
            ("SignatureNonce", self.nonce),
            ("Timestamp", self.timestamp),
        ];
        if let Some(token) = &credentials.security_token {
            all.push(("SecurityToken", token.expose()));
        }
        all.extend(self.own_parameters());
        let text = signature::string_to_sign("POST", all.iter().copied());
        let signature = signature::sign(&text, credentials.access_key_secret.expose());
        all.push((signature::SIGNATURE, &signature));
        let headers = HeaderMap::from_iter([
            (header::CONTENT_TYPE, HeaderValue::from_static(FORM)),
            (header::ACCEPT, HeaderValue::from_static("application/json")),
        ]);
        Signed { url: self.endpoint.clone(), headers, body: signature::form_encode(all) }
    }

    /// Signs with version 3. The parameters go into the query, as in the official SDK for IoT
    /// Platform. If they are too long for a query, they go into a form.
    fn sign_v3(&self, credentials: &Credentials) -> Result<Signed, &'static str> {
        let parameters = self.own_parameters();
        let encoded = signature::form_encode(parameters.iter().copied());
        let in_query = encoded.len() <= MAX_QUERY;
        let mut url = self.endpoint.clone();
        let (query, body) = if in_query {
            url.set_query(Some(&encoded));
            (parameters.as_slice(), String::new())
        } else {
            (&[][..], encoded)
        };

        let content_sha256 = signature_v3::content_sha256(body.as_bytes());
        let host = host(self.endpoint);
        let mut signed = vec![
            ("host", host.as_str()),
            ("x-acs-action", self.action),
            ("x-acs-version", API_VERSION),
            ("x-acs-date", self.timestamp),
            ("x-acs-signature-nonce", self.nonce),
            ("x-acs-content-sha256", content_sha256.as_str()),
        ];
        if !in_query {
            signed.push(("content-type", FORM));
        }
        if let Some(token) = &credentials.security_token {
            signed.push(("x-acs-accesskey-id", &credentials.access_key_id));
            signed.push(("x-acs-security-token", token.expose()));
        }
        let signable = Signable {
            method: "POST",
            path: self.endpoint.path(),
            query,
            headers: &signed,
            content_sha256: &content_sha256,
        };
        let authorization =
            signable.authorization(&credentials.access_key_id, credentials.access_key_secret.expose());

        let mut headers = HeaderMap::new();
        headers.insert(header::ACCEPT, HeaderValue::from_static("application/json"));
        let authorization = [("authorization", authorization.as_str())];
        for (name, value) in signed.iter().chain(&authorization) {
            let mut value = HeaderValue::from_str(value).map_err(|_| {
                "the access key or its token has a character that a header cannot hold; it was probably not \
                 copied completely"
            })?;
            value.set_sensitive(true);
            headers.insert(HeaderName::from_bytes(name.as_bytes()).expect("a valid header name"), value);
        }
        Ok(Signed { url, headers, body })
    }

    /// Returns the action's parameters, together with the region and the instance.
    fn own_parameters(&self) -> Vec<(&str, &str)> {
        let mut parameters = vec![("RegionId", self.region)];
        if !self.instance_id.is_empty() {
            parameters.push(("IotInstanceId", self.instance_id));
        }
        parameters.extend_from_slice(self.parameters);
        parameters
    }
}

/// Returns the value of the header `Host`, without the scheme's default port.
fn host(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    match url.port() {
        Some(port) => format!("{host}:{port}"),
        None => host.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Secret;

    fn credentials() -> Credentials {
        Credentials {
            access_key_id: "testid".into(),
            access_key_secret: Secret::new("testsecret".into()),
            security_token: Some(Secret::new("token+/=".into())),
        }
    }

    fn sign(version: SignatureVersion, instance_id: &str, parameters: &[(&str, &str)]) -> Signed {
        let call = Call {
            endpoint: &Url::parse("https://iot.cn-shanghai.aliyuncs.com:443").unwrap(),
            action: "RegisterDevice",
            parameters,
            region: "cn-shanghai",
            instance_id,
            nonce: "1",
            timestamp: "2016-02-23T12:46:24Z",
        };
        call.sign(version, &credentials()).unwrap()
    }

    #[test]
    fn a_form_has_the_common_parameters_once_and_an_instance_only_when_there_is_one() {
        let parameters = [("ProductKey", "a1"), ("DeviceName", "SN 1")];
        let form = sign(SignatureVersion::V1, "", &parameters).body;
        for part in [
            "Action=RegisterDevice&",
            "&Version=2018-01-20&",
            "&Format=JSON&",
            "&SignatureType=&",
            "&RegionId=cn-shanghai&",
            "&SecurityToken=token%2B%2F%3D&",
            "&DeviceName=SN%201&",
            "&Signature=",
        ] {
            assert_eq!(form.matches(part).count(), 1, "{part} in {form}");
        }
        assert!(!form.contains("IotInstanceId"));
        let form = sign(SignatureVersion::V1, "iot-060a02m5", &[]).body;
        assert!(form.contains("&IotInstanceId=iot-060a02m5&"));
    }

    #[test]
    fn version_3_has_parameters_in_the_query_and_everything_else_in_signed_headers() {
        let Signed { url, headers, body } =
            sign(SignatureVersion::V3, "iot-060a02m5", &[("ProductKey", "a1"), ("DeviceName", "SN 1*~")]);
        let query = "RegionId=cn-shanghai&IotInstanceId=iot-060a02m5&ProductKey=a1&DeviceName=SN%201%2A~";
        assert_eq!((url.query(), body.as_str()), (Some(query), ""));
        assert_eq!(headers["host"], "iot.cn-shanghai.aliyuncs.com");
        assert_eq!(headers["x-acs-security-token"], "token+/=");
        let names = "host;x-acs-accesskey-id;x-acs-action;x-acs-content-sha256;x-acs-date;\
                     x-acs-security-token;x-acs-signature-nonce;x-acs-version";
        let authorization = headers["authorization"].to_str().unwrap();
        assert!(authorization.contains(&format!("Credential=testid,SignedHeaders={names},Signature=")));
        let printed = format!("{headers:?}");
        assert!(!printed.contains("token+") && !printed.contains("testid"), "{printed}");
    }

    #[test]
    fn version_3_sends_parameters_too_long_for_a_query_in_a_signed_form() {
        let name = "x".repeat(MAX_QUERY);
        let Signed { url, headers, body } = sign(SignatureVersion::V3, "", &[("DeviceName.1", &name)]);
        assert_eq!((url.query(), headers["content-type"].to_str().unwrap()), (None, FORM));
        assert_eq!(body, format!("RegionId=cn-shanghai&DeviceName.1={name}"));
        let authorization = headers["authorization"].to_str().unwrap();
        assert!(authorization.contains("SignedHeaders=content-type;host;"), "{authorization}");
    }

    #[test]
    fn a_credential_that_no_header_takes_is_refused_without_being_repeated() {
        let call = Call {
            endpoint: &Url::parse("http://127.0.0.1:1").unwrap(),
            action: "RegisterDevice",
            parameters: &[],
            region: "cn-shanghai",
            instance_id: "",
            nonce: "1",
            timestamp: "2016-02-23T12:46:24Z",
        };
        let broken = Credentials { security_token: Some(Secret::new("two\nlines".into())), ..credentials() };
        let error = call.sign(SignatureVersion::V3, &broken).err().unwrap();
        assert!(error.contains("not copied completely"), "{error}");
    }
}
