//! Contract of the orders to move devices to another target.

use super::*;
use crate::store::{
    audit::Filter,
    claim::Claimed,
    order::{Begun, Carrier, Completed, Former, Move, Moved, Order, OrderKind, OrderNote, Placed, Step},
    sighting::Watched,
};

fn to(target: &str, former: Former) -> Move {
    Move { target: target.into(), product_key: format!("a1{target}"), former }
}

fn place(store: &impl Store, device: &str, to: &Move) -> Placed {
    now(store.place_move(&id(device), to, Begun::Keep, &by())).unwrap()
}

fn order_of(store: &impl Store, device: &str) -> Option<Order> {
    now(store.order_of(&id(device))).unwrap()
}

/// Places an order to move a device to Tokyo, and returns it.
fn placed(store: &impl Store, device: &str, former: Former) -> Order {
    let placed = place(store, device, &to("tokyo", former));
    let Placed::Yes(number) = placed else { panic!("{placed:?}") };
    let order = order_of(store, device).unwrap();
    assert_eq!((order.number, order.kind), (number, OrderKind::Move));
    order
}

/// Returns the device as Tokyo's cloud has registered it.
fn in_tokyo(name: &str) -> RegisteredDevice {
    RegisteredDevice {
        certificate: Certificate { product_key: "a1tokyo".into(), ..certificate(name, "n3w") },
        iot_id: Some(format!("tokyo-{name}")),
        registered: 2000,
    }
}

fn note(store: &impl Store, order: &Order, note: OrderNote) -> bool {
    now(store.note_order(order.number, note)).unwrap()
}

fn store_move(store: &impl Store, order: &Order) -> Moved {
    now(store.store_move(order, &in_tokyo(&order.device_name))).unwrap()
}

/// Takes the lease on the orders of Tokyo for an owner.
fn carrier(store: &impl Leases, number: i64) -> Carrier {
    let lease = "orders/tokyo".to_owned();
    assert!(now(store.take_lease(&owner(number), &lease)).unwrap().is_some(), "another owner has it");
    Carrier { owner: owner(number).id, lease }
}

/// Fences a process, which may nevertheless continue.
fn fence(store: &impl Claims, number: i64) {
    now(store.retire(owner(number).id)).unwrap();
}

/// Returns the numbers of the orders whose next call is made at a target.
fn at(store: &impl Store, target: &str) -> Vec<i64> {
    let orders = now(store.orders_after(Some(target), 0, 9)).unwrap();
    orders.into_iter().map(|order| order.number).collect()
}

/// Returns the events and details of the operator's entries about a device, oldest first.
fn said(store: &(impl Store + AuditLog), device: &str) -> Vec<(AuditEvent, String)> {
    let mut said = Vec::new();
    store
        .export_audit(&Filter { device: Some(id(device)), ..Filter::default() }, &mut |entry, _| {
            if entry.who.as_ref() == Some(&by().name) && entry.event != AuditEvent::Imported {
                said.push((entry.event, entry.detail.clone().unwrap_or_default()));
            }
            ControlFlow::Continue(())
        })
        .unwrap();
    said
}

