//! `certdist serve`: puts the rooms together and runs them until a signal.

use std::{
    io,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow};
use tokio::{
    net::UdpSocket,
    runtime::Handle,
    signal::unix::{Signal, SignalKind, signal},
    sync::watch,
    task::JoinSet,
};

use super::{ConfigArgs, Failure, Outcome, core_dumps, open_store, print};
use crate::{
    admin,
    cert::Service,
    config::{self, Config},
    iot_platform::{IotPlatform, NoCloud, client::Client},
    notify,
    provision::Provisioner,
    psk::Enrollments,
    random::random,
    registrar::{self, Registrar},
    server::{self, Pulse, Rooms, Server, plain::Plain},
    store::{Store, StoreError, audit::Keep, sqlite::Sqlite, unix_now},
};

/// How often is looked for entries of the audit log that need not be kept.
const PRUNE_EVERY: Duration = Duration::from_secs(60);

/// Runs the server
#[derive(clap::Args)]
#[command(after_help = "\
Example of a configuration, certdist.toml
  listen   = \"0.0.0.0:5684\"
  database = \"sqlite:certdist.db\"

  [iot_platform]
  endpoint = \"https://iot.cn-shanghai.aliyuncs.com\"
  region   = \"cn-shanghai\"

  [[enrollment]]
  name        = \"lamp-2026\"
  product_key = \"a1BwAGVxyz1\"
  kind        = \"derived\"
  key         = \"env:LAMP_MASTER\"

with ALIBABA_CLOUD_ACCESS_KEY_ID and ALIBABA_CLOUD_ACCESS_KEY_SECRET in the
environment, or credentials = \"file:PATH\" or \"ecs-role\" in [iot_platform]. Prints
`listening on coaps://ADDR:PORT` once it is ready, for each address of `listen`.
SIGTERM finishes what is in progress and ends; SIGHUP reads the enrollments,
the limits of requests, the database keys, [audit], and the users, tokens and
certificate of [admin] anew, and says what else has changed and takes a restart.")]
pub struct Args {
    #[command(flatten)]
    config: ConfigArgs,
}

/// Runs until SIGTERM or SIGINT.
pub async fn run(args: Args) -> Outcome {
    core_dumps::forbid().context("core dumps cannot be turned off")?;
    let config = args.config.read()?;
    if config.database_keys.first().is_none() {
        tracing::warn!("secrets in the database are not sealed: the configuration has no database_key");
    }
    // Before the announcement: whoever waits for it may stop us at once.
    let mut signals = Signals::new()?;
    let running = Running::start(&config).await?;
    for address in running.addresses() {
        print(|out| writeln!(out, "listening on coaps://{address}"))?;
    }
    notify::ready();
    let watchdog = tokio::spawn(keep_watchdog(running.server.pulses().into()));
    let outcome = follow(running, &args.config, &config, &mut signals).await;
    watchdog.abort();
    outcome
}

/// Does what signals say until the server ends.
async fn follow(mut running: Running, file: &ConfigArgs, config: &Config, signals: &mut Signals) -> Outcome {
    let outcome = loop {
        match running.order(signals).await {
            Order::Stop => break Ok(()),
            Order::GiveUp(problem) => break Err(Failure::Failed(problem)),
            Order::Reload => match file.read() {
                Ok(changed) => {
                    if let Err(error) = running.reload(&changed) {
                        tracing::error!("the configuration stays as it was: {error}");
                        continue;
                    }
                    tracing::info!(
                        "enrollments, limits of requests, [audit], users and tokens of [admin] and database keys \
                         read anew"
                    );
                    let keys = config.needs_restart(&changed);
                    if !keys.is_empty() {
                        tracing::warn!("{} changed as well, which takes a restart", keys.join(", "));
                    }
                }
                Err(Failure::Usage(error) | Failure::Failed(error)) => {
                    tracing::error!("the configuration stays as it was: {error:#}");
                }
            },
        }
    };
    if let Err(Failure::Failed(problem)) = &outcome {
        // Draining takes a while.
        tracing::error!("{problem}");
    }
    notify::stopping();
    running.stop().await;
    outcome
}

