//! Tests that an export whose output is not read does not keep the write-ahead log from being
//! emptied, and that an exported file can be imported.
#![cfg(feature = "simulation")]

use std::{
    fs,
    io::Read,
    process::{Child, Command, Stdio},
};

use crate::support::{CERTDIST, Site, stderr, stdout};

/// Number of devices. Their export is many times as large as the buffer of a pipe.
const DEVICES: usize = 12_000;

fn site() -> Site {
    let site = Site::new();
    let rows: String = (0..DEVICES).map(|number| format!("SN{number:08},lamp\n")).collect();
    site.import(&format!("deviceId,enrollment\n{rows}"));
    site
}

/// Starts a command, and reads only the first byte of its output.
fn begun(site: &Site, arguments: &[&str]) -> Child {
    let mut child = site.certdist(arguments).stdout(Stdio::piped()).spawn().expect("certdist runs");
    let stdout = child.stdout.as_mut().expect("its output");
    stdout.read_exact(&mut [0]).expect("a byte");
    child
}

/// Writes the whole table many times, as a busy server does over hours. Returns the size of the
/// write-ahead log in pages. SQLite empties the log when it has 1000 pages, unless a reader
/// prevents it.
fn pages_after_writing(site: &Site) -> u64 {
    let database = rusqlite::Connection::open(site.path("certdist.db")).expect("it opens");
    database.execute_batch("PRAGMA synchronous = off").expect("set");
    for time in 0..20 {
        database.execute("UPDATE device_table SET activateTime = ?1", [time]).expect("written");
    }
    let length = fs::metadata(site.path("certdist.db-wal")).expect("a log").len();
    length / 4096
}

#[test]
fn an_export_that_nobody_reads_does_not_keep_the_log_from_being_emptied() {
    let site = site();
    // The log exists because another process has the database open.
    let other = rusqlite::Connection::open(site.path("certdist.db")).expect("it opens");
    other.query_row("SELECT count(*) FROM device_table", (), |row| row.get::<_, i64>(0)).expect("read");
    let idle = pages_after_writing(&site);
    let mut child = begun(&site, &["export"]);
    let pages = pages_after_writing(&site);
    assert!(pages <= 2 * idle, "{pages} pages, and {idle} without an export");
    // The export has the state that the table had when the export began.
    let mut rest = String::new();
    child.stdout.take().expect("its output").read_to_string(&mut rest).expect("UTF-8");
    assert!(child.wait().expect("it ends").success());
    assert_eq!(rest.lines().count(), DEVICES + 1);
}

#[test]
fn an_audit_log_that_nobody_reads_to_its_end_does_not_keep_the_log_from_being_emptied() {
    let site = site();
    let other = rusqlite::Connection::open(site.path("certdist.db")).expect("it opens");
    other.query_row("SELECT count(*) FROM device_table", (), |row| row.get::<_, i64>(0)).expect("read");
    let ids: Vec<String> = (0..600).map(|number| format!("SN{number:08}")).collect();
    let store = certdist::store::sqlite::Sqlite::open(&site.path("certdist.db")).expect("it opens");
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    for id in &ids {
        use certdist::store::{Actor, DeviceState, Store};
        let id = certdist::device::DeviceId::parse(id).expect("an ID");
        let by = Actor::system_user();
        assert!(runtime.block_on(store.set_state(&id, DeviceState::Disabled, &by)).expect("written"));
    }
    drop(store);
    let idle = pages_after_writing(&site);
    let mut child = begun(&site, &["audit", "export"]);
    let pages = pages_after_writing(&site);
    assert!(pages <= 2 * idle, "{pages} pages, and {idle} without an export");
    let mut rest = String::new();
    child.stdout.take().expect("its output").read_to_string(&mut rest).expect("UTF-8");
    assert!(child.wait().expect("it ends").success());
    assert_eq!(rest.lines().count(), ids.len() + 1, "an import and its devices");
}

