//! Crash tests in virtual time: a process dies before or after any access to the store or call to
//! the cloud. Once a later process has finished, each device must exist exactly once at the
//! cloud, and the store must hold its certificate.

use rand::{RngExt, SeedableRng, rngs::StdRng};

use super::{
    batches::{name, row},
    *,
};
use crate::{
    iot_platform::{ApiFuture, ApplyId, BatchPage, BatchProgress, CloudDevice, IotPlatform, Thing},
    testing::store::{Fuse, Memory},
};

/// A process's connection to the cloud. The process may die before a call is carried out, or
/// before the answer is read.
pub(super) struct Line {
    pub(super) cloud: Arc<Cloud>,
    pub(super) fuse: Arc<Fuse>,
}

impl Line {
    fn call<'a, T: Send + 'a>(
        &'a self,
        call: impl FnOnce() -> ApiFuture<'a, T> + Send + 'a,
    ) -> ApiFuture<'a, T> {
        Box::pin(async move {
            self.fuse.step().await;
            let answer = call().await;
            self.fuse.step().await;
            answer
        })
    }
}

impl IotPlatform for Line {
    fn account(&self) -> String {
        self.cloud.account()
    }

    fn clock_offset(&self) -> Option<i64> {
        self.cloud.clock_offset()
    }

    fn register_device<'a>(&'a self, product: &'a str, name: &'a str) -> ApiFuture<'a, CloudDevice> {
        self.call(|| self.cloud.register_device(product, name))
    }

    fn query_device_detail<'a>(&'a self, product: &'a str, name: &'a str) -> ApiFuture<'a, CloudDevice> {
        self.call(|| self.cloud.query_device_detail(product, name))
    }

    fn batch_check_device_names<'a>(
        &'a self,
        product: &'a str,
        names: &'a [String],
    ) -> ApiFuture<'a, ApplyId> {
        self.call(|| self.cloud.batch_check_device_names(product, names))
    }

    fn query_batch_register_device_status<'a>(
        &'a self,
        product: &'a str,
        apply_id: ApplyId,
    ) -> ApiFuture<'a, BatchProgress> {
        self.call(move || self.cloud.query_batch_register_device_status(product, apply_id))
    }

    fn batch_register_device_with_apply_id<'a>(
        &'a self,
        product: &'a str,
        apply_id: ApplyId,
    ) -> ApiFuture<'a, ApplyId> {
        self.call(move || self.cloud.batch_register_device_with_apply_id(product, apply_id))
    }

    fn query_page_by_apply_id<'a>(
        &'a self,
        product: &'a str,
        apply_id: ApplyId,
        page: u32,
    ) -> ApiFuture<'a, BatchPage> {
        self.call(move || self.cloud.query_page_by_apply_id(product, apply_id, page))
    }

    fn batch_query_device_detail<'a>(
        &'a self,
        product: &'a str,
        names: &'a [String],
    ) -> ApiFuture<'a, Vec<CloudDevice>> {
        self.call(|| self.cloud.batch_query_device_detail(product, names))
    }

    fn disable_thing<'a>(&'a self, thing: Thing<'a>) -> ApiFuture<'a, ()> {
        self.call(move || self.cloud.disable_thing(thing))
    }

    fn enable_thing<'a>(&'a self, thing: Thing<'a>) -> ApiFuture<'a, ()> {
        self.call(move || self.cloud.enable_thing(thing))
    }

    fn delete_device<'a>(&'a self, thing: Thing<'a>) -> ApiFuture<'a, ()> {
        self.call(move || self.cloud.delete_device(thing))
    }
}

/// State that outlives the processes.
struct World {
    store: Memory,
    cloud: Arc<Cloud>,
    devices: usize,
}

impl World {
    fn new(devices: usize) -> Self {
        let world = Self { store: Memory::default(), cloud: Arc::default(), devices };
        for number in 0..devices {
            world.store.insert(row(&name(number), "lamp", "a1"));
        }
        world.cloud.set_batch_delay(Duration::from_secs(2));
        world
    }

