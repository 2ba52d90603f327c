//! The server's I/O: sockets, threads and timers. Contains no rules about devices or certificates.
//! There is one worker per core. Each worker has its own sockets on the same ports and its own DTLS
//! and CoAP endpoints, so that workers rarely wait for one another. If work takes more than one
//! step, the worker that started it polls it again.

mod datagrams;
pub mod failed_handshakes;
mod in_progress;
mod local;
pub mod plain;
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

use anyhow::{Context, Result, anyhow};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::{runtime::Handle, sync::mpsc};

use crate::{
    coap, dtls,
    psk::Enrollments,
    random::random,
    resource::{MAX_PAYLOAD, Service, throttle::RequestLimits},
    store::Store,
};
use local::Numbers;
pub use stack::Metrics;
use stack::Stack;
use worker::{Mailbox, Worker};

/// Maximum number of workers. The first byte of a connection ID is the number of the worker that
/// has the session.
pub const MAX_WORKERS: usize = 256;
/// Size of the receive buffer requested for each socket, in bytes. The system may grant
/// less (`net.core.rmem_max`). The buffer must hold the datagrams that arrive while a
/// worker is busy.
const RECEIVE_BUFFER: usize = 4 << 20;

/// Maximum time for one iteration (round) of a worker's loop after the worker was woken. Even under
/// load, a round takes only a few hundredths of a second, so a worker that exceeds this time is
/// stuck.
pub const ROUND: Duration = Duration::from_secs(2);

/// Modules that the workers use.
#[derive(Clone)]
pub struct Services {
    /// Looks up identities and keys.
    pub enrollments: Arc<Enrollments>,
    /// Answers requests.
    pub service: Arc<Service>,
    /// Holds individual keys.
    pub store: Arc<dyn Store>,
}

impl Services {
    /// Returns a copy for one worker, with reference counts of its own. Each request changes these
    /// counts, and workers that shared them would slow each other down.
    fn unshared(&self) -> Self {
        Self {
            enrollments: Arc::new(self.enrollments.unshared()),
            service: Arc::new(self.service.as_ref().clone()),
            store: self.store.clone(),
        }
    }
}

/// Limits of the server.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Number of threads that serve devices. The default is one per core, but no more than
    /// [`MAX_WORKERS`].
    pub workers: usize,
    /// Limits of all workers' DTLS endpoints together.
    pub dtls: dtls::Config,
    /// Rate limits for requests.
    pub requests: RequestLimits,
    /// Maximum time that a request waits for its registration.
    pub patience: Duration,
    /// Maximum time that a stopping server waits for registrations.
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

/// A running worker: its thread, mailbox and metrics.
struct Running {
    mailbox: Mailbox,
    metrics: Arc<Metrics>,
    thread: JoinHandle<()>,
}

/// Guard in a worker's thread. If the guard is dropped without a request to stop, it reports that
/// the worker has ended.
struct EndNotice {
    number: usize,
    stop: Arc<AtomicBool>,
    ended: mpsc::Sender<usize>,
}

impl Drop for EndNotice {
    fn drop(&mut self) {
        if !self.stop.load(Ordering::Relaxed) {
            // The channel has space for one report per worker, so sending fails only if the server
            // was dropped. In that case, the report is not needed.
            let _ = self.ended.try_send(self.number);
        }
    }
}

/// Handle for checking that a worker is alive. An idle worker runs no rounds, so it must be woken
/// before the check.
#[derive(Clone)]
pub struct Pulse {
    mailbox: Mailbox,
    metrics: Arc<Metrics>,
}

impl Pulse {
    /// Wakes the worker, so that it runs a round.
    pub fn wake(&self) {
        self.mailbox.wake();
    }

    /// Returns the number of rounds that the worker has run.
    pub fn rounds(&self) -> u64 {
        self.metrics.rounds.load(Ordering::Relaxed)
    }
}

