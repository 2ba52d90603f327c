//! Tests of copies between stores of each kind, in both directions, with every kind of record.

use std::{
    cell::Cell,
    path::{Path, PathBuf},
    time::Duration,
};

use rusqlite::Connection;

use super::*;
use crate::{
    device::DeviceId,
    seal::{DatabaseKey, KEY_SIZE},
    store::{
        Bulk, Condition, Copying, DeviceState, Store,
        audit::{Asked, AuditLog},
        copy_between, examine,
        postgres::Postgres,
        sqlite::Sqlite,
    },
    testing::postgres,
};

/// A database in which each table has rows, with `$1`, `$2` and `$3` for secrets.
const EVERY_KIND: &str = "
    INSERT INTO device_table (deviceId, registerTime, activateTime, productKey, deviceName, deviceSecret, IotId,
        enrollment, state, firstIssued, cloudState, issueId, importId, target) VALUES
        ('SN-1', 100, 200, 'a1lamp', 'lamp-1', '$1', 'iot-1', 'lamps', 'enabled', 150, 'disabled', -7, 4000000000, 'cn'),
        ('SN-2', NULL, NULL, 'a1lamp', NULL, NULL, NULL, 'lamps', 'disabled', NULL, NULL, NULL, -4000000000, NULL);
    INSERT INTO device_table (deviceId, productKey, enrollment, refusal) VALUES
        ('SN-3', 'a1lamp', 'lamps', 'NoPermission: 不允许');
    INSERT INTO device_table (deviceId, productKey, enrollment) VALUES
        ('SN-4', 'a1lamp', 'lamps'), ('SN-5', 'a1plug', 'plugs'), ('001a-2b3c-4d5e', 'a1plug', 'plugs'),
        ('001A2B3C4D5F', 'a1plug', 'plugs'), ('sn-1', 'a1plug', 'plugs');
    INSERT INTO device_key VALUES ('id-1', 'SN-1', '$2', '$3', 300, 310, NULL), ('Id-2', 'SN-2', '$2b', NULL, NULL, NULL, NULL);
    INSERT INTO import_number VALUES (7), (4000000000);
    INSERT INTO import VALUES (3, 4000000000, 400, 'user anna', 'a.csv', 2, 4, NULL), (5, 7, 500, 'user anna', 'b.csv', 0, 1, 600);
    INSERT INTO import_before (importId, deviceId, former, enrollment, productKey, deviceName, IotId, refusal, hadSecret,
        keyChange, late, target, addedNext) VALUES
        (4000000000, 'SN-1', NULL, 'lamps', 'a1lamp', 'lamp-1', 'iot-1', NULL, 1, 'added', 2, 'cn', 1),
        (4000000000, 'SN-2', 7, 'lamps', 'a1lamp', NULL, NULL, 'refused', 0, 'lost', NULL, NULL, 0),
        (4000000000, 'SN-3', NULL, 'lamps', 'a1lamp', NULL, NULL, NULL, 0, NULL, 1, NULL, 0);
    INSERT INTO key_use VALUES ('lamps', '0011223344556677', 10, 20, NULL), ('plugs', '8899aabbccddeeff', 1, 2, 3);
    INSERT INTO device_waiting VALUES ('SN-8', 'lamps', 1, 2, 3, '192.0.2.1'), ('SN-8', 'plugs', 4, 5, 6, '2001:db8::/64'),
        ('SN-9', 'lamps', 7, 8, 9, '192.0.2.2');
    INSERT INTO registration_owner VALUES (11, 'serve 12', 3, 400);
    INSERT INTO registration_batch VALUES (13, 'a1lamp', -5, 600, 11, 'default'), (14, 'a1plug', NULL, 601, NULL, 'cn');
    INSERT INTO registration_claim (deviceId, productKey, deviceName, openedAt, cloudOffset, batchId, owner, asked, enrollment,
        target) VALUES ('SN-4', 'a1lamp', 'SN-4', 700, -3, 13, 11, 3, 'lamps', 'default'),
        ('SN-5', 'a1plug', 'SN-5', 701, NULL, NULL, NULL, 2, NULL, 'cn');
    INSERT INTO kept_place VALUES ('SN-5', 'plugs');
    INSERT INTO cloud_order (number, deviceId, work, productKey, deviceName, IotId, orderedAt, who, address, failure, target,
        isConfirmed, fromTarget, toTarget, toProduct, former, askedAt, cloudOffset, isStored) VALUES
        (3, 'SN-1', 'move', 'a1lamp', 'lamp-1', 'iot-1', 800, 'user anna', '192.0.2.9', 'Throttled', 'fra', 1, 'cn', 'fra',
            'a1far', 'delete', 810, 4, 1),
        (9, 'SN-2', 'disable', 'a1lamp', 'SN-2', NULL, 801, 'user anna', NULL, NULL, 'default', 0, NULL, NULL, NULL, NULL,
            NULL, NULL, 0);
    INSERT INTO call_pace VALUES ('0011 RegisterDevice', 12);
    INSERT INTO lease VALUES ('sweep', 11, '{}');
    INSERT INTO audit_repeat (number, event, deviceId, enrollment, who, detail, count, first, last, address, firstAddress) VALUES
        (21, 'reissued', 'SN-1', 'lamps', 'id-1', 'a1lamp/lamp-1', 2, 86400, 86500, '192.0.2.1', '192.0.2.7'),
        (22, 'refused', 'SN-7', NULL, 'id-7', NULL, 1, 86401, 86401, NULL, NULL),
        (23, 'reissued', 'SN-1', 'lamps', 'id-1', 'a1lamp/lamp-1', 3, 86300, 86501, '192.0.2.3', NULL),
        (24, 'reissued', 'SN-1', 'lamps', 'id-1', 'a1lamp/lamp-1', 1, 172800, 172800, '192.0.2.3', NULL);";

