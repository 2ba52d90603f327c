//! The targets of a process: one registrar for each, so that a cloud that is down, slow or full
//! holds up only its own devices. This module decides at which target a device is registered. It
//! knows neither the settings of a target nor its calls.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use arc_swap::ArcSwap;
use futures_util::future::join_all;
use tokio::time::Instant;

use super::{Counters, Outcome, Registrar, lock};
use crate::{
    histogram::Distribution,
    iot_platform::calls::Calls,
    log_limit::LogLimit,
    store::{DeviceRow, StoreError},
    target,
};

/// Maximum number of targets at which one request tries to register a device: the target that its
/// row or enrollment names, and the one at which a registration has begun.
const MAX_TRIED: usize = 2;

/// Pause after which a device retries when its row and the journal have changed while it was
/// registered.
const CHANGED_PAUSE: Duration = Duration::from_secs(1);

/// Maximum number of log lines per second about devices whose target is not configured.
const MAX_LINES: u32 = 1;

/// A target, as this process serves it.
pub struct Target {
    /// Registers the target's devices.
    pub registrar: Arc<Registrar>,
    /// Results of the calls to the target's cloud.
    pub calls: Arc<Calls>,
    /// Host of the target's cloud; `None` if its cloud cannot be called.
    pub host: Option<String>,
    /// Reason why the cloud of a configured target cannot be called; `None` if it can be called.
    pub missing: Option<String>,
}

/// Result of [`Targets::rights`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rights<'t> {
    /// The configuration permits changes at the target.
    Permitted,
    /// The configuration does not permit changes at the target (`manage`).
    NotPermitted,
    /// The cloud of the target cannot be called, for this reason.
    NoCloud(&'t str),
    /// The target is not configured.
    NotConfigured,
}

impl Target {
    /// Returns the target's name.
    pub fn name(&self) -> &str {
        self.registrar.target()
    }
}

/// All targets of a process; at least one.
pub struct Targets {
    all: Vec<Target>,
    /// Name of the target of each enrollment.
    of_enrollments: ArcSwap<HashMap<String, String>>,
    are_named: bool,
    lines: Mutex<LogLimit>,
}

impl Targets {
    /// Creates the targets. `of_enrollments` has the target of each enrollment. `are_named` is set
    /// if the configuration names targets, so that metrics and messages name them, too.
    pub fn new(all: Vec<Target>, of_enrollments: HashMap<String, String>, are_named: bool) -> Arc<Self> {
        for (index, target) in all.iter().enumerate() {
            let earlier = all[..index].iter().map(|earlier| earlier.registrar.cloud.clone());
            target.registrar.leave_clock_to(earlier.collect());
        }
        let lines = Mutex::new(LogLimit::new(MAX_LINES, "devices whose target is not configured"));
        Arc::new(Self { all, of_enrollments: ArcSwap::from_pointee(of_enrollments), are_named, lines })
    }

    /// Creates the targets of a process that has only one.
    pub fn only(registrar: Arc<Registrar>) -> Arc<Self> {
        let target = Target { registrar, calls: Arc::default(), host: None, missing: None };
        Self::new(vec![target], HashMap::new(), false)
    }

    /// Returns all targets, in the order of the configuration.
    pub fn all(&self) -> &[Target] {
        &self.all
    }

    /// Returns the target of this name.
    pub fn named(&self, name: &str) -> Option<&Target> {
        self.all.iter().find(|target| target.name() == name)
    }

    /// Returns whether the configuration has a cloud.
    pub fn has_cloud(&self) -> bool {
        self.are_named || self.all.iter().any(|target| target.host.is_some())
    }

    /// Returns whether metrics and messages name the targets.
    pub fn are_named(&self) -> bool {
        self.are_named
    }

    /// Returns the name of the target of each enrollment.
    pub fn of_enrollments(&self) -> HashMap<String, String> {
        HashMap::clone(&self.of_enrollments.load())
    }

    /// Replaces the targets of the enrollments. Devices that are registered, or whose registration
    /// has begun, stay where they are.
    pub fn set_of_enrollments(&self, of_enrollments: HashMap<String, String>) {
        self.of_enrollments.store(Arc::new(of_enrollments));
    }

    /// Returns the name of the target at which a device is registered, or will be registered if its
    /// registration has not begun.
    pub fn of(&self, row: &DeviceRow) -> String {
        if let Some(own) = row.target() {
            return own.to_owned();
        }
        match (self.of_enrollments.load().get(&row.enrollment), &self.all[..]) {
            (Some(target), _) => target.clone(),
            (None, [only]) => only.name().to_owned(),
            (None, _) => target::DEFAULT.to_owned(),
        }
    }

