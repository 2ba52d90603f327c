//! The server's I/O: sockets, threads and timers; no rules. One worker a core,
//! each with a socket of its own on the same port, its own DTLS and CoAP
//! endpoints, and no lock shared with the others. Work that
//! takes more than one step stays with its worker, and is polled there.

mod batch;
mod in_work;
mod local;
pub mod plain;
#[cfg(test)]
mod simulation;
pub mod stack;
mod tasks;
#[cfg(test)]
mod tests;
mod validation;
mod worker;

use std::{
    io, iter,
    net::{SocketAddr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::{runtime::Handle, sync::mpsc};

use crate::{
    cert::{MAX_PAYLOAD, Service, throttle::RequestLimits},
    coap, dtls,
    psk::Enrollments,
    random::random,
    store::Store,
};
use local::Numbers;
pub use stack::Figures;
use stack::Stack;
use worker::{Mailbox, Worker};

/// Most workers: each has a first byte of connection IDs to itself.
pub const MAX_WORKERS: usize = 256;
/// Asked for as the socket's receive buffer, in bytes; the system may give less
/// (`net.core.rmem_max`). It has to hold what arrives while a worker is busy.
const RECEIVE_BUFFER: usize = 4 << 20;

/// How long a worker may take for a round, once it was woken. A worker under load ends its
/// rounds in time (see `worker.rs`), so one that takes longer does not work any more.
pub const ROUND: Duration = Duration::from_secs(2);

/// What the workers need of the rooms below.
#[derive(Clone)]
pub struct Rooms {
    /// Who an identity is.
    pub enrollments: Arc<Enrollments>,
    /// Answers requests.
    pub service: Arc<Service>,
    /// For individual keys.
    pub store: Arc<dyn Store>,
}

impl Rooms {
    /// The same for one worker: each request counts references to some of it, and two
    /// workers that do so in one place of memory wait for each other.
    fn apart(&self) -> Self {
        Self {
            enrollments: Arc::new(self.enrollments.apart()),
            service: Arc::new(self.service.as_ref().clone()),
            store: self.store.clone(),
        }
    }
}

/// Limits of the server.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Threads that serve devices; one a core, as far as there are connection IDs.
    pub workers: usize,
    /// Limits of all workers' DTLS endpoints together.
    pub dtls: dtls::Config,
    /// How often may be asked.
    pub requests: RequestLimits,
    /// How long a request waits for its registration.
    pub patience: Duration,
    /// How long a server that was told to stop waits for registrations.
    pub drain: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            workers: std::thread::available_parallelism().map_or(1, Into::into).min(MAX_WORKERS),
            dtls: dtls::Config::default(),
            requests: RequestLimits::default(),
            patience: Duration::from_secs(20),
            drain: Duration::from_secs(10),
        }
    }
}

/// A server that runs until it is stopped.
pub struct Server {
    addresses: Vec<SocketAddr>,
    workers: Vec<Running>,
    stop: Arc<AtomicBool>,
    ended: mpsc::Receiver<usize>,
}

/// A worker's thread, and how to reach it.
struct Running {
    mailbox: Mailbox,
    figures: Arc<Figures>,
    thread: JoinHandle<()>,
}

/// Tells when a worker's thread ends that was not told to, however it ends.
struct LastWords {
    number: usize,
    stop: Arc<AtomicBool>,
    ended: mpsc::Sender<usize>,
}

impl Drop for LastWords {
    fn drop(&mut self) {
        if !self.stop.load(Ordering::Relaxed) {
            // There is room for one of each worker; a server that is dropped does not listen.
            let _ = self.ended.try_send(self.number);
        }
    }
}

/// A worker, as far as one looks whether it is alive: idle, it sleeps until it is woken.
#[derive(Clone)]
pub struct Pulse {
    mailbox: Mailbox,
    figures: Arc<Figures>,
}

impl Pulse {
    /// Wakes the worker up: it is to make a round.
    pub fn wake(&self) {
        self.mailbox.wake();
    }

    /// Rounds that it has made.
    pub fn rounds(&self) -> u64 {
        self.figures.rounds.load(Ordering::Relaxed)
    }
}

