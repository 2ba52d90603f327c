//! Tests of crowds of many products, in virtual time. Each crowd must be registered in hardly more
//! time than the limits of the account allow.

use super::{
    batches::{Crowd, name, row},
    *,
};
use crate::{iot_platform::Action, testing::log::Log};

/// Creates a registrar with an empty table. Each step of a batch takes `delay` at the cloud.
fn without_devices(delay: Duration) -> Crowd {
    let crowd = Crowd::on(Arc::default(), 0, Config::default());
    crowd.cloud.set_batch_delay(delay);
    crowd
}

/// Registers several crowds at once. Each pair in `sizes` is the number of products in a crowd, and
/// the number of devices of each product. Returns the time until all devices are registered.
async fn register(crowd: &Crowd, sizes: &[(usize, usize)]) -> Duration {
    let (start, before) = (Instant::now(), crowd.cloud.devices());
    let mut wanted = Vec::new();
    for (products, devices) in sizes {
        for number in 0..products * devices {
            let product_key = format!("p{devices}-{}", number % products);
            let device = name(before + wanted.len());
            crowd.store.insert(row(&device, "lamp", &product_key));
            wanted.push(JournalEntry { product_key, ..super::wanted(&device) });
        }
    }
    let all = wanted.into_iter().map(|wanted| {
        let registrar = crowd.registrar.clone();
        tokio::spawn(async move { registrar.register(wanted, Duration::from_secs(86_400)).await })
    });
    for one in all.collect::<Vec<_>>() {
        let outcome = one.await.unwrap();
        assert!(matches!(outcome, Outcome::Registered(_)), "{outcome:?}");
    }
    let took = start.elapsed();
    crowd.no_limit_was_exceeded();
    crowd.journal_is_empty().await;
    assert_eq!(crowd.registrar.counters().throttled, 0);
    took
}

/// Asserts that a crowd took hardly more than the minimum time of `devices / rate` seconds. The
/// allowance covers the time in which the crowd gathers, the single calls for its last devices, and
/// the steps of its last batch.
fn took_hardly_more(took: Duration, devices: usize, rate: f64, delay: Duration) {
    let Config { gather, batch_after, .. } = Config::default();
    let allowed = Duration::from_secs_f64(1.1 * devices as f64 / rate) + gather + batch_after + delay * 3;
    println!("{took:?} of {allowed:?}");
    assert!(took < allowed, "{took:?}, but the limits allow for {allowed:?}");
}

/// Returns the rate, in devices a second, at which products of `each` devices are registered with
/// 25 single calls, 25 / 3 checks and 125 / 3 pages a second. These rates are the default share of
/// the account's limits.
fn rate(each: usize) -> f64 {
    let batches = (25.0 / 3.0_f64).min(125.0 / 3.0 / each.div_ceil(50) as f64);
    25.0 + batches * each as f64
}

#[tokio::test(start_paused = true)]
async fn small_products_are_registered_by_single_calls_and_batches_at_once() {
    for delay in [0, 5].map(Duration::from_secs) {
        let crowd = without_devices(delay);
        let took = register(&crowd, &[(300, 5)]).await;
        took_hardly_more(took, 1500, rate(5), delay);
        let singly = crowd.cloud.registrations();
        assert!((450..1000).contains(&singly), "{singly} single calls, and the rest in batches");
    }
}

#[tokio::test(start_paused = true)]
async fn products_with_a_page_of_devices_each_are_registered_at_the_pace_of_the_checks() {
    let crowd = without_devices(Duration::ZERO);
    let took = register(&crowd, &[(60, 50)]).await;
    took_hardly_more(took, 3000, rate(50), Duration::ZERO);
    // Almost every product has a single batch, because no check is spent on the few devices that
    // are left after the first batch.
    let batches = crowd.registrar.counters().batches as usize;
    assert!(batches <= 63, "{batches}");
    assert_eq!(crowd.cloud.calls(Action::QueryBatchRegisterDeviceStatus), 2 * batches);
}

#[tokio::test(start_paused = true)]
async fn a_batch_claims_its_devices_only_when_its_check_can_be_called() {
    let crowd = without_devices(Duration::ZERO);
    let most = async {
        let mut most = 0;
        for _ in 0..40 {
            tokio::time::sleep(Duration::from_millis(100)).await;
            most = most.max(crowd.registrar.batches());
        }
        most
    };
    let (_, most) = tokio::join!(register(&crowd, &[(60, 50)]), most);
    assert!((2..10).contains(&most), "{most} batches at once");
}

