//! Tests of a restore with orders for IoT Platform: the orders in the backup end, and the devices
//! that were rotated or moved since the backup are listed.

use super::{backup::Restorable, *};
use crate::store::{
    backup::SinceBackup,
    claim::ClaimTime,
    order::{Begun, Completed, Former, Move, Moved, OrderKind, Orders, Placed},
};

fn place(store: &Sqlite, device: &str, kind: OrderKind) {
    let placed = wait(store.place_order(&id(device), kind, &Actor::system_user())).unwrap();
    assert!(matches!(placed, Placed::Yes(_)), "{placed:?}");
}

fn move_to_tokyo(store: &Sqlite, device: &str) {
    let to = Move { target: "tokyo".into(), product_key: "a1tokyo".into(), former: Former::Keep };
    let placed = wait(store.place_move(&id(device), &to, Begun::Keep, &Actor::system_user())).unwrap();
    assert!(matches!(placed, Placed::Yes(_)), "{placed:?}");
    let order = wait(store.order_of(&id(device))).unwrap().unwrap();
    let certificate = Certificate {
        product_key: to.product_key,
        device_name: device.into(),
        device_secret: Secret::new("n3w".into()),
    };
    let registered = RegisteredDevice { certificate, iot_id: None, registered: 1 };
    assert_eq!(wait(store.store_move(&order, &registered)).unwrap(), Moved::Yes);
}

/// Returns devices and details of the orders that have ended without their change.
fn cancelled(store: &Sqlite) -> Vec<(String, String)> {
    let mut cancelled = Vec::new();
    let mut note = |entry: AuditEntry, _: Link| -> rusqlite::Result<()> {
        if entry.event == AuditEvent::Cancelled {
            let device = entry.device.map(|device| device.to_string());
            cancelled.push((device.unwrap_or_default(), entry.detail.unwrap_or_default()));
        }
        Ok(())
    };
    let table = Connection::open(store.path()).unwrap();
    audit::entries_after(&table, 0, &mut note).unwrap();
    cancelled
}

#[test]
fn the_orders_of_a_backup_end_before_it_is_in_place() {
    for damaged in [false, true] {
        let directory = tempfile::tempdir().unwrap();
        let (path, copy) = (directory.path().join("certdist.db"), directory.path().join("copy.db"));
        let store = open(&directory);
        import(&store, ["SN-1", "SN-2", "SN-3"].map(|name| with_certificate(name, "s3cret")));
        place(&store, "SN-1", OrderKind::Delete);
        place(&store, "SN-2", OrderKind::Rotate);
        assert_eq!(store.back_up(&copy, &mut |_, _| ()).unwrap().orders, 2);
        // After the backup, one order is cancelled and another one is carried out.
        let by = Actor::system_user();
        let orders = wait(store.orders_after(None, 0, 10)).unwrap();
        assert!(wait(store.end_order(orders[0].number, "by an operator", &by)).unwrap());
        let now = ClaimTime { at: 1, cloud_offset: None };
        assert!(matches!(wait(store.complete_order(&orders[1], now)).unwrap(), Completed::Yes));
        move_to_tokyo(&store, "SN-3");
        drop(store);

        let backup = Restorable::examine(&copy, &path, |_, _| ()).unwrap();
        assert_eq!(backup.contents.orders, 2);
        let SinceBackup { rotated, moved, .. } = backup.changes_since(&path).unwrap();
        assert_eq!((rotated.count, &rotated.first[..]), (1, &["SN-2".to_owned()][..]));
        assert_eq!((moved.count, &moved.first[..]), (1, &["SN-3".to_owned()][..]));
        if damaged {
            std::fs::write(&path, "damaged").unwrap();
        }
        let lock = Lock::alone(&path).unwrap();
        backup.restore(&path, damaged, &lock, &by, |_, _| ()).unwrap();
        drop(lock);
        let store = open(&directory);
        assert_eq!(wait(store.orders_after(None, 0, 10)).unwrap(), []);
        let expected = [("SN-1", "delete"), ("SN-2", "rotate")]
            .map(|(device, kind)| (device.to_owned(), format!("{kind}: restored from a backup")));
        assert_eq!(cancelled(&store), expected);
        assert_eq!(store.count().unwrap(), 3);
        // The backup itself stays as it is.
        drop(backup);
        assert_eq!(Restorable::examine(&copy, &path, |_, _| ()).unwrap().contents.orders, 2);
        let names = std::fs::read_dir(directory.path()).unwrap().map(|file| file.unwrap().file_name());
        let left: Vec<_> = names.filter(|name| !name.to_string_lossy().contains("certdist.db-")).collect();
        assert_eq!(left.len(), 2, "no part is left: {left:?}");
    }
}
