//! Finds the concerns of which an operator should know, from recent events and from the counts of
//! the table. Pure. The overview shows the concerns; their texts are in the catalogue.

use std::collections::{BTreeMap, BTreeSet};

use super::page::Tone;
use crate::{
    admin::{
        census::Census,
        ring::{Episode, Kind},
    },
    iot_platform::{ErrorClass, calls::Trouble},
    resource::failures::{Failure, Reason},
    store::UnixSeconds,
};

/// Maximum harmless difference between the clocks of this machine and of IoT Platform, in seconds.
/// IoT Platform accepts calls that are up to 15 minutes off.
const CLOCK_TOLERANCE: i64 = 30;

/// Number of successive calls that must fail before a failure that may end by itself is a concern.
const CALLS_IN_A_ROW: u64 = 3;

/// Time in seconds for which failed calls remain a concern if no further call is made.
const TROUBLE_COUNTS: i64 = 86_400;

/// Time in seconds after which a device that was asked to retry later no longer counts as waiting.
const RECENT: i64 = 120;

/// Maximum number of names that a concern lists.
pub(super) const MAX_NAMES: usize = 5;

/// Everything from which the concerns are found.
pub(super) struct Situation<'s> {
    /// The present time.
    pub(super) now: UnixSeconds,
    /// Last episode of each kind of event, in the order of [`Kind::ALL`].
    pub(super) episodes: [Option<Episode>; Kind::ALL.len()],
    /// Calls to IoT Platform that fail.
    pub(super) troubles: Vec<Trouble>,
    /// Seconds to add to this machine's clock to get IoT Platform's time; `None` if the difference
    /// is not known.
    pub(super) clock_offset: Option<i64>,
    /// Set if the configuration has an `[iot_platform]`.
    pub(super) has_cloud: bool,
    /// Requests of the last hour that were not served.
    pub(super) failures: &'s [Failure],
    /// For the failures with [`Reason::Invalid`] whose devices are in the table: the device and its
    /// enrollment.
    pub(super) foreign: BTreeMap<String, String>,
    /// Last count of the table; `None` if there is none yet.
    pub(super) census: Option<Result<&'s Census, String>>,
    /// Names of the configured enrollments.
    pub(super) configured: Vec<&'s str>,
    /// Set if the server is shutting down.
    pub(super) is_draining: bool,
    /// Number of registrations that wait or are in progress.
    pub(super) waiting: u64,
}

/// Subject of a concern.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Subject {
    /// The table could not be read.
    DatabaseUnreadable,
    /// Writes to the database fail.
    DatabaseWrites,
    /// IoT Platform cannot be reached, or does not answer.
    CloudSilent,
    /// IoT Platform refuses calls because of the account.
    CloudAccount,
    /// IoT Platform refuses calls because of a product.
    CloudProduct,
    /// IoT Platform refuses calls because the account makes too many.
    CloudThrottles,
    /// IoT Platform fails in another way.
    CloudFails,
    /// IoT Platform refuses devices one by one.
    DevicesRefused,
    /// Devices use the key of another enrollment.
    WrongEnrollment,
    /// Devices belong to an enrollment that is not configured.
    Unconfigured,
    /// Devices were deleted at IoT Platform.
    DeletedAtCloud,
    /// The server is shutting down.
    Draining,
    /// Devices that are not in the table ask for certificates.
    Unknown,
    /// Handshakes fail because of a wrong key.
    WrongKey,
    /// A client guesses device IDs.
    Guessing,
    /// Devices ask for another device's certificate.
    NotYours,
    /// Devices ask again after their certificate was issued.
    IssuedAlready,
    /// Requests cannot be understood.
    Malformed,
    /// Handshakes fail because the client stops answering.
    SilentClients,
    /// Handshakes fail for other reasons.
    OtherHandshakes,
    /// The clock of this machine is wrong.
    Clock,
    /// There are devices to register, and no IoT Platform is configured.
    NoCloud,
    /// Secrets are stored in clear text.
    Unsealed,
    /// Requests were slowed down by a rate limit.
    TooMany,
    /// Devices wait for their registration, but no call fails.
    Queue,
    /// Datagrams could not be sent.
    Unsent,
    /// Devices that were disabled here ask for their certificate.
    DisabledAsk,
    /// Devices were disabled at IoT Platform.
    DisabledAtCloud,
}

