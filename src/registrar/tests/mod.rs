use tempfile::TempDir;

mod batches;
mod company;
mod crash;
mod moves;
mod orders;
mod others;
mod products;
mod stall;
mod sweep;
mod targets;

use super::*;
use crate::{
    iot_platform::ErrorClass,
    store::{
        Actor, DeviceRow, ImportRow,
        claim::{ClaimTime, Claims, Owner},
        sqlite::Sqlite,
    },
    testing::{
        self,
        cloud::{Cloud, Scripted},
    },
};

struct Bench {
    registrar: Arc<Registrar>,
    store: Arc<Sqlite>,
    cloud: Arc<Cloud>,
    folder: TempDir,
}

const PATIENCE: Duration = Duration::from_secs(20);

fn id(device: &str) -> DeviceId {
    DeviceId::parse(device).unwrap()
}

fn wanted(device: &str) -> JournalEntry {
    JournalEntry {
        device: id(device),
        product_key: "a1".into(),
        device_name: device.into(),
        target: crate::target::DEFAULT.into(),
    }
}

/// Returns a new owner, because each process is an owner of its own.
fn owner() -> Owner {
    Owner::new("test").unwrap()
}

/// Leaves a claim behind, like a process that dies.
async fn leave(store: &impl Claims, device: &str) {
    let owner = owner();
    store
        .claim(&owner, &wanted(device), ClaimTime { at: crate::store::unix_now(), cloud_offset: None })
        .await
        .unwrap();
    store.retire(owner.id).await.unwrap();
}

fn import(store: &Sqlite, devices: impl IntoIterator<Item = String>) {
    testing::store::import(
        store,
        devices.into_iter().map(|device| ImportRow::new(id(&device), "lamp", "a1")),
    );
}

impl Bench {
    fn new(config: Config) -> Self {
        let folder = TempDir::new().unwrap();
        let store = Arc::new(Sqlite::open(&folder.path().join("certdist.db")).unwrap());
        import(&store, (0..50).map(|number| format!("SN{number:02}")));
        Self::on(folder, store, Arc::default(), config)
    }

    fn on(folder: TempDir, store: Arc<Sqlite>, cloud: Arc<Cloud>, config: Config) -> Self {
        let registrar = Registrar::new(config, owner(), store.clone(), cloud.clone(), Handle::current());
        Self { registrar, store, cloud, folder }
    }

    async fn register(&self, device: &str) -> Outcome {
        self.registrar.register(wanted(device), PATIENCE).await
    }

    async fn row(&self, device: &str) -> DeviceRow {
        self.store.device(&id(device)).await.unwrap().unwrap()
    }

    async fn journal(&self) -> Vec<JournalEntry> {
        self.store.open_entries().await.unwrap().into_iter().map(|open| open.entry).collect()
    }