/// `place_move` leaves the row as it is, and a device has at most one order.
fn a_move_is_placed_once_for_a_device_of_another_target(store: &(impl Store + Bulk + AuditLog)) {
    import(store, [with_certificate("SN-1", "s3cret"), with_certificate("SN-2", "s3cret")]);
    assert_eq!(place(store, "SN-9", &to("tokyo", Former::Keep)), Placed::NoDevice);
    assert_eq!(place(store, "SN-1", &to("default", Former::Keep)), Placed::There);
    let same_product = Move { product_key: "a1lamp".into(), ..to("tokyo", Former::Keep) };
    assert_eq!(place(store, "SN-1", &same_product), Placed::SameProduct);
    let before = device(store, "SN-1");
    let order = placed(store, "SN-1", Former::Keep);
    assert_eq!((order.product_key.as_str(), order.device_name.as_str()), ("a1lamp", "SN-1"));
    let moving = order.moving.clone().unwrap();
    assert_eq!((moving.from.as_str(), moving.to), ("default", to("tokyo", Former::Keep)));
    assert_eq!((moving.asked, moving.is_stored, order.step()), (None, false, Step::Register));
    assert_eq!((order.target.as_str(), order.next_product()), ("tokyo", "a1tokyo"));
    assert_eq!(device(store, "SN-1"), before);
    assert_eq!(said(store, "SN-1"), [(AuditEvent::Ordered, "move to tokyo, product a1tokyo".into())]);

    assert_eq!(place(store, "SN-1", &to("tokyo", Former::Keep)), Placed::Yes(order.number));
    for other in [to("osaka", Former::Keep), to("tokyo", Former::Delete)] {
        assert_eq!(place(store, "SN-1", &other), Placed::Other(OrderKind::Move));
    }
    let rotate = now(store.place_order(&id("SN-1"), OrderKind::Rotate, &by())).unwrap();
    assert_eq!(rotate, Placed::Other(OrderKind::Move));
    let nowhere = now(store.place_order(&id("SN-2"), OrderKind::Move, &by()));
    assert!(matches!(nowhere, Err(StoreError::Failed(_))), "{nowhere:?}");
}

/// `store_move` replaces the certificate, which then counts as never issued, and ends the order.
fn a_moved_device_has_the_certificate_of_its_new_target(store: &(impl Store + Bulk + AuditLog)) {
    import(store, [ImportRow { iot_id: Some("iot-1".into()), ..with_certificate("SN-1", "s3cret") }]);
    issue(store, "SN-1", 1).unwrap();
    let disabled = Sighting { state: Some(CloudState::Disabled), activated: Some(7), ..Sighting::default() };
    now(store.store_sightings(vec![(Watched::from(&device(store, "SN-1").unwrap()), disabled)])).unwrap();
    let order = placed(store, "SN-1", Former::Keep);
    assert_eq!(now(store.complete_order(&order, NOW)).unwrap(), Completed::Unfinished);
    assert_eq!(store_move(store, &order), Moved::Yes);
    let row = device(store, "SN-1").unwrap();
    assert_eq!(row.certificate, Some(in_tokyo("SN-1").certificate));
    assert_eq!((row.product_key.as_str(), row.target()), ("a1tokyo", Some("tokyo")));
    assert_eq!((row.iot_id.as_deref(), row.registered), (Some("tokyo-SN-1"), Some(2000)));
    assert_eq!((row.first_issued, row.activated, row.cloud_state), (None, None, None));
    assert_eq!(order_of(store, "SN-1"), None);
    let moved = "from default (a1lamp/SN-1) to tokyo (a1tokyo/SN-1)";
    assert_eq!(said(store, "SN-1").last(), Some(&(AuditEvent::Moved, moved.into())));
    assert_eq!(store_move(store, &order), Moved::Ended, "a repeated write");
    assert_eq!(now(store.complete_order(&order, NOW)).unwrap(), Completed::Ended);
    assert_eq!(said(store, "SN-1").len(), 2);
    let record = store.record_issue(&row.id, row.certificate.as_ref().unwrap(), 2, asker());
    assert!(now(record).unwrap().is_first, "the device may fetch its new certificate");
    // The device moves back, to a target that its row then names.
    let back = Move { product_key: "a1lamp".into(), ..to("default", Former::Keep) };
    assert!(matches!(place(store, "SN-1", &back), Placed::Yes(_)));
    let former = registration("SN-1", "s3cret");
    assert_eq!(now(store.store_move(&order_of(store, "SN-1").unwrap(), &former)).unwrap(), Moved::Yes);
    let row = device(store, "SN-1").unwrap();
    assert_eq!((row.target.as_deref(), row.certificate), (Some("default"), Some(former.certificate)));
}

