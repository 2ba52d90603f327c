//! Tests of the database and of table files from the operator's side: the files that exist, their
//! contents, and the messages about errors.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use certdist::{
    device::DeviceId,
    psk::{Enrollment, Key, Kind, Reissue},
    seal::Keyring,
    store::{
        self, Actor, Bulk, DeviceRow, DeviceState, ImportReport, ImportStage, Store, StoreError, StoreFuture,
        audit::Asker, sqlite::Sqlite,
    },
    table_file::{
        Enrollments, Feedback, Import, ImportFileError, LineError, Source, export_file, import, import_file,
    },
};
use rusqlite::Connection;
use tempfile::TempDir;

const PSK: &str = "00112233445566778899aabbccddeeff";

fn wait<T>(future: StoreFuture<'_, T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future).unwrap()
}

fn id(text: &str) -> DeviceId {
    DeviceId::parse(text).unwrap()
}

fn device(store: &dyn Store, text: &str) -> Option<DeviceRow> {
    wait(store.device(&id(text)))
}

fn enrollments() -> Enrollments {
    let enrollment = |name: &str, kind| {
        let product_key = format!("a1{name}");
        Enrollment {
            name: name.into(),
            product_key,
            kind,
            reissue: Reissue::Always,
            next: None,
            guards: Default::default(),
        }
        .outline()
    };
    let derived = Kind::Derived(Key::from_hex(PSK).unwrap());
    Enrollments::new([enrollment("lamps", derived), enrollment("plugs", Kind::Individual)])
        .with_default("lamps")
        .unwrap()
}

/// A folder with a database.
struct Operator {
    directory: TempDir,
    store: Sqlite,
}

impl Operator {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = Sqlite::open(&directory.path().join("certdist.db")).unwrap();
        Self { directory, store }
    }

    fn file(&self, name: &str, text: impl AsRef<[u8]>) -> PathBuf {
        let path = self.directory.path().join(name);
        fs::write(&path, text).unwrap();
        path
    }

    fn import(&self, text: impl AsRef<[u8]>) -> Result<ImportReport, ImportFileError> {
        import_file(
            &self.store,
            &self.file("batch.csv", text),
            Import {
                enrollments: &enrollments(),
                by: &Actor::system_user(),
                dry_run: false,
                ignores_unknown: false,
            },
        )
        .map(|imported| imported.report)
    }

    fn bad_lines(&self, text: impl AsRef<[u8]>) -> Vec<LineError> {
        match self.import(text) {
            Err(ImportFileError::Lines { files }) => {
                files.into_iter().flat_map(|file| file.lines.listed).collect()
            }
            other => panic!("{other:?}"),
        }
    }

    fn export(&self) -> String {
        let mut text = Vec::new();
        export_file(&self.store, &mut text).unwrap();
        String::from_utf8(text).unwrap()
    }
}

/// Returns the reason why a file is refused as a database. Checks that the file is unchanged.
fn refusal(path: &Path) -> String {
    let before = fs::read(path).ok();
    let Err(StoreError::Failed(reason) | StoreError::Unusable(reason)) = Sqlite::open(path) else {
        panic!("{} was opened", path.display())
    };
    assert_eq!(fs::read(path).ok(), before);
    assert!(reason.starts_with(&path.display().to_string()), "{reason}");
    reason
}

#[test]
fn reopening_keeps_everything() {
    let directory = tempfile::tempdir().unwrap();
    let url = format!("sqlite:{}", directory.path().join("certdist.db").display());
    let file = directory.path().join("batch.csv");
    let text = format!(
        "deviceId,enrollment,deviceName,deviceSecret,pskIdentity,psk\n\
         SN-1,,name-1,s3cret00000000000000000000000000,,\nSN-2,plugs,,,identity-2,{PSK}\nSN-3,,,,,\n"
    );
    fs::write(&file, text).unwrap();

    let store = store::open(&url, Keyring::default()).unwrap();
    let report = import_file(
        &*store,
        &file,
        Import {
            enrollments: &enrollments(),
            by: &Actor::system_user(),
            dry_run: false,
            ignores_unknown: false,
        },
    )
    .unwrap()
    .report;
    assert_eq!(report, ImportReport { added: 3, ..Default::default() });
    let certificate = device(&*store, "SN-1").unwrap().certificate.unwrap();
    let asker = Asker { enrollment: "lamps".into(), ..Asker::default() };
    let issue = wait(store.record_issue(&id("SN-1"), &certificate, 1, asker));
    assert!(wait(store.set_state(&id("SN-3"), DeviceState::Disabled, &Actor::system_user())));
    drop(store);

    let store = store::open(&url, Keyring::default()).unwrap();
    let row = device(&*store, "SN-1").unwrap();
    assert_eq!(row.first_issued, Some(issue.first));
    let certificate = row.certificate.unwrap();
    assert_eq!((certificate.product_key.as_str(), certificate.device_name.as_str()), ("a1lamps", "name-1"));
    assert_eq!(certificate.device_secret.expose(), "s3cret00000000000000000000000000");
    let key = wait(store.individual_key("identity-2")).found.unwrap();
    assert_eq!((key.device, key.enrollment.as_str(), key.psk.expose()), (id("SN-2"), "plugs", PSK));
    assert_eq!(device(&*store, "SN-3").unwrap().state, DeviceState::Disabled);
}

