//! Places for the connections of the admin port. Decides how many places a network may have, which
//! connection is ended to make room for a new one, and how long a client may take. If no place is
//! free, a new connection gets the place of one that waits for its client. Strangers who hold all
//! places with slow requests therefore keep no one out. Performs no I/O; the time is an argument.

use std::{
    cmp::Reverse,
    collections::HashMap,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::Notify;

use crate::rate_limit::{Network, Source};

/// Places for connections from other machines.
pub(super) const PLACES: usize = 256;
/// Places for connections from this machine, which no other machine can take.
pub(super) const LOCAL_PLACES: usize = 128;
/// Divisor of the number of places: one origin may have a quarter of them.
const SHARE: usize = 4;
/// Maximum time for a TLS handshake, for a request's header, and for the body of a request that
/// is not authenticated.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);
/// Maximum time between the requests of a client whose last request was authenticated.
pub(super) const IDLE: Duration = Duration::from_secs(60);
/// Maximum time without progress while a client sends a body or takes an answer. Also the time by
/// which a transfer may take longer than [`PACE`] allows.
const STALL: Duration = Duration::from_secs(30);
/// Minimum average rate of a body or an answer, in bytes a second. A modem of 1995 was this fast.
const PACE: u64 = 2048;
/// Maximum time that the server may work on a request.
const WORK: Duration = Duration::from_secs(600);
/// Time that a body may take beyond its limit before its connection ends without an answer.
const GRACE: Duration = Duration::from_secs(5);

/// Stage of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// The TLS handshake has begun.
    Handshake,
    /// The client sends the header of its first request.
    Header,
    /// The client sends the body of a request.
    Body,
    /// The server works on a request.
    Working,
    /// The client takes the answer.
    Answering,
    /// The client has its answer and may send another request.
    Idle,
}

/// Reason why a connection was refused or ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Loss {
    /// All places that the connection could have are in use by authenticated requests.
    Full,
    /// The connection was ended to make room for another connection.
    Displaced,
    /// The TLS handshake took too long.
    SlowHandshake,
    /// The header of a request took too long.
    SlowHeader,
    /// The body of a request came too slowly.
    SlowBody,
    /// The answer was taken too slowly.
    SlowReader,
    /// The work on a request took too long.
    LongWork,
}

impl Loss {
    pub(super) const ALL: [Self; 7] = [
        Self::Full,
        Self::Displaced,
        Self::SlowHandshake,
        Self::SlowHeader,
        Self::SlowBody,
        Self::SlowReader,
        Self::LongWork,
    ];

    /// Returns the label of the metric.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Displaced => "displaced",
            Self::SlowHandshake => "slow_handshake",
            Self::SlowHeader => "slow_header",
            Self::SlowBody => "slow_body",
            Self::SlowReader => "slow_reader",
            Self::LongWork => "long_work",
        }
    }
}

/// Number of a connection; never reused.
pub(super) type Id = u64;

struct Entry {
    source: Source,
    stage: Stage,
    /// Beginning of the stage.
    since: Instant,
    /// Time of the last progress in this stage (`moved`), and bytes moved in this stage (`bytes`).
    moved: Instant,
    bytes: u64,
    /// Set if the current or last request is of a user or a script.
    is_authenticated: bool,
    /// Notified when the connection makes room for another.
    bell: Arc<Notify>,
}

impl Entry {
    fn is_busy(&self) -> bool {
        self.stage != Stage::Idle
    }

    /// Returns the time by which the client, or the server while it works, must have made more
    /// progress.
    fn deadline(&self) -> Instant {
        let paced = self.since + STALL + Duration::from_secs(self.bytes / PACE);
        match self.stage {
            Stage::Handshake | Stage::Header => self.since + PATIENCE,
            Stage::Body if !self.is_authenticated => self.since + PATIENCE,
            Stage::Body | Stage::Answering => paced.min(self.moved + STALL),
            Stage::Idle => self.since + if self.is_authenticated { IDLE } else { PATIENCE },
            Stage::Working => self.since + WORK,
        }
    }
}

