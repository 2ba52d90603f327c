//! Tests of the section `[iot_platform]`: the values that `certdist check-config` accepts, its
//! messages about wrong values, and the effect of the section on `certdist serve`.
#![cfg(feature = "simulation")]

use std::{
    io::{BufRead, BufReader},
    process::{Command, Output, Stdio},
    sync::mpsc,
    thread,
    time::Duration,
};

use crate::support::{SHARED_IDENTITY, SHARED_KEY, Site, http_get, stderr, stdout};
use certdist::simulated_device::{Answer, SimulatedDevice};

/// Returns a site whose section begins on line 3 and contains `lines` from line 6 on.
fn site(lines: &str) -> Site {
    Site::with(&format!(
        "[iot_platform]\nendpoint = \"https://iot.cn-shanghai.aliyuncs.com\"\nregion = \"cn-shanghai\"\n{lines}"
    ))
}

/// Runs `check-config` with these variables as its whole environment.
fn check(site: &Site, variables: &[(&str, &str)]) -> Output {
    let mut command: Command = site.certdist(&["check-config"]);
    command.env_clear().envs(variables.iter().copied());
    command.output().expect("certdist runs")
}

fn accepted(site: &Site, variables: &[(&str, &str)]) {
    let output = check(site, variables);
    assert!(output.status.success() && stdout(&output).contains("2 enrollments"), "{}", stderr(&output));
}

/// Checks that `check-config` refuses the configuration, and returns its error message.
fn refused(site: &Site, variables: &[(&str, &str)]) -> String {
    let output = check(site, variables);
    assert_eq!(output.status.code(), Some(2), "{}", stdout(&output));
    stderr(&output)
}

const FILE: &str = "[default]\ntype = access_key\naccess_key_id = LTAI1\naccess_key_secret = hush\n\
                    [batch]\ntype = ecs_ram_role\nrole_name = certdist\n";

#[test]
fn each_key_is_taken() {
    for lines in [
        "credentials = \"ecs-role\"",
        "credentials = \"ecs-role:certdist\"\nmetadata_token = \"required\"\n\
         metadata_endpoint = \"http://127.0.0.1:8088\"",
        "credentials = \"ecs-role\"\nsignature = \"v1\"",
        "credentials = \"ecs-role\"\nsignature = \"v3\"",
        "credentials = \"ecs-role\"\nconnect_timeout = 0.5\nfirst_byte_timeout = 3\ntimeout = 20",
        // Setting one time-out lowers the defaults of the time-outs that it includes.
        "credentials = \"ecs-role\"\ntimeout = 2",
        "credentials = \"ecs-role\"\nfirst_byte_timeout = 1",
    ] {
        accepted(&site(lines), &[]);
    }
}

#[test]
fn a_wrong_value_is_refused_with_its_line_and_what_would_be_right() {
    for (line, expected) in [
        ("signature = \"v2\"", "expected `v1` or `v3`"),
        ("credentials = \"LTAI1:hush\"", "expected \"env\", \"file\", \"file:PATH\", \"ecs-role\""),
        ("credentials = \"file:\"", "\"file:PATH\""),
        ("credentials = \"ecs-role:a role\"", "\"ecs-role:NAME\""),
        ("credentials = 7", "expected a string"),
        ("metadata_endpoint = \"100.100.100.200\"", "should look like http://100.100.100.200"),
        ("metadata_endpoint = \"http://100.100.100.200/latest\"", "not an http URL without a path"),
        ("metadata_token = \"yes\"", "expected `offered` or `required`"),
        ("connect_timeout = 0", "0: expected 0.1 to 300 seconds"),
        ("first_byte_timeout = -1", "-1: expected 0.1 to 300 seconds"),
        ("timeout = nan", "timeout = nan: expected 0.1 to 300 seconds"),
        ("timeout = \"10s\"", "expected a number"),
        ("time_out = 10", "time_out: unknown key; did you mean timeout?"),
    ] {
        let error = refused(&site(line), &[]);
        assert!(error.contains("line 6") && error.contains(expected), "{line}: {error}");
    }
}

#[test]
fn what_lines_say_together_is_refused_by_their_names() {
    let role = "credentials = \"ecs-role\"\n";
    for (lines, expected) in [
        (
            "connect_timeout = 9\nfirst_byte_timeout = 3",
            "connect_timeout = 9, first_byte_timeout = 3, timeout = 10",
        ),
        ("first_byte_timeout = 30", "expected none to be longer than the next"),
        ("ca_file = \"ca.pem\"", "ca.pem cannot be read"),
        (
            "ca_file = \"certdist.toml\"",
            "certdist.toml has no certificate; it should hold certificates in PEM",
        ),
    ] {
        let error = refused(&site(&format!("{role}{lines}")), &[]);
        assert!(error.contains("[iot_platform]") && error.contains(expected), "{lines}: {error}");
    }
}

