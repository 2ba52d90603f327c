//! Tests of the data that certdist stores, and of the commands that maintain it while a server
//! runs: sealed secrets, the audit log and backups.

use std::{
    fs,
    io::Read,
    os::unix::{
        fs::{MetadataExt, PermissionsExt},
        process::CommandExt,
    },
    path::Path,
    process::{Command, Stdio},
};

use crate::support::{MASTER, Process, Site, coapsload, http_get, stderr, stdout};

const KEY: &str = "1111111111111111111111111111111122222222222222222222222222222222";
const NEXT_KEY: &str = "3333333333333333333333333333333344444444444444444444444444444444";
const SECRET: &str = "thesecretofthisdevice00000000000";
const PSK: &str = "0123456789abcdef0123456789abcdef";

const DEVICES: &str = "deviceId,enrollment,deviceName,deviceSecret,pskIdentity,psk\n\
                       SN00000001,lamp,lamp-1,thesecretofthisdevice00000000000,,\n\
                       OWN-1,own,own-1,thesecretofthisdevice00000000000,one,0123456789abcdef0123456789abcdef\n";

/// Creates a site whose configuration begins with these lines. The database key is in
/// `database.key`.
fn site(lines: &str) -> Site {
    let site = Site::configured(&format!(
        "listen = \"127.0.0.1:0\"\ndatabase = \"sqlite:certdist.db\"\n{lines}\n\
         [[enrollment]]\nname = \"lamp\"\nproduct_key = \"a1lamp\"\nkind = \"derived\"\nkey = \"hex:{MASTER}\"\n\
         [[enrollment]]\nname = \"own\"\nproduct_key = \"a1own\"\nkind = \"individual\"\n"
    ));
    site.write("database.key", KEY);
    site.write("next.key", NEXT_KEY);
    site
}

fn configure(site: &Site, from: &str, to: &str) {
    let configuration = fs::read_to_string(site.path("certdist.toml")).expect("it is there");
    assert!(configuration.contains(from), "{configuration}");
    site.write("certdist.toml", &configuration.replacen(from, to, 1));
}

/// Returns whether one device gets its certificate. The device must get a response in any case.
fn served(server: &Process) -> bool {
    let port = server.address.port().to_string();
    let output = stdout(&coapsload(&["-p", &port, "-n", "1", "-c", "1", "-K", MASTER]));
    assert!(output.contains("ok 1 "), "{output}");
    output.contains("(2.xx 1 ")
}

fn own_served(server: &Process) -> bool {
    let port = server.address.port().to_string();
    let arguments = ["-p", &port, "-n", "1", "-c", "1", "-g", "one", "-k", PSK, "-I", "OWN-1", "-t", "5"];
    stdout(&coapsload(&arguments)).contains("(2.xx 1 ")
}

fn succeeds(site: &Site, arguments: &[&str]) -> String {
    let output = site.run(arguments);
    assert!(output.status.success(), "{arguments:?}: {}{}", stdout(&output), stderr(&output));
    stdout(&output)
}

fn fails(site: &Site, arguments: &[&str], code: i32) -> String {
    let output = site.run(arguments);
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {}{}", stdout(&output), stderr(&output));
    stderr(&output)
}

/// Waits until the log contains a text this many times.
fn wait_for(log: &Path, text: &str, times: usize) {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while fs::read_to_string(log).unwrap_or_default().matches(text).count() < times {
        assert!(std::time::Instant::now() < deadline, "the log does not say: {text}");
        std::thread::yield_now();
    }
}

/// Starts a server that logs to the file `log`.
fn serve(site: &Site, level: &str) -> Process {
    let log = fs::File::create(site.path("log")).expect("a log");
    Process::start(site.certdist(&["serve"]).env("RUST_LOG", level).stderr(Stdio::from(log)))
}

fn reload(server: &Process, site: &Site, times: usize) {
    server.signal("HUP");
    wait_for(&site.path("log"), "and the database keys", times);
}

