//! `certdist device`: lists, shows and changes rows of the table.

mod list;
mod reset;

use anyhow::{Context, anyhow};

use super::{
    CommandResult, ConfigArgs, Failure, aligned, ask, look_at_store, open_existing, print, progress,
};
use crate::{
    config::Config,
    device::DeviceId,
    device_view::{self, as_json, state, time},
    policy,
    psk::Reissue,
    store::{Actor, CloudState, DeviceRow, DeviceState, StoreError, claim::ClaimView, unix_now},
};

/// Lists devices, and shows or changes one
#[derive(clap::Args)]
#[command(after_help = "\
Example: why does this device get no certificate?
  certdist device show SN00000001
Which devices did IoT Platform refuse?
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
    /// Disables the device, so that it gets no certificate
    Disable {
        /// Serial number or MAC address, in any spelling
        id: String,
    },
    /// Re-enables the device
    Enable {
        /// Serial number or MAC address, in any spelling
        id: String,
    },
    /// Clears the first issue and any refusal by IoT Platform, so that the device can ask again
    Reset(reset::Args),
    /// Removes the device and its certificate from the table; IoT Platform keeps it
    #[command(after_help = "\
Example
  certdist device delete SN00000001

A certificate that the device already has remains valid: delete the device at IoT
Platform as well, or use `certdist device disable` so that it gets no certificate.")]
    Delete {
        /// Serial number or MAC address, in any spelling
        id: String,
        /// Do not ask for confirmation; needed without a terminal
        #[arg(long)]
        yes: bool,
    },
}

pub(super) async fn run(args: Args) -> CommandResult {
    let config = args.config.read()?;
    let store = match &args.action {
        Action::List(_) | Action::Show { .. } => look_at_store(&config)?,
        _ => open_existing(&config)?,
    };
    let by = Actor::system_user();
    let (id, found, done) = match &args.action {
        Action::List(args) => return list::run(args, &config, &*store).await,
        Action::Show { id, json } => {
            let id = parse(id)?;
            let row = store.device(&id).await?.ok_or_else(|| not_there(&id))?;
            let claim = store.claim_of(&id).await?;
            return Ok(print(|out| match json {
                true => writeln!(out, "{}", as_json(&row, reissue(&config, &row), claim.as_ref())),
                false => write!(out, "{}", as_text(&row, reissue(&config, &row), claim.as_ref())),
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
        Action::Reset(args) => match &args.id {
            Some(id) => {
                let id = parse(id)?;
                let found = store.reset(&id, &by).await?;
                (id, found, "reset")
            }
            None => return reset::refused(args, &config, &*store, &by).await,
        },
        Action::Delete { id, yes } => {
            let id = parse(id)?;
            let certificate = match store.device(&id).await {
                Ok(Some(DeviceRow { certificate: None, .. })) => "",
                // A certificate that cannot be opened is no reason to keep the device.
                Ok(Some(_)) | Err(StoreError::Failed(_)) => " and its certificate",
                Ok(None) => return Err(not_there(&id).into()),
                Err(error) => return Err(error.into()),
            };
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
    anyhow!("{id} is not in the table; add it with `certdist import`")
}

/// Describes a device's state at IoT Platform, and says what to do.
fn cloud_state(row: &DeviceRow) -> Option<&'static str> {
    row.cloud_state.map(|state| match state {
        CloudState::Disabled => "disabled there: it cannot sign in until it is enabled there",
        CloudState::Deleted => "deleted there: to register it again, use `certdist device reset`",
    })
}

/// Returns the reissue policy of the device's enrollment, if that enrollment is in the
/// configuration.
fn reissue(config: &Config, row: &DeviceRow) -> Option<Reissue> {
    let named = config.enrollments.iter().find(|enrollment| enrollment.name == row.enrollment);
    named.map(|enrollment| enrollment.reissue)
}

fn as_text(row: &DeviceRow, reissue: Option<Reissue>, claim: Option<&ClaimView>) -> String {
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
        ("registration", or_dash(claim.map(device_view::registration))),
        ("next request", policy::next_request(row, reissue, unix_now())),
    ]
    .iter()
    .map(|(label, value)| format!("{label:13} {value}\n"))
    .collect()
}
