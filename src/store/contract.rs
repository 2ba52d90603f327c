//! Contract of a store: a test for each statement in the documentation of [`Store`] and [`Bulk`],
//! run on every store. The tests use each store through two handles alternately, as two processes
//! would. The clock of one handle is two hours ahead of the other's. A new store needs a module in
//! the macro `contract` below. The tests for statements about claims are in `contract/claims.rs`.
//! Those on PostgreSQL need what `make clients` installs, so they run only if they are asked for:
//! `cargo test --lib postgres -- --ignored`.

mod alternating;
mod audit_log;
mod claims;
mod finding;
mod imports;
mod key_use;
mod moves;
mod orders;
mod roll;
mod sealing;
mod servers;
mod shelf;
mod sightings;
mod targets;
mod waiting;

use std::ops::ControlFlow;

use self::alternating::Alternating;
use super::{
    audit::{Asked, Asker, AuditEvent},
    claim::{ClaimTime, Owner, Settlement},
    sealed::Sealed,
    *,
};
use crate::{
    device::AskedId,
    seal::{DatabaseKey, KEY_SIZE, Keyring},
    testing::store::{Fuse, Memory},
};

/// Time at which the tests make their claims.
const NOW: ClaimTime = ClaimTime { at: 1000, cloud_offset: None };

/// Difference between the clocks of two handles, in seconds.
const AHEAD: i64 = 2 * 3600;

/// An empty store with two handles, and the folder of the store, which must outlive the store.
struct Fresh<S> {
    store: Alternating<S>,
    _folder: Option<tempfile::TempDir>,
}

fn sqlite() -> Fresh<sqlite::Sqlite> {
    let folder = tempfile::tempdir().unwrap();
    let handle = || sqlite::Sqlite::open(&folder.path().join("certdist.db")).unwrap();
    let (one, other) = (handle(), handle());
    other.clock().set_ahead(AHEAD);
    Fresh { store: Alternating::new(one, other), _folder: Some(folder) }
}

fn memory() -> Fresh<Memory> {
    let one = Memory::default();
    let other = one.in_process(std::sync::Arc::new(Fuse::new(usize::MAX)));
    other.clock().set_ahead(AHEAD);
    Fresh { store: Alternating::new(one, other), _folder: None }
}

fn postgres() -> Fresh<postgres::Postgres> {
    let url = crate::testing::postgres::empty();
    let handle = || postgres::Postgres::open(&url).unwrap();
    let (one, other) = (handle(), handle());
    other.clock().set_ahead(AHEAD);
    Fresh { store: Alternating::new(one, other), _folder: None }
}

/// Wraps both handles of a store, so that its secrets are sealed. The two handles have the same
/// database keys in a different order, as two processes do while the first key is changed.
fn sealed<S>(fresh: Fresh<S>) -> Fresh<Sealed<S>> {
    let key = |byte: u8| DatabaseKey::parse(&hex::encode([byte; KEY_SIZE])).unwrap();
    let Fresh { store, _folder } = fresh;
    let [one, other] = store.into_handles();
    let (one, other) = (
        Sealed::new(one, Keyring::new([key(1), key(2)])),
        Sealed::new(other, Keyring::new([key(2), key(1)])),
    );
    Fresh { store: Alternating::new(one, other), _folder }
}

/// Runs a future to completion, and returns the store's answer.
fn now<T>(future: StoreFuture<'_, T>) -> Result<T, StoreError> {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
}

fn id(text: &str) -> DeviceId {
    DeviceId::parse(text).unwrap()
}

fn by() -> Actor {
    Actor { name: "user anna".into(), address: Some("192.0.2.7".into()) }
}

fn asker() -> Asker {
    Asker { enrollment: "lamps".into(), identity: "SN-1".into(), address: "192.0.2.1".into() }
}

fn row(device: &str) -> ImportRow {
    ImportRow::new(id(device), "lamps", "a1lamp")
}

fn with_certificate(device: &str, secret: &str) -> ImportRow {
    ImportRow {
        device_name: Some(device.into()),
        device_secret: Some(Secret::new(secret.into())),
        ..row(device)
    }
}

fn with_key(device: &str, identity: &str, psk: &str) -> ImportRow {
    ImportRow { individual: true, key: Some((identity.into(), Secret::new(psk.into()))), ..row(device) }
}

