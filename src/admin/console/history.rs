//! Shows the history of a device in sentences, from the audit log of the store.

use crate::{
    device::DeviceId,
    store::{Store, StoreError, UnixSeconds, audit::AuditEntry},
};

/// Maximum number of entries shown; one query reads them.
const MOST: usize = 100;

/// An event in the history of a device.
pub(super) struct Event {
    /// Time of the event.
    pub(super) at: UnixSeconds,
    /// A sentence, without secrets.
    pub(super) text: String,
}

/// Returns the history, newest first; empty if the store keeps no audit log.
pub(super) async fn of(store: &dyn Store, device: &DeviceId) -> Result<Vec<Event>, StoreError> {
    let entries = store.history(device, MOST).await?;
    Ok(entries.into_iter().map(|entry| Event { at: entry.at, text: sentence(&entry) }).collect())
}

/// Formats an entry: `issued: a1/SN-1, by SN-1 from 192.0.2.7`.
fn sentence(entry: &AuditEntry) -> String {
    let mut text = entry.event.name().to_owned();
    for (before, part) in [(": ", &entry.detail), (", by ", &entry.who), (" from ", &entry.address)] {
        if let Some(part) = part.as_deref().filter(|part| !part.is_empty()) {
            text.push_str(before);
            text.push_str(part);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::audit::AuditEvent;

    #[test]
    fn a_sentence_has_only_the_fields_of_its_entry() {
        let bare = AuditEntry::new(AuditEvent::Disabled, 5);
        assert_eq!(sentence(&bare), "disabled");
        let whole = AuditEntry {
            detail: Some("a1/SN-1".into()),
            who: Some("SN-1".into()),
            address: Some("192.0.2.7".into()),
            ..AuditEntry::new(AuditEvent::Issued, 5)
        };
        assert_eq!(sentence(&whole), "issued: a1/SN-1, by SN-1 from 192.0.2.7");
    }
}