/// Tells the service manager that all is well as long as each worker makes its rounds, and
/// the runtime that this is on as well.
async fn keep_watchdog(pulses: Arc<[Pulse]>) {
    let is_alive = || {
        let pulses = pulses.clone();
        async move {
            let silent = server::silent_workers(&pulses).await;
            if !silent.is_empty() {
                tracing::error!(workers = ?silent, "workers make no rounds: the service manager is not told that all is well");
            }
            silent.is_empty()
        }
    };
    notify::keep_watchdog(is_alive).await;
}

/// A server with everything that it needs.
pub struct Running {
    server: Server,
    rooms: Rooms,
    registrar: Arc<Registrar>,
    admin: Option<admin::Admin>,
    drain: Duration,
    store: Arc<Sqlite>,
    keep: watch::Sender<Keep>,
    /// Ended when they are dropped.
    _plain: Option<JoinSet<()>>,
    _pruning: JoinSet<()>,
}

impl Running {
    /// Opens the store, takes up what a crash has left, and starts to listen.
    pub async fn start(config: &Config) -> Result<Self, Failure> {
        let table = open_store(config)?;
        let store: Arc<dyn Store> = table.clone();
        let (cloud, limits) = cloud(config).map_err(Failure::Usage)?;
        let registrar = Registrar::new(limits, store.clone(), cloud, Handle::current());
        let provisioner = Provisioner::new(store.clone(), registrar.clone(), config.limits.patience);
        let rooms = Rooms {
            enrollments: Arc::new(Enrollments::new(config.enrollments.iter().cloned())),
            service: Arc::new(Service::new(Instant::now(), provisioner, config.limits.requests.clone())),
            store,
        };
        let server = Server::start(&config.listen, &config.limits, &rooms, &Handle::current())?;
        let admin = match &config.admin {
            Some(section) => {
                let sources = admin::Sources {
                    workers: server.figures(),
                    pulses: server.pulses(),
                    registrar: registrar.clone(),
                    throttle: rooms.service.counters(),
                    store: table.clone(),
                    started: unix_now(),
                };
                let admin = admin::start(section, sources, &config.enrollments).await?;
                tracing::info!("health, metrics and the console on {}", admin.url());
                Some(admin)
            }
            None => None,
        };
        let plain = match &config.plain_coap {
            Some(section) => Some(start_plain(section, &rooms).await?),
            None => None,
        };
        let recovered = registrar.recover().await?;
        if recovered > 0 {
            tracing::info!(recovered, "registrations that were in progress are taken up");
        }
        registrar.start_sweeps();
        let (keep, kept) = watch::channel(config.audit);
        Ok(Self {
            server,
            rooms,
            registrar,
            admin,
            drain: config.limits.drain,
            _plain: plain,
            keep,
            _pruning: prune_audit(table.clone(), kept),
            store: table,
        })
    }

    /// Addresses that devices connect to, at least one.
    pub fn addresses(&self) -> &[SocketAddr] {
        self.server.addresses()
    }

    /// Waits for what is to be done next: what a signal says, or to end when a worker
    /// has ended, since a server without it serves only some of the devices.
    async fn order(&mut self, signals: &mut Signals) -> Order {
        tokio::select! {
            order = signals.next() => order,
            number = self.server.worker_ended() => Order::GiveUp(anyhow!(
                "worker {number} ended unexpectedly, and its devices are not served any more; the log above says \
                 why, and a restart serves them again"
            )),
        }
    }

    /// Looks at all devices at the cloud, as the server does from time to time. Answers
    /// with how many have signed in there.
    #[cfg(feature = "simulation")]
    pub(super) async fn activated(&self) -> Result<u64> {
        self.registrar.sweep().await?;
        let (mut activated, mut after) = (0, None);
        loop {
            let rows = self.rooms.store.rows_after(after.as_ref(), 1000).await?;
            let Some(last) = rows.last() else { return Ok(activated) };
            after = Some(last.id.clone());
            activated += rows.iter().filter(|row| row.activated.is_some()).count() as u64;
        }
    }

    /// Takes over what a running server can of a configuration that has changed: all
    /// that [`Config::needs_restart`] does not name. Keys that do not open what is in
    /// the database are refused, and nothing is taken then.
    pub fn reload(&self, config: &Config) -> Result<(), StoreError> {
        self.store.set_keys(config.database_keys.clone())?;
        self.registrar.set_refuse_existing(config.refuse_existing.clone());
        if let Some(admin) = &self.admin {
            admin.reload(config.admin.as_ref(), &config.enrollments);
        }
        self.keep.send_replace(config.audit);
        self.server.reload(&Rooms {
            enrollments: Arc::new(Enrollments::new(config.enrollments.iter().cloned())),
            service: Arc::new(self.rooms.service.with_limits(config.limits.requests.clone())),
            store: self.rooms.store.clone(),
        });
        Ok(())
    }

