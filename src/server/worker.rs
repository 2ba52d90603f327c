//! One worker: a thread that takes datagrams from its socket to its stack, and the
//! answers back. Work that the stack leaves is polled here as well; that it can go
//! on is told by a letter.

use std::{
    future::Future,
    io,
    net::{SocketAddr, UdpSocket},
    os::fd::AsRawFd,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, Sender, SyncSender, channel, sync_channel},
    },
    time::{Duration, Instant},
};

use mio::{Events, Interest, Token, unix::SourceFd};
use tokio::runtime::Handle;

use super::{
    Rooms,
    batch::{BATCH, Incoming, Outgoing},
    stack::{Done, Figures, Io, Stack},
    tasks::{Notify, TaskId, Tasks},
};
use crate::dtls;

const SOCKET: Token = Token(0);
const INBOX: Token = Token(1);

/// Datagrams that may wait for a worker after another has received them.
const MAX_FORWARDED: usize = 1024;
/// Batches after which the timers get their turn, however much more has arrived.
const MAX_BATCHES: usize = 16;

/// How long a worker that is under load lets datagrams gather. To wake up costs
/// several times what a datagram does: at 64 devices at once, waking up for each
/// two of them was half of the server's time, and after 200 µs it is a quarter more than
/// now. A device that comes alone is answered at once.
const GATHER: Duration = Duration::from_micros(500);

/// How long a worker that was told to stop goes on at most, so that who waits for an
/// answer has it.
const LAST_ANSWERS: Duration = Duration::from_secs(1);
/// How often it looks then.
const LAST_LOOK: Duration = Duration::from_millis(20);

/// What a look at the socket says about the time until the next one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Load {
    /// At most one datagram was there.
    Quiet,
    /// Several were there: more will follow soon.
    Busy,
    /// There may be more right now.
    Full,
}

/// What arrives in a worker's inbox.
enum Letter {
    /// From [`super::Server::reload`].
    Rooms(Rooms),
    /// Work of ours can go on.
    Wake(TaskId),
}

/// A datagram that another worker's socket received.
type Forwarded = (SocketAddr, Box<[u8]>);

/// How a worker is reached by tasks, by its neighbours and by the server. What is
/// put into it when the worker has ended is lost, as it should be.
#[derive(Clone)]
pub(super) struct Mailbox {
    inbox: Sender<Letter>,
    datagrams: SyncSender<Forwarded>,
    waker: Arc<mio::Waker>,
    /// The worker was woken and has not looked yet: it need not be woken again.
    woken: Arc<AtomicBool>,
}

impl Notify for Mailbox {
    fn notify(&self, task: TaskId) {
        self.put(Letter::Wake(task));
    }
}

impl Mailbox {
    pub(super) fn reload(&self, rooms: Rooms) {
        self.put(Letter::Rooms(rooms));
    }

    fn put(&self, letter: Letter) {
        let _ = self.inbox.send(letter);
        self.wake();
    }

    /// Drops the datagram when many are waiting: a stranger can make any number.
    fn forward(&self, from: SocketAddr, datagram: &[u8]) {
        if self.datagrams.try_send((from, datagram.into())).is_ok() {
            self.wake();
        }
    }

    pub(super) fn wake(&self) {
        if !self.woken.swap(true, Ordering::AcqRel) {
            let _ = self.waker.wake();
        }
    }
}

/// Where a worker's stack sends to.
struct Sides {
    outgoing: Outgoing,
    mailbox: Mailbox,
    tasks: Tasks<Done, Mailbox>,
    /// Work that has just been left, and waits for its next step.
    new_tasks: Vec<TaskId>,
}

impl dtls::Outbox for Sides {
    fn push(&mut self, path: dtls::Path, datagram: &[u8]) {
        self.outgoing.push(path, datagram);
    }
}

impl Io for Sides {
    fn spawn(&mut self, work: impl Future<Output = Done> + Send + 'static) {
        let task = self.tasks.add(Box::pin(work), self.mailbox.clone());
        self.new_tasks.push(task);
    }
}

pub(super) struct Worker {
    number: usize,
    socket: UdpSocket,
    poll: mio::Poll,
    stack: Stack,
    sides: Sides,
    inbox: Receiver<Letter>,
    datagrams: Receiver<Forwarded>,
    runtime: Handle,
    stop: Arc<AtomicBool>,
}

impl Worker {
    pub(super) fn new(
        number: usize,
        socket: UdpSocket,
        stack: Stack,
        runtime: Handle,
        stop: Arc<AtomicBool>,
    ) -> io::Result<Self> {
        let poll = mio::Poll::new()?;
        poll.registry().register(&mut SourceFd(&socket.as_raw_fd()), SOCKET, Interest::READABLE)?;
        let waker = Arc::new(mio::Waker::new(poll.registry(), INBOX)?);
        let outgoing = Outgoing::new(socket.try_clone()?);
        let (inbox_sender, inbox) = channel();
        let (datagrams_sender, datagrams) = sync_channel(MAX_FORWARDED);
        let mailbox =
            Mailbox { inbox: inbox_sender, datagrams: datagrams_sender, waker, woken: Arc::default() };
        let sides = Sides { outgoing, mailbox, tasks: Tasks::new(), new_tasks: Vec::new() };
        Ok(Self { number, socket, poll, stack, sides, inbox, datagrams, runtime, stop })
    }

