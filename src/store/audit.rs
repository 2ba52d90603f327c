//! Format of the audit log. Entries are JSON objects, one per line, in consecutive blocks. Each
//! block carries a SHA-256 hash of the previous block's hash and of its own content, so that a
//! changed, removed or inserted block is detected. Requests that change nothing are repeats: a store
//! counts them in records beside the blocks ([`Class`]). A store implements the trait [`AuditLog`].
//! The rest of this module performs no I/O.

use std::{fmt, ops::ControlFlow, time::Duration};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use sha2::{Digest, Sha256};

use super::{StoreError, StoreFuture, UnixSeconds};
use crate::device::DeviceId;

/// SHA-256 hash of a block's content and of the previous block's hash. It links the two blocks.
pub type Link = [u8; 32];

/// Usual length of an entry, in bytes.
const LINE: usize = 176;

/// Returns the link of a block. `previous` is the previous block's link, and `first` is the number
/// of the block's first entry.
pub fn link(previous: &Link, first: u64, entries: &str) -> Link {
    let hash = Sha256::new().chain_update(previous).chain_update(first.to_be_bytes());
    hash.chain_update(entries).finalize().into()
}

/// One entry: who did what, when, and from where.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditEntry {
    /// Number of the entry in the log, counted from 1 without gaps; 0 until the entry is in the
    /// log.
    #[serde(skip)]
    pub seq: u64,
    /// Time of the event.
    pub at: UnixSeconds,
    /// The event.
    pub event: AuditEvent,
    /// The device; `None` if the event is not about a single device.
    #[serde(rename = "deviceId", default, skip_serializing_if = "Option::is_none")]
    #[serde(serialize_with = "device_text", deserialize_with = "device")]
    pub device: Option<DeviceId>,
    /// The enrollment whose key the client has proven to have.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub enrollment: Option<String>,
    /// The PSK identity of a device, or the name of an operator ([`Actor`](super::Actor)).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub who: Option<String>,
    /// Network address. For a device, the origin of its handshake: an IPv4 address or an IPv6
    /// network. For an operator, the address of the console's client.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// Details, such as the certificate (`productKey/deviceName`), the reason for a refusal, or
    /// counts. Never contains a secret.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// Requests that this entry counts; `None` unless the entry is a record of repeats. The other
    /// fields describe the last request.
    #[serde(skip)]
    pub repeats: Option<Repeats>,
}

/// Requests of a device that one record counts: the device fetched its certificate again, or was
/// refused again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Repeats {
    /// Number of requests.
    pub count: u64,
    /// Time of the first request.
    pub first: UnixSeconds,
    /// Address of the first request.
    pub first_address: Option<String>,
}

impl AuditEntry {
    /// Creates an entry that has only an event and its time.
    pub fn new(event: AuditEvent, at: UnixSeconds) -> Self {
        let (device, enrollment, who, address, detail) = (None, None, None, None, None);
        Self { seq: 0, at, event, device, enrollment, who, address, detail, repeats: None }
    }

    /// Returns the time by which the entry is sorted: for a record of repeats, the time of the first
    /// request.
    pub fn begun(&self) -> UnixSeconds {
        self.repeats.as_ref().map_or(self.at, |repeats| repeats.first)
    }

    /// Returns whether this record of repeats and `other` can be counted as one: both are of the
    /// same day, and they differ only in times, counts and addresses.
    pub fn is_like(&self, other: &Self) -> bool {
        let key = |entry: &Self| (entry.event, day(entry.at));
        key(self) == key(other)
            && (&self.device, &self.enrollment, &self.who, &self.detail)
                == (&other.device, &other.enrollment, &other.who, &other.detail)
    }

    /// Adds the requests of `other` to this record. An entry that is not a record of repeats counts
    /// as one request.
    pub fn add(&mut self, other: Self) {
        let ours = self.as_repeats();
        let theirs = other.as_repeats();
        let (first, first_address) = match theirs.first < ours.first {
            true => (theirs.first, theirs.first_address),
            false => (ours.first, ours.first_address),
        };
        self.repeats = Some(Repeats { count: ours.count + theirs.count, first, first_address });
        if other.at >= self.at {
            (self.at, self.address) = (other.at, other.address);
        }
    }

