//! The CoAP resources `/cert` and `/.well-known/core`. Determines which device a request is about,
//! asks `provision` for the device's certificate, and encodes the answer in the requested format.
//! Knows nothing about the transport or the device table.

mod body;
pub mod failures;
pub mod throttle;

use std::{collections::HashSet, future::Future, pin::Pin, sync::Arc, time::Instant};

use crate::{
    coap::{
        Code, Method, Request, Response, content_format as format,
        link::{self, Link},
    },
    device::{AskedId, DeviceId},
    provision::{HandedOut, Provisioner, Refusal},
    psk::Principal,
    rate_limit::Source,
};
use body::Entry;
use failures::{Failures, Reason};
use throttle::{Counters, RequestLimits, Throttle};

/// Longest request payload accepted, in bytes: enough for a device ID of 64 bytes in any
/// of the formats.
pub const MAX_PAYLOAD: usize = 512;

/// The resources listed by `/.well-known/core` (RFC 6690).
const LINKS: [Link<'_>; 1] = [Link {
    target: "/cert",
    attributes: &[("rt", "certdist.cert"), ("ct", "60 50"), ("title", "Device certificate")],
}];

/// Answer to a request.
pub enum Answer {
    /// An answer that is available immediately.
    Now(Response),
    /// Work that results in the answer.
    Later(Pin<Box<dyn Future<Output = Response> + Send>>),
}

/// Answers requests. Clones share the state of the rate limits.
#[derive(Clone)]
pub struct Service {
    provisioner: Arc<Provisioner>,
    throttle: Throttle,
    failures: Arc<Failures>,
    /// Names of the enrollments whose devices get their MQTT host even if they do not ask for it.
    tell_host: Arc<HashSet<String>>,
}

impl Service {
    /// Creates a service that hands out the certificates of `provisioner`, within
    /// `limits`.
    pub fn new(now: Instant, provisioner: Provisioner, limits: RequestLimits) -> Self {
        let throttle = Throttle::new(now, limits);
        let (failures, tell_host) = Default::default();
        Self { provisioner: Arc::new(provisioner), throttle, failures, tell_host }
    }

    /// Returns a copy of the service with other limits. The copy and the original share the state
    /// of the rate limits.
    pub fn with_limits(&self, limits: RequestLimits) -> Self {
        Self { throttle: self.throttle.with(limits), ..self.clone() }
    }

    /// Returns the service with a set of enrollments whose devices get their MQTT host even if they
    /// do not ask for it.
    pub fn telling_host(self, enrollments: HashSet<String>) -> Self {
        Self { tell_host: Arc::new(enrollments), ..self }
    }

    /// Returns the counters of the rate limits.
    pub fn counters(&self) -> Arc<Counters> {
        self.throttle.counters()
    }

    /// Returns the record of recent requests that were not served.
    pub fn failures(&self) -> Arc<Failures> {
        self.failures.clone()
    }

    /// Answers a request of an authenticated client. `source` is the address at which the client
    /// proved its key. If `may_wait` is false, the caller must drop the future unless it is ready
    /// at its first poll. A future dropped in this way has started no work.
    pub fn answer<K>(
        self: &Arc<Self>,
        now: Instant,
        source: Source,
        principal: &Principal,
        request: &Request<K>,
        may_wait: bool,
    ) -> Answer {
        let path: Vec<&str> = request.path.iter().map(String::as_str).collect();
        match path[..] {
            ["cert"] | [".well-known", "core"] if !meets_conditions(request) => {
                Answer::Now(Response::problem(Code::PreconditionFailed, "If-Match or If-None-Match"))
            }
            ["cert"] => match read(request, principal) {
                Ok((asked, form)) => {
                    if let Err(seconds) = self.throttle.admit(now, source, principal, asked.canonical()) {
                        self.failures.note(Reason::TooMany, asked.canonical(), principal, source.origin, "");
                        let busy = Response::problem(Code::TooManyRequests, "too many requests");
                        return Answer::Now(busy.with_max_age(seconds));
                    }
                    let (service, principal) = (self.clone(), principal.clone());
                    Answer::Later(Box::pin(async move {
                        service.certificate(now, source, &principal, &asked, form, may_wait).await
                    }))
                }
                Err(refusal) => Answer::Now(refusal),
            },
            [".well-known", "core"] => Answer::Now(core_links(request)),
            _ => Answer::Now(Response::problem(Code::NotFound, "no such resource")),
        }
    }

