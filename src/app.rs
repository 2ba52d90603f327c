//! Builds a server from a configuration, and runs it. `certdist serve` and `certdist demo` use this
//! module. `certdist register` uses only its function [`targets`].

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use tokio::{
    net::UdpSocket,
    runtime::Handle,
    sync::{Notify, watch},
    task::JoinSet,
};

use crate::{
    admin, company,
    config::{self, Config, MqttSettings},
    iot_platform::{
        IotPlatform, NoCloud,
        calls::{Calls, Recorded},
        client::Client,
    },
    presence::{self, Presence},
    provision::{Hosts, Provisioner},
    psk::{
        Enrollments,
        uses::{NOTE_EVERY, UseCounters},
    },
    random::random,
    registrar::{self, Registrar, Target, Targets},
    resource::Service,
    server::{Pulse, Server, Services, plain::Plain},
    store::{
        DeviceRow, Store, StoreError, Table,
        audit::Counts,
        claim::Owner,
        retention::{self, Limits, Retention, Size},
        unix_now, waiting,
    },
    target,
};
#[cfg(feature = "simulation")]
use crate::{
    device::DeviceId,
    store::{
        Actor,
        order::{Begun, Move, Placed},
    },
};

/// Pause between two searches for expired entries of the audit log.
const PRUNE_EVERY: Duration = Duration::from_secs(60);

/// Pause between two checks that the database's file is still at its path.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Number of consecutive checks that must fail before the database counts as lost. A single failure
/// proves little, because a program may replace the file in two steps.
const LOOKS: u32 = 3;

/// Reason why a server cannot continue.
#[derive(Debug)]
pub enum Failed {
    /// The worker with this number has ended.
    Worker(usize),
    /// The database was removed or replaced.
    Database(StoreError),
}

/// Maximum time for [`App::move_device`].
#[cfg(feature = "simulation")]
const MOVE: Duration = Duration::from_secs(30);

/// A running server with all its parts.
pub struct App {
    server: Server,
    services: Services,
    targets: Arc<Targets>,
    admin: Option<admin::Admin>,
    drain: Duration,
    store: Arc<dyn Table>,
    keep: watch::Sender<Limits>,
    key_uses: Arc<UseCounters>,
    /// Reports that the keys may have changed.
    reloaded: Arc<Notify>,
    /// Task that writes the uses of keys to the store.
    _noting: JoinSet<()>,
    /// Task that ends when the database was removed or replaced.
    watching: JoinSet<StoreError>,
    /// Tasks of plain CoAP, which end when the set is dropped.
    _plain: Option<JoinSet<()>>,
    _pruning: JoinSet<()>,
    presence: Presence,
}

impl App {
    /// Opens the server's sockets, and resumes the registrations that a crash left in the journal.
    pub async fn start(config: &Config, table: Arc<dyn Table>, targets: Arc<Targets>) -> Result<Self> {
        let store: Arc<dyn Store> = table.clone();
        let mut provisioner = Provisioner::new(store.clone(), targets.clone(), config.limits.patience);
        if !config.targets.is_empty() {
            provisioner = provisioner.with_hosts(Arc::new(MqttHosts::new(config, &targets)));
        }
        let service = Service::new(Instant::now(), provisioner, config.limits.requests.clone());
        let key_uses = Arc::<UseCounters>::default();
        let services = Services {
            enrollments: Arc::new(Enrollments::counted(config.enrollments.iter().cloned(), &key_uses)),
            service: Arc::new(service.telling_host(config.tell_host.clone())),
            store,
        };
        let server = Server::start(&config.listen, &config.limits, &services, &Handle::current())?;
        let admin = match &config.admin {
            Some(section) => {
                let sources = admin::Sources {
                    workers: server.metrics(),
                    pulses: server.pulses(),
                    targets: targets.clone(),
                    throttle: services.service.counters(),
                    failures: services.service.failures(),
                    key_uses: key_uses.clone(),
                    store: table.clone(),
                    started: unix_now(),
                    database: crate::store::shown(&config.database),
                    name: presence::name(config, server.addresses()),
                };
                let admin = admin::start(section, sources, &config.enrollments).await?;
                tracing::info!(url = admin.url(), "serving health, metrics and the console");
                Some(admin)
            }
            None => None,
        };
        let plain = match &config.plain_coap {
            Some(section) => Some(start_plain(section, &services).await?),
            None => None,
        };
        // Without a configured IoT Platform, the registrations in the journal cannot be resumed.
        if !config.targets.is_empty() {
            targets.recover().await?;
        }
        targets.start_sweeps();
        let (keep, kept_now) = watch::channel(kept(config.audit));
        let mut pruning = JoinSet::new();
        pruning.spawn(keep_pruned(table.clone(), kept_now, targets.clone()));
        let mut noting = JoinSet::new();
        let reloaded = Arc::<Notify>::default();
        noting.spawn(note_key_uses(key_uses.clone(), services.store.clone(), reloaded.clone()));
        let mut watching = JoinSet::new();
        watching.spawn(database_lost(table.clone()));
        let presence = Presence::start(
            config,
            company::SERVE,
            server.addresses(),
            server.metrics(),
            targets.clone(),
            services.store.clone(),
        )?;
        Ok(Self {
            server,
            services,
            targets,
            admin,
            drain: config.limits.drain,
            _plain: plain,
            keep,
            key_uses,
            reloaded,
            _noting: noting,
            _pruning: pruning,
            presence,
            store: table,
            watching,
        })
    }

