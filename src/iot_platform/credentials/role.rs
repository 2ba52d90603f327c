//! Reads the temporary access key of an ECS instance's RAM role from the metadata service. If the
//! service is in hardened mode, each request needs a token that only a process on the instance can
//! request.

use std::time::Duration;

use reqwest::{Method, StatusCode, Url};
use serde::Deserialize;
use zeroize::Zeroizing;

use super::{Credentials, Failure, Read};
use crate::{
    device::Secret,
    iot_platform::http::{self, ClientError},
};

/// Address of the metadata service. It is the same on every ECS instance.
pub const DEFAULT_METADATA_ENDPOINT: &str = "http://100.100.100.200";

/// Maximum time for each request. It is short because the service is on the same machine.
const TIMEOUT: Duration = Duration::from_secs(2);
/// Lifetime of a token, in seconds. It can be short, because a token is used immediately.
const TOKEN_SECONDS: &str = "60";
/// Maximum length of an answer, in bytes.
const MAX_ANSWER: usize = 16 * 1024;

/// A RAM role of the ECS instance that certdist runs on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Role {
    /// Name of the role. If absent, the role that is attached to the instance is used.
    pub name: Option<String>,
    /// Address of the metadata service, `http://HOST`.
    pub metadata_endpoint: String,
    /// Set if a token is required for every request. Otherwise, requests to an instance without
    /// hardened mode have no token.
    pub token_required: bool,
}

impl Default for Role {
    fn default() -> Self {
        Self { name: None, metadata_endpoint: DEFAULT_METADATA_ENDPOINT.into(), token_required: false }
    }
}

/// A client of the metadata service.
pub(super) struct Metadata {
    http: reqwest::Client,
    endpoint: Url,
    token_required: bool,
}

/// Answer of the metadata service about a role.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    code: Option<String>,
    #[serde(default)]
    access_key_id: String,
    // The type `Secret` wipes the text even if parsing fails at a later field.
    #[serde(default, deserialize_with = "secret")]
    access_key_secret: Option<Secret>,
    #[serde(default, deserialize_with = "secret")]
    security_token: Option<Secret>,
    expiration: Option<String>,
}

fn secret<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<Secret>, D::Error> {
    Ok(Option::deserialize(deserializer)?.filter(|text: &String| !text.is_empty()).map(Secret::new))
}

impl Metadata {
    /// Makes a client. Makes no call.
    pub fn new(role: &Role) -> Result<Self, ClientError> {
        let endpoint = metadata_url(&role.metadata_endpoint)?;
        Ok(Self { http: http::metadata_client(TIMEOUT)?, endpoint, token_required: role.token_required })
    }

    /// Reads the role's current access key.
    pub async fn read(&self, role: Option<&str>) -> Result<Read, Failure> {
        let token = self.token().await?;
        let attached;
        let role = match role {
            Some(role) => role,
            None => {
                attached = self.attached_role(token.as_ref()).await?;
                &attached
            }
        };
        let (status, body) = self.ask(&format!("{ROLES}{role}"), token.as_ref()).await?;
        if !status.is_success() {
            return Err(refusal(status, &format!("the RAM role {role}"), "correct ecs-role:NAME"));
        }
        // Errors do not repeat the answer, because part of it is secret.
        let not_one = || Failure::Passing("the metadata service's answer has no access key".into());
        let answer: Answer = serde_json::from_slice(&body).map_err(|_| not_one())?;
        if answer.code.as_deref() != Some("Success") || answer.access_key_id.is_empty() {
            return Err(not_one());
        }
        let expires = answer.expiration.as_deref().and_then(|text| text.parse::<jiff::Timestamp>().ok());
        Ok(Read {
            credentials: Credentials {
                access_key_id: answer.access_key_id,
                access_key_secret: answer.access_key_secret.ok_or_else(not_one)?,
                security_token: Some(answer.security_token.ok_or_else(not_one)?),
            },
            expires: Some(expires.ok_or_else(not_one)?.as_second()),
        })
    }

