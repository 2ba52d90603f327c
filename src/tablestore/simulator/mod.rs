//! Stand-in for Tablestore on a local port: it keeps tables in memory or in a file, verifies
//! signatures, and imitates the service's limits and failures. It needs no account. The official SDKs
//! must be able to use it (`tests/clients/sdk.rs`).
//!
//! Path of a call: `gateway` admits it, `faults` may replace its answer, and `operations` carries it
//! out on a `table`. The stand-in refuses everything that it does not support.

mod faults;
mod gateway;
mod operations;
mod state;
mod table;

use std::{
    collections::BTreeMap,
    fmt, io,
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use axum::{
    Json, Router,
    body::to_bytes,
    extract::{ConnectInfo, Request, State},
    http::{HeaderMap, HeaderValue, Method, StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use prost::Message;
use serde::Serialize;
use tokio::{
    net::TcpListener,
    sync::{Notify, watch},
    task::JoinHandle,
};

pub use self::faults::Fault;
use self::{
    faults::{Faults, not_enough_capacity},
    gateway::{Account, Admitted},
    operations::{Call, Tables},
};
use super::{
    Capacity, Key, Operation, Row,
    client::Credentials,
    exchange::{MAX_REQUEST, format_date},
    message, plain_buffer, request, signature,
};
use crate::{
    device::Secret,
    iot_platform::simulator::{
        DEFAULT_ACCESS_KEY_ID, DEFAULT_ACCESS_KEY_SECRET,
        account::write_atomically,
        connection::{Line, Listener},
    },
};

/// Default name of the instance.
pub const DEFAULT_INSTANCE: &str = "certdist";
/// Time for which changes are collected before the state file is written.
const SAVE_AFTER: Duration = Duration::from_millis(100);
/// Maximum time that a shutdown waits for incomplete requests.
const STOP_WITHIN: Duration = Duration::from_secs(1);

/// Settings of the stand-in.
#[derive(Debug, Clone)]
pub struct SimulatorConfig {
    /// Address to listen on. Port 0 stands for any free port.
    pub listen: SocketAddr,
    /// Name of the only instance.
    pub instance: String,
    /// The account's only access key.
    pub access_key_id: String,
    /// Secret of the access key.
    pub access_key_secret: Secret,
    /// Token that each request must have; without it, requests must have none.
    pub security_token: Option<Secret>,
    /// Delay of every answer.
    pub latency: Duration,
    /// Random faults, with the share of the calls that have each, 0.0–1.0.
    pub faults: Vec<(Fault, f64)>,
    /// Capacity units per second. Calls above it are throttled. If absent, no call is throttled.
    pub capacity: Option<u32>,
    /// Time for which a new table is not ready.
    pub not_ready: Duration,
    /// File that keeps the tables across restarts. It is written as a whole after each change.
    pub state: Option<PathBuf>,
    /// Seed of the random faults. If absent, the operating system supplies one.
    pub seed: Option<u64>,
}

impl Default for SimulatorConfig {
    /// Makes settings with a free loopback port, the default access key, and no faults.
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            instance: DEFAULT_INSTANCE.into(),
            access_key_id: DEFAULT_ACCESS_KEY_ID.into(),
            access_key_secret: Secret::new(DEFAULT_ACCESS_KEY_SECRET.into()),
            security_token: None,
            latency: Duration::ZERO,
            faults: Vec::new(),
            capacity: None,
            not_ready: Duration::ZERO,
            state: None,
            seed: None,
        }
    }
}

/// Error while starting the stand-in.
#[derive(Debug, thiserror::Error)]
pub enum SimulatorError {
    /// The address is in use, or it is not an address of this machine.
    #[error("could not listen on {address}: {source}")]
    Listen {
        /// Address to listen on.
        address: SocketAddr,
        /// Error of the system.
        source: io::Error,
    },
    /// The state file cannot be read, or is not a state file.
    #[error("could not read the state file of the simulated Tablestore {}: {source}", path.display())]
    StateFile {
        /// Path of the file.
        path: PathBuf,
        /// Reason.
        source: io::Error,
    },
    /// The rates of the faults are not probabilities, or their sum is above 1.
    #[error("the rates of the faults should be between 0 and 1, and their sum too")]
    Faults,
    /// The system provides no random numbers.
    #[error("the system gives no random numbers for the simulated Tablestore: {0}")]
    Randomness(String),
}

/// Refusal of a call: an HTTP status with a message `Error`.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Refusal {
    status: u16,
    code: &'static str,
    message: String,
}