    async fn has_finished(&self) {
        while self.registrar.registrations() > 0 {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

fn fast() -> Config {
    Config { qps: 1000.0, retry_pause: Duration::from_millis(1), ..Config::default() }
}

#[tokio::test]
async fn a_device_is_registered_and_its_certificate_stored() {
    let bench = Bench::new(fast());
    let Outcome::Registered(certificate) = bench.register("SN01").await else { panic!("not registered") };
    let row = bench.row("SN01").await;
    assert_eq!(row.certificate, Some(certificate));
    assert_eq!(row.iot_id.map(|iot_id| iot_id.len()), Some(32));
    assert!(row.registered.is_some());
    assert!(bench.journal().await.is_empty());
}

#[tokio::test]
async fn many_who_ask_for_one_device_share_one_flight() {
    let bench = Bench::new(fast());
    bench.cloud.script([Scripted::Slow(Duration::from_millis(50))]);
    let all: Vec<_> = (0..100)
        .map(|_| {
            let registrar = bench.registrar.clone();
            tokio::spawn(async move { registrar.register(wanted("SN01"), PATIENCE).await })
        })
        .collect();
    let mut outcomes = Vec::new();
    for one in all {
        outcomes.push(one.await.unwrap());
    }
    assert!(matches!(outcomes[0], Outcome::Registered(_)));
    assert!(outcomes.iter().all(|outcome| *outcome == outcomes[0]));
    assert_eq!(bench.cloud.registrations(), 1);
}

#[tokio::test]
async fn failures_that_pass_are_tried_again() {
    for class in [ErrorClass::TryAgain, ErrorClass::Throttled, ErrorClass::TimedOut, ErrorClass::SignAgain] {
        let bench = Bench::new(fast());
        bench.cloud.script([Scripted::Refuse(class), Scripted::Refuse(class)]);
        assert!(matches!(bench.register("SN01").await, Outcome::Registered(_)), "{class:?}");
        assert_eq!(bench.cloud.registrations(), 3);
        assert_eq!(bench.registrar.counters().retries, 2);
    }
}

#[tokio::test]
async fn a_lost_answer_never_makes_a_second_device() {
    let bench = Bench::new(fast());
    bench.cloud.script([Scripted::CreateAndLose(ErrorClass::TimedOut)]);
    let Outcome::Registered(certificate) = bench.register("SN01").await else { panic!("not registered") };
    assert_eq!(certificate.device_secret.expose(), bench.cloud.secret("a1", "SN01").unwrap());
    assert_eq!(bench.cloud.devices(), 1);
    assert_eq!(bench.registrar.counters().recovered, 1);
}

#[tokio::test]
async fn the_journal_tells_what_is_asked_before_it_is_asked() {
    let bench = Bench::new(fast());
    bench.cloud.script([Scripted::Slow(Duration::from_secs(3600))]);
    let registrar = bench.registrar.clone();
    let asking = tokio::spawn(async move { registrar.register(wanted("SN01"), PATIENCE).await });
    while bench.cloud.registrations() == 0 {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(bench.journal().await, [wanted("SN01")]);
    asking.abort();
}

#[tokio::test]
async fn what_a_crash_has_left_is_taken_up_without_a_second_device() {
    let bench = Bench::new(fast());
    // The device was created at the cloud, and then the power failed.
    leave(&*bench.store, "SN01").await;
    bench.cloud.register_device("a1", "SN01").await.unwrap();
    let Bench { folder, store, cloud, .. } = bench;
    let bench = Bench::on(folder, store, cloud, fast());
    bench.registrar.recover().await.unwrap();
    bench.has_finished().await;
    let secret = bench.cloud.secret("a1", "SN01").unwrap();
    assert_eq!(bench.row("SN01").await.certificate.unwrap().device_secret.expose(), secret);
    assert_eq!(bench.cloud.devices(), 1);
    assert!(bench.journal().await.is_empty());
    drop(bench.folder);
}

#[tokio::test]
async fn a_device_that_got_its_certificate_meanwhile_is_not_asked_for_again() {
    let bench = Bench::new(fast());
    leave(&*bench.store, "SN01").await;
    let row = ImportRow {
        device_name: Some("SN01".into()),
        device_secret: Some(crate::device::Secret::new("imported".into())),
        ..ImportRow::new(id("SN01"), "lamp", "a1")
    };
    testing::store::import(&*bench.store, [row]);
    // The request takes the part of one that read the row before the import.
    assert!(matches!(bench.register("SN01").await, Outcome::Registered(_)));
    assert!(bench.journal().await.is_empty());
    assert_eq!(bench.cloud.registrations(), 0);
}

#[tokio::test]
async fn what_only_the_operator_can_mend_stops_the_calls_for_that_product() {
    let bench = Bench::new(Config { breaker_pause: Duration::from_secs(3600), ..fast() });
    testing::store::import(&*bench.store, [ImportRow::new(id("SN99"), "plug", "a2")]);
    bench.cloud.script([Scripted::RefuseWith("iot.prod.NotExistedProduct")]);
    assert!(matches!(bench.register("SN01").await, Outcome::Operator(_)));
    assert!(matches!(bench.register("SN02").await, Outcome::Operator(_)));
    assert_eq!(bench.cloud.registrations(), 1);
    let other = JournalEntry { product_key: "a2".into(), ..wanted("SN99") };
    assert!(matches!(bench.registrar.register(other, PATIENCE).await, Outcome::Registered(_)));
    // The refused call created no device, so no journal entry is left.
    assert_eq!(bench.journal().await, []);
    let reasons = bench.registrar.refusals();
    let [(Some(product), reason)] = &reasons[..] else { panic!("{reasons:?}") };
    assert_eq!(product, "a1");
    assert!(reason.contains("NotExistedProduct"), "{reason}");
}

#[tokio::test]
async fn a_refusal_of_one_device_is_noted_in_its_row() {
    let bench = Bench::new(fast());
    bench.cloud.script([Scripted::Refuse(ErrorClass::Device)]);
    assert!(matches!(bench.register("SN01").await, Outcome::Refused(_)));
    assert!(bench.row("SN01").await.refusal.unwrap().starts_with("Device"));
    assert!(bench.journal().await.is_empty());
    assert!(matches!(bench.register("SN02").await, Outcome::Registered(_)));
}

#[tokio::test]
async fn an_unknown_failure_of_one_device_among_others_refuses_that_device() {
    let bench = Bench::new(Config { retry_pause: Duration::from_millis(200), ..fast() });
    bench.cloud.script([
        Scripted::Refuse(ErrorClass::Unknown),
        Scripted::Slow(Duration::from_millis(5)),
        Scripted::Refuse(ErrorClass::Unknown),
        Scripted::Refuse(ErrorClass::Unknown),
    ]);
    let other = async {
        while bench.cloud.registrations() == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        bench.register("SN02").await
    };
    let (one, other) = tokio::join!(bench.register("SN01"), other);
    assert!(matches!(one, Outcome::Refused(_)), "{one:?}");
    assert!(matches!(other, Outcome::Registered(_)), "{other:?}");
    assert_eq!(bench.cloud.registrations(), 4);
    assert!(bench.row("SN01").await.refusal.is_some());
}

#[tokio::test]
async fn an_unknown_failure_of_every_device_marks_none_and_stops_the_calls() {
    let bench = Bench::new(fast());
    bench.cloud.script(vec![Scripted::Refuse(ErrorClass::Unknown); 100]);
    assert!(matches!(bench.register("SN01").await, Outcome::Later(_)), "one alone");
    assert_eq!(bench.registrar.open_breakers(), 0);
    for device in ["SN02", "SN03"] {
        assert!(matches!(bench.register(device).await, Outcome::Operator(_)), "{device}");
    }
    for device in ["SN01", "SN02", "SN03"] {
        assert_eq!(bench.row(device).await.refusal, None);
    }
    assert_eq!(bench.cloud.registrations(), 6, "of the first two devices");
    assert_eq!(bench.registrar.open_breakers(), 1);
}

#[tokio::test]
async fn a_cloud_that_keeps_failing_ends_the_flight_and_keeps_the_journal() {
    let bench = Bench::new(Config { max_attempts: 4, ..fast() });
    bench.cloud.script(vec![Scripted::Refuse(ErrorClass::TryAgain); 10]);
    assert!(matches!(bench.register("SN01").await, Outcome::Later(_)));
    assert_eq!(bench.cloud.registrations(), 4);
    assert_eq!(bench.journal().await, [wanted("SN01")]);
}

#[tokio::test]
async fn who_waits_too_long_is_told_and_finds_the_certificate_next_time() {
    let bench = Bench::new(fast());
    bench.cloud.script([Scripted::Slow(Duration::from_secs(2))]);
    let outcome = bench.registrar.register(wanted("SN01"), Duration::from_millis(500)).await;
    assert_eq!(outcome, Outcome::TimedOut);
    bench.has_finished().await;
    assert!(bench.row("SN01").await.certificate.is_some());
    assert_eq!(bench.cloud.registrations(), 1);
}

#[tokio::test]
async fn a_crowd_is_sent_away_with_a_time_to_come_back_and_registered_meanwhile() {
    let bench = Bench::new(Config { qps: 20.0, ..Config::default() });
    let patience = Duration::from_millis(500);
    let all: Vec<_> = (0..30)
        .map(|number| {
            let registrar = bench.registrar.clone();
            tokio::spawn(async move { registrar.register(wanted(&format!("SN{number:02}")), patience).await })
        })
        .collect();
    let mut later = 0;
    for one in all {
        if let Outcome::Later(pause) = one.await.unwrap() {
            assert!(pause >= Duration::from_secs(1) && pause < Duration::from_secs(6), "{pause:?}");
            later += 1;
        }
    }
    assert!(later >= 15, "{later} were sent away");
    bench.has_finished().await;
    assert_eq!(bench.cloud.devices(), 30);
    assert_eq!(bench.cloud.registrations(), 30);
}

#[tokio::test]
async fn the_queue_is_bounded() {
    let bench = Bench::new(Config { max_registrations: 2, ..fast() });
    bench.cloud.script(vec![Scripted::Slow(Duration::from_secs(3600)); 2]);
    let asking = ["SN01", "SN02"].map(|device| {
        let registrar = bench.registrar.clone();
        tokio::spawn(async move { registrar.register(wanted(device), PATIENCE).await })
    });
    while bench.cloud.registrations() < 2 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(matches!(bench.register("SN03").await, Outcome::Later(_)));
    assert_eq!(bench.registrar.registrations(), 2);
    asking.iter().for_each(tokio::task::JoinHandle::abort);
}

#[tokio::test]
async fn a_draining_registrar_takes_no_new_device_and_finishes_the_others() {
    let bench = Bench::new(fast());
    bench.cloud.script([Scripted::Slow(Duration::from_millis(100))]);
    let registrar = bench.registrar.clone();
    let asking = tokio::spawn(async move { registrar.register(wanted("SN01"), PATIENCE).await });
    while bench.cloud.registrations() == 0 {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(bench.registrar.drain(Duration::from_secs(10)).await, 0);
    assert!(matches!(asking.await.unwrap(), Outcome::Registered(_)));
    assert!(matches!(bench.register("SN02").await, Outcome::Later(_)));
}

#[tokio::test]
async fn where_this_machines_clock_is_wrong_the_store_has_the_clouds() {
    const YEAR: i64 = 365 * 86_400;
    for (ahead, expected) in [(-YEAR, -YEAR), (YEAR, YEAR), (30, 0)] {
        let (folder, cloud) = (TempDir::new().unwrap(), Arc::new(Cloud::default()));
        let store = Arc::new(Sqlite::open(&folder.path().join("certdist.db")).unwrap());
        store.clock().set_ahead(7);
        cloud.set_clock_ahead(ahead);
        let bench = Bench::on(folder, store, cloud, fast());
        let is_near = || (bench.store.now() - crate::store::unix_now() - expected).abs() <= 2;
        let deadline = Instant::now() + Duration::from_secs(10);
        while !is_near() {
            assert!(Instant::now() < deadline, "{ahead}: {}", bench.store.now() - crate::store::unix_now());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}
