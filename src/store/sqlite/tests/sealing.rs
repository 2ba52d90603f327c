//! Tests of sealed secrets: reading the file without a database key, moving sealed values to other
//! rows, wrong and lost database keys, and changing them while other processes read.

use std::ops::ControlFlow;

use super::*;
use crate::testing::store::register;
use crate::{
    seal::{DatabaseKey, Keyring, OPENED, Place},
    store::{
        filter::{Cursor, Filter, State},
        seal_step::SealStep,
        sealed::{self, Keys, Sealed, UnderKey},
    },
};

const SECRET: &str = "the-device-secret-of-one";
const PSK: &str = "00112233445566778899aabbccddeeff";

fn ring(bytes: &[u8]) -> Keyring {
    Keyring::new(bytes.iter().map(|byte| DatabaseKey::parse(&hex::encode([*byte; 32])).unwrap()))
}

fn key_id(byte: u8) -> String {
    ring(&[byte]).first().unwrap().to_string()
}

fn open_with(directory: &TempDir, keys: &[u8]) -> Result<Sealed<Sqlite>, StoreError> {
    let (path, keys) = (directory.path().join("certdist.db"), ring(keys));
    let inner = Sqlite::open_waiting(&path, |in_use| sealed::check(&keys, in_use), SHORT, SHORT)?;
    Ok(Sealed::new(inner, keys))
}

fn own(device: &str, identity: &str) -> ImportRow {
    ImportRow {
        key: with_key(device, identity, PSK).key,
        individual: true,
        ..with_certificate(device, SECRET)
    }
}

fn secret_of(store: &dyn Store, device: &str) -> Result<String, StoreError> {
    let certificate = at_once(store.device(&id(device)))?.unwrap().certificate.unwrap();
    Ok(certificate.device_secret.expose().to_owned())
}

fn psk_of(store: &dyn Store, identity: &str) -> Result<String, StoreError> {
    Ok(at_once(store.individual_key(identity))?.found.unwrap().psk.expose().to_owned())
}

/// Returns the bytes of all files in the folder: the database, its log and any others.
pub(super) fn bytes_of(directory: &TempDir) -> Vec<u8> {
    let files = std::fs::read_dir(directory.path()).unwrap();
    files.flat_map(|file| std::fs::read(file.unwrap().path()).unwrap()).collect()
}

pub(super) fn contains(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|window| window == text.as_bytes())
}

#[test]
fn with_a_key_no_secret_is_in_the_file_and_every_way_in_and_out_works() {
    let directory = tempfile::tempdir().unwrap();
    let store = open_with(&directory, &[1]).unwrap();
    import(&store, [own("SN-1", "one"), row("SN-2")]);
    wait(Box::pin(register(&store, &id("SN-2"), registration("SN-2", "registered-secret")))).unwrap();
    assert_eq!(secret_of(&store, "SN-1").unwrap(), SECRET);
    assert_eq!(psk_of(&store, "one").unwrap(), PSK);
    assert_eq!(secret_of(&store, "SN-2").unwrap(), "registered-secret");
    // Importing the same secret changes nothing, and importing another one is a conflict, as in an
    // unsealed database.
    assert_eq!(import(&store, [own("SN-1", "one")]).unchanged, 1);
    assert_eq!(conflicts(&store, [with_certificate("SN-1", "0ther")])[0].1.column, "deviceSecret");
    let mut exported = Vec::new();
    store
        .export(&mut |row, key| {
            let secret = row.certificate.unwrap().device_secret.expose().to_owned();
            exported.push((secret, key.map(|keys| (keys.identity, keys.psk.expose().to_owned()))));
            ControlFlow::Continue(())
        })
        .unwrap();
    let key = Some(("one".to_owned(), PSK.to_owned()));
    assert_eq!(exported, [(SECRET.to_owned(), key), ("registered-secret".into(), None)]);
    assert_eq!(at_once(store.rows_after(None, 9)).unwrap().len(), 2);
    let while_open = bytes_of(&directory);
    drop(store);
    for bytes in [while_open, bytes_of(&directory)] {
        assert!(contains(&bytes, "SN-1"));
        for secret in [SECRET, PSK, "registered-secret"] {
            assert!(!contains(&bytes, secret));
        }
    }
}