    async fn certificate(
        &self,
        now: Instant,
        source: Source,
        principal: &Principal,
        asked: &AskedId,
        form: Form,
        may_wait: bool,
    ) -> Response {
        // The limits count all spellings of a MAC address as one device.
        let (enrollment, device) = (&principal.enrollment.name, asked.canonical());
        let wants_host = form.has_host || self.tell_host.contains(enrollment);
        match self.provisioner.certificate(source.origin, principal, asked, wants_host, may_wait).await {
            Ok(handed_out) => {
                self.throttle.served(now, source, principal, device);
                tracing::debug!(%device, enrollment, "certificate handed out");
                content(form.encoding, &handed_out)
            }
            Err(refusal) => {
                // This is logged at debug level only, because the server already logs a line for
                // each request.
                tracing::debug!(%device, enrollment, %refusal, "no certificate");
                if is_guess(&refusal) {
                    self.throttle.refused(now, source, principal, device);
                }
                let (reason, message) = reason(&refusal);
                self.failures.note(reason, device, principal, source.origin, message);
                refused(&refusal)
            }
        }
    }
}

/// Returns whether a refusal counts as a guess of a device ID.
fn is_guess(refusal: &Refusal) -> bool {
    match refusal {
        Refusal::Invalid
        | Refusal::Disabled
        | Refusal::Issued
        | Refusal::Closed
        | Refusal::Full
        | Refusal::NameTaken(_)
        | Refusal::Held(_) => true,
        Refusal::NotYours
        | Refusal::Operator(_)
        | Refusal::Later(_)
        | Refusal::NotOpen(_)
        | Refusal::TimedOut => false,
    }
}

/// Returns the reason for a refusal, and IoT Platform's message if IoT Platform has caused the
/// refusal.
fn reason(refusal: &Refusal) -> (Reason, &str) {
    match refusal {
        Refusal::Invalid => (Reason::Invalid, ""),
        Refusal::NotYours => (Reason::NotYours, ""),
        Refusal::Disabled => (Reason::Disabled, ""),
        Refusal::Issued => (Reason::Issued, ""),
        Refusal::Closed | Refusal::Full => (Reason::Closed, ""),
        Refusal::Operator(message) | Refusal::NameTaken(message) => (Reason::Operator, message),
        Refusal::NotOpen(_) => (Reason::NotOpen, ""),
        Refusal::Held(_) => (Reason::Held, ""),
        Refusal::Later(_) => (Reason::Later, ""),
        Refusal::TimedOut => (Reason::TimedOut, ""),
    }
}

/// Form of the answer that a request asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Form {
    encoding: Encoding,
    /// Set if the answer contains the device's MQTT host.
    has_host: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Encoding {
    Cbor,
    Json,
}

/// Returns the device that a request is about, or `None` if the request is invalid. A MAC address
/// in an unusual spelling keeps this spelling.
pub fn device_of<K>(request: &Request<K>, principal: &Principal) -> Option<DeviceId> {
    read(request, principal).ok().map(|(asked, _)| asked.first().clone())
}

