//! Tests of what only a database on a server can meet: other servers, other tables, lost connections.

use std::{
    ops::ControlFlow,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use rand::{RngExt, SeedableRng, rngs::StdRng};

use super::{Postgres, engine::wait};
use crate::{
    device::{Certificate, DeviceId, Secret},
    store::{
        Actor, Bulk, Condition, ImportError, ImportJob, ImportRow, ImportStage, JournalEntry,
        RegisteredDevice, Store, StoreError, StoreFuture,
        audit::{Asked, Asker, AuditEvent, AuditLog, Filter},
        claim::{ClaimTime, Claimed, Claims, Owner, Settlement},
        order::{Begun, Former, Move, Moved, Order, Orders, Placed},
        place::CountsPlaces,
        roll::{Ended, Ending, Rolls},
        undo::{ImportId, Undo},
    },
    testing::postgres,
};

mod importing;
mod lost_answers;
mod order_of_locks;

const NOW: ClaimTime = ClaimTime { at: 1000, cloud_offset: None };

fn id(number: u64) -> DeviceId {
    DeviceId::parse(&format!("SN-{number:03}")).unwrap()
}

fn owner(id: i64) -> Owner {
    Owner { id, name: format!("process {id}") }
}

fn entry(number: u64) -> JournalEntry {
    JournalEntry {
        device: id(number),
        product_key: "a1lamp".into(),
        device_name: id(number).device_name(),
        target: "default".into(),
    }
}

fn registered(number: u64) -> Settlement {
    let certificate = Certificate {
        product_key: "a1lamp".into(),
        device_name: id(number).device_name(),
        device_secret: Secret::new(format!("s3cret-{number}")),
    };
    Settlement::Registered(RegisteredDevice {
        certificate,
        iot_id: Some(format!("iot-{number}")),
        registered: 1000,
    })
}

fn by() -> Actor {
    Actor { name: "user anna".into(), address: None }
}

fn rows(numbers: std::ops::Range<u64>) -> impl Iterator<Item = ImportRow> {
    numbers.map(|number| ImportRow::new(id(number), "lamps", "a1lamp"))
}

fn import(store: &impl Bulk, numbers: std::ops::Range<u64>) {
    import_rows(store, rows(numbers));
}

fn import_rows(store: &impl Bulk, rows: impl Iterator<Item = ImportRow>) {
    let by = by();
    let reject = &mut |index, rejection| panic!("row {index}: {rejection:?}");
    store.import(ImportJob::new(&by, "file.csv"), &mut rows.map(Ok), reject).unwrap();
}

fn refused(url: &str) -> String {
    match Postgres::open(url) {
        Ok(_) => panic!("the database was opened"),
        Err(error) => error.to_string(),
    }
}

/// Returns the URL with another user, and perhaps a password.
fn as_user(url: &str, user: &str) -> String {
    url.replace("certdist@", &format!("{user}@"))
}

#[test]
#[ignore = "needs PostgreSQL"]
fn servers_that_start_together_create_the_tables_once() {
    let url = postgres::empty();
    assert_eq!(Postgres::examine(&url).unwrap(), Condition::Missing);
    thread::scope(|scope| {
        let started: Vec<_> = (0..8).map(|_| scope.spawn(|| Postgres::open(&url).map(drop))).collect();
        for one in started {
            one.join().unwrap().unwrap();
        }
    });
    assert_eq!(Postgres::examine(&url).unwrap(), Condition::Current);
}

#[test]
#[ignore = "needs PostgreSQL"]
fn the_tables_of_another_program_or_version_are_refused_and_left_alone() {
    let url = postgres::empty();
    postgres::run(&url, "CREATE TABLE orders (id int)");
    for error in [refused(&url), Postgres::examine(&url).unwrap_err().to_string()] {
        assert!(error.contains("not those of certdist"), "{error}");
    }
    postgres::run(&url, "DROP TABLE orders");
    drop(Postgres::open(&url).unwrap());
    postgres::run(&url, "UPDATE certdist_schema SET version = 99");
    let error = refused(&url);
    assert!(error.contains("version 99") && error.contains("install the version"), "{error}");
}

#[test]
#[ignore = "needs PostgreSQL"]
fn a_user_without_rights_is_told_what_to_grant() {
    let url = postgres::empty();
    let schema = url.rsplit("%3D").next().unwrap().to_owned();
    postgres::run(
        &url,
        &format!("CREATE ROLE limited_{schema} LOGIN; GRANT USAGE ON SCHEMA {schema} TO limited_{schema}"),
    );
    let error = refused(&as_user(&url, &format!("limited_{schema}")));
    assert!(error.contains("GRANT CREATE ON SCHEMA"), "{error}");
    drop(Postgres::open(&url).unwrap());
    let error = refused(&as_user(&url, &format!("limited_{schema}")));
    assert!(error.contains("lacks a right") && error.contains("certdist_schema"), "{error}");
}

#[test]
#[ignore = "needs PostgreSQL"]
fn a_wrong_password_is_told_without_the_password() {
    let url = postgres::empty();
    postgres::run(
        &url,
        "DROP ROLE IF EXISTS with_password; CREATE ROLE with_password LOGIN SUPERUSER PASSWORD 'right'",
    );
    let error = refused(&as_user(&url, "with_password:wr0ng"));
    assert!(error.contains("refused the user") && error.contains("with_password@"), "{error}");
    assert!(!error.contains("wr0ng"), "{error}");
    Postgres::open(&as_user(&url, "with_password:right")).unwrap();
}

#[test]
#[ignore = "needs PostgreSQL"]
fn a_server_that_is_not_there_is_an_error_of_the_moment() {
    let begun = Instant::now();
    let url = "postgres://anna:s3cret@%2Fno%2Fsuch%2Ffolder/certdist";
    let error = Postgres::open(url).err().unwrap();
    assert!(matches!(&error, StoreError::Busy(reason) if !reason.contains("s3cret")), "{error:?}");
    assert_eq!(error.to_string().matches("not available now").count(), 1, "{error}");
    assert!(begun.elapsed() < Duration::from_secs(10));
}

#[test]
#[ignore = "needs PostgreSQL"]
fn a_host_that_hangs_does_not_hide_the_others() {
    let url = postgres::empty();
    // The system accepts connections to this host, but no program reads from them.
    let hangs = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let both = url.replacen('@', &format!("@{},", hangs.local_addr().unwrap()), 1) + "&sslmode=disable";
    import(&Postgres::open(&both).unwrap(), 0..2);
    assert_eq!(Postgres::open(&url).unwrap().count().unwrap(), 2);
}

#[test]
#[ignore = "needs PostgreSQL"]
fn a_handle_that_only_reads_writes_nothing() {
    let url = postgres::empty();
    let error = Postgres::look(&url, |_| Ok(())).err().unwrap();
    assert!(matches!(error, StoreError::Unusable(_)), "{error:?}");
    let by = by();
    let dry_run = ImportJob { dry_run: true, ..ImportJob::new(&by, "file.csv") };
    let preview = Postgres::preview(&url, |_| Ok(())).unwrap();
    assert_eq!(preview.import(dry_run, &mut rows(0..2).map(Ok), &mut |_, _| ()).unwrap().added, 2);
    assert!(preview.imports().unwrap().is_empty() && preview.spelled_macs().unwrap().is_empty());
    assert_eq!(Postgres::examine(&url).unwrap(), Condition::Missing, "the preview has created nothing");
    import(&Postgres::open(&url).unwrap(), 0..1);
    let looks = Postgres::look(&url, |_| Ok(())).unwrap();
    assert_eq!(looks.import(dry_run, &mut rows(0..2).map(Ok), &mut |_, _| ()).unwrap().added, 1);
    assert!(looks.verify_audit(&mut |_, _| ()).unwrap().fault.is_none());
    assert!(wait(looks.device(&id(0))).unwrap().is_some());
    assert!(wait(looks.history(&id(0), 9)).unwrap().is_empty());
    let mut entries = 0;
    let each = &mut |_, _| {
        entries += 1;
        ControlFlow::Continue(())
    };
    looks.export_audit(&Filter::default(), each).unwrap();
    assert_eq!(entries, 1, "the import");
    assert!(wait(looks.delete(&id(0), &by)).is_err());
    assert!(looks.import(ImportJob::new(&by, "file.csv"), &mut rows(5..6).map(Ok), &mut |_, _| ()).is_err());
    assert!(looks.undo_import(Undo { id: ImportId(1), by: &by, dry_run: false, rest: false }).is_err());
    assert_eq!(looks.count().unwrap(), 1);
}

#[test]
#[ignore = "needs PostgreSQL"]
fn a_registered_device_without_a_target_is_found() {
    let url = postgres::empty();
    let store = Postgres::open(&url).unwrap();
    import(&store, 0..3);
    assert!(!crate::store::has_devices_without_target(&url).unwrap());
    wait(store.claim(&owner(1), &entry(1), NOW)).unwrap();
    wait(store.settle(1, &entry(1), &registered(1))).unwrap();
    assert!(crate::store::has_devices_without_target(&url).unwrap());
}

#[test]
#[ignore = "needs PostgreSQL"]
fn questions_that_come_together_get_each_their_own_answer() {
    let store = Postgres::open(&postgres::empty()).unwrap();
    import(&store, 0..300);
    // Every second of these is not in the table, and each is asked for twice.
    let all: Vec<DeviceId> = (0..1200).map(|number| id(number / 2 % 600)).collect();
    let rows: Vec<_> = all.iter().map(|id| store.device(id)).collect();
    let enrollments: Vec<_> = all.iter().map(|id| store.enrollment_of(id)).collect();
    for ((id, row), enrollment) in all.iter().zip(rows).zip(enrollments) {
        let is_there = *id < self::id(300);
        assert_eq!(wait(row).unwrap().map(|row| row.id), is_there.then(|| id.clone()));
        assert_eq!(wait(enrollment).unwrap().is_some(), is_there, "{id}");
    }
}

#[test]
#[ignore = "needs PostgreSQL"]
fn servers_never_take_more_places_than_there_are() {
    let url = postgres::empty();
    let stores = [(); 3].map(|()| Postgres::open(&url).unwrap());
    import(&stores[0], 0..30);
    for store in &stores {
        store.set_max_places(std::sync::Arc::new([("lamps".to_owned(), 7)].into()));
    }
    let (owners, entries) = ([1, 2, 3].map(owner), (0..30).map(entry).collect::<Vec<_>>());
    let claims = |server: usize| {
        let claim = |entry| stores[server].claim(&owners[server], entry, NOW);
        entries.iter().skip(server).step_by(3).map(claim).collect::<Vec<_>>()
    };
    let all: Vec<StoreFuture<'_, Claimed>> = [0, 1, 2].into_iter().flat_map(claims).collect();
    let taken = all.into_iter().map(|claim| wait(claim).unwrap());
    assert_eq!(taken.filter(|claimed| matches!(claimed, Claimed::Yours(_))).count(), 7);
    assert_eq!(wait(stores[0].places("lamps")).unwrap().claimed, 7);
}

#[test]
#[ignore = "needs PostgreSQL"]
fn settlements_in_another_enrollment_take_no_more_places_than_there_are() {
    const DEVICES: u64 = 30;
    let url = postgres::empty();
    let stores = [(); 3].map(|()| Postgres::open(&url).unwrap());
    import_rows(&stores[0], (0..DEVICES).map(|number| ImportRow::new(id(number), "plugs", "a1lamp")));
    for (store, number) in stores.iter().cycle().zip(0..DEVICES) {
        let claimed = wait(store.claim(&owner(1), &entry(number), NOW)).unwrap();
        assert!(matches!(claimed, Claimed::Yours(_)), "{claimed:?}");
        store.set_max_places(std::sync::Arc::new([("lamps".to_owned(), 7)].into()));
    }
    import(&stores[0], 0..DEVICES);
    let all: Vec<_> = (0..DEVICES).map(|number| (entry(number), registered(number))).collect();
    let settled = stores.iter().cycle().zip(&all);
    let settled: Vec<_> =
        settled.map(|(store, (entry, registered))| store.settle(1, entry, registered)).collect();
    let (stored, refused): (Vec<_>, Vec<_>) = settled.into_iter().map(wait).partition(Result::is_ok);
    assert_eq!(stored.len(), 7);
    assert!(refused.iter().all(|result| matches!(result, Err(StoreError::Conflict(_)))), "{refused:?}");
    let places = wait(stores[0].places("lamps")).unwrap();
    assert_eq!((places.registered, places.claimed), (7, 0), "the others keep their places in plugs");
}

#[test]
#[ignore = "needs PostgreSQL"]
fn of_two_moves_to_one_name_one_is_stored() {
    const PAIRS: u64 = 20;
    let url = postgres::empty();
    let stores = [(); 2].map(|()| Postgres::open(&url).unwrap());
    let by = by();
    // Both devices of a pair have the same name, in different products.
    let named = |number: u64| ImportRow {
        product_key: Some(format!("a1product{}", number % 2)),
        device_name: Some(format!("name-{}", number / 2)),
        device_secret: Some(Secret::new("s3cret".into())),
        ..ImportRow::new(id(number), "lamps", "a1lamp")
    };
    import_rows(&stores[0], (0..2 * PAIRS).map(named));
    let to = Move { target: "tokyo".into(), product_key: "a1tokyo".into(), former: Former::Keep };
    let place = |number: u64| -> Order {
        let placed = wait(stores[0].place_move(&id(number), &to, Begun::Keep, &by)).unwrap();
        assert!(matches!(placed, Placed::Yes(_)), "{placed:?}");
        wait(stores[0].order_of(&id(number))).unwrap().unwrap()
    };
    let orders: Vec<(Order, RegisteredDevice)> = (0..2 * PAIRS)
        .map(|number| {
            let order = place(number);
            let certificate = Certificate {
                product_key: "a1tokyo".into(),
                device_name: order.device_name.clone(),
                device_secret: Secret::new("n3w".into()),
            };
            (order, RegisteredDevice { certificate, iot_id: None, registered: 2000 })
        })
        .collect();
    let stored = orders.iter().zip(stores.iter().cycle());
    let stored: Vec<_> =
        stored.map(|((order, registered), store)| store.store_move(order, registered)).collect();
    let stored: Vec<Moved> = stored.into_iter().map(|stored| wait(stored).unwrap()).collect();
    for (number, pair) in stored.chunks(2).enumerate() {
        let [one, other] = [0, 1].map(|at| id(2 * number as u64 + at));
        let expected = [[Moved::Yes, Moved::NameTaken(one)], [Moved::NameTaken(other), Moved::Yes]];
        assert!(expected.iter().any(|expected| pair == expected), "{pair:?}");
    }
}

#[test]
#[ignore = "needs PostgreSQL"]
fn a_roll_that_two_servers_end_ends_once() {
    const DEVICES: u64 = 30;
    let url = postgres::empty();
    let stores = [(); 2].map(|()| Postgres::open(&url).unwrap());
    let by = by();
    let with_keys = |number: u64| ImportRow {
        individual: true,
        key: Some((format!("id-{number}"), Secret::new("00ff".into()))),
        next_key: Some(Secret::new("aa11".into())),
        ..ImportRow::new(id(number), "lamps", "a1lamp")
    };
    import_rows(&stores[0], (0..DEVICES).map(with_keys));
    let devices: Vec<DeviceId> = (0..DEVICES).map(id).collect();
    let ends: Vec<_> = devices
        .iter()
        .flat_map(|device| stores.each_ref().map(|store| store.end_roll(device, Ending::Anyway, &by)))
        .collect();
    let ended = ends.into_iter().map(|end| wait(end).unwrap());
    assert_eq!(ended.filter(|ended| *ended == Ended::Ended).count(), devices.len());
    let entries = wait(stores[0].history(&devices[0], 9)).unwrap();
    assert_eq!(entries.iter().map(|entry| entry.event).collect::<Vec<_>>(), [AuditEvent::Rekeyed]);
}

#[test]
#[ignore = "needs PostgreSQL"]
fn entries_about_requests_are_written_before_the_store_is_gone() {
    let url = postgres::empty();
    let store = Postgres::open(&url).unwrap();
    import(&store, 0..1);
    for number in 0..1500 {
        let asker = ("lamps", "SN-000", "192.0.2.1");
        let asked = Asked::new(AuditEvent::Reissued, 1000 + number, &id(0), asker, format_args!("again"));
        store.audit(asked).unwrap();
    }
    drop(store);
    let history = wait(Postgres::open(&url).unwrap().history(&id(0), 9)).unwrap();
    let [record] = &history[..] else { panic!("{history:?}") };
    assert_eq!(record.as_repeats().count, 1500);
}

/// Ends all connections of the handles of a schema.
fn cut(url: &str) {
    let schema = url.rsplit("%3D").next().unwrap();
    let named =
        format!("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = '{schema}'");
    postgres::run(url, &named);
}

/// Opens a database whose connections [`cut`] ends: they have the name of the schema.
fn open_named(url: &str) -> Postgres {
    let schema = url.rsplit("%3D").next().unwrap();
    Postgres::open(&url.replace('?', &format!("?application_name={schema}&"))).unwrap()
}

#[test]
#[ignore = "needs PostgreSQL"]
fn an_import_that_is_cut_off_leaves_nothing() {
    let url = postgres::empty();
    let store = open_named(&url);
    let by = by();
    for stage in [ImportStage::Checking, ImportStage::Writing] {
        let progress = |reached, _, _| {
            if reached == stage {
                cut(&url);
            }
        };
        let job = ImportJob { id: Some(ImportId(7)), progress: &progress, ..ImportJob::new(&by, "file.csv") };
        let outcome = store.import(job, &mut rows(0..3000).map(Ok), &mut |_, _| panic!("no row is bad"));
        assert!(matches!(outcome, Err(ImportError::Store(_))), "{outcome:?}");
        assert_eq!((store.count().unwrap(), store.imports().unwrap().len()), (0, 0), "{stage:?}");
    }
    let job = ImportJob { id: Some(ImportId(7)), ..ImportJob::new(&by, "file.csv") };
    let report = store.import(job, &mut rows(0..3000).map(Ok), &mut |_, _| panic!("no row is bad")).unwrap();
    assert_eq!(report.added, 3000);
}

/// Repeats a write until its outcome is known.
fn until_done<T>(mut write: impl FnMut() -> Result<T, StoreError>) -> T {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        match write() {
            Ok(value) => return value,
            Err(StoreError::Busy(_) | StoreError::Unknown(_)) if Instant::now() < deadline => {}
            Err(error) => panic!("{error:?}"),
        }
    }
}

