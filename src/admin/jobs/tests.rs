//! Tests of jobs on a store in memory, in virtual time.

use tokio::runtime::Handle;

use super::{record::Recorded, *};
use crate::{
    iot_platform::Action as Call,
    registrar::{self, Registrar, Targets},
    seal::Keyring,
    store::{
        DeviceRow,
        claim::Owner,
        filter::{State, Text},
        sealed::Sealed,
    },
    testing::{
        cloud::{Cloud, Scripted},
        store::Memory,
    },
};

struct Bench {
    jobs: Jobs,
    memory: Memory,
    store: Arc<dyn Table>,
    registrar: Arc<Registrar>,
    cloud: Arc<Cloud>,
}

fn id(text: &str) -> DeviceId {
    DeviceId::parse(text).unwrap()
}

fn device(number: usize) -> String {
    format!("SN-{number:04}")
}

impl Bench {
    fn new(devices: usize) -> Self {
        let memory = Memory::default();
        for number in 0..devices {
            memory.insert(DeviceRow::imported(id(&device(number)), "lamps", "a1"));
        }
        let store: Arc<dyn Table> = Arc::new(Sealed::new(memory.clone(), Keyring::default()));
        let cloud = Arc::new(Cloud::default());
        let config = registrar::Config { seed: Some(1), ..registrar::Config::default() };
        let owner = Owner::new("test").unwrap();
        let registrar = Registrar::new(config, owner, store.clone(), cloud.clone(), Handle::current());
        Self { jobs: Jobs::new([7; 32]), memory, store, registrar, cloud }
    }

    fn begin(&self, action: Action, target: Target, expected: u64) -> Result<Arc<Job>, NotBegun> {
        let by = Actor { name: "console:anna".into(), address: None };
        let order = Order { action, target, expected, by };
        self.jobs.begin(
            order,
            None,
            self.store.clone(),
            Targets::only(self.registrar.clone()),
            Arc::default(),
        )
    }

    async fn run(&self, action: Action, target: Target, expected: u64) -> Progress {
        let job = self.begin(action, target, expected).unwrap();
        self.end_of(&job).await
    }