    /// Returns the requests that this entry counts: one request, unless it is a record of repeats.
    pub fn as_repeats(&self) -> Repeats {
        let one = || Repeats { count: 1, first: self.at, first_address: self.address.clone() };
        self.repeats.clone().unwrap_or_else(one)
    }

    /// Adds a record of repeats to `records`. If `records` has a record that
    /// [`is_like`](Self::is_like) it, adds the requests to that record instead.
    pub fn gather(self, records: &mut Vec<Self>) {
        match records.iter_mut().find(|known| known.is_like(&self)) {
            Some(known) => known.add(self),
            None => records.push(Self { repeats: Some(self.as_repeats()), ..self }),
        }
    }

    /// Returns the entry as one line of JSON.
    pub fn line(&self) -> String {
        line(self)
    }
}

/// Returns an entry as one line of JSON. Strings and numbers can always be serialized. If an error
/// occurred nevertheless, the line would be empty, and readers accept no empty line as an entry.
fn line(entry: &impl Serialize) -> String {
    let mut line = Vec::with_capacity(LINE);
    match serde_json::to_writer(&mut line, entry) {
        Ok(()) => String::from_utf8(line).unwrap_or_default(),
        Err(_) => String::new(),
    }
}

fn device_text<S: Serializer>(device: &Option<DeviceId>, serializer: S) -> Result<S::Ok, S::Error> {
    device.as_ref().map(DeviceId::as_str).serialize(serializer)
}

fn device<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<DeviceId>, D::Error> {
    let text = Option::<String>::deserialize(deserializer)?;
    text.map(|text| DeviceId::parse_sn(&text)).transpose().map_err(D::Error::custom)
}

/// Merges the entries and the records of repeats of a device; both lists are newest first. If an
/// entry and a record have the same time, the entry counts as newer, because the operator may have
/// acted after the requests.
pub fn merged(entries: Vec<AuditEntry>, records: Vec<AuditEntry>, limit: usize) -> Vec<AuditEntry> {
    let mut records = records.into_iter().peekable();
    let mut all = Vec::with_capacity(entries.len() + records.len());
    for entry in entries {
        while let Some(record) = records.next_if(|record| record.at > entry.at) {
            all.push(record);
        }
        all.push(entry);
    }
    all.extend(records);
    all.truncate(limit);
    all
}

/// Returns the number of the day (UTC) of a time, counted from 1970.
pub fn day(at: UnixSeconds) -> i64 {
    at.div_euclid(86_400)
}

/// Returns the part of a refusal's detail by which two refusals count as equal: without the message
/// of IoT Platform that follows its code, because the message may differ each time.
pub fn reason(detail: &str) -> &str {
    let end = detail.match_indices(": ").nth(1).map_or(detail.len(), |(end, _)| end);
    &detail[..end]
}

/// Classes of entries. Each class has its own limits, so that repeats do not push changes out of the
/// log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// A change of a device or by an operator, and the first refusal of a device for a reason. It
    /// has an entry of its own, in the chain.
    Change,
    /// A request that changes nothing: a device fetches its certificate again, is refused again, or
    /// is not in the table. It is counted in a record beside the chain.
    Repeat,
}

