//! Changes many devices, whose IDs are read from a file. If one of these devices is not in the
//! table, no device is changed.

use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};
use futures_util::future::try_join_all;

use super::super::{Failure, progress::Progress, remark};
use crate::{
    device::DeviceId,
    store::{Bulk, StoreError},
    table_file::{self, Source},
};

/// Number of devices that are changed concurrently, with one sync of the disk.
const AT_ONCE: usize = 1000;

/// Number of devices that a message names.
const NAMED: usize = 20;

/// The devices that a command is about.
#[derive(clap::Args)]
pub(super) struct Which {
    /// Serial number or MAC address, in any spelling
    #[arg(required_unless_present = "file", conflicts_with = "file")]
    pub(super) id: Option<String>,
    #[command(flatten)]
    pub(super) many: Many,
}

/// The devices of a file.
#[derive(clap::Args)]
pub(super) struct Many {
    /// All devices of a file, of which only the device IDs are read; - is standard input
    #[arg(long, value_name = "FILE.csv")]
    pub(super) file: Option<PathBuf>,
    /// With --file: leave out devices that are not in the table
    #[arg(long, requires = "file", conflicts_with = "id")]
    ignore_missing: bool,
}

/// The devices that a command changes, under the IDs that they have in the table.
pub(super) enum Chosen {
    /// A device, whether or not it is in the table.
    One(DeviceId),
    /// The name of a file or of an enrollment in messages, and its devices without repetitions.
    Many(String, Vec<DeviceId>),
}

impl Chosen {
    /// Reads the arguments of a command, and the file, if one is given.
    pub(super) fn read(id: &Option<String>, many: &Many, store: &dyn Bulk) -> Result<Self, Failure> {
        match &many.file {
            Some(path) => Ok(Self::Many(path.display().to_string(), many.devices(path, store)?)),
            None => super::in_table(store, id.as_deref().unwrap_or_default()).map(Self::One),
        }
    }

    /// Returns the devices.
    pub(super) fn devices(&self) -> &[DeviceId] {
        match self {
            Self::One(id) => std::slice::from_ref(id),
            Self::Many(_, devices) => devices,
        }
    }

    /// Returns the words by which a message names `count` of the devices.
    pub(super) fn subject(&self, count: u64) -> String {
        match self {
            Self::One(id) => id.to_string(),
            Self::Many(name, _) => {
                format!("{name}: {count} {}", if count == 1 { "device" } else { "devices" })
            }
        }
    }
}

impl Many {
    /// Returns the devices of the file. Fails if one is not in the table.
    pub(super) fn devices(&self, path: &Path, store: &dyn Bulk) -> Result<Vec<DeviceId>, Failure> {
        let source = Source::open(path).with_context(|| path.display().to_string())?;
        let input = source.input().with_context(|| path.display().to_string())?;
        let (asked, remarks) = table_file::device_ids(input)?;
        for sentence in remarks {
            remark(&format!("note: {sentence}\n"));
        }
        let mut progress = Progress::new("{pos} devices looked up");
        let (mut found, mut missing) = (Vec::with_capacity(asked.len()), Vec::new());
        for asked in &asked {
            match store.known_as(asked)? {
                Some(id) => found.push(id),
                None => missing.push(asked.first()),
            }
            progress.add(1);
        }
        drop(progress);
        if !missing.is_empty() {
            let named: Vec<_> = missing.iter().take(NAMED).map(|id| id.as_str()).collect();
            let more = if missing.len() > NAMED { ", …" } else { "" };
            let sentence = format!(
                "{} of {} devices are not in the table ({}{more})",
                missing.len(),
                asked.len(),
                named.join(", ")
            );
            if !self.ignore_missing {
                return Err(anyhow!(
                    "{}: {sentence}, so nothing was changed; to leave them out, use --ignore-missing",
                    path.display()
                )
                .into());
            }
            remark(&format!("note: {sentence} and are left out\n"));
        }
        found.sort();
        found.dedup();
        Ok(found)
    }
}

/// Changes each device. Returns the number of devices that were in the table. An error says how
/// many devices were changed before it occurred. After an error, the operator can repeat the
/// command.
pub(super) async fn change(
    devices: &[DeviceId],
    change: impl AsyncFn(&DeviceId) -> Result<bool, StoreError>,
) -> anyhow::Result<usize> {
    let mut progress = Progress::new("{pos} devices changed");
    let mut changed = 0;
    for some in devices.chunks(AT_ONCE) {
        let done = try_join_all(some.iter().map(async |id| change(id).await)).await;
        let done = done.with_context(|| format!("{changed} of {} devices were changed", devices.len()))?;
        changed += done.into_iter().filter(|found| *found).count();
        progress.add(some.len() as u64);
    }
    Ok(changed)
}
