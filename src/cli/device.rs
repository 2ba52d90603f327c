//! `certdist device`: rows of the table, listed, shown and changed.

mod list;

use anyhow::{Context, anyhow};

use super::{ConfigArgs, Failure, Outcome, aligned, ask, open_store, print, progress};
use crate::{
    device::DeviceId,
    device_view::{as_json, state, time},
    store::{Actor, CloudState, DeviceRow, DeviceState, Store},
};

/// Lists devices, shows or changes one
#[derive(clap::Args)]
#[command(after_help = "\
Example: why does this device get no certificate?
  certdist device show SN00000001
Which ones did IoT Platform refuse?
  certdist device list --refused

All of it works beside a running server, which follows at once.")]
pub struct Args {
    #[command(subcommand)]
    action: Action,
    #[command(flatten)]
    config: ConfigArgs,
}

#[derive(clap::Subcommand)]
enum Action {
    List(list::Args),
    /// Shows what the table knows of a device; its secret is not shown
    Show {
        /// Serial number or MAC address, in any spelling
        id: String,
        /// As a JSON object
        #[arg(long)]
        json: bool,
    },
    /// Gives the device no certificate any more
    Disable {
        /// Serial number or MAC address, in any spelling
        id: String,
    },
    /// Takes `disable` back
    Enable {
        /// Serial number or MAC address, in any spelling
        id: String,
    },
    /// Forgets the first issue and a refusal by IoT Platform, so that the device can ask again
    Reset {
        /// Serial number or MAC address, in any spelling
        id: String,
    },
    /// Removes the device and its certificate from the table; IoT Platform keeps it
    #[command(after_help = "\
Example
  certdist device delete SN00000001

A certificate that the device has got stays good: delete the device at IoT Platform,
too, or use `certdist device disable` to give it none any more.")]
    Delete {
        /// Serial number or MAC address, in any spelling
        id: String,
        /// Do not ask; needed where there is no terminal to ask at
        #[arg(long)]
        yes: bool,
    },
}

pub(super) async fn run(args: Args) -> Outcome {
    let config = args.config.read()?;
    let store = open_store(&config)?;
    let by = Actor::system_user();
    let (id, found, done) = match &args.action {
        Action::List(args) => return list::run(args, &config, &*store).await,
        Action::Show { id, json } => {
            let id = parse(id)?;
            let row = store.device(&id).await?.ok_or_else(|| not_there(&id))?;
            return Ok(print(|out| match json {
                true => writeln!(out, "{}", as_json(&row)),
                false => write!(out, "{}", as_text(&row)),
            })?);
        }
        Action::Disable { id } => {
            let id = parse(id)?;
            let found = store.set_state(&id, DeviceState::Disabled, &by).await?;
            (id, found, "disabled")
        }
        Action::Enable { id } => {
            let id = parse(id)?;
            let found = store.set_state(&id, DeviceState::Enabled, &by).await?;
            (id, found, "enabled")
        }
        Action::Reset { id } => {
            let id = parse(id)?;
            let found = store.reset(&id, &by).await?;
            (id, found, "reset")
        }
        Action::Delete { id, yes } => {
            let id = parse(id)?;
            let row = store.device(&id).await?.ok_or_else(|| not_there(&id))?;
            let certificate = if row.certificate.is_some() { " and its certificate" } else { "" };
            ask::sure(*yes, &format!("Delete {id}{certificate} from the table?"))?;
            let found = store.delete(&id, &by).await?;
            (id, found, "deleted")
        }
    };
    if !found {
        return Err(not_there(&id).into());
    }
    print(|out| writeln!(out, "{id}: {done}"))?;
    Ok(())
}

fn parse(id: &str) -> Result<DeviceId, Failure> {
    DeviceId::parse(id).with_context(|| format!("\"{}\"", id.escape_debug())).map_err(Failure::Usage)
}

fn not_there(id: &DeviceId) -> anyhow::Error {
    anyhow!("{id} is not in the table: `certdist import` adds devices")
}

/// What is wrong with it there, and what mends it.
fn cloud_state(row: &DeviceRow) -> Option<&'static str> {
    row.cloud_state.map(|state| match state {
        CloudState::Disabled => "disabled there: it cannot sign in until somebody enables it there",
        CloudState::Deleted => "deleted there: `certdist device reset` has it registered anew",
    })
}

fn as_text(row: &DeviceRow) -> String {
    let or_dash = |value: Option<String>| value.unwrap_or_else(|| "-".into());
    let name = row.name();
    [
        ("device", row.id.to_string()),
        ("enrollment", row.enrollment.clone()),
        ("state", state(row).into()),
        ("product key", row.product_key.clone()),
        ("device name", name),
        ("certificate", if row.certificate.is_some() { "yes".into() } else { "not registered yet".into() }),
        ("IotId", or_dash(row.iot_id.clone())),
        ("registered", or_dash(time(row.registered))),
        ("first issued", or_dash(time(row.first_issued))),
        ("activated", or_dash(time(row.activated))),
        ("refused", or_dash(row.refusal.clone())),
        ("IoT Platform", cloud_state(row).unwrap_or("-").into()),
    ]
    .iter()
    .map(|(label, value)| format!("{label:13} {value}\n"))
    .collect()
}