#[test]
fn what_seals_looks_often_while_another_process_writes() {
    use crate::store::sealed::{SecretColumn, StoredSecrets};
    let wait = Duration::from_millis(300);
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("certdist.db");
    let store = Sqlite::open_waiting(&path, |_| Ok(()), SHORT, wait).unwrap();
    let (connection, by) = (connection::open_again(&path, wait).unwrap(), Actor::system_user());
    let other = Connection::open(&path).unwrap();
    let work: [&dyn Fn() -> Result<(), StoreError>; 2] =
        [&|| store.replace_secrets(SecretColumn::Psk, &[]), &|| {
            store.is_only_key(&connection, &key_id(1), 0, &by).map(drop)
        }];
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    for work in work {
        connection::ATTEMPTS.set(0);
        let busy = work().unwrap_err();
        assert!(matches!(&busy, StoreError::Busy(_)), "{busy}");
        // With SQLite's own waiting, there would be only one attempt.
        assert!(connection::ATTEMPTS.get() > 1);
    }
}

#[test]
fn a_list_or_a_count_opens_no_secret() {
    let directory = tempfile::tempdir().unwrap();
    let store = open_with(&directory, &[1]).unwrap();
    import(&store, [own("SN-1", "one"), own("SN-2", "two"), row("SN-3")]);
    let opened = |work: &dyn Fn()| {
        let before = OPENED.get();
        work();
        OPENED.get() - before
    };
    let enough = Duration::from_secs(60);
    for state in State::ALL.into_iter().map(Some).chain([None]) {
        let filter = Filter { state, ..Filter::default() };
        assert_eq!(opened(&|| drop(store.find(&filter, &Cursor::First, 9, enough).unwrap())), 0, "{state:?}");
        assert_eq!(opened(&|| assert!(store.tally(&filter, enough).unwrap().is_complete)), 0, "{state:?}");
    }
    let all = ["SN-1", "SN-2"].map(id);
    assert_eq!(opened(&|| assert_eq!(store.listed(&all).unwrap().len(), 2)), 0);
    let counts = || {
        store.totals().unwrap();
        store.held(9).unwrap();
        store.products().unwrap();
        store.imports().unwrap();
        store.check_counts().unwrap();
        store.recount().unwrap();
        store.key_counts().unwrap();
        store.clear_count().unwrap();
        wait(store.probe()).unwrap();
    };
    assert_eq!(opened(&counts), 0);
    assert_eq!(opened(&|| drop(at_once(store.device(&id("SN-1"))).unwrap())), 1, "what shows it opens it");
}

#[test]
fn a_value_that_was_moved_is_refused_with_its_row_and_not_its_value() {
    let directory = tempfile::tempdir().unwrap();
    let store = open_with(&directory, &[1]).unwrap();
    import(&store, [own("SN-1", "one"), own("SN-2", "two")]);
    let other = Connection::open(store.inner().path()).unwrap();
    let swaps = [
        "UPDATE device_table SET deviceSecret = (SELECT deviceSecret FROM device_table WHERE deviceId = 'SN-2') \
         WHERE deviceId = 'SN-1'",
        "UPDATE device_table SET deviceSecret = (SELECT psk FROM device_key WHERE deviceId = 'SN-1') \
         WHERE deviceId = 'SN-1'",
    ];
    for swap in swaps {
        other.execute_batch(swap).unwrap();
        let error = sentence(secret_of(&store, "SN-1"));
        assert!(
            error.contains("device SN-1, column deviceSecret: the value was changed, or moved"),
            "{error}"
        );
        assert!(!error.contains(SECRET) && !error.contains("sealed 1"), "{error}");
        // The other rows are read, even if a page would contain only the damaged row.
        for limit in [1, 9] {
            let rows = wait(store.rows_after(None, limit)).unwrap();
            assert_eq!(rows.into_iter().map(|row| row.id).collect::<Vec<_>>(), [id("SN-2")]);
        }
        assert_eq!(secret_of(&store, "SN-2").unwrap(), SECRET, "the others are served");
    }
    let swaps = [
        "UPDATE device_key SET psk = (SELECT psk FROM device_key WHERE deviceId = 'SN-2') WHERE deviceId = 'SN-1'",
        "UPDATE device_key SET psk = (SELECT deviceSecret FROM device_table WHERE deviceId = 'SN-2') \
         WHERE deviceId = 'SN-1'",
    ];
    for swap in swaps {
        other.execute_batch(swap).unwrap();
        let error = sentence(psk_of(&store, "one"));
        assert!(error.contains("device SN-1, column psk: the value was changed, or moved"), "{error}");
    }
    // The identity in a row was changed by hand. Unless the store noticed this, a client with the
    // new identity would use the key of SN-2.
    other.execute_batch("UPDATE device_key SET pskIdentity = 'three' WHERE deviceId = 'SN-2'").unwrap();
    assert!(sentence(psk_of(&store, "three")).contains("device SN-2, column psk"));
}