#[test]
fn credentials_are_in_the_environment_unless_the_file_says_otherwise() {
    for lines in ["", "credentials = \"env\""] {
        let id = ("ALIBABA_CLOUD_ACCESS_KEY_ID", "LTAI1");
        accepted(&site(lines), &[id, ("ALIBABA_CLOUD_ACCESS_KEY_SECRET", "hush")]);
        for variables in [[id].as_slice(), &[id, ("ALIBABA_CLOUD_ACCESS_KEY_SECRET", "")]] {
            let error = refused(&site(lines), variables);
            assert!(error.contains("the environment has no ALIBABA_CLOUD_ACCESS_KEY_SECRET"), "{error}");
            assert!(error.contains("credentials = \"file:PATH\" or \"ecs-role\""), "{error}");
        }
    }
}

#[test]
fn a_credentials_file_is_found_where_it_is_named_or_where_the_sdks_look() {
    let named = site("credentials = \"file:secrets.ini\"");
    let error = refused(&named, &[]);
    assert!(error.contains("secrets.ini: cannot be read"), "{error}");
    named.write("secrets.ini", FILE);
    accepted(&named, &[]);
    accepted(&named, &[("ALIBABA_CLOUD_PROFILE", "batch")]);
    let error = refused(&named, &[("ALIBABA_CLOUD_PROFILE", "lamp")]);
    assert!(error.contains("no profile [lamp]") && !error.contains("hush"), "{error}");

    let usual = site("credentials = \"file\"");
    assert!(refused(&usual, &[]).contains("neither ALIBABA_CLOUD_CREDENTIALS_FILE nor HOME"));
    let path = named.path("secrets.ini");
    accepted(&usual, &[("ALIBABA_CLOUD_CREDENTIALS_FILE", path.to_str().unwrap())]);
    let home = usual.path("");
    let home = [("HOME", home.to_str().unwrap())];
    assert!(refused(&usual, &home).contains(".alibabacloud/credentials: cannot be read"));
    std::fs::create_dir(usual.path(".alibabacloud")).unwrap();
    usual.write(".alibabacloud/credentials.ini", FILE);
    accepted(&usual, &home);
    // If both files exist, the file without an extension takes precedence.
    usual.write(".alibabacloud/credentials", "[other]\n");
    assert!(refused(&usual, &home).contains(".alibabacloud/credentials: no profile [default]"));
}

#[tokio::test]
async fn a_server_signs_with_version_3_and_takes_a_key_that_was_put_into_the_file() {
    let cloud = Site::new();
    let simulator = cloud.simulator(&[]);
    let site = Site::with(&format!(
        "[iot_platform]\nendpoint = \"http://{}\"\nregion = \"cn-shanghai\"\nsignature = \"v3\"\n\
         credentials = \"file:secrets.ini\"\n",
        simulator.address
    ));
    let key = |id: &str| {
        let text = format!("[default]\naccess_key_id = {id}\naccess_key_secret = test-secret\n");
        site.write("secrets.ini", &text);
    };
    key("revoked");
    site.import("deviceId,enrollment\nPLUG-1,plug\n");
    let server = site.serve();
    // At its start, the server read the file with the revoked key. Now the file gets another key.
    key("test-id");
    let device = SimulatedDevice {
        server: server.address,
        identity: SHARED_IDENTITY.into(),
        psk: SHARED_KEY.into(),
        sn: Some("PLUG-1".into()),
        asks_host: false,
        patience: Duration::from_secs(20),
    };
    assert!(matches!(device.fetch().await, Ok(Answer::Certificate { .. })));
    let stats: serde_json::Value = serde_json::from_str(&http_get(simulator.address, "/stats")).unwrap();
    assert_eq!((&stats["devices"], &stats["refused"]), (&1.into(), &0.into()), "{stats}");
}

#[test]
fn a_server_without_credentials_says_so_at_the_start_and_what_would_be_right() {
    // Nothing listens on this local port.
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let site = site(&format!("credentials = \"ecs-role\"\nmetadata_endpoint = \"http://{nobody}\""));
    let mut command = site.certdist(&["serve"]);
    let mut server = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("certdist starts");
    let log = BufReader::new(server.stderr.take().expect("its log"));
    let (says, said) = mpsc::channel();
    thread::spawn(move || {
        let mut lines = log.lines().map_while(Result::ok);
        let _ = says.send(lines.find(|line| line.contains("credentials")));
    });
    let line = said.recv_timeout(Duration::from_secs(20));
    server.kill().expect("it runs on all the same");
    let _ = server.wait();
    let line = line.expect("in time").expect("a line about credentials");
    assert!(
        line.contains("WARN")
            && line.contains(&format!("no answer from the metadata service http://{nobody}"))
    );
    assert!(line.contains("set credentials to \"env\" or \"file:PATH\""), "{line}");
}
