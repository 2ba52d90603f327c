//! `certdist register`: registers devices before they power on, in batches, with a progress bar.
//! The results of an interrupted run are kept, and the same command continues from there.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::anyhow;
use indicatif::{ProgressBar, ProgressStyle};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::Semaphore,
    task::JoinSet,
};

use super::{CommandResult, ConfigArgs, Failure, named, open_existing, print, progress::Shown, remark};
use crate::{
    app,
    config::{Config, QPS},
    guards::Guards,
    policy::{self, Verdict},
    presence::Presence,
    psk::{self, Reissue, Terms},
    registrar::{self, Targets},
    store::{DeviceRow, Store, UnixSeconds, place::Places},
};

/// Number of rows read at a time.
const ROWS: usize = 1000;
/// Maximum number of devices in progress: two batches, so that one can gather devices while the
/// other runs.
const IN_PROGRESS: usize = 20_000;
/// Maximum wait for a registration. It is long, because no device is waiting for the result.
const PATIENCE: Duration = Duration::from_secs(24 * 3600);
/// Maximum number of times that a registration is tried again after it was postponed. Each attempt
/// makes several calls with pauses between them.
const MAX_LATER: u32 = 10;
/// Maximum number of times that a device is tried again because its row has changed.
const MAX_CHANGES: u32 = 3;
/// Maximum wait for calls in progress, after an interruption.
const DRAIN: Duration = Duration::from_secs(10);

/// Maximum number of reasons in the report.
const MAX_GUARDED: usize = 20;

/// Registers the devices of the table that have no certificate yet
#[derive(clap::Args)]
#[command(after_help = "\
Example
  certdist register --enrollment plug-batch-7

Registers every device that has no certificate, is not disabled and was not refused, in
batches of 10,000, within IoT Platform's limits, and that its enrollment lets have a
certificate now (opens, closes, max_devices). Exit code 1 if a device was not registered. Ctrl-C interrupts; the same command continues later. Works beside a running
server and beside other runs: all of them together keep the limits of the account.")]
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

/// Number of devices for each outcome, and the products that were stopped.
#[derive(Default)]
struct Tally {
    registered: AtomicU64,
    refused: AtomicU64,
    /// Devices that share their device name with another device.
    twins: AtomicU64,
    /// Devices that were neither registered nor refused. A later run tries them again.
    left: AtomicU64,
    /// Number of devices that may not have a certificate now because of a guard of their
    /// enrollment, by enrollment and reason.
    guarded: Mutex<BTreeMap<(String, String), u64>>,
    /// Targets and products for which IoT Platform refuses calls until the operator acts, each with
    /// the reason.
    stopped: Mutex<BTreeMap<(String, String), String>>,
    /// One sentence for each target that devices need but that is not configured.
    lost: Mutex<BTreeSet<String>>,
}