/// The calls about the former device go to its target: before the move, to identify the device, and
/// at the end, to change it.
fn the_former_device_is_confirmed_first_and_changed_last(store: &(impl Store + Bulk + AuditLog)) {
    import(store, ["SN-1", "SN-2"].map(|name| with_certificate(name, "s3cret")));
    let order = placed(store, "SN-1", Former::Delete);
    assert_eq!((order.step(), order.next_product()), (Step::Confirm, "a1lamp"));
    assert_eq!((at(store, "default"), at(store, "tokyo")), (vec![order.number], vec![]));
    assert!(note(store, &order, OrderNote::Failure("Forbidden.RAM: odd".into())));
    assert!(note(store, &order, OrderNote::IotId("iot-1".into())));
    let confirmed = order_of(store, "SN-1").unwrap();
    assert_eq!((confirmed.step(), &confirmed.failure), (Step::Register, &None));
    assert_eq!((at(store, "default"), at(store, "tokyo")), (vec![], vec![order.number]));
    assert_eq!(now(store.complete_order(&order, NOW)).unwrap(), Completed::Unfinished);

    assert_eq!(store_move(store, &confirmed), Moved::Yes);
    let row = device(store, "SN-1").unwrap();
    assert_eq!(row.certificate, Some(in_tokyo("SN-1").certificate));
    let stored = order_of(store, "SN-1").unwrap();
    assert_eq!((stored.step(), stored.iot_id.as_deref()), (Step::Change, Some("iot-1")));
    assert_eq!((stored.next_product(), stored.device_name.as_str()), ("a1lamp", "SN-1"));
    assert_eq!((at(store, "default"), at(store, "tokyo")), (vec![order.number], vec![]));
    // Late notes and repeated writes change nothing.
    note(store, &order, OrderNote::IotId("iot-1".into()));
    assert!(!note(store, &order, OrderNote::FormerIsGone));
    assert_eq!(store_move(store, &confirmed), Moved::Yes);
    assert_eq!(order_of(store, "SN-1").as_ref(), Some(&stored));
    assert_eq!(now(store.complete_order(&stored, NOW)).unwrap(), Completed::Yes);
    assert_eq!((order_of(store, "SN-1"), device(store, "SN-1")), (None, Some(row)));
    let deleted = "the former device was deleted at default: a1lamp/SN-1";
    assert_eq!(said(store, "SN-1").last(), Some(&(AuditEvent::Moved, deleted.into())));

    // A former device that is gone needs no further step.
    let order = placed(store, "SN-2", Former::Disable);
    assert!(note(store, &order, OrderNote::FormerIsGone));
    let order = order_of(store, "SN-2").unwrap();
    assert_eq!((order.step(), order.target.as_str()), (Step::Register, "tokyo"));
    // The same command of the operator finds the order, although the note has changed the order.
    assert_eq!(place(store, "SN-2", &to("tokyo", Former::Disable)), Placed::Yes(order.number));
    assert_eq!(place(store, "SN-2", &to("tokyo", Former::Keep)), Placed::Other(OrderKind::Move));
    // A late process cannot note again that the former device is gone.
    assert!(!note(store, &order, OrderNote::FormerIsGone));
    assert_eq!(store_move(store, &order), Moved::Yes);
    assert_eq!(order_of(store, "SN-2"), None);
    assert_eq!(place(store, "SN-2", &to("tokyo", Former::Disable)), Placed::There);
}

/// A former device that was found does not count as gone later. Otherwise, it would not be deleted.
fn a_former_device_that_was_found_is_not_forgotten(store: &(impl Store + Bulk)) {
    import(store, [with_certificate("SN-1", "s3cret")]);
    let order = placed(store, "SN-1", Former::Delete);
    assert!(note(store, &order, OrderNote::IotId("iot-1".into())));
    assert!(!note(store, &order, OrderNote::FormerIsGone));
    let order = order_of(store, "SN-1").unwrap();
    assert_eq!((order.iot_id.as_deref(), order.step()), (Some("iot-1"), Step::Register));
}

/// The time of the first call is kept until no call can have been made.
fn the_first_call_is_noted(store: &(impl Store + Bulk)) {
    import(store, [with_certificate("SN-1", "s3cret")]);
    let order = placed(store, "SN-1", Former::Keep);
    let asked = || order_of(store, "SN-1").unwrap().moving.unwrap().asked;
    let first = ClaimTime { at: 1000, cloud_offset: Some(-60) };
    let by_one = carrier(store, 1);
    let asks = |at| note(store, &order, OrderNote::Asked(at, by_one.clone()));
    assert!(asks(first));
    assert!(!asks(ClaimTime { at: 2000, cloud_offset: None }));
    assert_eq!(asked(), Some(first));
    assert!(note(store, &order, OrderNote::NotAsked(by_one.clone())));
    assert_eq!(asked(), None);
    assert!(asks(NOW));
    assert_eq!(asked(), Some(NOW));
    assert!(now(store.end_order(order.number, "odd", &by())).unwrap());
    assert!(!asks(first));
}

