//! Who changes something as an operator, as the audit log calls them: whoever runs the
//! command line, or is signed in to the console.

use super::{
    audit::{AuditEntry, AuditEvent},
    unix_now,
};

/// Whoever acts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Actor {
    /// Their name, which tells how they came in.
    pub name: String,
    /// Where they are, when they came over the network.
    pub address: Option<String>,
}

impl Actor {
    /// The system's user that runs this process.
    pub fn system_user() -> Self {
        let uid = nix::unistd::Uid::current();
        let name = nix::unistd::User::from_uid(uid).ok().flatten().map(|user| user.name);
        let name = name.unwrap_or_else(|| "?".into());
        // What sudo says is no proof; it is kept beside what is.
        let name = match std::env::var("SUDO_USER") {
            Ok(behind) if !behind.is_empty() && behind.len() <= 64 => {
                format!("{name} (uid {uid}), by sudo from {}", behind.escape_debug())
            }
            _ => format!("{name} (uid {uid})"),
        };
        Self { name, address: None }
    }

    /// An entry about what they do now.
    pub(crate) fn entry(&self, event: AuditEvent) -> AuditEntry {
        AuditEntry {
            who: Some(self.name.clone()),
            address: self.address.clone(),
            ..AuditEntry::new(event, unix_now())
        }
    }
}
