//! Tests of batches with the signed client and the simulated IoT Platform, over HTTP: with the
//! maximum number of devices, with the account's rate limits and with faults.
#![cfg(feature = "simulation")]

use std::{
    collections::HashSet,
    sync::Arc,
    time::{Duration, Instant},
};

use certdist::iot_platform::{
    ApiError, ApplyId, BatchProgress, BatchStatus, ErrorClass, IotPlatform, MAX_BATCH, MAX_QUERY, PAGE_SIZE,
    client::{Client, ClientConfig, Timeouts},
    simulator::{Action, Fault, Limits, Simulator, SimulatorConfig},
};

const PRODUCT: &str = "a1BwAGVxyz1";

async fn cloud(config: SimulatorConfig) -> (Simulator, Client) {
    let simulator = Simulator::start(config).await.unwrap();
    let client = client(&simulator);
    (simulator, client)
}

fn client(simulator: &Simulator) -> Client {
    let config = ClientConfig::new(simulator.endpoint(), "cn-shanghai", simulator.credentials());
    // This time is enough for the largest batch in a debug build on a busy machine.
    let minute = Duration::from_secs(60);
    let timeouts = Timeouts { first_byte: minute, whole: minute, ..Timeouts::default() };
    Client::new(ClientConfig { timeouts, ..config }).unwrap()
}

/// Returns names of the maximum length, with characters that must be encoded.
fn names(count: usize) -> Vec<String> {
    (0..count).map(|number| format!("LAMP:2026@{number:022}")).collect()
}

/// Polls until the current step of the batch has ended.
async fn ended(client: &Client, id: ApplyId) -> BatchProgress {
    loop {
        let progress = client.query_batch_register_device_status(PRODUCT, id).await.unwrap();
        if !matches!(progress.status, BatchStatus::Check | BatchStatus::Create) {
            return progress;
        }
    }
}

async fn registered(client: &Client, names: &[String]) -> ApplyId {
    let id = client.batch_check_device_names(PRODUCT, names).await.unwrap();
    assert_eq!(ended(client, id).await.status, BatchStatus::CheckSuccess);
    assert_eq!(client.batch_register_device_with_apply_id(PRODUCT, id).await.unwrap(), id);
    assert_eq!(ended(client, id).await.status, BatchStatus::CreateSuccess);
    id
}

#[tokio::test]
async fn a_batch_in_full_size_gives_every_device_its_certificate() {
    let (simulator, client) = cloud(SimulatorConfig::default()).await;
    let names = names(MAX_BATCH);
    let id = registered(&client, &names).await;
    assert_eq!(simulator.stats().devices, MAX_BATCH as u64);

    let first = client.query_page_by_apply_id(PRODUCT, id, 1).await.unwrap();
    assert_eq!((first.pages as usize, first.devices.len()), (MAX_BATCH / PAGE_SIZE, PAGE_SIZE));
    let mut seen = HashSet::new();
    for page in 1..=first.pages {
        for device in client.query_page_by_apply_id(PRODUCT, id, page).await.unwrap().devices {
            let name = device.certificate.device_name.clone();
            assert_eq!(simulator.device(PRODUCT, &name), Some(device.certificate));
            assert!(seen.insert(name));
        }
    }
    assert_eq!(seen, names.iter().cloned().collect());
    assert!(client.query_page_by_apply_id(PRODUCT, id, first.pages + 1).await.unwrap().devices.is_empty());

    // The same names are checked again. All of them are taken, and the answer lists them all.
    let again = client.batch_check_device_names(PRODUCT, &names).await.unwrap();
    let progress = ended(&client, again).await;
    assert_eq!((progress.status, progress.invalid), (BatchStatus::CheckFailed, names));
    let error = client.batch_register_device_with_apply_id(PRODUCT, again).await.unwrap_err();
    assert_eq!(error.code, "iot.device.ApplyManyDevicesFailed");
}

#[tokio::test]
async fn each_step_takes_the_batch_delay() {
    let batch_delay = Duration::from_millis(150);
    let (simulator, client) = cloud(SimulatorConfig { batch_delay, ..SimulatorConfig::default() }).await;
    let started = Instant::now();
    registered(&client, &names(3)).await;
    assert!(started.elapsed() >= 2 * batch_delay, "{:?}", started.elapsed());
    assert_eq!(simulator.stats().devices, 3);
}

