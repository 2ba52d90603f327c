//! Finds the concerns that an operator should know, from recent events and from the counts of the
//! table. The overview shows the concerns; their texts are in the catalogue. Performs no I/O.

mod codes;
mod subject;

use std::collections::{BTreeMap, BTreeSet, HashSet};

pub(super) use self::{
    codes::{cause_of, remedy_of, title_of},
    subject::Subject,
};
use super::{
    handshakes::{self, Failed},
    page::Tone,
    unserved::Unserved,
};
use crate::{
    admin::{
        census::Census,
        ring::{Episode, Kind},
    },
    device::DeviceId,
    iot_platform::{ErrorClass, calls::Trouble},
    resource::failures::Reason,
    store::UnixSeconds,
};

/// Maximum harmless difference between the clocks of this machine and of IoT Platform, in seconds.
/// IoT Platform accepts calls that are up to 15 minutes off.
const CLOCK_TOLERANCE: i64 = 30;

/// Number of failed calls in a row that make a failure certain, even if it could end by itself.
const CALLS_IN_A_ROW: u64 = 3;

/// Time in seconds for which failed calls remain a concern if no further call is made.
const TROUBLE_COUNTS: i64 = 86_400;

/// Time in seconds after which a call without an answer is a concern. Most answers take less than a
/// second.
const SLOW: i64 = 5;

/// Time in seconds within which a device that was asked to retry later should ask again. A fault of
/// this server is over if it has not recurred within this time.
const RECENT: i64 = 120;

/// Time in seconds for two rules. A fault of clients is over if it has not recurred within this
/// time. A failed call that is older no longer proves that its cause persists.
const LONG_AGO: i64 = 15 * 60;

/// Number of events below which a fault of clients is only a note, because a few such events occur
/// in any network and on any workbench.
const FEW: u64 = 5;

/// Time in seconds after the start for which the absence of faults proves little.
pub(super) const EARLY: i64 = 300;

/// Maximum number of names and of devices that a concern lists.
pub(super) const MAX_NAMES: usize = 5;

/// Facts from which the concerns are found.
pub(super) struct Situation<'s> {
    /// The present time.
    pub(super) now: UnixSeconds,
    /// Last episode of each kind of event, in the order of [`Kind::ALL`].
    pub(super) episodes: [Option<Episode>; Kind::ALL.len()],
    /// Calls to IoT Platform that fail.
    pub(super) troubles: Vec<Trouble>,
    /// Start time of the oldest call to IoT Platform that has no answer yet.
    pub(super) unanswered_since: Option<UnixSeconds>,
    /// Target of the oldest call without an answer, if several targets are configured.
    pub(super) unanswered_target: Option<String>,
    /// Seconds to add to this machine's clock to get IoT Platform's time; `None` if the difference
    /// is not known.
    pub(super) clock_offset: Option<i64>,
    /// Time of the last call to IoT Platform that worked.
    pub(super) cloud_worked: Option<UnixSeconds>,
    /// Set if the configuration has an `[iot_platform]`.
    pub(super) has_cloud: bool,
    /// Requests of the last day that were not served.
    pub(super) unserved: &'s [Unserved],
    /// Handshakes of the last hour that failed, the latest first.
    pub(super) handshakes: &'s [Failed],
    /// Last count of the table; `None` if there is none yet.
    pub(super) census: Option<Result<&'s Census, String>>,
    /// Names of the configured enrollments.
    pub(super) configured: HashSet<&'s str>,
    /// Names of the configured targets.
    pub(super) targets: HashSet<&'s str>,
    /// Set if the server is shutting down.
    pub(super) is_draining: bool,
    /// Number of registrations that wait or are in progress.
    pub(super) waiting: u64,
}

/// Present course of a concern.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Course {
    /// The concern goes on.
    On,
    /// The concern is over, because its event has not recurred for some time.
    Over,
    /// No recent event shows whether the cause persists.
    Untested,
}