#[tokio::test(start_paused = true)]
async fn the_status_of_a_slow_batch_is_queried_when_it_is_probably_over() {
    let delay = Duration::from_secs(20);
    let crowd = without_devices(delay);
    let mut calls = [0, 0];
    for looks_per_batch in [20, 5] {
        let took = register(&crowd, &[(60, 50)]).await;
        took_hardly_more(took, 3000, rate(50), delay);
        let before = calls;
        calls = [Action::QueryBatchRegisterDeviceStatus, Action::BatchCheckDeviceNames]
            .map(|action| crowd.cloud.calls(action));
        let [looks, batches] = [0, 1].map(|index| calls[index] - before[index]);
        assert!(looks < looks_per_batch * batches, "{looks} looks at {batches} batches");
    }
}

#[tokio::test(start_paused = true)]
async fn a_large_product_and_small_ones_do_not_wait_for_each_other() {
    let took = register(&without_devices(Duration::ZERO), &[(1, 1500), (200, 5)]).await;
    took_hardly_more(took, 1000, rate(5), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn a_late_device_of_its_own_product_waits_no_longer_than_the_crowd() {
    let crowd = without_devices(Duration::ZERO);
    let storm = 3;
    for number in 0..storm * 400 {
        let product_key = format!("storm{}", number % storm);
        crowd.store.insert(row(&name(number), "lamp", &product_key));
        crowd.ask(&name(number), &product_key);
    }
    crowd.store.insert(row("other", "plug", "a2"));
    tokio::time::sleep(Duration::from_millis(100)).await;
    let came = crowd.start.elapsed();
    let (outcome, took) = crowd.ask("other", "a2").await.unwrap();
    assert!(matches!(outcome, Outcome::Registered(_)));
    // First, each of the other products has a turn of ten calls, at 25 calls a second.
    assert!(took - came < Duration::from_secs(2), "{:?}", took - came);
}

#[tokio::test(start_paused = true)]
async fn an_account_without_the_right_to_batches_tries_them_once_for_all_products() {
    let crowd = without_devices(Duration::ZERO);
    crowd.cloud.refuse(Action::BatchCheckDeviceNames, "Forbidden.RAM");
    let asking: Vec<_> = (0..500)
        .map(|number| {
            let product_key = format!("p{}", number % 50);
            crowd.store.insert(row(&name(number), "lamp", &product_key));
            crowd.ask(&name(number), &product_key)
        })
        .collect();
    for one in asking {
        assert!(matches!(one.await.unwrap().0, Outcome::Registered(_)));
    }
    assert!(crowd.start.elapsed() < Duration::from_secs(30), "{:?}", crowd.start.elapsed());
    // A few batches are in progress when the first is refused.
    let checks = crowd.cloud.calls(Action::BatchCheckDeviceNames);
    assert!((1..=4).contains(&checks), "{checks}");
    crowd.journal_is_empty().await;
}

#[tokio::test(start_paused = true)]
async fn a_crowd_writes_few_lines_and_each_device_is_counted() {
    let log = Log::default();
    let _logged = tracing::subscriber::set_default(log.subscriber());
    let config = Config { refuse_existing: ["lamp".to_owned()].into(), ..Config::default() };
    let crowd = Crowd::on(Arc::default(), 0, config);
    let devices = 600;
    let asking: Vec<_> = (0..devices)
        .map(|number| {
            let product_key = format!("p{}", number % 60);
            if number % 10 == 0 {
                crowd.cloud.make(&product_key, &name(number));
            }
            crowd.store.insert(row(&name(number), "lamp", &product_key));
            crowd.ask(&name(number), &product_key)
        })
        .collect();
    for one in asking {
        one.await.unwrap();
    }
    crowd.registrar.drain(PATIENCE).await;
    let log = log.text();
    assert!(log.lines().count() < 60, "{log}");
    // Counts the lines about single devices, and adds the numbers from the lines that count
    // suppressed lines.
    let counted = |own: &str, others: &str| {
        let others = log.lines().filter(|line| line.contains(others));
        let number = |line: &str| line.rsplit("devices=").next().unwrap().trim().parse::<usize>().unwrap();
        log.lines().filter(|line| line.contains(own)).count() + others.map(number).sum::<usize>()
    };
    assert_eq!(
        counted("the registration of this device is refused", "more devices are refused"),
        devices / 10,
        "{log}"
    );
    // An existing name that a single call finds has one more line.
    let registered = counted(" registered device=", "registered more devices")
        + log.matches("the name exists at IoT Platform; looking up").count();
    assert!((devices * 9 / 10..=devices).contains(&registered), "{registered}: {log}");
}
