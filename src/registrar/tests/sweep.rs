//! Tests that sweeps notice changes of devices at the cloud.

use super::*;
use crate::{
    iot_platform::{Action, IotPlatform},
    registrar::sweep::Swept,
    store::{CloudState, Store, UnixSeconds, lease::Leases},
    testing::store::{Fuse, Memory},
};

const HOUR: Duration = Duration::from_secs(3600);
const DAY: i64 = 86_400;

/// Registered devices in a table in memory and at the cloud, and a server that looks them up, all in
/// virtual time.
struct Fleet {
    store: Memory,
    cloud: Arc<Cloud>,
    registrar: Arc<Registrar>,
}

impl Fleet {
    fn new(config: Config) -> Self {
        let (store, cloud) = (Memory::default(), Arc::new(Cloud::default()));
        let registrar = Self::server(config, store.clone(), cloud.clone());
        Self { store, cloud, registrar }
    }

    fn server(config: Config, store: Memory, cloud: Arc<Cloud>) -> Arc<Registrar> {
        cloud.hide_clock();
        let config = Config { seed: Some(1), ..config };
        Registrar::new(config, owner(), Arc::new(store), cloud, Handle::current())
    }

    /// Adds `count` registered devices of one product, named by `prefix` and a number. Their
    /// first certificates were issued `issued` seconds ago, spread evenly over this range; with
    /// `None`, never.
    fn add(&self, prefix: &str, product_key: &str, count: usize, issued: Option<Range<i64>>) {
        let now = Store::now(&self.store);
        for number in 0..count {
            let name = format!("{prefix}{number:05}");
            self.cloud.make(product_key, &name);
            let row = DeviceRow::imported(id(&name), "lamp", product_key).with_certificate(&name, "s3cret");
            let first_issued = issued
                .clone()
                .map(|Range { start, end }| now - start - (end - start) * number as i64 / count as i64);
            self.store.insert(DeviceRow {
                device_name: Some(name),
                first_issued,
                registered: Some(now),
                ..row
            });
        }
    }

    /// Lets a device sign in at IoT Platform now.
    fn sign_in(&self, product_key: &str, name: &str) {
        let now = Store::now(&self.store) * 1000;
        self.cloud.change(product_key, name, |device| device.activated = Some(now));
    }

    fn activated(&self, name: &str) -> Option<UnixSeconds> {
        self.store.row(&id(name)).unwrap().activated
    }

    fn lists(&self) -> usize {
        self.cloud.calls(Action::BatchQueryDeviceDetail)
    }
}

/// With 100,000 new devices a day, none of which signs in within the day, all must be looked up
/// within ten minutes. This test has 5000 new devices, a twentieth of that number. So each pass
/// over them may take at most a twentieth of the calls that ten minutes allow.
#[tokio::test(start_paused = true)]
async fn a_first_sign_in_is_known_within_ten_minutes_beside_many_settled_devices() {
    let fleet = Fleet::new(Config::default());
    // None of these devices becomes older than a day during the test.
    fleet.add("NEW", "a1", 5000, Some(0..DAY - 2 * 3600));
    fleet.add("SHELF", "a1", 20_000, None);
    fleet.add("LOST", "a1", 20_000, Some(30 * DAY..300 * DAY));
    fleet.registrar.start_sweeps();
    tokio::time::sleep(Duration::from_secs(1800)).await;
    let (start, mut random) = (Instant::now(), StdRng::seed_from_u64(19));
    let mut signed_in = Vec::new();
    let mut longest = Duration::ZERO;
    let mut number = 0;
    while start.elapsed() < HOUR {
        if start.elapsed() < HOUR - Duration::from_secs(900) && number < 100 {
            // Every twentieth device is new, and is issued its certificate only now.
            let name = if number % 20 == 0 {
                let name = format!("FRESH{number}");
                fleet.cloud.make("a1", &name);
                let row = DeviceRow::imported(id(&name), "lamp", "a1").with_certificate(&name, "s3cret");
                let now = Some(Store::now(&fleet.store));
                fleet.store.insert(DeviceRow { device_name: Some(name.clone()), first_issued: now, ..row });
                name
            } else {
                format!("NEW{:05}", random.random_range(0..50) + number * 50)
            };
            fleet.sign_in("a1", &name);
            signed_in.push((name, Instant::now()));
            number += 1;
        }
        tokio::time::sleep(Duration::from_secs(random.random_range(5..30))).await;
        signed_in.retain(|(name, at)| {
            longest = longest.max(at.elapsed());
            fleet.activated(name).is_none()
        });
    }
    assert_eq!((number, signed_in.len()), (100, 0), "{signed_in:?}");
    assert!(longest <= Duration::from_secs(600), "{longest:?}");

    // Devices whose certificates were never issued, or were first issued long ago, are looked up
    // only in the passes over all devices. These passes take no more than their part of the calls.
    let asked = |name: &str| fleet.cloud.listed(name, start);
    let (new, shelf, lost) = (asked("NEW04999"), asked("SHELF00000"), asked("LOST00000"));
    assert!(new >= 12 && shelf <= 6 && lost <= 6 && shelf >= 3 && lost >= 3, "{new}, {shelf}, {lost}");
    let of_new: usize = (0..5000).map(|number| asked(&format!("NEW{number:05}"))).sum();
    let passes = of_new.div_ceil(5000);
    let pace = Action::BatchQueryDeviceDetail.calls_per_second() as f64 * 25.0 / 30.0;
    let spare = (pace * 0.8 * 0.8 * 600.0) as usize;
    let calls = 20 * (5000 / 100);
    assert!(passes <= 20 && calls * 10 < spare * 7, "{passes} passes, {calls} of {spare} calls");
    assert!(fleet.cloud.busiest_second(Action::BatchQueryDeviceDetail) <= 4);
}

