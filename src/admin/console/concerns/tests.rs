use super::*;
use crate::{
    admin::console::unserved::Row,
    company::{self, Difference},
    device::DeviceId,
    dtls,
    iot_platform::{Action, ApiError},
    rate_limit::Origin,
    recent::Counted,
    resource::failures::Failure,
    server::failed_handshakes::Claimed,
    store::{
        DeviceRow, DeviceState, Totals,
        filter::{Held, Listed},
    },
};

const NOW: UnixSeconds = 100_000;
/// Time of the last request that was not served.
const LAST: UnixSeconds = NOW - 3;

fn quiet() -> Situation<'static> {
    Situation {
        now: NOW,
        episodes: [None; Kind::ALL.len()],
        troubles: Vec::new(),
        unanswered_since: None,
        unanswered_target: None,
        clock_offset: Some(0),
        cloud_worked: Some(NOW - 60),
        has_cloud: true,
        unserved: &[],
        handshakes: &[],
        census: None,
        configured: ["lamp"].into(),
        targets: HashSet::from(["default"]),
        is_draining: false,
        waiting: 0,
    }
}

fn trouble(class: ErrorClass, code: &str, product: &str, calls: u64) -> Trouble {
    let error = ApiError { class, code: code.into(), message: "the message".into() };
    let (action, product_key) = (Action::RegisterDevice, product.to_owned());
    Trouble { target: None, action, product_key, since: NOW - 600, last: NOW - 5, calls, error }
}

/// Returns requests of a device of the enrollment `lamp`, with its key.
fn unserved(id: &str, reason: Reason, message: &str) -> Unserved {
    let device = DeviceId::parse_sn(id).unwrap();
    let row = DeviceRow::imported(device.clone(), "lamp", "a1");
    let row = Row::Found(Box::new(Listed::new(device.clone(), &row.seen(), false)));
    let failure = Failure {
        device,
        reason,
        enrollment: "lamp".into(),
        origin: Origin::of([192, 0, 2, 1].into()),
        message: message.into(),
        first: NOW - 300,
        last: LAST,
        count: 2,
    };
    Unserved { failure, row, is_superseded: false, ahead: 0 }
}

fn with_row(one: Unserved, change: impl Fn(&mut Listed)) -> Unserved {
    let Row::Found(mut row) = one.row else { panic!("a row") };
    change(&mut row);
    Unserved { row: Row::Found(row), ..one }
}

fn without_row(one: Unserved) -> Unserved {
    Unserved { row: Row::Absent, ..one }
}

fn at(last: UnixSeconds, one: Unserved) -> Unserved {
    Unserved { failure: Failure { last, ..one.failure }, ..one }
}

fn subjects(situation: &Situation<'_>) -> Vec<Subject> {
    of(situation).into_iter().map(|concern| concern.subject).collect()
}