impl Subject {
    /// Returns the catalogue keys of the subject's title, cause and remedy.
    pub(super) fn keys(self) -> [&'static str; 3] {
        match self {
            Self::DatabaseUnreadable => {
                ["database-unreadable", "database-unreadable-cause", "database-unreadable-remedy"]
            }
            Self::DatabaseWrites => ["database-writes", "database-writes-cause", "database-writes-remedy"],
            Self::CloudSilent => ["cloud-silent", "cloud-silent-cause", "cloud-silent-remedy"],
            Self::CloudAccount => ["cloud-account", "cloud-account-cause", "cloud-account-remedy"],
            Self::CloudProduct => ["cloud-product", "cloud-product-cause", "cloud-product-remedy"],
            Self::CloudThrottles => ["cloud-throttles", "cloud-throttles-cause", "cloud-throttles-remedy"],
            Self::CloudFails => ["cloud-fails", "cloud-fails-cause", "cloud-fails-remedy"],
            Self::DevicesRefused => ["devices-refused", "devices-refused-cause", "devices-refused-remedy"],
            Self::WrongEnrollment => {
                ["wrong-enrollment", "wrong-enrollment-cause", "wrong-enrollment-remedy"]
            }
            Self::Unconfigured => ["unconfigured", "unconfigured-cause", "unconfigured-remedy"],
            Self::DeletedAtCloud => ["deleted-at-cloud", "deleted-at-cloud-cause", "deleted-at-cloud-remedy"],
            Self::Draining => ["draining", "draining-cause", "draining-remedy"],
            Self::Unknown => ["unknown-devices", "unknown-devices-cause", "unknown-devices-remedy"],
            Self::WrongKey => ["wrong-key", "wrong-key-cause", "wrong-key-remedy"],
            Self::Guessing => ["guessing", "guessing-cause", "guessing-remedy"],
            Self::NotYours => ["not-yours", "not-yours-cause", "not-yours-remedy"],
            Self::IssuedAlready => ["issued-already", "issued-already-cause", "issued-already-remedy"],
            Self::Malformed => ["malformed", "malformed-cause", "malformed-remedy"],
            Self::SilentClients => ["silent-clients", "silent-clients-cause", "silent-clients-remedy"],
            Self::OtherHandshakes => {
                ["other-handshakes", "other-handshakes-cause", "other-handshakes-remedy"]
            }
            Self::Clock => ["clock", "clock-cause", "clock-remedy"],
            Self::NoCloud => ["no-cloud", "no-cloud-cause", "no-cloud-remedy"],
            Self::Unsealed => ["unsealed", "unsealed-cause", "unsealed-remedy"],
            Self::TooMany => ["too-many", "too-many-cause", "too-many-remedy"],
            Self::Queue => ["queue", "queue-cause", "queue-remedy"],
            Self::Unsent => ["unsent", "unsent-cause", "unsent-remedy"],
            Self::DisabledAsk => ["disabled-ask", "disabled-ask-cause", "disabled-ask-remedy"],
            Self::DisabledAtCloud => {
                ["disabled-at-cloud", "disabled-at-cloud-cause", "disabled-at-cloud-remedy"]
            }
        }
    }