fn key(byte: u8) -> DatabaseKey {
    DatabaseKey::parse(&hex::encode([byte; KEY_SIZE])).unwrap()
}

fn ring(bytes: &[u8]) -> Keyring {
    Keyring::new(bytes.iter().copied().map(key))
}

fn by() -> Actor {
    Actor { name: "user anna".into(), address: None }
}

fn id(text: &str) -> DeviceId {
    DeviceId::parse_sn(text).unwrap()
}

fn ready<T>(future: crate::store::StoreFuture<'_, T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(future).unwrap()
}

const SECRET: &str = "secret00000000000000000000000001";
const PSK: &str = "00112233445566778899aabbccddeeff";
const NEXT: &str = "a0112233445566778899aabbccddeeff";

/// Creates a database with every kind of record, sealed under the first of these keys.
fn every_kind(path: &Path, keys: &Keyring) {
    drop(Sqlite::open(path).unwrap());
    let seal = |place, clear| keys.seal(place, clear).unwrap().expose().to_owned();
    let psk = |device, identity, clear| seal(Place::Psk { device, identity }, clear);
    let sql = EVERY_KIND
        .replace("$1", &seal(Place::DeviceSecret("SN-1"), SECRET))
        .replace("$2b", &psk("SN-2", "Id-2", PSK))
        .replace("$2", &psk("SN-1", "id-1", PSK))
        .replace("$3", &psk("SN-1", "id-1", NEXT));
    let connection = Connection::open(path).unwrap();
    connection.pragma_update(None, "foreign_keys", true).unwrap();
    connection.execute_batch(&sql).unwrap();
    let noted = keys.first().map_or("clear".into(), |key| key.to_string());
    connection.execute("INSERT INTO database_key (keyId, firstUsed) VALUES (?1, 1)", [noted]).unwrap();
    drop(connection);
    let store = Sqlite::open(path).unwrap();
    for _ in 0..2 {
        store.audit(refused("SN-4")).unwrap();
    }
    // More entries than one block of the audit log of the copy has.
    for number in 0..700 {
        let state = if number % 2 == 0 { DeviceState::Disabled } else { DeviceState::Enabled };
        assert!(ready(store.set_state(&id("SN-3"), state, &by())));
    }
}

