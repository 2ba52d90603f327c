//! Tests of the commands with which an operator inspects a running server: lists, counts, keys and
//! checks. Also tests which commands ask for a confirmation before they destroy something.
#![cfg(feature = "simulation")]

use std::{
    os::unix::fs::PermissionsExt,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use crate::support::{CERTDIST, MASTER, Process, SHARED_IDENTITY, SHARED_KEY, Site, stderr, stdout};

/// Devices SN00000001 to SN00000005 of `lamp`, of which the last three have certificates, and two
/// devices of `plug`.
const DEVICES: &str = "deviceId,enrollment,deviceName,deviceSecret\n\
                       SN00000001,lamp,,\nSN00000002,lamp,,\nSN00000003,lamp,lamp-3,secret30000000000000000000000000\n\
                       SN00000004,lamp,lamp-4,secret40000000000000000000000000\nSN00000005,lamp,lamp-5,secret50000000000000000000000000\n\
                       PLUG-1,plug,,\nPLUG-2,plug,plug-2,secretp2000000000000000000000000\n";

fn listed(site: &Site, arguments: &[&str]) -> Vec<String> {
    let mut all = vec!["device", "list", "--json"];
    all.extend(arguments);
    let output = site.run(&all);
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(!stdout(&output).contains("secret"), "{}", stdout(&output));
    let id = |line: &str| {
        let row: serde_json::Value = serde_json::from_str(line).expect("JSON");
        row["deviceId"].as_str().expect("a text").to_owned()
    };
    stdout(&output).lines().map(id).collect()
}

#[test]
fn devices_are_listed_by_what_is_looked_for_beside_a_running_server() {
    let site = Site::new();
    site.import(DEVICES);
    let server = site.serve();
    site.run(&["device", "disable", "SN00000004"]);
    let database = rusqlite::Connection::open(site.path("certdist.db")).expect("it opens");
    let refuse = "UPDATE device_table SET refusal = 'no' WHERE deviceId = 'SN00000002'";
    database.execute(refuse, ()).expect("refused");

    let sn = |numbers: &[u32]| -> Vec<String> { numbers.iter().map(|n| format!("SN{n:08}")).collect() };
    assert_eq!(listed(&site, &["--enrollment", "plug"]), ["PLUG-1", "PLUG-2"]);
    assert_eq!(listed(&site, &["--state", "disabled"]), sn(&[4]));
    assert_eq!(listed(&site, &["--state", "enabled", "--prefix", "SN"]), sn(&[1, 2, 3, 5]));
    assert_eq!(listed(&site, &["--registered", "--prefix", "SN"]), sn(&[3, 4, 5]));
    assert_eq!(listed(&site, &["--unregistered"]), ["PLUG-1", "SN00000001", "SN00000002"]);
    assert_eq!(listed(&site, &["--refused"]), sn(&[2]));
    assert_eq!(listed(&site, &["--refused", "--state", "disabled"]), [""; 0]);
    assert_eq!(listed(&site, &["--unissued", "--state", "disabled"]), sn(&[4]));
    assert_eq!(listed(&site, &["--unissued", "--state", "enabled", "--enrollment", "lamp"]), sn(&[3, 5]));
    assert_eq!(listed(&site, &["--unregistered", "--state", "enabled", "--refused"]), sn(&[2]));
    assert_eq!(listed(&site, &["--product", "a1plug", "--unregistered"]), ["PLUG-1"]);
    assert_eq!(listed(&site, &["--product", "a1none"]), [""; 0]);
    assert_eq!(listed(&site, &["--suffix", "g-1"]), ["PLUG-1"]);
    assert_eq!(listed(&site, &["--suffix", "0004", "--enrollment", "lamp"]), sn(&[4]));
    assert_eq!(listed(&site, &["--prefix", "SN00000003"]), sn(&[3]));
    assert_eq!(listed(&site, &["--prefix", "SN", "--after", "SN00000003"]), sn(&[4, 5]));
    assert_eq!(listed(&site, &["--prefix", "PLUG", "--after", "SN00000001"]), [""; 0]);
    assert_eq!(listed(&site, &["--limit", "2"]), ["PLUG-1", "PLUG-2"]);
    assert_eq!(listed(&site, &[]).len(), 7);

    let page = site.run(&["device", "list", "--limit", "2", "--enrollment", "lamp"]);
    let table: Vec<String> = stdout(&page).lines().map(Into::into).collect();
    assert!(table[0].starts_with("DEVICE      ENROLLMENT"), "{table:?}");
    assert!(table.len() == 3 && table[2].starts_with("SN00000002  lamp"), "{table:?}");
    assert_eq!(stderr(&page), "there are more; continue with --after SN00000002\n");
    let last = site.run(&["device", "list", "--limit", "5", "--enrollment", "lamp"]);
    assert_eq!(stderr(&last), "", "that was all");

    assert_eq!(site.run(&["device", "list", "--registered", "--unregistered"]).status.code(), Some(2));
    assert_eq!(site.run(&["device", "list", "--prefix", "a b"]).status.code(), Some(2));
    assert_eq!(server.stop(), Some(0));
}

#[test]
fn counts_that_differ_from_the_table_are_found_and_corrected_beside_a_server() {
    let site = Site::new();
    site.import(DEVICES);
    let server = site.serve();
    let check = || site.run(&["database", "check"]);
    assert_eq!(stdout(&check()), "7 devices; all kept counts are those of the table\n");
    let database = rusqlite::Connection::open(site.path("certdist.db")).expect("it opens");
    let sql =
        "UPDATE device_count SET issued = 9 WHERE enrollment = 'lamp'; DROP TRIGGER device_count_insert";
    database.execute_batch(sql).expect("changed");
    let found = check();
    let (code, said) = (found.status.code(), stderr(&found));
    for part in [
        "`certdist database recount` corrects them",
        "  trigger device_count_insert is missing or was changed\n",
        "  device_count: issued of \"lamp\", \"a1lamp\": 9 kept, 0 in the table\n",
    ] {
        assert!(code == Some(1) && said.contains(part), "{part} in {said}");
    }
    let corrected = site.run(&["database", "recount"]);
    assert!(stdout(&corrected).starts_with("7 devices; 1 counts corrected\n"), "{}", stdout(&corrected));
    assert_eq!(check().status.code(), Some(0));
    assert_eq!(stdout(&site.run(&["database", "recount"])), "7 devices; 0 counts corrected\n");
    assert_eq!(server.stop(), Some(0));
}

#[test]
fn many_enrollments_are_listed_page_by_page() {
    let sections = |number: u32| {
        format!(
            "[[enrollment]]\nname = \"Lot-{number:03}\"\nproduct_key = \"a1lot\"\nkind = \"derived\"\n\
             key = \"hex:{number:064x}\"\n"
        )
    };
    let site = Site::with(&(0..120).map(sections).collect::<String>());
    let csv: String = (0..120).map(|number| format!("LOT-{number},Lot-{number:03}\n")).collect();
    site.import(&format!("deviceId,enrollment\n{csv}"));
    let names = |arguments: &[&str]| {
        let output = site.run(&[&["enrollment", "list"], arguments].concat());
        let names = stdout(&output)
            .lines()
            .skip(1)
            .filter_map(|line| line.split(' ').next())
            .map(str::to_owned)
            .collect();
        (names, stderr(&output))
    };
    let (first, more): (Vec<String>, _) = names(&[]);
    assert_eq!((first.len(), more.as_str()), (100, "there are more; continue with --after Lot-099\n"));
    let (second, more) = names(&["--after", "Lot-099"]);
    assert_eq!((second.len(), second[21].as_str(), more.as_str()), (22, "plug", ""));
    assert_eq!(names(&["lOT-01", "--limit", "2"]).0, ["Lot-010", "Lot-011"]);
    assert_eq!(site.run(&["enrollment", "list", "--after", "none"]).status.code(), Some(2));
    let json = stdout(&site.run(&["enrollment", "list", "--json"]));
    assert_eq!(json.lines().count(), 122);
    let stats = site.run(&["stats"]);
    assert!(stdout(&stats).contains("\nall         120 "), "{}", stdout(&stats));
    assert_eq!(stderr(&stats), "20 more enrollments; `certdist enrollment list` shows them page by page\n");
}

#[test]
fn a_list_whose_reader_has_seen_enough_ends_well() {
    let site = Site::new();
    let mut csv = String::from("deviceId,enrollment\n");
    (0..20_000).for_each(|number| csv.push_str(&format!("SN{number:08},lamp\n")));
    site.import(&csv);
    let script = format!("{CERTDIST} device list --json | head -n 1 >/dev/null; echo ${{PIPESTATUS[0]}}");
    let mut shell = Command::new("bash");
    let output = shell.args(["-c", &script]).current_dir(site.path("")).output().expect("bash");
    assert_eq!((stdout(&output).as_str(), stderr(&output).as_str()), ("0\n", ""));
}

#[test]
fn whatever_nobody_reads_is_done_all_the_same() {
    let site = Site::new();
    site.import(DEVICES);
    // Returns the writing end of a pipe whose reading end is closed.
    let closed = || std::io::pipe().expect("a pipe").1;
    let words = |line: &'static str| line.split(' ').collect::<Vec<_>>();
    for (line, code) in [
        ("demo --devices 2", 0),
        ("import import.csv", 0),
        ("export", 1),
        ("check-config", 0),
        ("stats", 0),
        ("enrollment list", 0),
        ("enrollment show lamp", 0),
        ("device list", 0),
        ("device list --limit 1", 0),
        ("device show SN00000001", 0),
        ("device show SN00000001 --json", 0),
        ("device disable SN00000001", 0),
        ("device show NOBODY", 1),
        ("audit export", 1),
        ("audit verify", 0),
        ("database status", 0),
        ("database check", 0),
        ("database recount", 0),
        ("key new", 0),
        ("admin new-token", 0),
        ("completion bash", 0),
        ("backup copy.db", 0),
        ("restore copy.db --yes", 0),
    ] {
        let output = site.certdist(&words(line)).stdout(closed()).output().expect("certdist runs");
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(code), "{line}: {said}");
        assert!(!said.contains("panicked") && !said.contains("pipe"), "{line}: {said}");
    }
    // These commands run with standard error closed as well.
    for (line, code) in [("demo --devices 2", 0), ("device list --limit 1", 0), ("device show NOBODY", 1)] {
        let status = site.certdist(&words(line)).stdout(closed()).stderr(closed()).status();
        assert_eq!(status.expect("certdist runs").code(), Some(code), "{line}");
    }
}