fn subjects_of(unserved: &[Unserved]) -> Vec<Subject> {
    subjects(&Situation { unserved, ..quiet() })
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
fn all_is_well_only_if_devices_came_and_the_server_has_run_for_a_while() {
    let census = Census::default();
    let counted = Situation { census: Some(Ok(&census)), ..quiet() };
    assert_eq!(outlook(&counted, NOW - EARLY, 1), Outlook::Well);
    assert_eq!(outlook(&counted, NOW - EARLY, 0), Outlook::Idle);
    assert_eq!(outlook(&counted, NOW - EARLY + 1, 1000), Outlook::Early);
    assert_eq!(outlook(&quiet(), 0, 1000), Outlook::Early, "the table is not counted yet");
}

#[test]
fn a_dead_cloud_is_one_concern_with_its_devices_and_its_beginning() {
    let unserved = [
        unserved("SN-1", Reason::Later, ""),
        unserved("SN-2", Reason::Later, ""),
        unserved("SN-2", Reason::TimedOut, ""),
        // This device has been served since.
        with_row(unserved("SN-3", Reason::TimedOut, ""), |row| row.first_issued = Some(LAST)),
    ];
    let mut situation = Situation {
        troubles: vec![
            trouble(ErrorClass::TryAgain, "NoConnection", "a1", 40),
            trouble(ErrorClass::TimedOut, "Timeout", "a2", 8),
        ],
        unserved: &unserved,
        ..quiet()
    };
    happened(&mut situation, Kind::Later);
    happened(&mut situation, Kind::TimedOut);
    let all = of(&situation);
    let [concern] = &all[..] else { panic!("{all:?}") };
    assert_eq!((concern.subject, concern.tone), (Subject::CloudSilent, Tone::Bad));
    assert_eq!((concern.since, concern.devices, concern.times), (Some(NOW - 600), Some(2), 48));
    assert_eq!(concern.ids, ["SN-1", "SN-2"].map(|id| DeviceId::parse(id).unwrap()));
}

#[test]
fn a_few_failed_calls_are_a_warning_and_throttled_ones_are_nothing() {
    let tone = |class, code, calls| {
        let situation = Situation { troubles: vec![trouble(class, code, "a1", calls)], ..quiet() };
        of(&situation).first().map(|concern| concern.tone)
    };
    assert_eq!(tone(ErrorClass::TimedOut, "Timeout", 1), Some(Tone::Warning));
    assert_eq!(tone(ErrorClass::TimedOut, "Timeout", CALLS_IN_A_ROW), Some(Tone::Bad));
    assert_eq!(tone(ErrorClass::Throttled, "Throttling.User", CALLS_IN_A_ROW - 1), None);
    assert_eq!(tone(ErrorClass::Throttled, "Throttling.User", CALLS_IN_A_ROW), Some(Tone::Warning));
    assert_eq!(tone(ErrorClass::Operator, "SignatureDoesNotMatch", 1), Some(Tone::Bad));
}

#[test]
fn a_failed_call_of_long_ago_needs_a_test_and_is_forgotten_after_a_day() {
    let of_age = |age| {
        let refused = trouble(ErrorClass::Operator, "SignatureDoesNotMatch", "a1", 1);
        let situation = Situation { troubles: vec![Trouble { last: NOW - age, ..refused }], ..quiet() };
        of(&situation).first().map(|concern| concern.course)
    };
    assert_eq!(of_age(LONG_AGO), Some(Course::On));
    assert_eq!(of_age(LONG_AGO + 1), Some(Course::Untested));
    assert_eq!(of_age(TROUBLE_COUNTS + 1), None);
}

#[test]
fn a_call_without_an_answer_explains_why_devices_wait() {
    let unserved = [unserved("SN-1", Reason::TimedOut, "")];
    let of_age =
        |age| Situation { unanswered_since: Some(NOW - age), unserved: &unserved, waiting: 1, ..quiet() };
    assert_eq!(subjects(&of_age(SLOW - 1)), [Subject::Queue]);
    let all = of(&of_age(SLOW));
    let [concern] = &all[..] else { panic!("{all:?}") };
    assert_eq!((concern.subject, concern.tone), (Subject::CloudSlow, Tone::Warning));
    assert_eq!((concern.times, concern.devices), (SLOW.unsigned_abs(), Some(1)));
    // A failed call shows with more certainty that IoT Platform is silent, so there is no concern
    // about the slow call.
    let failed =
        Situation { troubles: vec![trouble(ErrorClass::TimedOut, "Timeout", "a1", 1)], ..of_age(60) };
    assert_eq!(subjects(&failed), [Subject::CloudSilent]);
}

#[test]
fn a_missing_product_is_named_and_its_devices_are_counted_until_none_has_it_any_more() {
    let code = "iot.prod.NotExistedProduct";
    let unserved = [
        unserved("SN-1", Reason::Operator, &format!("{code}: no such product")),
        with_row(unserved("SN-2", Reason::Operator, "NameIsTaken: x"), |row| row.refusal = Some("x".into())),
    ];
    let gone = || trouble(ErrorClass::Operator, code, "a1gone", 1);
    let situation = Situation { troubles: vec![gone()], unserved: &unserved, ..quiet() };
    let all = of(&situation);
    assert_eq!((all[0].subject, all[0].devices), (Subject::CloudProduct, Some(1)));
    assert_eq!((&all[0].names[..], all[0].code.as_deref()), (&["a1gone".to_owned()][..], Some(code)));
    assert_eq!(remedy_of(code), Some("remedy-product"));
    let has = |census: &Census| {
        let situation = Situation { troubles: vec![gone()], census: Some(Ok(census)), ..quiet() };
        subjects(&situation).contains(&Subject::CloudProduct)
    };
    let counted = |at, product: &str| Census { at, products: vec![product.into()], ..Census::default() };
    assert!(has(&counted(NOW, "a1gone")));
    assert!(has(&counted(NOW - 10, "a1lamp")), "the census is older than the call");
    assert!(!has(&counted(NOW, "a1lamp")));
}

#[test]
fn an_unknown_device_is_told_from_one_with_the_key_of_another_enrollment() {
    let invalid = |id| unserved(id, Reason::Invalid, "");
    let unserved = [
        without_row(invalid("SN-1")),
        with_row(invalid("SN-2"), |row| row.enrollment = "plug".into()),
        // The row of this device was not read, so no concern counts the device.
        Unserved { row: Row::NotRead, ..invalid("SN-3") },
        // This device was imported into the right enrollment after its request.
        invalid("SN-4"),
    ];
    let all = of(&Situation { unserved: &unserved, ..quiet() });
    assert_eq!((all[0].subject, all[0].devices), (Subject::WrongEnrollment, Some(1)));
    assert_eq!(all[0].pairs, [("plug".to_owned(), "lamp".to_owned())]);
    assert_eq!((all[1].subject, all[1].devices, all[1].times), (Subject::Unknown, Some(1), 2));
    assert_eq!(all.len(), 2);
}

#[test]
fn a_device_whose_problem_is_over_is_no_concern() {
    use Reason::{Disabled, Invalid, Issued, Later, NotYours, Operator, TimedOut};
    let open = |reason| unserved("SN-1", reason, "");
    let issued = |row: &mut Listed| row.first_issued = Some(LAST - 1);
    let reset = |row: &mut Listed| row.first_issued = Some(LAST + 1);
    let served = |row: &mut Listed| row.first_issued = Some(LAST);
    let disabled = |row: &mut Listed| row.state = DeviceState::Disabled;
    for (one, expected) in [
        (open(Invalid), None),
        (with_row(open(Disabled), disabled), Some(Subject::DisabledAsk)),
        (open(Disabled), None),
        (with_row(open(Issued), issued), Some(Subject::IssuedAlready)),
        (open(Issued), None),
        (with_row(open(Issued), reset), None),
        (with_row(open(Later), disabled), None),
        (Unserved { is_superseded: true, ..open(TimedOut) }, None),
        (with_row(open(Invalid), |row| row.enrollment = "plug".into()), Some(Subject::WrongEnrollment)),
        (with_row(with_row(open(Invalid), |row| row.enrollment = "plug".into()), served), None),
        (open(NotYours), Some(Subject::NotYours)),
        (open(Operator), Some(Subject::NotBack)),
        (with_row(open(Operator), served), None),
        (without_row(open(Operator)), None),
        (open(Later), Some(Subject::Queue)),
        (with_row(open(Later), issued), Some(Subject::Queue)),
        (with_row(open(Later), served), None),
        (open(TimedOut), Some(Subject::Queue)),
        (with_row(open(TimedOut), served), None),
    ] {
        let found = subjects_of(std::slice::from_ref(&one));
        assert_eq!(found.first().copied(), expected, "{one:?}");
    }
    // The store's clock, which gives the time of an issue, may be ahead of the clock that gives the
    // times of failures.
    let ahead = Unserved { ahead: 3600, ..with_row(open(Later), |row| row.first_issued = Some(LAST + 3599)) };
    assert_eq!(subjects_of(&[ahead]), [Subject::Queue]);
}

#[test]
fn devices_that_were_put_off_wait_at_first_and_then_have_not_come_back() {
    let of_age = |age, waiting| {
        let unserved = [at(NOW - age, unserved("SN-1", Reason::Later, ""))];
        subjects(&Situation { unserved: &unserved, waiting, ..quiet() })
    };
    assert_eq!(of_age(RECENT, 0), [Subject::Queue]);
    assert_eq!(of_age(RECENT + 1, 0), [Subject::NotBack]);
    assert_eq!(of_age(RECENT + 1, 1), [Subject::Queue], "its registration may be in the queue");
    // The server has forgotten the failed requests for lack of room, but has counted them.
    for kind in [Kind::Later, Kind::TimedOut, Kind::Operator] {
        let mut situation = quiet();
        happened(&mut situation, kind);
        assert_eq!(subjects(&situation), [Subject::NotBack], "{kind:?}");
    }
}

#[test]
fn ids_that_somebody_guesses_are_not_devices_that_ask_too_often() {
    let unserved = [
        without_row(unserved("SN-1", Reason::TooMany, "")),
        without_row(unserved("SN-2", Reason::TooMany, "")),
    ];
    let mut situation = Situation { unserved: &unserved, ..quiet() };
    happened(&mut situation, Kind::TooMany);
    assert_eq!(subjects(&situation), [Subject::TooMany]);
    happened(&mut situation, Kind::Guessing);
    assert_eq!(subjects(&situation), [Subject::Guessing]);
}

#[test]
fn each_kind_of_failure_is_a_concern() {
    let harmless = [Kind::Served, Kind::Handshake];
    for kind in Kind::ALL {
        let mut situation = quiet();
        happened(&mut situation, kind);
        // A concern about `Kind::Invalid` comes from the failed requests, not from the episode.
        let expected = usize::from(!harmless.contains(&kind) && kind != Kind::Invalid);
        assert_eq!(subjects(&situation).len(), expected, "{kind:?}");
    }
}

#[test]
fn what_is_over_or_rare_is_only_a_note() {
    let concern = |kind: Kind, age, count| {
        let mut situation = quiet();
        situation.episodes[kind as usize] = Some(Episode { since: NOW - 3600, last: NOW - age, count });
        let concern = of(&situation).remove(0);
        (concern.tone, concern.course)
    };
    assert_eq!(concern(Kind::StoreFailed, RECENT, 1), (Tone::Bad, Course::On));
    assert_eq!(concern(Kind::StoreFailed, RECENT + 1, 90), (Tone::Note, Course::Over));
    assert_eq!(concern(Kind::WrongKey, LONG_AGO, FEW), (Tone::Warning, Course::On));
    assert_eq!(concern(Kind::WrongKey, LONG_AGO + 1, FEW), (Tone::Note, Course::Over));
    assert_eq!(concern(Kind::WrongKey, 0, FEW - 1), (Tone::Note, Course::On));
    assert_eq!(concern(Kind::Guessing, 0, 1), (Tone::Warning, Course::On));
}

#[test]
fn the_time_of_a_handshake_comes_from_its_record() {
    let failed = |reason, last| Failed {
        claimed: Claimed::Identity("SN-1".into()),
        reason,
        counted: Counted { first: last, last, count: 1, value: Origin::of([192, 0, 2, 1].into()) },
    };
    let handshakes = [failed(dtls::Failure::TimedOut, NOW - 5), failed(dtls::Failure::WrongKey, NOW - 12)];
    let mut situation = Situation { handshakes: &handshakes, ..quiet() };
    let sampled = Episode { since: NOW - 10, last: NOW, count: 1 };
    situation.episodes[Kind::WrongKey as usize] = Some(sampled);
    let all = of(&situation);
    assert_eq!((all[0].since, all[0].last), (Some(NOW - 12), Some(NOW - 12)));
}

#[test]
fn a_database_that_fails_explains_why_devices_wait_only_as_long_as_it_fails() {
    let unserved = [at(NOW - RECENT - 1, unserved("SN-1", Reason::Later, ""))];
    let mut situation = Situation { unserved: &unserved, ..quiet() };
    situation.episodes[Kind::StoreFailed as usize] =
        Some(Episode { since: NOW - 900, last: NOW - RECENT, count: 7 });
    let all = of(&situation);
    let [concern] = &all[..] else { panic!("{all:?}") };
    assert_eq!((concern.subject, concern.devices, concern.times), (Subject::DatabaseWrites, Some(1), 7));
    situation.now += 1;
    assert_eq!(
        subjects(&situation),
        [Subject::NotBack, Subject::DatabaseWrites].into_iter().rev().collect::<Vec<_>>()
    );
}

#[test]
fn the_rows_of_the_table_are_concerns() {
    let totals = |enrollment: &str, refused| Totals {
        enrollment: enrollment.into(),
        devices: 10,
        refused,
        ..Totals::default()
    };
    let all = vec![totals("lamp", 2), totals("lost", 1)];
    let sum = Totals { deleted_at_cloud: 4, disabled_at_cloud: 5, ..Totals::sum(&all) };
    let census = Census {
        at: NOW - 10,
        totals: all,
        sum,
        held: vec![Held { enrollment: "lamp".into(), refusal: Some("odd".into()), devices: 2 }],
        differences: vec![Difference {
            kind: company::Kind::Clock,
            groups: vec![vec!["east".into()]],
            seconds: 9,
        }],
        unsealed: 6,
        ..Census::default()
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
            (Subject::ServersDiffer, None),
            (Subject::Unsealed, None),
            (Subject::DisabledAtCloud, Some(5)),
        ]
    );
    assert_eq!((all[0].said.as_deref(), &all[1].names[..]), (Some("odd"), &["lost".to_owned()][..]));
    assert_eq!((all[0].counted, all[0].last), (Some(NOW - 10), None));
    assert!(all[4].said.as_deref().unwrap().contains("the clock of east is 9 s ahead"), "{:?}", all[4]);
    assert_eq!(all[4].names, ["east"]);
    let failed = Situation { census: Some(Err("no such disk".into())), ..quiet() };
    assert_eq!(subjects(&failed), [Subject::DatabaseUnreadable]);
}

#[test]
fn a_refused_device_is_known_before_the_next_count() {
    let refused = with_row(unserved("SN-1", Reason::Operator, "odd"), |row| row.refusal = Some("odd".into()));
    let census = Census { at: NOW - 10, ..Census::default() };
    let situation = Situation { unserved: &[refused], census: Some(Ok(&census)), ..quiet() };
    let all = of(&situation);
    let [concern] = &all[..] else { panic!("{all:?}") };
    assert_eq!((concern.subject, concern.devices), (Subject::DevicesRefused, Some(1)));
    assert_eq!((concern.since, concern.last), (Some(NOW - 300), Some(LAST)));
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
