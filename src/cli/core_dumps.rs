//! No core dump of a process that has keys in its memory.

use nix::sys::{
    prctl,
    resource::{Resource, setrlimit},
};

/// Forbids them for this process, whatever becomes of it; no other process of the
/// same user may look into its memory either.
pub(super) fn forbid() -> nix::Result<()> {
    setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
    prctl::set_dumpable(false)
}