#[test]
fn a_clear_database_is_sealed_and_the_key_is_changed_while_a_server_serves() {
    let site = site("# keys");
    site.import(DEVICES);
    let server = serve(&site, "info");
    wait_for(&site.path("log"), "secrets in the database are not sealed", 1);
    assert!(served(&server) && own_served(&server));
    assert!(succeeds(&site, &["database", "status"]).contains("clear: 2 device secrets, 1 psks"));
    assert!(fails(&site, &["database", "seal"], 2).contains("expected database_key"));

    configure(&site, "# keys", "database_key = \"file:database.key\"");
    reload(&server, &site, 1);
    assert!(succeeds(&site, &["database", "seal"]).starts_with("3 secrets sealed"));
    assert!(served(&server) && own_served(&server));

    let both = "database_key = \"file:next.key\"\ndatabase_key_previous = [\"file:database.key\"]";
    configure(&site, "database_key = \"file:database.key\"", both);
    reload(&server, &site, 2);
    assert!(served(&server) && own_served(&server));
    assert!(succeeds(&site, &["database", "seal"]).starts_with("3 secrets sealed"));
    configure(&site, both, "database_key = \"file:next.key\"");
    reload(&server, &site, 3);
    assert!(served(&server) && own_served(&server));

    // The server rejects a key that does not open the database, and continues with its former key.
    configure(&site, "file:next.key", "file:database.key");
    server.signal("HUP");
    wait_for(&site.path("log"), "the configuration stays as it was", 1);
    assert!(served(&server) && own_served(&server));
    let told = fails(&site, &["export"], 1);
    assert!(told.contains("sealed under key") && told.contains("database_key_previous"), "{told}");
    assert_eq!(server.stop(), Some(0));
    assert_eq!(site.run(&["serve"]).status.code(), Some(1), "nothing is served with a wrong key");

    // The export has the imported values, and can be imported again.
    configure(&site, "file:database.key", "file:next.key");
    let exported = succeeds(&site, &["export"]);
    assert!(exported.contains(SECRET) && exported.contains(PSK));
    site.write("again.csv", &exported);
    assert!(succeeds(&site, &["import", "again.csv"]).contains("2 unchanged"));
}

#[test]
fn a_key_comes_from_the_environment_or_from_systemds_credentials() {
    let site = site("database_key = \"env:TABLE_KEY\"");
    site.write("import.csv", DEVICES);
    let output = site.certdist(&["import", "import.csv"]).env("TABLE_KEY", KEY).output();
    assert!(output.expect("it runs").status.success());
    configure(&site, "env:TABLE_KEY", "credential:database.key");
    assert!(fails(&site, &["database", "status"], 2).contains("LoadCredential=database.key:PATH"));
    let folder = site.path("database.key");
    let mut command = site.certdist(&["database", "status"]);
    let output = command.env("CREDENTIALS_DIRECTORY", folder.parent().expect("a folder")).output();
    let output = output.expect("it runs");
    assert!(!stdout(&output).contains("clear") && stdout(&output).contains("2 device secrets"), "{output:?}");
}