/// A fact that an operator should know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Concern {
    /// The subject.
    pub(super) subject: Subject,
    /// Severity of the concern.
    pub(super) tone: Tone,
    /// Present course.
    pub(super) course: Course,
    /// Time at which the concern began, if it is known.
    pub(super) since: Option<UnixSeconds>,
    /// Time of the last event, if it is known.
    pub(super) last: Option<UnixSeconds>,
    /// Time at which the table was counted, if the numbers come from that count.
    pub(super) counted: Option<UnixSeconds>,
    /// Number of requests, calls, handshakes, writes or seconds; 0 if the subject has no such
    /// number.
    pub(super) times: u64,
    /// Number of devices concerned, if it is known.
    pub(super) devices: Option<u64>,
    /// IDs of the latest devices concerned; empty if only their number is known.
    pub(super) ids: Vec<DeviceId>,
    /// Error code of IoT Platform.
    pub(super) code: Option<String>,
    /// Message of IoT Platform or of the database.
    pub(super) said: Option<String>,
    /// Target whose cloud is concerned, if several are configured.
    pub(super) target: Option<String>,
    /// Names of the actions, products or enrollments concerned.
    pub(super) names: Vec<String>,
    /// Pairs of enrollments: the one in which the table has the device, and the one whose key the
    /// device uses.
    pub(super) pairs: Vec<(String, String)>,
}

impl Concern {
    pub(super) fn of(subject: Subject) -> Self {
        Self {
            subject,
            tone: subject.tone(),
            course: Course::On,
            since: None,
            last: None,
            counted: None,
            times: 0,
            devices: None,
            ids: Vec::new(),
            code: None,
            said: None,
            target: None,
            names: Vec::new(),
            pairs: Vec::new(),
        }
    }

    /// Returns the page that lists the devices or requests concerned.
    pub(super) fn link(&self) -> Option<&'static str> {
        // Until a request is answered, the only devices known to be concerned are those whose
        // registration has begun.
        if self.subject.is_failed_call() && self.ids.is_empty() {
            return Some("/devices?state=waiting");
        }
        self.subject.link()
    }

    fn with_episode(self, episode: Episode) -> Self {
        Self { since: Some(episode.since), last: Some(episode.last), times: episode.count, ..self }
    }

    fn of_devices(self, devices: u64) -> Self {
        Self { devices: Some(devices), ..self }
    }

    /// Adds requests that were not served: the number of devices, the latest devices, the number of
    /// requests, and the times.
    fn with_requests(self, requests: &[&Unserved]) -> Self {
        let all = || requests.iter().map(|one| &one.failure);
        let devices: BTreeSet<&DeviceId> = all().map(|failure| &failure.device).collect();
        let mut ids: Vec<DeviceId> = Vec::new();
        for failure in all() {
            if ids.len() < MAX_NAMES && !ids.contains(&failure.device) {
                ids.push(failure.device.clone());
            }
        }
        Self {
            since: all().map(|failure| failure.first).min(),
            last: all().map(|failure| failure.last).max(),
            times: all().map(|failure| failure.count).sum(),
            devices: Some(devices.len() as u64).filter(|count| *count > 0),
            ids,
            ..self
        }
    }

    /// Notes that the concern is over if its last event is more than `long` seconds ago.
    fn over_after(mut self, long: i64, now: UnixSeconds) -> Self {
        if self.last.is_some_and(|last| now - last > long) {
            (self.course, self.tone) = (Course::Over, self.tone.min(Tone::Note));
        }
        self
    }
}

/// Returns all concerns, the most severe first.
pub(super) fn of(situation: &Situation<'_>) -> Vec<Concern> {
    let mut all = Vec::new();
    of_calls(situation, &mut all);
    of_server(situation, &mut all);
    of_requests(situation, &mut all);
    of_clients(situation, &mut all);
    of_table(situation, &mut all);
    of_waiting(situation, &mut all);
    all.sort_by_key(|concern| (std::cmp::Reverse(concern.tone), concern.subject));
    all
}

/// Conclusion from the absence of concerns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outlook {
    /// Devices are being served, and nothing fails.
    Well,
    /// No device has come in the last hour.
    Idle,
    /// The server has not run for long, or has not counted the table yet.
    Early,
}

