//! Simulator of IoT Platform's API on a local port. It verifies signatures, simulates rate limits
//! and failures, and needs no account. It must accept the requests of the official SDKs, and give
//! answers that the SDKs can parse. For version 1 of the signature, it shares [`super::signature`]
//! with the client. For version 3, it has code of its own.
//!
//! Path of a call: `gateway` admits it, `limits` counts it, `faults` may replace its answer,
//! and `actions` carries it out on the `devices` and batches of the instance that it names. Devices
//! sign in at `mqtt`.

pub(crate) mod account;
mod actions;
mod at;
pub(crate) mod connection;
mod devices;
mod faults;
mod gateway;
mod instances;
mod limits;
mod mqtt;
mod request;
mod world;

use std::{
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
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::{any, get},
};
use tokio::{
    net::TcpListener,
    sync::{Notify, watch},
    task::JoinHandle,
};

#[cfg(test)]
pub(crate) use self::{account::Account, devices::Device};
use self::{
    account::write_atomically,
    connection::{Line, Listener},
    instances::Instances,
    request::{HttpRequest, Refusal},
    world::{Reply, Verdict, World},
};
pub use self::{at::At, faults::Fault, instances::InstanceConfig, limits::Limits, world::Stats};
pub use super::Action;
use super::client::Credentials;
use crate::device::{Certificate, Secret};

/// Default `AccessKeyId` of the simulator.
pub const DEFAULT_ACCESS_KEY_ID: &str = "simulator";
/// Default `AccessKeySecret` of the simulator.
pub const DEFAULT_ACCESS_KEY_SECRET: &str = "simulator-secret";

/// Maximum length of a request, in bytes. It is enough for 10,000 encoded device names.
const MAX_REQUEST: usize = 4 * 1024 * 1024;
/// Time for which changes are collected before the state file is written.
const SAVE_AFTER: Duration = Duration::from_millis(100);
/// Maximum time that a shutdown waits for incomplete requests.
const STOP_WITHIN: Duration = Duration::from_secs(1);

/// Settings of the simulated cloud.
#[derive(Debug, Clone)]
pub struct SimulatorConfig {
    /// Address to listen on. Port 0 stands for any free port.
    pub listen: SocketAddr,
    /// Address at which devices sign in. If absent, devices cannot sign in.
    pub mqtt: Option<SocketAddr>,
    /// The account's only access key.
    pub access_key_id: String,
    /// Secret of the access key.
    pub access_key_secret: Secret,
    /// Delay of every answer of the API.
    pub latency: Duration,
    /// Rate limits of the account.
    pub limits: Limits,
    /// Fraction of the calls that have a random fault, 0.0–1.0. A call with a fault fails before or
    /// after it is carried out, is carried out twice, or is answered late.
    pub fail_rate: f64,
    /// Time that each step of a batch takes.
    pub batch_delay: Duration,
    /// File that keeps devices and batches across restarts. If absent, they are kept in memory
    /// only.
    pub state: Option<PathBuf>,
    /// Product keys of the account; if empty, every product key is accepted.
    pub products: Vec<String>,
    /// Instances of the account. They replace `mqtt` and `products`. If empty, there is one
    /// instance, which takes every call, no matter which instance the call names.
    pub instances: Vec<InstanceConfig>,
    /// Seed of all random values. If absent, the operating system supplies one.
    pub seed: Option<u64>,
}

impl Default for SimulatorConfig {
    /// Makes settings with a free loopback port, the default access key, and no faults.
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            mqtt: None,
            access_key_id: DEFAULT_ACCESS_KEY_ID.into(),
            access_key_secret: Secret::new(DEFAULT_ACCESS_KEY_SECRET.into()),
            latency: Duration::ZERO,
            limits: Limits::None,
            fail_rate: 0.0,
            batch_delay: Duration::ZERO,
            state: None,
            products: Vec::new(),
            instances: Vec::new(),
            seed: None,
        }
    }
}

