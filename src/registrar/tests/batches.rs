//! Tests with many devices at once, in virtual time: batches, the cloud's limits, and fairness
//! between products.

use super::*;
use crate::{iot_platform::Action, testing::store::Memory};

/// Returns a row without a certificate.
pub(super) fn row(device: &str, enrollment: &str, product_key: &str) -> DeviceRow {
    DeviceRow::imported(id(device), enrollment, product_key)
}

pub(super) fn name(number: usize) -> String {
    format!("SN{number:05}")
}

pub(super) struct Crowd {
    pub(super) registrar: Arc<Registrar>,
    pub(super) store: Memory,
    pub(super) cloud: Arc<Cloud>,
    pub(super) start: Instant,
}

impl Crowd {
    /// Creates a registrar, and a table with `devices` rows of product a1.
    fn new(devices: usize, config: Config) -> Self {
        Self::on(Arc::default(), devices, config)
    }

    /// Does the same as [`new`](Self::new), with a cloud that other registrars may use, too.
    pub(super) fn on(cloud: Arc<Cloud>, devices: usize, config: Config) -> Self {
        let store = Memory::default();
        for number in 0..devices {
            store.insert(row(&name(number), "lamp", "a1"));
        }
        cloud.set_batch_delay(Duration::from_secs(5));
        let config = Config { seed: Some(1), ..config };
        let registrar =
            Registrar::new(config, owner(), Arc::new(store.clone()), cloud.clone(), Handle::current());
        Self { registrar, store, cloud, start: Instant::now() }
    }

    pub(super) fn ask(
        &self,
        device: &str,
        product_key: &str,
    ) -> tokio::task::JoinHandle<(Outcome, Duration)> {
        let wanted = JournalEntry { product_key: product_key.into(), ..wanted(device) };
        let (registrar, start) = (self.registrar.clone(), self.start);
        tokio::spawn(async move {
            loop {
                match registrar.register(wanted.clone(), PATIENCE).await {
                    Outcome::Later(pause) => tokio::time::sleep(pause).await,
                    Outcome::TimedOut => tokio::time::sleep(Duration::from_secs(5)).await,
                    outcome => return (outcome, start.elapsed()),
                }
            }
        })
    }