    fn tone(self) -> Tone {
        match self {
            Self::DatabaseUnreadable
            | Self::DatabaseWrites
            | Self::CloudSilent
            | Self::CloudAccount
            | Self::CloudProduct
            | Self::CloudFails
            | Self::DevicesRefused
            | Self::WrongEnrollment
            | Self::Unconfigured
            | Self::DeletedAtCloud => Tone::Bad,
            Self::CloudThrottles
            | Self::Draining
            | Self::Unknown
            | Self::WrongKey
            | Self::Guessing
            | Self::NotYours
            | Self::IssuedAlready
            | Self::Malformed
            | Self::SilentClients
            | Self::OtherHandshakes
            | Self::Clock
            | Self::NoCloud
            | Self::Unsealed => Tone::Warning,
            Self::TooMany | Self::Queue | Self::Unsent | Self::DisabledAsk | Self::DisabledAtCloud => {
                Tone::Note
            }
        }
    }

    /// Returns the page that lists the devices or requests concerned.
    pub(super) fn link(self) -> Option<&'static str> {
        Some(match self {
            Self::DevicesRefused => "/devices?state=refused",
            Self::DeletedAtCloud => "/devices?state=cloud-deleted",
            Self::DisabledAtCloud => "/devices?state=cloud-disabled",
            Self::Unconfigured => "/enrollments",
            Self::WrongEnrollment => "/failures?reason=enrollment",
            Self::Unknown => "/failures?reason=unknown",
            Self::NotYours => "/failures?reason=not-yours",
            Self::IssuedAlready => "/failures?reason=issued",
            Self::TooMany => "/failures?reason=too-many",
            Self::DisabledAsk => "/failures?reason=disabled",
            Self::CloudAccount | Self::CloudProduct => "/failures?reason=operator",
            Self::CloudSilent | Self::CloudThrottles | Self::CloudFails | Self::Queue => {
                "/failures?reason=later"
            }
            _ => return None,
        })
    }
}

/// A fact that an operator should know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Concern {
    /// The subject.
    pub(super) subject: Subject,
    /// Severity of the concern.
    pub(super) tone: Tone,
    /// Time at which the concern began, if it is known.
    pub(super) since: Option<UnixSeconds>,
    /// Time of the last event, if it is known.
    pub(super) last: Option<UnixSeconds>,
    /// Number of requests, calls, handshakes or writes; 0 if the subject has no such number.
    pub(super) times: u64,
    /// Number of devices concerned, if it is known.
    pub(super) devices: Option<u64>,
    /// Error code of IoT Platform.
    pub(super) code: Option<String>,
    /// Message of IoT Platform or of the database.
    pub(super) said: Option<String>,
    /// Names of the actions, products or enrollments concerned.
    pub(super) names: Vec<String>,
}

impl Concern {
    fn of(subject: Subject) -> Self {
        Self {
            subject,
            tone: subject.tone(),
            since: None,
            last: None,
            times: 0,
            devices: None,
            code: None,
            said: None,
            names: Vec::new(),
        }
    }

    fn with_episode(self, episode: Episode) -> Self {
        Self { since: Some(episode.since), last: Some(episode.last), times: episode.count, ..self }
    }

    fn of_devices(self, devices: u64) -> Self {
        Self { devices: Some(devices), ..self }
    }
}

/// Returns all concerns, the most severe first.
pub(super) fn of(situation: &Situation<'_>) -> Vec<Concern> {
    let mut all = Vec::new();
    of_calls(situation, &mut all);
    of_requests(situation, &mut all);
    of_server(situation, &mut all);
    of_table(situation, &mut all);
    all.sort_by_key(|concern| (std::cmp::Reverse(concern.tone), concern.subject));
    all
}