#[test]
fn a_server_whose_log_nobody_reads_serves_on() {
    let site = Site::new();
    site.import(DEVICES);
    let closed = std::io::pipe().expect("a pipe").1;
    let server = Process::start(site.certdist(&["serve"]).stderr(closed));
    let (address, key) = (server.address.to_string(), hex::encode(SHARED_KEY));
    for _ in 0..3 {
        let device = ["device-sim", "--server", &address, "--identity", SHARED_IDENTITY, "--psk", &key];
        let output = site.certdist(&device).args(["--sn", "PLUG-2"]).output().expect("certdist runs");
        assert!(stdout(&output).contains("secretp2000000000000000000000000"), "{}", stderr(&output));
    }
    assert_eq!(server.stop(), Some(0));
}

#[test]
fn a_page_of_two_hundred_thousand_rows_is_there_at_once() {
    let site = Site::new();
    let mut csv = String::from("deviceId,enrollment\n");
    (0..200_000).for_each(|number| csv.push_str(&format!("SN{number:08},lamp\n")));
    site.import(&csv);
    let timed = |arguments: &[&str], first: &str| {
        let started = Instant::now();
        assert_eq!(listed(&site, arguments)[0], first);
        started.elapsed()
    };
    // Compares the shortest of several alternating measurements, because a busy machine only makes
    // measurements longer.
    let [mut near, mut far] = [Duration::MAX; 2];
    for _ in 0..5 {
        near = near.min(timed(&["--limit", "10"], "SN00000000"));
        far = far.min(timed(&["--after", "SN00150000", "--limit", "10"], "SN00150001"));
        far = far.min(timed(&["--prefix", "SN0019999"], "SN00199990"));
    }
    // If each page read the table from its beginning, the later pages would take ten times as long.
    println!("{near:?} at the beginning, {far:?} at the end");
    assert!(far < near * 3, "{far:?}, at the beginning {near:?}");
    assert_eq!(listed(&site, &["--after", "SN00150000", "--limit", "1"]), ["SN00150001"]);
    assert_eq!(listed(&site, &["--prefix", "SN0019999"]).len(), 10);
    assert_eq!(listed(&site, &["--refused"]), [""; 0]);
}

