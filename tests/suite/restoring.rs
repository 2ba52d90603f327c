//! Tests that a restore never replaces a database in use, and that it lists the changes that it
//! undoes. Also tests that a server ends when its database is replaced or removed.
#![cfg(feature = "simulation")]

use std::{fs, os::unix::fs::symlink};

use crate::support::{Process, SHARED_IDENTITY, SHARED_KEY, Site, stderr, stdout};

const DEVICES: &str = "deviceId,enrollment,deviceName,deviceSecret\n\
                       SN00000001,lamp,,\nSN00000002,lamp,,\nSN00000003,lamp,,\nSN00000004,lamp,,\n\
                       PLUG-1,plug,plug-1,secretp1000000000000000000000000\n";

fn succeeds(site: &Site, arguments: &[&str]) -> String {
    let output = site.run(arguments);
    assert!(output.status.success(), "{arguments:?}: {}", stderr(&output));
    stdout(&output)
}

fn refused(site: &Site, arguments: &[&str]) -> String {
    let output = site.run(arguments);
    assert_eq!(output.status.code(), Some(1), "{arguments:?}: {}", stdout(&output));
    stderr(&output)
}

fn serve(site: &Site, log: &str) -> Process {
    let log = fs::File::create(site.path(log)).expect("a log");
    Process::start(site.certdist(&["serve"]).stderr(log))
}

#[test]
fn a_database_in_use_is_not_replaced_by_any_path_and_whatever_became_of_its_file() {
    let site = Site::new();
    site.import(DEVICES);
    succeeds(&site, &["backup", "copy.db"]);
    symlink(site.path("certdist.db"), site.path("link.db")).expect("a link");
    let by_link = fs::read_to_string(site.path("certdist.toml")).expect("it is there");
    site.write("link.toml", &by_link.replace("sqlite:certdist.db", "sqlite:link.db"));
    let restore = ["restore", "copy.db", "--yes", "--force"];
    let by_link = ["restore", "copy.db", "--yes", "--force", "--config", "link.toml"];

    let server = serve(&site, "log");
    for arguments in [&restore[..], &by_link] {
        let told = refused(&site, arguments);
        assert!(told.contains("in use by process") && told.contains("stop the server first"), "{told}");
    }
    let whole = fs::read(site.path("certdist.db")).expect("the database");
    fs::write(site.path("certdist.db"), "damaged").expect("it can be written");
    assert!(refused(&site, &restore).contains("in use"), "damaged");
    fs::write(site.path("certdist.db"), &whole).expect("it can be written");
    server.kill();

    // After a server is killed, the database can be restored.
    fs::write(site.path("certdist.db"), "damaged").expect("it can be written");
    succeeds(&site, &restore);
    let server = serve(&site, "log");
    assert!(refused(&site, &by_link).contains("in use"));
    assert_eq!(server.stop(), Some(0));
    assert!(!site.path("certdist.db-lock").exists(), "the last process removes the lock file");
    succeeds(&site, &by_link);
    let itself = refused(&site, &["restore", "link.db", "--yes", "--force"]);
    assert!(itself.contains("this is the database itself"), "{itself}");
}

#[test]
fn a_damaged_database_is_replaced_where_its_link_leads() {
    let site = Site::new();
    fs::create_dir(site.path("disk")).expect("a folder");
    symlink("disk/real.db", site.path("certdist.db")).expect("a link");
    fs::write(site.path("disk/real.db"), "").expect("written");
    site.import(DEVICES);
    succeeds(&site, &["backup", "copy.db"]);
    fs::write(site.path("disk/real.db"), "damaged").expect("written");
    // If the log of the damaged file stayed, SQLite would apply it to the restored file.
    fs::write(site.path("disk/real.db-wal"), "left behind").expect("written");
    succeeds(&site, &["restore", "copy.db", "--yes", "--force"]);
    assert!(site.path("certdist.db").is_symlink() && !site.path("disk/real.db").is_symlink());
    assert!(!site.path("disk/real.db-wal").exists());
    assert!(succeeds(&site, &["export"]).contains("SN00000001"));
}