fn refused(device: &str) -> Asked {
    let entry = AuditEntry::new(AuditEvent::Refused, 5);
    Asked::of(&AuditEntry { device: Some(id(device)), who: Some("id-4".into()), ..entry })
}

/// Copies between two URLs.
fn copy(from: &str, to: &str, keys: &Keyring) -> Result<Report, StoreError> {
    copy_between(&Copying { from, to, keys: Some(keys), by: &by(), anyway: false }, &mut |_, _, _| ())
}

fn refusal(from: &str, to: &str, keys: &Keyring) -> String {
    copy(from, to, keys).unwrap_err().to_string()
}

/// Reads all records of a store, except the entry about the copy.
fn records(store: &dyn Readable, keys: &Keyring, copied: bool) -> Vec<(Part, Vec<String>)> {
    let read = |part| {
        let mut all = Vec::new();
        store
            .read(part, 0, &mut |record| {
                let shown = record.iter().enumerate().map(|(column, value)| match value {
                    Value::None => "NULL".into(),
                    Value::Number(number) => number.to_string(),
                    Value::Text(text) => match place(part, column, &record) {
                        Some(place) => keys.open(place, text.expose()).unwrap().expose().to_owned(),
                        None => text.expose().to_owned(),
                    },
                });
                all.push(shown.collect::<Vec<_>>().join("|"));
                Ok(())
            })
            .unwrap();
        if part == Part::Entries && copied {
            assert!(all.pop().unwrap().contains("\"copied\""));
        }
        (part, all)
    };
    Part::ALL.map(read).into()
}

/// A folder with databases.
struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn url(&self, name: &str) -> String {
        format!("sqlite:{}", self.path(name).display())
    }
}

/// Returns the URL of an empty schema, with a name of its own for its connections.
fn empty_schema() -> String {
    let url = postgres::empty();
    let schema = url.rsplit("%3D").next().unwrap().to_owned();
    url.replace('?', &format!("?application_name={schema}&"))
}

fn sqlite_source(path: &Path) -> Box<dyn Source> {
    Box::new(Sqlite::copy_source(path, |_| Ok(())).unwrap())
}

fn postgres_source(url: &str) -> Box<dyn Source> {
    // A connection of a process that has ended may stay open for a moment, so connections are ignored.
    Box::new(Postgres::copy_source(url, |_| Ok(()), true).unwrap())
}

#[test]
fn every_kind_of_record_is_copied() {
    let (folder, keys) = (Folder::new(), ring(&[1]));
    every_kind(&folder.path("a.db"), &keys);
    let report = copy(&folder.url("a.db"), &folder.url("b.db"), &keys).unwrap();
    let expected = records(&*sqlite_source(&folder.path("a.db")), &keys, false);
    for ((part, count), (_, records)) in report.records.iter().zip(&expected) {
        assert_eq!(*count, records.len() as u64, "{part:?}");
        assert!(*count > 0, "{part:?} is not tested");
    }
    assert_eq!(records(&*sqlite_source(&folder.path("b.db")), &keys, true), expected);
    let Some((_, repeats)) = expected.iter().find(|(part, _)| *part == Part::Repeats) else { panic!() };
    // The two rows about the same requests are one record.
    let same = "reissued|SN-1|lamps|id-1|a1lamp/lamp-1|5|86300|86501|192.0.2.3|192.0.2.3";
    assert!(repeats.contains(&same.to_owned()), "{repeats:?}");
    assert_eq!(repeats.iter().filter(|record| record.starts_with("reissued|SN-1")).count(), 2);
}

