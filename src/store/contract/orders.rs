//! Contract of the orders for IoT Platform.

use super::*;
use crate::store::{
    audit::Filter,
    claim::Claimed,
    order::{Completed, Order, OrderKind, OrderNote, Placed},
};

fn place(store: &impl Store, device: &str, kind: OrderKind) -> Placed {
    now(store.place_order(&id(device), kind, &by())).unwrap()
}

fn order_of(store: &impl Store, device: &str) -> Option<Order> {
    now(store.order_of(&id(device))).unwrap()
}

/// Places an order, and returns it.
fn placed(store: &impl Store, device: &str, kind: OrderKind) -> Order {
    let Placed::Yes(number) = place(store, device, kind) else { panic!("{kind} was not placed") };
    let order = order_of(store, device).unwrap();
    assert_eq!((order.number, order.kind), (number, kind));
    order
}

/// Returns the events and details of the operator's entries about a device, oldest first.
fn said(store: &(impl Store + AuditLog), device: &str) -> Vec<(AuditEvent, String)> {
    let mut said = Vec::new();
    store
        .export_audit(&Filter { device: Some(id(device)), ..Filter::default() }, &mut |entry, _| {
            if entry.who.as_ref() == Some(&by().name) && entry.event != AuditEvent::Imported {
                assert_eq!(entry.address, by().address);
                said.push((entry.event, entry.detail.clone().unwrap_or_default()));
            }
            ControlFlow::Continue(())
        })
        .unwrap();
    said
}

/// `place_order` needs a device with a certificate, and a device has at most one order.
fn an_order_is_placed_once_for_a_device_with_a_certificate(store: &(impl Store + Bulk + AuditLog)) {
    import(store, [with_certificate("SN-1", "s3cret"), row("SN-2")]);
    assert_eq!(place(store, "SN-9", OrderKind::Rotate), Placed::NoDevice);
    assert_eq!(place(store, "SN-2", OrderKind::Rotate), Placed::NoCertificate);
    let order = placed(store, "SN-1", OrderKind::Rotate);
    assert_eq!((order.product_key.as_str(), order.device_name.as_str()), ("a1lamp", "SN-1"));
    assert_eq!((&order.by, &order.iot_id, &order.failure), (&by(), &None, &None));
    assert_eq!(place(store, "SN-1", OrderKind::Rotate), Placed::Yes(order.number));
    assert_eq!(place(store, "SN-1", OrderKind::Delete), Placed::Other(OrderKind::Rotate));
    assert_eq!(device(store, "SN-1").unwrap().state, DeviceState::Enabled);
    assert_eq!(said(store, "SN-1"), [(AuditEvent::Ordered, "rotate".into())]);
    assert_eq!(order_of(store, "SN-2"), None);
}

/// An order that disables at once disables the device in the step that places it.
fn disable_and_delete_disable_the_device_at_once(store: &(impl Store + Bulk + AuditLog)) {
    import(store, [with_certificate("SN-1", "s3cret"), with_certificate("SN-2", "s3cret")]);
    for (name, kind) in [("SN-1", OrderKind::Disable), ("SN-2", OrderKind::Delete)] {
        placed(store, name, kind);
        assert_eq!(device(store, name).unwrap().state, DeviceState::Disabled);
        let ordered = (AuditEvent::Ordered, kind.name().to_owned());
        assert_eq!(said(store, name), [ordered, (AuditEvent::Disabled, "in the table".into())]);
    }
}

/// `orders_after` returns the orders in pages, oldest first. No number is used again.
fn orders_are_read_in_pages(store: &(impl Store + Bulk)) {
    let names = ["SN-1", "SN-2", "SN-3"];
    import(store, names.map(|name| with_certificate(name, "s3cret")));
    let orders = ["SN-3", "SN-1", "SN-2"].map(|name| placed(store, name, OrderKind::Enable));
    let [first, second, third] = &orders;
    assert_eq!(now(store.orders_after(None, 0, 9)).unwrap(), orders);
    assert_eq!(now(store.orders_after(None, 0, 2)).unwrap(), orders[..2]);
    assert_eq!(now(store.orders_after(None, second.number, 9)).unwrap(), orders[2..]);
    assert!(now(store.end_order(third.number, "odd", &by())).unwrap());
    assert!(placed(store, "SN-2", OrderKind::Enable).number > third.number);
    assert!(first.number > 0);
}