#[test]
fn enrollments_and_stats_count_and_show_no_key() {
    let site = Site::new();
    site.import(DEVICES);
    let server = site.serve();
    let address = server.address.to_string();
    // SN00000001 and SN00000002 have no certificate, and no IoT Platform is configured to register
    // them.
    for number in 1..=5 {
        let id = format!("SN{number:08}");
        let key = stdout(&site.run(&["key", "new", "--derive", &id, "--enrollment", "lamp"]));
        let device = ["device-sim", "--server", &address, "--identity", &id, "--psk", key.trim()];
        let output = site.run(&[&device[..], &["--patience", "2"]].concat());
        assert_eq!(output.status.success(), number > 2, "{id}: {}", stderr(&output));
    }
    site.run(&["device", "disable", "SN00000004"]);

    let json = |arguments: &[&str]| -> Vec<serde_json::Value> {
        let output = site.run(arguments);
        assert!(output.status.success(), "{}", stderr(&output));
        assert!(!stdout(&output).contains(MASTER) && !stdout(&output).contains(&hex::encode(SHARED_KEY)));
        stdout(&output).lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
    };
    let list = json(&["enrollment", "list", "--json"]);
    assert_eq!((list[0]["enrollment"].as_str(), list[0]["kind"].as_str()), (Some("lamp"), Some("derived")));
    let show = &json(&["enrollment", "show", "lamp", "--json"])[0];
    assert_eq!(*show, list[0]);
    for (figure, count) in
        [("devices", 5), ("registered", 3), ("issued", 3), ("activated", 0), ("refused", 0), ("disabled", 1)]
    {
        assert_eq!(show[figure], count, "{figure}");
    }
    let plug = stdout(&site.run(&["enrollment", "show", "plug"]));
    for line in ["identity         plug-batch", "reissue          window:86400", "devices          2"] {
        assert!(plug.contains(line), "{plug}");
    }
    let stats = &json(&["stats", "--json"])[0];
    assert_eq!(
        (&stats["total"]["devices"], &stats["enrollments"]["plug"]["registered"]),
        (&7.into(), &1.into())
    );
    assert!(stats["databaseBytes"].as_u64() > Some(10_000), "{stats}");
    let table = stdout(&site.run(&["stats"]));
    assert!(table.contains("\nall") && table.contains("database ") && table.contains("KiB"), "{table}");

    // Enrollments that were removed from the configuration are still listed.
    let configuration = std::fs::read_to_string(site.path("certdist.toml")).expect("it is there");
    site.write("certdist.toml", &configuration.replace("\"plug\"", "\"other\""));
    assert!(stdout(&site.run(&["enrollment", "list"])).contains("plug        not configured"));
    let nobody = site.run(&["enrollment", "show", "nobody"]);
    assert_eq!(nobody.status.code(), Some(1));
    assert!(stderr(&nobody).contains("the configuration has lamp, other"), "{}", stderr(&nobody));
}