/// Error while starting a simulator.
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
    #[error("could not read the simulator's state file {}: {source}", path.display())]
    StateFile {
        /// Path of the file.
        path: PathBuf,
        /// Reason.
        source: io::Error,
    },
    /// The instances contradict each other, or one has an illegal ID.
    #[error("the simulator's instances are not valid: {0}")]
    Instances(String),
    /// The fail rate is not a probability.
    #[error("the simulator's fail rate is {0}; it should be between 0 and 1")]
    FailRate(f64),
    /// The system provides no random numbers.
    #[error("the system gives no random numbers for the simulator: {0}")]
    Randomness(String),
}

/// A running simulator; stops when dropped.
pub struct Simulator {
    address: SocketAddr,
    /// Address at which devices sign in, for each instance.
    mqtt_addresses: Vec<Option<SocketAddr>>,
    config: SimulatorConfig,
    shared: Arc<Shared>,
    tasks: Option<Tasks>,
}

struct Tasks {
    server: JoinHandle<io::Result<()>>,
    saver: JoinHandle<()>,
}

/// State that all connections share.
struct Shared {
    world: Mutex<World>,
    latency: Duration,
    started: Instant,
    /// Becomes true when the simulator stops.
    stopping: watch::Sender<bool>,
    changed: Notify,
    state: Option<PathBuf>,
    /// Lock that is held while the state is written to the file, so that an older state never
    /// replaces a newer state.
    saving: Mutex<()>,
}

impl Simulator {
    /// Starts listening, and answers calls in tasks of the current Tokio runtime.
    ///
    /// # Errors
    ///
    /// Fails if the fail rate is not a probability, if the instances contradict each other, or if an
    /// address or the state file cannot be used.
    pub async fn start(config: SimulatorConfig) -> Result<Self, SimulatorError> {
        if !(0.0..=1.0).contains(&config.fail_rate) {
            return Err(SimulatorError::FailRate(config.fail_rate));
        }
        let seed = match config.seed {
            Some(seed) => seed,
            None => getrandom::u64().map_err(|error| SimulatorError::Randomness(error.to_string()))?,
        };
        instances::check(&config.instances).map_err(SimulatorError::Instances)?;
        let mut instances = Instances::new(&config, seed);
        if let Some(path) = &config.state {
            let failed = |source| SimulatorError::StateFile { path: path.clone(), source };
            instances.load(path).map_err(failed)?;
        }
        let (listener, address) = listen(config.listen).await?;
        let (mut mqtt, mut expiries) = (Vec::new(), Vec::new());
        for instance in instances.configs() {
            mqtt.push(match instance.mqtt {
                Some(address) => Some(listen(address).await?),
                None => None,
            });
            expiries.push(instance.expires);
        }
        let shared = Arc::new(Shared {
            world: Mutex::new(World::new(&config, instances, seed)),
            latency: config.latency,
            started: Instant::now(),
            stopping: watch::Sender::new(false),
            changed: Notify::new(),
            state: config.state.clone(),
            saving: Mutex::new(()),
        });
        let tasks = Tasks {
            server: tokio::spawn(serve(listener, shared.clone())),
            saver: tokio::spawn(save_changes(shared.clone())),
        };
        // The spawned tasks end when the simulator stops.
        for (number, expires) in expiries.into_iter().enumerate() {
            match expires {
                Some(Duration::ZERO) => shared.expire(number),
                Some(after) => {
                    tokio::spawn(expire(number, after, shared.clone()));
                }
                None => {}
            }
        }
        let serve_mqtt = |(number, place): (usize, Option<(TcpListener, SocketAddr)>)| {
            let (listener, address) = place?;
            tokio::spawn(mqtt::serve(listener, number, shared.clone()));
            Some(address)
        };
        let mqtt_addresses = mqtt.into_iter().enumerate().map(serve_mqtt).collect();
        Ok(Self { address, mqtt_addresses, config, shared, tasks: Some(tasks) })
    }

    /// Returns the address of the API.
    pub fn addr(&self) -> SocketAddr {
        self.address
    }

    /// Returns the address where devices of the first instance sign in, if sign-in is enabled.
    pub fn mqtt_addr(&self) -> Option<SocketAddr> {
        self.first().mqtt_addr()
    }

