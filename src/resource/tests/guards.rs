//! Tests of the guards of an enrollment: its times, its places, and devices that are not in the
//! table.

use futures_util::future::join_all;

use super::*;
use crate::{
    guards::{Guards, LONGEST_WAIT, Unlisted},
    psk::DERIVED,
    store::{
        audit::AuditEvent,
        place::CountsPlaces as _,
        waiting::{Admission, Admits, NewDevice, WaitingList as _},
    },
};

/// Returns the usual devices and enrollments, with these guards of `lamp` and `plug`.
fn guarded(guards: Guards) -> Bench {
    let bench = Bench::new();
    let with = |enrollment: Enrollment| Enrollment { guards, ..enrollment };
    let enrollments = Enrollments::new([
        with(enrollment("lamp", Kind::Derived(Key::from_hex(MASTER).unwrap()), Reissue::Always)),
        with(shared("plug", Reissue::Always)),
        enrollment("own", Kind::Individual, Reissue::Always),
    ]);
    let Bench { store, cloud, folder, .. } = bench;
    let bench = Bench::on(folder, store, cloud, enrollments);
    bench.limit(guards);
    bench
}

impl Bench {
    fn limit(&self, guards: Guards) {
        let max = |name: &str| Some((name.to_owned(), guards.max_devices?));
        self.store.set_max_places(Arc::new(["lamp", "plug"].into_iter().filter_map(max).collect()));
    }

    /// Returns the answer to a request with the shared key of `plug`.
    async fn plug(&self, device: &str) -> Response {
        self.ask("plug-identity", get().query(&format!("sn={device}"))).await
    }

    async fn waiting(&self) -> Vec<String> {
        // A device is answered before its request is noted in the store. Writes are done in order,
        // so when this probe is done, all earlier requests are noted.
        self.store.probe().await.unwrap();
        let all = self.store.waiting(None, None, 100).await.unwrap();
        all.into_iter().map(|one| format!("{} in {}: {}", one.device, one.enrollment, one.count)).collect()
    }

    async fn admitted(&self, device: &str) -> usize {
        let history = self.store.history(&DeviceId::parse(device).unwrap(), 100).await.unwrap();
        history.iter().filter(|entry| entry.event == AuditEvent::Admitted).count()
    }
}

fn held() -> Guards {
    Guards { unlisted: Unlisted::Hold, ..Guards::default() }
}

/// Returns the parts of an answer that a client can see: code, Max-Age and payload.
fn seen(answer: &Response) -> (Code, Option<u32>, Vec<u8>) {
    (answer.code, answer.max_age, answer.payload.to_vec())
}

#[tokio::test]
async fn before_its_enrollment_opens_a_device_is_asked_to_come_back() {
    let now = Bench::new().store.now();
    let opens = |seconds| guarded(Guards { opens: Some(now + seconds), ..Guards::default() });
    let bench = opens(86_400);
    for device in ["SN-1", "SN-KNOWN"] {
        let answer = bench.ask_itself(device).await;
        let expected = (Code::ServiceUnavailable, Some(LONGEST_WAIT));
        assert_eq!((answer.code, answer.max_age), expected, "{device}");
        assert_eq!(title(&answer), "enrollment is not open yet");
    }
    assert_eq!(bench.ask_itself("SN-STRANGER").await.code, Code::NotFound);
    assert_eq!(bench.cloud.registrations(), 0);
    let soon = opens(600).ask_itself("SN-1").await.max_age.unwrap();
    assert!((1..=600).contains(&soon), "{soon}");
    assert_eq!(name(&opens(-1).ask_itself("SN-1").await), "SN-1");
}

#[tokio::test]
async fn when_its_enrollment_has_closed_a_device_gets_no_first_certificate() {
    let bench = guarded(Guards::default());
    assert_eq!(name(&bench.ask_itself("SN-1").await), "SN-1");
    let closes = Some(bench.store.now() - 1);
    let Bench { store, cloud, folder, .. } = bench;
    let guards = Guards { closes, ..Guards::default() };
    let lamp = enrollment("lamp", Kind::Derived(Key::from_hex(MASTER).unwrap()), Reissue::Always);
    let bench = Bench::on(folder, store, cloud, Enrollments::new([Enrollment { guards, ..lamp }]));
    assert_eq!(name(&bench.ask_itself("SN-1").await), "SN-1", "it has had its certificate");
    for device in ["SN-2", "SN-KNOWN"] {
        let answer = bench.ask_itself(device).await;
        assert_eq!((answer.code, title(&answer).as_str()), (Code::Forbidden, "enrollment is closed"));
    }
    assert_eq!(bench.cloud.registrations(), 1);
}

