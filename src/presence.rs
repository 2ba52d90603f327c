//! Shows this process among the servers of its table: writes its row at each beat, and logs differences
//! between the servers. Only people read the row: if it cannot be written, nothing else is affected.

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use tokio::{sync::Notify, task::JoinSet};

use crate::{
    company::{self, Difference},
    config::Config,
    registrar::Targets,
    server::{Metrics, machine_name},
    store::{
        Store, StoreError,
        server::{BEAT_EVERY, Facts, KEPT, Load, MOST, Server, WallClock, new_server_id},
    },
    target,
};

/// Maximum time for the last write of a server that stops.
const LEAVE: Duration = Duration::from_secs(2);

/// Maximum number of differences that are logged at a time.
const MAX_LOGGED: usize = 20;

/// Returns the name of a server: the name in the configuration, or else the name of the machine and the
/// port on which devices are served.
pub fn name(config: &Config, listen: &[SocketAddr]) -> String {
    config.server_name.clone().unwrap_or_else(|| match listen.first() {
        Some(address) => format!("{}:{}", machine_name(), address.port()),
        None => machine_name(),
    })
}

/// Returns the fingerprints of a configuration, from which no key can be calculated.
pub fn facts(config: &Config) -> Facts {
    let mut enrollments: Vec<_> = config
        .enrollments
        .iter()
        .map(|own| {
            let target = config.target_of.get(&own.name).map_or(target::DEFAULT, String::as_str);
            [&own.name, own.kind.name().as_str(), &own.product_key, target].map(str::to_owned)
        })
        .collect();
    enrollments.sort();
    let mut keys: Vec<_> = config
        .enrollments
        .iter()
        .flat_map(|own| own.ids_of_keys().into_iter().map(|id| [own.name.clone(), id.as_str().to_owned()]))
        .collect();
    keys.sort();
    Facts {
        enrollments: fingerprint("enrollments", enrollments.as_flattened()),
        keys: fingerprint("keys", keys.as_flattened()),
        database_key: config.database_keys.first().map(|id| id.to_string()),
    }
}

/// Returns a hash of texts, 32 hex digits.
fn fingerprint(purpose: &str, texts: &[String]) -> String {
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(b"certdist: fingerprint of a configuration") else {
        unreachable!("HMAC takes any key")
    };
    for text in std::iter::once(purpose).chain(texts.iter().map(String::as_str)) {
        mac.update(&(text.len() as u64).to_be_bytes());
        mac.update(text.as_bytes());
    }
    hex::encode(&mac.finalize().into_bytes()[..16])
}

/// Metrics and counters from which a server's load is calculated.
struct Loads {
    workers: Vec<Arc<Metrics>>,
    targets: Arc<Targets>,
    /// Time of the last reading, and the number of requests answered until then.
    last: Mutex<(Instant, u64)>,
}

impl Loads {
    fn answered(workers: &[Arc<Metrics>]) -> u64 {
        let of = |worker: &Arc<Metrics>| (0..=u8::MAX).map(|code| worker.responses.of(code)).sum::<u64>();
        workers.iter().map(of).sum()
    }

    /// Returns the load since the last reading.
    fn read(&self) -> Load {
        let (now, answered) = (Instant::now(), Self::answered(&self.workers));
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let (before, known) = std::mem::replace(&mut *last, (now, answered));
        let millis = u64::try_from(now.saturating_duration_since(before).as_millis()).unwrap_or(u64::MAX);
        let requests = answered.saturating_sub(known).saturating_mul(60_000);
        Load {
            requests_per_minute: requests.checked_div(millis).unwrap_or_default(),
            registrations: self.targets.registrations() as u64,
        }
    }
}

/// The row of this process.
pub struct Presence {
    server: Arc<Mutex<Server>>,
    store: Arc<dyn Store>,
    changed: Arc<Notify>,
    tasks: JoinSet<()>,
}

impl Presence {
    /// Begins to beat, in a task of the current runtime. `listen` has the addresses for devices, and
    /// `workers` the metrics of the threads that serve them; both are empty if there are none.
    pub fn start(
        config: &Config,
        command: &str,
        listen: &[SocketAddr],
        workers: Vec<Arc<Metrics>>,
        targets: Arc<Targets>,
        store: Arc<dyn Store>,
    ) -> Result<Self, StoreError> {
        let listen_text: Vec<String> = listen.iter().map(ToString::to_string).collect();
        let server = Server {
            id: new_server_id()?,
            name: name(config, listen),
            command: command.to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            host: machine_name(),
            process: std::process::id(),
            listen: listen_text.join(","),
            owners: targets.all().iter().map(|target| target.registrar.owner_id()).collect(),
            facts: facts(config),
            load: Load::default(),
        };
        let server = Arc::new(Mutex::new(server));
        let changed = Arc::<Notify>::default();
        let last = Mutex::new((Instant::now(), Loads::answered(&workers)));
        let loads = Loads { workers, targets, last };
        let mut tasks = JoinSet::new();
        tasks.spawn(keep_beating(server.clone(), loads, store.clone(), changed.clone()));
        Ok(Self { server, store, changed, tasks })
    }

