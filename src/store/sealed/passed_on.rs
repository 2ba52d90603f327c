//! The parts of a store that hold no secrets. A sealed store passes their calls on as they are.

use std::{ops::Range, time::Duration};

use super::Sealed;
use crate::{
    device::DeviceId,
    store::{
        Actor, StoreError, StoreFuture, UnixSeconds,
        audit::{AuditEvent, AuditLog, Chain, Counts, EachEntry, Filter, Keep, Link},
        claim::{Owner, OwnerId},
        key_use::{KeyUse, KeyUses, NewUses},
        lease::Leases,
        place::{CountsPlaces, MaxPlaces, Places},
        roll::{Ended, Ending, OwnUse, Roll, RollCount, Rolls},
        server::{Server, ServerId, ServerView, Servers, WallClock},
        shelf::{Item, ItemKey, ItemKind, Shelf, ShelfLimits},
        sighting::{Examined, IssuePlace, Sighting, Sightings, Watched},
        turn::{Turn, Turns},
        waiting::{Admission, Admits, NewDevice, Note, Waiting, WaitingList},
    },
};

impl<S: Leases> Leases for Sealed<S> {
    pass_on! {
        self to self.inner;
        fn take_lease(owner: &'a Owner, name: &'a str) -> Option<String>;
        fn set_cursor(owner: OwnerId, name: &'a str, cursor: &'a str) -> ();
        fn give_lease_up(owner: OwnerId, name: &'a str) -> ();
    }
}

impl<S: Sightings> Sightings for Sealed<S> {
    pass_on! {
        self to self.inner;
        fn registered_after(after: Option<&'a DeviceId>, limit: usize) -> Examined;
        fn unactivated(
            issued: Range<UnixSeconds>,
            after: Option<&'a IssuePlace>,
            limit: usize
        ) -> Vec<Watched>;
    }

    fn store_sightings(&self, sightings: Vec<(Watched, Sighting)>) -> StoreFuture<'_, ()> {
        self.inner.store_sightings(sightings)
    }
}

impl<S: Turns> Turns for Sealed<S> {
    pass_on! {
        self to self.inner;
        fn take_turn(pace: &'a str, turn: Turn) -> Option<Duration>;
    }
}

impl<S: AuditLog> AuditLog for Sealed<S> {
    pass_on! {
        self to self.inner;
        fn has_expired(keep: Keep) -> bool;
        fn prune(keep: Keep) -> Counts;
        fn newest_entry() -> Option<UnixSeconds>;
    }

    fn export_audit(&self, filter: &Filter, each: EachEntry<'_>) -> Result<(), StoreError> {
        self.inner.export_audit(filter, each)
    }

    fn review_audit(
        &self,
        kinds: &[AuditEvent],
        since: UnixSeconds,
        time: Duration,
        each: EachEntry<'_>,
    ) -> Result<bool, StoreError> {
        self.inner.review_audit(kinds, since, time, each)
    }

    fn verify_audit(&self, hash_at: &mut dyn FnMut(u64, &Link)) -> Result<Chain, StoreError> {
        self.inner.verify_audit(hash_at)
    }
}

impl<S: KeyUses> KeyUses for Sealed<S> {
    pass_on! {
        self to self.inner;
        fn note_key_uses(uses: Vec<NewUses>) -> ();
        fn key_uses(enrollment: &'a str) -> Vec<KeyUse>;
    }
}

impl<S: Rolls> Rolls for Sealed<S> {
    pass_on! {
        self to self.inner;
        fn note_own_uses(uses: Vec<OwnUse>) -> ();
        fn roll_of(device: &'a DeviceId) -> Option<Roll>;
        fn rolling(enrollment: &'a str, after: Option<&'a DeviceId>, limit: usize) -> Vec<DeviceId>;
        fn count_rolling(enrollment: &'a str, time: Duration) -> RollCount;
        fn end_roll(device: &'a DeviceId, ending: Ending, by: &'a Actor) -> Ended;
    }
}

impl<S: CountsPlaces> CountsPlaces for Sealed<S> {
    pass_on! {
        self to self.inner;
        fn has_place(device: &'a DeviceId, enrollment: &'a str) -> bool;
        fn places(enrollment: &'a str) -> Places;
    }

    fn set_max_places(&self, max: MaxPlaces) {
        self.inner.set_max_places(max);
    }
}

impl<S: WaitingList> WaitingList for Sealed<S> {
    pass_on! {
        self to self.inner;
        fn note_waiting(note: Note) -> ();
        fn waiting(enrollment: Option<&'a str>, after: Option<&'a DeviceId>, limit: usize) -> Vec<Waiting>;
        fn waiting_counts() -> Vec<(String, u64)>;
        fn admit(devices: Vec<NewDevice>, by: Admits) -> Vec<Admission>;
        fn not_admitted(new: &'a NewDevice, max_rows: Option<u64>) -> Option<Admission>;
        fn dismiss(enrollment: &'a str, devices: &'a [DeviceId]) -> u64;
        fn prune_waiting(before: UnixSeconds) -> u64;
    }
}

impl<S: Servers> Servers for Sealed<S> {
    pass_on! {
        self to self.inner;
        fn beat_server(server: &'a Server, clock: WallClock) -> ();
        fn remove_server(id: ServerId) -> ();
        fn remove_silent_servers(silent: Duration, most: usize) -> u64;
        fn servers() -> Vec<ServerView>;
    }
}

impl<S: Shelf> Shelf for Sealed<S> {
    fn shelve(
        &self,
        kind: ItemKind,
        key: ItemKey,
        value: Vec<u8>,
        limits: ShelfLimits,
    ) -> StoreFuture<'_, Vec<u8>> {
        self.inner.shelve(kind, key, value, limits)
    }

    fn shelved(&self, kind: ItemKind, key: ItemKey) -> StoreFuture<'_, Option<Item>> {
        self.inner.shelved(kind, key)
    }

    fn touch_item(&self, kind: ItemKind, key: ItemKey) -> StoreFuture<'_, ()> {
        self.inner.touch_item(kind, key)
    }

    fn replace_item(
        &self,
        kind: ItemKind,
        key: ItemKey,
        known: Vec<u8>,
        value: Vec<u8>,
    ) -> StoreFuture<'_, bool> {
        self.inner.replace_item(kind, key, known, value)
    }

    fn take_item(&self, kind: ItemKind, key: ItemKey) -> StoreFuture<'_, Option<Item>> {
        self.inner.take_item(kind, key)
    }
}