    /// Returns the addresses to which devices connect. There is at least one.
    pub fn addresses(&self) -> &[SocketAddr] {
        self.server.addresses()
    }

    /// Returns the pulse of each worker, for the watchdog.
    pub fn pulses(&self) -> Vec<Pulse> {
        self.server.pulses()
    }

    /// Makes a worker panic, to test the reaction to a defect.
    #[cfg(test)]
    pub(crate) fn fail_worker(&self, number: usize) {
        self.server.fail_worker(number);
    }

    /// Waits until the server cannot continue, and returns the reason. In normal operation, the
    /// future never becomes ready.
    pub async fn failed(&mut self) -> Failed {
        tokio::select! {
            number = self.server.worker_ended() => Failed::Worker(number),
            Some(Ok(error)) = self.watching.join_next() => Failed::Database(error),
        }
    }

    /// Makes a sweep immediately: queries all devices at IoT Platform. Returns the number of
    /// devices that have signed in there.
    #[cfg(feature = "simulation")]
    pub async fn activated(&self) -> Result<u64> {
        for target in self.targets.all() {
            target.registrar.sweep().await?;
        }
        let (mut activated, mut after) = (0, None);
        loop {
            let rows = self.services.store.rows_after(after.as_ref(), 1000).await?;
            let Some(last) = rows.last() else { return Ok(activated) };
            after = Some(last.id.clone());
            activated += rows.iter().filter(|row| row.activated.is_some()).count() as u64;
        }
    }

