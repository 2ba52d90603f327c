//! Tests that nothing is sealed under a key that a running server lacks, that a server that lacks a
//! key reports it, and that secrets in clear text are reported if a key is configured.

use std::{
    fs,
    net::TcpListener,
    os::unix::fs::PermissionsExt,
    thread,
    time::{Duration, Instant},
};

use crate::support::{MASTER, Process, Site, http_get, stderr, stdout};

/// Waits until a text satisfies a condition.
fn wait_for(read: impl Fn() -> String, holds: impl Fn(&str) -> bool) -> String {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let text = read();
        if holds(&text) {
            return text;
        }
        assert!(Instant::now() < deadline, "{text}");
        thread::yield_now();
    }
}

#[test]
fn nothing_is_sealed_under_a_key_that_a_running_server_lacks_and_a_server_that_lacks_one_is_not_ready() {
    let admin = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port");
    let site = Site::configured(&format!(
        "listen = \"127.0.0.1:0\"\ndatabase = \"sqlite:certdist.db\"\n# key\n[admin]\nlisten = \"{admin}\"\n\
         [[enrollment]]\nname = \"own\"\nproduct_key = \"a1own\"\nkind = \"individual\"\n\
         [[enrollment]]\nname = \"lamp\"\nproduct_key = \"a1lamp\"\nkind = \"derived\"\nkey = \"hex:{MASTER}\"\n"
    ));
    site.import(&format!("deviceId,enrollment,pskIdentity,psk\nOWN-1,own,one,{}\n", "0f1e".repeat(8)));
    let log = fs::File::create(site.path("log")).expect("a log");
    let server = Process::start(site.certdist(&["serve"]).stderr(log));
    let ready = || http_get(admin, "/readyz");
    let log = || fs::read_to_string(site.path("log")).expect("a log");
    let missing = || {
        let metrics = http_get(admin, "/metrics");
        let value = metrics.lines().find_map(|line| line.strip_prefix("certdist_database_keys_missing "));
        value.expect("the metric").to_owned()
    };
    assert!(ready().starts_with("ready"), "{}", ready());
    assert_eq!(missing(), "0");

    let configuration = fs::read_to_string(site.path("certdist.toml")).expect("it is there");
    let reload = |former: &str, key: &str, times: usize| {
        site.write(key, &hex::encode(key).repeat(8)[..64]);
        let line = format!("database_key = \"file:{key}\"\ndatabase_key_previous = [\"file:{former}\"]");
        site.write("certdist.toml", &configuration.replace("# key", &line));
        // The server has only its former keys until it reloads its configuration.
        let refused = site.run(&["database", "seal"]);
        assert_eq!(refused.status.code(), Some(1), "{}", stderr(&refused));
        let told = stderr(&refused);
        assert!(told.contains(&format!("process {} has the database open", server.id())), "{told}");
        assert!(told.contains("systemctl reload certdist"), "{told}");
        assert!(ready().starts_with("ready"), "{}", ready());
        server.signal("HUP");
        wait_for(log, |log| log.matches("and the database keys").count() == times);
        let sealed = site.run(&["database", "seal"]);
        assert!(sealed.status.success(), "{}", stderr(&sealed));
        assert!(stdout(&sealed).starts_with("1 secrets sealed"), "{}", stdout(&sealed));
    };
    site.write("first.key", &"17".repeat(32));
    reload("first.key", "second.key", 1);
    reload("second.key", "third.key", 2);

    // Another process has sealed a secret under its own key. Its lock was not seen, as is the case
    // in another container.
    let database = rusqlite::Connection::open(site.path("certdist.db")).expect("it opens");
    database
        .execute("INSERT INTO database_key (keyId, firstUsed) VALUES ('0badc0de', 0)", ())
        .expect("noted");
    let told = wait_for(ready, |told| told.starts_with("not ready"));
    assert!(told.contains("sealed under a key that this process does not have"), "{told}");
    assert!(told.contains("0badc0de") && told.contains("systemctl reload certdist"), "{told}");
    wait_for(log, |log| log.contains("secrets in the database cannot be opened"));
    assert_eq!(missing(), "1");
    database.execute("DELETE FROM database_key WHERE keyId = '0badc0de'", ()).expect("forgotten");
    wait_for(log, |log| log.contains("the database keys open every secret again"));
    assert_eq!(missing(), "0");
    wait_for(ready, |told| told.starts_with("ready"));
    // The problem is logged once.
    assert_eq!(log().matches("secrets in the database cannot be opened").count(), 1);
    assert_eq!(server.stop(), Some(0));
}

#[test]
fn clear_secrets_beside_a_key_are_told_by_check_config_and_by_a_restore() {
    let site = Site::new();
    let without = fs::read_to_string(site.path("certdist.toml")).expect("it is there");
    let device = "PLUG-1,plug,plug-1,secretp1000000000000000000000000";
    site.import(&format!("deviceId,enrollment,deviceName,deviceSecret\n{device}\n"));
    let warned = || stderr(&site.run(&["check-config"]));
    fs::set_permissions(site.path("certdist.db"), fs::Permissions::from_mode(0o644)).expect("permissions");
    assert!(
        warned().contains("certdist.db has 1 secrets in clear text, and every user can read it: chmod o= ")
    );
    fs::set_permissions(site.path("certdist.db"), fs::Permissions::from_mode(0o600)).expect("permissions");
    let copied = site.run(&["backup", "clear.db"]);
    assert!(copied.status.success(), "{}", stderr(&copied));

    site.write("database.key", &"17".repeat(32));
    site.write("certdist.toml", &format!("database_key = \"file:database.key\"\n{without}"));
    let clear = "1 secrets in the database are in clear text; run `certdist database seal`";
    assert!(warned().contains(clear), "{}", warned());
    assert!(site.run(&["database", "seal"]).status.success());
    assert!(!warned().contains("clear text"), "{}", warned());
    for keyless in [false, true] {
        if keyless {
            site.write("certdist.toml", &without);
        }
        let told = stdout(&site.run(&["restore", "clear.db", "--dry-run"]));
        let clear =
            "clear.db: 1 of its secrets are in clear text, and would be so in the database; run `certdist";
        assert!(told.contains(clear), "{told}");
    }
}
