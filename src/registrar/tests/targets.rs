//! Tests of several targets in one process, in virtual time: each device is registered once, at its
//! own target, whatever happens to the other targets or to the configuration.

use rand::{RngExt, SeedableRng, rngs::StdRng};

use super::{
    batches::{name, row},
    crash::Line,
    *,
};
use crate::{
    iot_platform::Action,
    store::{Store, lease::Leases},
    testing::{
        cloud::busiest_second,
        store::{Fuse, Memory},
    },
};

const TOKYO: &str = "tokyo";
const OSAKA: &str = "osaka";

/// A table, and two clouds whose names and products are the same, so that a device could exist in
/// both.
struct World {
    store: Memory,
    tokyo: Arc<Cloud>,
    osaka: Arc<Cloud>,
}

impl World {
    fn new() -> Self {
        let (tokyo, osaka) = (Arc::<Cloud>::default(), Arc::<Cloud>::default());
        tokyo.set_account(TOKYO);
        osaka.set_account(OSAKA);
        Self { store: Memory::default(), tokyo, osaka }
    }

    /// Adds devices to an enrollment.
    fn add(&self, numbers: Range<usize>, enrollment: &str) {
        numbers.for_each(|number| self.store.insert(row(&name(number), enrollment, "a1")));
    }

    /// Starts a process. The devices of enrollment `of_tokyo` are registered in Tokyo, and those of
    /// `of_osaka` in Osaka.
    fn start(&self, config: &Config, of_tokyo: &str, of_osaka: &str) -> Arc<Targets> {
        self.start_with(config, &[(of_tokyo, TOKYO), (of_osaka, OSAKA)], &Arc::new(Fuse::new(usize::MAX)))
    }

    fn start_with(&self, config: &Config, of: &[(&str, &str)], fuse: &Arc<Fuse>) -> Arc<Targets> {
        let store = Arc::new(self.store.in_process(fuse.clone()));
        let target = |name: &str, cloud: &Arc<Cloud>| {
            let config = Config { target: name.to_owned(), names_target: true, ..config.clone() };
            let line = Arc::new(Line { cloud: cloud.clone(), fuse: fuse.clone() });
            let registrar = Registrar::new(config, owner(), store.clone(), line, Handle::current());
            Target { registrar, calls: Arc::default(), host: Some(format!("{name}.example")), missing: None }
        };
        let all = vec![target(TOKYO, &self.tokyo), target(OSAKA, &self.osaka)];
        let of = of.iter().map(|(enrollment, target)| ((*enrollment).to_owned(), (*target).to_owned()));
        Targets::new(all, of.collect(), true)
    }

    fn row(&self, number: usize) -> DeviceRow {
        self.store.row(&id(&name(number))).unwrap()
    }

    async fn register(&self, targets: &Targets, number: usize) -> Outcome {
        targets.register(&self.row(number), PATIENCE).await
    }

    /// Registers devices, and asks again as a device does. Returns when all have their certificates.
    async fn register_all(&self, targets: &Targets, numbers: Range<usize>) {
        let asking = numbers.map(|number| async move {
            loop {
                match self.register(targets, number).await {
                    Outcome::Registered(_) => return,
                    Outcome::Later(pause) => tokio::time::sleep(pause).await,
                    Outcome::TimedOut => tokio::time::sleep(Duration::from_secs(1)).await,
                    outcome => panic!("{outcome:?}"),
                }
            }
        });
        join_all(asking).await;
    }

    /// Returns the target whose cloud has the device. Fails if both clouds have it, or if the row
    /// names another target.
    fn place(&self, number: usize) -> &'static str {
        let secrets = [&self.tokyo, &self.osaka].map(|cloud| cloud.secret("a1", &name(number)));
        let (place, secret) = match secrets {
            [Some(secret), None] => (TOKYO, secret),
            [None, Some(secret)] => (OSAKA, secret),
            other => panic!("{number}: {other:?}"),
        };
        let row = self.row(number);
        assert_eq!(row.target.as_deref(), Some(place));
        assert_eq!(row.certificate.expect("a certificate").device_secret.expose(), secret);
        place
    }
}

fn config() -> Config {
    Config { seed: Some(7), gather: Duration::from_millis(100), ..Config::default() }
}

#[tokio::test(start_paused = true)]
async fn each_device_is_registered_at_its_target_one_by_one_and_in_batches() {
    let world = World::new();
    world.add(0..1, "lamps");
    world.add(1..2, "plugs");
    world.add(2..102, "lamps");
    world.add(102..202, "plugs");
    // A row that names its target has this target, whatever its enrollment says.
    world.store.insert(DeviceRow { target: Some(OSAKA.into()), ..row(&name(202), "lamps", "a1") });
    let targets = world.start(&config(), "lamps", "plugs");
    world.register_all(&targets, 0..203).await;
    for number in 0..203 {
        let is_osakas = matches!(number, 1 | 102..);
        assert_eq!(world.place(number), if is_osakas { OSAKA } else { TOKYO }, "{number}");
    }
    assert!(targets.all().iter().all(|target| target.registrar.counters().batches > 0));
    assert_eq!(targets.counters().registered, 203);
}

