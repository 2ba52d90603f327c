//! Steps of sealing all values of a store, as reported to an operator who watches the progress.

/// Progress of [`Keys::seal_all`](super::sealed::Keys::seal_all). Each step has the number of
/// finished units and the total number of units.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SealStep {
    /// Values are being sealed.
    Sealing(u64, u64),
    /// Traces of former values are being removed. A unit is a part of the store.
    Wiping(u64, u64),
    /// The store is searched for remaining traces, and again if any are found. A unit is a part of
    /// the store.
    Checking(u64, u64),
}
