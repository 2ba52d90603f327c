//! Tests of `certdist import` as an operator runs it: pipes, several files, lists of bad lines, and
//! undoing an import.
#![cfg(feature = "simulation")]

use std::{
    fs,
    io::Write,
    os::unix::fs::PermissionsExt,
    process::{Output, Stdio},
    time::{Duration, Instant},
};

use rusqlite::Connection;

use crate::support::{Site, stderr, stdout};

/// Runs a command, and passes `text` to its standard input through a pipe.
fn piped(site: &Site, arguments: &[&str], text: &str) -> Output {
    let mut command = site.certdist(arguments);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("certdist runs");
    child.stdin.take().expect("a pipe").write_all(text.as_bytes()).expect("written");
    child.wait_with_output().expect("its output")
}

fn count(site: &Site) -> u64 {
    let output = site.run(&["stats", "--json"]);
    let stats: serde_json::Value = serde_json::from_str(&stdout(&output)).expect("JSON");
    stats["total"]["devices"].as_u64().expect("a number")
}

#[test]
fn a_pipe_holds_no_lock_while_it_is_open() {
    let site = Site::new();
    site.import("deviceId,enrollment\nSN00000001,lamp\n");
    let mut slow = site.certdist(&["import", "-", "--enrollment", "lamp"]);
    let mut slow = slow.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("certdist runs");
    let mut pipe = slow.stdin.take().expect("a pipe");
    pipe.write_all(b"deviceId\nSN00000002\n").expect("written");
    // Another import does not wait for the open pipe.
    site.import("deviceId,enrollment\nSN00000003,lamp\n");
    assert!(slow.try_wait().expect("its status").is_none());
    drop(pipe);
    let output = slow.wait_with_output().expect("its output");
    assert!(stdout(&output).starts_with("standard input: 1 devices added"), "{}", stdout(&output));
    assert_eq!(count(&site), 3);
}

#[test]
fn input_that_was_cut_off_is_refused() {
    let site = Site::new();
    site.import("deviceId,enrollment\nSN00000001,lamp\n");
    for text in ["deviceId\nPLUG0001\nPLUG", "PLUG0001\nPLUG0002\nPLUG0003", "deviceId,sn\nPL"] {
        for argument in ["-", "/dev/stdin"] {
            let output =
                piped(&site, &["import", argument, "--enrollment", "plug", "--ignore-unknown"], text);
            assert_eq!(output.status.code(), Some(1));
            assert!(stderr(&output).contains("nothing was changed\nline "), "{}", stderr(&output));
        }
    }
    let output = piped(&site, &["import", "-", "--enrollment", "plug"], "deviceId\nPLUG0001\nPLUG");
    let expected = "line 3: the input ends without a line end, so it may be cut off; if it is complete, add a line end: \
                    sed -i -e '$a\\' FILE\n";
    assert!(stderr(&output).ends_with(expected), "{}", stderr(&output));
    // A file without a last line end is refused only if its last value is shorter than all others.
    let secret = "0123456789abcdef0123456789abcdef";
    for (text, line) in [
        ("deviceId\nPLUG0001\nPLUG0002\nPLUG000".to_owned(), 4),
        ("deviceId,deviceName\nP1,plug-0001\nP2,plug-0002\nP3,plug".to_owned(), 4),
        ("deviceId,deviceName\nP1,plug-0001\nP2,plug-0002\nP3,".to_owned(), 4),
        (format!("deviceId,deviceName,deviceSecret\nP1,plug-1,{secret}\nP2,plug-2,{secret}\nP3,,"), 4),
    ] {
        site.write("cut.csv", &text);
        let output = site.run(&["import", "cut.csv", "--enrollment", "plug"]);
        let expected =
            format!("line {line}: the file ends without a line end, and the last value is shorter");
        assert!(stderr(&output).contains(&expected), "{text}: {}", stderr(&output));
        site.write("whole.csv", &format!("{text}\n"));
        assert!(site.run(&["import", "whole.csv", "--enrollment", "plug", "--dry-run"]).status.success());
    }
    let good = ["PLUG0001\nPLUG0002\nPLUG0003", "PLUG-10\nPLUG-9", "deviceId\nPLUG1", "P1\nP2\nPLUG\u{1a}"];
    for text in good {
        site.write("good.csv", text);
        let output = site.run(&["import", "good.csv", "--enrollment", "plug", "--dry-run"]);
        assert!(output.status.success(), "{text}: {}", stderr(&output));
    }
    let lines = "{\"deviceId\":\"PLUG1\"}\n{\"deviceId\":\"PLUG2\"}";
    assert!(piped(&site, &["import", "-", "--enrollment", "plug"], lines).status.success());
    let output = piped(&site, &["import", "-", "--enrollment", "plug"], &lines[..30]);
    assert!(stderr(&output).contains("line 2: not a JSON object on one line"), "{}", stderr(&output));
    assert_eq!(count(&site), 3);
}

