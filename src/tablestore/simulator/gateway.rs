//! The stand-in's checks before an operation: method, headers, clock, access key, signature and
//! body. It accepts what the official SDKs send: any set of signed headers, dates with any number of
//! fraction digits, and both versions of the signature.

use axum::http::{HeaderMap, Method};
use zeroize::Zeroizing;

use super::{Operation, Refusal};
use crate::{
    device::Secret,
    tablestore::{
        exchange::{API_VERSION, CLOCK_WINDOW, parse_date},
        signature::{self, SIGNATURE, SIGNATURE_V4},
    },
};

/// Account and instance that the stand-in has.
#[derive(Debug, Clone)]
pub(super) struct Account {
    pub instance: String,
    pub access_key_id: String,
    pub access_key_secret: Secret,
    /// Token that each request must have, as with temporary credentials.
    pub security_token: Option<Secret>,
}

/// A request that passed the checks.
#[derive(Debug)]
pub(super) struct Admitted {
    pub operation: Operation,
    /// Key under which the answer is signed.
    pub key: Zeroizing<String>,
}

impl Account {
    /// Checks a request. `path` is without the slash, and `now` is in milliseconds since 1970.
    ///
    /// # Errors
    ///
    /// Returns the refusal of the first check that fails.
    pub fn admit(
        &self,
        method: &Method,
        path: &str,
        headers: &HeaderMap,
        body: &[u8],
        now: i64,
    ) -> Result<Admitted, Refusal> {
        if method != Method::POST {
            return Err(Refusal::new(
                405,
                "OTSMethodNotAllowed",
                "Only POST method for requests is supported.",
            ));
        }
        let operation = Operation::named(path).ok_or_else(|| {
            Refusal::new(400, "OTSUnsupportedOperation", format!("Unsupported operation: '{path}'."))
        })?;
        let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let needed = |name: &str| {
            header(name)
                .ok_or_else(|| Refusal::new(400, "OTSMissingHeader", format!("Missing header: '{name}'.")))
        };
        let refused = |message: &str| Err(Refusal::new(403, "OTSAuthFailed", message));
        if needed("x-ots-apiversion")? != API_VERSION {
            return Err(Refusal::invalid("Invalid API version."));
        }
        let date = needed("x-ots-date")?;
        let Some(sent) = parse_date(date) else {
            return Err(Refusal::invalid(format!("Invalid date format: {date}.")));
        };
        if sent.abs_diff(now) > CLOCK_WINDOW * 1000 {
            return refused(&format!("Mismatch between system time and x-ots-date: {date}."));
        }
        if needed("x-ots-accesskeyid")? != self.access_key_id {
            return refused("The AccessKeyID does not exist.");
        }
        if header("x-ots-ststoken") != self.security_token.as_ref().map(Secret::expose) {
            return refused("The security token is invalid or has expired.");
        }
        let key = self.verify(operation, headers, &needed)?;
        if needed("x-ots-instancename")? != self.instance {
            return refused("The instance is not found.");
        }
        if needed("x-ots-contentmd5")? != signature::content_md5(body) {
            return refused("Mismatch between MD5 value of request body and x-ots-contentmd5 in header.");
        }
        if header("x-ots-request-compress-type").is_some() {
            return Err(Refusal::not_supported("compressed requests"));
        }
        Ok(Admitted { operation, key })
    }

    /// Verifies the signature. Returns the key under which the answer is signed.
    fn verify<'h>(
        &self,
        operation: Operation,
        headers: &'h HeaderMap,
        needed: &impl Fn(&str) -> Result<&'h str, Refusal>,
    ) -> Result<Zeroizing<String>, Refusal> {
        let signed = headers.iter().filter_map(|(name, value)| Some((name.as_str(), value.to_str().ok()?)));
        let secret = self.access_key_secret.expose();
        let (is_right, key) = if headers.contains_key(SIGNATURE_V4) {
            let key = signature::key_v4(secret, needed("x-ots-signdate")?, needed("x-ots-signregion")?);
            (signature::verify_v4(operation.name(), signed, &key, needed(SIGNATURE_V4)?), key)
        } else {
            let text = signature::request_text(operation.name(), signed);
            (signature::verify(&text, secret, needed(SIGNATURE)?), Zeroizing::new(secret.to_owned()))
        };
        match is_right {
            true => Ok(key),
            false => Err(Refusal::new(403, "OTSAuthFailed", "Signature mismatch.")),
        }
    }
}

