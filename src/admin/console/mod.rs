//! The console: pages for an operator, rendered on the server, that work without JavaScript. This
//! module decides who may open which page, and protects every change against forged requests. Each
//! page has its own file.

mod advice;
mod bulk;
mod chart;
mod concerns;
mod conditions;
mod device;
mod devices;
mod enrollments;
mod failures;
mod handshakes;
mod history;
mod import;
mod imports;
mod jobs;
mod language;
mod orders;
mod overview;
mod page;
mod removed;
mod search;
mod sign_in;
mod unserved;
mod uploads;
mod waiting;

use std::{future::Future, sync::Arc};

use axum::{
    Extension, Form, Router,
    extract::{FromRequest, FromRequestParts, OptionalFromRequestParts, Request, State},
    http::{HeaderMap, HeaderName, Method, StatusCode, header, request::Parts},
    middleware::{self, Next},
    response::{IntoResponse, Redirect, Response},
    routing::{get, post},
};
use serde::Deserialize;

use self::page::Frame;
use super::{
    Shared,
    access::{Denied, Visitor},
    bearer,
    connections::{Peer, Place},
    jobs::Jobs,
    session, unauthorised,
};
use crate::{
    operators::Role,
    random::random,
    store::{Actor, Table},
};

/// State that the pages keep between requests.
pub(super) struct PageState {
    sign_in: sign_in::Forms,
    rates: enrollments::Rates,
    jobs: Jobs,
    uploads: uploads::Uploads,
}

impl PageState {
    pub(super) async fn new(store: &dyn Table) -> anyhow::Result<Self> {
        Ok(Self {
            sign_in: sign_in::Forms::new(store).await?,
            rates: enrollments::Rates::default(),
            jobs: Jobs::new(random()?),
            uploads: uploads::Uploads::default(),
        })
    }

    pub(super) fn jobs(&self) -> &Jobs {
        &self.jobs
    }
}

/// Returns the routes of the console's pages.
pub(super) fn routes(shared: &Arc<Shared>) -> Router<Arc<Shared>> {
    let assets = Router::new()
        .route("/console.css", get(|| asset("text/css; charset=utf-8", include_str!("console.css"))))
        .route("/console.js", get(|| asset("text/javascript; charset=utf-8", include_str!("console.js"))))
        .route("/icon.svg", get(|| asset("image/svg+xml", include_str!("icon.svg"))));
    let pages = Router::new()
        .route("/", get(overview::show))
        .route("/live", get(overview::live))
        .route("/failures", get(failures::show))
        .route("/handshakes", get(handshakes::show))
        .route("/failures.csv", get(failures::download))
        .route("/devices", get(devices::search))
        .route("/devices/bulk", get(bulk::preview).post(bulk::confirm))
        .route("/devices/list", post(bulk::submitted_list).layer(bulk::limit()))
        .route("/device", get(device::show))
        .route("/device/confirm", get(device::confirm))
        .route("/device/disable", post(device::disable))
        .route("/device/enable", post(device::enable))
        .route("/device/reset", post(device::reset))
        .route("/device/delete", post(device::delete))
        .route("/device/order", get(orders::confirm).post(orders::place))
        .route("/device/cancel", post(orders::cancel))
        .route("/orders", get(orders::list))
        .route("/waiting", get(waiting::show))
        .route("/waiting/admit", post(waiting::admit))
        .route("/waiting/dismiss", post(waiting::dismiss))
        .route("/jobs", get(jobs::show))
        .route("/jobs/live", get(jobs::live))
        .route("/jobs/stop", post(jobs::stop))
        .route("/enrollments/live", get(enrollments::live))
        .route("/enrollments", get(enrollments::show))
        .route("/import", get(import::ask).post(import::upload).layer(import::limit()))
        .route("/import/confirm", post(import::confirm))
        .route("/import/errors.csv", get(import::errors))
        .route("/import/undo", get(imports::ask).post(imports::confirm))
        .route("/sign-in", get(sign_in::ask).post(sign_in::take))
        .route("/sign-out", post(sign_in::out))
        .route("/language", get(page::choose_language))
        .fallback(page::not_found)
        .layer(middleware::from_fn_with_state(shared.clone(), open));
    assets.merge(pages)
}

