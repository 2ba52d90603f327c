//! Contract of a store's secrets: a test for each statement in the documentation of
//! `StoredSecrets`, and of `Keys` as [`Sealed`] implements it.

use super::*;
use crate::store::{
    roll::{DeviceKeys, Ended, Ending},
    seal_step::SealStep,
    sealed::{SecretColumn, StoredSecret, StoredSecrets, UnderKey},
};

const PSK: &str = "00112233445566778899aabbccddeeff";

fn ring(bytes: &[u8]) -> Keyring {
    Keyring::new(bytes.iter().map(|byte| DatabaseKey::parse(&hex::encode([*byte; KEY_SIZE])).unwrap()))
}

fn key_id(byte: u8) -> String {
    ring(&[byte]).first().unwrap().to_string()
}

/// Wraps a store so that its secrets are sealed under the given database keys.
fn with_ring<S>(store: S, keys: &[u8]) -> Sealed<S> {
    Sealed::new(store, ring(keys))
}

/// Imports devices that have an individual key and no certificate.
fn fill(store: &impl Bulk, devices: std::ops::Range<usize>) {
    import(
        store,
        devices.map(|number| {
            let device = format!("SN-{number}");
            ImportRow { ..with_key(&device, &format!("id-{number}"), PSK) }
        }),
    );
}

fn add_certificates(store: &impl Bulk, devices: std::ops::Range<usize>) {
    import(
        store,
        devices.map(|number| ImportRow {
            individual: true,
            ..with_certificate(&format!("SN-{number}"), "s3cret")
        }),
    );
}

fn sentence<T: std::fmt::Debug>(answer: Result<T, StoreError>) -> String {
    answer.unwrap_err().to_string()
}

/// A sealed value names its database key, and the store notes that key when it writes the value.
fn the_key_of_each_value_is_noted<S: Store + Bulk + StoredSecrets>(store: S) {
    fill(&store, 0..2);
    assert_eq!(store.keys_in_use().unwrap(), Vec::<String>::new(), "clear values have no key");
    let store = with_ring(store, &[1]);
    // The import notes database key 1, and a registration below notes database key 2.
    add_certificates(&store, 0..1);
    assert_eq!(store.inner().keys_in_use().unwrap(), [key_id(1)]);
    store.set_keys(ring(&[2, 1])).unwrap();
    import(&store, [row("SN-9")]);
    register(&store, "SN-9", "s3cret");
    let is_used = |byte| store.inner().keys_in_use().unwrap().contains(&key_id(byte));
    assert!(is_used(1) && is_used(2));
    let count = |byte| {
        let key = Some(byte).filter(|byte| *byte > 0).map(key_id);
        let counts = store.key_counts().unwrap();
        let count = counts.into_iter().find(|count| count.key == key);
        count.map(|UnderKey { device_secrets, psks, .. }| (device_secrets, psks))
    };
    assert_eq!([count(0), count(1), count(2)], [Some((0, 2)), Some((1, 0)), Some((1, 0))]);
    assert_eq!(store.clear_count().unwrap(), 2);
    // The import writes the secret of SN-0 again, under its former database key, and a new secret
    // under the first key of the ring.
    store.set_keys(ring(&[3, 2, 1])).unwrap();
    let changed = ImportRow { individual: true, iot_id: Some("iot-0".into()), ..row("SN-0") };
    assert_eq!(import(&store, [changed, with_certificate("SN-8", "s3cret")]).changed, 1);
    assert!([1, 2, 3].into_iter().all(is_used));
}

/// Values that are not under a given database key are read in pages. A value is replaced unless it
/// has changed since it was read.
fn values_are_replaced_unless_they_have_changed<S: Store + Bulk + StoredSecrets>(store: S) {
    fill(&store, 0..3);
    let page =
        |after: &str, limit| store.secrets_not_under(SecretColumn::Psk, &key_id(1), after, limit).unwrap();
    let primaries =
        |page: &[StoredSecret]| page.iter().map(|value| value.primary.clone()).collect::<Vec<_>>();
    assert_eq!(primaries(&page("", 2)), ["id-0", "id-1"]);
    assert_eq!(primaries(&page("id-1", 2)), ["id-2"]);
    assert!(page("id-2", 2).is_empty());
    let [first, other] = <[StoredSecret; 2]>::try_from(page("", 2)).unwrap();
    assert_eq!((first.device.as_str(), first.value.expose()), ("SN-0", PSK));
    // After `other` was read, this import changes the stored value, so the value must not be
    // replaced.
    import(&store, [with_key("SN-1", "id-1", &PSK.replace("00", "99"))]);
    let anew = |value: StoredSecret| (value, Secret::new(format!("sealed 1 {} AAAA", key_id(1))));
    store.replace_secrets(SecretColumn::Psk, &[anew(first), anew(other)]).unwrap();
    assert_eq!(primaries(&page("", 9)), ["id-1", "id-2"]);
    assert_eq!(store.keys_in_use().unwrap(), [key_id(1)]);
    let error = sentence(store.keep_only_key(&key_id(1), 1, &by(), &mut |_| ()));
    assert!(error.contains("2 values were written under another key"), "{error}");
}

