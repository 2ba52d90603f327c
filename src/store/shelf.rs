//! Small things that the console keeps between requests, such as sessions and previews. They are in the
//! table, so that any server of the table can answer any request. A store does not interpret them. It
//! stores no readable secret: an item is found by the hash of a token, and the caller encrypts a value
//! that is secret.

use std::time::Duration;

use super::StoreFuture;

/// Maximum size of a value, in bytes.
pub const MAX_VALUE: usize = 300 << 10;

/// Hash of the token of an item.
pub type ItemKey = [u8; 32];

/// Kind of an item. Each kind has limits of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ItemKind {
    /// A key that all servers use for the console's forms.
    FormKey,
    /// A session of a user.
    Session,
    /// A preview of an action on many devices.
    Preview,
    /// An uploaded file that waits to be confirmed.
    Upload,
    /// A part of such a file.
    UploadPart,
    /// A list of the bad lines of a file.
    BadLines,
    /// A part of such a list.
    BadLinesPart,
}

impl ItemKind {
    /// All kinds.
    pub const ALL: [Self; 7] = [
        Self::FormKey,
        Self::Session,
        Self::Preview,
        Self::Upload,
        Self::UploadPart,
        Self::BadLines,
        Self::BadLinesPart,
    ];

    /// Returns the name of the kind in the table.
    pub const fn name(self) -> &'static str {
        match self {
            Self::FormKey => "formKey",
            Self::Session => "session",
            Self::Preview => "preview",
            Self::Upload => "upload",
            Self::UploadPart => "uploadPart",
            Self::BadLines => "badLines",
            Self::BadLinesPart => "badLinesPart",
        }
    }
}

/// Limits of a kind of items.
#[derive(Debug, Clone, Copy)]
pub struct ShelfLimits {
    /// Maximum number of items. A new item replaces the one that was unused longest.
    pub most: usize,
    /// Time for which an item is kept; `None` if it does not expire.
    pub kept: Option<Duration>,
}

/// An item of the shelf.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// The value.
    pub value: Vec<u8>,
    /// Time since the item was added, by the database's clock.
    pub age: Duration,
    /// Time since the item was added or last used, by the database's clock.
    pub idle: Duration,
}

/// Returns the time between two times of a database's clock, in milliseconds. Returns zero if the clock
/// was set back between them.
pub(crate) fn between(since: i64, now: i64) -> Duration {
    Duration::from_millis(now.saturating_sub(since).max(0).unsigned_abs())
}

/// The part of a store that keeps the console's items.
pub trait Shelf: Send + Sync + 'static {
    /// Adds an item, unless an item of this kind and key exists. Removes the expired items of the kind,
    /// and those above the maximum. Returns the value that the store then has. Fails for a value larger
    /// than [`MAX_VALUE`].
    fn shelve(
        &self,
        kind: ItemKind,
        key: ItemKey,
        value: Vec<u8>,
        limits: ShelfLimits,
    ) -> StoreFuture<'_, Vec<u8>>;

    /// Returns an item, even if it has expired.
    fn shelved(&self, kind: ItemKind, key: ItemKey) -> StoreFuture<'_, Option<Item>>;

    /// Notes that an item is used now.
    fn touch_item(&self, kind: ItemKind, key: ItemKey) -> StoreFuture<'_, ()>;

    /// Replaces the value of an item if the value is still `known`. Returns whether it was replaced.
    fn replace_item(
        &self,
        kind: ItemKind,
        key: ItemKey,
        known: Vec<u8>,
        value: Vec<u8>,
    ) -> StoreFuture<'_, bool>;

    /// Removes an item and returns it. Of several calls, only one gets it.
    fn take_item(&self, kind: ItemKind, key: ItemKey) -> StoreFuture<'_, Option<Item>>;
}

/// Returns the error for a value that is too large; `None` if it is not.
pub(crate) fn too_large(value: &[u8]) -> Option<super::StoreError> {
    (value.len() > MAX_VALUE)
        .then(|| super::StoreError::Failed(format!("the console's item has {} bytes", value.len())))
}
