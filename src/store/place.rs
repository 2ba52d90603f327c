//! Places of an enrollment: its devices with a certificate, and those whose registration has begun.
//! A store counts them, and takes a place in the same step as the claim that needs it, so that a
//! maximum holds however many processes register devices.

use std::{collections::HashMap, sync::Arc};

use super::{StoreError, StoreFuture, claim::ClaimView};

/// Number of places that are taken in an enrollment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Places {
    /// Devices with a certificate, whether they were registered or imported.
    pub registered: u64,
    /// Devices whose registration has begun, so that they are in the journal.
    pub claimed: u64,
}

/// Maximum number of places by enrollment. An enrollment without an entry has no maximum.
pub type MaxPlaces = Arc<HashMap<String, u64>>;

/// Counts the places of an enrollment that devices have taken other than the one with this claim. A
/// device whose registration has begun in the enrollment has its place, so nothing is counted for it.
pub async fn taken(
    store: &(impl CountsPlaces + ?Sized),
    enrollment: &str,
    claim: Option<&ClaimView>,
) -> Result<Places, StoreError> {
    match claim.is_some_and(|claim| claim.has_place_in(enrollment)) {
        true => Ok(Places::default()),
        false => store.places(enrollment).await,
    }
}

/// The part of a store that counts places.
pub trait CountsPlaces: Send + Sync + 'static {
    /// Sets the maximum number of places for the claims of this handle. From then on, a claim that
    /// needs a place and finds none is answered with
    /// [`NoPlace`](super::claim::Claimed::NoPlace). A device that is in the journal has its place.
    fn set_max_places(&self, max: MaxPlaces);

    /// Counts the places that are taken in an enrollment.
    fn places<'a>(&'a self, enrollment: &'a str) -> StoreFuture<'a, Places>;
}
