//! Tests that writes of several rows lock them in one order. In these tests, the database does not
//! detect deadlocks, so a deadlock makes a test fail.

use super::*;
use crate::store::{
    OpenBatch, Sighting,
    sealed::{SecretColumn, StoredSecret, StoredSecrets},
    sighting::{Sightings, Watched},
};

const DEVICES: u64 = 60;

/// Number of times that the two servers write the same rows.
const ROUNDS: i64 = 12;

/// Opens two servers on an empty database that does not detect deadlocks.
fn servers() -> [Postgres; 2] {
    let url = postgres::empty();
    drop(Postgres::open(&url).unwrap());
    let url = format!("{url}%20-c%20deadlock_timeout%3D600s");
    [(); 2].map(|()| Postgres::open(&url).unwrap())
}

fn with_certificate(number: u64) -> ImportRow {
    ImportRow {
        device_name: Some(id(number).device_name()),
        device_secret: Some(Secret::new("s3cret".into())),
        ..ImportRow::new(id(number), "lamps", "a1lamp")
    }
}

/// Runs the work of two servers at the same time, again and again. The second server gets the devices
/// in reverse order.
fn in_opposite_orders(stores: &[Postgres; 2], work: impl Fn(&Postgres, i64, &[u64]) + Sync) {
    thread::scope(|scope| {
        for (server, store) in stores.iter().enumerate() {
            let work = &work;
            scope.spawn(move || {
                let mut devices: Vec<u64> = (0..DEVICES).collect();
                if server == 1 {
                    devices.reverse();
                }
                for round in 0..ROUNDS {
                    work(store, round * 2 + server as i64, &devices);
                }
            });
        }
    });
}

#[test]
#[ignore = "needs PostgreSQL"]
fn sightings_and_sealed_values_are_locked_in_one_order() {
    let stores = servers();
    import_rows(&stores[0], (0..DEVICES).map(with_certificate));
    in_opposite_orders(&stores, |store, round, devices| {
        let seen = |number: &u64| Watched {
            id: id(*number),
            product_key: "a1lamp".into(),
            device_name: id(*number).device_name(),
            first_issued: None,
            registered: None,
            activated: None,
            cloud_state: None,
            target: "default".into(),
        };
        let sighting = Sighting { activated: Some(1000 + round), ..Sighting::default() };
        let sightings = devices.iter().map(|number| (seen(number), sighting)).collect();
        wait(store.store_sightings(sightings)).unwrap();
        let secrets: Vec<(StoredSecret, Secret)> = devices
            .iter()
            .map(|number| {
                let primary = id(*number).to_string();
                let value = Secret::new("s3cret".into());
                (StoredSecret { primary: primary.clone(), device: primary, value: value.clone() }, value)
            })
            .collect();
        store.replace_secrets(SecretColumn::DeviceSecret, &secrets).unwrap();
    });
    assert_eq!(stores[0].check_counts().unwrap().different, 0);
}

#[test]
#[ignore = "needs PostgreSQL"]
fn claims_of_batches_are_locked_in_one_order() {
    let stores = servers();
    import(&stores[0], 0..DEVICES);
    in_opposite_orders(&stores, |store, round, devices| {
        let owner = owner(round + 1);
        let entries: Vec<JournalEntry> = devices.iter().map(|number| entry(*number)).collect();
        let batch = OpenBatch {
            id: round + 1,
            product_key: "a1lamp".into(),
            apply_id: None,
            target: "default".into(),
        };
        let claimed = wait(store.claim_batch(&owner, &batch, &entries, NOW)).unwrap();
        assert_eq!(claimed.len(), entries.len());
        wait(store.note_cloud_offset(owner.id, 5)).unwrap();
        wait(store.take_batches(&owner, "default")).unwrap();
        wait(store.retire(owner.id)).unwrap();
    });
}
