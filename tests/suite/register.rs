//! Tests of `certdist register`: devices are registered before they power on, within the cloud's
//! limits, and the results of an interrupted run are kept.
#![cfg(feature = "simulation")]

use std::{
    process::Stdio,
    thread,
    time::{Duration, Instant},
};

use crate::support::{Process, Site, http_get, stderr, stdout};

fn site(simulator: &Process) -> Site {
    Site::with(&format!(
        "[iot_platform]\nendpoint = \"http://{}\"\nregion = \"cn-shanghai\"\n",
        simulator.address
    ))
}

fn csv(devices: u32, enrollment: &str) -> String {
    let rows = (1..=devices).map(|number| format!("{enrollment}-{number:05},{enrollment}\n"));
    std::iter::once("deviceId,enrollment\n".to_owned()).chain(rows).collect()
}

fn stats(simulator: &Process) -> serde_json::Value {
    serde_json::from_str(&http_get(simulator.address, "/stats")).expect("JSON")
}

#[test]
fn an_enrollment_is_registered_in_batches_and_the_other_is_left_alone() {
    let cloud = Site::new();
    let simulator = cloud.simulator(&["--limits", "real", "--batch-delay", "300ms"]);
    let site = site(&simulator);
    site.import(&csv(1500, "lamp"));
    site.import(&csv(20, "plug"));
    // A run for one enrollment registers no devices of other enrollments.
    let done = site.run(&["register", "--enrollment", "lamp"]);
    assert_eq!(stdout(&done), "1500 registered, 0 refused\n", "{}", stderr(&done));
    assert_eq!(done.status.code(), Some(0));
    let after = stats(&simulator);
    assert_eq!((&after["devices"], &after["throttled"]), (&1500.into(), &0.into()));
    assert!(after["calls"]["RegisterDevice"].as_u64() < Some(300), "{after}");
    // A second run has nothing left to do.
    let again = site.run(&["register", "--enrollment", "lamp"]);
    assert_eq!(stdout(&again), "0 registered, 0 refused\n");
    assert_eq!(stats(&simulator)["devices"], 1500);
    // A small number of devices is registered one by one.
    let rest = site.run(&["register"]);
    assert_eq!(stdout(&rest), "20 registered, 0 refused\n");
}

#[test]
fn a_pace_out_of_range_is_refused_with_the_range() {
    let cloud = Site::new();
    let site = site(&cloud.simulator(&[]));
    for qps in ["0", "-1", "NaN", "inf", "100001"] {
        let refused = site.run(&["register", &format!("--qps={qps}")]);
        assert_eq!(refused.status.code(), Some(2));
        let expected = format!("--qps {qps}: expected 1 to 100000 calls a second");
        assert!(stderr(&refused).contains(&expected), "{}", stderr(&refused));
    }
}

#[test]
fn names_that_exist_are_refused_for_a_shared_key_and_adopted_otherwise() {
    let cloud = Site::new();
    let simulator = cloud.simulator(&[]);
    let first = site(&simulator);
    first.import(&csv(100, "lamp"));
    first.import(&csv(100, "plug"));
    assert_eq!(stdout(&first.run(&["register"])), "200 registered, 0 refused\n");
    // A second server has a table of its own, without these registrations.
    let second = site(&simulator);
    second.import(&csv(100, "lamp"));
    second.import(&csv(100, "plug"));
    let done = second.run(&["register"]);
    assert_eq!(stdout(&done), "100 registered, 100 refused\n", "{}", stderr(&done));
    assert_eq!(done.status.code(), Some(1));
    let expected =
        "error: IoT Platform refused 100 devices; `certdist device list --refused` shows them with the";
    assert!(stderr(&done).contains(expected), "{}", stderr(&done));
    let shown = stdout(&second.run(&["device", "show", "plug-00001"]));
    assert!(shown.contains("was not registered by this server"), "{shown}");
    assert_eq!(stats(&simulator)["devices"], 200);
    // The operator allows the server to adopt existing names.
    let configuration = std::fs::read_to_string(second.path("certdist.toml")).expect("it is there");
    let adopting = configuration.replace("kind = \"shared\"\n", "kind = \"shared\"\nexisting = \"adopt\"\n");
    second.write("certdist.toml", &adopting);
    assert!(second.run(&["device", "reset", "plug-00001"]).status.success());
    assert_eq!(stdout(&second.run(&["register"])), "1 registered, 0 refused\n");
}

#[test]
fn an_interrupted_run_goes_on_where_it_was() {
    let cloud = Site::new();
    let simulator = cloud.simulator(&["--limits", "real", "--batch-delay", "200ms"]);
    let site = site(&simulator);
    site.import(&csv(2000, "lamp"));
    // Certificates are fetched in pages or, after a crash, by device name, so this counts both
    // calls.
    let fetched = || {
        let calls = &stats(&simulator)["calls"];
        ["QueryPageByApplyId", "BatchQueryDeviceDetail"]
            .map(|action| calls[action].as_u64().unwrap_or(0))
            .iter()
            .sum()
    };
    for signal in ["KILL", "INT"] {
        let before: u64 = fetched();
        let mut run = site.certdist(&["register"]);
        let run = run.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("certdist runs");
        let deadline = Instant::now() + Duration::from_secs(20);
        while fetched() < before + 3 {
            assert!(Instant::now() < deadline, "nothing was fetched before SIG{signal}");
            thread::sleep(Duration::from_millis(20));
        }
        let status =
            std::process::Command::new("kill").arg(format!("-{signal}")).arg(run.id().to_string()).status();
        assert!(status.expect("kill").success());
        let output = run.wait_with_output().expect("it ended");
        assert!(!output.status.success());
        if signal == "INT" {
            assert_eq!(output.status.code(), Some(1));
            assert!(stdout(&output).contains(" registered, 0 refused"), "{}", stdout(&output));
        }
    }
    let done = site.run(&["register"]);
    assert_eq!(done.status.code(), Some(0), "{}", stderr(&done));
    let after = stats(&simulator);
    assert_eq!((&after["devices"], &after["throttled"]), (&2000.into(), &0.into()));
    assert_eq!(stdout(&site.run(&["export"])).lines().filter(|line| line.contains(",a1lamp,")).count(), 2000);
}

#[test]
fn what_cannot_be_done_is_said() {
    let without = Site::new();
    let output = without.run(&["register"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("no [iot_platform]"), "{}", stderr(&output));

    let cloud = Site::new();
    let simulator = cloud.simulator(&["--product", "another"]);
    let site = site(&simulator);
    site.import(&csv(5, "lamp"));
    let output = site.run(&["register", "--enrollment", "nobody"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("no [[enrollment]] has that name"), "{}", stderr(&output));
    let output = site.run(&["register"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("iot.prod.NotExistedProduct"), "{}", stderr(&output));
}
