//! One worker: a thread that passes datagrams from its sockets to its stack, and answers from the
//! stack to the sockets. It also polls the work that the stack hands over. A letter in the worker's
//! inbox reports that a piece of work can continue.

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
    Services,
    datagrams::{GROUP, Incoming, Listener, Outgoing},
    local::Numbers,
    stack::{Done, Io, Metrics, Stack},
    tasks::{Notify, TaskId, Tasks},
};
use crate::dtls;

const SOCKET: Token = Token(0);
const INBOX: Token = Token(1);

/// Maximum time that a round spends on letters and datagrams that have arrived. A round may exceed
/// this time by the processing of its last datagram, which may take more than a millisecond. After
/// this time, the round handles timers and sends answers.
const ROUND_TIME: Duration = Duration::from_millis(20);

/// Maximum number of datagrams in a worker's queue for datagrams that other workers have received.
const MAX_FORWARDED: usize = 1024;
/// Maximum number of groups from each source that a round processes before it handles timers.
const MAX_GROUPS: usize = 16;

/// Number of datagrams that one device may send in immediate succession: a close_notify and the
/// next hello. A worker that was woken usually finds no more than this number of datagrams, so it
/// does not prepare buffers for a whole group.
const FEW: usize = 2;

/// Time for which a worker under load lets datagrams accumulate, because waking up costs several
/// times as much as processing a datagram. With 64 concurrent devices, waking up for every two
/// datagrams took half of the server's time. With a pause of 200 µs, the server still took a
/// quarter more time than with 500 µs. A single device is answered without a pause.
const GATHER: Duration = Duration::from_micros(500);

/// Maximum time for which a stopping worker continues to run, so that waiting devices get their
/// answers.
const LAST_ANSWERS: Duration = Duration::from_secs(1);
/// Interval at which a stopping worker checks whether it can end.
const LAST_LOOK: Duration = Duration::from_millis(20);

/// Maximum time for sending close_notify to all sessions. It is enough for about 100,000 sessions.
const LEAVE: Duration = Duration::from_secs(4);
/// Pause between two groups of close_notify.
const LEAVE_PAUSE: Duration = Duration::from_millis(1);

/// State of the sockets after a round. It decides how the worker waits for the next round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Load {
    /// At most [`FEW`] datagrams were waiting in the sockets.
    Quiet,
    /// More than [`FEW`] datagrams were waiting, and others will probably follow soon.
    Busy,
    /// The round may not have processed all datagrams that have arrived.
    Full,
}

/// A message in a worker's inbox.
enum Letter {
    /// New services, from [`super::Server::reload`].
    Services(Services),
    /// A piece of work can continue. There is at most one such letter for each piece.
    Wake(TaskId),
    #[cfg(test)]
    Fail,
}

/// Start of a round, and the time that the round may take.
struct Round {
    now: Instant,
    time: Duration,
}

impl Round {
    /// Returns whether this many quarters of the round's time have passed.
    fn has_had(&self, quarters: u32) -> bool {
        self.now.elapsed() >= self.time / 4 * quarters
    }
}

/// A datagram that another worker's socket received.
type Forwarded = (dtls::Path, Box<[u8]>);

/// Handle with which tasks, other workers and the server send letters and datagrams to a worker. A
/// letter or datagram that is sent to a worker that has ended is dropped.
#[derive(Clone)]
pub(super) struct Mailbox {
    inbox: Sender<Letter>,
    datagrams: SyncSender<Forwarded>,
    waker: Arc<mio::Waker>,
    /// Set from the time at which the worker is woken until its next round, so that it is not woken
    /// twice.
    woken: Arc<AtomicBool>,
}

impl Notify for Mailbox {
    fn notify(&self, task: TaskId) {
        self.put(Letter::Wake(task));
    }
}

impl Mailbox {
    pub(super) fn reload(&self, services: Services) {
        self.put(Letter::Services(services));
    }

    fn put(&self, letter: Letter) {
        let _ = self.inbox.send(letter);
        self.wake();
    }

