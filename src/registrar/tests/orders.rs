//! Tests of orders for IoT Platform, in virtual time: each order is carried out once, whatever call
//! fails, and whenever the process dies.

use super::{batches::row, crash::Line, *};
use crate::{
    iot_platform::{Action, IotPlatform, Thing},
    store::{
        DeviceState,
        order::{OrderKind, Orders, Placed},
    },
    testing::store::{Fuse, Memory},
};

const NAME: &str = "SN01";

fn operator() -> Actor {
    Actor { name: "user anna".into(), address: None }
}

/// A registered device, in the table and at the cloud.
struct World {
    store: Memory,
    cloud: Arc<Cloud>,
}

impl World {
    /// Creates a world with a registered device. Unless `knows_iot_id` is set, the device's row has
    /// no `IotId`, as after an import.
    async fn new(knows_iot_id: bool) -> Self {
        let world = Self { store: Memory::default(), cloud: Arc::default() };
        let device = world.cloud.register_device("a1", NAME).await.unwrap();
        world.store.insert(DeviceRow {
            iot_id: device.iot_id.filter(|_| knows_iot_id),
            device_name: Some(NAME.into()),
            certificate: Some(device.certificate),
            first_issued: Some(1),
            ..row(NAME, "lamp", "a1")
        });
        world
    }

    async fn place(&self, kind: OrderKind) {
        let placed = self.store.place_order(&id(NAME), kind, &operator()).await.unwrap();
        assert!(matches!(placed, Placed::Yes(_)), "{placed:?}");
    }