/// Returns the conclusion if there is no concern. `events` is the number of requests and handshakes
/// of the last hour.
pub(super) fn outlook(situation: &Situation<'_>, started: UnixSeconds, events: u64) -> Outlook {
    if situation.now - started < EARLY || situation.census.is_none() {
        Outlook::Early
    } else if events == 0 {
        Outlook::Idle
    } else {
        Outlook::Well
    }
}

/// Returns the subject to which failed calls belong.
fn subject_of(trouble: &Trouble) -> Subject {
    let code = trouble.error.code.as_str();
    match trouble.error.class {
        ErrorClass::Throttled => Subject::CloudThrottles,
        ErrorClass::TimedOut => Subject::CloudSilent,
        ErrorClass::TryAgain if trouble.error.is_unreachable() => Subject::CloudSilent,
        ErrorClass::Operator if code == "Certificate" => Subject::CloudSilent,
        ErrorClass::Operator if code == "NoCloud" => Subject::NoCloud,
        ErrorClass::Operator if trouble.error.is_about_product() => Subject::CloudProduct,
        ErrorClass::Operator => Subject::CloudAccount,
        _ => Subject::CloudFails,
    }
}

/// Adds the concerns about calls to IoT Platform. All failed calls to one target with the same
/// subject and code make up one concern.
fn of_calls(situation: &Situation<'_>, all: &mut Vec<Concern>) {
    let now = situation.now;
    // Until a request is answered, only the number of registrations is known.
    let unanswered = Some(situation.waiting).filter(|waiting| *waiting > 0);
    let mut by_subject = BTreeMap::<(Subject, &str, Option<&str>), Vec<&Trouble>>::new();
    for trouble in situation.troubles.iter().filter(|trouble| counts(trouble, situation)) {
        let subject = subject_of(trouble);
        // One outage produces several codes: at first, calls cannot connect; later, they get no
        // answer in time. Calls with any of these codes make up one concern.
        let code = if subject == Subject::CloudSilent { "" } else { trouble.error.code.as_str() };
        by_subject.entry((subject, code, trouble.target.as_deref())).or_default().push(trouble);
    }
    for ((subject, _, target), troubles) in by_subject {
        let Some(last) = troubles.iter().max_by_key(|trouble| trouble.last) else { continue };
        let name = |trouble: &&Trouble| match subject {
            Subject::CloudProduct => trouble.product_key.clone(),
            _ => trouble.action.name().to_owned(),
        };
        let names: BTreeSet<String> = troubles.iter().map(name).collect();
        let concerned = waiting_for(situation, subject, &last.error.code);
        let calls = troubles.iter().map(|trouble| trouble.calls).sum();
        let is_certain = last.error.class == ErrorClass::Operator || calls >= CALLS_IN_A_ROW;
        let concern = Concern::of(subject).with_requests(&concerned);
        all.push(Concern {
            tone: if is_certain { concern.tone } else { concern.tone.min(Tone::Warning) },
            course: if now - last.last > LONG_AGO { Course::Untested } else { Course::On },
            // A device may have been asked to retry later before the first call failed.
            since: troubles.iter().map(|trouble| trouble.since).chain(concern.since).min(),
            last: Some(last.last),
            times: calls,
            devices: concern.devices.or(unanswered),
            code: Some(last.error.code.clone()),
            said: Some(last.error.message.clone()),
            target: target.map(str::to_owned),
            names: names.into_iter().collect(),
            ..concern
        });
    }
    let is_silent = all.iter().any(|concern| {
        concern.subject == Subject::CloudSilent && concern.target == situation.unanswered_target
    });
    if let Some(since) = situation.unanswered_since.filter(|since| now - since >= SLOW && !is_silent) {
        let concerned = waiting_for(situation, Subject::CloudSlow, "");
        let concern = Concern::of(Subject::CloudSlow).with_requests(&concerned);
        all.push(Concern {
            since: Some(since),
            last: None,
            target: situation.unanswered_target.clone(),
            times: (now - since).unsigned_abs(),
            devices: concern.devices.or(unanswered),
            ..concern
        });
    }
}

