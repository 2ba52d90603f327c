//! Tests of foreign DTLS stacks with the `certdist` binary. Each stack connects on the first try
//! and gets its certificate.

use std::{
    io::{BufRead, BufReader},
    process::{Command, Stdio},
    time::Duration,
};

use crate::support::{MASTER, Process, SHARED_IDENTITY, SHARED_KEY, Site, coapsload, stderr, stdout};
use certdist::simulated_device::{Answer, SimulatedDevice};

const CSV: &str = "deviceId,enrollment,deviceName,deviceSecret\n\
                   SN00000001,lamp,lamp-1,secretoflamp10000000000000000000\n\
                   PLUG-1,plug,plug-1,secretofplug10000000000000000000\n";

fn server() -> (Site, Process) {
    let site = Site::new();
    site.import(CSV);
    let server = site.serve();
    (site, server)
}

/// Runs libcoap's client and returns its output and its error output.
fn coap_client(build: &str, server: &Process, path: &str, more: &[&str]) -> (String, String) {
    let output = Command::new(format!("coap-client-{build}"))
        .args(["-B", "10", "-u", SHARED_IDENTITY, "-k", SHARED_KEY])
        .args(more)
        .arg(format!("coaps://{}/{path}", server.address))
        .output()
        .expect("libcoap's client is installed by `make clients`");
    (stdout(&output).trim().to_owned(), String::from_utf8_lossy(&output.stderr).trim().to_owned())
}

#[test]
fn libcoap_in_both_builds_gets_a_certificate_by_get_post_and_fetch() {
    let (_site, server) = server();
    let expected = serde_json::json!({"productKey": "a1plug", "deviceName": "plug-1", "deviceSecret": "secretofplug10000000000000000000"});
    for build in ["openssl", "gnutls"] {
        for method in ["get", "post", "fetch"] {
            let (answer, error) = coap_client(build, &server, "cert?sn=PLUG-1", &["-m", method, "-A", "50"]);
            let answer: serde_json::Value = serde_json::from_str(&answer)
                .unwrap_or_else(|_| panic!("{build} {method}: {answer} {error}"));
            assert_eq!(answer, expected);
            // The same request with a CBOR payload, like the requests of deployed firmware.
            let body = ["-m", method, "-A", "50", "-t", "60", "-e", "%A1bsnfPLUG-1"];
            let (answer, error) = coap_client(build, &server, "cert", &body);
            assert!(
                answer.contains("secretofplug10000000000000000000"),
                "{build} {method}: {answer} {error}"
            );
        }
    }
}

#[test]
fn libcoap_opens_the_door_with_either_of_two_keys() {
    let site = Site::new();
    let configuration = std::fs::read_to_string(site.path("certdist.toml")).expect("it is there");
    let key = format!("key = \"hex:{}\"\n", hex::encode(SHARED_KEY));
    let next = format!("{key}key_next = \"hex:{}\"\n", hex::encode("another-key-here"));
    assert!(configuration.contains(&key));
    site.write("certdist.toml", &configuration.replace(&key, &next));
    site.import(CSV);
    let server = site.serve();
    for build in ["openssl", "gnutls"] {
        for (key, opens) in [(SHARED_KEY, true), ("another-key-here", true), ("a-third-key-here", false)] {
            let output = Command::new(format!("coap-client-{build}"))
                .args(["-B", "4", "-u", SHARED_IDENTITY, "-k", key, "-A", "50"])
                .arg(format!("coaps://{}/cert?sn=PLUG-1", server.address))
                .output()
                .expect("libcoap's client is installed by `make clients`");
            let answer = stdout(&output);
            assert_eq!(answer.contains("secretofplug10000000000000000000"), opens, "{build} {key}: {answer}");
        }
    }
}