/// A process that was suspended has lost its lease. It can neither remove the note about the call of
/// the process that now carries out its order, nor note a call of its own, nor end the order.
fn a_late_process_changes_no_move(store: &(impl Store + Bulk + AuditLog)) {
    import(store, ["SN-1", "SN-2"].map(|name| with_certificate(name, "s3cret")));
    let [order, other] = ["SN-1", "SN-2"].map(|name| placed(store, name, Former::Delete));
    let late = carrier(store, 1);
    for order in [&order, &other] {
        assert!(note(store, order, OrderNote::IotId(format!("iot-{}", order.device_name))));
    }
    let seen = order_of(store, "SN-1").unwrap();
    assert!(note(store, &order, OrderNote::Asked(NOW, late.clone())));
    fence(store, 1);
    // A process that does not have the lease cannot note that no call was made.
    let unknown = Carrier { owner: owner(2).id, ..late.clone() };
    assert!(!note(store, &order, OrderNote::NotAsked(unknown)));
    let living = carrier(store, 2);
    assert!(!note(store, &order, OrderNote::NotAsked(late.clone())));
    assert!(!note(store, &other, OrderNote::Asked(NOW, late.clone())));
    assert_eq!(order_of(store, "SN-1").unwrap().moving.unwrap().asked, Some(NOW));
    assert_eq!(order_of(store, "SN-2").unwrap().moving.unwrap().asked, None);
    let give_up = |seen: &Order, carrier: &Carrier| {
        now(store.give_order_up(seen, carrier, "the name exists", &by())).unwrap()
    };
    assert_eq!(give_up(&seen, &late), None);
    assert_eq!(store_move(store, &order), Moved::Yes);
    // The next step differs from the step that has failed.
    assert_eq!(give_up(&seen, &living), None);
    let stored = order_of(store, "SN-1").unwrap();
    assert_eq!(give_up(&stored, &living), Some(stored));
    assert_eq!((order_of(store, "SN-1"), give_up(&order, &living)), (None, None));
    let (event, detail) = said(store, "SN-1").pop().unwrap();
    assert_eq!(event, AuditEvent::Cancelled);
    assert_eq!(detail, "delete the former device at default, after a move: the name exists");
}

/// A device at the new target that is in no row is in the audit log exactly once, however its order
/// ends.
fn a_device_without_a_row_is_in_the_audit_log(store: &(impl Store + Bulk + AuditLog)) {
    let names = ["SN-1", "SN-2", "SN-3"];
    import(store, names.map(|name| with_certificate(name, "s3cret")));
    let [changed, cancelled, given_up] = names.map(|name| placed(store, name, Former::Keep));
    let carrier = carrier(store, 1);
    for order in [&changed, &cancelled, &given_up] {
        assert!(note(store, order, OrderNote::Asked(NOW, carrier.clone())));
    }
    let deleted = Sighting { state: Some(CloudState::Deleted), ..Sighting::default() };
    now(store.store_sightings(vec![(Watched::from(&device(store, "SN-1").unwrap()), deleted)])).unwrap();
    now(store.reset(&id("SN-1"), &by())).unwrap();
    assert_eq!(now(store.complete_order(&changed, NOW)).unwrap(), Completed::RowChanged);
    assert!(now(store.end_order(cancelled.number, "not wanted", &by())).unwrap());
    let seen = order_of(store, "SN-3").unwrap();
    assert!(now(store.give_order_up(&seen, &carrier, "odd", &by())).unwrap().is_some());
    for (name, reason) in names.into_iter().zip(["the row was changed meanwhile", "not wanted", "odd"]) {
        let detail = format!(
            "move to tokyo, product a1tokyo: {reason}; device a1tokyo/{name} may exist at tokyo; if no row of the table \
             has it, delete it there"
        );
        assert_eq!(said(store, name).last(), Some(&(AuditEvent::Cancelled, detail)));
    }
    // The answer to a call arrives after the order has ended: the call has registered the device.
    assert_eq!(store_move(store, &cancelled), Moved::Orphaned);
    let detail = "move to tokyo, product a1tokyo: the order had ended; device a1tokyo/SN-2 is at tokyo; if no row of the \
                  table has it, delete it there";
    assert_eq!(said(store, "SN-2").last(), Some(&(AuditEvent::Cancelled, detail.into())));
    assert_eq!(device(store, "SN-2").unwrap().certificate, Some(certificate("SN-2", "s3cret")));
}