#[test]
fn a_wrong_or_lost_key_is_told_when_the_database_is_opened() {
    let directory = tempfile::tempdir().unwrap();
    let store = open_with(&directory, &[1]).unwrap();
    import(&store, [own("SN-1", "one")]);
    drop(store);
    let told = |keys: &[u8]| open_with(&directory, keys).map(drop).unwrap_err().to_string();
    let lost = told(&[]);
    assert!(lost.contains(&format!("sealed under key {}", key_id(1))), "{lost}");
    assert!(lost.contains("expected database_key"), "{lost}");
    let wrong = told(&[2]);
    assert!(wrong.contains(&format!("sealed under key {}", key_id(1))), "{wrong}");
    assert!(wrong.contains(&key_id(2)) && wrong.contains("database_key_previous"), "{wrong}");
    assert_eq!(secret_of(&open_with(&directory, &[2, 1]).unwrap(), "SN-1").unwrap(), SECRET);
    let url = format!("sqlite:{}", directory.path().join("certdist.db").display());
    assert!(sentence(crate::store::open(&url, ring(&[2])).map(drop)).contains(&key_id(1)));
    assert!(crate::store::open(&url, ring(&[1])).is_ok());
    // A running store refuses database keys that do not open its secrets, and keeps its own.
    let store = open_with(&directory, &[1]).unwrap();
    assert!(sentence(store.set_keys(ring(&[3]))).contains(&key_id(1)));
    assert_eq!(secret_of(&store, "SN-1").unwrap(), SECRET);
}

#[test]
fn an_older_database_that_is_refused_for_its_keys_is_not_migrated() {
    for (script, is_sealed) in [(include_str!("version_1.sql"), false), (auditing::VERSION_3, true)] {
        let directory = tempfile::tempdir().unwrap();
        let other = Connection::open(directory.path().join("certdist.db")).unwrap();
        other.execute_batch(script).unwrap();
        let version = || other.pragma_query_value(None, "user_version", |row| row.get::<_, i64>(0)).unwrap();
        let before = version();
        if is_sealed {
            let key = ring(&[1]);
            let secret = key.seal(Place::DeviceSecret("SN-7"), SECRET).unwrap();
            other
                .execute_batch(&format!(
                    "INSERT INTO database_key VALUES ('{}', 5); INSERT INTO device_table \
                     (deviceId, productKey, deviceName, deviceSecret, enrollment) \
                     VALUES ('SN-7', 'a1lamp', 'SN-7', '{}', 'lamps')",
                    key_id(1),
                    secret.expose()
                ))
                .unwrap();
            for keys in [&[][..], &[2]] {
                let error = open_with(&directory, keys).map(drop).unwrap_err().to_string();
                assert!(error.contains(&format!("sealed under key {}", key_id(1))), "{error}");
                assert_eq!(version(), before);
            }
        }
        let store = open_with(&directory, &[1]).unwrap();
        assert!(version() > before);
        if is_sealed {
            assert_eq!(secret_of(&store, "SN-7").unwrap(), SECRET);
        }
    }
}

