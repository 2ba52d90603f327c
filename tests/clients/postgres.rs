//! Tests of servers that share a PostgreSQL database, with the commands that an operator runs.
#![cfg(feature = "simulation")]

#[path = "../../src/testing/postgres.rs"]
pub(crate) mod server;

use std::{fs, path::Path, process::Command};

use crate::support::{
    self, CERTDIST, Process, SHARED_IDENTITY, SHARED_KEY, Site,
    console::{admin, free_address, use_alternately},
    document::blocks_of,
    http_get, stderr, stdout, until,
};

/// Number of devices.
const DEVICES: usize = 24;

/// Creates a site whose table is in this database, and whose cloud is this one.
fn site(url: &str, cloud: &Process) -> Site {
    Site::configured(&format!(
        "listen = \"127.0.0.1:0\"\ndatabase = \"{url}\"\n\
         [iot_platform]\nendpoint = \"http://{}\"\nregion = \"cn-shanghai\"\nqps = 1000\n\
         [[enrollment]]\nname = \"plug\"\nproduct_key = \"a1plug\"\nkind = \"shared\"\n\
         identity = \"{SHARED_IDENTITY}\"\nkey = \"hex:{}\"\n",
        cloud.address,
        hex::encode(SHARED_KEY)
    ))
}

/// Fetches a device's certificate, and returns it.
fn fetch(site: &Site, server: &Process, sn: &str) -> String {
    let (address, psk) = (server.address.to_string(), hex::encode(SHARED_KEY));
    let device =
        ["device-sim", "--server", &address, "--identity", SHARED_IDENTITY, "--psk", &psk, "--sn", sn];
    site.succeeds(&device)
}

#[test]
fn two_servers_serve_one_table_and_what_one_has_done_the_other_knows() {
    let cloud = Site::new();
    let simulator = cloud.simulator(&[]);
    let url = server::empty();
    // Two folders stand for two machines.
    let (one, other) = (site(&url, &simulator), site(&url, &simulator));
    assert!(one.succeeds(&["check-config"]).contains("does not exist yet"));
    let rows: String = (0..DEVICES).map(|number| format!("PLUG-{number:03}\n")).collect();
    one.write("import.csv", &format!("deviceId\n{rows}"));
    let dry_run = one.succeeds(&["import", "--dry-run", "import.csv"]);
    assert!(dry_run.contains("24"), "{dry_run}");
    one.succeeds(&["import", "import.csv"]);
    assert!(other.succeeds(&["check-config"]).contains(": good"));

    let servers = [one.serve(), other.serve()];
    for number in 0..DEVICES / 2 {
        let sn = format!("PLUG-{number:03}");
        // Both servers are asked, each of them first for every second device.
        let [first, second] = if number % 2 == 0 { [0, 1] } else { [1, 0] };
        assert_eq!(fetch(&one, &servers[first], &sn), fetch(&one, &servers[second], &sn), "{sn}");
    }
    // The command registers the rest beside the servers.
    assert_eq!(other.succeeds(&["register"]), "12 registered, 0 refused\n");
    let stats: serde_json::Value =
        serde_json::from_str(&http_get(simulator.address, "/stats")).expect("JSON");
    assert_eq!(stats["devices"], DEVICES, "each device is registered once");

    one.succeeds(&["device", "disable", "PLUG-001"]);
    assert!(other.succeeds(&["device", "show", "PLUG-001"]).contains("disabled"));
    let [killed, left] = servers;
    killed.kill();
    fetch(&other, &left, "PLUG-020");
    assert_eq!(left.stop(), Some(0));
    let table = other.succeeds(&["export"]);
    assert_eq!(table.lines().count(), 1 + DEVICES, "{table}");
    let verified = one.succeeds(&["audit", "verify"]);
    assert!(verified.contains("entries"), "{verified}");
    let counted: serde_json::Value = serde_json::from_str(&one.succeeds(&["stats", "--json"])).expect("JSON");
    assert_eq!(counted["total"]["registered"], DEVICES, "{counted}");
    assert_eq!(counted["total"]["issued"], DEVICES / 2 + 1, "{counted}");
}