#[tokio::test(start_paused = true)]
async fn a_changed_configuration_moves_no_device() {
    let world = World::new();
    world.add(0..2, "lamps");
    world.register_all(&world.start(&config(), "lamps", "plugs"), 0..1).await;
    let changed = world.start(&config(), "plugs", "lamps");
    world.register_all(&changed, 0..2).await;
    assert_eq!((world.place(0), world.place(1)), (TOKYO, OSAKA));
    assert_eq!(changed.of(&world.row(0)), TOKYO);
    // The enrollments of a running process can change, too.
    world.add(2..3, "lamps");
    changed.set_of_enrollments(HashMap::from([("lamps".to_owned(), TOKYO.to_owned())]));
    world.register_all(&changed, 2..3).await;
    assert_eq!(world.place(2), TOKYO);
}

#[tokio::test(start_paused = true)]
async fn a_device_of_a_target_that_is_not_configured_waits_and_is_registered_nowhere() {
    let world = World::new();
    world.add(0..1, "others");
    world.store.insert(DeviceRow { target: Some("kobe".into()), ..row(&name(1), "lamps", "a1") });
    let targets = world.start(&config(), "lamps", "plugs");
    for (number, target) in [(0, "default"), (1, "kobe")] {
        let Outcome::NoTarget(reason) = world.register(&targets, number).await else { panic!("registered") };
        assert!(reason.contains(&format!("\"{target}\" is not configured")), "{reason}");
        assert_eq!(world.row(number).refusal, None);
    }
    assert_eq!((world.tokyo.devices(), world.osaka.devices()), (0, 0));
    // A device that was registered there has its certificate, and needs no cloud.
    let certified = row(&name(2), "lamps", "a1").with_certificate("SN", "s3cret");
    world.store.insert(DeviceRow { target: Some("kobe".into()), ..certified });
    assert_eq!(targets.stopped("kobe", "a1"), None);
}

/// Number of devices of each target in the following tests.
const MANY: usize = 300;

/// Registers the devices of Osaka while something is wrong with Tokyo, whose devices ask as well.
/// Returns the time that this takes.
async fn time_of_osaka(wrong: impl FnOnce(&Cloud)) -> Duration {
    let world = World::new();
    world.add(0..MANY, "lamps");
    world.add(MANY..2 * MANY, "plugs");
    wrong(&world.tokyo);
    let targets = world.start(&config(), "lamps", "plugs");
    let begun = Instant::now();
    let of_tokyo = join_all((0..MANY).map(|number| world.register(&targets, number)));
    let of_osaka = world.register_all(&targets, MANY..2 * MANY);
    let (_, took) = tokio::join!(of_tokyo, async {
        of_osaka.await;
        begun.elapsed()
    });
    assert_eq!(world.osaka.devices(), MANY);
    assert!((MANY..2 * MANY).all(|number| world.place(number) == OSAKA));
    took
}

