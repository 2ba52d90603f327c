//! The operator who makes a change, as named in the audit log: a user of the command line or of
//! the console.

use super::{
    UnixSeconds,
    audit::{AuditEntry, AuditEvent},
};

/// An operator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Actor {
    /// Name in the audit log. It shows whether the operator used the command line or the
    /// console.
    pub name: String,
    /// Network address of a user of the console; `None` for a user of the command line.
    pub address: Option<String>,
}

impl Actor {
    /// Returns the system user that runs this process.
    pub fn system_user() -> Self {
        let uid = nix::unistd::Uid::current();
        let name = nix::unistd::User::from_uid(uid).ok().flatten().map(|user| user.name);
        let name = name.unwrap_or_else(|| "?".into());
        // Any user can set `SUDO_USER`, so its value only follows the name and ID of the real user,
        // and never replaces them.
        let name = match std::env::var("SUDO_USER") {
            Ok(behind) if !behind.is_empty() && behind.len() <= 64 => {
                format!("{name} (uid {uid}), by sudo from {}", behind.escape_debug())
            }
            _ => format!("{name} (uid {uid})"),
        };
        Self { name, address: None }
    }

    /// Returns an audit entry about an action of this operator at this time, by the store's clock.
    pub(crate) fn entry(&self, event: AuditEvent, at: UnixSeconds) -> AuditEntry {
        AuditEntry {
            who: Some(self.name.clone()),
            address: self.address.clone(),
            ..AuditEntry::new(event, at)
        }
    }
}