    /// Notes a changed configuration, and beats at once.
    pub fn reload(&self, config: &Config) {
        lock(&self.server).facts = facts(config);
        self.changed.notify_one();
    }

    /// Removes the row, because the process stops. Waits for a short time only.
    pub async fn leave(mut self) {
        self.tasks.shutdown().await;
        let id = lock(&self.server).id;
        match tokio::time::timeout(LEAVE, self.store.remove_server(id)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(%error, "could not remove this server from the table"),
            Err(_) => tracing::debug!("could not remove this server from the table in time"),
        }
    }
}

fn lock(server: &Mutex<Server>) -> std::sync::MutexGuard<'_, Server> {
    // No code panics while it holds the lock, so a poisoned lock cannot occur.
    server.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn keep_beating(server: Arc<Mutex<Server>>, loads: Loads, store: Arc<dyn Store>, changed: Arc<Notify>) {
    let mut logged = BTreeSet::new();
    loop {
        if let Err(error) = beat(&server, &loads, &*store, &mut logged).await {
            tracing::debug!(%error, "could not note this server in the table");
        }
        let _ = tokio::time::timeout(BEAT_EVERY, changed.notified()).await;
    }
}

/// Beats once, removes servers that died long ago, and logs the differences that are new.
async fn beat(
    server: &Mutex<Server>,
    loads: &Loads,
    store: &dyn Store,
    logged: &mut BTreeSet<Difference>,
) -> Result<(), StoreError> {
    let own = {
        let mut own = lock(server);
        own.load = loads.read();
        own.clone()
    };
    store.beat_server(&own, WallClock::read()).await?;
    let servers = store.servers().await?;
    if servers.len() > MOST || servers.iter().any(|view| view.silent_for >= KEPT.as_secs().cast_signed()) {
        store.remove_silent_servers(KEPT, MOST).await?;
    }
    let found: BTreeSet<Difference> = company::differences(&servers).into_iter().take(MAX_LOGGED).collect();
    let is_known = |new: &Difference| {
        // A clock that continues to drift is logged only once.
        logged.iter().any(|known| known.kind == new.kind && known.groups == new.groups)
    };
    for difference in found.iter().filter(|found| !is_known(found)) {
        tracing::warn!(concern = %difference, "the server runs, but something needs attention");
    }
    *logged = found;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    const HEAD: &str = "listen = \"127.0.0.1:5684\"\ndatabase = \"sqlite:certdist.db\"\n";

    fn enrollment(name: &str, product: &str, key: u8) -> String {
        let key = hex::encode([key; 16]);
        format!(
            "[[enrollment]]\nname = \"{name}\"\nproduct_key = \"{product}\"\nkind = \"derived\"\nkey = \"hex:{key}\"\n"
        )
    }

    fn facts_of(enrollments: &[String]) -> Facts {
        let text = [HEAD.to_owned(), enrollments.concat()].concat();
        facts(&Config::parse(&text, Path::new("/etc/certdist")).unwrap())
    }

    #[test]
    fn the_fingerprints_follow_the_enrollments_and_their_keys_but_not_their_order() {
        let (lamp, plug) = (enrollment("lamp", "a1", 1), enrollment("plug", "a2", 2));
        let first = facts_of(&[lamp.clone(), plug.clone()]);
        assert_eq!(first, facts_of(&[plug.clone(), lamp.clone()]));
        assert_eq!(first.enrollments.len(), 32);
        let other_key = facts_of(&[enrollment("lamp", "a1", 3), plug.clone()]);
        assert_eq!(other_key.enrollments, first.enrollments);
        assert_ne!(other_key.keys, first.keys);
        for others in [&[lamp.clone()][..], &[enrollment("lamp", "a3", 1), plug.clone()]] {
            assert_ne!(facts_of(others).enrollments, first.enrollments);
        }
        let individual = plug.replace("derived", "individual").replace(&hex::encode([2; 16]), "");
        let individual = individual.replace("key = \"hex:\"\n", "");
        assert_ne!(facts_of(&[lamp, individual]).enrollments, first.enrollments);
    }

    #[test]
    fn a_server_is_named_by_its_configuration_or_by_its_machine_and_port() {
        let config = |keys: &str| {
            let text = [keys, HEAD, &enrollment("lamp", "a1", 1)].concat();
            Config::parse(&text, Path::new("/etc/certdist")).unwrap()
        };
        let listen = ["127.0.0.1:7000".parse().unwrap()];
        assert_eq!(name(&config("server_name = \"east 1\"\n"), &listen), "east 1");
        assert_eq!(name(&config(""), &listen), format!("{}:7000", machine_name()));
    }
}