#[test]
fn only_its_owner_may_read_the_database() {
    let operator = Operator::new();
    operator.import("deviceId\nSN-1\n").unwrap();
    assert!(device(&operator.store, "SN-1").is_some());
    for name in ["certdist.db", "certdist.db-wal", "certdist.db-shm"] {
        let mode = fs::metadata(operator.directory.path().join(name)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }
}

#[test]
fn what_is_not_a_database_of_ours_is_refused_and_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);

    let text = path("notes.txt");
    fs::write(&text, "not a database, but long enough to be looked at as one\n".repeat(100)).unwrap();
    assert!(refusal(&text).contains("not an SQLite database"));

    let foreign = path("foreign.db");
    Connection::open(&foreign).unwrap().execute_batch("CREATE TABLE device_table (a)").unwrap();
    assert!(refusal(&foreign).contains("the database of another program"));

    let marked = path("marked.db");
    Connection::open(&marked).unwrap().execute_batch("PRAGMA application_id = 5").unwrap();
    assert!(refusal(&marked).contains("the database of another program"));

    let newer = path("newer.db");
    drop(Sqlite::open(&newer).unwrap());
    Connection::open(&newer).unwrap().pragma_update(None, "user_version", 1000).unwrap();
    let reason = refusal(&newer);
    assert!(reason.contains("schema version 1000") && reason.contains("use a newer certdist"), "{reason}");

    assert!(refusal(directory.path()).contains("this is a directory"));
    assert!(refusal(&path("missing/certdist.db")).contains("there is no folder"));
    // In /proc, even root cannot create a file.
    assert!(refusal(Path::new("/proc/certdist.db")).contains("cannot be created"));
    assert!(
        store::open("mysql://db", Keyring::default())
            .is_err_and(|error| error.to_string().contains("sqlite:PATH"))
    );
}

#[test]
fn a_database_made_by_hand_from_the_schema_is_ours() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("certdist.db");
    Connection::open(&path).unwrap().execute_batch(include_str!("../../schema.sql")).unwrap();
    let store = Sqlite::open(&path).unwrap();
    assert_eq!(store.count().unwrap(), 0);
}

#[test]
fn a_broken_line_of_a_long_file_is_named_and_nothing_has_changed() {
    let operator = Operator::new();
    operator.import("deviceId\nSN-1\n").unwrap();
    let before = operator.export();
    let mut text = String::from("deviceId,enrollment,pskIdentity,psk\r\n");
    for line in 2..=100_001 {
        let psk = if line == 70_001 { &PSK[1..] } else { PSK };
        text += &format!("SN-{line},plugs,identity-{line},{psk}\r\n");
    }
    let error = operator.import(&text).unwrap_err().to_string();
    assert!(error.contains("batch.csv: 1 bad line, nothing was changed\n"), "{error}");
    assert!(error.ends_with("\nline 70001, column psk: 31 hex digits, expected 32 to 128"), "{error}");
    assert_eq!(operator.export(), before);

    let mended = text.replace(&format!(",{}\r\n", &PSK[1..]), &format!(",{PSK}\r\n"));
    assert_eq!(operator.import(&mended).unwrap().added, 100_000);
    assert_eq!(operator.import(&mended).unwrap().unchanged, 100_000);
}

#[test]
fn bad_lines_and_contradictions_are_told_together_in_the_files_order() {
    let operator = Operator::new();
    operator
        .import(format!(
            "deviceId,enrollment,deviceName,deviceSecret,pskIdentity,psk\n\
             SN-1,lamps,name-1,s3cret00000000000000000000000000,,\nSN-2,plugs,,,identity-2,{PSK}\n"
        ))
        .unwrap();
    let before = operator.export();
    let lines = operator.bad_lines(format!(
        "deviceId,enrollment,deviceName,deviceSecret,pskIdentity,psk\n\
         SN-9,lamps,,,,\n\
         \n\
         SN-1,lamps,name-1,0ther000000000000000000000000000,,\n\
         SN 3,lamps,,,,\n\
         SN-4,plugs,,,identity-2,{PSK}\n\
         SN-5,plugs,,,,\n\
         SN-6,sockets,,,,\n"
    ));
    let told: Vec<_> = lines.iter().map(|error| (error.line, error.column)).collect();
    let expected = [
        (4, Some("deviceSecret")),
        (5, Some("deviceId")),
        (6, Some("pskIdentity")),
        (7, Some("pskIdentity")),
        (8, Some("enrollment")),
    ];
    assert_eq!(told, expected);
    assert_eq!(lines[2].reason, "this identity belongs to device SN-2");
    assert_eq!(operator.export(), before);
}