#[test]
fn a_backup_that_is_no_file_and_a_damaged_database_are_named_with_the_next_step() {
    let site = Site::new();
    site.import(DEVICES);
    for (file, expected) in
        [("..", "this is not a file; expected"), ("no.db", "expected a file that `certdist backup`")]
    {
        let told = refused(&site, &["restore", file]);
        assert!(told.contains(expected) && told.contains(&site.path(file).display().to_string()), "{told}");
    }
    let path = site.path("certdist.db");
    let mut bytes = fs::read(&path).expect("it is there");
    bytes[4096..].fill(0x5a);
    fs::write(&path, &bytes).expect("written");
    let told = refused(&site, &["stats"]);
    assert!(told.contains("the database is damaged") && told.contains("restore --force"), "{told}");
    assert!(told.contains(&path.display().to_string()), "{told}");
}

#[test]
fn the_database_of_another_program_is_not_replaced() {
    let site = Site::new();
    site.import(DEVICES);
    succeeds(&site, &["backup", "copy.db"]);
    fs::remove_file(site.path("certdist.db")).expect("removed");
    let other = rusqlite::Connection::open(site.path("certdist.db")).expect("it opens");
    other.execute_batch("CREATE TABLE bookmark (url TEXT)").expect("a table");
    let unmarked = fs::read(site.path("certdist.db")).expect("it is there");
    other.execute_batch("PRAGMA application_id = 252006674").expect("marked");
    drop(other);
    let marked = fs::read(site.path("certdist.db")).expect("it is there");
    let mut damaged = marked.clone();
    damaged[100..].fill(0x5a);
    for content in [unmarked, marked, damaged] {
        fs::write(site.path("certdist.db"), &content).expect("written");
        for last in ["--force", "--dry-run"] {
            let told = refused(&site, &["restore", "copy.db", "--yes", last]);
            assert!(told.contains("another program") && told.contains("move the file away"), "{told}");
        }
        assert!(fs::read(site.path("certdist.db")).expect("it is there") == content);
    }
    fs::rename(site.path("certdist.db"), site.path("bookmarks.db")).expect("moved away");
    succeeds(&site, &["restore", "copy.db"]);
}

#[test]
fn no_server_starts_while_a_database_is_restored() {
    let site = Site::new();
    site.import(DEVICES);
    succeeds(&site, &["backup", "copy.db"]);
    let lock = certdist::store::backup::Lock::alone(&site.path("certdist.db")).expect("no one has it");
    let told = refused(&site, &["serve"]);
    assert!(told.contains("it is being restored"), "{told}");
    drop(lock);
    assert_eq!(site.serve().stop(), Some(0));
}

#[test]
fn a_server_whose_database_was_replaced_or_removed_ends_with_a_remedy() {
    for replaces in [true, false] {
        let site = Site::new();
        site.import(DEVICES);
        succeeds(&site, &["backup", "copy.db"]);
        let mut server = serve(&site, "log");
        // A database that is moved away and immediately moved back does not count as lost.
        fs::rename(site.path("certdist.db"), site.path("aside.db")).expect("moved");
        fs::rename(site.path("aside.db"), site.path("certdist.db")).expect("moved back");
        match replaces {
            true => fs::rename(site.path("copy.db"), site.path("certdist.db")).expect("replaced"),
            false => fs::remove_file(site.path("certdist.db")).expect("removed"),
        }
        let restore = site.run(&["restore", "copy.db", "--yes", "--force"]);
        // On a slow machine, the server may have ended before the restore.
        assert!(!restore.status.success() || !server.is_running(), "the server has it");
        assert_eq!(server.ended(), Some(1));
        let log = fs::read_to_string(site.path("log")).expect("a log");
        let what = if replaces { "was replaced with another file" } else { "was removed or moved" };
        assert!(log.contains(what) && log.contains("certdist restore"), "{log}");
        // A service manager would restart the server. The new server must not begin with an empty
        // database.
        if !replaces && !restore.status.success() {
            site.write("rows.csv", "deviceId,enrollment\nSN00000001,lamp\n");
            // `serve` and `import` refuse to create a database. No other command may suggest
            // otherwise.
            for line in [
                "serve",
                "import rows.csv",
                "import rows.csv --dry-run",
                "check-config",
                "stats",
                "device list",
            ] {
                let told = refused(&site, &line.split(' ').collect::<Vec<_>>());
                assert!(told.contains("but there was one"), "{line}: {told}");
            }
            succeeds(&site, &["restore", "copy.db"]);
        }
        assert_eq!(site.serve().stop(), Some(0));
    }
}