/// Returns a row with two keys.
fn with_keys(device: &str, identity: &str, psk: &str, next: &str) -> ImportRow {
    ImportRow { next_key: Some(Secret::new(next.into())), ..with_key(device, identity, psk) }
}

fn entry(device: &str) -> JournalEntry {
    JournalEntry {
        device: id(device),
        product_key: "a1lamp".into(),
        device_name: device.into(),
        target: target::DEFAULT.into(),
    }
}

fn registration(name: &str, secret: &str) -> RegisteredDevice {
    RegisteredDevice {
        certificate: certificate(name, secret),
        iot_id: Some(format!("iot-{name}")),
        registered: 1000,
    }
}

fn certificate(name: &str, secret: &str) -> Certificate {
    Certificate {
        product_key: "a1lamp".into(),
        device_name: name.into(),
        device_secret: Secret::new(secret.into()),
    }
}

fn owner(id: claim::OwnerId) -> Owner {
    Owner { id, name: format!("process {id}") }
}

/// Registers a device with the same calls as the registrar.
fn register(store: &impl Store, device: &str, secret: &str) {
    let settlement = Settlement::Registered(registration(device, secret));
    now(store.claim(&owner(1), &entry(device), NOW)).unwrap();
    now(store.settle(1, &entry(device), &settlement)).unwrap();
}

/// Stores a refusal of a device with the same calls as the registrar.
fn refuse(store: &impl Store, device: &str, reason: &str) {
    now(store.claim(&owner(1), &entry(device), NOW)).unwrap();
    now(store.settle(1, &entry(device), &Settlement::Refused(reason.into()))).unwrap();
}

/// Issues the certificate of a device to a request with the number `issue_id`.
fn issue(store: &impl Store, device: &str, issue_id: i64) -> Result<Issue, StoreError> {
    now(store.record_issue(&id(device), &certificate(device, "s3cret"), issue_id, asker()))
}

fn import(store: &impl Bulk, rows: impl IntoIterator<Item = ImportRow>) -> ImportReport {
    store
        .import(job(&by()), &mut rows.into_iter().map(Ok), &mut |index, rejection| {
            panic!("{index}: {rejection:?}")
        })
        .unwrap()
}

fn job(by: &Actor) -> ImportJob<'_> {
    ImportJob::new(by, "file.csv")
}

fn device(store: &impl Store, device: &str) -> Option<DeviceRow> {
    now(store.device(&id(device))).unwrap()
}

fn events(store: &impl Store, device: &str) -> Vec<(AuditEvent, Option<String>)> {
    let history = now(store.history(&id(device), 100)).unwrap();
    history.into_iter().map(|entry| (entry.event, entry.who)).collect()
}

/// Tests `device`, `enrollment_of` and `individual_key`.
fn a_device_is_found_by_its_id_and_its_key(store: &(impl Store + Bulk)) {
    import(store, [row("SN-1"), with_key("SN-2", "id-2", "00ff")]);
    let expected = DeviceRow::imported(id("SN-1"), "lamps", "a1lamp");
    assert_eq!(device(store, "SN-1"), Some(expected));
    assert_eq!(now(store.enrollment_of(&id("SN-1"))).unwrap().as_deref(), Some("lamps"));
    let key = now(store.individual_key("id-2")).unwrap().found.unwrap();
    assert_eq!((key.device, key.enrollment.as_str(), key.psk.expose()), (id("SN-2"), "lamps", "00ff"));

    assert_eq!(device(store, "SN-3"), None);
    assert_eq!(now(store.enrollment_of(&id("SN-3"))).unwrap(), None);
    assert!(now(store.individual_key("id-1")).unwrap().found.is_none());
}

