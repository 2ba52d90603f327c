//! Tests of names that another party has created at IoT Platform: a server with a table of its own,
//! or a person at the console. Existing names are refused, so none of them may be adopted, however
//! short the time between the creation and the call of this server. Time is virtual.

use super::{
    batches::{Crowd, name},
    *,
};
use crate::{
    iot_platform::{Action, NONCE_USED},
    store::OpenBatch,
};

/// Settings under which existing names are refused. A failed call is repeated after a time in which
/// another party can create the name.
fn refusing() -> Config {
    Config {
        refuse_existing: ["lamp".to_owned()].into(),
        retry_pause: Duration::from_secs(5),
        ..Config::default()
    }
}

/// Checks that a device was refused because its name is not ours.
fn is_left_alone(crowd: &Crowd, device: &str, outcome: &Outcome) {
    assert!(matches!(outcome, Outcome::Refused(_)), "{device}: {outcome:?}");
    let row = crowd.store.row(&id(device)).unwrap();
    assert!(row.refusal.unwrap().starts_with("NameIsTaken"), "{device}");
    assert_eq!(row.certificate, None, "{device}");
}

/// Lets two servers with tables of their own register the same names, the second one later by
/// `pause`. Checks that only one of them has the certificate of each name. Returns the number of
/// names that each server has registered.
async fn two_servers(devices: usize, pause: Duration, prepare: impl FnOnce(&Cloud)) -> [usize; 2] {
    let cloud: Arc<Cloud> = Arc::default();
    let servers = [(); 2].map(|()| Crowd::on(cloud.clone(), devices, refusing()));
    prepare(&cloud);
    let mut asking = Vec::new();
    for server in &servers {
        asking.push((0..devices).map(|number| server.ask(&name(number), "a1")).collect::<Vec<_>>());
        tokio::time::sleep(pause).await;
    }
    let mut registered = [0, 0];
    for (server, (crowd, asking)) in servers.iter().zip(asking).enumerate() {
        for (number, one) in asking.into_iter().enumerate() {
            let (outcome, _) = one.await.unwrap();
            if matches!(outcome, Outcome::Registered(_)) {
                registered[server] += 1;
            } else {
                is_left_alone(crowd, &name(number), &outcome);
            }
        }
        assert_eq!(crowd.registrar.counters().recovered, 0);
        crowd.journal_is_empty().await;
    }
    assert_eq!((registered[0] + registered[1], cloud.devices()), (devices, devices));
    registered
}

#[tokio::test(start_paused = true)]
async fn a_name_that_another_server_registered_a_moment_ago_is_not_ours() {
    for pause in [0, 1, 500, 1000, 3000] {
        two_servers(3, Duration::from_millis(pause), |_| ()).await;
    }
}

#[tokio::test(start_paused = true)]
async fn of_two_batches_at_once_each_name_belongs_to_one() {
    // Both batches check their names before either creates its devices.
    let registered = two_servers(300, Duration::from_millis(100), |_| ()).await;
    assert!(registered[0] > 200, "{registered:?}");
    // If the names cannot be looked up together, a single call is made for each.
    let refuse = |cloud: &Cloud| cloud.refuse(Action::BatchQueryDeviceDetail, "Forbidden.RAM");
    two_servers(300, Duration::from_millis(100), refuse).await;
    // The first batch is over when the second checks its names.
    two_servers(300, Duration::from_secs(15), |_| ()).await;
}

/// Lets the first call for a device fail, and another party create the name before the next call.
async fn taken_after(failure: Scripted) -> (Crowd, Outcome) {
    let crowd = Crowd::on(Arc::default(), 1, refusing());
    crowd.cloud.script([failure]);
    let asking = crowd.ask(&name(0), "a1");
    while crowd.cloud.registrations() == 0 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    crowd.cloud.make("a1", &name(0));
    let (outcome, _) = asking.await.unwrap();
    (crowd, outcome)
}

#[tokio::test(start_paused = true)]
async fn a_call_that_was_certainly_not_carried_out_makes_no_name_ours() {
    for failure in [Scripted::Refuse(ErrorClass::Throttled), Scripted::RefuseWith("InvalidTimeStamp.Expired")]
    {
        let (crowd, outcome) = taken_after(failure).await;
        is_left_alone(&crowd, &name(0), &outcome);
    }
    // This case is the limit that docs/cloud.md describes: a device that another party has created
    // looks like the result of the call without an answer.
    let (_, outcome) = taken_after(Scripted::Refuse(ErrorClass::TimedOut)).await;
    assert!(matches!(outcome, Outcome::Registered(_)), "{outcome:?}");
}

#[tokio::test(start_paused = true)]
async fn a_refused_call_before_a_batch_makes_no_name_ours() {
    let crowd = Crowd::on(Arc::default(), 300, refusing());
    crowd.cloud.script(vec![Scripted::Refuse(ErrorClass::Throttled); 10]);
    let asking: Vec<_> = (0..300).map(|number| crowd.ask(&name(number), "a1")).collect();
    while crowd.cloud.registrations() == 0 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    for number in 0..300 {
        if crowd.cloud.secret("a1", &name(number)).is_none() {
            crowd.cloud.make("a1", &name(number));
        }
    }
    for (number, one) in asking.into_iter().enumerate() {
        let (outcome, _) = one.await.unwrap();
        if !matches!(outcome, Outcome::Registered(_)) {
            is_left_alone(&crowd, &name(number), &outcome);
        }
    }
    assert_eq!(crowd.registrar.counters().recovered, 0);
    assert!(crowd.cloud.calls(Action::BatchCheckDeviceNames) > 0);
}