/// A registration that has begun at another target prevents a move of the device. The operator may give
/// it up once no process carries it out, and the audit log then names the device that may exist.
fn a_registration_that_has_begun_is_given_up_by_the_operator_only(store: &(impl Store + Bulk + AuditLog)) {
    import(store, ["SN-1", "SN-2"].map(row));
    let tokyo = to("tokyo", Former::Keep);
    let place = |name, begun| now(store.place_move(&id(name), &tokyo, begun, &by())).unwrap();
    assert!(matches!(now(store.claim(&owner(1), &entry("SN-1"), NOW)).unwrap(), Claimed::Yours(_)));
    for begun in [Begun::Keep, Begun::Abandon] {
        assert_eq!(place("SN-1", begun), Placed::Registering);
    }
    fence(store, 1);
    assert_eq!(place("SN-1", Begun::Keep), Placed::Begun("default".into()));
    assert_eq!(now(store.abandoned("default", 9)).unwrap(), [entry("SN-1")]);
    assert_eq!(place("SN-1", Begun::Abandon), Placed::Here);
    assert_eq!(now(store.claim_of(&id("SN-1"))).unwrap(), None);
    let detail = "in the table: to tokyo (a1tokyo/SN-1); gave up the registration that had begun at default: device \
                  a1lamp/SN-1 may exist there; if no row of the table has it, delete it there";
    assert_eq!(said(store, "SN-1"), [(AuditEvent::Moved, detail.into())]);
    // The device can now be registered at its new target.
    let anew = JournalEntry { product_key: "a1tokyo".into(), target: "tokyo".into(), ..entry("SN-1") };
    assert!(matches!(now(store.claim(&owner(2), &anew, NOW)).unwrap(), Claimed::Yours(_)));
    // A batch that was never begun at IoT Platform has registered no device.
    let batch = OpenBatch { id: 7, product_key: "a1lamp".into(), apply_id: None, target: "default".into() };
    now(store.claim_batch(&owner(1), &batch, &[entry("SN-2")], NOW)).unwrap();
    assert_eq!(place("SN-2", Begun::Abandon), Placed::Registering);
    fence(store, 1);
    assert_eq!(
        place("SN-2", Begun::Keep),
        Placed::Begun("default".into()),
        "its process may only be suspended"
    );
    now(store.take_batches(&owner(2), "default")).unwrap();
    assert_eq!(place("SN-2", Begun::Keep), Placed::Here);
    assert_eq!(said(store, "SN-2"), [(AuditEvent::Moved, "in the table: to tokyo (a1tokyo/SN-2)".into())]);
    assert_eq!(now(store.claim_of(&id("SN-2"))).unwrap(), None);
}