    /// Finishes the registrations in progress, within bounds, and ends. What is
    /// left is in the journal.
    pub async fn stop(self) {
        tracing::info!("draining");
        let left = self.registrar.drain(self.drain).await;
        if left > 0 {
            tracing::warn!(left, "registrations are left to the next start");
        }
        // Joining threads blocks.
        let _ = tokio::task::spawn_blocking(|| self.server.stop()).await;
    }
}

/// Removes what need not be kept of the audit log, a bit at a time.
fn prune_audit(store: Arc<Sqlite>, mut keep: watch::Receiver<Keep>) -> JoinSet<()> {
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        loop {
            let kept = *keep.borrow_and_update();
            match store.prune_audit(kept).await {
                Ok(0) => {}
                Ok(pruned) => {
                    tracing::info!(pruned, "old entries of the audit log are removed");
                    continue;
                }
                Err(error) => tracing::warn!(%error, "the audit log is not pruned"),
            }
            if let Ok(Err(_)) = tokio::time::timeout(PRUNE_EVERY, keep.changed()).await {
                return;
            }
        }
    });
    tasks
}

async fn start_plain(section: &config::PlainCoap, rooms: &Rooms) -> Result<JoinSet<()>> {
    let config::PlainCoap { listen, enrollment } = section;
    let cannot = || format!("cannot listen on {listen} for plain CoAP");
    let socket = UdpSocket::bind(listen).await.with_context(cannot)?;
    let address = socket.local_addr()?;
    let seed = [random()?, random()?];
    let plain = Plain::new(socket, rooms.service.clone(), Arc::new(enrollment.clone()), Instant::now(), seed)
        .with_context(cannot)?;
    tracing::warn!(
        enrollment = enrollment.name,
        "plain CoAP on coap://{address}, for a bench: whoever reaches it gets the certificates of the enrollment"
    );
    let mut tasks = JoinSet::new();
    tasks.spawn(plain.run());
    Ok(tasks)
}

/// The cloud that the configuration names, and how it is to be called.
pub(super) fn cloud(config: &Config) -> Result<(Arc<dyn IotPlatform>, registrar::Config)> {
    let Some(section) = &config.iot_platform else {
        let limits = registrar::Config { sweep_pause: None, ..registrar::Config::default() };
        return Ok((Arc::new(NoCloud), limits));
    };
    let client = Arc::new(Client::new(section.client.clone()).context("[iot_platform]")?);
    let reader = client.clone();
    tokio::spawn(async move { reader.read_credentials().await });
    let refuse_existing = config.refuse_existing.clone();
    Ok((client, registrar::Config { refuse_existing, ..section.registrar.clone() }))
}

#[derive(Debug)]
enum Order {
    Stop,
    GiveUp(anyhow::Error),
    Reload,
}

struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) -> Order {
        tokio::select! {
            _ = self.interrupt.recv() => Order::Stop,
            _ = self.terminate.recv() => Order::Stop,
            _ = self.hangup.recv() => Order::Reload,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_worker_that_ends_ends_the_process_with_an_error() {
        let folder = tempfile::TempDir::new().unwrap();
        let text = "listen = \"127.0.0.1:0\"\n\
                    database = \"sqlite:certdist.db\"\n\
                    [limits]\n\
                    workers = 3\n\
                    [[enrollment]]\n\
                    name = \"lamp\"\n\
                    product_key = \"a1\"\n\
                    kind = \"derived\"\n\
                    key = \"hex:000102030405060708090a0b0c0d0e0f\"\n";
        let config = Config::parse(text, folder.path()).unwrap();
        let running = Running::start(&config).await.unwrap();
        running.server.fail_worker(1);
        let (file, mut signals) = (ConfigArgs { config: None }, Signals::new().unwrap());
        let followed = follow(running, &file, &config, &mut signals);
        let outcome = tokio::time::timeout(Duration::from_secs(30), followed).await.expect("it ends");
        let Err(Failure::Failed(problem)) = outcome else { panic!("exit code 1") };
        assert!(problem.to_string().starts_with("worker 1 ended"), "{problem}");
    }
}