#[test]
fn new_keys_are_strong_and_derived_ones_are_what_the_server_derives() {
    let site = Site::new();
    let key = |arguments: &[&str]| {
        let mut all = vec!["key", "new"];
        all.extend(arguments);
        let output = site.run(&all);
        (output.status.code(), stdout(&output).trim().to_owned(), stderr(&output))
    };
    let (_, first, _) = key(&[]);
    assert_eq!(hex::decode(&first).expect("hex").len(), 32);
    assert_ne!(first, key(&[]).1);
    assert_eq!(key(&["--bytes", "16"]).1.len(), 32);
    assert_eq!(key(&["--bytes", "15"]).0, Some(2));

    assert_eq!(key(&["--output", "new.key"]).1, "");
    let file = std::fs::read_to_string(site.path("new.key")).expect("it is there");
    assert_eq!(file.trim().len(), 64);
    let mode = std::fs::metadata(site.path("new.key")).expect("it is there").permissions();
    assert_eq!(std::os::unix::fs::PermissionsExt::mode(&mode) & 0o777, 0o600);
    assert_eq!(key(&["--output", "new.key"]).0, Some(1), "a key that is there is kept");

    // The expected key is the one in the test in `psk.rs`, where OpenSSL computed it.
    let derived = key(&["--derive", "SN00000001", "--enrollment", "lamp"]);
    assert_eq!(derived.1, "6d5e2bff07c2591af4b318ee7ca9ba2a");
    let (code, printed, error) = key(&["--derive", "PLUG-1", "--enrollment", "plug"]);
    assert!(code == Some(2) && printed.is_empty() && error.contains("is not \"derived\""), "{error}");
    assert_eq!(key(&["--derive", "SN00000001"]).0, Some(2));
    assert_eq!(key(&["--derive", "SN 1", "--enrollment", "lamp"]).0, Some(2));
}

