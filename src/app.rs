//! Puts the modules together: what a configuration asks for, made and running. `serve`
//! and `demo` run it, and `register` calls the same cloud.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use tokio::{net::UdpSocket, runtime::Handle, sync::watch, task::JoinSet};

use crate::{
    admin,
    cert::Service,
    config::{self, Config},
    iot_platform::{IotPlatform, NoCloud, client::Client},
    provision::Provisioner,
    psk::Enrollments,
    random::random,
    registrar::{self, Registrar},
    server::{Pulse, Rooms, Server, plain::Plain},
    store::{Store, StoreError, audit::Keep, sqlite::Sqlite, unix_now},
};

/// A server with everything that it needs.
pub struct App {
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

impl App {
    /// Takes up what a crash has left, and starts to listen.
    pub async fn start(
        config: &Config,
        table: Arc<Sqlite>,
        (cloud, limits): (Arc<dyn IotPlatform>, registrar::Config),
    ) -> Result<Self> {
        let store: Arc<dyn Store> = table.clone();
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
                let admin = admin::start(&console(section), sources, &config.enrollments).await?;
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
        let (keep, kept_now) = watch::channel(kept(config.audit));
        Ok(Self {
            server,
            rooms,
            registrar,
            admin,
            drain: config.limits.drain,
            _plain: plain,
            keep,
            _pruning: pruning(table.clone(), kept_now),
            store: table,
        })
    }

    /// Addresses that devices connect to, at least one.
    pub fn addresses(&self) -> &[SocketAddr] {
        self.server.addresses()
    }

    /// For the watchdog: one a worker.
    pub fn pulses(&self) -> Vec<Pulse> {
        self.server.pulses()
    }

    /// Has a worker fail, as a defect would.
    #[cfg(test)]
    pub(crate) fn fail_worker(&self, number: usize) {
        self.server.fail_worker(number);
    }

    /// Waits until a worker has ended, which none does by itself, and answers with its
    /// number.
    pub async fn worker_ended(&mut self) -> usize {
        self.server.worker_ended().await
    }

    /// Looks at all devices at the cloud, as the server does from time to time. Answers
    /// with how many have signed in there.
    #[cfg(feature = "simulation")]
    pub async fn activated(&self) -> Result<u64> {
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
            admin.reload(config.admin.as_ref().map(console).as_ref(), &config.enrollments);
        }
        self.keep.send_replace(kept(config.audit));
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

fn pruning(store: Arc<Sqlite>, keep: watch::Receiver<Keep>) -> JoinSet<()> {
    let mut tasks = JoinSet::new();
    tasks.spawn(async move { store.keep_pruned(keep).await });
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
pub fn cloud(config: &Config) -> Result<(Arc<dyn IotPlatform>, registrar::Config)> {
    let Some(section) = &config.iot_platform else {
        let limits = registrar::Config { sweep_pause: None, ..registrar::Config::default() };
        return Ok((Arc::new(NoCloud), limits));
    };
    let client = Arc::new(Client::new(section.client.clone()).context("[iot_platform]")?);
    let reader = client.clone();
    tokio::spawn(async move { reader.read_credentials().await });
    let defaults = registrar::Config::default();
    let limits = registrar::Config {
        qps: section.qps,
        max_batches: if section.batches { defaults.max_batches } else { 0 },
        sweep_pause: section.sweep,
        refuse_existing: config.refuse_existing.clone(),
        ..defaults
    };
    Ok((client, limits))
}

/// How much of the audit log is kept.
fn kept(section: config::Audit) -> Keep {
    Keep { days: section.keep_days, rows: section.max_rows }
}

/// The operator's port, as the configuration has it.
fn console(section: &config::Admin) -> admin::Config {
    admin::Config {
        listen: section.listen,
        tls: section.tls.clone(),
        users: section.users.clone(),
        tokens: section.tokens.clone(),
        require_token: section.require_token,
    }
}