#[test]
fn a_clear_database_is_sealed_beside_a_reader_and_no_trace_is_left() {
    let directory = tempfile::tempdir().unwrap();
    let server = open_with(&directory, &[]).unwrap();
    import(&server, (0..2000).map(|number| own(&format!("SN-{number}"), &format!("identity-{number}"))));
    // These devices are deleted by a process that does not overwrite deleted content.
    import(&server, (0..6000).map(|number| own(&format!("GONE-{number}"), &format!("gone-{number}"))));
    let other = Connection::open(server.inner().path()).unwrap();
    let gone = "PRAGMA secure_delete = 0; PRAGMA foreign_keys = 1; DELETE FROM device_table WHERE deviceId LIKE 'GONE-%'";
    other.execute_batch(gone).unwrap();
    drop(other);
    let clear = UnderKey { key: None, device_secrets: 2000, psks: 2000 };
    assert_eq!(server.key_counts().unwrap(), [clear]);
    assert!(sentence(server.seal_all(&Actor::system_user(), &mut |_| ())).contains("expected database_key"));

    // The server loads the new database key first, as on SIGHUP, and keeps serving requests.
    server.set_keys(ring(&[1])).unwrap();
    let operator = open_with(&directory, &[1]).unwrap();
    let mut seen = Vec::new();
    let report = operator
        .seal_all(&Actor::system_user(), &mut |step| {
            if let SealStep::Sealing(done, total) = step {
                seen.push((done, total));
            }
            assert_eq!(secret_of(&server, "SN-0").unwrap(), SECRET);
            assert_eq!(psk_of(&server, "identity-1999").unwrap(), PSK);
        })
        .unwrap();
    assert_eq!((report.sealed, report.key.to_string()), (4000, key_id(1)));
    assert!(seen.is_sorted() && seen.last() == Some(&(4000, 4000)), "{seen:?}");
    let sealed = UnderKey { key: Some(key_id(1)), device_secrets: 2000, psks: 2000 };
    assert_eq!(server.key_counts().unwrap(), [sealed]);
    assert_eq!(secret_of(&server, "SN-7").unwrap(), SECRET);
    let bytes = bytes_of(&directory);
    assert!(contains(&bytes, "SN-7"));
    assert!(!contains(&bytes, SECRET) && !contains(&bytes, PSK), "a trace of the clear values");
    assert_eq!(
        operator.seal_all(&Actor::system_user(), &mut |_| ()).unwrap().sealed,
        0,
        "once more changes nothing"
    );
}

#[test]
fn sealing_does_not_succeed_while_a_reader_keeps_former_values_in_the_log() {
    let directory = tempfile::tempdir().unwrap();
    let store = open_with(&directory, &[]).unwrap();
    import(&store, (0..100).map(|number| own(&format!("SN-{number}"), &format!("identity-{number}"))));
    store.set_keys(ring(&[1])).unwrap();
    let reader = Connection::open(store.inner().path()).unwrap();
    reader.execute_batch("BEGIN; SELECT count(*) FROM device_table").unwrap();
    let error = store.seal_all(&Actor::system_user(), &mut |_| ()).unwrap_err();
    assert!(matches!(&error, StoreError::Busy(reason) if reason.contains("run this again")), "{error}");
    drop(reader);
    store.seal_all(&Actor::system_user(), &mut |_| ()).unwrap();
    let bytes = bytes_of(&directory);
    assert!(!contains(&bytes, SECRET) && !contains(&bytes, PSK), "a trace of the clear values");
}

#[test]
fn a_rotation_goes_on_where_it_was_stopped_and_then_the_old_key_is_not_needed() {
    let directory = tempfile::tempdir().unwrap();
    let store = open_with(&directory, &[1]).unwrap();
    import(&store, (0..1200).map(|number| own(&format!("SN-{number}"), &format!("identity-{number}"))));
    drop(store);
    let store = open_with(&directory, &[2, 1]).unwrap();
    let stopped = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        store.seal_all(&Actor::system_user(), &mut |_| std::panic::resume_unwind(Box::new("stopped")))
    }));
    assert!(stopped.is_err());
    let halfway = store.key_counts().unwrap();
    assert_eq!(halfway.len(), 2, "{halfway:?}");
    assert!(open_with(&directory, &[2]).is_err(), "both keys are needed");
    assert_eq!(secret_of(&store, "SN-0").unwrap(), secret_of(&store, "SN-999").unwrap());

    let left = halfway.iter().find(|sealed| sealed.key == Some(key_id(1))).unwrap();
    assert_eq!(
        store.seal_all(&Actor::system_user(), &mut |_| ()).unwrap().sealed,
        left.device_secrets + left.psks
    );
    drop(store);
    let store = open_with(&directory, &[2]).unwrap();
    assert_eq!(psk_of(&store, "identity-3").unwrap(), PSK);
    assert!(!contains(&bytes_of(&directory), &format!("sealed 1 {}", key_id(1))));
}