/// Returns whether failed calls are a concern.
fn counts(trouble: &Trouble, situation: &Situation<'_>) -> bool {
    let subject = subject_of(trouble);
    let is_gone = match &situation.census {
        // No device has this product any more, so certdist no longer calls IoT Platform for it.
        Some(Ok(census)) => {
            subject == Subject::CloudProduct
                && census.at > trouble.last
                && !census.products.contains(&trouble.product_key)
        }
        _ => false,
    };
    // A few throttled calls are part of finding the right pace.
    let is_harmless = subject == Subject::CloudThrottles && trouble.calls < CALLS_IN_A_ROW;
    let is_old = situation.now - trouble.last > TROUBLE_COUNTS;
    subject != Subject::NoCloud && !is_gone && !is_harmless && !is_old
}

/// Returns the requests that were not served because of failed calls. Leaves out requests of
/// devices that have been served since.
fn waiting_for<'s>(situation: &Situation<'s>, subject: Subject, code: &str) -> Vec<&'s Unserved> {
    let is_concerned = |one: &&Unserved| {
        let failure = &one.failure;
        one.is_open()
            && match subject {
                Subject::CloudAccount | Subject::CloudProduct => {
                    failure.reason == Reason::Operator && failure.message.contains(code)
                }
                _ => matches!(failure.reason, Reason::Later | Reason::TimedOut),
            }
    };
    situation.unserved.iter().filter(is_concerned).collect()
}

/// Adds the concerns about devices that certdist refuses.
fn of_requests(situation: &Situation<'_>, all: &mut Vec<Concern>) {
    let is_guessing = situation.episodes[Kind::Guessing as usize].is_some();
    for (kind, reason, subject) in [
        (Kind::NotYours, Reason::NotYours, Subject::NotYours),
        (Kind::Issued, Reason::Issued, Subject::IssuedAlready),
        (Kind::Disabled, Reason::Disabled, Subject::DisabledAsk),
        (Kind::Closed, Reason::Closed, Subject::ClosedAsk),
        (Kind::Held, Reason::Held, Subject::HeldAsk),
        (Kind::NotOpen, Reason::NotOpen, Subject::NotOpenAsk),
        (Kind::TooMany, Reason::TooMany, Subject::TooMany),
    ] {
        let known = || situation.unserved.iter().filter(|one| one.failure.reason == reason);
        // An ID that a guesser tries is not a device that sends too many requests.
        let is_guess = |one: &Unserved| is_guessing && reason == Reason::TooMany && one.found().is_none();
        let open: Vec<_> = known().filter(|one| one.is_open() && !is_guess(one)).collect();
        let concern = Concern::of(subject);
        if !open.is_empty() {
            all.push(concern.with_requests(&open).over_after(LONG_AGO, situation.now));
        } else if let Some(episode) = situation.episodes[kind as usize].filter(|_| known().next().is_none()) {
            all.push(concern.with_episode(episode).over_after(LONG_AGO, situation.now));
        }
    }
    // The reason for the refusal is the same for a device that is not in the table and for a device
    // in another enrollment. The row of the device shows which of the two concerns applies.
    let unknown: Vec<_> = situation.unserved.iter().filter(|one| one.is_unknown()).collect();
    if !unknown.is_empty() {
        let names: BTreeSet<String> = unknown.iter().map(|one| one.failure.enrollment.clone()).collect();
        let names = names.into_iter().collect();
        all.push(Concern { names, ..Concern::of(Subject::Unknown).with_requests(&unknown) });
    }
    let pair = |one: &&Unserved| Some((one.own_enrollment()?.to_owned(), one.failure.enrollment.clone()));
    let foreign: Vec<_> = situation.unserved.iter().filter(|one| pair(one).is_some()).collect();
    if !foreign.is_empty() {
        let pairs: BTreeSet<_> = foreign.iter().filter_map(pair).collect();
        let pairs = pairs.into_iter().collect();
        all.push(Concern { pairs, ..Concern::of(Subject::WrongEnrollment).with_requests(&foreign) });
    }
}