impl Refusal {
    fn new(status: u16, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into() }
    }

    fn invalid(message: impl Into<String>) -> Self {
        Self::new(400, "OTSParameterInvalid", message)
    }

    /// Makes the refusal of a request that the service supports and the stand-in does not.
    fn not_supported(what: &str) -> Self {
        Self::invalid(format!("The simulated Tablestore does not support {what}."))
    }

    fn to_message(&self) -> message::Error {
        message::Error { code: self.code.into(), message: Some(self.message.clone()) }
    }
}

/// Counters since the start.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Stats {
    /// Calls by operation, also those that failed later.
    pub calls: BTreeMap<&'static str, u64>,
    /// Refused calls by code. Failed rows of batches are not counted.
    pub refused: BTreeMap<&'static str, u64>,
    /// Faults by name.
    pub faults: BTreeMap<&'static str, u64>,
    /// Read capacity units.
    pub read_units: u64,
    /// Write capacity units.
    pub write_units: u64,
    /// Number of tables at the moment.
    pub tables: usize,
    /// Number of rows of all tables at the moment.
    pub rows: usize,
}

struct World {
    tables: Tables,
    faults: Faults,
    stats: Stats,
    bucket: Option<Bucket>,
    requests: u64,
    has_changed: bool,
}

/// Capacity units that are left in this second.
struct Bucket {
    per_second: f64,
    left: f64,
    at: Instant,
}

impl Bucket {
    /// Returns whether a call may use capacity. A call may use more than is left; later calls are then
    /// throttled until the difference is made up.
    fn has_left(&mut self) -> bool {
        let now = Instant::now();
        let gained = now.duration_since(self.at).as_secs_f64() * self.per_second;
        self.left = (self.left + gained).min(self.per_second);
        self.at = now;
        self.left > 0.0
    }
}

/// State that all connections share.
struct Shared {
    world: Mutex<World>,
    account: Account,
    latency: Duration,
    /// Becomes true when the stand-in stops.
    stopping: watch::Sender<bool>,
    changed: Notify,
    state: Option<PathBuf>,
    /// Lock that is held while the state is written, so that an older state never replaces a newer
    /// one.
    saving: Mutex<()>,
}

/// A running stand-in; stops when dropped.
pub struct Simulator {
    address: SocketAddr,
    shared: Arc<Shared>,
    tasks: Option<(JoinHandle<io::Result<()>>, JoinHandle<()>)>,
}

impl fmt::Debug for Simulator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Simulator").field("address", &self.address).finish_non_exhaustive()
    }
}

impl Simulator {
    /// Starts listening, and answers calls in tasks of the current Tokio runtime.
    ///
    /// # Errors
    ///
    /// Fails if the rates of the faults are not probabilities, or if the address or the state file
    /// cannot be used.
    pub async fn start(config: SimulatorConfig) -> Result<Self, SimulatorError> {
        let sum: f64 = config.faults.iter().map(|(_, rate)| rate).sum();
        if config.faults.iter().any(|(_, rate)| !(0.0..=1.0).contains(rate)) || sum > 1.0 {
            return Err(SimulatorError::Faults);
        }
        let seed = match config.seed {
            Some(seed) => seed,
            None => getrandom::u64().map_err(|error| SimulatorError::Randomness(error.to_string()))?,
        };
        let not_ready = i64::try_from(config.not_ready.as_millis()).unwrap_or(i64::MAX);
        let mut tables = Tables { not_ready, ..Tables::default() };
        if let Some(path) = &config.state {
            let failed = |source| SimulatorError::StateFile { path: path.clone(), source };
            state::read(path, &mut tables).map_err(failed)?;
        }
        let cannot_listen = |source| SimulatorError::Listen { address: config.listen, source };
        let listener = TcpListener::bind(config.listen).await.map_err(cannot_listen)?;
        let address = listener.local_addr().map_err(cannot_listen)?;
        let bucket = config.capacity.map(f64::from);
        let world = World {
            tables,
            faults: Faults::new(config.faults, seed),
            stats: Stats::default(),
            bucket: bucket.map(|per_second| Bucket { per_second, left: per_second, at: Instant::now() }),
            requests: 0,
            has_changed: false,
        };
        let shared = Arc::new(Shared {
            world: Mutex::new(world),
            account: Account {
                instance: config.instance,
                access_key_id: config.access_key_id,
                access_key_secret: config.access_key_secret,
                security_token: config.security_token,
            },
            latency: config.latency,
            stopping: watch::Sender::new(false),
            changed: Notify::new(),
            state: config.state,
            saving: Mutex::new(()),
        });
        let tasks =
            (tokio::spawn(serve(listener, shared.clone())), tokio::spawn(save_changes(shared.clone())));
        Ok(Self { address, shared, tasks: Some(tasks) })
    }

    /// Returns the address of the API.
    pub fn addr(&self) -> SocketAddr {
        self.address
    }