/// Places for the connections from this machine, or for the connections from other machines.
struct Pool {
    size: usize,
    entries: HashMap<Id, Entry>,
    counts: HashMap<Network, usize>,
}

impl Pool {
    fn new(size: usize) -> Self {
        Self { size, entries: HashMap::new(), counts: HashMap::new() }
    }

    fn count(&self, network: Network) -> usize {
        self.counts.get(&network).copied().unwrap_or_default()
    }

    fn insert(&mut self, id: Id, entry: Entry) {
        for (network, _) in entry.source.networks() {
            *self.counts.entry(network).or_default() += 1;
        }
        self.entries.insert(id, entry);
    }

    fn remove(&mut self, id: Id) -> Option<Entry> {
        let entry = self.entries.remove(&id)?;
        for (network, _) in entry.source.networks() {
            if let Some(count) = self.counts.get_mut(&network) {
                *count -= 1;
                if *count == 0 {
                    self.counts.remove(&network);
                }
            }
        }
        Some(entry)
    }

    /// Makes room for a connection from `source`, if no place is free. Returns whether another
    /// connection was ended to make room.
    fn make_room(&mut self, source: Source) -> Result<bool, Loss> {
        let has_share = |&(network, times): &(Network, u32)| {
            self.count(network) >= (self.size / SHARE * times as usize).min(self.size)
        };
        // The networks are in ascending order of size, and each is part of the next. Ending a
        // connection of the smallest network that has its full share makes room in the larger ones,
        // too.
        let within = source.networks().find(has_share).map(|(network, _)| network);
        if within.is_none() && self.entries.len() < self.size {
            return Ok(false);
        }
        let victim = self.victim(within).and_then(|id| self.remove(id)).ok_or(Loss::Full)?;
        victim.bell.notify_one();
        Ok(true)
    }

    /// Chooses the connection to end, in the network `within` if one is given. Strangers lose their
    /// connections first: idle ones, then those that wait for their client, then those that wait
    /// for the server. The idle connections of users follow. Connections with a user's request are
    /// ended last, and only if such connections hold more than half of the places. Among equals,
    /// the network with the most connections for its size loses the connection whose stage has
    /// lasted longest.
    fn victim(&self, within: Option<Network>) -> Option<Id> {
        let is_protected = |entry: &Entry| entry.is_authenticated && entry.is_busy();
        let protects = self.entries.values().filter(|entry| is_protected(entry)).count() <= self.size / 2;
        let rank = |entry: &Entry| match (entry.is_authenticated, entry.stage) {
            (false, Stage::Idle) => Some(0),
            (false, Stage::Working) => Some(2),
            (false, _) => Some(1),
            (true, Stage::Idle) => Some(3),
            (true, _) => (!protects).then_some(4),
        };
        let greed = |entry: &Entry| {
            // Each network counts in proportion to its share: a /48 may have 4 times as many places
            // as a /64.
            let levels = entry.source.networks();
            levels.map(|(network, times)| 4 * self.count(network) / times as usize).max()
        };
        let is_within =
            |entry: &Entry| within.is_none_or(|wanted| entry.source.networks().any(|(own, _)| own == wanted));
        let candidates = self.entries.iter().filter(|(_, entry)| is_within(entry));
        candidates
            .filter_map(|(id, entry)| Some(((rank(entry)?, Reverse(greed(entry)), entry.since), *id)))
            .min()
            .map(|(_, id)| id)
    }
}

/// All connections of the port.
pub(super) struct Places {
    local: Pool,
    remote: Pool,
    next: Id,
}

impl Default for Places {
    fn default() -> Self {
        Self { local: Pool::new(LOCAL_PLACES), remote: Pool::new(PLACES), next: 0 }
    }
}

/// The place of a new connection.
pub(super) struct Admitted {
    pub(super) id: Id,
    /// Notified when the connection must make room for another.
    pub(super) bell: Arc<Notify>,
    /// Set if another connection was ended.
    pub(super) has_displaced: bool,
}