#[tokio::test]
async fn a_name_taken_between_the_steps_is_invalid_and_the_others_are_created() {
    let (simulator, client) = cloud(SimulatorConfig::default()).await;
    let names = names(3);
    let id = client.batch_check_device_names(PRODUCT, &names).await.unwrap();
    assert_eq!(ended(&client, id).await.status, BatchStatus::CheckSuccess);
    client.register_device(PRODUCT, &names[1]).await.unwrap();
    client.batch_register_device_with_apply_id(PRODUCT, id).await.unwrap();
    let progress = ended(&client, id).await;
    assert_eq!(progress.status, BatchStatus::CreateSuccess);
    assert_eq!(progress.invalid, &names[1..2]);
    assert_eq!(client.query_page_by_apply_id(PRODUCT, id, 1).await.unwrap().devices.len(), 2);
    assert_eq!(simulator.stats().devices, 3);
}

#[tokio::test]
async fn many_devices_are_looked_up_at_once_with_what_became_of_them() {
    let (simulator, client) = cloud(SimulatorConfig::default()).await;
    let names = names(MAX_QUERY);
    for name in &names[..4] {
        client.register_device(PRODUCT, name).await.unwrap();
    }
    assert!(simulator.activate(PRODUCT, &names[1]) && simulator.disable(PRODUCT, &names[2]));
    assert!(simulator.delete(PRODUCT, &names[3]) && !simulator.delete(PRODUCT, &names[3]));
    let devices = client.batch_query_device_detail(PRODUCT, &names).await.unwrap();
    let found: Vec<_> = devices.iter().map(|device| (device.activated.is_some(), device.disabled)).collect();
    assert_eq!(found, [(false, false), (true, false), (false, true)]);
    for (device, name) in devices.iter().zip(&names) {
        assert_eq!(*device, client.query_device_detail(PRODUCT, name).await.unwrap());
    }
    assert_eq!(client.batch_query_device_detail(PRODUCT, &names[4..]).await.unwrap(), []);
}

#[tokio::test]
async fn a_call_with_too_many_names_or_none_is_not_made() {
    let (simulator, client) = cloud(SimulatorConfig::default()).await;
    for result in [
        client.batch_check_device_names(PRODUCT, &[]).await.map(drop),
        client.batch_check_device_names(PRODUCT, &names(MAX_BATCH + 1)).await.map(drop),
        client.batch_query_device_detail(PRODUCT, &names(MAX_QUERY + 1)).await.map(drop),
    ] {
        assert_eq!(result.unwrap_err().code, "WrongCall");
    }
    assert!(simulator.stats().calls.is_empty());
}

/// Calls an action with valid parameters. The batch in them need not exist.
async fn call(client: &Client, action: Action) -> Result<(), ApiError> {
    let (names, id) = (names(2), ApplyId(1));
    match action {
        Action::BatchCheckDeviceNames => client.batch_check_device_names(PRODUCT, &names).await.map(drop),
        Action::QueryBatchRegisterDeviceStatus => {
            client.query_batch_register_device_status(PRODUCT, id).await.map(drop)
        }
        Action::BatchRegisterDeviceWithApplyId => {
            client.batch_register_device_with_apply_id(PRODUCT, id).await.map(drop)
        }
        Action::QueryPageByApplyId => client.query_page_by_apply_id(PRODUCT, id, 1).await.map(drop),
        Action::BatchQueryDeviceDetail => client.batch_query_device_detail(PRODUCT, &names).await.map(drop),
        _ => unreachable!("not an action of a batch"),
    }
}

const OF_BATCHES: [Action; 5] = [
    Action::BatchCheckDeviceNames,
    Action::QueryBatchRegisterDeviceStatus,
    Action::BatchRegisterDeviceWithApplyId,
    Action::QueryPageByApplyId,
    Action::BatchQueryDeviceDetail,
];