    /// Runs one process until it has carried out all orders and registered rotated devices anew, or
    /// until it dies. Returns whether it finished.
    async fn run(&self, steps: usize) -> bool {
        let fuse = Arc::new(Fuse::new(steps));
        let store = Arc::new(self.store.in_process(fuse.clone()));
        let line = Arc::new(Line { cloud: self.cloud.clone(), fuse: fuse.clone() });
        let config = Config { manages: true, seed: Some(7), sweep_pause: None, ..Config::default() };
        let registrar = Registrar::new(config, owner(), store, line, Handle::current());
        let work = async {
            registrar.recover().await.unwrap();
            while !self.is_done(&registrar).await {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        tokio::select! {
            biased;
            () = fuse.burnt() => false,
            () = work => true,
        }
    }

    async fn is_done(&self, registrar: &Registrar) -> bool {
        let no_orders = self.store.orders_after(None, 0, 1).await.unwrap().is_empty();
        let journal = self.store.open_entries().await.unwrap();
        no_orders && journal.is_empty() && registrar.registrations() == 0
    }

    fn row(&self) -> Option<DeviceRow> {
        self.store.row(&id(NAME))
    }

    fn calls(&self, action: Action) -> usize {
        self.cloud.calls(action)
    }
}

/// Checks that an order was carried out: the table and the cloud agree.
async fn check(world: &World, kind: OrderKind, former: &DeviceRow) {
    let there = world.cloud.query_device_detail("a1", NAME).await;
    let row = world.row();
    match kind {
        OrderKind::Disable => {
            assert!(there.unwrap().disabled);
            assert_eq!(row.unwrap().state, DeviceState::Disabled);
        }
        OrderKind::Enable => {
            assert!(!there.unwrap().disabled);
            assert_eq!(row.unwrap().state, DeviceState::Enabled);
        }
        OrderKind::Delete => {
            assert_eq!(there.unwrap_err().class, ErrorClass::NotFound);
            assert_eq!(row, None);
        }
        OrderKind::Rotate => {
            let row = row.unwrap();
            assert_eq!(row.first_issued, None, "the device may fetch its new certificate");
            let certificate = row.certificate.expect("it is registered anew");
            assert_eq!(certificate, there.unwrap().certificate);
            assert_ne!(Some(certificate), former.certificate);
            assert_eq!(world.cloud.devices(), 1);
        }
        OrderKind::Move => unreachable!("it is not placed"),
    }
}

#[test]
fn an_order_is_carried_out_once_through_a_crash_at_every_step() {
    for (kind, knows_iot_id) in OrderKind::PLAIN.into_iter().flat_map(|kind| [(kind, true), (kind, false)]) {
        for steps in 1.. {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_time()
                .start_paused(true)
                .build()
                .unwrap();
            let done = runtime.block_on(async {
                let world = World::new(knows_iot_id).await;
                if kind == OrderKind::Enable {
                    let thing = Thing { product_key: "a1", device_name: NAME, iot_id: None };
                    world.cloud.disable_thing(thing).await.unwrap();
                    world.store.set_state(&id(NAME), DeviceState::Disabled, &operator()).await.unwrap();
                }
                let former = world.row().unwrap();
                world.place(kind).await;
                let done = world.run(steps).await;
                assert!(world.run(usize::MAX).await);
                check(&world, kind, &former).await;
                done
            });
            if done {
                assert!(steps > 10, "{kind}: {steps} steps");
                break;
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_device_with_another_secret_is_not_touched() {
    for kind in OrderKind::PLAIN {
        let world = World::new(false).await;
        let mut row = world.row().unwrap();
        row.certificate.as_mut().unwrap().device_secret = crate::device::Secret::new("other".into());
        world.store.insert(row.clone());
        world.place(kind).await;
        assert!(world.run(usize::MAX).await);
        for action in [Action::DisableThing, Action::EnableThing, Action::DeleteDevice] {
            assert_eq!(world.calls(action), 0, "{kind}");
        }
        let history = world.store.history(&id(NAME), 1).await.unwrap();
        let detail = history[0].detail.clone().unwrap();
        assert!(detail.contains("has another secret"), "{detail}");
        assert_eq!(world.row().unwrap().certificate, row.certificate);
    }
}

#[tokio::test(start_paused = true)]
async fn a_wrong_iot_id_in_the_table_leads_to_no_other_device() {
    for kind in OrderKind::PLAIN {
        let world = World::new(true).await;
        world.cloud.make("a1", "OTHER");
        let other = world.cloud.query_device_detail("a1", "OTHER").await.unwrap();
        let row = DeviceRow { iot_id: other.iot_id, ..world.row().unwrap() };
        world.store.insert(row.clone());
        world.place(kind).await;
        assert!(world.run(usize::MAX).await);
        assert_eq!(world.cloud.devices(), 2, "{kind}");
        assert!(!world.cloud.query_device_detail("a1", "OTHER").await.unwrap().disabled);
        let detail = world.store.history(&id(NAME), 1).await.unwrap()[0].detail.clone().unwrap();
        assert!(detail.contains("another IotId"), "{detail}");
        assert_eq!(world.row().unwrap().certificate, row.certificate);
    }
}

#[tokio::test(start_paused = true)]
async fn a_device_is_not_deleted_while_it_could_not_be_registered_anew() {
    let world = World::new(true).await;
    let before = world.row();
    // Another device of the product meets the refusal, which opens the breaker.
    world.store.insert(row("SN02", "lamp", "a1"));
    world.cloud.refuse(Action::RegisterDevice, "Forbidden.RAM");
    let config = Config { manages: true, seed: Some(7), sweep_pause: None, ..Config::default() };
    let store = Arc::new(world.store.clone());
    let registrar = Registrar::new(config, owner(), store, world.cloud.clone(), Handle::current());
    assert!(matches!(registrar.register(wanted("SN02"), PATIENCE).await, Outcome::Operator(_)));
    world.place(OrderKind::Rotate).await;
    tokio::time::sleep(Duration::from_secs(20)).await;
    assert_eq!((world.calls(Action::DeleteDevice), world.row()), (0, before));
    world.cloud.allow(Action::RegisterDevice);
    registrar.register(wanted("SN02"), PATIENCE).await;
    while !world.is_done(&registrar).await {
        registrar.register(wanted("SN02"), PATIENCE).await;
        tokio::time::sleep(Duration::from_secs(5)).await;
    }
    assert_eq!(world.calls(Action::DeleteDevice), 1);
}

#[tokio::test(start_paused = true)]
async fn a_device_is_not_rotated_while_its_enrollment_gives_out_no_first_certificates() {
    let world = World::new(true).await;
    let before = world.row();
    world.place(OrderKind::Rotate).await;
    // The enrollment has closed since the order was placed.
    let closed = Guards { closes: Some(1), ..Guards::default() };
    let guards = [("lamp".to_owned(), closed)].into();
    let config = Config { manages: true, seed: Some(7), sweep_pause: None, guards, ..Config::default() };
    let store = Arc::new(world.store.clone());
    let registrar = Registrar::new(config, owner(), store, world.cloud.clone(), Handle::current());
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert_eq!((world.row(), world.calls(Action::DeleteDevice)), (before, 0));
    let order = world.store.order_of(&id(NAME)).await.unwrap().expect("it waits");
    assert!(order.failure.unwrap().contains("enrollment lamp gives out no first certificates"));
    registrar.set_guards(HashMap::new());
    while !world.is_done(&registrar).await {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    assert_eq!((world.calls(Action::DeleteDevice), world.calls(Action::RegisterDevice)), (1, 2));
}

#[tokio::test(start_paused = true)]
async fn an_order_waits_until_the_operator_has_given_the_right() {
    let world = World::new(true).await;
    let before = world.row().unwrap();
    world.place(OrderKind::Rotate).await;
    world.cloud.refuse(Action::DeleteDevice, "Forbidden.RAM");
    let config = Config { manages: true, seed: Some(7), sweep_pause: None, ..Config::default() };
    let store = Arc::new(world.store.clone());
    let registrar = Registrar::new(config, owner(), store, world.cloud.clone(), Handle::current());
    tokio::time::sleep(Duration::from_secs(3600)).await;
    let order = world.store.order_of(&id(NAME)).await.unwrap().expect("it waits");
    assert!(order.failure.unwrap().contains("Forbidden.RAM"));
    assert_eq!(world.row(), Some(before), "nothing is lost meanwhile");
    let calls = world.calls(Action::DeleteDevice);
    assert!((2..200).contains(&calls), "{calls} calls in an hour");
    world.cloud.allow(Action::DeleteDevice);
    while !world.is_done(&registrar).await {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    assert_eq!(world.calls(Action::RegisterDevice), 2);
}

#[tokio::test(start_paused = true)]
async fn without_permission_no_order_is_carried_out() {
    let world = World::new(true).await;
    world.place(OrderKind::Delete).await;
    let config = Config { seed: Some(7), sweep_pause: None, ..Config::default() };
    assert!(!config.manages);
    let store = Arc::new(world.store.clone());
    let _registrar = Registrar::new(config, owner(), store, world.cloud.clone(), Handle::current());
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(world.calls(Action::DeleteDevice), 0);
    assert!(world.row().is_some());
}