/// `spelled` and `known_as` find a MAC address that is in the table as a serial number.
fn a_mac_is_found_in_the_spelling_that_the_table_has(store: &(impl Store + Bulk)) {
    let spelling = |text: &str| DeviceId::parse_sn(text).unwrap();
    let rows =
        ["001a-2b3c-4d5e", "00.1A.2b.3c.4d.5f", "0x001a2b3c4d60", "001a2b3c4d61", "001A2B3C4D62", "SN-1"];
    import(store, rows.map(|text| ImportRow { device: spelling(text), ..row("SN") }));
    for (mac, known) in [
        ("001A2B3C4D5E", Some("001a-2b3c-4d5e")),
        ("001A2B3C4D5F", Some("00.1A.2b.3c.4d.5f")),
        ("001A2B3C4D60", Some("0x001a2b3c4d60")),
        ("001A2B3C4D61", Some("001a2b3c4d61")),
        ("001A2B3C4D63", None),
    ] {
        assert_eq!(now(store.spelled(&id(mac))).unwrap(), known.map(spelling), "{mac}");
        let asked = AskedId::parse_label(&mac.to_lowercase()).unwrap();
        assert_eq!(store.known_as(&asked).unwrap(), known.map(spelling), "{mac}");
    }
    let macs = ["001A2B3C4D5E", "001A2B3C4D5F", "001A2B3C4D60", "001A2B3C4D61"].map(id);
    assert_eq!(store.spelled_macs().unwrap(), macs.into());
    assert_eq!(now(store.spelled(&id("001A2B3C4D62"))).unwrap(), None, "it is not another spelling");
    assert_eq!(store.known_as(&id("001A2B3C4D62").into()).unwrap(), Some(id("001A2B3C4D62")));
    assert_eq!(store.known_as(&id("SN-2").into()).unwrap(), None);
    // The requested text takes precedence over another spelling of the same MAC address.
    import(store, [row("001A2B3C4D61")]);
    assert_eq!(
        store.known_as(&AskedId::parse_sn("001a2b3c4d61").unwrap()).unwrap(),
        Some(spelling("001a2b3c4d61"))
    );
    assert_eq!(store.known_as(&AskedId::parse("001a2b3c4d61").unwrap()).unwrap(), Some(id("001A2B3C4D61")));
}

/// `record_issue` records the first issue, and keeps this record until a reset. It writes the audit
/// entry of the first issue in the same step.
fn the_first_issue_is_recorded_once_until_a_reset(store: &(impl Store + Bulk)) {
    import(store, [with_certificate("SN-1", "s3cret")]);
    let first = issue(store, "SN-1", 1).unwrap();
    assert!(first.is_first);
    assert_eq!(issue(store, "SN-1", 2).unwrap(), Issue { is_first: false, ..first });
    assert_eq!(issue(store, "SN-1", 1).unwrap(), first, "the same request again");
    assert_eq!(device(store, "SN-1").unwrap().first_issued, Some(first.first));
    let [issued] = &now(store.history(&id("SN-1"), 100)).unwrap()[..] else { panic!("one entry") };
    assert_eq!((issued.event, issued.at), (AuditEvent::Issued, first.first));
    assert_eq!(issued.detail.as_deref(), Some("a1lamp/SN-1"));
    assert_eq!(issued.address.as_deref(), Some("192.0.2.1"));

    assert!(now(store.reset(&id("SN-1"), &by())).unwrap());
    assert!(issue(store, "SN-1", 1).unwrap().is_first);
}

/// `record_issue` fails if the row has changed since the caller read it.
fn an_issue_needs_the_row_as_it_was_seen(store: &(impl Store + Bulk)) {
    import(store, [with_certificate("SN-1", "s3cret"), row("SN-2")]);
    let is_conflict = |answer: Result<Issue, StoreError>| {
        assert!(matches!(answer, Err(StoreError::Conflict(_))), "{answer:?}");
    };
    is_conflict(issue(store, "SN-2", 1));
    is_conflict(issue(store, "SN-3", 1));
    let renamed = certificate("another", "s3cret");
    is_conflict(now(store.record_issue(&id("SN-1"), &renamed, 1, asker())));
    let stranger = Asker { enrollment: "plugs".into(), ..asker() };
    is_conflict(now(store.record_issue(&id("SN-1"), &certificate("SN-1", "s3cret"), 1, stranger)));
    now(store.set_state(&id("SN-1"), DeviceState::Disabled, &by())).unwrap();
    is_conflict(issue(store, "SN-1", 1));
    let row = device(store, "SN-1").unwrap();
    assert_eq!(row.first_issued, None);
    assert_eq!(events(store, "SN-1").len(), 1, "no issue is logged");
}