/// Serves the pages only while the configuration has a user or a token.
async fn open(State(shared): State<Arc<Shared>>, frame: Frame, request: Request, next: Next) -> Response {
    match request.uri().path() {
        _ if shared.gate.has_accounts() => next.run(request).await,
        "/" => frame.no_accounts(),
        _ => StatusCode::NOT_FOUND.into_response(),
    }
}

async fn asset(kind: &'static str, text: &'static str) -> Response {
    ([(header::CONTENT_TYPE, kind)], text).into_response()
}

/// Returns the name of the session cookie. Browsers accept a cookie with the prefix `__Host-` only
/// over TLS, and send it only to this host.
fn cookie_name(shared: &Shared) -> &'static str {
    if shared.is_secure { "__Host-certdist" } else { "certdist" }
}

/// Returns the name of the cookie by which the server recognizes a browser in which a user has
/// signed in.
fn browser_cookie_name(shared: &Shared) -> &'static str {
    if shared.is_secure { "__Host-certdist-browser" } else { "certdist-browser" }
}

/// Returns a cookie that scripts cannot read, and that browsers do not send with requests from
/// other sites.
fn set_cookie(shared: &Shared, name: &str, value: &str, seconds: u64) -> String {
    let secure = if shared.is_secure { "; Secure" } else { "" };
    format!("{name}={value}; Path=/; Max-Age={seconds}; HttpOnly; SameSite=Strict{secure}")
}

fn cookie<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
    let all = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
    all.flat_map(|line| line.split(';'))
        .filter_map(|pair| pair.trim().split_once('='))
        .find_map(|(known, value)| (known == name).then_some(value))
}

/// Header of the requests that the page's script makes to update the page.
const RENEWAL: HeaderName = HeaderName::from_static("x-renewal");

/// Suffix of the paths of the parts of pages that update themselves.
const LIVE: &str = "/live";

fn is_renewal(parts: &Parts) -> bool {
    parts.method == Method::GET && parts.headers.contains_key(RENEWAL) && parts.uri.path().ends_with(LIVE)
}

async fn visitor(shared: &Shared, parts: &Parts) -> Result<Option<Visitor>, Denied> {
    let Some(Peer { address, .. }) = parts.extensions.get() else { return Err(Denied::Wrong) };
    let (address, headers) = (address.ip(), &parts.headers);
    let request = if is_renewal(parts) { session::Request::Renewal } else { session::Request::Action };
    let visitor = match bearer(headers) {
        Some(token) => Some(shared.gate.by_token(address, token)?),
        None => match cookie(headers, cookie_name(shared)) {
            Some(id) => shared.gate.by_cookie(address, id, request).await,
            None => None,
        },
    };
    if let (Some(_), Some(place)) = (&visitor, parts.extensions.get::<Place>()) {
        place.authenticate();
    }
    Ok(visitor)
}

impl FromRequestParts<Arc<Shared>> for Visitor {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, shared: &Arc<Shared>) -> Result<Self, Response> {
        match visitor(shared, parts).await {
            Ok(Some(visitor)) => Ok(visitor),
            Ok(None) if wants_json(&parts.headers) || is_renewal(parts) => Err(unauthorised(Denied::Wrong)),
            Ok(None) if parts.method == Method::GET => {
                let here = parts.uri.path_and_query().map_or("/", |here| here.as_str());
                // A part of a page cannot be shown on its own, so the browser returns to the whole
                // page after the sign-in.
                Err(Redirect::to(&page::sign_in_path(page::local(&page::whole(here)))).into_response())
            }
            // The request is a form with a file. The form's page has the same path.
            Ok(None) => Err(Frame::of(parts, shared).on(parts.uri.path()).signed_out(parts.uri.path())),
            Err(denied) => Err(unauthorised(denied)),
        }
    }
}

impl OptionalFromRequestParts<Arc<Shared>> for Visitor {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, shared: &Arc<Shared>) -> Result<Option<Self>, Response> {
        Ok(visitor(shared, parts).await.unwrap_or_default())
    }
}