/// Adds the concerns about clients that certdist does not know as devices.
fn of_clients(situation: &Situation<'_>, all: &mut Vec<Concern>) {
    for (kind, group, subject) in [
        (Kind::Malformed, "", Subject::Malformed),
        (Kind::WrongKey, "wrong-key", Subject::WrongKey),
        (Kind::Silent, "silent", Subject::SilentClients),
        (Kind::OtherHandshake, "other", Subject::OtherHandshakes),
        (Kind::Guessing, "", Subject::Guessing),
    ] {
        let Some(mut episode) = situation.episodes[kind as usize] else { continue };
        // Only the record of failed handshakes has the exact time, which replaces the time of the
        // samples.
        let of_group = situation.handshakes.iter().find(|failed| handshakes::group(failed.reason).0 == group);
        if let Some(latest) = of_group {
            episode.last = latest.counted.last;
            episode.since = episode.since.min(episode.last);
        }
        let mut concern = Concern::of(subject).with_episode(episode).over_after(LONG_AGO, situation.now);
        if kind != Kind::Guessing && episode.count < FEW {
            concern.tone = concern.tone.min(Tone::Note);
        }
        all.push(concern);
    }
}

/// Adds the concerns about this server.
fn of_server(situation: &Situation<'_>, all: &mut Vec<Concern>) {
    if situation.is_draining {
        all.push(Concern::of(Subject::Draining));
    }
    for (kind, subject) in [(Kind::StoreFailed, Subject::DatabaseWrites), (Kind::Unsent, Subject::Unsent)] {
        let Some(episode) = situation.episodes[kind as usize] else { continue };
        let mut concern = Concern::of(subject);
        if subject == Subject::DatabaseWrites {
            concern = concern.with_requests(&waiting_for(situation, subject, ""));
        }
        all.push(concern.with_episode(episode).over_after(RECENT, situation.now));
    }
    if let Some(offset) = situation.clock_offset.filter(|offset| offset.abs() > CLOCK_TOLERANCE) {
        let last = situation.cloud_worked;
        all.push(Concern { times: offset.unsigned_abs(), last, ..Concern::of(Subject::Clock) });
    }
}

/// Adds the concerns about devices that were refused or asked to retry later because of IoT
/// Platform or the database. Leaves out devices that another concern explains.
fn of_waiting(situation: &Situation<'_>, all: &mut Vec<Concern>) {
    let is_open =
        |one: &&Unserved, reasons: &[Reason]| reasons.contains(&one.failure.reason) && one.is_open();
    let later = |one: &&Unserved| is_open(one, &[Reason::Later, Reason::TimedOut]);
    // A refusal that is stored in the row is a separate concern.
    let refused = |one: &&Unserved| {
        is_open(one, &[Reason::Operator]) && one.found().is_none_or(|row| row.refusal.is_none())
    };
    let goes_on = |concern: &&Concern| concern.course != Course::Over;
    let has = |is: &dyn Fn(Subject) -> bool| all.iter().filter(goes_on).any(|concern| is(concern.subject));
    let explains_later = has(&|subject| {
        matches!(
            subject,
            Subject::CloudSilent
                | Subject::CloudSlow
                | Subject::CloudThrottles
                | Subject::CloudFails
                | Subject::DatabaseWrites
        )
    });
    let explains_refused = has(&|subject| subject.is_failed_call() || subject == Subject::NoCloud);
    let (mut lost, mut kinds) = (Vec::new(), Vec::new());
    if !explains_later {
        kinds.extend([(Kind::Later, Reason::Later), (Kind::TimedOut, Reason::TimedOut)]);
        let is_waiting =
            |one: &&Unserved| situation.waiting > 0 || situation.now - one.failure.last <= RECENT;
        let (mut queue, rest): (Vec<_>, Vec<_>) =
            situation.unserved.iter().filter(later).partition(is_waiting);
        // A device that was registered in the meantime waits for nothing.
        queue.retain(|one| one.found().is_none_or(|row| !row.is_registered));
        lost = rest;
        if !queue.is_empty() {
            all.push(Concern::of(Subject::Queue).with_requests(&queue));
        }
    }
    if !explains_refused {
        kinds.push((Kind::Operator, Reason::Operator));
        lost.extend(situation.unserved.iter().filter(refused));
    }
    // For lack of room, the server may have forgotten the devices that got these answers. Then only
    // the number of answers is known.
    let is_forgotten = |reason| !situation.unserved.iter().any(|one| one.failure.reason == reason);
    let episode = kinds
        .into_iter()
        .find_map(|(kind, reason)| situation.episodes[kind as usize].filter(|_| is_forgotten(reason)));
    if !lost.is_empty() {
        let mut concern = Concern::of(Subject::NotBack).with_requests(&lost);
        // The refusal may persist, because no call has shown yet that its cause is gone.
        if let Some(refused) = lost.iter().find(|one| one.failure.reason == Reason::Operator) {
            concern.tone = Tone::Warning;
            concern.said = Some(refused.failure.message.clone()).filter(|message| !message.is_empty());
        }
        all.push(concern);
    } else if let Some(episode) = episode {
        all.push(Concern::of(Subject::NotBack).with_episode(episode));
    }
}