/// `note_order` notes a failure, or the `IotId`, which clears a noted failure.
fn notes_are_kept_with_the_order(store: &(impl Store + Bulk)) {
    import(store, [with_certificate("SN-1", "s3cret")]);
    let order = placed(store, "SN-1", OrderKind::Rotate);
    let note = |note| now(store.note_order(order.number, note)).unwrap();
    assert!(note(OrderNote::Failure("Forbidden.RAM: odd".into())));
    assert_eq!(order_of(store, "SN-1").unwrap().failure.as_deref(), Some("Forbidden.RAM: odd"));
    assert!(note(OrderNote::IotId("iot-1".into())));
    let noted = order_of(store, "SN-1").unwrap();
    assert_eq!((noted.iot_id.as_deref(), noted.failure), (Some("iot-1"), None));
    assert!(noted.is_confirmed && !order.is_confirmed);
    assert!(now(store.end_order(order.number, "odd", &by())).unwrap());
    assert!(!note(OrderNote::Failure("late".into())));
}

/// `complete_order` stores the result of each kind, and ends the order.
fn a_completed_order_changes_the_row(store: &(impl Store + Bulk + AuditLog)) {
    let names = ["SN-1", "SN-2", "SN-3", "SN-4"];
    import(store, names.map(|name| with_certificate(name, "s3cret")));
    for name in names {
        issue(store, name, 1).unwrap();
    }
    now(store.set_state(&id("SN-2"), DeviceState::Disabled, &by())).unwrap();
    for (name, kind) in names.into_iter().zip(OrderKind::PLAIN) {
        let order = placed(store, name, kind);
        assert!(now(store.note_order(order.number, OrderNote::IotId(format!("iot-{name}")))).unwrap());
        assert_eq!(now(store.complete_order(&order, NOW)).unwrap(), Completed::Yes);
        assert_eq!(order_of(store, name), None);
        let at = |event| (event, format!("at IoT Platform: a1lamp/{name}"));
        let event = match kind {
            OrderKind::Disable => AuditEvent::Disabled,
            OrderKind::Enable => AuditEvent::Enabled,
            OrderKind::Delete => AuditEvent::Deleted,
            OrderKind::Rotate => AuditEvent::Rotated,
            OrderKind::Move => unreachable!("it is not placed"),
        };
        assert_eq!(said(store, name).last(), Some(&at(event)));
        assert_eq!(now(store.complete_order(&order, NOW)).unwrap(), Completed::Ended, "a repeated write");
        assert_eq!(said(store, name).last(), Some(&at(event)));
    }
    let row = |name| device(store, name).unwrap();
    let disabled = row("SN-1");
    assert_eq!((disabled.state, disabled.cloud_state), (DeviceState::Disabled, Some(CloudState::Disabled)));
    assert_eq!(disabled.iot_id.as_deref(), Some("iot-SN-1"));
    assert_eq!((row("SN-2").state, row("SN-2").cloud_state), (DeviceState::Enabled, None));
    assert_eq!(device(store, "SN-3"), None);
    let rotated = row("SN-4");
    assert_eq!((&rotated.certificate, &rotated.iot_id, rotated.first_issued), (&None, &None, None));
    assert_eq!((rotated.state, rotated.device_name.as_deref()), (DeviceState::Enabled, Some("SN-4")));
    // Any process may register the rotated device again.
    assert_eq!(now(store.abandoned("default", 9)).unwrap(), [entry("SN-4")]);
}

/// While a device has an order, it is not registered. After a rotation, it is registered again.
fn a_device_with_an_order_is_not_registered(store: &(impl Store + Bulk)) {
    import(store, [with_certificate("SN-1", "s3cret")]);
    let deleted = Sighting { state: Some(CloudState::Deleted), ..Sighting::default() };
    let watched = crate::store::sighting::Watched::from(&device(store, "SN-1").unwrap());
    now(store.store_sightings(vec![(watched, deleted)])).unwrap();
    let order = placed(store, "SN-1", OrderKind::Rotate);
    // The reset removes the certificate, because the device was deleted at IoT Platform.
    now(store.reset(&id("SN-1"), &by())).unwrap();
    let claim = || now(store.claim(&owner(1), &entry("SN-1"), NOW)).unwrap();
    assert_eq!(claim(), Claimed::Held);
    assert_eq!(now(store.complete_order(&order, NOW)).unwrap(), Completed::RowChanged);
    assert!(matches!(claim(), Claimed::Yours(_)));
    now(store.settle(1, &entry("SN-1"), &Settlement::Registered(registration("SN-1", "other")))).unwrap();
    let order = placed(store, "SN-1", OrderKind::Rotate);
    assert_eq!(order.iot_id.as_deref(), Some("iot-SN-1"));
    let rotated = ClaimTime { at: 500, cloud_offset: Some(-60) };
    assert_eq!(now(store.complete_order(&order, rotated)).unwrap(), Completed::Yes);
    // The claim has the clock of the process that has carried the order out.
    let Claimed::Yours(claim) = claim() else { panic!("it is not registered anew") };
    assert_eq!((claim.since, claim.cloud_offset, claim.asked_by), (500, Some(-60), AskedBy::Other));
}