    async fn end_of(&self, job: &Job) -> Progress {
        loop {
            let progress = job.progress();
            if progress.end.is_some() {
                return progress;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    fn count(&self, state: State) -> u64 {
        let filter = Filter { state: Some(state), ..Filter::default() };
        self.store.tally(&filter, Duration::ZERO).unwrap().devices
    }
}

fn all() -> Target {
    Target::Filter(Filter::default())
}

fn how(progress: &Progress) -> &How {
    &progress.end.as_ref().expect("it has ended").1
}

#[tokio::test(start_paused = true)]
async fn a_job_changes_the_devices_of_its_filter_and_names_the_operator_for_each() {
    let bench = Bench::new(1000);
    let ends = Filter { text: Some(Text::Ends("7".into())), ..Filter::default() };
    let progress = bench.run(Action::Disable, Target::Filter(ends), 100).await;
    assert_eq!((progress.changed, how(&progress)), (100, &How::Complete), "{progress:?}");
    assert_eq!(bench.count(State::Disabled), 100);
    let history = bench.store.history(&id("SN-0017"), 9).await.unwrap();
    let [entry] = &history[..] else { panic!("{history:?}") };
    assert_eq!((entry.event.name(), entry.who.as_deref()), ("disabled", Some("console:anna")));

    let progress = bench.run(Action::Disable, all(), 1000).await;
    assert_eq!((progress.changed, progress.unchanged), (900, 100));
    assert_eq!(bench.store.history(&id("SN-0017"), 9).await.unwrap().len(), 1, "it was disabled already");
    assert_eq!(bench.run(Action::Enable, all(), 1000).await.changed, 1000);
    assert_eq!(bench.run(Action::Delete, all(), 1000).await.changed, 1000);
    assert_eq!(bench.store.count().unwrap(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_list_counts_the_devices_that_are_gone() {
    let bench = Bench::new(3);
    let ids: Arc<[DeviceId]> = ["SN-0002", "SN-9999", "SN-0000"].map(id).into();
    let progress = bench.run(Action::Disable, Target::List(ids), 3).await;
    assert_eq!((progress.changed, progress.absent, how(&progress)), (2, 1, &How::Complete));
    assert_eq!(bench.memory.row(&id("SN-0001")).unwrap().state, DeviceState::Enabled);
}

#[tokio::test(start_paused = true)]
async fn no_more_devices_are_changed_than_were_confirmed() {
    let bench = Bench::new(250);
    let progress = bench.run(Action::Delete, all(), 120).await;
    assert_eq!((progress.changed, how(&progress)), (120, &How::More));
    assert_eq!(bench.store.count().unwrap(), 130);
    let progress = bench.run(Action::Register, all(), 7).await;
    assert_eq!((progress.changed, how(&progress)), (7, &How::More));
}

#[tokio::test(start_paused = true)]
async fn a_job_that_is_stopped_ends_after_its_step_and_says_who_stopped_it() {
    let bench = Bench::new(1000);
    let job = bench.begin(Action::Disable, all(), 1000).unwrap();
    while job.progress().changed == 0 {
        tokio::task::yield_now().await;
    }
    job.stop("console:ben");
    job.stop("console:eve");
    let progress = bench.end_of(&job).await;
    assert_eq!(how(&progress), &How::Stopped("console:ben".into()));
    assert!(progress.done() < 1000 && progress.changed == bench.count(State::Disabled), "{progress:?}");

    // IoT Platform does not answer, so the registrations are in progress for a long time.
    bench.run(Action::Enable, all(), 1000).await;
    bench.cloud.script((0..500).map(|_| Scripted::Slow(Duration::from_secs(36_000))));
    let job = bench.begin(Action::Register, all(), 1000).unwrap();
    while bench.registrar.registrations() == 0 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(bench.registrar.registrations() <= IN_PROGRESS);
    job.stop("console:ben");
    assert_eq!(how(&bench.end_of(&job).await), &How::Stopped("console:ben".into()));
}

#[tokio::test(start_paused = true)]
async fn only_a_few_jobs_run_at_once_and_old_ones_are_forgotten() {
    let bench = Bench::new(300);
    let running: Vec<Arc<Job>> =
        (0..MOST_RUNNING).map(|_| bench.begin(Action::Disable, all(), 300).unwrap()).collect();
    assert!(matches!(bench.begin(Action::Enable, all(), 300).err(), Some(NotBegun::Busy)));
    for job in &running {
        bench.end_of(job).await;
    }
    for _ in 0..REMEMBERED {
        bench.run(Action::Reset, all(), 300).await;
    }
    assert_eq!(bench.jobs.all().len(), REMEMBERED);
    assert!(matches!(bench.jobs.find(&running[0].id), Known::Elsewhere));
    let forgotten = record::find(&*bench.store, &running[0].id, Duration::from_secs(9)).unwrap();
    assert!(matches!(forgotten, Recorded::Job(job) if job.progress() == running[0].progress()));
    let newest = bench.jobs.all()[0].id.clone();
    assert!(matches!(bench.jobs.find(&newest), Known::Job(job) if job.id == newest));
    assert!(matches!(bench.jobs.find("6-0123abcd"), Known::Elsewhere));
    for text in
        ["<script>", "6-1", "-1234abcd", "+6-1234abcd", "6-1234abcde", "99999999999999999999-1234abcd"]
    {
        assert!(matches!(bench.jobs.find(text), Known::Unknown), "{text}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_that_is_busy_is_asked_again_and_one_that_stays_busy_ends_the_job() {
    let bench = Bench::new(10);
    bench.memory.set_busy(true);
    let job = bench.begin(Action::Disable, Target::List(vec![id("SN-0001")].into()), 1).unwrap();
    tokio::time::sleep(PATIENCE / 2).await;
    bench.memory.set_busy(false);
    assert_eq!(bench.end_of(&job).await.changed, 1);
    bench.memory.set_busy(true);
    let progress = bench.run(Action::Enable, Target::List(vec![id("SN-0001")].into()), 1).await;
    assert!(matches!(how(&progress), How::Failed(reason) if reason.contains("disk is full")), "{progress:?}");
}

#[tokio::test(start_paused = true)]
async fn registrations_go_the_usual_way_and_failures_are_grouped_by_reason() {
    let bench = Bench::new(120);
    let disabled = DeviceRow { state: DeviceState::Disabled, ..bench.memory.row(&id("SN-0000")).unwrap() };
    bench.memory.insert(disabled);
    let refused =
        |text: &str| DeviceRow { refusal: Some(text.into()), ..bench.memory.row(&id("SN-0001")).unwrap() };
    bench.memory.insert(refused("odd"));
    let progress = bench.run(Action::Register, all(), 120).await;
    assert_eq!((progress.changed, progress.unchanged, progress.failed), (118, 0, 0), "{progress:?}");
    assert_eq!(
        (progress.disabled, progress.refused, progress.done()),
        (1, 1, 120),
        "they are not registered"
    );
    let progress = bench.run(Action::Register, all(), 120).await;
    assert_eq!((progress.changed, progress.unchanged, progress.done()), (0, 118, 120), "{progress:?}");
    assert_eq!(bench.cloud.devices(), 118);
    assert_eq!(bench.count(State::Registered), 118);

    let bench = Bench::new(5);
    bench.cloud.refuse(Call::RegisterDevice, "Forbidden.RAM");
    let progress = bench.run(Action::Register, all(), 5).await;
    assert_eq!((progress.failed, progress.reasons.len()), (5, 1), "{progress:?}");
}

#[tokio::test(start_paused = true)]
async fn a_server_that_shuts_down_ends_its_jobs() {
    let bench = Bench::new(300);
    bench.registrar.drain(Duration::ZERO).await;
    assert_eq!(how(&bench.run(Action::Disable, all(), 300).await), &How::ShuttingDown);
    assert_eq!(bench.count(State::Disabled), 0);
}

#[test]
fn each_action_has_a_name_and_changes_only_what_needs_it() {
    for action in Action::ALL {
        assert_eq!(Action::named(action.name()), Some(action));
    }
    let row = DeviceRow::imported(id("SN-1"), "lamps", "a1");
    let listed = |row: &DeviceRow| Listed::new(row.id.clone(), &row.seen(), false);
    let refused = DeviceRow { refusal: Some("odd".into()), ..row.clone() };
    let issued = DeviceRow { first_issued: Some(1), ..row.clone().with_certificate("SN-1", "s3cret") };
    let gone = DeviceRow {
        cloud_state: Some(CloudState::Deleted),
        ..row.clone().with_certificate("SN-1", "s3cret")
    };
    let disabled = DeviceRow { state: DeviceState::Disabled, ..row.clone() };
    use Action::*;
    for (row, actions) in [
        (&row, &[Register, Disable, Delete][..]),
        (&refused, &[Reset, Disable, Delete]),
        (&issued, &[Reset, Disable, Delete]),
        (&gone, &[Reset, Disable, Delete]),
        (&disabled, &[Enable, Delete]),
    ] {
        let changes: Vec<Action> =
            Action::ALL.into_iter().filter(|action| action.changes(&listed(row))).collect();
        assert_eq!(changes, actions, "{row:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_log_has_the_beginning_and_the_end_of_a_job_and_of_no_other() {
    let bench = Bench::new(30);
    let find = |id: &str| record::find(&*bench.store, id, Duration::from_secs(9)).unwrap();
    let running = bench.begin(Action::Reset, all(), 30).unwrap();
    let Recorded::Job(job) = find(&running.id) else { panic!("it has begun") };
    assert_eq!(
        (job.order.action, job.order.expected, how(&job.progress())),
        (Action::Reset, 30, &How::Unrecorded)
    );
    bench.end_of(&running).await;
    let stopped = bench.begin(Action::Disable, all(), 30).unwrap();
    stopped.stop("console:ben");
    let progress = bench.end_of(&stopped).await;
    let Recorded::Job(job) = find(&stopped.id) else { panic!("it has ended") };
    assert_eq!((job.progress(), how(&progress)), (progress.clone(), &How::Stopped("console:ben".into())));
    assert_eq!((&*job.order.by.name, job.began), ("console:anna", stopped.began));
    let unfinished = || record::unfinished(&*bench.store, 0, Duration::from_secs(9)).unwrap();
    assert_eq!(unfinished().len(), 0);
    let third = bench.begin(Action::Enable, all(), 30).unwrap();
    let ids: Vec<String> = unfinished().into_iter().map(|job| job.id.clone()).collect();
    assert_eq!(ids, std::slice::from_ref(&third.id));
    bench.end_of(&third).await;
    let other = format!("{}-00000000", stopped.began);
    assert!(matches!(find(&other), Recorded::None), "such a number was never given out");
    assert_eq!(bench.store.verify_audit(&mut |_, _| ()).unwrap().fault, None);
}

#[tokio::test(start_paused = true)]
async fn a_job_ends_when_the_server_stops_and_the_stop_does_not_wait_for_long() {
    let bench = Bench::new(1000);
    let job = bench.begin(Action::Disable, all(), 1000).unwrap();
    while job.progress().changed == 0 {
        tokio::task::yield_now().await;
    }
    bench.registrar.drain(Duration::ZERO).await;
    bench.jobs.end().await;
    assert_eq!(how(&job.progress()), &How::ShuttingDown);
    let recorded = record::find(&*bench.store, &job.id, Duration::from_secs(9)).unwrap();
    assert!(matches!(recorded, Recorded::Job(recorded) if recorded.progress() == job.progress()));
    let bench = Bench::new(10);
    bench.memory.set_busy(true);
    bench.begin(Action::Disable, Target::List([id("SN-0001")].into()), 1).unwrap();
    tokio::time::sleep(RETRY / 2).await;
    let begun = Instant::now();
    bench.jobs.end().await;
    assert!(begun.elapsed() <= END + MIN_PAUSE, "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_confirmation_that_comes_twice_begins_one_job() {
    let bench = Bench::new(3);
    let by = Actor { name: "console:anna".into(), address: None };
    let order = Order { action: Action::Disable, target: all(), expected: 3, by };
    let token = bench.jobs.preview(&*bench.store).await.unwrap();
    let begin = async |token: &str| {
        let confirmed = bench.jobs.confirm(
            order.clone(),
            token,
            bench.store.clone(),
            Targets::only(bench.registrar.clone()),
            Arc::default(),
        );
        confirmed.await
    };
    let job = begin(&token).await.unwrap();
    assert!(matches!(begin(&token).await.err(), Some(NotBegun::Again(id)) if id == job.id));
    bench.end_of(&job).await;
    assert!(matches!(begin(&token).await.err(), Some(NotBegun::Again(id)) if id == job.id));
    assert!(matches!(begin("").await.err(), Some(NotBegun::NotPreviewed)));
    assert_eq!(bench.jobs.all().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_job_that_has_begun_since_the_preview_must_be_seen_first() {
    let bench = Bench::new(300);
    let by = Actor { name: "console:anna".into(), address: None };
    let order = |action| Order { action, target: all(), expected: 300, by: by.clone() };
    let preview = async || bench.jobs.preview(&*bench.store).await.unwrap();
    let [first, second] = [preview().await, preview().await];
    let begin = async |action, token: &str| {
        let confirmed = bench.jobs.confirm(
            order(action),
            token,
            bench.store.clone(),
            Targets::only(bench.registrar.clone()),
            Arc::default(),
        );
        confirmed.await
    };
    let job = begin(Action::Disable, &first).await.unwrap();
    assert!(
        matches!(begin(Action::Enable, &second).await.err(), Some(NotBegun::Meanwhile(id)) if id == job.id)
    );
    // A preview that is shown after a job has begun names that job, so it can be confirmed.
    let third = preview().await;
    begin(Action::Enable, &third).await.unwrap();
    let fourth = preview().await;
    bench.end_of(&job).await;
    bench.end_of(&bench.jobs.all()[0]).await;
    begin(Action::Enable, &fourth).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_preview_is_confirmed_once_also_at_another_server() {
    let bench = Bench::new(300);
    let other = Jobs::new([8; 32]);
    let by = Actor { name: "console:anna".into(), address: None };
    let order = Order { action: Action::Disable, target: all(), expected: 300, by };
    let confirm = async |jobs: &Jobs, token: &str| {
        let targets = Targets::only(bench.registrar.clone());
        jobs.confirm(order.clone(), token, bench.store.clone(), targets, Arc::default()).await
    };
    let token = bench.jobs.preview(&*bench.store).await.unwrap();
    let late = bench.jobs.preview(&*bench.store).await.unwrap();
    let job = confirm(&other, &token).await.unwrap();
    let again = confirm(&bench.jobs, &token).await.err();
    assert!(matches!(again, Some(NotBegun::Again(id)) if id == job.id));
    // The job that the other server has begun is not among those that the first server's preview has
    // shown.
    let meanwhile = confirm(&other, &late).await.err();
    assert!(matches!(meanwhile, Some(NotBegun::Meanwhile(id)) if id == job.id));
    bench.end_of(&job).await;
    confirm(&other, &late).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_enrollment_closes_by_the_clock_of_the_store() {
    use crate::{
        guards::Guards,
        psk::{Enrollment, Kind},
    };
    let bench = Bench::new(1);
    let closes = Some(bench.store.now() + 1000);
    let enrollment = Enrollment {
        name: "lamps".into(),
        product_key: "a1".into(),
        kind: Kind::Individual,
        reissue: Reissue::Always,
        next: None,
        guards: Guards { closes, ..Guards::default() },
    };
    let registration = |id: &str| {
        let by = Actor { name: "console:anna".into(), address: None };
        let order = Order { action: Action::Register, target: all(), expected: 1, by };
        Worker {
            job: Arc::new(Job::new(id.into(), order, 0, Progress::default())),
            store: bench.store.clone(),
            targets: Targets::only(bench.registrar.clone()),
            enrollments: Arc::new(vec![enrollment.outline()]),
        }
    };
    // The cloud's clock is ahead of this machine's.
    bench.store.set_clock_ahead(2000);
    let late = registration("1");
    late.register(&id("SN-0000")).await;
    assert_eq!((late.job.progress().failed, bench.cloud.registrations()), (1, 0));
    bench.store.set_clock_ahead(0);
    let early = registration("2");
    early.register(&id("SN-0000")).await;
    assert_eq!((early.job.progress().changed, bench.cloud.registrations()), (1, 1));
}