impl Places {
    /// Gives a place to a new connection.
    pub(super) fn admit(&mut self, now: Instant, peer: SocketAddr, stage: Stage) -> Result<Admitted, Loss> {
        let source = Source::of(peer);
        let pool = if peer.ip().to_canonical().is_loopback() { &mut self.local } else { &mut self.remote };
        let has_displaced = pool.make_room(source)?;
        let (id, bell) = (self.next, Arc::new(Notify::new()));
        self.next += 1;
        let entry = Entry {
            source,
            stage,
            since: now,
            moved: now,
            bytes: 0,
            is_authenticated: false,
            bell: bell.clone(),
        };
        pool.insert(id, entry);
        Ok(Admitted { id, bell, has_displaced })
    }

    /// Gives a place back. Does nothing if the connection has lost it.
    pub(super) fn leave(&mut self, id: Id) {
        let _ = self.local.remove(id).or_else(|| self.remote.remove(id));
    }

    /// Returns the number of connections.
    pub(super) fn len(&self) -> usize {
        self.local.entries.len() + self.remote.entries.len()
    }

    fn entry(&mut self, id: Id) -> Option<&mut Entry> {
        self.local.entries.get_mut(&id).or_else(|| self.remote.entries.get_mut(&id))
    }

    /// Returns the stage of a connection, if it still has its place.
    pub(super) fn stage(&mut self, id: Id) -> Option<Stage> {
        self.entry(id).map(|entry| entry.stage)
    }

    /// Begins a stage, unless the connection is in it already.
    pub(super) fn enter(&mut self, now: Instant, id: Id, stage: Stage) {
        let Some(entry) = self.entry(id).filter(|entry| entry.stage != stage) else { return };
        (entry.stage, entry.since, entry.moved, entry.bytes) = (stage, now, now, 0);
    }

    /// Notes whether the current request is authenticated.
    pub(super) fn authenticate(&mut self, id: Id, is_authenticated: bool) {
        if let Some(entry) = self.entry(id) {
            entry.is_authenticated = is_authenticated;
        }
    }

    /// Notes that `bytes` bytes of a body or an answer have moved.
    pub(super) fn progress(&mut self, now: Instant, id: Id, bytes: usize) {
        if let Some(entry) = self.entry(id) {
            entry.moved = now;
            entry.bytes += bytes as u64;
        }
    }

    /// Returns the time by which more of a request's body must have arrived.
    pub(super) fn deadline(&mut self, id: Id) -> Option<Instant> {
        self.entry(id).map(|entry| entry.deadline())
    }

