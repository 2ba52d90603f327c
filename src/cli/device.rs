//! `certdist device`: lists, shows and changes rows of the table.

mod everywhere;
mod key;
mod list;
mod many;
mod moves;
mod reset;
mod waiting;

use anyhow::{Context, anyhow};

use self::many::{Chosen, Which};
use super::{
    CommandResult, ConfigArgs, Failure, aligned, ask, look_at_store, open_existing, print, progress,
};
use crate::{
    config::Config,
    device::DeviceId,
    device_view::{self, as_json, state, time},
    policy,
    psk::Terms,
    store::{
        self, Actor, Bulk, CloudState, DeviceRow, DeviceState, StoreError, Table, UnixSeconds,
        claim::ClaimView,
        filter::Listed,
        order::OrderKind,
        place::{self, Places},
    },
    table_file,
};

/// Lists devices, and shows or changes one
#[derive(clap::Args)]
#[command(after_help = "\
Example: why does this device get no certificate?
  certdist device show SN00000001
Which devices were refused by IoT Platform, or have a name that is taken there?
  certdist device list --refused

Works beside a running server, which applies changes at once.")]
pub struct Args {
    #[command(subcommand)]
    action: Action,
    #[command(flatten)]
    config: ConfigArgs,
}

#[derive(clap::Subcommand)]
enum Action {
    List(list::Args),
    /// Shows the row of a device, without its secret
    Show {
        /// Serial number or MAC address, in any spelling
        id: String,
        /// Print a JSON object
        #[arg(long)]
        json: bool,
    },
    /// Disables devices, so that they get no certificate
    #[command(after_help = EVERYWHERE)]
    Disable(Change),
    /// Re-enables devices
    #[command(after_help = EVERYWHERE)]
    Enable(Change),
    /// Gives devices new secrets: they are deleted at IoT Platform, and registered anew
    #[command(after_help = "\
Example
  certdist device rotate SN00000001

The former secret stops working at once. The device notices that it can no longer sign in,
and asks for its certificate again. The name stays; what IoT Platform keeps with the
device, such as its shadow and tags, is lost. A device that goes on connecting with a
deleted certificate makes IoT Platform throttle the account's other devices, so make sure
that firmware asks again. Needs manage = true in [iot_platform].")]
    Rotate(Which),
    Move(moves::Args),
    Key(key::Args),
    /// Lists orders for IoT Platform that are not carried out yet
    Orders {
        /// Only devices that are registered at this target
        #[arg(long, value_name = "NAME")]
        target: Option<String>,
        /// Print one JSON object per line
        #[arg(long)]
        json: bool,
    },
    /// Ends orders for IoT Platform without carrying them out
    Cancel(Which),
    Waiting(waiting::List),
    Admit(waiting::Admit),
    Dismiss(waiting::Dismiss),
    /// Clears the first issue and any refusal of the registration, so that the device can ask again
    Reset(reset::Args),
    /// Removes devices and their certificates from the table; IoT Platform keeps the devices unless
    /// --everywhere is given
    #[command(after_help = "\
Example
  certdist device delete SN00000001

A certificate that a device already has remains valid: delete the device at IoT Platform
as well, with --everywhere, or use `certdist device disable` so that it gets no certificate. An enrollment
with unlisted = \"admit\" adds a deleted device again when it asks: disable it instead. Deleted devices
do not come back with `certdist import undo`: export the table first.")]
    Delete {
        #[command(flatten)]
        change: Change,
        /// Do not ask for confirmation; needed without a terminal
        #[arg(long)]
        yes: bool,
    },
}

/// The devices of a change, and where it is made.
#[derive(clap::Args)]
struct Change {
    #[command(flatten)]
    which: Which,
    /// Make the change at IoT Platform as well
    #[arg(long)]
    everywhere: bool,
}

impl Action {
    /// Returns the devices and the kind of the order, if the command places an order for IoT
    /// Platform.
    fn order(&self) -> Option<(&Which, OrderKind)> {
        match self {
            Self::Disable(Change { which, everywhere: true }) => Some((which, OrderKind::Disable)),
            Self::Enable(Change { which, everywhere: true }) => Some((which, OrderKind::Enable)),
            Self::Delete { change: Change { which, everywhere: true }, .. } => {
                Some((which, OrderKind::Delete))
            }
            Self::Rotate(which) => Some((which, OrderKind::Rotate)),
            _ => None,
        }
    }
}

/// Help of the commands with `--everywhere`.
const EVERYWHERE: &str = "\
Example
  certdist device disable SN00000001 --everywhere

