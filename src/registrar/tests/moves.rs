//! Tests of moves to another target, in virtual time. Whatever call fails, and whenever the process
//! dies, the device is registered at the new target exactly once, and the table always has a
//! certificate of the device.

use rand::{RngExt, SeedableRng, rngs::StdRng};

use super::{batches::row, crash::Line, *};
use crate::{
    iot_platform::{Action, IotPlatform},
    store::{
        audit::AuditEvent,
        order::{Begun, Former, Move, OrderKind, Orders, Placed},
    },
    target,
    testing::store::{Fuse, Memory},
};

const NAME: &str = "SN01";
const TOKYO: &str = "tokyo";
/// Products of the devices at the default target, and of the devices in Tokyo.
const PRODUCTS: [&str; 2] = ["a1", "a2"];
const FORMERS: [Former; 3] = [Former::Keep, Former::Disable, Former::Delete];

fn operator() -> Actor {
    Actor { name: "user anna".into(), address: None }
}

fn to_tokyo(former: Former) -> Move {
    Move { target: TOKYO.into(), product_key: PRODUCTS[1].into(), former }
}

fn back(former: Former) -> Move {
    Move { target: target::DEFAULT.into(), product_key: PRODUCTS[0].into(), former }
}

fn config() -> Config {
    Config { manages: true, seed: Some(7), sweep_pause: None, ..Config::default() }
}

/// A device that is registered at the default target, and the clouds of two targets.
struct World {
    store: Memory,
    clouds: [Arc<Cloud>; 2],
}

impl World {
    /// Creates a world with a registered device. Unless `knows_iot_id` is set, the device's row has
    /// no `IotId`, as after an import.
    async fn new(knows_iot_id: bool) -> Self {
        let world = Self { store: Memory::default(), clouds: Default::default() };
        world.clouds[0].set_account("first");
        world.clouds[1].set_account(TOKYO);
        world.add(NAME, knows_iot_id).await;
        world
    }

    /// Registers a device at the default target.
    async fn add(&self, name: &str, knows_iot_id: bool) {
        let device = self.clouds[0].register_device(PRODUCTS[0], name).await.unwrap();
        self.store.insert(DeviceRow {
            iot_id: device.iot_id.filter(|_| knows_iot_id),
            device_name: Some(name.into()),
            certificate: Some(device.certificate),
            first_issued: Some(1),
            ..row(name, "lamp", PRODUCTS[0])
        });
    }

    async fn place(&self, name: &str, to: &Move) {
        let placed = self.store.place_move(&id(name), to, Begun::Keep, &operator()).await.unwrap();
        assert!(matches!(placed, Placed::Yes(_)), "{placed:?}");
    }

    /// Starts a process with both targets.
    fn start(&self, config: &Config, fuse: &Arc<Fuse>) -> [Arc<Registrar>; 2] {
        let store = Arc::new(self.store.in_process(fuse.clone()));
        let registrar = |name: &str, cloud: &Arc<Cloud>| {
            let line = Arc::new(Line { cloud: cloud.clone(), fuse: fuse.clone() });
            let config = Config { target: name.into(), ..config.clone() };
            Registrar::new(config, owner(), store.clone(), line, Handle::current())
        };
        [registrar(target::DEFAULT, &self.clouds[0]), registrar(TOKYO, &self.clouds[1])]
    }

    fn start_living(&self, config: &Config) -> [Arc<Registrar>; 2] {
        self.start(config, &Arc::new(Fuse::new(usize::MAX)))
    }