/// No row is given a certificate that is not its own.
fn a_move_changes_no_other_device_and_shares_none(store: &(impl Store + Bulk + AuditLog)) {
    let names = ["SN-1", "SN-2", "SN-3"];
    import(store, names.map(|name| with_certificate(name, "s3cret")));
    let tokyos = |name: &str| ImportRow { product_key: Some("a1tokyo".into()), ..row(name) };
    import(store, [ImportRow { device_name: Some("SN-2".into()), ..tokyos("SN-4") }]);
    assert_eq!(place(store, "SN-2", &to("tokyo", Former::Keep)), Placed::NameTaken(id("SN-4")));
    let order = placed(store, "SN-1", Former::Keep);
    let before = device(store, "SN-1");
    // Another device gets the name, and then the IotId, while the device is registered.
    import(store, [ImportRow { device_name: Some("SN-1".into()), ..tokyos("SN-5") }]);
    assert_eq!(store_move(store, &order), Moved::NameTaken(id("SN-5")));
    now(store.delete(&id("SN-5"), &by())).unwrap();
    import(store, [ImportRow { iot_id: Some("tokyo-SN-1".into()), ..tokyos("SN-6") }]);
    assert_eq!(store_move(store, &order), Moved::IotIdTaken(id("SN-6")));
    assert_eq!((device(store, "SN-1"), order_of(store, "SN-1")), (before, Some(order)));

    // A row that no longer fits the order is not changed.
    let order = placed(store, "SN-3", Former::Keep);
    let deleted = Sighting { state: Some(CloudState::Deleted), ..Sighting::default() };
    now(store.store_sightings(vec![(Watched::from(&device(store, "SN-3").unwrap()), deleted)])).unwrap();
    now(store.reset(&id("SN-3"), &by())).unwrap();
    let before = device(store, "SN-3");
    assert_eq!(store_move(store, &order), Moved::RowChanged);
    assert_eq!((device(store, "SN-3"), order_of(store, "SN-3")), (before, None));
    let cancelled = "move to tokyo, product a1tokyo: the row was changed meanwhile";
    assert_eq!(said(store, "SN-3").last(), Some(&(AuditEvent::Cancelled, cancelled.into())));
}

/// A device without a certificate moves in the table alone, but not while it is being registered.
fn a_device_without_a_certificate_moves_in_the_table(store: &(impl Store + Bulk + AuditLog)) {
    import(store, ["SN-1", "SN-2"].map(row));
    import(
        store,
        [ImportRow { product_key: Some("a1tokyo".into()), device_name: Some("SN-2".into()), ..row("SN-3") }],
    );
    refuse(store, "SN-1", "iot.prod.NotExistedProduct: no");
    let tokyo = to("tokyo", Former::Delete);
    assert_eq!(place(store, "SN-1", &tokyo), Placed::Here);
    let moved = device(store, "SN-1").unwrap();
    assert_eq!((moved.target(), moved.product_key.as_str()), (Some("tokyo"), "a1tokyo"));
    assert_eq!((moved.refusal, order_of(store, "SN-1")), (None, None));
    let detail = "in the table: to tokyo (a1tokyo/SN-1)";
    assert_eq!(said(store, "SN-1"), [(AuditEvent::Moved, detail.into())]);
    assert_eq!(place(store, "SN-1", &tokyo), Placed::There);
    assert_eq!(place(store, "SN-2", &tokyo), Placed::NameTaken(id("SN-3")));
    now(store.claim(&owner(1), &entry("SN-2"), NOW)).unwrap();
    assert_eq!(place(store, "SN-2", &to("osaka", Former::Keep)), Placed::Registering);
}

/// While a device moves, it may be disabled and enabled, but not deleted.
fn a_device_that_moves_is_not_deleted(store: &(impl Store + Bulk)) {
    import(store, [with_certificate("SN-1", "s3cret")]);
    let order = placed(store, "SN-1", Former::Keep);
    let deleted = now(store.delete(&id("SN-1"), &by()));
    assert!(matches!(deleted, Err(StoreError::Conflict(_))), "{deleted:?}");
    for state in [DeviceState::Enabled, DeviceState::Disabled] {
        assert!(now(store.set_state(&id("SN-1"), state, &by())).unwrap());
    }
    assert_eq!(store_move(store, &order), Moved::Yes);
    assert_eq!(device(store, "SN-1").unwrap().state, DeviceState::Disabled);
}

contract! {
    a_move_is_placed_once_for_a_device_of_another_target
    a_moved_device_has_the_certificate_of_its_new_target
    the_former_device_is_confirmed_first_and_changed_last
    a_former_device_that_was_found_is_not_forgotten
    the_first_call_is_noted
    a_late_process_changes_no_move
    a_device_without_a_row_is_in_the_audit_log
    a_registration_that_has_begun_is_given_up_by_the_operator_only
    a_move_changes_no_other_device_and_shares_none
    a_device_without_a_certificate_moves_in_the_table
    a_device_that_moves_is_not_deleted
}
