//! `certdist device key`: ends the rolls of devices' own keys. Leaves out each device that may know
//! only the key to be removed. A former key is removed only if the device has used its second key last,
//! and a second key only if it has not.

use anyhow::anyhow;
use futures_util::future::try_join_all;

use super::{
    super::{CommandResult, Failure, named, print, progress::Progress, remark},
    in_table,
    many::Many,
    not_there,
};
use crate::{
    config::Config,
    device::DeviceId,
    device_view::time,
    psk::{KindName, WhichKey},
    store::{
        Actor, StoreError, Table,
        roll::{Ended, Ending, Roll},
    },
};

/// Number of devices that are read, and changed concurrently, at a time.
const STEP: usize = 1000;

/// Number of devices that a message names.
const NAMED: usize = 20;

/// Ends rolls of keys: the second key (pskNext) of a device becomes its key, or is taken away
#[derive(clap::Args)]
#[command(after_help = "\
Example: which devices of an enrollment do not use their second key yet?
  certdist device key --enrollment lamp-own --next-becomes-key --dry-run
All others have moved over, so take their former keys away:
  certdist device key --enrollment lamp-own --next-becomes-key

A device that has not used its second key last may know only its former key, so --next-becomes-key
leaves it out. A device that has used its second key last may know only that one, so --drop-next
leaves it out. --anyway includes both.
A former key that is taken away opens no handshake from then on, and its sessions end at
their next message. Servers report the uses of keys once a minute.")]
pub(super) struct Args {
    /// Serial number or MAC address, in any spelling
    #[arg(required_unless_present_any = ["file", "enrollment"], conflicts_with_all = ["file", "enrollment"])]
    id: Option<String>,
    #[command(flatten)]
    many: Many,
    /// All devices of this enrollment that have a second key
    #[arg(long, value_name = "NAME", conflicts_with = "file")]
    enrollment: Option<String>,
    /// The second key becomes the key, and the former key is gone
    #[arg(long, required_unless_present = "drop_next")]
    next_becomes_key: bool,
    /// The second key is gone, and the device keeps its key
    #[arg(long, conflicts_with = "next_becomes_key")]
    drop_next: bool,
    /// Also for devices that may know only the key that goes, by the key that they used last
    #[arg(long)]
    anyway: bool,
    /// Show what would be done, and list the devices that would be left out
    #[arg(long)]
    dry_run: bool,
}

impl Args {
    fn ending(&self) -> Ending {
        match (self.drop_next, self.anyway) {
            (true, true) => Ending::DroppedAnyway,
            (true, false) => Ending::Dropped,
            (false, true) => Ending::Anyway,
            (false, false) => Ending::Used,
        }
    }
}

/// Numbers of devices by the result for them.
#[derive(Default)]
struct Tally {
    ended: u64,
    /// Devices without a second key.
    single: u64,
    left_out: u64,
    /// The first devices that were left out.
    first: Vec<DeviceId>,
}

impl Tally {
    fn add(&mut self, device: &DeviceId, ended: Ended) {
        match ended {
            Ended::Ended => self.ended += 1,
            Ended::NoRoll => self.single += 1,
            Ended::NotDue => {
                self.left_out += 1;
                if self.first.len() < NAMED {
                    self.first.push(device.clone());
                }
            }
        }
    }
}

pub(super) async fn run(args: &Args, config: &Config, store: &dyn Table, by: &Actor) -> CommandResult {
    if let Some(id) = &args.id {
        return one(&in_table(store, id)?, args, config, store, by).await;
    }
    let mut tally = Tally::default();
    let mut progress = Progress::new("{pos} devices");
    let what = match (&args.many.file, &args.enrollment) {
        (Some(path), _) => {
            for devices in args.many.devices(path, store)?.chunks(STEP) {
                step(devices, args, store, by, &mut tally).await?;
                progress.add(devices.len() as u64);
            }
            path.display().to_string()
        }
        (None, name) => {
            let name = known(name.as_deref().unwrap_or_default(), config)?;
            let mut after = None;
            loop {
                let devices = store.rolling(name, after.as_ref(), STEP).await?;
                let Some(last) = devices.last().cloned() else { break };
                step(&devices, args, store, by, &mut tally).await?;
                progress.add(devices.len() as u64);
                after = Some(last);
            }
            name.to_owned()
        }
    };
    drop(progress);
    let Tally { ended, single, left_out, first } = tally;
    let of = if ended == 1 { "of 1 device" } else { &*format!("of {ended} devices") };
    let done = match (args.dry_run, args.drop_next) {
        (false, false) => "is the only key now",
        (false, true) => "was taken away",
        (true, false) => "would be the only key",
        (true, true) => "would be taken away",
    };
    print(|out| writeln!(out, "{what}: the second key {of} {done}"))?;
    if single > 0 {
        remark(&format!("note: {single} devices have no second key\n"));
    }
    if left_out > 0 {
        let named: Vec<_> = first.iter().map(DeviceId::as_str).collect();
        let more = if left_out > NAMED as u64 { ", …" } else { "" };
        let verb = if args.dry_run { "would be" } else { "were" };
        let used = if args.drop_next { "have used" } else { "have not used" };
        remark(&format!(
            "note: {left_out} devices {verb} left out ({}{more}), because they {used} their second key last; \
             --dry-run lists them, --anyway includes them\n",
            named.join(", ")
        ));
    }
    Ok(())
}