    /// Forwards a datagram. Returns whether the worker accepted it. The queue is bounded,
    /// because anyone can send any number of datagrams.
    fn forward(&self, path: dtls::Path, datagram: &[u8]) -> bool {
        let is_taken = self.datagrams.try_send((path, datagram.into())).is_ok();
        if is_taken {
            self.wake();
        }
        is_taken
    }

    /// Makes the worker panic.
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

/// Destination of the output of a worker's stack.
struct Sides {
    outgoing: Outgoing,
    mailbox: Mailbox,
    tasks: Tasks<Done, Mailbox>,
    /// IDs of new work that has not been polled yet.
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

/// A worker that is ready to be started on its own thread.
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
    /// Creates a worker. The sockets are in the order of `listen`, and `numbers` is
    /// shared by all workers.
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

    pub(super) fn metrics(&self) -> Arc<Metrics> {
        self.stack.metrics()
    }

    /// Serves until the worker is stopped.
    pub(super) fn run(self, neighbours: &[Mailbox]) -> Result<(), RunError> {
        // The work that this thread polls may use timers of the runtime.
        let runtime = self.runtime.clone();
        let _entered = runtime.enter();
        Active::new(self).map_err(RunError::SetUp)?.run(neighbours).map_err(RunError::Wait)
    }
}

/// Reason why a worker ends before it is stopped. The message is logged for the operator, with the
/// system's error in another field.
#[derive(Debug, thiserror::Error)]
pub(super) enum RunError {
    #[error(
        "a worker could not set up its sockets, and the server ends; restart certdist, with a higher \
         LimitNOFILE if too many files are open"
    )]
    SetUp(io::Error),
    #[error(
        "a worker can no longer wait for datagrams, and the server ends; restart certdist, and report this \
         error if it comes back"
    )]
    Wait(io::Error),
}

impl RunError {
    /// Returns the error of the system.
    pub(super) fn cause(&self) -> &io::Error {
        let (Self::SetUp(error) | Self::Wait(error)) = self;
        error
    }
}

/// A worker on its thread.
struct Active {
    number: usize,
    listeners: Vec<Listener>,
    /// Index of the listener that was read last.
    turn: usize,
    incoming: Incoming,
    poll: mio::Poll,
    stack: Stack,
    sides: Sides,
    inbox: Receiver<Letter>,
    datagrams: Receiver<Forwarded>,
    round_time: Duration,
    /// Load of the previous round.
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

    /// Sends close_notify to the sessions (RFC 5246 §7.2.1), so that their devices reconnect
    /// immediately instead of waiting for answers. Pauses after each group, so that the network
    /// does not drop the datagrams. Sessions left after [`LEAVE`] are not notified.
    fn take_leave(&mut self) {
        let deadline = Instant::now() + LEAVE;
        while self.stack.close_oldest(GROUP, &mut self.sides) > 0 && Instant::now() < deadline {
            self.sides.outgoing.flush();
            std::thread::sleep(LEAVE_PAUSE);
        }
        self.sides.outgoing.flush();
    }

