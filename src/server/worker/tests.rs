//! Tests of single rounds. In a round without any time, each source of input takes exactly
//! one step.

use std::{
    future::poll_fn,
    net::SocketAddr,
    os::{fd::OwnedFd, unix::net::UnixStream},
    sync::atomic::AtomicU32,
    task::Poll,
};

use tempfile::TempDir;
use tokio::runtime::Runtime;

use super::*;
use crate::{
    coap,
    dtls::{
        Psk,
        testing::{Client, Profile},
    },
    resource::throttle::RequestLimits,
    server::tests,
};

/// A worker whose rounds the test runs, and the resources that it needs.
struct Bench {
    active: Active,
    addresses: Vec<SocketAddr>,
    _folder: TempDir,
    _runtime: Runtime,
}

impl Bench {
    /// Creates a worker that listens on this many addresses. Its rounds take one step of
    /// each kind.
    fn new(addresses: usize) -> Self {
        let (folder, runtime) = (TempDir::new().unwrap(), Runtime::new().unwrap());
        let sockets: Vec<_> = (0..addresses).map(|_| UdpSocket::bind("127.0.0.1:0").unwrap()).collect();
        let addresses: Vec<_> = sockets.iter().map(|socket| socket.local_addr().unwrap()).collect();
        let mut active = Active::new(worker(sockets, &folder, &runtime)).unwrap();
        active.round_time = Duration::ZERO;
        Self { active, addresses, _folder: folder, _runtime: runtime }
    }

    /// Runs a round as the only worker.
    fn round(&mut self) -> Load {
        self.active.load = self.active.round(&[]);
        self.active.load
    }

    fn rounds(&self) -> u64 {
        self.active.stack.metrics().rounds.load(Ordering::Relaxed)
    }

    fn hellos_answered(&mut self) -> u64 {
        self.active.stack.publish(0);
        self.active.stack.metrics().hello_verify_requests.load(Ordering::Relaxed)
    }
}

fn worker(sockets: Vec<UdpSocket>, folder: &TempDir, runtime: &Runtime) -> Worker {
    let services = tests::services(folder, runtime.handle(), RequestLimits::default());
    let now = Instant::now();
    let dtls = dtls::Endpoint::new(dtls::Config::default(), now, &[1; 32], [2; 32]);
    let stack = Stack::new(dtls, coap::Endpoint::new(coap::Config::default(), now, [3; 32]), services);
    let numbers = Numbers::new(u16::try_from(sockets.len()).unwrap());
    Worker::new(0, sockets, numbers, stack, runtime.handle().clone(), Arc::default()).unwrap()
}

fn hello() -> Vec<u8> {
    let profile = Profile::new("plug", Psk::new(vec![7; 16]).unwrap());
    Client::new(profile, rand::random()).start(Instant::now()).remove(0)
}

/// Connects a device's socket to the server, sends this many hellos from the socket, and returns
/// the socket.
fn device(server: SocketAddr, hellos: usize) -> UdpSocket {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.connect(server).unwrap();
    socket.set_nonblocking(true).unwrap();
    for _ in 0..hellos {
        socket.send(&hello()).unwrap();
    }
    socket
}

/// Returns the number of answers received since the last call.
fn answers(device: &UdpSocket) -> usize {
    let mut buffer = [0; 2048];
    std::iter::from_fn(|| device.recv(&mut buffer).ok()).count()
}

#[test]
fn a_round_ends_in_time_and_the_next_continues_the_same_group() {
    let mut bench = Bench::new(1);
    bench.active.load = Load::Busy;
    let device = device(bench.addresses[0], 5);
    for round in 1..=4 {
        assert_eq!(bench.round(), Load::Full);
        assert_eq!((bench.rounds(), answers(&device)), (round, 1));
    }
    assert_eq!(bench.round(), Load::Quiet);
    assert_eq!((bench.rounds(), answers(&device)), (5, 1));
    assert_eq!((bench.round(), answers(&device)), (Load::Quiet, 0));
}

#[test]
fn with_enough_time_a_round_processes_everything_that_has_arrived() {
    let mut bench = Bench::new(2);
    bench.active.round_time = Duration::from_secs(3600);
    let devices = [0, 1].map(|index| device(bench.addresses[index], 40));
    assert_eq!(bench.round(), Load::Busy);
    assert_eq!(devices.map(|device| answers(&device)), [40, 40]);
}

#[test]
fn datagrams_of_one_device_are_no_load() {
    for (sent, load) in [(FEW, Load::Quiet), (FEW + 1, Load::Busy), (GROUP, Load::Busy)] {
        let mut bench = Bench::new(1);
        bench.active.round_time = Duration::from_secs(3600);
        let device = device(bench.addresses[0], sent);
        assert_eq!((bench.round(), answers(&device)), (load, sent));
    }
}

