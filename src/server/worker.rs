//! One worker: a thread that takes datagrams from its socket to its stack, and the
//! answers back. Work that the stack leaves is polled here as well; that it can go
//! on is told by a letter.

use std::{
    future::Future,
    io,
    net::UdpSocket,
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
    batch::{BATCH, Incoming, Listener, Outgoing},
    local::Numbers,
    stack::{Done, Figures, Io, Stack},
    tasks::{Notify, TaskId, Tasks},
};
use crate::dtls;

const SOCKET: Token = Token(0);
const INBOX: Token = Token(1);

/// Maximum time that a round takes for what has arrived, and one datagram more: then
/// timers and answers get their turn, and the round counts. A datagram can cost more
/// than a millisecond.
const ROUND_TIME: Duration = Duration::from_millis(20);

/// Datagrams that may wait for a worker after another has received them.
const MAX_FORWARDED: usize = 1024;
/// Batches after which the timers get their turn, however much more has arrived.
const MAX_BATCHES: usize = 16;

/// Datagrams that one device can have sent: its goodbye and its next hello. A worker that
/// was woken finds no more as a rule, and does not prepare a whole batch for them.
const FEW: usize = 2;

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

/// Maximum time for close_notify to all sessions: enough for some 100,000.
const LEAVE: Duration = Duration::from_secs(4);
/// Time between two batches of them.
const LEAVE_PAUSE: Duration = Duration::from_millis(1);

/// What a look at the socket says about the time until the next one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Load {
    /// At most [`FEW`] datagrams were there.
    Quiet,
    /// More were there: others will follow soon.
    Busy,
    /// There may be more right now.
    Full,
}

/// What arrives in a worker's inbox.
enum Letter {
    /// From [`super::Server::reload`].
    Rooms(Rooms),
    /// Work of ours can go on. There is at most one for each piece of work.
    Wake(TaskId),
    #[cfg(test)]
    Fail,
}

/// Beginning of a round, and by when it is to leave what.
struct Round {
    now: Instant,
    time: Duration,
}

impl Round {
    /// Whether the round has had a part of its time, in quarters.
    fn has_had(&self, quarters: u32) -> bool {
        self.now.elapsed() >= self.time / 4 * quarters
    }
}