impl Tally {
    fn note(&self, (target, product_key): (&str, &str), outcome: registrar::Outcome) {
        let counter = match outcome {
            registrar::Outcome::Registered(_) => &self.registered,
            registrar::Outcome::Refused(_) => &self.refused,
            registrar::Outcome::SharedName(_) => &self.twins,
            registrar::Outcome::Changed | registrar::Outcome::NoPlace => return,
            registrar::Outcome::Operator(reason) => {
                self.stopped().entry((target.to_owned(), product_key.to_owned())).or_insert(reason);
                &self.left
            }
            registrar::Outcome::NoTarget(reason) => {
                self.lost().insert(reason);
                &self.left
            }
            registrar::Outcome::Later(_)
            | registrar::Outcome::TimedOut
            | registrar::Outcome::Elsewhere(_) => &self.left,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    fn is_stopped(&self, target: &str, product_key: &str) -> bool {
        self.stopped().contains_key(&(target.to_owned(), product_key.to_owned()))
    }

    // No code panics while it holds a lock of the tally, so a poisoned lock cannot occur.

    fn guard(&self, enrollment: &str, reason: String) {
        *self.guarded().entry((enrollment.to_owned(), reason)).or_insert(0) += 1;
    }

    fn guarded(&self) -> MutexGuard<'_, BTreeMap<(String, String), u64>> {
        self.guarded.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stopped(&self) -> MutexGuard<'_, BTreeMap<(String, String), String>> {
        self.stopped.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lost(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.lost.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Registers the wanted devices. Ends when all are done, or when the operator interrupts it.
pub(super) async fn run(args: Args) -> CommandResult {
    let config = args.config.read()?;
    check(&args, &config).map_err(Failure::Usage)?;
    let store = open_existing(&config)?;
    let table: Arc<dyn Store> = store.clone();
    let adapt = |limits: registrar::Config| registrar::Config {
        qps: args.qps.unwrap_or(limits.qps),
        max_registrations: IN_PROGRESS + 1,
        sweep_pause: None,
        ..limits
    };
    let targets = app::targets(&config, &table, "register", adapt).map_err(Failure::Usage)?;
    let presence = Presence::start(&config, "register", &[], Vec::new(), targets.clone(), table.clone())?;
    let total = store.count_unregistered(args.enrollment.as_deref())?;
    let bar = ProgressBar::new(total).with_style(
        ProgressStyle::with_template("{bar:40} {pos}/{len} {per_sec} {eta} left")
            .unwrap_or_else(|_| ProgressStyle::default_bar()),
    );
    bar.enable_steady_tick(Duration::from_millis(200));
    let shown = Shown::new(&bar);
    let tally = Arc::new(Tally::default());
    let mut tasks = JoinSet::new();
    let mut terminated = signal(SignalKind::terminate())?;
    // Reissue policies do not matter here, because they apply only to registered devices.
    let terms = |enrollment: &psk::Enrollment| Terms { reissue: Reissue::Always, ..enrollment.terms() };
    let terms = config.enrollments.iter().map(|enrollment| (enrollment.name.clone(), terms(enrollment)));
    let wanted = Arc::new(Wanted { enrollment: args.enrollment.clone(), terms: terms.collect() });
    let work = register_all(&table, &targets, &wanted, &bar, &tally, &mut tasks);
    let interrupted = tokio::select! {
        done = work => done.map(|()| false)?,
        signal = tokio::signal::ctrl_c() => signal.map(|()| true)?,
        _ = terminated.recv() => true,
    };
    // The command waits for the registrations in progress, but no longer than `DRAIN`. A later run
    // continues unfinished registrations.
    targets.drain(DRAIN).await;
    while tasks.join_next().await.is_some() {}
    presence.leave().await;
    drop(shown);
    report(&tally, interrupted, targets.are_named())
}

/// Prints the number of devices for each outcome, and advice about the devices that were not
/// registered.
fn report(tally: &Tally, interrupted: bool, names_targets: bool) -> CommandResult {
    let [registered, refused, twins, left] = [&tally.registered, &tally.refused, &tally.twins, &tally.left]
        .map(|counter| counter.load(Ordering::Relaxed));
    print(|out| writeln!(out, "{registered} registered, {refused} refused"))?;
    if twins > 0 {
        remark(&format!(
            "{twins} devices have the name of another one: `certdist check-config` lists the names\n"
        ));
    }
    let stopped = tally.stopped();
    if !stopped.is_empty() {
        let reason = |((target, product_key), reason): (&(String, String), &String)| match names_targets {
            true => format!("target {target}, product {product_key}: {reason}"),
            false => format!("product {product_key}: {reason}"),
        };
        let reasons: Vec<String> = stopped.iter().map(reason).collect();
        return Err(anyhow!(
            "IoT Platform refuses calls for some devices, which were skipped; fix the cause, then run this again:\n  {}",
            reasons.join("\n  ")
        )
        .into());
    }
    let lost: Vec<String> = tally.lost().iter().map(|reason| format!("a device: {reason}")).collect();
    if !lost.is_empty() {
        return Err(anyhow!("{left} devices could not be registered:\n  {}", lost.join("\n  ")).into());
    }
    if interrupted {
        return Err(anyhow!("interrupted; run the same command to continue").into());
    }
    if left > 0 {
        return Err(
            anyhow!("{left} devices could not be registered now; run the same command to continue").into()
        );
    }
    if twins > 0 {
        return Err(
            anyhow!("{twins} devices were not registered; import a deviceName of its own for each").into()
        );
    }
    let guarded = tally.guarded();
    if !guarded.is_empty() {
        let mut lines: Vec<String> = guarded
            .iter()
            .take(MAX_GUARDED)
            .map(|((enrollment, reason), devices)| {
                format!("enrollment {enrollment}, {devices} devices: {reason}")
            })
            .collect();
        if guarded.len() > MAX_GUARDED {
            lines.push("…".into());
        }
        return Err(anyhow!("devices were not registered:\n  {}", lines.join("\n  ")).into());
    }
    if refused > 0 {
        return Err(anyhow!(
            "IoT Platform refused {refused} devices; `certdist device list --refused` shows them with the reasons; fix \
             the cause, run `certdist device reset --refused`, then run this again"
        )
        .into());
    }
    Ok(())
}

fn check(args: &Args, config: &Config) -> anyhow::Result<()> {
    anyhow::ensure!(!config.targets.is_empty(), "the configuration has no [iot_platform]");
    args.enrollment.as_ref().map_or(Ok(()), |name| named(config, name).map(drop))?;
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
    store: &Arc<dyn Store>,
    targets: &Arc<Targets>,
    wanted: &Arc<Wanted>,
    bar: &ProgressBar,
    tally: &Arc<Tally>,
    tasks: &mut JoinSet<()>,
) -> anyhow::Result<()> {
    let places = Arc::new(Semaphore::new(IN_PROGRESS));
    let mut after = None;
    loop {
        let rows = store.rows_after(after.as_ref(), ROWS).await?;
        let Some(last) = rows.last() else { break };
        after = Some(last.id.clone());
        for row in rows {
            match wanted.verdict(&row, store.now()) {
                Some(Verdict::Register) => {}
                Some(Verdict::Refuse(reason)) => {
                    if let Some(says) = policy::guard(reason) {
                        tally.guard(&row.enrollment, says);
                        bar.inc(1);
                    }
                    continue;
                }
                Some(Verdict::HandOut) | None => continue,
            }
            let place = places.clone().acquire_owned().await?;
            // If IoT Platform refuses calls for a product, the devices of this product are skipped,
            // so that they do not delay other products.
            if tally.is_stopped(&targets.of(&row), &row.product_key) {
                tally.left.fetch_add(1, Ordering::Relaxed);
                bar.inc(1);
                continue;
            }
            let (targets, store, wanted) = (targets.clone(), store.clone(), wanted.clone());
            let (bar, tally) = (bar.clone(), tally.clone());
            tasks.spawn(async move {
                register(&targets, &*store, row, &wanted, &tally).await;
                bar.inc(1);
                drop(place);
            });
            // Finished tasks are removed, so that they do not accumulate in memory.
            while tasks.try_join_next().is_some() {}
        }
    }
    while tasks.join_next().await.is_some() {}
    Ok(())
}

/// Devices to register.
struct Wanted {
    /// The only enrollment; `None`: all.
    enrollment: Option<String>,
    /// The terms of each enrollment in the configuration.
    terms: HashMap<String, Terms>,
}

impl Wanted {
    /// Returns the verdict on a device at the time `now` of the store's clock, which follows the
    /// cloud's clock; `None` if the device is not in the wanted enrollment. Does not check
    /// `max_devices`: the registrar does, when it takes a place.
    fn verdict<'r>(&self, row: &'r DeviceRow, now: UnixSeconds) -> Option<Verdict<'r>> {
        if self.enrollment.as_ref().is_some_and(|name| row.enrollment != *name) {
            return None;
        }
        let unguarded = Terms { reissue: Reissue::Always, guards: Guards::default() };
        let terms = self.terms.get(&row.enrollment).copied().unwrap_or(unguarded);
        Some(policy::verdict(row, terms, Places::default(), now))
    }

    fn has(&self, row: &DeviceRow, now: UnixSeconds) -> bool {
        self.verdict(row, now) == Some(Verdict::Register)
    }
}

async fn register(targets: &Targets, store: &dyn Store, mut row: DeviceRow, wanted: &Wanted, tally: &Tally) {
    let (mut later, mut changes) = (0, 0);
    loop {
        let target = targets.of(&row);
        let product = (target.as_str(), row.product_key.as_str());
        match targets.register(&row, PATIENCE).await {
            registrar::Outcome::NoPlace => {
                return tally.guard(&row.enrollment, policy::NO_PLACE.to_owned());
            }
            registrar::Outcome::Later(pause)
                if later < MAX_LATER && !targets.is_draining() && !tally.is_stopped(product.0, product.1) =>
            {
                later += 1;
                tokio::time::sleep(pause).await;
            }
            registrar::Outcome::TimedOut if !targets.is_draining() => {}
            // An operator has changed the row in the meantime. If the changed row still requires a
            // registration, the device is tried again.
            registrar::Outcome::Changed => match store.device(&row.id).await {
                Ok(Some(changed)) if wanted.has(&changed, store.now()) && changes < MAX_CHANGES => {
                    changes += 1;
                    row = changed;
                }
                // The changed row no longer requires a registration.
                Ok(changed) if changed.as_ref().is_none_or(|row| !wanted.has(row, store.now())) => return,
                Ok(_) | Err(_) => return tally.note(product, registrar::Outcome::TimedOut),
            },
            outcome => return tally.note(product, outcome),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{device::DeviceId, policy::Reason};

    #[test]
    fn a_device_is_wanted_while_its_enrollment_is_open_by_the_clock_of_the_store() {
        let guards = Guards { opens: Some(100), closes: Some(200), ..Guards::default() };
        let terms = HashMap::from([("lamps".to_owned(), Terms { reissue: Reissue::Always, guards })]);
        let wanted = Wanted { enrollment: None, terms };
        let row = DeviceRow::imported(DeviceId::parse("SN-1").unwrap(), "lamps", "a1");
        assert_eq!([99, 100, 199, 200].map(|now| wanted.has(&row, now)), [false, true, true, false]);
        assert!(matches!(wanted.verdict(&row, 200), Some(Verdict::Refuse(Reason::Closed(_)))));
    }
}
