//! `certdist device move`: registers devices at another target. Decides which devices move, and in
//! which product they are at the new target.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use anyhow::anyhow;
use clap::ValueEnum;

use super::{
    super::{CommandResult, Failure, named, progress::Progress, remark},
    everywhere::{self, Words},
    many::{Chosen, Many},
};
use crate::{
    config::Config,
    device::DeviceId,
    ordering::{self, Refusal},
    psk::Enrollment,
    store::{
        Actor, Table,
        filter::{Cursor, Filter},
        order::{self, Begun, Move, OrderKind},
    },
    table_file,
};

/// Number of rows read at a time.
const ROWS: usize = 1000;

/// Maximum time for one step of a search.
const STEP: Duration = Duration::from_millis(200);

/// Moves devices to another target: they are registered there, and their next request gets the new
/// certificate and host
#[derive(clap::Args)]
#[command(after_help = "\
Example
  certdist device move SN00000001 --target frankfurt
A fleet, whose former devices are deleted in the end
  certdist device move --enrollment lamp-2026 --target frankfurt --former delete

The former certificate stays in the table, and is handed out, until the new one is stored.
The former device stays as it is, so that a device that has not asked again goes on working
there, and the move is undone by moving back. --former changes that, and needs manage = true
at the former target. The order is kept in the database until it is carried out, whatever
happens meanwhile; `certdist device orders` lists the orders.")]
pub(super) struct Args {
    /// Serial number or MAC address, in any spelling
    #[arg(required_unless_present_any = ["file", "enrollment"], conflicts_with_all = ["file", "enrollment"])]
    id: Option<String>,
    #[command(flatten)]
    many: Many,
    /// All devices of this enrollment
    #[arg(long, value_name = "NAME", conflicts_with = "file")]
    enrollment: Option<String>,
    /// Name of the new target
    #[arg(long, value_name = "NAME")]
    target: String,
    /// Product at the new target; without it, the product of the device's enrollment, if that has the
    /// target, or the only product of the enrollments that have it
    #[arg(long, value_name = "PRODUCT_KEY")]
    product: Option<String>,
    /// Treatment of the device at the former target, once the new certificate is stored
    #[arg(long, value_enum, default_value = "keep")]
    former: Former,
    /// Give up a registration that has begun at another target and is not finished, even if it may
    /// have been carried out there; for a target that is gone
    #[arg(long)]
    abandon: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Former {
    /// It stays as it is
    Keep,
    /// It is disabled
    Disable,
    /// It is deleted
    Delete,
}

impl From<Former> for order::Former {
    fn from(former: Former) -> Self {
        match former {
            Former::Keep => Self::Keep,
            Former::Disable => Self::Disable,
            Former::Delete => Self::Delete,
        }
    }
}

/// Moves the chosen devices, and reports.
pub(super) async fn run(args: &Args, config: &Config, store: &Arc<dyn Table>, by: &Actor) -> CommandResult {
    check(args, config).map_err(Failure::Usage)?;
    let chosen = match &args.enrollment {
        Some(enrollment) => {
            Chosen::Many(format!("enrollment {enrollment}"), devices_of(&**store, enrollment)?)
        }
        None => Chosen::read(&args.id, &args.many, &**store)?,
    };
    let targets = everywhere::targets(config, store, OrderKind::Move)?;
    let to = |enrollment: &str| {
        let product_key = product(args, config, enrollment).map_err(Refusal::NoProduct)?;
        Ok(Move { target: args.target.clone(), product_key, former: args.former.into() })
    };
    let begun = if args.abandon { Begun::Abandon } else { Begun::Keep };
    let place = async |id: &DeviceId| {
        let terms = |name: &str| everywhere::terms(config, name);
        ordering::place_move(&**store, &targets, terms, id, (to, begun, by)).await
    };
    let done = format!("moved to {}; the new certificate comes with the next request", args.target);
    let carriers = match args.former {
        Former::Keep => "a server that has this target",
        Former::Disable | Former::Delete => "a server that has both targets, with manage = true",
    };
    let words = Words { kind: OrderKind::Move, done: &done, carriers };
    everywhere::carry_out(config, store, &targets, &chosen, place, words).await
}

/// Checks that the configuration has what a move needs. Warns if the new target cannot be called now.
fn check(args: &Args, config: &Config) -> anyhow::Result<()> {
    args.enrollment.as_ref().map_or(Ok(()), |name| named(config, name).map(drop))?;
    if let Some(product_key) = &args.product {
        table_file::product_key(product_key).map_err(|reason| anyhow!("--product: {reason}"))?;
    }
    let Some(target) = config.targets.iter().find(|target| target.name == args.target) else {
        let known: Vec<_> = config.targets.iter().map(|target| format!("\"{}\"", target.name)).collect();
        let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
        return Err(anyhow!(
            "--target \"{}\": no such target; configured: {known}; add the [[target]] to the configuration",
            args.target.escape_debug()
        ));
    };
    if let Err(reason) = &target.settings {
        remark(&format!("note: target {} cannot be called now: {reason}\n", args.target));
    }
    match args.former {
        Former::Keep => Ok(()),
        Former::Disable | Former::Delete => everywhere::check(config),
    }
}

/// Returns the product of a device of this enrollment at the new target.
fn product(args: &Args, config: &Config, enrollment: &str) -> Result<String, String> {
    if let Some(product_key) = &args.product {
        return Ok(product_key.clone());
    }
    let has_target = |known: &&Enrollment| config.target_of.get(&known.name) == Some(&args.target);
    let at_target = || config.enrollments.iter().filter(has_target);
    if let Some(own) = at_target().find(|known| known.name == enrollment) {
        return Ok(own.product_key.clone());
    }
    let products: BTreeSet<&str> = at_target().map(|known| known.product_key.as_str()).collect();
    match products.len() {
        1 => Ok(products.into_iter().collect()),
        count => Err(format!(
            "its product at target {} is not known, because the enrollments that have this target have {count} \
             products; give it with --product",
            args.target
        )),
    }
}

/// Returns the devices of an enrollment.
fn devices_of(store: &dyn Table, enrollment: &str) -> Result<Vec<DeviceId>, Failure> {
    let filter = Filter { enrollment: Some(enrollment.to_owned()), ..Filter::default() };
    let (mut rest, mut all) = (Some(Cursor::First), Vec::new());
    let mut progress = Progress::new("{pos} devices found");
    while let Some(from) = rest {
        let found = store.find(&filter, &from, ROWS, STEP)?;
        rest = found.rest();
        progress.add(found.devices.len() as u64);
        all.extend(found.devices.into_iter().map(|device| device.id));
    }
    Ok(all)
}