    /// Requests a token of hardened mode. Returns `None` if the service issues no token and
    /// `token_required` is false.
    async fn token(&self) -> Result<Option<Secret>, Failure> {
        let request = self
            .http
            .request(Method::PUT, self.at("/latest/api/token"))
            .header("X-aliyun-ecs-metadata-token-ttl-seconds", TOKEN_SECONDS);
        let (status, mut body) = self.answer(request).await?;
        let token = String::from_utf8(std::mem::take(&mut *body)).map(Secret::new).ok();
        match token {
            Some(token) if status.is_success() && !token.expose().is_empty() => Ok(Some(token)),
            _ if self.token_required => Err(refusal(
                status,
                "a token, which metadata_token = \"required\" asks for",
                "use hardened mode",
            )),
            _ => Ok(None),
        }
    }

    async fn attached_role(&self, token: Option<&Secret>) -> Result<String, Failure> {
        let (status, body) = self.ask(ROLES, token).await?;
        let name = std::str::from_utf8(&body).ok().and_then(|text| text.lines().next()).unwrap_or_default();
        match status.is_success() && is_role(name) {
            true => Ok(name.to_owned()),
            false => Err(refusal(status, "a RAM role", "attach one to the instance")),
        }
    }

    async fn ask(
        &self,
        path: &str,
        token: Option<&Secret>,
    ) -> Result<(StatusCode, Zeroizing<Vec<u8>>), Failure> {
        let mut request = self.http.get(self.at(path));
        if let Some(token) = token {
            request = request.header("X-aliyun-ecs-metadata-token", token.expose());
        }
        self.answer(request).await
    }

    async fn answer(
        &self,
        request: reqwest::RequestBuilder,
    ) -> Result<(StatusCode, Zeroizing<Vec<u8>>), Failure> {
        let unanswered = |error: reqwest::Error| {
            tracing::debug!(error = %http::with_causes(&error), "could not query the metadata service");
            Failure::Passing(self.no_answer())
        };
        let mut response = request.send().await.map_err(unanswered)?;
        let status = response.status();
        let mut body = Zeroizing::new(Vec::with_capacity(MAX_ANSWER));
        while let Some(chunk) = response.chunk().await.map_err(unanswered)? {
            if body.len() + chunk.len() > MAX_ANSWER {
                return Err(Failure::Passing("the metadata service's answer is too long".into()));
            }
            body.extend_from_slice(&chunk);
        }
        Ok((status, body))
    }

    fn at(&self, path: &str) -> Url {
        let mut url = self.endpoint.clone();
        url.set_path(path);
        url
    }

    /// Returns a message that tells the operator that the service does not answer.
    pub fn no_answer(&self) -> String {
        format!(
            "no answer from the metadata service {}; outside an ECS instance, set credentials to \"env\" or \
             \"file:PATH\"",
            self.endpoint.as_str().trim_end_matches('/')
        )
    }
}

const ROLES: &str = "/latest/meta-data/ram/security-credentials/";

fn refusal(status: StatusCode, what: &str, advice: &str) -> Failure {
    let message = format!("the metadata service does not return {what} (HTTP {}); {advice}", status.as_u16());
    match status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS {
        true => Failure::Passing(message),
        false => Failure::Operator(message),
    }
}

/// Returns whether a text can be the name of a role: 1–64 letters, digits, `.`, `-` and `_`.
pub(crate) fn is_role(name: &str) -> bool {
    (1..=64).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_'))
}

/// Parses the address of the metadata service.
pub(crate) fn metadata_url(text: &str) -> Result<Url, ClientError> {
    let url = Url::parse(text).ok().filter(|url| {
        url.scheme() == "http" && url.path() == "/" && url.query().is_none() && url.username().is_empty()
    });
    url.ok_or_else(|| ClientError::MetadataEndpoint(text.into()))
}
