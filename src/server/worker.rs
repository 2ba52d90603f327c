//! One worker: a thread that takes datagrams from its socket to its stack, and the
//! answers back. Work that the stack leaves is a task of the runtime; its result
//! arrives in the inbox.

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
/// two of them was half of the server's time. A device that comes alone is
/// answered at once.
const GATHER: Duration = Duration::from_micros(200);

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
    Done(Done),
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
        let _ = self.waker.wake();
    }
}

/// Where a worker's stack sends to.
struct Sides {
    outgoing: Outgoing,
    mailbox: Mailbox,
    runtime: Handle,
}

impl dtls::Outbox for Sides {
    fn push(&mut self, peer: SocketAddr, datagram: &[u8]) {
        self.outgoing.push(peer, datagram);
    }
}

impl Io for Sides {
    fn spawn(&mut self, work: impl Future<Output = Done> + Send + 'static) {
        let mailbox = self.mailbox.clone();
        self.runtime.spawn(async move { mailbox.put(Letter::Done(work.await)) });
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
        let mailbox = Mailbox { inbox: inbox_sender, datagrams: datagrams_sender, waker };
        let sides = Sides { outgoing, mailbox, runtime };
        Ok(Self { number, socket, poll, stack, sides, inbox, datagrams, stop })
    }

    pub(super) fn mailbox(&self) -> Mailbox {
        self.sides.mailbox.clone()
    }

    pub(super) fn figures(&self) -> Arc<Figures> {
        self.stack.figures()
    }

    pub(super) fn run(mut self, neighbours: &[Mailbox]) {
        // What is polled here may set timers of the runtime.
        let runtime = self.sides.runtime.clone();
        let _entered = runtime.enter();
        let mut events = Events::with_capacity(8);
        let mut incoming = Incoming::new();
        let mut load = Load::Quiet;
        while !self.stop.load(Ordering::Relaxed) {
            match load {
                Load::Quiet => {
                    let pause = self.pause();
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
            while let Ok(letter) = self.inbox.try_recv() {
                match letter {
                    Letter::Rooms(rooms) => self.stack.reload(rooms),
                    Letter::Done(done) => self.stack.done(now, done, &mut self.sides),
                }
            }
            while let Ok((from, mut bytes)) = self.datagrams.try_recv() {
                self.stack.receive(now, from, &mut bytes, &mut self.sides);
            }
            load = self.receive(now, &mut incoming, neighbours);
            self.stack.handle_timeout(now, &mut self.sides);
            self.sides.outgoing.flush();
            self.stack.publish(self.sides.outgoing.dropped());
        }
    }

    /// How long there is nothing to do but wait for others.
    fn pause(&self) -> Option<Duration> {
        self.stack.poll_timeout().map(|at| at.saturating_duration_since(Instant::now()))
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
            for index in 0..count {
                let Some((from, bytes)) = incoming.datagram(index) else { continue };
                match self.neighbour_of(bytes, neighbours) {
                    Some(neighbour) => neighbour.forward(from, bytes),
                    None => self.stack.receive(now, from, bytes, &mut self.sides),
                }
            }
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
