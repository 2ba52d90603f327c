//! Tests, in virtual time, of a process that is suspended for a while, for example together with
//! its virtual machine.

use super::{
    batches::{Crowd, name},
    *,
};
use crate::iot_platform::Action;

const STALL: Duration = Duration::from_secs(5);

#[tokio::test(start_paused = true)]
async fn calls_go_on_at_the_full_rate_after_a_stall_and_none_is_throttled() {
    let (devices, config) = (1000, Config { max_batches: 0, ..Config::default() });
    let crowd = Crowd::on(Arc::default(), devices, config);
    let asking: Vec<_> = (0..devices).map(|number| crowd.ask(&name(number), "a1")).collect();
    tokio::time::sleep(Duration::from_secs(5)).await;
    // Devices that were registered in the 10 s before the stall, and in the 10 s after it.
    let mut counts = [0; 2];
    for (index, count) in counts.iter_mut().enumerate() {
        let before = crowd.cloud.devices();
        tokio::time::sleep(Duration::from_secs(10)).await;
        *count = crowd.cloud.devices() - before;
        if index == 0 {
            // All timers that are due during the stall expire together at its end, before any task
            // runs.
            tokio::time::advance(STALL).await;
        }
    }
    assert_eq!(crowd.registrar.counters().throttled, 0);
    for action in Action::ALL {
        let most = crowd.cloud.busiest_second(action);
        assert!(most <= action.calls_per_second() as usize, "{} {most} times in a second", action.name());
    }
    asking.iter().for_each(tokio::task::JoinHandle::abort);
    let [before, after] = counts;
    assert!(before > 200 && after * 100 >= before * 95, "{before} before, {after} after");
}