    /// Returns the label of each instance with the address where its devices sign in. The label is
    /// `None` if there is only one instance that takes all calls.
    pub fn mqtt_addrs(&self) -> Vec<(Option<String>, SocketAddr)> {
        let labels = self.config.instances.iter().map(|instance| Some(instance.label()));
        let labels = labels.chain(std::iter::repeat(None));
        let addresses = self.mqtt_addresses.iter().zip(labels);
        addresses.filter_map(|(address, label)| Some((label, (*address)?))).collect()
    }

    /// Returns `http://ADDR`, for a client's endpoint.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Returns the access key that the simulator accepts.
    pub fn credentials(&self) -> Credentials {
        Credentials {
            access_key_id: self.config.access_key_id.clone(),
            access_key_secret: self.config.access_key_secret.clone(),
            security_token: None,
        }
    }

    /// Returns counters of the calls so far, like `GET /stats`.
    pub fn stats(&self) -> Stats {
        self.shared.world().stats(jiff::Timestamp::now())
    }

    /// Returns the instance with this ID, for access without calls of the API.
    pub fn instance(&self, id: &str) -> Option<At<'_>> {
        let number = self.shared.world().instances().configs().position(|instance| instance.id == id)?;
        Some(At { simulator: self, number })
    }

    /// Returns the only instance, or the first of several.
    fn first(&self) -> At<'_> {
        At { simulator: self, number: 0 }
    }

    /// Returns the certificate of an existing device of the first instance, without an API call.
    pub fn device(&self, product_key: &str, device_name: &str) -> Option<Certificate> {
        self.first().device(product_key, device_name)
    }

    /// Returns the [`Status`](At::status) of an existing device of the first instance.
    pub fn status(&self, product_key: &str, device_name: &str) -> Option<&'static str> {
        self.first().status(product_key, device_name)
    }

    /// [Disables](At::disable) a device of the first instance.
    pub fn disable(&self, product_key: &str, device_name: &str) -> bool {
        self.first().disable(product_key, device_name)
    }

    /// [Enables](At::enable) a device of the first instance.
    pub fn enable(&self, product_key: &str, device_name: &str) -> bool {
        self.first().enable(product_key, device_name)
    }

    /// [Adds](At::insert) a device to the first instance.
    pub fn insert(&self, certificate: &Certificate) {
        self.first().insert(certificate);
    }

    /// [Deletes](At::delete) a device of the first instance.
    pub fn delete(&self, product_key: &str, device_name: &str) -> bool {
        self.first().delete(product_key, device_name)
    }

    /// [Marks](At::activate) a device of the first instance as signed in.
    pub fn activate(&self, product_key: &str, device_name: &str) -> bool {
        self.first().activate(product_key, device_name)
    }

    /// Adds a fault for an action. Each call of the action uses up one fault. The faults are used
    /// in the order in which they were added.
    pub fn script(&self, action: Action, fault: Fault) {
        self.shared.world().faults.script(action, fault);
    }

    /// Sets a fault for every call without a scripted fault. `None` ends the outage.
    pub fn set_outage(&self, fault: Option<Fault>) {
        self.shared.world().faults.set_standing(fault);
    }

    /// Stops the simulator: calls in progress end without an answer, the port becomes free, and
    /// the state file is written.
    ///
    /// # Errors
    ///
    /// Fails if the state file cannot be written.
    pub async fn shutdown(mut self) -> io::Result<()> {
        self.shared.stopping.send_replace(true);
        if let Some(tasks) = self.tasks.take() {
            let abort = tasks.server.abort_handle();
            // Join errors of the two tasks are ignored, because a task that has panicked has also
            // ended.
            if tokio::time::timeout(STOP_WITHIN, tasks.server).await.is_err() {
                abort.abort();
            }
            let _ = tasks.saver.await;
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
            tracing::error!(%error, "could not write the simulator's state file");
        }
    }
}

impl fmt::Debug for Simulator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Simulator").field("address", &self.address).finish_non_exhaustive()
    }
}