#[test]
fn several_files_are_imported_only_if_all_are_right() {
    let site = Site::new();
    site.write("one.csv", "deviceId,enrollment\nSN00000001,lamp\n");
    site.write("two.csv", "deviceId,enrollment\nSN00000002,lamp\nSN 3,lamp\n");
    site.write("three.csv", "deviceId\nnull\n");
    let output = site.run(&["import", "one.csv", "two.csv", "three.csv"]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(stdout(&output), "");
    for expected in ["two.csv: 1 bad line, nothing was changed\nline 3,", "three.csv: 1 bad line"] {
        assert!(stderr(&output).contains(expected), "{}", stderr(&output));
    }
    assert!(!site.path("certdist.db").exists(), "a refused import leaves no database");
    site.write("two.csv", "deviceId,enrollment\nSN00000002,lamp\n");
    let output = site.run(&["import", "one.csv", "two.csv", "--dry-run"]);
    assert_eq!(
        stdout(&output),
        "one.csv, two.csv: 2 devices would be added, 0 would be changed, 0 unchanged\n"
    );
    assert!(!site.path("certdist.db").exists(), "a preview creates none either");
    let output = site.run(&["import", "one.csv", "two.csv"]);
    assert_eq!(stdout(&output), "one.csv, two.csv: 2 devices added, 0 changed, 0 unchanged\n");
    assert_eq!(count(&site), 2);

    // A row that contradicts a row of another file is bad, too. A row that another file repeats is
    // imported once.
    site.write("three.csv", "deviceId,enrollment,deviceName\nSN00000003,lamp,same\n");
    site.write("four.csv", "deviceId,enrollment,deviceName\nSN00000004,lamp,same\nSN00000003,lamp,other\n");
    for arguments in
        [vec!["import", "three.csv", "four.csv"], vec!["import", "three.csv", "four.csv", "--dry-run"]]
    {
        let output = site.run(&arguments);
        assert_eq!(output.status.code(), Some(1));
        let shown = stderr(&output);
        assert!(
            shown.contains("four.csv: 2 bad lines, nothing was changed\nline 2, column deviceName:"),
            "{shown}"
        );
        assert!(
            shown.contains("line 3, column deviceId: device SN00000003 is already in line 2 of three.csv,"),
            "{shown}"
        );
    }
    assert_eq!(count(&site), 2);
    let output = site.run(&["import", "three.csv", "three.csv"]);
    assert!(
        stderr(&output)
            .contains("note: three.csv: rows with a device and values that are already there: 1 row")
    );
    assert_eq!(stdout(&output), "three.csv, three.csv: 1 devices added, 0 changed, 0 unchanged\n");
}

#[test]
fn bad_lines_are_shown_by_kind_and_all_of_them_are_written_on_request() {
    let site = Site::new();
    let mut text = String::from("deviceId,enrollment\n");
    for number in 0..500 {
        text += &format!("1.{number}E+11,lamp\nSN{number:08},lmap\n");
    }
    site.write("bad.csv", &text);
    let output = site.run(&["import", "bad.csv", "--errors", "errors.csv"]);
    assert_eq!(output.status.code(), Some(1));
    let shown = stderr(&output);
    assert!(
        shown.contains("bad.csv: 1000 bad lines, nothing was changed\nline 2, column deviceId:"),
        "{shown}"
    );
    assert!(shown.contains("and 480 more lines like line 2\nand 480 more lines like line 3\n"), "{shown}");
    assert!(shown.lines().count() < 50, "{shown}");
    assert!(shown.ends_with("all bad lines are in errors.csv\n"), "{shown}");
    let errors = fs::read_to_string(site.path("errors.csv")).expect("it is written");
    assert_eq!(errors.lines().count(), 1001);
    assert!(errors.starts_with("file,line,column,error\nbad.csv,2,deviceId,"), "{errors}");
    let mode = fs::metadata(site.path("errors.csv")).expect("it is there").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);

    // An existing file is not replaced. If there are no bad lines, no file is written.
    let output = site.run(&["import", "bad.csv", "--errors", "errors.csv"]);
    assert_eq!((output.status.code(), stderr(&output).contains("--errors errors.csv")), (Some(2), true));
    site.write("good.csv", "deviceId,enrollment\nSN00000001,lamp\n");
    let output = site.run(&["import", "good.csv", "--errors", "none.csv"]);
    assert!(output.status.success() && !site.path("none.csv").exists(), "{}", stderr(&output));
}