/// The numbers of the workers that make no round within [`ROUND`], though they are woken.
pub async fn silent_workers(pulses: &[Pulse]) -> Vec<usize> {
    let before: Vec<u64> = pulses.iter().map(Pulse::rounds).collect();
    pulses.iter().for_each(Pulse::wake);
    let silent = || -> Vec<usize> {
        let workers = iter::zip(pulses, &before).enumerate();
        workers.filter(|(_, (pulse, before))| pulse.rounds() == **before).map(|(number, _)| number).collect()
    };
    let deadline = Instant::now() + ROUND;
    loop {
        let silent = silent();
        if silent.is_empty() || Instant::now() >= deadline {
            return silent;
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

impl Server {
    /// Binds the addresses, at least one, and starts the workers. Port 0 takes any free one.
    pub fn start(listen: &[SocketAddr], limits: &Limits, rooms: &Rooms, runtime: &Handle) -> Result<Self> {
        let (addresses, sockets) = bind_all(listen, limits.workers.max(1))?;
        let numbers = Numbers::new(u16::try_from(addresses.len()).context("too many addresses")?);
        let (now, cookie_secret) = (Instant::now(), random()?);
        let stop = Arc::new(AtomicBool::new(false));
        let mut workers = Vec::new();
        for (number, sockets) in sockets.into_iter().enumerate() {
            let config = share(&limits.dtls, limits.workers, number);
            let dtls = dtls::Endpoint::new(config, now, &cookie_secret, random()?);
            let coap = coap::Config { max_request_body: MAX_PAYLOAD, ..coap::Config::default() };
            let coap = coap::Endpoint::new(coap, now, random()?);
            let stack = Stack::new(dtls, coap, rooms.clone());
            let (runtime, stop) = (runtime.clone(), stop.clone());
            workers.push(Worker::new(number, sockets, numbers.clone(), stack, runtime, stop)?);
        }
        let mailboxes: Arc<[Mailbox]> = workers.iter().map(Worker::mailbox).collect();
        let (ends, ended) = mpsc::channel(workers.len().max(1));
        let start = |(number, worker): (usize, Worker)| {
            let (mailbox, figures, neighbours) = (worker.mailbox(), worker.figures(), mailboxes.clone());
            let last_words = LastWords { number, stop: stop.clone(), ended: ends.clone() };
            let thread = std::thread::Builder::new().name(format!("worker-{number}"));
            let thread = thread.spawn(move || {
                let _last_words = last_words;
                if let Err(error) = worker.run(&neighbours) {
                    tracing::error!(worker = number, %error, "a worker cannot receive datagrams");
                }
            });
            Ok(Running { mailbox, figures, thread: thread? })
        };
        let workers = workers.into_iter().enumerate().map(start).collect::<Result<_>>()?;
        Ok(Self { addresses, workers, stop, ended })
    }

    /// Addresses that devices connect to, in the order of `listen`.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Returns the number of a worker that has ended without having been told to. The
    /// devices that the kernel sends to it get no answer any more, so the server should
    /// end, too.
    pub async fn worker_ended(&mut self) -> usize {
        match self.ended.recv().await {
            Some(number) => number,
            // All have ended, and were reported.
            None => std::future::pending().await,
        }
    }

    /// Has a worker panic.
    #[cfg(test)]
    pub(crate) fn fail_worker(&self, number: usize) {
        self.workers[number].mailbox.fail();
    }

    /// What each worker has done so far.
    pub fn figures(&self) -> Vec<Arc<Figures>> {
        self.workers.iter().map(|worker| worker.figures.clone()).collect()
    }

    /// By which each worker shows that it is alive.
    pub fn pulses(&self) -> Vec<Pulse> {
        let pulse =
            |worker: &Running| Pulse { mailbox: worker.mailbox.clone(), figures: worker.figures.clone() };
        self.workers.iter().map(pulse).collect()
    }

    /// Takes over other enrollments for handshakes, and other limits for requests,
    /// from now on; sessions stay.
    pub fn reload(&self, rooms: &Rooms) {
        for worker in &self.workers {
            worker.mailbox.reload(rooms.clone());
        }
    }

    /// Stops the workers and waits for them.
    pub fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        for worker in self.workers {
            worker.mailbox.wake();
            // A worker that panicked has said so.
            let _ = worker.thread.join();
        }
    }
}

/// Each worker gets its part of what the server may hold, and connection IDs that
/// tell its records from its neighbours'.
fn share(config: &dtls::Config, workers: usize, number: usize) -> dtls::Config {
    dtls::Config {
        connection_id_prefix: u8::try_from(number).ok(),
        max_sessions: config.max_sessions.div_ceil(workers),
        max_handshakes: config.max_handshakes.div_ceil(workers),
        max_handshakes_per_address: config.max_handshakes_per_address.div_ceil(workers),
        ..config.clone()
    }
}

/// The addresses as they are bound, and each worker's sockets in that order.
fn bind_all(listen: &[SocketAddr], workers: usize) -> Result<(Vec<SocketAddr>, Vec<Vec<UdpSocket>>)> {
    let mut addresses = Vec::with_capacity(listen.len());
    let mut sockets: Vec<Vec<UdpSocket>> = iter::repeat_with(Vec::new).take(workers).collect();
    for &wanted in listen {
        // The IPv6 wildcard takes IPv4 as well, unless another socket has that port.
        let only_v6 = listen.iter().any(|other| other.is_ipv4() && other.port() == wanted.port());
        let bound = bind(wanted, only_v6, workers)
            .with_context(|| format!("cannot listen on {wanted}{}", port_hint(wanted)))?;
        addresses.push(bound.first().context("no worker")?.local_addr()?);
        for (of_worker, socket) in iter::zip(&mut sockets, bound) {
            of_worker.push(socket);
        }
    }
    Ok((addresses, sockets))
}

/// As many sockets on one address as there are workers. The kernel spreads
/// clients over them by address and port (SO_REUSEPORT), so that a client stays
/// with its worker.
fn bind(listen: SocketAddr, only_v6: bool, workers: usize) -> io::Result<Vec<UdpSocket>> {
    // With SO_REUSEPORT a second server would share the port in silence, so it
    // is taken without it first.
    let address = socket(listen, only_v6, false)?.local_addr()?;
    (0..workers).map(|_| socket(address, only_v6, workers > 1)).collect()
}

fn socket(address: SocketAddr, only_v6: bool, reuse_port: bool) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    if address.is_ipv6() && only_v6 {
        socket.set_only_v6(true)?;
    }
    socket.set_reuse_port(reuse_port)?;
    socket.set_nonblocking(true)?;
    socket.set_recv_buffer_size(RECEIVE_BUFFER)?;
    socket.bind(&address.into())?;
    Ok(socket.into())
}

fn port_hint(listen: SocketAddr) -> String {
    if listen.port() == 0 { String::new() } else { format!(" (is port {} in use?)", listen.port()) }
}