    /// Lets all devices ask within about a second. Returns the time until the last one is
    /// registered.
    pub(super) async fn all_ask(&self, devices: usize) -> Duration {
        let mut asking = Vec::new();
        for number in 0..devices {
            asking.push(self.ask(&name(number), "a1"));
            // Timers have a resolution of one millisecond, so several devices ask before each
            // pause.
            if number % devices.div_ceil(1000) == 0 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
        let mut last = Duration::ZERO;
        for one in asking {
            let (outcome, took) = one.await.unwrap();
            assert!(matches!(outcome, Outcome::Registered(_)), "{outcome:?}");
            last = last.max(took);
        }
        last
    }

    pub(super) fn no_limit_was_exceeded(&self) {
        for action in Action::ALL {
            let most = self.cloud.busiest_second(action);
            assert!(most <= action.calls_per_second() as usize, "{} {most} times", action.name());
        }
    }

    pub(super) async fn journal_is_empty(&self) {
        assert_eq!(self.store.open_entries().await.unwrap(), []);
        assert_eq!(self.store.open_batches().await.unwrap(), []);
    }
}

#[tokio::test(start_paused = true)]
async fn ten_thousand_are_registered_in_seconds_and_within_the_limits() {
    let crowd = Crowd::new(10_000, Config::default());
    let took = crowd.all_ask(10_000).await;
    println!("{took:?}, {:?}", crowd.registrar.counters());
    // The batch has two steps of 5 s each, and 200 pages at about 40 pages a second.
    assert!(took < Duration::from_secs(20), "{took:?}");
    assert_eq!(crowd.cloud.devices(), 10_000);
    crowd.no_limit_was_exceeded();
    crowd.journal_is_empty().await;
}

#[tokio::test(start_paused = true)]
async fn a_busy_store_sends_a_device_away_before_it_gives_up() {
    let crowd = Crowd::new(1, Config::default());
    crowd.store.set_busy(true);
    let outcome = crowd.registrar.register(wanted(&name(0)), PATIENCE).await;
    assert!(matches!(outcome, Outcome::Later(_)), "{outcome:?}");
    assert!(crowd.start.elapsed() < Duration::from_secs(2), "{:?}", crowd.start.elapsed());
    assert_eq!(crowd.cloud.registrations(), 0);
    crowd.store.set_busy(false);
    let outcome = crowd.registrar.register(wanted(&name(0)), PATIENCE).await;
    assert!(matches!(outcome, Outcome::Registered(_)), "{outcome:?}");
}

#[tokio::test(start_paused = true)]
async fn a_busy_store_turns_all_that_wait_away_together() {
    let crowd = Crowd::new(64, Config { max_batches: 0, ..Config::default() });
    crowd.store.set_busy(true);
    let all = (0..64).map(|number| {
        let registrar = crowd.registrar.clone();
        async move { registrar.register(wanted(&name(number)), PATIENCE).await }
    });
    let outcomes = futures_util::future::join_all(all).await;
    assert!(outcomes.iter().all(|outcome| matches!(outcome, Outcome::Later(_))), "{outcomes:?}");
    assert!(crowd.start.elapsed() < Duration::from_secs(2), "{:?}", crowd.start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_busy_store_holds_no_batch_up() {
    let crowd = Crowd::new(1000, Config::default());
    crowd.store.set_busy(true);
    let asking: Vec<_> = (0..1000).map(|number| crowd.ask(&name(number), "a1")).collect();
    tokio::time::sleep(Duration::from_secs(20)).await;
    assert_eq!(crowd.registrar.registrations(), 0, "all were asked to retry later");
    assert_eq!(crowd.cloud.calls(Action::BatchCheckDeviceNames), 0);
    crowd.store.set_busy(false);
    for one in asking {
        assert!(matches!(one.await.unwrap().0, Outcome::Registered(_)));
    }
}

#[tokio::test(start_paused = true)]
async fn a_busy_store_holds_no_shutdown_up() {
    let crowd = Crowd::new(40, Config { max_batches: 0, ..Config::default() });
    crowd.cloud.script(vec![Scripted::Refuse(ErrorClass::TryAgain); 1000]);
    let asking: Vec<_> = (0..40).map(|number| crowd.ask(&name(number), "a1")).collect();
    tokio::time::sleep(Duration::from_secs(2)).await;
    // After a failed call, registrations wait in the queue with their claims.
    assert!(crowd.registrar.waiting() > 0);
    crowd.store.set_busy(true);
    let begun = Instant::now();
    crowd.registrar.drain(Duration::from_secs(5)).await;
    assert!(begun.elapsed() < Duration::from_secs(6), "{:?}", begun.elapsed());
    asking.iter().for_each(tokio::task::JoinHandle::abort);
}

#[tokio::test(start_paused = true)]
async fn a_line_that_single_calls_serve_soon_makes_no_batch() {
    let crowd = Crowd::new(45, Config::default());
    let took = crowd.all_ask(45).await;
    assert!(took < Duration::from_secs(3), "{took:?}");
    assert_eq!(crowd.cloud.calls(Action::BatchCheckDeviceNames), 0);
}

#[tokio::test(start_paused = true)]
async fn who_comes_while_a_batch_is_in_the_air_has_a_call_of_its_own() {
    let crowd = Crowd::new(1000, Config::default());
    crowd.store.insert(row("late", "lamp", "a1"));
    let others = crowd.all_ask(1000);
    let late = async {
        tokio::time::sleep(Duration::from_secs(8)).await;
        let came = crowd.start.elapsed();
        let (outcome, took) = crowd.ask("late", "a1").await.unwrap();
        assert!(matches!(outcome, Outcome::Registered(_)));
        took - came
    };
    let (_, waited) = tokio::join!(others, late);
    assert!(waited < Duration::from_secs(1), "{waited:?}");
}

#[tokio::test(start_paused = true)]
async fn one_products_storm_does_not_starve_another() {
    let crowd = Crowd::new(2000, Config { max_batches: 0, ..Config::default() });
    crowd.store.insert(row("other", "plug", "a2"));
    for number in 0..2000 {
        crowd.ask(&name(number), "a1");
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    let came = crowd.start.elapsed();
    let (outcome, took) = crowd.ask("other", "a2").await.unwrap();
    assert!(matches!(outcome, Outcome::Registered(_)));
    assert!(took - came < Duration::from_secs(3), "{:?}", took - came);
}

#[tokio::test(start_paused = true)]
async fn names_that_exist_are_looked_up_by_the_hundred() {
    let crowd = Crowd::new(1000, Config::default());
    for number in 100..900 {
        crowd.cloud.make("a1", &name(number));
    }
    crowd.all_ask(1000).await;
    assert_eq!(crowd.cloud.devices(), 1000);
    assert!(crowd.cloud.calls(Action::BatchQueryDeviceDetail) <= 10);
    assert!(crowd.cloud.calls(Action::QueryDeviceDetail) <= 60, "those with single calls");
    assert_eq!(crowd.registrar.counters().recovered, 800);
    crowd.no_limit_was_exceeded();
    crowd.journal_is_empty().await;
}

#[tokio::test(start_paused = true)]
async fn names_that_exist_and_are_not_ours_are_left_alone_where_the_policy_says_so() {
    let config = Config { refuse_existing: ["lamp".to_owned()].into(), ..Config::default() };
    let crowd = Crowd::new(300, config);
    for number in 0..300 {
        if number % 3 == 0 {
            crowd.cloud.make("a1", &name(number));
        }
    }
    let asking: Vec<_> = (0..300).map(|number| crowd.ask(&name(number), "a1")).collect();
    for (number, one) in asking.into_iter().enumerate() {
        let (outcome, _) = one.await.unwrap();
        let stored = crowd.store.row(&id(&name(number))).unwrap();
        if number % 3 == 0 {
            assert!(matches!(outcome, Outcome::Refused(_)), "{outcome:?}");
            assert!(stored.refusal.unwrap().contains("not registered by this server"));
            assert_eq!(stored.certificate, None);
        } else {
            assert!(matches!(outcome, Outcome::Registered(_)), "{outcome:?}");
        }
    }
    crowd.journal_is_empty().await;
}

#[tokio::test(start_paused = true)]
async fn a_lost_answer_is_ours_even_where_existing_names_are_refused() {
    let config = Config { refuse_existing: ["lamp".to_owned()].into(), ..Config::default() };
    let crowd = Crowd::new(2, config);
    crowd.cloud.script([Scripted::CreateAndLose(ErrorClass::TimedOut)]);
    let (outcome, _) = crowd.ask(&name(0), "a1").await.unwrap();
    assert!(matches!(outcome, Outcome::Registered(_)), "{outcome:?}");
    // A device that was created a day before its journal entry cannot result from a call of ours
    // whose answer was lost.
    let day_ago = crate::store::unix_now() - 86_400;
    crowd.cloud.make("a1", &name(1));
    crowd.cloud.change("a1", &name(1), |device| device.created = day_ago * 1000);
    crowd.cloud.script([Scripted::Refuse(ErrorClass::TimedOut)]);
    let (outcome, _) = crowd.ask(&name(1), "a1").await.unwrap();
    assert!(matches!(outcome, Outcome::Refused(_)), "{outcome:?}");
}

#[tokio::test(start_paused = true)]
async fn an_account_without_the_right_to_batches_goes_one_by_one() {
    let crowd = Crowd::new(300, Config::default());
    crowd.cloud.refuse(Action::BatchCheckDeviceNames, "Forbidden.RAM");
    let took = crowd.all_ask(300).await;
    assert!(took < Duration::from_secs(15), "{took:?}");
    assert_eq!(crowd.cloud.devices(), 300);
    assert!(crowd.cloud.calls(Action::BatchCheckDeviceNames) <= 2);
    assert_eq!(crowd.registrar.open_breakers(), 0);
    crowd.journal_is_empty().await;
}

#[tokio::test(start_paused = true)]
async fn a_batch_that_never_ends_is_given_up_and_its_devices_are_registered_singly() {
    let config = Config { batch_deadline: Duration::from_secs(60), ..Config::default() };
    let crowd = Crowd::new(200, config);
    crowd.cloud.set_batch_delay(Duration::from_secs(100_000));
    let took = crowd.all_ask(200).await;
    assert!(took < Duration::from_secs(120), "{took:?}");
    assert_eq!(crowd.cloud.devices(), 200);
    crowd.journal_is_empty().await;
}

#[tokio::test(start_paused = true)]
async fn after_a_refusal_one_tries_and_the_rest_follow_when_it_worked() {
    let crowd = Crowd::new(50, Config::default());
    crowd.cloud.script([Scripted::RefuseWith("Forbidden.RAM")]);
    let ask = |number: usize| crowd.registrar.register(wanted(&name(number)), PATIENCE);
    assert!(matches!(ask(0).await, Outcome::Operator(_)));
    assert!(matches!(ask(1).await, Outcome::Operator(_)));
    assert_eq!(crowd.cloud.registrations(), 1);
    tokio::time::sleep(Duration::from_secs(31)).await;
    assert!(matches!(ask(2).await, Outcome::Registered(_)));
    assert!(matches!(ask(3).await, Outcome::Registered(_)));
}

#[tokio::test(start_paused = true)]
async fn without_batches_a_crowd_is_told_when_its_turn_is() {
    let crowd = Crowd::new(2000, Config { max_batches: 0, ..Config::default() });
    for number in 0..1999 {
        crowd.ask(&name(number), "a1");
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    // About 1,970 devices are ahead of this device in the queue, and 25 are registered per second.
    let Outcome::Later(pause) = crowd.registrar.register(wanted(&name(1999)), PATIENCE).await else {
        panic!("it was kept waiting")
    };
    assert!((78..125).contains(&pause.as_secs()), "{pause:?}");
}

#[tokio::test(start_paused = true)]
async fn a_registrar_that_ends_sends_away_who_waits_and_leaves_the_rest_to_the_journal() {
    let crowd = Crowd::new(1000, Config::default());
    let asking: Vec<_> = (0..1000)
        .map(|number| {
            let registrar = crowd.registrar.clone();
            tokio::spawn(async move { registrar.register(wanted(&name(number)), PATIENCE).await })
        })
        .collect();
    // The batch is in progress and takes longer than the deadline of the drain.
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(crowd.registrar.drain(Duration::from_secs(1)).await > 800);
    let mut later = 0;
    for one in asking {
        match one.await.unwrap() {
            Outcome::Later(_) => later += 1,
            Outcome::Registered(_) => {}
            outcome => panic!("{outcome:?}"),
        }
    }
    assert!(later > 800, "{later}");
    assert_eq!(crowd.registrar.registrations(), 0);
    assert_eq!(crowd.store.open_batches().await.unwrap().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn what_a_process_leaves_between_two_looks_is_resumed_as_well() {
    let crowd = Crowd::new(1, Config::default());
    crowd.registrar.recover().await.unwrap();
    tokio::time::sleep(Duration::from_secs(30)).await;
    // Between two checks of the owners by this process, another process claims the device and ends.
    leave(&crowd.store, &name(0)).await;
    tokio::time::sleep(Duration::from_secs(15)).await;
    assert!(crowd.store.row(&id(&name(0))).unwrap().certificate.is_some());
    crowd.journal_is_empty().await;
}
