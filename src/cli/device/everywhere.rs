//! Changes devices at IoT Platform, too: `--everywhere`, `certdist device rotate`, and the commands
//! that list and end such orders. The module `moves` places orders to move devices, and this module
//! carries them out. The orders are in the database before the first call, so a command that is
//! killed loses nothing: a running server, or the next such command, carries them out.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{anyhow, ensure};
use futures_util::future::try_join_all;

use super::{
    super::{CommandResult, Failure, print, progress::Progress, remark},
    many::Chosen,
    not_there,
};
use crate::{
    app,
    config::{Config, Target},
    device::DeviceId,
    device_view,
    ordering::{self, Ordered, Refusal},
    psk::{Enrollment, Terms},
    registrar::{self, Rights, Targets},
    store::{
        Actor, Store, StoreError, Table,
        audit::AuditEvent,
        order::{BY_OPERATOR, Order, OrderKind, OrderNumber},
    },
};

/// Number of orders that are placed concurrently, with one sync of the disk.
const AT_ONCE: usize = 1000;

/// Number of orders read at a time.
const PAGE: usize = 1000;

/// Number of devices that a message names.
const NAMED: usize = 20;

/// Pause between two readings of the orders.
const LOOK: Duration = Duration::from_millis(200);

/// Time without any progress after which the command no longer waits.
const PATIENCE: Duration = Duration::from_secs(600);

/// Maximum wait for rotated devices to be registered again.
const ANEW: Duration = Duration::from_secs(60);

/// Maximum wait for calls in progress at the end.
const DRAIN: Duration = Duration::from_secs(10);

/// Number of a device's newest audit entries that are searched for the reason of an ended order.
const NEWEST: usize = 8;

/// Numbers of devices by the result of their orders.
#[derive(Default)]
struct Tally {
    /// Devices whose order was carried out.
    done: u64,
    /// Devices without a certificate, which were changed only in the table.
    here: u64,
    /// Devices that were at the target of the move already.
    there: u64,
    /// Devices that were not changed, each with the reason.
    failed: Vec<(DeviceId, String)>,
    /// Devices whose order is not carried out yet.
    left: u64,
}

/// Changes the chosen devices in the table and at IoT Platform, and reports the changes.
pub(super) async fn change(
    config: &Config,
    store: &Arc<dyn Table>,
    chosen: Chosen,
    kind: OrderKind,
    by: &Actor,
) -> CommandResult {
    check(config).map_err(Failure::Usage)?;
    let targets = targets(config, store, kind)?;
    let place = async |id: &DeviceId| {
        ordering::place(&**store, &targets, |name| terms(config, name), id, (kind, by)).await
    };
    let done = match kind {
        OrderKind::Disable => "disabled here and at IoT Platform",
        OrderKind::Enable => "enabled here and at IoT Platform",
        OrderKind::Delete => "deleted here and at IoT Platform",
        OrderKind::Rotate | OrderKind::Move => "rotated; the new secret comes with the next request",
    };
    let carriers = "a server whose configuration has manage = true";
    carry_out(config, store, &targets, &chosen, place, Words { kind, done, carriers }).await
}

/// Creates the targets of a command that carries out orders of this kind.
pub(super) fn targets(
    config: &Config,
    store: &Arc<dyn Table>,
    kind: OrderKind,
) -> Result<Arc<Targets>, Failure> {
    let table: Arc<dyn Store> = store.clone();
    let adapt = |limits| registrar::Config { sweep_pause: None, ..limits };
    app::targets(config, &table, &format!("device {kind}"), adapt).map_err(Failure::Usage)
}

/// Words of a report about an order.
pub(super) struct Words<'a> {
    pub(super) kind: OrderKind,
    /// Text that says what was done to the devices.
    pub(super) done: &'a str,
    /// Processes that carry out an order that is left.
    pub(super) carriers: &'a str,
}

/// Places an order for each of the chosen devices with `place`, carries the orders out, and reports.
pub(super) async fn carry_out(
    config: &Config,
    store: &Arc<dyn Table>,
    targets: &Targets,
    chosen: &Chosen,
    place: impl AsyncFn(&DeviceId) -> Result<Ordered, StoreError>,
    words: Words<'_>,
) -> CommandResult {
    let (mut tally, placed) = place_all(config, chosen, place).await?;
    if !placed.is_empty() {
        let waited = tokio::select! {
            waited = wait(&**store, targets, placed, &mut tally) => waited,
            signal = tokio::signal::ctrl_c() => signal.map_err(|error| StoreError::Failed(error.to_string())),
        };
        targets.drain(DRAIN).await;
        waited?;
        tally.left = placed_still(&**store, chosen, words.kind).await?;
    }
    report(chosen, &words, &tally)
}