#[test]
fn nothing_is_deleted_that_nobody_has_confirmed() {
    let site = Site::new();
    site.import(DEVICES);
    let mut command = site.certdist(&["device", "delete", "SN00000003"]);
    let output = command.stdin(Stdio::null()).output().expect("certdist runs");
    assert_eq!(output.status.code(), Some(2));
    let error = stderr(&output);
    assert!(error.contains("Delete SN00000003 and its certificate") && error.contains("--yes"), "{error}");

    // `script` runs the command in a terminal.
    for (answer, code, there) in [("n", "1", true), ("", "1", true), ("y", "0", false)] {
        let delete = format!("{CERTDIST} device delete SN00000003; echo code $?");
        let shell = format!("printf '{answer}\\n' | script -qec '{delete}' /dev/null");
        let output = Command::new("sh").args(["-c", &shell]).current_dir(site.path("")).output();
        let said = stdout(&output.expect("sh"));
        assert!(said.contains("[y/N]") && said.contains(&format!("code {code}")), "{said}");
        assert_eq!(site.run(&["device", "show", "SN00000003"]).status.success(), there, "{answer}");
    }
    assert!(site.run(&["device", "delete", "--yes", "SN00000004"]).status.success());
    assert_eq!(site.run(&["device", "delete", "--yes", "SN00000004"]).status.code(), Some(1));
}

#[test]
fn check_config_looks_at_the_database_and_changes_nothing() {
    let site = Site::new();
    let check = || {
        let output = site.run(&["check-config"]);
        (output.status.code(), stdout(&output), stderr(&output))
    };
    let (code, said, _) = check();
    assert!(code == Some(0) && said.contains("certdist.db: does not exist yet"), "{said}");
    assert!(!site.path("certdist.db").exists());
    site.import(DEVICES);
    let server = site.serve();
    let (code, said, _) = check();
    let path = site.path("certdist.db").display().to_string();
    assert!(code == Some(0) && said.contains(&format!("sqlite:{path}: good\n")), "{said}");
    assert_eq!(server.stop(), Some(0));

    site.write("certdist.db", "a letter\n");
    let (code, _, error) = check();
    assert!(code == Some(1) && error.contains("not an SQLite database"), "{error}");
    let configuration = std::fs::read_to_string(site.path("certdist.toml")).expect("it is there");
    site.write("certdist.toml", &configuration.replace("sqlite:", "sqlite:nowhere/"));
    let (code, _, error) = check();
    assert!(
        code == Some(1) && error.contains("nowhere/certdist.db: the folder cannot be written"),
        "{error}"
    );
}