    /// Registers the device of a row and waits for the outcome, but no longer than `patience`. A
    /// registration that has begun at another target continues there.
    pub async fn register(&self, row: &DeviceRow, patience: Duration) -> Outcome {
        let mut wanted = row.wanted(&self.of(row));
        for _ in 0..MAX_TRIED {
            let Some(target) = self.named(&wanted.target) else {
                return self.not_configured(row, &wanted.target);
            };
            match target.registrar.register(wanted.clone(), patience).await {
                Outcome::Elsewhere(other) => wanted.target = other,
                outcome => return outcome,
            }
        }
        Outcome::Later(CHANGED_PAUSE)
    }

    /// Returns the outcome for a device whose target is not configured, and logs an error.
    fn not_configured(&self, row: &DeviceRow, name: &str) -> Outcome {
        let reason = format!(
            "its target \"{name}\" is not configured; add the [[target]] to the configuration and restart \
             certdist, or, if the device is registered nowhere, import another target for it"
        );
        if lock(&self.lines).admit(Instant::now().into_std()) {
            tracing::error!(device = %row.id, at_target = name, "a device cannot be registered, because its target is not configured; add the [[target]], or import another target for the device");
        }
        Outcome::NoTarget(reason)
    }

    /// Returns the reason why registrations of a product are stopped at present at the target of
    /// this name; `None` if they are not stopped.
    pub fn stopped(&self, target: &str, product_key: &str) -> Option<String> {
        self.named(target)?.registrar.stopped(product_key)
    }

    /// Returns whether orders for the devices of the target of this name can be carried out.
    pub fn rights(&self, target: &str) -> Rights<'_> {
        match self.named(target) {
            Some(Target { missing: Some(reason), .. }) => Rights::NoCloud(reason),
            Some(Target { host: None, .. }) | None => Rights::NotConfigured,
            Some(target) if target.registrar.manages() => Rights::Permitted,
            Some(_) => Rights::NotPermitted,
        }
    }

    /// Resumes the registrations that other processes have left behind, now and in the future.
    pub async fn recover(&self) -> Result<(), StoreError> {
        for target in &self.all {
            target.registrar.recover().await?;
        }
        Ok(())
    }

    /// Starts the sweeps of all targets.
    pub fn start_sweeps(&self) {
        self.all.iter().for_each(|target| target.registrar.start_sweeps());
    }

    /// Drains all targets at the same time. Returns the number of unfinished registrations.
    pub async fn drain(&self, deadline: Duration) -> usize {
        join_all(self.all.iter().map(|target| target.registrar.drain(deadline))).await.into_iter().sum()
    }

    /// Returns whether the process has stopped accepting registrations.
    pub fn is_draining(&self) -> bool {
        self.all.iter().any(|target| target.registrar.is_draining())
    }

    /// Returns the seconds to add to this machine's clock to get the time of the first cloud that
    /// has answered recently.
    pub fn clock_offset(&self) -> Option<i64> {
        self.all.iter().find_map(|target| target.registrar.clock_offset())
    }

    /// Calls `work` under the lease `name`, as [`Registrar::with_lease`] does.
    pub async fn with_lease<T>(
        &self,
        name: &str,
        work: impl AsyncFnOnce(String) -> Result<T, StoreError>,
    ) -> Result<Option<T>, StoreError> {
        match self.all.first() {
            Some(first) => first.registrar.with_lease(name, work).await,
            None => Ok(None),
        }
    }

    /// Returns the number of registrations that wait or are in progress.
    pub fn registrations(&self) -> usize {
        self.sum(Registrar::registrations)
    }

    /// Returns the number of registrations that wait for a call.
    pub fn waiting(&self) -> usize {
        self.sum(Registrar::waiting)
    }

    /// Returns the number of batches in progress.
    pub fn batches(&self) -> usize {
        self.sum(Registrar::batches)
    }

    /// Returns the number of open breakers.
    pub fn open_breakers(&self) -> usize {
        self.sum(Registrar::open_breakers)
    }

    fn sum(&self, number: impl Fn(&Registrar) -> usize) -> usize {
        self.all.iter().map(|target| number(&target.registrar)).sum()
    }

    /// Returns the distribution of the time from the request to the stored certificate.
    pub fn latency(&self) -> Distribution {
        let all = self.all.iter().map(|target| target.registrar.latency());
        all.fold(Distribution::default(), |sum, one| sum.plus(one))
    }

    /// Returns the counters of all targets together.
    pub fn counters(&self) -> Counters {
        let all = self.all.iter().map(|target| target.registrar.counters());
        all.fold(Counters::default(), |sum, one| Counters {
            registered: sum.registered + one.registered,
            recovered: sum.recovered + one.recovered,
            retries: sum.retries + one.retries,
            failed: sum.failed + one.failed,
            batches: sum.batches + one.batches,
            throttled: sum.throttled + one.throttled,
        })
    }
}