    /// Runs one round, within [`ROUND_TIME`]. Letters, forwarded datagrams and sockets each get a
    /// part of the time, and at least one step. So no kind of load can block the others, or keep
    /// the round from ending.
    fn round(&mut self, neighbours: &[Mailbox]) -> Load {
        let round = Round { now: Instant::now(), time: self.round_time };
        // The flag is cleared before the inbox is read, so that anything sent later wakes the
        // worker again.
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

    /// Reads letters for up to a quarter of the round's time. Returns whether more may be
    /// waiting.
    fn read_letters(&mut self, round: &Round) -> bool {
        while let Ok(letter) = self.inbox.try_recv() {
            match letter {
                Letter::Services(services) => self.stack.reload(services),
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

    /// Returns whether this worker can end. It can end if it was asked to stop and no work is left,
    /// or if [`LAST_ANSWERS`] has passed since it was asked to stop.
    fn is_over(&self, ends: &mut Option<Instant>) -> bool {
        if !self.stop.load(Ordering::Relaxed) {
            return false;
        }
        let now = Instant::now();
        let ends = *ends.get_or_insert(now + LAST_ANSWERS);
        now >= ends || (self.sides.tasks.is_empty() && self.sides.new_tasks.is_empty())
    }

    /// Returns the time for which the worker can sleep, or `None` if the worker can sleep until
    /// something arrives.
    fn pause(&self, stopping: bool) -> Option<Duration> {
        let pause = self.stack.poll_timeout().map(|at| at.saturating_duration_since(Instant::now()));
        if stopping { Some(pause.map_or(LAST_LOOK, |pause| pause.min(LAST_LOOK))) } else { pause }
    }

    /// Processes the datagrams that have arrived: a group from the other workers and a group from
    /// each socket, repeatedly. If a group is not full, its socket is empty, and later datagrams
    /// will wake the worker again.
    fn receive(&mut self, round: &Round, neighbours: &[Mailbox]) -> Load {
        let mut taken = 0;
        let mut most = if self.load == Load::Quiet { FEW + 1 } else { GROUP };
        for _ in 0..MAX_GROUPS {
            let mut more = self.take_forwarded(round);
            // Datagrams for which the previous round had no time come first.
            if !self.take_group(round, neighbours) {
                return Load::Full;
            }
            for _ in 0..self.listeners.len() {
                // Each round continues after the listener that was read last, so that all listeners
                // take turns.
                self.turn = (self.turn + 1) % self.listeners.len();
                let Some(listener) = self.listeners.get_mut(self.turn) else { break };
                match self.incoming.receive(listener, most) {
                    Ok(count) => {
                        taken += count;
                        more |= count == most;
                    }
                    Err(error) => {
                        // The socket reports a network error only once, so datagrams may still be
                        // waiting.
                        tracing::debug!(%error, "receiving datagrams failed");
                        more = true;
                    }
                }
                if !self.take_group(round, neighbours) {
                    return Load::Full;
                }
            }
            if !more {
                return if taken > FEW { Load::Busy } else { Load::Quiet };
            }
            if round.has_had(4) {
                break;
            }
            most = GROUP;
        }
        Load::Full
    }

    /// Processes the received datagrams. Returns whether there was time for all of them.
    fn take_group(&mut self, round: &Round, neighbours: &[Mailbox]) -> bool {
        let count = self.incoming.waiting();
        // For a single datagram, a group would save nothing.
        if count > 1 {
            self.stack.begin_group();
        }
        while let Some((path, bytes)) = self.incoming.next() {
            match neighbour_of(self.number, bytes, neighbours) {
                Some(neighbour) if neighbour.forward(path, bytes) => {}
                Some(_) => self.stack.forwarded_dropped(),
                None => self.stack.receive(round.now, path, bytes, &mut self.sides),
            }
            if self.incoming.waiting() > 0 && round.has_had(4) {
                break;
            }
        }
        if count > 0 {
            self.stack.end_group();
            self.sides.outgoing.flush();
        }
        self.incoming.waiting() == 0
    }

    /// Processes up to a group of datagrams that other workers have received, for up to
    /// half of the round's time. Returns whether more may be waiting.
    fn take_forwarded(&mut self, round: &Round) -> bool {
        for _ in 0..GROUP {
            let Ok((path, mut bytes)) = self.datagrams.try_recv() else { return false };
            self.stack.receive(round.now, path, &mut bytes, &mut self.sides);
            if round.has_had(2) {
                break;
            }
        }
        true
    }
}

/// Returns the mailbox of the worker that has the session of a datagram. Returns `None` if this
/// worker has the session, or if it is not known which worker has the session. After a device has
/// moved, the kernel may deliver its datagrams to any worker.
fn neighbour_of<'n>(number: usize, bytes: &[u8], neighbours: &'n [Mailbox]) -> Option<&'n Mailbox> {
    let owner = usize::from(dtls::connection_id_prefix(bytes)?);
    if owner == number { None } else { neighbours.get(owner) }
}

#[cfg(test)]
mod tests;
