//! Differences between the servers of a table that an operator should know about. Performs no I/O, and
//! depends neither on the table nor on the configuration.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use crate::store::server::ServerView;

/// Maximum harmless difference between the clocks of a server and of the database, in milliseconds.
pub const CLOCK_TOLERANCE: i64 = 5000;

/// Maximum number of servers that a sentence names.
const NAMED: usize = 5;

/// Command of a process that serves devices.
pub const SERVE: &str = "serve";

/// Kind of a difference.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Two servers have the same name.
    Name,
    /// Servers have different enrollments.
    Enrollments,
    /// Servers have the same enrollments with different keys.
    Keys,
    /// Servers seal secrets under different database keys, or only some seal them.
    DatabaseKey,
    /// The clock of a server differs from the database's.
    Clock,
    /// Servers have different versions of certdist.
    Version,
    /// Servers use different versions of the tables.
    Schema,
}

/// A difference between living servers.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Difference {
    /// Its kind.
    pub kind: Kind,
    /// Names of the servers concerned, in groups that agree. A name may be in a group twice, if two
    /// servers have it.
    pub groups: Vec<Vec<String>>,
    /// Seconds by which the clock is ahead of the database's; 0 for other kinds.
    pub seconds: i64,
}

impl Difference {
    fn new(kind: Kind, groups: Vec<Vec<String>>) -> Self {
        Self { kind, groups, seconds: 0 }
    }

    /// Returns the groups of names as text, such as `a, b / c`.
    pub fn servers(&self) -> String {
        let group = |names: &Vec<String>| {
            let mut shown: Vec<String> =
                names.iter().take(NAMED).map(|name| name.escape_debug().to_string()).collect();
            if names.len() > NAMED {
                shown.push(format!("{} more", names.len() - NAMED));
            }
            shown.join(", ")
        };
        let mut groups: Vec<String> = self.groups.iter().take(NAMED).map(group).collect();
        if self.groups.len() > NAMED {
            groups.push("…".into());
        }
        groups.join(" / ")
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let servers = self.servers();
        match self.kind {
            Kind::Name => write!(
                f,
                "{} servers have the name {servers}: give each a server_name of its own",
                self.groups.iter().map(Vec::len).sum::<usize>()
            ),
            Kind::Enrollments => write!(
                f,
                "the servers have different enrollments ({servers}), so a device may be served by one and refused by \
                 another: give them the same [[enrollment]] sections, and reload them"
            ),
            Kind::Keys => write!(
                f,
                "the servers have different keys for the same enrollments ({servers}), so a handshake may succeed with \
                 one and fail with another: give them the same keys, and reload them"
            ),
            Kind::DatabaseKey => write!(
                f,
                "the servers seal new secrets under different database keys, or some seal none ({servers}): give them \
                 the same database_key, and reload them"
            ),
            Kind::Clock => write!(
                f,
                "the clock of {servers} is {} s {} the database's: set the clock (NTP)",
                self.seconds.unsigned_abs(),
                if self.seconds < 0 { "behind" } else { "ahead of" }
            ),
            Kind::Version => write!(
                f,
                "the servers have different versions of certdist ({servers}): finish the upgrade, so that all have the \
                 same"
            ),
            Kind::Schema => write!(
                f,
                "the servers use different versions of the tables ({servers}): stop those with the older version, and \
                 upgrade them"
            ),
        }
    }
}

/// Returns what differs between the living servers that serve devices. Processes that run other
/// commands end by themselves, so only their clocks are compared.
pub fn differences(servers: &[ServerView]) -> Vec<Difference> {
    let living: Vec<&ServerView> = servers.iter().filter(|view| !view.is_gone()).collect();
    let serving: Vec<&ServerView> =
        living.iter().copied().filter(|view| view.server.command == SERVE).collect();
    let mut found: Vec<Difference> =
        shared_names(&serving).into_iter().map(|names| Difference::new(Kind::Name, vec![names])).collect();
    let by_enrollments = grouped(&serving, |view| view.server.facts.enrollments.clone());
    found.extend(difference(Kind::Enrollments, &by_enrollments));
    for same in &by_enrollments {
        found.extend(difference(Kind::Keys, &grouped(same, |view| view.server.facts.keys.clone())));
    }
    let keys = grouped(&serving, |view| view.server.facts.database_key.clone());
    found.extend(difference(Kind::DatabaseKey, &keys));
    for view in living.iter().filter(|view| view.clock_ahead.abs() > CLOCK_TOLERANCE) {
        let difference = Difference::new(Kind::Clock, vec![vec![view.server.name.clone()]]);
        found.push(Difference { seconds: view.clock_ahead / 1000, ..difference });
    }
    found.extend(difference(Kind::Version, &grouped(&serving, |view| view.server.version.clone())));
    found.extend(difference(Kind::Schema, &grouped(&serving, |view| view.schema)));
    found
}

/// Returns the names that several servers have at the same time. Each name is repeated once for each
/// server that has it.
fn shared_names(serving: &[&ServerView]) -> Vec<Vec<String>> {
    // The row of a server that was killed stays for a while. The server that replaces it has beaten
    // only since then, so their times do not overlap.
    let are_together = |one: &ServerView, other: &ServerView| {
        one.server.id != other.server.id
            && one.last_beat > other.since
            && other.last_beat > one.since
            && one.server.name == other.server.name
    };
    let twins = serving.iter().filter(|one| serving.iter().any(|other| are_together(one, other)));
    let mut by_name = BTreeMap::<&str, Vec<String>>::new();
    for view in twins {
        by_name.entry(&view.server.name).or_default().push(view.server.name.clone());
    }
    by_name.into_values().collect()
}