#[cfg(test)]
mod tests {
    use axum::http::{HeaderName, HeaderValue};

    use super::*;
    use crate::tablestore::tests::file;

    fn account() -> Account {
        let text = |name: &str| file()[name].as_str().unwrap().to_owned();
        Account {
            instance: text("instance"),
            access_key_id: text("access_key_id"),
            access_key_secret: Secret::new(text("access_key_secret")),
            security_token: None,
        }
    }

    fn now() -> i64 {
        parse_date(file()["date"].as_str().unwrap()).unwrap()
    }

    /// Returns path, headers and body of a request of the SDK for Python.
    fn request(name: &str) -> (String, HeaderMap, Vec<u8>) {
        let vector =
            file()["vectors"].as_array().unwrap().iter().find(|vector| vector["name"] == name).unwrap();
        let request = &vector["request"];
        let text = |name: &str| request[name].as_str().unwrap();
        let mut headers = HeaderMap::new();
        let signature = (text("signature_header"), text("signature"));
        let others = request["headers"].as_object().unwrap();
        let others = others.iter().map(|(name, value)| (name.as_str(), value.as_str().unwrap()));
        for (name, value) in others.chain([signature]) {
            let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
            headers.insert(name, HeaderValue::from_str(value).unwrap());
        }
        (text("path")[1..].to_owned(), headers, hex::decode(text("body")).unwrap())
    }

    fn code(account: &Account, (path, headers, body): &(String, HeaderMap, Vec<u8>)) -> &'static str {
        let admitted = account.admit(&Method::POST, path, headers, body, now());
        admitted.err().map_or("admitted", |refusal| refusal.code)
    }

    #[test]
    fn requests_of_the_sdk_are_admitted_with_either_version_of_the_signature() {
        for name in ["create_table", "list_table", "get_row_found", "batch_write_row", "get_row_v4"] {
            assert_eq!(code(&account(), &request(name)), "admitted", "{name}");
        }
        let token = file()["sts_token"].as_str().unwrap().to_owned();
        let temporary = Account { security_token: Some(Secret::new(token)), ..account() };
        assert_eq!(code(&temporary, &request("get_row_sts")), "admitted");
        assert_eq!(code(&temporary, &request("get_row_found")), "OTSAuthFailed");
        assert_eq!(code(&account(), &request("get_row_sts")), "OTSAuthFailed");
    }

    #[test]
    fn each_change_of_a_signed_request_is_refused() {
        for name in ["get_row_found", "get_row_v4"] {
            let whole = request(name);
            let names: Vec<_> = whole.1.keys().cloned().collect();
            for header in names {
                let mut missing = whole.clone();
                missing.1.remove(&header);
                assert_ne!(code(&account(), &missing), "admitted", "{name} {header}");
                let mut changed = whole.clone();
                let value = changed.1.get_mut(&header).unwrap();
                *value = HeaderValue::from_str(&format!("{}x", value.to_str().unwrap())).unwrap();
                assert_ne!(code(&account(), &changed), "admitted", "{name} {header}");
            }
            let mut added = whole.clone();
            added.1.insert("x-ots-request-tag", HeaderValue::from_static("mine"));
            assert_eq!(code(&account(), &added), "OTSAuthFailed", "{name}");
            let mut body = whole.clone();
            body.2[0] ^= 1;
            assert_eq!(code(&account(), &body), "OTSAuthFailed", "{name}");
            let mut path = whole.clone();
            path.0 = "DeleteRow".into();
            assert_eq!(code(&account(), &path), "OTSAuthFailed", "{name}");
        }
    }

    #[test]
    fn method_operation_clock_and_instance_are_checked() {
        let (path, headers, body) = request("get_row_found");
        let admit = |method: &Method, path: &str, account: &Account, now: i64| {
            account.admit(method, path, &headers, &body, now).unwrap_err().code
        };
        assert_eq!(admit(&Method::GET, &path, &account(), now()), "OTSMethodNotAllowed");
        assert_eq!(admit(&Method::POST, "Search", &account(), now()), "OTSUnsupportedOperation");
        let window = i64::try_from(CLOCK_WINDOW).unwrap() * 1000;
        assert_eq!(admit(&Method::POST, &path, &account(), now() + window + 1), "OTSAuthFailed");
        assert!(account().admit(&Method::POST, &path, &headers, &body, now() - window).is_ok());
        let other = Account { instance: "other".into(), ..account() };
        assert_eq!(admit(&Method::POST, &path, &other, now()), "OTSAuthFailed");
    }
}
