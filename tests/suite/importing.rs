//! `certdist import` as an operator runs it: pipes, several files, lists of bad lines, and the way
//! back.
#![cfg(feature = "simulation")]

use std::{
    fs,
    io::Write,
    os::unix::fs::PermissionsExt,
    process::{Output, Stdio},
};

use crate::support::{Site, stderr, stdout};

/// Runs a command with this text on a pipe.
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
    // A file is refused only if its last device ID is shorter than all others.
    site.write("cut.csv", "deviceId\nPLUG0001\nPLUG0002\nPLUG000");
    let output = site.run(&["import", "cut.csv", "--enrollment", "plug"]);
    assert!(
        stderr(&output).contains("line 4: the file ends without a line end, and this device ID is shorter")
    );
    for (name, text) in [
        ("a.csv", "PLUG0001\nPLUG0002\nPLUG0003"),
        ("b.csv", "PLUG-10\nPLUG-9"),
        ("c.csv", "deviceId\nPLUG1"),
    ] {
        site.write(name, text);
        let output = site.run(&["import", name, "--enrollment", "plug", "--dry-run"]);
        assert!(output.status.success(), "{name}: {}", stderr(&output));
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
    assert_eq!(count(&site), 0);
    site.write("two.csv", "deviceId,enrollment\nSN00000002,lamp\n");
    let output = site.run(&["import", "one.csv", "two.csv", "--dry-run"]);
    assert_eq!(stdout(&output).lines().filter(|line| line.contains("1 devices would be added")).count(), 2);
    assert_eq!(count(&site), 0);
    let output = site.run(&["import", "one.csv", "two.csv"]);
    assert_eq!(stdout(&output).lines().filter(|line| line.contains("1 devices added")).count(), 2);
    assert_eq!(count(&site), 2);
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

    // An existing file is not replaced, and without bad lines there is no file.
    let output = site.run(&["import", "bad.csv", "--errors", "errors.csv"]);
    assert_eq!((output.status.code(), stderr(&output).contains("--errors errors.csv")), (Some(2), true));
    site.write("good.csv", "deviceId,enrollment\nSN00000001,lamp\n");
    let output = site.run(&["import", "good.csv", "--errors", "none.csv"]);
    assert!(output.status.success() && !site.path("none.csv").exists(), "{}", stderr(&output));
}

#[test]
fn an_import_says_that_the_database_is_new_and_where_it_is() {
    let site = Site::new();
    site.write("one.csv", "deviceId,enrollment\nSN00000001,lamp\n");
    let output = site.run(&["import", "one.csv"]);
    let place = site.path("certdist.db");
    let expected = format!("note: created a new database, {}\n", place.display());
    assert_eq!(stderr(&output), expected);
    assert_eq!(stderr(&site.run(&["import", "one.csv"])), "");
}