/// Returns the device that a request is about and the requested form of the answer, or the response
/// that refuses the request.
fn read<K>(request: &Request<K>, principal: &Principal) -> Result<(AskedId, Form), Response> {
    if !matches!(request.method, Method::Get | Method::Fetch | Method::Post) {
        return Err(Response::problem(Code::MethodNotAllowed, "GET, FETCH or POST"));
    }
    let encoding = match request.accept {
        None | Some(format::CBOR) => Encoding::Cbor,
        Some(format::JSON) => Encoding::Json,
        Some(_) => return Err(Response::problem(Code::NotAcceptable, "Accept 60 (CBOR) or 50 (JSON)")),
    };
    if request.payload.len() > MAX_PAYLOAD {
        let refusal = Response::problem(Code::RequestEntityTooLarge, "the payload is too long");
        return Err(refusal.with_size1(MAX_PAYLOAD as u32));
    }
    let mut entries = match request.content_format {
        _ if request.payload.is_empty() => Vec::new(),
        None | Some(format::CBOR) => body::cbor(&request.payload)?,
        Some(format::JSON) => body::json(&request.payload)?,
        Some(format::TEXT) => body::text(&request.payload)?,
        Some(_) => {
            let title = "Content-Format 60 (CBOR), 50 (JSON) or 0 (text)";
            return Err(Response::problem(Code::UnsupportedContentFormat, title));
        }
    };
    entries.extend(body::query(&request.query)?);
    let (mut asked, mut has_host): (Option<AskedId>, _) = (None, None);
    for entry in entries {
        match entry {
            Entry::Id(id) if asked.as_ref().is_some_and(|other| other.canonical() != id.canonical()) => {
                return Err(bad_request("two device IDs that differ"));
            }
            Entry::Id(id) => asked = Some(id),
            Entry::Host(value) if has_host.is_some_and(|other| other != value) => {
                return Err(bad_request("two values of host that differ"));
            }
            Entry::Host(value) => has_host = Some(value),
        }
    }
    let asked = match (asked, &principal.device) {
        (Some(id), _) => id,
        (None, Some(own)) => own.clone(),
        (None, None) => return Err(bad_request("deviceId, sn or mac is missing")),
    };
    Ok((asked, Form { encoding, has_host: has_host.unwrap_or(false) }))
}

/// Returns whether the conditions of a request hold (RFC 7252 §5.10.8) for a resource that
/// exists and whose representations have no ETags. An empty If-Match only requires that the
/// resource exists.
fn meets_conditions<K>(request: &Request<K>) -> bool {
    let matches = request.if_match.is_empty() || request.if_match.iter().any(Vec::is_empty);
    matches && !request.if_none_match
}

fn bad_request(title: &str) -> Response {
    Response::problem(Code::BadRequest, title)
}

fn content(encoding: Encoding, handed_out: &HandedOut) -> Response {
    // With Max-Age 0, no cache keeps the certificate.
    match encoding {
        Encoding::Cbor => Response::content(format::CBOR, body::to_cbor(handed_out)),
        Encoding::Json => Response::content(format::JSON, body::to_json(handed_out)),
    }
    .with_max_age(0)
}

fn refused(refusal: &Refusal) -> Response {
    match refusal {
        Refusal::Invalid => Response::problem(Code::NotFound, "device is invalid"),
        Refusal::NotYours => Response::problem(Code::Forbidden, "not this identity's device"),
        Refusal::Disabled => Response::problem(Code::Forbidden, "device is disabled"),
        Refusal::Issued => Response::problem(Code::Forbidden, "certificate was issued already"),
        Refusal::Closed => Response::problem(Code::Forbidden, "enrollment is closed"),
        Refusal::Full => Response::problem(Code::Forbidden, "enrollment is full"),
        Refusal::Operator(_) | Refusal::NameTaken(_) => {
            Response::problem(Code::BadGateway, "IoT Platform refuses; the operator must act")
        }
        Refusal::Later(seconds) => {
            Response::problem(Code::ServiceUnavailable, "registration is queued").with_max_age(*seconds)
        }
        Refusal::NotOpen(seconds) => {
            Response::problem(Code::ServiceUnavailable, "enrollment is not open yet").with_max_age(*seconds)
        }
        Refusal::Held(seconds) => {
            Response::problem(Code::ServiceUnavailable, "device is not admitted yet").with_max_age(*seconds)
        }
        Refusal::TimedOut => Response::problem(Code::GatewayTimeout, "IoT Platform did not answer in time"),
    }
}

fn core_links<K>(request: &Request<K>) -> Response {
    match (request.method, request.accept) {
        (Method::Get, None | Some(format::LINK)) => {
            Response::content(format::LINK, link::format(&LINKS, &request.query).into_bytes())
        }
        (Method::Get, _) => Response::problem(Code::NotAcceptable, "Accept 40 (link format)"),
        _ => Response::problem(Code::MethodNotAllowed, "GET"),
    }
}

#[cfg(test)]
mod tests;