/// Checks that a copy of [`every_kind`] serves as the original does.
fn serves(store: &(impl Store + AuditLog)) {
    let row = ready(store.device(&id("SN-1"))).unwrap();
    assert_eq!((row.first_issued, row.registered, row.target.as_deref()), (Some(150), Some(100), Some("cn")));
    assert_eq!(
        ready(store.spelled(&DeviceId::parse_mac("001A2B3C4D5E").unwrap())),
        Some(id("001a-2b3c-4d5e"))
    );
    assert!(ready(store.individual_key("id-1")).are_rolling);
    assert!(store.verify_audit(&mut |_, _| ()).unwrap().fault.is_none());
    // In the copy, no process owns the registration that had begun, so any process can continue it.
    assert_eq!(ready(store.abandoned("cn", 10)).len(), 1);
    assert!(ready(store.set_state(&id("SN-3"), DeviceState::Disabled, &by())));
    assert!(ready(store.history(&id("SN-3"), 1000)).len() >= 700);
}

#[test]
#[ignore = "needs PostgreSQL"]
fn a_copy_to_postgres_and_back_has_every_record() {
    let (folder, keys) = (Folder::new(), ring(&[1]));
    every_kind(&folder.path("a.db"), &keys);
    let url = empty_schema();
    copy(&folder.url("a.db"), &url, &keys).unwrap();
    let expected = records(&*sqlite_source(&folder.path("a.db")), &keys, false);
    assert_eq!(records(&*postgres_source(&url), &keys, true), expected);
    // The entry about the first copy is in the second one.
    let there = records(&*postgres_source(&url), &keys, false);
    let how = Copying { from: &url, to: &folder.url("c.db"), keys: Some(&keys), by: &by(), anyway: true };
    copy_between(&how, &mut |_, _, _| ()).unwrap();
    assert_eq!(records(&*sqlite_source(&folder.path("c.db")), &keys, true), there);
    serves(&Sqlite::open(&folder.path("c.db")).unwrap());
    let copied = Postgres::open(&url).unwrap();
    serves(&copied);
    let counted = copied.check_counts().unwrap();
    assert!(counted.devices > 0 && counted.different == 0, "{counted:?}");
    drop(copied);
    // New rows get numbers that no copied row has.
    postgres::run(
        &url,
        "INSERT INTO cloud_order (deviceId, work, productKey, deviceName, orderedAt, who, target) \
         VALUES ('SN-3', 'disable', 'p', 'n', 1, 'w', 't'); \
         INSERT INTO audit_repeat (deviceId, day, kind, event, count, first, last) \
         VALUES ('SN-3', 9, 'kind', 'refused', 1, 1, 1); \
         DO $$ BEGIN IF (SELECT number FROM cloud_order WHERE deviceId = 'SN-3') <> 10 \
         THEN RAISE EXCEPTION 'an order has a former number'; END IF; END $$",
    );
}

#[test]
#[ignore = "needs PostgreSQL"]
fn devices_that_an_import_hides_in_postgres_are_not_copied() {
    let url = empty_schema();
    drop(Postgres::open(&url).unwrap());
    postgres::run(
        &url,
        "INSERT INTO import_unfinished (id, importId, at, who, file) VALUES (0, 7, 1, 'anna', 'devices.csv')",
    );
    let refused = Postgres::copy_source(&url, |_| Ok(()), true).err().expect("an import was cut off");
    assert!(refused.to_string().contains("an import was cut off"), "{refused}");
}

/// A target that fails before or after one of its steps, like a killed process, or that falsifies a
/// record.
struct Faulty<'t> {
    target: &'t dyn Target,
    steps: Cell<usize>,
    is_done_first: bool,
    spoils: Option<Part>,
}

impl Faulty<'_> {
    fn step(&self, work: impl FnOnce() -> Result<(), StoreError>) -> Result<(), StoreError> {
        let killed = || Err(StoreError::Failed("killed".into()));
        match self.steps.get() {
            0 if self.is_done_first => work().and_then(|()| killed()),
            0 => killed(),
            steps => {
                self.steps.set(steps - 1);
                work()
            }
        }
    }
}

impl Readable for Faulty<'_> {
    fn read(&self, part: Part, skip: u64, each: EachRecord<'_>) -> Result<(), StoreError> {
        self.target.read(part, skip, each)
    }

    fn verify_audit(&self) -> Result<Chain, StoreError> {
        self.target.verify_audit()
    }
}