/// Checks the name of an enrollment.
fn known<'n>(name: &'n str, config: &Config) -> Result<&'n str, Failure> {
    match named(config, name).map_err(Failure::Usage)?.kind.name() {
        KindName::Individual => Ok(name),
        KindName::Derived | KindName::Shared => Err(Failure::Usage(anyhow!(
            "--enrollment {name}: its devices have no keys of their own; replace its key in the configuration"
        ))),
    }
}

/// Ends the rolls of some devices. In a dry run, prints the devices that would be left out.
async fn step(
    devices: &[DeviceId],
    args: &Args,
    store: &dyn Table,
    by: &Actor,
    tally: &mut Tally,
) -> Result<(), Failure> {
    let done = try_join_all(devices.iter().map(|device| end(device, args, store, by))).await?;
    for (device, ended) in devices.iter().zip(done) {
        tally.add(device, ended);
        if args.dry_run && ended == Ended::NotDue {
            print(|out| writeln!(out, "{device}"))?;
        }
    }
    Ok(())
}

async fn one(
    device: &DeviceId,
    args: &Args,
    config: &Config,
    store: &dyn Table,
    by: &Actor,
) -> CommandResult {
    if store.device(device).await?.is_none() {
        return Err(not_there(device, config).into());
    }
    let done = match (args.dry_run, args.drop_next) {
        (false, false) => "the second key is its only key now",
        (false, true) => "the second key was taken away",
        (true, false) => "the second key would be its only key",
        (true, true) => "the second key would be taken away",
    };
    match end(device, args, store, by).await? {
        Ended::Ended => Ok(print(|out| writeln!(out, "{device}: {done}"))?),
        Ended::NoRoll => {
            Err(anyhow!("{device} has no second key; import a line with a pskNext first").into())
        }
        Ended::NotDue => {
            let (used, needed) = match args.drop_next {
                false => ("has not used", "its former key"),
                true => ("has used", "it"),
            };
            Err(anyhow!(
                "{device} {used} its second key last, so it may be lost without {needed} \
                 (`certdist device show {device}` says when it used which); to go on nevertheless, use --anyway"
            )
            .into())
        }
    }
}

/// Ends the roll of a device, or returns what would happen in a dry run.
async fn end(device: &DeviceId, args: &Args, store: &dyn Table, by: &Actor) -> Result<Ended, StoreError> {
    let ending = args.ending();
    if !args.dry_run {
        return store.end_roll(device, ending, by).await;
    }
    Ok(match store.roll_of(device).await? {
        None => Ended::NoRoll,
        Some(roll) if ending.is_due(roll) => Ended::Ended,
        Some(_) => Ended::NotDue,
    })
}

/// Describes the two keys of a device that has two, each with its name in a file.
pub(super) fn lines(roll: &Roll) -> [(&'static str, String); 2] {
    let at = |seconds: i64| time(Some(seconds)).unwrap_or_else(|| seconds.to_string());
    let says = |which: WhichKey| match roll.used[which as usize] {
        Some(used) => format!("last used {}", at(used)),
        None => format!("not used since {}", at(roll.since)),
    };
    let last = |which| if roll.last_key() == Some(which) { "; the device uses this one" } else { "" };
    WhichKey::ALL.map(|which| (which.column(), format!("{}{}", says(which), last(which))))
}