/// `history` returns the entries of one device only, newest first, up to a limit.
fn the_history_of_a_device_is_its_own_and_begins_with_the_newest(store: &(impl Store + Bulk)) {
    import(store, [row("SN-1"), row("SN-2")]);
    let refused = Asked::new(AuditEvent::Refused, 7, &id("SN-1"), ("lamps", "x", "y"), format_args!("no"));
    store.audit(refused).unwrap();
    // `audit` returns no answer, and the entry is written in the background.
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
    while events(store, "SN-1").is_empty() {
        assert!(std::time::Instant::now() < deadline, "not written");
        std::thread::yield_now();
    }
    now(store.set_state(&id("SN-2"), DeviceState::Disabled, &by())).unwrap();
    now(store.set_state(&id("SN-1"), DeviceState::Disabled, &by())).unwrap();
    let history = now(store.history(&id("SN-1"), 100)).unwrap();
    let seen: Vec<_> = history.iter().map(|entry| entry.event).collect();
    assert_eq!(seen, [AuditEvent::Disabled, AuditEvent::Refused]);
    assert!(history[0].seq > history[1].seq);
    assert_eq!(now(store.history(&id("SN-1"), 1)).unwrap(), history[..1]);
}

/// `store_sighting` ignores a device whose row does not have, or no longer has, the certificate of
/// `seen`. A stored time of the first sign-in stays as it is.
fn a_sighting_adds_what_the_cloud_tells(store: &(impl Store + Bulk)) {
    import(store, [with_certificate("SN-1", "s3cret"), row("SN-2")]);
    let seen = |device: &DeviceRow, sighting| now(store.store_sighting(device, sighting)).unwrap();
    let row = |name: &str| device(store, name).unwrap();
    let first = Sighting { registered: Some(3), activated: Some(5), state: Some(CloudState::Disabled) };
    let before = row("SN-1");
    seen(&before, first);
    seen(&row("SN-1"), Sighting { activated: Some(9), ..Sighting::default() });
    let after = row("SN-1");
    assert_eq!((after.registered, after.activated, after.cloud_state), (Some(3), Some(5), None));
    // Both calls pass a row that differs from the stored row, as if the device had been registered
    // again in the meantime. So the stored row does not change.
    seen(&before, Sighting { state: Some(CloudState::Deleted), ..Sighting::default() });
    seen(&DeviceRow { device_name: Some("former".into()), ..row("SN-1") }, first);
    assert_eq!(row("SN-1"), after);
    seen(&row("SN-2"), first);
    seen(&DeviceRow { id: id("SN-9"), ..before }, first);
    let row = row("SN-2");
    assert_eq!((row.registered, row.activated, row.cloud_state), (None, None, None));
}