#[tokio::test(start_paused = true)]
async fn new_devices_of_many_products_are_looked_up_in_few_calls() {
    let fleet = Fleet::new(Config::default());
    for product in 0..50 {
        fleet.add(&format!("P{product}-"), &format!("a{product}"), 110, Some(0..DAY));
    }
    fleet.add("OLD", "old", 5000, Some(0..DAY));
    fleet.cloud.refuse_product("old", "iot.prod.NotExistedProduct");
    fleet.registrar.start_sweeps();
    // In the pass over the new devices, each product takes two calls, and the refused product takes
    // one. Meanwhile and afterwards, the pass over all devices takes one call every 1.5 s.
    tokio::time::sleep(Duration::from_secs(300 + 60)).await;
    let asked =
        (0..50).map(|product| fleet.cloud.listed(&format!("P{product}-00109"), Instant::now() - HOUR));
    assert!(asked.clone().all(|count| count >= 1), "{:?}", asked.collect::<Vec<_>>());
    assert!(fleet.lists() <= 101 + 42, "{} calls", fleet.lists());
    assert_eq!(fleet.registrar.open_breakers(), 0, "the registrations of the product are not stopped");
}

/// The expected time is the time that docs/cloud.md gives.
#[tokio::test(start_paused = true)]
async fn a_pass_over_all_devices_takes_its_time_and_its_part_of_the_calls() {
    let fleet = Fleet::new(Config::default());
    fleet.add("SN", "a1", 20_000, None);
    fleet.registrar.start_sweeps();
    let start = Instant::now() + Duration::from_secs(300);
    while fleet.cloud.listed("SN19999", start) == 0 {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let (took, documented) = (start.elapsed().as_secs_f64(), 20_000.0 / (8.0 / 3.0 * 25.0));
    assert!((0.95..1.05).contains(&(took / documented)), "{took} s");
    assert!((200..=205).contains(&fleet.lists()), "{}", fleet.lists());
}

#[tokio::test(start_paused = true)]
async fn deleted_devices_are_noticed_by_the_hundred() {
    let fleet = Fleet::new(Config::default());
    fleet.add("SN", "a1", 1100, None);
    fleet.registrar.sweep().await.unwrap();
    let (lists, steps) = (fleet.lists(), fleet.store.sighting_steps());
    for number in 0..1000 {
        fleet.cloud.delete("a1", &format!("SN{number:05}"));
    }
    let swept = fleet.registrar.sweep().await.unwrap();
    assert_eq!(swept, Swept { devices: 1100, changed: 1000, failed: 0 });
    let deleted = |number| fleet.store.row(&id(&format!("SN{number:05}"))).unwrap().cloud_state.is_some();
    assert_eq!((0..1100).filter(|number| deleted(*number)).count(), 1000);
    // The sweep requests eleven lists. Ten of them lack devices: for each, it looks up one missing
    // device with a call of its own, and then requests one more list of the other missing devices.
    assert_eq!((fleet.lists() - lists, fleet.cloud.calls(Action::QueryDeviceDetail)), (21, 10));
    assert_eq!(fleet.store.sighting_steps() - steps, 10);
    // The next sweep does not check again that the deleted devices are deleted.
    assert_eq!(fleet.registrar.sweep().await.unwrap(), Swept { changed: 0, ..swept });
    assert_eq!((fleet.lists() - lists, fleet.cloud.calls(Action::QueryDeviceDetail)), (32, 10));
}

#[tokio::test(start_paused = true)]
async fn a_list_that_leaves_devices_out_deletes_none() {
    let fleet = Fleet::new(Config::default());
    fleet.add("SN", "a1", 100, None);
    fleet.registrar.sweep().await.unwrap();
    let states = || -> Vec<String> {
        let rows = (0..100).map(|number| fleet.store.row(&id(&format!("SN{number:05}"))).unwrap());
        rows.filter(|row| row.cloud_state.is_some()).map(|row| row.id.to_string()).collect()
    };
    // The first missing device exists, so nothing is certain about the others.
    fleet.cloud.hide("SN00003", u32::MAX);
    fleet.cloud.delete("a1", "SN00004");
    let swept = fleet.registrar.sweep().await.unwrap();
    assert_eq!((swept, states()), (Swept { devices: 100, changed: 0, failed: 1 }, vec![]));
    // The first missing device was deleted, and another is missing only in the first list.
    fleet.cloud.hide("SN00003", 0);
    fleet.cloud.hide("SN00007", 1);
    let swept = fleet.registrar.sweep().await.unwrap();
    assert_eq!((swept, states()), (Swept { devices: 100, changed: 1, failed: 0 }, vec!["SN00004".into()]));
    // If the first missing device cannot be looked up by itself, the states of all missing devices
    // stay as they are.
    fleet.cloud.delete("a1", "SN00009");
    fleet.cloud.refuse(Action::QueryDeviceDetail, "iot.odd.Code");
    let swept = fleet.registrar.sweep().await.unwrap();
    assert_eq!((swept.failed, states()), (1, vec!["SN00004".into()]));
}

/// In this test, the calls with the priority of registrations come from another process.
#[tokio::test(start_paused = true)]
async fn a_sweep_takes_no_turn_that_a_registration_wants() {
    // At this rate, no call makes up for a late turn.
    let config = Config { qps: 30.0, ..Config::default() };
    let fleet = Fleet::new(config.clone());
    fleet.add("SN", "a1", 30_000, Some(0..DAY));
    let other = Fleet::server(config, fleet.store.clone(), fleet.cloud.clone());
    // Each call comes a little later than its turn, as in practice.
    let in_minutes = async |minutes: u32| {
        let (mut calls, end) = (0, Instant::now() + minutes * Duration::from_secs(60));
        while Instant::now() < end {
            other.turn(Action::BatchQueryDeviceDetail).await.unwrap();
            fleet.cloud.batch_query_device_detail("a1", &["X".into()]).await.unwrap();
            calls += 1;
            tokio::time::sleep(Duration::from_millis(201)).await;
        }
        calls
    };
    let alone = in_minutes(10).await;
    fleet.registrar.start_sweeps();
    tokio::time::sleep(Duration::from_secs(360)).await;
    let before = fleet.lists();
    let beside = in_minutes(10).await;
    let swept = fleet.lists() - before - beside;
    assert!(beside * 100 >= alone * 99, "{beside} calls, without a sweep {alone}");
    assert!((8..=10).contains(&swept), "{swept} calls of the sweep: one a minute");
    // Without registrations, the sweep gets 80 % of the turns.
    let before = fleet.lists();
    tokio::time::sleep(Duration::from_secs(60)).await;
    let swept = fleet.lists() - before;
    assert!((alone * 75..=alone * 81).contains(&(swept * 1000)), "{swept} in a minute, {alone} in ten");
}

#[tokio::test(start_paused = true)]
async fn no_device_is_looked_up_while_a_breaker_is_open() {
    let fleet = Fleet::new(Config { breaker_pause: HOUR, ..Config::default() });
    fleet.add("SN", "a1", 100, Some(0..DAY));
    let refused = ApiError {
        class: ErrorClass::Operator,
        code: "Forbidden.RAM".into(),
        message: "as the cloud would".into(),
    };
    fleet.registrar.break_circuit("a1", Action::RegisterDevice, &refused);
    fleet.registrar.start_sweeps();
    tokio::time::sleep(HOUR - Duration::from_secs(1)).await;
    assert_eq!(fleet.lists(), 0);
    tokio::time::sleep(HOUR + Duration::from_secs(60)).await;
    assert!(fleet.cloud.listed("SN00042", Instant::now() - HOUR) >= 1);
}

#[tokio::test(start_paused = true)]
async fn an_outage_costs_few_calls_and_passes_over_no_device() {
    let fleet = Fleet::new(Config::default());
    fleet.add("SN", "a1", 2000, None);
    fleet.registrar.start_sweeps();
    let start = Instant::now();
    tokio::time::sleep(Duration::from_secs(310)).await;
    let before = fleet.lists();
    assert!((1..20).contains(&before), "in the middle of the pass: {before}");
    fleet.cloud.refuse(Action::BatchQueryDeviceDetail, "Forbidden.RAM");
    tokio::time::sleep(HOUR).await;
    assert!(fleet.lists() - before <= 12, "{}", fleet.lists() - before);
    fleet.cloud.allow(Action::BatchQueryDeviceDetail);
    let counts = || (0..2000).map(|number| fleet.cloud.listed(&format!("SN{number:05}"), start));
    while counts().sum::<usize>() < 2000 {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    assert!(counts().all(|count| count == 1), "{:?}", counts().collect::<Vec<_>>());
}

#[tokio::test(start_paused = true)]
async fn of_two_servers_one_looks_devices_up_and_the_other_goes_on_when_it_dies() {
    let (mut tables, cloud) = (Memory::default(), Arc::new(Cloud::default()));
    let one = Fleet::server(Config::default(), tables.clone(), cloud.clone());
    let other = tables.in_process(Arc::new(Fuse::new(usize::MAX)));
    let registrar = Fleet::server(Config::default(), other.clone(), cloud.clone());
    let fleet = Fleet { store: other, cloud, registrar };
    fleet.add("SN", "a1", 200, Some(0..DAY));
    one.start_sweeps();
    tokio::time::sleep(Duration::from_secs(1)).await;
    fleet.registrar.start_sweeps();
    let start = Instant::now();
    tokio::time::sleep(HOUR).await;
    let alone = fleet.cloud.listed("SN00100", start);
    assert!((20..=26).contains(&alone), "{alone} times an hour, in the passes over the new and over all");
    tables.kill();
    fleet.sign_in("a1", "SN00100");
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert!(fleet.activated("SN00100").is_some());
}

#[tokio::test]
async fn a_sign_in_a_disabled_and_a_deleted_device_are_noticed_and_noted_once() {
    let bench = Bench::new(fast());
    for device in ["SN01", "SN02", "SN03", "SN04"] {
        assert!(matches!(bench.register(device).await, Outcome::Registered(_)));
    }
    // The answer to a registration has no creation time, so the first sweep reads the creation
    // times.
    bench.registrar.sweep().await.unwrap();
    let nothing = Swept { devices: 4, changed: 0, failed: 0 };
    assert_eq!(bench.registrar.sweep().await.unwrap(), nothing);
    bench.cloud.change("a1", "SN01", |device| {
        (device.created, device.activated) = (1_551_342_000_000, Some(1_551_342_063_000));
    });
    bench.cloud.change("a1", "SN02", |device| device.disabled = true);
    bench.cloud.delete("a1", "SN03");
    assert_eq!(bench.registrar.sweep().await.unwrap(), Swept { changed: 3, ..nothing });
    let row = bench.row("SN01").await;
    assert_eq!((row.registered, row.activated), (Some(1_551_342_000), Some(1_551_342_063)));
    assert_eq!(bench.row("SN02").await.cloud_state, Some(CloudState::Disabled));
    assert_eq!(bench.row("SN03").await.cloud_state, Some(CloudState::Deleted));
    assert_eq!(bench.row("SN04").await.cloud_state, None);
    assert_eq!(bench.registrar.sweep().await.unwrap(), nothing);

    bench.cloud.change("a1", "SN02", |device| device.disabled = false);
    assert_eq!(bench.registrar.sweep().await.unwrap(), Swept { changed: 1, ..nothing });
    assert_eq!(bench.row("SN02").await.cloud_state, None);
}

#[tokio::test]
async fn a_device_that_was_deleted_at_the_cloud_is_registered_anew_when_the_operator_says_so() {
    let bench = Bench::new(fast());
    let Outcome::Registered(first) = bench.register("SN01").await else { panic!("not registered") };
    bench.cloud.delete("a1", "SN01");
    assert_eq!(bench.registrar.sweep().await.unwrap(), Swept { devices: 1, changed: 1, failed: 0 });
    // Until the operator resets the device, it keeps its certificate.
    assert_eq!(bench.register("SN01").await, Outcome::Registered(first.clone()));
    assert!(bench.store.reset(&id("SN01"), &Actor::system_user()).await.unwrap());
    let Outcome::Registered(second) = bench.register("SN01").await else { panic!("not registered") };
    assert_ne!(first.device_secret, second.device_secret);
    let row = bench.row("SN01").await;
    assert_eq!((row.certificate, row.cloud_state), (Some(second), None));
    // A device that was not deleted at the cloud keeps its certificate when it is reset.
    let before = bench.row("SN01").await.certificate;
    assert!(bench.store.reset(&id("SN01"), &Actor::system_user()).await.unwrap());
    assert_eq!(bench.row("SN01").await.certificate, before);
}

#[tokio::test]
async fn a_cloud_that_cannot_be_asked_changes_nothing() {
    let bench = Bench::new(fast());
    assert!(matches!(bench.register("SN01").await, Outcome::Registered(_)));
    let before = bench.row("SN01").await;
    bench.cloud.refuse(crate::iot_platform::Action::BatchQueryDeviceDetail, "Forbidden.RAM");
    assert_eq!(bench.registrar.sweep().await.unwrap(), Swept { devices: 1, changed: 0, failed: 1 });
    assert_eq!(bench.row("SN01").await, before);
}

#[tokio::test]
async fn of_two_processes_one_sweeps_and_the_next_goes_on_where_it_ended() {
    let bench = Bench::new(fast());
    for device in ["SN01", "SN02", "SN03"] {
        assert!(matches!(bench.register(device).await, Outcome::Registered(_)));
    }
    let other = owner();
    bench.store.take_lease(&other, "sweep").await.unwrap();
    assert_eq!(bench.registrar.sweep().await.unwrap(), Swept::default(), "the other one does it");
    bench.store.set_cursor(other.id, "sweep", "SN02").await.unwrap();
    bench.store.retire(other.id).await.unwrap();
    assert_eq!(bench.registrar.sweep().await.unwrap().devices, 1, "SN03 is left");
    assert_eq!(bench.registrar.sweep().await.unwrap().devices, 3);
}

#[tokio::test(start_paused = true)]
async fn a_process_with_a_lease_beats_and_keeps_it_however_long_it_works() {
    let (store, cloud) = (Memory::default(), Arc::new(Cloud::default()));
    let process = || {
        Registrar::new(Config::default(), owner(), Arc::new(store.clone()), cloud.clone(), Handle::current())
    };
    let (one, other) = (process(), process());
    let long = tokio::spawn(async move {
        let work = async |_| {
            tokio::time::sleep(Duration::from_secs(300)).await;
            Ok(7)
        };
        one.with_lease("work", work).await
    });
    for _ in 0..29 {
        tokio::time::sleep(Duration::from_secs(10)).await;
        assert_eq!(other.with_lease("work", async |_| Ok(1)).await.unwrap(), None);
    }
    assert_eq!(long.await.unwrap().unwrap(), Some(7));
    assert_eq!(other.with_lease("work", async |_| Ok(1)).await.unwrap(), Some(1));
}