impl Target for Faulty<'_> {
    fn begin(&self, id: &str, source: &str, anchor: (u64, Link)) -> Result<(), StoreError> {
        self.step(|| self.target.begin(id, source, anchor))
    }

    fn count(&self, part: Part) -> Result<u64, StoreError> {
        self.target.count(part)
    }

    fn write(&self, part: Part, done: u64, records: &[Record]) -> Result<(), StoreError> {
        let mut records = records.to_vec();
        if self.spoils == Some(part) {
            spoil(part, &mut records[0]);
        }
        self.step(|| self.target.write(part, done, &records))
    }

    fn complete(&self, entry: &AuditEntry) -> Result<(), StoreError> {
        self.step(|| self.target.complete(entry))
    }
}

/// Changes one value of a record, in a column on which no other record depends.
fn spoil(part: Part, record: &mut Record) {
    let changed = match part {
        Part::Devices => "productKey",
        Part::Keys => "psk",
        Part::Entries => "line",
        Part::Places => "enrollment",
        Part::ImportNumbers => "importId",
        Part::Before => "refusal",
        Part::KeyUses => "handshakes",
        Part::Waiting | Part::Repeats => "count",
        Part::Batches | Part::Claims => "openedAt",
        Part::Imports => "at",
        Part::Orders => "orderedAt",
    };
    let index = part.columns().iter().position(|column| column.name == changed).unwrap();
    record[index] = match &record[index] {
        Value::Number(number) => Value::Number(number + 1),
        Value::Text(text) if part == Part::Entries => Value::text(text.expose().replace("anna", "otto")),
        _ => Value::text("ffffffffffffffffffffffffffffffff"),
    };
}

/// Opens the same target at each call.
type Opens = Box<dyn Fn() -> Box<dyn Target>>;

/// Runs a copy that is cut off at each step in turn, and continues it.
fn cut_off_at_each_step(new_target: &dyn Fn() -> (String, Opens), is_refused: &dyn Fn(&str) -> bool) {
    let (folder, keys) = (Folder::new(), ring(&[]));
    every_kind(&folder.path("a.db"), &keys);
    let source = sqlite_source(&folder.path("a.db"));
    let expected = records(&*source, &keys, false);
    for is_done_first in [false, true] {
        for steps in 0.. {
            let (url, open) = new_target();
            let faulty = |target| Faulty { target, steps: Cell::new(steps), is_done_first, spoils: None };
            let first = run(&*source, &faulty(&*open()), &keys, &by(), &mut |_, _, _| ());
            if first.is_ok() {
                // The beginning, all parts and the end are steps.
                assert_eq!(steps, Part::ALL.len() + 2);
                break;
            }
            let is_complete = is_done_first && steps == Part::ALL.len() + 1;
            let has_begun = steps > 0 || is_done_first;
            assert_eq!(is_refused(&url), has_begun && !is_complete, "step {steps}");
            if is_complete {
                continue;
            }
            let target = open();
            let report = run(&*source, &*target, &keys, &by(), &mut |_, _, _| ()).unwrap();
            assert_eq!(report.resumed_at > 0, steps + usize::from(is_done_first) > 1, "step {steps}");
            assert_eq!(records(&*target, &keys, true), expected, "step {steps}");
            drop(target);
            assert!(!is_refused(&url) && examine(&url).unwrap() == Condition::Current);
        }
    }
}

#[test]
fn a_copy_that_is_cut_off_at_any_step_is_continued() {
    let folder = Folder::new();
    let number = Cell::new(0);
    cut_off_at_each_step(
        &|| {
            number.set(number.get() + 1);
            let name = format!("{}.db", number.get());
            let path = folder.path(&name);
            let open = move || -> Box<dyn Target> { Box::new(Sqlite::copy_target(&path).unwrap()) };
            (folder.url(&name), Box::new(open))
        },
        &|url| {
            let error = crate::store::open(url, Keyring::default()).err().map(|error| error.to_string());
            let is_refused = error.is_some_and(|error| error.contains("a copy into it is not complete"));
            let looked = crate::store::look(url, Keyring::default()).err().map(|error| error.to_string());
            assert_eq!(
                is_refused,
                looked.is_some_and(|error| error.contains("a copy into it is not complete"))
            );
            if !is_refused {
                // Only the schema was created.
                let _ = crate::store::remove_unused(url);
            }
            is_refused
        },
    );
}

