//! The operator's HTTP port: health, metrics, and the console, where an operator looks up devices
//! and changes them. The port does not serve devices. The rules about devices are in the modules
//! that this module uses.

pub mod access;
mod browsers;
mod census;
mod connections;
mod console;
mod files;
mod health;
mod hosts;
mod jobs;
mod metrics;
mod past;
mod places;
mod ring;
mod session;
mod sessions;
#[cfg(test)]
mod tests;

use std::{
    net::SocketAddr,
    sync::{
        Arc, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::{Result, anyhow};
use arc_swap::ArcSwap;
use axum::{
    Extension, Router,
    extract::{DefaultBodyLimit, Request, State},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::get,
};

use self::{
    access::{Denied, Gate},
    census::Census,
    connections::{Connections, Peer},
    health::{Detail, Health},
    hosts::{Hosts, Named},
    ring::{Ring, Sample},
};
use crate::{
    config,
    psk::{Enrollment, EnrollmentOutline, uses::UseCounters},
    registrar::Targets,
    resource::{failures::Failures, throttle::Counters},
    server::{Metrics, Pulse, bind_failure, machine_name},
    store::{StoreError, Table, UnixSeconds, unix_now},
};

/// Maximum size of the body of a request, in bytes. The body of an import has its own limit.
const MAX_FORM: usize = 16 << 10;

/// Sources of the metrics and the device rows.
#[derive(Clone)]
pub struct Sources {
    /// Counters of each worker.
    pub workers: Vec<Arc<Metrics>>,
    /// Progress of each worker.
    pub pulses: Vec<Pulse>,
    /// Registrations at IoT Platform, by target.
    pub targets: Arc<Targets>,
    /// Counters of the rate limits.
    pub throttle: Arc<Counters>,
    /// Recent requests that were not served, by device.
    pub failures: Arc<Failures>,
    /// Uses of the keys of enrollments that have two.
    pub key_uses: Arc<UseCounters>,
    /// The device table.
    pub store: Arc<dyn Table>,
    /// Start time of the process.
    pub started: UnixSeconds,
    /// Name of this server among those of the table.
    pub name: String,
    /// Location of the device table, as the console shows it; without credentials.
    pub database: String,
}

/// Maximum wait for the numbers of devices on a page that also shows other things.
const AT_ONCE: Duration = Duration::from_millis(200);

/// State that all requests to the port share.
struct Shared {
    sources: Sources,
    enrollments: ArcSwap<Vec<EnrollmentOutline>>,
    gate: Gate,
    connections: Arc<Connections>,
    hosts: ArcSwap<Hosts>,
    health: Health,
    ring: std::sync::Mutex<Ring>,
    census: census::Reader,
    pages: console::PageState,
    /// Set if TLS is on, so that cookies carry `Secure`.
    is_secure: bool,
    require_token: AtomicBool,
}

impl Shared {
    fn enrollments(&self) -> Arc<Vec<EnrollmentOutline>> {
        self.enrollments.load_full()
    }

    /// Returns the numbers of devices, unless the database does not answer at once.
    async fn census(&self) -> Option<Result<Arc<Census>, StoreError>> {
        self.census.last(&self.sources.store, AT_ONCE).await
    }

    fn ring(&self) -> std::sync::MutexGuard<'_, Ring> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The open port, which is served until the runtime shuts down.
pub struct Admin {
    address: SocketAddr,
    shared: Arc<Shared>,
    /// TLS configuration of new connections.
    tls: Option<Arc<ArcSwap<rustls::ServerConfig>>>,
}

impl Admin {
    /// Returns the URL of the port.
    pub fn url(&self) -> String {
        format!("{}://{}", if self.shared.is_secure { "https" } else { "http" }, self.address)
    }

    /// Waits a short time for the running jobs to end, so that the audit log records how they
    /// ended. The caller drains the registrar first, which makes the jobs end.
    pub async fn end_jobs(&self) {
        self.shared.pages.jobs().end().await;
    }

    /// Applies a changed configuration: the enrollments, and the users, tokens, hosts and
    /// certificate of the section `[admin]`. Without this section, no one can sign in any more.
    pub fn reload(&self, section: Option<&config::Admin>, enrollments: &[Enrollment]) {
        self.set_enrollments(enrollments);
        let Some(config::Admin { hosts, tls, users, tokens, require_token, .. }) = section else {
            return self.shared.gate.reload(Vec::new(), Vec::new());
        };
        self.shared.gate.reload(users.clone(), tokens.clone());
        self.shared.require_token.store(*require_token, Ordering::Relaxed);
        self.shared.hosts.store(Arc::new(known_hosts(self.address, hosts)));
        if let (Some(own), Some(tls)) = (&self.tls, tls) {
            own.store(tls.clone());
        }
    }

    fn set_enrollments(&self, enrollments: &[Enrollment]) {
        let enrollments: Vec<_> = enrollments.iter().map(Enrollment::outline).collect();
        self.shared.enrollments.store(Arc::new(enrollments));
    }
}

fn known_hosts(address: SocketAddr, configured: &[String]) -> Hosts {
    Hosts::new(address.ip(), &machine_name(), configured)
}

/// Opens the port, and serves it in tasks of the current runtime.
pub async fn start(section: &config::Admin, sources: Sources, enrollments: &[Enrollment]) -> Result<Admin> {
    let listener = connections::listen(section.listen).map_err(|error| {
        anyhow!("[admin] cannot listen on {}: {}", section.listen, bind_failure(&error, section.listen))
    })?;
    let address = listener.local_addr()?;
    let connections = Arc::<Connections>::default();
    let pages = console::PageState::new(&*sources.store).await?;
    let store = sources.store.clone();
    let shared = Arc::new(Shared {
        sources,
        enrollments: ArcSwap::default(),
        gate: Gate::new(section.users.clone(), section.tokens.clone(), store),
        hosts: ArcSwap::from_pointee(known_hosts(address, &section.hosts)),
        connections: connections.clone(),
        health: Health::default(),
        ring: std::sync::Mutex::default(),
        census: census::Reader::default(),
        pages,
        is_secure: section.tls.is_some(),
        require_token: AtomicBool::new(section.require_token),
    });
    let tls = section.tls.clone().map(|tls| Arc::new(ArcSwap::new(tls)));
    let admin = Admin { address, shared: shared.clone(), tls: tls.clone() };
    admin.set_enrollments(enrollments);
    // Reading a long log may take some seconds. Nothing else waits for it.
    tokio::spawn(past::remember(shared.sources.clone()));
    tokio::spawn(sample(shared.clone()));
    tokio::spawn(connections::serve(listener, tls, connections, routes(shared)));
    Ok(admin)
}

fn routes(shared: Arc<Shared>) -> Router {
    Router::new()
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .merge(console::routes(&shared))
        .layer(DefaultBodyLimit::max(MAX_FORM))
        .layer(middleware::from_fn_with_state(shared.clone(), named))
        .layer(middleware::map_response(guarded))
        .with_state(shared)
}

/// Refuses requests that name another host. Health checks are answered nevertheless, because load
/// balancers use names of their own. The answer to such a health check leaves out the reasons.
async fn named(State(shared): SharedState, mut request: Request, next: Next) -> Response {
    let Some(Peer { local, .. }) = request.extensions().get() else {
        return StatusCode::INTERNAL_SERVER_ERROR.into_response();
    };
    let host =
        shared.hosts.load().check(request.version(), request.uri(), request.headers(), local.to_canonical());
    let is_health = matches!(request.uri().path(), "/healthz" | "/readyz");
    match &host {
        Named::Unknown(host) if !is_health => {
            let text = format!(
                "this server does not know the host \"{host}\"; to reach it under this name, add it to the \
                 [admin] section of certdist.toml, hosts = [\"{host}\"], and reload certdist\n"
            );
            (StatusCode::MISDIRECTED_REQUEST, text).into_response()
        }
        Named::Invalid if !is_health => {
            (StatusCode::BAD_REQUEST, "expected one Host header with a name or an address\n").into_response()
        }
        _ => {
            request.extensions_mut().insert(host);
            next.run(request).await
        }
    }
}

/// Adds the security headers to every answer.
async fn guarded(mut response: Response) -> Response {
    const HEADERS: [(header::HeaderName, &str); 6] = [
        (
            header::CONTENT_SECURITY_POLICY,
            "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; connect-src 'self'; \
             form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
        ),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::X_FRAME_OPTIONS, "DENY"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-store"),
        (header::HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
    ];
    for (name, value) in HEADERS {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}

/// Samples the counters for the console's chart.
async fn sample(shared: Arc<Shared>) {
    let mut every = tokio::time::interval(ring::EVERY);
    every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        every.tick().await;
        let sample = Sample::of(&shared.sources, unix_now());
        shared.ring().push(sample);
    }
}

/// Runs blocking work on a separate thread, so that it does not block the runtime.
async fn blocking<T: Send + 'static, E: From<StoreError> + Send + 'static>(
    work: impl FnOnce() -> Result<T, E> + Send + 'static,
) -> Result<T, E> {
    let done = tokio::task::spawn_blocking(work).await;
    // The work does not panic. If it did, only this request would fail.
    done.unwrap_or_else(|error| Err(StoreError::Failed(error.to_string()).into()))
}

type SharedState = State<Arc<Shared>>;

async fn healthz(
    State(shared): SharedState,
    Extension(peer): Extension<Peer>,
    Extension(host): Extension<Named>,
    headers: HeaderMap,
) -> Response {
    health::live(&shared.sources.pulses, detail(&shared, peer, &host, &headers)).await
}

async fn readyz(
    State(shared): SharedState,
    Extension(peer): Extension<Peer>,
    Extension(host): Extension<Named>,
    headers: HeaderMap,
) -> Response {
    shared.health.ready(&shared.sources, detail(&shared, peer, &host, &headers)).await
}

async fn metrics(
    State(shared): SharedState,
    Extension(peer): Extension<Peer>,
    headers: HeaderMap,
) -> Response {
    match may_read(&shared, peer, &headers) {
        Ok(()) => {
            let census = shared.census().await.and_then(Result::ok);
            let enrollments = shared.enrollments();
            let text =
                metrics::exposition(&shared.sources, &shared.connections, &enrollments, census.as_deref());
            ([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], text).into_response()
        }
        Err(refusal) => refusal,
    }
}

/// Returns how much of the server's health a client may know. A wrong token counts as no token,
/// because a probe with an old token could take an answer of 401 for a failure, and restart a
/// healthy server.
fn detail(shared: &Shared, peer: Peer, host: &Named, headers: &HeaderMap) -> Detail {
    let is_allowed = *host == Named::Known && may_read(shared, peer, headers).is_ok();
    if is_allowed { Detail::Reasons } else { Detail::StateOnly }
}

/// Checks whether a client may read the metrics and the reasons of a health check. The error is the
/// response. Programs on this machine need no token, unless the configuration requires one. All
/// other clients need a token.
#[expect(clippy::result_large_err, reason = "the error is the response itself")]
fn may_read(shared: &Shared, peer: Peer, headers: &HeaderMap) -> Result<(), Response> {
    let address = peer.address.ip();
    if !shared.require_token.load(Ordering::Relaxed) && address.to_canonical().is_loopback() {
        return Ok(());
    }
    let denied = match bearer(headers) {
        Some(token) => match shared.gate.by_token(address, token) {
            Ok(_) => return Ok(()),
            Err(denied) => denied,
        },
        None => Denied::Wrong,
    };
    Err(unauthorised(denied))
}

/// Answers a script that is not authenticated.
fn unauthorised(denied: Denied) -> Response {
    match denied {
        Denied::Wrong => (
            StatusCode::UNAUTHORIZED,
            [(header::WWW_AUTHENTICATE, "Bearer")],
            "expected Authorization: Bearer with the token of an [[admin.token]]\n",
        )
            .into_response(),
        Denied::TooOften(seconds) => {
            let wait = [(header::RETRY_AFTER, seconds.to_string())];
            (StatusCode::TOO_MANY_REQUESTS, wait, "too many attempts; wait for the time in Retry-After\n")
                .into_response()
        }
    }
}

/// Returns the bearer token of a request (RFC 6750 §2.1).
fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}
