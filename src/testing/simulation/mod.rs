//! Simulation of the whole stack in virtual time: many devices, a network that loses, repeats and
//! delays datagrams, a cloud that fails, and a server that is killed. One seed determines the whole
//! run, so a run can be repeated.

mod device;

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashSet},
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use rand::{RngExt, SeedableRng, rngs::StdRng};
use tokio::{runtime::Handle, sync::mpsc};

use self::device::Device;
use super::{cloud::Cloud, store::Memory};
use crate::{
    coap,
    device::DeviceId,
    dtls::{self, Psk, testing::Profile},
    provision::Provisioner,
    psk::{Enrollment, Enrollments, Key, Kind, NextKey, Reissue},
    registrar::{self, Registrar, Targets},
    resource::Service,
    server::{
        Services,
        stack::{Done, Io, Stack},
    },
    store::{DeviceRow, Store, claim::Owner},
};

const DEVICES: usize = 1000;
/// Time within which all devices power on.
const CROWD: Duration = Duration::from_secs(60);
/// Times from the start of a run at which the server is killed and restarted.
const RESTARTS: [Duration; 2] = [Duration::from_secs(25), Duration::from_secs(70)];
/// Time within which every device must have its certificate.
const END: Duration = Duration::from_secs(3600);

const LOSS: f64 = 0.3;
const DUPLICATION: f64 = 0.1;
/// Longest delay of a datagram, in milliseconds. The shortest delay is 10 ms, so datagrams overtake
/// one another.
const MAX_DELAY: u64 = 2000;

const MASTER: &str = "000102030405060708090a0b0c0d0e0f";
const SHARED: &str = "f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff";
/// Second keys of both enrollments.
const NEXT_MASTER: &str = "101112131415161718191a1b1c1d1e1f";
const NEXT_SHARED: &str = "e0e1e2e3e4e5e6e7e8e9eaebecedeeef";

/// An event of the simulation.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    ToServer(usize, Vec<u8>),
    ToDevice(usize, Vec<u8>),
    Wake(usize),
    Restart,
}

/// Future events in order of time. Events at the same time are in the order in which they
/// were added.
struct Agenda {
    events: BinaryHeap<Reverse<(Instant, u64, Event)>>,
    next: u64,
    random: StdRng,
    datagrams: u64,
}

impl Agenda {
    fn put(&mut self, at: Instant, event: Event) {
        self.next += 1;
        self.events.push(Reverse((at, self.next, event)));
    }

    fn poll_timeout(&self) -> Option<Instant> {
        self.events.peek().map(|Reverse((at, ..))| *at)
    }

    /// Passes a datagram to the network.
    fn send(&mut self, now: Instant, event: impl Fn() -> Event) {
        self.datagrams += 1;
        let copies = 1 + usize::from(self.random.random_bool(DUPLICATION));
        for _ in 0..copies {
            if !self.random.random_bool(LOSS) {
                let delay = Duration::from_millis(self.random.random_range(10..MAX_DELAY));
                self.put(now + delay, event());
            }
        }
    }
}

/// A server process, which loses its memory when it is killed.
struct Process {
    stack: Stack,
    side: Side,
    done: mpsc::UnboundedReceiver<Done>,
    store: Memory,
}

/// Destination of the output of a process's stack.
struct Side {
    sent: Vec<(SocketAddr, Vec<u8>)>,
    results: mpsc::UnboundedSender<Done>,
}

impl dtls::Outbox for Side {
    fn push(&mut self, path: dtls::Path, datagram: &[u8]) {
        self.sent.push((path.peer, datagram.to_vec()));
    }
}

impl Io for Side {
    fn spawn(&mut self, work: impl Future<Output = Done> + Send + 'static) {
        let results = self.results.clone();
        tokio::spawn(async move { results.send(work.await) });
    }

    /// Returns the virtual time. With the system's time, the load of the machine would change the
    /// run.
    fn clock(&self) -> Instant {
        now()
    }
}