/// `seal_all` seals all values under the first database key while another process uses the store,
/// and reports its progress. Afterwards, no other database key is needed.
fn all_values_are_sealed_under_the_first_key<S: Store + Bulk + StoredSecrets + AuditLog>(store: S) {
    fill(&store, 0..700);
    add_certificates(&store, 0..700);
    let store = with_ring(store, &[]);
    assert!(sentence(store.seal_all(&by(), &mut |_| ())).contains("expected database_key"));
    for keys in [&[1][..], &[2, 1]] {
        store.set_keys(ring(keys)).unwrap();
        let mut told = Vec::new();
        let told_of = &mut |step| {
            if let SealStep::Sealing(done, total) = step {
                told.push((done, total));
            }
        };
        let report = store.seal_all(&by(), told_of).unwrap();
        assert_eq!((report.key.to_string(), report.sealed), (key_id(keys[0]), 1400));
        assert!(told.is_sorted() && told.len() >= 4 && told.last() == Some(&(1400, 1400)), "{told:?}");
        assert_eq!(store.inner().keys_in_use().unwrap(), [key_id(keys[0])]);
        assert_eq!(store.seal_all(&by(), &mut |_| ()).unwrap().sealed, 0, "once more changes nothing");
    }
    assert!(sentence(store.set_keys(ring(&[1]))).contains(&key_id(2)), "it keeps the keys that fit");
    assert_eq!(now(store.individual_key("id-699")).unwrap().found.unwrap().psk.expose(), PSK);
    let certificate = device(&store, "SN-0").unwrap().certificate.unwrap();
    assert_eq!(certificate.device_secret.expose(), "s3cret");
    let mut sealings = 0;
    let each = &mut |entry: audit::AuditEntry, _: audit::Link| {
        sealings += u32::from(entry.event == AuditEvent::Sealed);
        ControlFlow::Continue(())
    };
    store.export_audit(&audit::Filter::default(), each).unwrap();
    assert_eq!(sealings, 2);
}

/// The wrapped store receives only sealed secrets.
fn the_wrapped_store_sees_no_secret<S: Store + Bulk + StoredSecrets>(store: S) {
    let store = with_ring(store, &[1]);
    fill(&store, 0..1);
    add_certificates(&store, 0..1);
    import(&store, [row("SN-9")]);
    register(&store, "SN-9", "s3cret");
    let inner = store.inner();
    for stored in ["SN-0", "SN-9"].map(|name| device(inner, name).unwrap().certificate.unwrap().device_secret)
    {
        assert!(stored.expose().starts_with("sealed 1 "), "{}", stored.expose());
    }
    assert!(now(inner.individual_key("id-0")).unwrap().found.unwrap().psk.expose().starts_with("sealed 1 "));
    // If the same secrets are imported again, nothing changes. A different secret is a conflict.
    assert_eq!(
        import(&store, [ImportRow { individual: true, ..with_certificate("SN-0", "s3cret") }]).unchanged,
        1
    );
    assert_eq!(import(&store, [with_key("SN-0", "id-0", PSK)]).unchanged, 1);
    let other = ImportRow { individual: true, ..with_certificate("SN-0", "0ther") };
    let mut columns = Vec::new();
    let reject = &mut |_, rejection| {
        if let Rejection::Conflict(conflict) = rejection {
            columns.push(conflict.column);
        }
    };
    assert!(store.import(job(&by()), &mut [Ok(other)].into_iter(), reject).is_err());
    assert_eq!(columns, ["deviceSecret"]);
    // Without the right database key, single rows and the whole table cannot be read, and each
    // error names the missing key.
    let blind = with_ring(store.into_inner(), &[2]);
    for error in [
        sentence(now(blind.device(&id("SN-0")))),
        sentence(now(blind.rows_after(None, 9))),
        sentence(now(blind.individual_key("id-0"))),
        sentence(blind.export(&mut |_, _| ControlFlow::Continue(()))),
    ] {
        assert!(error.contains(&key_id(1)) && error.contains("database_key_previous"), "{error}");
    }
}