#[test]
fn secrets_are_sealed_in_the_database() {
    let cloud = Site::new();
    let simulator = cloud.simulator(&[]);
    let url = server::empty();
    let site = site(&url, &simulator);
    site.import("deviceId,deviceName,deviceSecret\nPLUG-1,plug-1,secretofplug10000000000000000000\n");
    let configuration = std::fs::read_to_string(site.path("certdist.toml")).expect("it is there");
    site.write("database.key", &"ab".repeat(32));
    site.write("certdist.toml", &format!("database_key = \"file:database.key\"\n{configuration}"));
    site.succeeds(&["database", "seal"]);
    site.succeeds(&["database", "check"]);
    let server = site.serve();
    assert!(fetch(&site, &server, "PLUG-1").contains("plug-1"));
    // Without the key, the table is of no use.
    site.write("certdist.toml", &configuration);
    let refused = site.run(&["device", "show", "PLUG-1"]);
    assert!(stderr(&refused).contains("sealed under key"), "{}", stderr(&refused));
}

#[test]
fn a_long_backlog_of_the_audit_log_is_caught_up() {
    const BACKLOG: u64 = 2500;
    let url = server::empty();
    let cloud = Site::new();
    let site = site(&url, &cloud.simulator(&[]));
    site.import("deviceId,deviceName,deviceSecret\nPLUG-1,plug-1,secretofplug10000000000000000000\n");
    let schema = url.rsplit_once("%3D").expect("a schema").1;
    server::run(
        &url,
        &format!(
            "INSERT INTO {schema}.audit_pending (deviceId, at, event, line) SELECT 'PLUG-1', 5, 'enabled', \
             '{{\"at\":5,\"event\":\"enabled\",\"deviceId\":\"PLUG-1\"}}' FROM generate_series(1, {BACKLOG})"
        ),
    );
    let server = site.serve();
    // The entry about this device is written after those that wait, by several transactions.
    fetch(&site, &server, "PLUG-1");
    let whole = format!("{} entries, complete; 0 pruned", BACKLOG + 2);
    support::until("the backlog is in the chain", || site.succeeds(&["audit", "verify"]).starts_with(&whole));
}

#[test]
fn a_password_is_in_no_message() {
    let cloud = Site::new();
    let site = site("postgres://anna:s3cret@127.0.0.1:1/certdist", &cloud.simulator(&[]));
    for arguments in
        [&["check-config"][..], &["serve"], &["device", "show", "PLUG-1"], &["backup", "copy.db"], &["stats"]]
    {
        let failed = site.run(arguments);
        let said = stdout(&failed) + &stderr(&failed);
        assert!(!failed.status.success() && said.contains("anna@127.0.0.1:1"), "{arguments:?}: {said}");
        assert!(!said.contains("s3cret"), "{arguments:?}: {said}");
    }
}

/// Returns whether the device `SN-1` of an individual enrollment is served with this key.
fn is_served(site: &Site, server: &Process, psk: &str) -> bool {
    let address = server.address.to_string();
    let device = ["device-sim", "--server", &address, "--identity", "id-1", "--psk", psk, "--patience", "3"];
    site.run(&device).status.success()
}

#[test]
fn a_key_that_one_machine_replaces_is_replaced_at_each_server() {
    const OLD: &str = "00112233445566778899aabbccddeeff";
    const NEW: &str = "a0112233445566778899aabbccddeeff";
    let url = server::empty();
    let machine = || {
        Site::configured(&format!(
            "listen = \"127.0.0.1:0\"\ndatabase = \"{url}\"\n\
             [[enrollment]]\nname = \"own\"\nproduct_key = \"a1own\"\nkind = \"individual\"\n"
        ))
    };
    let (one, other) = (machine(), machine());
    let line = |next: &str| {
        format!(
            "deviceId,deviceName,deviceSecret,pskIdentity,psk,pskNext\n\
             SN-1,name-1,secret00000000000000000000000001,id-1,{OLD},{next}\n"
        )
    };
    one.import(&line(""));
    let servers = [one.serve(), other.serve()];
    assert!(servers.iter().all(|server| is_served(&one, server, OLD) && !is_served(&one, server, NEW)));
    one.import(&line(NEW));
    assert!(servers.iter().all(|server| is_served(&one, server, OLD) && is_served(&one, server, NEW)));
    assert!(other.succeeds(&["export"]).contains(NEW));
    other.succeeds(&["device", "key", "SN-1", "--next-becomes-key", "--anyway"]);
    assert!(servers.iter().all(|server| is_served(&one, server, NEW) && !is_served(&one, server, OLD)));
    assert!(one.succeeds(&["audit", "export"]).contains("\"rekeyed\""));
}

