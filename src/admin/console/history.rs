//! What has happened to a device, in sentences: the audit log of its store.

use crate::{
    device::DeviceId,
    store::{Store, StoreError, UnixSeconds, audit::AuditEntry},
};

/// Entries that are shown: what an operator reads, and one query.
const MOST: usize = 100;

/// Something that happened.
pub(super) struct Happening {
    /// When.
    pub(super) at: UnixSeconds,
    /// A sentence, with no secret in it.
    pub(super) what: String,
}

/// The newest first; none from a store that keeps none.
pub(super) async fn of(store: &dyn Store, device: &DeviceId) -> Result<Vec<Happening>, StoreError> {
    let entries = store.history(device, MOST).await?;
    Ok(entries.into_iter().map(|entry| Happening { at: entry.at, what: sentence(&entry) }).collect())
}

/// `issued: a1/SN-1, by SN-1 from 192.0.2.7`.
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
    fn an_entry_is_a_sentence_of_what_it_has() {
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