#[test]
fn a_server_that_still_writes_under_the_old_key_is_told_of() {
    let directory = tempfile::tempdir().unwrap();
    let server = open_with(&directory, &[1]).unwrap();
    import(&server, [own("SN-1", "one"), row("SN-2")]);
    let operator = open_with(&directory, &[2, 1]).unwrap();
    let error = sentence(operator.seal_all(&Actor::system_user(), &mut |step| {
        if let SealStep::Sealing(done, total) = step
            && done == total
        {
            wait(Box::pin(register(&server, &id("SN-2"), registration("SN-2", "registered-secret"))))
                .unwrap();
        }
    }));
    assert!(error.contains("1 values were written under another key") && error.contains("SIGHUP"), "{error}");
    server.set_keys(ring(&[2, 1])).unwrap();
    assert_eq!(operator.seal_all(&Actor::system_user(), &mut |_| ()).unwrap().sealed, 1);
    server.set_keys(ring(&[2])).unwrap();
    assert_eq!(secret_of(&server, "SN-2").unwrap(), "registered-secret");
}

#[test]
fn a_run_that_finds_all_sealed_waits_for_a_log_that_still_has_clear_values() {
    let directory = tempfile::tempdir().unwrap();
    let store = open_with(&directory, &[1]).unwrap();
    import(&store, [own("SN-1", "one")]);
    // The next lines produce the state after a run that was killed once all values were sealed, but
    // before their traces were removed.
    let other = Connection::open(store.inner().path()).unwrap();
    other.execute_batch("PRAGMA secure_delete = 1; PRAGMA synchronous = off").unwrap();
    let reader = Connection::open(store.inner().path()).unwrap();
    reader.execute_batch("BEGIN; SELECT count(*) FROM device_table").unwrap();
    other.execute_batch(&format!("UPDATE device_table SET refusal = NULL, IotId = '{SECRET}'")).unwrap();
    other.execute_batch("UPDATE device_table SET IotId = NULL").unwrap();
    assert!(contains(&bytes_of(&directory), SECRET));
    let error = store.seal_all(&Actor::system_user(), &mut |_| ()).unwrap_err();
    assert!(matches!(&error, StoreError::Busy(reason) if reason.contains("run this again")), "{error}");
    drop(reader);
    assert_eq!(store.seal_all(&Actor::system_user(), &mut |_| ()).unwrap().sealed, 0);
    assert!(!contains(&bytes_of(&directory), SECRET), "a trace of the clear values");
}

#[test]
fn clear_values_that_came_and_went_while_traces_were_removed_are_told_of() {
    let directory = tempfile::tempdir().unwrap();
    let store = open_with(&directory, &[]).unwrap();
    import(&store, [own("SN-1", "one")]);
    store.set_keys(ring(&[1])).unwrap();
    // After the traces are removed, the trigger notes a value in clear text, as a server without the
    // database key would.
    let other = Connection::open(store.inner().path()).unwrap();
    let trigger = "CREATE TRIGGER late AFTER DELETE ON database_key WHEN old.keyId = 'clear' \
                   BEGIN INSERT INTO database_key VALUES ('clear', 0, 1); END";
    other.execute_batch(trigger).unwrap();
    let error = sentence(store.seal_all(&Actor::system_user(), &mut |_| ()));
    assert!(error.contains("written under another key meanwhile") && error.contains("SIGHUP"), "{error}");
    other.execute_batch("DROP TRIGGER late").unwrap();
    store.seal_all(&Actor::system_user(), &mut |_| ()).unwrap();
}

