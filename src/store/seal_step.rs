//! Steps of sealing all values of a store, for an operator who watches.

/// A step of [`Keys::seal_all`](super::sealed::Keys::seal_all) that has advanced. Each number of
/// finished units comes with their total.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SealStep {
    /// Values are being sealed.
    Sealing(u64, u64),
    /// Traces of former values are being removed. The units are parts of the store.
    Wiping(u64, u64),
    /// The store is searched for traces that are left. The units are the same. Happens again if some
    /// are found.
    Checking(u64, u64),
}