#[test]
fn a_server_whose_log_was_removed_or_whose_database_became_a_link_ends() {
    for removes_log in [true, false] {
        let site = Site::new();
        site.import(DEVICES);
        let server = serve(&site, "log");
        let (address, key) = (server.address.to_string(), hex::encode(SHARED_KEY));
        let device = ["device-sim", "--server", &address, "--identity", SHARED_IDENTITY, "--psk", &key];
        assert!(site.certdist(&device).args(["--sn", "PLUG-1"]).output().expect("it runs").status.success());
        match removes_log {
            true => {
                fs::remove_file(site.path("certdist.db-wal")).expect("removed");
                fs::remove_file(site.path("certdist.db-shm")).expect("removed");
            }
            false => {
                fs::rename(site.path("certdist.db"), site.path("other.db")).expect("moved");
                symlink("other.db", site.path("certdist.db")).expect("a link");
            }
        }
        assert_eq!(server.ended(), Some(1));
        let log = fs::read_to_string(site.path("log")).expect("a log");
        let file = if removes_log { "/certdist.db-wal: " } else { "/other.db-wal: " };
        assert!(log.contains(file) && log.contains("the newest changes are in the former file"), "{log}");
        if !removes_log {
            fs::rename(site.path("other.db"), site.path("certdist.db")).expect("moved back");
            assert!(succeeds(&site, &["audit", "export"]).contains("\"issued\""));
        }
        succeeds(&site, &["audit", "verify"]);
        assert_eq!(site.serve().stop(), Some(0));
    }
}

#[test]
fn commands_and_other_servers_do_not_make_a_database_seem_lost() {
    let site = Site::new();
    site.import(DEVICES);
    let path = site.path("certdist.db");
    let url = format!("sqlite:{}", path.display());
    let store = certdist::store::open(&url, certdist::seal::Keyring::default()).expect("it opens");
    let is_in_place = |after: &str| store.is_in_place().unwrap_or_else(|error| panic!("{after}: {error}"));
    is_in_place("opening");
    let key = "1".repeat(64);
    let keys = certdist::seal::DatabaseKey::parse(&key).map(|key| certdist::seal::Keyring::new([key]));
    store.set_keys(keys.expect("a key")).expect("nothing is sealed");
    site.write("database.key", &key);
    let configuration = fs::read_to_string(site.path("certdist.toml")).expect("it is there");
    site.write("sealed.toml", &format!("database_key = \"file:database.key\"\n{configuration}"));
    let rows: String = (0..2000).map(|number| format!("NEW-{number:04},lamp\n")).collect();
    site.write("batch.csv", &format!("deviceId,enrollment\n{rows}"));
    for arguments in [
        &["import", "batch.csv"][..],
        &["import", "batch.csv", "--dry-run"],
        &["stats"],
        &["export", "--output", "out.csv"],
        &["backup", "copy.db"],
        &["restore", "copy.db", "--dry-run"],
        &["check-config"],
        &["device", "disable", "SN00000001"],
        &["audit", "verify"],
        // This command writes to many pages of the database's file, and empties its log.
        &["database", "seal", "--config", "sealed.toml"],
    ] {
        succeeds(&site, arguments);
        is_in_place(arguments[0]);
    }
    let server = Process::start(&mut site.certdist(&["serve", "--config", "sealed.toml"]));
    is_in_place("the start of a server");
    server.kill();
    is_in_place("the end of a killed server");
    let server = Process::start(&mut site.certdist(&["serve", "--config", "sealed.toml"]));
    assert_eq!(server.stop(), Some(0));
    is_in_place("the end of a server");
}