#[test]
fn libcoap_is_told_what_is_wrong() {
    let (_site, server) = server();
    for build in ["openssl", "gnutls"] {
        for (path, options, code) in [
            ("cert?sn=STRANGER", &[][..], "4.04"),
            ("cert", &[], "4.00"),
            ("cert?sn=PLUG-1", &["-m", "put"], "4.05"),
            ("cert?sn=PLUG-1", &["-A", "41"], "4.06"),
            ("cert", &["-m", "post", "-t", "41", "-e", "<sn/>"], "4.15"),
            ("cert?sn=PLUG-1", &["-O", "65001,x"], "4.02"),
            ("nothing", &[], "4.04"),
        ] {
            let (_, error) = coap_client(build, &server, path, options);
            assert!(error.contains(code), "{build} {path} {options:?}: expected {code}, got {error}");
        }
    }
}

/// Returns the commands of `docs/device.md`, each with the response code in its comment.
fn documented_commands() -> Vec<(String, String)> {
    let document = include_str!("../../docs/device.md");
    let section = document.split("\n## With libcoap\n").nth(1).expect("the section");
    let section = section.split("\n## ").next().expect("its end");
    let mut lines = section.lines();
    let mut commands = Vec::new();
    while let Some(line) = lines.next() {
        if let Some((code, _)) = line.strip_prefix("# ").and_then(|comment| comment.split_once(": ")) {
            commands.push((code.to_owned(), lines.next().expect("a command").to_owned()));
        }
    }
    commands
}

/// Starts a server in the state that the document's commands assume.
fn documented_server() -> (Site, [Process; 2]) {
    let cloud = Site::new();
    let simulator = cloud.simulator(&["--latency", "600s"]);
    let site = Site::configured(&format!(
        "listen = \"127.0.0.1:0\"\ndatabase = \"sqlite:certdist.db\"\n\
         [iot_platform]\nendpoint = \"http://{}\"\nregion = \"cn-shanghai\"\nqps = 1\nbatches = false\n\
         [limits]\npatience = 2\ndrain = 0\n\
         [[enrollment]]\nname = \"plug\"\nproduct_key = \"a1plug\"\nkind = \"shared\"\n\
         identity = \"plug-batch-7\"\nkey = \"hex:{}\"\n\
         [[enrollment]]\nname = \"lamp\"\nproduct_key = \"a1lamp\"\nkind = \"individual\"\n\
         [[enrollment]]\nname = \"socket\"\nproduct_key = \"a1socket\"\nkind = \"individual\"\n\
         requests = {{ burst = 1, every = 3600 }}\n",
        simulator.address,
        hex::encode("plug-batch-7-key")
    ));
    let mut csv = String::from("deviceId,enrollment,deviceName,deviceSecret,pskIdentity,psk\n");
    for number in 1..=3 {
        csv.push_str(&format!("PLUG000{number},plug,plug-{number},secretofplug{number:020},,\n"));
    }
    csv.push_str("00:1a:2b:3c:4d:5e,plug,plug-mac,secretofplugmac00000000000000000,,\n");
    for kind in ["lamp", "socket"] {
        let key = hex::encode(format!("{kind}-1-its-own-key"));
        csv.push_str(&format!("{kind}-0001,{kind},{kind}-1,secretof{kind:0<24},{kind}-1,{key}\n"));
    }
    for number in 4..60 {
        csv.push_str(&format!("PLUG{number:04},plug,,,,\n"));
    }
    site.import(&csv);
    assert!(site.run(&["device", "disable", "PLUG0002"]).status.success());
    let database = rusqlite::Connection::open(site.path("certdist.db")).expect("it opens");
    let change = |sql| assert_eq!(database.execute(sql, ()).expect("changed"), 1);
    change("UPDATE device_table SET firstIssued = 1 WHERE deviceId = 'PLUG0003'");
    change("UPDATE device_table SET refusal = 'the name is taken' WHERE deviceId = 'PLUG0004'");
    let server = site.serve();
    (site, [server, simulator])
}