#[test]
fn check_config_says_which_devices_and_which_secrets_the_configuration_does_not_fit() {
    let site = Site::new();
    site.import(DEVICES);
    let configuration = std::fs::read_to_string(site.path("certdist.toml")).expect("it is there");
    let check = |configuration: &str| {
        site.write("certdist.toml", configuration);
        let output = site.run(&["check-config"]);
        (output.status.code(), stdout(&output), stderr(&output))
    };
    let (code, _, said) = check(&configuration.replace("name = \"plug\"", "name = \"plugs\""));
    assert!(
        code == Some(0) && said.contains("2 devices are in enrollment \"plug\", which is not configured"),
        "{said}"
    );
    // The database is sealed under a key that is not configured.
    let key = |byte: &str| format!("database_key = \"file:{byte}.key\"\n{configuration}");
    for byte in ["01", "02"] {
        site.write(&format!("{byte}.key"), &byte.repeat(32));
        std::fs::set_permissions(site.path(&format!("{byte}.key")), std::fs::Permissions::from_mode(0o600))
            .expect("mode");
    }
    site.write("certdist.toml", &key("01"));
    let sealed = site.run(&["database", "seal"]);
    assert!(sealed.status.success(), "{}", stderr(&sealed));
    let (code, said, error) = check(&key("01"));
    assert!(code == Some(0) && said.contains("good"), "{said}{error}");
    for other in [key("02"), configuration.clone()] {
        let (code, _, error) = check(&other);
        assert!(code == Some(1) && error.contains("sealed under key"), "{error}");
    }
}

#[test]
fn a_command_that_is_interrupted_leaves_no_half_written_file() {
    let site = Site::new();
    let rows: String = (0..30_000).map(|number| format!("SN{number:08},lamp\n")).collect();
    site.import(&format!("deviceId,enrollment\n{rows}"));
    let files = |ending: &str| {
        let names = std::fs::read_dir(site.path("")).expect("the folder");
        let names = names.map(|entry| entry.expect("an entry").file_name().into_string().expect("UTF-8"));
        names.filter(|name| name.contains(ending)).collect::<Vec<_>>()
    };
    let mut interrupted = 0;
    for (signal, command) in [
        ("-INT", "export"),
        ("-TERM", "export"),
        ("-HUP", "export"),
        ("-TERM", "backup"),
        ("-KILL", "export"),
    ] {
        let arguments = match command {
            "export" => &["export", "--output", "out"][..],
            _ => &["backup", "out"],
        };
        let mut running = site
            .certdist(arguments)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("certdist runs");
        let deadline = Instant::now() + Duration::from_secs(10);
        while files(".part").is_empty() && running.try_wait().expect("a state").is_none() {
            assert!(Instant::now() < deadline, "no file was begun");
        }
        let killed = Command::new("kill").args([signal, &running.id().to_string()]).status().expect("kill");
        let status = running.wait().expect("it ended");
        assert!(killed.success() || status.success());
        if status.success() {
            std::fs::remove_file(site.path("out")).expect("it is complete");
        } else {
            interrupted += 1;
            assert!(!site.path("out").exists(), "half of a file has the final name");
            assert_eq!(files(".part").is_empty(), signal != "-KILL", "{signal}: {:?}", files(".part"));
        }
    }
    assert!(interrupted >= 3, "{interrupted} were interrupted");
    // The next command removes the files that the killed command has left behind.
    assert!(site.run(&["export", "--output", "out"]).status.success());
    assert!(files(".part").is_empty() && site.path("out").exists());
}

#[test]
fn check_config_online_tells_what_the_cloud_says() {
    let cloud = Site::new();
    let simulator = cloud.simulator(&["--access-key-id", "test-id", "--access-key-secret", "test-secret"]);
    let site = Site::with_cloud(&format!("http://{}", simulator.address));
    let check = |secret: &str| {
        let mut command = site.certdist(&["check-config", "--online"]);
        let output = command.env("ALIBABA_CLOUD_ACCESS_KEY_SECRET", secret).output().expect("certdist runs");
        (output.status.code(), stdout(&output), stderr(&output))
    };
    let (code, said, error) = check("test-secret");
    assert!(code == Some(0) && said.contains("the credentials are good"), "{said}{error}");
    let (code, _, error) = check("another-secret");
    assert!(code == Some(1) && error.contains("it refuses the call (SignatureDoesNotMatch"), "{error}");
    assert!(!error.contains("another-secret"), "{error}");
    drop(simulator);
    let (code, _, error) = check("test-secret");
    assert!(code == Some(1) && error.contains("cannot be reached"), "{error}");

    let without = Site::new().run(&["check-config", "--online"]);
    assert_eq!(without.status.code(), Some(2));
}