/// Divides servers into groups that have the same value.
fn grouped<'v, T: Ord>(
    servers: &[&'v ServerView],
    value: impl Fn(&ServerView) -> T,
) -> Vec<Vec<&'v ServerView>> {
    let mut groups = BTreeMap::<T, Vec<&ServerView>>::new();
    for view in servers {
        groups.entry(value(view)).or_default().push(view);
    }
    let mut groups: Vec<_> = groups.into_values().collect();
    let first = |group: &Vec<&ServerView>| group.first().map(|view| view.server.name.clone());
    groups.sort_by_key(|group| (std::cmp::Reverse(group.len()), first(group)));
    groups
}

fn difference(kind: Kind, groups: &[Vec<&ServerView>]) -> Option<Difference> {
    let names = |group: &Vec<&ServerView>| {
        let names: BTreeSet<String> = group.iter().map(|view| view.server.name.clone()).collect();
        names.into_iter().collect()
    };
    (groups.len() > 1).then(|| Difference::new(kind, groups.iter().map(names).collect()))
}

/// Returns the servers to show to an operator: the living ones, and those that are gone and have not
/// come back under the same name.
pub fn shown(servers: &[ServerView]) -> Vec<&ServerView> {
    let is_back = |gone: &ServerView| {
        servers.iter().any(|view| {
            !view.is_gone()
                && view.server.name == gone.server.name
                && view.server.command == gone.server.command
        })
    };
    servers.iter().filter(|view| !view.is_gone() || !is_back(view)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::server::{Facts, GONE_AFTER, Load, Server};

    fn view(id: i64, name: &str) -> ServerView {
        let facts = Facts { enrollments: "e".into(), keys: "k".into(), database_key: Some("d".into()) };
        ServerView {
            server: Server {
                id,
                name: name.into(),
                command: SERVE.into(),
                version: "1.0.0".into(),
                host: "machine".into(),
                process: 1,
                listen: String::new(),
                owners: Vec::new(),
                facts,
                load: Load::default(),
            },
            schema: 1,
            since: 100,
            last_beat: 200,
            silent_for: 0,
            clock_ahead: 0,
            leases: Vec::new(),
        }
    }

    /// Returns the differences between two servers after `change` has changed the second one.
    fn with(change: impl Fn(&mut ServerView)) -> Vec<String> {
        let mut other = view(2, "west");
        change(&mut other);
        differences(&[view(1, "east"), other]).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn servers_that_agree_have_no_differences() {
        assert_eq!(with(|_| ()), [""; 0]);
        assert_eq!(differences(&[]), []);
    }

    #[test]
    fn each_difference_is_said_with_the_names_of_the_servers() {
        let said = |change: &dyn Fn(&mut ServerView), words: &str| {
            let all = with(change);
            assert!(all.len() == 1 && all[0].contains(words), "{all:?}");
        };
        said(&|other| other.server.name = "east".into(), "2 servers have the name east, east:");
        said(&|other| other.server.facts.enrollments = "f".into(), "different enrollments (east / west)");
        said(&|other| other.server.facts.keys = "l".into(), "different keys for the same enrollments");
        said(&|other| other.server.facts.database_key = None, "different database keys");
        said(&|other| other.server.version = "2.0.0".into(), "different versions of certdist");
        said(&|other| other.schema = 2, "different versions of the tables");
        said(&|other| other.clock_ahead = 5001, "the clock of west is 5 s ahead of the database's");
        said(&|other| other.clock_ahead = -7900, "the clock of west is 7 s behind the database's");
    }

    #[test]
    fn a_clock_within_its_tolerance_and_keys_of_other_enrollments_are_no_difference() {
        assert_eq!(with(|other| other.clock_ahead = CLOCK_TOLERANCE), [""; 0]);
        let other = with(|other| {
            other.server.facts =
                Facts { enrollments: "f".into(), keys: "l".into(), ..other.server.facts.clone() }
        });
        assert_eq!(other.len(), 1, "{other:?}");
    }

    #[test]
    fn a_server_that_is_gone_or_registers_differs_in_nothing() {
        let change = |other: &mut ServerView| {
            other.server.name = "east".into();
            other.server.version = "2.0.0".into();
        };
        assert_eq!(with(change).len(), 2);
        assert_eq!(
            with(|other| {
                change(other);
                other.silent_for = GONE_AFTER;
            }),
            [""; 0]
        );
        assert_eq!(
            with(|other| {
                change(other);
                other.server.command = "register".into();
            }),
            [""; 0]
        );
    }

    #[test]
    fn a_server_that_was_killed_and_started_again_does_not_share_its_name() {
        let (killed, started) =
            (ServerView { last_beat: 150, ..view(1, "east") }, ServerView { since: 150, ..view(2, "east") });
        assert_eq!(differences(&[killed.clone(), started.clone()]), []);
        let together = ServerView { last_beat: 151, ..killed };
        assert_eq!(differences(&[together, started]).len(), 1);
    }

    #[test]
    fn a_server_that_is_gone_is_shown_until_it_is_back() {
        let gone = ServerView { silent_for: 90, ..view(1, "east") };
        let west = view(2, "west");
        assert_eq!(shown(&[gone.clone(), west.clone()]).len(), 2);
        let back = view(3, "east");
        assert_eq!(shown(&[gone, back.clone(), west.clone()]), [&back, &west]);
    }

    #[test]
    fn a_sentence_names_few_servers() {
        let many: Vec<ServerView> = (0..40)
            .map(|id| {
                let mut view = view(id, &format!("server-{id:02}"));
                view.server.version = if id < 20 { "1".into() } else { "2".into() };
                view
            })
            .collect();
        let said = differences(&many)[0].servers();
        assert!(said.starts_with("server-00, server-01, ") && said.contains("15 more / server-20"), "{said}");
    }
}
