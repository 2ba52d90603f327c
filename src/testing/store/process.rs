//! A store on a server, as one simulated process in virtual time uses it. The time stands still while the
//! server works, because each call waits for its answer. The process dies when its fuse has burnt, and
//! may lose answers.

use std::{
    future::{pending, ready},
    ops::Range,
    sync::{Arc, Mutex},
    time::Duration,
};

use rand::{RngExt, SeedableRng, rngs::StdRng};

use super::Fuse;
use crate::{
    device::{Certificate, DeviceId},
    store::{
        Actor, BatchId, DeviceRow, DeviceState, Issue, JournalEntry, KeyLookup, OpenBatch, OpenEntry,
        RegisteredDevice, Store, StoreError, StoreFuture, UnixSeconds,
        audit::{Asked, Asker, AuditEntry},
        claim::{Beat, ClaimTime, ClaimView, Claimed, Claims, Owner, OwnerId, Settlement, TakenBatch},
        key_use::{KeyUse, KeyUses, NewUses},
        lease::Leases,
        order::{
            Begun, Carrier, Completed, Move, Moved, Order, OrderKind, OrderNote, OrderNumber, Orders, Placed,
        },
        place::{CountsPlaces, MaxPlaces, Places},
        postgres::wait,
        roll::{Ended, Ending, OwnUse, Roll, RollCount, Rolls},
        server::{Server, ServerId, ServerView, Servers, WallClock},
        shelf::{Item, ItemKey, ItemKind, Shelf, ShelfLimits},
        sighting::{Examined, IssuePlace, Sighting, Sightings, Watched},
        turn::{Turn, Turns},
        waiting::{Admission, Admits, NewDevice, Note, Waiting, WaitingList},
    },
};

/// Access of one simulated process to a store.
pub(crate) struct InProcess {
    store: Arc<dyn Store>,
    fuse: Arc<Fuse>,
    /// Source of random choices, and how many of a thousand answers are lost.
    lossy: Option<Mutex<(StdRng, u32)>>,
}

impl InProcess {
    /// Creates the access of a process that dies when `fuse` has no steps left.
    pub(crate) fn new(store: Arc<dyn Store>, fuse: Arc<Fuse>) -> Self {
        Self { store, fuse, lossy: None }
    }

    /// Loses `of_a_thousand` of a thousand answers. The operations are still carried out.
    pub(crate) fn losing_answers(self, seed: u64, of_a_thousand: u32) -> Self {
        Self { lossy: Some(Mutex::new((StdRng::seed_from_u64(seed), of_a_thousand))), ..self }
    }

    /// Returns the answer to a call that is carried out, unless the process dies meanwhile.
    fn answer<'a, T: Send + 'a>(&self, answer: Result<T, StoreError>) -> StoreFuture<'a, T> {
        let is_lost = self.lossy.as_ref().is_some_and(|lossy| {
            let (random, of_a_thousand) = &mut *lossy.lock().unwrap();
            random.random_range(0..1000) < *of_a_thousand
        });
        if !self.fuse.goes_on() {
            return Box::pin(pending());
        }
        let lost = || StoreError::Unknown("the answer is lost".into());
        Box::pin(ready(if is_lost { answer.and_then(|_| Err(lost())) } else { answer }))
    }
}

macro_rules! in_process {
    ($(fn $name:ident($($argument:ident: $type:ty),*) -> $answer:ty;)*) => {
        $(fn $name<'a>(&'a self, $($argument: $type),*) -> StoreFuture<'a, $answer> {
            if !self.fuse.goes_on() {
                return Box::pin(pending());
            }
            self.answer(wait(self.store.$name($($argument),*)))
        })*
    };
}