    /// Moves a device to another target, and waits until that is done.
    #[cfg(feature = "simulation")]
    pub async fn move_device(&self, device: &DeviceId, to: &Move) -> Result<()> {
        let store = &self.store;
        let placed = store.place_move(device, to, Begun::Keep, &Actor::system_user()).await?;
        anyhow::ensure!(matches!(placed, Placed::Yes(_)), "{device} cannot be moved: {placed:?}");
        let deadline = Instant::now() + MOVE;
        while let Some(order) = store.order_of(device).await? {
            let reason = order.failure.unwrap_or_default();
            anyhow::ensure!(Instant::now() < deadline, "{device} is not moved yet: {reason}");
            for target in self.targets.all() {
                target.registrar.look_for_orders().await?;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    /// Applies a changed configuration, except for the settings that [`Config::needs_restart`]
    /// names. Fails without changing anything if the database keys do not open every secret in the
    /// database.
    pub fn reload(&self, config: &Config) -> Result<(), StoreError> {
        self.store.set_keys(config.database_keys.clone())?;
        for target in self.targets.all() {
            target.registrar.set_refuse_existing(config.refuse_existing.clone());
            target.registrar.set_guards(config.timed_guards());
        }
        self.store.set_max_places(config.max_places());
        self.targets.set_of_enrollments(config.target_of.clone());
        if let Some(admin) = &self.admin {
            admin.reload(config.admin.as_ref(), &config.enrollments);
        }
        self.keep.send_replace(kept(config.audit));
        self.presence.reload(config);
        let service = self.services.service.with_limits(config.limits.requests.clone());
        self.server.reload(&Services {
            enrollments: Arc::new(Enrollments::counted(config.enrollments.iter().cloned(), &self.key_uses)),
            service: Arc::new(service.telling_host(config.tell_host.clone())),
            store: self.services.store.clone(),
        });
        self.reloaded.notify_one();
        Ok(())
    }

    /// Stops the server. Waits a limited time for the registrations in progress to finish.
    /// Unfinished registrations stay in the journal.
    pub async fn stop(self) {
        tracing::info!("draining: finishing registrations, accepting no new ones");
        let left = self.targets.drain(self.drain).await;
        if left > 0 {
            tracing::warn!(
                registrations = left,
                "unfinished registrations stay in the journal; another server, the next start or the devices' next requests continue them"
            );
        }
        if let Some(admin) = &self.admin {
            admin.end_jobs().await;
        }
        // `stop` waits for threads, so it runs on a thread for blocking work.
        let (key_uses, store) = (self.key_uses.clone(), self.services.store.clone());
        let _ = tokio::task::spawn_blocking(|| self.server.stop()).await;
        if let Err(error) = key_uses.note(&*store).await {
            tracing::warn!(%error, "could not store the last uses of keys");
        }
        self.presence.leave().await;
    }
}

/// Writes the uses of keys to the store, at intervals and after each reload.
async fn note_key_uses(key_uses: Arc<UseCounters>, store: Arc<dyn Store>, reloaded: Arc<Notify>) {
    loop {
        if let Err(error) = key_uses.note(&*store).await {
            tracing::warn!(%error, "could not store the uses of keys; trying again");
        }
        let _ = tokio::time::timeout(NOTE_EVERY, reloaded.notified()).await;
    }
}

/// Derives the MQTT hosts of devices from the settings of their targets.
struct MqttHosts {
    targets: Arc<Targets>,
    /// Settings of each target, including a target whose cloud cannot be called.
    clouds: HashMap<String, MqttSettings>,
}

impl MqttHosts {
    fn new(config: &Config, targets: &Arc<Targets>) -> Self {
        let cloud = |target: &config::Target| (target.name.clone(), target.mqtt.clone());
        Self { targets: targets.clone(), clouds: config.targets.iter().map(cloud).collect() }
    }
}

impl Hosts for MqttHosts {
    fn host_of(&self, row: &DeviceRow, product_key: &str) -> Option<String> {
        Some(self.clouds.get(&self.targets.of(row))?.host_of(product_key))
    }
}

/// Waits until the database's file was removed or replaced, and returns the error. Ignores a file
/// that is missing only for a moment. Also logs when secrets are sealed under a database key that
/// this server does not have. The server then still serves devices whose secrets it can open.
async fn database_lost(store: Arc<dyn Table>) -> StoreError {
    let (mut missed, mut has_keys) = (0, true);
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let store = store.clone();
        // The database keys are checked only if the file is in place. Both checks may block.
        let look = move || store.is_in_place().map(|()| store.check_keys());
        match tokio::task::spawn_blocking(look).await {
            Ok(Err(error)) => {
                missed += 1;
                if missed >= LOOKS {
                    return error;
                }
            }
            Ok(Ok(keys)) => {
                missed = 0;
                log_keys(&mut has_keys, keys);
            }
            Err(_) => missed = 0,
        }
    }
}

/// Logs when the server begins to lack a database key, and when it has all database keys again.
fn log_keys(has_keys: &mut bool, keys: Result<(), StoreError>) {
    match keys {
        Ok(()) if !*has_keys => {
            *has_keys = true;
            tracing::info!("the database keys open every secret again");
        }
        Err(error @ StoreError::Unusable(_)) if *has_keys => {
            *has_keys = false;
            tracing::error!(%error, "secrets in the database cannot be opened");
        }
        // Any other error does not show that a database key is missing.
        _ => {}
    }
}

/// Removes expired entries of the audit log once a minute and whenever the retention changes. Ends
/// when the sender of `keep` is dropped.
async fn keep_pruned(store: Arc<dyn Table>, mut keep: watch::Receiver<Limits>, targets: Arc<Targets>) {
    let mut retention = Retention::default();
    loop {
        let limits = *keep.borrow_and_update();
        match prune(&mut retention, &store, limits, &targets).await {
            Ok(Counts { changes: 0, repeats: 0 }) => {}
            Ok(Counts { changes, repeats }) => {
                tracing::info!(entries = changes, repeats, "removed expired entries of the audit log");
            }
            Err(error) => {
                tracing::warn!(%error, "could not remove expired entries of the audit log; trying again");
            }
        }
        if let Ok(Err(_)) = tokio::time::timeout(PRUNE_EVERY, keep.changed()).await {
            return;
        }
    }
}

/// Prunes once, unless no entry has expired or another process is pruning. Also removes devices that
/// no longer wait to be admitted. Returns the numbers of removed entries of the audit log.
async fn prune(
    retention: &mut Retention,
    store: &Arc<dyn Table>,
    limits: Limits,
    targets: &Targets,
) -> Result<Counts, StoreError> {
    let is_confirmed = targets.clock_offset().is_some();
    let counted = store.clone();
    let devices = tokio::task::spawn_blocking(move || counted.count()).await;
    let devices = devices.map_err(|error| StoreError::Failed(error.to_string()))??;
    let keep = limits.with(devices);
    store.prune_waiting(store.now().saturating_sub(waiting::KEPT)).await?;
    if !retention.is_due(&**store, keep, is_confirmed).await? {
        return Ok(Counts::default());
    }
    let work = async |_| retention.apply(&**store, keep, is_confirmed).await;
    Ok(targets.with_lease(retention::LEASE, work).await?.unwrap_or_default())
}

async fn start_plain(section: &config::PlainCoap, services: &Services) -> Result<JoinSet<()>> {
    let config::PlainCoap { listen, enrollment } = section;
    let cannot = || format!("could not listen on {listen} for plain CoAP");
    let socket = UdpSocket::bind(listen).await.with_context(cannot)?;
    let address = socket.local_addr()?;
    let seed = [random()?, random()?];
    let plain =
        Plain::new(socket, services.service.clone(), Arc::new(enrollment.clone()), Instant::now(), seed)
            .with_context(cannot)?;
    tracing::warn!(
        url = format!("coap://{address}"),
        enrollment = enrollment.name,
        "serving plain CoAP, for tests only: anyone who reaches it gets the certificates of this enrollment"
    );
    let mut tasks = JoinSet::new();
    tasks.spawn(plain.run());
    Ok(tasks)
}

/// Creates the targets of the configuration, each with its client and registrar. The registrars
/// claim registrations for `command`. `adapt` may change the settings of each target.
pub fn targets(
    config: &Config,
    store: &Arc<dyn Store>,
    command: &str,
    adapt: impl Fn(registrar::Config) -> registrar::Config,
) -> Result<Arc<Targets>> {
    let mut clouds = Vec::new();
    for target in &config.targets {
        clouds.push((target.name.as_str(), cloud(target)?));
    }
    if clouds.is_empty() {
        let limits = registrar::Config { sweep_pause: None, ..registrar::Config::default() };
        let cloud = Cloud { client: Arc::new(NoCloud::unconfigured()), limits, host: None, missing: None };
        clouds.push((target::DEFAULT, cloud));
    }
    // Targets with the same credentials share the limits of their account.
    let mut shared_qps = HashMap::<String, f64>::new();
    for (_, Cloud { client, limits, .. }) in &clouds {
        let shared = shared_qps.entry(client.account()).or_default();
        *shared = shared.max(limits.qps);
    }
    store.set_max_places(config.max_places());
    let mut all = Vec::new();
    for (name, Cloud { client, limits, host, missing }) in clouds {
        let owner = match config.names_targets {
            true => Owner::new(&format!("{command} at {name}"))?,
            false => Owner::new(command)?,
        };
        let limits = adapt(registrar::Config {
            shared_qps: shared_qps[&client.account()],
            refuse_existing: config.refuse_existing.clone(),
            guards: config.timed_guards(),
            target: name.to_owned(),
            names_target: config.names_targets,
            ..limits
        });
        let calls = Arc::<Calls>::default();
        let cloud = Arc::new(Recorded::new(client, calls.clone()));
        let registrar = Registrar::new(limits, owner, store.clone(), cloud, Handle::current());
        all.push(Target { registrar, calls, host, missing });
    }
    Ok(Targets::new(all, config.target_of.clone(), config.names_targets))
}

/// Client of a cloud, and the settings of its registrar.
struct Cloud {
    client: Arc<dyn IotPlatform>,
    limits: registrar::Config,
    host: Option<String>,
    /// Reason why the cloud cannot be called; `None` if it can be called.
    missing: Option<String>,
}

fn cloud(target: &config::Target) -> Result<Cloud> {
    let defaults = registrar::Config::default();
    let section = match &target.settings {
        Ok(section) => section,
        Err(reason) => {
            let client = Arc::new(NoCloud::without_credentials(reason));
            return Ok(Cloud { client, limits: defaults, host: None, missing: Some(reason.clone()) });
        }
    };
    let client = Arc::new(Client::new(section.client.clone()).with_context(|| target.place())?);
    let reader = client.clone();
    tokio::spawn(async move { reader.read_credentials().await });
    let limits = registrar::Config {
        qps: section.qps,
        max_batches: if section.batches { defaults.max_batches } else { 0 },
        sweep_pause: section.sweep,
        manages: section.manages,
        ..defaults
    };
    Ok(Cloud { client, limits, host: Some(section.client.host()), missing: None })
}

/// Returns the retention of the audit log.
fn kept(section: config::Audit) -> Limits {
    let size = |rows: Option<u64>| rows.map_or(Size::ByDevices, Size::AtMost);
    Limits { days: section.keep_days, changes: size(section.max_rows), repeats: size(section.max_repeats) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        seal::Keyring,
        store::{DeviceState, ImportRow, claim::Owner, lease::Leases, sealed::Sealed},
        testing::store::{Memory, import},
    };

    #[test]
    fn only_a_missing_key_counts_as_one_and_only_all_keys_end_it() {
        let mut has_keys = true;
        let busy = || Err(StoreError::Busy("locked".into()));
        for (keys, expected) in [
            (busy(), true),
            (Err(StoreError::Unusable("a key is missing".into())), false),
            (busy(), false),
            (Ok(()), true),
        ] {
            log_keys(&mut has_keys, keys);
            assert_eq!(has_keys, expected);
        }
    }

    #[tokio::test]
    async fn a_device_gets_its_host_although_the_credentials_of_its_target_are_missing() {
        let section = |kind: &str, keys: &str| {
            format!(
                "{kind}\nendpoint = \"http://127.0.0.1:1\"\ncredentials = \"file:/nowhere/certdist.ini\"\n{keys}\n"
            )
        };
        let text = [
            "listen = \"127.0.0.1:5684\"\ndatabase = \"sqlite:certdist.db\"\n".to_owned(),
            section("[iot_platform]", "region = \"cn-shanghai\""),
            section("[[target]]\nname = \"tokyo\"", "region = \"ap-northeast-1\"\ninstance_id = \"iot-1\""),
            section("[[target]]\nname = \"osaka\"", "region = \"r\"\nhost = \"mqtt.example:1884\""),
            "[[enrollment]]\nname = \"lamp\"\nproduct_key = \"a1\"\nkind = \"individual\"\n".to_owned(),
        ];
        let config = Config::parse(&text.concat(), std::path::Path::new("/etc/certdist")).unwrap();
        assert!(config.targets.iter().all(|target| target.settings.is_err()));
        let store: Arc<dyn Store> = Arc::new(Memory::default());
        let targets = targets(&config, &store, "test", |limits| limits).unwrap();
        let hosts = MqttHosts::new(&config, &targets);
        let host_of = |target: &str| {
            let row = DeviceRow {
                target: Some(target.into()),
                ..DeviceRow::imported(crate::device::DeviceId::parse("SN-1").unwrap(), "lamp", "a1")
            };
            hosts.host_of(&row, "a1")
        };
        let expected = [
            ("default", Some(config.targets[0].mqtt.host_of("a1"))),
            ("tokyo", Some(config.targets[1].mqtt.host_of("a1"))),
            ("osaka", Some("mqtt.example:1884".to_owned())),
            ("kobe", None),
        ];
        for (target, expected) in expected {
            assert_eq!(host_of(target), expected, "{target}");
        }
        assert!(
            host_of("default").unwrap().starts_with("a1.") && host_of("tokyo").unwrap().starts_with("iot-1.")
        );
    }

    #[tokio::test]
    async fn only_one_process_at_a_time_prunes_the_audit_log() {
        let store = Memory::default();
        let device = crate::device::DeviceId::parse("SN-1").unwrap();
        import(&store, [ImportRow::new(device.clone(), "lamp", "a1")]);
        for _ in 0..5 {
            store
                .set_state(&device, DeviceState::Disabled, &crate::store::Actor::system_user())
                .await
                .unwrap();
        }
        let registrar = Registrar::new(
            registrar::Config::default(),
            Owner::new("test").unwrap(),
            Arc::new(store.clone()),
            Arc::new(NoCloud::unconfigured()),
            Handle::current(),
        );
        let targets = Targets::only(registrar);
        let limits = Limits { days: None, changes: Size::AtMost(3), repeats: Size::AtMost(0) };
        let table: Arc<dyn Table> = Arc::new(Sealed::new(store.clone(), Keyring::default()));
        let mut retention = Retention::default();
        let mut pruned = async || {
            let counts = prune(&mut retention, &table, limits, &targets).await.unwrap();
            counts.changes
        };
        let other = Owner::new("other").unwrap();
        assert!(store.take_lease(&other, retention::LEASE).await.unwrap().is_some());
        assert_eq!(pruned().await, 0);
        store.give_lease_up(other.id, retention::LEASE).await.unwrap();
        assert_eq!(pruned().await, 4);
        // After pruning, the lease is free again.
        assert!(store.take_lease(&other, retention::LEASE).await.unwrap().is_some());
    }
}