#[test]
fn every_form_of_an_export_can_be_imported_again() {
    let site = Site::configured(
        "listen = \"127.0.0.1:0\"\ndatabase = \"sqlite:certdist.db\"\ndatabase_key = \"file:database.key\"\n\
         [[enrollment]]\nname = \"own\"\nproduct_key = \"a1own\"\nkind = \"individual\"\n",
    );
    site.write("database.key", &"42".repeat(32));
    let psk = "00112233445566778899aabbccddeeff";
    let secret = "8d1f0cbf2f3a4e6d9b7c5a4e3d2c1b0a";
    site.import(&format!(
        "deviceId,deviceName,deviceSecret,pskIdentity,psk\n\
         @SN-1,-lamp-1,{secret},+factory=1,{psk}\n-SN-2,,,=1+1,{psk}\n.SN-3,,,\"a,\"\"b\",{psk}\n"
    ));
    for (name, options) in [
        ("own.csv", &[][..]),
        ("spreadsheet.csv", &["--for-spreadsheet"]),
        ("tablestore.csv", &["--tablestore"]),
        ("both.csv", &["--tablestore", "--for-spreadsheet"]),
    ] {
        let output = site.run(&[&["export"], options].concat());
        assert!(output.status.success(), "{}", stderr(&output));
        let text = stdout(&output);
        assert!(text.contains(secret) && text.lines().count() == 4, "{text}");
        assert_eq!(text.contains("\"'@SN-1\""), options.contains(&"--for-spreadsheet"), "{text}");
        assert_eq!(text.contains(psk), !options.contains(&"--tablestore"), "{text}");
        site.write(name, &text);
        let output = site.run(&["import", name, "--dry-run"]);
        assert!(stdout(&output).contains("0 would be changed, 3 unchanged"), "{name}: {}", stderr(&output));
        // An export to a file has the same content as an export to a pipe.
        let file = format!("file-{name}");
        assert!(
            site.run(&[&["export", "--output", &file], options].concat()).status.success(),
            "{}",
            stderr(&output)
        );
        assert_eq!(fs::read_to_string(site.path(&file)).expect("it is there"), text);
        let redirected = fs::File::create(site.path("redirected")).expect("a file");
        let status = site.certdist(&[&["export"], options].concat()).stdout(redirected).status();
        assert!(status.expect("it runs").success());
        assert_eq!(fs::read_to_string(site.path("redirected")).expect("it is there"), text);
    }
}

#[test]
fn a_file_that_cannot_be_written_is_named_and_left_out() {
    let site = site();
    for (line, file) in [("backup copy.db", "copy.db"), ("export --output out.csv", "out.csv")] {
        // A limit on the size of files has the effect of a full disk, and does not need root.
        let script = format!("trap '' XFSZ; ulimit -f 64; exec {CERTDIST} {line}");
        let mut shell = Command::new("sh");
        let output = shell.args(["-c", &script]).current_dir(site.path("")).output().expect("a shell");
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{said}");
        let named = said.contains(&format!("{file}: could not be written"))
            || said.contains(&format!("could not write {file}: "));
        assert!(named && said.contains("free some space on its disk"), "{said}");
        assert!(!said.contains("certdist.db"), "{said}");
        assert_eq!(said.lines().count(), 1, "{said}");
        let left =
            fs::read_dir(site.path("")).expect("the folder").map(|found| found.expect("a file").file_name());
        assert!(left.into_iter().all(|name| !name.to_string_lossy().starts_with(file)), "no part is left");
    }
}

#[test]
fn a_full_disk_behind_standard_output_is_told_once() {
    let site = site();
    let full = fs::OpenOptions::new().write(true).open("/dev/full").expect("it is there");
    let output = site.certdist(&["audit", "export"]).stdout(full).output().expect("it runs");
    let said = stderr(&output);
    assert_eq!((output.status.code(), said.matches("No space left").count()), (Some(1), 1), "{said}");
    let script = format!("trap '' XFSZ; ulimit -f 64; exec {CERTDIST} export > out.csv");
    let output =
        Command::new("sh").args(["-c", &script]).current_dir(site.path("")).output().expect("a shell");
    let said = stderr(&output);
    assert_eq!((output.status.code(), said.matches("os error").count()), (Some(1), 1), "{said}");
    assert!(said.contains("could not write to standard output"), "{said}");
}

#[test]
fn a_single_dash_is_standard_output_or_refused_and_never_a_file() {
    let site = Site::new();
    site.import("deviceId,enrollment\nSN-1,lamp\n");
    let exported = site.run(&["export"]);
    assert_eq!(stdout(&site.run(&["export", "--output", "-"])), stdout(&exported));
    assert!(stdout(&exported).contains("SN-1"));
    assert_eq!(stdout(&site.run(&["key", "new", "--output", "-"])).trim_end().len(), 64);
    for line in [&["backup", "-"][..], &["import", "import.csv", "--errors", "-"]] {
        let refused = site.run(line);
        assert_eq!(refused.status.code(), Some(2), "{}", stderr(&refused));
        assert!(stderr(&refused).contains("expected a file"), "{}", stderr(&refused));
    }
    assert!(!site.path("-").exists());
    assert!(site.run(&["backup", "./-"]).status.success() && site.path("-").exists());
}
