//! One request and one answer of Tablestore as headers and bytes: the headers of a request, and the
//! checks by which an answer counts as the service's own. Performs no I/O; the time is an argument.

use prost::Message;

use super::{
    Class, Error, Operation,
    failure::{NOT_AN_ANSWER, classify},
    message, signature,
};
use crate::iot_platform::{answer::sanitized, credentials::Credentials};

/// Version of the API.
pub const API_VERSION: &str = "2015-12-31";
/// Maximum length of the body of a request, in bytes. The service refuses longer ones.
pub const MAX_REQUEST: usize = 5 * 1024 * 1024;
/// Maximum length of an answer with rows, in bytes. A page of `GetRange` has at most 4 MiB of names
/// and values. With certdist's rows, `PlainBuffer` about doubles this size.
const MAX_ROWS_ANSWER: usize = 16 * 1024 * 1024;
/// Maximum length of an answer without rows, in bytes, which may still have 200 errors.
const MAX_SHORT_ANSWER: usize = 1024 * 1024;
/// Maximum difference between `x-ots-date` and the receiver's clock, in seconds. Above it, the service
/// refuses a request, and the client refuses an answer.
pub const CLOCK_WINDOW: u64 = 15 * 60;

/// Returns the maximum length of an operation's answer, in bytes.
pub fn max_answer(operation: Operation) -> usize {
    match operation {
        Operation::GetRow | Operation::BatchGetRow | Operation::GetRange => MAX_ROWS_ANSWER,
        _ => MAX_SHORT_ANSWER,
    }
}

/// Returns the headers of a request, which include its signature. `now` is in milliseconds since 1970.
pub fn request_headers(
    operation: Operation,
    instance: &str,
    credentials: &Credentials,
    now: i64,
    body: &[u8],
) -> Vec<(&'static str, String)> {
    let mut headers = vec![
        ("x-ots-date", format_date(now)),
        ("x-ots-apiversion", API_VERSION.to_owned()),
        ("x-ots-accesskeyid", credentials.access_key_id.clone()),
        ("x-ots-instancename", instance.to_owned()),
        ("x-ots-contentmd5", signature::content_md5(body)),
    ];
    if let Some(token) = &credentials.security_token {
        headers.push(("x-ots-ststoken", token.expose().to_owned()));
    }
    let pairs = headers.iter().map(|(name, value)| (*name, value.as_str()));
    let text = signature::request_text(operation.name(), pairs);
    headers.push((signature::SIGNATURE, signature::sign(&text, credentials.access_key_secret.expose())));
    headers
}

/// An answer as it arrived. The names of its headers are in lower case.
pub struct Answer<'a> {
    /// HTTP status.
    pub status: u16,
    /// Headers whose values are text.
    pub headers: Vec<(&'a str, &'a str)>,
    /// Whole body.
    pub body: &'a [u8],
}