    /// Returns `Some` if a connection must end because its client, or the server, takes too long.
    /// The inner value is the loss to count; `None` for an idle connection, which loses nothing.
    pub(super) fn overdue(&mut self, now: Instant, id: Id) -> Option<Option<Loss>> {
        let entry = self.entry(id)?;
        // A body that is late has a grace period, in which the handler of the request learns of the
        // delay and answers.
        let grace = if entry.stage == Stage::Body { GRACE } else { Duration::ZERO };
        (now >= entry.deadline() + grace).then_some(match entry.stage {
            Stage::Handshake => Some(Loss::SlowHandshake),
            Stage::Header => Some(Loss::SlowHeader),
            Stage::Body => Some(Loss::SlowBody),
            Stage::Answering => Some(Loss::SlowReader),
            Stage::Working => Some(Loss::LongWork),
            Stage::Idle => None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    struct Port {
        places: Places,
        now: Instant,
    }

    impl Port {
        fn new() -> Self {
            Self { places: Places::default(), now: Instant::now() }
        }

        /// Connects after another millisecond, enters the stage, and returns the connection.
        fn connect(&mut self, from: &str, stage: Stage) -> Result<Id, Loss> {
            self.now += Duration::from_millis(1);
            let peer = SocketAddr::new(from.parse().unwrap(), 1);
            let Admitted { id, .. } = self.places.admit(self.now, peer, Stage::Header)?;
            self.places.enter(self.now, id, stage);
            Ok(id)
        }

        fn user(&mut self, from: &str, stage: Stage) -> Id {
            let id = self.connect(from, stage).unwrap();
            self.places.authenticate(id, true);
            id
        }

        /// Fills all places for other machines, a quarter of them from each of four addresses.
        fn fill(&mut self, stage: Stage) {
            for number in 0..PLACES {
                self.connect(&format!("192.0.2.{}", number % SHARE), stage).unwrap();
            }
        }

        fn has(&mut self, id: Id) -> bool {
            self.places.stage(id).is_some()
        }
    }

    #[test]
    fn an_origin_has_a_quarter_of_the_places_and_its_oldest_connection_makes_room() {
        let mut port = Port::new();
        let other = port.connect("192.0.2.2", Stage::Header).unwrap();
        let own: Vec<Id> = (0..1000).map(|_| port.connect("192.0.2.1", Stage::Header).unwrap()).collect();
        assert_eq!(port.places.len(), 1 + PLACES / 4);
        assert!(port.has(other), "no one else pays for it");
        let kept = own.iter().filter(|&&id| port.has(id)).count();
        assert!(kept == PLACES / 4 && own[1000 - kept..].iter().all(|&id| port.has(id)), "{kept}");
    }

    #[test]
    fn an_ipv6_site_has_as_many_places_as_an_ipv4_one_for_each_of_its_levels() {
        let mut port = Port::new();
        for number in 0..1000 {
            port.connect(&format!("2001:db8:7:100::{number:x}"), Stage::Header).unwrap();
        }
        assert_eq!(port.places.len(), PLACES / 4, "a /64");
        for number in 0..1000 {
            port.connect(&format!("2001:db8:7:1{:02x}::1", number % 256), Stage::Header).unwrap();
        }
        assert_eq!(port.places.len(), PLACES / 2, "a /56");
    }

    #[test]
    fn a_newcomer_always_finds_a_place_among_strangers_and_keeps_it_while_others_are_greedier() {
        for stage in [Stage::Handshake, Stage::Header, Stage::Body, Stage::Answering, Stage::Working] {
            let mut port = Port::new();
            port.fill(stage);
            let probe = port.connect("192.0.2.99", stage).unwrap();
            port.now += SECOND;
            for number in 0..1000 {
                port.connect(&format!("192.0.2.{}", 10 + number % 8), stage).unwrap();
                assert!(port.has(probe), "{stage:?}: {number}");
            }
            assert_eq!(port.places.len(), PLACES);
        }
    }

    #[test]
    fn idle_connections_are_first_and_those_that_we_keep_waiting_are_last() {
        let mut port = Port::new();
        let working = port.connect("192.0.2.0", Stage::Working).unwrap();
        let waiting = port.connect("192.0.2.0", Stage::Body).unwrap();
        let idle = port.connect("192.0.2.0", Stage::Idle).unwrap();
        for _ in 3..PLACES / 4 {
            port.connect("192.0.2.0", Stage::Working).unwrap();
        }
        port.connect("192.0.2.0", Stage::Working).unwrap();
        assert!(!port.has(idle) && port.has(waiting) && port.has(working));
        port.connect("192.0.2.0", Stage::Working).unwrap();
        assert!(!port.has(waiting) && port.has(working));
        port.connect("192.0.2.0", Stage::Working).unwrap();
        assert!(!port.has(working));
    }

    #[test]
    fn no_stranger_ends_the_request_of_a_user_and_an_idle_user_goes_last() {
        let mut port = Port::new();
        let (upload, idle) = (port.user("192.0.2.1", Stage::Body), port.user("192.0.2.1", Stage::Idle));
        port.fill(Stage::Header);
        for _ in 0..1000 {
            port.connect("192.0.2.1", Stage::Header).unwrap();
        }
        assert!(port.has(upload) && port.has(idle));
        // Another request on the same connection, without a token, counts as a stranger's.
        port.places.authenticate(upload, false);
        port.connect("192.0.2.1", Stage::Header).unwrap();
        assert!(!port.has(upload));
    }

    #[test]
    fn users_may_have_half_of_the_places_and_their_own_quarter() {
        let mut port = Port::new();
        let own = (0..PLACES / 4).map(|_| port.user("192.0.2.1", Stage::Body)).collect::<Vec<_>>();
        assert_eq!(port.connect("192.0.2.1", Stage::Header).err(), Some(Loss::Full));
        assert!(port.connect("192.0.2.2", Stage::Header).is_ok());
        for number in 2..5 {
            (0..PLACES / 4).for_each(|_| assert!(port.user(&format!("192.0.2.{number}"), Stage::Body) > 0));
        }
        assert!(port.connect("192.0.2.9", Stage::Header).is_ok(), "they do not keep others out");
        assert!(!port.has(own[0]));
    }

    #[test]
    fn other_machines_take_no_place_of_this_machine() {
        let mut port = Port::new();
        let local = port.connect("127.0.0.1", Stage::Idle).unwrap();
        let mapped = port.connect("::ffff:127.0.0.1", Stage::Idle).unwrap();
        port.fill(Stage::Header);
        for number in 0..1000 {
            port.connect(&format!("10.0.{}.{}", number / 250, number % 250), Stage::Header).unwrap();
        }
        assert!(port.has(local) && port.has(mapped));
        for number in 0..1000 {
            port.connect(&format!("127.1.{}.{}", number / 250, number % 250), Stage::Header).unwrap();
        }
        assert_eq!(port.places.len(), PLACES + LOCAL_PLACES);
    }

    #[test]
    fn a_place_is_given_back_with_its_share() {
        let mut port = Port::new();
        for _ in 0..1000 {
            let id = port.connect("2001:db8::1", Stage::Header).unwrap();
            port.places.leave(id);
            port.places.leave(id);
        }
        assert_eq!((port.places.len(), port.places.remote.counts.len()), (0, 0));
    }

    /// Returns the number of seconds after which a connection ends if it moves `bytes` bytes each
    /// second, and the loss that is counted.
    fn lasts(stage: Stage, is_user: bool, bytes: usize) -> (u64, Option<Loss>) {
        let mut port = Port::new();
        let id = port.connect("192.0.2.1", stage).unwrap();
        port.places.authenticate(id, is_user);
        for second in 0..100_000 {
            if let Some(loss) = port.places.overdue(port.now + second * SECOND, id) {
                return (u64::from(second), loss);
            }
            if bytes > 0 && second as usize * bytes < 16 << 20 {
                port.places.progress(port.now + second * SECOND, id, bytes);
            }
        }
        panic!("it lasts for a day");
    }

    #[test]
    fn a_slow_client_ends_at_each_stage() {
        assert_eq!(lasts(Stage::Handshake, false, 100), (10, Some(Loss::SlowHandshake)));
        assert_eq!(lasts(Stage::Header, false, 100), (10, Some(Loss::SlowHeader)));
        assert_eq!(lasts(Stage::Body, false, 100_000), (15, Some(Loss::SlowBody)));
        assert_eq!(lasts(Stage::Body, true, 0), (35, Some(Loss::SlowBody)));
        assert_eq!(lasts(Stage::Answering, false, 0), (30, Some(Loss::SlowReader)));
        assert_eq!(lasts(Stage::Idle, false, 0), (10, None));
        assert_eq!(lasts(Stage::Idle, true, 0), (60, None));
        assert_eq!(lasts(Stage::Working, false, 0), (600, Some(Loss::LongWork)));
        let (drip, _) = lasts(Stage::Body, true, 10);
        assert!(drip < 40, "a byte now and then is not progress: {drip} s");
    }

    #[test]
    fn a_large_upload_over_a_slow_line_has_the_time_that_it_needs_and_no_more() {
        let (slow, loss) = lasts(Stage::Body, true, 3000);
        let needs = (16 << 20) / 3000;
        assert!((needs..needs + 60).contains(&slow) && loss == Some(Loss::SlowBody), "{slow} s, {needs} s");
        let (fast_then_silent, _) = lasts(Stage::Body, true, 16 << 20);
        assert!(fast_then_silent < 60, "what came fast is no reserve: {fast_then_silent} s");
    }
}