#[test]
fn a_dry_run_needs_no_database() {
    let site = Site::new();
    site.write("macs.txt", "00:1a:2b:3c:4d:5e\n001a-2b3c-4d5f\n");
    let output = site.run(&["import", "macs.txt", "--enrollment", "lamp", "--dry-run"]);
    assert!(stdout(&output).starts_with("macs.txt: 2 devices would be added"), "{}", stderr(&output));
    assert!(!site.path("certdist.db").exists());
    assert!(site.run(&["import", "macs.txt", "--enrollment", "lamp"]).status.success());
}

#[test]
fn an_import_says_that_the_database_is_new_and_where_it_is() {
    let site = Site::new();
    site.write("one.csv", "deviceId,enrollment\nSN00000001,lamp\n");
    let output = site.run(&["import", "one.csv"]);
    let place = site.path("certdist.db");
    let expected = format!("note: created a new database, {}\n", place.display());
    assert!(stderr(&output).starts_with(&expected), "{}", stderr(&output));
    assert_eq!(stderr(&site.run(&["import", "one.csv"])), "");
}

#[test]
fn a_refused_import_leaves_no_new_database() {
    let site = Site::new();
    site.write("bad.csv", "deviceId,enrollment\nSN00000001,lamp\nSN 2,lamp\n");
    let files = || std::fs::read_dir(site.path("")).expect("the folder").count();
    let before = files();
    let refused = site.run(&["import", "bad.csv"]);
    assert_eq!(refused.status.code(), Some(1), "{}", stderr(&refused));
    assert!(!stderr(&refused).contains("new database"), "{}", stderr(&refused));
    assert_eq!(files(), before, "no database, log or lock file");

    // The new database is not removed if another process has it open or has written to it.
    let path = format!("sqlite:{}", site.path("certdist.db").display());
    let store = certdist::store::open(&path, certdist::seal::Keyring::default()).expect("it opens");
    assert!(certdist::store::remove_unused(&path).is_err());
    drop(store);
    site.import("deviceId,enrollment\nSN00000001,lamp\n");
    assert!(!certdist::store::remove_unused(&path).expect("it is examined"));
    assert_eq!(site.run(&["import", "bad.csv"]).status.code(), Some(1));
    assert!(stdout(&site.run(&["device", "list"])).contains("SN00000001"));
}

/// Returns the number of an import, from the note that the command prints.
fn number(output: &Output) -> String {
    let notes = stderr(output);
    let (_, number) = notes.split_once("note: to undo this import: certdist import undo ").expect("a number");
    number.trim_end().to_owned()
}