#[test]
fn a_device_that_one_machine_moves_has_its_new_certificate_at_each_server() {
    let cloud = Site::new();
    let instance = |id: &str, product: &str| format!("id={id},region=cn-shanghai,product={product}");
    let [first, second] = [instance("iot-s", "a1plug"), instance("iot-f", "a1plug2")];
    let simulator = cloud.simulator(&["--instance", &first, "--instance", &second]);
    let url = server::empty();
    let target = |name: &str, id: &str| {
        format!(
            "[[target]]\nname = \"{name}\"\nendpoint = \"http://{}\"\nregion = \"cn-shanghai\"\n\
             instance_id = \"{id}\"\nmanage = true\n",
            simulator.address
        )
    };
    let machine = || {
        Site::configured(&format!(
            "listen = \"127.0.0.1:0\"\ndatabase = \"{url}\"\n{}{}\
             [[enrollment]]\nname = \"plug\"\nproduct_key = \"a1plug\"\nkind = \"shared\"\n\
             identity = \"{SHARED_IDENTITY}\"\nkey = \"hex:{}\"\ntarget = \"one\"\n",
            target("one", "iot-s"),
            target("two", "iot-f"),
            hex::encode(SHARED_KEY)
        ))
    };
    let (one, other) = (machine(), machine());
    one.import("deviceId\nPLUG-1\nPLUG-2\n");
    let servers = [one.serve(), other.serve()];
    let former = fetch(&one, &servers[0], "PLUG-1");
    assert!(former.contains("\"a1plug\""), "{former}");
    let order = ["device", "move", "PLUG-1", "--target", "two", "--product", "a1plug2", "--former", "delete"];
    let moved = other.succeeds(&order);
    assert!(moved.contains("moved to two"), "{moved}");
    let stats: serde_json::Value =
        serde_json::from_str(&http_get(simulator.address, "/stats")).expect("JSON");
    assert_eq!((&stats["instances"]["iot-s"], &stats["instances"]["iot-f"]), (&0.into(), &1.into()));
    for server in &servers {
        let new = fetch(&one, server, "PLUG-1");
        assert!(new.contains("\"a1plug2\""), "{new}");
    }
    // A device without a certificate moves in the table alone.
    one.succeeds(&["device", "move", "PLUG-2", "--target", "two", "--product", "a1plug2"]);
    assert!(fetch(&one, &servers[1], "PLUG-2").contains("\"a1plug2\""));
    one.succeeds(&["audit", "verify"]);
    one.succeeds(&["database", "check"]);
}

/// Returns the block of commands that contains the text `with`, from a page of the documentation, with
/// its URLs replaced.
fn commands(page: &str, with: &str, urls: &[(&str, &str)]) -> String {
    let page = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(page)).expect("a page");
    let block = blocks_of(&page, "sh").into_iter().find(|block| block.contains(with)).expect("a block");
    let mut commands = block.to_owned();
    for (shown, url) in urls {
        let export = format!("={shown}\n");
        assert!(commands.contains(&export), "{shown}: {block}");
        commands = commands.replace(&export, &format!("='{url}'\n"));
    }
    commands
}

/// Runs commands in a shell, up to the first one that fails, and returns their output.
fn run_all(site: &Site, commands: &str) -> String {
    let folder = Path::new(CERTDIST).parent().expect("a folder").display();
    let path = std::env::var("PATH").expect("a path");
    let mut shell = Command::new("sh");
    shell.args(["-e", "-c", commands]).current_dir(site.path("")).env_remove("RUST_LOG");
    let output = shell.env("PATH", format!("{folder}:{path}")).output().expect("sh");
    assert!(output.status.success(), "{commands}\n{}{}", stdout(&output), stderr(&output));
    stdout(&output)
}