    /// Returns `http://ADDR`, for a client's endpoint.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Returns the name of the instance.
    pub fn instance(&self) -> &str {
        &self.shared.account.instance
    }

    /// Returns the credentials that the stand-in accepts.
    pub fn credentials(&self) -> Credentials {
        let account = &self.shared.account;
        Credentials {
            access_key_id: account.access_key_id.clone(),
            access_key_secret: account.access_key_secret.clone(),
            security_token: account.security_token.clone(),
        }
    }

    /// Returns counters of the calls so far, like `GET /stats`.
    pub fn stats(&self) -> Stats {
        self.shared.world().stats()
    }

    /// Returns a row, without a call.
    pub fn row(&self, table: &str, key: &Key) -> Option<Row> {
        let row = self.shared.world().tables.by_name.get(table)?.peek(key)?;
        request::read_row(&plain_buffer::encode(&[row])).ok()?
    }

    /// Adds a fault for an operation. Each call of the operation uses up one fault, in the order in
    /// which they were added.
    pub fn script(&self, operation: Operation, fault: Fault) {
        self.shared.world().faults.script(operation, fault);
    }

    /// Sets a fault for every call without a scripted fault. `None` ends the outage.
    pub fn set_outage(&self, fault: Option<Fault>) {
        self.shared.world().faults.set_standing(fault);
    }

    /// Stops the stand-in: the port becomes free, and the state file is written.
    ///
    /// # Errors
    ///
    /// Fails if the state file cannot be written.
    pub async fn shutdown(mut self) -> io::Result<()> {
        self.shared.stopping.send_replace(true);
        if let Some((server, saver)) = self.tasks.take() {
            let abort = server.abort_handle();
            // A task that has panicked has also ended.
            if tokio::time::timeout(STOP_WITHIN, server).await.is_err() {
                abort.abort();
            }
            let _ = saver.await;
        }
        self.shared.save()
    }
}

impl Drop for Simulator {
    fn drop(&mut self) {
        // This makes the tasks end. Unlike `shutdown`, `drop` does not wait for them.
        self.shared.stopping.send_replace(true);
        if self.tasks.is_some()
            && let Err(error) = self.shared.save()
        {
            tracing::error!(%error, "could not write the state file of the simulated Tablestore");
        }
    }
}

impl World {
    fn stats(&self) -> Stats {
        let tables = &self.tables.by_name;
        let rows = tables.values().map(table::Table::len).sum();
        Stats { tables: tables.len(), rows, ..self.stats.clone() }
    }

    /// Carries a call out, unless its fault or the capacity says otherwise. `now` is in milliseconds
    /// since 1970. Returns the fault with the result.
    fn handle(
        &mut self,
        operation: Operation,
        body: &[u8],
        now: i64,
    ) -> (Option<Fault>, Result<Vec<u8>, Refusal>) {
        *self.stats.calls.entry(operation.name()).or_default() += 1;
        let fault = self.faults.next(operation);
        if let Some(fault) = fault {
            *self.stats.faults.entry(fault.name()).or_default() += 1;
        }
        if let Some(fault) = fault.filter(|fault| !fault.is_carried_out()) {
            return (Some(fault), Err(fault.refusal().unwrap_or_else(not_enough_capacity)));
        }
        if self.bucket.as_mut().is_some_and(|bucket| !bucket.has_left()) {
            return (fault, Err(not_enough_capacity()));
        }
        let mut call = Call { now, used: Capacity::default(), fail_row: fault == Some(Fault::Row) };
        let result = self.tables.call(operation, body, &mut call);
        self.has_changed |= !operation.is_read();
        self.stats.read_units += call.used.read;
        self.stats.write_units += call.used.write;
        if let Some(bucket) = &mut self.bucket {
            bucket.left -= (call.used.read + call.used.write) as f64;
        }
        (fault, fault.and_then(Fault::refusal).map_or(result, Err))
    }
}

impl Shared {
    fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until the stand-in stops.
    async fn stopped(&self) {
        // The wait cannot fail: `self` has the sender, so the channel stays open.
        let _ = self.stopping.subscribe().wait_for(|stopping| *stopping).await;
    }

    /// Writes the state file, if there is one and anything has changed.
    fn save(&self) -> io::Result<()> {
        let Some(path) = &self.state else { return Ok(()) };
        let _saving = self.saving.lock().unwrap_or_else(PoisonError::into_inner);
        let text = {
            let mut world = self.world();
            if !std::mem::take(&mut world.has_changed) {
                return Ok(());
            }
            state::write(&world.tables)?
        };
        write_atomically(path, &text).inspect_err(|_| self.world().has_changed = true)
    }

