//! Uses of the pre-shared keys of each enrollment that has two keys: how often and when last any
//! process used each key. A store keeps these uses, and knows the keys only by their IDs.

use super::{StoreFuture, UnixSeconds};

/// One of the two keys that an enrollment, or an individual device, has while its key is being replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WhichKey {
    /// The key that is replaced: `key` of the configuration, or `psk` of a device.
    Current,
    /// The second key: `key_next` of the configuration, or `pskNext` of a device.
    Next,
}

impl WhichKey {
    /// Both keys, in the order in which they are declared.
    pub const ALL: [Self; 2] = [Self::Current, Self::Next];

    /// Returns the name of the key in metrics, logs and JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Current => "current",
            Self::Next => "next",
        }
    }

    /// Returns the column of an individual device's key in files.
    pub const fn column(self) -> &'static str {
        match self {
            Self::Current => "psk",
            Self::Next => "pskNext",
        }
    }
}

/// ID of a pre-shared key: a short hash, from which the key cannot be calculated.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct PskId(String);

impl PskId {
    /// Wraps the text of an ID.
    pub fn new(id: String) -> Self {
        Self(id)
    }

    /// Returns the text of the ID.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Uses of one key since the last call of [`KeyUses::note_key_uses`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewUse {
    /// The key.
    pub key: PskId,
    /// Number of completed handshakes.
    pub handshakes: u64,
    /// Time of the last handshake, by the store's clock; `None` if there was none.
    pub last: Option<UnixSeconds>,
}

/// Uses of the two keys of an enrollment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewUses {
    /// Name of the enrollment.
    pub enrollment: String,
    /// Uses of its two keys.
    pub keys: [NewUse; 2],
}

/// Uses of one key, as far as processes have reported them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyUse {
    /// The key.
    pub key: PskId,
    /// Time since which the key has been counted.
    pub since: UnixSeconds,
    /// Number of completed handshakes since then.
    pub handshakes: u64,
    /// Time of the last handshake; `None` if there was none.
    pub last: Option<UnixSeconds>,
}

/// The part of a store that keeps the uses of keys.
pub trait KeyUses: Send + Sync + 'static {
    /// Adds uses of the keys of these enrollments, in one step. The store begins to count a key that
    /// it does not know, and forgets any other key of the same enrollment, so it keeps two keys of
    /// an enrollment at most. Of the stored and the new time of last use, keeps the later one. But a
    /// stored time in the future comes from a wrong clock, so the new time replaces it.
    fn note_key_uses(&self, uses: Vec<NewUses>) -> StoreFuture<'_, ()>;

    /// Returns the uses of the keys of an enrollment, in the order of their IDs.
    fn key_uses<'a>(&'a self, enrollment: &'a str) -> StoreFuture<'a, Vec<KeyUse>>;
}