/// Kind of an audit entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AuditEvent {
    /// A device was given its certificate for the first time.
    Issued,
    /// A device was given its certificate again.
    Reissued,
    /// A device was refused.
    Refused,
    /// A device was registered at IoT Platform.
    Registered,
    /// The operator disabled a device.
    Disabled,
    /// The operator enabled a device again.
    Enabled,
    /// The operator reset a device.
    Reset,
    /// The operator deleted a device.
    Deleted,
    /// A device that was not in the table was added to it: by an operator after the device asked or
    /// waited, or because of `unlisted = "admit"`.
    Admitted,
    /// The operator ordered a change to a device at IoT Platform.
    Ordered,
    /// A device was deleted at IoT Platform, so that it gets a new secret.
    Rotated,
    /// A device was moved to another target, or the former device of a move was disabled or deleted.
    Moved,
    /// An order for IoT Platform ended without its change.
    Cancelled,
    /// The operator ended the roll of a device's own key.
    Rekeyed,
    /// The operator imported a file.
    Imported,
    /// The operator undid an import.
    Undone,
    /// The operator sealed the secrets under a database key.
    Sealed,
    /// The operator restored the database from a backup.
    Restored,
    /// An operator has copied another database into this one.
    Copied,
    /// A job of the console began: one action on many devices.
    Began,
    /// A job of the console ended.
    Ended,
    /// Old audit entries were removed.
    Pruned,
    /// Repeats were dropped because too many entries were waiting, or lines of an outbox could not
    /// be read.
    Dropped,
}

impl AuditEvent {
    /// All events.
    pub const ALL: [Self; 23] = [
        Self::Issued,
        Self::Reissued,
        Self::Refused,
        Self::Registered,
        Self::Disabled,
        Self::Enabled,
        Self::Reset,
        Self::Deleted,
        Self::Admitted,
        Self::Ordered,
        Self::Rotated,
        Self::Moved,
        Self::Cancelled,
        Self::Rekeyed,
        Self::Imported,
        Self::Undone,
        Self::Sealed,
        Self::Restored,
        Self::Copied,
        Self::Began,
        Self::Ended,
        Self::Pruned,
        Self::Dropped,
    ];

    /// Returns the event's name in the table and in exports.
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
            Self::Admitted => "admitted",
            Self::Ordered => "ordered",
            Self::Rotated => "rotated",
            Self::Moved => "moved",
            Self::Cancelled => "cancelled",
            Self::Rekeyed => "rekeyed",
            Self::Imported => "imported",
            Self::Undone => "undone",
            Self::Sealed => "sealed",
            Self::Restored => "restored",
            Self::Copied => "copied",
            Self::Began => "began",
            Self::Ended => "ended",
            Self::Pruned => "pruned",
            Self::Dropped => "dropped",
        }
    }
}

/// A client that asks for a certificate.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Asker {
    /// Name of the enrollment whose key the client has proven to have.
    pub enrollment: String,
    /// PSK identity of the client.
    pub identity: String,
    /// Origin of the client's handshake, as text: an IPv4 address, or an IPv6 network of 64 bits.
    pub address: String,
}

impl Asker {
    /// Returns an audit entry about the client's request.
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

/// An audit entry about a device's request. It holds only the event and the line of JSON, because
/// the hot path creates many entries and needs no other form.
pub struct Asked {
    event: AuditEvent,
    line: String,
}

impl Asked {
    /// Creates an entry from its parts. The tuple contains the client's enrollment, PSK
    /// identity and origin.
    pub fn new(
        event: AuditEvent,
        at: UnixSeconds,
        device: &DeviceId,
        (enrollment, who, address): (&str, &str, impl fmt::Display),
        detail: fmt::Arguments<'_>,
    ) -> Self {
        let device = device.as_str();
        Self { event, line: line(&Parts { at, event, device, enrollment, who, address, detail }) }
    }

    /// Creates one from an entry about an operator's action.
    pub fn of(entry: &AuditEntry) -> Self {
        Self { event: entry.event, line: entry.line() }
    }

    /// Returns the event.
    pub fn event(&self) -> AuditEvent {
        self.event
    }

    /// Returns the entry as one line of JSON.
    pub fn into_line(self) -> String {
        self.line
    }
}

/// The fields of an [`AuditEntry`], borrowed.
#[derive(Serialize)]
struct Parts<'a, A: fmt::Display> {
    at: UnixSeconds,
    event: AuditEvent,
    #[serde(rename = "deviceId")]
    device: &'a str,
    enrollment: &'a str,
    who: &'a str,
    #[serde(serialize_with = "shown")]
    address: A,
    detail: fmt::Arguments<'a>,
}

fn shown<S: Serializer>(value: &impl fmt::Display, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}

