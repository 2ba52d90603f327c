//! A store that passes its calls alternately to two handles of the same database. With it, the tests
//! of the contract show that one process sees what another process has written.

use std::{
    collections::HashSet,
    ops::Range,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use crate::{
    device::{AskedId, Certificate, DeviceId, Secret},
    store::{
        Actor, BatchId, Bulk, CountCheck, DeviceRow, DeviceState, Each, ImportActivity, ImportError,
        ImportJob, ImportReport, Issue, JournalEntry, KeyLookup, OpenBatch, OpenEntry, RegisteredDevice,
        Reject, Rows, Store, StoreError, StoreFuture, Totals, UnixSeconds,
        audit::{
            Asked, Asker, AuditEntry, AuditEvent, AuditLog, Chain, Counts, EachEntry, Filter, Keep, Link,
        },
        claim::{Beat, ClaimTime, ClaimView, Claimed, Claims, Owner, OwnerId, Settlement, TakenBatch},
        filter::{self, Cursor, Found, Held, Tally},
        key_use::{KeyUse, KeyUses, NewUses},
        lease::Leases,
        order::{
            Begun, Carrier, Completed, Move, Moved, Order, OrderKind, OrderNote, OrderNumber, Orders, Placed,
        },
        place::{CountsPlaces, MaxPlaces, Places},
        roll::{Ended, Ending, OwnUse, Roll, RollCount, Rolls},
        seal_step::SealStep,
        sealed::{SecretColumn, StoredSecret, StoredSecrets, UnderKey},
        server::{Server, ServerId, ServerView, Servers, WallClock},
        shelf::{Item, ItemKey, ItemKind, Shelf, ShelfLimits},
        sighting::{Examined, IssuePlace, Sighting, Sightings, Watched},
        turn::{Turn, Turns},
        undo::{ImportId, ImportRecord, Left, Undo, UndoError, Undone},
        waiting::{Admission, Admits, NewDevice, Note, Waiting, WaitingList},
    },
};

pub(super) struct Alternating<S> {
    handles: [S; 2],
    calls: AtomicUsize,
}

impl<S> Alternating<S> {
    pub(super) fn new(one: S, other: S) -> Self {
        Self { handles: [one, other], calls: AtomicUsize::new(0) }
    }

    pub(super) fn into_handles(self) -> [S; 2] {
        self.handles
    }

    fn next(&self) -> &S {
        &self.handles[self.calls.fetch_add(1, Ordering::Relaxed) % 2]
    }
}

impl<S: Store> Store for Alternating<S> {
    pass_on! {
        self to self.next();
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
        self.next().audit(asked)
    }

    fn now(&self) -> UnixSeconds {
        self.handles[0].now()
    }

    fn set_clock_ahead(&self, seconds: i64) {
        self.handles.iter().for_each(|handle| handle.set_clock_ahead(seconds));
    }

    fn hold(&self) {
        self.handles.iter().for_each(Store::hold);
    }

    fn release(&self) {
        self.handles.iter().for_each(Store::release);
    }
}

impl<S: Claims> Claims for Alternating<S> {
    pass_on! {
        self to self.next();
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

impl<S: Rolls> Rolls for Alternating<S> {
    pass_on! {
        self to self.next();
        fn note_own_uses(uses: Vec<OwnUse>) -> ();
        fn roll_of(device: &'a DeviceId) -> Option<Roll>;
        fn rolling(enrollment: &'a str, after: Option<&'a DeviceId>, limit: usize) -> Vec<DeviceId>;
        fn count_rolling(enrollment: &'a str, time: Duration) -> RollCount;
        fn end_roll(device: &'a DeviceId, ending: Ending, by: &'a Actor) -> Ended;
    }
}

impl<S: CountsPlaces> CountsPlaces for Alternating<S> {
    pass_on! {
        self to self.next();
        fn has_place(device: &'a DeviceId, enrollment: &'a str) -> bool;
        fn places(enrollment: &'a str) -> Places;
    }

    fn set_max_places(&self, max: MaxPlaces) {
        self.handles.iter().for_each(|handle| handle.set_max_places(max.clone()));
    }
}

impl<S: WaitingList> WaitingList for Alternating<S> {
    pass_on! {
        self to self.next();
        fn note_waiting(note: Note) -> ();
        fn waiting(enrollment: Option<&'a str>, after: Option<&'a DeviceId>, limit: usize) -> Vec<Waiting>;
        fn waiting_counts() -> Vec<(String, u64)>;
        fn admit(devices: Vec<NewDevice>, by: Admits) -> Vec<Admission>;
        fn not_admitted(new: &'a NewDevice, max_rows: Option<u64>) -> Option<Admission>;
        fn dismiss(enrollment: &'a str, devices: &'a [DeviceId]) -> u64;
        fn prune_waiting(before: UnixSeconds) -> u64;
    }
}

impl<S: Leases> Leases for Alternating<S> {
    pass_on! {
        self to self.next();
        fn take_lease(owner: &'a Owner, name: &'a str) -> Option<String>;
        fn set_cursor(owner: OwnerId, name: &'a str, cursor: &'a str) -> ();
        fn give_lease_up(owner: OwnerId, name: &'a str) -> ();
    }
}

impl<S: Store> Orders for Alternating<S> {
    pass_on! {
        self to self.next();
        fn place_order(device: &'a DeviceId, kind: OrderKind, by: &'a Actor) -> Placed;
        fn place_move(device: &'a DeviceId, to: &'a Move, begun: Begun, by: &'a Actor) -> Placed;
        fn store_move(order: &'a Order, registered: &'a RegisteredDevice) -> Moved;
        fn orders_after(target: Option<&'a str>, after: OrderNumber, limit: usize) -> Vec<Order>;
        fn order_of(device: &'a DeviceId) -> Option<Order>;
        fn note_order(number: OrderNumber, note: OrderNote) -> bool;
        fn complete_order(order: &'a Order, now: ClaimTime) -> Completed;
        fn end_order(number: OrderNumber, reason: &'a str, by: &'a Actor) -> bool;
        fn give_order_up(seen: &'a Order, carrier: &'a Carrier, reason: &'a str, by: &'a Actor)
            -> Option<Order>;
    }
}

impl<S: Sightings> Sightings for Alternating<S> {
    pass_on! {
        self to self.next();
        fn registered_after(after: Option<&'a DeviceId>, limit: usize) -> Examined;
        fn unactivated(
            issued: Range<UnixSeconds>,
            after: Option<&'a IssuePlace>,
            limit: usize
        ) -> Vec<Watched>;
    }

    fn store_sightings(&self, sightings: Vec<(Watched, Sighting)>) -> StoreFuture<'_, ()> {
        self.next().store_sightings(sightings)
    }
}

impl<S: KeyUses> KeyUses for Alternating<S> {
    pass_on! {
        self to self.next();
        fn key_uses(enrollment: &'a str) -> Vec<KeyUse>;
    }

    fn note_key_uses(&self, uses: Vec<NewUses>) -> StoreFuture<'_, ()> {
        self.next().note_key_uses(uses)
    }
}

impl<S: Servers> Servers for Alternating<S> {
    pass_on! {
        self to self.next();
        fn beat_server(server: &'a Server, clock: WallClock) -> ();
        fn remove_server(id: ServerId) -> ();
        fn remove_silent_servers(silent: Duration, most: usize) -> u64;
        fn servers() -> Vec<ServerView>;
    }
}

impl<S: Turns> Turns for Alternating<S> {
    pass_on! {
        self to self.next();
        fn take_turn(pace: &'a str, turn: Turn) -> Option<Duration>;
    }
}

impl<S: AuditLog> AuditLog for Alternating<S> {
    pass_on! {
        self to self.next();
        fn has_expired(keep: Keep) -> bool;
        fn prune(keep: Keep) -> Counts;
        fn newest_entry() -> Option<UnixSeconds>;
    }

    fn export_audit(&self, filter: &Filter, each: EachEntry<'_>) -> Result<(), StoreError> {
        self.next().export_audit(filter, each)
    }

    fn review_audit(
        &self,
        kinds: &[AuditEvent],
        since: UnixSeconds,
        time: Duration,
        each: EachEntry<'_>,
    ) -> Result<bool, StoreError> {
        self.next().review_audit(kinds, since, time, each)
    }

    fn verify_audit(&self, hash_at: &mut dyn FnMut(u64, &Link)) -> Result<Chain, StoreError> {
        self.next().verify_audit(hash_at)
    }
}

impl<S: Bulk> Bulk for Alternating<S> {
    fn import(
        &self,
        job: ImportJob<'_>,
        rows: Rows<'_>,
        reject: Reject<'_>,
    ) -> Result<ImportReport, ImportError> {
        self.next().import(job, rows, reject)
    }

    fn export(&self, each: Each<'_>) -> Result<(), StoreError> {
        self.next().export(each)
    }

    fn new_import(&self) -> Result<ImportId, StoreError> {
        self.next().new_import()
    }

    fn import_activity(&self) -> Result<ImportActivity, StoreError> {
        self.next().import_activity()
    }

    fn targets(&self) -> Result<Vec<String>, StoreError> {
        self.next().targets()
    }

    fn imports(&self) -> Result<Vec<ImportRecord>, StoreError> {
        self.next().imports()
    }

    fn imports_of(&self, device: &DeviceId) -> Result<Vec<ImportRecord>, StoreError> {
        self.next().imports_of(device)
    }

    fn left_of(&self, id: ImportId, limit: usize) -> Result<Left, StoreError> {
        self.next().left_of(id, limit)
    }

    fn undo_import(&self, how: Undo<'_>) -> Result<Undone, UndoError> {
        self.next().undo_import(how)
    }

    fn spelled_macs(&self) -> Result<HashSet<DeviceId>, StoreError> {
        self.next().spelled_macs()
    }

    fn known_as(&self, asked: &AskedId) -> Result<Option<DeviceId>, StoreError> {
        self.next().known_as(asked)
    }

    fn count(&self) -> Result<u64, StoreError> {
        self.next().count()
    }

    fn totals(&self) -> Result<Vec<Totals>, StoreError> {
        self.next().totals()
    }

    fn count_unregistered(&self, enrollment: Option<&str>) -> Result<u64, StoreError> {
        self.next().count_unregistered(enrollment)
    }

    fn check_counts(&self) -> Result<CountCheck, StoreError> {
        self.next().check_counts()
    }

    fn recount(&self) -> Result<CountCheck, StoreError> {
        self.next().recount()
    }

    fn find(
        &self,
        filter: &filter::Filter,
        from: &Cursor,
        limit: usize,
        time: Duration,
    ) -> Result<Found, StoreError> {
        self.next().find(filter, from, limit, time)
    }

    fn tally(&self, filter: &filter::Filter, time: Duration) -> Result<Tally, StoreError> {
        self.next().tally(filter, time)
    }

    fn held(&self, limit: usize) -> Result<Vec<Held>, StoreError> {
        self.next().held(limit)
    }

    fn listed(&self, ids: &[DeviceId]) -> Result<Vec<filter::Listed>, StoreError> {
        self.next().listed(ids)
    }

    fn are_rolling(&self) -> Result<bool, StoreError> {
        self.next().are_rolling()
    }

    fn products(&self) -> Result<Vec<String>, StoreError> {
        self.next().products()
    }
}

impl<S: StoredSecrets> StoredSecrets for Alternating<S> {
    fn keys_in_use(&self) -> Result<Vec<String>, StoreError> {
        self.next().keys_in_use()
    }

    fn count_secrets(&self) -> Result<Vec<UnderKey>, StoreError> {
        self.next().count_secrets()
    }

    fn count_clear(&self) -> Result<u64, StoreError> {
        self.next().count_clear()
    }

    fn secrets_not_under(
        &self,
        column: SecretColumn,
        key: &str,
        after: &str,
        limit: usize,
    ) -> Result<Vec<StoredSecret>, StoreError> {
        self.next().secrets_not_under(column, key, after, limit)
    }

    fn replace_secrets(
        &self,
        column: SecretColumn,
        values: &[(StoredSecret, Secret)],
    ) -> Result<(), StoreError> {
        self.next().replace_secrets(column, values)
    }

    fn keep_only_key(
        &self,
        key: &str,
        sealed: u64,
        by: &Actor,
        progress: &mut dyn FnMut(SealStep),
    ) -> Result<(), StoreError> {
        self.next().keep_only_key(key, sealed, by, progress)
    }
}

impl<S: Shelf> Shelf for Alternating<S> {
    fn shelve(
        &self,
        kind: ItemKind,
        key: ItemKey,
        value: Vec<u8>,
        limits: ShelfLimits,
    ) -> StoreFuture<'_, Vec<u8>> {
        self.next().shelve(kind, key, value, limits)
    }

    fn shelved(&self, kind: ItemKind, key: ItemKey) -> StoreFuture<'_, Option<Item>> {
        self.next().shelved(kind, key)
    }

    fn touch_item(&self, kind: ItemKind, key: ItemKey) -> StoreFuture<'_, ()> {
        self.next().touch_item(kind, key)
    }

    fn replace_item(
        &self,
        kind: ItemKind,
        key: ItemKey,
        known: Vec<u8>,
        value: Vec<u8>,
    ) -> StoreFuture<'_, bool> {
        self.next().replace_item(kind, key, known, value)
    }

    fn take_item(&self, kind: ItemKind, key: ItemKey) -> StoreFuture<'_, Option<Item>> {
        self.next().take_item(kind, key)
    }
}
