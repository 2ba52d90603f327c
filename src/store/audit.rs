//! What the audit log says, and how its entries are chained: each carries the
//! SHA-256 of the hash before it and of itself, so that an entry that was changed,
//! cut out or put in is found. Pure; where entries are kept is a store's.

use std::fmt::{self, Write};

use sha2::{Digest, Sha256};

use super::UnixSeconds;
use crate::device::DeviceId;

/// A link of the chain: SHA-256.
pub type Link = [u8; 32];

/// One entry: who did what, when, and from where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditEntry {
    /// From 1, without gaps; 0 until it is written.
    pub seq: u64,
    /// When.
    pub at: UnixSeconds,
    /// What happened.
    pub event: AuditEvent,
    /// To which device; `None` when it is about more than one.
    pub device: Option<DeviceId>,
    /// The enrollment that the client has proven to belong to.
    pub enrollment: Option<String>,
    /// Who: the PSK identity of a device, the system's user for an operator.
    pub who: Option<String>,
    /// Where the client's handshake came from: an IPv4 address, or an IPv6 network.
    pub address: Option<String>,
    /// What of it: the certificate (`productKey/deviceName`), the reason of a
    /// refusal, numbers. Never a secret.
    pub detail: Option<String>,
}

impl AuditEntry {
    /// An entry that says only what happened, and when.
    pub fn new(event: AuditEvent, at: UnixSeconds) -> Self {
        Self { seq: 0, at, event, device: None, enrollment: None, who: None, address: None, detail: None }
    }

    /// The link that follows `previous` when this entry does.
    pub fn link(&self, previous: &Link) -> Link {
        self.link_as(self.seq, previous)
    }

    /// The same for an entry that becomes number `seq`.
    pub(super) fn link_as(&self, seq: u64, previous: &Link) -> Link {
        let mut hash = Sha256::new();
        hash.update(previous);
        hash.update(seq.to_be_bytes());
        hash.update(self.at.to_be_bytes());
        let texts = [
            Some(self.event.name()),
            self.device.as_ref().map(DeviceId::as_str),
            self.enrollment.as_deref(),
            self.who.as_deref(),
            self.address.as_deref(),
            self.detail.as_deref(),
        ];
        // Each text after its length, so that no two entries are the same bytes.
        for text in texts {
            match text {
                Some(text) => {
                    hash.update((text.len() as u64).to_be_bytes());
                    hash.update(text);
                }
                None => hash.update(u64::MAX.to_be_bytes()),
            }
        }
        hash.finalize().into()
    }
}

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AuditEvent {
    /// A device was given its certificate for the first time.
    Issued,
    /// A device was given its certificate again.
    Reissued,
    /// A device was refused.
    Refused,
    /// A device was registered at IoT Platform.
    Registered,
    /// The operator forbade a device.
    Disabled,
    /// The operator allowed a device again.
    Enabled,
    /// The operator reset a device.
    Reset,
    /// The operator deleted a device.
    Deleted,
    /// The operator imported a file.
    Imported,
    /// The operator had the secrets sealed under a key.
    Sealed,
    /// The operator put a backup in the database's place.
    Restored,
    /// Old entries were removed.
    Pruned,
    /// Entries were not written, as too many were waiting.
    Dropped,
}

impl AuditEvent {
    /// All of them.
    pub const ALL: [Self; 13] = [
        Self::Issued,
        Self::Reissued,
        Self::Refused,
        Self::Registered,
        Self::Disabled,
        Self::Enabled,
        Self::Reset,
        Self::Deleted,
        Self::Imported,
        Self::Sealed,
        Self::Restored,
        Self::Pruned,
        Self::Dropped,
    ];

    /// As it is called in the table and in what is exported.
    pub fn name(self) -> &'static str {
        match self {
            Self::Issued => "issued",
            Self::Reissued => "reissued",
            Self::Refused => "refused",
            Self::Registered => "registered",
            Self::Disabled => "disabled",
            Self::Enabled => "enabled",
            Self::Reset => "reset",
            Self::Deleted => "deleted",
            Self::Imported => "imported",
            Self::Sealed => "sealed",
            Self::Restored => "restored",
            Self::Pruned => "pruned",
            Self::Dropped => "dropped",
        }
    }

    /// The event of that name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|event| event.name() == name)
    }
}