/// Selection of entries.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Entries about this device.
    pub device: Option<DeviceId>,
    /// Entries from this time on.
    pub since: Option<UnixSeconds>,
    /// Entries before this time.
    pub until: Option<UnixSeconds>,
}

impl Filter {
    /// Returns whether the entry is selected.
    pub fn admits(&self, entry: &AuditEntry) -> bool {
        self.device.as_ref().is_none_or(|device| entry.device.as_ref() == Some(device))
            && self.since.is_none_or(|since| entry.at >= since)
            && self.until.is_none_or(|until| entry.at < until)
    }
}

/// Result of verifying the whole log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    /// Number of entries.
    pub entries: u64,
    /// Sequence number of the last pruned entry; 0 if no entry was pruned.
    pub pruned: u64,
    /// Sequence number of the last entry; 0 if the log is empty.
    pub last: u64,
    /// Hash of the last block.
    pub hash: Link,
    /// First fault, as a sentence; `None` if the chain is intact.
    pub fault: Option<String>,
}

/// Receives each entry of an export, together with the hash of the entry's block, or with zeros if
/// the entry is not in the log yet. Returns whether the export continues.
pub type EachEntry<'a> = &'a mut dyn FnMut(AuditEntry, Link) -> ControlFlow<()>;

/// The part of a store that keeps the audit log.
pub trait AuditLog: Send + Sync + 'static {
    /// Returns whether any entry has expired. Does not write.
    fn has_expired(&self, keep: Keep) -> StoreFuture<'_, bool>;

    /// Removes a limited number of expired entries and records of repeats, oldest first, and returns
    /// the numbers removed. If it removes entries, it adds an entry that reports the pruning in the
    /// same step.
    fn prune(&self, keep: Keep) -> StoreFuture<'_, Counts>;

    /// Returns the time of the newest entry; `None` if the log is empty.
    fn newest_entry(&self) -> StoreFuture<'_, Option<UnixSeconds>>;

    /// Calls `each` with each entry and each record of repeats that the filter selects, in order of
    /// [`AuditEntry::begun`], until `each` returns `Break`. Several records may be about the same
    /// device and day. This method blocks.
    fn export_audit(&self, filter: &Filter, each: EachEntry<'_>) -> Result<(), StoreError>;

    /// Calls `each` with the entries and records of repeats of these kinds, in the reverse order of
    /// [`AuditEntry::begun`], until `each` returns `Break`, the entries are older than `since`, or
    /// `time` is over. Returns false if the time was over. Entries of the last second may be
    /// missing. This method blocks. The default implementation reads all entries since `since` at
    /// once and ignores `time`, so it suits only a short log.
    fn review_audit(
        &self,
        kinds: &[AuditEvent],
        since: UnixSeconds,
        _time: Duration,
        each: EachEntry<'_>,
    ) -> Result<bool, StoreError> {
        let mut found = Vec::new();
        let filter = Filter { since: Some(since), ..Filter::default() };
        self.export_audit(&filter, &mut |entry, hash| {
            if kinds.contains(&entry.event) {
                found.push((entry, hash));
            }
            ControlFlow::Continue(())
        })?;
        // `try_for_each` stops early if `each` returns a break.
        let _ = found.into_iter().rev().try_for_each(|(entry, hash)| each(entry, hash));
        Ok(true)
    }

    /// Verifies the chain of the whole log. `hash_at` receives the sequence number of each block's
    /// last entry, and the block's hash. This method blocks.
    fn verify_audit(&self, hash_at: &mut dyn FnMut(u64, &Link)) -> Result<Chain, StoreError>;
}

/// Retention of the audit log; `None` means no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Keep {
    /// Maximum age of an entry, in days.
    pub days: Option<u32>,
    /// Maximum number of entries in the chain; the oldest are removed first.
    pub rows: Option<u64>,
    /// Maximum number of records of repeats; the oldest are removed first.
    pub repeats: Option<u64>,
}