#[test]
fn a_restore_lists_what_it_undoes() {
    let site = Site::new();
    site.import(DEVICES);
    succeeds(&site, &["device", "disable", "SN00000002"]);
    succeeds(&site, &["device", "disable", "SN00000004"]);
    succeeds(&site, &["backup", "copy.db"]);
    assert!(!succeeds(&site, &["restore", "copy.db", "--dry-run"]).contains("undo"), "nothing has changed");
    for arguments in [
        &["device", "disable", "SN00000001"][..],
        &["device", "enable", "SN00000002"],
        &["device", "delete", "SN00000003", "--yes"],
        // A device that was changed and changed back counts as unchanged.
        &["device", "enable", "SN00000004"],
        &["device", "disable", "SN00000004"],
    ] {
        succeeds(&site, arguments);
    }
    let rows: String = (0..25).map(|number| format!("NEW-{number:02},lamp\n")).collect();
    site.write("batch.csv", &format!("deviceId,enrollment\n{rows}"));
    succeeds(&site, &["import", "batch.csv"]);
    for number in 0..25 {
        succeeds(&site, &["device", "disable", &format!("NEW-{number:02}")]);
    }
    let server = site.serve();
    let (address, key) = (server.address.to_string(), hex::encode(SHARED_KEY));
    let device = ["device-sim", "--server", &address, "--identity", SHARED_IDENTITY, "--psk", &key];
    assert!(site.certdist(&device).args(["--sn", "PLUG-1"]).output().expect("it runs").status.success());

    let told = succeeds(&site, &["restore", "copy.db", "--dry-run"]);
    assert!(told.contains("in use by process") && told.contains("needs --force"), "{told}");
    assert_eq!(server.stop(), Some(0));
    let expected = "a restore would undo these changes since the backup:\n  \
                    1: disabled devices would become enabled: SN00000001\n  \
                    1: enabled devices would become disabled: SN00000002\n  \
                    1: deleted devices would come back: SN00000003\n  \
                    1: first issues would be forgotten, and may happen once more: PLUG-1\n  \
                    1: imports would be undone: batch.csv: 25 devices added, 0 changed, 0 unchanged\n";
    assert!(told.contains(expected), "{told}");
    let output = site.run(&["restore", "copy.db", "--yes"]);
    assert!(output.status.code() == Some(1) && stdout(&output).contains(expected), "{}", stdout(&output));

    // If there are many changes, only the first of them are named.
    succeeds(&site, &["backup", "many.db"]);
    for number in 0..25 {
        succeeds(&site, &["device", "enable", &format!("NEW-{number:02}")]);
    }
    let told = succeeds(&site, &["restore", "many.db", "--yes", "--force"]);
    assert!(told.contains("25: enabled devices would become disabled: NEW-00, "), "{told}");
    assert!(told.contains("NEW-19 and 5 more") && !told.contains("NEW-20"), "{told}");

    // A backup of another database shares nothing with this database.
    let other = Site::new();
    other.import("deviceId,enrollment\nOTHER,lamp\n");
    let copy = site.path("other.db").display().to_string();
    succeeds(&other, &["backup", &copy]);
    assert!(
        succeeds(&site, &["restore", "other.db", "--dry-run"]).contains("everything in it would be lost")
    );
    let third = Site::new();
    third.import("deviceId,enrollment\nTHIRD,lamp\nFOURTH,lamp\n");
    let refused = third.run(&["restore", &copy, "--yes"]);
    assert_eq!(refused.status.code(), Some(1));
    let reason = "it is another database than the one that was backed up; use --force to replace it anyway";
    assert!(stderr(&refused).contains(reason), "{}", stderr(&refused));
    assert!(third.run(&["device", "show", "THIRD"]).status.success());
}