#[test]
fn variables_of_the_environment_are_taken_and_wrong_ones_named() {
    let site = Site::new();
    let mut command = site.certdist(&["check-config"]);
    let output = command.env("CERTDIST_LISTEN", "127.0.0.1:9").output().expect("certdist runs");
    assert!(stdout(&output).contains("listen 127.0.0.1:9"), "{}", stderr(&output));
    let mut command = site.certdist(&["check-config"]);
    let output = command.env("CERTDIST_LIMITS__WORKERS", "no").output().expect("certdist runs");
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("CERTDIST_LIMITS__WORKERS: "), "{}", stderr(&output));
}

#[test]
fn each_command_explains_itself_with_an_example() {
    let site = Site::new();
    for command in [
        vec!["device"],
        vec!["device", "list"],
        vec!["device", "delete"],
        vec!["enrollment"],
        vec!["stats"],
        vec!["key", "new"],
        vec!["check-config"],
        vec!["completion"],
        vec!["import"],
        vec!["export"],
    ] {
        let mut arguments = command.clone();
        arguments.push("--help");
        let help = stdout(&site.run(&arguments));
        assert!(help.contains("Example") && help.contains("certdist "), "{command:?}: {help}");
    }
}

/// The command waits for its input, and may already have secrets in its memory.
#[test]
fn no_command_leaves_a_core_dump() {
    let site = Site::new();
    let mut command = site.certdist(&["import", "-", "--enrollment", "lamp"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("certdist runs");
    let limits = format!("/proc/{}/limits", child.id());
    let deadline = Instant::now() + Duration::from_secs(20);
    let is_forbidden = || {
        let limits = std::fs::read_to_string(&limits).expect("it runs");
        let line = limits.lines().find(|line| line.starts_with("Max core file size")).expect("a limit");
        line.split_whitespace().rev().take(3).skip(1).all(|limit| limit == "0")
    };
    while !is_forbidden() {
        assert!(Instant::now() < deadline, "core dumps are allowed");
        std::thread::sleep(Duration::from_millis(10));
    }
    drop(child.stdin.take());
    assert_eq!(child.wait().expect("its status").code(), Some(1), "the input is empty");
}

/// An operator's shell does not have the environment variables of the service, and may not read its
/// keys.
#[test]
fn commands_that_serve_nothing_need_no_credentials_and_no_keys_of_enrollments() {
    let configuration = format!(
        "database = \"sqlite:certdist.db\"\nlisten = \"127.0.0.1:0\"\n\
         [iot_platform]\nendpoint = \"http://127.0.0.1:1\"\nregion = \"cn-shanghai\"\n\
         [[enrollment]]\nname = \"lamp\"\nproduct_key = \"a1lamp\"\nkind = \"derived\"\nkey = \"env:LAMP_MASTER\"\n\
         [[enrollment]]\nname = \"plug\"\nproduct_key = \"a1plug\"\nkind = \"shared\"\nidentity = \"plug\"\n\
         key = \"file:absent.key\"\n# {MASTER}\n"
    );
    let site = Site::configured(&configuration);
    site.write("devices.csv", "deviceId,enrollment\nSN00000001,lamp\nPLUG-1,plug\n");
    let run = |line: &str| {
        let arguments: Vec<&str> = line.split(' ').collect();
        let mut command = site.certdist(&arguments);
        for name in ["ALIBABA_CLOUD_ACCESS_KEY_ID", "ALIBABA_CLOUD_ACCESS_KEY_SECRET"] {
            command.env_remove(name);
        }
        command.output().expect("certdist runs")
    };
    for line in [
        "import devices.csv",
        "import list",
        "device list",
        "device disable PLUG-1",
        "enrollment list",
        "stats",
        "audit verify",
        "export",
        "backup backup.db",
        "database status",
        "restore backup.db --dry-run",
    ] {
        let output = run(line);
        assert!(output.status.success(), "{line}: {}", stderr(&output));
    }
    for line in ["serve", "register", "check-config", "key new --derive SN00000001 --enrollment lamp"] {
        let output = run(line);
        let complaint = stderr(&output);
        assert_eq!(output.status.code(), Some(2), "{line}: {complaint}");
        for missing in ["ALIBABA_CLOUD_ACCESS_KEY_ID", "LAMP_MASTER", "absent.key"] {
            assert!(complaint.contains(missing), "{line}: {complaint}");
        }
    }
}

#[test]
fn what_an_operator_should_know_is_said_by_check_config_and_by_the_server() {
    let site = Site::configured(&format!(
        "database = \"sqlite:certdist.db\"\nlisten = \"127.0.0.1:0\"\n[limits]\ndrain = 60\n\
         [[enrollment]]\nname = \"lamp\"\nproduct_key = \"a1lamp\"\nkind = \"derived\"\nkey = \"file:lamp.key\"\n\
         [[enrollment]]\nname = \"plug\"\nproduct_key = \"a1plug\"\nkind = \"shared\"\nidentity = \"plug\"\n\
         key = \"hex:{MASTER}\"\n"
    ));
    let set_mode = |file: &str, mode| {
        std::fs::set_permissions(site.path(file), std::fs::Permissions::from_mode(mode))
            .expect("permissions");
    };
    site.write("lamp.key", MASTER);
    site.write("devices.csv", "deviceId,enrollment\nPLUG-1,plug\n");
    assert!(site.run(&["import", "devices.csv"]).status.success());
    set_mode("lamp.key", 0o644);
    set_mode("certdist.toml", 0o604);
    let warnings = || {
        let output = site.run(&["check-config"]);
        assert!(output.status.success(), "{}", stderr(&output));
        let lines = stderr(&output);
        lines.lines().filter_map(|line| Some(line.strip_prefix("warning: ")?.to_owned())).collect::<Vec<_>>()
    };
    let [unsealed, key, file, drain] = &warnings()[..] else { panic!("{:?}", warnings()) };
    assert!(unsealed.starts_with("secrets in the database are not sealed"), "{unsealed}");
    assert!(key.contains("lamp.key has a secret, and every user can read it: chmod o= "), "{key}");
    assert!(file.contains("certdist.toml has a secret"), "{file}");
    assert!(drain.starts_with("a stop takes up to 80 s (drain = 60)"), "{drain}");

    set_mode("lamp.key", 0o660);
    assert!(warnings()[1].contains("lamp.key has a secret, and its group can change it: chmod g-w "));
    // All problems except the first are fixed. In addition, the configuration no longer has the
    // enrollment of some devices.
    set_mode("lamp.key", 0o640);
    set_mode("certdist.toml", 0o600);
    let configuration = std::fs::read_to_string(site.path("certdist.toml")).expect("it is there");
    let renamed =
        configuration.replace("name = \"plug\"", "name = \"plugs\"").replace("drain = 60", "drain = 10");
    site.write("certdist.toml", &renamed);
    let [_, devices] = &warnings()[..] else { panic!("{:?}", warnings()) };
    assert!(
        devices.starts_with("1 devices are in enrollment \"plug\", which is not configured"),
        "{devices}"
    );
    let log = std::fs::File::create(site.path("log")).expect("a file");
    let server = Process::start(site.certdist(&["serve"]).stderr(log));
    let logged = |text: &str, times: usize| {
        let deadline = Instant::now() + Duration::from_secs(20);
        let count = || std::fs::read_to_string(site.path("log")).expect("the log").matches(text).count();
        while count() < times {
            assert!(Instant::now() < deadline, "{text}");
            std::thread::sleep(Duration::from_millis(20));
        }
    };
    for times in 1..=2 {
        logged("which is not configured, so they get no certificate", times);
        logged("secrets in the database are not sealed", times);
        server.signal("HUP");
    }
}
