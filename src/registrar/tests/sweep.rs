//! Tests that sweeps notice changes of devices at the cloud.

use super::*;
use crate::{
    registrar::sweep::Swept,
    store::{CloudState, lease::Leases},
    testing::store::Memory,
};

#[tokio::test]
async fn a_sign_in_a_disabled_and_a_deleted_device_are_noticed_and_noted_once() {
    let bench = Bench::new(fast());
    for device in ["SN01", "SN02", "SN03", "SN04"] {
        assert!(matches!(bench.register(device).await, Outcome::Registered(_)));
    }
    // The answer to a registration has no creation time, so the first sweep reads the creation
    // times.
    bench.registrar.sweep().await.unwrap();
    let nothing = Swept { devices: 4, changed: 0, failed: 0 };
    assert_eq!(bench.registrar.sweep().await.unwrap(), nothing);
    bench.cloud.change("a1", "SN01", |device| {
        (device.created, device.activated) = (1_551_342_000_000, Some(1_551_342_063_000));
    });
    bench.cloud.change("a1", "SN02", |device| device.disabled = true);
    bench.cloud.delete("a1", "SN03");
    assert_eq!(bench.registrar.sweep().await.unwrap(), Swept { changed: 3, ..nothing });
    let row = bench.row("SN01").await;
    assert_eq!((row.registered, row.activated), (Some(1_551_342_000), Some(1_551_342_063)));
    assert_eq!(bench.row("SN02").await.cloud_state, Some(CloudState::Disabled));
    assert_eq!(bench.row("SN03").await.cloud_state, Some(CloudState::Deleted));
    assert_eq!(bench.row("SN04").await.cloud_state, None);
    assert_eq!(bench.registrar.sweep().await.unwrap(), nothing);

    bench.cloud.change("a1", "SN02", |device| device.disabled = false);
    assert_eq!(bench.registrar.sweep().await.unwrap(), Swept { changed: 1, ..nothing });
    assert_eq!(bench.row("SN02").await.cloud_state, None);
}

#[tokio::test]
async fn a_device_that_was_deleted_at_the_cloud_is_registered_anew_when_the_operator_says_so() {
    let bench = Bench::new(fast());
    let Outcome::Registered(first) = bench.register("SN01").await else { panic!("not registered") };
    bench.cloud.delete("a1", "SN01");
    assert_eq!(bench.registrar.sweep().await.unwrap(), Swept { devices: 1, changed: 1, failed: 0 });
    // Until the operator resets the device, it keeps its certificate.
    assert_eq!(bench.register("SN01").await, Outcome::Registered(first.clone()));
    assert!(bench.store.reset(&id("SN01"), &Actor::system_user()).await.unwrap());
    let Outcome::Registered(second) = bench.register("SN01").await else { panic!("not registered") };
    assert_ne!(first.device_secret, second.device_secret);
    let row = bench.row("SN01").await;
    assert_eq!((row.certificate, row.cloud_state), (Some(second), None));
    // A device that was not deleted at the cloud keeps its certificate when it is reset.
    let before = bench.row("SN01").await.certificate;
    assert!(bench.store.reset(&id("SN01"), &Actor::system_user()).await.unwrap());
    assert_eq!(bench.row("SN01").await.certificate, before);
}

#[tokio::test]
async fn a_cloud_that_cannot_be_asked_changes_nothing() {
    let bench = Bench::new(fast());
    assert!(matches!(bench.register("SN01").await, Outcome::Registered(_)));
    let before = bench.row("SN01").await;
    bench.cloud.refuse(crate::iot_platform::Action::BatchQueryDeviceDetail, "Forbidden.RAM");
    assert_eq!(bench.registrar.sweep().await.unwrap(), Swept { devices: 1, changed: 0, failed: 1 });
    assert_eq!(bench.row("SN01").await, before);
}

#[tokio::test]
async fn of_two_processes_one_sweeps_and_the_next_goes_on_where_it_ended() {
    let bench = Bench::new(fast());
    for device in ["SN01", "SN02", "SN03"] {
        assert!(matches!(bench.register(device).await, Outcome::Registered(_)));
    }
    let other = owner();
    bench.store.take_lease(&other, "sweep").await.unwrap();
    assert_eq!(bench.registrar.sweep().await.unwrap(), Swept::default(), "the other one does it");
    bench.store.set_cursor(other.id, "sweep", "SN02").await.unwrap();
    bench.store.retire(other.id).await.unwrap();
    assert_eq!(bench.registrar.sweep().await.unwrap().devices, 1, "SN03 is left");
    assert_eq!(bench.registrar.sweep().await.unwrap().devices, 3);
}

#[tokio::test(start_paused = true)]
async fn a_process_with_a_lease_beats_and_keeps_it_however_long_it_works() {
    let (store, cloud) = (Memory::default(), Arc::new(Cloud::default()));
    let process = || {
        Registrar::new(Config::default(), owner(), Arc::new(store.clone()), cloud.clone(), Handle::current())
    };
    let (one, other) = (process(), process());
    let long = tokio::spawn(async move {
        let work = async |_| {
            tokio::time::sleep(Duration::from_secs(300)).await;
            Ok(7)
        };
        one.with_lease("work", work).await
    });
    for _ in 0..29 {
        tokio::time::sleep(Duration::from_secs(10)).await;
        assert_eq!(other.with_lease("work", async |_| Ok(1)).await.unwrap(), None);
    }
    assert_eq!(long.await.unwrap().unwrap(), Some(7));
    assert_eq!(other.with_lease("work", async |_| Ok(1)).await.unwrap(), Some(1));
}