/// Fields of all forms except sign-in and file upload.
#[derive(Deserialize, Default)]
struct Fields {
    #[serde(default)]
    csrf: String,
    /// ID of a device.
    #[serde(default)]
    id: String,
    /// Token of an upload.
    #[serde(default)]
    upload: String,
    /// Path of the page that the form is on.
    #[serde(default)]
    back: String,
    /// Fingerprint of the device at the time at which the form's page was shown.
    #[serde(default)]
    seen: String,
    /// Action on many devices, the number of devices that the preview has shown, and `yes` if the
    /// operator is sure of a deletion.
    #[serde(default)]
    action: String,
    #[serde(default)]
    expected: String,
    #[serde(default)]
    sure: String,
    /// Number of the order that the form cancels.
    #[serde(default)]
    order: String,
    /// Token of the preview that the form confirms.
    #[serde(default)]
    preview: String,
    /// Lines that name devices.
    #[serde(default)]
    list: String,
    #[serde(flatten)]
    conditions: conditions::Conditions,
}

impl Visitor {
    /// Returns whether the CSRF token is right. A form in a browser carries the session's token,
    /// which a page of another site cannot know. A script with a bearer token needs no CSRF token,
    /// because it has no cookie that such a page could abuse.
    fn has_csrf(&self, csrf: &str) -> bool {
        self.session.as_ref().is_none_or(|(_, expected)| session::same(expected, csrf))
    }

    /// Returns the CSRF token for a form.
    fn csrf(&self) -> &str {
        self.session.as_ref().map_or("", |(_, csrf)| csrf)
    }

    /// Returns whether the visitor may change anything.
    fn is_operator(&self) -> bool {
        self.role >= Role::Operator
    }

    /// Returns the visitor's name for the audit log. The prefix distinguishes a token from a user
    /// of the same name.
    fn actor(&self) -> Actor {
        let kind = if self.is_script() { "token" } else { "console" };
        let address = self.address.to_canonical().to_string();
        Actor { name: format!("{kind}:{}", self.name), address: Some(address) }
    }

    /// Returns whether the visitor is a script, which gets plain text.
    fn is_script(&self) -> bool {
        self.session.is_none()
    }
}

/// A form with the right CSRF token. The handler of every POST except sign-in takes this type,
/// or calls [`Visitor::has_csrf`] itself if the form carries files.
struct SubmittedForm {
    frame: Frame,
    visitor: Visitor,
    fields: Fields,
}

impl FromRequest<Arc<Shared>> for SubmittedForm {
    type Rejection = Response;

    fn from_request(
        request: Request,
        shared: &Arc<Shared>,
    ) -> impl Future<Output = Result<Self, Response>> + Send {
        let shared = shared.clone();
        async move {
            let (parts, body) = request.into_parts();
            let frame = Frame::of(&parts, &shared);
            let visitor = visitor(&shared, &parts).await.map_err(unauthorised)?;
            if visitor.is_none() && wants_json(&parts.headers) {
                return Err(unauthorised(Denied::Wrong));
            }
            let form = Form::<Fields>::from_request(Request::from_parts(parts, body), &shared).await;
            let Form(fields) = form.map_err(IntoResponse::into_response)?;
            let frame = frame.on(&fields.back);
            let Some(visitor) = visitor else { return Err(frame.signed_out(&fields.back)) };
            if !visitor.has_csrf(&fields.csrf) {
                return Err(frame.stale_form(Some(&visitor)));
            }
            Ok(Self { frame, visitor, fields })
        }
    }
}

/// A [`SubmittedForm`] from an operator, who may change devices.
struct OperatorForm(SubmittedForm);

impl FromRequest<Arc<Shared>> for OperatorForm {
    type Rejection = Response;

    async fn from_request(request: Request, shared: &Arc<Shared>) -> Result<Self, Response> {
        let sent = SubmittedForm::from_request(request, shared).await?;
        if sent.visitor.is_operator() { Ok(Self(sent)) } else { Err(sent.frame.not_allowed(&sent.visitor)) }
    }
}

fn wants_json(headers: &HeaderMap) -> bool {
    let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok());
    accept.is_some_and(|accept| accept.contains("application/json"))
}

/// Returns a plain-text answer for a script.
fn plain(status: StatusCode, text: impl Into<String>) -> Response {
    let kind = [(header::CONTENT_TYPE, "text/plain; charset=utf-8")];
    (status, kind, text.into() + "\n").into_response()
}

/// The peer, from a request's extensions.
type From = Extension<Peer>;

/// Formats a number with commas between its thousands.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}
