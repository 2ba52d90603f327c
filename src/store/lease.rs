//! Leases on work that only one process at a time should do, such as the sweep over all devices.
//! A lease lasts as long as its owner lives; see `claim.rs`.

use super::{
    StoreFuture,
    claim::{Owner, OwnerId},
};

/// The part of a store that keeps the leases.
pub trait Leases: Send + Sync + 'static {
    /// Takes the lease `name`, unless another living owner has it. Returns the cursor of the work
    /// (at first, an empty text), or `None` if another owner has the lease.
    fn take_lease<'a>(&'a self, owner: &'a Owner, name: &'a str) -> StoreFuture<'a, Option<String>>;

    /// Stores how far the work has come, so that another process continues there.
    ///
    /// # Errors
    ///
    /// [`StoreError::Fenced`](super::StoreError::Fenced) if the lease does not belong to `owner`.
    fn set_cursor<'a>(&'a self, owner: OwnerId, name: &'a str, cursor: &'a str) -> StoreFuture<'a, ()>;

    /// Gives the lease up and keeps its cursor. Does nothing if the lease belongs to another owner.
    fn give_lease_up<'a>(&'a self, owner: OwnerId, name: &'a str) -> StoreFuture<'a, ()>;
}