impl Store for InProcess {
    in_process! {
        fn device(id: &'a DeviceId) -> Option<DeviceRow>;
        fn spelled(mac: &'a DeviceId) -> Option<DeviceId>;
        fn enrollment_of(id: &'a DeviceId) -> Option<String>;
        fn individual_key(identity: &'a str) -> KeyLookup;
        fn record_issue(id: &'a DeviceId, certificate: &'a Certificate, issue_id: i64, asker: Asker) -> Issue;
        fn history(id: &'a DeviceId, limit: usize) -> Vec<AuditEntry>;
        fn rows_after(after: Option<&'a DeviceId>, limit: usize) -> Vec<DeviceRow>;
        fn set_state(id: &'a DeviceId, state: DeviceState, by: &'a Actor) -> bool;
        fn reset(id: &'a DeviceId, by: &'a Actor) -> bool;
        fn clear_refusal(id: &'a DeviceId, refusal: &'a str, by: &'a Actor) -> bool;
        fn delete(id: &'a DeviceId, by: &'a Actor) -> bool;
        fn probe() -> ();
    }

    fn audit(&self, asked: Asked) -> Result<(), StoreError> {
        self.store.audit(asked)
    }

    fn now(&self) -> UnixSeconds {
        self.store.now()
    }

    fn set_clock_ahead(&self, seconds: i64) {
        self.store.set_clock_ahead(seconds);
    }
}

impl Claims for InProcess {
    in_process! {
        fn beats(own: Option<&'a Owner>) -> Vec<Beat>;
        fn fence(seen: Beat) -> bool;
        fn retire(owner: OwnerId) -> ();
        fn retire_if_idle(owner: OwnerId) -> ();
        fn claim(owner: &'a Owner, entry: &'a JournalEntry, now: ClaimTime) -> Claimed;
        fn claim_batch(
            owner: &'a Owner,
            batch: &'a OpenBatch,
            entries: &'a [JournalEntry],
            now: ClaimTime
        ) -> Vec<Claimed>;
        fn set_apply_id(owner: OwnerId, batch: BatchId, apply_id: u64) -> ();
        fn close_batch(owner: OwnerId, batch: BatchId) -> ();
        fn settle(owner: OwnerId, entry: &'a JournalEntry, settlement: &'a Settlement) -> ();
        fn release_claim(owner: OwnerId, device: &'a DeviceId, asked: bool) -> ();
        fn take_batches(owner: &'a Owner, target: &'a str) -> Vec<TakenBatch>;
        fn abandoned(target: &'a str, limit: usize) -> Vec<JournalEntry>;
        fn claim_of(device: &'a DeviceId) -> Option<ClaimView>;
        fn note_cloud_offset(owner: OwnerId, offset: i64) -> ();
        fn open_batches() -> Vec<OpenBatch>;
        fn open_entries() -> Vec<OpenEntry>;
    }
}

impl Rolls for InProcess {
    in_process! {
        fn note_own_uses(uses: Vec<OwnUse>) -> ();
        fn roll_of(device: &'a DeviceId) -> Option<Roll>;
        fn rolling(enrollment: &'a str, after: Option<&'a DeviceId>, limit: usize) -> Vec<DeviceId>;
        fn count_rolling(enrollment: &'a str, time: Duration) -> RollCount;
        fn end_roll(device: &'a DeviceId, ending: Ending, by: &'a Actor) -> Ended;
    }
}

impl CountsPlaces for InProcess {
    in_process! {
        fn has_place(device: &'a DeviceId, enrollment: &'a str) -> bool;
        fn places(enrollment: &'a str) -> Places;
    }

    fn set_max_places(&self, max: MaxPlaces) {
        self.store.set_max_places(max);
    }
}

impl WaitingList for InProcess {
    in_process! {
        fn note_waiting(note: Note) -> ();
        fn waiting(enrollment: Option<&'a str>, after: Option<&'a DeviceId>, limit: usize) -> Vec<Waiting>;
        fn waiting_counts() -> Vec<(String, u64)>;
        fn admit(devices: Vec<NewDevice>, by: Admits) -> Vec<Admission>;
        fn not_admitted(new: &'a NewDevice, max_rows: Option<u64>) -> Option<Admission>;
        fn dismiss(enrollment: &'a str, devices: &'a [DeviceId]) -> u64;
        fn prune_waiting(before: UnixSeconds) -> u64;
    }
}

impl Leases for InProcess {
    in_process! {
        fn take_lease(owner: &'a Owner, name: &'a str) -> Option<String>;
        fn set_cursor(owner: OwnerId, name: &'a str, cursor: &'a str) -> ();
        fn give_lease_up(owner: OwnerId, name: &'a str) -> ();
    }
}

impl Orders for InProcess {
    in_process! {
        fn place_order(device: &'a DeviceId, kind: OrderKind, by: &'a Actor) -> Placed;
        fn place_move(device: &'a DeviceId, to: &'a Move, begun: Begun, by: &'a Actor) -> Placed;
        fn store_move(order: &'a Order, registered: &'a RegisteredDevice) -> Moved;
        fn orders_after(target: Option<&'a str>, after: OrderNumber, limit: usize) -> Vec<Order>;
        fn order_of(device: &'a DeviceId) -> Option<Order>;
        fn note_order(number: OrderNumber, note: OrderNote) -> bool;
        fn complete_order(order: &'a Order, now: ClaimTime) -> Completed;
        fn end_order(number: OrderNumber, reason: &'a str, by: &'a Actor) -> bool;
        fn give_order_up(seen: &'a Order, carrier: &'a Carrier, reason: &'a str, by: &'a Actor) -> Option<Order>;
    }
}

impl Servers for InProcess {
    in_process! {
        fn beat_server(server: &'a Server, clock: WallClock) -> ();
        fn remove_server(id: ServerId) -> ();
        fn remove_silent_servers(silent: Duration, most: usize) -> u64;
        fn servers() -> Vec<ServerView>;
    }
}

impl Shelf for InProcess {
    in_process! {
        fn shelve(kind: ItemKind, key: ItemKey, value: Vec<u8>, limits: ShelfLimits) -> Vec<u8>;
        fn shelved(kind: ItemKind, key: ItemKey) -> Option<Item>;
        fn touch_item(kind: ItemKind, key: ItemKey) -> ();
        fn replace_item(kind: ItemKind, key: ItemKey, known: Vec<u8>, value: Vec<u8>) -> bool;
        fn take_item(kind: ItemKind, key: ItemKey) -> Option<Item>;
    }
}

impl Sightings for InProcess {
    in_process! {
        fn registered_after(after: Option<&'a DeviceId>, limit: usize) -> Examined;
        fn unactivated(
            issued: Range<UnixSeconds>,
            after: Option<&'a IssuePlace>,
            limit: usize
        ) -> Vec<Watched>;
        fn store_sightings(sightings: Vec<(Watched, Sighting)>) -> ();
    }
}

impl KeyUses for InProcess {
    in_process! {
        fn key_uses(enrollment: &'a str) -> Vec<KeyUse>;
        fn note_key_uses(uses: Vec<NewUses>) -> ();
    }
}

impl Turns for InProcess {
    in_process! {
        fn take_turn(pace: &'a str, turn: Turn) -> Option<Duration>;
    }
}