/// Wakes the workers. Returns the numbers of the workers that run no round within [`ROUND`].
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
    /// Binds the addresses, at least one, and starts the workers. Port 0 stands for any
    /// free port.
    pub fn start(
        listen: &[SocketAddr],
        limits: &Limits,
        services: &Services,
        runtime: &Handle,
    ) -> Result<Self> {
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
            let stack = Stack::new(dtls, coap, services.clone());
            let (runtime, stop) = (runtime.clone(), stop.clone());
            workers.push(Worker::new(number, sockets, numbers.clone(), stack, runtime, stop)?);
        }
        let mailboxes: Arc<[Mailbox]> = workers.iter().map(Worker::mailbox).collect();
        let (ends, ended) = mpsc::channel(workers.len().max(1));
        let start = |(number, worker): (usize, Worker)| {
            let (mailbox, metrics, neighbours) = (worker.mailbox(), worker.metrics(), mailboxes.clone());
            let end_notice = EndNotice { number, stop: stop.clone(), ended: ends.clone() };
            let thread = std::thread::Builder::new().name(format!("worker-{number}"));
            let thread = thread.spawn(move || {
                let _end_notice = end_notice;
                if let Err(end) = worker.run(&neighbours) {
                    tracing::error!(worker = number, error = %end.cause(), "{end}");
                }
            });
            Ok(Running { mailbox, metrics, thread: thread? })
        };
        let workers = workers.into_iter().enumerate().map(start).collect::<Result<_>>()?;
        Ok(Self { addresses, workers, stop, ended })
    }

    /// Returns the addresses that devices connect to, in the order of `listen`.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Waits until a worker has ended without a request to stop, and returns its number. Devices
    /// that the kernel assigns to that worker no longer get answers, so the server should end too.
    pub async fn worker_ended(&mut self) -> usize {
        match self.ended.recv().await {
            Some(number) => number,
            // All workers have ended, and each was reported.
            None => std::future::pending().await,
        }
    }

    /// Makes a worker panic.
    #[cfg(test)]
    pub(crate) fn fail_worker(&self, number: usize) {
        self.workers[number].mailbox.fail();
    }

    /// Returns the metrics of each worker.
    pub fn metrics(&self) -> Vec<Arc<Metrics>> {
        self.workers.iter().map(|worker| worker.metrics.clone()).collect()
    }

    /// Returns a handle for each worker, with which the caller can check that the worker is alive.
    pub fn pulses(&self) -> Vec<Pulse> {
        let pulse =
            |worker: &Running| Pulse { mailbox: worker.mailbox.clone(), metrics: worker.metrics.clone() };
        self.workers.iter().map(pulse).collect()
    }

    /// Replaces the enrollments and limits for all handshakes and requests from now on. A session
    /// stays open if its enrollment still has the same key, identity and product. Sessions with
    /// individual keys end.
    pub fn reload(&self, services: &Services) {
        for worker in &self.workers {
            worker.mailbox.reload(services.clone());
        }
    }

    /// Stops the workers and waits for them.
    pub fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        for worker in self.workers {
            worker.mailbox.wake();
            // If the thread has panicked, the panic was already reported.
            let _ = worker.thread.join();
        }
    }
}

/// Returns the DTLS configuration of one worker: its share of the limits, and a connection ID
/// prefix that identifies the worker's records.
fn share(config: &dtls::Config, workers: usize, number: usize) -> dtls::Config {
    dtls::Config {
        connection_id_prefix: u8::try_from(number).ok(),
        max_sessions: config.max_sessions.div_ceil(workers),
        max_handshakes: config.max_handshakes.div_ceil(workers),
        max_handshakes_per_address: config.max_handshakes_per_address.div_ceil(workers),
        ..config.clone()
    }
}

/// Binds all addresses. Returns the bound addresses, and the sockets of each worker in the
/// same order.
fn bind_all(listen: &[SocketAddr], workers: usize) -> Result<(Vec<SocketAddr>, Vec<Vec<UdpSocket>>)> {
    let mut addresses = Vec::with_capacity(listen.len());
    let mut sockets: Vec<Vec<UdpSocket>> = iter::repeat_with(Vec::new).take(workers).collect();
    for &wanted in listen {
        // By default, the IPv6 wildcard also receives IPv4. The socket must be limited to IPv6 if
        // another socket is bound to the same port for IPv4.
        let only_v6 = listen.iter().any(|other| other.is_ipv4() && other.port() == wanted.port());
        let bound = bind(wanted, only_v6, workers)
            .map_err(|error| anyhow!("cannot listen on {wanted}: {}", bind_failure(&error, wanted)))?;
        addresses.push(bound.first().context("no worker")?.local_addr()?);
        for (of_worker, socket) in iter::zip(&mut sockets, bound) {
            of_worker.push(socket);
        }
    }
    Ok((addresses, sockets))
}

/// Binds one socket per worker to an address. The kernel distributes clients among these sockets by
/// address and port (SO_REUSEPORT), so a client stays with its worker.
fn bind(listen: SocketAddr, only_v6: bool, workers: usize) -> io::Result<Vec<UdpSocket>> {
    // With SO_REUSEPORT, a second server would silently share the port. So the port is first bound
    // without this option. This attempt fails if another server has the port.
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

/// Returns the name of this machine.
pub fn machine_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// Returns a sentence that says why a port could not be opened, and what to do.
pub fn bind_failure(error: &io::Error, listen: SocketAddr) -> String {
    let port = listen.port();
    match error.kind() {
        io::ErrorKind::AddrInUse => {
            format!(
                "another process uses this port (`ss -lnp 'sport = :{port}'` shows which); end it, or choose another port"
            )
        }
        io::ErrorKind::PermissionDenied => {
            format!(
                "this user may not open port {port}; choose one from 1024 on, or grant CAP_NET_BIND_SERVICE"
            )
        }
        io::ErrorKind::AddrNotAvailable => {
            format!("this machine has no address {}; `ip address` shows those that it has", listen.ip())
        }
        _ => error.to_string(),
    }
}