/// Who asks for a certificate, and from where.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Asker {
    /// The enrollment whose key it has.
    pub enrollment: String,
    /// Its PSK identity.
    pub identity: String,
    /// Where its handshake came from.
    pub address: String,
}

impl Asker {
    /// An entry about what it has asked for.
    pub fn entry(self, event: AuditEvent, at: UnixSeconds, device: DeviceId, detail: String) -> AuditEntry {
        AuditEntry {
            device: Some(device),
            enrollment: Some(self.enrollment),
            who: Some(self.identity),
            address: Some(self.address),
            detail: Some(detail),
            ..AuditEntry::new(event, at)
        }
    }
}

/// An entry about what a device has asked for, in one piece: it is made once for each
/// answer, and read elsewhere.
pub struct Asked {
    at: UnixSeconds,
    event: AuditEvent,
    /// Device, enrollment, identity, address and detail, one after another.
    text: String,
    /// Where all but the last of them end.
    ends: [usize; 4],
}

impl Asked {
    /// An entry of these parts; `detail` is put together.
    pub fn new(
        event: AuditEvent,
        at: UnixSeconds,
        device: &DeviceId,
        (enrollment, identity, address): (&str, &str, impl fmt::Display),
        detail: &[&str],
    ) -> Self {
        let mut text = String::with_capacity(160);
        let mut ends = [0; 4];
        for (part, end) in [device.as_str(), enrollment, identity].into_iter().zip(&mut ends) {
            text.push_str(part);
            *end = text.len();
        }
        // Writing to a string cannot fail.
        let _ = write!(text, "{address}");
        ends[3] = text.len();
        text.extend(detail.iter().copied());
        Self { at, event, text, ends }
    }
}

impl From<Asked> for AuditEntry {
    fn from(asked: Asked) -> Self {
        let Asked { at, event, text, ends: [device, enrollment, identity, address] } = asked;
        let part = |from: usize, to: usize| Some(text[from..to].to_owned());
        Self {
            device: DeviceId::parse_sn(&text[..device]).ok(),
            enrollment: part(device, enrollment),
            who: part(enrollment, identity),
            address: part(identity, address),
            detail: part(address, text.len()),
            ..Self::new(event, at)
        }
    }
}

/// How much of the audit log is kept; `None` is without a limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keep {
    /// Entries that are older go.
    pub days: Option<u32>,
    /// Of more entries, the oldest go.
    pub rows: Option<u64>,
}

impl Default for Keep {
    fn default() -> Self {
        Self { days: Some(365), rows: Some(5_000_000) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry() -> AuditEntry {
        let asker = Asker { enrollment: "lamp".into(), identity: "one".into(), address: "192.0.2.1".into() };
        let device = DeviceId::parse("SN-1").unwrap();
        AuditEntry { seq: 7, ..asker.entry(AuditEvent::Issued, 5, device, "a1/n".into()) }
    }

    #[test]
    fn whatever_changes_in_an_entry_changes_its_link() {
        let link = entry().link(&[0; 32]);
        let changed: [fn(&mut AuditEntry); 9] = [
            |entry| entry.seq = 8,
            |entry| entry.at = 6,
            |entry| entry.event = AuditEvent::Reissued,
            |entry| entry.device = None,
            |entry| entry.enrollment = Some("lamps".into()),
            |entry| entry.who = None,
            |entry| entry.address = Some(String::new()),
            |entry| entry.detail = Some("a1/m".into()),
            // The same letters, parted elsewhere.
            |entry| (entry.enrollment, entry.who) = (Some("lampo".into()), Some("ne".into())),
        ];
        for change in changed {
            let mut other = entry();
            change(&mut other);
            assert_ne!(other.link(&[0; 32]), link, "{other:?}");
        }
        assert_ne!(entry().link(&[1; 32]), link);
        assert_eq!(entry().link(&[0; 32]), link);
    }

    #[test]
    fn an_entry_in_one_piece_says_the_same() {
        let device = DeviceId::parse("SN-1").unwrap();
        let asker = ("lamp", "one", "192.0.2.1");
        let asked = Asked::new(AuditEvent::Issued, 5, &device, asker, &["a1", "/", "n"]);
        assert_eq!(AuditEntry { seq: 7, ..asked.into() }, entry());
    }

    #[test]
    fn every_event_has_a_name_of_its_own() {
        for event in AuditEvent::ALL {
            assert_eq!(AuditEvent::named(event.name()), Some(event));
        }
    }
}
