//! The operator who makes a change, for the audit log: the user of the command line, or of the
//! console.

use super::{
    audit::{AuditEntry, AuditEvent},
    unix_now,
};

/// An operator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Actor {
    /// Name, which shows the way of access.
    pub name: String,
    /// Network address, for a user of the console.
    pub address: Option<String>,
}

impl Actor {
    /// Returns the system's user that runs this process.
    pub fn system_user() -> Self {
        let uid = nix::unistd::Uid::current();
        let name = nix::unistd::User::from_uid(uid).ok().flatten().map(|user| user.name);
        let name = name.unwrap_or_else(|| "?".into());
        // The variable of sudo proves nothing; it is kept beside the user ID.
        let name = match std::env::var("SUDO_USER") {
            Ok(behind) if !behind.is_empty() && behind.len() <= 64 => {
                format!("{name} (uid {uid}), by sudo from {}", behind.escape_debug())
            }
            _ => format!("{name} (uid {uid})"),
        };
        Self { name, address: None }
    }

    /// Returns an entry about an action at this moment.
    pub(crate) fn entry(&self, event: AuditEvent) -> AuditEntry {
        AuditEntry {
            who: Some(self.name.clone()),
            address: self.address.clone(),
            ..AuditEntry::new(event, unix_now())
        }
    }
}
