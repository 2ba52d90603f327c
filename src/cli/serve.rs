//! `certdist serve`: runs the server until a signal ends it.

use std::{io, sync::Arc, time::Duration};

use anyhow::anyhow;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::{CommandResult, ConfigArgs, Failure, concerns, open_store, print};
use crate::{
    app::{self, App, Failed},
    config::Config,
    notify,
    server::{self, Pulse},
    store::Store,
};

/// Maximum time to send the last answers and to write the last audit entries when the server stops,
/// after the registrations are drained.
pub(super) const AFTER_DRAIN: Duration = Duration::from_secs(20);

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
`listening on coaps://ADDR:PORT` for each address of `listen`, once it is ready.
SIGTERM finishes the work in progress, then ends. SIGHUP reloads the enrollments, the rate
limits, the database keys, [audit], and the users, tokens, hosts and certificate of [admin]; it
reports other changes, which need a restart.")]
pub struct Args {
    #[command(flatten)]
    config: ConfigArgs,
}

/// Runs until SIGTERM or SIGINT.
pub async fn run(args: Args) -> CommandResult {
    let config = args.config.read()?;
    for concern in concerns::of_configuration(&config, &args.config.path()) {
        tracing::warn!(concern, "the server runs, but something needs attention");
    }
    // The signal handlers are installed before the address is printed, because a program that reads
    // the address may send a signal immediately.
    let mut signals = Signals::new()?;
    let app = start(&config).await?;
    for address in app.addresses() {
        print(|out| writeln!(out, "listening on coaps://{address}"))?;
    }
    notify::ready();
    look_at_table(&config);
    let watchdog = tokio::spawn(keep_watchdog(app.pulses().into()));
    let outcome = follow(app, &args.config, &config, &mut signals).await;
    watchdog.abort();
    outcome
}

/// Logs the concerns about the table in the background.
fn look_at_table(config: &Config) {
    let config = config.clone();
    tokio::task::spawn_blocking(move || {
        for concern in concerns::of_table(&config) {
            tracing::warn!(concern, "the server runs, but something needs attention");
        }
    });
}

/// Handles signals until the server ends.
async fn follow(mut app: App, file: &ConfigArgs, config: &Config, signals: &mut Signals) -> CommandResult {
    let outcome = loop {
        match order(&mut app, signals).await {
            Order::Stop => break Ok(()),
            Order::GiveUp(problem) => break Err(Failure::Failed(problem)),
            Order::Abandon(problem) => {
                tracing::error!(error = %format_args!("{problem:#}"), "stopping at once because of an error");
                notify::stopping(AFTER_DRAIN);
                return Err(Failure::Failed(problem));
            }
            Order::Reload => match file.read() {
                Ok(changed) => {
                    if let Err(error) = app.reload(&changed) {
                        tracing::error!(%error, "could not reload; the configuration stays as it was");
                        continue;
                    }
                    tracing::info!(
                        "reloaded the enrollments, the rate limits, [audit], the users, tokens and hosts of [admin], and \
                         the database keys"
                    );
                    for concern in concerns::of_configuration(&changed, &file.path()) {
                        tracing::warn!(concern, "the server runs, but something needs attention");
                    }
                    look_at_table(&changed);
                    let keys = config.needs_restart(&changed);
                    if !keys.is_empty() {
                        tracing::warn!(
                            keys = keys.join(", "),
                            "other keys changed as well; restart certdist to apply them"
                        );
                    }
                }
                Err(Failure::Usage(error) | Failure::Failed(error)) => {
                    let error = format_args!("{error:#}");
                    tracing::error!(%error, "could not reload; the configuration stays as it was");
                }
            },
        }
    };
    if let Err(Failure::Failed(problem)) = &outcome {
        // The error is logged before draining begins, because draining takes a while.
        tracing::error!(error = %format_args!("{problem:#}"), "stopping because of an error");
    }
    notify::stopping(config.limits.drain + AFTER_DRAIN);
    app.stop().await;
    outcome
}

/// Feeds the service manager's watchdog while every worker makes progress. Runs on the asynchronous
/// runtime, so that a stuck runtime also stops feeding the watchdog.
async fn keep_watchdog(pulses: Arc<[Pulse]>) {
    let is_alive = || {
        let pulses = pulses.clone();
        async move {
            let silent = server::silent_workers(&pulses).await;
            if !silent.is_empty() {
                tracing::error!(workers = ?silent, "workers make no progress; the watchdog is not fed, so the service manager restarts certdist");
            }
            silent.is_empty()
        }
    };
    notify::keep_watchdog(is_alive).await;
}

/// Opens the table and the client for IoT Platform, and starts the server.
pub(super) async fn start(config: &Config) -> Result<App, Failure> {
    let store = open_store(config)?;
    let table: Arc<dyn Store> = store.clone();
    let targets = app::targets(config, &table, "serve", |limits| limits).map_err(Failure::Usage)?;
    Ok(App::start(config, store, targets).await?)
}

/// Waits for a signal, the end of a worker, or the loss of the database. If a worker has ended, the
/// server stops, because it would no longer serve all devices.
async fn order(app: &mut App, signals: &mut Signals) -> Order {
    tokio::select! {
        order = signals.next() => order,
        failed = app.failed() => match failed {
            Failed::Worker(number) => Order::GiveUp(anyhow!(
                "worker {number} ended unexpectedly, so its devices are no longer served; see the log above for \
                 the reason, and restart certdist"
            )),
            Failed::Database(error) => Order::Abandon(error.into()),
        },
    }
}

#[derive(Debug)]
enum Order {
    Stop,
    GiveUp(anyhow::Error),
    /// Ends the server immediately. The database is lost, and the results of further work would be
    /// lost, too.
    Abandon(anyhow::Error),
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
        let app = start(&config).await.unwrap();
        app.fail_worker(1);
        let (file, mut signals) = (ConfigArgs { config: None }, Signals::new().unwrap());
        let followed = follow(app, &file, &config, &mut signals);
        let outcome = tokio::time::timeout(Duration::from_secs(30), followed).await.expect("it ends");
        let Err(Failure::Failed(problem)) = outcome else { panic!("exit code 1") };
        assert!(problem.to_string().starts_with("worker 1 ended"), "{problem}");
    }
}
