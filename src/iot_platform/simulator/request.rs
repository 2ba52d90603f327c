//! An incoming call, its parameters, and the gateway's refusal. All data comes from outside and
//! is not trusted.

use std::{borrow::Cow, collections::BTreeMap};

use axum::{
    body::Bytes,
    http::{HeaderMap, Method},
};
use percent_encoding::percent_decode_str;

/// A complete HTTP request.
pub(super) struct HttpRequest {
    pub method: Method,
    pub query: String,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl HttpRequest {
    /// Returns the text of a header. Returns `None` if the header is absent or is not text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    /// Returns the parameters of the query and the form as one list. The official SDKs use the
    /// query, the form, or both.
    pub fn parameters(&self) -> Result<Parameters, Refusal> {
        let mut parameters = Parameters::default();
        parameters.read_form(self.query.as_bytes())?;
        if self.method == Method::POST {
            parameters.read_form(&self.body)?;
        }
        Ok(parameters)
    }
}

/// Parameters by name.
#[derive(Default)]
pub(super) struct Parameters(BTreeMap<String, String>);

impl Parameters {
    /// Parses percent-encoded `name=value` pairs that are separated by `&`, in which `+` stands for
    /// a space.
    pub fn read_form(&mut self, form: &[u8]) -> Result<(), Refusal> {
        let form = std::str::from_utf8(form).map_err(|_| not_a_form())?;
        for pair in form.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            self.0.insert(decoded(name)?, decoded(value)?);
        }
        Ok(())
    }

    /// Returns a parameter if it is present and not empty.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// Returns a required parameter, or a refusal.
    pub fn required(&self, name: &'static str) -> Result<&str, Refusal> {
        self.get(name).ok_or_else(|| Refusal::missing(name))
    }

    /// Returns the values of the numbered parameters `{prefix}1{suffix}`, `{prefix}2{suffix}`,
    /// etc., up to the first missing number.
    pub fn numbered(&self, prefix: &str, suffix: &str) -> impl Iterator<Item = &str> {
        (1..).map_while(move |number| self.0.get(&format!("{prefix}{number}{suffix}")).map(String::as_str))
    }

    /// Iterates over all parameters, including empty parameters, which are also signed.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }
}

fn decoded(text: &str) -> Result<String, Refusal> {
    let spaced = text.replace('+', " ");
    percent_decode_str(&spaced).decode_utf8().map(Cow::into_owned).map_err(|_| not_a_form())
}

fn not_a_form() -> Refusal {
    Refusal::new(400, "InvalidParameter", "The parameters are not UTF-8 text.")
}

/// An error of the gateway: the call is refused before the action is carried out.
#[derive(Debug)]
pub(super) struct Refusal {
    /// HTTP status.
    pub status: u16,
    pub code: Cow<'static, str>,
    pub message: String,
}

impl Refusal {
    pub fn new(status: u16, code: impl Into<Cow<'static, str>>, message: impl Into<String>) -> Self {
        Self { status, code: code.into(), message: message.into() }
    }

    /// Makes the gateway's error for a missing parameter, `Missing…`.
    pub fn missing(name: &str) -> Self {
        Self::new(400, format!("Missing{name}"), format!("{name} is mandatory for this action."))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn query_and_form_are_one_list() {
        let request = HttpRequest {
            method: Method::POST,
            query: "Action=RegisterDevice&SignatureType=".into(),
            headers: HeaderMap::new(),
            body: Bytes::from_static(b"Nickname=%E7%81%AF+1%2B&&DeviceName=a%3Ab"),
        };
        let parameters = request.parameters().unwrap();
        assert_eq!(parameters.get("Action"), Some("RegisterDevice"));
        assert_eq!(parameters.get("Nickname"), Some("灯 1+"));
        assert_eq!(parameters.get("DeviceName"), Some("a:b"));
        assert_eq!(parameters.get("SignatureType"), None);
        assert_eq!(parameters.iter().count(), 4);
        assert_eq!(parameters.required("ProductKey").unwrap_err().code, "MissingProductKey");
    }

    #[test]
    fn a_list_ends_where_a_number_is_missing() {
        let mut parameters = Parameters::default();
        parameters.read_form(b"N.1=a&N.2=&N.4=d&N.10=e").unwrap();
        assert_eq!(parameters.numbered("N.", "").collect::<Vec<_>>(), ["a", ""]);
        assert_eq!(parameters.numbered("M.", "").count(), 0);
    }

    #[test]
    fn parameters_that_are_not_text_are_refused() {
        for form in [&b"a=%ff"[..], b"\xff=1"] {
            assert!(Parameters::default().read_form(form).is_err());
        }
    }
}
