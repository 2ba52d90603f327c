//! Tests of several processes that use one table at the same time, in virtual time. The processes
//! are servers and `register` runs that die at any step and start again. Some processes are fenced
//! although they are alive, like a process that was suspended. Meanwhile, an operator disables devices
//! and, in half of the runs, also rotates them and moves them between two targets. The clouds fail in
//! every way that the simulation knows. One seed determines the whole run.

use rand::{RngExt, SeedableRng, rngs::StdRng};

use super::{
    batches::{name, row},
    crash::Line,
    *,
};
use crate::{
    iot_platform::Action,
    store::{
        DeviceState, Store,
        audit::{AuditEntry, AuditEvent},
        claim::NAME_IS_TAKEN,
        order::{Begun, Former, Move, OrderKind, Orders, Placed},
    },
    target,
    testing::store::{Fuse, Memory},
};

const TOKYO: &str = "tokyo";

/// Time within which every device must have its certificate.
const END: Duration = Duration::from_secs(4 * 3600);

/// Range of seeds that the test uses by default. `CERTDIST_SEEDS` selects another range, such as
/// `0..500`.
const SEEDS: Range<u64> = 0..40;

/// State of one run: its table, its cloud, and the source of its random choices.
struct Company {
    store: Memory,
    cloud: Arc<Cloud>,
    /// The cloud of a second target, to which devices are moved.
    tokyo: Arc<Cloud>,
    devices: usize,
    products: usize,
    config: Config,
    random: StdRng,
    /// Random numbers that choose the processes to fence.
    fencing: StdRng,
    /// Set if the table is on a network that loses answers.
    is_lossy: bool,
    /// Set if the operator rotates and moves devices.
    has_orders: bool,
    operator: Option<tokio::task::JoinHandle<()>>,
}