#[test]
fn every_command_of_the_document_gets_the_code_that_it_promises() {
    let commands = documented_commands();
    let mut codes: Vec<&str> = commands.iter().map(|(code, _)| code.as_str()).collect();
    codes.dedup();
    let promised = [
        "2.05", "4.00", "4.02", "4.03", "4.04", "4.05", "4.06", "4.13", "4.15", "4.29", "5.02", "5.03",
        "5.04", "5.05",
    ];
    assert_eq!(codes, promised, "every code of the contract has a command");

    let (_site, [server, _cloud]) = documented_server();
    let run = |build: &str, code: &str, command: &str| {
        let command = command.replace("coap-client-gnutls", &format!("coap-client-{build} -B 10"));
        let command = command.replace("192.0.2.1", &server.address.to_string());
        let output = Command::new("sh").args(["-c", &command]).output().expect("a shell");
        let (answer, told) = (output.stdout, String::from_utf8_lossy(&output.stderr));
        let shown = String::from_utf8_lossy(&answer).into_owned() + &told;
        let found = match code {
            "2.05" => shown.contains("secretof"),
            _ => shown.lines().any(|line| line.starts_with(&format!("{code} "))),
        };
        assert!(found, "expected {code}: {command}\n{shown}");
        match code {
            "4.13" => assert!(shown.contains("Size1:512"), "{shown}"),
            "4.29" | "5.03" => {
                let max_age = shown.rsplit("Max-Age:").next().expect("a part");
                let seconds = max_age.chars().take_while(char::is_ascii_digit).collect::<String>();
                assert!(seconds.parse::<u32>().is_ok_and(|seconds| seconds > 0), "{shown}");
            }
            _ => {}
        }
    };
    for build in ["gnutls", "openssl"] {
        for (code, command) in commands.iter().filter(|(code, _)| code != "5.03") {
            run(build, code, command);
        }
    }
    // More devices ask than the server can register in the time that a device waits.
    let (port, key) = (server.address.port().to_string(), hex::encode("plug-batch-7-key"));
    coapsload(&[
        "-p",
        &port,
        "-F",
        "10",
        "-n",
        "50",
        "-c",
        "50",
        "-g",
        "plug-batch-7",
        "-I",
        "PLUG%04ld",
        "-k",
        &key,
    ]);
    for build in ["gnutls", "openssl"] {
        for (code, command) in commands.iter().filter(|(code, _)| code == "5.03") {
            run(build, code, command);
        }
    }
}

#[test]
fn libcoap_with_a_wrong_key_or_identity_gets_nothing() {
    let (_site, mut server) = server();
    for build in ["openssl", "gnutls"] {
        for (identity, key) in [(SHARED_IDENTITY, "another-key-here"), ("nobody", SHARED_KEY)] {
            let output = Command::new(format!("coap-client-{build}"))
                .args(["-B", "3", "-u", identity, "-k", key, "-A", "50"])
                .arg(format!("coaps://{}/cert?sn=PLUG-1", server.address))
                .output()
                .expect("libcoap's client");
            assert!(!stdout(&output).contains("secret"), "{build} {identity}");
        }
    }
    assert!(server.is_running());
}

#[test]
fn openssl_s_client_connects_with_every_suite() {
    let (_site, server) = server();
    for suite in ["PSK-AES128-CCM8", "PSK-AES128-CCM", "PSK-AES128-GCM-SHA256"] {
        let mut command = Command::new("timeout");
        command.args(["10", "openssl", "s_client", "-dtls1_2", "-connect", &server.address.to_string()]);
        command.args(["-psk_identity", SHARED_IDENTITY, "-psk", &hex::encode(SHARED_KEY)]);
        command.args(["-cipher", &format!("{suite}:@SECLEVEL=0")]);
        let output = until_connected(command);
        assert!(output.contains(&format!("Cipher is {suite}")), "{suite}: {output}");
        assert!(output.contains("Extended master secret: yes"), "{suite}: {output}");
    }
}

