//! Tests that commands that only read change no file, and that their errors name a missing
//! database.
#![cfg(feature = "simulation")]

use std::{fs, os::unix::fs::symlink};

use crate::support::{Site, stderr, stdout};

/// Commands that need a database but do not create one.
const COMMANDS: [&str; 23] = [
    "stats",
    "device list",
    "device show SN00000001",
    "device disable SN00000001",
    "device enable SN00000001",
    "device reset SN00000001",
    "device delete SN00000001 --yes",
    "device waiting",
    "device admit SN00000001",
    "device dismiss --all",
    "enrollment list",
    "enrollment show lamp",
    "export",
    "export --output out.csv",
    "audit verify",
    "audit export",
    "backup out.db",
    "database status",
    "database check",
    "database recount",
    "import list",
    "import undo 00000000 --dry-run",
    "register",
];

fn words(line: &str) -> Vec<&str> {
    line.split(' ').collect()
}

fn names(site: &Site) -> Vec<String> {
    let names =
        fs::read_dir(site.path("")).expect("the folder").map(|file| file.expect("a file").file_name());
    let mut names: Vec<_> = names.map(|name| name.into_string().expect("UTF-8")).collect();
    names.sort();
    names
}

#[test]
fn a_database_that_is_not_there_is_named_with_its_path_and_created_by_no_command_that_looks() {
    let cloud = "[iot_platform]\nendpoint = \"http://127.0.0.1:9\"\nregion = \"cn-shanghai\"";
    type Prepare = fn(&Site);
    let cases: [(&str, &str, Prepare); 5] = [
        ("certdist.db", "there is no database; `certdist import` or `certdist serve` creates it", |_| ()),
        ("nowhere/certdist.db", "there is no folder", |_| ()),
        ("link.db", "does not exist; correct the link", |site| {
            symlink(site.path("unmounted/certdist.db"), site.path("link.db")).expect("a link")
        }),
        ("folder", "this is a directory, not a database", |site| {
            fs::create_dir(site.path("folder")).expect("a folder")
        }),
        ("letter.db", "not an SQLite database", |site| site.write("letter.db", "Dear operator,\n")),
    ];
    for (name, expected, prepare) in cases {
        let site = Site::with(cloud);
        prepare(&site);
        let configuration = fs::read_to_string(site.path("certdist.toml")).expect("it is there");
        site.write("certdist.toml", &configuration.replace("sqlite:certdist.db", &format!("sqlite:{name}")));
        let before = names(&site);
        let path = site.path(name).display().to_string();
        for line in COMMANDS {
            let output = site.run(&words(line));
            let said = stderr(&output);
            assert_eq!(output.status.code(), Some(1), "{line}: {said}");
            assert!(said.contains(expected) && said.contains(&path), "{line}: {said}");
            assert_eq!(names(&site), before, "{line}");
        }
        if name != "certdist.db" {
            // Commands that can create a database do not create one in these cases.
            site.write("rows.csv", "deviceId,enrollment\nSN00000001,lamp\n");
            fs::write(site.path("copy.db"), "").expect("written");
            let mut lines = vec!["import rows.csv", "import rows.csv --dry-run", "serve"];
            if name != "letter.db" {
                lines.push("restore copy.db --yes --force");
            }
            for line in lines {
                let output = site.run(&words(line));
                assert_eq!(output.status.code(), Some(1), "{line}: {}", stderr(&output));
                assert!(stderr(&output).contains(expected), "{line}: {}", stderr(&output));
            }
        }
    }
}

#[test]
fn a_preview_of_an_import_into_no_database_creates_none() {
    let site = Site::new();
    site.write("rows.csv", "deviceId,enrollment\nSN00000001,lamp\n");
    let before = names(&site);
    let output = site.run(&["import", "rows.csv", "--dry-run"]);
    assert!(stdout(&output).contains("1 devices would be added"), "{}", stderr(&output));
    assert_eq!(names(&site), before);
}

/// Commands that only read an existing database.
const LOOKS: [&str; 14] = [
    "stats",
    "device list",
    "device show SN00000001",
    "device waiting",
    "enrollment list",
    "export",
    "audit verify",
    "audit export",
    "database status",
    "database check",
    "check-config",
    "import import.csv --dry-run",
    "import new.csv --dry-run",
    "restore copy.db --dry-run",
];

/// Runs all commands in [`LOOKS`]. Checks that they succeed and change no file.
fn look(site: &Site) {
    let content = |name: &String| match name.ends_with("-shm") {
        // The index of the log contains no data, and SQLite may rewrite it.
        true => Vec::new(),
        false => fs::read(site.path(name)).expect("a file"),
    };
    let files = || names(site).into_iter().map(|name| (content(&name), name)).collect::<Vec<_>>();
    let before = files();
    for line in LOOKS {
        let output = site.run(&words(line));
        assert!(output.status.success(), "{line}: {}{}", stdout(&output), stderr(&output));
        let after = files();
        assert!(after == before, "{line}: {:?}", names(site));
    }
}

#[test]
fn commands_that_look_leave_the_files_of_a_killed_server_alone_and_show_its_last_changes() {
    let site = Site::new();
    site.import("deviceId,enrollment\nSN00000001,lamp\n");
    site.write("new.csv", "deviceId,enrollment\nSN00000002,lamp\n");
    assert!(site.run(&["backup", "copy.db"]).status.success());
    look(&site);
    let server = site.serve();
    assert!(site.run(&["device", "disable", "SN00000001"]).status.success());
    server.kill();
    look(&site);
    assert!(stdout(&site.run(&["device", "show", "SN00000001"])).contains("disabled"));
    // On a read-only file system, the index of the log may be missing, too.
    fs::remove_file(site.path("certdist.db-shm")).expect("it was there");
    assert!(stdout(&site.run(&["device", "show", "SN00000001"])).contains("disabled"));
    look(&site);
    assert!(!site.path("certdist.db-shm").exists());
}