#[test]
fn two_spellings_of_a_mac_are_one_device_in_the_file_and_in_the_table() {
    let operator = Operator::new();
    let lines = operator.bad_lines("deviceId,deviceName\n00:1a:2b:3c:4d:5e,\n001A2B3C4D5E,other\n");
    let expected = "line 3, column deviceId: device 001A2B3C4D5E is already in line 2, with other values";
    assert_eq!(lines[0].to_string(), expected);
    assert_eq!(operator.import("deviceId\n00:1a:2b:3c:4d:5e\n").unwrap().added, 1);
    assert_eq!(operator.import("deviceId\n001a.2b3c.4d5e\n").unwrap().unchanged, 1);
    assert_eq!(device(&operator.store, "00-1A-2B-3C-4D-5E").unwrap().id.as_str(), "001A2B3C4D5E");
}

#[test]
fn an_export_can_be_imported_unchanged() {
    let operator = Operator::new();
    operator
        .import(format!(
            "\u{FEFF}deviceId,enrollment,productKey,deviceName,deviceSecret,iotId,pskIdentity,psk\r\n\
             SN-2,plugs,a1own,,,,\"say \"\"hi\"\", plug ü\",{PSK}\r\n\
             SN-1,,,name-1,s3cret00000000000000000000000000,waFtX5kugLy1Nlkrut2h000001,,\r\n\
             00:1a:2b:3c:4d:5e,,,to-be-named,,,,\r\n"
        ))
        .unwrap();
    let exported = operator.export();
    assert_eq!(
        exported,
        format!(
            "deviceId,enrollment,productKey,deviceName,deviceSecret,iotId,pskIdentity,psk\n\
             001A2B3C4D5E,lamps,a1lamps,to-be-named,,,,\n\
             SN-1,lamps,a1lamps,name-1,s3cret00000000000000000000000000,waFtX5kugLy1Nlkrut2h000001,,\n\
             SN-2,plugs,a1own,,,,\"say \"\"hi\"\", plug ü\",{PSK}\n"
        )
    );
    assert_eq!(operator.import(&exported).unwrap(), ImportReport { unchanged: 3, ..Default::default() });
    let other = Operator::new();
    assert_eq!(other.import(&exported).unwrap().added, 3);
    assert_eq!(other.export(), exported);
}

#[test]
fn a_dry_run_tells_what_would_happen_and_progress_reaches_the_end() {
    let operator = Operator::new();
    let mut text = String::from("deviceId\n");
    for number in 0..3000 {
        text += &format!("SN-{number}\n");
    }
    let path = operator.file("batch.csv", &text);
    let mut seen = Vec::new();
    let source = Source::open(&path).unwrap();
    let report = import(
        &operator.store,
        vec![source.input().unwrap()],
        Import {
            enrollments: &enrollments(),
            by: &Actor::system_user(),
            dry_run: true,
            ignores_unknown: false,
        },
        Feedback {
            progress: &mut |stage, done, total| seen.push((stage, done, total)),
            bad_line: &mut |_, _| (),
        },
    );
    assert_eq!(report.unwrap().report.added, 3000);
    assert_eq!(operator.store.count().unwrap(), 0);
    let total = text.len() as u64;
    // The rows are checked after they are read.
    let (read, checked): (Vec<_>, Vec<_>) =
        seen.into_iter().partition(|(stage, ..)| *stage == ImportStage::Reading);
    assert_eq!(read.last(), Some(&(ImportStage::Reading, total, total)));
    assert!(read.len() >= 3 && read.is_sorted_by_key(|(_, done, _)| *done), "{read:?}");
    assert_eq!(checked.last(), Some(&(ImportStage::Checking, 3000, 3000)));
}

#[test]
fn a_file_that_cannot_be_read_is_named() {
    let operator = Operator::new();
    for path in [operator.directory.path().join("missing.csv"), operator.directory.path().to_owned()] {
        let outcome = import_file(
            &operator.store,
            &path,
            Import {
                enrollments: &enrollments(),
                by: &Actor::system_user(),
                dry_run: false,
                ignores_unknown: false,
            },
        );
        let Err(error @ ImportFileError::Read { .. }) = outcome else { panic!("{outcome:?}") };
        assert!(error.to_string().starts_with(&format!("{}: ", path.display())), "{error}");
    }
}