/// Checks that the configuration permits changes at a cloud.
pub(super) fn check(config: &Config) -> anyhow::Result<()> {
    let manages = |target: &Target| target.settings.as_ref().is_ok_and(|settings| settings.manages);
    ensure!(
        !config.targets.is_empty(),
        "the configuration has no [iot_platform], so there is nothing to change there"
    );
    ensure!(
        config.targets.iter().any(manages),
        "the configuration does not permit changes at IoT Platform: set manage = true in [iot_platform], and give its \
         RAM user the second policy of docs/cloud.md"
    );
    Ok(())
}

/// Returns the terms of the enrollment of this name, if it is in the configuration.
pub(super) fn terms(config: &Config, name: &str) -> Option<Terms> {
    config.enrollments.iter().find(|enrollment| enrollment.name == name).map(Enrollment::terms)
}

/// Places the orders. Returns the devices that have one.
async fn place_all(
    config: &Config,
    chosen: &Chosen,
    place: impl AsyncFn(&DeviceId) -> Result<Ordered, StoreError>,
) -> Result<(Tally, BTreeMap<OrderNumber, DeviceId>), Failure> {
    let (mut tally, mut orders) = (Tally::default(), BTreeMap::new());
    for some in chosen.devices().chunks(AT_ONCE) {
        let answers = try_join_all(some.iter().map(async |id| place(id).await)).await?;
        for (id, answer) in some.iter().zip(answers) {
            match answer {
                Ordered::Placed(number) => drop(orders.insert(number, id.clone())),
                Ordered::Refused(Refusal::NoDevice) if matches!(chosen, Chosen::One(_)) => {
                    return Err(not_there(id, config).into());
                }
                Ordered::Refused(refusal) => tally.failed.push((id.clone(), refusal.to_string())),
                Ordered::Here => tally.here += 1,
                Ordered::There if matches!(chosen, Chosen::Many(..)) => tally.there += 1,
                Ordered::There => tally.failed.push((id.clone(), "is at this target already".into())),
            }
        }
    }
    Ok((tally, orders))
}

/// Returns the orders of one target that are not carried out yet, or of all targets for `None`.
async fn all(store: &dyn Table, target: Option<&str>) -> Result<Vec<Order>, StoreError> {
    let mut orders: Vec<Order> = Vec::new();
    loop {
        let after = orders.last().map_or(0, |order| order.number);
        let page = store.orders_after(target, after, PAGE).await?;
        if page.is_empty() {
            return Ok(orders);
        }
        orders.extend(page);
    }
}

/// Returns the number of chosen devices that still have an order of this kind.
async fn placed_still(store: &dyn Table, chosen: &Chosen, kind: OrderKind) -> Result<u64, StoreError> {
    let devices: HashSet<&DeviceId> = chosen.devices().iter().collect();
    let is_one = |order: &&Order| order.kind == kind && devices.contains(&order.device);
    Ok(all(store, None).await?.iter().filter(is_one).count() as u64)
}

/// Waits until the orders are carried out, by this process or another one.
async fn wait(
    store: &dyn Table,
    targets: &Targets,
    mut placed: BTreeMap<OrderNumber, DeviceId>,
    tally: &mut Tally,
) -> Result<(), StoreError> {
    let mut progress = Progress::new("{pos} devices changed at IoT Platform");
    let (mut moved, mut told) = (Instant::now(), BTreeSet::new());
    while !placed.is_empty() && moved.elapsed() < PATIENCE {
        for target in targets.all() {
            target.registrar.look_for_orders().await?;
        }
        let read = Instant::now();
        let orders = all(store, None).await?;
        // A long list is read less often.
        tokio::time::sleep(LOOK.max(read.elapsed() * 10)).await;
        let own = orders.iter().filter(|order| placed.contains_key(&order.number));
        for reason in own.filter_map(|order| order.failure.clone()) {
            if told.len() < NAMED && told.insert(reason.clone()) {
                remark(&format!("note: {reason}; trying again, and Ctrl-C stops waiting\n"));
            }
        }
        let there: HashSet<OrderNumber> = orders.iter().map(|order| order.number).collect();
        let ended: Vec<OrderNumber> =
            placed.keys().copied().filter(|number| !there.contains(number)).collect();
        for number in ended {
            let Some(device) = placed.remove(&number) else { continue };
            moved = Instant::now();
            progress.add(1);
            match cancelled(store, &device).await? {
                Some(reason) => tally.failed.push((device, reason)),
                None => tally.done += 1,
            }
        }
    }
    // The process that has carried the orders out registers the rotated devices again.
    let deadline = Instant::now() + ANEW;
    while targets.registrations() > 0 && Instant::now() < deadline {
        tokio::time::sleep(LOOK).await;
    }
    Ok(())
}