#[tokio::test]
async fn each_failure_of_each_action_has_its_class() {
    let (simulator, client) = cloud(SimulatorConfig::default()).await;
    let json = |body: &str| Fault::Raw { status: 200, content_type: "application/json", body: body.into() };
    for action in OF_BATCHES {
        for (fault, class, code) in [
            (Fault::html(502), ErrorClass::TryAgain, "NotAnAnswer"),
            (Fault::Drop, ErrorClass::TryAgain, "Connection"),
            (Fault::gateway(503, "ServiceUnavailable"), ErrorClass::TryAgain, "ServiceUnavailable"),
            (Fault::gateway(400, "Throttling.User"), ErrorClass::Throttled, "Throttling.User"),
            (
                Fault::business("iot.device.DeviceApplyIsNotFound"),
                ErrorClass::NotFound,
                "iot.device.DeviceApplyIsNotFound",
            ),
            (
                Fault::business("iot.device.CreateDeviceTaskIsRunning"),
                ErrorClass::TryAgain,
                "iot.device.CreateDeviceTaskIsRunning",
            ),
            (json(r#"{"Success":true,"PageCount":[],"Data":17}"#), ErrorClass::Unknown, "NotAnAnswer"),
        ] {
            simulator.script(action, fault.clone());
            let error = call(&client, action).await.unwrap_err();
            assert_eq!((error.class, error.code.as_str()), (class, code), "{action:?} {fault:?}");
        }
        // The client repeats this call itself, with another nonce.
        simulator.script(action, Fault::gateway(400, "SignatureNonceUsed"));
        let outcome = call(&client, action).await;
        assert!(outcome.is_ok() || outcome.unwrap_err().class == ErrorClass::NotFound, "{action:?}");
    }
}

#[tokio::test]
async fn a_step_whose_answer_was_lost_has_begun() {
    let (simulator, client) = cloud(SimulatorConfig::default()).await;
    let id = client.batch_check_device_names(PRODUCT, &names(2)).await.unwrap();
    ended(&client, id).await;
    simulator.script(Action::BatchRegisterDeviceWithApplyId, Fault::Drop.after_carrying_out());
    assert!(client.batch_register_device_with_apply_id(PRODUCT, id).await.is_err());
    assert_eq!(ended(&client, id).await.status, BatchStatus::CreateSuccess);
    let error = client.batch_register_device_with_apply_id(PRODUCT, id).await.unwrap_err();
    assert_eq!(error.code, "iot.device.ApplyManyDevicesFailed");
    assert_eq!(simulator.stats().devices, 2);
}

#[tokio::test]
async fn each_action_has_its_documented_limit() {
    let config = SimulatorConfig { limits: Limits::Real, ..SimulatorConfig::default() };
    let (simulator, client) = cloud(config).await;
    let client = Arc::new(client);
    for action in OF_BATCHES {
        let limit = action.calls_per_second();
        let started = Instant::now();
        let calls: Vec<_> = (0..limit * 4)
            .map(|_| {
                let client = client.clone();
                tokio::spawn(async move { call(&client, action).await })
            })
            .collect();
        let mut throttled = 0;
        for call in calls {
            let class = call.await.unwrap().err().map(|error| error.class);
            throttled += u32::from(class == Some(ErrorClass::Throttled));
        }
        // The limit admits the calls of one second at once, and further calls as time passes.
        let most = limit + (started.elapsed().as_secs_f64() * f64::from(limit)).ceil() as u32;
        let passed = limit * 4 - throttled;
        assert!((limit..=most).contains(&passed), "{action:?}: {passed} of {limit} to {most}");
        assert_eq!(simulator.stats().calls[action.name()], u64::from(passed));
    }
    assert!(simulator.stats().throttled > 0);
}

#[tokio::test]
async fn batches_survive_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let config =
        SimulatorConfig { state: Some(folder.path().join("state.json")), ..SimulatorConfig::default() };
    let (simulator, client_before) = cloud(config.clone()).await;
    let names = names(60);
    let id = registered(&client_before, &names).await;
    let checked = client_before.batch_check_device_names(PRODUCT, &["SN01".into()]).await.unwrap();
    let before = client_before.query_page_by_apply_id(PRODUCT, id, 2).await.unwrap();
    simulator.shutdown().await.unwrap();

    let (simulator, client) = cloud(config).await;
    assert_eq!(client.query_page_by_apply_id(PRODUCT, id, 2).await.unwrap(), before);
    assert_eq!(ended(&client, checked).await.status, BatchStatus::CheckSuccess);
    client.batch_register_device_with_apply_id(PRODUCT, checked).await.unwrap();
    assert_eq!(ended(&client, checked).await.status, BatchStatus::CreateSuccess);
    assert_eq!(simulator.stats().devices, 61);
}