#[test]
#[ignore = "needs PostgreSQL"]
fn a_copy_to_postgres_that_is_cut_off_at_any_step_is_continued() {
    cut_off_at_each_step(
        &|| {
            let url = empty_schema();
            let to = url.clone();
            let open = move || -> Box<dyn Target> { Box::new(Postgres::copy_target(&to).unwrap()) };
            (url, Box::new(open))
        },
        &|url| {
            let error = examine(url).err().map(|error| error.to_string());
            error.is_some_and(|error| error.contains("a copy into it is not complete"))
        },
    );
}

#[test]
fn a_record_that_differs_in_the_copy_is_found() {
    let (folder, keys) = (Folder::new(), ring(&[]));
    every_kind(&folder.path("a.db"), &keys);
    let source = sqlite_source(&folder.path("a.db"));
    for part in Part::ALL {
        let path = folder.path(&format!("{}.db", part.name()));
        let target = Sqlite::copy_target(&path).unwrap();
        let faulty = Faulty {
            target: &target,
            steps: Cell::new(usize::MAX),
            is_done_first: false,
            spoils: Some(part),
        };
        let error = run(&*source, &faulty, &keys, &by(), &mut |_, _, _| ()).unwrap_err().to_string();
        assert!(error.contains("not what was copied") && error.contains(part.name()), "{part:?}: {error}");
        assert!(!error.contains(PSK) && !error.contains(SECRET) && !error.contains("ffff"), "{error}");
        drop(target);
        let refused = examine(&format!("sqlite:{}", path.display())).unwrap_err().to_string();
        assert!(refused.contains("a copy into it is not complete"), "{refused}");
    }
}

/// A source that changes while it is copied.
struct Changing<'s>(&'s dyn Source);

impl Readable for Changing<'_> {
    fn read(&self, part: Part, skip: u64, each: EachRecord<'_>) -> Result<(), StoreError> {
        self.0.read(part, skip, each)
    }

    fn verify_audit(&self) -> Result<Chain, StoreError> {
        self.0.verify_audit()
    }
}

impl Source for Changing<'_> {
    fn contents(&self) -> Result<Contents, StoreError> {
        self.0.contents()
    }

    fn newest(&self) -> Result<Contents, StoreError> {
        let contents = self.0.newest()?;
        Ok(Contents { last: contents.last + 1, ..contents })
    }

    fn shown(&self) -> String {
        self.0.shown()
    }
}

#[test]
fn a_copy_of_a_source_that_has_changed_meanwhile_is_not_completed() {
    let (folder, keys) = (Folder::new(), ring(&[]));
    every_kind(&folder.path("a.db"), &keys);
    let source = sqlite_source(&folder.path("a.db"));
    let target = Sqlite::copy_target(&folder.path("b.db")).unwrap();
    let error = run(&Changing(&*source), &target, &keys, &by(), &mut |_, _, _| ()).unwrap_err().to_string();
    assert!(error.contains("changed while it was copied"), "{error}");
    drop(target);
    let refused = examine(&folder.url("b.db")).unwrap_err().to_string();
    assert!(refused.contains("a copy into it is not complete"), "{refused}");
}