impl Process {
    async fn start(now: Instant, store: Memory, cloud: Arc<Cloud>, random: &mut StdRng) -> Self {
        let shared: Arc<dyn Store> = Arc::new(store.clone());
        let config = registrar::Config { seed: Some(random.random()), ..registrar::Config::default() };
        let registrar = Registrar::new(
            config,
            Owner::new("simulation").unwrap(),
            shared.clone(),
            cloud,
            Handle::current(),
        );
        registrar.recover().await.unwrap();
        let provisioner = Provisioner::new(shared.clone(), Targets::only(registrar), Duration::from_secs(10));
        let key = |digits: &str| Key::from_hex(digits).unwrap();
        let enrollment = |name: &str, kind, next| Enrollment {
            name: name.into(),
            product_key: "a1".into(),
            kind,
            reissue: Reissue::Always,
            next: Some(NextKey { key: key(next), identity: None }),
            guards: Default::default(),
        };
        let shared_kind = Kind::Shared { identity: "batch".into(), key: key(SHARED) };
        let enrollments = Enrollments::new([
            enrollment("derived", Kind::Derived(key(MASTER)), NEXT_MASTER),
            enrollment("shared", shared_kind, NEXT_SHARED),
        ]);
        let services = Services {
            enrollments: Arc::new(enrollments),
            service: Arc::new(Service::new(now, provisioner, Default::default())),
            store: shared,
        };
        let dtls = dtls::Endpoint::new(dtls::Config::default(), now, &random.random(), random.random());
        let coap = coap::Endpoint::new(coap::Config::default(), now, random.random());
        let (results, done) = mpsc::unbounded_channel();
        let side = Side { sent: Vec::new(), results };
        Self { stack: Stack::new(dtls, coap, services), side, done, store }
    }
}

fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

fn address(device: usize) -> SocketAddr {
    SocketAddr::from(([10, 0, (device >> 8) as u8, device as u8], 5684))
}

fn index(address: SocketAddr) -> usize {
    match address {
        SocketAddr::V4(address) => {
            usize::from(u16::from_be_bytes([address.ip().octets()[2], address.ip().octets()[3]]))
        }
        SocketAddr::V6(_) => unreachable!("all devices have an IPv4 address"),
    }
}

fn device_id(device: usize) -> String {
    format!("SN-{device:04}")
}

/// Creates a device. Devices with even numbers belong to the derived enrollment, and devices with
/// odd numbers to the shared one. In each enrollment, half of the devices have the first key, and
/// half have the second key.
fn device(number: usize, starts: Instant, seed: u64) -> Device {
    let id = device_id(number);
    let key = |hex: &str| Key::from_hex(hex).unwrap();
    let (identity, key) = match number % 4 {
        0 => (id.clone(), key(MASTER).derive(id.as_bytes())),
        2 => (id.clone(), key(NEXT_MASTER).derive(id.as_bytes())),
        1 => ("batch".to_owned(), key(SHARED)),
        _ => ("batch".to_owned(), key(NEXT_SHARED)),
    };
    let mut profile = Profile::new(&identity, Psk::new(key.as_bytes().to_vec()).unwrap());
    // Devices imitate different client stacks.
    profile.coalesce = number.is_multiple_of(3);
    profile.fragment = if number.is_multiple_of(5) { 60 } else { usize::MAX };
    profile.connection_id = number.is_multiple_of(4).then(Vec::new);
    let body = [b"\xa1\x62sn\x67".as_slice(), id.as_bytes()].concat();
    Device::new(profile, body, starts, StdRng::seed_from_u64(seed))
}

/// Result of a run. Runs with the same seed have the same result.
#[derive(Debug, PartialEq, Eq)]
struct Run {
    /// Time from the start of the run until the last device has its certificate.
    took: Duration,
    datagrams: u64,
}

