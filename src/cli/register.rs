//! `certdist register`: registers devices before they power on, in batches, with a
//! progress bar. Finished work is kept: the same command continues where an earlier run
//! ended.

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, anyhow};
use indicatif::{ProgressBar, ProgressStyle};
use tokio::{runtime::Handle, sync::Semaphore, task::JoinSet};

use super::{CommandResult, ConfigArgs, Failure, open_store, print, remark};
use crate::{
    app,
    config::{Config, QPS},
    policy::{self, Verdict},
    psk::Reissue,
    registrar::{self, Registrar},
    store::{Bulk, DeviceRow, JournalEntry, Store, claim::Owner, unix_now},
};

/// Number of rows read at once.
const ROWS: usize = 1000;
/// Maximum number of devices in progress: two batches, so that one can gather devices while the
/// other runs.
const IN_PROGRESS: usize = 20_000;
/// Maximum wait for a registration. Long, because no device is waiting for the result.
const PATIENCE: Duration = Duration::from_secs(24 * 3600);
/// Maximum wait for calls in progress, after an interruption.
const DRAIN: Duration = Duration::from_secs(10);

/// Registers the devices of the table that have no certificate yet
#[derive(clap::Args)]
#[command(after_help = "\
Example
  certdist register --enrollment plug-batch-7

Registers every device that has no certificate, is not disabled and was not refused, in
batches of 10,000, within IoT Platform's limits. Ctrl-C interrupts; the same command
continues later. Works beside a running server: both share the account's limits, so give
one of them less with --qps.")]
pub struct Args {
    /// Only this enrollment
    #[arg(long, value_name = "NAME")]
    enrollment: Option<String>,
    /// RegisterDevice calls per second, instead of the configured number; the rates of the
    /// other actions are scaled in proportion
    #[arg(long, value_name = "CALLS")]
    qps: Option<f64>,
    #[command(flatten)]
    config: ConfigArgs,
}

/// Results for the devices so far.
#[derive(Default)]
struct Tally {
    registered: AtomicU64,
    refused: AtomicU64,
    /// Reason why IoT Platform refuses calls until the operator acts, if it does so. The run
    /// then ends.
    stopped: OnceLock<String>,
}

impl Tally {
    fn note(&self, outcome: registrar::Outcome) {
        match outcome {
            registrar::Outcome::Registered(_) => _ = self.registered.fetch_add(1, Ordering::Relaxed),
            registrar::Outcome::Refused(_) => _ = self.refused.fetch_add(1, Ordering::Relaxed),
            // Keeps the first reason only.
            registrar::Outcome::Operator(reason) => _ = self.stopped.set(reason),
            registrar::Outcome::Later(_) | registrar::Outcome::TimedOut => {}
        }
    }

    fn is_stopped(&self) -> bool {
        self.stopped.get().is_some()
    }
}

/// Registers all devices, until done or interrupted.
pub(super) async fn run(args: Args) -> CommandResult {
    let config = args.config.read()?;
    check(&args, &config).map_err(Failure::Usage)?;
    let store = open_store(&config)?;
    let (cloud, limits) = app::cloud(&config).map_err(Failure::Usage)?;
    let limits = registrar::Config {
        qps: args.qps.unwrap_or(limits.qps),
        max_registrations: IN_PROGRESS + 1,
        sweep_pause: None,
        ..limits
    };
    let total = store.count_unregistered(args.enrollment.as_deref())?;
    let bar = ProgressBar::new(total).with_style(
        ProgressStyle::with_template("{bar:40} {pos}/{len} {per_sec} {eta} left")
            .unwrap_or_else(|_| ProgressStyle::default_bar()),
    );
    bar.enable_steady_tick(Duration::from_millis(200));
    let registrar = Registrar::new(limits, Owner::new("register")?, store.clone(), cloud, Handle::current());
    let tally = Arc::new(Tally::default());
    let work = register_all(&*store, &registrar, args.enrollment.as_deref(), &bar, &tally);
    let interrupted = tokio::select! {
        done = work => done.map(|()| false)?,
        signal = tokio::signal::ctrl_c() => signal.map(|()| true)?,
    };
    if interrupted {
        registrar.drain(DRAIN).await;
    }
    bar.finish_and_clear();
    let refused = tally.refused.load(Ordering::Relaxed);
    print(|out| writeln!(out, "{} registered, {refused} refused", tally.registered.load(Ordering::Relaxed)))?;
    if refused > 0 {
        remark(
            "`certdist device show ID` shows the reason. Fix it, run `certdist device reset ID`, then run this again\n",
        );
    }
    if let Some(reason) = tally.stopped.get() {
        return Err(
            anyhow!("IoT Platform refuses calls: {reason}; fix the cause, then run this again").into()
        );
    }
    if interrupted {
        return Err(anyhow!("interrupted; run the same command to continue").into());
    }
    Ok(())
}

fn check(args: &Args, config: &Config) -> anyhow::Result<()> {
    config.iot_platform.as_ref().context("the configuration has no [iot_platform]")?;
    if let Some(name) = &args.enrollment {
        let known = config.enrollments.iter().any(|enrollment| enrollment.name == *name);
        anyhow::ensure!(known, "--enrollment {name}: no [[enrollment]] has that name");
    }
    if let Some(qps) = args.qps {
        let range = QPS;
        anyhow::ensure!(
            range.contains(&qps),
            "--qps {qps}: expected {} to {} calls a second",
            range.start(),
            range.end()
        );
    }
    Ok(())
}

async fn register_all(
    store: &dyn Store,
    registrar: &Arc<Registrar>,
    enrollment: Option<&str>,
    bar: &ProgressBar,
    tally: &Arc<Tally>,
) -> anyhow::Result<()> {
    let places = Arc::new(Semaphore::new(IN_PROGRESS));
    let (mut after, mut tasks) = (None, JoinSet::new());
    while !tally.is_stopped() {
        let rows = store.rows_after(after.as_ref(), ROWS).await?;
        let Some(last) = rows.last() else { break };
        after = Some(last.id.clone());
        for row in rows.into_iter().filter(|row| is_wanted(row, enrollment)) {
            let place = places.clone().acquire_owned().await?;
            if tally.is_stopped() {
                break;
            }
            let (registrar, bar, tally) = (registrar.clone(), bar.clone(), tally.clone());
            tasks.spawn(async move {
                register(&registrar, row, &tally).await;
                bar.inc(1);
                drop(place);
            });
            // Removes finished tasks, so that they do not pile up.
            while tasks.try_join_next().is_some() {}
        }
    }
    while tasks.join_next().await.is_some() {}
    Ok(())
}

/// Returns whether a device is to be registered. Reissue policies do not matter here; they
/// apply to devices that are already registered.
fn is_wanted(row: &DeviceRow, enrollment: Option<&str>) -> bool {
    policy::verdict(row, Reissue::Always, unix_now()) == Verdict::Register
        && enrollment.is_none_or(|name| row.enrollment == name)
}

async fn register(registrar: &Arc<Registrar>, row: DeviceRow, tally: &Tally) {
    let device_name = row.name();
    let wanted = JournalEntry { device: row.id, product_key: row.product_key, device_name };
    loop {
        let outcome = registrar.register(wanted.clone(), PATIENCE).await;
        if let registrar::Outcome::Later(pause) = outcome
            && !tally.is_stopped()
        {
            tokio::time::sleep(pause).await;
        } else if outcome != registrar::Outcome::TimedOut {
            return tally.note(outcome);
        }
    }
}
