//! `certdist import undo` and `certdist import list`: undo an import, and list the recent imports.

use super::super::{CommandResult, Failure, aligned, ask, print, progress::Progress, remark};
use crate::{
    device::DeviceId,
    device_view::time,
    store::{
        Actor, Table,
        undo::{ImportId, ImportRecord, Left, NotUndone, Undo, UndoError, Undone},
    },
};

/// Number of devices that a message names.
const NAMED: usize = 10;

#[derive(clap::Subcommand)]
pub(super) enum Action {
    /// Undoes an import: removes the devices that it added, and restores those that it changed
    #[command(after_help = "\
Example: the wrong file was imported
  certdist import list
  certdist import undo 3f2a91c0

Works for 30 days, while none of the devices was registered or issued, disabled, deleted,
or changed by another import, and none has used a second key (pskNext) last that the import gave it:
such a device may know only that key. --rest leaves these devices out. Former keys are not kept, so an import that replaced some cannot be
undone. Works beside a running server, and holds up no device. First checks everything, and then
takes the changes back in many short steps; a device that changes meanwhile is left as it is. Once
it has begun, it ends even if this command is killed: a running server, or the next import,
completes it.")]
    Undo {
        /// Number of the import
        #[arg(value_name = "ID")]
        id: ImportId,
        /// Leave out devices that have changed since the import or need a key from it, instead of failing
        #[arg(long)]
        rest: bool,
        /// Show what would change, but change nothing
        #[arg(long)]
        dry_run: bool,
        /// Do not ask for confirmation; needed without a terminal
        #[arg(long)]
        yes: bool,
    },
    /// Lists the imports of the last 30 days, the newest first
    List,
}

impl Action {
    /// Returns whether the action only reads the table.
    pub(super) fn looks(&self) -> bool {
        matches!(self, Self::List | Self::Undo { dry_run: true, .. })
    }
}

pub(super) fn run(action: &Action, store: &dyn Table) -> CommandResult {
    match action {
        Action::Undo { id, rest, dry_run, yes } => {
            let by = Actor::system_user();
            let how = Undo { id: *id, by: &by, dry_run: true, rest: *rest };
            let would = Progress::during("reading the table", || store.undo_import(how));
            if let Ok(Undone { left: 1.., .. }) | Err(UndoError::NotUndone(NotUndone::Changed { .. })) = would
            {
                name_first(&store.left_of(*id, NAMED)?);
            }
            let would = would.map_err(failure)?;
            if *dry_run {
                return Ok(print(|out| writeln!(out, "import {id}: {}", sentence(would, "would be ")))?);
            }
            ask::sure(*yes, &format!("Undo import {id}? {}.", sentence(would, "would be ")))?;
            let how = Undo { dry_run: false, ..how };
            let undone =
                Progress::during("undoing the import", || store.undo_import(how)).map_err(failure)?;
            Ok(print(|out| writeln!(out, "import {id}: {}", sentence(undone, "")))?)
        }
        Action::List => {
            let imports = store.imports()?;
            let head = ["IMPORT", "TIME", "ADDED", "CHANGED", "UNDONE", "BY", "FILE"].map(String::from);
            let lines: Vec<_> = [head].into_iter().chain(imports.iter().map(line)).collect();
            Ok(print(|out| write!(out, "{}", aligned(&lines)))?)
        }
    }
}

/// Names the first of the devices that an undo leaves as they are.
fn name_first(Left { devices, first }: &Left) {
    if !first.is_empty() {
        let more = if *devices > first.len() as u64 { ", …" } else { "" };
        let named: Vec<_> = first.iter().map(DeviceId::as_str).collect();
        remark(&format!("note: {devices} devices stay as they are: {}{more}\n", named.join(", ")));
    }
}

/// Converts the error of an undo. An unknown number of an import counts as wrong usage.
fn failure(error: UndoError) -> Failure {
    match error {
        UndoError::NotUndone(reason @ NotUndone::Unknown(_)) => Failure::Usage(reason.into()),
        error => Failure::Failed(error.into()),
    }
}

fn sentence(Undone { removed, certificates, restored, left }: Undone, would: &str) -> String {
    let left = if left == 0 { String::new() } else { format!(", {left} left as they are") };
    let certificates = match certificates {
        0 => String::new(),
        count => format!(" ({count} with the certificate that the import brought)"),
    };
    format!("{removed} devices {would}removed{certificates}, {restored} {would}restored{left}")
}

fn line(import: &ImportRecord) -> [String; 7] {
    let ImportRecord { id, at, who, file, added, changed, undone } = import;
    [
        id.to_string(),
        time(Some(*at)).unwrap_or_default(),
        added.to_string(),
        changed.to_string(),
        time(*undone).unwrap_or_else(|| "-".into()),
        who.clone(),
        file.escape_debug().to_string(),
    ]
}