/// Returns the subject to which failed calls belong.
fn subject_of(trouble: &Trouble) -> Subject {
    let code = trouble.error.code.as_str();
    match trouble.error.class {
        ErrorClass::Throttled => Subject::CloudThrottles,
        ErrorClass::TimedOut => Subject::CloudSilent,
        ErrorClass::TryAgain if matches!(code, "NoConnection" | "Connection" | "NotAnAnswer") => {
            Subject::CloudSilent
        }
        ErrorClass::Operator if code == "Certificate" => Subject::CloudSilent,
        ErrorClass::Operator if code == "NoCloud" => Subject::NoCloud,
        ErrorClass::Operator if code.starts_with("iot.prod.") || code == "iot.device.DeviceCountExceeded" => {
            Subject::CloudProduct
        }
        ErrorClass::Operator => Subject::CloudAccount,
        _ => Subject::CloudFails,
    }
}

/// Adds the concerns about calls to IoT Platform. All failed calls with the same subject and code
/// make up one concern.
fn of_calls(situation: &Situation<'_>, all: &mut Vec<Concern>) {
    let mut by_subject = BTreeMap::<(Subject, &str), Vec<&Trouble>>::new();
    for trouble in &situation.troubles {
        let is_certain = trouble.error.class == ErrorClass::Operator || trouble.calls >= CALLS_IN_A_ROW;
        let subject = subject_of(trouble);
        if is_certain && subject != Subject::NoCloud && situation.now - trouble.last <= TROUBLE_COUNTS {
            // One outage has several codes: first calls find no connection, then they get no answer
            // in time. All of them make up one concern.
            let code = if subject == Subject::CloudSilent { "" } else { trouble.error.code.as_str() };
            by_subject.entry((subject, code)).or_default().push(trouble);
        }
    }
    for ((subject, _), troubles) in by_subject {
        let Some(last) = troubles.iter().max_by_key(|trouble| trouble.last) else { continue };
        let mut names = BTreeSet::new();
        for trouble in &troubles {
            names.insert(match subject {
                Subject::CloudProduct => trouble.product_key.clone(),
                _ => trouble.action.name().to_owned(),
            });
        }
        // Selects the requests that failed because of these calls.
        let reason = |failure: &&Failure| match subject {
            Subject::CloudAccount | Subject::CloudProduct => {
                failure.reason == Reason::Operator && failure.message.contains(&last.error.code)
            }
            _ => matches!(failure.reason, Reason::Later | Reason::TimedOut),
        };
        all.push(Concern {
            since: troubles.iter().map(|trouble| trouble.since).min(),
            last: Some(last.last),
            times: troubles.iter().map(|trouble| trouble.calls).sum(),
            devices: Some(devices(situation.failures.iter().filter(reason))).filter(|count| *count > 0),
            code: Some(last.error.code.clone()),
            said: Some(last.error.message.clone()),
            names: names.into_iter().collect(),
            ..Concern::of(subject)
        });
    }
}

fn devices<'f>(failures: impl Iterator<Item = &'f Failure>) -> u64 {
    failures.map(|failure| &failure.device).collect::<BTreeSet<_>>().len() as u64
}

