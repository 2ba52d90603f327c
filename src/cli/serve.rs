//! `certdist serve`: runs the server until a signal says otherwise.

use std::{io, sync::Arc};

use anyhow::{Context, anyhow};
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::{ConfigArgs, Failure, Outcome, core_dumps, open_store, print};
use crate::{
    app::{self, App},
    config::Config,
    notify,
    server::{self, Pulse},
};

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
    let app = start(&config).await?;
    for address in app.addresses() {
        print(|out| writeln!(out, "listening on coaps://{address}"))?;
    }
    notify::ready();
    let watchdog = tokio::spawn(keep_watchdog(app.pulses().into()));
    let outcome = follow(app, &args.config, &config, &mut signals).await;
    watchdog.abort();
    outcome
}

/// Does what signals say until the server ends.
async fn follow(mut app: App, file: &ConfigArgs, config: &Config, signals: &mut Signals) -> Outcome {
    let outcome = loop {
        match order(&mut app, signals).await {
            Order::Stop => break Ok(()),
            Order::GiveUp(problem) => break Err(Failure::Failed(problem)),
            Order::Reload => match file.read() {
                Ok(changed) => {
                    if let Err(error) = app.reload(&changed) {
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
    app.stop().await;
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

/// Opens the table and the way to the cloud, and starts to serve.
pub(super) async fn start(config: &Config) -> Result<App, Failure> {
    let store = open_store(config)?;
    let cloud = app::cloud(config).map_err(Failure::Usage)?;
    Ok(App::start(config, store, cloud).await?)
}

/// Waits for what is to be done next: what a signal says, or to end when a worker
/// has ended, since a server without it serves only some of the devices.
async fn order(app: &mut App, signals: &mut Signals) -> Order {
    tokio::select! {
        order = signals.next() => order,
        number = app.worker_ended() => Order::GiveUp(anyhow!(
            "worker {number} ended unexpectedly, and its devices are not served any more; the log above says \
             why, and a restart serves them again"
        )),
    }
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
    use std::time::Duration;

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
        let app = start(&config).await.unwrap();
        app.fail_worker(1);
        let (file, mut signals) = (ConfigArgs { config: None }, Signals::new().unwrap());
        let followed = follow(app, &file, &config, &mut signals);
        let outcome = tokio::time::timeout(Duration::from_secs(30), followed).await.expect("it ends");
        let Err(Failure::Failed(problem)) = outcome else { panic!("exit code 1") };
        assert!(problem.to_string().starts_with("worker 1 ended"), "{problem}");
    }
}