#[test]
fn secrets_are_sealed_under_the_first_key_of_the_copy() {
    let folder = Folder::new();
    let stored = |name: &str| -> (String, String) {
        let connection = Connection::open(folder.path(name)).unwrap();
        let secret = connection.query_row(
            "SELECT deviceSecret FROM device_table WHERE deviceId = 'SN-1'",
            (),
            |row| row.get(0),
        );
        let psk = connection
            .query_row("SELECT pskNext FROM device_key WHERE deviceId = 'SN-1'", (), |row| row.get(0));
        (secret.unwrap(), psk.unwrap())
    };
    every_kind(&folder.path("one.db"), &ring(&[1]));
    copy(&folder.url("one.db"), &folder.url("same.db"), &ring(&[1, 2])).unwrap();
    assert_eq!(stored("same.db"), stored("one.db"), "what is sealed under the first key stays as it is");
    copy(&folder.url("one.db"), &folder.url("two.db"), &ring(&[2, 1])).unwrap();
    let two = key(2).id().to_string();
    for value in [stored("two.db").0, stored("two.db").1] {
        assert_eq!(seal::key_of(&value), Some(&*two));
    }
    assert_eq!(Sqlite::keys_in_use_of(&folder.path("two.db")).unwrap(), [two]);
    every_kind(&folder.path("clear.db"), &ring(&[]));
    copy(&folder.url("clear.db"), &folder.url("sealed.db"), &ring(&[2])).unwrap();
    assert_eq!(Sqlite::clear_secrets(&folder.path("sealed.db")).unwrap(), 0);
    copy(&folder.url("clear.db"), &folder.url("still.db"), &ring(&[])).unwrap();
    assert_eq!(Sqlite::clear_secrets(&folder.path("still.db")).unwrap(), 4);

    for keys in [ring(&[]), ring(&[2])] {
        let error = refusal(&folder.url("one.db"), &folder.url("new.db"), &keys);
        assert!(error.contains("sealed under key"), "{error}");
        assert!(!folder.path("new.db").exists(), "nothing is written before");
    }
}

#[test]
fn a_copy_is_refused_before_anything_is_written() {
    let (folder, keys) = (Folder::new(), ring(&[]));
    every_kind(&folder.path("a.db"), &keys);
    let a = folder.url("a.db");
    let error = refusal(&a, &a, &keys);
    assert!(error.contains("copied to itself"), "{error}");
    std::os::unix::fs::symlink(folder.path("a.db"), folder.path("link.db")).unwrap();
    let error = refusal(&a, &folder.url("link.db"), &keys);
    assert!(error.contains("copied to itself"), "{error}");
    drop(Sqlite::open(&folder.path("full.db")).unwrap());
    let error = refusal(&a, &folder.url("full.db"), &keys);
    assert!(error.contains("a database already"), "{error}");
    let error = refusal(&folder.url("none.db"), &folder.url("new.db"), &keys);
    assert!(error.contains("there is no database"), "{error}");
    let error = refusal(&a, "sqlite:/no/such/folder/new.db", &keys);
    assert!(error.contains("/no/such/folder"), "{error}");

    let server = Sqlite::open(&folder.path("a.db")).unwrap();
    let error = refusal(&a, &folder.url("new.db"), &keys);
    assert!(error.contains("in use by") && error.contains("stop the server first"), "{error}");
    drop(server);

    let older = folder.path("older.db");
    drop(Sqlite::open(&older).unwrap());
    Connection::open(&older).unwrap().pragma_update(None, "user_version", 9).unwrap();
    let error = refusal(&folder.url("older.db"), &folder.url("new.db"), &keys);
    assert!(error.contains("version 9"), "{error}");

    let broken = folder.path("broken.db");
    every_kind(&broken, &keys);
    let change = "UPDATE audit_block SET entries = replace(entries, 'anna', 'otto') WHERE lastSeq = 5";
    assert_eq!(Connection::open(&broken).unwrap().execute(change, ()).unwrap(), 1);
    let error = refusal(&folder.url("broken.db"), &folder.url("new.db"), &keys);
    assert!(error.contains("audit log is not complete"), "{error}");
    assert!(!folder.path("new.db").exists());
}