#[test]
fn a_database_is_copied_with_the_commands_of_the_page() {
    let cloud = Site::new();
    let simulator = cloud.simulator(&[]);
    let file = site("sqlite:certdist.db", &simulator);
    file.import("deviceId\nPLUG-1\nPLUG-2\n");
    let server = file.serve();
    let certificate = fetch(&file, &server, "PLUG-1");
    let url = server::empty().replace('?', "?application_name=copied&");
    let shown = "postgres://certdist@db.example.com/certdist";
    let commands = commands("docs/migrate.md", "certdist copy", &[(shown, &url)]);
    let refused = file.run(&["copy", "--from", "sqlite:certdist.db", "--to", &url]);
    assert!(stderr(&refused).contains("stop the server first"), "{}", stderr(&refused));
    assert_eq!(server.stop(), Some(0));
    let said = run_all(&file, &commands);
    assert!(said.contains("2 devices, 0 psks") && said.contains("compared"), "{said}");
    let json = said.lines().find(|line| line.starts_with('{')).expect("a line of JSON");
    let json: serde_json::Value = serde_json::from_str(json).expect("JSON");
    assert_eq!((&json["records"]["devices"], &json["resumedAt"]), (&2.into(), &0.into()), "{json}");
    for database in [&*url, "sqlite:back.db"] {
        let copied = site(database, &simulator);
        if database.starts_with("sqlite") {
            fs::copy(file.path("back.db"), copied.path("back.db")).expect("the copy");
        }
        let server = copied.serve();
        assert_eq!(fetch(&copied, &server, "PLUG-1"), certificate);
        assert_eq!(server.stop(), Some(0));
    }
}

#[test]
fn a_database_is_backed_up_and_restored_with_the_commands_of_the_page() {
    let cloud = Site::new();
    let simulator = cloud.simulator(&[]);
    let there = server::empty();
    let (there, _) = there.split_once('?').expect("parameters");
    server::run(there, "CREATE DATABASE dumped");
    let url = |name: &str| there.replace("/postgres", &format!("/{name}"));
    let (dumped, restored) = (url("dumped"), url("restored"));
    let original = site(&dumped, &simulator);
    original.import("deviceId\nPLUG-1\nPLUG-2\n");
    let server = original.serve();
    let certificate = fetch(&original, &server, "PLUG-1");
    let refused = original.run(&["backup", "copy.db"]);
    assert!(stderr(&refused).contains("pg_dump --format=custom"), "{}", stderr(&refused));
    let urls = [
        ("postgres://certdist@db.example.com/certdist", &*dumped),
        ("postgres://certdist@db.example.com/restored", &restored),
    ];
    // The server runs meanwhile.
    let said = run_all(&original, &commands("docs/operations.md", "pg_dump", &urls));
    assert!(said.contains("entries"), "{said}");
    assert_eq!(server.stop(), Some(0));
    let other = site(&restored, &simulator);
    let server = other.serve();
    assert_eq!(fetch(&other, &server, "PLUG-1"), certificate);
    assert!(fetch(&other, &server, "PLUG-2").contains("PLUG-2"));
    other.succeeds(&["audit", "verify"]);
}

#[test]
fn servers_are_listed_and_their_consoles_take_each_others_requests() {
    let url = server::empty();
    let machine = |name: &str| {
        let address = free_address();
        let site = Site::configured(&format!(
            "server_name = \"{name}\"\nlisten = \"127.0.0.1:0\"\ndatabase = \"{url}\"\n{}\
             [[enrollment]]\nname = \"lamp\"\nproduct_key = \"a1lamp\"\nkind = \"derived\"\n\
             key = \"hex:000102030405060708090a0b0c0d0e0f\"\n",
            admin(address, "")
        ));
        (site, address)
    };
    let [(one, first), (other, second)] = [machine("east"), machine("west")];
    one.import("deviceId\nSN-1\n");
    let servers = [one.serve(), other.serve()];
    use_alternately([first, second]);
    let mut listed = String::new();
    until("both servers are listed", || {
        listed = one.succeeds(&["servers"]);
        listed.contains("east") && listed.contains("west")
    });
    assert!(listed.contains("serve") && !listed.contains("gone"), "{listed}");
    for server in servers {
        assert_eq!(server.stop(), Some(0));
    }
    assert!(!one.succeeds(&["servers"]).contains("west"));
}