#[test]
fn copies_that_a_killed_command_has_left_are_removed_with_the_clear_values() {
    let directory = tempfile::tempdir().unwrap();
    let store = open_with(&directory, &[]).unwrap();
    import(&store, [own("SN-1", "one")]);
    for ending in ["", "-wal"] {
        let left = directory.path().join(format!("certdist.db.0123456789abcdef.part{ending}"));
        std::fs::write(left, SECRET).unwrap();
    }
    store.set_keys(ring(&[1])).unwrap();
    store.seal_all(&Actor::system_user(), &mut |_| ()).unwrap();
    assert!(!contains(&bytes_of(&directory), SECRET), "a trace of the clear values");
}

#[test]
fn a_run_that_is_stopped_while_it_removes_traces_removes_the_others_when_repeated() {
    for step in 0.. {
        let directory = tempfile::tempdir().unwrap();
        let store = open_with(&directory, &[]).unwrap();
        import(&store, (0..500).map(|number| own(&format!("SN-{number}"), &format!("identity-{number}"))));
        store.set_keys(ring(&[1])).unwrap();
        let mut left = step;
        let stopped = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            store.seal_all(&Actor::system_user(), &mut |_| match left {
                0 => std::panic::resume_unwind(Box::new("stopped")),
                _ => left -= 1,
            })
        }));
        let is_complete = stopped.is_ok();
        drop(store);
        let store = open_with(&directory, &[1]).unwrap();
        store.seal_all(&Actor::system_user(), &mut |_| ()).unwrap();
        let bytes = bytes_of(&directory);
        assert!(!contains(&bytes, SECRET) && !contains(&bytes, PSK), "a trace of the clear values");
        if is_complete {
            // One step at least for each column, for removing traces and for searching more.
            assert!(step >= 4, "{step}");
            return;
        }
    }
}

#[test]
fn a_run_that_was_stopped_before_traces_were_removed_removes_them_when_repeated() {
    let directory = tempfile::tempdir().unwrap();
    let store = open_with(&directory, &[]).unwrap();
    import(&store, (0..100).map(|number| own(&format!("SN-{number}"), &format!("identity-{number}"))));
    store.set_keys(ring(&[1])).unwrap();
    // The process is killed after all values are sealed and noted.
    let stopped = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        store.seal_all(&Actor::system_user(), &mut |step| {
            if let SealStep::Sealing(done, total) = step
                && done == total
            {
                std::panic::resume_unwind(Box::new("stopped"));
            }
        })
    }));
    assert!(stopped.is_err());
    let (by, path) = (Actor::system_user(), store.inner().path());
    let connection = connection::open_again(path, SHORT).unwrap();
    assert!(store.inner().is_only_key(&connection, &key_id(1), 200, &by).unwrap());
    drop(connection);
    assert!(contains(&bytes_of(&directory), SECRET));
    drop(store);
    let store = open_with(&directory, &[1]).unwrap();
    assert_eq!(store.seal_all(&Actor::system_user(), &mut |_| ()).unwrap().sealed, 0);
    let bytes = bytes_of(&directory);
    assert!(!contains(&bytes, SECRET) && !contains(&bytes, PSK), "a trace of the clear values");
}

#[test]
fn a_process_notices_that_another_has_sealed_under_a_key_that_it_does_not_have() {
    let directory = tempfile::tempdir().unwrap();
    let server = open_with(&directory, &[]).unwrap();
    import(&server, [own("SN-1", "one")]);
    server.check_keys().unwrap();
    wait(server.probe()).unwrap();
    open_with(&directory, &[1]).unwrap().seal_all(&Actor::system_user(), &mut |_| ()).unwrap();
    for told in [sentence(server.check_keys()), sentence(wait(server.probe()))] {
        assert!(told.contains(&key_id(1)) && told.contains("SIGHUP"), "{told}");
    }
    server.set_keys(ring(&[1])).unwrap();
    server.check_keys().unwrap();
    wait(server.probe()).unwrap();
    assert_eq!(psk_of(&server, "one").unwrap(), PSK);
}