#[tokio::test]
async fn a_full_enrollment_still_serves_the_devices_that_have_a_place() {
    // The certificate of SN-KNOWN was imported, and takes a place.
    let bench = guarded(Guards { max_devices: Some(2), ..Guards::default() });
    assert_eq!(name(&bench.ask_itself("SN-1").await), "SN-1");
    let answer = bench.ask_itself("SN-2").await;
    assert_eq!((answer.code, title(&answer).as_str()), (Code::Forbidden, "enrollment is full"));
    for (device, name_) in [("SN-1", "SN-1"), ("SN-KNOWN", "known")] {
        assert_eq!(name(&bench.ask_itself(device).await), name_);
    }
    assert_eq!(name(&bench.plug("PLUG-1").await), "PLUG-1", "another enrollment");
    bench.store.delete(&DeviceId::parse("SN-1").unwrap(), &Actor::system_user()).await.unwrap();
    assert_eq!(name(&bench.ask_itself("SN-2").await), "SN-2");
}

#[tokio::test]
async fn a_device_whose_registration_has_begun_keeps_its_place() {
    let bench = guarded(Guards { max_devices: Some(2), ..Guards::default() });
    let id = DeviceId::parse("SN-1").unwrap();
    // A process claims SN-1, calls IoT Platform, and dies. SN-KNOWN has the other place.
    let owner = crate::store::claim::Owner { id: 77, name: "dead".into() };
    let entry = crate::store::JournalEntry {
        device: id.clone(),
        product_key: "a1lamp".into(),
        device_name: "SN-1".into(),
        target: "default".into(),
    };
    let at = crate::store::claim::ClaimTime { at: 1, cloud_offset: None };
    use crate::store::claim::Claims as _;
    bench.store.claim(&owner, &entry, at).await.unwrap();
    bench.store.release_claim(77, &id, true).await.unwrap();
    // The registration in progress may fail, so the device is asked to retry later.
    let answer = bench.ask_itself("SN-2").await;
    assert_eq!((answer.code, answer.max_age), (Code::ServiceUnavailable, Some(30)));
    assert_eq!(name(&bench.ask_itself("SN-1").await), "SN-1");
    assert_eq!(title(&bench.ask_itself("SN-2").await), "enrollment is full");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_crowd_at_two_servers_gets_exactly_as_many_certificates_as_there_are_places() {
    const MAX: usize = 7;
    let bench = guarded(Guards { max_devices: Some(MAX as u64), ..Guards::default() });
    import(&*bench.store, (0..40).map(|number| row(&format!("PLUG-{number}"), "plug")));
    let second = Arc::new(Sqlite::open(bench.store.path()).unwrap());
    let other = crate::store::claim::Owner::new("other").unwrap();
    let config = registrar::Config { qps: 1000.0, ..registrar::Config::default() };
    let registrar = Registrar::new(config, other, second.clone(), bench.cloud.clone(), Handle::current());
    second.set_max_places(Arc::new([("plug".to_owned(), MAX as u64)].into()));
    let provisioner = Provisioner::new(second.clone(), Targets::only(registrar), PATIENCE);
    let service = Arc::new(Service::new(Instant::now(), provisioner, RequestLimits::default()));
    let principal = bench.principal("plug-identity").await;
    let asking = (0..80).map(|number| {
        let (service, principal) = match number % 2 {
            0 => (bench.service.clone(), principal.clone()),
            _ => (service.clone(), principal.clone()),
        };
        tokio::spawn(async move {
            let request = get().query(&format!("sn=PLUG-{}", number / 2));
            match service.answer(Instant::now(), home(), &principal, &request.0, true) {
                Answer::Now(response) => response.code,
                Answer::Later(work) => work.await.code,
            }
        })
    });
    let codes: Vec<Code> = join_all(asking).await.into_iter().map(Result::unwrap).collect();
    let served = codes.iter().filter(|code| **code == Code::Content).count();
    assert!(codes.iter().all(|code| matches!(
        *code,
        Code::Content | Code::Forbidden | Code::ServiceUnavailable | Code::GatewayTimeout
    )));
    // Some devices were asked to retry later, so all devices ask again.
    let mut with_certificate = 0;
    for number in 0..40 {
        let answer = bench.plug(&format!("PLUG-{number}")).await;
        with_certificate += usize::from(answer.code == Code::Content);
        assert!(matches!(answer.code, Code::Content | Code::Forbidden), "{:?}", answer.code);
    }
    assert_eq!(with_certificate, MAX, "{served} were served at first");
    assert_eq!(bench.cloud.devices(), MAX, "no device too many at IoT Platform");
}

#[tokio::test]
async fn a_held_device_waits_until_it_is_admitted() {
    let bench = guarded(held());
    for ask in 1..=2 {
        let answer = bench.ask_itself("SN-NEW").await;
        assert_eq!((answer.code, answer.max_age), (Code::ServiceUnavailable, Some(300)));
        assert_eq!(title(&answer), "device is not admitted yet");
        assert_eq!(bench.waiting().await, [format!("SN-NEW in lamp: {ask}")]);
    }
    assert_eq!(name(&bench.ask_itself("SN-1").await), "SN-1", "a device of the table is not concerned");
    let new = NewDevice {
        device: DeviceId::parse("SN-NEW").unwrap(),
        enrollment: "lamp".into(),
        product_key: "a1lamp".into(),
    };
    let by = Admits::Operator(Actor::system_user());
    assert_eq!(bench.store.admit(vec![new], by).await.unwrap(), [Admission::Added]);
    assert_eq!(name(&bench.ask_itself("SN-NEW").await), "SN-NEW");
    assert!(bench.waiting().await.is_empty());
}

#[tokio::test]
async fn a_held_device_and_a_device_of_another_enrollment_look_the_same() {
    let bench = guarded(held());
    let ask = async |device: &str| {
        let before = DERIVED.get();
        (seen(&bench.plug(device).await), DERIVED.get() - before)
    };
    let unknown = ask("SN-STRANGER").await;
    for foreign in ["SN-1", "SN-KNOWN", "OWN-1"] {
        assert_eq!(ask(foreign).await, unknown, "{foreign}");
    }
    assert_eq!(bench.waiting().await, ["SN-STRANGER in plug: 1"], "nothing to admit of the others");
    // The identity is the ID of a device of another enrollment. The client gets the same answer as
    // a client whose ID is not in the table.
    assert_eq!(seen(&bench.ask_itself("PLUG-1").await), seen(&bench.ask_itself("SN-OTHER").await));
    let row = bench.store.device(&DeviceId::parse("SN-1").unwrap()).await.unwrap().unwrap();
    assert_eq!((row.enrollment.as_str(), row.first_issued), ("lamp", None));
}

#[tokio::test]
async fn a_guess_at_a_held_device_counts_as_a_guess() {
    let bench = guarded(held());
    for number in 0..20 {
        bench.plug(&format!("GUESS-{number}")).await;
    }
    assert_eq!(bench.service.counters().refused_lookups(), 20);
}

#[tokio::test]
async fn a_held_device_is_answered_before_its_request_is_noted() {
    let bench = guarded(held());
    let principal = bench.principal("plug-identity").await;
    let mut codes = Vec::new();
    // None of these requests waits for the disk, so each is counted before the next one.
    for number in 0..200 {
        let request = get().query(&format!("sn=GUESS-{number}"));
        match bench.answer(&principal, &request) {
            Answer::Now(response) => codes.push(response.code),
            Answer::Later(work) => codes.push(work.now_or_never().expect("an answer at once").code),
        }
    }
    let held = codes.iter().filter(|code| **code == Code::ServiceUnavailable).count();
    assert!((100..150).contains(&held), "{held}");
    assert_eq!(codes.iter().filter(|code| **code == Code::TooManyRequests).count(), 200 - held);
    assert_eq!(bench.waiting().await.len(), 100, "they are noted");
}

#[tokio::test]
async fn a_closed_or_not_yet_open_enrollment_notes_and_adds_no_device() {
    let now = Bench::new().store.now();
    for unlisted in [Unlisted::Hold, Unlisted::Admit] {
        let not_open = guarded(Guards { opens: Some(now + 9000), unlisted, ..Guards::default() });
        assert_eq!(title(&not_open.ask_itself("SN-NEW").await), "enrollment is not open yet");
        let closed = guarded(Guards { closes: Some(now - 1), unlisted, ..Guards::default() });
        assert_eq!(title(&closed.ask_itself("SN-NEW").await), "enrollment is closed");
        for bench in [not_open, closed] {
            assert!(bench.waiting().await.is_empty());
            assert_eq!(bench.store.device(&DeviceId::parse("SN-NEW").unwrap()).await.unwrap(), None);
        }
    }
}

#[tokio::test]
async fn no_device_is_added_for_an_answer_that_is_dropped() {
    let bench = guarded(Guards { unlisted: Unlisted::Admit, ..Guards::default() });
    let principal = bench.principal("SN-NEW").await;
    let Answer::Later(work) = bench.service.answer(Instant::now(), home(), &principal, &get().0, false)
    else {
        panic!("an answer at once")
    };
    assert!(work.now_or_never().is_none());
    // If a write had been queued before this probe, the write would be done now.
    bench.store.probe().await.unwrap();
    assert_eq!(bench.store.device(&DeviceId::parse("SN-NEW").unwrap()).await.unwrap(), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn an_unlisted_device_is_admitted_exactly_once() {
    let bench = guarded(Guards { unlisted: Unlisted::Admit, ..Guards::default() });
    let principal = bench.principal("SN-NEW").await;
    let asking = (0..30).map(|_| {
        let (service, principal) = (bench.service.clone(), principal.clone());
        tokio::spawn(async move {
            match service.answer(Instant::now(), home(), &principal, &get().0, true) {
                Answer::Now(response) => response,
                Answer::Later(work) => work.await,
            }
        })
    });
    for answer in join_all(asking).await {
        assert_eq!(name(&answer.unwrap()), "SN-NEW");
    }
    assert_eq!((bench.admitted("SN-NEW").await, bench.cloud.registrations()), (1, 1));
    let row = bench.store.device(&DeviceId::parse("SN-NEW").unwrap()).await.unwrap().unwrap();
    assert_eq!((row.enrollment.as_str(), row.product_key.as_str()), ("lamp", "a1lamp"));
}

#[tokio::test]
async fn an_enrollment_admits_only_as_many_devices_as_it_takes() {
    // Two devices of `plug` are in the table.
    let guards = Guards { unlisted: Unlisted::Admit, max_devices: Some(3), ..Guards::default() };
    let bench = guarded(guards);
    assert_eq!(name(&bench.plug("PLUG-NEW").await), "PLUG-NEW");
    for number in 0..5 {
        let answer = bench.plug(&format!("INVENTED-{number}")).await;
        assert_eq!((answer.code, title(&answer).as_str()), (Code::Forbidden, "enrollment is full"));
    }
    for device in ["PLUG-1", "PLUG-2"] {
        assert_eq!(name(&bench.plug(device).await), device);
    }
    // A device of another enrollment is not changed, and gets the same answer as a device that does
    // not exist.
    let foreign = bench.plug("OWN-1").await;
    assert_eq!((foreign.code, title(&foreign).as_str()), (Code::Forbidden, "enrollment is full"));
    assert_eq!(bench.admitted("OWN-1").await, 0);
}

#[tokio::test]
async fn a_guess_at_an_admitting_enrollment_is_refused_without_the_writer() {
    let guess = |bench: &Bench, principal: &Principal, device: &str| match bench
        .answer(principal, &get().query(&format!("sn={device}")))
    {
        Answer::Now(response) => Some(response.code),
        Answer::Later(work) => work.now_or_never().map(|response| response.code),
    };
    // Two devices of `plug` are in the table.
    for (max, foreign, free) in [(2, Code::Forbidden, Some(Code::Forbidden)), (3, Code::NotFound, None)] {
        let bench =
            guarded(Guards { unlisted: Unlisted::Admit, max_devices: Some(max), ..Guards::default() });
        let principal = bench.principal("plug-identity").await;
        assert_eq!(guess(&bench, &principal, "OWN-1"), Some(foreign));
        assert_eq!(guess(&bench, &principal, "FREE-1"), free);
    }
}

#[tokio::test]
async fn an_id_whose_name_is_taken_counts_as_a_guess() {
    let bench = guarded(Guards { unlisted: Unlisted::Admit, max_devices: Some(9), ..Guards::default() });
    import(&*bench.store, [ImportRow { device_name: Some("NAMED".into()), ..row("PLUG-3", "plug") }]);
    assert_eq!(bench.plug("NAMED").await.code, Code::BadGateway);
    assert_eq!(bench.service.counters().refused_lookups(), 1);
    assert_eq!(bench.plug("OWN-1").await.code, Code::NotFound);
    assert_eq!(bench.service.counters().refused_lookups(), 2);
}

#[tokio::test]
async fn a_plain_client_of_a_derived_enrollment_adds_no_device() {
    let bench = guarded(Guards { unlisted: Unlisted::Admit, ..Guards::default() });
    // A client of plain CoAP has not proven which device it is.
    let principal = Principal { device: None, ..bench.principal("SN-NEW").await };
    let request = get().query("sn=SN-NEW");
    let Answer::Later(work) = bench.answer(&principal, &request) else { panic!("an answer at once") };
    assert_eq!(work.await.code, Code::NotFound);
    assert_eq!(bench.store.device(&DeviceId::parse("SN-NEW").unwrap()).await.unwrap(), None);
}
