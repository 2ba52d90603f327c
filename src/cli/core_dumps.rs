//! Forbids core dumps, because the process has secrets in its memory.

use nix::sys::{
    prctl,
    resource::{Resource, setrlimit},
};

/// Forbids core dumps of this process, and prevents other processes of the same user from reading
/// its memory.
pub(super) fn forbid() -> nix::Result<()> {
    setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
    prctl::set_dumpable(false)
}