#[tokio::test(start_paused = true)]
async fn a_batch_that_is_resumed_leaves_the_names_of_others_alone() {
    // The other party creates the names after 10 s. A check that takes 100 s is then still in
    // progress, and a check that takes 1 s is over.
    for check_takes in [100, 1] {
        resume_beside_others(Duration::from_secs(check_takes)).await;
    }
}

async fn resume_beside_others(check_takes: Duration) {
    let crowd = Crowd::on(Arc::default(), 3, refusing());
    crowd.cloud.set_batch_delay(check_takes);
    // A process has died before any device was created.
    let entries = [0, 1, 2].map(|number| wanted(&name(number)));
    let names: Vec<String> = entries.iter().map(|entry| entry.device_name.clone()).collect();
    let batch =
        OpenBatch { id: 1, product_key: "a1".into(), apply_id: None, target: crate::target::DEFAULT.into() };
    let dead = owner();
    let now = ClaimTime { at: crate::store::unix_now(), cloud_offset: crowd.cloud.clock_offset() };
    // For the third device, an earlier call of that process is unanswered.
    crowd.store.claim(&dead, &entries[2], now).await.unwrap();
    crowd.store.claim_batch(&dead, &batch, &entries, now).await.unwrap();
    let apply_id = crowd.cloud.batch_check_device_names("a1", &names).await.unwrap();
    crowd.store.set_apply_id(dead.id, batch.id, apply_id.0).await.unwrap();
    crowd.store.retire(dead.id).await.unwrap();
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(crowd.cloud.devices(), 0);
    crowd.cloud.make("a1", &names[0]);
    crowd.cloud.make("a1", &names[2]);
    crowd.registrar.recover().await.unwrap();
    while crowd.registrar.registrations() > 0 {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let row = |device: &str| crowd.store.row(&id(device)).unwrap();
    is_left_alone(&crowd, &names[0], &Outcome::Refused(String::new()));
    for name in &names[1..] {
        assert!(row(name).certificate.is_some(), "{name}");
    }
    crowd.journal_is_empty().await;
}

#[tokio::test(start_paused = true)]
async fn a_call_that_arrived_twice_was_carried_out_once() {
    let crowd = Crowd::on(Arc::default(), 1, refusing());
    crowd.cloud.script([Scripted::CreateAndRefuseWith(NONCE_USED)]);
    let (outcome, _) = crowd.ask(&name(0), "a1").await.unwrap();
    assert!(matches!(outcome, Outcome::Registered(_)), "{outcome:?}");
    assert_eq!(crowd.registrar.counters().recovered, 1);
}

#[tokio::test(start_paused = true)]
async fn the_claim_of_a_former_registration_counts_as_a_call() {
    let crowd = Crowd::on(Arc::default(), 1, refusing());
    // An earlier registration in this process could not give up its claim. The call of that
    // registration may have created the device.
    let entry = wanted(&name(0));
    let now = ClaimTime { at: crate::store::unix_now(), cloud_offset: crowd.cloud.clock_offset() };
    crowd.store.claim(&crowd.registrar.owner, &entry, now).await.unwrap();
    crowd.cloud.make("a1", &name(0));
    let (outcome, _) = crowd.ask(&name(0), "a1").await.unwrap();
    assert!(matches!(outcome, Outcome::Registered(_)), "{outcome:?}");
}

#[tokio::test(start_paused = true)]
async fn a_batch_whose_devices_cannot_be_fetched_is_ours() {
    let crowd = Crowd::on(Arc::default(), 300, refusing());
    crowd.cloud.refuse(Action::QueryPageByApplyId, "Forbidden.RAM");
    crowd.all_ask(300).await;
    assert!(crowd.registrar.counters().recovered > 200, "{:?}", crowd.registrar.counters());
}

/// The first batch hangs while it creates its devices, and is given up. It ends during the second
/// batch. The result of the second batch then says that the second batch has not created the
/// devices of the first.
#[tokio::test(start_paused = true)]
async fn a_batch_that_ends_after_it_was_given_up_is_ours() {
    let config = Config { qps: 2.0, shared_qps: 2.0, batch_deadline: Duration::from_secs(60), ..refusing() };
    let crowd = Crowd::on(Arc::default(), 300, config);
    let mut asking: Vec<_> = (0..290).map(|number| crowd.ask(&name(number), "a1")).collect();
    for (action, calls, next_step) in [
        (Action::BatchCheckDeviceNames, 1, 110),
        (Action::BatchRegisterDeviceWithApplyId, 1, 2),
        (Action::BatchCheckDeviceNames, 2, 50),
    ] {
        if calls == 2 {
            // The first batch was given up. The second begins 30 s after that.
            tokio::time::sleep_until(crowd.start + Duration::from_secs(80)).await;
            asking.extend((290..300).map(|number| crowd.ask(&name(number), "a1")));
        }
        while crowd.cloud.calls(action) < calls {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        crowd.cloud.set_batch_delay(Duration::from_secs(next_step));
    }
    for one in asking {
        let (outcome, _) = one.await.unwrap();
        assert!(matches!(outcome, Outcome::Registered(_)), "{outcome:?}");
    }
    assert!(crowd.cloud.calls(Action::BatchRegisterDeviceWithApplyId) >= 2);
    assert!(crowd.registrar.counters().recovered > 100, "{:?}", crowd.registrar.counters());
    crowd.journal_is_empty().await;
}