/// Returns the reason why the last order of a device was not carried out; `None` if it was carried
/// out.
async fn cancelled(store: &dyn Table, device: &DeviceId) -> Result<Option<String>, StoreError> {
    let history = store.history(device, NEWEST).await?;
    let last = history.into_iter().find(|entry| {
        matches!(
            entry.event,
            AuditEvent::Cancelled
                | AuditEvent::Disabled
                | AuditEvent::Enabled
                | AuditEvent::Deleted
                | AuditEvent::Rotated
                | AuditEvent::Moved
        )
    });
    Ok(last
        .filter(|entry| entry.event == AuditEvent::Cancelled)
        .map(|entry| entry.detail.unwrap_or_default()))
}

fn report(chosen: &Chosen, words: &Words<'_>, tally: &Tally) -> CommandResult {
    let Words { done, carriers, .. } = words;
    let subject = |count| chosen.subject(count);
    print(|out| {
        if tally.done > 0 {
            writeln!(out, "{}: {done}", subject(tally.done))?;
        }
        if tally.here > 0 {
            writeln!(out, "{}: changed in the table only, without a certificate", subject(tally.here))?;
        }
        if tally.there > 0 {
            writeln!(out, "{}: at this target already", subject(tally.there))?;
        }
        Ok::<_, std::io::Error>(())
    })?;
    let mut reasons: Vec<String> =
        tally.failed.iter().take(NAMED).map(|(id, reason)| format!("{id}: {reason}")).collect();
    if tally.failed.len() > NAMED {
        reasons.push(format!("and {} more", tally.failed.len() - NAMED));
    }
    if tally.left > 0 {
        reasons.push(format!(
            "{}: not carried out yet; {carriers}, or the same command, carries the order out, and `certdist device \
             cancel` ends it",
            subject(tally.left)
        ));
    }
    if reasons.is_empty() { Ok(()) } else { Err(anyhow!("{}", reasons.join("\n")).into()) }
}

/// Returns the reason why no process with this configuration makes the next call of an order.
fn waits_for(config: &Config, order: &Order) -> Option<String> {
    let target = config.targets.iter().find(|target| target.name == order.target);
    let rights = match target.map(|target| &target.settings) {
        None => Rights::NotConfigured,
        Some(Ok(settings)) if !settings.manages => Rights::NotPermitted,
        // This command may lack credentials that a server has.
        Some(Ok(_) | Err(_)) => Rights::Permitted,
    };
    ordering::waits_for(order, rights)
}

/// Describes an order that is not carried out yet.
pub(super) fn described(config: &Config, order: &Order) -> String {
    device_view::order(order, waits_for(config, order))
}

/// Lists the orders of one target that are not carried out yet, or of all targets for `None`.
pub(super) async fn list(
    config: &Config,
    store: &dyn Table,
    target: Option<&str>,
    json: bool,
) -> CommandResult {
    let orders = all(store, target).await?;
    Ok(print(|out| {
        orders.iter().try_for_each(|order| match json {
            true => writeln!(out, "{}", device_view::order_as_json(order, waits_for(config, order))),
            false => writeln!(out, "{:24} {}", order.device.to_string(), described(config, order)),
        })
    })?)
}

/// Ends the orders of the chosen devices without carrying them out. A call that was already made is
/// not reversed.
pub(super) async fn cancel(config: &Config, store: &dyn Table, chosen: Chosen, by: &Actor) -> CommandResult {
    let mut ended = 0;
    for id in chosen.devices() {
        let order = store.order_of(id).await?;
        let there = match &order {
            Some(order) => store.end_order(order.number, BY_OPERATOR, by).await?,
            None => false,
        };
        if let Some(left) = order.filter(|_| there).and_then(|order| order.left_behind()) {
            remark(&format!("note: {id}: {left}\n"));
        }
        ended += u64::from(there);
        if !there && matches!(chosen, Chosen::One(_)) {
            return Err(match store.device(id).await? {
                Some(_) => anyhow!("{id} has no order; `certdist device orders` lists them"),
                None => not_there(id, config),
            }
            .into());
        }
    }
    Ok(match &chosen {
        Chosen::One(id) => print(|out| writeln!(out, "{id}: order cancelled")),
        Chosen::Many(name, _) => print(|out| writeln!(out, "{name}: {ended} orders cancelled")),
    }?)
}