/// Adds the concerns about the rows of the table.
fn of_table(situation: &Situation<'_>, all: &mut Vec<Concern>) {
    let census = match &situation.census {
        None => return,
        Some(Err(error)) => {
            return all
                .push(Concern { said: Some(error.clone()), ..Concern::of(Subject::DatabaseUnreadable) });
        }
        Some(Ok(census)) => census,
    };
    let counted = |subject, devices: u64| {
        (devices > 0)
            .then(|| Concern { counted: Some(census.at), ..Concern::of(subject).of_devices(devices) })
    };
    let sum = &census.sum;
    let largest = census.held.iter().filter(|held| held.refusal.is_some()).max_by_key(|held| held.devices);
    // The census does not show since when IoT Platform has refused the devices. The requests of the
    // last hour may show it.
    let is_refused = |one: &&Unserved| {
        one.failure.reason == Reason::Operator && one.found().is_some_and(|row| row.refusal.is_some())
    };
    let seen: Vec<_> = situation.unserved.iter().filter(is_refused).collect();
    let seen = Concern::of(Subject::DevicesRefused).with_requests(&seen);
    all.extend(counted(Subject::DevicesRefused, sum.refused.max(seen.devices.unwrap_or(0))).map(|concern| {
        Concern {
            said: largest.and_then(|held| held.refusal.clone()),
            since: seen.since,
            last: seen.last,
            ids: seen.ids,
            ..concern
        }
    }));
    all.extend(counted(Subject::DeletedAtCloud, sum.deleted_at_cloud));
    all.extend(counted(Subject::DisabledAtCloud, sum.disabled_at_cloud));
    let unknown: Vec<_> = census
        .totals
        .iter()
        .filter(|totals| totals.devices > 0 && !situation.configured.contains(&totals.enrollment.as_str()))
        .collect();
    let names = unknown.iter().take(MAX_NAMES + 1).map(|totals| totals.enrollment.clone()).collect();
    let lost = unknown.iter().map(|totals| totals.devices).sum();
    all.extend(counted(Subject::Unconfigured, lost).map(|concern| Concern { names, ..concern }));
    let lost = census.targets.iter().filter(|name| !situation.targets.contains(name.as_str()));
    let names: Vec<String> = lost.take(MAX_NAMES + 1).cloned().collect();
    if !names.is_empty() {
        let concern = Concern::of(Subject::TargetUnconfigured);
        all.push(Concern { names, counted: Some(census.at), ..concern });
    }
    all.extend(census.differences.iter().take(MAX_NAMES).map(|difference| {
        let servers: BTreeSet<String> = difference.groups.iter().flatten().cloned().collect();
        Concern {
            names: servers.into_iter().take(MAX_NAMES + 1).collect(),
            said: Some(difference.to_string()),
            counted: Some(census.at),
            ..Concern::of(Subject::ServersDiffer)
        }
    }));
    if census.unsealed > 0 {
        all.push(Concern {
            times: census.unsealed,
            counted: Some(census.at),
            ..Concern::of(Subject::Unsealed)
        });
    }
    let unregistered = sum.devices.saturating_sub(sum.registered).saturating_sub(sum.refused);
    if !situation.has_cloud {
        all.extend(counted(Subject::NoCloud, unregistered));
    }
}

#[cfg(test)]
mod tests;