#[tokio::test(start_paused = true)]
async fn a_target_that_is_down_slow_or_full_holds_up_no_other() {
    let usual = time_of_osaka(|_| {}).await;
    let down = time_of_osaka(|tokyo| {
        tokyo.script((0..10_000).map(|_| Scripted::Refuse(ErrorClass::TryAgain)));
    });
    let slow = time_of_osaka(|tokyo| {
        tokyo.script((0..10_000).map(|_| Scripted::Slow(Duration::from_secs(30))));
        tokyo.set_batch_delay(Duration::from_secs(300));
    });
    let full = time_of_osaka(|tokyo| {
        tokyo.refuse(Action::RegisterDevice, "iot.device.DeviceCountExceeded");
        tokyo.refuse(Action::BatchCheckDeviceNames, "iot.device.DeviceCountExceeded");
    });
    let gone = time_of_osaka(|tokyo| {
        Action::ALL.into_iter().for_each(|action| tokyo.refuse(action, "InvalidAccessKeyId.NotFound"));
    });
    for (what, took) in
        [("down", down.await), ("slow", slow.await), ("full", full.await), ("gone", gone.await)]
    {
        assert!(took <= usual.mul_f64(1.1), "{what}: {took:?} instead of {usual:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_breaker_stops_its_own_target_alone() {
    let world = World::new();
    world.add(0..1, "lamps");
    world.add(1..2, "plugs");
    world.tokyo.refuse(Action::RegisterDevice, "Forbidden.RAM");
    let targets = world.start(&config(), "lamps", "plugs");
    assert!(matches!(world.register(&targets, 0).await, Outcome::Operator(_)));
    assert!(matches!(world.register(&targets, 1).await, Outcome::Registered(_)));
    let open = |name| targets.named(name).unwrap().registrar.open_breakers();
    assert_eq!((open(TOKYO), open(OSAKA), targets.open_breakers()), (1, 0, 1));
    let stopped = |name| targets.stopped(name, &world.row(0).product_key);
    assert!(stopped(TOKYO).is_some() && stopped(OSAKA).is_none());
}

#[tokio::test(start_paused = true)]
async fn two_targets_of_one_account_share_its_pace_and_two_accounts_do_not() {
    let busiest = async |is_shared: bool| {
        let world = World::new();
        if is_shared {
            world.osaka.set_account(TOKYO);
        }
        world.add(0..MANY, "lamps");
        world.add(MANY..2 * MANY, "plugs");
        let targets = world.start(&Config { max_batches: 0, ..config() }, "lamps", "plugs");
        world.register_all(&targets, 0..2 * MANY).await;
        let times = |cloud: &Cloud| cloud.times(Action::RegisterDevice);
        busiest_second(&[times(&world.tokyo), times(&world.osaka)].concat())
    };
    let limit = Action::RegisterDevice.calls_per_second() as usize;
    let (shared, apart) = (busiest(true).await, busiest(false).await);
    assert!(shared <= limit, "{shared} calls in a second");
    assert!(apart > limit, "{apart} calls in a second");
}

#[tokio::test(start_paused = true)]
async fn a_sweep_looks_up_the_devices_of_its_target_and_no_others() {
    let world = World::new();
    world.add(0..3, "lamps");
    world.add(3..8, "plugs");
    let targets = world.start(&config(), "lamps", "plugs");
    world.register_all(&targets, 0..8).await;
    let begun = Instant::now();
    for (target, devices) in [(TOKYO, 3), (OSAKA, 5)] {
        let swept = targets.named(target).unwrap().registrar.sweep().await.unwrap();
        assert_eq!((swept.devices, swept.failed), (devices, 0), "{target}");
    }
    // Each device is known at only one cloud. If the other cloud were asked, the device would seem
    // deleted.
    for number in 0..8 {
        assert_eq!(world.row(number).cloud_state, None);
        let listed = |cloud: &Cloud| cloud.listed(&name(number), begun);
        let expected = if number < 3 { (1, 0) } else { (0, 1) };
        assert_eq!((listed(&world.tokyo), listed(&world.osaka)), expected, "{number}");
    }
    // Two processes sweep different targets at the same time.
    let other = Owner::new("other").unwrap();
    assert!(world.store.take_lease(&other, "sweep/tokyo").await.unwrap().is_some());
    let swept = targets.named(OSAKA).unwrap().registrar.sweep().await.unwrap();
    assert_eq!(swept.devices, 5);
    let swept = targets.named(TOKYO).unwrap().registrar.sweep().await.unwrap();
    assert_eq!(swept.devices, 0, "the other process has the lease");
}

#[tokio::test(start_paused = true)]
async fn the_store_has_the_clock_of_the_first_target_that_answers() {
    let world = World::new();
    world.tokyo.set_clock_ahead(7200);
    world.osaka.set_clock_ahead(-7200);
    let targets = world.start(&config(), "lamps", "plugs");
    let ahead = || targets.all()[0].registrar.store.now() - world.store.now();
    for _ in 0..5 {
        tokio::time::sleep(Duration::from_secs(3)).await;
        assert!(ahead() > 7000, "{}", ahead());
    }
    assert!(targets.clock_offset().is_some_and(|offset| offset > 7000));
    world.tokyo.hide_clock();
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert!(ahead() < -7000, "{}", ahead());
}

/// Runs one process until all devices have their certificates, or until it dies. Returns whether it
/// finished. A server also resumes what other processes have left behind, and a run of `register`
/// does not.
async fn run(world: &World, devices: usize, target: &str, steps: usize, is_server: bool) -> bool {
    let fuse = Arc::new(Fuse::new(steps));
    let targets = world.start_with(&config(), &[("lamps", target)], &fuse);
    let work = async {
        if is_server {
            targets.recover().await.unwrap();
        }
        world.register_all(&targets, 0..devices).await;
    };
    tokio::select! {
        biased;
        () = fuse.burnt() => false,
        () = work => true,
    }
}

/// Repeats a run of three processes. In each process, the configuration has the devices at another
/// target than in the process before. The first process dies later in each repetition, the second at
/// a random step, and the third finishes. Leaves out all but every `stride`th step.
fn at_every_step(devices: usize, stride: usize) -> usize {
    for steps in (1..).step_by(stride) {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        let done = runtime.block_on(async {
            let world = World::new();
            world.add(0..devices, "lamps");
            let done = run(&world, devices, TOKYO, steps, true).await;
            if !done {
                let again = StdRng::seed_from_u64(steps as u64).random_range(1..2 * steps + 10);
                run(&world, devices, OSAKA, again, steps % 2 == 0).await;
            }
            assert!(run(&world, devices, TOKYO, usize::MAX, false).await);
            (0..devices).for_each(|number| _ = world.place(number));
            done
        });
        if done {
            return steps;
        }
    }
    unreachable!("it never came to its end")
}

#[test]
fn a_crash_at_any_step_and_a_changed_configuration_make_no_second_device() {
    let steps = at_every_step(1, 1);
    assert!(steps >= 9, "{steps} steps");
    let steps = at_every_step(60, 11);
    assert!(steps > 300, "{steps} steps");
}