With --everywhere, the change is made at IoT Platform, too. The order is kept in the
database until it is carried out, whatever happens meanwhile; `certdist device orders`
lists the orders. Needs manage = true in [iot_platform].";

pub(super) async fn run(args: Args) -> CommandResult {
    let order = args.action.order();
    let calls_cloud = order.is_some() || matches!(args.action, Action::Move(_));
    let config = if calls_cloud { args.config.read()? } else { args.config.read_offline()? };
    let store = match &args.action {
        Action::List(_) | Action::Show { .. } | Action::Waiting(_) | Action::Orders { .. } => {
            look_at_store(&config)?
        }
        _ => open_existing(&config)?,
    };
    let by = Actor::system_user();
    if let Some((which, kind)) = order {
        let chosen = Chosen::read(&which.id, &which.many, &*store)?;
        if let Action::Delete { yes, .. } = &args.action {
            sure_to_delete(&config, &*store, &chosen, *yes).await?;
        }
        return everywhere::change(&config, &store, chosen, kind, &by).await;
    }
    match &args.action {
        Action::List(args) => list::run(args, &config, &*store).await,
        Action::Waiting(args) => waiting::list(args, &config, &*store).await,
        Action::Admit(args) => waiting::admit(args, &config, &*store, &by).await,
        Action::Dismiss(args) => waiting::dismiss(args, &*store).await,
        Action::Show { id, json } => {
            let id = in_table(&*store, id)?;
            let row = store.device(&id).await?.ok_or_else(|| not_there(&id, &config))?;
            let (claim, order) = (store.claim_of(&id).await?, store.order_of(&id).await?);
            let roll = store.roll_of(&id).await?;
            let listed = row.listed(claim.is_some());
            let terms = terms(&config, &listed);
            let is_limited = terms.is_some_and(|terms| terms.guards.max_devices.is_some());
            let taken = match is_limited {
                true => place::taken(&*store, &listed.enrollment, &id).await?,
                false => Places::default(),
            };
            Ok(print(|out| match json {
                true => {
                    let rules = (terms, taken);
                    let mut shown =
                        as_json(&listed, rules, claim.as_ref(), config.names_targets, store.now());
                    if let Some(roll) = &roll {
                        shown["keys"] = device_view::keys(roll);
                    }
                    if let Some(order) = &order {
                        shown["order"] = everywhere::described(&config, order).into();
                    }
                    writeln!(out, "{shown}")
                }
                false => {
                    write!(out, "{}", as_text(&listed, &config, taken, claim.as_ref(), store.now()))?;
                    for (name, says) in roll.iter().flat_map(key::lines) {
                        writeln!(out, "{name:13} {says}")?;
                    }
                    match &order {
                        Some(order) => {
                            writeln!(out, "{:13} {}", "order", everywhere::described(&config, order))
                        }
                        None => Ok(()),
                    }
                }
            })?)
        }
        Action::Move(args) => moves::run(args, &config, &store, &by).await,
        Action::Key(args) => key::run(args, &config, &*store, &by).await,
        Action::Orders { target, json } => everywhere::list(&config, &*store, target.as_deref(), *json).await,
        Action::Cancel(which) => {
            let chosen = Chosen::read(&which.id, &which.many, &*store)?;
            everywhere::cancel(&config, &*store, chosen, &by).await
        }
        Action::Rotate(_) => Err(anyhow!("an order was not placed").into()),
        Action::Disable(Change { which, .. }) => {
            let disable = async |id: &DeviceId| store.set_state(id, DeviceState::Disabled, &by).await;
            change(&config, Chosen::read(&which.id, &which.many, &*store)?, "disabled", disable).await
        }
        Action::Enable(Change { which, .. }) => {
            let enable = async |id: &DeviceId| store.set_state(id, DeviceState::Enabled, &by).await;
            change(&config, Chosen::read(&which.id, &which.many, &*store)?, "enabled", enable).await
        }
        Action::Reset(args) if args.refused => reset::refused(args, &config, &*store, &by).await,
        Action::Reset(args) => {
            let reset = async |id: &DeviceId| store.reset(id, &by).await;
            change(&config, Chosen::read(&args.id, &args.many, &*store)?, "reset", reset).await
        }
        Action::Delete { change: Change { which, .. }, yes } => {
            let chosen = Chosen::read(&which.id, &which.many, &*store)?;
            sure_to_delete(&config, &*store, &chosen, *yes).await?;
            let delete = async |id: &DeviceId| store.delete(id, &by).await;
            change(&config, chosen, "deleted", delete).await
        }
    }
}