async fn run(seed: u64) -> Run {
    let mut random = StdRng::seed_from_u64(seed);
    let begin = now();
    let (store, cloud) = (Memory::default(), Arc::new(Cloud::with_dice(random.random())));
    for number in 0..DEVICES {
        let id = DeviceId::parse_sn(&device_id(number)).unwrap();
        let enrollment = if number.is_multiple_of(2) { "derived" } else { "shared" };
        store.insert(DeviceRow::imported(id, enrollment, "a1"));
    }
    let network = StdRng::seed_from_u64(random.random());
    let mut agenda = Agenda { events: BinaryHeap::new(), next: 0, random: network, datagrams: 0 };
    let mut devices: Vec<Device> = (0..DEVICES)
        .map(|number| {
            let starts = begin + CROWD.mul_f64(random.random());
            agenda.put(starts, Event::Wake(number));
            device(number, starts, random.random())
        })
        .collect();
    for after in RESTARTS {
        agenda.put(begin + after, Event::Restart);
    }
    let mut process = Process::start(begin, store, cloud.clone(), &mut random).await;
    let mut waiting = DEVICES;
    while waiting > 0 {
        assert!(now() - begin < END, "{waiting} devices have no certificate after {END:?}");
        let next = [agenda.poll_timeout(), process.stack.poll_timeout()].into_iter().flatten().min();
        tokio::select! {
            biased;
            done = process.done.recv() => {
                let done = done.expect("the process has a sender itself");
                process.stack.done(now(), done, &mut process.side);
            }
            () = tokio::time::sleep_until(next.expect("a device is waiting").into()) => {}
        }
        let now = now();
        process.stack.handle_timeout(now, &mut process.side);
        if agenda.poll_timeout().is_some_and(|at| at <= now)
            && let Some(Reverse((_, _, event))) = agenda.events.pop()
        {
            let (number, out) = match event {
                Event::Restart => {
                    process.store.kill();
                    let store = process.store.clone();
                    process = Process::start(now, store, cloud.clone(), &mut random).await;
                    continue;
                }
                Event::ToServer(number, mut bytes) => {
                    process.stack.receive(now, address(number), &mut bytes, &mut process.side);
                    (number, Vec::new())
                }
                Event::ToDevice(number, bytes) => {
                    let had = devices[number].certificate().is_some();
                    let out = devices[number].receive(now, &bytes);
                    waiting -= usize::from(!had && devices[number].certificate().is_some());
                    (number, out)
                }
                Event::Wake(number) => (number, devices[number].handle_timeout(now)),
            };
            for datagram in out {
                agenda.send(now, || Event::ToServer(number, datagram.clone()));
            }
            if let Some(at) = devices[number].poll_timeout() {
                agenda.put(at, Event::Wake(number));
            }
        }
        for (to, datagram) in process.side.sent.drain(..) {
            agenda.send(now, || Event::ToDevice(index(to), datagram.clone()));
        }
    }
    check(&devices, &process.store, &cloud);
    Run { took: now() - begin, datagrams: agenda.datagrams }
}

/// Checks that every device has its own certificate, from a single registration.
fn check(devices: &[Device], store: &Memory, cloud: &Cloud) {
    let mut secrets = HashSet::new();
    for (number, device) in devices.iter().enumerate() {
        let name = device_id(number);
        let secret = cloud.secret("a1", &name).expect("registered");
        let payload = device.certificate().expect("it has one");
        let expected =
            [b"\xa3\x6aproductKey\x62a1\x6adeviceName\x67", name.as_bytes(), b"\x6cdeviceSecret"].concat();
        assert!(payload.starts_with(&expected), "{name}");
        assert!(payload.ends_with(secret.as_bytes()), "{name}");
        let row = store.row(&DeviceId::parse_sn(&name).unwrap()).expect("in the table");
        assert_eq!(row.certificate.expect("stored").device_secret.expose(), secret);
        assert!(row.first_issued.is_some());
        assert!(secrets.insert(secret));
    }
    assert_eq!(cloud.devices(), devices.len(), "one registration each");
}

/// Seeds that `make test` runs. `CERTDIST_SEED` selects another seed.
const SEEDS: [u64; 2] = [1, 2];

fn virtually(seed: u64) -> Run {
    println!("repeat with: CERTDIST_SEED={seed} cargo test --lib simulation");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    runtime.unwrap().block_on(run(seed))
}

#[test]
fn a_thousand_devices_on_a_bad_network_all_get_their_own_certificate() {
    let given = std::env::var("CERTDIST_SEED").ok().map(|seed| vec![seed.parse().expect("a number")]);
    for seed in given.unwrap_or(SEEDS.to_vec()) {
        let outcome = virtually(seed);
        println!("{outcome:?}");
    }
}

#[test]
fn a_run_can_be_repeated_from_its_seed() {
    assert_eq!(virtually(7), virtually(7));
}