    /// Runs one process until it has carried out all orders, or until it dies. Returns whether it
    /// finished.
    async fn run(&self, config: &Config, steps: usize) -> bool {
        let fuse = Arc::new(Fuse::new(steps));
        let _registrars = self.start(config, &fuse);
        let work = async {
            while !self.is_done().await {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        tokio::select! {
            biased;
            () = fuse.burnt() => false,
            () = work => true,
        }
    }

    async fn is_done(&self) -> bool {
        self.store.orders_after(None, 0, 1).await.unwrap().is_empty()
    }

    async fn until_done(&self) {
        while !self.is_done().await {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }

    fn row(&self, name: &str) -> DeviceRow {
        self.store.row(&id(name)).unwrap()
    }

    fn secret_in_table(&self, name: &str) -> String {
        self.row(name).certificate.expect("a certificate").device_secret.expose().to_owned()
    }

    /// Returns the secrets of a device at the two clouds.
    fn secrets(&self, name: &str) -> [Option<String>; 2] {
        [0, 1].map(|at| self.clouds[at].secret(PRODUCTS[at], name))
    }

    async fn is_disabled(&self, at: usize, name: &str) -> bool {
        self.clouds[at].query_device_detail(PRODUCTS[at], name).await.unwrap().disabled
    }

    async fn failure(&self, name: &str) -> Option<String> {
        self.store.order_of(&id(name)).await.unwrap().expect("it waits").failure
    }

    /// Returns the event and the detail of the last audit entry about a device.
    async fn last_entry(&self, name: &str) -> (AuditEvent, String) {
        let entry = self.store.history(&id(name), 1).await.unwrap().remove(0);
        (entry.event, entry.detail.unwrap_or_default())
    }
}

/// Checks that a device was moved to Tokyo, and that nothing else was changed.
async fn check(world: &World, former: Former) {
    let row = world.row(NAME);
    assert_eq!((row.target(), row.product_key.as_str()), (Some(TOKYO), PRODUCTS[1]));
    assert_eq!(row.first_issued, None, "the device may fetch its new certificate");
    let [there, here] = world.secrets(NAME);
    assert_eq!(here, Some(world.secret_in_table(NAME)));
    let iot_id = world.clouds[1].query_device_detail(PRODUCTS[1], NAME).await.unwrap().iot_id;
    assert_eq!(row.iot_id, iot_id);
    assert_eq!(world.clouds[1].devices(), 1);
    match former {
        Former::Keep => assert!(!world.is_disabled(0, NAME).await),
        Former::Disable => assert!(world.is_disabled(0, NAME).await),
        Former::Delete => assert_eq!(there, None),
    }
    let history = world.store.history(&id(NAME), 20).await.unwrap();
    let moved = history.iter().filter(|entry| entry.event == AuditEvent::Moved).count();
    assert_eq!(moved, if former == Former::Keep { 1 } else { 2 });
}

/// An existing name is refused unless certdist has created it. So the move would end if certdist did
/// not recognize the device that it created before a crash.
#[test]
fn a_device_is_moved_once_through_a_crash_at_every_step() {
    let config = Config { refuse_existing: ["lamp".to_owned()].into(), ..config() };
    for (former, knows_iot_id) in FORMERS.into_iter().flat_map(|former| [(former, true), (former, false)]) {
        for steps in 1.. {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_time()
                .start_paused(true)
                .build()
                .unwrap();
            let done = runtime.block_on(async {
                let world = World::new(knows_iot_id).await;
                world.place(NAME, &to_tokyo(former)).await;
                let done = world.run(&config, steps).await;
                let stored = Some(world.secret_in_table(NAME));
                assert!(world.secrets(NAME).contains(&stored), "a certificate that works is in the table");
                if !done {
                    let again = StdRng::seed_from_u64(steps as u64).random_range(1..2 * steps + 10);
                    world.run(&config, again).await;
                }
                assert!(world.run(&config, usize::MAX).await);
                check(&world, former).await;
                done
            });
            if done {
                assert!(steps > 10, "{former:?}: {steps} steps");
                break;
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_lost_answer_leads_to_the_same_device() {
    let world = World::new(true).await;
    world.clouds[1]
        .script([Scripted::Refuse(ErrorClass::TryAgain), Scripted::CreateAndLose(ErrorClass::TimedOut)]);
    world.place(NAME, &to_tokyo(Former::Keep)).await;
    let config = Config { refuse_existing: ["lamp".to_owned()].into(), ..config() };
    assert!(world.run(&config, usize::MAX).await);
    check(&world, Former::Keep).await;
}

#[tokio::test(start_paused = true)]
async fn a_name_that_another_party_has_created_is_adopted_only_where_that_is_permitted() {
    for refuses in [true, false] {
        let world = World::new(true).await;
        world.clouds[1].make(PRODUCTS[1], NAME);
        tokio::time::sleep(Duration::from_secs(60)).await;
        let before = world.row(NAME);
        // The first call certainly does not create the device.
        world.clouds[1].script([Scripted::Refuse(ErrorClass::Throttled)]);
        world.place(NAME, &to_tokyo(Former::Delete)).await;
        let refuse_existing = refuses.then(|| "lamp".to_owned()).into_iter().collect();
        assert!(world.run(&Config { refuse_existing, ..config() }, usize::MAX).await);
        if refuses {
            let (event, detail) = world.last_entry(NAME).await;
            assert_eq!(event, AuditEvent::Cancelled);
            assert!(detail.contains("NameIsTaken") && detail.contains("target tokyo"), "{detail}");
            assert_eq!(world.row(NAME), before);
            assert!(world.secrets(NAME)[0].is_some(), "the former device is as it was");
        } else {
            check(&world, Former::Delete).await;
        }
    }
}

/// A device that another party creates while a move waits does not count as created by certdist.
#[tokio::test(start_paused = true)]
async fn a_name_that_is_created_while_a_move_waits_is_not_ours() {
    let world = World::new(true).await;
    let before = world.row(NAME);
    world.clouds[1].refuse(Action::RegisterDevice, "iot.device.DeviceCountExceeded");
    world.place(NAME, &to_tokyo(Former::Keep)).await;
    let config = Config { refuse_existing: ["lamp".to_owned()].into(), ..config() };
    let _registrars = world.start_living(&config);
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(world.failure(NAME).await.unwrap().contains("DeviceCountExceeded"));
    world.clouds[1].make(PRODUCTS[1], NAME);
    world.clouds[1].allow(Action::RegisterDevice);
    world.until_done().await;
    assert_eq!(world.row(NAME), before);
    assert!(world.last_entry(NAME).await.1.contains("NameIsTaken"));
}

#[tokio::test(start_paused = true)]
async fn a_move_is_undone_by_moving_back() {
    for former in FORMERS {
        let world = World::new(true).await;
        let before = world.row(NAME);
        world.place(NAME, &to_tokyo(former)).await;
        assert!(world.run(&config(), usize::MAX).await);
        world.place(NAME, &back(Former::Delete)).await;
        assert!(world.run(&config(), usize::MAX).await);
        let row = world.row(NAME);
        assert_eq!((row.target(), row.product_key.as_str()), (Some(target::DEFAULT), PRODUCTS[0]));
        let [there, in_tokyo] = world.secrets(NAME);
        assert_eq!((there, in_tokyo), (Some(world.secret_in_table(NAME)), None));
        assert_eq!(row.certificate == before.certificate, former != Former::Delete, "{former:?}");
        assert!(!world.is_disabled(0, NAME).await, "{former:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn without_the_right_a_disabled_device_is_not_moved_back() {
    let world = World::new(true).await;
    world.place(NAME, &to_tokyo(Former::Disable)).await;
    assert!(world.run(&config(), usize::MAX).await);
    let before = world.row(NAME);
    world.place(NAME, &back(Former::Keep)).await;
    assert!(world.run(&Config { manages: false, ..config() }, usize::MAX).await);
    let (event, detail) = world.last_entry(NAME).await;
    assert!(event == AuditEvent::Cancelled && detail.contains("disabled there; enable it"), "{detail}");
    assert_eq!(world.row(NAME), before);
}

#[tokio::test(start_paused = true)]
async fn a_target_that_refuses_holds_up_only_the_moves_to_it() {
    let world = World::new(true).await;
    for name in ["SN02", "SN03"] {
        world.add(name, true).await;
    }
    world.place("SN03", &to_tokyo(Former::Keep)).await;
    assert!(world.run(&config(), usize::MAX).await);

    world.clouds[1].refuse(Action::RegisterDevice, "iot.system.InstanceNotFound");
    for name in [NAME, "SN02"] {
        world.place(name, &to_tokyo(Former::Keep)).await;
    }
    world.place("SN03", &back(Former::Keep)).await;
    let calls = world.clouds[1].calls(Action::RegisterDevice);
    let _registrars = world.start_living(&config());
    tokio::time::sleep(Duration::from_secs(20)).await;
    assert_eq!(world.row("SN03").target(), Some(target::DEFAULT));
    // The breaker stops the second call, but both orders show the reason.
    assert_eq!(world.clouds[1].calls(Action::RegisterDevice) - calls, 1);
    for name in [NAME, "SN02"] {
        let failure = world.failure(name).await.unwrap();
        assert!(failure.contains("iot.system.InstanceNotFound"), "{name}: {failure}");
        assert_eq!(world.row(name).target(), Some(target::DEFAULT));
        assert!(world.secrets(name).contains(&Some(world.secret_in_table(name))));
    }
    tokio::time::sleep(Duration::from_secs(3600)).await;
    let calls = world.clouds[1].calls(Action::RegisterDevice) - calls;
    assert!((2..30).contains(&calls), "{calls} calls in an hour: the breaker is open");
    world.clouds[1].allow(Action::RegisterDevice);
    world.until_done().await;
    for name in [NAME, "SN02"] {
        assert_eq!(world.row(name).target(), Some(TOKYO));
    }
}

/// A device with another secret is not the one in the table.
#[tokio::test(start_paused = true)]
async fn a_former_device_with_another_secret_is_not_touched() {
    let world = World::new(false).await;
    let mut row = world.row(NAME);
    row.certificate.as_mut().unwrap().device_secret = crate::device::Secret::new("other".into());
    world.store.insert(row.clone());
    world.place(NAME, &to_tokyo(Former::Delete)).await;
    assert!(world.run(&config(), usize::MAX).await);
    assert!(world.last_entry(NAME).await.1.contains("has another secret"));
    assert_eq!((world.row(NAME), world.clouds[1].devices()), (row, 0));
    assert!(!world.is_disabled(0, NAME).await);
}

#[tokio::test(start_paused = true)]
async fn a_former_device_that_is_gone_does_not_hold_up_the_move() {
    for former in FORMERS {
        let world = World::new(true).await;
        world.clouds[0].delete(PRODUCTS[0], NAME);
        world.place(NAME, &to_tokyo(former)).await;
        assert!(world.run(&config(), usize::MAX).await);
        assert_eq!(world.secrets(NAME), [None, Some(world.secret_in_table(NAME))]);
    }
}

/// Two targets that are one instance have the same device, which must not be deleted.
#[tokio::test(start_paused = true)]
async fn two_targets_with_the_same_device_are_noticed() {
    let world = World::new(true).await;
    // The row says that the device of Tokyo is at the default target, in another product.
    let device = world.clouds[1].register_device(PRODUCTS[1], NAME).await.unwrap();
    let row = DeviceRow { iot_id: device.iot_id, ..world.row(NAME) };
    world.store.insert(row.clone());
    world.place(NAME, &to_tokyo(Former::Keep)).await;
    assert!(world.run(&config(), usize::MAX).await);
    let (event, detail) = world.last_entry(NAME).await;
    assert!(event == AuditEvent::Cancelled && detail.contains("are one instance"), "{detail}");
    assert_eq!(world.row(NAME), row);
}

#[tokio::test(start_paused = true)]
async fn registering_needs_no_right_and_the_former_device_does() {
    let config = Config { manages: false, ..config() };
    let world = World::new(true).await;
    world.place(NAME, &to_tokyo(Former::Keep)).await;
    assert!(world.run(&config, usize::MAX).await);
    check(&world, Former::Keep).await;

    let world = World::new(true).await;
    let before = world.row(NAME);
    world.place(NAME, &to_tokyo(Former::Delete)).await;
    let _registrars = world.start_living(&config);
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert_eq!((world.row(NAME), world.clouds[1].devices()), (before, 0));
    assert_eq!(world.store.order_of(&id(NAME)).await.unwrap().unwrap().kind, OrderKind::Move);
}

#[tokio::test(start_paused = true)]
async fn a_device_is_not_moved_while_it_could_not_get_its_new_certificate() {
    let world = World::new(true).await;
    let before = world.row(NAME);
    let closed = Guards { closes: Some(1), ..Guards::default() };
    let config = Config { guards: [("lamp".to_owned(), closed)].into(), ..config() };
    world.place(NAME, &to_tokyo(Former::Keep)).await;
    let registrars = world.start_living(&config);
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert_eq!((world.row(NAME), world.clouds[1].devices()), (before, 0));
    assert!(world.failure(NAME).await.unwrap().contains("enrollment lamp gives out no first certificates"));
    registrars.iter().for_each(|registrar| registrar.set_guards(HashMap::new()));
    world.until_done().await;
    check(&world, Former::Keep).await;
}

#[tokio::test(start_paused = true)]
async fn a_former_device_lasts_while_the_device_could_not_get_its_new_certificate() {
    let world = World::new(true).await;
    world.place(NAME, &to_tokyo(Former::Delete)).await;
    let registrars = world.start_living(&config());
    while world.row(NAME).first_issued.is_some() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    // The enrollment closes before the former device is deleted.
    let closed = Guards { closes: Some(1), ..Guards::default() };
    registrars.iter().for_each(|registrar| registrar.set_guards([("lamp".to_owned(), closed)].into()));
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert!(world.secrets(NAME)[0].is_some());
    assert!(world.failure(NAME).await.unwrap().contains("enrollment lamp gives out no first certificates"));
    registrars.iter().for_each(|registrar| registrar.set_guards(HashMap::new()));
    world.until_done().await;
    check(&world, Former::Delete).await;
}

/// A process that was suspended is fenced, and another one carries its order out. The suspended process
/// is then told that the name exists, because of the call of the other process.
#[tokio::test(start_paused = true)]
async fn a_process_that_was_fenced_ends_no_move_of_another() {
    let world = World::new(true).await;
    world.clouds[1]
        .script([Scripted::Slow(Duration::from_secs(3)), Scripted::CreateAndLose(ErrorClass::TimedOut)]);
    world.place(NAME, &to_tokyo(Former::Keep)).await;
    let pause = Duration::from_secs(60);
    let refuse_existing = ["lamp".to_owned()].into();
    let config = Config { refuse_existing, retry_pause: pause, max_retry_pause: pause, ..config() };
    let calls = async |count| {
        while world.clouds[1].calls(Action::RegisterDevice) < count {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let _late = world.start_living(&config);
    calls(1).await;
    for beat in world.store.beats(None).await.unwrap() {
        assert!(world.store.fence(beat).await.unwrap());
    }
    let _other = world.start_living(&config);
    calls(2).await;
    world.until_done().await;
    check(&world, Former::Keep).await;
}

#[tokio::test(start_paused = true)]
async fn a_process_that_stops_finishes_the_call_of_an_order_and_begins_none() {
    for deadline in [10, 1].map(Duration::from_secs) {
        let world = World::new(true).await;
        world.clouds[1].script([Scripted::Slow(Duration::from_secs(3))]);
        world.place(NAME, &to_tokyo(Former::Delete)).await;
        let [there, tokyo] = world.start_living(&config());
        while world.clouds[1].calls(Action::RegisterDevice) == 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let begun = Instant::now();
        there.drain(deadline).await;
        tokyo.drain(deadline).await;
        assert!(begun.elapsed() < deadline.min(Duration::from_secs(3)) + Duration::from_millis(100));
        let is_finished = deadline > Duration::from_secs(3);
        assert_eq!(world.row(NAME).target() == Some(TOKYO), is_finished);
        let order = world.store.order_of(&id(NAME)).await.unwrap().expect("its last step is left");
        assert!(order.moving.unwrap().asked.is_some());
        tokio::time::sleep(Duration::from_secs(600)).await;
        assert!(world.secrets(NAME)[0].is_some(), "no further call was made");
        let _next = world.start_living(&config());
        world.until_done().await;
        check(&world, Former::Delete).await;
    }
}

#[tokio::test(start_paused = true)]
async fn orders_that_wait_for_their_turn_are_not_begun_by_a_process_that_stops() {
    let world = World::new(true).await;
    for name in ["SN02", "SN03", "SN04"] {
        world.add(name, true).await;
    }
    for name in [NAME, "SN02", "SN03", "SN04"] {
        world.place(name, &to_tokyo(Former::Keep)).await;
    }
    let [_there, tokyo] = world.start_living(&Config { qps: 1.0, shared_qps: 1.0, ..config() });
    while world.clouds[1].calls(Action::RegisterDevice) == 0 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    tokyo.drain(Duration::from_secs(60)).await;
    assert_eq!(world.clouds[1].calls(Action::RegisterDevice), 1);
    for order in world.store.orders_after(None, 0, 9).await.unwrap() {
        assert_eq!((order.moving.unwrap().asked, order.failure), (None, None));
    }
}

/// The row is changed between two steps of a move, after the device was registered.
#[tokio::test(start_paused = true)]
async fn a_device_that_no_row_has_after_a_move_is_in_the_audit_log() {
    let world = World::new(true).await;
    world.clouds[1].script([Scripted::CreateAndLose(ErrorClass::TimedOut)]);
    world.place(NAME, &to_tokyo(Former::Keep)).await;
    let pause = Duration::from_secs(60);
    let _registrars = world.start_living(&Config { retry_pause: pause, max_retry_pause: pause, ..config() });
    while world.clouds[1].devices() == 0 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    world.store.insert(DeviceRow { certificate: None, ..world.row(NAME) });
    world.until_done().await;
    let (event, detail) = world.last_entry(NAME).await;
    assert_eq!(event, AuditEvent::Cancelled);
    assert!(detail.contains("the row was changed meanwhile; device a2/SN01 may exist at tokyo"), "{detail}");
}