/// Second keys are sealed, opened and replaced like first keys. At the end of a roll, the stored
/// value is moved without a change.
fn second_keys_are_sealed_like_first_ones<S: Store + Bulk + StoredSecrets>(store: S) {
    const NEXT: &str = "ffeeddccbbaa99887766554433221100";
    let rows = || (0..3).map(|number| with_keys(&format!("SN-{number}"), &format!("id-{number}"), PSK, NEXT));
    import(&store, rows());
    assert_eq!((store.count_clear().unwrap(), store.keys_in_use().unwrap()), (6, Vec::<String>::new()));
    let store = with_ring(store, &[1]);
    assert_eq!(store.seal_all(&by(), &mut |_| ()).unwrap().sealed, 6);
    assert_eq!(store.clear_count().unwrap(), 0);
    let stored = |identity: &str| {
        let found = now(store.inner().individual_key(identity)).unwrap().found.unwrap();
        [Some(found.psk), found.next].map(|key| key.map(|key| key.expose().to_owned()))
    };
    let under = |byte, key: &Option<String>| key.as_ref().is_some_and(|key| key.contains(&key_id(byte)));
    assert!(stored("id-1").iter().all(|key| under(1, key)), "{:?}", stored("id-1"));
    let opened = |identity: &str| {
        let found = now(store.individual_key(identity)).unwrap().found.unwrap();
        (found.psk.expose().to_owned(), found.next.map(|next| next.expose().to_owned()))
    };
    assert_eq!(opened("id-1"), (PSK.to_owned(), Some(NEXT.to_owned())));
    assert_eq!(import(&store, rows()).unchanged, 3);
    // A roll that ends moves the stored value, even if it is under a former database key.
    store.set_keys(ring(&[2, 1])).unwrap();
    now(store.end_roll(&id("SN-0"), Ending::Anyway, &by())).unwrap();
    assert!(matches!(&stored("id-0"), [psk, None] if under(1, psk)));
    assert_eq!(opened("id-0"), (NEXT.to_owned(), None));
    // Another roll ends while the values are sealed.
    let mut ends = Some(|| now(store.end_roll(&id("SN-2"), Ending::Anyway, &by())).unwrap());
    let meanwhile = &mut |_| {
        if let Some(end) = ends.take() {
            assert_eq!(end(), Ended::Ended);
        }
    };
    assert_eq!(store.seal_all(&by(), meanwhile).unwrap().sealed, 4);
    assert_eq!(store.inner().keys_in_use().unwrap(), [key_id(2)]);
    assert!(stored("id-1").iter().all(|key| under(2, key)));
    assert_eq!((opened("id-0"), opened("id-2")), ((NEXT.to_owned(), None), (NEXT.to_owned(), None)));
    let mut exported = Vec::new();
    let each = &mut |_, keys: Option<DeviceKeys>| {
        exported.extend(keys.map(|keys| (keys.psk.expose().to_owned(), keys.next.is_some())));
        ControlFlow::Continue(())
    };
    store.export(each).unwrap();
    assert_eq!(exported, [(NEXT.to_owned(), false), (PSK.to_owned(), true), (NEXT.to_owned(), false)]);
}

macro_rules! on_each {
    ($($sentence:ident)*) => {
        mod on_sqlite {
            $(#[test] fn $sentence() {
                let fresh = crate::store::contract::sqlite();
                super::$sentence(fresh.store);
            })*
        }
        mod on_postgres {
            $(#[test] #[ignore = "needs PostgreSQL"] fn $sentence() {
                let fresh = crate::store::contract::postgres();
                super::$sentence(fresh.store);
            })*
        }
        mod in_memory {
            $(#[test] fn $sentence() {
                let fresh = crate::store::contract::memory();
                super::$sentence(fresh.store);
            })*
        }
    };
}

on_each! {
    the_key_of_each_value_is_noted
    values_are_replaced_unless_they_have_changed
    all_values_are_sealed_under_the_first_key
    the_wrapped_store_sees_no_secret
    second_keys_are_sealed_like_first_ones
}