#[test]
fn resets_and_undone_imports_are_listed_by_what_they_are_and_an_issue_once() {
    let site = Site::new();
    site.import(DEVICES);
    site.write("kept.csv", "deviceId,enrollment\nKEPT,lamp\n");
    let imported = site.run(&["import", "kept.csv"]);
    let number = |output: &std::process::Output| {
        stderr(output).trim_end().rsplit(' ').next().expect("a number").to_owned()
    };
    let server = site.serve();
    let (address, key) = (server.address.to_string(), hex::encode(SHARED_KEY));
    let issue = |device: &str| {
        let line = [
            "device-sim",
            "--server",
            &address,
            "--identity",
            SHARED_IDENTITY,
            "--psk",
            &key,
            "--sn",
            device,
        ];
        succeeds(&site, &line);
    };
    site.import(
        "deviceId,enrollment,deviceName,deviceSecret\nPLUG-2,plug,plug-2,secretp2000000000000000000000000\n",
    );
    issue("PLUG-2");
    succeeds(&site, &["backup", "copy.db"]);
    issue("PLUG-1");
    succeeds(&site, &["device", "reset", "PLUG-1"]);
    issue("PLUG-1");
    succeeds(&site, &["device", "reset", "PLUG-2"]);
    succeeds(&site, &["import", "undo", &number(&imported), "--yes"]);
    // An import that was both made and undone after the backup is not listed.
    site.write("brief.csv", "deviceId,enrollment\nBRIEF,lamp\n");
    let brief = site.run(&["import", "brief.csv"]);
    succeeds(&site, &["import", "undo", &number(&brief), "--yes"]);
    site.write("last.csv", "deviceId,enrollment\nLAST,lamp\n");
    succeeds(&site, &["import", "last.csv"]);
    let told = succeeds(&site, &["restore", "copy.db", "--dry-run"]);
    let expected = format!(
        "a restore would undo these changes since the backup:\n  \
         1: reset devices would count as issued or refused again: PLUG-2\n  \
         1: first issues would be forgotten, and may happen once more: PLUG-1\n  \
         1: imports would be undone: last.csv: 1 devices added, 0 changed, 0 unchanged\n  \
         1: imports that were undone would take effect again: import {} of kept.csv: 1 devices removed, 0 restored, \
         0 left\n",
        number(&imported)
    );
    assert!(told.contains(&expected), "{told}");
    // PLUG-2 is issued again after its reset. This is not listed as a first issue, because PLUG-2
    // is issued in the backup, too.
    issue("PLUG-2");
    let told = succeeds(&site, &["restore", "copy.db", "--dry-run"]);
    assert!(told.contains("may happen once more: PLUG-1\n"), "{told}");
}

#[test]
fn a_restore_says_that_the_orders_of_the_backup_end_and_carries_none_out() {
    let site = Site::new();
    site.import(DEVICES);
    let table = rusqlite::Connection::open(site.path("certdist.db")).expect("it opens");
    let order = "INSERT INTO cloud_order (deviceId, work, productKey, deviceName, orderedAt, who, target) \
                 VALUES ('PLUG-1', 'delete', 'a1plug', 'plug-1', 1, 'root', 'default')";
    assert_eq!(table.execute(order, ()), Ok(1));
    drop(table);
    succeeds(&site, &["backup", "copy.db"]);
    assert!(succeeds(&site, &["device", "orders"]).starts_with("PLUG-1"));
    let told = succeeds(&site, &["restore", "copy.db", "--dry-run"]);
    assert!(told.contains("copy.db: 1 orders for IoT Platform would end"), "{told}");
    assert!(succeeds(&site, &["device", "orders"]).starts_with("PLUG-1"));
    let told = succeeds(&site, &["restore", "copy.db", "--yes"]);
    assert!(told.ends_with("/certdist.db: restored; 1 orders for IoT Platform ended\n"), "{told}");
    assert_eq!(succeeds(&site, &["device", "orders"]), "");
    let log = succeeds(&site, &["audit", "export"]);
    assert!(log.contains("\"delete: restored from a backup\""), "{log}");
}