/// Numbers of both classes: entries in the chain, and records of repeats.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Number of entries.
    pub changes: u64,
    /// Number of records of repeats.
    pub repeats: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry() -> AuditEntry {
        let asker = Asker { enrollment: "lamp".into(), identity: "one".into(), address: "192.0.2.1".into() };
        let device = DeviceId::parse("SN-1").unwrap();
        asker.entry(AuditEvent::Issued, 5, device, "a1/n".into())
    }

    #[test]
    fn whatever_changes_in_a_block_changes_its_link() {
        let block = link(&[0; 32], 7, &entry().line());
        assert_eq!(link(&[0; 32], 7, &entry().line()), block);
        assert_ne!(link(&[1; 32], 7, &entry().line()), block);
        assert_ne!(link(&[0; 32], 8, &entry().line()), block);
        let changed: [fn(&mut AuditEntry); 8] = [
            |entry| entry.at = 6,
            |entry| entry.event = AuditEvent::Reissued,
            |entry| entry.device = None,
            |entry| entry.enrollment = Some("lamps".into()),
            |entry| entry.who = None,
            |entry| entry.address = Some(String::new()),
            |entry| entry.detail = Some("a1/m".into()),
            // Together, the two fields have the same characters as in `entry()`, split at a
            // different place.
            |entry| (entry.enrollment, entry.who) = (Some("lampo".into()), Some("ne".into())),
        ];
        for change in changed {
            let mut other = entry();
            change(&mut other);
            assert_ne!(link(&[0; 32], 7, &other.line()), block, "{other:?}");
        }
    }

    #[test]
    fn an_entry_is_a_line_of_json_whatever_its_texts_are() {
        let line = r#"{"at":5,"event":"issued","deviceId":"SN-1","enrollment":"lamp","who":"one","address":"192.0.2.1","detail":"a1/n"}"#;
        assert_eq!(entry().line(), line);
        let bare = AuditEntry::new(AuditEvent::Imported, 5);
        assert_eq!(bare.line(), r#"{"at":5,"event":"imported"}"#);
        let odd = AuditEntry { who: Some("\"deviceId\":\"SN-2\"\n]".into()), ..entry() };
        assert!(!odd.line().contains('\n'));
        for entry in [entry(), bare, odd] {
            assert_eq!(serde_json::from_str::<AuditEntry>(&entry.line()).unwrap(), entry);
        }
    }

    #[test]
    fn an_entry_that_is_made_of_parts_says_the_same() {
        let device = DeviceId::parse("SN-1").unwrap();
        let asker = ("lamp", "one", "192.0.2.1");
        let asked = Asked::new(AuditEvent::Issued, 5, &device, asker, format_args!("a1/{}", "n"));
        assert_eq!(asked.into_line(), entry().line());
    }

    #[test]
    fn records_of_one_day_add_up_and_others_stay_apart() {
        let at = |at, address: &str| AuditEntry { at, address: Some(address.into()), ..entry() };
        let mut records = Vec::new();
        for entry in [at(100, "b"), at(50, "a"), at(70, "c"), at(86_400, "d")] {
            entry.gather(&mut records);
        }
        let other = AuditEntry { detail: Some("a1/m".into()), ..at(60, "e") };
        other.gather(&mut records);
        let repeats =
            |count, first, address: &str| Some(Repeats { count, first, first_address: Some(address.into()) });
        let expected = [(100, "b", repeats(3, 50, "a")), (86_400, "d", repeats(1, 86_400, "d"))];
        for (record, (at, address, repeats)) in records.iter().zip(expected) {
            assert_eq!((record.at, record.address.as_deref()), (at, Some(address)));
            assert_eq!(record.repeats, repeats);
        }
        assert_eq!(records.len(), 3);
    }

    #[test]
    fn a_reason_ends_before_the_message_of_the_cloud() {
        assert_eq!(reason("the device is disabled"), "the device is disabled");
        assert_eq!(reason("IoT Platform refuses: a.Code: request 5"), "IoT Platform refuses: a.Code");
        assert_eq!(reason("IoT Platform refuses: a.Code"), "IoT Platform refuses: a.Code");
    }

    #[test]
    fn every_event_has_a_name_of_its_own() {
        for event in AuditEvent::ALL {
            assert_eq!(serde_json::to_value(event).unwrap(), event.name());
        }
    }
}