    /// Runs one process until all devices have their certificates, or until it dies. Returns
    /// whether it finished.
    async fn run(&self, config: &Config, steps: usize) -> bool {
        let fuse = Arc::new(Fuse::new(steps));
        let store = Arc::new(self.store.in_process(fuse.clone()));
        let line = Arc::new(Line { cloud: self.cloud.clone(), fuse: fuse.clone() });
        let registrar = Registrar::new(config.clone(), owner(), store, line, Handle::current());
        let work = async {
            registrar.recover().await.unwrap();
            let asking = (0..self.devices).map(|number| {
                let registrar = registrar.clone();
                async move {
                    loop {
                        match registrar.register(wanted(&name(number)), PATIENCE).await {
                            Outcome::Registered(_) => return,
                            Outcome::Later(pause) => tokio::time::sleep(pause).await,
                            Outcome::TimedOut => tokio::time::sleep(Duration::from_secs(1)).await,
                            outcome => panic!("{outcome:?}"),
                        }
                    }
                }
            });
            futures_util::future::join_all(asking).await;
            // The process closes its own batch after the last answer. It closes the batch of an
            // earlier process once that process counts as dead.
            while !self.is_closed().await {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        tokio::select! {
            biased;
            () = fuse.burnt() => false,
            () = work => true,
        }
    }

    async fn is_as_it_should_be(&self) {
        assert_eq!(self.cloud.devices(), self.devices, "one device each");
        for number in 0..self.devices {
            let stored = self.store.row(&id(&name(number))).unwrap().certificate.expect("a certificate");
            let theirs = self.cloud.query_device_detail("a1", &name(number)).await.unwrap().certificate;
            assert_eq!(stored, theirs);
        }
    }

    /// Returns whether the journal is empty.
    async fn is_closed(&self) -> bool {
        let (entries, batches) = (self.store.open_entries().await, self.store.open_batches().await);
        entries.unwrap().is_empty() && batches.unwrap().is_empty()
    }
}

/// Repeats a run of up to three processes. In each repetition, the first process dies one step
/// later, until it finishes. The second process dies at a random step or finishes, and the third
/// process must finish. Returns the number of steps of a whole run.
fn at_every_step(devices: usize, config: &Config) -> usize {
    at_every_step_of(|| World::new(devices), config)
}

/// Does the same as [`at_every_step`], but starts each repetition in a new world from `world`.
fn at_every_step_of(world: impl Fn() -> World, config: &Config) -> usize {
    for steps in 1.. {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        let done = runtime.block_on(async {
            let world = world();
            let done = world.run(config, steps).await;
            if !done {
                let again = StdRng::seed_from_u64(steps as u64).random_range(1..2 * steps + 10);
                world.run(config, again).await;
            }
            assert!(world.run(config, usize::MAX).await);
            world.is_as_it_should_be().await;
            done
        });
        if done {
            return steps;
        }
    }
    unreachable!("it never came to its end")
}

fn config() -> Config {
    Config { seed: Some(7), ..Config::default() }
}

#[test]
fn a_single_registration_survives_a_crash_at_every_step() {
    let steps = at_every_step(1, &config());
    // Four operations have one step before and one step after them: reading the row, opening the
    // journal entry, making the call, and storing the certificate. A process that dies at any of
    // these eight steps does not finish.
    assert!(steps >= 9, "{steps} steps");
}

#[test]
fn a_batch_survives_a_crash_at_every_step() {
    let steps = at_every_step(70, &Config { gather: Duration::from_millis(100), ..config() });
    assert!(steps > 500, "{steps} steps");
}

#[test]
fn with_existing_names_refused_nothing_of_ours_is_refused_after_a_crash() {
    let config = Config {
        refuse_existing: ["lamp".to_owned()].into(),
        gather: Duration::from_millis(100),
        ..config()
    };
    at_every_step(1, &config);
    at_every_step(55, &config);
}

/// When a batch is not permitted, its devices are registered one by one. If the process dies during
/// these registrations, the devices that it has created still count as registered by this server.
#[test]
fn what_leaves_a_batch_is_claimed_before_its_own_call() {
    let config = Config {
        refuse_existing: ["lamp".to_owned()].into(),
        gather: Duration::from_millis(100),
        qps: 5.0,
        shared_qps: 5.0,
        ..config()
    };
    at_every_step_of(
        || {
            let world = World::new(30);
            world.cloud.refuse(crate::iot_platform::Action::BatchCheckDeviceNames, "Forbidden.RAM");
            world
        },
        &config,
    );
}