/// A row that no longer fits the order is not changed.
fn an_order_does_not_change_a_row_of_another_device(store: &(impl Store + Bulk + AuditLog)) {
    import(store, [with_certificate("SN-1", "s3cret")]);
    let order = placed(store, "SN-1", OrderKind::Rotate);
    now(store.note_order(order.number, OrderNote::IotId("iot-former".into()))).unwrap();
    import(store, [ImportRow { iot_id: Some("iot-other".into()), ..row("SN-1") }]);
    let before = device(store, "SN-1");
    assert_eq!(now(store.complete_order(&order, NOW)).unwrap(), Completed::RowChanged);
    assert_eq!(device(store, "SN-1"), before);
    let cancelled = (AuditEvent::Cancelled, "rotate: the row was changed meanwhile".to_owned());
    assert_eq!(said(store, "SN-1").last(), Some(&cancelled));
}

/// `end_order` ends an order without its change.
fn an_order_ends_without_a_change(store: &(impl Store + Bulk + AuditLog)) {
    import(store, [with_certificate("SN-1", "s3cret"), with_certificate("SN-2", "s3cret")]);
    let order = placed(store, "SN-1", OrderKind::Rotate);
    let before = device(store, "SN-1");
    assert!(now(store.end_order(order.number, "not wanted", &by())).unwrap());
    assert!(!now(store.end_order(order.number, "not wanted", &by())).unwrap());
    assert_eq!((order_of(store, "SN-1"), device(store, "SN-1")), (None, before));
    assert_eq!(said(store, "SN-1").last(), Some(&(AuditEvent::Cancelled, "rotate: not wanted".into())));
}

/// For a device without a certificate, the change is made in the table alone, but not while the
/// device is being registered.
fn a_device_without_a_certificate_is_changed_in_the_table(store: &(impl Store + Bulk + AuditLog)) {
    import(store, ["SN-1", "SN-2", "SN-3"].map(row));
    assert_eq!(place(store, "SN-1", OrderKind::Disable), Placed::Here);
    assert_eq!(device(store, "SN-1").unwrap().state, DeviceState::Disabled);
    assert_eq!(place(store, "SN-1", OrderKind::Enable), Placed::Here);
    assert_eq!(device(store, "SN-1").unwrap().state, DeviceState::Enabled);
    assert_eq!(place(store, "SN-2", OrderKind::Delete), Placed::Here);
    assert_eq!(device(store, "SN-2"), None);
    assert_eq!(said(store, "SN-2"), [(AuditEvent::Deleted, "in the table".into())]);
    now(store.claim(&owner(1), &entry("SN-3"), NOW)).unwrap();
    for kind in OrderKind::PLAIN {
        assert_eq!(place(store, "SN-3", kind), Placed::Registering);
    }
    assert_eq!(device(store, "SN-3").unwrap().state, DeviceState::Enabled);
}

/// An operator's plain change that contradicts an order is refused. Disabling a device cancels the
/// order to enable it.
fn a_plain_change_does_not_contradict_an_order(store: &(impl Store + Bulk + AuditLog)) {
    let names = ["SN-1", "SN-2", "SN-3", "SN-4"];
    import(store, names.map(|name| with_certificate(name, "s3cret")));
    for (name, kind) in names.into_iter().zip(OrderKind::PLAIN) {
        placed(store, name, kind);
        let deleted = now(store.delete(&id(name), &by()));
        let Err(StoreError::Conflict(reason)) = deleted else { panic!("{deleted:?}") };
        assert!(reason.contains(&format!("an order, to {kind}")), "{reason}");
        assert!(device(store, name).is_some());
        let enabled = now(store.set_state(&id(name), DeviceState::Enabled, &by()));
        assert_eq!(matches!(enabled, Err(StoreError::Conflict(_))), kind.disables_at_once(), "{kind}");
    }
    for (name, kind) in names.into_iter().zip(OrderKind::PLAIN) {
        assert!(now(store.set_state(&id(name), DeviceState::Disabled, &by())).unwrap());
        assert_eq!(order_of(store, name).is_none(), kind == OrderKind::Enable, "{kind}");
    }
    let cancelled = (AuditEvent::Cancelled, "enable: the operator disabled the device".to_owned());
    assert!(said(store, "SN-2").contains(&cancelled));
}

contract! {
    an_order_is_placed_once_for_a_device_with_a_certificate
    disable_and_delete_disable_the_device_at_once
    orders_are_read_in_pages
    notes_are_kept_with_the_order
    a_completed_order_changes_the_row
    a_device_with_an_order_is_not_registered
    an_order_does_not_change_a_row_of_another_device
    an_order_ends_without_a_change
    a_device_without_a_certificate_is_changed_in_the_table
    a_plain_change_does_not_contradict_an_order
}
