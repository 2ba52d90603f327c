//! Benchmark of a worker's whole stack in memory, with a real table. Measures the time of a
//! provisioning without system calls, the throughput of two workers, and the memory of an open
//! session. The devices' time is not counted.
//!
//!     cargo bench --features testing --bench stack [-- SESSIONS]

use std::{
    net::SocketAddr,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use certdist::{
    coap,
    device::{Certificate, DeviceId, Secret},
    dtls::{
        self, Psk,
        testing::{Client, Profile},
    },
    iot_platform::NoCloud,
    provision::Provisioner,
    psk::{Enrollment, Enrollments, Key, Kind, Reissue},
    registrar::{self, Registrar, Targets},
    resource::Service,
    seal::Keyring,
    server::{
        Services,
        stack::{Done, Io, Stack},
    },
    store::{self, Actor, ImportJob, ImportRow, audit::Asker, claim::Owner},
};
use tokio::runtime::{Handle, Runtime};

const MASTER: &str = "000102030405060708090a0b0c0d0e0f";
const DEVICES: u32 = 20_000;
/// Number of devices whose datagrams arrive together, as on a server under load.
const TOGETHER: usize = 8;

fn id(number: u32) -> String {
    format!("SN{number:08}")
}

fn certificate(device: &DeviceId) -> Certificate {
    Certificate {
        product_key: "a1lamp".into(),
        device_name: device.to_string(),
        device_secret: Secret::new(String::new()),
    }
}

/// Returns services with a table of this many devices, whose certificates were already issued.
fn services(folder: &std::path::Path, runtime: &Runtime, devices: u32) -> Services {
    let path = folder.join(format!("{devices}.db"));
    let store = store::open(&format!("sqlite:{}", path.display()), Keyring::default()).expect("a database");
    let mut rows = (0..devices).map(|number| {
        let device = DeviceId::parse_sn(&id(number)).expect("an ID");
        Ok(ImportRow {
            device_name: Some(id(number)),
            device_secret: Some(Secret::new(format!("{number:032x}"))),
            ..ImportRow::new(device, "lamp", "a1lamp")
        })
    });
    let by = Actor::system_user();
    store
        .import(ImportJob::new(&by, "batch.csv"), &mut rows, &mut |_, _| panic!("rejected"))
        .expect("imported");
    runtime.block_on(async {
        for first in (0..devices).step_by(1000) {
            let some: Vec<_> = (first..devices.min(first + 1000))
                .map(|number| DeviceId::parse_sn(&id(number)).expect("an ID"))
                .collect();
            let certificates: Vec<_> = some.iter().map(certificate).collect();
            let asker = || Asker { enrollment: "lamp".into(), ..Asker::default() };
            let issue = |(device, certificate)| store.record_issue(device, certificate, 1, asker());
            // All issues are requested before the first is awaited, so that the store writes them
            // together.
            let issues: Vec<_> = some.iter().zip(&certificates).map(issue).collect();
            for issue in issues {
                issue.await.expect("recorded");
            }
        }
    });
    let kind = Kind::Derived(Key::from_hex(MASTER).expect("a key"));
    let enrollment = Enrollment {
        name: "lamp".into(),
        product_key: "a1lamp".into(),
        kind,
        reissue: Reissue::Always,
        next: None,
        guards: Default::default(),
    };
    let registrar = Registrar::new(
        registrar::Config::default(),
        Owner::new("bench").expect("random numbers"),
        store.clone(),
        // Never called, because every device of this benchmark has its certificate.
        Arc::new(NoCloud::unconfigured()),
        runtime.handle().clone(),
    );
    let provisioner = Provisioner::new(store.clone(), Targets::only(registrar), Duration::from_secs(5));
    Services {
        enrollments: Arc::new(Enrollments::new([enrollment])),
        service: Arc::new(Service::new(Instant::now(), provisioner, Default::default())),
        store,
    }
}

struct Sent(Vec<(SocketAddr, Vec<u8>)>);

impl dtls::Outbox for Sent {
    fn push(&mut self, path: dtls::Path, datagram: &[u8]) {
        self.0.push((path.peer, datagram.to_vec()));
    }
}

impl Io for Sent {
    fn spawn(&mut self, _: impl Future<Output = Done> + Send + 'static) {
        panic!("a device that has its certificate is served at once");
    }
}

struct Server {
    stack: Stack,
    now: Instant,
    master: Key,
    /// Total time spent in the stack.
    spent: Duration,
}

impl Server {
    fn new(services: Services, max_sessions: usize) -> Self {
        let now = Instant::now();
        let config = dtls::Config { max_sessions, ..dtls::Config::default() };
        let dtls = dtls::Endpoint::new(config, now, &[1; 32], [2; 32]);
        let coap = coap::Endpoint::new(coap::Config::default(), now, [3; 32]);
        let master = Key::from_hex(MASTER).expect("a key");
        Self { stack: Stack::new(dtls, coap, services), now, master, spent: Duration::ZERO }
    }

    /// Provisions the devices with these numbers and closes their sessions. Numbers wrap around at
    /// [`DEVICES`].
    fn round(&mut self, numbers: std::ops::Range<u32>) {
        self.provision(numbers, |number| id(number % DEVICES), true);
    }

    /// Provisions these devices, [`TOGETHER`] at a time. Closes their sessions if `close` is
    /// set.
    fn provision(&mut self, numbers: std::ops::Range<u32>, id: fn(u32) -> String, close: bool) {
        for first in numbers.clone().step_by(TOGETHER) {
            let last = numbers.end.min(first + TOGETHER as u32);
            let mut devices: Vec<_> = (first..last).map(|number| self.device(number, &id(number))).collect();
            while devices.iter().any(|device| !device.to_server.is_empty()) {
                let begun = Instant::now();
                self.stack.begin_group();
                for device in &mut devices {
                    if let Some(mut datagram) = device.to_server.pop() {
                        self.stack.receive(self.now, device.peer, &mut datagram, &mut device.answers);
                    }
                }
                self.stack.end_group();
                self.spent += begun.elapsed();
                devices.iter_mut().for_each(|device| device.go_on(self.now, close));
            }
            assert!(devices.iter().all(|device| device.is_served));
        }
    }

    fn device(&self, number: u32, id: &str) -> Device {
        let [_, a, b, c] = number.to_be_bytes();
        let psk = Psk::new(self.master.derive(id.as_bytes()).as_bytes().to_vec()).expect("16 bytes");
        let mut random = [0; 32];
        random[..4].copy_from_slice(&number.to_be_bytes());
        let mut client = Client::new(Profile::new(id, psk), random);
        Device {
            peer: SocketAddr::from(([10, a, b, c], 40_000)),
            to_server: client.start(self.now),
            client,
            answers: Sent(Vec::new()),
            asked: false,
            is_served: false,
        }
    }
}

/// A device, with the datagrams that travel between the device and the server.
struct Device {
    peer: SocketAddr,
    client: Client,
    to_server: Vec<Vec<u8>>,
    answers: Sent,
    asked: bool,
    is_served: bool,
}

impl Device {
    fn go_on(&mut self, now: Instant, close: bool) {
        for (_, answer) in self.answers.0.drain(..) {
            self.to_server.extend(self.client.receive(now, &answer));
        }
        if self.client.is_established() && !self.asked {
            self.asked = true;
            self.to_server.push(self.client.send(b"\x41\x01\x12\x34T\xb4cert"));
        } else if let Some(answer) = self.client.received.pop() {
            assert_eq!(answer[1], 0x45);
            self.is_served = true;
            if close {
                self.to_server.push(self.client.close());
            }
        }
    }
}

fn micros(spent: Duration, count: u32) -> f64 {
    spent.as_secs_f64() * 1e6 / f64::from(count)
}

/// Returns the time per provisioning in microseconds, with this number of parallel threads.
fn provisionings(services: &Services, runtime: &Handle, threads: u32) -> f64 {
    let run = |first: u32| {
        let (services, runtime) = (services.clone(), runtime.clone());
        thread::spawn(move || {
            let _entered = runtime.enter();
            let mut server = Server::new(services, 100_000);
            server.round(first..first + 2000);
            server.spent = Duration::ZERO;
            server.round(first..first + DEVICES);
            micros(server.spent, DEVICES)
        })
    };
    let running: Vec<_> = (0..threads).map(|thread| run(thread * 7919)).collect();
    let each = running.into_iter().map(|thread| thread.join().expect("no panic"));
    each.sum::<f64>() / f64::from(threads)
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Returns the resident memory of this process, in bytes.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("its memory");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") * 1024
}

fn main() {
    let sessions = std::env::args().skip(1).find_map(|argument| argument.parse().ok()).unwrap_or(1_000_000);
    let folder = tempfile::tempdir().expect("a folder");
    let runtime = Runtime::new().expect("a runtime");
    let of_speed = services(folder.path(), &runtime, DEVICES);
    let _entered = runtime.enter();

    // The argument `count` runs a fixed amount of work, for counting instructions: valgrind
    // --tool=callgrind BENCH count 1000
    let mut arguments = std::env::args().skip_while(|argument| argument != "count").skip(1);
    if let Some(count) = arguments.next().and_then(|count| count.parse().ok()) {
        let mut server = Server::new(of_speed, 100_000);
        return server.round(0..count);
    }

    // Alternates between one and two threads, because the machine may be busy at times.
    let pairs: Vec<_> =
        (0..9).map(|_| [1, 2].map(|threads| provisionings(&of_speed, runtime.handle(), threads))).collect();
    let one = median(pairs.iter().map(|pair| pair[0]));
    let two = median(pairs.iter().map(|pair| pair[1]));
    let ratio = median(pairs.iter().map(|pair| 2.0 * pair[0] / pair[1]));
    println!("whole provisioning in memory, SQLite included         {one:8.2} µs");
    println!("the same on each of two workers at once               {two:8.2} µs");
    println!("two workers carry                                     {ratio:8.2} times what one does");

    // As in practice, each session belongs to a different device with its own key.
    let mut server = Server::new(services(folder.path(), &runtime, sessions), sessions as usize);
    server.round(0..1000.min(sessions));
    let before = resident();
    server.provision(0..sessions, id, false);
    let each = (resident() - before) as f64 / f64::from(sessions);
    let held = server.stack.coap_peers();
    assert_eq!(held, sessions as usize, "the others were closed");
    println!("{held} sessions held, each with the answer it was given {each:8.0} B");
}