#[test]
fn no_secret_of_a_run_is_in_a_file_an_output_or_the_process_list() {
    let cloud = Site::new();
    let simulator = cloud.simulator(&[]);
    let port = std::net::TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
    let port = port.expect("a port");
    let site = site(&format!(
        "database_key = \"env:TABLE_KEY\"\n[admin]\nlisten = \"{port}\"\n\
         [iot_platform]\nendpoint = \"http://{}\"\nregion = \"cn-shanghai\"",
        simulator.address
    ));
    let run = |arguments: &[&str]| {
        let output = site.certdist(arguments).env("TABLE_KEY", KEY).output().expect("it runs");
        assert!(output.status.success(), "{arguments:?}: {}", stderr(&output));
        [output.stdout, output.stderr].concat()
    };
    let mut told = Vec::new();
    site.write("batch.csv", &format!("{DEVICES}SN00000002,lamp,,,,\n"));
    told.extend(run(&["import", "batch.csv"]));
    fs::remove_file(site.path("batch.csv")).expect("removed");
    fs::remove_file(site.path("database.key")).expect("removed");
    let log = fs::File::create(site.path("log")).expect("a log");
    let mut command = site.certdist(&["serve"]);
    command.env("TABLE_KEY", KEY).env("RUST_LOG", "trace").stderr(Stdio::from(log));
    let server = Process::start(&mut command);
    let load = coapsload(&["-p", &server.address.port().to_string(), "-n", "2", "-c", "2", "-K", MASTER]);
    assert!(stdout(&load).contains("ok 2 (2.xx 2 "), "{}", stdout(&load));
    assert!(own_served(&server));

    told.extend(http_get(port, "/metrics").into_bytes());
    for arguments in [
        &["device", "show", "SN00000001"][..],
        &["device", "disable", "OWN-1"],
        &["database", "seal"],
        &["database", "status", "--json"],
        &["audit", "verify"],
        &["audit", "export"],
        &["backup", "copy.db"],
    ] {
        told.extend(run(arguments));
    }
    for process in fs::read_dir("/proc").expect("/proc").map_while(Result::ok) {
        // Only certdist's processes are examined: the load generator gets keys on its command
        // line.
        if fs::read_to_string(process.path().join("comm")).is_ok_and(|name| name == "certdist\n") {
            told.extend(fs::read(process.path().join("cmdline")).unwrap_or_default());
        }
    }

    // While the server runs, the folder also contains the database's write-ahead log. After the
    // server has stopped, it contains only the database file.
    let files = || -> Vec<u8> {
        let files = fs::read_dir(site.path("")).expect("the folder").map_while(Result::ok);
        let files = files.filter(|file| file.file_name() != "certdist.toml");
        files.flat_map(|file| fs::read(file.path()).expect("read")).collect()
    };
    told.extend(files());
    assert_eq!(server.stop(), Some(0));
    told.extend(files());
    let exported = String::from_utf8(run(&["export"])).expect("UTF-8");
    let registered = exported.lines().find(|line| line.starts_with("SN00000002")).expect("it is there");
    let registered = registered.split(',').nth(4).filter(|secret| !secret.is_empty()).expect("registered");
    let contains = |text: &str| told.windows(text.len()).any(|window| window == text.as_bytes());
    assert!(contains("SN00000002"));
    for (name, secret) in
        [("key", KEY), ("secret", SECRET), ("psk", PSK), ("registered", registered), ("master", MASTER)]
    {
        assert!(!contains(secret), "the {name} is told");
    }
}

#[test]
fn no_core_is_dumped_of_a_server_and_no_process_of_its_user_looks_into_its_memory() {
    // The files of a process in /proc show whether the process may be dumped. If it may, they
    // belong to the process's user and group. Otherwise they belong to root. If the tests run as
    // root, their processes get another group, so that the two cases differ.
    let owner = |process: u32| {
        let shown = fs::metadata(format!("/proc/{process}/environ")).expect("it runs");
        (shown.uid(), shown.gid())
    };
    let started = |mut command: Command| {
        if nix::unistd::Uid::effective().is_root() {
            command.gid(65_534);
        }
        command
    };
    let mut other = started(Command::new("sleep")).arg("60").spawn().expect("it starts");
    let other_owner = owner(other.id());
    other.kill().and_then(|()| other.wait()).expect("it ends");
    assert_ne!(other_owner, (0, 0), "any other process can be dumped");

    let site = site("");
    let server = Process::start(&mut started(site.certdist(&["serve"])));
    assert_eq!(owner(server.id()), (0, 0));
    let limits = fs::read_to_string(format!("/proc/{}/limits", server.id())).expect("its limits");
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).expect("a limit");
    assert_eq!(core.split_whitespace().skip(4).take(2).collect::<Vec<_>>(), ["0", "0"], "{core}");
    assert_eq!(server.stop(), Some(0));
}