/// Adds the concerns about requests and handshakes that certdist refused or could not complete.
fn of_requests(situation: &Situation<'_>, all: &mut Vec<Concern>) {
    let episode = |kind: Kind| situation.episodes[kind as usize];
    for (kind, reason, subject) in [
        (Kind::NotYours, Some(Reason::NotYours), Subject::NotYours),
        (Kind::Issued, Some(Reason::Issued), Subject::IssuedAlready),
        (Kind::Disabled, Some(Reason::Disabled), Subject::DisabledAsk),
        (Kind::TooMany, Some(Reason::TooMany), Subject::TooMany),
        (Kind::Malformed, None, Subject::Malformed),
        (Kind::WrongKey, None, Subject::WrongKey),
        (Kind::Silent, None, Subject::SilentClients),
        (Kind::OtherHandshake, None, Subject::OtherHandshakes),
        (Kind::Guessing, None, Subject::Guessing),
    ] {
        let Some(episode) = episode(kind) else { continue };
        let failures = situation.failures.iter().filter(|failure| Some(failure.reason) == reason);
        let count = reason.map(|_| devices(failures));
        all.push(Concern { devices: count, ..Concern::of(subject).with_episode(episode) });
    }
    // A request gets the same answer whether its device is not in the table or in another
    // enrollment.
    let invalid = || situation.failures.iter().filter(|failure| failure.reason == Reason::Invalid);
    let enrollment = |failure: &Failure| situation.foreign.get(failure.device.as_str());
    // A device that has since been imported into the right enrollment is no longer a concern.
    let is_open = |failure: &&Failure| enrollment(failure) != Some(&failure.enrollment);
    let (foreign, unknown): (Vec<_>, Vec<_>) =
        invalid().filter(is_open).partition(|failure| enrollment(failure).is_some());
    for (failures, subject) in [(foreign, Subject::WrongEnrollment), (unknown, Subject::Unknown)] {
        let Some(since) = failures.iter().map(|failure| failure.first).min() else { continue };
        let pairs = failures.iter().filter(|_| subject == Subject::WrongEnrollment).map(|failure| {
            let own = situation.foreign.get(failure.device.as_str()).map_or("", String::as_str);
            format!("{own} → {}", failure.enrollment)
        });
        let names = match subject {
            Subject::WrongEnrollment => pairs.collect::<BTreeSet<_>>(),
            _ => failures.iter().map(|failure| failure.enrollment.clone()).collect(),
        };
        all.push(Concern {
            since: Some(since),
            last: failures.iter().map(|failure| failure.last).max(),
            times: failures.iter().map(|failure| failure.count).sum(),
            names: names.into_iter().collect(),
            ..Concern::of(subject).of_devices(devices(failures.iter().copied()))
        });
    }
    // Devices that were asked to retry later although no call fails are waiting in the queue.
    let is_explained = all.iter().any(|concern| {
        matches!(
            concern.subject,
            Subject::CloudSilent | Subject::CloudThrottles | Subject::CloudFails | Subject::DatabaseWrites
        )
    }) || episode(Kind::StoreFailed).is_some();
    let later = [Kind::Later, Kind::TimedOut].into_iter().filter_map(episode).reduce(|a, b| Episode {
        since: a.since.min(b.since),
        last: a.last.max(b.last),
        count: a.count + b.count,
    });
    // Once no registration waits any more, the next request of each of these devices is served.
    let is_waiting = |episode: &Episode| situation.waiting > 0 || situation.now - episode.last <= RECENT;
    if let Some(episode) = later.filter(is_waiting).filter(|_| !is_explained) {
        let waiting = situation.failures.iter();
        let waiting = waiting.filter(|failure| matches!(failure.reason, Reason::Later | Reason::TimedOut));
        all.push(Concern::of(Subject::Queue).with_episode(episode).of_devices(devices(waiting)));
    }
}