impl Shared {
    fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Deletes an instance with its devices.
    fn expire(&self, number: usize) {
        self.world().expire(number);
        self.changed.notify_one();
    }

    /// Returns when the simulator stops.
    async fn stopped(&self) {
        // The wait cannot fail: `self` has the sender, so the channel stays open.
        let _ = self.stopping.subscribe().wait_for(|stopping| *stopping).await;
    }

    /// Writes the state file, if there is one and anything has changed.
    fn save(&self) -> io::Result<()> {
        let Some(path) = &self.state else { return Ok(()) };
        let _saving = self.saving.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(text) = self.world().changed_state()? else { return Ok(()) };
        write_atomically(path, &text).inspect_err(|_| self.world().mark_changed())
    }
}

async fn listen(address: SocketAddr) -> Result<(TcpListener, SocketAddr), SimulatorError> {
    let cannot_listen = |source| SimulatorError::Listen { address, source };
    let listener = TcpListener::bind(address).await.map_err(cannot_listen)?;
    let local = listener.local_addr().map_err(cannot_listen)?;
    Ok((listener, local))
}

async fn serve(listener: TcpListener, shared: Arc<Shared>) -> io::Result<()> {
    let router = Router::new()
        .route("/", any(api))
        .route("/stats", get(stats))
        .fallback(no_such_path)
        .with_state(shared.clone());
    axum::serve(Listener(listener), router.into_make_service_with_connect_info::<Line>())
        .with_graceful_shutdown(async move { shared.stopped().await })
        .await
}

/// Deletes an instance with its devices after this time.
async fn expire(number: usize, after: Duration, shared: Arc<Shared>) {
    tokio::select! {
        () = tokio::time::sleep(after) => shared.expire(number),
        () = shared.stopped() => {}
    }
}

/// Writes the state file shortly after a change, so that a thousand registrations in a second
/// cause only a few writes.
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
        match tokio::task::spawn_blocking(move || writer.save()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!(%error, "could not write the simulator's state file"),
            Err(error) => tracing::error!(%error, "could not write the simulator's state file"),
        }
    }
}

async fn stats(State(shared): State<Arc<Shared>>) -> Json<Stats> {
    Json(shared.world().stats(jiff::Timestamp::now()))
}

async fn no_such_path(State(shared): State<Arc<Shared>>) -> Response {
    let message = "Specified api is not found, please check your url and method.";
    let refusal = Refusal::new(404, "InvalidAction.NotFound", message);
    shared.world().refuse(&refusal, "").into_response()
}

/// Answers an API call.
async fn api(
    State(shared): State<Arc<Shared>>,
    ConnectInfo(line): ConnectInfo<Line>,
    request: Request,
) -> Response {
    let (parts, body) = request.into_parts();
    let Ok(body) = to_bytes(body, MAX_REQUEST).await else {
        let refusal = Refusal::new(413, "RequestEntityTooLarge", "The request is too large.");
        return shared.world().refuse(&refusal, "").into_response();
    };
    let query = parts.uri.query().unwrap_or_default().to_owned();
    let request = HttpRequest { method: parts.method, query, headers: parts.headers, body };
    let verdict = shared.world().handle(&request, jiff::Timestamp::now(), shared.started.elapsed());
    if verdict.changed {
        shared.changed.notify_one();
    }
    deliver(&shared, &line, verdict).await
}

/// Sends the answer after its delay, or closes the connection.
async fn deliver(shared: &Shared, line: &Line, verdict: Verdict) -> Response {
    let wait = shared.latency + verdict.delay;
    let answered = tokio::select! {
        () = tokio::time::sleep(wait), if !wait.is_zero() => true,
        () = shared.stopped(), if !wait.is_zero() => false,
        else => true,
    };
    match verdict.reply {
        Some(reply) if answered => reply.into_response(),
        _ => {
            line.cut();
            StatusCode::NO_CONTENT.into_response()
        }
    }
}

impl IntoResponse for Reply {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        (status, [(header::CONTENT_TYPE, self.content_type)], self.body).into_response()
    }
}