    /// Handles a request. Returns its answer, or `None` if the connection is to end without one.
    fn answer(&self, method: &Method, path: &str, headers: &HeaderMap, body: &[u8]) -> Option<Response> {
        let now = jiff::Timestamp::now().as_millisecond();
        let path = path.trim_start_matches('/');
        let admitted = match body.len() > MAX_REQUEST {
            true => Err(Refusal::new(413, "OTSRequestBodyTooLarge", "The size of POST data is too large.")),
            false => self.account.admit(method, path, headers, body, now),
        };
        let mut world = self.world();
        world.requests += 1;
        // The ID begins like those of the service.
        let id = format!("00064a7b-0000-0000-0000-{:012x}", world.requests);
        let Admitted { operation, key } = match admitted {
            Ok(admitted) => admitted,
            Err(refusal) => {
                *world.stats.refused.entry(refusal.code).or_default() += 1;
                return Some(self.response(Err(refusal), path, None, &id, now));
            }
        };
        let (fault, result) = world.handle(operation, body, now);
        let refused = result.as_ref().err().map(|refusal| refusal.code);
        if matches!(fault, Some(Fault::Drop | Fault::Lost)) {
            return None;
        }
        if let Some(code) = refused {
            *world.stats.refused.entry(code).or_default() += 1;
        }
        drop(world);
        let wrong = format!("{}x", *key);
        let key = if fault == Some(Fault::WrongSignature) { &wrong } else { &*key };
        Some(self.response(result, path, Some(key), &id, now))
    }

    /// Makes an answer. It is not signed without a key.
    fn response(
        &self,
        result: Result<Vec<u8>, Refusal>,
        path: &str,
        key: Option<&String>,
        id: &str,
        now: i64,
    ) -> Response {
        let (status, body) = match result {
            Ok(body) => (200, body),
            Err(refusal) => (refusal.status, refusal.to_message().encode_to_vec()),
        };
        let headers = [
            ("x-ots-contentmd5", signature::content_md5(&body)),
            ("x-ots-contenttype", "protocol buffer".to_owned()),
            ("x-ots-date", format_date(now)),
            ("x-ots-requestid", id.to_owned()),
        ];
        let authorization = key.map(|key| {
            let pairs = headers.iter().map(|(name, value)| (*name, value.as_str()));
            let signature = signature::sign(&signature::answer_text(path, pairs), key);
            format!("OTS {}:{signature}", self.account.access_key_id)
        });
        let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = (status, body).into_response();
        response.headers_mut().remove(header::CONTENT_TYPE);
        let headers = headers.into_iter().chain(authorization.map(|text| ("authorization", text)));
        for (name, value) in headers {
            if let Ok(value) = HeaderValue::from_str(&value) {
                response.headers_mut().insert(name, value);
            }
        }
        response
    }
}

async fn serve(listener: TcpListener, shared: Arc<Shared>) -> io::Result<()> {
    let router = Router::new().route("/stats", get(stats)).fallback(api).with_state(shared.clone());
    axum::serve(Listener(listener), router.into_make_service_with_connect_info::<Line>())
        .with_graceful_shutdown(async move { shared.stopped().await })
        .await
}

/// Writes the state file shortly after a change, so that many changes cause only a few writes.
async fn save_changes(shared: Arc<Shared>) {
    loop {
        tokio::select! {
            () = shared.changed.notified() => {}
            () = shared.stopped() => return,
        }
        tokio::select! {
            () = tokio::time::sleep(SAVE_AFTER) => {}
            () = shared.stopped() => return,
        }
        let writer = shared.clone();
        let saved = tokio::task::spawn_blocking(move || writer.save()).await;
        if let Err(error) = saved.map_err(io::Error::other).flatten() {
            tracing::error!(%error, "could not write the state file of the simulated Tablestore");
        }
    }
}

async fn stats(State(shared): State<Arc<Shared>>) -> Json<Stats> {
    Json(shared.world().stats())
}

async fn api(
    State(shared): State<Arc<Shared>>,
    ConnectInfo(line): ConnectInfo<Line>,
    request: Request,
) -> Response {
    let (parts, body) = request.into_parts();
    let end = || {
        line.cut();
        StatusCode::NO_CONTENT.into_response()
    };
    // One byte more than is allowed, so that the gateway can refuse it. A body that is even longer, or
    // cut off, gets no answer.
    let Ok(body) = to_bytes(body, MAX_REQUEST + 1).await else { return end() };
    let answer = shared.answer(&parts.method, parts.uri.path(), &parts.headers, &body);
    shared.changed.notify_one();
    if !shared.latency.is_zero() {
        tokio::select! {
            () = tokio::time::sleep(shared.latency) => {}
            () = shared.stopped() => return end(),
        }
    }
    answer.unwrap_or_else(end)
}

#[cfg(test)]
mod tests;