/// Adds the concerns about this server.
fn of_server(situation: &Situation<'_>, all: &mut Vec<Concern>) {
    if situation.is_draining {
        all.push(Concern::of(Subject::Draining));
    }
    for (kind, subject) in [(Kind::StoreFailed, Subject::DatabaseWrites), (Kind::Unsent, Subject::Unsent)] {
        if let Some(episode) = situation.episodes[kind as usize] {
            all.push(Concern::of(subject).with_episode(episode));
        }
    }
    if let Some(offset) = situation.clock_offset.filter(|offset| offset.abs() > CLOCK_TOLERANCE) {
        all.push(Concern { times: offset.unsigned_abs(), ..Concern::of(Subject::Clock) });
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
        (devices > 0).then(|| Concern { last: Some(census.at), ..Concern::of(subject).of_devices(devices) })
    };
    let refused = census.totals.iter().map(|totals| totals.refused).sum();
    let largest = census.held.iter().filter(|held| held.refusal.is_some()).max_by_key(|held| held.devices);
    all.extend(counted(Subject::DevicesRefused, refused).map(|concern| Concern {
        said: largest.and_then(|held| held.refusal.clone()),
        // The census counts these devices, but does not know since when they are refused. The
        // requests of the last hour may show it.
        since: situation.episodes[Kind::Operator as usize].map(|episode| episode.since),
        ..concern
    }));
    all.extend(counted(Subject::DeletedAtCloud, census.deleted_at_cloud));
    all.extend(counted(Subject::DisabledAtCloud, census.disabled_at_cloud));
    let unknown: Vec<_> = census
        .totals
        .iter()
        .filter(|totals| totals.devices > 0 && !situation.configured.contains(&totals.enrollment.as_str()))
        .collect();
    let names = unknown.iter().map(|totals| totals.enrollment.clone()).collect();
    let lost = unknown.iter().map(|totals| totals.devices).sum();
    all.extend(counted(Subject::Unconfigured, lost).map(|concern| Concern { names, ..concern }));
    if census.unsealed > 0 {
        all.push(Concern { times: census.unsealed, last: Some(census.at), ..Concern::of(Subject::Unsealed) });
    }
    let unregistered: u64 = census
        .totals
        .iter()
        .map(|totals| totals.devices.saturating_sub(totals.registered).saturating_sub(totals.refused))
        .sum();
    if !situation.has_cloud {
        all.extend(counted(Subject::NoCloud, unregistered));
    }
}

