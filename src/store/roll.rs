//! Rolls of individual keys: while a device's own key is replaced, the device has a second key beside
//! it, and may use either. A store keeps when each of the two was last used, so that an operator sees
//! when the former key is no longer needed. An import begins a roll ([`merge`](super::merge)).

use std::time::Duration;

use super::{
    Actor, StoreFuture, UnixSeconds,
    audit::{AuditEntry, AuditEvent},
    key_use::WhichKey,
};
use crate::device::{DeviceId, Secret};

/// The keys of an individual device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceKeys {
    /// PSK identity of both keys, 1–128 bytes.
    pub identity: String,
    /// Pre-shared key, as hex.
    pub psk: Secret,
    /// Second key, which the device may have as well.
    pub next: Option<Secret>,
    /// Uses of both keys while the device has had both.
    pub used: Used,
}

impl DeviceKeys {
    /// Returns the key that the device has used last, as [`Roll::last_key`] does.
    pub fn last_key(&self) -> Option<WhichKey> {
        last_key(self.used)
    }
}

/// Times of the last handshakes with each of two keys, in the order of [`WhichKey::ALL`]; `None` if
/// there was none.
pub type Used = [Option<UnixSeconds>; 2];

/// Uses of the keys of a device that has two.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnUse {
    /// PSK identity of the device.
    pub identity: String,
    /// Beginning of the roll in which the keys were looked up
    /// ([`IndividualKey::next_since`](super::IndividualKey::next_since)).
    pub since: Option<UnixSeconds>,
    /// Times by the store's clock.
    pub used: Used,
}

/// A device's roll.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Roll {
    /// Time at which the device was given its second key.
    pub since: UnixSeconds,
    /// Uses of both keys since then.
    pub used: Used,
}

impl Roll {
    /// Returns the key that the device has used last; `None` if it has used neither. If both were
    /// last used in the same second, the device counts as one that still uses its former key.
    pub fn last_key(&self) -> Option<WhichKey> {
        last_key(self.used)
    }

    /// Returns whether the device has used its second key last. The device may then know only this key,
    /// and could not make a handshake without it.
    pub fn uses_next(&self) -> bool {
        self.last_key() == Some(WhichKey::Next)
    }
}

fn last_key(used: Used) -> Option<WhichKey> {
    match used {
        [None, None] => None,
        [current, next] if next > current => Some(WhichKey::Next),
        _ => Some(WhichKey::Current),
    }
}

/// Devices of an enrollment that have two keys.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RollCount {
    /// Number of these devices.
    pub devices: u64,
    /// Number of devices that last used their first key, and number of devices that last used their
    /// second key. The others have used neither since they were given the second key.
    pub by_key: [u64; 2],
    /// Last use of each key by any of these devices.
    pub used: Used,
    /// Set if all devices were counted in the time that the caller gave.
    pub is_complete: bool,
}

impl RollCount {
    /// Counts a device.
    pub fn add(&mut self, roll: Roll) {
        self.devices += 1;
        if let Some(key) = roll.last_key() {
            self.by_key[key as usize] += 1;
        }
        for (all, used) in self.used.iter_mut().zip(roll.used) {
            *all = (*all).max(used);
        }
    }
}

/// Way in which a roll ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// The second key becomes the device's key, and its former key is gone. The device must have
    /// used its second key last.
    Used,
    /// Like [`Used`](Self::Used), but regardless of the key that the device used last.
    Anyway,
    /// The device keeps its key, and the second key is gone. The device must not have used its second
    /// key last.
    Dropped,
    /// Like [`Dropped`](Self::Dropped), but regardless of the key that the device used last.
    DroppedAnyway,
}

impl Ending {
    /// Returns whether a roll may end in this way.
    pub fn is_due(self, roll: Roll) -> bool {
        match self {
            Self::Used => roll.uses_next(),
            Self::Dropped => !roll.uses_next(),
            Self::Anyway | Self::DroppedAnyway => true,
        }
    }

    /// Returns whether the second key becomes the device's key.
    pub(crate) fn takes_next(self) -> bool {
        matches!(self, Self::Used | Self::Anyway)
    }

    /// Returns the audit entry about a roll that has ended.
    pub(crate) fn entry(self, device: &DeviceId, by: &Actor, at: UnixSeconds) -> AuditEntry {
        let detail = Some(self.detail().to_owned());
        AuditEntry { device: Some(device.clone()), detail, ..by.entry(AuditEvent::Rekeyed, at) }
    }

    /// Returns the detail of the audit entry.
    const fn detail(self) -> &'static str {
        match self {
            Self::Used => "the second key has become the key",
            Self::Anyway => "the second key has become the key, whether or not the device has used it",
            Self::Dropped => "the second key was taken away",
            Self::DroppedAnyway => {
                "the second key was taken away, whether or not the device has used it last"
            }
        }
    }
}

/// Result of [`Rolls::end_roll`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// The device has one key.
    Ended,
    /// The device still has two keys, because the key to be removed may be the only one that the device
    /// knows.
    NotDue,
    /// The device had no second key, or is not in the table.
    NoRoll,
}

/// The part of a store that keeps rolls.
pub trait Rolls: Send + Sync + 'static {
    /// Notes uses of devices' keys, in one step. For each key, the later time counts. A stored time in
    /// the future comes from a wrong clock; a new use of either key removes it, so that it does not
    /// hide that use. Leaves out devices with one key, and uses in a roll that has ended since the keys
    /// were looked up, even if another roll has begun. Also leaves out times before the device was
    /// given its second key, unless the stored beginning of the roll seems to be in the future.
    fn note_own_uses(&self, uses: Vec<OwnUse>) -> StoreFuture<'_, ()>;

    /// Returns the roll of a device; `None` if the device has no second key.
    fn roll_of<'a>(&'a self, device: &'a DeviceId) -> StoreFuture<'a, Option<Roll>>;

    /// Returns up to `limit` devices of an enrollment that have a second key, in order of device ID,
    /// beginning after the ID `after`.
    fn rolling<'a>(
        &'a self,
        enrollment: &'a str,
        after: Option<&'a DeviceId>,
        limit: usize,
    ) -> StoreFuture<'a, Vec<DeviceId>>;

    /// Counts the devices of an enrollment that have a second key. Ends early once `time` is over.
    fn count_rolling<'a>(&'a self, enrollment: &'a str, time: Duration) -> StoreFuture<'a, RollCount>;

    /// Ends the roll of a device. In the same step, writes an audit entry that names `by`. The device
    /// then counts as changed since its import.
    fn end_roll<'a>(&'a self, device: &'a DeviceId, ending: Ending, by: &'a Actor) -> StoreFuture<'a, Ended>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_that_was_used_last_is_the_later_one() {
        let last = |used| Roll { since: 1, used }.last_key();
        assert_eq!(last([None, None]), None);
        assert_eq!(last([None, Some(2)]), Some(WhichKey::Next));
        assert_eq!(last([Some(2), None]), Some(WhichKey::Current));
        assert_eq!(last([Some(2), Some(3)]), Some(WhichKey::Next));
        assert_eq!(last([Some(3), Some(2)]), Some(WhichKey::Current));
        assert_eq!(last([Some(2), Some(2)]), Some(WhichKey::Current));
    }
}