impl Answer<'_> {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(found, _)| *found == name).map(|(_, value)| *value)
    }

    /// Returns the service's clock, in milliseconds since 1970.
    pub fn date(&self) -> Option<i64> {
        parse_date(self.header("x-ots-date")?)
    }

    /// Reads the answer to a request that was signed with `credentials`. `now` is in milliseconds since
    /// 1970.
    ///
    /// # Errors
    ///
    /// Returns the service's error, or [`NOT_AN_ANSWER`] if the answer is not the service's or not
    /// whole. An answer with status 2xx needs all headers. An error may lack them: the SDKs accept
    /// that too.
    pub fn read<M: Message + Default>(
        &self,
        operation: Operation,
        credentials: &Credentials,
        now: i64,
    ) -> Result<M, Error> {
        let is_ok = (200..300).contains(&self.status);
        let code = if is_ok { None } else { message::Error::decode(self.body).ok() };
        // The service cannot sign an answer if it does not know the credentials.
        let is_unsigned = code.as_ref().is_some_and(|error| error.code == "OTSAuthFailed");
        self.verify(operation, credentials, now, is_ok, is_unsigned)
            .map_err(|what| self.not_an_answer(operation, what))?;
        if is_ok {
            return M::decode(self.body)
                .map_err(|_| self.not_an_answer(operation, "its body is not the expected message"));
        }
        let Some(message::Error { code, message }) = code.filter(|error| !error.code.is_empty()) else {
            return Err(self.foreign(operation));
        };
        let message = message.unwrap_or_default();
        Err(Error {
            class: classify(self.status, &code, &message),
            operation,
            message: without_secrets(&message, credentials),
            code: without_secrets(&code, credentials),
            request_id: self.request_id(),
        })
    }

    fn verify(
        &self,
        operation: Operation,
        credentials: &Credentials,
        now: i64,
        needs_all: bool,
        is_unsigned: bool,
    ) -> Result<(), &'static str> {
        let needed = |name: &str, what| match self.header(name) {
            None if needs_all => Err(what),
            found => Ok(found),
        };
        if let Some(md5) = needed("x-ots-contentmd5", "it has no x-ots-contentmd5")?
            && md5 != signature::content_md5(self.body)
        {
            return Err("its body does not have the MD5 of x-ots-contentmd5");
        }
        needed("x-ots-contenttype", "it has no x-ots-contenttype")?;
        needed("x-ots-requestid", "it has no x-ots-requestid")?;
        if needed("x-ots-date", "it has no x-ots-date")?.is_some() && !is_unsigned {
            let date = self.date().ok_or("its x-ots-date is not a date")?;
            if date.abs_diff(now) > CLOCK_WINDOW * 1000 {
                return Err("its x-ots-date is more than 15 minutes off");
            }
        }
        let Some(authorization) = needed("authorization", "it is not signed")?.filter(|_| !is_unsigned)
        else {
            return Ok(());
        };
        let signed = authorization.strip_prefix("OTS ").and_then(|rest| rest.split_once(':'));
        let (key, found) = signed.ok_or("its Authorization has another form")?;
        let text = signature::answer_text(operation.name(), self.headers.iter().copied());
        let is_right = signature::verify(&text, credentials.access_key_secret.expose(), found);
        match is_right && key == credentials.access_key_id {
            true => Ok(()),
            false => Err("its signature is wrong; a proxy may have changed it"),
        }
    }

    fn request_id(&self) -> Option<String> {
        let id = self.header("x-ots-requestid")?;
        (id.len() <= 64 && id.bytes().all(|byte| byte.is_ascii_graphic())).then(|| id.to_owned())
    }

    /// Makes the error for an answer that cannot be trusted. The call may have been carried out.
    pub(super) fn not_an_answer(&self, operation: Operation, what: &str) -> Error {
        Error {
            class: Class::Unknown,
            operation,
            code: NOT_AN_ANSWER.into(),
            message: format!("status {}, and {what}", self.status),
            request_id: self.request_id(),
        }
    }

    /// Makes the error for an answer that is not Tablestore's at all, such as a proxy's page.
    fn foreign(&self, operation: Operation) -> Error {
        let location = self.header("location").map(|to| format!(" and refers to {to}")).unwrap_or_default();
        Error {
            class: classify(self.status, "", ""),
            operation,
            code: format!("Http{}", self.status),
            message: sanitized(
                &format!(
                    "the answer is not Tablestore's{location}; check the endpoint, and any proxy on the way"
                ),
                &[],
            ),
            request_id: self.request_id(),
        }
    }
}

fn without_secrets(text: &str, credentials: &Credentials) -> String {
    let token = credentials.security_token.as_ref().map_or("", |token| token.expose());
    sanitized(text, &[credentials.access_key_secret.expose(), token])
}

/// Formats a time in milliseconds since 1970 as `2026-11-26T08:30:15.000Z`.
pub fn format_date(milliseconds: i64) -> String {
    // Only a broken clock gives a time that cannot be formatted. The service refuses 1970, and says
    // that the clock is wrong.
    let time = jiff::Timestamp::from_millisecond(milliseconds).unwrap_or(jiff::Timestamp::UNIX_EPOCH);
    time.strftime("%Y-%m-%dT%H:%M:%S%.3fZ").to_string()
}

/// Parses a date with any number of fraction digits into milliseconds since 1970. The fraction is
/// ignored: the SDK for Go sends a wrong one.
pub fn parse_date(text: &str) -> Option<i64> {
    let (seconds, fraction) = text.strip_suffix('Z')?.split_at_checked(19)?;
    let digits = if fraction.is_empty() { "" } else { fraction.strip_prefix('.')? };
    if digits.len() > 16 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let time: jiff::Timestamp = format!("{seconds}Z").parse().ok()?;
    Some(time.as_millisecond())
}

#[cfg(test)]
mod tests;