/// Returns the catalogue key of the advice about an error code of IoT Platform or of certdist
/// itself.
pub(super) fn remedy_of(code: &str) -> Option<&'static str> {
    Some(match code {
        "InvalidAccessKeyId.NotFound" => "remedy-key-unknown",
        "InvalidAccessKeyId.Inactive" => "remedy-key-inactive",
        "SignatureDoesNotMatch" => "remedy-key-secret",
        _ if code.starts_with("InvalidSecurityToken") => "remedy-token",
        "Forbidden.RAM" | "iot.common.RamActionPermissionDeny" | "iot.common.AuthActionPermissionDeny" => {
            "remedy-permission"
        }
        "iot.common.InvalidTenant" | "iot.system.UidNotFound" => "remedy-account",
        "Iot.system.BillIsOverDue" | "iot.system.BillIsOverDue" => "remedy-bill",
        "iot.system.InstanceNotFound" | "iot.Sre.IotInstanceNotFound" => "remedy-instance",
        "iot.prod.NotExistedProduct" => "remedy-product",
        "iot.device.DeviceCountExceeded" => "remedy-quota",
        "Certificate" => "remedy-certificate",
        "Credentials" => "remedy-credentials",
        "NoConnection" | "Connection" | "Timeout" => "remedy-network",
        "NotAnAnswer" => "remedy-not-an-answer",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        device::DeviceId,
        iot_platform::{Action, ApiError},
        rate_limit::Origin,
        store::{Totals, filter::Held},
    };

    const NOW: UnixSeconds = 100_000;

    fn quiet() -> Situation<'static> {
        Situation {
            now: NOW,
            episodes: [None; Kind::ALL.len()],
            troubles: Vec::new(),
            clock_offset: Some(0),
            has_cloud: true,
            failures: &[],
            foreign: BTreeMap::new(),
            census: None,
            configured: vec!["lamp"],
            is_draining: false,
            waiting: 0,
        }
    }

    fn trouble(class: ErrorClass, code: &str, product: &str, calls: u64) -> Trouble {
        let error = ApiError { class, code: code.into(), message: "the message".into() };
        let (action, product_key) = (Action::RegisterDevice, product.to_owned());
        Trouble { action, product_key, since: NOW - 600, last: NOW - 5, calls, error }
    }

    fn failure(id: &str, reason: Reason, message: &str) -> Failure {
        Failure {
            device: DeviceId::parse_sn(id).unwrap(),
            reason,
            enrollment: "lamp".into(),
            origin: Origin::of([192, 0, 2, 1].into()),
            message: message.into(),
            first: NOW - 300,
            last: NOW - 3,
            count: 2,
        }
    }

    fn subjects(situation: &Situation<'_>) -> Vec<Subject> {
        of(situation).into_iter().map(|concern| concern.subject).collect()
    }

    fn happened(situation: &mut Situation<'_>, kind: Kind) {
        situation.episodes[kind as usize] = Some(Episode { since: NOW - 900, last: NOW - 9, count: 30 });
    }

    #[test]
    fn a_quiet_server_has_no_concern() {
        let census = Census::default();
        assert_eq!(subjects(&Situation { census: Some(Ok(&census)), ..quiet() }), []);
        assert_eq!(subjects(&quiet()), []);
    }

    #[test]
    fn a_dead_cloud_is_one_concern_with_its_devices_and_its_beginning() {
        let later = ["SN-1", "SN-2"].map(|id| failure(id, Reason::Later, ""));
        let mut situation = Situation {
            troubles: vec![
                trouble(ErrorClass::TryAgain, "NoConnection", "a1", 40),
                trouble(ErrorClass::TimedOut, "Timeout", "a2", 8),
            ],
            failures: &[&later[..], &[failure("SN-2", Reason::TimedOut, "")]].concat(),
            ..quiet()
        };
        happened(&mut situation, Kind::Later);
        happened(&mut situation, Kind::TimedOut);
        let all = of(&situation);
        let [concern] = &all[..] else { panic!("{all:?}") };
        assert_eq!((concern.subject, concern.tone), (Subject::CloudSilent, Tone::Bad));
        assert_eq!((concern.since, concern.devices, concern.times), (Some(NOW - 600), Some(2), 48));
    }

    #[test]
    fn what_may_pass_by_itself_is_a_concern_only_after_several_calls() {
        for (class, code) in [(ErrorClass::Throttled, "Throttling.User"), (ErrorClass::TimedOut, "Timeout")] {
            let of_calls = |calls| Situation { troubles: vec![trouble(class, code, "a1", calls)], ..quiet() };
            assert_eq!(subjects(&of_calls(CALLS_IN_A_ROW - 1)), [], "{code}");
            assert_eq!(subjects(&of_calls(CALLS_IN_A_ROW)).len(), 1, "{code}");
        }
        let refused = trouble(ErrorClass::Operator, "SignatureDoesNotMatch", "a1", 1);
        assert_eq!(
            subjects(&Situation { troubles: vec![refused.clone()], ..quiet() }),
            [Subject::CloudAccount]
        );
        let old = Trouble { last: NOW - TROUBLE_COUNTS - 1, ..refused };
        assert_eq!(subjects(&Situation { troubles: vec![old], ..quiet() }), []);
    }

    #[test]
    fn a_missing_product_is_named_and_its_devices_are_counted() {
        let code = "iot.prod.NotExistedProduct";
        let situation = Situation {
            troubles: vec![trouble(ErrorClass::Operator, code, "a1gone", 1)],
            failures: &[
                failure("SN-1", Reason::Operator, &format!("{code}: no such product")),
                failure("SN-2", Reason::Operator, "NameIsTaken: x"),
            ],
            ..quiet()
        };
        let all = of(&situation);
        assert_eq!((all[0].subject, all[0].devices), (Subject::CloudProduct, Some(1)));
        assert_eq!((&all[0].names[..], all[0].code.as_deref()), (&["a1gone".to_owned()][..], Some(code)));
        assert_eq!(remedy_of(code), Some("remedy-product"));
    }

    #[test]
    fn an_unknown_device_is_told_from_one_with_the_key_of_another_enrollment() {
        let situation = Situation {
            failures: &[failure("SN-1", Reason::Invalid, ""), failure("SN-2", Reason::Invalid, "")],
            foreign: BTreeMap::from([("SN-2".to_owned(), "plug".to_owned())]),
            ..quiet()
        };
        let all = of(&situation);
        assert_eq!((all[0].subject, all[0].devices), (Subject::WrongEnrollment, Some(1)));
        assert_eq!(all[0].names, ["plug → lamp"]);
        assert_eq!((all[1].subject, all[1].devices, all[1].times), (Subject::Unknown, Some(1), 2));
        // Both devices are imported into the enrollment whose key they use.
        let mended = ["SN-1", "SN-2"].map(|id| (id.to_owned(), "lamp".to_owned()));
        assert_eq!(subjects(&Situation { foreign: BTreeMap::from(mended), ..situation }), []);
    }

    #[test]
    fn each_kind_of_failure_is_a_concern() {
        let harmless = [Kind::Served, Kind::Handshake];
        // For these kinds, a concern comes from the failed requests or from the census, not from
        // the episode.
        let counted_elsewhere = [Kind::Invalid, Kind::Operator];
        for kind in Kind::ALL {
            let mut situation = quiet();
            happened(&mut situation, kind);
            let expected = usize::from(!harmless.contains(&kind) && !counted_elsewhere.contains(&kind));
            assert_eq!(subjects(&situation).len(), expected, "{kind:?}");
        }
    }

    #[test]
    fn the_rows_of_the_table_are_concerns() {
        let totals = |enrollment: &str, refused| Totals {
            enrollment: enrollment.into(),
            devices: 10,
            refused,
            ..Totals::default()
        };
        let census = Census {
            at: NOW - 10,
            totals: vec![totals("lamp", 2), totals("lost", 1)],
            held: vec![Held { enrollment: "lamp".into(), refusal: Some("odd".into()), devices: 2 }],
            deleted_at_cloud: 4,
            disabled_at_cloud: 5,
            unsealed: 6,
        };
        let situation = Situation { census: Some(Ok(&census)), has_cloud: false, ..quiet() };
        let all = of(&situation);
        let seen: Vec<_> = all.iter().map(|concern| (concern.subject, concern.devices)).collect();
        assert_eq!(
            seen,
            [
                (Subject::DevicesRefused, Some(3)),
                (Subject::Unconfigured, Some(10)),
                (Subject::DeletedAtCloud, Some(4)),
                (Subject::NoCloud, Some(17)),
                (Subject::Unsealed, None),
                (Subject::DisabledAtCloud, Some(5)),
            ]
        );
        assert_eq!((all[0].said.as_deref(), &all[1].names[..]), (Some("odd"), &["lost".to_owned()][..]));
        let failed = Situation { census: Some(Err("no such disk".into())), ..quiet() };
        assert_eq!(subjects(&failed), [Subject::DatabaseUnreadable]);
    }

    #[test]
    fn the_worst_comes_first() {
        let mut situation = Situation {
            clock_offset: Some(-3600),
            troubles: vec![trouble(ErrorClass::Operator, "Forbidden.RAM", "a1", 1)],
            ..quiet()
        };
        happened(&mut situation, Kind::WrongKey);
        happened(&mut situation, Kind::Unsent);
        let found = subjects(&situation);
        assert_eq!(found, [Subject::CloudAccount, Subject::WrongKey, Subject::Clock, Subject::Unsent]);
    }

    #[test]
    fn devices_wait_only_as_long_as_something_waits() {
        let mut situation = Situation { failures: &[failure("SN-1", Reason::Later, "")], ..quiet() };
        let later = |last| Some(Episode { since: NOW - 900, last, count: 3 });
        situation.episodes[Kind::Later as usize] = later(NOW - RECENT);
        assert_eq!(subjects(&situation), [Subject::Queue]);
        situation.episodes[Kind::Later as usize] = later(NOW - RECENT - 1);
        assert_eq!(subjects(&situation), []);
        situation.waiting = 1;
        assert_eq!(subjects(&situation), [Subject::Queue]);
    }
}