/// A datagram that another worker's socket received.
type Forwarded = (dtls::Path, Box<[u8]>);

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

    /// Passes a datagram on; returns whether there was room. Anyone can send any number
    /// of them.
    fn forward(&self, path: dtls::Path, datagram: &[u8]) -> bool {
        let is_taken = self.datagrams.try_send((path, datagram.into())).is_ok();
        if is_taken {
            self.wake();
        }
        is_taken
    }

    /// Has the worker panic.
    #[cfg(test)]
    pub(super) fn fail(&self) {
        self.put(Letter::Fail);
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

/// A worker that is ready to be started, on a thread of its own.
pub(super) struct Worker {
    number: usize,
    sockets: Vec<UdpSocket>,
    numbers: Numbers,
    poll: mio::Poll,
    stack: Stack,
    mailbox: Mailbox,
    inbox: Receiver<Letter>,
    datagrams: Receiver<Forwarded>,
    runtime: Handle,
    stop: Arc<AtomicBool>,
}

impl Worker {
    /// The sockets are in the order of `listen`, and `numbers` is the same for all workers.
    pub(super) fn new(
        number: usize,
        sockets: Vec<UdpSocket>,
        numbers: Numbers,
        stack: Stack,
        runtime: Handle,
        stop: Arc<AtomicBool>,
    ) -> io::Result<Self> {
        let poll = mio::Poll::new()?;
        for socket in &sockets {
            poll.registry().register(&mut SourceFd(&socket.as_raw_fd()), SOCKET, Interest::READABLE)?;
        }
        let waker = Arc::new(mio::Waker::new(poll.registry(), INBOX)?);
        let (inbox_sender, inbox) = channel();
        let (datagrams_sender, datagrams) = sync_channel(MAX_FORWARDED);
        let mailbox =
            Mailbox { inbox: inbox_sender, datagrams: datagrams_sender, waker, woken: Arc::default() };
        Ok(Self { number, sockets, numbers, poll, stack, mailbox, inbox, datagrams, runtime, stop })
    }

    pub(super) fn mailbox(&self) -> Mailbox {
        self.mailbox.clone()
    }

    pub(super) fn figures(&self) -> Arc<Figures> {
        self.stack.figures()
    }

    /// Serves until it is stopped. Fails when it cannot receive or wait for datagrams.
    pub(super) fn run(self, neighbours: &[Mailbox]) -> io::Result<()> {
        // What is polled here may set timers of the runtime.
        let runtime = self.runtime.clone();
        let _entered = runtime.enter();
        Active::new(self)?.run(neighbours)
    }
}

/// A worker on its thread.
struct Active {
    number: usize,
    listeners: Vec<Listener>,
    /// Index of the listener that was asked last.
    turn: usize,
    incoming: Incoming,
    poll: mio::Poll,
    stack: Stack,
    sides: Sides,
    inbox: Receiver<Letter>,
    datagrams: Receiver<Forwarded>,
    round_time: Duration,
    /// Load of the round before.
    load: Load,
    stop: Arc<AtomicBool>,
}

impl Active {
    fn new(worker: Worker) -> io::Result<Self> {
        let Worker { number, sockets, numbers, poll, stack, mailbox, inbox, datagrams, stop, .. } = worker;
        let senders = sockets.iter().map(UdpSocket::try_clone).collect::<io::Result<_>>()?;
        let outgoing = Outgoing::new(senders, numbers.clone());
        let listeners = (0..)
            .zip(sockets)
            .map(|(index, socket)| Listener::new(socket, index))
            .collect::<io::Result<_>>()?;
        let sides = Sides { outgoing, mailbox, tasks: Tasks::new(), new_tasks: Vec::new() };
        let (incoming, round_time) = (Incoming::new(numbers), ROUND_TIME);
        Ok(Self {
            number,
            listeners,
            turn: 0,
            incoming,
            poll,
            stack,
            sides,
            inbox,
            datagrams,
            round_time,
            load: Load::Quiet,
            stop,
        })
    }

    fn run(mut self, neighbours: &[Mailbox]) -> io::Result<()> {
        let mut events = Events::with_capacity(8);
        let mut ends = None;
        while !self.is_over(&mut ends) {
            match self.load {
                Load::Quiet => {
                    let pause = self.pause(ends.is_some());
                    if let Err(error) = self.poll.poll(&mut events, pause)
                        && error.kind() != io::ErrorKind::Interrupted
                    {
                        return Err(error);
                    }
                }
                Load::Busy => std::thread::sleep(GATHER),
                Load::Full => {}
            }
            self.load = self.round(neighbours);
        }
        self.take_leave();
        Ok(())
    }

    /// Says close_notify to the sessions (RFC 5246 §7.2.1), so that their devices begin
    /// again at once instead of waiting for answers. As many at a time as a network
    /// takes without loss; those that are left when the time is over hear nothing.
    fn take_leave(&mut self) {
        let deadline = Instant::now() + LEAVE;
        while self.stack.close_oldest(BATCH, &mut self.sides) > 0 && Instant::now() < deadline {
            self.sides.outgoing.flush();
            std::thread::sleep(LEAVE_PAUSE);
        }
        self.sides.outgoing.flush();
    }

    /// Does what there is to do, within [`ROUND_TIME`]: the letters, the forwarded
    /// datagrams and the sockets each have a part of it, and take at least one step. So
    /// load of any kind leaves time for the others, and does not keep the round from
    /// its end.
    fn round(&mut self, neighbours: &[Mailbox]) -> Load {
        let round = Round { now: Instant::now(), time: self.round_time };
        // Before looking: whoever puts something in from here on wakes us again.
        self.sides.mailbox.woken.store(false, Ordering::Release);
        let has_letters = self.read_letters(&round);
        let load = self.receive(&round, neighbours);
        self.stack.handle_timeout(round.now, &mut self.sides);
        while let Some(task) = self.sides.new_tasks.pop() {
            self.go_on(round.now, task);
        }
        self.sides.outgoing.flush();
        self.stack.publish(self.sides.outgoing.dropped());
        if has_letters { Load::Full } else { load }
    }

    /// Reads letters for a quarter of the round; returns whether there may be more.
    fn read_letters(&mut self, round: &Round) -> bool {
        while let Ok(letter) = self.inbox.try_recv() {
            match letter {
                Letter::Rooms(rooms) => self.stack.reload(rooms),
                Letter::Wake(task) => self.go_on(round.now, task),
                #[cfg(test)]
                Letter::Fail => panic!("a test wants it"),
            }
            if round.has_had(1) {
                return true;
            }
        }
        false
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

    /// Takes what has arrived, a batch from the neighbours and one from each socket in
    /// turn. A batch that is not full has emptied its socket: the poll wakes us for what
    /// comes after it.
    fn receive(&mut self, round: &Round, neighbours: &[Mailbox]) -> Load {
        let mut taken = 0;
        let mut most = if self.load == Load::Quiet { FEW + 1 } else { BATCH };
        for _ in 0..MAX_BATCHES {
            let mut more = self.take_forwarded(round);
            // What the round before had no time for.
            if !self.take_batch(round, neighbours) {
                return Load::Full;
            }
            for _ in 0..self.listeners.len() {
                // Goes on where the round before was over.
                self.turn = (self.turn + 1) % self.listeners.len();
                let Some(listener) = self.listeners.get_mut(self.turn) else { break };
                match self.incoming.receive(listener, most) {
                    Ok(count) => {
                        taken += count;
                        more |= count == most;
                    }
                    Err(error) => {
                        // An error of the network, told by the socket once.
                        tracing::debug!(%error, "receiving");
                        more = true;
                    }
                }
                if !self.take_batch(round, neighbours) {
                    return Load::Full;
                }
            }
            if !more {
                return if taken > FEW { Load::Busy } else { Load::Quiet };
            }
            if round.has_had(4) {
                break;
            }
            most = BATCH;
        }
        Load::Full
    }

    /// Takes the datagrams that were received; returns whether there was time for all.
    fn take_batch(&mut self, round: &Round, neighbours: &[Mailbox]) -> bool {
        let count = self.incoming.waiting();
        // One alone has nothing to share.
        if count > 1 {
            self.stack.begin_batch();
        }
        while let Some((path, bytes)) = self.incoming.next() {
            match neighbour_of(self.number, bytes, neighbours) {
                Some(neighbour) if neighbour.forward(path, bytes) => {}
                Some(_) => self.stack.forwarded_dropped(),
                None => self.stack.receive(round.now, path, bytes, &mut self.sides),
            }
            if round.has_had(4) {
                break;
            }
        }
        if count > 0 {
            self.stack.end_batch();
            self.sides.outgoing.flush();
        }
        self.incoming.waiting() == 0
    }

    /// Takes up to a batch of the datagrams that neighbours have received, within half
    /// of the round; returns whether there may be more.
    fn take_forwarded(&mut self, round: &Round) -> bool {
        for _ in 0..BATCH {
            let Ok((path, mut bytes)) = self.datagrams.try_recv() else { return false };
            self.stack.receive(round.now, path, &mut bytes, &mut self.sides);
            if round.has_had(2) {
                break;
            }
        }
        true
    }
}

/// The worker whose session a datagram is for, if that is another: a device
/// whose address has changed comes in wherever the kernel sends that address.
fn neighbour_of<'n>(number: usize, bytes: &[u8], neighbours: &'n [Mailbox]) -> Option<&'n Mailbox> {
    let owner = usize::from(dtls::connection_id_prefix(bytes)?);
    if owner == number { None } else { neighbours.get(owner) }
}

#[cfg(test)]
mod tests;