#[test]
fn an_import_is_undone_by_its_number_while_nothing_of_it_was_issued() {
    let site = Site::new();
    let secret = "secretoflamp10000000000000000000";
    site.import("deviceId,enrollment\nSN00000001,lamp\n");
    site.write("wrong.csv", "deviceId,enrollment\nSN00000001,plug\nSN00000002,plug\nSN00000003,plug\n");
    let wrong = site.run(&["import", "wrong.csv"]);
    assert!(stderr(&wrong).contains("note: 1 device is in the table with another enrollment, and moves"));
    let number = number(&wrong);
    let list = stdout(&site.run(&["import", "list"]));
    let lines: Vec<&str> = list.lines().collect();
    assert!(lines.len() == 3 && lines[1..].iter().any(|line| line.starts_with(&number)), "{list}");

    let undo = |arguments: &[&str]| site.run(&[&["import", "undo", &number], arguments].concat());
    let asked = undo(&[]);
    assert_eq!(asked.status.code(), Some(2), "there is no terminal");
    let would = stdout(&undo(&["--dry-run"]));
    assert_eq!(would, format!("import {number}: 2 devices would be removed, 1 would be restored\n"));
    assert_eq!(count(&site), 3);
    let done = stdout(&undo(&["--yes"]));
    assert_eq!(done, format!("import {number}: 2 devices removed, 1 restored\n"));
    assert_eq!(count(&site), 1);
    assert!(stdout(&site.run(&["device", "show", "SN00000001"])).contains("enrollment    lamp\n"));
    let again = undo(&["--yes"]);
    assert_eq!(
        (again.status.code(), stderr(&again)),
        (Some(1), format!("error: import {number} was undone already\n"))
    );
    let unknown = site.run(&["import", "undo", "00000000"]);
    assert_eq!(unknown.status.code(), Some(2));
    assert!(
        stderr(&unknown)
            .contains("no import of the last 30 days has the number 00000000; `certdist import list`")
    );
    assert!(stdout(&site.run(&["audit", "export"])).contains("\"event\":\"undone\""));

    site.write("right.csv", &format!("deviceId,enrollment,deviceName,deviceSecret\nSN00000004,lamp,lamp-4,{secret}\nSN00000005,lamp,,\n"));
    let right = self::number(&site.run(&["import", "right.csv"]));
    let server = site.serve();
    let device = ["device-sim", "--server", &server.address.to_string(), "--identity", "SN00000004", "--psk"];
    let key = stdout(&site.run(&["key", "new", "--derive", "SN00000004", "--enrollment", "lamp"]));
    let asked = site.run(&[&device[..], &[key.trim()]].concat());
    assert!(asked.status.success(), "{}", stderr(&asked));
    let refused = site.run(&["import", "undo", &right, "--yes"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(stderr(&refused).contains("1 of the 2 devices of import"), "{}", stderr(&refused));
    let rest = site.run(&["import", "undo", &right, "--rest", "--yes"]);
    assert_eq!(stdout(&rest), format!("import {right}: 1 devices removed, 0 restored, 1 left as they are\n"));
    assert_eq!(count(&site), 2);
}

/// Kills imports while they write, and expects that nothing of them is ever seen and that the next
/// import, or a server, takes everything back.
#[test]
fn an_import_that_is_killed_leaves_nothing() {
    let site = Site::new();
    let row = |number: usize, name: &str| format!("SN{number:08},lamp,{name}\n");
    let former: String = (0..3000).map(|number| row(number * 10, &format!("former-{number}"))).collect();
    site.import(&format!("deviceId,enrollment,deviceName\n{former}"));
    let export = || stdout(&site.run(&["export"]));
    let before = export();
    // The file changes each tenth device and adds the others.
    let rows: String = (0..30_000).map(|number| row(number, &format!("name-{number}"))).collect();
    site.write("large.csv", &format!("deviceId,enrollment,deviceName\n{rows}"));
    let database = || Connection::open(site.path("certdist.db")).expect("opened");
    let unfinished = |database: &Connection| -> i64 {
        database.query_row("SELECT count(*) FROM import_unfinished", (), |row| row.get(0)).expect("a number")
    };
    for round in 0..4_i64 {
        let mut import = site.certdist(&["import", "large.csv"]).spawn().expect("certdist runs");
        let other = database();
        let deadline = Instant::now() + Duration::from_secs(120);
        while unfinished(&other) == 0 {
            assert!(Instant::now() < deadline, "it does not begin to write");
            assert_eq!(import.try_wait().expect("its status"), None, "it has ended");
            std::thread::sleep(Duration::from_millis(1));
        }
        // Each round lets the import write more rows before it is killed.
        let written = |database: &Connection| -> i64 {
            let sql =
                "SELECT count(*) FROM device_table WHERE importId = (SELECT importId FROM import_unfinished)";
            database.query_row(sql, (), |row| row.get(0)).expect("a number")
        };
        while written(&other) < 1 + round * 2000 && unfinished(&other) > 0 {
            std::thread::sleep(Duration::from_millis(1));
        }
        import.kill().expect("killed");
        import.wait().expect("ended");
        if unfinished(&other) == 0 {
            panic!("it had written everything before it was killed");
        }
        // Commands that only read see no new device, although its row is there.
        assert_eq!(count(&site), 3000, "round {round}");
        assert!(!export().contains("SN00000001"));
        assert!(stdout(&site.run(&["device", "show", "SN00000001"])).is_empty());
        let imports = stdout(&site.run(&["import", "list"]));
        assert!(!imports.contains("large.csv"), "{imports}");
        if round % 2 == 0 {
            let server = site.serve();
            while unfinished(&other) > 0 {
                assert!(Instant::now() < deadline, "nothing is taken back");
                std::thread::sleep(Duration::from_millis(20));
            }
            server.stop();
        } else {
            site.write("one.csv", "deviceId,enrollment\nSN00000000,lamp\n");
            let done = site.run(&["import", "one.csv"]);
            assert!(stdout(&done).contains("1 unchanged"), "{}", stderr(&done));
            assert_eq!(unfinished(&other), 0);
        }
        assert_eq!(export(), before, "round {round}");
        let entries = stdout(&site.run(&["audit", "export"]));
        assert_eq!(entries.matches("was cut off").count() as i64, round + 1, "{entries}");
    }
    assert!(site.run(&["import", "large.csv"]).status.success());
    assert_eq!(count(&site), 30_000);
}

/// Kills undos while they take an import back, and expects that a server, or the next import, completes
/// them in the name of the operator who began them.
#[test]
fn an_undo_that_is_killed_is_completed() {
    let site = Site::new();
    let rows = |name: &str, numbers: std::ops::Range<usize>| -> String {
        let row = |number| format!("SN{number:08},lamp,{name}-{number}\n");
        format!("deviceId,enrollment,deviceName\n{}", numbers.map(row).collect::<String>())
    };
    // The file changes the devices that are there, and adds as many.
    site.import(&rows("former", 0..4000));
    site.write("large.csv", &rows("name", 0..8000));
    let export = || stdout(&site.run(&["export"]));
    let before = export();
    let database = Connection::open(site.path("certdist.db")).expect("opened");
    let number_of = |sql: &str| database.query_row(sql, (), |row| row.get::<_, i64>(0)).expect("a number");
    let unfinished = || number_of("SELECT count(*) FROM import_unfinished");
    let done = || number_of("SELECT coalesce(max(removed + restored), 0) FROM import_unfinished");
    let undone = || number_of("SELECT count(*) FROM import WHERE undone IS NOT NULL");
    let preview = || stderr(&site.run(&["import", "large.csv", "--dry-run"]));
    assert!(!preview().contains("another import"), "{}", preview());
    for (round, killed_after) in [0, 1500, 5000].into_iter().enumerate() {
        let large = number(&site.run(&["import", "large.csv"]));
        assert_eq!(count(&site), 8000);
        let mut undo = site.certdist(&["import", "undo", &large, "--yes"]).spawn().expect("certdist runs");
        let deadline = Instant::now() + Duration::from_secs(120);
        while unfinished() == 0 || done() < killed_after {
            assert!(Instant::now() < deadline, "it does not begin");
            assert_eq!(undo.try_wait().expect("its status"), None, "it has ended");
            std::thread::sleep(Duration::from_millis(1));
        }
        undo.kill().expect("killed");
        undo.wait().expect("ended");
        assert_eq!((unfinished(), undone()), (1, round as i64), "it had ended before it was killed");
        // The added devices are gone for everyone, although their rows may be there.
        assert!(!export().contains("SN00007999"));
        assert!(preview().contains("another import or undo was running"), "{}", preview());
        let refused = site.run(&["import", "undo", &large, "--dry-run"]);
        assert!(stderr(&refused).contains("is being undone"), "{}", stderr(&refused));
        if round == 1 {
            site.write("one.csv", "deviceId,enrollment\nSN00000000,lamp\n");
            assert!(stdout(&site.run(&["import", "one.csv"])).contains("1 unchanged"));
        } else {
            let server = site.serve();
            while unfinished() > 0 {
                assert!(Instant::now() < deadline, "it is not completed");
                std::thread::sleep(Duration::from_millis(20));
            }
            server.stop();
        }
        assert_eq!(undone(), round as i64 + 1);
        assert!(export() == before, "round {round}: the table is not as it was before the import");
        let check = site.run(&["database", "check"]);
        assert!(check.status.success(), "{}{}", stdout(&check), stderr(&check));
        let entries = stdout(&site.run(&["audit", "export"]));
        let detail = format!("import {large} of large.csv: 4000 devices removed, 4000 restored, 0 left");
        assert!(entries.contains(&detail), "{entries}");
        let again = site.run(&["import", "undo", &large, "--yes"]);
        assert!(stderr(&again).contains("was undone already"), "{}", stderr(&again));
    }
}

#[test]
fn devices_of_a_file_are_changed_together_or_not_at_all() {
    let site = Site::new();
    site.import(
        "deviceId,enrollment\nSN00000001,lamp\nSN00000002,lamp\n001A2B3C4D5E,lamp\nSN00000003,lamp\n",
    );
    // One file is the output of a label reader; the other is a sheet with further columns.
    site.write("line.txt", "SN00000001\n00:1a:2b:3c:4d:5e\nSN00000001\n");
    site.write("sheet.csv", "SN;Place\nSN00000002;Hall 1\nSN00000099;Hall 2\n");
    let states = || -> Vec<bool> {
        let list = stdout(&site.run(&["device", "list", "--json"]));
        let row = |line: &str| serde_json::from_str::<serde_json::Value>(line).expect("JSON");
        list.lines().map(|line| row(line)["state"] == "disabled").collect()
    };
    let done = site.run(&["device", "disable", "--file", "line.txt"]);
    assert_eq!(stdout(&done), "line.txt: 2 devices disabled\n", "{}", stderr(&done));
    assert_eq!(states(), [true, true, false, false]);

    let refused = site.run(&["device", "disable", "--file", "sheet.csv"]);
    assert_eq!(refused.status.code(), Some(1));
    let expected =
        "1 of 2 devices are not in the table (SN00000099), so nothing was changed; to leave them out, use";
    assert!(stderr(&refused).contains(expected), "{}", stderr(&refused));
    assert_eq!(states(), [true, true, false, false]);
    let done = site.run(&["device", "disable", "--file", "sheet.csv", "--ignore-missing"]);
    assert_eq!(stdout(&done), "sheet.csv: 1 device disabled\n");
    assert!(site.run(&["device", "enable", "--file", "line.txt"]).status.success());
    assert_eq!(states(), [false, false, true, false]);
    assert!(site.run(&["device", "reset", "--file", "line.txt"]).status.success());

    let bad = piped(&site, &["device", "delete", "--yes", "--file", "-"], "SN00000001\nSN 2\n");
    assert!(
        stderr(&bad).contains("standard input: 1 bad line, nothing was changed\nline 2,"),
        "{}",
        stderr(&bad)
    );
    let asked = piped(&site, &["device", "delete", "--file", "-"], "SN00000001\nSN00000003\n");
    assert_eq!(asked.status.code(), Some(2));
    assert!(stderr(&asked).contains("Delete 2 devices from the table, 0 of them with a certificate?"));
    assert_eq!(count(&site), 4);
    let done = piped(&site, &["device", "delete", "--yes", "--file", "-"], "SN00000001\nSN00000003\n");
    assert_eq!(stdout(&done), "-: 2 devices deleted\n");
    assert_eq!(count(&site), 2);
    let usage = [
        vec!["device", "disable"],
        vec!["device", "disable", "SN00000002", "--file", "line.txt"],
        vec!["device", "reset"],
    ];
    for usage in usage {
        assert_eq!(site.run(&usage).status.code(), Some(2), "{usage:?}");
    }
}