#[test]
fn a_worker_without_datagrams_runs_no_rounds() {
    let (folder, runtime) = (TempDir::new().unwrap(), Runtime::new().unwrap());
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    let worker = worker(vec![socket], &folder, &runtime);
    let (mailbox, metrics, stop) = (worker.mailbox(), worker.metrics(), worker.stop.clone());
    let thread = std::thread::spawn(move || worker.run(&[]));
    let device = device(address, 0);
    device.set_nonblocking(false).unwrap();
    device.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let rounds = || metrics.rounds.load(Ordering::Relaxed);
    let deadline = Instant::now() + Duration::from_secs(20);
    let mut answered = 0;
    for _ in 0..20 {
        device.send(&hello()).unwrap();
        device.recv(&mut [0; 2048]).unwrap();
        answered += 1;
        for _ in 0..5 {
            let before = rounds();
            mailbox.wake();
            while rounds() == before {
                assert!(Instant::now() < deadline, "the worker does not wake up");
                std::thread::yield_now();
            }
        }
    }
    stop.store(true, Ordering::Relaxed);
    mailbox.wake();
    thread.join().unwrap().unwrap();
    // A datagram takes one round, and so does a wake-up.
    assert!(rounds() <= answered * (1 + 5) + 1, "{} rounds", rounds());
}

#[test]
fn one_busy_address_does_not_delay_the_others() {
    let mut bench = Bench::new(3);
    let _busy = device(bench.addresses[1], 3 * GROUP);
    let others = [0, 2].map(|index| device(bench.addresses[index], 1));
    // Each round takes one datagram. In these rounds, the worker takes a whole group from the busy
    // address, and one datagram from each of the other addresses.
    for _ in 0..GROUP + 2 {
        assert_eq!(bench.round(), Load::Full);
    }
    assert_eq!(others.map(|device| answers(&device)), [1, 1]);
}

#[test]
fn forwarded_datagrams_take_turns_with_the_workers_own() {
    let mut bench = Bench::new(1);
    bench.active.load = Load::Busy;
    let device = device(bench.addresses[0], 5);
    let mailbox = bench.active.sides.mailbox.clone();
    let stranger = dtls::Path::from(SocketAddr::from(([127, 0, 0, 1], 9)));
    (0..200).for_each(|_| assert!(mailbox.forward(stranger, &hello())));
    for round in 1..=5 {
        assert_eq!(bench.round(), Load::Full);
        assert_eq!(answers(&device), 1, "round {round}");
        // Each round answers one forwarded hello and one from the device.
        assert_eq!(bench.hellos_answered(), 2 * round);
    }

    // Even if the round has much time, one call takes at most a group.
    bench.active.round_time = Duration::from_secs(3600);
    let round = Round { now: Instant::now(), time: bench.active.round_time };
    assert!(bench.active.take_forwarded(&round));
    assert_eq!(bench.hellos_answered(), 10 + GROUP as u64);
    assert_eq!(bench.round(), Load::Quiet);
    assert_eq!(bench.hellos_answered(), 205);
}

#[test]
fn datagrams_that_another_worker_does_not_accept_are_counted() {
    let (mut bench, neighbour) = (Bench::new(1), Bench::new(1));
    bench.active.round_time = Duration::from_secs(3600);
    let neighbours = [bench.active.sides.mailbox.clone(), neighbour.active.sides.mailbox.clone()];
    let device = device(bench.addresses[0], 0);
    // The record has a connection ID of worker 1.
    let mut record = [0; 40];
    record[..3].copy_from_slice(&[25, 0xfe, 0xfd]);
    record[11] = 1;
    let send = |count| {
        for _ in 0..count {
            device.send(&record).unwrap();
        }
    };
    let metrics = bench.active.stack.metrics();
    let dropped = || metrics.forwarded_dropped.load(Ordering::Relaxed);
    for _ in 0..MAX_FORWARDED / 16 {
        send(16);
        bench.active.round(&neighbours);
    }
    assert_eq!(dropped(), 0);
    send(7);
    bench.active.round(&neighbours);
    assert_eq!(dropped(), 7);
    assert_eq!(neighbour.active.datagrams.try_iter().count(), MAX_FORWARDED);
}

#[test]
fn letters_leave_time_for_datagrams() {
    let mut bench = Bench::new(1);
    let device = device(bench.addresses[0], 1);
    let steps = Arc::new(AtomicU32::new(0));
    let mailbox = bench.active.sides.mailbox.clone();
    for _ in 0..3 {
        let steps = steps.clone();
        let work = poll_fn(move |_| {
            steps.fetch_add(1, Ordering::Relaxed);
            Poll::Pending
        });
        let task = bench.active.sides.tasks.add(Box::pin(work), mailbox.clone());
        mailbox.notify(task);
    }
    for round in 1..=3 {
        assert_eq!(bench.round(), Load::Full);
        assert_eq!(steps.load(Ordering::Relaxed), round);
    }
    assert_eq!(answers(&device), 1);
    assert_eq!(bench.round(), Load::Quiet);
}

#[test]
fn a_worker_that_cannot_set_up_its_sockets_says_so() {
    let (folder, runtime) = (TempDir::new().unwrap(), Runtime::new().unwrap());
    // The address of this socket is a Unix address, not an Internet address.
    let (socket, _other) = UnixStream::pair().unwrap();
    let socket = UdpSocket::from(OwnedFd::from(socket));
    let end = worker(vec![socket], &folder, &runtime).run(&[]).unwrap_err();
    assert!(matches!(end, RunError::SetUp(_)), "{end:?}");
    assert!(end.to_string().starts_with("a worker could not set up its sockets"), "{end}");
}
