//! What has happened to a device, as far as its store keeps that: the one place that
//! asks for it.

use crate::{
    device::DeviceId,
    store::{Store, StoreError, UnixSeconds},
};

/// Something that happened.
pub(super) struct Happening {
    /// When.
    pub(super) at: UnixSeconds,
    /// A sentence, with no secret in it.
    pub(super) what: String,
}

/// The newest first; none from a store that keeps none.
pub(super) async fn of(_store: &dyn Store, _device: &DeviceId) -> Result<Vec<Happening>, StoreError> {
    Ok(Vec::new())
}
