//! Servers of a table. Each process that serves devices, or registers them for a long time, has a row,
//! and beats by updating it. The rows show an operator which processes share the table, and how their
//! configurations and clocks differ. No other rule depends on them: claims and leases have owners of
//! their own, see `claim.rs`.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::{
    StoreFuture, UnixSeconds,
    claim::{OwnerId, new_id},
};
use crate::store::StoreError;

/// Time between two beats of a server.
pub const BEAT_EVERY: Duration = Duration::from_secs(10);

/// Time without a beat after which a server counts as gone, in seconds.
pub const GONE_AFTER: i64 = 30;

/// Time without a beat after which the row of a server is removed.
pub const KEPT: Duration = Duration::from_secs(86_400);

/// Maximum number of rows. Above it, the servers that have been silent longest are removed.
pub const MOST: usize = 1000;

/// Random number of a server, chosen at each start.
pub type ServerId = i64;

/// A process that uses the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    /// Number of the process.
    pub id: ServerId,
    /// Name of the server, from the configuration or from the machine.
    pub name: String,
    /// Command that the process runs: `serve` or `register`.
    pub command: String,
    /// Version of certdist.
    pub version: String,
    /// Name of the machine.
    pub host: String,
    /// Number of the process on its machine.
    pub process: u32,
    /// Addresses on which the server listens for devices, separated by commas; empty if it does not.
    pub listen: String,
    /// Owners of the process's claims and leases.
    pub owners: Vec<OwnerId>,
    /// Fingerprints of the configuration.
    pub facts: Facts,
    /// Present load.
    pub load: Load,
}

/// Fingerprints of a configuration. Two servers of one table should have the same.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Facts {
    /// Hash of the enrollments: their names, kinds, products and targets.
    pub enrollments: String,
    /// Hash of the IDs of the enrollments' keys.
    pub keys: String,
    /// ID of the database key that seals new secrets; `None` if they are not sealed.
    pub database_key: Option<String>,
}

/// Load of a server.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Load {
    /// Requests of devices answered per minute, since the previous beat.
    pub requests_per_minute: u64,
    /// Registrations that wait or are in progress.
    pub registrations: u64,
}

/// A server as the table has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerView {
    /// The server.
    pub server: Server,
    /// Version of the tables that the server reads and writes.
    pub schema: i64,
    /// Time of the first beat, by the database's clock.
    pub since: UnixSeconds,
    /// Time of the last beat, by the database's clock.
    pub last_beat: UnixSeconds,
    /// Seconds since the last beat, by the database's clock.
    pub silent_for: i64,
    /// Milliseconds by which the server's clock was ahead of the database's at the last beat.
    pub clock_ahead: i64,
    /// Names of the leases that the server has, in alphabetical order.
    pub leases: Vec<String>,
}

impl ServerView {
    /// Returns whether the server has been silent for so long that it counts as gone.
    pub fn is_gone(&self) -> bool {
        self.silent_for >= GONE_AFTER
    }
}

/// Returns the number of a new server.
pub fn new_server_id() -> Result<ServerId, StoreError> {
    new_id()
}

/// A process's clock, read once. The time that passes afterwards is added, so the reading stays right
/// while a write waits for its turn.
#[derive(Debug, Clone, Copy)]
pub struct WallClock {
    at: i64,
    read: Instant,
}

impl WallClock {
    /// Reads the system's clock.
    pub fn read() -> Self {
        Self::showing(system_millis())
    }

    /// Returns a clock that shows this time now, in milliseconds since 1970.
    pub fn showing(at: i64) -> Self {
        Self { at, read: Instant::now() }
    }

    /// Returns the time that the clock shows now, in milliseconds since 1970.
    pub fn millis(&self) -> i64 {
        self.at.saturating_add(i64::try_from(self.read.elapsed().as_millis()).unwrap_or(i64::MAX))
    }
}

/// Returns the time of the system's clock, in milliseconds since 1970.
pub(crate) fn system_millis() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// Writes the numbers of owners as the text of a column.
pub(super) fn owners_text(owners: &[OwnerId]) -> String {
    let numbers: Vec<String> = owners.iter().map(OwnerId::to_string).collect();
    numbers.join(",")
}

/// Reads the numbers of owners from the text of a column.
pub(super) fn owners_of(text: &str) -> Vec<OwnerId> {
    text.split(',').filter_map(|number| number.parse().ok()).collect()
}

/// Adds the leases to the servers that have them. Each lease comes with its owner.
pub(crate) fn with_leases(
    mut servers: Vec<ServerView>,
    mut leases: Vec<(String, OwnerId)>,
) -> Vec<ServerView> {
    leases.sort();
    for (name, owner) in leases {
        if let Some(holder) = servers.iter_mut().find(|view| view.server.owners.contains(&owner)) {
            holder.leases.push(name);
        }
    }
    servers
}

/// The part of a store that keeps the servers of the table. Each server writes only its own row.
pub trait Servers: Send + Sync + 'static {
    /// Writes the row of a server, with the present time of the database's clock as the time of its
    /// last beat, and the difference of `clock` from it. The time of the first beat stays.
    fn beat_server<'a>(&'a self, server: &'a Server, clock: WallClock) -> StoreFuture<'a, ()>;

    /// Removes the row of a server that stops.
    fn remove_server(&self, id: ServerId) -> StoreFuture<'_, ()>;

    /// Removes the servers whose last beat is this long ago or longer, by the database's clock. Of the
    /// others, keeps the `most` that have beaten last. Returns the number of removed rows.
    fn remove_silent_servers(&self, silent: Duration, most: usize) -> StoreFuture<'_, u64>;

    /// Returns all servers, in the order of their names, and those of one name in the order of their
    /// first beats.
    fn servers(&self) -> StoreFuture<'_, Vec<ServerView>>;
}