fn entries(site: &Site, arguments: &[&str]) -> Vec<serde_json::Value> {
    let all = [&["audit", "export"], arguments].concat();
    succeeds(site, &all).lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

#[test]
fn the_audit_log_says_who_got_what_and_who_was_refused_and_a_cut_is_found() {
    let site = site("");
    site.import(DEVICES);
    let server = site.serve();
    assert!(served(&server) && served(&server) && own_served(&server));
    // An entry for which no device waits is written a moment later.
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while entries(&site, &["--device", "SN00000001"]).len() < 2 {
        assert!(std::time::Instant::now() < deadline, "the second issue is not written");
    }
    succeeds(&site, &["device", "disable", "SN00000001"]);
    assert!(!served(&server));
    assert_eq!(server.stop(), Some(0));

    let lamp = entries(&site, &["--device", "SN00000001"]);
    // The second fetch is a record beside the chain. Among events of the same second, it may stand
    // anywhere.
    let (chain, records): (Vec<_>, Vec<_>) = lamp.iter().partition(|entry| entry["seq"].is_number());
    let events: Vec<_> = chain.iter().map(|entry| entry["event"].as_str().expect("text")).collect();
    assert_eq!(events, ["issued", "disabled", "refused"]);
    assert_eq!((&chain[0]["detail"], &chain[0]["who"]), (&"a1lamp/lamp-1".into(), &"SN00000001".into()));
    let is_own = |entry: &serde_json::Value| {
        entry["address"].as_str().is_some_and(|address| address.starts_with("127."))
    };
    assert!(is_own(chain[0]), "{}", chain[0]);
    assert!(chain[1]["who"].as_str().is_some_and(|who| who.contains("uid")), "{}", chain[1]);
    assert_eq!(chain[2]["detail"], "the device is disabled");
    let [record] = records[..] else { panic!("{records:?}") };
    assert_eq!((&record["event"], &record["count"]), (&"reissued".into(), &1.into()));
    assert_eq!(entries(&site, &["--device", "OWN-1"])[0]["who"], "one");
    assert_eq!(entries(&site, &["--until", "2020-01-01"]).len(), 0);
    assert!(entries(&site, &["--since", "2020-01-01"]).len() >= 6);
    assert!(fails(&site, &["audit", "export", "--since", "yesterday"], 2).contains("2026-11-25T08:00:00Z"));

    let verified = succeeds(&site, &["audit", "verify"]);
    let head = verified.lines().nth(1).expect("the head").to_owned();
    succeeds(&site, &["audit", "verify", "--has", &head]);
    succeeds(&site, &["device", "enable", "SN00000001"]);
    succeeds(&site, &["audit", "verify", "--has", &head]);
    let database = rusqlite::Connection::open(site.path("certdist.db")).expect("it opens");
    // Removes the last entry, and changes the recorded end of the chain to match. Only an end of
    // the chain that was kept elsewhere reveals this change.
    database
        .execute_batch(
            "DELETE FROM audit_block WHERE lastSeq >= 5; UPDATE audit_chain SET (headSeq, headHash) = \
             (SELECT lastSeq, hash FROM audit_block ORDER BY lastSeq DESC LIMIT 1)",
        )
        .expect("cut");
    succeeds(&site, &["audit", "verify"]);
    assert!(fails(&site, &["audit", "verify", "--has", &head], 1).contains("is missing"));
    database
        .execute_batch("UPDATE audit_block SET entries = replace(entries, 'SN', 'NS') WHERE firstSeq = 2")
        .expect("changed");
    assert!(fails(&site, &["audit", "verify"], 1).contains("entry 2 is not what was written"));
}

#[test]
fn a_server_prunes_what_need_not_be_kept() {
    let site = site("[audit]\nkeep_days = 0");
    site.import(DEVICES);
    succeeds(&site, &["device", "disable", "OWN-1"]);
    let database = rusqlite::Connection::open(site.path("certdist.db")).expect("it opens");
    database
        .execute_batch(
            "UPDATE audit_block SET entries = '[{\"at\":5,\"event\":\"imported\"}]' WHERE lastSeq = 1",
        )
        .expect("old");
    let server = serve(&site, "info");
    assert_eq!(entries(&site, &[]).len(), 2, "for ever");
    // After a reload, a new limit applies immediately, and the log names the keys that need a
    // restart.
    configure(&site, "keep_days = 0", "keep_days = 30");
    configure(&site, "listen = \"127.0.0.1:0\"", "listen = \"127.0.0.1:9\"");
    reload(&server, &site, 1);
    wait_for(&site.path("log"), "restart certdist to apply them keys=\"listen\"", 1);
    wait_for(&site.path("log"), "removed expired entries of the audit log", 1);
    assert_eq!(server.stop(), Some(0));
    let events = entries(&site, &[]);
    let names: Vec<_> = events.iter().map(|event| event["event"].as_str().unwrap_or_default()).collect();
    assert_eq!(names, ["disabled", "pruned"]);
    assert!(succeeds(&site, &["audit", "verify"]).contains("2 entries, complete; 1 pruned before them"));
}

#[test]
fn a_backup_is_made_beside_a_server_and_restored() {
    let site = site("database_key = \"file:database.key\"");
    site.import(DEVICES);
    let server = serve(&site, "info");
    assert!(served(&server));
    let told = succeeds(&site, &["backup", "copy.db"]);
    assert!(told.starts_with("copy.db: 2 devices, 1 psks") && told.contains("sealed under key"), "{told}");
    let mode = fs::metadata(site.path("copy.db")).expect("it is there").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert!(fails(&site, &["backup", "copy.db"], 1).contains("is there already"));
    let left: Vec<_> = fs::read_dir(site.path("")).expect("the folder").map_while(Result::ok).collect();
    assert!(left.iter().all(|file| !file.file_name().to_string_lossy().contains(".part-")), "{left:?}");

    // A server has the database open, and the table has changed since the backup.
    succeeds(&site, &["device", "delete", "OWN-1", "--yes"]);
    for arguments in [&["restore", "copy.db", "--yes"][..], &["restore", "copy.db", "--yes", "--force"]] {
        assert!(fails(&site, arguments, 1).contains("in use by process"));
    }
    assert!(!own_served(&server), "the server goes on with its own database");
    assert_eq!(server.stop(), Some(0));
    assert!(fails(&site, &["restore", "copy.db", "--yes"], 1).contains("newer than the backup"));
    let mut asked = site.certdist(&["restore", "copy.db", "--force"]);
    let asked = asked.stdin(Stdio::null()).output().expect("it runs");
    assert!(asked.status.code() == Some(2) && stderr(&asked).contains("confirm with --yes"), "{asked:?}");
    succeeds(&site, &["restore", "copy.db", "--force", "--yes"]);
    let restored = entries(&site, &[]);
    assert!(restored.iter().any(|entry| entry["event"] == "restored"), "{restored:?}");
    succeeds(&site, &["audit", "verify"]);

    // The backup is restored where no database exists, and over a damaged database.
    for suffix in ["", "-wal", "-shm"] {
        let _ = fs::remove_file(site.path(&format!("certdist.db{suffix}")));
    }
    succeeds(&site, &["restore", "copy.db"]);
    assert!(succeeds(&site, &["export"]).contains(SECRET));
    site.write("certdist.db", "no database at all");
    assert!(fails(&site, &["restore", "copy.db", "--yes"], 1).contains("damaged"));
    succeeds(&site, &["restore", "copy.db", "--yes", "--force"]);
    let mode = fs::metadata(site.path("certdist.db")).expect("it is there").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let server = site.serve();
    assert!(served(&server) && own_served(&server));
    assert_eq!(server.stop(), Some(0));
}

#[test]
fn a_backup_that_is_damaged_or_needs_another_key_is_not_restored() {
    let site = site("database_key = \"file:database.key\"");
    site.import(DEVICES);
    succeeds(&site, &["backup", "copy.db"]);
    let before = succeeds(&site, &["export"]);
    let mut bytes = Vec::new();
    fs::File::open(site.path("copy.db")).and_then(|mut file| file.read_to_end(&mut bytes)).expect("read");
    bytes[4096..8192].fill(0x5a);
    fs::write(site.path("damaged.db"), &bytes).expect("written");
    fails(&site, &["restore", "damaged.db", "--yes", "--force"], 1);
    assert_eq!(succeeds(&site, &["export"]), before);
    configure(&site, "file:database.key", "file:next.key");
    let told = fails(&site, &["restore", "copy.db", "--yes", "--force"], 1);
    assert!(told.contains("copy.db") && told.contains("database_key_previous"), "{told}");
}

/// Creates a database of an earlier schema version, with two devices.
fn old_database(path: &Path, version: u32) {
    const VERSION_1: &str = include_str!("../../src/store/sqlite/tests/version_1.sql");
    const TO_2: &str = include_str!("../../src/store/sqlite/upgrade_1_to_2.sql");
    const VERSION_3: &str = include_str!("../../src/store/sqlite/tests/version_3_audit.sql");
    let database = rusqlite::Connection::open(path).expect("it opens");
    let scripts: &[&str] = match version {
        1 => &[VERSION_1],
        2 => &[VERSION_1, TO_2],
        _ => &[VERSION_3],
    };
    scripts.iter().for_each(|script| database.execute_batch(script).expect("a schema"));
    let devices = format!(
        "PRAGMA journal_mode = wal; PRAGMA user_version = {version};
         INSERT INTO device_table (deviceId, productKey, enrollment, deviceName, deviceSecret)
         VALUES ('SN00000001', 'a1lamp', 'lamp', 'lamp-1', '{SECRET}'), ('OWN-1', 'a1own', 'own', 'own-1', '{SECRET}');
         INSERT INTO device_key (pskIdentity, deviceId, psk) VALUES ('one', 'OWN-1', '{PSK}')"
    );
    database.execute_batch(&devices).expect("devices");
}

#[test]
fn a_backup_of_an_older_version_is_brought_up_to_date_and_restored() {
    for (version, devices, last) in [(1, 3, 0), (2, 3, 0), (3, 2, 4)] {
        let site = site("");
        old_database(&site.path("old.db"), version);
        let before = fs::read(site.path("old.db")).expect("it is there");
        let told = succeeds(&site, &["restore", "old.db"]);
        let expected = format!(
            "old.db: {devices} devices, 1 psks, audit log up to entry {last}; upgraded from version {version}"
        );
        assert!(told.starts_with(&expected), "{told}");
        assert_eq!(fs::read(site.path("old.db")).expect("it is there"), before, "it stays as it is");
        let server = site.serve();
        assert!(served(&server) && own_served(&server));

        // The backup is restored over a table with a device that the backup does not have.
        site.import("deviceId,enrollment\nSN00000009,lamp\n");
        assert!(fails(&site, &["restore", "old.db", "--yes", "--force"], 1).contains("in use by process"));
        assert_eq!(server.stop(), Some(0));
        assert!(fails(&site, &["restore", "old.db", "--yes"], 1).contains("newer than the backup"));
        succeeds(&site, &["restore", "old.db", "--yes", "--force"]);
        let exported = succeeds(&site, &["export"]);
        assert!(exported.contains(SECRET) && exported.contains(PSK) && !exported.contains("SN00000009"));
        succeeds(&site, &["audit", "verify"]);
        let entries = entries(&site, &[]);
        let restored = entries.iter().find(|entry| entry["event"] == "restored").expect("an entry");
        assert_eq!(restored["detail"], format!("from old.db, of version {version}"));
        let left = fs::read_dir(site.path("")).expect("the folder").map_while(Result::ok);
        let names: Vec<_> = left.map(|file| file.file_name().to_string_lossy().into_owned()).collect();
        assert!(!names.iter().any(|name| name.contains(".part") || name.contains(".upgrade")), "{names:?}");

        // A current backup is restored over the old database.
        succeeds(&site, &["backup", "new.db"]);
        fs::copy(site.path("old.db"), site.path("certdist.db")).expect("copied");
        let told = fails(&site, &["restore", "new.db", "--yes"], 1);
        assert!(told.contains("it is of an older version"), "{told}");
        succeeds(&site, &["restore", "new.db", "--yes", "--force"]);
        assert_eq!(succeeds(&site, &["export"]), exported);
    }
}

#[test]
fn a_backup_that_is_newer_or_old_and_damaged_is_not_restored() {
    let site = site("");
    site.import(DEVICES);
    let before = succeeds(&site, &["export"]);
    succeeds(&site, &["backup", "newer.db"]);
    let newer = rusqlite::Connection::open(site.path("newer.db")).expect("it opens");
    newer.execute_batch("PRAGMA user_version = 99").expect("newer");
    drop(newer);
    let told = fails(&site, &["restore", "newer.db", "--yes", "--force"], 1);
    assert!(told.contains("newer.db") && told.contains("schema version 99"), "{told}");
    assert!(told.contains("use a newer certdist"), "{told}");

    old_database(&site.path("old.db"), 2);
    let mut bytes = fs::read(site.path("old.db")).expect("it is there");
    let end = bytes.len();
    bytes[end - 4096..].fill(0x5a);
    fs::write(site.path("old.db"), &bytes).expect("written");
    let told = fails(&site, &["restore", "old.db", "--yes", "--force"], 1);
    assert!(told.contains("old.db") && !told.contains(".upgrade"), "{told}");

    site.write("empty.db", "");
    let told = fails(&site, &["restore", "empty.db", "--yes", "--force"], 1);
    assert!(told.contains("there is no database in it"), "{told}");
    assert_eq!(succeeds(&site, &["export"]), before);
}