/// Changes the chosen devices, and reports the changes.
async fn change(
    config: &Config,
    chosen: Chosen,
    done: &str,
    change: impl AsyncFn(&DeviceId) -> Result<bool, StoreError>,
) -> CommandResult {
    match &chosen {
        Chosen::One(id) if change(id).await? => Ok(print(|out| writeln!(out, "{id}: {done}"))?),
        Chosen::One(id) => Err(not_there(id, config).into()),
        Chosen::Many(..) => {
            let changed = many::change(chosen.devices(), change).await?;
            Ok(print(|out| writeln!(out, "{} {done}", chosen.subject(changed as u64)))?)
        }
    }
}

/// Asks for confirmation, with the number of certificates that would be deleted.
async fn sure_to_delete(
    config: &Config,
    store: &dyn Table,
    chosen: &Chosen,
    yes: bool,
) -> Result<(), Failure> {
    let mut certificates = 0;
    for id in chosen.devices() {
        match store.device(id).await {
            Ok(Some(DeviceRow { certificate: None, .. })) => {}
            // A certificate that cannot be opened also counts, because it would be deleted, too.
            Ok(Some(_)) | Err(StoreError::Failed(_)) => certificates += 1,
            Ok(None) => return Err(not_there(id, config).into()),
            Err(error) => return Err(error.into()),
        }
    }
    let question = match chosen {
        Chosen::One(id) if certificates == 0 => format!("Delete {id} from the table?"),
        Chosen::One(id) => format!("Delete {id} and its certificate from the table?"),
        Chosen::Many(_, all) => {
            format!("Delete {} devices from the table, {certificates} of them with a certificate?", all.len())
        }
    };
    ask::sure(yes, &question)
}

/// Parses a device ID in any spelling. Returns the ID under which the table has the device. If the
/// device is not in the table, returns the ID that a new device would have.
pub(super) fn in_table(store: &dyn Bulk, id: &str) -> Result<DeviceId, Failure> {
    let asked = table_file::device_id(id)
        .with_context(|| format!("\"{}\"", id.escape_debug()))
        .map_err(Failure::Usage)?;
    Ok(store.known_as(&asked)?.unwrap_or_else(|| asked.canonical().clone()))
}

/// Returns the error for a device that is not in the table. The error names the database.
fn not_there(id: &DeviceId, config: &Config) -> anyhow::Error {
    anyhow!("{id} is not in the table ({}); add it with `certdist import`", store::shown(&config.database))
}

/// Describes a device's state at IoT Platform, and says what to do.
fn cloud_state(row: &Listed) -> Option<&'static str> {
    row.cloud_state.map(|state| match state {
        CloudState::Disabled => "disabled there: it cannot sign in until it is enabled there",
        CloudState::Deleted => "deleted there: to register it again, use `certdist device reset`",
    })
}

/// Returns the terms of the device's enrollment, if that enrollment is in the configuration.
fn terms(config: &Config, row: &Listed) -> Option<Terms> {
    everywhere::terms(config, &row.enrollment)
}

fn as_text(
    row: &Listed,
    config: &Config,
    taken: Places,
    claim: Option<&ClaimView>,
    now: UnixSeconds,
) -> String {
    let or_dash = |value: Option<String>| value.unwrap_or_else(|| "-".into());
    let name = row.name();
    let target = config.names_targets.then(|| ("target", target(row, config)));
    let facts = [
        ("device", row.id.to_string()),
        ("enrollment", row.enrollment.clone()),
        ("state", state(row.state).into()),
        ("product key", row.product_key.clone()),
        ("device name", name),
        ("certificate", if row.is_registered { "yes".into() } else { "not registered yet".into() }),
        ("IotId", or_dash(row.iot_id.clone())),
        ("registered", or_dash(time(row.registered))),
        ("first issued", or_dash(time(row.first_issued))),
        ("activated", or_dash(time(row.activated))),
        ("refused", or_dash(row.refusal.clone())),
        ("IoT Platform", cloud_state(row).unwrap_or("-").into()),
        ("registration", or_dash(claim.map(device_view::registration))),
        ("next request", policy::next_request(row, terms(config, row), taken, now)),
    ];
    facts.iter().chain(&target).map(|(label, value)| format!("{label:13} {value}\n")).collect()
}

/// Describes the target of a device.
fn target(row: &Listed, config: &Config) -> String {
    match (&row.target, config.target_of.get(&row.enrollment)) {
        (Some(own), _) if config.targets.iter().all(|target| target.name != *own) => {
            format!("{own}, which is not configured: add the [[target]]")
        }
        (Some(own), _) => own.clone(),
        (None, Some(target)) => {
            format!("{target}, if its enrollment does not change before it is registered")
        }
        (None, None) => "-".to_owned(),
    }
}