impl Company {
    fn new(seed: u64) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        // A small number of devices is registered one by one, a large number in batches.
        let devices =
            if random.random_bool(0.5) { random.random_range(1..30) } else { random.random_range(60..300) };
        let store = Memory::default();
        let products = if random.random_bool(0.5) { 1 } else { 10 };
        for number in 0..devices {
            store.insert(row(&name(number), "lamp", &product_of(number, products)));
        }
        let refuse_existing =
            if random.random_bool(0.5) { ["lamp".to_owned()].into() } else { HashSet::new() };
        let gather = Duration::from_millis(300);
        let config = Config { refuse_existing, gather, manages: true, ..Config::default() };
        let cloud = Arc::new(Cloud::with_dice(random.random()));
        let tokyo = Arc::new(Cloud::with_dice(random.random()));
        tokyo.set_account(TOKYO);
        for cloud in [&cloud, &tokyo] {
            cloud.set_batch_delay(Duration::from_secs(random.random_range(1..10)));
        }
        let is_lossy = random.random_bool(0.5);
        let has_orders = random.random_bool(0.5);
        let (operator, fencing) = (None, StdRng::seed_from_u64(!seed));
        Self {
            store,
            cloud,
            tokyo,
            devices,
            products,
            config,
            random,
            fencing,
            is_lossy,
            has_orders,
            operator,
        }
    }

    /// Starts a process, which dies when the steps of its fuse are used up. A `register` run also
    /// ends when all its devices are registered.
    fn start(&mut self, fuse: &Arc<Fuse>, is_last: bool) -> tokio::task::JoinHandle<()> {
        let mut store = self.store.in_process(fuse.clone());
        if self.is_lossy {
            store.lose_answers(self.random.random(), 30);
        }
        let ahead = [-7200, 0, 7200][self.random.random_range(0..3)];
        store.clock().set_ahead(ahead);
        let store = Arc::new(store);
        let clouds = [(target::DEFAULT, self.cloud.clone()), (TOKYO, self.tokyo.clone())];
        let all = clouds.map(|(name, cloud)| {
            let line = Arc::new(Line { cloud, fuse: fuse.clone() });
            let seed = Some(self.random.random());
            let config = Config { seed, target: name.into(), ..self.config.clone() };
            let registrar = Registrar::new(config, owner(), store.clone(), line, Handle::current());
            Target { registrar, calls: Arc::default(), host: None, missing: None }
        });
        let targets = Targets::new(all.into(), HashMap::new(), true);
        let is_server = is_last || self.random.random_bool(0.6);
        // A `register` run registers all devices. A server gets requests from some of the devices,
        // or from all.
        let part = if is_server && !is_last { [0.3, 0.7, 1.0][self.random.random_range(0..3)] } else { 1.0 };
        let asked: Vec<usize> = (0..self.devices).filter(|_| self.random.random_bool(part)).collect();
        let patience = if is_server { Duration::from_secs(10) } else { Duration::from_secs(24 * 3600) };
        tokio::spawn(async move {
            if is_server {
                while targets.recover().await.is_err() {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
            let asking = asked.into_iter().map(|number| {
                let (targets, store) = (targets.clone(), store.clone());
                async move {
                    loop {
                        let Ok(row) = store.device(&id(&name(number))).await else { continue };
                        let row = row.expect("no device is deleted");
                        if row.certificate.is_some() {
                            return;
                        }
                        match targets.register(&row, patience).await {
                            Outcome::Later(pause) => tokio::time::sleep(pause).await,
                            Outcome::TimedOut | Outcome::Operator(_) => {
                                tokio::time::sleep(Duration::from_secs(5)).await;
                            }
                            Outcome::Registered(_) => return,
                            // The operator may have disabled the device for a while, so the device
                            // asks again later.
                            Outcome::Changed | Outcome::NoPlace => {
                                tokio::time::sleep(Duration::from_secs(60)).await
                            }
                            Outcome::Refused(reason)
                            | Outcome::SharedName(reason)
                            | Outcome::Elsewhere(reason)
                            | Outcome::NoTarget(reason) => panic!("{reason}"),
                        }
                    }
                }
            });
            futures_util::future::join_all(asking).await;
            // A server keeps running after the last request.
            if is_server {
                std::future::pending::<()>().await;
            }
            targets.drain(Duration::from_secs(10)).await;
        })
    }

    /// Starts a task that repeatedly disables a random device for a while, and perhaps places orders.
    fn start_operator(&mut self) {
        let (store, devices, products) = (self.store.clone(), self.devices, self.products);
        let mut random = StdRng::seed_from_u64(self.random.random());
        let orders = if self.has_orders { 30 } else { 0 };
        self.operator = Some(tokio::spawn(async move {
            let by = Actor::system_user();
            for _ in 0..orders {
                tokio::time::sleep(Duration::from_millis(random.random_range(0..10_000))).await;
                let number = random.random_range(0..devices);
                let device = id(&name(number));
                let former = [Former::Keep, Former::Disable, Former::Delete][random.random_range(0..3)];
                let placed = match random.random_range(0..6) {
                    0 => store.place_order(&device, OrderKind::Rotate, &by).await,
                    1 => store.place_order(&device, OrderKind::Disable, &by).await,
                    2 => store.place_order(&device, OrderKind::Enable, &by).await,
                    kind => {
                        let target = if kind == 3 { target::DEFAULT } else { TOKYO };
                        let product_key = product_at(target, number, products);
                        let to = Move { target: target.into(), product_key, former };
                        store.place_move(&device, &to, Begun::Keep, &by).await
                    }
                };
                assert!(!matches!(placed.unwrap(), Placed::NoDevice | Placed::NameTaken(_)));
            }
            for _ in 0..10 {
                tokio::time::sleep(Duration::from_millis(random.random_range(0..20_000))).await;
                let device = id(&name(random.random_range(0..devices)));
                store.set_state(&device, DeviceState::Disabled, &by).await.unwrap();
                tokio::time::sleep(Duration::from_millis(random.random_range(0..20_000))).await;
                // An order to disable the device forbids enabling it until the order is carried out.
                while store.set_state(&device, DeviceState::Enabled, &by).await.is_err() {
                    tokio::time::sleep(Duration::from_secs(10)).await;
                }
            }
            for number in 0..devices {
                while store.set_state(&id(&name(number)), DeviceState::Enabled, &by).await.is_err() {
                    tokio::time::sleep(Duration::from_secs(10)).await;
                }
            }
        }));
    }

    async fn run(mut self) {
        let start = Instant::now();
        self.start_operator();
        let mut deaths: u32 = self.random.random_range(0..8);
        let mut processes = Vec::new();
        for _ in 0..self.random.random_range(2..4) {
            let delay = Duration::from_millis(self.random.random_range(0..5000));
            tokio::time::sleep(delay).await;
            processes.push(self.fused(deaths > 0, false));
        }
        let mut is_late = false;
        while !self.is_done().await {
            self.fence_some().await;
            if start.elapsed() > END / 2 && !is_late {
                // Perhaps no running server gets requests from every device, and only a server
                // resumes registrations of dead processes. So one more server starts, and this
                // server gets requests from all devices.
                is_late = true;
                processes.push(self.fused(false, true));
            }
            if start.elapsed() > END {
                let rows = self.store.rows_after(None, usize::MAX).await.unwrap();
                let left: Vec<_> = rows.into_iter().filter(|row| row.certificate.is_none()).collect();
                panic!(
                    "{left:?} {:?} {:?}",
                    self.store.open_entries().await,
                    self.store.open_batches().await
                );
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
            for process in &mut processes {
                if process.0.is_burnt() {
                    deaths = deaths.saturating_sub(1);
                    process.1.abort();
                    tokio::time::sleep(Duration::from_millis(self.random.random_range(0..20_000))).await;
                    *process = self.fused(deaths > 0, false);
                }
            }
        }
        self.check().await;
    }

    /// Fences each living process with a small probability, like a process that was suspended.
    async fn fence_some(&mut self) {
        for beat in self.store.beats(None).await.unwrap() {
            if self.fencing.random_bool(0.01) {
                self.store.fence(beat).await.unwrap();
            }
        }
    }

    /// Starts a process. If it may die, it dies after a random number of steps.
    fn fused(&mut self, may_die: bool, is_last: bool) -> (Arc<Fuse>, tokio::task::JoinHandle<()>) {
        let most = 40 * self.devices;
        let steps = if may_die { self.random.random_range(1..most) } else { usize::MAX };
        let fuse = Arc::new(Fuse::new(steps));
        let task = self.start(&fuse, is_last);
        (fuse, task)
    }

    /// Returns whether the operator is done, every device has a certificate, and the journal is empty.
    async fn is_done(&self) -> bool {
        if self.operator.as_ref().is_some_and(|operator| !operator.is_finished()) {
            return false;
        }
        let rows = self.store.rows_after(None, usize::MAX).await.unwrap();
        rows.iter().all(|row| row.certificate.is_some())
            && self.store.open_entries().await.unwrap().is_empty()
            && self.store.open_batches().await.unwrap().is_empty()
            && self.store.orders_after(None, 0, 1).await.unwrap().is_empty()
    }

    async fn check(&self) {
        if !self.has_orders {
            assert_eq!(self.cloud.devices(), self.devices, "one device for each name");
            assert_eq!(self.tokyo.devices(), 0);
        }
        for number in 0..self.devices {
            let row = self.store.row(&id(&name(number))).unwrap();
            let target = row.target().expect("a target").to_owned();
            let cloud = if target == TOKYO { &self.tokyo } else { &self.cloud };
            let stored = row.certificate.expect("a certificate");
            assert_eq!(
                Some(stored.device_secret.expose()),
                cloud.secret(&product_at(&target, number, self.products), &name(number)).as_deref()
            );
            assert_eq!(row.refusal, None, "a certificate and a refusal");
            let history = self.store.history(&row.id, 1000).await.unwrap();
            let count = |event| history.iter().filter(|entry| entry.event == event).count();
            assert_eq!(
                count(AuditEvent::Registered),
                1 + count(AuditEvent::Rotated),
                "one registration of {}",
                row.id
            );
            let moved = count(AuditEvent::Moved);
            assert!(moved > 0 || target == target::DEFAULT, "{} was not moved", row.id);
            // Only certdist registers devices in Tokyo. The first registration of a name there cannot
            // find that the name exists.
            let detail = |entry: &AuditEntry| entry.detail.clone().unwrap_or_default();
            let about_tokyo = history.iter().rev().filter(|entry| detail(entry).contains("to tokyo"));
            let first = about_tokyo.filter(|entry| entry.event != AuditEvent::Ordered).map(detail).next();
            assert!(
                first.is_none_or(|first| !first.contains(NAME_IS_TAKEN)),
                "{} was taken for another",
                row.id
            );
        }
        for cloud in [&self.cloud, &self.tokyo] {
            for action in Action::ALL {
                let most = cloud.busiest_second(action);
                assert!(most <= action.calls_per_second() as usize, "{} {most} times", action.name());
            }
        }
    }
}

/// Returns the product of a device at a target. No product is at both targets.
fn product_at(target: &str, number: usize, products: usize) -> String {
    let product = product_of(number, products);
    if target == TOKYO { product.replace('a', "t") } else { product }
}

/// Returns the product of a device, one of `products`.
fn product_of(number: usize, products: usize) -> String {
    format!("a{}", number % products)
}

fn seeds() -> Range<u64> {
    let Ok(given) = std::env::var("CERTDIST_SEEDS") else { return SEEDS };
    let (first, end) = given.split_once("..").expect("FIRST..END");
    first.parse().expect("a number")..end.parse().expect("a number")
}

#[test]
fn processes_that_share_a_table_register_each_device_once() {
    for seed in seeds() {
        println!(
            "repeat with: CERTDIST_SEEDS={seed}..{} cargo test --lib registrar::tests::company",
            seed + 1
        );
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
        runtime.unwrap().block_on(Company::new(seed).run());
    }
}