/// `rows_after` returns rows in order of device ID, beginning after the given ID.
fn rows_are_read_in_pages(store: &(impl Store + Bulk)) {
    import(store, ["SN-3", "SN-1", "SN-2"].map(row));
    let page = |after: Option<&str>, limit| {
        let after = after.map(id);
        let rows = now(store.rows_after(after.as_ref(), limit)).unwrap();
        rows.into_iter().map(|row| row.id.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(page(None, 2), ["SN-1", "SN-2"]);
    assert_eq!(page(Some("SN-2"), 2), ["SN-3"]);
    assert_eq!(page(Some("SN-3"), 2), [""; 0]);
    // The ID that is passed need not be in the table.
    assert_eq!(page(Some("SN-1-gone"), 9), ["SN-2", "SN-3"]);
}

/// `set_state`, `reset` and `delete` return whether the device exists, and write an audit entry
/// with the operator's name.
fn an_operators_change_is_logged_with_the_operator(store: &(impl Store + Bulk)) {
    import(store, [row("SN-1")]);
    let device_id = id("SN-1");
    assert!(now(store.set_state(&device_id, DeviceState::Disabled, &by())).unwrap());
    assert_eq!(device(store, "SN-1").unwrap().state, DeviceState::Disabled);
    assert!(now(store.set_state(&device_id, DeviceState::Enabled, &by())).unwrap());
    assert_eq!(device(store, "SN-1").unwrap().state, DeviceState::Enabled);
    assert!(now(store.reset(&device_id, &by())).unwrap());
    assert!(now(store.delete(&device_id, &by())).unwrap());
    let expected = [AuditEvent::Deleted, AuditEvent::Reset, AuditEvent::Enabled, AuditEvent::Disabled];
    assert_eq!(events(store, "SN-1"), expected.map(|event| (event, Some("user anna".to_owned()))));

    assert!(!now(store.set_state(&device_id, DeviceState::Disabled, &by())).unwrap());
    assert!(!now(store.reset(&device_id, &by())).unwrap());
    assert!(!now(store.delete(&device_id, &by())).unwrap());
    assert_eq!(events(store, "SN-1").len(), 4, "nothing was changed");
}

/// `reset` clears the refusal and the first issue, and also the certificate if the cloud has
/// deleted the device.
fn a_reset_forgets_a_certificate_that_the_cloud_has_deleted(store: &(impl Store + Bulk)) {
    import(store, [row("SN-1"), row("SN-2")]);
    refuse(store, "SN-2", "odd");
    now(store.reset(&id("SN-2"), &by())).unwrap();
    assert_eq!(device(store, "SN-2"), Some(DeviceRow::imported(id("SN-2"), "lamps", "a1lamp")));

    register(store, "SN-1", "s3cret");
    issue(store, "SN-1", 1).unwrap();
    now(store.reset(&id("SN-1"), &by())).unwrap();
    let row = device(store, "SN-1").unwrap();
    assert_eq!(row.first_issued, None);
    assert_eq!(row.certificate, Some(certificate("SN-1", "s3cret")));

    let deleted = Sighting { state: Some(CloudState::Deleted), activated: Some(7), registered: None };
    now(store.store_sighting(&row, deleted)).unwrap();
    now(store.reset(&id("SN-1"), &by())).unwrap();
    // The name stays, so that the device is registered again under the same name.
    let expected =
        DeviceRow { device_name: Some("SN-1".into()), ..DeviceRow::imported(id("SN-1"), "lamps", "a1lamp") };
    assert_eq!(device(store, "SN-1"), Some(expected));
}

/// `clear_refusal` clears the refusal only if it is still the refusal that was passed, and writes
/// an audit entry with the operator's name.
fn only_the_refusal_that_was_seen_is_cleared(store: &(impl Store + Bulk)) {
    import(store, [row("SN-1"), row("SN-2")]);
    refuse(store, "SN-1", "odd");
    let clear = |device: &str, refusal: &str| now(store.clear_refusal(&id(device), refusal, &by())).unwrap();
    assert!(!clear("SN-1", "another") && !clear("SN-2", "odd") && !clear("SN-9", "odd"));
    assert!(device(store, "SN-1").unwrap().refusal.is_some());
    assert!(clear("SN-1", "odd"));
    assert_eq!(device(store, "SN-1").unwrap().refusal, None);
    assert!(!clear("SN-1", "odd"), "once");
    assert_eq!(events(store, "SN-1"), [(AuditEvent::Reset, Some("user anna".into()))]);
    assert_eq!(events(store, "SN-2"), []);
}

/// `import` adds no device whose name in its product, or whose `IotId`, belongs to another device.
fn no_two_devices_share_a_name_or_an_iot_id(store: &(impl Store + Bulk)) {
    let named = |device: &str, name: &str| ImportRow { device_name: Some(name.into()), ..row(device) };
    let with_iot_id = |device: &str| ImportRow { iot_id: Some("iot-1".into()), ..row(device) };
    import(store, [row("SN-1"), named("SN-2", "lamp-2"), with_iot_id("SN-3"), row("SN-4")]);
    let before = now(store.rows_after(None, 99)).unwrap();
    let columns = |rows: Vec<ImportRow>| {
        let mut columns = Vec::new();
        let outcome = store.import(job(&by()), &mut rows.into_iter().map(Ok), &mut |index, rejection| {
            let Rejection::Conflict(conflict) = rejection else { panic!("row {index} was read") };
            assert!(conflict.reason.contains("device SN-"), "{}", conflict.reason);
            columns.push((index, conflict.column));
        });
        assert!(matches!(outcome, Err(ImportError::Rejected(_))), "{outcome:?}");
        columns
    };
    // A name conflicts with an equal name in three places: set in the table, derived from a device
    // ID, and in an earlier row of the file.
    assert_eq!(columns(vec![named("SN-5", "lamp-2")]), [(0, "deviceName")]);
    assert_eq!(columns(vec![named("SN-5", "SN-1")]), [(0, "deviceName")]);
    assert_eq!(columns(vec![named("SN-4", "lamp-2")]), [(0, "deviceName")]);
    assert_eq!(columns(vec![row("lamp-2")]), [(0, "deviceName")]);
    assert_eq!(columns(vec![named("SN-5", "new1"), named("SN-6", "new1")]), [(1, "deviceName")]);
    assert_eq!(columns(vec![with_iot_id("SN-5")]), [(0, "iotId")]);
    assert_eq!(columns(vec![with_iot_id("SN-4")]), [(0, "iotId")]);
    assert_eq!(now(store.rows_after(None, 99)).unwrap(), before);
    // The same name in another product is no conflict. A row that is imported again is no conflict
    // either.
    let elsewhere = ImportRow { product_key: Some("a1plug".into()), ..named("SN-5", "lamp-2") };
    assert_eq!(import(store, [elsewhere, with_iot_id("SN-3")]).added, 1);
}

/// `delete` removes the row, the key and the claim.
fn a_deleted_device_leaves_nothing(store: &(impl Store + Bulk)) {
    import(store, [with_key("SN-1", "id-1", "00ff")]);
    now(store.claim(&owner(1), &entry("SN-1"), NOW)).unwrap();
    assert!(now(store.delete(&id("SN-1"), &by())).unwrap());
    assert_eq!(device(store, "SN-1"), None);
    assert!(now(store.individual_key("id-1")).unwrap().found.is_none());
    assert_eq!(now(store.open_entries()).unwrap(), []);
    let settlement = Settlement::Registered(registration("SN-1", "s3cret"));
    assert!(matches!(now(store.settle(1, &entry("SN-1"), &settlement)), Err(StoreError::Conflict(_))));
}

/// `hold`, `release` and `probe` leave the table unchanged.
fn a_probe_changes_nothing(store: &(impl Store + Bulk)) {
    import(store, [row("SN-1")]);
    store.hold();
    let before = now(store.rows_after(None, 9)).unwrap();
    store.release();
    now(store.probe()).unwrap();
    assert_eq!(now(store.rows_after(None, 9)).unwrap(), before);
}

/// A write continues when its future is dropped.
fn a_write_goes_on_without_its_future(store: &(impl Store + Bulk)) {
    import(store, [with_certificate("SN-1", "s3cret")]);
    drop(store.record_issue(&id("SN-1"), &certificate("SN-1", "s3cret"), 1, asker()));
    import(store, [row("SN-2")]);
    now(store.claim(&owner(1), &entry("SN-2"), NOW)).unwrap();
    let settlement = Settlement::Registered(registration("SN-2", "s3cret"));
    drop(store.settle(1, &entry("SN-2"), &settlement));
    let is_issued = || device(store, "SN-1").unwrap().first_issued.is_some();
    let is_registered = || device(store, "SN-2").unwrap().certificate.is_some();
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
    while !is_issued() || !is_registered() {
        assert!(std::time::Instant::now() < deadline, "not written");
        std::thread::yield_now();
    }
}

/// `import` counts added, changed and unchanged rows; a change clears a refusal.
fn an_import_merges_row_by_row(store: &(impl Store + Bulk)) {
    let rows = || [row("SN-1"), with_certificate("SN-2", "s3cret"), with_key("SN-3", "id-3", "00ff")];
    assert_eq!(import(store, rows()), ImportReport { added: 3, ..Default::default() });
    refuse(store, "SN-1", "name is taken");
    assert_eq!(import(store, rows()), ImportReport { unchanged: 3, ..Default::default() });
    assert!(device(store, "SN-1").unwrap().refusal.is_some());

    let renamed = ImportRow { device_name: Some("other".into()), ..row("SN-1") };
    let report = import(store, [renamed, with_key("SN-3", "id-9", "11ee")]);
    assert_eq!(report, ImportReport { changed: 2, lost_keys: 1, ..Default::default() });
    let row = device(store, "SN-1").unwrap();
    assert_eq!((row.device_name.as_deref(), row.refusal), (Some("other"), None));
    assert!(now(store.individual_key("id-3")).unwrap().found.is_none());
    assert_eq!(now(store.individual_key("id-9")).unwrap().found.unwrap().psk.expose(), "11ee");
}

/// `import` deletes the key of a device that moves to an enrollment that is not individual.
fn a_device_that_moves_leaves_its_key(store: &(impl Store + Bulk)) {
    import(store, [with_key("SN-1", "id-1", "00ff")]);
    import(store, [ImportRow::new(id("SN-1"), "plugs", "a1plug")]);
    let row = device(store, "SN-1").unwrap();
    assert_eq!((row.enrollment.as_str(), row.product_key.as_str()), ("plugs", "a1plug"));
    assert!(now(store.individual_key("id-1")).unwrap().found.is_none());
}

/// `import` imports all rows or none, and calls `reject` with the index of each rejected row.
fn an_import_with_a_conflict_changes_nothing(store: &(impl Store + Bulk)) {
    import(store, [with_certificate("SN-1", "s3cret"), with_key("SN-2", "id-2", "00ff")]);
    let before = now(store.rows_after(None, 9)).unwrap();
    let rows = [
        Ok(row("SN-0")),
        Ok(with_certificate("SN-1", "0ther")),
        Err(Unreadable),
        Ok(with_key("SN-3", "id-2", "00ff")),
        Ok(ImportRow { individual: true, ..row("SN-4") }),
    ];
    let mut rejected = Vec::new();
    let outcome = store.import(job(&by()), &mut rows.into_iter(), &mut |index, rejection| match rejection {
        Rejection::Conflict(conflict) => rejected.push((index, conflict.column)),
        Rejection::Unreadable => rejected.push((index, "unreadable")),
        other => panic!("{index}: {other:?}"),
    });
    assert!(matches!(outcome, Err(ImportError::Rejected(4))), "{outcome:?}");
    let expected = [(2, "unreadable"), (1, "deviceSecret"), (3, "pskIdentity"), (4, "pskIdentity")];
    assert_eq!(rejected, expected);
    assert_eq!(now(store.rows_after(None, 9)).unwrap(), before);
}

/// A dry run of `import` reports the same as the import, and changes nothing.
fn a_dry_run_reports_the_same_and_changes_nothing(store: &(impl Store + Bulk)) {
    import(store, [row("SN-1"), row("SN-2")]);
    let rows = || [row("SN-1"), with_certificate("SN-2", "s3cret"), row("SN-3")];
    let by = by();
    let dry_run = ImportJob { dry_run: true, ..job(&by) };
    let report = store.import(dry_run, &mut rows().into_iter().map(Ok), &mut |_, _| ()).unwrap();
    assert_eq!(report, ImportReport { added: 1, changed: 1, unchanged: 1, ..Default::default() });
    assert_eq!(device(store, "SN-2").unwrap().certificate, None);
    assert_eq!(store.count().unwrap(), 2);
    assert_eq!(import(store, rows()), report);
}

/// `export` returns every row with its key, in order of device ID, until `each` returns `Break`.
fn an_export_gives_every_row_with_its_key(store: &(impl Store + Bulk)) {
    import(store, [with_key("SN-2", "id-2", "00ff"), row("SN-1")]);
    let mut seen = Vec::new();
    let each = &mut |row: DeviceRow, keys: Option<super::roll::DeviceKeys>| {
        seen.push((row.id.to_string(), keys.map(|keys| (keys.identity, keys.psk.expose().to_owned()))));
        ControlFlow::Continue(())
    };
    store.export(each).unwrap();
    let key = Some(("id-2".to_owned(), "00ff".to_owned()));
    assert_eq!(seen, [("SN-1".to_owned(), None), ("SN-2".to_owned(), key)]);
    let mut calls = 0;
    let each = &mut |_, _| {
        calls += 1;
        ControlFlow::Break(())
    };
    store.export(each).unwrap();
    assert_eq!(calls, 1);
}

/// Tests `count`, `totals` and `count_unregistered`.
fn totals_count_what_is_true_of_each_device(store: &(impl Store + Bulk)) {
    let other = ImportRow::new(id("SN-9"), "plugs", "a1plug");
    import(store, [row("SN-1"), row("SN-2"), with_certificate("SN-3", "s3cret"), row("SN-4"), other]);
    issue(store, "SN-3", 1).unwrap();
    let seen = device(store, "SN-3").unwrap();
    now(store.store_sighting(&seen, Sighting { activated: Some(7), ..Sighting::default() })).unwrap();
    refuse(store, "SN-2", "no");
    now(store.set_state(&id("SN-4"), DeviceState::Disabled, &by())).unwrap();
    let lamps = Totals {
        enrollment: "lamps".into(),
        devices: 4,
        registered: 1,
        issued: 1,
        activated: 1,
        refused: 1,
        disabled: 1,
        unregistered: 1,
        ..Totals::default()
    };
    let plugs = Totals { enrollment: "plugs".into(), devices: 1, unregistered: 1, ..Totals::default() };
    // The number of unsealed secrets depends on the store's database keys, so it is not compared.
    let totals = || -> Vec<Totals> {
        let totals = store.totals().unwrap();
        totals.into_iter().map(|totals| Totals { clear: 0, ..totals }).collect()
    };
    assert_eq!(totals(), [lamps.clone(), plugs]);
    assert_eq!(store.count().unwrap(), 5);
    let unregistered = |enrollment| store.count_unregistered(enrollment).unwrap();
    assert_eq!([None, Some("lamps"), Some("plugs"), Some("none")].map(unregistered), [2, 1, 1, 0]);

    // The numbers follow each change.
    now(store.store_sighting(&seen, Sighting { state: Some(CloudState::Deleted), ..Sighting::default() }))
        .unwrap();
    assert_eq!(totals()[0], Totals { deleted_at_cloud: 1, ..lamps.clone() });
    now(store.reset(&id("SN-3"), &by())).unwrap();
    import(store, [ImportRow::new(id("SN-2"), "plugs", "a1plug")]);
    now(store.delete(&id("SN-9"), &by())).unwrap();
    now(store.set_state(&id("SN-4"), DeviceState::Enabled, &by())).unwrap();
    register(store, "SN-1", "s3cret");
    let lamps = Totals { devices: 3, registered: 1, unissued: 1, unregistered: 2, ..named("lamps") };
    let plugs = Totals { devices: 1, unregistered: 1, ..named("plugs") };
    assert_eq!(totals(), [lamps, plugs]);
    assert_eq!(store.check_counts().unwrap(), CountCheck { devices: 4, ..CountCheck::default() });
}

fn named(enrollment: &str) -> Totals {
    Totals { enrollment: enrollment.into(), ..Totals::default() }
}

/// Turns each function into a test for each kind of store. Each test gets an empty store.
macro_rules! contract {
    ($($sentence:ident)*) => {
        contract!(on_sqlite: crate::store::contract::sqlite(), $($sentence)*);
        contract!(on_sealed_sqlite: crate::store::contract::sealed(crate::store::contract::sqlite()), $($sentence)*);
        contract!(in_memory: crate::store::contract::memory(), $($sentence)*);
        contract!(in_sealed_memory: crate::store::contract::sealed(crate::store::contract::memory()), $($sentence)*);
        contract!(ignored on_postgres: crate::store::contract::postgres(), $($sentence)*);
        contract!(ignored on_sealed_postgres: crate::store::contract::sealed(crate::store::contract::postgres()), $($sentence)*);
    };
    (ignored $module:ident: $fresh:expr, $($sentence:ident)*) => {
        mod $module {
            $(#[test] #[ignore = "needs PostgreSQL"] fn $sentence() {
                let fresh = $fresh;
                super::$sentence(&fresh.store);
                // After all changes, the kept numbers equal the numbers of the rows.
                let check = crate::store::Bulk::check_counts(&fresh.store).unwrap();
                assert_eq!(check.different, 0, "{check:?}");
            })*
        }
    };
    ($module:ident: $fresh:expr, $($sentence:ident)*) => {
        mod $module {
            $(#[test] fn $sentence() {
                let fresh = $fresh;
                super::$sentence(&fresh.store);
            })*
        }
    };
}
use contract;

contract! {
    a_device_is_found_by_its_id_and_its_key
    a_mac_is_found_in_the_spelling_that_the_table_has
    the_first_issue_is_recorded_once_until_a_reset
    an_issue_needs_the_row_as_it_was_seen
    the_history_of_a_device_is_its_own_and_begins_with_the_newest
    a_sighting_adds_what_the_cloud_tells
    rows_are_read_in_pages
    an_operators_change_is_logged_with_the_operator
    a_reset_forgets_a_certificate_that_the_cloud_has_deleted
    only_the_refusal_that_was_seen_is_cleared
    no_two_devices_share_a_name_or_an_iot_id
    a_deleted_device_leaves_nothing
    a_probe_changes_nothing
    a_write_goes_on_without_its_future
    an_import_merges_row_by_row
    a_device_that_moves_leaves_its_key
    an_import_with_a_conflict_changes_nothing
    a_dry_run_reports_the_same_and_changes_nothing
    an_export_gives_every_row_with_its_key
    totals_count_what_is_true_of_each_device
}