    pub(super) fn mailbox(&self) -> Mailbox {
        self.sides.mailbox.clone()
    }

    pub(super) fn figures(&self) -> Arc<Figures> {
        self.stack.figures()
    }

    pub(super) fn run(mut self, neighbours: &[Mailbox]) {
        // What is polled here may set timers of the runtime.
        let runtime = self.runtime.clone();
        let _entered = runtime.enter();
        let mut events = Events::with_capacity(8);
        let mut incoming = Incoming::new();
        let mut load = Load::Quiet;
        let mut ends = None;
        while !self.is_over(&mut ends) {
            match load {
                Load::Quiet => {
                    let pause = self.pause(ends.is_some());
                    if let Err(error) = self.poll.poll(&mut events, pause)
                        && error.kind() != io::ErrorKind::Interrupted
                    {
                        tracing::error!(%error, "a worker cannot wait for datagrams");
                        return;
                    }
                }
                Load::Busy => std::thread::sleep(GATHER),
                Load::Full => {}
            }
            let now = Instant::now();
            // Before looking: whoever puts something in from here on wakes us again.
            self.sides.mailbox.woken.store(false, Ordering::Release);
            while let Ok(letter) = self.inbox.try_recv() {
                match letter {
                    Letter::Rooms(rooms) => self.stack.reload(rooms),
                    Letter::Wake(task) => self.go_on(now, task),
                }
            }
            while let Ok((from, mut bytes)) = self.datagrams.try_recv() {
                self.stack.receive(now, from, &mut bytes, &mut self.sides);
            }
            load = self.receive(now, &mut incoming, neighbours);
            self.stack.handle_timeout(now, &mut self.sides);
            while let Some(task) = self.sides.new_tasks.pop() {
                self.go_on(now, task);
            }
            self.sides.outgoing.flush();
            self.stack.publish(self.sides.outgoing.dropped());
        }
    }

    fn go_on(&mut self, now: Instant, task: TaskId) {
        if let Some(done) = self.sides.tasks.poll(task) {
            self.stack.done(now, done, &mut self.sides);
        }
    }

    /// Whether this worker was told to stop, and nobody waits for it any more.
    fn is_over(&self, ends: &mut Option<Instant>) -> bool {
        if !self.stop.load(Ordering::Relaxed) {
            return false;
        }
        let now = Instant::now();
        let ends = *ends.get_or_insert(now + LAST_ANSWERS);
        now >= ends || (self.sides.tasks.is_empty() && self.sides.new_tasks.is_empty())
    }

    /// How long there is nothing to do but wait for others.
    fn pause(&self, stopping: bool) -> Option<Duration> {
        let pause = self.stack.poll_timeout().map(|at| at.saturating_duration_since(Instant::now()));
        if stopping { Some(pause.map_or(LAST_LOOK, |pause| pause.min(LAST_LOOK))) } else { pause }
    }

    /// Takes what has arrived. A batch that is not full has emptied the socket:
    /// the poll wakes us for what comes after it.
    fn receive(&mut self, now: Instant, incoming: &mut Incoming, neighbours: &[Mailbox]) -> Load {
        for batch in 0..MAX_BATCHES {
            let count = match incoming.receive(&self.socket) {
                Ok(count) => count,
                Err(error) => {
                    // An error of the network, told by the socket once.
                    tracing::debug!(%error, "receiving");
                    continue;
                }
            };
            // One alone has nothing to share.
            if count > 1 {
                self.stack.begin_batch();
            }
            for index in 0..count {
                let Some((from, bytes)) = incoming.datagram(index) else { continue };
                match self.neighbour_of(bytes, neighbours) {
                    Some(neighbour) => neighbour.forward(from, bytes),
                    None => self.stack.receive(now, from, bytes, &mut self.sides),
                }
            }
            self.stack.end_batch();
            self.sides.outgoing.flush();
            if count < BATCH {
                return if batch > 0 || count > 1 { Load::Busy } else { Load::Quiet };
            }
        }
        Load::Full
    }

    /// The worker whose session a datagram is for, if that is another: a device
    /// whose address has changed comes in wherever the kernel sends that address.
    fn neighbour_of<'n>(&self, bytes: &[u8], neighbours: &'n [Mailbox]) -> Option<&'n Mailbox> {
        let number = usize::from(dtls::connection_id_prefix(bytes)?);
        if number == self.number { None } else { neighbours.get(number) }
    }
}
