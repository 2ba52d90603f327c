//! `certdist device reset --refused`: clears the refusals of many devices, after the operator has
//! removed their common cause.

use std::time::Duration;

use futures_util::future::try_join_all;

use super::{
    super::{CommandResult, Failure, named, print},
    many::Many,
};
use crate::{
    config::Config,
    policy,
    store::{
        Actor, Table,
        filter::{Cursor, Filter, State},
    },
};

/// Number of rows that are read at a time. The refusals of these rows are cleared concurrently.
const ROWS: usize = 1000;

/// Maximum time for one step of the search.
const STEP: Duration = Duration::from_millis(200);

#[derive(clap::Args)]
#[command(after_help = "\
Example: the account had no permission, and has it now
  certdist device reset --refused --reason NoPermission

With --refused, clears only the refusals: the first issue of a certificate stays.")]
pub(super) struct Args {
    /// Serial number or MAC address, in any spelling
    #[arg(required_unless_present_any = ["refused", "file"], conflicts_with_all = ["refused", "file"])]
    pub(super) id: Option<String>,
    #[command(flatten)]
    pub(super) many: Many,
    /// All devices whose registration was refused
    #[arg(long, conflicts_with = "file")]
    pub(super) refused: bool,
    /// With --refused: only devices of this enrollment
    #[arg(long, value_name = "NAME", requires = "refused")]
    enrollment: Option<String>,
    /// With --refused: only devices refused with this code, such as NoPermission
    #[arg(long, value_name = "CODE", requires = "refused")]
    reason: Option<String>,
}

/// Clears the refusals that the arguments select.
pub(super) async fn refused(args: &Args, config: &Config, store: &dyn Table, by: &Actor) -> CommandResult {
    let known = args.enrollment.as_ref().map_or(Ok(()), |name| named(config, name).map(drop));
    known.map_err(Failure::Usage)?;
    let filter =
        Filter { enrollment: args.enrollment.clone(), state: Some(State::Refused), ..Filter::default() };
    let (mut rest, mut cleared) = (Some(Cursor::First), 0);
    while let Some(from) = rest {
        let found = store.find(&filter, &from, ROWS, STEP)?;
        let wanted = found.devices.iter().filter_map(|device| Some((&device.id, device.refusal.as_deref()?)));
        let wanted = wanted
            .filter(|(_, refusal)| args.reason.as_ref().is_none_or(|code| policy::has_code(refusal, code)));
        let done = try_join_all(wanted.map(|(id, refusal)| store.clear_refusal(id, refusal, by))).await?;
        cleared += done.into_iter().filter(|done| *done).count();
        rest = found.rest();
    }
    let refusals = if cleared == 1 { "refusal" } else { "refusals" };
    Ok(print(|out| writeln!(out, "{cleared} {refusals} cleared"))?)
}