#[test]
fn a_part_of_another_copy_is_not_continued() {
    let (folder, keys) = (Folder::new(), ring(&[]));
    every_kind(&folder.path("a.db"), &keys);
    {
        let (source, target) =
            (sqlite_source(&folder.path("a.db")), Sqlite::copy_target(&folder.path("b.db")).unwrap());
        let faulty = Faulty { target: &target, steps: Cell::new(3), is_done_first: false, spoils: None };
        run(&*source, &faulty, &keys, &by(), &mut |_, _, _| ()).unwrap_err();
    }
    // The source changes between the two runs.
    let store = Sqlite::open(&folder.path("a.db")).unwrap();
    assert!(ready(store.set_state(&id("SN-1"), DeviceState::Disabled, &by())));
    drop(store);
    let error = refusal(&folder.url("a.db"), &folder.url("b.db"), &keys);
    assert!(error.contains("a part of another copy"), "{error}");
    // An incomplete copy cannot be a source either.
    let error = refusal(&folder.url("b.db"), &folder.url("c.db"), &keys);
    assert!(error.contains("a copy into it is not complete"), "{error}");
}

#[test]
#[ignore = "needs PostgreSQL"]
fn a_copy_from_postgres_is_refused_while_a_server_is_alive() {
    let (folder, keys, url) = (Folder::new(), ring(&[]), empty_schema());
    let to = folder.url("b.db");
    let server = Postgres::open(&url).unwrap();
    let error = refusal(&url, &to, &keys);
    assert!(error.contains("in use by a connection from") && error.contains("--anyway"), "{error}");
    let anyway = |to: &str| {
        let how = Copying { from: &url, to, keys: Some(&keys), by: &by(), anyway: true };
        copy_between(&how, &mut |_, _, _| ())
    };
    // An owner beats, so its process is alive, even if connections are ignored.
    postgres::run(&url, "INSERT INTO registration_owner VALUES (1, 'serve 12', 0, 0)");
    let is_over = std::sync::atomic::AtomicBool::new(false);
    let error = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.load(std::sync::atomic::Ordering::Relaxed) {
                postgres::run(&url, "UPDATE registration_owner SET beats = beats + 1");
                std::thread::sleep(Duration::from_millis(100));
            }
        });
        let refused = anyway(&to);
        is_over.store(true, std::sync::atomic::Ordering::Relaxed);
        refused.unwrap_err().to_string()
    });
    assert!(error.contains("in use by serve 12"), "{error}");
    assert!(!folder.path("b.db").exists());
    // The owner is dead, and its claims are abandoned in the copy.
    anyway(&to).unwrap();
    drop(server);
    let full = refusal(&folder.url("b.db"), &url, &keys);
    assert!(full.contains("tables of certdist already"), "{full}");
}

#[test]
#[ignore = "needs PostgreSQL"]
fn a_copy_to_postgres_names_what_it_cannot_hold() {
    let (folder, keys) = (Folder::new(), ring(&[]));
    for (name, rows, expected) in [
        (
            "names.db",
            "('SN-1', 'p', 'e', 'same', NULL), ('SN-2', 'p', 'e', 'same', NULL)",
            "have the name same",
        ),
        ("ids.db", "('SN-1', 'p', 'e', NULL, 'iot-1'), ('SN-2', 'p', 'e', NULL, 'iot-1')", "device_iot_id"),
    ] {
        drop(Sqlite::open(&folder.path(name)).unwrap());
        let insert = format!(
            "INSERT INTO device_table (deviceId, productKey, enrollment, deviceName, IotId) VALUES {rows}"
        );
        Connection::open(folder.path(name)).unwrap().execute(&insert, ()).unwrap();
        let error = refusal(&folder.url(name), &empty_schema(), &keys);
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
#[ignore = "needs PostgreSQL"]
fn a_change_after_the_snapshot_of_postgres_is_found() {
    let (folder, keys, url) = (Folder::new(), ring(&[]), empty_schema());
    every_kind(&folder.path("a.db"), &keys);
    copy(&folder.url("a.db"), &url, &keys).unwrap();
    let source = postgres_source(&url);
    // A server has started meanwhile.
    let server = Postgres::open(&url).unwrap();
    assert!(ready(server.set_state(&id("SN-3"), DeviceState::Disabled, &by())));
    let target = Sqlite::copy_target(&folder.path("b.db")).unwrap();
    let error = run(&*source, &target, &keys, &by(), &mut |_, _, _| ()).unwrap_err().to_string();
    assert!(error.contains("changed while it was copied"), "{error}");
}