/// While connections are cut at random moments, two servers register and issue devices. Each device
/// gets one certificate, its first issue is in the log once, and the chain of the log is whole.
#[test]
#[ignore = "needs PostgreSQL"]
fn lost_connections_lose_and_repeat_nothing() {
    let seed = rand::rng().random_range(0..u64::MAX);
    println!("seed {seed}");
    let url = postgres::empty();
    let stores = [1, 2].map(|number| (owner(number), open_named(&url)));
    const DEVICES: u64 = 24;
    import(&stores[0].1, 0..DEVICES);
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut random = StdRng::seed_from_u64(seed);
            while !is_over.load(Ordering::Relaxed) {
                thread::sleep(Duration::from_millis(random.random_range(1..60)));
                cut(&url);
            }
        });
        let servers: Vec<_> = stores
            .iter()
            .map(|(owner, store)| {
                scope.spawn(move || {
                    for number in 0..DEVICES {
                        serve(store, owner, number);
                    }
                })
            })
            .collect();
        let outcomes: Vec<_> = servers.into_iter().map(|server| server.join()).collect();
        is_over.store(true, Ordering::Relaxed);
        assert!(outcomes.iter().all(Result::is_ok), "seed {seed}");
    });
    let store = Postgres::open(&url).unwrap();
    for number in 0..DEVICES {
        let row = wait(store.device(&id(number))).unwrap().unwrap();
        let Settlement::Registered(expected) = registered(number) else { unreachable!() };
        assert_eq!((row.certificate, row.refusal), (Some(expected.certificate), None), "seed {seed}");
        let history = wait(store.history(&id(number), 99)).unwrap();
        let events: Vec<AuditEvent> = history.iter().map(|entry| entry.event).collect();
        assert_eq!(events, [AuditEvent::Issued, AuditEvent::Registered], "seed {seed}, device {number}");
    }
    let chain = store.verify_audit(&mut |_, _| ()).unwrap();
    assert_eq!((chain.fault, chain.entries), (None, 1 + 2 * DEVICES), "seed {seed}");
}

/// Registers a device, or waits until the other server has done so, and issues its certificate.
fn serve(store: &Postgres, owner: &Owner, number: u64) {
    let entry = entry(number);
    let row = loop {
        let row = until_done(|| wait(store.device(&id(number)))).unwrap();
        if row.certificate.is_some() {
            break row;
        }
        match until_done(|| wait(store.claim(owner, &entry, NOW))) {
            Claimed::Yours(_) => {
                until_done(|| match wait(store.settle(owner.id, &entry, &registered(number))) {
                    // A settlement that was repeated finds its claim ended.
                    Err(StoreError::Fenced) => Ok(()),
                    settled => settled,
                });
            }
            Claimed::Held | Claimed::NotWanted => thread::sleep(Duration::from_millis(2)),
            other => panic!("{other:?}"),
        }
    };
    let asker = Asker { enrollment: "lamps".into(), ..Asker::default() };
    let certificate = row.certificate.unwrap();
    let issue_id = owner.id * 1000 + number.cast_signed();
    let first = until_done(|| wait(store.record_issue(&row.id, &certificate, issue_id, asker.clone())));
    let again = until_done(|| wait(store.record_issue(&row.id, &certificate, issue_id, asker.clone())));
    assert_eq!(first, again);
}