/// RFC 5246 §7.2.1: a stopping server sends close_notify, so its clients notice immediately.
#[test]
fn a_server_that_stops_tells_its_sessions() {
    let (_site, server) = server();
    let mut command = Command::new("timeout");
    command.args(["20", "openssl", "s_client", "-dtls1_2", "-connect", &server.address.to_string()]);
    command.args(["-psk_identity", SHARED_IDENTITY, "-psk", &hex::encode(SHARED_KEY)]);
    command.args(["-cipher", "PSK-AES128-CCM8:@SECLEVEL=0"]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut client = command.spawn().expect("openssl");
    let mut lines = BufReader::new(client.stdout.take().expect("its output")).lines().map_while(Result::ok);
    assert!(lines.any(|line| line.contains("Extended master secret")), "it connects");
    assert_eq!(server.stop(), Some(0));
    let last: Vec<_> = lines.collect();
    assert!(last.iter().any(|line| line == "closed"), "{last:?}");
    assert_eq!(client.wait().expect("its end").code(), Some(0), "not the 124 of a time-out");
}

/// Returns the output of `s_client` up to the last line about its session. The client would end
/// with its input, so the input stays open until this line.
fn until_connected(mut command: Command) -> String {
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("openssl");
    let input = child.stdin.take();
    let mut output = String::new();
    for line in BufReader::new(child.stdout.take().expect("its output")).lines().map_while(Result::ok) {
        output.push_str(&line);
        output.push('\n');
        if line.contains("Extended master secret") {
            break;
        }
    }
    drop(input);
    child.wait().expect("its end");
    output
}

#[test]
fn openssl_in_every_suite_fetches_by_the_hundred() {
    let (site, server) = server();
    let mut csv = String::from("deviceId,enrollment,deviceName,deviceSecret\n");
    for number in 1..=100 {
        csv.push_str(&format!("LOAD{number:04},lamp,load-{number},secret{number:026}\n"));
    }
    site.import(&csv);
    let port = server.address.port().to_string();
    for suite in ["PSK-AES128-CCM8", "PSK-AES128-CCM", "PSK-AES128-GCM-SHA256"] {
        // The load runs with the extended master secret, and then without it, like older stacks.
        for more in [&[][..], &["-E"]] {
            let mut arguments = vec!["-p", &port, "-n", "100", "-c", "32", "-I", "LOAD%04ld", "-K", MASTER];
            arguments.extend(["-S", suite]);
            arguments.extend(more);
            let output = coapsload(&arguments);
            assert!(stdout(&output).contains("ok 100 (2.xx 100 "), "{suite} {more:?}: {}", stdout(&output));
        }
    }
}

#[test]
fn mbedtls_connects_with_every_suite() {
    let (_site, server) = server();
    let client = concat!(env!("CARGO_MANIFEST_DIR"), "/build/mbedtls_client");
    for suite in ["CCM-8", "CCM", "GCM-SHA256"] {
        for options in ["", "noems"] {
            let suite = format!("TLS-PSK-WITH-AES-128-{suite}");
            let output = Command::new(client)
                .args(["127.0.0.1", &server.address.port().to_string()])
                .args([SHARED_IDENTITY, &hex::encode(SHARED_KEY), "PLUG-1", &suite, options])
                .output()
                .expect("built by `make clients`");
            let answer = stdout(&output);
            assert!(
                answer.starts_with(&format!("{suite} 2.05")),
                "{suite} {options}: {answer}{}",
                stderr(&output)
            );
            assert!(answer.contains("secretofplug10000000000000000000"), "{suite} {options}: {answer}");
        }
    }
}

#[tokio::test]
async fn webrtc_dtls_gets_its_certificate() {
    let (_site, server) = server();
    let device = SimulatedDevice {
        server: server.address,
        identity: SHARED_IDENTITY.into(),
        psk: SHARED_KEY.into(),
        sn: Some("PLUG-1".into()),
        asks_host: false,
        patience: Duration::from_secs(20),
    };
    let Answer::Certificate { certificate, .. } = device.fetch().await.unwrap() else { panic!("refused") };
    assert_eq!(certificate.device_secret.expose(), "secretofplug10000000000000000000");
    let stranger = SimulatedDevice { sn: Some("STRANGER".into()), ..device };
    let Answer::Refused { code, title, .. } = stranger.fetch().await.unwrap() else { panic!("served") };
    assert_eq!((code.as_str(), title.as_str()), ("4.04", "device is invalid"));
}
